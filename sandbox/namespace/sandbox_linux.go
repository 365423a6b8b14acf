//go:build amd64 || arm64

package namespace

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
)

// A box is a shell with a Spec: the sandbox of one environment.
type box struct {
	sandbox.Guard
	shell *shell
	spec  sandbox.Spec
	trees trees
	tmp   *tmpImage // nil: in memory
	meter meter

	freezing sync.Mutex // one change of the freezer at a time
	founding sync.Mutex // one new party at a time; before mu

	mu      sync.Mutex
	noted   bool // by the driver: how many parties there are
	parties map[string]*party
	frozen  bool
	resting bool           // frozen, and holding no more than it must
	copying sync.WaitGroup // goroutines that copy output
}

// newBox puts a Spec into a shell, with the /tmp that tmp waits for. On failure the
// shell is the caller's to destroy.
func newBox(s *shell, spec sandbox.Spec, tmp func() (*tmpImage, error)) (_ *box, err error) {
	if spec.MaxProcesses <= 0 {
		spec.MaxProcesses = 1024
	}
	if spec.MaxFiles <= 0 {
		spec.MaxFiles = 1024
	}
	b := &box{shell: s, spec: spec, parties: map[string]*party{}}
	p := &program{}
	var fds []int
	defer func() {
		closeAll(fds)
		if err != nil && s.d.tmp != nil {
			b.tmp, _ = tmp()
		}
		if b.tmp != nil {
			b.tmp.detach()
		}
		if err != nil {
			b.trees.close()
			s.d.tmp.give(b.tmp)
		}
	}()
	if err := s.limitEgress(spec.Egress); err != nil {
		return nil, err
	}
	none := p.str("")
	prefix := "" // of everything that lies in a root of its own
	moveTo := func(fd int, target string) {
		p.call("move mount to "+target, unix.SYS_MOVE_MOUNT, p.file(fd), none, atFDCWD, p.str(target), unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	move := func(fd int, target string) { moveTo(fd, prefix+target) }
	if len(spec.Root) > 0 {
		fd, err := s.d.newRoot(spec)
		if err != nil {
			return nil, fmt.Errorf("mount the root: %w", err)
		}
		prefix = newRootAt
		moveTo(fd, prefix)
		b.trees.list = append(b.trees.list, tree{target: "/", fd: fd}) // closed with the others
	}
	// Outer targets first, should one lie inside another.
	mounts := slices.SortedStableFunc(slices.Values(spec.Mounts), func(a, b sandbox.Mount) int { return strings.Compare(a.Target, b.Target) })
	for _, m := range mounts {
		if prefix == "" {
			if err := s.d.template.point(m.Target); err != nil {
				return nil, err
			}
		}
		if prefix == "" && len(m.Sources) == 0 && slices.Contains(mountPoints(), strings.TrimPrefix(m.Target, "/")) {
			// It is there, empty, and nothing can be mounted inside it.
			b.trees.list = append(b.trees.list, tree{target: m.Target, fd: -1, root: s.d.template.root})
			continue
		}
		fd, err := newTree(m)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Target, err)
		}
		move(fd, m.Target)
		if b.trees.add(m, fd) {
			continue
		}
		fds = append(fds, fd)
	}
	if s.d.tmp != nil {
		if b.tmp, err = tmp(); err != nil {
			return nil, fmt.Errorf("mount /tmp: %w", err)
		}
		move(b.tmp.mount, "/tmp")
	} else {
		tmp, err := newMemoryTmp(spec.TmpBytes)
		if err != nil {
			return nil, fmt.Errorf("mount /tmp: %w", err)
		}
		fds = append(fds, tmp)
		move(tmp, "/tmp")
	}
	if spec.MemoryBytes > 0 {
		file, err := s.d.template.meminfo(spec.MemoryBytes)
		if err != nil {
			return nil, fmt.Errorf("mount /proc/meminfo: %w", err)
		}
		p.call("mount /proc/meminfo", unix.SYS_MOUNT, p.str(file), p.str("/proc/meminfo"), none, unix.MS_BIND, 0)
	}
	if prefix != "" {
		p.enterRoot(prefix)
	}
	run := s.link.start(p)
	// Of our own: the init and the children that wait.
	if err := s.group.limit(spec.MemoryBytes, spec.MaxProcesses, 1+len(s.ready)); err != nil {
		return nil, err
	}
	if err := s.settled(); err != nil {
		return nil, err
	}
	if _, err := run(); err != nil {
		return nil, err
	}
	b.meter.start(s.group)
	return b, nil
}

