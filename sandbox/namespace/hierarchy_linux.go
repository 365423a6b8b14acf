//go:build amd64 || arm64

package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A hierarchy is where control groups live on this host. Three kinds exist: v2
// with controllers; v1 with a v2 hierarchy beside it that has none but freezes
// and kills ("hybrid"); v1 alone.
type hierarchy struct {
	base    string            // name of our directory in each
	v2      string            // mount point, "" when there is none
	unified bool              // the controllers are on v2
	v1      map[string]string // controller to mount point; empty when unified

	// at is the group below which ours is made, by mount point: the root of the
	// hierarchy when nothing else is said, or the one this process was given.
	at    map[string]string
	why   error // rootless: why something could not be had
	moved bool  // the daemon stands in a leaf of our directory

	// What inits are on the host: they clone processes into v2 groups, for which the
	// kernel wants them to own the groups' cgroup.procs. Negative: as the daemon.
	inits int
	home  int // hybrid: our v2 directory, in which inits stand; -1 otherwise

	peaks bool // v2 has memory.peak, since Linux 5.19

	mu    sync.Mutex
	dying int // groups that go before others
}

// controllers that limit or count; without them the driver still isolates.
func controllers() []string { return []string{"memory", "pids", "cpu", "cpuacct"} }

// findHierarchy reads where control groups are mounted.
func findHierarchy(mountinfo, base string) *hierarchy {
	h := &hierarchy{base: base, v1: map[string]string{}, inits: -1, home: -1}
	for line := range strings.Lines(mountinfo) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 {
			continue
		}
		dir := unescape(l[4])
		switch r[0] {
		case "cgroup2":
			if h.v2 == "" {
				h.v2 = dir
			}
		case "cgroup":
			for _, c := range strings.Split(r[2], ",") {
				if (slices.Contains(controllers(), c) || c == "freezer") && h.v1[c] == "" {
					h.v1[c] = dir
				}
			}
		}
	}
	if h.v2 != "" {
		b, _ := os.ReadFile(h.v2 + "/cgroup.controllers")
		h.unified = slices.Contains(strings.Fields(string(b)), "memory")
	}
	if h.unified {
		clear(h.v1)
	}
	return h
}

// settle forgets what is not needed: a v2 group counts processor time, whatever
// controls it.
func (h *hierarchy) settle() {
	if h.v2 != "" && h.v1["cpuacct"] != h.v1["cpu"] {
		delete(h.v1, "cpuacct")
	}
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	for i := 0; i+3 < len(s); i++ {
		if s[i] == '\\' {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				s = s[:i] + string(rune(n)) + s[i+4:]
			}
		}
	}
	return s
}

// kind names the hierarchy for people.
func (h *hierarchy) kind() string {
	switch {
	case h.unified:
		return "cgroup v2"
	case h.v2 != "":
		return "cgroup v1 with a v2 hierarchy beside it"
	case len(h.v1) > 0:
		return "cgroup v1"
	}
	return "no cgroups"
}

// v1dirs are the distinct v1 directories for the given controllers.
func (h *hierarchy) v1dirs(names ...string) []string {
	var dirs []string
	for _, n := range names {
		if d := h.v1[n]; d != "" && !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// findOwn finds the groups this process was given: on any hierarchy the one it is
// in when whoever started it says so (systemd's Delegate=yes leaves a mark), or,
// without privileges, in any case.
func (h *hierarchy) findOwn(procCgroup string, always bool) {
	h.at = map[string]string{}
	for line := range strings.Lines(procCgroup) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 || strings.HasPrefix(f[2], "/..") {
			continue
		}
		mounts := []string{h.v2}
		if f[1] != "" {
			mounts = h.v1dirs(strings.Split(f[1], ",")...)
		}
		for _, m := range mounts {
			if m == "" {
				continue
			}
			dir := filepath.Join(m, f[2])
			// A daemon that was here before left its leaf to us.
			if parent := filepath.Dir(dir); filepath.Base(dir) == leafName && strings.HasPrefix(filepath.Base(parent), "lambdad-") {
				dir = filepath.Dir(parent)
			}
			if always || delegated(dir) {
				h.at[m] = dir
			}
		}
	}
}

// leafName is the group the daemon itself moves to.
const leafName = "daemon"

// delegated says whether systemd handed this group to who runs in it.
func delegated(dir string) bool {
	for _, name := range []string{"trusted.delegate", "user.delegate"} {
		var b [8]byte
		if n, err := unix.Getxattr(dir, name, b[:]); err == nil && string(b[:n]) == "1" {
			return true
		}
	}
	return false
}

// where is the directory ours is made in.
func (h *hierarchy) where(mount string) string {
	if dir := h.at[mount]; dir != "" {
		return dir
	}
	return mount
}

// roots are our directories in every hierarchy in use.
func (h *hierarchy) roots() []string {
	var dirs []string
	if h.v2 != "" {
		dirs = append(dirs, h.v2)
	}
	names := controllers()
	if h.v2 == "" {
		names = append(names, "freezer") // otherwise v2 freezes
	}
	dirs = append(dirs, h.v1dirs(names...)...)
	for i := range dirs {
		dirs[i] = filepath.Join(h.where(dirs[i]), h.base)
	}
	return dirs
}

// prepareSome makes what it can of our directories and forgets the hierarchies in
// which it cannot.
func (h *hierarchy) prepareSome() {
	var errs []error
	usable := func(mount string) bool {
		if h.at[mount] == "" {
			errs = append(errs, fmt.Errorf("no control group below %s was delegated", mount))
			return false
		}
		dir := filepath.Join(h.where(mount), h.base)
		err := os.Mkdir(dir, 0o755)
		if err == nil || errors.Is(err, fs.ErrExist) {
			// The right to make a group is not the right to fill it.
			if err = writeFile(h.where(mount)+"/cgroup.procs", ""); errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
				_ = unix.Rmdir(dir)
				err = fmt.Errorf("fill control group %s: %w", h.where(mount), err)
			} else {
				err = nil
			}
		} else {
			err = fmt.Errorf("make control group: %w", err)
		}
		if err != nil {
			errs = append(errs, err)
		}
		return err == nil
	}
	if h.v2 != "" && !usable(h.v2) {
		h.v2, h.unified = "", false
	}
	for c, mount := range h.v1 {
		if c == "freezer" && h.v2 != "" {
			continue // v2 freezes
		}
		if !usable(mount) {
			delete(h.v1, c)
		}
	}
	if h.v2 != "" {
		if err := h.prepare(); err != nil {
			errs = append(errs, err)
			_ = unix.Rmdir(filepath.Join(h.where(h.v2), h.base, leafName))
			_ = unix.Rmdir(filepath.Join(h.where(h.v2), h.base))
			h.v2, h.unified = "", false
		}
	}
	if len(errs) > 0 {
		slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		h.why = errs[0]
	} else if h.v2 == "" && len(h.v1) == 0 {
		h.why = errors.New("no control group hierarchy is mounted")
	}
}

