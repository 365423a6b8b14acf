// Package mem implements the record store, the queue and the archive store in
// memory: for `lambdad run`, which leaves nothing behind, and for tests, whose
// answers on it must be those on the durable engine.
//
// Nothing survives the process. Everything here is usable from its constructor
// on and may be used by many goroutines.
package mem

import (
	"bytes"
	"context"
	"sort"
	"sync"

	"github.com/lambdad/lambdad/store"
)

// Store is a store.Store in memory. It delivers every single change to its
// watchers.
type Store struct {
	mu       sync.Mutex // guards all below and each watcher's pending
	records  map[string]store.Record
	revision uint64
	watchers map[*watcher]struct{}
	closed   bool
}

// A watcher holds what one Watch has not sent yet. Writers append and never wait.
type watcher struct {
	prefix  string
	pending []store.Update
	wake    chan struct{} // capacity 1
}

// NewStore returns an empty store.
func NewStore() *Store {
	return &Store{records: map[string]store.Record{}, watchers: map[*watcher]struct{}{}}
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	if err := firstErr(ctx.Err(), store.CheckKey(key)); err != nil {
		return store.Record{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.Record{}, store.ErrClosed
	}
	r, ok := s.records[key]
	if !ok {
		return store.Record{}, store.ErrNotFound
	}
	return clone(r), nil
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	return s.write(ctx, key, value, func(uint64) bool { return true })
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	return s.write(ctx, key, value, func(present uint64) bool { return present == 0 })
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	return s.write(ctx, key, value, func(present uint64) bool { return present != 0 && present == revision })
}

// write stores value if allowed says so, given the present revision (0: none).
func (s *Store) write(ctx context.Context, key string, value []byte, allowed func(uint64) bool) (uint64, error) {
	if err := firstErr(ctx.Err(), store.CheckKey(key), store.CheckValue(key, value)); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, store.ErrClosed
	}
	if !allowed(s.records[key].Revision) {
		return 0, store.ErrConflict
	}
	s.revision++
	r := store.Record{Key: key, Value: append([]byte{}, value...), Revision: s.revision}
	s.records[key] = r
	s.tell(store.Update{Record: r})
	return s.revision, nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string, revision uint64) error {
	if err := firstErr(ctx.Err(), store.CheckKey(key)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.ErrClosed
	}
	r, ok := s.records[key]
	if revision != 0 && r.Revision != revision {
		return store.ErrConflict
	}
	if !ok {
		return nil
	}
	delete(s.records, key)
	s.revision++
	s.tell(store.Update{Record: store.Record{Key: key, Revision: s.revision}, Deleted: true})
	return nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Record, error) {
	if err := firstErr(ctx.Err(), store.CheckPattern(prefix)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, store.ErrClosed
	}
	return s.list(prefix), nil
}

func (s *Store) list(prefix string) []store.Record {
	var all []store.Record
	for k, r := range s.records {
		if store.Under(k, prefix) {
			all = append(all, clone(r))
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Key < all[j].Key })
	return all
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string) (<-chan store.Update, error) {
	if err := firstErr(ctx.Err(), store.CheckPattern(prefix)); err != nil {
		return nil, err
	}
	w := &watcher{prefix: prefix, wake: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, store.ErrClosed
	}
	for _, r := range s.list(prefix) {
		w.pending = append(w.pending, store.Update{Record: r})
	}
	// Revisions only grow, in the first part too.
	sort.Slice(w.pending, func(i, j int) bool { return w.pending[i].Revision < w.pending[j].Revision })
	w.pending = append(w.pending, store.Update{})
	w.wake <- struct{}{}
	s.watchers[w] = struct{}{}
	out := make(chan store.Update)
	go s.feed(ctx, w, out)
	return out, nil
}

// feed sends what w has pending until ctx ends or the store is closed.
func (s *Store) feed(ctx context.Context, w *watcher, out chan<- store.Update) {
	defer close(out)
	defer func() {
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
	}()
	for {
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		}
		s.mu.Lock()
		batch, closed := w.pending, s.closed
		w.pending = nil
		s.mu.Unlock()
		for _, u := range batch {
			u.Record = clone(u.Record)
			select {
			case out <- u:
			case <-ctx.Done():
				return
			}
		}
		if closed {
			return
		}
	}
}

// tell gives u to the watchers it concerns; mu is held.
func (s *Store) tell(u store.Update) {
	for w := range s.watchers {
		if store.Under(u.Key, w.prefix) {
			w.pending = append(w.pending, u)
			w.ring()
		}
	}
}

func (w *watcher) ring() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Close ends all watches. Later calls return store.ErrClosed.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for w := range s.watchers {
		w.ring()
	}
	return nil
}

// clone keeps callers from changing what is stored. A deletion's nil stays nil.
func clone(r store.Record) store.Record {
	r.Value = bytes.Clone(r.Value)
	return r
}

func firstErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
