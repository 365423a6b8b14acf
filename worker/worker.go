// Package worker owns the environments of this node: it runs one invocation in a
// warm environment or starts one for it.
//
// Environments live in pools, one for each snapshot (generation) of a version. A
// request takes the idle environment that was used last. When none is idle it
// waits, and one more environment is started; whichever comes first serves it, a
// new environment or one that became free (provisioned ones: provisioned.go). A start outlives the request that
// caused it: what nobody waits for any more becomes a spare. So there are never
// more starts under way than requests waiting, and one environment for each
// request that runs.
//
// Starts pass a gate, because two hundred interpreters starting on two cores all
// miss their limit, and they are admitted by memory: what environments really
// hold, measured, plus a reserve for those starting, must stay within the budget.
// So must file descriptors and processes within what the host allows (room.go).
// When one does not, idle environments are retired, longest idle first, never one in
// use and none that is provisioned; then requests wait a bounded time and are
// throttled with the reason. An environment is also retired
// when it has been idle for the idle timeout or its version has changed.
//
// An environment that became free is one that said so (OnIdle), not one whose
// invocation was answered: extensions may still be at work.
//
// One mutex, Local.mu, guards the pools and accounts. Nothing that blocks is done
// under it, and no method of an environment or a sandbox is called under it, so
// that it can be taken from their callbacks. Units of concurrency are given back
// under it: what they lock is taken after it. The only goroutines are one for each
// start until the environment is ready and one for each shutdown; Drain waits for
// all of them.
package worker

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/environment"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/telemetry"
)

const (
	latest = "$LATEST"

	// slotPeriod is how often a start that holds a place in the gate is looked
	// at. One that used less than a tenth of a core in it waits for something
	// else than the processor and lets the next one pass.
	slotPeriod = 500 * time.Millisecond
	// moment is how long a request waits for an environment whose runtime has
	// answered before another is started. The runtime asks for the next event
	// right after its answer; a client that sends one request after the other is
	// sometimes faster, and would get a cold start for it.
	moment = 5 * time.Millisecond
	// maxShutdowns is how many environments are shut down at once: each may wait
	// two seconds for its extensions, but all at once would need the processor
	// that makes them late.
	maxShutdowns = 64
	// handovers is how many environments that ended just before they were given
	// an invocation a request goes through before it fails.
	handovers = 3
	// looksLimit is how long a list of all environments may take to ask what they use.
	looksLimit = time.Second
	// killWait bounds the wait for environments that were killed.
	killWait = 10 * time.Second
)

// An env is what the worker needs of an environment: *environment.Environment,
// or a fake in tests.
type env interface {
	Invoke(context.Context, *lambdad.Invocation) (*lambdad.Response, error)
	Shutdown(context.Context)
	Kill()
	Status() environment.Status
}

// A Unit is one unit of concurrency that an invocation holds.
type Unit interface {
	// Answered is called at most once, before Release: the caller has its answer
	// and the environment is still at work.
	Answered()
	// Release is called exactly once: when the environment can take another
	// invocation or has ended, or when the invocation ended without having one.
	// answered repeats whether Answered was called.
	Release(answered bool)
}

type usageFunc = func() (sandbox.Usage, error)

