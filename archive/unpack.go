package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/lambdad/lambdad/blob"
)

// Unpack writes the archive of size bytes into dir, which it makes if it is not
// there and which must be empty. When it fails, dir holds a part of the tree that
// the caller removes. A full disk gives an error that is blob.ErrFull.
//
// Nothing is ever written outside dir: the tree is worked out beforehand, every
// file is opened relative to its directory, and links are made last.
func Unpack(ctx context.Context, r io.ReaderAt, size int64, dir string) error {
	p, err := readPlan(r, size)
	if err != nil {
		return err
	}
	if err := p.write(ctx, dir); err != nil {
		return full(err)
	}
	return nil
}

// full makes an error of a full disk recognisable.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", blob.ErrFull, err)
	}
	return err
}

func (p *plan) write(ctx context.Context, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("archive: make %s: %w", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("archive: open %s: %w", dir, err)
	}
	defer root.Close()
	// Whatever the process's umask is: the sandbox binds this directory.
	if err := root.Chmod(".", 0o755); err != nil {
		return fmt.Errorf("archive: mode of %s: %w", dir, err)
	}
	for i := range p.dirs {
		if i%256 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d := &p.dirs[i]
		mode := fs.FileMode(0o755)
		if d.entry >= 0 {
			mode = p.all[d.entry].mode.Perm()
		}
		if err := root.Mkdir(d.path, mode); err != nil {
			return writeError(dir, d.path, err)
		}
		if err := root.Chmod(d.path, mode); err != nil {
			return writeError(dir, d.path, err)
		}
	}
	if err := p.writeFiles(ctx, root); err != nil {
		return err
	}
	if err := p.writeLinks(ctx, root); err != nil {
		return err
	}
	for i := len(p.dirs) - 1; i >= 0; i-- {
		if d := p.dirs[i]; d.entry >= 0 {
			if t, ok := p.all[d.entry].modTime(); ok {
				if err := root.Chtimes(d.path, t, t); err != nil {
					return writeError(dir, d.path, err)
				}
			}
		}
	}
	if p.top != nil {
		if t, ok := p.top.modTime(); ok {
			if err := root.Chtimes(".", t, t); err != nil {
				return writeError(dir, ".", err)
			}
		}
	}
	return nil
}

func writeError(dir, path string, err error) error {
	return fmt.Errorf("archive: unpack %s into %s: %w", quote(path), dir, err)
}

// writeFiles inflates the files. They are sorted by directory, so a worker mostly
// finds the directory of the next file open already.
func (p *plan) writeFiles(ctx context.Context, root *os.Root) error {
	var total atomic.Int64
	return parallel(ctx, len(p.files), func() (func(int) error, func()) {
		buf := make([]byte, copySize)
		var at string
		here := root
		leave := func() {
			if here != root {
				here.Close()
			}
			here, at = root, ""
		}
		return func(i int) error {
			e := &p.all[p.files[i]]
			if in := parent(e.path); in != at {
				leave()
				sub, err := root.OpenRoot(in)
				if err != nil {
					return writeError(root.Name(), in, err)
				}
				here, at = sub, in
			}
			return e.write(ctx, here, root.Name(), buf, &total)
		}, leave
	})
}

// write makes the file in its directory.
func (e *entry) write(ctx context.Context, in *os.Root, dir string, buf []byte, total *atomic.Int64) error {
	f, err := in.OpenFile(base(e.path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return writeError(dir, e.path, err)
	}
	defer f.Close()
	err = inflate(e.file, buf, total, func(b []byte) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := f.Write(b); err != nil {
			return writeError(dir, e.path, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := f.Chmod(e.mode.Perm()); err != nil {
		return writeError(dir, e.path, err)
	}
	if t, ok := e.modTime(); ok {
		if err := setTime(f, in, base(e.path), t); err != nil {
			return writeError(dir, e.path, err)
		}
	}
	if err := f.Close(); err != nil {
		return writeError(dir, e.path, err)
	}
	return nil
}

// writeLinks makes the links, the last step that adds to the tree.
func (p *plan) writeLinks(ctx context.Context, root *os.Root) error {
	var total atomic.Int64
	buf := make([]byte, maxLink+1)
	for _, i := range p.links {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e := &p.all[i]
		var target []byte
		err := inflate(e.file, buf, &total, func(b []byte) error {
			target = append(target, b[:min(len(b), maxLink+1-len(target))]...)
			return nil
		})
		if err == nil {
			err = checkLink(e, target)
		}
		if err != nil {
			return err
		}
		if err := root.Symlink(string(target), e.path); err != nil {
			return writeError(root.Name(), e.path, err)
		}
	}
	return nil
}
