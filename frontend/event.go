package frontend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/metrics"
	"github.com/lambdad/lambdad/queue"
)

// An Event is an asynchronous invocation as it is queued: a line of JSON, then the
// payload as it was received. Its subject says whose it is.
type Event struct {
	Account, Region, Function string `json:"-"`

	Qualifier     string `json:"qualifier,omitempty"`
	RequestID     string `json:"requestId"` // of every attempt
	TraceID       string `json:"trace,omitempty"`
	ClientContext string `json:"clientContext,omitempty"`
	// Accepted is when the caller was told 202.
	Accepted time.Time `json:"accepted"`
	// Failures is how often the function has failed on it.
	Failures int `json:"failures,omitempty"`
	// NotBefore is when it is to be tried again; zero: at once.
	NotBefore time.Time `json:"notBefore,omitzero"`

	Payload []byte `json:"-"`
}

// eventToken is the part of a subject that follows account and region.
const eventToken = "event"

// Subject is where in the queue the event is:
// <account>.<region>.event.<function>.
func (e *Event) Subject() string {
	return e.Account + "." + e.Region + "." + eventToken + "." + e.Function
}

// Encode makes the body of a message.
func (e *Event) Encode() ([]byte, error) {
	head, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("frontend: encode event %s: %w", e.RequestID, err)
	}
	b := make([]byte, 0, len(head)+1+len(e.Payload))
	b = append(append(b, head...), '\n')
	return append(b, e.Payload...), nil
}

// DecodeEvent reads what Encode wrote. The event has body's memory.
func DecodeEvent(subject string, body []byte) (*Event, error) {
	e := new(Event)
	parts := strings.Split(subject, ".")
	if len(parts) != 4 || parts[2] != eventToken {
		return nil, fmt.Errorf("frontend: %q is not the subject of an event", subject)
	}
	head, payload, ok := bytes.Cut(body, []byte{'\n'})
	if !ok {
		return nil, fmt.Errorf("frontend: message under %s has no end of its first line", subject)
	}
	if err := json.Unmarshal(head, e); err != nil {
		return nil, fmt.Errorf("frontend: first line of a message under %s: %w", subject, err)
	}
	e.Account, e.Region, e.Function, e.Payload = parts[0], parts[1], parts[3], payload
	return e, nil
}

// Invocation is one attempt.
func (e *Event) Invocation() *lambdad.Invocation {
	return &lambdad.Invocation{
		Account: e.Account, Region: e.Region, Function: e.Function, Qualifier: e.Qualifier,
		RequestID: e.RequestID, TraceID: e.TraceID, ClientContext: e.ClientContext, Payload: e.Payload,
	}
}

// Event accepts an asynchronous invocation: when it returns nil, the event is
// stored durably and will be executed at least once, with the request id of inv.
// The checks are those of Invoke, with the limit of events.
func (f *Frontend) Event(ctx context.Context, inv *lambdad.Invocation) error {
	if err := f.admit(ctx, inv, lambdad.MaxEventPayload); err != nil {
		return err
	}
	if f.events == nil {
		return lambdad.Errorf("NotImplemented", "This lambdad has no queue of events; invoke with RequestResponse.")
	}
	e := &Event{
		Account: inv.Account, Region: inv.Region, Function: inv.Function, Qualifier: inv.Qualifier,
		RequestID: inv.RequestID, TraceID: inv.TraceID, ClientContext: inv.ClientContext, Payload: inv.Payload,
		Accepted: time.Now(),
	}
	body, err := e.Encode()
	if err == nil {
		err = f.events.Enqueue(ctx, e.Subject(), e.RequestID, body)
	}
	switch {
	case err == nil:
		f.metrics.Record(subject(inv), metrics.AsyncEventsReceived, 1, e.Accepted)
		return nil
	case errors.Is(err, queue.ErrFull):
		return &lambdad.Error{Code: "ServiceException", Err: err,
			Message: "The event was not accepted: the disk of this lambdad has no room left. Free space in its data directory."}
	}
	return &lambdad.Error{Code: "ServiceException", Message: "The event was not accepted: it could not be stored.", Err: err}
}
