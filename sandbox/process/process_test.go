package process

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

func TestMain(m *testing.M) {
	if probe := os.Getenv(sandboxtest.DaemonVariable); probe != "" {
		d, err := New(context.Background(), Config{Dir: os.Getenv("DAEMON_DIR")})
		if err == nil {
			err = sandboxtest.Daemon(d, probe)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func open(t testing.TB) *Driver {
	t.Helper()
	d, err := New(context.Background(), Config{Dir: filepath.Join(t.TempDir(), "run")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(d.dir); len(left) > 0 {
			t.Errorf("directories left: %v", left)
		}
	})
	return d
}

func TestSandbox(t *testing.T) {
	sandboxtest.Run(t, func(t *testing.T) sandbox.Driver { return open(t) }, sandboxtest.Options{Parallel: 40})
}

func TestDaemonKilled(t *testing.T) {
	dir := t.TempDir()
	sandboxtest.KillDaemon(t, time.Second, "DAEMON_DIR="+dir)
	d, err := New(context.Background(), Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Sweep(context.Background()); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("directories left: %v", left)
	}
}
