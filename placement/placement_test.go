package placement_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/metrics"
	"github.com/lambdad/lambdad/placement"
	"github.com/lambdad/lambdad/worker"
)

// A host is a worker that runs invocations under fake time and counts them.
type host struct {
	run   time.Duration // until the answer
	after time.Duration // of extensions
	fail  error
	full  error

	mu        sync.Mutex
	running   map[string]int // by function:number
	most      map[string]int
	provision map[string]int
}

func newHost(run, after time.Duration) *host {
	return &host{run: run, after: after, running: map[string]int{}, most: map[string]int{}, provision: map[string]int{}}
}

func (h *host) add(v *lambdad.Version, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range []string{"", v.Function, v.Function + ":" + v.Number} {
		h.running[k] += n
		h.most[k] = max(h.most[k], h.running[k])
	}
}

func (h *host) peak(k string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.most[k]
}

func (h *host) Invoke(ctx context.Context, inv *lambdad.Invocation, u worker.Unit) (*lambdad.Response, error) {
	h.add(inv.Version, 1)
	time.Sleep(h.run)
	if h.fail != nil {
		h.add(inv.Version, -1)
		u.Release(false)
		return nil, h.fail
	}
	if h.after == 0 {
		h.add(inv.Version, -1)
		u.Release(false)
		return &lambdad.Response{}, nil
	}
	u.Answered()
	after := h.after
	go func() {
		time.Sleep(after)
		h.add(inv.Version, -1)
		u.Release(true)
	}()
	return &lambdad.Response{}, nil
}

func (h *host) Provision(v *lambdad.Version, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.provision[v.Function+":"+v.Number] = n
}

// Refuses implements Worker.
func (h *host) Refuses(*lambdad.Version) error { return h.full }

func (h *host) Provisioned(*lambdad.Version) lambdad.Provisioned { return lambdad.Provisioned{} }

func version(function, number string) *lambdad.Version {
	return &lambdad.Version{Account: "1", Region: "eu-west-1", Function: function, Number: number}
}

// calls invokes n times at once and returns how many ran, and the reasons of the
// throttles of the others.
func calls(t *testing.T, p *placement.Placer, n int, v *lambdad.Version) (ran int, reasons []string) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			_, err := p.Invoke(t.Context(), &lambdad.Invocation{Version: v})
			mu.Lock()
			defer mu.Unlock()
			var e *lambdad.Error
			switch {
			case err == nil:
				ran++
			case errors.As(err, &e) && e.Code == "TooManyRequestsException" && e.Message == "Rate Exceeded.":
				reasons = append(reasons, e.Reason)
			default:
				t.Errorf("neither an answer nor a throttle: %v", err)
			}
		})
	}
	wg.Wait()
	slices.Sort(reasons)
	return ran, slices.Compact(reasons)
}

const (
	account  = "ConcurrentInvocationLimitExceeded"
	reserved = "ReservedFunctionConcurrentInvocationLimitExceeded"
)

func idle(t *testing.T, p *placement.Placer) {
	t.Helper()
	time.Sleep(time.Hour)
	synctest.Wait()
	if u := p.InUse("1", "eu-west-1"); u != (placement.Use{}) {
		t.Errorf("in use in the end: %+v", u)
	}
}

// What the worker has no room for is throttled with its reason, and takes no unit.
func TestNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(time.Second, 0)
		h.full = errors.New("no memory")
		p := placement.New(h, 10)
		_, err := p.Invoke(t.Context(), &lambdad.Invocation{Version: version("f", "1")})
		var e *lambdad.Error
		if !errors.As(err, &e) || e.Code != "TooManyRequestsException" || e.Reason != account || !errors.Is(err, h.full) {
			t.Errorf("%v", err)
		}
		if h.peak("") != 0 {
			t.Error("it ran")
		}
		h.full = nil
		if ran, reasons := calls(t, p, 10, version("f", "1")); ran != 10 {
			t.Errorf("%d of 10 ran, others: %v", ran, reasons)
		}
		idle(t, p)
	})
}

