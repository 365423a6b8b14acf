package environmenttest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Main is the program probe: it runs the script that lies beside it and exits.
func Main() {
	script := os.Getenv("PROBE_SCRIPT")
	if script == "" {
		b, err := os.ReadFile(scriptFile(os.Args[0]))
		if err != nil {
			fmt.Println(err)
			os.Exit(71)
		}
		script = string(b)
	}
	os.Exit(run(newReal(), script))
}

// real is a process of the operating system.
type real struct{ n int }

// newReal counts the attempts in /tmp, which a reset keeps.
func newReal() *real {
	tmp := os.Getenv("TMPDIR")
	if tmp == "" {
		tmp = "/tmp"
	}
	file := filepath.Join(tmp, "attempts-"+filepath.Base(os.Args[0]))
	b, _ := os.ReadFile(file)
	n, _ := strconv.Atoi(string(b))
	n++
	if os.Getenv("PROBE_SCRIPT") == "" {
		os.WriteFile(file, []byte(strconv.Itoa(n)), 0o644)
	}
	return &real{n}
}

func (r *real) getenv(k string) string { return os.Getenv(k) }
func (r *real) dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}
func (r *real) print(s string)             { fmt.Println(s) }
func (r *real) sleep(d time.Duration) bool { time.Sleep(d); return true }
func (r *real) gone() <-chan struct{}      { return nil }
func (r *real) attempt() int               { return r.n }

func (r *real) signals() <-chan syscall.Signal {
	in, out := make(chan os.Signal, 8), make(chan syscall.Signal, 8)
	signal.Notify(in, syscall.SIGTERM)
	go func() {
		for s := range in {
			out <- s.(syscall.Signal)
		}
	}()
	return out
}

func (r *real) kill() {
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func (r *real) exit(code int) { os.Exit(code) }

func (r *real) oom() {
	var hold [][]byte
	for {
		b := make([]byte, 8<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		hold = append(hold, b)
		if len(hold) > 1024 { // 8 GiB: there is no limit here
			os.Exit(72)
		}
	}
}

func (r *real) fork(script string) {
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "PROBE_SCRIPT="+script)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	if err := c.Start(); err != nil {
		fmt.Println(err)
	}
}
