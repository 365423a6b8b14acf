//go:build linux

// Command measured is a runtime and an external extension that use what their
// variables say of memory and files: <who>_MB of anonymous memory, touched, and
// <who>_FILE_MB written to /tmp and read again, with <who> RUNTIME or EXTENSION. The
// runtime answers how long it worked on the event, in microseconds. With LINES it
// writes as many lines, LINES_RATE a second, and an extension whose name ends in a
// digit subscribes twice to the function's lines and says in the log what it got;
// one whose name begins with "deaf" never reads what it is sent. On the event "pipe"
// the lines go into a pipe of its own, and on "log" to the log; the answer is how long
// the writing took alone, a line a call.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	api := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API")
	if strings.HasPrefix(os.Args[0], "/opt/extensions/") || filepath.Base(filepath.Dir(os.Args[0])) == "extensions" {
		extension(api)
	}
	for {
		resp, err := http.Get(api + "/2018-06-01/runtime/invocation/next")
		check(err)
		event, err := io.ReadAll(resp.Body)
		check(err)
		begun := time.Now()
		use("RUNTIME")
		writing := time.Duration(-1)
		if n := number("LINES"); n > 0 {
			switch string(event) {
			case `"log"`:
				writing = writeEach(os.Stdout, n, number("LINES_RATE"))
			case `"pipe"`:
				r, w, err := os.Pipe()
				check(err)
				go func() { _, _ = io.Copy(io.Discard, r); r.Close() }()
				writing = writeEach(w, n, number("LINES_RATE"))
				check(w.Close())
			default:
				write(n, number("LINES_RATE"))
			}
		}
		if ms, err := strconv.Atoi(string(event)); err == nil {
			time.Sleep(time.Duration(ms) * time.Millisecond)
		}
		took := time.Since(begun)
		if writing >= 0 {
			took = writing
		}
		answer := strconv.FormatInt(took.Microseconds(), 10)
		resp, err = http.Post(api+"/2018-06-01/runtime/invocation/"+resp.Header.Get("Lambda-Runtime-Aws-Request-Id")+"/response", "application/json", strings.NewReader(answer))
		check(err)
		_, _ = io.Copy(io.Discard, resp.Body)
		check(resp.Body.Close())
	}
}

func extension(api string) {
	req, _ := http.NewRequest(http.MethodPost, api+"/2020-01-01/extension/register", strings.NewReader(`{"events":["INVOKE","SHUTDOWN"]}`))
	req.Header.Set("Lambda-Extension-Name", filepath.Base(os.Args[0]))
	resp, err := http.DefaultClient.Do(req)
	check(err)
	id := resp.Header.Get("Lambda-Extension-Identifier")
	got := subscribe(api, id, filepath.Base(os.Args[0]))
	for {
		req, _ := http.NewRequest(http.MethodGet, api+"/2020-01-01/extension/event/next", nil)
		req.Header.Set("Lambda-Extension-Identifier", id)
		resp, err := http.DefaultClient.Do(req)
		check(err)
		event, err := io.ReadAll(resp.Body)
		check(err)
		if bytes.Contains(event, []byte("SHUTDOWN")) {
			for _, c := range got {
				fmt.Printf("counted %d dropped %d\n", c.lines.Load(), c.dropped.Load())
			}
			os.Exit(0)
		}
		use("EXTENSION")
	}
}

// counts are what one subscription got.
type counts struct{ lines, dropped atomic.Int64 }

// subscribe begins the two subscriptions of an extension.
func subscribe(api, id, name string) (list []*counts) {
	digit := name[len(name)-1]
	if number("LINES") == 0 || digit < '0' || digit > '9' {
		return nil
	}
	for _, port := range []string{"700" + string(digit), "710" + string(digit)} {
		c := &counts{}
		l, err := net.Listen("tcp", "sandbox.localdomain:"+port)
		check(err)
		if !strings.HasPrefix(name, "deaf") {
			list = append(list, c)
			go func() {
				check(http.Serve(l, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					body, err := io.ReadAll(r.Body)
					check(err)
					c.lines.Add(int64(bytes.Count(body, []byte(`"type":"function"`))))
					c.dropped.Add(int64(bytes.Count(body, []byte(`platform.logsDropped`))))
				})))
			}()
		}
		req, _ := http.NewRequest(http.MethodPut, api+"/2022-07-01/telemetry", strings.NewReader(`{"schemaVersion":"2022-12-13","types":["function"],`+
			`"buffering":{"timeoutMs":25},"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:`+port+`"}}`))
		req.Header.Set("Lambda-Extension-Identifier", id)
		resp, err := http.DefaultClient.Do(req)
		check(err)
		check(resp.Body.Close())
		if resp.StatusCode != http.StatusOK {
			check(fmt.Errorf("subscribe: %s", resp.Status))
		}
	}
	return list
}

// write writes lines at a rate.
func write(n, rate int) {
	line := []byte(strings.Repeat("x", 99) + "\n")
	batch := bytes.Repeat(line, max(rate/100, 1))
	for begun, done := time.Now(), 0; done < n; done += len(batch) / len(line) {
		if ahead := time.Duration(done)*time.Second/time.Duration(rate) - time.Since(begun); ahead > 0 {
			time.Sleep(ahead)
		}
		_, err := os.Stdout.Write(batch)
		check(err)
	}
}

// writeEach writes lines at a rate, one at a time, and returns what the writing took.
func writeEach(w io.Writer, n, rate int) (took time.Duration) {
	line := []byte(strings.Repeat("x", 99) + "\n")
	for begun, done := time.Now(), 0; done < n; done++ {
		if ahead := time.Duration(done)*time.Second/time.Duration(rate) - time.Since(begun); ahead > time.Millisecond {
			time.Sleep(ahead)
		}
		before := time.Now()
		_, err := w.Write(line)
		took += time.Since(before)
		check(err)
	}
	return took
}

func number(name string) int {
	n, _ := strconv.Atoi(os.Getenv(name))
	return n
}

// use does what the variables of who ask for.
func use(who string) {
	if n := number(who + "_MB"); n > 0 {
		memory, err := syscall.Mmap(-1, 0, n<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
		check(err)
		for i := 0; i < len(memory); i += 4096 {
			memory[i] = 1
		}
		defer func() { check(syscall.Munmap(memory)) }()
	}
	n := number(who + "_FILE_MB")
	if n == 0 {
		return
	}
	name := "/tmp/" + who
	f, err := os.Create(name)
	check(err)
	block := bytes.Repeat([]byte{7}, 1<<20)
	for range n {
		_, err := f.Write(block)
		check(err)
	}
	_, err = f.Seek(0, io.SeekStart)
	check(err)
	for {
		if _, err := f.Read(block); err == io.EOF {
			break
		}
	}
	check(f.Close())
	check(os.Remove(name))
}

func check(err error) {
	if err != nil {
		fmt.Println("measured:", err)
		os.Exit(1)
	}
}
