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

// coldStarts makes a function, invokes it once and removes it, for each kind by
// turns. All functions of a kind have the same code, so that only the first, which is
// told apart, has it unpacked.
func coldStarts(ctx context.Context, b *bench, r *section) error {
	r.title = "Cold start"
	s, err := b.server(ctx)
	if err != nil {
		return err
	}
	type kind struct {
		runtime    string
		extensions int
	}
	var kinds []kind
	var list []*cold
	exec := &cold{name: "floor: fork and exec of the same program"}
	for _, e := range extensionCounts {
		kinds = append(kinds, kind{goRuntime, e})
		list = append(list, &cold{name: "lambdad, Go, " + plural(e)})
	}
	for _, l := range languages {
		if _, ok := b.clientOf[l.runtime]; ok {
			kinds = append(kinds, kind{l.runtime, 0})
			list = append(list, &cold{name: "lambdad, " + l.name + ", 0 extensions (process: when the handler's module is read)"})
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
			name := fmt.Sprintf("cold-%d-%d", k, round)
			if err := s.create(ctx, name, kd.runtime, b.probe, kd.extensions); err != nil {
				return err
			}
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
	for _, c := range append(append([]*cold{exec}, list...), emulators...) {
		row := []string{c.name, millis(quantile(c.process, 0.5)), millis(quantile(c.process, 0.1)), millis(quantile(c.process, 0.9)), "", "", ""}
		if len(c.whole) > 0 {
			row[4], row[5] = millis(quantile(c.whole, 0.5)), millis(quantile(c.whole, 0.9))
		}
		if c.first > 0 {
			row[6] = millis(c.first)
		}
		rows = append(rows, row)
	}
	r.note("The platform's part is from the signed request until the runtime process runs, its language's own start included. Code is unpacked once per version: the first of all is told apart.")
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
