package environment_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/environment"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/fake"
	"github.com/lambdad/lambdad/telemetry"
)

// life is one environment under test, on the fake, in a bubble.
type life struct {
	*environment.Environment
	t      *testing.T
	driver *fake.Driver
	box    *fake.Sandbox
	log    *telemetry.Tail
	events *recorder
	idle   chan struct{}
	logger bytes.Buffer
	ended  []error
}

type recorder struct {
	mu   sync.Mutex
	list []telemetry.Event
}

func (r *recorder) Take(e telemetry.Event) {
	if e.Type == telemetry.TypeSpan || e.Type == telemetry.TypeCost {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, e)
}

// types lists the events in short: type, and status, state or line.
func (r *recorder) types() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var s []string
	for _, e := range r.list {
		short := strings.TrimPrefix(e.Type, "platform.")
		switch x := e.Record.(type) {
		case telemetry.InitStart:
			short += " " + x.Phase
		case telemetry.InitRuntimeDone:
			short += strings.TrimRight(" "+x.Status+" "+x.ErrorType, " ")
		case telemetry.InitReport:
			short += strings.TrimRight(" "+x.Status+" "+x.ErrorType, " ")
		case telemetry.RuntimeDone:
			short += strings.TrimRight(" "+x.Status+" "+x.ErrorType, " ")
		case telemetry.Report:
			short += strings.TrimRight(" "+x.Status+" "+x.ErrorType, " ")
		case telemetry.Extension:
			short += " " + x.State
		case telemetry.Line:
			short += " " + string(x)
		}
		s = append(s, short)
	}
	return s
}

// live runs body with an environment of the given programs.
func live(t *testing.T, programs map[string]fake.Program, change func(*environment.Config, *fake.Driver), body func(*life)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &life{t: t, driver: &fake.Driver{Files: map[string]fake.File{}}, log: telemetry.NewTail(telemetry.Format{}, 1<<20), events: &recorder{}, idle: make(chan struct{}, 100)}
		for path, p := range programs {
			l.driver.Files[path] = fake.File{Run: p}
		}
		cfg := environment.Config{
			ID: strings.Repeat("0", 32), Version: version(), Entrypoints: []string{"/var/task/bootstrap", "/opt/bootstrap"},
			RuntimeVersion: "provided:test", RuntimeVersionARN: "arn:runtime",
			Stream: telemetry.NewStream(l.log, l.events), FreezeDelay: time.Second,
			Logger: slog.New(slog.NewTextHandler(&l.logger, nil)),
			OnIdle: func(*environment.Environment) { l.idle <- struct{}{} },
			OnEnd:  func(_ *environment.Environment, err error) { l.ended = append(l.ended, err) },
		}
		if change != nil {
			change(&cfg, l.driver)
		}
		box, err := l.driver.Create(t.Context(), sandbox.Spec{ID: "a"})
		if err != nil {
			t.Fatal(err)
		}
		cfg.Sandbox, l.box = box, box.(*fake.Sandbox)
		l.Environment = environment.Start(cfg)
		defer func() {
			l.Kill()
			<-l.Done()
			synctest.Wait()
			if err := l.driver.Close(); err != nil {
				t.Error(err)
			}
			if len(l.ended) != 1 {
				t.Errorf("OnEnd was called %d times", len(l.ended))
			}
			if t.Failed() {
				t.Logf("log:\n%s\nlogger:\n%s\ntrace:\n%s", l.log.Bytes(), l.logger.String(), strings.Join(l.box.Trace(), "\n"))
			}
		}()
		body(l)
	})
}

