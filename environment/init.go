package environment

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/runtimeapi"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/telemetry"
)

// A party is a process that asks for the next event: the runtime or an extension
// of its own process.
type party struct {
	name     string // "runtime", or the file name of the extension
	external bool   // an extension
	proc     sandbox.Process
	out, err *telemetry.Lines
	log      *telemetry.Frames // of managed runtimes; nil: none
	exited   bool              // seen by the owner
	begun    time.Time
}

// generation is the processes from one initialisation to their end.
type generation struct {
	api        *runtimeapi.API
	subs       *telemetry.Subscriptions
	address    string // of the API, inside
	served     sync.WaitGroup
	extensions []*party
	runtime    *party
	exits      chan *party
	waited     time.Duration // until all external extensions had registered
}

// parties are all processes, the runtime last.
func (g *generation) parties() []*party {
	if g.runtime == nil {
		return g.extensions
	}
	return append(g.extensions[:len(g.extensions):len(g.extensions)], g.runtime)
}

// died gives exits; never any when there is no generation.
func (g *generation) died() <-chan *party {
	if g == nil {
		return nil
	}
	return g.exits
}

// dead reports whether a process has ended.
func (g *generation) dead() bool {
	if g == nil {
		return false
	}
	for _, p := range g.parties() {
		select {
		case <-p.proc.Done():
			return true
		default:
		}
	}
	return false
}

// flush makes what the processes have written up to now records, where the driver
// can tell (sandbox.Flusher).
func (g *generation) flush() {
	if g == nil {
		return
	}
	for _, p := range g.parties() {
		if f, ok := p.proc.(sandbox.Flusher); ok {
			f.Flush()
		}
	}
}

// drain waits for the last output of a process that has ended, not for that of
// others that hold its pipes.
func (g *generation) drain(p *party) {
	if g == nil || p == nil {
		return
	}
	t := time.NewTimer(50 * time.Millisecond)
	defer t.Stop()
	select {
	case <-p.proc.Drained():
	case <-t.C:
	}
}

// hold begins no delivery of telemetry until resume: nothing is under way in an
// environment that is idle.
func (g *generation) hold() {
	if g != nil {
		g.subs.Hold()
	}
}

// resume lets telemetry out again.
func (g *generation) resume() {
	if g != nil {
		g.subs.Resume()
	}
}

// close forgets the dead, and what they subscribed to.
func (g *generation) close() {
	g.api.Close()
	g.subs.End()
	g.served.Wait()
	t := time.NewTimer(time.Second)
	defer t.Stop()
	for _, p := range g.parties() {
		select {
		case <-p.proc.Drained():
		case <-t.C:
			t.Reset(0)
		}
		p.out.Close()
		p.err.Close()
		if p.log != nil {
			p.log.Close()
		}
	}
}

// begin opens the APIs for new processes.
func (e *Environment) begin() (*generation, error) {
	l, err := e.cfg.Sandbox.Listen(runtimeAPIAddress)
	if err != nil {
		return nil, fmt.Errorf("environment: listen for the Runtime API: %w", err)
	}
	v := e.cfg.Version
	_, err = e.cfg.Sandbox.Stat(killSwitch)
	subs := telemetry.NewSubscriptions(telemetry.SubscriptionsConfig{
		Stream: e.cfg.Stream, Dial: e.cfg.Sandbox.Dial, JSON: e.format().JSON, Logger: e.log,
	})
	g := &generation{
		subs: subs,
		api: runtimeapi.New(runtimeapi.Config{
			AccountID: v.Account, FunctionName: v.Function, FunctionVersion: v.Number, Handler: v.Handler,
			NoExtensions: err == nil, Subscriptions: subs, Logger: e.log,
		}),
		address: l.Addr().String(),
		exits:   make(chan *party, lambdad.MaxExtensions+1),
	}
	g.served.Go(func() {
		// A sandbox that is destroyed closes its listeners first.
		if err := g.api.Serve(l); err != nil && !errors.Is(err, net.ErrClosed) {
			e.log.Error("the Runtime API of an environment stopped", "err", err)
		}
	})
	return g, nil
}

