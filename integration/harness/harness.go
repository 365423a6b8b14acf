// Package harness runs the real binary as its users do, for the tests of several
// packages: it builds the programs, starts servers, speaks to them through the AWS
// SDK, and looks for what they left on the host. It is for tests only: whatever
// goes wrong in it fails the test that called.
package harness

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	cwtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/lambdad/lambdad/datadir"
	"github.com/lambdad/lambdad/logstore"
	"github.com/lambdad/lambdad/sandbox/namespace"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

// NeedRoot skips without privileges; in CI a skip is a failure.
func NeedRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 && runtime.GOOS == "linux" {
		return
	}
	if os.Getenv("LAMBDAD_TEST_ROOT") != "" {
		t.Fatal("this test needs root on Linux, and LAMBDAD_TEST_ROOT says it must not be skipped")
	}
	t.Skip("needs root on Linux: real sandboxes")
}

// built are the programs the tests run, each built once.
var built = struct {
	sync.Mutex
	dir   string
	names map[string]bool
}{names: map[string]bool{}}

// packages are the programs by name.
var packages = map[string]string{
	"lambdad":    "./cmd/lambdad",
	"bootstrap":  "./examples/bootstrap-go",
	"extension":  "./examples/extension",
	"ticker":     "./integration/ticker",
	"hostile":    "./integration/hostile/probe",
	"measured":   "./integration/measured",
	"rtprobe":    "./integration/runtimes/probe",
	"rootsprobe": "./integration/roots/probe",
}

// Main runs the tests of a package and removes the programs that they needed.
func Main(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// Program returns the path of a built program of this repository: lambdad, the
// example bootstrap, the example extension, or one that a test brings.
func Program(t testing.TB, name string) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if built.dir == "" {
		var err error
		if built.dir, err = os.MkdirTemp("", "lambdad-integration-"); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(built.dir, 0o755); err != nil { // for servers of other users
			t.Fatal(err)
		}
	}
	out := filepath.Join(built.dir, name)
	if built.names[name] {
		return out
	}
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatalf("finding the module: %v", err)
	}
	cmd := exec.Command("go", "build", "-o", out, packages[name])
	cmd.Dir = filepath.Dir(strings.TrimSpace(string(mod)))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", packages[name], err, text)
	}
	built.names[name] = true
	return out
}

// A Server is one life of `lambdad serve`.
type Server struct {
	Cmd      *exec.Cmd
	DataDir  string
	Endpoint string         // URL
	ID       string         // of the host, in the names of all that the server makes
	Client   *lambda.Client // with the administrator's key
	HTTP     *http.Client   // what Client sends with

	t       testing.TB
	exited  chan struct{}
	log     *bytes.Buffer
	stopped bool
}

// Start starts a server on a free port and waits until it says ready.
func Start(t testing.TB, dataDir string, args ...string) *Server {
	t.Helper()
	return StartAs(t, nil, dataDir, args...)
}

// Nobody is a user without rights.
var Nobody = &syscall.Credential{Uid: 65534, Gid: 65534}

