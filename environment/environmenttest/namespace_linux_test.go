package environmenttest_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/lambdad/lambdad/environment/environmenttest"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/namespace"
)

func TestNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("LAMBDAD_TEST_ROOT") != "" {
			t.Fatal("LAMBDAD_TEST_ROOT is set but the test does not run as root")
		}
		t.Skip("the namespace driver's root tier needs root")
	}
	probe := buildProbe(t)
	d, err := namespace.New(context.Background(), namespace.Config{ID: "envtest", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the parallel cases
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	limited := true
	for _, p := range d.Promises() {
		if strings.Contains(p.Name, "memory limit") && !p.Kept {
			limited = false
		}
	}
	environmenttest.Run(t, environmenttest.Rig{
		Driver:        func(*testing.T) sandbox.Driver { return d },
		Probe:         probe,
		Parallel:      true,
		NoFlush:       !flushes(t, d),
		NoMemoryLimit: !limited,
	})
}