// Path is the identity: inside, everything has its place.
func (b *box) Path(inside string) string { return inside }

// Listen opens a listener inside.
func (b *box) Listen(addr string) (net.Listener, error) {
	if err := b.Enter(); err != nil {
		return nil, err
	}
	defer b.Leave()
	l, err := b.shell.d.traveller.listen(b.shell.netns, addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s in sandbox %s: %w", addr, b.spec.ID, err)
	}
	return l, nil
}

// Dial connects to an address inside.
func (b *box) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if err := b.Enter(); err != nil {
		return nil, err
	}
	defer b.Leave()
	c, err := b.shell.d.traveller.dial(ctx, b.shell.netns, addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s in sandbox %s: %w", addr, b.spec.ID, err)
	}
	return c, nil
}

// SetCPU limits the processes to this many cores.
func (b *box) SetCPU(cores float64) error {
	if err := b.Enter(); err != nil {
		return err
	}
	defer b.Leave()
	if cores > 0 {
		b.shell.group.calm() // who has a limit does not run only to die
	}
	return b.shell.group.setCPU(cores)
}

// freezable is a box on a host that can freeze.
type freezable struct{ *box }

// Freeze stops all processes.
func (b freezable) Freeze(ctx context.Context) error {
	if err := b.Enter(); err != nil {
		return err
	}
	defer b.Leave()
	b.freezing.Lock()
	defer b.freezing.Unlock()
	if err := b.letGo(ctx); err != nil {
		return err
	}
	err := b.shell.group.setFrozen(ctx, true)
	b.setFrozen(true)
	return err
}

// Rest closes the control files, which are opened again when they are used again,
// and after that closed at once while the sandbox rests.
func (b freezable) Rest() {
	if b.Enter() != nil {
		return
	}
	defer b.Leave()
	b.freezing.Lock()
	defer b.freezing.Unlock()
	b.mu.Lock()
	b.resting = b.frozen
	parties := make([]*party, 0, 4)
	for _, p := range b.parties {
		parties = append(parties, p)
	}
	b.mu.Unlock()
	b.restAgain(parties)
}

// restAgain closes what a reading of the use has opened.
func (b *box) restAgain(parties []*party) {
	b.mu.Lock()
	resting := b.resting
	b.mu.Unlock()
	if !resting {
		return
	}
	b.shell.group.rest()
	for _, p := range parties {
		p.rest()
	}
}

// letGo ends the waiting children that nobody took.
func (b *box) letGo(ctx context.Context) error {
	b.mu.Lock()
	unused := b.shell.ready
	b.shell.ready = nil
	b.note()
	b.mu.Unlock()
	for _, w := range unused {
		if err := b.shell.letGo(ctx, w); err != nil {
			return fmt.Errorf("end a waiting process in sandbox %s: %w", b.spec.ID, err)
		}
	}
	return nil
}

// note tells the driver once how many parties there are. The caller holds mu.
func (b *box) note() {
	if !b.noted {
		b.noted = true
		if b.shell.d.demand.note(len(b.parties)) {
			b.shell.d.wantMore()
		}
	}
}

// Thaw lets them go on.
func (b freezable) Thaw(ctx context.Context) error {
	if err := b.Enter(); err != nil {
		return err
	}
	defer b.Leave()
	b.freezing.Lock()
	defer b.freezing.Unlock()
	return b.thaw(ctx)
}

