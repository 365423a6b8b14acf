package worker_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/archive"
	"github.com/lambdad/lambdad/environment"
	"github.com/lambdad/lambdad/integration/leak"
	"github.com/lambdad/lambdad/mem"
	"github.com/lambdad/lambdad/runtimes"
	"github.com/lambdad/lambdad/sandbox/namespace"
	"github.com/lambdad/lambdad/worker"
)

// needRoot skips without privileges; in CI a skip is a failure.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("LAMBDAD_TEST_ROOT") != "" {
		t.Fatal("needs root, and LAMBDAD_TEST_ROOT says it must not be skipped")
	}
	t.Skip("needs root: real sandboxes")
}

// build compiles a program of testdata into dir.
func build(t testing.TB, program, dir, name string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, name), "./testdata/"+program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", program, err, out)
	}
}

// A node is a worker over real sandboxes, and a function with one extension.
type node struct {
	*worker.Local
	driver      *namespace.Driver
	credentials credentials
	version     *lambdad.Version
	logs        logs
	stop        func()
}

// packages builds function and layer once and returns them as archives.
func packages(t testing.TB) (*mem.Blobs, *lambdad.Version) {
	t.Helper()
	blobs := mem.NewBlobs()
	pack := func(dir string) lambdad.Archive {
		var zip bytes.Buffer
		if err := archive.FromDir(t.Context(), dir, &zip); err != nil {
			t.Fatal(err)
		}
		digest, size, err := blobs.Put(t.Context(), &zip)
		if err != nil {
			t.Fatal(err)
		}
		return lambdad.Archive{Digest: digest, Size: size}
	}
	code, layer := t.TempDir(), t.TempDir()
	build(t, "bootstrap", code, "bootstrap")
	build(t, "extension", filepath.Join(layer, "extensions"), "watch")
	v := hello()
	v.Code, v.Layers = pack(code), []lambdad.Archive{pack(layer)}
	v.Timeout = 30 * time.Second
	v.MemoryMB = 1769 // one core: the quota of less would be what is measured
	return blobs, v
}

