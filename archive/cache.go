package archive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/lambdad/lambdad/blob"
)

// A Cache keeps one unpacked copy of each archive in use. Nothing in it is
// precious: whatever is missing is unpacked again.
//
//	<dir>/<digest>/tree       the content, which Open names
//	<dir>/<digest>/boot       which start of the machine wrote it
//	<dir>/<digest>/info       what an Unpacker says about it, if anything
//	<dir>/partial-*           being unpacked, or left by a dead process
//	<dir>/trash-*             being removed, or left by a dead process
//
// A copy appears by one rename when it is complete, so a killed process leaves
// none that is not whole. Files are not synchronised, which would cost more than
// unpacking; a copy from before the machine's last start is therefore not
// trusted and is made anew.
//
// One Cache owns dir; the lock of the data directory sees to that.
type Cache struct {
	dir    string
	blobs  blob.Store
	unpack Unpacker
	gate   chan struct{} // as many archives are unpacked at once as there are processors

	mu      sync.Mutex // guards what follows; never held during I/O except the first Sweep
	swept   bool
	entries map[string]*cached
}

// A cached is a copy that is open, being unpacked or being removed.
type cached struct {
	refs   int // holders and waiters
	ready  chan struct{}
	err    error // valid once ready is closed
	cancel context.CancelFunc
	// abandoned says that nobody wanted it any more before it was complete.
	abandoned bool
	// removing says that Trim is at it: who comes now waits for ready and looks
	// again.
	removing bool
}

const (
	partialPrefix = "partial-"
	trashPrefix   = "trash-"
)

// An Unpacker writes the content of a blob of size bytes into dir, which it makes.
// It may leave a file "info" beside dir.
type Unpacker func(ctx context.Context, r blob.Reader, size int64, dir string) error

// NewCache returns a cache in dir of zips that blobs holds. It touches nothing:
// the first Open makes dir and sweeps it, if Sweep was not called before.
func NewCache(dir string, blobs blob.Store) *Cache {
	return NewCacheOf(dir, blobs, func(ctx context.Context, r blob.Reader, size int64, dir string) error {
		return Unpack(ctx, r, size, dir)
	})
}

// NewCacheOf is NewCache for content of another kind.
func NewCacheOf(dir string, blobs blob.Store, unpack Unpacker) *Cache {
	return &Cache{
		dir: dir, blobs: blobs, unpack: unpack,
		gate:    make(chan struct{}, max(1, runtime.GOMAXPROCS(0))),
		entries: map[string]*cached{},
	}
}

// Open returns the directory with the content of the archive, unpacking it if
// need be, and a function that gives it back. Concurrent calls for one digest
// share one unpacking, which goes on until the last of them gives up. release may
// be called more than once.
//
// blob.ErrNotFound says that there is no such archive, blob.ErrFull that the disk
// is full, a *lambdad.Error that the archive is broken.
func (c *Cache) Open(ctx context.Context, digest string) (path string, release func(), err error) {
	if !validDigest(digest) {
		return "", nil, fmt.Errorf("archive: open %s: not a hex SHA-256", quote(digest))
	}
	if err := c.Sweep(ctx); err != nil {
		return "", nil, err
	}
	for {
		e, again := c.hold(ctx, digest)
		select {
		case <-e.ready:
		case <-ctx.Done():
			c.leave(digest, e)
			return "", nil, context.Cause(ctx)
		}
		if again {
			continue
		}
		if e.err == nil {
			return filepath.Join(c.dir, digest, "tree"), sync.OnceFunc(func() { c.leave(digest, e) }), nil
		}
		c.leave(digest, e)
		if c.wasAbandoned(e) && ctx.Err() == nil {
			continue // the others gave up just before we came
		}
		return "", nil, fmt.Errorf("archive: open %s: %w", digest, e.err)
	}
}

// hold joins the holders of a digest, beginning to unpack it if there are none.
// again says that the entry is only to be waited for.
func (c *Cache) hold(ctx context.Context, digest string) (e *cached, again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e = c.entries[digest]
	if e != nil {
		if e.removing {
			return &cached{ready: e.ready, refs: 1, removing: true}, true
		}
		e.refs++
		return e, false
	}
	e = &cached{refs: 1, ready: make(chan struct{})}
	c.entries[digest] = e
	// The work belongs to all who wait, so not to the first one's context.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e.cancel = cancel
	go func() {
		defer cancel()
		err := c.fill(work, digest)
		c.mu.Lock()
		defer c.mu.Unlock()
		e.err = err
		if err != nil && c.entries[digest] == e {
			delete(c.entries, digest)
		}
		close(e.ready)
	}()
	return e, false
}

