package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sort"
	"strings"
	"time"
)

// A report is the table in the making.
type report struct{ b strings.Builder }

func (r *report) text() string { return r.b.String() }

func (r *report) line(format string, v ...any) { fmt.Fprintf(&r.b, format+"\n", v...) }

// table writes a table with its heading.
func (r *report) table(title, note string, head []string, rows [][]string) {
	r.line("\n### %s\n", title)
	if note != "" {
		r.line("%s\n", note)
	}
	r.line("| %s |", strings.Join(head, " | "))
	r.line("|%s", strings.Repeat("---|", len(head)))
	for _, row := range rows {
		r.line("| %s |", strings.Join(row, " | "))
	}
}

// host says where all this was measured.
func (r *report) host(dir string, s *server) {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	mem, _ := fields("/proc/meminfo")
	load, _ := os.ReadFile("/proc/loadavg")
	python, _ := exec.Command("python3", "--version").Output()
	r.line("## lambdad %s, measured %s\n", s.version, time.Now().UTC().Format("2006-01-02 15:04 UTC"))
	r.line("%s, %d cores, %.0f GiB; Linux %s, %s; %s, %s; isolation tier %s; load before: %s.",
		cpuModel(), runtime.NumCPU(), float64(mem["MemTotal"])/(1<<30), strings.TrimSpace(string(kernel)), cgroups(),
		runtime.Version(), strings.TrimSpace(string(python)), s.tier, strings.Join(strings.Fields(string(load))[:min(3, len(strings.Fields(string(load))))], " "))
	r.line("Client, daemons and runtimes share the machine; all were measured by turns in this one run.")
	var busy float64
	if fmt.Sscan(string(load), &busy); busy > float64(runtime.NumCPU())/2 {
		r.line("**The machine was busy with other work: medians and ratios say little, p10 says more.**")
	}
}

func micros(d time.Duration) string { return fmt.Sprintf("%.0f µs", float64(d)/1e3) }
func millis(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/1e6) }

// latencies writes samples, each as a multiple of the first.
func (r *report) latencies(title, note string, samples []*sample) {
	var rows [][]string
	for _, s := range samples {
		ratio := func(q float64) string {
			return fmt.Sprintf("%.2f", float64(s.quantile(q))/float64(samples[0].quantile(q)))
		}
		rows = append(rows, []string{s.name, micros(s.median()), "**" + ratio(0.5) + "**", micros(s.quantile(0.1)), ratio(0.1),
			micros(s.quantile(0.99)), ratio(0.99), fmt.Sprint(len(s.times))})
	}
	r.table(title, note, []string{"one client, keep-alive", "median", "÷ floor", "p10", "÷ floor", "p99", "÷ floor", "requests"}, rows)
}

func (r *report) warm(samples []*sample) {
	r.latencies("Warm invocation", "Promise: Go without extensions ≤ 1.5 × the floor.", samples)
}

func (r *report) paused(samples []*sample) {
	r.latencies("Warm invocation after a pause", fmt.Sprintf("%v between requests, so that every environment freezes and is thawed; the floor's processes sleep too.", pause), samples)
}

func (r *report) rates(rates []*rate) {
	var rows [][]string
	for _, x := range rates {
		rows = append(rows, []string{x.name, fmt.Sprintf("%.0f/s", x.median()), fmt.Sprintf("%.2f", x.median()/rates[0].median())})
	}
	r.table("Throughput", fmt.Sprintf("%d clients at once; the floor has %d runtimes. Median of the turns.", clients, clients),
		[]string{"", "invocations", "÷ floor"}, rows)
}

func (r *report) cold(list []*cold) {
	var rows [][]string
	for _, c := range list {
		row := []string{c.name, millis(c.process.median()), millis(c.process.quantile(0.9)), "", "", ""}
		if len(c.whole.times) > 0 {
			row[3], row[4] = millis(c.whole.median()), millis(c.whole.quantile(0.9))
		}
		if c.first > 0 {
			row[5] = millis(c.first)
		}
		rows = append(rows, row)
	}
	r.table("Cold start", "The platform's part ends where main of the runtime process begins (its language's own start included). Promise: ≤ 10 ms. Unpacked once per version: the first of all is told apart.",
		[]string{"", "to runtime process", "p90", "to answer", "p90", "first of all"}, rows)
}

func (r *report) memory(m *memory) {
	kib := func(x float64) string { return fmt.Sprintf("%.0f KiB", x/1024) }
	var states []string
	for s, n := range m.states {
		states = append(states, fmt.Sprintf("%d %s", n, s))
	}
	sort.Strings(states)
	r.table("Memory of a resting environment", fmt.Sprintf("Go function without extensions, %.1f processes each; the average of %d environments (%s).", m.processes, m.environments, strings.Join(states, ", ")),
		[]string{"", "each"}, [][]string{
			{"by lambdad's own count (ps)", kib(m.accounted)},
			{"its processes, resident", kib(m.rss)},
			{"its processes, shared pages divided", kib(m.pss)},
			{"growth of the daemon (anonymous memory)", kib(m.daemon)},
			{"growth of the kernel (slab, stacks, page tables, per CPU)", kib(m.kernel)},
			{"what the host has less (MemAvailable)", kib(m.available)},
		})
}

func (r *report) sandboxes(perSecond float64, tier string, err error) {
	value := fmt.Sprintf("%.0f/s", perSecond)
	if err != nil {
		value = "not measured: " + strings.ReplaceAll(err.Error(), "|", "/")
	}
	if tier != "" {
		tier = "tier " + tier + ", "
	}
	r.table("Sandboxes created and destroyed", "Two at a time; each runs a static program to its end.", []string{"", ""},
		[][]string{{tier + "no outbound network, own /tmp", value}})
}
