package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// emulatorAttr gives the emulator namespaces of its own: mounts, for its /opt is
// not the host's, and processes, so that its end is the end of all it started.
func emulatorAttr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if uid := os.Geteuid(); uid != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER // who is nobody may mount there, too
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

// riemain becomes the emulator if the process was executed for it.
func riemain() {
	args := strings.Split(os.Getenv(rieRole), "\n")
	if len(args) < 2 {
		return
	}
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err == nil {
		err = unix.Mount(args[0], "/opt", "", unix.MS_BIND, "")
	}
	if err == nil {
		os.Unsetenv(rieRole)
		err = unix.Exec(args[1], args[1:], os.Environ())
	}
	fmt.Fprintln(os.Stderr, "becoming the emulator:", err)
	os.Exit(1)
}
