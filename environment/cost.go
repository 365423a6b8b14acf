package environment

import (
	"runtime"
	"time"

	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/telemetry"
)

// costs tells what extensions took (telemetry.Cost). It measures nothing itself:
// moments are those of the Runtime and Extensions APIs, processor time and memory
// come with the usage that an invocation's report needs anyway. So where reports
// of short invocations share one measurement, its processor time goes to the last.
type costs struct {
	usage sandbox.Usage            // measured and not yet told; zero: none
	told  map[string]time.Duration // processor time by party up to the Cost before
}

// initialised tells the cost of an initialisation that succeeded.
func (c *costs) initialised(e *Environment, phase string) {
	list := e.gen.api.Extensions()
	if len(list) == 0 {
		return
	}
	cost := telemetry.Cost{Phase: phase, Extensions: make([]telemetry.ExtensionCost, 0, len(list))}
	ready := e.gen.api.Progress().Next
	waited := e.gen.waited
	var last time.Time
	for _, x := range list {
		from := x.Since
		for _, p := range e.gen.extensions {
			if x.External && p.name == x.Name {
				from = p.begun
			}
		}
		if x.Asked.After(last) {
			last = x.Asked
		}
		cost.Extensions = append(cost.Extensions, telemetry.ExtensionCost{Name: x.Name, External: x.External, Init: telemetry.Millis(x.Asked.Sub(from))})
	}
	if last.After(ready) {
		waited += last.Sub(ready)
	}
	cost.Waited = telemetry.Millis(waited)
	e.emit(telemetry.TypeCost, cost)
}

// invocation tells the cost of one whose runtime asked for the next event at next;
// zero: it did not.
func (c *costs) invocation(e *Environment, requestID string, next time.Time) {
	if e.gen == nil {
		return
	}
	list := e.gen.api.Extensions()
	if len(list) == 0 {
		return
	}
	cost := telemetry.Cost{Phase: telemetry.PhaseInvoke, RequestID: requestID, Extensions: make([]telemetry.ExtensionCost, 0, len(list))}
	for _, x := range list {
		one := telemetry.ExtensionCost{Name: x.Name, External: x.External}
		if !next.IsZero() && x.Asked.After(next) {
			one.After = telemetry.Millis(x.Asked.Sub(next))
		}
		cost.Extensions = append(cost.Extensions, one)
	}
	c.measured(&cost)
	e.emit(telemetry.TypeCost, cost)
}

// end tells what was used since the last invocation, before the processes'
// figures are gone.
func (c *costs) end(e *Environment) {
	if e.gen == nil || len(e.gen.extensions) == 0 {
		return
	}
	u, err := e.cfg.Sandbox.Usage()
	if err != nil || u.Parties == nil {
		return // it was destroyed, or the host does not count by process
	}
	c.usage = u
	cost := telemetry.Cost{Phase: telemetry.PhaseShutdown}
	for _, p := range e.gen.extensions {
		cost.Extensions = append(cost.Extensions, telemetry.ExtensionCost{Name: p.name, External: true})
	}
	c.measured(&cost)
	e.emit(telemetry.TypeCost, cost)
}

// measured adds what was measured since the Cost before.
func (c *costs) measured(cost *telemetry.Cost) {
	if c.usage.Parties == nil {
		return
	}
	since := func(party string) (telemetry.Millis, int64) {
		u := c.usage.Parties[party]
		d := u.CPU - c.told[party]
		if d < 0 {
			d = u.CPU // of a group that was made anew
		}
		if c.told == nil {
			c.told = map[string]time.Duration{}
		}
		c.told[party] = u.CPU
		return telemetry.Millis(d), u.PeakMemory
	}
	cost.Runtime, _ = since("runtime")
	for i := range cost.Extensions {
		if x := &cost.Extensions[i]; x.External {
			x.CPU, x.Peak = since(x.Name)
		}
	}
	c.usage = sandbox.Usage{}
}

// A sampler looks at the memory of processes while they work, often at first and
// then less: what file cache came and went is not known at the end (sandbox.Sampler).
type sampler struct {
	box   sandbox.Sampler // nil: there is nothing to look at
	crowd func() int      // Config.Crowd
	alarm alarm
	begun time.Time
}

// How often, by how long the processes have been at work: while no more than lookCrowd
// environments are for each core. Where more are, each gets on more slowly, and is
// looked at less often: all looks together stay as many.
const (
	lookCrowd = 4
	lookOften = 20 * time.Millisecond  // up to
	oftenFor  = 500 * time.Millisecond // then
	lookLess  = 200 * time.Millisecond // up to
	lessFor   = 10 * time.Second       // then
	lookRare  = 2 * time.Second
)

// start begins to tell when to look; nil never does.
func (s *sampler) start() <-chan time.Time {
	if s.box == nil {
		return nil
	}
	s.begun = time.Now()
	return s.alarm.set(s.begun.Add(s.spread(lookOften)), s.begun)
}

func (s *sampler) stop() { s.alarm.off() }

// look is called when it may be time to.
func (s *sampler) look() {
	if !s.alarm.due() {
		return
	}
	s.box.Sample()
	now := time.Now()
	next := lookOften
	switch d := now.Sub(s.begun); {
	case d > lessFor:
		next = lookRare
	case d > oftenFor:
		next = lookLess
	}
	s.alarm.set(now.Add(s.spread(next)), now)
}

// spread is an interval made longer by how many environments are at work.
func (s *sampler) spread(d time.Duration) time.Duration {
	if s.crowd == nil {
		return d
	}
	few := lookCrowd * runtime.NumCPU()
	return max(d, min(d*time.Duration(s.crowd())/time.Duration(few), lookRare))
}

// An alarm is a timer that is set at every invocation and hardly ever rings. Setting
// a timer wakes a thread that sleeps for a later one; so an alarm that is off or is
// set to later leaves its timer alone, and whoever hears that asks whether it is due.
// The zero value is off. One goroutine uses it.
type alarm struct {
	timer *time.Timer
	at    time.Time // zero: off
	rings time.Time // when the timer does; zero: it has
}

// set sets the alarm to a time, and returns the channel that has a value then, and
// sometimes before: see due.
func (a *alarm) set(at, now time.Time) <-chan time.Time {
	a.at = at
	switch {
	case a.timer == nil:
		a.timer = time.NewTimer(at.Sub(now))
	case a.rings.IsZero() || at.Before(a.rings):
		a.timer.Reset(at.Sub(now))
	default:
		return a.timer.C
	}
	a.rings = at
	return a.timer.C
}

// due is called after a value came from the channel. It reports whether the alarm was set to
// now or earlier, and it is off then; otherwise the channel has another value to come.
func (a *alarm) due() bool {
	now := time.Now() // what the channel gave may be old
	a.rings = time.Time{}
	switch {
	case a.at.IsZero():
		return false
	case now.Before(a.at):
		a.set(a.at, now)
		return false
	}
	a.at = time.Time{}
	return true
}

func (a *alarm) off() { a.at = time.Time{} }
