package poller_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/frontend"
	"github.com/lambdad/lambdad/mem"
	"github.com/lambdad/lambdad/metrics"
	"github.com/lambdad/lambdad/placement"
	"github.com/lambdad/lambdad/poller"
)

// A function is a placer whose invocations end as told.
type function struct {
	begin time.Time
	takes time.Duration
	// ends says how the nth attempt (from 1) at an event ends: "" well, "fails", or
	// with an error.
	ends func(inv *lambdad.Invocation, n int) (string, error)

	mu      sync.Mutex
	n       map[string]int
	tries   []string // request id, payload and when
	running int
	most    int

	measured []string
}

func (f *function) Invoke(ctx context.Context, inv *lambdad.Invocation) (*lambdad.Response, error) {
	f.mu.Lock()
	f.n[inv.RequestID]++
	n := f.n[inv.RequestID]
	f.tries = append(f.tries, fmt.Sprintf("%s %s %s", inv.RequestID, inv.Payload, time.Since(f.begin).Round(time.Second)))
	f.running++
	f.most = max(f.most, f.running)
	f.mu.Unlock()
	time.Sleep(f.takes)
	f.mu.Lock()
	f.running--
	f.mu.Unlock()
	functionError, err := f.ends(inv, n)
	if err != nil {
		return nil, err
	}
	return &lambdad.Response{FunctionError: functionError}, nil
}

type versions struct{ gone atomic.Bool }

func (v *versions) Resolve(_ context.Context, account, region, name, _ string) (lambdad.Target, error) {
	if v.gone.Load() {
		return lambdad.Target{}, lambdad.Errorf("ResourceNotFoundException", "Function not found: %s", name)
	}
	return lambdad.Target{Version: &lambdad.Version{Account: account, Region: region, Function: name, Number: "$LATEST"}}, nil
}

// Record implements metrics.Recorder.
func (f *function) Record(_ metrics.Subject, m metrics.Metric, value float64, _ time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.measured = append(f.measured, fmt.Sprintf("%s %g", m, value))
}

type rig struct {
	*function
	versions
	frontend *frontend.Frontend
	queue    *mem.Queue
	stop     func()
}

func run(t *testing.T, concurrency int, takes time.Duration, ends func(*lambdad.Invocation, int) (string, error), body func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{function: &function{begin: time.Now(), takes: takes, ends: ends, n: map[string]int{}}, queue: mem.NewQueue()}
		r.frontend = frontend.New(frontend.Config{Versions: &r.versions, Placer: r.function, Events: r.queue})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		p := poller.New(poller.Config{Queue: r.queue, Frontend: r.frontend, Concurrency: concurrency, Metrics: r})
		go func() { done <- p.Run(ctx) }()
		r.stop = sync.OnceFunc(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		defer r.queue.Close()
		defer r.stop()
		body(t, r)
	})
}

func (r *rig) event(t *testing.T, id, payload string) {
	t.Helper()
	err := r.frontend.Event(t.Context(), &lambdad.Invocation{Account: "1", Region: "eu-west-1", Function: "f", RequestID: id, Payload: []byte(payload)})
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) left(t *testing.T) int {
	t.Helper()
	n, err := r.queue.Len(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (r *rig) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.tries)
}

func TestWhatBecomesOfEvents(t *testing.T) {
	throttled := lambdad.Throttled("ReservedFunctionConcurrentInvocationLimitExceeded")
	zero := lambdad.Throttled("ReservedFunctionConcurrentInvocationLimitExceeded")
	zero.Err = placement.ErrZeroReserved
	for _, c := range []struct {
		name string
		ends func(*lambdad.Invocation, int) (string, error)
		want []string
	}{
		{"succeeds", func(*lambdad.Invocation, int) (string, error) { return "", nil }, []string{"a {} 0s"}},
		{"fails once", func(_ *lambdad.Invocation, n int) (string, error) { return []string{"Unhandled", ""}[n-1], nil }, []string{"a {} 0s", "a {} 1m1s"}},
		{"fails always", func(*lambdad.Invocation, int) (string, error) { return "Unhandled", nil }, []string{"a {} 0s", "a {} 1m1s", "a {} 3m2s"}},
		{"is throttled for a while", func(_ *lambdad.Invocation, n int) (string, error) {
			if n < 4 {
				return "", throttled
			}
			return "", nil
		}, []string{"a {} 0s", "a {} 2s", "a {} 5s", "a {} 10s"}},
		{"meets a failing platform", func(_ *lambdad.Invocation, n int) (string, error) {
			if n == 1 {
				return "", errors.New("no environment")
			}
			return "", nil
		}, []string{"a {} 0s", "a {} 2s"}},
		{"is for a stopped function", func(*lambdad.Invocation, int) (string, error) { return "", zero }, []string{"a {} 0s"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, 10, time.Second, c.ends, func(t *testing.T, r *rig) {
				r.event(t, "a", "")
				time.Sleep(10 * time.Minute)
				if got := r.all(); !slices.Equal(got, c.want) {
					t.Errorf("attempts %q, want %q", got, c.want)
				}
				if n := r.left(t); n != 0 {
					t.Errorf("%d events left", n)
				}
			})
		})
	}
}

