package iam

import "github.com/lambdad/lambdad/aws"

// The operations that users, roles and groups have alike, each with types of its
// own.

func (s *Service) tagRole(r *aws.Request, in *TagRoleRequest) (*aws.Empty, error) {
	return nil, s.tag(r, role, in.RoleName, in.Tags)
}

func (s *Service) untagRole(r *aws.Request, in *UntagRoleRequest) (*aws.Empty, error) {
	return nil, s.untag(r, role, in.RoleName, in.TagKeys)
}

func (s *Service) listRoleTags(r *aws.Request, in *ListRoleTagsRequest) (*ListRoleTagsResponse, error) {
	tags, truncated, next, err := s.listTags(r, role, in.RoleName, in.Marker, in.MaxItems)
	return &ListRoleTagsResponse{Tags: tags, IsTruncated: truncated, Marker: next}, err
}

func (s *Service) tagUser(r *aws.Request, in *TagUserRequest) (*aws.Empty, error) {
	return nil, s.tag(r, user, in.UserName, in.Tags)
}

func (s *Service) untagUser(r *aws.Request, in *UntagUserRequest) (*aws.Empty, error) {
	return nil, s.untag(r, user, in.UserName, in.TagKeys)
}

func (s *Service) listUserTags(r *aws.Request, in *ListUserTagsRequest) (*ListUserTagsResponse, error) {
	tags, truncated, next, err := s.listTags(r, user, in.UserName, in.Marker, in.MaxItems)
	return &ListUserTagsResponse{Tags: tags, IsTruncated: truncated, Marker: next}, err
}

func (s *Service) putRolePolicy(r *aws.Request, in *PutRolePolicyRequest) (*aws.Empty, error) {
	return nil, s.putInline(r, role, in.RoleName, in.PolicyName, in.PolicyDocument)
}

func (s *Service) getRolePolicy(r *aws.Request, in *GetRolePolicyRequest) (*GetRolePolicyResponse, error) {
	document, err := s.getInline(r, role, in.RoleName, in.PolicyName)
	return &GetRolePolicyResponse{RoleName: in.RoleName, PolicyName: in.PolicyName, PolicyDocument: document}, err
}

func (s *Service) listRolePolicies(r *aws.Request, in *ListRolePoliciesRequest) (*ListRolePoliciesResponse, error) {
	names, truncated, next, err := s.listInline(r, role, in.RoleName, in.Marker, in.MaxItems)
	return &ListRolePoliciesResponse{PolicyNames: names, IsTruncated: truncated, Marker: next}, err
}

func (s *Service) deleteRolePolicy(r *aws.Request, in *DeleteRolePolicyRequest) (*aws.Empty, error) {
	return nil, s.deleteInline(r, role, in.RoleName, in.PolicyName)
}

func (s *Service) attachRolePolicy(r *aws.Request, in *AttachRolePolicyRequest) (*aws.Empty, error) {
	return nil, s.attach(r, role, in.RoleName, in.PolicyArn)
}

func (s *Service) detachRolePolicy(r *aws.Request, in *DetachRolePolicyRequest) (*aws.Empty, error) {
	return nil, s.detach(r, role, in.RoleName, in.PolicyArn)
}

func (s *Service) listAttachedRolePolicies(r *aws.Request, in *ListAttachedRolePoliciesRequest) (*ListAttachedRolePoliciesResponse, error) {
	list, truncated, next, err := s.listAttached(r, role, in.RoleName, in.PathPrefix, in.Marker, in.MaxItems)
	return &ListAttachedRolePoliciesResponse{AttachedPolicies: list, IsTruncated: truncated, Marker: next}, err
}

func (s *Service) putRoleBoundary(r *aws.Request, in *PutRolePermissionsBoundaryRequest) (*aws.Empty, error) {
	return nil, s.putBoundary(r, role, in.RoleName, in.PermissionsBoundary)
}

func (s *Service) deleteRoleBoundary(r *aws.Request, in *DeleteRolePermissionsBoundaryRequest) (*aws.Empty, error) {
	return nil, s.deleteBoundary(r, role, in.RoleName)
}

func (s *Service) putUserPolicy(r *aws.Request, in *PutUserPolicyRequest) (*aws.Empty, error) {
	return nil, s.putInline(r, user, in.UserName, in.PolicyName, in.PolicyDocument)
}

