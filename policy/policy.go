// Package policy reads IAM policy documents and evaluates them.
//
// Parse turns a document into a compiled form and refuses what AWS refuses, in its
// words. Evaluate decides one request from all policies that have a say, by
// AWS's documented logic (neighbours.md section 2.4): an explicit deny wins;
// within an account an identity policy or a resource policy must allow; across
// accounts both must; permission boundaries and session policies only narrow. The
// Decision names the statement that decided.
//
// What is not understood never allows: a condition on a key that the caller's Keys
// do not know makes an Allow not apply and a Deny apply.
package policy

import (
	"strings"
	"unicode/utf8"
)

// A Document is a parsed policy. It is immutable.
type Document struct {
	// Name is how decisions call the document: an ARN or a name.
	Name       string
	Text       string // as given
	statements []statement
}

// WithName returns the document under a name.
func (d *Document) WithName(name string) *Document {
	named := *d
	named.Name = name
	return &named
}

type statement struct {
	sid        string
	allow      bool
	actions    []pattern // lower case
	notAction  bool
	resources  []pattern
	notRes     bool
	anyRes     bool // no Resource element: the policy hangs on the resource
	principals *principals
	conditions []condition
}

// A Principal is who asks.
type Principal struct {
	Account string // 12 digits; "" for a service
	// ARN of a user, of an account's root, or of the session of a role
	// (arn:aws:sts::<account>:assumed-role/<role>/<session>).
	ARN string
	// Role is the ARN of the role whose session this is, else "".
	Role string
	// Service is set instead for an AWS service, such as s3.amazonaws.com.
	Service string
	// Root: the account's root user, which needs no identity policy.
	Root bool
}

// Keys are the condition keys of a request.
type Keys interface {
	// Values returns the values of a key, whose name is in lower case. None means
	// that the request does not have the key; known is false if the key is not
	// understood.
	Values(key string) (values []string, known bool)
}

// Grants are the policies that go with a principal.
type Grants struct {
	Identity []*Document
	Boundary *Document // nil: none
	// Session, if not nil, are the policies passed when the session was made.
	Session []*Document
}

// A Request is what is to be decided.
type Request struct {
	Principal Principal
	Action    string // such as lambda:InvokeFunction
	Resource  string // ARN, or * for actions that are about none
	Account   string // of the resource; "" means the principal's
	Keys      Keys   // nil: none is known
	// Policy is the one on the resource, if there is one.
	Policy *Document
	// Trust: the action needs the resource's policy to allow it, as assuming a role
	// does; identity policies alone do not.
	Trust bool
}

// Kind is a kind of policy, in the words of AWS's refusals.
type Kind string

// The kinds of policies.
const (
	Identity Kind = "identity-based policy"
	Resource Kind = "resource-based policy"
	Boundary Kind = "permissions boundary"
	Session  Kind = "session policy"
)

// A Decision is the outcome, and why.
type Decision struct {
	Allowed bool
	// Explicit: a Deny statement applied. If it is false and Allowed is too,
	// nothing of the kind By allowed.
	Explicit bool
	By       Kind
	Policy   string // name of the document; "" for none, and for root
	// Statement is the place of the deciding one in its document, from 1; 0 for
	// none.
	Statement int
	SID       string // its Sid, if it has one
}

// Because is the end of AWS's refusal, such as "because no identity-based policy
// allows the lambda:GetFunction action".
func (d *Decision) Because(action string) string {
	if d.Explicit {
		article := "a"
		if d.By == Identity {
			article = "an"
		}
		return "with an explicit deny in " + article + " " + string(d.By)
	}
	return "because no " + string(d.By) + " allows the " + action + " action"
}

// match says how far a resource policy's statement meets the principal.
type match int

const (
	no      match = iota
	account       // through the account: its own policies must allow, too
	role          // through the role of a session
	direct        // the principal itself
)

