package environmenttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/fake"
)

// A process is what a script runs in: a real one or a fake.
type process interface {
	getenv(string) string
	dial(ctx context.Context, addr string) (net.Conn, error)
	print(line string)
	sleep(time.Duration) bool // false: the process has ended
	signals() <-chan syscall.Signal
	kill()
	exit(code int) // from any goroutine
	oom()
	gone() <-chan struct{} // closed when the process has ended
	attempt() int
	fork(script string)
}

// run runs a script, one step on each line, and returns the exit status. A step
// that fails ends it with status 70 and says so on standard output.
//
//	first STEP            only in the first process of this name in the sandbox
//	later STEP            only in the others
//	next                  wait for the next event (runtime)
//	respond BODY          answer it
//	serve TEXT            answer every event with {"attempt":N}, for ever; print TEXT first
//	error TYPE BODY       answer it with an error
//	big N                 answer it with N bytes
//	truncated             begin an answer and close the connection
//	badmode               answer it with an unknown response mode
//	endless               answer it with a body that never ends
//	initerror TYPE BODY   report a failed initialisation (runtime)
//	register NAME EVENTS  register an extension; EVENTS by commas, - for none
//	event                 wait for its next event and print it
//	events                do so until SHUTDOWN, then exit 0
//	internal NAME EVENTS  register and wait for events in the background
//	xinit TYPE, xexit TYPE  report an error as an extension
//	print TEXT, sleep D, exit N, kill, oom, fork STEP
//	onterm exit|ignore    print SIGTERM when it comes, and exit or not
//	hang                  wait for ever
func run(p process, script string) (code int) {
	s := &state{p: p, base: "http://" + p.getenv("AWS_LAMBDA_RUNTIME_API")}
	s.http = &http.Client{Transport: &http.Transport{
		DisableCompression: true,
		DialContext:        func(ctx context.Context, _, addr string) (net.Conn, error) { return p.dial(ctx, addr) },
	}}
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if rest, ok := strings.CutPrefix(line, "first "); ok {
			if p.attempt() > 1 {
				continue
			}
			line = rest
		} else if rest, ok := strings.CutPrefix(line, "later "); ok {
			if p.attempt() == 1 {
				continue
			}
			line = rest
		}
		err := s.step(line)
		var x exitCode
		if errors.As(err, &x) {
			return int(x)
		}
		if err != nil {
			p.print("step failed: " + line + ": " + err.Error())
			return 70
		}
	}
	return 0
}

type exitCode int

func (x exitCode) Error() string { return "exit " + strconv.Itoa(int(x)) }

var errKilled = exitCode(137)

type state struct {
	p    process
	http *http.Client
	base string
	id   string // of the event
	ext  string // identifier
	name string
}

func (s *state) step(line string) error {
	verb, arg, _ := strings.Cut(line, " ")
	first, rest, _ := strings.Cut(arg, " ")
	const runtime = "/2018-06-01/runtime/"
	switch verb {
	case "next":
		h, _, err := s.call("GET", runtime+"invocation/next", nil, nil, 200)
		s.id = h.Get("Lambda-Runtime-Aws-Request-Id")
		return err
	case "respond":
		return s.post(runtime+"invocation/"+s.id+"/response", nil, strings.NewReader(arg), 202)
	case "serve":
		for {
			if err := s.step("next"); err != nil {
				return err
			}
			if arg != "" {
				s.p.print(arg)
			}
			if err := s.step(`respond {"attempt":` + strconv.Itoa(s.p.attempt()) + `}`); err != nil {
				return err
			}
		}
	case "error":
		return s.post(runtime+"invocation/"+s.id+"/error", http.Header{"Lambda-Runtime-Function-Error-Type": {first}}, strings.NewReader(rest), 202)
	case "big":
		n, _ := strconv.Atoi(arg)
		want := 202
		if n > 6291556 {
			want = 413
		}
		return s.post(runtime+"invocation/"+s.id+"/response", nil, bytes.NewReader(bytes.Repeat([]byte("x"), n)), want)
	case "truncated":
		c, err := s.p.dial(context.Background(), strings.TrimPrefix(s.base, "http://"))
		if err != nil {
			return err
		}
		fmt.Fprintf(c, "POST %sinvocation/%s/response HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf", runtime, s.id)
		return c.Close()
	case "badmode":
		return s.post(runtime+"invocation/"+s.id+"/response", http.Header{"Lambda-Runtime-Function-Response-Mode": {"buffered"}}, strings.NewReader("{}"), 400)
	case "endless":
		return s.post(runtime+"invocation/"+s.id+"/response", nil, endless{s.p}, 0)
	case "initerror":
		return s.post(runtime+"init/error", http.Header{"Lambda-Runtime-Function-Error-Type": {first}}, strings.NewReader(rest), 202)
	case "register":
		s.name = first
		return s.register(s, first, rest)
	case "internal":
		other := &state{p: s.p, http: s.http, base: s.base, name: first}
		if err := s.register(other, first, rest); err != nil {
			return err
		}
		go other.step("events")
		return nil
	case "event", "events":
		for {
			_, body, err := s.call("GET", "/2020-01-01/extension/event/next", http.Header{"Lambda-Extension-Identifier": {s.ext}}, nil, 200)
			if err != nil {
				return err
			}
			kind := "INVOKE"
			if bytes.Contains(body, []byte(`"SHUTDOWN"`)) {
				_, after, _ := strings.Cut(string(body), `"shutdownReason":"`)
				kind, _, _ = strings.Cut(after, `"`)
				kind = "SHUTDOWN " + kind
			}
			s.p.print(s.name + " saw " + kind)
			if verb == "event" {
				return nil
			}
			if kind != "INVOKE" {
				return exitCode(0)
			}
		}
	case "xinit", "xexit":
		h := http.Header{"Lambda-Extension-Identifier": {s.ext}, "Lambda-Extension-Function-Error-Type": {arg}}
		return s.post("/2020-01-01/extension/"+map[string]string{"xinit": "init", "xexit": "exit"}[verb]+"/error", h, nil, 202)
	case "print":
		s.p.print(arg)
	case "sleep":
		d, err := time.ParseDuration(arg)
		if err == nil && !s.p.sleep(d) {
			return errKilled
		}
		return err
	case "hang":
		for s.p.sleep(time.Hour) {
		}
		return errKilled
	case "exit":
		n, err := strconv.Atoi(arg)
		if err != nil {
			return err
		}
		return exitCode(n)
	case "kill":
		s.p.kill()
		return errKilled
	case "oom":
		s.p.oom()
		return errKilled
	case "fork":
		s.p.fork(arg)
	case "onterm":
		c := s.p.signals()
		go func() {
			for {
				select {
				case <-c:
				case <-s.p.gone():
					return
				}
				s.p.print("got SIGTERM")
				if arg == "exit" {
					s.p.exit(0)
				}
			}
		}()
	default:
		return errors.New("unknown step")
	}
	return nil
}

