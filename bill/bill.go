// Package bill keeps what invocations cost and what of it their extensions took,
// per function and version.
//
// A Ledger is a reader of each environment's telemetry: an invocation counts when
// its platform.report is made, with the duration, the billed milliseconds and the
// initialisation that report shows (lifecycle.md section 15), and extensions count
// with telemetry.Cost. Sums are kept by function, version and day in the record
// store, written once a second: what a crash takes is at most that second. The
// latest invocations of each version are kept beside them, in memory: 100 of each, of all
// together some 20,000; beyond that those of the version are forgotten that ran longest ago.
//
// Prices are data (prices.json, or a file of the same form): what AWS publishes.
// What is billed without extensions is worked out for each invocation: without the
// time they took after the runtime and by which they made its initialisation
// longer. That they also use processor and memory of the function shows in its
// duration, and is no part of it.
package bill

import (
	"cmp"
	"container/list"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/store"
	"github.com/lambdad/lambdad/telemetry"
)

const (
	flushEvery = time.Second
	// maxLatest is how many invocations of a version are remembered one by one.
	maxLatest = 100
	// maxRemembered bounds those of all versions, to some 10 MiB. It is more than one
	// version has.
	maxRemembered = 20_000
	// maxNames bounds the extensions of one version on one day: internal ones may
	// choose their names.
	maxNames = 100
	dayForm  = "2006-01-02"
	// kept is how long days stay: a little over thirteen months.
	kept       = 400 * 24 * time.Hour
	pruneEvery = 24 * time.Hour
)

// A Version names what is billed.
type Version struct {
	Account, Region, Function, Number string
}

// Sums are what invocations took. Times are in microseconds where not said
// otherwise.
type Sums struct {
	Invocations  int64                 `json:"invocations"`
	Errors       int64                 `json:"errors"` // status other than success
	Cold         int64                 `json:"cold"`   // with an initialisation of their own
	Duration     int64                 `json:"durationUs"`
	Init         int64                 `json:"initUs"`                    // of cold ones
	After        int64                 `json:"postRuntimeExtensionsUs"`   // PostRuntimeExtensionsDuration
	Waited       int64                 `json:"initWaitedForExtensionsUs"` // by which extensions made initialisations longer
	Runtime      int64                 `json:"runtimeCpuUs"`              // of functions with extensions
	Billed       int64                 `json:"billedMs"`                  // in ms
	MBms         int64                 `json:"billedMBms"`                // billed ms × memory size in MB
	PlainMs      int64                 `json:"withoutExtensionsMs"`       // what would have been billed without extensions
	PlainMBms    int64                 `json:"withoutExtensionsMBms"`     //
	AheadMBms    int64                 `json:"provisionedMBms"`           // the part of MBms in provisioned environments
	AheadPlain   int64                 `json:"provisionedWithoutMBms"`    // the same without extensions
	StorageMBms  int64                 `json:"storageMBms"`               // billed ms × MB of /tmp beyond 512
	MaxMemory    int64                 `json:"maxMemoryUsedMB"`           // the largest
	MemorySize   int64                 `json:"memorySizeMB"`              // the latest
	Architecture string                `json:"architecture"`              // the latest
	Extensions   map[string]*Extension `json:"extensions,omitempty"`
}

// Extension is what one extension took.
type Extension struct {
	External    bool  `json:"external"`
	Inits       int64 `json:"inits"`
	Init        int64 `json:"initUs"`
	Invocations int64 `json:"invocations"`
	After       int64 `json:"afterUs"`
	AfterMax    int64 `json:"afterMaxUs"`
	CPU         int64 `json:"cpuUs"`
	Peak        int64 `json:"peakBytes"`
}

// add adds other sums.
func (s *Sums) add(o *Sums) {
	s.Invocations += o.Invocations
	s.Errors += o.Errors
	s.Cold += o.Cold
	s.Duration += o.Duration
	s.Init += o.Init
	s.After += o.After
	s.Waited += o.Waited
	s.Runtime += o.Runtime
	s.Billed += o.Billed
	s.MBms += o.MBms
	s.PlainMs += o.PlainMs
	s.PlainMBms += o.PlainMBms
	s.AheadMBms += o.AheadMBms
	s.AheadPlain += o.AheadPlain
	s.StorageMBms += o.StorageMBms
	s.MaxMemory = max(s.MaxMemory, o.MaxMemory)
	if o.MemorySize != 0 {
		s.MemorySize, s.Architecture = o.MemorySize, o.Architecture
	}
	for name, x := range o.Extensions {
		if e := s.extension(name); e != nil {
			e.External = x.External
			e.Inits += x.Inits
			e.Init += x.Init
			e.Invocations += x.Invocations
			e.After += x.After
			e.AfterMax = max(e.AfterMax, x.AfterMax)
			e.CPU += x.CPU
			e.Peak = max(e.Peak, x.Peak)
		}
	}
}

