package datadir

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A file system without modes and symbolic links is refused before anything is kept
// there. FAT stands for the Windows drives of WSL.
func TestUnsuitable(t *testing.T) {
	skip := t.Skipf
	if os.Geteuid() != 0 {
		if os.Getenv("LAMBDAD_TEST_ROOT") != "" {
			skip = t.Fatalf
		}
		skip("mounting needs root")
	}
	// Neither the driver nor the program is everywhere, in CI neither.
	if data, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(data), "vfat") {
		t.Skip("the kernel has no FAT")
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.vfat", image).CombinedOutput(); err != nil {
		t.Skipf("making a FAT: %v %s", err, out)
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("mounting a FAT: %v %s", err, out)
	}
	defer unix.Unmount(dir, 0)
	d, err := Open(dir, quiet())
	if err == nil {
		d.Close()
	}
	if !errors.Is(err, ErrUnsuitable) {
		t.Fatalf("got %v, want ErrUnsuitable", err)
	}
}
