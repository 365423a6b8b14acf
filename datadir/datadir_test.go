package datadir

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
)

const holderChild = "LAMBDAD_DATADIR_TEST_HOLDER"

// TestMain also is the other server: it holds a directory until it is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(holderChild); dir != "" {
		d, err := Open(dir, quiet())
		if err == nil {
			err = d.Announce(Server{Endpoint: "http://127.0.0.1:4566", Tier: "root"})
		}
		fmt.Println("holding", err)
		select {}
	}
	os.Exit(m.Run())
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "dir")
	d := open(t, path)
	if !regexp.MustCompile(`^[0-9a-f]{8}$`).MatchString(d.ID()) {
		t.Errorf("id %q", d.ID())
	}
	err := filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %v", p, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{d.Records(), d.Blobs(), d.Code(), d.Logs(), d.Run(), d.Runtimes()} {
		if info, err := os.Stat(sub); err != nil || !info.IsDir() {
			t.Errorf("%s: %v", sub, err)
		}
	}
	if free, err := d.FreeBytes(); err != nil || free <= 0 {
		t.Errorf("free bytes %d, %v", free, err)
	}
	id := d.ID()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if again := open(t, path); again.ID() != id {
		t.Errorf("id was %s, became %s", id, again.ID())
	}
	if other := open(t, t.TempDir()); other.ID() == id {
		t.Errorf("two directories have the id %s", id)
	}
}

func TestLock(t *testing.T) {
	path := t.TempDir()
	_, err := Lookup(filepath.Join(path, "nowhere"))
	if !errors.Is(err, ErrNoServer) {
		t.Fatalf("looking in no directory: %v", err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holderChild+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "holding <nil>\n" {
		t.Fatalf("the other server says %q, %v", line, err)
	}
	_, err = Open(path, quiet())
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint("process ", cmd.Process.Pid)) || !strings.Contains(err.Error(), "http://127.0.0.1:4566") {
		t.Fatalf("a second server gets %v", err)
	}
	s, err := Lookup(path)
	if err != nil || s.PID != cmd.Process.Pid || s.Endpoint != "http://127.0.0.1:4566" || s.Tier != "root" || s.Started.IsZero() {
		t.Fatalf("looked up %+v, %v", s, err)
	}
	// Killed, it leaves its file behind but not its lock.
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := os.Stat(filepath.Join(path, "server.json")); err != nil {
		t.Fatal(err)
	}
	if s, err := Lookup(path); !errors.Is(err, ErrNoServer) {
		t.Fatalf("looked up a dead server: %+v, %v", s, err)
	}
	d := open(t, path)
	if _, err := os.Stat(filepath.Join(path, "server.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the dead server's file is still there: %v", err)
	}
	if _, err := Lookup(path); !errors.Is(err, ErrNoServer) {
		t.Fatalf("looked up a server that has not announced itself: %v", err)
	}
	if err := d.Announce(Server{Endpoint: "http://127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	if s, err := Lookup(path); err != nil || s.PID != os.Getpid() {
		t.Fatalf("looked up %+v, %v", s, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Lookup(path); !errors.Is(err, ErrNoServer) {
		t.Fatalf("looked up a stopped server: %v", err)
	}
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), temporary) || e.Name() == "server.json" {
			t.Errorf("%s is left, %v", e.Name(), err)
		}
	}
}

// Commands that look do not keep a server from starting.
func TestLookupDoesNotDisturb(t *testing.T) {
	path := t.TempDir()
	open(t, path).Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					Lookup(path)
					runtime.Gosched()
				}
			}
		})
	}
	failed := 0
	for range 20 {
		if d, err := Open(path, quiet()); err != nil {
			failed++
			t.Log(err)
		} else {
			d.Close()
		}
	}
	close(stop)
	wg.Wait()
	// Four commands that look all the time are more than there ever will be.
	if failed > 10 {
		t.Errorf("%d of 20 starts failed", failed)
	}
}

func TestRefusals(t *testing.T) {
	write := func(name, content string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		prepare func(t *testing.T, dir string)
		want    error
		says    string
	}{
		"newer format":   {write("format", "2\n"), ErrFormat, "newer lambdad"},
		"broken format":  {write("format", "x"), ErrFormat, "format"},
		"broken id":      {write("id", "../../x"), nil, "hexadecimal"},
		"others' things": {func(t *testing.T, dir string) { write("notes.txt", "")(t, dir); os.Chmod(dir, 0o755) }, nil, "holds other things"},
		"a file":         {func(t *testing.T, dir string) { os.Remove(dir); write(filepath.Base(dir), "")(t, filepath.Dir(dir)) }, nil, dirIsFile},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "d")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			c.prepare(t, dir)
			d, err := Open(dir, quiet())
			if err == nil {
				d.Close()
				t.Fatal("opened")
			}
			if (c.want != nil && !errors.Is(err, c.want)) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), dir) {
				t.Fatalf("got %v, want %v saying %q and naming %s", err, c.want, c.says, dir)
			}
		})
	}
	// A refusal gives the lock back.
	dir := t.TempDir()
	write("format", "2")(t, dir)
	if _, err := Open(dir, quiet()); err == nil {
		t.Fatal("opened")
	}
	write("format", "1")(t, dir)
	open(t, dir)
}

const dirIsFile = "not a directory"

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	for i := range 3 {
		want := bytes.Repeat([]byte{byte(i)}, 1000*i)
		if err := WriteFile(name, want, 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o640 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if err := WriteFile(filepath.Join(dir, "no", "f"), nil, 0o600); err == nil {
		t.Fatal("wrote into a directory that is not there")
	}
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "d"), nil, 0o600); err == nil {
		t.Fatal("a file replaced a directory")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Fatalf("left behind: %v, %v", entries, err)
	}
}

func TestDefault(t *testing.T) {
	got, err := Default()
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if got != "/var/lib/lambdad" {
			t.Fatalf("as root: %s", got)
		}
		return
	}
	t.Setenv("XDG_STATE_HOME", "/x/state")
	if got, err := Default(); err != nil || got != "/x/state/lambdad" {
		t.Fatalf("%s, %v", got, err)
	}
	t.Setenv("XDG_STATE_HOME", "")
	t.Setenv("HOME", "/h")
	if got, err := Default(); err != nil || got != "/h/.local/state/lambdad" {
		t.Fatalf("%s, %v", got, err)
	}
}
