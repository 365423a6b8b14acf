package worker

import (
	"slices"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/sandbox"
)

// Everything in this file runs under Local.mu and does nothing that blocks.

// A key names the pool an invocation belongs to: one snapshot of one version.
type key struct {
	functionKey
	number, generation string
}

type functionKey struct{ account, region, name string }

func keyOf(v *lambdad.Version) key {
	return key{functionKey{v.Account, v.Region, v.Function}, v.Number, v.Generation}
}

// A function is what the pools of its versions share.
type function struct {
	pools []*pool
	// current is the generation of $LATEST the last Retire kept. A request that
	// was resolved before it and arrives after it is still served, by an
	// environment that nobody gets after it.
	current string
	living  int
}

// A pool holds the environments of one snapshot and the requests that wait for
// one. It exists while it has either.
type pool struct {
	key
	function *function
	version  *lambdad.Version

	idle    []*instance // by the time they became idle: the last is the warmest
	waiting []*waiter   // by the time they came
	// starting counts environments under way that nobody has had yet. Each is
	// meant for one waiter but goes to whoever is first.
	starting int
	answered int // busy environments whose runtime has answered
	patient  int // waiters that count on one of those
	living   int
	queued   bool // in Local.queue
	ahead    provision
	retired  bool  // its environments take what waits, then end
	need     int64 // the most memory one was seen to hold
}

// wanted is how many more environments the waiting requests need: one for each
// that is not patient, less those under way.
func (p *pool) wanted() int { return len(p.waiting) - p.patient - p.starting }

// hurry ends the patience of a waiter.
func (p *pool) hurry(wt *waiter) {
	if wt.patient {
		wt.patient = false
		p.patient--
	}
}

// A waiter is a request without an environment. It gets exactly one result
// unless it takes itself out of the pool first.
type waiter struct {
	ready   chan result // room for the one result
	patient bool        // an environment may be free in a moment: none is started
}

type result struct {
	inst *instance
	use  int
	err  error
}

// A state says who may act on an instance.
type state uint8

const (
	starting state = iota // being built, or in its first initialisation
	idle                  // in its pool
	busy                  // belongs to the request that claimed it
	ending                // on its way out; takes no invocation
	gone                  // ended
)

// An instance is the worker's side of one environment.
type instance struct {
	pool  *pool
	ahead bool // provisioned
	id    string
	since time.Time // start

	// env is set by known. usage and release are set before the environment can
	// call back.
	env     env
	usage   func() (sandbox.Usage, error)
	release func() // gives back what was held for it; nil when there is nothing

	state     state
	slot      bool          // holds a place in the start gate
	ready     chan struct{} // closed when its first initialisation or its life is over
	uses      int           // times it was claimed
	answered  bool          // the runtime has, in this use
	unit      Unit          // of concurrency, which the use still holds; nil: the caller does
	idleSince time.Time
	memory    int64     // measured, or the reserve until it was
	sampledAt time.Time // zero: never measured
}

// known notes the environment of an instance, once: after that it is read without
// the lock. Called with mu held.
func (i *instance) known(e env) {
	if i.env == nil {
		i.env = e
	}
}

// poolFor finds or makes the pool of a version.
func (w *Local) poolFor(v *lambdad.Version) *pool {
	k := keyOf(v)
	if p := w.pools[k]; p != nil {
		return p
	}
	f := w.functions[k.functionKey]
	if f == nil {
		f = &function{}
		w.functions[k.functionKey] = f
	}
	p := &pool{key: k, function: f, version: v}
	p.retired = v.Number == latest && f.current != "" && f.current != v.Generation
	f.pools = append(f.pools, p)
	w.pools[k] = p
	return p
}

// dropEmpty forgets a pool that has nothing left.
func (w *Local) dropEmpty(p *pool) {
	if p.living > 0 || len(p.waiting) > 0 || p.ahead.target > 0 || w.pools[p.key] != p {
		return
	}
	delete(w.pools, p.key)
	f := p.function
	f.pools = remove(f.pools, p)
	if len(f.pools) == 0 && f.current == "" {
		delete(w.functions, p.functionKey)
	}
}

