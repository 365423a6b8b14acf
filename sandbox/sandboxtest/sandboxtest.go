// Package sandboxtest is the suite every sandbox driver passes.
//
// It runs a small static program (directory probe, built once per test binary)
// inside real sandboxes and looks from both sides. What a tier does not promise
// is left out by Options, never tolerated.
package sandboxtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lambdad/lambdad/sandbox"
)

// Options say what the driver under test promises beyond running processes.
type Options struct {
	// Isolates: own root, network and users; paths inside are themselves.
	Isolates bool
	// SameUser: programs have the user id of the sandbox's own init.
	SameUser bool
	// Limits: memory, processes and processor time.
	Limits bool
	// ProcessLimit: processes at least.
	ProcessLimit bool
	// Freezes: sandboxes implement Freezer.
	Freezes bool
	// TmpOnDisk: /tmp has its size and is not memory; otherwise it is.
	TmpOnDisk bool
	// Parallel is how many sandboxes the leak test makes; 0: 200.
	Parallel int
	// Leaks, when not nil, describes what exists on the host because of the
	// driver. It is compared before and after.
	Leaks func(t *testing.T) string
}

// RequireRoot skips a test that needs root, or fails it where the owner of the
// machine said there is root (LAMBDAD_TEST_ROOT=1).
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("LAMBDAD_TEST_ROOT") == "1" {
		t.Fatal("needs root, and LAMBDAD_TEST_ROOT says that there is")
	}
	t.Skip("needs root")
}

// Patience is how long anything in the suite may take.
const Patience = 30 * time.Second

// ProbeVariable names the environment variable with a directory that has the built
// probe already, for test binaries that run where there is no compiler.
const ProbeVariable = "SANDBOXTEST_PROBE"

// BuildProbe builds the program that runs inside and returns its directory.
func BuildProbe(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv(ProbeVariable); dir != "" {
		return dir
	}
	dir := t.TempDir()
	// Any user must be able to execute it: the suite's sandboxes run as others.
	for d := dir; d != "/" && len(d) > len(os.TempDir()); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "probe"), "github.com/lambdad/lambdad/sandbox/sandboxtest/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the probe: %v\n%s", err, out)
	}
	return dir
}

// Run runs the suite. open makes a driver, swept and ready, and closes it when
// its test ends.
func Run(t *testing.T, open func(t *testing.T) sandbox.Driver, o Options) {
	s := &suite{o: o, probe: BuildProbe(t)}
	for _, c := range []struct {
		name string
		when bool
		f    func(t *testing.T, s *suite)
	}{
		{"exit", true, testExit},
		{"exec errors", true, testExecErrors},
		{"output", true, testOutput},
		{"output outlives the process", true, testHeir},
		{"environment", true, testEnvironment},
		{"directory", true, testDirectory},
		{"signals", true, testSignals},
		{"listen", true, testListen},
		{"dial", true, testDial},
		{"same port twice", o.Isolates, testSamePort},
		{"trees", true, testTrees},
		{"hostile links", true, testHostileLinks},
		{"read-only", o.Isolates, testReadOnly},
		{"tmp", true, testTmp},
		{"tmp is empty and harmless", o.Isolates, testTmpFresh},
		{"tmp has its size", o.TmpOnDisk, testTmpSize},
		{"tmp full", o.Isolates, testTmpFull},
		{"hostile program", o.Isolates, testHostile},
		{"reset", true, testReset},
		{"reset against daemons", o.Isolates, testResetDaemons},
		{"reset against a fork bomb", o.Limits || o.ProcessLimit, testResetBomb},
		{"freeze", o.Freezes, testFreeze},
		{"freeze what forks", o.Freezes, testFreezeForks},
		{"destroy while frozen", o.Freezes, testDestroyFrozen},
		{"reset while frozen", o.Freezes, testResetFrozen},
		{"processor limit", o.Limits, testCPU},
		{"throttled loops end", o.Limits, testThrottled},
		{"memory limit", o.Limits, testMemoryLimit},
		{"out of memory in a child", o.Limits, testChildOOM},
		{"process limit", o.Limits || o.ProcessLimit, testProcesses},
		{"peak memory", o.Limits, testPeak},
		{"usage", true, testUsage},
		{"after destroy", true, testAfterDestroy},
		{"cancelled start", true, testCancelled},
		{"many", true, testMany},
	} {
		if !c.when {
			continue // this tier does not promise it
		}
		t.Run(c.name, func(t *testing.T) {
			run := *s
			run.d = open(t)
			c.f(t, &run)
		})
	}
}

type suite struct {
	o     Options
	d     sandbox.Driver
	probe string
}

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return c
}

