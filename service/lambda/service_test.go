package lambda

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/blob"
	"github.com/lambdad/lambdad/frontend"
	"github.com/lambdad/lambdad/mem"
	"github.com/lambdad/lambdad/store"
)

const (
	testAccount = aws.DefaultAccount
	testRegion  = "us-east-1"
	testRole    = "arn:aws:iam::000000000000:role/r"
)

// faultyStore fails writes on demand and can hold its watch back.
type faultyStore struct {
	store.Store
	mu    sync.Mutex
	fail  func(op, key string) error
	delay chan struct{} // nil: none
}

func (s *faultyStore) check(op, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		return nil
	}
	return s.fail(op, key)
}

func (s *faultyStore) failing(f func(op, key string) error) {
	s.mu.Lock()
	s.fail = f
	s.mu.Unlock()
}

func (s *faultyStore) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	if err := s.check("create", key); err != nil {
		return 0, err
	}
	return s.Store.Create(ctx, key, value)
}

func (s *faultyStore) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	if err := s.check("update", key); err != nil {
		return 0, err
	}
	return s.Store.Update(ctx, key, value, revision)
}

func (s *faultyStore) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	if err := s.check("put", key); err != nil {
		return 0, err
	}
	return s.Store.Put(ctx, key, value)
}

func (s *faultyStore) Delete(ctx context.Context, key string, revision uint64) error {
	if err := s.check("delete", key); err != nil {
		return err
	}
	return s.Store.Delete(ctx, key, revision)
}

// Watch sends what is there, and later changes only when delay is closed.
func (s *faultyStore) Watch(ctx context.Context, prefix string) (<-chan store.Update, error) {
	in, err := s.Store.Watch(ctx, prefix)
	if err != nil || s.delay == nil {
		return in, err
	}
	out := make(chan store.Update)
	go func() {
		defer close(out)
		present := true
		for u := range in {
			if !present {
				select {
				case <-s.delay:
				case <-ctx.Done():
					return
				}
			}
			select {
			case out <- u:
			case <-ctx.Done():
				return
			}
			if u.Key == "" {
				present = false
			}
		}
	}()
	return out, nil
}

// faultyArchives fails to unpack on demand.
type faultyArchives struct {
	mu   sync.Mutex
	fail error
	keep func(string) bool
}

func (a *faultyArchives) Open(context.Context, string) (string, func(), error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return "", func() {}, a.fail
}

func (a *faultyArchives) Trim(_ context.Context, keep func(string) bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keep = keep
	return nil
}

// keeps asks what the last Trim was told.
func (a *faultyArchives) keeps(digest string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.keep(digest)
}

type echoPlacer struct{}

func (echoPlacer) Invoke(_ context.Context, inv *lambdad.Invocation) (*lambdad.Response, error) {
	return &lambdad.Response{Payload: inv.Payload, ExecutedVersion: inv.Version.Number}, nil
}

type rig struct {
	t        testing.TB
	store    *faultyStore
	blobs    blob.Store
	archives *faultyArchives
	registry *Registry
	service  *Service
	mux      *aws.Mux
	changes  chan string // functions, and the generation that is in force
	gone     chan string // generations of published versions
	stop     func()
}

// newRig starts a service on what is in the store; running it is up to run.
func newRig(t testing.TB, s *faultyStore, blobs blob.Store, change func(*Config)) *rig {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &rig{t: t, store: s, blobs: blobs, archives: &faultyArchives{}, changes: make(chan string, 1000), gone: make(chan string, 1000)}
	var err error
	r.registry, err = NewRegistry(ctx, RegistryConfig{Store: s, OnChange: func(_, _, function, keep string) {
		r.changes <- function + " " + keep
	}, OnVersionGone: func(_, _, _, generation string) { r.gone <- generation }})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Registry: r.registry, Frontend: frontend.New(frontend.Config{Versions: r.registry, Placer: echoPlacer{}}), Blobs: blobs, Archives: r.archives,
		RuntimeNames: []string{"provided.al2023"}, Architectures: []string{"x86_64"},
	}
	if change != nil {
		change(&cfg)
	}
	r.service = New(cfg)
	r.mux = aws.NewMux(aws.NewKeyStore(), aws.Options{Auth: aws.Any}, r.service)
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.registry.Run(ctx) })
	r.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	t.Cleanup(r.stop)
	return r
}

