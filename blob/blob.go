// Package blob is the contract of the archive store: immutable content, named by
// its SHA-256.
//
// The suite in blobtest says the same in code; every implementation passes it.
package blob

import (
	"context"
	"errors"
	"io"
)

// ErrNotFound says that no content has the digest.
var ErrNotFound = errors.New("blob: not found")

// ErrFull says that storing would cut into the reserve of the disk.
var ErrFull = errors.New("blob: no space left")

// ErrCorrupt says that content does not match its digest.
var ErrCorrupt = errors.New("blob: content does not match its digest")

// A Store keeps content by digest: SHA-256 in 64 lower-case hexadecimal digits.
// What is not such a digest is not found. Its methods may be called at the same
// time.
type Store interface {
	// Put stores what r gives, durably, and returns digest and size. Content
	// that is already there is stored once. On error nothing is kept.
	Put(ctx context.Context, r io.Reader) (digest string, size int64, err error)
	// Open returns the content, which can also be read at random, and its size,
	// or ErrNotFound.
	Open(ctx context.Context, digest string) (Reader, int64, error)
	// Delete removes it; removing what is not there is not an error. An open
	// Reader goes on.
	Delete(ctx context.Context, digest string) error
	// List calls f with every digest, in no order, until f returns false.
	List(ctx context.Context, f func(digest string, size int64) bool) error
}

// CheckDigest says whether digest has the form of one.
func CheckDigest(digest string) bool {
	if len(digest) != 64 {
		return false
	}
	for i := 0; i < len(digest); i++ {
		if c := digest[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// A Reader reads one blob.
type Reader interface {
	io.Reader
	io.ReaderAt
	io.Closer
}
