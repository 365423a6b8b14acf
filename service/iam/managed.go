package iam

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/policy"
)

// rootCreated stands for the creation of the account.
var rootCreated = time.Date(2015, 4, 9, 0, 0, 0, 0, time.UTC)

func checkManaged(document string) error {
	if _, err := policy.Parse(document, policy.ForIdentity); err != nil {
		return err
	}
	if policy.Size(document) > maxManaged {
		return lambdad.Errorf("LimitExceeded", "Cannot exceed quota for PolicySize: %d", maxManaged)
	}
	return nil
}

func (s *Service) createPolicy(r *aws.Request, in *CreatePolicyRequest) (*CreatePolicyResponse, error) {
	if err := checkManaged(*in.PolicyDocument); err != nil {
		return nil, err
	}
	at := s.now().UTC()
	m := &managed{
		Account: r.Identity.Account, Name: *in.PolicyName, Path: "/", ID: newID("ANPA", 17), Description: deref(in.Description),
		Created: at, Updated: at, Default: 1, Next: 2,
		Versions: []policyVersion{{Number: 1, Document: *in.PolicyDocument, Created: at}},
	}
	if in.Path != nil {
		m.Path = *in.Path
	}
	if err := setTags(&m.Tags, in.Tags); err != nil {
		return nil, err
	}
	s.reg.write.Lock()
	defer s.reg.write.Unlock()
	for _, old := range s.reg.listPolicies(m.Account) {
		if old.Account == m.Account && strings.EqualFold(old.Name, m.Name) {
			return nil, lambdad.Errorf("EntityAlreadyExists", "A policy called %s already exists. Duplicate names are not allowed.", m.Name)
		}
	}
	if err := s.reg.savePolicy(r.Context(), m); err != nil {
		return nil, err
	}
	return &CreatePolicyResponse{Policy: s.policyOf(r.Identity.Account, m)}, nil
}

func (s *Service) policyOf(account string, m *managed) *Policy {
	attached, boundary := s.reg.uses(account, m.arn())
	p := &Policy{
		PolicyName: &m.Name, PolicyId: &m.ID, Arn: new(m.arn()), Path: &m.Path, DefaultVersionId: new("v" + strconv.Itoa(m.Default)),
		AttachmentCount: new(int64(len(attached))), PermissionsBoundaryUsageCount: new(int64(len(boundary))), IsAttachable: new(true),
		CreateDate: timestamp(m.Created), UpdateDate: timestamp(m.Updated), Tags: m.Tags,
	}
	if m.Description != "" {
		p.Description = &m.Description
	}
	return p
}

// managed finds a policy that the caller's account can see.
func (s *Service) managed(r *aws.Request, arn string) (*managed, error) {
	if !policyARN.MatchString(arn) {
		return nil, lambdad.Errorf("ValidationError", "Invalid ARN:  Could not be parsed!")
	}
	m := s.reg.policy(arn)
	if m == nil || m.Account != "aws" && m.Account != r.Identity.Account {
		return nil, lambdad.Errorf("NoSuchEntity", "Policy %s was not found.", arn)
	}
	return m, nil
}

// changePolicy writes what f makes of one of the account's own policies.
func (s *Service) changePolicy(r *aws.Request, arn string, f func(m *managed) error) error {
	s.reg.write.Lock()
	defer s.reg.write.Unlock()
	old, err := s.managed(r, arn)
	if err != nil {
		return err
	}
	if old.Account == "aws" {
		return lambdad.Errorf("AccessDenied", "User: %s is not authorized to perform: iam:%s on resource: policy %s because AWS owns it", r.Identity.ARN, r.Operation, arn)
	}
	m := old.clone()
	if err := f(m); err != nil {
		return err
	}
	return s.reg.savePolicy(r.Context(), m)
}

func (s *Service) getPolicy(r *aws.Request, in *GetPolicyRequest) (*GetPolicyResponse, error) {
	m, err := s.managed(r, *in.PolicyArn)
	if err != nil {
		return nil, err
	}
	return &GetPolicyResponse{Policy: s.policyOf(r.Identity.Account, m)}, nil
}

