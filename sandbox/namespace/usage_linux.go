//go:build amd64 || arm64

package namespace

import (
	"bytes"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
)

// How the peak of memory is found.
//
// What is wanted is the largest amount of anonymous, shared and kernel memory
// held at one time, plus mapped file pages. The kernel keeps the largest charge,
// which also counts every file page read or written. Two estimates bound the
// truth from below, and the larger one is taken:
//
//   - the peak charge without the file cache charged now: exact unless cache
//     displaced what was allocated and freed before;
//   - what is charged now without file cache, plus what living processes have
//     given back since their largest size (VmHWM - VmRSS): exact for that case.
//
// Cache that came and went between two readings is in the first estimate; so the
// group is also looked at while its processes work (Sample), and where such a look
// found nearly as much as the peak, the cache it found is left out.
//
// Neither may exceed the peak charge. Then the file pages the processes have
// mapped are added, for each party those of the process that maps most: the
// others of a party mostly map the same libraries. They are charged to whoever
// read them first, often the daemon, and so cannot be read from a group.
//
// A meter keeps what is known about a sandbox's use between two readings.
type meter struct {
	mu      sync.Mutex
	total   peak
	parties map[*party]*peak
	cpuBase int64
	oomBase int64
}

// quarter is what a figure shown in MiB may be wrong by.
const quarter = 256 << 10

// A peak is the running maximum of one group.
type peak struct {
	raw   int64 // the kernel's peak charge when last read
	usage int64 // the charge when last read
	cache int64 // file cache when last read
	base  int64 // the kernel's peak charge at a reset it could not follow
	own   int64 // anonymous, shared and kernel memory
	// The largest charge that was seen at a look, and the file cache in it.
	seen, seenCache int64
	all             int64 // with mapped file pages
	cpu             time.Duration
}

// start begins to count.
func (m *meter) start(g *group) {
	m.parties = map[*party]*peak{}
	m.cpuBase = g.cpuTime(&g.cpu)
	if g.mem.events.is() {
		m.oomBase = oomKills(&g.mem.events)
	}
	m.total.base, _ = resetPeak(&g.mem)
}

// resetPeak makes the kernel's peak begin again, or returns what it stands at.
func resetPeak(m *memoryFiles) (base int64, err error) {
	if !m.peak.is() {
		return 0, nil
	}
	if err = m.peak.write("0"); err == nil { // v1; v2 since 6.12 takes any string
		return 0, nil
	}
	base, _ = m.peak.number()
	return base, err
}

// reset begins a new life of the sandbox: earlier peaks are forgotten.
func (m *meter) reset(b *box) {
	m.mu.Lock()
	defer m.mu.Unlock()
	base, _ := resetPeak(&b.shell.group.mem)
	m.total = peak{base: base}
	clear(m.parties)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.parties {
		base, _ := resetPeak(&p.mem)
		m.parties[p] = &peak{base: base}
	}
}

// Usage reports what the sandbox uses.
func (b *box) Usage() (sandbox.Usage, error) {
	if err := b.Enter(); err != nil {
		return sandbox.Usage{}, err
	}
	defer b.Leave()
	g, m := b.shell.group, &b.meter
	m.mu.Lock()
	defer m.mu.Unlock()
	b.mu.Lock()
	parties := make([]*party, 0, len(b.parties))
	for _, p := range b.parties {
		parties = append(parties, p)
	}
	own := int64(1 + len(b.shell.ready)) // the init and the children that wait
	b.mu.Unlock()

	u := sandbox.Usage{Parties: make(map[string]sandbox.PartyUsage, len(parties))}
	var whole held
	orphans := b.shell.family(parties)
	for _, p := range parties {
		pu, h := m.party(g, p)
		whole.add(h)
		u.Processes += pu.Processes
		u.Parties[p.name] = pu
		if !g.h.unified && p.mem.events.is() {
			u.OOMKills += int(oomKills(&p.mem.events))
		}
	}
	whole.measure(orphans)
	u.Processes += whole.threads
	if n, err := g.pids.number(); g.pids.is() && err == nil {
		u.Processes = int(max(n-own, 0))
	}
	if u.CPU = time.Duration(g.cpuTime(&g.cpu) - m.cpuBase); !g.cpu.is() {
		u.CPU = m.total.time(whole.cpu)
	}
	if g.h.unified {
		u.OOMKills = int(oomKills(&g.mem.events) - m.oomBase)
	}
	u.Memory = m.total.read(&g.mem, g.h.unified, whole)
	u.PeakMemory = m.total.all
	b.restAgain(parties)
	return u, nil
}

// held is what processes say of themselves.
type held struct {
	mapped  int64 // file pages of the one that maps most
	freed   int64 // given back since they were largest
	own     int64 // anonymous and shared memory
	cpu     time.Duration
	threads int // of those measured last
}

func (h *held) add(x held) {
	h.mapped += x.mapped
	h.freed += x.freed
	h.own += x.own
	h.cpu += x.cpu
}

