package environment_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lambdad/lambdad/environment"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/fake"
	"github.com/lambdad/lambdad/telemetry"
)

// observer is an extension that subscribes and notes, in one list over all its
// processes, what it gets: records in short, and the SHUTDOWN event.
type observer struct {
	name, path, body string
	port             string
	late             time.Duration                                  // between subscribing and listening
	answer           func(p *fake.Proc, w http.ResponseWriter) bool // before what came is noted; false: it is not
	raw              bool                                           // note records as they come
	busy             time.Duration                                  // with each INVOKE

	mu   sync.Mutex
	list []string
	bad  []string
	box  atomic.Pointer[fake.Sandbox]
}

// newObserver observes platform and function.
func newObserver() *observer {
	return &observer{
		name: "obs", port: "8080", path: "/2022-07-01/telemetry",
		body: `{"schemaVersion":"2025-01-29","types":["platform","function"],"buffering":{"timeoutMs":25},"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:8080/x"}}`,
	}
}

func (o *observer) note(s string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, s)
}

func (o *observer) seen() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.list)
}

func (o *observer) want(t *testing.T, want ...string) {
	t.Helper()
	if got := o.seen(); !slices.Equal(got, want) {
		t.Errorf("%s saw\n %s\nwant\n %s", o.name, strings.Join(got, "\n "), strings.Join(want, "\n "))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, b := range o.bad {
		t.Error(b)
	}
}

func frozen(box *fake.Sandbox) bool {
	last := ""
	for _, s := range box.Trace() {
		if s == "freeze" || s == "thaw" || s == "reset" || s == "destroy" {
			last = s
		}
	}
	return last == "freeze"
}

// watched is a connection that tells when something comes out of it while the
// environment is frozen.
type watched struct {
	net.Conn
	o *observer
}

func (w watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if box := w.o.box.Load(); n > 0 && box != nil && frozen(box) {
		w.o.mu.Lock()
		defer w.o.mu.Unlock()
		w.o.bad = append(w.o.bad, fmt.Sprintf("%d bytes were written into a frozen environment: %.80q", n, b[:n]))
	}
	return n, err
}

type watchedListener struct {
	net.Listener
	o *observer
}

func (l watchedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return watched{c, l.o}, nil
}

// run is the program.
func (o *observer) run(p *fake.Proc) sandbox.Exit {
	c := p.Client()
	call := func(method, path, body string, h ...string) (*http.Response, string, bool) {
		req, _ := http.NewRequest(method, p.URL()+path, strings.NewReader(body))
		for i := 0; i < len(h); i += 2 {
			req.Header.Set(h[i], h[i+1])
		}
		r, err := c.Do(req)
		if err != nil {
			return nil, "", false
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		return r, string(b), err == nil
	}
	r, _, ok := call("POST", "/2020-01-01/extension/register", `{"events":["INVOKE","SHUTDOWN"]}`, "Lambda-Extension-Name", o.name)
	if !ok {
		return sandbox.Exit{Code: 1}
	}
	id := r.Header.Get("Lambda-Extension-Identifier")
	r, _, ok = call("PUT", o.path, o.body, "Lambda-Extension-Identifier", id)
	if !ok || r.StatusCode != 200 {
		return sandbox.Exit{Code: 1}
	}
	if o.late > 0 && !p.Sleep(o.late) {
		return sandbox.Exit{}
	}
	l, err := p.Listen("sandbox.localdomain:" + o.port)
	if err != nil {
		p.Print(err)
		return sandbox.Exit{Code: 1}
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		b, err := io.ReadAll(q.Body)
		if err != nil || o.answer != nil && !o.answer(p, w) {
			return
		}
		if o.raw {
			list, err := splitBatch(b)
			if err != nil {
				o.note("bad body " + err.Error())
			}
			for _, e := range list {
				o.note(e)
			}
			return
		}
		var list []shortEvent
		if err := json.Unmarshal(b, &list); err != nil {
			o.note("bad body " + string(b))
		}
		for _, e := range list {
			o.note(e.String())
		}
	})}
	defer srv.Close() // the next process listens on the same port
	go srv.Serve(watchedListener{l, o})
	go func() {
		<-p.Killed()
		srv.Close()
	}()
	for {
		_, body, ok := call("GET", "/2020-01-01/extension/event/next", "", "Lambda-Extension-Identifier", id)
		if !ok {
			return sandbox.Exit{Code: 1}
		}
		if strings.Contains(body, "SHUTDOWN") {
			_, reason, _ := strings.Cut(body, `"shutdownReason":"`)
			reason, _, _ = strings.Cut(reason, `"`)
			o.note("SHUTDOWN " + reason)
			return sandbox.Exit{}
		}
		if o.busy > 0 && !p.Sleep(o.busy) {
			return sandbox.Exit{}
		}
	}
}

