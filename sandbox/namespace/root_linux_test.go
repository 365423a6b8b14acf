//go:build amd64 || arm64

package namespace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

// TestRoot runs programs on a root of their own: merged, read-only, with nothing of
// the host's and nothing of the base system in sight, whatever its links say.
func TestRoot(t *testing.T) {
	sandboxtest.RequireRoot(t)
	probe := sandboxtest.BuildProbe(t)
	dir := diskDir(t)
	d := open(t, Config{ID: testID("root"), Dir: dir})
	bottom, top := t.TempDir(), t.TempDir()
	for _, l := range []string{bottom, top} {
		if err := os.Chmod(l, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(root, name, content string) {
		t.Helper()
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile(filepath.Join(probe, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	write(bottom, "app/probe", string(program))
	write(bottom, "app/same", "below")
	write(bottom, "app/hidden", "x")
	write(bottom, "opt/extensions/one", "x")
	write(bottom, "etc/passwd", "evil::0:0::/:/bin/sh\n")
	write(bottom, "etc/own", "of the image")
	write(top, "app/same", "above")
	if err := unix.Mknod(filepath.Join(top, "app/hidden"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	// Links where the sandbox mounts, and one that looks for the host.
	for name, target := range map[string]string{"tmp": "/etc", "proc": "../../../..", "dev": "/", "var": "/opt", "out": "/../../../etc/shadow"} {
		if err := os.Symlink(target, filepath.Join(top, name)); err != nil {
			t.Fatal(err)
		}
	}
	var many []string
	for i := range 40 {
		l := t.TempDir()
		if err := os.Chmod(l, 0o755); err != nil {
			t.Fatal(err)
		}
		write(l, fmt.Sprintf("layer%d", i), "x")
		many = append(many, l)
	}
	root := append(append([]string{bottom}, many...), top)
	code := t.TempDir()
	write(code, "main", "code")
	sb, err := d.Create(context.Background(), sandbox.Spec{ID: "rooted", Root: root, MemoryBytes: 64 << 20,
		Mounts: []sandbox.Mount{{Target: "/var/task", Sources: []string{code}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Destroy(context.Background())
	run := func(args ...string) string {
		t.Helper()
		var out, errOut bytes.Buffer
		p, err := sb.Start(context.Background(), sandbox.Command{Party: "runtime", Path: "/app/probe", Args: append([]string{"probe"}, args...), Stdout: &out, Stderr: &errOut})
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		<-p.Drained()
		if p.Exit().Code != 0 {
			return fmt.Sprintf("exit %d %s", p.Exit().Code, errOut.String())
		}
		return out.String()
	}
	for name, want := range map[string]string{
		"/app/same": "above", "/layer0": "x", "/layer39": "x", "/var/task/main": "code", "/etc/own": "of the image",
	} {
		if got := run("cat", name); got != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"/app/hidden", "/usr/bin/env", "/mnt/app", "/bin/sh", "/etc/ssl", "/out"} {
		if got := run("cat", name); !strings.Contains(got, "no such file") {
			t.Errorf("%s can be read: %.100q", name, got)
		}
	}
	if got := run("cat", "/etc/passwd"); !strings.Contains(got, "sbx_user1051") || strings.Contains(got, "evil") {
		t.Errorf("/etc/passwd: %q", got)
	}
	if got := run("cat", "/etc/hosts"); !strings.Contains(got, "sandbox.localdomain") {
		t.Errorf("/etc/hosts: %q", got)
	}
	if got := run("cat", "/proc/meminfo"); !strings.Contains(got, "65536 kB") {
		t.Errorf("/proc/meminfo: %.80q", got)
	}
	if got := run("cat", "/proc/self/mountinfo"); strings.Contains(got, " /mnt") || strings.Count(got, " / / ") > 1 {
		t.Errorf("mounts of the base system are in sight:\n%s", got)
	}
	if got := run("put", "/tmp/file", "x"); got != "" {
		t.Errorf("write to /tmp: %s", got)
	}
	if got := run("put", "/dev/null", "x"); got != "" {
		t.Errorf("write to /dev/null: %s", got)
	}
	for _, name := range []string{"/app/new", "/new", "/etc/passwd", "/var/task/main"} {
		if got := run("put", name, "x"); !strings.Contains(got, "read-only") && !strings.Contains(got, "denied") {
			t.Errorf("write to %s: %q", name, got)
		}
	}
	names, err := sb.ReadDir("/opt/extensions")
	if err != nil || len(names) != 1 || names[0].Name() != "one" {
		t.Errorf("extensions: %v, %v", names, err)
	}
	if _, err := sb.Stat("/out"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link to the host's shadow: %v", err)
	}
	if err := sb.Reset(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := run("cat", "/app/same"); got != "above" {
		t.Errorf("after a reset: %q", got)
	}
	if err := sb.Destroy(context.Background()); err != nil {
		t.Fatal(err)
	}
}