// measure adds processes.
func (h *held) measure(pids []string) {
	h.threads = 0
	var file int64
	for _, pid := range pids {
		s, ok := readStatus(pid)
		if !ok {
			continue
		}
		h.threads += s.threads
		file = max(file, s.file)
		h.freed += max(s.peak-s.rss, 0)
		h.own += max(s.rss-s.file, 0)
	}
	h.mapped += file
}

// time is processor time where no group counts it: what living processes and the
// children they waited for have used. It never goes back.
func (p *peak) time(now time.Duration) time.Duration {
	p.cpu = max(p.cpu, now)
	return p.cpu
}

// party reads one party's use and what its processes say.
func (m *meter) party(g *group, p *party) (u sandbox.PartyUsage, h held) {
	pk := m.parties[p]
	if pk == nil {
		pk = &peak{}
		m.parties[p] = pk
	}
	pids := p.pids
	if p.list.is() {
		var buf [4096]byte
		list, _ := p.list.read(buf[:])
		pids = pids[:0]
		for line := range bytes.Lines(list) {
			pids = append(pids, string(bytes.TrimSpace(line)))
		}
		p.pids = pids
	}
	h.measure(pids)
	u.Processes, h.threads = h.threads, 0
	if u.CPU = time.Duration(g.cpuTime(&p.cpu)); !p.cpu.is() {
		for _, pid := range pids {
			h.cpu += processTime(pid)
		}
		u.CPU = pk.time(h.cpu)
	}
	u.Memory = pk.read(&p.mem, g.h.unified, h)
	u.PeakMemory = pk.all
	return u, h
}

// family finds the processes of parties that have no group to be listed in, by
// descent from the init, and returns those of nobody: what lost its parents.
func (s *shell) family(parties []*party) (orphans []string) {
	none := true
	for _, p := range parties {
		if !p.list.is() {
			p.pids, none = p.pids[:0], false
		}
	}
	if none {
		return nil
	}
	s.mu.Lock()
	owner := map[string]*party{}
	for pid, p := range s.owners {
		owner[strconv.Itoa(pid)] = p
	}
	s.mu.Unlock()
	for _, child := range childrenOf(s.init) {
		list := descendants(child)
		switch p, known := owner[insidePID(child)]; {
		case !known:
			orphans = append(orphans, list...)
		case !p.list.is() && p.name != "":
			p.pids = append(p.pids, list...)
		}
	}
	return orphans
}

// descendants are a process and what descends from it.
func descendants(pid string) []string {
	list := []string{pid}
	for i := 0; i < len(list); i++ {
		list = append(list, childrenOf(list[i])...)
	}
	return list
}

func childrenOf(pid string) []string {
	var list []string
	tasks, _ := os.ReadDir("/proc/" + pid + "/task")
	for _, t := range tasks {
		b, _ := os.ReadFile("/proc/" + pid + "/task/" + t.Name() + "/children")
		list = append(list, strings.Fields(string(b))...)
	}
	return list
}

