// Package environment is one execution environment: the owner of one sandbox and
// of the processes in it, from initialisation over invocations to shutdown (spec:
// lifecycle.md).
//
// One goroutine owns an Environment, and its phase is the line run is on. The
// runtime and each extension are the same thing to it: a party, a process that
// asks for the next event. An invocation is answered when the runtime has
// answered; it is over when the runtime and every extension that had the event
// ask for the next one. These two moments are kept apart everywhere.
//
// Everything a process does is seen in three ways: its calls (package
// runtimeapi, one API for each generation of processes), its output (package
// telemetry) and its exit. A generation that failed is ended whole, by the
// shutdown sequence and Sandbox.Reset, before there is another.
package environment

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/runtimeapi"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/telemetry"
)

// ErrEnded is returned by Invoke when the environment ended before the runtime
// answered: the invocation may have begun.
var ErrEnded = errors.New("environment: ended")

// ErrInit is the error of an environment that was to be initialised ahead, and
// whose initialisation failed or hit its limit for a reason of the function's.
var ErrInit = errors.New("environment: its initialisation failed")

// errLost is the error of an environment that was initialised ahead and whose
// processes are gone.
var errLost = errors.New("environment: what was initialised ahead is lost")

// Addresses that processes in a sandbox find lambdad at, where the driver can
// give them.
const (
	runtimeAPIAddress = "127.0.0.1:9001"
	endpointAddress   = "127.0.0.1:4566"
	maxEndpointConns  = 128
)

// tailWait is how long an answer with the tail of the log waits for the end of
// its invocation (lifecycle.md section 8).
const tailWait = 100 * time.Millisecond

// A Config says what an environment is made of.
type Config struct {
	// ID is 32 hexadecimal digits: the end of the log stream's name.
	ID string
	// Version is what it runs.
	Version *lambdad.Version

	// Entrypoints are tried in order, as paths inside; the first that can be
	// executed is the runtime process. A Version with an Image says itself what is.
	Entrypoints []string
	// RuntimeEnv is for the runtime process only: AWS_EXECUTION_ENV, PYTHONPATH, …
	// The function's own variables win over it.
	RuntimeEnv map[string]string
	// RuntimeVersion and RuntimeVersionARN are shown in the log; "" when unknown.
	RuntimeVersion, RuntimeVersionARN string

	// Sandbox is owned by the environment, which destroys it at its end.
	Sandbox sandbox.Sandbox
	// Stream gets platform events and the processes' lines.
	Stream *telemetry.Stream
	// LogStream is the name of the log stream; "": as Version.LogStream makes it now.
	LogStream string
	// Credentials makes those of a process each time it is started; the party is
	// runtime or extension/<name>. nil: processes have none.
	Credentials func(party string) lambdad.Credentials
	// Endpoint is the AWS endpoint served inside the sandbox; nil: none.
	Endpoint http.Handler
	// InitType is AWS_LAMBDA_INITIALIZATION_TYPE; "": on-demand. An environment of
	// another type has one initialisation only, ahead of its first invocation: when
	// that fails or its processes are lost, the environment ends.
	InitType string
	// FreezeDelay passes between the end of an invocation and freezing; 0: none,
	// negative: the environment is never frozen.
	FreezeDelay time.Duration
	// Crowd is how many environments of this host are at work; nil: this one alone.
	Crowd func() int
	// Logger hears of the platform's own trouble; nil: nobody.
	Logger *slog.Logger

	// OnIdle is called every time the environment can take an invocation: after
	// the first attempt at initialisation, failed or not, and after the end of
	// each invocation with the reset it may need. It must not block and may call
	// Invoke only from another goroutine.
	OnIdle func(*Environment)
	// OnEnd is called once, after the sandbox was destroyed and before Done is
	// closed. err is nil after Shutdown and Kill; ErrInit after a failed
	// initialisation ahead.
	OnEnd func(e *Environment, err error)
}