// Local runs invocations in environments on this host.
type Local struct {
	cfg     Config
	log     *slog.Logger
	copying sync.Mutex // one environment writes to LogCopy at a time
	plain   bool       // one environment per function
	// tmpInMemory: every log begins by saying so.
	tmpInMemory bool
	// build makes the environment of an instance, of which it calls attach and
	// began; the environment calls idled and ended. When it fails nothing is left.
	build       func(context.Context, *instance) error
	hostMemory  func() (int64, error) // nil with a configured budget
	hostReserve int64

	ctx      context.Context // of starts; ends when Drain gives up
	cancel   context.CancelFunc
	counters counters
	drops    telemetry.Drops
	wake     chan struct{} // makes Run look sooner
	ends     chan struct{} // one for each shutdown under way
	work     sync.WaitGroup
	todo     []*instance // of sample, kept for its room

	mu        sync.Mutex
	pools     map[key]*pool
	functions map[functionKey]*function
	states    [gone + 1]int // instances by state; gone: all there ever were
	working   atomic.Int64  // states[busy], for who has not mu
	all       lane          // instances by their start
	idle      lane          // those that may be retired for their memory, by the time they became idle
	calm      lane          // idle ones that are not measured since and not at rest, by the same
	looked    lane          // those whose memory may change, by the time they were last looked at
	queue     []*pool       // those that want starts, taking turns
	ahead     []*pool       // those that miss provisioned environments, taking turns
	turn      bool          // of queue, else of ahead
	waiting   int           // requests
	slots     int           // free places in the gate
	held      int64         // bytes: the sum of memory of all instances
	measured  int64         // bytes: the part of held that is not only reserved
	freeing   int64         // bytes: the part of held that ends
	idleHeld  int64         // bytes: the part of held of those in idle
	budget    int64
	short     bool         // the first in queue waits for memory or other room
	lack      *room        // that was short last; nil: memory
	moved     time.Time    // when room was last found or made
	vain      atomic.Int64 // bytes: starts that need as much are refused; 0: none is. Written under mu
	rooms     []*room
	calmNow   bool      // idle environments are to be put to rest before their time
	roomsRead time.Time // zero: what was read holds no more
	launched  int64     // starts since then
	draining  bool
	killed    bool
	drained   chan struct{} // closed when draining and nothing is left
}

// NewLocal makes a worker. Run does its background work; Drain ends it.
func NewLocal(cfg Config) *Local {
	w := newLocal(cfg)
	w.rooms = hostRooms()
	w.build = w.create
	return w
}

