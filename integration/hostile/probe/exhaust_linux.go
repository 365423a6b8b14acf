package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// child is what the probe does as a process of its own making.
func child(args []string) {
	ms := func(i int) time.Duration {
		n, _ := strconv.Atoi(args[i])
		return time.Duration(n) * time.Millisecond
	}
	switch args[0] {
	case "id":
		fmt.Println(os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid())
	case "list-descriptors":
		listDescriptors()
	case "lingerer": // leaves session and parent behind, forks all the time, hears nothing
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
		if len(args) < 3 {
			c := exec.Command("/proc/self/exe", "lingerer", args[1], "orphan")
			c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			_ = c.Start()
			return
		}
		// Ends by itself, as the bomb does.
		for end := time.Now().Add(time.Minute); time.Now().Before(end); {
			_ = exec.Command("/proc/self/exe", "wait", "5").Run()
		}
	case "wait":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println()
		time.Sleep(ms(1))
	case "bomb":
		// Ends by itself, so that a host that does not hold is not lost. When is the same
		// for all of them: a time that began with each would never be over where their
		// start takes long, and what comes later in the same sandbox would be starved.
		at, _ := strconv.ParseInt(args[1], 10, 64)
		for end := time.UnixMilli(at); time.Now().Before(end); {
			if exec.Command("/proc/self/exe", "bomb", args[1]).Start() != nil {
				time.Sleep(time.Millisecond)
			}
		}
	}
}

// forkBomb makes processes that make processes, for a while.
func forkBomb(r *report, o order) {
	end := time.Now().Add(time.Duration(o.MS) * time.Millisecond)
	for range o.N {
		if err := exec.Command("/proc/self/exe", "bomb", strconv.FormatInt(end.UnixMilli(), 10)).Start(); err != nil {
			r.Err = err.Error()
			break
		}
	}
	time.Sleep(time.Until(end))
}

// holdProcesses makes processes that do nothing, as many as it is given.
func holdProcesses(r *report, o order) {
	var all []int
	for len(all) < o.N {
		pid, err := syscall.ForkExec("/bin/sleep", []string{"sleep", "60"}, &syscall.ProcAttr{}) // without a descriptor for each
		if err != nil {
			r.Err = err.Error()
			break
		}
		all = append(all, pid)
	}
	r.N = len(all)
	for _, pid := range all {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(pid, nil, 0, nil)
	}
}

// memoryBomb takes so many MiB, or until it is stopped.
func memoryBomb(r *report, o order) {
	most := o.N
	if most == 0 {
		most = 4096
	}
	for range most {
		b, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			r.Err = err.Error()
			return
		}
		for j := 0; j < len(b); j += 4096 {
			b[j] = 1
		}
		r.N++
	}
}

// linger leaves processes that want to survive.
func linger(r *report, o order) {
	for range o.N {
		if err := exec.Command("/proc/self/exe", "lingerer", o.Text).Run(); err != nil {
			r.Err = err.Error()
		}
	}
	time.Sleep(time.Duration(o.MS) * time.Millisecond)
}

// fillTmp fills /tmp with bytes or with names, and empties it.
func fillTmp(r *report, o order) {
	dir := os.TempDir() + "/full"
	defer os.RemoveAll(dir)
	if err := os.Mkdir(dir, 0o700); err != nil {
		r.Err = err.Error()
		return
	}
	if o.Do == "inodes" {
		for end := time.Now().Add(time.Duration(o.MS) * time.Millisecond); r.N < o.N && time.Now().Before(end); {
			fd, err := unix.Open(dir+"/"+strconv.Itoa(r.N), unix.O_CREAT|unix.O_WRONLY|unix.O_EXCL, 0o600)
			if err != nil {
				r.Err = err.Error()
				return
			}
			unix.Close(fd)
			r.N++
		}
		return
	}
	f, err := os.Create(dir + "/file")
	if err != nil {
		r.Err = err.Error()
		return
	}
	defer f.Close()
	if o.Do == "reserve" { // without writing
		for r.N < o.N {
			if err := unix.Fallocate(int(f.Fd()), 0, int64(r.N)<<20, 1<<20); err != nil {
				r.Err = err.Error()
				return
			}
			r.N++
		}
		return
	}
	buf := bytes.Repeat([]byte{7}, 1<<20)
	for end := time.Now().Add(time.Duration(o.MS) * time.Millisecond); r.N < o.N && time.Now().Before(end); {
		if _, err := f.Write(buf); err != nil {
			r.Err = err.Error()
			return
		}
		r.N++
	}
}

