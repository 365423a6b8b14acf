//go:build amd64 || arm64

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
)

// hostile tries what a sandbox must refuse and prints what it did not.
func hostile(sameUser bool) {
	for _, dir := range []string{"/", "/usr", "/etc", "/var/task", "/opt", "/dev", "/var", "/run"} {
		name := dir + "/intruder"
		if f, err := os.Create(name); err == nil {
			f.Close()
			fmt.Println("wrote", name)
		}
	}
	for _, name := range []string{"/etc/shadow", "/etc/machine-id", "/etc/ssh", "/root/.bashrc", "/home", "/proc/kcore", "/proc/1/root/etc", "/proc/1/environ", "/proc/1/mem", "/sys/kernel", "/dev/sda", "/dev/vda", "/dev/mem", "/dev/kmsg", "/var/lib", "/boot", "/old_root", "/host"} {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		names, _ := f.Readdirnames(1)
		var b [1]byte
		n, _ := f.Read(b[:])
		if len(names) > 0 || n > 0 {
			fmt.Println("read", name)
		}
		f.Close()
	}
	for name, nr := range calls {
		_, _, errno := syscall.RawSyscall6(nr, 0, 0, 0, 0, 0, 0)
		if errno != syscall.EPERM && errno != syscall.ENOSYS {
			fmt.Println("call", name, "answered", errno)
		}
	}
	const newUser, newNS, newNet = 0x10000000, 0x20000, 0x40000000
	for _, flags := range []uintptr{newUser, newNS, newNet} {
		if _, _, errno := syscall.RawSyscall6(cloneNumber, flags, 0, 0, 0, 0, 0); errno != syscall.EPERM {
			fmt.Printf("clone %x answered %v\n", flags, errno)
		}
	}
	for _, family := range []int{17 /* packet */, 40 /* vsock */, 38 /* alg */, 31 /* bluetooth */, 29 /* can */, 44 /* xdp */} {
		if fd, err := syscall.Socket(family, syscall.SOCK_DGRAM, 0); err == nil || !errors.Is(err, syscall.EAFNOSUPPORT) {
			fmt.Println("socket family", family, fd, err)
		}
	}
	if fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_RAW, 1); err == nil {
		fmt.Println("raw socket", fd)
	}
	if fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW, 12 /* netfilter */); err == nil {
		fmt.Println("netfilter socket", fd)
	}
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ":")
		v = strings.TrimSpace(v)
		switch {
		case strings.HasPrefix(k, "Cap") && v != "0000000000000000", k == "NoNewPrivs" && v != "1", k == "Seccomp" && v != "2", k == "Uid" && strings.Contains(" "+v, "\t0"):
			fmt.Println("status", k, v)
		}
	}
	b, _ = os.ReadFile("/proc/net/dev")
	if n := strings.Count(string(b), ":"); n != 1 {
		fmt.Println("network interfaces:", n)
	}
	if _, err := os.FindProcess(1); err == nil {
		if err := syscall.Kill(1, syscall.SIGKILL); err == nil && !sameUser { // it goes unheard all the same
			fmt.Println("may kill the init")
		}
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, e := range fds {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if n := e.Name(); len(n) > 1 || n > "2" {
			if !strings.HasPrefix(to, "/proc/") && !strings.HasPrefix(to, "anon_inode:") && to != "" {
				fmt.Println("descriptor", n, to)
			}
		}
	}
	fmt.Println("done")
}

// children makes up to n processes and says what stopped it. They are clones that
// stand still: a program would have threads, more of them by and by, and be counted
// for each and end when it gets none.
func children(n int) (int, error) {
	for i := range n {
		pid, _, errno := syscall.RawSyscall6(cloneNumber, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			return i, errno
		}
		for pid == 0 { // the child; none of Go's runtime works here
			syscall.RawSyscall6(syscall.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
		}
	}
	return n, nil
}

// datagramFrom sends a datagram with a source that need not be one's own. It says
// what the source is.
func datagramFrom(source, to string) error {
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(source)}, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_IP, syscall.IP_FREEBIND, 1) })
	}}
	c, err := d.Dial("udp4", to)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(source))
	return err
}