// Of 500 parallel calls exactly as many run as there is concurrency for, whatever
// it is that limits them.
func TestExactUnderParallelCalls(t *testing.T) {
	for _, c := range []struct {
		name   string
		c      lambdad.Concurrency
		limit  int
		ran    int
		reason string
	}{
		{"the account", lambdad.Concurrency{}, 120, 120, account},
		{"reserved", lambdad.Concurrency{Reserved: new(37)}, 1000, 37, reserved},
		{"reserved 0", lambdad.Concurrency{Reserved: new(0)}, 1000, 0, reserved},
		{"reserved with provisioned inside", lambdad.Concurrency{Reserved: new(37), Provisioned: []lambdad.Provision{{Version: version("f", "1"), Count: 30}}}, 1000, 37, reserved},
		{"provisioned alone and spill-over", lambdad.Concurrency{Provisioned: []lambdad.Provision{{Version: version("f", "1"), Count: 30}}}, 120, 120, account},
		{"provisioned for another version", lambdad.Concurrency{Provisioned: []lambdad.Provision{{Version: version("f", "2"), Count: 30}}}, 120, 90, account},
		{"reserved is provisioned for another version", lambdad.Concurrency{Reserved: new(30), Provisioned: []lambdad.Provision{{Version: version("f", "2"), Count: 30}}}, 1000, 0, reserved},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(time.Minute, 0)
				p := placement.New(h, c.limit)
				p.Configure("1", "eu-west-1", "f", c.c)
				for range 3 {
					ran, reasons := calls(t, p, 500, version("f", "1"))
					if ran != c.ran || h.peak("f") != c.ran || !slices.Equal(reasons, []string{c.reason}) {
						t.Fatalf("%d ran, %d at once, others %v; want %d and %s", ran, h.peak("f"), reasons, c.ran, c.reason)
					}
				}
				idle(t, p)
			})
		})
	}
}

// What is reserved is a guarantee, too: others cannot take it.
func TestReservedIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(time.Minute, 0)
		p := placement.New(h, 100)
		p.Configure("1", "eu-west-1", "kept", lambdad.Concurrency{Reserved: new(30)})
		var others int
		var reasons []string
		done := make(chan struct{})
		go func() { defer close(done); others, reasons = calls(t, p, 500, version("other", "$LATEST")) }()
		synctest.Wait()
		if use := p.InUse("1", "eu-west-1"); use != (placement.Use{Concurrent: 70, Unreserved: 70}) {
			t.Errorf("in use %+v", use)
		}
		if ran, _ := calls(t, p, 30, version("kept", "$LATEST")); ran != 30 {
			t.Errorf("%d of 30 reserved ran", ran)
		}
		<-done
		if others != 70 || !slices.Equal(reasons, []string{account}) {
			t.Errorf("others: %d ran, %v", others, reasons)
		}
		// Another account and another region have limits of their own.
		v := version("other", "1")
		v.Region = "us-east-1"
		if ran, _ := calls(t, p, 100, v); ran != 100 {
			t.Errorf("%d ran in another region", ran)
		}
		idle(t, p)
	})
}

// Limits that change while invocations run hold at once, and nothing is lost when
// those end.
func TestChangesUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(time.Minute, 0)
		p := placement.New(h, 100)
		one, two := version("f", "1"), version("f", "2")
		set := func(c lambdad.Concurrency) { p.Configure("1", "eu-west-1", "f", c) }
		var running sync.WaitGroup
		begin := func(n int, v *lambdad.Version) {
			t.Helper()
			before := p.InUse("1", "eu-west-1").Concurrent
			for range n {
				running.Go(func() {
					if _, err := p.Invoke(t.Context(), &lambdad.Invocation{Version: v}); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
			if after := p.InUse("1", "eu-west-1").Concurrent; after != before+n {
				t.Fatalf("%d run, want %d", after, before+n)
			}
		}
		refused := func(v *lambdad.Version, reason string) {
			t.Helper()
			if ran, reasons := calls(t, p, 1, v); ran != 0 || reasons[0] != reason {
				t.Fatalf("%d ran, %v", ran, reasons)
			}
		}
		begin(10, one)
		set(lambdad.Concurrency{Reserved: new(12)}) // ten of them are in use
		begin(2, one)
		refused(one, reserved)
		set(lambdad.Concurrency{}) // of the account's hundred twelve are in use
		begin(88, one)
		refused(one, account)
		set(lambdad.Concurrency{Reserved: new(5)}) // less than runs
		refused(one, reserved)
		set(lambdad.Concurrency{})
		running.Wait()
		synctest.Wait()

		// The allotment moves to another version while it is in use.
		set(lambdad.Concurrency{Reserved: new(10), Provisioned: []lambdad.Provision{{Version: one, Count: 6}}})
		begin(6, one) // provisioned
		begin(1, one) // spilt
		set(lambdad.Concurrency{Reserved: new(10), Provisioned: []lambdad.Provision{{Version: two, Count: 6}}})
		if h.provision["f:1"] != 0 || h.provision["f:2"] != 6 {
			t.Errorf("the worker was told %v", h.provision)
		}
		refused(one, reserved) // seven of what are now four
		begin(6, two)
		refused(two, reserved)
		running.Wait()
		synctest.Wait()
		if ran, _ := calls(t, p, 50, one); ran != 4 {
			t.Errorf("%d ran beside what is provisioned for another version", ran)
		}
		if ran, _ := calls(t, p, 50, two); ran != 10 {
			t.Errorf("%d ran of what is provisioned and the rest", ran)
		}
		set(lambdad.Concurrency{})
		if ran, _ := calls(t, p, 500, two); ran != 100 {
			t.Errorf("%d ran in the end", ran)
		}
		idle(t, p)
	})
}

