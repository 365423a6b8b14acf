package ecr

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/image"
	"github.com/lambdad/lambdad/policy"
)

// people are the users and roles of a fixture.
type people struct {
	mu    sync.Mutex
	users map[string]*person // by access key
	roles map[string]*aws.Role
}

type person struct {
	id     aws.Identity
	secret string
}

func (p *people) UserKey(key string) (string, aws.Identity, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.users[key]
	if u == nil {
		return "", aws.Identity{}, false
	}
	return u.secret, u.id, true
}

func (p *people) User(account, name, id string) (aws.Identity, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range p.users {
		if u.id.Account == account && u.id.UserName == name && u.id.UserID == id {
			return u.id, true
		}
	}
	return aws.Identity{}, false
}

func (p *people) Role(arn string) *aws.Role {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.roles[arn]
}

func grants(t testing.TB, statements string) *policy.Grants {
	t.Helper()
	d, err := policy.Parse(`{"Version":"2012-10-17","Statement":[`+statements+`]}`, policy.ForIdentity)
	if err != nil {
		t.Fatal(err)
	}
	return &policy.Grants{Identity: []*policy.Document{d}}
}

// may is a user whose policy has these statements.
func (f *fixture) may(name, account, statements string) lambdad.Credentials {
	f.t.Helper()
	c := lambdad.Credentials{AccessKeyID: "AKIA" + strings.ToUpper(name), SecretAccessKey: "secret of " + name}
	f.people.mu.Lock()
	defer f.people.mu.Unlock()
	f.people.users[c.AccessKeyID] = &person{aws.Identity{
		Account: account, AccessKeyID: c.AccessKeyID, ARN: "arn:aws:iam::" + account + ":user/" + name, UserID: "AIDA" + name,
		UserName: name, Grants: grants(f.t, statements),
	}, c.SecretAccessKey}
	return c
}

func (f *fixture) fire(c lambdad.Credentials) {
	f.people.mu.Lock()
	defer f.people.mu.Unlock()
	delete(f.people.users, c.AccessKeyID)
}

// calls are those that Access was told of since the last time.
func (f *fixture) calls() (list []aws.Access) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list, f.called = f.called, nil
	return list
}

const (
	own       = "000000000000"
	foreign   = "111111111111"
	anyLogin  = `{"Effect":"Allow","Action":"ecr:GetAuthorizationToken","Resource":"*"}`
	allOfECR  = `{"Effect":"Allow","Action":"ecr:*","Resource":"*"}`
	appARN    = "arn:aws:ecr:us-east-1:000000000000:repository/app"
	pullRules = `"Action":["ecr:BatchGetImage","ecr:GetDownloadUrlForLayer"]`
)

const pullPolicy = `{"Version":"2008-10-17","Statement":[{"Sid":"new statement","Effect":"Allow","Principal":{"AWS":"` + foreign + `"},` + pullRules + `}]}`

func allow(actions ...string) string {
	return fmt.Sprintf(`{"Effect":"Allow","Action":["ecr:%s"],"Resource":"%s"}`, strings.Join(actions, `","ecr:`), appARN)
}

func deny(action string) string {
	return fmt.Sprintf(`{"Effect":"Deny","Action":"ecr:%s","Resource":"%s"}`, action, appARN)
}

func (f *fixture) setPolicy(repo, text string) {
	f.t.Helper()
	f.call("SetRepositoryPolicy", fmt.Sprintf(`{"repositoryName":%q,"policyText":%q}`, repo, text), 200, "policyText")
}

// app makes the repositories app and other, each with an image.
func (f *fixture) app() (config, layer, m []byte) {
	f.t.Helper()
	config, layer = []byte(`{"os":"linux"}`), []byte("layer")
	m = manifest(config, layer)
	p := f.password()
	for _, name := range []string{"app", "other"} {
		f.call("CreateRepository", fmt.Sprintf(`{"repositoryName":%q,"tags":[{"Key":"team","Value":%q}]}`, name, name), 200, "")
		f.push(name, p, config)
		f.push(name, p, layer)
		f.expect(f.v2("PUT", "/v2/"+name+"/manifests/v1", p, m, "Content-Type", image.TypeOCIManifest), 201, "")
	}
	return config, layer, m
}