// create makes a sandbox with the probe at /var/task.
func (s *suite) create(t testing.TB, edit ...func(*sandbox.Spec)) sandbox.Sandbox {
	t.Helper()
	spec := sandbox.Spec{
		ID: fmt.Sprintf("t%d", nextID()), TmpBytes: 512 << 20, MemoryBytes: 512 << 20,
		Mounts: []sandbox.Mount{{Target: "/var/task", Sources: []string{s.probe}}, {Target: "/opt"}},
	}
	for _, f := range edit {
		f(&spec)
	}
	b, err := s.d.Create(ctx(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return b
}

// nextID makes names that no other test of this process uses.
func nextID() int64 { return time.Now().UnixNano() }

// A run is one started probe and what it wrote.
type run struct {
	sandbox.Process
	t        testing.TB
	out, err *buffer
}

// A buffer collects output and lets tests wait for it.
type buffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	more chan struct{}
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Write(p)
	close(b.more)
	b.more = make(chan struct{})
	return len(p), nil
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// await waits until the text is there.
func (r *run) await(text string) {
	r.t.Helper()
	limit := time.After(Patience)
	for {
		r.out.mu.Lock()
		ok, more := strings.Contains(r.out.b.String(), text), r.out.more
		r.out.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-more:
		case <-r.Drained():
			if !strings.Contains(r.out.String(), text) {
				r.t.Fatalf("%q never came; stdout %q, stderr %q, ended %v", text, r.out, r.err, r.Exit())
			}
		case <-limit:
			r.t.Fatalf("%q did not come in time; stdout %q, stderr %q", text, r.out, r.err)
		}
	}
}

// wait waits for the end and for all output.
func (r *run) wait() sandbox.Exit {
	r.t.Helper()
	for _, c := range []<-chan struct{}{r.Done(), r.Drained()} {
		select {
		case <-c:
		case <-time.After(Patience):
			r.t.Fatalf("did not end in time; stdout %q, stderr %q", r.out, r.err)
		}
	}
	return r.Exit()
}

// ended insists that the process is gone within d.
func (r *run) ended(d time.Duration) {
	r.t.Helper()
	select {
	case <-r.Done():
	case <-time.After(d):
		r.t.Fatalf("process still there after %v", d)
	}
}

// start runs the probe as a party.
func start(t testing.TB, b sandbox.Sandbox, party string, args ...string) *run {
	t.Helper()
	return startCommand(t, b, sandbox.Command{Party: party, Path: b.Path("/var/task/probe"), Args: append([]string{"probe"}, args...)})
}

func startCommand(t testing.TB, b sandbox.Sandbox, cmd sandbox.Command) *run {
	t.Helper()
	r := &run{t: t, out: &buffer{more: make(chan struct{})}, err: &buffer{more: make(chan struct{})}}
	cmd.Stdout, cmd.Stderr = r.out, r.err
	var err error
	if r.Process, err = b.Start(ctx(t), cmd); err != nil {
		t.Fatal(err)
	}
	return r
}

func testExit(t *testing.T, s *suite) {
	b := s.create(t)
	for _, code := range []int{0, 1, 7, 255} {
		if got := start(t, b, "runtime", "exit", fmt.Sprint(code)).wait(); got != (sandbox.Exit{Code: code}) {
			t.Errorf("exit %d: got %v", code, got)
		}
	}
	if got := (sandbox.Exit{Code: 1}).String(); got != "exit status 1" {
		t.Errorf("String: %q", got)
	}
	r := start(t, b, "runtime", "sleep")
	r.await("ready")
	if pid := r.PID(); pid != 0 {
		if err := syscall.Kill(pid, 0); err != nil {
			t.Errorf("PID %d: %v", pid, err)
		}
	}
	if err := r.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	if got := r.wait(); got != (sandbox.Exit{Signal: syscall.SIGKILL}) || got.String() != "signal: killed" {
		t.Errorf("killed: got %v", got)
	}
	if err := r.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("signal to a group that is gone: %v", err)
	}
}

func testExecErrors(t *testing.T, s *suite) {
	dir := t.TempDir()
	open(t, dir)
	write(t, filepath.Join(dir, "plain"), "no program", 0o644)
	write(t, filepath.Join(dir, "garbage"), "\x01\x02 no program", 0o755)
	write(t, filepath.Join(dir, "script"), "#!/no/such/interpreter\n", 0o755)
	write(t, filepath.Join(dir, "empty"), "", 0o755)
	b := s.create(t, func(spec *sandbox.Spec) {
		spec.Mounts = append(spec.Mounts, sandbox.Mount{Target: "/var/runtime", Sources: []string{dir}})
	})
	for _, c := range []struct {
		path string
		dir  string
		want syscall.Errno
		text string
	}{
		{"/var/runtime/missing", "", syscall.ENOENT, "no such file or directory"},
		{"/var/runtime/plain", "", syscall.EACCES, "permission denied"},
		{"/var/runtime/garbage", "", syscall.ENOEXEC, "exec format error"},
		{"/var/runtime/empty", "", syscall.ENOEXEC, "exec format error"},
		{"/var/runtime/script", "", syscall.ENOENT, "no such file or directory"},
		{"/var/runtime", "", syscall.EACCES, "permission denied"},
		{"/var/runtime/plain/x", "", syscall.ENOTDIR, "not a directory"},
		{"/var/task/probe", "/var/runtime/missing", syscall.ENOENT, "no such file or directory"},
	} {
		inside := b.Path(c.path)
		cmd := sandbox.Command{Party: "runtime", Path: inside}
		if c.dir != "" {
			cmd.Dir = b.Path(c.dir)
		}
		_, err := b.Start(ctx(t), cmd)
		var exec *sandbox.ExecError
		if !errors.As(err, &exec) || !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.path, err, c.want)
			continue
		}
		if got, want := err.Error(), "fork/exec "+inside+": "+c.text; got != want {
			t.Errorf("%s: text %q, want %q", c.path, got, want)
		}
	}
	long := strings.Repeat("x", 300<<10)
	if _, err := b.Start(ctx(t), sandbox.Command{Party: "runtime", Path: b.Path("/var/task/probe"), Args: []string{"probe", "echo", long}}); !errors.Is(err, syscall.E2BIG) {
		t.Errorf("an argument of 300 KiB: got %v, want E2BIG", err)
	}
	// After failures the sandbox is as good as new.
	if got := start(t, b, "runtime", "exit", "3").wait(); got.Code != 3 {
		t.Errorf("after failures: %v", got)
	}
}

