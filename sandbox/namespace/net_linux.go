//go:build amd64 || arm64

package namespace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A traveller is one locked thread that enters network namespaces, makes a
// socket or a new namespace there, and leaves. One for all sandboxes is enough:
// a visit takes microseconds, and a thread of their own would cost each sandbox
// a stack.
type traveller struct {
	work chan func()
	done chan struct{}
	home int // the host's network namespace; in the rootless tier an empty one

	closing sync.Once
}

// newTraveller starts the thread. Without rights over the host's network namespace
// there is no way back into it, so the thread's home is then one of its own.
func newTraveller(ownHome bool) (*traveller, error) {
	t := &traveller{work: make(chan func()), done: make(chan struct{})}
	started := make(chan error, 1)
	go t.loop(ownHome, started)
	if err := <-started; err != nil {
		return nil, err
	}
	return t, nil
}

func (t *traveller) loop(ownHome bool, started chan<- error) {
	defer close(t.done)
	runtime.LockOSThread()
	if ownHome {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			started <- fmt.Errorf("unshare network namespace: %w", err)
			return
		}
	}
	var err error
	t.home, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	started <- err
	if err != nil {
		return
	}
	for f := range t.work {
		f()
	}
	unix.Close(t.home)
	// The thread is not unlocked: it ends, so that nothing runs on it should a
	// way home have failed.
}

func (t *traveller) close() {
	t.closing.Do(func() { close(t.work) })
	<-t.done
}

// do runs f on the thread, which comes home afterwards.
func (t *traveller) do(f func() error) error {
	c := make(chan error, 1)
	t.work <- func() {
		err := f()
		if back := unix.Setns(t.home, unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, fmt.Errorf("leave the network namespace: %w", back))
		}
		c <- err
	}
	return <-c
}

// newNetwork makes a network namespace without a name, with nothing but a
// loopback interface that is up.
func (t *traveller) newNetwork() (int, error) {
	fd := -1
	err := t.do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network namespace: %w", err)
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		var err error
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil && fd >= 0 {
		unix.Close(fd)
		fd = -1
	}
	return fd, err
}

// loopbackUp switches lo on in the thread's network namespace.
func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket for lo: %w", err)
	}
	defer unix.Close(s)
	var req struct { // struct ifreq
		name  [16]byte
		flags uint16
		_     [22]byte
	}
	copy(req.name[:], "lo")
	req.flags = unix.IFF_UP | unix.IFF_RUNNING
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return fmt.Errorf("switch lo on: %w", errno)
	}
	return nil
}

// socketIn makes a TCP socket inside a network namespace. Where it was made is
// where it belongs; it may be used from anywhere.
func (t *traveller) socketIn(netns int, family int) (int, error) {
	return t.socketOf(netns, family, unix.SOCK_STREAM, unix.IPPROTO_TCP)
}

// socketOf is socketIn for a kind of socket.
func (t *traveller) socketOf(netns, family, kind, protocol int) (int, error) {
	fd := -1
	err := t.do(func() error {
		if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		var err error
		fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
		return os.NewSyscallError("socket", err)
	})
	if err != nil && fd >= 0 {
		unix.Close(fd)
		fd = -1
	}
	return fd, err
}

// address reads an address of the inside. The names a sandbox knows for itself
// need no resolver.
func address(addr string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %s: port is no number", addr)
	}
	switch host {
	case "localhost", "sandbox", "sandbox.localdomain":
		host = "127.0.0.1"
	case "":
		host = "0.0.0.0"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %s: want an IP address, localhost, sandbox or sandbox.localdomain", addr)
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(n)), nil
}

// sockaddr is the kernel's form of an address.
func sockaddr(a netip.AddrPort) (int, unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// listen opens a listener inside a network namespace.
func (t *traveller) listen(netns int, addr string) (net.Listener, error) {
	a, err := address(addr)
	if err != nil {
		return nil, err
	}
	family, sa := sockaddr(a)
	fd, err := t.socketIn(netns, family)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, sa); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, 1024); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	return net.FileListener(f)
}

// dial connects to an address inside a network namespace.
func (t *traveller) dial(ctx context.Context, netns int, addr string) (net.Conn, error) {
	a, err := address(addr)
	if err != nil {
		return nil, err
	}
	family, sa := sockaddr(a)
	fd, err := t.socketIn(netns, family)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "connection")
	defer f.Close()
	err = unix.Connect(fd, sa)
	if err == unix.EINPROGRESS {
		err = connected(ctx, f)
	}
	if err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	return net.FileConn(f)
}

// connected waits for the end of a connect in progress.
func connected(ctx context.Context, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	first := true
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		if first {
			// The poller may know a readiness from before the connect.
			first = false
			var p [1]unix.PollFd
			p[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
			if n, _ := unix.Poll(p[:], 0); n == 0 {
				return false
			}
		}
		var code int
		code, failed = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if failed != nil {
			return true
		}
		if code != 0 {
			failed = syscall.Errno(code)
			return true
		}
		if _, err := unix.Getpeername(int(fd)); err != nil {
			return false // not yet connected: a spurious wake-up
		}
		return true
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	return failed
}