// TestOperationRights: each operation is decided on its repository, by its name.
func TestOperationRights(t *testing.T) {
	f := newFixture(t, aws.Verify)
	config, layer, _ := f.app()
	another := manifest(layer, config)
	on := func(rest string) string { return `{"repositoryName":"REPO"` + rest + `}` }
	byARN := func(rest string) string {
		return `{"resourceArn":"` + strings.TrimSuffix(appARN, "app") + `REPO"` + rest + `}`
	}
	rows := []struct{ op, in string }{
		{"BatchCheckLayerAvailability", on(`,"layerDigests":["` + digest(layer) + `"]`)},
		{"BatchGetImage", on(`,"imageIds":[{"imageTag":"v1"}]`)},
		{"DeleteLifecyclePolicy", on(``)},
		{"DescribeImages", on(``)},
		{"DescribeRepositories", `{"repositoryNames":["REPO"]}`},
		{"DescribeRepositories", `{"repositoryNames":["REPO","REPO"]}`},
		{"GetLifecyclePolicy", on(``)},
		{"ListImages", on(``)},
		{"ListTagsForResource", byARN(``)},
		{"PutImage", on(fmt.Sprintf(`,"imageManifest":%q`, another))},
		{"PutImageScanningConfiguration", on(``)},
		{"PutImageTagMutability", on(`,"imageTagMutability":"MUTABLE"`)},
		{"SetRepositoryPolicy", on(fmt.Sprintf(`,"policyText":%q`, pullPolicy))},
		{"GetRepositoryPolicy", on(``)},
		{"DeleteRepositoryPolicy", on(``)},
		{"TagResource", byARN(`,"tags":[{"Key":"a","Value":"b"}]`)},
		{"UntagResource", byARN(`,"tagKeys":["a"]`)},
		{"BatchDeleteImage", on(`,"imageIds":[{"imageTag":"v1"}]`)},
		{"DeleteRepository", on(`,"force":true`)},
		{"CreateRepository", on(``)},
	}
	seen := map[string]bool{"GetAuthorizationToken": true} // below
	for _, row := range rows {
		seen[row.op] = true
		in, inOther := strings.ReplaceAll(row.in, "REPO", "app"), strings.ReplaceAll(row.in, "REPO", "other")
		denied := fmt.Sprintf(`User: arn:aws:iam::000000000000:user/u is not authorized to perform: ecr:%s on resource: %s `, row.op, appARN)
		f.callAs(f.may("u", own, allOfECR+","+deny(row.op)), row.op, in, 400, denied+"with an explicit deny in an identity-based policy")
		f.callAs(f.may("u", own, anyLogin), row.op, in, 400, denied+"because no identity-based policy allows the ecr:"+row.op+" action")
		u := f.may("u", own, allow(row.op))
		if _, body := f.ask(u, row.op, in); strings.Contains(body, "AccessDenied") {
			t.Errorf("%s, allowed: %s", row.op, body)
		}
		f.callAs(u, row.op, inOther, 400, "AccessDeniedException")
	}
	served, _ := f.s.Operations()
	for _, op := range served {
		if !seen[op] {
			t.Errorf("%s is not asked for", op)
		}
	}

	// Where nothing is named.
	u := f.may("u", own, allow("DescribeRepositories", "GetAuthorizationToken"))
	f.callAs(u, "GetAuthorizationToken", `{}`, 400, `is not authorized to perform: ecr:GetAuthorizationToken on resource: * because`)
	f.callAs(u, "DescribeRepositories", `{}`, 400, `on resource: arn:aws:ecr:us-east-1:000000000000:repository/* because`)
	f.callAs(f.may("u", own, `{"Effect":"Allow","Action":"ecr:*","Resource":"arn:aws:ecr:*:000000000000:repository/*"}`), "DescribeRepositories", `{}`, 200, `"app"`)

	// One of several is enough to be refused.
	u = f.may("u", own, allow("DescribeRepositories"))
	f.callAs(u, "DescribeRepositories", `{"repositoryNames":["app","other"]}`, 400, "repository/other because")
	// What cannot be read of a request does not change what is decided about.
	u = f.may("u", own, allOfECR+","+deny("DescribeImages"))
	f.callAs(u, "DescribeImages", `{"repositoryName":"app","repositoryNames":5,"resourceArn":7}`, 400, "AccessDeniedException")
	f.callAs(u, "DescribeImages", `{"repositoryName":"other","REPOSITORYNAME":"app"}`, 400, "AccessDeniedException")
	f.callAs(u, "DescribeImages", `{"repositoryName":"app","registryId":"x"}`, 400, "")
	f.call("DescribeImages", `{"repositoryName":"app","registryId":"x"}`, 400, "InvalidParameterException")
	// Tags are conditions, and to give some is an action of its own.
	u = f.may("u", own, `{"Effect":"Allow","Action":"ecr:*","Resource":"*","Condition":{"StringEquals":{"ecr:ResourceTag/team":"other"}}}`)
	f.callAs(u, "DescribeImages", `{"repositoryName":"other"}`, 200, "")
	f.callAs(u, "DescribeImages", `{"repositoryName":"app"}`, 400, "AccessDeniedException")
	f.callAs(u, "DescribeRepositories", `{"repositoryNames":["other","app"]}`, 400, "repository/app because")
	u = f.may("u", own, `{"Effect":"Allow","Action":"ecr:CreateRepository","Resource":"*"}`)
	f.callAs(u, "CreateRepository", `{"repositoryName":"tagged","tags":[{"Key":"a","Value":"b"}]}`, 400, "ecr:TagResource")
	u = f.may("u", own, `{"Effect":"Allow","Action":["ecr:CreateRepository","ecr:TagResource"],"Resource":"*","Condition":{"StringEquals":{"aws:RequestTag/a":"b"}}}`)
	f.callAs(u, "CreateRepository", `{"repositoryName":"tagged"}`, 400, "AccessDeniedException")
	f.callAs(u, "CreateRepository", `{"repositoryName":"tagged","tags":[{"Key":"a","Value":"b"}]}`, 200, "")
}