func (b *box) thaw(ctx context.Context) error {
	if !b.isFrozen() {
		return nil
	}
	if err := b.shell.group.setFrozen(ctx, false); err != nil {
		return err
	}
	b.setFrozen(false)
	return nil
}

func (b *box) setFrozen(f bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.frozen = f
	b.resting = b.resting && f
}

func (b *box) isFrozen() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.frozen
}

// waiter returns a child that waits in the groups of the named party.
func (b *box) waiter(name string) (*waiting, error) {
	b.mu.Lock()
	party := b.parties[name]
	if party == nil && len(b.shell.ready) > 0 {
		w := b.shell.ready[0]
		b.shell.ready = b.shell.ready[1:]
		select {
		case <-w.child.done: // killed by Reset or by the kernel for lack of memory
			w.conn.Close()
			party = w.party
			party.name = name
			b.parties[name] = party
		default:
			w.party.name = name
			b.parties[name] = w.party
			b.mu.Unlock()
			return w, nil
		}
	}
	b.mu.Unlock()
	if party != nil {
		return b.shell.forkInto(party)
	}
	b.founding.Lock()
	defer b.founding.Unlock()
	b.mu.Lock()
	party = b.parties[name] // founded by another Start meanwhile?
	b.mu.Unlock()
	if party != nil {
		return b.shell.forkInto(party)
	}
	w, err := b.shell.fork(name)
	if err == nil {
		b.mu.Lock()
		b.parties[name] = w.party
		b.mu.Unlock()
	}
	return w, err
}

