//go:build amd64 || arm64

package namespace

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
)

// A shell is a sandbox that nobody owns yet: namespaces, groups and an init that
// waits, with nothing of any Spec in it. It is used for one sandbox or thrown
// away.
type shell struct {
	d     *Driver
	name  string
	user  int // uid and gid on the host of what runs inside
	netns int
	plug  *plug // nil: there is no way out
	group *group

	pid   int    // of the init, on the host; 0 when it was reaped
	init  string // the same for ever, to look into proc
	link  *link
	ready []*waiting // children made ahead

	mu       sync.Mutex
	children map[int]*child // by pid inside
	owners   map[int]*party // of living children, by pid inside
	parties  int
}

// A child is a process the init reports on.
type child struct {
	done   chan struct{}
	status syscall.WaitStatus
}

// A waiting child stands in its party's groups and waits for its program.
type waiting struct {
	pid   int // inside
	conn  *conn
	party *party
	child *child
	join  *program // how it gets there; nil: it is there
}

// newShell makes a shell with this many waiting children.
func (d *Driver) newShell(ctx context.Context, children int) (_ *shell, err error) {
	s := &shell{d: d, netns: -1, children: map[int]*child{}, owners: map[int]*party{}}
	s.user, s.name = d.ids.take()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.destroy(context.WithoutCancel(ctx)))
		}
	}()
	// The network is made beside the rest, which needs it late, and its way out not
	// at all.
	netns, connected := make(chan error, 1), make(chan error, 1)
	go func() {
		var err error
		s.netns, err = d.traveller.newNetwork()
		netns <- err
		if err == nil && d.egress != nil {
			s.plug, err = d.egress.plug(d.traveller, s.netns, d.egress.mode)
			connected <- err
		}
		close(connected)
	}()
	err = s.populate(ctx, children, netns)
	return s, errors.Join(err, <-connected)
}

// populate makes the groups, the init and the children that wait; the init is cloned
// into the network namespace when there is one.
func (s *shell) populate(ctx context.Context, children int, netns <-chan error) (err error) {
	d := s.d
	if s.group, err = d.cgroups.newGroup(s.name); err != nil {
		return err
	}
	parties := make([]*party, children)
	for i := range parties {
		if parties[i], err = s.found(""); err != nil {
			return err
		}
	}
	conn, theirs, err := socketpair()
	if err != nil {
		return err
	}
	if err = <-netns; err == nil {
		s.pid, err = d.spawner.clone(s.user, s.netns, s.group.initDir, theirs)
	}
	unix.Close(theirs)
	s.group.closeInit()
	if err != nil {
		conn.Close()
		return fmt.Errorf("clone the init of a sandbox: %w", err)
	}
	s.init = strconv.Itoa(s.pid)
	// Among a thousand busy processes of its sandbox, the init must be heard. Without
	// privileges it takes its turn.
	_ = unix.Setpriority(unix.PRIO_PROCESS, s.pid, -20)
	s.link = newLink(conn, s.ended)
	uids, gids := d.ids.maps(s.user)
	for file, m := range map[string]string{"uid_map": uids, "gid_map": gids} {
		if err := writeFile("/proc/"+strconv.Itoa(s.pid)+"/"+file, m); err != nil {
			return fmt.Errorf("write %q to the %s of the init: %w", m, file, err)
		}
	}
	furnished, err := s.furnish()
	if err != nil {
		return fmt.Errorf("furnish a sandbox: %w", err)
	}
	// The init does one after the other, so the children are asked for meanwhile.
	for _, party := range parties {
		w, err := s.forkInto(party)
		if err != nil {
			_, first := furnished()
			return errors.Join(first, err)
		}
		s.ready = append(s.ready, w)
	}
	if _, err := furnished(); err != nil {
		return fmt.Errorf("furnish a sandbox: %w", err)
	}
	return nil
}

// settled waits until the children stand where they wait.
func (s *shell) settled() error {
	for _, w := range s.ready {
		if err := w.there(); err != nil {
			return err
		}
	}
	return nil
}

