package worker

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// What this host can hold of environments is bounded by more than memory: by the
// file descriptors of this process and by the processes of the host. Where a start
// would need more than is left, it waits as it does for memory, instead of failing
// half-way.

// roomFresh is how long a reading of a room holds; starts since then are added.
const roomFresh = 100 * time.Millisecond

// A room is one of these bounds.
type room struct {
	name string
	read func() (used, limit int64, err error)
	// start is what one environment may need until it is idle, rest what one that is
	// idle holds at least and gives back at its end.
	start, rest int64
	// calm is what one gives back when it is put to rest.
	calm int64
	cure string // what the owner of the host can do

	used, limit int64 // as read; limit 0: unknown, nothing is refused
}

// hostRooms are those of this host.
func hostRooms() []*room {
	return []*room{
		{name: "file descriptors", read: hostDescriptors, start: 64, rest: 8, calm: 16, cure: "raise its limit: ulimit -n, or LimitNOFILE= of the service"},
		{name: "processes and threads", read: hostProcesses, start: 32, rest: 2, cure: "raise kernel.pid_max, kernel.threads-max or TasksMax= of the service"},
	}
}

// spare is the part of the limit that is not for environments: connections of
// clients, files being written, and everybody else's processes.
func (r *room) spare() int64 { return min(max(r.limit/16, 64), 2048) }

// over is by how much n more starts would exceed the room once what ends has ended.
func (r *room) over(starts, ending int64) int64 {
	if r.limit == 0 {
		return math.MinInt64
	}
	return r.used + starts*r.start - ending*r.rest - (r.limit - r.spare())
}

func (r *room) String() string {
	return fmt.Sprintf("%s: %d of %d are in use, and another environment may need %d (%s)", r.name, r.used, r.limit, r.start, r.cure)
}

// readRooms reads what is in use unless that is known. Called under mu, and blocks
// on nothing but the kernel's own figures.
func (w *Local) readRooms() {
	if now := time.Now(); len(w.rooms) > 0 && (w.roomsRead.IsZero() || now.Sub(w.roomsRead) >= roomFresh) {
		w.roomsRead, w.launched = now, 0
		for _, r := range w.rooms {
			used, limit, err := r.read()
			if err != nil {
				r.limit = 0
				continue
			}
			r.used, r.limit = used, limit
		}
	}
}

// fits reports whether so many more starts have room. When they do not, idle ones
// are ended, longest idle first, until they will once those are gone; lack is what
// there is too little of. Called under mu.
func (w *Local) fits(starts int64) (ok bool, lack *room) {
	w.readRooms()
	if over := func(r *room) bool { return r.over(starts+w.launched, int64(w.states[ending])) > 0 }; w.launched > int64(w.states[starting]) && slices.ContainsFunc(w.rooms, over) {
		// Most of what was launched since the reading has what it needs by now.
		w.roomsRead = time.Time{}
		w.readRooms()
		w.launched = int64(w.states[starting])
	}
	starts += w.launched
	now := time.Now()
	for _, r := range w.rooms {
		if over := r.over(starts, int64(w.states[ending])); over > 0 && over <= int64(w.calm.n)*r.calm && w.calmable(now, calmSoon) != nil {
			w.calmNow = true // and nobody need end
			w.kick()
			lack = r
			continue
		}
		for r.over(starts, int64(w.states[ending])) > 0 && w.idle.first != nil {
			inst := w.idle.first
			w.counters.roomClosed++
			w.log.Debug("retiring an idle environment for its "+r.name, "environment", inst.id,
				"function", inst.pool.name, "version", inst.pool.number, "used", r.used, "limit", r.limit)
			w.end(inst)
		}
		if lack == nil && r.over(starts, 0) > 0 {
			lack = r
		}
	}
	return lack == nil, lack
}

// calmable is the one that is idle longest of those not at rest, if it is for so long
// since it was frozen. Called under mu.
func (w *Local) calmable(now time.Time, after time.Duration) *instance {
	if inst := w.calm.first; inst != nil && now.Sub(inst.idleSince) >= w.cfg.FreezeDelay+after {
		return inst
	}
	return nil
}

// shortage says what there is too little of. Called under mu.
func (w *Local) shortage() error {
	if w.lack != nil {
		return fmt.Errorf("no room for another environment: %v", w.lack)
	}
	return fmt.Errorf("no memory for another environment: %d MiB are held of a budget of %d MiB", w.held>>20, w.budget>>20)
}

// hostDescriptors are the open files of this process and how many it may have.
func hostDescriptors() (used, limit int64, err error) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, 0, fmt.Errorf("read the limit of file descriptors: %w", err)
	}
	limit = int64(min(uint64(l.Cur), 1<<40))
	info, err := os.Stat("/proc/self/fd")
	if err != nil {
		return 0, 0, err
	}
	if used = info.Size(); used > 0 { // since Linux 6.2
		return used, limit, nil
	}
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return 0, 0, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	return int64(len(names)), limit, err
}

// hostProcesses are the processes and threads of the host, or of the control group
// of this process where that has less left, and how many there may be.
func hostProcesses() (used, limit int64, err error) {
	b, err := os.ReadFile("/proc/loadavg") // 0.03 0.01 0.00 1/203 4711
	if err != nil {
		return 0, 0, err
	}
	f := bytes.Fields(b)
	if len(f) < 4 {
		return 0, 0, fmt.Errorf("read /proc/loadavg: %q", b)
	}
	_, total, _ := strings.Cut(string(f[3]), "/")
	if used, err = strconv.ParseInt(total, 10, 64); err != nil {
		return 0, 0, fmt.Errorf("read /proc/loadavg: %w", err)
	}
	limit = math.MaxInt64
	for _, file := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"} {
		n, err := readNumber(file)
		if err != nil {
			return 0, 0, err
		}
		limit = min(limit, n)
	}
	ownGroups("pids", func(dir string, _ bool) bool {
		most, err := readNumber(path.Join(dir, "pids.max"))
		if err != nil {
			return false
		}
		if now, err := readNumber(path.Join(dir, "pids.current")); err == nil && most-now < limit-used {
			used, limit = now, most
		}
		return true
	})
	return used, limit, nil
}

// ownGroups calls look with the directories in which the control group of this
// process may be found, by v2 or by the named controller of v1, until it says that it
// was there.
func ownGroups(controller string, look func(dir string, unified bool) bool) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || f[1] != "" && f[1] != controller {
			continue
		}
		root := path.Join("/sys/fs/cgroup", f[1])
		// In a container whose group is the root of what it sees, the path given may
		// not exist: then its own root is meant.
		if look(path.Join(root, f[2]), f[1] == "") || look(root, f[1] == "") {
			return
		}
	}
}