// invoke waits for the environment and runs one invocation.
func (l *life) invoke(id string) *lambdad.Response {
	l.t.Helper()
	<-l.idle
	r, err := l.Invoke(context.Background(), &lambdad.Invocation{RequestID: id, InvokedARN: "arn:f", Payload: []byte(`"` + id + `"`)})
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

func (l *life) wantLog(want string) {
	l.t.Helper()
	if got := string(l.log.Bytes()); got != want {
		l.t.Errorf("log\n got %q\nwant %q", got, want)
	}
}

func (l *life) wantEvents(want ...string) {
	l.t.Helper()
	if got := l.events.types(); !slices.Equal(got, want) {
		l.t.Errorf("events\n got %q\nwant %q", got, want)
	}
}

// slowly makes a program that takes a while to begin.
func slowly(d time.Duration, p fake.Program) fake.Program {
	return func(proc *fake.Proc) sandbox.Exit {
		if !proc.Sleep(d) {
			return sandbox.Exit{}
		}
		return p(proc)
	}
}

// firstly runs one program in the first process and another in the later ones.
func firstly(first, later fake.Program) fake.Program {
	return func(p *fake.Proc) sandbox.Exit {
		if p.Attempt() == 1 {
			return first(p)
		}
		return later(p)
	}
}

func exits(code int) fake.Program {
	return func(*fake.Proc) sandbox.Exit { return sandbox.Exit{Code: code} }
}

func hangs(p *fake.Proc) sandbox.Exit {
	<-p.Killed()
	return sandbox.Exit{}
}

// takes is a runtime that works on each event for a while and dies of some.
func takes(d time.Duration, dies string) fake.Program {
	return func(p *fake.Proc) sandbox.Exit {
		c := p.Client()
		for {
			r, err := c.Get(p.URL() + "/2018-06-01/runtime/invocation/next")
			if err != nil {
				return sandbox.Exit{Code: 1}
			}
			body, _ := io.ReadAll(r.Body)
			r.Body.Close()
			p.Print("working")
			if !p.Sleep(d) {
				return sandbox.Exit{}
			}
			if string(body) == `"`+dies+`"` {
				return sandbox.Exit{Code: 7}
			}
			r, err = c.Post(p.URL()+"/2018-06-01/runtime/invocation/"+r.Header.Get("Lambda-Runtime-Aws-Request-Id")+"/response", "", strings.NewReader(`1`))
			if err != nil {
				return sandbox.Exit{Code: 1}
			}
			io.Copy(io.Discard, r.Body)
			r.Body.Close()
		}
	}
}

const bootstrap, ext = "/var/task/bootstrap", "/opt/extensions/ext"

func TestColdWarmShutdown(t *testing.T) {
	live(t, map[string]fake.Program{
		bootstrap: slowly(110*time.Millisecond+500*time.Microsecond, takes(3*time.Millisecond, "")),
		ext:       slowly(40*time.Millisecond, extension("ext", `"INVOKE","SHUTDOWN"`, 50*time.Millisecond)),
	}, nil, func(l *life) {
		l.invoke("r1")
		l.invoke("r2")
		<-l.idle
		l.Shutdown(context.Background())
		l.wantLog("INIT_START Runtime Version: provided:test\tRuntime Version ARN: arn:runtime\n" +
			"EXTENSION\tName: ext\tState: Ready\tEvents: [INVOKE, SHUTDOWN]\n" +
			"START RequestId: r1 Version: $LATEST\nworking\nEND RequestId: r1\n" +
			"REPORT RequestId: r1\tDuration: 50.00 ms\tBilled Duration: 201 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\tInit Duration: 150.50 ms\t\n" +
			"START RequestId: r2 Version: $LATEST\nworking\nEND RequestId: r2\n" +
			"REPORT RequestId: r2\tDuration: 50.00 ms\tBilled Duration: 50 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\t\n" +
			"bye\n")
		l.wantEvents("initStart init", "initRuntimeDone success", "extension Ready", "initReport success",
			"start", "function working", "runtimeDone success", "report success",
			"start", "function working", "runtimeDone success", "report success", "extension bye")
		if trace := l.box.Trace(); !slices.Equal(trace, []string{"cpu 1.00", "start ext", "start runtime", "cpu 0.07", "cpu 1.00", "signal runtime terminated", "destroy"}) {
			t.Errorf("trace %q", trace)
		}
		if l.ended[0] != nil {
			t.Error(l.ended)
		}
	})
}

func TestReportSpans(t *testing.T) {
	live(t, map[string]fake.Program{
		bootstrap: takes(30*time.Millisecond, ""),
		ext:       extension("ext", `"INVOKE"`, 100*time.Millisecond),
	}, nil, func(l *life) {
		l.invoke("r1")
		<-l.idle
		var done telemetry.RuntimeDone
		var report telemetry.Report
		for _, e := range l.events.list {
			switch r := e.Record.(type) {
			case telemetry.RuntimeDone:
				done = r
			case telemetry.Report:
				report = r
			}
		}
		ms := func(m telemetry.Millis) int64 { return time.Duration(m).Milliseconds() }
		if ms(done.Metrics.Duration) != 30 || *done.Metrics.ProducedBytes != 1 || ms(done.Spans[0].Duration) != 30 || done.Spans[0].Name != "responseLatency" {
			t.Errorf("%+v", done)
		}
		if ms(report.Metrics.Duration) != 100 || len(report.Spans) != 1 || report.Spans[0].Name != "extensionOverhead" || ms(report.Spans[0].Duration) != 70 {
			t.Errorf("%+v", report)
		}
	})
}

func TestFailedInitThenSuppressed(t *testing.T) {
	live(t, map[string]fake.Program{
		bootstrap: firstly(slowly(20*time.Millisecond, exits(1)), slowly(500*time.Millisecond, takes(10*time.Millisecond, ""))),
		ext:       extension("ext", `"INVOKE","SHUTDOWN"`, 0),
	}, nil, func(l *life) {
		if r := l.invoke("r1"); string(r.Payload) != "1" {
			t.Errorf("%s", r.Payload)
		}
		<-l.idle
		l.wantLog("INIT_START Runtime Version: provided:test\tRuntime Version ARN: arn:runtime\n" +
			"EXTENSION\tName: ext\tState: Ready\tEvents: [INVOKE, SHUTDOWN]\n" +
			"INIT_REPORT Init Duration: 20.00 ms\tPhase: init\tStatus: error\tError Type: Runtime.ExitError\n" +
			"bye\n" +
			"EXTENSION\tName: ext\tState: Ready\tEvents: [INVOKE, SHUTDOWN]\n" +
			"START RequestId: r1 Version: $LATEST\nworking\nEND RequestId: r1\n" +
			"REPORT RequestId: r1\tDuration: 510.00 ms\tBilled Duration: 510 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\t\n")
		l.wantEvents("initStart init", "initRuntimeDone error Runtime.ExitError", "extension Ready", "initReport error Runtime.ExitError", "extension bye",
			"initStart invoke", "initRuntimeDone success", "extension Ready", "initReport success",
			"start", "function working", "runtimeDone success", "report success")
		if trace := l.box.Trace(); !slices.Equal(trace, []string{"cpu 1.00", "start ext", "start runtime", "cpu 1.00", "reset", "cpu 1.00", "start ext", "start runtime", "cpu 0.07"}) {
			t.Errorf("trace %q", trace)
		}
	})
}

func TestTimeoutThenReset(t *testing.T) {
	live(t, map[string]fake.Program{
		bootstrap: firstly(takes(time.Hour, ""), takes(0, "")),
	}, nil, func(l *life) {
		begun := time.Now()
		r := l.invoke("r1")
		if want := `{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: r1 Error: Task timed out after 3.00 seconds"}`; string(r.Payload) != want || time.Since(begun) != 3*time.Second {
			t.Errorf("%s after %v", r.Payload, time.Since(begun))
		}
		l.invoke("r2")
		<-l.idle
		l.wantLog("INIT_START Runtime Version: provided:test\tRuntime Version ARN: arn:runtime\n" +
			"START RequestId: r1 Version: $LATEST\nworking\nEND RequestId: r1\n" +
			"REPORT RequestId: r1\tDuration: 3000.00 ms\tBilled Duration: 3000 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\tStatus: timeout\n" +
			"START RequestId: r2 Version: $LATEST\nworking\nEND RequestId: r2\n" +
			"REPORT RequestId: r2\tDuration: 0.00 ms\tBilled Duration: 0 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\t\n")
		// Without extensions there is no SIGTERM, and the limit goes when all are to die.
		if trace := l.box.Trace(); !slices.Equal(trace, []string{"cpu 1.00", "start runtime", "cpu 0.07", "signal runtime killed", "cpu 0.00", "reset", "cpu 1.00", "start runtime", "cpu 0.07"}) {
			t.Errorf("trace %q", trace)
		}
	})
}

func TestEventsOfFailures(t *testing.T) {
	for _, c := range []struct {
		name     string
		programs map[string]fake.Program
		want     []string
	}{
		{"runtime crash", map[string]fake.Program{bootstrap: takes(0, "r1")},
			[]string{"initStart init", "initRuntimeDone success", "initReport success", "start", "function working", "runtimeDone error Runtime.ExitError", "report error Runtime.ExitError"}},
		{"extension crash after runtimeDone", map[string]fake.Program{bootstrap: takes(0, ""), ext: dying(time.Second)},
			[]string{"initStart init", "initRuntimeDone success", "extension Ready", "initReport success", "start", "function working", "runtimeDone success", "report error Extension.Crash"}},
		{"extension crash before", map[string]fake.Program{bootstrap: takes(2*time.Second, ""), ext: dying(time.Second)},
			[]string{"initStart init", "initRuntimeDone success", "extension Ready", "initReport success", "start", "function working", "runtimeDone error Extension.Crash", "report error Extension.Crash"}},
		{"launch failure", map[string]fake.Program{bootstrap: takes(0, ""), ext: nil},
			[]string{"initStart init", "extension LaunchError", "initReport error Extension.LaunchError", "initStart invoke", "extension LaunchError", "initReport error Extension.LaunchError",
				"start", "runtimeDone error Extension.LaunchError", "report error Extension.LaunchError"}},
		{"init timeout", map[string]fake.Program{bootstrap: hangs},
			[]string{"initStart init", "initRuntimeDone timeout", "initReport timeout", "initStart invoke", "initRuntimeDone timeout", "initReport timeout", "start", "runtimeDone timeout", "report timeout"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			live(t, c.programs, nil, func(l *life) {
				l.invoke("r1")
				<-l.idle
				l.wantEvents(c.want...)
			})
		})
	}
}

// dying is an extension that exits some time after its first event.
func dying(after time.Duration) fake.Program {
	return func(p *fake.Proc) sandbox.Exit {
		extensionOnce(p, "ext")
		p.Sleep(after)
		return sandbox.Exit{}
	}
}

// extensionOnce registers and takes one event.
func extensionOnce(p *fake.Proc, name string) {
	c := p.Client()
	req, _ := http.NewRequest("POST", p.URL()+"/2020-01-01/extension/register", strings.NewReader(`{"events":["INVOKE"]}`))
	req.Header.Set("Lambda-Extension-Name", name)
	r, err := c.Do(req)
	if err != nil {
		return
	}
	r.Body.Close()
	req, _ = http.NewRequest("GET", p.URL()+"/2020-01-01/extension/event/next", nil)
	req.Header.Set("Lambda-Extension-Identifier", r.Header.Get("Lambda-Extension-Identifier"))
	if r, err = c.Do(req); err == nil {
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
}

func TestFreezeAndThaw(t *testing.T) {
	var ticks atomic.Int64
	ticker := func(p *fake.Proc) sandbox.Exit {
		p.Fork(func(p *fake.Proc) sandbox.Exit {
			for p.Sleep(10 * time.Millisecond) {
				ticks.Add(1)
			}
			return sandbox.Exit{}
		})
		return extension("ext", `"INVOKE","SHUTDOWN"`, 0)(p)
	}
	live(t, map[string]fake.Program{bootstrap: takes(0, ""), ext: ticker}, nil, func(l *life) {
		l.invoke("r1")
		<-l.idle
		time.Sleep(2 * time.Second)
		if s := l.Status(); s.State != environment.StateFrozen || s.Invocations != 1 || s.Age < 2*time.Second {
			t.Errorf("%+v", s)
		}
		synctest.Wait()
		before := ticks.Load()
		time.Sleep(time.Hour)
		synctest.Wait()
		if ticks.Load() > before {
			t.Errorf("%d ticks while frozen", ticks.Load()-before)
		}
		l.idle <- struct{}{}
		l.invoke("r2")
		<-l.idle
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if ticks.Load() == before {
			t.Error("no ticks after thawing")
		}
		time.Sleep(time.Minute)
		l.Shutdown(context.Background())
		// Thawed before it is signalled.
		if trace := l.box.Trace(); !slices.Equal(trace, []string{"cpu 1.00", "start ext", "start runtime", "cpu 0.07", "freeze", "thaw", "freeze", "thaw", "cpu 1.00", "signal runtime terminated", "destroy"}) {
			t.Errorf("trace %q", trace)
		}
	})
}

func TestDeathWhileIdle(t *testing.T) {
	for _, frozen := range []bool{false, true} {
		var proc *fake.Proc
		live(t, map[string]fake.Program{
			bootstrap: takes(0, ""),
			ext: func(p *fake.Proc) sandbox.Exit {
				if p.Attempt() == 1 {
					proc = p
				}
				return extension("ext", `"INVOKE","SHUTDOWN"`, 0)(p)
			},
		}, nil, func(l *life) {
			l.invoke("r1")
			time.Sleep(100 * time.Millisecond) // the invocation is over
			if frozen {
				time.Sleep(2 * time.Second)
			}
			proc.Kill(syscall.SIGKILL)
			if r := l.invoke("r2"); string(r.Payload) != "1" {
				t.Errorf("frozen %v: %s", frozen, r.Payload)
			}
			<-l.idle
			if got := l.events.types(); !slices.Contains(got, "initStart invoke") || slices.Contains(got, "report error Extension.Crash") {
				t.Errorf("frozen %v: events %q", frozen, got)
			}
		})
	}
}

func TestTail(t *testing.T) {
	for _, c := range []struct {
		busy time.Duration
		took time.Duration
		want string
	}{
		{0, 0, `(?s)^START RequestId: r1 .*working\nEND RequestId: r1\nREPORT .*\t\n$`},
		{90 * time.Millisecond, 90 * time.Millisecond, `(?s)^START .*working\nEND RequestId: r1\nREPORT .*\t\n$`},
		{time.Second, 100 * time.Millisecond, `(?s)^START RequestId: r1 Version: \$LATEST\nworking\n$`},
	} {
		live(t, map[string]fake.Program{bootstrap: takes(0, ""), ext: extension("ext", `"INVOKE"`, c.busy)}, nil, func(l *life) {
			<-l.idle
			begun := time.Now()
			r, err := l.Invoke(context.Background(), &lambdad.Invocation{RequestID: "r1", Tail: true})
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begun); took != c.took {
				t.Errorf("busy %v: took %v", c.busy, took)
			}
			if !regexp.MustCompile(c.want).Match(r.LogTail) {
				t.Errorf("busy %v: tail %q", c.busy, r.LogTail)
			}
		})
	}
}

// TestKilledFrozen holds that who is only to die does not run once more before.
func TestKilledFrozen(t *testing.T) {
	live(t, map[string]fake.Program{bootstrap: takes(0, "")}, nil, func(l *life) {
		l.invoke("r1")
		<-l.idle
		time.Sleep(time.Minute)
		l.Shutdown(context.Background())
		if trace := l.box.Trace(); !slices.Equal(trace, []string{"cpu 1.00", "start runtime", "cpu 0.07", "freeze", "frozen: signal runtime killed", "cpu 0.00", "thaw", "destroy"}) {
			t.Errorf("trace %q", trace)
		}
	})
}

// TestFreezeCutShort holds that an environment that is to end does not wait for its
// processes to stand still.
func TestFreezeCutShort(t *testing.T) {
	live(t, map[string]fake.Program{bootstrap: takes(0, "")}, func(_ *environment.Config, d *fake.Driver) { d.FreezeTakes = time.Minute }, func(l *life) {
		l.invoke("r1")
		<-l.idle
		time.Sleep(2 * time.Second)
		begun := time.Now()
		l.Shutdown(context.Background())
		if took := time.Since(begun); took != 0 {
			t.Errorf("the end took %v", took)
		}
		if trace := l.box.Trace(); !slices.Equal(trace, []string{"cpu 1.00", "start runtime", "cpu 0.07", "freeze", "frozen: signal runtime killed", "cpu 0.00", "thaw", "destroy"}) {
			t.Errorf("trace %q", trace)
		}
	})
}

// TestShutdownBudgets has runtimes that ignore SIGTERM and extensions that do
// not exit, and looks at when they die.
func TestShutdownBudgets(t *testing.T) {
	ignores := func(internal bool) fake.Program {
		return func(p *fake.Proc) sandbox.Exit {
			p.Signals()
			if internal {
				go extensionOnceInternal(p)
				if !p.Sleep(time.Millisecond) {
					return sandbox.Exit{}
				}
			}
			return takes(0, "")(p)
		}
	}
	stays := func(events string) fake.Program {
		return func(p *fake.Proc) sandbox.Exit {
			e := extension("ext", events, 0)(p)
			if e.Signal == 0 && e.Code == 0 {
				<-p.Killed()
			}
			return e
		}
	}
	for _, c := range []struct {
		name     string
		programs map[string]fake.Program
		runtime  time.Duration // when it dies
		total    time.Duration
		term     bool
		blame    string
	}{
		{"nothing registered", map[string]fake.Program{bootstrap: ignores(false)}, 0, 0, false, ""},
		{"internal", map[string]fake.Program{bootstrap: ignores(true)}, 500 * time.Millisecond, 500 * time.Millisecond, true, ""},
		{"external", map[string]fake.Program{bootstrap: ignores(false), ext: stays(`"SHUTDOWN"`)}, 300 * time.Millisecond, 2 * time.Second, true, "ext got the SHUTDOWN event and did not exit"},
		{"both", map[string]fake.Program{bootstrap: ignores(true), ext: stays(`"SHUTDOWN"`)}, 500 * time.Millisecond, 2 * time.Second, true, "ext got the SHUTDOWN event and did not exit"},
		{"external that exits", map[string]fake.Program{bootstrap: ignores(false), ext: extension("ext", `"SHUTDOWN"`, 0)}, 300 * time.Millisecond, 300 * time.Millisecond, true, ""},
		{"external without SHUTDOWN", map[string]fake.Program{bootstrap: ignores(false), ext: stays(``)}, 300 * time.Millisecond, 300 * time.Millisecond, true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var died time.Time
			programs := map[string]fake.Program{bootstrap: func(p *fake.Proc) sandbox.Exit {
				go func() { <-p.Killed(); died = time.Now() }()
				return c.programs[bootstrap](p)
			}}
			if x := c.programs[ext]; x != nil {
				programs[ext] = x
			}
			live(t, programs, nil, func(l *life) {
				<-l.idle
				begun := time.Now()
				l.Shutdown(context.Background())
				took := time.Since(begun)
				synctest.Wait()
				if d := died.Sub(begun); d != c.runtime {
					t.Errorf("the runtime died after %v, want %v", d, c.runtime)
				}
				if took != c.total {
					t.Errorf("shutdown took %v, want %v", took, c.total)
				}
				if slices.Contains(l.box.Trace(), "signal runtime terminated") != c.term {
					t.Errorf("trace %q", l.box.Trace())
				}
				if slices.Contains(l.box.Trace(), "signal ext terminated") {
					t.Error("SIGTERM to an extension")
				}
				// Only what was killed runs without a limit.
				for i, line := range l.box.Trace() {
					if line == "cpu 0.00" && !strings.HasSuffix(l.box.Trace()[i-1], "killed") {
						t.Errorf("the limit goes after %q", l.box.Trace()[i-1])
					}
				}
				if told := slices.Index(l.box.Trace(), "signal ext killed"); told > 0 && c.total == 2*time.Second && l.box.Trace()[told-1] != "cpu 1.00" {
					t.Errorf("an extension shuts down without a limit: %q", l.box.Trace())
				}
				if !strings.Contains(l.logger.String(), c.blame) {
					t.Errorf("the logger does not say %q", c.blame)
				}
			})
		})
	}
}