// killSwitch is a file that turns all extensions off (extensions-api.md 1).
const killSwitch = "/opt/disable-extensions-jwigqn8j"

const extensionDir = "/opt/extensions"

// start starts a process of the generation and watches for its end.
func (e *Environment) start(ctx context.Context, g *generation, name string, prog program, external bool) (*party, error) {
	typ := telemetry.TypeFunctionLine
	if external {
		typ = telemetry.TypeExtensionLine
	}
	box := e.cfg.Sandbox
	p := &party{name: name, external: external, begun: time.Now(), out: telemetry.NewLines(e.cfg.Stream, typ), err: telemetry.NewLines(e.cfg.Stream, typ)}
	var log io.Writer
	if !external && framed(e.cfg.Version) {
		p.log = telemetry.NewFrames(e.cfg.Stream, typ)
		log = p.log
	}
	proc, err := box.Start(ctx, sandbox.Command{
		Party: name, Path: box.Path(prog.path), Args: prog.args, Env: e.environ(e.credentials(name, external), external, g.address), Dir: box.Path(prog.dir),
		Stdout: p.out, Stderr: p.err, Log: log,
	})
	if err != nil {
		return nil, err
	}
	p.proc = proc
	go func() {
		<-proc.Done()
		g.exits <- p
	}()
	return p, nil
}

// init starts all processes and returns when all of them ask for their first
// event. In an invocation, where it is suppressed, limit is what is left of the
// function's timeout; otherwise it is nil and the limit of initialisations begins
// with the first process.
func (e *Environment) init(ctx context.Context, phase string, inv *invocation, limit *alarm) *failure {
	begun := time.Now()
	e.ready = false
	// A full core, as on the service: at the function's own share a cold start would
	// take many times as long, and without a limit a hostile one would be felt by all.
	e.setCPU(max(1, e.share()))
	e.cfg.Stream.Remember()
	e.emit(telemetry.TypeInitStart, telemetry.InitStart{
		InitializationType: e.cfg.InitType, Phase: phase,
		RuntimeVersion: e.cfg.RuntimeVersion, RuntimeVersionARN: e.cfg.RuntimeVersionARN,
		FunctionName: e.cfg.Version.Function, FunctionVersion: e.cfg.Version.Number,
		InstanceID: e.logStream, InstanceMaxMemory: int64(e.cfg.Version.MemoryMB) << 20,
	})
	f := e.boot(ctx, inv, limit)
	duration := time.Since(begun)
	if e.gen != nil {
		e.gen.subs.Close()
	}
	e.cfg.Stream.Forget()
	status, errorType := telemetry.StatusSuccess, ""
	if f != nil {
		f.initialising = true
		if f.stopped {
			return f
		}
		status, errorType = f.status, f.telemetryType()
		e.gen.drain(f.party)
		if f.status == telemetry.StatusTimeout {
			e.log.Warn("initialisation hit its limit", "limit", duration.Round(time.Millisecond), "waited for", nameList(e.gen.initBlame()))
		} else if f.cause != nil && !errors.Is(f.cause, ErrEnded) {
			e.log.Error("initialisation failed for the platform's fault", "err", f.cause)
		}
	}
	e.gen.flush()
	if e.gen != nil {
		if e.gen.runtime != nil {
			e.emit(telemetry.TypeInitRuntimeDone, telemetry.InitRuntimeDone{
				InitializationType: e.cfg.InitType, Phase: phase, Status: status, ErrorType: errorType,
			})
		}
		for _, x := range e.gen.api.Extensions() {
			e.emit(telemetry.TypeExtension, telemetry.Extension{Name: x.Name, State: x.State, Events: x.Events, ErrorType: x.ErrorType})
		}
	}
	e.emit(telemetry.TypeInitReport, telemetry.InitReport{
		InitializationType: e.cfg.InitType, Phase: phase, Status: status, ErrorType: errorType,
		Metrics: telemetry.InitMetrics{Duration: telemetry.Millis(duration)},
	})
	if f != nil {
		return f
	}
	e.costs.initialised(e, phase)
	e.ready = true
	if phase == telemetry.PhaseInit {
		e.initDuration = duration
	}
	e.setCPU(e.share())
	return nil
}

