package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lambdad/lambdad/integration/floor"
)

// curveParts are measured by --full: what an invocation costs as something grows.
var curveParts = []part{
	{"functions", overFunctions},
	{"environments", overEnvironments},
	{"callers", overCallers},
	{"payload", overPayload},
	{"sizes", overSizes},
}

// A level is what was measured at one place of a curve.
type level struct {
	x          float64
	floor, own *sample
}

// curve writes levels as a table and a chart.
func (s *section) curve(over string, levels []level) {
	var rows [][]string
	of := func(name string, q float64, of func(level) *sample) curve {
		c := curve{kind: kindOf(name), name: name, dashed: q > 0.5}
		for _, l := range levels {
			c.points = append(c.points, point{l.x, float64(of(l).quantile(q)) / 1e3})
		}
		return c
	}
	lowest := func(l level) *sample { return l.floor }
	ours := func(l level) *sample { return l.own }
	for _, l := range levels {
		rows = append(rows, []string{fmt.Sprint(int64(l.x)), micros(l.floor.median()), micros(l.own.median()), "**" + l.own.ratio(l.floor, 0.5).String() + "**",
			micros(l.floor.quantile(0.99)), micros(l.own.quantile(0.99)), micros(quantile(l.floor.processor, 0.5)), micros(quantile(l.own.processor, 0.5))})
	}
	s.table([]string{over, "floor", "lambdad", "÷ floor", "floor, p99", "lambdad, p99", "floor, processor time of the daemon", "lambdad's"}, rows)
	s.charts = append(s.charts, chart{title: "An invocation over " + over, unit: "µs", x: over, curves: []curve{
		of("floor", 0.5, lowest), of("lambdad", 0.5, ours), of("floor, p99", 0.99, lowest), of("lambdad, p99", 0.99, ours)}})
}

// functionCounts are how many functions a server has, environmentCounts how many
// frozen environments, callerCounts how many ask at once, payloads how many bytes an
// event and its answer have, sizes the megabytes of a function.
var (
	functionCounts    = []int{1, 10, 100, 1000, 5000}
	environmentCounts = []int{1, 10, 100, 500, 1000, 2000}
	callerCounts      = []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000}
	payloads          = []int{100, 1000, 10_000, 100_000, 1_000_000, 6_291_456}
	sizes             = []int{128, 256, 512, 1024, 1769, 3008}
)

// pair starts a floor and a server beside it, with one function.
func (b *bench) pair(ctx context.Context) (least *target, s *server, own *target, err error) {
	floors, err := b.floors(1)
	if err == nil {
		s, err = b.server(ctx)
	}
	if err == nil {
		own, err = s.function(ctx, b, "lambdad", "own", goRuntime, 0)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	return floors[0], s, own, nil
}

// level measures at one place of a curve.
func (b *bench) level(ctx context.Context, x int, least, own *target) (level, error) {
	b.say("%d", x)
	samples, err := b.measure(ctx, []*target{least, own})
	if err != nil {
		return level{}, fmt.Errorf("at %d: %w", x, err)
	}
	return level{float64(x), samples[0], samples[1]}, nil
}

// overFunctions adds functions to a server, and measures one of them beside the floor
// at each number.
func overFunctions(ctx context.Context, b *bench, r *section) error {
	r.title = "Over functions"
	least, s, own, err := b.pair(ctx)
	if err != nil {
		return err
	}
	var levels []level
	second := curve{kind: ofOther, name: "GetFunction"}
	var rows [][]string
	have := 1
	for _, n := range functionCounts {
		if err := s.many(ctx, have, n, func(map[string]any) {}); err != nil {
			return err
		}
		have = n
		l, err := b.level(ctx, n, least, own)
		if err != nil {
			return err
		}
		levels = append(levels, l)
		var gets []time.Duration
		for i := range 300 {
			name := "own"
			if k := i * 7919 % n; k > 0 {
				name = numbered(k)
			}
			took, err := s.timed(ctx, "GET", "/2015-03-31/functions/"+name, nil)
			if err != nil {
				return err
			}
			gets = append(gets, took)
		}
		second.points = append(second.points, point{float64(n), float64(quantile(gets, 0.5)) / 1e3})
		rows = append(rows, []string{fmt.Sprint(n), micros(quantile(gets, 0.5)), micros(quantile(gets, 0.99))})
	}
	r.note("One function of so many is invoked.")
	r.curve("functions", levels)
	c := &r.charts[len(r.charts)-1]
	c.curves = append(c.curves, second)
	r.table([]string{"functions", "GetFunction of any", "p99"}, rows)
	return nil
}

func numbered(i int) string { return fmt.Sprintf("f-%d", i) }

// many makes the functions from one number to below another, alike but for their names.
func (s *server) many(ctx context.Context, from, to int, set func(map[string]any)) error {
	return each(ctx, 8, from, to, func(i int) error { return s.create(ctx, numbered(i), pythonRuntime, "", 0, set) })
}

// each calls f for the numbers from one to below another, so many at a time.
func each(ctx context.Context, atOnce, from, to int, f func(i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan int)
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for i := range work {
				if err := f(i); err != nil {
					cancel(err) // the first is told
				}
			}
		})
	}
	for i := from; i < to && ctx.Err() == nil; i++ {
		select {
		case work <- i:
		case <-ctx.Done():
		}
	}
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}

