package conformance

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	sdkaws "github.com/aws/aws-sdk-go-v2/aws"
	sdkiam "github.com/aws/aws-sdk-go-v2/service/iam"
	sdklambda "github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	sdksts "github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
)

const role = "arn:aws:iam::000000000000:role/service-role/r"

func create(t *testing.T, c *sdklambda.Client, name string, code []byte) *sdklambda.CreateFunctionOutput {
	t.Helper()
	out, err := c.CreateFunction(t.Context(), &sdklambda.CreateFunctionInput{
		FunctionName: &name, Runtime: types.RuntimeProvidedal2023, Handler: sdkaws.String("h"), Role: sdkaws.String(role),
		Code: &types.FunctionCode{ZipFile: code},
	})
	if err != nil {
		t.Fatal(err)
	}
	wait(t, c, name)
	return out
}

// wait is what SDK users do after a create or an update.
func wait(t *testing.T, c *sdklambda.Client, name string) {
	t.Helper()
	quick := func(o *sdklambda.FunctionUpdatedV2WaiterOptions) {
		o.MinDelay, o.MaxDelay = time.Millisecond, 10*time.Millisecond
	}
	w := sdklambda.NewFunctionUpdatedV2Waiter(c, quick)
	if err := w.Wait(t.Context(), &sdklambda.GetFunctionInput{FunctionName: &name}, 20*time.Second); err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, code, text string) {
	t.Helper()
	var e smithy.APIError
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want %s", err, code)
	}
	if e.ErrorCode() != code || !strings.Contains(e.ErrorMessage(), text) {
		t.Errorf("got %s %q, want %s %q", e.ErrorCode(), e.ErrorMessage(), code, text)
	}
}