// newLocal makes a worker without a build.
func newLocal(cfg Config) *Local {
	cfg = cfg.withDefaults()
	w := &Local{
		cfg:         cfg,
		log:         cfg.Logger,
		plain:       cfg.Driver != nil && cfg.Driver.Tier() == "plain",
		wake:        make(chan struct{}, 1),
		ends:        make(chan struct{}, maxShutdowns),
		pools:       make(map[key]*pool),
		functions:   make(map[functionKey]*function),
		all:         lane{place: func(i *instance) *place { return &i.inAll }},
		idle:        lane{place: func(i *instance) *place { return &i.inIdle }},
		calm:        lane{place: func(i *instance) *place { return &i.inCalm }},
		looked:      lane{place: func(i *instance) *place { return &i.inLooked }},
		slots:       cfg.Starts,
		budget:      cfg.MemoryBudget,
		hostReserve: cfg.HostReserve,
		drained:     make(chan struct{}),
	}
	if cfg.Driver != nil {
		w.tmpInMemory = slices.ContainsFunc(cfg.Driver.Promises(), func(p sandbox.Promise) bool { return p.Name == sandbox.TmpOnDisk && !p.Kept })
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	if w.budget == 0 {
		w.hostMemory = hostMemory
		w.setBudget(hostMemory())
	}
	return w
}

func (c Config) withDefaults() Config {
	if c.MaxAge <= 0 {
		c.MaxAge = 11 * time.Hour
	}
	if c.IdleTimeout <= 0 {
		c.IdleTimeout = 5 * time.Minute
	}
	if c.WaitLimit <= 0 {
		c.WaitLimit = 10 * time.Second
	}
	if c.Starts <= 0 {
		c.Starts = 2 * runtime.NumCPU()
	}
	if c.HostReserve <= 0 {
		c.HostReserve = 512 << 20
		if total, err := meminfo("MemTotal"); err == nil {
			c.HostReserve = min(total/10, 2<<30)
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Invoke runs one invocation and returns the answer of the runtime, or what the
// platform says in its place. The end of ctx ends the wait and is returned as its
// cause; an invocation that was handed over goes on. All other errors are
// *lambdad.Error: TooManyRequestsException when memory, descriptors or processes are
// short for longer than the wait limit, and which is its cause, ServiceException when an environment cannot be built or the
// server stops, and what Runtimes and Archives have a name for.
//
// The unit is held until the environment is free again, later than the answer if
// extensions are at work; nil: there is none.
func (w *Local) Invoke(ctx context.Context, inv *lambdad.Invocation, unit Unit) (*lambdad.Response, error) {
	for try := 1; ; try++ {
		inst, use, err := w.claim(ctx, inv.Version)
		if err != nil {
			release(unit, false)
			return nil, err
		}
		resp, err := inst.env.Invoke(ctx, inv)
		if err == nil {
			w.answered(inst, use, unit, true)
			return resp, nil
		}
		if !errors.Is(err, environment.ErrEnded) {
			w.answered(inst, use, unit, false)
			return nil, err
		}
		// It died while it was idle and never saw the event: once it has, it
		// answers whatever happens.
		if try == handovers {
			release(unit, false)
			return nil, failed(inv.Version, "keep it alive", err)
		}
	}
}

func release(unit Unit, answered bool) {
	if unit != nil {
		unit.Release(answered)
	}
}

// claim takes an idle environment or waits for one. use is which use of the
// environment this is.
func (w *Local) claim(ctx context.Context, v *lambdad.Version) (inst *instance, use int, err error) {
	w.mu.Lock()
	if p := w.pools[keyOf(v)]; p != nil {
		if inst := w.pop(p); inst != nil {
			use := inst.uses
			w.mu.Unlock()
			return inst, use, nil
		}
	}
	if w.draining {
		w.mu.Unlock()
		return nil, 0, errDraining()
	}
	p := w.poolFor(v)
	wt := &waiter{ready: make(chan result, 1)}
	p.waiting = append(p.waiting, wt)
	w.waiting++
	patient := p.patient < p.answered
	if patient {
		wt.patient = true
		p.patient++
	} else {
		w.start(p)
	}
	w.mu.Unlock()
	w.counters.waits.Add(1)
	defer func(begin time.Time) { w.counters.waited.Add(int64(time.Since(begin))) }(time.Now())
	return w.await(ctx, p, wt, patient)
}

// await waits for the result of wt, a waiter of p.
func (w *Local) await(ctx context.Context, p *pool, wt *waiter, patient bool) (inst *instance, use int, err error) {
	begin := time.Now()
	limit := time.NewTimer(w.cfg.WaitLimit)
	defer limit.Stop()
	var patience <-chan time.Time
	if patient {
		t := time.NewTimer(moment)
		defer t.Stop()
		patience = t.C
	}
	for {
		select {
		case r := <-wt.ready:
			return r.inst, r.use, r.err
		case <-patience:
			w.mu.Lock()
			p.hurry(wt)
			w.start(p)
			w.mu.Unlock()
		case <-ctx.Done():
			w.abandon(p, wt)
			return nil, 0, fmt.Errorf("wait for an environment of %s: %w", p.name, context.Cause(ctx))
		case <-limit.C:
			if err := w.throttle(p, wt, begin); err != nil {
				return nil, 0, err
			}
			// The wait is for the gate or for a start under way: those pass.
			limit.Reset(w.cfg.WaitLimit/10 + 1)
		}
	}
}

// answered ends the caller's part in the use of an environment. It will be free
// when runtime and extensions ask for the next event, often at once; until then it
// holds the unit. Without an answer, because the caller has gone, that may be long.
func (w *Local) answered(inst *instance, use int, unit Unit, answer bool) {
	w.mu.Lock()
	if inst.state != busy || inst.uses != use {
		w.mu.Unlock()
		release(unit, false)
		return
	}
	if answer {
		inst.answered = true
		inst.pool.answered++
		if unit != nil {
			unit.Answered()
		}
	}
	inst.unit = unit
	w.mu.Unlock()
}

// abandon takes a waiter out whose caller has gone. What it was given meanwhile
// goes to the next.
func (w *Local) abandon(p *pool, wt *waiter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.removeWaiter(p, wt) {
		return
	}
	if r := <-wt.ready; r.inst != nil && r.inst.state == busy {
		w.free(r.inst)
	}
}

// throttle takes a waiter out if room for an environment is what it waits for, and
// returns what to tell it. When nothing has moved since it began to wait, others like
// it need not try (Refuses).
func (w *Local) throttle(p *pool, wt *waiter, begin time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.Index(p.waiting, wt)
	if i < p.starting || !w.short || !w.removeWaiter(p, wt) {
		return nil
	}
	err := lambdad.Throttled("ConcurrentInvocationLimitExceeded")
	err.Err = w.shortage()
	if need := w.reserve(p); !w.moved.After(begin) && (w.vain.Load() == 0 || need < w.vain.Load()) {
		w.vain.Store(need)
		w.kick()
	}
	w.log.Warn("throttled", "function", p.name, "version", p.number, "err", err.Err, "waited", w.cfg.WaitLimit)
	return err
}

func (w *Local) removeWaiter(p *pool, wt *waiter) bool {
	n := len(p.waiting)
	if p.waiting = remove(p.waiting, wt); len(p.waiting) == n {
		return false
	}
	w.waiting--
	p.hurry(wt)
	w.dropEmpty(p)
	w.checkDrained()
	return true
}

// raise builds one environment and stays until it is ready.
func (w *Local) raise(inst *instance) {
	if err := w.build(w.ctx, inst); err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.leave(inst)
		w.startFailed(inst, err)
		w.settle(inst)
		return
	}
	look := time.NewTicker(slotPeriod)
	defer look.Stop()
	var cpu time.Duration
	for {
		select {
		case <-inst.ready:
			w.measure(inst)
			return
		case <-look.C:
			u, err := inst.usage()
			if err == nil && u.CPU-cpu >= slotPeriod/10 {
				cpu = u.CPU
				continue
			}
			look.Stop()
			w.mu.Lock()
			w.releaseSlot(inst)
			w.pump()
			w.mu.Unlock()
		}
	}
}

// startFailed gives the failure of a start to the request that waits longest, so
// that each failure uses up a request and nothing is tried for ever. Without one
// it is logged. Called under mu.
func (w *Local) startFailed(inst *instance, err error) {
	p := inst.pool
	if inst.ahead {
		w.aheadFailed(p, err)
		return
	}
	if len(p.waiting) == 0 {
		w.log.Warn("a spare environment failed to start", "function", p.name, "version", p.number, "err", err)
		return
	}
	w.deliver(p, result{err: err})
}

// attach gives an instance what it is used through, before its environment is
// started.
func (w *Local) attach(inst *instance, usage usageFunc, rest, release func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	inst.usage, inst.rest, inst.release = usage, rest, release
	inst.lookedAt = time.Now()
	w.looked.push(inst)
}

// began notes the environment of an instance. It comes from whoever is first to
// know it: the one that started it or the environment itself.
func (w *Local) began(inst *instance, e env) {
	w.mu.Lock()
	inst.known(e)
	killed := w.killed
	w.endSurplus(inst)
	w.mu.Unlock()
	if killed {
		e.Kill()
	}
}

// idled is the callback of an environment that can take an invocation.
func (w *Local) idled(inst *instance, e env) {
	w.mu.Lock()
	defer w.mu.Unlock()
	inst.known(e)
	switch inst.state {
	case starting:
		w.started(inst)
		if inst.ahead {
			a := &inst.pool.ahead
			a.ready++
			a.failure, a.failures = "", 0
		}
		w.free(inst)
		w.pump()
	case busy:
		unit, answered := inst.done()
		w.free(inst)
		release(unit, answered)
	}
}

// ended is the callback of an environment that is gone, for whatever reason.
func (w *Local) ended(inst *instance, err error) {
	w.mu.Lock()
	was := inst.state
	w.leave(inst)
	if was == starting {
		if err == nil {
			err = environment.ErrEnded
		}
		w.startFailed(inst, failed(inst.pool.version, "initialise it", err))
	}
	release := inst.release
	w.mu.Unlock()
	if release != nil {
		release()
	}
	level, text := slog.LevelDebug, "environment ended"
	if err != nil && was != starting {
		level, text = slog.LevelWarn, "environment lost" // nobody else is told
	}
	w.log.Log(context.Background(), level, text, "environment", inst.id, "function", inst.pool.name,
		"version", inst.pool.number, "age", time.Since(inst.since), "err", err)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.settle(inst)
}

// shutdown ends one environment, which calls ended, and returns when it is gone.
func (w *Local) shutdown(inst *instance) {
	w.ends <- struct{}{}
	defer func() { <-w.ends }()
	inst.env.Shutdown(w.ctx)
}

// Retire takes environments out of use because their version is no more what it
// was: idle ones shut down now, busy ones when done. keepGeneration is the
// generation $LATEST has now; environments of published versions stay. With ""
// the function is gone and so are all.
func (w *Local) Retire(account, region, name, keepGeneration string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := functionKey{account, region, name}
	f := w.functions[k]
	if f == nil {
		return
	}
	f.current = keepGeneration
	for _, p := range f.pools {
		switch {
		case p.generation == keepGeneration:
			p.retired = false
		case keepGeneration == "" || p.number == latest:
			w.retirePool(p)
		}
	}
	for _, p := range slices.Clone(f.pools) {
		w.dropEmpty(p)
	}
	if len(f.pools) == 0 && f.current == "" {
		delete(w.functions, k)
	}
}

// RetireVersion takes the environments of one snapshot out of use, as Retire does:
// its published version is gone.
func (w *Local) RetireVersion(account, region, name, generation string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.functions[functionKey{account, region, name}]
	if f == nil {
		return
	}
	for _, p := range f.pools {
		if p.generation == generation {
			w.retirePool(p)
		}
	}
	for _, p := range slices.Clone(f.pools) {
		w.dropEmpty(p)
	}
}

// retirePool ends what is idle in a pool, and lets it have nothing new. Called with
// mu held.
func (w *Local) retirePool(p *pool) {
	p.retired = true
	p.ahead.target = 0
	p.endIdle(w)
	w.endSurplusOf(p)
}

// Run retires idle environments and measures memory until ctx ends.
func (w *Local) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
			timer.Reset(max(0, shortPeriod-time.Since(last)))
		case <-timer.C:
			last = time.Now()
			w.sample()
			timer.Reset(w.retireIdle())
		}
	}
}

