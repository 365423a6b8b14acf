package policy

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/lambdad/lambdad"
)

const (
	alice   = "arn:aws:iam::111111111111:user/alice"
	worker  = "arn:aws:iam::111111111111:role/worker"
	session = "arn:aws:sts::111111111111:assumed-role/worker/s1"
	fn      = "arn:aws:lambda:us-east-1:111111111111:function:f"
)

func doc(t testing.TB, form Form, statements ...string) *Document {
	t.Helper()
	d, err := Parse(`{"Version":"2012-10-17","Statement":[`+strings.Join(statements, ",")+`]}`, form)
	if err != nil {
		t.Fatalf("%v in %s", err, statements)
	}
	return d
}

func user() Principal { return Principal{Account: "111111111111", ARN: alice} }

func roleSession() Principal {
	return Principal{Account: "111111111111", ARN: session, Role: worker}
}

// TestEvaluate holds which kinds of policies decide.
func TestEvaluate(t *testing.T) {
	allow := `{"Effect":"Allow","Action":"lambda:InvokeFunction","Resource":"*"}`
	deny := `{"Sid":"No","Effect":"Deny","Action":"*","Resource":"*"}`
	other := `{"Effect":"Allow","Action":"lambda:GetFunction","Resource":"*"}`
	to := func(principal string) string {
		return `{"Effect":"Allow","Principal":` + principal + `,"Action":"lambda:InvokeFunction","Resource":"` + fn + `"}`
	}
	denyTo := func(principal string) string { return strings.Replace(to(principal), "Allow", "Deny", 1) }
	aws := func(arn string) string { return `{"AWS":"` + arn + `"}` }
	tests := []struct {
		name                                  string
		who                                   Principal
		account                               string
		identity, boundary, session, resource string
		want                                  string // allow, deny (explicit) or no; by kind
	}{
		{"nothing", user(), "", "", "", "", "", "no identity-based policy"},
		{"identity", user(), "", allow, "", "", "", "allow identity-based policy"},
		{"explicit deny", user(), "", allow + "," + deny, "", "", "", "deny identity-based policy"},
		{"other action", user(), "", other, "", "", "", "no identity-based policy"},
		{"boundary allows alone", user(), "", "", allow, "", "", "no identity-based policy"},
		{"boundary narrows", user(), "", allow, other, "", "", "no permissions boundary"},
		{"boundary denies", user(), "", allow, deny, "", "", "deny permissions boundary"},
		{"session narrows", roleSession(), "", allow, "", other, "", "no session policy"},
		{"session denies", roleSession(), "", allow, "", allow + "," + deny, "", "deny session policy"},
		{"all three", roleSession(), "", allow, allow, allow, "", "allow identity-based policy"},
		{"resource names the user", user(), "", "", "", "", to(aws(alice)), "allow resource-based policy"},
		{"resource names the user, boundary does not allow", user(), "", "", other, "", to(aws(alice)), "allow resource-based policy"},
		{"resource names the role, boundary does not allow", roleSession(), "", "", other, "", to(aws(worker)), "no permissions boundary"},
		{"resource names the role, session does not allow", roleSession(), "", "", "", other, to(aws(worker)), "no session policy"},
		{"resource names the session", roleSession(), "", "", other, other, to(aws(session)), "allow resource-based policy"},
		{"resource names the account only", user(), "", "", "", "", to(aws("111111111111")), "no identity-based policy"},
		{"resource names the account, identity allows", user(), "", allow, "", "", to(aws("arn:aws:iam::111111111111:root")), "allow identity-based policy"},
		{"resource names everybody", user(), "", "", "", "", to(`"*"`), "allow resource-based policy"},
		{"resource denies", user(), "", allow, "", "", denyTo(aws(alice)), "deny resource-based policy"},
		{"resource denies all but", user(), "", allow, "", "",
			`{"Effect":"Deny","NotPrincipal":` + aws(alice) + `,"Action":"*","Resource":"*"}`, "allow identity-based policy"},
		{"resource denies all but another", user(), "", allow, "", "",
			`{"Effect":"Deny","NotPrincipal":` + aws(alice+"2") + `,"Action":"*","Resource":"*"}`, "deny resource-based policy"},
		{"foreign, identity only", user(), "222222222222", allow, "", "", "", "no resource-based policy"},
		{"foreign, resource only", user(), "222222222222", "", "", "", to(aws(alice)), "no identity-based policy"},
		{"foreign, both", user(), "222222222222", allow, "", "", to(aws("111111111111")), "allow resource-based policy"},
		{"foreign, both, boundary", user(), "222222222222", allow, other, "", to(aws("111111111111")), "no permissions boundary"},
		{"foreign, another account named", user(), "222222222222", allow, "", "", to(aws("333333333333")), "no resource-based policy"},
		{"root", Principal{Account: "111111111111", ARN: "arn:aws:iam::111111111111:root", Root: true}, "", "", "", "", "", "allow identity-based policy"},
		{"root, foreign", Principal{Account: "111111111111", ARN: "arn:aws:iam::111111111111:root", Root: true}, "222222222222", "", "", "", "", "no resource-based policy"},
		{"service", Principal{Service: "s3.amazonaws.com"}, "111111111111", allow, "", "", "", "no resource-based policy"},
		{"service named", Principal{Service: "s3.amazonaws.com"}, "111111111111", "", "", "", to(`{"Service":"s3.amazonaws.com"}`), "allow resource-based policy"},
		{"other service named", Principal{Service: "s3.amazonaws.com"}, "111111111111", "", "", "", to(`{"Service":"sns.amazonaws.com"}`), "no resource-based policy"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := &Grants{}
			if tt.identity != "" {
				g.Identity = []*Document{doc(t, ForIdentity, tt.identity)}
			}
			if tt.boundary != "" {
				g.Boundary = doc(t, ForIdentity, tt.boundary)
			}
			if tt.session != "" {
				g.Session = []*Document{doc(t, ForIdentity, tt.session)}
			}
			r := &Request{Principal: tt.who, Action: "lambda:InvokeFunction", Resource: fn, Account: tt.account}
			if tt.resource != "" {
				r.Policy = doc(t, ForResource, tt.resource)
			}
			d := Evaluate(g, r)
			got := "no "
			switch {
			case d.Allowed:
				got = "allow "
			case d.Explicit:
				got = "deny "
			}
			if got += string(d.By); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
			if d.Explicit && d.Statement == 0 {
				t.Error("an explicit deny names no statement")
			}
		})
	}
}

