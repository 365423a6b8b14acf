package iam

import (
	"context"
	"encoding/xml"
	"fmt"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/mem"
	"github.com/lambdad/lambdad/policy"
	"github.com/lambdad/lambdad/store"
)

const (
	account     = "000000000000"
	trustLambda = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"lambda.amazonaws.com"},"Action":"sts:AssumeRole"}]}`
	allowInvoke = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"lambda:InvokeFunction","Resource":"*"}]}`
	basic       = "arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"
)

// A rig is the service on a store that outlives it.
type rig struct {
	t     *testing.T
	store store.Store
	reg   *Registry
	mux   *aws.Mux
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, store: mem.NewStore()}
	r.start()
	return r
}

// start reads the records anew, as a server does.
func (r *rig) start() {
	r.t.Helper()
	reg, err := NewRegistry(context.Background(), r.store)
	if err != nil {
		r.t.Fatal(err)
	}
	r.reg = reg
	r.mux = aws.NewMux(aws.NewKeyStore(), aws.Options{Auth: aws.Any}, New(Config{Registry: reg}))
}

// call makes a request of "Operation Key=value …", in which values hold no blanks
// unless they are the last.
func (r *rig) call(op string, params ...string) (int, string) {
	form := url.Values{"Action": {op}, "Version": {"2010-05-08"}}
	for i := 0; i < len(params); i += 2 {
		form.Set(params[i], params[i+1])
	}
	req := httptest.NewRequest("POST", "/", strings.NewReader(form.Encode()))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIAX/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature="+strings.Repeat("0", 64))
	w := httptest.NewRecorder()
	r.mux.ServeHTTP(w, req)
	return w.Code, w.Body.String()
}

func (r *rig) ok(op string, params ...string) string {
	r.t.Helper()
	status, body := r.call(op, params...)
	if status != 200 {
		r.t.Fatalf("%s %v: %d %s", op, params, status, body)
	}
	return body
}

func (r *rig) fails(status int, code, message, op string, params ...string) {
	r.t.Helper()
	got, body := r.call(op, params...)
	var e struct {
		Error struct{ Type, Code, Message string }
	}
	if err := xml.Unmarshal([]byte(body), &e); err != nil {
		r.t.Errorf("%s: %v in %s", op, err, body)
	}
	if got != status || e.Error.Code != code || e.Error.Message != message || e.Error.Type != "Sender" {
		r.t.Errorf("%s %v:\n got %d %s\nwant %d %s: %s", op, params, got, body, status, code, message)
	}
}

func between(s, from, to string) string {
	_, s, _ = strings.Cut(s, from)
	s, _, _ = strings.Cut(s, to)
	return s
}

