// Package logstore keeps log groups, their streams and their events on disk.
//
// Functions write through a Sink, which gathers lines and never makes their writer
// wait; everybody else through Put, which returns when the events are on disk. One
// goroutine writes for all: whatever came since its last round goes to disk with one
// sync, at the latest FlushEvery after it was taken. Readers see only what is on
// disk, so what a reader was given survives a crash of the process or the host.
//
// Events of one stream are in the order of their time, and of their arrival within
// one millisecond. What is stored is divided into segments by time of arrival. Beyond
// Limit the oldest segment goes, whoever wrote into it, and is counted; a group's
// retention removes events by their own time.
//
// The engine is Pebble, an LSM tree (docs/decisions/0009-log-store.md). Keys:
//
//	e <segment 4> <stream 8> <time 8> <seq 8>   events of one millisecond
//	g <group 8>                                 groupRecord
//	s <group 8> <stream 8>                      streamRecord
//	m                                           state
package logstore

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Errors of the methods of a Store.
var (
	ErrGroupExists  = errors.New("log group exists")
	ErrNoGroup      = errors.New("no such log group")
	ErrStreamExists = errors.New("log stream exists")
	ErrNoStream     = errors.New("no such log stream")
	ErrProtected    = errors.New("log group is protected from deletion")
	ErrClosed       = errors.New("log store is closed")
)

// MinLimit is the smallest Limit, in bytes.
const MinLimit = 64 << 20

// Config is what a store is made of.
type Config struct {
	// Dir holds the files; it is made when it is missing. One process at a time.
	Dir string
	// Limit is how many bytes the files may take; 0: 4 GiB; at least MinLimit.
	Limit int64
	// FlushEvery is how long lines are gathered before they go to disk; 0: 200 ms.
	FlushEvery time.Duration
	// SweepEvery is how often expired events are removed; 0: 10 minutes. They are
	// shown to nobody meanwhile.
	SweepEvery time.Duration
	// Reserve, when given, says why nothing may be written now, such as a full
	// disk. While it fails, lines wait in memory up to a bound and Put fails.
	Reserve func() error
	// Before, when given, is called before what came from sinks is on disk, so that
	// a reader of a REPORT finds what belongs to it.
	Before func()
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Logger hears of trouble; nil: nobody.
	Logger *slog.Logger
}

// A GroupName names a log group.
type GroupName struct{ Account, Region, Name string }

// A Group is a log group as it was when it was asked for.
type Group struct {
	GroupName
	Created   int64  // milliseconds since 1970, as all times here
	Retention int    // days; 0: events never expire
	Class     string // STANDARD, INFREQUENT_ACCESS or DELIVERY
	Protected bool   // from DeleteGroup
	Tags      map[string]string
	Stored    int64 // bytes of its events
}

// A Stream is a log stream as it was when it was asked for.
type Stream struct {
	Name          string
	Created       int64
	First, Last   int64 // times of events; Events == 0: neither
	LastIngestion int64 // 0: never
	Events        int64
	Stored        int64 // bytes of its events
}

// A Position is a place in the order of a group's events: before the event that has
// this time and sequence number.
type Position struct {
	Time int64
	Seq  uint64
}

// Compare orders positions.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Time, q.Time), cmp.Compare(p.Seq, q.Seq))
}

// An Event is a stored event. Its Position is unique in the store for ever.
type Event struct {
	Position
	Group    GroupName // of followers only
	Stream   string
	Ingested int64
	Message  string // any bytes
}

// An Entry is an event to be stored.
type Entry struct {
	Time    int64
	Message string
}

// Stats are counts of a store.
type Stats struct {
	Groups, Streams int
	Events, Bytes   int64  // stored, before compression
	Disk            int64  // bytes of files
	Segments        int    // that hold events
	DroppedEvents   uint64 // removed because of Limit
	DroppedBytes    uint64
	LostRecords     uint64 // taken by a Sink and never stored, since the start
}