func extensionOnceInternal(p *fake.Proc) { extensionOnce(p, "internal") }

func TestBlameAfterInitLimit(t *testing.T) {
	misnamed := func(p *fake.Proc) sandbox.Exit { return extension("otel", `"INVOKE"`, 0)(p) }
	for _, c := range []struct {
		want     string
		programs map[string]fake.Program
	}{
		{"otel.sh registered as otel: an external extension must register under its file name", map[string]fake.Program{bootstrap: takes(0, ""), "/opt/extensions/otel.sh": misnamed}},
		{"ext never called register", map[string]fake.Program{bootstrap: takes(0, ""), ext: hangs}},
		{"the runtime never called invocation/next", map[string]fake.Program{bootstrap: hangs}},
	} {
		live(t, c.programs, nil, func(l *life) {
			begun := time.Now()
			<-l.idle
			if d := time.Since(begun); d < 10*time.Second || d > 12*time.Second {
				t.Errorf("the first attempt took %v", d)
			}
			if !strings.Contains(l.logger.String(), c.want) {
				t.Errorf("the logger does not say %q", c.want)
			}
		})
	}
}

func TestShutdownFinishesTheInvocation(t *testing.T) {
	live(t, map[string]fake.Program{bootstrap: takes(time.Second, "")}, nil, func(l *life) {
		<-l.idle
		var r *lambdad.Response
		var err error
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			r, err = l.Invoke(context.Background(), &lambdad.Invocation{RequestID: "r1"})
		}()
		time.Sleep(100 * time.Millisecond)
		l.Shutdown(context.Background())
		<-answered
		if err != nil || string(r.Payload) != "1" {
			t.Error(r, err)
		}
		if _, err := l.Invoke(context.Background(), &lambdad.Invocation{RequestID: "r2"}); !errors.Is(err, environment.ErrEnded) {
			t.Error(err)
		}
	})
}

