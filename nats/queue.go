package nats

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lambdad/lambdad/queue"
	"github.com/lambdad/lambdad/store"
)

const (
	workStream = "QUEUE"
	workPrefix = "q" // subjects are this, a dot and the subject, as it is
	prefixMeta = "lambdad-prefix"
	// never is the engine's own limit of a lease. Leases and delays are timed
	// here, by a clock that does not jump; the engine goes by the date.
	never = 10 * 365 * 24 * time.Hour
	// maxAsked bounds how many receivers of one prefix the engine knows of.
	maxAsked = 64
	// idleLife is how long the engine's side of a prefix outlives its use.
	idleLife = time.Minute
)

// Queue is a queue.Queue on a work-queue stream. Each prefix that is received from
// has a durable consumer, which remembers how often its messages were delivered.
type Queue struct {
	e      *Engine
	stream jetstream.Stream

	// mu guards sources, and users and idle of every source. It is taken before a
	// source's own mu, and held while consumers are made and removed, so that the
	// engine and sources always agree.
	mu      sync.Mutex
	sources map[string]*source // by prefix; no two in use overlap
	closed  bool
}

// A source is one prefix: those who wait for its messages, and its consumer.
type source struct {
	q      *Queue
	prefix string
	name   string // of the consumer

	users int         // receivers, leases and delays
	idle  *time.Timer // removes the source when it has had no users for a while

	mu      sync.Mutex
	sub     *natsgo.Subscription // nil until the first Receive
	waiting *list.List           // of chan *natsgo.Msg, capacity 1; closed at Close
	asked   int                  // messages the engine owes us
	spare   []*natsgo.Msg        // came for receivers that had gone
}

func openQueue(ctx context.Context, e *Engine) (*Queue, error) {
	stream, err := e.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name:        workStream,
		Description: "lambdad queue",
		Subjects:    []string{workPrefix + ".>"},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.WorkQueuePolicy,
		MaxMsgs:     -1,
		MaxBytes:    -1,
		MaxMsgSize:  -1,
		Discard:     jetstream.DiscardNew,
		Duplicates:  queue.DedupWindow,
		Replicas:    1,
	})
	if err != nil {
		return nil, fmt.Errorf("making the queue: %w", translate(err, queue.ErrFull, queue.ErrClosed))
	}
	q := &Queue{e: e, stream: stream, sources: map[string]*source{}}
	if err := q.recover(ctx); err != nil {
		return nil, fmt.Errorf("recovering the queue: %w", translate(err, queue.ErrFull, queue.ErrClosed))
	}
	return q, nil
}

// recover gives back what the process before had leased, and forgets consumers that
// have nothing to remember.
func (q *Queue) recover(ctx context.Context) error {
	consumers := q.stream.ListConsumers(ctx)
	var unused []string
	for info := range consumers.Info() {
		prefix, ok := info.Config.Metadata[prefixMeta]
		if !ok || info.NumAckPending == 0 {
			unused = append(unused, info.Name)
			continue
		}
		q.sources[prefix] = q.newSource(prefix)
		// Which ones are leased the engine does not tell; refusing the others has
		// no effect.
		first, last := info.AckFloor.Stream+1, info.Delivered.Stream
		q.e.cfg.Logger.Debug("giving back leased messages", "prefix", prefix, "count", info.NumAckPending)
		for seq := first; seq <= last; seq++ {
			ack := fmt.Sprintf("$JS.ACK.%s.%s.1.%d.%d.%d.0", workStream, info.Name, seq, info.Delivered.Consumer, time.Now().UnixNano())
			if seq < last && seq%1000 != 0 {
				if err := q.e.conn.Publish(ack, []byte("-NAK")); err != nil {
					return err
				}
			} else if _, err := q.e.request(ctx, ack, "-NAK"); err != nil {
				return err
			}
		}
	}
	if err := consumers.Err(); err != nil {
		return err
	}
	for _, name := range unused {
		if err := q.stream.DeleteConsumer(ctx, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return err
		}
	}
	return nil
}