// TestTrust holds that a role is assumed by whom its trust policy says.
func TestTrust(t *testing.T) {
	trust := func(p string) *Document {
		return doc(t, ForTrust, `{"Effect":"Allow","Principal":`+p+`,"Action":"sts:AssumeRole"}`)
	}
	assume := &Grants{Identity: []*Document{doc(t, ForIdentity, `{"Effect":"Allow","Action":"sts:*","Resource":"*"}`)}}
	for _, tt := range []struct {
		who    Principal
		grants *Grants
		trust  string
		want   bool
	}{
		{user(), assume, `{"Service":"lambda.amazonaws.com"}`, false},
		{user(), assume, `{"AWS":"111111111111"}`, true},
		{user(), nil, `{"AWS":"111111111111"}`, false},
		{user(), nil, `{"AWS":"` + alice + `"}`, true},
		{Principal{Service: "lambda.amazonaws.com"}, nil, `{"Service":["x.amazonaws.com","lambda.amazonaws.com"]}`, true},
		{Principal{Account: "111111111111", ARN: "arn:aws:iam::111111111111:root", Root: true}, nil, `{"Service":"lambda.amazonaws.com"}`, false},
		{Principal{Account: "111111111111", ARN: "arn:aws:iam::111111111111:root", Root: true}, nil, `{"AWS":"111111111111"}`, true},
	} {
		d := Evaluate(tt.grants, &Request{Principal: tt.who, Action: "sts:AssumeRole", Resource: worker, Account: "111111111111", Policy: trust(tt.trust), Trust: true})
		if d.Allowed != tt.want {
			t.Errorf("%+v by %s: %+v", tt.who, tt.trust, d)
		}
	}
}

