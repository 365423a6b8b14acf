package tracing

import (
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	pb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/telemetry"
)

// A receiver is an OTLP endpoint.
type receiver struct {
	*httptest.Server
	mu       sync.Mutex
	spans    []*pb.Span
	services []string
	path     string
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body := io.Reader(req.Body)
		if req.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(body)
			if err != nil {
				t.Error(err)
				return
			}
			body = z
		}
		b, err := io.ReadAll(body)
		var in collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(b, &in)
		}
		if err != nil || req.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Error(err, req.Header)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.path = req.URL.Path
		for _, rs := range in.ResourceSpans {
			for _, a := range rs.Resource.Attributes {
				if a.Key == "service.name" {
					r.services = append(r.services, a.Value.GetStringValue())
				}
			}
			for _, ss := range rs.ScopeSpans {
				r.spans = append(r.spans, ss.Spans...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(r.Close)
	return r
}

// tree prints the spans below a parent.
func (r *receiver) tree(parent, indent string) string {
	var b strings.Builder
	for _, s := range r.spans {
		if hex.EncodeToString(s.ParentSpanId) == parent {
			fmt.Fprintf(&b, "%s%s %v", indent, s.Name, time.Duration(s.EndTimeUnixNano-s.StartTimeUnixNano))
			if s.Status.GetCode() == pb.Status_STATUS_CODE_ERROR {
				fmt.Fprintf(&b, " error %s", s.Status.Message)
			}
			b.WriteString("\n" + r.tree(hex.EncodeToString(s.SpanId), indent+"  "))
		}
	}
	return b.String()
}

var began = time.Date(2026, 5, 6, 12, 0, 0, 0, time.UTC)

func emit(x *Exporter, tracing *telemetry.TraceContext, status string) {
	ms := func(n int) telemetry.Millis { return telemetry.Millis(time.Duration(n) * time.Millisecond) }
	at := func(n int) telemetry.Stamp { return telemetry.Stamp(began.Add(time.Duration(n) * time.Millisecond)) }
	s := telemetry.NewStream(x.Sink(&lambdad.Version{Function: "f", Number: "7", Region: "us-east-1", Account: "000000000000", MemoryMB: 128}, "e"))
	event := func(n int, record any) {
		s.Emit(telemetry.Event{Time: time.Time(at(n)), Type: "x", Record: record})
	}
	event(0, telemetry.Span{Name: telemetry.SpanExtensionInit, Start: at(-90), Duration: ms(30)})
	event(0, telemetry.Span{Name: telemetry.SpanRuntimeInit, Start: at(-60), Duration: ms(50)})
	event(-10, telemetry.InitReport{Phase: telemetry.PhaseInit, Status: telemetry.StatusSuccess, Metrics: telemetry.InitMetrics{Duration: ms(80)}})
	event(0, telemetry.Start{RequestID: "r", FunctionARN: "arn", Tracing: tracing})
	event(20, telemetry.RuntimeDone{Status: status, Spans: []telemetry.Span{{Name: "responseLatency", Start: at(0), Duration: ms(15)}, {Name: "responseDuration", Start: at(15), Duration: ms(1)}}})
	event(20, telemetry.Span{Name: telemetry.SpanRuntime, Party: "runtime", Start: at(0), Duration: ms(20)})
	event(25, telemetry.Span{Name: telemetry.SpanExtensions, Start: at(20), Duration: ms(5)})
	event(25, telemetry.Report{RequestID: "7f3b6a0c-0000-4000-8000-00000000abcd", Status: status, Metrics: telemetry.ReportMetrics{Duration: ms(25), Billed: 105}})
}

func TestSpans(t *testing.T) {
	const want = `  f 25ms
    init 80ms
      runtime init 50ms
      extension init 30ms
    runtime 20ms
      responseLatency 15ms
      responseDuration 1ms
    extensions 5ms
`
	for name, test := range map[string]struct {
		tracing           *telemetry.TraceContext
		traceID, parent   string
		status, id, error string
	}{
		"sampled": {&telemetry.TraceContext{SpanID: "1122334455667788", Value: "Root=1-5f35ae12-0c0fec141ab77a00bc047aa2;Parent=2be948a625588e32;Sampled=1"},
			"5f35ae120c0fec141ab77a00bc047aa2", "2be948a625588e32", "success", "1122334455667788", ""},
		"nobody's":  {nil, "7f3b6a0c000040008000" + "00000000abcd", "", "success", "", ""},
		"malformed": {&telemetry.TraceContext{Value: "Root=1-x-y;Sampled=1"}, "7f3b6a0c000040008000" + "00000000abcd", "", "timeout", "", " error timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReceiver(t)
			x, err := New(t.Context(), r.URL, "1")
			if err != nil {
				t.Fatal(err)
			}
			emit(x, test.tracing, test.status)
			if err := x.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := r.tree(test.parent, "  "); got != strings.Replace(want, "f 25ms", "f 25ms"+test.error, 1) {
				t.Errorf("%s", got)
			}
			for _, s := range r.spans {
				if hex.EncodeToString(s.TraceId) != test.traceID {
					t.Errorf("%s is in trace %x, want %s", s.Name, s.TraceId, test.traceID)
				}
			}
			if r.path != "/v1/traces" || len(r.services) == 0 || r.services[0] != "f" {
				t.Errorf("%s %v", r.path, r.services)
			}
			if id := hex.EncodeToString(r.spans[0].SpanId); test.id != "" && id != test.id {
				t.Errorf("the invocation's span is %s, want %s", id, test.id)
			}
		})
	}
}

func TestCheckEndpoint(t *testing.T) {
	for _, bad := range []string{"", "localhost:4318", "ftp://x", "http://"} {
		if CheckEndpoint(bad) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if err := CheckEndpoint("https://collector:4318/v1/traces"); err != nil {
		t.Error(err)
	}
}
