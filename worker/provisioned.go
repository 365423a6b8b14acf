package worker

import (
	"errors"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/environment"
)

// Environments that are provisioned belong to a pool like others and serve its
// requests first. They are started because a number of them is wanted, not because
// somebody waits; they are not retired for being idle nor for their memory; and one
// that is lost is replaced. Everything here but Provision and Provisioned runs
// under Local.mu.

const (
	// provisionRetry passes before a start is tried again after one has failed; it
	// doubles with each failure up to provisionRetryMax.
	provisionRetry    = time.Second
	provisionRetryMax = 5 * time.Minute
)

// reasonInitFailed is AWS's StatusReason when the function's own initialisation
// fails or hits its limit (lifecycle.md section 3.2).
const reasonInitFailed = "FUNCTION_ERROR_INIT_FAILURE"

// provision is the part of a pool that is provisioned.
type provision struct {
	target int
	living int         // started and not on its way out
	ready  int         // those that are initialised
	idle   []*instance // by the time they became idle
	queued bool        // in Local.ahead

	failure  string
	failures int       // one after the other
	retryAt  time.Time // no start before
	shortAt  time.Time // since when there is no memory for the next; zero: there is
}

// Provision keeps n environments of a version initialised from now on, whoever
// comes; 0 ends that: those that are idle are shut down, those in use when done.
func (w *Local) Provision(v *lambdad.Version, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pools[keyOf(v)]
	if p == nil {
		if n == 0 || w.draining {
			return
		}
		p = w.poolFor(v)
	}
	a := &p.ahead
	if n > a.target {
		a.failures, a.failure, a.retryAt = 0, "", time.Time{}
	}
	a.target = n
	for a.living > n && len(a.idle) > 0 {
		w.end(a.idle[0])
	}
	w.endSurplusOf(p)
	w.provide(p)
	w.pump()
	w.dropEmpty(p)
}

// Provisioned says how far the environments are that Provision asked for.
func (w *Local) Provisioned(v *lambdad.Version) lambdad.Provisioned {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pools[keyOf(v)]
	if p == nil {
		return lambdad.Provisioned{}
	}
	a := &p.ahead
	s := lambdad.Provisioned{Requested: a.target, Available: min(a.ready, a.target), InUse: a.ready - len(a.idle), Failure: a.failure}
	switch {
	case s.Available == s.Requested:
		s.Failure = ""
	case w.plain:
		s.Failure = "Isolation tier plain runs one environment of a function at a time and initialises none ahead."
	case s.Failure == "" && !a.shortAt.IsZero() && time.Since(a.shortAt) > w.cfg.WaitLimit:
		text := w.shortage().Error()
		s.Failure = strings.ToUpper(text[:1]) + text[1:] + "."
	}
	return s
}

// missing is how many provisioned environments are to be started.
func (p *pool) missing() int {
	if p.retired {
		return 0
	}
	return p.ahead.target - p.ahead.living
}

// provide asks for the provisioned environments that a pool is missing; pump
// starts them.
func (w *Local) provide(p *pool) {
	if !p.ahead.queued && p.missing() > 0 && !w.plain {
		p.ahead.queued = true
		w.ahead = append(w.ahead, p)
	}
}

// startAhead starts one provisioned environment, and reports whether there was one
// to start and room for it.
func (w *Local) startAhead() bool {
	if w.draining {
		return false
	}
	now := time.Now()
	for i := 0; i < len(w.ahead); i++ {
		p := w.ahead[i]
		a := &p.ahead
		if p.missing() > 0 && now.Before(a.retryAt) {
			continue // Run looks again
		}
		if p.missing() > 0 && !w.admit(p) {
			if a.shortAt.IsZero() {
				a.shortAt = now
			}
			continue // Run looks again; another may be smaller
		}
		a.shortAt = time.Time{}
		// Pools take turns.
		w.ahead = append(w.ahead[:i], w.ahead[i+1:]...)
		a.queued = false
		if p.missing() > 0 {
			w.launch(p, true)
			w.provide(p)
			return true
		}
		i--
	}
	return false
}

// aheadDue returns when a provisioned environment that waits for another try may
// be started, or limit.
func (w *Local) aheadDue(limit time.Duration) time.Duration {
	for _, p := range w.ahead {
		if p.missing() == 0 {
			continue
		}
		limit = min(limit, samplePeriod)
		if again := time.Until(p.ahead.retryAt); again > 0 {
			limit = min(limit, again)
		}
	}
	return limit
}

// aheadFailed notes that the start of a provisioned environment failed.
func (w *Local) aheadFailed(p *pool, err error) {
	a := &p.ahead
	if now := time.Now(); !now.Before(a.retryAt) {
		// Those that were started together count as one.
		a.retryAt = now.Add(min(provisionRetry<<min(a.failures, 20), provisionRetryMax))
		a.failures++
	}
	a.failure = err.Error()
	if errors.Is(err, environment.ErrInit) {
		a.failure = reasonInitFailed
	}
	w.log.Warn("a provisioned environment failed to start", "function", p.name, "version", p.number, "err", err,
		"failures", a.failures, "again in", time.Until(a.retryAt).Round(time.Millisecond))
	w.kick()
}

// aheadLeft takes a provisioned instance out of the counts as it leaves.
func (w *Local) aheadLeft(inst *instance) {
	if !inst.ahead || inst.state == ending {
		return
	}
	a := &inst.pool.ahead
	a.living--
	if inst.state == starting {
		return
	}
	a.ready--
	if inst.uses == 0 && a.living < a.target {
		// It was lost before it was of use. Not to make one after the other:
		a.retryAt = time.Now().Add(provisionRetry)
		w.kick()
	}
}
