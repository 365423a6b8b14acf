//go:build linux

package leak

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Each kind that can be made without harm is seen when it is there and not seen
// when it is gone.
func TestSeesEachKind(t *testing.T) {
	root := os.Geteuid() == 0
	const id = "leaktest"
	dir := t.TempDir()
	s := Scope{ID: id, Dirs: []string{dir}}
	for _, c := range []struct {
		kind string
		root bool
		make func(t *testing.T) (undo func())
	}{
		{"goroutines", false, func(*testing.T) func() {
			stop := make(chan struct{})
			go func() { <-stop }()
			return func() { close(stop) }
		}},
		{"processes", false, sleeper(nil)},
		{"threads of others", false, sleeper(nil)},
		{"descriptors", false, func(t *testing.T) func() {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			return func() { l.Close() }
		}},
		{"files", false, func(t *testing.T) func() {
			name := filepath.Join(dir, "scratch")
			must(t, os.WriteFile(name, nil, 0o600))
			return func() { os.Remove(name) }
		}},
		{"network namespaces", true, sleeper([]string{"unshare", "--net"})},
		{"mount namespaces", true, sleeper([]string{"unshare", "--mount"})},
		{"mounts", true, sleeper([]string{"unshare", "--mount"})},
		{"mounts", true, func(t *testing.T) func() {
			target := filepath.Join(dir, "m")
			must(t, os.Mkdir(target, 0o700))
			must(t, exec.Command("mount", "-t", "tmpfs", "none", target).Run())
			return func() { must(t, exec.Command("umount", target).Run()); os.Remove(target) }
		}},
		{"control groups", true, func(t *testing.T) func() {
			var made []string
			for _, top := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
				group := filepath.Join(top, "lambdad-"+id)
				if _, err := os.Stat(filepath.Join(top, "cgroup.procs")); err == nil && os.Mkdir(group, 0o755) == nil {
					made = append(made, group)
					break
				}
			}
			if made == nil {
				t.Skip("no v2 control groups here")
			}
			return func() { must(t, os.Remove(made[0])) }
		}},
	} {
		t.Run(c.kind, func(t *testing.T) {
			if c.root && !root {
				if os.Getenv("LAMBDAD_TEST_ROOT") != "" {
					t.Fatal("needs root, and LAMBDAD_TEST_ROOT is set")
				}
				t.Skip("needs root")
			}
			before, err := Take(s)
			must(t, err)
			undo := c.make(t)
			after := waitFor(t, s, func(n Count) bool { return n.Total(c.kind) > before.Total(c.kind) })
			if report := strings.Join(after.Since(before, nil), "\n"); !strings.Contains(report, c.kind) {
				t.Errorf("not reported: %q", report)
			}
			undo()
			Check(t, s, before, Slack{"threads": 4}) // Go may keep some
		})
	}
}

func TestSlack(t *testing.T) {
	before, after := Count{}, Count{}
	after.addN("threads", "of the server", 3)
	if after.Since(before, Slack{"threads": 3}) != nil {
		t.Error("within the slack")
	}
	if got := after.Since(before, Slack{"threads": 2}); len(got) != 1 || got[0] != "3 more threads (0 before): 3× of the server" {
		t.Errorf("got %q", got)
	}
}

// sleeper makes a child that does nothing, started through wrap.
func sleeper(wrap []string) func(*testing.T) func() {
	return func(t *testing.T) func() {
		args := append(wrap, "sleep", "1000")
		if _, err := exec.LookPath(args[0]); err != nil {
			t.Skip(err)
		}
		cmd := exec.Command(args[0], args[1:]...)
		must(t, cmd.Start())
		return func() { cmd.Process.Kill(); cmd.Wait() }
	}
}

func waitFor(t *testing.T, s Scope, ok func(Count) bool) Count {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		c, err := Take(s)
		must(t, err)
		if ok(c) || time.Since(begin) > 5*time.Second {
			return c
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
