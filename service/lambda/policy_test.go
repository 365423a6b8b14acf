package lambda

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/lambdad/lambdad/mem"
)

func TestPolicies(t *testing.T) {
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	r.create("f", "x")
	before := r.settled("f")
	r.ok("POST", functions+"/f/versions", nil)
	r.ok("POST", functions+"/f/aliases", map[string]any{"Name": "live", "FunctionVersion": "1"})
	const principal = `"Effect":"Allow","Principal":`
	for _, c := range []struct {
		qualifier string
		body      map[string]any
		want      string
	}{
		{"", map[string]any{"Principal": "s3.amazonaws.com", "SourceArn": "arn:aws:s3:::bucket", "SourceAccount": "123456789012"},
			principal + `{"Service":"s3.amazonaws.com"},"Action":"lambda:InvokeFunction","Resource":"` + arn + `f","Condition":{"ArnLike":{"AWS:SourceArn":"arn:aws:s3:::bucket"},"StringEquals":{"AWS:SourceAccount":"123456789012"}}}`},
		{"", map[string]any{"Principal": "123456789012"}, principal + `{"AWS":"arn:aws:iam::123456789012:root"},"Action":"lambda:InvokeFunction","Resource":"` + arn + `f"}`},
		{"1", map[string]any{"Principal": "*", "PrincipalOrgID": "o-1234567890", "Action": "lambda:*"},
			principal + `"*","Action":"lambda:*","Resource":"` + arn + `f:1","Condition":{"StringEquals":{"aws:PrincipalOrgID":"o-1234567890"}}}`},
		{"live", map[string]any{"Principal": "*", "FunctionUrlAuthType": "NONE", "InvokedViaFunctionUrl": true},
			principal + `"*","Action":"lambda:InvokeFunction","Resource":"` + arn + `f:live","Condition":{"Bool":{"lambda:InvokedViaFunctionUrl":"true"},"StringEquals":{"lambda:FunctionUrlAuthType":"NONE"}}}`},
		{"live", map[string]any{"Principal": "arn:aws:iam::123456789012:role/r", "EventSourceToken": "token"},
			principal + `{"AWS":"arn:aws:iam::123456789012:role/r"},"Action":"lambda:InvokeFunction","Resource":"` + arn + `f:live","Condition":{"StringEquals":{"lambda:EventSourceToken":"token"}}}`},
	} {
		id := fmt.Sprintf("s%d", len(c.want))
		body := map[string]any{"StatementId": id, "Action": "lambda:InvokeFunction"}
		for k, v := range c.body {
			body[k] = v
		}
		path := functions + "/f/policy"
		if c.qualifier != "" {
			path += "?Qualifier=" + c.qualifier
		}
		got := r.ok("POST", path, body)["Statement"].(string)
		if want := `{"Sid":"` + id + `",` + c.want; got != want {
			t.Errorf("statement %s\nwant      %s", got, want)
		}
	}
	after := r.settled("f")
	if before["RevisionId"] == after["RevisionId"] {
		t.Error("a permission does not change the revision of the function")
	}
	p := r.ok("GET", functions+"/f/policy", nil)
	var doc struct {
		Version, ID string
		Statement   []struct{ Resource string }
	}
	if err := json.Unmarshal([]byte(p["Policy"].(string)), &doc); err != nil || len(doc.Statement) != 2 || doc.Version != "2012-10-17" || doc.ID != "default" {
		t.Errorf("policy %v: %v", p, err)
	}
	if p["RevisionId"] != after["RevisionId"] {
		t.Errorf("revision of the policy %v, of the function %v", p["RevisionId"], after["RevisionId"])
	}
	for resource, want := range map[string]int{"f": 2, "f:1": 1, "f:live": 2, "f:2": 0, "g": 0} {
		doc, _ := r.registry.Policy(arn + resource)
		if got := strings.Count(doc, `"Sid"`); got != want {
			t.Errorf("%s has %d statements, want %d", resource, got, want)
		}
	}
	if status, v := r.call("DELETE", functions+"/f/policy/s1?RevisionId=x", nil); status != 404 {
		t.Errorf("removing a statement that is not there: %d %v", status, v)
	}

	// The policy has a limit, and a function deleted has no policy.
	long := map[string]any{"Action": "lambda:InvokeFunction", "Principal": "*", "SourceArn": "arn:aws:s3:::" + strings.Repeat("x", 4000)}
	var status int
	var v map[string]any
	for i := range 6 {
		long["StatementId"] = fmt.Sprint(i)
		if status, v = r.call("POST", functions+"/f/policy?Qualifier=1", long); status != 201 {
			break
		}
	}
	if status != 400 || v["code"] != "PolicyLengthExceededException" {
		t.Errorf("a policy that is too long: %d %v", status, v)
	}
	r.ok("DELETE", functions+"/f", nil)
	if doc, _ := r.registry.Policy(arn + "f"); doc != "" {
		t.Errorf("policy of a deleted function: %s", doc)
	}
}