func (s *state) register(as *state, name, events string) error {
	body := `{"events":[]}`
	if events != "" && events != "-" {
		body = `{"events":["` + strings.ReplaceAll(events, ",", `","`) + `"]}`
	}
	h, _, err := s.call("POST", "/2020-01-01/extension/register", http.Header{"Lambda-Extension-Name": {name}}, strings.NewReader(body), 200)
	as.ext = h.Get("Lambda-Extension-Identifier")
	return err
}

func (s *state) post(path string, h http.Header, body io.Reader, want int) error {
	_, _, err := s.call("POST", path, h, body, want)
	return err
}

func (s *state) call(method, path string, h http.Header, body io.Reader, want int) (http.Header, []byte, error) {
	req, err := http.NewRequest(method, s.base+path, body)
	if err != nil {
		return nil, nil, err
	}
	if h != nil {
		req.Header = h
	}
	r, err := s.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != want {
		err = fmt.Errorf("status %d, want %d: %s", r.StatusCode, want, b)
	}
	return r.Header, b, err
}

// endless is a body of one byte every tenth of a second.
type endless struct{ p process }

func (e endless) Read(b []byte) (int, error) {
	if !e.p.sleep(100 * time.Millisecond) {
		return 0, io.ErrUnexpectedEOF
	}
	b[0] = 'x'
	return 1, nil
}

// scriptFile says where the script of a program is: beside a bootstrap, and in
// the directory scripts of the layer for an extension.
func scriptFile(program string) string {
	dir, base := filepath.Split(program)
	if filepath.Base(dir) == "extensions" {
		return filepath.Join(filepath.Dir(filepath.Clean(dir)), "scripts", base)
	}
	return program + ".script"
}

// Program runs the scripts of Run as fake processes: set it as fake.Driver.Exec.
func Program(p *fake.Proc) sandbox.Exit {
	script, err := p.ReadFile(scriptFile(p.Path))
	if err != nil {
		p.Print(err)
		return sandbox.Exit{Code: 71}
	}
	return sandbox.Exit{Code: run(fakeProcess{p}, string(script))}
}

type fakeProcess struct{ p *fake.Proc }

func (f fakeProcess) getenv(k string) string { return f.p.Getenv(k) }
func (f fakeProcess) dial(ctx context.Context, addr string) (net.Conn, error) {
	return f.p.Dial(ctx, addr)
}
func (f fakeProcess) print(s string)                 { f.p.Print(s) }
func (f fakeProcess) sleep(d time.Duration) bool     { return f.p.Sleep(d) }
func (f fakeProcess) signals() <-chan syscall.Signal { return f.p.Signals() }
func (f fakeProcess) kill()                          { f.p.Kill(syscall.SIGKILL) }
func (f fakeProcess) exit(code int)                  { f.p.Exit(sandbox.Exit{Code: code}) }
func (f fakeProcess) oom()                           { f.p.OOM() }
func (f fakeProcess) gone() <-chan struct{}          { return f.p.Killed() }
func (f fakeProcess) attempt() int                   { return f.p.Attempt() }
func (f fakeProcess) fork(script string) {
	f.p.Fork(func(p *fake.Proc) sandbox.Exit { return sandbox.Exit{Code: run(fakeProcess{p}, script)} })
}
