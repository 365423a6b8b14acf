//go:build amd64 || arm64

package namespace

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

func images(t testing.TB, ahead int) *tmpImages {
	t.Helper()
	sandboxtest.RequireRoot(t)
	i, err := newTmpImages(context.Background(), diskDir(t), 0, 1000, newSize(ahead, ahead), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.close)
	return i
}

func BenchmarkTmp(b *testing.B) {
	t := images(b, 0)
	tpl, err := t.template(context.Background(), tmpDefault)
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("%d KiB in %d extents", tpl.used>>10, len(tpl.blocks))
	names := []string{"create", "write", "attach", "mount", "end"}
	all := map[string][]time.Duration{}
	for b.Loop() {
		at := time.Now()
		lap := func(name string) {
			all[name] = append(all[name], time.Since(at))
			at = time.Now()
		}
		image, err := t.create(tpl.length)
		if err != nil {
			b.Fatal(err)
		}
		lap("create")
		for _, e := range tpl.blocks {
			if err := writeAt(image, e.content, e.at); err != nil {
				b.Fatal(err)
			}
		}
		lap("write")
		_, loop, source, err := t.attach(image)
		if err != nil {
			b.Fatal(err)
		}
		lap("attach")
		m, err := mountExt4(source)
		if err != nil {
			b.Fatal(err)
		}
		lap("mount")
		unix.Close(image)
		unix.Close(loop)
		m.end()
		lap("end")
	}
	for _, name := range names {
		if d := all[name]; len(d) > 0 {
			slices.Sort(d)
			b.ReportMetric(float64(d[len(d)/2].Microseconds()), name+"-median-µs")
		}
	}
}

// TestTmpSizes: what was asked for is there, whatever the size, and little of it
// on the disk before it is written.
func TestTmpSizes(t *testing.T) {
	i := images(t, 0)
	for _, size := range []int64{1, 10, 63, 512, 513, 1024, 10240} {
		m, err := i.make(t.Context(), size<<20)
		if err != nil {
			t.Errorf("%d MiB: %v", size, err)
			continue
		}
		var s unix.Statfs_t
		if err := unix.Fstatfs(m.root, &s); err != nil {
			t.Error(err)
		}
		free := int64(s.Bavail) * s.Bsize
		if most := size + size/16 + 24; free < size<<20 || free > most<<20 {
			t.Errorf("%d MiB: %d can be written, want at most %d", size, free>>20, most)
		}
		if s.Ffree < uint64(size<<20/tmpBlock) {
			t.Errorf("%d MiB: room for %d files", size, s.Ffree)
		}
		if used := i.templates[size<<20].used; used > 1<<20 {
			t.Errorf("%d MiB: a new image takes %d KiB", size, used>>10)
		}
		m.end()
	}
}

// TestTmpTemplates: the number of sizes kept is bounded.
func TestTmpTemplates(t *testing.T) {
	i := images(t, 0)
	for n := range int64(tmpTemplates + 5) {
		i.mu.Lock()
		i.templates[n] = &tmpTemplate{}
		i.mu.Unlock()
	}
	if _, err := i.template(t.Context(), 20<<20); err != nil {
		t.Fatal(err)
	}
	if n := len(i.templates); n != tmpTemplates || i.templates[tmpDefault] == nil || i.templates[20<<20] == nil {
		t.Errorf("%d templates kept", n)
	}
}

// TestTmpOwnNode: a host whose /dev does not follow the kernel.
func TestTmpOwnNode(t *testing.T) {
	i := images(t, 0)
	tpl, err := i.template(t.Context(), tmpDefault)
	if err != nil {
		t.Fatal(err)
	}
	image, err := i.create(tpl.length)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(image)
	for _, e := range tpl.blocks {
		if err := writeAt(image, e.content, e.at); err != nil {
			t.Fatal(err)
		}
	}
	_, loop, source, err := i.attach(image)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(loop)
	var st unix.Stat_t
	if err := unix.Fstat(loop, &st); err != nil {
		t.Fatal(err)
	}
	own, name, err := i.openNode(int(unix.Minor(st.Rdev)))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(own)
	m, err := mountExt4(name)
	if err != nil {
		t.Fatalf("%s instead of %s: %v", name, source, err)
	}
	m.end()
}

// TestTmpDirectIO: what functions write is not cached twice where the disk of the
// tests can do it, and the device goes by itself.
func TestTmpDirectIO(t *testing.T) {
	i := images(t, 0)
	probe, err := os.OpenFile(i.dir, unix.O_TMPFILE|os.O_RDWR|unix.O_DIRECT, 0o600)
	direct := "1"
	if err != nil {
		t.Logf("no direct I/O in %s: %v", i.dir, err)
		direct = "0"
	}
	probe.Close()
	m, err := i.make(t.Context(), tmpDefault)
	if err != nil {
		t.Fatal(err)
	}
	list := loops(t, i.dir)
	if len(list) != 1 {
		t.Fatalf("loop devices %v", list)
	}
	for file, want := range map[string]string{"dio": direct, "autoclear": "1"} {
		if b, err := os.ReadFile(filepath.Join(filepath.Dir(list[0]), file)); err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s: %q %v", file, b, err)
		}
	}
	m.end()
	gone(t, i.dir)
}

