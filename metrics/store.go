package metrics

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/lambdad/lambdad"
)

// How far from now data may lie, as in CloudWatch.
const (
	MaxAge   = 14 * 24 * time.Hour
	MaxAhead = 2 * time.Hour
)

// flushEvery is how often what was recorded is written.
const flushEvery = time.Second

// Config is what a Store needs.
type Config struct {
	Dir string // made if absent
	// Retention is how long data are kept; 0: 15 days.
	Retention time.Duration
	// MaxBytes bounds what is on disk; 0: 512 MiB. The oldest data go first. What
	// of the last hours is not in blocks yet counts, but is not what goes.
	MaxBytes int64
	// MaxSeries is how many metrics, dimensions told apart, may be written to
	// at a time; 0: 50,000.
	MaxSeries int
	Logger    *slog.Logger     // nil: discard
	Now       func() time.Time // nil: time.Now
}

// A Dimension is one name and value that a metric is told apart by.
type Dimension struct{ Name, Value string }

// An ID names a metric. Two of different units are two metrics.
type ID struct {
	Account, Region, Namespace, Name, Unit string
	Dimensions                             []Dimension // sorted by name
}

// A Datum is values of a metric at one time.
type Datum struct {
	ID
	Time time.Time
	// High: the time counts to the second, not to the minute.
	High bool
	Statistics
}

// A Store keeps metrics on disk. It is a Recorder; Run must be running for what is
// recorded to be written.
type Store struct {
	cfg Config
	db  *tsdb.DB

	pending  pending
	embedded embedded

	mu     sync.Mutex // guards the rest, and is held while data are written
	series map[string]*series
	swept  time.Time // when those not written to for long were last looked for
	// dropped counts values that were recorded and could not be kept.
	dropped int64
}

// A series is where the data of one metric go.
type series struct {
	labels [3]labels.Labels // of distribution, minimum, maximum
	refs   [3]storage.SeriesRef
	used   time.Time
	// slots is the last millisecond used of each minute written lately: a store of
	// samples has room for one each millisecond.
	slots map[int64]int64
}

const (
	distributions = iota
	minima
	maxima
)

// Open opens or makes a store.
func Open(cfg Config) (*Store, error) {
	if cfg.Retention <= 0 {
		cfg.Retention = 15 * 24 * time.Hour
	}
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = 512 << 20
	}
	if cfg.MaxSeries <= 0 {
		cfg.MaxSeries = 50000
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	opts := tsdb.DefaultOptions()
	opts.RetentionDuration = cfg.Retention.Milliseconds()
	opts.MaxBytes = cfg.MaxBytes
	opts.OutOfOrderTimeWindow = (MaxAge + time.Hour).Milliseconds()
	opts.NoLockfile = true // the data directory has one
	opts.StripeSize = 1 << 10
	opts.WALSegmentSize = 16 << 20
	opts.HeadChunksWriteQueueSize = 0
	db, err := tsdb.Open(cfg.Dir, quiet(cfg.Logger), nil, opts, nil)
	if err != nil {
		return nil, fmt.Errorf("metrics: opening the store in %s: %w", cfg.Dir, err)
	}
	s := &Store{cfg: cfg, db: db, series: map[string]*series{}}
	s.embedded.lines = make(chan embeddedLine, maxWaitingLines)
	return s, nil
}

// quiet makes the library's progress reports debug messages.
func quiet(log *slog.Logger) *slog.Logger {
	return slog.New(quietHandler{log.With("part", "metrics").Handler()})
}

type quietHandler struct{ slog.Handler }

func (h quietHandler) Enabled(ctx context.Context, l slog.Level) bool {
	if l < slog.LevelWarn {
		l = slog.LevelDebug
	}
	return h.Handler.Enabled(ctx, l)
}

func (h quietHandler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn {
		r.Level = slog.LevelDebug
	}
	return h.Handler.Handle(ctx, r)
}

