// Package iam is the API of AWS IAM, as far as functions need it: users with access
// keys, groups, roles with trust policies, inline and managed policies with
// versions, permission boundaries, tags, and the simulation of policies. AWS's
// managed policies that concern functions are present as published.
//
// A Registry keeps all of it, one record each; it tells the endpoint who a key
// belongs to and which policies go with it (aws.Directory).
package iam

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/policy"
)

// Config is what a Service needs.
type Config struct {
	Registry *Registry
	Logger   *slog.Logger     // default: discard
	Now      func() time.Time // default time.Now
}

// A Service is the IAM API; it implements aws.Service.
type Service struct {
	aws.RPC
	reg *Registry
	now func() time.Time
	log *slog.Logger
}

// New returns the service.
func New(cfg Config) *Service {
	s := &Service{reg: cfg.Registry, now: cfg.Now, log: cfg.Logger}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	worded := api
	worded.ValidationQuiet = true // as recorded
	s.RPC = aws.NewRPC(&worded, map[string]aws.Handler{
		"CreateRole":                    aws.Operation(s.createRole),
		"GetRole":                       aws.Operation(s.getRole),
		"DeleteRole":                    aws.Operation(s.deleteRole),
		"UpdateRole":                    aws.Operation(s.updateRole),
		"UpdateRoleDescription":         aws.Operation(s.updateRoleDescription),
		"UpdateAssumeRolePolicy":        aws.Operation(s.updateAssumeRolePolicy),
		"ListRoles":                     aws.Operation(s.listRoles),
		"ListInstanceProfilesForRole":   aws.Operation(s.listInstanceProfilesForRole),
		"TagRole":                       aws.Operation(s.tagRole),
		"UntagRole":                     aws.Operation(s.untagRole),
		"ListRoleTags":                  aws.Operation(s.listRoleTags),
		"PutRolePolicy":                 aws.Operation(s.putRolePolicy),
		"GetRolePolicy":                 aws.Operation(s.getRolePolicy),
		"ListRolePolicies":              aws.Operation(s.listRolePolicies),
		"DeleteRolePolicy":              aws.Operation(s.deleteRolePolicy),
		"AttachRolePolicy":              aws.Operation(s.attachRolePolicy),
		"DetachRolePolicy":              aws.Operation(s.detachRolePolicy),
		"ListAttachedRolePolicies":      aws.Operation(s.listAttachedRolePolicies),
		"PutRolePermissionsBoundary":    aws.Operation(s.putRoleBoundary),
		"DeleteRolePermissionsBoundary": aws.Operation(s.deleteRoleBoundary),

		"CreatePolicy":            aws.Operation(s.createPolicy),
		"GetPolicy":               aws.Operation(s.getPolicy),
		"DeletePolicy":            aws.Operation(s.deletePolicy),
		"ListPolicies":            aws.Operation(s.listPolicies),
		"CreatePolicyVersion":     aws.Operation(s.createPolicyVersion),
		"GetPolicyVersion":        aws.Operation(s.getPolicyVersion),
		"ListPolicyVersions":      aws.Operation(s.listPolicyVersions),
		"DeletePolicyVersion":     aws.Operation(s.deletePolicyVersion),
		"SetDefaultPolicyVersion": aws.Operation(s.setDefaultPolicyVersion),
		"ListEntitiesForPolicy":   aws.Operation(s.listEntitiesForPolicy),
		"TagPolicy":               aws.Operation(s.tagPolicy),
		"UntagPolicy":             aws.Operation(s.untagPolicy),
		"ListPolicyTags":          aws.Operation(s.listPolicyTags),

		"CreateUser":                    aws.Operation(s.createUser),
		"GetUser":                       aws.Operation(s.getUser),
		"DeleteUser":                    aws.Operation(s.deleteUser),
		"ListUsers":                     aws.Operation(s.listUsers),
		"TagUser":                       aws.Operation(s.tagUser),
		"UntagUser":                     aws.Operation(s.untagUser),
		"ListUserTags":                  aws.Operation(s.listUserTags),
		"PutUserPolicy":                 aws.Operation(s.putUserPolicy),
		"GetUserPolicy":                 aws.Operation(s.getUserPolicy),
		"ListUserPolicies":              aws.Operation(s.listUserPolicies),
		"DeleteUserPolicy":              aws.Operation(s.deleteUserPolicy),
		"AttachUserPolicy":              aws.Operation(s.attachUserPolicy),
		"DetachUserPolicy":              aws.Operation(s.detachUserPolicy),
		"ListAttachedUserPolicies":      aws.Operation(s.listAttachedUserPolicies),
		"PutUserPermissionsBoundary":    aws.Operation(s.putUserBoundary),
		"DeleteUserPermissionsBoundary": aws.Operation(s.deleteUserBoundary),
		"CreateAccessKey":               aws.Operation(s.createAccessKey),
		"ListAccessKeys":                aws.Operation(s.listAccessKeys),
		"UpdateAccessKey":               aws.Operation(s.updateAccessKey),
		"DeleteAccessKey":               aws.Operation(s.deleteAccessKey),

		"CreateGroup":               aws.Operation(s.createGroup),
		"GetGroup":                  aws.Operation(s.getGroup),
		"DeleteGroup":               aws.Operation(s.deleteGroup),
		"ListGroups":                aws.Operation(s.listGroups),
		"AddUserToGroup":            aws.Operation(s.addUserToGroup),
		"RemoveUserFromGroup":       aws.Operation(s.removeUserFromGroup),
		"ListGroupsForUser":         aws.Operation(s.listGroupsForUser),
		"PutGroupPolicy":            aws.Operation(s.putGroupPolicy),
		"GetGroupPolicy":            aws.Operation(s.getGroupPolicy),
		"ListGroupPolicies":         aws.Operation(s.listGroupPolicies),
		"DeleteGroupPolicy":         aws.Operation(s.deleteGroupPolicy),
		"AttachGroupPolicy":         aws.Operation(s.attachGroupPolicy),
		"DetachGroupPolicy":         aws.Operation(s.detachGroupPolicy),
		"ListAttachedGroupPolicies": aws.Operation(s.listAttachedGroupPolicies),

		"ListAccountAliases":      aws.Operation(s.listAccountAliases),
		"GetAccountSummary":       aws.Operation(s.getAccountSummary),
		"SimulatePrincipalPolicy": aws.Operation(s.simulatePrincipalPolicy),
		"SimulateCustomPolicy":    aws.Operation(s.simulateCustomPolicy),
	})
	return s
}