type shortEvent struct {
	Time, Type string
	Record     any
}

func (e shortEvent) String() string {
	s := strings.TrimPrefix(e.Type, "platform.")
	switch r := e.Record.(type) {
	case string:
		return s + " " + r
	case map[string]any:
		if e.Type == telemetry.TypeExtension {
			return fmt.Sprint(s, " ", r["name"], " ", r["state"])
		}
		for _, k := range []string{"requestId", "phase", "status", "errorType"} {
			if v, ok := r[k]; ok {
				s += fmt.Sprint(" ", v)
			}
		}
	}
	return s
}

// observed runs an environment with observers.
func observed(t *testing.T, programs map[string]fake.Program, observers []*observer, change func(*environment.Config, *fake.Driver), body func(*life)) {
	t.Helper()
	all := map[string]fake.Program{}
	for path, p := range programs {
		all[path] = p
	}
	for _, o := range observers {
		all["/opt/extensions/"+o.name] = o.run
	}
	live(t, all, change, func(l *life) {
		for _, o := range observers {
			o.box.Store(l.box)
		}
		body(l)
	})
}

// coldInit is what an observer sees of an initialisation.
func coldInit(phase string) []string {
	return []string{"initStart " + phase, "telemetrySubscription", "initRuntimeDone " + phase + " success", "extension obs Ready", "initReport " + phase + " success"}
}

func invocation(id string) []string {
	return []string{"start " + id, "function working", "runtimeDone " + id + " success"}
}