// run starts the background work.
func (r *rig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.service.Run(ctx); err != nil {
			r.t.Error(err)
		}
	})
	before := r.stop
	r.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		before()
	})
	r.t.Cleanup(r.stop)
}

func (r *rig) call(method, path string, body any) (int, map[string]any) {
	r.t.Helper()
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			r.t.Fatal(err)
		}
	}
	w := httptest.NewRecorder()
	r.mux.ServeHTTP(w, httptest.NewRequest(method, path, bytes.NewReader(b)))
	var v map[string]any
	if w.Body.Len() > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
			r.t.Fatalf("%s: %v", w.Body, err)
		}
	}
	if v == nil {
		v = map[string]any{}
	}
	v["code"] = ""
	for name, h := range w.Header() { // not spelled as net/http would
		if strings.EqualFold(name, "x-amzn-ErrorType") {
			v["code"] = h[0]
		}
	}
	return w.Code, v
}

const functions = "/2015-03-31/functions"

func zipWith(t testing.TB, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create("bootstrap")
	if err == nil {
		_, err = io.WriteString(w, content)
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (r *rig) create(name, content string) {
	r.t.Helper()
	status, body := r.call("POST", functions, createBody(r.t, name, content))
	if status != 201 {
		r.t.Fatalf("create: %d %v", status, body)
	}
}

func createBody(t testing.TB, name, content string) map[string]any {
	return map[string]any{"FunctionName": name, "Runtime": "provided.al2023", "Handler": "h", "Role": testRole, "Code": map[string]any{"ZipFile": zipWith(t, content)}}
}

// settled waits until a function has no change under way, and returns it.
func (r *rig) settled(name string) map[string]any {
	r.t.Helper()
	for range 2000 {
		_, f := r.call("GET", functions+"/"+name+"/configuration", nil)
		if f["State"] != "Pending" && f["LastUpdateStatus"] != "InProgress" {
			return f
		}
		time.Sleep(time.Millisecond)
	}
	r.t.Fatalf("%s does not settle", name)
	return nil
}

func newFaulty() *faultyStore { return &faultyStore{Store: mem.NewStore()} }

// TestRecovery: what a crash left in progress is finished by the next start.
func TestRecovery(t *testing.T) {
	s, blobs := newFaulty(), mem.NewBlobs()
	a := newRig(t, s, blobs, nil) // never runs: stops with everything pending
	a.create("created", "x")
	a.stop()

	b := newRig(t, s, blobs, nil)
	b.run()
	if f := b.settled("created"); f["State"] != "Active" || f["LastUpdateStatus"] != "Successful" {
		t.Errorf("after a crash in create: %v", f)
	}
	b.stop()

	c := newRig(t, s, blobs, nil)
	if status, f := c.call("PUT", functions+"/created/configuration", map[string]any{"Timeout": 7}); status != 200 || f["LastUpdateStatus"] != "InProgress" {
		t.Fatalf("update: %d %v", status, f)
	}
	c.stop()

	d := newRig(t, s, blobs, nil)
	v, err := d.registry.Resolve(t.Context(), testAccount, testRegion, "created", "")
	if err != nil || v.Version.Timeout != 3*time.Second {
		t.Errorf("what ran before the update: %v %v", v, err)
	}
	d.run()
	if f := d.settled("created"); f["LastUpdateStatus"] != "Successful" || f["Timeout"] != 7.0 {
		t.Errorf("after a crash in update: %v", f)
	}
	if v, err = d.registry.Resolve(t.Context(), testAccount, testRegion, "created", ""); err != nil || v.Version.Timeout != 7*time.Second {
		t.Errorf("what runs after the update: %v %v", v, err)
	}
}

// TestUnpackFails: a create becomes Failed, an update goes back to what ran.
func TestUnpackFails(t *testing.T) {
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	r.create("good", "x")
	r.settled("good")
	before, err := r.registry.Resolve(t.Context(), testAccount, testRegion, "good", "")
	if err != nil {
		t.Fatal(err)
	}
	r.archives.mu.Lock()
	r.archives.fail = errors.New("no inodes left")
	r.archives.mu.Unlock()

	r.create("bad", "y")
	if f := r.settled("bad"); f["State"] != "Failed" || f["StateReasonCode"] != "InternalError" || !strings.Contains(f["StateReason"].(string), "no inodes left") {
		t.Errorf("create: %v", f)
	}
	status, body := r.call("POST", functions+"/bad/invocations", nil)
	if status != 409 || !strings.HasSuffix(body["message"].(string), "currently in the following state: Failed") {
		t.Errorf("invoking a failed function: %d %v", status, body)
	}
	r.call("PUT", functions+"/good/configuration", map[string]any{"Timeout": 9})
	if f := r.settled("good"); f["State"] != "Active" || f["LastUpdateStatus"] != "Failed" || f["Timeout"] != 3.0 {
		t.Errorf("update: %v", f)
	}
	after, err := r.registry.Resolve(t.Context(), testAccount, testRegion, "good", "")
	if err != nil || after.Version.Generation != before.Version.Generation {
		t.Errorf("another version runs: %v %v", after, err)
	}

	// Both can be repaired.
	r.archives.mu.Lock()
	r.archives.fail = nil
	r.archives.mu.Unlock()
	for _, name := range []string{"good", "bad"} {
		if status, body := r.call("PUT", functions+"/"+name+"/code", map[string]any{"ZipFile": zipWith(t, "z")}); status != 200 {
			t.Fatalf("repairing %s: %d %v", name, status, body)
		}
		if f := r.settled(name); f["State"] != "Active" || f["LastUpdateStatus"] != "Successful" {
			t.Errorf("repaired %s: %v", name, f)
		}
	}
}

// TestOnChange: environments of old code are retired, and only those.
func TestOnChange(t *testing.T) {
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	r.create("f", "x")
	r.settled("f")
	r.call("PUT", functions+"/f/configuration", map[string]any{"Timeout": 9})
	r.settled("f")
	v, err := r.registry.Resolve(t.Context(), testAccount, testRegion, "f", "")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := <-r.changes, "f "+v.Version.Generation; got != want {
		t.Errorf("change %q, want %q", got, want)
	}
	r.call("DELETE", functions+"/f", nil)
	if got := <-r.changes; got != "f " {
		t.Errorf("deletion: %q", got)
	}
	select {
	case c := <-r.changes:
		t.Errorf("one more: %q", c)
	default:
	}
}

// TestSlowWatch: what the watch brings late undoes nothing that was acknowledged.
func TestSlowWatch(t *testing.T) {
	s := newFaulty()
	s.delay = make(chan struct{})
	r := newRig(t, s, mem.NewBlobs(), nil)
	r.run()
	r.create("gone", "x")
	r.create("again", "x")
	r.settled("gone")
	r.settled("again")
	for _, n := range []string{"gone", "again"} {
		if status, body := r.call("DELETE", functions+"/"+n, nil); status != 204 {
			t.Fatalf("delete: %d %v", status, body)
		}
	}
	r.create("again", "y")
	r.settled("again")
	r.create("last", "x")
	r.settled("last")
	close(s.delay)
	// The watch has come to the end when a change made elsewhere is seen.
	other := newRig(t, &faultyStore{Store: s.Store}, r.blobs, nil)
	other.create("marker", "x")
	for r.registry.function(functionRef{account: testAccount, region: testRegion, name: "marker"}) == nil {
		time.Sleep(time.Millisecond)
	}
	if status, _ := r.call("GET", functions+"/gone", nil); status != 404 {
		t.Errorf("a deleted function: %d", status)
	}
	if f := r.settled("again"); f["State"] != "Active" {
		t.Errorf("a function created again: %v", f)
	}
	r.registry.mu.RLock()
	defer r.registry.mu.RUnlock()
	if len(r.registry.gone) != 0 {
		t.Errorf("remembered for nothing: %v", r.registry.gone)
	}
}

// TestConcurrentChanges: of many updates that carry the same revision one wins,
// and of many creates.
func TestConcurrentChanges(t *testing.T) {
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	codes := func(f func() (int, map[string]any)) map[int]int {
		var mu sync.Mutex
		var wg sync.WaitGroup
		count := map[int]int{}
		for range 16 {
			wg.Go(func() {
				status, _ := f()
				mu.Lock()
				count[status]++
				mu.Unlock()
			})
		}
		wg.Wait()
		return count
	}
	if got := codes(func() (int, map[string]any) { return r.call("POST", functions, createBody(t, "f", "x")) }); got[201] != 1 || got[409] != 15 {
		t.Errorf("creates: %v", got)
	}
	revision := r.settled("f")["RevisionId"]
	got := codes(func() (int, map[string]any) {
		return r.call("PUT", functions+"/f/configuration", map[string]any{"Timeout": 9, "RevisionId": revision})
	})
	if got[200] != 1 || got[409]+got[412] != 15 {
		t.Errorf("updates: %v", got)
	}
	got = codes(func() (int, map[string]any) {
		return r.call("POST", "/2018-10-31/layers/l/versions", map[string]any{"Content": map[string]any{"ZipFile": zipWith(t, "x")}})
	})
	if got[201] != 16 {
		t.Errorf("layers: %v", got)
	}
	_, list := r.call("GET", "/2018-10-31/layers/l/versions", nil)
	if n := len(list["LayerVersions"].([]any)); n != 16 {
		t.Errorf("%d layer versions", n)
	}
	got = codes(func() (int, map[string]any) { r.settled("f"); return r.call("DELETE", functions+"/f", nil) })
	if got[204] != 1 || got[404] != 15 {
		t.Errorf("deletes: %v", got)
	}
}

// TestCollect: archives go when nothing needs them, after a grace period, and
// never while one is arriving.
func TestCollect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blobs := mem.NewBlobs()
		r := newRig(t, newFaulty(), blobs, nil)
		count := func() (n int) {
			_ = blobs.List(t.Context(), func(string, int64) bool { n++; return true })
			return n
		}
		if _, _, err := blobs.Put(t.Context(), strings.NewReader("left by a crash")); err != nil {
			t.Fatal(err)
		}
		r.run()
		synctest.Wait()
		if n := count(); n != 0 {
			t.Errorf("%d archives after the start", n)
		}
		r.create("f", "x")
		r.call("POST", "/2018-10-31/layers/l/versions", map[string]any{"Content": map[string]any{"ZipFile": zipWith(t, "layer")}})
		synctest.Wait()
		time.Sleep(10 * time.Minute)
		if n := count(); n != 2 {
			t.Errorf("%d archives in use", n)
		}
		r.call("DELETE", functions+"/f", nil)
		time.Sleep(collectEvery + time.Second)
		if n := count(); n != 2 {
			t.Errorf("%d archives within the grace period", n)
		}
		digest := digestOf(zipWith(t, "x"))
		if !r.archives.keeps(digest) {
			t.Error("the unpacked copy was given up within the grace period")
		}
		time.Sleep(collectEvery + collectGrace)
		if n := count(); n != 1 {
			t.Errorf("%d archives after a deletion", n)
		}
		if r.archives.keeps(digest) {
			t.Error("the unpacked copy is kept")
		}
		// Stored, and its record not yet written.
		release := r.registry.pin(digest)
		if _, _, err := blobs.Put(t.Context(), bytes.NewReader(zipWith(t, "x"))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if n := count(); n != 2 {
			t.Errorf("%d archives while one arrives", n)
		}
		release()
		r.stop()
	})
}

