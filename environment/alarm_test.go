package environment

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// TestAlarm: an alarm that is set again and again rings once, when it is due, and one
// that is off does not.
func TestAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a alarm
		begun := time.Now()
		wait := func() time.Duration {
			for {
				select {
				case <-a.timer.C:
					if a.due() {
						return time.Since(begun)
					}
				case <-time.After(time.Hour):
					return time.Hour
				}
			}
		}
		set := func(d time.Duration) { a.set(begun.Add(d), time.Now()) }
		set(5 * time.Second)
		set(2 * time.Second)
		set(9 * time.Second)
		if d := wait(); d != 9*time.Second {
			t.Errorf("rang after %v", d)
		}
		set(11 * time.Second)
		a.off()
		if d := wait(); d != time.Hour {
			t.Errorf("rang after %v while it was off", d)
		}
		begun = time.Now()
		set(0)
		if d := wait(); d != 0 {
			t.Errorf("rang after %v, not at once", d)
		}
		set(time.Second)
		time.Sleep(2 * time.Second) // its value is waiting
		set(3 * time.Second)
		if d := wait(); d != 3*time.Second {
			t.Errorf("rang after %v", d)
		}
	})
}

// Where many are at work, each is looked at less often, and none less than at last.
func TestSpread(t *testing.T) {
	n := 0
	s := sampler{crowd: func() int { return n }}
	few := lookCrowd * runtime.NumCPU()
	for _, c := range []struct {
		crowd int
		want  time.Duration
	}{{0, lookOften}, {1, lookOften}, {few, lookOften}, {3 * few, 3 * lookOften}, {1000 * few, lookRare}} {
		if n = c.crowd; s.spread(lookOften) != c.want {
			t.Errorf("%d at work: %v, want %v", n, s.spread(lookOften), c.want)
		}
	}
	if d := (&sampler{}).spread(lookOften); d != lookOften {
		t.Errorf("alone: %v", d)
	}
}
