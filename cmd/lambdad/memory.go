package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/lambdad/lambdad/worker"
)

// Go keeps about as much garbage as there is in use, and gives memory back slowly:
// after a burst of starts or uploads a thousand frozen environments would hold twice
// what they need. So it is asked for when nobody notices.
const (
	quietFor  = 5 * time.Second // between looks; nothing may run at two of them
	giveAgain = time.Minute     // at most so often
	worthIt   = 16 << 20        // bytes; and a quarter of what is in use
)

// giveBack has Go give its unused memory back whenever that is much and no
// invocation runs or waits. It returns when ctx ends.
func giveBack(ctx context.Context, stats func() worker.Stats) error {
	look := time.NewTicker(quietFor)
	defer look.Stop()
	var last worker.Stats
	var given time.Time
	quiet := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
		s := stats()
		was := quiet
		quiet = s.InUse+s.Waiting == 0 && s.WaitCount == last.WaitCount
		last = s
		if was && quiet && time.Since(given) >= giveAgain && muchUnused(heap()) {
			debug.FreeOSMemory()
			given = time.Now()
		}
	}
}

// muchUnused says whether giving back is worth a collection.
func muchUnused(used, unused uint64) bool { return unused > worthIt+used/4 }

// heap returns the bytes that were in use after the last collection, and those that
// are held beyond them: garbage, and what Go has not given back.
func heap() (used, unused uint64) {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
	metrics.Read(s)
	used = s[0].Value.Uint64()
	held := s[1].Value.Uint64() + s[2].Value.Uint64() + s[3].Value.Uint64()
	return used, held - min(held, used)
}
