//go:build amd64 || arm64

package namespace

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The rootless tier is the same driver in a user namespace of its own. A process
// with threads cannot enter one, so the daemon executes itself again, once: it
// becomes the init program, which enters the namespaces, keeps the capabilities
// it has there for what it executes, and executes the daemon with the arguments
// it had. The process id, the terminal, the signals and the exit code are those
// of the same process all along; nobody stands in between.
//
// One id is mapped, the user's own, on itself: files belong to whom they belonged
// to, and the programs the daemon starts are still the user's.

// reexecVariable tells the process after the re-execution what it is. It holds
// the process id, so that nothing that is started with it believes it.
const reexecVariable = "LAMBDAD_REEXECUTED"

// Values of reexecVariable after the process id.
const (
	asDaemon = "daemon"
	asTrial  = "trial"
)

// Rootless says whether this process was re-executed by Reexec, and hides the
// traces from the processes it starts. why is what Reexec was given.
func Rootless() (why string, ok bool) {
	pid, rest, _ := strings.Cut(os.Getenv(reexecVariable), ":")
	kind, why, _ := strings.Cut(rest, ":")
	if kind != asDaemon || pid != strconv.Itoa(os.Getpid()) {
		return "", false
	}
	return why, true
}

// Reexec executes this program again in a user and mount namespace of its own,
// with the same arguments and environment, in the same process. It returns only
// when it fails. Descriptors other than 0, 1 and 2 are closed, other threads end.
// The new life finds why in Rootless; it should know why it is not in the root tier.
func Reexec(why string) error {
	conn, theirs, err := socketpair()
	if err != nil {
		return err
	}
	defer conn.Close()
	defer unix.Close(theirs)
	env := append(environ(), fmt.Sprintf("%s=%d:%s:%s", reexecVariable, os.Getpid(), asDaemon, why))
	image, err := sendReexec(conn, env)
	if err != nil {
		return err
	}
	defer image.Close()
	// The program waits in the socket, whose other end is closed by exec: what fails
	// from here on ends the process without a word, which is why Try comes before.
	high, err := unix.FcntlInt(image.Fd(), unix.F_DUPFD_CLOEXEC, 10)
	if err != nil {
		return fmt.Errorf("hand the init over: %w", err)
	}
	if theirs != 3 {
		if err := unix.Dup3(theirs, 3, 0); err != nil {
			return fmt.Errorf("hand the socket over: %w", err)
		}
	}
	return fmt.Errorf("execute the init: %w", syscall.Exec("/proc/self/fd/"+strconv.Itoa(high), []string{os.Args[0]}, []string{}))
}

// environ is the environment without what a re-execution put there.
func environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, reexecVariable+"=") {
			env = append(env, kv)
		}
	}
	return env
}

