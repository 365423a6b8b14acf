package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readable reports which paths give at least one byte or one name.
func readable(r *report, paths []string) {
	for _, name := range paths {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		names, _ := f.Readdirnames(1)
		var b [1]byte
		n, _ := f.Read(b[:])
		f.Close()
		if len(names) > 0 || n > 0 {
			r.hole("read %s", name)
		}
	}
}

// search looks for a text in everything that is not the base system: files that
// can be reached, and environments and memory maps of processes.
func search(r *report, text string) {
	want := []byte(text)
	look := func(name string) {
		f, err := os.Open(name)
		if err != nil {
			return
		}
		defer f.Close()
		if b, _ := io.ReadAll(io.LimitReader(f, 1<<20)); bytes.Contains(b, want) {
			r.hole("%s tells %s", name, text)
		}
		r.N++
	}
	for _, top := range []string{"/var", "/opt", "/tmp", "/etc", "/run", "/home", "/root", "/mnt", "/srv", "/dev/shm", "/boot", "/sys"} {
		_ = filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				look(name)
			}
			return nil
		})
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		for _, name := range []string{"environ", "cmdline", "mountinfo", "maps", "cgroup", "comm"} {
			look(p + "/" + name)
		}
	}
}

// processes reports what of processes that are not its own user's can be seen.
func processes(r *report) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	r.Paths = procs
	for _, p := range append(procs, "/proc/1", "/proc/2") {
		info, err := os.Stat(p)
		if err != nil {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) == os.Getuid() {
			continue
		}
		for _, name := range []string{"environ", "mem", "maps", "fd", "fdinfo", "root/etc", "cwd", "exe", "ns", "stack", "syscall", "auxv", "io", "map_files"} {
			if f, err := os.Open(p + "/" + name); err == nil {
				names, _ := f.Readdirnames(1)
				var b [1]byte
				n, _ := f.Read(b[:])
				if n > 0 || len(names) > 0 {
					r.hole("read %s/%s", p, name)
				}
				f.Close()
			}
			if to, err := os.Readlink(p + "/" + name); err == nil {
				r.hole("link %s/%s → %s", p, name, to)
			}
		}
	}
	// Whatever a process's own view is writable of.
	for name, text := range map[string]string{"uid_map": "0 0 1\n", "gid_map": "0 0 1\n", "setgroups": "allow", "oom_score_adj": "-1000", "../sys/kernel/ns_last_pid": "1"} {
		if os.WriteFile("/proc/self/"+name, []byte(text), 0) == nil {
			r.hole("wrote /proc/self/%s", name)
		}
	}
	for _, name := range []string{
		"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches", "/proc/sys/user/max_inotify_instances",
		"/proc/sys/fs/binfmt_misc/register", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/sys/net/ipv4/ip_forward"} {
		if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
			f.Close()
			r.hole("may write %s", name)
		}
	}
}

// descriptors reports open descriptors that the platform left open: none but the
// three and what this program itself made.
func descriptors(r *report) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		r.Err = err.Error()
	}
	for _, e := range entries {
		n, _ := strconv.Atoi(e.Name())
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // that of the listing
		}
		own := n > 2 && (strings.HasPrefix(to, "anon_inode:[event") || strings.HasPrefix(to, "socket:") || to == "/proc/"+strconv.Itoa(os.Getpid())+"/fd" ||
			strings.HasPrefix(to, "pipe:") || strings.HasPrefix(to, "/sys/"))
		std := n == 0 && to == "/dev/null" || (n == 1 || n == 2) && strings.HasPrefix(to, "pipe:")
		if !own && !std {
			r.hole("descriptor %d is %s", n, to)
		}
		// Abuse: through the link itself more than was given must not come.
		if n <= 2 {
			if n > 0 {
				// The other end of the pipe is the daemon's alone: what it would read
				// could be read here, its own output only.
				continue
			}
			if f, err := os.Open("/proc/self/fd/" + e.Name() + "/.."); err == nil {
				f.Close()
				r.hole("descriptor %d leads elsewhere", n)
			}
		}
	}
	// A child of the same program has no more than it was given: the platform's
	// own descriptors must not wait behind exec either.
	out, err := exec.Command("/proc/self/exe", "list-descriptors").Output()
	if err != nil {
		r.Err = err.Error()
	}
	for line := range strings.Lines(string(out)) {
		r.hole("a child got %s", strings.TrimSpace(line))
	}
}

