package aws

import (
	"context"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/policy"
)

// A ResourceNamer is a Service that knows what an action is about. What is asked
// of others is about *.
type ResourceNamer interface {
	// Resource returns the ARN, or "*"; "" leaves the decision to the service, which
	// calls Request.Authorize for each part. It must not tell more in its answer
	// than the request does: it is shown in refusals, unless it sets
	// Request.ResourceText.
	Resource(r *Request) string
}

// A PolicyKeeper is a Service whose resources have policies of their own.
type PolicyKeeper interface {
	// ResourcePolicy returns the policy on the resource that Resource named, or
	// nil. The request is nil where a call is only thought of.
	ResourcePolicy(r *Request, resource string) *policy.Document
}

// A Conditioner is a Service that has condition keys of its own, or knows the tags
// of its resources.
type Conditioner interface {
	// Conditions returns the values of the keys it knows, by name in lower case;
	// no values for those the request does not have.
	Conditions(r *Request) policy.KeySet
}

// open are the actions that need no permission, and the one that its service
// decides, since the role's trust policy must allow it.
func open(action string) bool {
	switch action {
	case "sts:GetCallerIdentity", "sts:GetSessionToken", "sts:AssumeRole":
		return true
	}
	return false
}

// authorise decides a call by the policies of the caller and of the resource.
func (m *Mux) authorise(svc Service, r *Request, mode AuthMode) error {
	if r.Action == "" {
		r.Action = actionOf(r.Service, r.Operation)
	}
	r.authority = m.authority(svc, mode)
	if r.Identity.Admin && r.Identity.Grants == nil {
		return nil // the account's root; resources of other accounts are their service's to refuse
	}
	if mode == Any || open(r.Action) {
		return nil
	}
	resource := "*"
	if n, ok := svc.(ResourceNamer); ok {
		resource = n.Resource(r)
	}
	if resource == "" {
		return nil
	}
	r.resource = resource
	var on *policy.Document
	if k, ok := svc.(PolicyKeeper); ok {
		on = k.ResourcePolicy(r, resource)
	}
	return r.allow(r.Action, resource, on, nil, false)
}

// authority is what Authorize needs to decide.
type authority struct {
	svc  Service
	keys Keys
	now  func() time.Time
	any  bool
}

func (m *Mux) authority(svc Service, mode AuthMode) authority {
	return authority{svc: svc, keys: m.keys, now: m.opts.Now, any: mode == Any}
}

// Identify is for handlers of plain URLs: the request is made by the owner of an
// access key, as a proof says that the handler has checked, with the rights that the
// owner has now. Without a proof, which is key "", it is accepted only while every
// key is. Other errors than those of Keys are refusals.
func (r *Request) Identify(accessKeyID, token string) error {
	if r.authority.any && fromWebPage(r.Request) {
		return errWebPage
	}
	_, id, err := r.authority.lookup(r.Context(), accessKeyID, token)
	if err == nil {
		r.Identity = id
	}
	return err
}

// lookup finds an access key; while every key is accepted, it is there.
func (a *authority) lookup(ctx context.Context, accessKeyID, token string) (secret string, id Identity, err error) {
	err = ErrUnknownKey
	if accessKeyID != "" {
		secret, id, err = a.keys.Lookup(ctx, accessKeyID, token)
	}
	if err != nil && a.any {
		return "", anyIdentity(accessKeyID), nil
	}
	return secret, id, err
}

// Perform is for handlers of plain URLs that do what an operation of the API does: it
// decides about that operation on a resource, whose policy the service keeps, and
// makes the request one of it, for Access. The error is AWS's refusal.
func (r *Request) Perform(operation, resource string) error {
	r.Operation, r.Action, r.resource = operation, actionOf(r.Service, operation), resource
	return r.AuthorizeForeign(resource)
}

// Authorize decides about one more action that a call implies, such as passing a
// role. Keys are condition keys beyond those of the call, by name in lower case; on
// is the policy of the resource, or nil. The error is AWS's refusal.
func (r *Request) Authorize(action, resource string, on *policy.Document, keys policy.KeySet) error {
	if (r.authority.any || r.Identity.Admin && r.Identity.Grants == nil) && accountOf(resource, r.Identity.Account) == r.Identity.Account {
		return nil
	}
	return r.allow(action, resource, on, keys, false)
}

