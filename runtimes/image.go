package runtimes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
)

// An Added runtime is an identifier whose functions run on the root file system of
// a container image, such as AWS's base image of that runtime: they find /var/lang
// and /var/runtime there, and the client that starts them is the image's own.
type Added struct {
	Name  string        `json:"name"`
	From  string        `json:"from"` // where the image came from
	Added time.Time     `json:"added"`
	Image lambdad.Image `json:"image"`
}

// imagesFile is the file of the set's directory that remembers them. Whoever adds
// one writes it anew; a Set looks whether it has changed.
const imagesFile = "images.json"

// bootstrapOfImage is what starts functions in AWS's base images.
const bootstrapOfImage = "/var/runtime/bootstrap"

// addedRuntimes are the runtimes that are images, as the file had them at a time.
type addedRuntimes struct {
	seen    fs.FileInfo // nil: there was none
	byName  map[string]Added
	runtime map[string]*Runtime
}

var identifier = regexp.MustCompile(`^[a-z][a-z0-9]{1,20}(\.[a-z0-9]{1,10}){0,2}$`)

// CheckName refuses what cannot be the identifier of a runtime.
func CheckName(name string) error {
	if !identifier.MatchString(name) {
		return fmt.Errorf("%s is no identifier of a runtime, such as python3.12 or dotnet8", shown(name))
	}
	return nil
}

// images reads what was added, if it changed. s.mu is held.
func (s *Set) images() (*addedRuntimes, error) {
	file := filepath.Join(s.dir, imagesFile)
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		info, err = nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("runtimes: %w", err)
	}
	if s.added != nil && (info == nil) == (s.added.seen == nil) &&
		(info == nil || os.SameFile(info, s.added.seen) && info.ModTime().Equal(s.added.seen.ModTime()) && info.Size() == s.added.seen.Size()) {
		return s.added, nil
	}
	a := &addedRuntimes{seen: info, byName: map[string]Added{}, runtime: map[string]*Runtime{}}
	if info != nil {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("runtimes: %w", err)
		}
		var list []Added
		if err := json.Unmarshal(data, &list); err != nil {
			return nil, fmt.Errorf("runtimes: reading %s: %w", file, err)
		}
		for _, r := range list {
			a.byName[r.Name] = r
			a.runtime[r.Name] = r.runtime()
		}
	}
	s.added = a
	return a, nil
}

// runtime is what environments on the image are built with.
func (r Added) runtime() *Runtime {
	out := &Runtime{Name: r.Name, Image: &r.Image, Entrypoints: []string{bootstrapOfImage}, Env: map[string]string{}, Interpreter: r.From}
	for _, kv := range r.Image.Env {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			out.Env[k] = v
		}
	}
	if lambdad.RuntimeFamily(r.Name) == "provided" {
		out.Entrypoints = []string{"/var/task/bootstrap", "/opt/bootstrap"}
		return out
	}
	out.Env["AWS_EXECUTION_ENV"] = "AWS_Lambda_" + r.Name
	family := lambdad.RuntimeFamily(r.Name)
	out.Version = family + ":" + strings.TrimPrefix(r.Name, family) + " (image sha256:" + r.Image.Digest[:12] + ")"
	out.VersionID = r.Image.Digest
	return out
}

// fromImage is the runtime of an identifier that was added; nil when none was.
func (s *Set) fromImage(name string) (*Runtime, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := s.images()
	if err != nil {
		return nil, err
	}
	return a.runtime[name], nil
}

// Added lists the runtimes that are images, by name.
func (s *Set) Added() ([]Added, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := s.images()
	if err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Values(a.byName), func(x, y Added) int { return strings.Compare(x.Name, y.Name) }), nil
}

// AddImage makes functions of an identifier run on an image from now on. bin says
// whether the image has a file; it must have what starts functions.
func (s *Set) AddImage(r Added, has func(path string) bool) error {
	if err := CheckName(r.Name); err != nil {
		return err
	}
	if lambdad.RuntimeFamily(r.Name) != "provided" && !has(bootstrapOfImage) {
		return fmt.Errorf("the image has no %s, which starts the functions of a managed runtime: it is not AWS's base image of %s (public.ecr.aws/lambda/…); an image that is a whole function runs as PackageType Image", bootstrapOfImage, r.Name)
	}
	return s.changeImages(func(m map[string]Added) error { m[r.Name] = r; return nil })
}

// RemoveImage undoes AddImage: functions run on the host's interpreter again, if
// there is one.
func (s *Set) RemoveImage(name string) error {
	return s.changeImages(func(m map[string]Added) error {
		if _, ok := m[name]; !ok {
			return fmt.Errorf("%s was not added as an image; lambdad runtime list says what runtimes run on", shown(name))
		}
		delete(m, name)
		return nil
	})
}

func (s *Set) changeImages(change func(map[string]Added) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := s.images()
	if err != nil {
		return err
	}
	next := maps.Clone(a.byName)
	if err := change(next); err != nil {
		return err
	}
	list := slices.SortedFunc(maps.Values(next), func(x, y Added) int { return strings.Compare(x.Name, y.Name) })
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	if err := enc.Encode(list); err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return fmt.Errorf("runtimes: %w", err)
	}
	if err := writeDurably(filepath.Join(s.dir, imagesFile), b.Bytes()); err != nil {
		return fmt.Errorf("runtimes: writing down what was added: %w", err)
	}
	s.added = nil
	return nil
}

// writeDurably replaces a file as one step that survives power loss.
func writeDurably(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), partialPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return f.Close()
}

// listImages puts what was added over a list of runtimes.
func (s *Set) listImages(list []Listed) []Listed {
	a, err := s.images()
	if err != nil {
		return list
	}
	for _, name := range slices.Sorted(maps.Keys(a.byName)) {
		r := a.byName[name]
		e := Listed{Name: name, Source: "image", Interpreter: r.From, Version: "sha256:" + r.Image.Digest[:12], Usable: true, Note: "added " + r.Added.UTC().Format(time.DateOnly)}
		if i := slices.IndexFunc(list, func(l Listed) bool { return l.Name == name }); i >= 0 {
			list[i] = e
		} else {
			list = append(list, e)
		}
	}
	return list
}
