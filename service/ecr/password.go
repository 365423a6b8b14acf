package ecr

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lambdad/lambdad/store"
)

// passwordLife is how long a password of GetAuthorizationToken works at most.
const passwordLife = 12 * time.Hour

// keyRecord is where the key of passwords is stored.
const keyRecord = "all.all.repository-key.1"

// A claim is what a password says: who asked for it. It says nothing of what he may
// do, which is decided at each request anew. It is sealed, since a session token is
// not for everybody who sees the configuration of Docker.
type claim struct {
	AccessKeyID  string    `json:"k"`           // "": unsigned, while every key is accepted
	SessionToken string    `json:"t,omitempty"` // of temporary credentials
	Registry     string    `json:"a,omitempty"` // account whose repositories are meant; "": the caller's
	Region       string    `json:"r"`
	Expires      time.Time `json:"e"`
}

// A sealer seals passwords and opens them.
type sealer struct{ aead cipher.AEAD }

// openSealer reads the key of passwords, which it makes the first time.
func openSealer(ctx context.Context, st store.Store) (s sealer, err error) {
	key := make([]byte, 32)
	rand.Read(key)
	value, err := json.Marshal(key)
	if err != nil {
		return s, err
	}
	_, err = st.Create(ctx, keyRecord, value)
	if errors.Is(err, store.ErrConflict) {
		var rec store.Record
		if rec, err = st.Get(ctx, keyRecord); err == nil {
			key = nil
			err = json.Unmarshal(rec.Value, &key)
		}
	}
	if err != nil {
		return s, err
	}
	if len(key) != 32 {
		return s, fmt.Errorf("record %s has %d bytes", keyRecord, len(key))
	}
	if key, err = hkdf.Key(sha256.New, key, nil, "lambdad registry passwords", 32); err != nil {
		return s, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return s, err
	}
	s.aead, err = cipher.NewGCM(block)
	return s, err
}

// seal makes a password.
func (s sealer) seal(c claim) (string, error) {
	plain, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	nonce := make([]byte, s.aead.NonceSize())
	rand.Read(nonce)
	return base64.RawURLEncoding.EncodeToString(s.aead.Seal(nonce, nonce, plain, nil)), nil
}

// open reads a password; ok is false for what seal did not make.
func (s sealer) open(password string) (c claim, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(password)
	n := s.aead.NonceSize()
	if err != nil || len(b) < n {
		return claim{}, false
	}
	plain, err := s.aead.Open(nil, b[:n], b[n:], nil)
	if err != nil || json.Unmarshal(plain, &c) != nil {
		return claim{}, false
	}
	return c, true
}