// Initialization types (lifecycle.md section 3.2).
const (
	OnDemand    = "on-demand"
	Provisioned = "provisioned-concurrency"
)

// States of an environment as Status shows them.
const (
	StateInitializing = "initializing"
	StateIdle         = "idle"
	StateFrozen       = "frozen"
	StateBusy         = "busy"
	StateResetting    = "resetting"
	StateShuttingDown = "shutting-down"
)

// A Status is what an environment is doing.
type Status struct {
	ID, Function, Version string
	State                 string
	Since                 time.Time     // it is in this state
	Age                   time.Duration // since Start
	Invocations           int           // begun

	// What its processes use is for who measures it to say: Status asks nobody.
	Memory    int64 // bytes they hold
	Processes int   // processes and threads
}

// An Environment runs one version of a function, one invocation at a time.
type Environment struct {
	cfg       Config
	log       *slog.Logger
	freezer   sandbox.Freezer // nil: the sandbox cannot freeze
	sampler   sampler
	logStream string
	started   time.Time

	ctx      context.Context // ends with Kill
	kill     context.CancelFunc
	work     chan *invocation
	stopping chan struct{}
	stopOnce sync.Once
	going    context.Context // ends when stopping is closed, too
	stop     context.CancelFunc
	done     chan struct{}

	mu          sync.Mutex
	state       string
	since       time.Time
	invocations int

	// Owned by run.
	gen          *generation // nil between generations
	oomKills     int         // before gen began
	ready        bool        // gen completed its initialisation
	frozenAt     time.Time   // zero: not frozen
	freezing     alarm
	limit        alarm // of the invocation
	initDuration time.Duration
	peak         int64     // MB, measured at peakAt
	peakAt       time.Time // zero: not in this generation
	costs        costs
	endpoint     string // URL inside the sandbox
	endpointDone chan struct{}
	endpointHTTP *http.Server
}

// invocation is one on its way through the environment.
type invocation struct {
	*lambdad.Invocation
	answer  chan *lambdad.Response
	given   atomic.Bool
	errored atomic.Bool   // the answer is an error
	ended   chan struct{} // closed after its report; nil: nobody waits for that
	tail    *telemetry.Tail
	trace   string // for processes
	tracing *telemetry.TraceContext
}

// give answers the caller; only the first answer counts.
func (inv *invocation) give(payload []byte, functionError bool) {
	if inv.given.Swap(true) {
		return
	}
	r := &lambdad.Response{Payload: payload, ExecutedVersion: inv.Version.Number}
	if functionError {
		r.FunctionError = "Unhandled"
		inv.errored.Store(true)
	}
	inv.answer <- r
}

