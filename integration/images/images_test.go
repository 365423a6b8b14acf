// Package images_test pushes container images with a registry client as users have
// them and runs functions from them on the real binary.
package images_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/lambdad/lambdad/integration/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// file is one entry of a layer.
type file struct {
	name, content, link string
	mode                int64
	kind                byte
}

// layerOf is a layer of files.
func layerOf(t testing.TB, files ...file) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if f.kind == 0 {
			f.kind = tar.TypeReg
		}
		if f.mode == 0 {
			f.mode = 0o755
		}
		h := &tar.Header{Name: f.name, Typeflag: f.kind, Mode: f.mode, Linkname: f.link, Size: int64(len(f.content)), ModTime: time.Unix(1700000000, 0), Uid: 1000}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// imageOf is an image of layers.
func imageOf(t testing.TB, config v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Config = "linux", "amd64", config
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

func program(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(harness.Program(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// ecr calls an operation of ECR as the administrator.
func ecr(t testing.TB, s *harness.Server, op string, in, out any) error {
	t.Helper()
	return ecrAs(t, s, s.Client.Options().Credentials, op, in, out)
}

// ecrAs calls it as somebody, with a signed request.
func ecrAs(t testing.TB, s *harness.Server, who aws.CredentialsProvider, op string, in, out any) error {
	t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest("POST", s.Endpoint+"/", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", "AmazonEC2ContainerRegistry_V20150921."+op)
	cred, err := who.Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(body)
	if err := v4.NewSigner().SignHTTP(t.Context(), cred, req, hex.EncodeToString(sum[:]), "ecr", "us-east-1", time.Now()); err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 {
		return fmt.Errorf("%s: %d %s", op, resp.StatusCode, data)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(data, out)
}

// login is what docker login does with GetAuthorizationToken.
func login(t testing.TB, s *harness.Server, who aws.CredentialsProvider) authn.Authenticator {
	t.Helper()
	var out struct {
		AuthorizationData []struct{ AuthorizationToken, ProxyEndpoint string }
	}
	if err := ecrAs(t, s, who, "GetAuthorizationToken", struct{}{}, &out); err != nil {
		t.Fatal(err)
	}
	if got := out.AuthorizationData[0].ProxyEndpoint; got != s.Endpoint {
		t.Errorf("proxyEndpoint is %s, the endpoint %s", got, s.Endpoint)
	}
	b, err := base64.StdEncoding.DecodeString(out.AuthorizationData[0].AuthorizationToken)
	if err != nil {
		t.Fatal(err)
	}
	user, password, _ := strings.Cut(string(b), ":")
	return &authn.Basic{Username: user, Password: password}
}

// push makes a repository and pushes an image to it.
func push(t testing.TB, s *harness.Server, repo, tag string, img v1.Image) (uri, digest string) {
	t.Helper()
	var out struct {
		Repository struct{ RepositoryUri string }
	}
	err := ecr(t, s, "CreateRepository", map[string]any{"repositoryName": repo}, &out)
	if err != nil && !strings.Contains(err.Error(), "RepositoryAlreadyExistsException") {
		t.Fatal(err)
	}
	u, err := url.Parse(s.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	uri = u.Host + "/" + repo + ":" + tag
	ref, err := name.ParseReference(uri)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithAuth(login(t, s, s.Client.Options().Credentials))); err != nil {
		t.Fatalf("push: %v", err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return uri, d.Hex
}

func create(ctx context.Context, t testing.TB, s *harness.Server, name, uri string, config *types.ImageConfig) (*lambda.CreateFunctionOutput, error) {
	out, err := s.Client.CreateFunction(ctx, &lambda.CreateFunctionInput{
		FunctionName: &name, PackageType: types.PackageTypeImage, Code: &types.FunctionCode{ImageUri: &uri},
		Role: aws.String("arn:aws:iam::000000000000:role/any"), MemorySize: aws.Int32(256), Timeout: aws.Int32(10), ImageConfig: config,
		Environment: &types.Environment{Variables: map[string]string{"OVER": "function", "OWN": "1"}},
	})
	return out, err
}

func active(ctx context.Context, t testing.TB, s *harness.Server, name string) *lambda.GetFunctionOutput {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		out, err := s.Client.GetFunction(ctx, &lambda.GetFunctionInput{FunctionName: &name})
		if err != nil {
			t.Fatal(err)
		}
		if out.Configuration.State != types.StatePending && out.Configuration.LastUpdateStatus != types.LastUpdateStatusInProgress || time.Since(begin) > 30*time.Second {
			return out
		}
	}
}

// logged waits for a text in the log.
func logged(t testing.TB, data, text string) {
	t.Helper()
	for begin := time.Now(); !strings.Contains(harness.Logs(t, data), text); time.Sleep(50 * time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("the log has no %q:\n%s", text, harness.Logs(t, data))
		}
	}
}

// TestImage is the way of an image: pushed to the registry here, made a function
// with an extension inside, invoked, changed, deleted; nothing is left.
func TestImage(t *testing.T) {
	harness.NeedRoot(t)
	ctx := t.Context()
	data := t.TempDir()
	s := harness.Start(t, data, "--idle-timeout", "1s")
	base := layerOf(t,
		file{name: "app/", kind: tar.TypeDir}, file{name: "app/bootstrap", content: program(t, "bootstrap")},
		file{name: "app/gone", content: "x"}, file{name: "opt/extensions/old", content: "not a program"},
		file{name: "etc/passwd", content: "evil::0:0::/:/bin/sh\n", mode: 0o644}, file{name: "dev/sda", kind: tar.TypeBlock},
		file{name: "bin/sh", content: "x", mode: 0o6755})
	top := layerOf(t, file{name: "opt/extensions/hello-extension", content: program(t, "extension")},
		file{name: "opt/extensions/.wh.old"}, file{name: "app/.wh.gone"}, file{name: "app/start", kind: tar.TypeSymlink, link: "bootstrap"})
	img := imageOf(t, v1.Config{Entrypoint: []string{"/app/bootstrap"}, Cmd: []string{"app.handler"}, WorkingDir: "/app",
		Env: []string{"PATH=/app:/bin", "OVER=image", "OF=image"}}, base, top)
	uri, digest := push(t, s, "team/hello", "v1", img)

	made, err := create(ctx, t, s, "hello", uri, nil)
	if err != nil {
		t.Fatal(err)
	}
	if made.PackageType != types.PackageTypeImage || made.Runtime != "" || made.Handler != nil || aws.ToString(made.CodeSha256) != digest || made.CodeSize != 0 {
		t.Errorf("created %+v", made)
	}
	got := active(ctx, t, s, "hello")
	if got.Configuration.State != types.StateActive {
		t.Fatalf("state %s: %s %s", got.Configuration.State, got.Configuration.StateReasonCode, aws.ToString(got.Configuration.StateReason))
	}
	if aws.ToString(got.Code.RepositoryType) != "ECR" || aws.ToString(got.Code.ImageUri) != uri || !strings.HasSuffix(aws.ToString(got.Code.ResolvedImageUri), "team/hello@sha256:"+digest) {
		t.Errorf("code: %+v", got.Code)
	}
	answer, err := s.Invoke(ctx, "hello", `{"x":1}`)
	if err != nil || !strings.Contains(string(answer), `"event":{"x":1}`) {
		t.Fatalf("invoke: %s, %v\n%s", answer, err, harness.Logs(t, data))
	}
	logged(t, data, "EXTENSION\tName: hello-extension\tState: Ready")
	logged(t, data, "INVOKE 1, request ")
	// A second push under the same tag changes nothing until the function says so.
	second := imageOf(t, v1.Config{Entrypoint: []string{"/app/start"}, WorkingDir: "/app"}, base, top)
	_, digest2 := push(t, s, "team/hello", "v1", second)
	if _, err := s.Invoke(ctx, "hello", `{}`); err != nil {
		t.Fatal(err)
	}
	updated, err := s.Client.UpdateFunctionCode(ctx, &lambda.UpdateFunctionCodeInput{FunctionName: aws.String("hello"),
		ImageUri: aws.String("000000000000.dkr.ecr.us-east-1.amazonaws.com/team/hello:v1")})
	if err != nil || aws.ToString(updated.CodeSha256) != digest2 {
		t.Fatalf("update: %+v, %v", updated, err)
	}
	if got := active(ctx, t, s, "hello"); got.Configuration.LastUpdateStatus != types.LastUpdateStatusSuccessful {
		t.Fatalf("update: %s", aws.ToString(got.Configuration.LastUpdateStatusReason))
	}
	if answer, err := s.Invoke(ctx, "hello", `{"x":2}`); err != nil || !strings.Contains(string(answer), `"event":{"x":2}`) {
		t.Fatalf("invoke of the second: %s, %v", answer, err)
	}

	// Killed and started again, it runs from the same directories.
	s.Kill()
	s = harness.Start(t, data, "--idle-timeout", "1s")
	if answer, err := s.Invoke(ctx, "hello", `{"x":3}`); err != nil || !strings.Contains(string(answer), `"event":{"x":3}`) {
		t.Fatalf("invoke after a kill: %s, %v", answer, err)
	}

	// What a function is started with is said when it cannot be.
	for _, tt := range []struct {
		name   string
		config types.ImageConfig
		want   string
	}{
		{"entry", types.ImageConfig{EntryPoint: []string{"/nothing"}}, `Runtime.InvalidEntrypoint`},
		{"dir", types.ImageConfig{WorkingDirectory: aws.String("/nowhere")}, `Runtime.InvalidWorkingDir`},
		{"text", types.ImageConfig{EntryPoint: []string{"/etc/hosts"}, Command: []string{"a", "b"}}, `Runtime.InvalidEntrypoint`},
	} {
		if _, err := create(ctx, t, s, tt.name, "000000000000.dkr.ecr.us-east-1.amazonaws.com/team/hello@sha256:"+digest, &tt.config); err != nil {
			t.Fatal(err)
		}
		if got := active(ctx, t, s, tt.name); got.Configuration.ImageConfigResponse == nil {
			t.Errorf("%s: no ImageConfigResponse", tt.name)
		}
		out, err := s.Client.Invoke(ctx, &lambda.InvokeInput{FunctionName: &tt.name})
		if err != nil || !strings.Contains(string(out.Payload), tt.want) {
			t.Errorf("%s: %s, %v; want %s", tt.name, out.Payload, err, tt.want)
		}
	}
	logged(t, data, "IMAGE\tLaunch error: fork/exec /nothing: no such file or directory\tEntrypoint: [/nothing]\tCmd: [app.handler]\tWorkingDir: [/app]")

	for _, name := range []string{"hello", "entry", "dir", "text"} {
		if _, err := s.Client.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: &name}); err != nil {
			t.Fatal(err)
		}
	}
	if err := ecr(t, s, "DeleteRepository", map[string]any{"repositoryName": "team/hello"}, nil); err == nil || !strings.Contains(err.Error(), "RepositoryNotEmptyException") {
		t.Errorf("a repository with images: %v", err)
	}
	if err := ecr(t, s, "DeleteRepository", map[string]any{"repositoryName": "team/hello", "force": true}, nil); err != nil {
		t.Error(err)
	}
	s.WaitEnvironments(20*time.Second, func(l []harness.State) bool { return len(l) == 0 })
	s.Stop()
	if left, _ := filepath.Glob(filepath.Join(data, "run", "*")); len(left) > 0 {
		t.Errorf("left in the scratch directory: %v", left)
	}
}
