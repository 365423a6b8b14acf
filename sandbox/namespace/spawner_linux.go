//go:build amd64 || arm64

package namespace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A spawner is the process that clones the inits of sandboxes. It is the same
// program as they run. Cloning from there instead of from the daemon costs a
// copy of a few pages rather than of the daemon's page tables, and hands every
// sandbox a mount namespace that has never contained the host's root.
//
// The inits are children of the daemon's thread that started the spawner
// (CLONE_PARENT), so the kernel tells us of their end, and ends them with us.
type spawner struct {
	link *link
	home int // the network namespace it returns to
	user int // its uid

	mu   sync.Mutex // one clone at a time: the spawner stands in one network namespace
	stop chan struct{}
	done chan struct{}
}

// openInit makes a file of the init program, to be executed.
func openInit() (*os.File, error) {
	image, err := unix.MemfdCreate("lambdad-init", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create for the init: %w", err)
	}
	exe := os.NewFile(uintptr(image), "lambdad-init")
	defer exe.Close()
	if _, err := exe.Write(initProgram); err != nil {
		return nil, fmt.Errorf("write the init: %w", err)
	}
	// Executed through a read-only descriptor: a file open for writing is busy.
	ro, err := os.Open("/proc/self/fd/" + strconv.Itoa(image))
	if err != nil {
		return nil, fmt.Errorf("open the init: %w", err)
	}
	return ro, nil
}

// newSpawner starts the process in its template. Between two sandboxes it stands in
// the network namespace home.
func newSpawner(t *template, home int) (*spawner, error) {
	image, err := openInit()
	if err != nil {
		return nil, err
	}
	defer image.Close()
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/null: %w", err)
	}
	defer unix.Close(null)
	home, err = unix.FcntlInt(uintptr(home), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keep the network namespace: %w", err)
	}
	conn, theirs, err := socketpair()
	if err != nil {
		unix.Close(home)
		return nil, err
	}
	s := &spawner{home: home, user: os.Geteuid(), stop: make(chan struct{}), done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// This thread is the parent of every init: when it ends, they die. It
		// waits here for as long as the driver lives.
		runtime.LockOSThread()
		defer close(s.done)
		pid, err := syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(int(image.Fd())), []string{"lambdad-init"}, &syscall.ProcAttr{
			Dir:   "/",
			Env:   []string{},
			Files: []uintptr{uintptr(null), uintptr(null), uintptr(null), uintptr(theirs)},
			Sys:   &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
		})
		started <- err
		if err != nil {
			return
		}
		<-s.stop
		_, _ = waitPID(pid)
		runtime.UnlockOSThread()
	}()
	err = <-started
	unix.Close(theirs)
	if err != nil {
		conn.Close()
		unix.Close(home)
		return nil, fmt.Errorf("start the init: %w", err)
	}
	s.link = newLink(conn, func(int, syscall.WaitStatus) {})
	p, release, err := t.program()
	if err == nil {
		_, err = s.link.run(p)
		release()
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("enter the root of sandboxes: %w", err)
	}
	return s, nil
}

// clone makes an init that serves socket, inside the network namespace netns and
// the v2 group cgroup (-1: none), and returns its pid on the host. Its user
// namespace belongs to user: what the kernel counts inside by user (inotify, message
// queues, queued signals) it counts on the host for the owner of the namespace
// again. Were that the host's root, all sandboxes and root's own services would have
// one limit together.
func (s *spawner) clone(user, netns, cgroup, socket int) (int, error) {
	p := &program{}
	const keepCapabilities = 1 << 2 // SECBIT_NO_SETUID_FIXUP: beside another effective uid
	same := ^uint64(0)
	flags := uint64(unix.CLONE_PARENT | unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
	if cgroup >= 0 {
		flags |= unix.CLONE_INTO_CGROUP
	}
	args := make([]byte, 88) // struct clone_args, version 2
	binary.LittleEndian.PutUint64(args, flags)
	at := p.bytes(args)
	if cgroup >= 0 {
		p.relocate(at+80, p.file(cgroup))
	}
	p.call("enter network namespace", unix.SYS_SETNS, p.file(netns), unix.CLONE_NEWNET)
	if user != s.user {
		p.call("keep capabilities", unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, keepCapabilities, 0, 0, 0)
		p.call("take on the owner's uid", unix.SYS_SETRESUID, same, user, same)
	}
	c := p.try("clone", opClone, at, 88, p.file(socket), 0)
	if user != s.user {
		p.call("take on the own uid", unix.SYS_SETRESUID, same, s.user, same)
	}
	p.call("leave network namespace", unix.SYS_SETNS, p.file(s.home), unix.CLONE_NEWNET)
	p.call("clone the init into namespaces", opValue, c)
	s.mu.Lock()
	defer s.mu.Unlock()
	pid, err := s.link.run(p)
	return int(pid), err
}

// close ends the spawner; sandboxes must be gone.
func (s *spawner) close() {
	if s.link != nil {
		s.link.close()
	}
	close(s.stop)
	<-s.done
	unix.Close(s.home)
}

// waitPID reaps a child.
func waitPID(pid int) (syscall.WaitStatus, error) {
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if !errors.Is(err, syscall.EINTR) {
			return status, err
		}
	}
}
