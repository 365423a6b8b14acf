// Package floor is the least that one invocation can cost with net/http on both
// sides: a client asks a daemon, which hands the event to a runtime that waits in a
// long poll, and hands its answer back. No signature is verified, nothing is
// isolated, frozen, logged or limited. What lambdad costs is told as a multiple of
// this, measured in the same run with the same client and the same runtime program.
//
// A second, lower floor has a loop written by hand in place of net/http on the side
// of the runtime, which is what a server that knows its client may do.
//
// Daemon and runtimes are processes of their own, as lambdad's are: the program
// that uses this package executes itself again, so it calls Main first of all.
package floor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// role is the variable that makes a program the daemon.
const role = "LAMBDAD_FLOOR_ROLE"

// Main turns the process into the daemon if it was executed as such, and otherwise
// returns at once.
func Main() {
	kind := Kind(os.Getenv(role))
	if kind == "" {
		return
	}
	if err := daemon(kind); err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A Kind says how the daemon serves its runtimes. Clients it serves with net/http.
type Kind string

// The kinds of floors.
const (
	NetHTTP Kind = "net/http"
	Loop    Kind = "loop" // a hand-written loop for each connection
)

// A Runtime is how one runtime process is started. The address of its Runtime API
// is added to the variables.
type Runtime struct {
	Path string
	Args []string
	Env  []string
}

// A Floor is a running daemon with its runtimes.
type Floor struct {
	// URL answers every POST with what a runtime makes of its body.
	URL string

	daemon   *exec.Cmd
	stdin    io.Closer // its end is the daemon's
	runtimes []*exec.Cmd
}

// Start starts a daemon and n processes of the given runtime, which speaks the
// Runtime API's next and response.
func Start(kind Kind, runtime Runtime, n int) (_ *Floor, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	f := &Floor{daemon: exec.Command(self)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("starting the floor: %w", err), f.Close())
		}
	}()
	f.daemon.Env = append(os.Environ(), role+"="+string(kind))
	f.daemon.Stderr = os.Stderr
	if f.stdin, err = f.daemon.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := f.daemon.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := f.daemon.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("the daemon does not say where it listens: %w", err)
	}
	front, back, ok := strings.Cut(strings.TrimSpace(line), " ")
	if !ok {
		return nil, fmt.Errorf("the daemon says %q", line)
	}
	f.URL = "http://" + front + "/2015-03-31/functions/floor/invocations"
	for range n {
		r := exec.Command(runtime.Path, runtime.Args...)
		r.Env = append([]string{"AWS_LAMBDA_RUNTIME_API=" + back}, runtime.Env...)
		r.Stderr = os.Stderr
		if err := r.Start(); err != nil {
			return nil, err
		}
		f.runtimes = append(f.runtimes, r)
	}
	return f, nil
}

// PID is the daemon's.
func (f *Floor) PID() int { return f.daemon.Process.Pid }

// Close ends all processes and waits for them.
func (f *Floor) Close() error {
	for _, r := range f.runtimes {
		r.Process.Kill()
		r.Wait() // was killed, which is no news
	}
	if f.daemon.Process == nil {
		return nil
	}
	f.stdin.Close()
	return f.daemon.Wait()
}

// An invocation is on its way from the client to a runtime and back.
type invocation struct {
	id     string
	event  []byte
	answer chan []byte // capacity 1
}

// daemon serves until its standard input ends.
func daemon(kind Kind) error {
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	back, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d := &desk{work: make(chan *invocation)}
	clients := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		event, err := body(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		inv := &invocation{strconv.FormatInt(d.last.Add(1), 36), event, make(chan []byte, 1)}
		select {
		case d.work <- inv:
		case <-r.Context().Done():
			return
		}
		select {
		case answer := <-inv.answer:
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
			w.Write(answer)
		case <-r.Context().Done():
		}
	})}
	runtimes := &http.Server{Handler: http.HandlerFunc(d.serveHTTP)}
	serve := runtimes.Serve
	if kind == Loop {
		serve = d.serveLoop
	}

	errs := make(chan error, 3)
	go func() { errs <- clients.Serve(front) }()
	go func() { errs <- serve(back) }()
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		errs <- err
	}()
	fmt.Println(front.Addr(), back.Addr())
	err = <-errs
	clients.Close()
	runtimes.Close()
	return err
}

// A desk is where runtimes fetch events and leave answers.
type desk struct {
	work    chan *invocation
	running sync.Map // id -> *invocation
	last    atomic.Int64
}

// body reads a body into memory that is as large as it says it is.
func body(r *http.Request) ([]byte, error) {
	if r.ContentLength < 0 {
		return io.ReadAll(r.Body)
	}
	b := make([]byte, r.ContentLength)
	_, err := io.ReadFull(r.Body, b)
	return b, err
}

const pathPrefix = "/2018-06-01/runtime/invocation/"

// answer gives an answer to the caller of the invocation that path names.
func (d *desk) answer(path string, answer []byte) bool {
	id, ok := strings.CutSuffix(strings.TrimPrefix(path, pathPrefix), "/response")
	inv, found := d.running.LoadAndDelete(id)
	if ok && found {
		inv.(*invocation).answer <- answer
	}
	return ok && found
}

func deadline() string { return strconv.FormatInt(time.Now().Add(3*time.Second).UnixMilli(), 10) }

func (d *desk) serveHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == pathPrefix+"next" {
		select {
		case inv := <-d.work:
			d.running.Store(inv.id, inv)
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", strconv.Itoa(len(inv.event)))
			w.Header().Set("Lambda-Runtime-Aws-Request-Id", inv.id)
			w.Header().Set("Lambda-Runtime-Deadline-Ms", deadline())
			w.Write(inv.event)
		case <-r.Context().Done():
		}
		return
	}
	answer, err := body(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !d.answer(r.URL.Path, answer) {
		http.NotFound(w, r)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

// serveLoop serves runtimes that send well-formed requests with Content-Length.
func (d *desk) serveLoop(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			d.loop(conn) // its end is the runtime's
		}()
	}
}

// loop is the life of one connection: a read and a write for each exchange.
func (d *desk) loop(conn net.Conn) error {
	in, head := bufio.NewReaderSize(conn, 64<<10), []byte(nil)
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		fields := bytes.Fields(line)
		if len(fields) != 3 {
			return fmt.Errorf("request line %q", line)
		}
		path, length, chunked := string(fields[1]), 0, false
		for {
			if line, err = in.ReadSlice('\n'); err != nil {
				return err
			}
			if len(line) <= 2 {
				break
			}
			name, value, _ := bytes.Cut(line, []byte(":"))
			if bytes.EqualFold(name, []byte("content-length")) {
				if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
					return err
				}
			}
			chunked = chunked || bytes.EqualFold(name, []byte("transfer-encoding"))
		}
		if chunked {
			return errors.New("a chunked request")
		}
		head = head[:0]
		var event []byte
		if path == pathPrefix+"next" {
			inv := <-d.work
			d.running.Store(inv.id, inv)
			event = inv.event
			head = fmt.Appendf(head, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLambda-Runtime-Aws-Request-Id: %s\r\n"+
				"Lambda-Runtime-Deadline-Ms: %s\r\nContent-Length: %d\r\n\r\n", inv.id, deadline(), len(event))
		} else {
			answer := make([]byte, length)
			if _, err := io.ReadFull(in, answer); err != nil {
				return err
			}
			if !d.answer(path, answer) {
				return fmt.Errorf("no invocation at %s", path)
			}
			head = append(head, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"...)
		}
		out := net.Buffers{head, event}
		if _, err := out.WriteTo(conn); err != nil {
			return err
		}
	}
}
