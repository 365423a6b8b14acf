//go:build unix

package sandbox_test

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
)

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Len()
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("no") }

func pipe(t *testing.T) (*os.File, *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe(fds[:]); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
}

func TestOutputFlushes(t *testing.T) {
	r, w := pipe(t)
	var to buffer
	o := sandbox.NewOutput(r, &to)
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.Copy()
	}()
	sent := 0
	for i := range 2000 {
		n, err := w.Write(bytes.Repeat([]byte("x"), 1+i*7%9000))
		if err != nil {
			t.Fatal(err)
		}
		sent += n
		o.Flush()
		if to.len() != sent {
			t.Fatalf("%d of %d bytes after Flush", to.len(), sent)
		}
	}
	w.Close()
	<-done
	o.Flush() // harmless
	if to.len() != sent {
		t.Errorf("%d of %d bytes", to.len(), sent)
	}
}

func TestOutputEmptiesThePipeOfAFailedWriter(t *testing.T) {
	r, w := pipe(t)
	o := sandbox.NewOutput(r, failing{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.Copy()
	}()
	if _, err := w.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	<-done
}

func TestFlushOfAnEndlessWriterReturns(t *testing.T) {
	r, w := pipe(t)
	var to buffer
	o := sandbox.NewOutput(r, &to)
	var wg sync.WaitGroup
	wg.Go(o.Copy)
	stop := make(chan struct{})
	wg.Go(func() {
		defer w.Close()
		for b := make([]byte, 4096); ; {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	})
	for range 10 {
		o.Flush()
	}
	close(stop)
	wg.Wait()
}
