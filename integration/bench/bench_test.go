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
	o := options{rounds: 2, requests: 5, slice: 50 * time.Millisecond, cold: 1, environments: 3}
	if err := run(t.Context(), o, &out, t.Output()); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"isolation tier", "| floor: net/http, two hops | ", "| lambdad, Go, 3 extensions | ", "| lambdad, Python, 0 extensions | ",
		"### Throughput", "| floor: fork and exec", "### Memory of a resting environment", "### Sandboxes created and destroyed"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("the report lacks %q", part)
		}
	}
	if strings.Contains(out.String(), "not measured") || t.Failed() {
		t.Errorf("the report is\n%s", out.String())
	}
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	for _, e := range left {
		if !strings.HasPrefix(e.Name(), "go-build") {
			t.Errorf("%s is left, %v", e.Name(), err)
		}
	}
}

func TestQuantile(t *testing.T) {
	s := &sample{times: []time.Duration{5, 1, 4, 2, 3}}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 3, 0.99: 5, 1: 5} {
		if got := s.quantile(q); got != want {
			t.Errorf("quantile %v is %d, want %d", q, got, want)
		}
	}
	if (&sample{}).median() != 0 {
		t.Error("no times have a median")
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
