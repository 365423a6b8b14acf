// Package runtimeapi is the HTTP side of an execution environment: the Runtime
// API 2018-06-01 and the Extensions API 2020-01-01, with the state machines that
// decide what a call means, and the subscriptions of the Telemetry API 2022-07-01
// and the Logs API 2020-08-15 (spec: runtime-api.md, extensions-api.md,
// telemetry-api.md).
//
// An API serves one generation of processes: it is made before their start, and
// Close ends it when they are killed. The next generation gets another API on
// another listener, so no connection, identifier, request id or half-read body
// of a dead process can reach it.
//
// The owner of the environment drives it from one goroutine: Expect and Serve,
// then Registered, Ready, Release, Progress and Shutdown, waiting on Changed in
// between. Callers inside the sandbox are told apart by what they say and the
// state they say it in, never by process or connection. All of them are hostile:
// headers, bodies and connections are bounded, and a call that never ends holds
// nothing but itself.
package runtimeapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/telemetry"
)

// States of a runtime and of extensions, in the words of the errors they lead to.
const (
	Started        = "Started"
	InitError      = "InitError"
	Ready          = "Ready"
	Running        = "Running"
	Responding     = "InvocationResponse"
	RespondingErr  = "InvocationErrorResponse"
	ResponseSent   = "RuntimeResponseSentState"
	Registered     = "Registered"
	ExitError      = "ExitError"
	Exited         = "Exited"
	ShutdownFailed = "ShutdownFailed"
	LaunchError    = "LaunchError"
)

// Error types the platform gives names to (lifecycle.md section 7.1).
const (
	ErrExtensionInit  = "Extension.InitError"
	ErrExtensionExit  = "Extension.ExitError"
	ErrTooLarge       = "Function.ResponseSizeTooLarge"
	ErrTruncated      = "Runtime.TruncatedResponse"
	ErrResponseMode   = "Runtime.InvalidResponseModeHeader"
	ErrRuntimeUnknown = "Runtime.Unknown"
)

// A Config is what an API tells its callers.
type Config struct {
	AccountID, FunctionName, FunctionVersion, Handler string
	// NoExtensions answers 404 on every route of the Extensions and Telemetry
	// APIs: the environment's kill switch.
	NoExtensions bool
	// Subscriptions are those of the generation; nil refuses all.
	Subscriptions *telemetry.Subscriptions
	// Logger hears of this side's own faults; nil: nobody does.
	Logger *slog.Logger
}

// An Invocation is one event for the runtime and the extensions that want it.
// Everything but Answer is sent to them.
type Invocation struct {
	RequestID, ARN, TraceID        string
	ClientContext, CognitoIdentity string
	ContentType                    string
	Payload                        []byte
	Deadline                       time.Time // wall clock
	// Answer is called at most once, when the runtime's answer was received in
	// full, on the goroutine of its request and before the runtime is told so.
	Answer func(Answer)
}

// An Answer is what a runtime answered, or what its failing to do so means.
type Answer struct {
	Payload []byte
	// FunctionError says that the payload describes an error.
	FunctionError bool
	// ErrorType is the sanitised type of the error; "" on success. It goes to
	// telemetry; Payload is the runtime's own.
	ErrorType string
}

// A Progress is how far the current invocation got. Times are zero for what did
// not happen yet.
type Progress struct {
	Released  time.Time // event handed out
	FirstByte time.Time // of the answer
	LastByte  time.Time
	Produced  int64     // bytes of the answer; -1 when it was an error
	Next      time.Time // the runtime asked for its next event; before the first invocation, for its first one
	AllNext   time.Time // so did every extension that had the event
}

// An ExtensionStatus tells about one extension.
type ExtensionStatus struct {
	Name      string
	External  bool
	State     string
	Events    []string // never nil
	ErrorType string   // that it reported, or why it could not be started
	Waiting   bool     // blocked in event/next
	Told      bool     // got the SHUTDOWN event
	// When it registered, and when it last asked for an event that was not one
	// more try; zero for what did not happen.
	Since, Asked time.Time
}

