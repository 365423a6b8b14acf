package environment

import (
	"context"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/lambdad/lambdad/runtimeapi"
)

// Budgets of the shutdown sequence (lifecycle.md section 6).
const (
	budgetExternal = 2000 * time.Millisecond
	budgetInternal = 500 * time.Millisecond
	shareRuntime   = 300 * time.Millisecond // of the runtime, with external extensions
	killWait       = 2 * time.Second        // for processes to go after SIGKILL
	flushWait      = time.Second            // for telemetry, before an extension is told
)

// halt is the shutdown sequence: the runtime first, then SHUTDOWN to extensions
// of their own process, and SIGKILL to what is left when the budget is spent. It
// ends the main processes; Reset or Destroy ends whatever else is there.
func (e *Environment) halt(ctx context.Context, reason, spanName string) {
	g := e.gen
	if g == nil || ctx.Err() != nil {
		return
	}
	budget, share := g.budgets()
	p := g.runtime
	if p != nil && p.exited {
		p = nil
	}
	// Who is only to die is killed before it is thawed, and before its limit goes: a fork
	// bomb that runs once more, or without a limit, has the processor first.
	kill := func() {
		e.signal(p, syscall.SIGKILL)
		e.setCPU(0)
	}
	if p != nil && budget == 0 {
		kill()
	}
	// A frozen process cannot act on another signal.
	if err := e.thaw(ctx); err != nil {
		e.log.Error("cannot thaw an environment to shut it down; it is killed", "err", err)
		return
	}
	g.resume()
	g.subs.Flush() // what came before the end goes out beside the runtime's last words
	begun := time.Now()
	defer e.cfg.Stream.EmitSpan(spanName, "", "", begun)

	// Throttled as in an invocation a process cannot act on a signal in time; without
	// any limit a hostile one would be felt by all.
	if budget > 0 {
		e.setCPU(max(1, e.share()))
	}
	killed := false
	if p != nil {
		runtime := func(q *party) bool { return q == p }
		if share > 0 {
			e.signal(p, syscall.SIGTERM)
			if !e.awaitExits(ctx, g, begun.Add(share), runtime) {
				e.log.Debug("the runtime did not exit on SIGTERM in time", "limit", share)
			}
			if killed = !p.exited; killed {
				kill()
			}
		}
		e.awaitExits(ctx, g, time.Now().Add(killWait), runtime)
	}

	deadline := begun.Add(budget)
	flushed := g.lastWords()
	told := g.api.Shutdown(reason, deadline, func(name string) bool { return flushed[name] != nil })
	if killed && len(told) > 0 {
		e.setCPU(max(1, e.share())) // the dead needed none, who is told may be hostile
	}
	var flushes sync.WaitGroup
	fctx, cancel := context.WithTimeout(ctx, flushWait)
	defer cancel()
	for _, p := range g.extensions {
		if p.exited {
			continue
		}
		next := func() { e.signal(p, syscall.SIGKILL) }
		if slices.Contains(told, p.name) {
			next = func() { g.api.Tell(p.name) }
		}
		if flushed[p.name] == nil {
			next()
			continue
		}
		// Each waits for its own telemetry only.
		flushes.Go(func() {
			select {
			case <-flushed[p.name]:
			case <-p.proc.Done():
			case <-fctx.Done():
			}
			next()
		})
	}
	all := func(*party) bool { return true }
	if len(told) > 0 && !e.awaitExits(ctx, g, deadline, func(p *party) bool { return slices.Contains(told, p.name) }) && ctx.Err() == nil {
		e.log.Warn("shutdown hit its limit", "limit", budget, "waited for", nameList(g.shutdownBlame()))
	}
	for _, p := range g.extensions {
		if !p.exited && slices.Contains(told, p.name) {
			e.signal(p, syscall.SIGKILL)
			g.api.Exited(p.name, runtimeapi.ShutdownFailed)
		}
	}
	flushes.Wait()
	if budget > 0 && slices.ContainsFunc(g.extensions, func(p *party) bool { return !p.exited }) {
		e.setCPU(0) // each of them was killed
	}
	if !e.awaitExits(ctx, g, time.Now().Add(killWait), all) && ctx.Err() == nil {
		e.log.Warn("processes did not end on SIGKILL in time; the sandbox ends them", "limit", killWait)
	}
}

// budgets are how long the whole sequence may take, and of that the runtime.
func (g *generation) budgets() (all, runtime time.Duration) {
	external, internal := false, false
	for _, x := range g.api.Extensions() {
		switch {
		case !x.External:
			internal = true
		case x.State != runtimeapi.Started && x.State != runtimeapi.LaunchError:
			external = true
		}
	}
	switch {
	case external && internal:
		return budgetExternal, budgetInternal
	case external:
		return budgetExternal, shareRuntime
	case internal:
		return budgetInternal, budgetInternal
	}
	return 0, 0
}

// lastWords sends what the runtime said up to its end to who subscribed to it; see
// Subscriptions.Flush.
func (g *generation) lastWords() map[string]<-chan struct{} {
	if g.subs.Flush() == nil {
		return nil
	}
	g.drain(g.runtime)
	return g.subs.Flush()
}

func (e *Environment) signal(p *party, sig syscall.Signal) {
	if err := p.proc.Signal(sig); err != nil {
		e.log.Warn("cannot signal a process", "process", p.name, "signal", sig.String(), "err", err)
	}
}

// awaitExits waits until the processes that who chooses have ended, and reports
// whether they have.
func (e *Environment) awaitExits(ctx context.Context, g *generation, until time.Time, who func(*party) bool) bool {
	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	for slices.ContainsFunc(g.parties(), func(p *party) bool { return who(p) && !p.exited }) {
		select {
		case p := <-g.exits:
			p.exited = true
			if p.external {
				state := runtimeapi.Exited
				if x := p.proc.Exit(); x.Code != 0 || x.Signal != 0 {
					state = runtimeapi.ShutdownFailed
				}
				g.api.Exited(p.name, state)
			}
		case <-t.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// shutdownBlame names who kept the shutdown waiting.
func (g *generation) shutdownBlame() []string {
	var names []string
	for _, x := range g.api.Extensions() {
		i := slices.IndexFunc(g.extensions, func(p *party) bool { return p.name == x.Name })
		if !x.External || i < 0 || g.extensions[i].exited {
			continue
		}
		if x.Told {
			names = append(names, x.Name+" got the SHUTDOWN event and did not exit")
		} else {
			names = append(names, x.Name+" never called event/next for its SHUTDOWN event")
		}
	}
	return names
}
