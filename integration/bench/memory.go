package main

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

// frozenMemory looks at a server that has done nothing else, whose heap the work
// before has not swollen.
func frozenMemory(ctx context.Context, b *bench, r *section) error {
	r.title = "Memory of a resting environment"
	s, err := b.server(ctx)
	if err != nil {
		return err
	}
	m, err := measureMemory(ctx, s, b.probe, b.environments)
	if err != nil {
		return err
	}
	kib := func(x float64) string { return fmt.Sprintf("%.0f KiB", x/1024) }
	var states []string
	for s, n := range m.states {
		states = append(states, fmt.Sprintf("%d %s", n, s))
	}
	sort.Strings(states)
	r.note("Go function without extensions, %.1f processes and threads each; the average of %d environments (%s).", m.processes, m.environments, strings.Join(states, ", "))
	r.table([]string{"", "each"}, [][]string{
		{"by lambdad's own count (ps)", kib(m.accounted)},
		{"its processes, resident", kib(m.rss)},
		{"its processes, shared pages divided", kib(m.pss)},
		{"growth of the daemon (anonymous memory)", kib(m.daemon)},
		{"growth of the kernel (slab, stacks, page tables, per CPU)", kib(m.kernel)},
		{"what the host has less (MemAvailable)", kib(m.available)},
	})
	held := "not held"
	if m.daemon <= 200<<10 {
		held = "held"
	}
	b.report.verdict("memory", fmt.Sprintf("%s; the kernel's %s; %d environments", kib(m.daemon), kib(m.kernel), m.environments), held)
	return nil
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
	if _, err := s.bringUp(ctx, name, n+1); err != nil {
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

// bringUp has n environments of a function at once and waits until they rest. It
// returns how many there are.
func (s *server) bringUp(ctx context.Context, name string, n int) (int, error) {
	// Each invocation lasts until the last has begun, so that each has an
	// environment of its own.
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range errs {
		wg.Go(func() {
			_, _, err := s.client.invoke(ctx, s.invokeURL(name), strconv.Itoa(i), 2*time.Second+time.Duration(n)*15*time.Millisecond)
			if !errors.Is(err, errThrottled) {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	s.client.close() // the connections are ours, not the environments'
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	if err := quiet(ctx, s, name, 1); err != nil {
		return 0, err
	}
	all, err := s.environments(ctx, name)
	return len(all), err
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
