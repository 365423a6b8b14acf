package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// A report is the text in the making.
type report struct {
	what     string // before the heading
	host     string
	version  string // of lambdad
	tier     string
	sections []*section
	verdicts map[string]verdict
	warnings []string
	idle     []float64 // shares of the processor that were to be had between turns
	pace     map[pace]float64
}

// A section is what one part of the benchmark says.
type section struct {
	name, title string
	body        strings.Builder
	charts      []chart
}

func (r *report) section(name string) *section {
	s := &section{name: name, title: name}
	r.sections = append(r.sections, s)
	return s
}

// note writes a paragraph.
func (s *section) note(format string, v ...any) {
	fmt.Fprintf(&s.body, "\n%s\n", strings.TrimSpace(fmt.Sprintf(format, v...)))
}

// table writes a table.
func (s *section) table(head []string, rows [][]string) {
	fmt.Fprintf(&s.body, "\n| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	for _, row := range rows {
		for i, cell := range row {
			row[i] = strings.NewReplacer("|", "/", "\n", " ").Replace(cell)
		}
		fmt.Fprintf(&s.body, "| %s |\n", strings.Join(row, " | "))
	}
}

// A promise is a row of the table of targets.
type promise struct {
	key, what, target string
	by                pace
}

// A pace is a floor that says how fast a machine is: targets in absolute terms were set
// beside one of this value.
type pace string

const (
	byTime pace = "µs for the two-hop net/http floor, one caller"
	byRate pace = "/s for the two-hop net/http floor, 4 callers"
)

// paces are the floors of the machine on which the targets were set.
var paces = map[pace]float64{byTime: 240, byRate: 6900}

// promises are what lambdad is to keep, in the order they are shown.
var promises = []promise{
	{"warm", "Warm invocation, Go, no extensions", "≤ 1.25 × the two-hop net/http floor", ""},
	{"rie", "The same, against AWS's emulator", "< 1 × the emulator", ""},
	{"answer", "Each further extension, on the caller's answer", "≤ 30 µs", byTime},
	{"end", "Each further extension, on the end of the invoke phase", "≤ 60 µs", byTime},
	{"go", "Throughput, 4 environments, Go", "≥ 7,000/s", byRate},
	{"python", "Throughput, 4 environments, Python", "≥ 5,500/s", byRate},
	{"node", "Throughput, 4 environments, Node.js", "≥ 3,000/s", byRate},
	{"frozen", "Freezing, on the warm median", "≤ 60 µs with cgroup v2, ≤ 220 µs with v1", byTime},
	{"close", "Freezing, where requests follow each other closely", "none", ""},
	{"pool", "Cold start, the platform's part, from the pool", "≤ 1.5 ms", byTime},
	{"demand", "Cold start, the platform's part, built on demand", "≤ 3 ms", byTime},
	{"shut", "Sandboxes, no outbound network, /tmp never written", "≥ 400/s", byRate},
	{"open", "Sandboxes, everything on", "≥ 200/s", byRate},
	{"memory", "A frozen environment, the daemon's own memory", "≤ 200 KiB", ""},
	{"lines", "Log lines through one environment to one subscriber", "≥ 100,000/s, none lost", ""},
	{"get", "GetFunction", "≤ 1 ms", ""},
	{"create", "CreateFunction, 10 MB zip", "bounded by unzip", ""},
}

// A verdict is what was measured of a promise.
type verdict struct {
	value string
	held  string
	judge func(scale float64) (bound, held string) // nil: has no bound that could be scaled
}

// judge says whether a measured value keeps a promise: at most bound or, with least,
// at least. Where the bound lies within the confidence interval, it says so.
func (r *report) judge(key, format string, e estimate, bound float64, least bool) {
	judge := func(scale float64) (_, held string) {
		bound := bound * scale
		keeps := e.value <= bound
		if least {
			keeps = e.value >= bound
		}
		held = "not held"
		if keeps {
			held = "held"
		}
		if e.low < bound && bound < e.high {
			held += ", within the noise"
		}
		return fmt.Sprintf(strings.ReplaceAll(format, "+", ""), bound), held
	}
	_, held := judge(1)
	r.put(key, verdict{e.format(format), held, judge})
}

