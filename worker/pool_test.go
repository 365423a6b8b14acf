package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/environment"
	"github.com/lambdad/lambdad/sandbox"
)

// A host is a worker over fake environments, inside a synctest bubble.
type host struct {
	*Local
	t    *testing.T
	stop context.CancelFunc
	ran  chan struct{}

	mu        sync.Mutex
	building  int // builds under way, and the most there were
	maxBuilds int
	built     []*fakeEnv
	ended     []string // names, in the order of shutdown
	released  int

	// What fakes do; set before use.
	buildTime time.Duration
	initTime  time.Duration
	initCPU   float64 // cores used while initialising
	runTime   time.Duration
	afterTime time.Duration // extensions, after the answer
	endTime   time.Duration
	memory    int64
	lookTime  time.Duration     // that a sandbox takes to say what it uses
	buildErr  func(n int) error // of the nth build, from 1
	initErr   error             // of every initialisation
	unit      Unit              // of every invocation
}

// A fakeEnv is an environment whose only work is to take time.
type fakeEnv struct {
	h     *host
	inst  *instance
	name  string // e1, e2, … in the order of builds
	birth time.Time

	mu      sync.Mutex
	busy    bool
	dead    bool
	invoked []string
	memory  int64
	looks   int           // times its use was asked for
	rests   int           // times it was put to rest
	free    chan struct{} // tells an owner waiting for the end of an invocation
	done    chan struct{}
}

func newHost(t *testing.T, cfg Config, set func(*host)) *host {
	t.Helper()
	h := &host{t: t, ran: make(chan struct{}), initTime: 100 * time.Millisecond, runTime: 10 * time.Millisecond, memory: 10 << 20}
	if set != nil {
		set(h)
	}
	if cfg.MemoryBudget == 0 {
		cfg.MemoryBudget = 100 << 30
	}
	if cfg.Starts == 0 {
		cfg.Starts = 4
	}
	h.Local = newLocal(cfg)
	h.build = h.buildFake
	var ctx context.Context
	ctx, h.stop = context.WithCancel(t.Context())
	go func() { defer close(h.ran); h.Run(ctx) }()
	return h
}

// close drains the worker and checks that nothing is left.
func (h *host) close() {
	h.t.Helper()
	if err := h.Drain(h.t.Context()); err != nil {
		h.t.Errorf("drain: %v", err)
	}
	h.stop()
	<-h.ran
	h.check()
}

func (h *host) check() {
	h.t.Helper()
	synctest.Wait() // fakes that were ended in their initialisation go, too
	h.Local.mu.Lock()
	defer h.Local.mu.Unlock()
	if h.all.n != 0 || len(h.pools) != 0 || h.waiting != 0 || h.held != 0 || h.freeing != 0 || h.slots != h.cfg.Starts {
		h.t.Errorf("left: %d instances, %d pools, %d waiting, %d bytes held, %d freeing, %d of %d slots",
			h.all.n, len(h.pools), h.waiting, h.held, h.freeing, h.slots, h.cfg.Starts)
	}
	if h.measured != 0 || h.states[starting]+h.states[idle]+h.states[busy]+h.states[ending] != 0 ||
		h.idle.first != nil || h.idle.last != nil || h.idle.n+h.calm.n+h.looked.n != 0 {
		h.t.Errorf("left: %d bytes measured, states %v, lanes of %d, %d and %d", h.measured, h.states, h.idle.n, h.calm.n, h.looked.n)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.released != len(h.built) || h.building != 0 {
		h.t.Errorf("%d environments built, %d released, %d building", len(h.built), h.released, h.building)
	}
}

func (h *host) buildFake(ctx context.Context, inst *instance) error {
	h.mu.Lock()
	h.building++
	h.maxBuilds = max(h.maxBuilds, h.building)
	n := len(h.built) + 1
	e := &fakeEnv{h: h, inst: inst, name: fmt.Sprintf("e%d", n), free: make(chan struct{}, 1), done: make(chan struct{}), memory: h.memory}
	var err error
	if h.buildErr != nil {
		err = h.buildErr(n)
	}
	h.built = append(h.built, e)
	h.mu.Unlock()
	select {
	case <-time.After(h.buildTime):
	case <-ctx.Done():
		err = ctx.Err()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.building--
	if err != nil {
		h.released++
		return err
	}
	e.birth = time.Now()
	h.attach(inst, e.usage, e.rest, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.released++
	})
	go func() {
		h.mu.Lock()
		h.building++
		h.maxBuilds = max(h.maxBuilds, h.building)
		h.mu.Unlock()
		select {
		case <-time.After(h.initTime):
		case <-e.done:
		}
		h.mu.Lock()
		h.building--
		failed := h.initErr
		h.mu.Unlock()
		if failed != nil {
			e.die(failed)
		}
		if !e.isDead() {
			h.idled(inst, e)
		}
	}()
	h.began(inst, e)
	return nil
}

func (e *fakeEnv) usage() (sandbox.Usage, error) {
	e.h.mu.Lock()
	look := e.h.lookTime
	e.h.mu.Unlock()
	time.Sleep(look)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dead {
		return sandbox.Usage{}, sandbox.ErrDestroyed
	}
	e.looks++
	cpu := min(time.Since(e.birth), e.h.initTime)
	return sandbox.Usage{Memory: e.memory, Processes: 3, CPU: time.Duration(float64(cpu) * e.h.initCPU)}, nil
}

func (e *fakeEnv) rest() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rests++
}

