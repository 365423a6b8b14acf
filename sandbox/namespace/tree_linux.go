//go:build amd64 || arm64

package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
)

// trees are the read-only trees of a sandbox, as the daemon looks into them. Links
// were written by strangers: the kernel resolves them with the tree as root.
type trees struct{ list []tree }

type tree struct {
	target string
	source string // the host directory when there is one source
	fd     int    // the mount itself when there are more
	root   int    // without any: the root the empty mount point is in
}

// add remembers a tree; it says whether it keeps the descriptor.
func (t *trees) add(m sandbox.Mount, fd int) bool {
	if len(m.Sources) == 1 {
		t.list = append(t.list, tree{target: m.Target, source: m.Sources[0], fd: -1})
		return false
	}
	t.list = append(t.list, tree{target: m.Target, fd: fd})
	return true
}

func (t *trees) close() {
	for _, x := range t.list {
		if x.fd >= 0 {
			unix.Close(x.fd)
		}
	}
	t.list = nil
}

// open opens a file of a tree.
func (t *trees) open(op, inside string, flags uint64) (*os.File, error) {
	fail := func(err error) (*os.File, error) { return nil, &fs.PathError{Op: op, Path: inside, Err: err} }
	clean := path.Clean("/" + inside)
	var in *tree
	for i := range t.list {
		x := &t.list[i]
		if (clean == x.target || x.target == "/" || strings.HasPrefix(clean, x.target+"/")) && (in == nil || len(x.target) > len(in.target)) {
			in = x
		}
	}
	if in == nil {
		return fail(fs.ErrNotExist)
	}
	root := in.fd
	if root < 0 {
		at, name := unix.AT_FDCWD, in.source
		if name == "" {
			at, name = in.root, strings.TrimPrefix(in.target, "/")
		}
		var err error
		if root, err = unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return fail(err)
		}
		defer unix.Close(root)
	}
	rel := strings.TrimPrefix(strings.TrimPrefix(clean, in.target), "/")
	if rel == "" {
		rel = "."
	}
	how := &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 8 {
		fd, err := unix.Openat2(root, rel, how)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue // something was renamed meanwhile
		}
		if err != nil {
			return fail(err)
		}
		return os.NewFile(uintptr(fd), clean), nil
	}
	return fail(errors.New("the tree changes while it is read"))
}

// ReadDir lists a directory of the read-only trees.
func (b *box) ReadDir(inside string) ([]fs.DirEntry, error) {
	if err := b.Enter(); err != nil {
		return nil, err
	}
	defer b.Leave()
	f, err := b.trees.open("readdir", inside, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("read %s in sandbox %s: %w", inside, b.spec.ID, err)
	}
	// Described while the tree is open: an entry's Info must not go by name later.
	return entries(int(f.Fd()), names)
}

// Stat describes a file of the read-only trees.
func (b *box) Stat(inside string) (fs.FileInfo, error) {
	if err := b.Enter(); err != nil {
		return nil, err
	}
	defer b.Leave()
	f, err := b.trees.open("stat", inside, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// entries describes files of an open directory, sorted by name, links as links.
func entries(dir int, names []string) ([]fs.DirEntry, error) {
	list := make([]fs.DirEntry, 0, len(names))
	for _, name := range names {
		fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
		}
		f := os.NewFile(uintptr(fd), name)
		info, err := f.Stat()
		f.Close()
		if err != nil {
			return nil, err
		}
		list = append(list, fs.FileInfoToDirEntry(info))
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, nil
}