// TestFull: a full disk is said in a way that clients do not repeat, and leaves
// nothing.
func TestFull(t *testing.T) {
	s := newFaulty()
	var reserve error
	r := newRig(t, s, mem.NewBlobs(), func(c *Config) { c.Reserve = func() error { return reserve } })
	r.run()
	reserve = errors.New("below the reserve")
	status, body := r.call("POST", functions, createBody(t, "f", "x"))
	if status != 400 || body["code"] != "CodeStorageExceededException" || !strings.Contains(body["message"].(string), "free space") {
		t.Errorf("below the reserve: %d %v", status, body)
	}
	reserve = nil
	s.failing(func(string, string) error { return store.ErrFull })
	if status, body = r.call("POST", functions, createBody(t, "f", "x")); status != 400 || body["code"] != "CodeStorageExceededException" {
		t.Errorf("records full: %d %v", status, body)
	}
	s.failing(nil)
	if status, _ = r.call("GET", functions+"/f", nil); status != 404 {
		t.Errorf("after a create that failed: %d", status)
	}
	r.create("f", "x")
	r.settled("f")
	s.failing(func(string, string) error { return fmt.Errorf("disk: %w", io.ErrUnexpectedEOF) })
	if status, body = r.call("PUT", functions+"/f/configuration", map[string]any{"Timeout": 9}); status != 500 || body["code"] != "ServiceException" || strings.Contains(body["Message"].(string), "EOF") {
		t.Errorf("a broken disk: %d %v", status, body)
	}
}

