// Package sts is the API of AWS STS, as far as lambdad has it: who a key belongs to,
// and temporary credentials of roles and of users. The other operations of the
// model are answered NotImplemented.
package sts

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/policy"
)

// An Issuer makes temporary credentials: *aws.KeyStore.
type Issuer interface {
	Issue(aws.Session) (lambdad.Credentials, error)
}

// Config is what a Service needs.
type Config struct {
	Keys Issuer
	// Roles finds roles.
	Roles aws.Directory
	// Policy returns the document of a managed policy that the account may use, or
	// false. Default: there are none.
	Policy func(account, arn string) (string, bool)
	Now    func() time.Time // default time.Now
}

// A Service is the STS API; it implements aws.Service.
type Service struct {
	aws.RPC
	Config
}

// New returns the service.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Policy == nil {
		cfg.Policy = func(string, string) (string, bool) { return "", false }
	}
	s := &Service{Config: cfg}
	s.RPC = aws.NewRPC(&api, map[string]aws.Handler{
		"AssumeRole":        aws.Operation(s.assumeRole),
		"GetCallerIdentity": aws.Operation(s.getCallerIdentity),
		"GetSessionToken":   aws.Operation(s.getSessionToken),
	})
	return s
}

// Resource implements aws.ResourceNamer.
func (s *Service) Resource(r *aws.Request) string {
	if arn := r.Form.Get("RoleArn"); arn != "" {
		return arn
	}
	return "*"
}

func (s *Service) getCallerIdentity(r *aws.Request, _ *GetCallerIdentityRequest) (*GetCallerIdentityResponse, error) {
	id := &r.Identity
	return &GetCallerIdentityResponse{UserId: &id.UserID, Account: &id.Account, Arn: &id.ARN}, nil
}

var arnForm = regexp.MustCompile(`\Aarn:[^:]+:[^:]+:[^:]*:[^:]*:.+\z`)

// chained is how long the session of a role assumed by a role's session may be.
const chained = time.Hour

