package runtimes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/sandbox"
)

// An interpreter is a Python of this host, as it describes itself.
type interpreter struct {
	Minor   int    // of 3.Minor
	Version string // 3.11.7
	Prefix  string // real directory that holds bin and lib
	Path    string // the program in Prefix/bin, not a shim and not a virtual environment
}

// A pythonRuntime is a resolved Runtime with what it was made from.
type pythonRuntime struct {
	runtime *Runtime
	stamp   stamp  // of the interpreter
	dir     string // the client's
}

// python resolves python3.minor.
func (s *Set) python(ctx context.Context, name string, minor int) (*Runtime, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pythons[minor]; p != nil {
		now, err := stampOf(p.runtime.Interpreter)
		if err == nil && now == p.stamp {
			if _, err := os.Stat(p.dir); err == nil {
				return p.runtime, nil
			}
		}
		delete(s.pythons, minor)
	}
	found, err := s.findPython(ctx, minor)
	if err != nil {
		return nil, err
	}
	st, err := stampOf(found.Path)
	if err != nil {
		return nil, fmt.Errorf("runtimes: %s: %w", name, err)
	}
	dir, err := s.unpackClient(ctx, found)
	if err != nil {
		return nil, fmt.Errorf("runtimes: %s: unpack the runtime client into %s: %w", name, s.dir, err)
	}
	r := &Runtime{
		Name:        name,
		Entrypoints: []string{"/var/runtime/bootstrap"},
		Mounts: []sandbox.Mount{
			{Target: "/var/lang", Sources: []string{langDir(dir, found)}},
			{Target: "/var/runtime", Sources: []string{filepath.Join(dir, "runtime")}},
		},
		// The environment translates paths in values; the client takes the second one
		// away before the function sees it.
		Env:         map[string]string{"AWS_EXECUTION_ENV": "AWS_Lambda_" + name, "_LAMBDAD_OPT": "/opt"},
		Version:     "python:" + found.Version + " (host)",
		VersionID:   versionID(found),
		Interpreter: found.Path,
	}
	s.pythons[minor] = &pythonRuntime{runtime: r, stamp: st, dir: dir}
	level, note := slog.LevelInfo, ""
	if found.Minor != minor {
		level, note = slog.LevelWarn, fmt.Sprintf("this host has no Python 3.%d, so another version takes its place; packages with compiled parts must fit it", minor)
	}
	attrs := []slog.Attr{slog.String("runtime", name), slog.String("version", found.Version), slog.String("interpreter", found.Path)}
	if note != "" {
		attrs = append(attrs, slog.String("note", note))
	}
	s.log.LogAttrs(ctx, level, "Python found", attrs...)
	return r, nil
}

// findPython looks for Python 3.minor, or for any other that is recent enough.
func (s *Set) findPython(ctx context.Context, minor int) (interpreter, error) {
	if s.probes == nil {
		s.probes = openProbes(filepath.Join(s.dir, "probes.json"))
	}
	defer s.probes.save()
	var tried []error
	seen := map[string]bool{}
	try := func(candidates []string, accept func(interpreter) bool) (interpreter, bool) {
		for _, path := range candidates {
			if seen[path] {
				continue
			}
			found, err := s.probes.ask(ctx, path)
			switch {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				seen[path] = true
				tried = append(tried, fmt.Errorf("%s: %w", path, err))
			case accept(found):
				return found, true
			}
		}
		return interpreter{}, false
	}
	exactly := func(p interpreter) bool { return p.Minor == minor }
	if found, ok := try(exactPythons(minor), exactly); ok {
		return found, nil
	}
	if found, ok := try(anyPythons(), exactly); ok {
		return found, nil
	}
	if found, ok := try(anyPythons(), func(p interpreter) bool { return p.Minor >= firstPython }); ok {
		return found, nil
	}
	for other := lastPython; other >= firstPython; other-- {
		if found, ok := try(exactPythons(other), func(p interpreter) bool { return p.Minor >= firstPython }); ok {
			return found, nil
		}
	}
	if ctx.Err() != nil {
		return interpreter{}, context.Cause(ctx)
	}
	e := lambdad.Errorf("InvalidParameterValueException",
		"lambdad runs python3.%d with the Python of its host, and this host has none of version 3.%d or later in PATH or where version managers keep them. Install Python 3 there and try again.", minor, firstPython)
	e.Err = errors.Join(tried...)
	return interpreter{}, e
}

// exactPythons lists where Python 3.minor may be, best first.
func exactPythons(minor int) []string {
	name := "python3." + strconv.Itoa(minor)
	list := inPath(name)
	home, _ := os.UserHomeDir()
	under := func(root, pattern string) {
		if root == "" {
			return
		}
		found, _ := filepath.Glob(filepath.Join(root, pattern, "bin", name))
		slices.SortFunc(found, byVersion)
		list = append(list, found...)
	}
	v := "3." + strconv.Itoa(minor)
	under(os.Getenv("PYENV_ROOT"), "versions/"+v+"*")
	if home != "" {
		under(home, ".pyenv/versions/"+v+"*")
		under(home, ".asdf/installs/python/"+v+"*")
		under(home, ".local/share/mise/installs/python/"+v+"*")
		under(home, ".local/share/uv/python/cpython-"+v+"*")
	}
	under("/opt/pyenv", "versions/"+v+"*")
	under("/opt/hostedtoolcache/Python", v+"*/*")
	under("/opt/homebrew/opt", "python@"+v)
	under("/usr/local/opt", "python@"+v)
	for _, dir := range []string{"/usr/local/bin", "/opt/homebrew/bin", "/usr/bin", "/opt/python/bin"} {
		list = append(list, filepath.Join(dir, name))
	}
	return list
}

