// Command bench measures the whole system in one run: the floors (package floor)
// and lambdad side by side, through the same client and with the same runtime
// program, turn by turn, so that what the machine does meanwhile meets all alike.
// It prints tables in Markdown. Absolute figures are the machine's; the ratios are
// lambdad's.
//
//	go run ./integration/bench --lambdad bin/lambdad
//	go run ./integration/bench --lambdad bin/lambdad --quick --only warm,cold
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
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lambdad/lambdad/integration/floor"
)

// options say what is measured, and how much of it.
type options struct {
	lambdad      string        // the binary; "" builds one
	against      string        // another binary, measured beside it; "": none
	write        string        // files that the report is written into, without .md; "": none
	full         bool          // the curves, too
	only         string        // sections, separated by commas; "": all that full says
	limit        time.Duration // what is not measured by then is left out
	rounds       int           // turns of the warm measurements
	requests     int           // requests per turn and target
	slice        time.Duration // length of a throughput turn
	cold         int           // cold starts of each kind
	environments int           // frozen environments whose memory is measured
	serveArgs    string        // more arguments for lambdad serve
}

// usual is what make bench measures; quick is for a look while one works.
var (
	usual = options{limit: 5 * time.Minute, rounds: 32, requests: 25, slice: 150 * time.Millisecond, cold: 12, environments: 200}
	quick = options{limit: time.Minute, rounds: 15, requests: 15, slice: 50 * time.Millisecond, cold: 5, environments: 30}
)

// A part of the benchmark measures and fills one section of the report.
type part struct {
	name string
	run  func(context.Context, *bench, *section) error
}

var parts = []part{
	{"warm", warm},
	{"extensions", extensions},
	{"freeze", freeze},
	{"throughput", throughput},
	{"cold", coldStarts},
	{"memory", frozenMemory},
	{"sandboxes", sandboxes},
	{"lines", lines},
	{"control", control},
}

// fullLimit is that of --full.
const fullLimit = 15 * time.Minute

func names(list []part) string {
	var names []string
	for _, p := range list {
		names = append(names, p.name)
	}
	return strings.Join(names, ",")
}