// Start makes an environment; its initialisation begins at once.
func Start(cfg Config) *Environment {
	if cfg.InitType == "" {
		cfg.InitType = OnDemand
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Stream == nil {
		cfg.Stream = telemetry.NewStream()
	}
	now := time.Now()
	e := &Environment{
		cfg:       cfg,
		log:       cfg.Logger.With("function", cfg.Version.Function, "version", cfg.Version.Number, "environment", cfg.ID),
		logStream: cfg.LogStream,
		started:   now,
		work:      make(chan *invocation, 1),
		stopping:  make(chan struct{}),
		done:      make(chan struct{}),
		state:     StateInitializing,
		since:     now,
	}
	if e.logStream == "" {
		e.logStream = cfg.Version.LogStream(now, cfg.ID)
	}
	e.freezer, _ = cfg.Sandbox.(sandbox.Freezer)
	e.sampler.box, _ = cfg.Sandbox.(sandbox.Sampler)
	e.sampler.crowd = cfg.Crowd
	e.ctx, e.kill = context.WithCancel(context.Background())
	e.going, e.stop = context.WithCancel(e.ctx)
	go func() {
		err := e.run(e.ctx)
		e.end(err)
	}()
	return e
}

// ID returns the environment's id.
func (e *Environment) ID() string { return e.cfg.ID }

// Invoke runs one invocation and returns when the runtime has answered, or when
// the platform answers in its place; the environment is idle again only later
// (Config.OnIdle). It is called by whoever claimed the idle environment, and by
// nobody else until it is idle again. When ctx ends Invoke returns its cause and
// the invocation goes on. ErrEnded means that the environment is gone.
func (e *Environment) Invoke(ctx context.Context, in *lambdad.Invocation) (*lambdad.Response, error) {
	inv := &invocation{Invocation: in, answer: make(chan *lambdad.Response, 1)}
	if inv.Version == nil {
		c := *in
		c.Version = e.cfg.Version
		inv.Invocation = &c
	}
	if in.Tail {
		inv.ended = make(chan struct{})
		inv.tail = telemetry.NewTail(e.format(), lambdad.MaxLogTail)
	}
	select {
	case e.work <- inv:
	case <-e.done:
		return nil, ErrEnded
	}
	var r *lambdad.Response
	select {
	case r = <-inv.answer:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-e.done:
		select {
		case r = <-inv.answer:
		default:
			return nil, ErrEnded
		}
	}
	if inv.tail != nil {
		limit := time.NewTimer(tailWait)
		defer limit.Stop()
		select {
		case <-inv.ended:
		case <-limit.C:
		case <-ctx.Done():
		case <-e.done:
		}
		r.LogTail = inv.tail.Bytes()
	}
	return r, nil
}

func (e *Environment) format() telemetry.Format {
	l := e.cfg.Version.Logging
	return telemetry.NewFormat(l.Format, l.ApplicationLevel, l.SystemLevel)
}

// Shutdown ends the environment: the invocation in flight is finished, then the
// shutdown sequence runs and the sandbox is destroyed. It returns when that is
// done. When ctx ends first the environment is killed.
func (e *Environment) Shutdown(ctx context.Context) {
	e.stopOnce.Do(func() {
		close(e.stopping)
		e.stop()
	})
	select {
	case <-e.done:
	case <-ctx.Done():
		e.kill()
		<-e.done
	}
}

// Kill ends the environment at once. It does not wait: see Done.
func (e *Environment) Kill() { e.kill() }

// Done is closed when nothing is left of the environment.
func (e *Environment) Done() <-chan struct{} { return e.done }

// Status tells what the environment is doing.
func (e *Environment) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return Status{
		ID: e.cfg.ID, Function: e.cfg.Version.Function, Version: e.cfg.Version.Number,
		State: e.state, Since: e.since, Age: time.Since(e.started), Invocations: e.invocations,
	}
}

func (e *Environment) enter(state string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.state, e.since = state, time.Now()
	if state == StateBusy {
		e.invocations++
	}
}

func (e *Environment) emit(typ string, record any) {
	e.cfg.Stream.Emit(telemetry.Event{Type: typ, Record: record})
}