func TestShutdownIsKilledWithItsContext(t *testing.T) {
	live(t, map[string]fake.Program{bootstrap: hangs}, nil, func(l *life) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		l.Shutdown(ctx) // during init
		select {
		case <-l.Done():
		default:
			t.Error("not done")
		}
	})
}

func TestKillAnswersNobody(t *testing.T) {
	live(t, map[string]fake.Program{bootstrap: takes(time.Hour, "")}, func(c *environment.Config, _ *fake.Driver) {
		v := version()
		v.Timeout = 15 * time.Minute
		c.Version = v
	}, func(l *life) {
		<-l.idle
		time.AfterFunc(time.Second, l.Kill)
		r, err := l.Invoke(context.Background(), &lambdad.Invocation{RequestID: "r1"})
		if !errors.Is(err, environment.ErrEnded) {
			t.Error(r, err)
		}
		<-l.Done()
		if strings.Contains(l.logger.String(), "ERROR") {
			t.Error("a kill is no fault:", l.logger.String())
		}
	})
}

func TestInvocationOutlivesItsCaller(t *testing.T) {
	live(t, map[string]fake.Program{bootstrap: takes(time.Second, "")}, nil, func(l *life) {
		<-l.idle
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if _, err := l.Invoke(ctx, &lambdad.Invocation{RequestID: "r1"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		<-l.idle
		if got := l.events.types(); got[len(got)-1] != "report success" {
			t.Error(got)
		}
	})
}

func TestSandboxFailures(t *testing.T) {
	boom := errors.New("boom")
	t.Run("listen", func(t *testing.T) {
		live(t, map[string]fake.Program{bootstrap: takes(0, "")}, func(_ *environment.Config, d *fake.Driver) {
			d.Fail("listen", boom)
			d.Fail("listen", boom)
		}, func(l *life) {
			r := l.invoke("r1")
			if want := `{"errorType":"Sandbox.Failure","errorMessage":"RequestId: r1 Error: The execution environment failed"}`; string(r.Payload) != want {
				t.Errorf("%s", r.Payload)
			}
			if r := l.invoke("r2"); string(r.Payload) != "1" { // it can recover
				t.Errorf("%s", r.Payload)
			}
			<-l.idle
			l.wantEvents("initStart init", "initReport failure Sandbox.Failure", "initStart invoke", "initReport failure Sandbox.Failure",
				"start", "runtimeDone failure Sandbox.Failure", "report failure Sandbox.Failure",
				"initStart invoke", "initRuntimeDone success", "initReport success", "start", "function working", "runtimeDone success", "report success")
		})
	})
	t.Run("reset", func(t *testing.T) {
		live(t, map[string]fake.Program{bootstrap: takes(0, "r1")}, func(_ *environment.Config, d *fake.Driver) { d.Fail("reset", boom) }, func(l *life) {
			l.invoke("r1")
			<-l.Done()
			if !errors.Is(l.ended[0], boom) {
				t.Error(l.ended)
			}
		})
	})
	t.Run("thaw", func(t *testing.T) {
		live(t, map[string]fake.Program{bootstrap: takes(0, "")}, func(_ *environment.Config, d *fake.Driver) { d.Fail("thaw", boom) }, func(l *life) {
			<-l.idle
			time.Sleep(2 * time.Second)
			l.idle <- struct{}{}
			if r := l.invoke("r1"); !strings.Contains(string(r.Payload), "Sandbox.Failure") {
				t.Errorf("%s", r.Payload)
			}
			if r := l.invoke("r2"); string(r.Payload) != "1" {
				t.Errorf("%s", r.Payload)
			}
		})
	})
	t.Run("freeze", func(t *testing.T) {
		live(t, map[string]fake.Program{bootstrap: takes(0, "")}, func(_ *environment.Config, d *fake.Driver) { d.Fail("freeze", boom) }, func(l *life) {
			<-l.idle
			time.Sleep(2 * time.Second)
			l.idle <- struct{}{}
			if r := l.invoke("r1"); string(r.Payload) != "1" {
				t.Errorf("%s", r.Payload)
			}
		})
	})
}

func TestEndpointInside(t *testing.T) {
	live(t, map[string]fake.Program{bootstrap: func(p *fake.Proc) sandbox.Exit {
		r, err := p.Client().Get(p.Getenv("AWS_ENDPOINT_URL") + "/who")
		if err != nil {
			p.Print(err)
			return sandbox.Exit{Code: 1}
		}
		b, _ := io.ReadAll(r.Body)
		p.Print(string(b))
		return takes(0, "")(p)
	}}, func(c *environment.Config, _ *fake.Driver) {
		c.Endpoint = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "you asked "+r.URL.Path) })
	}, func(l *life) {
		<-l.idle
		if !strings.Contains(string(l.log.Bytes()), "you asked /who\n") {
			t.Error("no answer")
		}
	})
}

