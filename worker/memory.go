package worker

import (
	"bufio"
	"bytes"
	"fmt"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"time"
)

const (
	// floorMemory is what a starting environment is expected to need while
	// nothing is known of its version: an interpreter with a small library or an
	// extension of average size.
	floorMemory = 64 << 20
	// samplePeriod is how often the worker looks whether there is something to
	// measure, shortPeriod the same while requests wait for memory.
	samplePeriod = time.Second
	shortPeriod  = 100 * time.Millisecond
	// busyPeriod is how often an environment in use is measured.
	busyPeriod = 5 * time.Second
	// calmAfter is how long one has been idle when it is measured for the last time
	// and put to rest.
	calmAfter = time.Second
	// calmSoon is the same where others need what it holds until then.
	calmSoon = 50 * time.Millisecond
)

// reserve is what a new environment of p is expected to hold.
func (w *Local) reserve(p *pool) int64 { return max(p.need, floorMemory) }

// admit reports whether a new environment of p fits in the budget and in what else
// the host can hold. When it does not, idle ones are ended, longest idle first, until
// it will once they are gone.
// The only environment always fits: a host too small for the reserve still works.
// Called under mu.
func (w *Local) admit(p *pool) bool {
	need := w.reserve(p)
	w.shrink(need)
	memory := w.held+need <= w.budget
	room, lack := w.fits(1)
	if memory && room || w.all.n == 0 {
		return true
	}
	if w.lack = lack; !memory {
		w.lack = nil
	}
	return false
}

// shrink ends idle environments until need more bytes will fit. Called under mu.
func (w *Local) shrink(need int64) {
	for w.held-w.freeing+need > w.budget {
		inst := w.idle.first
		if inst == nil {
			return
		}
		w.counters.memoryClosed++
		w.log.Debug("retiring an idle environment for its memory", "environment", inst.id,
			"function", inst.pool.name, "version", inst.pool.number, "bytes", inst.memory, "held", w.held, "budget", w.budget)
		w.end(inst)
	}
}

// sample measures what has changed since it was last measured: environments in
// use every few seconds, idle ones once, after they froze, and then these are put
// to rest: what does not change is not looked at.
func (w *Local) sample() {
	now := time.Now()
	w.mu.Lock()
	todo := w.todo[:0]
	after, soon := calmAfter, w.calmNow
	if soon {
		w.calmNow, after = false, calmSoon
	}
	for inst := w.calmable(now, after); inst != nil; inst = w.calmable(now, after) {
		w.calm.remove(inst)
		w.looked.remove(inst)
		todo = append(todo, inst)
	}
	calm := len(todo)
	for inst := w.looked.first; inst != nil && now.Sub(inst.lookedAt) >= busyPeriod; inst = w.looked.next(inst) {
		todo = append(todo, inst)
	}
	w.mu.Unlock()
	for i, inst := range todo {
		w.measure(inst)
		if i < calm && inst.rest != nil {
			inst.rest()
		}
	}
	clear(todo)
	w.todo = todo

	var available int64
	var err error
	if w.hostMemory != nil {
		available, err = w.hostMemory()
	}
	w.mu.Lock()
	if w.hostMemory != nil {
		w.setBudget(available, err)
	}
	if soon {
		w.roomsRead = time.Time{}
	}
	w.shrink(0)
	w.fits(0)
	w.hopeAgain()
	w.pump()
	w.mu.Unlock()
}

// measure asks one sandbox what it holds. An environment that ends meanwhile
// keeps its last figure.
func (w *Local) measure(inst *instance) {
	u, err := inst.usage()
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p := inst.pool
	p.need = max(p.need, u.Memory)
	if inst.state == gone {
		return
	}
	m := u.Memory
	if inst.state == starting {
		m = max(m, inst.memory) // the reserve stands until it has started
	}
	if inst.state == ending {
		w.freeing += m - inst.memory
	}
	w.held += m - inst.memory
	if inst.measured {
		w.measured -= inst.memory
	}
	w.measured += m
	before := inst.memory
	inst.memory, inst.processes, inst.measured = m, u.Processes, true
	inst.lookedAt = time.Now()
	if inst.inIdle.in {
		w.idleHeld += m - before
	}
	if inst.inLooked.in { // behind the others
		w.looked.remove(inst)
		w.looked.push(inst)
	}
}

// setBudget derives the budget from the memory the host has left: what measured
// environments hold and what is free, less a reserve for the host. Called under mu.
func (w *Local) setBudget(available int64, err error) {
	if err != nil {
		if w.budget == 0 {
			w.budget = math.MaxInt64
			w.log.Warn("cannot tell how much memory this host has; environments are admitted without a limit unless a memory budget is configured", "err", err)
		}
		return
	}
	w.budget = max(0, w.measured+available-w.hostReserve)
}

// hostMemory returns the bytes of memory the host can still give: MemAvailable,
// or less where the control group of this process has a lower limit.
func hostMemory() (int64, error) {
	available, err := meminfo("MemAvailable")
	if err != nil {
		return 0, err
	}
	if limit, used, ok := groupMemory(); ok {
		available = min(available, max(0, limit-used))
	}
	return available, nil
}

func meminfo(name string) (int64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), name+":")
		if !ok {
			continue
		}
		f := strings.Fields(rest)
		if len(f) == 0 {
			break
		}
		n, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read %s in /proc/meminfo: %w", name, err)
		}
		return n << 10, nil
	}
	return 0, fmt.Errorf("/proc/meminfo has no %s", name)
}

// groupMemory returns limit and use of this process's own control group, v2 or
// v1, without what the kernel can take back. ok is false without a limit.
func groupMemory() (limit, used int64, ok bool) {
	ownGroups("memory", func(dir string, unified bool) bool {
		most, now, cache := "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
		if unified {
			most, now, cache = "memory.max", "memory.current", "inactive_file"
		}
		l, err := readNumber(path.Join(dir, most))
		if err != nil {
			return false
		}
		if u, err := readNumber(path.Join(dir, now)); err == nil && l < 1<<60 {
			limit, used, ok = l, u-statNumber(path.Join(dir, "memory.stat"), cache), true
		}
		return ok
	})
	return limit, used, ok
}

func readNumber(file string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	s := strings.TrimSpace(string(b))
	if s == "max" {
		return math.MaxInt64, nil
	}
	return strconv.ParseInt(s, 10, 64)
}

func statNumber(file, name string) int64 {
	b, _ := os.ReadFile(file)
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			return n
		}
	}
	return 0
}
