package mem

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/lambdad/lambdad/queue"
	"github.com/lambdad/lambdad/store"
)

// Queue is a queue.Queue in memory.
type Queue struct {
	mu       sync.Mutex // guards all below and every message's mutable fields
	returned *list.List // of *message: given back, delivered before the others
	ready    *list.List // of *message, in the order they were stored
	stored   map[*message]struct{}
	ids      map[string]time.Time // subject and id -> until when it is remembered
	swept    time.Time            // when ids was last cleared of old entries
	waiting  *list.List           // of *waiter, first come first served
	prefixes map[string]int       // receivers and leases under each prefix
	closed   bool
}

type message struct {
	subject  string
	body     []byte
	enqueued time.Time
	attempt  int
	lease    *lease // nil: not leased
}

type waiter struct {
	prefix string
	length time.Duration
	got    chan *lease // capacity 1; closed by Close
}

// NewQueue returns an empty queue.
func NewQueue() *Queue {
	return &Queue{returned: list.New(), ready: list.New(), waiting: list.New(), stored: map[*message]struct{}{},
		ids: map[string]time.Time{}, prefixes: map[string]int{}}
}

// Enqueue implements queue.Queue.
func (q *Queue) Enqueue(ctx context.Context, subject, id string, body []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := store.CheckKey(subject); err != nil {
		return fmt.Errorf("%w subject: %w", queue.ErrInvalid, err)
	}
	if len(body) > queue.MaxMessage {
		return fmt.Errorf("%w: %d bytes for %s, the limit is %d", queue.ErrTooLarge, len(body), subject, queue.MaxMessage)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return queue.ErrClosed
	}
	now := time.Now()
	if id != "" {
		if now.Sub(q.swept) > queue.DedupWindow/2 {
			for k, until := range q.ids {
				if now.After(until) {
					delete(q.ids, k)
				}
			}
			q.swept = now
		}
		k := subject + " " + id
		if until, ok := q.ids[k]; ok && now.Before(until) {
			return nil
		}
		q.ids[k] = now.Add(queue.DedupWindow)
	}
	m := &message{subject: subject, body: append([]byte{}, body...), enqueued: now}
	q.stored[m] = struct{}{}
	q.offer(m, q.ready)
	return nil
}

// offer gives m to the first receiver waiting for it, or adds it to l; mu is held.
func (q *Queue) offer(m *message, l *list.List) {
	for e := q.waiting.Front(); e != nil; e = e.Next() {
		if w := e.Value.(*waiter); store.Under(m.subject, w.prefix) {
			q.waiting.Remove(e)
			w.got <- q.take(m, w.prefix, w.length)
			return
		}
	}
	l.PushBack(m)
}

// take leases m; mu is held.
func (q *Queue) take(m *message, prefix string, length time.Duration) *lease {
	m.attempt++
	l := &lease{queue: q, message: m, prefix: prefix, length: length, attempt: m.attempt}
	m.lease = l
	q.prefixes[prefix]++
	l.timer = time.AfterFunc(length, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if m.lease == l && !time.Now().Before(l.until) {
			q.giveBack(l)
			q.offer(m, q.returned)
		}
	})
	l.until = time.Now().Add(length)
	return l
}

// giveBack ends l; mu is held.
func (q *Queue) giveBack(l *lease) {
	l.timer.Stop()
	l.message.lease = nil
	q.leave(l.prefix)
}

func (q *Queue) leave(prefix string) {
	if q.prefixes[prefix]--; q.prefixes[prefix] == 0 {
		delete(q.prefixes, prefix)
	}
}