func (r *report) verdict(key, value, held string) { r.put(key, verdict{value, held, nil}) }

func (r *report) put(key string, v verdict) {
	if !slices.ContainsFunc(promises, func(p promise) bool { return p.key == key }) {
		panic("no promise " + key)
	}
	if r.verdicts == nil {
		r.verdicts = map[string]verdict{}
	}
	r.verdicts[key] = v
}

// paced notes how fast this machine is.
func (r *report) paced(by pace, value float64) {
	if r.pace == nil {
		r.pace = map[pace]float64{}
	}
	r.pace[by] = value
}

// begin notes where all this is measured.
func (r *report) begin() {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	mem, _ := fields("/proc/meminfo")
	load, _ := os.ReadFile("/proc/loadavg")
	python, _ := exec.Command("python3", "--version").Output()
	node, _ := exec.Command("node", "--version").Output()
	loads := strings.Fields(string(load))
	said := []string{runtime.Version()}
	for _, s := range []string{string(python), "Node " + string(node)} {
		if s = strings.TrimSpace(s); s != "" && s != "Node" {
			said = append(said, s)
		}
	}
	r.host = fmt.Sprintf("%s, %d cores, %.0f GiB; Linux %s, %s; %s; load before: %s",
		cpuModel(), runtime.NumCPU(), float64(mem["MemTotal"])/(1<<30), strings.TrimSpace(string(kernel)), cgroups(),
		strings.Join(said, ", "), strings.Join(loads[:min(3, len(loads))], " "))
}

// server notes what is measured.
func (r *report) server(s *server) { r.version, r.tier = s.version, s.tier }

// warned notes what the log of a server says, each once. Every line begins with its
// time.
func (r *report) warned(log string) {
	for line := range strings.Lines(log) {
		if _, after, ok := strings.Cut(line, "level=WARN "); ok {
			line = after
		}
		if line = strings.TrimSpace(line); !slices.Contains(r.warnings, line) {
			r.warnings = append(r.warnings, line)
		}
	}
}

// quietEnough is the share of the processor below which a run says that the machine
// was busy with other work.
const quietEnough = 0.9

// charts are those of all sections.
func (r *report) charts() (list []chart) {
	for _, s := range r.sections {
		list = append(list, s.charts...)
	}
	return list
}

// caption is what a picture of the report says of itself.
func (r *report) caption() string {
	return fmt.Sprintf("lambdad %s, %s, %d cores, tier %s", r.version, time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), r.tier)
}

// write puts the report into the file <to>.md, between the lines that say so, and its
// picture beside it.
func (r *report) write(to, region string) error {
	old, err := os.ReadFile(to + ".md")
	if err != nil {
		return err
	}
	name := to
	if region != "bench" {
		name += "-" + region
	}
	text := r.text()
	if list := r.charts(); len(list) > 0 {
		if err := os.WriteFile(name+".svg", []byte(picture(r.caption(), list)), 0o644); err != nil {
			return err
		}
		// After the paragraph that says where this was measured.
		file := filepath.Base(name) + ".svg"
		text = strings.Replace(text, "\n### ", fmt.Sprintf("\n![What was measured, as a picture](%s)\n\n### ", file), 1)
	}
	now, err := replaced(string(old), region, text)
	if err != nil {
		return fmt.Errorf("%s.md: %w", to, err)
	}
	return os.WriteFile(to+".md", []byte(now), 0o644)
}