// run is the whole life of the environment. Its phase is the line it is on. It
// returns an error when the sandbox fails in a way that another process cannot
// live with.
func (e *Environment) run(ctx context.Context) error {
	if err := e.serveEndpoint(); err != nil {
		return err
	}
	f := e.init(ctx, telemetry.PhaseInit, nil, nil)
	if err := e.after(ctx, f); err != nil {
		return err
	}
	for fresh := true; ctx.Err() == nil; {
		if fresh && !e.mustStop() {
			e.gen.hold()
			e.enter(StateIdle)
			if e.cfg.OnIdle != nil {
				e.cfg.OnIdle(e)
			}
		}
		fresh = false
		err := e.idle(ctx, func(inv *invocation) error {
			fresh = true
			return e.invoke(ctx, inv)
		})
		if errors.Is(err, errStop) {
			e.halt(ctx, "spindown", telemetry.SpanShutdown)
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var errStop = errors.New("environment: told to stop")

func (e *Environment) mustStop() bool {
	select {
	case <-e.stopping:
		return true
	default:
		return false
	}
}

// idle waits for the next thing to do: an invocation, the death of a process, the
// moment to freeze or the end.
func (e *Environment) idle(ctx context.Context, invoke func(*invocation) error) error {
	var freeze <-chan time.Time
	if e.freezer != nil && e.gen != nil && e.cfg.FreezeDelay >= 0 && e.frozenAt.IsZero() {
		now := time.Now()
		freeze = e.freezing.set(now.Add(e.cfg.FreezeDelay), now)
		defer e.freezing.off()
	}
	for {
		select {
		case inv := <-e.work:
			return invoke(inv)
		case p := <-e.gen.died():
			p.exited = true
			e.enter(StateResetting)
			if e.ahead() {
				e.halt(ctx, "failure", telemetry.SpanReset)
				return fmt.Errorf("%w: %s ended while it was idle: %s", errLost, p.name, p.proc.Exit())
			}
			e.log.Warn("a process ended while its environment was idle; the next invocation starts anew",
				"process", p.name, "exit", p.proc.Exit().String())
			err := e.reset(ctx, "failure")
			e.enter(StateIdle)
			return err
		case <-freeze:
			if e.freezing.due() {
				freeze = nil
				e.freeze()
			}
		case <-e.stopping:
			select {
			case inv := <-e.work: // came first
				return invoke(inv)
			default:
			}
			e.enter(StateShuttingDown)
			return errStop
		case <-ctx.Done():
			return nil
		}
	}
}

// freeze stops all processes until thaw. What cannot be frozen stays awake.
func (e *Environment) freeze() {
	begun := time.Now()
	e.gen.subs.Pause()
	if err := e.freezer.Freeze(e.going); err != nil && e.going.Err() == nil {
		e.gen.resume()
		e.gen.hold()
		e.log.Warn("cannot freeze the environment; its processes run on while it idles", "err", err)
		return
	}
	// A thousand processes take their time to stand still. Cut short, because the
	// environment is to end, it is thawed as if they did.
	e.frozenAt = time.Now()
	e.enter(StateFrozen)
	e.cfg.Stream.EmitSpan(telemetry.SpanFreeze, "", "", begun)
}

func (e *Environment) thaw(ctx context.Context) error {
	if e.frozenAt.IsZero() {
		return nil
	}
	if err := e.freezer.Thaw(ctx); err != nil {
		return fmt.Errorf("environment: thaw: %w", err)
	}
	e.cfg.Stream.EmitSpan(telemetry.SpanFrozen, "", "", e.frozenAt)
	e.frozenAt = time.Time{}
	return nil
}

// invoke runs one invocation from its start to its report, and the reset that
// its failure asks for. It returns an error only when the environment cannot go
// on.
func (e *Environment) invoke(ctx context.Context, inv *invocation) error {
	e.enter(StateBusy)
	inv.trace, inv.tracing = e.tracing(inv.TraceID)
	timeout := e.cfg.Version.Timeout
	initDuration := e.initDuration
	e.initDuration = 0

	fault := e.thaw(ctx)
	if fault == nil && e.gen.dead() {
		// Never deliver an event to a dead generation.
		if e.ahead() {
			e.halt(ctx, "failure", telemetry.SpanReset)
			return fmt.Errorf("%w: a process ended while it was frozen", errLost)
		}
		fault = e.reset(ctx, "failure")
		e.enter(StateBusy)
	}
	if e.frozenAt.IsZero() { // thawed; nothing is written to who is not
		e.gen.resume()
	}

	begun := time.Now()
	e.limit.set(begun.Add(timeout), begun)
	defer e.limit.off()
	var f *failure
	switch {
	case fault != nil:
		f = sandboxFailure(fault)
	case !e.ready:
		f = e.init(ctx, telemetry.PhaseInvoke, inv, &e.limit)
	}

	if inv.tail != nil {
		e.cfg.Stream.Attach(inv.tail, false)
		defer e.cfg.Stream.Detach(inv.tail)
	}
	e.emit(telemetry.TypeStart, telemetry.Start{
		RequestID: inv.RequestID, FunctionARN: inv.InvokedARN, Version: e.cfg.Version.Number, Tracing: inv.tracing,
	})
	done := runtimeDone{e: e, inv: inv}
	var ended time.Time // when all parties asked again
	if f == nil {
		e.gen.api.Release(&runtimeapi.Invocation{
			RequestID:       inv.RequestID,
			ARN:             inv.InvokedARN,
			TraceID:         inv.trace,
			ClientContext:   inv.ClientContext,
			CognitoIdentity: inv.CognitoIdentity,
			ContentType:     inv.ContentType,
			Payload:         inv.Payload,
			Deadline:        begun.Add(timeout),
			Answer:          func(a runtimeapi.Answer) { inv.give(a.Payload, a.FunctionError) },
		})
		ended, f = e.awaitNext(ctx, inv, &done)
	}

	duration := ended.Sub(begun)
	if f != nil {
		duration = time.Since(begun)
		if f.status == telemetry.StatusTimeout {
			duration = timeout // exactly, as AWS reports it
		}
		killed := errors.Is(f.cause, ErrEnded) // and then Invoke says so
		if f.cause != nil && !killed {
			e.log.Error("an invocation failed for the platform's fault", "request", inv.RequestID, "err", f.cause)
		}
		if !killed {
			inv.give(f.answer(inv.RequestID), true)
		}
		e.gen.drain(f.party)
		done.failed(f, duration)
	}
	if f == nil {
		// The report comes after the end of the invocation: extensions get it when
		// they are at work again (telemetry-api.md section 3).
		e.gen.hold()
	}
	e.report(inv, f, duration, initDuration, done.at, ended)
	if e.gen != nil {
		e.gen.api.End()
	}
	if inv.ended != nil {
		close(inv.ended)
	}
	return e.after(ctx, f)
}

// after does what a failure asks for: the processes are ended, and the sandbox
// stays unless it was initialised ahead.
func (e *Environment) after(ctx context.Context, f *failure) error {
	if f == nil || ctx.Err() != nil {
		return nil
	}
	if f.stopped {
		e.enter(StateShuttingDown)
		return nil // the sequence runs with the reason of a stop
	}
	e.enter(StateResetting)
	if e.ahead() {
		e.halt(ctx, f.reason(), telemetry.SpanReset)
		switch {
		case !f.initialising:
			return fmt.Errorf("%w: %s", errLost, f.errorType)
		case f.cause != nil:
			return fmt.Errorf("environment: initialise ahead: %w", f.cause)
		}
		return fmt.Errorf("%w: %s", ErrInit, f.errorType)
	}
	return e.reset(ctx, f.reason())
}

// ahead reports whether the environment is initialised ahead, and never again.
func (e *Environment) ahead() bool { return e.cfg.InitType != OnDemand }

// awaitNext waits until the runtime and every extension that had the event ask
// for the next one, or for what comes in between.
func (e *Environment) awaitNext(ctx context.Context, inv *invocation, done *runtimeDone) (time.Time, *failure) {
	g := e.gen
	look := e.sampler.start()
	defer e.sampler.stop()
	for {
		p := g.api.Progress()
		if !p.Next.IsZero() {
			done.succeeded(p)
		}
		if !p.AllNext.IsZero() {
			return p.AllNext, nil
		}
		select {
		case <-g.api.Changed():
		case <-look:
			e.sampler.look()
		case x := <-g.exits:
			return time.Time{}, e.crashed(x)
		case <-e.limit.timer.C:
			if !e.limit.due() {
				continue
			}
			if p := g.api.Progress(); !p.AllNext.IsZero() {
				done.succeeded(p)
				return p.AllNext, nil
			}
			return time.Time{}, timedOut(e.cfg.Version.Timeout)
		case <-ctx.Done():
			return time.Time{}, sandboxFailure(ErrEnded)
		}
	}
}

// runtimeDone emits platform.runtimeDone, once for each invocation.
type runtimeDone struct {
	e    *Environment
	inv  *invocation
	said bool
	at   time.Time // the runtime asked for its next event
}

func (d *runtimeDone) succeeded(p runtimeapi.Progress) {
	if d.said {
		return
	}
	d.said, d.at = true, p.Next
	d.e.gen.flush()
	metrics := &telemetry.RuntimeMetrics{Duration: telemetry.Millis(p.Next.Sub(p.Released))}
	if n := p.Produced; n >= 0 {
		metrics.ProducedBytes = &n // of p all would be allocated, at every look
	}
	d.e.emit(telemetry.TypeRuntimeDone, telemetry.RuntimeDone{
		RequestID: d.inv.RequestID, Status: telemetry.StatusSuccess, Metrics: metrics, Tracing: d.inv.tracing,
		Spans: []telemetry.Span{
			span("responseLatency", p.Released, p.FirstByte),
			span("responseDuration", p.FirstByte, p.LastByte),
			span("runtimeOverhead", p.LastByte, p.Next),
		},
	})
	d.e.emit(telemetry.TypeSpan, telemetry.Span{Name: telemetry.SpanRuntime, Party: "runtime", RequestID: d.inv.RequestID,
		Start: telemetry.Stamp(p.Released), Duration: telemetry.Millis(p.Next.Sub(p.Released))})
}

func (d *runtimeDone) failed(f *failure, duration time.Duration) {
	if d.said {
		return
	}
	d.said = true
	r := telemetry.RuntimeDone{RequestID: d.inv.RequestID, Status: f.status, ErrorType: f.telemetryType(), Tracing: d.inv.tracing}
	if !f.initialising {
		r.Metrics = &telemetry.RuntimeMetrics{Duration: telemetry.Millis(duration)}
	}
	d.e.emit(telemetry.TypeRuntimeDone, r)
}

func span(name string, from, to time.Time) telemetry.Span {
	return telemetry.Span{Name: name, Start: telemetry.Stamp(from), Duration: telemetry.Millis(to.Sub(from))}
}

// report ends an invocation in the log.
func (e *Environment) report(inv *invocation, f *failure, duration, initDuration time.Duration, runtimeNext, allNext time.Time) {
	e.gen.flush()
	billed := initDuration
	if e.ahead() {
		billed = 0 // it was when the environment was made (lifecycle.md section 15)
	}
	r := telemetry.Report{
		RequestID: inv.RequestID, Status: telemetry.StatusSuccess, Tracing: inv.tracing, FunctionError: inv.errored.Load(),
		Metrics: telemetry.ReportMetrics{
			Duration:   telemetry.Millis(duration),
			Billed:     telemetry.BilledMillis(duration, billed),
			MemorySize: int64(e.cfg.Version.MemoryMB),
			Init:       telemetry.Millis(initDuration),
		},
	}
	if f != nil {
		e.peakAt = time.Time{} // a failure is measured
	}
	r.Metrics.MaxMemoryUsed = e.peakMB(duration)
	e.costs.invocation(e, inv.RequestID, runtimeNext)
	if f != nil {
		r.Status, r.ErrorType = f.status, f.telemetryType()
		if f.errorType == errOutOfMemory {
			r.Metrics.MaxMemoryUsed = r.Metrics.MemorySize // the limit was reached
		}
	} else if allNext.After(runtimeNext) {
		s := span("extensionOverhead", runtimeNext, allNext)
		r.Spans = []telemetry.Span{s}
		s.Name, s.RequestID = telemetry.SpanExtensions, inv.RequestID
		e.emit(telemetry.TypeSpan, s)
	}
	e.emit(telemetry.TypeReport, r)
}

// A peak serves invocations that follow each other fast: short ones, in which the
// processes cannot have taken more than a few megabytes, and those in which they took
// none. Measuring costs more than such an invocation, with extensions several times.
// Where many environments share the cores, invocations follow each other more slowly,
// and both are longer by that (sampler.spread).
const (
	peakFresh = 20 * time.Millisecond
	peakShort = 3 * time.Millisecond
)

// peakMB is what the processes held at most, in whole megabytes, at the end of an
// invocation of this duration.
func (e *Environment) peakMB(duration time.Duration) int64 {
	spread := e.sampler.spread
	if time.Since(e.peakAt) < spread(peakFresh) && (duration < spread(peakShort) || e.sampler.box != nil && !e.sampler.box.Grown()) {
		return e.peak
	}
	u, err := e.cfg.Sandbox.Usage()
	if err != nil {
		e.log.Warn("cannot measure the memory of the environment; its log shows 0 MB", "err", err)
	}
	e.costs.usage = u
	e.peak, e.peakAt = (u.PeakMemory+1<<20-1)>>20, time.Now()
	return e.peak
}

// tracing makes the trace of an invocation: the header that processes get, and
// the context in telemetry when the trace is sampled.
func (e *Environment) tracing(trace string) (string, *telemetry.TraceContext) {
	if telemetry.TraceField(trace, "Sampled") != "1" {
		return trace, nil
	}
	t := &telemetry.TraceContext{Type: "X-Amzn-Trace-Id", Value: trace}
	if e.cfg.Version.Tracing != "Active" {
		return trace, t
	}
	var id [8]byte
	rand.Read(id[:])
	t.SpanID = hex.EncodeToString(id[:])
	// The function's own segment is the parent of what its code does.
	return "Root=" + telemetry.TraceField(trace, "Root") + ";Parent=" + t.SpanID + ";Sampled=1", t
}

// reset ends all processes by the shutdown sequence and makes the sandbox ready
// for another generation; /tmp stays.
func (e *Environment) reset(ctx context.Context, reason string) error {
	e.halt(ctx, reason, telemetry.SpanReset)
	if ctx.Err() != nil {
		return nil
	}
	e.costs.end(e)
	if err := e.cfg.Sandbox.Reset(ctx); err != nil && ctx.Err() == nil {
		e.close()
		return fmt.Errorf("environment: reset the sandbox: %w", err)
	}
	if u, err := e.cfg.Sandbox.Usage(); err == nil {
		e.oomKills = u.OOMKills
	}
	e.close()
	return nil
}

// close forgets the generation; its processes are dead.
func (e *Environment) close() {
	if e.gen != nil {
		e.gen.close()
		e.gen = nil
	}
	e.ready = false
	e.peakAt = time.Time{}
	e.frozenAt = time.Time{} // Reset and Destroy leave nothing frozen
}

// end leaves nothing of the environment behind.
func (e *Environment) end(err error) {
	e.enter(StateShuttingDown)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), time.Minute)
	defer cancel()
	e.costs.end(e)
	if derr := e.cfg.Sandbox.Destroy(ctx); derr != nil {
		err = errors.Join(err, fmt.Errorf("environment: destroy the sandbox: %w", derr))
	}
	e.close()
	if e.endpointHTTP != nil {
		e.endpointHTTP.Close()
		<-e.endpointDone
	}
	e.kill()
	if err != nil && !errors.Is(err, errLost) && !errors.Is(err, ErrInit) {
		e.log.Error("an environment ended because its sandbox failed", "err", err)
	}
	if e.cfg.OnEnd != nil {
		e.cfg.OnEnd(e, err)
	}
	close(e.done)
}

// noLog throws away: it says only what processes in the sandbox did.
var noLog = log.New(io.Discard, "", 0)

// serveEndpoint serves the AWS endpoint inside the sandbox for the life of the
// environment.
func (e *Environment) serveEndpoint() error {
	if e.cfg.Endpoint == nil {
		return nil
	}
	l, err := e.cfg.Sandbox.Listen(endpointAddress)
	if err != nil {
		return fmt.Errorf("environment: listen for AWS calls inside the sandbox: %w", err)
	}
	e.endpoint = "http://" + l.Addr().String()
	e.endpointHTTP = &http.Server{Handler: e.cfg.Endpoint, MaxHeaderBytes: 64 << 10, ReadHeaderTimeout: 10 * time.Second, ErrorLog: noLog,
		// None: tables for HTTP/2 over TLS would be made for each environment.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}}
	e.endpointDone = make(chan struct{})
	go func() {
		defer close(e.endpointDone)
		if err := e.endpointHTTP.Serve(runtimeapi.LimitListener(l, maxEndpointConns)); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			e.log.Error("the AWS endpoint inside a sandbox stopped", "err", err)
		}
	}()
	return nil
}

// A failure is why an initialisation or an invocation did not succeed.
type failure struct {
	status       string // of telemetry
	errorType    string
	text         string
	payload      []byte // the runtime's own words, which go before type and text
	party        *party // whose exit it was
	initialising bool   // it happened in an initialisation
	stopped      bool   // nothing failed: the environment was told to end
	cause        error  // of the platform's own fault
}

// Error types the environment itself gives.
const (
	errTimedOut       = "Sandbox.Timedout"
	errSandbox        = "Sandbox.Failure"
	errRuntimeExit    = "Runtime.ExitError"
	errOutOfMemory    = "Runtime.OutOfMemory"
	errEntrypoint     = "Runtime.InvalidEntrypoint"
	errWorkingDir     = "Runtime.InvalidWorkingDir"
	errExtensionCrash = "Extension.Crash"
	errLaunch         = "Extension.LaunchError"
)

// answer is what the caller of the function gets.
func (f *failure) answer(requestID string) []byte {
	if f.payload != nil {
		return f.payload
	}
	return runtimeapi.ErrorPayload(f.errorType, requestID, f.text)
}

// reason is the shutdown reason extensions get.
func (f *failure) reason() string {
	if f.status == telemetry.StatusTimeout {
		return "timeout"
	}
	return "failure"
}

// telemetryType is the error type in events: a timeout has none.
func (f *failure) telemetryType() string {
	if f.status == telemetry.StatusTimeout {
		return ""
	}
	return f.errorType
}

func timedOut(limit time.Duration) *failure {
	return &failure{status: telemetry.StatusTimeout, errorType: errTimedOut,
		text: fmt.Sprintf("Task timed out after %.2f seconds", limit.Seconds())}
}

func sandboxFailure(cause error) *failure {
	return &failure{status: telemetry.StatusFailure, errorType: errSandbox, text: "The execution environment failed", cause: cause}
}

// crashed tells what the exit of a process means. The first error that a process
// reported of itself names the failure (lifecycle.md section 7).
func (e *Environment) crashed(p *party) *failure {
	p.exited = true
	exit := p.proc.Exit()
	f := &failure{status: telemetry.StatusError, party: p}
	if p.external {
		f.errorType, f.text = errExtensionCrash, exit.String()
		if exit.Signal == 0 && exit.Code == 0 {
			f.text = "exit code 0"
		}
	} else {
		f.errorType, f.text = errRuntimeExit, "Runtime exited with error: "+exit.String()
		if exit.Signal == 0 && exit.Code == 0 {
			f.text = "Runtime exited without providing a reason"
		}
		if exit.Signal == 9 {
			if u, err := e.cfg.Sandbox.Usage(); err == nil && u.OOMKills > e.oomKills {
				f.errorType = errOutOfMemory
			}
		}
	}
	if t := e.gen.api.Fatal(); t != "" {
		f.errorType = t
		if posted := e.gen.api.InitErrored(); posted != nil && posted.ErrorType == t {
			f.payload = posted.Payload
		}
	}
	return f
}

// nameList writes names as a sentence has them.
func nameList(names []string) string { return strings.Join(names, ", ") }