func testOutput(t *testing.T, s *suite) {
	b := s.create(t)
	r := start(t, b, "runtime", "lines", "20000")
	r.wait()
	var want strings.Builder
	for i := range 20000 {
		fmt.Fprintln(&want, "line", i)
	}
	if r.out.String() != want.String() {
		t.Errorf("output differs: %d bytes, want %d", len(r.out.String()), want.Len())
	}
	// A writer that fails must not stop the program.
	p, err := b.Start(ctx(t), sandbox.Command{Party: "runtime", Path: b.Path("/var/task/probe"), Args: []string{"probe", "lines", "20000"}, Stdout: failing{}})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	<-p.Drained()
	if p.Exit().Code != 0 {
		t.Errorf("with a failing writer: %v", p.Exit())
	}
	// The log descriptor is there with a writer, and only then.
	for _, with := range []bool{true, false} {
		var log bytes.Buffer
		cmd := sandbox.Command{Party: "runtime", Path: b.Path("/var/task/probe"), Args: []string{"probe", "log", fmt.Sprint(sandbox.LogFD)}}
		if with {
			cmd.Log = &log
		}
		p, err := b.Start(ctx(t), cmd)
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		<-p.Drained()
		if (p.Exit().Code == 0) != with || (log.String() == "logged") != with {
			t.Errorf("log descriptor, %v: %v, %q", with, p.Exit(), log.String())
		}
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("no") }

func testHeir(t *testing.T, s *suite) {
	b := s.create(t)
	r := start(t, b, "runtime", "heir", "200")
	r.ended(Patience)
	select {
	case <-r.Drained():
		t.Error("drained while a grandchild holds the pipe")
	default:
	}
	r.wait()
	if got := r.out.String(); got != "late\n" {
		t.Errorf("output %q", got)
	}
}

func testEnvironment(t *testing.T, s *suite) {
	b := s.create(t)
	for _, env := range [][]string{nil, {"A=1", "B=two words", "PATH=/x", "EMPTY="}, {"BIG=" + strings.Repeat("e", 60<<10)}} {
		r := startCommand(t, b, sandbox.Command{Party: "runtime", Path: b.Path("/var/task/probe"), Args: []string{"probe", "env"}, Env: env})
		r.wait()
		got := strings.Split(strings.TrimSuffix(r.out.String(), "\n"), "\n")
		if len(env) == 0 && r.out.String() == "" {
			continue
		}
		if !slices.Equal(got, env) {
			t.Errorf("environment %.200q, want %.200q", got, env)
		}
	}
}

func testDirectory(t *testing.T, s *suite) {
	b := s.create(t)
	for _, dir := range []string{"/", "/var/task", "/tmp"} {
		want := b.Path(dir)
		r := startCommand(t, b, sandbox.Command{Party: "runtime", Path: b.Path("/var/task/probe"), Args: []string{"probe", "cwd"}, Dir: want})
		r.wait()
		if got := strings.TrimSpace(r.out.String()); got != want {
			t.Errorf("directory %q, want %q", got, want)
		}
	}
}

func testSignals(t *testing.T, s *suite) {
	b := s.create(t)
	polite, stubborn := start(t, b, "runtime", "term"), start(t, b, "ext", "stubborn")
	polite.await("ready")
	stubborn.await("ready")
	for _, r := range []*run{polite, stubborn} {
		if err := r.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	if got := polite.wait(); got.Code != 0 || !strings.Contains(polite.out.String(), "terminated") {
		t.Errorf("SIGTERM: %v, %q", got, polite.out)
	}
	select {
	case <-stubborn.Done():
		t.Error("a process that ignores SIGTERM ended")
	default:
	}
	if err := stubborn.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	stubborn.ended(time.Second)
	// The runtime's end is not the extension's.
	ext, rt := start(t, b, "ext", "sleep"), start(t, b, "runtime", "exit", "0")
	rt.wait()
	ext.await("ready")
	if err := ext.Signal(0); err != nil {
		t.Error(err)
	}
	select {
	case <-ext.Done():
		t.Error("an extension ended with the runtime")
	default:
	}
}

func testListen(t *testing.T, s *suite) {
	b := s.create(t)
	l, err := b.Listen("127.0.0.1:9001")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello "+r.URL.Path) })}
	defer srv.Close()
	go func() { _ = srv.Serve(l) }()
	if s.o.Isolates && l.Addr().String() != "127.0.0.1:9001" {
		t.Errorf("address %s", l.Addr())
	}
	urls := []string{"http://" + l.Addr().String() + "/x"}
	if s.o.Isolates {
		urls = append(urls, "http://localhost:9001/x", "http://sandbox:9001/x", "http://sandbox.localdomain:9001/x")
	}
	for _, u := range urls {
		r := start(t, b, "runtime", "get", u)
		if e := r.wait(); e.Code != 0 || r.out.String() != "hello /x" {
			t.Errorf("%s: %v, %q %q", u, e, r.out, r.err)
		}
	}
}

func testDial(t *testing.T, s *suite) {
	b := s.create(t)
	r := start(t, b, "ext", "serve", "127.0.0.1:0")
	r.await("\n")
	_, addr, _ := strings.Cut(strings.TrimSpace(r.out.String()), " ")
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatalf("%q: %v", r.out, err)
	}
	for _, host := range []string{"127.0.0.1", "sandbox", "sandbox.localdomain", "localhost"} {
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return b.Dial(ctx, addr) }}}
		resp, err := c.Get("http://" + net.JoinHostPort(host, port))
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != "from inside" {
			t.Errorf("%s: %q", host, body)
		}
	}
	if c, err := b.Dial(ctx(t), "127.0.0.1:1"); err == nil {
		c.Close()
		t.Error("dial to a closed port succeeded")
	} else if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial to a closed port: %v", err)
	}
	done, cancel := context.WithCancel(context.Background())
	cancel()
	if c, err := b.Dial(done, net.JoinHostPort("127.0.0.1", port)); err == nil {
		c.Close()
	}
}

func testSamePort(t *testing.T, s *suite) {
	for range 3 {
		if _, err := s.create(t).Listen("127.0.0.1:9001"); err != nil {
			t.Error(err)
		}
	}
}

func open(t testing.TB, dir string) {
	t.Helper()
	for d := dir; d != "/" && len(d) > len(os.TempDir()); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func write(t testing.TB, name, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

func testTrees(t *testing.T, s *suite) {
	one, two, three := t.TempDir(), t.TempDir(), t.TempDir()
	for _, d := range []string{one, two, three} {
		open(t, d)
	}
	write(t, one+"/both", "one", 0o644)
	write(t, one+"/dir/a", "a", 0o755)
	write(t, one+"/swap/x", "directory below", 0o644)
	write(t, two+"/both", "two", 0o644)
	write(t, two+"/dir/b", "b", 0o644)
	write(t, three+"/both", "three", 0o644)
	write(t, three+"/swap", "file above", 0o644)
	if err := os.Symlink("dir/a", two+"/link"); err != nil {
		t.Fatal(err)
	}
	b := s.create(t, func(spec *sandbox.Spec) {
		spec.Mounts[1].Sources = []string{one, two, three}
		spec.Mounts = append(spec.Mounts, sandbox.Mount{Target: "/var/runtime"})
	})
	for inside, want := range map[string]string{"/opt/both": "three", "/opt/dir/a": "a", "/opt/dir/b": "b", "/opt/swap": "file above", "/opt/link": "a"} {
		r := start(t, b, "runtime", "cat", b.Path(inside))
		if r.wait(); r.out.String() != want {
			t.Errorf("%s: %q %q, want %q", inside, r.out, r.err, want)
		}
	}
	names := func(dir string) string {
		list, err := b.ReadDir(dir)
		if err != nil {
			return err.Error()
		}
		var n []string
		for _, e := range list {
			n = append(n, e.Name())
			if _, err := e.Info(); err != nil {
				t.Errorf("%s: %v", e.Name(), err)
			}
		}
		return strings.Join(n, " ")
	}
	for dir, want := range map[string]string{"/opt": "both dir link swap", "/opt/dir": "a b", "/var/task": "probe", "/var/runtime": ""} {
		if got := names(dir); got != want {
			t.Errorf("ReadDir %s: %q, want %q", dir, got, want)
		}
	}
	if info, err := b.Stat("/opt/dir/a"); err != nil || info.Mode().Perm() != 0o755 || info.Size() != 1 {
		t.Errorf("Stat: %v %v", info, err)
	}
	for _, missing := range []string{"/opt/none", "/opt/dir/none/x", "/var/lang", "/nowhere"} {
		if _, err := b.Stat(missing); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Stat %s: %v, want not exist", missing, err)
		}
		if _, err := b.ReadDir(missing); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("ReadDir %s: %v, want not exist", missing, err)
		}
	}
	if _, err := b.ReadDir("/opt/both"); err == nil {
		t.Error("ReadDir of a file succeeded")
	}
}

