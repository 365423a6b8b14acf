package placement

import (
	"context"
	"time"

	"github.com/lambdad/lambdad/metrics"
)

// measurePeriod is how often what was counted is told.
const measurePeriod = time.Second

// peaks are the most units in use since they were last told.
type peaks struct{ mostAll, mostUnreserved int }

// measure is what is counted until it is told.
type measure struct {
	running int // of a function: all that runs, wherever its units are from
	most    int // in use at once
	listed  bool

	ran, spilt int // of an allotment: invocations in it, and beside it
}

// begun counts an invocation of the function that has its unit. Called under mu.
func (f *function) begun() {
	f.running++
	f.most = max(f.most, f.running)
	a := f.account
	a.all++
	a.mostAll = max(a.mostAll, a.all)
	a.mostUnreserved = max(a.mostUnreserved, a.use)
	if !f.listed {
		f.listed = true
		f.placer.measured = append(f.placer.measured, f)
	}
}

// ended counts the end of an invocation. Called under mu.
func (f *function) ended() {
	f.running--
	f.account.all--
}

// A datum is one value to be recorded, so many times.
type datum struct {
	subject metrics.Subject
	metric  metrics.Metric
	value   float64
	times   int
}

// Run tells to, once a second, how much concurrency was in use: the most there was,
// so that the maximum of a minute is exact. It returns when ctx ends.
func (p *Placer) Run(ctx context.Context, to metrics.Recorder) error {
	t := time.NewTicker(measurePeriod)
	defer t.Stop()
	var data []datum
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			data = p.tell(data[:0])
			for _, d := range data {
				for range d.times {
					to.Record(d.subject, d.metric, d.value, now)
				}
			}
		}
	}
}

// tell takes what was counted. Functions of which nothing runs any more are not
// asked again until something does.
func (p *Placer) tell(data []datum) []datum {
	p.mu.Lock()
	defer p.mu.Unlock()
	add := func(s metrics.Subject, m metrics.Metric, value float64, times int) {
		if times > 0 {
			data = append(data, datum{s, m, value, times})
		}
	}
	for k, a := range p.accounts {
		if a.mostAll > 0 {
			s := metrics.Subject{Account: k.id, Region: k.region}
			add(s, metrics.ConcurrentExecutions, float64(a.mostAll), 1)
			add(s, metrics.UnreservedConcurrentExecutions, float64(a.mostUnreserved), 1)
		}
		a.mostAll, a.mostUnreserved = a.all, a.use
	}
	still := p.measured[:0]
	for _, f := range p.measured {
		s := metrics.Subject{Account: f.key.account, Region: f.key.region, Function: f.key.name}
		add(s, metrics.ConcurrentExecutions, float64(f.most), 1)
		f.most = f.running
		for _, a := range f.allotments {
			s.Qualifier, s.Version = a.qualifier, a.version.Number
			add(s, metrics.ProvisionedConcurrencyInvocations, 1, a.ran)
			add(s, metrics.ProvisionedConcurrencySpilloverInvocations, 1, a.spilt)
			if a.most > 0 && a.limit > 0 {
				add(s, metrics.ProvisionedConcurrentExecutions, float64(a.most), 1)
				add(s, metrics.ProvisionedConcurrencyUtilization, float64(a.most)/float64(a.limit), 1)
			}
			a.ran, a.spilt, a.most = 0, 0, a.use
		}
		if f.listed = f.running > 0; f.listed {
			still = append(still, f)
		} else if f.forget && f.idle() {
			delete(p.functions, f.key)
		}
	}
	clear(p.measured[len(still):])
	p.measured = still
	return data
}
