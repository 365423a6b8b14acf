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
	starts   lane // all that are under way, provisioned ones, too
	answered int  // busy environments whose runtime has answered
	patient  int  // waiters that count on one of those
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
	rest    func() // the sandbox, frozen, may hold less; nil: it cannot
	release func() // gives back what was held for it; nil when there is nothing

	state     state
	slot      bool          // holds a place in the start gate
	ready     chan struct{} // closed when its first initialisation or its life is over
	uses      int           // times it was claimed
	answered  bool          // the runtime has, in this use
	unit      Unit          // of concurrency, which the use still holds; nil: the caller does
	idleSince time.Time
	memory    int64 // measured, or the reserve until it was
	processes int   // when it was measured
	measured  bool
	lookedAt  time.Time

	inAll, inStarts, inIdle, inCalm, inLooked place
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
	p := &pool{key: k, function: f, version: v, starts: lane{place: func(i *instance) *place { return &i.inStarts }}}
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

// pump starts what is wanted as far as gate, memory and room allow: for requests that
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
	w.launched++
	w.hope()
	w.held += inst.memory
	w.states[starting]++
	w.all.push(inst)
	p.starts.push(inst)
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
	inst.pool.starts.remove(inst)
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
		w.claimed(inst)
		w.deliver(p, result{inst: inst, use: inst.uses})
	case p.retired || w.draining || w.plain && othersWait(p) || inst.ahead && p.ahead.living > p.ahead.target,
		time.Since(inst.since) > w.cfg.MaxAge:
		w.end(inst)
	default:
		w.become(inst, idle)
		inst.idleSince = time.Now()
		*inst.peers() = append(*inst.peers(), inst)
		if !inst.ahead {
			w.idle.push(inst)
			w.idleHeld += inst.memory
			w.hope()
		}
		if w.freezes() {
			w.calm.push(inst)
		}
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
	p.waiting[0] = nil
	p.waiting = p.waiting[1:] // others wait behind it: nothing is moved
	w.waiting--
	p.hurry(wt)
	if r.inst != nil {
		w.hope()
	}
	wt.ready <- r
}

// pop claims the warmest idle environment of p, a provisioned one first, or
// returns nil.
func (w *Local) pop(p *pool) *instance {
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
	w.claimed(inst)
	return inst
}

// peers is the list an idle instance is in.
func (inst *instance) peers() *[]*instance {
	if inst.ahead {
		return &inst.pool.ahead.idle
	}
	return &inst.pool.idle
}

// unlist takes an idle instance out of where idle ones are.
func (w *Local) unlist(inst *instance) {
	list := inst.peers()
	switch s, last := *list, len(*list)-1; inst {
	case s[0]: // as most who are retired
		s[0] = nil
		*list = s[1:]
	case s[last]:
		s[last] = nil
		*list = s[:last]
	default:
		*list = remove(s, inst)
	}
	w.unidle(inst)
}

// unidle takes an instance out of the lanes of idle ones.
func (w *Local) unidle(inst *instance) {
	if inst.inIdle.in {
		w.idleHeld -= inst.memory
	}
	w.idle.remove(inst)
	w.calm.remove(inst)
}

// claimed gives an instance to a request. It must be in no list.
func (w *Local) claimed(inst *instance) {
	w.become(inst, busy)
	inst.uses++
	w.unidle(inst)
	if !inst.inLooked.in { // it was at rest, and is what it was until now
		inst.lookedAt = time.Now()
		w.looked.push(inst)
	}
}

func (w *Local) become(inst *instance, s state) {
	w.states[inst.state]--
	inst.state = s
	w.states[s]++
	w.working.Store(int64(w.states[busy]))
}

// freezes reports whether idle environments are frozen.
func (w *Local) freezes() bool { return w.cfg.FreezeDelay >= 0 && !w.plain }

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

// endSurplusOf does so for all of a pool.
func (w *Local) endSurplusOf(p *pool) {
	for inst := p.starts.first; inst != nil; {
		next := p.starts.next(inst)
		w.endSurplus(inst)
		inst = next
	}
}

// end shuts an environment down in the background. It must be idle, just freed or
// just started; settle follows when it has ended.
func (w *Local) end(inst *instance) {
	if inst.state == idle {
		w.unlist(inst)
	}
	if inst.pool.retired {
		w.counters.versionClosed++
	}
	w.aheadLeft(inst)
	w.become(inst, ending)
	w.looked.remove(inst)
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

// leave takes an instance that will not act any more out of everything but the
// accounts, which remove settles.
func (w *Local) leave(inst *instance) {
	w.aheadLeft(inst)
	switch inst.state {
	case starting:
		w.started(inst)
	case idle:
		w.unlist(inst)
	}
	w.looked.remove(inst)
	release(inst.done())
	if inst.state != ending {
		w.freeing += inst.memory
	}
	w.become(inst, ending)
}

// settle closes the account of an instance that left and has given back all it
// had, and starts what has room now.
func (w *Local) settle(inst *instance) {
	p := inst.pool
	w.become(inst, gone)
	w.held -= inst.memory
	w.freeing -= inst.memory
	if inst.measured {
		w.measured -= inst.memory
	}
	w.all.remove(inst)
	w.roomsRead = time.Time{}
	w.hope()
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
