package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/blob"
)

// memory is a blob store of a test. A blob's reader waits for gate, if there is
// one.
type memory struct {
	mu    sync.Mutex
	blobs map[string][]byte
	opens int
	gate  chan struct{}
	began chan struct{}
}

func (m *memory) Put(_ context.Context, r io.Reader) (string, int64, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return "", 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	sum := sha256.Sum256(b)
	digest := hex.EncodeToString(sum[:])
	m.blobs[digest] = b
	return digest, int64(len(b)), nil
}

type reader struct {
	*bytes.Reader
	m *memory
}

func (r reader) ReadAt(p []byte, off int64) (int, error) {
	if r.m.gate != nil {
		select {
		case r.m.began <- struct{}{}:
		default:
		}
		<-r.m.gate
	}
	return r.Reader.ReadAt(p, off)
}

func (reader) Close() error { return nil }

func (m *memory) Open(_ context.Context, digest string) (blob.Reader, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opens++
	b, ok := m.blobs[digest]
	if !ok {
		return nil, 0, blob.ErrNotFound
	}
	return reader{bytes.NewReader(b), m}, int64(len(b)), nil
}

func (m *memory) Delete(context.Context, string) error { return nil }

func (m *memory) List(context.Context, func(string, int64) bool) error { return nil }

// stored puts archives into a store and returns their digests.
func stored(t *testing.T, zips ...[]byte) (*memory, []string) {
	t.Helper()
	m := &memory{blobs: map[string][]byte{}}
	var digests []string
	for _, z := range zips {
		d, _, err := m.Put(t.Context(), bytes.NewReader(z))
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d)
	}
	return m, digests
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, d := range list {
		s = append(s, d.Name())
	}
	return s
}

func TestCacheSharesOneCopy(t *testing.T) {
	defer goleak.VerifyNone(t)
	m, d := stored(t, makeZip(t, file("f", "x", 0o644)))
	dir := filepath.Join(t.TempDir(), "cache")
	c := NewCache(dir, m)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var releases []func()
	for range 50 {
		wg.Go(func() {
			path, release, err := c.Open(t.Context(), d[0])
			if err != nil {
				t.Error(err)
				return
			}
			if b, err := os.ReadFile(filepath.Join(path, "f")); err != nil || string(b) != "x" {
				t.Errorf("%q, %v", b, err)
			}
			mu.Lock()
			defer mu.Unlock()
			releases = append(releases, release)
		})
	}
	wg.Wait()
	if m.opens != 1 {
		t.Errorf("unpacked %d times", m.opens)
	}
	// In use: stays, whatever Trim is told.
	drop := func(string) bool { return false }
	for i, release := range releases {
		if err := c.Trim(t.Context(), drop); err != nil {
			t.Fatal(err)
		}
		if len(names(t, dir)) != 1 {
			t.Fatalf("gone with %d holders left", len(releases)-i)
		}
		release()
		release() // twice is fine
	}
	// Free, but wanted.
	if err := c.Trim(t.Context(), func(digest string) bool { return digest == d[0] }); err != nil || len(names(t, dir)) != 1 {
		t.Errorf("kept: %v, %v", names(t, dir), err)
	}
	if err := c.Trim(t.Context(), drop); err != nil || len(names(t, dir)) != 0 {
		t.Errorf("left: %v, %v", names(t, dir), err)
	}
	_, release, err := c.Open(t.Context(), d[0])
	if err != nil || m.opens != 2 {
		t.Fatalf("again: %v, unpacked %d times", err, m.opens)
	}
	release()
}