// TestRole is what deployment tools do with a role, from its making to its end.
func TestRole(t *testing.T) {
	r := newRig(t)
	body := r.ok("CreateRole", "RoleName", "fn", "Path", "/team/", "AssumeRolePolicyDocument", trustLambda, "Tags.member.1.Key", "team", "Tags.member.1.Value", "red")
	if !strings.Contains(body, "<Arn>arn:aws:iam::000000000000:role/team/fn</Arn>") || !strings.HasPrefix(between(body, "<RoleId>", "<"), "AROA") || len(between(body, "<RoleId>", "<")) != 21 {
		t.Error(body)
	}
	doc, err := url.PathUnescape(between(body, "<AssumeRolePolicyDocument>", "<"))
	if err != nil || doc != trustLambda || strings.ContainsAny(between(body, "<AssumeRolePolicyDocument>", "<"), "{+ ") {
		t.Errorf("document %q, %v", doc, err)
	}
	r.fails(409, "EntityAlreadyExists", "Role with name FN already exists.", "CreateRole", "RoleName", "FN", "AssumeRolePolicyDocument", trustLambda)
	r.ok("PutRolePolicy", "RoleName", "fn", "PolicyName", "inline", "PolicyDocument", allowInvoke)
	r.ok("AttachRolePolicy", "RoleName", "fn", "PolicyArn", basic)
	r.ok("AttachRolePolicy", "RoleName", "fn", "PolicyArn", basic) // again
	r.start()
	if body := r.ok("ListAttachedRolePolicies", "RoleName", "fn"); strings.Count(body, "<PolicyArn>") != 1 || !strings.Contains(body, "<PolicyName>AWSLambdaBasicExecutionRole</PolicyName>") {
		t.Error(body)
	}
	if body := r.ok("GetRolePolicy", "RoleName", "fn", "PolicyName", "inline"); !strings.Contains(body, url.QueryEscape(allowInvoke)) {
		t.Error(body)
	}
	if body := r.ok("ListInstanceProfilesForRole", "RoleName", "fn"); !strings.Contains(body, "<InstanceProfiles></InstanceProfiles>") {
		t.Error(body)
	}
	if body := r.ok("GetRole", "RoleName", "fn"); !strings.Contains(body, "<Key>team</Key><Value>red</Value>") {
		t.Error(body)
	}
	role := r.reg.Role("arn:aws:iam::000000000000:role/team/fn")
	if role == nil || r.reg.Role("arn:aws:iam::000000000000:role/fn") != nil {
		t.Fatalf("role by ARN: %+v", role)
	}
	ask := &policy.Request{Principal: policy.Principal{Account: account, ARN: "arn:aws:sts::000000000000:assumed-role/fn/s", Role: role.ARN}, Resource: "*"}
	for action, want := range map[string]bool{"lambda:InvokeFunction": true, "logs:PutLogEvents": true, "lambda:DeleteFunction": false} {
		ask.Action = action
		if d := policy.Evaluate(role.Grants, ask); d.Allowed != want {
			t.Errorf("%s: %+v", action, d)
		}
	}
	r.fails(409, "DeleteConflict", "Cannot delete entity, must detach all policies first.", "DeleteRole", "RoleName", "fn")
	r.ok("DetachRolePolicy", "RoleName", "fn", "PolicyArn", basic)
	r.fails(409, "DeleteConflict", "Cannot delete entity, must delete policies first.", "DeleteRole", "RoleName", "fn")
	r.ok("DeleteRolePolicy", "RoleName", "fn", "PolicyName", "inline")
	ask.Action = "lambda:InvokeFunction"
	if d := policy.Evaluate(r.reg.Role(role.ARN).Grants, ask); d.Allowed {
		t.Errorf("after the policy was deleted: %+v", d)
	}
	r.ok("DeleteRole", "RoleName", "fn")
	r.fails(404, "NoSuchEntity", "The role with name fn cannot be found.", "GetRole", "RoleName", "fn")
	r.start()
	r.fails(404, "NoSuchEntity", "The role with name fn cannot be found.", "GetRole", "RoleName", "fn")
}

// TestRecordedErrors are the rows of recorded-errors.tsv about operations that are
// here.
func TestRecordedErrors(t *testing.T) {
	r := newRig(t)
	r.ok("CreateRole", "RoleName", "role", "AssumeRolePolicyDocument", trustLambda)
	r.ok("CreateUser", "UserName", "user")
	r.ok("CreatePolicy", "PolicyName", "p", "PolicyDocument", allowInvoke)
	const missing = "arn:aws:iam::000000000000:policy/p123"
	r.fails(404, "NoSuchEntity", "Policy "+missing+" does not exist or is not attachable.", "AttachRolePolicy", "RoleName", "role", "PolicyArn", missing)
	r.fails(400, "ValidationError", "Invalid ARN:  Could not be parsed!", "AttachRolePolicy", "RoleName", "role", "PolicyArn", "longpolicynamebutnoarn")
	r.fails(404, "NoSuchEntity", "Policy "+missing+" does not exist or is not attachable.", "AttachUserPolicy", "UserName", "user", "PolicyArn", missing)
	r.fails(400, "ValidationError", "Invalid ARN:  Could not be parsed!", "AttachUserPolicy", "UserName", "user", "PolicyArn", "longpolicynamebutnoarn")
	r.fails(400, "MalformedPolicyDocument", "This policy contains invalid Json", "CreateRole", "RoleName", "x", "AssumeRolePolicyDocument", "invalid")
	r.fails(404, "NoSuchEntity", "Policy arn:aws:iam::000000000000:policy/non-existent-policy was not found.", "DeletePolicy", "PolicyArn", "arn:aws:iam::000000000000:policy/non-existent-policy")
}