// anyPythons lists where some Python 3 may be, the user's own choice first.
func anyPythons() []string {
	list := append(inPath("python3"), inPath("python")...)
	for _, dir := range []string{"/usr/local/bin", "/opt/homebrew/bin", "/usr/bin"} {
		list = append(list, filepath.Join(dir, "python3"))
	}
	return list
}

// inPath lists name in every directory of PATH.
func inPath(name string) []string {
	var list []string
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(dir) {
			list = append(list, filepath.Join(dir, name))
		}
	}
	return list
}

// byVersion sorts paths that hold versions, newest first.
func byVersion(a, b string) int {
	x, y := numbers(a), numbers(b)
	return slices.Compare(y, x)
}

func numbers(s string) []int {
	var list []int
	for _, field := range strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' }) {
		n, _ := strconv.Atoi(field)
		list = append(list, n)
	}
	return list
}

// langDir is what /var/lang is: the interpreter's prefix, or links to it when the
// prefix is a directory that every sandbox has at its own place.
func langDir(dir string, p interpreter) string {
	if p.Prefix == "/usr" {
		return filepath.Join(dir, "lang")
	}
	return p.Prefix
}

// insidePath is where the interpreter is in a sandbox.
func insidePath(p interpreter) string { return "/var/lang/bin/" + filepath.Base(p.Path) }

// versionID identifies what runs a function's code.
func versionID(p interpreter) string {
	sum := sha256.Sum256([]byte("python\x00" + clientDigest() + "\x00" + p.Version + "\x00" + runtime.GOARCH))
	return hex.EncodeToString(sum[:])
}

// probeScript makes an interpreter describe itself. It is given without site, so
// that nothing of the host's packages runs. Version 2 must be able to read it.
const probeScript = `import sys, os
v = sys.version_info
p = os.path.realpath(getattr(sys, "base_prefix", sys.prefix))
x = os.path.realpath(getattr(sys, "base_exec_prefix", sys.exec_prefix))
e = os.path.join(p, "bin", "python%d.%d" % v[:2])
print("\n".join([sys.implementation.name if v[0] > 2 else "python2", "%d.%d.%d" % v[:3], p, x, e]))
`

// ask runs the interpreter at path. A virtual environment's and a shim's answers
// are about the interpreter behind them.
func ask(ctx context.Context, path string) (interpreter, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "-I", "-S", "-c", probeScript)
	// Not the directory somebody happened to start the daemon in: version managers
	// look for their files there.
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && len(exit.Stderr) > 0 {
			line, _, _ := strings.Cut(strings.TrimSpace(string(exit.Stderr)), "\n")
			err = fmt.Errorf("%w: %s", err, line)
		}
		return interpreter{}, err
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) < 5 {
		return interpreter{}, fmt.Errorf("answered %q, which no Python does", string(out))
	}
	lines = lines[len(lines)-5:] // a shim may say something first
	implementation, version, prefix, execPrefix, program := lines[0], lines[1], lines[2], lines[3], lines[4]
	v := numbers(version)
	if len(v) != 3 || v[0] != 3 {
		return interpreter{}, fmt.Errorf("is Python %s", version)
	}
	if implementation != "cpython" {
		return interpreter{}, fmt.Errorf("is %s, and AWS's runtimes are CPython", implementation)
	}
	if prefix != execPrefix {
		return interpreter{}, fmt.Errorf("is spread over two prefixes, %s and %s", prefix, execPrefix)
	}
	if _, err := os.Stat(program); err != nil {
		return interpreter{}, fmt.Errorf("its prefix %s has no bin/%s", prefix, filepath.Base(program))
	}
	return interpreter{Minor: v[1], Version: version, Prefix: prefix, Path: program}, nil
}

// A stamp changes when a file does.
type stamp struct {
	ModTime int64 // ns
	Size    int64
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	return stamp{info.ModTime().UnixNano(), info.Size()}, nil
}

// probes remembers the answers of interpreters across starts: a version manager's
// shim takes longer to answer than everything else at start.
type probes struct {
	file    string
	changed bool
	Answers map[string]probe
}

type probe struct {
	Asked  stamp // of the candidate
	Real   stamp // of the interpreter behind it
	Answer interpreter
}

func openProbes(file string) *probes {
	p := &probes{file: file, Answers: map[string]probe{}}
	b, err := os.ReadFile(file)
	if err == nil && json.Unmarshal(b, &p.Answers) != nil || p.Answers == nil {
		p.Answers = map[string]probe{}
	}
	return p
}

// ask answers from memory if neither the candidate nor the interpreter behind it
// has changed.
func (p *probes) ask(ctx context.Context, path string) (interpreter, error) {
	now, err := stampOf(path)
	if err != nil {
		return interpreter{}, fs.ErrNotExist
	}
	if known, ok := p.Answers[path]; ok && known.Asked == now {
		if st, err := stampOf(known.Answer.Path); err == nil && st == known.Real {
			return known.Answer, nil
		}
	}
	answer, err := ask(ctx, path)
	if err != nil {
		return interpreter{}, err
	}
	st, err := stampOf(answer.Path)
	if err != nil {
		return interpreter{}, err
	}
	p.Answers[path] = probe{now, st, answer}
	p.changed = true
	return answer, nil
}

// save writes the answers down. They are only a saving of time, so a failure is
// no matter.
func (p *probes) save() {
	if !p.changed {
		return
	}
	p.changed = false
	b, err := json.Marshal(p.Answers)
	if err != nil {
		return
	}
	if os.MkdirAll(filepath.Dir(p.file), 0o755) == nil {
		tmp := p.file + ".new"
		if os.WriteFile(tmp, b, 0o600) == nil {
			_ = os.Rename(tmp, p.file)
		}
	}
}
