//go:build amd64 || arm64

package namespace

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// TestInitRebuilt compares the committed programs with what the compilers they
// came from make of the source.
func TestInitRebuilt(t *testing.T) {
	for _, cc := range []string{"x86_64-linux-gnu-gcc", "aarch64-linux-gnu-gcc"} {
		out, err := exec.Command(cc, "-dumpfullversion").Output()
		if err != nil {
			t.Skipf("no %s here", cc)
		}
		if v := strings.TrimSpace(string(out)); v != "12.2.0" {
			t.Skipf("%s is %s; the committed programs were made by 12.2.0", cc, v)
		}
	}
	dir := t.TempDir()
	if out, err := exec.Command("sh", "init/build.sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, name := range []string{"init_linux_amd64", "init_linux_arm64"} {
		built, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		committed, err := os.ReadFile(filepath.Join("init", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(built, committed) {
			t.Errorf("%s is not what init.c makes: run init/build.sh", name)
		}
	}
}

// machines are both tables, whatever this machine is.
func machines() []*arch.Info { return []*arch.Info{arch.X86_64, arch.AARCH64} }

func TestFilterNames(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range allowed() {
		if seen[name] {
			t.Errorf("%s is there twice", name)
		}
		seen[name] = true
		known := false
		for _, m := range machines() {
			_, ok := m.SyscallNames[name]
			known = known || ok
		}
		if !known && name != "fstatat" && !strings.HasSuffix(name, "xattrat") {
			t.Errorf("%s is no system call", name)
		}
	}
	for _, r := range conditional() {
		if seen[r.name] {
			t.Errorf("%s is allowed and conditional", r.name)
		}
	}
}

// TestFilter runs the assembled filters on calls as the kernel would.
func TestFilter(t *testing.T) {
	const any = uint32(0)
	errno := func(e syscall.Errno) uint32 { return deny | uint32(e) }
	for _, m := range machines() {
		raw, err := newFilter(m)
		if err != nil {
			t.Fatal(err)
		}
		vm := load(t, raw)
		for _, c := range []struct {
			name string
			args []uint32
			want uint32
		}{
			{"read", nil, allow}, {"execve", nil, allow}, {"futex", nil, allow}, {"getrandom", nil, allow}, {"rseq", nil, allow},
			{"mount", nil, errno(unix.EPERM)}, {"unshare", nil, errno(unix.EPERM)}, {"setns", nil, errno(unix.EPERM)}, {"ptrace", nil, errno(unix.EPERM)},
			{"bpf", nil, errno(unix.EPERM)}, {"keyctl", nil, errno(unix.EPERM)}, {"io_uring_setup", nil, errno(unix.EPERM)}, {"open_tree", nil, errno(unix.EPERM)},
			{"userfaultfd", nil, errno(unix.EPERM)}, {"perf_event_open", nil, errno(unix.EPERM)}, {"open_by_handle_at", nil, errno(unix.EPERM)},
			{"clone3", nil, errno(unix.ENOSYS)},
			{"clone", []uint32{uint32(unix.SIGCHLD)}, allow},
			{"clone", []uint32{0x3d0f00}, allow}, // a thread of glibc's
			{"clone", []uint32{unix.CLONE_NEWUSER | uint32(unix.SIGCHLD)}, errno(unix.EPERM)},
			{"clone", []uint32{unix.CLONE_NEWNS}, errno(unix.EPERM)}, {"clone", []uint32{unix.CLONE_NEWNET}, errno(unix.EPERM)},
			{"clone", []uint32{unix.CLONE_NEWPID | unix.CLONE_VM}, errno(unix.EPERM)}, {"clone", []uint32{unix.CLONE_NEWCGROUP}, errno(unix.EPERM)},
			{"socket", []uint32{unix.AF_UNIX, unix.SOCK_STREAM, 0}, allow}, {"socket", []uint32{unix.AF_UNIX, unix.SOCK_STREAM, 1}, allow},
			{"socket", []uint32{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP}, allow}, {"socket", []uint32{unix.AF_INET6, unix.SOCK_DGRAM, 0}, allow},
			{"socket", []uint32{unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP}, allow},
			{"socket", []uint32{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, errno(unix.EPROTONOSUPPORT)},
			{"socket", []uint32{unix.AF_INET, unix.SOCK_STREAM, 262}, errno(unix.EPROTONOSUPPORT)},
			{"socket", []uint32{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, allow},
			{"socket", []uint32{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, errno(unix.EPROTONOSUPPORT)},
			{"socket", []uint32{unix.AF_NETLINK, unix.SOCK_RAW, unix.IPPROTO_TCP}, errno(unix.EPROTONOSUPPORT)},
			{"socket", []uint32{unix.AF_PACKET, 0, 0}, errno(unix.EAFNOSUPPORT)}, {"socket", []uint32{unix.AF_VSOCK, 0, 0}, errno(unix.EAFNOSUPPORT)},
			{"socket", []uint32{unix.AF_ALG, 0, 0}, errno(unix.EAFNOSUPPORT)}, {"socket", []uint32{any, 0, 0}, errno(unix.EAFNOSUPPORT)},
			{"socketpair", []uint32{unix.AF_UNIX}, allow}, {"socketpair", []uint32{unix.AF_INET}, errno(unix.EAFNOSUPPORT)},
			{"ioctl", []uint32{0, unix.TCGETS}, allow}, {"ioctl", []uint32{0, unix.TIOCSTI}, errno(unix.EPERM)}, {"ioctl", []uint32{0, 0x541c}, errno(unix.EPERM)},
			{"personality", []uint32{0xffffffff}, allow}, {"personality", []uint32{0x40000}, errno(unix.EPERM)},
		} {
			nr, ok := m.SyscallNames[c.name]
			if !ok {
				t.Errorf("%s: no %s", m.Name, c.name)
				continue
			}
			if got := vm(uint32(nr), uint32(m.ID), c.args); got != c.want {
				t.Errorf("%s: %s%v: %x, want %x", m.Name, c.name, c.args, got, c.want)
			}
		}
		decided := map[string]bool{"fstatat": true}
		for _, r := range conditional() {
			decided[r.name] = true
		}
		for nr, name := range m.SyscallNumbers {
			want := errno(unix.EPERM)
			if slices.Contains(allowed(), name) {
				want = allow
			}
			if got := vm(uint32(nr), uint32(m.ID), nil); !decided[name] && got != want {
				t.Errorf("%s: %s: %x, want %x", m.Name, name, got, want)
			}
		}
		read := uint32(m.SyscallNames["read"])
		if got := vm(read, uint32(arch.I386.ID), nil); got != errno(unix.ENOSYS) {
			t.Errorf("%s: another machine's call: %x", m.Name, got)
		}
		if got := vm(4000, uint32(m.ID), nil); got != errno(unix.ENOSYS) {
			t.Errorf("%s: a call of the future: %x", m.Name, got)
		}
		if m == arch.X86_64 {
			if got := vm(read|0x40000000, uint32(m.ID), nil); got != errno(unix.ENOSYS) {
				t.Errorf("x32: %x", got)
			}
		}
	}
}

// load makes a function of a filter. The interpreter reads big endian, the kernel
// the machine's order: the data is made accordingly.
func load(t *testing.T, filter []byte) func(nr, arch uint32, args []uint32) uint32 {
	t.Helper()
	var raw []bpf.RawInstruction
	for i := 0; i < len(filter); i += 8 {
		raw = append(raw, bpf.RawInstruction{Op: binary.LittleEndian.Uint16(filter[i:]), Jt: filter[i+2], Jf: filter[i+3], K: binary.LittleEndian.Uint32(filter[i+4:])})
	}
	prog, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the filter cannot be read back")
	}
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	return func(nr, arch uint32, args []uint32) uint32 {
		data := make([]byte, 64)
		binary.BigEndian.PutUint32(data, nr)
		binary.BigEndian.PutUint32(data[4:], arch)
		for i, a := range args {
			binary.BigEndian.PutUint32(data[16+8*i:], a)
		}
		n, err := vm.Run(data)
		if err != nil {
			t.Fatal(err)
		}
		return uint32(n)
	}
}

func TestFindHierarchy(t *testing.T) {
	const (
		unified = "30 23 0:26 / /nowhere/cg rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
		v1      = "31 30 0:27 / /c/mem\\040ory rw - cgroup cgroup rw,memory\n32 30 0:28 / /c/cpu rw - cgroup cgroup rw,cpu,cpuacct\n33 30 0:29 / /c/freezer rw - cgroup cgroup rw,freezer\n"
	)
	for _, c := range []struct {
		name, mounts string
		v2           string
		v1           map[string]string
		roots        []string
	}{
		{"none", "21 1 8:1 / / rw - ext4 /dev/sda rw\n", "", map[string]string{}, nil},
		{"v1", v1, "", map[string]string{"memory": "/c/mem ory", "cpu": "/c/cpu", "cpuacct": "/c/cpu", "freezer": "/c/freezer"},
			[]string{"/c/mem ory/b", "/c/cpu/b", "/c/freezer/b"}},
		{"hybrid", v1 + unified, "/nowhere/cg", map[string]string{"memory": "/c/mem ory", "cpu": "/c/cpu", "cpuacct": "/c/cpu", "freezer": "/c/freezer"},
			[]string{"/nowhere/cg/b", "/c/mem ory/b", "/c/cpu/b"}},
		{"nonsense", "x\n - \n - a\n", "", map[string]string{}, nil},
	} {
		h := findHierarchy(c.mounts, "b")
		if h.v2 != c.v2 || !reflect.DeepEqual(h.v1, c.v1) || !reflect.DeepEqual(h.roots(), c.roots) {
			t.Errorf("%s: %+v, roots %v", c.name, h, h.roots())
		}
	}
}

func TestIDs(t *testing.T) {
	all := "         0          0 4294967295\n"
	a, err := newIDs("one", "n", all)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newIDs("two", "n", all)
	if err != nil {
		t.Fatal(err)
	}
	if a.root == b.root || a.root < idsFirst || a.root+idsBlock > 2147352576 {
		t.Errorf("blocks at %d and %d", a.root, b.root)
	}
	seen := map[int]bool{a.root: true}
	for range 1000 {
		id, _ := a.take()
		if seen[id] {
			t.Fatalf("%d twice", id)
		}
		seen[id] = true
	}
	c, err := newIDs("one", "n", "0 100000 65536\n")
	if err != nil || c.root < 32768 || c.first+c.count > 65536 {
		t.Errorf("in a container: %+v %v", c, err)
	}
	for range 3 * c.count { // more than there are, given back or not
		id, _ := c.take()
		if id < c.first || id >= c.first+c.count {
			t.Fatalf("%d outside", id)
		}
	}
	if _, err := newIDs("one", "n", "0 1000 1\n"); err == nil {
		t.Error("one id was enough")
	}
}

func TestAddress(t *testing.T) {
	for in, want := range map[string]string{"sandbox:80": "127.0.0.1:80", "sandbox.localdomain:1": "127.0.0.1:1", ":9001": "0.0.0.0:9001", "[::1]:5": "[::1]:5", "1.2.3.4:0": "1.2.3.4:0",
		"example.com:80": "", "127.0.0.1": "", "127.0.0.1:70000": "", "127.0.0.1:http": ""} {
		a, err := address(in)
		if (err != nil) != (want == "") || err == nil && a.String() != want {
			t.Errorf("%s: %v %v", in, a, err)
		}
	}
}

func TestProgramLimits(t *testing.T) {
	p := &program{}
	p.bytes(make([]byte, maxMessage))
	if _, err := p.encode(1); err != syscall.E2BIG {
		t.Errorf("a large program: %v", err)
	}
	p = &program{}
	for range maxOps + 1 {
		p.call("getpid", unix.SYS_GETPID)
	}
	if _, err := p.encode(1); err != syscall.E2BIG {
		t.Errorf("a long program: %v", err)
	}
}