// TestMatching holds actions, resources, their opposites, wildcards and variables.
func TestMatching(t *testing.T) {
	keys := KeySet{"aws:username": {"alice"}, "aws:principaltag/team": {"a*"}, "aws:many": {"x", "y"}}
	for _, tt := range []struct {
		statement, action, resource string
		want                        bool
	}{
		{`"Action":"LAMBDA:invoke*","Resource":"*"`, "lambda:InvokeFunction", fn, true},
		{`"Action":"lambda:Invoke?unction","Resource":"*"`, "lambda:InvokeFunction", fn, true},
		{`"Action":"lambda:Invoke","Resource":"*"`, "lambda:InvokeFunction", fn, false},
		{`"Action":["s3:*","lambda:*"],"Resource":"*"`, "lambda:InvokeFunction", fn, true},
		{`"Action":"*","Resource":"*"`, "lambda:InvokeFunction", fn, true},
		{`"NotAction":"s3:*","Resource":"*"`, "lambda:InvokeFunction", fn, true},
		{`"NotAction":["lambda:*"],"Resource":"*"`, "lambda:InvokeFunction", fn, false},
		{`"Action":"*","Resource":"` + fn + `"`, "lambda:InvokeFunction", fn, true},
		{`"Action":"*","Resource":"` + fn + `"`, "lambda:InvokeFunction", fn + ":live", false},
		{`"Action":"*","Resource":"` + fn + `:*"`, "lambda:InvokeFunction", fn, false},
		{`"Action":"*","Resource":"` + fn + `*"`, "lambda:InvokeFunction", fn + ":live", true},
		{`"Action":"*","Resource":"arn:aws:lambda:*:function:f"`, "lambda:InvokeFunction", fn, true}, // over colons
		{`"Action":"*","Resource":"` + strings.Replace(fn, ":f", ":F", 1) + `"`, "lambda:InvokeFunction", fn, false},
		{`"Action":"*","NotResource":"` + fn + `"`, "lambda:InvokeFunction", fn, false},
		{`"Action":"*","NotResource":"arn:aws:s3:::*"`, "lambda:InvokeFunction", fn, true},
		{`"Action":"*","Resource":"arn:aws:s3:::home/${aws:username}/*"`, "s3:GetObject", "arn:aws:s3:::home/alice/x", true},
		{`"Action":"*","Resource":"arn:aws:s3:::home/${aws:username}/*"`, "s3:GetObject", "arn:aws:s3:::home/bob/x", false},
		{`"Action":"*","Resource":"arn:aws:s3:::home/${AWS:UserName}/*"`, "s3:GetObject", "arn:aws:s3:::home/alice/x", true},
		{`"Action":"*","Resource":"arn:aws:s3:::${aws:PrincipalTag/team}"`, "s3:GetObject", "arn:aws:s3:::a*", true},
		{`"Action":"*","Resource":"arn:aws:s3:::${aws:PrincipalTag/team}"`, "s3:GetObject", "arn:aws:s3:::ab", false}, // values are no patterns
		{`"Action":"*","Resource":"arn:aws:s3:::${aws:SourceVpc}"`, "s3:GetObject", "arn:aws:s3:::", false},
		{`"Action":"*","Resource":"arn:aws:s3:::${aws:SourceVpc, 'none'}"`, "s3:GetObject", "arn:aws:s3:::none", true},
		{`"Action":"*","NotResource":"arn:aws:s3:::${aws:SourceVpc}"`, "s3:GetObject", "arn:aws:s3:::x", false},
		{`"Action":"*","Resource":"arn:aws:s3:::${aws:many}"`, "s3:GetObject", "arn:aws:s3:::x", false},
		{`"Action":"*","Resource":"arn:aws:s3:::a${*}b${?}c${$}"`, "s3:GetObject", "arn:aws:s3:::a*b?c$", true},
		{`"Action":"*","Resource":"arn:aws:s3:::a${*}b"`, "s3:GetObject", "arn:aws:s3:::axb", false},
		{`"Action":"*","Resource":"arn:aws:s3:::?x"`, "s3:GetObject", "arn:aws:s3:::éx", true},
	} {
		d := doc(t, ForIdentity, `{"Effect":"Allow",`+tt.statement+`}`)
		got := Evaluate(&Grants{Identity: []*Document{d}}, &Request{Principal: user(), Action: tt.action, Resource: tt.resource, Keys: keys})
		if got.Allowed != tt.want {
			t.Errorf("%s of %s by %s: %+v", tt.action, tt.resource, tt.statement, got)
		}
	}
	// Variables have no meaning in the older version.
	old, err := Parse(`{"Version":"2008-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"arn:aws:s3:::${aws:username}"}}`, ForIdentity)
	if err != nil {
		t.Fatal(err)
	}
	for resource, want := range map[string]bool{"arn:aws:s3:::alice": false, "arn:aws:s3:::${aws:username}": true} {
		got := Evaluate(&Grants{Identity: []*Document{old}}, &Request{Principal: user(), Action: "s3:GetObject", Resource: resource, Keys: keys})
		if got.Allowed != want {
			t.Errorf("%s: %+v", resource, got)
		}
	}
}

