package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lambdad/lambdad/integration/leak"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/namespace"
)

// sandboxRole makes the program the one that builds sandboxes: a driver is best
// alone in its process. Its value is a variant, a directory and the probe, separated
// by colons.
const sandboxRole = "LAMBDAD_BENCH_SANDBOXES"

// How long sandboxes are built in a turn, how often, and how many at once.
const (
	sandboxTime     = time.Second
	sandboxTurns    = 5
	sandboxParallel = 2
	sandboxID       = "beac4000"
)

// A variant says what sandboxes have.
type variant struct {
	key, name string // of the promise
	bound     float64
	egress    sandbox.Egress
	writes    bool // the program writes to /tmp
}

var variants = []variant{
	{"shut", "no outbound network, /tmp never written", 400, "", false},
	{"open", "outbound network, /tmp written", 200, sandbox.EgressAll, true},
}

// sandboxes builds and destroys as many as it can, of each variant by turns.
func sandboxes(ctx context.Context, b *bench, r *section) error {
	r.title = "Sandboxes created and destroyed"
	dir, err := os.MkdirTemp(b.dir, "sandboxes-")
	if err != nil {
		return err
	}
	scope := leak.Scope{ID: sandboxID, Dirs: []string{dir}}
	before, err := leak.Take(scope)
	if err != nil {
		return err
	}
	rates := make([][]float64, len(variants))
	var tier string
	for range sandboxTurns {
		for i, v := range variants {
			n, t, err := buildElsewhere(ctx, v, dir, b.probe)
			if err != nil {
				return err
			}
			tier, rates[i] = t, append(rates[i], n)
		}
	}
	var left []string
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) { // a network namespace goes a little after its last process
		after, err := leak.Take(scope)
		if err != nil {
			return err
		}
		// What this process itself does is no sandbox's.
		left = after.Since(before, leak.Slack{"goroutines": 1000, "threads": 1000, "descriptors": 1000})
		if left == nil || time.Since(begin) > 5*time.Second {
			break
		}
	}
	b.report.tier = tier
	var rows [][]string
	for i, v := range variants {
		e := estimated(rates[i])
		rows = append(rows, []string{v.name, e.format("%.0f/s"), fmt.Sprintf("%.0f/s", slices.Max(rates[i]))})
		b.report.judge(v.key, "%.0f/s", e, v.bound, true)
	}
	said := "Nothing is left behind."
	if left != nil {
		said = "**Left behind: " + strings.Join(left, "; ") + "**"
	}
	r.note("Tier %s, %d at a time; each has its control groups, system call filter and a /tmp of 512 MiB on disk, and runs a static program to its end. %s", tier, sandboxParallel, said)
	r.table([]string{"", "median of the turns", "best"}, rows)
	return nil
}

// buildElsewhere builds sandboxes in another process for one turn.
func buildElsewhere(ctx context.Context, v variant, dir, probe string) (perSecond float64, tier string, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, "", err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), sandboxRole+"="+v.key+":"+dir+":"+probe)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, "", fmt.Errorf("%w %s", err, strings.TrimSpace(stderr.String()))
	}
	_, err = fmt.Sscan(string(out), &perSecond, &tier)
	return perSecond, tier, err
}

// sandboxMain does the work if the process was executed for it.
func sandboxMain() {
	namespace.ServeTrial()
	arg := strings.Split(os.Getenv(sandboxRole), ":")
	if len(arg) != 3 {
		return
	}
	_, rootless := namespace.Rootless()
	var err error
	if !rootless && namespace.Probe() != nil {
		if err = namespace.Try(context.Background()); err == nil {
			err = namespace.Reexec("the root tier does not work") // which comes back here
		}
	}
	i := slices.IndexFunc(variants, func(v variant) bool { return v.key == arg[0] })
	var n float64
	var tier string
	if err == nil {
		n, tier, err = buildSandboxes(variants[i], rootless, arg[1], filepath.Dir(arg[2]))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(n, tier)
	os.Exit(0)
}

func buildSandboxes(v variant, rootless bool, dir, program string) (perSecond float64, tier string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, "", err
	}
	ctx := context.Background()
	d, err := namespace.New(ctx, namespace.Config{ID: sandboxID, Dir: dir, Egress: v.egress, Rootless: rootless, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := d.Sweep(ctx); err != nil {
		return 0, "", err
	}
	var wg sync.WaitGroup
	counts, errs := make([]int, sandboxParallel), make([]error, sandboxParallel)
	begin := time.Now()
	for w := range sandboxParallel {
		wg.Go(func() {
			for i := 0; time.Since(begin) < sandboxTime && errs[w] == nil; i++ {
				if errs[w] = oneSandbox(ctx, d, v, fmt.Sprintf("w%dn%d", w, i), program); errs[w] == nil {
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
	return float64(total) / took.Seconds(), d.Tier(), errors.Join(errs...)
}

// oneSandbox is the life of one sandbox.
func oneSandbox(ctx context.Context, d sandbox.Driver, v variant, id, program string) (err error) {
	s, err := d.Create(ctx, sandbox.Spec{
		ID: id, TmpBytes: 512 << 20, MemoryBytes: 512 << 20,
		Mounts: []sandbox.Mount{{Target: "/var/task", Sources: []string{program}}, {Target: "/opt"}, {Target: "/var/runtime", Sources: []string{program}}},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Destroy(ctx)) }()
	args := []string{"bootstrap", "exit"}
	if v.writes {
		args = append(args, s.Path("/tmp")+"/written")
	}
	p, err := s.Start(ctx, sandbox.Command{Party: "runtime", Path: "/var/task/bootstrap", Args: args})
	if err != nil {
		return err
	}
	<-p.Done()
	if p.Exit() != (sandbox.Exit{}) {
		return fmt.Errorf("the program ended with %s", p.Exit())
	}
	return nil
}
