package runtimeapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lambdad/lambdad"
)

// Bounds of what a process in a sandbox can make the daemon hold.
const (
	maxConnections = 128       // at once, for each environment
	maxHeader      = 256 << 10 // bytes of one request's headers
	maxRegister    = 64 << 10  // bytes of a registration
	maxErrorBody   = lambdad.MaxResponsePayload
	maxDiscard     = 64 << 20 // bytes read on to let a client see that it sent too much
)

// A refusal is an answer that is no success.
type refusal struct {
	status             int
	errorType, message string
}

func refuse(errorType, message string) *refusal {
	return &refusal{status: http.StatusForbidden, errorType: errorType, message: message}
}

// gone refuses a call whose caller or whose generation is gone: nothing is sent.
var gone = &refusal{}

// Serve answers calls on a listener until Close. It owns the listener.
func (a *API) Serve(l net.Listener) error {
	defer l.Close()
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil
	}
	a.listener = l
	a.mu.Unlock()
	for {
		nc, err := l.Accept()
		if err != nil {
			select {
			case <-a.living.Done():
				return nil
			default:
			}
			if !passing(err) {
				return err
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-a.living.Done():
			}
			continue
		}
		if !a.admit(nc) {
			nc.Close()
		}
	}
}

// passing reports whether a listener may do better soon: what it lacks is others'.
func passing(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// admit begins to serve a connection, unless there are too many: one too many is
// closed at once, so that a flood costs the process that makes it and no other.
func (a *API) admit(nc net.Conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || len(a.conns) >= maxConnections {
		return false
	}
	a.conns[nc] = struct{}{}
	a.calls.Add(1)
	go func() {
		defer a.calls.Done()
		defer func() {
			// What a process sends must not end the daemon, whatever it is.
			if p := recover(); p != nil {
				a.cfg.Logger.Error("panic while serving a process in a sandbox", "panic", p, "stack", string(debug.Stack()))
			}
			a.mu.Lock()
			delete(a.conns, nc)
			a.mu.Unlock()
			nc.Close()
		}()
		newConn(a, nc).run()
	}()
	return true
}

// Close ends the generation: the listener and all connections are closed, calls
// that block come to nothing and no call has an effect any more. It returns when
// the last of them is over.
func (a *API) Close() {
	a.mu.Lock()
	if !a.closed {
		a.closed = true
		a.hangUp()
	}
	a.current = nil
	if a.listener != nil {
		a.listener.Close()
	}
	for nc := range a.conns {
		nc.Close()
	}
	a.settled.Broadcast()
	a.mu.Unlock()
	a.calls.Wait()
}

// A route is what a call asks for.
type route int

const (
	unknown route = iota
	routeNext
	routeResponse
	routeError
	routeInitError
	routePing
	routeRegister
	routeEventNext
	routeReportInit
	routeReportExit
	routeTelemetry
	routeLogs
)

// methods of the routes.
var methods = [...]string{
	routeNext: "GET", routeResponse: "POST", routeError: "POST", routeInitError: "POST", routePing: "GET",
	routeRegister: "POST", routeEventNext: "GET", routeReportInit: "POST", routeReportExit: "POST",
	routeTelemetry: "PUT", routeLogs: "PUT",
}

// routeOf finds the route of a path, and the request id in it.
func routeOf(path []byte, extensions bool) (to route, id []byte) {
	if rest, ok := bytes.CutPrefix(path, []byte("/2018-06-01/runtime/invocation/")); ok {
		id, what, _ := bytes.Cut(rest, []byte{'/'})
		switch {
		case string(rest) == "next":
			return routeNext, nil
		case string(what) == "response":
			return routeResponse, id
		case string(what) == "error":
			return routeError, id
		}
		return unknown, nil
	}
	switch string(path) {
	case "/2018-06-01/runtime/init/error":
		return routeInitError, nil
	case "/2018-06-01/ping":
		return routePing, nil
	}
	if !extensions {
		return unknown, nil
	}
	switch string(path) {
	case "/2020-01-01/extension/event/next":
		to = routeEventNext
	case "/2020-01-01/extension/register":
		to = routeRegister
	case "/2020-01-01/extension/init/error":
		to = routeReportInit
	case "/2020-01-01/extension/exit/error":
		to = routeReportExit
	case "/2022-07-01/telemetry", "/2022-07-01/telemetry/":
		to = routeTelemetry
	case "/2020-08-15/logs", "/2020-08-15/logs/":
		to = routeLogs
	}
	return to, nil
}

// serve answers one call. No timeout anywhere: it may block for days, frozen. The
// bound on connections is what keeps a slow client harmless.
func (a *API) serve(c *conn, r *request) {
	c.closing = r.Last
	to, id := routeOf(r.Path, !a.cfg.NoExtensions)
	if to == unknown {
		c.empty(r, http.StatusNotFound, "")
		return
	}
	if string(r.Method) != methods[to] {
		c.empty(r, http.StatusMethodNotAllowed, "Allow: "+methods[to]+"\r\n")
		return
	}
	switch to {
	case routeNext:
		a.serveNext(c, r)
	case routeResponse:
		a.serveResponse(c, r, id)
	case routeError:
		a.serveError(c, r, id)
	case routeInitError:
		a.serveInitError(c, r)
	case routePing:
		c.skip(r, unread)
		c.end(append(c.out[:0], "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"...), []byte("pong"))
	case routeRegister:
		a.serveRegister(c, r)
	case routeEventNext:
		a.serveEventNext(c, r)
	case routeReportInit, routeReportExit:
		a.serveReport(c, r, to == routeReportExit)
	case routeTelemetry, routeLogs:
		a.serveSubscribe(c, r, to == routeLogs)
	}
}

func (a *API) serveNext(c *conn, r *request) {
	c.skip(r, unread)
	payload, waiting, no := a.next(c, r.values[userAgent])
	switch {
	case no != nil:
		c.refuse(r, no)
	case !waiting:
		c.send(c.out)
		if len(payload) > 0 {
			c.send(payload)
		}
		c.keep(c.out)
	case !c.await():
		a.left(c)
	}
}

func (a *API) serveEventNext(c *conn, r *request) {
	c.skip(r, unread)
	x, waiting, no := a.eventNext(c, r.values[extensionID])
	switch {
	case no != nil:
		c.refuse(r, no)
	case !waiting:
		a.delivered(c, c.send(c.out))
	case !c.await():
		a.eventLeft(c, x)
	}
}

func (a *API) serveResponse(c *conn, r *request, id []byte) {
	inv, no := a.answering(id, Responding)
	if no != nil {
		c.refuse(r, no)
		return
	}
	if r.modes > 0 && (r.modes > 1 || string(r.values[responseMode]) != "streaming") {
		a.answered(inv, Answer{
			Payload:       []byte(`{"errorType":"` + ErrResponseMode + `","errorMessage":""}`),
			FunctionError: true, ErrorType: ErrResponseMode,
		}, time.Time{})
		c.refuse(r, &refusal{http.StatusBadRequest, "InvalidFunctionResponseMode", "Invalid function response mode"})
		return
	}
	ans, first, no := c.readAnswer(r, inv.RequestID, lambdad.MaxResponsePayload)
	if no == nil && r.trailer != nil {
		// A stream ends with its fate (runtime-api.md section 7).
		ans.FunctionError, ans.ErrorType = true, SanitizeErrorType(string(r.trailer))
	}
	a.finish(c, r, inv, ans, first, no)
}

func (a *API) serveError(c *conn, r *request, id []byte) {
	inv, no := a.answering(id, RespondingErr)
	if no != nil {
		c.refuse(r, no)
		return
	}
	ans, first, no := c.readFailure(r, inv.RequestID)
	a.finish(c, r, inv, ans, first, no)
}

func (a *API) serveInitError(c *conn, r *request) {
	if no := a.initFailing(); no != nil {
		c.refuse(r, no)
		return
	}
	ans, _, no := c.readFailure(r, "")
	a.initFailed(ans)
	if no != nil {
		c.refuse(r, no)
		return
	}
	c.accepted(r)
}

// finish hands the answer over and only then tells the runtime.
func (a *API) finish(c *conn, r *request, inv *Invocation, ans Answer, first time.Time, no *refusal) {
	ok := a.answered(inv, ans, first)
	switch {
	case no != nil:
		c.refuse(r, no)
	case !ok:
		c.refuse(r, &refusal{http.StatusBadRequest, "InvalidRequestID", "Invalid request ID"})
	default:
		// Whoever waits for the answer runs now, and not after this write.
		runtime.Gosched()
		c.accepted(r)
	}
}

// readFailure reads the body of a post to an error route.
func (c *conn) readFailure(r *request, requestID string) (ans Answer, first time.Time, no *refusal) {
	kind, content := SanitizeErrorType(string(r.values[errorType])), string(r.values[contentType])
	if ans, first, no = c.readAnswer(r, requestID, maxErrorBody); no == nil {
		ans.FunctionError, ans.ErrorType = true, kind
		ans.Payload = withoutCause(content, ans.Payload)
	}
	return ans, first, no
}

// readAnswer reads the body of an answer. What it cannot accept becomes the
// error that the caller of the function sees, and a refusal for the runtime.
func (c *conn) readAnswer(r *request, requestID string, limit int) (ans Answer, first time.Time, no *refusal) {
	body, first, err := c.body(r, limit)
	switch {
	case err == nil:
		return Answer{Payload: body}, first, nil
	case errors.Is(err, errTooLarge):
		// A client that is cut off while it sends often reports a broken connection
		// rather than the answer.
		c.skip(r, maxDiscard)
		text := "payload size exceeded maximum allowed payload size (" + strconv.Itoa(lambdad.MaxResponsePayload) + " bytes)."
		return Answer{
				Payload:       []byte(`{"errorMessage":"Response ` + text + `","errorType":"` + ErrTooLarge + `"}`),
				FunctionError: true, ErrorType: ErrTooLarge,
			}, first, &refusal{http.StatusRequestEntityTooLarge, "RequestEntityTooLarge",
				"Exceeded maximum allowed payload size (" + strconv.Itoa(lambdad.MaxResponsePayload) + " bytes)."}
	}
	return Answer{
		Payload:       ErrorPayload(ErrTruncated, requestID, "HTTP request detected as truncated"),
		FunctionError: true, ErrorType: ErrTruncated,
	}, first, &refusal{http.StatusBadRequest, "TruncatedHTTPRequest", "HTTP request detected as truncated"}
}

// withoutCause turns an error with its cause for tracing into what the caller
// gets (runtime-api.md section 4).
func withoutCause(contentType string, body []byte) []byte {
	if contentType != "application/vnd.aws.lambda.error.cause+json" {
		return body
	}
	var e struct {
		ErrorMessage string   `json:"errorMessage"`
		ErrorType    string   `json:"errorType"`
		StackTrace   []string `json:"stackTrace"`
	}
	if json.Unmarshal(body, &e) != nil {
		return []byte(`"Invalid error body"`)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if enc.Encode(e) != nil { // strings always encode
		return []byte(`"Invalid error body"`)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func (a *API) serveRegister(c *conn, r *request) {
	name, features := string(r.values[extensionName]), string(r.values[acceptFeature])
	var no *refusal
	var x *extension
	body, _, err := c.body(r, maxRegister)
	switch {
	case len(name) > 1024:
		no = refuse("Extension.InvalidExtensionName", "Extension name is too long")
	case err != nil && name != "":
		no = refuse("InvalidRequestFormat", err.Error())
	default:
		x, no = a.register(name, body)
	}
	if no != nil {
		c.refuse(r, no)
		return
	}
	b := make([]byte, 0, 256)
	b = append(b, '{')
	for feature := range strings.SplitSeq(features, ",") {
		if strings.TrimSpace(feature) == "accountId" {
			b = append(b, `"accountId":`...)
			b = appendString(b, a.cfg.AccountID)
			b = append(b, ',')
			break
		}
	}
	b = append(b, `"functionName":`...)
	b = appendString(b, a.cfg.FunctionName)
	b = append(b, `,"functionVersion":`...)
	b = appendString(b, a.cfg.FunctionVersion)
	b = append(b, `,"handler":`...)
	b = appendString(b, a.cfg.Handler)
	b = append(b, '}')
	c.reply(r, "200 OK", "Lambda-Extension-Identifier: "+x.id+"\r\n", b)
}

func (a *API) serveReport(c *conn, r *request, exit bool) {
	id, no := checkIdentifier(r.values[extensionID])
	if no == nil {
		no = a.report(id, string(r.values[extensionErrorType]), exit)
	}
	if no != nil {
		c.refuse(r, no)
		return
	}
	c.accepted(r)
}

// refuse answers a call with an error, if there is anybody to answer.
func (c *conn) refuse(r *request, no *refusal) {
	if no.status == 0 {
		c.closing = true
		return
	}
	var b bytes.Buffer
	// The encoder escapes HTML and ends with a newline, as AWS's does.
	if json.NewEncoder(&b).Encode(struct {
		Message string `json:"errorMessage"`
		Type    string `json:"errorType"`
	}{no.message, no.errorType}) != nil {
		b.Reset()
	}
	c.reply(r, strconv.Itoa(no.status)+" "+http.StatusText(no.status), "", b.Bytes())
}

// LimitListener bounds the connections that are open at once; one too many is
// closed at once, so that a flood costs the process that makes it and no other.
func LimitListener(l net.Listener, max int) net.Listener {
	return &limited{Listener: l, free: make(chan struct{}, max)}
}

type limited struct {
	net.Listener
	free chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.free <- struct{}{}:
			return &counted{Conn: c, free: l.free}, nil
		default:
			c.Close()
		}
	}
}

type counted struct {
	net.Conn
	once sync.Once
	free chan struct{}
}

func (c *counted) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.free })
	return err
}
