// Package integration_test runs the real binary as its users do: whole lives of a
// server under load, under kill -9 and beside others.
package integration_test

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// needRoot skips without privileges; in CI a skip is a failure.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 && runtime.GOOS == "linux" {
		return
	}
	if os.Getenv("LAMBDAD_TEST_ROOT") != "" {
		t.Fatal("this test needs root on Linux, and LAMBDAD_TEST_ROOT says it must not be skipped")
	}
	t.Skip("needs root on Linux: real sandboxes")
}

// built are the programs the tests run, built once.
var built = struct {
	sync.Once
	dir string
	err error
}{}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// program returns the path of a built program of this repository: lambdad, the
// example bootstrap or the example extension.
func program(t testing.TB, name string) string {
	t.Helper()
	built.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "lambdad-integration-"); built.err != nil {
			return
		}
		for out, pkg := range map[string]string{
			"lambdad":   "./cmd/lambdad",
			"bootstrap": "./examples/bootstrap-go",
			"extension": "./examples/extension",
			"ticker":    "./integration/ticker",
		} {
			cmd := exec.Command("go", "build", "-o", filepath.Join(built.dir, out), pkg)
			cmd.Dir = ".."
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if text, err := cmd.CombinedOutput(); err != nil {
				built.err = fmt.Errorf("building %s: %v\n%s", pkg, err, text)
				return
			}
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, name)
}

// A server is one life of `lambdad serve`.
type server struct {
	t        testing.TB
	cmd      *exec.Cmd
	dataDir  string
	endpoint string
	id       string
	client   *lambda.Client
	http     *http.Client
	exited   chan struct{}
	log      *bytes.Buffer
	stopped  bool
}

// startServer starts a server on a free port and waits until it says ready.
func startServer(t testing.TB, dataDir string, args ...string) *server {
	t.Helper()
	s := &server{t: t, dataDir: dataDir, exited: make(chan struct{}), log: new(bytes.Buffer)}
	s.cmd = exec.Command(program(t, "lambdad"), append([]string{"serve",
		"--listen", "127.0.0.1:0", "--data-dir", dataDir, "--disk-reserve", "64"}, args...)...)
	s.cmd.Stderr = s.log // read after exit only
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.kill() })
	ready := make(chan struct{})
	go func() {
		scanner := bufio.NewScanner(stdout)
		for scanner.Scan() {
			if strings.HasPrefix(scanner.Text(), "ready") {
				close(ready)
			}
		}
		_, _ = io.Copy(io.Discard, stdout)
		_ = s.cmd.Wait()
		close(s.exited)
	}()
	select {
	case <-ready:
	case <-s.exited:
		t.Fatalf("the server ended at start:\n%s", s.log)
	case <-time.After(30 * time.Second):
		s.kill()
		t.Fatalf("the server was not ready within 30 s:\n%s", s.log)
	}
	data, err := os.ReadFile(filepath.Join(dataDir, "server.json"))
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Endpoint string }
	if err := json.Unmarshal(data, &info); err != nil {
		t.Fatal(err)
	}
	id, err := os.ReadFile(filepath.Join(dataDir, "id"))
	if err != nil {
		t.Fatal(err)
	}
	s.endpoint, s.id = info.Endpoint, strings.TrimSpace(string(id))
	s.client = s.newClient()
	return s
}

