//go:build amd64 || arm64

package namespace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// cpuPeriod is the period of the processor quota in microseconds. The kernel's
// own 100 ms lets a small function stand still for 93 ms; the smallest quota is
// 1 ms, so that 10 ms is too short for the smallest functions.
const (
	cpuPeriod   = 20_000
	cpuMinQuota = 1_000
)

// A controlFile is a file of a control group, opened when it is first used. It stays
// open from one use to the next until it is shut, and is opened again when it is used
// again: a sandbox at rest holds no descriptor of it. The zero value is no file.
type controlFile struct {
	dir, base string
	flags     int
	keep      bool // open while the sandbox rests, too

	mu   sync.Mutex
	fd   int
	open bool
	gone bool // closed for good
}

// is reports whether there is such a file.
func (f *controlFile) is() bool { return f.base != "" }

// ready makes fd valid. Called under mu.
func (f *controlFile) ready() error {
	switch {
	case f.open:
		return nil
	case f.base == "", f.gone:
		return fs.ErrClosed
	}
	fd, err := unix.Open(f.dir+"/"+f.base, f.flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s/%s: %w", f.dir, f.base, err)
	}
	f.fd, f.open = fd, true
	return nil
}

// hold returns the descriptor, which stays open until release is called.
func (f *controlFile) hold() (fd int, release func(), err error) {
	f.mu.Lock()
	if err := f.ready(); err != nil {
		f.mu.Unlock()
		return -1, nil, err
	}
	return f.fd, f.mu.Unlock, nil
}

func (f *controlFile) write(value string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.ready(); err != nil {
		return err
	}
	for {
		_, err := unix.Pwrite(f.fd, []byte(value), 0)
		if err != unix.EINTR {
			return err
		}
	}
}

// read returns the content in buf, from the beginning.
func (f *controlFile) read(buf []byte) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.ready(); err != nil {
		return nil, err
	}
	for {
		n, err := unix.Pread(f.fd, buf, 0)
		if err != unix.EINTR {
			return buf[:max(n, 0)], err
		}
	}
}

// number reads a file that holds one number.
func (f *controlFile) number() (int64, error) {
	var buf [32]byte
	b, err := f.read(buf[:])
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
}

// shut closes the file until it is used again.
func (f *controlFile) shut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open {
		unix.Close(f.fd)
		f.open = false
	}
}

// close closes it for good.
func (f *controlFile) close() {
	f.shut()
	f.mu.Lock()
	f.gone = true
	f.mu.Unlock()
}

// A group is the control groups of one sandbox. Its init stands where it is not
// frozen, everything else in one group for each party. Processes are cloned into v2
// groups; they join v1 groups by themselves, as the single threads they are (tasks):
// to move a process of others, or into a v2 group, the kernel stops every fork, exec
// and exit, and waits some 7 ms for that after a quiet time.
//
//	v2       <name>/init, <name>/run/<party>; run freezes; limits on <name>
//	hybrid   v2: <name>/<party>, <name> freezes; v1 memory: <name>/<party>; others: <name>
//	v1       memory, cpuacct: <name>/<party>; freezer: <name>/run; others: <name>
type group struct {
	h      *hierarchy
	name   string
	mu     sync.Mutex
	ending bool     // the freezer is not to be touched
	hasty  bool     // what is left only runs to die; h.mu guards it
	dirs   []string // made, outermost first
	files  []*controlFile

	freeze, events controlFile // v2: cgroup.freeze and cgroup.events; v1: freezer.state
	quota          controlFile // cpu.max or cpu.cfs_quota_us
	limited        atomic.Bool // by quota
	pids           controlFile
	mem            memoryFiles
	cpu            controlFile

	// Until the init was cloned: the v2 directory it is cloned into, -1 without; that of
	// the hierarchy on hybrid.
	initDir int
	joins   []string // the tasks files of v1 groups the init joins by itself
}

// memoryFiles are what usage is read from.
type memoryFiles struct{ peak, usage, stat, events controlFile }

// path is a directory of this sandbox in a hierarchy.
func (g *group) path(mount string, rest ...string) string {
	return filepath.Join(append([]string{g.h.where(mount), g.h.base, g.name}, rest...)...)
}

