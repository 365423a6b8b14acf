package logstore

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/lambdad/lambdad/telemetry"
)

// Bounds of what waits to be written, in bytes.
const (
	maxSinkPending = 8 << 20
	maxAllPending  = 64 << 20
	// flushSize of one sink is written at once.
	flushSize = 1 << 20
	// maxBurst bounds the events of one key.
	maxBurst   = 64 << 10
	retryEvery = time.Second
)

// An op is a change that somebody waits for.
type op struct {
	apply func(*pebble.Batch) error
	done  chan error
}

// do has the writer apply a change and waits until it is on disk. When apply fails
// it must have changed nothing.
func (s *Store) do(ctx context.Context, apply func(*pebble.Batch) error) error {
	o := &op{apply: apply, done: make(chan error, 1)}
	s.in.Lock()
	if s.stop {
		s.in.Unlock()
		return ErrClosed
	}
	s.ops = append(s.ops, o)
	s.urgent = true
	s.signal()
	s.in.Unlock()
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Store) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Flush returns when everything that sinks took before is on disk.
func (s *Store) Flush(ctx context.Context) error {
	return s.do(ctx, func(*pebble.Batch) error { return nil })
}

// Put stores entries, which must be in the order of their times, in a stream. It
// returns when they are on disk, or ErrNoGroup or ErrNoStream.
func (s *Store) Put(ctx context.Context, name GroupName, stream string, entries []Entry) error {
	return s.do(ctx, func(b *pebble.Batch) error {
		st, err := s.find(name, stream)
		if err != nil {
			return err
		}
		for i := 0; i < len(entries); {
			n, size := i, 0
			for ; n < len(entries) && entries[n].Time == entries[i].Time && (n == i || size+len(entries[n].Message) <= maxBurst); n++ {
				size += len(entries[n].Message)
			}
			s.append(b, st, entries[i].Time, size, func(yield func([]byte) bool) {
				for _, e := range entries[i:n] {
					yield([]byte(e.Message))
				}
			})
			i = n
		}
		return nil
	})
}

// append stores messages of one millisecond, size bytes in all.
func (s *Store) append(b *pebble.Batch, st *stream, at int64, size int, messages func(func([]byte) bool)) {
	if s.state.SegmentBytes >= s.segmentSize {
		s.state.Segment++
		s.state.SegmentBytes = 0
	}
	now := s.cfg.Now().UnixMilli()
	first := s.state.Seq + 1
	value := make([]byte, 0, size+16)
	value = binary.AppendVarint(value, now-at)
	n := uint64(0)
	for m := range messages {
		value = append(binary.AppendUvarint(value, uint64(len(m))), m...)
		if len(s.tails) > 0 {
			s.publish(st, Event{Position: Position{at, first + n}, Group: st.group.name(), Stream: st.rec.Name, Ingested: now, Message: string(m)})
		}
		n++
	}
	// Set fails only for a batch that was committed.
	_ = b.Set(eventKey(s.state.Segment, st.id, Position{at, first}), value, nil)
	s.state.Seq += n
	bytes := int64(size) + eventOverhead*int64(n)
	s.state.SegmentBytes += int64(len(value)) + eventKeyLen
	s.mark(st)
	st.rec.Ingestion = now
	p := &span{Segment: s.state.Segment, Min: at, Max: at}
	if l := len(st.rec.Spans); l > 0 && st.rec.Spans[l-1].Segment == p.Segment {
		p = &st.rec.Spans[l-1]
	} else {
		st.rec.Spans = append(st.rec.Spans, *p)
		p = &st.rec.Spans[l]
	}
	p.Min, p.Max = min(p.Min, at), max(p.Max, at)
	p.Events += int64(n)
	p.Bytes += bytes
}

// A Sink takes the log of one execution environment into one stream. Group and
// stream appear with its first line. Nothing needs to be closed.
type Sink struct {
	store  *Store
	group  GroupName
	name   string
	format telemetry.Format
	stream *stream // the writer's

	mu      sync.Mutex
	buf     []byte
	marks   []mark
	ends    []int // scratch
	queued  bool
	dropped telemetry.LogsDropped // since the last write
}

// A mark is where a message of a Sink ends.
type mark struct {
	time int64
	end  int
}

// Sink makes the sink of a stream.
func (s *Store) Sink(group GroupName, stream string, format telemetry.Format) *Sink {
	return &Sink{store: s, group: group, name: stream, format: format}
}

