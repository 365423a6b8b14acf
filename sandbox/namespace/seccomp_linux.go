//go:build amd64 || arm64

package namespace

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// allowed are the system calls programs may make, whatever their arguments. The
// list is the union of both machines; a name that one of them lacks is skipped
// there. What is neither here nor in conditional is refused: all mounting,
// namespaces, tracing and looking into other processes, bpf, perf, io_uring,
// userfaultfd, keys, file handles, modules, kexec, clocks, quotas, swap, and the old
// asynchronous I/O, whose contexts are counted for the whole host.
func allowed() []string {
	return strings.Fields(`
	read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range lseek
	open openat openat2 creat dup dup2 dup3 pipe pipe2 fcntl flock fsync fdatasync sync syncfs sync_file_range
	truncate ftruncate fallocate fadvise64 readahead sendfile splice tee vmsplice copy_file_range
	stat fstat lstat newfstatat fstatat statx statfs fstatfs access faccessat faccessat2 cachestat
	getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir rename renameat renameat2 link linkat
	symlink symlinkat unlink unlinkat readlink readlinkat chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat
	mknod mknodat umask utime utimes utimensat futimesat
	setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr
	setxattrat getxattrat listxattrat removexattrat
	poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
	eventfd eventfd2 signalfd signalfd4 inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
	timerfd_create timerfd_settime timerfd_gettime
	mmap munmap mremap mprotect madvise process_madvise brk msync mincore mlock mlock2 munlock mlockall munlockall
	memfd_create mseal remap_file_pages get_mempolicy membarrier pkey_alloc pkey_free pkey_mprotect map_shadow_stack
	shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
	mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
	fork vfork execve execveat exit exit_group wait4 waitid pidfd_send_signal process_mrelease
	rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend
	sigaltstack pause restart_syscall alarm getitimer setitimer
	getpid getppid gettid getpgid getpgrp getsid setsid getuid geteuid getgid getegid getresuid getresgid getgroups
	setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capget capset prctl arch_prctl
	getrlimit getrusage getpriority ioprio_get times sysinfo uname getcpu getrandom
	sched_yield sched_getaffinity sched_getparam sched_getscheduler
	sched_getattr sched_get_priority_max sched_get_priority_min sched_rr_get_interval
	futex futex_waitv futex_wake futex_wait futex_requeue set_robust_list get_robust_list set_tid_address set_thread_area get_thread_area rseq
	time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep
	timer_create timer_settime timer_gettime timer_getoverrun timer_delete
	bind connect listen accept accept4 getsockname getpeername sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown
	setsockopt getsockopt seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self`)
}

// A rule decides about one system call by one argument after the other, and ends
// in an action.
type rule struct {
	name  string
	tests []test
	end   uint32 // when no test decided
}

// A test looks at one half of an argument: the lower one where it is an int in the
// kernel, which ignores the other.
type test struct {
	arg    uint32
	high   bool
	mask   bool     // any of the bits values[0]; otherwise: one of values
	values []uint32 //
	not    bool     // decide when it does not hold
	action uint32
}

const (
	allow = uint32(unix.SECCOMP_RET_ALLOW)
	deny  = uint32(unix.SECCOMP_RET_ERRNO)
)

// newNamespaces are the flags of clone that make namespaces; CLONE_NEWTIME cannot
// be given to it.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// conditional are the system calls decided by their arguments.
func conditional() []rule {
	eperm := deny | uint32(unix.EPERM)
	// Nothing is done to process 1, the init: where it has the user of what it runs,
	// the kernel would let them take its descriptors or its processor time from it.
	var rules []rule
	for name, arg := range map[string]uint32{
		"kill": 0, "tkill": 0, "tgkill": 0, "rt_sigqueueinfo": 0, "rt_tgsigqueueinfo": 0, "pidfd_open": 0, "setpgid": 0, "setpriority": 1, "ioprio_set": 1,
		"sched_setaffinity": 0, "sched_setscheduler": 0, "sched_setparam": 0, "sched_setattr": 0,
	} {
		rules = append(rules, rule{name, []test{{arg: arg, values: []uint32{1}, action: eperm}}, allow})
	}
	slices.SortFunc(rules, func(a, b rule) int { return strings.Compare(a.name, b.name) })
	return append(rules, []rule{
		{"clone", []test{{arg: 0, mask: true, values: []uint32{newNamespaces}, action: eperm}}, allow},
		// Its flags lie in memory, out of reach; libraries then use clone.
		{"clone3", nil, deny | uint32(unix.ENOSYS)},
		{"socket", []test{
			{arg: 0, values: []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}, not: true, action: deny | uint32(unix.EAFNOSUPPORT)},
			{arg: 0, values: []uint32{unix.AF_UNIX}, action: allow},
			// For netlink, protocol 0 is NETLINK_ROUTE and 1 is unused.
			{arg: 2, values: []uint32{unix.IPPROTO_IP, unix.IPPROTO_ICMP}, action: allow},
			{arg: 0, values: []uint32{unix.AF_NETLINK}, action: deny | uint32(unix.EPROTONOSUPPORT)},
			{arg: 2, values: []uint32{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6, unix.IPPROTO_UDPLITE}, action: allow},
		}, deny | uint32(unix.EPROTONOSUPPORT)},
		{"socketpair", []test{{arg: 0, values: []uint32{unix.AF_UNIX}, action: allow}}, deny | uint32(unix.EAFNOSUPPORT)},
		// As on a kernel without it; libraries then use threads.
		{"io_setup", nil, deny | uint32(unix.ENOSYS)},
		// The limit of core files stays 1, the kernel's word for starting no crash
		// helper: the host's runs as its root, on what a stranger prepared. To set
		// another seems to succeed, which harms nobody; to ask is allowed.
		{"setrlimit", []test{{arg: 0, values: []uint32{unix.RLIMIT_CORE}, not: true, action: allow}}, deny},
		{"prlimit64", []test{
			{arg: 0, values: []uint32{1}, action: eperm},
			{arg: 1, values: []uint32{unix.RLIMIT_CORE}, not: true, action: allow},
			{arg: 2, values: []uint32{0}, not: true, action: deny},
			{arg: 2, high: true, values: []uint32{0}, not: true, action: deny},
		}, allow},
		// Terminals: no input for others, no console.
		{"ioctl", []test{{arg: 1, values: []uint32{unix.TIOCSTI, 0x541c /* TIOCLINUX */}, action: eperm}}, allow},
		// To ask, and the harmless personas; none that switches protections off.
		{"personality", []test{{arg: 0, values: []uint32{0, 0xffffffff, 8, 0x20000, 0x20008}, action: allow}}, eperm},
	}...)
}

