package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/lambdad/lambdad/blob"
)

// Limits of one layer. They keep the memory and the inodes that a hostile one can
// cost within bounds.
const (
	maxNodes   = 500_000 // entries and implied directories
	maxName    = 4000    // bytes of a path
	maxElement = 255     // bytes of an element of it
	maxDepth   = 255     // elements
	maxLink    = 4095    // bytes of a link's target
	maxXattrs  = 64 << 10
	// maxPadding is what a tar may have beside its files: headers and zeros.
	maxPadding  = 1 << 30
	maxZstdMem  = 256 << 20
	reserveStep = 64 << 20 // bytes between two looks at the disk
)

// layerInfo is what is known of a layer when it is unpacked.
type layerInfo struct {
	DiffID string `json:"diffId"` // hex SHA-256 of its tar
	Size   int64  `json:"size"`   // bytes of its files
	Nodes  int    `json:"nodes"`
}

// Whiteouts as layers have them.
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh."
)

// kind is what an entry became.
type kind byte

const (
	kindFile kind = iota + 1
	kindLink
	kindDir
	kindWhiteout
)

// unpacker writes one layer.
type unpacker struct {
	ctx     context.Context
	root    *os.Root
	dir     string
	left    int64 // bytes of files that may follow
	look    int64 // bytes until the disk is looked at again
	reserve func() error
	size    int64
	nodes   map[string]kind
	times   map[string]time.Time // of directories, set last
	opaque  map[string]bool

	here *os.Root // the directory of the entry before
	at   string
	buf  []byte
}

// unpack writes the layer that r holds, compressed or not, into dir, which it makes.
// On failure dir holds a part that the caller removes. Nothing is written outside
// dir: every file is opened relative to its directory, which this layer made as a
// directory.
func unpack(ctx context.Context, r io.Reader, dir string, limit int64, reserve func() error) (layerInfo, error) {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return layerInfo{}, full(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return layerInfo{}, err
	}
	defer root.Close()
	if err := root.Chmod(".", 0o755); err != nil {
		return layerInfo{}, err
	}
	plain, done, err := decompressed(r)
	if err != nil {
		return layerInfo{}, broken(err)
	}
	defer done()
	sum := sha256.New()
	stream := &hashed{ctx: ctx, r: plain, sum: sum, left: limit + maxPadding}
	u := &unpacker{ctx: ctx, root: root, dir: dir, left: limit, reserve: reserve,
		nodes: map[string]kind{"": kindDir}, times: map[string]time.Time{}, opaque: map[string]bool{}, buf: make([]byte, 128<<10)}
	defer u.leave()
	if err := u.all(tar.NewReader(stream)); err != nil {
		return layerInfo{}, full(err)
	}
	// What follows the end of the tar belongs to the diff id.
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{stream}, u.buf); err != nil {
		return layerInfo{}, broken(err)
	}
	return layerInfo{DiffID: hex.EncodeToString(sum.Sum(nil)), Size: u.size, Nodes: len(u.nodes) - 1}, nil
}

// full makes an error of a full disk recognisable.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", blob.ErrFull, err)
	}
	return err
}

// broken is the refusal of a layer that cannot be read, unless that was not its
// fault.
func broken(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, errLong):
		if errors.Is(err, errLong) {
			return errTooLarge()
		}
		return err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return invalidf(err, "A layer of the image ends in the middle: it was cut off on its way; push the image again.")
	}
	return invalidf(err, "A layer of the image cannot be read: %v.", err)
}

var errLong = errors.New("the layer holds more than the limit")

// decompressed tells by the first bytes how a layer is compressed.
func decompressed(r io.Reader) (io.Reader, func(), error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { z.Close() }, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxZstdMem))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	case len(head) == 0:
		return nil, nil, io.ErrUnexpectedEOF
	}
	return b, func() {}, nil
}

// hashed counts and hashes what is read through it.
type hashed struct {
	ctx  context.Context
	r    io.Reader
	sum  hash.Hash
	left int64
}

func (h *hashed) Read(b []byte) (int, error) {
	if h.ctx.Err() != nil {
		return 0, context.Cause(h.ctx)
	}
	n, err := h.r.Read(b)
	h.sum.Write(b[:n])
	if h.left -= int64(n); h.left < 0 {
		return n, errLong
	}
	return n, err
}

// all writes every entry.
func (u *unpacker) all(t *tar.Reader) error {
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return broken(err)
		}
		if err := u.entry(h, t); err != nil {
			return err
		}
	}
	u.leave()
	for dir := range u.opaque {
		if err := u.within(dir, func(fd int) error { return setOpaque(fd) }); err != nil {
			return u.failed(dir, err)
		}
	}
	for dir, t := range u.times {
		if err := u.root.Chtimes(orDot(dir), t, t); err != nil {
			return u.failed(dir, err)
		}
	}
	return nil
}

