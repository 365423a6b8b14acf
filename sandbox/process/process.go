// Package process is the sandbox driver of the plain tier: ordinary processes of
// the user who runs lambdad, without privileges and on any Unix.
//
// It isolates nothing. It keeps what can be kept: each process in a session of
// its own, an environment that is exactly the one given, a scratch directory in
// place of /tmp that goes away with the sandbox, an end for every process it can
// find. Path says where the trees are; /opt of several layers is a copy made of
// hard links, or of symbolic links where those are impossible. Listeners are on
// 127.0.0.1 with a port the system chooses. There are no limits and no freezing.
//
// What it can find: the processes started, their descendants, and on Linux those
// that left their parents, by session, by the output pipe they hold or by the
// environment they were given. A process that shed all of these escapes.
// Promises says all this to the owner of the host.
package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lambdad/lambdad/sandbox"
)

// Config is what a Driver is made of.
type Config struct {
	// ID names the host's daemon; it is part of no name here, as Dir belongs to
	// one daemon already.
	ID string
	// Dir is where scratch directories go; it is made when it does not exist, and
	// must belong to this driver alone.
	Dir string
	// Cure is what would give a stronger tier on this host, for Promises; "": to run
	// lambdad as root on Linux.
	Cure string
	// Logger receives what happens in the background; nil: nothing is logged.
	Logger *slog.Logger
}

// A Driver makes sandboxes of the plain tier.
type Driver struct {
	dir  string
	cure string
	log  *slog.Logger
	fork *forker
}

// New makes the driver. It fails only when Dir cannot be made.
func New(_ context.Context, cfg Config) (*Driver, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("process driver: make scratch directory: %w", err)
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	adoptOrphans()
	keepDescriptors()
	return &Driver{dir: dir, cure: cmp.Or(cfg.Cure, "run lambdad as root on Linux"), log: log, fork: newForker()}, nil
}

// keepDescriptors keeps what this process was given by whoever started it from what
// it starts; its own are never passed on.
func keepDescriptors() {
	entries, _ := os.ReadDir("/dev/fd")
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 2 {
			syscall.CloseOnExec(n)
		}
	}
}

// Tier is "plain".
func (d *Driver) Tier() string { return "plain" }

// Promises says what does not hold.
func (d *Driver) Promises() []sandbox.Promise {
	const why = "plain processes of this user, which nothing counts together"
	var list []sandbox.Promise
	for _, p := range []struct {
		name string
		why  string
	}{
		{"private file system", "they see the host's files with this user's rights; code and layers are at other paths than /var/task and /opt"},
		{"private network", "they share the host's network, with all it reaches; two functions cannot use the same port, and sandbox.localdomain is unknown"},
		{"many environments of a function", "extensions bind the ports they like, so that a second environment would collide with the first: there is one at a time"},
		{"allowed system calls only", "what this user may do, they may do"},
		{"a user id of its own", "they run as the user who started lambdad, and so do those of other functions"},
		{"memory limit", why}, {"CPU limit", why}, {"process limit", why}, {"freezing", "nothing stops them between invocations: extensions go on"},
		{"nothing outlives a killed daemon", "they live on until the next start ends them"},
		{"limits of its own", "open files, queued signals and whatever else the kernel counts by process or user are limited as for this user"},
		{"/tmp of its size", "/tmp is a directory of the host's disk, without a limit"},
		{"unprivileged user", "they run as the user who started lambdad"},
		{"true peak memory", "read from the processes when asked; what ended in between is not seen"},
	} {
		list = append(list, sandbox.Promise{Name: p.name, Why: p.why, Cure: d.cure})
	}
	return append(list,
		sandbox.Promise{Name: "private /tmp", Kept: true},
		sandbox.Promise{Name: "every process ends", Kept: leavesFound, Why: "a process that changes its session and its environment is lost", Cure: d.cure})
}

// Close ends the thread that forks; all sandboxes must be destroyed.
func (d *Driver) Close() error {
	d.fork.close()
	return nil
}