// subject finds out what a request is about: an entity by kind and name, or a
// policy by ARN.
func subject(r *aws.Request) (k kind, name, arn string) {
	f := r.Form
	switch op := r.Operation; {
	case op == "CreatePolicy":
		return "policy", f.Get("PolicyName"), ""
	case f.Get("RoleName") != "":
		return role, f.Get("RoleName"), ""
	case f.Get("GroupName") != "":
		return group, f.Get("GroupName"), ""
	case f.Get("UserName") != "":
		return user, f.Get("UserName"), ""
	case f.Get("PolicyArn") != "":
		return "policy", "", f.Get("PolicyArn")
	case f.Get("PolicySourceArn") != "":
		return "", "", f.Get("PolicySourceArn")
	}
	switch r.Operation {
	case "GetUser", "CreateAccessKey", "ListAccessKeys", "UpdateAccessKey", "DeleteAccessKey":
		return user, r.Identity.UserName, ""
	}
	return "", "", ""
}

// Resource implements aws.ResourceNamer. What refusals call it is what the caller
// wrote, so that the path of something that exists is not told.
func (s *Service) Resource(r *aws.Request) string {
	k, name, arn := subject(r)
	switch {
	case arn != "":
		return arn
	case name == "":
		return "*"
	}
	r.ResourceText = string(k) + " " + name
	path := cmp.Or(r.Form.Get("Path"), "/")
	if k == "policy" {
		return "arn:aws:iam::" + r.Identity.Account + ":policy" + path + name
	}
	if e, err := s.reg.entity(r.Identity.Account, k, name); err == nil {
		return e.arn()
	}
	return "arn:aws:iam::" + r.Identity.Account + ":" + string(k) + path + name
}