// TestDistributionRights: requests of the distribution API are decided as the
// operations they stand for, and are in the trail as these.
func TestDistributionRights(t *testing.T) {
	f := newFixture(t, aws.Verify)
	_, layer, m := f.app()
	root := f.password()
	upload := func() string {
		resp := f.v2("POST", "/v2/app/blobs/uploads/", root, nil)
		f.expect(resp, 202, "")
		return resp.Header.Get("Location")
	}
	blob := "/v2/app/blobs/" + digest(layer)
	rows := []struct {
		method, path string
		body         []byte
		status       int
		need         []string // the last of them names the call
	}{
		{"GET", "/v2/app/manifests/v1", nil, 200, []string{"BatchGetImage"}},
		{"HEAD", "/v2/app/manifests/v1", nil, 200, []string{"BatchGetImage"}},
		{"GET", blob, nil, 200, []string{"GetDownloadUrlForLayer"}},
		{"HEAD", blob, nil, 200, []string{"BatchCheckLayerAvailability"}},
		{"GET", "/v2/app/tags/list", nil, 200, []string{"ListImages"}},
		{"POST", "/v2/app/blobs/uploads/", nil, 202, []string{"InitiateLayerUpload"}},
		{"POST", "/v2/app/blobs/uploads/?digest=" + digest(layer), layer, 201, []string{"InitiateLayerUpload", "UploadLayerPart", "CompleteLayerUpload"}},
		{"PATCH", "UPLOAD", layer, 202, []string{"UploadLayerPart"}},
		{"GET", "UPLOAD", nil, 204, []string{"UploadLayerPart"}},
		{"DELETE", "UPLOAD", nil, 204, []string{"UploadLayerPart"}},
		{"PUT", "UPLOAD?digest=" + digest(layer), layer, 201, []string{"UploadLayerPart", "CompleteLayerUpload"}},
		{"PUT", "UPLOAD?digest=" + digest(nil), nil, 201, []string{"CompleteLayerUpload"}},
		{"PUT", "/v2/app/manifests/v2", m, 201, []string{"PutImage"}},
		{"DELETE", "/v2/app/manifests/v2", nil, 202, []string{"BatchDeleteImage"}},
	}
	seen := map[string]bool{}
	for _, row := range rows {
		kind := row.path
		if strings.HasPrefix(kind, "UPLOAD") {
			kind = "/v2/app/blobs/uploads/"
		}
		for k := range operations {
			if strings.HasPrefix(kind, "/v2/app"+k) && (k != "/blobs/" || !strings.Contains(kind, "uploads")) {
				seen[row.method+k] = true
			}
		}
		send := func(p string) *http.Response {
			path := row.path
			if strings.HasPrefix(path, "UPLOAD") {
				path = upload() + strings.TrimPrefix(path, "UPLOAD")
			}
			f.calls()
			return f.v2(row.method, path, p, row.body)
		}
		name := row.method + " " + row.path
		for _, lacks := range row.need {
			p := f.login(f.may("u", own, allOfECR+","+deny(lacks)), `{}`)
			want := fmt.Sprintf("User: arn:aws:iam::000000000000:user/u is not authorized to perform: ecr:%s on resource: %s with an explicit deny in an identity-based policy", lacks, appARN)
			resp := send(p)
			if row.method == "HEAD" {
				f.expect(resp, 403, "")
			} else {
				f.expect(resp, 403, `{"errors":[{"code":"DENIED","message":"`+want+`"}]}`)
			}
			if c := f.calls(); len(c) != 1 || c[0].Operation != lacks || c[0].Action != "ecr:"+lacks || c[0].Resource != appARN ||
				c[0].ErrorCode != "AccessDeniedException" || c[0].ErrorMessage != want || c[0].Identity.UserName != "u" || c[0].Service != "ecr" {
				t.Errorf("%s: in the trail: %+v", name, c)
			}
		}
		p := f.login(f.may("u", own, anyLogin+","+allow(row.need...)), `{}`)
		resp := send(p)
		f.expect(resp, row.status, "")
		if c := f.calls(); len(c) != 1 || c[0].Operation != row.need[len(row.need)-1] || c[0].ErrorCode != "" || c[0].RequestID != resp.Header.Get("x-amzn-RequestId") {
			t.Errorf("%s: in the trail: %+v", name, c)
		}
		// Elsewhere, whether it is there or not, it says the same.
		for _, repo := range []string{"other", "none"} {
			path := strings.Replace(strings.Replace(row.path, "UPLOAD", "/v2/app/blobs/uploads/x", 1), "/app/", "/"+repo+"/", 1)
			resp := f.v2(row.method, path, p, row.body)
			if row.method == "HEAD" {
				f.expect(resp, 403, "")
			} else {
				f.expect(resp, 403, "repository/"+repo+" because no identity-based policy allows")
			}
		}
	}
	for k, methods := range operations {
		for method := range methods {
			if !seen[method+k] {
				t.Errorf("%s of %s is not asked for", method, k)
			}
		}
	}

	// The catalogue.
	f.expect(f.v2("GET", "/v2/_catalog", f.login(f.may("u", own, anyLogin+","+allow("DescribeRepositories")), `{}`), nil), 403, "repository/* because")
	f.expect(f.v2("GET", "/v2/_catalog", f.login(f.may("u", own, anyLogin+`,{"Effect":"Allow","Action":"ecr:DescribeRepositories","Resource":"*"}`), `{}`), nil), 200, "app")
	// A blob is mounted for whom the other repository gives it; others upload it.
	f.push("other", root, []byte("secret"))
	mount := "/v2/app/blobs/uploads/?from=other&mount=" + digest([]byte("secret"))
	pusher := anyLogin + "," + allow("InitiateLayerUpload", "UploadLayerPart", "CompleteLayerUpload", "GetDownloadUrlForLayer")
	p := f.login(f.may("u", own, pusher), `{}`)
	f.expect(f.v2("POST", mount, p, nil), 202, "")
	f.expect(f.v2("GET", "/v2/app/blobs/"+digest([]byte("secret")), p, nil), 404, "BLOB_UNKNOWN")
	p = f.login(f.may("u", own, pusher+`,{"Effect":"Allow","Action":"ecr:GetDownloadUrlForLayer","Resource":"*","Condition":{"StringEquals":{"aws:ResourceTag/team":"app"}}}`), `{}`)
	f.expect(f.v2("POST", mount, p, nil), 202, "") // the tag is the other's
	p = f.login(f.may("u", own, pusher+`,{"Effect":"Allow","Action":"ecr:GetDownloadUrlForLayer","Resource":"*","Condition":{"StringEquals":{"aws:ResourceTag/team":"other"}}}`), `{}`)
	f.expect(f.v2("POST", mount, p, nil), 201, "")
	// What a method does not do here nobody may do.
	f.expect(f.v2("POST", "/v2/app/manifests/v1", root, nil), 405, "UNSUPPORTED")
	// The ping says only that somebody is there.
	f.calls()
	f.expect(f.v2("GET", "/v2/", f.login(f.may("u", own, anyLogin), `{}`), nil), 200, "{}")
	if c := f.calls(); len(c) != 1 || c[0].Operation != "GetAuthorizationToken" {
		t.Errorf("in the trail: %+v", c)
	}
}