func main() {
	floor.Main()
	riemain()
	sandboxMain()
	o, err := parse(os.Args[1:])
	if err != nil {
		os.Exit(2) // it is said
	}
	debug.SetGCPercent(400) // the client's collector is nobody's cost
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = run(ctx, o, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// parse reads the command line; flags that are not given are as --quick says.
func parse(args []string) (options, error) {
	o := usual
	if slices.Contains(args, "--quick") || slices.Contains(args, "-quick") {
		o = quick
	}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	if slices.Contains(args, "--full") || slices.Contains(args, "-full") {
		o.limit = fullLimit
	}
	fs.Bool("quick", false, "measure less, in under a minute")
	fs.BoolVar(&o.full, "full", false, "curves, too: "+names(curveParts))
	fs.StringVar(&o.lambdad, "lambdad", "", "`binary` to measure (default: built from this module)")
	fs.StringVar(&o.against, "against", "", "another `binary` of lambdad, such as one from before a change, measured beside it where it says warm, extensions, throughput and cold")
	fs.StringVar(&o.write, "write", "", "`file`, without .md, that the report is written into, and the pictures beside it")
	fs.StringVar(&o.only, "only", "", "`parts` to measure, of "+names(slices.Concat(parts, curveParts)))
	fs.DurationVar(&o.limit, "limit", o.limit, "`time` after which nothing more is begun")
	fs.IntVar(&o.rounds, "rounds", o.rounds, "turns each warm target gets")
	fs.IntVar(&o.requests, "requests", o.requests, "requests in a turn")
	fs.DurationVar(&o.slice, "slice", o.slice, "length of a throughput turn")
	fs.IntVar(&o.cold, "cold", o.cold, "cold starts of each kind")
	fs.IntVar(&o.environments, "environments", o.environments, "frozen environments whose memory is measured")
	fs.StringVar(&o.serveArgs, "serve-args", "", "more arguments for lambdad serve, separated by spaces")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if _, _, err := chosen(o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return o, err
	}
	return o, nil
}

// chosen are the parts that the options ask for, and the curves.
func chosen(o options) (list, curves []part, err error) {
	if o.only == "" {
		if o.full {
			curves = curveParts
		}
		return parts, curves, nil
	}
	for name := range strings.SplitSeq(o.only, ",") {
		is := func(p part) bool { return p.name == name }
		if i := slices.IndexFunc(parts, is); i >= 0 {
			list = append(list, parts[i])
		} else if i := slices.IndexFunc(curveParts, is); i >= 0 {
			curves = append(curves, curveParts[i])
		} else {
			return nil, nil, fmt.Errorf("--only %s: it must be of %s", name, names(slices.Concat(parts, curveParts)))
		}
	}
	return list, curves, nil
}

// A bench is what all parts use.
type bench struct {
	options
	dir    string // temporary
	probe  string
	zipped []byte // the probe as a package
	report *report
	status io.Writer
	undo   []func() error // of the part that runs
	// clientOf are the clients of runtimes other than Go, by identifier.
	clientOf map[string]floor.Runtime
}

func (b *bench) say(format string, v ...any) { fmt.Fprintf(b.status, "bench: "+format+"\n", v...) }

// later has something undone at the end of the part.
func (b *bench) later(undo func() error) { b.undo = append(b.undo, undo) }

// run measures and writes the report to out; progress goes to status. A part that
// fails is told in the report and in the error; the others are measured.
func run(ctx context.Context, o options, out, status io.Writer) (err error) {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("the benchmark needs Linux, this is %s", runtime.GOOS)
	}
	list, curves, err := chosen(o)
	if err != nil {
		return err
	}
	b := &bench{options: o, status: status}
	// On a disk, whatever /tmp is.
	parent := os.Getenv("TMPDIR")
	if parent == "" {
		parent = "/var/tmp"
	}
	if b.dir, err = os.MkdirTemp(parent, "lambdad-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()

	b.say("building")
	b.probe = filepath.Join(b.dir, "bin", "bootstrap")
	if err := build(ctx, b.probe, "github.com/lambdad/lambdad/integration/bench/probe"); err != nil {
		return err
	}
	if b.lambdad == "" {
		b.lambdad = filepath.Join(b.dir, "bin", "lambdad")
		if err := build(ctx, b.lambdad, "github.com/lambdad/lambdad/cmd/lambdad"); err != nil {
			return err
		}
	}
	if err := b.clients(ctx); err != nil {
		return err
	}
	files, err := codeOf(goRuntime, b.probe)
	if err != nil {
		return err
	}
	b.zipped = zipped(files)
	begin := time.Now()
	var failed error
	for _, half := range []struct {
		region string
		what   string
		parts  []part
		limit  time.Duration // of each part
	}{{"bench", "", list, 3 * time.Minute}, {"curves", "Curves of ", curves, 4 * time.Minute}} {
		if len(half.parts) == 0 {
			continue
		}
		b.report = &report{what: half.what}
		err := b.measureParts(ctx, half.parts, begin, half.limit)
		failed = errors.Join(failed, err)
		if _, err := io.WriteString(out, b.report.text()); err != nil {
			return errors.Join(failed, err)
		}
		if ctx.Err() != nil {
			return errors.Join(failed, context.Cause(ctx))
		}
		if o.write != "" && err == nil {
			failed = errors.Join(failed, b.report.write(o.write, half.region))
		}
	}
	return failed
}

// measureParts fills a report. A part that takes longer than limit has failed.
func (b *bench) measureParts(ctx context.Context, list []part, begin time.Time, limit time.Duration) (failed error) {
	b.report.begin()
	for _, p := range list {
		s := b.report.section(p.name)
		if time.Since(begin) > b.limit {
			s.note("Not measured: %v had passed.", b.limit)
			continue
		}
		began := time.Now()
		b.report.idle = append(b.report.idle, idle())
		limited, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took more than %v", limit))
		err := p.run(limited, b, s)
		if err != nil && limited.Err() != nil {
			err = errors.Join(context.Cause(limited), err)
		}
		cancel()
		for _, undo := range slices.Backward(b.undo) {
			err = errors.Join(err, undo())
		}
		b.undo = nil
		b.say("%s took %.1fs", p.name, time.Since(began).Seconds())
		if err != nil {
			s.note("Not measured: %v", err)
			failed = errors.Join(failed, fmt.Errorf("%s: %w", p.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return failed
}

// server starts lambdad until the end of the part.
func (b *bench) server(ctx context.Context, args ...string) (*server, error) {
	s, err := b.start(ctx, b.lambdad, "lambdad", args)
	if err == nil {
		b.report.server(s)
	}
	return s, err
}

// servers starts lambdad and what it is measured against.
func (b *bench) servers(ctx context.Context, args ...string) ([]*server, error) {
	s, err := b.server(ctx, args...)
	if err != nil || b.against == "" {
		return []*server{s}, err
	}
	other, err := b.start(ctx, b.against, "against", args)
	return []*server{s, other}, err
}

func (b *bench) start(ctx context.Context, binary, label string, args []string) (*server, error) {
	dir, err := os.MkdirTemp(b.dir, "data-")
	if err != nil {
		return nil, err
	}
	s, err := startServer(ctx, binary, dir, append(args, strings.Fields(b.serveArgs)...))
	if err != nil {
		return nil, err
	}
	s.label = label
	b.later(func() error {
		err := s.stop()
		b.report.warned(s.log.String())
		return err
	})
	return s, nil
}

// floor starts a floor until the end of the part.
func (b *bench) floor(kind floor.Kind, r floor.Runtime, n int) (*floor.Floor, error) {
	f, err := floor.Start(kind, r, n)
	if err == nil {
		b.later(f.Close)
	}
	return f, err
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
