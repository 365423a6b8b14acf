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
// driver's Process can be a Flusher. While nothing is written it holds no buffer.
type Output struct {
	r *os.File

	mu sync.Mutex // of moving
	w  io.Writer  // nil once it failed: the pipe must still be emptied
}

// buffers are those of outputs that move something.
var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// NewOutput takes the reading end of a pipe, which must not block
// (unix.SetNonblock before os.NewFile).
func NewOutput(r *os.File, w io.Writer) *Output {
	return &Output{r: r, w: w}
}

// maxPipe is the most a pipe can hold, and so what was written before a Flush.
const maxPipe = 1 << 20

// Copy returns when nobody holds the other end any more and all was written. It
// closes the pipe.
func (o *Output) Copy() {
	defer o.r.Close()
	c, err := o.r.SyscallConn()
	if err != nil {
		return
	}
	// The runtime waits for more whenever the function says that the pipe is
	// empty. An error means that the pipe was closed under it.
	_ = c.Read(func(fd uintptr) bool {
		for {
			n, err := o.move(int(fd))
			if errors.Is(err, unix.EAGAIN) {
				return false
			}
			if err != nil || n == 0 {
				return true
			}
		}
	})
}

// Flush returns when everything written to the pipe before the call has been
// given to the writer. A process that never stops writing does not keep it.
func (o *Output) Flush() {
	c, err := o.r.SyscallConn()
	if err != nil {
		return
	}
	// Not Read, which would wait for Copy's. An error means that all is written.
	_ = c.Control(func(fd uintptr) {
		for moved := 0; moved < maxPipe; {
			n, err := o.move(int(fd))
			if err != nil || n == 0 {
				return
			}
			moved += n
		}
	})
}

// move makes one read and its write.
func (o *Output) move(fd int) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	buf := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	n, err := unix.Read(fd, buf[:])
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(fd, buf[:])
	}
	if err != nil || n == 0 {
		return 0, err
	}
	if o.w != nil {
		if _, werr := o.w.Write(buf[:n]); werr != nil {
			o.w = nil
		}
	}
	return n, nil
}
