package worker

import (
	"context"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/environment"
)

// explainImage is Explain for a version that is a container image.
func (w *Local) explainImage(ctx context.Context, v *lambdad.Version) (*Explanation, error) {
	var held cleanup
	defer held.run()
	root, _, err := w.trees(ctx, v, nil, &held)
	if err != nil {
		return nil, err
	}
	x := &Explanation{
		Function: v.Function, Version: v.Number, RuntimeVersion: "image sha256:" + v.Image.Digest,
		MemoryMB: v.MemoryMB, EphemeralMB: v.EphemeralMB, Tier: w.cfg.Driver.Tier(),
		Layers: []ExplainedLayer{}, Files: []ExplainedFile{},
		Mounts: []ExplainedMount{{"/", root, "read-only"}, {"/tmp", nil, "read-write"}},
	}
	cfg := w.explained(v, nil)
	args := append(v.Image.Entrypoint[:len(v.Image.Entrypoint):len(v.Image.Entrypoint)], v.Image.Command...)
	dir := v.Image.WorkingDir
	if dir == "" {
		dir = "/"
	}
	x.Processes = append(x.Processes, ExplainedProcess{Party: "runtime", Args: args, Dir: dir, Env: variables(environment.Explained(cfg, false))})
	if len(args) == 0 {
		x.Notes = append(x.Notes, "the image has neither ENTRYPOINT nor CMD, so initialisation fails with Runtime.InvalidEntrypoint")
	}
	for _, name := range imageExtensions(root) {
		x.Processes = append(x.Processes, ExplainedProcess{Party: name, Args: []string{"/opt/extensions/" + name}, Dir: "/", Env: variables(environment.Explained(cfg, true))})
	}
	return x, nil
}

// imageExtensions are the names in the merged /opt/extensions. Links on the way, and
// directories that hide those below, are looked at when an environment starts only.
func imageExtensions(root []string) []string {
	names := map[string]bool{}
	for _, dir := range root {
		r, err := os.OpenRoot(dir)
		if err != nil {
			continue
		}
		list, err := fs.ReadDir(r.FS(), "opt/extensions")
		if info, lerr := r.Lstat("opt/extensions"); err != nil && lerr == nil && info.Mode()&fs.ModeDevice != 0 {
			clear(names)
		}
		r.Close()
		for _, e := range list {
			switch {
			case e.Type()&fs.ModeDevice != 0:
				delete(names, e.Name())
			case !e.IsDir():
				names[e.Name()] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}
