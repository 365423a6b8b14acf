// Command extension is a small external extension, to look at and to try things
// with: it registers under its file's name for INVOKE and SHUTDOWN, prints a line
// for each event, works for 30 ms after each invocation, as an exporter of
// telemetry would, and says goodbye. Standard library only.
//
// Put the built program into a layer as extensions/<any name>.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// work is what a real extension would do with what it has collected.
const work = 30 * time.Millisecond

// An event is what the Extensions API answers to event/next.
type event struct {
	Type           string `json:"eventType"`
	RequestID      string `json:"requestId"`
	FunctionARN    string `json:"invokedFunctionArn"`
	DeadlineMS     int64  `json:"deadlineMs"`
	ShutdownReason string `json:"shutdownReason"`
}

// An extension talks to the Extensions API of its environment.
type extension struct {
	name string // must be the file's name
	base string
	id   string // given at registration
	// No limit of time: the process is frozen while it waits.
	client http.Client
}

func main() {
	e := &extension{
		name: filepath.Base(os.Args[0]),
		base: "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2020-01-01/extension/",
	}
	if err := e.run(); err != nil {
		fmt.Fprintf(os.Stderr, "[%s] %v\n", e.name, err)
		os.Exit(1)
	}
}

// run is the extension's life.
func (e *extension) run() error {
	function, err := e.register()
	if err != nil {
		return err
	}
	e.say("registered for %s", function)
	for n := 1; ; {
		ev, err := e.next()
		if err != nil {
			return err
		}
		switch ev.Type {
		case "INVOKE":
			e.say("INVOKE %d, request %s", n, ev.RequestID)
			n++
			time.Sleep(work)
		case "SHUTDOWN":
			left := time.Until(time.UnixMilli(ev.DeadlineMS)).Round(100 * time.Millisecond)
			e.say("SHUTDOWN because of %s, %v left: goodbye", ev.ShutdownReason, left)
			return nil
		default:
			e.say("unknown event %q", ev.Type)
		}
	}
}

// register makes the extension known and returns the function's name.
func (e *extension) register() (string, error) {
	req, err := http.NewRequest(http.MethodPost, e.base+"register", bytes.NewReader([]byte(`{"events":["INVOKE","SHUTDOWN"]}`)))
	if err != nil {
		return "", err
	}
	req.Header.Set("Lambda-Extension-Name", e.name)
	var answer struct {
		FunctionName string `json:"functionName"`
	}
	header, err := e.do(req, &answer)
	if err != nil {
		return "", err
	}
	e.id = header.Get("Lambda-Extension-Identifier")
	return answer.FunctionName, nil
}

// next says that the work for the last event is done and waits for another.
func (e *extension) next() (event, error) {
	req, err := http.NewRequest(http.MethodGet, e.base+"event/next", nil)
	if err != nil {
		return event{}, err
	}
	req.Header.Set("Lambda-Extension-Identifier", e.id)
	var ev event
	_, err = e.do(req, &ev)
	return ev, err
}

// do sends a request and decodes the answer.
func (e *extension) do(req *http.Request, answer any) (http.Header, error) {
	resp, err := e.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", req.Method, req.URL.Path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s: %s: %s", req.Method, req.URL.Path, resp.Status, body)
	}
	if err := json.Unmarshal(body, answer); err != nil {
		return nil, fmt.Errorf("%s %s: %w", req.Method, req.URL.Path, err)
	}
	return resp.Header, nil
}

// say prints a line; it appears in the function's log.
func (e *extension) say(format string, args ...any) {
	fmt.Printf("[%s] %s\n", e.name, fmt.Sprintf(format, args...))
}