func TestEnvironmentVariables(t *testing.T) {
	collect := func(into *map[string]string, next fake.Program) fake.Program {
		return func(p *fake.Proc) sandbox.Exit {
			*into = map[string]string{}
			for _, kv := range p.Env {
				k, v, _ := strings.Cut(kv, "=")
				(*into)[k] = v
			}
			(*into)["(dir)"] = p.Dir
			return next(p)
		}
	}
	var runtime, extensionVars map[string]string
	live(t, map[string]fake.Program{
		bootstrap: collect(&runtime, takes(0, "")),
		ext:       collect(&extensionVars, extension("ext", ``, 0)),
	}, func(c *environment.Config, _ *fake.Driver) {
		v := version()
		v.Env = map[string]string{"MINE": "1", "_MINE": "2", "LANG": "C", "PYTHONPATH": "/var/task/lib", "AWS_REGION": "no", "AWS_XRAY_DAEMON_ADDRESS": "1.2.3.4:5"}
		v.Logging = lambdad.Logging{Format: "JSON", ApplicationLevel: "WARN", Group: "/g"}
		c.Version = v
		c.RuntimeEnv = map[string]string{"AWS_EXECUTION_ENV": "AWS_Lambda_python3.13", "PYTHONPATH": "/var/runtime"}
		c.Credentials = func(party string) lambdad.Credentials {
			return lambdad.Credentials{AccessKeyID: "AKID-" + party, SecretAccessKey: "s", SessionToken: "t"}
		}
		c.LogStream = "stream"
		c.Endpoint = http.NotFoundHandler()
	}, func(l *life) {
		<-l.idle
		both := map[string]string{
			"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001", "AWS_LAMBDA_FUNCTION_NAME": "hello", "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
			"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128", "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
			"AWS_ACCESS_KEY_ID": "AKID-extension/ext", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t",
			"AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand", "AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": "WARN",
			"LANG": "C", "TZ": ":UTC", "PATH": "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
			"LD_LIBRARY_PATH":  "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
			"AWS_ENDPOINT_URL": "http://127.0.0.1:4566", "MINE": "1", "PYTHONPATH": "/var/task/lib", "(dir)": "/",
		}
		if !reflect.DeepEqual(extensionVars, both) {
			t.Errorf("extension\n got %v\nwant %v", extensionVars, both)
		}
		for k, v := range map[string]string{
			"_MINE": "2", "_HANDLER": "h", "AWS_ACCESS_KEY_ID": "AKID-runtime", "LAMBDA_TASK_ROOT": "/var/task", "LAMBDA_RUNTIME_DIR": "/var/runtime",
			"AWS_EXECUTION_ENV": "AWS_Lambda_python3.13", "AWS_LAMBDA_LOG_GROUP_NAME": "/g", "AWS_LAMBDA_LOG_STREAM_NAME": "stream",
			"AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR", "AWS_XRAY_DAEMON_ADDRESS": "1.2.3.4:5",
			"_AWS_XRAY_DAEMON_ADDRESS": "169.254.100.1", "_AWS_XRAY_DAEMON_PORT": "2000", "(dir)": "/var/task",
		} {
			both[k] = v
		}
		if !reflect.DeepEqual(runtime, both) {
			t.Errorf("runtime\n got %v\nwant %v", runtime, both)
		}
	})
}