type group struct {
	id      uint64
	rec     groupRecord
	streams map[string]*stream
	gone    bool
}

type stream struct {
	id    uint64
	group *group
	rec   streamRecord
	dirty bool
	gone  bool
}

type groupRecord struct {
	Account, Region, Name string
	Created               int64
	Retention             int               `json:",omitempty"`
	Protected             bool              `json:",omitempty"`
	Class                 string            `json:",omitempty"`
	Tags                  map[string]string `json:",omitempty"`
}

type streamRecord struct {
	Name      string
	Created   int64
	Ingestion int64  `json:",omitempty"`
	Spans     []span `json:",omitempty"` // by segment
}

// A span is what a segment holds of a stream.
type span struct {
	Segment  uint32
	Min, Max int64 // times
	Events   int64
	Bytes    int64
}

// state is the record that goes with every write.
type state struct {
	ID            uint64 // last of a group or stream
	Seq           uint64 // last of an event
	Segment       uint32 // that is written
	SegmentBytes  int64
	Oldest        uint32 // earlier segments are dropped
	DroppedEvents uint64
	DroppedBytes  uint64
}

// A Store holds log groups. Any goroutine may call its methods.
type Store struct {
	cfg         Config
	db          *pebble.DB
	log         *slog.Logger
	segmentSize int64
	margin      int64 // of Limit, kept free

	mu      sync.RWMutex // of what follows, and of all groups and streams
	groups  map[GroupName]*group
	state   state
	tails   map[*Follower]struct{}
	removed [][2][]byte   // key ranges, by the writer
	changed []*stream     // whose records are to be written
	durable atomic.Uint64 // events up to this sequence number are on disk

	in      sync.Mutex // of what waits for the writer
	ops     []*op
	dirty   []*Sink
	wake    chan struct{}
	urgent  bool
	stop    bool
	pending atomic.Int64 // bytes that all sinks hold
	lost    atomic.Uint64
	done    chan struct{}
	reclaim chan [2][]byte // key ranges to compact
	work    sync.WaitGroup

	// The writer's.
	told, toldFull time.Time // when the log was last told of trouble and of dropped events
	full           int64     // events dropped since toldFull
}

// Open opens or makes a store. Close it to flush and end.
func Open(cfg Config) (*Store, error) {
	if cfg.Limit == 0 {
		cfg.Limit = 4 << 30
	}
	if cfg.Limit < MinLimit {
		return nil, fmt.Errorf("logstore: a limit of %d bytes is below the least, %d", cfg.Limit, MinLimit)
	}
	cfg.FlushEvery = cmp.Or(cfg.FlushEvery, 200*time.Millisecond)
	cfg.SweepEvery = cmp.Or(cfg.SweepEvery, 10*time.Minute)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		cfg: cfg, log: cfg.Logger,
		segmentSize: cfg.Limit / 32,
		margin:      max(cfg.Limit/8, 16<<20), // compactions hold the same twice for a while
		groups:      map[GroupName]*group{},
		tails:       map[*Follower]struct{}{},
		wake:        make(chan struct{}, 1),
		done:        make(chan struct{}),
		reclaim:     make(chan [2][]byte, 64),
	}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("logstore: open %s: %w", cfg.Dir, err)
	}
	go s.run()
	s.work.Go(s.compact)
	return s, nil
}

func (s *Store) open() error {
	mem := uint64(min(max(s.cfg.Limit/64, 1<<20), 8<<20))
	cache := pebble.NewCache(16 << 20)
	defer cache.Unref()
	opts := &pebble.Options{
		FS:                         vfs.Default,
		Logger:                     pebbleLog{s.log},
		FormatMajorVersion:         pebble.FormatNewest,
		Cache:                      cache,
		MemTableSize:               mem,
		MaxOpenFiles:               256,
		CompactionConcurrencyRange: func() (int, int) { return 1, 1 },
	}
	db, err := pebble.Open(s.cfg.Dir, opts)
	if err != nil {
		return err
	}
	s.db = db
	if err := s.load(); err != nil {
		return errors.Join(err, db.Close())
	}
	return nil
}