func (e *fakeEnv) isDead() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.dead
}

func (e *fakeEnv) Invoke(ctx context.Context, inv *lambdad.Invocation) (*lambdad.Response, error) {
	e.mu.Lock()
	if e.dead {
		e.mu.Unlock()
		return nil, environment.ErrEnded
	}
	if e.busy {
		e.mu.Unlock()
		e.h.t.Errorf("%s was given two invocations at once", e.name)
		return nil, errors.New("busy")
	}
	e.busy = true
	e.invoked = append(e.invoked, inv.RequestID)
	e.mu.Unlock()
	answer := make(chan struct{})
	go func() { // the environment's own, whatever becomes of the caller
		time.Sleep(e.h.runTime)
		close(answer)
		time.Sleep(e.h.afterTime)
		e.mu.Lock()
		e.busy = false
		dead := e.dead
		e.mu.Unlock()
		select {
		case e.free <- struct{}{}:
		default:
		}
		if !dead {
			e.h.idled(e.inst, e)
		}
	}()
	select {
	case <-answer:
		return &lambdad.Response{Payload: []byte(e.name)}, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (e *fakeEnv) Shutdown(context.Context) {
	e.h.mu.Lock()
	e.h.ended = append(e.h.ended, e.name)
	e.h.mu.Unlock()
	time.Sleep(e.h.endTime)
	e.die(nil)
}

func (e *fakeEnv) Kill() { e.die(errors.New("killed")) }

// die ends it at once, as a crash does.
func (e *fakeEnv) die(err error) {
	e.mu.Lock()
	was := e.dead
	e.dead = true
	e.mu.Unlock()
	if !was {
		e.h.Local.ended(e.inst, err)
		close(e.done)
	}
}

func (e *fakeEnv) Status() environment.Status {
	return environment.Status{ID: e.name, Age: time.Since(e.birth)}
}

func version(name, generation string) *lambdad.Version {
	return &lambdad.Version{Account: "123456789012", Region: "eu-west-1", Function: name, Number: latest, Generation: generation}
}

func (h *host) invoke(ctx context.Context, v *lambdad.Version) (string, error) {
	resp, err := h.Invoke(ctx, &lambdad.Invocation{Version: v}, h.unit)
	if err != nil {
		return "", err
	}
	return string(resp.Payload), nil
}

func (h *host) must(v *lambdad.Version) string {
	h.t.Helper()
	name, err := h.invoke(h.t.Context(), v)
	if err != nil {
		h.t.Errorf("invoke: %v", err)
	}
	return name
}

// together invokes n times at once and returns who answered, or the errors.
func (h *host) together(n int, v *lambdad.Version) (names []string, errs []error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			name, err := h.invoke(h.t.Context(), v)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
			} else {
				names = append(names, name)
			}
		})
	}
	wg.Wait()
	return names, errs
}

