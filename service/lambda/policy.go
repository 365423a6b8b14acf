package lambda

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/lambdad/lambdad"
)

// maxPolicy is the longest resource policy, in bytes of JSON.
const maxPolicy = 20480

// A statement is one of a resource policy, with its members in the order in which
// answers have them. Values are scalars, never lists of one: Terraform reads them
// as strings (control-plane.md section 4.5).
type statement struct {
	Sid       string
	Effect    string
	Principal any // "*", or a map with one entry
	Action    string
	Resource  string
	Condition map[string]map[string]string `json:",omitempty"`
}

// sid reads the id of a stored statement.
func sid(raw json.RawMessage) string {
	var s struct{ Sid string }
	_ = json.Unmarshal(raw, &s) // we wrote it
	return s.Sid
}

// document is the policy as IAM has it, or "" if there are no statements.
func (p policyRecord) document() string {
	if len(p) == 0 {
		return ""
	}
	b, err := marshal(struct {
		Version   string
		ID        string `json:"Id"`
		Statement []json.RawMessage
	}{"2012-10-17", "default", p})
	if err != nil {
		return "" // cannot be: made of what we wrote
	}
	return string(b)
}

// marshal is json.Marshal without escapes for HTML.
func marshal(v any) ([]byte, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return []byte(strings.TrimSuffix(b.String(), "\n")), nil
}

// with is the policy with a statement more.
func (p policyRecord) with(s *statement) (policyRecord, string, error) {
	if slices.ContainsFunc(p, func(raw json.RawMessage) bool { return sid(raw) == s.Sid }) {
		return nil, "", lambdad.Errorf("ResourceConflictException", "The statement id (%s) provided already exists. Please provide a new statement id, or remove the existing statement.", s.Sid)
	}
	raw, err := marshal(s)
	if err != nil {
		return nil, "", err
	}
	next := append(slices.Clone(p), raw)
	if n := len(next.document()); n > maxPolicy {
		return nil, "", lambdad.Errorf("PolicyLengthExceededException", "The final policy size (%d) is bigger than the limit (%d).", n, maxPolicy)
	}
	return next, string(raw), nil
}

// without is the policy with a statement less.
func (p policyRecord) without(id string) (policyRecord, error) {
	if len(p) == 0 {
		return nil, errNoPolicy
	}
	i := slices.IndexFunc(p, func(raw json.RawMessage) bool { return sid(raw) == id })
	if i < 0 {
		return nil, lambdad.Errorf("ResourceNotFoundException", "Statement %s is not found in resource policy.", id)
	}
	if len(p) == 1 {
		return nil, nil
	}
	return slices.Delete(slices.Clone(p), i, i+1), nil
}

var (
	errNoPolicy         = lambdad.Errorf("ResourceNotFoundException", "No policy is associated with the given resource.")
	errStalePolicy      = lambdad.Errorf("PreconditionFailedException", "The Revision Id provided does not match the latest Revision Id. Call the GetPolicy API to retrieve the latest Revision Id")
	errStaleLayerPolicy = lambdad.Errorf("PreconditionFailedException", "The Revision Id provided does not match the latest Revision Id. Call the GetLayerPolicy API to retrieve the latest Revision Id")
	errNoLatestPolicy   = lambdad.Errorf("InvalidParameterValueException", "We currently do not support adding policies for $LATEST.")
)

var (
	principalARN     = regexp.MustCompile(`\Aarn:aws[a-z-]*:(iam|sts)::\d{12}:(root|(user|role|federated-user|assumed-role)/[!-~]+)\z`)
	principalService = regexp.MustCompile(`\A[a-z0-9-]+(\.[a-z0-9-]+)*\.(amazonaws\.com(\.cn)?|amazon\.com|aws\.internal)\z`)
	principalID      = regexp.MustCompile(`\AA(IDA|ROA|NPA|NVA|PKA|SCA|GPA)[A-Z0-9]{16,}\z`)
)

// policyPrincipal is a principal as statements have it.
func policyPrincipal(s string) (any, error) {
	switch {
	case s == "*":
		return s, nil
	case isAccount(s):
		return map[string]string{"AWS": "arn:aws:iam::" + s + ":root"}, nil
	case principalARN.MatchString(s), principalID.MatchString(s):
		return map[string]string{"AWS": s}, nil
	case principalService.MatchString(s):
		return map[string]string{"Service": s}, nil
	}
	return nil, invalid("The provided principal was invalid. Please check the principal and try again.")
}

