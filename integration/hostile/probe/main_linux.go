// Command probe is the hostile code of the suite: the runtime of a
// provided.al2023 function, or an extension, that does what the event asks for.
// What it answers is data for the test to judge; nothing it tries would harm
// a host that lets it.
//
// An event is {"do": word, …}; the words are the cases of attack. The answer is a
// report. As an extension, and with HOSTILE_INIT as a runtime before its first
// event, it does words at once, and an extension prints its reports; what
// HOSTILE_SHUTDOWN says an extension does when it is told of the end.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// An order is the event.
type order struct {
	Do    string   `json:"do"`
	Paths []string `json:"paths"`
	Text  string   `json:"text"`
	Addr  string   `json:"addr"`
	Raw   []byte   `json:"raw"`
	N     int      `json:"n"`
	Bytes int      `json:"bytes"`
	MS    int      `json:"ms"`
}

// A report is the answer.
type report struct {
	Holes []string          `json:"holes"` // what was possible and must not be
	N     int               `json:"n"`     // how much was possible
	Err   string            `json:"err"`   // what ended it
	Env   map[string]string `json:"env,omitempty"`
	Raw   []byte            `json:"raw,omitempty"`
	Paths []string          `json:"paths,omitempty"`
}

func (r *report) hole(format string, args ...any) {
	r.Holes = append(r.Holes, fmt.Sprintf(format, args...))
}

func main() {
	if len(os.Args) > 1 {
		child(os.Args[1:])
		return
	}
	if strings.HasPrefix(os.Args[0], "/opt/extensions/") || filepath.Base(os.Args[0]) == "villain" {
		extension()
	}
	if os.Getenv("HOSTILE_SIGTERM") == "ignored" {
		signal.Ignore(syscall.SIGTERM)
	}
	if word := os.Getenv("HOSTILE_INIT"); word != "" {
		attack(order{Do: word, N: 200, MS: 3000})
	}
	fmt.Fprintln(os.Stderr, "probe:", runtimeLoop())
	os.Exit(1)
}

// base is the address of the Runtime and Extensions APIs.
func base() string { return "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") }

// runtimeLoop answers events until that fails.
func runtimeLoop() error {
	for {
		resp, err := http.Get(base() + "/2018-06-01/runtime/invocation/next")
		if err != nil {
			return err
		}
		event, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return err
		}
		id := resp.Header.Get("Lambda-Runtime-Aws-Request-Id")
		var o order
		if err := json.Unmarshal(event, &o); err != nil {
			return err
		}
		var body io.Reader
		if o.Do == "endless response" {
			body = &endless{left: o.Bytes}
		} else {
			answer, err := json.Marshal(attack(o))
			if err != nil {
				return err
			}
			body = bytes.NewReader(answer)
		}
		resp, err = http.Post(base()+"/2018-06-01/runtime/invocation/"+id+"/response", "application/json", body)
		if err != nil {
			if o.Do == "endless response" {
				continue // cut off
			}
			return err
		}
		resp.Body.Close()
	}
}

// endless is a body; 0 bytes left: without end.
type endless struct{ left int }

func (e *endless) Read(b []byte) (int, error) {
	if e.left < 0 {
		return 0, io.EOF
	}
	for i := range b {
		b[i] = 'x'
	}
	e.left -= len(b)
	return len(b), nil
}

// extension registers and does what HOSTILE_EXTENSION says.
func extension() {
	call := func(path, id string, body string) (*http.Response, error) {
		method := http.MethodGet
		if body != "" {
			method = http.MethodPost
		}
		req, err := http.NewRequest(method, base()+"/2020-01-01/extension/"+path, strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Lambda-Extension-Name", filepath.Base(os.Args[0]))
		req.Header.Set("Lambda-Extension-Identifier", id)
		return http.DefaultClient.Do(req)
	}
	resp, err := call("register", "", `{"events":["INVOKE","SHUTDOWN"]}`)
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe: register:", err)
		os.Exit(1)
	}
	resp.Body.Close()
	id := resp.Header.Get("Lambda-Extension-Identifier")
	// Known to the runtime, which shares the host name and /tmp with it.
	_ = os.WriteFile(os.TempDir()+"/extension-id", []byte(id), 0o644)
	for word := range strings.SplitSeq(os.Getenv("HOSTILE_EXTENSION"), ",") {
		if word == "listener" {
			listener(id)
		} else if word != "" {
			b, _ := json.Marshal(attack(order{Do: word, N: 20, MS: 1, Text: "60000"}))
			fmt.Printf("hostile %s %s\n", word, b)
		}
	}
	for {
		resp, err := call("event/next", id, "")
		if err != nil {
			time.Sleep(time.Hour) // it does not end because it is told to
		}
		event, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if word := os.Getenv("HOSTILE_SHUTDOWN"); word != "" && bytes.Contains(event, []byte(`"SHUTDOWN"`)) {
			attack(order{Do: word, N: 200, MS: 20_000})
		}
	}
}