// share is how many cores the function has.
func (e *Environment) share() float64 { return float64(e.cfg.Version.MemoryMB) * lambdad.CPUPerMB }

func (e *Environment) setCPU(cores float64) {
	if err := e.cfg.Sandbox.SetCPU(cores); err != nil && !errors.Is(err, sandbox.ErrDestroyed) {
		e.log.Warn("cannot limit the processor share of an environment", "cores", cores, "err", err)
	}
}

// boot is the sequence of lifecycle.md section 3.1.
func (e *Environment) boot(ctx context.Context, inv *invocation, limit *alarm) *failure {
	g, err := e.begin()
	if err != nil {
		return sandboxFailure(err)
	}
	e.gen = g
	wait := func(until func() bool) *failure { return e.awaitInit(ctx, inv, limit, until) }
	first := func() {
		if limit == nil {
			limit = new(alarm)
			now := time.Now()
			limit.set(now.Add(e.initLimit()), now)
		}
	}

	begun := time.Now()
	names, err := e.extensionFiles()
	if err != nil {
		return sandboxFailure(err)
	}
	for i, name := range names {
		g.api.Expect(name)
		if i == lambdad.MaxExtensions {
			g.api.LaunchFailed(name, "TooManyExtensions")
			return &failure{status: telemetry.StatusError, errorType: errLaunch, text: "Extension limit (10) reached"}
		}
		first()
		p, err := e.start(ctx, g, name, program{path: extensionDir + "/" + name, dir: "/"}, true)
		if err != nil {
			return e.launchFailed(g, name, err)
		}
		g.extensions = append(g.extensions, p)
	}
	if len(names) > 0 {
		if f := wait(g.api.Registered); f != nil {
			return f
		}
		g.waited = time.Since(begun)
		e.cfg.Stream.EmitSpan(telemetry.SpanExtensionInit, "", "", begun)
	}

	begun = time.Now()
	prog, f := e.program()
	if f != nil {
		return f
	}
	first()
	p, err := e.start(ctx, g, "runtime", prog, false)
	if err != nil {
		return e.runtimeLaunchFailed(prog, err)
	}
	g.runtime = p
	if f := wait(g.api.Ready); f != nil {
		return f
	}
	e.cfg.Stream.EmitSpan(telemetry.SpanRuntimeInit, "", "", begun)
	return nil
}

// initLimit is how long an initialisation may take (lifecycle.md section 3.2).
func (e *Environment) initLimit() time.Duration {
	if !e.ahead() {
		return lambdad.InitLimit
	}
	return min(max(130*time.Second, e.cfg.Version.Timeout), 900*time.Second)
}

