package iam

import (
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/policy"
)

// A Question is a call that was or could be made.
type Question struct {
	Principal string        `json:"principal"` // ARN of a user, a role, a role's session or an account's root
	Action    string        `json:"action"`
	Resource  string        `json:"resource"` // ARN, or *
	Keys      policy.KeySet `json:"-"`        // by name in lower case, beyond those of the principal
	// Policy is the one on the resource, or nil. That of a role is known.
	Policy *policy.Document `json:"-"`
}

// An Explanation is the answer, from the policies of this moment.
type Explanation struct {
	Question
	Allowed   bool     `json:"allowed"`
	Explicit  bool     `json:"explicitDeny"`
	DecidedBy string   `json:"decidedBy"` // kind of policy
	Document  string   `json:"policy,omitempty"`
	Statement int      `json:"statement,omitempty"` // from 1
	SID       string   `json:"sid,omitempty"`
	Text      string   `json:"text,omitempty"` // of the statement
	Because   string   `json:"because"`
	Policies  []string `json:"policies"` // that were looked at
}

// Explain says whether a call is allowed and what decides.
func (r *Registry) Explain(q Question) (*Explanation, error) {
	p, g, keys, err := r.identify(q.Principal)
	if err != nil {
		return nil, err
	}
	for k, v := range q.Keys {
		keys[k] = v
	}
	if q.Resource == "" {
		q.Resource = "*"
	}
	ask := &policy.Request{Principal: p, Action: q.Action, Resource: q.Resource, Keys: keys, Policy: q.Policy}
	if parts := strings.SplitN(q.Resource, ":", 6); len(parts) == 6 && len(parts[4]) == 12 {
		ask.Account = parts[4]
	}
	x := &Explanation{Question: q, Policies: []string{}}
	if role := r.Role(q.Resource); role != nil && strings.HasPrefix(strings.ToLower(q.Action), "sts:") {
		ask.Policy, ask.Trust = role.Trust, true
	}
	docs := append([]*policy.Document(nil), g.Identity...)
	for _, d := range []*policy.Document{g.Boundary, ask.Policy} {
		if d != nil {
			docs = append(docs, d)
		}
	}
	d := policy.Evaluate(g, ask)
	for _, doc := range docs {
		x.Policies = append(x.Policies, doc.Name)
		if doc.Name == d.Policy {
			x.Text = doc.Statement(d.Statement)
		}
	}
	x.Allowed, x.Explicit, x.DecidedBy, x.Document, x.Statement, x.SID = d.Allowed, d.Explicit, string(d.By), d.Policy, d.Statement, d.SID
	switch {
	case d.Allowed && p.Root && d.Statement == 0:
		x.Because = "the root of an account may do everything in it"
	case d.Allowed:
		x.Because = "a statement of the " + x.DecidedBy + " allows it, and nothing denies it"
	default:
		x.Because = d.Because(q.Action)
	}
	return x, nil
}

// identify finds the principal of an ARN, its policies, and the condition keys that
// come with it.
func (r *Registry) identify(arn string) (policy.Principal, *policy.Grants, policy.KeySet, error) {
	at := time.Now().UTC()
	keys := policy.KeySet{"aws:currenttime": {at.Format(time.RFC3339)}, "aws:epochtime": nil, "aws:principalarn": {arn}}
	missing := lambdad.Errorf("NoSuchEntity", "There is no user or role %s: give the ARN of a user, a role, a role's session (arn:aws:sts::<account>:assumed-role/<role>/<session>) or an account's root.", arn)
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) != 6 || parts[0] != "arn" || len(parts[4]) != 12 {
		return policy.Principal{}, nil, nil, missing
	}
	account, rest := parts[4], parts[5]
	keys["aws:principalaccount"] = []string{account}
	if rest == "root" {
		return policy.Principal{Account: account, ARN: arn, Root: true}, &policy.Grants{}, keys, nil
	}
	k, name, _ := strings.Cut(rest, "/")
	session := ""
	if k == "assumed-role" {
		name, session, _ = strings.Cut(name, "/")
		k = string(role)
	}
	if k != string(user) && k != string(role) {
		return policy.Principal{}, nil, nil, missing
	}
	e, err := r.entity(account, kind(k), name[strings.LastIndexByte(name, '/')+1:])
	if err != nil || session == "" && e.arn() != arn {
		return policy.Principal{}, nil, nil, missing
	}
	r.mu.RLock()
	c := r.compile(e)
	r.mu.RUnlock()
	for tag, value := range c.tags {
		keys["aws:principaltag/"+tag] = []string{value}
	}
	p := policy.Principal{Account: account, ARN: arn}
	if e.Kind == role {
		p.Role = e.arn()
		keys["aws:principalarn"] = []string{p.Role}
		keys["aws:principaltype"] = []string{"AssumedRole"}
		keys["aws:userid"] = []string{e.ID + ":" + session}
	} else {
		keys["aws:username"], keys["aws:userid"] = []string{e.Name}, []string{e.ID}
		keys["aws:principaltype"] = []string{"User"}
	}
	return p, c.grants, keys, nil
}