// A unit is held until extensions are done. Requests that come in the moment in
// which a runtime has answered wait for it; those that would wait longer are
// throttled.
func TestHeldUntilIdle(t *testing.T) {
	for _, c := range []struct {
		name string
		c    lambdad.Concurrency
	}{
		{"reserved", lambdad.Concurrency{Reserved: new(1)}},
		{"provisioned", lambdad.Concurrency{Reserved: new(1), Provisioned: []lambdad.Provision{{Version: version("f", "1"), Count: 1}}}},
		{"account", lambdad.Concurrency{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(time.Second, time.Millisecond)
				p := placement.New(h, 1)
				p.Configure("1", "eu-west-1", "f", c.c)
				v := version("f", "1")
				for range 10 { // one after the other, faster than the environment
					if ran, reasons := calls(t, p, 1, v); ran != 1 {
						t.Fatal(reasons)
					}
				}
				begin := time.Now()
				time.Sleep(time.Millisecond)
				var wg sync.WaitGroup
				wg.Go(func() { calls(t, p, 1, v) })
				synctest.Wait()
				if ran, _ := calls(t, p, 1, v); ran != 0 {
					t.Error("two at once")
				}
				if waited := time.Since(begin); waited != time.Millisecond {
					t.Errorf("a throttle took %s while nothing was answered", waited)
				}
				wg.Wait()
				time.Sleep(time.Second)
				h.after = time.Minute // extensions at work
				if ran, _ := calls(t, p, 1, v); ran != 1 {
					t.Error("throttled")
				}
				begin = time.Now()
				if ran, _ := calls(t, p, 1, v); ran != 0 {
					t.Error("ran beside the extensions of another")
				}
				if waited := time.Since(begin); waited != 5*time.Millisecond {
					t.Errorf("throttled after %s", waited)
				}
				if h.peak("f") != 1 {
					t.Errorf("%d at once", h.peak("f"))
				}
				idle(t, p)
			})
		})
	}
}

// A unit comes back whatever the outcome.
func TestErrorGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(time.Second, 0)
		p := placement.New(h, 1)
		h.fail = errors.New("no environment")
		if _, err := p.Invoke(t.Context(), &lambdad.Invocation{Version: version("f", "1")}); !errors.Is(err, h.fail) {
			t.Errorf("the worker's error was lost: %v", err)
		}
		idle(t, p)
	})
}

// recorded keeps the sums and maxima of what was recorded, by minute.
type recorded map[string]float64

func (r recorded) Record(s metrics.Subject, m metrics.Metric, value float64, at time.Time) {
	k := fmt.Sprintf("%s %s:%s %s @%d", m, s.Function, s.Qualifier, s.Version, at.Unix()/60%60)
	switch m {
	case metrics.ProvisionedConcurrencyInvocations, metrics.ProvisionedConcurrencySpilloverInvocations:
		r[k] += value
	default:
		r[k] = max(r[k], value)
	}
}