// An API is the APIs of one generation of processes. Its methods may be called
// from any goroutine.
type API struct {
	cfg     Config
	changed chan struct{}
	living  context.Context // ends with Close
	hangUp  context.CancelFunc
	calls   sync.WaitGroup // connections, and writes that take long
	giving  []*conn        // of Release, kept for its room

	mu       sync.Mutex
	settled  sync.Cond // an event has reached an extension, or has not
	closed   bool
	listener net.Listener
	conns    map[net.Conn]struct{}
	state    string // of the runtime
	regOpen  bool
	waiters  []*conn // with calls of next, oldest first
	current  *Invocation
	head     []byte // of the answer to next that is current, but for its end
	invoked  event  // INVOKE for extensions
	progress Progress
	initErr  *Answer
	fatal    string // first error type that an extension or the runtime reported
	agent    string

	extensions []*extension
	shutdown   *event
}

type extension struct {
	name      string
	id        string
	external  bool
	events    []string
	invoke    bool
	stop      bool
	state     string
	errorType string
	waiting   *conn     // with a call that waits for an event; nil: none does
	pending   *event    // not yet delivered
	giving    bool      // pending is on its way to a call
	told      bool      // of the shutdown
	later     bool      // it is not to be told of it yet
	since     time.Time // it registered
	asked     time.Time // it last became Ready
}

type event struct{ body []byte }

// New makes an API in the state before any process was started.
func New(cfg Config) *API {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a := &API{cfg: cfg, changed: make(chan struct{}, 1), state: Started, regOpen: true, conns: map[net.Conn]struct{}{}}
	a.settled.L = &a.mu
	a.living, a.hangUp = context.WithCancel(context.Background())
	return a
}

// Changed has a value whenever something changed that Registered, Ready,
// Progress or InitErrored may tell.
func (a *API) Changed() <-chan struct{} { return a.changed }

func (a *API) notify() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// Expect announces a process that must register under its file name.
func (a *API) Expect(file string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.extensions = append(a.extensions, &extension{name: file, external: true, state: Started, events: []string{}})
}

// LaunchFailed says that an expected process could not be started, and why.
func (a *API) LaunchFailed(file, errorType string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if x := a.named(file); x != nil {
		x.state, x.errorType = LaunchError, errorType
	}
}

// Registered reports whether every expected extension has registered.
func (a *API) Registered() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.registered()
}

func (a *API) registered() bool {
	return !slices.ContainsFunc(a.extensions, func(x *extension) bool { return x.state == Started || x.state == LaunchError })
}

// Ready reports whether the runtime and every extension, whatever events it
// wants, ask for an event.
func (a *API) Ready() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state == Ready && !slices.ContainsFunc(a.extensions, func(x *extension) bool { return x.state != Ready })
}

// RuntimeReady reports whether the runtime has asked for an event.
func (a *API) RuntimeReady() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state == Ready
}

// InitErrored returns what the runtime posted to init/error; nil: nothing.
func (a *API) InitErrored() *Answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.initErr
}

// Fatal returns the first error type that a process reported of itself: that of
// init/error for the runtime, Extension.InitError or Extension.ExitError for
// extensions. The failure itself is the exit that follows.
func (a *API) Fatal() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.fatal
}

// Extensions tells about all extensions: expected ones in their order, then
// internal ones as they registered.
func (a *API) Extensions() []ExtensionStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]ExtensionStatus, len(a.extensions))
	for i, x := range a.extensions {
		list[i] = ExtensionStatus{Name: x.name, External: x.external, State: x.state, Events: x.events, ErrorType: x.errorType, Waiting: x.waiting != nil, Told: x.told, Since: x.since, Asked: x.asked}
	}
	return list
}

// Agent is the first User-Agent of a call to the Runtime API.
func (a *API) Agent() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.agent
}

// Release hands out an invocation: to the runtime, then to the extensions that want
// it. All must be Ready. It does not wait for any of them.
func (a *API) Release(inv *Invocation) {
	a.mu.Lock()
	a.current = inv
	a.head = inv.appendHead(a.head[:0])
	a.progress = Progress{Released: time.Now()}
	a.state = Running
	a.giving = a.giving[:0]
	told := false
	for _, x := range a.extensions {
		if !x.invoke || x.state != Ready {
			continue
		}
		if !told { // nobody has the one before any more
			told, a.invoked.body = true, inv.appendEvent(a.invoked.body[:0])
		}
		if c := a.give(x, &a.invoked); c != nil {
			a.giving = append(a.giving, c)
		}
	}
	c, payload := a.first()
	a.mu.Unlock()
	// The caller waits for the runtime alone, so that has its event first.
	if c != nil {
		c.push(payload)
	}
	for _, c := range a.giving {
		c.push(nil)
	}
}

