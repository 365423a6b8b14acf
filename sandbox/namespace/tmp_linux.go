//go:build amd64 || arm64

package namespace

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// How /tmp comes to be outside the memory of a function: a sparse ext4 image per
// sandbox on a loop device. The image has no name at any time (O_TMPFILE), the
// device lets go of it by itself (autoclear), and the mount has a place in the
// sandbox's mount namespace only: when the daemon is killed all three are gone
// with its descriptors and the sandbox's last process.
//
// An image is a copy of a template of its size, of which only the blocks that
// mkfs.ext4 wrote are kept, in memory. Images are thinly provisioned: what
// functions may write together can be more than the disk has. None is made when
// that would cut into the reserve; when the disk is full all the same, writing to
// /tmp fails with what the disk says.
//
// A file system that was provably never written serves another sandbox
// (tmpImage.unwritten).

const (
	tmpDefault = 512 << 20
	tmpBlock   = 4096
	// tmpTemplates is how many sizes are kept; each is some 100 KiB.
	tmpTemplates = 32
	// tmpEnders is how many file systems are unmounted at a time.
	tmpEnders = 2
	// tmpEnding is how many may wait for that before Destroy waits, too.
	tmpEnding = 64
	// tmpSpare is how many that were never written are kept beyond those made ahead,
	// until nobody has asked for one for tmpQuiet.
	tmpSpare = 6
	tmpQuiet = 250 * time.Millisecond
	// tmpAbandon is the content from which on unmounting says that nothing needs to
	// be written back. The kernel's log has a line for each, and a little is written
	// faster than logged.
	tmpAbandon = 16 << 20
)

// tmpImages makes file systems for /tmp.
type tmpImages struct {
	dir     string
	reserve int64
	owner   int // root of the sandboxes, on the host
	mkfs    string
	log     *slog.Logger

	control *os.File // /dev/loop-control
	nodes   int      // detached mount for device nodes that /dev lacks

	attaching sync.Mutex // from asking for a free device to having it
	known     map[int]bool
	made      []int // devices that exist because of us

	mu        sync.Mutex
	templates map[int64]*tmpTemplate

	aim    *size          // how many to have made ahead; none: none is kept
	kept   func()         // called when there is another one ahead
	ahead  chan *tmpImage // of the default size
	ending chan *tmpImage
	enders sync.WaitGroup
}

// A tmpTemplate is what images of one size begin with.
type tmpTemplate struct {
	mu     sync.Mutex // held while it is made
	size   int64      // what can be written
	length int64      // of the image; 0: not made yet
	blocks []tmpExtent
	used   int64  // in blocks, in bytes
	inodes []byte // the first block of the inode table
	table  int64  // where it is
}

type tmpExtent struct {
	at      int64
	content []byte
}

// A tmpImage is one file system.
type tmpImage struct {
	mount int // detached until moved into its sandbox
	// root keeps the file system mounted when the sandbox ends, so that writing it
	// back is not what the end waits for.
	root int

	loop  int // the number of its device
	from  *tmpTemplate
	blank unix.Statfs_t // before anybody had it
}

// A tmpError says why /tmp cannot be on disk here.
type tmpError struct {
	err  error
	cure string
}

func (e *tmpError) Error() string { return e.err.Error() }
func (e *tmpError) Unwrap() error { return e.err }

