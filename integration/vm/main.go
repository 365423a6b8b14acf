// Command vm runs sandboxtest on kernels this host does not have: it boots a stock
// Debian cloud kernel under emulated QEMU (no KVM), with control groups v2 only, and
// again with user namespaces switched off, and prints how each case went.
//
//	go run ./integration/vm [--kernel FILE.deb] [--cases few|all] [-v]
//
// The machine's clock counts its instructions, a thousand million to the second, and
// follows the host's only while the machine waits. So it is a slow computer and not a
// slow film of one: what the suite promises within 250 ms holds there, however busy
// the host, and nothing is more patient than elsewhere.
//
// It needs apt, dpkg-deb, mkfs.ext4 and qemu-system-x86_64 (make test-packages). The
// kernel's package is downloaded once, to the user's cache directory.
package main

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A boot is one start of the machine.
type boot struct {
	name     string
	cmdline  string
	programs []string
	// wants are lines that must be seen: what shows that the boot is what it says.
	wants []string
	never string // what no line may be
}

func boots(cases string) []boot {
	root, plain := "^(TestSandbox|TestRootless|TestRootlessKilled)$", "^TestSandbox$"
	if cases == "few" {
		root = "^TestSandbox$/^(exit|trees|tmp|reset|freeze|destroy_while_frozen|throttled_loops_end|memory_limit|process_limit)$"
		plain = "^TestSandbox$/^(exit|listen|trees|tmp|reset)$"
	}
	return []boot{
		{
			name:    "cgroup v2 only",
			cmdline: "cgroup_no_v1=all",
			programs: []string{
				"/lambdad doctor",
				"/namespace.test -test.v -test.timeout=40m -test.run=" + root,
			},
			wants: []string{`isolation tier: root$`, `^guest: /namespace.test: exit status 0$`},
			never: `^  FAILS`, // every promise holds
		},
		{
			name:    "user namespaces off",
			cmdline: "cgroup_no_v1=all guest.user/max_user_namespaces=0",
			programs: []string{
				"/lambdad doctor",
				"/process.test -test.v -test.timeout=40m -test.run=" + plain,
			},
			wants: []string{`isolation tier: plain$`, `sysctl user.max_user_namespaces`, `^guest: /process.test: exit status 0$`},
		},
	}
}

// modules are what sandboxes need beyond what is built in; what they depend on is
// found.
var modules = strings.Fields("virtio_pci virtio_blk ext4 loop overlay veth nf_tables nft_ct nft_masq nft_redir nft_fib_inet nft_reject_inet nft_nat nft_chain_nat nft_connlimit nft_limit")

// limit is for one boot, on a busy machine.
const limit = 40 * time.Minute