// overEnvironments adds functions with a frozen environment each to a server, and
// measures one function beside the floor at each number.
func overEnvironments(ctx context.Context, b *bench, r *section) error {
	r.title = "Over frozen environments"
	least, s, own, err := b.pair(ctx)
	if err != nil {
		return err
	}
	if _, _, err := s.client.invoke(ctx, own.url, "first", 0); err != nil {
		return err
	}
	// The runtime comes from a layer, so that creating a function is little work.
	program, err := codeOf(goRuntime, b.probe)
	if err != nil {
		return err
	}
	layer, err := s.publish(ctx, "runtime", program)
	if err != nil {
		return err
	}
	first, err := observe(s.cmd.Process.Pid)
	if err != nil {
		return err
	}
	var levels []level
	var rows [][]string
	memory := curve{kind: ofLambdad, name: "daemon, each"}
	kernel := curve{kind: ofFloor, name: "kernel, each"}
	asked := 1
	for _, n := range environmentCounts {
		if err := s.many(ctx, asked, n, func(in map[string]any) { in["Runtime"], in["Layers"] = goRuntime, []string{layer} }); err != nil {
			return err
		}
		if err := each(ctx, callers, asked, n, func(i int) error {
			_, _, err := s.client.invoke(ctx, s.invokeURL(numbered(i)), "first", 0)
			return err
		}); err != nil {
			return err
		}
		asked = n
		if err := quiet(ctx, s, "", 1); err != nil {
			return err
		}
		all, err := s.environments(ctx, "")
		if err != nil {
			return err
		}
		have := len(all)
		l, err := b.level(ctx, have, least, own)
		if err != nil {
			return err
		}
		levels = append(levels, l)
		s.client.close()
		now, err := observe(s.cmd.Process.Pid)
		if err != nil {
			return err
		}
		if have > 1 {
			share := func(bytes int64) float64 { return float64(bytes) / float64(have-1) / 1024 }
			memory.points = append(memory.points, point{float64(have), share(now.daemon - first.daemon)})
			kernel.points = append(kernel.points, point{float64(have), share(now.kernel - first.kernel)})
			threads, descriptors := held(s.cmd.Process.Pid)
			rows = append(rows, []string{fmt.Sprint(have), fmt.Sprintf("%.0f KiB", share(now.daemon-first.daemon)), fmt.Sprintf("%.0f KiB", share(now.kernel-first.kernel)),
				fmt.Sprintf("%.0f KiB", share(now.pss-first.pss)), fmt.Sprint(threads), fmt.Sprintf("%.1f", float64(descriptors)/float64(have))})
		}
		if have < n {
			r.note("The host takes no more than %d environments now.", have)
			break
		}
	}
	r.note("One function is invoked while so many environments of others are frozen.")
	r.curve("frozen environments", levels)
	r.table([]string{"frozen environments", "daemon's own memory, each", "kernel's, each", "processes', each, shared pages divided", "threads of the daemon", "descriptors, each"}, rows)
	r.charts = append(r.charts, chart{title: "Memory of a frozen environment", unit: "KiB", x: "frozen environments", curves: []curve{memory, kernel}})
	return nil
}

// mostRuntimes is how many a floor has at most; more callers wait for them.
const mostRuntimes = 64

// overCallers measures how long each of many callers waits, and how many
// invocations there are in all.
func overCallers(ctx context.Context, b *bench, r *section) error {
	r.title = "Over concurrent callers"
	s, err := b.server(ctx)
	if err != nil {
		return err
	}
	own, err := s.function(ctx, b, "lambdad", "own", goRuntime, 0)
	if err != nil {
		return err
	}
	turns := max(b.rounds/5, 3)
	var failed error
	var levels []level
	var rows [][]string
	rate := []curve{{kind: ofFloor, name: "floor"}, {kind: ofLambdad, name: "lambdad"}}
	for _, n := range callerCounts {
		f, err := floor.Start(floor.NetHTTP, floor.Runtime{Path: b.probe}, min(n, mostRuntimes))
		if err != nil {
			return err
		}
		targets := []*target{{name: netFloor, url: f.URL, pid: f.PID()}, own}
		b.say("%d callers", n)
		samples, perSecond, throttled, err := b.crowd(ctx, targets, n, turns)
		if failed = errors.Join(err, f.Close()); failed != nil {
			failed = fmt.Errorf("%d callers: %w", n, failed)
			break // what there is so far is told
		}
		levels = append(levels, level{float64(n), samples[0], samples[1]})
		for i := range rate {
			rate[i].points = append(rate[i].points, point{float64(n), quantile(perSecond[i], 0.5)})
		}
		all, err := s.environments(ctx, "own")
		if err != nil {
			return err
		}
		var ratios []float64
		for i := range perSecond[0] {
			ratios = append(ratios, perSecond[1][i]/perSecond[0][i])
		}
		rows = append(rows, []string{fmt.Sprint(n), fmt.Sprintf("%.0f/s", quantile(perSecond[0], 0.5)), fmt.Sprintf("%.0f/s", quantile(perSecond[1], 0.5)),
			"**" + estimated(ratios).String() + "**", fmt.Sprint(len(all)), fmt.Sprint(throttled)})
	}
	r.note("So many callers ask again as soon as they are answered. The floor has as many runtimes, at most %d; lambdad as many environments as it sees fit.", mostRuntimes)
	r.curve("callers", levels)
	r.table([]string{"callers", "floor", "lambdad", "÷ floor", "environments", "throttled"}, rows)
	r.charts = append(r.charts, chart{title: "Throughput over callers", unit: "/s", x: "callers", curves: rate})
	return failed
}