// kick makes Run look soon.
func (w *Local) kick() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// retireIdle ends what has been idle for the idle timeout, or is too old, and
// returns when to look again.
func (w *Local) retireIdle() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := w.cfg.IdleTimeout
	if w.all.n > 0 {
		next = min(next, samplePeriod)
	}
	if w.short {
		next = min(next, shortPeriod)
	}
	if w.vain.Load() > 0 {
		next = min(next, samplePeriod)
	}
	for inst := w.all.first; inst != nil && time.Since(inst.since) > w.cfg.MaxAge; inst = w.all.next(inst) {
		if inst.state == idle {
			w.end(inst)
		}
	}
	next = w.aheadDue(next)
	for {
		inst := w.idle.first
		if inst == nil {
			return next
		}
		if left := w.cfg.IdleTimeout - time.Since(inst.idleSince); left > 0 {
			return min(next, left)
		}
		w.counters.idleClosed++
		w.log.Debug("retiring an idle environment", "environment", inst.id, "function", inst.pool.name, "version", inst.pool.number)
		w.end(inst)
	}
}

// Drain ends the worker: no new invocation is accepted, those accepted are
// finished, every environment gets its shutdown sequence. It returns when nothing
// is left. When ctx ends first, what is left is killed.
func (w *Local) Drain(ctx context.Context) error {
	w.mu.Lock()
	w.draining = true
	for _, p := range w.pools {
		p.ahead.target = 0
		p.endIdle(w)
		w.endSurplusOf(p)
	}
	for _, p := range w.pools {
		w.dropEmpty(p)
	}
	w.checkDrained()
	w.mu.Unlock()
	var err error
	select {
	case <-w.drained:
	case <-ctx.Done():
		err = w.kill(context.Cause(ctx))
	}
	w.cancel()
	w.work.Wait()
	return err
}

