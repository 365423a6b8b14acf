// Command probe is what the benchmark runs inside environments: under the name
// bootstrap a runtime and its function in one program, under any other an external
// extension that does nothing. Standard library only, as small as net/http allows.
//
// Its function answers {"started": <ns since 1970 when the process ran>, "echo": …}
// and sleeps as long as the event's sleepMs says.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lambdad/lambdad/integration/bench/probe/begun"
)

type event struct {
	SleepMS int    `json:"sleepMs,omitempty"`
	Echo    string `json:"echo,omitempty"`
}

type answer struct {
	Started int64  `json:"started"`
	Echo    string `json:"echo,omitempty"`
}

func main() {
	started := begun.At.UnixNano()
	if len(os.Args) > 1 && os.Args[1] == "exit" {
		fmt.Println(started, time.Now().UnixNano())
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
	for {
		resp, err := http.Get(base + "next")
		if err != nil {
			return err
		}
		var ev event
		err = json.NewDecoder(resp.Body).Decode(&ev)
		if err = finish(resp, err); err != nil {
			return err
		}
		if ev.SleepMS > 0 {
			time.Sleep(time.Duration(ev.SleepMS) * time.Millisecond)
		}
		out, err := json.Marshal(answer{started, ev.Echo})
		if err != nil {
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
		if err = finish(resp, err); err != nil || ev.EventType == "SHUTDOWN" {
			return err
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
