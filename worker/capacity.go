package worker

import (
	"math"
	"time"

	"github.com/lambdad/lambdad"
)

// What this host can hold is known to who places invocations in two ways: Capacity
// tells how much is left of everything, and Refuses that there is no use in trying.

// A Capacity is what this host can hold beyond what it does.
type Capacity struct {
	// More is how many environments there would be room for, one after the other and of
	// the average size of those that live, when all idle ones make way.
	More  int
	Idle  int    // those that would make way
	Rooms []Room // what bounds it; memory first
}

// Memory is the name of the room that is counted in bytes.
const Memory = "memory"

// A Room is one of the things an environment needs. One whose limit cannot be told
// is left out.
type Room struct {
	Name        string
	Used, Limit int64 // Limit is for environments: what others need is taken off
	Idle        int64 // of Used, what idle environments would give back
	Start       int64 // what one more may need until it is idle
	Each        int64 // what one holds at rest
}

// more is how many more fit.
func (r *Room) more() int64 {
	left := r.Limit - r.Used + r.Idle
	if left < r.Start {
		return 0
	}
	return 1 + (left-r.Start)/r.Each
}

// Capacity says what there is room for.
func (w *Local) Capacity() Capacity {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.readRooms()
	c := Capacity{Idle: w.idle.n}
	if w.budget < math.MaxInt64 {
		each := int64(floorMemory)
		if w.all.n > 0 {
			each = max(w.held/int64(w.all.n), 1<<20)
		}
		c.Rooms = append(c.Rooms, Room{Memory, w.held - w.freeing, w.budget, w.idleHeld, floorMemory, each})
	}
	for _, r := range w.rooms {
		if r.limit > 0 {
			c.Rooms = append(c.Rooms, Room{r.name, r.used + w.launched*r.start, r.limit - r.spare(), int64(w.idle.n+w.states[ending]) * r.rest, r.start, r.rest})
		}
	}
	more := int64(math.MaxInt32)
	for i := range c.Rooms {
		more = min(more, c.Rooms[i].more())
	}
	c.More = int(more)
	return c
}

// Refuses says why an invocation of v would wait in vain; nil: it may be tried. It
// would where no environment of v lives, none can be started even if all idle ones
// make way, and somebody waited for one as long as anybody waits without that anything
// was started, freed or ended meanwhile. As soon as something is, or the host has room
// again, nothing is refused. It costs next to nothing where nothing is short.
func (w *Local) Refuses(v *lambdad.Version) error {
	if w.vain.Load() == 0 {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	vain, need := w.vain.Load(), int64(floorMemory)
	if p := w.pools[keyOf(v)]; p != nil {
		if p.living > 0 {
			return nil
		}
		need = w.reserve(p)
	}
	if vain == 0 || need < vain || w.draining {
		return nil
	}
	w.counters.refused.Add(1)
	return w.shortage()
}

// hope has nothing refused: there is room, or there was. Called under mu.
func (w *Local) hope() {
	w.moved = time.Now()
	w.vain.Store(0)
}

// hopeAgain does so if another environment would be admitted. Called under mu.
func (w *Local) hopeAgain() {
	need := w.vain.Load()
	if need == 0 {
		return
	}
	if w.idle.first == nil { // else those make way
		if ok, _ := w.fits(1); !ok || w.held-w.freeing+need > w.budget {
			return
		}
	}
	w.hope()
}
