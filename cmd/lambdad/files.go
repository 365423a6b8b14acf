package main

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mostFiles are descriptors for more environments than a host can hold otherwise.
const mostFiles = 1 << 20

// allowManyFiles raises the limits of open files of this process, as far as it may:
// Go raises one to the other when a program starts, and only root may raise that.
// What runs in sandboxes has limits of its own.
func allowManyFiles() {
	b, _ := os.ReadFile("/proc/sys/fs/nr_open") // Linux only
	most, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	var l unix.Rlimit
	if most = min(most, mostFiles); unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil && l.Max < most {
		l.Cur, l.Max = most, most
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
	}
}
