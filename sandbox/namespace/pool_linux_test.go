//go:build amd64 || arm64

package namespace

import (
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lambdad/lambdad/sandbox"
)

// The size of the pool follows what was missing, and goes back once that is not needed.
func TestPoolSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSize(2, 6)
		ready := s.wanted()
		burst := func(n int) {
			for range n {
				if ready == 0 {
					s.took(time.Now(), 0, true)
					continue
				}
				ready--
				s.took(time.Now(), ready, false)
			}
			ready = s.wanted()
		}
		// run looks as the driver does, and returns the sizes there were.
		run := func(d time.Duration) (sizes []int) {
			sizes = []int{s.wanted()}
			for end := time.Now().Add(d); ; {
				again := s.look(time.Now(), ready)
				if n := s.wanted(); n != sizes[len(sizes)-1] {
					sizes = append(sizes, n)
				}
				ready = min(ready, s.wanted())
				if again == 0 || time.Now().Add(again).After(end) {
					time.Sleep(time.Until(end))
					return sizes
				}
				time.Sleep(again)
			}
		}
		for _, step := range []struct {
			burst int
			sizes []int
		}{
			{2, []int{2}},    // enough
			{5, []int{5, 2}}, // three were missing, nobody needs them later
			{100, []int{6, 2}},
		} {
			burst(step.burst)
			if got := run(time.Minute); !slices.Equal(got, step.sizes) {
				t.Errorf("after %d at once the sizes were %v, want %v", step.burst, got, step.sizes)
			}
		}
		burst(5)
		for range 10 { // three each time: two of five are too many
			if got := run(poolPeriod - time.Second); len(got) > 2 {
				t.Errorf("sizes %v", got)
			}
			burst(3)
		}
		if n := s.wanted(); n != 3 {
			t.Errorf("%d for three at a time", n)
		}
		if s.look(time.Now().Add(time.Hour), 3); s.wanted() == 1 {
			t.Error("fewer than the least")
		}
	})
}

// A driver makes more ahead after many were missing, and gives them back.
func TestPoolFollows(t *testing.T) {
	d := open(t, Config{})
	filled := func(what string, ok func(n int) bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(len(d.pool)); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %d in the pool", what, len(d.pool))
			}
		}
	}
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			b, err := d.Create(t.Context(), sandbox.Spec{ID: "many" + strconv.Itoa(i)})
			if err != nil {
				t.Error(err)
				return
			}
			if err := b.Destroy(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	filled("after a burst", func(n int) bool { return n > poolLeast })
	filled("when nobody needs it", func(n int) bool { return n == poolLeast && d.follow.wanted() == poolLeast })
	if fixed := open(t, Config{Pool: 3}); fixed.follow.least != 3 || fixed.follow.most != 3 {
		t.Errorf("a fixed pool is from %d to %d", fixed.follow.least, fixed.follow.most)
	}
}