// policyTarget is the function, version or alias whose policy an operation is
// about. Missing is what the error is if there is no such function.
func (s *Service) policyTarget(ref functionRef, missing error) (*family, error) {
	fam := s.Registry.family(ref)
	q := ref.qualifier
	switch {
	case fam.latest == nil:
		return nil, missing
	case q == "" || fam.version(q) != nil || fam.alias(q) != nil:
		return &fam, nil
	case isWord(q) && !isDigits(q):
		return nil, aliasNotFound(ref)
	}
	return nil, functionNotFound(ref)
}

// policy returns the policy of a function, version or alias and its revision; ok
// reports whether there is such a thing.
func (f *family) policy(qualifier string) (p policyRecord, revision string, ok bool) {
	if f.latest == nil {
		return nil, "", false
	}
	if qualifier == "" {
		return f.latest.rec.Policy, f.latest.rec.RevisionID, true
	}
	if v := f.version(qualifier); v != nil {
		return v.rec.Policy, v.rec.RevisionID, true
	}
	if a := f.alias(qualifier); a != nil {
		return a.rec.Policy, a.rec.RevisionID, true
	}
	return nil, "", false
}

// Policy returns the resource policy of a function, version, alias or layer
// version, named by its ARN, as an IAM policy document; "" if it has none. Two
// answers with the same revision are the same. It answers from memory.
func (r *Registry) Policy(arn string) (document, revision string) {
	if m := layerARNPattern.FindStringSubmatch(arn); m != nil && m[4] != "" {
		n, err := strconv.ParseInt(m[4], 10, 64)
		if err != nil {
			return "", ""
		}
		if v := r.layerVersion(layerRef{m[2], m[1], m[3], n}); v != nil {
			return v.rec.Policy.document(), v.rec.PolicyRevision
		}
		return "", ""
	}
	ref, ok := parseFunctionRef(arn)
	if !ok {
		return "", ""
	}
	fam := r.family(ref)
	p, revision, _ := fam.policy(ref.qualifier)
	return p.document(), revision
}

// changePolicy writes what change makes of the policy of a function, version or
// alias, which then has a new revision.
func (s *Service) changePolicy(c *call, ref functionRef, missing error, change func(p policyRecord, revision string) (policyRecord, error)) error {
	fam, err := s.policyTarget(ref, missing)
	if err != nil {
		return err
	}
	apply := func(p *policyRecord, revision *string) error {
		next, err := change(*p, *revision)
		if err == nil {
			*p, *revision = next, newID()
		}
		return err
	}
	switch q := ref.qualifier; {
	case q == "":
		_, err = s.Registry.update(c.Context(), ref, func(rec *functionRecord) error { return apply(&rec.Policy, &rec.RevisionID) })
	case fam.version(q) != nil:
		_, err = s.Registry.updateVersion(c.Context(), ref, func(rec *versionRecord) error { return apply(&rec.Policy, &rec.RevisionID) })
	default:
		_, err = s.Registry.updateAlias(c.Context(), ref, aliasNotFound(ref), func(_ *family, rec *aliasRecord) error { return apply(&rec.Policy, &rec.RevisionID) })
	}
	return err
}

func (s *Service) addPermission(c *call, in *AddPermissionRequest) (any, error) {
	ref, err := resolveRef(c, *in.FunctionName, in.Qualifier)
	if err != nil {
		return nil, err
	}
	if ref.qualifier == latest {
		return nil, errNoLatestPolicy
	}
	principal, err := policyPrincipal(*in.Principal)
	if err != nil {
		return nil, err
	}
	st := &statement{Sid: *in.StatementId, Effect: "Allow", Principal: principal, Action: *in.Action, Resource: ref.arn()}
	condition := func(operator, key string, value *string) {
		if value == nil {
			return
		}
		if st.Condition == nil {
			st.Condition = map[string]map[string]string{}
		}
		if st.Condition[operator] == nil {
			st.Condition[operator] = map[string]string{}
		}
		st.Condition[operator][key] = *value
	}
	condition("ArnLike", "AWS:SourceArn", in.SourceArn)
	condition("StringEquals", "AWS:SourceAccount", in.SourceAccount)
	condition("StringEquals", "lambda:EventSourceToken", in.EventSourceToken)
	condition("StringEquals", "aws:PrincipalOrgID", in.PrincipalOrgID)
	condition("StringEquals", "lambda:FunctionUrlAuthType", in.FunctionUrlAuthType)
	if in.InvokedViaFunctionUrl != nil {
		condition("Bool", "lambda:InvokedViaFunctionUrl", new(strconv.FormatBool(*in.InvokedViaFunctionUrl)))
	}
	var added string
	err = s.changePolicy(c, ref, functionNotFound(ref.unqualified()), func(p policyRecord, revision string) (next policyRecord, err error) {
		if in.RevisionId != nil && *in.RevisionId != revision {
			return nil, errStalePolicy
		}
		next, added, err = p.with(st)
		return next, err
	})
	if err != nil {
		return nil, err
	}
	return &AddPermissionResponse{Statement: &added}, nil
}