func (h quietHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return quietHandler{h.Handler.WithAttrs(a)}
}
func (h quietHandler) WithGroup(n string) slog.Handler { return quietHandler{h.Handler.WithGroup(n)} }

// Run writes what is recorded, once a second, until ctx ends, and then the rest.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.flush(context.WithoutCancel(ctx))
			return nil
		}
		s.flush(ctx)
	}
}

// Close writes what is recorded and closes the store.
func (s *Store) Close() error {
	s.flush(context.Background())
	return s.db.Close()
}

// Label names. Their order is that of the alphabet.
const (
	labelAccount    = "account"
	labelDimensions = "dimensions"
	labelHigh       = "high"
	labelNamespace  = "namespace"
	labelRegion     = "region"
	labelStat       = "stat"
	labelUnit       = "unit"
	labelName       = "__name__"
)

// dimensionText is all of the dimensions as one label.
func dimensionText(dims []Dimension) string {
	var b strings.Builder
	for _, d := range dims {
		b.WriteString(d.Name)
		b.WriteByte(0)
		b.WriteString(d.Value)
		b.WriteByte(1)
	}
	return b.String()
}

func parseDimensions(text string) (dims []Dimension) {
	for part := range strings.SplitSeq(text, "\x01") {
		if name, value, ok := strings.Cut(part, "\x00"); ok {
			dims = append(dims, Dimension{name, value})
		}
	}
	return dims
}

// SortDimensions puts dimensions into the order of an ID.
func SortDimensions(dims []Dimension) {
	slices.SortFunc(dims, func(a, b Dimension) int { return cmp.Compare(a.Name, b.Name) })
}

func (id *ID) labels(high bool, stat string) labels.Labels {
	pairs := []string{
		labelName, id.Name, labelAccount, id.Account, labelRegion, id.Region,
		labelNamespace, id.Namespace, labelUnit, id.Unit,
	}
	add := func(name, value string) {
		if value != "" {
			pairs = append(pairs, name, value)
		}
	}
	add(labelDimensions, dimensionText(id.Dimensions))
	add(labelStat, stat)
	if high {
		add(labelHigh, "1")
	}
	return labels.FromStrings(pairs...)
}

// Put writes data; when it returns they survive the end of the process. Times must
// be within MaxAge and MaxAhead. It fails with LimitExceededFault when too many
// metrics are told apart.
func (s *Store) Put(ctx context.Context, data []Datum) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.write(ctx, data, nil)
}

// write appends data and commits them. What is wrong with a single one is told to
// skip, if there is one, and the others are written. Called under mu.
func (s *Store) write(ctx context.Context, data []Datum, skip func(*Datum, error)) (err error) {
	if len(data) == 0 {
		return nil
	}
	now := s.cfg.Now()
	app := s.db.Appender(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(err, app.Rollback())
		}
	}()
	for i := range data {
		if err := s.append(app, &data[i], now); err != nil {
			if skip == nil {
				return err
			}
			skip(&data[i], err)
		}
	}
	if err := app.Commit(); err != nil {
		return fmt.Errorf("metrics: writing: %w", err)
	}
	return nil
}

func (s *Store) append(app storage.Appender, d *Datum, now time.Time) error {
	if d.Count == 0 {
		return nil
	}
	sr, err := s.seriesOf(&d.ID, d.High, now)
	if err != nil {
		return err
	}
	at, ok := sr.slot(d.Time, d.High, now)
	if !ok {
		return lambdad.Errorf("ThrottlingException", "Too many values of the metric %s are put for one time; put them together as Values and Counts.", d.Name)
	}
	// The extremes come first: without them a distribution is read wrong.
	if d.Min != d.Max { // else all of them are the average
		if sr.refs[minima], err = app.Append(sr.refs[minima], sr.labels[minima], at, d.Min); err != nil {
			return fmt.Errorf("metrics: writing the minimum of %s: %w", d.Name, err)
		}
		if sr.refs[maxima], err = app.Append(sr.refs[maxima], sr.labels[maxima], at, d.Max); err != nil {
			return fmt.Errorf("metrics: writing the maximum of %s: %w", d.Name, err)
		}
	}
	if sr.refs[distributions], err = app.AppendHistogram(sr.refs[distributions], sr.labels[distributions], at, nil, d.histogram()); err != nil {
		return fmt.Errorf("metrics: writing %s: %w", d.Name, err)
	}
	return nil
}

