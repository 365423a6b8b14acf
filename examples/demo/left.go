package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// nothingLeft looks for what a stopped server could have left on the host: its
// process, cgroups and network interfaces with its id.
func nothingLeft(id string, pid int) error {
	var err error
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err = left(id, pid); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

func left(id string, pid int) (err error) {
	if _, e := os.Stat(fmt.Sprintf("/proc/%d", pid)); e == nil {
		err = errors.Join(err, fmt.Errorf("the server, process %d, still runs", pid))
	}
	for _, pattern := range []string{"/sys/fs/cgroup/lambdad-", "/sys/fs/cgroup/*/lambdad-", "/sys/fs/cgroup/*/*/lambdad-"} {
		found, _ := filepath.Glob(pattern + id)
		for _, f := range found {
			err = errors.Join(err, fmt.Errorf("the cgroup %s is left", f))
		}
	}
	links, _ := os.ReadDir("/sys/class/net")
	for _, l := range links {
		if strings.HasPrefix(l.Name(), "lmb"+id) {
			err = errors.Join(err, fmt.Errorf("the network interface %s is left", l.Name()))
		}
	}
	return err
}
