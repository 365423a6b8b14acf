package main

import (
	"encoding/xml"
	"flag"
	"io"
	"math"
	"os"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden picture")

// pictured are charts of every sort.
func pictured() []chart {
	return []chart{
		{title: "Warm <µs>", unit: "µs", target: 125, bars: []bar{
			{ofFloor, "floor: net/http", 100, 90, 130}, {ofLambdad, "lambdad, Go", 120, 120, 120}, {ofEmulator, "AWS's emulator", 480, 400, 700}}},
		{title: "Over functions", unit: "µs", x: "functions", curves: []curve{
			{kind: ofFloor, name: "floor", points: []point{{1, 100}, {100, 101}, {5000, 99}}},
			{kind: ofLambdad, name: "lambdad, p99", dashed: true, points: []point{{1, 300}, {100, 310}, {5000, 1200}}}}},
		{title: "Over bytes", unit: "µs", x: "bytes", curves: []curve{{name: "floor", points: []point{{100, 0}, {6_291_456, 20_000}}}}},
		{title: "Alone", unit: "/s", x: "callers", curves: []curve{{name: "one", points: []point{{1, 7}}}}},
	}
}

// The same values make the same picture.
func TestPicture(t *testing.T) {
	got := picture("lambdad, 2 cores", pictured())
	const golden = "testdata/picture.svg"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the picture has changed: look at it, and go test -update\n%s", got)
	}
	for d := xml.NewDecoder(strings.NewReader(got)); ; {
		_, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(got, "NaN") || strings.Contains(got, "Inf") {
		t.Error("there are no such numbers")
	}
}

func TestAxis(t *testing.T) {
	a := newAxis([]float64{3, 700}, 0, 100)
	if a.low != 2 || a.high != 1000 {
		t.Errorf("from %v to %v", a.low, a.high)
	}
	if a.at(2) != 0 || math.Abs(a.at(1000)-100) > 1e-9 || a.at(0) != 0 || a.at(20) <= a.at(10) {
		t.Error(a.at(2), a.at(1000), a.at(0))
	}
	for v, want := range map[float64]string{0: "0", 0.123456: "0.123", 7: "7", 1234: "1230", 12_345: "12.3k", 6_291_456: "6.29M"} {
		if got := short(v); got != want {
			t.Errorf("%v is %s, want %s", v, got, want)
		}
	}
}

// samples are ten turns in which one is 1.2 times the other, and slower by 20 µs an
// extension.
func samples() []*sample {
	list := []*sample{{name: "floor: net/http, two hops"}, {name: "lambdad, Go, 0 extensions"}}
	for turn := range 10 {
		for i, s := range list {
			d := time.Duration(100+turn) * time.Microsecond * time.Duration(10+2*i) / 10
			s.turns = append(s.turns, []time.Duration{d, d, 2 * d})
			s.processor = append(s.processor, d/2)
		}
	}
	return list
}

// A report says what was measured, and whether that is what was promised.
func TestReport(t *testing.T) {
	r := &report{host: "a machine", version: "v1", tier: "root", idle: []float64{1, 0.8, 0.7}}
	s := r.section("warm")
	s.title = "Warm"
	list := samples()
	s.latencies("one client", list)
	s.note("With a | in it.")
	r.judge("warm", "%.2f", list[1].ratio(list[0], 0.5), 1.25, false)
	r.judge("go", "%.0f/s", estimate{5000, 4000, 8000}, 7000, true)
	r.judge("demand", "%.1f ms", estimate{2, 1, 2.5}, 3, false)
	r.judge("frozen", "%+.0f µs", estimate{100, 90, 110}, 60, false)
	r.paced(byTime, 480)
	s.charts = append(s.charts, chart{title: "c", bars: bars(list)})
	r.warned("time=1 level=WARN msg=\"weaker\"\ntime=2 level=WARN msg=\"weaker\"\npanic\n")
	got := r.text()
	if n := strings.Count(got, "weaker"); n != 1 {
		t.Errorf("the warning is there %d times", n)
	}
	for _, want := range []string{
		"## lambdad v1, measured ", "a machine; isolation tier root.",
		"gave 80 % of the time asked for (a tenth of the times less than 70 %).", "**The machine was busy",
		"\nThe server warned:\n- `msg=\"weaker\"`\n- `panic`\n",
		"| Warm invocation, Go, no extensions | ≤ 1.25 × the two-hop net/http floor | 1.20 (1.20–1.20) | held |",
		"| Throughput, 4 environments, Go | ≥ 7,000/s | 5000/s (4000/s–8000/s) | not held, within the noise |",
		"| Cold start, the platform's part, built on demand | ≤ 3 ms | 2.0 ms (1.0 ms–2.5 ms) | held | 6.0 ms | held |",
		"| +100 µs (+90 µs–+110 µs) | not held | 120 µs | held |",
		"| ≥ 7,000/s | 5000/s (4000/s–8000/s) | not held, within the noise |  |  |",
		"a machine that gave 240 µs for the two-hop net/http floor, one caller (here 480).",
		"| floor: net/http, two hops | 107 µs |  | 101 µs |  | 218 µs |  | 52 µs |",
		"| lambdad, Go, 0 extensions | 128 µs | **1.20 (1.20–1.20)** | 121 µs | 1.20 (1.20–1.20) | 262 µs | 1.20 | 63 µs |",
		"\nWith a | in it.\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the report lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(got)
	}

	// It goes where it belongs and nowhere else.
	to := t.TempDir() + "/performance"
	page := "# Performance\n\n<!-- begin bench -->\nstale\n<!-- end bench -->\n\nOther.\n<!-- begin curves -->\n<!-- end curves -->\n"
	if err := os.WriteFile(to+".md", []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.write(to, "bench"); err != nil {
		t.Fatal(err)
	}
	first, _ := os.ReadFile(to + ".md")
	if err := r.write(to, "bench"); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(to + ".md")
	if string(first) != string(text) {
		t.Error("writing twice is not writing once")
	}
	for _, want := range []string{"# Performance\n\n<!-- begin bench -->\n\n## lambdad v1", "](performance.svg)\n\n### Targets", "\n<!-- end bench -->\n\nOther.\n<!-- begin curves -->\n<!-- end curves -->\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(string(text), "stale") {
		t.Error("the old report is still there")
	}
	if svg, err := os.ReadFile(to + ".svg"); err != nil || !strings.Contains(string(svg), "lambdad v1, ") {
		t.Errorf("the picture: %v", err)
	}
	if err := r.write(to, "nowhere"); err == nil {
		t.Error("there is no such region")
	}
}

// A curve has a row for each place, and both medians in the chart.
func TestCurve(t *testing.T) {
	list := samples()
	s := &section{}
	s.curve("functions", []level{{1, list[0], list[1]}, {10, list[0], list[1]}})
	if want := "| 10 | 107 µs | 128 µs | **1.20 (1.20–1.20)** | 218 µs | 262 µs | 52 µs | 63 µs |"; !strings.Contains(s.body.String(), want) {
		t.Errorf("no row %q in\n%s", want, s.body.String())
	}
	c := s.charts[0]
	if len(c.curves) != 4 || len(c.curves[1].points) != 2 || c.curves[1].kind != ofLambdad || math.Abs(c.curves[1].points[1].y-128.4) > 1 {
		t.Errorf("%+v", c)
	}
}

// The package that is created shrinks by half, and its size is the one it is to have.
func TestLargeZip(t *testing.T) {
	pkg, err := largeZip(1)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(pkg); n < zipBytes || n > zipBytes*11/10 {
		t.Errorf("%d bytes", n)
	}
	if _, err := unzip(pkg, t.TempDir()+"/to"); err != nil {
		t.Error(err)
	}
}
