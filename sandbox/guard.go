package sandbox

import (
	"context"
	"fmt"
	"sync"
)

// A Guard gives a driver's sandbox the promise that any call after Destroy is
// harmless. Every method begins with Enter and ends with Leave; Destroy is Close.
// The zero value is open.
type Guard struct {
	mu     sync.Mutex
	inside int
	gone   bool
	empty  chan struct{} // made by Close, closed when nobody is inside
	done   chan struct{} // closed when destroying is over
	err    error
}

// Enter lets a call in, or returns ErrDestroyed.
func (g *Guard) Enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone {
		return ErrDestroyed
	}
	g.inside++
	return nil
}

// Leave ends a call that Enter let in.
func (g *Guard) Leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.inside == 0 && g.gone {
		close(g.empty)
	}
}

// Close lets nobody in any more and runs destroy once, whatever becomes of ctx,
// which only limits how long this caller waits. Later and simultaneous calls wait
// for the same run and return its error. destroy must first make calls that are
// inside return, then wait for empty, and only then release what they use.
func (g *Guard) Close(ctx context.Context, destroy func(ctx context.Context, empty <-chan struct{}) error) error {
	g.mu.Lock()
	if !g.gone {
		g.gone = true
		g.empty, g.done = make(chan struct{}), make(chan struct{})
		if g.inside == 0 {
			close(g.empty)
		}
		work := context.WithoutCancel(ctx)
		go func() {
			g.err = destroy(work, g.empty)
			close(g.done)
		}()
	}
	g.mu.Unlock()
	select {
	case <-g.done:
		return g.err
	case <-ctx.Done():
		return fmt.Errorf("sandbox: still being destroyed: %w", context.Cause(ctx))
	}
}
