package worker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/environment"
	"github.com/lambdad/lambdad/runtimes"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/fake"
	"github.com/lambdad/lambdad/telemetry"
	"github.com/lambdad/lambdad/worker"
)

// echo is a runtime that answers with what it got.
func echo(p *fake.Proc) sandbox.Exit {
	c := p.Client()
	defer c.CloseIdleConnections()
	p.Sleep(50 * time.Millisecond) // a start costs more than a moment
	for {
		r, err := c.Get(p.URL() + "/2018-06-01/runtime/invocation/next")
		if err != nil {
			return sandbox.Exit{Code: 1}
		}
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		p.Print("hello")
		id := r.Header.Get("Lambda-Runtime-Aws-Request-Id")
		r, err = c.Post(p.URL()+"/2018-06-01/runtime/invocation/"+id+"/response", "application/json", bytes.NewReader(body))
		if err != nil {
			return sandbox.Exit{Code: 1}
		}
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
}

// extension takes every event for a while and exits at its shutdown.
func extension(busy time.Duration) fake.Program {
	return func(p *fake.Proc) sandbox.Exit {
		c := p.Client()
		defer c.CloseIdleConnections()
		req, _ := http.NewRequest("POST", p.URL()+"/2020-01-01/extension/register", strings.NewReader(`{"events":["INVOKE","SHUTDOWN"]}`))
		req.Header.Set("Lambda-Extension-Name", filepath.Base(p.Command.Path))
		r, err := c.Do(req)
		if err != nil {
			return sandbox.Exit{Code: 1}
		}
		r.Body.Close()
		id := r.Header.Get("Lambda-Extension-Identifier")
		for {
			req, _ := http.NewRequest("GET", p.URL()+"/2020-01-01/extension/event/next", nil)
			req.Header.Set("Lambda-Extension-Identifier", id)
			r, err := c.Do(req)
			if err != nil {
				return sandbox.Exit{Code: 1}
			}
			b, _ := io.ReadAll(r.Body)
			r.Body.Close()
			if strings.Contains(string(b), "SHUTDOWN") {
				p.Print("bye")
				return sandbox.Exit{}
			}
			if !p.Sleep(busy) {
				return sandbox.Exit{}
			}
		}
	}
}

// archives gives the same directory for every digest and counts.
type archives struct {
	dir string

	mu   sync.Mutex
	open map[string]int
	fail string // this digest cannot be opened
}

func (a *archives) Open(_ context.Context, digest string) (string, func(), error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if digest == a.fail {
		return "", nil, errors.New("no such archive")
	}
	if a.open == nil {
		a.open = map[string]int{}
	}
	a.open[digest]++
	return filepath.Join(a.dir, digest), func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.open[digest]--; a.open[digest] == 0 {
			delete(a.open, digest)
		}
	}, nil
}

// credentials counts those that are valid.
type credentials struct {
	mu    sync.Mutex
	valid map[string]bool
	made  int
}

func (c *credentials) mint(_ *lambdad.Version, environment string) (func(string) lambdad.Credentials, func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.valid == nil {
		c.valid = map[string]bool{}
	}
	c.valid[environment] = true
	c.made++
	return func(string) lambdad.Credentials {
			return lambdad.Credentials{AccessKeyID: "ASIA" + environment[:16], SecretAccessKey: "s", SessionToken: "t"}
		}, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.valid, environment)
		}
}

// A rig is a worker on the fake driver with everything around it.
type rig struct {
	*worker.Local
	driver      *fake.Driver
	archives    *archives
	credentials *credentials
	logs        *logs
	copied      syncBuffer
	stop        func()
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *syncBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

func newRig(t *testing.T, extensions map[string]fake.Program, set func(*worker.Config)) *rig {
	r := &rig{
		driver:      &fake.Driver{Files: map[string]fake.File{"/var/task/bootstrap": {Run: echo}}},
		archives:    &archives{dir: t.TempDir()},
		credentials: &credentials{},
		logs:        &logs{},
	}
	for name, run := range extensions {
		r.driver.Files["/opt/extensions/"+name] = fake.File{Run: run}
	}
	cfg := worker.Config{
		Driver: r.driver, Archives: r.archives, Runtimes: runtimes.New(t.TempDir(), nil),
		Log: r.logs.sink, LogCopy: &r.copied, Credentials: r.credentials.mint,
		Endpoint: func(id string) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, id) })
		},
		IdleTimeout: time.Minute, MemoryBudget: 64 << 30, Starts: 4,
	}
	if set != nil {
		set(&cfg)
	}
	r.Local = worker.NewLocal(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error)
	go func() { ran <- r.Run(ctx) }()
	r.stop = func() { cancel(); <-ran }
	return r
}