func (s *Service) assumeRole(r *aws.Request, in *AssumeRoleRequest) (*AssumeRoleResponse, error) {
	if !arnForm.MatchString(*in.RoleArn) {
		return nil, lambdad.Errorf("ValidationError", "%s is invalid", *in.RoleArn)
	}
	tags, transitive, err := sessionTags(r, in)
	if err != nil {
		return nil, err
	}
	// Whether the role exists is told to nobody who may not assume it.
	denied := lambdad.Errorf("AccessDenied", "User: %s is not authorized to perform: sts:AssumeRole on resource: %s", r.Identity.ARN, *in.RoleArn)
	role := s.Roles.Role(*in.RoleArn)
	if role == nil {
		return nil, denied
	}
	keys := policy.KeySet{"sts:rolesessionname": {*in.RoleSessionName}, "aws:requesttag/*": nil, "aws:tagkeys": nil, "aws:resourcetag/*": nil}
	for key, value := range map[string]*string{"sts:externalid": in.ExternalId, "sts:sourceidentity": in.SourceIdentity} {
		if value != nil {
			keys[key] = []string{*value}
		}
	}
	for k, v := range role.Tags {
		keys["aws:resourcetag/"+k] = []string{v}
	}
	for _, t := range in.Tags {
		keys["aws:requesttag/"+strings.ToLower(*t.Key)] = []string{*t.Value}
		keys["aws:tagkeys"] = append(keys["aws:tagkeys"], *t.Key)
	}
	if r.AuthorizeTrust("sts:AssumeRole", role, keys) != nil {
		return nil, denied
	}
	if len(in.Tags) > 0 && r.AuthorizeTrust("sts:TagSession", role, keys) != nil {
		return nil, lambdad.Errorf("AccessDenied", "User: %s is not authorized to perform: sts:TagSession on resource: %s", r.Identity.ARN, *in.RoleArn)
	}

	life := time.Hour
	if in.DurationSeconds != nil {
		life = time.Duration(*in.DurationSeconds) * time.Second
	}
	switch {
	case r.Identity.Role != "" && life > chained:
		return nil, lambdad.Errorf("ValidationError", "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining")
	case life > role.MaxSession:
		return nil, lambdad.Errorf("ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	managed, size := map[string]string{}, 0
	for _, p := range in.PolicyArns {
		text, ok := s.Policy(role.Account, deref(p.Arn))
		if !ok {
			return nil, lambdad.Errorf("ValidationError", "Policy %s does not exist or is not attachable.", deref(p.Arn))
		}
		managed[*p.Arn] = text
		size += len(*p.Arn)
	}
	var policies []string
	if in.Policy != nil {
		if _, err := policy.Parse(*in.Policy, policy.ForIdentity); err != nil {
			return nil, err
		}
		policies = []string{*in.Policy}
		size += policy.Size(*in.Policy)
	}

	for k, v := range role.Tags {
		if _, ok := tags[k]; !ok {
			tags[k] = v
		}
	}
	now := s.Now().UTC().Truncate(time.Second)
	session := aws.Session{
		Account: role.Account, Role: role.ARN, RoleID: role.ID, UserID: role.ID + ":" + *in.RoleSessionName,
		ARN:      "arn:aws:sts::" + role.Account + ":assumed-role/" + role.Name + "/" + *in.RoleSessionName,
		Policies: policies, ManagedPolicies: managed, Tags: tags, Transitive: transitive, Issued: now, Expires: now.Add(life),
	}
	c, err := s.Keys.Issue(session)
	if err != nil {
		return nil, err
	}
	out := &AssumeRoleResponse{
		Credentials:     credentials(c, session.Expires),
		AssumedRoleUser: &AssumedRoleUser{AssumedRoleId: &session.UserID, Arn: &session.ARN},
		SourceIdentity:  in.SourceIdentity,
	}
	if size > 0 {
		out.PackedPolicySize = new(int64(max(1, size*100/maxPacked)))
	}
	return out, nil
}

// maxPacked is how many characters session policies may have.
const maxPacked = 2048

// sessionTags are the tags of a new session: those asked for, above those that the
// caller's session passes on.
func sessionTags(r *aws.Request, in *AssumeRoleRequest) (tags map[string]string, transitive []string, err error) {
	tags = map[string]string{}
	for _, t := range in.Tags {
		key := strings.ToLower(*t.Key)
		if _, twice := tags[key]; twice {
			return nil, nil, lambdad.Errorf("InvalidParameterValue", "Duplicate tag keys found. Please note that Tag keys are case insensitive.")
		}
		if slices.Contains(r.Identity.Transitive, key) {
			return nil, nil, lambdad.Errorf("InvalidParameterValue", "One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key from the calling session.")
		}
		tags[key] = *t.Value
	}
	for _, key := range in.TransitiveTagKeys {
		key = strings.ToLower(key)
		if _, ok := tags[key]; !ok {
			return nil, nil, lambdad.Errorf("InvalidParameterValue", "The specified transitive tag key must be included in the requested tags.")
		}
		transitive = append(transitive, key)
	}
	for _, key := range r.Identity.Transitive {
		tags[key] = r.Identity.Tags[key]
		transitive = append(transitive, key)
	}
	return tags, transitive, nil
}

func credentials(c lambdad.Credentials, expires time.Time) *Credentials {
	return &Credentials{AccessKeyId: &c.AccessKeyID, SecretAccessKey: &c.SecretAccessKey, SessionToken: &c.SessionToken, Expiration: aws.At(expires)}
}

// Lives of the sessions of users and of the account's root.
const (
	userSession = 12 * time.Hour
	rootSession = time.Hour
)

func (s *Service) getSessionToken(r *aws.Request, in *GetSessionTokenRequest) (*GetSessionTokenResponse, error) {
	id := &r.Identity
	if !id.Issued.IsZero() {
		return nil, lambdad.Errorf("AccessDenied", "Cannot call GetSessionToken with session credentials")
	}
	if in.SerialNumber != nil || in.TokenCode != nil {
		return nil, lambdad.Errorf("AccessDenied", "MultiFactorAuthentication failed with invalid MFA one time pass code. lambdad has no MFA devices.")
	}
	life := userSession
	if in.DurationSeconds != nil {
		life = time.Duration(*in.DurationSeconds) * time.Second
	}
	if id.UserName == "" {
		life = min(life, rootSession)
	}
	now := s.Now().UTC().Truncate(time.Second)
	session := aws.Session{
		Account: id.Account, ARN: id.ARN, UserID: id.UserID, User: id.UserName, Issued: now, Expires: now.Add(life),
	}
	c, err := s.Keys.Issue(session)
	if err != nil {
		return nil, err
	}
	return &GetSessionTokenResponse{Credentials: credentials(c, session.Expires)}, nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
