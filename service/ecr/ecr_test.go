package ecr

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	sdkaws "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/blob/files"
	"github.com/lambdad/lambdad/image"
	"github.com/lambdad/lambdad/mem"
)

// fixture is a registry on an endpoint.
type fixture struct {
	t      testing.TB
	s      *Service
	images *image.Store
	mux    *aws.Mux
	url    string
	people *people // who is there beside the account's root
	keys   *aws.KeyStore
	root   lambdad.Credentials

	mu     sync.Mutex // guards the following
	now    time.Time
	called []aws.Access
}

func newFixture(t testing.TB, auth aws.AuthMode) *fixture {
	t.Helper()
	f := &fixture{t: t, now: time.Now(), people: &people{users: map[string]*person{}, roles: map[string]*aws.Role{}}}
	blobs, err := files.Open(files.Config{Dir: filepath.Join(t.TempDir(), "blobs")})
	if err != nil {
		t.Fatal(err)
	}
	f.images = image.New(image.Config{Dir: filepath.Join(t.TempDir(), "layers"), Blobs: blobs, Now: f.clock})
	f.s, err = New(t.Context(), Config{Store: mem.NewStore(), Images: f.images, Now: f.clock})
	if err != nil {
		t.Fatal(err)
	}
	if f.keys, err = aws.OpenKeyStore(t.TempDir(), f.people); err != nil {
		t.Fatal(err)
	}
	f.root = f.keys.Admin()
	f.mux = aws.NewMux(f.keys, aws.Options{Auth: auth, Access: func(a aws.Access) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.called = append(f.called, a)
	}}, f.s)
	server := httptest.NewServer(f.mux)
	t.Cleanup(func() { server.Close(); f.s.Close() })
	f.url = server.URL
	return f
}

func (f *fixture) clock() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fixture) later(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.now.Add(d)
}

// call calls an operation of ECR as root; want is a part of the answer.
func (f *fixture) call(op, in string, status int, want string) map[string]any {
	f.t.Helper()
	return f.callAs(f.root, op, in, status, want)
}

// callAs calls as somebody.
func (f *fixture) callAs(who lambdad.Credentials, op, in string, status int, want string) map[string]any {
	f.t.Helper()
	got, body := f.ask(who, op, in)
	if got != status || !strings.Contains(body, want) {
		f.t.Errorf("%s %s: %d %s; want %d %s", op, in, got, body, status, want)
	}
	var out map[string]any
	_ = json.Unmarshal([]byte(body), &out)
	return out
}

