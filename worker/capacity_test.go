package worker

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lambdad/lambdad"
)

// Where somebody waited in vain, the next are refused, until there is room: because
// something ended, or because others gave it back.
func TestRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{IdleTimeout: time.Hour, MemoryBudget: 110 * mb}, func(h *host) { h.memory = 60 * mb })
		var others atomic.Int64
		h.setRooms(threads(h, 200, &others))
		refused := func(when string, want bool, v *lambdad.Version) {
			t.Helper()
			if err := h.Refuses(v); (err != nil) != want {
				t.Errorf("%s: refuses %s: %v", when, v.Function, err)
			}
		}
		a, b, large := version("a", "1"), version("b", "1"), version("large", "1")
		h.must(large)
		h.Local.mu.Lock()
		h.pools[keyOf(large)].need = 80 * mb
		h.Local.mu.Unlock()
		refused("at first", false, b)

		h.runTime = time.Minute
		done := make(chan string)
		go func() { done <- h.must(a) }() // what was idle makes way
		time.Sleep(time.Second)
		fail := func(v *lambdad.Version) {
			t.Helper()
			begin := time.Now()
			_, err := h.invoke(t.Context(), v)
			if e := (*lambdad.Error)(nil); !errors.As(err, &e) || e.Code != "TooManyRequestsException" || time.Since(begin) != 10*time.Second {
				t.Errorf("%v after %v", err, time.Since(begin))
			}
		}
		fail(b)
		refused("after one waited in vain", true, b)
		refused("while one lives", false, a)
		if s := h.Stats(); s.Refused != 1 {
			t.Errorf("%d refused", s.Refused)
		}
		if c := h.Capacity(); c.More != 0 || c.Idle != 0 || len(c.Rooms) != 2 || c.Rooms[0].Used != 60*mb || c.Rooms[0].Limit != 110*mb || c.Rooms[1].Limit != 136 {
			t.Errorf("capacity %+v", c)
		}
		<-done // one that is idle makes way
		refused("with an idle one", false, b)
		if c := h.Capacity(); c.More != 1 || c.Idle != 1 || c.Rooms[0].Idle != 60*mb || c.Rooms[1].Idle != 5 {
			t.Errorf("capacity %+v", c)
		}
		h.runTime = time.Second
		h.must(b)

		// Others take all threads, and give them back.
		h.runTime = time.Minute
		go func() { done <- h.must(b) }()
		time.Sleep(time.Second)
		others.Store(130)
		fail(a)
		refused("without threads", true, a)
		time.Sleep(5 * time.Second)
		refused("still without", true, a)
		h.Local.mu.Lock()
		h.budget = 1 << 30
		h.Local.mu.Unlock()
		others.Store(0)
		time.Sleep(2 * samplePeriod)
		refused("with threads", false, a)
		<-done
		h.close()
	})
}
