package worker

import (
	"context"
	"errors"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/runtimes"
	"github.com/lambdad/lambdad/sandbox"
)

// runtimeOf finds the runtime of a version; an image brings its own.
func (w *Local) runtimeOf(ctx context.Context, v *lambdad.Version) (*runtimes.Runtime, error) {
	if v.Image != nil {
		return &runtimes.Runtime{}, nil
	}
	return w.cfg.Runtimes.Resolve(ctx, v.Runtime)
}

// trees opens what the sandbox of a version is made of: the layers of an image as
// its root, and code and layers where they are mounted.
func (w *Local) trees(ctx context.Context, v *lambdad.Version, rt *runtimes.Runtime, held *cleanup) (root []string, mounts []sandbox.Mount, err error) {
	img, what := v.Image, "unpack its image"
	if img == nil && rt.Image != nil {
		img, what = rt.Image, "unpack the image of its runtime "+rt.Name
	}
	if img != nil {
		if w.cfg.Images == nil {
			return nil, nil, failed(v, what, errors.New("this server keeps no images"))
		}
		dirs, release, err := w.cfg.Images.Open(ctx, img)
		if err != nil {
			return nil, nil, failed(v, what, err)
		}
		held.push(release)
		root = dirs
	}
	if v.Image != nil {
		return root, nil, nil
	}
	open := func(a lambdad.Archive) (string, error) {
		dir, release, err := w.cfg.Archives.Open(ctx, a.Digest)
		if err == nil {
			held.push(release)
		}
		return dir, err
	}
	code, err := open(v.Code)
	if err != nil {
		return nil, nil, failed(v, "unpack its code", err)
	}
	layers := make([]string, len(v.Layers))
	for i, a := range v.Layers {
		if layers[i], err = open(a); err != nil {
			return nil, nil, failed(v, "unpack its layer "+a.ARN, err)
		}
	}
	return root, append([]sandbox.Mount{
		{Target: "/var/task", Sources: []string{code}},
		{Target: "/opt", Sources: layers},
	}, rt.Mounts...), nil
}
