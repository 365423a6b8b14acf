package sts

import (
	"context"
	"encoding/xml"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/policy"
)

const roleARN = "arn:aws:iam::000000000000:role/r"

// directory has one role, which trusts the account and may do what grants say.
type directory struct{ trust string }

func (directory) UserKey(string) (string, aws.Identity, bool)      { return "", aws.Identity{}, false }
func (directory) User(string, string, string) (aws.Identity, bool) { return aws.Identity{}, false }
func (d directory) Role(arn string) *aws.Role {
	if arn != roleARN {
		return nil
	}
	return &aws.Role{
		ARN: arn, ID: "AROAX", Name: "r", Account: "000000000000", MaxSession: 2 * time.Hour,
		Trust:  policy.MustParse("trust", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":`+d.trust+`,"Action":["sts:AssumeRole","sts:TagSession"]}}`, policy.ForTrust),
		Grants: &policy.Grants{Identity: []*policy.Document{policy.MustParse("p", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`, policy.ForIdentity)}},
	}
}

// ask calls the service as somebody.
func ask(t *testing.T, s *Service, id aws.Identity, params ...string) (int, string) {
	t.Helper()
	form := url.Values{"Version": {"2011-06-15"}}
	for i := 0; i < len(params); i += 2 {
		form.Set(params[i], params[i+1])
	}
	r := httptest.NewRequest("POST", "/", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+id.AccessKeyID+"/20260101/us-east-1/sts/aws4_request, SignedHeaders=host, Signature="+strings.Repeat("0", 64))
	w := httptest.NewRecorder()
	aws.NewMux(known{id}, aws.Options{Auth: aws.Any}, s).ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// known knows one identity.
type known struct{ id aws.Identity }

func (k known) Lookup(context.Context, string, string) (string, aws.Identity, error) {
	return "", k.id, nil
}

func TestAssumeRole(t *testing.T) {
	keys, err := aws.OpenKeyStore(t.TempDir(), directory{`{"AWS":"000000000000"}`})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s := New(Config{Keys: keys, Roles: directory{`{"AWS":"000000000000"}`}, Now: func() time.Time { return now }})
	root := aws.Identity{Account: "000000000000", AccessKeyID: "AKIAX", ARN: "arn:aws:iam::000000000000:root", UserID: "000000000000", Admin: true}

	status, body := ask(t, s, root, "Action", "AssumeRole", "RoleArn", roleARN, "RoleSessionName", "s1",
		"Policy", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"s3:GetObject","Resource":"*"}}`)
	var out struct {
		Result struct {
			Credentials struct {
				AccessKeyID  string `xml:"AccessKeyId"`
				Secret       string `xml:"SecretAccessKey"`
				SessionToken string
				Expiration   time.Time
			}
			AssumedRoleUser struct{ Arn, AssumedRoleId string }
		} `xml:"AssumeRoleResult"`
	}
	if err := xml.Unmarshal([]byte(body), &out); err != nil || status != 200 {
		t.Fatalf("%d %s, %v", status, body, err)
	}
	c := out.Result.Credentials
	if out.Result.AssumedRoleUser.Arn != "arn:aws:sts::000000000000:assumed-role/r/s1" || out.Result.AssumedRoleUser.AssumedRoleId != "AROAX:s1" ||
		!strings.HasPrefix(c.AccessKeyID, "ASIA") || c.Expiration.Sub(now).Round(time.Minute) != time.Hour {
		t.Errorf("%+v", out)
	}
	secret, id, err := keys.Lookup(t.Context(), c.AccessKeyID, c.SessionToken)
	if err != nil || secret != c.Secret || id.Role != roleARN || id.Admin || id.Grants == nil || len(id.Grants.Session) != 1 {
		t.Fatalf("%+v, %v", id, err)
	}
	// A token that was changed anywhere, or of another key, is none.
	for i := range len(c.SessionToken) {
		b := []byte(c.SessionToken)
		b[i] ^= 1
		if _, _, err := keys.Lookup(t.Context(), c.AccessKeyID, string(b)); err == nil && strings.TrimRight(string(b), "=") != strings.TrimRight(c.SessionToken, "=") {
			t.Fatalf("a token changed at %d is good", i)
		}
	}
	if _, _, err := keys.Lookup(t.Context(), "ASIAOTHER", c.SessionToken); err == nil {
		t.Error("the token of another key is good")
	}

	for _, tt := range []struct {
		name, text string
		id         aws.Identity
		roles      aws.Directory
		params     []string
		want       string
	}{
		{"no such role", "", root, nil, []string{"RoleArn", "arn:aws:iam::000000000000:role/none", "RoleSessionName", "s1"},
			"User: arn:aws:iam::000000000000:root is not authorized to perform: sts:AssumeRole on resource: arn:aws:iam::000000000000:role/none"},
		{"session name", "", root, nil, []string{"RoleArn", "arn:a:b:::something/test-role", "RoleSessionName", "Session1:2"},
			`1 validation error detected: Value &#39;Session1:2&#39; at &#39;roleSessionName&#39; failed to satisfy constraint: Member must satisfy regular expression pattern: [\w+=,.@-]*`},
		{"no partition", "", root, nil, []string{"RoleArn", "arn::b:::something/test-role", "RoleSessionName", "Session1"}, "arn::b:::something/test-role is invalid"},
		{"no service", "", root, nil, []string{"RoleArn", "arn:a::::something/test-role", "RoleSessionName", "Session1"}, "arn:a::::something/test-role is invalid"},
		{"colons", "", root, nil, []string{"RoleArn", "arn:a:::something/test-role", "RoleSessionName", "Session1"}, "arn:a:::something/test-role is invalid"},
		{"no resource", "", root, nil, []string{"RoleArn", "arn:a:a::aaaaaaaaaa:", "RoleSessionName", "Session1"}, "arn:a:a::aaaaaaaaaa: is invalid"},
		{"no ARN", "", root, nil, []string{"RoleArn", "nothing-valid-in-here", "RoleSessionName", "Session1"}, "nothing-valid-in-here is invalid"},
		{"too long", "", root, nil, []string{"RoleArn", roleARN, "RoleSessionName", "s1", "DurationSeconds", "10800"}, "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."},
		{"twice the same tag", "", root, nil, []string{"RoleArn", roleARN, "RoleSessionName", "s1", "Tags.member.1.Key", "Tag", "Tags.member.1.Value", "a", "Tags.member.2.Key", "tag", "Tags.member.2.Value", "b", "TransitiveTagKeys.member.1", "tag"},
			"Duplicate tag keys found. Please note that Tag keys are case insensitive."},
		{"transitive tag without tag", "", root, nil, []string{"RoleArn", roleARN, "RoleSessionName", "s1", "Tags.member.1.Key", "Tag", "Tags.member.1.Value", "a", "TransitiveTagKeys.member.1", "other"},
			"The specified transitive tag key must be included in the requested tags."},
		{"transitive tag overridden", "", aws.Identity{Account: "000000000000", ARN: "x", Role: roleARN, Transitive: []string{"tag"}, AccessKeyID: "ASIAX"}, nil,
			[]string{"RoleArn", roleARN, "RoleSessionName", "s1", "Tags.member.1.Key", "Tag", "Tags.member.1.Value", "a"},
			"One of the specified transitive tag keys can&#39;t be set because it conflicts with a transitive tag key from the calling session."},
	} {
		if status, body := ask(t, s, tt.id, append([]string{"Action", "AssumeRole"}, tt.params...)...); status/100 != 4 || !strings.Contains(body, "<Message>"+tt.want+"</Message>") {
			t.Errorf("%s: %d %s", tt.name, status, body)
		}
	}
}

// TestSessions: expiry, and the session of the account's root.
func TestSessions(t *testing.T) {
	keys := aws.NewKeyStore()
	begun := time.Now().Add(-time.Hour)
	s := New(Config{Keys: keys, Now: func() time.Time { return begun }})
	issue := func(life time.Duration) lambdad.Credentials {
		c, err := keys.Issue(aws.Session{Account: "000000000000", ARN: "arn:aws:iam::000000000000:root", Issued: begun, Expires: begun.Add(life)})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	over := issue(time.Minute)
	if _, _, err := keys.Lookup(t.Context(), over.AccessKeyID, over.SessionToken); err != aws.ErrExpiredKey {
		t.Errorf("after its end: %v", err)
	}
	good := issue(2 * time.Hour)
	if _, id, err := keys.Lookup(t.Context(), good.AccessKeyID, good.SessionToken); err != nil || !id.Admin {
		t.Errorf("%+v, %v", id, err)
	}
	session := aws.Identity{Account: "000000000000", AccessKeyID: "ASIAX", ARN: "x", Issued: begun}
	if status, body := ask(t, s, session, "Action", "GetSessionToken"); status != 403 || !strings.Contains(body, "Cannot call GetSessionToken with session credentials") {
		t.Errorf("%d %s", status, body)
	}
}
