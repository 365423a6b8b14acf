// Package image keeps container images and turns them into directories: it takes
// OCI and Docker v2 images from a registry, an OCI layout or an archive of either,
// verifies everything by digest, and unpacks each layer once, without Docker, for
// all images and environments that use it.
//
// An image comes from strangers, and so may the registry. Manifests and
// configurations are read within a fixed size, layers are stored as they arrive and
// kept only if they match their digest, a transfer that stands still is given up,
// and nothing a layer declares is believed (control-plane.md section 5.3; where
// AWS's behaviour is unknown the choice is ours):
//
//   - Manifests are Docker v2 schema 2 or OCI v1; of an index the one manifest
//     for Linux and the wanted architecture is taken. Layers are tar, plain, gzip
//     or zstd, told apart by their first bytes.
//   - A layer must match its digest as stored and its diff id as tar. All layers
//     together hold at most lambdad.MaxImage bytes, counted while unpacking.
//   - Names stay inside: ".." is refused, and so is an entry that passes through
//     a link, a hard link to what the same layer does not hold, and a name that is
//     a directory in one place and something else in another.
//   - Symbolic links are kept as written and never followed here.
//   - Everything belongs to root. Set-user-id, set-group-id and sticky bits of
//     files are dropped, of extended attributes those under "user." alone are
//     kept, and devices, fifos and sockets are left out: a sandbox has its own /dev.
//   - Whiteouts (.wh.NAME) and opaque directories (.wh..wh..opq) become the
//     kernel's, so that layers are merged by overlay at start and never copied.
//
// A refusal is a *lambdad.Error whose Code is a state reason code of AWS:
// InvalidImage, ImageAccessDenied or ImageDeleted. What is not the image's fault
// (disk full, context ended) is an ordinary error.
package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/archive"
	"github.com/lambdad/lambdad/blob"
)

// Limits of what a manifest may ask for.
const (
	MaxManifest = 4 << 20 // bytes of a manifest or an index, and of a registry's other answers
	maxConfig   = 8 << 20 // bytes of a configuration
	maxLayers   = 127
	maxArgs     = 128 << 10 // bytes of entry point, command and variables
)

// Config is what a Store is made of; Dir and Blobs are needed.
type Config struct {
	// Dir holds the unpacked layers and nothing else.
	Dir string
	// Blobs holds manifests, configurations and layers.
	Blobs blob.Store
	// Keychain knows the credentials of registries. Default: those of the usual
	// Docker configuration (~/.docker/config.json and its helpers).
	Keychain authn.Keychain
	// Stall gives up a transfer in which nothing arrives for so long. Default 30 s.
	Stall time.Duration
	// Reserve says why nothing more may be written, such as a full disk; nil:
	// always.
	Reserve func() error
	Logger  *slog.Logger     // default: discard
	Now     func() time.Time // default time.Now
}

// A Store keeps images. Its methods may be called at the same time.
type Store struct {
	Config
	trees *archive.Cache

	known sync.Map // layer digest → layerInfo of a tree that was opened

	mu        sync.Mutex // guards the following; held while a blob is deleted
	pins      map[string]int
	idleSince map[string]time.Time
}

// New returns a store. It touches nothing.
func New(cfg Config) *Store {
	if cfg.Keychain == nil {
		cfg.Keychain = authn.DefaultKeychain
	}
	if cfg.Stall == 0 {
		cfg.Stall = 30 * time.Second
	}
	if cfg.Reserve == nil {
		cfg.Reserve = func() error { return nil }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Store{Config: cfg, pins: map[string]int{}, idleSince: map[string]time.Time{}}
	s.trees = archive.NewCacheOf(cfg.Dir, cfg.Blobs, s.unpackInto)
	return s
}

// invalidf refuses an image.
func invalidf(cause error, format string, args ...any) error {
	return &lambdad.Error{Code: "InvalidImage", Message: fmt.Sprintf(format, args...), Err: cause}
}

// infoName is the file beside a tree that says what was unpacked.
const infoName = "info"

// unpackInto is the archive.Unpacker of layers.
func (s *Store) unpackInto(ctx context.Context, r blob.Reader, _ int64, dir string) error {
	info, err := unpack(ctx, r, dir, lambdad.MaxImage, s.Reserve)
	if err != nil {
		return err
	}
	data, err := json.Marshal(info)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(filepath.Dir(dir), infoName), data, 0o600)
}

// Open gives the trees of an image's layers, the lowest first, unpacking those that
// are not there, and a function that gives them back. A layer that the image has
// twice comes once, where it counts: the upper one.
func (s *Store) Open(ctx context.Context, img *lambdad.Image) (dirs []string, release func(), err error) {
	var held []func()
	giveBack := sync.OnceFunc(func() {
		for _, f := range held {
			f()
		}
	})
	defer func() {
		if err != nil {
			giveBack()
		}
	}()
	last := map[string]int{}
	for i, l := range img.Layers {
		last[l.Digest] = i
	}
	var total int64
	for i, l := range img.Layers {
		dir, done, err := s.trees.Open(ctx, l.Digest)
		if errors.Is(err, blob.ErrNotFound) {
			return nil, nil, &lambdad.Error{Code: "ImageDeleted", Err: err,
				Message: fmt.Sprintf("Layer sha256:%s of image sha256:%s is not stored here any more: update the function's code.", l.Digest, img.Digest)}
		}
		if err != nil {
			return nil, nil, fmt.Errorf("image sha256:%s: %w", img.Digest, err)
		}
		held = append(held, done)
		info, err := s.info(l.Digest, dir)
		if err != nil {
			return nil, nil, err
		}
		if info.DiffID != l.DiffID {
			return nil, nil, invalidf(nil, "Layer sha256:%s holds the tar sha256:%s where the image's configuration says sha256:%s: the image is damaged or was tampered with; push it again.", l.Digest, info.DiffID, l.DiffID)
		}
		if total += info.Size; total > lambdad.MaxImage {
			return nil, nil, errTooLarge()
		}
		if last[l.Digest] == i {
			dirs = append(dirs, dir)
		}
	}
	return dirs, giveBack, nil
}

