package images_test

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/lambdad/lambdad/integration/harness"
)

// TestLayerImport takes layers from a directory, an image and "AWS", which is another
// lambdad, by command and when a function names them; they keep their ARNs.
func TestLayerImport(t *testing.T) {
	harness.NeedRoot(t)
	ctx, there, here := t.Context(), t.TempDir(), t.TempDir()
	vendor := harness.Start(t, there)
	const (
		fromDir   = "arn:aws:lambda:us-east-1:123456789012:layer:vendor:7"
		fromImage = "arn:aws:lambda:us-east-1:123456789012:layer:of-image:3"
	)
	// A directory with an extension and what would go wrong with another.
	dir := t.TempDir()
	for file, mode := range map[string]os.FileMode{"hello-extension": 0o755, "readme.txt": 0o644} {
		p := filepath.Join(dir, "extensions", file)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(program(t, "extension")), mode); err != nil {
			t.Fatal(err)
		}
	}
	out, err := lambdad(t, "layer", "import", dir, "--arn", fromDir, "--data-dir", there)
	if err != nil || !strings.Contains(out, fromDir+": 2 files") || !strings.Contains(out, "warning: ") || !strings.Contains(out, "readme.txt") {
		t.Fatalf("import of a directory: %s %v", out, err)
	}
	if err := os.Remove(filepath.Join(dir, "extensions", "readme.txt")); err != nil {
		t.Fatal(err)
	}
	if out, err := lambdad(t, "layer", "import", dir, "--arn", fromDir, "--data-dir", there); err == nil || !strings.Contains(out, "another content") {
		t.Errorf("another content under the same ARN: %s %v", out, err)
	}
	if out, err := lambdad(t, "layer", "import", dir, "--arn", fromDir, "--replace", "--data-dir", there); err != nil {
		t.Fatalf("replace: %s %v", out, err)
	}
	// An image: what upper layers hide is no part of it.
	img := imageOf(t, v1.Config{},
		layerOf(t, file{name: "opt/extensions/old", content: "x"}, file{name: "opt/lib/l", content: "x"}, file{name: "bin/other", content: "x"}),
		layerOf(t, file{name: "opt/extensions/hello-extension", content: program(t, "extension")}, file{name: "opt/extensions/.wh.old", kind: tar.TypeReg}))
	tag, err := name.NewTag("vendor/extension:1")
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(archive, tag, img); err != nil {
		t.Fatal(err)
	}
	if out, err := lambdad(t, "layer", "import", "--tar", archive, "--arn", fromImage, "--data-dir", there); err != nil || !strings.Contains(out, ": 2 files") {
		t.Fatalf("import of an image: %s %v", out, err)
	}

	// The vendor's account is the AWS of the other one.
	cred, err := vendor.Client.Options().Credentials.Retrieve(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", cred.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", cred.SecretAccessKey)
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(here, "none"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(here, "none"))
	s := harness.Start(t, here, "--layer-pull-through", vendor.Endpoint)
	with := func(arns ...string) func(*lambda.CreateFunctionInput) {
		return func(in *lambda.CreateFunctionInput) { in.Layers = arns }
	}
	if out, err := lambdad(t, "layer", "import", fromImage, "--endpoint", vendor.Endpoint, "--data-dir", here); err != nil || !strings.Contains(out, fromImage+": 2 files") {
		t.Fatalf("import by ARN: %s %v", out, err)
	}
	t.Setenv("AWS_ENDPOINT_URL", s.Endpoint)
	if out, err := lambdad(t, "layer", "import", fromDir, "--data-dir", here); err == nil || !strings.Contains(out, "points at this lambdad") {
		t.Errorf("import from itself: %s %v", out, err)
	}
	for _, tt := range []struct{ fn, arn string }{{"imported", fromImage}, {"pulled", fromDir}} {
		if err := s.Create(ctx, tt.fn, with(tt.arn)); err != nil {
			t.Fatalf("%s: %v", tt.fn, err)
		}
		got, err := s.Client.GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{FunctionName: aws.String(tt.fn)})
		if err != nil || len(got.Layers) != 1 || aws.ToString(got.Layers[0].Arn) != tt.arn {
			t.Errorf("%s: layers %+v, %v", tt.fn, got.Layers, err)
		}
		if _, err := s.Invoke(ctx, tt.fn, `{}`); err != nil {
			t.Errorf("%s: %v", tt.fn, err)
		}
		logged(t, here, "registered for "+tt.fn)
	}
	if err := s.Create(ctx, "unknown", with("arn:aws:lambda:us-east-1:123456789012:layer:none:1")); err == nil || !strings.Contains(err.Error(), "AccessDeniedException") {
		t.Errorf("a layer that nobody has: %v", err)
	}
	got, err := s.Client.GetLayerVersionByArn(ctx, &lambda.GetLayerVersionByArnInput{Arn: aws.String(fromDir)})
	if err != nil || aws.ToString(got.LayerVersionArn) != fromDir {
		t.Errorf("GetLayerVersionByArn: %+v, %v", got, err)
	}
	s.Stop()
	vendor.Stop()
}