// Start runs a program.
func (b *box) Start(ctx context.Context, cmd sandbox.Command) (sandbox.Process, error) {
	if err := b.Enter(); err != nil {
		return nil, err
	}
	defer b.Leave()
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	w, err := b.waiter(cmd.Party)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	if err := w.there(); err != nil {
		w.conn.Close()
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	proc := &process{box: b, inside: w.pid, child: w.child, party: w.party, drained: make(chan struct{})}
	out, err := proc.outputs(cmd)
	if err != nil {
		w.conn.Close()
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	p := b.execProgram(cmd, out)
	stop := context.AfterFunc(ctx, func() { _ = w.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = send(w.conn, p, 0)
	out.closeWriters()
	if err == nil {
		var a answer
		a, err = receive(w.conn)
		switch {
		case errors.Is(err, io.EOF): // closed by exec, or by being killed before
			err = nil
		case err == nil:
			_, err = p.result(a)
		default: // ctx
			_ = b.shell.signal(w.pid, syscall.SIGKILL)
		}
	}
	w.conn.Close()
	if err != nil {
		out.closeReaders()
		var step *stepError
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("start %s: %w", cmd.Path, context.Cause(ctx))
		case errors.Is(err, syscall.E2BIG):
			return nil, &sandbox.ExecError{Path: cmd.Path, Err: syscall.E2BIG}
		case errors.As(err, &step) && step.name == stepExec:
			return nil, &sandbox.ExecError{Path: cmd.Path, Err: step.errno}
		}
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	b.copying.Add(1)
	go proc.copy(out)
	return proc, nil
}

// stepExec is what calls are named whose failure is that of exec.
const stepExec = "exec"

// maxQueuedSignals is how many signals may wait with what they carry: each is
// memory that only the receiver's end gives back.
const (
	rlimitSigpending = 11 // as unix has no name for it
	maxQueuedSignals = 4096
)

// execProgram is what a waiting child does to become the program.
func (b *box) execProgram(cmd sandbox.Command, out *outputs) *program {
	p := &program{kind: kindExec}
	argv := cmd.Args
	if len(argv) == 0 {
		argv = []string{cmd.Path}
	}
	dir := cmd.Dir
	if dir == "" {
		dir = "/"
	}
	empty := p.bytes(make([]byte, 8))
	p.call("unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, empty, 0, 8)
	p.call("setsid", unix.SYS_SETSID)
	p.call("set stdin", unix.SYS_DUP3, p.file(int(b.shell.d.null.Fd())), 0, 0)
	p.call("set stdout", unix.SYS_DUP3, p.file(out.write[0]), 1, 0)
	p.call("set stderr", unix.SYS_DUP3, p.file(out.write[1]), 2, 0)
	if cmd.Log != nil {
		p.call("set log descriptor", unix.SYS_DUP3, p.file(out.write[2]), sandbox.LogFD, 0)
	}
	for _, l := range []struct {
		what  int
		value uint64
	}{{unix.RLIMIT_NOFILE, uint64(b.spec.MaxFiles)}, {unix.RLIMIT_MEMLOCK, 64 << 10}, {rlimitSigpending, maxQueuedSignals},
		{unix.RLIMIT_NPROC, b.maxProcesses()}} {
		v := min(l.value, b.shell.d.limits[l.what])
		lim := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, v), v)
		p.call("set limit", unix.SYS_PRLIMIT64, 0, l.what, p.bytes(lim), 0)
	}
	// The init is before all others when the processor is scarce; what it starts is not.
	p.call("set priority", unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, b.shell.d.nice)
	p.call("setresgid", unix.SYS_SETRESGID, groupInside, groupInside, groupInside)
	p.call("setresuid", unix.SYS_SETRESUID, userInside, userInside, userInside)
	if b.shell.d.ids.single { // no change of ids took the capabilities of the init away
		head := binary.LittleEndian.AppendUint64(nil, unix.LINUX_CAPABILITY_VERSION_3)
		p.call("drop capabilities", unix.SYS_CAPSET, p.bytes(head), p.bytes(make([]byte, 24)))
	}
	p.call(stepExec, unix.SYS_CHDIR, p.str(dir))
	p.call(stepExec, unix.SYS_EXECVE, p.str(cmd.Path), p.strings(argv), p.strings(cmd.Env))
	return p
}

// maxProcesses is the limit by user, which stands in where no group counts: the
// kernel counts a user within his user namespace, and every sandbox has its own.
func (b *box) maxProcesses() uint64 {
	if b.shell.group.pids.is() {
		return unix.RLIM_INFINITY
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return uint64(b.spec.MaxProcesses + 1 + len(b.shell.ready))
}

// resetLimit is how long an init may take to end everything; then the sandbox is good
// for nothing but being destroyed, which needs no init.
const resetLimit = 10 * time.Second

// Reset ends every process but the init.
func (b *box) Reset(ctx context.Context) error {
	if err := b.Enter(); err != nil {
		return err
	}
	defer b.Leave()
	b.mu.Lock()
	for _, p := range b.parties {
		p.killed.Store(true)
	}
	b.mu.Unlock()
	defer b.shell.group.calm()
	b.shell.group.kill(false) // first: who is frozen or throttled then runs only to die
	_ = b.shell.group.setCPU(0)
	b.freezing.Lock()
	err := b.thaw(ctx)
	b.freezing.Unlock()
	if err != nil {
		return fmt.Errorf("reset sandbox %s: %w", b.spec.ID, err)
	}
	p := &program{}
	// One call reaches all: a process that forks meanwhile either has the signal
	// and may not, or its child exists already.
	p.try("kill everything", unix.SYS_KILL, ^uint64(0), int(unix.SIGKILL))
	p.call("wait for the end of everything", opReap)
	done := make(chan error, 1)
	go func() {
		_, err := b.shell.link.run(p)
		done <- err
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-time.After(resetLimit):
		err = errors.New("its init does not answer")
	}
	if err == nil {
		err = b.letGo(ctx) // killed with the rest
	}
	if err != nil {
		return fmt.Errorf("reset sandbox %s: %w", b.spec.ID, err)
	}
	b.meter.reset(b)
	return nil
}

// Destroy ends every process and removes everything.
func (b *box) Destroy(ctx context.Context) error {
	return b.Close(ctx, func(ctx context.Context, empty <-chan struct{}) error {
		s := b.shell
		// The end of the init makes calls inside return.
		err := s.end(ctx)
		<-empty
		b.mu.Lock()
		b.note()
		b.mu.Unlock()
		b.trees.close()
		s.d.tmp.give(b.tmp)
		for _, p := range b.parties {
			p.close()
		}
		err = errors.Join(err, s.destroy(ctx))
		b.copying.Wait()
		if err != nil {
			return fmt.Errorf("destroy sandbox %s: %w", b.spec.ID, err)
		}
		return nil
	})
}

// A process is one started program.
type process struct {
	box     *box
	inside  int
	child   *child
	party   *party
	drained chan struct{}

	hostPID sync.Once
	pid     int
}

// PID looks the process up among those of its party.
func (p *process) PID() int {
	p.hostPID.Do(func() {
		if p.box.Enter() != nil {
			return
		}
		defer p.box.Leave()
		p.pid = p.box.shell.hostPID(p.party, p.inside)
	})
	return p.pid
}

// Signal has the init send it: pids inside mean nothing outside. SIGKILL is for the
// whole party: one process of a thousand busy ones would wait for its turn to die.
func (p *process) Signal(sig syscall.Signal) error {
	if err := p.box.Enter(); err != nil {
		return err
	}
	defer p.box.Leave()
	to := -p.inside
	if sig == syscall.SIGKILL {
		if p.box.shell.group.killParty(p.party) {
			return nil
		}
		p.box.mu.Lock()
		if len(p.box.parties) == 1 {
			to = -1 // there is nobody else
		}
		p.box.mu.Unlock()
	}
	return p.box.shell.signal(to, sig)
}

// Done is closed when the process has ended.
func (p *process) Done() <-chan struct{} { return p.child.done }

// Exit says how.
func (p *process) Exit() sandbox.Exit {
	s := p.child.status
	if s.Signaled() {
		return sandbox.Exit{Signal: s.Signal()}
	}
	return sandbox.Exit{Code: s.ExitStatus()}
}

// Drained is closed when all output is written.
func (p *process) Drained() <-chan struct{} { return p.drained }

// outputs are the pipes of a process before it runs.
type outputs struct {
	read  [3]*os.File // nil: thrown away
	to    [3]io.Writer
	write [3]int
	own   [3]bool
}

func (p *process) outputs(cmd sandbox.Command) (*outputs, error) {
	o := &outputs{to: [3]io.Writer{cmd.Stdout, cmd.Stderr, cmd.Log}}
	for i, w := range o.to {
		if w == nil {
			o.write[i] = int(p.box.shell.d.null.Fd())
			continue
		}
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			o.closeWriters()
			o.closeReaders()
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		// Only our end: the program must get a pipe that blocks.
		_ = unix.SetNonblock(fds[0], true)
		o.read[i], o.write[i], o.own[i] = os.NewFile(uintptr(fds[0]), "output"), fds[1], true
	}
	return o, nil
}

func (o *outputs) closeWriters() {
	for i, own := range o.own {
		if own {
			unix.Close(o.write[i])
			o.own[i] = false
		}
	}
}

func (o *outputs) closeReaders() {
	for _, r := range o.read {
		if r != nil {
			r.Close()
		}
	}
}

// copy moves output to its writers until nobody holds the pipes.
func (p *process) copy(o *outputs) {
	defer p.box.copying.Done()
	defer close(p.drained)
	var other sync.WaitGroup
	for i, r := range o.read[1:] {
		if r != nil {
			other.Go(sandbox.NewOutput(r, o.to[1+i]).Copy)
		}
	}
	if o.read[0] != nil {
		sandbox.NewOutput(o.read[0], o.to[0]).Copy()
	}
	other.Wait()
}
