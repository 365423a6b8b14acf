package image

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// makeWhiteout makes what overlay takes for "not here".
func makeWhiteout(dir int, name string) error {
	return os.NewSyscallError("mknod of a whiteout, which needs root and a file system with device nodes", unix.Mknodat(dir, name, unix.S_IFCHR, 0))
}

// setOpaque hides what layers below have in a directory.
func setOpaque(dir int) error {
	return os.NewSyscallError("setxattr trusted.overlay.opaque, which needs root", unix.Fsetxattr(dir, "trusted.overlay.opaque", []byte("y"), 0))
}

// setXattr sets an attribute of a file or directory that this layer made.
func setXattr(dir int, name, attr, value string) error {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setxattr("/proc/self/fd/"+strconv.Itoa(fd), attr, []byte(value), 0)
}