// TestTmpReserve: no image cuts into the reserve, and nothing is left of one that
// was not made.
func TestTmpReserve(t *testing.T) {
	d := open(t, Config{Pool: -1})
	spec := sandbox.Spec{ID: "reserve", TmpBytes: 64 << 20}
	d.tmp.reserve = 1 << 60
	if b, err := d.Create(t.Context(), spec); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "held in reserve: free some") {
		t.Errorf("%v, %v", b, err)
	}
	d.tmp.reserve = 0
	b, err := d.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestTmpPromise: where /tmp is memory, that is said with its reason and cure.
func TestTmpPromise(t *testing.T) {
	for _, c := range []struct {
		name      string
		cfg       Config
		why, cure string
	}{
		{"disk", Config{}, "", ""},
		{"no directory", Config{Dir: inMemory}, "no directory", "data directory"},
		{"directory in memory", Config{Dir: "/dev/shm"}, "is memory itself", "on a disk"},
		{"impossible directory", Config{Dir: "/proc/nowhere"}, "/proc/nowhere", "on a disk"},
		{"full disk", Config{DiskReserve: 1 << 60}, "held in reserve", "--disk-reserve"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log bytes.Buffer
			c.cfg.Pool, c.cfg.Logger = -1, slog.New(slog.NewTextHandler(&log, nil))
			d := open(t, c.cfg)
			for _, p := range d.Promises() {
				if p.Name != "/tmp outside the memory limit" {
					continue
				}
				if p.Kept != (c.why == "") || !strings.Contains(p.Why, c.why) || !strings.Contains(p.Cure, c.cure) {
					t.Errorf("%+v", p)
				}
				if said := strings.Contains(log.String(), "counts as their memory"); said == p.Kept {
					t.Errorf("log: %q", log.String())
				}
				return
			}
			t.Error("no such promise")
		})
	}
}

