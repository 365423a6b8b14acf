package image

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// makeWhiteout makes what overlay takes for "not here".
func makeWhiteout(dir int, name string) error {
	return os.NewSyscallError("mknod of a whiteout, which needs isolation tier root or rootless", unix.Mknodat(dir, name, unix.S_IFCHR, 0))
}

// setOpaque hides what layers below have in a directory. In a user namespace
// overlay reads another name (userxattr).
func setOpaque(dir int) error {
	name := "trusted.overlay.opaque"
	if os.Geteuid() != 0 {
		name = "user.overlay.opaque"
	}
	return os.NewSyscallError("setxattr "+name, unix.Fsetxattr(dir, name, []byte("y"), 0))
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