// TestOrder is the table of telemetry-api.md section 7: the records in the order
// an extension gets them, with the events it got between.
func TestOrder(t *testing.T) {
	works := takes(30*time.Millisecond, "")
	// Each process ends the first time it works, in its own way.
	once := func(first fake.Program) fake.Program { return firstly(first, works) }
	next := func(then func(p *fake.Proc) sandbox.Exit) fake.Program { return takesOne(then) }
	failedInit := func(status string) []string {
		return []string{"initStart init", "telemetrySubscription", "initRuntimeDone init " + status, "extension obs Ready", "initReport init " + status}
	}
	join := func(parts ...[]string) []string { return slices.Concat(parts...) }
	shutdown := func(reason string) []string { return []string{"SHUTDOWN " + reason} }
	afterReset := join(coldInit("invoke"), invocation("r2"), []string{"report r2 success"}, shutdown("spindown"))

	for _, c := range []struct {
		name     string
		programs map[string]fake.Program
		change   func(*environment.Config, *fake.Driver)
		invokes  int
		want     []string
	}{{
		"cold, warm, shut down", map[string]fake.Program{bootstrap: works}, nil, 2,
		join(coldInit("init"), invocation("r1"), []string{"report r1 success"}, invocation("r2"), []string{"report r2 success"}, shutdown("spindown")),
	}, {
		"init error", map[string]fake.Program{bootstrap: once(slowly(100*time.Millisecond, exits(1)))}, nil, 2,
		join(failedInit("error Runtime.ExitError"), shutdown("failure"),
			coldInit("invoke"), invocation("r1"), []string{"report r1 success"}, invocation("r2"), []string{"report r2 success"}, shutdown("spindown")),
	}, {
		"init error twice", map[string]fake.Program{bootstrap: slowly(100*time.Millisecond, exits(1))}, nil, 1,
		join(failedInit("error Runtime.ExitError"), shutdown("failure"),
			[]string{"initStart invoke", "telemetrySubscription", "initRuntimeDone invoke error Runtime.ExitError", "extension obs Ready", "initReport invoke error Runtime.ExitError",
				"start r1", "runtimeDone r1 error Runtime.ExitError", "report r1 error Runtime.ExitError"}, shutdown("failure")),
	}, {
		"extension does not start", map[string]fake.Program{bootstrap: works, "/opt/extensions/zzz": slowly(100*time.Millisecond, exits(1))}, nil, 0,
		join([]string{"initStart init", "telemetrySubscription", "extension obs Ready", "extension zzz Started", "initReport init error Extension.Crash"}, shutdown("failure")),
	}, {
		"init timeout", map[string]fake.Program{bootstrap: once(hangs)}, nil, 2,
		join(failedInit("timeout"), shutdown("timeout"),
			coldInit("invoke"), invocation("r1"), []string{"report r1 success"}, invocation("r2"), []string{"report r2 success"}, shutdown("spindown")),
	}, {
		"handler error", map[string]fake.Program{bootstrap: failing}, nil, 1,
		join(coldInit("init"), []string{"start r1", "runtimeDone r1 success", "report r1 success"}, shutdown("spindown")),
	}, {
		"function timeout", map[string]fake.Program{bootstrap: once(next(hangs))}, nil, 2,
		join(coldInit("init"), []string{"start r1", "function working", "runtimeDone r1 timeout", "report r1 timeout"}, shutdown("timeout"), afterReset),
	}, {
		"runtime crash", map[string]fake.Program{bootstrap: once(next(slowly(50*time.Millisecond, exits(3))))}, nil, 2,
		join(coldInit("init"), []string{"start r1", "function working", "runtimeDone r1 error Runtime.ExitError", "report r1 error Runtime.ExitError"}, shutdown("failure"), afterReset),
	}, {
		"extension crash before runtimeDone", map[string]fake.Program{
			bootstrap: takes(200*time.Millisecond, ""), "/opt/extensions/zzz": firstly(crashing("zzz", 50*time.Millisecond), extension("zzz", `"INVOKE"`, 0))}, nil, 1,
		join([]string{"initStart init", "telemetrySubscription", "initRuntimeDone init success", "extension obs Ready", "extension zzz Ready", "initReport init success"},
			[]string{"start r1", "function working", "runtimeDone r1 error Extension.Crash", "report r1 error Extension.Crash"}, shutdown("failure")),
	}, {
		"extension crash after runtimeDone", map[string]fake.Program{
			bootstrap: works, "/opt/extensions/zzz": firstly(crashing("zzz", 200*time.Millisecond), extension("zzz", `"INVOKE"`, 0))}, nil, 1,
		join([]string{"initStart init", "telemetrySubscription", "initRuntimeDone init success", "extension obs Ready", "extension zzz Ready", "initReport init success"},
			[]string{"start r1", "function working", "runtimeDone r1 success", "report r1 error Extension.Crash"}, shutdown("failure")),
	}, {
		"extension stalls after runtimeDone", map[string]fake.Program{
			bootstrap: works, "/opt/extensions/zzz": firstly(crashing("zzz", time.Hour), extension("zzz", `"INVOKE"`, 0))}, nil, 1,
		join([]string{"initStart init", "telemetrySubscription", "initRuntimeDone init success", "extension obs Ready", "extension zzz Ready", "initReport init success"},
			[]string{"start r1", "function working", "runtimeDone r1 success", "report r1 timeout"}, shutdown("timeout")),
	}, {
		"provisioned", map[string]fake.Program{bootstrap: works}, func(c *environment.Config, _ *fake.Driver) { c.InitType = "provisioned-concurrency" }, 1,
		join(coldInit("init"), invocation("r1"), []string{"report r1 success"}, shutdown("spindown")),
	}} {
		t.Run(c.name, func(t *testing.T) {
			o := newObserver()
			observed(t, c.programs, []*observer{o}, c.change, func(l *life) {
				for i := range c.invokes {
					l.invoke(fmt.Sprintf("r%d", i+1))
				}
				<-l.idle
				time.Sleep(5 * time.Second) // and freezes
				l.Shutdown(context.Background())
				synctest.Wait()
				o.want(l.t, c.want...)
			})
		})
	}
}