func TestDeadlinesAndHeaders(t *testing.T) {
	var header http.Header
	var event map[string]any
	live(t, map[string]fake.Program{
		bootstrap: func(p *fake.Proc) sandbox.Exit {
			r, err := p.Client().Get(p.URL() + "/2018-06-01/runtime/invocation/next")
			if err == nil {
				header = r.Header
				io.Copy(io.Discard, r.Body)
				r.Body.Close()
			}
			<-p.Killed()
			return sandbox.Exit{}
		},
		ext: func(p *fake.Proc) sandbox.Exit {
			c := p.Client()
			req, _ := http.NewRequest("POST", p.URL()+"/2020-01-01/extension/register", strings.NewReader(`{"events":["INVOKE"]}`))
			req.Header.Set("Lambda-Extension-Name", "ext")
			r, err := c.Do(req)
			if err != nil {
				return sandbox.Exit{Code: 1}
			}
			io.Copy(io.Discard, r.Body)
			req, _ = http.NewRequest("GET", p.URL()+"/2020-01-01/extension/event/next", nil)
			req.Header.Set("Lambda-Extension-Identifier", r.Header.Get("Lambda-Extension-Identifier"))
			if r, err = c.Do(req); err == nil && event == nil {
				b, _ := io.ReadAll(r.Body)
				json.Unmarshal(b, &event)
				r.Body.Close()
			}
			<-p.Killed()
			return sandbox.Exit{}
		},
	}, func(c *environment.Config, _ *fake.Driver) {
		v := version()
		v.Tracing = "Active"
		c.Version = v
	}, func(l *life) {
		<-l.idle
		time.Sleep(time.Minute) // frozen; the deadline counts from the release
		deadline := time.Now().Add(3 * time.Second).UnixMilli()
		l.Invoke(context.Background(), &lambdad.Invocation{RequestID: "r1", InvokedARN: "arn:f:live", Payload: []byte("{}"),
			ClientContext: "{\"a\":\r\n1}", TraceID: "Root=1-5f35ae12-0c0fec141ab77a00bc047aa2;Parent=2be948a625588e32;Sampled=1"})
		synctest.Wait()
		span := telemetry.TraceField(header.Get("Lambda-Runtime-Trace-Id"), "Parent")
		if span == "" || span == "2be948a625588e32" {
			t.Errorf("parent %q", span)
		}
		want := http.Header{
			"Content-Type": {"application/json"}, "Content-Length": {"2"},
			"Lambda-Runtime-Aws-Request-Id": {"r1"}, "Lambda-Runtime-Deadline-Ms": {jsonNumber(deadline)},
			"Lambda-Runtime-Invoked-Function-Arn": {"arn:f:live"}, "Lambda-Runtime-Client-Context": {`{"a":1}`},
			"Lambda-Runtime-Trace-Id": {"Root=1-5f35ae12-0c0fec141ab77a00bc047aa2;Parent=" + span + ";Sampled=1"},
		}
		if !reflect.DeepEqual(header, want) {
			t.Errorf("headers\n got %v\nwant %v", header, want)
		}
		wantEvent := map[string]any{"eventType": "INVOKE", "deadlineMs": float64(deadline), "requestId": "r1", "invokedFunctionArn": "arn:f:live",
			"tracing": map[string]any{"type": "X-Amzn-Trace-Id", "value": want.Get("Lambda-Runtime-Trace-Id")}}
		if !reflect.DeepEqual(event, wantEvent) {
			t.Errorf("event\n got %v\nwant %v", event, wantEvent)
		}
		<-l.idle
		if !regexp.MustCompile(`\tStatus: timeout\nXRAY TraceId: 1-5f35ae12-0c0fec141ab77a00bc047aa2\tSegmentId: ` + span + `\tSampled: true\n`).Match(l.log.Bytes()) {
			t.Error("no XRAY line")
		}
	})
}