// newClient makes an AWS client with the administrator's key that does not retry:
// an error is the server's answer, not the last of three.
func (s *server) newClient() *lambda.Client {
	var key struct{ AccessKeyID, SecretAccessKey string }
	data, err := os.ReadFile(filepath.Join(s.dataDir, "credentials.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := json.Unmarshal(data, &key); err != nil {
		s.t.Fatal(err)
	}
	s.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	return lambda.New(lambda.Options{
		Region:           "us-east-1",
		BaseEndpoint:     aws.String(s.endpoint),
		Credentials:      credentials.NewStaticCredentialsProvider(key.AccessKeyID, key.SecretAccessKey, ""),
		RetryMaxAttempts: 1,
		HTTPClient:       s.http,
	})
}

// kill ends the server with SIGKILL and waits for it.
func (s *server) kill() {
	if s.stopped {
		return
	}
	s.stopped = true
	_ = s.cmd.Process.Kill()
	<-s.exited
}

// stop ends the server as Ctrl-C does and insists on a clean end.
func (s *server) stop() {
	s.t.Helper()
	s.stopped = true
	if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil {
		s.t.Fatal(err)
	}
	select {
	case <-s.exited:
	case <-time.After(40 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.exited
		s.t.Fatalf("the server did not stop within 40 s:\n%s", s.log)
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		s.t.Fatalf("the server's exit code is %d:\n%s", code, s.log)
	}
}

// state is what `lambdad ps` says of an environment.
type state struct {
	ID, Function, State string
	Invocations         int
}

// environments asks the control socket, as `lambdad ps` does.
func (s *server) environments(ctx context.Context) ([]state, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.dataDir, "control.sock"))
		}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://control/environments", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var list []state
	return list, json.NewDecoder(resp.Body).Decode(&list)
}

// waitEnvironments waits until ok holds of the environments.
func (s *server) waitEnvironments(limit time.Duration, ok func([]state) bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	var last []state
	for ctx.Err() == nil {
		list, err := s.environments(ctx)
		if err == nil && ok(list) {
			return
		}
		last = list
		time.Sleep(20 * time.Millisecond)
	}
	s.t.Fatalf("the environments did not come to the expected state within %v: %+v", limit, last)
}

// create makes a provided.al2023 function of the example bootstrap and waits for
// it to be active.
func (s *server) create(ctx context.Context, name string, change func(*lambda.CreateFunctionInput)) error {
	in := &lambda.CreateFunctionInput{
		FunctionName: aws.String(name),
		Runtime:      types.RuntimeProvidedal2023,
		Handler:      aws.String("bootstrap"),
		Role:         aws.String("arn:aws:iam::000000000000:role/test"),
		Code:         &types.FunctionCode{ZipFile: zipOf(s.t, "bootstrap", program(s.t, "bootstrap"))},
		Timeout:      aws.Int32(30),
	}
	if change != nil {
		change(in)
	}
	if _, err := s.client.CreateFunction(ctx, in); err != nil {
		return err
	}
	return lambda.NewFunctionActiveV2Waiter(s.client, func(o *lambda.FunctionActiveV2WaiterOptions) {
		o.MinDelay, o.MaxDelay = 20*time.Millisecond, 100*time.Millisecond
	}).Wait(ctx, &lambda.GetFunctionInput{FunctionName: aws.String(name)}, 30*time.Second)
}

// layer publishes a layer of one executable file.
func (s *server) layer(ctx context.Context, name, file, path string) string {
	s.t.Helper()
	out, err := s.client.PublishLayerVersion(ctx, &lambda.PublishLayerVersionInput{
		LayerName: aws.String(name),
		Content:   &types.LayerVersionContentInput{ZipFile: zipOf(s.t, file, path)},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return *out.LayerVersionArn
}

// invoke runs one event; a function error is an error.
func (s *server) invoke(ctx context.Context, name, event string) ([]byte, error) {
	out, err := s.client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String(name), Payload: []byte(event)})
	if err != nil {
		return nil, err
	}
	if out.FunctionError != nil {
		return nil, fmt.Errorf("function error: %s", out.Payload)
	}
	return out.Payload, nil
}

var zips sync.Map // name and path to zip

// zipOf is a zip of one executable file, made once.
func zipOf(t testing.TB, name, path string) []byte {
	t.Helper()
	if z, ok := zips.Load(name + "\x00" + path); ok {
		return z.([]byte)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	h := &zip.FileHeader{Name: name, Method: zip.Deflate}
	h.SetMode(0o755)
	f, err := w.CreateHeader(h)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	zips.Store(name+"\x00"+path, buf.Bytes())
	return buf.Bytes()
}

// logs returns all log lines below a data directory.
func logs(t testing.TB, dataDir string) string {
	t.Helper()
	var all strings.Builder
	_ = filepath.WalkDir(filepath.Join(dataDir, "logs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			all.Write(data)
		}
		return nil
	})
	return all.String()
}
