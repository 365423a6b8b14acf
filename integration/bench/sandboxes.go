package main

import (
	"context"
	"encoding/json"
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

// How long sandboxes are built in a turn, and how many at once.
const (
	sandboxTime     = time.Second
	sandboxParallel = 2
	sandboxID       = "beac4000"
)

// A variant says what sandboxes have.
type variant struct {
	key, name string // of the promise
	bound     float64
	egress    sandbox.Egress
	writes    bool // the program writes to /tmp
	least     bool // the program is the least, and not one in Go
}

// The floors have nothing to do with sandboxes: the programs in new namespaces.
const (
	bareLeast = "bare"
	bareGo    = "bare-go"
)

// What has a bound is judged: what the sandbox costs, and not what a language does until
// it runs and after it is done.
var variants = []variant{
	{"shut", "no outbound network, /tmp never written", 400, "", false, true},
	{"open", "outbound network, /tmp written", 200, sandbox.EgressAll, true, true},
	{"shut-go", "no outbound network, /tmp never written, a program in Go", 0, "", false, false},
	{"open-go", "outbound network, /tmp written, a program in Go", 0, sandbox.EgressAll, true, false},
}

// sandboxes builds and destroys as many as it can, of each variant by turns, and beside
// them the least the kernel can do: the same programs in new namespaces.
func sandboxes(ctx context.Context, b *bench, r *section) error {
	r.title = "Sandboxes created and destroyed"
	dir, err := os.MkdirTemp(b.dir, "sandboxes-")
	if err != nil {
		return err
	}
	least := filepath.Join(dir, "least", "bootstrap")
	if err := writeLeast(least); err != nil {
		return err
	}
	scope := leak.Scope{ID: sandboxID, Dirs: []string{dir}}
	before, err := leak.Take(scope)
	if err != nil {
		return err
	}
	rates, ratios := make([][]float64, len(variants)), make([][]float64, len(variants))
	var bare, bareInGo []float64
	var last built
	for range max(b.rounds/6, 1) {
		floor, err := buildElsewhere(ctx, bareLeast, dir, least)
		if err != nil {
			return err
		}
		floorInGo, err := buildElsewhere(ctx, bareGo, dir, b.probe)
		if err != nil {
			return err
		}
		bare, bareInGo = append(bare, floor.PerSecond), append(bareInGo, floorInGo.PerSecond)
		for i, v := range variants {
			program, of := b.probe, floorInGo
			if v.least {
				program, of = least, floor
			}
			if last, err = buildElsewhere(ctx, v.key, dir, program); err != nil {
				return err
			}
			rates[i] = append(rates[i], last.PerSecond)
			ratios[i] = append(ratios[i], last.PerSecond/of.PerSecond)
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
	b.report.tier = last.Tier
	rows := [][]string{
		{"floor: the same program in new namespaces", estimated(bare).format("%.0f/s"), "", fmt.Sprintf("%.0f/s", slices.Max(bare))},
		{"floor: the program in Go in new namespaces", estimated(bareInGo).format("%.0f/s"), "", fmt.Sprintf("%.0f/s", slices.Max(bareInGo))},
	}
	for i, v := range variants {
		e, ratio := estimated(rates[i]), estimated(ratios[i]).format("%.2f")
		rows = append(rows, []string{v.name, e.format("%.0f/s"), ratio, fmt.Sprintf("%.0f/s", slices.Max(rates[i]))})
		if v.bound == 0 {
			continue
		}
		b.report.judge(v.key, "%.0f/s", e, v.bound, true)
		told := b.report.verdicts[v.key]
		told.value += "; " + ratio + " × its floor"
		b.report.verdicts[v.key] = told
	}
	r.note("%d at a time; each has its control groups, system call filter and a /tmp of 512 MiB, and runs a static program to its end: one of a dozen instructions, so that it is the sandbox that is measured, or one in Go, most of whose time is that of its language. The floor is that program cloned into mount, process, network, IPC and host name namespaces of its own, its root changed, and its end: no user namespace, groups, filter, limits or /tmp.", sandboxParallel)
	if last.Fallen != nil {
		r.note("What does not hold in tier %s here: %s.", last.Tier, strings.Join(last.Fallen, ", "))
	}
	if left == nil {
		r.note("Nothing is left behind.")
	} else {
		r.note("**Left behind: %s**", strings.Join(left, "; "))
	}
	r.table([]string{"", "median of the turns", "÷ floor", "best"}, rows)
	return nil
}

// A built turn is what the other process says.
type built struct {
	PerSecond float64
	Tier      string
	Fallen    []string // promises that do not hold
}

// buildElsewhere builds sandboxes in another process for one turn.
func buildElsewhere(ctx context.Context, what, dir, probe string) (x built, err error) {
	self, err := os.Executable()
	if err != nil {
		return x, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), sandboxRole+"="+what+":"+dir+":"+probe)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return x, fmt.Errorf("%w %s", err, strings.TrimSpace(stderr.String()))
	}
	return x, json.Unmarshal(out, &x)
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
	if err == nil {
		var x built
		if arg[0] == bareLeast || arg[0] == bareGo {
			x, err = turn(func(string) error { return bareSandbox(arg[2]) })
		} else {
			i := slices.IndexFunc(variants, func(v variant) bool { return v.key == arg[0] })
			x, err = buildSandboxes(variants[i], rootless, arg[1], filepath.Dir(arg[2]))
		}
		if err == nil {
			err = json.NewEncoder(os.Stdout).Encode(x)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func buildSandboxes(v variant, rootless bool, dir, program string) (x built, err error) {
	ctx := context.Background()
	d, err := namespace.New(ctx, namespace.Config{ID: sandboxID, Dir: dir, Egress: v.egress, Rootless: rootless, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return x, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := d.Sweep(ctx); err != nil {
		return x, err
	}
	if x, err = turn(func(id string) error { return oneSandbox(ctx, d, v, id, program) }); err != nil {
		return x, err
	}
	x.Tier = d.Tier()
	for _, p := range d.Promises() {
		if !p.Kept {
			x.Fallen = append(x.Fallen, p.Name)
		}
	}
	return x, nil
}

// turn does one life after the other for sandboxTime, so many at once.
func turn(one func(id string) error) (built, error) {
	var wg sync.WaitGroup
	counts, errs := make([]int, sandboxParallel), make([]error, sandboxParallel)
	begin := time.Now()
	for w := range sandboxParallel {
		wg.Go(func() {
			for i := 0; time.Since(begin) < sandboxTime && errs[w] == nil; i++ {
				if errs[w] = one(fmt.Sprintf("w%dn%d", w, i)); errs[w] == nil {
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
	return built{PerSecond: float64(total) / took.Seconds()}, errors.Join(errs...)
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