func TestUsersAndGroups(t *testing.T) {
	r := newRig(t)
	r.ok("CreateUser", "UserName", "bob")
	r.ok("CreateGroup", "GroupName", "devs")
	r.ok("AddUserToGroup", "GroupName", "devs", "UserName", "bob")
	r.ok("PutGroupPolicy", "GroupName", "devs", "PolicyName", "p", "PolicyDocument", allowInvoke)
	key := r.ok("CreateAccessKey", "UserName", "bob")
	id, secret := between(key, "<AccessKeyId>", "<"), between(key, "<SecretAccessKey>", "<")
	r.ok("CreateAccessKey", "UserName", "bob")
	r.fails(409, "LimitExceeded", "Cannot exceed quota for AccessKeysPerUser: 2", "CreateAccessKey", "UserName", "bob")
	r.start()
	got, who, ok := r.reg.UserKey(id)
	if !ok || got != secret || who.ARN != "arn:aws:iam::000000000000:user/bob" || who.UserName != "bob" {
		t.Fatalf("%s is %+v, %v", id, who, ok)
	}
	ask := &policy.Request{Principal: policy.Principal{Account: account, ARN: who.ARN}, Action: "lambda:InvokeFunction", Resource: "*"}
	if d := policy.Evaluate(who.Grants, ask); !d.Allowed {
		t.Errorf("by the group: %+v", d)
	}
	// A boundary narrows at once.
	r.ok("CreatePolicy", "PolicyName", "b", "PolicyDocument", strings.Replace(allowInvoke, "lambda:InvokeFunction", "s3:*", 1))
	r.ok("PutUserPermissionsBoundary", "UserName", "bob", "PermissionsBoundary", "arn:aws:iam::000000000000:policy/b")
	_, who, _ = r.reg.UserKey(id)
	if d := policy.Evaluate(who.Grants, ask); d.Allowed || d.By != policy.Boundary {
		t.Errorf("beyond the boundary: %+v", d)
	}
	r.fails(409, "DeleteConflict", "Cannot delete a policy attached to entities.", "DeletePolicy", "PolicyArn", "arn:aws:iam::000000000000:policy/b")
	r.ok("DeleteUserPermissionsBoundary", "UserName", "bob")
	r.ok("UpdateAccessKey", "UserName", "bob", "AccessKeyId", id, "Status", "Inactive")
	if _, _, ok := r.reg.UserKey(id); ok {
		t.Error("an inactive key is good")
	}
	if body := r.ok("ListAccessKeys", "UserName", "bob"); !strings.Contains(body, "<Status>Inactive</Status>") || strings.Contains(body, "Secret") {
		t.Error(body)
	}
	r.fails(409, "DeleteConflict", "Cannot delete entity, must delete access keys first.", "DeleteUser", "UserName", "bob")
	r.fails(409, "DeleteConflict", "Cannot delete entity, must remove users from group first.", "DeleteGroup", "GroupName", "devs")
	if body := r.ok("GetGroup", "GroupName", "devs"); !strings.Contains(body, "<UserName>bob</UserName>") {
		t.Error(body)
	}
	if body := r.ok("ListGroupsForUser", "UserName", "bob"); !strings.Contains(body, "<GroupName>devs</GroupName>") {
		t.Error(body)
	}
}