// request sends body and waits for the answer, for as long as ctx or answerLimit.
func (e *Engine) request(ctx context.Context, subject, body string) (*natsgo.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	return e.conn.RequestWithContext(ctx, subject, []byte(body))
}

func (q *Queue) newSource(prefix string) *source {
	sum := sha256.Sum256([]byte(prefix))
	return &source{q: q, prefix: prefix, name: "prefix-" + hex.EncodeToString(sum[:16]), waiting: list.New()}
}

// Enqueue implements queue.Queue.
func (q *Queue) Enqueue(ctx context.Context, subject, id string, body []byte) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := store.CheckKey(subject); err != nil {
		return fmt.Errorf("%w subject: %w", queue.ErrInvalid, err)
	}
	if len(body) > queue.MaxMessage {
		return fmt.Errorf("%w: %d bytes for %s, the limit is %d", queue.ErrTooLarge, len(body), subject, queue.MaxMessage)
	}
	if err := q.e.room(len(body), queue.ErrFull); err != nil {
		return fmt.Errorf("enqueueing for %s: %w", subject, err)
	}
	var opts []jetstream.PublishOpt
	if id != "" {
		// The engine compares ids in the whole stream, and puts them in a header.
		sum := sha256.Sum256([]byte(subject + " " + id))
		opts = append(opts, jetstream.WithMsgID(hex.EncodeToString(sum[:16])))
	}
	if _, err := q.e.publish(ctx, &natsgo.Msg{Subject: workPrefix + "." + subject, Data: body}, opts...); err != nil {
		return fmt.Errorf("enqueueing for %s: %w", subject, translate(err, queue.ErrFull, queue.ErrClosed))
	}
	return nil
}

// Receive implements queue.Queue.
func (q *Queue) Receive(ctx context.Context, prefix string, lease time.Duration) (queue.Message, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if err := store.CheckPrefix(prefix); err != nil {
		return nil, fmt.Errorf("%w: %w", queue.ErrInvalid, err)
	}
	if lease <= 0 {
		return nil, fmt.Errorf("%w lease: %v", queue.ErrInvalid, lease)
	}
	s, err := q.enter(ctx, prefix)
	if err != nil {
		return nil, err
	}
	m, err := s.receive(ctx)
	if err != nil {
		q.leave(s)
		return nil, fmt.Errorf("receiving under %q: %w", prefix, err)
	}
	l := &message{source: s, msg: m, length: lease}
	if l.meta, err = m.Metadata(); err != nil {
		q.leave(s)
		return nil, fmt.Errorf("receiving under %q: %w", prefix, err)
	}
	l.mu.Lock() // the timer may be quicker than this function
	l.until = time.Now().Add(lease)
	l.timer = time.AfterFunc(lease, l.expire)
	l.mu.Unlock()
	return l, nil
}

// filters returns the engine's form of a prefix.
func filters(prefix string) []string {
	if prefix == "" {
		return []string{workPrefix + ".>"}
	}
	return []string{workPrefix + "." + prefix, workPrefix + "." + prefix + ".>"}
}

// enter returns the source of prefix with one user more.
func (q *Queue) enter(ctx context.Context, prefix string) (*source, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, queue.ErrClosed
	}
	for other, s := range q.sources {
		if other == prefix || (!store.Under(other, prefix) && !store.Under(prefix, other)) {
			continue
		}
		if s.users > 0 {
			return nil, fmt.Errorf("%w: %q and %q", queue.ErrOverlap, prefix, other)
		}
		if err := q.remove(ctx, s); err != nil {
			return nil, fmt.Errorf("receiving under %q: %w", prefix, err)
		}
	}
	s := q.sources[prefix]
	if s == nil {
		s = q.newSource(prefix)
	}
	if s.sub == nil {
		if err := s.start(ctx); err != nil {
			return nil, fmt.Errorf("receiving under %q: %w", prefix, translate(err, queue.ErrFull, queue.ErrClosed))
		}
		q.sources[prefix] = s
	}
	s.users++
	if s.idle != nil {
		s.idle.Stop()
		s.idle = nil
	}
	return s, nil
}