// leave gives up one hold.
func (c *Cache) leave(digest string, e *cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.refs--
	if e.refs > 0 || e.removing {
		return
	}
	if e.cancel != nil {
		e.cancel() // does nothing when the work is done
	}
	select {
	case <-e.ready:
		if c.entries[digest] == e {
			delete(c.entries, digest) // the copy stays until Trim
		}
	default:
		// Cancelled while unpacking: it ends soon and removes itself. Who comes
		// before that shares its error and tries again.
		e.abandoned = true
	}
}

func (c *Cache) wasAbandoned(e *cached) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return e.abandoned
}

// fill makes sure that the copy is there.
func (c *Cache) fill(ctx context.Context, digest string) error {
	final := filepath.Join(c.dir, digest)
	if _, err := os.Stat(filepath.Join(final, "boot")); err == nil {
		return nil // Sweep has removed those of earlier starts
	}
	select {
	case c.gate <- struct{}{}:
		defer func() { <-c.gate }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	r, size, err := c.blobs.Open(ctx, digest)
	if err != nil {
		return err
	}
	defer r.Close()
	partial, err := os.MkdirTemp(c.dir, partialPrefix)
	if err != nil {
		return full(err)
	}
	err = c.make(ctx, r, size, partial, final)
	if err != nil {
		// The context may be over; what was begun is removed all the same.
		err = errors.Join(err, os.RemoveAll(partial))
	}
	return err
}

func (c *Cache) make(ctx context.Context, r blob.Reader, size int64, partial, final string) error {
	if err := c.unpack(ctx, r, size, filepath.Join(partial, "tree")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(partial, "boot"), []byte(bootID()), 0o600); err != nil {
		return full(err)
	}
	if err := os.Chmod(partial, 0o755); err != nil {
		return err
	}
	// Something without its marker cannot have come from here.
	if err := os.RemoveAll(final); err != nil {
		return err
	}
	return full(os.Rename(partial, final))
}

// Sweep removes what a dead process left half done and copies that may have
// suffered from a crash of the machine. It runs once; later calls return at once.
func (c *Cache) Sweep(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.swept {
		return nil
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return fmt.Errorf("archive: cache: %w", full(err))
	}
	list, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("archive: sweep %s: %w", c.dir, err)
	}
	boot := bootID()
	for _, d := range list {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		path, name := filepath.Join(c.dir, d.Name()), d.Name()
		switch {
		case strings.HasPrefix(name, partialPrefix), strings.HasPrefix(name, trashPrefix):
		case validDigest(name):
			if b, err := os.ReadFile(filepath.Join(path, "boot")); err == nil && string(b) == boot && boot != "" {
				continue
			}
		default:
			continue // not ours
		}
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("archive: sweep %s: %w", c.dir, err)
		}
	}
	c.swept = true
	return nil
}

// Trim removes the copies that keep does not want and nobody has open. A copy
// that is opened meanwhile is unpacked again.
func (c *Cache) Trim(ctx context.Context, keep func(digest string) bool) error {
	if err := c.Sweep(ctx); err != nil {
		return err
	}
	list, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("archive: trim %s: %w", c.dir, err)
	}
	var errs []error
	for _, d := range list {
		if ctx.Err() != nil {
			return errors.Join(append(errs, context.Cause(ctx))...)
		}
		digest := d.Name()
		if !validDigest(digest) || keep(digest) {
			continue
		}
		if err := c.remove(digest); err != nil {
			errs = append(errs, fmt.Errorf("archive: trim %s: %w", digest, err))
		}
	}
	return errors.Join(errs...)
}

// remove takes a copy away unless it is in use: out of sight by a rename, so that
// nobody sees half of it, and then off the disk.
func (c *Cache) remove(digest string) error {
	c.mu.Lock()
	if c.entries[digest] != nil {
		c.mu.Unlock()
		return nil
	}
	e := &cached{ready: make(chan struct{}), removing: true}
	c.entries[digest] = e
	c.mu.Unlock()
	trash, err := os.MkdirTemp(c.dir, trashPrefix)
	if err == nil {
		err = os.Rename(filepath.Join(c.dir, digest), filepath.Join(trash, digest))
	}
	c.mu.Lock()
	delete(c.entries, digest)
	close(e.ready)
	c.mu.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // somebody else trimmed it
	}
	if trash != "" {
		err = errors.Join(err, os.RemoveAll(trash))
	}
	return err
}

// validDigest says whether s is a hex SHA-256 and so a safe file name.
func validDigest(s string) bool {
	if len(s) != 64 {
		return false
	}
	for i := range len(s) {
		if (s[i] < '0' || s[i] > '9') && (s[i] < 'a' || s[i] > 'f') {
			return false
		}
	}
	return true
}
