// Package tracing exports what happens in environments as OpenTelemetry spans.
//
// Each invocation is a span with its phases below it: the initialisation before it,
// the runtime's work and the parts of that, the extensions' work after the
// answer. The trace is that of X-Amzn-Trace-Id where it is sampled, and with active
// tracing the invocation's span is the function's segment, so that spans of its code
// are below it. An invocation that nobody sampled is a trace of its own whose id is
// the request id.
//
// Spans are gathered where telemetry is emitted and sent by an OTLP client (HTTP,
// protobuf) in the background; what it has no room for it drops. Without an
// Exporter nothing is attached to streams, and nothing is done.
package tracing

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/telemetry"
)

// An Exporter sends spans to one OTLP endpoint.
type Exporter struct {
	batches sdk.SpanProcessor
	scope   instrumentation.Scope
}

// CheckEndpoint says what is wrong with the URL of an OTLP endpoint.
func CheckEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%q: it must be a URL such as http://127.0.0.1:4318", endpoint)
	}
	return nil
}

// New makes an exporter to the OTLP endpoint at a URL; without a path, /v1/traces
// is meant. It does not connect until there are spans.
func New(ctx context.Context, endpoint, version string) (*Exporter, error) {
	if err := CheckEndpoint(endpoint); err != nil {
		return nil, fmt.Errorf("tracing: endpoint %w", err)
	}
	if u, _ := url.Parse(endpoint); strings.Trim(u.Path, "/") == "" {
		endpoint = u.JoinPath("v1/traces").String()
	}
	client, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(endpoint))
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	return &Exporter{
		batches: sdk.NewBatchSpanProcessor(client, sdk.WithBatchTimeout(time.Second), sdk.WithMaxQueueSize(8192)),
		scope:   instrumentation.Scope{Name: "github.com/lambdad/lambdad", Version: version},
	}, nil
}

// Close sends what is there and ends.
func (x *Exporter) Close(ctx context.Context) error { return x.batches.Shutdown(ctx) }

// A Sink makes spans of the telemetry of one environment. It is a telemetry.Sink.
type Sink struct {
	x        *Exporter
	resource *resource.Resource
	version  *lambdad.Version

	start   telemetry.Start
	begun   time.Time
	spans   []telemetry.Span // of the invocation
	init    []telemetry.Span // before it
	failure string           // of the initialisation
}

// maxSpans bounds the phases of one invocation.
const maxSpans = 100

// Sink makes the sink of an environment of v.
func (x *Exporter) Sink(v *lambdad.Version, environment string) *Sink {
	return &Sink{x: x, version: v, resource: resource.NewSchemaless(
		attribute.String("service.name", v.Function),
		attribute.String("service.version", v.Number),
		attribute.String("cloud.provider", "aws"),
		attribute.String("cloud.platform", "aws_lambda"),
		attribute.String("cloud.region", v.Region),
		attribute.String("cloud.account.id", v.Account),
		attribute.String("faas.name", v.Function),
		attribute.String("faas.version", v.Number),
		attribute.String("faas.instance", environment),
		attribute.Int("faas.max_memory", v.MemoryMB<<20),
	)}
}

// Take implements telemetry.Sink. The stream calls it for one event at a time.
func (k *Sink) Take(e telemetry.Event) {
	switch r := e.Record.(type) {
	case telemetry.InitReport:
		k.init = append(k.init, telemetry.Span{Name: "init", Duration: r.Metrics.Duration,
			Start: telemetry.Stamp(e.Time.Add(-time.Duration(r.Metrics.Duration)))})
		k.failure = ""
		if r.Status != telemetry.StatusSuccess {
			k.failure = r.Status
			if r.ErrorType != "" {
				k.failure = r.ErrorType
			}
		}
		if r.Phase == telemetry.PhaseInit {
			k.init = k.init[max(0, len(k.init)-maxSpans):]
		}
	case telemetry.Start:
		k.start, k.begun = r, e.Time
		k.spans = k.spans[:0]
	case telemetry.RuntimeDone:
		k.keep(r.Spans...)
	case telemetry.Span:
		switch r.Name {
		case telemetry.SpanExtensionInit, telemetry.SpanRuntimeInit:
			k.init = append(k.init, r)
		case telemetry.SpanRuntime, telemetry.SpanExtensions:
			k.keep(r)
		}
	case telemetry.Report:
		if !k.begun.IsZero() {
			k.report(r, e.Time)
		}
		k.begun, k.init = time.Time{}, k.init[:0]
	}
}

