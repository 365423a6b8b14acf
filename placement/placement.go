// Package placement decides whether an invocation may run now and where: it takes
// one unit of concurrency and hands the invocation to a worker, or throttles.
// Today there is one worker, that of this host.
//
// Concurrency is counted per account and region, as on AWS (control-plane.md
// sections 4.6 and 5.1). A unit is taken
//
//   - from what is provisioned for the version, while that lasts;
//   - else from what is reserved for the function and not provisioned in it;
//   - else, for a function without a reservation, from what the account has left:
//     its limit less everything reserved, and less what is provisioned for
//     functions without a reservation.
//
// It is held until the environment can take another invocation, with its
// extensions, which is later than the answer (lifecycle.md section 2). A caller
// that sends one request after the other is sometimes faster than that: so where
// nothing is free but a runtime has answered, a request waits a moment before it is
// throttled.
//
// What the machine can hold is the worker's to know (worker.Capacity): a request for
// which there is no room waits there for a while, with its unit. Once one has waited
// in vain, those like it are throttled before they take a unit, until there is room.
//
// One mutex guards the counts, for a moment each. No worker is called under it, so
// that a worker may give back units under a lock of its own.
package placement

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/worker"
)

// The reasons of throttles (control-plane.md section 1.5).
const (
	reasonAccount  = "ConcurrentInvocationLimitExceeded"
	reasonReserved = "ReservedFunctionConcurrentInvocationLimitExceeded"
)

// moment is how long a request waits for a unit whose invocation was answered.
const moment = 5 * time.Millisecond

// ErrZeroReserved is the cause of a throttle that will not pass: the function's
// reserved concurrency is 0, which stops it.
var ErrZeroReserved = errors.New("placement: the function's reserved concurrency is 0")

// A Worker runs invocations in environments: *worker.Local, whose errors are its
// own.
type Worker interface {
	Invoke(ctx context.Context, inv *lambdad.Invocation, unit worker.Unit) (*lambdad.Response, error)
	Provision(v *lambdad.Version, n int)
	Provisioned(v *lambdad.Version) lambdad.Provisioned
	// Refuses says what an invocation of v would wait for in vain; nil: nothing.
	Refuses(v *lambdad.Version) error
}

// A Placer gives out concurrency.
type Placer struct {
	worker Worker
	limit  int

	configuring sync.Mutex // one Configure at a time; taken before mu

	mu        sync.Mutex
	accounts  map[accountKey]*account
	functions map[functionKey]*function
	measured  []*function // those that have something to tell; see Run
}

type (
	accountKey  struct{ id, region string }
	functionKey struct{ account, region, name string }
)

// A pool is concurrency that several may take from.
type pool struct {
	limit int
	counts
	reason  string
	waiting []*waiter // by the time they came
}

// counts are units in use, and how many of them belong to an invocation that was
// answered. The second is a guess after an allotment has moved some, and decides
// only whether it is worth to wait.
type counts struct{ use, answered int }

func (c *counts) add(o counts) { c.use += o.use; c.answered += o.answered }

func (c *counts) sub(o counts) {
	c.use -= o.use
	c.answered = min(max(0, c.answered-o.answered), c.use)
}

// one is what a unit counts.
func one(answered bool) counts {
	if answered {
		return counts{1, 1}
	}
	return counts{use: 1}
}

// An account is one account's concurrency in a region. Its pool is for functions
// without a reservation.
type account struct {
	pool
	set int // reserved, or provisioned without a reservation
	all int // what runs of all functions
	peaks
}

// A function is what runs of one, but for what runs in an allotment.
type function struct {
	placer *Placer
	key    functionKey
	counts
	measure
	account    *account
	own        pool // limit and counts hold while reserved
	reserved   bool
	set        int // of account.set
	allotments []*allotment
	forget     bool // when nothing runs: it may be gone
}

// An allotment is what is provisioned for a version.
type allotment struct {
	function  *function
	version   *lambdad.Version
	qualifier string
	limit     int
	counts
	measure
	// moved is how many of the units taken here count in function, because limit
	// became less than what was in use. They are given back first.
	moved int
}

// A waiter is a request that may get a unit in a moment.
type waiter struct {
	function  *function
	allotment *allotment       // nil: none
	got       chan worker.Unit // room for one
}

// New makes a placer with an account limit of so many invocations at a time in
// each region; AWS's default is 1000.
func New(w Worker, limit int) *Placer {
	return &Placer{
		worker: w, limit: limit,
		accounts: make(map[accountKey]*account), functions: make(map[functionKey]*function),
	}
}

