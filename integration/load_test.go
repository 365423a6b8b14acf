package integration_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/lambdad/lambdad/integration/harness"
	"github.com/lambdad/lambdad/sandbox/namespace"
)

// TestLoad is the promise of the first issue: 200 simultaneous first invocations
// of one function, 2,000 invocations from 50 clients, 100 functions created and
// deleted in a loop: no error but documented throttles, and nothing left.
func TestLoad(t *testing.T) {
	harness.NeedRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	s := harness.Start(t, t.TempDir(), "--idle-timeout", "2s", "--wait-limit", "60s", "--log-level", "warn")
	layer := s.Layer(ctx, "hello", "extensions/hello-extension", harness.Program(t, "extension"))
	with := func(in *lambda.CreateFunctionInput) { in.Layers = []string{layer} }
	if err := s.Create(ctx, "warmup", with); err != nil {
		t.Fatal(err)
	}
	many(ctx, t, s, 200, 1, "warmup")
	for what, n := range resources(t, s) { // of what is there it must see something
		if n == 0 && what != "mounts of the host" { // all are the daemon's own
			t.Errorf("no %s is counted while environments live", what)
		}
	}
	none := func(list []harness.State) bool { return len(list) == 0 }
	s.WaitEnvironments(20*time.Second, none)
	before := resources(t, s)

	if err := s.Create(ctx, "crowd", with); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	ok, throttled := many(ctx, t, s, 200, 1, "crowd")
	t.Logf("200 simultaneous first invocations: %d answered, %d throttled, %v", ok, throttled, time.Since(begin).Round(time.Millisecond))
	if ok < 150 {
		t.Errorf("only %d of 200 simultaneous first invocations were answered", ok)
	}
	begin = time.Now()
	ok, throttled = many(ctx, t, s, 50, 40, "crowd")
	t.Logf("2,000 invocations from 50 clients: %d answered, %d throttled, %v", ok, throttled, time.Since(begin).Round(time.Millisecond))
	if ok+throttled != 2000 || ok < 1900 {
		t.Errorf("%d answered and %d throttled of 2,000", ok, throttled)
	}
	for i := range 100 {
		name := fmt.Sprintf("passing%d", i)
		if err := s.Create(ctx, name, with); err != nil {
			t.Fatalf("create %d: %v", i, err)
		}
		if i%10 == 0 {
			if _, err := s.Invoke(ctx, name, `{}`); err != nil {
				t.Fatalf("invoke %d: %v", i, err)
			}
		}
		if _, err := s.Client.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: aws.String(name)}); err != nil {
			t.Fatalf("delete %d: %v", i, err)
		}
	}
	s.WaitEnvironments(60*time.Second, none)
	var after map[string]int
	for deadline := time.Now().Add(20 * time.Second); ; {
		after = resources(t, s)
		var grown []string
		for what, n := range after {
			if what == "daemon threads" {
				continue // see below
			}
			if slack := map[string]int{"daemon descriptors": 8}[what]; n > before[what]+slack {
				grown = append(grown, fmt.Sprintf("%s: %d, then %d", what, before[what], n))
			}
		}
		if len(grown) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %s", strings.Join(grown, "; "))
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("resources before and after: %v, %v", before, after)
	// Go keeps the threads that its busiest moment needed, and no two bursts are the
	// same to the thread. A leak adds with every burst, a busiest moment is reached.
	threads := []int{after["daemon threads"]}
	for range 8 {
		many(ctx, t, s, 200, 1, "crowd")
		s.WaitEnvironments(60*time.Second, none)
		n := resources(t, s)["daemon threads"]
		threads = append(threads, n)
		if n <= threads[len(threads)-2] {
			threads = nil
			break
		}
	}
	if threads != nil {
		t.Errorf("every burst of 200 first invocations left threads of the daemon behind: %v", threads)
	}
	s.Stop()
	harness.LeftOnHost(t, s.ID)
}

