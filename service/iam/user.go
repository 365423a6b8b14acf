package iam

import (
	"crypto/rand"
	"encoding/base64"
	"slices"
	"strings"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
)

func userOf(e *entity) *User {
	return &User{
		Path: &e.Path, UserName: &e.Name, UserId: &e.ID, Arn: new(e.arn()), CreateDate: timestamp(e.Created),
		PermissionsBoundary: boundaryOf(e), Tags: e.Tags,
	}
}

func (s *Service) createUser(r *aws.Request, in *CreateUserRequest) (*CreateUserResponse, error) {
	e, err := s.newEntity(r, user, in.UserName, in.Path, in.Tags, in.PermissionsBoundary)
	if err != nil {
		return nil, err
	}
	if err := s.reg.create(r.Context(), e); err != nil {
		return nil, err
	}
	return &CreateUserResponse{User: userOf(e)}, nil
}

// userName is the name in the request, or the caller's own.
func userName(r *aws.Request, name *string) (string, error) {
	if name != nil {
		return *name, nil
	}
	if r.Identity.UserName == "" {
		return "", lambdad.Errorf("ValidationError", "Must specify userName when calling with non-User credentials")
	}
	return r.Identity.UserName, nil
}

func (s *Service) getUser(r *aws.Request, in *GetUserRequest) (*GetUserResponse, error) {
	if in.UserName == nil && r.Identity.Admin {
		return &GetUserResponse{User: &User{UserId: &r.Identity.UserID, Arn: &r.Identity.ARN, CreateDate: timestamp(rootCreated)}}, nil
	}
	name, err := userName(r, in.UserName)
	if err != nil {
		return nil, err
	}
	e, err := s.reg.entity(r.Identity.Account, user, name)
	if err != nil {
		return nil, err
	}
	return &GetUserResponse{User: userOf(e)}, nil
}

func (s *Service) deleteUser(r *aws.Request, in *DeleteUserRequest) (*aws.Empty, error) {
	return nil, s.reg.remove(r.Context(), r.Identity.Account, user, *in.UserName, empty)
}

func (s *Service) listUsers(r *aws.Request, in *ListUsersRequest) (*ListUsersResponse, error) {
	list, truncated, next, err := s.listed(r, user, in.PathPrefix, in.Marker, in.MaxItems)
	if err != nil {
		return nil, err
	}
	out := &ListUsersResponse{Users: []User{}, IsTruncated: truncated, Marker: next}
	for _, e := range list {
		one := userOf(e)
		one.Tags, one.PermissionsBoundary = nil, nil
		out.Users = append(out.Users, *one)
	}
	return out, nil
}

func (s *Service) createAccessKey(r *aws.Request, in *CreateAccessKeyRequest) (*CreateAccessKeyResponse, error) {
	name, err := userName(r, in.UserName)
	if err != nil {
		return nil, err
	}
	secret := make([]byte, 30)
	rand.Read(secret)
	k := accessKey{ID: newID("AKIA", 16), Secret: base64.RawURLEncoding.EncodeToString(secret), Created: s.now().UTC()}
	if err := s.reg.change(r.Context(), r.Identity.Account, user, name, func(e *entity) error {
		if len(e.Keys) == maxKeys {
			return lambdad.Errorf("LimitExceeded", "Cannot exceed quota for AccessKeysPerUser: %d", maxKeys)
		}
		e.Keys = append(e.Keys, k)
		return nil
	}); err != nil {
		return nil, err
	}
	return &CreateAccessKeyResponse{AccessKey: &AccessKey{
		UserName: &name, AccessKeyId: &k.ID, SecretAccessKey: &k.Secret, Status: new("Active"), CreateDate: timestamp(k.Created),
	}}, nil
}

func (s *Service) listAccessKeys(r *aws.Request, in *ListAccessKeysRequest) (*ListAccessKeysResponse, error) {
	out := &ListAccessKeysResponse{AccessKeyMetadata: []AccessKeyMetadata{}, IsTruncated: new(false)}
	if in.UserName == nil && r.Identity.Admin {
		return out, nil // the root's key is in a file
	}
	name, err := userName(r, in.UserName)
	if err != nil {
		return nil, err
	}
	e, err := s.reg.entity(r.Identity.Account, user, name)
	if err != nil {
		return nil, err
	}
	for _, k := range e.Keys {
		status := "Active"
		if k.Inactive {
			status = "Inactive"
		}
		out.AccessKeyMetadata = append(out.AccessKeyMetadata, AccessKeyMetadata{
			UserName: &e.Name, AccessKeyId: new(k.ID), Status: &status, CreateDate: timestamp(k.Created),
		})
	}
	return out, nil
}

// changeKey lets f change the keys of a user, given the place of one of them.
func (s *Service) changeKey(r *aws.Request, name *string, id string, f func(e *entity, i int)) error {
	who, err := userName(r, name)
	if err != nil {
		return err
	}
	return s.reg.change(r.Context(), r.Identity.Account, user, who, func(e *entity) error {
		i := slices.IndexFunc(e.Keys, func(k accessKey) bool { return k.ID == id })
		if i < 0 {
			return lambdad.Errorf("NoSuchEntity", "The Access Key with id %s cannot be found.", id)
		}
		f(e, i)
		return nil
	})
}