// Try finds out in another process whether the rootless tier works here, by
// making a sandbox in it. The error names what failed.
func Try(ctx context.Context) error {
	conn, theirs, err := socketpair()
	if err != nil {
		return err
	}
	defer conn.Close()
	env := append(environ(), fmt.Sprintf("%s=%d:%s", reexecVariable, os.Getpid(), asTrial))
	image, err := sendReexec(conn, env)
	if err != nil {
		unix.Close(theirs)
		return err
	}
	defer image.Close()
	r, w, err := os.Pipe()
	if err != nil {
		unix.Close(theirs)
		return err
	}
	defer r.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		unix.Close(theirs)
		w.Close()
		return err
	}
	defer null.Close()
	pid, err := syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(int(image.Fd())), []string{os.Args[0]}, &syscall.ProcAttr{
		Env: []string{}, Files: []uintptr{null.Fd(), w.Fd(), w.Fd(), uintptr(theirs)},
	})
	unix.Close(theirs)
	w.Close()
	if err != nil {
		return fmt.Errorf("execute the init: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = unix.Kill(pid, unix.SIGKILL) })
	defer stop()
	said, _ := io.ReadAll(io.LimitReader(r, 64<<10))
	status, err := waitPID(pid)
	if err != nil {
		return fmt.Errorf("wait for the trial: %w", err)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if a, err := receive(conn); err == nil { // only failure answers
		_, err = reexecProgram("", nil, nil).result(a)
		return fmt.Errorf("enter a user namespace: %w", err)
	}
	if status.ExitStatus() != 0 {
		text := strings.TrimSpace(string(said))
		if text == "" {
			text = fmt.Sprintf("it ended with %s", exitText(status))
		}
		return errors.New(text)
	}
	return nil
}

func exitText(s syscall.WaitStatus) string {
	if s.Signaled() {
		return "signal " + s.Signal().String()
	}
	return "status " + strconv.Itoa(s.ExitStatus())
}

// ServeTrial is the first thing a program that uses Try must call: in a process
// that Try started it makes the trial and ends; in any other it does nothing.
func ServeTrial() {
	pid, kind, _ := strings.Cut(os.Getenv(reexecVariable), ":")
	if kind != asTrial || pid != strconv.Itoa(os.Getppid()) {
		return
	}
	d, err := New(context.Background(), Config{ID: "trial" + strconv.Itoa(os.Getpid()), Pool: -1, Rootless: true, noGroups: true})
	if err == nil {
		err = d.Close()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// sendReexec puts the program of a re-execution into the socket and returns the
// init to execute.
func sendReexec(c *conn, env []string) (*os.File, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("open this program: %w", err)
	}
	defer self.Close()
	p := reexecProgram(strconv.Itoa(os.Getuid()), self, env)
	if err := send(c, p, 1); errors.Is(err, syscall.E2BIG) {
		return nil, fmt.Errorf("arguments and environment are too long to execute lambdad again: %w", err)
	} else if err != nil {
		return nil, fmt.Errorf("instruct the init: %w", err)
	}
	return openInit()
}

// reexecProgram is what the process does between its two lives. The names of its
// calls do not depend on the arguments.
func reexecProgram(uid string, self *os.File, env []string) *program {
	p := &program{kind: kindExec}
	exe := 0
	if self != nil {
		exe = int(self.Fd())
	}
	write := func(name, content string) {
		fd := p.call("open "+name, unix.SYS_OPENAT, atFDCWD, p.str("/proc/self/"+name), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		p.call("write "+name, unix.SYS_WRITE, fd, p.str(content), len(content))
	}
	p.call("unshare user and mount namespace", unix.SYS_UNSHARE, unix.CLONE_NEWUSER|unix.CLONE_NEWNS)
	write("setgroups", "deny")
	write("uid_map", uid+" "+uid+" 1")
	gid := strconv.Itoa(os.Getgid())
	write("gid_map", gid+" "+gid+" 1")
	// For a user other than root the kernel takes capabilities away at exec, unless
	// they are ambient, for which they must be inheritable.
	var head, caps []byte
	head = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(head, unix.LINUX_CAPABILITY_VERSION_3), 0)
	for range 6 {
		caps = binary.LittleEndian.AppendUint32(caps, ^uint32(0))
	}
	p.call("make capabilities inheritable", unix.SYS_CAPSET, p.bytes(head), p.bytes(caps))
	for c := range unix.CAP_LAST_CAP + 1 {
		p.try("keep capability", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0)
	}
	none := p.bytes(make([]byte, 8))
	p.call("unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, none, 0, 8)
	p.call("execute lambdad again", unix.SYS_EXECVEAT, p.file(exe), p.str(""), p.strings(os.Args), p.strings(env), unix.AT_EMPTY_PATH)
	return p
}

// RootlessCure says what helps where Try failed with this error.
func RootlessCure(err error) string {
	text := err.Error()
	read := func(name string) string {
		b, _ := os.ReadFile("/proc/sys/" + name)
		return strings.TrimSpace(string(b))
	}
	switch {
	case read("kernel/apparmor_restrict_unprivileged_userns") == "1":
		return "AppArmor takes the rights away in user namespaces (Ubuntu 23.10 and later): install lambdad's profile (packaging/apparmor/lambdad, make install does), or sysctl kernel.apparmor_restrict_unprivileged_userns=0"
	case read("user/max_user_namespaces") == "0":
		return "user namespaces are switched off: sysctl user.max_user_namespaces=15000"
	case read("kernel/unprivileged_userns_clone") == "0":
		return "user namespaces are for root only: sysctl kernel.unprivileged_userns_clone=1"
	case strings.Contains(text, "mount proc"):
		return "/proc of this container is masked: docker run --security-opt systempaths=unconfined --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
	case inContainer():
		return "the container's seccomp filter or security module forbids it: docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined for the rootless tier, --privileged --cgroupns=private for the root tier"
	}
	return "allow user namespaces to this user (a security module or seccomp filter forbids them), or run lambdad as root"
}

// RootCure says what gives the root tier where Probe failed.
func RootCure() string {
	switch {
	case inContainer():
		return "docker run --privileged --cgroupns=private, as root"
	case os.Geteuid() == 0:
		return "give lambdad CAP_SYS_ADMIN and control groups it may write to (in a container: docker run --privileged --cgroupns=private)"
	}
	return "run lambdad as root (sudo, or the unit packaging/systemd/lambdad.service)"
}

// inContainer guesses, for the words of a cure only.
func inContainer() bool {
	for _, f := range []string{"/.dockerenv", "/run/.containerenv"} {
		if _, err := os.Stat(f); err == nil {
			return true
		}
	}
	b, _ := os.ReadFile("/proc/1/cgroup")
	return strings.Contains(string(b), "docker") || strings.Contains(string(b), "kubepods") || os.Getenv("KUBERNETES_SERVICE_HOST") != ""
}