// hand gives the current event to another call of next: the one before was gone. If
// none waits the event is delivered when one comes.
func (a *API) hand() {
	a.mu.Lock()
	c, payload := a.first()
	a.mu.Unlock()
	if c != nil {
		c.push(payload)
	}
}

// first takes the call of next that waits longest, and loads it with the current
// event.
func (a *API) first() (c *conn, payload []byte) {
	if len(a.waiters) == 0 || a.state != Running || a.current == nil {
		return nil, nil
	}
	c = a.waiters[0]
	a.waiters = slices.Delete(a.waiters, 0, 1)
	return c, a.load(c)
}

// load puts the current event into a connection's buffer, and returns what is to be
// written after that.
func (a *API) load(c *conn) (payload []byte) {
	payload = a.current.Payload
	c.out = appendEnd(append(c.out[:0], a.head...), len(payload), c.closing)
	if len(payload) <= copied {
		c.out, payload = append(c.out, payload...), nil
	}
	return payload
}

// give lets an extension have an event. It returns the connection that it is to be
// pushed to; nil: no call waits for it.
func (a *API) give(x *extension, ev *event) *conn {
	x.state, x.pending = Running, ev
	c := x.waiting
	if c != nil {
		x.waiting = nil
		x.load(c)
	}
	return c
}

// load puts the pending event of an extension into a connection's buffer. Until
// delivered is told how that ended nobody knows whether the extension has it.
func (x *extension) load(c *conn) {
	x.giving = true
	b := append(c.out[:0], "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLambda-Extension-Identifier: "...)
	b = append(b, x.id...)
	b = append(b, "\r\nLambda-Extension-Event-Identifier: "...)
	b = appendIdentifier(b, &c.id)
	b = appendEnd(append(b, "\r\n"...), len(x.pending.body), c.closing)
	c.out = append(b, x.pending.body...)
}

// delivered ends the delivery of an event over a connection. What did not reach its
// caller goes to another or waits for the next.
func (a *API) delivered(c *conn, err error) {
	x := c.extension
	if x == nil {
		if err != nil {
			a.hand()
		}
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	x.giving = false
	if err == nil {
		x.pending = nil
	}
	a.settled.Broadcast()
}

// Progress tells how far the current invocation got.
func (a *API) Progress() Progress {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.progress
	if !a.over() {
		p.AllNext = time.Time{}
	}
	return p
}

// over reports whether nobody is at work for an invocation.
func (a *API) over() bool {
	return !a.progress.Next.IsZero() && !slices.ContainsFunc(a.extensions, func(x *extension) bool { return x.invoke && x.state != Ready })
}

// End forgets the current invocation: posts with its id are refused from now on.
func (a *API) End() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.current = nil
}

// Shutdown gives the SHUTDOWN event to every live extension of its own process
// that subscribed to it: now, or when it asks for its next event, and to those
// that later names not before Tell. It returns their names.
func (a *API) Shutdown(reason string, deadline time.Time, later func(name string) bool) []string {
	body := []byte(`{"eventType":"SHUTDOWN","shutdownReason":"` + reason + `","deadlineMs":` + strconv.FormatInt(deadline.UnixMilli(), 10) + `}`)
	a.mu.Lock()
	a.shutdown = &event{body: body}
	var names []string
	var giving []*conn
	for _, x := range a.extensions {
		if !x.external || !x.stop {
			continue
		}
		switch x.state {
		case Ready, Registered, Running:
		default:
			continue
		}
		names = append(names, x.name)
		x.later = later != nil && later(x.name)
		giving = append(giving, a.tell(x))
	}
	a.mu.Unlock()
	pushAll(giving)
	return names
}

// Tell lets an extension have the SHUTDOWN event that Shutdown kept for later.
func (a *API) Tell(name string) {
	a.mu.Lock()
	var c *conn
	if x := a.named(name); x != nil {
		x.later = false
		c = a.tell(x)
	}
	a.mu.Unlock()
	pushAll([]*conn{c})
}

// tell gives the SHUTDOWN event to an extension that asks for an event, as give does.
func (a *API) tell(x *extension) *conn {
	if x.state == Ready && a.shutdown != nil && x.stop && !x.told && !x.later {
		x.told = true
		return a.give(x, a.shutdown)
	}
	return nil
}

func pushAll(list []*conn) {
	for _, c := range list {
		if c != nil {
			c.push(nil)
		}
	}
}

