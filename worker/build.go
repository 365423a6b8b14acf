package worker

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/environment"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/telemetry"
)

// Limits of what the lines of one environment may take while LogCopy is slow.
const (
	maxCopyEvents = 10000
	maxCopyBytes  = 4 << 20
)

// Every sandbox may have so many processes and threads, and each process so many
// open descriptors (lifecycle.md section 9).
const (
	maxProcesses = 1024
	maxFiles     = 1024
)

// A cleanup is what has to be given back, last taken first.
type cleanup []func()

func (c *cleanup) push(f func()) {
	if f != nil {
		*c = append(*c, f)
	}
}

func (c *cleanup) run() {
	for _, f := range slices.Backward(*c) {
		f()
	}
	*c = nil
}

// create builds the environment of an instance and starts it: runtime, code and
// layers, sandbox, credentials, log. When a step fails, what the earlier ones took
// is given back and the environment never existed.
func (w *Local) create(ctx context.Context, inst *instance) (err error) {
	v := inst.pool.version
	var held cleanup
	defer func() {
		if err != nil {
			held.run()
		}
	}()
	steps := stopwatch{last: inst.since}
	log := w.log.With("environment", inst.id, "function", v.Function, "version", v.Number)

	if w.cfg.Reserve != nil {
		if err := w.cfg.Reserve(); err != nil {
			return &lambdad.Error{Code: "ServiceException", Err: err,
				Message: fmt.Sprintf("No environment of function %s can be started now: %v.", v.Function, err)}
		}
	}
	rt, err := w.runtimeOf(ctx, v)
	if err != nil {
		return failed(v, "find its runtime "+v.Runtime, err)
	}
	steps.lap("runtime")
	root, mounts, err := w.trees(ctx, v, rt, &held)
	if err != nil {
		return err
	}
	steps.lap("archives")

	var egress sandbox.Egress
	if w.cfg.Egress != nil {
		egress = w.cfg.Egress(v)
	}
	sb, err := w.cfg.Driver.Create(ctx, sandbox.Spec{
		ID:           inst.id,
		Root:         root,
		Mounts:       mounts,
		TmpBytes:     int64(v.EphemeralMB) << 20,
		MemoryBytes:  int64(v.MemoryMB) << 20,
		MaxProcesses: maxProcesses,
		MaxFiles:     maxFiles,
		Egress:       egress,
	})
	if err != nil {
		return failed(v, "create its sandbox", err)
	}
	steps.lap("sandbox")

	// From here on nothing fails: the environment owns the sandbox.
	cfg := environment.Config{
		ID:                inst.id,
		Version:           v,
		Entrypoints:       rt.Entrypoints,
		RuntimeEnv:        rt.Env,
		RuntimeVersion:    rt.Version,
		RuntimeVersionARN: rt.VersionARN(v.Region),
		Sandbox:           sb,
		LogStream:         v.LogStream(inst.since, inst.id),
		FreezeDelay:       w.cfg.FreezeDelay,
		Crowd:             func() int { return int(w.working.Load()) },
		Logger:            w.cfg.Logger,
		OnIdle:            func(e *environment.Environment) { w.idled(inst, e) },
		OnEnd:             func(_ *environment.Environment, err error) { w.ended(inst, err) },
	}
	if inst.ahead {
		cfg.InitType = environment.Provisioned
	}
	if w.cfg.Credentials != nil {
		var revoke func()
		cfg.Credentials, revoke = w.cfg.Credentials(v, inst.id)
		held.push(revoke)
	}
	if w.cfg.Endpoint != nil {
		cfg.Endpoint = w.cfg.Endpoint(inst.id)
	}
	// The log comes last: what others make of an event is there when it is read.
	var sinks []telemetry.Sink
	if w.cfg.Sinks != nil {
		sinks = w.cfg.Sinks(v, inst.id)
	}
	sinks = append(sinks, w.sinks(v, cfg.LogStream, &held)...)
	cfg.Stream = telemetry.NewStream(sinks...)
	cfg.Stream.CountDrops(&w.drops)
	if w.tmpInMemory {
		cfg.Stream.Emit(telemetry.Event{Type: telemetry.TypeFunctionLine,
			Record: telemetry.Line("lambdad: /tmp is memory on this host: what is written there counts as memory of the function (lambdad doctor says why)")})
	}

	var rest func()
	if r, ok := sb.(sandbox.Rester); ok {
		rest = r.Rest
	}
	w.attach(inst, sb.Usage, rest, held.run)
	w.began(inst, environment.Start(cfg))
	steps.lap("start")
	log.Debug("environment built", steps.laps...)
	return nil
}

// sinks are those who get the log of an environment.
func (w *Local) sinks(v *lambdad.Version, stream string, held *cleanup) []telemetry.Sink {
	format := telemetry.NewFormat(v.Logging.Format, v.Logging.ApplicationLevel, v.Logging.SystemLevel)
	var sinks []telemetry.Sink
	if w.cfg.Log != nil {
		sinks = append(sinks, w.cfg.Log(v, stream, format))
	}
	if w.cfg.LogCopy != nil {
		q := telemetry.NewQueue(maxCopyEvents, maxCopyBytes)
		copied := make(chan struct{})
		go func() {
			defer close(copied)
			copyLog(w.cfg.LogCopy, &w.copying, q, format)
		}()
		held.push(func() { q.Close(); <-copied })
		sinks = append(sinks, q)
	}
	return sinks
}

// copyLog writes lines until the queue is closed and empty. Trouble with the
// writer is the writer's: the log has its own place.
func copyLog(out io.Writer, one *sync.Mutex, q *telemetry.Queue, format telemetry.Format) {
	var buf []byte
	for {
		events, err := q.Next(context.Background())
		if err != nil || len(events) == 0 {
			return
		}
		buf = buf[:0]
		for _, e := range events {
			buf = format.Append(buf, e)
		}
		one.Lock()
		_, _ = out.Write(buf)
		one.Unlock()
	}
}

// A stopwatch measures the steps of a build for the log.
type stopwatch struct {
	last time.Time
	laps []any
}

func (s *stopwatch) lap(name string) {
	now := time.Now()
	s.laps = append(s.laps, name, now.Sub(s.last))
	s.last = now
}
