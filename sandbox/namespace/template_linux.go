//go:build amd64 || arm64

package namespace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Ids inside a sandbox.
const (
	userInside  = 993 // sbx_user1051, as on the service
	groupInside = 990
)

// A template is the part of the root file system all sandboxes see alike. It
// lives in the spawner's mount namespace; every sandbox has its own copy of the
// mounts. What is in it is listed here and nowhere else.
type template struct {
	root   int // detached writable mount of the root's tmpfs, for mount points made later
	mounts []placed
	masked []string // files of proc
	resolv string   // /etc/resolv.conf
	// bindProc: the host's proc is bound; one of the host's pid namespace cannot be
	// mounted without rights over it.
	bindProc bool

	mu     sync.Mutex
	points map[string]bool // mount points and files that exist
}

// placed is a detached mount and where it goes.
type placed struct {
	fd     int
	target string
}

// hostDirs are taken from the host as it has them: directories are bound, links
// copied.
func hostDirs() []string {
	return []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"}
}

// etcFiles and etcDirs are what of the host's /etc is seen: what programs need to
// find libraries, certificates and each other. Never accounts, keys or the
// machine's identity.
func etcFiles() []string {
	return []string{"ld.so.cache", "ld.so.conf", "protocols", "services", "mime.types", "os-release", "ca-certificates.conf",
		"debian_version", "gai.conf", "inputrc", "bash.bashrc", "profile", "lsb-release", "system-release"}
}

func etcDirs() []string {
	return []string{"ssl/certs", "ssl/cert.pem", "ssl/openssl.cnf", "pki/tls/certs", "pki/tls/cert.pem", "pki/tls/openssl.cnf", "pki/tls/openssl.d",
		"pki/ca-trust/extracted", "pki/java", "ca-certificates", "crypto-policies", "alternatives", "ld.so.conf.d", "ld-musl-*.path", "fonts",
		"java-*", "java", "python3*", "perl", "magic*"}
}

// etcOwn are the files written for sandboxes.
func etcOwn(resolv string) map[string]string {
	return map[string]string{
		"passwd": "root:x:0:0:root:/root:/sbin/nologin\nsbx_user1051:x:993:990::/home/sbx_user1051:/sbin/nologin\n" +
			"nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n",
		"group": "root:x:0:\nsbx_user1051:x:990:\nnogroup:x:65534:\n",
		// No IPv6 line: it would make Node 17 and 18 miss what listens on 127.0.0.1.
		"hosts":         "127.0.0.1 localhost sandbox sandbox.localdomain\n",
		"hostname":      "sandbox\n",
		"host.conf":     "multi on\n",
		"nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n",
		"resolv.conf":   resolv,
	}
}

// devices are the host's device nodes that are seen.
func devices() []string { return []string{"null", "zero", "full", "random", "urandom", "tty"} }

// mountPoints exist in every sandbox, empty unless the Spec fills them.
func mountPoints() []string {
	return []string{"var/task", "var/runtime", "var/lang", "opt", "tmp", "proc"}
}

// masked are the files of proc that tell about the host or its keys and that
// everybody may read; the others are the host's root's alone.
func masked() []string {
	var list []string
	for _, name := range hostFiles() {
		if info, err := os.Stat("/proc/" + name); err == nil && info.Mode().Perm()&0o004 != 0 {
			list = append(list, name)
		}
	}
	return list
}

// hostFiles are the candidates: not every kernel has each of them.
func hostFiles() []string {
	return []string{"kcore", "keys", "key-users", "kallsyms", "timer_list", "sched_debug", "latency_stats", "interrupts", "softirqs",
		"config.gz", "cmdline", "sysrq-trigger", "diskstats", "partitions", "modules", "slabinfo", "vmallocinfo", "zoneinfo", "buddyinfo", "pagetypeinfo", "iomem", "ioports"}
}

// newTemplate builds the template as detached mounts.
func newTemplate(resolv string, bindProc bool) (*template, error) {
	t := &template{resolv: resolv, bindProc: bindProc, points: map[string]bool{}, root: -1, masked: masked()}
	err := t.build()
	if err != nil {
		t.close()
		return nil, fmt.Errorf("build the root of sandboxes: %w", err)
	}
	return t, nil
}

