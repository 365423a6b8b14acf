package worker

import (
	"errors"
	"math"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestHostMemory(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	total, err := meminfo("MemTotal")
	if err != nil {
		t.Fatal(err)
	}
	available, err := hostMemory()
	if err != nil || available <= 0 || available > total {
		t.Errorf("%d bytes available of %d, %v", available, total, err)
	}
	if limit, used, ok := groupMemory(); ok && (limit <= 0 || used < 0) {
		t.Errorf("control group: limit %d, used %d", limit, used)
	}
	if _, err := meminfo("NoSuchThing"); err == nil {
		t.Error("a missing line is no error")
	}
}

// Without a configured budget the host's memory is what counts, whoever uses it.
func TestBudgetFollowsHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const reserve = 1 << 30
		var available atomic.Int64
		available.Store(reserve + 200*mb)
		h := newHost(t, Config{HostReserve: reserve}, nil)
		h.Local.mu.Lock()
		h.hostMemory = func() (int64, error) { return available.Load(), nil }
		h.Local.mu.Unlock()
		a, b := version("a", "1"), version("b", "1")
		h.must(a)
		time.Sleep(2 * samplePeriod)
		h.Local.mu.Lock()
		budget := h.budget
		h.Local.mu.Unlock()
		if budget != 200*mb+10*mb {
			t.Errorf("budget %d MB: want what is free without the reserve, and what is held", budget/mb)
		}
		// Somebody else takes the memory: the idle environment has to go.
		available.Store(reserve - 50*mb)
		time.Sleep(2 * samplePeriod)
		if _, living := h.count(); living != 0 {
			t.Errorf("%d living on a host without memory", living)
		}
		h.must(b) // one always runs
		h.close()
	})
}

func TestBudgetUnknown(t *testing.T) {
	w := newLocal(Config{MemoryBudget: 1})
	w.budget = 0
	w.setBudget(0, errors.New("no /proc"))
	if w.budget != math.MaxInt64 {
		t.Errorf("budget %d on a host that does not tell", w.budget)
	}
	w.setBudget(w.hostReserve+5, nil)
	w.setBudget(0, errors.New("once"))
	if w.budget != 5 {
		t.Errorf("budget %d: a reading that failed must not change it", w.budget)
	}
}