// start asks for what the waiters of a pool need.
func (w *Local) start(p *pool) {
	w.enqueue(p)
	w.pump()
	if w.short {
		w.kick()
	}
}

// enqueue asks for starts for a pool; pump makes them.
func (w *Local) enqueue(p *pool) {
	if !p.queued && p.wanted() > 0 {
		p.queued = true
		w.queue = append(w.queue, p)
	}
}

// pump starts what is wanted as far as gate and memory allow: for requests that
// wait and for what is provisioned in turn.
func (w *Local) pump() {
	w.short = false
	for idle := 0; w.slots > 0 && idle < 2; {
		started := false
		if w.turn = !w.turn; w.turn {
			started = w.startWanted()
		} else {
			started = w.startAhead()
		}
		if w.short {
			return // what memory there will be is for those who wait
		}
		if idle++; started {
			idle = 0
		}
	}
}

// startWanted starts one environment for a request, and reports whether there was
// one to start and room for it. Pools take turns, so that one function with many
// waiters does not hold up another.
func (w *Local) startWanted() (started bool) {
	for !started && len(w.queue) > 0 {
		p := w.queue[0]
		blocked := false
		if p.wanted() > 0 {
			switch {
			case w.plain && p.function.living > 0:
				// One at a time: it is asked for again when that one has ended,
				// and idle ones of other versions make way.
				w.endIdle(p.function)
				blocked = true
			case !w.admit(p):
				w.short = true
				return false
			default:
				w.launch(p, false)
				started = true
			}
		}
		w.queue[0] = nil
		w.queue = w.queue[1:]
		p.queued = false
		if !blocked {
			w.enqueue(p)
		}
	}
	return started
}

// launch starts one environment for p: for who waits, or ahead.
func (w *Local) launch(p *pool, ahead bool) {
	inst := &instance{
		pool:   p,
		ahead:  ahead,
		id:     newID(),
		since:  time.Now(),
		slot:   true,
		ready:  make(chan struct{}),
		memory: w.reserve(p),
	}
	w.slots--
	w.held += inst.memory
	w.instances[inst] = struct{}{}
	if ahead {
		p.ahead.living++
	} else {
		p.starting++
	}
	p.living++
	p.function.living++
	w.work.Go(func() { w.raise(inst) })
	w.kick()
}

// started ends the first phase of an instance: it is now like any other.
func (w *Local) started(inst *instance) {
	if !inst.ahead {
		inst.pool.starting--
	}
	w.releaseSlot(inst)
	close(inst.ready)
}

func (w *Local) releaseSlot(inst *instance) {
	if inst.slot {
		inst.slot = false
		w.slots++
	}
}

// free gives an environment that can take an invocation to the request that
// waits longest, or keeps it as the warmest idle one, or ends it.
func (w *Local) free(inst *instance) {
	p := inst.pool
	switch {
	case len(p.waiting) > 0:
		inst.claim()
		w.deliver(p, result{inst: inst, use: inst.uses})
	case p.retired || w.draining || w.plain && othersWait(p) || inst.ahead && p.ahead.living > p.ahead.target,
		time.Since(inst.since) > w.cfg.MaxAge:
		w.end(inst)
	default:
		inst.state = idle
		inst.idleSince = time.Now()
		*inst.peers() = append(*inst.peers(), inst)
	}
}

// othersWait reports whether another version of the function waits for its one
// environment.
func othersWait(p *pool) bool {
	return slices.ContainsFunc(p.function.pools, func(o *pool) bool {
		return o != p && len(o.waiting) > 0
	})
}

// deliver gives a result to the request that waits longest.
func (w *Local) deliver(p *pool, r result) {
	wt := p.waiting[0]
	p.waiting = slices.Delete(p.waiting, 0, 1)
	w.waiting--
	p.hurry(wt)
	wt.ready <- r
}

