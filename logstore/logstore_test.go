package logstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lambdad/lambdad/telemetry"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashChild) != "" {
		crashMain()
	}
	os.Exit(m.Run())
}

var text = telemetry.NewFormat("Text", "", "")

func g(name string) GroupName { return GroupName{"000000000000", "us-east-1", name} }

func open(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func collect(t testing.TB, s *Store, q Query) []Event {
	t.Helper()
	if q.To == (Position{}) {
		q.To = Forever
	}
	events, err := s.Events(q)
	if err != nil {
		t.Fatal(err)
	}
	var list []Event
	for e, err := range events {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
	return list
}

func messages(events []Event) string {
	var list []string
	for _, e := range events {
		list = append(list, e.Message)
	}
	return strings.Join(list, "|")
}

func line(at int64, s string) telemetry.Event {
	return telemetry.Event{Time: time.UnixMilli(at), Type: telemetry.TypeFunctionLine, Record: telemetry.Line(s)}
}

func TestSink(t *testing.T) {
	s := open(t, Config{})
	k := s.Sink(g("/aws/lambda/f"), "s1", text)
	if s.Groups("000000000000", "us-east-1", func(string) bool { return true }) != nil {
		t.Error("the group is there before its first line")
	}
	k.Take(line(1000, "hello"))
	k.Take(line(1000, ""))
	k.Take(line(1001, "two\nlines\xff"))
	k.Take(telemetry.Event{Time: time.UnixMilli(1002), Type: telemetry.TypeReport, Record: telemetry.Report{RequestID: "r", Status: "success"}})
	must(t, s.Flush(t.Context()))
	want := "hello\n|\n|two\nlines\xff\n|END RequestId: r\n|REPORT RequestId: r\tDuration: 0.00 ms\tBilled Duration: 0 ms\tMemory Size: 0 MB\tMax Memory Used: 0 MB\t\n"
	got := collect(t, s, Query{Group: g("/aws/lambda/f")})
	if messages(got) != want {
		t.Errorf("got %q\nwant %q", messages(got), want)
	}
	if got[2].Time != 1001 || got[2].Stream != "s1" || got[2].Ingested < 1e12 {
		t.Errorf("event: %+v", got[2])
	}
	j := s.Sink(g("json"), "s1", telemetry.NewFormat("JSON", "INFO", "WARN"))
	j.Take(line(1000, `{"level":"debug"}`))
	j.Take(line(1000, `{"level":"info"}`))
	j.Take(telemetry.Event{Type: telemetry.TypeStart, Record: telemetry.Start{RequestID: "r"}})
	must(t, s.Flush(t.Context()))
	if got := messages(collect(t, s, Query{Group: g("json")})); got != `{"level":"info"}` {
		t.Errorf("JSON: %q", got)
	}
	// A group that was deleted comes back with the next line.
	must(t, s.DeleteGroup(t.Context(), g("/aws/lambda/f")))
	if _, err := s.Events(Query{Group: g("/aws/lambda/f")}); !errors.Is(err, ErrNoGroup) {
		t.Errorf("deleted group: %v", err)
	}
	k.Take(line(2000, "again"))
	must(t, s.Flush(t.Context()))
	if got := messages(collect(t, s, Query{Group: g("/aws/lambda/f")})); got != "again\n" {
		t.Errorf("after deletion: %q", got)
	}
}

// TestWithinASecond holds that lines come to disk without anybody asking.
func TestWithinASecond(t *testing.T) {
	s := open(t, Config{})
	k := s.Sink(g("f"), "s", text)
	k.Take(line(1, "x"))
	f := s.Follow(func(GroupName, string) bool { return true }, 0)
	defer f.End()
	for range 100 {
		if s.durable.Load() == 1 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("not on disk after five seconds")
}

// TestSinkBound holds that a sink whose store cannot write drops, counts and tells.
func TestSinkBound(t *testing.T) {
	var full atomic.Bool
	full.Store(true)
	s := open(t, Config{FlushEvery: time.Millisecond, Reserve: func() error {
		if full.Load() {
			return errors.New("disk full")
		}
		return nil
	}})
	k := s.Sink(g("f"), "s", text)
	big := strings.Repeat("x", 1<<20)
	for range 30 {
		k.Take(line(1, big))
	}
	if err := s.CreateGroup(t.Context(), Group{GroupName: g("other")}); err == nil {
		t.Error("a group was made on a full disk")
	}
	const fit = maxSinkPending >> 20 // the first that is over it is kept whole
	if s.lost.Load() != 30-fit {
		t.Errorf("lost %d records", s.lost.Load())
	}
	full.Store(false)
	for i := 0; s.durable.Load() == 0 && i < 1000; i++ {
		time.Sleep(10 * time.Millisecond)
	}
	got := collect(t, s, Query{Group: g("f")})
	if len(got) != fit+1 || got[0].Message != big+"\n" || got[fit].Message != fmt.Sprintf("LOGS_DROPPED\tRecords: %d\tBytes: %d\n", 30-fit, (30-fit)*(1<<20+1)) {
		t.Errorf("%d events, last %.80q", len(got), got[len(got)-1].Message)
	}
	if n := s.pending.Load(); n != 0 {
		t.Errorf("%d bytes pending", n)
	}
}

// model is a store as simple as can be.
type model struct {
	groups map[string]map[string][]Event
}

// TestAgainstModel does the same at random to a store and to a model, with the store
// closed and opened between, and compares what is read.
func TestAgainstModel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { againstModel(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func againstModel(t *testing.T, r *rand.Rand) {
	cfg := Config{Dir: t.TempDir(), FlushEvery: time.Millisecond}
	s := open(t, cfg)
	s.segmentSize = 300 // many segments
	m := model{groups: map[string]map[string][]Event{}}
	sinks := map[string]*Sink{}
	ctx := t.Context()
	seq := uint64(0)
	for range 400 {
		group, stream := fmt.Sprintf("g%d", r.IntN(3)), fmt.Sprintf("s%d", r.IntN(4))
		switch p := r.IntN(20); {
		case p < 1:
			err := s.CreateGroup(ctx, Group{GroupName: g(group)})
			if (m.groups[group] != nil) != errors.Is(err, ErrGroupExists) {
				t.Fatal(group, err)
			}
			if err == nil {
				m.groups[group] = map[string][]Event{}
			}
		case p < 3:
			err := s.CreateStream(ctx, g(group), stream)
			_, there := m.groups[group][stream]
			if (m.groups[group] == nil) != errors.Is(err, ErrNoGroup) || there != errors.Is(err, ErrStreamExists) {
				t.Fatal(group, stream, err)
			}
			if err == nil {
				m.groups[group][stream] = nil
			}
		case p < 10:
			at := int64(r.IntN(50))
			var entries []Entry
			for range 1 + r.IntN(6) {
				entries = append(entries, Entry{at, strings.Repeat("m", r.IntN(30))})
				at += int64(r.IntN(3))
			}
			err := s.Put(ctx, g(group), stream, entries)
			_, there := m.groups[group][stream]
			if there != (err == nil) {
				t.Fatal(group, stream, err)
			}
			if err == nil {
				for _, e := range entries {
					seq++
					m.groups[group][stream] = append(m.groups[group][stream], Event{Position: Position{e.Time, seq}, Stream: stream, Message: e.Message})
				}
			}
		case p < 14:
			k := sinks[group+stream]
			if k == nil {
				k = s.Sink(g(group), stream, text)
				sinks[group+stream] = k
			}
			if m.groups[group] == nil {
				m.groups[group] = map[string][]Event{}
			}
			for range 1 + r.IntN(4) {
				at := int64(r.IntN(50))
				k.Take(line(at, "line"))
				seq++
				m.groups[group][stream] = append(m.groups[group][stream], Event{Position: Position{at, seq}, Stream: stream, Message: "line\n"})
			}
			must(t, s.Flush(ctx))
		case p < 15 && r.IntN(4) == 0:
			if err := s.DeleteGroup(ctx, g(group)); (err == nil) != (m.groups[group] != nil) {
				t.Fatal(group, err)
			}
			delete(m.groups, group)
		case p < 16 && r.IntN(2) == 0:
			_, there := m.groups[group][stream]
			if err := s.DeleteStream(ctx, g(group), stream); (err == nil) != there {
				t.Fatal(group, stream, err)
			}
			delete(m.groups[group], stream)
		case p < 17 && r.IntN(3) == 0:
			must(t, s.Close())
			s = open(t, cfg)
			s.segmentSize = 300
			clear(sinks)
		default:
			if m.groups[group] == nil {
				continue
			}
			m.compare(t, s, r, group)
		}
	}
}

func (m *model) compare(t *testing.T, s *Store, r *rand.Rand, group string) {
	t.Helper()
	q := Query{Group: g(group), Ahead: 1 + r.IntN(5), Backward: r.IntN(2) == 0,
		From: Position{int64(r.IntN(40)), 0}, To: Position{1 + int64(r.IntN(60)), 0}}
	if r.IntN(2) == 0 {
		q.From.Seq, q.To.Seq = uint64(r.IntN(500)), uint64(r.IntN(500))
	}
	if r.IntN(3) == 0 {
		q.From, q.To = Position{}, Forever
	}
	var want []Event
	for name, events := range m.groups[group] {
		if st, err := s.Stream(g(group), name); err != nil || st.Events != int64(len(events)) {
			t.Fatalf("%s has %d events, want %d; %v", name, st.Events, len(events), err)
		}
		if q.Streams == nil || slices.Contains(q.Streams, name) {
			want = append(want, events...)
		}
	}
	want = slices.DeleteFunc(want, func(e Event) bool { return e.Compare(q.From) < 0 || e.Compare(q.To) >= 0 })
	slices.SortFunc(want, func(a, b Event) int { return a.Compare(b.Position) })
	if q.Backward {
		slices.Reverse(want)
	}
	got := collect(t, s, q)
	for i := range got {
		got[i].Ingested = 0
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%+v:\ngot  %v\nwant %v", q, got, want)
	}
}

// inFiles says whether any file of the store holds b.
func inFiles(t *testing.T, dir, b string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		found = found || bytes.Contains(data, []byte(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestRetention holds that expired events are shown to nobody at once, and that a
// sweep removes them from the files.
func TestRetention(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, Now: func() time.Time { return now }})
	ctx := t.Context()
	must(t, s.CreateGroup(ctx, Group{GroupName: g("f")}))
	for _, name := range []string{"old", "both"} {
		must(t, s.CreateStream(ctx, g("f"), name))
	}
	old, young := now.UnixMilli(), now.UnixMilli()+12*3600*1000
	// Random text, which compression leaves as it is.
	must(t, s.Put(ctx, g("f"), "old", []Entry{{old, "AhTh3ohx7Oosoo2u"}}))
	must(t, s.Put(ctx, g("f"), "both", []Entry{{old, "ieNgee5Ahv6phohp"}, {young, "Quai0eiquohlei4t"}}))
	must(t, s.UpdateGroup(ctx, g("f"), func(g *Group) error { g.Retention = 1; return nil }))
	if n := len(collect(t, s, Query{Group: g("f")})); n != 3 {
		t.Fatalf("%d events before", n)
	}
	now = now.Add(24*time.Hour + time.Millisecond)
	if got := messages(collect(t, s, Query{Group: g("f")})); got != "Quai0eiquohlei4t" {
		t.Errorf("before the sweep: %q", got)
	}
	if !inFiles(t, dir, "AhTh3ohx7Oosoo2u") {
		t.Error("the test cannot see what the files hold")
	}
	must(t, s.Sweep(ctx))
	// Logs of writes that were made since are recycled by later ones.
	must(t, s.Close())
	s = open(t, Config{Dir: dir, Now: func() time.Time { return now }})
	for _, b := range []string{"AhTh3ohx7Oosoo2u", "ieNgee5Ahv6phohp"} {
		if inFiles(t, dir, b) {
			t.Errorf("%s is still in the files", b)
		}
	}
	if !inFiles(t, dir, "Quai0eiquohlei4t") {
		t.Error("what has not expired is gone")
	}
	streams, err := s.Streams(g("f"), "")
	if err != nil || len(streams) != 1 || streams[0].Name != "both" || streams[0].Events != 1 || streams[0].Stored != 16+eventOverhead {
		t.Errorf("streams: %+v %v", streams, err)
	}
}

// TestLimit holds that the files stay within the limit, and that the oldest go first
// and are counted.
func TestLimit(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, Limit: MinLimit, FlushEvery: 20 * time.Millisecond})
	r := rand.New(rand.NewPCG(1, 2))
	raw := make([]byte, 700)
	const n = 160_000 // about 115 MB that cannot be compressed much
	var last, most int64
	for i := range n {
		for j := range raw {
			raw[j] = byte(r.Uint32())
		}
		s.Sink(g("f"), fmt.Sprintf("s%d", i%3), text).Take(line(int64(i), fmt.Sprintf("%d %s", i, raw)))
		last = int64(i)
		if i%1000 == 0 {
			must(t, s.Flush(context.Background()))
		}
		if i%5000 == 0 {
			most = max(most, disk(t, dir))
		}
	}
	must(t, s.Flush(context.Background()))
	most = max(most, disk(t, dir))
	if most > MinLimit {
		t.Errorf("the files took %d bytes, the limit is %d", most, MinLimit)
	}
	st := s.Stats()
	got := collect(t, s, Query{Group: g("f")})
	if st.DroppedEvents == 0 || int(st.DroppedEvents)+len(got) != n || st.Events != int64(len(got)) {
		t.Errorf("%d dropped, %d there, %d counted, of %d", st.DroppedEvents, len(got), st.Events, n)
	}
	for i, e := range got {
		if want := last - int64(len(got)) + 1 + int64(i); e.Time != want {
			t.Fatalf("event %d is of time %d, want %d", i, e.Time, want)
		}
	}
	t.Logf("%d of %d events in %d MB of files, %d MB at most", len(got), n, disk(t, dir)>>20, most>>20)
}

func disk(t *testing.T, dir string) (n int64) {
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			n += info.Size()
		}
	}
	return n
}

func TestFollow(t *testing.T) {
	s := open(t, Config{})
	f := s.Follow(func(n GroupName, stream string) bool { return n == g("a") && stream == "s" }, 3)
	defer f.End()
	a, b := s.Sink(g("a"), "s", text), s.Sink(g("b"), "s", text)
	a.Take(line(1, "x"))
	b.Take(line(1, "y"))
	must(t, s.Flush(t.Context()))
	<-f.Ready()
	events, dropped := f.Next()
	if messages(events) != "x\n" || dropped != 0 || events[0].Group != g("a") {
		t.Errorf("%+v %d", events, dropped)
	}
	for range 5 {
		a.Take(line(2, "z"))
	}
	must(t, s.Flush(t.Context()))
	if events, dropped := f.Next(); len(events) != 3 || dropped != 2 {
		t.Errorf("%d events, %d dropped", len(events), dropped)
	}
}
