// Package placement decides whether an invocation may run now and where: it takes
// one unit of the account's concurrency and hands the invocation to a worker, or
// throttles. Today there is one worker, that of this host.
//
// The account's limit holds per account and region, as on AWS (control-plane.md
// section 5.1). A unit is held from the decision until the runtime has answered.
package placement

import (
	"context"
	"sync"

	"github.com/lambdad/lambdad"
)

// A Worker runs one invocation in an environment. Its errors are those of
// worker.Local.
type Worker interface {
	Invoke(context.Context, *lambdad.Invocation) (*lambdad.Response, error)
}

// A Placer gives out concurrency.
type Placer struct {
	worker Worker
	limit  int

	mu  sync.Mutex // guards use, for a moment each
	use map[account]int
}

type account struct{ id, region string }

// New makes a placer with an account limit of so many invocations at a time in
// each region; AWS's default is 1000.
func New(w Worker, limit int) *Placer {
	return &Placer{worker: w, limit: limit, use: make(map[account]int)}
}

// Invoke runs an invocation whose version is resolved. Above the limit it is
// throttled with the reason ConcurrentInvocationLimitExceeded.
func (p *Placer) Invoke(ctx context.Context, inv *lambdad.Invocation) (*lambdad.Response, error) {
	a := account{inv.Version.Account, inv.Version.Region}
	if !p.take(a) {
		return nil, lambdad.Throttled("ConcurrentInvocationLimitExceeded")
	}
	defer p.give(a)
	return p.worker.Invoke(ctx, inv)
}

// InUse returns how many invocations of an account run now in a region.
func (p *Placer) InUse(accountID, region string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.use[account{accountID, region}]
}

func (p *Placer) take(a account) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.use[a] >= p.limit {
		return false
	}
	p.use[a]++
	return true
}

func (p *Placer) give(a account) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.use[a]--; p.use[a] == 0 {
		delete(p.use, a)
	}
}