func (k *Sink) keep(spans ...telemetry.Span) {
	if len(k.spans)+len(spans) <= maxSpans {
		k.spans = append(k.spans, spans...)
	}
}

// report hands over the spans of an invocation that has ended.
func (k *Sink) report(r telemetry.Report, end time.Time) {
	traceID, parent, id := k.identify(r.RequestID)
	root := tracetest.SpanStub{
		Name: k.version.Function, SpanKind: trace.SpanKindServer, StartTime: k.begun, EndTime: end,
		SpanContext: place(traceID, id), Parent: place(traceID, parent),
		Attributes: []attribute.KeyValue{
			attribute.String("faas.invocation_id", r.RequestID),
			attribute.String("cloud.resource_id", k.start.FunctionARN),
			attribute.Bool("faas.coldstart", len(k.init) > 0),
			attribute.Float64("aws.lambda.duration_ms", float64(r.Metrics.Duration)/1e6),
			attribute.Int64("aws.lambda.billed_duration_ms", r.Metrics.Billed),
			attribute.Int64("aws.lambda.max_memory_used_mb", r.Metrics.MaxMemoryUsed),
		},
	}
	if r.Status != telemetry.StatusSuccess {
		text := r.Status
		if r.ErrorType != "" {
			text = r.ErrorType
			root.Attributes = append(root.Attributes, attribute.String("error.type", r.ErrorType))
		}
		root.Status = sdk.Status{Code: codes.Error, Description: text}
	} else if r.FunctionError {
		root.Status = sdk.Status{Code: codes.Error, Description: "the function answered with an error"}
	}
	k.send(root)
	below := func(of trace.SpanID, s telemetry.Span, failure string) trace.SpanID {
		stub := tracetest.SpanStub{
			Name: s.Name, SpanKind: trace.SpanKindInternal,
			StartTime: time.Time(s.Start), EndTime: time.Time(s.Start).Add(time.Duration(s.Duration)),
			SpanContext: place(traceID, newSpanID()), Parent: place(traceID, of),
		}
		if s.Party != "" {
			stub.Attributes = append(stub.Attributes, attribute.String("lambdad.party", s.Party))
		}
		if failure != "" {
			stub.Status = sdk.Status{Code: codes.Error, Description: failure}
		}
		k.send(stub)
		return stub.SpanContext.SpanID()
	}
	// The phases of an initialisation come before its report.
	initialised := id
	for i := len(k.init) - 1; i >= 0; i-- {
		if k.init[i].Name == "init" {
			initialised = below(id, k.init[i], k.failure)
		} else {
			below(initialised, k.init[i], "")
		}
	}
	// The parts of the runtime's work come before the whole of it, too.
	runtime := id
	for _, s := range k.spans {
		if s.Name == telemetry.SpanRuntime {
			runtime = below(id, s, "")
		}
	}
	for _, s := range k.spans {
		switch s.Name {
		case telemetry.SpanRuntime:
		case telemetry.SpanExtensions:
			below(id, s, "")
		default:
			below(runtime, s, "")
		}
	}
}

// identify returns the trace of the invocation, what it is below and its own id.
func (k *Sink) identify(requestID string) (traceID trace.TraceID, parent, id trace.SpanID) {
	id = newSpanID()
	if t := k.start.Tracing; t != nil {
		root := strings.Split(telemetry.TraceField(t.Value, "Root"), "-")
		if len(root) == 3 && decode(traceID[:], root[1]+root[2]) {
			decode(parent[:], telemetry.TraceField(t.Value, "Parent"))
			decode(id[:], t.SpanID)
			return traceID, parent, id
		}
	}
	if !decode(traceID[:], strings.ReplaceAll(requestID, "-", "")) {
		rand.Read(traceID[:])
	}
	return traceID, trace.SpanID{}, id
}

// decode fills id from hexadecimal digits, if they are as many.
func decode(id []byte, text string) bool {
	if len(text) != 2*len(id) {
		return false
	}
	b, err := hex.DecodeString(text)
	if err != nil {
		return false
	}
	copy(id, b)
	return true
}

func newSpanID() (id trace.SpanID) {
	rand.Read(id[:])
	return id
}

// place is a span's place in a trace that is sampled.
func place(traceID trace.TraceID, id trace.SpanID) trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: id, TraceFlags: trace.FlagsSampled})
}

// send hands a span to the exporter, which does not wait.
func (k *Sink) send(s tracetest.SpanStub) {
	s.Resource, s.InstrumentationScope = k.resource, k.x.scope
	k.x.batches.OnEnd(s.Snapshot())
}