// Create makes the directories of a sandbox.
func (d *Driver) Create(_ context.Context, spec sandbox.Spec) (_ sandbox.Sandbox, err error) {
	if len(spec.Root) > 0 {
		return nil, fmt.Errorf("create sandbox %s: a root file system of its own, as container images have, needs isolation tier root; this is tier plain", spec.ID)
	}
	b := &box{d: d, spec: spec, dir: filepath.Join(d.dir, spec.ID), procs: map[*process]bool{}, parties: map[string]*use{}}
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", spec.ID, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("create sandbox %s: %w", spec.ID, errors.Join(err, os.RemoveAll(b.dir)))
		}
	}()
	b.tmp = filepath.Join(b.dir, "tmp")
	if err := os.Mkdir(b.tmp, 0o700); err != nil {
		return nil, err
	}
	for i, m := range spec.Mounts {
		t := tree{target: path.Clean(m.Target), sources: m.Sources}
		switch len(m.Sources) {
		case 1:
			if t.host, err = filepath.Abs(m.Sources[0]); err != nil {
				return nil, err
			}
		default:
			t.host = filepath.Join(b.dir, fmt.Sprintf("tree%d", i))
			if err := os.Mkdir(t.host, 0o755); err != nil {
				return nil, err
			}
			for _, s := range m.Sources {
				if err := overlay(t.host, s); err != nil {
					return nil, fmt.Errorf("merge %s into %s: %w", s, m.Target, err)
				}
			}
		}
		b.trees = append(b.trees, t)
	}
	return b, nil
}

// Sweep ends what a dead daemon left running and removes its directories.
func (d *Driver) Sweep(ctx context.Context) error {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return fmt.Errorf("sweep %s: %w", d.dir, err)
	}
	var errs []error
	for _, e := range entries {
		dir := filepath.Join(d.dir, e.Name())
		if err := endRecorded(ctx, filepath.Join(dir, recordFile)); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, removeAll(dir))
	}
	return errors.Join(errs...)
}

// removeAll removes a directory in which a process may have made others that
// cannot be entered.
func removeAll(dir string) error {
	if os.RemoveAll(dir) == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if e != nil && e.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// recordFile lists the sessions of a sandbox, for Sweep.
const recordFile = "sessions"

// A box is one sandbox.
type box struct {
	sandbox.Guard
	d     *Driver
	spec  sandbox.Spec
	dir   string
	tmp   string
	trees []tree

	mu      sync.Mutex
	ending  bool // Reset or Destroy: nothing may start
	procs   map[*process]bool
	parties map[string]*use
	running sync.WaitGroup // goroutines of processes
}

// use is what is known about a party.
type use struct {
	peak int64
	cpu  time.Duration // of processes that ended
}

// Path translates the trees and /tmp; the rest is the host's.
func (b *box) Path(inside string) string {
	clean := path.Clean(inside)
	if clean == "/tmp" || strings.HasPrefix(clean, "/tmp/") {
		return b.tmp + strings.TrimPrefix(clean, "/tmp")
	}
	if t := b.find(clean); t != nil {
		return t.host + strings.TrimPrefix(clean, t.target)
	}
	return inside
}

// Listen ignores the port wished for: it may be another sandbox's.
func (b *box) Listen(string) (net.Listener, error) {
	if err := b.Enter(); err != nil {
		return nil, err
	}
	defer b.Leave()
	return net.Listen("tcp4", "127.0.0.1:0")
}

// Dial connects to an address of this host.
func (b *box) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if err := b.Enter(); err != nil {
		return nil, err
	}
	defer b.Leave()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	switch host {
	case "sandbox", "sandbox.localdomain", "localhost":
		host = "127.0.0.1"
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, port))
}

// SetCPU does nothing: plain processes cannot be limited together.
func (b *box) SetCPU(float64) error {
	if err := b.Enter(); err != nil {
		return err
	}
	b.Leave()
	return nil
}