// extension finds one by name; nil when there are too many.
func (s *Sums) extension(name string) *Extension {
	if e := s.Extensions[name]; e != nil {
		return e
	}
	if len(s.Extensions) >= maxNames {
		return nil
	}
	if s.Extensions == nil {
		s.Extensions = map[string]*Extension{}
	}
	e := &Extension{}
	s.Extensions[name] = e
	return e
}

// An Invocation is one of the latest.
type Invocation struct {
	RequestID  string    `json:"requestId"`
	Time       time.Time `json:"time"`
	Status     string    `json:"status"`
	Duration   float64   `json:"durationMs"`
	Init       float64   `json:"initDurationMs,omitempty"`
	After      float64   `json:"postRuntimeExtensionsDurationMs,omitempty"`
	Billed     int64     `json:"billedMs"`
	Plain      int64     `json:"withoutExtensionsMs"`
	MemorySize int64     `json:"memorySizeMB"`
	MaxMemory  int64     `json:"maxMemoryUsedMB"`
	GBSeconds  float64   `json:"gbSeconds"`
	// Extensions is the time each took after the runtime, in ms, by name.
	Extensions map[string]float64 `json:"extensionsAfterMs,omitempty"`
}

// Config is what a Ledger needs.
type Config struct {
	Store  store.Store
	Logger *slog.Logger     // default: discard
	Now    func() time.Time // default time.Now
}

// A Ledger keeps the sums of one server. Run must be running for them to be kept.
type Ledger struct {
	cfg Config

	mu         sync.Mutex
	days       map[day]*open // those with something not yet written
	latest     map[Version]*list.Element
	byLast     list.List       // of *recent, the one that ran longest ago first
	remembered int             // invocations in byLast
	places     map[string]bool // prefixes of days since the start
}

// recent are the latest invocations of a version.
type recent struct {
	version Version
	list    []Invocation
}

// A day is what one record is about.
type day struct {
	Version
	date string // UTC, as dayForm
}

// open is a day that is added to.
type open struct {
	pending Sums // not yet in the store
}

// New returns a ledger.
func New(cfg Config) *Ledger {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Ledger{cfg: cfg, days: map[day]*open{}, latest: map[Version]*list.Element{}, places: map[string]bool{}}
}

// Sinks gives a new environment of a version the sink that counts it.
func (l *Ledger) Sinks(v *lambdad.Version, _ string) []telemetry.Sink {
	return []telemetry.Sink{&sink{
		ledger: l, version: Version{v.Account, v.Region, v.Function, v.Number},
		architecture: v.Architecture, storage: int64(max(0, v.EphemeralMB-512)),
	}}
}

// A sink counts one environment. The stream calls it in order, one at a time.
type sink struct {
	ledger       *Ledger
	version      Version
	architecture string
	storage      int64 // MB of /tmp that are billed
	ahead        bool
	waited       time.Duration // of the initialisation that the next report bills
	cost         telemetry.Cost
}

// Take implements telemetry.Sink.
func (s *sink) Take(e telemetry.Event) {
	switch r := e.Record.(type) {
	case telemetry.InitStart:
		s.ahead = r.InitializationType == "provisioned-concurrency"
		s.waited = 0
	case telemetry.Cost:
		switch {
		case r.RequestID != "":
			s.cost = r // of the report that follows
		case r.Phase == telemetry.PhaseShutdown:
			s.ledger.add(s.version, e.Time, func(sums *Sums) { addCosts(sums, &r) })
		default:
			s.waited = time.Duration(r.Waited)
			s.ledger.add(s.version, e.Time, func(sums *Sums) {
				sums.Waited += us(r.Waited)
				for i := range r.Extensions {
					if x := sums.extension(r.Extensions[i].Name); x != nil {
						x.External = r.Extensions[i].External
						x.Inits++
						x.Init += us(r.Extensions[i].Init)
					}
				}
			})
		}
	case telemetry.Report:
		s.report(e.Time, &r)
		s.cost = telemetry.Cost{}
		s.waited = 0
	}
}

func us(m telemetry.Millis) int64 { return time.Duration(m).Microseconds() }

func ms(m telemetry.Millis) float64 { return time.Duration(m).Seconds() * 1000 }

