package runtimes

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	invokeID = "8f507cfc-xmpl-4697-b07a-ac58fc914c95"
	arn      = "arn:aws:lambda:eu-west-1:123456789012:function:f"
)

// A step is one event that the scripted Runtime API hands out.
type step struct {
	event   string
	headers map[string]string // an empty value leaves out a usual one
}

// A post is what the client sent back.
type post struct {
	path string
	head http.Header
	body string
}

// A run is one process of the runtime client from start to end.
type run struct {
	files   map[string]string // below the task root
	opt     map[string]string // below /opt
	handler string
	program []string // instead of the start script: another client
	env     map[string]string
	steps   []step
	api     func(w http.ResponseWriter, r *http.Request) bool // answers instead when true
	// idle is called when all steps are answered and the client asks again;
	// otherwise it is killed then.
	idle func(p *os.Process)
}

type outcome struct {
	posts          []post
	stdout, stderr string
	code           int // -1: killed by the test when it was idle
	agent          string
	connections    int
}

// script is the Runtime API of one run.
type script struct {
	t     *testing.T
	run   run
	mu    sync.Mutex
	next  int
	out   *outcome
	idle  chan struct{}
	close chan struct{}
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.out.agent = r.UserAgent()
	s.mu.Unlock()
	if s.run.api != nil && s.run.api(w, r) {
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/2018-06-01/runtime/")
	if r.Method == http.MethodGet && path == "invocation/next" {
		s.mu.Lock()
		i := s.next
		s.next++
		s.mu.Unlock()
		if i >= len(s.run.steps) {
			if i == len(s.run.steps) {
				close(s.idle)
			}
			select {
			case <-s.close:
			case <-r.Context().Done():
			}
			return
		}
		h := map[string]string{
			"Lambda-Runtime-Aws-Request-Id": invokeID, "Lambda-Runtime-Deadline-Ms": strconv.FormatInt(time.Now().Add(time.Minute).UnixMilli(), 10),
			"Lambda-Runtime-Invoked-Function-Arn": arn, "Content-Type": "application/json",
		}
		for k, v := range s.run.steps[i].headers {
			h[k] = v
		}
		for k, v := range h {
			if v != "" {
				w.Header().Set(k, v)
			}
		}
		io.WriteString(w, s.run.steps[i].event)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Error(err)
	}
	s.mu.Lock()
	s.out.posts = append(s.out.posts, post{path, r.Header, string(body)})
	s.mu.Unlock()
	w.WriteHeader(http.StatusAccepted)
	io.WriteString(w, `{"status":"OK"}`+"\n")
}

// start runs the client of r until it ends or has nothing to do.
func (x run) start(t *testing.T, r *Runtime) *outcome {
	t.Helper()
	out := &outcome{code: -1}
	s := &script{t: t, run: x, out: out, idle: make(chan struct{}), close: make(chan struct{})}
	server := httptest.NewUnstartedServer(s)
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.mu.Lock()
			out.connections++
			s.mu.Unlock()
		}
	}
	server.Start()
	defer server.Close()
	defer close(s.close)

	root := t.TempDir()
	task := filepath.Join(root, "var", "task")
	write(t, task, x.files)
	write(t, filepath.Join(root, "opt"), x.opt)
	dir := r.dir
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	program := x.program
	if program == nil {
		program = []string{filepath.Join(dir, "bootstrap")}
	}
	cmd := exec.CommandContext(ctx, program[0], program[1:]...)
	cmd.Dir = task
	cmd.Env = []string{
		"PATH=/usr/bin:/bin", "LANG=en_US.UTF-8", "TZ=:UTC", "_HANDLER=" + strings.Replace(x.handler, "/var/task", task, 1), "LAMBDA_TASK_ROOT=" + task, "LAMBDA_RUNTIME_DIR=" + dir,
		"AWS_LAMBDA_RUNTIME_API=" + strings.TrimPrefix(server.URL, "http://"), "AWS_LAMBDA_FUNCTION_NAME=f", "AWS_LAMBDA_FUNCTION_VERSION=$LATEST",
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE=128", "AWS_LAMBDA_LOG_GROUP_NAME=/aws/lambda/f", "AWS_LAMBDA_LOG_STREAM_NAME=stream",
	}
	opt := map[string]string{"_LAMBDAD_OPT": "/opt"}
	// As the environment translates paths.
	places := strings.NewReplacer("/var/task", task, "/var/runtime", dir, "/opt", filepath.Join(root, "opt"))
	for _, m := range []map[string]string{r.Env, opt, x.env} {
		for k, v := range m {
			cmd.Env = append(cmd.Env, k+"="+places.Replace(v))
		}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	killed := false
	select {
	case <-s.idle:
		if x.idle != nil {
			x.idle(cmd.Process)
		} else {
			killed = true
			cmd.Process.Kill()
		}
		<-ended
	case <-ended:
	}
	if ctx.Err() != nil {
		t.Fatalf("the client did not come to an end; stderr: %s", stderr.String())
	}
	if !killed {
		out.code = cmd.ProcessState.ExitCode()
	}
	real := strings.NewReplacer(task, "/var/task", filepath.Join(root, "opt"), "/opt", dir, "/var/runtime")
	out.stdout, out.stderr = real.Replace(stdout.String()), real.Replace(stderr.String())
	for i := range out.posts {
		out.posts[i].body = real.Replace(out.posts[i].body)
	}
	return out
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
}

