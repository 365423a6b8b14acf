// Package files implements the archive store on plain files, one per archive,
// named by its digest: dir/ab/cdef… for digest abcdef….
//
// A file is written under a temporary name in the same file system, made durable,
// then renamed, and the directory made durable; so a file that has its final name
// is whole, now and after a crash. What a crash interrupted is removed when the
// store is opened.
package files

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/blob"
	"github.com/lambdad/lambdad/datadir"
)

// incoming is the directory of files being written, below the store's own.
const incoming = "incoming"

// A Config says how a Store behaves. The zero value is usable but for Dir.
type Config struct {
	// Dir holds the archives and nothing else. It is made if need be.
	Dir string
	// Reserve is the free space in bytes that Put leaves to others; where it
	// would cut into it, it returns blob.ErrFull. Default 0.
	Reserve int64
	// Logger hears of leftovers removed at Open. Default: nobody.
	Logger *slog.Logger
}

// A Store is a blob.Store. Its directory belongs to one process at a time.
type Store struct {
	cfg Config
	// mu is held while an archive gets or loses its name, so that a Put and a
	// Delete of the same content happen one after the other.
	mu       sync.Mutex
	reserved atomic.Int64 // bytes that Puts under way may still write
}

// Open makes the directory if need be and removes what interrupted Puts left.
func Open(cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	tmp := filepath.Join(cfg.Dir, incoming)
	leftovers, err := os.ReadDir(tmp)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening archives: %w", err)
	}
	for _, e := range leftovers {
		if err := os.Remove(filepath.Join(tmp, e.Name())); err != nil {
			return nil, fmt.Errorf("removing half-written archive: %w", err)
		}
	}
	if len(leftovers) > 0 {
		cfg.Logger.Info("removed half-written archives", "count", len(leftovers), "dir", cfg.Dir)
	}
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return nil, fmt.Errorf("making directory of archives: %w", err)
	}
	if err := datadir.SyncDir(cfg.Dir); err != nil {
		return nil, fmt.Errorf("opening archives: %w", err)
	}
	return &Store{cfg: cfg}, nil
}

// path returns where an archive is kept.
func (s *Store) path(digest string) string {
	return filepath.Join(s.cfg.Dir, digest[:2], digest[2:])
}

// Put implements blob.Store. The content is written once, at the speed of the disk,
// and never held in memory.
func (s *Store) Put(ctx context.Context, r io.Reader) (digest string, size int64, err error) {
	f, err := os.CreateTemp(filepath.Join(s.cfg.Dir, incoming), "put-*") // 0600
	if err != nil {
		return "", 0, full(fmt.Errorf("storing archive: %w", err))
	}
	tmp := f.Name()
	defer func() {
		err = errors.Join(err, f.Close())
		if tmp != "" {
			err = errors.Join(err, os.Remove(tmp))
		}
		if err != nil {
			digest, size, err = "", 0, full(fmt.Errorf("storing archive: %w", err))
		}
	}()

	sum := sha256.New()
	w := &writer{ctx: ctx, s: s, to: f}
	defer w.release()
	if size, err = io.Copy(io.MultiWriter(w, sum), onlyReader{r}); err != nil {
		return "", 0, err
	}
	if err := f.Sync(); err != nil {
		return "", 0, err
	}
	digest = hex.EncodeToString(sum.Sum(nil))

	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return "", 0, err
	}
	final := s.path(digest)
	// What is there already is replaced all the same: should it have been damaged
	// on the disk, it is whole now.
	_, statErr := os.Stat(final)
	dir := filepath.Dir(final)
	if err := os.Mkdir(dir, 0o700); err == nil {
		if err := datadir.SyncDir(s.cfg.Dir); err != nil {
			return "", 0, err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return "", 0, err
	}
	if err := os.Rename(tmp, final); err != nil {
		return "", 0, err
	}
	tmp = ""
	if err := datadir.SyncDir(dir); err != nil {
		if errors.Is(statErr, fs.ErrNotExist) {
			err = errors.Join(err, os.Remove(final)) // new, and not known to be durable
		}
		return "", 0, err
	}
	return digest, size, nil
}