func (s *sink) report(at time.Time, r *telemetry.Report) {
	m := &r.Metrics
	var after telemetry.Millis
	for _, span := range r.Spans {
		if span.Name == "extensionOverhead" {
			after = span.Duration
		}
	}
	// Without extensions: neither their time after the runtime nor what they made
	// an initialisation longer. A suppressed one is part of the duration.
	init, duration := time.Duration(m.Init), time.Duration(m.Duration)-time.Duration(after)
	if init > 0 {
		init = max(0, init-s.waited)
	} else {
		duration -= s.waited
	}
	if s.ahead {
		init = 0
	}
	plain := min(m.Billed, telemetry.BilledMillis(max(0, duration), init))
	cost := &s.cost
	if cost.RequestID != r.RequestID {
		cost = nil
	}
	s.ledger.add(s.version, at, func(sums *Sums) {
		sums.Invocations++
		if r.Status != telemetry.StatusSuccess {
			sums.Errors++
		}
		if m.Init > 0 {
			sums.Cold++
		}
		sums.Duration += us(m.Duration)
		sums.Init += us(m.Init)
		sums.After += us(after)
		sums.Billed += m.Billed
		sums.MBms += m.Billed * m.MemorySize
		sums.PlainMs += plain
		sums.PlainMBms += plain * m.MemorySize
		if s.ahead {
			sums.AheadMBms += m.Billed * m.MemorySize
			sums.AheadPlain += plain * m.MemorySize
		}
		sums.StorageMBms += m.Billed * s.storage
		sums.MaxMemory = max(sums.MaxMemory, m.MaxMemoryUsed)
		sums.MemorySize, sums.Architecture = m.MemorySize, s.architecture
		if cost != nil {
			addCosts(sums, cost)
		}
	})
	one := Invocation{
		RequestID: r.RequestID, Time: at, Status: r.Status, Duration: ms(m.Duration), Init: ms(m.Init), After: ms(after),
		Billed: m.Billed, Plain: plain, MemorySize: m.MemorySize, MaxMemory: m.MaxMemoryUsed,
		GBSeconds: float64(m.Billed*m.MemorySize) / 1024 / 1000,
	}
	if cost != nil {
		one.Extensions = make(map[string]float64, len(cost.Extensions))
		for i := range cost.Extensions {
			one.Extensions[cost.Extensions[i].Name] = ms(cost.Extensions[i].After)
		}
	}
	s.ledger.remember(s.version, one)
}

func addCosts(sums *Sums, c *telemetry.Cost) {
	sums.Runtime += us(c.Runtime)
	for i := range c.Extensions {
		x := sums.extension(c.Extensions[i].Name)
		if x == nil {
			continue
		}
		x.External = c.Extensions[i].External
		if c.RequestID != "" {
			x.Invocations++
		}
		x.After += us(c.Extensions[i].After)
		x.AfterMax = max(x.AfterMax, us(c.Extensions[i].After))
		x.CPU += us(c.Extensions[i].CPU)
		x.Peak = max(x.Peak, c.Extensions[i].Peak)
	}
}

// add changes the sums of a version's day.
func (l *Ledger) add(v Version, at time.Time, f func(*Sums)) {
	d := day{v, at.UTC().Format(dayForm)}
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.days[d]
	if o == nil {
		o = &open{}
		l.days[d] = o
	}
	f(&o.pending)
}

func (l *Ledger) remember(v Version, one Invocation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.latest[v]
	if e == nil {
		e = l.byLast.PushBack(&recent{version: v})
		l.latest[v] = e
		l.places[prefix(v.Account, v.Region)] = true
	} else {
		l.byLast.MoveToBack(e)
	}
	r := e.Value.(*recent)
	if len(r.list) >= 2*maxLatest {
		l.remembered -= len(r.list) - maxLatest
		r.list = append(r.list[:0], r.list[len(r.list)-maxLatest:]...)
	}
	r.list = append(r.list, one)
	for l.remembered++; l.remembered > maxRemembered; {
		oldest := l.byLast.Remove(l.byLast.Front()).(*recent)
		l.remembered -= len(oldest.list)
		delete(l.latest, oldest.version)
	}
}

// Run writes what was added once a second, and a last time when ctx ends.
func (l *Ledger) Run(ctx context.Context) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	for {
		select {
		case <-prune.C:
			if err := l.prune(ctx); err != nil && ctx.Err() == nil {
				l.cfg.Logger.Error("old days of the bill could not be removed", "err", err)
			}
		case <-tick.C:
			if err := l.flush(ctx); err != nil && ctx.Err() == nil {
				l.cfg.Logger.Error("the bill could not be written; trying again", "err", err)
			}
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			return l.flush(last)
		}
	}
}

