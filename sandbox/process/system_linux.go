package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
)

// leavesFound says whether processes that left their parents can be found.
const leavesFound = true

// adoptOrphans makes processes whose parent died children of the daemon, so that
// they can be found and reaped.
func adoptOrphans() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// A forker is one thread that starts all processes. They die with it, and so
// with the daemon (parent-death signal); a thread of Go's own choice could end
// earlier.
type forker struct {
	work chan func()
	done chan struct{}
}

func newForker() *forker {
	f := &forker{work: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		runtime.LockOSThread()
		// The daemon may go before others; what it starts does not.
		if nice, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil && nice > 20 {
			_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 0)
		}
		for w := range f.work {
			w()
		}
	}()
	return f
}

func (f *forker) start(name string, argv []string, attr *syscall.ProcAttr) (pid int, err error) {
	attr.Sys = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	c := make(chan struct{})
	f.work <- func() {
		pid, err = syscall.ForkExec(name, argv, attr)
		close(c)
	}
	<-c
	return pid, err
}

func (f *forker) close() {
	close(f.work)
	<-f.done
}

// pipeID is how a pipe looks in /proc/<pid>/fd.
func pipeID(f *os.File) string {
	s, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	return s
}

func maxRSS(ru *syscall.Rusage) int64 { return ru.Maxrss << 10 }

// A stat is one process as /proc/<pid>/stat has it.
type stat struct {
	pid, ppid, session, threads int
	zombie                      bool
	cpu                         time.Duration
	started                     uint64
}

// ticks is the unit of processor time in /proc, the same on every machine Go
// runs on.
const ticks = 10 * time.Millisecond

func readStat(pid int) (stat, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, false
	}
	// The name may hold anything, but the last parenthesis ends it.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return stat{}, false
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 {
		return stat{}, false
	}
	num := func(i int) int64 { n, _ := strconv.ParseInt(f[i], 10, 64); return n }
	return stat{
		pid: pid, zombie: f[0] == "Z" || f[0] == "X", ppid: int(num(1)), session: int(num(3)),
		cpu: time.Duration(num(11)+num(12)) * ticks, threads: int(num(17)), started: uint64(num(19)),
	}, true
}

func processes() []stat {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var list []stat
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			if s, ok := readStat(pid); ok {
				list = append(list, s)
			}
		}
	}
	return list
}

// family finds what belongs to the given processes: themselves, descendants,
// members of their sessions, and orphans of this daemon that hold one of their
// pipes or have their environment; and the descendants of all these.
func family(procs []*process) []stat {
	all := processes()
	ours := map[int]bool{}
	sessions := map[int]*process{}
	for _, p := range procs {
		sessions[p.pid] = p
		select {
		case <-p.done: // the number may be another's by now
		default:
			ours[p.pid] = true
		}
	}
	self := os.Getpid()
	for _, s := range all {
		if p := sessions[s.session]; p != nil && s.pid != s.session {
			ours[s.pid] = true
		} else if s.ppid == self && !ours[s.pid] && !s.zombie && strays(s.pid, procs) {
			ours[s.pid] = true
		}
	}
	for grown := true; grown; {
		grown = false
		for _, s := range all {
			if ours[s.ppid] && !ours[s.pid] {
				ours[s.pid], grown = true, true
			}
		}
	}
	return slices.DeleteFunc(all, func(s stat) bool { return !ours[s.pid] })
}

// strays tells whether an orphan came from one of the processes.
func strays(pid int, procs []*process) bool {
	dir := "/proc/" + strconv.Itoa(pid)
	held := map[string]bool{}
	if fds, err := os.ReadDir(dir + "/fd"); err == nil {
		for _, e := range fds {
			l, _ := os.Readlink(dir + "/fd/" + e.Name())
			held[l] = true
		}
	}
	b, _ := os.ReadFile(dir + "/environ")
	env := strings.Split(string(b), "\x00")
	for _, p := range procs {
		if slices.ContainsFunc(p.pipes, func(id string) bool { return held[id] }) {
			return true
		}
		if len(p.env) > 0 && !slices.ContainsFunc(p.env, func(e string) bool { return !slices.Contains(env, e) }) {
			return true
		}
	}
	return false
}

// killAll kills what belongs to the processes and reaps orphans among it. It
// returns how many were still alive.
func killAll(procs []*process) int {
	own := map[int]bool{}
	for _, p := range procs {
		own[p.pid] = true
	}
	alive := 0
	self := os.Getpid()
	for _, s := range family(procs) {
		if s.zombie {
			if s.ppid == self && !own[s.pid] {
				_, _ = syscall.Wait4(s.pid, nil, syscall.WNOHANG, nil)
			}
			continue
		}
		alive++
		_ = syscall.Kill(s.pid, syscall.SIGKILL)
	}
	return alive
}

// measure sums over what belongs to the processes.
func measure(procs []*process) sandbox.PartyUsage {
	var u sandbox.PartyUsage
	if len(procs) == 0 {
		return u
	}
	var file int64
	for _, s := range family(procs) {
		if s.zombie {
			continue
		}
		u.Processes += s.threads
		u.CPU += s.cpu
		b, err := os.ReadFile("/proc/" + strconv.Itoa(s.pid) + "/status")
		if err != nil {
			continue
		}
		f := func(name string) int64 {
			_, rest, _ := bytes.Cut(b, []byte("\n"+name+":"))
			fields := strings.Fields(string(rest[:min(len(rest), 40)]))
			if len(fields) == 0 {
				return 0
			}
			n, _ := strconv.ParseInt(fields[0], 10, 64)
			return n << 10
		}
		u.Memory += f("RssAnon") + f("RssShmem")
		u.PeakMemory += f("VmHWM") - f("RssFile")
		file = max(file, f("RssFile"))
	}
	u.PeakMemory += file
	return u
}

// record notes a session for a later Sweep: its id and when it began, which
// together are never used again.
func record(file string, pid int) {
	s, ok := readStat(pid)
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return // the sandbox is being destroyed
	}
	defer f.Close()
	if ok {
		fmt.Fprintf(f, "%d %d\n", pid, s.started)
	}
}

// endRecorded kills what still runs of the sessions in a record. A session id
// can only have been used again by a process that began after ours ended; such a
// session has a leader with another beginning.
func endRecorded(ctx context.Context, file string) error {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	began := map[int]uint64{}
	for line := range strings.Lines(string(b)) {
		var pid int
		var at uint64
		if n, _ := fmt.Sscan(line, &pid, &at); n == 2 {
			began[pid] = at
		}
	}
	for {
		left := 0
		for _, s := range processes() {
			at, ok := began[s.session]
			if !ok || s.zombie || s.pid == os.Getpid() || s.started < at {
				continue
			}
			if leader, alive := readStat(s.session); alive && leader.started != at {
				continue
			}
			left++
			_ = syscall.Kill(s.pid, syscall.SIGKILL)
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes of %s still run: %w", left, file, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
}
