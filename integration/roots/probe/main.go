// Command probe is a custom runtime whose function runs programs: it answers an event
// that lists command lines with what each of them printed. The word "fetch" instead of
// a program's name is a request of the probe's own. Standard library only.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

// A Result is what became of one command line.
type result struct {
	Out string `json:"out"`
	Err string `json:"err,omitempty"`
}

func main() {
	base := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/invocation/"
	for {
		if err := answer(base); err != nil {
			fmt.Fprintln(os.Stderr, "probe:", err)
			os.Exit(1)
		}
	}
}

func answer(base string) error {
	resp, err := http.Get(base + "next")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var lines [][]string
	if err := json.NewDecoder(resp.Body).Decode(&lines); err != nil {
		return err
	}
	list := make([]result, len(lines))
	for i, line := range lines {
		list[i] = run(line)
	}
	body, err := json.Marshal(list)
	if err != nil {
		return err
	}
	done, err := http.Post(base+resp.Header.Get("Lambda-Runtime-Aws-Request-Id")+"/response", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	return done.Body.Close()
}

func run(line []string) result {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if line[0] == "fetch" {
		return fetch(ctx, line[1])
	}
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	if strings.Contains(line[0], "=") { // NAME=value before the program, as in a shell
		cmd = exec.CommandContext(ctx, line[1], line[2:]...)
		cmd.Env = append(os.Environ(), line[0])
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	r := result{Out: string(out)}
	if err != nil {
		r.Err = err.Error() + ": " + strings.TrimSpace(stderr.String())
	}
	return r
}

func fetch(ctx context.Context, url string) result {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return result{Err: err.Error()}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return result{Err: err.Error()}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return result{Err: err.Error()}
	}
	return result{Out: string(b)}
}
