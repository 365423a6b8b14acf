// Package store is the contract of the record store: small JSON records under
// hierarchical keys, with revisions.
//
// Keys are dot-separated tokens and begin with account and region, such as
// 000000000000.us-east-1.function.hello; each token matches [-/_=a-zA-Z0-9]+.
// A service owns the keys it writes. A write has happened, and survives kill -9
// and power loss, when the call returns without error.
package store

import (
	"context"
	"errors"
)

// ErrNotFound says that no record has the key.
var ErrNotFound = errors.New("store: not found")

// ErrConflict says that the record is not at the given revision: read again,
// decide again.
var ErrConflict = errors.New("store: revision conflict")

// ErrFull says that the medium has no room; what was acknowledged is untouched.
var ErrFull = errors.New("store: no space left")

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

// A Store keeps records.
type Store interface {
	// Get returns the newest record, or ErrNotFound. A write that was
	// acknowledged is seen by every later Get.
	Get(ctx context.Context, key string) (Record, error)
	// Put writes whatever is there and returns the new revision.
	Put(ctx context.Context, key string, value []byte) (uint64, error)
	// Create writes only if there is no record, else ErrConflict.
	Create(ctx context.Context, key string, value []byte) (uint64, error)
	// Update writes only over the given revision, else ErrConflict.
	Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
	// Delete removes the record; removing none is not an error. With revision
	// other than 0 only if it still has that revision, else ErrConflict.
	Delete(ctx context.Context, key string, revision uint64) error
	// List returns all records whose key begins with prefix, sorted by key.
	// A prefix ends at a token boundary: "a.b" finds a.b and a.b.c, not a.bc.
	List(ctx context.Context, prefix string) ([]Record, error)
	// Watch sends the present records under prefix, then one zero Update (Key
	// "") to say that these were all, then every later change, in order, missing
	// none, until ctx ends; then the channel is closed.
	Watch(ctx context.Context, prefix string) (<-chan Update, error)
}