func (h *host) count() (built, living int) {
	h.Local.mu.Lock()
	defer h.Local.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.built), h.all.n
}

func (h *host) env(i int) *fakeEnv {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.built[i]
}

func (h *host) endedNow() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ended)
}

func TestMostRecentlyUsedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{}, nil)
		v := version("f", "1")
		if names, errs := h.together(3, v); len(names) != 3 || errs != nil {
			t.Fatal(names, errs)
		}
		synctest.Wait()
		last := h.must(v)
		time.Sleep(time.Millisecond)
		for range 5 {
			if got := h.must(v); got != last {
				t.Fatalf("%s answered, %s was the last", got, last)
			}
			synctest.Wait()
		}
		if built, _ := h.count(); built != 3 {
			t.Errorf("%d built", built)
		}
		h.close()
	})
}

func TestTwoHundredFirstInvocations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{Starts: 4}, func(h *host) { h.initCPU = 1; h.runTime = time.Hour })
		names, errs := h.together(200, version("f", "1"))
		if errs != nil {
			t.Fatal(errs)
		}
		slices.Sort(names)
		if n := len(slices.Compact(names)); n != 200 {
			t.Errorf("%d environments for 200 invocations of an hour", n)
		}
		if h.maxBuilds != 4 {
			t.Errorf("%d started at once through a gate of 4", h.maxBuilds)
		}
		h.close()
	})
}

func TestShortInvocationsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{Starts: 4}, func(h *host) { h.runTime = time.Millisecond })
		if _, errs := h.together(200, version("f", "1")); errs != nil {
			t.Fatal(errs)
		}
		if built, _ := h.count(); built > 8 {
			t.Errorf("%d environments built where the first four do", built)
		}
		h.close()
	})
}

func TestWaiterTakesWhatFreesUpFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{}, func(h *host) { h.initTime = time.Second; h.runTime = 1200 * time.Millisecond })
		v := version("f", "1")
		first := make(chan string)
		go func() { first <- h.must(v) }()
		time.Sleep(1100 * time.Millisecond) // the first runs since 100 ms
		begin := time.Now()
		second := h.must(v) // could have e2 in 1 s, e1 in 1.1 s
		if second != "e2" || time.Since(begin) != 2200*time.Millisecond {
			t.Errorf("%s after %v", second, time.Since(begin))
		}
		<-first
		synctest.Wait()

		// Both are warm and in use; the third gets the one that is free in 10 ms,
		// and what was started for it becomes a spare.
		go func() { first <- h.must(v) }()
		go func() { first <- h.must(v) }()
		time.Sleep(1190 * time.Millisecond)
		begin = time.Now()
		third := h.must(v)
		if d := time.Since(begin); third == "e3" || d != 1210*time.Millisecond {
			t.Errorf("%s after %v", third, d)
		}
		<-first
		<-first
		time.Sleep(time.Second)
		h.Local.mu.Lock()
		spares := len(h.pools[keyOf(v)].idle)
		h.Local.mu.Unlock()
		if spares != 3 {
			t.Errorf("%d idle, want the two and the spare", spares)
		}
		h.close()
	})
}