// Exited records the end of an extension's process.
func (a *API) Exited(file, state string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if x := a.named(file); x != nil && x.external {
		x.state = state
	}
}

func (a *API) named(name string) *extension {
	for _, x := range a.extensions {
		if x.name == name {
			return x
		}
	}
	return nil
}

func (a *API) fail(errorType string) {
	if a.fatal == "" {
		a.fatal = errorType
	}
}

var knownType = regexp.MustCompile(`(Runtime|Function)\.[A-Z][a-zA-Z]+`)

// SanitizeErrorType makes what a runtime sent as its error type fit for logs and
// telemetry (lifecycle.md section 7.1).
func SanitizeErrorType(s string) string {
	switch {
	case len(s) <= 256 && printable(s) && knownType.MatchString(s):
		return s
	case strings.HasPrefix(s, "Function."):
		return "Function.Unknown"
	}
	return ErrRuntimeUnknown
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// cleanValue makes a string of the caller fit for a header.
func cleanValue(s string) string {
	if !strings.ContainsAny(s, "\r\n\x00") {
		return s
	}
	return strings.Map(func(r rune) rune {
		if r == '\r' || r == '\n' || r == 0 {
			return -1
		}
		return r
	}, s)
}

// appendHead appends the headers of the runtime's event, but for the length.
func (inv *Invocation) appendHead(b []byte) []byte {
	b = append(b, "HTTP/1.1 200 OK\r\nContent-Type: "...)
	if inv.ContentType == "" {
		b = append(b, "application/json"...)
	}
	b = append(b, cleanValue(inv.ContentType)...)
	b = append(b, "\r\nLambda-Runtime-Aws-Request-Id: "...)
	b = append(b, inv.RequestID...)
	b = append(b, "\r\nLambda-Runtime-Deadline-Ms: "...)
	b = strconv.AppendInt(b, inv.Deadline.UnixMilli(), 10)
	b = append(b, "\r\n"...)
	b = appendHeader(b, "Lambda-Runtime-Invoked-Function-Arn: ", inv.ARN)
	b = appendHeader(b, "Lambda-Runtime-Trace-Id: ", inv.TraceID)
	b = appendHeader(b, "Lambda-Runtime-Client-Context: ", inv.ClientContext)
	return appendHeader(b, "Lambda-Runtime-Cognito-Identity: ", inv.CognitoIdentity)
}

// appendHeader appends a header that has a value.
func appendHeader(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return append(append(append(b, name...), cleanValue(value)...), "\r\n"...)
}

// appendEvent appends the INVOKE event.
func (inv *Invocation) appendEvent(b []byte) []byte {
	b = append(b, `{"eventType":"INVOKE","deadlineMs":`...)
	b = strconv.AppendInt(b, inv.Deadline.UnixMilli(), 10)
	b = append(b, `,"requestId":`...)
	b = appendString(b, inv.RequestID)
	b = append(b, `,"invokedFunctionArn":`...)
	b = appendString(b, inv.ARN)
	if inv.TraceID != "" {
		b = append(b, `,"tracing":{"type":"X-Amzn-Trace-Id","value":`...)
		b = appendString(b, inv.TraceID)
		b = append(b, '}')
	}
	return append(b, '}')
}

func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			j, err := json.Marshal(s)
			if err != nil { // strings always marshal
				return append(b, `""`...)
			}
			return append(b, j...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// ErrorPayload is the platform's own error document: lifecycle.md section 7.
// With no request id the message is "Error: <text>".
func ErrorPayload(errorType, requestID, text string) []byte {
	b := append([]byte(nil), `{"errorType":`...)
	b = appendString(b, errorType)
	b = append(b, `,"errorMessage":`...)
	if requestID != "" {
		text = "RequestId: " + requestID + " Error: " + text
	} else {
		text = "Error: " + text
	}
	b = appendString(b, text)
	return append(b, '}')
}

// newIdentifier makes an extension or event identifier.
func newIdentifier() string { return uuid.NewString() }

// appendIdentifier appends a new identifier, using id for its room.
func appendIdentifier(b []byte, id *[16]byte) []byte {
	rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // version 4
	for i, end := range [...]int{4, 6, 8, 10, 16} {
		if i > 0 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, id[[...]int{0, 4, 6, 8, 10}[i]:end])
	}
	return b
}

// registration is the body of a register call.
type registration struct {
	Events            []string `json:"events"`
	ConfigurationKeys []string `json:"configurationKeys"`
}

// register decides a register call in the order of extensions-api.md section 3.
func (a *API) register(name string, body []byte) (*extension, *refusal) {
	if name == "" {
		return nil, refuse("Extension.InvalidExtensionName", "Empty extension name")
	}
	var reg registration
	if err := json.Unmarshal(body, &reg); err != nil {
		return nil, refuse("InvalidRequestFormat", err.Error())
	}
	if len(reg.ConfigurationKeys) > 0 {
		return nil, refuse("InvalidRequestFormat", "configurationKeys are deprecated; use environment variables instead")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, gone
	}
	x := a.named(name)
	external := x != nil && x.external
	invoke, stop := false, false
	events := []string{}
	for _, e := range reg.Events {
		switch {
		case e == "INVOKE":
			invoke = true
		case e == "SHUTDOWN" && external:
			stop = true
		case e == "SHUTDOWN":
			return nil, refuse("Extension.InvalidEventType", "SHUTDOWN: ShutdownEventNotSupportedForInternalExtension")
		default:
			return nil, refuse("Extension.InvalidEventType", e+": ErrorInvalidEventType")
		}
		if !slices.Contains(events, e) {
			events = append(events, e)
		}
	}
	if external {
		if x.state != Started {
			return nil, refuse("Extension.InvalidExtensionState", transition(x.state, Registered, "extension "+name))
		}
	} else {
		switch {
		case !a.regOpen:
			return nil, refuse("Extension.RegistrationClosed", "Extension registration closed already")
		case len(a.extensions) >= lambdad.MaxExtensions:
			return nil, refuse("Extension.TooManyExtensions", "Extension limit (10) reached")
		case x != nil:
			return nil, refuse("Extension.InvalidExtensionState", "Extension with this name already registered")
		}
		x = &extension{name: name}
		a.extensions = append(a.extensions, x)
	}
	x.id, x.state, x.events, x.invoke, x.stop, x.since = newIdentifier(), Registered, events, invoke, stop, time.Now()
	a.notify()
	return x, nil
}

// identified finds the extension of an identifier. The third refusal differs by
// route.
func (a *API) identified(id, unknown string) (*extension, *refusal) {
	if id != "" {
		for _, x := range a.extensions {
			if x.id == id {
				return x, nil
			}
		}
	}
	return nil, refuse("Extension.UnknownExtensionIdentifier", unknown)
}

// checkIdentifier refuses what cannot be an identifier and returns its plain form.
func checkIdentifier(header []byte) (string, *refusal) {
	if len(header) == 0 {
		return "", refuse("Extension.MissingExtensionIdentifier", "Missing Lambda-Extension-Identifier header")
	}
	id, err := uuid.ParseBytes(header)
	if err != nil {
		return "", refuse("Extension.InvalidExtensionIdentifier", "Invalid Lambda-Extension-Identifier")
	}
	return id.String(), nil
}

// eventNext decides a call of event/next. Its event is loaded, or it waits on the
// connection for one to be pushed.
func (a *API) eventNext(c *conn, header []byte) (x *extension, waiting bool, no *refusal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, false, gone
	}
	if x = a.withIdentifier(header); x == nil {
		id, no := checkIdentifier(header)
		if no == nil {
			x, no = a.identified(id, "Unknown extension "+id)
		}
		if no != nil {
			return nil, false, no
		}
	}
	for x.giving { // over another connection
		if a.settled.Wait(); a.closed {
			return nil, false, gone
		}
	}
	switch {
	case x.state == Registered, x.state == Running && x.pending == nil:
		x.state, x.asked = Ready, time.Now()
		if !a.progress.Released.IsZero() && !a.progress.Next.IsZero() && x.invoke {
			a.progress.AllNext = x.asked
		}
		if a.current == nil || a.over() { // of an invocation only the last counts
			a.notify()
		}
	case x.state == Running: // the event did not reach its caller
	case x.state == Ready && x.waiting == nil: // neither did the last call's answer
	default:
		return nil, false, refuse("Extension.InvalidExtensionState", transition(x.state, Ready, "extension "+x.id))
	}
	a.tell(x)
	c.extension = x
	if x.state == Running {
		x.load(c)
		return x, false, nil
	}
	x.waiting = c
	return x, true, nil
}