// leave takes one user from s.
func (q *Queue) leave(s *source) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s.users--; s.users > 0 || q.closed {
		return
	}
	s.idle = time.AfterFunc(idleLife, func() { q.retire(s) })
}

// retire removes s if it has no users and its consumer nothing to remember.
func (q *Queue) retire(s *source) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || s.users > 0 || q.sources[s.prefix] != s {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerLimit)
	defer cancel()
	c, err := q.stream.Consumer(ctx, s.name)
	if err == nil && c.CachedInfo().NumAckPending > 0 {
		return // how often those were delivered would be forgotten
	}
	if err == nil {
		err = q.remove(ctx, s)
	}
	if err != nil {
		q.e.cfg.Logger.Warn("cannot remove an unused consumer of the queue", "prefix", s.prefix, "err", err)
	}
}

// remove removes s and its consumer; its messages stay and can be received under
// another prefix. mu is held and s has no users.
func (q *Queue) remove(ctx context.Context, s *source) error {
	if err := q.stream.DeleteConsumer(ctx, s.name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return translate(err, queue.ErrFull, queue.ErrClosed)
	}
	delete(q.sources, s.prefix)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sub != nil {
		return s.sub.Unsubscribe()
	}
	return nil
}

// start makes the consumer and listens to it; q.mu is held.
func (s *source) start(ctx context.Context) error {
	_, err := s.q.stream.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable:        s.name,
		FilterSubjects: filters(s.prefix),
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        never,
		MaxAckPending:  -1,
		MaxDeliver:     -1,
		MaxWaiting:     2 * maxAsked,
		Metadata:       map[string]string{prefixMeta: s.prefix},
	})
	if err != nil {
		return err
	}
	sub, err := s.q.e.conn.Subscribe(natsgo.NewInbox(), s.arrive)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.sub = sub
	s.mu.Unlock()
	return sub.SetPendingLimits(-1, -1)
}

// arrive takes what the engine sends: a message, or why there is none.
func (s *source) arrive(m *natsgo.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(m.Data) == 0 && m.Header.Get("Status") != "" && !strings.HasPrefix(m.Reply, "$JS.ACK.") {
		s.asked--
		s.q.e.cfg.Logger.Debug("queue request ended", "prefix", s.prefix, "status", m.Header.Get("Status"), "why", m.Header.Get("Description"))
		s.ask()
		return
	}
	s.asked--
	if e := s.waiting.Front(); e != nil {
		s.waiting.Remove(e)
		e.Value.(chan *natsgo.Msg) <- m
	} else {
		s.spare = append(s.spare, m)
	}
	s.ask()
}

// ask asks the engine for as many messages as there are receivers; mu is held. A
// request stands until it is answered, so a message is never sent to nobody.
func (s *source) ask() {
	for s.asked < min(s.waiting.Len(), maxAsked) {
		if err := s.q.e.conn.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+workStream+"."+s.name, s.sub.Subject, []byte(`{"batch":1}`)); err != nil {
			return // closed; the receivers are told by close
		}
		s.asked++
	}
}

// receive returns the next message of the prefix.
func (s *source) receive(ctx context.Context) (*natsgo.Msg, error) {
	s.mu.Lock()
	if len(s.spare) > 0 {
		m := s.spare[0]
		s.spare = s.spare[1:]
		s.mu.Unlock()
		return m, nil
	}
	got := make(chan *natsgo.Msg, 1)
	e := s.waiting.PushBack(got)
	s.ask()
	s.mu.Unlock()

	select {
	case m, ok := <-got:
		if !ok {
			return nil, queue.ErrClosed
		}
		return m, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting.Remove(e) // nothing happens if it was taken out already
	select {
	case m, ok := <-got: // both at once: the message wins
		if ok {
			return m, nil
		}
	default:
	}
	return nil, context.Cause(ctx)
}

// Len implements queue.Queue.
func (q *Queue) Len(ctx context.Context, prefix string) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, context.Cause(ctx)
	}
	if err := store.CheckPrefix(prefix); err != nil {
		return 0, fmt.Errorf("%w: %w", queue.ErrInvalid, err)
	}
	n := 0
	for _, filter := range filters(prefix) {
		info, err := q.stream.Info(ctx, jetstream.WithSubjectFilter(filter))
		if err != nil {
			return 0, fmt.Errorf("counting messages under %q: %w", prefix, translate(err, queue.ErrFull, queue.ErrClosed))
		}
		for _, count := range info.State.Subjects {
			n += int(count)
		}
	}
	return n, nil
}