// run is the v2 group of everything but the init.
func (g *group) run() string {
	if g.h.unified {
		return g.path(g.h.v2, "run")
	}
	return g.path(g.h.v2)
}

func (g *group) mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("make control group: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dirs = append(g.dirs, dir)
	return nil
}

// file names one of the group's files.
func (g *group) file(f *controlFile, flags int, dir, base string) {
	f.dir, f.base, f.flags = dir, base, flags
	g.files = append(g.files, f)
}

// rest closes what is needed only while processes run, or to freeze them.
func (g *group) rest() {
	restAll(g.files)
}

func restAll(files []*controlFile) {
	for _, f := range files {
		if !f.keep {
			f.shut()
		}
	}
}

// newGroup makes the groups of one sandbox, without limits.
func (h *hierarchy) newGroup(name string) (*group, error) {
	g := &group{h: h, name: name, initDir: -1}
	if err := g.build(); err != nil {
		_ = g.remove(context.Background())
		return nil, err
	}
	return g, nil
}

func (g *group) build() error {
	h := g.h
	g.freeze.keep = true        // who thaws is in a hurry
	g.mem.peak.keep = h.unified // a reset of the peak holds for the descriptor
	if h.v2 != "" {
		g.initDir = h.home
		if h.unified {
			outer := g.path(h.v2)
			if err := errors.Join(g.mkdir(outer), enable(outer), h.lend(outer), g.mkdir(outer+"/init")); err != nil {
				return err
			}
			var err error
			if g.initDir, err = unix.Open(outer+"/init", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
				return fmt.Errorf("open %s/init: %w", outer, err)
			}
		}
		run := g.run()
		if err := g.mkdir(run); err != nil {
			return err
		}
		if h.unified {
			if err := enable(run); err != nil {
				return err
			}
		}
		g.file(&g.freeze, unix.O_RDWR, run, "cgroup.freeze")
		g.file(&g.events, unix.O_RDONLY, run, "cgroup.events")
	}
	for _, d := range h.v1dirs(controllers()...) {
		dir := g.path(d)
		if err := g.mkdir(dir); err != nil {
			return err
		}
		g.joins = append(g.joins, dir+"/tasks")
	}
	if d := h.v1["freezer"]; d != "" && h.v2 == "" {
		for _, dir := range []string{g.path(d), g.path(d, "run")} {
			if slices.Contains(g.dirs, dir) {
				continue
			}
			if err := g.mkdir(dir); err != nil {
				return err
			}
		}
		g.file(&g.freeze, unix.O_RDWR, g.path(d, "run"), "freezer.state")
	}
	if h.unified {
		dir := g.path(h.v2)
		g.file(&g.quota, unix.O_WRONLY, dir, "cpu.max")
		g.file(&g.pids, unix.O_RDONLY, dir, "pids.current")
		g.file(&g.cpu, unix.O_RDONLY, dir, "cpu.stat")
		h.memory2(&g.mem, dir, g.file)
		return nil
	}
	if d := h.v1["cpu"]; d != "" {
		if err := writeFile(g.path(d)+"/cpu.cfs_period_us", strconv.Itoa(cpuPeriod)); err == nil {
			g.file(&g.quota, unix.O_WRONLY, g.path(d), "cpu.cfs_quota_us")
		}
	}
	if d := h.v1["pids"]; d != "" {
		g.file(&g.pids, unix.O_RDONLY, g.path(d), "pids.current")
	}
	if d := h.v1["cpuacct"]; d != "" {
		g.file(&g.cpu, unix.O_RDONLY, g.path(d), "cpuacct.usage")
	} else if h.v2 != "" {
		g.file(&g.cpu, unix.O_RDONLY, g.path(h.v2), "cpu.stat")
	}
	if d := h.v1["memory"]; d != "" {
		memory1(&g.mem, g.path(d), g.file)
	}
	return nil
}