// wait makes the number of waiting children that of a shell nobody has yet.
func (s *shell) wait(ctx context.Context, children int) error {
	for len(s.ready) < children {
		w, err := s.fork("")
		if err != nil {
			return err
		}
		s.ready = append(s.ready, w)
	}
	for len(s.ready) > children {
		last := len(s.ready) - 1
		w := s.ready[last]
		s.ready = s.ready[:last]
		if err := s.letGo(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

// limitEgress takes away what a Spec does not allow of what the driver does.
func (s *shell) limitEgress(want sandbox.Egress) error {
	if s.plug == nil {
		return nil
	}
	switch want = want.Within(s.d.egress.mode); want {
	case s.d.egress.mode:
		return nil
	case sandbox.EgressInternet:
		return s.plug.narrow(want)
	}
	plug := s.plug
	s.plug = nil
	return plug.remove()
}

// furnish begins the part of the set-up that is the same for every sandbox; the
// function it returns waits for its end.
func (s *shell) furnish() (func() (int64, error), error) {
	p := &program{}
	groups, err := p.joinGroups(s.group.joins)
	if err != nil {
		return nil, err
	}
	defer closeAll(groups)
	none := p.str("")
	if !s.d.ids.single {
		p.call("setgroups", unix.SYS_SETGROUPS, 0, 0)
		p.call("setresgid", unix.SYS_SETRESGID, 0, 0, 0)
		p.call("setresuid", unix.SYS_SETRESUID, 0, 0, 0)
	}
	// After the ids, which clear it. That the daemon still lives is certain: were
	// it gone, the socket would have ended.
	p.call("set parent-death signal", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(unix.SIGKILL), 0, 0, 0)
	s.d.template.lock(p)
	host := "sandbox"
	p.call("set host name", unix.SYS_SETHOSTNAME, p.str(host), len(host))
	proc := p.str("proc")
	p.call("mount proc", unix.SYS_MOUNT, proc, p.str("/proc"), proc, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, 0)
	null := p.str("/dev/null")
	for _, name := range s.d.template.masked {
		p.try("mask "+name, unix.SYS_MOUNT, null, p.str("/proc/"+name), none, unix.MS_BIND, 0)
	}
	p.drop()
	return s.link.start(p), nil
}

// drop appends the giving up of what no program inside may regain. The init
// keeps its capabilities, in its own user namespace; a child loses them with its
// ids, and nothing it executes can have any.
func (p *program) drop() {
	for c := range unix.CAP_LAST_CAP + 1 {
		p.try("drop capability", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0)
	}
	const noRoot = 1<<0 | 1<<1 // SECBIT_NOROOT and its lock
	p.call("set securebits", unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, noRoot, 0, 0, 0)
	p.call("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// joinGroups appends what makes the process join groups by their files tasks or
// cgroup.procs, which must stay open until the program is sent.
func (p *program) joinGroups(files []string) ([]int, error) {
	var fds []int
	zero := p.str("0")
	for _, f := range files {
		// The permission is that of who opened the file.
		fd, err := unix.Open(f, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			closeAll(fds)
			return nil, fmt.Errorf("open %s: %w", f, err)
		}
		fds = append(fds, fd)
		p.call("join "+f, unix.SYS_WRITE, p.file(fd), zero, 1)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// found makes the groups of a new party.
func (s *shell) found(name string) (*party, error) {
	s.mu.Lock()
	n := s.parties
	s.parties++
	s.mu.Unlock()
	party, err := s.group.newParty(n)
	if err == nil {
		party.name = name
	}
	return party, err
}

// fork has the init make a child for the groups of a new party.
func (s *shell) fork(name string) (*waiting, error) {
	party, err := s.found(name)
	if err != nil {
		return nil, err
	}
	w, err := s.forkInto(party)
	if err != nil {
		party.close()
	}
	return w, err
}

// noCrashHelper is the limit of core files with which the kernel neither writes one
// nor starts the program of core_pattern, which would run as the host's root. With 0
// it starts it.
const noCrashHelper = 1

// forkInto has the init make a child that goes into the groups of a party and waits.
func (s *shell) forkInto(party *party) (_ *waiting, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make a process in the sandbox: %w", err)
		}
	}()
	// The child finds its first message when it looks: it joins its groups and
	// takes on the filter, long before it is needed.
	join := &program{kind: kindRun}
	into, files := party.into, party.join
	if into != "" && party.killed.Load() {
		into, files = "", append([]string{into + "/cgroup.procs"}, files...)
	}
	groups, err := join.joinGroups(files)
	if err != nil {
		return nil, err
	}
	defer closeAll(groups)
	join.call("unshare cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	core := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, noCrashHelper), noCrashHelper)
	join.call("set limit", unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, join.bytes(core), 0) // the filter keeps it
	join.seccomp(s.d.filter)

	fork := &program{}
	args := make([]byte, 88) // struct clone_args, version 2
	binary.LittleEndian.PutUint64(args[32:], uint64(unix.SIGCHLD))
	at := fork.bytes(args)
	if into != "" {
		dir, err := unix.Open(into, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", into, err)
		}
		defer unix.Close(dir)
		binary.LittleEndian.PutUint64(fork.blob[at:], unix.CLONE_INTO_CGROUP)
		fork.relocate(at+80, fork.file(dir))
	}
	conn, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	fork.call("fork", opClone, at, len(args), fork.file(theirs), 1)
	var pid int64
	if err = send(conn, join, 0); err == nil {
		pid, err = s.link.run(fork)
	}
	unix.Close(theirs)
	if err != nil {
		conn.Close()
		return nil, err
	}
	w := &waiting{pid: int(pid), conn: conn, party: party, child: s.child(int(pid)), join: join}
	s.own(w)
	return w, nil
}

// there waits until the child stands in its groups, under the filter. Before that it is
// given nothing to run.
func (w *waiting) there() error {
	if w.join == nil {
		return nil
	}
	a, err := receive(w.conn)
	if err == nil {
		_, err = w.join.result(a)
	}
	if err != nil {
		return fmt.Errorf("make a process in the sandbox: %w", err)
	}
	w.join = nil
	return nil
}

// child is the record of a pid, which its end may have made before its start was
// known.
func (s *shell) child(pid int) *child {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.children[pid]
	if c == nil {
		c = &child{done: make(chan struct{})}
		s.children[pid] = c
	}
	return c
}

// own notes whose a child is, unless it has ended already.
func (s *shell) own(w *waiting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.children[w.pid] == w.child {
		s.owners[w.pid] = w.party
	}
}

// ended is called by the link when the init reports an end.
func (s *shell) ended(pid int, status syscall.WaitStatus) {
	c := s.child(pid)
	c.status = status
	s.mu.Lock()
	delete(s.children, pid)
	delete(s.owners, pid)
	s.mu.Unlock()
	close(c.done)
}

// letGo ends a waiting child and removes its groups.
func (s *shell) letGo(ctx context.Context, w *waiting) error {
	w.conn.Close()
	select {
	case <-w.child.done:
	case <-s.link.done: // the init is gone, and the child with it
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	w.party.close()
	return s.group.removeParty(ctx, w.party)
}

// destroy ends everything in the shell and removes what it had on the host.
func (s *shell) destroy(ctx context.Context) error {
	var errs []error
	for _, w := range s.ready {
		w.conn.Close()
		w.party.close()
	}
	s.ready = nil
	if err := s.end(ctx); err != nil {
		errs = append(errs, err)
	}
	if s.link != nil {
		s.link.close()
	}
	s.mu.Lock()
	for pid, c := range s.children {
		c.status = syscall.WaitStatus(syscall.SIGKILL)
		close(c.done)
		delete(s.children, pid)
	}
	s.mu.Unlock()
	if s.plug != nil {
		s.plug.release()
		s.plug = nil
	}
	if s.netns >= 0 {
		unix.Close(s.netns)
		s.netns = -1
	}
	if s.group != nil {
		if err := s.group.remove(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	s.d.ids.give(s.user)
	return errors.Join(errs...)
}

// signalLimit is how long an init may take to send a signal. What runs beside it may
// keep it busy; Destroy does not need it.
const signalLimit = 2 * time.Second

// signal sends a signal to a process inside, or to the group -pid. That it is
// gone is no error.
func (s *shell) signal(pid int, sig syscall.Signal) error {
	p := &program{}
	p.call("kill", unix.SYS_KILL, pid, int(sig))
	answer := make(chan error, 1)
	go func() {
		_, err := s.link.run(p)
		answer <- err
	}()
	var err error
	select {
	case err = <-answer:
	case <-time.After(signalLimit):
		return fmt.Errorf("send signal %d to process %d: the sandbox's init does not answer", sig, pid)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, errInitGone) {
		return fmt.Errorf("send signal %d to process %d: %w", sig, pid, err)
	}
	return nil
}

// end ends the init and with it everything in its pid namespace, and returns
// when all of it is gone.
func (s *shell) end(ctx context.Context) error {
	if s.pid <= 0 {
		return nil
	}
	s.group.kill(true)
	_ = s.group.setCPU(0) // a throttled process must run to die, and not before
	_ = unix.Kill(s.pid, unix.SIGKILL)
	s.group.thawForGood()
	// The pid is ours until it is waited for, so this is the init's.
	fd, err := unix.PidfdOpen(s.pid, unix.PIDFD_NONBLOCK)
	if err != nil { // out of descriptors
		_, err := waitPID(s.pid)
		s.pid = 0
		return err
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	stop := context.AfterFunc(ctx, func() { _ = pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	// A pid namespace's init becomes waitable when all others are gone.
	var status syscall.WaitStatus
	var werr error
	err = raw.Read(func(uintptr) bool {
		var pid int
		pid, werr = syscall.Wait4(s.pid, &status, syscall.WNOHANG, nil)
		return pid != 0 || werr != nil && !errors.Is(werr, syscall.EINTR)
	})
	if err != nil {
		return fmt.Errorf("wait for the end of process %d: %w (%w)", s.pid, err, context.Cause(ctx))
	}
	if werr != nil && !errors.Is(werr, syscall.ECHILD) {
		return fmt.Errorf("wait for the end of process %d: %w", s.pid, werr)
	}
	s.pid = 0
	return nil
}