// Conditions implements aws.Conditioner.
func (s *Service) Conditions(r *aws.Request) policy.KeySet {
	set := policy.KeySet{"aws:requesttag/*": nil, "aws:resourcetag/*": nil, "iam:resourcetag/*": nil, "aws:tagkeys": nil,
		"iam:policyarn": nil, "iam:permissionsboundary": nil, "iam:passedtoservice": nil}
	if arn := r.Form.Get("PolicyArn"); arn != "" {
		set["iam:policyarn"] = []string{arn}
	}
	if arn := r.Form.Get("PermissionsBoundary"); arn != "" {
		set["iam:permissionsboundary"] = []string{arn}
	}
	for i := 1; ; i++ {
		key := r.Form.Get(fmt.Sprintf("Tags.member.%d.Key", i))
		if key == "" {
			break
		}
		set["aws:requesttag/"+strings.ToLower(key)] = []string{r.Form.Get(fmt.Sprintf("Tags.member.%d.Value", i))}
		set["aws:tagkeys"] = append(set["aws:tagkeys"], key)
	}
	for i := 1; ; i++ {
		key := r.Form.Get(fmt.Sprintf("TagKeys.member.%d", i))
		if key == "" {
			break
		}
		set["aws:tagkeys"] = append(set["aws:tagkeys"], key)
	}
	if k, name, arn := subject(r); name != "" || arn != "" {
		var tags []Tag
		if e, err := s.reg.entity(r.Identity.Account, k, name); err == nil {
			tags = e.Tags
			if e.Boundary != "" && set["iam:permissionsboundary"] == nil {
				set["iam:permissionsboundary"] = []string{e.Boundary}
			}
		} else if m := s.reg.policy(arn); m != nil {
			tags = m.Tags
		}
		for _, t := range tags {
			for _, family := range []string{"aws:resourcetag/", "iam:resourcetag/"} {
				set[family+strings.ToLower(*t.Key)] = []string{*t.Value}
			}
		}
	}
	return set
}

// timestamp is a time of IAM: whole seconds.
func timestamp(t time.Time) *aws.Timestamp { return aws.At(t.Truncate(time.Second)) }

// encoded is a document in an answer: percent-encoded as RFC 3986 says.
func encoded(document string) *string {
	return new(strings.ReplaceAll(url.QueryEscape(document), "+", "%20"))
}

// page cuts a sorted list. The marker is the name after which to go on.
func page[T any](list []T, name func(T) string, marker *string, max *int64) (out []T, truncated *bool, next *string, err error) {
	if marker != nil {
		last, err := base64.RawURLEncoding.DecodeString(*marker)
		if err != nil {
			return nil, nil, nil, lambdad.Errorf("ValidationError", "Invalid Marker.")
		}
		i, found := slices.BinarySearchFunc(list, string(last), func(e T, s string) int { return strings.Compare(name(e), s) })
		if found {
			i++
		}
		list = list[i:]
	}
	n := int64(100)
	if max != nil {
		n = *max
	}
	if int64(len(list)) > n {
		list = list[:n]
		next = new(base64.RawURLEncoding.EncodeToString([]byte(name(list[n-1]))))
	}
	if list == nil {
		list = []T{}
	}
	return list, new(next != nil), next, nil
}

func self(s string) string { return s }

// deref is what a pointer points to, or the zero value.
func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func (s *Service) listAccountAliases(*aws.Request, *ListAccountAliasesRequest) (*ListAccountAliasesResponse, error) {
	return &ListAccountAliasesResponse{AccountAliases: []string{}, IsTruncated: new(false)}, nil
}

func (s *Service) getAccountSummary(r *aws.Request, _ *aws.Empty) (*GetAccountSummaryResponse, error) {
	own := int64(0)
	for _, m := range s.reg.listPolicies(r.Identity.Account) {
		if m.Account != "aws" {
			own++
		}
	}
	return &GetAccountSummaryResponse{SummaryMap: map[string]int64{
		"Users": int64(len(s.reg.list(r.Identity.Account, user))), "UsersQuota": 5000,
		"Groups": int64(len(s.reg.list(r.Identity.Account, group))), "GroupsQuota": 300,
		"Roles": int64(len(s.reg.list(r.Identity.Account, role))), "RolesQuota": 1000,
		"Policies": own, "PoliciesQuota": 1500,
		"UserPolicySizeQuota": maxInline[user], "RolePolicySizeQuota": maxInline[role], "GroupPolicySizeQuota": maxInline[group],
		"PolicySizeQuota": maxManaged, "AssumeRolePolicySizeQuota": maxTrust, "VersionsPerPolicyQuota": maxVersions,
		"AttachedPoliciesPerUserQuota": maxAttached, "AttachedPoliciesPerRoleQuota": maxAttached, "AttachedPoliciesPerGroupQuota": maxAttached,
		"AccessKeysPerUserQuota": maxKeys, "GroupsPerUserQuota": maxGroups,
	}}, nil
}