// TestRefusedSettings: every member of the requests is either in force or refused by
// name; a member that a new model adds must be put into one of the lists.
func TestRefusedSettings(t *testing.T) {
	inForce := map[string][]string{
		"CreateFunction": {"FunctionName", "Runtime", "Role", "Handler", "Code", "Description", "Timeout", "MemorySize", "PackageType", "Environment",
			"TracingConfig", "Tags", "Layers", "Architectures", "EphemeralStorage", "LoggingConfig", "Publish", "CodeSigningConfigArn"},
		"UpdateFunctionConfiguration": {"FunctionName", "Role", "Handler", "Description", "Timeout", "MemorySize", "Environment", "Runtime",
			"TracingConfig", "RevisionId", "Layers", "EphemeralStorage", "LoggingConfig"},
		"UpdateFunctionCode": {"FunctionName", "ZipFile", "DryRun", "RevisionId", "Architectures", "Publish"},
	}
	refusedBy := map[string]map[string]any{
		"CreateFunction": {
			"CapacityProviderConfig": map[string]any{"LambdaManagedInstancesCapacityProviderConfig": map[string]any{"CapacityProviderArn": "arn:aws:lambda:us-east-1:000000000000:capacity-provider:x"}},
			"DeadLetterConfig":       map[string]any{"TargetArn": "arn:aws:sqs:us-east-1:000000000000:q"},
			"DurableConfig":          map[string]any{"ExecutionTimeout": 1},
			"FileSystemConfigs":      []any{map[string]any{"Arn": "arn:aws:elasticfilesystem:us-east-1:000000000000:access-point/fsap-00000000000000000", "LocalMountPath": "/mnt/x"}},
			"ImageConfig":            map[string]any{"Command": []string{"x"}},
			"KMSKeyArn":              "arn:aws:kms:us-east-1:000000000000:key/x",
			"PublishTo":              "LATEST_PUBLISHED",
			"SnapStart":              map[string]any{"ApplyOn": "PublishedVersions"},
			"TenancyConfig":          map[string]any{"TenantIsolationMode": "PER_TENANT"},
			"VpcConfig":              map[string]any{"SubnetIds": []string{"subnet-1"}, "SecurityGroupIds": []string{"sg-1"}},
		},
		"UpdateFunctionCode": {
			"S3Bucket": "bucket", "S3Key": "k", "S3ObjectVersion": "v", "ImageUri": "x", "SourceKMSKeyArn": "arn:aws:kms:us-east-1:000000000000:key/x", "PublishTo": "LATEST_PUBLISHED",
		},
	}
	refusedBy["UpdateFunctionConfiguration"] = map[string]any{}
	for _, m := range []string{"CapacityProviderConfig", "DeadLetterConfig", "DurableConfig", "FileSystemConfigs", "ImageConfig", "KMSKeyArn", "SnapStart", "VpcConfig"} {
		refusedBy["UpdateFunctionConfiguration"][m] = refusedBy["CreateFunction"][m]
	}
	nothing := map[string]any{ // asks for nothing, so it is no reason to refuse
		"DeadLetterConfig": map[string]any{"TargetArn": ""}, "FileSystemConfigs": []any{}, "ImageConfig": map[string]any{}, "KMSKeyArn": "",
		"SnapStart": map[string]any{"ApplyOn": "None"}, "VpcConfig": map[string]any{"SubnetIds": []string{}, "SecurityGroupIds": []string{}},
	}
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	r.create("f", "x")
	r.settled("f")
	for op, typ := range map[string]reflect.Type{
		"CreateFunction":              reflect.TypeFor[CreateFunctionRequest](),
		"UpdateFunctionConfiguration": reflect.TypeFor[UpdateFunctionConfigurationRequest](),
		"UpdateFunctionCode":          reflect.TypeFor[UpdateFunctionCodeRequest](),
	} {
		request := func(member string, value any) (int, map[string]any) {
			switch op {
			case "CreateFunction":
				body := createBody(t, "new", "x")
				body[member] = value
				return r.call("POST", functions, body)
			case "UpdateFunctionCode":
				return r.call("PUT", functions+"/f/code", map[string]any{member: value})
			default:
				r.settled("f")
				return r.call("PUT", functions+"/f/configuration", map[string]any{member: value})
			}
		}
		for i := range typ.NumField() {
			name := typ.Field(i).Name
			value, refused := refusedBy[op][name]
			if refused == slices.Contains(inForce[op], name) {
				t.Errorf("%s.%s must be in force or refused", op, name)
			}
			if !refused {
				continue
			}
			status, body := request(name, value)
			text, _ := body["message"].(string)
			if part, _, _ := strings.Cut(name, "ObjectVersion"); status != 400 || body["code"] != "InvalidParameterValueException" || !strings.Contains(text, part) {
				t.Errorf("%s.%s: %d %v", op, name, status, body)
			}
			if empty, ok := nothing[name]; ok && op == "UpdateFunctionConfiguration" {
				if status, body := request(name, empty); status != 200 {
					t.Errorf("%s.%s that asks for nothing: %d %v", op, name, status, body)
				}
			}
		}
	}
}

