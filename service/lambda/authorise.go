package lambda

import (
	"cmp"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/policy"
)

// What policies decide about: the names of resources, their own policies and the
// condition keys of Lambda.

// Resource implements aws.ResourceNamer. A Qualifier beside the name is part of the
// ARN (neighbours.md section 2.4).
func (s *Service) Resource(r *aws.Request) string {
	m, ok := r.Route.(*aws.Match)
	if !ok {
		return "*"
	}
	c := &call{Request: r, match: m}
	if name := m.Param("FunctionName"); name != "" {
		return functionResource(r, name, r.URL.Query().Get("Qualifier"))
	}
	if name := m.Param("LayerName"); name != "" {
		if ref, ok := parseLayerRef(c, name); ok {
			return layerResource(ref, m.Param("VersionNumber"))
		}
		return "*"
	}
	switch r.Operation {
	case "CreateFunction":
		var in struct{ FunctionName string }
		if json.Unmarshal(r.Body, &in) == nil && in.FunctionName != "" {
			return functionResource(r, in.FunctionName, "")
		}
	case "GetLayerVersionByArn":
		if ref, ok := parseLayerRef(c, r.URL.Query().Get("Arn")); ok {
			return layerResource(ref, "")
		}
	}
	if arn := cmp.Or(m.Param("Resource"), m.Param("CodeSigningConfigArn")); strings.HasPrefix(arn, "arn:") {
		return arn
	}
	return "*"
}

func functionResource(r *aws.Request, name, qualifier string) string {
	ref, ok := parseFunctionRef(name)
	if !ok {
		return "*"
	}
	ref.region, ref.account = cmp.Or(ref.region, r.Region), cmp.Or(ref.account, r.Identity.Account)
	if isQualifier(qualifier) {
		ref.qualifier = cmp.Or(ref.qualifier, qualifier)
	}
	return ref.arn()
}

func layerResource(ref layerRef, version string) string {
	if n, err := strconv.ParseInt(version, 10, 64); err == nil && n > 0 {
		ref.version = n
	}
	if ref.version > 0 {
		return ref.versionARN()
	}
	return ref.arn()
}