func TestManagedPolicies(t *testing.T) {
	r := newRig(t)
	const arn = "arn:aws:iam::000000000000:policy/p"
	r.ok("CreatePolicy", "PolicyName", "p", "PolicyDocument", allowInvoke)
	r.fails(409, "EntityAlreadyExists", "A policy called p already exists. Duplicate names are not allowed.", "CreatePolicy", "PolicyName", "p", "PolicyDocument", allowInvoke)
	r.fails(400, "MalformedPolicyDocument", "Syntax errors in policy.", "CreatePolicy", "PolicyName", "q", "PolicyDocument", "{")
	for range 4 {
		r.ok("CreatePolicyVersion", "PolicyArn", arn, "PolicyDocument", allowInvoke, "SetAsDefault", "true")
	}
	r.fails(409, "LimitExceeded", "A managed policy can have up to 5 versions. Before you create a new version, you must delete an existing version.",
		"CreatePolicyVersion", "PolicyArn", arn, "PolicyDocument", allowInvoke)
	r.fails(409, "DeleteConflict", "Cannot delete the default version of a policy.", "DeletePolicyVersion", "PolicyArn", arn, "VersionId", "v5")
	r.ok("DeletePolicyVersion", "PolicyArn", arn, "VersionId", "v1")
	r.ok("SetDefaultPolicyVersion", "PolicyArn", arn, "VersionId", "v3")
	if body := r.ok("GetPolicy", "PolicyArn", arn); !strings.Contains(body, "<DefaultVersionId>v3</DefaultVersionId>") {
		t.Error(body)
	}
	r.ok("CreatePolicyVersion", "PolicyArn", arn, "PolicyDocument", allowInvoke) // v6: numbers are not used again
	if body := r.ok("GetPolicyVersion", "PolicyArn", arn, "VersionId", "v6"); !strings.Contains(body, "<IsDefaultVersion>false</IsDefaultVersion>") {
		t.Error(body)
	}
	r.ok("CreateRole", "RoleName", "r", "AssumeRolePolicyDocument", trustLambda)
	r.ok("AttachRolePolicy", "RoleName", "r", "PolicyArn", arn)
	if body := r.ok("ListEntitiesForPolicy", "PolicyArn", arn); !strings.Contains(body, "<RoleName>r</RoleName>") {
		t.Error(body)
	}
	if body := r.ok("ListPolicies", "Scope", "Local"); strings.Count(body, "<Arn>") != 1 || !strings.Contains(body, "<AttachmentCount>1</AttachmentCount>") {
		t.Error(body)
	}
	// Those that templates name are there, and each can be read and evaluated.
	for _, name := range []string{"service-role/AWSLambdaBasicExecutionRole", "service-role/AWSLambdaVPCAccessExecutionRole", "service-role/AWSLambdaSQSQueueExecutionRole",
		"service-role/AWSLambdaKinesisExecutionRole", "service-role/AWSLambdaDynamoDBExecutionRole", "AWSXrayWriteOnlyAccess",
		"CloudWatchLambdaInsightsExecutionRolePolicy", "AdministratorAccess", "AWSLambda_FullAccess"} {
		r.ok("GetPolicy", "PolicyArn", "arn:aws:iam::aws:policy/"+name)
	}
	for arn, m := range awsPolicies() {
		if _, err := policy.Parse(m.version(m.Default).Document, policy.ForIdentity); err != nil {
			t.Errorf("%s: %v", arn, err)
		}
	}
}