// load reads everything but events into memory.
func (s *Store) load() error {
	read := func(prefix string, f func(key, value []byte) error) error {
		it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte(prefix), UpperBound: []byte{prefix[0] + 1}})
		if err != nil {
			return err
		}
		for it.First(); it.Valid() && err == nil; it.Next() {
			err = f(it.Key(), it.Value())
		}
		return errors.Join(err, it.Close())
	}
	ids := map[uint64]*group{}
	err := read("m", func(_, value []byte) error { return json.Unmarshal(value, &s.state) })
	if err != nil {
		return err
	}
	if err := read("g", func(key, value []byte) error {
		g := &group{id: binary.BigEndian.Uint64(key[1:]), streams: map[string]*stream{}}
		if err := json.Unmarshal(value, &g.rec); err != nil {
			return err
		}
		ids[g.id] = g
		s.groups[g.name()] = g
		return nil
	}); err != nil {
		return err
	}
	if err := read("s", func(key, value []byte) error {
		g := ids[binary.BigEndian.Uint64(key[1:])]
		if g == nil {
			return fmt.Errorf("log stream of an unknown group")
		}
		st := &stream{id: binary.BigEndian.Uint64(key[9:]), group: g}
		if err := json.Unmarshal(value, &st.rec); err != nil {
			return err
		}
		st.rec.Spans = slices.DeleteFunc(st.rec.Spans, func(p span) bool { return p.Segment < s.state.Oldest })
		g.streams[st.rec.Name] = st
		return nil
	}); err != nil {
		return err
	}
	s.durable.Store(s.state.Seq)
	// A crash may have come between the two steps of a drop.
	return s.db.DeleteRange([]byte{'e'}, segmentKey(s.state.Oldest), pebble.NoSync)
}

// Close writes what was taken and ends. Later calls fail with ErrClosed.
func (s *Store) Close() error {
	s.in.Lock()
	if s.stop {
		s.in.Unlock()
		return nil
	}
	s.stop = true
	s.signal()
	s.in.Unlock()
	<-s.done
	close(s.reclaim)
	s.work.Wait()
	return s.db.Close()
}

func (g *group) name() GroupName { return GroupName{g.rec.Account, g.rec.Region, g.rec.Name} }

func (g *group) view() Group {
	v := Group{
		GroupName: g.name(), Created: g.rec.Created, Retention: g.rec.Retention,
		Protected: g.rec.Protected, Class: cmp.Or(g.rec.Class, "STANDARD"), Tags: maps.Clone(g.rec.Tags),
	}
	for _, st := range g.streams {
		for _, p := range st.rec.Spans {
			v.Stored += p.Bytes
		}
	}
	return v
}

func (st *stream) view() Stream {
	v := Stream{Name: st.rec.Name, Created: st.rec.Created, LastIngestion: st.rec.Ingestion}
	for i, p := range st.rec.Spans {
		if i == 0 || p.Min < v.First {
			v.First = p.Min
		}
		if i == 0 || p.Max > v.Last {
			v.Last = p.Max
		}
		v.Events += p.Events
		v.Stored += p.Bytes
	}
	return v
}

// Group returns a log group, or ErrNoGroup.
func (s *Store) Group(name GroupName) (Group, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	g := s.groups[name]
	if g == nil {
		return Group{}, ErrNoGroup
	}
	return g.view(), nil
}