// Invoke runs an invocation whose version is resolved. A throttle has the reason
// ReservedFunctionConcurrentInvocationLimitExceeded where the function has reserved
// concurrency, and ConcurrentInvocationLimitExceeded where it shares the account's or
// where no worker has room for it. What a worker refuses takes no unit: those that
// wait for a full host would leave none for functions that it could serve.
func (p *Placer) Invoke(ctx context.Context, inv *lambdad.Invocation) (*lambdad.Response, error) {
	if why := p.worker.Refuses(inv.Version); why != nil {
		err := lambdad.Throttled(reasonAccount)
		err.Err = why
		return nil, err
	}
	u, err := p.take(inv.Version)
	if err != nil {
		return nil, err
	}
	return p.worker.Invoke(ctx, inv, u)
}

// Configure says what a function has from now on; the zero value: nothing of its
// own. Invocations under way count as what they were taken for, within the new
// limits first. It tells the worker what to initialise ahead.
func (p *Placer) Configure(accountID, region, name string, c lambdad.Concurrency) {
	p.configuring.Lock()
	defer p.configuring.Unlock()
	gone := p.configure(functionKey{accountID, region, name}, c)
	for _, v := range gone {
		p.worker.Provision(v, 0)
	}
	for _, a := range c.Provisioned {
		p.worker.Provision(a.Version, a.Count)
	}
}

// Provisioned says how far the worker is with what is provisioned for a version.
func (p *Placer) Provisioned(v *lambdad.Version) lambdad.Provisioned { return p.worker.Provisioned(v) }

// configure changes the counts and returns the versions for which nothing is
// provisioned any more.
func (p *Placer) configure(k functionKey, c lambdad.Concurrency) (gone []*lambdad.Version) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.functions[k]
	if f == nil {
		if c.Reserved == nil && len(c.Provisioned) == 0 {
			return nil
		}
		f = p.function(k)
	}
	total := 0
	kept := make([]*allotment, 0, len(c.Provisioned))
	for _, want := range c.Provisioned {
		a := f.allotment(want.Version.Number)
		if a == nil {
			a = &allotment{function: f}
		}
		a.version, a.qualifier = want.Version, want.Qualifier
		a.resize(want.Count)
		kept = append(kept, a)
		total += want.Count
	}
	for _, a := range f.allotments {
		if !slices.Contains(kept, a) {
			a.resize(0)
			gone = append(gone, a.version)
		}
	}
	f.allotments = kept

	set := total
	if f.reserved {
		f.own.sub(f.counts)
	} else {
		f.account.sub(f.counts)
	}
	waiting := f.pool().leave(f)
	if f.reserved = c.Reserved != nil; f.reserved {
		set = *c.Reserved
		f.own.limit = max(0, *c.Reserved-total)
	}
	f.pool().add(f.counts)
	f.pool().waiting = append(f.pool().waiting, waiting...)
	f.account.set += set - f.set
	f.set = set
	f.account.limit = max(0, p.limit-f.account.set)
	f.account.serve()
	f.own.serve()
	if f.forget = !f.reserved && len(kept) == 0; f.forget && f.idle() {
		delete(p.functions, k)
	}
	return gone
}

// A Use is what runs of an account in a region.
type Use struct {
	Concurrent int // invocations of all functions
	Unreserved int // those of functions without a reservation, outside of provisioned
}

// InUse returns what runs now.
func (p *Placer) InUse(accountID, region string) (u Use) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a := p.accounts[accountKey{accountID, region}]; a != nil {
		u = Use{Concurrent: a.all, Unreserved: a.use}
	}
	return u
}

// take takes a unit for an invocation of v.
func (p *Placer) take(v *lambdad.Version) (worker.Unit, error) {
	p.mu.Lock()
	f := p.function(functionKey{v.Account, v.Region, v.Function})
	a := f.allotment(v.Number)
	if a != nil && a.use < a.limit {
		a.take()
		p.mu.Unlock()
		return a, nil
	}
	pl := f.pool()
	if pl.use < pl.limit {
		f.take(a)
		p.mu.Unlock()
		return f, nil
	}
	if pl.answered == 0 && (a == nil || a.answered == 0) {
		err := f.throttled()
		p.mu.Unlock()
		return nil, err
	}
	wt := &waiter{function: f, allotment: a, got: make(chan worker.Unit, 1)}
	pl.waiting = append(pl.waiting, wt)
	p.mu.Unlock()
	return p.await(wt)
}

