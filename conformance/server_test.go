package conformance

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	sdkaws "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdklambda "github.com/aws/aws-sdk-go-v2/service/lambda"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/archive"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/frontend"
	"github.com/lambdad/lambdad/mem"
	"github.com/lambdad/lambdad/placement"
	"github.com/lambdad/lambdad/policy"
	"github.com/lambdad/lambdad/service/iam"
	"github.com/lambdad/lambdad/service/lambda"
	"github.com/lambdad/lambdad/service/sts"
	"github.com/lambdad/lambdad/worker"
)

const (
	region  = "us-east-1"
	account = aws.DefaultAccount
)

// A server is the whole endpoint on the in-memory engine, in front of a placer
// that answers what the test says.
type server struct {
	events *mem.Queue
	*httptest.Server
	keys       *aws.KeyStore
	identities *iam.Registry
	mux        *aws.Mux
	registry   *lambda.Registry
	archives   *gatedArchives
	logs       *syncBuffer

	mu     sync.Mutex
	answer func(*lambdad.Invocation) (*lambdad.Response, error)

	provisioned map[*lambdad.Version]int
	initFails   bool
}

// Invoke implements placement.Worker.
func (s *server) Invoke(_ context.Context, inv *lambdad.Invocation, unit worker.Unit) (*lambdad.Response, error) {
	defer unit.Release(false)
	s.mu.Lock()
	answer := s.answer
	s.mu.Unlock()
	return answer(inv)
}

// Refuses implements placement.Worker.
func (s *server) Refuses(*lambdad.Version) error { return nil }

// Provision implements placement.Worker.
func (s *server) Provision(v *lambdad.Version, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.provisioned[v] = n
}

// Provisioned implements placement.Worker: all are there, unless initialisations
// fail.
func (s *server) Provisioned(v *lambdad.Version) lambdad.Provisioned {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.provisioned[v]
	if s.initFails {
		return lambdad.Provisioned{Requested: n, Failure: "FUNCTION_ERROR_INIT_FAILURE"}
	}
	return lambdad.Provisioned{Requested: n, Available: n}
}

func (s *server) answers(f func(*lambdad.Invocation) (*lambdad.Response, error)) {
	s.mu.Lock()
	s.answer = f
	s.mu.Unlock()
}

// gatedArchives holds back functions from becoming ready.
type gatedArchives struct {
	*archive.Cache
	mu   sync.Mutex
	gate chan struct{} // nil: open
}

func (a *gatedArchives) Open(ctx context.Context, digest string) (string, func(), error) {
	a.mu.Lock()
	gate := a.gate
	a.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return "", nil, ctx.Err()
		}
	}
	return a.Cache.Open(ctx, digest)
}