// Take implements telemetry.Sink. What does not fit into the bounds is dropped and
// counted, and the log says so.
func (k *Sink) Take(e telemetry.Event) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.store
	before := len(k.buf)
	if before > maxSinkPending || s.pending.Load() > maxAllPending {
		n := 0
		if line, ok := e.Record.(telemetry.Line); ok && !k.format.JSON {
			n = len(line) + 1 // as Append has it, which would copy what is not wanted
		} else {
			n = len(k.format.Append(nil, e))
		}
		if n > 0 {
			k.dropped.Records++
			k.dropped.Bytes += int64(n)
			s.lost.Add(1)
		}
		return
	}
	k.take(e)
	size := len(k.buf)
	if size == before {
		return
	}
	s.pending.Add(int64(size - before))
	full := before < flushSize && size >= flushSize
	if k.queued && !full {
		return
	}
	s.in.Lock()
	defer s.in.Unlock()
	if !k.queued {
		k.queued = true
		s.dirty = append(s.dirty, k)
	}
	if full {
		s.urgent = true
	}
	if full || len(s.dirty) == 1 {
		s.signal()
	}
}

func (k *Sink) take(e telemetry.Event) {
	k.buf, k.ends = k.format.AppendMessages(k.buf, k.ends[:0], e)
	at := e.Time.UnixMilli()
	for _, end := range k.ends {
		k.marks = append(k.marks, mark{at, end})
	}
}

// drain stores what the sink holds. The room of its buffers is used again.
func (k *Sink) drain(b *pebble.Batch, room *room) {
	s := k.store
	k.mu.Lock()
	if k.dropped.Records > 0 {
		before := len(k.buf)
		k.dropped.Reason = telemetry.DropReason
		k.take(telemetry.Event{Time: s.cfg.Now(), Type: telemetry.TypeLogsDropped, Record: k.dropped})
		k.dropped = telemetry.LogsDropped{}
		s.pending.Add(int64(len(k.buf) - before))
	}
	buf, marks := k.buf, k.marks
	k.buf, k.marks = room.buf[:0], room.marks[:0]
	if len(buf) < 64<<10 {
		k.buf, k.marks = nil, nil // a quiet environment holds no large buffer
	} else {
		room.buf, room.marks = nil, nil
	}
	k.queued = false
	k.mu.Unlock()
	s.pending.Add(-int64(len(buf)))
	if len(marks) == 0 {
		return
	}

	if k.stream == nil || k.stream.gone {
		g := s.groups[k.group]
		if g == nil {
			var err error
			if g, err = s.makeGroup(b, Group{GroupName: k.group}); err != nil {
				s.lost.Add(uint64(len(marks)))
				return
			}
		}
		if k.stream = g.streams[k.name]; k.stream == nil {
			k.stream = s.makeStream(g, k.name)
		}
	}
	begin := 0
	for i := 0; i < len(marks); {
		n := i + 1
		for n < len(marks) && marks[n].time == marks[i].time && marks[n].end-begin <= maxBurst {
			n++
		}
		from := begin
		s.append(b, k.stream, marks[i].time, marks[n-1].end-begin, func(yield func([]byte) bool) {
			for _, m := range marks[i:n] {
				yield(buf[from:m.end])
				from = m.end
			}
		})
		begin = marks[n-1].end
		i = n
	}
	if cap(buf) <= 4*flushSize && cap(buf) >= 64<<10 {
		room.buf, room.marks = buf, marks
	}
}

// A room is buffers that were written and can be used again.
type room struct {
	buf   []byte
	marks []mark
}

// run is the writer.
func (s *Store) run() {
	defer close(s.done)
	sweep := time.NewTicker(s.cfg.SweepEvery)
	defer sweep.Stop()
	var room room
	var checked time.Time
	var written int64 // since checked
	for {
		select {
		case <-s.wake:
		case <-sweep.C:
			s.in.Lock()
			s.ops = append(s.ops, &op{apply: s.sweep, done: make(chan error, 1)})
			s.in.Unlock()
		}
		s.gather()
		s.in.Lock()
		ops, dirty, stop := s.ops, s.dirty, s.stop
		s.ops, s.dirty, s.urgent = nil, nil, false
		s.in.Unlock()
		if len(ops) > 0 || len(dirty) > 0 {
			n, ok := s.write(ops, dirty, &room)
			written += n
			if !ok && !stop {
				s.again(dirty)
				time.Sleep(retryEvery)
			}
			if written > s.margin/4 || written > 0 && time.Since(checked) > time.Second {
				checked, written = time.Now(), 0
				s.enforce()
			}
		}
		if stop {
			return
		}
	}
}

// gather waits so that lines come to disk together, unless somebody waits.
func (s *Store) gather() {
	timer := time.NewTimer(s.cfg.FlushEvery)
	defer timer.Stop()
	for {
		s.in.Lock()
		now := s.urgent || s.stop || len(s.ops) > 0
		s.in.Unlock()
		if now {
			return
		}
		select {
		case <-s.wake:
		case <-timer.C:
			return
		}
	}
}

