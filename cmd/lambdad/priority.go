package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// daemonNice is how far the daemon goes before everything that runs in sandboxes,
// which is at 0: its answers and its kills must not wait for their turn.
const daemonNice = -10

// takePrecedence raises the priority of every thread of this process, as far as it
// may: without privileges it may not. Threads made later inherit it.
func takePrecedence() {
	for again := true; again; {
		again = false
		tasks, _ := os.ReadDir("/proc/self/task") // Linux only
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				continue
			}
			// The system call answers 20 - nice.
			if p, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err != nil || p >= 20-daemonNice {
				continue
			}
			if unix.Setpriority(unix.PRIO_PROCESS, tid, daemonNice) != nil {
				return
			}
			again = true // a thread may have been made meanwhile
		}
	}
}