// insidePID is the pid in the innermost namespace.
func insidePID(pid string) string {
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return ""
	}
	_, rest, _ := bytes.Cut(b, []byte("\nNSpid:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	f := bytes.Fields(line)
	if len(f) == 0 {
		return ""
	}
	return string(f[len(f)-1])
}

// processTime is the processor time of a process and of the children it waited for.
func processTime(pid string) time.Duration {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(b, []byte(") "))
	f := bytes.Fields(rest)
	if len(f) < 15 {
		return 0
	}
	var ticks int64
	for _, x := range f[11:15] { // utime, stime, cutime, cstime
		n, _ := strconv.ParseInt(string(x), 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100 // USER_HZ
}

// Sample implements sandbox.Sampler.
func (b *box) Sample() {
	if b.Enter() != nil {
		return
	}
	defer b.Leave()
	g, m := b.shell.group, &b.meter
	m.mu.Lock()
	defer m.mu.Unlock()
	b.mu.Lock()
	parties := make([]*party, 0, 4)
	for _, p := range b.parties {
		parties = append(parties, p)
	}
	b.mu.Unlock()
	m.total.look(&g.mem, g.h.unified)
	for _, p := range parties {
		pk := m.parties[p]
		if pk == nil {
			pk = &peak{}
			m.parties[p] = pk
		}
		pk.look(&p.mem, g.h.unified)
	}
}

// Grown implements sandbox.Sampler.
func (b *box) Grown() bool {
	if b.Enter() != nil {
		return true
	}
	defer b.Leave()
	g, m := b.shell.group, &b.meter
	m.mu.Lock()
	defer m.mu.Unlock()
	if !g.mem.peak.is() {
		return true
	}
	if n, err := g.mem.peak.number(); err != nil || n != m.total.raw {
		return true
	} else if n-m.total.own <= quarter {
		return false
	}
	// File cache may have made room for something else.
	n, err := g.mem.usage.number()
	return err != nil || n-m.total.usage > quarter || m.total.usage-n > quarter
}

// look notes the file cache of a charge that is the largest up to now, when it is
// larger than anything already understood.
func (p *peak) look(m *memoryFiles, unified bool) {
	if !m.usage.is() {
		return
	}
	usage, err := m.usage.number()
	if err != nil || usage <= p.seen || usage-p.own <= quarter {
		return
	}
	p.seen, p.seenCache = usage, fileCache(&m.stat, unified)
}

// nearly is the part of the peak that a look must have found to tell about it.
const nearly = 8

// read updates the peak and returns what is held now without file cache.
func (p *peak) read(m *memoryFiles, unified bool, h held) int64 {
	mapped, freed := h.mapped, h.freed
	if !m.usage.is() { // no group counts: what is gone before it is asked for is missed
		p.own = max(p.own, h.own+freed)
		p.all = max(p.all, p.own+mapped)
		return h.own
	}
	raw := int64(math.MaxInt64) // unknown: before Linux 5.19 on v2
	if m.peak.is() {
		if n, err := m.peak.number(); err == nil {
			raw = n
		}
	}
	usage, err := m.usage.number()
	if err != nil {
		return 0
	}
	p.usage = usage
	// Reading the statistics costs more than all else. While the peak charge stands
	// where it stood and little of it was cache, they cannot tell of a new peak.
	if raw != p.raw || raw-p.own > quarter {
		p.raw, p.cache = raw, fileCache(&m.stat, unified)
	}
	cache := p.cache
	now := max(usage-cache, 0)
	own := now + freed
	if raw != math.MaxInt64 && raw > p.base {
		if raw-p.seen <= raw/nearly {
			cache = max(cache, p.seenCache)
		}
		own = max(own, raw-cache)
	}
	own = max(min(own, raw), now)
	p.own = max(p.own, own)
	p.all = max(p.all, p.own+mapped)
	return now
}

// recordsOf is the part of the file cache that the kernel needs on top to keep book of
// it: at most a buffer head (104 bytes) and an entry of the page tree for each page.
const recordsOf = 32

// fileCache is the part of the charge that is file cache, with the kernel's records
// of it: reclaimable, and nobody's need. What else is reclaimable kernel memory, such
// as the inodes of open sockets, counts; v1 does not tell it from the rest, and there
// the records count, too.
func fileCache(stat *controlFile, unified bool) int64 {
	var buf [4096]byte
	b, err := stat.read(buf[:])
	if err != nil {
		return 0
	}
	cache, shmem := "\ntotal_cache ", "\ntotal_shmem "
	if unified {
		cache, shmem = "\nfile ", "\nshmem "
	}
	file := max(field(b, cache)-field(b, shmem), 0)
	return file + min(field(b, "\nslab_reclaimable "), file/recordsOf)
}

// field finds the number behind a name; names begin with the newline before
// them, so the first line of the file is never found.
func field(b []byte, name string) int64 {
	i := bytes.Index(b, []byte(name))
	if i < 0 {
		return 0
	}
	b = b[i+len(name):]
	var n int64
	for _, c := range b {
		if c == ' ' || c == '\t' {
			continue
		}
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int64(c-'0')
	}
	return n
}

// oomKills reads how many processes the kernel ended for lack of memory.
func oomKills(f *controlFile) int64 {
	var buf [512]byte
	b, err := f.read(buf[:])
	if err != nil {
		return 0
	}
	return field(b, "\noom_kill ")
}

// cpuTime reads processor time in nanoseconds.
func (g *group) cpuTime(f *controlFile) int64 {
	if !f.is() {
		return 0
	}
	var buf [512]byte
	b, err := f.read(buf[:])
	if err != nil {
		return 0
	}
	if rest, ok := bytes.CutPrefix(b, []byte("usage_usec ")); ok {
		return field(append([]byte("\n= "), rest...), "\n= ") * 1000
	}
	n, _ := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	return n
}

// status is what of /proc/<pid>/status matters here, in bytes.
type status struct {
	peak, rss, file int64
	threads         int
}

func readStatus(pid string) (status, bool) {
	fd, err := unix.Open("/proc/"+pid+"/status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return status{}, false
	}
	defer unix.Close(fd)
	var buf [4096]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil || n <= 0 {
		return status{}, false
	}
	b := buf[:n]
	return status{
		peak:    field(b, "\nVmHWM:") << 10,
		rss:     field(b, "\nVmRSS:") << 10,
		file:    field(b, "\nRssFile:") << 10,
		threads: int(field(b, "\nThreads:")),
	}, true
}

// hostPID finds the pid on the host of one inside.
func (s *shell) hostPID(p *party, inside int) int {
	var list []string
	if p.list.is() {
		var buf [4096]byte
		b, _ := p.list.read(buf[:])
		p.list.shut()
		list = strings.Fields(string(b))
	} else {
		list = childrenOf(s.init)
	}
	for _, pid := range list {
		if insidePID(pid) == strconv.Itoa(inside) {
			n, _ := strconv.Atoi(pid)
			return n
		}
	}
	return 0
}