// listDescriptors prints what is neither standard nor Go's.
func listDescriptors() {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if n, _ := strconv.Atoi(e.Name()); err == nil && n > 2 && !strings.HasPrefix(to, "anon_inode:[event") && !strings.HasPrefix(to, "/proc/") {
			fmt.Println(e.Name(), to)
		}
	}
}

// calls makes system calls that must be refused. Their arguments do nothing where
// they are not.
func calls(r *report) {
	str := func(s string) uintptr {
		b := append([]byte(s), 0)
		kept = append(kept, b)
		return uintptr(unsafe.Pointer(&b[0]))
	}
	self := uintptr(os.Getpid())
	zeroes := make([]byte, 4096)
	kept = append(kept, zeroes)
	zero := uintptr(unsafe.Pointer(&zeroes[0]))
	null, tmp, tmpfs := str("none"), str("/tmp"), str("tmpfs")
	fails := func(name string, errno syscall.Errno) {
		switch errno {
		case unix.EPERM, unix.ENOSYS, unix.EACCES, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT:
		default:
			r.hole("%s: %v", name, errno)
		}
		r.N++
	}
	for _, c := range []struct {
		name string
		nr   uintptr
		args [6]uintptr
	}{
		{"mount", unix.SYS_MOUNT, [6]uintptr{null, tmp, tmpfs}},
		{"mount bind", unix.SYS_MOUNT, [6]uintptr{str("/usr"), tmp, null, unix.MS_BIND}},
		{"remount /", unix.SYS_MOUNT, [6]uintptr{null, str("/"), null, unix.MS_REMOUNT | unix.MS_BIND}},
		{"umount2", unix.SYS_UMOUNT2, [6]uintptr{str("/proc"), unix.MNT_DETACH}},
		{"pivot_root", unix.SYS_PIVOT_ROOT, [6]uintptr{tmp, tmp}},
		{"chroot", unix.SYS_CHROOT, [6]uintptr{tmp}},
		{"fsopen", unix.SYS_FSOPEN, [6]uintptr{tmpfs}},
		{"fsconfig", unix.SYS_FSCONFIG, [6]uintptr{0, 6}},
		{"fsmount", unix.SYS_FSMOUNT, [6]uintptr{0}},
		{"fspick", unix.SYS_FSPICK, [6]uintptr{^uintptr(99), str("/")}},
		{"open_tree", unix.SYS_OPEN_TREE, [6]uintptr{^uintptr(99), str("/usr"), 1}},
		{"move_mount", unix.SYS_MOVE_MOUNT, [6]uintptr{^uintptr(99), str("/usr"), ^uintptr(99), tmp}},
		{"mount_setattr", unix.SYS_MOUNT_SETATTR, [6]uintptr{^uintptr(99), str("/"), 0, zero, 32}},
		{"unshare user", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWUSER}},
		{"unshare mount", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWNS}},
		{"unshare files", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_FILES}},
		{"setns", unix.SYS_SETNS, [6]uintptr{0, 0}},
		{"clone3", unix.SYS_CLONE3, [6]uintptr{zero, 88}},
		{"ptrace traceme", unix.SYS_PTRACE, [6]uintptr{unix.PTRACE_TRACEME}},
		{"ptrace seize init", unix.SYS_PTRACE, [6]uintptr{unix.PTRACE_SEIZE, 1}},
		{"process_vm_readv", unix.SYS_PROCESS_VM_READV, [6]uintptr{self, zero, 0, zero, 0}},
		{"process_vm_writev", unix.SYS_PROCESS_VM_WRITEV, [6]uintptr{self, zero, 0, zero, 0}},
		{"kcmp", unix.SYS_KCMP, [6]uintptr{self, self}},
		{"pidfd_getfd", unix.SYS_PIDFD_GETFD, [6]uintptr{0, 0}},
		{"bpf", unix.SYS_BPF, [6]uintptr{0, zero, 72}},
		{"keyctl", unix.SYS_KEYCTL, [6]uintptr{0, ^uintptr(2)}},
		{"add_key", unix.SYS_ADD_KEY, [6]uintptr{str("user"), null, zero, 1, ^uintptr(2)}},
		{"request_key", unix.SYS_REQUEST_KEY, [6]uintptr{str("user"), null}},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, [6]uintptr{4, zero}},
		{"io_uring_enter", unix.SYS_IO_URING_ENTER, [6]uintptr{}},
		{"io_uring_register", unix.SYS_IO_URING_REGISTER, [6]uintptr{}},
		{"userfaultfd", unix.SYS_USERFAULTFD, [6]uintptr{1}},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, [6]uintptr{zero, 0, ^uintptr(0), ^uintptr(0)}},
		{"fanotify_init", unix.SYS_FANOTIFY_INIT, [6]uintptr{}},
		{"name_to_handle_at", unix.SYS_NAME_TO_HANDLE_AT, [6]uintptr{^uintptr(99), str("/"), zero, zero}},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, [6]uintptr{^uintptr(99), zero}},
		{"reboot", unix.SYS_REBOOT, [6]uintptr{}},
		{"kexec_load", unix.SYS_KEXEC_LOAD, [6]uintptr{}},
		{"kexec_file_load", unix.SYS_KEXEC_FILE_LOAD, [6]uintptr{}},
		{"init_module", unix.SYS_INIT_MODULE, [6]uintptr{}},
		{"finit_module", unix.SYS_FINIT_MODULE, [6]uintptr{}},
		{"delete_module", unix.SYS_DELETE_MODULE, [6]uintptr{null}},
		{"swapon", unix.SYS_SWAPON, [6]uintptr{tmp}},
		{"swapoff", unix.SYS_SWAPOFF, [6]uintptr{tmp}},
		{"settimeofday", unix.SYS_SETTIMEOFDAY, [6]uintptr{}},
		{"clock_settime", unix.SYS_CLOCK_SETTIME, [6]uintptr{}},
		{"clock_adjtime", unix.SYS_CLOCK_ADJTIME, [6]uintptr{0, zero}},
		{"adjtimex", unix.SYS_ADJTIMEX, [6]uintptr{zero}},
		{"sethostname", unix.SYS_SETHOSTNAME, [6]uintptr{null, 4}},
		{"setdomainname", unix.SYS_SETDOMAINNAME, [6]uintptr{null, 4}},
		{"acct", unix.SYS_ACCT, [6]uintptr{}},
		{"quotactl", unix.SYS_QUOTACTL, [6]uintptr{}},
		{"syslog", unix.SYS_SYSLOG, [6]uintptr{3, zero, 4096}},
		{"vhangup", unix.SYS_VHANGUP, [6]uintptr{}},
		{"lookup_dcookie", unix.SYS_LOOKUP_DCOOKIE, [6]uintptr{}},
		{"move_pages", unix.SYS_MOVE_PAGES, [6]uintptr{1}},
		{"migrate_pages", unix.SYS_MIGRATE_PAGES, [6]uintptr{1}},
		{"mbind", unix.SYS_MBIND, [6]uintptr{}},
		{"set_mempolicy", unix.SYS_SET_MEMPOLICY, [6]uintptr{}},
		{"memfd_secret", unix.SYS_MEMFD_SECRET, [6]uintptr{}},
		{"io_setup", unix.SYS_IO_SETUP, [6]uintptr{1, zero}},
		{"personality without randomisation", unix.SYS_PERSONALITY, [6]uintptr{0x0040000}},
		{"personality that executes data", unix.SYS_PERSONALITY, [6]uintptr{0x0400000}},
		{"personality with a page at zero", unix.SYS_PERSONALITY, [6]uintptr{0x0100000}},
		{"ioctl TIOCSTI", unix.SYS_IOCTL, [6]uintptr{0, unix.TIOCSTI, zero}},
		{"ioctl TIOCSTI, upper half set", unix.SYS_IOCTL, [6]uintptr{0, unix.TIOCSTI | 1<<32, zero}},
		{"ioctl TIOCLINUX", unix.SYS_IOCTL, [6]uintptr{0, 0x541c, zero}},
		{"mknod of a disk", unix.SYS_MKNODAT, [6]uintptr{^uintptr(99), str("/tmp/disk"), unix.S_IFBLK | 0o666, 8 << 8}},
		{"mknod of memory", unix.SYS_MKNODAT, [6]uintptr{^uintptr(99), str("/tmp/mem"), unix.S_IFCHR | 0o666, 1<<8 | 1}},
		{"mknod of a whiteout beside", unix.SYS_MKNODAT, [6]uintptr{^uintptr(99), str("/tmp/kmsg"), unix.S_IFCHR | 0o666, 1<<8 | 11}},
		{"setuid 0", unix.SYS_SETUID, [6]uintptr{0}},
		{"setgroups", unix.SYS_SETGROUPS, [6]uintptr{1, zero}},
		{"become a real-time process", unix.SYS_SCHED_SETSCHEDULER, [6]uintptr{0, unix.SCHED_FIFO, str("\x01\x00\x00\x00")}},
		{"a better priority", unix.SYS_SETPRIORITY, [6]uintptr{0, 0, ^uintptr(19)}},
		{"the best disk class", unix.SYS_IOPRIO_SET, [6]uintptr{1, 0, 1 << 13}},
	} {
		n, _, errno := unix.RawSyscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
		if errno == 0 {
			r.hole("%s: allowed, result %d", c.name, int(n))
			r.N++
			continue
		}
		if c.nr == unix.SYS_SETUID && errno == unix.EINVAL {
			errno = unix.EPERM // there is no such user in here
		}
		fails(c.name, errno)
	}
	for name, flag := range map[string]uintptr{"user": unix.CLONE_NEWUSER, "mount": unix.CLONE_NEWNS, "pid": unix.CLONE_NEWPID, "net": unix.CLONE_NEWNET,
		"ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP, "user, upper half set": unix.CLONE_NEWUSER | 1<<32} {
		// Without a stack and with a signal: a child would share this one's fate.
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, flag|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno == 0 && pid == 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		if errno == 0 {
			r.hole("clone with a new %s namespace", name)
			continue
		}
		fails("clone "+name, errno)
	}
	for family := range 64 {
		if family == unix.AF_UNIX || family == unix.AF_INET || family == unix.AF_INET6 || family == unix.AF_NETLINK {
			continue
		}
		for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_RAW, unix.SOCK_SEQPACKET} {
			if fd, err := unix.Socket(family, typ, 0); err == nil {
				r.hole("socket of family %d, type %d", family, typ)
				unix.Close(fd)
			}
		}
	}
	for _, typ := range []int{unix.SOCK_RAW, unix.SOCK_PACKET} {
		if fd, err := unix.Socket(unix.AF_INET, typ, unix.IPPROTO_ICMP); err == nil {
			r.hole("raw socket")
			unix.Close(fd)
		}
	}
	for proto := 1; proto < 24; proto++ {
		if fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, proto); err == nil {
			r.hole("netlink protocol %d", proto)
			unix.Close(fd)
		}
	}
	for _, proto := range []int{unix.IPPROTO_SCTP, unix.IPPROTO_DCCP, unix.IPPROTO_MPTCP} {
		if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, proto); err == nil {
			r.hole("protocol %d", proto)
			unix.Close(fd)
		}
	}
	// The switch that hides memory from tracers also tells that there is none.
	if b, err := os.ReadFile("/proc/self/status"); err == nil {
		for line := range strings.Lines(string(b)) {
			k, v, _ := strings.Cut(strings.TrimSpace(line), ":")
			v = strings.TrimSpace(v)
			if strings.HasPrefix(k, "Cap") && v != "0000000000000000" || k == "NoNewPrivs" && v != "1" || k == "Seccomp" && v != "2" {
				r.hole("%s is %s", k, v)
			}
		}
	}
}