// Groups returns the log groups of an account in a region whose names match, by
// name.
func (s *Store) Groups(account, region string, match func(name string) bool) []Group {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var list []Group
	for name, g := range s.groups {
		if name.Account == account && name.Region == region && match(name.Name) {
			list = append(list, g.view())
		}
	}
	slices.SortFunc(list, func(a, b Group) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// Streams returns the streams of a log group whose names begin with prefix, by
// name, or ErrNoGroup.
func (s *Store) Streams(name GroupName, prefix string) ([]Stream, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	g := s.groups[name]
	if g == nil {
		return nil, ErrNoGroup
	}
	var list []Stream
	for n, st := range g.streams {
		if strings.HasPrefix(n, prefix) {
			list = append(list, st.view())
		}
	}
	slices.SortFunc(list, func(a, b Stream) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// Stream returns a log stream, or ErrNoGroup or ErrNoStream.
func (s *Store) Stream(name GroupName, stream string) (Stream, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st, err := s.find(name, stream)
	if err != nil {
		return Stream{}, err
	}
	return st.view(), nil
}

func (s *Store) find(name GroupName, stream string) (*stream, error) {
	g := s.groups[name]
	if g == nil {
		return nil, ErrNoGroup
	}
	st := g.streams[stream]
	if st == nil {
		return nil, ErrNoStream
	}
	return st, nil
}

// Stats counts.
func (s *Store) Stats() Stats {
	st := Stats{LostRecords: s.lost.Load(), Disk: int64(s.db.Metrics().DiskSpaceUsage())}
	s.mu.RLock()
	defer s.mu.RUnlock()
	segments := map[uint32]bool{}
	st.Groups = len(s.groups)
	for _, g := range s.groups {
		st.Streams += len(g.streams)
		for _, t := range g.streams {
			for _, p := range t.rec.Spans {
				segments[p.Segment] = true
				st.Events += p.Events
				st.Bytes += p.Bytes
			}
		}
	}
	st.Segments = len(segments)
	st.DroppedEvents, st.DroppedBytes = s.state.DroppedEvents, s.state.DroppedBytes
	return st
}

// CreateGroup makes a log group, or returns ErrGroupExists. Created is set by it.
func (s *Store) CreateGroup(ctx context.Context, g Group) error {
	return s.do(ctx, func(b *pebble.Batch) error {
		if s.groups[g.GroupName] != nil {
			return ErrGroupExists
		}
		_, err := s.makeGroup(b, g)
		return err
	})
}

// UpdateGroup changes retention, protection or tags of a log group, or returns ErrNoGroup
// or what change returns.
func (s *Store) UpdateGroup(ctx context.Context, name GroupName, change func(*Group) error) error {
	return s.do(ctx, func(b *pebble.Batch) error {
		g := s.groups[name]
		if g == nil {
			return ErrNoGroup
		}
		v := g.view()
		if err := change(&v); err != nil {
			return err
		}
		g.rec.Retention, g.rec.Protected, g.rec.Tags = v.Retention, v.Protected, v.Tags
		return g.put(b)
	})
}

// CreateStream makes a log stream, or returns ErrNoGroup or ErrStreamExists.
func (s *Store) CreateStream(ctx context.Context, name GroupName, stream string) error {
	return s.do(ctx, func(b *pebble.Batch) error {
		switch _, err := s.find(name, stream); err {
		case nil:
			return ErrStreamExists
		case ErrNoStream:
			s.mark(s.makeStream(s.groups[name], stream))
			return nil
		default:
			return err
		}
	})
}

// DeleteGroup removes a log group with its streams, or returns ErrNoGroup or
// ErrProtected.
func (s *Store) DeleteGroup(ctx context.Context, name GroupName) error {
	return s.do(ctx, func(b *pebble.Batch) error {
		g := s.groups[name]
		if g == nil {
			return ErrNoGroup
		}
		if g.rec.Protected {
			return ErrProtected
		}
		for _, st := range g.streams {
			if err := s.removeStream(b, st); err != nil {
				return err
			}
		}
		g.gone = true
		delete(s.groups, name)
		return b.Delete(groupKey(g.id), nil)
	})
}

// DeleteStream removes a log stream, or returns ErrNoGroup or ErrNoStream.
func (s *Store) DeleteStream(ctx context.Context, name GroupName, stream string) error {
	return s.do(ctx, func(b *pebble.Batch) error {
		st, err := s.find(name, stream)
		if err != nil {
			return err
		}
		return s.removeStream(b, st)
	})
}

// What follows runs in the writer, with s.mu held.

func (s *Store) makeGroup(b *pebble.Batch, v Group) (*group, error) {
	s.state.ID++
	g := &group{id: s.state.ID, streams: map[string]*stream{}, rec: groupRecord{
		Account: v.Account, Region: v.Region, Name: v.Name, Created: s.cfg.Now().UnixMilli(),
		Retention: v.Retention, Protected: v.Protected, Class: v.Class, Tags: maps.Clone(v.Tags),
	}}
	s.groups[v.GroupName] = g
	return g, g.put(b)
}

func (s *Store) makeStream(g *group, name string) *stream {
	s.state.ID++
	st := &stream{id: s.state.ID, group: g, rec: streamRecord{Name: name, Created: s.cfg.Now().UnixMilli()}}
	g.streams[name] = st
	return st
}

func (s *Store) removeStream(b *pebble.Batch, st *stream) error {
	for _, p := range st.rec.Spans {
		if err := s.removeRange(b, eventPrefix(p.Segment, st.id), eventPrefix(p.Segment, st.id+1)); err != nil {
			return err
		}
	}
	st.gone = true
	delete(st.group.streams, st.rec.Name)
	return b.Delete(streamKey(st.group.id, st.id), nil)
}

// removeRange removes events and has their room given back.
func (s *Store) removeRange(b *pebble.Batch, from, to []byte) error {
	s.removed = append(s.removed, [2][]byte{from, to})
	return b.DeleteRange(from, to, nil)
}

func (g *group) put(b *pebble.Batch) error {
	v, err := json.Marshal(g.rec)
	if err != nil {
		return err
	}
	return b.Set(groupKey(g.id), v, nil)
}

func (st *stream) put(b *pebble.Batch) error {
	v, err := json.Marshal(st.rec)
	if err != nil {
		return err
	}
	return b.Set(streamKey(st.group.id, st.id), v, nil)
}

func groupKey(id uint64) []byte { return binary.BigEndian.AppendUint64([]byte{'g'}, id) }

func streamKey(group, id uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte{'s'}, group), id)
}

func segmentKey(segment uint32) []byte { return binary.BigEndian.AppendUint32([]byte{'e'}, segment) }

func eventPrefix(segment uint32, stream uint64) []byte {
	b := make([]byte, 0, eventKeyLen)
	b = binary.BigEndian.AppendUint32(append(b, 'e'), segment)
	return binary.BigEndian.AppendUint64(b, stream)
}

const (
	eventPrefixLen = 1 + 4 + 8
	eventKeyLen    = eventPrefixLen + 8 + 8
)

func eventKey(segment uint32, stream uint64, p Position) []byte {
	return appendPosition(eventPrefix(segment, stream), p)
}

// appendPosition orders negative times before others.
func appendPosition(b []byte, p Position) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(p.Time)^1<<63)
	return binary.BigEndian.AppendUint64(b, p.Seq)
}

func positionOf(key []byte) Position {
	return Position{
		Time: int64(binary.BigEndian.Uint64(key[eventPrefixLen:]) ^ 1<<63),
		Seq:  binary.BigEndian.Uint64(key[eventPrefixLen+8:]),
	}
}

// pebbleLog turns Pebble's log into ours.
type pebbleLog struct{ log *slog.Logger }

func (l pebbleLog) Infof(format string, args ...any) {
	l.log.Debug("log store", "pebble", fmt.Sprintf(format, args...))
}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.log.Error("log store", "pebble", fmt.Sprintf(format, args...))
}

// Fatalf must not return: the files could not be written.
func (l pebbleLog) Fatalf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	l.log.Error("the log store cannot go on; look at its disk", "pebble", text)
	panic("logstore: " + text)
}