// TestConditions holds the operators.
func TestConditions(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString([]byte("bytes"))
	keys := KeySet{
		"aws:username": {"alice"}, "aws:sourceip": {"203.0.113.7"}, "aws:epochtime": {"1700000000"},
		"aws:currenttime": {"2026-02-03T04:05:06Z"}, "aws:securetransport": {"false"}, "t:n": {"5"}, "t:bad": {"five"},
		"aws:sourcearn": {fn}, "t:bin": {b64}, "t:list": {"a", "b"}, "t:empty": {}, "t:six": {"2001:db8::1"},
	}
	for _, tt := range []struct {
		condition string
		want      bool
	}{
		{`"StringEquals":{"aws:username":"alice"}`, true},
		{`"stringequals":{"AWS:UserName":"alice"}`, true},
		{`"StringEquals":{"aws:username":["bob","alice"]}`, true},
		{`"StringEquals":{"aws:username":"Alice"}`, false},
		{`"StringEquals":{"aws:username":"al*"}`, false},
		{`"StringEquals":{"aws:username":"${aws:username}"}`, true},
		{`"StringNotEquals":{"aws:username":["bob","carol"]}`, true},
		{`"StringNotEquals":{"aws:username":["bob","alice"]}`, false},
		{`"StringEqualsIgnoreCase":{"aws:username":"ALICE"}`, true},
		{`"StringNotEqualsIgnoreCase":{"aws:username":"ALICE"}`, false},
		{`"StringLike":{"aws:username":"a?i*"}`, true},
		{`"StringNotLike":{"aws:username":"a*"}`, false},
		{`"StringEquals":{"aws:sourcevpc":"v"}`, false},
		{`"StringNotEquals":{"aws:sourcevpc":"v"}`, true},
		{`"StringEqualsIfExists":{"aws:sourcevpc":"v"}`, true},
		{`"StringEqualsIfExists":{"aws:username":"v"}`, false},
		{`"StringEquals":{"aws:username":"alice","aws:sourceip":"no"}`, false}, // AND
		{`"NumericEquals":{"t:n":5}`, true},
		{`"NumericNotEquals":{"t:n":"5.0"}`, false},
		{`"NumericLessThan":{"t:n":"6"}`, true},
		{`"NumericLessThanEquals":{"t:n":"5"}`, true},
		{`"NumericGreaterThan":{"t:n":"5"}`, false},
		{`"NumericGreaterThanEquals":{"t:n":["9","5"]}`, true},
		{`"NumericEquals":{"t:bad":"5"}`, false},
		{`"NumericEquals":{"t:n":"five"}`, false},
		{`"DateGreaterThan":{"aws:CurrentTime":"2026-01-01T00:00:00Z"}`, true},
		{`"DateLessThan":{"aws:CurrentTime":"2026-01-01"}`, false},
		{`"DateLessThanEquals":{"aws:EpochTime":"1700000000"}`, true},
		{`"DateEquals":{"aws:EpochTime":"2023-11-14T22:13:20Z"}`, true},
		{`"DateNotEquals":{"aws:EpochTime":"2023-11-14T22:13:20Z"}`, false},
		{`"DateGreaterThanEquals":{"aws:CurrentTime":"nonsense"}`, false},
		{`"Bool":{"aws:SecureTransport":false}`, true},
		{`"Bool":{"aws:SecureTransport":"True"}`, false},
		{`"BoolIfExists":{"aws:MultiFactorAuthPresent":"true"}`, true},
		{`"Bool":{"aws:MultiFactorAuthPresent":"true"}`, false},
		{`"BinaryEquals":{"t:bin":"` + b64 + `"}`, true},
		{`"BinaryEquals":{"t:bin":"eA=="}`, false},
		{`"IpAddress":{"aws:SourceIp":"203.0.113.0/24"}`, true},
		{`"IpAddress":{"aws:SourceIp":"203.0.113.7"}`, true},
		{`"IpAddress":{"aws:SourceIp":["10.0.0.0/8","203.0.113.8/32"]}`, false},
		{`"NotIpAddress":{"aws:SourceIp":"203.0.113.0/24"}`, false},
		{`"IpAddress":{"t:six":"2001:db8::/32"}`, true},
		{`"ArnEquals":{"aws:SourceArn":"arn:aws:lambda:*:111111111111:function:*"}`, true},
		{`"ArnLike":{"aws:SourceArn":"arn:aws:lambda:*:function:f"}`, false}, // not over colons
		{`"ArnNotLike":{"aws:SourceArn":"arn:aws:lambda:us-*:111111111111:function:f"}`, false},
		{`"ArnNotEquals":{"aws:SourceArn":"arn:aws:s3:::x"}`, true},
		{`"ArnLike":{"aws:username":"arn:*:*:*:*:*"}`, false},
		{`"Null":{"aws:username":"false"}`, true},
		{`"Null":{"aws:sourcevpc":true}`, true},
		{`"Null":{"aws:username":"true"}`, false},
		{`"ForAllValues:StringEquals":{"t:list":["a","b","c"]}`, true},
		{`"ForAllValues:StringEquals":{"t:list":["a"]}`, false},
		{`"ForAllValues:StringEquals":{"t:empty":["a"]}`, true},
		{`"ForAllValues:StringNotEquals":{"t:list":["c"]}`, true},
		{`"ForAllValues:StringNotEquals":{"t:list":["b"]}`, false},
		{`"ForAnyValue:StringEquals":{"t:list":["b","z"]}`, true},
		{`"ForAnyValue:StringEquals":{"t:list":["z"]}`, false},
		{`"ForAnyValue:StringEquals":{"t:empty":["z"]}`, false},
		{`"ForAnyValue:StringNotEquals":{"t:list":["a"]}`, true},
		{`"ForAnyValue:StringLikeIfExists":{"t:empty":["z"]}`, true},
		{`"StringEquals":{"nobody:knows":"x"}`, false},
		{`"StringNotEquals":{"nobody:knows":"x"}`, false}, // an unknown key allows nothing
		{`"StringEqualsIfExists":{"nobody:knows":"x"}`, false},
		{`"Null":{"nobody:knows":"true"}`, false},
	} {
		d := doc(t, ForIdentity, `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{`+tt.condition+`}}`)
		got := Evaluate(&Grants{Identity: []*Document{d}}, &Request{Principal: user(), Action: "a:b", Resource: "*", Keys: keys})
		if got.Allowed != tt.want {
			t.Errorf("%s: %+v", tt.condition, got)
		}
	}
	// An unknown key in a Deny denies.
	d := doc(t, ForIdentity, `{"Effect":"Allow","Action":"*","Resource":"*"}`,
		`{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"StringEquals":{"nobody:knows":"x"}}}`)
	if got := Evaluate(&Grants{Identity: []*Document{d}}, &Request{Principal: user(), Action: "a:b", Resource: "*", Keys: keys}); got.Allowed || !got.Explicit {
		t.Errorf("%+v", got)
	}
}

