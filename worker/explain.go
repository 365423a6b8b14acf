package worker

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/environment"
)

// An Explanation is what an environment of a version would be made of. Paths are
// those inside; where a tier has them elsewhere, it translates them.
type Explanation struct {
	Function string `json:"function"`
	Version  string `json:"version"`
	Runtime  string `json:"runtime"`
	// RuntimeVersion is what INIT_START would show; empty for provided.*.
	RuntimeVersion string             `json:"runtimeVersion,omitempty"`
	Interpreter    string             `json:"interpreter,omitempty"` // on the host
	MemoryMB       int                `json:"memoryMB"`
	EphemeralMB    int                `json:"ephemeralMB"`
	Tier           string             `json:"tier"`
	Mounts         []ExplainedMount   `json:"mounts"`
	Layers         []ExplainedLayer   `json:"layers"`    // in the order of the function: a later one covers an earlier one
	Files          []ExplainedFile    `json:"files"`     // of /opt
	Processes      []ExplainedProcess `json:"processes"` // the runtime, then the extensions in the order of their start
	Notes          []string           `json:"notes,omitempty"`
}

// An ExplainedMount is one tree of the sandbox.
type ExplainedMount struct {
	Target  string   `json:"target"`
	Sources []string `json:"sources,omitempty"` // on the host; a later one covers an earlier one
	Access  string   `json:"access"`            // read-only, read-write
}

// An ExplainedLayer is one layer of the function.
type ExplainedLayer struct {
	ARN   string `json:"arn"`
	Files int    `json:"files"`
}

// An ExplainedFile is a file of /opt.
type ExplainedFile struct {
	Path   string   `json:"path"`
	Layer  string   `json:"layer"`            // ARN of the one it comes from
	Covers []string `json:"covers,omitempty"` // ARNs of those whose file of that name is not seen
}

// An ExplainedProcess is one program that would be started.
type ExplainedProcess struct {
	Party string   `json:"party"` // runtime, or the file name of the extension
	Layer string   `json:"layer,omitempty"`
	Args  []string `json:"args"`
	Dir   string   `json:"dir"`
	// Env is the whole environment at the program's start, by name.
	Env map[string]string `json:"env"`
}

// Explain says what an environment of v would be made of, without making one.
func (w *Local) Explain(ctx context.Context, v *lambdad.Version) (_ *Explanation, err error) {
	if v.Image != nil {
		return w.explainImage(ctx, v)
	}
	rt, err := w.cfg.Runtimes.Resolve(ctx, v.Runtime)
	if err != nil {
		return nil, failed(v, "find its runtime "+v.Runtime, err)
	}
	var held cleanup
	defer held.run()
	open := func(a lambdad.Archive) (string, error) {
		dir, release, err := w.cfg.Archives.Open(ctx, a.Digest)
		if err == nil {
			held.push(release)
		}
		return dir, err
	}
	code, err := open(v.Code)
	if err != nil {
		return nil, failed(v, "unpack its code", err)
	}
	x := &Explanation{
		Function: v.Function, Version: v.Number, Runtime: v.Runtime, RuntimeVersion: rt.Version, Interpreter: rt.Interpreter,
		MemoryMB: v.MemoryMB, EphemeralMB: v.EphemeralMB, Tier: w.cfg.Driver.Tier(),
		Layers: []ExplainedLayer{}, Files: []ExplainedFile{},
	}
	opt := ExplainedMount{Target: "/opt", Access: "read-only"}
	files := map[string]*ExplainedFile{}
	modes := map[string]fs.FileMode{}
	for _, a := range v.Layers {
		dir, err := open(a)
		if err != nil {
			return nil, failed(v, "unpack its layer "+a.ARN, err)
		}
		opt.Sources = append(opt.Sources, dir)
		n, err := cover(files, modes, dir, a.ARN)
		if err != nil {
			return nil, failed(v, "read its layer "+a.ARN, err)
		}
		x.Layers = append(x.Layers, ExplainedLayer{a.ARN, n})
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		x.Files = append(x.Files, *files[name])
	}
	x.Mounts = []ExplainedMount{{"/var/task", []string{code}, "read-only"}, opt}
	for _, m := range rt.Mounts {
		x.Mounts = append(x.Mounts, ExplainedMount{m.Target, m.Sources, "read-only"})
	}
	x.Mounts = append(x.Mounts, ExplainedMount{"/tmp", nil, "read-write"})

	cfg := w.explained(v, rt.Env)
	env := variables(environment.Explained(cfg, false))
	command, err := rt.Command(ctx, env)
	if err != nil {
		return nil, err
	}
	entry := entrypoint(rt.Entrypoints, code, files, modes)
	if rt.Image != nil && len(rt.Entrypoints) == 1 {
		command.Args = rt.Entrypoints // of the image, whose layers are its root
	}
	if rt.Image != nil {
		x.Mounts = append([]ExplainedMount{{"/", nil, "read-only"}}, x.Mounts...)
		x.Notes = append(x.Notes, "the root file system is that of "+rt.Interpreter+", sha256:"+rt.Image.Digest)
	}
	if len(command.Args) == 0 {
		if entry != "" {
			command.Args = []string{entry}
		} else {
			x.Notes = append(x.Notes, fmt.Sprintf("none of %s is an executable file, so initialisation fails with Runtime.InvalidEntrypoint", strings.Join(rt.Entrypoints, ", ")))
		}
		if env["AWS_LAMBDA_EXEC_WRAPPER"] != "" {
			x.Notes = append(x.Notes, "AWS_LAMBDA_EXEC_WRAPPER has an effect only if the bootstrap honours it")
		}
	} else if w := env["AWS_LAMBDA_EXEC_WRAPPER"]; w != "" && !there(w, code, files) {
		x.Notes = append(x.Notes, "AWS_LAMBDA_EXEC_WRAPPER names "+w+", which neither the code nor a layer has")
	}
	maps.Copy(env, command.Set)
	for _, k := range command.Unset {
		delete(env, k)
	}
	runtime := ExplainedProcess{Party: "runtime", Args: command.Args, Dir: "/var/task", Env: env}
	if f := files[entry]; f != nil {
		runtime.Layer = f.Layer
	}
	x.Processes = append(x.Processes, runtime)
	const dir = "/opt/extensions/"
	if files["/opt/disable-extensions-jwigqn8j"] != nil {
		x.Notes = append(x.Notes, "/opt/disable-extensions-jwigqn8j turns all extensions off")
		return x, nil
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if base, ok := strings.CutPrefix(name, dir); ok && !strings.Contains(base, "/") {
			x.Processes = append(x.Processes, ExplainedProcess{Party: base, Layer: files[name].Layer, Args: []string{name}, Dir: "/", Env: variables(environment.Explained(cfg, true))})
			if modes[name].IsRegular() && modes[name]&0o111 == 0 {
				x.Notes = append(x.Notes, name+" is not executable, so initialisation fails with Extension.LaunchError")
			}
		}
	}
	return x, nil
}

