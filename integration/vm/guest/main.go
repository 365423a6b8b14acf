//go:build linux

// Command guest is process 1 of the virtual machine that `make test-vm` boots: it
// loads the modules of the kernel, mounts what a Linux system has, runs the programs
// it was told, says how each ended, and switches the machine off. It lies in the
// initramfs and, with the programs, on the disk, which it makes its root.
package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the first process of a virtual machine, nothing to be started by hand")
		os.Exit(2)
	}
	var err error
	if len(os.Args) > 1 && os.Args[1] == "disk" {
		err = run()
	} else {
		err = boot()
	}
	if err != nil {
		fmt.Println("guest:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func mount(what, where, kind string) error {
	if err := os.MkdirAll(where, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(what, where, kind, 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", where, err)
	}
	return nil
}

// boot loads modules and changes to the disk: a root that can be pivoted away from,
// which an initramfs cannot.
func boot() error {
	if err := mount("devtmpfs", "/dev", "devtmpfs"); err != nil {
		return err
	}
	list, err := os.ReadFile("/modules.list")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(list)) {
		f, err := os.Open("/modules/" + name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	if err := mount("/dev/vda", "/disk", "ext4"); err != nil {
		return err
	}
	if err := os.Chdir("/disk"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	return unix.Exec("/guest", []string{"guest", "disk"}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"})
}

// loopback switches lo on.
func loopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}

// run is the life on the disk.
func run() error {
	for _, m := range [][3]string{{"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}, {"devtmpfs", "/dev", "devtmpfs"},
		{"tmpfs", "/tmp", "tmpfs"}, {"tmpfs", "/run", "tmpfs"}, {"cgroup2", "/sys/fs/cgroup", "cgroup2"}} {
		if err := mount(m[0], m[1], m[2]); err != nil {
			return err
		}
	}
	if err := os.Chmod("/tmp", 0o1777); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 65536, Max: 65536}); err != nil {
		return err
	}
	if err := loopback(); err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	for word := range strings.FieldsSeq(string(line)) {
		if setting, ok := strings.CutPrefix(word, "guest."); ok { // guest.user/max_user_namespaces=0
			name, value, _ := strings.Cut(setting, "=")
			if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
				return err
			}
		}
	}
	list, err := os.Open("/programs")
	if err != nil {
		return err
	}
	for lines := bufio.NewScanner(list); lines.Scan(); {
		f := strings.Fields(lines.Text())
		cmd := exec.Command(f[0], f[1:]...)
		cmd.Dir = "/"
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "SANDBOXTEST_PROBE=/probe", "LAMBDAD_TEST_ROOT=1"}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
		err := cmd.Run()
		fmt.Printf("guest: %s: %v\n", f[0], cmd.ProcessState)
		if err != nil && cmd.ProcessState == nil {
			return err
		}
	}
	fmt.Println("guest: done")
	return nil
}
