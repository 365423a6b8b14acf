package images_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/lambdad/lambdad/integration/harness"
)

// TestRights: users of IAM pull and push with a registry client as their policies and
// the repository's say, for as long as they have a key; the audit log says what they did
// and iam explain why they may not.
func TestRights(t *testing.T) {
	ctx, data := t.Context(), t.TempDir()
	s := harness.Start(t, data)
	img := imageOf(t, v1.Config{Entrypoint: []string{"/app"}}, layerOf(t, file{name: "app", content: "x"}))
	uri, _ := push(t, s, "team/app", "v1", img)
	ref, err := name.ParseReference(uri)
	if err != nil {
		t.Fatal(err)
	}
	people := iam.New(iam.Options{Region: "us-east-1", BaseEndpoint: &s.Endpoint, Credentials: s.Client.Options().Credentials})
	const repository = "arn:aws:ecr:us-east-1:000000000000:repository/team/app"
	user := func(name, actions string) (key string, login_ authn.Authenticator) {
		t.Helper()
		if _, err := people.CreateUser(ctx, &iam.CreateUserInput{UserName: &name}); err != nil {
			t.Fatal(err)
		}
		document := fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ecr:GetAuthorizationToken","Resource":"*"},{"Effect":"Allow","Action":[%s],"Resource":%q}]}`, actions, repository)
		if _, err := people.PutUserPolicy(ctx, &iam.PutUserPolicyInput{UserName: &name, PolicyName: aws.String("p"), PolicyDocument: &document}); err != nil {
			t.Fatal(err)
		}
		out, err := people.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: &name})
		if err != nil {
			t.Fatal(err)
		}
		k := out.AccessKey
		return *k.AccessKeyId, login(t, s, credentials.NewStaticCredentialsProvider(*k.AccessKeyId, *k.SecretAccessKey, ""))
	}
	pull := func(as authn.Authenticator) error {
		img, err := remote.Image(ref, remote.WithAuth(as))
		if err != nil {
			return err
		}
		layers, err := img.Layers()
		if err != nil {
			return err
		}
		for _, l := range layers {
			r, err := l.Compressed()
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, r)
			if r.Close(); err != nil {
				return err
			}
		}
		return nil
	}
	refused := func(err error, what string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v; want %s", err, what)
		}
	}

	// The policies are those that the documentation of ECR gives for pulls and pushes.
	key, puller := user("puller", `"ecr:BatchGetImage","ecr:GetDownloadUrlForLayer"`)
	_, pusher := user("pusher", `"ecr:CompleteLayerUpload","ecr:UploadLayerPart","ecr:InitiateLayerUpload","ecr:BatchCheckLayerAvailability","ecr:PutImage","ecr:BatchGetImage"`)
	if err := pull(puller); err != nil {
		t.Errorf("pull: %v", err)
	}
	next := imageOf(t, v1.Config{Entrypoint: []string{"/app"}}, layerOf(t, file{name: "app", content: "y"}))
	refused(remote.Write(ref, next, remote.WithAuth(puller)), "403 Forbidden") // of a HEAD, which has no body
	refused(remote.Delete(ref, remote.WithAuth(puller)), "DENIED: User: arn:aws:iam::000000000000:user/puller is not authorized to perform: ecr:BatchDeleteImage on resource: "+repository+" because no identity-based policy allows the ecr:BatchDeleteImage action")
	if err := remote.Write(ref, next, remote.WithAuth(pusher)); err != nil {
		t.Errorf("push: %v", err)
	}
	refused(pull(pusher), "ecr:GetDownloadUrlForLayer")
	elsewhere, err := name.ParseReference(strings.Replace(uri, "team/app", "team/none", 1))
	if err != nil {
		t.Fatal(err)
	}
	refused(remote.Write(elsewhere, next, remote.WithAuth(pusher)), "403 Forbidden")

	// The repository's own policy.
	text := `{"Version":"2012-10-17","Statement":[{"Sid":"not here","Effect":"Deny","Principal":{"AWS":"arn:aws:iam::000000000000:user/puller"},"Action":"ecr:BatchGetImage"}]}`
	if err := ecr(t, s, "SetRepositoryPolicy", map[string]any{"repositoryName": "team/app", "policyText": text}, nil); err != nil {
		t.Fatal(err)
	}
	refused(pull(puller), "with an explicit deny in a resource-based policy")
	explained(t, data)
	if err := ecr(t, s, "DeleteRepositoryPolicy", map[string]any{"repositoryName": "team/app"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := pull(puller); err != nil {
		t.Errorf("pull: %v", err)
	}

	deploys(t, s, people, uri)

	// The password ends with the key.
	if _, err := people.DeleteAccessKey(ctx, &iam.DeleteAccessKeyInput{UserName: aws.String("puller"), AccessKeyId: &key}); err != nil {
		t.Fatal(err)
	}
	refused(pull(puller), "UNAUTHORIZED: The security token included in the request is invalid.")
	// Root's outlives a kill of the server, at another port.
	root := login(t, s, s.Client.Options().Credentials)
	s.Kill()
	s = harness.Start(t, data)
	u, err := url.Parse(s.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	if ref, err = name.ParseReference(u.Host + "/team/app:v1"); err != nil {
		t.Fatal(err)
	}
	if err := pull(root); err != nil {
		t.Errorf("pull after a restart: %v", err)
	}
	s.Stop()
}

// deploys: who may create functions needs the repository's leave, too, to make one of its
// images, in his account and in another.
func deploys(t *testing.T, s *harness.Server, people *iam.Client, uri string) {
	t.Helper()
	ctx, user := t.Context(), aws.String("deployer")
	if _, err := people.CreateUser(ctx, &iam.CreateUserInput{UserName: user}); err != nil {
		t.Fatal(err)
	}
	out, err := people.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: user})
	if err != nil {
		t.Fatal(err)
	}
	may := func(actions string) {
		t.Helper()
		document := fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":[%s],"Resource":"*"}]}`, actions)
		if _, err := people.PutUserPolicy(ctx, &iam.PutUserPolicyInput{UserName: user, PolicyName: aws.String("p"), PolicyDocument: &document}); err != nil {
			t.Fatal(err)
		}
	}
	client := lambda.New(lambda.Options{Region: "us-east-1", BaseEndpoint: &s.Endpoint,
		Credentials: credentials.NewStaticCredentialsProvider(*out.AccessKey.AccessKeyId, *out.AccessKey.SecretAccessKey, "")})
	make := func(name, uri string) error {
		_, err := client.CreateFunction(ctx, &lambda.CreateFunctionInput{FunctionName: &name, PackageType: types.PackageTypeImage,
			Role: aws.String("arn:aws:iam::000000000000:role/any"), Code: &types.FunctionCode{ImageUri: &uri}})
		return err
	}
	const denied = "StatusCode: 403, RequestID: "
	isDenied := func(err error) bool {
		return err != nil && strings.Contains(err.Error(), denied) && strings.Contains(err.Error(), "Lambda does not have permission to access the ECR image. Check the ECR permissions.")
	}
	may(`"lambda:*","iam:PassRole"`)
	if err := make("without", uri); !isDenied(err) {
		t.Errorf("without rights to the repository: %v", err)
	}
	if err := make("none", strings.Replace(uri, "team/app", "team/none", 1)); !isDenied(err) {
		t.Errorf("a repository that does not exist tells who may not see it: %v", err)
	}
	may(`"lambda:*","iam:PassRole","ecr:BatchGetImage"`)
	if err := make("half", uri); !isDenied(err) {
		t.Errorf("with half of the rights: %v", err)
	}
	may(`"lambda:*","iam:PassRole","ecr:BatchGetImage","ecr:GetDownloadUrlForLayer"`)
	if err := make("with", uri); err != nil {
		t.Errorf("with the rights: %v", err)
	}
	active(ctx, t, s, "with")
	may(`"lambda:*"`)
	if _, err := client.UpdateFunctionCode(ctx, &lambda.UpdateFunctionCodeInput{FunctionName: aws.String("with"), ImageUri: &uri}); !isDenied(err) {
		t.Errorf("an update without rights: %v", err)
	}
}

// explained looks for the refused pull in the audit log and asks why.
func explained(t *testing.T, data string) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		out, err := lambdad(t, "audit", "--output", "json", "--data-dir", data)
		if err != nil {
			t.Fatalf("audit: %s %v", out, err)
		}
		for line := range strings.Lines(out) {
			var e struct {
				EventName, EventSource, RequestID, ErrorCode, ErrorMessage string
				UserIdentity                                               struct{ UserName string }
			}
			if json.Unmarshal([]byte(line), &e) != nil || e.EventName != "BatchGetImage" || e.EventSource != "ecr.amazonaws.com" ||
				e.UserIdentity.UserName != "puller" || e.ErrorCode != "AccessDeniedException" || !strings.Contains(e.ErrorMessage, "explicit deny") {
				continue
			}
			out, err := lambdad(t, "iam", "explain", "--request", e.RequestID, "--data-dir", data)
			if err != nil || !strings.HasPrefix(out, "denied") || !strings.Contains(out, "repository/team/app repository policy") || !strings.Contains(out, `"not here"`) {
				t.Errorf("explain: %s %v", out, err)
			}
			return
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("the audit log has no refused pull:\n%s", out)
		}
	}
}
