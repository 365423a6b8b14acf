package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/blob/files"
	"github.com/lambdad/lambdad/datadir"
	"github.com/lambdad/lambdad/image"
	"github.com/lambdad/lambdad/runtimes"
	ecrservice "github.com/lambdad/lambdad/service/ecr"
	lambdaservice "github.com/lambdad/lambdad/service/lambda"
	"github.com/lambdad/lambdad/worker"
)

// openImages opens the image store of a data directory.
func openImages(dir *datadir.Dir, cfg Config, reserve func() error, log *slog.Logger) (*image.Store, error) {
	blobs, err := files.Open(files.Config{Dir: filepath.Join(dir.Images(), "blobs"), Reserve: int64(cfg.DiskReserve) << 20, Logger: log})
	if err != nil {
		return nil, err
	}
	return image.New(image.Config{Dir: filepath.Join(dir.Images(), "layers"), Blobs: blobs, Reserve: reserve, Logger: log}), nil
}

// workerImages is a store as a worker has it, or nil.
func workerImages(s *image.Store) worker.Images {
	if s == nil {
		return nil
	}
	return s
}

// imageFinder finds the images that functions name: those of the registry here
// under AWS's name of it or its own, all others where they say they are.
type imageFinder struct {
	images *image.Store
	ecr    *ecrservice.Service
	region string // of requests that name none
	host   string // the endpoint's, with its port
}

// ecrHost is AWS's name of a registry.
var ecrHost = regexp.MustCompile(`^([0-9]{12})\.dkr\.ecr(?:-fips)?\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?$`)

// local takes a reference to the registry here apart; ok is false for others. must
// says that it can be nobody else's.
func (f *imageFinder) local(r lambdaservice.ImageRequest) (account, region, repo, reference string, ok, must bool) {
	host, rest, ok := strings.Cut(r.URI, "/")
	if !ok {
		return "", "", "", "", false, false
	}
	account, region = r.Account, r.Region
	if m := ecrHost.FindStringSubmatch(host); m != nil {
		account, region = m[1], m[2]
	} else if must = host == r.Host || host == f.host || f.loopback(host); !must {
		return "", "", "", "", false, false
	}
	repo, reference = rest, "latest"
	if name, digest, is := strings.Cut(rest, "@"); is {
		repo, reference = name, digest
	} else if i := strings.LastIndexByte(rest, ':'); i > 0 {
		repo, reference = rest[:i], rest[i+1:]
	}
	return account, region, repo, reference, true, must
}

// loopback says whether host is this machine's loopback and the endpoint's port.
func (f *imageFinder) loopback(host string) bool {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		return false
	}
	_, own, err := net.SplitHostPort(f.host)
	ip := net.ParseIP(name)
	return err == nil && port == own && (name == "localhost" || ip != nil && ip.IsLoopback())
}

// Resolve implements lambdaservice.Images.
func (f *imageFinder) Resolve(ctx context.Context, r lambdaservice.ImageRequest) (*lambdad.Image, string, func(), error) {
	if account, region, repo, reference, ok, must := f.local(r); ok {
		digest, here, err := f.ecr.Lookup(ctx, account, region, repo, reference)
		// An image is read with the rights of who deploys it, as code in S3 is. What is in
		// another registry is read with the operator's.
		if r.Authorize != nil && (here || must) {
			if err := f.ecr.AuthorizePull(ctx, account, region, repo, r.Authorize); err != nil {
				return nil, "", nil, &lambdad.Error{Code: "ImageAccessDenied", Err: err,
					Message: "Lambda does not have permission to access the ECR image. Check the ECR permissions."}
			}
		}
		switch {
		case err != nil:
			return nil, "", nil, err
		case here && digest == "", must && !here:
			return nil, "", nil, &lambdad.Error{Code: "ImageDeleted", Message: "Source image " + r.URI + " does not exist. Provide a valid source image."}
		case here:
			return f.fromHere(ctx, r, repo, digest)
		}
	}
	remote, err := f.images.Resolve(ctx, r.URI, r.Architecture)
	if err != nil {
		return nil, "", nil, err
	}
	return remote.Image, remote.Resolved, remote.Release, nil
}

// fromHere is an image of the registry here.
func (f *imageFinder) fromHere(ctx context.Context, r lambdaservice.ImageRequest, repo, digest string) (*lambdad.Image, string, func(), error) {
	img, err := f.images.Load(ctx, r.URI, digest, r.Architecture)
	if err != nil {
		return nil, "", nil, err
	}
	pins := []string{digest, img.Digest}
	for _, l := range img.Layers {
		pins = append(pins, l.Digest)
	}
	host, _, _ := strings.Cut(r.URI, "/")
	return img, host + "/" + repo + "@sha256:" + img.Digest, f.images.Pin(pins...), nil
}

// Prepare implements lambdaservice.Images.
func (f *imageFinder) Prepare(ctx context.Context, img *lambdad.Image, resolved string) error {
	if host, _, _ := strings.Cut(resolved, "/"); host == f.host || f.loopback(host) {
		resolved = "" // what is missing here is missing
	}
	if err := f.images.Fetch(ctx, img, resolved); err != nil {
		return err
	}
	return f.images.Check(ctx, img)
}

// How often images that nobody needs are looked for, and how long they stay.
const (
	collectImagesEvery = time.Minute
	imageGrace         = 2 * time.Minute
)

// collectImages removes images that nothing refers to until ctx ends.
func collectImages(ctx context.Context, images *image.Store, registry *lambdaservice.Registry, ecr *ecrservice.Service, set *runtimes.Set, log *slog.Logger) error {
	tick := time.NewTicker(collectImagesEvery)
	defer tick.Stop()
	for {
		roots, err := ecr.Digests(ctx)
		var added []runtimes.Added
		if err == nil {
			added, err = set.Added()
		}
		if err == nil {
			for _, r := range added {
				roots = append(roots, r.Image.Digest)
			}
			roots = append(roots, registry.ImageDigests()...)
			err = images.Collect(ctx, roots, imageGrace)
		}
		if err != nil && ctx.Err() == nil {
			log.Error("images could not be collected", "err", fmt.Errorf("images: %w", err))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