// Evaluate decides. Grants may be nil for a principal without policies.
func Evaluate(g *Grants, r *Request) Decision {
	e := evaluation{Request: r, action: lower(r.Action)}
	if g == nil {
		g = &Grants{}
	}
	// Any explicit deny, wherever it is.
	for _, d := range g.Identity {
		if s := e.denies(d); s != 0 {
			return denied(Identity, d, s)
		}
	}
	if s := e.denies(r.Policy); s != 0 {
		return denied(Resource, r.Policy, s)
	}
	if s := e.denies(g.Boundary); s != 0 {
		return denied(Boundary, g.Boundary, s)
	}
	for _, d := range g.Session {
		if s := e.denies(d); s != 0 {
			return denied(Session, d, s)
		}
	}

	resource, how := e.allowsPrincipal(r.Policy)
	if r.Principal.Service != "" {
		if how == no {
			return Decision{By: Resource}
		}
		return allowed(Resource, r.Policy, resource)
	}
	owner := r.Account
	if owner == "" {
		owner = r.Principal.Account
	}
	foreign := owner != r.Principal.Account
	if r.Trust && how == no {
		return Decision{By: Resource}
	}

	identity, by := 0, (*Document)(nil)
	if !r.Principal.Root {
		for _, d := range g.Identity {
			if identity = e.allows(d); identity != 0 {
				by = d
				break
			}
		}
	}
	granted := identity != 0 || r.Principal.Root

	if foreign {
		if how == no {
			return Decision{By: Resource}
		}
		if !granted {
			return Decision{By: Identity}
		}
	} else if !granted {
		switch how {
		case direct:
			// The principal itself: neither boundary nor session policy takes
			// part.
			return allowed(Resource, r.Policy, resource)
		case role:
			if d := e.narrowed(g); d != nil {
				return *d
			}
			return allowed(Resource, r.Policy, resource)
		}
		return Decision{By: Identity}
	}
	if !foreign && how == direct {
		return allowed(Resource, r.Policy, resource)
	}
	if d := e.narrowed(g); d != nil {
		return *d
	}
	if foreign || r.Trust {
		return allowed(Resource, r.Policy, resource)
	}
	return allowed(Identity, by, identity)
}

// narrowed says which of boundary and session policies does not allow.
func (e *evaluation) narrowed(g *Grants) *Decision {
	if g.Boundary != nil && e.allows(g.Boundary) == 0 {
		return &Decision{By: Boundary}
	}
	if g.Session == nil {
		return nil
	}
	for _, d := range g.Session {
		if e.allows(d) != 0 {
			return nil
		}
	}
	return &Decision{By: Session}
}

func denied(by Kind, d *Document, n int) Decision {
	return Decision{Explicit: true, By: by, Policy: d.Name, Statement: n, SID: d.statements[n-1].sid}
}

func allowed(by Kind, d *Document, n int) Decision {
	if d == nil {
		return Decision{Allowed: true, By: by}
	}
	return Decision{Allowed: true, By: by, Policy: d.Name, Statement: n, SID: d.statements[n-1].sid}
}

// evaluation is a request with what is worked out once.
type evaluation struct {
	*Request
	action string // in lower case
}

// denies returns the number of the first Deny statement that applies, or 0.
func (e *evaluation) denies(d *Document) int {
	if d == nil {
		return 0
	}
	for i := range d.statements {
		s := &d.statements[i]
		if !s.allow && e.applies(s) && (s.principals == nil || s.principals.match(&e.Principal) != no) {
			return i + 1
		}
	}
	return 0
}

// allows returns the number of the first Allow statement that applies, or 0.
func (e *evaluation) allows(d *Document) int {
	for i := range d.statements {
		s := &d.statements[i]
		if s.allow && e.applies(s) {
			return i + 1
		}
	}
	return 0
}

// allowsPrincipal returns the Allow statement of a resource policy that meets the
// principal the closest.
func (e *evaluation) allowsPrincipal(d *Document) (n int, how match) {
	if d == nil {
		return 0, no
	}
	for i := range d.statements {
		s := &d.statements[i]
		if !s.allow || s.principals == nil {
			continue
		}
		if m := s.principals.match(&e.Principal); m > how && e.applies(s) {
			n, how = i+1, m
		}
	}
	return n, how
}

// applies reports whether action, resource and conditions fit.
func (e *evaluation) applies(s *statement) bool {
	if matchAny(s.actions, e.action) == s.notAction {
		return false
	}
	if !s.anyRes {
		hit, resolved := false, true
		for i := range s.resources {
			ok, res := s.resources[i].matchVar(e.Resource, e.Keys)
			hit, resolved = hit || ok, resolved && res
			if hit {
				break
			}
		}
		if s.notRes {
			if hit || !resolved && s.allow {
				return false
			}
		} else if !hit {
			return false
		}
	}
	for i := range s.conditions {
		holds, known := s.conditions[i].holds(e.Keys)
		if !known {
			if s.allow {
				return false
			}
			continue // a Deny that is not understood denies
		}
		if !holds {
			return false
		}
	}
	return true
}

func matchAny(ps []pattern, s string) bool {
	for i := range ps {
		if ps[i].match(s) {
			return true
		}
	}
	return false
}

// principals is the Principal element.
type principals struct {
	not      bool
	any      bool     // *
	arns     []string // users, roles, sessions
	accounts []string // 12 digits
	services []string
	other    bool // federated or canonical: nobody here
}

