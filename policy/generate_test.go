package policy

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// A generator makes cases whose parts meet often: a small world of names, some of
// which are patterns of others.
type generator struct{ *rand.Rand }

func newGenerator(seed uint64) *generator { return &generator{rand.New(rand.NewPCG(seed, 1))} }

// A testCase is one question with its policies as text.
type testCase struct {
	Principal string              `json:"principal"`
	Action    string              `json:"action"`
	Resource  string              `json:"resource"`
	Account   string              `json:"account"`
	Context   map[string][]string `json:"context"`
	Identity  []string            `json:"identity"`
	Boundary  string              `json:"boundary,omitempty"`
	Session   string              `json:"session,omitempty"`
	Policy    string              `json:"policy,omitempty"`
}

func (g *generator) pick(list ...string) string { return list[g.IntN(len(list))] }

func (g *generator) testCase() testCase {
	c := testCase{
		Principal: g.pick(alice, alice, session, session, "arn:aws:iam::222222222222:user/bob"),
		Context:   map[string][]string{},
		Account:   "111111111111",
	}
	c.Action, c.Resource = g.question()
	for _, k := range []struct {
		key    string
		values []string
	}{
		{"aws:username", []string{"alice", "bob"}}, {"aws:SourceIp", []string{"203.0.113.7", "10.1.2.3"}},
		{"aws:SecureTransport", []string{"true", "false"}}, {"aws:CurrentTime", []string{"2025-06-01T00:00:00Z", "2026-06-01T00:00:00Z"}},
		{"aws:PrincipalTag/team", []string{"red", "blue"}}, {"aws:MultiFactorAuthAge", []string{"5", "500"}},
		{"aws:SourceArn", []string{fn, "arn:aws:s3:::bucket"}},
	} {
		if g.IntN(3) > 0 {
			c.Context[k.key] = []string{g.pick(k.values...)}
		}
	}
	for _, k := range []string{"aws:CalledVia", "aws:PrincipalOrgPaths"} {
		if n := g.IntN(4); n > 0 {
			for i := range n {
				c.Context[k] = append(c.Context[k], []string{"a.amazonaws.com", "b.amazonaws.com", "c.amazonaws.com"}[(i+g.IntN(2))%3])
			}
		}
	}
	for range g.IntN(4) {
		c.Identity = append(c.Identity, g.document(false))
	}
	if g.IntN(4) == 0 {
		c.Boundary = g.document(false)
	}
	if strings.Contains(c.Principal, "assumed-role") && g.IntN(4) == 0 {
		c.Session = g.document(false)
	}
	if strings.Contains(c.Principal, "222222222222") || g.IntN(3) == 0 {
		c.Policy = g.document(true)
	}
	return c
}

func (g *generator) question() (action, resource string) {
	if g.IntN(2) == 0 {
		return g.pick("s3:GetObject", "s3:PutObject", "s3:DeleteObject"),
			"arn:aws:s3:::" + g.pick("bucket/a", "bucket/alice/x", "bucket/bob/x", "other/a")
	}
	return g.pick("lambda:InvokeFunction", "lambda:GetFunction", "lambda:DeleteFunction"),
		g.pick(fn, strings.TrimSuffix(fn, "f")+"g")
}

func (g *generator) document(principal bool) string {
	var list []string
	for range 1 + g.IntN(3) {
		list = append(list, g.statement(g.pick("Allow", "Allow", "Allow", "Deny"), principal))
	}
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(list, ",") + `]}`
}

func (g *generator) list(n int, f func() string) string {
	set := map[string]bool{}
	for range 1 + g.IntN(n) {
		set[f()] = true
	}
	list := []string{}
	for k := range set {
		list = append(list, k)
	}
	if len(list) == 1 && g.IntN(2) == 0 {
		return fmt.Sprintf("%q", list[0])
	}
	b, _ := json.Marshal(list)
	return string(b)
}

