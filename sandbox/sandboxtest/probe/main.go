// Command probe is what the suite runs inside sandboxes: one small static
// program with a word for each thing a sandbox must allow, limit or survive.
package main

import (
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
	"sync/atomic"
	"syscall"
	"time"
)

// spun gives a busy loop something to do.
var spun atomic.Uint64

func main() {
	if len(os.Args) < 2 {
		os.Exit(64)
	}
	arg := func(i int) string {
		if len(os.Args) > i {
			return os.Args[i]
		}
		return ""
	}
	num := func(i int) int { n, _ := strconv.Atoi(arg(i)); return n }
	switch arg(1) {
	case "exit":
		os.Exit(num(2))
	case "echo":
		fmt.Println(strings.Join(os.Args[2:], " "))
	case "log": // to a descriptor
		_, err := os.NewFile(uintptr(num(2)), "log").WriteString("logged")
		check(err)
	case "env":
		for _, e := range os.Environ() {
			fmt.Println(e)
		}
	case "cwd":
		dir, err := os.Getwd()
		check(err)
		fmt.Println(dir)
	case "lines": // n lines, numbered
		for i := range num(2) {
			fmt.Println("line", i)
		}
	case "heir": // a grandchild that keeps the pipe after this process ended
		c := exec.Command("/proc/self/exe", "late", arg(2))
		c.Stdout = os.Stdout
		check(c.Start())
	case "late": // writes after a while
		time.Sleep(time.Duration(num(2)) * time.Millisecond)
		fmt.Println("late")
	case "sleep":
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "stubborn": // outlives what can be ignored
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "term": // says that SIGTERM came
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("ready")
		<-c
		fmt.Println("terminated")
	case "daemons": // children that leave the session, and their parent
		for range num(2) {
			daemonize("daemon")
		}
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "daemon": // second fork, so that nobody is its parent
		daemonize("stubborn")
	case "tick": // a line every ten milliseconds
		for {
			fmt.Println("tick")
			time.Sleep(10 * time.Millisecond)
		}
	case "forks": // a process every ten milliseconds, which says so
		for {
			c := exec.Command("/proc/self/exe", "echo", "tick")
			c.Stdout = os.Stdout
			check(c.Run())
			time.Sleep(10 * time.Millisecond)
		}
	case "get": // one HTTP request
		r, err := http.Get(arg(2))
		check(err)
		defer r.Body.Close()
		_, err = io.Copy(os.Stdout, r.Body)
		check(err)
	case "datagrams": // to so many ports of an address, from each of so many sockets
		for range num(4) {
			c, err := net.ListenUDP("udp4", nil)
			check(err)
			for port := range num(3) {
				_, _ = c.WriteToUDP([]byte("x"), &net.UDPAddr{IP: net.ParseIP(arg(2)), Port: 10_000 + port}) // refusals come as errors
			}
			check(c.Close())
		}
	case "spoof": // a datagram that says where it claims to come from, from each of some sources
		for _, from := range os.Args[3:] {
			if err := datagramFrom(from, arg(2)); err != nil {
				fmt.Println(from, err)
			}
		}
	case "serve": // an HTTP server
		l, err := net.Listen("tcp", arg(2))
		check(err)
		fmt.Println("ready", l.Addr())
		check(http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "from inside") })))
	case "cat":
		b, err := os.ReadFile(arg(2))
		check(err)
		_, _ = os.Stdout.Write(b)
	case "put":
		check(os.WriteFile(arg(2), []byte(arg(3)), 0o644))
	case "exists":
		_, err := os.Lstat(arg(2))
		check(err)
	case "burn": // threads that never rest
		for range max(num(2), 1) {
			go func() {
				for n := uint64(0); ; n++ {
					spun.Store(n)
				}
			}()
		}
		fmt.Println("ready")
		select {}
	case "bomb": // processes without end
		for {
			c := exec.Command("/proc/self/exe", "bomb")
			if c.Start() != nil {
				time.Sleep(time.Millisecond)
			}
		}
	case "many": // how many children are possible; they are counted while this lives
		fmt.Println(children(num(2)))
		time.Sleep(time.Hour)
	case "alloc": // megabytes held
		hold(num(2))
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "alloc-child": // megabytes held by a child, whose end this survives
		c := exec.Command("/proc/self/exe", "alloc", arg(2))
		err := c.Run()
		fmt.Println("child:", err)
		time.Sleep(time.Hour)
	case "peak": // megabytes held and given back, then files
		syscall.Munmap(hold(num(2)))
		fill(arg(3), num(4))
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "fill": // a file of megabytes
		fill(arg(2), num(3))
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "stat": // mode and number of entries of a directory
		info, err := os.Stat(arg(2))
		check(err)
		list, err := os.ReadDir(arg(2))
		check(err)
		fmt.Println(info.Mode(), len(list))
	case "pour": // so many files of so many bytes, read back and removed when all went well
		for i := range num(3) {
			name := arg(2) + strconv.Itoa(i)
			check(pour(name, byte(i+1), num(4)))
		}
		for i := range num(3) {
			name := arg(2) + strconv.Itoa(i)
			check(poured(name, byte(i+1), num(4)))
			check(os.Remove(name))
		}
		fmt.Println("done")
	case "read": // a file from beginning to end
		f, err := os.Open(arg(2))
		check(err)
		buf := make([]byte, 64<<10)
		for {
			if _, err := f.Read(buf); err != nil {
				break
			}
		}
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "sockets": // pairs, both directions full
		for range num(2) {
			p, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
			check(err)
			for _, fd := range p {
				check(syscall.SetNonblock(fd, true))
				for buf := make([]byte, 32<<10); ; {
					if _, err := syscall.Write(fd, buf); err != nil {
						break
					}
				}
			}
		}
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "hostile": // what must not be possible; prints what was
		hostile(len(os.Args) > 2 && os.Args[2] == "same-user")
	default:
		os.Exit(64)
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func daemonize(word string) {
	c := exec.Command("/proc/self/exe", word)
	c.Env = []string{"GONE=1"}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	check(c.Start())
	if word == "daemon" {
		_ = c.Wait()
	}
}

// hold touches memory outside the garbage collector's.
func hold(mb int) []byte {
	b, err := syscall.Mmap(-1, 0, mb<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	check(err)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	return b
}

// pour writes a file and waits until the disk has it, as a careful program does.
func pour(name string, content byte, size int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := bytes.Repeat([]byte{content}, 1<<20)
	for left := size; left > 0; left -= len(buf) {
		if _, err := f.Write(buf[:min(left, len(buf))]); err != nil {
			return err
		}
	}
	return f.Sync()
}

// poured reads it back.
func poured(name string, content byte, size int) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	want, buf := bytes.Repeat([]byte{content}, 1<<20), make([]byte, 1<<20)
	for left := size; left > 0; left -= len(buf) {
		n := min(left, len(buf))
		if _, err := io.ReadFull(f, buf[:n]); err != nil {
			return err
		}
		if !bytes.Equal(buf[:n], want[:n]) {
			return fmt.Errorf("%s has other content than was written", name)
		}
	}
	return nil
}

func fill(name string, mb int) {
	f, err := os.Create(name)
	check(err)
	buf := bytes.Repeat([]byte{7}, 1<<20)
	for range mb {
		_, err := f.Write(buf)
		check(err)
	}
	check(f.Close())
}