// AuthorizeForeign decides about the call's action on a resource, such as one of
// another account, whose policy its service keeps.
func (r *Request) AuthorizeForeign(resource string) error {
	var on *policy.Document
	if k, ok := r.authority.svc.(PolicyKeeper); ok {
		on = k.ResourcePolicy(r, resource)
	}
	return r.Authorize(r.Action, resource, on, nil)
}

// AuthorizeTrust decides whether the caller may assume a role.
func (r *Request) AuthorizeTrust(action string, role *Role, keys policy.KeySet) error {
	if r.authority.any {
		return nil
	}
	return r.allow(action, role.ARN, role.Trust, keys, true)
}

func (r *Request) allow(action, resource string, on *policy.Document, keys policy.KeySet, trust bool) error {
	d := policy.Evaluate(r.Identity.Grants, &policy.Request{
		Principal: r.Identity.principal(), Action: action, Resource: resource, Account: accountOf(resource, r.Identity.Account),
		Keys: &requestKeys{r: r, resource: resource, extra: keys}, Policy: on, Trust: trust,
	})
	if d.Allowed {
		return nil
	}
	return refusal(&r.Identity, action, r.resourceText(action, resource), &d)
}

func (r *Request) resourceText(action, resource string) string {
	if r.ResourceText != "" && action == r.Action {
		return r.ResourceText
	}
	return resource
}

// refusal is AWS's text for a denied call.
func refusal(id *Identity, action, resource string, d *policy.Decision) error {
	return lambdad.Errorf("AccessDeniedException", "User: %s is not authorized to perform: %s on resource: %s %s",
		id.ARN, action, resource, d.Because(action))
}

// accountOf is the account in an ARN, or own.
func accountOf(resource, own string) string {
	if !strings.HasPrefix(resource, "arn:") {
		return own
	}
	rest := resource
	for range 4 {
		_, after, ok := strings.Cut(rest, ":")
		if !ok {
			return own
		}
		rest = after
	}
	account, _, _ := strings.Cut(rest, ":")
	if len(account) != 12 {
		return own
	}
	return account
}

// requestKeys are the condition keys of a request, found when they are asked for.
type requestKeys struct {
	r        *Request
	resource string
	extra    policy.KeySet
	own      policy.KeySet // of the service; nil: not asked yet
}

// Values implements policy.Keys.
func (k *requestKeys) Values(key string) ([]string, bool) {
	if v, ok := k.extra[key]; ok {
		return v, true
	}
	r, id := k.r, &k.r.Identity
	one := func(s string) ([]string, bool) {
		if s == "" {
			return nil, true
		}
		return []string{s}, true
	}
	switch key {
	case "aws:principalarn":
		if id.Role != "" {
			return one(id.Role)
		}
		return one(id.ARN)
	case "aws:principalaccount":
		return one(id.Account)
	case "aws:principaltype":
		switch {
		case id.Role != "":
			return one("AssumedRole")
		case id.UserName != "":
			return one("User")
		}
		return one("Account")
	case "aws:userid":
		return one(id.UserID)
	case "aws:username":
		if id.Role != "" {
			return nil, true
		}
		return one(id.UserName)
	case "aws:principalisawsservice", "aws:viaawsservice":
		return one("false")
	case "aws:sourceip":
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			return nil, true // from inside a sandbox
		}
		return one(host)
	case "aws:currenttime":
		return one(r.authority.now().UTC().Format(time.RFC3339))
	case "aws:epochtime":
		return one(strconv.FormatInt(r.authority.now().Unix(), 10))
	case "aws:tokenissuetime":
		if id.Issued.IsZero() {
			return nil, true
		}
		return one(id.Issued.UTC().Format(time.RFC3339))
	case "aws:multifactorauthpresent":
		if id.Issued.IsZero() {
			return nil, true
		}
		return one("false")
	case "aws:securetransport":
		return one(strconv.FormatBool(r.TLS != nil))
	case "aws:useragent":
		return one(r.UserAgent())
	case "aws:referer":
		return one(r.Referer())
	case "aws:requestedregion":
		return one(r.Region)
	case "aws:resourceaccount":
		return one(accountOf(k.resource, id.Account))
	}
	if tag, ok := strings.CutPrefix(key, "aws:principaltag/"); ok {
		return one(id.Tags[tag])
	}
	if k.own == nil {
		k.own = policy.KeySet{}
		if c, ok := r.authority.svc.(Conditioner); ok {
			k.own = c.Conditions(r)
		}
	}
	return k.own.Values(key)
}