// TestRepositoryPolicy: the policy of a repository denies and allows on both faces.
func TestRepositoryPolicy(t *testing.T) {
	f := newFixture(t, aws.Verify)
	_, layer, m := f.app()
	for _, bad := range []string{
		`no`, `{}`, `[]`, `{"Version":"2012-10-17","Statement":[]}`,
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ecr:*"}]}`,
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"ecr:*","Resource":"*"}]}`,
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111111111111:*"},"Action":"ecr:*"}]}`,
		`{"Version":"2012-10-17","Statement":[{"Effect":"Maybe","Principal":"*","Action":"ecr:*"}]}`,
	} {
		f.call("SetRepositoryPolicy", fmt.Sprintf(`{"repositoryName":"app","policyText":%q}`, bad), 400,
			`Invalid parameter at 'PolicyText' failed to satisfy constraint: 'Invalid repository policy provided'`)
	}
	f.call("SetRepositoryPolicy", fmt.Sprintf(`{"repositoryName":"app","policyText":"%s"}`, strings.Repeat(" ", 10241)), 400, "less than or equal to 10240")
	f.call("GetRepositoryPolicy", `{"repositoryName":"app"}`, 400, "RepositoryPolicyNotFoundException")

	statement := func(effect, principal, actions string) string {
		return fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Sid":"S","Effect":%q,"Principal":%s,"Action":%s}]}`, effect, principal, actions)
	}
	u := f.may("u", own, allOfECR)
	p := f.login(u, `{}`)
	pull := `{"repositoryName":"app","imageIds":[{"imageTag":"v1"}]}`
	f.callAs(u, "BatchGetImage", pull, 200, "imageManifest")
	f.expect(f.v2("GET", "/v2/app/manifests/v1", p, nil), 200, "")
	f.setPolicy("app", statement("Deny", `{"AWS":"arn:aws:iam::000000000000:user/u"}`, `"ecr:BatchGetImage"`))
	f.callAs(u, "BatchGetImage", pull, 400, "with an explicit deny in a resource-based policy")
	f.expect(f.v2("GET", "/v2/app/manifests/v1", p, nil), 403, "with an explicit deny in a resource-based policy")
	f.expect(f.v2("GET", "/v2/app/blobs/"+digest(layer), p, nil), 200, "layer")
	f.expect(f.v2("GET", "/v2/other/manifests/v1", p, nil), 200, "")
	f.call("BatchGetImage", pull, 200, "imageManifest") // root can always mend it
	if d := f.s.ResourcePolicy(nil, appARN); d == nil || d.Name != appARN+" repository policy" {
		t.Errorf("the policy without a request: %+v", d)
	}

	// Either policy is enough within the account.
	reader := f.may("reader", own, anyLogin)
	p = f.login(reader, `{}`)
	f.expect(f.v2("GET", "/v2/app/manifests/v1", p, nil), 403, "because no identity-based policy allows")
	f.setPolicy("app", statement("Allow", `{"AWS":"arn:aws:iam::000000000000:user/reader"}`, `["ecr:BatchGetImage","ecr:GetDownloadUrlForLayer"]`))
	f.expect(f.v2("GET", "/v2/app/manifests/v1", p, nil), 200, "")
	f.expect(f.v2("GET", "/v2/app/blobs/"+digest(layer), p, nil), 200, "layer")
	f.expect(f.v2("PUT", "/v2/app/manifests/v1", p, m), 403, "ecr:PutImage")
	f.callAs(reader, "BatchGetImage", pull, 200, "imageManifest")
	f.call("DeleteRepositoryPolicy", `{"repositoryName":"app"}`, 200, "")
	f.expect(f.v2("GET", "/v2/app/manifests/v1", p, nil), 403, "DENIED")

	// Nobody locks himself out without force.
	f.callAs(u, "SetRepositoryPolicy", fmt.Sprintf(`{"repositoryName":"app","policyText":%q}`, statement("Deny", `"*"`, `"ecr:SetRepositoryPolicy"`)), 400, "force")
	f.callAs(u, "SetRepositoryPolicy", fmt.Sprintf(`{"repositoryName":"app","force":true,"policyText":%q}`, statement("Deny", `"*"`, `"ecr:SetRepositoryPolicy"`)), 200, "")
	f.callAs(u, "SetRepositoryPolicy", fmt.Sprintf(`{"repositoryName":"app","force":true,"policyText":%q}`, pullPolicy), 400, "explicit deny in a resource-based policy")

	// Of another account both must allow, over the password for that registry.
	f.call("DeleteRepositoryPolicy", `{"repositoryName":"app"}`, 200, "")
	guest := f.may("guest", foreign, allOfECR)
	from := `{"repositoryName":"app","registryId":"000000000000","imageIds":[{"imageTag":"v1"}]}`
	p = f.login(guest, `{"registryIds":["000000000000"]}`)
	f.callAs(guest, "BatchGetImage", from, 400, "because no resource-based policy allows the ecr:BatchGetImage action")
	f.expect(f.v2("GET", "/v2/app/manifests/v1", p, nil), 403, appARN+" because no resource-based policy allows the ecr:BatchGetImage action")
	f.setPolicy("app", pullPolicy)
	f.callAs(guest, "BatchGetImage", from, 200, "imageManifest")
	f.expect(f.v2("GET", "/v2/app/manifests/v1", p, nil), 200, "")
	f.expect(f.v2("GET", "/v2/app/blobs/"+digest(layer), p, nil), 200, "layer")
	f.expect(f.v2("PUT", "/v2/app/manifests/v1", p, m), 403, "because no resource-based policy allows the ecr:PutImage action")
	f.expect(f.v2("GET", "/v2/_catalog", p, nil), 403, "because no resource-based policy allows the ecr:DescribeRepositories action")
	f.expect(f.v2("GET", "/v2/app/manifests/v1", f.login(guest, `{}`), nil), 404, "NAME_UNKNOWN") // in his own registry
	f.callAs(guest, "CreateRepository", `{"repositoryName":"mine","registryId":"000000000000"}`, 400, "AccessDeniedException")
	f.expect(f.v2("GET", "/v2/app/manifests/v1", f.login(f.may("guest", foreign, anyLogin), `{"registryIds":["000000000000"]}`), nil), 403, "because no identity-based policy allows")
	f.call("GetAuthorizationToken", `{"registryIds":["x"]}`, 400, "InvalidParameterException")

	// A policy that cannot be read is not one that allows.
	ref := repoRef{own, "us-east-1", "app"}
	if _, err := f.s.update(t.Context(), ref, func(r *repository) error { r.rec.Policy = "{"; return nil }); err != nil {
		t.Fatal(err)
	}
	f.callAs(f.may("u", own, allOfECR), "BatchGetImage", pull, 400, "explicit deny in a resource-based policy")
	f.setPolicy("app", pullPolicy)
	f.callAs(f.may("u", own, allOfECR), "BatchGetImage", pull, 200, "")
}