// pythons are the runtimes whose very version this machine has.
var pythons []*Runtime

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "lambdad-runtimes-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	set := New(dir, slog.New(slog.DiscardHandler))
	for minor := firstPython; minor <= lastPython; minor++ {
		r, err := set.Resolve(context.Background(), "python3."+strconv.Itoa(minor))
		if err == nil && strings.HasPrefix(r.Version, fmt.Sprintf("python:3.%d.", minor)) {
			pythons = append(pythons, r)
		}
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// everyPython runs f with the oldest and the newest Python 3 of this machine, and
// with all of them in CI, under the identifier of its own version. One is enough;
// none is a failure in CI.
func everyPython(t *testing.T, f func(t *testing.T, r *Runtime)) {
	t.Helper()
	ci := os.Getenv("LAMBDAD_TEST_ROOT") == "1"
	list := pythons
	if len(list) == 0 {
		if ci {
			t.Fatal("no Python 3 on this machine")
		}
		t.Skip("no Python 3 on this machine")
	}
	if len(list) > 2 && !ci {
		list = []*Runtime{list[0], list[len(list)-1]}
	}
	for _, r := range list {
		t.Run(r.Name, func(t *testing.T) { f(t, r) })
	}
}

// minorOf is 12 for python3.12.
func minorOf(r *Runtime) int { return numbers(r.Name)[1] }

// atEnd calls f when a body has been read to its end: trailers are there then.
type atEnd struct {
	io.ReadCloser
	f func()
}

func (a *atEnd) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if err == io.EOF {
		a.f()
	}
	return n, err
}

// TestCompiledForAnother holds that the error of a compiled module names both
// versions and the way out.
func TestCompiledForAnother(t *testing.T) {
	everyPython(t, func(t *testing.T, r *Runtime) {
		for name, files := range map[string]map[string]string{
			"absent": {"m.py": "import pkg\n", "pkg/__init__.py": "from pkg import _fast\n", "pkg/_fast.cpython-37m-x86_64-linux-gnu.so": ""},
			"nested": {"m.py": "import pkg\n", "pkg/__init__.py": "try:\n    import pkg._fast\nexcept ImportError as e:\n    raise ImportError('pkg cannot be used') from e\n", "pkg/_fast.cpython-37m-x86_64-linux-gnu.so": ""},
		} {
			out := run{files: files, handler: "m.f"}.start(t, r)
			if len(out.posts) != 1 {
				t.Fatalf("%s: posts %v, stderr %s", name, out.posts, out.stderr)
			}
			b := out.posts[0].error(t)
			version := strings.TrimSuffix(strings.TrimPrefix(r.Version, "python:"), " (host)")
			for _, want := range []string{"_fast.cpython-37m", r.Name, "on Python " + version, "lambdad runtime add " + r.Name} {
				if b.ErrorType != "Runtime.ImportModuleError" || !strings.Contains(b.ErrorMessage, want) {
					t.Errorf("%s: %+v, want %q", name, b, want)
				}
			}
		}
	})
}

// TestEventsCutShort holds that an event that ends early is told as json.loads tells
// it: the accelerator alone cannot.
func TestEventsCutShort(t *testing.T) {
	everyPython(t, func(t *testing.T, r *Runtime) {
		events := map[string]string{"{": "Expecting property name", `{"a"`: "Expecting ':' delimiter", `{"a":1`: "Expecting ',' delimiter", `[1`: "Expecting ',' delimiter", `"a`: "Unterminated string", "1 2": "Extra data"}
		var steps []step
		var want []string
		for e, text := range events {
			steps, want = append(steps, step{event: e}), append(want, "Unable to unmarshal input: "+text)
		}
		out := run{files: map[string]string{"m.py": "def f(e, c): return e\n"}, handler: "m.f", steps: steps}.start(t, r)
		if len(out.posts) != len(steps) {
			t.Fatalf("%d posts, stderr %s", len(out.posts), out.stderr)
		}
		for i, p := range out.posts {
			if b := p.error(t); b.ErrorType != "Runtime.UnmarshalError" || !strings.HasPrefix(b.ErrorMessage, want[i]) {
				t.Errorf("%s: %+v, want %s", steps[i].event, b, want[i])
			}
		}
	})
}