func (q *Queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, s := range q.sources {
		if s.idle != nil {
			s.idle.Stop()
		}
		s.mu.Lock()
		for e := s.waiting.Front(); e != nil; e = s.waiting.Front() {
			s.waiting.Remove(e)
			close(e.Value.(chan *natsgo.Msg))
		}
		s.mu.Unlock()
	}
}

// A message is one delivery, and the lease on it.
type message struct {
	source *source
	msg    *natsgo.Msg
	meta   *natsgo.MsgMetadata
	length time.Duration

	mu    sync.Mutex // held while the engine is told, so that it is told one thing
	timer *time.Timer
	until time.Time
	ended bool
}

// Subject implements queue.Message.
func (m *message) Subject() string { return strings.TrimPrefix(m.msg.Subject, workPrefix+".") }

// Body implements queue.Message.
func (m *message) Body() []byte { return m.msg.Data }

// Attempt implements queue.Message.
func (m *message) Attempt() int { return int(m.meta.NumDelivered) }

// Enqueued implements queue.Message.
func (m *message) Enqueued() time.Time { return m.meta.Timestamp }

// held says whether the lease still runs; mu is held.
func (m *message) held() bool { return !m.ended && time.Now().Before(m.until) }

// Ack implements queue.Message. The engine answers when the removal is synced.
func (m *message) Ack(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.held() {
		return queue.ErrLeaseLost
	}
	e := m.source.q.e
	_, err := e.request(ctx, m.msg.Reply, "+ACK")
	if e.writable.Err() != nil {
		err = context.Cause(e.writable) // it answers all the same
	}
	if err != nil {
		return fmt.Errorf("acknowledging message for %s: %w", m.Subject(), translate(err, queue.ErrFull, queue.ErrClosed))
	}
	m.end()
	m.source.q.leave(m.source)
	return nil
}

// end ends the lease; mu is held.
func (m *message) end() {
	m.ended = true
	m.timer.Stop()
}

// Retry implements queue.Message.
func (m *message) Retry(ctx context.Context, delay time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.held() {
		return queue.ErrLeaseLost
	}
	if delay > 0 {
		m.end()
		time.AfterFunc(delay, m.giveBack)
		return nil
	}
	if _, err := m.source.q.e.request(ctx, m.msg.Reply, "-NAK"); err != nil {
		return fmt.Errorf("giving back message for %s: %w", m.Subject(), translate(err, queue.ErrFull, queue.ErrClosed))
	}
	m.end()
	m.source.q.leave(m.source)
	return nil
}

// giveBack has the engine deliver the message again. It fails only when the engine
// is closed, and then the next one to be opened gives it back.
func (m *message) giveBack() {
	if err := m.source.q.e.conn.Publish(m.msg.Reply, []byte("-NAK")); err == nil {
		m.source.q.leave(m.source)
	}
}

// expire ends the lease when its time has come.
func (m *message) expire() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return
	}
	if left := time.Until(m.until); left > 0 {
		m.timer.Reset(left) // extended meanwhile
		return
	}
	m.ended = true
	m.giveBack()
}

// Extend implements queue.Message.
func (m *message) Extend(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.held() {
		return queue.ErrLeaseLost
	}
	m.until = time.Now().Add(m.length)
	m.timer.Reset(m.length)
	return nil
}