// The runtime asks again a moment after its answer: who comes in between waits
// for that and not for a cold start. Extensions that take longer make a new one.
func TestRequestRightAfterTheAnswer(t *testing.T) {
	for _, c := range []struct {
		after time.Duration
		built int
		took  time.Duration
	}{
		{moment - time.Millisecond, 1, moment - time.Millisecond + 10*time.Millisecond},
		{time.Second, 2, moment + 100*time.Millisecond + 10*time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, Config{}, func(h *host) { h.afterTime = c.after })
			v := version("f", "1")
			h.must(v)
			begin := time.Now()
			h.must(v)
			if built, _ := h.count(); built != c.built || time.Since(begin) != c.took {
				t.Errorf("extensions of %v: %d built, answered after %v", c.after, built, time.Since(begin))
			}
			// Two requests and one environment about to be free: one start.
			time.Sleep(10 * time.Second)
			h.Retire(v.Account, v.Region, v.Function, "")
			synctest.Wait()
			h.must(v)
			before, _ := h.count()
			h.together(2, v)
			if built, _ := h.count(); built != before+c.built {
				t.Errorf("extensions of %v: %d started for two requests", c.after, built-before)
			}
			h.close()
		})
	}
}

func TestNoMoreStartsThanWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{Starts: 100}, func(h *host) { h.initTime = time.Second })
		ctx, cancel := context.WithCancel(t.Context())
		v := version("f", "1")
		errs := make(chan error)
		for range 3 {
			go func() { _, err := h.invoke(ctx, v); errs <- err }()
		}
		synctest.Wait()
		cancel()
		for range 3 {
			if err := <-errs; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		// Three starts are under way and nobody waits: three more callers need none.
		if _, errs := h.together(3, v); errs != nil {
			t.Error(errs)
		}
		if built, _ := h.count(); built != 3 {
			t.Errorf("%d built", built)
		}
		h.close()
	})
}

func TestCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{}, func(h *host) { h.runTime = 10 * time.Second })
		v := version("f", "1")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := h.invoke(ctx, v); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		// The invocation goes on: the next request must not get that environment
		// before it is done.
		begin := time.Now()
		if got := h.must(v); got != "e2" || time.Since(begin) != 10*time.Second+h.initTime {
			t.Errorf("%s after %v", got, time.Since(begin))
		}
		synctest.Wait()
		if got := len(h.env(0).invoked); got != 1 {
			t.Errorf("the first environment had %d invocations", got)
		}
		h.close()
	})
}

// A caller that leaves at the moment it is given an environment gives it back.
func TestCallerLeavesWithEnvironment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{}, nil)
		v := version("f", "1")
		h.must(v)
		synctest.Wait()
		h.Local.mu.Lock()
		p := h.pools[keyOf(v)]
		inst := h.pop(p)
		wt := &waiter{ready: make(chan result, 1)}
		p.waiting = append(p.waiting, wt)
		h.waiting++
		h.free(inst)
		h.Local.mu.Unlock()
		h.abandon(p, wt)
		if got := h.must(v); got != "e1" {
			t.Errorf("%s answered", got)
		}
		h.close()
	})
}

func TestIdleRetirement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{IdleTimeout: time.Minute}, func(h *host) { h.runTime = time.Second })
		v := version("f", "1")
		h.together(2, v)
		synctest.Wait()
		begin := time.Now()
		keep := h.must(v) // one is used again, the other idles on
		for built, living := h.count(); living > 1; built, living = h.count() {
			time.Sleep(time.Millisecond)
			if built != 2 || time.Since(begin) > 2*time.Minute {
				t.Fatal("the other one stays")
			}
		}
		if d := time.Since(begin); d < time.Minute || d > time.Minute+10*time.Millisecond {
			t.Errorf("retired after %v", d)
		}
		time.Sleep(500 * time.Millisecond)
		if got := h.must(v); got != keep {
			t.Errorf("%s answered, %s was kept", got, keep)
		}
		synctest.Wait()
		time.Sleep(time.Minute + time.Millisecond)
		synctest.Wait()
		if _, living := h.count(); living != 0 {
			t.Errorf("%d living a minute after the last use", living)
		}
		h.check()
		h.close()
	})
}

