package iam

import (
	"context"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/policy"
)

// Limits of AWS's.
const (
	maxTrust    = 2048 // characters without white space
	maxManaged  = 6144
	maxVersions = 5
	maxAttached = 10
	maxKeys     = 2
	maxGroups   = 10
	maxTags     = 50
)

// maxInline is how many characters without white space all inline policies of an
// entity may have.
var maxInline = map[kind]int64{user: 2048, role: 10240, group: 5120}

// What users, roles and groups have in common.

func (s *Service) newEntity(r *aws.Request, k kind, name, path *string, tags []Tag, boundary *string) (*entity, error) {
	e := &entity{Kind: k, Account: r.Identity.Account, Name: *name, Path: "/", ID: newID(idPrefix[k], 17), Created: s.now().UTC()}
	if path != nil {
		e.Path = *path
	}
	if err := setTags(&e.Tags, tags); err != nil {
		return nil, err
	}
	if boundary != nil {
		if err := s.checkBoundary(r, *boundary); err != nil {
			return nil, err
		}
		e.Boundary = *boundary
	}
	return e, nil
}

func setTags(have *[]Tag, tags []Tag) error {
	seen := map[string]bool{}
	for _, t := range tags {
		key := strings.ToLower(*t.Key)
		if seen[key] {
			return lambdad.Errorf("InvalidInput", "Duplicate tag keys found. Please note that Tag keys are case insensitive.")
		}
		seen[key] = true
		i := slices.IndexFunc(*have, func(h Tag) bool { return strings.EqualFold(*h.Key, *t.Key) })
		if i < 0 {
			*have = append(*have, t)
		} else {
			(*have)[i] = t
		}
	}
	if len(*have) > maxTags {
		return lambdad.Errorf("LimitExceeded", "The number of tags has reached the maximum limit.")
	}
	return nil
}

func (s *Service) tag(r *aws.Request, k kind, name *string, tags []Tag) error {
	return s.reg.change(r.Context(), r.Identity.Account, k, *name, func(e *entity) error { return setTags(&e.Tags, tags) })
}

func (s *Service) untag(r *aws.Request, k kind, name *string, keys []string) error {
	return s.reg.change(r.Context(), r.Identity.Account, k, *name, func(e *entity) error {
		e.Tags = without(e.Tags, keys)
		return nil
	})
}

func without(tags []Tag, keys []string) []Tag {
	return slices.DeleteFunc(tags, func(t Tag) bool {
		return slices.ContainsFunc(keys, func(k string) bool { return strings.EqualFold(k, *t.Key) })
	})
}

func tagKey2(t Tag) string { return *t.Key }

func (s *Service) listTags(r *aws.Request, k kind, name, marker *string, max *int64) ([]Tag, *bool, *string, error) {
	e, err := s.reg.entity(r.Identity.Account, k, *name)
	if err != nil {
		return nil, nil, nil, err
	}
	return pageTags(e.Tags, marker, max)
}

func pageTags(tags []Tag, marker *string, max *int64) ([]Tag, *bool, *string, error) {
	tags = slices.SortedFunc(slices.Values(tags), func(a, b Tag) int { return strings.Compare(*a.Key, *b.Key) })
	return page(tags, tagKey2, marker, max)
}

func (s *Service) putInline(r *aws.Request, k kind, name, policyName, document *string) error {
	if _, err := policy.Parse(*document, policy.ForIdentity); err != nil {
		return err
	}
	return s.reg.change(r.Context(), r.Identity.Account, k, *name, func(e *entity) error {
		if e.Inline == nil {
			e.Inline = map[string]string{}
		}
		e.Inline[*policyName] = *document
		total := int64(0)
		for _, d := range e.Inline {
			total += int64(policy.Size(d))
		}
		if total > maxInline[k] {
			return lambdad.Errorf("LimitExceeded", "Maximum policy size of %d bytes exceeded for %s %s", maxInline[k], k, e.Name)
		}
		return nil
	})
}

