package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	// clients is how many ask at once in the throughput measurement.
	clients = 4
	// pause lies between requests where environments are to freeze in between.
	pause = 20 * time.Millisecond
	// settling is how many requests begin a turn uncounted: a connection is opened,
	// an environment thawed, a cache filled.
	settling = 3
)

// A target is something to be invoked.
type target struct {
	name   string
	url    string
	server *server // nil: any signature will do
}

// A sample is what was measured of one target.
type sample struct {
	name  string
	times []time.Duration
}

// quantile returns the q-th of the times, 0 ≤ q ≤ 1.
func (s *sample) quantile(q float64) time.Duration {
	if len(s.times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s.times))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

func (s *sample) median() time.Duration { return s.quantile(0.5) }

// measureWarm invokes the targets by turns, one request at a time, pausing between
// requests.
func measureWarm(ctx context.Context, targets []*target, rounds, requests int, pause time.Duration) ([]*sample, error) {
	samples := make([]*sample, len(targets))
	list := make([]*client, len(targets))
	for i, t := range targets {
		samples[i] = &sample{name: t.name}
		list[i] = newClient(t.server)
		defer list[i].close()
	}
	for round := range rounds {
		for k := range targets {
			i := (k + round) % len(targets) // no target always follows the same one
			for n := range settling + requests {
				time.Sleep(pause)
				_, took, err := list[i].invoke(ctx, targets[i].url, strconv.Itoa(n), 0)
				if err != nil {
					return nil, err
				}
				if n >= settling {
					samples[i].times = append(samples[i].times, took)
				}
			}
		}
	}
	return samples, nil
}

// A rate is how many invocations per second a target answered.
type rate struct {
	name      string
	perSecond []float64 // of each turn
}

func (r *rate) median() float64 {
	sorted := slices.Sorted(slices.Values(r.perSecond))
	return sorted[len(sorted)/2]
}

// measureRates has several clients invoke each target at once, by turns.
func measureRates(ctx context.Context, targets []*target, rounds int, slice time.Duration) ([]*rate, error) {
	rates := make([]*rate, len(targets))
	list := make([]*client, len(targets))
	for i, t := range targets {
		rates[i] = &rate{name: t.name}
		list[i] = newClient(t.server)
		defer list[i].close()
		if _, _, err := burst(ctx, list[i], t.url, slice); err != nil { // environments start
			return nil, err
		}
	}
	for round := range rounds {
		for k := range targets {
			i := (k + round) % len(targets)
			done, took, err := burst(ctx, list[i], targets[i].url, slice)
			if err != nil {
				return nil, err
			}
			rates[i].perSecond = append(rates[i].perSecond, float64(done)/took.Seconds())
		}
	}
	return rates, nil
}