// close drains and looks for what is left.
func (r *rig) close(t *testing.T) {
	t.Helper()
	if err := r.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	r.stop()
	if err := r.driver.Close(); err != nil {
		t.Error(err)
	}
	if len(r.archives.open) != 0 {
		t.Errorf("archives still open: %v", r.archives.open)
	}
	if len(r.credentials.valid) != 0 {
		t.Errorf("%d credentials still valid", len(r.credentials.valid))
	}
	if n := len(r.Environments()); n != 0 {
		t.Errorf("%d environments left", n)
	}
}

func hello() *lambdad.Version {
	return &lambdad.Version{
		Account: "123456789012", Region: "us-east-1", Function: "hello", Number: "$LATEST", Generation: "1",
		Runtime: "provided.al2023", Handler: "h", MemoryMB: 128, Timeout: 3 * time.Second, EphemeralMB: 512,
		Code:   lambdad.Archive{Digest: "code"},
		Layers: []lambdad.Archive{{Digest: "layer1", ARN: "l:1"}, {Digest: "layer2", ARN: "l:2"}},
	}
}

func (r *rig) invoke(t *testing.T, v *lambdad.Version, event string) error {
	resp, err := r.Invoke(t.Context(), &lambdad.Invocation{RequestID: uuid.NewString(), Version: v, InvokedARN: v.ARN(), Payload: []byte(event), ContentType: "application/json"}, nil)
	if err != nil {
		return err
	}
	if string(resp.Payload) != event || resp.FunctionError != "" || resp.ExecutedVersion != v.Number {
		return fmt.Errorf("answer %+v to %s", resp, event)
	}
	return nil
}

// logs is the log of all environments.
type logs struct {
	mu  sync.Mutex
	buf []byte
}

func (l *logs) sink(_ *lambdad.Version, _ string, format telemetry.Format) telemetry.Sink {
	return &logSink{l, format}
}

type logSink struct {
	*logs
	format telemetry.Format
}

// Take implements telemetry.Sink.
func (l *logSink) Take(e telemetry.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = l.format.Append(l.buf, e)
}

// lines counts the lines that begin with prefix.
func (l *logs) lines(prefix string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(string(l.buf)) {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}

func TestWholePath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, map[string]fake.Program{"ext": extension(20 * time.Millisecond)}, nil)
		v := hello()
		each := func(clients, invocations int) {
			var wg sync.WaitGroup
			for c := range clients {
				wg.Go(func() {
					for i := range invocations {
						if err := r.invoke(t, v, fmt.Sprintf(`{"c":%d,"i":%d}`, c, i)); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		}
		each(200, 1)
		each(50, 10)
		list := r.Environments()
		// The second wave comes while the extensions of the first are at work.
		if len(list) == 0 || len(list) > 250 || list[0].Function != "hello" || list[0].Version != "$LATEST" {
			t.Errorf("%d environments", len(list))
		}
		invocations := 0
		for _, s := range list {
			invocations += s.Invocations
		}
		if invocations != 700 {
			t.Errorf("%d invocations in %d environments", invocations, len(list))
		}
		if n := len(r.credentials.valid); n != len(list) {
			t.Errorf("%d credentials for %d environments", n, len(list))
		}

		time.Sleep(30 * time.Second)
		for _, s := range r.Environments() {
			if s.State != environment.StateFrozen {
				t.Errorf("%s is %s after 30 s", s.ID, s.State)
			}
		}
		spec := r.driver.Sandboxes()[0].Spec()
		task := slices.IndexFunc(spec.Mounts, func(m sandbox.Mount) bool { return m.Target == "/var/task" })
		opt := slices.IndexFunc(spec.Mounts, func(m sandbox.Mount) bool { return m.Target == "/opt" })
		if task < 0 || opt < 0 || len(spec.Mounts[task].Sources) != 1 || len(spec.Mounts[opt].Sources) != 2 ||
			filepath.Base(spec.Mounts[opt].Sources[0]) != "layer1" || spec.TmpBytes != 512<<20 || spec.MemoryBytes != 128<<20 || spec.MaxProcesses != 1024 {
			t.Errorf("spec %+v", spec)
		}

		time.Sleep(31 * time.Second)
		synctest.Wait()
		if n := len(r.Environments()); n != 0 {
			t.Errorf("%d environments after the idle timeout", n)
		}
		if err := r.invoke(t, v, `"again"`); err != nil {
			t.Error(err)
		}
		r.close(t)
		for prefix, want := range map[string]int{"START ": 701, "END ": 701, "REPORT ": 701, "EXTENSION": r.credentials.made, "hello": 701, "bye": r.credentials.made} {
			if got := r.logs.lines(prefix); got != want {
				t.Errorf("%d lines begin with %q, want %d", got, prefix, want)
			}
			if got := strings.Count("\n"+r.copied.String(), "\n"+prefix); got != want {
				t.Errorf("%d copied lines begin with %q, want %d", got, prefix, want)
			}
		}
	})
}

func TestBuildFailures(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name    string
		set     func(*rig, *lambdad.Version)
		config  func(*worker.Config)
		code    string
		message string
	}{
		{name: "runtime", set: func(_ *rig, v *lambdad.Version) { v.Runtime = "cobol85" }, code: "InvalidParameterValueException", message: "cobol85"},
		{name: "code", set: func(r *rig, _ *lambdad.Version) { r.archives.fail = "code" }, code: "ServiceException", message: "unpack its code"},
		{name: "layer", set: func(r *rig, _ *lambdad.Version) { r.archives.fail = "layer2" }, code: "ServiceException", message: "unpack its layer l:2"},
		{name: "sandbox", set: func(r *rig, _ *lambdad.Version) { r.driver.Fail("create", boom) }, code: "ServiceException", message: "create its sandbox"},
		{name: "listener", set: func(r *rig, _ *lambdad.Version) { r.driver.Fail("listen", boom) }, code: "ServiceException", message: "initialise it"},
		{name: "disk", config: func(c *worker.Config) { c.Reserve = func() error { return errors.New("the disk is full") } }, code: "ServiceException", message: "the disk is full"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil, c.config)
				v := hello()
				if c.set != nil {
					c.set(r, v)
				}
				err := r.invoke(t, v, "1")
				var e *lambdad.Error
				if !errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Message, c.message) {
					t.Errorf("got %v", err)
				}
				synctest.Wait()
				if len(r.archives.open) != 0 || len(r.credentials.valid) != 0 || len(r.Environments()) != 0 {
					t.Errorf("left: archives %v, %d credentials, %d environments", r.archives.open, len(r.credentials.valid), len(r.Environments()))
				}
				r.close(t)
			})
		})
	}
}

