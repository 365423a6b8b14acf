package archive

import (
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setTime sets the modification time of an open file: one call, no walk.
func setTime(f *os.File, _ *os.Root, _ string, t time.Time) error {
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return err
	}
	times := [2]unix.Timespec{ts, ts}
	// utimensat without a path is futimens, which the library does not offer.
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, f.Fd(), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("futimens", errno)
	}
	return nil
}
