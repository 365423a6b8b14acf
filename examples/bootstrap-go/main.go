// Command bootstrap-go is a custom runtime and its function in one program, for
// provided.al2023: it answers every event with the event itself and says when its
// process started, which tells how long a cold start took to come this far. An
// event {"sleepMs": 100} is answered after 100 ms.
// Standard library only.
//
// Put the built program into a package as bootstrap.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// An answer is what every invocation returns.
type answer struct {
	Event       json.RawMessage `json:"event"`
	RequestID   string          `json:"requestId"`
	Invocations int             `json:"invocations"`
	// StartedMS is when this process began its work, in milliseconds since 1970.
	StartedMS int64 `json:"startedMs"`
}

func main() {
	started := time.Now().UnixMilli()
	fmt.Fprintln(os.Stderr, "bootstrap:", serve(started))
	os.Exit(1)
}

// serve asks for events and answers them for as long as the environment lives.
// It returns only when that is no longer possible.
func serve(started int64) error {
	base := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/invocation/"
	for n := 1; ; n++ {
		id, event, err := next(base)
		if err != nil {
			return err
		}
		if !json.Valid(event) {
			event, _ = json.Marshal(string(event)) // a string cannot fail
		}
		var ask struct {
			SleepMS int64 `json:"sleepMs"`
		}
		if json.Unmarshal(event, &ask) == nil { // any other event asks for nothing
			time.Sleep(time.Duration(ask.SleepMS) * time.Millisecond)
		}
		body, err := json.Marshal(answer{event, id, n, started})
		if err != nil {
			return err
		}
		if err := respond(base+id+"/response", body); err != nil {
			return err
		}
	}
}

// next waits for an event.
func next(base string) (id string, event []byte, err error) {
	resp, err := http.Get(base + "next")
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	event, err = io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("next: %s: %s", resp.Status, event)
	}
	return resp.Header.Get("Lambda-Runtime-Aws-Request-Id"), event, err
}

// respond posts the answer of an invocation. An answer that is too large has been
// replaced by the platform.
func respond(url string, body []byte) error {
	resp, err := http.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusRequestEntityTooLarge {
		err = fmt.Errorf("response: %s: %s", resp.Status, text)
	}
	return err
}