// withIdentifier finds the extension whose identifier is written as it was given.
func (a *API) withIdentifier(header []byte) *extension {
	for _, x := range a.extensions {
		if x.id != "" && x.id == string(header) {
			return x
		}
	}
	return nil
}

// eventLeft ends a call that waited for an event: its caller went away. An event that
// was given to it stays pending for the next call.
func (a *API) eventLeft(c *conn, x *extension) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if x.waiting == c {
		x.waiting = nil
	}
}

// report decides init/error and exit/error of an extension.
func (a *API) report(id, errorType string, exit bool) *refusal {
	if errorType == "" {
		return refuse("Extension.MissingHeader", "Lambda-Extension-Function-Error-Type not found")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return gone
	}
	x, no := a.identified(id, "Unknown Lambda-Extension-Identifier")
	if no != nil {
		return no
	}
	to, target, fatal := InitError, InitError, ErrExtensionInit
	if exit {
		to, target, fatal = ExitError, Exited, ErrExtensionExit
	}
	switch {
	case x.state == to: // said already; the first type stays
		return nil
	case x.state == Registered, exit && (x.state == Ready || x.state == Running):
	default:
		return refuse("Extension.InvalidExtensionState", transition(x.state, target, "extension "+id))
	}
	if len(errorType) > 256 {
		errorType = errorType[:256]
	}
	x.state, x.errorType = to, cleanValue(errorType)
	if a.shutdown == nil {
		a.fail(fatal)
	}
	a.notify()
	return nil
}

