package logstore

import (
	"bytes"
	"container/heap"
	"encoding/binary"
	"errors"
	"iter"
	"math"

	"github.com/cockroachdb/pebble/v2"
)

// eventOverhead is what an event counts beside its message, in bytes.
const eventOverhead = 26

var errCorrupt = errors.New("logstore: a stored event cannot be read")

// Forever is the position after all events.
var Forever = Position{Time: math.MaxInt64}

// A Query says which events are read.
type Query struct {
	Group GroupName
	// Streams are those read; nil: all of the group.
	Streams []string
	// From and To bound the events: From ≤ event < To.
	From, To Position
	// Backward begins at the end.
	Backward bool
	// Ahead is how many events are read at once of each stream at first; 0: 64.
	Ahead int
}

// Events returns what is on disk when it is called, in the order of positions, or
// ErrNoGroup or ErrNoStream. Expired events are left out. What is removed meanwhile
// may be missing.
func (s *Store) Events(q Query) (iter.Seq2[Event, error], error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	g := s.groups[q.Group]
	if g == nil {
		return nil, ErrNoGroup
	}
	r := &reader{store: s, backward: q.Backward, durable: s.durable.Load(), from: q.From, to: q.To}
	if at, some := s.cutoff(g); some && r.from.Time < at {
		r.from = Position{Time: at}
	}
	if q.Ahead == 0 {
		q.Ahead = 64
	}
	add := func(st *stream) {
		for _, p := range st.rec.Spans {
			src := &source{name: st.rec.Name, prefix: eventPrefix(p.Segment, st.id), ahead: q.Ahead}
			if p.Min > r.to.Time || p.Max < r.from.Time {
				continue
			}
			if q.Backward {
				src.next = Position{Time: p.Max + 1}
				if src.next.Compare(r.to) > 0 {
					src.next = r.to
				}
			} else {
				src.next = Position{Time: p.Min}
				if src.next.Compare(r.from) < 0 {
					src.next = r.from
				}
			}
			r.heap = append(r.heap, src)
		}
	}
	if q.Streams == nil {
		for _, st := range g.streams {
			add(st)
		}
	}
	for _, name := range q.Streams {
		st := g.streams[name]
		if st == nil {
			return nil, ErrNoStream
		}
		add(st)
	}
	return r.all, nil
}

// A reader merges sources, each a stream in a segment. A source is read when the
// order comes to it, so that of many streams few are touched.
type reader struct {
	store    *Store
	backward bool
	durable  uint64
	from, to Position
	it       *pebble.Iterator
	heap     []*source
}

type source struct {
	name   string
	prefix []byte
	ahead  int      // events to read at once
	next   Position // forward: none is before; backward: all are before
	buf    []Event
}

func (r *reader) Len() int { return len(r.heap) }
func (r *reader) Less(i, j int) bool {
	c := r.heap[i].next.Compare(r.heap[j].next)
	if r.backward {
		return c > 0
	}
	return c < 0
}
func (r *reader) Swap(i, j int) { r.heap[i], r.heap[j] = r.heap[j], r.heap[i] }
func (r *reader) Push(any)      {} // sources only go
func (r *reader) Pop() any {
	last := len(r.heap) - 1
	src := r.heap[last]
	r.heap = r.heap[:last]
	return src
}

func (r *reader) all(yield func(Event, error) bool) {
	it, err := r.store.db.NewIter(&pebble.IterOptions{LowerBound: []byte{'e'}, UpperBound: []byte{'e' + 1}})
	if err != nil {
		yield(Event{}, err)
		return
	}
	r.it = it
	defer func() { _ = it.Close() }()
	heap.Init(r)
	for len(r.heap) > 0 {
		src := r.heap[0]
		if len(src.buf) == 0 {
			if err := r.fill(src); err != nil {
				yield(Event{}, err)
				return
			}
			if len(src.buf) == 0 {
				heap.Pop(r)
				continue
			}
			// Where it begins, other sources may come first.
			src.next = src.buf[0].Position
			heap.Fix(r, 0)
			continue
		}
		e := src.buf[0]
		src.buf = src.buf[1:]
		if !yield(e, nil) {
			return
		}
		if len(src.buf) > 0 {
			src.next = src.buf[0].Position
		} else {
			src.next = e.Position
			if !r.backward {
				src.next.Seq++
			}
		}
		heap.Fix(r, 0)
	}
}

// fill reads the next events of a source.
func (r *reader) fill(src *source) error {
	const maxBytes = 1 << 20
	key := appendPosition(append(make([]byte, 0, eventKeyLen), src.prefix...), src.next)
	it := r.it
	want, size := src.ahead, 0
	src.ahead = min(2*src.ahead, 4096)
	step := it.Next
	if r.backward {
		step = it.Prev
		it.SeekLT(key)
	} else {
		// The event may be in the middle of those of its millisecond.
		if src.next.Seq > 0 && it.SeekLT(append(key[:len(key):len(key)], 0)) && bytes.HasPrefix(it.Key(), key[:len(key)-8]) {
		} else {
			it.SeekGE(key)
		}
	}
	for ; it.Valid() && bytes.HasPrefix(it.Key(), src.prefix); step() {
		first := positionOf(it.Key())
		if !r.backward && first.Compare(r.to) >= 0 || r.backward && first.Time < r.from.Time {
			break
		}
		n := len(src.buf)
		value := string(it.Value())
		if err := r.burst(src, first, value); err != nil {
			return err
		}
		size += len(value)
		if r.backward {
			for i, j := n, len(src.buf)-1; i < j; i, j = i+1, j-1 {
				src.buf[i], src.buf[j] = src.buf[j], src.buf[i]
			}
		}
		if len(src.buf) >= want || size > maxBytes {
			if len(src.buf) > 0 {
				break
			}
		}
	}
	return it.Error()
}

// burst appends the events of one key that the reader wants.
func (r *reader) burst(src *source, p Position, value string) error {
	b := []byte(value[:min(len(value), binary.MaxVarintLen64)])
	ago, n := binary.Varint(b)
	if n <= 0 {
		return errCorrupt
	}
	value = value[n:]
	ingested := p.Time + ago
	for ; len(value) > 0; p.Seq++ {
		l, n := binary.Uvarint([]byte(value[:min(len(value), binary.MaxVarintLen64)]))
		if n <= 0 || uint64(len(value)-n) < l {
			return errCorrupt
		}
		message := value[n : n+int(l)]
		value = value[n+int(l):]
		switch {
		case p.Seq > r.durable, p.Compare(r.from) < 0, p.Compare(r.to) >= 0:
		case r.backward && p.Compare(src.next) >= 0, !r.backward && p.Compare(src.next) < 0:
		default:
			src.buf = append(src.buf, Event{Position: p, Stream: src.name, Ingested: ingested, Message: message})
		}
	}
	return nil
}