// Sandboxes that cannot be made now and then cost one request each and nothing
// else.
func TestCreateFailsIntermittently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, map[string]fake.Program{"ext": extension(0)}, nil)
		for range 20 {
			r.driver.Fail("create", errors.New("out of loop devices"))
		}
		v := hello()
		var mu sync.Mutex
		failed := 0
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if err := r.invoke(t, v, fmt.Sprint(i)); err != nil {
					if lambdad.ErrorCode(err) != "ServiceException" {
						t.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					failed++
				}
			})
		}
		wg.Wait()
		if failed != 20 {
			t.Errorf("%d requests failed for 20 failures", failed)
		}
		r.close(t)
	})
}

// A first initialisation that failed leaves an environment that can be used: its
// first invocation initialises again.
func TestFailedInitIsUsable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, nil)
		r.driver.Files["/var/task/bootstrap"] = fake.File{Run: func(p *fake.Proc) sandbox.Exit {
			if p.Attempt() == 1 {
				return sandbox.Exit{Code: 7}
			}
			return echo(p)
		}}
		if err := r.invoke(t, hello(), `"second attempt"`); err != nil {
			t.Error(err)
		}
		if n := len(r.driver.Sandboxes()); n != 1 {
			t.Errorf("%d sandboxes", n)
		}
		r.close(t)
	})
}

func TestDrainFinishesAndShutsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, map[string]fake.Program{"ext": extension(time.Second)}, nil)
		v := hello()
		answered := make(chan error)
		go func() { answered <- r.invoke(t, v, `"in flight"`) }()
		synctest.Wait()
		if err := <-answered; err != nil { // the extension is still at work
			t.Error(err)
		}
		r.close(t)
		if n := r.logs.lines("REPORT "); n != 1 {
			t.Errorf("%d REPORT lines: the invocation was not finished", n)
		}
		if n := r.logs.lines("bye"); n != 1 {
			t.Errorf("the extension was not told of the shutdown")
		}
		if err := r.invoke(t, v, "1"); lambdad.ErrorCode(err) != "ServiceException" {
			t.Errorf("after the drain: %v", err)
		}
	})
}

// With everything killed nothing is left either.
func TestDrainDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, map[string]fake.Program{"ext": extension(0)}, nil)
		r.driver.Files["/var/task/bootstrap"] = fake.File{Run: func(p *fake.Proc) sandbox.Exit { <-p.Killed(); return sandbox.Exit{} }}
		errs := make(chan error, 10)
		for range 10 {
			go func() { errs <- r.invoke(t, hello(), "1") }()
		}
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("drain: %v", err)
		}
		for range 10 {
			if err := <-errs; lambdad.ErrorCode(err) != "ServiceException" {
				t.Errorf("got %v", err)
			}
		}
		r.close(t)
	})
}
