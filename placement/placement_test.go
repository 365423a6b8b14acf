package placement_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/placement"
)

// gate is a worker that answers when told to.
type gate chan error

func (g gate) Invoke(context.Context, *lambdad.Invocation) (*lambdad.Response, error) {
	return &lambdad.Response{}, <-g
}

func invocation(account, region string) *lambdad.Invocation {
	return &lambdad.Invocation{Version: &lambdad.Version{Account: account, Region: region}}
}

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 3
		g := make(gate)
		p := placement.New(g, limit)
		done := make(chan error, 2*limit)
		run := func(account, region string) {
			go func() { _, err := p.Invoke(t.Context(), invocation(account, region)); done <- err }()
		}
		for range limit {
			run("1", "eu-west-1")
		}
		synctest.Wait()
		if n := p.InUse("1", "eu-west-1"); n != limit {
			t.Fatalf("%d in use, want %d", n, limit)
		}

		_, err := p.Invoke(t.Context(), invocation("1", "eu-west-1"))
		var e *lambdad.Error
		if !errors.As(err, &e) || e.Code != "TooManyRequestsException" || e.Reason != "ConcurrentInvocationLimitExceeded" || e.Message != "Rate Exceeded." {
			t.Fatalf("over the limit: %v", err)
		}

		// Another region and another account have limits of their own.
		run("1", "us-east-1")
		run("2", "eu-west-1")
		synctest.Wait()
		if len(done) != 0 {
			t.Fatalf("another account or region was throttled: %v", <-done)
		}

		// A unit comes back whatever the outcome, and can be had again.
		g <- errors.New("failed")
		if err := <-done; err == nil {
			t.Fatal("the worker's error was lost")
		}
		for range limit + 1 {
			g <- nil
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		for _, a := range []string{"1", "2"} {
			for _, r := range []string{"eu-west-1", "us-east-1"} {
				if n := p.InUse(a, r); n != 0 {
					t.Errorf("%d still in use in %s of %s", n, r, a)
				}
			}
		}
	})
}

// A panic of a handler, which net/http recovers, must not eat a unit.
func TestPanicGivesBack(t *testing.T) {
	p := placement.New(panics{}, 1)
	func() {
		defer func() {
			if fmt.Sprint(recover()) != "boom" {
				t.Error("no panic")
			}
		}()
		p.Invoke(t.Context(), invocation("1", "eu-west-1"))
	}()
	if n := p.InUse("1", "eu-west-1"); n != 0 {
		t.Errorf("%d still in use", n)
	}
}

type panics struct{}

func (panics) Invoke(context.Context, *lambdad.Invocation) (*lambdad.Response, error) { panic("boom") }

type answers struct{}

func (answers) Invoke(context.Context, *lambdad.Invocation) (*lambdad.Response, error) {
	return nil, nil
}

func BenchmarkInvoke(b *testing.B) {
	p := placement.New(answers{}, 1000)
	inv := invocation("123456789012", "eu-west-1")
	b.ReportAllocs()
	for b.Loop() {
		p.Invoke(b.Context(), inv)
	}
}