// Receive implements queue.Queue.
func (q *Queue) Receive(ctx context.Context, prefix string, length time.Duration) (queue.Message, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := store.CheckPrefix(prefix); err != nil {
		return nil, fmt.Errorf("%w: %w", queue.ErrInvalid, err)
	}
	if length <= 0 {
		return nil, fmt.Errorf("%w lease: %v", queue.ErrInvalid, length)
	}
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return nil, queue.ErrClosed
	}
	for other := range q.prefixes {
		if other != prefix && (store.Under(other, prefix) || store.Under(prefix, other)) {
			q.mu.Unlock()
			return nil, fmt.Errorf("%w: %q and %q", queue.ErrOverlap, prefix, other)
		}
	}
	for _, from := range []*list.List{q.returned, q.ready} {
		for e := from.Front(); e != nil; e = e.Next() {
			if m := e.Value.(*message); store.Under(m.subject, prefix) {
				from.Remove(e)
				l := q.take(m, prefix, length)
				q.mu.Unlock()
				return l, nil
			}
		}
	}
	w := &waiter{prefix: prefix, length: length, got: make(chan *lease, 1)}
	e := q.waiting.PushBack(w)
	q.prefixes[prefix]++
	q.mu.Unlock()

	var l *lease
	open := true
	select {
	case l, open = <-w.got:
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.leave(prefix)
	if l == nil && open {
		q.waiting.Remove(e) // nothing happens if it was taken out already
		select {
		case l, open = <-w.got: // both at once: the message wins
		default:
			return nil, context.Cause(ctx)
		}
	}
	if !open {
		return nil, queue.ErrClosed
	}
	return l, nil
}

// Len implements queue.Queue.
func (q *Queue) Len(ctx context.Context, prefix string) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := store.CheckPrefix(prefix); err != nil {
		return 0, fmt.Errorf("%w: %w", queue.ErrInvalid, err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0, queue.ErrClosed
	}
	n := 0
	for m := range q.stored {
		if store.Under(m.subject, prefix) {
			n++
		}
	}
	return n, nil
}

// Close ends all waiting receivers. Later calls return queue.ErrClosed.
func (q *Queue) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for e := q.waiting.Front(); e != nil; e = q.waiting.Front() {
		q.waiting.Remove(e)
		close(e.Value.(*waiter).got)
	}
	for m := range q.stored {
		if m.lease != nil {
			m.lease.timer.Stop()
		}
	}
	return nil
}

// A lease is the queue.Message of one delivery.
type lease struct {
	queue   *Queue
	message *message
	prefix  string
	length  time.Duration
	attempt int
	timer   *time.Timer
	until   time.Time // guarded by queue.mu
}

// Subject implements queue.Message.
func (l *lease) Subject() string { return l.message.subject }

// Body implements queue.Message.
func (l *lease) Body() []byte { return l.message.body }

// Attempt implements queue.Message.
func (l *lease) Attempt() int { return l.attempt }

// Enqueued implements queue.Message.
func (l *lease) Enqueued() time.Time { return l.message.enqueued }

// Ack implements queue.Message.
func (l *lease) Ack(ctx context.Context) error {
	return l.end(ctx, func() { delete(l.queue.stored, l.message) })
}

// Retry implements queue.Message.
func (l *lease) Retry(ctx context.Context, delay time.Duration) error {
	q, m := l.queue, l.message
	return l.end(ctx, func() {
		if delay <= 0 {
			q.offer(m, q.returned)
			return
		}
		time.AfterFunc(delay, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			q.offer(m, q.returned)
		})
	})
}

// end ends the lease, if it is held, and does then under the lock.
func (l *lease) end(ctx context.Context, then func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.queue.mu.Lock()
	defer l.queue.mu.Unlock()
	if l.queue.closed {
		return queue.ErrClosed
	}
	if l.message.lease != l {
		return queue.ErrLeaseLost
	}
	l.queue.giveBack(l)
	then()
	return nil
}

// Extend implements queue.Message.
func (l *lease) Extend(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.queue.mu.Lock()
	defer l.queue.mu.Unlock()
	if l.queue.closed {
		return queue.ErrClosed
	}
	if l.message.lease != l {
		return queue.ErrLeaseLost
	}
	l.until = time.Now().Add(l.length)
	l.timer.Reset(l.length)
	return nil
}
