package telemetry

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Sink takes the events of a stream, in order. Take is called with the stream
// locked: it must not block and must not call the stream.
type Sink interface {
	Take(Event)
}

// Limits of what a stream remembers for late readers.
const (
	maxHistoryEvents = 4096
	maxHistoryBytes  = 1 << 20
)

// A Stream is the ordered record of one environment. Any goroutine may emit.
type Stream struct {
	mu      sync.Mutex
	sinks   []Sink
	keep    bool
	history []Event
	bytes   int
	dropped map[string]LogsDropped // from history, by type
	drops   *Drops                 // of subscribers; nil: nobody counts
}

// Drops counts what subscribers were too slow for, over many streams.
type Drops struct{ Records, Bytes atomic.Int64 }

func (d *Drops) add(records, bytes int) {
	if d != nil {
		d.Records.Add(int64(records))
		d.Bytes.Add(int64(bytes))
	}
}

// CountDrops makes the subscriptions of the stream count in d, too. It is called
// before there are any.
func (s *Stream) CountDrops(d *Drops) { s.drops = d }

// NewStream makes a stream that hands its events to sinks.
func NewStream(sinks ...Sink) *Stream {
	return &Stream{sinks: slices.Clone(sinks)}
}

// Emit appends an event and hands it to every sink before it returns.
func (s *Stream) Emit(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if s.keep && !internal(e.Type) {
		n := e.size()
		if len(s.history) < maxHistoryEvents && s.bytes+n <= maxHistoryBytes {
			s.history = append(s.history, e)
			s.bytes += n
		} else {
			if s.dropped == nil {
				s.dropped = map[string]LogsDropped{}
			}
			d := s.dropped[e.Type]
			d.Records++
			d.Bytes += int64(n)
			s.dropped[e.Type] = d
		}
	}
	for _, k := range s.sinks {
		k.Take(e)
	}
}

// Remember keeps what is emitted from now on, up to a bound, for sinks that are
// attached with a replay. Forget ends that.
func (s *Stream) Remember() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep, s.history, s.bytes, s.dropped = true, nil, 0, nil
}

// Forget drops what Remember kept: the window for late readers has closed.
func (s *Stream) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep, s.history, s.bytes, s.dropped = false, nil, 0, nil
}

// Attach adds a sink. With replay it first gets what Remember kept, and a
// LogsDropped record when that was not everything; nothing is missed or comes
// twice between the two. A sink with a method Wants(type of event) bool is told
// only of drops it wanted.
func (s *Stream) Attach(k Sink, replay bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if replay {
		for _, e := range s.history {
			k.Take(e)
		}
		wants := func(string) bool { return true }
		if w, ok := k.(interface{ Wants(string) bool }); ok {
			wants = w.Wants
		}
		all := LogsDropped{Reason: DropReason}
		for typ, d := range s.dropped {
			if wants(typ) {
				all.Records += d.Records
				all.Bytes += d.Bytes
			}
		}
		if all.Records > 0 {
			k.Take(Event{Time: time.Now(), Type: TypeLogsDropped, Record: all})
		}
	}
	s.sinks = append(slices.Clip(s.sinks), k)
}

// Detach removes a sink; it is not called once Detach has returned.
func (s *Stream) Detach(k Sink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.sinks, k); i >= 0 {
		s.sinks = slices.Delete(slices.Clone(s.sinks), i, i+1)
	}
}

// A Queue is a bounded sink for one reader that works at its own pace. What does
// not fit is dropped and counted; the next read begins with a LogsDropped record
// in its place.
type Queue struct {
	maxItems, maxBytes int

	mu      sync.Mutex
	items   []Event
	bytes   int
	dropped LogsDropped
	closed  bool
	wake    chan struct{}
}

// NewQueue makes a queue of at most so many events and bytes.
func NewQueue(maxItems, maxBytes int) *Queue {
	return &Queue{maxItems: maxItems, maxBytes: maxBytes, wake: make(chan struct{}, 1)}
}

// Take implements Sink.
func (q *Queue) Take(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	n := e.size()
	// Once something was dropped everything is until the reader comes: records
	// are lost in one piece, where the reader is told so.
	if q.dropped.Records > 0 || len(q.items) >= q.maxItems || q.bytes+n > q.maxBytes {
		q.dropped.Records++
		q.dropped.Bytes += int64(n)
	} else {
		q.items = append(q.items, e)
		q.bytes += n
	}
	q.signal()
}

func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Next waits for events and takes all there are. It returns none when the queue
// was closed and is empty, and ctx's cause when ctx ends. One reader at a time.
func (q *Queue) Next(ctx context.Context) ([]Event, error) {
	for {
		q.mu.Lock()
		items, dropped, closed := q.items, q.dropped, q.closed
		q.items, q.bytes, q.dropped = nil, 0, LogsDropped{}
		q.mu.Unlock()
		if dropped.Records > 0 {
			dropped.Reason = DropReason
			items = append(items, Event{Time: time.Now(), Type: TypeLogsDropped, Record: dropped})
		}
		if len(items) > 0 || closed {
			return items, nil
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Close ends the queue: what is in it can still be read.
func (q *Queue) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.signal()
}