// TestCreateChecks: texts of control-plane.md section 4.1 that no recording in
// package conformance covers.
func TestCreateChecks(t *testing.T) {
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	r.create("taken", "x")
	for _, tt := range []struct {
		name   string
		change map[string]any
		status int
		text   string
	}{
		{"no handler", map[string]any{"Handler": nil}, 400, "Runtime and Handler are mandatory parameters for functions created with deployment packages."},
		{"no role", map[string]any{"Role": nil}, 400, "1 validation error detected: Value null at 'role' failed to satisfy constraint: Member must not be null"},
		{"no code", map[string]any{"Code": map[string]any{}}, 400, "Please provide a source for function code."},
		{"two sources", map[string]any{"Code": map[string]any{"ZipFile": zipWith(t, "x"), "S3Key": "k"}}, 400, "Please do not provide other FunctionCode parameters when providing a ZipFile."},
		{"reserved variables", map[string]any{"Environment": map[string]any{"Variables": map[string]any{"AWS_REGION": "x", "OK": "y"}}}, 400, "Reserved keys used in this request: AWS_REGION"},
		{"variable name", map[string]any{"Environment": map[string]any{"Variables": map[string]any{"1X": "x"}}}, 400, "Value '{1X=x}' at 'environment.variables' failed to satisfy constraint: Map keys must satisfy constraint: [Member must satisfy regular expression pattern: [a-zA-Z]([a-zA-Z0-9_])+]"},
		{"exists", map[string]any{"FunctionName": "taken"}, 409, "Function already exist: taken"},
		{"level with text", map[string]any{"LoggingConfig": map[string]any{"SystemLogLevel": "INFO"}}, 400, `LogLevel is not supported when LogFormat is set to "Text". Remove LogLevel`},
		{"memory of no account", map[string]any{"MemorySize": 10241}, 400, "'MemorySize' value failed to satisfy constraint: Member must have value less than or equal to 10240"},
		{"too little memory", map[string]any{"MemorySize": 127}, 400, "1 validation error detected: Value '127' at 'memorySize' failed to satisfy constraint: Member must have value greater than or equal to 128"},
		{"timeout", map[string]any{"Timeout": 3000}, 400, "1 validation error detected: Value '3000' at 'timeout' failed to satisfy constraint: Member must have value less than or equal to 900"},
		{"other architecture", map[string]any{"Architectures": []string{"arm64"}}, 400, "The architecture arm64 cannot run on this host"},
		{"runtime that AWS has and this host lacks", map[string]any{"Runtime": "java21"}, 400, "java21"},
		{"image with a runtime", map[string]any{"PackageType": "Image", "Code": map[string]any{"ImageUri": "x"}}, 400, "Please don't provide Handler or Runtime when the intended function PackageType is Image."},
		{"qualifier", map[string]any{"FunctionName": "f:1"}, 400, "without a qualifier"},
		{"number as text", map[string]any{"Timeout": "3"}, 400, "STRING_VALUE can not be converted to a Long"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := createBody(t, "f", "x")
			for k, v := range tt.change {
				body[k] = v
			}
			status, got := r.call("POST", functions, body)
			text, _ := got["message"].(string)
			if text == "" {
				text, _ = got["Message"].(string)
			}
			if status != tt.status || !strings.Contains(text, tt.text) {
				t.Errorf("%d %v", status, got)
			}
		})
	}
	if status, _ := r.call("GET", functions+"/f", nil); status != 404 {
		t.Errorf("one of these was created: %d", status)
	}
	status, got := r.call("GET", functions+"?Marker=!", nil)
	if status != 400 || got["code"] != "InvalidParameterValueException" {
		t.Errorf("bad marker: %d %v", status, got)
	}
}