func TestRetire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{}, func(h *host) { h.runTime = time.Second })
		old, now := version("f", "1"), version("f", "2")
		published, other := version("f", "9"), version("g", "1")
		published.Number = "1"
		for _, v := range []*lambdad.Version{old, published, other} { // e1, e2, e3
			h.must(v)
		}
		synctest.Wait()
		busy := make(chan string)
		go func() { busy <- h.must(old) }()
		go func() { busy <- h.must(old) }() // e4 is started for it
		synctest.Wait()
		h.Retire("123456789012", "eu-west-1", "f", "2")
		if got := h.must(now); got != "e5" {
			t.Errorf("%s answered for the new generation", got)
		}
		if a, b := <-busy, <-busy; a == "" || b == "" {
			t.Error("an invocation in flight was lost")
		}
		time.Sleep(time.Second)
		// A request resolved before the change arrives after it: it is served,
		// and by nothing that stays.
		if got := h.must(old); got != "e6" {
			t.Errorf("%s answered the late one", got)
		}
		synctest.Wait()
		ended := h.endedNow()
		slices.Sort(ended)
		if want := []string{"e1", "e4", "e6"}; !slices.Equal(ended, want) {
			t.Errorf("ended %v, want %v", ended, want)
		}
		if a, b := h.must(published), h.must(other); a != "e2" || b != "e3" {
			t.Errorf("%s and %s answered", a, b)
		}
		synctest.Wait()

		// The function is deleted: nothing of it stays.
		go func() { busy <- h.must(now) }()
		synctest.Wait()
		h.Retire("123456789012", "eu-west-1", "f", "")
		<-busy
		synctest.Wait()
		if _, living := h.count(); living != 1 {
			t.Errorf("%d living, want that of the other function", living)
		}
		if len(h.functions) != 1 {
			t.Errorf("%d functions remembered", len(h.functions))
		}
		h.close()
	})
}

const mb = 1 << 20

// TestRetireVersion: a published version is deleted, and nothing else ends.
func TestRetireVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{}, func(h *host) { h.runTime = time.Second })
		newest, one, two := version("f", "1"), version("f", "8"), version("f", "9")
		one.Number, two.Number = "1", "2"
		for _, v := range []*lambdad.Version{newest, one, two} { // e1, e2, e3
			h.must(v)
		}
		busy := make(chan string)
		go func() { busy <- h.must(one) }()
		go func() { busy <- h.must(one) }() // e4
		synctest.Wait()
		h.RetireVersion("123456789012", "eu-west-1", "f", "8")
		h.RetireVersion("123456789012", "eu-west-1", "unknown", "8")
		if a, b := <-busy, <-busy; a == "" || b == "" {
			t.Error("an invocation in flight was lost")
		}
		synctest.Wait()
		ended := h.endedNow()
		slices.Sort(ended)
		if want := []string{"e2", "e4"}; !slices.Equal(ended, want) {
			t.Errorf("ended %v, want %v", ended, want)
		}
		if a, b := h.must(newest), h.must(two); a != "e1" || b != "e3" {
			t.Errorf("%s and %s answered", a, b)
		}
		h.close()
	})
}

func TestMemoryAdmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Room for three measured environments and one reserve.
		h := newHost(t, Config{MemoryBudget: 3*10*mb + floorMemory, Starts: 1, IdleTimeout: time.Hour}, func(h *host) { h.endTime = time.Second })
		var v []*lambdad.Version
		for i := range 6 {
			v = append(v, version(fmt.Sprintf("f%d", i), "1"))
		}
		for i := range 4 { // e1..e4
			h.must(v[i])
			time.Sleep(2 * time.Second)
		}
		if ended := h.endedNow(); len(ended) != 0 {
			t.Fatalf("ended %v where all fit", ended)
		}
		h.must(v[0]) // now e2 is idle longest
		time.Sleep(2 * time.Second)
		begin := time.Now()
		if got := h.must(v[4]); got != "e5" {
			t.Error(got)
		}
		if d := time.Since(begin); d != h.endTime+h.initTime+h.runTime {
			t.Errorf("answered after %v: it must wait until the retired one is gone, and no longer", d)
		}
		h.must(v[5])
		if ended := h.endedNow(); !slices.Equal(ended, []string{"e2", "e3"}) {
			t.Errorf("ended %v", ended)
		}
		h.close()
	})
}

