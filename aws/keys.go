package aws

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lambdad/lambdad"
)

// A KeyStore holds the access keys of one server: the administrator's, kept in a
// file; those of execution environments, which live as long as these do and are
// kept nowhere; those of users, which a Directory has; and temporary ones that
// STS made, which carry what they stand for, sealed, in their token. It
// implements Keys and is safe for concurrent use.
type KeyStore struct {
	admin     lambdad.Credentials
	account   string
	directory Directory // nil: there are no users and roles
	now       func() time.Time
	sealed    sealer

	mu   sync.RWMutex // guards temp
	temp map[string]tempKey
}

// A tempKey is one of an execution environment.
type tempKey struct {
	secret, token string
	id            Identity
}

// credentialsFile is the form of the administrator's key on disk.
type credentialsFile struct {
	Account         string `json:"account"`
	AccessKeyID     string `json:"accessKeyId"`
	SecretAccessKey string `json:"secretAccessKey"`
}

// CredentialsFile is the name of the administrator's key within the data
// directory.
const CredentialsFile = "credentials.json"

// NewKeyStore returns a KeyStore with a new administrator's key that is written
// nowhere, without users and roles.
func NewKeyStore() *KeyStore {
	return newKeyStore(DefaultAccount, lambdad.Credentials{AccessKeyID: newKeyID("AKIA"), SecretAccessKey: newSecret()}, nil)
}

func newKeyStore(account string, admin lambdad.Credentials, directory Directory) *KeyStore {
	return &KeyStore{
		account: account, admin: admin, directory: directory, now: time.Now,
		sealed: newSealer(admin.SecretAccessKey), temp: map[string]tempKey{},
	}
}

// OpenKeyStore reads the administrator's key from the data directory, or makes
// one at the first start: a file that only its owner can read, complete and on
// the disk before this returns.
// The directory may be nil.
func OpenKeyStore(dir string, directory Directory) (*KeyStore, error) {
	path := filepath.Join(dir, CredentialsFile)
	k, err := readKeyStore(path, directory)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	k = NewKeyStore()
	k.directory = directory
	body, err := json.MarshalIndent(credentialsFile{k.account, k.admin.AccessKeyID, k.admin.SecretAccessKey}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("aws: writing the administrator's key: %w", err)
	}
	if err := writeFile(path, append(body, '\n')); err != nil {
		return nil, fmt.Errorf("aws: writing the administrator's key: %w", err)
	}
	return k, nil
}

func readKeyStore(path string, directory Directory) (*KeyStore, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("aws: reading the administrator's key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("aws: %s can be read by others (mode %04o): run chmod 600 on it, or delete it to get a new key", path, info.Mode().Perm())
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("aws: reading the administrator's key: %w", err)
	}
	var f credentialsFile
	if err := json.Unmarshal(body, &f); err != nil {
		return nil, fmt.Errorf("aws: %s holds no credentials (delete it to get a new key): %w", path, err)
	}
	if len(f.Account) != 12 || strings.Trim(f.Account, "0123456789") != "" || f.AccessKeyID == "" || f.SecretAccessKey == "" {
		return nil, fmt.Errorf("aws: %s needs account (12 digits), accessKeyId and secretAccessKey; delete it to get a new key", path)
	}
	return newKeyStore(f.Account, lambdad.Credentials{AccessKeyID: f.AccessKeyID, SecretAccessKey: f.SecretAccessKey}, directory), nil
}

