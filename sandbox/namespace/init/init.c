/*
 * The resident init of a sandbox: process 1 of its pid namespace.
 *
 * It knows nothing about sandboxes. It receives short programs over a
 * SOCK_SEQPACKET socket, each a list of system calls, runs them and answers;
 * between them it reaps. What a sandbox is made of is therefore written in Go
 * (package namespace), and this file stays small enough to be read in one
 * sitting. It uses no libc, no heap and no threads.
 *
 * Descriptors: 0, 1, 2 are /dev/null, 3 is the socket, 4 the signalfd. When the
 * socket ends it exits, and the kernel kills the namespace with it.
 *
 * A message is one header, its operations, its relocations and its blob. The
 * operations run in order until one fails, which ends the message:
 *
 *   RUN   an answer says how it went
 *   EXEC  the last operation is execve, so only failure answers, and ends the
 *         process; success shows as the end of the socket, which closes on exec
 *
 * An argument is a number, an offset into the blob (made a pointer), an index of
 * the descriptors that came with the message, or the result of an earlier
 * operation. Relocations put the same things into the blob.
 *
 * Answers: {DONE, index of the failed operation or NONE, id, result or -errno},
 * and, whenever a child it was asked to report ends, {EXIT, 0, pid, wait status}.
 * Other children, which it inherited, are reaped silently.
 *
 * Three operations are no system calls:
 *   OP_CLONE (clone_args, size, socket, report): clone3, or a plain fork when
 *            size is 0. The child serves the given socket with the same loop and
 *            ends with it; the parent's result is the child's pid.
 *   OP_REAP  waits until this process has no children
 *   OP_VALUE (x): x, so that an earlier result becomes the answer
 */

typedef unsigned int u32;
typedef unsigned long u64;
typedef long s64;

enum { RUN = 1, EXEC = 2, DONE = 3, EXIT = 4 };
enum { ARG_NUMBER, ARG_POINTER, ARG_FD, ARG_RESULT };
#define MAY_FAIL (1u << 31)
#define OP_CLONE 0xf0000001u
#define OP_REAP 0xf0000002u
#define OP_VALUE 0xf0000003u
#define NONE 0xffffffffu
#define CHILD 0xfffffffeu /* run returned in the child it made */

struct header { u32 kind, ops, rels, pad; u64 id; };
struct op { u32 nr, how; u64 arg[6]; };
struct rel { u32 off, how; u64 value; };
struct answer { u32 kind, op; u64 id; s64 value; };

enum { SOCK = 3, SIGNALS = 4 };
enum { MAX_MESSAGE = 192 * 1024, KEEP = 16 * 1024, MAX_FDS = 128, MAX_OPS = 256, MAX_PIDS = 256 };

#if defined(__x86_64__)
enum {
	NR_close = 3, NR_rt_sigprocmask = 14, NR_madvise = 28, NR_sendmsg = 46, NR_recvmsg = 47, NR_exit_group = 231,
	NR_clone = 56, NR_wait4 = 61, NR_ppoll = 271, NR_signalfd4 = 289, NR_dup3 = 292,
	NR_read = 0, NR_clone3 = 435, NR_close_range = 436,
};
static inline s64 sys(u64 nr, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	s64 r;
	register u64 r10 __asm__("r10") = d;
	register u64 r8 __asm__("r8") = e;
	register u64 r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(r) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return r;
}
__asm__(".globl _start\n_start: xor %ebp,%ebp\n and $-16,%rsp\n call serve\n hlt\n");
#elif defined(__aarch64__)
enum {
	NR_close = 57, NR_rt_sigprocmask = 135, NR_madvise = 233, NR_sendmsg = 211, NR_recvmsg = 212, NR_exit_group = 94,
	NR_clone = 220, NR_wait4 = 260, NR_ppoll = 73, NR_signalfd4 = 74, NR_dup3 = 24,
	NR_read = 63, NR_clone3 = 435, NR_close_range = 436,
};
static inline s64 sys(u64 nr, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	register u64 x8 __asm__("x8") = nr;
	register u64 x0 __asm__("x0") = a;
	register u64 x1 __asm__("x1") = b;
	register u64 x2 __asm__("x2") = c;
	register u64 x3 __asm__("x3") = d;
	register u64 x4 __asm__("x4") = e;
	register u64 x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}
__asm__(".globl _start\n_start: mov x29, #0\n mov x30, #0\n bl serve\n brk #1\n");
#else
#error "unknown machine"
#endif

