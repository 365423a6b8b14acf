//go:build unix

package environmenttest_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/lambdad/lambdad/environment/environmenttest"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/process"
)

func TestProcess(t *testing.T) {
	probe := buildProbe(t)
	d, err := process.New(context.Background(), process.Config{ID: "envtest", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	environmenttest.Run(t, environmenttest.Rig{
		Driver:        func(*testing.T) sandbox.Driver { return d },
		Probe:         probe,
		NoFlush:       !flushes(t, d),
		NoMemoryLimit: true,
	})
}

// flushes reports whether the driver's processes are sandbox.Flushers.
func flushes(t *testing.T, d sandbox.Driver) bool {
	t.Helper()
	box, err := d.Create(context.Background(), sandbox.Spec{ID: "flushes", TmpBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer box.Destroy(context.Background())
	p, err := box.Start(context.Background(), sandbox.Command{Party: "runtime", Path: "/bin/true", Dir: "/"})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	_, ok := p.(sandbox.Flusher)
	return ok
}

func buildProbe(t *testing.T) string {
	t.Helper()
	probe := filepath.Join(t.TempDir(), "probe")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", probe, "./probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the probe: %v\n%s", err, out)
	}
	return probe
}