// replaced has what is between the marks of a region replaced.
func replaced(text, region, by string) (string, error) {
	begin, end := "<!-- begin "+region+" -->\n", "<!-- end "+region+" -->\n"
	before, rest, ok := strings.Cut(text, begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return "", fmt.Errorf("no lines %q and %q", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return before + begin + "\n" + by + "\n" + end + after, nil
}

// text is the whole report.
func (r *report) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "## %slambdad %s, measured %s\n\n%s; isolation tier %s.\n", r.what, r.version, time.Now().UTC().Format("2006-01-02 15:04 UTC"), r.host, r.tier)
	b.WriteString("Client, daemons and runtimes share the machine; all are measured by turns in this one run. A ratio is the median of\n" +
		"those of each turn, in parentheses its 95 % interval.\n")
	if len(r.idle) > 0 {
		share := quantile(r.idle, 0.5)
		fmt.Fprintf(&b, "Between turns every core gave %.0f %% of the time asked for (a tenth of the times less than %.0f %%).\n", 100*share, 100*quantile(r.idle, 0.1))
		if share < quietEnough {
			b.WriteString("\n**The machine was busy with other work: times say little, ratios and their intervals more.**\n")
		}
	}
	if len(r.warnings) > 0 {
		b.WriteString("\nThe server warned:\n")
		for _, w := range r.warnings {
			fmt.Fprintf(&b, "- `%s`\n", strings.ReplaceAll(w, "`", "'"))
		}
	}
	if len(r.verdicts) > 0 {
		s := &section{}
		var rows [][]string
		for _, p := range promises {
			if v, ok := r.verdicts[p.key]; ok {
				row := []string{p.what, p.target, v.value, v.held, "", ""}
				if here := r.pace[p.by]; here > 0 && v.judge != nil {
					row[4], row[5] = v.judge(here / paces[p.by])
				}
				rows = append(rows, row)
			}
		}
		if len(r.pace) > 0 {
			var said []string
			for _, by := range []pace{byTime, byRate} {
				if here := r.pace[by]; here > 0 {
					said = append(said, fmt.Sprintf("%.0f %s (here %.0f)", paces[by], by, here))
				}
			}
			s.note("The targets were set on a machine that gave %s. *In proportion* has them multiplied by what the floors of this run say of this machine.", strings.Join(said, " and "))
		}
		s.table([]string{"", "target", "measured", "", "in proportion", ""}, rows)
		b.WriteString("\n### Targets\n" + s.body.String())
	}
	for _, s := range r.sections {
		fmt.Fprintf(&b, "\n### %s\n%s", s.title, s.body.String())
	}
	return b.String()
}

// bars are those of samples: medians, and from p10 to p90.
func bars(samples []*sample) (list []bar) {
	for _, x := range samples {
		us := func(q float64) float64 { return float64(x.quantile(q)) / 1e3 }
		list = append(list, bar{kindOf(x.name), x.name, us(0.5), us(0.1), us(0.9)})
	}
	return list
}

func micros(d time.Duration) string { return fmt.Sprintf("%.0f µs", float64(d)/1e3) }
func millis(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/1e6) }

// latencies writes samples, each as a multiple of the first.
func (s *section) latencies(first string, samples []*sample) {
	var rows [][]string
	for _, x := range samples {
		row := []string{x.name, micros(x.median()), "", micros(x.quantile(0.1)), "", micros(x.quantile(0.99)), "", ""}
		if x != samples[0] {
			row[2] = "**" + x.ratio(samples[0], 0.5).String() + "**"
			row[4] = x.ratio(samples[0], 0.1).String()
			row[6] = fmt.Sprintf("%.2f", float64(x.quantile(0.99))/float64(samples[0].quantile(0.99)))
		}
		if len(x.processor) > 0 {
			row[7] = micros(quantile(x.processor, 0.5))
		}
		rows = append(rows, row)
	}
	s.table([]string{first, "median", "÷ floor", "p10", "÷ floor", "p99", "÷ floor", "processor time of the daemon"}, rows)
}

func plural(extensions int) string {
	if extensions == 1 {
		return "1 extension"
	}
	return fmt.Sprintf("%d extensions", extensions)
}
