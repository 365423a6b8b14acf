// Package blobtest is the contract of blob.Store as a test: give it a constructor,
// it tests the implementation.
package blobtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/lambdad/lambdad/blob"
)

// A Factory makes stores to be tested.
type Factory struct {
	// New returns an empty store that is cleaned up with t.
	New func(t *testing.T) blob.Store
	// Reopen opens a store again, as after a restart. Nil: the implementation does
	// not persist.
	Reopen func(t *testing.T, s blob.Store) blob.Store
}

// Test runs the suite.
func Test(t *testing.T, f Factory) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, Factory)
	}{
		{"Basics", testBasics}, {"Random", testRandom}, {"Missing", testMissing}, {"Failing", testFailing},
		{"OpenReader", testOpenReader}, {"Concurrent", testConcurrent}, {"Reopen", testReopen},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, f) })
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, s blob.Store, content []byte) string {
	t.Helper()
	digest, size, err := s.Put(t.Context(), bytes.NewReader(content))
	ok(t, err)
	sum := sha256.Sum256(content)
	if digest != hex.EncodeToString(sum[:]) || size != int64(len(content)) {
		t.Fatalf("%d bytes were stored as %s, %d bytes", len(content), digest, size)
	}
	return digest
}

func get(t *testing.T, s blob.Store, digest string) []byte {
	t.Helper()
	r, size, err := s.Open(t.Context(), digest)
	ok(t, err)
	defer r.Close()
	content, err := io.ReadAll(r)
	ok(t, err)
	if int64(len(content)) != size {
		t.Fatalf("size is %d, content has %d bytes", size, len(content))
	}
	return content
}

func list(t *testing.T, s blob.Store) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	ok(t, s.List(t.Context(), func(digest string, size int64) bool {
		if _, twice := all[digest]; twice {
			t.Errorf("%s is listed twice", digest)
		}
		all[digest] = size
		return true
	}))
	return all
}

func testBasics(t *testing.T, f Factory) {
	s := f.New(t)
	contents := [][]byte{nil, []byte("x"), []byte("hello"), bytes.Repeat([]byte("0123456789"), 300_001)}
	for range 2 { // the second time it is there already
		for _, c := range contents {
			if got := get(t, s, put(t, s, c)); !bytes.Equal(got, c) {
				t.Fatalf("%d bytes came back changed", len(c))
			}
		}
	}
	all := list(t, s)
	if len(all) != len(contents) {
		t.Fatalf("listed %v, want %d", all, len(contents))
	}
	for _, c := range contents {
		if size, found := all[put(t, s, c)]; !found || size != int64(len(c)) {
			t.Fatalf("listed size %d, want %d", size, len(c))
		}
	}
	n := 0
	ok(t, s.List(t.Context(), func(string, int64) bool { n++; return false }))
	if n != 1 {
		t.Fatalf("List went on after false: %d", n)
	}
	for _, c := range contents {
		ok(t, s.Delete(t.Context(), put(t, s, c)))
	}
	if all := list(t, s); len(all) != 0 {
		t.Fatalf("left after deletion: %v", all)
	}
}

func testRandom(t *testing.T, f Factory) {
	s := f.New(t)
	content := bytes.Repeat([]byte("abcdefg"), 100_000)
	r, size, err := s.Open(t.Context(), put(t, s, content))
	ok(t, err)
	defer r.Close()
	for _, at := range []int64{size - 7, 0, 12345} {
		buf := make([]byte, 7)
		if _, err := r.ReadAt(buf, at); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(buf, content[at:at+7]) {
			t.Fatalf("at %d: %q", at, buf)
		}
	}
	ok(t, iotest.TestReader(io.NewSectionReader(r, 0, size), content))
}

func testMissing(t *testing.T, f Factory) {
	s := f.New(t)
	digest := put(t, s, []byte("there"))
	for _, d := range []string{strings.Repeat("0", 64), "", "x", "../../etc/passwd", digest[:63], digest + "0", strings.ToUpper(digest),
		"../" + digest[3:], digest[:2] + "/" + digest[3:]} {
		if _, _, err := s.Open(t.Context(), d); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("opening %q: %v, want not found", d, err)
		}
		if err := s.Delete(t.Context(), d); err != nil {
			t.Errorf("deleting %q: %v", d, err)
		}
	}
	if string(get(t, s, digest)) != "there" {
		t.Fatal("deleting what is not there removed what is")
	}
}

func testFailing(t *testing.T, f Factory) {
	s := f.New(t)
	broken := errors.New("broken")
	for _, n := range []int{0, 1, 5_000_000} {
		r := io.MultiReader(bytes.NewReader(make([]byte, n)), iotest.ErrReader(broken))
		if digest, size, err := s.Put(t.Context(), r); !errors.Is(err, broken) || digest != "" || size != 0 {
			t.Fatalf("got %q, %d, %v from a reader that broke after %d bytes", digest, size, err, n)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &cancelling{cancel: cancel}
	if _, _, err := s.Put(ctx, r); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v from a cancelled Put", err)
	}
	if all := list(t, s); len(all) != 0 {
		t.Fatalf("failed Puts left %v", all)
	}
}

// cancelling cancels while it is read, then ends.
type cancelling struct {
	cancel context.CancelFunc
	n      int
}

func (c *cancelling) Read(p []byte) (int, error) {
	if c.n++; c.n > 3 {
		return 0, io.EOF
	}
	if c.n == 2 {
		c.cancel()
	}
	return len(p), nil
}

func testOpenReader(t *testing.T, f Factory) {
	s := f.New(t)
	content := bytes.Repeat([]byte("x"), 1<<20)
	digest := put(t, s, content)
	r, _, err := s.Open(t.Context(), digest)
	ok(t, err)
	defer r.Close()
	half := make([]byte, 1<<19)
	_, err = io.ReadFull(r, half)
	ok(t, err)
	ok(t, s.Delete(t.Context(), digest))
	rest, err := io.ReadAll(r)
	if err != nil || len(rest) != 1<<19 {
		t.Fatalf("after Delete an open reader gives %d bytes, %v", len(rest), err)
	}
}

func testConcurrent(t *testing.T, f Factory) {
	s := f.New(t)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 20 {
				// Half of them meet others at the same content, which also is deleted
				// now and then.
				content := bytes.Repeat(fmt.Append(nil, i, w*(i%2)), 5000)
				digest, _, err := s.Put(t.Context(), bytes.NewReader(content))
				if err != nil {
					t.Error(err)
					return
				}
				r, _, err := s.Open(t.Context(), digest)
				if i%4 == 0 && errors.Is(err, blob.ErrNotFound) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(r)
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("content of %d bytes came back as %d, %v", len(content), len(got), err)
				}
				r.Close()
				if i%4 == 0 {
					if err := s.Delete(t.Context(), digest); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func testReopen(t *testing.T, f Factory) {
	if f.Reopen == nil {
		return // it does not persist
	}
	s := f.New(t)
	kept, gone := put(t, s, []byte("kept")), put(t, s, []byte("gone"))
	ok(t, s.Delete(t.Context(), gone))
	s = f.Reopen(t, s)
	if all := list(t, s); len(all) != 1 || string(get(t, s, kept)) != "kept" {
		t.Fatalf("after a restart: %v", all)
	}
}