// takesOne is a runtime that takes one event and then does something else.
func takesOne(then fake.Program) fake.Program {
	return func(p *fake.Proc) sandbox.Exit {
		r, err := p.Client().Get(p.URL() + "/2018-06-01/runtime/invocation/next")
		if err != nil {
			return sandbox.Exit{Code: 1}
		}
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
		p.Print("working")
		return then(p)
	}
}

// failing is a runtime whose handler fails.
func failing(p *fake.Proc) sandbox.Exit {
	c := p.Client()
	for {
		r, err := c.Get(p.URL() + "/2018-06-01/runtime/invocation/next")
		if err != nil {
			return sandbox.Exit{Code: 1}
		}
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
		r, err = c.Post(p.URL()+"/2018-06-01/runtime/invocation/"+r.Header.Get("Lambda-Runtime-Aws-Request-Id")+"/error", "", strings.NewReader(`{"errorType":"E"}`))
		if err != nil {
			return sandbox.Exit{Code: 1}
		}
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
		if !p.Sleep(30 * time.Millisecond) {
			return sandbox.Exit{}
		}
	}
}

// crashing is an extension that exits a while after its first event.
func crashing(name string, after time.Duration) fake.Program {
	return func(p *fake.Proc) sandbox.Exit {
		extensionOnce(p, name)
		p.Sleep(after)
		return sandbox.Exit{Code: 9}
	}
}

// TestReportComesWithTheNextWakeUp: the report of an invocation is made after the
// extension's own next, so it gets it with the next invocation or the shutdown,
// and nothing at all while it is idle or frozen, however long that lasts and
// whether or not the sandbox freezes.
func TestReportComesWithTheNextWakeUp(t *testing.T) {
	for _, delay := range []time.Duration{0, 10 * time.Second, -1} {
		t.Run(delay.String(), func(t *testing.T) {
			o := newObserver()
			o.busy = 100 * time.Millisecond
			observed(t, map[string]fake.Program{bootstrap: takes(30*time.Millisecond, "")}, []*observer{o},
				func(c *environment.Config, _ *fake.Driver) { c.FreezeDelay = delay }, func(l *life) {
					want := coldInit("init")
					for i := range 3 {
						id := fmt.Sprintf("r%d", i)
						l.invoke(id)
						want = append(want, invocation(id)...)
						time.Sleep(time.Hour)
						o.want(l.t, want...)
						want = append(want, "report "+id+" success")
					}
					l.Shutdown(context.Background())
					want = append(want, "SHUTDOWN spindown")
					o.want(l.t, want...)
				})
		})
	}
}

// TestStuckSubscriber has two extensions, one of whom answers nothing it is sent:
// neither the invocations nor the other extension wait for it, nor does freezing,
// and at the shutdown it delays nobody but itself.
func TestStuckSubscriber(t *testing.T) {
	good, stuck := newObserver(), newObserver()
	stuck.name, stuck.port = "stuck", "8081"
	stuck.body = strings.Replace(stuck.body, "8080", "8081", 1)
	stuck.answer = func(p *fake.Proc, _ http.ResponseWriter) bool {
		<-p.Killed()
		return false
	}
	observed(t, map[string]fake.Program{bootstrap: takes(30*time.Millisecond, "")}, []*observer{good, stuck}, nil, func(l *life) {
		for _, id := range []string{"r1", "r2"} {
			<-l.idle
			l.idle <- struct{}{}
			begun := time.Now()
			l.invoke(id)
			if d := time.Since(begun); d != 30*time.Millisecond {
				l.t.Errorf("%s took %v", id, d)
			}
			time.Sleep(time.Minute)
			if !frozen(l.box) {
				l.t.Error("not frozen")
			}
		}
		begun := time.Now()
		l.Shutdown(context.Background())
		if d := time.Since(begun); d != time.Second {
			l.t.Errorf("shutdown took %v, want the limit of a flush", d)
		}
		good.want(l.t, slices.Concat([]string{"initStart init", "telemetrySubscription", "telemetrySubscription", "initRuntimeDone init success", "extension obs Ready", "extension stuck Ready", "initReport init success"},
			invocation("r1"), []string{"report r1 success"}, invocation("r2"), []string{"report r2 success", "SHUTDOWN spindown"})...)
		stuck.want(l.t, "SHUTDOWN spindown")
	})
}