// writeFile makes a file that is either complete and durable or absent. The data
// directory is its server's alone, so nobody else makes the same file.
func writeFile(path string, body []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".credentials-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // after the rename there is nothing to remove
	_, err = f.Write(body)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Admin returns the administrator's key.
func (k *KeyStore) Admin() lambdad.Credentials { return k.admin }

// Account returns the account of the administrator's key.
func (k *KeyStore) Account() string { return k.account }

// Lookup implements Keys.
func (k *KeyStore) Lookup(_ context.Context, accessKeyID, token string) (secret string, id Identity, err error) {
	if subtle.ConstantTimeCompare([]byte(accessKeyID), []byte(k.admin.AccessKeyID)) == 1 {
		if token != "" {
			return "", id, ErrUnknownKey
		}
		return k.admin.SecretAccessKey, adminIdentity(k.account, accessKeyID), nil
	}
	if token == "" {
		if k.directory != nil {
			if secret, id, ok := k.directory.UserKey(accessKeyID); ok {
				return secret, id, nil
			}
		}
		return "", id, ErrUnknownKey
	}
	k.mu.RLock()
	t, ok := k.temp[accessKeyID]
	k.mu.RUnlock()
	if !ok {
		return k.session(accessKeyID, token)
	}
	if subtle.ConstantTimeCompare([]byte(t.token), []byte(token)) != 1 {
		return "", id, ErrUnknownKey
	}
	if k.now().After(t.id.Expires) {
		return "", id, ErrExpiredKey
	}
	k.withRole(&t.id)
	return t.secret, t.id, nil
}

// functionOf is the function of an execution environment that has credentials, or
// "".
func (k *KeyStore) functionOf(environmentID string) string {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for _, t := range k.temp {
		if t.id.EnvironmentID == environmentID {
			return t.id.Function
		}
	}
	return ""
}

// withRole adds to the session of an environment what its role may now. Where the
// role is gone, the session may do nothing; where roles are not known at all, it
// may what the role that everybody has may.
func (k *KeyStore) withRole(id *Identity) {
	if k.directory == nil {
		return
	}
	if r := k.directory.Role(id.Role); r != nil {
		id.Grants, id.Tags = r.Grants, r.Tags
		id.UserID = r.ID + ":" + id.Function
	}
}

// Lives of temporary credentials.
const (
	// EnvironmentKeyLife is how long the credentials of an execution environment
	// work: longer than the environment lives.
	EnvironmentKeyLife = 12 * time.Hour
)

// Mint returns what makes the temporary credentials of one execution environment:
// the version's role in a session named after the function. Each call makes new
// ones for a party, which is runtime or extension/<name>; all parties have the
// role's rights, and are told apart by their keys. They stop working when release
// is called.
func (k *KeyStore) Mint(v *lambdad.Version, environmentID string) (mint func(party string) lambdad.Credentials, release func()) {
	base := Identity{
		Account: v.Account, EnvironmentID: environmentID, Function: v.Function, Role: v.Role,
		ARN:    "arn:aws:sts::" + v.Account + ":assumed-role/" + roleName(v.Role) + "/" + v.Function,
		UserID: newKeyID("AROA") + ":" + v.Function,
	}
	var minted []string
	mint = func(party string) lambdad.Credentials {
		c := lambdad.Credentials{AccessKeyID: newKeyID("ASIA"), SecretAccessKey: newSecret(), SessionToken: newToken()}
		id := base
		id.AccessKeyID, id.Party, id.Issued = c.AccessKeyID, party, k.now()
		id.Expires = id.Issued.Add(EnvironmentKeyLife)
		k.mu.Lock()
		defer k.mu.Unlock()
		for _, key := range minted {
			if k.temp[key].id.Party == party { // of a process that was replaced
				delete(k.temp, key)
			}
		}
		minted = append(minted, c.AccessKeyID)
		k.temp[c.AccessKeyID] = tempKey{c.SecretAccessKey, c.SessionToken, id}
		return c
	}
	return mint, func() {
		k.mu.Lock()
		for _, key := range minted {
			delete(k.temp, key)
		}
		k.mu.Unlock()
	}
}

// roleName is the last part of a role ARN: paths are no part of session ARNs.
func roleName(arn string) string {
	_, name, _ := strings.Cut(arn, ":role")
	name = strings.TrimPrefix(name, "/")
	return name[strings.LastIndexByte(name, '/')+1:]
}

// newKeyID makes an id of 20 characters with the given prefix of 4.
func newKeyID(prefix string) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	var b [16]byte
	rand.Read(b[:])
	for i := range b {
		b[i] = letters[b[i]&31]
	}
	return prefix + string(b[:])
}

// newSecret makes a secret of 40 characters.
func newSecret() string {
	var b [30]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func newToken() string {
	var b [96]byte
	rand.Read(b[:])
	return base64.StdEncoding.EncodeToString(b[:])
}