func TestPagesAndLimits(t *testing.T) {
	r := newRig(t)
	for i := range 7 {
		r.ok("CreateRole", "RoleName", fmt.Sprintf("r%d", i), "AssumeRolePolicyDocument", trustLambda)
	}
	var names []string
	for marker, n := "", 0; n < 10; n++ {
		params := []string{"MaxItems", "3"}
		if marker != "" {
			params = append(params, "Marker", marker)
		}
		body := r.ok("ListRoles", params...)
		for _, part := range strings.Split(body, "<RoleName>")[1:] {
			name, _, _ := strings.Cut(part, "<")
			names = append(names, name)
		}
		if strings.Contains(body, "<IsTruncated>false</IsTruncated>") {
			break
		}
		marker = between(body, "<Marker>", "<")
	}
	if strings.Join(names, " ") != "r0 r1 r2 r3 r4 r5 r6" {
		t.Errorf("pages hold %v", names)
	}
	long := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"lambda:InvokeFunction","Resource":"arn:aws:lambda:*:*:function:` + strings.Repeat("x", 10300) + `"}]}`
	r.fails(409, "LimitExceeded", "Maximum policy size of 10240 bytes exceeded for role r0", "PutRolePolicy", "RoleName", "r0", "PolicyName", "p", "PolicyDocument", long)
	r.fails(409, "LimitExceeded", "Cannot exceed quota for PolicySize: 6144", "CreatePolicy", "PolicyName", "p", "PolicyDocument", long)
	if body := r.ok("ListRolePolicies", "RoleName", "r0"); !strings.Contains(body, "<PolicyNames></PolicyNames>") {
		t.Error(body)
	}
}

func TestSimulation(t *testing.T) {
	r := newRig(t)
	r.ok("CreateRole", "RoleName", "r", "AssumeRolePolicyDocument", trustLambda)
	r.ok("PutRolePolicy", "RoleName", "r", "PolicyName", "p", "PolicyDocument", allowInvoke)
	body := r.ok("SimulatePrincipalPolicy", "PolicySourceArn", "arn:aws:iam::000000000000:role/r", "ActionNames.member.1", "lambda:InvokeFunction", "ActionNames.member.2", "s3:GetObject")
	if !strings.Contains(body, "<EvalDecision>allowed</EvalDecision>") || !strings.Contains(body, "<EvalDecision>implicitDeny</EvalDecision>") ||
		!strings.Contains(body, "<SourcePolicyId>arn:aws:iam::000000000000:role/r inline policy p</SourcePolicyId>") {
		t.Error(body)
	}
}

// TestBegin holds what a first start makes, once.
func TestBegin(t *testing.T) {
	r := newRig(t)
	old := "arn:aws:iam::000000000000:role/service-role/old"
	if err := r.reg.Begin(t.Context(), account, []string{old, "arn:aws:iam::000000000000:role/any"}); err != nil {
		t.Fatal(err)
	}
	if r.reg.Role(old) == nil || r.reg.Role("arn:aws:iam::000000000000:role/any") == nil {
		t.Fatal("roles are missing")
	}
	r.ok("DetachRolePolicy", "RoleName", "any", "PolicyArn", basic)
	r.ok("DetachRolePolicy", "RoleName", "any", "PolicyArn", "arn:aws:iam::aws:policy/service-role/AWSLambdaRole")
	r.ok("DeleteRole", "RoleName", "any")
	r.start()
	if err := r.reg.Begin(t.Context(), account, nil); err != nil || r.reg.Role("arn:aws:iam::000000000000:role/any") != nil {
		t.Errorf("a role that was deleted is there again: %v", err)
	}
	if r.reg.Lenient().Role("arn:aws:iam::000000000000:role/any") == nil {
		t.Error("where every key is accepted, no role is missing")
	}
}

func TestExplain(t *testing.T) {
	r := newRig(t)
	r.ok("CreateRole", "RoleName", "r", "AssumeRolePolicyDocument", trustLambda)
	r.ok("PutRolePolicy", "RoleName", "r", "PolicyName", "p", "PolicyDocument",
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"},{"Sid":"NoDelete","Effect":"Deny","Action":"lambda:Delete*","Resource":"*"}]}`)
	x, err := r.reg.Explain(Question{Principal: "arn:aws:sts::000000000000:assumed-role/r/f", Action: "lambda:DeleteFunction", Resource: "arn:aws:lambda:us-east-1:000000000000:function:f"})
	if err != nil || x.Allowed || !x.Explicit || x.Statement != 2 || x.SID != "NoDelete" || x.Document != "arn:aws:iam::000000000000:role/r inline policy p" ||
		!strings.Contains(x.Text, "NoDelete") || x.Because != "with an explicit deny in an identity-based policy" {
		t.Errorf("%+v, %v", x, err)
	}
	if _, err := r.reg.Explain(Question{Principal: "arn:aws:iam::000000000000:role/none", Action: "a:b"}); err == nil {
		t.Error("a role that is not there was explained")
	}
}