func (s *Service) removePermission(c *call, in *RemovePermissionRequest) (any, error) {
	ref, err := resolveRef(c, *in.FunctionName, in.Qualifier)
	if err != nil {
		return nil, err
	}
	if ref.qualifier == latest {
		return nil, errNoPolicy
	}
	missing := lambdad.Errorf("ResourceNotFoundException", "No policy found for: %s", ref.arn())
	return nil, s.changePolicy(c, ref, missing, func(p policyRecord, revision string) (policyRecord, error) {
		next, err := p.without(*in.StatementId)
		if err == nil && in.RevisionId != nil && *in.RevisionId != revision {
			err = errStale
		}
		return next, err
	})
}

func (s *Service) getPolicy(c *call, in *GetPolicyRequest) (any, error) {
	ref, err := resolveRef(c, *in.FunctionName, in.Qualifier)
	if err != nil {
		return nil, err
	}
	fam := s.Registry.family(ref)
	p, revision, _ := fam.policy(ref.qualifier)
	if len(p) == 0 {
		return nil, errNoResource
	}
	return &GetPolicyResponse{Policy: new(p.document()), RevisionId: &revision}, nil
}

// changeLayerPolicy writes what change makes of the policy of a layer version.
func (s *Service) changeLayerPolicy(c *call, name string, number int64, revisionID *string, change func(layerRef, policyRecord) (policyRecord, error)) (*layerRecord, error) {
	ref, err := layerOf(c, name)
	if err != nil {
		return nil, err
	}
	if ref.version = number; number < 1 {
		return nil, errLayerVersionTooLow
	}
	return s.Registry.updateLayerVersion(c.Context(), ref, func(rec *layerRecord) error {
		if revisionID != nil && *revisionID != rec.PolicyRevision {
			return errStaleLayerPolicy
		}
		next, err := change(ref, rec.Policy)
		if err == nil {
			rec.Policy, rec.PolicyRevision = next, newID()
		}
		return err
	})
}

func (s *Service) addLayerVersionPermission(c *call, in *AddLayerVersionPermissionRequest) (any, error) {
	principal, err := policyPrincipal(*in.Principal)
	if err != nil {
		return nil, err
	}
	if in.OrganizationId != nil && *in.Principal != "*" {
		return nil, invalid("OrganizationId can be given with the principal * only, not with %s.", *in.Principal)
	}
	var added string
	rec, err := s.changeLayerPolicy(c, *in.LayerName, *in.VersionNumber, in.RevisionId, func(ref layerRef, p policyRecord) (next policyRecord, err error) {
		st := &statement{Sid: *in.StatementId, Effect: "Allow", Principal: principal, Action: *in.Action, Resource: ref.versionARN()}
		if in.OrganizationId != nil {
			st.Condition = map[string]map[string]string{"StringEquals": {"aws:PrincipalOrgID": *in.OrganizationId}}
		}
		next, added, err = p.with(st)
		return next, err
	})
	if err != nil {
		return nil, err
	}
	return &AddLayerVersionPermissionResponse{Statement: &added, RevisionId: &rec.PolicyRevision}, nil
}

func (s *Service) removeLayerVersionPermission(c *call, in *RemoveLayerVersionPermissionRequest) (any, error) {
	_, err := s.changeLayerPolicy(c, *in.LayerName, *in.VersionNumber, in.RevisionId, func(_ layerRef, p policyRecord) (policyRecord, error) {
		return p.without(*in.StatementId)
	})
	return nil, err
}

func layerVersionNotFound(ref layerRef) error {
	return lambdad.Errorf("ResourceNotFoundException", "Layer version %s does not exist.", ref.versionARN())
}

func (s *Service) getLayerVersionPolicy(c *call, in *GetLayerVersionPolicyRequest) (any, error) {
	ref, err := layerOf(c, *in.LayerName)
	if err != nil {
		return nil, err
	}
	if ref.version = *in.VersionNumber; ref.version < 1 {
		return nil, errLayerVersionTooLow
	}
	v := s.Registry.layerVersion(ref)
	switch {
	case v == nil:
		return nil, layerVersionNotFound(ref)
	case len(v.rec.Policy) == 0:
		return nil, errNoPolicy
	}
	return &GetLayerVersionPolicyResponse{Policy: new(v.rec.Policy.document()), RevisionId: &v.rec.PolicyRevision}, nil
}
