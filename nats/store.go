package nats

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lambdad/lambdad/store"
)

const (
	bucket       = "KV_records"  // stream of the bucket "records"
	recordPrefix = "$KV.records" // subjects are this, a dot and the key, as it is
	opHeader     = "KV-Operation"
	opDelete     = "DEL"
	// markerLife is how long the mark of a deletion is kept for watchers that
	// have not read it; then the key is forgotten.
	markerLife = 24 * time.Hour
	// endCheck is how long a watch waits for the next of the present records
	// before it asks whether there is one.
	endCheck = 2 * time.Second
)

// Store is a store.Store on a key-value bucket.
type Store struct {
	e      *Engine
	stream jetstream.Stream
	// writes is held shared by every write, and alone by a reader that has to
	// know that it has read all.
	writes  sync.RWMutex
	ctx     context.Context // ends all watches at Close
	cancel  context.CancelFunc
	mu      sync.Mutex // orders new watches and Close
	watches sync.WaitGroup
}

func openStore(ctx context.Context, e *Engine) (*Store, error) {
	stream, err := e.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name:              bucket,
		Description:       "lambdad records",
		Subjects:          []string{recordPrefix + ".>"},
		Storage:           jetstream.FileStorage,
		Retention:         jetstream.LimitsPolicy,
		MaxMsgsPerSubject: 1,
		MaxMsgs:           -1,
		MaxBytes:          -1,
		MaxMsgSize:        -1,
		Discard:           jetstream.DiscardNew,
		AllowDirect:       true,
		AllowRollup:       true,
		DenyDelete:        true,
		AllowMsgTTL:       true, // for the marks of deletions
		Replicas:          1,
	})
	if err != nil {
		return nil, fmt.Errorf("making the bucket of records: %w", translate(err, store.ErrFull, store.ErrClosed))
	}
	s := &Store{e: e, stream: stream}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// close ends all watches and waits for them.
func (s *Store) close() {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.watches.Wait()
}

func subject(key string) string { return recordPrefix + "." + key }

// last returns the last message of a key: a record, the mark of a deletion (its
// revision with deleted set), or nothing (revision 0).
func (s *Store) last(ctx context.Context, key string) (r store.Record, deleted bool, err error) {
	if s.ctx.Err() != nil {
		return store.Record{}, false, store.ErrClosed
	}
	m, err := s.stream.GetLastMsgForSubject(ctx, subject(key))
	if errors.Is(err, jetstream.ErrMsgNotFound) || code(err) == errNoMessage {
		return store.Record{}, false, nil
	}
	if err != nil {
		return store.Record{}, false, fmt.Errorf("reading record %s: %w", key, translate(err, store.ErrFull, store.ErrClosed))
	}
	return store.Record{Key: key, Value: nonNil(m.Data), Revision: m.Sequence}, m.Header.Get(opHeader) != "", nil
}

// nonNil makes an empty value of a nil one, which would mean none.
func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// publish writes m if the last message of its key has the sequence number expected
// (0: if there is none; negative: always).
func (s *Store) publish(ctx context.Context, key string, m *natsgo.Msg, expected int64, opts ...jetstream.PublishOpt) (uint64, error) {
	if err := s.e.room(len(m.Data), store.ErrFull); err != nil {
		return 0, fmt.Errorf("writing record %s: %w", key, err)
	}
	if s.ctx.Err() != nil {
		return 0, store.ErrClosed
	}
	if expected >= 0 {
		opts = append(opts, jetstream.WithExpectLastSequencePerSubject(uint64(expected)))
	}
	s.writes.RLock()
	ack, err := s.e.publish(ctx, m, opts...)
	s.writes.RUnlock()
	if code(err) == errWrongLast {
		return 0, store.ErrConflict
	}
	if err != nil {
		return 0, fmt.Errorf("writing record %s: %w", key, translate(err, store.ErrFull, store.ErrClosed))
	}
	return ack.Sequence, nil
}