// exhaust takes as much as it is given of something that the kernel counts for
// more than one sandbox, holds it for a while and says how much it was.
func exhaust(r *report, o order) {
	hold := func() { time.Sleep(time.Duration(o.MS) * time.Millisecond) }
	switch o.Do {
	case "inotify":
		var fds []int
		for r.N < o.N {
			fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
			if err != nil {
				r.Err = err.Error()
				break
			}
			fds = append(fds, fd)
			r.N++
		}
		hold()
		closeAll(fds)
	case "aio":
		var ctx uintptr
		_, _, errno := unix.RawSyscall(unix.SYS_IO_SETUP, uintptr(o.N), uintptr(unsafe.Pointer(&ctx)), 0)
		if errno == 0 {
			r.N = o.N
			hold()
			_, _, _ = unix.RawSyscall(unix.SYS_IO_DESTROY, ctx, 0, 0)
		} else {
			r.Err = errno.Error()
		}
	case "signals queued":
		// A child's, so that they go with it. It handles this signal, as Go's programs
		// do, or the first would end it; and it stands still, or it would take them.
		const sig = 40
		var info [128]byte
		info[0], info[8] = sig, 0xff // si_signo, si_code < 0
		info[9], info[10], info[11] = 0xff, 0xff, 0xff
		c := exec.Command("/proc/self/exe", "wait", "60000")
		ready, err := c.StdoutPipe()
		if err == nil {
			err = c.Start()
		}
		if err != nil {
			r.Err = err.Error()
			return
		}
		defer func() {
			_ = c.Process.Kill()
			_ = c.Wait()
		}()
		_, err = ready.Read(make([]byte, 1))
		if err == nil {
			err = c.Process.Signal(syscall.SIGSTOP)
		}
		var status syscall.WaitStatus
		if err == nil {
			_, err = syscall.Wait4(c.Process.Pid, &status, syscall.WUNTRACED, nil)
		}
		if err != nil || !status.Stopped() {
			r.hole("the probe's child does not stop: %v", err)
			return
		}
		for r.N < o.N {
			_, _, errno := unix.RawSyscall(unix.SYS_RT_SIGQUEUEINFO, uintptr(c.Process.Pid), sig, uintptr(unsafe.Pointer(&info[0])))
			if errno != 0 {
				r.Err = errno.Error()
				break
			}
			r.N++
		}
		hold()
		// What a dead process is sent counts nowhere.
		if state, err := os.ReadFile("/proc/" + strconv.Itoa(c.Process.Pid) + "/stat"); err != nil || !bytes.Contains(state, []byte(") T ")) {
			r.hole("the probe's child did not stand still: %.40q, %v", state, err)
		}
	case "message queues":
		var names [][]byte
		for r.N < o.N {
			name := append([]byte("q"+strconv.Itoa(r.N)), 0)
			attr := [8]int64{0, 10, 8192}
			fd, _, errno := unix.RawSyscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(&name[0])), unix.O_CREAT|unix.O_RDWR, 0o600, uintptr(unsafe.Pointer(&attr)), 0, 0)
			if errno != 0 {
				r.Err = errno.Error()
				break
			}
			unix.Close(int(fd))
			names = append(names, name)
			r.N++
		}
		hold()
		for _, name := range names {
			_, _, _ = unix.RawSyscall(unix.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(&name[0])), 0, 0)
		}
	case "descriptors exhausted":
		var fds []int
		for r.N < o.N {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				r.Err = err.Error()
				break
			}
			fds = append(fds, fd)
			r.N++
		}
		hold()
		closeAll(fds)
	case "tcp memory":
		// Connections to itself that nobody reads: kernel memory without a page of
		// its own.
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			r.Err = err.Error()
			return
		}
		defer l.Close()
		var open []net.Conn
		defer func() {
			for _, c := range open {
				c.Close()
			}
		}()
		buf := make([]byte, 64<<10)
		for range o.N {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				r.Err = err.Error()
				break
			}
			open = append(open, c)
			s, err := l.Accept()
			if err != nil {
				r.Err = err.Error()
				break
			}
			open = append(open, s)
			_ = c.(*net.TCPConn).SetWriteBuffer(4 << 20)
			_ = s.(*net.TCPConn).SetReadBuffer(4 << 20)
			_ = c.SetWriteDeadline(time.Now().Add(30 * time.Millisecond))
			for r.N < o.Bytes {
				n, err := c.Write(buf)
				r.N += n
				if err != nil {
					break
				}
			}
		}
		hold()
	case "connections held":
		// Many at a time, and for a time only: on a busy machine each may take long.
		var mu sync.Mutex
		var open []net.Conn
		var failed error
		end := time.Now().Add(5 * time.Second)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for time.Now().Before(end) {
					mu.Lock()
					enough := len(open) >= o.N
					mu.Unlock()
					if enough {
						return
					}
					c, err := net.DialTimeout("tcp", o.Addr, time.Second)
					mu.Lock()
					if err != nil {
						failed = err
					} else {
						open = append(open, c)
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		r.N = len(open)
		if failed != nil {
			r.Err = failed.Error()
		}
		hold()
		for _, c := range open {
			c.Close()
		}
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// flood writes to the log: lines, or one that does not end.
func flood(r *report, o order) {
	chunk := bytes.Repeat([]byte("x"), 64<<10)
	if o.Do == "lines" {
		chunk = bytes.Repeat([]byte("a line that says nothing and is one of very many of its kind\n"), 1000)
	}
	for end := time.Now().Add(time.Duration(o.MS) * time.Millisecond); r.N < o.Bytes && time.Now().Before(end); {
		n, err := os.Stdout.Write(chunk)
		r.N += n
		if err != nil {
			r.Err = err.Error()
			break
		}
	}
	_, _ = os.Stdout.Write([]byte("\n"))
}

// exchange sends bytes to an address and gives back what comes.
func exchange(r *report, o order) {
	c, err := net.DialTimeout("tcp", o.Addr, 2*time.Second)
	if err != nil {
		r.Err = err.Error()
		return
	}
	defer c.Close()
	wait := 5 * time.Second
	if o.MS > 0 {
		wait = time.Duration(o.MS) * time.Millisecond
	}
	_ = c.SetDeadline(time.Now().Add(wait))
	if _, err := c.Write(o.Raw); err != nil {
		r.Err = err.Error()
	}
	if o.Text == "one" { // one well-formed answer, then no more
		req, _ := http.NewRequest(http.MethodGet, "/", nil)
		resp, err := http.ReadResponse(bufio.NewReader(io.TeeReader(c, (*collector)(&r.Raw))), req)
		if err != nil {
			r.Err = err.Error()
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		return
	}
	r.Raw, err = io.ReadAll(io.LimitReader(c, 1<<20))
	if err != nil {
		r.Err = err.Error()
	}
}

type collector []byte

func (c *collector) Write(b []byte) (int, error) { *c = append(*c, b...); return len(b), nil }

// connections attacks an API with many connections: each with huge headers, with
// a request that comes byte by byte, with a body that stops before its end, or
// closed and opened again.
func connections(r *report, o order) {
	end := time.Now().Add(time.Duration(o.MS) * time.Millisecond)
	var n atomic.Int64
	var sent atomic.Int64
	var wg sync.WaitGroup
	for i := range o.N {
		wg.Go(func() {
			for time.Now().Before(end) {
				c, err := net.DialTimeout("tcp", o.Addr, time.Second)
				if err != nil {
					time.Sleep(5 * time.Millisecond)
					continue
				}
				n.Add(1)
				_ = c.SetDeadline(end)
				write := func(b []byte) bool {
					k, err := c.Write(b)
					sent.Add(int64(k))
					return err == nil
				}
				switch o.Do {
				case "churn":
					write([]byte("GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
				case "headers":
					write([]byte("GET / HTTP/1.1\r\nHost: x\r\nX-Long: "))
					piece := []byte(strings.Repeat("a", 16<<10))
					for k := 0; k < o.Bytes && write(piece); k += len(piece) {
					}
					// The end of the header does not come.
					_, _ = io.Copy(io.Discard, c)
				case "drip":
					write([]byte("POST /2018-06-01/runtime/invocation/" + strconv.Itoa(i) + "/response HTTP/1.1\r\nHost: x\r\nX-Slow: "))
					for time.Now().Before(end) && write([]byte("y")) {
						time.Sleep(50 * time.Millisecond)
					}
				case "dripping bodies":
					write(o.Raw)
					for time.Now().Before(end) && write([]byte("y")) {
						time.Sleep(50 * time.Millisecond)
					}
				case "bodies":
					write(o.Raw)
					piece := make([]byte, 64<<10)
					for k := 0; k < o.Bytes && write(piece); k += len(piece) {
					}
					_, _ = io.Copy(io.Discard, c)
				}
				c.Close()
			}
		})
	}
	wg.Wait()
	r.N = int(n.Load())
	r.Err = "sent " + strconv.FormatInt(sent.Load(), 10) + " bytes"
}