func TestGivenUpByAge(t *testing.T) {
	ends := func(*lambdad.Invocation, int) (string, error) { return "", lambdad.Throttled("x") }
	run(t, 10, 0, ends, func(t *testing.T, r *rig) {
		r.event(t, "a", `{"x":1}`)
		time.Sleep(6*time.Hour - time.Minute)
		if r.left(t) != 1 {
			t.Error("given up early")
		}
		tries := r.all()
		if last := tries[len(tries)-1]; !strings.HasPrefix(last, `a {"x":1} 5h5`) || len(tries) < 70 || len(tries) > 90 {
			t.Errorf("%d attempts, the last %s", len(tries), last)
		}
		time.Sleep(6 * time.Minute)
		if r.left(t) != 0 {
			t.Error("kept after six hours")
		}
	})
}

func TestFunctionGone(t *testing.T) {
	run(t, 10, 0, func(*lambdad.Invocation, int) (string, error) { return "Unhandled", nil }, func(t *testing.T, r *rig) {
		r.event(t, "a", "")
		time.Sleep(time.Second)
		r.gone.Store(true)
		time.Sleep(time.Hour)
		if r.left(t) != 0 || len(r.all()) != 1 {
			t.Errorf("%d left after %q", r.left(t), r.all())
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if want := []string{"AsyncEventAge 0", "AsyncEventAge 60000", "AsyncEventsDropped 1"}; !slices.Equal(r.measured, want) {
			t.Errorf("measured %q, want %q", r.measured, want)
		}
	})
}

// A long invocation keeps its event: nobody else gets it, and it is done once.
func TestLongInvocation(t *testing.T) {
	run(t, 10, 15*time.Minute, func(*lambdad.Invocation, int) (string, error) { return "", nil }, func(t *testing.T, r *rig) {
		r.event(t, "a", "")
		time.Sleep(time.Hour)
		if got := r.all(); len(got) != 1 || r.left(t) != 0 {
			t.Errorf("attempts %q, %d left", got, r.left(t))
		}
	})
}

// The end of Run finishes what is under way and leaves the rest in the queue; the
// failures counted so far are known to the next.
func TestStopAndGoOn(t *testing.T) {
	run(t, 2, time.Second, func(*lambdad.Invocation, int) (string, error) { return "Unhandled", nil }, func(t *testing.T, r *rig) {
		for _, id := range []string{"a", "b", "c", "d"} {
			r.event(t, id, "")
		}
		time.Sleep(time.Millisecond)
		r.stop()
		if r.most != 2 || r.running != 0 || len(r.all()) != 2 || r.left(t) != 4 {
			t.Fatalf("%d at once, %d running, %q, %d left", r.most, r.running, r.all(), r.left(t))
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan struct{})
		go func() {
			defer close(done)
			poller.New(poller.Config{Queue: r.queue, Frontend: r.frontend}).Run(ctx)
		}()
		time.Sleep(time.Hour)
		if len(r.all()) != 12 || r.left(t) != 0 {
			t.Errorf("%d attempts at four events, %d left", len(r.all()), r.left(t))
		}
		cancel()
		<-done
	})
}

// What cannot be read is removed, not tried for ever.
func TestNoEvent(t *testing.T) {
	run(t, 2, 0, func(*lambdad.Invocation, int) (string, error) { return "", nil }, func(t *testing.T, r *rig) {
		for subject, body := range map[string]string{"1.r.event.f": "no json\n{}", "1.r.other.f": "{}\n{}", "1.r": ""} {
			if err := r.queue.Enqueue(t.Context(), subject, "", []byte(body)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if r.left(t) != 0 || len(r.all()) != 0 {
			t.Errorf("%d left, %q", r.left(t), r.all())
		}
	})
}
