package runtimes

import (
	"context"
	"embed"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

//go:embed python/bootstrap.py python/lambdad_runtime.py
var pythonClient embed.FS

// Versions of Python that have an identifier.
const (
	firstPython = 8
	lastPython  = 14
)

// python is CPython 3: the host's own or a version manager's.
func python() *language {
	l := &language{
		name: "python", title: "Python",
		id:      func(release string) string { return "python" + release },
		client:  pythonClient,
		exact:   exactPythons,
		likely:  func() []string { return append(append(inPath("python3"), inPath("python")...), usual("python3")...) },
		ask:     askPython,
		fits:    func(i interpreter, _ string) bool { return newer(i.Release, "3."+strconv.Itoa(firstPython)) },
		prepare: compilePython,
		programs: func(i interpreter) []string {
			return []string{filepath.Base(i.Path), "python3", "python"}
		},
		warning: "packages with compiled parts must fit it",
		install: fmt.Sprintf("Install Python 3.%d or later there and try again.", firstPython),
	}
	for minor := firstPython; minor <= lastPython; minor++ {
		l.releases = append(l.releases, "3."+strconv.Itoa(minor))
	}
	return l
}

// exactPythons lists where a release may be, best first.
func exactPythons(release string) []string {
	name := "python" + release
	list := inPath(name)
	list = append(list, below(os.Getenv("PYENV_ROOT"), "versions/"+release+"*/bin/"+name)...)
	if home := home(); home != "" {
		for _, dir := range []string{".pyenv/versions/", ".asdf/installs/python/", ".local/share/mise/installs/python/", ".local/share/uv/python/cpython-"} {
			list = append(list, below(home, dir+release+"*/bin/"+name)...)
		}
	}
	for _, pattern := range []string{
		"/opt/pyenv/versions/" + release + "*", "/opt/hostedtoolcache/Python/" + release + "*/*",
		"/opt/homebrew/opt/python@" + release, "/usr/local/opt/python@" + release,
	} {
		list = append(list, below("/", pattern+"/bin/"+name)...)
	}
	return append(append(list, usual(name)...), "/opt/python/bin/"+name)
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

// askPython runs the interpreter at path. A virtual environment's and a shim's
// answers are about the interpreter behind them.
func askPython(ctx context.Context, path string) (interpreter, error) {
	lines, err := askProgram(ctx, 5, path, "-I", "-S", "-c", probeScript)
	if err != nil {
		return interpreter{}, err
	}
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
	return interpreter{Release: fmt.Sprintf("3.%d", v[1]), Version: version, Prefix: prefix, Path: program}, nil
}

// compileScript compiles the client for the interpreter that runs it. The files
// never change, so the compiled one is not compared with its source.
const compileScript = `import py_compile, os
py_compile.compile("lambdad_runtime.py", dfile="/var/runtime/lambdad_runtime.py", doraise=True,
    invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
for d, _, names in os.walk("__pycache__"):
    os.chmod(d, 0o755)
    for n in names: os.chmod(os.path.join(d, n), 0o644)
`

// compilePython saves every cold start the compilation. Without it everything
// works, later.
func compilePython(ctx context.Context, s *Set, dir string, i interpreter) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, i.Path, "-I", "-S", "-c", compileScript)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "the Python runtime client could not be compiled; cold starts take longer",
			slog.String("interpreter", i.Path), slog.Any("error", err), slog.String("output", strings.TrimSpace(string(out))))
	}
	return nil
}