func orDot(dir string) string {
	if dir == "" {
		return "."
	}
	return dir
}

// failed is trouble of this side while writing an entry.
func (u *unpacker) failed(name string, err error) error {
	return fmt.Errorf("image: unpack %s into %s: %w", shown(name), u.dir, err)
}

// shown is a name as a message can show it.
func shown(name string) string {
	if len(name) > 200 {
		name = name[:200] + "…"
	}
	return fmt.Sprintf("%q", name)
}

func refuse(name, why string) error {
	return invalidf(nil, "Entry %s of a layer is refused: %s.", shown(name), why)
}

// cleaned checks a name and brings it into its one form: "" is the root.
func cleaned(name string) (string, error) {
	if len(name) > maxName {
		return "", refuse(name, "its name is too long")
	}
	if strings.ContainsRune(name, 0) {
		return "", refuse(name, "its name holds a NUL")
	}
	var parts []string
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "" || p == ".":
			continue
		case p == "..":
			return "", refuse(name, "its name leads upwards")
		case len(p) > maxElement:
			return "", refuse(name, "a part of its name is longer than 255 bytes")
		}
		parts = append(parts, p)
	}
	if len(parts) > maxDepth {
		return "", refuse(name, "it lies too deep")
	}
	return strings.Join(parts, "/"), nil
}

func parentOf(name string) string {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i]
	}
	return ""
}

// entry writes one entry.
func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if err := u.ctx.Err(); err != nil {
		return context.Cause(u.ctx)
	}
	name, err := cleaned(h.Name)
	if err != nil {
		return err
	}
	base, parent := path.Base(name), parentOf(name)
	if strings.HasPrefix(base, whiteoutPrefix) && name != "" {
		return u.whiteout(parent, base)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.mkdir(name, h)
	case tar.TypeReg, tar.TypeGNUSparse: // whose holes come as zeros, and count
		return u.file(name, h, content)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxLink || strings.ContainsRune(h.Linkname, 0) {
			return refuse(name, "its target is empty or too long")
		}
		if err := u.claim(name, kindLink); err != nil {
			return err
		}
		if err := u.here.Symlink(h.Linkname, base); err != nil {
			return u.failed(name, err)
		}
		return nil
	case tar.TypeLink:
		return u.link(name, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return nil // a sandbox has its own
	}
	return refuse(name, fmt.Sprintf("it is of an unknown type %q", h.Typeflag))
}

// add counts a node.
func (u *unpacker) add(name string, k kind) error {
	if _, ok := u.nodes[name]; !ok && len(u.nodes) > maxNodes {
		return invalidf(nil, "A layer of the image holds more than %d files.", maxNodes)
	}
	u.nodes[name] = k
	return nil
}

// claim makes room for an entry that is no directory and opens its directory: of
// several entries of one name the last counts.
func (u *unpacker) claim(name string, k kind) error {
	if name == "" {
		return refuse("/", "the root must be a directory")
	}
	parent, base := parentOf(name), path.Base(name)
	if err := u.parents(parent); err != nil {
		return err
	}
	if err := u.enter(parent); err != nil {
		return u.failed(name, err)
	}
	switch was := u.nodes[name]; {
	case was == kindDir && k == kindWhiteout:
		u.opaque[name] = true // made anew here, and nothing below it is to be seen
		return errSkip
	case was == kindDir:
		return refuse(name, "it is a directory in another place of the layer")
	case was != 0 && k == kindWhiteout:
		return errSkip
	case was != 0:
		if err := u.here.Remove(base); err != nil {
			return u.failed(name, err)
		}
	}
	return u.add(name, k)
}

var errSkip = errors.New("nothing to do")

// parents makes the directories above that no entry has made so far.
func (u *unpacker) parents(dir string) error {
	switch u.nodes[dir] {
	case kindDir:
		return nil
	case kindLink:
		return refuse(dir, "another entry lies below it, but it is a link")
	case kindFile:
		return refuse(dir, "another entry lies below it, but it is a file")
	}
	return u.mkdir(dir, nil)
}

// mkdir makes a directory; h is nil for one that is only implied.
func (u *unpacker) mkdir(name string, h *tar.Header) error {
	if name != "" {
		if err := u.parents(parentOf(name)); err != nil {
			return err
		}
		was := u.nodes[name]
		if was == kindFile || was == kindLink {
			return refuse(name, "it is something else in another place of the layer")
		}
		if err := u.enter(parentOf(name)); err != nil {
			return u.failed(name, err)
		}
		if was == kindWhiteout {
			if err := u.here.Remove(path.Base(name)); err != nil {
				return u.failed(name, err)
			}
			u.opaque[name] = true
		}
		if was != kindDir {
			if err := u.here.Mkdir(path.Base(name), 0o755); err != nil {
				return u.failed(name, err)
			}
			if err := u.add(name, kindDir); err != nil {
				return err
			}
		}
	}
	mode := fs.FileMode(0o755)
	if h != nil {
		mode = h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSticky)
		if !h.ModTime.IsZero() {
			u.times[name] = h.ModTime
		}
	} else if u.nodes[name] == kindDir && name == "" {
		return nil
	}
	if name == "" {
		mode |= 0o555 // everything lies below it
	}
	if err := u.root.Chmod(orDot(name), mode|0o700); err != nil {
		return u.failed(name, err)
	}
	if h != nil {
		return u.xattrs(name, h)
	}
	return nil
}