func errTooLarge() error {
	return invalidf(nil, "The image holds more than %d bytes unpacked, which is the limit.", int64(lambdad.MaxImage))
}

// info reads what was found out about a layer when it was unpacked.
func (s *Store) info(digest, dir string) (info layerInfo, err error) {
	if v, ok := s.known.Load(digest); ok {
		return v.(layerInfo), nil
	}
	data, err := os.ReadFile(filepath.Join(filepath.Dir(dir), infoName))
	if err == nil {
		err = json.Unmarshal(data, &info)
	}
	if err != nil {
		return info, fmt.Errorf("image: reading about layer %s: %w", digest, err)
	}
	s.known.Store(digest, info)
	return info, nil
}

// Check unpacks an image and takes away again what cannot be used.
func (s *Store) Check(ctx context.Context, img *lambdad.Image) error {
	_, release, err := s.Open(ctx, img)
	if err == nil {
		release()
		return nil
	}
	if lambdad.ErrorCode(err) != "" {
		bad := map[string]bool{}
		for _, l := range img.Layers {
			bad[l.Digest] = true
		}
		// What another image has open stays.
		err = errors.Join(err, s.trees.Trim(ctx, func(d string) bool { return !bad[d] }))
	}
	return err
}

// Pin keeps blobs from being collected until release, for the time between their
// arrival and the record that refers to them.
func (s *Store) Pin(digests ...string) (release func()) {
	s.mu.Lock()
	for _, d := range digests {
		s.pins[d]++
		delete(s.idleSince, d)
	}
	s.mu.Unlock()
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, d := range digests {
			if s.pins[d]--; s.pins[d] == 0 {
				delete(s.pins, d)
			}
			delete(s.idleSince, d) // the grace begins anew
		}
	})
}

// Has says whether a blob is stored.
func (s *Store) Has(ctx context.Context, digest string) bool {
	r, _, err := s.Blobs.Open(ctx, digest)
	if err != nil {
		return false
	}
	r.Close()
	return true
}

// Put stores a blob that must have the digest; "": any.
func (s *Store) Put(ctx context.Context, r io.Reader, digest string) (string, int64, error) {
	if err := s.Reserve(); err != nil {
		return "", 0, fmt.Errorf("%w: %w", blob.ErrFull, err)
	}
	if digest != "" {
		defer s.Pin(digest)()
	}
	got, size, err := s.Blobs.Put(ctx, r)
	if err != nil {
		return "", 0, err
	}
	if digest != "" && got != digest {
		// Unless it is of use to another image, it goes with the next collection.
		return "", 0, fmt.Errorf("%w: sha256:%s was promised, sha256:%s came", blob.ErrCorrupt, digest, got)
	}
	return got, size, nil
}

// read reads a small blob.
func (s *Store) read(ctx context.Context, digest string, limit int64) ([]byte, error) {
	r, size, err := s.Blobs.Open(ctx, digest)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > limit {
		return nil, invalidf(nil, "Blob sha256:%s has %d bytes where at most %d are read.", digest, size, limit)
	}
	return io.ReadAll(io.LimitReader(r, limit))
}

// Collect removes blobs that no image among roots, the digests of manifests, has
// needed for the grace period, and trees that none needs.
func (s *Store) Collect(ctx context.Context, roots []string, grace time.Duration) error {
	keep := map[string]bool{}
	for _, root := range roots {
		s.mark(ctx, root, keep, 0)
	}
	var digests []string
	err := s.Blobs.List(ctx, func(digest string, _ int64) bool {
		digests = append(digests, digest)
		return true
	})
	for _, d := range digests {
		if ctx.Err() != nil {
			break
		}
		err = errors.Join(err, s.collect(ctx, d, keep[d], grace))
	}
	return errors.Join(err, s.trees.Trim(ctx, func(d string) bool {
		if keep[d] {
			return true
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		_, idle := s.idleSince[d]
		if s.pins[d] > 0 || idle {
			return true
		}
		s.known.Delete(d)
		return false
	}))
}

func (s *Store) collect(ctx context.Context, digest string, needed bool, grace time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if needed || s.pins[digest] > 0 {
		delete(s.idleSince, digest)
		return nil
	}
	since, ok := s.idleSince[digest]
	if !ok {
		since = s.Now()
		s.idleSince[digest] = since
	}
	if s.Now().Sub(since) < grace {
		return nil
	}
	delete(s.idleSince, digest)
	s.Logger.Debug("image blob collected", "digest", digest)
	return s.Blobs.Delete(ctx, digest)
}

// mark adds what a manifest needs. One that cannot be read needs itself.
func (s *Store) mark(ctx context.Context, digest string, keep map[string]bool, depth int) {
	if keep[digest] || depth > 2 {
		return
	}
	keep[digest] = true
	data, err := s.read(ctx, digest, MaxManifest)
	if err != nil {
		return
	}
	m, err := parseManifest(data)
	if err != nil {
		return
	}
	for _, d := range m.Manifests {
		s.mark(ctx, d.hex(), keep, depth+1)
	}
	for _, d := range append(m.Layers, m.Config) {
		if d.Digest != "" {
			keep[d.hex()] = true
		}
	}
}