// newTmpImages proves that an image can be made and mounted. The error is a
// *tmpError.
func newTmpImages(ctx context.Context, dir string, reserve int64, owner int, ahead *size, log *slog.Logger) (_ *tmpImages, err error) {
	t := &tmpImages{
		dir: dir, reserve: reserve, owner: owner, log: log, nodes: -1,
		known: map[int]bool{}, templates: map[int64]*tmpTemplate{},
		aim: ahead, kept: func() {}, ending: make(chan *tmpImage, tmpEnding),
	}
	if t.aim.most > 0 {
		t.ahead = make(chan *tmpImage, t.aim.most+tmpSpare)
	}
	for range tmpEnders {
		t.enders.Go(func() {
			for i := range t.ending {
				if !t.again(i) {
					i.end()
				}
			}
		})
	}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	const privileged = "load the loop and ext4 modules (modprobe loop ext4); in a container: run it privileged"
	if dir == "" {
		return nil, &tmpError{errors.New("there is no directory for images"), "give lambdad a data directory"}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, &tmpError{err, "make it a directory on a disk"}
	}
	var on unix.Statfs_t
	if err := unix.Statfs(dir, &on); err != nil {
		return nil, &tmpError{fmt.Errorf("statfs %s: %w", dir, err), "make it a directory on a disk"}
	}
	if on.Type == unix.TMPFS_MAGIC || on.Type == unix.RAMFS_MAGIC {
		return nil, &tmpError{fmt.Errorf("%s is memory itself (tmpfs)", dir), "put the data directory on a disk (--data-dir)"}
	}
	if t.mkfs, err = findMkfs(); err != nil {
		return nil, &tmpError{err, "install e2fsprogs"}
	}
	if t.control, err = os.OpenFile("/dev/loop-control", os.O_RDWR, 0); err != nil {
		return nil, &tmpError{err, privileged}
	}
	if t.nodes, err = newMount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, "mode=0700", "size=1m"); err != nil {
		return nil, &tmpError{err, privileged}
	}
	devices, _ := filepath.Glob("/sys/block/loop*")
	for _, d := range devices {
		if n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(d), "loop")); err == nil {
			t.known[n] = true
		}
	}
	i, err := t.make(ctx, tmpDefault)
	if err != nil {
		cure := privileged
		if errors.Is(err, unix.ENOSPC) {
			cure = "free some of the disk, or start with a smaller --disk-reserve"
		}
		return nil, &tmpError{fmt.Errorf("a trial image: %w", err), cure}
	}
	i.end()
	return t, nil
}

// findMkfs looks where the path of a service may not lead.
func findMkfs() (string, error) {
	path, err := exec.LookPath("mkfs.ext4")
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		var other error
		if path, other = exec.LookPath(dir + "/mkfs.ext4"); other == nil {
			err = nil
		}
	}
	if err != nil {
		return "", fmt.Errorf("there is no mkfs.ext4: %w", err)
	}
	return filepath.Abs(path)
}

// begin takes a file system on which size bytes of content can be written: one made
// ahead or a new one, which the function it returns waits for. That must be called, and
// gives the same again when it is called again.
func (t *tmpImages) begin(ctx context.Context, size int64) func() (*tmpImage, error) {
	if t == nil {
		return nil
	}
	if size <= 0 {
		size = tmpDefault
	}
	if size == tmpDefault {
		select {
		case i := <-t.ahead:
			return func() (*tmpImage, error) { return i, nil }
		default:
		}
	}
	var i *tmpImage
	var err error
	made := make(chan struct{})
	go func() {
		defer close(made)
		i, err = t.make(ctx, size)
	}()
	return func() (*tmpImage, error) {
		<-made
		return i, err
	}
}

// wants says whether one more should be made ahead.
func (t *tmpImages) wants() bool { return t != nil && len(t.ahead) < t.aim.wanted() }

// prepare makes one ahead. Only one goroutine may call it.
func (t *tmpImages) prepare(ctx context.Context) error {
	i, err := t.make(ctx, tmpDefault)
	if err == nil {
		t.keep(i)
	}
	return err
}

func (t *tmpImages) keep(i *tmpImage) {
	select {
	case t.ahead <- i:
		t.kept()
	default:
		i.end()
	}
}

// surplus says whether more are ahead than are made.
func (t *tmpImages) surplus() bool { return t != nil && len(t.ahead) > t.aim.wanted() }

// trim ends the surplus.
func (t *tmpImages) trim() {
	for t.surplus() {
		select {
		case i := <-t.ahead:
			i.end()
		default:
		}
	}
}

// again makes a file system whose sandbox is gone ready for another if it was never
// written, and says so.
func (t *tmpImages) again(i *tmpImage) bool {
	if i.from == nil || i.from.size != tmpDefault || t.ahead == nil || len(t.ahead) >= t.aim.wanted()+tmpSpare {
		return false
	}
	device, source, err := t.open(i.loop)
	if err != nil {
		return false
	}
	defer unix.Close(device)
	if !i.unwritten(device) {
		return false
	}
	// The mount went with the sandbox; the file system is held by its root.
	i.detach()
	next, err := mountExt4(source)
	if err != nil {
		t.log.Warn("a /tmp that was never written could not be mounted again", "error", err)
		return false
	}
	var was, is unix.Stat_t
	if unix.Fstat(i.root, &was) != nil || unix.Fstat(next.root, &is) != nil || was.Dev != is.Dev {
		next.end()
		return false
	}
	unix.Close(i.root)
	next.loop, next.from, next.blank = i.loop, i.from, i.blank
	t.keep(next)
	return true
}