func (g *generator) statement(effect string, principal bool) string {
	not := func(name string, odds int) string {
		if g.IntN(odds) == 0 {
			return "Not" + name
		}
		return name
	}
	s := `{"Effect":"` + effect + `"`
	if principal {
		who := `"*"`
		if g.IntN(6) > 0 {
			who = `{"AWS":` + g.list(2, func() string {
				return g.pick(alice, worker, session, "arn:aws:iam::111111111111:root", "222222222222",
					"arn:aws:iam::222222222222:user/bob", "arn:aws:iam::222222222222:root")
			}) + `}`
		}
		s += `,"Principal":` + who
	}
	s += `,"` + not("Action", 6) + `":` + g.list(2, func() string {
		return g.pick("*", "*", "s3:*", "s3:Get*", "s3:PutObject", "S3:getobject", "lambda:*", "lambda:Invoke*", "lambda:GetFunction", "lambda:?nvokeFunction")
	})
	s += `,"` + not("Resource", 6) + `":` + g.list(2, func() string {
		return g.pick("*", "*", "arn:aws:s3:::*", "arn:aws:s3:::bucket/*", "arn:aws:s3:::bucket/${aws:username}/*", "arn:aws:s3:::*/a", "arn:aws:s3:::bucket/?",
			fn, fn+":*", fn+"*", "arn:aws:lambda:*:111111111111:function:*", "arn:aws:s3:::bucket/${aws:PrincipalTag/team, 'bob'}/x")
	})
	if g.IntN(3) == 0 {
		return s + "}"
	}
	conditions := map[string]map[string]any{}
	for range 1 + g.IntN(2) {
		op, key, values := g.condition()
		if conditions[op] == nil {
			conditions[op] = map[string]any{}
		}
		conditions[op][key] = values
	}
	b, _ := json.Marshal(conditions)
	return s + `,"Condition":` + string(b) + "}"
}

func (g *generator) condition() (op, key string, values any) {
	some := func(list ...string) []string {
		out := []string{}
		for range 1 + g.IntN(2) {
			out = append(out, g.pick(list...))
		}
		return out
	}
	ifExists := ""
	if g.IntN(4) == 0 {
		ifExists = "IfExists"
	}
	switch g.IntN(9) {
	case 0:
		return g.pick("StringEquals", "StringNotEquals", "StringEqualsIgnoreCase", "StringNotEqualsIgnoreCase") + ifExists,
			g.pick("aws:username", "aws:PrincipalTag/team"), some("alice", "BOB", "bob", "red", "Blue", "${aws:username}")
	case 1:
		return g.pick("StringLike", "StringNotLike") + ifExists, g.pick("aws:username", "aws:PrincipalTag/team"), some("a*", "?ob", "*e*", "${aws:PrincipalTag/team}")
	case 2:
		return g.pick("IpAddress", "NotIpAddress") + ifExists, "aws:SourceIp", some("203.0.113.0/24", "10.0.0.0/8", "10.1.2.3", "192.0.2.1/32")
	case 3:
		return "Bool" + ifExists, "aws:SecureTransport", some("true", "false")
	case 4:
		return g.pick("DateLessThan", "DateGreaterThan", "DateGreaterThanEquals", "DateEquals", "DateNotEquals", "DateLessThanEquals") + ifExists, "aws:CurrentTime",
			some("2026-01-01T00:00:00Z", "2025-06-01T00:00:00Z", "2024-01-01T00:00:00Z")
	case 5:
		return g.pick("NumericLessThan", "NumericGreaterThan", "NumericEquals", "NumericNotEquals", "NumericLessThanEquals", "NumericGreaterThanEquals") + ifExists,
			"aws:MultiFactorAuthAge", some("5", "100", "500")
	case 6:
		return "Null", g.pick("aws:username", "aws:SourceIp", "aws:CalledVia"), g.pick("true", "false")
	case 7:
		return g.pick("ArnLike", "ArnEquals", "ArnNotLike", "ArnNotEquals") + ifExists, "aws:SourceArn",
			some(fn, "arn:aws:s3:::*", "arn:aws:lambda:*:*:function:*", "arn:aws:lambda:us-east-1:111111111111:function:g")
	default:
		return g.pick("ForAllValues:", "ForAnyValue:") + g.pick("StringEquals", "StringNotEquals", "StringLike", "StringNotLike"), g.pick("aws:CalledVia", "aws:PrincipalOrgPaths"),
			some("a.amazonaws.com", "b.amazonaws.com", "b*", "*.amazonaws.com")
	}
}

// build parses the case.
func (c *testCase) build(t testing.TB) (*Grants, *Request) {
	t.Helper()
	parse := func(text string, form Form) *Document {
		if text == "" {
			return nil
		}
		d, err := Parse(text, form)
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		return d
	}
	g := &Grants{Boundary: parse(c.Boundary, ForIdentity)}
	for _, text := range c.Identity {
		g.Identity = append(g.Identity, parse(text, ForIdentity))
	}
	if c.Session != "" {
		g.Session = []*Document{parse(c.Session, ForIdentity)}
	}
	keys := KeySet{}
	for k, v := range c.Context {
		keys[strings.ToLower(k)] = v
	}
	p := Principal{Account: strings.Split(c.Principal, ":")[4], ARN: c.Principal}
	if c.Principal == session {
		p.Role = worker
	}
	return g, &Request{Principal: p, Action: c.Action, Resource: c.Resource, Account: c.Account, Keys: keys, Policy: parse(c.Policy, ForResource)}
}