func jsonNumber(n int64) string {
	b, _ := json.Marshal(n)
	return string(b)
}

func TestProcessesOfOneGenerationDoNotReachTheNext(t *testing.T) {
	// The first runtime leaves a process behind that posts an init error as soon
	// as the next generation is there; Reset ends it before.
	var late []int
	live(t, map[string]fake.Program{bootstrap: firstly(func(p *fake.Proc) sandbox.Exit {
		p.Fork(func(p *fake.Proc) sandbox.Exit {
			for p.Sleep(time.Millisecond) {
				r, err := p.Client().Post(p.URL()+"/2018-06-01/runtime/init/error", "", strings.NewReader(`{"late":true}`))
				if err == nil {
					late = append(late, r.StatusCode)
					r.Body.Close()
				}
			}
			return sandbox.Exit{}
		})
		return takes(10*time.Millisecond, "r1")(p)
	}, takes(0, ""))}, nil, func(l *life) {
		l.invoke("r1")
		if r := l.invoke("r2"); string(r.Payload) != "1" {
			t.Errorf("%s", r.Payload)
		}
		<-l.idle
		synctest.Wait()
		if slices.Contains(late, 202) {
			t.Error(late)
		}
	})
}

func BenchmarkWarmInvoke(b *testing.B) {
	for _, n := range []int{0, 1, 3} {
		b.Run(map[int]string{0: "bare", 1: "1 extension", 3: "3 extensions"}[n], func(b *testing.B) {
			d := &fake.Driver{Files: map[string]fake.File{bootstrap: {Run: echo}}}
			for i := range n {
				name := "ext" + string(rune('a'+i))
				d.Files["/opt/extensions/"+name] = fake.File{Run: extension(name, `"INVOKE"`, 0)}
			}
			box, err := d.Create(context.Background(), sandbox.Spec{ID: "a"})
			if err != nil {
				b.Fatal(err)
			}
			idle := make(chan struct{}, 1)
			e := environment.Start(environment.Config{
				ID: strings.Repeat("0", 32), Version: version(), Entrypoints: []string{bootstrap}, Sandbox: box,
				FreezeDelay: time.Second, OnIdle: func(*environment.Environment) { idle <- struct{}{} },
			})
			defer e.Shutdown(context.Background())
			inv := &lambdad.Invocation{RequestID: "3da1f2dc-3222-475e-9205-e2e6c6318895", InvokedARN: "arn:aws:lambda:us-east-1:123456789012:function:hello", Payload: []byte(`{"key":"value"}`)}
			b.ReportAllocs()
			for b.Loop() {
				<-idle
				if _, err := e.Invoke(context.Background(), inv); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A report knows of an error that the handler posted, of which its status does not.
func TestReportOfPostedError(t *testing.T) {
	live(t, map[string]fake.Program{
		bootstrap: func(p *fake.Proc) sandbox.Exit {
			c := p.Client()
			for _, how := range []string{"/error", "/response"} {
				r, err := c.Get(p.URL() + "/2018-06-01/runtime/invocation/next")
				if err != nil {
					return sandbox.Exit{Code: 1}
				}
				r.Body.Close()
				r, err = c.Post(p.URL()+"/2018-06-01/runtime/invocation/"+r.Header.Get("Lambda-Runtime-Aws-Request-Id")+how, "application/json", strings.NewReader(`{"errorType":"E"}`))
				if err != nil {
					return sandbox.Exit{Code: 1}
				}
				r.Body.Close()
			}
			return takes(0, "")(p)
		},
	}, nil, func(l *life) {
		for i, want := range []bool{true, false, false} {
			if r := l.invoke("r"); (r.FunctionError != "") != want {
				t.Errorf("answer %d: %+v", i, r)
			}
		}
		<-l.idle
		var got []bool
		for _, e := range l.events.list {
			if r, ok := e.Record.(telemetry.Report); ok {
				got = append(got, r.FunctionError)
				if r.Status != telemetry.StatusSuccess {
					t.Errorf("status %s", r.Status)
				}
			}
		}
		if !slices.Equal(got, []bool{true, false, false}) {
			t.Errorf("reports of errors: %v", got)
		}
	})
}