func newNode(t testing.TB, id, dir string, blobs *mem.Blobs, v *lambdad.Version, set func(*worker.Config)) *node {
	t.Helper()
	driver, err := namespace.New(t.Context(), namespace.Config{ID: id, Dir: filepath.Join(dir, "run"), Pool: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := driver.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := &node{driver: driver, version: v}
	cfg := worker.Config{
		Driver:   driver,
		Archives: archive.NewCache(filepath.Join(dir, "code"), blobs),
		Runtimes: runtimes.New(filepath.Join(dir, "runtimes"), nil),
		Log:      n.logs.sink, Credentials: n.credentials.mint,
		Endpoint:    func(string) http.Handler { return http.NotFoundHandler() },
		IdleTimeout: time.Minute,
		FreezeDelay: 5 * time.Millisecond,
	}
	if set != nil {
		set(&cfg)
	}
	n.Local = worker.NewLocal(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error)
	go func() { ran <- n.Run(ctx) }()
	n.stop = func() { cancel(); <-ran }
	return n
}

func (n *node) close(t testing.TB) {
	t.Helper()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := n.Drain(ctx); err != nil {
		t.Error(err)
	}
	t.Logf("drained in %v", time.Since(begin).Round(time.Millisecond))
	n.stop()
	if err := n.driver.Close(); err != nil {
		t.Error(err)
	}
	if len(n.credentials.valid) != 0 {
		t.Errorf("%d credentials still valid", len(n.credentials.valid))
	}
}

func (n *node) invoke(ctx context.Context, event string) error {
	resp, err := n.Invoke(ctx, &lambdad.Invocation{
		RequestID: uuid.NewString(), Version: n.version, InvokedARN: n.version.ARN(),
		Payload: []byte(event), ContentType: "application/json",
		TraceID: "Root=1-5f35ae12-0c0fec141ab77a00bc047aa2;Sampled=0",
	}, nil)
	if err != nil {
		return err
	}
	if string(resp.Payload) != event || resp.FunctionError != "" {
		return fmt.Errorf("answer %s %s to %s", resp.FunctionError, resp.Payload, event)
	}
	return nil
}

// load invokes from so many clients at once and returns how long each took.
func (n *node) load(t testing.TB, clients, invocations int, event string) []time.Duration {
	t.Helper()
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for i := range invocations {
				begin := time.Now()
				if err := n.invoke(t.Context(), event); err != nil {
					t.Errorf("client %d, invocation %d: %v", c, i, err)
					return
				}
				mu.Lock()
				took = append(took, time.Since(begin))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	return took
}

func summary(took []time.Duration) string {
	if len(took) == 0 {
		return "none"
	}
	at := func(p float64) time.Duration { return took[int(p*float64(len(took)-1))].Round(10 * time.Microsecond) }
	return fmt.Sprintf("%d, median %v, p90 %v, p99 %v, max %v", len(took), at(0.5), at(0.9), at(0.99), at(1))
}

func (n *node) lines(t testing.TB, prefix string) int {
	t.Helper()
	return n.logs.lines(prefix)
}

// TestRealLoad is the path from the worker down in real sandboxes: 200
// simultaneous first invocations, 2,000 invocations from 50 clients, freezing,
// drain; then nothing is left on the host.
func TestRealLoad(t *testing.T) {
	needRoot(t)
	id := "wt" + strings.ReplaceAll(uuid.NewString(), "-", "")[:8]
	dir := t.TempDir()
	scope := leak.Scope{ID: id, Dirs: []string{filepath.Join(dir, "run")}}
	blobs, v := packages(t)
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil { // stays; what is made in it must not
		t.Fatal(err)
	}

	before, err := leak.Take(scope)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("before: %v", before)
	n := newNode(t, id, dir, blobs, v, nil)

	begin := time.Now()
	if err := n.invoke(t.Context(), `"first"`); err != nil {
		t.Fatal(err)
	}
	t.Logf("first invocation, code unpacked: %v", time.Since(begin).Round(10*time.Microsecond))

	begin = time.Now()
	took := n.load(t, 200, 1, "10000")
	t.Logf("200 simultaneous of 10 s: %v in all; %s", time.Since(begin).Round(time.Millisecond), summary(took))
	begin = time.Now()
	took = n.load(t, 50, 40, `{}`)
	wall := time.Since(begin)
	t.Logf("2,000 from 50 clients: %v in all, %.0f/s; %s", wall.Round(time.Millisecond), float64(len(took))/wall.Seconds(), summary(took))

	// The last of them freeze when they have the processor.
	awake := func() bool {
		return slices.ContainsFunc(n.Environments(), func(s environment.Status) bool { return s.State != environment.StateFrozen })
	}
	for end := time.Now().Add(20 * time.Second); awake() && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	list := n.Environments()
	var memory int64
	for _, s := range list {
		if s.State != environment.StateFrozen {
			t.Errorf("%s is %s while nothing runs", s.ID, s.State)
		}
		memory += s.Memory
	}
	if len(list) < 150 || len(list) > 250 {
		t.Errorf("%d environments", len(list))
	}
	t.Logf("%d environments, %d KiB each", len(list), memory/int64(max(1, len(list)))>>10)
	during, err := leak.Take(scope)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("during: %v", during)

	took = took[:0]
	for range 200 {
		begin := time.Now()
		if err := n.invoke(t.Context(), `"warm"`); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	t.Logf("warm, one client: %s", summary(took))

	n.close(t)
	for prefix, want := range map[string]int{"START ": 2401, "END ": 2401, "REPORT ": 2401, "bye": n.credentials.made, "EXTENSION": n.credentials.made} {
		if got := n.lines(t, prefix); got != want {
			t.Errorf("%d lines begin with %q, want %d", got, prefix, want)
		}
	}
	// Go keeps a thread for each system call that once blocked beside others: no
	// more than end at once, where a leak would have one for each of 200.
	after := leak.Check(t, scope, before, leak.Slack{"threads": 80})
	t.Logf("after: %v", after)
}
