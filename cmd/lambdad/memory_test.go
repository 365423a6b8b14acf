package main

import (
	"runtime/debug"
	"testing"
)

// What Go holds beyond what is in use is seen as garbage, and as memory that was
// collected and not given back.
func TestHeap(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	debug.FreeOSMemory()
	const much = 256 << 20
	before, unused := heap()
	garbage := make([]byte, much)
	garbage[0] = 1
	if used, now := heap(); used != before || now < unused+much/2 || !muchUnused(used, now) {
		t.Errorf("%d bytes more: in use %d, before %d, unused %d, before %d", len(garbage), used, before, now, unused)
	}
	garbage = nil
	debug.FreeOSMemory()
	if used, now := heap(); muchUnused(used, now) && now > much/2 {
		t.Errorf("after they were given back: in use %d, unused %d", used, now)
	}
	if muchUnused(400<<20, 100<<20) || !muchUnused(4<<20, 100<<20) {
		t.Error("what is much depends on what is in use")
	}
}