// close removes our directories, from which the daemon moves out if it has moved
// in.
func (h *hierarchy) close() {
	if h.home >= 0 {
		unix.Close(h.home)
		h.home = -1
	}
	for _, dir := range h.roots() {
		if unix.Rmdir(dir) == nil || !h.moved {
			continue
		}
		leaf, above := filepath.Join(dir, leafName), filepath.Dir(dir)
		for _, d := range []string{dir, above} {
			_ = writeFile(d+"/cgroup.subtree_control", "-memory -pids -cpu")
		}
		if writeFile(above+"/cgroup.procs", "0") == nil {
			_ = unix.Rmdir(leaf)
			_ = unix.Rmdir(dir)
		}
	}
}

// prepare makes our directories.
func (h *hierarchy) prepare() error {
	for _, d := range h.roots() {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make control group %s: %w", d, err)
		}
	}
	defer h.weigh("", false)
	if d := h.v1["memory"]; d != "" {
		// What is made below inherits it. Without swap accounting nothing else keeps
		// sandboxes out of swap.
		_ = writeFile(filepath.Join(h.where(d), h.base, "memory.swappiness"), "0")
	}
	if h.v2 == "" {
		return nil
	}
	above := h.where(h.v2)
	if !h.unified {
		dir := filepath.Join(above, h.base)
		var err error
		if h.home, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open %s: %w", dir, err)
		}
		return h.lend(dir)
	}
	if err := enable(above); err != nil {
		// A group with processes cannot hand controllers down: leave it first.
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		leaf := filepath.Join(above, h.base, leafName)
		if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make control group %s: %w", leaf, err)
		}
		if err := writeFile(leaf+"/cgroup.procs", "0"); err != nil {
			return fmt.Errorf("move the daemon to %s: %w", leaf, err)
		}
		h.moved = true
		// Beside the sandboxes, each of which has 100: however many are busy, it answers.
		defer func() { _ = writeFile(leaf+"/cpu.weight", "10000") }()
		if err := enable(above); err != nil {
			return fmt.Errorf("%w: other processes stand in this group; give lambdad one of its own (systemd: Delegate=yes)", err)
		}
	}
	dir := filepath.Join(above, h.base)
	h.peaks = unix.Access(dir+"/memory.peak", unix.F_OK) == nil
	return enable(dir)
}

// weigh sets how much the group of a name, "" for all together, counts against others
// when the processor is scarce. All sandboxes weigh as much as an ordinary process on
// every processor, each of them as much as another, and who only runs to die before
// everybody.
func (h *hierarchy) weigh(name string, dying bool) {
	each := 1
	if name == "" {
		each = runtime.NumCPU()
	}
	if h.unified {
		weight := min(100*each, 10_000)
		if dying {
			weight = 10_000
		}
		_ = writeFile(filepath.Join(h.where(h.v2), h.base, name, "cpu.weight"), strconv.Itoa(weight))
	} else if d := h.v1["cpu"]; d != "" {
		shares := min(1024*each, 262_144)
		if dying {
			shares = 262_144
		}
		_ = writeFile(filepath.Join(h.where(d), h.base, name, "cpu.shares"), strconv.Itoa(shares))
	}
}

// enable hands the controllers of a v2 group down to its children.
func enable(dir string) error {
	f := filepath.Join(dir, "cgroup.subtree_control")
	if err := writeFile(f, "+memory +pids +cpu"); err != nil {
		return fmt.Errorf("enable memory, pids and cpu in %s: %w", f, err)
	}
	return nil
}

// lend lets inits clone processes into a v2 group, or into one below it from one
// below it.
func (h *hierarchy) lend(dir string) error {
	if h.inits < 0 {
		return nil
	}
	if err := unix.Fchownat(unix.AT_FDCWD, dir+"/cgroup.procs", h.inits, -1, 0); err != nil {
		return fmt.Errorf("give %s/cgroup.procs to the init: %w", dir, err)
	}
	return nil
}

func writeFile(name, value string) error {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return err
}
