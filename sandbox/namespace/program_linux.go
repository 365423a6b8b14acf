//go:build amd64 || arm64

package namespace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// What init.c calls by the same names.
const (
	kindRun  = 1
	kindExec = 2
	kindDone = 3
	kindExit = 4

	opClone = 0xf0000001
	opReap  = 0xf0000002
	opValue = 0xf0000003

	argNumber  = 0
	argPointer = 1
	argFile    = 2
	argResult  = 3

	mayFail = 1 << 31

	noOp         = 0xffffffff
	answerSize   = 24
	maxMessage   = 192 * 1024
	maxFiles     = 128
	maxOps       = 256
	socketBuffer = 512 * 1024
)

// A pointer, file or result is an argument of a call that init resolves.
type (
	pointer int // offset into the blob
	file    int // index of the descriptors sent along
	result  int // index of an earlier call
)

// A program is a list of system calls for init, and what they need.
type program struct {
	kind  uint32
	names []string
	ops   []byte
	rels  []byte
	nrels int
	blob  []byte
	files []int
}

// str puts a NUL-terminated string into the blob.
func (p *program) str(s string) pointer {
	at := pointer(len(p.blob))
	p.blob = append(append(p.blob, s...), 0)
	return at
}

// bytes puts data into the blob, aligned to 8.
func (p *program) bytes(b []byte) pointer {
	p.align()
	at := pointer(len(p.blob))
	p.blob = append(p.blob, b...)
	return at
}

func (p *program) align() {
	for len(p.blob)%8 != 0 {
		p.blob = append(p.blob, 0)
	}
}

// strings puts a NULL-terminated array of strings into the blob.
func (p *program) strings(list []string) pointer {
	ptrs := make([]pointer, len(list))
	for i, s := range list {
		ptrs[i] = p.str(s)
	}
	at := p.bytes(make([]byte, 8*(len(list)+1)))
	for i, ptr := range ptrs {
		p.relocate(at+pointer(8*i), ptr)
	}
	return at
}

// relocate puts what v stands for at an offset of the blob.
func (p *program) relocate(at pointer, v any) {
	how, value := resolvable(v)
	p.rels = binary.LittleEndian.AppendUint32(p.rels, uint32(at))
	p.rels = binary.LittleEndian.AppendUint32(p.rels, how)
	p.rels = binary.LittleEndian.AppendUint64(p.rels, value)
	p.nrels++
}

// file sends a descriptor along.
func (p *program) file(fd int) file {
	for i, f := range p.files {
		if f == fd {
			return file(i)
		}
	}
	p.files = append(p.files, fd)
	return file(len(p.files) - 1)
}

// resolvable is how init finds the value of an argument.
func resolvable(v any) (how uint32, value uint64) {
	switch v := v.(type) {
	case int:
		return argNumber, uint64(v)
	case uint64:
		return argNumber, v
	case uintptr:
		return argNumber, uint64(v)
	case pointer:
		return argPointer, uint64(v)
	case file:
		return argFile, uint64(v)
	case result:
		return argResult, uint64(v)
	}
	panic(fmt.Sprintf("namespace: argument of type %T in a program", v)) // a mistake in this package
}

// call appends a system call; name is for error messages. It returns what a
// later call uses to refer to the result.
func (p *program) call(name string, nr uint32, args ...any) result {
	return p.add(name, nr, 0, args)
}

// try is call for a step that may fail without consequence.
func (p *program) try(name string, nr uint32, args ...any) result {
	return p.add(name, nr, mayFail, args)
}

func (p *program) add(name string, nr, how uint32, args []any) result {
	var values [6]uint64
	for i, a := range args {
		h, v := resolvable(a)
		how |= h << (4 * i)
		values[i] = v
	}
	p.ops = binary.LittleEndian.AppendUint32(p.ops, nr)
	p.ops = binary.LittleEndian.AppendUint32(p.ops, how)
	for _, v := range values {
		p.ops = binary.LittleEndian.AppendUint64(p.ops, v)
	}
	p.names = append(p.names, name)
	return result(len(p.names) - 1)
}

// encode is the message.
func (p *program) encode(id uint64) ([]byte, error) {
	p.align()
	size := 24 + len(p.ops) + len(p.rels) + len(p.blob)
	if size > maxMessage || len(p.files) > maxFiles || len(p.names) > maxOps {
		return nil, syscall.E2BIG
	}
	b := make([]byte, 0, size)
	b = binary.LittleEndian.AppendUint32(b, p.kind)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(p.names)))
	b = binary.LittleEndian.AppendUint32(b, uint32(p.nrels))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, id)
	b = append(b, p.ops...)
	b = append(b, p.rels...)
	return append(b, p.blob...), nil
}

// A stepError says which call of a program failed.
type stepError struct {
	index int
	name  string
	errno syscall.Errno
}

func (e *stepError) Error() string { return e.name + ": " + e.errno.Error() }
func (e *stepError) Unwrap() error { return e.errno }