func TestLayerPolicy(t *testing.T) {
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	const path = "/2018-10-31/layers/l/versions"
	v := r.ok("POST", path, map[string]any{"Content": map[string]any{"ZipFile": zipWith(t, "x")}})
	add := map[string]any{"StatementId": "all", "Action": "lambda:GetLayerVersion", "Principal": "*", "OrganizationId": "o-1234567890"}
	got := r.ok("POST", path+"/1/policy", add)
	want := `{"Sid":"all","Effect":"Allow","Principal":"*","Action":"lambda:GetLayerVersion","Resource":"` + v["LayerVersionArn"].(string) + `","Condition":{"StringEquals":{"aws:PrincipalOrgID":"o-1234567890"}}}`
	if got["Statement"] != want {
		t.Errorf("statement %v\nwant      %s", got["Statement"], want)
	}
	members(t, "policy", r.ok("GET", path+"/1/policy", nil), map[string]any{"RevisionId": got["RevisionId"]})
	if doc, revision := r.registry.Policy(v["LayerVersionArn"].(string)); !strings.Contains(doc, want) || revision != got["RevisionId"] {
		t.Errorf("policy %s of revision %s", doc, revision)
	}
	r.ok("DELETE", path+"/1/policy/all?RevisionId="+got["RevisionId"].(string), nil)
	if status, _ := r.call("GET", path+"/1/policy", nil); status != 404 {
		t.Errorf("policy without statements: %d", status)
	}
}

func TestTags(t *testing.T) {
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	r.create("f", "x")
	before := r.settled("f")
	path := "/2017-03-31/tags/" + url.PathEscape(arn+"f")
	if got := r.ok("GET", path, nil)["Tags"]; fmt.Sprint(got) != "map[]" {
		t.Errorf("no tags: %v", got)
	}
	r.ok("POST", path, map[string]any{"Tags": map[string]string{"a": "1", "b": "2"}})
	r.ok("POST", path, map[string]any{"Tags": map[string]string{"b": "3"}})
	r.ok("DELETE", path+"?tagKeys=a&tagKeys=unknown", nil)
	if got := r.ok("GET", path, nil)["Tags"]; fmt.Sprint(got) != "map[b:3]" {
		t.Errorf("tags: %v", got)
	}
	if got := r.ok("GET", functions+"/f", nil)["Tags"]; fmt.Sprint(got) != "map[b:3]" {
		t.Errorf("tags of GetFunction: %v", got)
	}
	if r.settled("f")["RevisionId"] == before["RevisionId"] {
		t.Error("tags do not change the revision")
	}
	if status, v := r.call("POST", path, map[string]any{"Tags": map[string]string{"aws:x": "1"}}); status != 400 {
		t.Errorf("a reserved key: %d %v", status, v)
	}
}

