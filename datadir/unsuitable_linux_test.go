package datadir

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A file system without modes or symbolic links is refused before anything is kept
// there.
func TestUnsuitable(t *testing.T) {
	noMode := func(string, fs.FileMode) error { return nil } // as FAT under WSL: accepted and forgotten
	noLink := func(string, string) error { return syscall.EPERM }
	for name, err := range map[string]error{
		"modes": probe(t.TempDir(), noMode, os.Symlink),
		"links": probe(t.TempDir(), os.Chmod, noLink),
	} {
		if !errors.Is(err, ErrUnsuitable) {
			t.Errorf("without %s: %v, want ErrUnsuitable", name, err)
		}
	}
	if err := probe(t.TempDir(), os.Chmod, os.Symlink); err != nil {
		t.Errorf("with both: %v", err)
	}
	// Where the kernel and the machine have one, on a real FAT.
	data, _ := os.ReadFile("/proc/filesystems")
	if _, err := exec.LookPath("mkfs.vfat"); err == nil && os.Geteuid() == 0 && strings.Contains(string(data), "vfat") {
		t.Run("FAT", testFAT)
	}
}

func testFAT(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.vfat", image).CombinedOutput(); err != nil {
		t.Fatalf("making a FAT: %v %s", err, out)
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Fatalf("mounting a FAT: %v %s", err, out)
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
