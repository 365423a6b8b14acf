package runtimes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lambdad/lambdad"
)

func quietSet(dir string) *Set { return New(dir, slog.New(slog.DiscardHandler)) }

func onePython(t *testing.T) *Runtime {
	t.Helper()
	if len(pythons) == 0 {
		if os.Getenv("LAMBDAD_TEST_ROOT") == "1" {
			t.Fatal("no Python 3 on this machine")
		}
		t.Skip("no Python 3 on this machine")
	}
	return pythons[0]
}

// onlyPath makes dir the only place where the user keeps programs.
func onlyPath(t *testing.T, dirs ...string) {
	t.Helper()
	t.Setenv("PATH", strings.Join(append(dirs, "/bin"), ":"))
	t.Setenv("HOME", t.TempDir())
	t.Setenv("PYENV_ROOT", "")
}

func TestProvided(t *testing.T) {
	set := quietSet(filepath.Join(t.TempDir(), "never made"))
	for _, name := range []string{"provided.al2023", "provided.al2"} {
		r, err := set.Resolve(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(r.Entrypoints, []string{"/var/task/bootstrap", "/opt/bootstrap"}) || len(r.Mounts) != 0 || len(r.Env) != 0 || r.Version != "" || r.VersionARN("eu-west-1") != "" {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if _, err := os.Stat(set.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("files were made for runtimes that need none")
	}
}

func TestRefused(t *testing.T) {
	set := quietSet(t.TempDir())
	for _, name := range []string{"nodejs16.x", "nodejs20", "java11", "java8.al2", "ruby2.7", "dotnet8", "python3.7", "python3.15", "python3.012", "python3.+9", "python3.", "python2.7", "", "provided", "go1.x", "a b\n"} {
		_, err := set.Resolve(t.Context(), name)
		var e *lambdad.Error
		if !errors.As(err, &e) || e.Code != "InvalidParameterValueException" {
			t.Errorf("%q: got %v", name, err)
			continue
		}
		if !strings.Contains(e.Message, "lambdad does not run") || !strings.Contains(e.Message, "provided.al2023, provided.al2, python3.8 to python3.14, nodejs18.x to nodejs24.x, ruby3.2 to ruby3.4 and java17 to java25.") || strings.Contains(e.Message, "\n") {
			t.Errorf("%q: message %q", name, e.Message)
		}
	}
}

func TestPythonRuntime(t *testing.T) {
	r := onePython(t)
	if len(r.Mounts) != 2 || r.Mounts[0].Target != "/var/lang" || r.Mounts[1].Target != "/var/runtime" || !slices.Equal(r.Entrypoints, []string{"/var/runtime/bootstrap"}) {
		t.Errorf("%+v", r)
	}
	if !regexp.MustCompile(`^python:3\.\d+\.\d+ \(host\)$`).MatchString(r.Version) {
		t.Errorf("version %q", r.Version)
	}
	if !regexp.MustCompile(`^arn:aws:lambda:eu-west-1::runtime:[0-9a-f]{64}$`).MatchString(r.VersionARN("eu-west-1")) {
		t.Errorf("ARN %q", r.VersionARN("eu-west-1"))
	}
	if r.Env["AWS_EXECUTION_ENV"] != "AWS_Lambda_"+r.Name {
		t.Errorf("env %v", r.Env)
	}
	// The interpreter is at the documented place of /var/lang.
	program := filepath.Join(r.Mounts[0].Sources[0], "bin", fmt.Sprintf("python3.%d", minorOf(r)))
	if info, err := os.Stat(program); err != nil || info.Mode()&0o111 == 0 {
		t.Errorf("%s: %v", program, err)
	}
	for path, mode := range map[string]fs.FileMode{"bootstrap": 0o755, "bootstrap.py": 0o644, "lambdad_runtime.py": 0o644, "interpreter": 0o644, "": fs.ModeDir | 0o755, "__pycache__": fs.ModeDir | 0o755} {
		info, err := os.Stat(filepath.Join(r.Mounts[1].Sources[0], path))
		if err != nil || info.Mode() != mode {
			t.Errorf("%q: %v, %v", path, info, err)
		}
	}
	compiled, _ := filepath.Glob(filepath.Join(r.Mounts[1].Sources[0], "__pycache__", fmt.Sprintf("lambdad_runtime.cpython-3%d.pyc", minorOf(r))))
	if len(compiled) != 1 {
		t.Errorf("compiled client: %v", compiled)
	}
}

func TestShimsAndVirtualEnvironments(t *testing.T) {
	r := onePython(t)
	minor := minorOf(r)
	name := fmt.Sprintf("python3.%d", minor)
	prefix := filepath.Dir(filepath.Dir(r.Interpreter))

	shims := t.TempDir()
	count := filepath.Join(t.TempDir(), "count")
	write(t, shims, map[string]string{name: "#!/bin/sh\necho x >>" + count + "\necho warming up\nexec " + r.Interpreter + " \"$@\"\n"})
	broken := t.TempDir()
	write(t, broken, map[string]string{
		name:      "#!/bin/sh\necho 'pyenv: " + name + ": command not found' >&2\nexit 127\n",
		"python3": "#!/bin/sh\nprintf 'pypy\\n3.10.14\\n/p\\n/p\\n/p/bin/python3.10\\n'\n",
	})
	venv := filepath.Join(t.TempDir(), "venv")
	if out, err := exec.Command(r.Interpreter, "-m", "venv", "--without-pip", venv).CombinedOutput(); err != nil {
		t.Logf("no virtual environment to try: %v: %s", err, out)
		venv = shims
	} else {
		venv = filepath.Join(venv, "bin")
	}
	for _, test := range []struct {
		name string
		path []string
	}{{"shim", []string{shims}}, {"virtual environment", []string{venv}}, {"broken shim first", []string{broken, shims}}, {"relative directory first", []string{".", shims}}} {
		t.Run(test.name, func(t *testing.T) {
			onlyPath(t, test.path...)
			got, err := quietSet(t.TempDir()).Resolve(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			if got.Interpreter != r.Interpreter {
				t.Errorf("interpreter %s, want %s below %s", got.Interpreter, r.Interpreter, prefix)
			}
		})
	}

	t.Run("asked once", func(t *testing.T) {
		onlyPath(t, shims)
		dir := t.TempDir()
		asked := func() int { b, _ := os.ReadFile(count); return strings.Count(string(b), "x") }
		before := asked()
		for range 3 {
			set := quietSet(dir) // a new start of the server
			for range 2 {
				if _, err := set.Resolve(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
		}
		if n := asked() - before; n != 1 {
			t.Errorf("the shim ran %d times", n)
		}
		// A changed file is asked again.
		write(t, shims, map[string]string{name: "#!/bin/sh\necho x >>" + count + "\nexec " + r.Interpreter + " \"$@\"\n"})
		if _, err := quietSet(dir).Resolve(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if n := asked() - before; n != 2 {
			t.Errorf("the changed shim was not asked: %d", n)
		}
		// What is remembered may be anything.
		if err := os.WriteFile(filepath.Join(dir, "probes.json"), []byte("null"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := quietSet(dir).Resolve(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAnotherVersionStandsIn(t *testing.T) {
	r := onePython(t)
	dir := t.TempDir()
	write(t, dir, map[string]string{"python3": "#!/bin/sh\nexec " + r.Interpreter + " \"$@\"\n"})
	onlyPath(t, dir)
	wanted := lastPython
	if minorOf(r) == wanted {
		wanted--
	}
	for _, p := range exactPythons(fmt.Sprintf("3.%d", wanted)) {
		if _, err := os.Stat(p); err == nil {
			t.Skipf("%s is there", p)
		}
	}
	var log strings.Builder
	set := New(t.TempDir(), slog.New(slog.NewTextHandler(&log, nil)))
	name := fmt.Sprintf("python3.%d", wanted)
	for range 2 {
		got, err := set.Resolve(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if got.Interpreter != r.Interpreter || got.Version != r.Version || got.Env["AWS_EXECUTION_ENV"] != "AWS_Lambda_"+name {
			t.Errorf("%+v", got)
		}
	}
	if n := strings.Count(log.String(), "another version takes its place"); n != 1 {
		t.Errorf("said %d times: %s", n, log.String())
	}
	log.Reset()
	names := New(set.dir, slog.New(slog.NewTextHandler(&log, nil))).Names()
	if n := len(slices.DeleteFunc(slices.Clone(names), func(s string) bool { return !strings.HasPrefix(s, "python") })); n != lastPython-firstPython+1 || !slices.Contains(names, "python3.9") || log.Len() != 0 {
		t.Errorf("names %v, log %s", names, log.String())
	}
}

func TestPrefixUsr(t *testing.T) {
	if _, err := os.Stat("/usr/bin/python3"); err != nil {
		t.Skip("no /usr/bin/python3")
	}
	p, err := askPython(t.Context(), "/usr/bin/python3")
	if err != nil || p.Prefix != "/usr" || !newer(p.Release, "3.8") {
		t.Skipf("/usr/bin/python3 is %+v, %v", p, err)
	}
	onlyPath(t, "/usr/bin")
	r, err := quietSet(t.TempDir()).Resolve(t.Context(), "python"+p.Release)
	if err != nil {
		t.Fatal(err)
	}
	if r.Interpreter != p.Path {
		t.Skipf("%s comes first", r.Interpreter)
	}
	for _, name := range []string{filepath.Base(p.Path), "python3", "python"} {
		target, err := os.Readlink(filepath.Join(r.Mounts[0].Sources[0], "bin", name))
		if err != nil || target != p.Path {
			t.Errorf("%s: %s, %v", name, target, err)
		}
	}
	out := run{files: map[string]string{"m.py": "def handler(e, c): return e\n"}, handler: "m.handler", steps: []step{{event: "1"}}}.start(t, r)
	if len(out.posts) != 1 || out.posts[0].body != "1" {
		t.Errorf("posts %v, stderr %s", out.posts, out.stderr)
	}
}

func TestUnpackClient(t *testing.T) {
	r := onePython(t)
	dir := t.TempDir()
	left := filepath.Join(dir, partialPrefix+"left")
	if err := os.MkdirAll(filepath.Join(left, "runtime"), 0o755); err != nil {
		t.Fatal(err)
	}
	// Two servers that share nothing but the directory, several callers each.
	var wg sync.WaitGroup
	for range 2 {
		set := quietSet(dir)
		set.swept = true // or one would sweep away what the other is at
		for range 3 {
			wg.Go(func() {
				if _, err := set.Resolve(context.Background(), r.Name); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	set := quietSet(dir)
	got, err := set.Resolve(t.Context(), r.Name)
	if err != nil {
		t.Fatal(err)
	}
	// Gone while the server runs: made again.
	if err := os.RemoveAll(filepath.Dir(got.Mounts[1].Sources[0])); err != nil {
		t.Fatal(err)
	}
	if got, err = set.Resolve(t.Context(), r.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(got.Mounts[1].Sources[0], "bootstrap")); err != nil {
		t.Error(err)
	}
	list, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(list) != 2 {
		t.Errorf("left: %v, want the client and the probes", list)
	}
	// A place that cannot be written is a failure of the host, not of the caller.
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := quietSet(filepath.Join(file, "x")).Resolve(t.Context(), r.Name); err == nil || lambdad.ErrorCode(err) != "" {
		t.Errorf("got %v", err)
	}
}

func BenchmarkResolve(b *testing.B) {
	set := quietSet(b.TempDir())
	if _, err := set.Resolve(b.Context(), "python3.12"); err != nil {
		b.Skip(err)
	}
	for b.Loop() {
		if _, err := set.Resolve(b.Context(), "python3.12"); err != nil {
			b.Fatal(err)
		}
	}
}
