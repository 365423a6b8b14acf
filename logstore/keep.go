package logstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// day is a day of retention, in milliseconds.
const day = int64(24 * time.Hour / time.Millisecond)

// cutoff is the time before which a group's events are expired.
func (s *Store) cutoff(g *group) (at int64, some bool) {
	if g.rec.Retention == 0 {
		return 0, false
	}
	return s.cfg.Now().UnixMilli() - int64(g.rec.Retention)*day, true
}

// Sweep removes expired events now, instead of at the next SweepEvery, and returns
// when the files hold them no longer.
func (s *Store) Sweep(ctx context.Context) error {
	if err := s.do(ctx, s.sweep); err != nil {
		return err
	}
	return s.db.Compact(ctx, []byte{'e'}, []byte{'e' + 1}, false)
}

// sweep removes expired events, and streams that had events and have none any more.
func (s *Store) sweep(b *pebble.Batch) error {
	for _, g := range s.groups {
		at, some := s.cutoff(g)
		for _, st := range g.streams {
			if some {
				if err := s.expire(b, st, at); err != nil {
					return err
				}
			}
			if len(st.rec.Spans) == 0 && st.rec.Ingestion != 0 {
				if err := s.removeStream(b, st); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// expire removes a stream's events from before a time.
func (s *Store) expire(b *pebble.Batch, st *stream, at int64) error {
	var kept []span
	for _, p := range st.rec.Spans {
		if p.Min >= at {
			kept = append(kept, p)
			continue
		}
		from, to := eventPrefix(p.Segment, st.id), eventKey(p.Segment, st.id, Position{Time: at})
		if p.Max >= at {
			events, size, err := s.count(from, to)
			if err != nil {
				return err
			}
			p.Min = at
			p.Events -= events
			p.Bytes -= size
			kept = append(kept, p)
		}
		if err := s.removeRange(b, from, to); err != nil {
			return err
		}
		s.mark(st)
	}
	st.rec.Spans = kept
	return nil
}

// count counts the events between two keys.
func (s *Store) count(from, to []byte) (events, size int64, err error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return 0, 0, err
	}
	for it.First(); it.Valid(); it.Next() {
		_, n := binary.Varint(it.Value())
		for v := it.Value()[max(n, 0):]; len(v) > 0; {
			l, n := binary.Uvarint(v)
			if n <= 0 || uint64(len(v)-n) < l {
				return 0, 0, errors.Join(errCorrupt, it.Close())
			}
			v = v[n+int(l):]
			events++
			size += int64(l) + eventOverhead
		}
	}
	return events, size, it.Close()
}

// enforce drops the oldest segments while the files take more than the limit less
// the margin. Called by the writer.
func (s *Store) enforce() {
	for s.used() > s.cfg.Limit-s.margin {
		n, err := s.dropOldest()
		if err != nil {
			s.log.Error("dropping the oldest logs", "dir", s.cfg.Dir, "err", err)
			return
		}
		if n < 0 {
			break
		}
		s.full += n
	}
	if s.full > 0 && time.Since(s.toldFull) > time.Minute {
		s.log.Info("the log store is full: its oldest events are dropped; --log-limit says how much it may take", "events", s.full, "limit", s.cfg.Limit)
		s.toldFull, s.full = time.Now(), 0
	}
}

// used is what the files take that can grow: not what is about to be removed.
func (s *Store) used() int64 {
	m := s.db.Metrics()
	used := int64(m.WAL.PhysicalSize+m.WAL.ObsoletePhysicalSize) + m.Compact.InProgressBytes
	for _, l := range m.Levels {
		used += l.TablesSize
	}
	return used
}

// dropOldest removes the oldest segment that has events; the one being written, too,
// if it is the only one. It returns how many events that were, -1 if there is no such
// segment.
func (s *Store) dropOldest() (events int64, err error) {
	s.mu.Lock()
	if s.state.Oldest >= s.state.Segment {
		if s.state.SegmentBytes < s.segmentSize/2 {
			s.mu.Unlock()
			return -1, nil // what is there is not events
		}
		s.state.Segment++
		s.state.SegmentBytes = 0
	}
	oldest := s.state.Oldest
	s.state.Oldest++
	var size int64
	for _, g := range s.groups {
		for _, st := range g.streams {
			if i := slices.IndexFunc(st.rec.Spans, func(p span) bool { return p.Segment == oldest }); i >= 0 {
				events += st.rec.Spans[i].Events
				size += st.rec.Spans[i].Bytes
				st.rec.Spans = slices.Delete(st.rec.Spans, i, i+1)
			}
		}
	}
	s.state.DroppedEvents += uint64(events)
	s.state.DroppedBytes += uint64(size)
	b := s.db.NewBatch()
	defer b.Close()
	err = s.putDirty(b)
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if err := b.Commit(pebble.Sync); err != nil {
		return 0, err
	}
	return events, s.db.Excise(context.Background(), pebble.KeyRange{Start: segmentKey(oldest), End: segmentKey(oldest + 1)})
}

// compact gives room back where events were removed, until reclaim is closed.
func (s *Store) compact() {
	for r := range s.reclaim {
		if bytes.Compare(r[0], r[1]) >= 0 {
			continue
		}
		if err := s.db.Compact(context.Background(), r[0], r[1], false); err != nil {
			s.log.Error("compacting the log store", "dir", s.cfg.Dir, "err", err)
		}
	}
}
