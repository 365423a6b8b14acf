package worker

import (
	"context"
	"testing"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/environment"
	"github.com/lambdad/lambdad/sandbox"
)

// noop is an environment that costs nothing: what remains is the worker.
type noop struct {
	w    *Local
	inst *instance
}

var ok = &lambdad.Response{}

// unit is a unit of concurrency that costs nothing.
var unit Unit = free{}

type free struct{}

func (free) Answered()    {}
func (free) Release(bool) {}

func (n *noop) Invoke(context.Context, *lambdad.Invocation) (*lambdad.Response, error) {
	n.w.idled(n.inst, n)
	return ok, nil
}
func (n *noop) Shutdown(context.Context)   { n.Kill() }
func (n *noop) Kill()                      { n.w.ended(n.inst, nil) }
func (n *noop) Status() environment.Status { return environment.Status{} }

func noopWorker() *Local {
	w := newLocal(Config{MemoryBudget: 1 << 40})
	w.build = func(_ context.Context, inst *instance) error {
		n := &noop{w: w, inst: inst}
		w.attach(inst, func() (sandbox.Usage, error) { return sandbox.Usage{}, nil }, nil, nil)
		w.began(inst, n)
		w.idled(inst, n)
		return nil
	}
	return w
}

func BenchmarkWarmInvoke(b *testing.B) {
	w := noopWorker()
	defer w.Drain(context.Background())
	inv := &lambdad.Invocation{Version: version("f", "1")}
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.Invoke(ctx, inv, unit); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWarmInvokeParallel(b *testing.B) {
	w := noopWorker()
	defer w.Drain(context.Background())
	inv := &lambdad.Invocation{Version: version("f", "1")}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := w.Invoke(context.Background(), inv, unit); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkPopPush is the warm path's two critical sections alone.
func BenchmarkPopPush(b *testing.B) {
	w := noopWorker()
	defer w.Drain(context.Background())
	v := version("f", "1")
	if _, err := w.Invoke(b.Context(), &lambdad.Invocation{Version: v}, nil); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		inst, _, err := w.claim(b.Context(), v)
		if err != nil {
			b.Fatal(err)
		}
		w.idled(inst, inst.env)
	}
}

// BenchmarkColdInvoke is a start, one invocation and a shutdown without an
// environment: the worker's share of a cold start.
func BenchmarkColdInvoke(b *testing.B) {
	w := noopWorker()
	defer w.Drain(context.Background())
	inv := &lambdad.Invocation{Version: version("f", "1")}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.Invoke(b.Context(), inv, unit); err != nil {
			b.Fatal(err)
		}
		w.Retire(inv.Version.Account, inv.Version.Region, "f", "")
	}
}

// With a thousand idle environments of as many functions, the warm path costs
// what it costs with one.
func BenchmarkWarmInvokeAmongThousand(b *testing.B) {
	w := noopWorker()
	defer w.Drain(context.Background())
	for i := range 1000 {
		if _, err := w.Invoke(b.Context(), &lambdad.Invocation{Version: version(string(rune('a'+i%26))+newID(), "1")}, nil); err != nil {
			b.Fatal(err)
		}
	}
	inv := &lambdad.Invocation{Version: version("f", "1")}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.Invoke(b.Context(), inv, unit); err != nil {
			b.Fatal(err)
		}
	}
}
