package sandboxtest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// unprivilegedVariable is set for what Unprivileged starts: "delegated" or "alone".
const unprivilegedVariable = "SANDBOXTEST_UNPRIVILEGED"

// IsUnprivileged says whether this process was started by Unprivileged, or by one
// that was.
func IsUnprivileged() bool { return os.Getenv(unprivilegedVariable) != "" }

// Delegated says whether Unprivileged delegated control groups to this process.
func Delegated() bool { return os.Getenv(unprivilegedVariable) == "delegated" }

// nobody is a user without rights.
const nobody = 65534

// Unprivileged runs a test of this binary again as a user without rights, in
// control groups of its own or without any, and fails when it fails, skips a case
// or has none. It needs root, to become somebody else.
func Unprivileged(t *testing.T, test string, delegated bool, env ...string) {
	t.Helper()
	RequireRoot(t)
	dir, err := os.MkdirTemp("/var/tmp", "lambdad-unprivileged-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
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
	copyProgram(t, filepath.Join(BuildProbe(t), "probe"), filepath.Join(dir, "probe/probe"))

	cmd := exec.Command(exe, "-test.v", "-test.timeout=5m", "-test.run=^"+test+"$")
	kind := "alone"
	var groups Delegation
	if delegated {
		kind, groups = "delegated", Delegate(t)
	}
	begin := groups.Waiting(t, cmd)
	cmd.Env = append([]string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + tmp, "TMPDIR=" + tmp, unprivilegedVariable + "=" + kind,
		ProbeVariable + "=" + filepath.Join(dir, "probe")}, env...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Somebody who was nice cannot take it back.
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, cmd.Process.Pid, 3); err != nil {
		t.Error(err)
	}
	begin()
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

// A Delegation is control groups that belong to nobody, one in each hierarchy.
type Delegation []string

// Delegate makes groups and gives them to nobody, as systemd does for Delegate=yes.
func Delegate(t testing.TB) Delegation {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("lambdad-test-%d-%d", os.Getpid(), nextID())
	var done []string
	var all Delegation
	for line := range strings.Lines(string(mounts)) {
		left, right, _ := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if len(l) < 5 || len(r) < 3 || slices.Contains(done, l[4]) {
			continue
		}
		mine := r[0] == "cgroup2"
		for _, c := range strings.Split(r[2], ",") {
			mine = mine || r[0] == "cgroup" && slices.Contains([]string{"memory", "pids", "cpu", "cpuacct", "freezer"}, c)
		}
		if !mine {
			continue
		}
		done = append(done, l[4])
		_ = os.WriteFile(l[4]+"/cgroup.subtree_control", []byte("+memory +pids +cpu"), 0)
		dir := filepath.Join(l[4], name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			var err error
			for range 100 {
				if err = os.Remove(dir); err == nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Errorf("left below a delegated group: %v", err)
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
		all = append(all, dir)
	}
	return all
}

// Waiting makes a command, of nobody and not yet started, wait. What it returns puts
// the started command into the groups and lets it begin.
func (d Delegation) Waiting(t testing.TB, cmd *exec.Cmd) (begin func()) {
	t.Helper()
	cmd.Args = append([]string{"/bin/sh", "-c", `read x && exec "$0" "$@"`}, cmd.Args...)
	cmd.Path = "/bin/sh"
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		for _, dir := range d {
			if err := os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.WriteString(in, "go\n"); err != nil {
			t.Error(err)
		}
	}
}
