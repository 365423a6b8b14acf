package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/environment"
)

func published(name, number string) *lambdad.Version {
	v := version(name, number)
	v.Number = number
	return v
}

// state is what Provisioned says, in short.
func (h *host) state(v *lambdad.Version) string {
	s := h.Provisioned(v)
	return fmt.Sprintf("%d/%d used %d %s", s.Available, s.Requested, s.InUse, s.Failure)
}

func (h *host) is(v *lambdad.Version, want string) {
	h.t.Helper()
	if got := strings.TrimSpace(h.state(v)); got != want {
		h.t.Errorf("%s, want %s", got, want)
	}
}

// kinds says which of the built environments are provisioned.
func (h *host) kinds() (s string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.built {
		if e.inst.ahead {
			s += "p"
		} else {
			s += "o"
		}
	}
	return s
}

// Provisioned environments are there before anybody comes, serve first, and are
// not retired; what is more than they can take spills over to new ones.
func TestProvisionedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{IdleTimeout: time.Minute}, func(h *host) { h.runTime = time.Second })
		v := published("f", "1")
		h.Provision(v, 3)
		h.is(v, "0/3 used 0")
		time.Sleep(time.Second)
		h.is(v, "3/3 used 0")
		begin := time.Now()
		if names, errs := h.together(3, v); len(names) != 3 || errs != nil {
			t.Fatal(names, errs)
		}
		if took := time.Since(begin); took != time.Second || h.kinds() != "ppp" {
			t.Errorf("the first three took %s in %s", took, h.kinds())
		}
		synctest.Wait()
		names, errs := h.together(4, v)
		if len(names) != 4 || errs != nil || h.kinds() != "pppo" {
			t.Fatal(names, errs, h.kinds())
		}
		time.Sleep(time.Minute + time.Second) // the idle timeout
		h.is(v, "3/3 used 0")
		if _, living := h.count(); living != 3 {
			t.Errorf("%d living, the one on demand should be retired and no other", living)
		}
		if got := h.must(v); !slices.Contains([]string{"e1", "e2", "e3"}, got) {
			t.Errorf("%s answered", got)
		}
		h.close()
	})
}

// One that is lost is replaced, whether it was idle or in use.
func TestProvisionedReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{}, func(h *host) { h.runTime = time.Second; h.initTime = 10 * time.Second })
		v := published("f", "1")
		h.Provision(v, 2)
		time.Sleep(11 * time.Second)
		h.is(v, "2/2 used 0")
		h.env(0).die(errors.New("its runtime was killed"))
		h.is(v, "1/2 used 0")
		time.Sleep(9 * time.Second)
		h.is(v, "1/2 used 0")
		time.Sleep(3 * time.Second)
		h.is(v, "2/2 used 0")

		// In use: at once.
		go h.invoke(t.Context(), v)
		time.Sleep(time.Millisecond)
		h.is(v, "2/2 used 1")
		for i := range 3 {
			e := h.env(i)
			e.mu.Lock()
			used := len(e.invoked) > 0
			e.mu.Unlock()
			if used {
				e.die(errors.New("crashed"))
			}
		}
		h.is(v, "1/2 used 0")
		time.Sleep(10*time.Second + 10*time.Millisecond)
		h.is(v, "2/2 used 0")
		if h.kinds() != "pppp" {
			t.Errorf("built %s", h.kinds())
		}
		// One that dies again and again is not made again and again.
		synctest.Wait()
		h.initTime = 0
		for range 10 {
			built, _ := h.count()
			h.env(built - 1).die(errors.New("dies of itself"))
			time.Sleep(500 * time.Millisecond)
			if again, _ := h.count(); again != built {
				t.Fatal("made again at once")
			}
			time.Sleep(600 * time.Millisecond)
		}
		h.is(v, "2/2 used 0")
		h.close()
	})
}

// What fails to start says why, is tried again less and less often, and is
// available when it succeeds.
func TestProvisionedFails(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{environment.ErrInit, "FUNCTION_ERROR_INIT_FAILURE"},
		{errors.New("no inodes left"), "ServiceException: No environment of function f could be started: failed to initialise it.: no inodes left"},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, Config{}, func(h *host) { h.initTime = time.Second; h.initErr = c.err })
			v := published("f", "1")
			h.Provision(v, 3)
			h.is(v, "0/3 used 0")
			time.Sleep(1500 * time.Millisecond)
			h.is(v, "0/3 used 0 "+c.want)
			time.Sleep(time.Minute)
			h.is(v, "0/3 used 0 "+c.want)
			if built, _ := h.count(); built < 9 || built > 18 {
				t.Errorf("%d built in a minute", built)
			}
			h.mu.Lock()
			h.initErr = nil
			h.mu.Unlock()
			time.Sleep(2 * time.Minute)
			h.is(v, "3/3 used 0")
			h.close()
		})
	}
}

