package integration_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lambdad/lambdad/integration/harness"
)

// TestInstall holds that an installation is complete and correct, and that removing
// it leaves nothing.
func TestInstall(t *testing.T) {
	dest := t.TempDir()
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatal(err)
	}
	run := func(target string) {
		t.Helper()
		cmd := exec.Command("make", "--no-print-directory", target, "DESTDIR="+dest, "PREFIX=/usr/local")
		cmd.Dir = strings.TrimSpace(string(root))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make %s: %v\n%s", target, err, out)
		}
	}
	files := func() (list []string) {
		_ = filepath.WalkDir(dest, func(path string, d fs.DirEntry, err error) error {
			if path != dest && (err != nil || !d.IsDir()) {
				list = append(list, strings.TrimPrefix(path, dest))
			}
			return nil
		})
		return list
	}
	run("install")
	want := []string{"/etc/apparmor.d/lambdad", "/usr/local/bin/lambdad", "/usr/local/lib/systemd/system/lambdad.service", "/usr/local/lib/systemd/user/lambdad.service"}
	if got := files(); !slices.Equal(got, want) {
		t.Errorf("installed %v, want %v", got, want)
	}
	if out, err := exec.Command(filepath.Join(dest, "usr/local/bin/lambdad"), "version").CombinedOutput(); err != nil {
		t.Errorf("the installed program: %v\n%s", err, out)
	}
	for _, name := range want[2:] {
		unit, err := os.ReadFile(filepath.Join(dest, name))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(unit), "ExecStart=/usr/local/bin/lambdad serve") || !strings.Contains(string(unit), "Delegate=cpu memory pids") || strings.Contains(string(unit), "@bindir@") {
			t.Errorf("%s:\n%s", name, unit)
		}
		verify(t, string(unit), strings.Contains(name, "/user/"))
	}
	profile, err := os.ReadFile(filepath.Join(dest, want[0]))
	if err != nil || !strings.Contains(string(profile), "profile lambdad /usr/local/bin/lambdad flags=(unconfined)") || !strings.Contains(string(profile), "userns,") {
		t.Errorf("the AppArmor profile: %v\n%s", err, profile)
	}
	run("uninstall")
	if left, err := os.ReadDir(dest); err != nil || len(left) > 0 {
		t.Errorf("left by uninstall: %v %v", left, err)
	}
}

// verify has systemd look at a unit; what it starts must exist, so that is replaced.
func verify(t *testing.T, unit string, user bool) {
	t.Helper()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		harness.NeedRoot(t) // where there is root, make test-packages installs it
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "lambdad.service")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(unit, "/usr/local/bin/lambdad", "/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"verify", "--man=no", file}
	if user {
		args = append([]string{"--user"}, args...)
	}
	cmd := exec.Command(analyze, args...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "lambdad.service:") {
		t.Errorf("systemd says of the unit: %v\n%s", err, out)
	}
}