// crowd has callers invoke targets by turns and keeps what each request took that was
// not throttled.
func (b *bench) crowd(ctx context.Context, targets []*target, callers, turns int) (samples []*sample, perSecond [][]float64, throttled int, err error) {
	samples, perSecond = make([]*sample, len(targets)), make([][]float64, len(targets))
	list := make([]*client, len(targets))
	for i, t := range targets {
		samples[i] = &sample{name: t.name}
		list[i] = newClient(t.server)
		defer list[i].close()
	}
	for turn := range turns + 1 {
		for i, t := range targets {
			before, _ := processorOf(t.pid)
			times, refused, took, err := rush(ctx, list[i], t.url, callers, 2*b.slice)
			if err != nil {
				return nil, nil, 0, err
			}
			throttled += refused
			after, _ := processorOf(t.pid)
			if turn > 0 { // connections are open, environments up
				samples[i].turns = append(samples[i].turns, times)
				samples[i].processor = append(samples[i].processor, (after-before)/time.Duration(len(times)))
				perSecond[i] = append(perSecond[i], float64(len(times))/took.Seconds())
			}
		}
	}
	return samples, perSecond, throttled, nil
}

// overPayload has events come back as they are.
func overPayload(ctx context.Context, b *bench, r *section) error {
	r.title = "Over payload"
	least, _, own, err := b.pair(ctx)
	if err != nil {
		return err
	}
	few := *b
	few.rounds, few.requests = max(b.rounds/4, 2), max(b.requests/2, 2)
	var levels []level
	for _, n := range payloads {
		event := append([]byte(`{"raw":"`), bytes.Repeat([]byte("x"), n-10)...)
		event = append(event, `"}`...)
		f, o := *least, *own
		f.event, o.event = event, event
		l, err := few.level(ctx, n, &f, &o)
		if err != nil {
			return err
		}
		levels = append(levels, l)
	}
	r.note("The event and its answer have so many bytes each; the function gives back what it got without looking at it.")
	r.curve("bytes", levels)
	return nil
}

// workMS is how long the function works for each event where its share of the
// processor shows.
const workMS = 5

// overSizes measures functions of several memory sizes, which give them their share
// of the processor.
func overSizes(ctx context.Context, b *bench, r *section) error {
	r.title = "Over memory sizes"
	least, s, _, err := b.pair(ctx)
	if err != nil {
		return err
	}
	idle, worked := []*target{least}, *least
	worked.event = fmt.Appendf(nil, `{"workMs":%d}`, workMS)
	busy := []*target{&worked}
	for _, mb := range sizes {
		t, err := s.function(ctx, b, "lambdad", fmt.Sprintf("mb-%d", mb), goRuntime, 0, func(in map[string]any) { in["MemorySize"] = mb })
		if err != nil {
			return err
		}
		w := *t
		w.event = worked.event
		idle, busy = append(idle, t), append(busy, &w)
	}
	long := *b
	long.rounds, long.requests = max(b.rounds/4, 2), 4*b.requests // long enough for the quota to show
	light, err := long.measure(ctx, idle)
	if err != nil {
		return err
	}
	few := *b
	few.rounds, few.requests = max(b.rounds/8, 2), b.requests
	heavy, err := few.measure(ctx, busy)
	if err != nil {
		return err
	}
	for _, m := range []struct {
		what    string
		samples []*sample
	}{{"An event that needs nothing", light}, {fmt.Sprintf("An event that needs %d ms of processor", workMS), heavy}} {
		var levels []level
		for i, mb := range sizes {
			levels = append(levels, level{float64(mb), m.samples[0], m.samples[i+1]})
		}
		r.note("%s:", m.what)
		r.curve("MB", levels)
		r.charts[len(r.charts)-1].title = m.what + ", over memory"
	}
	return nil
}
