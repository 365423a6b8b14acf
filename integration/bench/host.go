package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// An observation is the memory of a server, its processes and the host, in bytes.
type observation struct {
	rss, pss  int64 // of all processes below the server
	daemon    int64 // anonymous memory of the server itself
	kernel    int64 // slab, stacks, page tables and per-CPU memory
	available int64
}

// observe looks at the server with the given pid.
func observe(pid int) (observation, error) {
	var o observation
	children, err := processTree()
	if err != nil {
		return o, err
	}
	own, err := fields(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return o, err
	}
	o.daemon = own["RssAnon"]
	for queue := children[pid]; len(queue) > 0; queue = queue[1:] {
		queue = append(queue, children[queue[0]]...)
		// A process may end meanwhile.
		if f, err := fields(fmt.Sprintf("/proc/%d/smaps_rollup", queue[0])); err == nil {
			o.rss += f["Rss"]
			o.pss += f["Pss"]
		}
	}
	host, err := fields("/proc/meminfo")
	if err != nil {
		return o, err
	}
	o.kernel = host["Slab"] + host["KernelStack"] + host["PageTables"] + host["Percpu"]
	o.available = host["MemAvailable"]
	return o, nil
}

// fields reads lines such as "Rss:  12 kB", in bytes.
func fields(path string) (map[string]int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := map[string]int64{}
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		name, rest, ok := strings.Cut(s.Text(), ":")
		number, isKB := strings.CutSuffix(strings.TrimSpace(rest), " kB")
		if n, err := strconv.ParseInt(number, 10, 64); ok && isKB && err == nil {
			m[name] = n << 10
		}
	}
	return m, nil
}

// processTree returns the children of every process.
func processTree() (map[int][]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		// pid (name, which may hold anything) state ppid …
		_, rest, ok := strings.Cut(string(data[max(0, bytes.LastIndexByte(data, ')')):]), " ")
		f := strings.Fields(rest)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if !ok || len(f) < 2 {
			continue
		}
		if parent, err := strconv.Atoi(f[1]); err == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	return children, nil
}

// cpuModel is what the processor calls itself.
func cpuModel() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

// cgroups says which version of control groups rules processes here.
func cgroups() string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return "cgroup v2"
	}
	if _, err := os.Stat("/sys/fs/cgroup/unified/cgroup.procs"); err == nil {
		return "cgroup v1 and v2 (hybrid)"
	}
	return "cgroup v1"
}

// held are the threads and descriptors of a process.
func held(pid int) (threads, descriptors int) {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	files, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(tasks), len(files)
}