func main() {
	kernel := flag.String("kernel", "", "`file` of a Debian kernel package (default: linux-image-cloud-amd64, downloaded)")
	cases := flag.String("cases", "all", "how many `cases` of sandboxtest: few or all")
	verbose := flag.Bool("v", false, "show everything the machine says")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := vm(ctx, *kernel, *cases, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

func vm(ctx context.Context, deb, cases string, verbose bool) (err error) {
	dir, err := os.MkdirTemp("/var/tmp", "lambdad-vm-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if deb == "" {
		if deb, err = download(ctx); err != nil {
			return err
		}
	}
	pkg := filepath.Join(dir, "kernel")
	if err := command(ctx, "", nil, "dpkg-deb", "-x", deb, pkg); err != nil {
		return err
	}
	images, _ := filepath.Glob(pkg + "/boot/vmlinuz-*")
	if len(images) == 0 {
		return fmt.Errorf("%s holds no kernel", deb)
	}
	fmt.Printf("kernel %s\n", strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"))
	root := filepath.Join(dir, "root")
	if err := fill(ctx, root); err != nil {
		return err
	}
	initramfs := filepath.Join(dir, "initramfs")
	if err := writeInitramfs(initramfs, filepath.Join(root, "guest"), pkg); err != nil {
		return err
	}
	var errs []error
	for _, b := range boots(cases) {
		if err := os.WriteFile(filepath.Join(root, "programs"), []byte(strings.Join(b.programs, "\n")+"\n"), 0o644); err != nil {
			return err
		}
		disk := filepath.Join(dir, "disk")
		_ = os.Remove(disk)
		if err := command(ctx, "", nil, "mkfs.ext4", "-q", "-d", root, disk, "1G"); err != nil {
			return err
		}
		if err := b.start(ctx, images[0], initramfs, disk, verbose); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", b.name, err))
		}
	}
	return errors.Join(errs...)
}

// download fetches the package of the stock cloud kernel with apt, once.
func download(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "lambdad-vm")
	if have, _ := filepath.Glob(cache + "/linux-image-*.deb"); len(have) > 0 {
		return have[len(have)-1], nil
	}
	ask := func() ([]byte, error) {
		return exec.CommandContext(ctx, "apt-cache", "depends", "linux-image-cloud-amd64").Output()
	}
	out, err := ask()
	if err != nil { // a fresh machine has no lists of packages
		if err := command(ctx, "", nil, "apt-get", "update", "-qq"); err != nil {
			return "", err
		}
		if out, err = ask(); err != nil {
			return "", fmt.Errorf("ask apt for the cloud kernel: %w", err)
		}
	}
	name := regexp.MustCompile(`Depends: (linux-image-\S+)`).FindSubmatch(out)
	if name == nil {
		return "", errors.New("apt knows no linux-image-cloud-amd64: run apt-get update, or give a kernel package with --kernel")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	if err := command(ctx, cache, nil, "apt-get", "download", "-q", string(name[1])); err != nil {
		return "", err
	}
	have, _ := filepath.Glob(cache + "/linux-image-*.deb")
	if len(have) == 0 {
		return "", fmt.Errorf("apt-get downloaded no %s", name[1])
	}
	return have[0], nil
}

func command(ctx context.Context, dir string, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), append(env, "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// fill makes the tree of the disk: the tests, what runs in the sandboxes, and of
// this host a shell and mkfs.ext4 with their libraries.
func fill(ctx context.Context, root string) error {
	for _, d := range []string{"dev", "proc", "sys", "tmp", "run", "var/tmp", "root", "etc", "bin", "probe", "disk"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(root, "var/tmp"), 0o777|fs.ModeSticky); err != nil {
		return err
	}
	static := []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64"}
	const module = "github.com/lambdad/lambdad"
	for out, pkg := range map[string]string{"guest": "/integration/vm/guest", "lambdad": "/cmd/lambdad", "probe/probe": "/sandbox/sandboxtest/probe"} {
		if err := command(ctx, "", static, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(root, out), module+pkg); err != nil {
			return err
		}
	}
	for _, pkg := range []string{"namespace", "process"} {
		if err := command(ctx, "", static, "go", "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(root, pkg+".test"), module+"/sandbox/"+pkg); err != nil {
			return err
		}
	}
	for _, name := range []string{"/bin/sh", "mkfs.ext4"} {
		if err := takeProgram(ctx, root, name); err != nil {
			return err
		}
	}
	b, err := os.ReadFile("/etc/mke2fs.conf")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "etc/mke2fs.conf"), b, 0o644)
}

// takeProgram copies a program of this host with its libraries.
func takeProgram(ctx context.Context, root, name string) error {
	path := name
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if _, err := os.Stat(path); err != nil {
			path = dir + name
		}
	}
	out, err := exec.CommandContext(ctx, "ldd", path).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", path, err)
	}
	files := append([]string{path}, regexp.MustCompile(`/\S+`).FindAllString(string(out), -1)...)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		to := filepath.Join(root, f)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, b, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// writeInitramfs writes the guest and the kernel's modules as a newc archive.
func writeInitramfs(to, guest, pkg string) error {
	var a archive
	for _, dir := range []string{"dev", "disk", "modules"} {
		a.add(dir, 0o040755, nil)
	}
	b, err := os.ReadFile(guest)
	if err != nil {
		return err
	}
	a.add("init", 0o100755, b)
	order, err := resolve(pkg)
	if err != nil {
		return err
	}
	var names []string
	for _, file := range order {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		names = append(names, filepath.Base(file))
		a.add("modules/"+filepath.Base(file), 0o100644, b)
	}
	a.add("modules.list", 0o100644, []byte(strings.Join(names, "\n")))
	a.add("TRAILER!!!", 0, nil)
	return os.WriteFile(to, a.Bytes(), 0o644)
}