// unwritten proves that nobody has written to the file system, nor read in a way that
// shows. Whatever is made in it first, with a name or without, takes one of the first
// free inodes, from 11; a name also changes the times of the root, 2, as listing does
// once. Inodes to 16 are in the first block of the table, and a removed one keeps the
// time of its end. So the block, read where the file system has it in memory, is that
// of the template if and only if nothing was ever made: nobody inside owns the root or
// may change it otherwise.
func (i *tmpImage) unwritten(device int) bool {
	var s unix.Statfs_t
	if unix.Fstatfs(i.root, &s) != nil || s != i.blank {
		return false
	}
	block := make([]byte, tmpBlock)
	n, err := unix.Pread(device, block, i.from.table)
	return err == nil && n == tmpBlock && bytes.Equal(block, i.from.inodes)
}

// make makes a new file system.
func (t *tmpImages) make(ctx context.Context, size int64) (*tmpImage, error) {
	tpl, err := t.template(ctx, size)
	if err != nil {
		return nil, err
	}
	if err := t.room(tpl.used); err != nil {
		return nil, err
	}
	image, err := t.create(tpl.length)
	if err != nil {
		return nil, err
	}
	defer unix.Close(image)
	for _, e := range tpl.blocks {
		if err := writeAt(image, e.content, e.at); err != nil {
			return nil, fmt.Errorf("write an image in %s: %w", t.dir, err)
		}
	}
	i, err := t.mount(image)
	if err == nil && unix.Fstatfs(i.root, &i.blank) == nil {
		i.from = tpl
	}
	return i, err
}

// room refuses to make an image of this many bytes when that would cut into the
// reserve.
func (t *tmpImages) room(bytes int64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(t.dir, &s); err != nil {
		return fmt.Errorf("statfs %s: %w", t.dir, err)
	}
	if free := int64(s.Bavail) * s.Bsize; free-bytes < t.reserve {
		return fmt.Errorf("the disk of %s has %d MiB left and %d MiB are held in reserve: free some: %w", t.dir, free>>20, t.reserve>>20, unix.ENOSPC)
	}
	return nil
}

// create makes an empty image, a file without a name.
func (t *tmpImages) create(length int64) (int, error) {
	fd, err := unix.Open(t.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		// A file system without such files: the name lives for a moment.
		var f *os.File
		if f, err = os.CreateTemp(t.dir, tmpName+"*"); err == nil {
			_ = os.Remove(f.Name())
			fd, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			f.Close()
		}
	}
	if err != nil {
		return -1, fmt.Errorf("create an image in %s: %w", t.dir, err)
	}
	if err := unix.Ftruncate(fd, length); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("size an image in %s to %d MiB: %w", t.dir, length>>20, err)
	}
	return fd, nil
}

// tmpName begins the names of images where they need one.
const tmpName = "lambdad-tmp-"

// sweep removes images whose name a killed daemon could not remove.
func (t *tmpImages) sweep() error {
	if t == nil {
		return nil
	}
	names, err := filepath.Glob(filepath.Join(t.dir, tmpName+"*"))
	for _, n := range names {
		if rerr := os.Remove(n); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// mount attaches an image and mounts it. The image's descriptor stays the
// caller's.
func (t *tmpImages) mount(image int) (*tmpImage, error) {
	n, loop, source, err := t.attach(image)
	if err != nil {
		return nil, err
	}
	defer unix.Close(loop) // from then on the mount holds the device
	i, err := mountExt4(source)
	if err == nil {
		i.loop = n
	}
	return i, err
}

func mountExt4(source string) (*tmpImage, error) {
	// Nothing here outlives the daemon, so nobody needs it on the disk at any
	// moment: no barriers, and no inode tables zeroed that are holes already.
	// discard gives back at once what is deleted. Once metadata is lost, a plain
	// error is better than content that is not there.
	fd, err := newMount("ext4", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, "source="+source, "rw", "discard", "nobarrier", "noinit_itable", "errors=remount-ro")
	if err != nil {
		return nil, err
	}
	root, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open the root of an image: %w", err)
	}
	return &tmpImage{mount: fd, root: root}, nil
}

// attach gives an image a loop device, and returns its number, descriptor and name.
func (t *tmpImages) attach(image int) (n, loop int, source string, err error) {
	t.attaching.Lock()
	defer t.attaching.Unlock()
	// Others on the host may take or remove the same device between the calls.
	var last error
	for range 100 {
		n, err := unix.IoctlRetInt(int(t.control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return -1, -1, "", fmt.Errorf("get a free loop device: %w", err)
		}
		if !t.known[n] {
			t.known[n] = true
			t.made = append(t.made, n)
		}
		loop, source, err := t.open(n)
		if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
			last = err
			continue
		}
		if err != nil {
			return -1, -1, "", err
		}
		err = unix.IoctlLoopConfigure(loop, &unix.LoopConfig{
			Fd: uint32(image), Size: tmpBlock,
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO},
		})
		if err == nil {
			return n, loop, source, nil
		}
		unix.Close(loop)
		if last = err; !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO) {
			return -1, -1, "", fmt.Errorf("attach an image to /dev/loop%d: %w", n, err)
		}
	}
	return -1, -1, "", fmt.Errorf("attach an image: others took every loop device offered: %w", last)
}