func TestCodeSigning(t *testing.T) {
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	const path = "/2020-04-22/code-signing-configs"
	publishers := map[string]any{"SigningProfileVersionArns": []string{"arn:aws:signer:us-east-1:000000000000:/signing-profiles/p"}}
	made := r.ok("POST", path, map[string]any{"AllowedPublishers": publishers})["CodeSigningConfig"].(map[string]any)
	members(t, "configuration", made, map[string]any{"Description": "", "CodeSigningPolicies": "map[UntrustedArtifactOnDeployment:Warn]"})
	cfg := made["CodeSigningConfigArn"].(string)

	body := createBody(t, "f", "x")
	body["CodeSigningConfigArn"] = cfg
	r.ok("POST", functions, body) // Warn deploys
	r.settled("f")
	ofFunction := "/2020-06-30/functions/f/code-signing-config"
	members(t, "of the function", r.ok("GET", ofFunction, nil), map[string]any{"CodeSigningConfigArn": cfg, "FunctionName": "f"})
	if got := r.ok("GET", path+"/"+url.PathEscape(cfg)+"/functions", nil)["FunctionArns"]; fmt.Sprint(got) != "["+arn+"f]" {
		t.Errorf("functions: %v", got)
	}
	r.ok("PUT", path+"/"+url.PathEscape(cfg), map[string]any{"CodeSigningPolicies": map[string]any{"UntrustedArtifactOnDeployment": "Enforce"}})
	if status, v := r.call("PUT", functions+"/f/code", map[string]any{"ZipFile": zipWith(t, "y")}); status != 400 || v["code"] != "CodeVerificationFailedException" {
		t.Errorf("an unsigned package with Enforce: %d %v", status, v)
	}
	l := r.ok("POST", "/2018-10-31/layers/l/versions", map[string]any{"Content": map[string]any{"ZipFile": zipWith(t, "x")}})
	if status, v := r.call("PUT", functions+"/f/configuration", map[string]any{"Layers": []any{l["LayerVersionArn"]}}); status != 400 || v["code"] != "CodeVerificationFailedException" {
		t.Errorf("an unsigned layer with Enforce: %d %v", status, v)
	}
	body["FunctionName"] = "g"
	if status, v := r.call("POST", functions, body); status != 400 || v["code"] != "CodeVerificationFailedException" {
		t.Errorf("creating with an unsigned package and Enforce: %d %v", status, v)
	}
	if status, v := r.call("DELETE", path+"/"+url.PathEscape(cfg), nil); status != 409 {
		t.Errorf("deleting what is in use: %d %v", status, v)
	}
	r.ok("DELETE", ofFunction, nil)
	members(t, "detached", r.ok("GET", ofFunction, nil), map[string]any{"CodeSigningConfigArn": nil})
	r.ok("PUT", functions+"/f/code", map[string]any{"ZipFile": zipWith(t, "y")})
	r.settled("f")
	r.ok("PUT", ofFunction, map[string]any{"CodeSigningConfigArn": cfg})
	r.ok("DELETE", ofFunction, nil)

	tags := "/2017-03-31/tags/" + url.PathEscape(cfg)
	r.ok("POST", tags, map[string]any{"Tags": map[string]string{"a": "1"}})
	if got := r.ok("GET", tags, nil)["Tags"]; fmt.Sprint(got) != "map[a:1]" {
		t.Errorf("tags: %v", got)
	}
	if got := r.ok("GET", path, nil)["CodeSigningConfigs"].([]any); len(got) != 1 {
		t.Errorf("configurations: %v", got)
	}
	r.ok("DELETE", path+"/"+url.PathEscape(cfg), nil)
	if status, _ := r.call("GET", path+"/"+url.PathEscape(cfg), nil); status != 404 {
		t.Errorf("deleted configuration: %d", status)
	}
}

func TestSettings(t *testing.T) {
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	r.create("f", "x")
	f := r.settled("f")
	r.ok("POST", functions+"/f/versions", nil)
	runtime := f["RuntimeVersionConfig"].(map[string]any)["RuntimeVersionArn"]
	const path = "/2021-07-20/functions/f/runtime-management-config"
	members(t, "default", r.ok("GET", path, nil), map[string]any{"UpdateRuntimeOn": "Auto", "RuntimeVersionArn": nil, "FunctionArn": arn + "f:$LATEST"})
	for _, body := range []map[string]any{
		{"UpdateRuntimeOn": "Manual"},
		{"UpdateRuntimeOn": "Auto", "RuntimeVersionArn": runtime},
		{"UpdateRuntimeOn": "Manual", "RuntimeVersionArn": "arn:aws:lambda:us-east-1::runtime:other"},
		{"UpdateRuntimeOn": "Never"},
	} {
		if status, v := r.call("PUT", path, body); status != 400 {
			t.Errorf("%v: %d %v", body, status, v)
		}
	}
	r.ok("PUT", path+"?Qualifier=1", map[string]any{"UpdateRuntimeOn": "Manual", "RuntimeVersionArn": runtime})
	members(t, "of version 1", r.ok("GET", path+"?Qualifier=1", nil), map[string]any{"UpdateRuntimeOn": "Manual", "RuntimeVersionArn": runtime, "FunctionArn": arn + "f:1"})
	r.ok("PUT", path, map[string]any{"UpdateRuntimeOn": "FunctionUpdate"})
	members(t, "of $LATEST", r.ok("GET", path, nil), map[string]any{"UpdateRuntimeOn": "FunctionUpdate", "RuntimeVersionArn": nil})

	const recursion = "/2024-08-31/functions/f/recursion-config"
	members(t, "default", r.ok("GET", recursion, nil), map[string]any{"RecursiveLoop": "Terminate"})
	r.ok("PUT", recursion, map[string]any{"RecursiveLoop": "Allow"})
	members(t, "set", r.ok("GET", recursion, nil), map[string]any{"RecursiveLoop": "Allow"})
}