// An archive is a cpio archive in newc form, which the kernel unpacks.
type archive struct {
	bytes.Buffer
	files int
}

func (a *archive) add(name string, mode int, content []byte) {
	a.files++
	nlink := 1
	if mode&0o040000 != 0 {
		nlink = 2
	}
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", a.files, mode, 0, 0, nlink, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	a.WriteString(name + "\x00")
	a.pad()
	a.Write(content)
	a.pad()
}

func (a *archive) pad() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}

// resolve lists the files of the modules in an order in which each finds what it
// depends on. What no file is there for is built in.
func resolve(pkg string) ([]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(filepath.Join(pkg, "lib/modules"), func(path string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); err == nil && ok {
			files[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var order []string
	var visit func(name string) error
	visit = func(name string) error {
		file := files[strings.ReplaceAll(name, "-", "_")]
		if file == "" || slices.Contains(order, file) {
			return nil
		}
		f, err := elf.Open(file)
		if err != nil {
			return fmt.Errorf("read module %s: %w", file, err)
		}
		defer f.Close()
		info, err := f.Section(".modinfo").Data()
		if err != nil {
			return fmt.Errorf("read module %s: %w", file, err)
		}
		for _, field := range bytes.Split(info, []byte{0}) {
			key, value, _ := strings.Cut(string(field), "=")
			if key != "depends" && key != "softdep" || value == "" {
				continue
			}
			value = strings.TrimPrefix(value, "pre: ")
			for _, dep := range strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' }) {
				if err := visit(dep); err != nil {
					return err
				}
			}
		}
		order = append(order, file)
		return nil
	}
	for _, m := range modules {
		if err := visit(m); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// processor is what is emulated: one, since instructions are counted one after the
// other; without the instructions that copy a byte at a time, which the kernel would
// prefer as the fast ones that they are elsewhere, and with page tables of four levels.
var processor = strings.Fields("-accel tcg,thread=single -icount shift=0 -smp 1 -cpu max,erms=off,fsrm=off,la57=off")

// start boots the machine and judges what it says.
func (b *boot) start(ctx context.Context, kernel, initramfs, disk string, verbose bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	fmt.Printf("\n── %s ──\n", b.name)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append(slices.Clip(processor), "-m", "2G", "-nodefaults", "-no-reboot",
		"-display", "none", "-serial", "stdio", "-kernel", kernel, "-initrd", initramfs,
		"-drive", "file="+disk+",if=virtio,format=raw,cache=unsafe", "-append", "console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off "+b.cmdline)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start qemu (make test-packages installs it): %w", err)
	}
	var all []string
	passed, failed := 0, 0
	result := regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): `)
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		all = append(all, line)
		m := result.FindStringSubmatch(line)
		if verbose || m != nil || strings.HasPrefix(line, "guest:") || strings.HasPrefix(line, "isolation tier") {
			fmt.Println(line)
		}
		if m != nil && m[1] == "PASS" {
			passed++
		} else if m != nil {
			failed++ // a case that was left out, too
		}
	}
	err = errors.Join(lines.Err(), cmd.Wait())
	fmt.Printf("%d passed, %d failed, in %.0f s (%.0f s of processor time)\n", passed, failed, time.Since(began).Seconds(),
		(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds())
	for _, want := range b.wants {
		re := regexp.MustCompile(want)
		if !slices.ContainsFunc(all, re.MatchString) {
			err = errors.Join(err, fmt.Errorf("it never said %q", want))
		}
	}
	if never := regexp.MustCompile(b.never); b.never != "" {
		if i := slices.IndexFunc(all, never.MatchString); i >= 0 {
			err = errors.Join(err, fmt.Errorf("it said %q", all[i]))
		}
	}
	if failed > 0 {
		err = errors.Join(err, fmt.Errorf("%d cases failed", failed))
	}
	if err != nil && !verbose {
		fmt.Println(strings.Join(all, "\n"))
	}
	return err
}