// TestPasswordLife: a password is worth what its owner is at that moment.
func TestPasswordLife(t *testing.T) {
	f := newFixture(t, aws.Verify)
	f.app()
	pull := func(p string) *http.Response { return f.v2("GET", "/v2/app/manifests/v1", p, nil) }
	u := f.may("u", own, allOfECR)
	p := f.login(u, `{}`)
	f.expect(pull(p), 200, "")
	f.may("u", own, anyLogin)
	f.expect(pull(p), 403, "DENIED")
	f.may("u", own, allOfECR)
	f.expect(pull(p), 200, "")
	f.fire(u)
	f.calls()
	resp := pull(p)
	f.expect(resp, 401, "The security token included in the request is invalid.")
	if resp.Header.Get("WWW-Authenticate") == "" {
		t.Error("no challenge")
	}
	f.expect(f.v2("GET", "/v2/", p, nil), 401, "UNAUTHORIZED")
	if c := f.calls(); len(c) != 0 {
		t.Errorf("anybody fills the trail: %+v", c)
	}

	// A session of a role.
	const arn = "arn:aws:iam::000000000000:role/r"
	role := &aws.Role{ARN: arn, ID: "AROAX", Name: "r", Account: own, Grants: grants(t, allOfECR)}
	f.people.roles[arn] = role
	session := aws.Session{Account: own, ARN: "arn:aws:sts::000000000000:assumed-role/r/s", UserID: "AROAX:s", Role: arn, RoleID: "AROAX",
		Issued: f.clock(), Expires: f.clock().Add(time.Hour).Truncate(time.Second)}
	c, err := f.keys.Issue(session)
	if err != nil {
		t.Fatal(err)
	}
	out := f.callAs(c, "GetAuthorizationToken", `{}`, 200, "")
	if got := out["authorizationData"].([]any)[0].(map[string]any)["expiresAt"]; got != float64(session.Expires.Unix()) {
		t.Errorf("expiresAt %v, the session ends at %d", got, session.Expires.Unix())
	}
	p = f.login(c, `{}`)
	f.expect(pull(p), 200, "")
	f.later(59 * time.Minute)
	f.expect(pull(p), 200, "")
	f.later(2 * time.Minute)
	f.expect(pull(p), 401, "Your authorization token has expired. Reauthenticate and try again.")
	f.later(-61 * time.Minute)
	f.expect(pull(p), 200, "")
	// The session policy narrows here, too.
	session.Policies = []string{`{"Version":"2012-10-17","Statement":[` + anyLogin + `]}`}
	narrow, err := f.keys.Issue(session)
	if err != nil {
		t.Fatal(err)
	}
	f.expect(pull(f.login(narrow, `{}`)), 403, "because no session policy allows the ecr:BatchGetImage action")
	// Whoever keeps the keys says that it has ended.
	f.expect(serve(aws.NewMux(expired{}, aws.Options{}, f.s), p), 401, "Your authorization token has expired.")
	f.people.mu.Lock()
	delete(f.people.roles, arn)
	f.people.mu.Unlock()
	f.expect(pull(p), 401, "The security token included in the request is invalid.")

	// Credentials of an environment end with it.
	f.people.mu.Lock()
	f.people.roles[arn] = role
	f.people.mu.Unlock()
	mint, release := f.keys.Mint(&lambdad.Version{Account: own, Function: "fn", Role: arn}, "e1")
	p = f.login(mint("runtime"), `{}`)
	f.expect(pull(p), 200, "")
	release()
	f.expect(pull(p), 401, "UNAUTHORIZED")

	// Root's lasts as long as the key.
	p = f.password()
	f.expect(pull(p), 200, "")
	f.expect(serve(aws.NewMux(aws.NewKeyStore(), aws.Options{}, f.s), p), 401, "UNAUTHORIZED")
	f.later(passwordLife + time.Minute)
	f.expect(pull(p), 401, "Your authorization token has expired.")
}