// next decides a call of invocation/next. Its event is loaded, but for the payload
// that it returns, or it waits on the connection for one to be pushed.
func (a *API) next(c *conn, agent []byte) (payload []byte, waiting bool, no *refusal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, false, gone
	}
	if a.agent == "" && len(agent) <= 256 {
		a.agent = string(agent)
	}
	c.extension = nil
	switch a.state {
	case Started, ResponseSent:
		a.progress.Next = time.Now()
		if a.state == ResponseSent {
			a.progress.AllNext = a.progress.Next
		}
		a.state, a.regOpen = Ready, false
		a.notify()
	case Ready:
	case Running: // its answer never reached the runtime, or was forgotten
		if a.current == nil {
			return nil, false, gone
		}
		return a.load(c), false, nil
	default:
		return nil, false, refuse("InvalidStateTransition", transition(a.state, Ready, "runtime"))
	}
	a.waiters = append(a.waiters, c)
	return nil, true, nil
}

// left ends a call that waited for an invocation: its caller went away.
func (a *API) left(c *conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if i := slices.Index(a.waiters, c); i >= 0 {
		a.waiters = slices.Delete(a.waiters, i, i+1)
	}
}

// answering begins a post of a response or an error: it decides whether it is
// accepted before anything of its body is read.
func (a *API) answering(id []byte, to string) (*Invocation, *refusal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, gone
	}
	if a.current == nil || a.current.RequestID != string(id) {
		return nil, &refusal{status: 400, errorType: "InvalidRequestID", message: "Invalid request ID"}
	}
	if a.state != Running {
		return nil, refuse("InvalidStateTransition", transition(a.state, to, "runtime"))
	}
	a.state = to
	return a.current, nil
}

// answered ends what answering began. It reports false when the generation has
// ended meanwhile.
func (a *API) answered(inv *Invocation, ans Answer, first time.Time) bool {
	a.mu.Lock()
	if a.closed || a.current != inv {
		a.mu.Unlock()
		return false
	}
	a.state = ResponseSent
	a.progress.LastByte = time.Now()
	a.progress.FirstByte = first
	if first.IsZero() {
		a.progress.FirstByte = a.progress.LastByte
	}
	a.progress.Produced = int64(len(ans.Payload))
	if ans.FunctionError {
		a.progress.Produced = -1
	}
	a.mu.Unlock()
	inv.Answer(ans)
	return true
}

// initFailing begins a post to init/error, initFailed ends it.
func (a *API) initFailing() *refusal {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return gone
	}
	if a.state != Started {
		return refuse("InvalidStateTransition", transition(a.state, InitError, "runtime"))
	}
	a.state = InitError
	return nil
}

func (a *API) initFailed(ans Answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.initErr = &ans
	a.fail(ans.ErrorType)
	a.notify()
}

func transition(from, to, who string) string {
	return "State transition from " + from + " to " + to + " failed for " + who + ". Error: State transition is not allowed"
}
