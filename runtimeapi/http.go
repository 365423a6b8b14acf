package runtimeapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
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

// server is the HTTP face of an API.
type server struct {
	api  *API
	http http.Server
}

func (s *server) init(a *API) {
	s.api = a
	s.http = http.Server{
		Handler:                      a,
		MaxHeaderBytes:               maxHeader,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(io.Discard, "", 0), // says only what processes in the sandbox did
	}
	// No timeout anywhere: a call may block for days, frozen. The bound on
	// connections is what keeps a slow client harmless.
}

// Serve answers calls on a listener until Close. It owns the listener.
func (a *API) Serve(l net.Listener) error {
	err := a.http.Serve(LimitListener(l, maxConnections))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Close ends the generation: the listener and all connections are closed, calls
// that block come to nothing and no call has an effect any more. It returns when
// the last of them is over.
func (a *API) Close() {
	a.mu.Lock()
	a.closed = true
	a.current = nil
	a.mu.Unlock()
	a.http.Close()
	a.calls.Wait()
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	a.calls.Add(1)
	a.mu.Unlock()
	defer a.calls.Done()
	w.Header()["Date"] = nil

	path := r.URL.Path
	if rest, ok := strings.CutPrefix(path, "/2018-06-01/"); ok {
		a.serveRuntime(w, r, rest)
		return
	}
	if !a.cfg.NoExtensions {
		if rest, ok := strings.CutPrefix(path, "/2020-01-01/extension/"); ok {
			a.serveExtension(w, r, rest)
			return
		}
		switch strings.TrimSuffix(path, "/") {
		case "/2022-07-01/telemetry":
			a.serveSubscribe(w, r, false)
			return
		case "/2020-08-15/logs":
			a.serveSubscribe(w, r, true)
			return
		}
	}
	empty(w, http.StatusNotFound)
}

func (a *API) serveRuntime(w http.ResponseWriter, r *http.Request, path string) {
	if rest, ok := strings.CutPrefix(path, "runtime/invocation/"); ok {
		if rest == "next" {
			if method(w, r, http.MethodGet) {
				a.serveNext(w, r)
			}
			return
		}
		id, what, _ := strings.Cut(rest, "/")
		switch what {
		case "response":
			if method(w, r, http.MethodPost) {
				a.serveResponse(w, r, id)
			}
			return
		case "error":
			if method(w, r, http.MethodPost) {
				a.serveError(w, r, id)
			}
			return
		}
	}
	switch path {
	case "runtime/init/error":
		if method(w, r, http.MethodPost) {
			a.serveInitError(w, r)
		}
	case "ping":
		if method(w, r, http.MethodGet) {
			w.Header()["Content-Type"] = textPlain
			io.WriteString(w, "pong")
		}
	default:
		empty(w, http.StatusNotFound)
	}
}

func (a *API) serveExtension(w http.ResponseWriter, r *http.Request, path string) {
	switch path {
	case "register":
		if method(w, r, http.MethodPost) {
			a.serveRegister(w, r)
		}
	case "event/next":
		if method(w, r, http.MethodGet) {
			a.serveEventNext(w, r)
		}
	case "init/error", "exit/error":
		if method(w, r, http.MethodPost) {
			a.serveReport(w, r, path == "exit/error")
		}
	default:
		empty(w, http.StatusNotFound)
	}
}

func (a *API) serveNext(w http.ResponseWriter, r *http.Request) {
	inv, no := a.next(r.Header.Get("User-Agent"), r.Context().Done())
	if no != nil {
		no.send(w)
		return
	}
	h := w.Header()
	for i, name := range invocationHeaders {
		if inv.headers[i] != "" {
			h[name] = inv.headers[i : i+1 : i+1]
		}
	}
	w.Write(inv.Payload)
	if http.NewResponseController(w).Flush() != nil {
		a.mu.Lock()
		a.hand()
		a.mu.Unlock()
	}
}

func (a *API) serveResponse(w http.ResponseWriter, r *http.Request, id string) {
	inv, no := a.answering(id, Responding)
	if no != nil {
		no.send(w)
		return
	}
	if mode, ok := r.Header["Lambda-Runtime-Function-Response-Mode"]; ok && (len(mode) != 1 || mode[0] != "streaming") {
		a.answered(inv, Answer{
			Payload:       []byte(`{"errorType":"` + ErrResponseMode + `","errorMessage":""}`),
			FunctionError: true, ErrorType: ErrResponseMode,
		}, time.Time{})
		(&refusal{http.StatusBadRequest, "InvalidFunctionResponseMode", "Invalid function response mode"}).send(w)
		return
	}
	ans, first, no := readAnswer(r, inv.RequestID, lambdad.MaxResponsePayload)
	if no == nil && !ans.FunctionError {
		// A stream ends with its fate (runtime-api.md section 7).
		if t := r.Trailer.Get("Lambda-Runtime-Function-Error-Type"); t != "" {
			ans.FunctionError, ans.ErrorType = true, SanitizeErrorType(t)
		}
	}
	a.finish(w, inv, ans, first, no)
}

func (a *API) serveError(w http.ResponseWriter, r *http.Request, id string) {
	inv, no := a.answering(id, RespondingErr)
	if no != nil {
		no.send(w)
		return
	}
	ans, first, no := readAnswer(r, inv.RequestID, maxErrorBody)
	if no == nil {
		ans.FunctionError = true
		ans.ErrorType = SanitizeErrorType(r.Header.Get("Lambda-Runtime-Function-Error-Type"))
		ans.Payload = withoutCause(r.Header.Get("Content-Type"), ans.Payload)
	}
	a.finish(w, inv, ans, first, no)
}

// finish hands the answer over and only then tells the runtime.
func (a *API) finish(w http.ResponseWriter, inv *Invocation, ans Answer, first time.Time, no *refusal) {
	ok := a.answered(inv, ans, first)
	switch {
	case no != nil:
		no.send(w)
	case !ok:
		(&refusal{http.StatusBadRequest, "InvalidRequestID", "Invalid request ID"}).send(w)
	default:
		accepted(w)
	}
}

// readAnswer reads the body of an answer. What it cannot accept becomes the
// error that the caller of the function sees, and a refusal for the runtime.
func readAnswer(r *http.Request, requestID string, limit int) (ans Answer, first time.Time, no *refusal) {
	body, first, err := readBody(r, limit)
	switch {
	case err == nil:
		return Answer{Payload: body}, first, nil
	case errors.Is(err, errTooLarge):
		discard(r.Body)
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

var errTooLarge = errors.New("runtimeapi: body too large")

// readBody reads a body of at most limit bytes, and says when its first byte came.
func readBody(r *http.Request, limit int) (body []byte, first time.Time, err error) {
	if r.ContentLength > int64(limit) {
		return nil, first, errTooLarge
	}
	size := 512
	if r.ContentLength >= 0 {
		size = int(r.ContentLength) + 1 // and the end, without growing
	}
	buf := make([]byte, 0, size)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := r.Body.Read(buf[len(buf):cap(buf)])
		if n > 0 && first.IsZero() {
			first = time.Now()
		}
		buf = buf[:len(buf)+n]
		if len(buf) > limit {
			return nil, first, errTooLarge
		}
		if err == io.EOF {
			return buf, first, nil
		}
		if err != nil {
			return nil, first, err
		}
	}
}

// discard reads on for a while: a client that is cut off while it sends often
// reports a broken connection rather than the answer.
func discard(body io.Reader) {
	io.CopyN(io.Discard, body, maxDiscard)
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

func (a *API) serveInitError(w http.ResponseWriter, r *http.Request) {
	if no := a.initFailing(); no != nil {
		no.send(w)
		return
	}
	ans, _, no := readAnswer(r, "", maxErrorBody)
	if no == nil {
		ans.FunctionError = true
		ans.ErrorType = SanitizeErrorType(r.Header.Get("Lambda-Runtime-Function-Error-Type"))
		ans.Payload = withoutCause(r.Header.Get("Content-Type"), ans.Payload)
	}
	a.initFailed(ans)
	if no != nil {
		no.send(w)
		return
	}
	accepted(w)
}

func (a *API) serveRegister(w http.ResponseWriter, r *http.Request) {
	name := r.Header.Get("Lambda-Extension-Name")
	var no *refusal
	var x *extension
	body, _, err := readBody(r, maxRegister)
	switch {
	case len(name) > 1024:
		no = refuse("Extension.InvalidExtensionName", "Extension name is too long")
	case err != nil && name != "":
		no = refuse("InvalidRequestFormat", err.Error())
	default:
		x, no = a.register(name, body)
	}
	if no != nil {
		no.send(w)
		return
	}
	b := make([]byte, 0, 256)
	b = append(b, '{')
	for feature := range strings.SplitSeq(r.Header.Get("Lambda-Extension-Accept-Feature"), ",") {
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
	w.Header()["Lambda-Extension-Identifier"] = []string{x.id}
	reply(w, http.StatusOK, b)
}

func (a *API) serveEventNext(w http.ResponseWriter, r *http.Request) {
	id, no := checkIdentifier(r.Header.Get("Lambda-Extension-Identifier"))
	if no != nil {
		no.send(w)
		return
	}
	x, ev, no := a.eventNext(id, r.Context().Done())
	if no != nil {
		no.send(w)
		return
	}
	h := w.Header()
	h["Lambda-Extension-Identifier"] = []string{id}
	h["Lambda-Extension-Event-Identifier"] = []string{newIdentifier()}
	reply(w, http.StatusOK, ev.body)
	if http.NewResponseController(w).Flush() != nil {
		a.undelivered(x, ev)
	}
}

func (a *API) serveReport(w http.ResponseWriter, r *http.Request, exit bool) {
	id, no := checkIdentifier(r.Header.Get("Lambda-Extension-Identifier"))
	if no == nil {
		no = a.report(id, r.Header.Get("Lambda-Extension-Function-Error-Type"), exit)
	}
	if no != nil {
		no.send(w)
		return
	}
	accepted(w)
}

var (
	applicationJSON = []string{"application/json"}
	textPlain       = []string{"text/plain; charset=utf-8"}
	statusOK        = []byte("{\"status\":\"OK\"}\n")
)

func accepted(w http.ResponseWriter) { reply(w, http.StatusAccepted, statusOK) }

func reply(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h["Content-Type"] = applicationJSON
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	w.Write(body)
}

func empty(w http.ResponseWriter, status int) {
	w.Header()["Content-Length"] = []string{"0"}
	w.WriteHeader(status)
}

func method(w http.ResponseWriter, r *http.Request, want string) bool {
	if r.Method != want {
		w.Header()["Allow"] = []string{want}
		empty(w, http.StatusMethodNotAllowed)
	}
	return r.Method == want
}

func (no *refusal) send(w http.ResponseWriter) {
	if no.status == 0 {
		panic(http.ErrAbortHandler) // nobody is there to answer
	}
	var b bytes.Buffer
	// The encoder escapes HTML and ends with a newline, as AWS's does.
	if json.NewEncoder(&b).Encode(struct {
		Message string `json:"errorMessage"`
		Type    string `json:"errorType"`
	}{no.message, no.errorType}) != nil {
		b.Reset()
	}
	reply(w, no.status, b.Bytes())
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

var _ http.Handler = (*API)(nil)
