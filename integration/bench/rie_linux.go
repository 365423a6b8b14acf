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
	return &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
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