func (s *Service) getUserPolicy(r *aws.Request, in *GetUserPolicyRequest) (*GetUserPolicyResponse, error) {
	document, err := s.getInline(r, user, in.UserName, in.PolicyName)
	return &GetUserPolicyResponse{UserName: in.UserName, PolicyName: in.PolicyName, PolicyDocument: document}, err
}

func (s *Service) listUserPolicies(r *aws.Request, in *ListUserPoliciesRequest) (*ListUserPoliciesResponse, error) {
	names, truncated, next, err := s.listInline(r, user, in.UserName, in.Marker, in.MaxItems)
	return &ListUserPoliciesResponse{PolicyNames: names, IsTruncated: truncated, Marker: next}, err
}

func (s *Service) deleteUserPolicy(r *aws.Request, in *DeleteUserPolicyRequest) (*aws.Empty, error) {
	return nil, s.deleteInline(r, user, in.UserName, in.PolicyName)
}

func (s *Service) attachUserPolicy(r *aws.Request, in *AttachUserPolicyRequest) (*aws.Empty, error) {
	return nil, s.attach(r, user, in.UserName, in.PolicyArn)
}

func (s *Service) detachUserPolicy(r *aws.Request, in *DetachUserPolicyRequest) (*aws.Empty, error) {
	return nil, s.detach(r, user, in.UserName, in.PolicyArn)
}

func (s *Service) listAttachedUserPolicies(r *aws.Request, in *ListAttachedUserPoliciesRequest) (*ListAttachedUserPoliciesResponse, error) {
	list, truncated, next, err := s.listAttached(r, user, in.UserName, in.PathPrefix, in.Marker, in.MaxItems)
	return &ListAttachedUserPoliciesResponse{AttachedPolicies: list, IsTruncated: truncated, Marker: next}, err
}

func (s *Service) putUserBoundary(r *aws.Request, in *PutUserPermissionsBoundaryRequest) (*aws.Empty, error) {
	return nil, s.putBoundary(r, user, in.UserName, in.PermissionsBoundary)
}

func (s *Service) deleteUserBoundary(r *aws.Request, in *DeleteUserPermissionsBoundaryRequest) (*aws.Empty, error) {
	return nil, s.deleteBoundary(r, user, in.UserName)
}

func (s *Service) putGroupPolicy(r *aws.Request, in *PutGroupPolicyRequest) (*aws.Empty, error) {
	return nil, s.putInline(r, group, in.GroupName, in.PolicyName, in.PolicyDocument)
}

func (s *Service) getGroupPolicy(r *aws.Request, in *GetGroupPolicyRequest) (*GetGroupPolicyResponse, error) {
	document, err := s.getInline(r, group, in.GroupName, in.PolicyName)
	return &GetGroupPolicyResponse{GroupName: in.GroupName, PolicyName: in.PolicyName, PolicyDocument: document}, err
}

func (s *Service) listGroupPolicies(r *aws.Request, in *ListGroupPoliciesRequest) (*ListGroupPoliciesResponse, error) {
	names, truncated, next, err := s.listInline(r, group, in.GroupName, in.Marker, in.MaxItems)
	return &ListGroupPoliciesResponse{PolicyNames: names, IsTruncated: truncated, Marker: next}, err
}

func (s *Service) deleteGroupPolicy(r *aws.Request, in *DeleteGroupPolicyRequest) (*aws.Empty, error) {
	return nil, s.deleteInline(r, group, in.GroupName, in.PolicyName)
}

func (s *Service) attachGroupPolicy(r *aws.Request, in *AttachGroupPolicyRequest) (*aws.Empty, error) {
	return nil, s.attach(r, group, in.GroupName, in.PolicyArn)
}

func (s *Service) detachGroupPolicy(r *aws.Request, in *DetachGroupPolicyRequest) (*aws.Empty, error) {
	return nil, s.detach(r, group, in.GroupName, in.PolicyArn)
}

func (s *Service) listAttachedGroupPolicies(r *aws.Request, in *ListAttachedGroupPoliciesRequest) (*ListAttachedGroupPoliciesResponse, error) {
	list, truncated, next, err := s.listAttached(r, group, in.GroupName, in.PathPrefix, in.Marker, in.MaxItems)
	return &ListAttachedGroupPoliciesResponse{AttachedPolicies: list, IsTruncated: truncated, Marker: next}, err
}
