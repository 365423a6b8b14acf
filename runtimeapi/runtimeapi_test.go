package runtimeapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
)

// pipes is a listener in memory.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial() (net.Conn, error) {
	c, s := net.Pipe()
	select {
	case p.conns <- s:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// client makes calls to an API under test.
type client struct {
	t      *testing.T
	api    *API
	pipes  *pipes
	http   *http.Client
	answer []Answer
}

func serve(t *testing.T, cfg Config, body func(*client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &client{t: t, api: New(cfg), pipes: newPipes()}
		c.http = &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return c.pipes.dial() }}}
		served := make(chan struct{})
		go func() {
			defer close(served)
			c.api.Serve(c.pipes)
		}()
		defer func() {
			c.api.Close()
			<-served
			c.http.CloseIdleConnections()
		}()
		body(c)
	})
}

type result struct {
	status int
	header http.Header
	body   string
	err    error
}

// call makes one request: "METHOD path", headers as "Name: value", then the body.
func (c *client) call(what string, body string, headers ...string) result {
	method, path, _ := strings.Cut(what, " ")
	req, err := http.NewRequest(method, "http://api"+path, strings.NewReader(body))
	if err != nil {
		return result{err: err}
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Add(k, v)
	}
	r, err := c.http.Do(req)
	if err != nil {
		return result{err: err}
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return result{r.StatusCode, r.Header, string(b), err}
}

// begin makes a call and waits until it blocks or is over.
func (c *client) begin(what string, body string, headers ...string) func() (result, bool) {
	ch := make(chan result, 1)
	go func() { ch <- c.call(what, body, headers...) }()
	synctest.Wait()
	return func() (result, bool) {
		synctest.Wait()
		select {
		case r := <-ch:
			return r, true
		default:
			return result{}, false
		}
	}
}

func (c *client) want(r result, status int, errorType, message string) {
	c.t.Helper()
	if r.err != nil {
		c.t.Fatal(r.err)
	}
	var e struct{ ErrorType, ErrorMessage string }
	json.Unmarshal([]byte(r.body), &e)
	if r.status != status || e.ErrorType != errorType || message != "" && e.ErrorMessage != message {
		c.t.Errorf("got %d %s\nwant %d %s: %s", r.status, r.body, status, errorType, message)
	}
	if errorType != "" && r.header.Get("Content-Type") != "application/json" {
		c.t.Errorf("content type %q", r.header.Get("Content-Type"))
	}
}

func (c *client) register(name, body string, headers ...string) result {
	return c.call("POST /2020-01-01/extension/register", body, append(headers, "Lambda-Extension-Name: "+name)...)
}

func (c *client) release(id string) *Invocation {
	inv := &Invocation{RequestID: id, Payload: []byte(`{}`), Deadline: time.Now().Add(3 * time.Second), Answer: func(a Answer) { c.answer = append(c.answer, a) }}
	c.api.Release(inv)
	return inv
}

const (
	next   = "GET /2018-06-01/runtime/invocation/next"
	evNext = "GET /2020-01-01/extension/event/next"
)

func response(id string) string { return "POST /2018-06-01/runtime/invocation/" + id + "/response" }
func failure(id string) string  { return "POST /2018-06-01/runtime/invocation/" + id + "/error" }

var cfg = Config{AccountID: "123456789012", FunctionName: "helloWorld", FunctionVersion: "$LATEST", Handler: "lambda_function.lambda_handler"}

func TestRegister(t *testing.T) {
	serve(t, cfg, func(c *client) {
		c.api.Expect("ext.sh")
		none := c.call("POST /2020-01-01/extension/register", "{}")
		c.want(none, 403, "Extension.InvalidExtensionName", "Empty extension name")
		c.want(c.register("ext.sh", ""), 403, "InvalidRequestFormat", "unexpected end of JSON input")
		c.want(c.register("ext.sh", "nope"), 403, "InvalidRequestFormat", "")
		c.want(c.register("ext.sh", `{"events":"INVOKE"}`), 403, "InvalidRequestFormat", "")
		c.want(c.register("ext.sh", `{"events":[],"configurationKeys":["a"]}`), 403, "InvalidRequestFormat", "configurationKeys are deprecated; use environment variables instead")
		c.want(c.register("ext.sh", `{"events":["invoke"]}`), 403, "Extension.InvalidEventType", "invoke: ErrorInvalidEventType")
		if c.api.Registered() {
			t.Error("a failed register opened the gate")
		}
		r := c.register("ext.sh", `{"events":["INVOKE","SHUTDOWN","INVOKE"],"more":1}`, "Content-Type: text/strange")
		if want := `{"functionName":"helloWorld","functionVersion":"$LATEST","handler":"lambda_function.lambda_handler"}`; r.status != 200 || r.body != want {
			t.Errorf("%d %s", r.status, r.body)
		}
		if uuid.Validate(r.header.Get("Lambda-Extension-Identifier")) != nil || r.header.Get("Content-Type") != "application/json" {
			t.Error(r.header)
		}
		if x := c.api.Extensions()[0]; fmt.Sprint(x.Events) != "[INVOKE SHUTDOWN]" || x.State != Registered || !c.api.Registered() {
			t.Errorf("%+v", x)
		}
		c.want(c.register("ext.sh", `{}`), 403, "Extension.InvalidExtensionState", "State transition from Registered to Registered failed for extension ext.sh. Error: State transition is not allowed")
		c.want(c.register("ext", `{"events":["SHUTDOWN"]}`), 403, "Extension.InvalidEventType", "SHUTDOWN: ShutdownEventNotSupportedForInternalExtension")
		c.want(c.register("ext", `{"events":["x"]}`), 403, "Extension.InvalidEventType", "x: ErrorInvalidEventType")
		r = c.register("in0", `{"events":null}`, "Lambda-Extension-Accept-Feature: other, accountId ")
		if want := `{"accountId":"123456789012","functionName":"helloWorld","functionVersion":"$LATEST","handler":"lambda_function.lambda_handler"}`; r.status != 200 || r.body != want {
			t.Errorf("%d %s", r.status, r.body)
		}
		c.want(c.register("in0", `{}`), 403, "Extension.InvalidExtensionState", "Extension with this name already registered")
		for i := 1; i < 9; i++ {
			if r := c.register(fmt.Sprint("in", i), `{"events":["INVOKE"]}`); r.status != 200 {
				t.Fatal(i, r)
			}
		}
		c.want(c.register("in9", `{}`), 403, "Extension.TooManyExtensions", "Extension limit (10) reached")
		c.want(c.register("ext.sh", strings.Repeat(" ", maxRegister+1)), 403, "InvalidRequestFormat", "")
		c.begin(next, "")
		c.want(c.register("in9", `{}`), 403, "Extension.RegistrationClosed", "Extension registration closed already")
	})
}

func TestIdentifiers(t *testing.T) {
	serve(t, cfg, func(c *client) {
		unknown := uuid.NewString()
		for _, route := range []string{evNext, "POST /2020-01-01/extension/init/error", "POST /2020-01-01/extension/exit/error", "PUT /2022-07-01/telemetry", "PUT /2020-08-15/logs/"} {
			withType := "Lambda-Extension-Function-Error-Type: Extension.X"
			c.want(c.call(route, "", withType), 403, "Extension.MissingExtensionIdentifier", "Missing Lambda-Extension-Identifier header")
			c.want(c.call(route, "", withType, "Lambda-Extension-Identifier: 12"), 403, "Extension.InvalidExtensionIdentifier", "Invalid Lambda-Extension-Identifier")
			message := "Unknown extension " + unknown
			if strings.HasSuffix(route, "/error") {
				message = "Unknown Lambda-Extension-Identifier"
				c.want(c.call(route, "", "Lambda-Extension-Identifier: "+unknown), 403, "Extension.MissingHeader", "Lambda-Extension-Function-Error-Type not found")
			}
			c.want(c.call(route, "", withType, "Lambda-Extension-Identifier: "+unknown), 403, "Extension.UnknownExtensionIdentifier", message)
		}
		id := "Lambda-Extension-Identifier: " + c.register("x", "{}").header.Get("Lambda-Extension-Identifier")
		c.want(c.call("PUT /2022-07-01/telemetry", "{}", id), 501, "Telemetry.NotSupported", "")
		c.want(c.call("PUT /2020-08-15/logs", "{}", id), 501, "Logs.NotSupported", "")
	})
}

func TestExtensionStates(t *testing.T) {
	serve(t, cfg, func(c *client) {
		c.api.Expect("ext")
		ext := c.register("ext", `{"events":["INVOKE","SHUTDOWN"]}`).header.Get("Lambda-Extension-Identifier")
		id := "Lambda-Extension-Identifier: " + ext
		kind := "Lambda-Extension-Function-Error-Type: Extension.Mine"
		wait := c.begin(evNext, "", id) // before the runtime exists
		if r, over := wait(); over {
			t.Fatal(r)
		}
		c.want(c.call(evNext, "", id), 403, "Extension.InvalidExtensionState", "State transition from Ready to Ready failed for extension "+ext+". Error: State transition is not allowed")
		c.want(c.call("POST /2020-01-01/extension/init/error", "", id, kind), 403, "Extension.InvalidExtensionState", "State transition from Ready to InitError failed for extension "+ext+". Error: State transition is not allowed")
		runtime := c.begin(next, "")
		if !c.api.Ready() {
			t.Error("not ready")
		}
		c.release("id1")
		r, over := wait()
		if !over || r.status != 200 || r.header.Get("Lambda-Extension-Identifier") != ext || uuid.Validate(r.header.Get("Lambda-Extension-Event-Identifier")) != nil || !strings.Contains(r.body, `"eventType":"INVOKE"`) || strings.Contains(r.body, "tracing") {
			t.Fatal(over, r)
		}
		runtime()
		c.call(response("id1"), "1")
		runtime = c.begin(next, "")
		if p := c.api.Progress(); p.Next.IsZero() || !p.AllNext.IsZero() {
			t.Errorf("%+v", p)
		}
		wait = c.begin(evNext, "", id)
		if p := c.api.Progress(); p.AllNext.IsZero() {
			t.Errorf("%+v", p)
		}
		c.api.End()
		if names := c.api.Shutdown("spindown", time.UnixMilli(1596485690000), nil); fmt.Sprint(names) != "[ext]" {
			t.Error(names)
		}
		r, over = wait()
		if !over || r.body != `{"eventType":"SHUTDOWN","shutdownReason":"spindown","deadlineMs":1596485690000}` || r.header.Get("Content-Type") != "application/json" {
			t.Error(over, r)
		}
		if r := c.call("POST /2020-01-01/extension/exit/error", "", id, kind); r.status != 202 || r.body != "{\"status\":\"OK\"}\n" {
			t.Error(r)
		}
		if r := c.call("POST /2020-01-01/extension/exit/error", "x", id, kind); r.status != 202 {
			t.Error(r)
		}
		c.want(c.call(evNext, "", id), 403, "Extension.InvalidExtensionState", "State transition from ExitError to Ready failed for extension "+ext+". Error: State transition is not allowed")
		if c.api.Fatal() != "" {
			t.Error("an error in shutdown is none of the environment")
		}
		_ = runtime
	})
}

func TestExtensionReports(t *testing.T) {
	serve(t, cfg, func(c *client) {
		a := "Lambda-Extension-Identifier: " + c.register("a", `{}`).header.Get("Lambda-Extension-Identifier")
		b := "Lambda-Extension-Identifier: " + c.register("b", `{}`).header.Get("Lambda-Extension-Identifier")
		for _, kind := range []string{"Extension.First", "Extension.Second"} {
			if r := c.call("POST /2020-01-01/extension/init/error", `{"any":1`, a, "Lambda-Extension-Function-Error-Type: "+kind); r.status != 202 {
				t.Error(r)
			}
		}
		c.call("POST /2020-01-01/extension/exit/error", "", b, "Lambda-Extension-Function-Error-Type: Extension.Third")
		c.want(c.call("POST /2020-01-01/extension/exit/error", "", a, "Lambda-Extension-Function-Error-Type: x"), 403, "Extension.InvalidExtensionState", "")
		c.want(c.call("POST /2020-01-01/extension/init/error", "", b, "Lambda-Extension-Function-Error-Type: x"), 403, "Extension.InvalidExtensionState", "")
		if x := c.api.Extensions(); x[0].ErrorType != "Extension.First" || x[0].State != InitError || x[1].State != ExitError || c.api.Fatal() != ErrExtensionInit {
			t.Errorf("%+v %s", x, c.api.Fatal())
		}
	})
}

func TestRuntimeStates(t *testing.T) {
	const refused = "State transition is not allowed"
	serve(t, cfg, func(c *client) {
		c.want(c.call(response("x"), ""), 400, "InvalidRequestID", "Invalid request ID")
		wait := c.begin(next, "", "User-Agent: aws-lambda-go/1", "Content-Type: x")
		if c.api.Agent() != "aws-lambda-go/1" {
			t.Error(c.api.Agent())
		}
		c.want(c.call("POST /2018-06-01/runtime/init/error", "{}"), 403, "InvalidStateTransition", "State transition from Ready to InitError failed for runtime. Error: "+refused)
		c.release("id1")
		if r, over := wait(); !over || r.status != 200 || r.body != "{}" || r.header.Get("Lambda-Runtime-Aws-Request-Id") != "id1" || r.header.Get("Lambda-Runtime-Trace-Id") != "" || r.header["Lambda-Runtime-Client-Context"] != nil {
			t.Error(over, r)
		}
		if r := c.call(next, ""); r.header.Get("Lambda-Runtime-Aws-Request-Id") != "id1" { // again, at once
			t.Error(r)
		}
		c.want(c.call(response("other"), ""), 400, "InvalidRequestID", "Invalid request ID")
		r := c.call(response("id1"), "")
		if r.status != 202 || r.body != "{\"status\":\"OK\"}\n" || r.header.Get("Content-Type") != "application/json" {
			t.Error(r)
		}
		c.want(c.call(response("id1"), "again"), 403, "InvalidStateTransition", "State transition from RuntimeResponseSentState to InvocationResponse failed for runtime. Error: "+refused)
		c.want(c.call(failure("id1"), "again"), 403, "InvalidStateTransition", "State transition from RuntimeResponseSentState to InvocationErrorResponse failed for runtime. Error: "+refused)
		wait = c.begin(next, "")
		c.want(c.call(response("id1"), "again"), 403, "InvalidStateTransition", "State transition from Ready to InvocationResponse failed for runtime. Error: "+refused)
		c.api.End()
		c.want(c.call(response("id1"), "again"), 400, "InvalidRequestID", "Invalid request ID")
		if len(c.answer) != 1 || len(c.answer[0].Payload) != 0 || c.answer[0].FunctionError {
			t.Errorf("%+v", c.answer)
		}
		c.release("id2")
		wait()
		if r := c.call(failure("id2"), `{"errorMessage":1}`, "Lambda-Runtime-Function-Error-Type: function.own", "Lambda-Runtime-Function-XRay-Error-Cause: "); r.status != 202 {
			t.Error(r)
		}
		if a := c.answer[1]; string(a.Payload) != `{"errorMessage":1}` || !a.FunctionError || a.ErrorType != "Runtime.Unknown" {
			t.Errorf("%+v", a)
		}
	})
	serve(t, cfg, func(c *client) {
		if r := c.call("POST /2018-06-01/runtime/init/error", `{"a":1}`, "Lambda-Runtime-Function-Error-Type: Runtime.Mine"); r.status != 202 {
			t.Error(r)
		}
		c.want(c.call("POST /2018-06-01/runtime/init/error", `{"a":2}`), 403, "InvalidStateTransition", "")
		c.want(c.call(next, ""), 403, "InvalidStateTransition", "")
		if a := c.api.InitErrored(); string(a.Payload) != `{"a":1}` || a.ErrorType != "Runtime.Mine" {
			t.Errorf("%+v", a)
		}
	})
}

func TestConcurrentNext(t *testing.T) {
	serve(t, cfg, func(c *client) {
		first, second := c.begin(next, ""), c.begin(next, "")
		c.release("id1")
		_, a := first()
		_, b := second()
		if a == b {
			t.Fatalf("delivered: %v %v", a, b)
		}
		c.call(response("id1"), "1")
		third := c.begin(next, "")
		c.api.End()
		c.release("id2")
		if _, over := second(); !over { // it has waited longer
			t.Error("the second call did not get the second event")
		}
		if _, over := third(); over {
			t.Error("the event was delivered twice")
		}
	})
}

func TestDisconnectedNextGetsNothing(t *testing.T) {
	serve(t, cfg, func(c *client) {
		conn, err := c.pipes.dial()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n")
		synctest.Wait()
		conn.Close()
		synctest.Wait()
		wait := c.begin(next, "")
		c.release("id1")
		if r, over := wait(); !over || r.header.Get("Lambda-Runtime-Aws-Request-Id") != "id1" {
			t.Error(over, r)
		}
		// The same for an extension, which may also come back late.
		c.call(response("id1"), "")
	})
	serve(t, cfg, func(c *client) {
		id := c.register("x", `{"events":["INVOKE"]}`).header.Get("Lambda-Extension-Identifier")
		conn, err := c.pipes.dial()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET /2020-01-01/extension/event/next HTTP/1.1\r\nHost: x\r\nLambda-Extension-Identifier: %s\r\n\r\n", id)
		synctest.Wait()
		conn.Close()
		c.begin(next, "")
		if !c.api.Ready() {
			t.Error("not ready")
		}
		c.release("id1")
		if r := c.call(evNext, "", "Lambda-Extension-Identifier: "+id); r.status != 200 || !strings.Contains(r.body, "id1") {
			t.Error(r)
		}
	})
}

func TestRacingResponses(t *testing.T) {
	for range 20 {
		serve(t, cfg, func(c *client) {
			c.begin(next, "")
			c.release("id1")
			synctest.Wait()
			var mu sync.Mutex
			status := map[int]int{}
			var wg sync.WaitGroup
			for i := range 5 {
				wg.Go(func() {
					r := c.call(response("id1"), strings.Repeat("x", i))
					mu.Lock()
					status[r.status]++
					mu.Unlock()
				})
			}
			wg.Wait()
			if status[202] != 1 || status[403]+status[400] != 4 || len(c.answer) != 1 {
				t.Error(status, len(c.answer))
			}
		})
	}
}

func TestBodies(t *testing.T) {
	const limit = 6291556
	for _, c := range []struct {
		name    string
		status  int
		typ     string
		kind    string
		size    int
		route   func(string) string
		headers []string
		payload string
	}{
		{name: "largest", status: 202, size: limit, route: response},
		{name: "too large", status: 413, typ: "RequestEntityTooLarge", size: limit + 1, route: response, kind: ErrTooLarge},
		{name: "far too large", status: 413, typ: "RequestEntityTooLarge", size: 20 << 20, route: response, kind: ErrTooLarge},
		{name: "error too large", status: 413, typ: "RequestEntityTooLarge", size: limit + 1, route: failure, kind: ErrTooLarge},
		{name: "bad mode", status: 400, typ: "InvalidFunctionResponseMode", size: 1, route: response, headers: []string{"Lambda-Runtime-Function-Response-Mode: Streaming"}, kind: ErrResponseMode},
		{name: "streaming", status: 202, size: 5, route: response, headers: []string{"Lambda-Runtime-Function-Response-Mode: streaming"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			serve(t, cfg, func(k *client) {
				k.begin(next, "")
				k.release("id1")
				synctest.Wait()
				k.want(k.call(c.route("id1"), strings.Repeat("x", c.size), c.headers...), c.status, c.typ, "")
				if len(k.answer) != 1 || k.answer[0].ErrorType != c.kind || c.kind == "" && len(k.answer[0].Payload) != c.size {
					t.Errorf("%+v", k.answer)
				}
				k.begin(next, "") // the runtime goes on
				if p := k.api.Progress(); p.Next.IsZero() {
					t.Error("next was refused")
				}
			})
		})
	}
}

func raw(c *client, text string) *http.Response {
	conn, err := c.pipes.dial()
	if err != nil {
		c.t.Fatal(err)
	}
	go io.WriteString(conn, text)
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	io.Copy(io.Discard, r.Body)
	conn.Close()
	return r
}

func TestStreamedAnswers(t *testing.T) {
	for _, c := range []struct {
		trailer, kind string
	}{
		{"", ""},
		{"Lambda-Runtime-Function-Error-Type: \r\nLambda-Runtime-Function-Error-Body: \r\n", ""},
		{"Lambda-Runtime-Function-Error-Type: Function.Late\r\nLambda-Runtime-Function-Error-Body: e30=\r\n", "Function.Late"},
	} {
		serve(t, cfg, func(k *client) {
			k.begin(next, "")
			k.release("id1")
			synctest.Wait()
			r := raw(k, "POST /2018-06-01/runtime/invocation/id1/response HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: Lambda-Runtime-Function-Error-Type\r\nTrailer: Lambda-Runtime-Function-Error-Body\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n"+c.trailer+"\r\n")
			if r.StatusCode != 202 || string(k.answer[0].Payload) != "abcde" || k.answer[0].ErrorType != c.kind || k.answer[0].FunctionError != (c.kind != "") {
				t.Errorf("%d %+v", r.StatusCode, k.answer)
			}
		})
	}
}

func TestErrorCause(t *testing.T) {
	for body, want := range map[string]string{
		`{"errorMessage":"<m>","errorType":"T","stackTrace":["a"],"errorCause":{"x":1}}`: `{"errorMessage":"<m>","errorType":"T","stackTrace":["a"]}`,
		`nope`: `"Invalid error body"`,
	} {
		if got := string(withoutCause("application/vnd.aws.lambda.error.cause+json", []byte(body))); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestSanitizeErrorType(t *testing.T) {
	for in, want := range map[string]string{
		"Runtime.ImportModuleError": "Runtime.ImportModuleError", "Function.Oops": "Function.Oops", "x Runtime.Yes z": "x Runtime.Yes z",
		"Function.lower": "Function.Unknown", "ValueError": "Runtime.Unknown", "": "Runtime.Unknown", "Runtime.Y\n": "Runtime.Unknown",
		"Runtime." + strings.Repeat("Y", 300): "Runtime.Unknown",
	} {
		if got := SanitizeErrorType(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestRoutes(t *testing.T) {
	serve(t, cfg, func(c *client) {
		for _, x := range []struct {
			call   string
			status int
		}{
			{"GET /2018-06-01/ping", 200},
			{"GET /", 404}, {"GET /2018-06-01/runtime/restore/next", 404}, {"POST /2018-06-01/runtime/restore/error", 404},
			{"POST /2018-06-01/runtime/invocation/next", 405}, {"GET /2018-06-01/runtime/invocation/x/response", 405},
			{"GET /2018-06-01/runtime/invocation/x/y", 404}, {"GET /2020-01-01/extension/register", 405}, {"GET /2020-01-01/extension/x", 404},
			{"POST /2022-07-01/telemetry", 405}, {"GET /2021-04-23/credentials", 404},
		} {
			if r := c.call(x.call, ""); r.status != x.status || r.err != nil {
				t.Errorf("%s: %+v", x.call, r)
			}
		}
		if r := c.call("GET /2018-06-01/ping", ""); r.body != "pong" {
			t.Error(r)
		}
	})
	serve(t, Config{NoExtensions: true}, func(c *client) {
		for _, call := range []string{"POST /2020-01-01/extension/register", evNext, "PUT /2022-07-01/telemetry", "PUT /2020-08-15/logs"} {
			if r := c.call(call, "{}", "Lambda-Extension-Name: x"); r.status != 404 || r.body != "" {
				t.Errorf("%s: %+v", call, r)
			}
		}
	})
}

// TestFloods has callers that are bounded by their connections and never hurt
// one that behaves.
func TestFloods(t *testing.T) {
	serve(t, cfg, func(c *client) {
		wait := c.begin(next, "")
		var conns []net.Conn
		for range 2 * maxConnections {
			conn, err := c.pipes.dial()
			if err != nil {
				t.Fatal(err)
			}
			go fmt.Fprintf(conn, "POST /2020-01-01/extension/register HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
			conns = append(conns, conn)
		}
		synctest.Wait()
		open := 0
		for _, conn := range conns {
			conn.SetReadDeadline(time.Now())
			if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
				open++
			}
		}
		if open >= maxConnections || open < maxConnections/2 {
			t.Errorf("%d connections are open", open)
		}
		c.release("id1")
		if r, over := wait(); !over || r.status != 200 {
			t.Error(over, r)
		}
		for _, conn := range conns {
			conn.Close()
		}
		synctest.Wait()
	})
}

func TestHeadersAreBounded(t *testing.T) {
	serve(t, cfg, func(c *client) {
		r := raw(c, "GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\nA: "+strings.Repeat("x", 2*maxHeader)+"\r\n\r\n")
		if r.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Error(r.StatusCode)
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	serve(t, cfg, func(c *client) {
		id := c.register("x", `{"events":["INVOKE"]}`).header.Get("Lambda-Extension-Identifier")
		waits := []func() (result, bool){c.begin(next, ""), c.begin(evNext, "", "Lambda-Extension-Identifier: "+id)}
		inv := c.release("id1")
		for _, w := range waits {
			w()
		}
		conn, err := c.pipes.dial()
		if err != nil {
			t.Fatal(err)
		}
		go fmt.Fprintf(conn, "POST /2018-06-01/runtime/invocation/id1/response HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
		waits = append(waits, c.begin(evNext, "", "Lambda-Extension-Identifier: "+id))
		c.api.Close()
		for i, w := range waits[2:] {
			if r, over := w(); !over || r.err == nil {
				t.Errorf("call %d: %v %+v", i, over, r)
			}
		}
		if len(c.answer) != 0 {
			t.Errorf("a dead generation answered: %+v", c.answer)
		}
		// Even a request that got in does nothing.
		if c.api.answered(inv, Answer{}, time.Time{}) {
			t.Error("answered after Close")
		}
	})
}

// fuzzed feeds bytes to a connection and insists on valid HTTP or an end.
func fuzzed(t *testing.T, input []byte) {
	if len(input) > 1<<16 {
		t.Skip()
	}
	synctest.Test(t, func(t *testing.T) {
		c := &client{t: t, api: New(cfg), pipes: newPipes()}
		c.api.Expect("ext")
		x, no := c.api.register("known", []byte(`{"events":["INVOKE"]}`))
		if no != nil {
			t.Fatal(no)
		}
		x.id = "11111111-1111-4111-8111-111111111111"
		go c.api.Serve(c.pipes)
		runtime, err := c.pipes.dial()
		if err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, runtime)
		io.WriteString(runtime, next+" HTTP/1.1\r\nHost: x\r\n\r\n")
		synctest.Wait()
		c.api.Release(&Invocation{RequestID: "id1", Payload: []byte("{}"), Answer: func(Answer) {}})
		conn, err := c.pipes.dial()
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		read := make(chan struct{})
		go func() {
			defer close(read)
			io.Copy(&out, conn)
		}()
		wrote := make(chan struct{})
		go func() {
			defer close(wrote)
			conn.Write(input)
		}()
		time.Sleep(time.Minute) // everything that can happen has
		c.api.Shutdown("spindown", time.Now(), nil)
		c.api.Progress()
		time.Sleep(time.Second)
		conn.Close()
		<-read
		<-wrote
		runtime.Close()
		c.api.Close()
		in := bufio.NewReader(&out)
		for {
			if _, err := in.Peek(1); err == io.EOF {
				return
			}
			r, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatalf("%q is answered by what is no HTTP: %v", input, err)
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				if r.Request == nil && strings.HasPrefix(string(input), "HEAD ") {
					return
				}
				t.Fatalf("%q: %v", input, err)
			}
		}
	})
}

func FuzzRuntimeAPI(f *testing.F) {
	for _, s := range []string{
		"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /2018-06-01/runtime/invocation/id1/response HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /2018-06-01/runtime/invocation/id1/response HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: Lambda-Runtime-Function-Error-Type\r\n\r\n1\r\na\r\n0\r\nLambda-Runtime-Function-Error-Type: X\r\n\r\n",
		"POST /2018-06-01/runtime/invocation/id1/error HTTP/1.1\r\nHost: x\r\nContent-Type: application/vnd.aws.lambda.error.cause+json\r\nContent-Length: 5\r\n\r\n{}",
		"POST /2018-06-01/runtime/invocation/id1/response HTTP/1.1\r\nHost: x\r\nLambda-Runtime-Function-Response-Mode: a\r\nContent-Length: 99999999\r\n\r\n",
		"POST /2018-06-01/runtime/init/error HTTP/1.0\r\nContent-Length: -1\r\n\r\n",
		"GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\nGET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"HEAD /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n",
		"\x00\xff", "GET", "OPTIONS * HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(fuzzed)
}

func FuzzExtensionsAPI(f *testing.F) {
	const id = "Lambda-Extension-Identifier: 11111111-1111-4111-8111-111111111111\r\n"
	for _, s := range []string{
		"POST /2020-01-01/extension/register HTTP/1.1\r\nHost: x\r\nLambda-Extension-Name: ext\r\nContent-Length: 31\r\n\r\n{\"events\":[\"INVOKE\",\"SHUTDOWN\"]}",
		"POST /2020-01-01/extension/register HTTP/1.1\r\nHost: x\r\nLambda-Extension-Name: in\r\nLambda-Extension-Accept-Feature: accountId\r\nContent-Length: 2\r\n\r\n{}",
		"GET /2020-01-01/extension/event/next HTTP/1.1\r\nHost: x\r\n" + id + "\r\nGET /2020-01-01/extension/event/next HTTP/1.1\r\nHost: x\r\n" + id + "\r\n",
		"POST /2020-01-01/extension/init/error HTTP/1.1\r\nHost: x\r\n" + id + "Lambda-Extension-Function-Error-Type: Extension.X\r\nContent-Length: 0\r\n\r\n",
		"POST /2020-01-01/extension/exit/error HTTP/1.1\r\nHost: x\r\n" + id + "Lambda-Extension-Function-Error-Type: Extension.X\r\nContent-Length: 0\r\n\r\n",
		"PUT /2022-07-01/telemetry HTTP/1.1\r\nHost: x\r\n" + id + "Content-Length: 2\r\n\r\n{}",
		"PUT /2020-08-15/logs/ HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(fuzzed)
}