// A version that was seen to hold more than the floor needs that much room.
func TestMemoryNeedIsLearned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{MemoryBudget: 900 * mb, Starts: 8}, func(h *host) { h.memory = 400 * mb; h.runTime = 30 * time.Second })
		v := version("f", "1")
		h.must(v)
		time.Sleep(2 * time.Second)
		_, errs := h.together(4, v) // two fit, two are throttled
		if len(errs) != 2 {
			t.Fatalf("%d errors: %v", len(errs), errs)
		}
		if built, _ := h.count(); built != 2 {
			t.Errorf("%d built", built)
		}
		h.close()
	})
}

func TestThrottleAfterBoundedWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{MemoryBudget: 10*mb + floorMemory, WaitLimit: 10 * time.Second}, func(h *host) { h.runTime = time.Minute; h.memory = 40 * mb })
		v := version("f", "1")
		done := make(chan string)
		go func() { done <- h.must(v) }()
		time.Sleep(5 * time.Second)
		begin := time.Now()
		_, err := h.invoke(t.Context(), v)
		var e *lambdad.Error
		if !errors.As(err, &e) || e.Code != "TooManyRequestsException" || e.Reason != "ConcurrentInvocationLimitExceeded" {
			t.Fatal(err)
		}
		if d := time.Since(begin); d != 10*time.Second {
			t.Errorf("throttled after %v", d)
		}
		// One that comes nine seconds before the first is done gets it.
		time.Sleep(time.Minute - 15*time.Second - 9*time.Second + h.initTime)
		if _, err := h.invoke(t.Context(), v); err != nil {
			t.Error(err)
		}
		if got := <-done; got != "e1" {
			t.Error(got)
		}
		h.close()
	})
}

// Environments that grow while they run push idle ones out.
func TestGrowthRetiresIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{MemoryBudget: 500 * mb}, nil)
		a, b := version("a", "1"), version("b", "1")
		h.must(a)
		time.Sleep(2 * time.Second)
		h.runTime = time.Minute
		done := make(chan string)
		go func() { done <- h.must(b) }()
		time.Sleep(time.Second)
		grown := h.env(1)
		grown.mu.Lock()
		grown.memory = 495 * mb
		grown.mu.Unlock()
		time.Sleep(busyPeriod + samplePeriod)
		if ended := h.endedNow(); !slices.Equal(ended, []string{"e1"}) {
			t.Errorf("ended %v", ended)
		}
		<-done
		h.close()
	})
}

func TestSmallHostStillRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{MemoryBudget: 1 * mb}, nil)
		h.must(version("a", "1"))
		h.must(version("b", "1")) // a makes way
		if ended := h.endedNow(); !slices.Equal(ended, []string{"e1"}) {
			t.Errorf("ended %v", ended)
		}
		h.close()
	})
}

func TestStartFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("no loop device")
		h := newHost(t, Config{}, func(h *host) {
			h.buildTime = time.Millisecond
			h.buildErr = func(n int) error {
				if n%3 == 0 {
					return failed(version("f", "1"), "create its sandbox", cause)
				}
				return nil
			}
			h.runTime = time.Minute
		})
		names, errs := h.together(30, version("f", "1"))
		built, living := h.count()
		if len(names)+len(errs) != 30 || len(errs) != built/3 || living != built-len(errs) {
			t.Errorf("%d answers, %d errors, %d built, %d living", len(names), len(errs), built, living)
		}
		for _, err := range errs {
			var e *lambdad.Error
			if !errors.As(err, &e) || e.Code != "ServiceException" || !errors.Is(err, cause) {
				t.Error(err)
			}
		}
		h.close()
	})
}

