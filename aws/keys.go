package aws

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/lambdad/lambdad"
)

// A KeyStore holds the access keys of one server: the administrator's, kept in a
// file, and those of execution environments, which live as long as these do and
// are kept nowhere. It implements Keys and is safe for concurrent use.
type KeyStore struct {
	admin   lambdad.Credentials
	account string

	mu   sync.RWMutex // guards temp
	temp map[string]tempKey
}

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
// nowhere.
func NewKeyStore() *KeyStore {
	return &KeyStore{
		account: DefaultAccount,
		admin:   lambdad.Credentials{AccessKeyID: newKeyID("AKIA"), SecretAccessKey: newSecret()},
		temp:    map[string]tempKey{},
	}
}

// OpenKeyStore reads the administrator's key from the data directory, or makes
// one at the first start: a file that only its owner can read, complete and on
// the disk before this returns.
func OpenKeyStore(dir string) (*KeyStore, error) {
	path := filepath.Join(dir, CredentialsFile)
	k, err := readKeyStore(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	k = NewKeyStore()
	body, err := json.MarshalIndent(credentialsFile{k.account, k.admin.AccessKeyID, k.admin.SecretAccessKey}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("aws: writing the administrator's key: %w", err)
	}
	if err := writeFile(path, append(body, '\n')); err != nil {
		return nil, fmt.Errorf("aws: writing the administrator's key: %w", err)
	}
	return k, nil
}

func readKeyStore(path string) (*KeyStore, error) {
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
	return &KeyStore{
		account: f.Account,
		admin:   lambdad.Credentials{AccessKeyID: f.AccessKeyID, SecretAccessKey: f.SecretAccessKey},
		temp:    map[string]tempKey{},
	}, nil
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
func (k *KeyStore) Lookup(_ context.Context, accessKeyID string) (secret, token string, id Identity, ok bool) {
	if accessKeyID == k.admin.AccessKeyID {
		return k.admin.SecretAccessKey, "", adminIdentity(k.account, accessKeyID), true
	}
	k.mu.RLock()
	t, ok := k.temp[accessKeyID]
	k.mu.RUnlock()
	return t.secret, t.token, t.id, ok
}

// Mint makes the temporary credentials of an execution environment: the version's
// role in a session named after the function. They stop working when release is
// called.
func (k *KeyStore) Mint(v *lambdad.Version, environmentID string) (c lambdad.Credentials, release func()) {
	c = lambdad.Credentials{AccessKeyID: newKeyID("ASIA"), SecretAccessKey: newSecret(), SessionToken: newToken()}
	id := Identity{
		Account: v.Account, AccessKeyID: c.AccessKeyID, EnvironmentID: environmentID,
		ARN:    "arn:aws:sts::" + v.Account + ":assumed-role/" + roleName(v.Role) + "/" + v.Function,
		UserID: newKeyID("AROA") + ":" + v.Function,
	}
	k.mu.Lock()
	k.temp[c.AccessKeyID] = tempKey{c.SecretAccessKey, c.SessionToken, id}
	k.mu.Unlock()
	return c, func() {
		k.mu.Lock()
		delete(k.temp, c.AccessKeyID)
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