// testHostileLinks: what a stranger wrote must never lead the daemon to a file of
// the host.
func testHostileLinks(t *testing.T, s *suite) {
	secret := t.TempDir()
	write(t, secret+"/host-secret", "secret", 0o644)
	for _, layers := range []int{1, 2} {
		dir := t.TempDir()
		open(t, dir)
		write(t, dir+"/extensions/good", "#!", 0o755)
		for name, to := range map[string]string{
			"abs": secret, "file": secret + "/host-secret", "up": "../../../../../../../../../.." + secret, "etc": "/etc",
			"proc": "/proc/self/root" + secret, "loop": "loop", "self": ".", "extensions/ext": secret + "/host-secret",
		} {
			if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		sources := []string{dir}
		if layers == 2 {
			other := t.TempDir()
			open(t, other)
			sources = append(sources, other)
		}
		b := s.create(t, func(spec *sandbox.Spec) { spec.Mounts[1].Sources = sources })
		for _, name := range []string{"abs", "up", "proc", "etc", "loop", "self/abs", "abs/host-secret"} {
			if list, err := b.ReadDir("/opt/" + name); err == nil {
				for _, e := range list {
					if e.Name() == "host-secret" || e.Name() == "passwd" {
						t.Errorf("%d layers: ReadDir /opt/%s shows the host: %v", layers, name, list)
					}
				}
			}
		}
		for _, name := range []string{"file", "abs/host-secret", "up/host-secret", "etc/passwd", "proc/host-secret", "loop", "extensions/ext", "../etc/passwd", "../../etc/passwd"} {
			if info, err := b.Stat("/opt/" + name); err == nil {
				t.Errorf("%d layers: Stat /opt/%s shows the host: %v", layers, name, info)
			}
		}
		list, err := b.ReadDir("/opt/extensions")
		if err != nil || len(list) != 2 || list[0].Name() != "ext" || list[0].Type()&os.ModeSymlink == 0 || list[1].Name() != "good" {
			t.Errorf("%d layers: ReadDir /opt/extensions: %v %v", layers, list, err)
		}
	}
}

func testReadOnly(t *testing.T, s *suite) {
	dir := t.TempDir()
	open(t, dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	b := s.create(t, func(spec *sandbox.Spec) { spec.Mounts[1].Sources = []string{dir} })
	for _, name := range []string{"/opt/x", "/var/task/x", "/x", "/usr/x", "/etc/x", "/var/x", "/dev/x"} {
		r := start(t, b, "runtime", "put", name, "x")
		if e := r.wait(); e.Code == 0 {
			t.Errorf("wrote %s", name)
		} else if name == "/opt/x" && !strings.Contains(r.err.String(), "read-only file system") {
			t.Errorf("%s: %q", name, r.err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("on the host: %v", entries)
	}
}

func testTmp(t *testing.T, s *suite) {
	a, b := s.create(t), s.create(t)
	name := a.Path("/tmp/kept")
	if e := start(t, a, "runtime", "put", name, "content").wait(); e.Code != 0 {
		t.Fatal("cannot write to /tmp")
	}
	if s.o.Isolates {
		if e := start(t, b, "runtime", "exists", name).wait(); e.Code == 0 {
			t.Error("/tmp of one sandbox is seen in another")
		}
	} else if a.Path("/tmp/kept") == b.Path("/tmp/kept") {
		t.Error("two sandboxes share /tmp")
	}
	if err := a.Reset(ctx(t)); err != nil {
		t.Fatal(err)
	}
	r := start(t, a, "ext", "cat", name)
	if r.wait(); r.out.String() != "content" {
		t.Errorf("after Reset: %q %q", r.out, r.err)
	}
	if _, err := os.Lstat("/tmp/kept"); err == nil {
		t.Error("written to the host's /tmp")
	}
}

// testTmpFresh: nothing of others is in /tmp, and nothing in it has powers.
func testTmpFresh(t *testing.T, s *suite) {
	for range 2 { // the second sandbox after the first has written
		b := s.create(t)
		r := start(t, b, "runtime", "stat", "/tmp")
		if r.wait(); r.out.String() != "dtrwxrwxrwx 0\n" {
			t.Errorf("/tmp: %q %q", r.out, r.err)
		}
		r = start(t, b, "runtime", "cat", "/proc/self/mountinfo")
		r.wait()
		found := false
		for line := range strings.Lines(r.out.String()) {
			if f := strings.Fields(line); len(f) > 5 && f[4] == "/tmp" {
				found = true
				for _, option := range []string{"rw", "nosuid", "nodev"} {
					if !slices.Contains(strings.Split(f[5], ","), option) {
						t.Errorf("/tmp is not %s: %s", option, line)
					}
				}
			}
		}
		if !found {
			t.Errorf("/tmp is no mount of its own:\n%s", r.out)
		}
		if e := start(t, b, "runtime", "put", "/tmp/x", "content").wait(); e.Code != 0 {
			t.Errorf("writing: %v", e)
		}
		if err := b.Destroy(ctx(t)); err != nil {
			t.Error(err)
		}
	}
}

// testTmpSize: what was promised can be written, in one file and in many, in
// less memory than that, and once it is deleted again.
func testTmpSize(t *testing.T, s *suite) {
	for _, size := range []int64{60, 512} {
		b := s.create(t, func(spec *sandbox.Spec) { spec.TmpBytes, spec.MemoryBytes = size<<20, 128<<20 })
		for _, files := range []int64{1, size / 4, 1} {
			r := start(t, b, "runtime", "pour", "/tmp/x", fmt.Sprint(files), fmt.Sprint(size<<20/files))
			if e := r.wait(); e.Code != 0 || r.out.String() != "done\n" {
				t.Errorf("%d MiB in %d files: %v, %q %q", size, files, e, r.out, r.err)
			}
		}
		u, err := b.Usage()
		if err != nil || u.OOMKills != 0 {
			t.Errorf("%+v %v", u, err)
		}
		if err := b.Destroy(ctx(t)); err != nil {
			t.Error(err)
		}
	}
}

// testTmpFull: filling /tmp is an error for who does it. On disk that is all, and
// the next program finds it as it was left; in memory the limit may come first.
func testTmpFull(t *testing.T, s *suite) {
	b := s.create(t, func(spec *sandbox.Spec) {
		spec.TmpBytes, spec.MemoryBytes = s.tmpCounts(200, 60)<<20, 128<<20
	})
	for range 2 {
		r := start(t, b, "runtime", "pour", "/tmp/x", "1", "1073741824")
		if e := r.wait(); e.Code != 1 || !strings.Contains(r.err.String(), "no space left on device") {
			t.Errorf("%v, %q %q", e, r.out, r.err)
		}
		if err := b.Reset(ctx(t)); err != nil {
			t.Fatal(err)
		}
	}
	u, err := b.Usage()
	if err != nil || u.OOMKills != 0 {
		t.Errorf("%+v %v", u, err)
	}
	if e := start(t, b, "runtime", "put", "/tmp/x0", "").wait(); e.Code != 0 {
		t.Errorf("making it empty: %v", e)
	}
	if e := start(t, b, "runtime", "put", "/tmp/y", "content").wait(); e.Code != 0 {
		t.Errorf("writing after that: %v", e)
	}
	r := start(t, b, "runtime", "pour", "/tmp/z", "1", "1073741824")
	r.wait()
	began := time.Now()
	if err := b.Destroy(ctx(t)); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 250*time.Millisecond {
		t.Errorf("Destroy with a full /tmp took %v", took)
	}
}

func testHostile(t *testing.T, s *suite) {
	b := s.create(t)
	user := "other-user"
	if s.o.SameUser {
		user = "same-user"
	}
	r := start(t, b, "runtime", "hostile", user)
	r.wait()
	if got := r.out.String(); got != "done\n" {
		t.Errorf("possible inside:\n%s%s", got, r.err)
	}
}

func testReset(t *testing.T, s *suite) {
	b := s.create(t)
	l, err := b.Listen("127.0.0.1:9001")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 3 {
		rt, ext := start(t, b, "runtime", "stubborn"), start(t, b, "ext", "stubborn")
		rt.await("ready")
		ext.await("ready")
		if err := b.Reset(ctx(t)); err != nil {
			t.Fatal(err)
		}
		for _, r := range []*run{rt, ext} {
			r.ended(time.Second)
			if r.wait(); r.Exit().Signal != syscall.SIGKILL {
				t.Errorf("ended by %v", r.Exit())
			}
		}
		if u, err := b.Usage(); err != nil || u.Processes != 0 {
			t.Errorf("after Reset: %+v %v", u, err)
		}
	}
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
	}()
	if c, err := b.Dial(ctx(t), l.Addr().String()); err != nil {
		t.Errorf("the listener is gone after Reset: %v", err)
	} else {
		c.Close()
	}
	if err := b.Reset(ctx(t)); err != nil {
		t.Errorf("Reset of an empty sandbox: %v", err)
	}
}

func testResetDaemons(t *testing.T, s *suite) {
	b := s.create(t)
	r := start(t, b, "runtime", "daemons", "5")
	r.await("ready")
	if u, err := b.Usage(); err != nil || u.Processes < 6 {
		t.Errorf("before Reset: %+v %v", u, err)
	}
	if err := b.Reset(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if u, err := b.Usage(); err != nil || u.Processes != 0 {
		t.Errorf("after Reset: %+v %v", u, err)
	}
}

func testResetBomb(t *testing.T, s *suite) {
	b := s.create(t, func(spec *sandbox.Spec) { spec.MaxProcesses = 200 })
	start(t, b, "runtime", "bomb")
	await(t, "the bomb to grow", func() bool { u, err := b.Usage(); return err == nil && u.Processes > 60 })
	if err := b.SetCPU(0.07); err != nil {
		t.Fatal(err)
	}
	if err := b.Reset(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if u, err := b.Usage(); err != nil || u.Processes != 0 {
		t.Errorf("after Reset: %+v %v", u, err)
	}
	if e := start(t, b, "runtime", "exit", "0").wait(); e.Code != 0 {
		t.Errorf("after Reset: %v", e)
	}
}

// await polls for something the kernel does not announce.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(Patience); !ok(); {
		if time.Now().After(limit) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func freezer(t testing.TB, b sandbox.Sandbox) sandbox.Freezer {
	t.Helper()
	f, ok := b.(sandbox.Freezer)
	if !ok {
		t.Fatal("the sandbox is no Freezer")
	}
	return f
}

func testFreeze(t *testing.T, s *suite)      { freezes(t, s, "tick") }
func testFreezeForks(t *testing.T, s *suite) { freezes(t, s, "forks") }

func freezes(t *testing.T, s *suite, word string) {
	b := s.create(t)
	f := freezer(t, b)
	r := start(t, b, "ext", word)
	for range 5 {
		before := len(r.out.String())
		await(t, "a tick", func() bool { return len(r.out.String()) > before })
		if err := f.Freeze(ctx(t)); err != nil {
			t.Fatal(err)
		}
		if err := f.Freeze(ctx(t)); err != nil {
			t.Errorf("Freeze twice: %v", err)
		}
		// What was written before is in the pipe still.
		settled := ""
		await(t, "the pipe to be empty", func() bool {
			last := settled
			settled = r.out.String()
			time.Sleep(5 * time.Millisecond)
			return last == settled
		})
		time.Sleep(60 * time.Millisecond) // the time in which nothing may happen
		if got := r.out.String(); got != settled {
			t.Fatalf("ticks while frozen: %d bytes more", len(got)-len(settled))
		}
		if stopped := stoppedProcesses(r.PID()); stopped != "" {
			t.Errorf("in stopped state: %s", stopped)
		}
		if u, err := b.Usage(); err != nil || u.Processes == 0 {
			t.Errorf("Usage while frozen: %+v %v", u, err)
		}
		if err := f.Thaw(ctx(t)); err != nil {
			t.Fatal(err)
		}
		if err := f.Thaw(ctx(t)); err != nil {
			t.Errorf("Thaw twice: %v", err)
		}
		await(t, "a tick after thawing", func() bool { return len(r.out.String()) > len(settled) })
	}
}

// stoppedProcesses tells whether a process is stopped by a signal.
func stoppedProcesses(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	if strings.HasPrefix(rest, "T") || strings.HasPrefix(rest, "t") {
		return string(b)
	}
	return ""
}

func testDestroyFrozen(t *testing.T, s *suite) {
	b := s.create(t)
	r := start(t, b, "runtime", "stubborn")
	r.await("ready")
	pid := r.PID()
	if err := freezer(t, b).Freeze(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if err := b.Destroy(ctx(t)); err != nil {
		t.Fatal(err)
	}
	r.ended(time.Second)
	if err := syscall.Kill(pid, 0); err == nil {
		t.Error("the process lives on")
	}
}

func testResetFrozen(t *testing.T, s *suite) {
	b := s.create(t)
	r := start(t, b, "runtime", "stubborn")
	r.await("ready")
	if err := freezer(t, b).Freeze(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if err := b.Reset(ctx(t)); err != nil {
		t.Fatal(err)
	}
	r.ended(time.Second)
	if e := start(t, b, "runtime", "exit", "5").wait(); e.Code != 5 {
		t.Errorf("after Reset: %v", e)
	}
}

func testCPU(t *testing.T, s *suite) {
	b := s.create(t)
	start(t, b, "runtime", "burn", "2").await("ready")
	used := func(d time.Duration) float64 {
		before, err := b.Usage()
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		time.Sleep(d)
		after, err := b.Usage()
		if err != nil {
			t.Fatal(err)
		}
		return float64(after.CPU-before.CPU) / float64(time.Since(began))
	}
	if err := b.SetCPU(0.1); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // the period under way
	if got := used(600 * time.Millisecond); got > 0.16 {
		t.Errorf("used %.2f cores under a limit of 0.10", got)
	}
	if err := b.SetCPU(0); err != nil {
		t.Fatal(err)
	}
	// The host may be busy: more than the limit allowed, at some time, is proof.
	await(t, "more than the limit without one", func() bool { return used(300*time.Millisecond) > 0.16 })
}

// testThrottled: a busy loop under the smallest share is gone within 250 ms.
func testThrottled(t *testing.T, s *suite) {
	hows := []string{"destroy", "reset"}
	if s.o.Freezes {
		hows = append(hows, "destroy frozen")
	}
	for _, how := range hows {
		b := s.create(t)
		r := start(t, b, "runtime", "burn", "8")
		r.await("ready")
		if err := b.SetCPU(0.07); err != nil {
			t.Fatal(err)
		}
		time.Sleep(60 * time.Millisecond) // into debt
		if how == "destroy frozen" {
			if err := b.SetCPU(0); err != nil {
				t.Fatal(err)
			}
			if err := freezer(t, b).Freeze(ctx(t)); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		var err error
		if how == "reset" {
			err = b.Reset(ctx(t))
		} else {
			err = b.Destroy(ctx(t))
		}
		took := time.Since(began)
		if err != nil {
			t.Fatal(err)
		}
		if took > 250*time.Millisecond {
			t.Errorf("%s of a throttled loop took %v", how, took)
		}
	}
}

func testMemoryLimit(t *testing.T, s *suite) {
	b := s.create(t, func(spec *sandbox.Spec) { spec.MemoryBytes = 128 << 20 })
	r := start(t, b, "runtime", "alloc", "400")
	if e := r.wait(); e.Signal != syscall.SIGKILL {
		t.Errorf("400 MiB in 128: %v", e)
	}
	u, err := b.Usage()
	if err != nil || u.OOMKills < 1 {
		t.Errorf("OOMKills: %+v %v", u, err)
	}
	if u.PeakMemory > 160<<20 || u.PeakMemory < 100<<20 {
		t.Errorf("peak %d MiB", u.PeakMemory>>20)
	}
	if e := start(t, b, "runtime", "exit", "0").wait(); e.Code != 0 {
		t.Errorf("after running out of memory: %v", e)
	}
}

func testChildOOM(t *testing.T, s *suite) {
	b := s.create(t, func(spec *sandbox.Spec) { spec.MemoryBytes = 128 << 20 })
	r := start(t, b, "runtime", "alloc-child", "400")
	r.await("child: signal: killed")
	u, err := b.Usage()
	if err != nil || u.OOMKills < 1 {
		t.Errorf("OOMKills: %+v %v", u, err)
	}
	select {
	case <-r.Done():
		t.Error("the parent ended, too")
	default:
	}
}

func testProcesses(t *testing.T, s *suite) {
	b := s.create(t, func(spec *sandbox.Spec) { spec.MaxProcesses = 100 })
	r := start(t, b, "runtime", "many", "400")
	r.await("resource temporarily unavailable")
	u, err := b.Usage()
	if err != nil || u.Processes < 90 || u.Processes > 102 {
		t.Errorf("Usage %+v %v; %s", u, err, r.out)
	}
}

// tmpCounts chooses a figure by the kind of /tmp.
func (s *suite) tmpCounts(onDisk, inMemory int64) int64 {
	if s.o.TmpOnDisk {
		return onDisk
	}
	return inMemory
}

func testPeak(t *testing.T, s *suite) {
	dir := t.TempDir()
	open(t, dir)
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, bytes.Repeat([]byte{1}, 200<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	const mib = 1 << 20
	for _, c := range []struct {
		name     string
		args     []string
		low, top int64 // MiB
	}{
		{"nothing", []string{"sleep"}, 1, 12},
		{"60 MiB held", []string{"alloc", "60"}, 60, 74},
		{"60 MiB held by a child", []string{"alloc-child", "60"}, 60, 80},
		{"100 MiB given back", []string{"peak", "100", "/tmp/x", "0"}, 100, 114},
		{"100 MiB given back, then 120 MiB of /tmp", []string{"peak", "100", "/tmp/x", "120"}, s.tmpCounts(100, 118), s.tmpCounts(116, 134)},
		{"200 MiB of a file read", []string{"read", "/opt/big"}, 1, 14},
		{"200 MiB of /tmp written", []string{"fill", "/tmp/x", "200"}, s.tmpCounts(1, 198), s.tmpCounts(16, 216)},
		{"200 full socket pairs", []string{"sockets", "200"}, 25, 130},
	} {
		b := s.create(t, func(spec *sandbox.Spec) { spec.Mounts[1].Sources = []string{dir} })
		r := start(t, b, "runtime", c.args...)
		if c.args[0] == "alloc-child" {
			await(t, "the child", func() bool { u, _ := b.Usage(); return u.Memory > 59*mib })
		} else {
			r.await("ready")
		}
		sampler, _ := b.(sandbox.Sampler)
		if sampler != nil && c.args[0] != "alloc-child" && !sampler.Grown() {
			t.Errorf("%s: Grown says no before it was measured", c.name)
		}
		u, err := b.Usage()
		if err != nil {
			t.Fatal(err)
		}
		counted := slices.ContainsFunc(s.d.Promises(), func(p sandbox.Promise) bool { return p.Name == "true peak memory" && p.Kept })
		if sampler != nil && c.args[0] == "sleep" && counted {
			await(t, "a process at rest to grow no more", func() bool { b.Usage(); return !sampler.Grown() })
		}
		t.Logf("%s: peak %.1f MiB, now %.1f MiB", c.name, float64(u.PeakMemory)/mib, float64(u.Memory)/mib)
		if u.PeakMemory < c.low*mib || u.PeakMemory > c.top*mib {
			t.Errorf("%s: peak %.1f MiB, want %d to %d", c.name, float64(u.PeakMemory)/mib, c.low, c.top)
		}
		if p := u.Parties["runtime"]; p.PeakMemory > u.PeakMemory+mib || p.PeakMemory < u.PeakMemory-4*mib-u.PeakMemory/10 {
			t.Errorf("%s: the runtime's peak %.1f MiB differs from the whole's %.1f", c.name, float64(p.PeakMemory)/mib, float64(u.PeakMemory)/mib)
		}
		if err := b.Reset(ctx(t)); err != nil {
			t.Fatal(err)
		}
		if c.args[0] == "alloc" {
			if u, err := b.Usage(); err != nil || u.PeakMemory > 20*mib {
				t.Errorf("after Reset the peak is still %d MiB, %v", u.PeakMemory/mib, err)
			}
		}
		if err := b.Destroy(ctx(t)); err != nil {
			t.Error(err)
		}
	}
}

func testUsage(t *testing.T, s *suite) {
	b := s.create(t)
	u, err := b.Usage()
	if err != nil || u.Processes != 0 || u.OOMKills != 0 {
		t.Errorf("at first: %+v %v", u, err)
	}
	start(t, b, "runtime", "alloc", "50").await("ready")
	start(t, b, "ext-a", "alloc", "20").await("ready")
	start(t, b, "ext-b", "sleep").await("ready")
	if u, err = b.Usage(); err != nil {
		t.Fatal(err)
	}
	if u.Processes < 3 || u.Memory < 70<<20 || u.PeakMemory < u.Memory || u.CPU <= 0 {
		t.Errorf("whole: %+v", u)
	}
	if u.Parties == nil {
		return // no figures by party here
	}
	if len(u.Parties) != 3 {
		t.Errorf("parties: %+v", u.Parties)
	}
	for name, want := range map[string]int64{"runtime": 50 << 20, "ext-a": 20 << 20, "ext-b": 0} {
		p := u.Parties[name]
		if p.Memory < want || p.Memory > want+12<<20 || p.PeakMemory < p.Memory || p.Processes < 1 {
			t.Errorf("%s: %+v", name, p)
		}
	}
	// Again and again, it stays the same.
	for range 3 {
		v, err := b.Usage()
		if err != nil || v.PeakMemory < u.PeakMemory || v.PeakMemory > u.PeakMemory+8<<20 {
			t.Errorf("again: %+v, was %+v, %v", v, u, err)
		}
	}
}

func testAfterDestroy(t *testing.T, s *suite) {
	b := s.create(t)
	r := start(t, b, "runtime", "stubborn")
	r.await("ready")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := b.Destroy(ctx(t)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r.wait()
	calls := map[string]func() error{
		"Listen":  func() error { _, err := b.Listen("127.0.0.1:0"); return err },
		"Dial":    func() error { _, err := b.Dial(ctx(t), "127.0.0.1:1"); return err },
		"Start":   func() error { _, err := b.Start(ctx(t), sandbox.Command{Path: "/bin/true"}); return err },
		"SetCPU":  func() error { return b.SetCPU(1) },
		"Usage":   func() error { _, err := b.Usage(); return err },
		"Reset":   func() error { return b.Reset(ctx(t)) },
		"ReadDir": func() error { _, err := b.ReadDir("/opt"); return err },
		"Stat":    func() error { _, err := b.Stat("/opt"); return err },
		"Signal":  func() error { return r.Signal(syscall.SIGTERM) },
	}
	if f, ok := b.(sandbox.Freezer); ok {
		calls["Freeze"] = func() error { return f.Freeze(ctx(t)) }
		calls["Thaw"] = func() error { return f.Thaw(ctx(t)) }
	}
	for name, f := range calls {
		if err := f(); !errors.Is(err, sandbox.ErrDestroyed) {
			t.Errorf("%s after Destroy: %v", name, err)
		}
	}
	if err := b.Destroy(ctx(t)); err != nil {
		t.Errorf("Destroy again: %v", err)
	}
	// In the middle of everything.
	for range 20 {
		b := s.create(t)
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for {
					var err error
					switch i {
					case 0:
						_, err = b.Start(ctx(t), sandbox.Command{Party: "runtime", Path: b.Path("/var/task/probe"), Args: []string{"probe", "sleep"}})
					case 1:
						_, err = b.Usage()
					case 2:
						var l net.Listener
						if l, err = b.Listen("127.0.0.1:0"); err == nil {
							l.Close()
						}
					case 3:
						if f, ok := b.(sandbox.Freezer); ok {
							if err = f.Freeze(ctx(t)); err == nil {
								err = f.Thaw(ctx(t))
							}
						} else {
							_, err = b.ReadDir("/opt")
						}
					}
					if errors.Is(err, sandbox.ErrDestroyed) {
						return
					}
				}
			})
		}
		time.Sleep(3 * time.Millisecond)
		if err := b.Destroy(ctx(t)); err != nil {
			t.Error(err)
		}
		wg.Wait()
	}
}

func testCancelled(t *testing.T, s *suite) {
	b := s.create(t)
	c, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.Start(c, sandbox.Command{Party: "runtime", Path: b.Path("/var/task/probe"), Args: []string{"probe", "sleep"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("Start: %v", err)
	}
	if e := start(t, b, "runtime", "exit", "0").wait(); e.Code != 0 {
		t.Error(e)
	}
}

// testMany makes and destroys sandboxes side by side and counts what is left.
func testMany(t *testing.T, s *suite) {
	n := s.o.Parallel
	if n == 0 {
		n = 200
	}
	once := func(i int) error {
		c := context.Background()
		b, err := s.d.Create(c, sandbox.Spec{ID: fmt.Sprintf("m%d", i), TmpBytes: 64 << 20, MemoryBytes: 128 << 20,
			Mounts: []sandbox.Mount{{Target: "/var/task", Sources: []string{s.probe}}, {Target: "/opt"}}})
		if err != nil {
			return err
		}
		l, err := b.Listen("127.0.0.1:9001")
		if err != nil {
			return errors.Join(err, b.Destroy(c))
		}
		var out bytes.Buffer
		p, err := b.Start(c, sandbox.Command{Party: "runtime", Path: b.Path("/var/task/probe"), Args: []string{"probe", "echo", "hi"}, Stdout: &out})
		if err == nil {
			_, err = b.Start(c, sandbox.Command{Party: "ext", Path: b.Path("/var/task/probe"), Args: []string{"probe", "stubborn"}})
		}
		if err == nil {
			<-p.Done()
			<-p.Drained()
			if out.String() != "hi\n" {
				err = fmt.Errorf("output %q", out.String())
			}
		}
		_, uerr := b.Usage()
		l.Close()
		return errors.Join(err, uerr, b.Destroy(c))
	}
	all := func(n int) {
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				if err := once(i); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	all(20) // whatever is made once
	before := s.settled(t)
	all(n)
	var after string
	// Kernel and runtime need a moment to let go of what is ending.
	for range 100 {
		if after = s.count(t); after == before {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if after != before {
		t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
	}
	t.Log(after)
}

// settled is the count when nothing is being made or ended any more.
func (s *suite) settled(t *testing.T) string {
	last, same := s.count(t), 0
	for end := time.Now().Add(Patience); same < 6 && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
		now := s.count(t)
		if same++; now != last {
			last, same = now, 0
		}
	}
	return last
}

// count describes what exists because of this process and the driver.
func (s *suite) count(t *testing.T) string {
	runtime.GC()
	fds, _ := os.ReadDir("/proc/self/fd")
	out := fmt.Sprintf("goroutines %d, descriptors %d, children %d", runtime.NumGoroutine(), len(fds), len(children(os.Getpid())))
	if s.o.Leaks != nil {
		out += ", " + s.o.Leaks(t)
	}
	return out
}

// children lists the children of a process.
func children(pid int) []string {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var all []string
	for _, f := range files {
		b, _ := os.ReadFile(f)
		all = append(all, strings.Fields(string(b))...)
	}
	return all
}

// Daemon is what a driver's TestMain calls when DaemonVariable is set: it plays a
// daemon with busy sandboxes, one of them frozen if it can, until it is killed.
func Daemon(d sandbox.Driver, probe string) error {
	c := context.Background()
	for i := range 4 {
		b, err := d.Create(c, sandbox.Spec{ID: fmt.Sprintf("k%d", i), TmpBytes: 64 << 20, MemoryBytes: 128 << 20, Mounts: []sandbox.Mount{{Target: "/var/task", Sources: []string{probe}}}})
		if err != nil {
			return err
		}
		r, w := io.Pipe()
		for _, word := range [][]string{{"fill", b.Path("/tmp/x"), "20"}, {"daemons", "3"}, {"stubborn"}, {"burn", "1"}} {
			p, err := b.Start(c, sandbox.Command{Party: word[0], Path: b.Path("/var/task/probe"), Args: append([]string{"probe"}, word...), Stdout: w})
			if err != nil {
				return err
			}
			if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
				return err
			}
			if pid := p.PID(); pid != 0 {
				fmt.Println("pid", pid)
			}
		}
		if err := b.SetCPU(0.1); err != nil {
			return err
		}
		if f, ok := b.(sandbox.Freezer); ok && i%2 == 0 {
			if err := f.Freeze(c); err != nil {
				return err
			}
		}
	}
	fmt.Println("ready")
	select {}
}

// DaemonVariable names the environment variable that makes a test binary a daemon;
// its value is the probe's directory.
const DaemonVariable = "LAMBDAD_SANDBOXTEST_DAEMON"

// KillDaemon starts the test binary as a daemon, kills it with SIGKILL and
// returns the pids of processes it had started that are still alive after limit.
func KillDaemon(t *testing.T, limit time.Duration, env ...string) []int {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(append(os.Environ(), DaemonVariable+"="+BuildProbe(t)), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	lines := bufio.NewScanner(out)
	ready := false
	for !ready && lines.Scan() {
		var pid int
		if n, _ := fmt.Sscanf(lines.Text(), "pid %d", &pid); n == 1 {
			pids = append(pids, pid)
		}
		ready = lines.Text() == "ready"
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); err != nil {
			t.Errorf("process %d of the daemon is not there: %v", pid, err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if !ready {
		t.Fatal("the daemon did not come up")
	}
	var alive []int
	for end := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		alive = alive[:0]
		for _, pid := range pids {
			if syscall.Kill(pid, 0) == nil && !zombie(pid) {
				alive = append(alive, pid)
			}
		}
		if len(alive) == 0 || time.Now().After(end) {
			return alive
		}
	}
}

func zombie(pid int) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}
