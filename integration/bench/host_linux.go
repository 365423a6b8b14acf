package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spin is how much processor time each core is asked for to see whether it gives it.
const spin = 2 * time.Millisecond

// processorOf is the processor time that a process has used, to the nanosecond.
func processorOf(pid int) (time.Duration, error) {
	var t unix.Timespec
	// The clock of a process, as clock_getcpuclockid makes it.
	if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// idle asks every core for the processor at once and returns the share that came.
func idle() float64 {
	var wg sync.WaitGroup
	shares := make([]float64, runtime.NumCPU())
	for i := range shares {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			thread := func() time.Duration {
				var t unix.Timespec
				unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) // cannot fail
				return time.Duration(t.Nano())
			}
			wall, own := time.Now(), thread()
			for thread()-own < spin {
			}
			shares[i] = float64(thread()-own) / float64(time.Since(wall))
		})
	}
	wg.Wait()
	total := 0.0
	for _, s := range shares {
		total += s / float64(len(shares))
	}
	return min(total, 1)
}

// bareSandbox runs a static program to its end in namespaces and a root of its own, with
// nothing that makes a sandbox of them.
func bareSandbox(program string) error {
	cmd := exec.Command("/" + filepath.Base(program))
	cmd.Args = []string{cmd.Path, "exit"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: filepath.Dir(program),
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS}
	return cmd.Run()
}