// TestMalformed holds what is refused, and how.
func TestMalformed(t *testing.T) {
	for _, tt := range []struct {
		form       Form
		text, want string
	}{
		{ForTrust, `{`, "This policy contains invalid Json"},
		{ForIdentity, `{`, "Syntax errors in policy."},
		{ForIdentity, `[]`, "Syntax errors in policy."},
		{ForIdentity, `{"Version":"2012-10-17","Statement":[]}`, "Syntax errors in policy."},
		{ForIdentity, `{"Version":"2020-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`, "The policy must contain a valid version string"},
		{ForIdentity, `{"Statement":[{"Effect":"Allow","Action":"*","Resource":"*","Extra":1}]}`, "Syntax errors in policy."},
		{ForIdentity, `{"Statement":[{"Effect":"Allow","Effect":"Deny","Action":"*","Resource":"*"}]}`, "Syntax errors in policy."},
		{ForIdentity, `{"Statement":[{"Effect":"allow","Action":"*","Resource":"*"}]}`, "Invalid effect: allow"},
		{ForIdentity, `{"Statement":[{"Effect":"Allow","Resource":"*"}]}`, "Policy statement must contain actions."},
		{ForIdentity, `{"Statement":[{"Effect":"Allow","Action":"*"}]}`, "Policy statement must contain resources."},
		{ForIdentity, `{"Statement":[{"Effect":"Allow","Action":"*","NotAction":"a:b","Resource":"*"}]}`, "Policy statement must contain actions."},
		{ForIdentity, `{"Statement":[{"Effect":"Allow","Action":"invoke","Resource":"*"}]}`, "Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc."},
		{ForIdentity, `{"Statement":[{"Effect":"Allow","Action":"*","Resource":"bucket"}]}`, `Resource bucket must be in ARN format or "*".`},
		{ForIdentity, `{"Statement":[{"Effect":"Allow","Action":"*","Resource":"arn:x:s3:::b"}]}`, `Partition "x" is not valid for resource "arn:x:s3:::b".`},
		{ForIdentity, `{"Statement":[{"Effect":"Allow","Action":"*","Resource":"*","Principal":"*"}]}`, "Policy document should not specify a principal."},
		{ForIdentity, `{"Statement":[{"Sid":"a","Effect":"Allow","Action":"*","Resource":"*"},{"Sid":"a","Effect":"Deny","Action":"*","Resource":"*"}]}`, "Statement IDs (SID) in a single policy must be unique."},
		{ForIdentity, `{"Statement":[{"Sid":"a b","Effect":"Allow","Action":"*","Resource":"*"}]}`, "Statement IDs (SID) must be alpha-numeric. Check that your input satisfies the regular expression [0-9A-Za-z]*"},
		{ForIdentity, `{"Statement":[{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringIs":{"a:b":"c"}}}]}`, "Invalid Condition type : StringIs."},
		{ForIdentity, `{"Statement":[{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringEquals":{"a:b":{}}}}]}`, "Syntax errors in policy."},
		{ForIdentity, `{"Statement":[{"Effect":"Allow","Action":"*","Resource":"\u0001"}]}`, "Syntax errors in policy."},
		{ForTrust, `{"Statement":[{"Effect":"Allow","Action":"sts:AssumeRole"}]}`, "Missing required field Principal"},
		{ForTrust, `{"Statement":[{"Effect":"Allow","Principal":"*","Action":"sts:AssumeRole","Resource":"*"}]}`, "Has prohibited field Resource"},
		{ForRepository, `{"Statement":[{"Effect":"Allow","Principal":"*","Action":"ecr:*","Resource":"*"}]}`, "Has prohibited field Resource"},
		{ForRepository, `{"Statement":[{"Effect":"Allow","Action":"ecr:*"}]}`, "Missing required field Principal"},
		{ForTrust, `{"Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:GetObject"}]}`, "AssumeRole policy may only specify STS AssumeRole actions."},
		{ForTrust, `{"Statement":[{"Effect":"Allow","Principal":{"AWS":"alice"},"Action":"sts:AssumeRole"}]}`, `Invalid principal in policy: "AWS":"alice"`},
		{ForTrust, `{"Statement":[{"Effect":"Allow","Principal":{"Service":"lambda"},"Action":"sts:AssumeRole"}]}`, `Invalid principal in policy: "SERVICE":"lambda"`},
	} {
		_, err := Parse(tt.text, tt.form)
		if lambdad.ErrorCode(err) != "MalformedPolicyDocument" || !strings.HasSuffix(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.text, err, tt.want)
		}
	}
}

