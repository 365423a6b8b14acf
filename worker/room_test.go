package worker

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lambdad/lambdad"
)

func TestHostRooms(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	for _, r := range hostRooms() {
		used, limit, err := r.read()
		if err != nil || used <= 0 || limit <= used {
			t.Errorf("%s: %d of %d, %v", r.name, used, limit, err)
		}
	}
	before, _, err := hostDescriptors()
	if err != nil {
		t.Fatal(err)
	}
	const more = 200
	for range more {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	if after, _, err := hostDescriptors(); err != nil || after-before < more/2 { // others may close theirs meanwhile
		t.Errorf("%d descriptors, and %d after opening %d, %v", before, after, more, err)
	}
}

// threads is a room of fakes: each living environment takes what one at rest gives
// back, and others take the rest.
func threads(h *host, limit int64, others *atomic.Int64) *room {
	r := &room{name: "threads", start: 20, rest: 5, cure: "buy more"}
	r.read = func() (used, most int64, err error) { return int64(h.all.n)*r.rest + others.Load(), limit, nil }
	return r
}

func (h *host) setRooms(rooms ...*room) {
	h.Local.mu.Lock()
	defer h.Local.mu.Unlock()
	h.rooms = rooms
}

// Where there is no room for another environment, the longest idle ones make way,
// never one in use, and then requests wait and are told why.
func TestRoomIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{IdleTimeout: time.Hour}, nil)
		var others atomic.Int64
		h.setRooms(threads(h, 200, &others)) // 136 without the spare: 24 environments at rest and a start
		for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
			h.must(version(name, "1"))
			time.Sleep(time.Second)
		}
		if _, living := h.count(); living != 6 {
			t.Errorf("%d living with room for all", living)
		}
		h.runTime = time.Minute
		done := make(chan string)
		go func() { done <- h.must(version("a", "1")) }() // e1 is in use, and was idle longest
		time.Sleep(time.Second)
		others.Store(100) // 130 of 136
		time.Sleep(samplePeriod)
		if ended := h.endedNow(); len(ended) != 0 {
			t.Errorf("ended %v while nothing is short", ended)
		}
		go func() { done <- h.must(version("g", "1")) }()
		time.Sleep(2 * time.Second)
		if ended := slices.Sorted(slices.Values(h.endedNow())); !slices.Equal(ended, []string{"e2", "e3", "e4"}) {
			t.Errorf("ended %v", ended)
		}
		if s := h.Stats(); s.RoomClosed != 3 || s.MemoryClosed != 0 {
			t.Errorf("closed for room %d, for memory %d", s.RoomClosed, s.MemoryClosed)
		}

		// Nothing that is not in use is left: the caller is told.
		others.Store(130)
		begin := time.Now()
		_, err := h.invoke(t.Context(), version("h", "1"))
		var e *lambdad.Error
		if !errors.As(err, &e) || e.Code != "TooManyRequestsException" || e.Reason != "ConcurrentInvocationLimitExceeded" {
			t.Fatal(err)
		}
		if why := errors.Unwrap(e); why == nil || !strings.Contains(why.Error(), "threads: 140 of 200 are in use") || !strings.Contains(why.Error(), "buy more") {
			t.Errorf("the reason: %v", why)
		}
		if d := time.Since(begin); d != 10*time.Second {
			t.Errorf("throttled after %v", d)
		}
		for range 2 {
			<-done // both in use were let be
		}
		h.close()
	})
}

// Before anybody ends for descriptors, who is idle is put to rest, which gives back most
// of what it holds.
func TestRestBeforeTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{IdleTimeout: time.Hour}, nil)
		r := &room{name: "files", start: 40, rest: 4, calm: 16}
		r.read = func() (used, limit int64, err error) {
			return int64(h.all.n)*r.rest + int64(h.calm.n)*r.calm, 64 + 300, nil // 300 without the spare
		}
		h.setRooms(r)
		for i := range 40 { // at rest they hold 160, not so within a second 800
			h.must(version(fmt.Sprint("f", i), "1"))
			time.Sleep(10 * time.Millisecond)
		}
		if s := h.Stats(); s.RoomClosed != 0 || s.Idle != 40 {
			t.Errorf("%d were ended, %d are idle", s.RoomClosed, s.Idle)
		}
		time.Sleep(2 * calmAfter)
		for i := range 60 {
			h.must(version(fmt.Sprint("g", i), "1"))
			time.Sleep(10 * time.Millisecond)
		}
		if s := h.Stats(); s.RoomClosed < 35 || s.Idle < 60 {
			t.Errorf("%d were ended where 65 fit and a start, %d are idle", s.RoomClosed, s.Idle)
		}
		h.close()
	})
}

// When others take the room there is, idle environments give theirs back before
// anybody asks; provisioned ones do not, and nothing is ended twice for the same.
func TestRoomPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{IdleTimeout: time.Hour}, func(h *host) { h.endTime = 300 * time.Millisecond })
		var others atomic.Int64
		h.setRooms(threads(h, 200, &others))
		h.Provision(version("p", "1"), 2) // e1, e2
		time.Sleep(time.Second)
		for _, name := range []string{"a", "b", "c", "d"} {
			h.must(version(name, "1"))
			time.Sleep(time.Second)
		}
		others.Store(116) // 146 of 136
		time.Sleep(samplePeriod + time.Second)
		if ended := slices.Sorted(slices.Values(h.endedNow())); !slices.Equal(ended, []string{"e3", "e4"}) { // ended at once
			t.Errorf("ended %v: want the two that were idle longest", ended)
		}
		others.Store(190)
		time.Sleep(2 * samplePeriod)
		if _, living := h.count(); living != 2 {
			t.Errorf("%d living: want the provisioned ones", living)
		}
		h.Provision(version("p", "1"), 0)
		others.Store(0)
		h.close()
	})
}

// Many starts between two readings are not admitted by the same room.
func TestRoomCountsStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{Starts: 100}, nil)
		r := &room{name: "threads", start: 20, rest: 5}
		r.read = func() (int64, int64, error) { return 0, 264, nil } // 200 without the spare
		h.setRooms(r)
		h.Local.mu.Lock()
		h.readRooms()
		admitted := 0
		for range 30 {
			if ok, _ := h.fits(1); ok {
				h.launched++
				h.states[starting]++
				admitted++
			}
		}
		h.launched, h.states[starting] = 0, 0
		h.Local.mu.Unlock()
		if admitted != 10 {
			t.Errorf("%d starts admitted where 10 fit", admitted)
		}
		h.setRooms()
		h.close()
	})
}
