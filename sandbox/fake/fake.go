// Package fake is a sandbox driver for tests: processes are Go functions, the
// network is in memory, failures come to order. Everything waits on channels
// only, so that it works inside testing/synctest, where a limit of fifteen
// minutes passes at once.
//
// What a process does goes through its *Proc: it dials, writes, sleeps and takes
// signals there, and stops doing so when it is killed or frozen. A function that
// was killed must return once Killed is closed; nothing it does after that has an
// effect.
package fake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lambdad/lambdad/sandbox"
)

// A Program is what a fake process runs. It returns how the process exits.
type Program func(p *Proc) sandbox.Exit

// A File is a file of a fake sandbox that is on no disk.
type File struct {
	Mode fs.FileMode // 0: 0755
	Run  Program     // nil: not a program; starting it fails with ENOEXEC
	Err  error       // what starting it fails with instead
}

// A Driver makes fake sandboxes. Its fields may be set before the first Create.
type Driver struct {
	// Files are in every sandbox, by their path inside.
	Files map[string]File
	// Exec runs executable files of the mounts, which are on disk. nil: starting
	// them fails with ENOEXEC.
	Exec Program
	// Usage replaces what Sandbox.Usage reports; it gets the count of OOM kills.
	Usage func(oom int) sandbox.Usage
	// FreezeTakes is how long it is until all processes stand still.
	FreezeTakes time.Duration

	mu       sync.Mutex
	live     map[string]*Sandbox
	made     []*Sandbox
	failures map[string][]error
}

var _ sandbox.Driver = (*Driver)(nil)

// Fail makes the next call of an operation fail with err; several calls queue.
// Operations: create, listen, start, cpu, usage, readdir, freeze, thaw, reset,
// destroy.
func (d *Driver) Fail(op string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failures == nil {
		d.failures = map[string][]error{}
	}
	d.failures[op] = append(d.failures[op], err)
}

func (d *Driver) failure(op string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := d.failures[op]
	if len(q) == 0 {
		return nil
	}
	d.failures[op] = q[1:]
	return q[0]
}

// Tier implements sandbox.Driver.
func (d *Driver) Tier() string { return "fake" }

// Sweep implements sandbox.Driver.
func (d *Driver) Sweep(context.Context) error { return nil }

// Promises implements sandbox.Driver.
func (d *Driver) Promises() []sandbox.Promise {
	return []sandbox.Promise{{Name: "isolation", Why: "processes are functions of this program", Cure: "use another driver"}}
}

// Close implements sandbox.Driver; it fails when a sandbox was not destroyed.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.live); n > 0 {
		return fmt.Errorf("fake: %d sandboxes were not destroyed", n)
	}
	return nil
}

// Sandboxes returns every sandbox ever made, the oldest first.
func (d *Driver) Sandboxes() []*Sandbox {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.made)
}

// Create implements sandbox.Driver.
func (d *Driver) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if err := errors.Join(d.failure("create"), ctx.Err()); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.live == nil {
		d.live = map[string]*Sandbox{}
	}
	if d.live[spec.ID] != nil {
		return nil, fmt.Errorf("fake: sandbox %s exists", spec.ID)
	}
	s := &Sandbox{driver: d, spec: spec, listeners: map[string]*listener{}, thawed: closedChan()}
	d.live[spec.ID] = s
	d.made = append(d.made, s)
	return s, nil
}

// A Sandbox is a fake one. It is a sandbox.Freezer.
type Sandbox struct {
	driver *Driver
	spec   sandbox.Spec

	mu        sync.Mutex
	destroyed bool
	listeners map[string]*listener
	groups    []*group
	thawed    chan struct{} // closed while not frozen
	frozen    bool
	oom       int
	trace     []string
	attempts  map[string]int
}

var _ sandbox.Freezer = (*Sandbox)(nil)

