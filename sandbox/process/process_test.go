package process

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
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

// TestInherited holds that a process does not get the descriptors that the daemon was
// started with.
func TestInherited(t *testing.T) {
	fd, err := syscall.Open("/etc/passwd", syscall.O_RDONLY, 0) // without close-on-exec, as inherited ones are
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	d := open(t)
	b, err := d.Create(t.Context(), sandbox.Spec{ID: "a", Mounts: []sandbox.Mount{{Target: "/var/task", Sources: []string{sandboxtest.BuildProbe(t)}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Destroy(context.Background())
	for n, want := range map[int]int{0: 0, fd: 1} { // that of standard input is there
		p, err := b.Start(t.Context(), sandbox.Command{Party: "runtime", Path: b.Path("/var/task/probe"), Args: []string{"probe", "cat", fmt.Sprintf("/dev/fd/%d", n)}})
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		if got := p.Exit(); got.Code != want {
			t.Errorf("reading descriptor %d: %v, want exit status %d", n, got, want)
		}
	}
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