// burst invokes url from all clients for the given time.
func burst(ctx context.Context, c *client, url string, length time.Duration) (int, time.Duration, error) {
	var wg sync.WaitGroup
	counts, errs := make([]int, clients), make([]error, clients)
	begin := time.Now()
	for w := range clients {
		wg.Go(func() {
			for time.Since(begin) < length && errs[w] == nil {
				if _, _, errs[w] = c.invoke(ctx, url, strconv.Itoa(w), 0); errs[w] == nil {
					counts[w]++
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	total := 0
	for _, n := range counts {
		total += n
	}
	return total, took, errors.Join(errs...)
}

// A cold is what was measured of cold starts of one kind.
type cold struct {
	name    string
	process sample // request sent → main of the runtime process
	whole   sample // request sent → answered
	first   time.Duration
}

// measureCold makes a function, invokes it once and removes it, for each kind by
// turns. All functions of a kind have the same code, so that only the first, which
// is told apart, has it unpacked.
func measureCold(ctx context.Context, s *server, probe string, n int) ([]*cold, error) {
	type kind struct {
		runtime, probe string
		extensions     int
	}
	var kinds []kind
	var list []*cold
	exec := &cold{name: "floor: fork and exec of the same program"}
	for _, e := range extensionCounts {
		kinds = append(kinds, kind{"provided.al2023", probe, e})
		list = append(list, &cold{name: fmt.Sprintf("lambdad, Go, %s", plural(e))})
	}
	kinds = append(kinds, kind{pythonRuntime, "", 0})
	list = append(list, &cold{name: "lambdad, Python, 0 extensions (process: when the handler's module is read)"})
	for round := range n + 1 {
		took, err := plainExec(ctx, probe)
		if err != nil {
			return nil, err
		}
		if round > 0 {
			exec.process.times = append(exec.process.times, took)
		}
		for k, kd := range kinds {
			name := fmt.Sprintf("cold-%d-%d", k, round)
			if err := s.create(ctx, name, kd.runtime, kd.probe, kd.extensions); err != nil {
				return nil, err
			}
			begin := time.Now()
			a, took, err := s.client.invoke(ctx, s.invokeURL(name), name, 0)
			if err != nil {
				return nil, err
			}
			if err := s.remove(ctx, name); err != nil {
				return nil, err
			}
			if round == 0 {
				list[k].first = took
				continue
			}
			list[k].process.times = append(list[k].process.times, time.Unix(0, a.Started).Sub(begin.Round(0)))
			list[k].whole.times = append(list[k].whole.times, took)
		}
	}
	return append([]*cold{exec}, list...), nil
}

func plural(extensions int) string {
	if extensions == 1 {
		return "1 extension"
	}
	return fmt.Sprintf("%d extensions", extensions)
}

// plainExec returns the time from before an exec to main of the program.
func plainExec(ctx context.Context, probe string) (time.Duration, error) {
	begin := time.Now()
	out, err := exec.CommandContext(ctx, probe, "exit").Output()
	if err != nil {
		return 0, err
	}
	started, err := strconv.ParseInt(string(bytes.TrimSpace(out)), 10, 64)
	return time.Unix(0, started).Sub(begin.Round(0)), err
}

// A memory is what frozen environments hold, each on average.
type memory struct {
	environments int
	states       map[string]int
	processes    float64
	accounted    float64 // bytes, by lambdad's own count
	rss, pss     float64 // bytes of its processes
	daemon       float64 // growth of the daemon's own memory
	kernel       float64 // growth of the kernel's own memory
	available    float64 // what the host has less
}

// measureMemory brings up n environments of one function, lets them freeze and
// looks at what has grown.
func measureMemory(ctx context.Context, s *server, probe string, n int) (*memory, error) {
	const name = "frozen"
	if err := s.create(ctx, name, "provided.al2023", probe, 0); err != nil {
		return nil, err
	}
	if _, _, err := s.client.invoke(ctx, s.invokeURL(name), "0", 0); err != nil {
		return nil, err
	}
	if err := quiet(ctx, s, name, 1); err != nil {
		return nil, err
	}
	before, err := observe(s.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	// Each invocation lasts until the last has begun, so that each has an
	// environment of its own.
	var wg sync.WaitGroup
	errs := make([]error, n+1)
	for i := range errs {
		wg.Go(func() {
			_, _, err := s.client.invoke(ctx, s.invokeURL(name), strconv.Itoa(i), 2*time.Second+time.Duration(n)*10*time.Millisecond)
			if !errors.Is(err, errThrottled) {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	s.client.close() // the connections are ours, not the environments'
	if err := quiet(ctx, s, name, 2); err != nil {
		return nil, err
	}
	after, err := observe(s.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	all, err := s.environments(ctx, name)
	if err != nil {
		return nil, err
	}
	m := &memory{environments: len(all), states: map[string]int{}}
	for _, e := range all {
		m.states[e.State]++
		m.accounted += float64(e.Memory) / float64(len(all))
		m.processes += float64(e.Processes) / float64(len(all))
	}
	more := float64(len(all) - 1) // one was there before
	if more < 1 {
		return nil, fmt.Errorf("only %d environments came up", len(all))
	}
	m.rss = float64(after.rss-before.rss) / more
	m.pss = float64(after.pss-before.pss) / more
	m.daemon = float64(after.daemon-before.daemon) / more
	m.kernel = float64(after.kernel-before.kernel) / more
	m.available = float64(before.available-after.available) / more
	return m, s.remove(ctx, name)
}

// quiet waits until all environments of a function rest, at least min of them.
func quiet(ctx context.Context, s *server, name string, min int) error {
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		all, err := s.environments(ctx, name)
		if err != nil {
			return err
		}
		resting := 0
		for _, e := range all {
			// Where nothing can be frozen, idle is as far as it goes.
			if e.State == "frozen" || (e.State == "idle" && time.Since(begin) > 2*time.Second) {
				resting++
			}
		}
		if resting == len(all) && resting >= min {
			return nil
		}
		if time.Since(begin) > startLimit {
			return fmt.Errorf("%d of %d environments rest after %v", resting, len(all), startLimit)
		}
	}
}
