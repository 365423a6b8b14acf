//go:build published

package runtimes

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// These tests put AWS's published runtime interface clients beside ours: the same
// handlers and events, the same answers, and no more time for an invocation. `make
// published` installs the clients and runs them.

// A published client is AWS's for a language.
type published struct {
	name     string
	runtime  string   // identifier whose client of ours stands beside it
	program  []string // its command line, before the handler
	argument bool     // the handler is an argument, not only _HANDLER
}

func publishedClients(t testing.TB) []published {
	var list []published
	if python := os.Getenv("LAMBDAD_AWS_PYTHON"); python != "" {
		out, err := exec.Command(python, "-c", "import sys; print('python%d.%d' % sys.version_info[:2])").Output()
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, published{"awslambdaric", strings.TrimSpace(string(out)), []string{python, "-m", "awslambdaric"}, true})
	}
	if client := os.Getenv("LAMBDAD_AWS_NODE"); client != "" {
		list = append(list, published{"aws-lambda-ric", "nodejs20.x", []string{"node", filepath.Join(client, "bin", "index.mjs")}, true})
	}
	if len(list) == 0 {
		t.Fatal("neither LAMBDAD_AWS_PYTHON (an interpreter with awslambdaric) nor LAMBDAD_AWS_NODE (directory of aws-lambda-ric) is set")
	}
	return list
}

// publishedCases are handlers by language, each with an event.
var publishedCases = map[string][][2]string{
	"python": {
		{"return e", `{"k": [1, 2.5, null, true, "é😀"]}`}, {"return None", `1`}, {"return (1, 2)", `1`}, {"return {1: 2, None: 3}", `1`}, {"return float('nan')", `1`},
		{"return b'\\x00raw'", `1`}, {"import decimal; return decimal.Decimal('1.10')", `1`}, {"import collections; return collections.namedtuple('P', 'x y')(1, 2)", `1`},
		{"return {1}", `1`}, {"a = []; a.append(a); return a", `1`}, {"import datetime; return datetime.date(2020, 1, 1)", `1`}, {"raise ValueError('boom')", `1`}, {"raise KeyError('k')", `1`}, {"raise Exception()", `1`},
		{"return e", `[1,`}, {"return e", ``}, {"return c.get_remaining_time_in_millis() > 1000", `1`}, {"return [c.function_name, c.memory_limit_in_mb, c.aws_request_id, c.client_context, c.identity.cognito_identity_id]", `1`}, {"return 'é'", `1`},
	},
	"nodejs": {
		{"async (e) => e", `{"k":[1,2.5,null,true,"é😀"]}`}, {"async () => {}", `1`}, {"() => 3", `1`}, {"async () => NaN", `1`}, {"async () => ({d: new Date(0), b: Buffer.from('a'), m: new Map()})", `1`},
		{"async () => { const a = {}; a.a = a; return a }", `1`}, {"async () => { throw new RangeError('x') }", `1`}, {"() => { throw new Error('x') }", `1`}, {"async () => { throw 'str' }", `1`}, {"async () => { throw {a: 1} }", `1`},
		{"async () => { throw undefined }", `1`}, {"(e, c, cb) => cb(null, {ok: true})", `1`}, {"(e, c, cb) => cb(new Error('x'))", `1`}, {"(e, c, cb) => { setTimeout(() => cb(null, 5), 10) }", `1`}, {"(e, c) => c.succeed('s')", `1`}, {"(e, c) => c.fail('f')", `1`}, {"(e, c) => c.done(null, 1)", `1`},
		{"async (e) => e", `{`}, {"async (e, c) => [c.functionName, c.memoryLimitInMB, c.awsRequestId, c.logGroupName]", `1`},
	},
}

// frames are the parts of an error that name a client's own code and numbers of lines.
var frames = regexp.MustCompile(`,"trace":\[.*\]|"stackTrace": \[.*\]`)