#define P(x) ((u64)(x))
#define SYS3(nr, a, b, c) sys(nr, P(a), P(b), P(c), 0, 0, 0)

enum {
	EINTR_ = 4, ECHILD_ = 10, EAGAIN_ = 11, EINVAL_ = 22, EMSGSIZE_ = 90,
	O_CLOEXEC_ = 02000000, SIGCHLD_ = 17, SIG_SETMASK_ = 2,
	MSG_CTRUNC_ = 8, MSG_TRUNC_ = 0x20, MSG_NOSIGNAL_ = 0x4000, MSG_CMSG_CLOEXEC_ = 0x40000000,
	SOL_SOCKET_ = 1, SCM_RIGHTS_ = 1, POLLIN_ = 1, WNOHANG_ = 1, MADV_DONTNEED_ = 4,
};

struct iovec { void *base; u64 len; };
struct msghdr { void *name; u32 namelen, pad0; struct iovec *iov; u64 iovlen; void *control; u64 controllen; u32 flags, pad1; };
struct pollfd { int fd; short events, revents; };

static unsigned char buf[MAX_MESSAGE] __attribute__((aligned(4096)));
static struct { u64 len; u32 level, type; int fd[MAX_FDS]; } control __attribute__((aligned(8)));
static u32 nfds;
static s64 results[MAX_OPS];
static int pids[MAX_PIDS]; /* children whose end is reported; 0: free */

static void quit(int code)
{
	for (;;)
		sys(NR_exit_group, code, 0, 0, 0, 0, 0);
}

static void say(u32 kind, u32 op, u64 id, s64 value)
{
	struct answer a = { kind, op, id, value };
	struct iovec v = { &a, sizeof a };
	struct msghdr m = { 0, 0, 0, &v, 1, 0, 0, 0, 0 };
	while (SYS3(NR_sendmsg, SOCK, &m, MSG_NOSIGNAL_) == -EINTR_)
		;
}

/* reap collects ended children; with WNOHANG those that have ended already. */
static s64 reap(u64 flags)
{
	for (;;) {
		int status = 0;
		s64 pid = sys(NR_wait4, -1, P(&status), flags, 0, 0, 0);
		if (pid == -EINTR_)
			continue;
		if (pid <= 0)
			return pid == -ECHILD_ ? 0 : pid;
		for (u32 i = 0; i < MAX_PIDS; i++)
			if (pids[i] == pid) {
				pids[i] = 0;
				say(EXIT, 0, pid, status);
				break;
			}
	}
}

/* start makes the state a serving process begins with. */
static void start(void)
{
	u64 set = 1ul << (SIGCHLD_ - 1);
	sys(NR_rt_sigprocmask, SIG_SETMASK_, P(&set), 0, 8, 0, 0);
	s64 fd = sys(NR_signalfd4, -1, P(&set), 8, O_CLOEXEC_ | 04000 /* nonblock */, 0, 0);
	if (fd < 0)
		quit(3);
	if (fd != SIGNALS) {
		sys(NR_dup3, fd, SIGNALS, O_CLOEXEC_, 0, 0, 0);
		sys(NR_close, fd, 0, 0, 0, 0, 0);
	}
}

/* become makes this fresh child the server of the given socket. */
static void become(u64 socket)
{
	sys(NR_dup3, socket, SOCK, O_CLOEXEC_, 0, 0, 0);
	sys(NR_close_range, SIGNALS, ~0u, 0, 0, 0, 0);
	for (u32 i = 0; i < MAX_PIDS; i++)
		pids[i] = 0;
	nfds = 0;
	start();
}

/* resolve turns an argument into what the kernel is given. Returns 0 when it
 * points outside what was sent. */
static int resolve(u32 how, u64 value, u32 op, unsigned char *blob, u64 len, u64 *out)
{
	switch (how) {
	case ARG_NUMBER:
		*out = value;
		return 1;
	case ARG_POINTER:
		*out = P(blob) + value;
		return value <= len;
	case ARG_FD:
		if (value >= nfds)
			return 0;
		*out = control.fd[value];
		return 1;
	case ARG_RESULT:
		if (value >= op)
			return 0;
		*out = results[value];
		return 1;
	}
	return 0;
}

/* run executes the operations. It returns the index of the one that failed, or
 * NONE; *value is the result of the last. */
