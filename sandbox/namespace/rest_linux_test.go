//go:build amd64 || arm64

package namespace

import (
	"context"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lambdad/lambdad/sandbox"
)

// descriptors counts those of this process by what they are of.
func descriptors(t testing.TB) (n int, kinds map[string]int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	kinds = map[string]int{}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // the one this is read by
		}
		n++
		k, _, _ := strings.Cut(target, ":[")
		if strings.HasPrefix(k, "/sys/fs/cgroup/") {
			k = k[strings.LastIndex(k, "/")+1:]
		}
		kinds[k]++
	}
	return n, kinds
}

// TestRest counts what sandboxes hold that are frozen and at rest, with one process
// each: what must be there for the process (two pipes), for its end (the init's
// socket, the network namespace, the file system of /tmp) and to be thawed at once.
// Used meanwhile, they hold no more; woken, they do all they did.
func TestRest(t *testing.T) {
	d := open(t, Config{Pool: -1})
	const count, most = 10, 6
	allowed := most
	if d.cgroups.unified {
		allowed += 2 // a peak that was reset is the descriptor's, of the sandbox and of its party
	}
	ctx := t.Context()
	before, kindsBefore := descriptors(t)
	var boxes []freezable
	var procs []sandbox.Process
	for i := range count {
		sb, err := d.Create(ctx, sandbox.Spec{ID: "rest" + strconv.Itoa(i), Mounts: []sandbox.Mount{{Target: "/opt"}}, MemoryBytes: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer sb.Destroy(context.Background())
		b, ok := sb.(freezable)
		if !ok {
			t.Skip("this host cannot freeze")
		}
		p, err := sb.Start(ctx, sandbox.Command{Party: "runtime", Path: "/bin/sleep", Args: []string{"sleep", "1000"}, Stdout: io.Discard, Stderr: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sb.Usage(); err != nil {
			t.Fatal(err)
		}
		if err := b.Freeze(ctx); err != nil {
			t.Fatal(err)
		}
		boxes, procs = append(boxes, b), append(procs, p)
	}
	check := func(when string) {
		t.Helper()
		n, kinds := descriptors(t)
		if n-before <= allowed*count {
			return
		}
		t.Errorf("%s: %d descriptors for %d sandboxes, want at most %d each", when, n-before, count, allowed)
		for _, k := range slices.Sorted(maps.Keys(kinds)) {
			if more := kinds[k] - kindsBefore[k]; more > 0 {
				t.Logf("  %d of %s", more, k)
			}
		}
	}
	for _, b := range boxes {
		b.Rest()
	}
	check("at rest")
	for i, b := range boxes {
		u, err := b.Usage()
		if err != nil || u.Processes != 1 || u.Memory <= 0 {
			t.Errorf("use at rest: %+v, %v", u, err)
		}
		if procs[i].PID() <= 0 {
			t.Error("a process without a pid")
		}
		if entries, err := b.ReadDir("/opt"); err != nil || len(entries) != 0 {
			t.Errorf("/opt: %v, %v", entries, err)
		}
	}
	check("measured at rest")
	for _, b := range boxes {
		if err := b.Thaw(ctx); err != nil {
			t.Fatal(err)
		}
		b.Rest() // awake: nothing to give back
		if err := b.SetCPU(1); err != nil {
			t.Error(err)
		}
		p, err := b.Start(ctx, sandbox.Command{Party: "runtime", Path: "/bin/true"})
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		if err := b.Freeze(ctx); err != nil {
			t.Fatal(err)
		}
		if u, err := b.Usage(); err != nil || u.Processes != 1 {
			t.Errorf("use after a thaw: %+v, %v", u, err)
		}
		b.Rest()
	}
	check("at rest again")
	for i, b := range boxes {
		if err := b.Reset(ctx); err != nil {
			t.Fatal(err)
		}
		<-procs[i].Done()
		if err := b.Destroy(ctx); err != nil {
			t.Error(err)
		}
		b.Rest() // harmless
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		n, _ := descriptors(t) // file systems of /tmp end in the background
		if n <= before {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d descriptors after the end, %d before", n, before)
		}
	}
}

// TestBurst: what is below a core may use what it left of one period in the next, and
// the quota can be lowered and lifted all the same.
func TestBurst(t *testing.T) {
	d := open(t, Config{Pool: -1})
	sb, err := d.Create(t.Context(), sandbox.Spec{ID: "burst"})
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Destroy(context.Background())
	b, ok := sb.(*box)
	if f, freezes := sb.(freezable); freezes {
		b, ok = f.box, true
	}
	if !ok {
		t.Fatalf("a sandbox of type %T", sb)
	}
	g := b.shell.group
	quotaFile, burstFile := g.path(g.h.v1["cpu"], "cpu.cfs_quota_us"), g.path(g.h.v1["cpu"], "cpu.cfs_burst_us")
	if g.h.unified {
		quotaFile, burstFile = g.path(g.h.v2, "cpu.max"), g.path(g.h.v2, "cpu.max.burst")
	}
	if _, err := os.Stat(burstFile); err != nil {
		t.Skip("this kernel knows no bursts")
	}
	for _, c := range []struct {
		cores        float64
		quota, burst string
	}{{1, "20000", "0"}, {0.5, "10000", "10000"}, {0.1, "2000", "2000"}, {0, "-1", "2000"}, {0.1, "2000", "2000"}, {1, "20000", "2000"}, {2, "40000", "2000"}, {0.3, "6000", "6000"}} {
		if err := sb.SetCPU(c.cores); err != nil {
			t.Fatalf("%v cores: %v", c.cores, err)
		}
		quota, err := os.ReadFile(quotaFile)
		if err != nil {
			t.Fatal(err)
		}
		burst, err := os.ReadFile(burstFile)
		if err != nil {
			t.Fatal(err)
		}
		q, _, _ := strings.Cut(strings.TrimSpace(string(quota)), " ")
		if q == "max" {
			q = "-1"
		}
		if q != c.quota || strings.TrimSpace(string(burst)) != c.burst {
			t.Errorf("%v cores: quota %s, burst %s, want %s and %s", c.cores, q, strings.TrimSpace(string(burst)), c.quota, c.burst)
		}
	}
}
