package main

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/lambdad/lambdad/datadir"
)

const (
	startLimit = 30 * time.Second // for anything to start
	stopLimit  = 2 * time.Minute  // for lambdad to stop, with thousands of environments
	role       = "arn:aws:iam::000000000000:role/any"
)

// A server is a running lambdad.
type server struct {
	label    string // what it is called in tables
	binary   string
	data     string
	cmd      *exec.Cmd
	exited   chan error
	log      *bytes.Buffer // standard error; read it after exited
	endpoint string
	region   string
	tier     string
	version  string
	keys     aws.Credentials
	client   *client
}

// startServer starts lambdad on a free port with its data in dir.
func startServer(ctx context.Context, binary, dir string, args []string) (_ *server, err error) {
	s := &server{binary: binary, data: dir, exited: make(chan error, 1), log: &bytes.Buffer{}}
	s.cmd = exec.Command(s.binary, append([]string{"serve", "--listen", "127.0.0.1:0", "--data-dir", dir, "--log-level", "warn", "--idle-timeout", "10m"}, args...)...)
	s.cmd.Stderr = s.log
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { s.exited <- s.cmd.Wait() }()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	var info datadir.Server
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if info, err = datadir.Lookup(dir); err == nil {
			break
		}
		if time.Since(begin) > startLimit {
			return nil, fmt.Errorf("lambdad does not start: %w", err)
		}
		select {
		case err := <-s.exited:
			s.exited <- err
			return nil, fmt.Errorf("lambdad ended while it started: %w", err)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		default:
		}
	}
	s.endpoint, s.region, s.tier, s.version = info.Endpoint, info.Region, info.Tier, info.Version
	out, err := exec.CommandContext(ctx, s.binary, "env", "--data-dir", dir).Output()
	if err != nil {
		return nil, fmt.Errorf("lambdad env: %w", err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		name, value, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		value = strings.Trim(value, `'"`)
		switch name {
		case "AWS_ACCESS_KEY_ID":
			s.keys.AccessKeyID = value
		case "AWS_SECRET_ACCESS_KEY":
			s.keys.SecretAccessKey = value
		}
	}
	if !s.keys.HasKeys() {
		return nil, fmt.Errorf("lambdad env names no keys: %s", out)
	}
	s.client = newClient(s)
	return s, nil
}

// stop ends the server as an operator would. What it warned of is in its log then.
func (s *server) stop() error {
	if s.client != nil {
		s.client.close()
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-s.exited:
		if err != nil {
			return fmt.Errorf("lambdad ended badly: %w\n%s", err, s.log)
		}
	case <-time.After(stopLimit):
		s.cmd.Process.Kill()
		<-s.exited
		return fmt.Errorf("lambdad did not stop within %v\n%s", stopLimit, s.log)
	}
	return nil
}

func (s *server) invokeURL(function string) string {
	return s.endpoint + "/2015-03-31/functions/" + function + "/invocations"
}

// extensionCounts are the numbers of Go extensions measured.
var extensionCounts = []int{0, 1, 3}

const (
	goRuntime     = "provided.al2023"
	pythonRuntime = "python3.12"
	nodeRuntime   = "nodejs20.x"
)

// pythonSource is the same function as the probe's, for Python.
const pythonSource = `import time
started = time.time_ns()
def handler(event, context):
    if event.get("sleepMs"):
        time.sleep(event["sleepMs"] / 1000)
    return {"started": started, "echo": event.get("echo", "")}
`

// nodeSource is the same for Node.js.
const nodeSource = `const started = Date.now() * 1e6;
exports.handler = async (event) => {
    if (event.sleepMs) await new Promise((done) => setTimeout(done, event.sleepMs));
    return {started, echo: event.echo || ''};
};
`

// codeOf is the package of the function for a runtime.
func codeOf(runtime, probe string) (map[string][]byte, error) {
	switch runtime {
	case pythonRuntime:
		return map[string][]byte{"function.py": []byte(pythonSource)}, nil
	case nodeRuntime:
		return map[string][]byte{"function.js": []byte(nodeSource)}, nil
	}
	program, err := os.ReadFile(probe)
	return map[string][]byte{"bootstrap": program}, err
}

// create makes a function with n extensions and waits until it can be invoked. With
// more than what every function has, set changes it.
func (s *server) create(ctx context.Context, name, runtime, probe string, n int, set ...func(map[string]any)) error {
	files, err := codeOf(runtime, probe)
	if err != nil {
		return err
	}
	in := map[string]any{
		"FunctionName": name, "Runtime": runtime, "Role": role, "Handler": "function.handler", "Timeout": 60, "MemorySize": 1769,
		"Code": map[string]any{"ZipFile": zipped(files)},
	}
	if n > 0 {
		arn, err := s.layer(ctx, probe, n)
		if err != nil {
			return err
		}
		in["Layers"] = []string{arn}
	}
	for _, f := range set {
		f(in)
	}
	if err := s.call(ctx, "POST", "/2015-03-31/functions", in, nil); err != nil {
		return err
	}
	return s.active(ctx, name)
}