func noInline(k kind, name string) error {
	return lambdad.Errorf("NoSuchEntity", "The %s policy with name %s cannot be found.", k, name)
}

func (s *Service) getInline(r *aws.Request, k kind, name, policyName *string) (*string, error) {
	e, err := s.reg.entity(r.Identity.Account, k, *name)
	if err != nil {
		return nil, err
	}
	d, ok := e.Inline[*policyName]
	if !ok {
		return nil, noInline(k, *policyName)
	}
	return encoded(d), nil
}

func (s *Service) deleteInline(r *aws.Request, k kind, name, policyName *string) error {
	return s.reg.change(r.Context(), r.Identity.Account, k, *name, func(e *entity) error {
		if _, ok := e.Inline[*policyName]; !ok {
			return noInline(k, *policyName)
		}
		delete(e.Inline, *policyName)
		return nil
	})
}

func (s *Service) listInline(r *aws.Request, k kind, name, marker *string, max *int64) ([]string, *bool, *string, error) {
	e, err := s.reg.entity(r.Identity.Account, k, *name)
	if err != nil {
		return nil, nil, nil, err
	}
	return page(slices.Sorted(maps.Keys(e.Inline)), self, marker, max)
}

var policyARN = regexp.MustCompile(`\Aarn:aws[a-zA-Z-]*:iam::(\d{12}|aws):policy/.+\z`)

// attachable finds a policy that the account may attach.
func (s *Service) attachable(r *aws.Request, arn string) (*managed, error) {
	if !policyARN.MatchString(arn) {
		return nil, lambdad.Errorf("ValidationError", "Invalid ARN:  Could not be parsed!")
	}
	m := s.reg.policy(arn)
	if m == nil || m.Account != "aws" && m.Account != r.Identity.Account {
		return nil, lambdad.Errorf("NoSuchEntity", "Policy %s does not exist or is not attachable.", arn)
	}
	return m, nil
}

func (s *Service) attach(r *aws.Request, k kind, name, arn *string) error {
	if _, err := s.reg.entity(r.Identity.Account, k, *name); err != nil {
		return err
	}
	return s.reg.change(r.Context(), r.Identity.Account, k, *name, func(e *entity) error {
		m, err := s.attachable(r, *arn)
		if err != nil {
			return err
		}
		if slices.Contains(e.Attached, m.arn()) {
			return nil
		}
		if len(e.Attached) == maxAttached {
			return lambdad.Errorf("LimitExceeded", "Cannot exceed quota for PoliciesPer%s: %d", k.title(), maxAttached)
		}
		e.Attached = append(e.Attached, m.arn())
		return nil
	})
}

func (s *Service) detach(r *aws.Request, k kind, name, arn *string) error {
	return s.reg.change(r.Context(), r.Identity.Account, k, *name, func(e *entity) error {
		i := slices.Index(e.Attached, *arn)
		if i < 0 {
			return lambdad.Errorf("NoSuchEntity", "Policy %s was not found.", *arn)
		}
		e.Attached = slices.Delete(e.Attached, i, i+1)
		return nil
	})
}

func (s *Service) listAttached(r *aws.Request, k kind, name, prefix, marker *string, max *int64) ([]AttachedPolicy, *bool, *string, error) {
	e, err := s.reg.entity(r.Identity.Account, k, *name)
	if err != nil {
		return nil, nil, nil, err
	}
	var list []AttachedPolicy
	for _, arn := range slices.Sorted(slices.Values(e.Attached)) {
		if m := s.reg.policy(arn); m != nil && strings.HasPrefix(m.Path, deref(prefix)) {
			list = append(list, AttachedPolicy{PolicyArn: new(arn), PolicyName: &m.Name})
		}
	}
	return page(list, func(p AttachedPolicy) string { return *p.PolicyArn }, marker, max)
}

func (s *Service) checkBoundary(r *aws.Request, arn string) error {
	if _, err := s.attachable(r, arn); err != nil {
		if lambdad.ErrorCode(err) == "NoSuchEntity" {
			return lambdad.Errorf("NoSuchEntity", "Scope ARN: %s does not exist or is not attachable.", arn)
		}
		return err
	}
	return nil
}

