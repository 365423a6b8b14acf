package lambda

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/mem"
	"github.com/lambdad/lambdad/policy"
)

// bucket is an object store with one object in a bucket b.
type bucket struct {
	key     string
	content []byte
	fail    error
}

func (b *bucket) BucketPolicy(string) *policy.Document { return nil }

func (b *bucket) OpenObject(_ context.Context, account, name, key, version string) (io.ReadCloser, int64, error) {
	switch {
	case account != testAccount:
		return nil, 0, lambdad.Errorf("AccessDenied", "Access Denied")
	case name != "b-1":
		return nil, 0, lambdad.Errorf("NoSuchBucket", "The specified bucket does not exist")
	case key != b.key || version != "" && version != "v1":
		return nil, 0, lambdad.Errorf("NoSuchKey", "The specified key does not exist.")
	}
	return io.NopCloser(io.MultiReader(bytes.NewReader(b.content), failing{b.fail})), int64(len(b.content)), nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return 0, io.EOF
}

func TestCodeFromS3(t *testing.T) {
	one := zipWith(t, "one")
	objects := &bucket{key: "dir/code.zip", content: one}
	scratch := t.TempDir()
	r := newRig(t, newFaulty(), mem.NewBlobs(), func(c *Config) { c.Objects, c.Scratch = objects, scratch })
	r.run()
	body := createBody(t, "f", "")
	body["Code"] = map[string]any{"S3Bucket": "b-1", "S3Key": "dir/code.zip", "S3ObjectVersion": "v1"}
	r.ok("POST", functions, body)
	members(t, "created", r.settled("f"), map[string]any{"CodeSha256": codeSha256(digestOf(one)), "CodeSize": len(one)})
	objects.content = zipWith(t, "two")
	from := map[string]any{"S3Bucket": "b-1", "S3Key": "dir/code.zip"}
	r.ok("PUT", functions+"/f/code", from)
	members(t, "updated", r.settled("f"), map[string]any{"CodeSha256": codeSha256(digestOf(objects.content))})
	r.ok("POST", "/2018-10-31/layers/l/versions", map[string]any{"Content": from})

	for _, c := range []struct {
		code map[string]any
		want string
	}{
		{map[string]any{"S3Bucket": "b-2", "S3Key": "k"}, "Error occurred while GetObject. S3 Error Code: NoSuchBucket. S3 Error Message: The specified bucket does not exist"},
		{map[string]any{"S3Bucket": "b-1", "S3Key": "k"}, "Error occurred while GetObject. S3 Error Code: NoSuchKey. S3 Error Message: The specified key does not exist."},
		{map[string]any{"S3Bucket": "b-1"}, "S3Bucket and S3Key must be given together."},
		{map[string]any{"S3Bucket": "b-1", "S3Key": "k", "ZipFile": one}, "Please do not provide other FunctionCode parameters when providing a ZipFile."},
	} {
		if status, v := r.call("PUT", functions+"/f/code", c.code); status != 400 || v["message"] != c.want {
			t.Errorf("%v: %d %v", c.code, status, v)
		}
	}
	objects.content = []byte("not a zip")
	if status, v := r.call("PUT", functions+"/f/code", from); status != 400 || !strings.HasPrefix(v["message"].(string), "Could not unzip") {
		t.Errorf("an object that is no zip: %d %v", status, v)
	}
	objects.fail = errors.New("the disk is gone")
	if status, _ := r.call("PUT", functions+"/f/code", from); status != 500 {
		t.Errorf("an object that cannot be read: %d", status)
	}
	if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