// file writes a regular file.
func (u *unpacker) file(name string, h *tar.Header, content io.Reader) error {
	if h.Size > u.left {
		return errTooLarge()
	}
	if err := u.claim(name, kindFile); err != nil {
		return err
	}
	f, err := u.here.OpenFile(path.Base(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return u.failed(name, err)
	}
	defer f.Close()
	for {
		n, err := content.Read(u.buf)
		if n > 0 {
			if u.left -= int64(n); u.left < 0 {
				return errTooLarge()
			}
			u.size += int64(n)
			if u.look -= int64(n); u.look <= 0 {
				if err := u.reserve(); err != nil {
					return fmt.Errorf("%w: %w", blob.ErrFull, err)
				}
				u.look = reserveStep
			}
			if _, err := f.Write(u.buf[:n]); err != nil {
				return u.failed(name, err)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return broken(err)
		}
	}
	// Not the set-user-id bits, and never a file that root itself cannot remove.
	if err := f.Chmod(h.FileInfo().Mode().Perm()); err != nil {
		return u.failed(name, err)
	}
	if err := f.Close(); err != nil {
		return u.failed(name, err)
	}
	if !h.ModTime.IsZero() {
		if err := u.here.Chtimes(path.Base(name), h.ModTime, h.ModTime); err != nil {
			return u.failed(name, err)
		}
	}
	return u.xattrs(name, h)
}

// link makes a hard link to a file of this layer.
func (u *unpacker) link(name string, h *tar.Header) error {
	target, err := cleaned(h.Linkname)
	if err != nil {
		return err
	}
	if target == name {
		return refuse(name, "it is a hard link to itself")
	}
	if k := u.nodes[target]; k != kindFile && k != kindLink {
		return refuse(name, "it is a hard link to "+shown(target)+", which is no file of this layer")
	}
	if err := u.claim(name, u.nodes[target]); err != nil {
		return err
	}
	if err := u.root.Link(target, name); err != nil {
		return u.failed(name, err)
	}
	return nil
}

// whiteout hides a name of the layers below, or all of a directory's.
func (u *unpacker) whiteout(parent, base string) error {
	if base == whiteoutOpaque {
		if err := u.parents(parent); err != nil {
			return err
		}
		if parent != "" {
			u.opaque[parent] = true
			return nil
		}
		u.opaque[""] = true
		return nil
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil // bookkeeping of an older Docker
	}
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return refuse(base, "it hides nothing")
	}
	name := hidden
	if parent != "" {
		name = parent + "/" + hidden
	}
	err := u.claim(name, kindWhiteout)
	if errors.Is(err, errSkip) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := u.within(parent, func(fd int) error { return makeWhiteout(fd, hidden) }); err != nil {
		return u.failed(name, err)
	}
	return nil
}

// xattrs sets the extended attributes that are only a note: those of the kernel and
// of security modules would mean something to it.
func (u *unpacker) xattrs(name string, h *tar.Header) error {
	total := 0
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || !strings.HasPrefix(attr, "user.") || strings.HasPrefix(attr, "user.overlay.") || len(attr) > 255 {
			continue
		}
		if total += len(attr) + len(value); total > maxXattrs {
			return refuse(name, "its extended attributes are too long")
		}
		err := u.within(parentOf(name), func(fd int) error { return setXattr(fd, path.Base(orDot(name)), attr, value) })
		if err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, syscall.ENOTSUP) {
			return u.failed(name, err)
		}
	}
	return nil
}

// enter opens a directory that this layer made.
func (u *unpacker) enter(dir string) error {
	if u.here != nil && u.at == dir {
		return nil
	}
	u.leave()
	here, err := u.root.OpenRoot(orDot(dir))
	if err != nil {
		return err
	}
	u.here, u.at = here, dir
	return nil
}

func (u *unpacker) leave() {
	if u.here != nil {
		u.here.Close()
		u.here = nil
	}
}

// within calls f with a descriptor of a directory that this layer made.
func (u *unpacker) within(dir string, f func(fd int) error) error {
	d, err := u.root.Open(orDot(dir))
	if err != nil {
		return err
	}
	defer d.Close()
	return f(int(d.Fd()))
}