// extensionFiles lists what is to be started, in the order of the directory.
func (e *Environment) extensionFiles() ([]string, error) {
	if _, err := e.cfg.Sandbox.Stat(killSwitch); err == nil {
		return nil, nil
	}
	entries, err := e.cfg.Sandbox.ReadDir(extensionDir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("environment: list %s: %w", extensionDir, err)
	}
	var names []string
	for _, entry := range entries {
		if !entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

func (e *Environment) launchFailed(g *generation, name string, err error) *failure {
	var exec *sandbox.ExecError
	if !errors.As(err, &exec) {
		return sandboxFailure(err)
	}
	errorType := "UnknownError"
	if errors.Is(exec.Err, syscall.EACCES) {
		errorType = "PermissionDenied"
	}
	g.api.LaunchFailed(name, errorType)
	text := (&sandbox.ExecError{Path: extensionDir + "/" + name, Err: exec.Err}).Error()
	return &failure{status: telemetry.StatusError, errorType: errLaunch, text: text}
}

func (e *Environment) runtimeLaunchFailed(prog program, err error) *failure {
	var exec *sandbox.ExecError
	if !errors.As(err, &exec) {
		return sandboxFailure(err)
	}
	err = &sandbox.ExecError{Path: prog.path, Err: exec.Err}
	e.imageLaunchFailed(err)
	return &failure{status: telemetry.StatusError, errorType: errEntrypoint, text: err.Error()}
}

// entrypoint finds the program of the runtime.
func (e *Environment) entrypoint() (string, *failure) {
	for _, path := range e.cfg.Entrypoints {
		fi, err := e.cfg.Sandbox.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		case err != nil && errors.Is(err, sandbox.ErrDestroyed):
			return "", sandboxFailure(err)
		case err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0:
			return path, nil
		}
	}
	return "", &failure{status: telemetry.StatusError, errorType: errEntrypoint,
		text: fmt.Sprintf("Couldn't find valid bootstrap(s): %v", e.cfg.Entrypoints)}
}

// awaitInit waits for a gate of the initialisation, or for what comes in between.
func (e *Environment) awaitInit(ctx context.Context, inv *invocation, limit *alarm, until func() bool) *failure {
	stopping := e.stopping
	if inv != nil {
		stopping = nil // an invocation in flight is finished
	}
	look := e.sampler.start()
	defer e.sampler.stop()
	for !until() {
		select {
		case <-look:
			e.sampler.look()
		case <-e.gen.api.Changed():
			if posted := e.gen.api.InitErrored(); posted != nil && inv != nil && posted.ErrorType == e.gen.api.Fatal() {
				// The caller need not wait for the exit that follows.
				inv.give(posted.Payload, true)
			}
		case p := <-e.gen.exits:
			return e.crashed(p)
		case <-limit.timer.C:
			if !limit.due() {
				continue
			}
			return timedOut(e.cfg.Version.Timeout)
		case <-stopping:
			return &failure{stopped: true}
		case <-ctx.Done():
			return sandboxFailure(ErrEnded)
		}
	}
	return nil
}

// initBlame names who keeps the initialisation waiting, and the call never made.
func (g *generation) initBlame() []string {
	if g == nil {
		return nil
	}
	list := g.api.Extensions()
	var names []string
	blame := func(format string, args ...any) { names = append(names, fmt.Sprintf(format, args...)) }
	unregistered := 0
	for _, x := range list {
		if x.External && x.State == runtimeapi.Started {
			unregistered++
		}
	}
	for _, x := range list {
		switch {
		case x.State == runtimeapi.InitError || x.State == runtimeapi.ExitError:
			blame("%s reported an error and did not exit", x.Name)
		case x.External && x.State == runtimeapi.Started:
			other := ""
			for _, y := range list {
				// Before the runtime starts nobody else can have registered.
				if !y.External && g.runtime == nil && (unregistered == 1 || related(x.Name, y.Name)) {
					other = y.Name
				}
			}
			if other != "" {
				blame("%s registered as %s: an external extension must register under its file name", x.Name, other)
			} else {
				blame("%s never called register", x.Name)
			}
		case x.State == runtimeapi.Registered:
			blame("%s registered and never called event/next", x.Name)
		}
	}
	switch {
	case g.runtime == nil:
	case g.api.InitErrored() != nil:
		blame("the runtime posted init/error and did not exit")
	case !g.api.RuntimeReady():
		blame("the runtime never called invocation/next")
	}
	return names
}

// related reports whether one name begins with the other, as otel.sh and otel do.
func related(a, b string) bool {
	n := min(len(a), len(b))
	return n > 0 && a[:n] == b[:n]
}