// onlyReader hides a WriteTo of the reader, which would pass all in one Write.
type onlyReader struct{ io.Reader }

// A writer writes to a file while the reserve of the disk allows it.
type writer struct {
	ctx  context.Context
	s    *Store
	to   *os.File
	left int64 // bytes it may write before it asks again
}

// step is how many bytes are asked for at a time.
const step = 1 << 20

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, context.Cause(w.ctx)
	}
	if need := int64(len(p)); w.left < need {
		if err := w.ask(need); err != nil {
			return 0, err
		}
	}
	n, err := w.to.Write(p)
	w.left -= int64(n)
	w.s.reserved.Add(-int64(n))
	return n, err
}

// ask makes sure that w may write need bytes. What other Puts may still write is
// not yet gone from the free space and is counted beside it.
func (w *writer) ask(need int64) error {
	for _, grant := range []int64{max(need, step), need} {
		granted := w.s.reserved.Add(grant - w.left)
		free, err := datadir.FreeBytes(w.s.cfg.Dir)
		if err == nil && free-granted >= w.s.cfg.Reserve {
			w.left = grant
			return nil
		}
		w.s.reserved.Add(w.left - grant)
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: less than the reserve of %d bytes would be left free in %s: make room there, or lower the reserve", blob.ErrFull, w.s.cfg.Reserve, w.s.cfg.Dir)
}

// release gives back what was asked for and not written.
func (w *writer) release() {
	w.s.reserved.Add(-w.left)
	w.left = 0
}

// full turns the file system's word for a full disk or quota into blob.ErrFull.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", blob.ErrFull, err)
	}
	return err
}

// Open implements blob.Store. It does not read the content (see Verify), but
// returns blob.ErrCorrupt for a file that lost it.
func (s *Store) Open(ctx context.Context, digest string) (blob.Reader, int64, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	if !blob.CheckDigest(digest) {
		return nil, 0, fmt.Errorf("%w: %q is not a digest", blob.ErrNotFound, digest)
	}
	f, err := os.Open(s.path(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("%w: %s", blob.ErrNotFound, digest)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("opening archive: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("opening archive: %w", err)
	}
	// The damage that file systems do most is to forget the content.
	if info.Size() == 0 && digest != emptyDigest {
		f.Close()
		return nil, 0, fmt.Errorf("%w: %s is empty: upload it again", blob.ErrCorrupt, s.path(digest))
	}
	return f, info.Size(), nil
}

// emptyDigest is the digest of no content.
const emptyDigest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// Verify reads an archive through and returns an error wrapping blob.ErrCorrupt if
// its content is not what its name says.
func (s *Store) Verify(ctx context.Context, digest string) error {
	r, _, err := s.Open(ctx, digest)
	if err != nil {
		return err
	}
	defer r.Close()
	sum := sha256.New()
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n, err := r.Read(buf)
		sum.Write(buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("verifying archive %s: %w", digest, err)
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != digest {
		return fmt.Errorf("%w: %s holds %s: upload it again", blob.ErrCorrupt, s.path(digest), got)
	}
	return nil
}

// Delete implements blob.Store.
func (s *Store) Delete(ctx context.Context, digest string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !blob.CheckDigest(digest) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err := os.Remove(s.path(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = datadir.SyncDir(filepath.Dir(s.path(digest)))
	}
	if err != nil {
		return fmt.Errorf("deleting archive: %w", err)
	}
	return nil
}

// List implements blob.Store.
func (s *Store) List(ctx context.Context, f func(digest string, size int64) bool) error {
	dirs, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("listing archives: %w", err)
	}
	for _, dir := range dirs {
		if len(dir.Name()) != 2 {
			continue
		}
		entries, err := os.ReadDir(filepath.Join(s.cfg.Dir, dir.Name()))
		if err != nil {
			return fmt.Errorf("listing archives: %w", err)
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			digest := strings.ToLower(dir.Name() + e.Name())
			if !blob.CheckDigest(digest) {
				continue
			}
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue // deleted meanwhile
			}
			if err != nil {
				return fmt.Errorf("listing archives: %w", err)
			}
			if !f(digest, info.Size()) {
				return nil
			}
		}
	}
	return nil
}
