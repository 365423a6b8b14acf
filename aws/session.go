package aws

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/policy"
)

// A Session is what temporary credentials of STS stand for. It travels in their
// token, sealed with a key that only this server has, so that nothing is kept and
// they survive a restart.
type Session struct {
	Account string `json:"a"`
	ARN     string `json:"n"`
	UserID  string `json:"i"`
	// Role and RoleID are of the role assumed; or Role is "" and User, with
	// UserRef its unique id, is the user whose session it is; or neither, for the
	// account's root.
	Role   string `json:"r,omitempty"`
	RoleID string `json:"ri,omitempty"`
	User   string `json:"u,omitempty"`
	// Policies are session policies.
	Policies []string `json:"p,omitempty"`
	// ManagedPolicies are documents of managed policies passed as session
	// policies, by ARN.
	ManagedPolicies map[string]string `json:"m,omitempty"`
	Tags            map[string]string `json:"t,omitempty"` // by key in lower case
	// Transitive are the keys of the tags that sessions made with this one get, too.
	Transitive []string  `json:"tt,omitempty"`
	Issued     time.Time `json:"b"`
	Expires    time.Time `json:"e"`
}

// sealedSession is the content of a token.
type sealedSession struct {
	AccessKeyID string `json:"k"`
	Secret      string `json:"s"`
	Session
}

// A sealer seals sessions and remembers those it has opened.
type sealer struct {
	aead cipher.AEAD

	mu     *sync.Mutex // guards opened
	opened map[string]openedSession
}

type openedSession struct {
	token    string
	s        *sealedSession
	policies []*policy.Document
}

// maxOpened bounds the sessions remembered.
const maxOpened = 4096

// newSealer derives the key from the administrator's secret: who has that can do
// everything anyhow, and a new one ends all sessions.
func newSealer(secret string) sealer {
	key, err := hkdf.Key(sha256.New, []byte(secret), nil, "lambdad session tokens", 32)
	if err != nil {
		panic("aws: " + err.Error()) // cannot be: the length is fixed
	}
	block := must(aes.NewCipher(key))
	return sealer{aead: must(cipher.NewGCM(block)), mu: new(sync.Mutex), opened: map[string]openedSession{}}
}

// Issue makes temporary credentials for a session.
func (k *KeyStore) Issue(s Session) (lambdad.Credentials, error) {
	c := lambdad.Credentials{AccessKeyID: newKeyID("ASIA"), SecretAccessKey: newSecret()}
	plain, err := json.Marshal(sealedSession{c.AccessKeyID, c.SecretAccessKey, s})
	if err != nil {
		return c, fmt.Errorf("aws: sealing a session: %w", err)
	}
	nonce := make([]byte, k.sealed.aead.NonceSize())
	rand.Read(nonce)
	c.SessionToken = base64.StdEncoding.EncodeToString(k.sealed.aead.Seal(nonce, nonce, plain, []byte(c.AccessKeyID)))
	return c, nil
}

// open returns the session of a token.
func (s *sealer) open(accessKeyID, token string) (openedSession, bool) {
	s.mu.Lock()
	o, ok := s.opened[accessKeyID]
	s.mu.Unlock()
	if ok && subtle.ConstantTimeCompare([]byte(o.token), []byte(token)) == 1 {
		return o, true
	}
	b, err := base64.StdEncoding.DecodeString(token)
	if err != nil || len(b) < s.aead.NonceSize() {
		return o, false
	}
	n := s.aead.NonceSize()
	plain, err := s.aead.Open(nil, b[:n], b[n:], []byte(accessKeyID))
	if err != nil {
		return o, false
	}
	o = openedSession{token: token, s: &sealedSession{}}
	if json.Unmarshal(plain, o.s) != nil || o.s.AccessKeyID != accessKeyID {
		return o, false
	}
	for i, text := range o.s.Policies {
		d, err := policy.Parse(text, policy.ForIdentity)
		if err != nil {
			return o, false
		}
		o.policies = append(o.policies, d.WithName(fmt.Sprintf("session policy %d", i+1)))
	}
	for arn, text := range o.s.ManagedPolicies {
		d, err := policy.Parse(text, policy.ForIdentity)
		if err != nil {
			return o, false
		}
		o.policies = append(o.policies, d.WithName(arn))
	}
	s.mu.Lock()
	if len(s.opened) >= maxOpened {
		clear(s.opened)
	}
	s.opened[accessKeyID] = o
	s.mu.Unlock()
	return o, true
}

// session is Lookup for credentials that Issue made. Whose role or user is gone has
// no valid token.
func (k *KeyStore) session(accessKeyID, token string) (secret string, id Identity, err error) {
	o, ok := k.sealed.open(accessKeyID, token)
	if !ok {
		return "", id, ErrUnknownKey
	}
	s := o.s
	if k.now().After(s.Expires) {
		return "", id, ErrExpiredKey
	}
	id = Identity{
		Account: s.Account, AccessKeyID: accessKeyID, ARN: s.ARN, UserID: s.UserID, UserName: s.User, Role: s.Role,
		Tags: s.Tags, Transitive: s.Transitive, Issued: s.Issued, Expires: s.Expires,
	}
	switch {
	case s.Role != "":
		if k.directory == nil {
			return "", id, ErrUnknownKey
		}
		r := k.directory.Role(s.Role)
		if r == nil || r.ID != s.RoleID {
			return "", id, ErrUnknownKey
		}
		id.Grants = r.Grants
		if s.Tags == nil {
			id.Tags = r.Tags
		}
	case s.User != "":
		if k.directory == nil {
			return "", id, ErrUnknownKey
		}
		u, ok := k.directory.User(s.Account, s.User, s.UserID)
		if !ok {
			return "", id, ErrUnknownKey
		}
		id.Grants, id.Tags = u.Grants, u.Tags
	default:
		id.Admin = true
	}
	if len(s.Policies)+len(s.ManagedPolicies) > 0 {
		narrowed := policy.Grants{}
		if id.Grants != nil {
			narrowed = *id.Grants
		}
		narrowed.Session = o.policies
		id.Grants = &narrowed
	}
	return s.Secret, id, nil
}