// TestCallers has as many callers as an account may have invocations at a time, who send
// nothing twice: everyone is answered or throttled, also over connections that were
// opened and left alone for long, and who asks for the list of environments is told.
func TestCallers(t *testing.T) {
	harness.NeedRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s := harness.Start(t, t.TempDir(), "--wait-limit", "60s", "--log-level", "warn")
	if err := s.Create(ctx, "f", nil); err != nil {
		t.Fatal(err)
	}
	var spare []net.Conn
	for range 50 {
		c, err := net.Dial("tcp", strings.TrimPrefix(s.Endpoint, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		spare = append(spare, c)
	}
	opened := time.Now()
	const callers, rounds = 1000, 3
	listed, list := context.WithCancel(ctx)
	asked := make(chan int)
	go func() {
		n := 0
		for ; listed.Err() == nil; n++ {
			if _, err := s.Environments(ctx); err != nil {
				t.Error(err)
			}
		}
		asked <- n
	}()
	begin := time.Now()
	ok, throttled := many(ctx, t, s, callers, rounds, "f")
	took := time.Since(begin)
	list()
	t.Logf("%d invocations from %d clients: %d answered, %d throttled, %v; listed %d times", callers*rounds, callers, ok, throttled, took.Round(time.Millisecond), <-asked)
	if ok+throttled != callers*rounds || ok < callers {
		t.Errorf("%d answered and %d throttled of %d", ok, throttled, callers*rounds)
	}
	time.Sleep(time.Until(opened.Add(11 * time.Second))) // longer than headers may take
	for _, c := range spare {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, "GET /_lambdad/health HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("a connection that was left alone: %v", err)
		}
		resp.Body.Close()
	}
	s.Stop()
	harness.LeftOnHost(t, s.ID)
}

// many runs rounds invocations from each of clients at once and counts answers
// and documented throttles; anything else fails the test.
func many(ctx context.Context, t *testing.T, s *harness.Server, clients, rounds int, name string) (ok, throttled int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	start := make(chan struct{})
	for range clients {
		wg.Go(func() {
			<-start
			for range rounds {
				_, err := s.Invoke(ctx, name, `{"sleepMs": 1}`)
				var busy *types.TooManyRequestsException
				mu.Lock()
				switch {
				case err == nil:
					ok++
				case errors.As(err, &busy) && busy.Reason == types.ThrottleReasonConcurrentInvocationLimitExceeded:
					throttled++
				default:
					t.Error(err)
				}
				mu.Unlock()
			}
		})
	}
	close(start)
	wg.Wait()
	return ok, throttled
}

// resources counts what a server could leave behind.
func resources(t testing.TB, s *harness.Server) map[string]int {
	t.Helper()
	s.HTTP.CloseIdleConnections() // the test's own, which the server holds open
	pid := fmt.Sprint(s.Cmd.Process.Pid)
	count := func(dir string) int {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	// Of the host, what carries the server's name: other tests run beside this one.
	named := func(text string) bool { return strings.Contains(text, s.DataDir) || strings.Contains(text, s.ID) }
	lines := func(path string, ours func(string) bool) (n int) {
		data, err := os.ReadFile(path)
		if err != nil {
			return 0
		}
		for line := range strings.Lines(string(data)) {
			if ours(line) {
				n++
			}
		}
		return n
	}
	scratch := 0
	_ = filepath.WalkDir(filepath.Join(s.DataDir, "run"), func(string, os.DirEntry, error) error { scratch++; return nil })
	return map[string]int{
		"processes in groups": len(harness.ProcessStates(t, "lambdad-"+s.ID)),
		"daemon threads":      count("/proc/" + pid + "/task"),
		"daemon descriptors":  count("/proc/" + pid + "/fd"),
		"mounts of the host":  lines("/proc/self/mounts", named),
		"mounts of daemon":    lines("/proc/"+pid+"/mounts", func(string) bool { return true }),
		"groups":              len(harness.Groups("lambdad-" + s.ID)),
		"scratch files":       scratch,
		"interfaces":          harness.Interfaces(t, namespace.LinksOf(s.ID)),
		"loop devices":        loops(named),
	}
}

// loops counts the loop devices in use whose file is one of ours.
func loops(ours func(string) bool) (n int) {
	used, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range used {
		if file, err := os.ReadFile(f); err == nil && ours(string(file)) {
			n++
		}
	}
	return n
}
