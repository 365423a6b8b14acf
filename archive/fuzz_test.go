package archive

import (
	"archive/zip"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lambdad/lambdad"
)

func seeds(f *testing.F) {
	for _, items := range [][]item{
		{file("a/b", "hello hello hello", 0o644), folder("d/", 0o700), link("l", "/etc/passwd")},
		{link("a", ".."), file("a/x", "x", 0o644)}, {file("../x", "x", 0o644)}, {file("/x", "x", 0o644)},
		{{name: "s", body: "stored", mode: typeRegular | 0o644, method: zip.Store}, {name: "w", body: "x", dos: true}},
		{file("x", "1", 0o600), file("x", "2", 0o755)}, {file("x", "1", 0o644), folder("x/", 0o755)},
		{file("extensions/x", "#!/bin/sh\r\n", 0o644), file("extensions/README.md", "x", 0o644), file("m/extensions/x", elf(183), 0o755)},
	} {
		f.Add(makeZip(f, items...))
	}
	f.Add([]byte("PK\x05\x06" + strings.Repeat("\x00", 18)))
	f.Add([]byte("not a zip"))
}

// checkError insists that what is wrong with an archive is told in AWS's words.
func checkError(t *testing.T, err error) {
	t.Helper()
	var e *lambdad.Error
	if err != nil && !errors.As(err, &e) {
		t.Errorf("%v is not a *lambdad.Error", err)
	}
}

func FuzzInspect(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := InspectLayer(bytes.NewReader(b), int64(len(b)), []string{"x86_64"})
		checkError(t, err)
		if err == nil && (info.Unzipped < 0 || info.Unzipped > lambdad.MaxUnzipped || len(info.Warnings) > maxWarnings+1) {
			t.Errorf("%+v", info)
		}
	})
}

func FuzzUnpack(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "a", "b", "tree")
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		info, inspectErr := Inspect(bytes.NewReader(b), int64(len(b)))
		if info.Unzipped > 16<<20 {
			t.Skip("too slow to write")
		}
		err := Unpack(t.Context(), bytes.NewReader(b), int64(len(b)), dir)
		checkError(t, err)
		if inspectErr == nil && err != nil {
			t.Errorf("passed inspection and then failed: %v", err)
		}
		n := 0
		walk := filepath.WalkDir(outer, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, _ := filepath.Rel(outer, path)
			if rel == "." || rel == "a" || rel == "a/b" || rel == "a/b/tree" {
				return nil
			}
			if !strings.HasPrefix(rel, "a/b/tree/") {
				t.Errorf("%s was written outside", rel)
			}
			m, err := d.Info()
			if err != nil {
				return err
			}
			if m.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky|fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0 {
				t.Errorf("%s: %v", rel, m.Mode())
			}
			if !d.IsDir() {
				n++
			}
			return nil
		})
		if walk != nil {
			t.Error(walk)
		}
		// Inspection is stricter: it reads entries, too, that a later one replaces.
		if err == nil && inspectErr == nil && n != info.Files {
			t.Errorf("%d files written, %d announced", n, info.Files)
		}
	})
}