// Environments that die as soon as they exist cost one start for each request.
func TestCrashStormDoesNotSpin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{}, func(h *host) { h.initTime = time.Hour })
		calm := make(chan struct{})
		go func() {
			for n := 0; ; {
				select {
				case <-calm:
					return
				case <-time.After(time.Millisecond):
				}
				h.mu.Lock()
				storm := slices.Clone(h.built[n:])
				h.mu.Unlock()
				n += len(storm)
				for _, e := range storm {
					e.die(errors.New("crashed"))
				}
			}
		}()
		_, errs := h.together(10, version("f", "1"))
		if len(errs) != 10 || lambdad.ErrorCode(errs[0]) != "ServiceException" {
			t.Errorf("errors: %v", errs)
		}
		time.Sleep(time.Minute)
		if built, living := h.count(); built != 10 || living != 0 {
			t.Errorf("%d built, %d living", built, living)
		}
		close(calm)
		h.close()
	})
}

func TestDeathWhileIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{}, nil)
		v := version("f", "1")
		h.must(v)
		synctest.Wait()
		h.env(0).die(errors.New("killed by the kernel"))
		if built, living := h.count(); built != 1 || living != 0 {
			t.Errorf("%d built, %d living", built, living)
		}
		if got := h.must(v); got != "e2" {
			t.Errorf("%s answered", got)
		}
		synctest.Wait()

		// It dies between being claimed and being given the event.
		e := h.env(1)
		e.mu.Lock()
		e.dead = true
		e.mu.Unlock()
		if got := h.must(v); got != "e3" {
			t.Errorf("%s answered", got)
		}
		h.Local.ended(e.inst, nil)
		close(e.done)
		h.close()
	})
}

// A start that waits for anything but the processor does not hold the gate.
func TestSlowInitYieldsGate(t *testing.T) {
	for _, c := range []struct {
		cpu  float64
		want time.Duration
	}{
		{0, slotPeriod + 100*time.Millisecond},
		{0.5, 10*time.Second + 100*time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, Config{Starts: 1}, func(h *host) { h.initTime = 10 * time.Second; h.initCPU = c.cpu; h.runTime = 0 })
			hanging := make(chan string)
			go func() { hanging <- h.must(version("hangs", "1")) }()
			synctest.Wait()
			begin := time.Now()
			v := version("f", "1")
			ready := make(chan time.Duration)
			go func() { h.must(v); ready <- time.Since(begin) }()
			if got := <-ready; got < c.want-100*time.Millisecond+10*time.Second || got > c.want+10*time.Second {
				t.Errorf("cpu %v: ready after %v, want %v behind the gate and 10 s of init", c.cpu, got, c.want)
			}
			<-hanging
			h.close()
		})
	}
}

// Functions take turns at the gate.
func TestGateIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{Starts: 1}, func(h *host) { h.runTime = time.Hour; h.initCPU = 1 })
		for range 50 {
			go h.invoke(t.Context(), version("crowd", "1"))
		}
		synctest.Wait()
		begin := time.Now()
		h.must(version("single", "1"))
		if d := time.Since(begin) - h.runTime; d > 3*h.initTime {
			t.Errorf("started after %v", d)
		}
		h.close()
	})
}

func TestPlainTierQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{WaitLimit: time.Second}, func(h *host) { h.runTime = time.Second })
		h.plain = true
		v, next := version("f", "1"), version("f", "2")
		begin := time.Now()
		if names, errs := h.together(5, v); len(names) != 5 || errs != nil {
			t.Fatal(names, errs)
		}
		if built, _ := h.count(); built != 1 || time.Since(begin) != 5*time.Second+h.initTime {
			t.Errorf("%d built, done after %v", built, time.Since(begin))
		}
		// Another version of the function takes its place, another function not.
		done := make(chan string)
		go func() { done <- h.must(v) }()
		synctest.Wait()
		if got := h.must(version("g", "1")); got != "e2" {
			t.Error(got)
		}
		if got := h.must(next); got != "e3" {
			t.Error(got)
		}
		<-done
		if got := h.must(v); got != "e4" {
			t.Error(got)
		}
		synctest.Wait()
		if _, living := h.count(); living != 2 {
			t.Errorf("%d living", living)
		}
		h.close()
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{Starts: 1}, func(h *host) {
			h.runTime = 2 * time.Second
			h.afterTime = time.Second
			h.endTime = 500 * time.Millisecond
			h.initCPU = 1
		})
		h.together(3, version("idle", "1"))
		time.Sleep(2 * time.Second)
		done := make(chan string)
		for range 3 { // one starting, two behind the gate
			go func() { done <- h.must(version("f", "1")) }()
		}
		synctest.Wait()
		begin := time.Now()
		drained := make(chan error)
		go func() { drained <- h.Drain(t.Context()) }()
		synctest.Wait()
		if _, err := h.invoke(t.Context(), version("idle", "1")); lambdad.ErrorCode(err) != "ServiceException" {
			t.Errorf("accepted while draining: %v", err)
		}
		for range 3 {
			if <-done == "" {
				t.Error("an accepted invocation was lost")
			}
		}
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d != 3*h.initTime+h.runTime+h.afterTime+h.endTime {
			t.Errorf("drained after %v", d)
		}
		if built, living := h.count(); built != len(h.endedNow()) || living != 0 {
			t.Errorf("%d built, %d living, shut down %v", built, living, h.endedNow())
		}
		h.close()
	})
}

func TestDrainDeadlineKills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{Starts: 3}, func(h *host) { h.runTime = time.Hour; h.endTime = time.Minute })
		h.buildErr = func(n int) error {
			if n == 2 {
				h.buildTime = time.Hour // the second hangs in its build
			}
			return nil
		}
		errs := make(chan error, 10)
		for range 10 {
			go func() { _, err := h.invoke(t.Context(), version("f", "1")); errs <- err }()
		}
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		begin := time.Now()
		if err := h.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("drain: %v", err)
		}
		if d := time.Since(begin); d != 5*time.Second {
			t.Errorf("gave up after %v", d)
		}
		h.check()
		time.Sleep(2 * time.Hour) // the fakes' own invocations end
		for range 10 {
			<-errs
		}
		h.stop()
		<-h.ran
	})
}

// Many callers over a few functions, with environments dying and being retired
// all the time: everyone gets an answer or a documented error, nothing is left.
func TestChurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{MemoryBudget: 1 << 30, WaitLimit: 2 * time.Second, IdleTimeout: time.Second}, func(h *host) {
			h.afterTime = 3 * time.Millisecond
			h.endTime = 20 * time.Millisecond
			h.buildErr = func(n int) error {
				if n%7 == 0 {
					return failed(version("f", "1"), "create its sandbox", errors.New("n%7"))
				}
				return nil
			}
		})
		stop := make(chan struct{})
		var chaos sync.WaitGroup
		chaos.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(7 * time.Millisecond):
				}
				h.mu.Lock()
				e := h.built[(i*31)%max(1, len(h.built)):]
				h.mu.Unlock()
				if len(e) > 0 && e[0].birth != (time.Time{}) {
					e[0].die(errors.New("chaos"))
				}
				h.Retire("123456789012", "eu-west-1", fmt.Sprintf("f%d", i%5), fmt.Sprint(i/50))
			}
		})
		var callers sync.WaitGroup
		for c := range 50 {
			callers.Go(func() {
				for i := range 40 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+(c*i)%200)*time.Millisecond)
					_, err := h.invoke(ctx, version(fmt.Sprintf("f%d", (c+i)%5), fmt.Sprint(i/20)))
					cancel()
					switch code := lambdad.ErrorCode(err); {
					case err == nil, code == "ServiceException", code == "TooManyRequestsException", errors.Is(err, context.DeadlineExceeded), errors.Is(err, environment.ErrEnded):
					default:
						t.Errorf("caller got %v", err)
					}
				}
			})
		}
		callers.Wait()
		close(stop)
		chaos.Wait()
		h.close()
	})
}