// listener subscribes to telemetry and answers each delivery with a body, or with
// headers, that do not end.
func listener(id string) {
	l, err := net.Listen("tcp", "0.0.0.0:8080")
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe: listen:", err)
		os.Exit(1)
	}
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				go func() { _, _ = io.Copy(io.Discard, c) }()
				piece := []byte("HTTP/1.1 200 OK\r\n\r\n")
				if n%2 == 1 {
					piece = []byte("HTTP/1.1 200 OK\r\nX-Long: ")
				}
				for {
					if _, err := c.Write(piece); err != nil {
						return
					}
					piece = bytes.Repeat([]byte("x"), 64<<10)
				}
			}()
		}
	}()
	req, err := http.NewRequest(http.MethodPut, base()+"/2022-07-01/telemetry", strings.NewReader(`{"schemaVersion": "2022-12-13", "types": ["platform", "function"],
		"buffering": {"maxItems": 1000, "maxBytes": 262144, "timeoutMs": 25}, "destination": {"protocol": "HTTP", "URI": "http://sandbox.localdomain:8080"}}`))
	if err == nil {
		req.Header.Set("Lambda-Extension-Identifier", id)
		var resp *http.Response
		if resp, err = http.DefaultClient.Do(req); err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe: subscribe:", err)
		os.Exit(1)
	}
}

// attack does one word. Addresses are those of a sandbox with a network of its own;
// where there is none, they are others.
func attack(o order) *report {
	r := &report{}
	switch _, endpoint, _ := strings.Cut(os.Getenv("AWS_ENDPOINT_URL"), "//"); o.Addr {
	case "127.0.0.1:9001":
		o.Addr = os.Getenv("AWS_LAMBDA_RUNTIME_API")
	case "127.0.0.1:4566":
		o.Addr = endpoint
	}
	switch o.Do {
	case "nothing":
	case "env":
		r.Env = map[string]string{}
		for _, e := range os.Environ() {
			k, v, _ := strings.Cut(e, "=")
			r.Env[k] = v
		}
	case "file":
		name := o.Text
		if rest, ok := strings.CutPrefix(name, "/tmp/"); ok {
			name = filepath.Join(os.TempDir(), rest)
		}
		var err error
		if r.Raw, err = os.ReadFile(name); err != nil {
			r.Err = err.Error()
		}
	case "read":
		readable(r, o.Paths)
	case "search":
		search(r, o.Text)
	case "processes":
		processes(r)
	case "descriptors":
		descriptors(r)
	case "calls":
		calls(r)
	case "raise":
		raise(r)
	case "setuid":
		setuid(r)
	case "signals":
		signals(r)
	case "escape":
		escape(r)
	case "network":
		network(r)
	case "http":
		exchange(r, o)
	case "inotify", "aio", "signals queued", "message queues", "descriptors exhausted", "tcp memory", "connections held":
		exhaust(r, o)
	case "inodes", "fill", "reserve":
		fillTmp(r, o)
	case "lines", "endless line":
		flood(r, o)
	case "fork bomb":
		forkBomb(r, o)
	case "processes held":
		holdProcesses(r, o)
	case "memory bomb":
		memoryBomb(r, o)
	case "linger":
		linger(r, o)
	case "headers", "drip", "churn", "bodies", "dripping bodies":
		connections(r, o)
	default:
		r.hole("the probe does not know the word %q", o.Do)
	}
	return r
}
