package frontend

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/metrics"
)

type versions map[string]*lambdad.Version

func (v versions) Resolve(_ context.Context, _, _, function, qualifier string) (lambdad.Target, error) {
	if v := v[function+":"+qualifier]; v != nil {
		return lambdad.Target{Version: v}, nil
	}
	return lambdad.Target{}, lambdad.Errorf("ResourceNotFoundException", "Function not found: %s", function)
}

// recorder is a placer that keeps what it was given.
type recorder struct{ got []*lambdad.Invocation }

func (r *recorder) Invoke(_ context.Context, inv *lambdad.Invocation) (*lambdad.Response, error) {
	r.got = append(r.got, inv)
	return &lambdad.Response{Payload: []byte(`"ok"`), ExecutedVersion: inv.Version.Number}, nil
}

var (
	one    = &lambdad.Version{Account: "123456789012", Region: "eu-west-1", Function: "f", Number: "1"}
	two    = &lambdad.Version{Account: "123456789012", Region: "eu-west-1", Function: "f", Number: "2"}
	newest = &lambdad.Version{Account: "123456789012", Region: "eu-west-1", Function: "f", Number: "$LATEST"}
	known  = versions{"f:": newest, "f:$LATEST": newest, "f:1": one, "f:live": one}
)

func TestInvokeFillsIn(t *testing.T) {
	const arn = "arn:aws:lambda:eu-west-1:123456789012:function:f"
	for _, c := range []struct {
		qualifier, payload, trace     string
		version                       *lambdad.Version
		wantARN, wantEvent, wantTrace string
	}{
		{"", `{"a":1}`, "Root=1-5f35ae12-0c0fec141ab77a00bc047aa2;Sampled=1", newest, arn, `{"a":1}`, "^Root=1-5f35ae12-0c0fec141ab77a00bc047aa2;Sampled=1$"},
		{"$LATEST", "", "", newest, arn + ":$LATEST", "{}", "^Root=1-[0-9a-f]{8}-[0-9a-f]{24};Parent=[0-9a-f]{16};Sampled=0$"},
		{"1", " null ", "", one, arn + ":1", " null ", "^Root=1-"},
		{"live", "3", "", one, arn + ":live", "3", "^Root=1-"},
	} {
		p := &recorder{}
		inv := &lambdad.Invocation{
			Account: "123456789012", Region: "eu-west-1", Function: "f", Qualifier: c.qualifier,
			Payload: []byte(c.payload), TraceID: c.trace,
		}
		resp, err := New(Config{Versions: known, Placer: p}).Invoke(t.Context(), inv)
		if err != nil || string(resp.Payload) != `"ok"` || len(p.got) != 1 {
			t.Fatalf("%q: %v %v, placed %d", c.qualifier, resp, err, len(p.got))
		}
		if inv.Version != c.version || inv.InvokedARN != c.wantARN || string(inv.Payload) != c.wantEvent || inv.ContentType != "application/json" {
			t.Errorf("%q: got %+v", c.qualifier, inv)
		}
		if !regexp.MustCompile(c.wantTrace).MatchString(inv.TraceID) {
			t.Errorf("%q: trace id %q", c.qualifier, inv.TraceID)
		}
	}
}

// weighted is an alias of two versions.
type weighted float64

func (w weighted) Resolve(context.Context, string, string, string, string) (lambdad.Target, error) {
	return lambdad.Target{Version: one, Additional: two, Weight: float64(w)}, nil
}

// count is a placer that counts what runs, from many callers.
type count struct{ one, two, other atomic.Int64 }

func (c *count) Invoke(_ context.Context, inv *lambdad.Invocation) (*lambdad.Response, error) {
	switch {
	case inv.InvokedARN != "arn:aws:lambda:eu-west-1:123456789012:function:f:live":
		c.other.Add(1)
	case inv.Version == one:
		c.one.Add(1)
	case inv.Version == two:
		c.two.Add(1)
	}
	return &lambdad.Response{ExecutedVersion: inv.Version.Number}, nil
}

