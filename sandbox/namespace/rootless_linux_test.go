//go:build amd64 || arm64

package namespace

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

// nobody is a user without rights.
const nobody = 65534

// asNobody runs a test of this binary again as a user without rights, in the
// rootless tier, with groups delegated to him or without.
func asNobody(t *testing.T, test string, groups bool) {
	t.Helper()
	sandboxtest.RequireRoot(t)
	dir, err := os.MkdirTemp("/var/tmp", "lambdad-rootless-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(tmp, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "test")
	copyProgram(t, "/proc/self/exe", exe)
	copyProgram(t, filepath.Join(sandboxtest.BuildProbe(t), "probe"), filepath.Join(dir, "probe/probe"))

	// The shell waits until it stands in its groups.
	cmd := exec.Command("/bin/sh", "-c", `read x && exec "$0" "$@"`, exe, "-test.v", "-test.timeout=5m", "-test.run=^"+test+"$")
	cmd.Env = []string{"PATH=/usr/bin:/bin", "TMPDIR=" + tmp, "TEST_ROOTLESS=1", "TEST_GROUPS=" + strconv.FormatBool(groups),
		sandboxtest.ProbeVariable + "=" + filepath.Join(dir, "probe")}
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if groups {
		delegate(t, cmd.Process.Pid)
	}
	if _, err := io.WriteString(in, "go\n"); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, &out)
	}
	if n := len(regexp.MustCompile(`(?m)^ +--- PASS`).FindAll(out.Bytes(), -1)); n == 0 || strings.Contains(out.String(), "--- SKIP") {
		t.Errorf("%d cases passed, or one was skipped:\n%s", n, &out)
	} else {
		t.Logf("%d cases passed", n)
	}
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// delegate makes a group for the process in every hierarchy and gives it to nobody.
func delegate(t *testing.T, pid int) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	h := findHierarchy(string(mounts), testID("delegated"))
	for _, dir := range h.roots() {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := removeGroup(context.Background(), dir); err != nil {
				t.Errorf("left by the rootless driver: %v", err)
			}
		})
		files, err := filepath.Glob(dir + "/cgroup.*")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range append(files, dir) {
			if err := os.Chown(f, nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
		if err := writeFile(dir+"/cgroup.procs", strconv.Itoa(pid)); err != nil {
			t.Fatal(err)
		}
	}
}

// rootlessDriver is for the processes that asNobody starts.
func rootlessDriver(t *testing.T) *Driver {
	t.Helper()
	d, err := New(context.Background(), Config{ID: testID("r"), Rootless: true, Egress: sandbox.EgressAll})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := d.Sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestRootless is the suite in the rootless tier: as a user without rights, with
// delegated control groups and without.
func TestRootless(t *testing.T) {
	if os.Getenv("TEST_ROOTLESS") == "" {
		t.Run("delegated groups", func(t *testing.T) { asNobody(t, "TestRootless", true) })
		t.Run("no groups", func(t *testing.T) { asNobody(t, "TestRootless", false) })
		return
	}
	groups := os.Getenv("TEST_GROUPS") == "true"
	sandboxtest.Run(t, func(t *testing.T) sandbox.Driver { return rootlessDriver(t) }, sandboxtest.Options{
		Isolates: true, SameUser: true, Limits: groups, ProcessLimit: true, Freezes: groups, Parallel: 40,
		Leaks: func(t *testing.T) string { return fmt.Sprintf("network namespaces %d", networks(t)) },
	})
	t.Run("promises", func(t *testing.T) {
		kept := map[string]bool{}
		for _, p := range rootlessDriver(t).Promises() {
			kept[p.Name] = p.Kept
			if !p.Kept && (p.Why == "" || p.Cure == "") {
				t.Errorf("%s: why %q, cure %q", p.Name, p.Why, p.Cure)
			}
		}
		for name, want := range map[string]bool{
			"private file system": true, "private network": true, "allowed system calls only": true, "process limit": true,
			"memory limit": groups, "CPU limit": groups, "freezing": groups, "true peak memory": groups,
			"a user id of its own": false, "/tmp outside the memory limit": false, "outbound network": false,
		} {
			if got, ok := kept[name]; got != want || !ok {
				t.Errorf("%s: kept %v, want %v", name, got, want)
			}
		}
	})
}

// TestRootlessKilled: the daemon of the rootless tier is killed, frozen sandboxes
// and all.
func TestRootlessKilled(t *testing.T) {
	if os.Getenv("TEST_ROOTLESS") == "" {
		asNobody(t, "TestRootlessKilled", true)
		return
	}
	id := testID("k")
	t.Run("gone", func(t *testing.T) {
		if alive := sandboxtest.KillDaemon(t, time.Second, "DAEMON_ID="+id, "DAEMON_DIR="); len(alive) > 0 {
			t.Errorf("alive one second after the daemon: %v", alive)
		}
	})
	t.Run("swept", func(t *testing.T) {
		d, err := New(context.Background(), Config{ID: id, Rootless: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Sweep(context.Background()); err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestTry: the trial is made in another process, which changes nothing here, and
// tells what fails.
func TestTry(t *testing.T) {
	sandboxtest.RequireRoot(t)
	before, _ := os.Readlink("/proc/self/ns/user")
	if err := Try(context.Background()); err != nil {
		t.Errorf("in another user namespace: %v", err)
	}
	if after, _ := os.Readlink("/proc/self/ns/user"); after != before {
		t.Error("this process changed its user namespace")
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Try(gone); err == nil {
		t.Error("a trial that was cancelled worked")
	}
}