// kept holds arguments that only the kernel sees.
var kept [][]byte

// raise tries to get beyond the limits that were set.
func raise(r *report) {
	for what, name := range map[int]string{unix.RLIMIT_NOFILE: "descriptors", unix.RLIMIT_CORE: "core files", unix.RLIMIT_MEMLOCK: "locked memory",
		13 /* NICE */ : "nice", 14 /* RTPRIO */ : "real-time priority", 11 /* SIGPENDING */ : "queued signals", 12 /* MSGQUEUE */ : "message queues"} {
		var old unix.Rlimit
		if err := unix.Getrlimit(what, &old); err != nil {
			r.hole("limit of %s cannot be read: %v", name, err)
			continue
		}
		higher := unix.Rlimit{Cur: old.Max + 1, Max: old.Max + 1}
		if old.Max == unix.RLIM_INFINITY {
			r.hole("no limit of %s", name)
			continue
		}
		_ = unix.Setrlimit(what, &higher)
		var now unix.Rlimit
		_ = unix.Getrlimit(what, &now)
		if now.Max > old.Max || now.Cur > old.Max {
			r.hole("raised the limit of %s from %d to %d", name, old.Max, now.Max)
		}
	}
	// A core limit of 1 is the kernel's word for starting no crash helper; any
	// other, 0 too, runs the helper of the host as its root.
	_, _, _ = unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, uintptr(unsafe.Pointer(&unix.Rlimit{})), 0, 0, 0)
	_, _, _ = unix.RawSyscall6(unix.SYS_SETRLIMIT, unix.RLIMIT_CORE, uintptr(unsafe.Pointer(&unix.Rlimit{})), 0, 0, 0, 0)
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil || core.Cur != 1 || core.Max != 1 {
		r.hole("the limit of core files became %d, %d, %v: a crash here can start the host's helper", core.Cur, core.Max, err)
	}
}