// pop claims the warmest idle environment of p, a provisioned one first, or
// returns nil.
func (p *pool) pop() *instance {
	list := &p.ahead.idle
	n := len(*list) - 1
	if n < 0 {
		list = &p.idle
		if n = len(*list) - 1; n < 0 {
			return nil
		}
	}
	inst := (*list)[n]
	(*list)[n] = nil
	*list = (*list)[:n]
	inst.claim()
	return inst
}

// peers is the list an idle instance is in.
func (inst *instance) peers() *[]*instance {
	if inst.ahead {
		return &inst.pool.ahead.idle
	}
	return &inst.pool.idle
}

// unlist takes an idle instance out of its list.
func (inst *instance) unlist() {
	list := inst.peers()
	*list = remove(*list, inst)
}

func (inst *instance) claim() {
	inst.state = busy
	inst.uses++
}

// done ends a use. The unit is to be released, if there is one.
func (inst *instance) done() (unit Unit, answered bool) {
	unit, answered = inst.unit, inst.answered
	inst.unit = nil
	if answered {
		inst.answered = false
		inst.pool.answered--
	}
	return unit, answered
}

// endSurplus ends an environment in its first initialisation that nobody waits
// for and nobody will.
func (w *Local) endSurplus(inst *instance) {
	p := inst.pool
	if inst.state != starting || inst.env == nil {
		return
	}
	surplus := (p.retired || w.draining) && p.wanted() < 0
	if inst.ahead {
		surplus = p.retired || w.draining || p.ahead.living > p.ahead.target
	}
	if surplus {
		w.started(inst)
		w.end(inst)
	}
}

// end shuts an environment down in the background. It must be idle, just freed or
// just started; settle follows when it has ended.
func (w *Local) end(inst *instance) {
	if inst.state == idle {
		inst.unlist()
	}
	if inst.pool.retired {
		w.counters.versionClosed++
	}
	w.aheadLeft(inst)
	inst.state = ending
	w.freeing += inst.memory
	w.work.Go(func() { w.shutdown(inst) })
}

// endIdle ends all idle environments of a function.
func (w *Local) endIdle(f *function) {
	for _, p := range f.pools {
		p.endIdle(w)
	}
}

// endIdle ends all idle environments of a pool.
func (p *pool) endIdle(w *Local) {
	for _, list := range []*[]*instance{&p.idle, &p.ahead.idle} {
		for len(*list) > 0 {
			w.end((*list)[len(*list)-1])
		}
	}
}

// longestIdle returns the environment that has been idle longest, or nil; none
// that is provisioned. The first of each pool is the pool's oldest.
func (w *Local) longestIdle() *instance {
	var oldest *instance
	for _, p := range w.pools {
		if len(p.idle) > 0 && (oldest == nil || p.idle[0].idleSince.Before(oldest.idleSince)) {
			oldest = p.idle[0]
		}
	}
	return oldest
}

// leave takes an instance that will not act any more out of everything but the
// accounts, which remove settles.
func (w *Local) leave(inst *instance) {
	w.aheadLeft(inst)
	switch inst.state {
	case starting:
		w.started(inst)
	case idle:
		inst.unlist()
	}
	release(inst.done())
	if inst.state != ending {
		w.freeing += inst.memory
	}
	inst.state = ending
}

// settle closes the account of an instance that left and has given back all it
// had, and starts what has room now.
func (w *Local) settle(inst *instance) {
	p := inst.pool
	inst.state = gone
	w.held -= inst.memory
	w.freeing -= inst.memory
	delete(w.instances, inst)
	p.living--
	p.function.living--
	for _, o := range p.function.pools {
		w.enqueue(o)
		w.provide(o)
	}
	w.pump()
	w.dropEmpty(p)
	w.checkDrained()
}

// remove deletes one element, keeping the order and no stale pointer.
func remove[T comparable](s []T, x T) []T {
	if i := slices.Index(s, x); i >= 0 {
		return slices.Delete(s, i, i+1)
	}
	return s
}