func (s *Store) seriesOf(id *ID, high bool, now time.Time) (*series, error) {
	key := strings.Join([]string{id.Account, id.Region, id.Namespace, id.Name, id.Unit, dimensionText(id.Dimensions)}, "\x02")
	if high {
		key += "\x02"
	}
	sr := s.series[key]
	if sr == nil {
		limit := s.cfg.MaxSeries
		if id.Namespace == Namespace {
			limit *= 2 // what clients put leaves room for the functions' own
		}
		if len(s.series) >= limit && now.Sub(s.swept) >= time.Minute { // not for each that is refused
			s.swept = now
			for k, old := range s.series {
				if now.Sub(old.used) > 3*time.Hour {
					delete(s.series, k)
				}
			}
		}
		if len(s.series) >= limit {
			return nil, lambdad.Errorf("LimitExceededFault", "More than %d metrics, dimensions told apart, are written to.", s.cfg.MaxSeries)
		}
		sr = &series{slots: map[int64]int64{}, labels: [3]labels.Labels{id.labels(high, ""), id.labels(high, "min"), id.labels(high, "max")}}
		s.series[key] = sr
	}
	sr.used = now
	return sr, nil
}

// slot finds a free millisecond in the minute, or second, that at is in: the one of
// the clock, or else the next.
func (sr *series) slot(at time.Time, high bool, now time.Time) (int64, bool) {
	width := resolution(high)
	base := floor(at.UnixMilli(), width)
	ms := now.UnixMilli() - floor(now.UnixMilli(), width)
	if last, ok := sr.slots[base]; ok && ms <= last {
		if ms = last + 1; ms >= width {
			return 0, false
		}
	}
	if len(sr.slots) >= 64 {
		oldest := base
		for b := range sr.slots {
			oldest = min(oldest, b)
		}
		delete(sr.slots, oldest)
	}
	sr.slots[base] = ms
	return base + ms, true
}

// resolution is the width in milliseconds of what a time counts to.
func resolution(high bool) int64 {
	if high {
		return 1000
	}
	return 60000
}

func floor(ms, width int64) int64 {
	n := ms % width
	if n < 0 {
		n += width
	}
	return ms - n
}

// A Point is the statistics of one period and unit.
type Point struct {
	Time time.Time // when the period begins
	Unit string
	Statistics
}