// machine is the table of this machine's system calls.
func machine() (*arch.Info, error) { return arch.GetInfo("") }

// newFilter assembles the filter as the kernel takes it: a tree that halves the
// numbers of system calls. The kernel runs it for every number when it is installed,
// to remember which are allowed without a look at arguments; tried one after the
// other, that is what making a process costs most.
func newFilter(m *arch.Info) ([]byte, error) {
	var prog []bpf.Instruction
	emit := func(i ...bpf.Instruction) { prog = append(prog, i...) }
	enosys, eperm := deny|uint32(unix.ENOSYS), deny|uint32(unix.EPERM)

	// struct seccomp_data: nr, arch, instruction pointer, six arguments.
	emit(bpf.LoadAbsolute{Off: 4, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(m.ID), SkipTrue: 1}, ret(enosys),
		bpf.LoadAbsolute{Off: 0, Size: 4})
	if m.ID == arch.X86_64.ID {
		emit(bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(arch.X32.SeccompMask), SkipFalse: 1}, ret(enosys))
	}
	actions := map[int][]bpf.Instruction{}
	for _, name := range allowed() {
		if nr, ok := m.SyscallNames[name]; ok {
			actions[nr] = []bpf.Instruction{ret(allow)}
		}
	}
	for _, r := range conditional() {
		if nr, ok := m.SyscallNames[r.name]; ok {
			actions[nr] = r.instructions()
		}
	}
	// A call newer than the table is answered as an older kernel would, so that
	// libraries fall back.
	newest := 0
	for nr := range m.SyscallNumbers {
		newest = max(newest, nr)
	}
	var spans []span
	for nr := range newest + 2 {
		do := actions[nr]
		switch {
		case nr > newest:
			do = []bpf.Instruction{ret(enosys)}
		case do == nil:
			do = []bpf.Instruction{ret(eperm)}
		}
		if n := len(spans); n == 0 || !slices.Equal(spans[n-1].do, do) {
			spans = append(spans, span{uint32(nr), do})
		}
	}
	emit(choose(spans)...)

	raw, err := bpf.Assemble(prog)
	if err != nil {
		return nil, fmt.Errorf("assemble the seccomp filter: %w", err)
	}
	b := make([]byte, 0, 8*len(raw))
	for _, i := range raw {
		b = binary.LittleEndian.AppendUint16(b, i.Op)
		b = append(b, i.Jt, i.Jf)
		b = binary.LittleEndian.AppendUint32(b, i.K)
	}
	return b, nil
}

func ret(action uint32) bpf.Instruction { return bpf.RetConstant{Val: action} }

// instructions decide about the call the rule is for.
func (r rule) instructions() []bpf.Instruction {
	var body []bpf.Instruction
	for _, t := range r.tests {
		off := 16 + 8*t.arg // little endian: lower half first
		if t.high {
			off += 4
		}
		body = append(body, bpf.LoadAbsolute{Off: off, Size: 4})
		if t.mask {
			body = append(body, bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: t.values[0], SkipFalse: 1}, ret(t.action))
			continue
		}
		for i, v := range t.values {
			// Found: to the return, or past it when the absence decides.
			skip := len(t.values) - 1 - i
			if t.not {
				skip++
			}
			j := bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: uint8(skip)}
			if i == len(t.values)-1 && !t.not {
				j.SkipFalse = 1
			}
			body = append(body, j)
		}
		body = append(body, ret(t.action))
	}
	return append(body, ret(r.end))
}

// A span is what is done for the numbers from this one to that of the next span.
type span struct {
	from uint32
	do   []bpf.Instruction
}

// choose finds the span of the number that is loaded, by halves.
func choose(spans []span) []bpf.Instruction {
	if len(spans) == 1 {
		return spans[0].do
	}
	half := len(spans) / 2
	lower, upper := choose(spans[:half]), choose(spans[half:])
	var jump []bpf.Instruction
	if len(lower) <= 255 {
		jump = []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[half].from, SkipTrue: uint8(len(lower))}}
	} else { // a conditional jump is short
		jump = []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[half].from, SkipFalse: 1}, bpf.Jump{Skip: uint32(len(lower))}}
	}
	return slices.Concat(jump, lower, upper)
}

// seccomp appends the installation of a filter.
func (p *program) seccomp(filter []byte) {
	code := p.bytes(filter)
	prog := p.bytes(make([]byte, 16)) // struct sock_fprog
	binary.LittleEndian.PutUint16(p.blob[prog:], uint16(len(filter)/8))
	p.relocate(prog+8, code)
	p.call("install the seccomp filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, prog)
}