// prune removes days that are older than is kept, where something was added since
// the start.
func (l *Ledger) prune(ctx context.Context) error {
	l.mu.Lock()
	places := maps.Clone(l.places)
	l.mu.Unlock()
	oldest := l.cfg.Now().Add(-kept).UTC().Format(dayForm)
	for p := range places {
		records, err := l.cfg.Store.List(ctx, p)
		for _, r := range records {
			if date := r.Key[strings.LastIndexByte(r.Key, '.')+1:]; date < oldest {
				err = errors.Join(err, l.cfg.Store.Delete(ctx, r.Key, 0))
			}
		}
		if err != nil {
			return fmt.Errorf("bill: removing old days of %s: %w", p, err)
		}
	}
	return nil
}

// flush adds what is pending to the records.
func (l *Ledger) flush(ctx context.Context) (err error) {
	l.mu.Lock()
	pending := l.days
	l.days = map[day]*open{}
	l.mu.Unlock()
	for d, o := range pending {
		werr := l.write(ctx, d, &o.pending)
		if werr == nil {
			continue
		}
		err = errors.Join(err, werr)
		l.mu.Lock() // it goes with the next
		if again := l.days[d]; again != nil {
			again.pending.add(&o.pending)
		} else {
			l.days[d] = o
		}
		l.mu.Unlock()
	}
	return err
}

func (l *Ledger) write(ctx context.Context, d day, pending *Sums) error {
	key := d.key()
	for {
		var sums Sums
		r, err := l.cfg.Store.Get(ctx, key)
		if err == nil {
			err = json.Unmarshal(r.Value, &sums)
		} else if errors.Is(err, store.ErrNotFound) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("bill: reading %s: %w", key, err)
		}
		sums.add(pending)
		value, err := json.Marshal(&sums)
		if err != nil {
			return err
		}
		if r.Revision == 0 {
			_, err = l.cfg.Store.Create(ctx, key, value)
		} else {
			_, err = l.cfg.Store.Update(ctx, key, value, r.Revision)
		}
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return fmt.Errorf("bill: writing %s: %w", key, err)
		}
		return nil
	}
}

// Keys: <account>.<region>.bill.<function>.<version>.<date>; $LATEST, which a key
// cannot hold, stands as LATEST.
func (d day) key() string {
	return prefix(d.Account, d.Region) + "." + d.Function + "." + strings.TrimPrefix(d.Number, "$") + "." + d.date
}

func prefix(account, region string) string { return account + "." + region + ".bill" }

// A Query chooses what is summed up.
type Query struct {
	Account, Region string
	Function        string    // "": all
	Version         string    // "": all
	Since           time.Time // days from this one on, UTC; zero: all
}

// A Row is the bill of one version.
type Row struct {
	Function string `json:"function"`
	Version  string `json:"version"`
	Sums
	Latest []Invocation `json:"latest,omitempty"` // newest last
}

// Rows sums up, by function and version in order. What was added in the last
// second is in it.
func (l *Ledger) Rows(ctx context.Context, q Query) ([]Row, error) {
	if err := l.flush(ctx); err != nil {
		return nil, err
	}
	from := prefix(q.Account, q.Region)
	if q.Function != "" {
		from += "." + q.Function
	}
	records, err := l.cfg.Store.List(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("bill: reading %s: %w", from, err)
	}
	rows := map[Version]*Row{}
	for _, r := range records { // by key, so days come in order
		f := strings.Split(r.Key, ".")
		if len(f) != 6 || !q.Since.IsZero() && f[5] < q.Since.UTC().Format(dayForm) {
			continue
		}
		if f[4] == "LATEST" {
			f[4] = "$LATEST"
		}
		if q.Version != "" && q.Version != f[4] {
			continue
		}
		var sums Sums
		if err := json.Unmarshal(r.Value, &sums); err != nil {
			return nil, fmt.Errorf("bill: record %s: %w", r.Key, err)
		}
		v := Version{q.Account, q.Region, f[3], f[4]}
		if rows[v] == nil {
			rows[v] = &Row{Function: f[3], Version: f[4]}
		}
		rows[v].add(&sums)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Row, 0, len(rows))
	for v, r := range rows {
		if e := l.latest[v]; e != nil {
			list := e.Value.(*recent).list
			r.Latest = slices.Clone(list[max(0, len(list)-maxLatest):])
		}
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Function, b.Function), cmp.Compare(len(a.Version), len(b.Version)), cmp.Compare(a.Version, b.Version))
	})
	return out, nil
}

// Names lists the extensions of a row in order.
func (s *Sums) Names() []string { return slices.Sorted(maps.Keys(s.Extensions)) }