// again puts sinks back that could not be written.
func (s *Store) again(dirty []*Sink) {
	s.in.Lock()
	defer s.in.Unlock()
	s.dirty = append(dirty, s.dirty...)
	s.signal()
}

// write brings ops and sinks to disk with one sync. When it does not go, the sinks
// keep what they hold.
func (s *Store) write(ops []*op, dirty []*Sink, room *room) (n int64, ok bool) {
	if s.cfg.Reserve != nil {
		if err := s.cfg.Reserve(); err != nil {
			for _, o := range ops {
				o.done <- err
			}
			if time.Since(s.told) > time.Minute {
				s.told = time.Now()
				s.log.Error("cannot write function logs; they wait in memory up to a bound, then lines are dropped; make room on the disk of the log directory",
					"dir", s.cfg.Dir, "err", err)
			}
			return 0, false
		}
	}
	b := s.db.NewBatch()
	defer b.Close()
	s.mu.Lock()
	waiting := ops[:0]
	for _, o := range ops {
		if err := o.apply(b); err != nil {
			o.done <- err
			continue
		}
		waiting = append(waiting, o)
	}
	for _, k := range dirty {
		k.drain(b, room)
	}
	err := s.putDirty(b)
	seq, ranges := s.state.Seq, s.removed
	s.removed = nil
	s.mu.Unlock()
	n = int64(b.Len())
	if s.cfg.Before != nil && len(dirty) > 0 {
		s.cfg.Before()
	}
	if err == nil {
		err = b.Commit(pebble.Sync)
	}
	if err == nil {
		s.durable.Store(seq)
		s.deliver()
		for _, r := range ranges {
			select {
			case s.reclaim <- r:
			default: // much is being removed: Pebble's own compactions come to it later
			}
		}
	} else {
		s.log.Error("writing the log store", "dir", s.cfg.Dir, "err", err)
	}
	for _, o := range waiting {
		o.done <- err
	}
	return n, true
}

// putDirty writes the records of streams that changed, and the state.
func (s *Store) putDirty(b *pebble.Batch) error {
	for _, st := range s.changed {
		if !st.gone {
			if err := st.put(b); err != nil {
				return err
			}
		}
		st.dirty = false
	}
	clear(s.changed)
	s.changed = s.changed[:0]
	v, err := json.Marshal(s.state)
	if err != nil {
		return err
	}
	return b.Set([]byte{'m'}, v, nil)
}

// mark has a stream's record written with the batch.
func (s *Store) mark(st *stream) {
	if !st.dirty {
		st.dirty = true
		s.changed = append(s.changed, st)
	}
}

// publish keeps an event for followers until it is on disk.
func (s *Store) publish(st *stream, e Event) {
	for f := range s.tails {
		if f.match(e.Group, st.rec.Name) {
			if len(f.next) < f.max {
				f.next = append(f.next, e)
			} else {
				f.over++
			}
		}
	}
}

// deliver gives followers what came to disk.
func (s *Store) deliver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.tails {
		f.push()
	}
}

// A Follower gets events as they come to disk.
type Follower struct {
	store *Store
	match func(GroupName, string) bool
	max   int
	next  []Event // not yet on disk; of the store
	over  int64   // how many more

	mu      sync.Mutex
	events  []Event
	dropped int64
	ready   chan struct{}
}

// Follow begins to gather events of the streams that match, at most max between two
// calls of Next; 0: 10,000. End it.
func (s *Store) Follow(match func(group GroupName, stream string) bool, max int) *Follower {
	f := &Follower{store: s, match: match, max: cmp.Or(max, 10_000), ready: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tails[f] = struct{}{}
	return f
}

// push moves next to events.
func (f *Follower) push() {
	if len(f.next) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := min(len(f.next), f.max-len(f.events))
	f.events = append(f.events, f.next[:n]...)
	f.dropped += int64(len(f.next)-n) + f.over
	f.over = 0
	clear(f.next)
	f.next = f.next[:0]
	select {
	case f.ready <- struct{}{}:
	default:
	}
}

// Ready is sent to when there may be events.
func (f *Follower) Ready() <-chan struct{} { return f.ready }

// Next takes what came, and how many more did not fit. It does not wait.
func (f *Follower) Next() (events []Event, dropped int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	events, dropped = f.events, f.dropped
	f.events, f.dropped = nil, 0
	return events, dropped
}

// End ends following.
func (f *Follower) End() {
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	delete(f.store.tails, f)
}