// TestFlushIsForItsOwner: the SHUTDOWN event of an extension whose telemetry was
// delivered does not wait for another's.
func TestFlushIsForItsOwner(t *testing.T) {
	var at []time.Duration
	var mu sync.Mutex
	var begun time.Time
	quick := func(p *fake.Proc) sandbox.Exit {
		x := extension("quick", `"SHUTDOWN"`, 0)(p)
		mu.Lock()
		defer mu.Unlock()
		at = append(at, time.Since(begun))
		return x
	}
	live(t, map[string]fake.Program{
		bootstrap:                takes(30*time.Millisecond, ""),
		"/opt/extensions/quick":  quick,
		"/opt/extensions/nobody": deaf("nobody"),
	}, nil, func(l *life) {
		l.invoke("r1")
		<-l.idle
		time.Sleep(time.Minute)
		begun = time.Now()
		l.Shutdown(context.Background())
		if d := time.Since(begun); d != time.Second {
			l.t.Errorf("shutdown took %v", d)
		}
		if len(at) != 1 || at[0] != 0 {
			l.t.Errorf("the other extension ended after %v", at)
		}
	})
}

// deaf is an extension that subscribes and never listens.
func deaf(name string) fake.Program {
	return func(p *fake.Proc) sandbox.Exit {
		c := p.Client()
		call := func(method, path, body, key, value string) *http.Response {
			req, _ := http.NewRequest(method, p.URL()+path, strings.NewReader(body))
			req.Header.Set(key, value)
			r, err := c.Do(req)
			if err != nil {
				return &http.Response{}
			}
			io.Copy(io.Discard, r.Body)
			r.Body.Close()
			return r
		}
		r := call("POST", "/2020-01-01/extension/register", `{"events":["SHUTDOWN"]}`, "Lambda-Extension-Name", name)
		id := r.Header.Get("Lambda-Extension-Identifier")
		if r = call("PUT", "/2020-08-15/logs", `{"types":["platform"],"destination":{"protocol":"HTTP","URI":"http://sandbox:1"}}`, "Lambda-Extension-Identifier", id); r.StatusCode != 200 {
			return sandbox.Exit{Code: 1}
		}
		call("GET", "/2020-01-01/extension/event/next", "", "Lambda-Extension-Identifier", id)
		return sandbox.Exit{}
	}
}

// TestListenerComesLateInInit has a listener that begins after the subscription.
func TestListenerComesLateInInit(t *testing.T) {
	o := newObserver()
	o.late = 3 * time.Second
	observed(t, map[string]fake.Program{bootstrap: takes(30*time.Millisecond, "")}, []*observer{o}, nil, func(l *life) {
		l.invoke("r1")
		<-l.idle
		l.Shutdown(context.Background())
		o.want(l.t, slices.Concat(coldInit("init"), invocation("r1"), []string{"report r1 success", "SHUTDOWN spindown"})...)
	})
}

// TestRequestSurvivesFreezing has a subscriber that is frozen for an hour while it
// takes a batch: it goes on with the same request, and gets nothing twice.
func TestRequestSurvivesFreezing(t *testing.T) {
	o := newObserver()
	var requests atomic.Int32
	o.answer = func(p *fake.Proc, _ http.ResponseWriter) bool {
		requests.Add(1)
		return p.Sleep(100 * time.Millisecond) // in the environment's own time
	}
	observed(t, map[string]fake.Program{bootstrap: takes(30*time.Millisecond, "")}, []*observer{o},
		func(c *environment.Config, _ *fake.Driver) { c.FreezeDelay = 0 }, func(l *life) {
			l.invoke("r1")
			<-l.idle
			time.Sleep(time.Hour)
			if !frozen(l.box) || requests.Load() == 0 {
				l.t.Errorf("frozen %v, %d requests", frozen(l.box), requests.Load())
			}
			l.idle <- struct{}{}
			l.invoke("r2")
			<-l.idle
			l.Shutdown(context.Background())
			o.want(l.t, slices.Concat(coldInit("init"), invocation("r1"), []string{"report r1 success"}, invocation("r2"), []string{"report r2 success", "SHUTDOWN spindown"})...)
		})
}

