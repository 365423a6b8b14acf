package nats

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/blob"
	"github.com/lambdad/lambdad/blob/files"
	"github.com/lambdad/lambdad/queue"
	"github.com/lambdad/lambdad/store"
)

// smallDisk mounts a file system of the given size.
func smallDisk(t *testing.T, bytes int) string {
	if os.Geteuid() != 0 {
		if os.Getenv("LAMBDAD_TEST_ROOT") != "" {
			t.Fatal("LAMBDAD_TEST_ROOT is set, but this is not root")
		}
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("lambdad-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", bytes)); err != nil {
		if os.Getenv("LAMBDAD_TEST_ROOT") != "" {
			t.Fatal(err)
		}
		t.Skipf("cannot mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A disk that runs full in the middle of a write stops writing, not reading, and
// loses nothing.
func TestDiskFull(t *testing.T) {
	dir := smallDisk(t, 24<<20)
	cfg := Config{Dir: filepath.Join(dir, "records")}
	e, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { e.Close() }()
	ctx := t.Context()
	if err := e.Queue().Enqueue(ctx, "q.x", "", []byte("early")); err != nil {
		t.Fatal(err)
	}
	contents := func(i int) []byte { return bytes.Repeat(fmt.Append(nil, i, "."), 100_000) }
	m, err := e.Queue().Receive(ctx, "q", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for {
		if _, err = e.Store().Put(ctx, fmt.Sprintf("k.%d", n), contents(n)); err != nil {
			break
		}
		if n++; n > 1000 {
			t.Fatal("the disk does not run full")
		}
	}
	if !errors.Is(err, store.ErrFull) {
		t.Fatalf("a full disk gives %v, want ErrFull", err)
	}
	t.Logf("%d records fitted; then: %v", n, err)
	if _, err := e.Store().Put(ctx, "k.0", contents(0)); !errors.Is(err, store.ErrFull) {
		t.Fatalf("the next write gives %v, want ErrFull", err)
	}
	if err := e.Queue().Enqueue(ctx, "q.x", "", make([]byte, 4<<20)); !errors.Is(err, queue.ErrFull) {
		t.Fatalf("enqueueing gives %v, want ErrFull", err)
	}
	if err := m.Ack(ctx); !errors.Is(err, queue.ErrFull) {
		t.Fatalf("an Ack that may not be on the disk gives %v, want ErrFull", err)
	}
	check := func() {
		t.Helper()
		for i := range n {
			r, err := e.Store().Get(ctx, fmt.Sprintf("k.%d", i))
			if err != nil || !bytes.Equal(r.Value, contents(i)) {
				t.Fatalf("record %d of %d: %d bytes, %v", i, n, len(r.Value), err)
			}
		}
		if all, err := e.Store().List(ctx, ""); err != nil || len(all) != n {
			t.Fatalf("%d records listed, %v; want %d", len(all), err, n)
		}
	}
	check()
	// It may be opened while the disk is full, to read.
	e.Close()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	if e, err = Open(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	check()
	if _, err := e.Store().Put(ctx, fmt.Sprintf("k.%d", n), contents(n)); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	n++
	check()
}

// The reserve refuses before anything is damaged, so that room is enough to go on.
func TestReserve(t *testing.T) {
	dir := smallDisk(t, 40<<20)
	e, err := Open(t.Context(), Config{Dir: filepath.Join(dir, "records"), Reserve: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	blobs, err := files.Open(files.Config{Dir: filepath.Join(dir, "blobs"), Reserve: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if _, err := e.Store().Put(ctx, "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	filler := make([]byte, 10<<20)
	digest, _, err := blobs.Put(ctx, bytes.NewReader(filler))
	if err != nil {
		t.Fatal(err)
	}
	filler[0] = 1
	// Ten more would leave less than sixteen, but more than none.
	if _, _, err := blobs.Put(ctx, bytes.NewReader(append(filler, filler...))); !errors.Is(err, blob.ErrFull) {
		t.Fatalf("a Put into the reserve gives %v, want ErrFull", err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "blobs", "incoming")); err != nil || len(entries) != 0 {
		t.Fatalf("a refused Put left %v, %v", entries, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "others"), make([]byte, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Store().Put(ctx, "k", []byte("w")); !errors.Is(err, store.ErrFull) {
		t.Fatalf("got %v, want ErrFull", err)
	}
	if err := e.Queue().Enqueue(ctx, "q", "", nil); !errors.Is(err, queue.ErrFull) {
		t.Fatalf("got %v, want ErrFull", err)
	}
	if _, _, err := blobs.Put(ctx, bytes.NewReader([]byte("x"))); !errors.Is(err, blob.ErrFull) {
		t.Fatalf("got %v, want ErrFull", err)
	}
	if err := blobs.Verify(ctx, digest); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "others")); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Store().Put(ctx, "k", []byte("w")); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	if err := e.Queue().Enqueue(ctx, "q", "", nil); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	if _, _, err := blobs.Put(ctx, bytes.NewReader([]byte("x"))); err != nil {
		t.Fatalf("with room again: %v", err)
	}
}

// A disk too small for one archive refuses it and keeps nothing of it.
func TestDiskFullArchive(t *testing.T) {
	dir := smallDisk(t, 8<<20)
	blobs, err := files.Open(files.Config{Dir: dir, Reserve: -1 << 40}) // the check is out of the way
	if err != nil {
		t.Fatal(err)
	}
	small, _, err := blobs.Put(t.Context(), bytes.NewReader(make([]byte, 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := blobs.Put(t.Context(), bytes.NewReader(make([]byte, 20<<20))); !errors.Is(err, blob.ErrFull) {
		t.Fatalf("got %v, want ErrFull", err)
	}
	if err := blobs.Verify(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "incoming")); err != nil || len(entries) != 0 {
		t.Fatalf("a failed Put left %v, %v", entries, err)
	}
	if _, _, err := blobs.Put(t.Context(), bytes.NewReader(make([]byte, 4<<20))); err != nil {
		t.Fatalf("what fits is refused after what does not: %v", err)
	}
}
