//go:build unix

package sandbox

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// An Output moves what a process writes from a pipe to a writer, for drivers.
// Two may move it: Copy as it comes, and Flush what is there now, so that a
// driver's Process can be a Flusher.
type Output struct {
	r *os.File

	mu  sync.Mutex // of moving
	w   io.Writer  // nil once it failed: the pipe must still be emptied
	buf []byte
}

// NewOutput takes the reading end of a pipe, which must not block
// (unix.SetNonblock before os.NewFile).
func NewOutput(r *os.File, w io.Writer) *Output {
	return &Output{r: r, w: w, buf: make([]byte, 4096)}
}

// Copy returns when nobody holds the other end any more and all was written. It
// closes the pipe.
func (o *Output) Copy() {
	defer o.r.Close()
	c, err := o.r.SyscallConn()
	if err != nil {
		return
	}
	// The runtime waits for more whenever move says that the pipe is empty. An
	// error means that the pipe was closed under it.
	_ = c.Read(func(fd uintptr) bool { return o.move(int(fd)) })
}

// Flush returns when everything written to the pipe before the call has been
// given to the writer.
func (o *Output) Flush() {
	c, err := o.r.SyscallConn()
	if err != nil {
		return
	}
	// Not Read, which would wait for Copy's. An error means that all is written.
	_ = c.Control(func(fd uintptr) { o.move(int(fd)) })
}

// move empties the pipe; it reports false when more may come.
func (o *Output) move(fd int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		n, err := unix.Read(fd, o.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return false
		case err != nil || n == 0:
			return true
		}
		if o.w != nil {
			if _, werr := o.w.Write(o.buf[:n]); werr != nil {
				o.w = nil
			}
		}
		if n == len(o.buf) && n < 64<<10 {
			o.buf = make([]byte, 64<<10) // a talkative one
		}
	}
}
