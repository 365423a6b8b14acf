package main

import (
	"context"
	"fmt"
	"os/exec"
	"time"
)

// A cold is what was measured of cold starts of one kind.
type cold struct {
	name    string
	process []time.Duration // request sent → the runtime process runs
	whole   []time.Duration // request sent → answered
	first   time.Duration
}

// refilled lies before each cold start, so that what was made ahead is there again.
const refilled = 100 * time.Millisecond

// coldStarts makes a function, invokes it once and removes it, for each kind by
// turns. All functions of a kind have the same code, so that only the first, which is
// told apart, has it unpacked.
func coldStarts(ctx context.Context, b *bench, r *section) error {
	r.title = "Cold start"
	servers, err := b.servers(ctx)
	if err != nil {
		return err
	}
	type kind struct {
		server     *server
		runtime    string
		extensions int
	}
	var kinds []kind
	var list []*cold
	exec := &cold{name: "floor: fork and exec of the same program"}
	// Of a server that makes nothing ahead.
	demand, err := b.server(ctx, "--pool", "0")
	if err != nil {
		return err
	}
	kinds = append(kinds, kind{demand, goRuntime, 0})
	list = append(list, &cold{name: "lambdad, Go, 0 extensions, sandbox built on demand"})
	for _, s := range servers {
		for _, e := range extensionCounts {
			kinds = append(kinds, kind{s, goRuntime, e})
			list = append(list, &cold{name: s.label + ", Go, " + plural(e)})
		}
		for _, l := range languages {
			if _, ok := b.clientOf[l.runtime]; ok {
				kinds = append(kinds, kind{s, l.runtime, 0})
				list = append(list, &cold{name: s.label + ", " + l.name + ", 0 extensions"})
			}
		}
	}
	for round := range b.cold + 1 {
		b.report.idle = append(b.report.idle, idle())
		took, err := plainExec(ctx, b.probe)
		if err != nil {
			return err
		}
		if round > 0 {
			exec.process = append(exec.process, took)
		}
		for k, kd := range kinds {
			s, name := kd.server, fmt.Sprintf("cold-%d-%d", k, round)
			if err := s.create(ctx, name, kd.runtime, b.probe, kd.extensions); err != nil {
				return err
			}
			time.Sleep(refilled)
			began := time.Now()
			a, took, err := s.client.invoke(ctx, s.invokeURL(name), name, 0)
			if err != nil {
				return err
			}
			if err := s.remove(ctx, name); err != nil {
				return err
			}
			if round == 0 {
				list[k].first = took
				continue
			}
			list[k].process = append(list[k].process, time.Unix(0, a.Started).Sub(began.Round(0)))
			list[k].whole = append(list[k].whole, took)
		}
	}
	emulators, err := b.coldEmulators(ctx)
	if err != nil {
		return err
	}
	var rows [][]string
	picture := chart{title: "Cold start, until the runtime process runs: median, p10 to p90", unit: "ms"}
	for _, c := range append(append([]*cold{exec}, list...), emulators...) {
		ms := func(q float64) float64 { return float64(quantile(c.process, q)) / 1e6 }
		picture.bars = append(picture.bars, bar{kindOf(c.name), c.name, ms(0.5), ms(0.1), ms(0.9)})
		row := []string{c.name, millis(quantile(c.process, 0.5)), millis(quantile(c.process, 0.1)), millis(quantile(c.process, 0.9)), "", "", ""}
		if len(c.whole) > 0 {
			row[4], row[5] = millis(quantile(c.whole, 0.5)), millis(quantile(c.whole, 0.9))
		}
		if c.first > 0 {
			row[6] = millis(c.first)
		}
		rows = append(rows, row)
	}
	r.charts = append(r.charts, picture)
	for i, key := range []string{"demand", "pool"} {
		bound := map[string]float64{"demand": 3, "pool": 1.5}[key]
		var ms []float64
		for _, d := range list[i].process {
			ms = append(ms, float64(d)/1e6)
		}
		b.report.judge(key, "%.2f ms", estimated(ms), bound, false)
	}
	r.note("The platform's part is from the signed request until the runtime process runs, its language's own start included; of Python and Node.js until the handler's module is read. Code is unpacked once per version: the first of all is told apart.")
	r.table([]string{"", "to runtime process", "p10", "p90", "to answer", "p90", "first of all"}, rows)
	return nil
}

// plainExec returns the time from before a fork and exec until the program runs.
func plainExec(ctx context.Context, probe string) (time.Duration, error) {
	begin := time.Now()
	out, err := exec.CommandContext(ctx, probe, "exit").Output()
	if err != nil {
		return 0, err
	}
	var started int64
	_, err = fmt.Sscan(string(out), &started)
	return time.Unix(0, started).Sub(begin.Round(0)), err
}