func (p *principals) match(who *Principal) match {
	m := p.named(who)
	if p.not {
		if m == no {
			return account
		}
		return no
	}
	return m
}

func (p *principals) named(who *Principal) match {
	if who.Service != "" {
		if p.any {
			return direct
		}
		for _, s := range p.services {
			if s == who.Service {
				return direct
			}
		}
		return no
	}
	how := no
	if p.any {
		how = role
		if who.Role == "" {
			return direct
		}
	}
	for _, a := range p.arns {
		switch a {
		case who.ARN:
			return direct
		case who.Role:
			how = role
		}
	}
	if how == no {
		for _, a := range p.accounts {
			if a == who.Account {
				return account
			}
		}
	}
	return how
}

// A pattern is text with the wildcards * and ? and with policy variables.
type pattern struct {
	text string // wildcards are the bytes star and one
	vars bool   // text holds variables, still as written
	wild bool
}

// Bytes for wildcards; they are refused in documents.
const (
	star = '\x01'
	one  = '\x02'
)

// newPattern compiles text; variables says that ${…} has a meaning.
func newPattern(text string, variables bool) pattern {
	p := pattern{vars: variables && strings.Contains(text, "${")}
	if p.vars {
		p.text = text
		return p
	}
	p.text = wildcards(text)
	p.wild = strings.ContainsAny(p.text, "\x01\x02")
	return p
}

var wildcardReplacer = strings.NewReplacer("*", "\x01", "?", "\x02")

func wildcards(s string) string {
	if !strings.ContainsAny(s, "*?") {
		return s
	}
	return wildcardReplacer.Replace(s)
}

func (p *pattern) match(s string) bool {
	if !p.wild {
		return p.text == s
	}
	return glob(p.text, s)
}

// matchVar is match with variables resolved; resolved is false if one has no value,
// and then nothing matches.
func (p *pattern) matchVar(s string, keys Keys) (ok, resolved bool) {
	if !p.vars {
		return p.match(s), true
	}
	text, ok := resolve(p.text, keys, true)
	if !ok {
		return false, false
	}
	return glob(text, s), true
}

// resolve replaces policy variables. With wild, the wildcards outside variables
// become the bytes star and one; within values they are themselves.
func resolve(text string, keys Keys, wild bool) (string, bool) {
	var b strings.Builder
	put := func(s string) {
		if wild {
			s = wildcards(s)
		}
		b.WriteString(s)
	}
	for {
		before, rest, ok := strings.Cut(text, "${")
		put(before)
		if !ok {
			return b.String(), true
		}
		name, after, ok := strings.Cut(rest, "}")
		if !ok {
			put("${" + rest)
			return b.String(), true
		}
		text = after
		switch name {
		case "*", "?", "$":
			b.WriteString(name)
			continue
		}
		name, fallback, hasDefault := strings.Cut(name, ",")
		value, found := "", false
		if keys != nil {
			values, known := keys.Values(lower(strings.TrimSpace(name)))
			if !known {
				return "", false
			}
			if len(values) == 1 {
				value, found = values[0], true
			}
		}
		if !found && hasDefault {
			fallback = strings.TrimSpace(fallback)
			if len(fallback) >= 2 && fallback[0] == '\'' && fallback[len(fallback)-1] == '\'' {
				value, found = fallback[1:len(fallback)-1], true
			}
		}
		if !found || strings.ContainsAny(value, "\x01\x02") {
			return "", false
		}
		b.WriteString(value)
	}
}

// glob matches s against a pattern whose wildcards are the bytes star and one. Its
// time is at most the product of both lengths.
func glob(p, s string) bool {
	pi, si := 0, 0
	back, mark := -1, 0
	for si < len(s) {
		switch {
		case pi < len(p) && p[pi] == star:
			back, mark = pi, si
			pi++
			continue
		case pi < len(p) && p[pi] == one:
			_, n := utf8.DecodeRuneInString(s[si:])
			si += n
			pi++
			continue
		case pi < len(p) && p[pi] == s[si]:
			pi++
			si++
			continue
		}
		if back < 0 {
			return false
		}
		_, n := utf8.DecodeRuneInString(s[mark:])
		mark += n
		pi, si = back+1, mark
	}
	for pi < len(p) && p[pi] == star {
		pi++
	}
	return pi == len(p)
}

// lower is strings.ToLower for ASCII, without a copy where there is nothing to do.
func lower(s string) string {
	for i := 0; i < len(s); i++ {
		if c := s[i]; 'A' <= c && c <= 'Z' || c >= utf8.RuneSelf {
			return strings.ToLower(s)
		}
	}
	return s
}
