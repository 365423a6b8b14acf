package files

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lambdad/lambdad/blob"
	"github.com/lambdad/lambdad/blob/blobtest"
	"github.com/lambdad/lambdad/datadir"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	blobtest.Test(t, blobtest.Factory{
		New:    func(t *testing.T) blob.Store { return open(t, t.TempDir()) },
		Reopen: func(t *testing.T, s blob.Store) blob.Store { return open(t, s.(*Store).cfg.Dir) },
	})
}

func TestDamage(t *testing.T) {
	s := open(t, t.TempDir())
	content := bytes.Repeat([]byte("x"), 100_000)
	digest, _, err := s.Put(t.Context(), bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), digest); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(s.path(digest))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	flipped := bytes.Clone(content)
	flipped[70_000] = 'y'
	for name, damaged := range map[string][]byte{"flipped": flipped, "cut": content[:50_000], "grown": append(content, 'x'), "lost": {}} {
		if err := os.WriteFile(s.path(digest), damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		err := s.Verify(t.Context(), digest)
		if !errors.Is(err, blob.ErrCorrupt) || !strings.Contains(err.Error(), s.path(digest)) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "lost" {
			if _, _, err := s.Open(t.Context(), digest); !errors.Is(err, blob.ErrCorrupt) {
				t.Errorf("opening a file that lost its content: %v", err)
			}
		}
		// Uploading it again heals it.
		if _, _, err := s.Put(t.Context(), bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		if err := s.Verify(t.Context(), digest); err != nil {
			t.Errorf("%s, uploaded again: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Verify(ctx, digest); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	digest, _, err := s.Put(t.Context(), strings.NewReader("kept"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, incoming, "put-1234"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "README"), []byte("not ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	n := 0
	if err := s.List(t.Context(), func(d string, _ int64) bool { n++; return d == digest }); err != nil || n != 1 {
		t.Fatalf("%d listed, %v", n, err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, incoming)); err != nil || len(entries) != 0 {
		t.Fatalf("left: %v, %v", entries, err)
	}
}

// Puts at the same time do not together cut into the reserve, and leave no claim
// behind.
func TestReserveShared(t *testing.T) {
	dir := t.TempDir()
	free, err := datadir.FreeBytes(dir)
	if err != nil {
		t.Fatal(err)
	}
	// Others use the disk too: sixteen times 64 MB against a margin of 512.
	s, err := Open(Config{Dir: dir, Reserve: free - 512<<20})
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{}, 16)
	release := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	full := 0
	for i := range 16 {
		wg.Go(func() {
			w := &writer{ctx: t.Context(), s: s}
			err := w.ask(64 << 20)
			started <- struct{}{}
			<-release
			w.release()
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, blob.ErrFull) {
				full++
			} else if err != nil {
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	for range 16 {
		<-started
	}
	close(release)
	wg.Wait()
	if full < 6 || full == 16 {
		t.Errorf("%d of 16 were refused, want about 8", full)
	}
	if left := s.reserved.Load(); left != 0 {
		t.Errorf("%d bytes are still claimed", left)
	}
}
