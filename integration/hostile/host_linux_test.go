package hostile_test

import "golang.org/x/sys/unix"

// hostInotify says whether the host itself can still watch files.
func hostInotify() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}