// TestTmpDiskFull: when the disk is full in spite of the reserve, who writes gets
// an error, and everybody else lives on.
func TestTmpDiskFull(t *testing.T) {
	host := images(t, 0)
	small, err := host.make(t.Context(), 100<<20) // the disk of this test
	if err != nil {
		t.Fatal(err)
	}
	defer small.end()
	probe := sandboxtest.BuildProbe(t)
	d := open(t, Config{Dir: fmt.Sprintf("/proc/self/fd/%d", small.root), Pool: -1})
	if d.tmp == nil {
		t.Fatal(d.tmpErr)
	}
	run := func(b sandbox.Sandbox, args ...string) (sandbox.Exit, string) {
		var out bytes.Buffer
		p, err := b.Start(t.Context(), sandbox.Command{Party: "runtime", Path: "/var/task/probe", Args: append([]string{"probe"}, args...), Stderr: &out})
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		<-p.Drained()
		return p.Exit(), out.String()
	}
	create := func(name string) sandbox.Sandbox {
		b, err := d.Create(t.Context(), sandbox.Spec{ID: name, TmpBytes: 400 << 20, MemoryBytes: 128 << 20, Mounts: []sandbox.Mount{{Target: "/var/task", Sources: []string{probe}}}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	greedy, other := create("greedy"), create("other")
	if e, text := run(greedy, "pour", "/tmp/x", "1", "314572800"); e.Code != 1 || !strings.Contains(text, "no space left") && !strings.Contains(text, "input/output error") && !strings.Contains(text, "read-only file system") {
		t.Errorf("300 MiB on a disk of 100: %v %q", e, text)
	} else {
		t.Logf("300 MiB on a disk of 100: %q", text)
	}
	if e, text := run(other, "echo", "hi"); e.Code != 0 {
		t.Errorf("another sandbox: %v %s", e, text)
	}
	d.tmp.reserve = 10 << 20
	if _, err := d.Create(t.Context(), sandbox.Spec{ID: "late"}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a sandbox on a full disk: %v", err)
	}
	for _, b := range []sandbox.Sandbox{greedy, other} {
		began := time.Now()
		if err := b.Destroy(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("Destroy took %v", took)
		}
	}
	// What the dead had is free again.
	var late sandbox.Sandbox
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if late, err = d.Create(t.Context(), sandbox.Spec{ID: "late", Mounts: []sandbox.Mount{{Target: "/var/task", Sources: []string{probe}}}}); err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if e, text := run(late, "pour", "/tmp/x", "1", "52428800"); e.Code != 0 {
		t.Errorf("afterwards: %v %s", e, text)
	}
	if err := late.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestTmpAhead: the pool has them ready, and each is used once.
func TestTmpAhead(t *testing.T) {
	i := images(t, 2)
	for range 2 {
		if !i.wants() {
			t.Fatal("wants none")
		}
		if err := i.prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if i.wants() {
		t.Error("wants more than there is room for")
	}
	seen := map[int]bool{}
	for range 3 {
		m, err := i.begin(t.Context(), 0)()
		if err != nil {
			t.Fatal(err)
		}
		seen[m.root] = true
		defer m.end()
	}
	if len(seen) != 3 || len(i.ahead) != 0 || len(loops(t, i.dir)) != 3 {
		t.Errorf("%v, %d left, %v", seen, len(i.ahead), loops(t, i.dir))
	}
}

// churn makes and destroys sandboxes until it is killed.
func churn(d *Driver) error {
	if err := d.Sweep(context.Background()); err != nil {
		return err
	}
	fmt.Println("ready")
	for i := 0; ; i++ {
		// Of the pool and not, beside each other.
		b, err := d.Create(context.Background(), sandbox.Spec{ID: "churn", TmpBytes: []int64{0, 64 << 20}[i%2]})
		if err != nil {
			return err
		}
		go b.Destroy(context.Background())
	}
}

// TestTmpKilled: a daemon may be killed at any moment, also while it makes or
// ends a /tmp, and leaves none of its files and devices.
func TestTmpKilled(t *testing.T) {
	sandboxtest.RequireRoot(t)
	dir, id := diskDir(t), testID("c")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for n := range 10 {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), sandboxtest.DaemonVariable+"=none", "DAEMON_CHURN=1", "DAEMON_ID="+id, "DAEMON_DIR="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Errorf("the daemon did not come up: %q %v", line, err)
		}
		time.Sleep(time.Duration(n*n) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
		gone(t, dir)
	}
	d, err := New(t.Context(), Config{ID: id, Dir: dir, Pool: -1})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Sweep(t.Context()), d.Close()); err != nil {
		t.Error(err)
	}
	if left := groupsLeft(t, id); len(left) > 0 {
		t.Errorf("groups left: %v", left)
	}
}

// TestTmpSweep: of a file system that gives every file a name, a killed daemon
// may leave one.
func TestTmpSweep(t *testing.T) {
	d := open(t, Config{Pool: -1})
	left := filepath.Join(d.cfg.Dir, tmpName+"x")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}

// TestTmpAgain: a file system serves a second sandbox only if nobody wrote to the
// first one's, however it was hidden.
func TestTmpAgain(t *testing.T) {
	images := images(t, 1)
	for _, c := range []struct {
		name  string
		do    func(root int) error
		again bool
	}{
		{"nothing", func(int) error { return nil }, true},
		{"looked at", func(root int) error {
			var st unix.Stat_t
			if err := unix.Fstatat(root, "missing", &st, 0); !errors.Is(err, unix.ENOENT) {
				return err
			}
			return unix.Fstat(root, &st)
		}, true},
		{"a file made and removed", func(root int) error {
			fd, err := unix.Openat(root, "x", unix.O_CREAT|unix.O_RDWR, 0o600)
			if err != nil {
				return err
			}
			return errors.Join(unix.Close(fd), unix.Unlinkat(root, "x", 0))
		}, false},
		{"a file without a name", func(root int) error {
			fd, err := unix.Openat(root, ".", unix.O_TMPFILE|unix.O_RDWR, 0o600)
			if err != nil {
				return err
			}
			_, err = unix.Write(fd, make([]byte, 1<<20))
			return errors.Join(err, unix.Close(fd))
		}, false},
		{"a file without a name, nor content", func(root int) error {
			fd, err := unix.Openat(root, ".", unix.O_TMPFILE|unix.O_RDWR, 0o600)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}, false},
		{"a directory made and removed", func(root int) error {
			return errors.Join(unix.Mkdirat(root, "x", 0o700), unix.Unlinkat(root, "x", unix.AT_REMOVEDIR))
		}, false},
		{"listed", func(root int) error {
			_, err := unix.Getdents(root, make([]byte, 4096))
			return err
		}, false},
		{"touched", func(root int) error { return unix.UtimesNanoAt(root, ".", nil, 0) }, false},
		{"an attribute set and removed", func(root int) error {
			return errors.Join(unix.Fsetxattr(root, "trusted.x", []byte("y"), 0), unix.Fremovexattr(root, "trusted.x"))
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, err := images.make(t.Context(), tmpDefault)
			if err != nil {
				t.Fatal(err)
			}
			before := i.loop
			if err := c.do(i.root); err != nil {
				t.Fatal(err)
			}
			again := images.again(i)
			if again != c.again {
				t.Errorf("used again: %v", again)
			}
			if !again {
				i.end()
				return
			}
			next, err := images.begin(t.Context(), tmpDefault)()
			if err != nil {
				t.Fatal(err)
			}
			defer next.end()
			if next.loop != before {
				t.Errorf("device %d, then %d", before, next.loop)
			}
			if err := unix.Mkdirat(next.root, "x", 0o700); err != nil {
				t.Error(err)
			}
			if images.again(next) {
				t.Error("used again after the second one wrote")
			}
		})
	}
}
