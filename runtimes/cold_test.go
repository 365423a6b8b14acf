//go:build published

package runtimes

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestPublishedCold measures a cold start of our clients beside the bare interpreter
// with the same imports: the processor time from the start of the process until it
// asks for its first event, or says that it has imported. (Time on the clock says as
// much about the neighbours.) They take turns; at most 1.2 times is allowed.
func TestPublishedCold(t *testing.T) {
	const rounds = 15
	for _, c := range []struct {
		runtime string
		files   map[string]string
		bare    func(r *Runtime, task string) []string
	}{
		{"python3.11", map[string]string{"m.py": "import json, logging, urllib.request, socket\ndef handler(e, c):\n    return e\n", "bare.py": "import socket, m\nsocket.create_connection(ADDRESS).sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"},
			func(r *Runtime, task string) []string { return []string{r.Interpreter, task + "/bare.py"} }},
		{"nodejs20.x", map[string]string{"m.js": "const fs = require('fs'), http = require('http');\nexports.handler = async (e) => e\n", "bare.js": "require('./m.js'); require('net').connect(ADDRESS).write('GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"},
			func(r *Runtime, task string) []string { // The heap flags that AWS's command line has cost both.
				return []string{r.Interpreter, "--max-semi-space-size=51", "--max-old-space-size=921", task + "/bare.js"}
			}},
	} {
		r := hostRuntime(t, c.runtime)
		var ours, bare []time.Duration
		for range rounds {
			ours = append(ours, untilAsked(t, r, c.files, nil))
			bare = append(bare, untilAsked(t, r, c.files, c.bare))
		}
		slices.Sort(ours)
		slices.Sort(bare)
		a, b := ours[rounds/2], bare[rounds/2]
		t.Logf("%s: %v of processor until the first event is asked for, the bare interpreter %v, ratio %.2f (medians of %d)", c.runtime, a, b, float64(a)/float64(b), rounds)
		if float64(a) > 1.2*float64(b) {
			t.Errorf("%s: more than 1.2 times", c.runtime)
		}
	}
}

func untilAsked(t *testing.T, r *Runtime, files map[string]string, bare func(r *Runtime, task string) []string) time.Duration {
	asked := make(chan struct{}, 1)
	server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		asked <- struct{}{}
		<-req.Context().Done()
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	host, port, _ := net.SplitHostPort(l.Addr().String())
	task := t.TempDir()
	placed := map[string]string{}
	for name, content := range files {
		address := map[string]string{".py": "('" + host + "', " + port + ")", ".js": port + ", '" + host + "'"}[filepath.Ext(name)]
		placed[name] = strings.ReplaceAll(content, "ADDRESS", address)
	}
	write(t, task, placed)
	program := []string{filepath.Join(r.dir, "bootstrap")}
	if bare != nil {
		program = bare(r, task)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program[0], program[1:]...)
	cmd.Dir = task
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LANG=en_US.UTF-8", "_HANDLER=m.handler", "LAMBDA_TASK_ROOT=" + task, "AWS_LAMBDA_RUNTIME_API=" + l.Addr().String(),
		"AWS_LAMBDA_FUNCTION_NAME=f", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=1024", "AWS_EXECUTION_ENV=" + r.Env["AWS_EXECUTION_ENV"], "PYTHONDONTWRITEBYTECODE=1"}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	select {
	case <-asked:
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	case <-ctx.Done():
		t.Fatalf("%v did not ask for an event", program)
		return 0
	}
}