// An answer is one message from init.
type answer struct {
	kind, op uint32
	id       uint64
	value    int64
}

// result turns an answer to p into its result.
func (p *program) result(a answer) (int64, error) {
	if a.op == noOp {
		return a.value, nil
	}
	name := "read program"
	if int(a.op) < len(p.names) {
		name = p.names[a.op]
	}
	return a.value, &stepError{index: int(a.op), name: name, errno: syscall.Errno(-a.value)}
}

// A conn is our end of a conversation, on Go's poller.
type conn struct {
	*os.File
	raw syscall.RawConn
}

// socketpair makes the two ends of a conversation. The second is for the other
// process and must be closed when sent.
func socketpair() (*conn, int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("make a socket pair: %w", err)
	}
	// Without the privilege the default, 208 KiB, is large enough for maxMessage.
	_ = unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer)
	_, err = unix.FcntlInt(uintptr(fds[0]), unix.F_SETFL, unix.O_NONBLOCK)
	c := &conn{File: os.NewFile(uintptr(fds[0]), "init")}
	if err == nil {
		c.raw, err = c.SyscallConn()
	}
	if err != nil {
		c.Close()
		unix.Close(fds[1])
		return nil, -1, fmt.Errorf("poll a socket pair: %w", err)
	}
	return c, fds[1], nil
}

// send writes one message.
func send(c *conn, p *program, id uint64) error {
	b, err := p.encode(id)
	if err != nil {
		return err
	}
	var oob []byte
	if len(p.files) > 0 {
		oob = unix.UnixRights(p.files...)
	}
	var sent error
	err = c.raw.Write(func(fd uintptr) bool {
		for {
			if sent = unix.Sendmsg(int(fd), b, oob, nil, unix.MSG_NOSIGNAL); sent != unix.EINTR {
				return sent != unix.EAGAIN
			}
		}
	})
	if err != nil { // as its Read says it
		return os.ErrClosed
	}
	return sent
}

// receive reads one message; io.EOF when the other side is gone.
func receive(c *conn) (answer, error) {
	var b [answerSize]byte
	n, err := c.Read(b[:])
	if n == 0 && err == nil || errors.Is(err, syscall.ECONNRESET) {
		err = io.EOF
	}
	if err != nil {
		return answer{}, err
	}
	return answer{
		kind:  binary.LittleEndian.Uint32(b[0:]),
		op:    binary.LittleEndian.Uint32(b[4:]),
		id:    binary.LittleEndian.Uint64(b[8:]),
		value: int64(binary.LittleEndian.Uint64(b[16:])),
	}, nil
}

// errInitGone is what callers see when the init has ended.
var errInitGone = errors.New("the sandbox's init is gone")

// A link is the conversation with one serving init. Calls may overlap.
type link struct {
	conn *conn
	exit func(pid int, status syscall.WaitStatus) // called by the reader, in order

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan answer
	gone    bool
	done    chan struct{} // closed when the reader has ended
}

// newLink starts the reader, which ends when init or the link is closed.
func newLink(c *conn, exit func(int, syscall.WaitStatus)) *link {
	l := &link{conn: c, exit: exit, waiting: map[uint64]chan answer{}, done: make(chan struct{})}
	go l.read()
	return l
}

func (l *link) read() {
	defer close(l.done)
	for {
		a, err := receive(l.conn)
		if err != nil {
			break
		}
		switch a.kind {
		case kindExit:
			l.exit(int(a.id), syscall.WaitStatus(a.value))
		case kindDone:
			l.mu.Lock()
			c := l.waiting[a.id]
			delete(l.waiting, a.id)
			l.mu.Unlock()
			if c != nil {
				c <- a
			}
		}
	}
	l.mu.Lock()
	l.gone = true
	for id, c := range l.waiting {
		close(c)
		delete(l.waiting, id)
	}
	l.mu.Unlock()
}

// run has init run a program and returns the result of its last call.
func (l *link) run(p *program) (int64, error) { return l.start(p)() }

// start has init run a program; the function it returns waits for the result.
func (l *link) start(p *program) func() (int64, error) {
	p.kind = kindRun
	c := make(chan answer, 1)
	failed := func(err error) func() (int64, error) { return func() (int64, error) { return 0, err } }
	l.mu.Lock()
	if l.gone {
		l.mu.Unlock()
		return failed(errInitGone)
	}
	l.next++
	id := l.next
	l.waiting[id] = c
	l.mu.Unlock()
	if err := send(l.conn, p, id); err != nil {
		l.mu.Lock()
		delete(l.waiting, id)
		l.mu.Unlock()
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, os.ErrClosed) {
			err = errInitGone
		}
		return failed(err)
	}
	return func() (int64, error) {
		a, ok := <-c
		if !ok {
			return 0, errInitGone
		}
		return p.result(a)
	}
}

// close ends the conversation, and with it an init that still lives.
func (l *link) close() {
	l.conn.Close()
	<-l.done
}