func TestCacheAfterAStart(t *testing.T) {
	m, d := stored(t, makeZip(t, file("f", "x", 0o644)), makeZip(t, file("g", "y", 0o644)))
	dir := t.TempDir()
	c := NewCache(dir, m)
	for _, digest := range d {
		_, release, err := c.Open(t.Context(), digest)
		if err != nil {
			t.Fatal(err)
		}
		release()
	}
	if bootID() == "" {
		t.Skip("starts of the machine cannot be told apart here")
	}
	// What a dead process, a crash of the machine and others leave.
	write := func(path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("partial-1/tree/f", "half")
	write("trash-1/x", "")
	write(d[1]+"/boot", "an earlier start")
	write(strings.Repeat("a", 64)+"/tree/f", "no marker")
	write("somebody-else/x", "")
	c = NewCache(dir, m)
	opens := m.opens
	path, release, err := c.Open(t.Context(), d[0])
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if m.opens != opens {
		t.Error("a whole copy was not used again")
	}
	if b, err := os.ReadFile(filepath.Join(path, "f")); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	if got := names(t, dir); len(got) != 2 || !strings.Contains(strings.Join(got, " "), "somebody-else") {
		t.Errorf("after the sweep: %v", got)
	}
}

func TestCacheErrors(t *testing.T) {
	defer goleak.VerifyNone(t)
	m, d := stored(t, []byte("not a zip"), makeZip(t, link("a", "/tmp"), file("a/x", "x", 0o644)))
	dir := t.TempDir()
	c := NewCache(dir, m)
	for _, test := range []struct {
		digest string
		check  func(error) bool
	}{
		{"../../etc", func(err error) bool { return strings.Contains(err.Error(), "not a hex SHA-256") }},
		{strings.Repeat("A", 64), func(err error) bool { return strings.Contains(err.Error(), "not a hex SHA-256") }},
		{strings.Repeat("0", 64), func(err error) bool { return errors.Is(err, blob.ErrNotFound) }},
		{d[0], func(err error) bool { return lambdad.ErrorCode(err) == "InvalidParameterValueException" }},
		{d[1], func(err error) bool { return lambdad.ErrorCode(err) == "InvalidParameterValueException" }},
	} {
		for range 2 { // an error is not remembered
			_, _, err := c.Open(t.Context(), test.digest)
			if err == nil || !test.check(err) {
				t.Errorf("%s: got %v", test.digest, err)
			}
		}
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestCacheGivenUp(t *testing.T) {
	defer goleak.VerifyNone(t)
	m, d := stored(t, makeZip(t, file("f", "x", 0o644)))
	m.gate, m.began = make(chan struct{}), make(chan struct{}, 1)
	dir := t.TempDir()
	c := NewCache(dir, m)
	first, stopFirst := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	open := func(ctx context.Context) {
		_, release, err := c.Open(ctx, d[0])
		if err == nil {
			release()
		}
		ended <- err
	}
	go open(first)
	<-m.began
	// The one who began it goes; a second still wants it.
	go open(t.Context())
	for c.waiting(d[0]) != 2 {
		time.Sleep(time.Millisecond)
	}
	stopFirst()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("first: %v", err)
	}
	close(m.gate)
	if err := <-ended; err != nil || m.opens != 1 {
		t.Errorf("second: %v, unpacked %d times", err, m.opens)
	}
	if err := c.Trim(t.Context(), func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}

	// All go: it stops, leaves nothing, and who comes next begins anew.
	m.gate = make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	go open(ctx)
	<-m.began
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("only one: %v", err)
	}
	go open(t.Context())
	close(m.gate)
	if err := <-ended; err != nil {
		t.Errorf("after: %v", err)
	}
}

func (c *Cache) waiting(digest string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[digest]; e != nil {
		return e.refs
	}
	return 0
}

func TestCacheTrimAgainstOpen(t *testing.T) {
	m, d := stored(t, makeZip(t, file("f", "x", 0o644)))
	c := NewCache(t.TempDir(), m)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				path, release, err := c.Open(t.Context(), d[0])
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.Stat(filepath.Join(path, "f")); err != nil {
					t.Error(err)
				}
				release()
			}
		})
		wg.Go(func() {
			for range 100 {
				if err := c.Trim(t.Context(), func(string) bool { return false }); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// fullDisk mounts a small file system in a directory.
func fullDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if os.Getuid() != 0 {
		if os.Getenv("LAMBDAD_TEST_ROOT") == "1" {
			t.Fatal("must run as root")
		}
		t.Skip("mounting a small file system needs root")
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=256k", "lambdad-archive-test", dir).CombinedOutput(); err != nil {
		if os.Getenv("LAMBDAD_TEST_ROOT") == "1" {
			t.Fatalf("mount: %v: %s", err, out)
		}
		t.Skipf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

func TestCacheFullDisk(t *testing.T) {
	dir := fullDisk(t)
	m, d := stored(t, makeZip(t, file("big", strings.Repeat("x", 1<<20), 0o644)), makeZip(t, file("small", "x", 0o644)))
	c := NewCache(filepath.Join(dir, "cache"), m)
	_, _, err := c.Open(t.Context(), d[0])
	if !errors.Is(err, blob.ErrFull) || !errors.Is(err, syscall.ENOSPC) || lambdad.ErrorCode(err) != "" {
		t.Errorf("got %v", err)
	}
	if got := names(t, c.dir); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	_, release, err := c.Open(t.Context(), d[1])
	if err != nil {
		t.Fatal(err)
	}
	release()
}

// TestCacheKilled kills a process while it unpacks, again and again: what the
// next one finds is whole or not there.
func TestCacheKilled(t *testing.T) {
	if dir := os.Getenv("LAMBDAD_ARCHIVE_KILLED"); dir != "" {
		var items []item
		for i := range 500 {
			items = append(items, file("d/"+strings.Repeat("x", i%50+1)+"/"+hex.EncodeToString([]byte{byte(i >> 8), byte(i)}), strings.Repeat("y", 1000), 0o644))
		}
		m, d := stored(t, makeZip(t, items...))
		c := NewCache(dir, m)
		for {
			path, release, err := c.Open(t.Context(), d[0])
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			filepath.WalkDir(path, func(_ string, e os.DirEntry, _ error) error {
				if !e.IsDir() {
					n++
				}
				return nil
			})
			if n != 500 {
				os.WriteFile(filepath.Join(filepath.Dir(dir), "broken"), nil, 0o600)
				t.Fatalf("%d files", n)
			}
			os.WriteFile(filepath.Join(filepath.Dir(dir), "opened"), nil, 0o600)
			release()
			c.Trim(t.Context(), func(string) bool { return false })
		}
	}
	if testing.Short() {
		t.Skip("starts processes")
	}
	outer := t.TempDir()
	dir := filepath.Join(outer, "cache")
	for i := range 15 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestCacheKilled$")
		cmd.Env = append(os.Environ(), "LAMBDAD_ARCHIVE_KILLED="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		opened := filepath.Join(outer, "opened")
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, err := os.Stat(opened); err == nil || time.Now().After(deadline) {
				break
			}
		}
		// It opens and trims in a loop: another moment of it each time.
		time.Sleep(time.Duration(i) * 5 * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		if err := os.Remove(opened); err != nil {
			t.Fatal("the process never came as far as opening it")
		}
		if _, err := os.Stat(filepath.Join(outer, "broken")); err == nil {
			t.Fatal("a half unpacked copy was opened")
		}
	}
	c := NewCache(dir, &memory{})
	if err := c.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range names(t, dir) {
		if !validDigest(name) {
			t.Errorf("left: %s", name)
		}
	}
}
