package iam

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/policy"
)

// kind tells users, roles and groups apart.
type kind string

const (
	user  kind = "user"
	role  kind = "role"
	group kind = "group"
)

// idPrefix begins the unique ids of a kind.
var idPrefix = map[kind]string{user: "AIDA", role: "AROA", group: "AGPA"}

func (k kind) title() string { return strings.ToUpper(string(k[:1])) + string(k[1:]) }

// An entity is a user, a role or a group: one record. Once in the Registry it is
// not changed, but replaced.
type entity struct {
	Kind     kind              `json:"kind"`
	Account  string            `json:"account"`
	Name     string            `json:"name"`
	Path     string            `json:"path"`
	ID       string            `json:"id"`
	Created  time.Time         `json:"created"`
	Inline   map[string]string `json:"inline,omitempty"`   // documents by name
	Attached []string          `json:"attached,omitempty"` // ARNs, in the order of attaching
	Boundary string            `json:"boundary,omitempty"` // ARN
	Tags     []Tag             `json:"tags,omitempty"`

	// Of roles.
	Trust       string `json:"trust,omitempty"`
	Description string `json:"description,omitempty"`
	MaxSession  int64  `json:"maxSession,omitempty"` // seconds

	// Of users.
	Keys   []accessKey `json:"keys,omitempty"`
	Groups []string    `json:"groups,omitempty"`

	revision uint64
	compiled atomic.Pointer[compiled]
}

// compiled are the policies of an entity at a state of the Registry.
type compiled struct {
	generation uint64
	grants     *policy.Grants
	role       *aws.Role
	tags       map[string]string
}

// An accessKey of a user.
type accessKey struct {
	ID       string    `json:"id"`
	Secret   string    `json:"secret"`
	Inactive bool      `json:"inactive,omitempty"`
	Created  time.Time `json:"created"`
}

func (e *entity) arn() string {
	return "arn:aws:iam::" + e.Account + ":" + string(e.Kind) + e.Path + e.Name
}

// clone is a copy that may be changed.
func (e *entity) clone() *entity {
	c := &entity{}
	b, err := json.Marshal(e)
	if err == nil {
		err = json.Unmarshal(b, c)
	}
	if err != nil {
		panic("iam: " + err.Error()) // cannot be: it came from JSON or goes there
	}
	c.revision = e.revision
	return c
}

// A managed policy: one record, or one of AWS's.
type managed struct {
	Account     string          `json:"account"` // aws for AWS's own
	Name        string          `json:"name"`
	Path        string          `json:"path"`
	ID          string          `json:"id"`
	Description string          `json:"description,omitempty"`
	Created     time.Time       `json:"created"`
	Updated     time.Time       `json:"updated"`
	Default     int             `json:"default"` // number of the version in force
	Next        int             `json:"next"`    // number of the next version
	Versions    []policyVersion `json:"versions"`
	Tags        []Tag           `json:"tags,omitempty"`

	revision uint64
}

type policyVersion struct {
	Number   int       `json:"number"`
	Document string    `json:"document"`
	Created  time.Time `json:"created"`
}

func (m *managed) arn() string {
	return "arn:aws:iam::" + m.Account + ":policy" + m.Path + m.Name
}

func (m *managed) version(number int) *policyVersion {
	for i := range m.Versions {
		if m.Versions[i].Number == number {
			return &m.Versions[i]
		}
	}
	return nil
}

func (m *managed) clone() *managed {
	c := *m
	c.Versions = append([]policyVersion(nil), m.Versions...)
	c.Tags = append([]Tag(nil), m.Tags...)
	return &c
}

// region stands in keys for the one of IAM, which is none.
const region = "aws-global"

// entityKey and policyKey are keys in the store. Names differ in more than their case.
func entityKey(account string, k kind, name string) string {
	return account + "." + region + ".iam." + string(k) + "." + token(strings.ToLower(name))
}

func policyKey(account, name string) string {
	return account + "." + region + ".iam.policy." + token(strings.ToLower(name))
}

// token writes a name with the letters that keys may have.
func token(name string) string {
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		c := name[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "=%02X", c)
		}
	}
	return b.String()
}