// hold closes the gate until the returned function is called.
func (a *gatedArchives) hold() (release func()) {
	gate := make(chan struct{})
	a.mu.Lock()
	a.gate = gate
	a.mu.Unlock()
	return sync.OnceFunc(func() {
		a.mu.Lock()
		a.gate = nil
		a.mu.Unlock()
		close(gate)
	})
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newServer(t testing.TB, opts aws.Options) *server {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	identities, err := iam.NewRegistry(ctx, mem.NewStore())
	if err != nil {
		t.Fatal(err)
	}
	if err := identities.Begin(ctx, account, []string{role}); err != nil {
		t.Fatal(err)
	}
	var directory aws.Directory = identities
	if opts.Auth == aws.Any {
		directory = identities.Lenient()
	}
	keys, err := aws.OpenKeyStore(t.TempDir(), directory)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{keys: keys, identities: identities, events: mem.NewQueue(), provisioned: map[*lambdad.Version]int{}, logs: &syncBuffer{}}
	log := slog.New(slog.NewTextHandler(s.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s.answers(func(inv *lambdad.Invocation) (*lambdad.Response, error) {
		return &lambdad.Response{Payload: inv.Payload, ExecutedVersion: inv.Version.Number}, nil
	})
	if s.registry, err = lambda.NewRegistry(ctx, lambda.RegistryConfig{Store: mem.NewStore(), Logger: log}); err != nil {
		t.Fatal(err)
	}
	blobs := mem.NewBlobs()
	s.archives = &gatedArchives{Cache: archive.NewCache(filepath.Join(t.TempDir(), "unpacked"), blobs)}
	placer := placement.New(s, 1000)
	functions := lambda.New(lambda.Config{
		Registry: s.registry, Frontend: frontend.New(frontend.Config{Versions: s.registry, Placer: placer, Events: s.events}), Placer: placer, Blobs: blobs, Archives: s.archives,
		RuntimeNames:   []string{"provided.al2023", "python3.9", "python3.12"},
		ResolveRuntime: func(_ context.Context, name string) (string, error) { return name, nil },
		Architectures:  []string{"x86_64", "arm64"},
		Objects:        objects{},
		Images:         oneImage{},
		Roles:          directory,
		Logger:         log,
	})
	opts.Logger = log
	s.mux = aws.NewMux(s.keys, opts, functions, iam.New(iam.Config{Registry: identities, Logger: log}),
		sts.New(sts.Config{Keys: s.keys, Roles: directory, Policy: identities.Document}))
	s.Server = httptest.NewServer(s.mux)
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{s.registry.Run, functions.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		s.Close()
		cancel()
		wg.Wait()
		s.events.Close()
	})
	return s
}

// oneImage is every image there is.
type oneImage struct{}

func (oneImage) Resolve(_ context.Context, r lambda.ImageRequest) (*lambdad.Image, string, func(), error) {
	return &lambdad.Image{Digest: strings.Repeat("0", 64)}, r.URI + "@sha256:" + strings.Repeat("0", 64), func() {}, nil
}

func (oneImage) Prepare(context.Context, *lambdad.Image, string) error { return nil }

// objects has one bucket, called bucket, with a package that is too large when
// unpacked.
type objects struct{}

func (objects) BucketPolicy(string) *policy.Document { return nil }

func (objects) OpenObject(_ context.Context, _, bucket, key, _ string) (io.ReadCloser, int64, error) {
	switch {
	case bucket != "bucket":
		return nil, 0, lambdad.Errorf("NoSuchBucket", "The specified bucket does not exist")
	case key != "k":
		return nil, 0, lambdad.Errorf("NoSuchKey", "The specified key does not exist.")
	}
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create("bootstrap")
	if err == nil {
		_, err = io.CopyN(w, zeros{}, lambdad.MaxUnzipped+1)
	}
	return io.NopCloser(&b), -1, errors.Join(err, z.Close())
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// client returns the AWS SDK's client with the given credentials; nil: the
// administrator's.
func (s *server) client(c *lambdad.Credentials) *sdklambda.Client {
	return sdklambda.NewFromConfig(s.config(c))
}

func (s *server) config(c *lambdad.Credentials) sdkaws.Config {
	if c == nil {
		c = new(s.keys.Admin())
	}
	return sdkaws.Config{
		Region: region, BaseEndpoint: &s.URL,
		Credentials: credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey, c.SessionToken),
		HTTPClient:  &http.Client{Timeout: 30 * time.Second},
		Retryer:     func() sdkaws.Retryer { return sdkaws.NopRetryer{} },
	}
}

// zipOf makes a package of files.
func zipOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, content := range files {
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(0o755)
		w, err := z.CreateHeader(h)
		if err == nil {
			_, err = w.Write([]byte(content))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// newSandboxServer serves what s serves, as a listener inside a sandbox does.
func newSandboxServer(t testing.TB, s *server) *server {
	inside := &server{keys: s.keys, Server: httptest.NewServer(s.mux.Sandbox("0123"))}
	t.Cleanup(inside.Close)
	return inside
}

func mustURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
