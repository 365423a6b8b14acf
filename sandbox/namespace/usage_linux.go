//go:build amd64 || arm64

package namespace

import (
	"bytes"
	"fmt"
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
	cache int64 // file cache when last read
	base  int64 // the kernel's peak charge at a reset it could not follow
	own   int64 // anonymous, shared and kernel memory
	all   int64 // with mapped file pages
}

// start begins to count.
func (m *meter) start(g *group) {
	m.parties = map[*party]*peak{}
	m.cpuBase = g.cpuTime(g.cpu)
	if g.mem.events.fd >= 0 {
		m.oomBase = oomKills(g.mem.events)
	}
	m.total.base, _ = resetPeak(g.mem)
}

// resetPeak makes the kernel's peak begin again, or returns what it stands at.
func resetPeak(m memoryFiles) (base int64, err error) {
	if m.peak.fd < 0 {
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
	base, _ := resetPeak(b.shell.group.mem)
	m.total = peak{base: base}
	clear(m.parties)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.parties {
		base, _ := resetPeak(p.mem)
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
	var mapped, freed int64
	for _, p := range parties {
		pu, pm, pf := m.party(g, p)
		mapped += pm
		freed += pf
		u.Processes += pu.Processes
		u.Parties[p.name] = pu
		if !g.h.unified && p.mem.events.fd >= 0 {
			u.OOMKills += int(oomKills(p.mem.events))
		}
	}
	if n, err := g.pids.number(); g.pids.fd >= 0 && err == nil {
		u.Processes = int(max(n-own, 0))
	}
	u.CPU = time.Duration(g.cpuTime(g.cpu) - m.cpuBase)
	if g.h.unified {
		u.OOMKills = int(oomKills(g.mem.events) - m.oomBase)
	}
	u.Memory = m.total.read(g.mem, g.h.unified, mapped, freed)
	u.PeakMemory = m.total.all
	return u, nil
}

// party reads one party's use, the file pages it has mapped, and what its
// processes have given back since they were largest.
func (m *meter) party(g *group, p *party) (u sandbox.PartyUsage, mapped, freed int64) {
	pk := m.parties[p]
	if pk == nil {
		pk = &peak{}
		m.parties[p] = pk
	}
	u.CPU = time.Duration(g.cpuTime(p.cpu))
	var buf [4096]byte
	list, _ := p.list.read(buf[:])
	for line := range bytes.Lines(list) {
		pid := string(bytes.TrimSpace(line))
		s, ok := readStatus(pid)
		if !ok {
			continue
		}
		u.Processes += s.threads
		mapped = max(mapped, s.file)
		freed += max(s.peak-s.rss, 0)
	}
	u.Memory = pk.read(p.mem, g.h.unified, mapped, freed)
	u.PeakMemory = pk.all
	return u, mapped, freed
}

// read updates the peak and returns what is held now without file cache.
func (p *peak) read(m memoryFiles, unified bool, mapped, freed int64) int64 {
	if m.usage.fd < 0 {
		return 0
	}
	raw := int64(math.MaxInt64) // unknown: before Linux 5.19 on v2
	if m.peak.fd >= 0 {
		if n, err := m.peak.number(); err == nil {
			raw = n
		}
	}
	usage, err := m.usage.number()
	if err != nil {
		return 0
	}
	// Reading the statistics costs more than all else. While the peak charge stands
	// where it stood and little of it was cache, they cannot tell of a new peak.
	if raw != p.raw || raw-p.own > quarter {
		p.raw, p.cache = raw, fileCache(m.stat, unified)
	}
	cache := p.cache
	now := max(usage-cache, 0)
	own := now + freed
	if raw != math.MaxInt64 && raw > p.base {
		own = max(own, raw-cache)
	}
	own = max(min(own, raw), now)
	p.own = max(p.own, own)
	p.all = max(p.all, p.own+mapped)
	return now
}

// fileCache is the part of the charge that is file cache: reclaimable, and
// nobody's need.
func fileCache(stat controlFile, unified bool) int64 {
	var buf [4096]byte
	b, err := stat.read(buf[:])
	if err != nil {
		return 0
	}
	cache, shmem := "\ntotal_cache ", "\ntotal_shmem "
	if unified {
		cache, shmem = "\nfile ", "\nshmem "
	}
	return max(field(b, cache)-field(b, shmem), 0)
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
func oomKills(f controlFile) int64 {
	var buf [512]byte
	b, err := f.read(buf[:])
	if err != nil {
		return 0
	}
	return field(b, "\noom_kill ")
}

// cpuTime reads processor time in nanoseconds.
func (g *group) cpuTime(f controlFile) int64 {
	if f.fd < 0 {
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
func (p *party) hostPID(inside int) int {
	var buf [4096]byte
	list, _ := p.list.read(buf[:])
	for _, pid := range strings.Fields(string(list)) {
		b, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil {
			continue
		}
		_, rest, _ := bytes.Cut(b, []byte("\nNSpid:"))
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		f := bytes.Fields(line)
		if len(f) > 0 && string(f[len(f)-1]) == fmt.Sprint(inside) {
			n, _ := strconv.Atoi(pid)
			return n
		}
	}
	return 0
}