func (s *Service) deletePolicy(r *aws.Request, in *DeletePolicyRequest) (*aws.Empty, error) {
	s.reg.write.Lock()
	defer s.reg.write.Unlock()
	m, err := s.managed(r, *in.PolicyArn)
	if err != nil {
		return nil, err
	}
	attached, boundary := s.reg.uses(r.Identity.Account, m.arn())
	switch {
	case m.Account == "aws":
		return nil, lambdad.Errorf("AccessDenied", "User: %s is not authorized to perform: iam:%s on resource: policy %s because AWS owns it", r.Identity.ARN, r.Operation, m.arn())
	case len(attached)+len(boundary) > 0:
		return nil, lambdad.Errorf("DeleteConflict", "Cannot delete a policy attached to entities.")
	case len(m.Versions) > 1:
		return nil, lambdad.Errorf("DeleteConflict", "This policy has more than one version. Before you delete a policy, you must delete the policy's versions. The default version is deleted with the policy.")
	}
	return nil, s.reg.removePolicy(r.Context(), m)
}

func (s *Service) listPolicies(r *aws.Request, in *ListPoliciesRequest) (*ListPoliciesResponse, error) {
	scope := deref(in.Scope)
	list := slices.DeleteFunc(s.reg.listPolicies(r.Identity.Account), func(m *managed) bool {
		if scope == "AWS" && m.Account != "aws" || scope == "Local" && m.Account == "aws" || !strings.HasPrefix(m.Path, deref(in.PathPrefix)) {
			return true
		}
		attached, boundary := s.reg.uses(r.Identity.Account, m.arn())
		switch deref(in.PolicyUsageFilter) {
		case "PermissionsBoundary":
			return len(boundary) == 0
		case "PermissionsPolicy":
			return len(attached) == 0
		}
		return deref(in.OnlyAttached) && len(attached) == 0
	})
	list, truncated, next, err := page(list, (*managed).arn, in.Marker, in.MaxItems)
	if err != nil {
		return nil, err
	}
	out := &ListPoliciesResponse{Policies: []Policy{}, IsTruncated: truncated, Marker: next}
	for _, m := range list {
		one := s.policyOf(r.Identity.Account, m)
		one.Tags, one.Description = nil, nil
		out.Policies = append(out.Policies, *one)
	}
	return out, nil
}

func versionOf(m *managed, v *policyVersion, document bool) *PolicyVersion {
	out := &PolicyVersion{VersionId: new("v" + strconv.Itoa(v.Number)), IsDefaultVersion: new(v.Number == m.Default), CreateDate: timestamp(v.Created)}
	if document {
		out.Document = encoded(v.Document)
	}
	return out
}