func (t *template) build() error {
	var err error
	t.root, err = newMount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, "mode=0755", "size=16m")
	if err != nil {
		return err
	}
	for _, dir := range []string{"etc", "dev", "var", "var/empty", "run", "home", "root", "mnt", "srv", "sys"} {
		if err := t.mkdir(dir); err != nil {
			return err
		}
	}
	for _, dir := range mountPoints() {
		if err := t.mkdir(dir); err != nil {
			return err
		}
		t.points["/"+dir] = true
	}
	for _, dir := range hostDirs() {
		if err := t.take("/"+dir, dir); err != nil {
			return err
		}
	}
	if err := t.etc(); err != nil {
		return err
	}
	for _, name := range devices() {
		if err := t.touch("dev/" + name); err != nil {
			return err
		}
		fd, err := cloneTree(unix.AT_FDCWD, "/dev/"+name, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
		if err != nil {
			return err
		}
		t.mounts = append(t.mounts, placed{fd, "/dev/" + name})
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := unix.Symlinkat(target, t.root, "dev/"+name); err != nil {
			return fmt.Errorf("link /dev/%s: %w", name, err)
		}
	}
	return nil
}

// mkdir makes a directory of the template with its parents.
func (t *template) mkdir(dir string) error {
	if parent := path.Dir(dir); parent != "." {
		if err := t.mkdir(parent); err != nil {
			return err
		}
	}
	if err := unix.Mkdirat(t.root, dir, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make /%s: %w", dir, err)
	}
	return nil
}

// touch makes an empty file, to mount on.
func (t *template) touch(name string) error { return t.write(name, "") }

func (t *template) write(name, content string) error {
	if err := t.mkdir(path.Dir(name)); err != nil {
		return err
	}
	fd, err := unix.Openat(t.root, name, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("create /%s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := f.Chmod(0o644); err != nil {
		return fmt.Errorf("create /%s: %w", name, err)
	}
	if _, err := f.WriteString(content); err != nil {
		return fmt.Errorf("write /%s: %w", name, err)
	}
	return nil
}

// take makes the host's file, directory or link appear at the same place; it is
// not an error when the host has none.
func (t *template) take(host, name string) error {
	info, err := os.Lstat(host)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := t.mkdir(path.Dir(name)); err != nil {
		return err
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		to, err := os.Readlink(host)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(to, t.root, name); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("link /%s: %w", name, err)
		}
		return nil
	case info.IsDir():
		if err := t.mkdir(name); err != nil {
			return err
		}
		fd, err := cloneTree(unix.AT_FDCWD, host, readOnly)
		if err != nil {
			return err
		}
		t.mounts = append(t.mounts, placed{fd, "/" + name})
		return nil
	case info.Mode().IsRegular():
		content, err := os.ReadFile(host)
		if err != nil {
			return err
		}
		return t.write(name, string(content))
	}
	return nil
}

func (t *template) etc() error {
	for _, name := range etcFiles() {
		// What is a link on the host is a file here: its target may be unseen.
		content, err := os.ReadFile("/etc/" + name)
		if err != nil {
			continue // hosts differ; none of these is essential
		}
		if err := t.write("etc/"+name, string(content)); err != nil {
			return err
		}
	}
	for _, pattern := range etcDirs() {
		matches, err := filepath.Glob("/etc/" + pattern)
		if err != nil {
			return err
		}
		for _, m := range matches {
			if err := t.take(m, strings.TrimPrefix(m, "/")); err != nil {
				return err
			}
		}
	}
	for name, content := range etcOwn(t.resolv) {
		if err := t.write("etc/"+name, content); err != nil {
			return err
		}
	}
	// The service runs in UTC, whatever the host does.
	if err := unix.Symlinkat("/usr/share/zoneinfo/UTC", t.root, "etc/localtime"); err != nil {
		return fmt.Errorf("link /etc/localtime: %w", err)
	}
	return nil
}

// point makes sure that a mount point exists.
func (t *template) point(target string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.points[target] {
		return nil
	}
	if !path.IsAbs(target) || path.Clean(target) != target || target == "/" {
		return fmt.Errorf("mount target %q: must be a clean absolute path", target)
	}
	for _, m := range t.mounts {
		if target == m.target || strings.HasPrefix(target, m.target+"/") {
			return fmt.Errorf("mount target %s: lies inside the base system's %s", target, m.target)
		}
	}
	for p := range t.points {
		if strings.HasPrefix(target, p+"/") {
			return fmt.Errorf("mount target %s: lies inside %s", target, p)
		}
	}
	if err := t.mkdir(strings.TrimPrefix(target, "/")); err != nil {
		return err
	}
	t.points[target] = true
	return nil
}