func (s *Service) putBoundary(r *aws.Request, k kind, name, arn *string) error {
	return s.reg.change(r.Context(), r.Identity.Account, k, *name, func(e *entity) error {
		e.Boundary = *arn
		return s.checkBoundary(r, *arn)
	})
}

func (s *Service) deleteBoundary(r *aws.Request, k kind, name *string) error {
	return s.reg.change(r.Context(), r.Identity.Account, k, *name, func(e *entity) error {
		if e.Boundary == "" {
			return lambdad.Errorf("NoSuchEntity", "The %s with name %s does not have a permissions boundary.", k, e.Name)
		}
		e.Boundary = ""
		return nil
	})
}

func boundaryOf(e *entity) *AttachedPermissionsBoundary {
	if e.Boundary == "" {
		return nil
	}
	return &AttachedPermissionsBoundary{PermissionsBoundaryType: new("PermissionsBoundaryPolicy"), PermissionsBoundaryArn: &e.Boundary}
}

// empty says why an entity cannot be deleted yet.
func empty(e *entity) error {
	switch {
	case len(e.Attached) > 0:
		return lambdad.Errorf("DeleteConflict", "Cannot delete entity, must detach all policies first.")
	case len(e.Inline) > 0:
		return lambdad.Errorf("DeleteConflict", "Cannot delete entity, must delete policies first.")
	case len(e.Keys) > 0:
		return lambdad.Errorf("DeleteConflict", "Cannot delete entity, must delete access keys first.")
	case len(e.Groups) > 0:
		return lambdad.Errorf("DeleteConflict", "Cannot delete entity, must remove users from group first.")
	}
	return nil
}

// listed are the entities below a path, a page of them.
func (s *Service) listed(r *aws.Request, k kind, prefix, marker *string, max *int64) ([]*entity, *bool, *string, error) {
	list := slices.DeleteFunc(s.reg.list(r.Identity.Account, k), func(e *entity) bool { return !strings.HasPrefix(e.Path, deref(prefix)) })
	return page(list, func(e *entity) string { return e.Name }, marker, max)
}

// Roles.

func (s *Service) checkTrust(document string) error {
	if _, err := policy.Parse(document, policy.ForTrust); err != nil {
		return err
	}
	if policy.Size(document) > maxTrust {
		return lambdad.Errorf("LimitExceeded", "Cannot exceed quota for ACLSizePerRole: %d", maxTrust)
	}
	return nil
}

// defaultSession is how long the sessions of a role may be, in seconds.
const defaultSession = 3600

func (s *Service) createRole(r *aws.Request, in *CreateRoleRequest) (*CreateRoleResponse, error) {
	if err := s.checkTrust(*in.AssumeRolePolicyDocument); err != nil {
		return nil, err
	}
	e, err := s.newEntity(r, role, in.RoleName, in.Path, in.Tags, in.PermissionsBoundary)
	if err != nil {
		return nil, err
	}
	e.Trust, e.Description, e.MaxSession = *in.AssumeRolePolicyDocument, deref(in.Description), defaultSession
	if in.MaxSessionDuration != nil {
		e.MaxSession = *in.MaxSessionDuration
	}
	if err := s.reg.create(r.Context(), e); err != nil {
		return nil, err
	}
	out := roleOf(e)
	out.RoleLastUsed = nil
	return &CreateRoleResponse{Role: out}, nil
}

func roleOf(e *entity) *Role {
	out := &Role{
		Path: &e.Path, RoleName: &e.Name, RoleId: &e.ID, Arn: new(e.arn()), CreateDate: timestamp(e.Created),
		AssumeRolePolicyDocument: encoded(e.Trust), MaxSessionDuration: &e.MaxSession, PermissionsBoundary: boundaryOf(e),
		Tags: e.Tags, RoleLastUsed: &RoleLastUsed{},
	}
	if e.Description != "" {
		out.Description = &e.Description
	}
	return out
}

