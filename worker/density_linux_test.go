package worker_test

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/environment"
	"github.com/lambdad/lambdad/integration/leak"
	"github.com/lambdad/lambdad/worker"
)

// A holding is what this process, its daemon, holds at one moment.
type holding struct {
	goroutines  int
	threads     int
	descriptors map[string]int // by kind
	resident    int64          // anonymous memory, bytes
	live        int64          // of it what Go has in use: heap and stacks
	kernel      int64          // of the whole host: slab, stacks, page tables, per CPU
	available   int64          // of the whole host
}

func (h holding) fds() (n int) {
	for _, k := range h.descriptors {
		n += k
	}
	return n
}

// kinds lists of what kinds each of so many environments has descriptors.
func (h holding) kinds(before holding, count int) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(h.descriptors)) {
		if d := float64(h.descriptors[k]-before.descriptors[k]) / float64(count); d > 0.4 {
			list = append(list, fmt.Sprintf("%.1f %s", d, k))
		}
	}
	return strings.Join(list, ", ")
}

// hold measures. Memory that Go could give back is given back first.
func hold(t testing.TB) holding {
	t.Helper()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	h := holding{goroutines: runtime.NumGoroutine(), descriptors: map[string]int{}, live: int64(m.HeapAlloc + m.StackInuse)}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			h.descriptors[kind(target)]++
		}
	}
	status := numbers(t, "/proc/self/status")
	h.threads, h.resident = int(status["Threads"]), status["RssAnon"]<<10
	info := numbers(t, "/proc/meminfo")
	h.kernel = (info["Slab"] + info["KernelStack"] + info["PageTables"] + info["Percpu"]) << 10
	h.available = info["MemAvailable"] << 10
	return h
}

// kind is what a descriptor is of: inode numbers and names of groups say nothing.
func kind(target string) string {
	if k, _, ok := strings.Cut(target, ":["); ok {
		return k
	}
	if strings.HasPrefix(target, "/sys/fs/cgroup/") {
		return "cgroup " + filepath.Base(target)
	}
	return target
}

// numbers reads a file of lines "Name: number".
func numbers(t testing.TB, file string) map[string]int64 {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := map[string]int64{}
	for s := bufio.NewScanner(f); s.Scan(); {
		name, rest, _ := strings.Cut(s.Text(), ":")
		if w := strings.Fields(rest); len(w) > 0 {
			if n, err := strconv.ParseInt(w[0], 10, 64); err == nil {
				m[name] = n
			}
		}
	}
	return m
}

// crowd starts n environments, of as many functions, and returns their versions
// when all are frozen and at rest.
func (n *node) crowd(t testing.TB, count int) []*lambdad.Version {
	t.Helper()
	list := make([]*lambdad.Version, count)
	next := make(chan *lambdad.Version)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for v := range next {
				if err := n.invokeVersion(t.Context(), v, `"first"`); err != nil {
					t.Errorf("%s: %v", v.Function, err)
				}
			}
		})
	}
	for i := range list {
		v := *n.version
		v.Function = "f" + strconv.Itoa(i)
		list[i] = &v
		next <- &v
	}
	close(next)
	wg.Wait()
	n.rest(t, count+1) // with the first
	return list
}

// rest waits until so many environments are frozen, measured and at rest.
func (n *node) rest(t testing.TB, count int) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		frozen := 0
		list := n.Environments()
		for _, s := range list {
			if s.State == environment.StateFrozen {
				frozen++
			}
		}
		if frozen == count && len(list) == count {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d environments frozen, want %d", frozen, len(list), count)
		}
		time.Sleep(50 * time.Millisecond)
	}
	// Measured once more and put to rest a second later, by a look every second.
	time.Sleep(3 * time.Second)
}

func (n *node) invokeVersion(ctx context.Context, v *lambdad.Version, event string) error {
	m := node{Local: n.Local, version: v}
	return m.invoke(ctx, event)
}

// TestDensity counts what each of many frozen environments, with an extension, holds
// in the daemon. The bounds are what is there: one descriptor, goroutine or buffer
// more for each environment breaks them.
func TestDensity(t *testing.T) {
	needRoot(t)
	const count = 50
	descriptors := 12 // 4 pipes, 5 sockets, the network namespace, /tmp, the freezer
	if b, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); strings.Contains(string(b), "memory") {
		descriptors += 3 // cgroup v2: a peak that was reset is the descriptor's
	}
	const goroutines, memory = 12, 200 << 10
	id := "wd" + strings.ReplaceAll(uuid.NewString(), "-", "")[:8]
	dir := t.TempDir()
	scope := leak.Scope{ID: id, Dirs: []string{filepath.Join(dir, "run")}}
	blobs, v := packages(t)
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	start, err := leak.Take(scope)
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t, id, dir, blobs, v, func(c *worker.Config) { c.IdleTimeout = time.Hour })
	first := *v
	first.Function = "first"
	if err := n.invokeVersion(t.Context(), &first, `"first"`); err != nil {
		t.Fatal(err)
	}
	n.rest(t, 1)
	before := hold(t)
	begin := time.Now()
	list := n.crowd(t, count)
	t.Logf("started and at rest after %v", time.Since(begin).Round(time.Millisecond))
	// The pool of sandboxes made ahead is being filled, and the last go to rest.
	var after holding
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		after = hold(t)
		if after.fds()-before.fds() <= descriptors*count && after.goroutines-before.goroutines <= goroutines*count || time.Now().After(end) {
			break
		}
	}
	t.Logf("counted after %v: %d descriptors, %d goroutines, %d KiB, %d threads more", time.Since(begin).Round(time.Millisecond), after.fds()-before.fds(),
		after.goroutines-before.goroutines, (after.live-before.live)>>10, after.threads-before.threads)
	if got := after.fds() - before.fds(); got > descriptors*count {
		t.Errorf("%d descriptors for %d environments, want at most %d each: %s", got, count, descriptors, after.kinds(before, count))
	}
	if got := after.goroutines - before.goroutines; got > goroutines*count {
		t.Errorf("%d goroutines for %d environments, want at most %d each", got, count, goroutines)
	}
	if got := after.live - before.live; got > memory*count {
		t.Errorf("%d KiB of heap and stacks for %d environments, want at most %d each", got>>10, count, memory>>10)
	}
	if got := after.threads - before.threads; got > count/2 {
		t.Errorf("%d threads more for %d environments", got, count)
	}
	shared(t, id)
	for _, v := range list { // all live
		if err := n.invokeVersion(t.Context(), v, `"again"`); err != nil {
			t.Error(err)
		}
	}
	if s := n.Stats(); s.Environments != count+1 || s.WaitCount != count+1 {
		t.Errorf("%d environments, %d starts for %d functions", s.Environments, s.WaitCount, count+1)
	}
	n.close(t)
	leak.Check(t, scope, start, leak.Slack{"threads": 80})
}

