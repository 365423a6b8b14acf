package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/blob"
)

// AWS's words for images that cannot be had (control-plane.md section 5.3).
func noImage(uri string, cause error) error {
	return &lambdad.Error{Code: "ImageDeleted", Message: "Source image " + uri + " does not exist. Provide a valid source image.", Err: cause}
}

func badReference(uri string, cause error) error {
	return invalidf(cause, "Source image %s is not valid. Provide a valid source image.", uri)
}

func noAccess(uri string, cause error) error {
	return &lambdad.Error{Code: "ImageAccessDenied", Err: cause,
		Message: "Lambda does not have permission to access the image " + uri + ". Check the registry's permissions and the credentials in the Docker configuration of the user that runs lambdad (docker login)."}
}

// A Remote is an image in a registry: its manifest and configuration are stored
// here, its layers when they are fetched.
type Remote struct {
	Image *lambdad.Image
	// Resolved is the reference by digest that the given one meant.
	Resolved string
	// Release ends the protection from being collected.
	Release func()
}

// Resolve finds out what a reference means: a tag is resolved to a digest, once, and
// manifest and configuration are stored. Plain HTTP is spoken with loopback
// addresses and localhost alone.
func (s *Store) Resolve(ctx context.Context, uri, architecture string) (*Remote, error) {
	ref, err := name.ParseReference(uri, name.WithDefaultRegistry(""), name.StrictValidation)
	if err != nil {
		ref, err = name.ParseReference(uri) // docker.io, latest
	}
	if err != nil {
		return nil, badReference(uri, err)
	}
	// One that drips is given up as well: a caller waits.
	ctx, cancel := context.WithTimeoutCause(ctx, 4*s.Stall, unreachable(uri, fmt.Errorf("manifest and configuration did not come within %v", 4*s.Stall)))
	defer cancel()
	c, err := s.connect(ctx, ref.Context(), uri)
	if err != nil {
		return nil, err
	}
	raw, m, err := c.manifest(ctx, ref.Identifier())
	if err != nil {
		return nil, err
	}
	if m.Index() {
		d, err := m.choose(uri, architecture)
		if err != nil {
			return nil, err
		}
		if raw, m, err = c.manifest(ctx, d.Digest); err != nil {
			return nil, err
		}
		if m.Index() {
			return nil, unsupported(uri, errors.New("an index of indexes"))
		}
	}
	var config []byte
	img, err := describe(ctx, uri, architecture, raw, m, func(ctx context.Context, d Descriptor, limit int64) (data []byte, err error) {
		config, err = c.small(ctx, d, limit)
		return config, err
	})
	if err != nil {
		return nil, err
	}
	pinned := []string{img.Digest, m.Config.hex()}
	for _, l := range img.Layers {
		pinned = append(pinned, l.Digest)
	}
	release := s.Pin(pinned...)
	for digest, data := range map[string][]byte{img.Digest: raw, m.Config.hex(): config} {
		if _, _, err := s.Put(ctx, bytes.NewReader(data), digest); err != nil {
			release()
			return nil, err
		}
	}
	return &Remote{Image: img, Resolved: ref.Context().Name() + "@sha256:" + img.Digest, Release: release}, nil
}

// Fetch stores the layers of an image that are missing here, from where Resolve
// found it; from nowhere with resolved "".
func (s *Store) Fetch(ctx context.Context, img *lambdad.Image, resolved string) error {
	var c *connection
	for _, l := range img.Layers {
		if s.Has(ctx, l.Digest) {
			continue
		}
		if resolved == "" {
			return noImage("sha256:"+img.Digest, blob.ErrNotFound)
		}
		if c == nil {
			ref, err := name.NewDigest(resolved)
			if err != nil {
				return badReference(resolved, err)
			}
			if c, err = s.connect(ctx, ref.Context(), resolved); err != nil {
				return err
			}
		}
		if err := c.layer(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// A connection is an authenticated way to one repository.
type connection struct {
	s      *Store
	repo   name.Repository
	uri    string // for messages
	client *http.Client
}

// transferKey marks the context of requests whose answers may be large.
type transferKey struct{}

// bounded limits what a registry may answer and how long it may be silent.
type bounded struct{ inner http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.inner.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if r.Context().Value(transferKey{}) == nil || resp.StatusCode >= 300 || strings.Contains(resp.Header.Get("Content-Type"), "json") && !strings.Contains(r.URL.Path, "/blobs/") {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, MaxManifest+1), resp.Body}
	}
	return resp, nil
}

// connect authenticates with a registry.
func (s *Store) connect(ctx context.Context, repo name.Repository, uri string) (*connection, error) {
	auth, err := s.Keychain.Resolve(repo)
	if err != nil {
		return nil, noAccess(uri, fmt.Errorf("reading the Docker configuration: %w", err))
	}
	base := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: min(10*time.Second, s.Stall)}).DialContext,
		TLSHandshakeTimeout:    min(10*time.Second, s.Stall),
		ResponseHeaderTimeout:  s.Stall,
		MaxResponseHeaderBytes: 256 << 10,
		IdleConnTimeout:        30 * time.Second,
		ForceAttemptHTTP2:      true,
	}
	hand, cancel := context.WithTimeout(ctx, 2*s.Stall)
	defer cancel()
	rt, err := transport.NewWithContext(hand, repo.Registry, auth, bounded{base}, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, failed(uri, err)
	}
	return &connection{s: s, repo: repo, uri: uri, client: &http.Client{Transport: rt}}, nil
}

