package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The least program says whether it wrote.
func TestLeast(t *testing.T) {
	dir := t.TempDir()
	program, file := filepath.Join(dir, "bin", "bootstrap"), filepath.Join(dir, "written")
	if err := writeLeast(program); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"exit"}, {"exit", file}} {
		if err := exec.Command(program, args...).Run(); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Size() != 1 {
		t.Errorf("wrote %v, %v", info, err)
	}
	if err := exec.Command(program, "exit", filepath.Join(dir, "none", "x")).Run(); err == nil {
		t.Error("says that it wrote where it cannot")
	}
}
