// Command bench measures the whole system in one run: the floor (package floor)
// and lambdad side by side, through the same client and with the same runtime
// program, turn by turn, so that what the machine does meanwhile meets all alike.
// It prints a table in Markdown. Absolute figures are the machine's; the ratios
// are lambdad's.
//
//	go run ./integration/bench --lambdad bin/lambdad
//
// With LAMBDAD_BENCH_RIE naming the binary of AWS's Runtime Interface Emulator,
// that is measured too. Everything happens in temporary directories on free ports;
// nothing is left.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/lambdad/lambdad/integration/floor"
)

// options say how much is measured.
type options struct {
	lambdad      string        // the binary; "" builds one
	rounds       int           // turns of the warm measurements
	requests     int           // requests per turn and target
	slice        time.Duration // length of a throughput turn
	cold         int           // cold starts of each kind
	environments int           // frozen environments whose memory is measured
	serveArgs    string        // more arguments for lambdad serve
}

func main() {
	floor.Main()
	riemain()
	sandboxMain()
	var o options
	flag.StringVar(&o.lambdad, "lambdad", "", "`binary` to measure (default: built from this module)")
	flag.IntVar(&o.rounds, "rounds", 15, "turns each warm target gets")
	flag.IntVar(&o.requests, "requests", 100, "requests in a turn")
	flag.DurationVar(&o.slice, "slice", 300*time.Millisecond, "length of a throughput turn")
	flag.IntVar(&o.cold, "cold", 25, "cold starts of each kind")
	flag.IntVar(&o.environments, "environments", 100, "frozen environments whose memory is measured")
	flag.StringVar(&o.serveArgs, "serve-args", "", "more arguments for lambdad serve, separated by spaces")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures everything and writes the report to out; progress goes to status.
func run(ctx context.Context, o options, out, status io.Writer) (err error) {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("the benchmark needs Linux, this is %s", runtime.GOOS)
	}
	dir, err := os.MkdirTemp("", "lambdad-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	say := func(format string, v ...any) { fmt.Fprintf(status, "bench: "+format+"\n", v...) }

	say("building")
	bins := filepath.Join(dir, "bin")
	probe := filepath.Join(bins, "bootstrap")
	if err := build(ctx, probe, "github.com/lambdad/lambdad/integration/bench/probe"); err != nil {
		return err
	}
	if o.lambdad == "" {
		o.lambdad = filepath.Join(bins, "lambdad")
		if err := build(ctx, o.lambdad, "github.com/lambdad/lambdad/cmd/lambdad"); err != nil {
			return err
		}
	}

	one, err := floor.Start(probe, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, one.Close()) }()
	four, err := floor.Start(probe, clients)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, four.Close()) }()

	say("starting lambdad")
	s, err := startServer(ctx, o, filepath.Join(dir, "data"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()

	r := &report{}
	r.host(dir, s)
	functions, err := s.prepare(ctx, probe)
	if err != nil {
		return err
	}
	emulators, err := startEmulators(dir, probe)
	if err != nil {
		return err
	}
	defer func() {
		for _, e := range emulators {
			err = errors.Join(err, e.stop())
		}
	}()

	// Each target with how it is reached by one client, and by several at once.
	floorOne := &target{name: "floor: net/http, two hops", url: one.URL}
	floorFour := &target{name: floorOne.name, url: four.URL}
	single, several := []*target{floorOne}, []*target{floorFour}
	for _, f := range functions {
		t := &target{name: "lambdad, " + f.title, url: s.invokeURL(f.name), server: s}
		single, several = append(single, t), append(several, t)
	}
	for _, e := range emulators {
		single = append(single, &target{name: e.title, url: e.url})
	}

	say("warm, one client: %d turns of %d requests", o.rounds, o.requests)
	warm, err := measureWarm(ctx, single, o.rounds, o.requests, 0)
	if err != nil {
		return err
	}
	r.warm(warm)
	say("warm, with pauses in which environments freeze")
	paused, err := measureWarm(ctx, single, max(2, o.rounds/3), 10, pause)
	if err != nil {
		return err
	}
	r.paused(paused)
	say("%d clients at once", clients)
	rates, err := measureRates(ctx, several, o.rounds, o.slice)
	if err != nil {
		return err
	}
	r.rates(rates)
	say("cold starts: %d of each kind", o.cold)
	cold, err := measureCold(ctx, s, probe, o.cold)
	if err != nil {
		return err
	}
	riecold, err := coldEmulators(ctx, dir, probe, o.cold)
	if err != nil {
		return err
	}
	r.cold(append(cold, riecold...))
	say("memory of %d frozen environments", o.environments)
	// Of a server that has done nothing else, whose heap the work before has not
	// swollen.
	memory, err := freshMemory(ctx, o, filepath.Join(dir, "data-memory"), probe)
	if err != nil {
		return err
	}
	r.memory(memory)
	say("sandboxes per second")
	r.sandboxes(measureSandboxes(ctx, filepath.Join(dir, "sandboxes"), probe))

	_, err = io.WriteString(out, r.text())
	return err
}

// freshMemory measures memory on a server of its own.
func freshMemory(ctx context.Context, o options, dir, probe string) (m *memory, err error) {
	s, err := startServer(ctx, o, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	return measureMemory(ctx, s, probe, o.environments)
}

// build builds a static program.
func build(ctx context.Context, to, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", to, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return nil
}