func (s *Service) getRole(r *aws.Request, in *GetRoleRequest) (*GetRoleResponse, error) {
	e, err := s.reg.entity(r.Identity.Account, role, *in.RoleName)
	if err != nil {
		return nil, err
	}
	return &GetRoleResponse{Role: roleOf(e)}, nil
}

func (s *Service) deleteRole(r *aws.Request, in *DeleteRoleRequest) (*aws.Empty, error) {
	return nil, s.reg.remove(r.Context(), r.Identity.Account, role, *in.RoleName, empty)
}

func (s *Service) updateRole(r *aws.Request, in *UpdateRoleRequest) (*UpdateRoleResponse, error) {
	return &UpdateRoleResponse{}, s.reg.change(r.Context(), r.Identity.Account, role, *in.RoleName, func(e *entity) error {
		if in.Description != nil {
			e.Description = *in.Description
		}
		if in.MaxSessionDuration != nil {
			e.MaxSession = *in.MaxSessionDuration
		}
		return nil
	})
}

func (s *Service) updateRoleDescription(r *aws.Request, in *UpdateRoleDescriptionRequest) (*UpdateRoleDescriptionResponse, error) {
	if err := s.reg.change(r.Context(), r.Identity.Account, role, *in.RoleName, func(e *entity) error {
		e.Description = *in.Description
		return nil
	}); err != nil {
		return nil, err
	}
	e, err := s.reg.entity(r.Identity.Account, role, *in.RoleName)
	if err != nil {
		return nil, err
	}
	return &UpdateRoleDescriptionResponse{Role: roleOf(e)}, nil
}

func (s *Service) updateAssumeRolePolicy(r *aws.Request, in *UpdateAssumeRolePolicyRequest) (*aws.Empty, error) {
	if err := s.checkTrust(*in.PolicyDocument); err != nil {
		return nil, err
	}
	return nil, s.reg.change(r.Context(), r.Identity.Account, role, *in.RoleName, func(e *entity) error {
		e.Trust = *in.PolicyDocument
		return nil
	})
}

func (s *Service) listRoles(r *aws.Request, in *ListRolesRequest) (*ListRolesResponse, error) {
	list, truncated, next, err := s.listed(r, role, in.PathPrefix, in.Marker, in.MaxItems)
	if err != nil {
		return nil, err
	}
	out := &ListRolesResponse{Roles: []Role{}, IsTruncated: truncated, Marker: next}
	for _, e := range list {
		one := roleOf(e) // without what only GetRole tells
		one.Tags, one.PermissionsBoundary, one.RoleLastUsed = nil, nil, nil
		out.Roles = append(out.Roles, *one)
	}
	return out, nil
}

func (s *Service) listInstanceProfilesForRole(r *aws.Request, in *ListInstanceProfilesForRoleRequest) (*ListInstanceProfilesForRoleResponse, error) {
	if _, err := s.reg.entity(r.Identity.Account, role, *in.RoleName); err != nil {
		return nil, err
	}
	return &ListInstanceProfilesForRoleResponse{InstanceProfiles: []InstanceProfile{}, IsTruncated: new(false)}, nil
}

// ensureRole makes a role that Lambda may assume, with managed policies attached,
// unless there is one. It reports whether it made one.
func (r *Registry) ensureRole(ctx context.Context, arn, description string, attached []string) (bool, error) {
	account, path, ok := splitARN(arn, role)
	if !ok {
		return false, nil
	}
	i := strings.LastIndexByte(path, '/') + 1
	err := r.create(ctx, &entity{
		Kind: role, Account: account, Name: path[i:], Path: path[:i], ID: newID(idPrefix[role], 17), Created: time.Now().UTC(),
		Trust: lambdaTrust, Description: description, MaxSession: defaultSession, Attached: attached,
	})
	if lambdad.ErrorCode(err) == "EntityAlreadyExists" {
		return false, nil
	}
	return err == nil, err
}

const lambdaTrust = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"lambda.amazonaws.com"},"Action":"sts:AssumeRole"}]}`
