package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/datadir"
	"github.com/lambdad/lambdad/image"
	"github.com/lambdad/lambdad/runtimes"
	lambdaservice "github.com/lambdad/lambdad/service/lambda"
)

// An imageSource says where an image comes from: exactly one of its places.
type imageSource struct {
	Ref string `json:"image,omitempty"` // in a registry
	OCI string `json:"oci,omitempty"`   // directory with an OCI layout
	Tar string `json:"tar,omitempty"`   // of docker save, or of an OCI layout
	Tag string `json:"tag,omitempty"`   // chooses among several of OCI or Tar
}

func (s imageSource) given() bool { return s.Ref != "" || s.OCI != "" || s.Tar != "" }

// check refuses several places, and makes paths absolute: the server may stand
// elsewhere.
func (s *imageSource) check() (err error) {
	n := 0
	for _, p := range []string{s.Ref, s.OCI, s.Tar} {
		if p != "" {
			n++
		}
	}
	if n != 1 {
		return errors.New("give one of --image, --oci and --tar")
	}
	for _, p := range []*string{&s.OCI, &s.Tar} {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
		if _, err := os.Stat(*p); err != nil {
			return err
		}
	}
	return nil
}

func (s imageSource) String() string {
	switch {
	case s.Ref != "":
		return s.Ref
	case s.OCI != "":
		return "oci:" + s.OCI
	}
	return s.Tar
}

// hostArchitecture is AWS's name of what this machine runs.
func hostArchitecture() string {
	if runtime.GOARCH == "arm64" {
		return "arm64"
	}
	return "x86_64"
}

// take stores the image and makes it ready to run. find looks references up in the
// registry here; nil: there is none. Until release it is not collected.
func (s imageSource) take(ctx context.Context, images *image.Store, find *imageFinder) (*lambdad.Image, func(), error) {
	return s.get(ctx, images, find, func(img *lambdad.Image, resolved string) error {
		if find != nil {
			return find.Prepare(ctx, img, resolved)
		}
		if err := images.Fetch(ctx, img, resolved); err != nil {
			return err
		}
		return images.Check(ctx, img)
	})
}

// get stores what describes the image and has use made of it before it can be
// collected.
func (s imageSource) get(ctx context.Context, images *image.Store, find *imageFinder, use func(img *lambdad.Image, resolved string) error) (img *lambdad.Image, release func(), err error) {
	arch := hostArchitecture()
	resolved := ""
	switch {
	case s.OCI != "":
		img, release, err = images.ImportLayout(ctx, s.OCI, s.Tag, arch)
	case s.Tar != "":
		img, release, err = images.ImportTar(ctx, s.Tar, s.Tag, arch)
	case find != nil:
		img, resolved, release, err = find.Resolve(ctx, lambdaservice.ImageRequest{URI: s.Ref, Account: account, Region: find.region, Architecture: arch})
	default:
		var r *image.Remote
		if r, err = images.Resolve(ctx, s.Ref, arch); err == nil {
			img, resolved, release = r.Image, r.Resolved, r.Release
		}
	}
	if err != nil {
		return nil, nil, plainly(err)
	}
	if err := use(img, resolved); err != nil {
		release()
		return nil, nil, plainly(err)
	}
	return img, release, nil
}

// plainly is an error as the command line shows it: the text for callers, and the
// cause.
func plainly(err error) error {
	var e *lambdad.Error
	if !errors.As(err, &e) {
		return err
	}
	if e.Err != nil && !strings.Contains(e.Message, e.Err.Error()) {
		return fmt.Errorf("%s (%w)", e.Message, e.Err)
	}
	return errors.New(e.Message)
}

// addImage makes a runtime of an image.
func addImage(ctx context.Context, set *runtimes.Set, images *image.Store, find *imageFinder, name string, src imageSource) (string, error) {
	if err := runtimes.CheckName(name); err != nil {
		return "", err
	}
	img, release, err := src.take(ctx, images, find)
	if err != nil {
		return "", err
	}
	defer release()
	dirs, done, err := images.Open(ctx, img)
	if err != nil {
		return "", err
	}
	defer done()
	err = set.AddImage(runtimes.Added{Name: name, From: src.String(), Added: time.Now().UTC(), Image: *img}, func(path string) bool {
		for _, dir := range dirs {
			root, err := os.OpenRoot(dir)
			if err != nil {
				continue
			}
			info, err := root.Lstat(strings.TrimPrefix(path, "/"))
			root.Close()
			if err == nil && info.Mode()&os.ModeDevice == 0 {
				return true
			}
		}
		return false
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s is ready: it runs on %s, sha256:%s, %d layers", name, src, img.Digest, len(img.Layers)), nil
}

// A runtimeOrder is what the command asks of a running server.
type runtimeOrder struct {
	Name   string      `json:"name"`
	Source imageSource `json:"source"`
}

// serveRuntimes takes orders on the control socket.
func serveRuntimes(set *runtimes.Set, images *image.Store, find *imageFinder) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var o runtimeOrder
		err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&o)
		text := ""
		if err == nil {
			text, err = addImage(r.Context(), set, images, find, o.Name, o.Source)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintln(w, text)
	}
}

// runtimeAddImage adds a runtime through the running server, or itself where none
// runs: one process at a time holds the images.
func runtimeAddImage(ctx context.Context, std stdio, dataDir string, set *runtimes.Set, name string, src imageSource) error {
	if err := src.check(); err != nil {
		return err
	}
	var text string
	err := withImages(ctx, dataDir, func(images *image.Store) (err error) {
		text, err = addImage(ctx, set, images, nil, name, src)
		return err
	}, func() (err error) {
		text, err = tellControl(ctx, dataDir, "/runtimes", runtimeOrder{name, src})
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(std.out, strings.TrimSpace(text))
	return nil
}

// withImages calls alone with the images of a data directory, or served where a
// server holds it.
func withImages(ctx context.Context, dataDir string, alone func(*image.Store) error, served func() error) error {
	log := slog.New(slog.DiscardHandler)
	dir, err := datadir.Open(dataDir, log)
	if errors.Is(err, datadir.ErrLocked) {
		return served()
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	cfg := defaults()
	images, err := openImages(dir, cfg, func() error { return diskReserve(dir, int64(cfg.DiskReserve)<<20) }, log)
	if err != nil {
		return err
	}
	return alone(images)
}
