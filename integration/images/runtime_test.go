package images_test

import (
	"archive/tar"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/lambdad/lambdad/integration/harness"
)

// lambdad runs a command of the program and returns what it printed.
func lambdad(t testing.TB, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), harness.Program(t, "lambdad"), args...).CombinedOutput()
	return string(out), err
}

// TestRuntimeImage makes images the root file systems of runtimes, with the server
// running and without, and runs zips with layers on them.
func TestRuntimeImage(t *testing.T) {
	harness.NeedRoot(t)
	ctx, data := t.Context(), t.TempDir()
	// In the place of AWS's bootstrap and client.
	base := imageOf(t, v1.Config{Entrypoint: []string{"/lambda-entrypoint.sh"}, Env: []string{"OF_IMAGE=1", "LANG=en_US.UTF-8"}},
		layerOf(t, file{name: "var/runtime/bootstrap", content: program(t, "bootstrap")}, file{name: "var/task/of-image", content: "x"}))
	whole := imageOf(t, v1.Config{Entrypoint: []string{"/app"}}, layerOf(t, file{name: "app", content: "x", kind: tar.TypeReg}))
	oci, archive := filepath.Join(t.TempDir(), "oci"), filepath.Join(t.TempDir(), "image.tar")
	if p, err := layout.Write(oci, empty.Index); err != nil {
		t.Fatal(err)
	} else if err := p.AppendImage(base); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("lambda/dotnet:8")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(archive, tag, base); err != nil {
		t.Fatal(err)
	}

	// Before there is a server.
	if out, err := lambdad(t, "runtime", "add", "python3.12", "--oci", oci, "--data-dir", data); err != nil || !strings.Contains(out, "python3.12 is ready: it runs on oci:") {
		t.Fatalf("add: %s %v", out, err)
	}
	s := harness.Start(t, data, "--idle-timeout", "1s")
	// While it runs.
	if out, err := lambdad(t, "runtime", "add", "dotnet8", "--tar", archive, "--data-dir", data); err != nil {
		t.Fatalf("add: %s %v", out, err)
	}
	uri, _ := push(t, s, "whole", "v1", whole)
	if out, err := lambdad(t, "runtime", "add", "ruby3.3", "--image", uri, "--data-dir", data); err == nil || !strings.Contains(out, "has no /var/runtime/bootstrap") {
		t.Errorf("an image that is no base image: %s %v", out, err)
	}
	out, err := lambdad(t, "runtime", "list", "--data-dir", data)
	if err != nil || strings.Count(out, "image") < 2 {
		t.Errorf("list: %s %v", out, err)
	}
	layer := s.Layer(ctx, "hello", "extensions/hello-extension", harness.Program(t, "extension"))
	for _, rt := range []string{"python3.12", "dotnet8"} {
		fn := strings.ReplaceAll(rt, ".", "-")
		err := s.Create(ctx, fn, func(in *lambda.CreateFunctionInput) {
			in.Runtime, in.Handler, in.Layers = types.Runtime(rt), aws.String("f.h"), []string{layer}
		})
		if err != nil {
			t.Fatal(err)
		}
		if answer, err := s.Invoke(ctx, fn, `{"x":1}`); err != nil || !strings.Contains(string(answer), `"event":{"x":1}`) {
			t.Errorf("%s: %s, %v", rt, answer, err)
		}
		logged(t, data, "registered for "+fn)
	}
	if out, err := lambdad(t, "explain", "python3-12", "--data-dir", data); err != nil || !strings.Contains(out, "/var/runtime/bootstrap") || !strings.Contains(out, "AWS_Lambda_python3.12") {
		t.Errorf("explain: %s %v", out, err)
	}
	if out, err := lambdad(t, "runtime", "remove", "dotnet8", "--data-dir", data); err != nil {
		t.Fatalf("remove: %s %v", out, err)
	}
	if out, err := lambdad(t, "runtime", "remove", "dotnet8", "--data-dir", data); err == nil {
		t.Errorf("removed twice: %s", out)
	}
	err = s.Create(ctx, "late", func(in *lambda.CreateFunctionInput) { in.Runtime, in.Handler = "dotnet8", aws.String("f.h") })
	if err == nil || !strings.Contains(err.Error(), "dotnet8") {
		t.Errorf("a function of a removed runtime: %v", err)
	}
	s.Stop()
}