// Environments tells what every environment is doing, those being built, too,
// oldest first. What one at rest uses was measured when it went to rest; the others
// are asked, as long as that takes no more than looksLimit: after that, on a host
// that is busy with a thousand of them, what was measured last has to do.
func (w *Local) Environments() []environment.Status {
	type living struct {
		env
		usage     usageFunc // nil: it is at rest
		memory    int64
		processes int
	}
	w.mu.Lock()
	list := make([]environment.Status, 0, w.all.n)
	envs := make([]living, 0, w.all.n)
	for inst := w.all.first; inst != nil; inst = w.all.next(inst) {
		if inst.env == nil {
			list = append(list, environment.Status{
				ID: inst.id, Function: inst.pool.name, Version: inst.pool.number,
				State: environment.StateInitializing, Since: inst.since, Age: time.Since(inst.since),
			})
			continue
		}
		l := living{env: inst.env, processes: inst.processes}
		if inst.measured {
			l.memory = inst.memory
		}
		if inst.state != idle || inst.inLooked.in || !inst.measured {
			l.usage = inst.usage
		}
		envs = append(envs, l)
	}
	w.mu.Unlock()
	begin := time.Now()
	for _, e := range envs {
		s := e.Status()
		s.Memory, s.Processes = e.memory, e.processes
		if e.usage != nil && time.Since(begin) < looksLimit {
			if u, err := e.usage(); err == nil {
				s.Memory, s.Processes = u.Memory, u.Processes
			}
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b environment.Status) int { return cmp.Compare(b.Age, a.Age) })
	return list
}