// await waits a moment for a unit.
func (p *Placer) await(wt *waiter) (worker.Unit, error) {
	t := time.NewTimer(moment)
	defer t.Stop()
	select {
	case u := <-wt.got:
		return u, nil
	case <-t.C:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case u := <-wt.got:
		return u, nil
	default:
	}
	pl := wt.function.pool()
	if i := slices.Index(pl.waiting, wt); i >= 0 {
		pl.waiting = slices.Delete(pl.waiting, i, i+1)
	}
	return nil, wt.function.throttled()
}

// What follows runs under Placer.mu, but for the methods of units.

// function finds or makes what is known of a function. It is kept: making it for
// each invocation would cost more.
func (p *Placer) function(k functionKey) *function {
	if f := p.functions[k]; f != nil {
		return f
	}
	ak := accountKey{k.account, k.region}
	a := p.accounts[ak]
	if a == nil {
		a = &account{pool: pool{limit: p.limit, reason: reasonAccount}}
		p.accounts[ak] = a
	}
	f := &function{placer: p, key: k, account: a, own: pool{reason: reasonReserved}}
	p.functions[k] = f
	return f
}

// pool is where the function takes its units.
func (f *function) pool() *pool {
	if f.reserved {
		return &f.own
	}
	return &f.account.pool
}

// idle reports whether nothing is known of the function that is not so of others.
func (f *function) idle() bool {
	return !f.reserved && len(f.allotments) == 0 && f.running == 0 && !f.listed
}

func (f *function) allotment(number string) *allotment {
	for _, a := range f.allotments {
		if a.version.Number == number {
			return a
		}
	}
	return nil
}

func (f *function) throttled() error {
	err := lambdad.Throttled(f.pool().reason)
	if f.reserved && f.set == 0 {
		err.Err = ErrZeroReserved
	}
	return err
}

// take takes a unit of the pool; a is what is provisioned for the version and in
// use, if anything is.
func (f *function) take(a *allotment) {
	f.use++
	f.pool().use++
	f.begun()
	if a != nil {
		a.spilt++
	}
}

// take takes a unit of an allotment.
func (a *allotment) take() {
	a.use++
	a.ran++
	a.most = max(a.most, a.use)
	a.function.begun()
}

// release gives back a unit of the pool.
func (f *function) release(answered bool) {
	f.sub(one(answered))
	pl := f.pool()
	pl.sub(one(answered))
	f.ended()
	pl.serve()
}

// leave takes the requests for a function out of those that wait.
func (pl *pool) leave(f *function) (out []*waiter) {
	pl.waiting = slices.DeleteFunc(pl.waiting, func(wt *waiter) bool {
		if wt.function == f {
			out = append(out, wt)
			return true
		}
		return false
	})
	return out
}

// serve gives what is free in the pool to those that wait longest.
func (pl *pool) serve() {
	for len(pl.waiting) > 0 && pl.use < pl.limit {
		wt := pl.waiting[0]
		pl.waiting = slices.Delete(pl.waiting, 0, 1)
		wt.function.take(wt.allotment)
		wt.got <- wt.function
	}
}

// resize changes the limit of an allotment.
func (a *allotment) resize(n int) {
	a.limit = n
	over := a.use - n
	if over <= 0 {
		return
	}
	// The invocations go on. They count where others of the function do.
	out := counts{over, min(over, a.answered)}
	a.sub(out)
	a.moved += over
	a.function.add(out)
	a.function.pool().add(out)
}

// Answered implements worker.Unit.
func (f *function) Answered() {
	f.placer.mu.Lock()
	f.answered++
	f.pool().answered++
	f.placer.mu.Unlock()
}

// Release implements worker.Unit.
func (f *function) Release(answered bool) {
	f.placer.mu.Lock()
	f.release(answered)
	f.placer.mu.Unlock()
}

// Answered implements worker.Unit.
func (a *allotment) Answered() {
	a.function.placer.mu.Lock()
	a.answered++
	a.function.placer.mu.Unlock()
}

// Release implements worker.Unit.
func (a *allotment) Release(answered bool) {
	f := a.function
	f.placer.mu.Lock()
	defer f.placer.mu.Unlock()
	if a.moved > 0 {
		a.moved--
		f.release(answered)
		return
	}
	a.sub(one(answered))
	f.ended()
	pl := f.pool()
	for i, wt := range pl.waiting {
		if wt.allotment == a && a.use < a.limit {
			pl.waiting = slices.Delete(pl.waiting, i, i+1)
			a.take()
			wt.got <- a
			return
		}
	}
}
