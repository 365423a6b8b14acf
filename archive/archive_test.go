package archive

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/flate"

	"github.com/lambdad/lambdad"
)

// item is one entry of a zip made for a test.
type item struct {
	name   string
	body   string
	mode   uint32 // Unix mode with type; 0: none
	dos    bool   // made on Windows
	method uint16
	time   time.Time
	change func(h *zip.FileHeader)
}

func file(name, body string, perm uint32) item {
	return item{name: name, body: body, mode: typeRegular | perm, method: zip.Deflate}
}
func folder(name string, perm uint32) item { return item{name: name, mode: typeDir | perm} }
func link(name, target string) item {
	return item{name: name, body: target, mode: typeLink | 0o777}
}

func makeZip(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, it := range items {
		h := &zip.FileHeader{Name: it.name, Method: it.method, Modified: it.time}
		if !it.dos {
			h.CreatorVersion = madeOnUnix << 8
			h.ExternalAttrs = it.mode << 16
		}
		if it.change != nil {
			it.change(h)
		}
		w, err := z.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if it.body != "" {
			if _, err := io.WriteString(w, it.body); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unpack(t testing.TB, b []byte) (string, error) {
	t.Helper()
	outer := t.TempDir()
	dir := filepath.Join(outer, "tree")
	err := Unpack(t.Context(), bytes.NewReader(b), int64(len(b)), dir)
	// Whatever happens, nothing is beside the tree.
	list, readErr := os.ReadDir(outer)
	if readErr != nil {
		t.Fatal(readErr)
	}
	for _, d := range list {
		if d.Name() != "tree" {
			t.Errorf("%s was written outside the tree", d.Name())
		}
	}
	return dir, err
}

// tree describes a directory: one line for each path.
func tree(t testing.TB, dir string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%v %s", info.Mode(), rel)
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(path)
			line = "link " + rel + " -> " + target
		case info.Mode().IsRegular():
			if info.Mode().Perm()&0o400 == 0 { // only root reads it as it is
				if err := os.Chmod(path, 0o400); err != nil {
					return err
				}
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += " " + string(b)
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func TestUnpack(t *testing.T) {
	tests := []struct {
		name  string
		items []item
		want  []string
	}{
		{"modes of a zip made on Unix", []item{
			file("bootstrap", "go", 0o755), file("secret", "s", 0o600), file("none", "n", 0),
			folder("d/", 0o700), file("d/f", "x", 0o644),
		}, []string{"drwxr-xr-x .", "-rwxr-xr-x bootstrap go", "drwxr-xr-x d", "-rw-r--r-- d/f x", "---------- none n", "-rw------- secret s"}},
		{"special bits are dropped", []item{file("su", "x", 0o6755), folder("t/", 0o1777)},
			[]string{"drwxr-xr-x .", "-rwxr-xr-x su x", "drwxrwxrwx t"}},
		{"no modes", []item{{name: "f", body: "x", dos: true}, {name: "d/", dos: true}, {name: "g", body: "y"}},
			[]string{"drwxr-xr-x .", "drwxr-xr-x d", "-rw-r--r-- f x", "-rw-r--r-- g y"}},
		{"stored and deflated", []item{{name: "s", body: "stored", mode: typeRegular | 0o644, method: zip.Store}, file("d", "deflated", 0o644)},
			[]string{"drwxr-xr-x .", "-rw-r--r-- d deflated", "-rw-r--r-- s stored"}},
		{"implied directories", []item{file("a/b/c", "x", 0o644)},
			[]string{"drwxr-xr-x .", "drwxr-xr-x a", "drwxr-xr-x a/b", "-rw-r--r-- a/b/c x"}},
		{"directory by its mode alone", []item{{name: "d", mode: typeDir | 0o755}, file("d/f", "x", 0o644)},
			[]string{"drwxr-xr-x .", "drwxr-xr-x d", "-rw-r--r-- d/f x"}},
		{"links as written", []item{link("abs", "/opt/lib/x"), link("up", "../../../etc/passwd"), link("self", "self"), file("f", "x", 0o644)},
			[]string{"drwxr-xr-x .", "link abs -> /opt/lib/x", "-rw-r--r-- f x", "link self -> self", "link up -> ../../../etc/passwd"}},
		{"last of duplicates wins", []item{file("f", "first", 0o600), file("f", "second", 0o755), link("l", "a"), link("l", "b")},
			[]string{"drwxr-xr-x .", "-rwxr-xr-x f second", "link l -> b"}},
		{"file after link and link after file of one name", []item{link("a", "/etc/passwd"), file("a", "x", 0o644), file("b", "y", 0o644), link("b", "a")},
			[]string{"drwxr-xr-x .", "-rw-r--r-- a x", "link b -> a"}},
		{"directory twice", []item{folder("d/", 0o700), file("d/f", "x", 0o644), folder("d/", 0o777)},
			[]string{"drwxr-xr-x .", "drwxrwxrwx d", "-rw-r--r-- d/f x"}},
		{"names are tidied", []item{file("./a//b", "x", 0o644), folder("./", 0o700), file("c", "", 0o644)},
			[]string{"drwxr-xr-x .", "drwxr-xr-x a", "-rw-r--r-- a/b x", "-rw-r--r-- c "}},
		{"odd but harmless names", []item{file("..a", "1", 0o644), file("a..", "2", 0o644), file("x:y", "3", 0o644), file("\xff", "4", 0o644), file(" ", "5", 0o644)},
			[]string{"drwxr-xr-x .", "-rw-r--r--   5", "-rw-r--r-- ..a 1", "-rw-r--r-- a.. 2", "-rw-r--r-- x:y 3", "-rw-r--r-- \xff 4"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := makeZip(t, test.items...)
			if _, err := Inspect(bytes.NewReader(b), int64(len(b))); err != nil {
				t.Fatal(err)
			}
			dir, err := unpack(t, b)
			if err != nil {
				t.Fatal(err)
			}
			if got := tree(t, dir); !slices.Equal(got, test.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}

const unzipText = "Could not unzip uploaded file. Please check your file, then try to upload again."

func TestRefused(t *testing.T) {
	zipped := func(items ...item) func(testing.TB) []byte {
		return func(t testing.TB) []byte { return makeZip(t, items...) }
	}
	f := func(name string) item { return file(name, "x", 0o644) }
	patched := func(change func(b []byte)) func(testing.TB) []byte {
		return func(t testing.TB) []byte {
			b := makeZip(t, file("f", strings.Repeat("lambda ", 1000), 0o644))
			change(b)
			return b
		}
	}
	central := func(b []byte) []byte { return b[bytes.Index(b, []byte("PK\x01\x02")):] }
	tests := []struct {
		name  string
		make  func(testing.TB) []byte
		text  string
		cause string
	}{
		{"not a zip", func(testing.TB) []byte { return []byte("this is not a zipfile, just a random string") }, unzipText, "zip"},
		{"nothing", func(testing.TB) []byte { return nil }, "Uploaded file must be a non-empty zip", ""},
		{"no entries", zipped(), "Uploaded file must be a non-empty zip", ""},
		{"parent directory", zipped(f("../x")), unzipText, `".."`},
		{"parent directory inside", zipped(f("a/../../x")), unzipText, `".."`},
		{"parent directory that stays inside", zipped(f("a/../x")), unzipText, `".."`},
		{"parent directory at the end", zipped(folder("a/..", 0o755)), unzipText, `".."`},
		{"absolute", zipped(f("/etc/passwd")), unzipText, "absolute"},
		{"NUL", zipped(f("a\x00b")), unzipText, "NUL"},
		{"backslash", zipped(f(`..\x`)), unzipText, "backslash"},
		{"long element", zipped(f(strings.Repeat("a", 256))), unzipText, "255 bytes"},
		{"long name", zipped(f(strings.Repeat("abcdefg/", 600) + "x")), unzipText, "4000 bytes"},
		{"deep", zipped(f(strings.Repeat("a/", 255) + "x")), unzipText, "255 levels"},
		{"no name", zipped(item{name: "./", body: ""}, item{name: ".", mode: typeLink | 0o777, body: "x"}), unzipText, "link"},
		{"device", zipped(item{name: "null", mode: 0o020666}), unzipText, "device"},
		{"block device", zipped(item{name: "sda", mode: 0o060666}), unzipText, "device"},
		{"fifo", zipped(item{name: "p", mode: 0o010644}), unzipText, "fifo"},
		{"socket", zipped(item{name: "s", mode: 0o140644}), unzipText, "socket"},
		{"through a link", zipped(link("a", "/tmp"), f("a/x")), unzipText, `"a" is a file or a link`},
		{"through a link made later", zipped(f("a/x"), link("a", "/tmp")), unzipText, "is a directory and something else"},
		{"through a link to a parent", zipped(link("a", ".."), link("a/b", ".."), f("a/b/x")), unzipText, `"a" is a file or a link`},
		{"file that becomes a directory", zipped(f("a"), f("a/x")), unzipText, `"a" is a file or a link`},
		{"directory that becomes a file", zipped(folder("a/", 0o755), f("a")), unzipText, "is a directory and something else"},
		{"link to nothing", zipped(link("a", "")), unzipText, "link to nothing"},
		{"link with a NUL", zipped(link("a", "b\x00c")), unzipText, "NUL"},
		{"long link", zipped(link("a", strings.Repeat("x", 4096))), unzipText, "4095 bytes"},
		{"encrypted", patched(func(b []byte) { central(b)[8] |= 1 }), unzipText, "encrypted"},
		{"another method", patched(func(b []byte) { central(b)[10] = 12 }), unzipText, "method 12"},
		{"wrong checksum", patched(func(b []byte) { central(b)[16] ^= 1 }), unzipText, "checksum"},
		{"damaged content", patched(func(b []byte) { b[35] ^= 0xff }), unzipText, ""},
		{"more than declared", patched(func(b []byte) { copy(central(b)[24:], []byte{10, 0, 0, 0}) }), unzipText, ""},
		{"less than declared", patched(func(b []byte) { copy(central(b)[24:], []byte{0xff, 0xff, 0, 0}) }), unzipText, "EOF"},
		{"declared too large", patched(func(b []byte) { copy(central(b)[24:], []byte{0xff, 0xff, 0xff, 0x7f}) }), "Unzipped size must be smaller than 262144000 bytes", "limit"},
		{"cut off", func(t testing.TB) []byte { b := makeZip(t, f("f")); return b[:len(b)-10] }, unzipText, "zip"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := test.make(t)
			_, inspectErr := InspectLayer(bytes.NewReader(b), int64(len(b)), nil)
			_, unpackErr := unpack(t, b)
			for _, err := range []error{inspectErr, unpackErr} {
				var e *lambdad.Error
				if !errors.As(err, &e) {
					t.Fatalf("got %v, want a *lambdad.Error", err)
				}
				if e.Code != "InvalidParameterValueException" || e.Message != test.text {
					t.Errorf("got %s %q, want %q", e.Code, e.Message, test.text)
				}
				if !strings.Contains(err.Error(), test.cause) {
					t.Errorf("%q does not tell the cause %q", err, test.cause)
				}
			}
		})
	}
}

// bomb makes a zip of n entries that each inflate to size bytes and say that it is
// declared.
func bomb(t testing.TB, n int, size, declared int) []byte {
	t.Helper()
	var raw, b bytes.Buffer
	w, err := flate.NewWriter(&raw, flate.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, size)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(&b)
	for i := range n {
		f, err := z.CreateRaw(&zip.FileHeader{
			Name: fmt.Sprintf("f%d", i), Method: zip.Deflate, CRC32: crc32.ChecksumIEEE(content),
			CompressedSize64: uint64(raw.Len()), UncompressedSize64: uint64(declared),
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(raw.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSizeLimit(t *testing.T) {
	const part = lambdad.MaxUnzipped / 10
	inspect := func(b []byte) (Info, error) { return Inspect(bytes.NewReader(b), int64(len(b))) }
	info, err := inspect(bomb(t, 10, part, part))
	if err != nil || info.Unzipped != lambdad.MaxUnzipped || info.Files != 10 {
		t.Errorf("at the limit: got %+v, %v", info, err)
	}
	if _, err := inspect(bomb(t, 10, part+1, part+1)); err == nil || !strings.Contains(err.Error(), "Unzipped size must be smaller than 262144000 bytes") {
		t.Errorf("above the limit: got %v", err)
	}
	// What an entry says of itself is not believed.
	for _, declared := range []int{7, part - 1} {
		if _, err := inspect(bomb(t, 20, part, declared)); err == nil || !strings.Contains(err.Error(), unzipText) && declared == 7 {
			t.Errorf("says %d bytes: got %v", declared, err)
		}
	}
}

func TestTooManyNodes(t *testing.T) {
	// Few entries that imply many directories.
	var items []item
	for i := range 1000 {
		items = append(items, file(fmt.Sprintf("%d/", i)+strings.Repeat("a/", 250)+"x", "", 0o644))
	}
	b := makeZip(t, items...)
	if _, err := unpack(t, b); err == nil || !strings.Contains(err.Error(), "more than 200000 files and directories") {
		t.Errorf("got %v", err)
	}
	// A directory of the zip larger than its budget: one long name many times.
	h := makeZip(t, item{name: "x", change: func(h *zip.FileHeader) { h.Comment = strings.Repeat("c", 60000) }})
	i := bytes.Index(h, []byte("PK\x01\x02"))
	j := bytes.Index(h, []byte("PK\x05\x06"))
	big := slices.Concat(h[:i], bytes.Repeat(h[i:j], 500), h[j:])
	if _, err := Inspect(bytes.NewReader(big), int64(len(big))); err == nil || !strings.Contains(err.Error(), unzipText) {
		t.Errorf("got %v", err)
	}
}

func TestInfo(t *testing.T) {
	b := makeZip(t, file("a", "12345", 0o644), file("a", "678", 0o644), link("l", "/opt/x"), folder("d/", 0o755))
	info, err := Inspect(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if info.Unzipped != 5+3+6 || info.Files != 2 {
		t.Errorf("got %+v, want 14 bytes in 2 files", info)
	}
}

func TestTimesAreKept(t *testing.T) {
	when := time.Date(2021, 3, 4, 5, 6, 7, 0, time.UTC)
	b := makeZip(t, item{name: "d/", mode: typeDir | 0o755, time: when.Add(time.Hour)},
		item{name: "d/f", mode: typeRegular | 0o644, body: "x", time: when}, file("g", "y", 0o644))
	dir, err := unpack(t, b)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]time.Time{"d/f": when, "d": when.Add(time.Hour)} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if !info.ModTime().Equal(want) {
			t.Errorf("%s: got %v, want %v", path, info.ModTime().UTC(), want)
		}
	}
}

func TestUnpackStopsWithItsContext(t *testing.T) {
	b := makeZip(t, file("f", "x", 0o644))
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if err := Unpack(ctx, bytes.NewReader(b), int64(len(b)), filepath.Join(t.TempDir(), "t")); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

func TestUnpackWritesOverNothing(t *testing.T) {
	b := makeZip(t, file("f", "x", 0o644))
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "f")); err != nil {
		t.Fatal(err)
	}
	if err := Unpack(t.Context(), bytes.NewReader(b), int64(len(b)), dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v", err)
	}
}

func TestFromDir(t *testing.T) {
	dir := t.TempDir()
	for path, mode := range map[string]fs.FileMode{"bootstrap": 0o755, "d/empty": 0o600, "d/data": 0o644} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		body := filepath.Base(path)
		if body == "empty" {
			body = ""
		}
		if err := os.WriteFile(path, []byte(body), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/nowhere", filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	var one, two bytes.Buffer
	for _, w := range []io.Writer{&one, &two} {
		if err := FromDir(t.Context(), dir, w); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("two zips of one directory differ")
	}
	out, err := unpack(t, one.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := tree(t, out), tree(t, dir); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if err := FromDir(t.Context(), filepath.Join(dir, "missing"), io.Discard); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: got %v", err)
	}
}

func TestZip64(t *testing.T) {
	// More entries than the old format can count.
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	const n = 66000
	for i := range n {
		if _, err := z.CreateHeader(&zip.FileHeader{Name: fmt.Sprintf("%x", i), CreatorVersion: madeOnUnix << 8, ExternalAttrs: 0o100644 << 16}); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := Inspect(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil || info.Files != n {
		t.Errorf("%d files, %v", info.Files, err)
	}
}
