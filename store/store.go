// Package store is the contract of the record store: small JSON records under
// hierarchical keys, with revisions.
//
// Keys are dot-separated tokens and begin with account and region, such as
// 000000000000.us-east-1.function.hello; each token matches [-/_=a-zA-Z0-9]+.
// A service owns the keys it writes. A write has happened, and survives kill -9
// and power loss, when the call returns without error. After an error other than
// those named here (a cancelled context, say) it may or may not have happened:
// read again.
//
// The suite in storetest says the same in code; every implementation passes it.
package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Limits of a record. Larger content belongs in the blob store.
const (
	MaxKey   = 1024    // bytes of a key
	MaxValue = 4 << 20 // bytes of a value
)

// ErrNotFound says that no record has the key.
var ErrNotFound = errors.New("store: not found")

// ErrConflict says that the record is not at the given revision: read again,
// decide again.
var ErrConflict = errors.New("store: revision conflict")

// ErrFull says that the medium has no room; what was acknowledged is untouched.
var ErrFull = errors.New("store: no space left")

// ErrInvalid says that a key, prefix or value breaks the rules above; the error
// that wraps it names which.
var ErrInvalid = errors.New("store: invalid")

// ErrClosed says that the store was closed.
var ErrClosed = errors.New("store: closed")

// A Record is a value at a revision.
type Record struct {
	Key      string
	Value    []byte
	Revision uint64 // grows with each write to the store; never 0
}

// An Update is one change seen by a watcher.
type Update struct {
	Record
	// Deleted: the record is gone; Value is nil.
	Deleted bool
}

// A Store keeps records. Its methods may be called at the same time; values given
// and returned belong to the caller.
type Store interface {
	// Get returns the newest record, or ErrNotFound. A write that was
	// acknowledged is seen by every later Get.
	Get(ctx context.Context, key string) (Record, error)
	// Put writes whatever is there and returns the new revision.
	Put(ctx context.Context, key string, value []byte) (uint64, error)
	// Create writes only if there is no record, else ErrConflict.
	Create(ctx context.Context, key string, value []byte) (uint64, error)
	// Update writes only over the given revision, else ErrConflict; so also when
	// the record is gone.
	Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
	// Delete removes the record; removing none is not an error. With revision
	// other than 0 only if it still has that revision, else ErrConflict; so also
	// when the record is gone.
	Delete(ctx context.Context, key string, revision uint64) error
	// List returns all records whose key begins with prefix, sorted by key.
	// A prefix ends at a token boundary: "a.b" finds a.b and a.b.c, not a.bc, and a
	// token * is any one token, so that "*.*.function" finds the functions of all
	// accounts and regions, reading nothing else. The empty prefix finds all. A record that is there during the whole call is in
	// the answer, at one of the revisions it had meanwhile.
	List(ctx context.Context, prefix string) ([]Record, error)
	// Watch sends the present records under prefix, then one zero Update (Key
	// "") to say that these were all, then every later change, in order, missing
	// none, until ctx ends or the store is closed; then the channel is closed.
	//
	// Revisions only grow. Writers never wait for a watcher: where one record
	// changes several times before the watcher has read, it may get the newest
	// change alone (a deletion made good by a new Create, the new record alone).
	// So what a watcher has folded together is always, in the end, what List says.
	Watch(ctx context.Context, prefix string) (<-chan Update, error)
}

// CheckKey returns an error wrapping ErrInvalid unless key is legal: dot-separated
// tokens of [-/_=a-zA-Z0-9]+, at most MaxKey bytes.
func CheckKey(key string) error {
	if key == "" {
		return fmt.Errorf("%w key: empty", ErrInvalid)
	}
	return checkTokens("key", key)
}

// CheckPrefix is CheckKey for a prefix, which may also be empty.
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	return checkTokens("prefix", prefix)
}

// CheckPattern is CheckPrefix for a prefix whose tokens may be *.
func CheckPattern(prefix string) error {
	if strings.IndexByte(prefix, '*') < 0 {
		return CheckPrefix(prefix)
	}
	tokens := strings.Split(prefix, ".")
	for i, t := range tokens {
		if t == "*" {
			tokens[i] = "x"
		}
	}
	return checkTokens("prefix", strings.Join(tokens, "."))
}

// CheckValue returns an error wrapping ErrInvalid if value is over MaxValue.
func CheckValue(key string, value []byte) error {
	if len(value) > MaxValue {
		return fmt.Errorf("%w value: record %s would have %d bytes, the limit is %d", ErrInvalid, key, len(value), MaxValue)
	}
	return nil
}

func checkTokens(what, s string) error {
	if len(s) > MaxKey {
		return fmt.Errorf("%w %s: %d bytes, the limit is %d", ErrInvalid, what, len(s), MaxKey)
	}
	empty := true // no character of the present token yet
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '.':
			if empty {
				return fmt.Errorf("%w %s %q: empty token", ErrInvalid, what, s)
			}
			empty = true
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '/', c == '_', c == '=':
			empty = false
		default:
			return fmt.Errorf("%w %s %q: character %q; tokens are made of [-/_=a-zA-Z0-9]", ErrInvalid, what, s, c)
		}
	}
	if empty {
		return fmt.Errorf("%w %s %q: ends with a dot", ErrInvalid, what, s)
	}
	return nil
}

// Under says whether key begins with prefix at a token boundary. A token * of the
// prefix is any one token.
func Under(key, prefix string) bool {
	for {
		before, after, found := strings.Cut(prefix, "*")
		rest, ok := strings.CutPrefix(key, before)
		if !found || !ok {
			return ok && (prefix == "" || rest == "" || rest[0] == '.')
		}
		end := strings.IndexByte(rest, '.')
		if end < 0 {
			return after == "" && rest != ""
		}
		if key, prefix = rest[end:], after; prefix == "" {
			return true
		}
	}
}