func TestGoSDKFunctionLife(t *testing.T) {
	s := newServer(t, aws.Options{})
	c, ctx := s.client(nil), t.Context()
	code := zipOf(t, map[string]string{"bootstrap": "#!/bin/sh\n"})

	release := s.archives.hold()
	defer release()
	created, err := c.CreateFunction(ctx, &sdklambda.CreateFunctionInput{
		FunctionName: sdkaws.String("f"), Runtime: types.RuntimeProvidedal2023, Handler: sdkaws.String("h"), Role: sdkaws.String(role),
		Code:        &types.FunctionCode{ZipFile: code},
		Environment: &types.Environment{Variables: map[string]string{"KEY": "a<b&c"}},
		Tags:        map[string]string{"team": "x"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if created.State != types.StatePending || created.LastUpdateStatus != "" || created.StateReasonCode != types.StateReasonCodeCreating {
		t.Errorf("state after create: %v %v", created.State, created.LastUpdateStatus)
	}
	if got, want := *created.FunctionArn, "arn:aws:lambda:us-east-1:000000000000:function:f"; got != want {
		t.Errorf("ARN %s, want %s", got, want)
	}
	if created.CodeSize != int64(len(code)) || *created.Timeout != 3 || *created.MemorySize != 128 {
		t.Errorf("defaults: size %d, timeout %d, memory %d", created.CodeSize, *created.Timeout, *created.MemorySize)
	}
	_, err = c.Invoke(ctx, &sdklambda.InvokeInput{FunctionName: sdkaws.String("f")})
	wantCode(t, err, "ResourceConflictException", "currently in the following state: Pending")
	_, err = c.UpdateFunctionConfiguration(ctx, &sdklambda.UpdateFunctionConfigurationInput{FunctionName: sdkaws.String("f"), Timeout: sdkaws.Int32(5)})
	wantCode(t, err, "ResourceConflictException", "An update is in progress for resource: arn:aws:lambda:us-east-1:000000000000:function:f")
	release()
	wait(t, c, "f")

	got, err := c.GetFunction(ctx, &sdklambda.GetFunctionInput{FunctionName: sdkaws.String("f"), Qualifier: sdkaws.String("$LATEST")})
	if err != nil {
		t.Fatal(err)
	}
	if got.Configuration.State != types.StateActive || got.Configuration.LastUpdateStatus != types.LastUpdateStatusSuccessful {
		t.Errorf("state %v %v", got.Configuration.State, got.Configuration.LastUpdateStatus)
	}
	if !strings.HasSuffix(*got.Configuration.FunctionArn, ":f:$LATEST") {
		t.Errorf("ARN of a qualified get: %s", *got.Configuration.FunctionArn)
	}
	if got.Tags["team"] != "x" || got.Configuration.Environment.Variables["KEY"] != "a<b&c" || got.Configuration.VpcConfig != nil {
		t.Errorf("got %v %v %v", got.Tags, got.Configuration.Environment, got.Configuration.VpcConfig)
	}
	if *got.Configuration.RevisionId == *created.RevisionId {
		t.Error("becoming active kept the revision id")
	}
	if body := download(t, *got.Code.Location, http.StatusOK); !bytes.Equal(body, code) {
		t.Errorf("location gives %d bytes, want the %d that were sent", len(body), len(code))
	}
	download(t, strings.Replace(*got.Code.Location, "Signature=", "Signature=0", 1), http.StatusForbidden)

	// A stale revision, then an update with the right one.
	_, err = c.UpdateFunctionConfiguration(ctx, &sdklambda.UpdateFunctionConfigurationInput{
		FunctionName: sdkaws.String("f"), Timeout: sdkaws.Int32(5), RevisionId: created.RevisionId})
	wantCode(t, err, "PreconditionFailedException", "Call the GetFunction/GetAlias API")
	release = s.archives.hold()
	defer release()
	updated, err := c.UpdateFunctionConfiguration(ctx, &sdklambda.UpdateFunctionConfigurationInput{
		FunctionName: sdkaws.String("f"), Timeout: sdkaws.Int32(5), RevisionId: got.Configuration.RevisionId,
		LoggingConfig: &types.LoggingConfig{LogFormat: types.LogFormatJson},
	})
	if err != nil {
		t.Fatal(err)
	}
	if updated.LastUpdateStatus != types.LastUpdateStatusInProgress || *updated.Timeout != 5 || updated.LoggingConfig.SystemLogLevel != "INFO" {
		t.Errorf("after update: %v %v %+v", updated.LastUpdateStatus, *updated.Timeout, updated.LoggingConfig)
	}
	// What ran before runs on.
	s.answers(func(inv *lambdad.Invocation) (*lambdad.Response, error) {
		return &lambdad.Response{Payload: []byte(`"` + inv.Version.Timeout.String() + `"`), ExecutedVersion: "$LATEST"}, nil
	})
	wantPayload(t, c, "f", `"3s"`)
	release()
	wait(t, c, "f")
	wantPayload(t, c, "f", `"5s"`)

	if _, err := c.DeleteFunction(ctx, &sdklambda.DeleteFunctionInput{FunctionName: sdkaws.String("f")}); err != nil {
		t.Fatal(err)
	}
	_, err = c.GetFunction(ctx, &sdklambda.GetFunctionInput{FunctionName: sdkaws.String("f")})
	var missing *types.ResourceNotFoundException
	if !errors.As(err, &missing) {
		t.Errorf("get after delete: %v", err)
	}
	create(t, c, "f", code) // the name is free at once
}

func wantPayload(t *testing.T, c *sdklambda.Client, name, want string) {
	t.Helper()
	out, err := c.Invoke(t.Context(), &sdklambda.InvokeInput{FunctionName: &name})
	if err != nil {
		t.Fatal(err)
	}
	if string(out.Payload) != want {
		t.Errorf("payload %s, want %s", out.Payload, want)
	}
}

func download(t *testing.T, url string, status int) []byte {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != status {
		t.Errorf("%s: status %d, want %d: %s", url, res.StatusCode, status, body)
	}
	return body
}

func TestGoSDKInvoke(t *testing.T) {
	s := newServer(t, aws.Options{})
	c, ctx := s.client(nil), t.Context()
	create(t, c, "f", zipOf(t, map[string]string{"bootstrap": "x"}))
	var seen *lambdad.Invocation
	s.answers(func(inv *lambdad.Invocation) (*lambdad.Response, error) {
		seen = inv
		return &lambdad.Response{Payload: []byte(`{"errorType":"E"}`), FunctionError: "Unhandled", ExecutedVersion: "$LATEST", LogTail: []byte("START\n")}, nil
	})
	out, err := c.Invoke(ctx, &sdklambda.InvokeInput{
		FunctionName: sdkaws.String("arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST"), Qualifier: sdkaws.String("$LATEST"),
		Payload: []byte(`{"a":1}`), LogType: types.LogTypeTail,
		ClientContext: sdkaws.String(base64.StdEncoding.EncodeToString([]byte(`{"custom":{}}`))),
	})
	if err != nil {
		t.Fatal(err)
	}
	if out.StatusCode != 200 || sdkaws.ToString(out.FunctionError) != "Unhandled" || sdkaws.ToString(out.ExecutedVersion) != "$LATEST" ||
		string(out.Payload) != `{"errorType":"E"}` || sdkaws.ToString(out.LogResult) != "U1RBUlQK" {
		t.Errorf("answer %+v", out)
	}
	if seen.ClientContext != `{"custom":{}}` || !seen.Tail || string(seen.Payload) != `{"a":1}` || !strings.HasSuffix(seen.InvokedARN, ":f:$LATEST") {
		t.Errorf("invocation %+v", seen)
	}
	dry, err := c.Invoke(ctx, &sdklambda.InvokeInput{FunctionName: sdkaws.String("f"), InvocationType: types.InvocationTypeDryRun})
	if err != nil || dry.StatusCode != 204 {
		t.Errorf("dry run: %v %v", dry, err)
	}
	event, err := c.Invoke(ctx, &sdklambda.InvokeInput{FunctionName: sdkaws.String("f"), InvocationType: types.InvocationTypeEvent, Payload: []byte(`{"b":2}`)})
	if err != nil || event.StatusCode != 202 || event.ExecutedVersion != nil || len(event.Payload) != 0 {
		t.Errorf("event: %v %v", event, err)
	}
	//lint:ignore SA1019 the old form is what is tested
	old, err := c.InvokeAsync(ctx, &sdklambda.InvokeAsyncInput{FunctionName: sdkaws.String("f"), InvokeArgs: strings.NewReader(`{"c":3}`)})
	if err != nil || old.Status != 202 {
		t.Errorf("event in the old form: %v %v", old, err)
	}
	if n, err := s.events.Len(ctx, "000000000000.us-east-1.event.f"); n != 2 || err != nil {
		t.Errorf("%d events queued, %v", n, err)
	}
	_, err = c.Invoke(ctx, &sdklambda.InvokeInput{FunctionName: sdkaws.String("f"), InvocationType: types.InvocationTypeEvent, Payload: []byte(`"` + strings.Repeat("x", 1<<20) + `"`)})
	wantCode(t, err, "RequestEntityTooLargeException", "1048578 byte payload is too large for the Event invocation type (limit 1048576 bytes)")
	_, err = c.Invoke(ctx, &sdklambda.InvokeInput{FunctionName: sdkaws.String("f"), InvocationType: "Sometimes"})
	wantCode(t, err, "ValidationException", "Value 'Sometimes' at 'invocationType' failed to satisfy constraint: Member must satisfy enum value set: [")
	_, err = c.Invoke(ctx, &sdklambda.InvokeInput{FunctionName: sdkaws.String("f"), Payload: make([]byte, 6291457)})
	wantCode(t, err, "RequestEntityTooLargeException", "Request must be smaller than 6291456 bytes for the InvokeFunction operation")
	_, err = c.Invoke(ctx, &sdklambda.InvokeInput{FunctionName: sdkaws.String("gone"), Payload: make([]byte, 6291457)})
	wantCode(t, err, "ResourceNotFoundException", "function:gone:$LATEST")

	s.answers(func(*lambdad.Invocation) (*lambdad.Response, error) {
		return nil, lambdad.Throttled("ConcurrentInvocationLimitExceeded")
	})
	_, err = c.Invoke(ctx, &sdklambda.InvokeInput{FunctionName: sdkaws.String("f")})
	var throttle *types.TooManyRequestsException
	if !errors.As(err, &throttle) || throttle.Reason != types.ThrottleReasonConcurrentInvocationLimitExceeded || sdkaws.ToString(throttle.Message) != "Rate Exceeded." {
		t.Errorf("throttle: %v", err)
	}
	s.answers(func(*lambdad.Invocation) (*lambdad.Response, error) { panic("a bug") })
	_, err = c.Invoke(ctx, &sdklambda.InvokeInput{FunctionName: sdkaws.String("f")})
	wantCode(t, err, "ServiceException", "request id")
	if !strings.Contains(s.logs.String(), "a bug") {
		t.Error("the panic is not in the log")
	}
}

func TestGoSDKLayers(t *testing.T) {
	s := newServer(t, aws.Options{})
	c, ctx := s.client(nil), t.Context()
	name := sdkaws.String("l")
	publish := func(content string) *sdklambda.PublishLayerVersionOutput {
		t.Helper()
		out, err := c.PublishLayerVersion(ctx, &sdklambda.PublishLayerVersionInput{
			LayerName: name, CompatibleRuntimes: []types.Runtime{types.RuntimePython312},
			Content: &types.LayerVersionContentInput{ZipFile: zipOf(t, map[string]string{"extensions/README": content})},
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	first, second := publish("one"), publish("two")
	if first.Version != 1 || second.Version != 2 || !strings.HasSuffix(*second.LayerVersionArn, ":layer:l:2") {
		t.Errorf("versions %d, %d", first.Version, second.Version)
	}
	if !strings.Contains(s.logs.String(), "extensions/README") {
		t.Error("no warning about a README among extensions in the log")
	}
	create(t, c, "f", zipOf(t, map[string]string{"bootstrap": "x"}))
	updated, err := c.UpdateFunctionConfiguration(ctx, &sdklambda.UpdateFunctionConfigurationInput{FunctionName: sdkaws.String("f"), Layers: []string{*second.LayerVersionArn}})
	if err != nil || len(updated.Layers) != 1 || *updated.Layers[0].Arn != *second.LayerVersionArn {
		t.Fatalf("layers %+v, %v", updated, err)
	}
	wait(t, c, "f")
	if _, err := c.DeleteLayerVersion(ctx, &sdklambda.DeleteLayerVersionInput{LayerName: name, VersionNumber: sdkaws.Int64(2)}); err != nil {
		t.Fatal(err)
	}
	// The function keeps what it has; a new reference fails; numbers go on.
	_, err = c.UpdateFunctionConfiguration(ctx, &sdklambda.UpdateFunctionConfigurationInput{FunctionName: sdkaws.String("f"), Layers: []string{*second.LayerVersionArn}})
	if err != nil {
		t.Errorf("an attached layer version that was deleted: %v", err)
	}
	if third := publish("three"); third.Version != 3 {
		t.Errorf("version after a deletion: %d", third.Version)
	}
	list, err := c.ListLayerVersions(ctx, &sdklambda.ListLayerVersionsInput{LayerName: name, MaxItems: sdkaws.Int32(1)})
	if err != nil || len(list.LayerVersions) != 1 || list.LayerVersions[0].Version != 3 || list.NextMarker == nil {
		t.Fatalf("first page %+v, %v", list, err)
	}
	list, err = c.ListLayerVersions(ctx, &sdklambda.ListLayerVersionsInput{LayerName: name, Marker: list.NextMarker})
	if err != nil || len(list.LayerVersions) != 1 || list.LayerVersions[0].Version != 1 || list.NextMarker != nil {
		t.Fatalf("last page %+v, %v", list, err)
	}
	layers, err := c.ListLayers(ctx, &sdklambda.ListLayersInput{CompatibleRuntime: types.RuntimePython312})
	if err != nil || len(layers.Layers) != 1 || layers.Layers[0].LatestMatchingVersion.Version != 3 {
		t.Fatalf("layers %+v, %v", layers, err)
	}
	byARN, err := c.GetLayerVersionByArn(ctx, &sdklambda.GetLayerVersionByArnInput{Arn: first.LayerVersionArn})
	if err != nil || *byARN.Content.CodeSha256 != *first.Content.CodeSha256 {
		t.Fatalf("by ARN %+v, %v", byARN, err)
	}
	download(t, *byARN.Content.Location, http.StatusOK)
}

func TestGoSDKListFunctions(t *testing.T) {
	s := newServer(t, aws.Options{})
	c := s.client(nil)
	code := zipOf(t, map[string]string{"bootstrap": "x"})
	names := []string{"a", "b", "c", "d", "e"}
	for _, n := range names {
		create(t, c, n, code)
	}
	var got []string
	p := sdklambda.NewListFunctionsPaginator(c, &sdklambda.ListFunctionsInput{MaxItems: sdkaws.Int32(2), FunctionVersion: types.FunctionVersionAll})
	for p.HasMorePages() {
		page, err := p.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range page.Functions {
			if f.State != "" || !strings.HasSuffix(*f.FunctionArn, ":$LATEST") {
				t.Errorf("entry %v %s", f.State, *f.FunctionArn)
			}
			got = append(got, *f.FunctionName)
		}
	}
	if strings.Join(got, "") != "abcde" {
		t.Errorf("got %v", got)
	}
	settings, err := c.GetAccountSettings(t.Context(), &sdklambda.GetAccountSettingsInput{})
	if err != nil || settings.AccountUsage.FunctionCount != 5 || settings.AccountUsage.TotalCodeSize != int64(5*len(code)) {
		t.Errorf("settings %+v, %v", settings, err)
	}
}

func TestEnvironmentCredentials(t *testing.T) {
	s := newServer(t, aws.Options{Auth: aws.Any}) // the sandbox verifies all the same
	create(t, s.client(nil), "f", zipOf(t, map[string]string{"bootstrap": "x"}))
	version, err := s.registry.Resolve(t.Context(), account, region, "f", "")
	if err != nil {
		t.Fatal(err)
	}
	mint, release := s.keys.Mint(version.Version, "0123")
	creds := mint("runtime")
	inside := newSandboxServer(t, s)
	c := inside.client(&creds)

	_, err = c.Invoke(t.Context(), &sdklambda.InvokeInput{FunctionName: sdkaws.String("f")})
	wantCode(t, err, "AccessDeniedException", "is not authorized to perform: lambda:InvokeFunction on resource: arn:aws:lambda:us-east-1:000000000000:function:f because no identity-based policy allows the lambda:InvokeFunction action")
	// What the role may changes at once.
	if _, err := sdkiam.NewFromConfig(s.config(nil)).PutRolePolicy(t.Context(), &sdkiam.PutRolePolicyInput{RoleName: sdkaws.String("r"), PolicyName: sdkaws.String("p"),
		PolicyDocument: sdkaws.String(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"lambda:InvokeFunction","Resource":"*"}]}`)}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Invoke(t.Context(), &sdklambda.InvokeInput{FunctionName: sdkaws.String("f")}); err != nil {
		t.Errorf("invoke: %v", err)
	}
	who, err := sdksts.NewFromConfig(inside.config(&creds)).GetCallerIdentity(t.Context(), &sdksts.GetCallerIdentityInput{})
	if err != nil || *who.Arn != "arn:aws:sts::000000000000:assumed-role/r/f" || *who.Account != account {
		t.Errorf("identity %+v, %v", who, err)
	}
	_, err = c.DeleteFunction(t.Context(), &sdklambda.DeleteFunctionInput{FunctionName: sdkaws.String("f")})
	wantCode(t, err, "AccessDeniedException", "User: arn:aws:sts::000000000000:assumed-role/r/f is not authorized to perform: lambda:DeleteFunction on resource: arn:aws:lambda:us-east-1:000000000000:function:f because no identity-based policy allows the lambda:DeleteFunction action")
	forged := creds
	forged.SessionToken = "x"
	_, err = inside.client(&forged).Invoke(t.Context(), &sdklambda.InvokeInput{FunctionName: sdkaws.String("f")})
	wantCode(t, err, "UnrecognizedClientException", "")
	other := lambdad.Credentials{AccessKeyID: "test", SecretAccessKey: "test"}
	_, err = inside.client(&other).ListFunctions(t.Context(), &sdklambda.ListFunctionsInput{})
	wantCode(t, err, "UnrecognizedClientException", "")
	if _, err = s.client(&other).ListFunctions(t.Context(), &sdklambda.ListFunctionsInput{}); err != nil {
		t.Errorf("any key outside: %v", err)
	}
	release()
	_, err = c.Invoke(t.Context(), &sdklambda.InvokeInput{FunctionName: sdkaws.String("f")})
	wantCode(t, err, "UnrecognizedClientException", "The security token included in the request is invalid.")
}

func TestAdminIdentity(t *testing.T) {
	s := newServer(t, aws.Options{})
	who, err := sdksts.NewFromConfig(s.config(nil)).GetCallerIdentity(t.Context(), &sdksts.GetCallerIdentityInput{})
	if err != nil || *who.Arn != "arn:aws:iam::000000000000:root" {
		t.Errorf("identity %+v, %v", who, err)
	}
	// A presigned URL works without any header.
	presigned, err := sdksts.NewPresignClient(sdksts.NewFromConfig(s.config(nil))).PresignGetCallerIdentity(context.Background(), &sdksts.GetCallerIdentityInput{})
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(&http.Request{Method: presigned.Method, URL: mustURL(t, presigned.URL), Host: presigned.SignedHeader.Get("Host"), Header: presigned.SignedHeader})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	if res.StatusCode != 200 || !strings.Contains(string(body), "<Account>000000000000</Account>") {
		t.Errorf("presigned: %d %s", res.StatusCode, body)
	}
	_, err = sdksts.NewFromConfig(s.config(nil)).GetFederationToken(t.Context(), &sdksts.GetFederationTokenInput{Name: sdkaws.String("s1")})
	wantCode(t, err, "NotImplemented", "GetFederationToken")
	bad := s.keys.Admin()
	bad.SecretAccessKey += "x"
	_, err = sdksts.NewFromConfig(s.config(&bad)).GetCallerIdentity(t.Context(), &sdksts.GetCallerIdentityInput{})
	wantCode(t, err, "SignatureDoesNotMatch", "does not match the signature you provided")
	_, err = s.client(&bad).ListFunctions(t.Context(), &sdklambda.ListFunctionsInput{})
	wantCode(t, err, "InvalidSignatureException", "does not match the signature you provided")
}