// loopMajor is the major number of loop devices.
const loopMajor = 7

// open opens a loop device, by a node of our own where /dev does not follow the
// kernel, as in containers.
func (t *tmpImages) open(n int) (int, string, error) {
	name, dev := "/dev/loop"+strconv.Itoa(n), unix.Mkdev(loopMajor, uint32(n))
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err == nil && st.Rdev == dev {
		if fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
			return fd, name, nil
		}
	}
	return t.openNode(n)
}

func (t *tmpImages) openNode(n int) (int, string, error) {
	name := "loop" + strconv.Itoa(n)
	if err := unix.Mknodat(t.nodes, name, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(n)))); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, "", fmt.Errorf("make a node for %s: %w", name, err)
	}
	fd, err := unix.Openat(t.nodes, name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", fmt.Errorf("open %s: %w", name, err)
	}
	return fd, "/proc/self/fd/" + strconv.Itoa(fd), nil
}

// give ends a file system whose sandbox is gone, in the background.
func (t *tmpImages) give(i *tmpImage) {
	if i != nil {
		t.ending <- i
	}
}

// shutdownExt4 is EXT4_IOC_SHUTDOWN, and its flag for not writing back first.
const (
	shutdownExt4    = 0x8004587d
	shutdownNoFlush = 2
)

// end unmounts, when the sandbox's processes are gone.
func (i *tmpImage) end() {
	var s unix.Statfs_t
	if unix.Fstatfs(i.root, &s) == nil && int64(s.Blocks-s.Bfree)*s.Bsize > tmpAbandon {
		_ = unix.IoctlSetPointerInt(i.root, shutdownExt4, shutdownNoFlush)
	}
	i.detach()
	unix.Close(i.root)
}

// detach closes the mount's descriptor, when it is moved or not needed.
func (i *tmpImage) detach() {
	if i.mount >= 0 {
		unix.Close(i.mount)
		i.mount = -1
	}
}

// template returns that of a size.
func (t *tmpImages) template(ctx context.Context, size int64) (*tmpTemplate, error) {
	t.mu.Lock()
	tpl := t.templates[size]
	if tpl == nil {
		tpl = &tmpTemplate{}
		for other := range t.templates {
			if len(t.templates) < tmpTemplates {
				break
			}
			if other != tmpDefault {
				delete(t.templates, other)
			}
		}
		t.templates[size] = tpl
	}
	t.mu.Unlock()
	tpl.mu.Lock()
	defer tpl.mu.Unlock()
	if tpl.length > 0 {
		return tpl, nil
	}
	if err := t.build(ctx, tpl, size); err != nil {
		return nil, fmt.Errorf("make a template of %d MiB for /tmp: %w", size>>20, err)
	}
	return tpl, nil
}

// build makes a template. How much a file system of a given length can hold is
// for the file system to say: the length grows until it is enough.
func (t *tmpImages) build(ctx context.Context, tpl *tmpTemplate, size int64) error {
	// What the extents of large files and a few directories take.
	want := size + size>>9 + 1<<20
	// An inode table of a sixteenth, and what ext4 holds back of the rest.
	length := want + want/15 + min(want/48, 16<<20) + 256<<10
	for range 8 {
		length = (length + tmpBlock - 1) &^ (tmpBlock - 1)
		blocks, free, err := t.format(ctx, length)
		if err != nil {
			return err
		}
		if free >= want {
			tpl.size, tpl.length, tpl.blocks, tpl.used = size, length, blocks, 0
			for _, b := range blocks {
				tpl.used += int64(len(b.content))
			}
			return tpl.findInodes()
		}
		length += (want - free) + (want-free)/8
	}
	return fmt.Errorf("an image of %d MiB does not hold %d MiB", length>>20, want>>20)
}

