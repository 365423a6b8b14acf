package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/telemetry"
)

// lives remembers the phases of the latest environments, living and ended, for
// `lambdad ps --phases` and `lambdad run --phases`.
type lives struct {
	mu   sync.Mutex
	list []*life
}

// A life is one environment's.
type life struct {
	environment, function, version string
	timeline                       telemetry.Timeline
}

// maxLives bounds what is remembered.
const maxLives = 64

// sinks gives a new environment the sink that records its phases.
func (l *lives) sinks(v *lambdad.Version, environment string) []telemetry.Sink {
	one := &life{environment: environment, function: v.Function, version: v.Number}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.list) == maxLives {
		l.list = slices.Delete(l.list, 0, 1)
	}
	l.list = append(l.list, one)
	return []telemetry.Sink{&one.timeline}
}

// phases is what is remembered of one environment, as the control socket says it.
type phases struct {
	Environment string  `json:"id"`
	Function    string  `json:"function"`
	Version     string  `json:"version"`
	Phases      []phase `json:"phases"`
}

// phase is one span; times are in milliseconds, starts since the environment's
// first.
type phase struct {
	Name     string  `json:"name"`
	Party    string  `json:"party,omitempty"`
	Request  string  `json:"requestId,omitempty"`
	Start    float64 `json:"startMs"`
	Duration float64 `json:"durationMs"`
}

// all returns what is remembered, oldest environment first.
func (l *lives) all() []phases {
	l.mu.Lock()
	list := slices.Clone(l.list)
	l.mu.Unlock()
	out := make([]phases, 0, len(list))
	for _, one := range list {
		spans := one.timeline.Spans()
		slices.SortStableFunc(spans, func(a, b telemetry.Span) int {
			return time.Time(a.Start).Compare(time.Time(b.Start))
		})
		p := phases{Environment: one.environment, Function: one.function, Version: one.version, Phases: []phase{}}
		for _, s := range spans {
			p.Phases = append(p.Phases, phase{
				Name: s.Name, Party: s.Party, Request: s.RequestID,
				Start:    time.Time(s.Start).Sub(time.Time(spans[0].Start)).Seconds() * 1000,
				Duration: time.Duration(s.Duration).Seconds() * 1000,
			})
		}
		out = append(out, p)
	}
	return out
}

// width is that of the drawn bars, in characters.
const width = 44

// draw pictures an environment's phases as bars over the time in which something
// happened: what lies between is cut out, and being frozen is a mark and a number.
func (p *phases) draw(w io.Writer) {
	fmt.Fprintf(w, "%s %s, environment %s\n", p.Function, p.Version, p.Environment)
	list := slices.SortedFunc(slices.Values(p.Phases), func(a, b phase) int { return cmp.Compare(a.Start, b.Start) })
	type interval struct{ from, to float64 }
	var busy []interval // disjoint, in order
	for _, s := range list {
		end := s.Start + s.Duration
		switch n := len(busy); {
		case s.Name == telemetry.SpanFrozen:
		case n > 0 && s.Start <= busy[n-1].to:
			busy[n-1].to = max(busy[n-1].to, end)
		default:
			busy = append(busy, interval{s.Start, end})
		}
	}
	// worked maps a moment to the time in which something happened before it.
	worked := func(at float64) (t float64) {
		for _, b := range busy {
			if b.from < at {
				t += min(at, b.to) - b.from
			}
		}
		return t
	}
	total := worked(math.Inf(1))
	if total == 0 {
		return
	}
	column := func(at float64) int { return int(worked(at) / total * (width - 1)) }
	for _, s := range list {
		name := s.Name
		if s.Name == telemetry.SpanFreeze {
			continue // microseconds
		}
		if s.Party != "" && s.Party != s.Name {
			name += " " + s.Party
		}
		var bar string
		if s.Name == telemetry.SpanFrozen {
			bar = strings.Repeat(" ", column(s.Start)) + "❄"
		} else {
			from, to := column(s.Start), column(s.Start+s.Duration)
			bar = strings.Repeat(" ", from) + strings.Repeat("█", max(1, to-from))
		}
		fmt.Fprintf(w, "  %-24.24s %-*s %9.1f ms\n", name, width, bar, s.Duration)
	}
}
