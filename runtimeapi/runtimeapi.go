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
	"encoding/json"
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

	headers [8]string // values for the runtime
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
	server

	mu       sync.Mutex
	closed   bool
	calls    sync.WaitGroup
	state    string // of the runtime
	regOpen  bool
	waiters  []chan *Invocation // calls of next, oldest first
	current  *Invocation
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
	waiting   chan struct{} // closed when pending was set; nil when no call waits
	pending   *event        // not yet delivered
	told      bool          // of the shutdown
	later     bool          // it is not to be told of it yet
	since     time.Time     // it registered
	asked     time.Time     // it last became Ready
}

type event struct {
	body       []byte
	invocation bool
}

// New makes an API in the state before any process was started.
func New(cfg Config) *API {
	a := &API{cfg: cfg, changed: make(chan struct{}, 1), state: Started, regOpen: true}
	a.server.init(a)
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

// Release hands out an invocation: to the extensions that want it, then to the
// runtime. All must be Ready.
func (a *API) Release(inv *Invocation) {
	inv.prepare()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.current = inv
	a.progress = Progress{Released: time.Now()}
	var ev *event
	for _, x := range a.extensions {
		if !x.invoke || x.state != Ready {
			continue
		}
		if ev == nil {
			ev = &event{body: inv.invokeEvent(), invocation: true}
		}
		x.give(ev)
	}
	a.state = Running
	a.hand()
}

// hand gives the current event to the call of next that waits longest. If none
// does it is delivered when one comes.
func (a *API) hand() {
	if len(a.waiters) > 0 && a.state == Running {
		a.waiters[0] <- a.current
		a.waiters = a.waiters[1:]
	}
}

func (x *extension) give(ev *event) {
	x.state, x.pending = Running, ev
	if x.waiting != nil {
		close(x.waiting)
		x.waiting = nil
	}
}

// Progress tells how far the current invocation got.
func (a *API) Progress() Progress {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.progress
	if !p.Next.IsZero() && slices.ContainsFunc(a.extensions, func(x *extension) bool { return x.invoke && x.state != Ready }) {
		p.AllNext = time.Time{}
	}
	return p
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
	defer a.mu.Unlock()
	a.shutdown = &event{body: body}
	var names []string
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
		a.tell(x)
	}
	return names
}

// Tell lets an extension have the SHUTDOWN event that Shutdown kept for later.
func (a *API) Tell(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if x := a.named(name); x != nil {
		x.later = false
		a.tell(x)
	}
}

// tell gives the SHUTDOWN event to an extension that asks for an event.
func (a *API) tell(x *extension) {
	if x.state == Ready && a.shutdown != nil && x.stop && !x.told && !x.later {
		x.told = true
		x.give(a.shutdown)
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

func (inv *Invocation) prepare() {
	contentType := inv.ContentType
	if contentType == "" {
		contentType = "application/json"
	}
	inv.headers = [8]string{
		cleanValue(contentType),
		strconv.Itoa(len(inv.Payload)),
		inv.RequestID,
		strconv.FormatInt(inv.Deadline.UnixMilli(), 10),
		cleanValue(inv.ARN),
		cleanValue(inv.TraceID),
		cleanValue(inv.ClientContext),
		cleanValue(inv.CognitoIdentity),
	}
}

// invocationHeaders are the names of the values in Invocation.headers.
var invocationHeaders = [8]string{
	"Content-Type",
	"Content-Length",
	"Lambda-Runtime-Aws-Request-Id",
	"Lambda-Runtime-Deadline-Ms",
	"Lambda-Runtime-Invoked-Function-Arn",
	"Lambda-Runtime-Trace-Id",
	"Lambda-Runtime-Client-Context",
	"Lambda-Runtime-Cognito-Identity",
}

func (inv *Invocation) invokeEvent() []byte {
	b := make([]byte, 0, 384)
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
func checkIdentifier(header string) (string, *refusal) {
	if header == "" {
		return "", refuse("Extension.MissingExtensionIdentifier", "Missing Lambda-Extension-Identifier header")
	}
	id, err := uuid.Parse(header)
	if err != nil {
		return "", refuse("Extension.InvalidExtensionIdentifier", "Invalid Lambda-Extension-Identifier")
	}
	return id.String(), nil
}

// eventNext blocks a call of event/next until there is an event or gone is
// closed, which means that the caller went away.
func (a *API) eventNext(id string, disconnected <-chan struct{}) (*extension, *event, *refusal) {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil, nil, gone
	}
	x, no := a.identified(id, "Unknown extension "+id)
	if no == nil {
		switch {
		case x.state == Registered, x.state == Running && x.pending == nil:
			x.state, x.asked = Ready, time.Now()
			if !a.progress.Released.IsZero() && !a.progress.Next.IsZero() && x.invoke {
				a.progress.AllNext = x.asked
			}
			a.notify()
		case x.state == Running: // the event did not reach its caller
		case x.state == Ready && x.waiting == nil: // neither did the last call's answer
		default:
			no = refuse("Extension.InvalidExtensionState", transition(x.state, Ready, "extension "+id))
		}
	}
	if no != nil {
		a.mu.Unlock()
		return nil, nil, no
	}
	a.tell(x)
	if x.state == Running {
		ev := x.pending
		x.pending = nil
		a.mu.Unlock()
		return x, ev, nil
	}
	wait := make(chan struct{})
	x.waiting = wait
	a.mu.Unlock()

	select {
	case <-wait:
	case <-disconnected:
		a.mu.Lock()
		defer a.mu.Unlock()
		if x.waiting == wait {
			x.waiting = nil
		} // else the event stays pending for the next call
		return nil, nil, gone
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	ev := x.pending
	x.pending = nil
	if ev == nil { // another call took it
		return nil, nil, refuse("Extension.InvalidExtensionState", concurrent(Ready, Ready, "extension "+id))
	}
	return x, ev, nil
}

// undelivered takes back an event that did not reach its caller.
func (a *API) undelivered(x *extension, ev *event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if x.state == Running && x.pending == nil {
		x.pending = ev
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

// next blocks a call of invocation/next until there is an event or the caller
// went away.
func (a *API) next(agent string, disconnected <-chan struct{}) (*Invocation, *refusal) {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil, gone
	}
	if a.agent == "" && len(agent) <= 256 {
		a.agent = agent
	}
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
		inv := a.current
		a.mu.Unlock()
		return inv, nil
	default:
		no := refuse("InvalidStateTransition", transition(a.state, Ready, "runtime"))
		a.mu.Unlock()
		return nil, no
	}
	wait := make(chan *Invocation, 1)
	a.waiters = append(a.waiters, wait)
	a.mu.Unlock()

	select {
	case inv := <-wait:
		return inv, nil
	case <-disconnected:
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if i := slices.Index(a.waiters, wait); i >= 0 {
		a.waiters = slices.Delete(a.waiters, i, i+1)
	} else if a.current != nil && a.current == <-wait {
		a.hand() // to another call that waits; else the next one gets it
	}
	return nil, gone
}

// answering begins a post of a response or an error: it decides whether it is
// accepted before anything of its body is read.
func (a *API) answering(id string, to string) (*Invocation, *refusal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, gone
	}
	if a.current == nil || a.current.RequestID != id {
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

func concurrent(from, to, who string) string {
	return "State transition from " + from + " to " + to + " failed for " + who + ". Error: Concurrent state modification"
}