// Start runs a program in a session of its own.
func (b *box) Start(ctx context.Context, cmd sandbox.Command) (sandbox.Process, error) {
	if err := b.Enter(); err != nil {
		return nil, err
	}
	defer b.Leave()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	p := &process{box: b, party: cmd.Party, env: cmd.Env, done: make(chan struct{}), drained: make(chan struct{})}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	files := []uintptr{null.Fd(), null.Fd(), null.Fd()}
	if cmd.Log != nil {
		for len(files) <= sandbox.LogFD {
			files = append(files, ^uintptr(0)) // closed
		}
	}
	var readers [3]*os.File
	for i, w := range []io.Writer{cmd.Stdout, cmd.Stderr, cmd.Log} {
		if w == nil {
			continue
		}
		fd := i + 1
		if i == 2 {
			fd = sandbox.LogFD
		}
		r, out, err := os.Pipe()
		if err != nil {
			closeFiles(readers[:])
			return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
		}
		defer out.Close()
		readers[i], files[fd] = r, out.Fd()
		p.pipes = append(p.pipes, pipeID(out))
	}
	argv := cmd.Args
	if len(argv) == 0 {
		argv = []string{cmd.Path}
	}
	dir := cmd.Dir
	if dir == "" {
		dir = "/"
	}
	env := cmd.Env
	if env == nil {
		env = []string{} // nil would mean the daemon's own
	}

	b.mu.Lock()
	if b.ending {
		b.mu.Unlock()
		closeFiles(readers[:])
		return nil, fmt.Errorf("start %s: the sandbox is being reset", cmd.Path)
	}
	pid, err := b.d.fork.start(cmd.Path, argv, &syscall.ProcAttr{Dir: dir, Env: env, Files: files})
	if err != nil {
		b.mu.Unlock()
		closeFiles(readers[:])
		return nil, &sandbox.ExecError{Path: cmd.Path, Err: err}
	}
	p.pid = pid
	b.procs[p] = true
	if b.parties[p.party] == nil {
		b.parties[p.party] = &use{}
	}
	b.running.Add(2)
	b.mu.Unlock()
	record(filepath.Join(b.dir, recordFile), pid)
	go p.wait()
	go p.copy(readers, [3]io.Writer{cmd.Stdout, cmd.Stderr, cmd.Log})
	return p, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// Reset ends every process and keeps the directories.
func (b *box) Reset(ctx context.Context) error {
	if err := b.Enter(); err != nil {
		return err
	}
	defer b.Leave()
	if err := b.end(ctx); err != nil {
		return fmt.Errorf("reset sandbox %s: %w", b.spec.ID, err)
	}
	b.mu.Lock()
	b.ending = false
	for _, u := range b.parties {
		u.peak = 0
	}
	b.mu.Unlock()
	return nil
}

// end kills until nothing is found, twice in a row.
func (b *box) end(ctx context.Context) error {
	b.mu.Lock()
	b.ending = true
	procs := b.all()
	b.mu.Unlock()
	wait := 100 * time.Microsecond
	for quiet := 0; quiet < 2; {
		found := killAll(procs)
		for _, p := range procs {
			select {
			case <-p.done:
			default:
				found++
			}
		}
		if found == 0 {
			quiet++
			continue
		}
		quiet = 0
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes still run: %w", found, context.Cause(ctx))
		case <-time.After(wait):
			wait = min(2*wait, 5*time.Millisecond)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.procs)
	return nil
}

// all lists the processes, the caller holding the lock.
func (b *box) all() []*process {
	list := make([]*process, 0, len(b.procs))
	for p := range b.procs {
		list = append(list, p)
	}
	return list
}

// Destroy ends every process and removes the directories.
func (b *box) Destroy(ctx context.Context) error {
	return b.Close(ctx, func(ctx context.Context, empty <-chan struct{}) error {
		limit, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		err := b.end(limit)
		<-empty
		if err == nil {
			b.running.Wait()
		}
		if err = errors.Join(err, removeAll(b.dir)); err != nil {
			return fmt.Errorf("destroy sandbox %s: %w", b.spec.ID, err)
		}
		return nil
	})
}

// A process is one started program.
type process struct {
	box     *box
	party   string
	pid     int
	env     []string
	pipes   []string // as links in /proc/<pid>/fd read
	done    chan struct{}
	drained chan struct{}
	exit    sandbox.Exit
}

// PID is the process id.
func (p *process) PID() int { return p.pid }

// Signal sends to the group.
func (p *process) Signal(sig syscall.Signal) error {
	if err := p.box.Enter(); err != nil {
		return err
	}
	defer p.box.Leave()
	if err := syscall.Kill(-p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("send signal %d to process group %d: %w", sig, p.pid, err)
	}
	return nil
}

// Done is closed when the process has ended.
func (p *process) Done() <-chan struct{} { return p.done }

// Exit says how.
func (p *process) Exit() sandbox.Exit { return p.exit }

// Drained is closed when all output is written.
func (p *process) Drained() <-chan struct{} { return p.drained }

func (p *process) wait() {
	defer p.box.running.Done()
	var status syscall.WaitStatus
	var ru syscall.Rusage
	for {
		_, err := syscall.Wait4(p.pid, &status, 0, &ru)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if status.Signaled() {
		p.exit.Signal = status.Signal()
	} else {
		p.exit.Code = status.ExitStatus()
	}
	p.box.mu.Lock()
	u := p.box.parties[p.party]
	u.cpu += time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	u.peak = max(u.peak, maxRSS(&ru))
	p.box.mu.Unlock()
	close(p.done)
}

// copy moves output to its writers until nobody holds the pipes.
func (p *process) copy(readers [3]*os.File, writers [3]io.Writer) {
	defer p.box.running.Done()
	defer close(p.drained)
	var both sync.WaitGroup
	for i, r := range readers {
		if r != nil {
			both.Go(sandbox.NewOutput(r, writers[i]).Copy)
		}
	}
	both.Wait()
}

// Usage sums over the processes that run now.
func (b *box) Usage() (sandbox.Usage, error) {
	if err := b.Enter(); err != nil {
		return sandbox.Usage{}, err
	}
	defer b.Leave()
	b.mu.Lock()
	defer b.mu.Unlock()
	byParty := map[string][]*process{}
	for name := range b.parties {
		byParty[name] = nil
	}
	for p := range b.procs {
		byParty[p.party] = append(byParty[p.party], p)
	}
	u := sandbox.Usage{Parties: map[string]sandbox.PartyUsage{}}
	for name, procs := range byParty {
		known := b.parties[name]
		now := measure(procs)
		known.peak = max(known.peak, now.PeakMemory)
		now.PeakMemory = known.peak
		now.CPU += known.cpu
		u.Parties[name] = now
		u.Memory += now.Memory
		u.PeakMemory += now.PeakMemory
		u.CPU += now.CPU
		u.Processes += now.Processes
	}
	return u, nil
}

// A tree is a read-only tree and where it is on the host.
type tree struct {
	target  string
	host    string
	sources []string
}

func (b *box) find(inside string) *tree {
	var in *tree
	for i := range b.trees {
		t := &b.trees[i]
		if (inside == t.target || strings.HasPrefix(inside, t.target+"/")) && (in == nil || len(t.target) > len(in.target)) {
			in = t
		}
	}
	return in
}

// each calls f with the sources of a path, the uppermost first, until f is done.
// Links are resolved inside one source; what leads out of it is an error.
func (b *box) each(op, inside string, f func(root *os.Root, rel string) (done bool, err error)) error {
	clean := path.Clean("/" + inside)
	t := b.find(clean)
	if t == nil {
		return &fs.PathError{Op: op, Path: inside, Err: fs.ErrNotExist}
	}
	rel := strings.TrimPrefix(strings.TrimPrefix(clean, t.target), "/")
	if rel == "" {
		rel = "."
	}
	if len(t.sources) == 0 && rel == "." {
		root, err := os.OpenRoot(t.host)
		if err != nil {
			return err
		}
		defer root.Close()
		_, err = f(root, rel)
		return err
	}
	var last error = &fs.PathError{Op: op, Path: inside, Err: fs.ErrNotExist}
	for _, source := range slices.Backward(t.sources) {
		root, err := os.OpenRoot(source)
		if err != nil {
			return err
		}
		done, err := f(root, rel)
		root.Close()
		if done {
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			last = err
		}
	}
	return last
}

// Stat describes a file of the read-only trees.
func (b *box) Stat(inside string) (fs.FileInfo, error) {
	if err := b.Enter(); err != nil {
		return nil, err
	}
	defer b.Leave()
	var info fs.FileInfo
	err := b.each("stat", inside, func(root *os.Root, rel string) (bool, error) {
		var err error
		info, err = root.Stat(rel)
		return err == nil, err
	})
	if err != nil {
		return nil, err
	}
	return info, nil
}

// ReadDir lists a directory of the read-only trees.
func (b *box) ReadDir(inside string) ([]fs.DirEntry, error) {
	if err := b.Enter(); err != nil {
		return nil, err
	}
	defer b.Leave()
	merged := map[string]fs.DirEntry{}
	found := false
	err := b.each("readdir", inside, func(root *os.Root, rel string) (bool, error) {
		dir, err := root.Open(rel)
		if err != nil {
			return false, err
		}
		defer dir.Close()
		entries, err := dir.ReadDir(-1)
		if err != nil {
			// A file here covers directories of the same name below.
			return found, err
		}
		found = true
		for _, e := range entries {
			if merged[e.Name()] == nil {
				if info, err := e.Info(); err == nil {
					merged[e.Name()] = fs.FileInfoToDirEntry(info)
				}
			}
		}
		return false, nil
	})
	if !found {
		return nil, err
	}
	list := make([]fs.DirEntry, 0, len(merged))
	for _, e := range merged {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, nil
}

// overlay lays one source over a merged tree. Links are kept as written.
func overlay(to, from string) error {
	return filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil || rel == "." {
			return err
		}
		target := filepath.Join(to, rel)
		old, statErr := os.Lstat(target)
		if e.IsDir() {
			if statErr == nil && old.IsDir() {
				return nil
			}
			if statErr == nil {
				if err := os.Remove(target); err != nil {
					return err
				}
			}
			return os.Mkdir(target, 0o755)
		}
		if statErr == nil {
			if err := os.RemoveAll(target); err != nil {
				return err
			}
		}
		if e.Type()&fs.ModeSymlink != 0 {
			link, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		}
		// A hard link keeps programs from finding out where they came from and
		// looking for their neighbours there.
		if os.Link(p, target) == nil {
			return nil
		}
		abs, err := filepath.Abs(p)
		if err != nil {
			return err
		}
		return os.Symlink(abs, target)
	})
}
