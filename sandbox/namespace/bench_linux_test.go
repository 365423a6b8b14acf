//go:build amd64 || arm64

package namespace

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

func benchSpec(probe string, i int) sandbox.Spec {
	return sandbox.Spec{ID: "b" + strconv.Itoa(i), TmpBytes: 512 << 20, MemoryBytes: 512 << 20, Mounts: []sandbox.Mount{
		{Target: "/var/task", Sources: []string{probe}}, {Target: "/opt"}, {Target: "/var/runtime", Sources: []string{probe}},
	}}
}

// life is one sandbox from nothing to nothing, with its three times. Its program ends
// at once, having written to /tmp if args say so.
func life(b *testing.B, d *Driver, probe string, i int, args ...string) (create, start, destroy time.Duration) {
	ctx := context.Background()
	t0 := time.Now()
	s, err := d.Create(ctx, benchSpec(probe, i))
	if err != nil {
		b.Error(err)
		return
	}
	t1 := time.Now()
	p, err := s.Start(ctx, sandbox.Command{Party: "runtime", Path: "/var/task/probe", Args: append([]string{"probe"}, args...)})
	if err != nil {
		b.Error(err)
		return
	}
	t2 := time.Now()
	<-p.Done()
	t3 := time.Now()
	if e := p.Exit(); e != (sandbox.Exit{}) {
		b.Errorf("the program ended with %s", e)
	}
	if err := s.Destroy(ctx); err != nil {
		b.Error(err)
	}
	return t1.Sub(t0), t2.Sub(t1), time.Since(t3)
}

// BenchmarkLife makes sandboxes, runs a static Go program in each to its end and
// destroys them, one after the other or two at a time: with /tmp on a disk, in memory
// (tmp in memory) or written (everything on); with outbound network only where
// everything is on. The tenth percentile is what it takes when nobody else is about.
func BenchmarkLife(b *testing.B) {
	exit := []string{"exit", "0"}
	write := []string{"put", "/tmp/x", "x"}
	for _, c := range []struct {
		name     string
		cfg      Config
		pause    time.Duration
		parallel int
		args     []string
	}{
		{"on demand", Config{Pool: -1}, 0, 1, exit},
		{"on demand, tmp in memory", Config{Pool: -1, Dir: inMemory}, 0, 1, exit},
		{"on demand after a quiet gap", Config{Pool: -1}, 300 * time.Millisecond, 1, exit},
		{"on demand, everything on", Config{Pool: -1, Egress: sandbox.EgressAll}, 0, 1, write},
		{"pool", Config{Pool: 4}, 20 * time.Millisecond, 1, exit},
		{"pool, tmp in memory", Config{Pool: 4, Dir: inMemory}, 20 * time.Millisecond, 1, exit},
		{"pool after a quiet gap", Config{Pool: 2}, 300 * time.Millisecond, 1, exit},
		{"on demand, 2 at once", Config{Pool: -1}, 0, 2, exit},
		{"on demand, 2 at once, tmp in memory", Config{Pool: -1, Dir: inMemory}, 0, 2, exit},
		{"pool, 2 at once", Config{Pool: 4}, 0, 2, exit},
		{"pool, 2 at once, tmp in memory", Config{Pool: 4, Dir: inMemory}, 0, 2, exit},
		{"pool, 2 at once, everything on", Config{Pool: 4, Egress: sandbox.EgressAll}, 0, 2, write},
	} {
		b.Run(c.name, func(b *testing.B) {
			d := open(b, c.cfg)
			if c.cfg.Egress != "" && d.egress == nil {
				b.Skip("this host forwards nothing for sandboxes")
			}
			probe := sandboxtest.BuildProbe(b)
			var all [3][]time.Duration
			began := time.Now()
			b.ResetTimer()
			if c.parallel > 1 {
				b.SetParallelism(1)
				b.RunParallel(func(pb *testing.PB) {
					for i := 0; pb.Next(); i++ {
						life(b, d, probe, i, c.args...)
					}
				})
				b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "sandboxes/s")
				return
			}
			for i := range b.N {
				if c.pause > 0 {
					b.StopTimer()
					time.Sleep(c.pause)
					b.StartTimer()
				}
				create, start, destroy := life(b, d, probe, i, c.args...)
				for i, t := range []time.Duration{create, start, destroy} {
					all[i] = append(all[i], t)
				}
			}
			for i, name := range []string{"create", "start", "destroy"} {
				slices.Sort(all[i])
				b.ReportMetric(float64(all[i][len(all[i])/2].Microseconds()), name+"-median-µs")
				b.ReportMetric(float64(all[i][len(all[i])/10].Microseconds()), name+"-p10-µs")
			}
		})
	}
}

