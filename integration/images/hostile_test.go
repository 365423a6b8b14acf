package images_test

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/lambdad/lambdad/integration/harness"
)

// TestHostileImages: a function of a hostile image fails with AWS's reason and a text
// that says what is wrong; nothing is outside and no unpacked layer stays.
func TestHostileImages(t *testing.T) {
	harness.NeedRoot(t)
	ctx, data := t.Context(), t.TempDir()
	s := harness.Start(t, data)
	good := layerOf(t, file{name: "app", content: program(t, "bootstrap")})
	for name, tt := range map[string]struct {
		layer v1.Layer
		want  string
	}{
		"traversal": {layerOf(t, file{name: "../../../../../../escaped-from-image", content: "x"}), "leads upwards"},
		"symlink":   {layerOf(t, file{name: "l", kind: tar.TypeSymlink, link: "/"}, file{name: "l/escaped-from-image", content: "x"}), "it is a link"},
		"hardlink":  {layerOf(t, file{name: "h", kind: tar.TypeLink, link: "/etc/shadow"}), "no file of this layer"},
	} {
		uri, _ := push(t, s, "hostile/"+name, "v1", imageOf(t, v1.Config{Entrypoint: []string{"/app"}}, good, tt.layer))
		if _, err := create(ctx, t, s, name, uri, nil); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := active(ctx, t, s, name).Configuration
		if got.State != types.StateFailed || got.StateReasonCode != types.StateReasonCodeInvalidImage || !strings.Contains(aws.ToString(got.StateReason), tt.want) {
			t.Errorf("%s: %s %s %s; want InvalidImage with %q", name, got.State, got.StateReasonCode, aws.ToString(got.StateReason), tt.want)
		}
		if _, err := s.Client.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: &name}); err != nil {
			t.Error(err)
		}
	}
	for _, p := range []string{"/escaped-from-image", filepath.Join(data, "escaped-from-image"), filepath.Join(data, "images", "escaped-from-image")} {
		if _, err := os.Lstat(p); err == nil {
			t.Errorf("%s was written", p)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(data, "images", "layers", "*")); len(left) != 0 {
		t.Errorf("left unpacked: %v", left)
	}
	if _, err := create(ctx, t, s, "missing", "000000000000.dkr.ecr.us-east-1.amazonaws.com/hostile/traversal:v2", nil); err == nil || !strings.Contains(err.Error(), "does not exist. Provide a valid source image.") {
		t.Errorf("a missing tag: %v", err)
	}
	s.Stop()
}