// setuid looks for programs that would run as somebody else, and runs them.
func setuid(r *report) {
	for _, dir := range []string{"/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/lib/openssh", "/usr/lib/dbus-1.0", "/usr/local/bin"} {
		_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil
			}
			info, err := d.Info()
			if err != nil || info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) == 0 {
				return nil
			}
			r.Paths = append(r.Paths, name)
			return nil
		})
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/usr", &st); err != nil || st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_RDONLY == 0 {
		r.hole("/usr is mounted with flags %x, %v", st.Flags, err)
	}
	if err := unix.Statfs("/tmp", &st); err != nil || st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 {
		r.hole("/tmp is mounted with flags %x, %v", st.Flags, err)
	}
	for _, argv := range [][]string{{"su", "-c", "id -u"}, {"sudo", "-n", "id", "-u"}, {"mount", "-t", "tmpfs", "none", "/tmp"}, {"newgrp", "root"}, {"chsh", "-s", "/bin/sh"}} {
		path, err := exec.LookPath(argv[0])
		if err != nil {
			continue
		}
		out, err := exec.Command(path, argv[1:]...).CombinedOutput()
		if err == nil || strings.TrimSpace(string(out)) == "0" {
			r.hole("%s: %v, %q", strings.Join(argv, " "), err, out)
		}
		r.N++
	}
	// One's own, in the only place that can be written.
	self, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile("/tmp/root", self, 0o755)
	}
	if err == nil {
		err = os.Chmod("/tmp/root", 0o6755|fs.ModeSetuid|fs.ModeSetgid)
	}
	if err != nil {
		r.Err = err.Error()
		return
	}
	out, err := exec.Command("/tmp/root", "id").Output()
	if want := fmt.Sprintf("%d %d %d %d\n", os.Getuid(), os.Getuid(), os.Getgid(), os.Getgid()); err != nil || string(out) != want {
		r.hole("a setuid program of one's own runs as %q, %v", out, err)
	}
	_ = os.Remove("/tmp/root")
	if err := os.Chown("/tmp", 0, 0); err == nil {
		r.hole("/tmp can be given to root")
	}
	if err := unix.Setxattr("/tmp", "security.capability", make([]byte, 20), 0); err == nil {
		r.hole("a file capability can be set")
	}
	if err := unix.Setxattr("/tmp", "trusted.overlay.opaque", []byte("y"), 0); err == nil {
		r.hole("a trusted attribute can be set")
	}
}