func closedChan() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// Trace returns what was done to the sandbox, in order: "start runtime",
// "signal runtime terminated", "freeze", "thaw", "cpu 0.07", "reset", "destroy".
// A signal to a frozen sandbox has "frozen: " before it.
func (s *Sandbox) Trace() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.trace)
}

func (s *Sandbox) note(format string, args ...any) {
	s.trace = append(s.trace, fmt.Sprintf(format, args...))
}

// Spec returns what the sandbox was made from.
func (s *Sandbox) Spec() sandbox.Spec { return s.spec }

// Path implements sandbox.Sandbox: inside is as outside.
func (s *Sandbox) Path(inside string) string { return inside }

// host finds the file of a mount on disk.
func (s *Sandbox) host(inside string) string {
	found := ""
	for _, m := range s.spec.Mounts {
		rel, ok := strings.CutPrefix(inside, m.Target)
		if !ok || rel != "" && rel[0] != '/' {
			continue
		}
		for _, src := range m.Sources {
			p := filepath.Join(src, filepath.FromSlash(rel))
			if _, err := os.Stat(p); err == nil {
				found = p
			}
		}
	}
	return found
}

// ReadDir implements sandbox.Sandbox.
func (s *Sandbox) ReadDir(inside string) ([]fs.DirEntry, error) {
	if err := s.check("readdir"); err != nil {
		return nil, err
	}
	entries := map[string]fs.DirEntry{}
	for _, m := range s.spec.Mounts {
		rel, ok := strings.CutPrefix(inside, m.Target)
		if !ok || rel != "" && rel[0] != '/' {
			continue
		}
		for _, src := range m.Sources {
			list, err := os.ReadDir(filepath.Join(src, filepath.FromSlash(rel)))
			if err != nil {
				continue
			}
			for _, e := range list {
				entries[e.Name()] = e
			}
		}
	}
	for p, f := range s.driver.Files {
		if path.Dir(p) == path.Clean(inside) {
			entries[path.Base(p)] = fs.FileInfoToDirEntry(info{path.Base(p), f.Mode})
		}
	}
	if len(entries) == 0 {
		return nil, &fs.PathError{Op: "open", Path: inside, Err: fs.ErrNotExist}
	}
	list := make([]fs.DirEntry, 0, len(entries))
	for _, e := range entries {
		list = append(list, e)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name() < list[j].Name() })
	return list, nil
}

// Stat implements sandbox.Sandbox.
func (s *Sandbox) Stat(inside string) (fs.FileInfo, error) {
	if err := s.check(""); err != nil {
		return nil, err
	}
	if f, ok := s.driver.Files[inside]; ok {
		return info{path.Base(inside), f.Mode}, nil
	}
	if p := s.host(inside); p != "" {
		return os.Stat(p)
	}
	return nil, &fs.PathError{Op: "stat", Path: inside, Err: fs.ErrNotExist}
}

type info struct {
	name string
	mode fs.FileMode
}

func (i info) Name() string { return i.name }
func (i info) Size() int64  { return 1 }
func (i info) Mode() fs.FileMode {
	if i.mode == 0 {
		return 0o755
	}
	return i.mode
}
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.mode.IsDir() }
func (i info) Sys() any           { return nil }

func (s *Sandbox) check(op string) error {
	s.mu.Lock()
	gone := s.destroyed
	s.mu.Unlock()
	if gone {
		return sandbox.ErrDestroyed
	}
	return s.driver.failure(op)
}

// Listen implements sandbox.Sandbox.
func (s *Sandbox) Listen(addr string) (net.Listener, error) {
	if err := s.check("listen"); err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listeners[port] != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Err: syscall.EADDRINUSE}
	}
	l := &listener{sandbox: s, addr: address(addr), port: port, conns: make(chan net.Conn), done: make(chan struct{})}
	s.listeners[port] = l
	return l, nil
}

