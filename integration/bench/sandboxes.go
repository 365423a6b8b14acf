package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/namespace"
)

// sandboxRole makes the program the one that builds sandboxes: a driver is best
// alone in its process. Its value is a directory and the probe, separated by a
// colon.
const sandboxRole = "LAMBDAD_BENCH_SANDBOXES"

// How long sandboxes are built, and how many at once.
const (
	sandboxTime     = 3 * time.Second
	sandboxParallel = 2
)

// sandboxes builds and destroys as many as it can.
func sandboxes(ctx context.Context, b *bench, r *section) error {
	r.title = "Sandboxes created and destroyed"
	dir, err := os.MkdirTemp(b.dir, "sandboxes-")
	if err != nil {
		return err
	}
	n, tier, err := measureSandboxes(ctx, dir, b.probe)
	if err != nil {
		return err
	}
	r.note("Two at a time; each runs a static program to its end.")
	r.table([]string{"", ""}, [][]string{{"tier " + tier + ", no outbound network, own /tmp", fmt.Sprintf("%.0f/s", n)}})
	return nil
}

// measureSandboxes returns how many sandboxes can be created, used and destroyed in
// a second, and the tier.
func measureSandboxes(ctx context.Context, dir, probe string) (perSecond float64, tier string, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, "", err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), sandboxRole+"="+dir+":"+probe)
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
	arg := os.Getenv(sandboxRole)
	if arg == "" {
		return
	}
	dir, probe, _ := strings.Cut(arg, ":")
	n, tier, err := buildSandboxes(dir, filepath.Dir(probe))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(n, tier)
	os.Exit(0)
}

func buildSandboxes(dir, program string) (perSecond float64, tier string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, "", err
	}
	ctx := context.Background()
	d, err := namespace.New(ctx, namespace.Config{ID: "beac4000", Dir: dir, Logger: slog.New(slog.DiscardHandler)})
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
				if errs[w] = oneSandbox(ctx, d, fmt.Sprintf("w%dn%d", w, i), program); errs[w] == nil {
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
func oneSandbox(ctx context.Context, d sandbox.Driver, id, program string) (err error) {
	s, err := d.Create(ctx, sandbox.Spec{
		ID: id, TmpBytes: 512 << 20, MemoryBytes: 512 << 20,
		Mounts: []sandbox.Mount{{Target: "/var/task", Sources: []string{program}}, {Target: "/opt"}, {Target: "/var/runtime", Sources: []string{program}}},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Destroy(ctx)) }()
	p, err := s.Start(ctx, sandbox.Command{Party: "runtime", Path: "/var/task/bootstrap", Args: []string{"bootstrap", "exit"}})
	if err != nil {
		return err
	}
	<-p.Done()
	return nil
}
