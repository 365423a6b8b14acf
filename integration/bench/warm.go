package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lambdad/lambdad/integration/floor"
	"github.com/lambdad/lambdad/runtimes"
	"github.com/lambdad/lambdad/sandbox"
)

const (
	// callers is how many ask at once in the throughput measurement.
	callers = 4
	// settling is how many requests begin a turn uncounted: a connection is opened,
	// an environment thawed, a cache filled.
	settling = 3
)

// A target is something to be invoked.
type target struct {
	name   string
	url    string
	server *server       // nil: any signature will do
	pid    int           // of the daemon, whose processor time is counted
	pause  time.Duration // before each request
	event  []byte        // nil: one that names itself
}

// invoke sends the n-th request.
func (t *target) invoke(ctx context.Context, c *client, n int) (time.Duration, error) {
	if t.event == nil {
		_, took, err := c.invoke(ctx, t.url, strconv.Itoa(n), 0)
		return took, err
	}
	text, took, err := c.send(ctx, t.url, t.event)
	if err == nil && bytes.HasPrefix(t.event, []byte(`{"raw"`)) && !bytes.Equal(text, t.event) {
		err = fmt.Errorf("invoking %s: %d bytes come back as %d others", t.url, len(t.event), len(text))
	}
	return took, err
}

// function makes a function and the target it is.
func (s *server) function(ctx context.Context, b *bench, title, name, runtime string, extensions int, set ...func(map[string]any)) (*target, error) {
	if err := s.create(ctx, name, runtime, b.probe, extensions, set...); err != nil {
		return nil, err
	}
	return &target{name: title, url: s.invokeURL(name), server: s, pid: s.cmd.Process.Pid}, nil
}

// The names of the floors.
const (
	netFloor  = "floor: net/http, two hops"
	loopFloor = "floor: the same, loop by hand for the runtime"
)

// floors starts both, with n Go runtimes each.
func (b *bench) floors(n int) ([]*target, error) {
	var list []*target
	for _, f := range []struct {
		name string
		kind floor.Kind
	}{{netFloor, floor.NetHTTP}, {loopFloor, floor.Loop}} {
		x, err := b.floor(f.kind, floor.Runtime{Path: b.probe}, n)
		if err != nil {
			return nil, err
		}
		list = append(list, &target{name: f.name, url: x.URL, pid: x.PID()})
	}
	return list, nil
}

// A language is one beside Go. Its floor has the very client that lambdad uses.
type language struct{ name, runtime string }

var languages = []language{{"Python", pythonRuntime}, {"Node.js", nodeRuntime}}

