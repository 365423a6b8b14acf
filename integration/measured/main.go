//go:build linux

// Command measured is a runtime and an external extension that use what their
// variables say of memory and files: <who>_MB of anonymous memory, touched, and
// <who>_FILE_MB written to /tmp and read again, with <who> RUNTIME or EXTENSION. The
// runtime answers how long it worked on the event, in microseconds.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
		if ms, err := strconv.Atoi(string(event)); err == nil {
			time.Sleep(time.Duration(ms) * time.Millisecond)
		}
		answer := strconv.FormatInt(time.Since(begun).Microseconds(), 10)
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
	for {
		req, _ := http.NewRequest(http.MethodGet, api+"/2020-01-01/extension/event/next", nil)
		req.Header.Set("Lambda-Extension-Identifier", id)
		resp, err := http.DefaultClient.Do(req)
		check(err)
		event, err := io.ReadAll(resp.Body)
		check(err)
		if bytes.Contains(event, []byte("SHUTDOWN")) {
			os.Exit(0)
		}
		use("EXTENSION")
	}
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
