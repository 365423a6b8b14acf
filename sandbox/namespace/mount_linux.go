//go:build amd64 || arm64

package namespace

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
)

// A detached mount is a descriptor of a mount that has no place yet. Whoever
// closes the last descriptor before it is moved ends it.

const readOnly = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// cloneTree makes a detached private copy of what is mounted at path, with the
// attributes set on it and everything below it.
func cloneTree(dirfd int, path string, attrs uint64) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE)
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := unix.OpenTree(dirfd, path, flags)
	if err != nil {
		return -1, fmt.Errorf("open_tree %s: %w", path, err)
	}
	attr := &unix.MountAttr{Attr_set: attrs, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount_setattr %s: %w", path, err)
	}
	return fd, nil
}

// newMount makes a detached mount of a file system. A parameter "key=value" is
// set as a string, one without "=" as a flag.
func newMount(fstype string, attrs int, params ...string) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen %s: %w", fstype, err)
	}
	defer unix.Close(fs)
	for _, p := range params {
		key, value, ok := strings.Cut(p, "=")
		if ok {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return -1, fmt.Errorf("set %s on %s: %w", p, fstype, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make %s: %w%s", fstype, err, fsMessages(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("fsmount %s: %w", fstype, err)
	}
	return fd, nil
}

// fsMessages is what the kernel says about a failed file system context.
func fsMessages(fs int) string {
	b := make([]byte, 512)
	n, err := unix.Read(fs, b)
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(b[:n])) + ")"
}

// newTree makes the read-only detached mount of a Mount: the directory itself
// when there is one, an overlay of them when there are more, an empty file system
// when there is none. In sources a later one covers an earlier one; the kernel
// wants the uppermost first.
func newTree(m sandbox.Mount) (int, error) {
	switch len(m.Sources) {
	case 0:
		return newMount("tmpfs", readOnly, "mode=0755", "size=4096")
	case 1:
		return cloneTree(unix.AT_FDCWD, m.Sources[0], readOnly)
	}
	return newOverlay(m.Sources)
}

// newOverlay merges directories, a later one over an earlier one. Layers are given
// to the kernel by descriptor: the names may be long or hold colons.
func newOverlay(sources []string) (int, error) {
	var lower []string
	for i := len(sources) - 1; i >= 0; i-- {
		fd, err := unix.Open(sources[i], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("open layer %s: %w", sources[i], err)
		}
		defer unix.Close(fd)
		lower = append(lower, "/proc/self/fd/"+strconv.Itoa(fd))
	}
	// One by one where the kernel can (Linux 6.5): a single parameter takes 255
	// bytes, which is some 15 layers. Older kernels refuse the name at once, or, before
	// 6.3 or so, take any name and refuse the mount.
	fd, err := mountOverlay("lowerdir+", lower)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		var other error
		if fd, other = mountOverlay("lowerdir", []string{strings.Join(lower, ":")}); other == nil {
			return fd, nil
		}
		if len(lower) > 15 {
			err = fmt.Errorf("%w: more than some 15 layers need Linux 6.5", err)
		}
	}
	if err != nil {
		return -1, fmt.Errorf("merge %d layers: %w", len(lower), err)
	}
	return fd, nil
}

// mountOverlay makes an overlay of which every value is given under one key.
func mountOverlay(key string, values []string) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fs)
	for _, v := range values {
		if err := unix.FsconfigSetString(fs, key, v); err != nil {
			return -1, fmt.Errorf("set %s: %w%s", key, err, fsMessages(fs))
		}
	}
	flags := []string{"ro"}
	if os.Geteuid() != 0 {
		flags = append(flags, "userxattr") // all that a user namespace may read
	}
	for _, flag := range flags {
		if err := unix.FsconfigSetFlag(fs, flag); err != nil {
			return -1, fmt.Errorf("set %s on overlay: %w", flag, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("%w%s", err, fsMessages(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, readOnly)
	if err != nil {
		return -1, fmt.Errorf("fsmount overlay: %w", err)
	}
	return fd, nil
}

// newMemoryTmp makes the detached mount of a /tmp whose pages are memory of
// whoever writes them, for hosts where it cannot be on disk (tmp_linux.go).
func newMemoryTmp(size int64) (int, error) {
	if size <= 0 {
		size = tmpDefault
	}
	return newMount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, "mode=1777",
		"size="+strconv.FormatInt(size, 10), "nr_inodes="+strconv.FormatInt(size/4096+1024, 10))
}
