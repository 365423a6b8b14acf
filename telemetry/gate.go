package telemetry

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// gate keeps what subscribers are sent from environments that are idle or frozen.
// It has three positions: open; held, where nothing new is begun and what is
// under way goes on; and shut, where not a byte is written. Nothing waits for the
// reader when the gate moves.
type gate struct {
	mu         sync.Mutex
	held, shut bool
	moved      chan struct{} // closed by resume; nil: nobody waits
	writing    map[*gatedConn]struct{}
	quiet      sync.Cond // writing is empty
	shuts      int       // how often it was shut
}

func newGate() *gate {
	g := &gate{writing: map[*gatedConn]struct{}{}}
	g.quiet.L = &g.mu
	return g
}

func (g *gate) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held = true
}

// close shuts the gate. Writes under way are broken off where they are, to be
// gone on with after resume, so that this takes microseconds whoever reads.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return
	}
	g.held, g.shut = true, true
	g.shuts++
	for c := range g.writing {
		c.Conn.SetWriteDeadline(time.Unix(1, 0)) // an error means that it is closed
	}
	for len(g.writing) > 0 {
		g.quiet.Wait()
	}
}

func (g *gate) resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held {
		g.held, g.shut = false, false
		if g.moved != nil {
			close(g.moved)
			g.moved = nil
		}
	}
}

// blocked returns nil when something new may begin, and otherwise what to wait
// for.
func (g *gate) blocked() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.held {
		return nil
	}
	return g.wait()
}

// wait returns what resume closes.
func (g *gate) wait() <-chan struct{} {
	if g.moved == nil {
		g.moved = make(chan struct{})
	}
	return g.moved
}

// pass waits until something new may begin; false: done was closed.
func (g *gate) pass(done <-chan struct{}) bool {
	for {
		moved := g.blocked()
		if moved == nil {
			return true
		}
		select {
		case <-moved:
		case <-done:
			return false
		}
	}
}

// after calls f when d has passed without the gate being shut for a moment of it.
// The function it returns calls it off.
func (g *gate) after(d time.Duration, f func()) (stop func()) {
	done := make(chan struct{})
	g.mu.Lock()
	shuts := g.shuts
	g.mu.Unlock()
	var t *time.Timer
	var mu sync.Mutex // of t
	mu.Lock()
	t = time.AfterFunc(d, func() {
		mu.Lock()
		defer mu.Unlock()
		if !g.pass(done) {
			return
		}
		g.mu.Lock()
		same := shuts == g.shuts
		shuts = g.shuts
		g.mu.Unlock()
		if same {
			f()
			return
		}
		t.Reset(d)
	})
	mu.Unlock()
	return func() {
		close(done)
		mu.Lock()
		defer mu.Unlock()
		t.Stop()
	}
}

// gatedConn is a connection whose writes wait behind the gate.
type gatedConn struct {
	net.Conn
	gate   *gate
	once   sync.Once
	closed chan struct{}
}

func (g *gate) conn(c net.Conn) *gatedConn {
	return &gatedConn{Conn: c, gate: g, closed: make(chan struct{})}
}

// Write implements net.Conn. It goes on where the gate broke it off.
func (c *gatedConn) Write(b []byte) (int, error) {
	n := 0
	for {
		if !c.enter() {
			return n, net.ErrClosed
		}
		m, err := c.Conn.Write(b[n:])
		c.leave()
		n += m
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		// Only the gate sets this deadline.
		if err := c.Conn.SetWriteDeadline(time.Time{}); err != nil {
			return n, err
		}
	}
}

func (c *gatedConn) enter() bool {
	g := c.gate
	for {
		g.mu.Lock()
		if !g.shut {
			g.writing[c] = struct{}{}
			g.mu.Unlock()
			return true
		}
		moved := g.wait()
		g.mu.Unlock()
		select {
		case <-moved:
		case <-c.closed:
			return false
		}
	}
}

func (c *gatedConn) leave() {
	g := c.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.writing, c)
	if len(g.writing) == 0 {
		g.quiet.Broadcast()
	}
}

// Close implements net.Conn.
func (c *gatedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
