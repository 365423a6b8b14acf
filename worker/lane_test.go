package worker

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A lane does what a slice does.
func TestLane(t *testing.T) {
	l := lane{place: func(i *instance) *place { return &i.inIdle }}
	var model []*instance
	all := make([]*instance, 20)
	for i := range all {
		all[i] = &instance{}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		x := all[r.IntN(len(all))]
		if r.IntN(2) == 0 {
			if l.push(x); !slices.Contains(model, x) {
				model = append(model, x)
			}
		} else {
			l.remove(x)
			model = remove(model, x)
		}
		var got, back []*instance
		for i := l.first; i != nil; i = l.next(i) {
			got = append(got, i)
		}
		for i := l.last; i != nil; i = i.inIdle.prev {
			back = append(back, i)
		}
		slices.Reverse(back)
		if !slices.Equal(got, model) || !slices.Equal(back, model) || l.n != len(model) {
			t.Fatalf("%d in the lane, %d forwards, %d backwards, want %d", l.n, len(got), len(back), len(model))
		}
	}
}

// What is idle for long is measured once more and put to rest once, and then not
// looked at until it was used; what is used now and then is not put to rest.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{IdleTimeout: time.Hour}, nil)
		v := version("f", "1")
		see := func() (looks, rests int) {
			e := h.env(0)
			e.mu.Lock()
			defer e.mu.Unlock()
			return e.looks, e.rests
		}
		h.must(v)
		for range 40 { // its pauses are too short
			time.Sleep(calmAfter / 2)
			h.must(v)
		}
		if looks, rests := see(); rests != 0 || looks < 3 {
			t.Errorf("in use for 20 seconds: measured %d times, put to rest %d times", looks, rests)
		}
		time.Sleep(calmAfter + 2*samplePeriod)
		looks, rests := see()
		if rests != 1 {
			t.Errorf("put to rest %d times", rests)
		}
		time.Sleep(time.Minute)
		if later, rests := see(); later != looks || rests != 1 {
			t.Errorf("at rest: measured %d times, put to rest %d times", later-looks, rests)
		}
		h.must(v)
		time.Sleep(calmAfter + 2*samplePeriod)
		if later, rests := see(); later <= looks || rests != 2 {
			t.Errorf("used again: measured %d times, put to rest %d times", later-looks, rests)
		}
		h.close()
	})
}

// A list of all environments asks none that is at rest, and where asking takes long it
// ends all the same, with what is known.
func TestList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{IdleTimeout: time.Hour}, func(h *host) { h.runTime = 2 * time.Minute })
		looks := func() (n int) {
			h.mu.Lock()
			defer h.mu.Unlock()
			for _, e := range h.built {
				e.mu.Lock()
				n += e.looks
				e.mu.Unlock()
			}
			return n
		}
		check := func(n int) {
			t.Helper()
			list := h.Environments()
			if len(list) != n {
				t.Errorf("%d listed of %d", len(list), n)
			}
			for _, s := range list {
				if s.Memory != h.memory || s.Processes != 3 {
					t.Errorf("%s uses %d bytes and %d processes", s.ID, s.Memory, s.Processes)
				}
			}
		}
		h.together(20, version("f", "1"))
		time.Sleep(calmAfter + 2*samplePeriod)
		before := looks()
		check(20)
		if n := looks() - before; n != 0 {
			t.Errorf("%d at rest were asked", n)
		}
		h.mu.Lock()
		h.lookTime = 300 * time.Millisecond
		h.mu.Unlock()
		done := make(chan struct{})
		go func() { defer close(done); h.together(20, version("f", "1")) }()
		time.Sleep(time.Minute)
		begin := time.Now()
		check(20)
		if d := time.Since(begin); d > looksLimit+h.lookTime {
			t.Errorf("the list took %v", d)
		}
		<-done
		h.close()
	})
}

// Whatever happens to thousands of environments, what is read of them in one step is
// what counting them one by one gives.
func TestAccounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{MemoryBudget: 700 * mb, IdleTimeout: 20 * time.Second}, nil)
		r := rand.New(rand.NewPCG(3, 4))
		for step := range 300 {
			v := version(fmt.Sprint("f", r.IntN(40)), "1")
			switch r.IntN(12) {
			case 0:
				h.Retire(v.Account, v.Region, v.Function, fmt.Sprint(r.IntN(2)))
			case 1:
				h.Provision(v, r.IntN(3))
			case 2:
				time.Sleep(time.Duration(r.IntN(5)) * time.Second)
			default:
				go h.invoke(t.Context(), v)
				time.Sleep(time.Duration(r.IntN(40)) * time.Millisecond)
			}
			h.checkAccounts(step)
		}
		for i := range 40 {
			h.Provision(version(fmt.Sprint("f", i), "1"), 0)
		}
		time.Sleep(time.Minute)
		h.close()
	})
}

func (h *host) checkAccounts(step int) {
	h.t.Helper()
	w := h.Local
	w.mu.Lock()
	defer w.mu.Unlock()
	var states [gone + 1]int
	var held, measured, freeing, idleHeld int64
	idlers := 0
	var before time.Time
	for i := w.all.first; i != nil; i = w.all.next(i) {
		states[i.state]++
		held += i.memory
		if i.measured {
			measured += i.memory
		}
		if i.state == ending {
			freeing += i.memory
		}
		if i.state == idle && !i.ahead {
			idlers++
			idleHeld += i.memory
		}
		if i.inIdle.in != (i.state == idle && !i.ahead) || i.inCalm.in && i.state != idle || i.inStarts.in != (i.state == starting) ||
			i.inLooked.in && i.state >= ending || i.state == busy && i.usage != nil && !i.inLooked.in {
			h.t.Fatalf("step %d: state %d, in lanes: %+v", step, i.state, i)
		}
		if i.since.Before(before) {
			h.t.Fatalf("step %d: not by their start", step)
		}
		before = i.since
	}
	before = time.Time{}
	for i := w.idle.first; i != nil; i = w.idle.next(i) {
		if i.idleSince.Before(before) {
			h.t.Fatalf("step %d: idle ones not by the time they became idle", step)
		}
		before = i.idleSince
	}
	states[gone] = w.states[gone]
	if states != w.states || held != w.held || measured != w.measured || freeing != w.freeing || idlers != w.idle.n || idleHeld != w.idleHeld {
		h.t.Fatalf("step %d: states %v held %d measured %d freeing %d idle %d of %d, counted %v %d %d %d %d of %d",
			step, w.states, w.held, w.measured, w.freeing, w.idle.n, w.idleHeld, states, held, measured, freeing, idlers, idleHeld)
	}
}