// signals tries to reach processes that are not its own.
func signals(r *report) {
	for _, sig := range []syscall.Signal{0, syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGCHLD, syscall.SIGTERM} {
		if err := syscall.Kill(1, sig); err == nil {
			r.hole("signal %d to the init", sig)
		}
	}
	if fd, err := unix.PidfdOpen(1, 0); err == nil {
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err == nil {
			r.hole("SIGKILL to the init by descriptor")
		}
		unix.Close(fd)
	}
	for pid := 2; pid < 4096; pid++ {
		err := syscall.Kill(pid, 0)
		if errors.Is(err, syscall.EPERM) {
			r.Paths = append(r.Paths, strconv.Itoa(pid)) // lives, not ours
		}
	}
	if err := unix.Prlimit(1, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: 1}, nil); err == nil {
		r.hole("limits of the init can be set")
	}
	if err := unix.Setpgid(1, 1); err == nil {
		r.hole("the init can be moved to another group")
	}
}

// escape tries to write where it must not: the read-only trees, control groups.
func escape(r *report) {
	for _, dir := range []string{"/", "/usr", "/usr/lib", "/etc", "/etc/ssl/certs", "/var", "/var/task", "/var/runtime", "/var/lang", "/opt", "/opt/extensions", "/dev", "/run", "/home", "/root", "/proc", "/sys", "/mnt", "/srv"} {
		if f, err := os.Create(dir + "/intruder"); err == nil {
			f.Close()
			r.hole("wrote below %s", dir)
		}
		if err := os.Mkdir(dir+"/intruder", 0o755); err == nil {
			r.hole("made a directory below %s", dir)
		}
	}
	for _, name := range []string{"/var/task/bootstrap", "/usr/bin/env", "/etc/passwd", "/etc/hosts", "/etc/resolv.conf", "/proc/meminfo", "/proc/self/exe"} {
		if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
			f.Close()
			r.hole("opened %s for writing", name)
		}
		if err := os.Chmod(name, 0o777); err == nil {
			r.hole("changed the mode of %s", name)
		}
		if err := os.Remove(name); err == nil {
			r.hole("removed %s", name)
		}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*")
	for _, g := range groups {
		r.hole("%s is in sight", g)
	}
	// Links that lead out of a tree lead nowhere.
	for name, to := range map[string]string{"/tmp/a": "/../../../../etc/shadow", "/tmp/b": "/proc/1/root/etc/shadow", "/tmp/c": "/proc/self/root/../../etc/shadow"} {
		_ = os.Symlink(to, name)
		if b, err := os.ReadFile(name); err == nil {
			r.hole("%s leads to %d bytes", to, len(b))
		}
	}
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		for range 10 {
			up, err := unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY, 0)
			if err != nil {
				break
			}
			unix.Close(fd)
			fd = up
		}
		if _, err := unix.Openat(fd, "etc/shadow", unix.O_RDONLY, 0); err == nil {
			r.hole("etc/shadow above the root")
		}
		unix.Close(fd)
	}
	devs, _ := os.ReadDir("/dev")
	for _, d := range devs {
		if !slices.Contains([]string{"null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr", "shm", "ptmx", "pts", "mqueue"}, d.Name()) {
			r.hole("/dev/%s is in sight", d.Name())
		}
	}
	if f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err == nil {
		f.Close()
		r.hole("there is a controlling terminal")
	}
}