func TestEnvironmentShown(t *testing.T) {
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	r.create("f", "x")
	f := r.settled("f")
	if _, ok := f["Environment"]; ok {
		t.Error("Environment is shown though never set")
	}
	for _, variables := range []map[string]any{{}, {"AB": ""}} {
		r.call("PUT", functions+"/f/configuration", map[string]any{"Environment": map[string]any{"Variables": variables}})
		f = r.settled("f")
		env, _ := f["Environment"].(map[string]any)
		if !reflect.DeepEqual(env["Variables"], variables) {
			t.Errorf("got %v, want %v", f["Environment"], variables)
		}
	}
	r.call("PUT", functions+"/f/configuration", map[string]any{"Timeout": 4})
	if env, _ := r.settled("f")["Environment"].(map[string]any); env["Variables"].(map[string]any)["AB"] != "" {
		t.Error("an update without Environment changed it")
	}
}

// TestManyVariables: the size limit counts the compact JSON in the order given.
func TestManyVariables(t *testing.T) {
	body := []byte(`{"Environment": {"Variables": {"ZZ" : "1", "AA":"<&>\n", "ZZ": "2"}}}`)
	names, measured := variablesInOrder(body, map[string]string{"AA": "<&>\n", "ZZ": "2"})
	if strings.Join(names, ",") != "ZZ,AA" || measured != `{"ZZ":"2","AA":"<&>\n"}` {
		t.Errorf("%v %s", names, measured)
	}
}

