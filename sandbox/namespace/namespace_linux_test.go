//go:build amd64 || arm64

package namespace

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

func TestMain(m *testing.M) {
	if probe := os.Getenv(sandboxtest.DaemonVariable); probe != "" {
		d, err := New(context.Background(), Config{ID: os.Getenv("DAEMON_ID")})
		if err == nil {
			err = sandboxtest.Daemon(d, probe)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// testID names the groups of one test process.
func testID(kind string) string { return fmt.Sprintf("test%s%d", kind, os.Getpid()) }

func open(t testing.TB, cfg Config) *Driver {
	t.Helper()
	sandboxtest.RequireRoot(t)
	cfg.ID = testID("a")
	d, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if left := groupsLeft(t, cfg.ID); len(left) > 0 {
			t.Errorf("control groups left: %v", left)
		}
	})
	if err := d.Sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	return d
}

func groupsLeft(t testing.TB, id string) []string {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, root := range findHierarchy(string(info), "lambdad-"+id).roots() {
		_ = filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				left = append(left, p)
			}
			return nil
		})
	}
	return left
}

func TestSandbox(t *testing.T) {
	sandboxtest.RequireRoot(t)
	sandboxtest.Run(t, func(t *testing.T) sandbox.Driver { return open(t, Config{}) }, sandboxtest.Options{
		Isolates: true, Limits: true, Freezes: true,
		Leaks: func(t *testing.T) string {
			groups := 0
			for _, g := range groupsLeft(t, testID("a")) {
				if !strings.Contains(g, "init") {
					groups++
				}
			}
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("groups %d, host mounts %d, network namespaces %d", groups, bytes.Count(mounts, []byte("\n")), networks(t))
		},
	})
}

// networks counts the network namespaces the host's processes and this one's
// descriptors hold.
func networks(t testing.TB) int {
	seen := map[string]bool{}
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, l := range append(links, fds...) {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "net:") {
			seen[to] = true
		}
	}
	return len(seen)
}

func TestDaemonKilled(t *testing.T) {
	sandboxtest.RequireRoot(t)
	id := testID("k")
	alive := sandboxtest.KillDaemon(t, time.Second, "DAEMON_ID="+id)
	info, _ := os.ReadFile("/proc/self/mountinfo")
	if findHierarchy(string(info), "x").v2 != "" && len(alive) > 0 {
		t.Errorf("alive one second after the daemon: %v", alive)
	}
	d, err := New(context.Background(), Config{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Sweep(context.Background()); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if left := groupsLeft(t, id); len(left) > 0 {
		t.Errorf("left after Sweep: %v", left)
	}
}