func (s *Service) updateAccessKey(r *aws.Request, in *UpdateAccessKeyRequest) (*aws.Empty, error) {
	return nil, s.changeKey(r, in.UserName, *in.AccessKeyId, func(e *entity, i int) { e.Keys[i].Inactive = *in.Status != "Active" })
}

func (s *Service) deleteAccessKey(r *aws.Request, in *DeleteAccessKeyRequest) (*aws.Empty, error) {
	return nil, s.changeKey(r, in.UserName, *in.AccessKeyId, func(e *entity, i int) { e.Keys = slices.Delete(e.Keys, i, i+1) })
}

// Groups.

func groupOf(e *entity) *Group {
	return &Group{Path: &e.Path, GroupName: &e.Name, GroupId: &e.ID, Arn: new(e.arn()), CreateDate: timestamp(e.Created)}
}

func (s *Service) createGroup(r *aws.Request, in *CreateGroupRequest) (*CreateGroupResponse, error) {
	e, err := s.newEntity(r, group, in.GroupName, in.Path, nil, nil)
	if err != nil {
		return nil, err
	}
	if err := s.reg.create(r.Context(), e); err != nil {
		return nil, err
	}
	return &CreateGroupResponse{Group: groupOf(e)}, nil
}

// members are the users of a group, sorted by name.
func (s *Service) members(account, name string) []*entity {
	return slices.DeleteFunc(s.reg.list(account, user), func(e *entity) bool { return !inGroup(e, name) })
}

func inGroup(e *entity, name string) bool {
	return slices.ContainsFunc(e.Groups, func(g string) bool { return strings.EqualFold(g, name) })
}

func (s *Service) getGroup(r *aws.Request, in *GetGroupRequest) (*GetGroupResponse, error) {
	g, err := s.reg.entity(r.Identity.Account, group, *in.GroupName)
	if err != nil {
		return nil, err
	}
	list, truncated, next, err := page(s.members(r.Identity.Account, g.Name), func(e *entity) string { return e.Name }, in.Marker, in.MaxItems)
	if err != nil {
		return nil, err
	}
	out := &GetGroupResponse{Group: groupOf(g), Users: []User{}, IsTruncated: truncated, Marker: next}
	for _, e := range list {
		out.Users = append(out.Users, *userOf(e))
	}
	return out, nil
}

func (s *Service) deleteGroup(r *aws.Request, in *DeleteGroupRequest) (*aws.Empty, error) {
	return nil, s.reg.remove(r.Context(), r.Identity.Account, group, *in.GroupName, func(e *entity) error {
		if len(s.members(e.Account, e.Name)) > 0 {
			return lambdad.Errorf("DeleteConflict", "Cannot delete entity, must remove users from group first.")
		}
		return empty(e)
	})
}

func (s *Service) listGroups(r *aws.Request, in *ListGroupsRequest) (*ListGroupsResponse, error) {
	list, truncated, next, err := s.listed(r, group, in.PathPrefix, in.Marker, in.MaxItems)
	if err != nil {
		return nil, err
	}
	out := &ListGroupsResponse{Groups: []Group{}, IsTruncated: truncated, Marker: next}
	for _, e := range list {
		out.Groups = append(out.Groups, *groupOf(e))
	}
	return out, nil
}

func (s *Service) addUserToGroup(r *aws.Request, in *AddUserToGroupRequest) (*aws.Empty, error) {
	g, err := s.reg.entity(r.Identity.Account, group, *in.GroupName)
	if err != nil {
		return nil, err
	}
	return nil, s.reg.change(r.Context(), r.Identity.Account, user, *in.UserName, func(e *entity) error {
		if _, err := s.reg.entity(r.Identity.Account, group, g.Name); err != nil {
			return err
		}
		if inGroup(e, g.Name) {
			return nil
		}
		if len(e.Groups) == maxGroups {
			return lambdad.Errorf("LimitExceeded", "Cannot exceed quota for GroupsPerUser: %d", maxGroups)
		}
		e.Groups = append(e.Groups, g.Name)
		return nil
	})
}

func (s *Service) removeUserFromGroup(r *aws.Request, in *RemoveUserFromGroupRequest) (*aws.Empty, error) {
	if _, err := s.reg.entity(r.Identity.Account, group, *in.GroupName); err != nil {
		return nil, err
	}
	return nil, s.reg.change(r.Context(), r.Identity.Account, user, *in.UserName, func(e *entity) error {
		e.Groups = slices.DeleteFunc(e.Groups, func(g string) bool { return strings.EqualFold(g, *in.GroupName) })
		return nil
	})
}

func (s *Service) listGroupsForUser(r *aws.Request, in *ListGroupsForUserRequest) (*ListGroupsForUserResponse, error) {
	e, err := s.reg.entity(r.Identity.Account, user, *in.UserName)
	if err != nil {
		return nil, err
	}
	out := &ListGroupsForUserResponse{Groups: []Group{}, IsTruncated: new(false)}
	for _, name := range slices.Sorted(slices.Values(e.Groups)) {
		if g, err := s.reg.entity(e.Account, group, name); err == nil {
			out.Groups = append(out.Groups, *groupOf(g))
		}
	}
	return out, nil
}