// A weighted alias divides invocations by its weights, and the invoked ARN stays
// that of the alias. With 10,000 of weight 0.1 the share is off by 0.003 in one
// standard deviation: 0.02 is more than six.
func TestWeights(t *testing.T) {
	const calls = 10000
	for _, weight := range []float64{0, 0.1, 0.5, 1} {
		p := &count{}
		f := New(Config{Versions: weighted(weight), Placer: p})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				for range calls / 10 {
					inv := &lambdad.Invocation{Account: "123456789012", Region: "eu-west-1", Function: "f", Qualifier: "live"}
					if r, err := f.Invoke(t.Context(), inv); err != nil || r.ExecutedVersion != inv.Version.Number {
						t.Errorf("%v %v", r, err)
					}
				}
			})
		}
		wg.Wait()
		share := float64(p.two.Load()) / calls
		if p.one.Load()+p.two.Load() != calls || share < weight-0.02 || share > weight+0.02 {
			t.Errorf("weight %g: %d to the first, %d to the second, %d with another ARN", weight, p.one.Load(), p.two.Load(), p.other.Load())
		}
		if (weight == 0 || weight == 1) && share != weight {
			t.Errorf("weight %g: a share of %g", weight, share)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name              string
		function, payload string
		code, message     string
	}{
		{"unknown before anything else", "g", strings.Repeat(" ", lambdad.MaxRequestPayload+1), "ResourceNotFoundException", "Function not found: g"},
		{"size before syntax", "f", strings.Repeat("x", lambdad.MaxRequestPayload+1), "RequestEntityTooLargeException", "Request must be smaller than 6291456 bytes for the InvokeFunction operation"},
		{"syntax", "f", "{", "InvalidRequestContentException", "Could not parse request body into json: Could not parse payload into json: Unexpected end-of-input: expected close marker for Object "},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &recorder{}
			f := New(Config{Versions: known, Placer: p})
			inv := func() *lambdad.Invocation {
				return &lambdad.Invocation{Function: c.function, Payload: []byte(c.payload)}
			}
			_, err := f.Invoke(t.Context(), inv())
			dry := f.DryRun(t.Context(), inv())
			for _, err := range []error{err, dry} {
				var e *lambdad.Error
				if !errors.As(err, &e) || e.Code != c.code || !strings.HasPrefix(e.Message, c.message) {
					t.Errorf("got %v", err)
				}
			}
			if len(p.got) != 0 {
				t.Error("placed")
			}
		})
	}
}

func TestLimitIsInclusive(t *testing.T) {
	p := &recorder{}
	payload := `"` + strings.Repeat("a", lambdad.MaxRequestPayload-2) + `"`
	if _, err := New(Config{Versions: known, Placer: p}).Invoke(t.Context(), &lambdad.Invocation{Function: "f", Payload: []byte(payload)}); err != nil {
		t.Fatal(err)
	}
}

// refuses is a placer that throttles, and a recorder of what was measured.
type refuses struct{ got []string }

func (*refuses) Invoke(context.Context, *lambdad.Invocation) (*lambdad.Response, error) {
	return nil, lambdad.Throttled("ConcurrentInvocationLimitExceeded")
}

func (r *refuses) Record(s metrics.Subject, m metrics.Metric, value float64, _ time.Time) {
	r.got = append(r.got, fmt.Sprintf("%s %g %s:%s", m, value, s.Function, s.Qualifier))
}

func TestThrottlesAreMeasured(t *testing.T) {
	r := &refuses{}
	_, err := New(Config{Versions: known, Placer: r, Metrics: r}).Invoke(t.Context(), &lambdad.Invocation{Function: "f", Qualifier: "live"})
	if lambdad.ErrorCode(err) != "TooManyRequestsException" || !slices.Equal(r.got, []string{"Throttles 1 f:live"}) {
		t.Errorf("%v, measured %q", err, r.got)
	}
}

func TestDryRunRunsNothing(t *testing.T) {
	p := &recorder{}
	if err := New(Config{Versions: known, Placer: p}).DryRun(t.Context(), &lambdad.Invocation{Function: "f"}); err != nil || len(p.got) != 0 {
		t.Fatalf("%v, placed %d", err, len(p.got))
	}
}

// What an invocation allocates here does not grow with its event.
func TestNoAllocationByPayload(t *testing.T) {
	f := New(Config{Versions: known, Placer: &recorder{}})
	allocs := func(payload []byte) float64 {
		return testing.AllocsPerRun(20, func() {
			if err := f.DryRun(t.Context(), &lambdad.Invocation{Function: "f", Payload: payload}); err != nil {
				t.Fatal(err)
			}
		})
	}
	small, big := allocs([]byte("{}")), allocs(sixMegabytes(`{"a":[1,"b"]}`))
	if big > small {
		t.Errorf("%v allocations for 6 MB, %v for 2 bytes", big, small)
	}
}

func BenchmarkInvoke(b *testing.B) {
	f := New(Config{Versions: known, Placer: nothing{}})
	payload := []byte(`{"key1":"value1","key2":"value2","key3":"value3"}`)
	b.ReportAllocs()
	for b.Loop() {
		inv := lambdad.Invocation{Function: "f", Payload: payload, ContentType: "application/json"}
		f.Invoke(b.Context(), &inv)
	}
}

type nothing struct{}

func (nothing) Invoke(context.Context, *lambdad.Invocation) (*lambdad.Response, error) {
	return nil, nil
}