// What is in use is told by minute, also of what runs for longer than one.
func TestMeasures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(30*time.Second, 0)
		p := placement.New(h, 100)
		p.Configure("1", "eu-west-1", "f", lambdad.Concurrency{Provisioned: []lambdad.Provision{{Version: version("f", "1"), Count: 4, Qualifier: "live"}}})
		p.Configure("1", "eu-west-1", "kept", lambdad.Concurrency{Reserved: new(5)})
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour + 5*time.Second)))
		r := recorded{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx, r) }()
		var wg sync.WaitGroup
		for v, n := range map[*lambdad.Version]int{version("f", "1"): 6, version("kept", "1"): 3, version("other", "$LATEST"): 7} {
			wg.Go(func() { calls(t, p, n, v) })
		}
		wg.Wait()
		time.Sleep(time.Minute)
		h.run = 90 * time.Second
		calls(t, p, 2, version("f", "1"))
		time.Sleep(10 * time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		want := recorded{
			"ConcurrentExecutions :  @0": 16, "UnreservedConcurrentExecutions :  @0": 9,
			"ConcurrentExecutions f:  @0": 6, "ConcurrentExecutions kept:  @0": 3, "ConcurrentExecutions other:  @0": 7,
			"ProvisionedConcurrencyInvocations f:live 1 @0": 4, "ProvisionedConcurrencySpilloverInvocations f:live 1 @0": 2,
			"ProvisionedConcurrentExecutions f:live 1 @0": 4, "ProvisionedConcurrencyUtilization f:live 1 @0": 1,
			"ProvisionedConcurrencyInvocations f:live 1 @1": 2,
		}
		for m := 1; m <= 3; m++ {
			at := fmt.Sprintf("@%d", m)
			maps.Copy(want, recorded{
				"ConcurrentExecutions :  " + at: 2, "UnreservedConcurrentExecutions :  " + at: 0, "ConcurrentExecutions f:  " + at: 2,
				"ProvisionedConcurrentExecutions f:live 1 " + at: 2, "ProvisionedConcurrencyUtilization f:live 1 " + at: 0.5,
			})
		}
		if !maps.Equal(r, want) {
			t.Errorf("recorded %v\nwant %v", r, want)
		}
	})
}

// A throttle that will not pass says so.
func TestZeroReserved(t *testing.T) {
	p := placement.New(newHost(0, 0), 1)
	for _, reserve := range []int{0, 1} {
		p.Configure("1", "eu-west-1", "f", lambdad.Concurrency{Reserved: &reserve, Provisioned: []lambdad.Provision{{Version: version("f", "2"), Count: reserve}}})
		_, err := p.Invoke(t.Context(), &lambdad.Invocation{Version: version("f", "1")})
		if err == nil || errors.Is(err, placement.ErrZeroReserved) != (reserve == 0) {
			t.Errorf("reserved %d: %v", reserve, err)
		}
	}
}

// answers is a worker that costs nothing.
type answers struct{}

func (*answers) Invoke(_ context.Context, _ *lambdad.Invocation, u worker.Unit) (*lambdad.Response, error) {
	u.Answered()
	u.Release(true)
	return nil, nil
}

// Refuses implements Worker.
func (*answers) Refuses(*lambdad.Version) error { return nil }

func (*answers) Provision(*lambdad.Version, int)                      {}
func (*answers) Provisioned(*lambdad.Version) (p lambdad.Provisioned) { return p }

func BenchmarkInvoke(b *testing.B) {
	for _, c := range []struct {
		name string
		c    lambdad.Concurrency
	}{
		{"account", lambdad.Concurrency{}},
		{"reserved", lambdad.Concurrency{Reserved: new(10)}},
		{"provisioned", lambdad.Concurrency{Provisioned: []lambdad.Provision{{Version: version("f", "1"), Count: 1}}}},
	} {
		b.Run(c.name, func(b *testing.B) {
			p := placement.New(&answers{}, 1000)
			p.Configure("1", "eu-west-1", "f", c.c)
			inv := &lambdad.Invocation{Version: version("f", "1")}
			b.ReportAllocs()
			for b.Loop() {
				p.Invoke(b.Context(), inv)
			}
		})
	}
}