// TestProperties holds laws of evaluation over generated policies.
func TestProperties(t *testing.T) {
	g := newGenerator(7)
	for i := range 4000 {
		c := g.testCase()
		grants, r := c.build(t)
		before := Evaluate(grants, r)
		fail := func(law string, after Decision) {
			t.Helper()
			t.Fatalf("case %d: %s: before %+v, after %+v\n%+v", i, law, before, after, c)
		}
		if again := Evaluate(grants, r); again != before {
			fail("the same question has one answer", again)
		}
		if before.Allowed && before.Explicit {
			fail("an explicit deny does not allow", before)
		}
		// Another Deny never makes anything allowed; one of everything denies.
		more := *grants
		more.Identity = append([]*Document{doc(t, ForIdentity, g.statement("Deny", false))}, grants.Identity...)
		if after := Evaluate(&more, r); after.Allowed && !before.Allowed {
			fail("a Deny adds nothing", after)
		}
		more.Identity = append([]*Document{doc(t, ForIdentity, `{"Effect":"Deny","Action":"*","Resource":"*"}`)}, grants.Identity...)
		if after := Evaluate(&more, r); after.Allowed {
			fail("Deny of everything denies", after)
		}
		// Another Allow never takes anything away.
		more.Identity = append([]*Document{doc(t, ForIdentity, g.statement("Allow", false))}, grants.Identity...)
		if after := Evaluate(&more, r); before.Allowed && !after.Allowed {
			fail("an Allow takes nothing away", after)
		}
		// A boundary or a session policy never adds.
		more = *grants
		more.Boundary = doc(t, ForIdentity, `{"Effect":"Allow","Action":"*","Resource":"*"}`)
		if after := Evaluate(&more, r); grants.Boundary == nil && after.Allowed != before.Allowed {
			fail("a boundary of everything changes nothing", after)
		}
		more.Boundary = doc(t, ForIdentity, g.statement("Allow", false))
		if after := Evaluate(&more, r); grants.Boundary == nil && after.Allowed && !before.Allowed {
			fail("a boundary adds nothing", after)
		}
		more = *grants
		more.Session = []*Document{doc(t, ForIdentity, g.statement("Allow", false))}
		if after := Evaluate(&more, r); grants.Session == nil && after.Allowed && !before.Allowed {
			fail("a session policy adds nothing", after)
		}
		// The case of action names does not matter.
		upper := *r
		upper.Action = strings.ToUpper(r.Action)
		if after := Evaluate(grants, &upper); after != before {
			fail("case of actions", after)
		}
	}
}