// memory2 names the files of a v2 group.
func (h *hierarchy) memory2(m *memoryFiles, dir string, file func(f *controlFile, flags int, dir, base string)) {
	if h.peaks {
		file(&m.peak, unix.O_RDWR, dir, "memory.peak")
	}
	file(&m.usage, unix.O_RDONLY, dir, "memory.current")
	file(&m.stat, unix.O_RDONLY, dir, "memory.stat")
	file(&m.events, unix.O_RDONLY, dir, "memory.events")
}

// memory1 names the files of a v1 group, but for the events, which there are by party.
func memory1(m *memoryFiles, dir string, file func(f *controlFile, flags int, dir, base string)) {
	file(&m.peak, unix.O_RDWR, dir, "memory.max_usage_in_bytes")
	file(&m.usage, unix.O_RDONLY, dir, "memory.usage_in_bytes")
	file(&m.stat, unix.O_RDONLY, dir, "memory.stat")
}

// limit sets what the processes together may use; reserve is how many processes
// of our own count against the number.
func (g *group) limit(memory int64, processes, reserve int) error {
	type setting struct {
		file, value string
		must        bool
	}
	var s []setting
	pids := strconv.Itoa(processes + reserve)
	if g.h.unified {
		dir := g.path(g.h.v2)
		s = append(s, setting{dir + "/pids.max", pids, true})
		if memory > 0 {
			s = append(s, setting{dir + "/memory.max", strconv.FormatInt(memory, 10), true}, setting{dir + "/memory.swap.max", "0", false})
		}
	} else {
		if d := g.h.v1["pids"]; d != "" {
			s = append(s, setting{g.path(d) + "/pids.max", pids, true})
		}
		if d := g.h.v1["memory"]; d != "" && memory > 0 {
			dir := g.path(d)
			s = append(s, setting{dir + "/memory.limit_in_bytes", strconv.FormatInt(memory, 10), true},
				setting{dir + "/memory.memsw.limit_in_bytes", strconv.FormatInt(memory, 10), false}, // absent without swap accounting
				// What TCP connections hold is memory of nobody here unless it is limited,
				// and their bound is the host's: a quarter on top.
				setting{dir + "/memory.kmem.tcp.limit_in_bytes", strconv.FormatInt(max(memory/4, 16<<20), 10), false})
		}
	}
	for _, x := range s {
		if err := writeFile(x.file, x.value); err != nil && x.must {
			return fmt.Errorf("write %s to %s: %w", x.value, x.file, err)
		}
	}
	return nil
}

// setCPU limits to this many cores; 0 lifts the limit.
func (g *group) setCPU(cores float64) error {
	if !g.quota.is() || cores <= 0 && !g.limited.Load() {
		return nil
	}
	value := "-1"
	if g.h.unified {
		value = "max " + strconv.Itoa(cpuPeriod)
	}
	quota := strconv.Itoa(max(int(cores*cpuPeriod+0.5), cpuMinQuota))
	if cores > 0 {
		value = quota
		if g.h.unified {
			value += " " + strconv.Itoa(cpuPeriod)
		}
	}
	err := g.quota.write(value)
	if errors.Is(err, unix.EINVAL) { // it may not be less than the burst
		g.setBurst("0")
		err = g.quota.write(value)
	}
	if err != nil {
		return fmt.Errorf("set the processor quota to %s: %w", value, err)
	}
	g.limited.Store(cores > 0)
	if cores > 0 && cores < 1 {
		g.setBurst(quota)
	}
	return nil
}

// setBurst lets what was left of the quota in earlier periods be used in a later one,
// so much of it; before Linux 5.14 none is.
func (g *group) setBurst(us string) {
	file := g.path(g.h.v1["cpu"], "cpu.cfs_burst_us")
	if g.h.unified {
		file = g.path(g.h.v2, "cpu.max.burst")
	}
	_ = writeFile(file, us)
}