// shared checks that the code of a function is in memory once, however many
// environments run it: the pages of its file that processes have mapped are the same.
func shared(t *testing.T, id string) {
	t.Helper()
	var one, several int64 // KiB
	processes := 0
	found, _ := filepath.Glob("/proc/[0-9]*/smaps")
	for _, name := range found {
		if group, err := os.ReadFile(filepath.Join(filepath.Dir(name), "cgroup")); err != nil || !strings.Contains(string(group), "lambdad-"+id) {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		in := false // a mapping of the file that nobody writes to
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) >= 5 && strings.Contains(f[0], "-") {
				in = strings.HasSuffix(f[len(f)-1], "/bootstrap") && !strings.Contains(f[1], "w")
				if in && strings.Contains(f[1], "x") {
					processes++
				}
				continue
			}
			if !in || len(f) < 2 {
				continue
			}
			n, _ := strconv.ParseInt(f[1], 10, 64)
			switch f[0] {
			case "Private_Clean:", "Private_Dirty:":
				one += n
			case "Shared_Clean:", "Shared_Dirty:":
				several += n
			}
		}
	}
	t.Logf("%d processes of one program: %d KiB of its file mapped by several, %d KiB by one alone", processes, several, one)
	if processes < 2 || several == 0 || one*10 > several {
		t.Errorf("the code of a function is not shared: %d processes, %d KiB mapped by several, %d KiB by one alone", processes, several, one)
	}
}

// BenchmarkDensity starts environments until so many are frozen and prints what
// each of them costs the daemon and the host, and what a warm invocation costs among
// them: of one after the other, each frozen before, and of the same one again.
//
//	go test ./worker -run '^$' -bench Density -benchtime 1x -v
func BenchmarkDensity(b *testing.B) {
	needRoot(b)
	blobs, v := packages(b)
	for _, extensions := range []int{0, 1} {
		v := *v
		v.Layers = v.Layers[:extensions]
		for _, count := range []int{1, 100, 1000, 2000} {
			b.Run(fmt.Sprintf("extensions=%d/environments=%d", extensions, count), func(b *testing.B) {
				id := "wd" + strings.ReplaceAll(uuid.NewString(), "-", "")[:8]
				dir := b.TempDir()
				var fds unix.Rlimit
				if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &fds); err != nil {
					b.Fatal(err)
				}
				b.Logf("descriptors allowed: %d", fds.Cur)
				n := newNode(b, id, dir, blobs, &v, func(c *worker.Config) { c.IdleTimeout = time.Hour })
				defer n.close(b)
				one := v
				one.Function = "first"
				if err := n.invokeVersion(b.Context(), &one, `"first"`); err != nil {
					b.Fatal(err)
				}
				n.rest(b, 1)
				before := hold(b)
				begin := time.Now()
				list := n.crowd(b, count)
				b.Logf("started in %v", time.Since(begin).Round(time.Millisecond))
				n.report(b, before, hold(b), count, list)
			})
		}
	}
}

func (n *node) report(b *testing.B, before, after holding, count int, list []*lambdad.Version) {
	each := func(now, was int64) float64 { return float64(now-was) / float64(count) }
	b.ReportMetric(each(after.resident, before.resident)/1024, "KiB/env")
	b.ReportMetric(each(after.live, before.live)/1024, "liveKiB/env")
	b.ReportMetric(each(after.kernel, before.kernel)/1024, "kernelKiB/env")
	b.ReportMetric(each(before.available, after.available)/1024, "hostKiB/env")
	b.ReportMetric(each(int64(after.goroutines), int64(before.goroutines)), "goroutines/env")
	b.ReportMetric(each(int64(after.fds()), int64(before.fds())), "fds/env")
	b.ReportMetric(float64(after.threads), "threads")
	b.Logf("descriptors of each: %s", after.kinds(before, count))
	median := func(pause time.Duration, pick func(i int) *lambdad.Version) float64 {
		var took []time.Duration
		for i := range 300 {
			begin := time.Now()
			if err := n.invokeVersion(b.Context(), pick(i), `{}`); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(begin))
			time.Sleep(pause)
		}
		slices.Sort(took)
		return float64(took[len(took)/2].Nanoseconds()) / 1000
	}
	b.ReportMetric(median(0, func(int) *lambdad.Version { return list[0] }), "warm-µs")
	b.ReportMetric(median(8*time.Millisecond, func(i int) *lambdad.Version { return list[(i*7)%len(list)] }), "thawed-µs")
	b.ReportMetric(0, "ns/op")
}
