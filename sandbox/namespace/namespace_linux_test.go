//go:build amd64 || arm64

package namespace

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

func TestMain(m *testing.M) {
	ServeTrial()
	if sandboxtest.IsUnprivileged() {
		if _, ok := Rootless(); !ok {
			fmt.Fprintln(os.Stderr, Reexec("a test"))
			os.Exit(1)
		}
	}
	if probe := os.Getenv(sandboxtest.DaemonVariable); probe != "" {
		d, err := New(context.Background(), Config{ID: os.Getenv("DAEMON_ID"), Dir: os.Getenv("DAEMON_DIR"), v1only: os.Getenv("DAEMON_V1") != "",
			Egress: sandbox.Egress(os.Getenv("DAEMON_EGRESS")), Rootless: sandboxtest.IsUnprivileged()})
		if err == nil && os.Getenv("DAEMON_CHURN") != "" {
			err = churn(d)
		} else if err == nil {
			err = sandboxtest.Daemon(d, probe)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// testID names the groups of one test process.
func testID(kind string) string { return fmt.Sprintf("test%s%d", kind, os.Getpid()) }

// diskDir is a directory that is removed after the test and not in memory.
func diskDir(t testing.TB) string {
	t.Helper()
	for _, parent := range []string{os.TempDir(), "/var/tmp"} {
		var s unix.Statfs_t
		if err := unix.Statfs(parent, &s); err != nil || s.Type == unix.TMPFS_MAGIC {
			continue
		}
		dir, err := os.MkdirTemp(parent, "lambdad-namespace-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			// Only what has a name is left to remove, and that is nothing.
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
		return dir
	}
	t.Fatal("no directory on a disk: neither TMPDIR nor /var/tmp is")
	return ""
}

// loops lists the loop devices with files of a directory.
func loops(t testing.TB, dir string) []string {
	t.Helper()
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var list []string
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), dir+"/") {
			list = append(list, f)
		}
	}
	return list
}

// inMemory stands for no directory in Config.
const inMemory = "none"

// open makes a driver with /tmp on disk unless told otherwise.
func open(t testing.TB, cfg Config) *Driver {
	t.Helper()
	sandboxtest.RequireRoot(t)
	cfg.ID = testID("a")
	switch cfg.Dir {
	case "":
		cfg.Dir = diskDir(t)
	case inMemory:
		cfg.Dir = ""
	}
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
		if cfg.Dir != "" {
			if left := loops(t, cfg.Dir); len(left) > 0 {
				t.Errorf("loop devices left: %v", left)
			}
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
	var dir string
	sandboxtest.Run(t, func(t *testing.T) sandbox.Driver {
		d := open(t, Config{})
		dir = d.cfg.Dir
		return d
	}, sandboxtest.Options{
		Isolates: true, Limits: true, Freezes: true, TmpOnDisk: true,
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
			return fmt.Sprintf("groups %d, host mounts %d, network namespaces %d, loop devices %d", groups, bytes.Count(mounts, []byte("\n")), networks(t), len(loops(t, dir)))
		},
	})
}

// TestSandboxV1 is the suite on the v1 hierarchies alone, with /tmp in memory.
func TestSandboxV1(t *testing.T) {
	sandboxtest.RequireRoot(t)
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if findHierarchy(string(info), "x").v1["memory"] == "" {
		t.Skip("this host has no v1 memory controller")
	}
	sandboxtest.Run(t, func(t *testing.T) sandbox.Driver { return open(t, Config{Dir: inMemory, v1only: true, Pool: -1}) }, sandboxtest.Options{
		Isolates: true, Limits: true, Freezes: true, Parallel: 40,
	})
}

// networks counts the network namespaces that this process's threads, descriptors
// and children hold; what others on the host do is no concern.
func networks(t testing.TB) int {
	seen := map[string]bool{}
	links, _ := filepath.Glob("/proc/self/task/*/ns/net")
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, l := range lists {
		b, _ := os.ReadFile(l)
		for _, pid := range strings.Fields(string(b)) {
			links = append(links, "/proc/"+pid+"/ns/net")
		}
	}
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, l := range append(links, fds...) {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "net:") {
			seen[to] = true
		}
	}
	return len(seen)
}

func TestDaemonKilled(t *testing.T) {
	t.Run("v2 freezer", func(t *testing.T) { daemonKilled(t, false) })
	t.Run("v1 freezer", func(t *testing.T) { daemonKilled(t, true) })
}

