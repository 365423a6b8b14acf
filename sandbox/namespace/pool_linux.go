//go:build amd64 || arm64

package namespace

import (
	"sync"
	"time"
)

// How many sandboxes are made ahead, where nobody has said it: as many as were
// missing. Each that was asked for and was not there makes the pool one larger, up to
// poolMost. Of what lay in it for a whole poolPeriod without being needed at any
// moment, all beyond poolLeast is given back.
const (
	poolLeast  = 2
	poolMost   = 16
	poolPeriod = 5 * time.Second
)

// A size is how many sandboxes are to be ahead.
type size struct {
	least, most int

	mu    sync.Mutex
	want  int
	low   int       // the fewest there were in this period
	until time.Time // end of the period; zero: none runs, for there is nothing to give back
}

func newSize(least, most int) *size { return &size{least: least, most: most, want: least} }

// wanted is how many there are to be now.
func (s *size) wanted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.want
}

// took notes that one was taken, so many are left, or that there was none.
func (s *size) took(now time.Time, left int, missed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.low = min(s.low, left)
	if missed && s.want < s.most {
		s.want++
	}
	if s.want > s.least && s.until.IsZero() {
		s.until = now.Add(poolPeriod)
	}
}

// look ends a period that is over, where so many lie ready, and returns when to look
// again; 0: not before another was missed.
func (s *size) look(now time.Time, ready int) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until.IsZero() {
		return 0
	}
	if left := s.until.Sub(now); left > 0 {
		return left
	}
	s.want = max(s.least, s.want-s.low)
	s.low, s.until = min(ready, s.want), now.Add(poolPeriod)
	if s.want == s.least {
		s.until = time.Time{}
		return 0
	}
	return poolPeriod
}