// TestGlob holds that patterns match as a plain recursive matcher says.
func TestGlob(t *testing.T) {
	var slow func(p, s []rune) bool
	slow = func(p, s []rune) bool {
		switch {
		case len(p) == 0:
			return len(s) == 0
		case p[0] == '*':
			return slow(p[1:], s) || len(s) > 0 && slow(p, s[1:])
		case len(s) == 0:
			return false
		case p[0] == '?' || p[0] == s[0]:
			return slow(p[1:], s[1:])
		}
		return false
	}
	g := newGenerator(3)
	text := func(alphabet []string, n int) string {
		var b strings.Builder
		for range g.IntN(n) {
			b.WriteString(alphabet[g.IntN(len(alphabet))])
		}
		return b.String()
	}
	for range 50000 {
		p := text([]string{"a", "b", "é", "*", "?", "*"}, 8)
		s := text([]string{"a", "b", "é"}, 8)
		pat := newPattern(p, false)
		if got, want := pat.match(s), slow([]rune(p), []rune(s)); got != want {
			t.Fatalf("%q against %q: %v", s, p, got)
		}
	}
	// Not exponential.
	pat := newPattern(strings.Repeat("*a", 200)+"b", false)
	if pat.match(strings.Repeat("a", 2000)) {
		t.Error("matched")
	}
}