func running(b *testing.B, parties int) sandbox.Sandbox {
	d := open(b, Config{Pool: -1})
	s, err := d.Create(context.Background(), benchSpec(sandboxtest.BuildProbe(b), 0))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Destroy(context.Background()); err != nil {
			b.Error(err)
		}
	})
	for i := range parties {
		if _, err := s.Start(context.Background(), sandbox.Command{Party: fmt.Sprintf("p%d", i), Path: "/var/task/probe", Args: []string{"probe", "sleep"}}); err != nil {
			b.Fatal(err)
		}
	}
	return s
}

func BenchmarkFreeze(b *testing.B) {
	s := running(b, 2).(sandbox.Freezer)
	ctx := context.Background()
	var freeze time.Duration
	for b.Loop() {
		t := time.Now()
		if err := s.Freeze(ctx); err != nil {
			b.Fatal(err)
		}
		freeze += time.Since(t)
		if err := s.Thaw(ctx); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(freeze.Nanoseconds())/float64(b.N), "freeze-ns")
	b.ReportMetric((float64(b.Elapsed().Nanoseconds())-float64(freeze.Nanoseconds()))/float64(b.N), "thaw-ns")
}

func BenchmarkUsage(b *testing.B) {
	for _, parties := range []int{1, 2, 4} {
		b.Run(strconv.Itoa(parties), func(b *testing.B) {
			s := running(b, parties)
			for b.Loop() {
				if _, err := s.Usage(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkMemory reports what one idle sandbox without programs costs.
func BenchmarkMemory(b *testing.B) {
	d := open(b, Config{Pool: -1})
	probe := sandboxtest.BuildProbe(b)
	const n = 100
	for b.Loop() {
		daemon, free := rss(b), available(b)
		var list []sandbox.Sandbox
		var init, waiting int64
		for i := range n {
			s, err := d.Create(context.Background(), benchSpec(probe, i))
			if err != nil {
				b.Fatal(err)
			}
			list = append(list, s)
		}
		init = private(b, list[0].(freezable).shell.pid)
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", list[0].(freezable).shell.pid))
		if f := bytes.Fields(children); len(f) > 0 {
			pid, _ := strconv.Atoi(string(f[0]))
			waiting = private(b, pid)
		}
		b.ReportMetric(float64(rss(b)-daemon)/n/1024, "daemon-KiB")
		b.ReportMetric(float64(free-available(b))/n/1024, "whole-KiB")
		b.ReportMetric(float64(init)/1024, "init-KiB")
		b.ReportMetric(float64(waiting)/1024, "waiting-KiB")
		for _, s := range list {
			if err := s.Destroy(context.Background()); err != nil {
				b.Error(err)
			}
		}
	}
}

func kilobytes(b *testing.B, file, field string) int64 {
	data, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n << 10
		}
	}
	b.Fatalf("%s has no %s", file, field)
	return 0
}

func rss(b *testing.B) int64 { return kilobytes(b, "/proc/self/status", "RssAnon") }

func available(b *testing.B) int64 { return kilobytes(b, "/proc/meminfo", "MemAvailable") }

// private is what a process has resident for itself.
func private(b *testing.B, pid int) int64 {
	f := filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup")
	return kilobytes(b, f, "Private_Dirty") + kilobytes(b, f, "Private_Clean")
}