// TestInvokeAllocates counts the endpoint's part of a warm invocation, as
// BenchmarkInvoke has it, whatever the size of the event.
func TestInvokeAllocates(t *testing.T) {
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	r.create("hello", "x")
	r.settled("hello")
	keys := aws.NewKeyStore()
	mux := aws.NewMux(keys, aws.Options{}, r.service)
	for _, size := range []int{100, 100_000} {
		payload := []byte(`"` + strings.Repeat("x", size) + `"`)
		least := math.Inf(1)
		for range 30 {
			var requests []*http.Request
			var writers []*quietWriter
			for range 2 { // AllocsPerRun calls once to warm up
				req := httptest.NewRequest("POST", functions+"/hello/invocations", nil)
				signRequest(t, req, keys.Admin(), payload)
				req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(payload)), int64(len(payload))
				requests, writers = append(requests, req), append(writers, &quietWriter{header: make(http.Header, 16)})
			}
			i := 0
			least = min(least, testing.AllocsPerRun(1, func() {
				mux.ServeHTTP(writers[i], requests[i])
				i++
			}))
			if writers[1].status != http.StatusOK {
				t.Fatal(writers[1].status)
			}
		}
		if least != invokeAllocations {
			t.Errorf("%d bytes: %v allocations, want %d", size, least, invokeAllocations)
		}
	}
}

const invokeAllocations = 23

// A quietWriter forgets what is written.
type quietWriter struct {
	header http.Header
	status int
}

func (w *quietWriter) Header() http.Header         { return w.header }
func (w *quietWriter) WriteHeader(status int)      { w.status = status }
func (w *quietWriter) Write(b []byte) (int, error) { return len(b), nil }

// BenchmarkInvoke is the endpoint's part of a warm invocation: routing, signature,
// handler and front end, without network and without running anything.
func BenchmarkInvoke(b *testing.B) {
	r := newRig(b, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	r.create("hello", "x")
	r.settled("hello")
	keys := aws.NewKeyStore()
	mux := aws.NewMux(keys, aws.Options{}, r.service)
	payload := []byte(`{"key1":"value1","key2":"value2"}`)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		req := httptest.NewRequest("POST", functions+"/hello/invocations", nil)
		signRequest(b, req, keys.Admin(), payload)
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(payload)), int64(len(payload))
		w := httptest.NewRecorder()
		b.StartTimer()
		mux.ServeHTTP(w, req)
		if w.Code != http.StatusOK {
			b.Fatalf("%d %s", w.Code, w.Body)
		}
	}
}