func TestPublishedAnswers(t *testing.T) {
	for _, p := range publishedClients(t) {
		t.Run(p.name, func(t *testing.T) {
			r := hostRuntime(t, p.runtime)
			l, _ := find(p.runtime)
			var files map[string]string
			var steps []step
			for i, c := range publishedCases[l.name] {
				// The event chooses the case, where it can be parsed.
				steps = append(steps, step{event: c[1], headers: map[string]string{"Lambda-Runtime-Aws-Request-Id": fmt.Sprintf("case-%d", i)}})
			}
			switch l.name {
			case "python":
				code := "def handler(e, c):\n    return globals()[c.aws_request_id.replace('-', '_')](e, c)\n"
				for i, c := range publishedCases[l.name] {
					code += fmt.Sprintf("def case_%d(e, c):\n    %s\n", i, c[0])
				}
				files = map[string]string{"m.py": code}
			case "nodejs":
				var list []string
				for _, c := range publishedCases[l.name] {
					list = append(list, c[0])
				}
				files = map[string]string{"m.js": "const cases = [" + strings.Join(list, ",\n") + "];\nexports.handler = (e, c, cb) => cases[c.awsRequestId.slice(5)](e, c, cb)\n"}
			}
			ours := run{files: files, handler: "m.handler", steps: steps}.start(t, r)
			theirs := run{files: files, handler: "m.handler", steps: steps, program: append(slices.Clone(p.program), "m.handler")}.start(t, r)
			if len(ours.posts) != len(steps) || len(theirs.posts) != len(steps) {
				t.Fatalf("%d and %d posts for %d events; theirs: %s %s", len(ours.posts), len(theirs.posts), len(steps), theirs.stdout, theirs.stderr)
			}
			for i := range steps {
				a, b := ours.posts[i], theirs.posts[i]
				if a.path != b.path || frames.ReplaceAllString(a.body, "") != frames.ReplaceAllString(b.body, "") || a.head.Get("Content-Type") != b.head.Get("Content-Type") && strings.HasSuffix(a.path, "response") {
					t.Errorf("%q of %s:\n ours   %s %s %s\n AWS's  %s %s %s", publishedCases[l.name][i][0], publishedCases[l.name][i][1],
						a.path, a.head.Get("Content-Type"), a.body, b.path, b.head.Get("Content-Type"), b.body)
				}
			}
			t.Logf("%s: %d cases, the same answers where nothing is said above", p.name, len(steps))
		})
	}
}

// TestPublishedOverhead measures what a client takes between its answer and the
// next one: ours may not take more than AWS's. They take turns.
func TestPublishedOverhead(t *testing.T) {
	const rounds, events = 5, 3000
	for _, p := range publishedClients(t) {
		r := hostRuntime(t, p.runtime)
		l, _ := find(p.runtime)
		files := map[string]map[string]string{"python": {"m.py": "def handler(e, c):\n    return e\n"}, "nodejs": {"m.js": "exports.handler = async (e) => e\n"}}[l.name]
		var ours, theirs []time.Duration
		for range rounds {
			ours = append(ours, overhead(t, r, files, nil, events))
			theirs = append(theirs, overhead(t, r, files, append(slices.Clone(p.program), "m.handler"), events))
		}
		slices.Sort(ours)
		slices.Sort(theirs)
		a, b := ours[rounds/2], theirs[rounds/2]
		t.Logf("%s: ours %v, AWS's %v per warm invocation, ratio %.2f (medians of %d rounds of %d)", p.name, a, b, float64(a)/float64(b), rounds, events)
		if a > b {
			t.Errorf("%s: ours takes more", p.name)
		}
	}
}

// overhead is the time of one invocation, from thousands with an event of 1 KB.
func overhead(t *testing.T, r *Runtime, files map[string]string, program []string, events int) time.Duration {
	event, err := json.Marshal(map[string]string{"text": strings.Repeat("x", 1000)})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	var begin time.Time
	done := make(chan time.Duration, 1)
	deadline := strconv.FormatInt(time.Now().Add(time.Hour).UnixMilli(), 10)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodPost {
			_, _ = io.Copy(io.Discard, req.Body)
			w.WriteHeader(http.StatusAccepted)
			_, _ = io.WriteString(w, "{\"status\":\"OK\"}\n")
			return
		}
		n++ // one request at a time
		switch n {
		case events / 10: // warm
			begin = time.Now()
		case events:
			done <- time.Since(begin) / time.Duration(events-events/10)
			<-req.Context().Done()
			return
		}
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Lambda-Runtime-Aws-Request-Id", invokeID)
		h.Set("Lambda-Runtime-Deadline-Ms", deadline)
		h.Set("Lambda-Runtime-Invoked-Function-Arn", arn)
		h.Set("Lambda-Runtime-Trace-Id", "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=1")
		_, _ = w.Write(event)
	})}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	task := t.TempDir()
	write(t, task, files)
	if program == nil {
		program = []string{filepath.Join(r.dir, "bootstrap")}
	}
	cmd := exec.Command(program[0], program[1:]...)
	cmd.Dir = task
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LANG=en_US.UTF-8", "_HANDLER=m.handler", "LAMBDA_TASK_ROOT=" + task, "AWS_LAMBDA_RUNTIME_API=" + listener.Addr().String(),
		"AWS_LAMBDA_FUNCTION_NAME=f", "AWS_LAMBDA_FUNCTION_VERSION=$LATEST", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=1024", "AWS_LAMBDA_LOG_GROUP_NAME=g", "AWS_LAMBDA_LOG_STREAM_NAME=s", "AWS_EXECUTION_ENV=" + r.Env["AWS_EXECUTION_ENV"]}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	select {
	case d := <-done:
		return d
	case <-time.After(2 * time.Minute):
		t.Fatalf("%v did not answer %d events", program, events)
		return 0
	}
}