// explained is what an environment's variables are made of.
func (w *Local) explained(v *lambdad.Version, runtimeEnv map[string]string) environment.Config {
	cfg := environment.Config{Version: v, RuntimeEnv: runtimeEnv, LogStream: "(chosen when it starts)"}
	if w.cfg.Credentials != nil {
		const minted = "(made for each environment)"
		cfg.Credentials = func(string) lambdad.Credentials {
			return lambdad.Credentials{AccessKeyID: minted, SecretAccessKey: minted, SessionToken: minted}
		}
	}
	if w.cfg.Endpoint != nil {
		cfg.Endpoint = http.NotFoundHandler()
	}
	return cfg
}

// cover lays the files of a layer over those below and counts them. Symbolic links
// are files here; nothing is followed.
func cover(files map[string]*ExplainedFile, modes map[string]fs.FileMode, dir, arn string) (n int, err error) {
	return n, filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		inside := path.Join("/opt", filepath.ToSlash(rel))
		if d.IsDir() {
			delete(files, inside) // a directory covers a file
			modes[inside] = fs.ModeDir
			return nil
		}
		n++
		info, err := d.Info()
		if err != nil {
			return err
		}
		f := &ExplainedFile{Path: inside, Layer: arn}
		if below := files[inside]; below != nil {
			f.Covers = append([]string{below.Layer}, below.Covers...)
		}
		if modes[inside].IsDir() { // and a file a directory
			maps.DeleteFunc(files, func(other string, _ *ExplainedFile) bool { return strings.HasPrefix(other, inside+"/") })
		}
		files[inside], modes[inside] = f, info.Mode()
		return nil
	})
}

// entrypoint is the first of the paths that is an executable file.
func entrypoint(paths []string, code string, files map[string]*ExplainedFile, modes map[string]fs.FileMode) string {
	for _, p := range paths {
		mode, ok := modes[p]
		if files[p] == nil {
			ok = false
		}
		if rel, task := strings.CutPrefix(p, "/var/task/"); task {
			info, err := os.Lstat(filepath.Join(code, rel))
			if ok = err == nil; ok {
				mode = info.Mode()
			}
		}
		if ok && mode.IsRegular() && mode&0o111 != 0 {
			return p
		}
	}
	return ""
}

// there says whether the code or a layer has a file.
func there(p, code string, files map[string]*ExplainedFile) bool {
	if rel, ok := strings.CutPrefix(p, "/var/task/"); ok {
		_, err := os.Lstat(filepath.Join(code, path.Clean("/"+rel)))
		return err == nil
	}
	return !strings.HasPrefix(p, "/opt/") || files[path.Clean(p)] != nil
}

func variables(list []string) map[string]string {
	env := map[string]string{}
	for _, kv := range list {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	return env
}
