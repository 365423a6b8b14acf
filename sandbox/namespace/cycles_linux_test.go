//go:build amd64 || arm64

package namespace

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

// holdings are what may not grow with the number of sandboxes there have been.
type holdings struct {
	memory, descriptors, threads, goroutines int
	groups, dying                            int // control groups of ours; removed ones the kernel still has
	networks, loops, mounts                  int
	kernel                                   int // memory the kernel cannot reclaim, of everybody here, in KiB
}

func (h holdings) String() string {
	return fmt.Sprintf("memory %d KiB, descriptors %d, threads %d, goroutines %d, groups %d, dying groups %d, network namespaces %d, loop devices %d, mounts %d; kernel, with everybody's, %d KiB",
		h.memory, h.descriptors, h.threads, h.goroutines, h.groups, h.dying, h.networks, h.loops, h.mounts, h.kernel)
}

// holdingsOf looks when what is ending has ended.
func holdingsOf(t *testing.T, d *Driver) (h holdings) {
	t.Helper()
	runtime.GC()
	time.Sleep(500 * time.Millisecond)
	runtime.GC()
	status, _ := os.ReadFile("/proc/self/status")
	meminfo, _ := os.ReadFile("/proc/meminfo")
	h.memory, h.threads = int(field(status, "\nRssAnon:")), int(field(status, "\nThreads:"))
	h.kernel = int(field(meminfo, "\nSUnreclaim:") + field(meminfo, "\nKernelStack:") + field(meminfo, "\nPercpu:"))
	fds, _ := os.ReadDir("/proc/self/fd")
	h.descriptors, h.goroutines = len(fds), runtime.NumGoroutine()
	h.networks, h.loops = networks(t), len(loops(t, d.cfg.Dir))
	h.groups = len(groupsLeft(t, d.cfg.ID))
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	h.mounts = bytes.Count(mounts, []byte("\n"))
	for _, root := range d.cgroups.roots() {
		b, err := os.ReadFile(filepath.Join(root, "cgroup.stat"))
		if err == nil {
			h.dying += int(field(append([]byte("\n"), b...), "\nnr_dying_descendants "))
		}
	}
	return h
}

// TestCycles creates, uses and destroys sandboxes one after the other and insists
// that nothing grows: some in every run of the tests, 10,000 by make cycles.
func TestCycles(t *testing.T) {
	n := 150
	if s := os.Getenv("LAMBDAD_CYCLES"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	d := open(t, Config{Pool: 2}) // that the pool follows is another test's
	probe := sandboxtest.BuildProbe(t)
	once := func(i int) {
		c := context.Background()
		b, err := d.Create(c, sandbox.Spec{ID: fmt.Sprintf("c%d", i), TmpBytes: 512 << 20, MemoryBytes: 128 << 20,
			Mounts: []sandbox.Mount{{Target: "/var/task", Sources: []string{probe}}, {Target: "/opt"}}})
		if err != nil {
			t.Fatal(err)
		}
		l, err := b.Listen("127.0.0.1:9001")
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		p, err := b.Start(c, sandbox.Command{Party: "runtime", Path: "/var/task/probe", Args: []string{"probe", "echo", "hi"}, Stdout: &out})
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		<-p.Drained()
		if _, err := b.Usage(); err != nil {
			t.Error(err)
		}
		l.Close()
		if err := b.Destroy(c); err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(out.String()) != "hi" {
			t.Fatalf("output %q", out.String())
		}
	}
	for i := range 100 { // what is made once
		once(-1 - i)
	}
	before := holdingsOf(t, d)
	t.Logf("before: %v", before)
	began := time.Now()
	for i := range n {
		once(i)
		if (i+1)%1000 == 0 {
			t.Logf("after %d: %v", i+1, holdingsOf(t, d))
		}
	}
	took := time.Since(began)
	after := holdingsOf(t, d)
	for range 20 { // kernel and runtime let go of what is ending when they find the time
		if after.descriptors <= before.descriptors && after.dying <= before.dying+50 && after.networks <= before.networks && after.loops <= before.loops && after.groups <= before.groups {
			break
		}
		after = holdingsOf(t, d)
	}
	t.Logf("after %d cycles, %.0f/s: %v", n, float64(n)/took.Seconds(), after)
	for _, c := range []struct {
		what                string
		before, after, more int
	}{
		{"anonymous memory in KiB", before.memory, after.memory, 16 << 10},
		{"descriptors", before.descriptors, after.descriptors, 4},
		{"threads", before.threads, after.threads, 10},
		{"goroutines", before.goroutines, after.goroutines, 4},
		{"control groups", before.groups, after.groups, 16}, // the pool may be in another state
		{"dying control groups", before.dying, after.dying, 50},
		{"network namespaces", before.networks, after.networks, 2},
		{"loop devices", before.loops, after.loops, 2},
		{"mounts", before.mounts, after.mounts, 4},
	} {
		if c.after > c.before+c.more {
			t.Errorf("%s grew from %d to %d in %d cycles; want at most %d more", c.what, c.before, c.after, n, c.more)
		}
	}
}
