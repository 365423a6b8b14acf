//go:build amd64 || arm64

package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
)

// A sandbox whose root is given begins like any other, in the template. Over the
// template's /mnt come the given directories, merged with a last one of ours that
// has the places to mount on and the files of /etc; /dev and /proc follow as they
// are, and then everything of the template goes out of sight for good.

// newRootAt is where the new root stands until it is one.
const newRootAt = "/mnt"

// skeletons are the directories of ours, below Config.Dir, one for each set of
// places to mount on. They are made once and live as long as the driver.
const skeletons = "skeletons"

// newRoot makes the detached mount of a root.
func (d *Driver) newRoot(spec sandbox.Spec) (int, error) {
	targets := []string{"dev", "proc", "tmp"}
	for _, m := range spec.Mounts {
		if !path.IsAbs(m.Target) || path.Clean(m.Target) != m.Target || m.Target == "/" {
			return -1, fmt.Errorf("mount target %q: must be a clean absolute path", m.Target)
		}
		targets = append(targets, m.Target[1:])
	}
	slices.Sort(targets)
	top, err := d.skeleton(targets)
	if err != nil {
		return -1, err
	}
	return newOverlay(append(slices.Clone(spec.Root), top))
}

// skeleton gives the directory of ours for a set of places.
func (d *Driver) skeleton(targets []string) (string, error) {
	if d.cfg.Dir == "" {
		return "", errors.New("the driver has no directory of its own")
	}
	key := strings.ReplaceAll(strings.Join(targets, "+"), "/", "_")
	if len(key) > 200 {
		return "", fmt.Errorf("too many places to mount on: %s", key)
	}
	final := filepath.Join(d.cfg.Dir, skeletons, key)
	d.skeletonMu.Lock()
	defer d.skeletonMu.Unlock()
	if d.skeletonMade[key] {
		return final, nil
	}
	// One of an earlier driver may hold another host's name servers.
	if err := os.RemoveAll(final); err != nil {
		return "", err
	}
	for _, t := range append(targets, "etc") {
		if err := os.MkdirAll(filepath.Join(final, t), 0o755); err != nil {
			return "", err
		}
	}
	own := etcOwn(d.resolving.conf())
	for _, name := range []string{"passwd", "group", "hosts", "hostname", "resolv.conf"} {
		if err := os.WriteFile(filepath.Join(final, "etc", name), []byte(own[name]), 0o644); err != nil {
			return "", err
		}
	}
	// Whatever the umask is: what is here covers the image's modes.
	err := filepath.WalkDir(final, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.Chmod(p, 0o755)
		}
		return os.Chmod(p, 0o644)
	})
	if err != nil {
		return "", err
	}
	if d.skeletonMade == nil {
		d.skeletonMade = map[string]bool{}
	}
	d.skeletonMade[key] = true
	return final, nil
}

// sweepSkeletons removes what this driver or a dead one made; no sandbox is left.
func (d *Driver) sweepSkeletons() error {
	if d.cfg.Dir == "" {
		return nil
	}
	d.skeletonMu.Lock()
	defer d.skeletonMu.Unlock()
	d.skeletonMade = nil
	return os.RemoveAll(filepath.Join(d.cfg.Dir, skeletons))
}

// enterRoot appends the change of the root to what is mounted at a place.
func (p *program) enterRoot(at string) {
	none, dot := p.str(""), p.str(".")
	for _, dir := range []string{"/proc", "/dev"} {
		p.call("bind "+dir, unix.SYS_MOUNT, p.str(dir), p.str(at+dir), none, unix.MS_BIND|unix.MS_REC, 0)
	}
	p.call("chdir to the root", unix.SYS_CHDIR, p.str(at))
	p.call("pivot_root", unix.SYS_PIVOT_ROOT, dot, dot)
	p.call("detach the base system", unix.SYS_UMOUNT2, dot, unix.MNT_DETACH)
	p.call("chdir to /", unix.SYS_CHDIR, p.str("/"))
}
