package frontend

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/mem"
	"github.com/lambdad/lambdad/queue"
)

func TestEvent(t *testing.T) {
	q := mem.NewQueue()
	defer q.Close()
	p := &recorder{}
	f := New(Config{Versions: known, Placer: p, Events: q})
	inv := &lambdad.Invocation{
		Account: "123456789012", Region: "eu-west-1", Function: "f", Qualifier: "live", RequestID: "r",
		Payload: []byte("{\n\"a\": 1}"), TraceID: "Root=1-5f35ae12-0c0fec141ab77a00bc047aa2;Sampled=1", ClientContext: "{\"b\":\"\n\"}",
	}
	if err := f.Event(t.Context(), inv); err != nil {
		t.Fatal(err)
	}
	m, err := q.Receive(t.Context(), "123456789012.eu-west-1.event", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	e, err := DecodeEvent(m.Subject(), m.Body())
	if err != nil || time.Since(e.Accepted) > time.Minute {
		t.Fatal(e, err)
	}
	got := e.Invocation()
	if got.Account != inv.Account || got.Region != inv.Region || got.Function != "f" || got.Qualifier != "live" || got.RequestID != "r" ||
		!bytes.Equal(got.Payload, inv.Payload) || got.TraceID != inv.TraceID || got.ClientContext != inv.ClientContext {
		t.Errorf("got %+v", got)
	}
	if len(p.got) != 0 {
		t.Error("placed")
	}
}

// full is a queue without room.
type full struct {
	queue.Queue
	err error
}

func (f full) Enqueue(context.Context, string, string, []byte) error { return f.err }

func TestEventRefusals(t *testing.T) {
	for _, c := range []struct {
		name, function, payload string
		err                     error
		code, message           string
	}{
		{"unknown", "g", "{}", nil, "ResourceNotFoundException", "Function not found: g"},
		{"limit", "f", `"` + strings.Repeat("x", lambdad.MaxEventPayload-1) + `"`, nil, "RequestEntityTooLargeException", "1048577 byte payload is too large for the Event invocation type (limit 1048576 bytes)"},
		{"syntax", "f", "{", nil, "InvalidRequestContentException", "Could not parse request body into json"},
		{"full", "f", "{}", queue.ErrFull, "ServiceException", "The event was not accepted: the disk"},
		{"broken", "f", "{}", errors.New("broken"), "ServiceException", "The event was not accepted: it could not be stored."},
	} {
		err := New(Config{Versions: known, Placer: &recorder{}, Events: full{err: c.err}}).Event(t.Context(), &lambdad.Invocation{Function: c.function, Payload: []byte(c.payload)})
		var e *lambdad.Error
		if !errors.As(err, &e) || e.Code != c.code || !strings.HasPrefix(e.Message, c.message) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := New(Config{Versions: known, Placer: &recorder{}}).Event(t.Context(), &lambdad.Invocation{Function: "f"}); lambdad.ErrorCode(err) != "NotImplemented" {
		t.Errorf("without a queue: %v", err)
	}
	q := mem.NewQueue()
	defer q.Close()
	payload := `"` + strings.Repeat("x", lambdad.MaxEventPayload-2) + `"`
	if err := New(Config{Versions: known, Placer: &recorder{}, Events: q}).Event(t.Context(), &lambdad.Invocation{Account: "1", Region: "r", Function: "f", RequestID: "r", Payload: []byte(payload)}); err != nil {
		t.Errorf("as large as may be: %v", err)
	}
}

func FuzzDecodeEvent(f *testing.F) {
	e := &Event{Account: "1", Region: "r", Function: "f", RequestID: "a", Accepted: time.Unix(1, 0), NotBefore: time.Unix(2, 0), Failures: 1, Payload: []byte("{\n}")}
	body, err := e.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(e.Subject(), body)
	f.Add("1.r.event.f", []byte("\n"))
	f.Add("1.r.event", []byte("{}\n"))
	f.Fuzz(func(t *testing.T, subject string, body []byte) {
		e, err := DecodeEvent(subject, body)
		if err != nil {
			return
		}
		again, err := e.Encode()
		if err != nil {
			t.Skip("a date beyond year 9999")
		}
		f, err := DecodeEvent(e.Subject(), again)
		if err != nil || f.RequestID != e.RequestID || f.Function != e.Function || !bytes.Equal(f.Payload, e.Payload) || !f.Accepted.Equal(e.Accepted) {
			t.Fatalf("%+v became %+v, %v", e, f, err)
		}
	})
}