// clients finds out how the runtime clients of the languages are started on the
// host. What the host lacks is nil.
func (b *bench) clients(ctx context.Context) error {
	set := runtimes.New(filepath.Join(b.dir, "runtimes"), slog.New(slog.DiscardHandler))
	b.clientOf = map[string]floor.Runtime{}
	for _, l := range languages {
		r, err := set.Resolve(ctx, l.runtime)
		if err != nil {
			b.say("%s is left out: %v", l.name, err)
			continue
		}
		task := filepath.Join(b.dir, "task-"+l.runtime)
		files, err := codeOf(l.runtime, "")
		if err == nil {
			err = os.Mkdir(task, 0o755)
		}
		for name, content := range files {
			err = errors.Join(err, os.WriteFile(filepath.Join(task, name), content, 0o644))
		}
		if err != nil {
			return err
		}
		i := slices.IndexFunc(r.Mounts, func(m sandbox.Mount) bool { return m.Target == "/var/runtime" })
		env := []string{"PATH=" + os.Getenv("PATH"), "LAMBDA_TASK_ROOT=" + task, "_HANDLER=function.handler",
			"AWS_LAMBDA_FUNCTION_NAME=floor", "AWS_LAMBDA_FUNCTION_VERSION=$LATEST", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=1769", "AWS_REGION=us-east-1"}
		for name, value := range r.Env {
			env = append(env, name+"="+value)
		}
		b.clientOf[l.runtime] = floor.Runtime{Path: filepath.Join(r.Mounts[i].Sources[0], "bootstrap"), Env: env}
	}
	return nil
}

// measure invokes the targets by turns, one request at a time.
func (b *bench) measure(ctx context.Context, targets []*target) ([]*sample, error) {
	samples := make([]*sample, len(targets))
	list := make([]*client, len(targets))
	for i, t := range targets {
		samples[i] = &sample{name: t.name}
		list[i] = newClient(t.server)
		defer list[i].close()
	}
	for round := range b.rounds {
		b.report.idle = append(b.report.idle, idle())
		for k := range targets {
			i := (k + round) % len(targets) // no target always follows the same one
			t, s := targets[i], samples[i]
			times := make([]time.Duration, 0, b.requests)
			var before time.Duration
			for n := range settling + b.requests {
				if n == settling && t.pid != 0 {
					before, _ = processorOf(t.pid)
				}
				time.Sleep(t.pause)
				took, err := t.invoke(ctx, list[i], n)
				if err != nil {
					return nil, err
				}
				if n >= settling {
					times = append(times, took)
				}
			}
			s.turns = append(s.turns, times)
			if after, err := processorOf(t.pid); err == nil && t.pid != 0 {
				s.processor = append(s.processor, (after-before)/time.Duration(b.requests))
			}
		}
	}
	return samples, nil
}

// warm compares single requests, one after the other.
func warm(ctx context.Context, b *bench, r *section) error {
	r.title = "Warm invocation"
	targets, err := b.floors(1)
	if err != nil {
		return err
	}
	servers, err := b.servers(ctx)
	if err != nil {
		return err
	}
	for _, n := range extensionCounts {
		for _, s := range servers {
			t, err := s.function(ctx, b, s.label+", Go, "+plural(n), fmt.Sprintf("go-%d", n), goRuntime, n)
			if err != nil {
				return err
			}
			targets = append(targets, t)
		}
	}
	for _, l := range languages {
		client, ok := b.clientOf[l.runtime]
		if !ok {
			r.note("%s is not on this host.", l.name)
			continue
		}
		f, err := b.floor(floor.NetHTTP, client, 1)
		if err != nil {
			return err
		}
		targets = append(targets, &target{name: "floor: net/http, two hops, " + l.name, url: f.URL, pid: f.PID()})
		for _, s := range servers {
			t, err := s.function(ctx, b, s.label+", "+l.name+", 0 extensions", strings.ToLower(l.name[:4]), l.runtime, 0)
			if err != nil {
				return err
			}
			targets = append(targets, t)
		}
	}
	emulators, err := b.emulators()
	if err != nil {
		return err
	}
	targets = append(targets, emulators...)
	samples, err := b.measure(ctx, targets)
	if err != nil {
		return err
	}
	r.latencies("one client, keep-alive", samples)
	if len(servers) > 1 {
		r.note("Go without extensions, lambdad ÷ against: %s.", samples[2].ratio(samples[3], 0.5))
	}
	r.charts = append(r.charts, chart{title: "Warm invocation, one client: median, p10 to p90", unit: "µs", bars: bars(samples), target: 1.25 * float64(samples[0].median()) / 1e3})
	b.report.paced(byTime, float64(samples[0].median())/1e3)
	own := samples[2]
	b.report.judge("warm", "%.2f", own.ratio(samples[0], 0.5), 1.25, false)
	if len(emulators) > 0 {
		b.report.judge("rie", "%.2f", own.ratio(samples[len(samples)-len(emulators)], 0.5), 1, false)
	}
	return nil
}

// between lies between two requests where extensions are to have ended, but nothing
// is frozen.
const between = time.Millisecond

// extensions compares numbers of extensions where each invocation is over before the
// next one comes: what the caller waits for, and what the platform says the whole
// lasted.
func extensions(ctx context.Context, b *bench, r *section) error {
	r.title = "Extensions"
	servers, err := b.servers(ctx, "--freeze-delay", "5ms")
	if err != nil {
		return err
	}
	var targets []*target
	var names []string
	var counts []int
	for _, s := range servers {
		for _, n := range extensionCounts {
			names, counts = append(names, fmt.Sprintf("go-%d", n)), append(counts, n)
			t, err := s.function(ctx, b, s.label+", "+plural(n), names[len(names)-1], goRuntime, n)
			if err != nil {
				return err
			}
			t.pause = between
			targets = append(targets, t)
		}
	}
	// Records are read turn by turn, for only the newest are kept one by one.
	turns := *b
	turns.rounds = 1
	all := make([]*sample, len(targets))
	for i, t := range targets {
		all[i] = &sample{name: t.name}
	}
	for round := range b.rounds {
		k := round % len(targets)
		order := slices.Concat(targets[k:], targets[:k])
		samples, err := turns.measure(ctx, order)
		if err != nil {
			return err
		}
		for i := range targets {
			x := samples[(i-k+len(targets))%len(targets)]
			all[i].turns, all[i].processor = append(all[i].turns, x.turns...), append(all[i].processor, x.processor...)
			ends, err := targets[i].server.durations(ctx, names[i], (round+1)*(settling+b.requests), b.requests)
			if err != nil {
				return err
			}
			all[i].ends = append(all[i].ends, ends)
		}
	}
	var rows [][]string
	most := len(extensionCounts) - 1
	for i, x := range all {
		none := all[i/len(extensionCounts)*len(extensionCounts)] // of the same server
		row := []string{x.name, micros(x.median()), "", micros(quantile(slices.Concat(x.ends...), 0.5)), "", micros(quantile(x.processor, 0.5))}
		if counts[i] > 0 {
			each := func(a, b float64) float64 { return (a - b) / 1e3 / float64(counts[i]) }
			answer, end := paired(x.turns, none.turns, 0.5, each), paired(x.ends, none.ends, 0.5, each)
			row[2], row[4] = answer.format("%.0f"), end.format("%.0f")
			if i == most {
				b.report.judge("answer", "%.0f µs", answer, 30, false)
				b.report.judge("end", "%.0f µs", end, 60, false)
			}
		}
		rows = append(rows, row)
	}
	r.note("%v between requests, so that each invocation is over when the next one comes and nothing is frozen. The end is the duration in the platform's own record.", between)
	r.table([]string{"Go", "answer", "each extension, µs", "end of the invoke phase", "each extension, µs", "processor time of the daemon"}, rows)
	return nil
}

// resting lies between two requests where environments are to freeze, or not.
const resting = 3 * time.Millisecond

// freeze compares servers that freeze at once, after the usual delay and after one
// that is longer than the pause between requests.
func freeze(ctx context.Context, b *bench, r *section) error {
	r.title = "Freezing"
	floors, err := b.floors(1)
	if err != nil {
		return err
	}
	closely, apart := []*target{floors[0]}, []*target{}
	var freezes bool
	for _, args := range [][]string{{"--freeze-delay", "5ms"}, nil, {"--freeze-delay", "0s"}} {
		s, err := b.server(ctx, args...)
		if err != nil {
			return err
		}
		name := "freezes as by default"
		if args != nil {
			name = args[1] + " after the end"
		}
		t, err := s.function(ctx, b, name, "go-0", goRuntime, 0)
		if err != nil {
			return err
		}
		if _, _, err := s.client.invoke(ctx, t.url, "first", 0); err != nil {
			return err
		}
		if err := quiet(ctx, s, "go-0", 1); err != nil {
			return err
		}
		list, err := s.environments(ctx, "go-0")
		if err != nil {
			return err
		}
		freezes = list[0].State == "frozen"
		closely = append(closely, t)
		paused := *t
		paused.pause = resting
		apart = append(apart, &paused)
	}
	if !freezes {
		r.note("Tier %s does not freeze here.", b.report.tier)
		for _, key := range []string{"frozen", "close"} {
			b.report.verdict(key, "nothing is frozen", "–")
		}
		return nil
	}
	follow, err := b.measure(ctx, closely)
	if err != nil {
		return err
	}
	pause, err := b.measure(ctx, apart)
	if err != nil {
		return err
	}
	more := func(a, b float64) float64 { return (a - b) / 1e3 }
	var rows [][]string
	for i, x := range pause {
		y := follow[i+1]
		row := []string{x.name, micros(y.median()), "", micros(x.median()), ""}
		if i > 0 {
			row[2] = paired(y.turns, follow[1].turns, 0.5, more).format("%+.0f")
			row[4] = paired(x.turns, pause[0].turns, 0.5, more).format("%+.0f")
		}
		rows = append(rows, row)
	}
	r.note("One client, Go without extensions. With %v between requests, an environment that freezes after 5 ms never does, and one that freezes after less always.", resting)
	r.table([]string{"an idle environment", "requests follow each other", "more, µs", fmt.Sprintf("%v between requests", resting), "more, µs"}, rows)
	bound := 220.0
	if strings.Contains(cgroups(), "v2") { // beside v1, too, v2 is what freezes
		bound = 60
	}
	b.report.judge("frozen", "%+.0f µs", paired(pause[2].turns, pause[0].turns, 0.5, more), bound, false)
	b.report.judge("close", "%+.0f µs", paired(follow[2].turns, follow[1].turns, 0.5, more), 5, false)
	return nil
}

// A rate is how many invocations per second a target answered.
type rate struct {
	name      string
	perSecond []float64 // of each turn
	processor []time.Duration
}

// ratio compares rates by turns.
func (r *rate) ratio(floor *rate) estimate {
	var xs []float64
	for i := range r.perSecond {
		xs = append(xs, r.perSecond[i]/floor.perSecond[i])
	}
	return estimated(xs)
}

// rates has several callers invoke each target at once, by turns.
func (b *bench) rates(ctx context.Context, targets []*target, callers int) ([]*rate, error) {
	rates := make([]*rate, len(targets))
	list := make([]*client, len(targets))
	for i, t := range targets {
		rates[i] = &rate{name: t.name}
		list[i] = newClient(t.server)
		defer list[i].close()
		if err := b.raise(ctx, list[i], t.url, callers); err != nil {
			return nil, err
		}
	}
	for round := range b.rounds {
		b.report.idle = append(b.report.idle, idle())
		for k := range targets {
			i := (k + round) % len(targets)
			t, r := targets[i], rates[i]
			if _, _, err := burst(ctx, list[i], t.url, callers, b.slice/5); err != nil { // thawed, connected
				return nil, err
			}
			before, _ := processorOf(t.pid)
			done, took, err := burst(ctx, list[i], t.url, callers, b.slice)
			if err != nil {
				return nil, err
			}
			after, _ := processorOf(t.pid)
			r.perSecond = append(r.perSecond, float64(done)/took.Seconds())
			r.processor = append(r.processor, (after-before)/time.Duration(max(done, 1)))
		}
	}
	return rates, nil
}

// raise has as many environments as callers: none of their invocations ends before
// the last has begun.
func (b *bench) raise(ctx context.Context, c *client, url string, callers int) error {
	var wg sync.WaitGroup
	errs := make([]error, callers)
	for w := range callers {
		wg.Go(func() { _, _, errs[w] = c.invoke(ctx, url, strconv.Itoa(w), 300*time.Millisecond) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// burst invokes url from all callers for the given time, and counts.
func burst(ctx context.Context, c *client, url string, callers int, length time.Duration) (int, time.Duration, error) {
	times, throttled, took, err := rush(ctx, c, url, callers, length)
	if err == nil && throttled > 0 {
		err = errThrottled
	}
	return len(times), took, err
}

// pause is how long a caller waits that was throttled.
const pause = 10 * time.Millisecond

// rush invokes url from all callers for the given time, each at least once, and counts
// how often they were throttled.
func rush(ctx context.Context, c *client, url string, callers int, length time.Duration) ([]time.Duration, int, time.Duration, error) {
	var wg sync.WaitGroup
	times, errs := make([][]time.Duration, callers), make([]error, callers)
	var throttled atomic.Int64
	begin := time.Now()
	for w := range callers {
		wg.Go(func() {
			for len(times[w]) == 0 || time.Since(begin) < length {
				_, took, err := c.invoke(ctx, url, strconv.Itoa(w), 0)
				switch {
				case err == nil:
					times[w] = append(times[w], took)
				case errors.Is(err, errThrottled):
					throttled.Add(1)
					time.Sleep(pause)
				default:
					errs[w] = err
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	return slices.Concat(times...), int(throttled.Load()), took, errors.Join(errs...)
}

// throughput compares several callers at once.
func throughput(ctx context.Context, b *bench, r *section) error {
	r.title = "Throughput"
	targets, err := b.floors(callers)
	if err != nil {
		return err
	}
	servers, err := b.servers(ctx)
	if err != nil {
		return err
	}
	floorOf, keyOf := map[int]int{}, map[int]string{}
	for _, n := range extensionCounts {
		for _, s := range servers {
			t, err := s.function(ctx, b, s.label+", Go, "+plural(n), fmt.Sprintf("go-%d", n), goRuntime, n)
			if err != nil {
				return err
			}
			floorOf[len(targets)] = 0
			targets = append(targets, t)
		}
	}
	keyOf[2] = "go"
	for _, l := range languages {
		key := map[string]string{pythonRuntime: "python", nodeRuntime: "node"}[l.runtime]
		client, ok := b.clientOf[l.runtime]
		if !ok {
			b.report.verdict(key, l.name+" is not on this host", "–")
			continue
		}
		f, err := b.floor(floor.NetHTTP, client, callers)
		if err != nil {
			return err
		}
		own := len(targets)
		keyOf[own+1] = key
		targets = append(targets, &target{name: "floor: net/http, two hops, " + l.name, url: f.URL, pid: f.PID()})
		for _, s := range servers {
			t, err := s.function(ctx, b, s.label+", "+l.name+", 0 extensions", key, l.runtime, 0)
			if err != nil {
				return err
			}
			floorOf[len(targets)] = own
			targets = append(targets, t)
		}
	}
	rates, err := b.rates(ctx, targets, callers)
	if err != nil {
		return err
	}
	b.report.paced(byRate, quantile(rates[0].perSecond, 0.5))
	bound := map[string]float64{"go": 7000, "python": 5500, "node": 3000}
	var rows [][]string
	picture := chart{title: fmt.Sprintf("Throughput, %d callers: median of the turns, p10 to p90", callers), unit: "/s"}
	for i, x := range rates {
		picture.bars = append(picture.bars, bar{kindOf(x.name), x.name, quantile(x.perSecond, 0.5), quantile(x.perSecond, 0.1), quantile(x.perSecond, 0.9)})
		row := []string{x.name, fmt.Sprintf("%.0f/s", quantile(x.perSecond, 0.5)), fmt.Sprintf("%.0f/s", quantile(x.perSecond, 0.9)), "", micros(quantile(x.processor, 0.5))}
		if f, ok := floorOf[i]; ok {
			row[3] = "**" + x.ratio(rates[f]).String() + "**"
		}
		if key := keyOf[i]; key != "" {
			e := estimated(x.perSecond)
			b.report.judge(key, "%.0f/s", e, bound[key], true)
			v := b.report.verdicts[key]
			v.value += fmt.Sprintf("; %s × its floor", x.ratio(rates[floorOf[i]]))
			b.report.verdicts[key] = v
		}
		rows = append(rows, row)
	}
	r.charts = append(r.charts, picture)
	r.note("%d callers at once; each floor has %d runtimes. Medians of the turns, and what a tenth of them exceed; the ratio is to the floor of the same language.", callers, callers)
	r.table([]string{"", "invocations", "p90", "÷ floor", "processor time of the daemon, each"}, rows)
	return nil
}
