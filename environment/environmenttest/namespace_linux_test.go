package environmenttest_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lambdad/lambdad/environment/environmenttest"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/namespace"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

func TestNamespace(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		if os.Getenv("LAMBDAD_TEST_ROOT") != "" {
			t.Fatal("LAMBDAD_TEST_ROOT is set but the test does not run as root")
		}
		t.Skip("the namespace driver's root tier needs root")
	}
	matrix(t, buildProbe(t), namespace.Config{ID: "envtest", Dir: t.TempDir()})
}

// TestRootless is the matrix in the rootless tier, as a user without rights.
func TestRootless(t *testing.T) {
	t.Parallel()
	if !sandboxtest.IsUnprivileged() {
		t.Run("delegated groups", func(t *testing.T) {
			dir := t.TempDir()
			sandboxtest.Unprivileged(t, "TestRootless", true, probeVariable+"="+sharedProbe(t, dir))
		})
		return
	}
	matrix(t, os.Getenv(probeVariable), namespace.Config{ID: "envtestr", Rootless: true})
}

// probeVariable names the built probe where it cannot be built.
const probeVariable = "ENVIRONMENTTEST_PROBE"

// sharedProbe is the probe where everybody can execute it.
func sharedProbe(t *testing.T, dir string) string {
	t.Helper()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(buildProbe(t))
	if err != nil {
		t.Fatal(err)
	}
	probe := filepath.Join(dir, "probe")
	if err := os.WriteFile(probe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return probe
}

func matrix(t *testing.T, probe string, cfg namespace.Config) {
	d, err := namespace.New(context.Background(), cfg)
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
