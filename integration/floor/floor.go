// Package floor is the least that one invocation can cost with net/http on both
// sides: a client asks a daemon, which hands the event to a runtime that waits in a
// long poll, and hands its answer back. No signature is verified, nothing is
// isolated, frozen, logged or limited. What lambdad costs is told as a multiple of
// this, measured in the same run with the same client and the same runtime program.
//
// Daemon and runtimes are processes of their own, as lambdad's are: the program
// that uses this package executes itself again, so it calls Main first of all.
package floor

import (
	"bufio"
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
	"time"
)

// role is the variable that makes a program the daemon.
const role = "LAMBDAD_FLOOR_ROLE"

// Main turns the process into the daemon if it was executed as such, and otherwise
// returns at once.
func Main() {
	if os.Getenv(role) != "daemon" {
		return
	}
	if err := daemon(); err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A Floor is a running daemon with its runtimes.
type Floor struct {
	// URL answers every POST with what a runtime makes of its body.
	URL string

	daemon   *exec.Cmd
	stdin    io.Closer // its end is the daemon's
	runtimes []*exec.Cmd
}

// Start starts a daemon and n processes of the given runtime program, which speaks
// the Runtime API's next and response.
func Start(program string, n int) (_ *Floor, err error) {
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
	f.daemon.Env = append(os.Environ(), role+"=daemon")
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
		r := exec.Command(program)
		r.Env = []string{"AWS_LAMBDA_RUNTIME_API=" + back}
		if err := r.Start(); err != nil {
			return nil, err
		}
		f.runtimes = append(f.runtimes, r)
	}
	return f, nil
}

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
func daemon() error {
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	back, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	work := make(chan *invocation)
	var running sync.Map // id -> *invocation

	clients := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		event, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		inv := &invocation{strconv.FormatInt(time.Now().UnixNano(), 36), event, make(chan []byte, 1)}
		select {
		case work <- inv:
		case <-r.Context().Done():
			return
		}
		select {
		case answer := <-inv.answer:
			w.Header().Set("Content-Type", "application/json")
			w.Write(answer)
		case <-r.Context().Done():
		}
	})}
	runtimes := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, ok := strings.CutPrefix(r.URL.Path, "/2018-06-01/runtime/invocation/")
		if ok && rest == "next" {
			select {
			case inv := <-work:
				running.Store(inv.id, inv)
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("Lambda-Runtime-Aws-Request-Id", inv.id)
				w.Header().Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(time.Now().Add(3*time.Second).UnixMilli(), 10))
				w.Write(inv.event)
			case <-r.Context().Done():
			}
			return
		}
		id, ok := strings.CutSuffix(rest, "/response")
		inv, found := running.LoadAndDelete(id)
		if !ok || !found {
			http.NotFound(w, r)
			return
		}
		answer, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		inv.(*invocation).answer <- answer
		w.WriteHeader(http.StatusAccepted)
	})}

	errs := make(chan error, 3)
	go func() { errs <- clients.Serve(front) }()
	go func() { errs <- runtimes.Serve(back) }()
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
