// Package runtimes knows what an execution environment needs for each runtime
// identifier: which trees to mount, which program to start and which variables to
// give it (runtimes.md sections 1 and 2, control-plane.md section 7).
//
// provided.al2023 and provided.al2 need nothing: the function brings its own
// bootstrap. The identifiers of Python, Node.js, Ruby and Java run on the host's own
// interpreter, which is asked for its real prefix, so that version managers' shims
// and virtual environments work, and whose prefix becomes /var/lang; a runtime client
// that is part of this package (for Java, AWS's published one) becomes /var/runtime.
// If the host lacks the very version, another takes its place and the log says so
// once; what AWS's runtimes do differently from version to version follows the
// identifier all the same.
//
// An identifier may instead be given a container image, such as AWS's base image: then
// its functions run on that root file system, with the client that is in it.
//
// Every other identifier is refused with a text that says what can be run.
package runtimes

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
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
	// Image is the root file system of a runtime that is a container image; nil: the
	// base system of sandboxes.
	Image *lambdad.Image
	// Mounts are the trees that come with the runtime: /var/lang, /var/runtime.
	Mounts []sandbox.Mount
	// Entrypoints are inside paths; the first that exists is started.
	Entrypoints []string
	// Env is for the runtime's process only. The client's own start script adds
	// more, unless the customer has set it.
	Env map[string]string
	// Version is what INIT_START shows, such as "python:3.11.7 (host)"; empty for
	// provided.*.
	Version string
	// VersionID identifies client and interpreter version, 64 hex digits, for the
	// runtime version ARN; empty for provided.*.
	VersionID string
	// Interpreter is the host's path of the interpreter; empty for provided.*.
	Interpreter string
	// Stands says that the interpreter is of another release than the identifier's.
	Stands bool

	dir string // of the start script
}

// VersionARN is the runtime version's ARN in a region; empty for provided.*.
func (r *Runtime) VersionARN(region string) string {
	if r.VersionID == "" {
		return ""
	}
	return "arn:aws:lambda:" + region + "::runtime:" + r.VersionID
}

// A Set resolves identifiers on this host.
type Set struct {
	dir string
	log *slog.Logger

	maven string // repository of what is fetched, ending in a slash

	fetching sync.Mutex // keeps several from fetching the same; taken alone

	mu       sync.Mutex // guards what follows, and keeps several from probing at once
	resolved map[string]*resolved
	probes   *probes
	swept    bool
	added    *addedRuntimes // nil: not read
}

// New returns a set that keeps the files it makes below dir. It touches nothing;
// the first Resolve that needs to does.
func New(dir string, log *slog.Logger) *Set {
	return &Set{dir: dir, log: log, maven: mavenCentral, resolved: map[string]*resolved{}}
}

// Resolve says what an identifier needs. It is cheap when repeated: the
// interpreter is asked again only after its file has changed. An identifier that
// cannot be run here gives a *lambdad.Error with code
// InvalidParameterValueException and a text for the caller; anything else is a
// failure of this host, such as a full disk.
func (s *Set) Resolve(ctx context.Context, name string) (*Runtime, error) {
	if r, err := s.fromImage(name); r != nil || err != nil {
		return r, err
	}
	if name == "provided.al2023" || name == "provided.al2" {
		return &Runtime{Name: name, Entrypoints: []string{"/var/task/bootstrap", "/opt/bootstrap"}}, nil
	}
	return s.host(ctx, name)
}

// refused is the answer about an identifier that no language here has.
func refused(name string) error {
	var ranges []string
	for _, l := range languages() {
		ranges = append(ranges, l.id(l.releases[0])+" to "+l.id(l.releases[len(l.releases)-1]))
	}
	return lambdad.Errorf("InvalidParameterValueException",
		"lambdad does not run %s; it runs provided.al2023, provided.al2, %s and %s. Anything else runs as a container image.",
		shown(name), strings.Join(ranges[:len(ranges)-1], ", "), ranges[len(ranges)-1])
}

// A Listed runtime is one identifier with what it would run on.
type Listed struct {
	Name   string `json:"name"`
	Source string `json:"source"` // bootstrap, host, image
	// Interpreter and Version are what was found; empty for bootstrap.
	Interpreter string `json:"interpreter,omitempty"`
	Version     string `json:"version,omitempty"`
	Usable      bool   `json:"usable"`
	Note        string `json:"note,omitempty"` // why not, or what to know
}

// List says of every identifier what it would run on here. It looks and fetches
// nothing.
func (s *Set) List(ctx context.Context) []Listed {
	list := []Listed{}
	for _, name := range []string{"provided.al2", "provided.al2023"} {
		list = append(list, Listed{Name: name, Source: "bootstrap", Usable: true, Note: "the function's own bootstrap, in /var/task or /opt"})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range languages() {
		for _, release := range l.releases {
			e := Listed{Name: l.id(release), Source: "host"}
			found, err := s.findInterpreter(ctx, l, release)
			if err != nil {
				e.Note = err.Error()
			} else {
				e.Interpreter, e.Version, e.Usable = found.Path, found.Version, true
				if found.Release != release {
					e.Note = "another version stands in; " + l.warning
				}
			}
			list = append(list, e)
		}
	}
	return s.listImages(list)
}

// Names are the identifiers that Resolve knows, as AWS spells them, whether or not
// this host has an interpreter for each: List says that.
func (s *Set) Names() []string {
	names := []string{"provided.al2", "provided.al2023"}
	for _, l := range languages() {
		for _, release := range l.releases {
			names = append(names, l.id(release))
		}
	}
	if added, err := s.Added(); err == nil {
		for _, r := range added {
			if !slices.Contains(names, r.Name) {
				names = append(names, r.Name)
			}
		}
	}
	return names
}

func shown(name string) string {
	if len(name) > 64 || strings.ContainsFunc(name, func(r rune) bool { return r < '!' || r > '~' }) {
		return fmt.Sprintf("%.64q", name)
	}
	return name
}