// setFrozen stops everything below run or lets it go on, and returns when the
// kernel says so.
func (g *group) setFrozen(ctx context.Context, frozen bool) error {
	if !g.freeze.is() {
		return errors.New("this host cannot freeze: it has neither a cgroup v2 hierarchy nor the v1 freezer")
	}
	value, state := "0", "frozen 0"
	file := &g.events
	switch {
	case g.h.v2 != "" && frozen:
		value, state = "1", "frozen 1"
	case g.h.v2 == "":
		file = &g.freeze
		value, state = "THAWED", "THAWED"
		if frozen {
			value, state = "FROZEN", "FROZEN"
		}
	}
	if err := g.writeFreezer(value); err != nil {
		return fmt.Errorf("write %s to the freezer: %w", value, err)
	}
	if g.h.v2 != "" && !frozen {
		// Processes run again as soon as the write is through.
		return nil
	}
	var buf [128]byte
	for i := 0; ; i++ {
		b, err := file.read(buf[:])
		if err != nil {
			return fmt.Errorf("read the freezer's state: %w", err)
		}
		if bytes.Contains(b, []byte(state)) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait until %s: %w", state, context.Cause(ctx))
		}
		switch {
		case i < 20:
			runtime.Gosched()
		case g.h.v2 != "":
			fd, release, err := file.hold()
			if err != nil {
				return fmt.Errorf("wait for the freezer: %w", err)
			}
			// The kernel notifies; the limit only serves ctx.
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, 5)
			release()
		default:
			time.Sleep(200 * time.Microsecond)
			// v1 gives up on processes that fork meanwhile.
			if err := g.writeFreezer(value); err != nil {
				return fmt.Errorf("write %s to the freezer: %w", value, err)
			}
		}
	}
}

// writeFreezer writes to the freezer until thawForGood.
func (g *group) writeFreezer(value string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ending {
		return errInitGone
	}
	return g.freeze.write(value)
}

// thawForGood is for the end: what the v1 freezer holds cannot die, and nobody
// may freeze it again meanwhile.
func (g *group) thawForGood() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ending = true
	if g.h.v2 == "" && g.freeze.is() {
		_ = g.freeze.write("THAWED")
	}
}

// closeInit closes the directory the init was cloned into.
func (g *group) closeInit() {
	if g.initDir >= 0 && g.initDir != g.h.home {
		unix.Close(g.initDir)
	}
	g.initDir = -1
}

// kill ends every process of the sandbox, or all but the init where they are in a
// group together, without any of them
// having to be given processor time first. Before Linux 5.14, and without v2, it does
// nothing; the init does it.
func (g *group) kill(initToo bool) {
	g.hasten()
	if g.h.v2 == "" {
		return
	}
	dir := g.run()
	if initToo {
		dir = g.path(g.h.v2)
	}
	_ = writeFile(dir+"/cgroup.kill", "1")
}

// killParty is kill for one party, with what it started, in whatever session, and says
// whether that can be done here.
func (g *group) killParty(p *party) (killed bool) {
	g.hasten()
	if g.h.v2 == "" || p.into == "" {
		return false
	}
	p.killed.Store(true)
	return writeFile(p.into+"/cgroup.kill", "1") == nil
}

// crowd is how many processes die too slowly where others want the processor, too.
const crowd = 32

// hasten has the processes run before all others, until calm. It is for those that
// are killed.
func (g *group) hasten() {
	if n, err := g.pids.number(); err != nil || n < crowd {
		return
	}
	g.h.mu.Lock()
	defer g.h.mu.Unlock()
	if g.hasty {
		return
	}
	g.hasty = true
	g.h.weigh(g.name, true)
	if g.h.dying++; g.h.dying == 1 {
		g.h.weigh("", true)
	}
}

// calm undoes hasten.
func (g *group) calm() {
	g.h.mu.Lock()
	defer g.h.mu.Unlock()
	if !g.hasty {
		return
	}
	g.hasty = false
	g.h.weigh(g.name, false)
	if g.h.dying--; g.h.dying == 0 {
		g.h.weigh("", false)
	}
}

// A party is the group of one party of a sandbox.
type party struct {
	name string   // of the owner, "" while nobody has taken it
	own  []string // the directories that were made for it
	into string   // the v2 one, into which its processes are cloned
	join []string // the tasks files of v1 groups they join
	mem  memoryFiles
	cpu  controlFile
	list controlFile // cgroup.procs

	// killed: its group was. Linux 6.14 and others then kill what is cloned into it
	// from a group that was not (they compare the groups' numbers of kills), so that
	// processes have to join it.
	killed atomic.Bool

	files []*controlFile
	pids  []string // on the host, as last seen; the meter's
}

