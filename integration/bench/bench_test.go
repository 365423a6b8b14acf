package main

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/lambdad/lambdad/integration/floor"
)

func TestMain(m *testing.M) {
	floor.Main()
	riemain()
	sandboxMain()
	os.Exit(m.Run())
}

// A short benchmark goes through, measures everything and leaves nothing.
func TestRun(t *testing.T) {
	through(t, options{limit: time.Hour, rounds: 2, requests: 5, slice: 50 * time.Millisecond, cold: 1, environments: 3},
		"### Targets", "| floor: net/http, two hops | ", "| floor: the same, loop by hand", "| lambdad, Go, 3 extensions | ",
		"### Extensions", "### Freezing", "### Throughput", "| floor: fork and exec", "### Memory of a resting environment",
		"### Sandboxes created and destroyed", "### Log lines", "### Control plane")
}

// So do short curves.
func TestCurves(t *testing.T) {
	short := func(counts *[]int, to ...int) {
		was := *counts
		*counts = to
		t.Cleanup(func() { *counts = was })
	}
	short(&functionCounts, 1, 20)
	short(&environmentCounts, 1, 12)
	short(&callerCounts, 1, 40)
	short(&payloads, 100, 6_291_456)
	short(&sizes, 128, 1769)
	through(t, options{limit: time.Hour, rounds: 2, requests: 5, slice: 50 * time.Millisecond, only: names(curveParts)},
		"### Over functions", "| 20 | ", "### Over frozen environments", "| 12 | ", "### Over concurrent callers", "| 40 | ",
		"### Over payload", "| 6291456 | ", "### Over memory sizes", "| 1769 | ")
}

func through(t *testing.T, o options, parts ...string) {
	if os.Geteuid() != 0 || runtime.GOOS != "linux" {
		if os.Getenv("LAMBDAD_TEST_ROOT") != "" {
			t.Fatal("LAMBDAD_TEST_ROOT is set, but this is not root on Linux")
		}
		t.Skip("the root tier needs root on Linux")
	}
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Setenv("TMPDIR", t.TempDir())
	var out strings.Builder
	if err := run(t.Context(), o, &out, t.Output()); err != nil {
		t.Fatal(err)
	}
	for _, part := range append(parts, "isolation tier root") {
		if !strings.Contains(out.String(), part) {
			t.Errorf("the report lacks %q", part)
		}
	}
	// That the host has another Python than the identifier says is its own affair.
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "- `") && !strings.Contains(line, "takes its place") {
			t.Errorf("the server warned: %s", line)
		}
	}
	if strings.Contains(out.String(), "Not measured") || t.Failed() {
		t.Errorf("the report is\n%s", out.String())
	}
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	for _, e := range left {
		if !strings.HasPrefix(e.Name(), "go-build") {
			t.Errorf("%s is left, %v", e.Name(), err)
		}
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"--quick", "--only", "cold,warm", "--rounds", "7"})
	if err != nil || o.rounds != 7 || o.requests != quick.requests || o.only != "cold,warm" {
		t.Errorf("%+v, %v", o, err)
	}
	o.only = "cold,payload,warm"
	list, curves, err := chosen(o)
	if err != nil || names(list) != "cold,warm" || names(curves) != "payload" {
		t.Errorf("%v, %v, %v", list, curves, err)
	}
	if o, err = parse(nil); err != nil || o != usual {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err = parse([]string{"--full"}); err != nil || !o.full || o.limit != fullLimit {
		t.Errorf("%+v, %v", o, err)
	}
	if _, _, err := chosen(options{only: "warm,tepid"}); err == nil {
		t.Error("there is no tepid")
	}
}

// The processes of a server are found by their parents, whatever they are called.
func TestObserve(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	o, err := observe(os.Getppid())
	if err != nil {
		t.Fatal(err)
	}
	if o.rss == 0 || o.pss == 0 || o.kernel == 0 || o.available == 0 {
		t.Errorf("observed %+v of the test's parent", o)
	}
}
