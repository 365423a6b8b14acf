// Package runtimes knows what an execution environment needs for each runtime
// identifier: which trees to mount, which program to start and which variables to
// give it (runtimes.md sections 1 and 2, control-plane.md section 7).
//
// provided.al2023 and provided.al2 need nothing: the function brings its own
// bootstrap. python3.N runs on the host's own Python, which is asked for its real
// prefix, so that version managers' shims and virtual environments work, and
// whose prefix becomes /var/lang; a runtime client that is part of this package
// becomes /var/runtime. If the host lacks the very version, another Python 3 takes
// its place and the log says so once; what AWS's runtimes do differently from
// version to version follows the identifier all the same.
//
// Every other identifier is refused with a text that says what can be run.
package runtimes

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/sandbox"
)

// A Runtime is what environments of one identifier are built with. It is shared:
// nobody changes it.
type Runtime struct {
	// Name is the identifier, such as python3.12.
	Name string
	// Mounts are the trees that come with the runtime: /var/lang, /var/runtime.
	Mounts []sandbox.Mount
	// Entrypoints are inside paths; the first that exists is started.
	Entrypoints []string
	// Env is for the runtime's process only. The client's own start script adds
	// PYTHONPATH, unless the customer has set it.
	Env map[string]string
	// Version is what INIT_START shows, such as "python:3.11.7 (host)"; empty for
	// provided.*.
	Version string
	// VersionID identifies client and interpreter version, 64 hex digits, for the
	// runtime version ARN; empty for provided.*.
	VersionID string
	// Interpreter is the host's path of the interpreter; empty for provided.*.
	Interpreter string
}

// VersionARN is the runtime version's ARN in a region; empty for provided.*.
func (r *Runtime) VersionARN(region string) string {
	if r.VersionID == "" {
		return ""
	}
	return "arn:aws:lambda:" + region + "::runtime:" + r.VersionID
}

// Versions of Python that have an identifier.
const (
	firstPython = 8
	lastPython  = 14
)

// A Set resolves identifiers on this host.
type Set struct {
	dir string
	log *slog.Logger

	mu      sync.Mutex // guards what follows, and keeps several from probing at once
	pythons map[int]*pythonRuntime
	probes  *probes
	swept   bool
}

// New returns a set that keeps the files it makes below dir. It touches nothing;
// the first Resolve that needs to does.
func New(dir string, log *slog.Logger) *Set {
	return &Set{dir: dir, log: log, pythons: map[int]*pythonRuntime{}}
}

// Resolve says what an identifier needs. It is cheap when repeated: the
// interpreter is asked again only after its file has changed. An identifier that
// cannot be run here gives a *lambdad.Error with code
// InvalidParameterValueException and a text for the caller; anything else is a
// failure of this host, such as a full disk.
func (s *Set) Resolve(ctx context.Context, name string) (*Runtime, error) {
	if name == "provided.al2023" || name == "provided.al2" {
		return &Runtime{Name: name, Entrypoints: []string{"/var/task/bootstrap", "/opt/bootstrap"}}, nil
	}
	if minor, ok := pythonMinor(name); ok {
		return s.python(ctx, name, minor)
	}
	return nil, lambdad.Errorf("InvalidParameterValueException",
		"lambdad does not run %s yet; it runs provided.al2023, provided.al2 and python3.%d to python3.%d.", shown(name), firstPython, lastPython)
}

// Names are the identifiers that can be run on this host, as AWS spells them.
func (s *Set) Names() []string {
	names := []string{"provided.al2", "provided.al2023"}
	// One Python will do for all.
	s.mu.Lock()
	_, err := s.findPython(context.Background(), lastPython)
	s.mu.Unlock()
	if err == nil {
		for minor := firstPython; minor <= lastPython; minor++ {
			names = append(names, "python3."+strconv.Itoa(minor))
		}
	}
	return names
}

// pythonMinor returns 12 for python3.12.
func pythonMinor(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, "python3.")
	minor, err := strconv.Atoi(digits)
	return minor, ok && err == nil && minor >= firstPython && minor <= lastPython && strconv.Itoa(minor) == digits
}

func shown(name string) string {
	if len(name) > 64 || strings.ContainsFunc(name, func(r rune) bool { return r < '!' || r > '~' }) {
		return fmt.Sprintf("%.64q", name)
	}
	return name
}
