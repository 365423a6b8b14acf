package runtimes

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/sandbox"
)

// An interpreter is one of this host, as it describes itself.
type interpreter struct {
	Release string // what identifiers name: 3.11 for Python, 20 for Node.js
	Version string // 3.11.7
	Prefix  string // real directory that holds bin and lib
	Path    string // the program in Prefix/bin, not a shim and not a virtual environment
	Flags   string `json:",omitempty"` // what the start script has to know of it
}

// A language is a family of identifiers that the host's interpreters run.
type language struct {
	name  string // as in identifiers: python
	title string // Python
	// releases are those that AWS has identifiers for, oldest first, and id makes
	// the identifier of one.
	releases []string
	id       func(release string) string
	// client are the files of the runtime client, below a directory of the
	// language's name.
	client embed.FS
	// programs are the names an interpreter has in /var/lang/bin.
	programs func(i interpreter) []string
	// exact lists where a release may be and likely lists where some release may
	// be, best first.
	exact  func(release string) []string
	likely func() []string
	// ask makes the interpreter at path describe itself.
	ask func(ctx context.Context, path string) (interpreter, error)
	// fits says whether an interpreter will do for an identifier of another release.
	fits func(i interpreter, release string) bool
	// env are the variables of the runtime's process beside AWS_EXECUTION_ENV.
	env func(release string) map[string]string
	// fetch gets from elsewhere what is not embedded; nil: nothing. It may take
	// long, so nothing is locked meanwhile.
	fetch func(ctx context.Context, s *Set) error
	// prepare completes the client's directory, ; nil: nothing.
	prepare func(ctx context.Context, s *Set, dir string, i interpreter) error
	// warning says what may go wrong with another release.
	warning string
	// install says how to get an interpreter.
	install string
}

// languages are all families.
func languages() []*language { return []*language{python(), nodejs(), ruby(), java()} }

// A resolved Runtime with what it was made from.
type resolved struct {
	runtime *Runtime
	stamp   stamp  // of the interpreter
	dir     string // the client's
}

// find returns the language and the release of an identifier.
func find(name string) (*language, string) {
	for _, l := range languages() {
		if !strings.HasPrefix(name, l.name) {
			continue
		}
		for _, r := range l.releases {
			if l.id(r) == name {
				return l, r
			}
		}
	}
	return nil, ""
}

// host resolves an identifier with an interpreter of this host.
func (s *Set) host(ctx context.Context, name string) (*Runtime, error) {
	l, release := find(name)
	if l == nil {
		return nil, refused(name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.resolved[name]; p != nil {
		now, err := stampOf(p.runtime.Interpreter)
		if err == nil && now == p.stamp {
			if _, err := os.Stat(p.dir); err == nil {
				return p.runtime, nil
			}
		}
		delete(s.resolved, name)
	}
	found, err := s.findInterpreter(ctx, l, release)
	if err != nil {
		return nil, err
	}
	if l.fetch != nil {
		s.mu.Unlock()
		err := l.fetch(ctx, s)
		s.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
	st, err := stampOf(found.Path)
	if err != nil {
		return nil, fmt.Errorf("runtimes: %s: %w", name, err)
	}
	dir, err := s.unpackClient(ctx, l, found)
	if err != nil {
		var e *lambdad.Error
		if errors.As(err, &e) {
			return nil, err
		}
		return nil, fmt.Errorf("runtimes: %s: unpack the runtime client into %s: %w", name, s.dir, err)
	}
	// The environment translates paths in values; the client takes the second one
	// away before the function sees it.
	env := map[string]string{"AWS_EXECUTION_ENV": "AWS_Lambda_" + name, "_LAMBDAD_OPT": "/opt"}
	if l.env != nil {
		for k, v := range l.env(release) {
			env[k] = v
		}
	}
	r := &Runtime{
		Name:        name,
		Entrypoints: []string{"/var/runtime/bootstrap"},
		Mounts: []sandbox.Mount{
			{Target: "/var/lang", Sources: []string{langDir(dir, found)}},
			{Target: "/var/runtime", Sources: append(s.sdk(l), filepath.Join(dir, "runtime"))},
		},
		Env:         env,
		Version:     l.name + ":" + found.Version + " (host)",
		VersionID:   versionID(l, found),
		Interpreter: found.Path,
		Stands:      found.Release != release,
		dir:         filepath.Join(dir, "runtime"),
	}
	s.resolved[name] = &resolved{runtime: r, stamp: st, dir: dir}
	level, note := slog.LevelInfo, ""
	if r.Stands {
		level, note = slog.LevelWarn, fmt.Sprintf("this host has no %s %s, so another version takes its place; %s", l.title, release, l.warning)
	}
	attrs := []slog.Attr{slog.String("runtime", name), slog.String("version", found.Version), slog.String("interpreter", found.Path)}
	if note != "" {
		attrs = append(attrs, slog.String("note", note))
	}
	s.log.LogAttrs(ctx, level, l.title+" found", attrs...)
	return r, nil
}

// sdk is the directory that the operator may fill with what AWS's runtime of the
// language brings along, such as boto3; nothing when it is empty.
func (s *Set) sdk(l *language) []string {
	dir := filepath.Join(s.dir, "sdk", l.name)
	if list, err := os.ReadDir(dir); err != nil || len(list) == 0 {
		return nil
	}
	return []string{dir}
}

// findInterpreter looks for one of the release, or for any other that will do.
func (s *Set) findInterpreter(ctx context.Context, l *language, release string) (interpreter, error) {
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
			found, err := s.probes.ask(ctx, l, path)
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
	exactly := func(i interpreter) bool { return i.Release == release }
	fits := func(i interpreter) bool { return l.fits(i, release) }
	for _, step := range []func() (interpreter, bool){
		func() (interpreter, bool) { return try(l.exact(release), exactly) },
		func() (interpreter, bool) { return try(l.likely(), exactly) },
		func() (interpreter, bool) { return try(l.likely(), fits) },
	} {
		if found, ok := step(); ok {
			return found, nil
		}
	}
	for _, other := range slices.Backward(l.releases) {
		if found, ok := try(l.exact(other), fits); ok {
			return found, nil
		}
	}
	if ctx.Err() != nil {
		return interpreter{}, context.Cause(ctx)
	}
	e := lambdad.Errorf("InvalidParameterValueException",
		"lambdad runs %s with the %s of its host, and this host has none that will do in PATH or where version managers keep them. %s",
		l.id(release), l.title, l.install)
	e.Err = errors.Join(tried...)
	return interpreter{}, e
}

// langDir is what /var/lang is: the interpreter's prefix, or links to it when the
// prefix is a directory that every sandbox has at its own place.
func langDir(dir string, i interpreter) string {
	if i.Prefix == "/usr" {
		return filepath.Join(dir, "lang")
	}
	return i.Prefix
}

// insidePath is where the interpreter is in a sandbox.
func insidePath(i interpreter) string { return "/var/lang/bin/" + filepath.Base(i.Path) }