// Dial implements sandbox.Sandbox.
func (s *Sandbox) Dial(ctx context.Context, addr string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	l := s.listeners[port]
	s.mu.Unlock()
	if l == nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.done:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

type listener struct {
	sandbox *Sandbox
	addr    address
	port    string
	conns   chan net.Conn
	once    sync.Once
	done    chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Addr() net.Addr { return l.addr }

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.sandbox.mu.Lock()
		defer l.sandbox.mu.Unlock()
		if l.sandbox.listeners[l.port] == l {
			delete(l.sandbox.listeners, l.port)
		}
	})
	return nil
}

// SetCPU implements sandbox.Sandbox.
func (s *Sandbox) SetCPU(cores float64) error {
	if err := s.check("cpu"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("cpu %.2f", cores)
	return nil
}

// Usage implements sandbox.Sandbox.
func (s *Sandbox) Usage() (sandbox.Usage, error) {
	if err := s.check("usage"); err != nil {
		return sandbox.Usage{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, g := range s.groups {
		n += g.alive()
	}
	if s.driver.Usage != nil {
		return s.driver.Usage(s.oom), nil
	}
	return sandbox.Usage{Memory: 30 << 20, PeakMemory: 36 << 20, Processes: n, OOMKills: s.oom}, nil
}

// Freeze implements sandbox.Freezer: it takes FreezeTakes, or until ctx ends.
func (s *Sandbox) Freeze(ctx context.Context) error {
	if err := s.check("freeze"); err != nil {
		return err
	}
	s.mu.Lock()
	s.note("freeze")
	if !s.frozen {
		s.frozen, s.thawed = true, make(chan struct{})
	}
	s.mu.Unlock()
	if s.driver.FreezeTakes == 0 {
		return nil
	}
	select {
	case <-time.After(s.driver.FreezeTakes):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Thaw implements sandbox.Freezer.
func (s *Sandbox) Thaw(context.Context) error {
	if err := s.check("thaw"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("thaw")
	s.thaw()
	return nil
}

func (s *Sandbox) thaw() {
	if s.frozen {
		s.frozen = false
		close(s.thawed)
	}
}

// Reset implements sandbox.Sandbox.
func (s *Sandbox) Reset(context.Context) error {
	if err := s.check("reset"); err != nil {
		return err
	}
	s.end("reset")
	return nil
}

// Destroy implements sandbox.Sandbox.
func (s *Sandbox) Destroy(context.Context) error {
	if err := s.driver.failure("destroy"); err != nil {
		return err
	}
	s.mu.Lock()
	again := s.destroyed
	s.destroyed = true
	listeners := s.listeners
	s.listeners = map[string]*listener{}
	s.mu.Unlock()
	if again {
		return nil
	}
	for _, l := range listeners {
		l.Close()
	}
	s.end("destroy")
	s.driver.mu.Lock()
	defer s.driver.mu.Unlock()
	delete(s.driver.live, s.spec.ID)
	return nil
}

// end kills every process.
func (s *Sandbox) end(why string) {
	s.mu.Lock()
	s.note("%s", why)
	groups := s.groups
	s.groups = nil
	s.thaw()
	s.mu.Unlock()
	for _, g := range groups {
		g.signal(syscall.SIGKILL)
	}
}

// Start implements sandbox.Sandbox.
func (s *Sandbox) Start(_ context.Context, cmd sandbox.Command) (sandbox.Process, error) {
	if err := s.check("start"); err != nil {
		return nil, err
	}
	run, err := s.program(cmd.Path)
	if err != nil {
		return nil, &sandbox.ExecError{Path: cmd.Path, Err: err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note("start %s", cmd.Party)
	g := &group{sandbox: s, party: cmd.Party, drained: make(chan struct{})}
	s.groups = append(s.groups, g)
	p := g.add(cmd)
	g.first = p
	if s.attempts == nil {
		s.attempts = map[string]int{}
	}
	s.attempts[cmd.Party]++
	p.attempt = s.attempts[cmd.Party]
	go p.run(run)
	return g, nil
}

func (s *Sandbox) program(path string) (Program, error) {
	if f, ok := s.driver.Files[path]; ok {
		switch {
		case f.Err != nil:
			return nil, f.Err
		case f.Mode != 0 && f.Mode&0o111 == 0:
			return nil, syscall.EACCES
		case f.Run == nil:
			return nil, syscall.ENOEXEC
		}
		return f.Run, nil
	}
	p := s.host(path)
	if p == "" {
		return nil, syscall.ENOENT
	}
	fi, err := os.Stat(p)
	switch {
	case err != nil:
		return nil, syscall.ENOENT
	case fi.IsDir() || fi.Mode()&0o111 == 0:
		return nil, syscall.EACCES
	case s.driver.Exec == nil:
		return nil, syscall.ENOEXEC
	}
	return s.driver.Exec, nil
}

// group is a process group: what Start made and its forks.
type group struct {
	sandbox *Sandbox
	party   string
	first   *Proc

	mu      sync.Mutex
	procs   []*Proc
	living  int
	drained chan struct{}
}

func (g *group) add(cmd sandbox.Command) *Proc {
	p := &Proc{Command: cmd, group: g, killed: make(chan struct{}), done: make(chan struct{}), conns: map[net.Conn]bool{}}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.procs = append(g.procs, p)
	g.living++
	return p
}

func (g *group) alive() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.living
}

func (g *group) PID() int { return 0 }

func (g *group) Signal(sig syscall.Signal) error {
	g.sandbox.mu.Lock()
	frozen := ""
	if g.sandbox.frozen {
		frozen = "frozen: "
	}
	g.sandbox.note("%ssignal %s %s", frozen, g.party, sig)
	g.sandbox.mu.Unlock()
	g.signal(sig)
	return nil
}

func (g *group) signal(sig syscall.Signal) {
	g.mu.Lock()
	procs := slices.Clone(g.procs)
	g.mu.Unlock()
	for _, p := range procs {
		p.signal(sig)
	}
}

func (g *group) Done() <-chan struct{}    { return g.first.done }
func (g *group) Exit() sandbox.Exit       { return g.first.exit }
func (g *group) Drained() <-chan struct{} { return g.drained }

// A Proc is a fake process as its program sees it.
type Proc struct {
	sandbox.Command
	group *group

	mu      sync.Mutex
	exited  bool
	exit    sandbox.Exit
	killed  chan struct{}
	done    chan struct{}
	conns   map[net.Conn]bool
	handler chan syscall.Signal
	ended   atomic.Bool
	attempt int
}

func (p *Proc) run(program Program) {
	p.finish(program(p))
}

// finish is the end of the process, by itself or by a signal; the first counts.
func (p *Proc) finish(exit sandbox.Exit) {
	p.mu.Lock()
	if p.exited {
		p.mu.Unlock()
		return
	}
	p.exited, p.exit = true, exit
	p.ended.Store(true)
	conns := p.conns
	p.conns = nil
	p.mu.Unlock()
	close(p.killed)
	for c := range conns {
		c.Close()
	}
	close(p.done)
	g := p.group
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.living--; g.living == 0 {
		close(g.drained)
	}
}

func (p *Proc) signal(sig syscall.Signal) {
	if sig != syscall.SIGKILL {
		p.mu.Lock()
		h := p.handler
		p.mu.Unlock()
		if h != nil {
			select {
			case h <- sig:
			default:
			}
			return
		}
	}
	p.finish(sandbox.Exit{Signal: sig})
}

// ReadFile reads a file of the mounts.
func (p *Proc) ReadFile(inside string) ([]byte, error) {
	host := p.group.sandbox.host(inside)
	if host == "" {
		return nil, &fs.PathError{Op: "open", Path: inside, Err: fs.ErrNotExist}
	}
	return os.ReadFile(host)
}

// Attempt counts the processes of this party in the sandbox: 1 for the first.
func (p *Proc) Attempt() int { return p.attempt }

// Killed is closed when the process has ended; its program must return.
func (p *Proc) Killed() <-chan struct{} { return p.killed }

// Signals returns a channel of signals, which then no longer end the process.
// SIGKILL always does.
func (p *Proc) Signals() <-chan syscall.Signal {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.handler == nil {
		p.handler = make(chan syscall.Signal, 8)
	}
	return p.handler
}

// Kill ends the process by a signal, as from outside.
func (p *Proc) Kill(sig syscall.Signal) { p.finish(sandbox.Exit{Signal: sig}) }

// Exit ends the process, from any goroutine.
func (p *Proc) Exit(exit sandbox.Exit) { p.finish(exit) }

// OOM ends the process as the kernel does when memory runs out.
func (p *Proc) OOM() {
	s := p.group.sandbox
	s.mu.Lock()
	s.oom++
	s.mu.Unlock()
	p.finish(sandbox.Exit{Signal: syscall.SIGKILL})
}

// Fork starts another process in the same group with the same output.
func (p *Proc) Fork(program Program) {
	if p.ended.Load() {
		return
	}
	c := p.group.add(p.Command)
	go c.run(program)
}

// Getenv returns a variable of the environment, "" when it is not set.
func (p *Proc) Getenv(key string) string {
	for i := len(p.Env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(p.Env[i], key+"="); ok {
			return v
		}
	}
	return ""
}

// gate waits while the sandbox is frozen; it reports false when the process has
// ended.
func (p *Proc) gate() bool {
	for {
		s := p.group.sandbox
		s.mu.Lock()
		thawed := s.thawed
		frozen := s.frozen
		s.mu.Unlock()
		if p.ended.Load() {
			return false
		}
		if !frozen {
			return true
		}
		select {
		case <-thawed:
		case <-p.killed:
			return false
		}
	}
}

// Sleep waits d, and longer while frozen. It reports false when the process has
// ended.
func (p *Proc) Sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return p.gate()
	case <-p.killed:
		return false
	}
}

// Print writes a line to standard output.
func (p *Proc) Print(args ...any) { fmt.Fprintln(p.Output(), args...) }

// Output is standard output.
func (p *Proc) Output() io.Writer { return output{p, p.Stdout} }

// Errors is standard error.
func (p *Proc) Errors() io.Writer { return output{p, p.Stderr} }

type output struct {
	p *Proc
	w io.Writer
}

func (o output) Write(b []byte) (int, error) {
	if !o.p.gate() || o.w == nil {
		return 0, syscall.EPIPE
	}
	return o.w.Write(b)
}

// Dial connects to a listener of the sandbox.
func (p *Proc) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if !p.gate() {
		return nil, syscall.ECONNABORTED
	}
	c, err := p.group.sandbox.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	w := &conn{Conn: c, p: p}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exited {
		c.Close()
		return nil, syscall.ECONNABORTED
	}
	p.conns[w] = true
	return w, nil
}

// Listen opens a listener inside the sandbox. It outlives the process only
// until somebody closes it.
func (p *Proc) Listen(addr string) (net.Listener, error) { return p.group.sandbox.Listen(addr) }

type conn struct {
	net.Conn
	p *Proc
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if !c.p.gate() {
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	if !c.p.gate() {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(b)
}

func (c *conn) Close() error {
	c.p.mu.Lock()
	delete(c.p.conns, c)
	c.p.mu.Unlock()
	return c.Conn.Close()
}

// Client returns an HTTP client whose connections end with the process.
func (p *Proc) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, addr string) (net.Conn, error) { return p.Dial(ctx, addr) },
		DisableCompression: true,
	}}
}

// URL is the base of the environment's APIs.
func (p *Proc) URL() string { return "http://" + p.Getenv("AWS_LAMBDA_RUNTIME_API") }