// expired has had every key.
type expired struct{}

func (expired) Lookup(context.Context, string, string) (string, aws.Identity, error) {
	return "", aws.Identity{}, aws.ErrExpiredKey
}

// serve asks a handler for the manifest.
func serve(h http.Handler, password string) *http.Response {
	r := httptest.NewRequest("GET", "/v2/app/manifests/v1", nil)
	if password != "" {
		r.SetBasicAuth("AWS", password)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	resp := w.Result()
	resp.Request = r
	return resp
}

// TestSandbox: from inside a sandbox nobody is let in without a password, whatever the
// endpoint outside accepts.
func TestSandbox(t *testing.T) {
	f := newFixture(t, aws.Any)
	f.app()
	p := f.password()
	f.expect(serve(f.mux, ""), 200, "")
	f.calls()
	f.expect(serve(f.mux.Sandbox("e1"), ""), 401, "UNAUTHORIZED")
	if c := f.calls(); len(c) != 1 || c[0].Listener != "e1" || c[0].ErrorCode != "UNAUTHORIZED" {
		t.Errorf("in the trail: %+v", c)
	}
	f.expect(serve(f.mux.Sandbox("e1"), p), 200, "")
	// Keys that are accepted outside only are none inside.
	f.expect(serve(f.mux, f.login(lambdad.Credentials{AccessKeyID: "test", SecretAccessKey: "x"}, `{}`)), 200, "")
	f.expect(serve(f.mux.Sandbox("e1"), f.login(lambdad.Credentials{AccessKeyID: "test", SecretAccessKey: "x"}, `{}`)), 401, "")
	// A key of 12 digits is an account, whose repositories are its own.
	other := lambdad.Credentials{AccessKeyID: foreign, SecretAccessKey: "x"}
	f.expect(serve(f.mux, f.login(other, `{}`)), 404, "NAME_UNKNOWN")
	f.expect(serve(f.mux, f.login(other, `{"registryIds":["000000000000"]}`)), 403, "no resource-based policy allows")
}

// TestPassword: nothing of a password can be read or changed.
func TestPassword(t *testing.T) {
	f := newFixture(t, aws.Verify)
	c := claim{AccessKeyID: "ASIAEXAMPLE", SessionToken: "token", Registry: foreign, Region: "eu-west-1", Expires: f.clock().UTC().Truncate(0)}
	p, err := f.s.passwords.seal(c)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := base64.RawURLEncoding.DecodeString(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{c.AccessKeyID, c.SessionToken, foreign, c.Region} {
		if strings.Contains(p, secret) || strings.Contains(string(plain), secret) {
			t.Errorf("%s is in clear", secret)
		}
	}
	if got, ok := f.s.passwords.open(p); !ok || got != c {
		t.Errorf("opened: %+v, %v", got, ok)
	}
	for i := range plain {
		changed := slices.Clone(plain)
		changed[i] ^= 1
		if _, ok := f.s.passwords.open(base64.RawURLEncoding.EncodeToString(changed)); ok {
			t.Errorf("byte %d may be changed", i)
		}
	}
	// Another server's, with a key of its own.
	if _, ok := newFixture(t, aws.Verify).s.passwords.open(p); ok {
		t.Error("another server's password is taken")
	}
	// The same server's after a restart.
	again, err := New(t.Context(), Config{Store: f.s.Store, Images: f.images})
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := again.passwords.open(p); !ok || got != c {
		t.Errorf("after a restart: %+v, %v", got, ok)
	}
}

// FuzzPassword: only what was made here is taken, and whatever the header, nobody gets
// in with it.
func FuzzPassword(f *testing.F) {
	x := newFixture(f, aws.Verify)
	good := map[string]bool{}
	for _, c := range []claim{{}, {AccessKeyID: "AKIAX", Region: "us-east-1", Expires: x.clock().Add(time.Hour)}, {AccessKeyID: "ASIAX", SessionToken: strings.Repeat("t", 400)}} {
		p, err := x.s.passwords.seal(c)
		if err != nil {
			f.Fatal(err)
		}
		good[p] = true
		f.Add(p)
		f.Add(p[:len(p)/2])
		f.Add(p + "A")
	}
	f.Add("")
	f.Add(base64.RawURLEncoding.EncodeToString([]byte("000000000000.us-east-1.9999999999.signature")))
	f.Fuzz(func(t *testing.T, password string) {
		// Line ends are no part of base64.
		if _, ok := x.s.passwords.open(password); ok && !good[strings.NewReplacer("\r", "", "\n", "").Replace(password)] {
			t.Fatalf("%q is taken", password)
		}
		r := httptest.NewRequest("GET", "/v2/", nil)
		r.SetBasicAuth("AWS", password)
		w := httptest.NewRecorder()
		x.mux.ServeHTTP(w, r)
		if w.Code != http.StatusUnauthorized {
			t.Fatalf("%q: %d %s", password, w.Code, w.Body)
		}
	})
}