func check(ctx context.Context, key string, value []byte) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := store.CheckKey(key); err != nil {
		return err
	}
	return store.CheckValue(key, value)
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Record, error) {
	if err := check(ctx, key, nil); err != nil {
		return store.Record{}, err
	}
	r, deleted, err := s.last(ctx, key)
	if err == nil && (deleted || r.Revision == 0) {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.Record{}, err
	}
	return r, nil
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	if err := check(ctx, key, value); err != nil {
		return 0, err
	}
	return s.publish(ctx, key, &natsgo.Msg{Subject: subject(key), Data: value}, -1)
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	if err := check(ctx, key, value); err != nil {
		return 0, err
	}
	for expected := int64(0); ; {
		revision, err := s.publish(ctx, key, &natsgo.Msg{Subject: subject(key), Data: value}, expected)
		if !errors.Is(err, store.ErrConflict) {
			return revision, err
		}
		// Something is there. If it is only the mark of a deletion, replace that.
		r, deleted, err := s.last(ctx, key)
		if err != nil {
			return 0, err
		}
		if r.Revision != 0 && !deleted {
			return 0, store.ErrConflict
		}
		expected = int64(r.Revision)
	}
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	if err := check(ctx, key, value); err != nil {
		return 0, err
	}
	// To the engine, the mark of a deletion is a message like any other.
	r, deleted, err := s.last(ctx, key)
	if err != nil {
		return 0, err
	}
	if r.Revision == 0 || deleted || r.Revision != revision {
		return 0, store.ErrConflict
	}
	return s.publish(ctx, key, &natsgo.Msg{Subject: subject(key), Data: value}, int64(revision))
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string, revision uint64) error {
	if err := check(ctx, key, nil); err != nil {
		return err
	}
	for {
		r, deleted, err := s.last(ctx, key)
		if err != nil {
			return err
		}
		gone := r.Revision == 0 || deleted
		switch {
		case revision != 0 && (gone || r.Revision != revision):
			return store.ErrConflict
		case gone:
			return nil
		}
		m := &natsgo.Msg{Subject: subject(key), Header: natsgo.Header{opHeader: {opDelete}}}
		_, err = s.publish(ctx, key, m, int64(r.Revision), jetstream.WithMsgTTL(markerLife))
		if revision == 0 && errors.Is(err, store.ErrConflict) {
			continue // written meanwhile: delete that
		}
		return err
	}
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if err := store.CheckPattern(prefix); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := s.read(ctx, prefix)
	if err != nil {
		return nil, err
	}
	defer r.stop()
	// A record may come twice: as it was, and as it is now.
	found := map[string]store.Record{}
	for {
		u, err := r.next(ctx)
		if err != nil {
			return nil, fmt.Errorf("listing records under %q: %w", prefix, err)
		}
		switch {
		case u.Key == "":
			all := make([]store.Record, 0, len(found))
			for _, rec := range found {
				all = append(all, rec)
			}
			sort.Slice(all, func(i, j int) bool { return all[i].Key < all[j].Key })
			return all, nil
		case u.Deleted:
			delete(found, u.Key)
		default:
			found[u.Key] = u.Record
		}
	}
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string) (<-chan store.Update, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if err := store.CheckPattern(prefix); err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.ctx.Err() != nil {
		s.mu.Unlock()
		return nil, store.ErrClosed
	}
	s.watches.Add(1)
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	r, err := s.read(ctx, prefix)
	if err != nil {
		cancel()
		s.watches.Done()
		return nil, err
	}
	stop := context.AfterFunc(s.ctx, cancel)
	out := make(chan store.Update, 64)
	go func() {
		defer s.watches.Done()
		defer close(out)
		defer r.stop()
		defer cancel()
		defer stop()
		seen := map[string]bool(nil) // keys sent before the end of the present ones
		present := true
		for {
			u, err := r.next(ctx)
			if err != nil {
				if ctx.Err() == nil {
					s.e.cfg.Logger.Error("a watch of records ended early", "prefix", prefix, "err", err)
				}
				return
			}
			if u.Key == "" {
				present, seen = false, nil
			} else if present {
				if u.Deleted && !seen[u.Key] {
					continue // gone before the watch began
				}
				if seen == nil {
					seen = map[string]bool{}
				}
				seen[u.Key] = true
			}
			select {
			case out <- u:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// A reader goes through the last message of every key, then what follows.
type reader struct {
	s        *Store
	consumer jetstream.Consumer
	filters  []string
	messages jetstream.MessagesContext
	present  bool           // still among the present records
	received uint64         // sequence number of the last message
	buffer   []store.Update // read ahead; the end of the present ones among them
}

func (s *Store) read(ctx context.Context, prefix string) (*reader, error) {
	if s.ctx.Err() != nil {
		return nil, store.ErrClosed
	}
	filters := []string{recordPrefix + ".>"}
	if prefix != "" {
		filters = []string{subject(prefix), subject(prefix) + ".>"}
	}
	fail := func(err error) (*reader, error) {
		return nil, fmt.Errorf("reading records under %q: %w", prefix, translate(err, store.ErrFull, store.ErrClosed))
	}
	c, err := s.stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		FilterSubjects: filters,
		DeliverPolicy:  jetstream.DeliverLastPerSubjectPolicy,
	})
	if err != nil {
		return fail(err)
	}
	r := &reader{s: s, consumer: c, filters: filters, present: true}
	if r.messages, err = c.Messages(); err != nil {
		return fail(err)
	}
	if c.CachedInfo().NumPending == 0 {
		if err := r.finish(ctx); err != nil {
			r.stop()
			return fail(err)
		}
	}
	return r, nil
}

// stop ends the reader. The engine would keep its side for minutes, and has a limit.
func (r *reader) stop() {
	r.messages.Stop()
	if r.s.ctx.Err() != nil {
		return // it ends with the engine
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerLimit)
	defer cancel()
	name := r.consumer.CachedInfo().Name // another than at first if it had to begin anew
	if err := r.s.stream.DeleteConsumer(ctx, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) && r.s.ctx.Err() == nil {
		r.s.e.cfg.Logger.Warn("cannot remove a reader of records from the engine", "err", err)
	}
}

// next returns the next message as an update; a zero one after the present ones.
func (r *reader) next(ctx context.Context) (store.Update, error) {
	for len(r.buffer) == 0 {
		if !r.present {
			u, _, err := r.receive(ctx, 0)
			return u, err
		}
		u, pending, err := r.receive(ctx, endCheck)
		if err != nil && !errors.Is(err, errSilent) {
			return store.Update{}, err
		}
		if err == nil {
			r.buffer = append(r.buffer, u)
		}
		if err != nil || pending == 0 {
			if err := r.finish(ctx); err != nil {
				return store.Update{}, err
			}
		}
	}
	u := r.buffer[0]
	r.buffer = r.buffer[1:]
	return u, nil
}

// finish reads the last of the present records, and their end, into the buffer.
//
// That the engine has nothing more to deliver does not mean that all was read: a
// record being rewritten leaves its old place before it is counted in its new one.
// So this looks, while nobody writes, how far there is to read. Little is left by
// then, and the writers wait for no caller.
func (r *reader) finish(ctx context.Context) error {
	r.s.writes.Lock()
	defer r.s.writes.Unlock()
	var last uint64
	for _, f := range r.filters {
		m, err := r.s.e.request(ctx, "$JS.API.DIRECT.GET."+bucket, `{"last_by_subj":"`+f+`"}`)
		if err != nil {
			return translate(err, store.ErrFull, store.ErrClosed)
		}
		switch status := m.Header.Get("Status"); status {
		case "":
			sequence, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
			if err != nil {
				return fmt.Errorf("looking for the last record: %w", err)
			}
			last = max(last, sequence)
		case "404":
		default:
			return fmt.Errorf("looking for the last record: %s %s", status, m.Header.Get("Description"))
		}
	}
	for r.received < last {
		u, _, err := r.receive(ctx, endCheck)
		if errors.Is(err, errSilent) {
			break // it was the mark of a deletion, and has just grown old
		}
		if err != nil {
			return err
		}
		r.buffer = append(r.buffer, u)
	}
	r.buffer = append(r.buffer, store.Update{})
	r.present = false
	return nil
}

// errSilent says that no message came in time.
var errSilent = errors.New("no message in time")

// receive returns the next message as an update and how many, by the engine's
// count, follow. Limit 0 is none.
func (r *reader) receive(ctx context.Context, limit time.Duration) (store.Update, uint64, error) {
	wait := ctx
	if limit > 0 {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	m, err := r.messages.Next(jetstream.NextContext(wait))
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return store.Update{}, 0, context.Cause(ctx)
	case wait.Err() != nil:
		return store.Update{}, 0, errSilent
	default:
		return store.Update{}, 0, translate(err, store.ErrFull, store.ErrClosed)
	}
	meta, err := m.Metadata()
	if err != nil {
		return store.Update{}, 0, err
	}
	r.received = meta.Sequence.Stream
	u := store.Update{Record: store.Record{Key: strings.TrimPrefix(m.Subject(), recordPrefix+"."), Revision: r.received}}
	if m.Headers().Get(opHeader) != "" {
		u.Deleted = true
	} else {
		u.Value = nonNil(m.Data())
	}
	return u, meta.NumPending, nil
}