// everybodysLayer is the policy of layer versions from elsewhere: there they were
// public, or shared with whoever imported them.
const everybodysLayer = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"lambda:GetLayerVersion","Resource":"*"}]}`

// A parsedPolicy is a resource policy as evaluated.
type parsedPolicy struct {
	revision string
	doc      *policy.Document
}

// maxPolicies bounds the parsed resource policies kept.
const maxPolicies = 4096

// ResourcePolicy implements aws.PolicyKeeper.
func (s *Service) ResourcePolicy(_ *aws.Request, resource string) *policy.Document {
	text, revision := s.Registry.Policy(resource)
	if ref, ok := parseLayerARN(resource); ok && s.Registry.imported(ref) != nil {
		text, revision = everybodysLayer, ""
	}
	if text == "" {
		return nil
	}
	s.policiesMu.Lock()
	p, ok := s.policies[resource]
	s.policiesMu.Unlock()
	if ok && p.revision == revision {
		return p.doc
	}
	doc, err := policy.Parse(text, policy.ForResource)
	if err != nil {
		s.Logger.Error("the policy of a resource could not be read; it allows nothing", "resource", resource, "err", err)
		return nil
	}
	p = parsedPolicy{revision, doc.WithName(resource + " resource policy")}
	s.policiesMu.Lock()
	defer s.policiesMu.Unlock()
	if len(s.policies) >= maxPolicies {
		clear(s.policies)
	}
	s.policies[resource] = p
	return p.doc
}

// Conditions implements aws.Conditioner.
func (s *Service) Conditions(r *aws.Request) policy.KeySet {
	var in struct {
		Layers                *[]string
		Principal             string
		CodeSigningConfigArn  string
		FunctionURLAuthType   string `json:"FunctionUrlAuthType"`
		InvokedViaFunctionURL *bool  `json:"InvokedViaFunctionUrl"`
		Tags                  map[string]string
		VpcConfig             struct{ SubnetIds, SecurityGroupIds []string }
	}
	if len(r.Body) > 0 && r.Action != "lambda:InvokeFunction" {
		_ = json.Unmarshal(r.Body, &in) // what cannot be read is refused later
	}
	set := policy.KeySet{
		"lambda:layer": nil, "lambda:principal": nil, "lambda:codesigningconfigarn": nil, "lambda:functionurlauthtype": nil,
		"lambda:functionarn": nil, "lambda:vpcids": nil, "lambda:subnetids": in.VpcConfig.SubnetIds,
		"lambda:securitygroupids": in.VpcConfig.SecurityGroupIds, "lambda:sourcefunctionarn": nil, "lambda:eventsourcetoken": nil,
		"lambda:invokedviafunctionurl": nil, "aws:requesttag/*": nil, "aws:tagkeys": nil, "aws:resourcetag/*": nil,
	}
	one := func(key, value string) {
		if value != "" {
			set[key] = []string{value}
		}
	}
	if in.Layers != nil {
		set["lambda:layer"] = *in.Layers
	}
	one("lambda:principal", in.Principal)
	one("lambda:codesigningconfigarn", in.CodeSigningConfigArn)
	one("lambda:functionurlauthtype", in.FunctionURLAuthType)
	if in.InvokedViaFunctionURL != nil {
		one("lambda:invokedviafunctionurl", strconv.FormatBool(*in.InvokedViaFunctionURL))
	}
	if r.Identity.Function != "" {
		one("lambda:sourcefunctionarn", lambdad.FunctionARN(r.Identity.Account, r.Region, r.Identity.Function, ""))
	}
	for k, v := range in.Tags {
		set["aws:requesttag/"+strings.ToLower(k)] = []string{v}
		set["aws:tagkeys"] = append(set["aws:tagkeys"], k)
	}
	set["aws:tagkeys"] = append(set["aws:tagkeys"], r.URL.Query()["tagKeys"]...)
	if ref, ok := parseFunctionRef(s.Resource(r)); ok {
		if f := s.Registry.function(ref.unqualified()); f != nil {
			for k, v := range f.rec.Tags {
				set["aws:resourcetag/"+strings.ToLower(k)] = []string{v}
			}
		}
	}
	return set
}

// lambdaPrincipal is who assumes execution roles.
const lambdaPrincipal = "lambda.amazonaws.com"

// checkRole refuses a role that the caller may not pass, that does not exist or that
// Lambda may not assume (neighbours.md section 2.3).
func (s *Service) checkRole(c *call, arn string, ref functionRef) error {
	if s.Roles == nil {
		return nil
	}
	if parts := strings.SplitN(arn, ":", 6); len(parts) == 6 && parts[4] != ref.account {
		return lambdad.Errorf("AccessDeniedException", "Cross-account pass role is not allowed.")
	}
	if err := c.Authorize("iam:PassRole", arn, nil, policy.KeySet{
		"iam:passedtoservice": {lambdaPrincipal}, "iam:associatedresourcearn": {ref.unqualified().arn()},
	}); err != nil {
		return err
	}
	role := s.Roles.Role(arn)
	if role == nil || !policy.Evaluate(nil, &policy.Request{
		Principal: policy.Principal{Service: lambdaPrincipal}, Action: "sts:AssumeRole", Resource: arn, Account: role.Account,
		Policy: role.Trust, Trust: true,
		Keys: policy.KeySet{
			"aws:sourceaccount": {ref.account}, "aws:sourcearn": {ref.unqualified().arn()},
			"aws:principalisawsservice": {"true"}, "aws:principalservicename": {lambdaPrincipal},
		},
	}).Allowed {
		return lambdad.Errorf("InvalidParameterValueException", "The role defined for the function cannot be assumed by Lambda.")
	}
	return nil
}

// Roles lists the roles that functions of an account name, in any region.
func (r *Registry) Roles(account string) []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	seen := map[string]bool{}
	var list []string
	add := func(role string) {
		if role != "" && !seen[role] {
			seen[role] = true
			list = append(list, role)
		}
	}
	for s, functions := range r.functions {
		if s.account != account {
			continue
		}
		for _, f := range functions {
			if f.latest != nil {
				add(f.latest.rec.Config.Role)
			}
			for _, v := range f.versions {
				add(v.rec.Config.Role)
			}
		}
	}
	return list
}
