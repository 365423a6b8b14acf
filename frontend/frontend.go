// Package frontend is where every invocation enters, whoever calls: it does what
// AWS does between request and answer, not knowing how code is run. It resolves
// the version, checks size and syntax of the event, fills in what the caller left
// out and hands the invocation to placement (control-plane.md section 1.6), or, if
// it is asynchronous, puts it in the queue from which package poller brings it
// back.
//
// The event is never copied or modified; the work here that grows with it is one
// pass over its bytes, without allocation.
package frontend

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/metrics"
	"github.com/lambdad/lambdad/queue"
)

// Versions finds what a name and a qualifier mean. It answers from memory: it is
// asked for every invocation. Errors are *lambdad.Error, such as
// ResourceNotFoundException or the ResourceConflictException of a function that
// is not active.
type Versions interface {
	Resolve(ctx context.Context, account, region, function, qualifier string) (lambdad.Target, error)
}

// A Placer runs an invocation with its version resolved, or throttles:
// *placement.Placer.
type Placer interface {
	Invoke(context.Context, *lambdad.Invocation) (*lambdad.Response, error)
}

// A Frontend takes invocations.
type Frontend struct {
	versions Versions
	placer   Placer
	events   queue.Queue
	metrics  metrics.Recorder
	sampler  sampler
}

// Config is what a Frontend needs. Versions and Placer are needed.
type Config struct {
	Versions Versions
	Placer   Placer
	// Events queues asynchronous invocations; nil: they are refused.
	Events queue.Queue
	// Metrics gets Throttles and AsyncEventsReceived; the rest of an invocation's
	// is measured where it runs. Default: nobody does.
	Metrics metrics.Recorder
}

// New makes a front end.
func New(c Config) *Frontend {
	if c.Metrics == nil {
		c.Metrics = metrics.Discard
	}
	return &Frontend{versions: c.Versions, placer: c.Placer, events: c.Events, metrics: c.Metrics}
}

// Invoke runs one invocation and returns its answer; a failure of the function is
// an answer, too. It sets Version, InvokedARN, an absent TraceID and ContentType,
// and {} for an empty Payload. Errors are *lambdad.Error: those of Versions and
// the placer, RequestEntityTooLargeException and InvalidRequestContentException.
func (f *Frontend) Invoke(ctx context.Context, inv *lambdad.Invocation) (*lambdad.Response, error) {
	if err := f.admit(ctx, inv, lambdad.MaxRequestPayload); err != nil {
		return nil, err
	}
	r, err := f.placer.Invoke(ctx, inv)
	if err != nil && lambdad.ErrorCode(err) == "TooManyRequestsException" {
		f.metrics.Record(subject(inv), metrics.Throttles, 1, time.Now())
	}
	return r, err
}

// subject is what is measured of an invocation that nothing has executed.
func subject(inv *lambdad.Invocation) metrics.Subject {
	return metrics.Subject{Account: inv.Account, Region: inv.Region, Function: inv.Function, Qualifier: inv.Qualifier}
}

// DryRun makes the checks of Invoke and runs nothing.
func (f *Frontend) DryRun(ctx context.Context, inv *lambdad.Invocation) error {
	return f.admit(ctx, inv, lambdad.MaxRequestPayload)
}

var empty = []byte("{}")

// admit checks an invocation whose event may have limit bytes, and fills it in.
func (f *Frontend) admit(ctx context.Context, inv *lambdad.Invocation, limit int) error {
	target, err := f.versions.Resolve(ctx, inv.Account, inv.Region, inv.Function, inv.Qualifier)
	if err != nil {
		return err
	}
	v := target.Version
	if target.Additional != nil && rand.Float64() < target.Weight {
		v = target.Additional
	}
	if len(inv.Payload) > limit {
		return tooLarge(len(inv.Payload), limit)
	}
	if len(inv.Payload) == 0 {
		inv.Payload = empty
	} else if text := checkJSON(inv.Payload); text != "" {
		return lambdad.Errorf("InvalidRequestContentException",
			"Could not parse request body into json: Could not parse payload into json: %s", text)
	}
	inv.Version = v
	// The qualifier appears only if the caller gave one (lifecycle.md section 8).
	inv.InvokedARN = lambdad.FunctionARN(v.Account, v.Region, v.Function, inv.Qualifier)
	inv.TraceID = f.sampler.trace(inv.TraceID, v, time.Now())
	if inv.ContentType == "" {
		inv.ContentType = "application/json"
	}
	return nil
}

func tooLarge(size, limit int) error {
	if limit == lambdad.MaxEventPayload {
		return lambdad.Errorf("RequestEntityTooLargeException",
			"%d byte payload is too large for the Event invocation type (limit %d bytes)", size, limit)
	}
	return lambdad.Errorf("RequestEntityTooLargeException",
		"Request must be smaller than %d bytes for the InvokeFunction operation", limit)
}