func BenchmarkEvaluate(b *testing.B) {
	var docs []*Document
	for i := range 10 {
		docs = append(docs, doc(b, ForIdentity, fmt.Sprintf(`{"Effect":"Allow","Action":["s3:Get*","logs:*","lambda:InvokeFunction%d"],"Resource":"arn:aws:s3:::b%d/*"}`, i, i)))
	}
	docs = append(docs, doc(b, ForIdentity, `{"Effect":"Allow","Action":"lambda:InvokeFunction","Resource":"`+fn+`*"}`))
	g := &Grants{Identity: docs}
	r := &Request{Principal: roleSession(), Action: "lambda:InvokeFunction", Resource: fn}
	b.ReportAllocs()
	for b.Loop() {
		if !Evaluate(g, r).Allowed {
			b.Fatal("denied")
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"sts:AssumeRole","Condition":{"ForAnyValue:StringLikeIfExists":{"aws:username":["${aws:username,'x'}",1,true]}}}]}`, 1)
	f.Add(`{"Version":"2012-10-17","Statement":{"Effect":"Deny","NotAction":"a:*","NotResource":"arn:aws:s3:::${aws:userid}"}}`, 0)
	f.Fuzz(func(t *testing.T, text string, form int) {
		d, err := Parse(text, Form(uint(form)%3))
		if err != nil {
			if lambdad.ErrorCode(err) != "MalformedPolicyDocument" {
				t.Fatalf("%v", err)
			}
			return
		}
		keys := KeySet{"aws:username": {"alice"}, "aws:currenttime": {"2026-01-01T00:00:00Z"}}
		for _, p := range []Principal{user(), roleSession(), {Service: "lambda.amazonaws.com"}} {
			Evaluate(&Grants{Identity: []*Document{d}, Boundary: d, Session: []*Document{d}},
				&Request{Principal: p, Action: "sts:AssumeRole", Resource: worker, Policy: d, Keys: keys})
		}
		for i := range d.statements {
			if d.Statement(i+1) == "" {
				t.Errorf("no text of statement %d of %s", i+1, text)
			}
		}
	})
}
