package mem

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"sync"

	"github.com/lambdad/lambdad/blob"
)

// Blobs is a blob.Store in memory.
type Blobs struct {
	mu      sync.Mutex
	content map[string][]byte
}

// NewBlobs returns an empty archive store.
func NewBlobs() *Blobs { return &Blobs{content: map[string][]byte{}} }

// Put implements blob.Store.
func (b *Blobs) Put(ctx context.Context, r io.Reader) (string, int64, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return "", 0, fmt.Errorf("blob: reading content to store: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return "", 0, err
	}
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.content[digest]; !ok {
		b.content[digest] = data
	}
	return digest, int64(len(data)), nil
}

// Open implements blob.Store.
func (b *Blobs) Open(ctx context.Context, digest string) (blob.Reader, int64, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	data, ok := b.content[digest]
	if !ok {
		return nil, 0, fmt.Errorf("%w: %s", blob.ErrNotFound, digest)
	}
	return reader{bytes.NewReader(data)}, int64(len(data)), nil
}

// Delete implements blob.Store.
func (b *Blobs) Delete(ctx context.Context, digest string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.content, digest)
	return nil
}

// List implements blob.Store.
func (b *Blobs) List(ctx context.Context, f func(digest string, size int64) bool) error {
	b.mu.Lock()
	sizes := make(map[string]int64, len(b.content))
	for d, data := range b.content {
		sizes[d] = int64(len(data))
	}
	b.mu.Unlock()
	for d, size := range sizes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !f(d, size) {
			return nil
		}
	}
	return nil
}

type reader struct{ *bytes.Reader }

func (reader) Close() error { return nil }