// failed says in AWS's terms why a registry did not give what was asked for.
func failed(uri string, err error) error {
	var te *transport.Error
	if errors.As(err, &te) {
		switch te.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return noAccess(uri, err)
		case http.StatusNotFound:
			return noImage(uri, err)
		}
	}
	return unreachable(uri, err)
}

func unreachable(uri string, err error) error {
	return invalidf(err, "The registry of the source image %s did not answer as it should: %v.", uri, err)
}

// open asks for a path of the repository. The answer ends when nothing arrives for
// a while.
func (c *connection) open(ctx context.Context, path string, transfer bool) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	if transfer {
		ctx = context.WithValue(ctx, transferKey{}, true)
	}
	watch := time.AfterFunc(c.s.Stall, func() {
		cancel(fmt.Errorf("nothing came for %v", c.s.Stall))
	})
	url := c.repo.Scheme() + "://" + c.repo.RegistryStr() + "/v2/" + c.repo.RepositoryStr() + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		cancel(nil)
		return nil, badReference(c.uri, err)
	}
	req.Header.Set("Accept", strings.Join(MediaTypes, ", "))
	resp, err := c.client.Do(req)
	if err != nil {
		watch.Stop()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, failed(c.uri, err)
	}
	resp.Body = &watched{ctx: ctx, body: resp.Body, watch: watch, stall: c.s.Stall, cancel: cancel}
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		resp.Body.Close()
		return nil, failed(c.uri, err)
	}
	return resp, nil
}

// watched is a body that must go on arriving.
type watched struct {
	ctx    context.Context
	body   io.ReadCloser
	watch  *time.Timer
	stall  time.Duration
	cancel context.CancelCauseFunc
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.body.Read(b)
	if err == nil {
		w.watch.Reset(w.stall)
	} else if err != io.EOF && context.Cause(w.ctx) != nil {
		err = context.Cause(w.ctx)
	}
	return n, err
}

func (w *watched) Close() error {
	w.watch.Stop()
	w.cancel(nil)
	return w.body.Close()
}

// manifest reads a manifest by tag or digest.
func (c *connection) manifest(ctx context.Context, id string) ([]byte, *Manifest, error) {
	resp, err := c.open(ctx, "/manifests/"+id, false)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	if err != nil {
		return nil, nil, unreachable(c.uri, err)
	}
	if len(raw) > MaxManifest {
		return nil, nil, unsupported(c.uri, fmt.Errorf("a manifest of more than %d bytes", MaxManifest))
	}
	if want, ok := strings.CutPrefix(id, "sha256:"); ok {
		if sum := sha256.Sum256(raw); hex.EncodeToString(sum[:]) != want {
			return nil, nil, unreachable(c.uri, fmt.Errorf("asked for the manifest %s, it gave sha256:%x", id, sum))
		}
	}
	m, err := ParseManifest(raw, resp.Header.Get("Content-Type"))
	if err != nil {
		return nil, nil, unsupported(c.uri, err)
	}
	return raw, m, nil
}

// small reads a blob into memory.
func (c *connection) small(ctx context.Context, d Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, unsupported(c.uri, fmt.Errorf("a configuration of %d bytes", d.Size))
	}
	resp, err := c.open(ctx, "/blobs/"+d.Digest, true)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, d.Size+1))
	if err != nil {
		return nil, unreachable(c.uri, err)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != d.hex() {
		return nil, unreachable(c.uri, fmt.Errorf("the blob %s came with the digest sha256:%x", d.Digest, sum))
	}
	return data, nil
}

// layer stores a layer.
func (c *connection) layer(ctx context.Context, l lambdad.ImageLayer) error {
	resp, err := c.open(ctx, "/blobs/sha256:"+l.Digest, true)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	// One byte more than promised is enough to see the lie.
	_, _, err = c.s.Put(ctx, io.LimitReader(resp.Body, l.Size+1), l.Digest)
	switch {
	case err == nil, errors.Is(err, blob.ErrFull), ctx.Err() != nil:
		return err
	}
	return unreachable(c.uri, fmt.Errorf("layer sha256:%s: %w", l.Digest, err))
}