func daemonKilled(t *testing.T, v1only bool) {
	sandboxtest.RequireRoot(t)
	info, _ := os.ReadFile("/proc/self/mountinfo")
	h := findHierarchy(string(info), "x")
	if v1only && h.v1["freezer"] == "" || !v1only && h.v2 == "" {
		t.Skip("not on this host")
	}
	id, limit, dir := testID("k"), time.Second, diskDir(t)
	env := []string{"DAEMON_ID=" + id, "DAEMON_DIR=" + dir}
	if v1only {
		env, limit = append(env, "DAEMON_V1=1"), 100*time.Millisecond
	}
	alive := sandboxtest.KillDaemon(t, limit, env...)
	if !v1only && len(alive) > 0 {
		t.Errorf("alive one second after the daemon: %v", alive)
	}
	if !v1only { // what the v1 freezer keeps alive keeps its /tmp
		gone(t, dir)
	}
	d, err := New(context.Background(), Config{ID: id, Dir: dir, v1only: v1only})
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
	for _, pid := range alive {
		if err := syscall.Kill(pid, 0); err == nil {
			t.Errorf("process %d survived the sweep", pid)
		}
	}
	gone(t, dir)
}

// gone waits until no loop device has a file of dir, which must be empty, and
// insists on it.
func gone(t *testing.T, dir string) {
	t.Helper()
	left := loops(t, dir)
	for end := time.Now().Add(2 * time.Second); len(left) > 0 && time.Now().Before(end); left = loops(t, dir) {
		time.Sleep(5 * time.Millisecond)
	}
	if len(left) > 0 {
		t.Errorf("loop devices left: %v", left)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
		t.Errorf("files left: %v %v", files, err)
	}
}

// TestPython: the host's interpreter, from wherever it is, at /var/lang.
func TestPython(t *testing.T) {
	sandboxtest.RequireRoot(t)
	out, err := exec.Command("python3", "-c", "import sys; print(sys.base_prefix)").Output()
	if err != nil {
		t.Skip("no python3 on this host")
	}
	prefix := strings.TrimSpace(string(out))
	d := open(t, Config{})
	spec := sandbox.Spec{ID: "python", TmpBytes: 64 << 20, MemoryBytes: 256 << 20}
	program := prefix + "/bin/python3"
	env := []string{"PATH=/usr/bin:/bin"}
	if prefix != "/usr" {
		spec.Mounts = []sandbox.Mount{{Target: "/var/lang", Sources: []string{prefix}}}
		program = "/var/lang/bin/python3"
		env = append(env, "LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/task:/opt/lib")
	}
	b, err := d.Create(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	const script = `
import ssl, hashlib, json, http.client, socket, threading, subprocess, sqlite3, tempfile, os, multiprocessing.pool
assert socket.gethostbyname("localhost") == "127.0.0.1"
assert socket.gethostbyname("sandbox.localdomain") == socket.gethostbyname("sandbox") == "127.0.0.1"
assert socket.gethostname() == "sandbox"
assert len(ssl.create_default_context().get_ca_certs()) > 0
r = []
t = [threading.Thread(target=lambda: r.append(hashlib.sha256(b"x").hexdigest())) for _ in range(8)]
[x.start() for x in t]; [x.join() for x in t]
assert len(r) == 8
assert subprocess.run(["/bin/sh", "-c", "echo hi"], capture_output=True).stdout == b"hi\n"
assert os.getuid() == 993
open(tempfile.mkstemp()[1], "w").write("x")
print("fine")
`
	var stdout, stderr bytes.Buffer
	p, err := b.Start(context.Background(), sandbox.Command{Party: "runtime", Path: program, Args: []string{program, "-c", script}, Env: env, Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Drained()
	<-p.Done()
	if stdout.String() != "fine\n" {
		t.Errorf("%v %s%s", p.Exit(), &stdout, &stderr)
	}
}

// TestHostPrograms: what the machine has runs under the filter, threads included.
func TestHostPrograms(t *testing.T) {
	sandboxtest.RequireRoot(t)
	d := open(t, Config{})
	b, err := d.Create(context.Background(), sandbox.Spec{ID: "host", TmpBytes: 64 << 20, MemoryBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range [][]string{
		{"/usr/bin/node", "-e", "require('dns').lookup('sandbox', (e, a) => { const w = new (require('worker_threads').Worker)('process.stdout.write(\"\")', {eval: true}); w.on('exit', () => console.log('fine', e, a)) })"},
		{"/usr/bin/java", "-Xmx256m", "-version"},
		{"/usr/bin/perl", "-e", "print 'fine'"},
		{"/bin/bash", "-c", "ls -la / | awk '{print $1}' > /tmp/x && curl --version > /dev/null; echo fine"},
	} {
		if _, err := os.Stat(c[0]); err != nil {
			t.Logf("no %s here", c[0])
			continue
		}
		var out bytes.Buffer
		var lock sync.Mutex
		w := writerFunc(func(p []byte) (int, error) { lock.Lock(); defer lock.Unlock(); return out.Write(p) })
		p, err := b.Start(context.Background(), sandbox.Command{Party: "runtime", Path: c[0], Args: c, Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/tmp", Stdout: w, Stderr: w})
		if err != nil {
			t.Error(err)
			continue
		}
		<-p.Done()
		<-p.Drained()
		if p.Exit() != (sandbox.Exit{}) || !strings.Contains(out.String(), "fine") && !strings.Contains(out.String(), "version") {
			t.Errorf("%s: %v %s", c[0], p.Exit(), &out)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
