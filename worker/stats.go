package worker

import (
	"sync/atomic"
	"time"
)

// Stats are the numbers that explain a worker, as sql.DBStats explains a pool.
type Stats struct {
	MemoryBudget int64 // bytes all environments may hold
	MemoryHeld   int64 // bytes they hold, measured or reserved

	Environments int // living, those on their way out included
	InUse        int
	Idle         int
	Waiting      int // requests without an environment

	WaitCount    int64         // requests that found no idle environment
	WaitDuration time.Duration // how long those waited
	Refused      int64         // requests that were not to wait (Refuses)
	// Environments that were ended because memory was needed, because descriptors or
	// processes were, because they were idle for long, because their version is no more.
	MemoryClosed, RoomClosed, IdleClosed, VersionClosed int64

	// Telemetry that subscribers were too slow for.
	DroppedRecords, DroppedBytes int64
}

// counters are what of Stats only grows. The first two are of cold starts alone.
type counters struct {
	waits, waited, refused                              atomic.Int64
	memoryClosed, roomClosed, idleClosed, versionClosed int64 // under mu
}

// Stats returns the numbers of this moment.
func (w *Local) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Stats{
		MemoryBudget: w.budget, MemoryHeld: w.held, Environments: w.all.n, Waiting: w.waiting,
		InUse: w.states[busy], Idle: w.states[idle],
		WaitCount: w.counters.waits.Load(), WaitDuration: time.Duration(w.counters.waited.Load()), Refused: w.counters.refused.Load(),
		MemoryClosed: w.counters.memoryClosed, RoomClosed: w.counters.roomClosed, IdleClosed: w.counters.idleClosed, VersionClosed: w.counters.versionClosed,
		DroppedRecords: w.drops.Records.Load(), DroppedBytes: w.drops.Bytes.Load(),
	}
}