// TestSubscriptionWindow: it closes with the initialisation, for every extension.
func TestSubscriptionWindow(t *testing.T) {
	var got atomic.Value
	late := func(p *fake.Proc) sandbox.Exit {
		o := newObserver()
		c := p.Client()
		req, _ := http.NewRequest("POST", p.URL()+"/2020-01-01/extension/register", strings.NewReader(`{"events":["INVOKE"]}`))
		req.Header.Set("Lambda-Extension-Name", "late")
		r, err := c.Do(req)
		if err != nil {
			return sandbox.Exit{Code: 1}
		}
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
		for i := range 2 {
			req, _ = http.NewRequest("GET", p.URL()+"/2020-01-01/extension/event/next", nil)
			if i == 1 {
				req, _ = http.NewRequest("PUT", p.URL()+o.path, strings.NewReader(o.body))
			}
			req.Header.Set("Lambda-Extension-Identifier", r.Header.Get("Lambda-Extension-Identifier"))
			a, err := c.Do(req)
			if err != nil {
				return sandbox.Exit{Code: 1}
			}
			b, _ := io.ReadAll(a.Body)
			a.Body.Close()
			got.Store(fmt.Sprint(a.StatusCode, " ", strings.TrimSpace(string(b))))
		}
		<-p.Killed()
		return sandbox.Exit{}
	}
	live(t, map[string]fake.Program{bootstrap: takes(30*time.Millisecond, ""), "/opt/extensions/late": late}, nil, func(l *life) {
		l.invoke("r1")
		<-l.idle
		if want := `403 {"errorMessage":"Telemetry API subscription is closed","errorType":"Telemetry.SubscriptionClosed"}`; got.Load() != want {
			l.t.Errorf("got %s\nwant %s", got.Load(), want)
		}
	})
}

// TestLogsAPIInALife is a life as the Logs API tells it, with lines of extensions,
// and the JSON log format, which it does not know.
func TestLogsAPIInALife(t *testing.T) {
	o := newObserver()
	o.path = "/2020-08-15/logs"
	o.body = `{"schemaVersion":"2021-03-18","types":["platform","function","extension"],"buffering":{"timeoutMs":25},"destination":{"protocol":"HTTP","URI":"http://sandbox:8080"}}`
	says := func(p *fake.Proc) sandbox.Exit {
		p.Print(`{"level":"TRACE"}`)
		return o.run(p)
	}
	live(t, map[string]fake.Program{bootstrap: firstly(takes(30*time.Millisecond, "r2"), takes(30*time.Millisecond, "")), "/opt/extensions/obs": says},
		func(c *environment.Config, _ *fake.Driver) { c.Version.Logging.Format = "JSON" }, func(l *life) {
			l.invoke("r1")
			l.invoke("r2")
			<-l.idle
			o.want(l.t, `extension {"level":"TRACE"}`+"\n", "logsSubscription", "extension obs Ready",
				"start r1", "function working\n", "runtimeDone r1 success", "end r1", "report r1",
				"start r2", "function working\n", "runtimeDone r2 failure", "fault RequestId: r2 Process exited before completing request", "end r2", "report r2",
				"SHUTDOWN failure")
		})
}

// TestPlatformFault ends a life for the platform's own fault.
func TestPlatformFault(t *testing.T) {
	o := newObserver()
	observed(t, map[string]fake.Program{bootstrap: firstly(takesOne(exits(1)), takes(30*time.Millisecond, ""))}, []*observer{o}, nil, func(l *life) {
		l.driver.Fail("thaw", io.ErrUnexpectedEOF)
		<-l.idle
		time.Sleep(time.Minute)
		l.idle <- struct{}{}
		l.invoke("r1")
		<-l.idle
		types := l.events.types()
		if !slices.Contains(types, "runtimeDone failure Sandbox.Failure") || !slices.Contains(types, "report failure Sandbox.Failure") {
			l.t.Error(types)
		}
		o.want(l.t, o.seen()...)
	})
}