func (f *fixture) ask(who lambdad.Credentials, op, in string) (status int, answer string) {
	f.t.Helper()
	req, err := http.NewRequest("POST", f.url+"/", strings.NewReader(in))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("X-Amz-Target", api.Target+"."+op)
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	sum := sha256.Sum256([]byte(in))
	cred := sdkaws.Credentials{AccessKeyID: who.AccessKeyID, SecretAccessKey: who.SecretAccessKey, SessionToken: who.SessionToken}
	if err := v4.NewSigner().SignHTTP(f.t.Context(), cred, req, hex.EncodeToString(sum[:]), "ecr", "us-east-1", time.Now()); err != nil {
		f.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// v2 makes a request of the distribution API.
func (f *fixture) v2(method, path, password string, body []byte, header ...string) *http.Response {
	f.t.Helper()
	req, err := http.NewRequest(method, f.url+path, bytes.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	if password != "" {
		req.SetBasicAuth("AWS", password)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(data))
	return resp
}

func (f *fixture) expect(resp *http.Response, status int, want string) {
	f.t.Helper()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != status || !strings.Contains(string(body), want) {
		f.t.Errorf("%s %s: %d %s; want %d %s", resp.Request.Method, resp.Request.URL.Path, resp.StatusCode, body, status, want)
	}
}

func (f *fixture) password() string {
	f.t.Helper()
	return f.login(f.root, `{}`)
}

// login is the password that somebody gets.
func (f *fixture) login(who lambdad.Credentials, in string) string {
	f.t.Helper()
	out := f.callAs(who, "GetAuthorizationToken", in, 200, "authorizationToken")
	token := out["authorizationData"].([]any)[0].(map[string]any)["authorizationToken"].(string)
	b, err := base64.StdEncoding.DecodeString(token)
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.TrimPrefix(string(b), "AWS:")
}

func digest(b []byte) string {
	d, _, _ := mem.NewBlobs().Put(context.Background(), bytes.NewReader(b))
	return "sha256:" + d
}

func manifest(config, layer []byte) []byte {
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`,
		image.TypeOCIManifest, digest(config), len(config), digest(layer), len(layer))
}

// push pushes a blob in one piece.
func (f *fixture) push(repo, password string, b []byte) {
	f.t.Helper()
	f.expect(f.v2("POST", "/v2/"+repo+"/blobs/uploads/?digest="+digest(b), password, b), 201, "")
}

func TestOperations(t *testing.T) {
	f := newFixture(t, aws.Verify)
	f.call("DescribeRepositories", `{"repositoryNames":["none"]}`, 400, "The repository with name 'none' does not exist in the registry with id '000000000000'")
	f.call("CreateRepository", `{}`, 400, "InvalidParameterException")
	f.call("CreateRepository", `{"repositoryName":"UPPER"}`, 400, "InvalidParameterException")
	f.call("CreateRepository", `{"repositoryName":"a/b.c-d","tags":[{"Key":"k","Value":"v"}]}`, 200, `"repositoryArn":"arn:aws:ecr:us-east-1:000000000000:repository/a/b.c-d"`)
	f.call("CreateRepository", `{"repositoryName":"a/b.c-d"}`, 400, "RepositoryAlreadyExistsException")
	f.call("CreateRepository", `{"repositoryName":"second","encryptionConfiguration":{"encryptionType":"KMS"}}`, 400, "InvalidParameterException")
	f.call("CreateRepository", `{"repositoryName":"second","imageScanningConfiguration":{"scanOnPush":true}}`, 400, "does not scan")
	f.call("CreateRepository", `{"repositoryName":"second","imageTagMutability":"IMMUTABLE"}`, 200, `IMMUTABLE`)
	f.call("DescribeRepositories", `{}`, 200, `"repositoryName":"a/b.c-d"`)
	page := f.call("DescribeRepositories", `{"maxResults":1}`, 200, `nextToken`)
	f.call("DescribeRepositories", fmt.Sprintf(`{"maxResults":1,"nextToken":%q}`, page["nextToken"]), 200, `"second"`)
	f.call("ListTagsForResource", `{"resourceArn":"arn:aws:ecr:us-east-1:000000000000:repository/a/b.c-d"}`, 200, `{"tags":[{"Key":"k","Value":"v"}]}`)
	f.call("TagResource", `{"resourceArn":"arn:aws:ecr:us-east-1:000000000000:repository/second","tags":[{"Key":"x","Value":"y"}]}`, 200, "")
	f.call("UntagResource", `{"resourceArn":"arn:aws:ecr:us-east-1:000000000000:repository/second","tagKeys":["x"]}`, 200, "")
	f.call("GetRepositoryPolicy", `{"repositoryName":"second"}`, 400, "RepositoryPolicyNotFoundException")
	f.call("SetRepositoryPolicy", `{"repositoryName":"second","policyText":"no"}`, 400, "InvalidParameterException")
	f.call("SetRepositoryPolicy", `{"repositoryName":"second","policyText":"{}"}`, 400, "Invalid repository policy provided")
	f.setPolicy("second", pullPolicy)
	f.call("GetRepositoryPolicy", `{"repositoryName":"second"}`, 200, `BatchGetImage`)
	f.call("DeleteRepositoryPolicy", `{"repositoryName":"second"}`, 200, ``)
	f.call("GetLifecyclePolicy", `{"repositoryName":"second"}`, 400, "LifecyclePolicyNotFoundException")
	f.call("PutLifecyclePolicy", `{"repositoryName":"second","lifecyclePolicyText":"{}"}`, 501, "PutLifecyclePolicy")
	f.call("DescribeRepositories", `{"registryId":"111111111111"}`, 400, "AccessDeniedException")

	p := f.password()
	config, layer := []byte(`{"os":"linux","architecture":"amd64"}`), []byte("layer")
	f.push("second", p, config)
	f.call("PutImage", fmt.Sprintf(`{"repositoryName":"second","imageTag":"v1","imageManifest":%q}`, manifest(config, layer)), 400, "LayersNotFoundException")
	f.push("second", p, layer)
	f.call("BatchCheckLayerAvailability", fmt.Sprintf(`{"repositoryName":"second","layerDigests":[%q,%q]}`, digest(layer), digest([]byte("x"))), 200, `"layerAvailability":"UNAVAILABLE"`)
	m := manifest(config, layer)
	put := fmt.Sprintf(`{"repositoryName":"second","imageTag":"v1","imageManifest":%q}`, m)
	f.call("PutImage", put, 200, digest(m))
	f.call("PutImage", put, 400, "ImageAlreadyExistsException")
	other := manifest(layer, config)
	f.call("PutImage", fmt.Sprintf(`{"repositoryName":"second","imageTag":"v1","imageManifest":%q}`, other), 400, "ImageTagAlreadyExistsException")
	f.call("DescribeImages", `{"repositoryName":"second","imageIds":[{"imageTag":"v1"}]}`, 200, `"imageTags":["v1"]`)
	f.call("DescribeImages", `{"repositoryName":"second","imageIds":[{"imageTag":"v2"}]}`, 400, "ImageNotFoundException")
	f.call("ListImages", `{"repositoryName":"second","filter":{"tagStatus":"TAGGED"}}`, 200, `"imageTag":"v1"`)
	f.call("BatchGetImage", `{"repositoryName":"second","imageIds":[{"imageTag":"v1"},{"imageTag":"v2"}]}`, 200, `"failureCode":"ImageNotFound"`)
	f.call("DeleteRepository", `{"repositoryName":"second"}`, 400, "RepositoryNotEmptyException")
	f.call("BatchDeleteImage", `{"repositoryName":"second","imageIds":[{"imageTag":"v1"}]}`, 200, `"imageTag":"v1"`)
	f.call("ListImages", `{"repositoryName":"second"}`, 200, `{"imageIds":[]}`)
	f.call("DeleteRepository", `{"repositoryName":"second"}`, 200, `"second"`)
}

func TestDistribution(t *testing.T) {
	f := newFixture(t, aws.Verify)
	resp := f.v2("GET", "/v2/", "", nil)
	f.expect(resp, 401, "UNAUTHORIZED")
	if !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), `Basic realm="http://127.0.0.1`) {
		t.Errorf("challenge: %q", resp.Header.Get("WWW-Authenticate"))
	}
	p := f.password()
	f.expect(f.v2("GET", "/v2/", p, nil), 200, "{}")
	f.expect(f.v2("GET", "/v2/", p+"x", nil), 401, "")
	f.expect(f.v2("POST", "/v2/none/blobs/uploads/", p, nil), 404, "NAME_UNKNOWN")
	f.expect(f.v2("POST", "/v2/UPPER/blobs/uploads/", p, nil), 400, "NAME_INVALID")
	f.expect(f.v2("GET", "/v2/a/nothing", p, nil), 404, "")
	f.call("CreateRepository", `{"repositoryName":"app"}`, 200, "")
	f.call("CreateRepository", `{"repositoryName":"other"}`, 200, "")

	// In parts, one of them repeated at a wrong place.
	layer := bytes.Repeat([]byte("layer"), 100000)
	resp = f.v2("POST", "/v2/app/blobs/uploads/", p, nil)
	f.expect(resp, 202, "")
	at := resp.Header.Get("Location")
	f.expect(f.v2("PATCH", at, p, layer[:1000], "Content-Range", "0-999"), 202, "")
	f.expect(f.v2("PATCH", at, p, layer[500:1500], "Content-Range", "500-1499"), 416, "1000 bytes have come")
	if resp = f.v2("GET", at, p, nil); resp.Header.Get("Range") != "0-999" {
		t.Errorf("status of the upload: %d %v", resp.StatusCode, resp.Header)
	}
	f.expect(f.v2("PATCH", strings.Replace(at, "app", "other", 1), p, layer[1000:]), 404, "BLOB_UPLOAD_UNKNOWN")
	f.expect(f.v2("PUT", at+"?digest="+digest(layer), p, layer[1000:]), 201, "")
	f.expect(f.v2("PUT", at+"?digest="+digest(layer), p, nil), 404, "BLOB_UPLOAD_UNKNOWN")

	// A lie about the digest gives no access to what another repository has.
	f.expect(f.v2("POST", "/v2/other/blobs/uploads/?digest="+digest(layer), p, []byte("lie")), 400, "DIGEST_INVALID")
	f.expect(f.v2("GET", "/v2/other/blobs/"+digest(layer), p, nil), 404, "BLOB_UNKNOWN")
	f.expect(f.v2("GET", "/v2/app/blobs/"+digest(layer), p, nil), 200, "layer")
	f.expect(f.v2("GET", "/v2/app/blobs/"+digest(layer), p, nil, "Range", "bytes=0-4"), 206, "layer")
	f.expect(f.v2("GET", "/v2/app/blobs/sha256:../../x", p, nil), 400, "DIGEST_INVALID")
	f.expect(f.v2("DELETE", "/v2/app/blobs/"+digest(layer), p, nil), 405, "UNSUPPORTED")
	f.expect(f.v2("POST", "/v2/other/blobs/uploads/?from=app&mount="+digest(layer), p, nil), 201, "")
	f.expect(f.v2("HEAD", "/v2/other/blobs/"+digest(layer), p, nil), 200, "")
	resp = f.v2("POST", "/v2/app/blobs/uploads/", p, nil)
	f.expect(f.v2("DELETE", resp.Header.Get("Location"), p, nil), 204, "")

	config := []byte(`{}`)
	m := manifest(config, layer)
	f.expect(f.v2("PUT", "/v2/app/manifests/v1", p, m, "Content-Type", image.TypeOCIManifest), 400, "MANIFEST_BLOB_UNKNOWN")
	f.push("app", p, config)
	f.expect(f.v2("PUT", "/v2/app/manifests/sha256:"+strings.Repeat("0", 64), p, m), 400, "DIGEST_INVALID")
	f.expect(f.v2("PUT", "/v2/app/manifests/v1", p, []byte("<html>")), 400, "MANIFEST_INVALID")
	f.expect(f.v2("PUT", "/v2/app/manifests/-v1", p, m), 400, "MANIFEST_INVALID")
	f.expect(f.v2("PUT", "/v2/app/manifests/v1", p, bytes.Replace(m, []byte(fmt.Sprint(len(layer))), []byte("7"), 1)), 400, "MANIFEST_BLOB_UNKNOWN")
	resp = f.v2("PUT", "/v2/app/manifests/v1", p, m, "Content-Type", image.TypeOCIManifest)
	f.expect(resp, 201, "")
	if resp.Header.Get("Docker-Content-Digest") != digest(m) {
		t.Errorf("digest %q", resp.Header.Get("Docker-Content-Digest"))
	}
	for _, ref := range []string{"v1", digest(m)} {
		f.expect(f.v2("GET", "/v2/app/manifests/"+ref, p, nil), 200, string(m))
	}
	f.expect(f.v2("GET", "/v2/app/manifests/v2", p, nil), 404, "MANIFEST_UNKNOWN")
	f.expect(f.v2("GET", "/v2/app/tags/list", p, nil), 200, `"tags":["v1"]`)
	f.expect(f.v2("GET", "/v2/_catalog", p, nil), 200, `["app","other"]`)

	// What nothing names goes after its time, what an image has stays.
	f.later(3 * time.Hour)
	for range 2 {
		roots, err := f.s.Digests(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := f.images.Collect(t.Context(), roots, time.Minute); err != nil {
			t.Fatal(err)
		}
		f.later(time.Hour)
	}
	f.expect(f.v2("GET", "/v2/other/blobs/"+digest(layer), p, nil), 404, "BLOB_UNKNOWN")
	f.expect(f.v2("GET", "/v2/app/blobs/"+digest(layer), p, nil), 200, "layer")
	f.expect(f.v2("DELETE", "/v2/app/manifests/"+digest(m), p, nil), 202, "")
	f.expect(f.v2("GET", "/v2/app/blobs/"+digest(layer), p, nil), 404, "BLOB_UNKNOWN")

	f.later(12 * time.Hour)
	f.expect(f.v2("GET", "/v2/", p, nil), 401, "")
}

// TestOpen: with --auth any nobody needs a password, but web pages are refused.
func TestOpen(t *testing.T) {
	f := newFixture(t, aws.Any)
	f.expect(f.v2("GET", "/v2/", "", nil), 200, "{}")
	f.expect(f.v2("GET", "/v2/", "", nil, "Origin", "http://evil.example"), 403, "web pages")
}