// file names one of the party's files.
func (p *party) file(f *controlFile, flags int, dir, base string) {
	f.dir, f.base, f.flags = dir, base, flags
	p.files = append(p.files, f)
}

// newParty makes a group for a party.
func (g *group) newParty(n int) (*party, error) {
	p, name := &party{}, "p"+strconv.Itoa(n)
	p.mem.peak.keep = g.h.unified
	mkdir := func(dir string) error {
		if err := g.mkdir(dir); err != nil {
			return err
		}
		p.own = append(p.own, dir)
		return nil
	}
	if g.h.v2 != "" {
		p.into = filepath.Join(g.run(), name)
		if err := mkdir(p.into); err != nil {
			return nil, err
		}
		if err := g.h.lend(p.into); err != nil {
			return nil, err
		}
		p.file(&p.cpu, unix.O_RDONLY, p.into, "cpu.stat")
		if g.h.unified {
			g.h.memory2(&p.mem, p.into, p.file)
		}
	}
	if d := g.h.v1["memory"]; d != "" {
		dir := g.path(d, name)
		if err := mkdir(dir); err != nil {
			return nil, err
		}
		// Counts what TCP connections hold; the sandbox's group has the limit.
		_ = writeFile(dir+"/memory.kmem.tcp.limit_in_bytes", "-1")
		p.join = append(p.join, dir+"/tasks")
		memory1(&p.mem, dir, p.file)
		p.file(&p.mem.events, unix.O_RDONLY, dir, "memory.oom_control")
	}
	if d := g.h.v1["cpuacct"]; d != "" && g.h.v2 == "" {
		dir := g.path(d, name)
		if !slices.Contains(p.own, dir) {
			if err := mkdir(dir); err != nil {
				return nil, err
			}
			p.join = append(p.join, dir+"/tasks")
		}
		p.file(&p.cpu, unix.O_RDONLY, dir, "cpuacct.usage")
	}
	if d := g.h.v1["freezer"]; d != "" && g.h.v2 == "" {
		p.join = append(p.join, g.path(d, "run", "tasks"))
	}
	switch {
	case len(p.own) > 0:
		p.file(&p.list, unix.O_RDONLY, p.own[0], "cgroup.procs")
	case len(p.join) > 0:
		p.file(&p.list, unix.O_RDONLY, filepath.Dir(p.join[0]), "cgroup.procs")
	}
	return p, nil
}

// removeParty removes the groups of a party without processes.
func (g *group) removeParty(ctx context.Context, p *party) error {
	var errs []error
	for _, d := range p.own {
		if err := removeGroup(ctx, d); err != nil {
			errs = append(errs, err)
			continue
		}
		g.mu.Lock()
		g.dirs = slices.DeleteFunc(g.dirs, func(x string) bool { return x == d })
		g.mu.Unlock()
	}
	return errors.Join(errs...)
}

// rest closes the files until they are used again.
func (p *party) rest() {
	restAll(p.files)
}

func (p *party) close() {
	for _, f := range p.files {
		f.close()
	}
}

// remove closes the files and removes the directories, of which the processes
// must be ending.
func (g *group) remove(ctx context.Context) error {
	g.calm()
	for _, f := range g.files {
		f.close()
	}
	g.closeInit()
	var errs []error
	for i := len(g.dirs) - 1; i >= 0; i-- {
		if err := removeGroup(ctx, g.dirs[i]); err != nil {
			errs = append(errs, err)
		}
	}
	g.dirs = nil
	return errors.Join(errs...)
}

// removeGroup removes one directory. The kernel calls it busy for a moment after
// its last process was reaped.
func removeGroup(ctx context.Context, dir string) error {
	wait := 50 * time.Microsecond
	for {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINTR) || wait > time.Second {
			return fmt.Errorf("remove control group %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove control group %s: %w (%w)", dir, err, context.Cause(ctx))
		case <-time.After(wait):
			wait *= 2
		}
	}
}
