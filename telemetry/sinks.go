package telemetry

import (
	"slices"
	"sync"
	"time"
)

// A Tail keeps the last bytes of a log: what X-Amz-Log-Result gives. Attach it
// just before the invocation's start event.
type Tail struct {
	format Format
	max    int

	mu  sync.Mutex
	buf []byte
}

// NewTail makes a tail of at most max bytes in a log's format.
func NewTail(format Format, max int) *Tail { return &Tail{format: format, max: max} }

// Take implements Sink.
func (t *Tail) Take(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l, ok := e.Record.(Line); ok && len(l) > t.max {
		// Only its end can stay; the level of a longer line is Info.
		e.Record = l[len(l)-t.max:]
	}
	t.buf = t.format.Append(t.buf, e)
	if len(t.buf) > 4*t.max {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.max:]...)
	}
}

// Bytes returns a copy of what is there.
func (t *Tail) Bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.buf[max(0, len(t.buf)-t.max):])
}

// Names of lambdad's own spans, as a Timeline has them.
const (
	SpanExtensionInit = "extension init" // first process started → all registered
	SpanRuntimeInit   = "runtime init"   // runtime started → all asked for their first event
	SpanRuntime       = "runtime"        // event released → the runtime's next
	SpanExtensions    = "extensions"     // the runtime's next → the last extension's
	SpanFreeze        = "freeze"         // how long freezing took
	SpanFrozen        = "frozen"         // frozen → thawed
	SpanShutdown      = "shutdown"       // decision → all processes gone
	SpanReset         = "reset"          // as shutdown, of an environment that lives on
)

// A Timeline is a sink that keeps the phases of an environment as spans, for
// whoever draws them. It keeps the latest thousand.
type Timeline struct {
	mu    sync.Mutex
	spans []Span
}

// Take implements Sink.
func (t *Timeline) Take(e Event) {
	s, ok := e.Record.(Span)
	if !ok {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.spans) >= 1000 {
		t.spans = append(t.spans[:0], t.spans[500:]...)
	}
	t.spans = append(t.spans, s)
}

// Spans returns a copy, in the order in which the phases ended.
func (t *Timeline) Spans() []Span {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.spans)
}

// EmitSpan records one of lambdad's own spans, ending now.
func (s *Stream) EmitSpan(name, party, requestID string, start time.Time) {
	s.Emit(Event{Type: TypeSpan, Record: Span{
		Name: name, Start: Stamp(start), Duration: Millis(time.Since(start)), Party: party, RequestID: requestID,
	}})
}