// active waits until a function can be invoked.
func (s *server) active(ctx context.Context, name string) error {
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		var out struct{ State, StateReason string }
		if err := s.call(ctx, "GET", "/2015-03-31/functions/"+name+"/configuration", nil, &out); err != nil {
			return err
		}
		if out.State == "Active" {
			return nil
		}
		if out.State == "Failed" || time.Since(begin) > startLimit {
			return fmt.Errorf("function %s is %s: %s", name, out.State, out.StateReason)
		}
	}
}

func (s *server) remove(ctx context.Context, name string) error {
	return s.call(ctx, "DELETE", "/2015-03-31/functions/"+name, nil, nil)
}

// layer publishes a layer of n extensions.
func (s *server) layer(ctx context.Context, probe string, n int) (string, error) {
	program, err := os.ReadFile(probe)
	if err != nil {
		return "", err
	}
	files := map[string][]byte{}
	for i := range n {
		files[fmt.Sprintf("extensions/extension-%d", i+1)] = program
	}
	return s.publish(ctx, fmt.Sprintf("extensions-%d", n), files)
}

// publish makes a layer of files.
func (s *server) publish(ctx context.Context, name string, files map[string][]byte) (string, error) {
	var out struct{ LayerVersionArn string }
	err := s.call(ctx, "POST", "/2018-10-31/layers/"+name+"/versions", map[string]any{"Content": map[string]any{"ZipFile": zipped(files)}}, &out)
	return out.LayerVersionArn, err
}

// zipped returns a package of executable files.
func zipped(files map[string][]byte) []byte {
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for name, content := range files {
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(0o755)
		f, err := w.CreateHeader(h)
		if err == nil {
			_, err = f.Write(content)
		}
		if err != nil {
			panic(err) // a buffer takes everything
		}
	}
	w.Close()
	return buf.Bytes()
}

// call makes one control-plane request.
func (s *server) call(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	resp, err := s.client.do(ctx, method, s.endpoint+path, body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= http.StatusMultipleChoices {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	if err == nil && out != nil {
		err = json.Unmarshal(text, out)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// An environment is a line of lambdad ps.
type environment struct {
	Function  string `json:"function"`
	State     string `json:"state"`
	Memory    int64  `json:"memoryBytes"`
	Processes int    `json:"processes"`
}

// environments asks lambdad ps for those of a function, or for all of "".
func (s *server) environments(ctx context.Context, function string) ([]environment, error) {
	var all, own []environment
	if err := s.ask(ctx, &all, "ps", "--json"); err != nil {
		return nil, err
	}
	for _, e := range all {
		if function == "" || e.Function == function {
			own = append(own, e)
		}
	}
	return own, nil
}

// ask runs a command about the server that prints JSON.
func (s *server) ask(ctx context.Context, v any, command string, args ...string) error {
	out, err := exec.CommandContext(ctx, s.binary, append([]string{command, "--data-dir", s.data}, args...)...).Output()
	if err == nil {
		err = json.Unmarshal(out, v)
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		return fmt.Errorf("lambdad %s: %w", command, err)
	}
	return nil
}

// A billed function is what lambdad bill says of it: the newest last.
type billed struct {
	Function    string `json:"function"`
	Invocations int    `json:"invocations"`
	Latest      []struct {
		DurationMs float64 `json:"durationMs"`
	} `json:"latest"`
}

// durations waits until n invocations of a function are over and returns what the
// newest of them lasted, at most 100: the whole invoke phase, extensions and all.
func (s *server) durations(ctx context.Context, function string, n, newest int) ([]time.Duration, error) {
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		var bill struct{ Rows []billed }
		if err := s.ask(ctx, &bill, "bill", "--json", "--invocations", function); err != nil {
			return nil, err
		}
		if len(bill.Rows) == 1 && bill.Rows[0].Invocations >= n {
			var list []time.Duration
			latest := bill.Rows[0].Latest
			for _, x := range latest[max(0, len(latest)-newest):] {
				list = append(list, time.Duration(x.DurationMs*1e6))
			}
			return list, nil
		}
		if time.Since(begin) > startLimit {
			return nil, fmt.Errorf("%d invocations of %s were not over after %v", n, function, startLimit)
		}
	}
}