func (s *Service) createPolicyVersion(r *aws.Request, in *CreatePolicyVersionRequest) (*CreatePolicyVersionResponse, error) {
	if err := checkManaged(*in.PolicyDocument); err != nil {
		return nil, err
	}
	out := &CreatePolicyVersionResponse{}
	err := s.changePolicy(r, *in.PolicyArn, func(m *managed) error {
		if len(m.Versions) == maxVersions {
			return lambdad.Errorf("LimitExceeded", "A managed policy can have up to %d versions. Before you create a new version, you must delete an existing version.", maxVersions)
		}
		v := policyVersion{Number: m.Next, Document: *in.PolicyDocument, Created: s.now().UTC()}
		m.Next++
		m.Versions = append(m.Versions, v)
		m.Updated = v.Created
		if deref(in.SetAsDefault) {
			m.Default = v.Number
		}
		out.PolicyVersion = versionOf(m, &v, false)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

var versionID = regexp.MustCompile(`\Av([1-9][0-9]{0,8})(\..*)?\z`)

func findVersion(m *managed, id string) (*policyVersion, error) {
	if p := versionID.FindStringSubmatch(id); p != nil {
		n, _ := strconv.Atoi(p[1]) // nine digits
		if v := m.version(n); v != nil {
			return v, nil
		}
	}
	return nil, lambdad.Errorf("NoSuchEntity", "Policy %s version %s does not exist or is not attachable.", m.arn(), id)
}

func (s *Service) getPolicyVersion(r *aws.Request, in *GetPolicyVersionRequest) (*GetPolicyVersionResponse, error) {
	m, err := s.managed(r, *in.PolicyArn)
	if err != nil {
		return nil, err
	}
	v, err := findVersion(m, *in.VersionId)
	if err != nil {
		return nil, err
	}
	return &GetPolicyVersionResponse{PolicyVersion: versionOf(m, v, true)}, nil
}

func (s *Service) listPolicyVersions(r *aws.Request, in *ListPolicyVersionsRequest) (*ListPolicyVersionsResponse, error) {
	m, err := s.managed(r, *in.PolicyArn)
	if err != nil {
		return nil, err
	}
	out := &ListPolicyVersionsResponse{Versions: []PolicyVersion{}, IsTruncated: new(false)}
	for i := len(m.Versions) - 1; i >= 0; i-- {
		out.Versions = append(out.Versions, *versionOf(m, &m.Versions[i], false))
	}
	return out, nil
}

func (s *Service) deletePolicyVersion(r *aws.Request, in *DeletePolicyVersionRequest) (*aws.Empty, error) {
	return nil, s.changePolicy(r, *in.PolicyArn, func(m *managed) error {
		v, err := findVersion(m, *in.VersionId)
		if err != nil {
			return err
		}
		if v.Number == m.Default {
			return lambdad.Errorf("DeleteConflict", "Cannot delete the default version of a policy.")
		}
		number := v.Number
		m.Versions = slices.DeleteFunc(m.Versions, func(v policyVersion) bool { return v.Number == number })
		m.Updated = s.now().UTC()
		return nil
	})
}

func (s *Service) setDefaultPolicyVersion(r *aws.Request, in *SetDefaultPolicyVersionRequest) (*aws.Empty, error) {
	return nil, s.changePolicy(r, *in.PolicyArn, func(m *managed) error {
		v, err := findVersion(m, *in.VersionId)
		if err != nil {
			return err
		}
		m.Default, m.Updated = v.Number, s.now().UTC()
		return nil
	})
}

func (s *Service) listEntitiesForPolicy(r *aws.Request, in *ListEntitiesForPolicyRequest) (*ListEntitiesForPolicyResponse, error) {
	m, err := s.managed(r, *in.PolicyArn)
	if err != nil {
		return nil, err
	}
	attached, boundary := s.reg.uses(r.Identity.Account, m.arn())
	list := attached
	switch deref(in.PolicyUsageFilter) {
	case "PermissionsBoundary":
		list = boundary
	case "":
		for _, e := range boundary {
			if !slices.Contains(list, e) {
				list = append(list, e)
			}
		}
	}
	out := &ListEntitiesForPolicyResponse{PolicyGroups: []PolicyGroup{}, PolicyUsers: []PolicyUser{}, PolicyRoles: []PolicyRole{}, IsTruncated: new(false)}
	slices.SortFunc(list, func(a, b *entity) int { return strings.Compare(a.arn(), b.arn()) })
	for _, e := range list {
		filter := strings.ToLower(deref(in.EntityFilter))
		if filter != "" && filter != string(e.Kind) || !strings.HasPrefix(e.Path, deref(in.PathPrefix)) {
			continue
		}
		switch e.Kind {
		case group:
			out.PolicyGroups = append(out.PolicyGroups, PolicyGroup{GroupName: &e.Name, GroupId: &e.ID})
		case user:
			out.PolicyUsers = append(out.PolicyUsers, PolicyUser{UserName: &e.Name, UserId: &e.ID})
		case role:
			out.PolicyRoles = append(out.PolicyRoles, PolicyRole{RoleName: &e.Name, RoleId: &e.ID})
		}
	}
	return out, nil
}

func (s *Service) tagPolicy(r *aws.Request, in *TagPolicyRequest) (*aws.Empty, error) {
	return nil, s.changePolicy(r, *in.PolicyArn, func(m *managed) error { return setTags(&m.Tags, in.Tags) })
}

func (s *Service) untagPolicy(r *aws.Request, in *UntagPolicyRequest) (*aws.Empty, error) {
	return nil, s.changePolicy(r, *in.PolicyArn, func(m *managed) error {
		m.Tags = without(m.Tags, in.TagKeys)
		return nil
	})
}

func (s *Service) listPolicyTags(r *aws.Request, in *ListPolicyTagsRequest) (*ListPolicyTagsResponse, error) {
	m, err := s.managed(r, *in.PolicyArn)
	if err != nil {
		return nil, err
	}
	tags, truncated, next, err := pageTags(m.Tags, in.Marker, in.MaxItems)
	return &ListPolicyTagsResponse{Tags: tags, IsTruncated: truncated, Marker: next}, err
}

// Simulation.

func (s *Service) simulatePrincipalPolicy(r *aws.Request, in *SimulatePrincipalPolicyRequest) (*SimulatePolicyResponse, error) {
	account, principal, grants, err := s.principal(*in.PolicySourceArn)
	if err != nil {
		return nil, err
	}
	if account != r.Identity.Account {
		return nil, lambdad.Errorf("NoSuchEntity", "The entity %s cannot be found.", *in.PolicySourceArn)
	}
	return simulate(principal, grants, &SimulateCustomPolicyRequest{
		PolicyInputList: in.PolicyInputList, PermissionsBoundaryPolicyInputList: in.PermissionsBoundaryPolicyInputList,
		ActionNames: in.ActionNames, ResourceArns: in.ResourceArns, ResourcePolicy: in.ResourcePolicy, ResourceOwner: in.ResourceOwner,
		CallerArn: in.CallerArn, ContextEntries: in.ContextEntries, ResourceHandlingOption: in.ResourceHandlingOption,
	})
}

// principal finds who an ARN of a user, group or role is, and the policies.
func (s *Service) principal(arn string) (account string, p policy.Principal, g *policy.Grants, err error) {
	for _, k := range []kind{user, role, group} {
		acct, path, ok := splitARN(arn, k)
		if !ok {
			continue
		}
		e, err := s.reg.entity(acct, k, path[strings.LastIndexByte(path, '/')+1:])
		if err != nil || e.arn() != arn {
			return "", p, nil, noEntity(k, path[strings.LastIndexByte(path, '/')+1:])
		}
		s.reg.mu.RLock()
		g := s.reg.compile(e).grants
		s.reg.mu.RUnlock()
		p := policy.Principal{Account: acct, ARN: arn}
		if k == role {
			p.Role = arn
		}
		return acct, p, g, nil
	}
	return "", p, nil, lambdad.Errorf("InvalidInput", "Invalid Entity Arn: %s does not clearly define entity type and name.", arn)
}

func (s *Service) simulateCustomPolicy(r *aws.Request, in *SimulateCustomPolicyRequest) (*SimulatePolicyResponse, error) {
	return simulate(policy.Principal{Account: r.Identity.Account, ARN: r.Identity.ARN, Role: r.Identity.Role}, &policy.Grants{}, in)
}

// maxSimulations bounds the questions of one request.
const maxSimulations = 10000

func simulate(p policy.Principal, have *policy.Grants, in *SimulateCustomPolicyRequest) (*SimulatePolicyResponse, error) {
	g := &policy.Grants{Identity: slices.Clone(have.Identity), Boundary: have.Boundary}
	for i, text := range in.PolicyInputList {
		d, err := policy.Parse(text, policy.ForIdentity)
		if err != nil {
			return nil, lambdad.Errorf("InvalidInput", "Invalid Policy input: %v", err.(*lambdad.Error).Message)
		}
		g.Identity = append(g.Identity, d.WithName(fmt.Sprintf("PolicyInputList.%d", i+1)))
	}
	for i, text := range in.PermissionsBoundaryPolicyInputList {
		d, err := policy.Parse(text, policy.ForIdentity)
		if err != nil {
			return nil, lambdad.Errorf("InvalidInput", "Invalid Policy input: %v", err.(*lambdad.Error).Message)
		}
		g.Boundary = d.WithName(fmt.Sprintf("PermissionsBoundaryPolicyInputList.%d", i+1))
	}
	ask := policy.Request{Principal: p, Account: p.Account}
	if in.ResourceOwner != nil {
		if parts := strings.Split(*in.ResourceOwner, ":"); len(parts) > 4 {
			ask.Account = parts[4]
		}
	}
	if in.ResourcePolicy != nil {
		d, err := policy.Parse(*in.ResourcePolicy, policy.ForResource)
		if err != nil {
			return nil, lambdad.Errorf("InvalidInput", "Invalid Policy input: %v", err.(*lambdad.Error).Message)
		}
		ask.Policy = d.WithName("ResourcePolicy")
	}
	keys := policy.KeySet{}
	for _, c := range in.ContextEntries {
		keys[strings.ToLower(deref(c.ContextKeyName))] = c.ContextKeyValues
	}
	ask.Keys = keys
	resources := in.ResourceArns
	if len(resources) == 0 {
		resources = []string{"*"}
	}
	if len(resources)*len(in.ActionNames) > maxSimulations {
		return nil, lambdad.Errorf("InvalidInput", "Too many actions and resources: at most %d pairs are simulated.", maxSimulations)
	}
	out := &SimulatePolicyResponse{EvaluationResults: []EvaluationResult{}, IsTruncated: new(false)}
	for _, action := range in.ActionNames {
		for _, resource := range resources {
			ask.Action, ask.Resource = action, resource
			d := policy.Evaluate(g, &ask)
			decision := "implicitDeny"
			switch {
			case d.Allowed:
				decision = "allowed"
			case d.Explicit:
				decision = "explicitDeny"
			}
			result := EvaluationResult{EvalActionName: &action, EvalResourceName: &resource, EvalDecision: &decision, MatchedStatements: []Statement{}, MissingContextValues: []string{}}
			if d.Statement > 0 {
				result.MatchedStatements = append(result.MatchedStatements, Statement{SourcePolicyId: &d.Policy, SourcePolicyType: new("IAM Policy")})
			}
			out.EvaluationResults = append(out.EvaluationResults, result)
		}
	}
	return out, nil
}
