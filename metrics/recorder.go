package metrics

import (
	"context"
	"sync"
	"time"
)

// pending is what was recorded since the last flush: for each subject and minute,
// and each metric, the values in the order they came, equal neighbours counted.
type pending struct {
	mu   sync.Mutex
	now  map[moment]*values
	free []*values // room of the last flush
	over int64     // values that did not fit
}

type moment struct {
	Subject
	minute int64 // since 1970
}

type values [metricCount][]run

// A run is a value that came n times.
type run struct{ v, n float64 }

// Bounds of what may be pending.
const (
	maxMoments = 20000
	maxRuns    = 1 << 16 // of one metric
)

// Record implements Recorder.
func (s *Store) Record(of Subject, m Metric, value float64, at time.Time) {
	p := &s.pending
	p.mu.Lock()
	defer p.mu.Unlock()
	if v := p.values(of, at); v == nil {
		p.over++
	} else {
		p.add(v, m, value)
	}
}

// values are those of a subject at a time; nil when there is no room. Called
// under mu.
func (p *pending) values(of Subject, at time.Time) *values {
	key := moment{of, floor(at.Unix(), 60) / 60}
	if v := p.now[key]; v != nil {
		return v
	}
	if p.now == nil {
		p.now = map[moment]*values{}
	}
	if len(p.now) >= maxMoments {
		return nil
	}
	var v *values
	if n := len(p.free); n > 0 {
		v, p.free = p.free[n-1], p.free[:n-1]
	} else {
		v = new(values)
	}
	p.now[key] = v
	return v
}

func (p *pending) add(v *values, m Metric, value float64) {
	runs := v[m]
	if n := len(runs); n > 0 && runs[n-1].v == value {
		runs[n-1].n++
		return
	} else if n == maxRuns {
		p.over++
		return
	}
	v[m] = append(runs, run{value, 1})
}

// Flush writes what was recorded and is not written yet: once a second that happens
// by itself.
func (s *Store) Flush() { s.flush(context.Background()) }

// flush writes what is pending. What cannot be written is counted and logged: who
// recorded it is told nothing.
func (s *Store) flush(ctx context.Context) {
	s.putEmbedded(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.pending
	p.mu.Lock()
	now, over := p.now, p.over
	p.now, p.over = nil, 0
	p.mu.Unlock()
	s.dropped += over
	if len(now) == 0 {
		return
	}
	if err := s.write(ctx, expand(now), s.lose); err != nil {
		s.cfg.Logger.Error("metrics of functions could not be written", "subjects", len(now), "err", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range now {
		if len(p.free) == 1024 {
			break
		}
		for m := range v {
			if cap(v[m]) > 4096 {
				v[m] = nil
			}
			v[m] = v[m][:0]
		}
		p.free = append(p.free, v)
	}
}

// lose counts a datum that could not be kept. Called under mu.
func (s *Store) lose(d *Datum, err error) {
	s.dropped += int64(d.Count)
	s.cfg.Logger.Warn("a metric could not be kept", "namespace", d.Namespace, "metric", d.Name, "err", err)
}

// expand makes the data of every set of dimensions. Those that subjects share are
// one datum.
func expand(now map[moment]*values) []Datum {
	type place struct {
		moment
		m Metric
	}
	var data []Datum
	index := map[place]int{}
	for k, v := range now {
		for m := range metricCount {
			if len(v[m]) == 0 {
				continue
			}
			for _, of := range subjects(k.Subject, m) {
				at := place{moment{of, k.minute}, m}
				i, ok := index[at]
				if !ok {
					i = len(data)
					index[at] = i
					data = append(data, Datum{ID: of.id(m), Time: time.Unix(k.minute*60, 0)})
				}
				for _, r := range v[m] {
					data[i].Add(r.v, r.n)
				}
			}
		}
	}
	return data
}

// subjects are the sets of dimensions that a value of a subject belongs to. In
// them the Qualifier is the value of Resource, if that is one, and Version is set
// if ExecutedVersion is one.
func subjects(of Subject, m Metric) (list []Subject) {
	sets := described[m].sets
	account := Subject{Account: of.Account, Region: of.Region}
	if of.Function == "" {
		return []Subject{account}
	}
	function := account
	function.Function = of.Function
	resource := function
	resource.Qualifier = of.Function
	if of.Qualifier != "" {
		resource.Qualifier += ":" + of.Qualifier
	}
	if sets&byAccount != 0 {
		list = append(list, account)
	}
	// Numbers of environments of one qualifier are not those of the function.
	if sets&byFunction != 0 && (m != ConcurrentExecutions || of.Qualifier == "") {
		list = append(list, function)
	}
	if sets&byResource != 0 {
		list = append(list, resource)
	}
	if sets&byVersion != 0 && of.Version != "" && isAlias(of.Qualifier) {
		resource.Version = of.Version
		list = append(list, resource)
	}
	return list
}

// isAlias reports whether a qualifier is neither a version nor $LATEST.
func isAlias(q string) bool {
	return q != "" && q[0] != '$' && (q[0] < '0' || q[0] > '9' || !digits(q))
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// id is the metric of a set of dimensions, as subjects makes them.
func (of Subject) id(m Metric) ID {
	id := ID{Account: of.Account, Region: of.Region, Namespace: Namespace, Name: described[m].name, Unit: described[m].unit}
	for _, d := range []Dimension{{"ExecutedVersion", of.Version}, {"FunctionName", of.Function}, {"Resource", of.Qualifier}} {
		if d.Value != "" {
			id.Dimensions = append(id.Dimensions, d)
		}
	}
	return id
}
