// Package poller brings asynchronous events from the queue to the front end, and
// decides what becomes of those that did not succeed (control-plane.md section
// 4.4).
//
// An event is executed at least once: it leaves the queue when it has succeeded or
// was given up, and comes back when the process that had it dies. A function that
// fails on it gets it again after one minute and after two more; then it is given
// up. A throttle, or a failure of the platform, does not count: the event comes back
// after a second, then two, up to five minutes. After six hours, or when the
// function is gone or stopped by a reserved concurrency of 0, it is given up at once.
// All attempts have the same request id.
//
// What is given up is logged. Destinations and dead-letter queues do not exist yet.
package poller

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/frontend"
	"github.com/lambdad/lambdad/metrics"
	"github.com/lambdad/lambdad/placement"
	"github.com/lambdad/lambdad/queue"
)

const (
	maxAge     = 6 * time.Hour
	maxRetries = 2 // of failures of the function

	retryMin = time.Second
	retryMax = 5 * time.Minute

	// lease is how long an event stays away from the queue unless it is extended,
	// which happens three times as often.
	lease = time.Minute
	// again is how long to wait when the queue fails.
	again = time.Second
)

// Conditions under which an event is given up, as destinations will name them.
const (
	RetriesExhausted        = "RetriesExhausted"
	EventAgeExceeded        = "EventAgeExceeded"
	ZeroReservedConcurrency = "ZeroReservedConcurrency"
	// FunctionGone is not AWS's: the function or its qualifier is not there any
	// more, or refuses the event.
	FunctionGone = "FunctionGone"
)

// A Frontend runs invocations: *frontend.Frontend.
type Frontend interface {
	Invoke(context.Context, *lambdad.Invocation) (*lambdad.Response, error)
}

// Config is what a Poller needs.
type Config struct {
	Queue    queue.Queue
	Frontend Frontend
	// Concurrency is how many events are worked on at once. Default: 1000, the
	// account's concurrency.
	Concurrency int
	// Metrics gets AsyncEventAge and AsyncEventsDropped. Default: nobody does.
	Metrics metrics.Recorder
	Logger  *slog.Logger // default: discard
}

// A Poller works on the events in the queue while Run runs.
type Poller struct {
	queue    queue.Queue
	frontend Frontend
	slots    chan struct{}
	metrics  metrics.Recorder
	log      *slog.Logger
}

// New makes a poller.
func New(cfg Config) *Poller {
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = 1000
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = metrics.Discard
	}
	return &Poller{queue: cfg.Queue, frontend: cfg.Frontend, slots: make(chan struct{}, cfg.Concurrency), metrics: cfg.Metrics, log: cfg.Logger}
}

// Run works on events until ctx ends; then it takes no more, and returns when those
// that are under way are done.
func (p *Poller) Run(ctx context.Context) error {
	var working sync.WaitGroup
	defer working.Wait()
	for {
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		// The poller receives whatever is queued: nothing else is yet.
		m, err := p.queue.Receive(ctx, "", lease)
		if err != nil {
			<-p.slots
			if ctx.Err() != nil {
				return nil
			}
			p.log.Error("events cannot be received; trying again", "err", err)
			select {
			case <-time.After(again):
			case <-ctx.Done():
			}
			continue
		}
		working.Go(func() {
			defer func() { <-p.slots }()
			p.work(context.WithoutCancel(ctx), m)
		})
	}
}

// work makes one attempt at an event.
func (p *Poller) work(ctx context.Context, m queue.Message) {
	e, err := frontend.DecodeEvent(m.Subject(), m.Body())
	if err != nil {
		p.log.Error("what is in the queue is no event; it is removed", "subject", m.Subject(), "err", err)
		p.done(m, m.Ack(ctx))
		return
	}
	log := p.log.With("function", e.Function, "request", e.RequestID)
	if wait := time.Until(e.NotBefore); wait > 0 {
		p.done(m, m.Retry(ctx, wait))
		return
	}
	age := time.Since(e.Accepted)
	if age > maxAge {
		p.giveUp(ctx, m, e, log, EventAgeExceeded, nil)
		return
	}
	p.metrics.Record(subject(e), metrics.AsyncEventAge, float64(age.Milliseconds()), time.Now())
	stop := p.extend(ctx, m)
	resp, err := p.frontend.Invoke(ctx, e.Invocation())
	stop()
	switch {
	case err == nil && resp.FunctionError == "":
		p.done(m, m.Ack(ctx))
	case err == nil:
		p.failed(ctx, m, e, log)
	case errors.Is(err, placement.ErrZeroReserved):
		p.giveUp(ctx, m, e, log, ZeroReservedConcurrency, err)
	case passes(err):
		wait := backoff(m.Attempt())
		log.Debug("an event comes back to the queue", "attempt", m.Attempt(), "after", wait, "err", err)
		p.done(m, m.Retry(ctx, wait))
	default:
		p.giveUp(ctx, m, e, log, FunctionGone, err)
	}
}

// failed queues an event again after a failure of its function, or gives it up.
// That it has failed is in the new message, so that it is known after a restart,
// too; a crash between the two steps makes one attempt more.
func (p *Poller) failed(ctx context.Context, m queue.Message, e *frontend.Event, log *slog.Logger) {
	e.Failures++
	if e.Failures > maxRetries {
		p.giveUp(ctx, m, e, log, RetriesExhausted, nil)
		return
	}
	e.NotBefore = time.Now().Add(time.Duration(e.Failures) * time.Minute)
	body, err := e.Encode()
	if err == nil {
		err = p.queue.Enqueue(ctx, e.Subject(), "", body)
	}
	if err != nil {
		log.Error("the failure of an event cannot be recorded; it is tried again as if it had not failed", "err", err)
		p.done(m, m.Retry(ctx, time.Minute))
		return
	}
	p.done(m, m.Ack(ctx))
}

func (p *Poller) giveUp(ctx context.Context, m queue.Message, e *frontend.Event, log *slog.Logger, condition string, cause error) {
	log.Warn("an event was given up", "condition", condition, "err", cause)
	p.metrics.Record(subject(e), metrics.AsyncEventsDropped, 1, time.Now())
	p.done(m, m.Ack(ctx))
}

// subject is what is measured of an event.
func subject(e *frontend.Event) metrics.Subject {
	return metrics.Subject{Account: e.Account, Region: e.Region, Function: e.Function, Qualifier: e.Qualifier}
}

// done notes the end of a lease.
func (p *Poller) done(m queue.Message, err error) {
	if err != nil {
		p.log.Warn("an event may be executed once more", "subject", m.Subject(), "err", err)
	}
}

// extend keeps a message leased until stop is called.
func (p *Poller) extend(ctx context.Context, m queue.Message) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(lease / 3)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				if err := m.Extend(ctx); err != nil {
					p.log.Warn("the lease of an event cannot be extended", "subject", m.Subject(), "err", err)
					return
				}
			case <-end:
				return
			}
		}
	}()
	return func() { close(end); <-ended }
}

// passes reports whether what kept an event from being executed may be over later.
func passes(err error) bool {
	switch lambdad.ErrorCode(err) {
	case "ResourceNotFoundException", "InvalidRequestContentException", "RequestEntityTooLargeException":
		return false
	}
	return true
}

// backoff is how long an event waits after its nth attempt.
func backoff(attempt int) time.Duration {
	return min(retryMin<<min(max(0, attempt-1), 20), retryMax)
}
