package leak

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox/namespace"
)

// Take counts what belongs to a scope now. Some of it needs root to be seen.
func Take(s Scope) (Count, error) {
	c := Count{}
	pid := s.PID
	if pid == 0 {
		pid = os.Getpid()
		c.addN("goroutines", "running", runtime.NumGoroutine())
	}
	procs, err := s.processes(pid)
	if err != nil {
		return nil, err
	}
	namespaces := map[string]bool{}
	for p, name := range procs {
		if p != pid {
			c.add("processes", name)
		}
		s.process(c, p, p == pid, name, namespaces)
	}
	if err := s.mounts(c, namespaces); err != nil {
		return nil, err
	}
	if err := s.groups(c); err != nil {
		return nil, err
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range interfaces {
		if s.named(i.Name) {
			c.add("interfaces", i.Name)
		}
	}
	named, _ := os.ReadDir("/run/netns")
	for _, e := range named {
		if s.named(e.Name()) {
			c.add("network namespaces", "/run/netns/"+e.Name())
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if b, err := os.ReadFile(l); err == nil && s.mentions(string(b)) {
			c.add("loop devices", strings.TrimSpace(string(b)))
		}
	}
	tables, err := nftTables()
	if err != nil {
		return nil, err
	}
	for _, name := range tables {
		if s.named(name) {
			c.add("nftables tables", name)
		}
	}
	for _, dir := range s.Dirs {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it went while we looked
			}
			if err == nil {
				c.add("files", path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

// named reports whether a name is one the server gives.
func (s Scope) named(name string) bool {
	return s.ID != "" && (strings.Contains(name, "lambdad-"+s.ID) || strings.HasPrefix(name, namespace.LinksOf(s.ID)))
}

// mentions reports whether text has the server's name or a directory of its.
func (s Scope) mentions(text string) bool {
	for _, d := range s.Dirs {
		if strings.Contains(text, d) {
			return true
		}
	}
	return s.named(text)
}

// processes returns pid, its descendants and all processes in control groups of
// the scope, by what they are called.
func (s Scope) processes(pid int) (map[int]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	parent, name := map[int]int{}, map[int]string{}
	found := map[int]string{}
	for _, e := range entries {
		p, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
		if err != nil {
			continue
		}
		// pid (comm) state ppid: comm may hold anything.
		open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		f := strings.Fields(string(stat[end+1:]))
		parent[p], _ = strconv.Atoi(f[1])
		name[p] = string(stat[open+1:end]) + " (" + f[0] + ")"
		if g, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p)); err == nil && s.named(string(g)) {
			found[p] = name[p]
		}
	}
	for p := range parent {
		for q := p; q > 1; q = parent[q] {
			if q == pid {
				found[p] = name[p]
				break
			}
		}
	}
	return found, nil
}

// process counts what one process has.
func (s Scope) process(c Count, pid int, server bool, name string, namespaces map[string]bool) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	tasks, _ := os.ReadDir(dir + "task")
	if server {
		c.addN("threads", "of the server", len(tasks))
	} else {
		c.addN("threads of others", name, len(tasks))
	}
	fds, _ := os.ReadDir(dir + "fd")
	for _, fd := range fds {
		target, err := os.Readlink(dir + "fd/" + fd.Name())
		if err != nil {
			continue
		}
		// Inode numbers say nothing about which one is new.
		kind, _, _ := strings.Cut(target, ":[")
		c.add("descriptors", kind)
		if kind == "net" || kind == "mnt" {
			spaceOf(c, kind, target, namespaces)
		}
	}
	for _, kind := range []string{"net", "mnt"} {
		if target, err := os.Readlink(dir + "ns/" + kind); err == nil {
			spaceOf(c, kind, target, namespaces)
		}
	}
}

func spaceOf(c Count, kind, target string, seen map[string]bool) {
	if seen[target] {
		return
	}
	seen[target] = true
	c.add(map[string]string{"net": "network namespaces", "mnt": "mount namespaces"}[kind], kind)
}

// mounts counts, in every mount namespace of the host, the mounts that mention
// the scope, and all of those in namespaces of its processes.
func (s Scope) mounts(c Count, ours map[string]bool) error {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	home, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, p := range procs {
		ns, err := os.Readlink(p + "/ns/mnt")
		if err != nil || seen[ns] {
			continue
		}
		info, err := os.ReadFile(p + "/mountinfo")
		if err != nil {
			continue
		}
		seen[ns] = true
		for line := range strings.Lines(string(info)) {
			if f := strings.Fields(line); len(f) > 4 && (ours[ns] && ns != home || s.mentions(line)) {
				c.add("mounts", f[4])
			}
		}
	}
	return nil
}

// groups counts control groups of the scope in all hierarchies.
func (s Scope) groups(c Count) error {
	if s.ID == "" {
		return nil
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(info)) {
		left, right, _ := strings.Cut(line, " - ")
		f := strings.Fields(left)
		if len(f) < 5 || !strings.HasPrefix(right, "cgroup") {
			continue
		}
		top := f[4]
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // it went while we looked
			}
			if d.IsDir() && s.named(path) {
				c.add("control groups", strings.TrimPrefix(path, "/sys/fs/cgroup/"))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// nftTables lists the nftables tables of this network namespace; none where the
// kernel has no nftables.
func nftTables() ([]string, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, nil
	}
	defer unix.Close(fd)
	// A header, then struct nfgenmsg of all zeroes: every family.
	req := make([]byte, unix.NLMSG_HDRLEN+4)
	binary.NativeEndian.PutUint32(req[0:], uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return nil, err
	}
	var names []string
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return nil, fmt.Errorf("list nftables tables: %w", err)
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return names, nil
			}
			switch binary.NativeEndian.Uint16(b[4:]) {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR: // an error: no nftables here, or no right to look
				return names, nil
			}
			for a := b[min(size, unix.NLMSG_HDRLEN+4):size]; len(a) >= 4; {
				l, typ := int(binary.NativeEndian.Uint16(a)), binary.NativeEndian.Uint16(a[2:])
				if l < 4 || l > len(a) {
					break
				}
				if typ == unix.NFTA_TABLE_NAME {
					names = append(names, strings.TrimRight(string(a[4:l]), "\x00"))
				}
				a = a[min((l+3)&^3, len(a)):]
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}