// kill ends everything at once.
func (w *Local) kill(cause error) error {
	w.cancel()
	w.mu.Lock()
	w.killed = true
	envs := make([]env, 0, w.all.n)
	for inst := w.all.first; inst != nil; inst = w.all.next(inst) {
		if inst.env != nil {
			envs = append(envs, inst.env)
		}
	}
	left, waiting := w.all.n, w.waiting
	for _, p := range w.pools {
		for len(p.waiting) > 0 {
			w.deliver(p, result{err: errDraining()})
		}
		w.dropEmpty(p)
	}
	w.checkDrained()
	w.mu.Unlock()
	for _, e := range envs {
		e.Kill()
	}
	err := fmt.Errorf("drain: killed %d environments and refused %d waiting requests: %w", left, waiting, cause)
	timeout := time.NewTimer(killWait)
	defer timeout.Stop()
	select {
	case <-w.drained:
	case <-timeout.C:
		w.mu.Lock()
		left = w.all.n
		w.mu.Unlock()
		return errors.Join(err, fmt.Errorf("drain: %d environments were still there %s after they were killed", left, killWait))
	}
	return err
}

// checkDrained notes the end of a drain. Called under mu.
func (w *Local) checkDrained() {
	if !w.draining || w.all.n > 0 || w.waiting > 0 {
		return
	}
	select {
	case <-w.drained:
	default:
		close(w.drained)
	}
}

func errDraining() error {
	return lambdad.Errorf("ServiceException", "The server is shutting down and takes no new invocations.")
}

// failed is the error of a request whose environment could not be made. An error
// that AWS has a name for is passed on as it is.
func failed(v *lambdad.Version, step string, err error) error {
	var known *lambdad.Error
	if errors.As(err, &known) {
		return err
	}
	return &lambdad.Error{
		Code:    "ServiceException",
		Message: fmt.Sprintf("No environment of function %s could be started: failed to %s.", v.Function, step),
		Err:     err,
	}
}

// newID returns the 32 hex digits that name an environment.
func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