// Less provisioned ends idle ones now and busy ones when they are done; requests in
// flight are finished.
func TestProvisionedReduced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{}, func(h *host) { h.runTime = time.Second })
		v := published("f", "1")
		h.Provision(v, 4)
		time.Sleep(time.Second)
		var wg sync.WaitGroup
		wg.Go(func() {
			if names, errs := h.together(2, v); len(names) != 2 {
				t.Error(names, errs)
			}
		})
		time.Sleep(time.Millisecond)
		h.Provision(v, 1)
		time.Sleep(time.Millisecond)
		h.is(v, "1/1 used 2")
		wg.Wait()
		time.Sleep(time.Millisecond)
		h.is(v, "1/1 used 0")
		h.Provision(v, 0)
		time.Sleep(time.Millisecond)
		h.is(v, "0/0 used 0")
		if _, living := h.count(); living != 0 {
			t.Errorf("%d living", living)
		}
		// While they start, too.
		h.Provision(v, 4)
		time.Sleep(50 * time.Millisecond)
		h.Provision(v, 0)
		time.Sleep(time.Second)
		if _, living := h.count(); living != 0 {
			t.Errorf("%d living", living)
		}
		h.Provision(v, 2)
		time.Sleep(time.Second)
		h.Retire(v.Account, v.Region, v.Function, "") // the function is deleted
		time.Sleep(time.Second)
		h.is(v, "0/0 used 0")
		h.close()
	})
}

// For memory, those on demand go first, and provisioned ones never. Where there is
// none for them, they say so and others go on.
func TestProvisionedMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{MemoryBudget: 4 * floorMemory, WaitLimit: 5 * time.Second}, func(h *host) { h.memory = floorMemory })
		other, v := version("g", "1"), published("f", "1")
		if names, errs := h.together(3, other); len(names) != 3 {
			t.Fatal(errs)
		}
		synctest.Wait()
		h.Provision(v, 3)
		time.Sleep(2 * time.Second)
		h.is(v, "3/3 used 0") // two of the others made way
		for range 3 {
			h.must(other)
			h.must(version("h", "1")) // these make way for each other
			synctest.Wait()
		}
		h.is(v, "3/3 used 0")
		h.Provision(v, 6)
		time.Sleep(2 * time.Second)
		h.is(v, "4/6 used 0")
		time.Sleep(10 * time.Second)
		h.is(v, "4/6 used 0 No memory for another environment: 256 MiB are held of a budget of 256 MiB.")
		if _, err := h.invoke(t.Context(), other); lambdad.ErrorCode(err) != "TooManyRequestsException" {
			t.Errorf("%v", err)
		}
		h.Provision(v, 1)
		time.Sleep(time.Second)
		h.is(v, "1/1 used 0")
		h.must(other)
		h.close()
	})
}

// Starts for those who wait and starts ahead take turns, so that neither stops the
// other.
func TestProvisionedTakesTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{Starts: 2}, func(h *host) { h.initCPU = 1; h.runTime = time.Hour })
		ahead, waits := published("f", "1"), version("g", "1")
		go h.together(20, waits)
		synctest.Wait()
		h.Provision(ahead, 20)
		time.Sleep(1050 * time.Millisecond)
		kinds := h.kinds()
		if p, o := strings.Count(kinds, "p"), strings.Count(kinds, "o"); p < 9 || o < 9 {
			t.Errorf("started %s", kinds)
		}
		time.Sleep(10 * time.Second)
		h.is(ahead, "20/20 used 0")
		time.Sleep(time.Hour)
		h.close()
	})
}

// A meter counts units of concurrency.
type meter struct {
	mu       sync.Mutex
	answered int
	released int
}

func (m *meter) Answered() { m.mu.Lock(); m.answered++; m.mu.Unlock() }
func (m *meter) Release(answered bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.released++
	if answered {
		m.answered--
	}
}

func (m *meter) is(t *testing.T, answered, released int) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.answered != answered || m.released != released {
		t.Errorf("%d answered and held, %d released; want %d and %d", m.answered, m.released, answered, released)
	}
}

// A unit is given back once, when the environment is free and not before, however
// the invocation ends.
func TestUnits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &meter{}
		h := newHost(t, Config{}, func(h *host) { h.unit = m; h.runTime = time.Second; h.afterTime = time.Second })
		v := version("f", "1")
		h.must(v)
		m.is(t, 1, 0) // extensions at work
		time.Sleep(time.Second + time.Millisecond)
		m.is(t, 0, 1)

		// The caller goes: the invocation goes on and keeps the unit.
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if _, err := h.invoke(ctx, v); err == nil {
			t.Error("no error")
		}
		cancel()
		m.is(t, 0, 1)
		time.Sleep(2 * time.Second)
		m.is(t, 0, 2)

		// The environment dies after the answer.
		h.must(v)
		m.is(t, 1, 2)
		h.env(0).die(errors.New("crashed"))
		m.is(t, 0, 3)
		time.Sleep(2 * time.Second)
		m.is(t, 0, 3)

		// It never comes to an environment.
		ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
		h.invoke(ctx, v)
		cancel()
		m.is(t, 0, 4)
		time.Sleep(time.Second)
		h.mu.Lock()
		h.buildErr = func(int) error { return errors.New("no disk") }
		h.mu.Unlock()
		if _, err := h.invoke(t.Context(), version("g", "1")); err == nil {
			t.Error("no error")
		}
		m.is(t, 0, 5)
		h.close()
		m.is(t, 0, 5)
	})
}