// Select returns the statistics of a metric in the periods that begin from start on
// and before end, in order; periods without data are left out. An ID without a unit
// means all units, each with points of its own. Start and the period's beginning are cut to whole periods.
func (s *Store) Select(ctx context.Context, id ID, start, end time.Time, period time.Duration) ([]Point, error) {
	s.flush(ctx)
	width := period.Milliseconds()
	from, to := floor(start.UnixMilli(), width), end.UnixMilli()-1
	q, err := s.db.Querier(from, floor(to, width)+width-1)
	if err != nil {
		return nil, fmt.Errorf("metrics: reading %s: %w", id.Name, err)
	}
	defer q.Close()
	match := func(name, value string) *labels.Matcher { return labels.MustNewMatcher(labels.MatchEqual, name, value) }
	matchers := []*labels.Matcher{
		match(labelName, id.Name), match(labelNamespace, id.Namespace), match(labelAccount, id.Account), match(labelRegion, id.Region),
		match(labelDimensions, dimensionText(id.Dimensions)),
	}
	if id.Unit != "" {
		matchers = append(matchers, match(labelUnit, id.Unit))
	}
	// The extremes come first: the distributions need them.
	type extremes struct{ least, most float64 }
	type place struct {
		unit, high string
		at         int64
	}
	type beginning struct {
		unit string
		at   int64
	}
	differ := map[place]extremes{}
	var points []Point
	index := map[beginning]int{}
	for _, stat := range []string{"min", "max", ""} {
		set := q.Select(ctx, false, nil, append(slices.Clip(matchers), match(labelStat, stat))...)
		var it chunkenc.Iterator
		for set.Next() {
			sr := set.At()
			ls := sr.Labels()
			at := place{unit: strings.Clone(ls.Get(labelUnit)), high: ls.Get(labelHigh)}
			it = sr.Iterator(it)
			for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
				at.at = it.AtT()
				switch {
				case stat == "min":
					_, v := it.At()
					differ[at] = extremes{v, v}
				case stat == "max":
					_, v := it.At()
					differ[at] = extremes{differ[at].least, v}
				case kind == chunkenc.ValFloatHistogram || kind == chunkenc.ValHistogram:
					_, h := it.AtFloatHistogram(nil)
					begin := floor(floor(at.at, resolution(at.high != "")), width)
					if begin < from || begin > to {
						continue
					}
					i, ok := index[beginning{at.unit, begin}]
					if !ok {
						i = len(points)
						index[beginning{at.unit, begin}] = i
						points = append(points, Point{Time: time.UnixMilli(begin).UTC(), Unit: at.unit})
					}
					e, ok := differ[at]
					if !ok {
						v := h.Sum / h.Count
						e = extremes{v, v}
					}
					points[i].merge(h, e.least, e.most)
				}
			}
			if err := it.Err(); err != nil {
				return nil, fmt.Errorf("metrics: reading %s: %w", id.Name, err)
			}
		}
		if err := set.Err(); err != nil {
			return nil, fmt.Errorf("metrics: reading %s: %w", id.Name, err)
		}
	}
	slices.SortFunc(points, func(a, b Point) int { return a.Time.Compare(b.Time) })
	return points, nil
}

// List returns the metrics of an account and region that have data since a time,
// once for all units, in no order. An empty namespace or name means all.
func (s *Store) List(ctx context.Context, account, region, namespace, name string, since time.Time) ([]ID, error) {
	s.flush(ctx)
	q, err := s.db.Querier(since.UnixMilli(), s.cfg.Now().Add(MaxAhead).UnixMilli())
	if err != nil {
		return nil, fmt.Errorf("metrics: listing: %w", err)
	}
	defer q.Close()
	match := func(name, value string) *labels.Matcher { return labels.MustNewMatcher(labels.MatchEqual, name, value) }
	matchers := []*labels.Matcher{match(labelAccount, account), match(labelRegion, region), match(labelStat, "")}
	if namespace != "" {
		matchers = append(matchers, match(labelNamespace, namespace))
	}
	if name != "" {
		matchers = append(matchers, match(labelName, name))
	}
	set := q.Select(ctx, false, &storage.SelectHints{Start: since.UnixMilli(), End: s.cfg.Now().Add(MaxAhead).UnixMilli(), Func: "series"}, matchers...)
	seen := map[string]bool{}
	var ids []ID
	for set.Next() {
		ls := set.At().Labels()
		dims := ls.Get(labelDimensions)
		id := ID{Account: account, Region: region, Namespace: strings.Clone(ls.Get(labelNamespace)), Name: strings.Clone(ls.Get(labelName))}
		key := id.Namespace + "\x02" + id.Name + "\x02" + dims
		if seen[key] {
			continue
		}
		seen[key] = true
		id.Dimensions = parseDimensions(strings.Clone(dims))
		ids = append(ids, id)
	}
	if err := set.Err(); err != nil {
		return nil, fmt.Errorf("metrics: listing: %w", err)
	}
	return ids, nil
}

// Size returns the bytes on disk, how many metrics were written to lately, and how
// many recorded values could not be kept.
func (s *Store) Size() (bytes int64, series int, dropped int64) {
	for _, b := range s.db.Blocks() {
		bytes += b.Size()
	}
	bytes += s.db.Head().Size()
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes, len(s.series), s.dropped + s.embedded.over.Load()
}