// program makes the spawner move into the template: a mount namespace with
// nothing else in it.
func (t *template) program() (*program, func(), error) {
	// A mount of proc must be in sight for a user namespace to be allowed one.
	const attrs = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	var proc int
	var err error
	if t.bindProc {
		proc, err = cloneTree(unix.AT_FDCWD, "/proc", attrs)
	} else {
		proc, err = newMount("proc", attrs)
	}
	if err != nil {
		return nil, nil, err
	}
	p := &program{}
	dot, slash, none := p.str("."), p.str("/"), p.str("")
	p.try("set name", unix.SYS_PRCTL, unix.PR_SET_NAME, p.str("lambdad-init"), 0, 0, 0) // for ps
	p.call("unshare mount namespace", unix.SYS_UNSHARE, unix.CLONE_NEWNS)
	p.call("make mounts private", unix.SYS_MOUNT, 0, slash, 0, unix.MS_REC|unix.MS_PRIVATE, 0)
	// The mount itself, which stays writable for point: before Linux 6.15 one without
	// a place cannot be cloned. Each sandbox makes its copy read-only.
	p.call("move root", unix.SYS_MOVE_MOUNT, p.file(t.root), none, atFDCWD, p.str("/proc"), unix.MOVE_MOUNT_F_EMPTY_PATH)
	p.call("chdir to the root", unix.SYS_CHDIR, p.str("/proc"))
	p.call("pivot_root", unix.SYS_PIVOT_ROOT, dot, dot)
	p.call("detach the host's root", unix.SYS_UMOUNT2, dot, unix.MNT_DETACH)
	p.call("chdir to /", unix.SYS_CHDIR, slash)
	for _, m := range append([]placed{{proc, "/proc"}}, t.mounts...) {
		p.call("move mount to "+m.target, unix.SYS_MOVE_MOUNT, p.file(m.fd), none, atFDCWD, p.str(m.target), unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	return p, func() { unix.Close(proc) }, nil
}

// meminfoDir is where sandboxes find the files that stand in for /proc/meminfo.
const meminfoDir = "run/meminfo"

// meminfo makes sure that there is a file that reads like /proc/meminfo of a machine
// of this size, and returns its path inside.
func (t *template) meminfo(size int64) (string, error) {
	name := meminfoDir + "/" + strconv.FormatInt(size, 10)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.points[name] {
		if err := t.write(name, meminfo(size)); err != nil {
			return "", err
		}
		t.points[name] = true
	}
	return "/" + name, nil
}

// lock appends what makes a sandbox's copy of the root read-only.
func (t *template) lock(p *program) {
	attr := make([]byte, 32) // struct mount_attr
	binary.LittleEndian.PutUint64(attr, readOnly)
	p.call("make the root read-only", unix.SYS_MOUNT_SETATTR, atFDCWD, p.str("/"), 0, p.bytes(attr), len(attr))
}

// meminfo is the text of /proc/meminfo for a machine of this size.
func meminfo(limit int64) string {
	var b strings.Builder
	kb := limit / 1024
	for _, row := range []struct {
		name  string
		value int64
	}{
		{"MemTotal", kb}, {"MemFree", kb}, {"MemAvailable", kb}, {"Buffers", 0}, {"Cached", 0}, {"SwapCached", 0},
		{"Active", 0}, {"Inactive", 0}, {"SwapTotal", 0}, {"SwapFree", 0}, {"Dirty", 0}, {"Writeback", 0},
		{"AnonPages", 0}, {"Mapped", 0}, {"Shmem", 0}, {"Slab", 0}, {"SReclaimable", 0}, {"SUnreclaim", 0},
	} {
		fmt.Fprintf(&b, "%-15s %8d kB\n", row.name+":", row.value)
	}
	return b.String()
}

// atFDCWD as an unsigned register.
const atFDCWD = uint64(1<<64 - 100)

func (t *template) close() {
	for _, m := range t.mounts {
		unix.Close(m.fd)
	}
	t.mounts = nil
	if t.root >= 0 {
		unix.Close(t.root)
		t.root = -1
	}
}