static u32 run(struct op *ops, u32 n, unsigned char *blob, u64 len, s64 *value)
{
	*value = 0;
	for (u32 i = 0; i < n; i++) {
		struct op *o = &ops[i];
		u64 a[6];
		s64 r = 0;
		for (u32 j = 0; j < 6; j++)
			if (!resolve(o->how >> (4 * j) & 15, o->arg[j], i, blob, len, &a[j])) {
				*value = -EINVAL_;
				return i;
			}
		if (o->nr == OP_REAP) {
			r = reap(0);
		} else if (o->nr == OP_VALUE) {
			r = a[0];
		} else if (o->nr == OP_CLONE) {
			u32 slot = 0;
			while (a[3] && slot < MAX_PIDS && pids[slot])
				slot++;
			if (slot == MAX_PIDS)
				r = -EAGAIN_;
			else if (a[1])
				r = sys(NR_clone3, a[0], a[1], 0, 0, 0, 0);
			else
				r = sys(NR_clone, SIGCHLD_, 0, 0, 0, 0, 0);
			if (r == 0) {
				become(a[2]);
				return CHILD;
			}
			if (r > 0 && a[3])
				pids[slot] = r;
		} else {
			do
				r = sys(o->nr, a[0], a[1], a[2], a[3], a[4], a[5]);
			while (r == -EINTR_);
		}
		results[i] = r;
		*value = r;
		if (r < 0 && r > -4096 && !(o->how & MAY_FAIL))
			return i;
	}
	return NONE;
}

/* receive serves one message. */
static void receive(void)
{
	struct iovec v = { buf, sizeof buf };
	struct msghdr m = { 0, 0, 0, &v, 1, &control, sizeof control, 0, 0 };
	s64 n = SYS3(NR_recvmsg, SOCK, &m, MSG_CMSG_CLOEXEC_);
	if (n == -EINTR_ || n == -EAGAIN_)
		return;
	if (n <= 0)
		quit(0);
	nfds = 0;
	if (m.controllen >= 16 && control.level == SOL_SOCKET_ && control.type == SCM_RIGHTS_)
		nfds = (control.len - 16) / 4;

	struct header *h = (struct header *)buf;
	u64 used = sizeof *h;
	u32 bad = 0;
	s64 value = -EMSGSIZE_;
	u64 id = n >= (s64)sizeof *h ? h->id : 0;
	if (n >= (s64)sizeof *h && !(m.flags & (MSG_TRUNC_ | MSG_CTRUNC_)) && h->ops <= MAX_OPS && h->rels < 65536) {
		struct op *ops = (struct op *)(buf + used);
		used += h->ops * sizeof *ops;
		struct rel *rels = (struct rel *)(buf + used);
		used += h->rels * sizeof *rels;
		if (used <= (u64)n) {
			unsigned char *blob = buf + used;
			u64 len = n - used;
			u32 i;
			bad = NONE;
			for (i = 0; i < h->rels; i++) {
				u64 x;
				if ((u64)rels[i].off + 8 > len || rels[i].off % 8 || !resolve(rels[i].how, rels[i].value, 0, blob, len, &x))
					break;
				*(u64 *)(blob + rels[i].off) = x;
			}
			if (i < h->rels || (h->kind != RUN && h->kind != EXEC)) {
				value = -EINVAL_;
				bad = 0;
			} else {
				bad = run(ops, h->ops, blob, len, &value);
			}
		}
	}
	for (u32 i = 0; i < nfds; i++)
		sys(NR_close, control.fd[i], 0, 0, 0, 0, 0);
	nfds = 0;
	if (bad == CHILD)
		return;
	say(DONE, bad, id, value);
	if (h->kind == EXEC)
		quit(127);
	if (n > KEEP)
		SYS3(NR_madvise, buf + KEEP, sizeof buf - KEEP, MADV_DONTNEED_);
}

__attribute__((noreturn, used)) void serve(void)
{
	start();
	for (;;) {
		struct pollfd f[2] = { { SOCK, POLLIN_, 0 }, { SIGNALS, POLLIN_, 0 } };
		if (sys(NR_ppoll, P(f), 2, 0, 0, 8, 0) < 0)
			continue;
		if (f[1].revents) {
			unsigned char info[128];
			while (SYS3(NR_read, SIGNALS, info, sizeof info) > 0)
				;
			reap(WNOHANG_);
		}
		if (f[0].revents)
			receive();
	}
}

/* The compiler may call these. */
void *memset(void *d, int c, u64 n)
{
	volatile unsigned char *p = d;
	while (n--)
		*p++ = c;
	return d;
}
void *memcpy(void *d, const void *s, u64 n)
{
	volatile unsigned char *p = d;
	const unsigned char *q = s;
	while (n--)
		*p++ = *q++;
	return d;
}
