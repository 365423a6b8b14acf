//go:build amd64 || arm64

package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sweepLimit is how long Sweep waits for processes to be gone.
const sweepLimit = 10 * time.Second

// Sweep removes what a dead daemon with the same id left: the control groups and
// whatever still runs in them, links, and the table with what it switched. Nothing
// else outlives a daemon.
func (d *Driver) Sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sweepLimit)
	defer cancel()
	var errs []error
	roots := d.cgroups.roots()
	var old [][]string
	for _, root := range roots {
		dirs, err := groupsBelow(root, func(name string) bool {
			// Ours are alive: the pool may be filling already.
			return !strings.HasPrefix(name, d.ids.nonce+"-") && name != leafName
		})
		if err != nil {
			errs = append(errs, err)
		}
		old = append(old, dirs)
	}
	for _, dirs := range old {
		for _, dir := range dirs {
			// What the v1 freezer holds cannot die; a throttled process takes its time.
			_ = writeFile(dir+"/freezer.state", "THAWED")
			_ = writeFile(dir+"/cpu.cfs_quota_us", "-1")
			_ = writeFile(dir+"/cpu.max", "max")
			_ = writeFile(dir+"/cgroup.kill", "1")
		}
	}
	for _, dirs := range old {
		for i := len(dirs) - 1; i >= 0; i-- { // inner ones first
			if err := emptyGroup(ctx, dirs[i]); err != nil {
				errs = append(errs, err)
				continue
			}
			if err := removeGroup(ctx, dirs[i]); err != nil {
				errs = append(errs, err)
			}
		}
	}
	errs = append(errs, d.tmp.sweep(), d.sweepSkeletons())
	if d.cfg.Rootless { // nothing of the host's network was ever touched
		d.wantMore()
		if err := errors.Join(errs...); err != nil {
			return fmt.Errorf("sweep what an earlier daemon left: %w", err)
		}
		return nil
	}
	live := func(string) bool { return false }
	if d.egress != nil {
		live = d.egress.live // and the table is ours: it took over what the old one said
	} else if err := removeTable(tablePrefix + d.cfg.ID); err != nil {
		errs = append(errs, err)
	}
	if err := sweepLinks(d.cfg.ID, live); err != nil {
		errs = append(errs, err)
	}
	d.wantMore() // from here on sandboxes may be made ahead
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep what an earlier daemon left: %w", err)
	}
	return nil
}

// groupsBelow lists the groups below dir, outer ones first, without those whose
// top name is not wanted.
func groupsBelow(dir string, wanted func(name string) bool) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		if !e.IsDir() || !wanted(e.Name()) {
			continue
		}
		sub := filepath.Join(dir, e.Name())
		dirs = append(dirs, sub)
		inner, err := groupsBelow(sub, func(string) bool { return true })
		if err != nil {
			return dirs, err
		}
		dirs = append(dirs, inner...)
	}
	return dirs, nil
}

// emptyGroup kills what runs in a group until nothing does.
func emptyGroup(ctx context.Context, dir string) error {
	for {
		b, err := os.ReadFile(dir + "/cgroup.procs")
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 1 && pid != os.Getpid() {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end the processes of control group %s: %w", dir, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
}