// findInodes finds the first block of the inode table, by the first group's
// descriptor, which follows the superblock's block.
func (tpl *tmpTemplate) findInodes() error {
	groups := tpl.block(tmpBlock)
	if groups != nil {
		tpl.table = int64(binary.LittleEndian.Uint32(groups[8:])) * tmpBlock
		tpl.inodes = tpl.block(tpl.table)
	}
	if tpl.inodes == nil {
		tpl.length = 0
		return errors.New("an image without inodes")
	}
	return nil
}

// block is one block of the template, nil when it is empty.
func (tpl *tmpTemplate) block(at int64) []byte {
	for _, b := range tpl.blocks {
		if b.at <= at && at+tmpBlock <= b.at+int64(len(b.content)) {
			return b.content[at-b.at:][:tmpBlock]
		}
	}
	return nil
}

// format makes one image and returns what is in it and what it can hold.
func (t *tmpImages) format(ctx context.Context, length int64) (_ []tmpExtent, free int64, err error) {
	if err := t.room(1 << 20); err != nil {
		return nil, 0, err
	}
	fd, err := t.create(length)
	if err != nil {
		return nil, 0, err
	}
	image := os.NewFile(uintptr(fd), "image")
	defer image.Close()
	// Features by name: what a host's mke2fs.conf adds may need a newer kernel.
	cmd := exec.CommandContext(ctx, t.mkfs, "-q", "-F", "-m", "0", "-b", strconv.Itoa(tmpBlock), "-I", "256", "-i", strconv.Itoa(tmpBlock),
		"-O", "none,extent,filetype,dir_index,large_file,huge_file,sparse_super,flex_bg,uninit_bg,dir_nlink,extra_isize",
		"-E", fmt.Sprintf("lazy_itable_init=1,nodiscard,root_owner=%d:%[1]d", t.owner), "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{image}
	cmd.Env = []string{"LC_ALL=C"}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, 0, fmt.Errorf("%s: %w: %s", t.mkfs, err, bytes.TrimSpace(out))
	}
	m, err := t.mount(fd)
	if err != nil {
		return nil, 0, err
	}
	var s unix.Statfs_t
	err = errors.Join(unix.Unlinkat(m.root, "lost+found", unix.AT_REMOVEDIR), unix.Fchmod(m.root, 0o1777), unix.Fstatfs(m.root, &s))
	m.end() // writes it back
	if err != nil {
		return nil, 0, fmt.Errorf("prepare the root of an image: %w", err)
	}
	blocks, err := extents(fd, length)
	return blocks, int64(s.Bavail) * s.Bsize, err
}

// extents reads what of a file is not zero.
func extents(fd int, length int64) ([]tmpExtent, error) {
	var list []tmpExtent
	zero := make([]byte, tmpBlock)
	block := make([]byte, tmpBlock)
	for at := int64(0); at < length; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing more
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read a template: %w", err)
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("read a template: %w", err)
		}
		for at = data &^ (tmpBlock - 1); at < hole; at += tmpBlock {
			n, err := unix.Pread(fd, block, at)
			if err != nil || n != tmpBlock {
				return nil, fmt.Errorf("read a template at %d: %d bytes: %w", at, n, err)
			}
			if bytes.Equal(block, zero) {
				continue
			}
			if last := len(list) - 1; last >= 0 && list[last].at+int64(len(list[last].content)) == at {
				list[last].content = append(list[last].content, block...)
			} else {
				list = append(list, tmpExtent{at, bytes.Clone(block)})
			}
		}
	}
	return list, nil
}

func writeAt(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, at)
		if err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// close ends what was made ahead, waits for what is ending, and removes the loop
// devices that exist because of us.
func (t *tmpImages) close() {
	if t == nil {
		return
	}
	for len(t.ahead) > 0 {
		(<-t.ahead).end()
	}
	close(t.ending)
	t.enders.Wait()
	for _, n := range t.made {
		_ = unix.IoctlSetInt(int(t.control.Fd()), unix.LOOP_CTL_REMOVE, n) // refused while anybody uses it
	}
	if t.control != nil {
		t.control.Close()
	}
	if t.nodes >= 0 {
		unix.Close(t.nodes)
	}
}
