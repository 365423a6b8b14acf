// Command probe is what the benchmark runs inside environments: under the name
// bootstrap a runtime and its function in one program, under any other an external
// extension that does nothing, or as "ear" counts the function's lines. Standard
// library only, as small as net/http allows.
//
// Its function answers {"started": <ns since 1970 when the process ran>, "echo": …},
// sleeps as long as the event's sleepMs says, works with the processor for workMs, and
// writes as many lines as lines says, linesRate a second. An event that begins with
// {"raw" comes back as it is.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lambdad/lambdad/integration/bench/probe/begun"
)

type event struct {
	SleepMS   int    `json:"sleepMs,omitempty"`
	WorkMS    int    `json:"workMs,omitempty"`
	Lines     int    `json:"lines,omitempty"`
	LinesRate int    `json:"linesRate,omitempty"`
	Echo      string `json:"echo,omitempty"`
}

type answer struct {
	Started int64  `json:"started"`
	TookUS  int64  `json:"tookUs,omitempty"` // of writing lines
	Echo    string `json:"echo,omitempty"`
}

func main() {
	started := begun.At.UnixNano()
	if len(os.Args) > 1 && os.Args[1] == "exit" {
		if len(os.Args) > 2 { // it is to write there
			if err := os.WriteFile(os.Args[2], make([]byte, 4096), 0o644); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		fmt.Println(started)
		return
	}
	name := filepath.Base(os.Args[0])
	var err error
	if name == "bootstrap" {
		err = runtime(started)
	} else {
		err = extension(name)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}

// runtime answers events until the connection ends.
func runtime(started int64) error {
	base := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/invocation/"
	var out []byte
	for {
		resp, err := http.Get(base + "next")
		if err != nil {
			return err
		}
		text, err := body(resp)
		if err = finish(resp, err); err != nil {
			return err
		}
		if out, err = answerTo(text, started); err != nil {
			return err
		}
		resp, err = http.Post(base+resp.Header.Get("Lambda-Runtime-Aws-Request-Id")+"/response", "application/json", bytes.NewReader(out))
		if err != nil {
			return err
		}
		if err := finish(resp, nil); err != nil {
			return err
		}
	}
}

// body reads a body into memory that is as large as it says it is.
func body(resp *http.Response) ([]byte, error) {
	if resp.ContentLength < 0 {
		return io.ReadAll(resp.Body)
	}
	text := make([]byte, resp.ContentLength)
	_, err := io.ReadFull(resp.Body, text)
	return text, err
}

// answerTo is the function.
func answerTo(text []byte, started int64) ([]byte, error) {
	if bytes.HasPrefix(text, []byte(`{"raw"`)) {
		return text, nil
	}
	var ev event
	if err := json.Unmarshal(text, &ev); err != nil {
		return nil, err
	}
	if ev.SleepMS > 0 {
		time.Sleep(time.Duration(ev.SleepMS) * time.Millisecond)
	}
	work(time.Duration(ev.WorkMS) * time.Millisecond)
	took, err := write(ev.Lines, ev.LinesRate)
	if err != nil {
		return nil, err
	}
	return json.Marshal(answer{started, took.Microseconds(), ev.Echo})
}

// work keeps a processor busy for so much of its time; the clock of the wall would
// count what a quota takes away.
func work(length time.Duration) {
	used := func() time.Duration {
		var u syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	for begin := used(); length > 0 && used()-begin < length; {
	}
}

// write writes lines of 100 bytes at a rate.
func write(n, rate int) (time.Duration, error) {
	begin := time.Now()
	batch := max(rate/200, 1)
	text := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), batch)
	for done := 0; done < n; {
		if ahead := time.Duration(done)*time.Second/time.Duration(rate) - time.Since(begin); ahead > 0 {
			time.Sleep(ahead)
		}
		now := min(batch, n-done)
		if _, err := os.Stdout.Write(text[:now*100]); err != nil {
			return 0, err
		}
		done += now
	}
	return time.Since(begin), nil
}

// An ear counts what it is sent.
type ear struct {
	mu          sync.Mutex
	lines       int
	drops       int
	first, last time.Time
}

func (e *ear) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // it is sent again
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.drops += bytes.Count(body, []byte(`"platform.logsDropped"`))
	if n := bytes.Count(body, []byte(`"type":"function"`)); n > 0 {
		if e.lines == 0 {
			e.first = time.Now()
		}
		e.lines, e.last = e.lines+n, time.Now()
	}
}

// listen subscribes to the function's lines.
func (e *ear) listen(api, id string) error {
	l, err := net.Listen("tcp", "sandbox.localdomain:4243")
	if err != nil {
		return err
	}
	go http.Serve(l, e)
	req, err := http.NewRequest("PUT", "http://"+api+"/2022-07-01/telemetry", strings.NewReader(`{"schemaVersion":"2022-12-13","types":["function"],`+
		`"buffering":{"timeoutMs":25,"maxItems":10000,"maxBytes":1048576},"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:4243"}}`))
	if err != nil {
		return err
	}
	req.Header.Set("Lambda-Extension-Identifier", id)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return finish(resp, nil)
}

// extension asks for events until SHUTDOWN.
func extension(name string) error {
	base := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2020-01-01/extension/"
	req, err := http.NewRequest("POST", base+"register", strings.NewReader(`{"events":["INVOKE","SHUTDOWN"]}`))
	if err != nil {
		return err
	}
	req.Header.Set("Lambda-Extension-Name", name)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if err := finish(resp, nil); err != nil {
		return err
	}
	id := resp.Header.Get("Lambda-Extension-Identifier")
	e := &ear{}
	if name == "ear" {
		if err := e.listen(os.Getenv("AWS_LAMBDA_RUNTIME_API"), id); err != nil {
			return err
		}
	}
	for {
		req, err := http.NewRequest("GET", base+"event/next", nil)
		if err != nil {
			return err
		}
		req.Header.Set("Lambda-Extension-Identifier", id)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		var ev struct {
			EventType string `json:"eventType"`
		}
		err = json.NewDecoder(resp.Body).Decode(&ev)
		if err = finish(resp, err); err != nil {
			return err
		}
		if ev.EventType == "SHUTDOWN" {
			if e.mu.Lock(); name == "ear" {
				fmt.Printf("ear counted %d dropped %d in %d\n", e.lines, e.drops, e.last.Sub(e.first).Microseconds())
			}
			return nil
		}
	}
}

// finish reads the rest of an answer, so that its connection is used again.
func finish(resp *http.Response, err error) error {
	defer resp.Body.Close()
	rest, readErr := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case readErr != nil:
		return readErr
	case resp.StatusCode >= 300:
		return fmt.Errorf("%s %s: %s: %s", resp.Request.Method, resp.Request.URL.Path, resp.Status, rest)
	}
	return nil
}
