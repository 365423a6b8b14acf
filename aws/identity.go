package aws

import (
	"time"

	"github.com/lambdad/lambdad/policy"
)

// An Identity says on whose behalf a request is made.
type Identity struct {
	Account     string // 12 digits
	AccessKeyID string
	ARN         string // as in GetCallerIdentity
	UserID      string // as in GetCallerIdentity
	// Admin may do everything in its account.
	Admin bool
	// UserName is a user's.
	UserName string
	// Role is the ARN of the role whose session this is.
	Role string
	// Tags of the principal, by key in lower case.
	Tags map[string]string
	// Transitive are the keys of the tags that the session passes on.
	Transitive []string
	// Issued is when temporary credentials were made.
	Issued time.Time
	// Expires is when temporary credentials end; zero for others.
	Expires time.Time
	// Grants are the policies that go with the principal; nil for none.
	Grants *policy.Grants

	// EnvironmentID and Function are set for the credentials of an execution
	// environment.
	EnvironmentID string
	Function      string
	// Party is whom in the environment the credentials were given to: runtime, or
	// extension/<name>.
	Party string
}

// principal is the identity as policies see it.
func (id *Identity) principal() policy.Principal {
	return policy.Principal{Account: id.Account, ARN: id.ARN, Role: id.Role, Root: id.Admin}
}

// A Role is what others need to know of a role.
type Role struct {
	ARN, ID, Name, Account string
	Trust                  *policy.Document
	MaxSession             time.Duration
	Tags                   map[string]string // by key in lower case
	Grants                 *policy.Grants
}

// A Directory knows users and roles: *iam.Registry. What it returns is of the moment
// and must not be changed.
type Directory interface {
	// UserKey finds the user of an active access key.
	UserKey(accessKeyID string) (secret string, id Identity, ok bool)
	// User finds a user by name and unique id.
	User(account, name, id string) (Identity, bool)
	// Role finds a role, or returns nil.
	Role(arn string) *Role
}
