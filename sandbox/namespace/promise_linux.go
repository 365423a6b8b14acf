//go:build amd64 || arm64

package namespace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
)

// promise tries on a shell what a sandbox is expected to do. What New insists on
// is kept, or there would be no driver.
func (d *Driver) promise(ctx context.Context, s *shell) []sandbox.Promise {
	var list []sandbox.Promise
	add := func(name string, err error, cure string) {
		p := sandbox.Promise{Name: name, Kept: err == nil}
		if err != nil {
			p.Why, p.Cure = err.Error(), cure
		}
		list = append(list, p)
	}
	for _, name := range []string{"private file system", "private network", "unprivileged user", "allowed system calls only", "private /tmp", "/tmp of its size", "limits of its own", "every process ends"} {
		add(name, nil, "")
	}
	var single error
	if d.ids.single {
		single = errMissing("one user id is all this user has: what the kernel counts by user, all sandboxes have together, and inside, code and layers belong to the user who runs it")
	}
	add("a user id of its own", single, "run lambdad as root")
	cure := "mount the cgroup controllers and make them writable (cgroup v2, or v1 with memory, pids, cpu, cpuacct)"
	switch {
	case d.cfg.Rootless && inContainer():
		cure = "docker run --privileged --cgroupns=private, as root: groups come with the root tier"
	case d.cfg.Rootless:
		cure = "start lambdad in a control group of its own: systemd-run --user --scope -p Delegate=yes lambdad serve, or the user unit packaging/systemd/user/lambdad.service; memory, pids and cpu must be delegated to users (systemctl edit user@.service: [Service] Delegate=cpu memory pids)"
		if !d.cgroups.unified {
			cure = "boot the host with cgroup v2 (kernel parameter systemd.unified_cgroup_hierarchy=1), since systemd delegates no v1 groups to users, and " + cure
		}
	}
	missing := func(c string) error {
		if d.cgroups.unified || d.cgroups.v1[c] != "" {
			return nil
		}
		if c == "pids" && d.ids.single && os.Getuid() != 0 && since(5, 14) {
			return nil // the limit by user stands in (box.maxProcesses)
		}
		if d.cgroups.why != nil {
			return d.cgroups.why
		}
		return errMissing("no " + c + " controller: " + d.cgroups.kind())
	}
	try := func(c string, f func() error) {
		err := missing(c)
		if err == nil {
			err = f()
		}
		name := map[string]string{"memory": "memory limit", "pids": "process limit", "cpu": "CPU limit"}[c]
		add(name, err, cure)
	}
	try("memory", func() error { return s.group.limit(64<<20, 64, 0) })
	try("pids", func() error { return s.group.limit(0, 64, 0) })
	try("cpu", func() error {
		if !s.group.quota.is() {
			return errMissing("the kernel has no processor quota (CONFIG_CFS_BANDWIDTH)")
		}
		if err := s.group.setCPU(0.5); err != nil {
			return err
		}
		return s.group.setCPU(0)
	})
	freeze := d.cgroups.why
	if freeze == nil || s.group.freeze.is() {
		freeze = s.group.setFrozen(ctx, true)
	}
	if freeze == nil {
		freeze = s.group.setFrozen(ctx, false)
	}
	add("freezing", freeze, cure)
	var survive error
	if d.cgroups.v2 == "" && d.cgroups.v1["freezer"] != "" {
		survive = errMissing("the v1 freezer keeps what it has frozen alive until the next start sweeps it")
	}
	add("nothing outlives a killed daemon", survive, "mount a cgroup v2 hierarchy (mount -t cgroup2 none /sys/fs/cgroup/unified)")
	peak, peakCure := missing("memory"), cure
	if peak == nil && !s.group.mem.peak.is() {
		peak, peakCure = errMissing("this kernel has no memory.peak: short peaks between two readings are missed"), "Linux 5.19 or later"
	}
	add("true peak memory", peak, peakCure)
	var tmp error
	var tmpCure string
	if why := (*tmpError)(nil); errors.As(d.tmpErr, &why) {
		tmp, tmpCure = fmt.Errorf("/tmp is a tmpfs, its files count as memory: %w", d.tmpErr), why.cure
	}
	add(sandbox.TmpOnDisk, tmp, tmpCure)
	d.log.Debug("sandboxes", "groups", d.cgroups.kind(), "first uid", strconv.Itoa(d.ids.first))
	return list
}

// since says whether the kernel is of this version or later.
func since(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var a, b int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a > major || a == major && b >= minor
}

// errMissing is an error known by its text.
type errMissing string

func (e errMissing) Error() string { return string(e) }