// DirOf makes a directory that belongs to a user and can be reached by him.
func DirOf(t testing.TB, user *syscall.Credential) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "lambdad-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if user != nil {
		if err := os.Chown(dir, int(user.Uid), int(user.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// StartAs is Start as another user; nil is this one.
func StartAs(t testing.TB, user *syscall.Credential, dataDir string, args ...string) *Server {
	t.Helper()
	return start(t, func(cmd *exec.Cmd) func() { As(cmd, user, dataDir); return nil }, dataDir, args...)
}

// StartDelegated is StartAs for nobody in control groups that are his.
func StartDelegated(t testing.TB, groups sandboxtest.Delegation, dataDir string, args ...string) *Server {
	t.Helper()
	return start(t, func(cmd *exec.Cmd) func() { As(cmd, Nobody, dataDir); return groups.Waiting(t, cmd) }, dataDir, args...)
}

// StartIn is Start with another root file system; the data directory and the built
// programs are there, too.
func StartIn(t testing.TB, root, dataDir string, args ...string) *Server {
	t.Helper()
	return start(t, func(cmd *exec.Cmd) func() { In(cmd, root); return nil }, dataDir, args...)
}

// start calls change before the command starts, and what it returned after that.
func start(t testing.TB, change func(*exec.Cmd) (begin func()), dataDir string, args ...string) *Server {
	t.Helper()
	s := &Server{t: t, DataDir: dataDir, exited: make(chan struct{}), log: new(bytes.Buffer)}
	// The umask is that of the systemd unit.
	s.Cmd = exec.Command("/bin/sh", append([]string{"-c", `umask 077 && exec "$0" "$@"`, Program(t, "lambdad"), "serve",
		"--listen", "127.0.0.1:0", "--data-dir", dataDir, "--disk-reserve", "64"}, args...)...)
	s.Cmd.Stderr = s.log // read after exit only
	begin := change(s.Cmd)
	stdout, err := s.Cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Kill() })
	if begin != nil {
		begin()
	}
	ready := make(chan struct{})
	go func() {
		scanner := bufio.NewScanner(stdout)
		for scanner.Scan() {
			if strings.HasPrefix(scanner.Text(), "ready") {
				close(ready)
			}
		}
		_, _ = io.Copy(io.Discard, stdout)
		_ = s.Cmd.Wait()
		close(s.exited)
	}()
	select {
	case <-ready:
	case <-s.exited:
		t.Fatalf("the server ended at start:\n%s", s.log)
	case <-time.After(30 * time.Second):
		s.Kill()
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
	s.Endpoint, s.ID = info.Endpoint, strings.TrimSpace(string(id))
	s.Client = s.NewClient()
	return s
}

// As makes a command run as another user, whose home is dir; nil changes nothing.
func As(cmd *exec.Cmd, user *syscall.Credential, dir string) {
	if user == nil {
		return
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir}
}

// In makes a command see root, which must be a mount, as the root file system, in a
// mount namespace of its own. Changing the root of the process alone would not do:
// whoever has done that may have no user namespaces.
func In(cmd *exec.Cmd, root string) {
	cmd.Args = append([]string{"unshare", "--mount", "--propagation", "private", "/bin/sh", "-ec",
		`cd "$0"; mount --move . /; exec chroot . "$@"`, root, "/usr/bin/env"}, cmd.Args...)
	cmd.Path, cmd.Err = "/usr/bin/unshare", nil
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/nonexistent"}
}

// NewClient makes an AWS client with the administrator's key that does not retry:
// an error is the server's answer, not the last of three.
func (s *Server) NewClient() *lambda.Client {
	s.HTTP = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	return lambda.New(lambda.Options{
		Region:           "us-east-1",
		BaseEndpoint:     aws.String(s.Endpoint),
		Credentials:      administrator(s.t, s.DataDir),
		RetryMaxAttempts: 1,
		HTTPClient:       s.HTTP,
	})
}

// LogsClient is NewClient for CloudWatch Logs.
func (s *Server) LogsClient() *cloudwatchlogs.Client { return logsClient(s.t, s.DataDir, s.Endpoint) }

func logsClient(t testing.TB, dataDir, endpoint string) *cloudwatchlogs.Client {
	t.Helper()
	return cloudwatchlogs.New(cloudwatchlogs.Options{
		Region:       "us-east-1",
		BaseEndpoint: aws.String(endpoint),
		Credentials:  administrator(t, dataDir),
	})
}

// Metric is the sum of a metric of a function over the last hour.
func (s *Server) Metric(ctx context.Context, name, function string) (sum float64) {
	s.t.Helper()
	c := cloudwatch.New(cloudwatch.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(s.Endpoint), Credentials: administrator(s.t, s.DataDir),
	})
	out, err := c.GetMetricStatistics(ctx, &cloudwatch.GetMetricStatisticsInput{
		Namespace: aws.String("AWS/Lambda"), MetricName: &name, Period: aws.Int32(60),
		Dimensions: []cwtypes.Dimension{{Name: aws.String("FunctionName"), Value: &function}},
		StartTime:  aws.Time(time.Now().Add(-time.Hour)), EndTime: aws.Time(time.Now().Add(time.Minute)),
		Statistics: []cwtypes.Statistic{cwtypes.StatisticSum},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, p := range out.Datapoints {
		sum += *p.Sum
	}
	return sum
}

// administrator is the key of a data directory.
func administrator(t testing.TB, dataDir string) aws.CredentialsProvider {
	t.Helper()
	var key struct{ AccessKeyID, SecretAccessKey string }
	data, err := os.ReadFile(filepath.Join(dataDir, "credentials.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &key); err != nil {
		t.Fatal(err)
	}
	return credentials.NewStaticCredentialsProvider(key.AccessKeyID, key.SecretAccessKey, "")
}

// Kill ends the server with SIGKILL and waits for it.
func (s *Server) Kill() {
	if s.stopped {
		return
	}
	s.stopped = true
	_ = s.Cmd.Process.Kill()
	<-s.exited
}

// Stop ends the server as Ctrl-C does and insists on a clean end.
func (s *Server) Stop() {
	s.t.Helper()
	s.stopped = true
	if err := s.Cmd.Process.Signal(syscall.SIGINT); err != nil {
		s.t.Fatal(err)
	}
	select {
	case <-s.exited:
	case <-time.After(40 * time.Second):
		_ = s.Cmd.Process.Signal(syscall.SIGQUIT) // says what its goroutines wait for
		<-s.exited
		s.t.Fatalf("the server did not stop within 40 s:\n%s", s.log)
	}
	if code := s.Cmd.ProcessState.ExitCode(); code != 0 {
		s.t.Fatalf("the server's exit code is %d:\n%s", code, s.log)
	}
}

// State is what `lambdad ps` says of an environment.
type State struct {
	ID, Function, State string
	Invocations         int
}

// Environments asks the control socket, as `lambdad ps` does.
func (s *Server) Environments(ctx context.Context) ([]State, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.DataDir, "control.sock"))
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
	var list []State
	return list, json.NewDecoder(resp.Body).Decode(&list)
}

// WaitEnvironments waits until ok holds of the environments.
func (s *Server) WaitEnvironments(limit time.Duration, ok func([]State) bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	var last []State
	for ctx.Err() == nil {
		list, err := s.Environments(ctx)
		if err == nil && ok(list) {
			return
		}
		last = list
		time.Sleep(20 * time.Millisecond)
	}
	s.t.Fatalf("the environments did not come to the expected state within %v: %+v", limit, last)
}

// Create makes a provided.al2023 function of the example bootstrap and waits for
// it to be active.
func (s *Server) Create(ctx context.Context, name string, change func(*lambda.CreateFunctionInput)) error {
	in := &lambda.CreateFunctionInput{
		FunctionName: aws.String(name),
		Runtime:      types.RuntimeProvidedal2023,
		Handler:      aws.String("bootstrap"),
		Role:         aws.String("arn:aws:iam::000000000000:role/any"),
		Code:         &types.FunctionCode{ZipFile: ZipOf(s.t, "bootstrap", Program(s.t, "bootstrap"))},
		Timeout:      aws.Int32(30),
	}
	if change != nil {
		change(in)
	}
	if _, err := s.Client.CreateFunction(ctx, in); err != nil {
		return err
	}
	return lambda.NewFunctionActiveV2Waiter(s.Client, func(o *lambda.FunctionActiveV2WaiterOptions) {
		o.MinDelay, o.MaxDelay = 20*time.Millisecond, 100*time.Millisecond
	}).Wait(ctx, &lambda.GetFunctionInput{FunctionName: aws.String(name)}, 30*time.Second)
}

// Layer publishes a layer of one executable file.
func (s *Server) Layer(ctx context.Context, name, file, path string) string {
	s.t.Helper()
	out, err := s.Client.PublishLayerVersion(ctx, &lambda.PublishLayerVersionInput{
		LayerName: aws.String(name),
		Content:   &types.LayerVersionContentInput{ZipFile: ZipOf(s.t, file, path)},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return *out.LayerVersionArn
}

// Invoke runs one event; a function error is an error.
func (s *Server) Invoke(ctx context.Context, name, event string) ([]byte, error) {
	out, err := s.Client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String(name), Payload: []byte(event)})
	if err != nil {
		return nil, err
	}
	if out.FunctionError != nil {
		return nil, fmt.Errorf("function error: %s", out.Payload)
	}
	return out.Payload, nil
}

var zips sync.Map // name and path to zip

// ZipOf is a zip of one executable file, made once.
func ZipOf(t testing.TB, name, path string) []byte {
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

// Logs returns the log of all functions of a data directory, in the order of time. Of
// a server that runs it is what came to disk so far.
func Logs(t testing.TB, dataDir string) string { return logsOf(t, dataDir, "") }

// LogsOf returns the log lines of one function.
func LogsOf(t testing.TB, dataDir, function string) string {
	return logsOf(t, dataDir, "/aws/lambda/"+function)
}

// logsOf returns the log lines of one group, or of all.
func logsOf(t testing.TB, dataDir, group string) string {
	t.Helper()
	var all strings.Builder
	if server, err := datadir.Lookup(dataDir); err == nil {
		c := logsClient(t, dataDir, server.Endpoint)
		groups, err := c.DescribeLogGroups(t.Context(), &cloudwatchlogs.DescribeLogGroupsInput{})
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range groups.LogGroups {
			if group != "" && *g.LogGroupName != group {
				continue
			}
			for p := cloudwatchlogs.NewFilterLogEventsPaginator(c, &cloudwatchlogs.FilterLogEventsInput{LogGroupName: g.LogGroupName}); p.HasMorePages(); {
				page, err := p.NextPage(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range page.Events {
					all.WriteString(strings.TrimSuffix(*e.Message, "\n") + "\n")
				}
			}
		}
		return all.String()
	}
	store, err := logstore.Open(logstore.Config{Dir: filepath.Join(dataDir, "logs")})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for _, g := range store.Groups("000000000000", "us-east-1", func(name string) bool { return group == "" || name == group }) {
		events, err := store.Events(logstore.Query{Group: g.GroupName, To: logstore.Forever})
		if err != nil {
			t.Fatal(err)
		}
		for e, err := range events {
			if err != nil {
				t.Fatal(err)
			}
			all.WriteString(strings.TrimSuffix(e.Message, "\n") + "\n")
		}
	}
	return all.String()
}

// ProcessStates are the states of all living processes below a cgroup whose name has
// part in it.
func ProcessStates(t testing.TB, part string) map[int]string {
	t.Helper()
	states := map[int]string{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		groups, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if err != nil || !strings.Contains(string(groups), part) {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		rest := string(stat[strings.LastIndexByte(string(stat), ')')+1:])
		if state := strings.Fields(rest)[0]; state != "Z" { // dead, not yet reaped by the host's init
			states[pid] = state
		}
	}
	return states
}

// Groups are the cgroup directories below one of that name, in every hierarchy.
func Groups(name string) []string {
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name, "/sys/fs/cgroup/*/*/" + name, "/sys/fs/cgroup/*/*/*/" + name} {
		tops, _ := filepath.Glob(pattern)
		for _, top := range tops {
			_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					found = append(found, path)
				}
				return nil
			})
		}
	}
	return found
}

// Interfaces counts network interfaces whose names begin with prefix.
func Interfaces(t testing.TB, prefix string) (n int) {
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			n++
		}
	}
	return n
}

// LeftOnHost fails the test for anything on the host that carries a server's id.
func LeftOnHost(t *testing.T, id string) {
	t.Helper()
	if left := Groups("lambdad-" + id); len(left) > 0 {
		t.Errorf("cgroups after the end: %v", left)
	}
	if n := Interfaces(t, namespace.LinksOf(id)); n > 0 {
		t.Errorf("%d network interfaces after the end", n)
	}
	if left := ProcessStates(t, "lambdad-"+id); len(left) > 0 {
		t.Errorf("processes after the end: %v", left)
	}
}
