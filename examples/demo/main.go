// Command demo is what `make demo` runs: lambdad's main job from an empty
// directory to nothing left, through the AWS API with the AWS SDK.
//
// It starts a server on a free port with its own temporary data directory,
// publishes the example extension as a layer, creates a function, invokes it cold
// and warm, shows answers, log and phases, waits until the environment idles out
// and is told SHUTDOWN, stops the server, and removes everything.
package main

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// idleTimeout is short so that SHUTDOWN is seen.
const idleTimeout = 3 * time.Second

func main() {
	binary := flag.String("lambdad", "bin/lambdad", "the `program` to show")
	extension := flag.String("extension", "bin/hello-extension", "the built `program` of examples/extension")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 55*time.Second)
	defer cancel()
	if err := demo(ctx, *binary, *extension); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context, binary, extension string) (err error) {
	dir, err := os.MkdirTemp("", "lambdad-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	layer, err := zipFiles(map[string]string{"extensions/hello-extension": extension}, 0o755)
	if err != nil {
		return err
	}
	code, err := zipFiles(map[string]string{"lambda_function.py": "examples/function-python/lambda_function.py"}, 0o644)
	if err != nil {
		return err
	}

	title("lambdad serve")
	server, err := start(ctx, binary, filepath.Join(dir, "data"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	client := server.client()

	title("publish the extension as a layer, create the function")
	published, err := client.PublishLayerVersion(ctx, &lambda.PublishLayerVersionInput{
		LayerName: aws.String("hello-extension"),
		Content:   &types.LayerVersionContentInput{ZipFile: layer},
	})
	if err != nil {
		return err
	}
	fmt.Println(*published.LayerVersionArn)
	created, err := client.CreateFunction(ctx, &lambda.CreateFunctionInput{
		FunctionName: aws.String("hello"),
		Runtime:      types.Runtime(server.python),
		Handler:      aws.String("lambda_function.lambda_handler"),
		Role:         aws.String("arn:aws:iam::000000000000:role/any"),
		Code:         &types.FunctionCode{ZipFile: code},
		Layers:       []string{*published.LayerVersionArn},
		Timeout:      aws.Int32(10),
	})
	if err != nil {
		return err
	}
	if err := lambda.NewFunctionActiveV2Waiter(client).Wait(ctx, &lambda.GetFunctionInput{FunctionName: created.FunctionName}, 20*time.Second); err != nil {
		return err
	}
	fmt.Println(*created.FunctionArn)

	for i, name := range []string{"cold", "warm"} {
		title("invoke, " + name)
		begin := time.Now()
		out, err := client.Invoke(ctx, &lambda.InvokeInput{
			FunctionName: created.FunctionName,
			Payload:      fmt.Appendf(nil, `{"name": "reader", "n": %d}`, i+1),
			LogType:      types.LogTypeTail,
		})
		if err != nil {
			return err
		}
		fmt.Printf("answer in %.1f ms: %s\n", ms(time.Since(begin)), out.Payload)
		if out.FunctionError != nil {
			return fmt.Errorf("the function failed: %s", *out.FunctionError)
		}
		if i == 0 {
			continue
		}
		tail, _ := base64.StdEncoding.DecodeString(aws.ToString(out.LogResult))
		fmt.Printf("X-Amz-Log-Result has %d bytes of log\n", len(tail))
	}

	title("lambdad ps: between invocations")
	if err := server.waitFor(ctx, "frozen"); err != nil {
		return err
	}
	if err := server.run(ctx, "ps"); err != nil {
		return err
	}

	title(fmt.Sprintf("idle for %v: SHUTDOWN", idleTimeout))
	if err := server.waitFor(ctx, ""); err != nil {
		return err
	}
	lines, err := server.log(ctx, "SHUTDOWN because")
	if err != nil {
		return err
	}
	for _, l := range lines {
		fmt.Println(l)
	}

	title("phases of the environment")
	if err := server.run(ctx, "ps", "--phases"); err != nil {
		return err
	}
	tier := server.tier
	if err := server.stop(); err != nil {
		return err
	}
	title("done")
	if err := nothingLeft(server.hostID, server.pid); err != nil {
		return err
	}
	fmt.Println("server stopped, nothing left behind")
	fmt.Println("isolation tier:", tier)
	return nil
}

func title(s string) { fmt.Printf("\n── %s %s\n", s, strings.Repeat("─", max(0, 68-len(s)))) }

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// zipFiles makes a zip of files under given names.
func zipFiles(files map[string]string, mode fs.FileMode) ([]byte, error) {
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for name, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(mode)
		f, err := w.CreateHeader(h)
		if err != nil {
			return nil, err
		}
		if _, err := f.Write(data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// A running is a server of this demo.
type running struct {
	cmd      *exec.Cmd
	binary   string
	dataDir  string
	endpoint string
	tier     string
	hostID   string
	python   string
	pid      int
	key, sec string
	exited   chan error
	stopped  bool
}

// start runs `lambdad serve` and waits for it to be ready.
func start(ctx context.Context, binary, dataDir string) (*running, error) {
	s := &running{binary: binary, dataDir: dataDir, exited: make(chan error, 1)}
	// The server outlives ctx, so that it can be stopped as a user would.
	s.cmd = exec.Command(binary, "serve", "--listen", "127.0.0.1:0", "--data-dir", dataDir,
		"--idle-timeout", idleTimeout.String(), "--log-level", "warn")
	s.cmd.Stderr = os.Stderr
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	s.pid = s.cmd.Process.Pid
	ready := make(chan struct{})
	go func() {
		scanner := bufio.NewScanner(stdout)
		for scanner.Scan() {
			line := scanner.Text()
			fmt.Println(strings.ReplaceAll(line, dataDir, "$DATA"))
			if strings.HasPrefix(line, "ready") {
				close(ready)
			}
		}
		_, _ = io.Copy(io.Discard, stdout)
		s.exited <- s.cmd.Wait()
	}()
	select {
	case <-ready:
	case err := <-s.exited:
		s.stopped = true
		return nil, fmt.Errorf("the server ended at start: %v", err)
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), s.stop())
	}
	return s, errors.Join(s.describe(), s.environment(ctx))
}

// describe reads what the server wrote about itself.
func (s *running) describe() error {
	data, err := os.ReadFile(filepath.Join(s.dataDir, "server.json"))
	if err != nil {
		return err
	}
	var info struct {
		Endpoint string `json:"endpoint"`
		Tier     string `json:"tier"`
	}
	if err := json.Unmarshal(data, &info); err != nil {
		return err
	}
	s.endpoint, s.tier = info.Endpoint, info.Tier
	id, err := os.ReadFile(filepath.Join(s.dataDir, "id"))
	if err != nil {
		return err
	}
	s.hostID = strings.TrimSpace(string(id))
	out, err := exec.Command("python3", "-c", `import sys;print("python3.%d"%max(9,min(14,sys.version_info[1])))`).Output()
	s.python = strings.TrimSpace(string(out))
	return err
}

// environment takes the lines of `lambdad env`.
func (s *running) environment(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, s.binary, "env", "--data-dir", s.dataDir).Output()
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(out)) {
		kv, ok := strings.CutPrefix(strings.TrimSpace(line), "export ")
		if !ok {
			continue
		}
		k, v, _ := strings.Cut(kv, "=")
		switch v = strings.Trim(v, `"'`); k {
		case "AWS_ACCESS_KEY_ID":
			s.key = v
		case "AWS_SECRET_ACCESS_KEY":
			s.sec = v
		}
	}
	return nil
}

func (s *running) client() *lambda.Client {
	return lambda.New(lambda.Options{
		Region:       "us-east-1",
		BaseEndpoint: aws.String(s.endpoint),
		Credentials:  credentials.NewStaticCredentialsProvider(s.key, s.sec, ""),
	})
}

// run runs a client command of lambdad against the server.
func (s *running) run(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, s.binary, append(args, "--data-dir", s.dataDir)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// waitFor waits until the one environment is in a state; "" until there is none.
func (s *running) waitFor(ctx context.Context, state string) error {
	for {
		out, err := exec.CommandContext(ctx, s.binary, "ps", "--output", "json", "--data-dir", s.dataDir).Output()
		if err != nil {
			return err
		}
		var list []struct {
			State string `json:"state"`
		}
		if err := json.Unmarshal(out, &list); err != nil {
			return err
		}
		switch {
		case state == "" && len(list) == 0:
			return nil
		case state != "" && len(list) == 1 && list[0].State == state:
			return nil
		case state == "frozen" && s.tier != "root" && len(list) == 1 && list[0].State == "idle":
			return nil // it may be that nothing freezes there; doctor says so
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the environment to be %q: %w", state, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// log returns the function's log, oldest line first, once it has a text: lines come to
// disk within a second.
func (s *running) log(ctx context.Context, text string) (lines []string, err error) {
	for range 20 {
		out, err := exec.CommandContext(ctx, s.binary, "logs", "--data-dir", s.dataDir, "hello").Output()
		if err != nil {
			return nil, fmt.Errorf("lambdad logs: %w", err)
		}
		if strings.Contains(string(out), text) {
			return strings.Split(strings.TrimRight(string(out), "\n"), "\n"), nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, fmt.Errorf("the log of the function does not say %s", text)
}

// stop ends the server as Ctrl-C does and waits for it.
func (s *running) stop() error {
	if s.stopped {
		return nil
	}
	s.stopped = true
	if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return err
	}
	select {
	case err := <-s.exited:
		if err != nil {
			return fmt.Errorf("the server's end: %w", err)
		}
		return nil
	case <-time.After(15 * time.Second):
		return errors.Join(errors.New("the server did not stop within 15 s"), s.cmd.Process.Kill())
	}
}
