// Package hostile_test runs hostile code in real sandboxes of the real binary and
// insists that what it tries is refused, that everybody else stays well meanwhile,
// and that nothing of it is left. docs/threat-model.md lists the threats with the
// test of each.
package hostile_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/lambdad/lambdad/environment"
	"github.com/lambdad/lambdad/integration/harness"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { harness.Main(m) }

// Bounds of what an attack may do to others.
const (
	answerWithin = time.Second            // another function's answer
	goneWithin   = 250 * time.Millisecond // the attacker, after the decision
	memoryGrowth = 192 << 20              // of the daemon
	fdGrowth     = 900                    // of the daemon: all connections that one environment may have, and some
)

// secret is in the neighbour's code, layer-like file and environment.
const secret = "neighbours-own-secret-7d1f"

// An order and a report are what the probe takes and gives.
type order struct {
	Do    string   `json:"do"`
	Paths []string `json:"paths,omitempty"`
	Text  string   `json:"text,omitempty"`
	Addr  string   `json:"addr,omitempty"`
	Raw   []byte   `json:"raw,omitempty"`
	N     int      `json:"n,omitempty"`
	Bytes int      `json:"bytes,omitempty"`
	MS    int      `json:"ms,omitempty"`
}

type report struct {
	Holes []string          `json:"holes"`
	N     int               `json:"n"`
	Err   string            `json:"err"`
	Env   map[string]string `json:"env"`
	Raw   []byte            `json:"raw"`
	Paths []string          `json:"paths"`
}

// Addresses inside.
const (
	runtimeAPI = "127.0.0.1:9001"
	endpoint   = "127.0.0.1:4566"
)

// A stage is a server with a well-behaved function, the neighbour, that has been
// invoked.
type stage struct {
	*harness.Server
	t      *testing.T
	tier   string
	user   *syscall.Credential    // of the server; nil: this one
	groups sandboxtest.Delegation // those given to him
}

// delegated is the rootless tier with control groups.
const delegated = "rootless with delegated groups"

func newStage(t *testing.T) *stage {
	t.Helper()
	return newStageIn(t, "root")
}

// newStageIn is newStage in another tier than root's, with a server of a user without
// rights.
func newStageIn(t *testing.T, tier string) *stage {
	t.Helper()
	harness.NeedRoot(t)
	s := &stage{t: t, tier: tier}
	if tier != "root" {
		s.user = harness.Nobody
	}
	if tier == delegated {
		s.tier, s.groups = "rootless", sandboxtest.Delegate(t)
	}
	s.Server = s.serve(t, harness.DirOf(t, s.user), "--idle-timeout", "60s", "--log-level", "error")
	err := s.Create(t.Context(), "neighbour", func(in *lambda.CreateFunctionInput) {
		in.Environment = &types.Environment{Variables: map[string]string{"SECRET": secret}}
		in.MemorySize = aws.Int32(1769) // a core: it is not its own share that it waits for
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Invoke(t.Context(), "neighbour", `{}`); err != nil {
		t.Fatal(err)
	}
	return s
}

// serve starts a server as this one was.
func (s *stage) serve(t *testing.T, dir string, args ...string) *harness.Server {
	t.Helper()
	args = append(args, "--isolation", s.tier)
	if s.groups != nil {
		return harness.StartDelegated(t, s.groups, dir, args...)
	}
	return harness.StartAs(t, s.user, dir, args...)
}

// end stops the server and insists that nothing is left.
func (s *stage) end(t *testing.T) {
	t.Helper()
	s.Stop()
	harness.LeftOnHost(t, s.ID)
}

// villain makes a function of the probe.
func (s *stage) villain(t *testing.T, name string, memory int32, change func(*lambda.CreateFunctionInput)) {
	t.Helper()
	err := s.Create(t.Context(), name, func(in *lambda.CreateFunctionInput) {
		in.Code = &types.FunctionCode{ZipFile: harness.ZipOf(t, "bootstrap", harness.Program(t, "hostile"))}
		in.MemorySize = aws.Int32(memory)
		in.Timeout = aws.Int32(25)
		if change != nil {
			change(in)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// rest waits until the environments of a function are all in a state, and there is
// one. One that is still at an invocation when its function is deleted ends after that.
func (s *stage) rest(name, state string) {
	s.t.Helper()
	s.WaitEnvironments(30*time.Second, func(list []harness.State) bool {
		n := 0
		for _, e := range list {
			if e.Function == name {
				if e.State != state {
					return false
				}
				n++
			}
		}
		return n > 0
	})
}

// remove deletes a function.
func (s *stage) remove(t *testing.T, name string) {
	t.Helper()
	if _, err := s.Client.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: aws.String(name)}); err != nil {
		t.Fatal(err)
	}
}

// attack has the probe do a word; that the function fails is an error.
func (s *stage) attack(ctx context.Context, name string, o order) (report, error) {
	event, err := json.Marshal(o)
	if err != nil {
		return report{}, err
	}
	answer, err := s.Invoke(ctx, name, string(event))
	if err != nil {
		return report{}, err
	}
	var r report
	return r, json.Unmarshal(answer, &r)
}

// must is attack where the function itself must stay well, and find no hole.
func (s *stage) must(t *testing.T, name string, o order) report {
	t.Helper()
	r, err := s.attack(t.Context(), name, o)
	if err != nil {
		t.Fatalf("%s: %v", o.Do, err)
	}
	for _, h := range r.Holes {
		t.Errorf("%s: %s", o.Do, h)
	}
	return r
}

// status is a line of the daemon's /proc status in bytes.
func (s *stage) status(t testing.TB, name string) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if k, v, _ := strings.Cut(line, ":"); k == name {
			n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n << 10
		}
	}
	t.Fatalf("the daemon's status has no %s", name)
	return 0
}

func (s *stage) descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// during runs an attack and insists that the neighbour answers and the daemon
// stays small meanwhile.
func (s *stage) during(t *testing.T, attack func()) {
	t.Helper()
	for _, p := range s.watch(t, `{"i": 1}`, attack) {
		t.Error(p)
	}
}

// watch is during that returns what is wrong; event is what the neighbour is sent.
func (s *stage) watch(t *testing.T, event string, attack func()) (problems []string) {
	t.Helper()
	memory, fds := s.status(t, "VmRSS"), s.descriptors(t)
	var most int64
	var mostFDs, answers int
	var slowest time.Duration
	var failed []string
	over := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			begin := time.Now()
			if _, err := s.Invoke(t.Context(), "neighbour", event); err != nil {
				failed = append(failed, fmt.Sprintf("the neighbour does not answer: %v", err))
			}
			answers++
			slowest = max(slowest, time.Since(begin))
			select {
			case <-over:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	watch.Go(func() {
		for {
			most = max(most, s.status(t, "VmRSS"))
			mostFDs = max(mostFDs, s.descriptors(t))
			select {
			case <-over:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	attack()
	close(over)
	watch.Wait()
	t.Logf("neighbour: %d answers, slowest %v; daemon: %d MiB more, %d descriptors more", answers, slowest.Round(time.Millisecond), (most-memory)>>20, mostFDs-fds)
	problems = failed
	if slowest > answerWithin {
		problems = append(problems, fmt.Sprintf("the neighbour's slowest answer took %v; want at most %v", slowest, answerWithin))
	}
	if most-memory > memoryGrowth {
		problems = append(problems, fmt.Sprintf("the daemon grew by %d MiB; want at most %d", (most-memory)>>20, memoryGrowth>>20))
	}
	if mostFDs-fds > fdGrowth {
		problems = append(problems, fmt.Sprintf("the daemon had %d descriptors more; want at most %d", mostFDs-fds, fdGrowth))
	}
	return problems
}

// TestLooking holds that code finds nothing that is not its own, and that what
// the kernel could do for it is refused: as a runtime and as an extension.
func TestLooking(t *testing.T) {
	t.Parallel() // no bounds of time
	t.Run("root", func(t *testing.T) { look(t, newStage(t)) })
	t.Run("rootless", func(t *testing.T) { look(t, newStageIn(t, "rootless")) })
	t.Run(delegated, func(t *testing.T) { look(t, newStageIn(t, delegated)) })
}

// look is TestLooking in one tier.
func look(t *testing.T, s *stage) {
	layer := s.Layer(t.Context(), "villain", "extensions/villain", harness.Program(t, "hostile"))
	s.villain(t, "curious", 256, func(in *lambda.CreateFunctionInput) {
		in.Layers = []string{layer}
		in.Environment = &types.Environment{Variables: map[string]string{"HOSTILE_EXTENSION": "calls,raise,escape,processes,signals,network"}}
	})
	paths := []string{"/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/ssh", "/etc/ssl/private", "/etc/machine-id", "/etc/krb5.keytab", "/etc/crontab",
		"/root", "/home", "/var/lib", "/var/log", "/var/run", "/boot", "/old_root", "/host", "/media", "/srv", "/lost+found", "/sys/kernel", "/sys/fs/cgroup",
		"/proc/kcore", "/proc/kallsyms", "/proc/keys", "/proc/key-users", "/proc/kmsg", "/proc/config.gz", "/proc/cmdline", "/proc/iomem", "/proc/ioports", "/proc/interrupts",
		"/proc/timer_list", "/proc/sched_debug", "/proc/slabinfo", "/proc/vmallocinfo", "/proc/modules", "/proc/kpageflags", "/proc/partitions", "/proc/diskstats",
		"/proc/1/root/etc", "/proc/1/environ", "/proc/1/mem", "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/loop-control", "/dev/fuse", "/dev/net/tun", "/dev/kvm",
		s.DataDir, filepath.Join(s.DataDir, "credentials.json"), filepath.Join(s.DataDir, "logs"), filepath.Join(s.DataDir, "code"), filepath.Join(s.DataDir, "control.sock"),
		filepath.Dir(harness.Program(t, "lambdad"))}
	if home, err := os.UserHomeDir(); err == nil && home != "/" {
		paths = append(paths, home)
	}
	for _, o := range []order{
		{Do: "read", Paths: paths}, {Do: "search", Text: secret}, {Do: "search", Text: s.ID}, {Do: "processes"}, {Do: "descriptors"},
		{Do: "calls"}, {Do: "raise"}, {Do: "setuid"}, {Do: "signals"}, {Do: "escape"}, {Do: "network"},
	} {
		t.Run(strings.TrimSpace(o.Do+" "+strings.TrimPrefix(o.Text, s.ID)), func(t *testing.T) {
			r, err := s.attack(t.Context(), "curious", o)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range r.Holes {
				t.Errorf("%s: %s", o.Do, h)
			}
			t.Logf("%d tried; %s %v", r.N, r.Err, r.Paths)
			if (o.Do == "calls" || o.Do == "search" || o.Do == "network") && r.N < 10 {
				t.Errorf("only %d tried", r.N)
			}
		})
	}
	// The probe must be able to fail: what is there is found.
	t.Run("control", func(t *testing.T) {
		r, err := s.attack(t.Context(), "curious", order{Do: "read", Paths: []string{"/var/task", "/etc/passwd"}})
		if err != nil || len(r.Holes) != 2 {
			t.Errorf("reading what may be read: %+v, %v", r, err)
		}
		r, err = s.attack(t.Context(), "curious", order{Do: "search", Text: "HOSTILE_EXTENSION"})
		if err != nil || len(r.Holes) == 0 {
			t.Errorf("the search does not find one's own environment: %+v, %v", r, err)
		}
	})
	t.Run("extension", func(t *testing.T) {
		found := map[string]report{}
		for deadline := time.Now().Add(10 * time.Second); len(found) < 6 && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			for line := range strings.Lines(harness.Logs(t, s.DataDir)) {
				rest, ok := strings.CutPrefix(line, "hostile ")
				word, body, _ := strings.Cut(rest, " ")
				var r report
				if ok && json.Unmarshal([]byte(body), &r) == nil {
					found[word] = r
				}
			}
		}
		if len(found) != 6 {
			t.Errorf("reports of the extension: %v", found)
		}
		for word, r := range found {
			for _, h := range r.Holes {
				t.Errorf("%s: %s", word, h)
			}
		}
	})
	s.end(t)
}

// An exhaustion is a way to use something up.
type exhaustion struct {
	name    string
	on      string // function: greedy has 512 MB, small 128, large 1769, talker an extension; forker and filler are not used again
	o       order
	n       int      // no more than this may have been possible; 0: any
	fail    bool     // the function must not survive it
	needs   []string // promises of the tier, without which it is not held
	instead order    // what shows that, without harm to the host; none: it is not tried
	large   bool     // the neighbour is sent a large event meanwhile
}

// exhaustions are all of them. env is what the environment of greedy is given.
func exhaustions(env map[string]string) []exhaustion {
	const mib = 1 << 20
	// Whatever the signature, the body has to be read for it.
	signed := func(method, path, service string, length int) []byte {
		now := time.Now().UTC()
		return fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nX-Amz-Date: %s\r\nX-Amz-Content-Sha256: UNSIGNED-PAYLOAD\r\nX-Amz-Security-Token: %s\r\n"+
			"Authorization: AWS4-HMAC-SHA256 Credential=%s/%s/us-east-1/%s/aws4_request, SignedHeaders=host;x-amz-date;x-amz-security-token, Signature=%s\r\n\r\n",
			method, path, length, now.Format("20060102T150405Z"), env["AWS_SESSION_TOKEN"], env["AWS_ACCESS_KEY_ID"], now.Format("20060102"), service, strings.Repeat("0", 64))
	}
	invoke := func(length int) []byte {
		return signed("POST", "/2015-03-31/functions/neighbour/invocations", "lambda", length)
	}
	register := fmt.Appendf(nil, "POST /2020-01-01/extension/register HTTP/1.1\r\nHost: x\r\nLambda-Extension-Name: x\r\nContent-Length: %d\r\n\r\n", 6*mib)
	subscribe := fmt.Appendf(nil, "PUT /2022-07-01/telemetry HTTP/1.1\r\nHost: x\r\nLambda-Extension-Identifier: 00000000-0000-0000-0000-000000000000\r\nContent-Length: %d\r\n\r\n", 6*mib)
	initError := fmt.Appendf(nil, "POST /2018-06-01/runtime/init/error HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", 6*mib)
	const lasts = 1200 // ms: longer than a neighbour may wait
	return []exhaustion{
		{name: "fork bomb", on: "forker", o: order{Do: "fork bomb", N: 8, MS: lasts}, needs: []string{processLimit, cpuLimit}},
		{name: "processes", on: "large", o: order{Do: "processes held", N: 1100}, n: 1024, needs: []string{processLimit}, instead: order{Do: "processes held", N: 1100}},
		{name: "memory", on: "small", o: order{Do: "memory bomb"}, fail: true, needs: []string{memoryLimit}, instead: order{Do: "memory bomb", N: 300}},
		{name: "tmp", on: "filler", o: order{Do: "fill", N: 4096, MS: 8000}, n: 600, needs: []string{tmpSize}, instead: order{Do: "reserve", N: 700}},
		{name: "inodes", on: "large", o: order{Do: "inodes", N: 400_000, MS: lasts}, n: 200_000, needs: []string{tmpSize}},
		{name: "inotify", on: "greedy", o: order{Do: "inotify", N: 5000, MS: 500}, n: 1100, needs: []string{ownLimits}},
		{name: "asynchronous I/O", on: "greedy", o: order{Do: "aio", N: 60_000, MS: 500}, n: 1, needs: []string{systemCalls}},
		{name: "queued signals", on: "greedy", o: order{Do: "signals queued", N: 200_000, MS: 500}, n: 20_000, needs: []string{ownLimits}},
		{name: "message queues", on: "greedy", o: order{Do: "message queues", N: 1000, MS: 500}, n: 300},
		{name: "descriptors", on: "greedy", o: order{Do: "descriptors exhausted", N: 5000, MS: 500}, n: 1100, needs: []string{ownLimits}},
		{name: "kernel memory of sockets", on: "small", o: order{Do: "tcp memory", N: 60, Bytes: 192 * mib, MS: 500}, n: 96 * mib, needs: []string{memoryLimit}},
		{name: "log lines", on: "greedy", o: order{Do: "lines", Bytes: 1 << 30, MS: lasts}},
		{name: "log without a newline", on: "greedy", o: order{Do: "endless line", Bytes: 1 << 30, MS: lasts}},
		{name: "response", on: "greedy", o: order{Do: "endless response", Bytes: 1 << 40}, fail: true},
		{name: "answers to telemetry", on: "talker", o: order{Do: "lines", Bytes: 1 << 30, MS: lasts}, needs: []string{ownNetwork}},
		{name: "connections to the Runtime API", on: "greedy", o: order{Do: "connections held", Addr: runtimeAPI, N: 1000, MS: lasts}},
		{name: "connections to the endpoint", on: "greedy", o: order{Do: "connections held", Addr: endpoint, N: 1000, MS: lasts}},
		{name: "connections again and again", on: "greedy", o: order{Do: "churn", Addr: runtimeAPI, N: 50, MS: lasts}},
		{name: "connections to the endpoint again and again", on: "greedy", o: order{Do: "churn", Addr: endpoint, N: 50, MS: lasts}},
		{name: "headers to the Runtime API", on: "greedy", o: order{Do: "headers", Addr: runtimeAPI, N: 500, Bytes: 8 * mib, MS: lasts}},
		{name: "headers to the endpoint", on: "greedy", o: order{Do: "headers", Addr: endpoint, N: 500, Bytes: 8 * mib, MS: lasts}},
		{name: "slow requests to the Runtime API", on: "greedy", o: order{Do: "drip", Addr: runtimeAPI, N: 300, MS: lasts}},
		{name: "slow requests to the endpoint", on: "greedy", o: order{Do: "drip", Addr: endpoint, N: 800, MS: lasts}},
		{name: "bodies to the Runtime API", on: "large", o: order{Do: "bodies", Addr: runtimeAPI, N: 200, Raw: initError, Bytes: 6*mib - 1, MS: lasts}},
		{name: "bodies to the Extensions API", on: "large", o: order{Do: "bodies", Addr: runtimeAPI, N: 200, Raw: register, Bytes: 6*mib - 1, MS: lasts}},
		{name: "bodies to the Telemetry API", on: "large", o: order{Do: "bodies", Addr: runtimeAPI, N: 200, Raw: subscribe, Bytes: 6*mib - 1, MS: lasts}},
		{name: "bodies to the endpoint", on: "greedy", o: order{Do: "bodies", Addr: endpoint, N: 120, Raw: invoke(6 * mib), Bytes: 6*mib - 1, MS: 2 * lasts}, large: true},
		{name: "smaller bodies to the endpoint", on: "greedy", o: order{Do: "bodies", Addr: endpoint, N: 120, Raw: invoke(mib), Bytes: mib - 1, MS: lasts}, large: true},
		{name: "slow bodies to the Extensions API", on: "greedy", o: order{Do: "dripping bodies", Addr: runtimeAPI, N: 300, Raw: register, MS: lasts}},
		{name: "slow bodies to the endpoint", on: "greedy", o: order{Do: "dripping bodies", Addr: endpoint, N: 300, Raw: invoke(6 * mib), MS: lasts}, large: true},
		{name: "slow bodies to S3", on: "greedy", o: order{Do: "dripping bodies", Addr: endpoint, N: 300, Raw: signed("PUT", "/bucket/key", "s3", 1<<30), MS: lasts}},
	}
}

// try makes the attack and returns what was possible that must not be.
func (s *stage) try(t *testing.T, c exhaustion, o order) (problems []string) {
	t.Helper()
	event := `{"i": 1}`
	if c.large {
		event = `{"i": 1, "large": "` + strings.Repeat("x", 1<<20) + `"}`
	}
	say := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	others := s.watch(t, event, func() {
		r, err := s.attack(t.Context(), c.on, o)
		t.Logf("possible: %d; %s %v", r.N, r.Err, err)
		if err != nil && !c.fail {
			say("the attack itself failed: %v", err)
		}
		if err == nil && c.fail {
			say("the attack succeeded: %+v", r)
		}
		if c.n > 0 && r.N > c.n {
			say("%d were possible; want at most %d", r.N, c.n)
		}
		for _, h := range r.Holes {
			say("%s", h)
		}
	})
	return append(problems, others...)
}

// villains makes the functions that exhaust, and returns what there is to exhaust.
func (s *stage) villains(t *testing.T) []exhaustion {
	t.Helper()
	layer := s.Layer(t.Context(), "villain", "extensions/villain", harness.Program(t, "hostile"))
	s.villain(t, "greedy", 512, nil)
	s.villain(t, "small", 128, nil)
	s.villain(t, "large", 1769, nil)
	s.villain(t, "forker", 512, nil)
	s.villain(t, "filler", 512, nil)
	s.villain(t, "talker", 512, func(in *lambda.CreateFunctionInput) {
		in.Layers = []string{layer}
		in.Environment = &types.Environment{Variables: map[string]string{"HOSTILE_EXTENSION": "listener"}}
	})
	return exhaustions(s.must(t, "greedy", order{Do: "env"}).Env)
}

// TestExhaustion holds that each way to use something up costs the attacker only.
func TestExhaustion(t *testing.T) {
	s := newStage(t)
	for _, c := range s.villains(t) {
		t.Run(c.name, func(t *testing.T) { s.held(t, c) })
	}
	s.end(t)
}

// held insists that an attack costs the attacker only.
func (s *stage) held(t *testing.T, c exhaustion) {
	t.Helper()
	for _, p := range s.try(t, c, c.o) {
		t.Error(p)
	}
	// The attacker's own next event finds everything as before, but for a /tmp that
	// counts as its memory and stays full.
	if _, err := s.attack(t.Context(), c.on, order{Do: "nothing"}); err != nil && (c.on != "filler" || !c.fail) {
		t.Errorf("the function after its attack: %v", err)
	}
	if c.on == "forker" {
		s.rest(c.on, environment.StateFrozen) // which takes its time with so many
		s.remove(t, c.on)
		gone(t, "bomb")
	}
}

// gone insists that the marked processes end at once.
func gone(t *testing.T, mark string) {
	t.Helper()
	took := goneIn(t, mark)
	t.Logf("gone after %v", took.Round(time.Millisecond))
	if took > goneWithin {
		t.Errorf("the attacker was gone after %v; want at most %v", took, goneWithin)
	}
}

// TestCoupling holds that what the kernel counts by user is not counted together
// for two sandboxes, or for a sandbox and the host: while one has all it can get,
// the other and the host get as much.
func TestCoupling(t *testing.T) {
	s := newStage(t)
	s.villain(t, "taker", 512, nil)
	s.villain(t, "loser", 512, nil)
	for _, o := range []order{
		{Do: "inotify", N: 900},
		{Do: "signals queued", N: 20_000},
		{Do: "message queues", N: 300},
	} {
		t.Run(o.Do, func(t *testing.T) {
			alone, taken, beside := s.couple(t, o)
			if beside < alone*9/10 {
				t.Errorf("beside one that took %d only %d of %d were possible", taken, beside, alone)
			}
		})
	}
	s.end(t)
}

// couple returns how much of something loser gets alone, how much taker holds, and
// how much loser gets beside it.
func (s *stage) couple(t *testing.T, o order) (alone, taken, beside int) {
	t.Helper()
	a := s.must(t, "loser", o)
	if a.N == 0 {
		t.Fatalf("nothing was possible alone: %+v", a)
	}
	hold := o
	hold.MS = 3000
	var held report
	var both sync.WaitGroup
	both.Go(func() { held = s.must(t, "taker", hold) })
	time.Sleep(1500 * time.Millisecond) // the taker has them by then, and holds them
	b := s.must(t, "loser", o)
	if o.Do == "inotify" && s.user == nil {
		if err := hostInotify(); err != nil {
			t.Errorf("the host cannot watch files any more: %v", err)
		}
	}
	both.Wait()
	t.Logf("alone %d, taken %d, beside %d", a.N, held.N, b.N)
	return a.N, held.N, b.N
}

// TestHostileInit holds that an initialisation, which has no processor limit, does
// not keep others from answering.
func TestHostileInit(t *testing.T) {
	s := newStage(t)
	s.villain(t, "starter", 512, func(in *lambda.CreateFunctionInput) {
		in.Environment = &types.Environment{Variables: map[string]string{"HOSTILE_INIT": "fork bomb"}}
	})
	s.during(t, func() {
		if _, err := s.attack(t.Context(), "starter", order{Do: "nothing"}); err != nil {
			t.Logf("the function: %v", err)
		}
	})
	s.end(t)
}

// TestHostileShutdown holds that an extension, for which the function's own limit
// ends when it is told of the end, does not keep others from answering: neither when
// the runtime leaves in peace nor when it is killed with all it has started. What the
// extension starts then ends with it.
func TestHostileShutdown(t *testing.T) {
	const budget = 2 * time.Second // of extensions
	s := newStage(t)
	layer := s.Layer(t.Context(), "villain", "extensions/villain", harness.Program(t, "hostile"))
	for _, c := range []struct {
		name string
		end  func(name string)
	}{
		{"deleted", func(name string) {
			s.must(t, name, order{Do: "nothing"})
			s.remove(t, name)
		}},
		{"timeout", func(name string) {
			// Enough to go before others when it is killed, which it must be.
			if _, err := s.attack(t.Context(), name, order{Do: "linger", N: 40, Text: markOf(4), MS: 60_000}); err == nil {
				t.Error("the invocation did not time out")
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.villain(t, c.name, 1769, func(in *lambda.CreateFunctionInput) {
				in.Layers = []string{layer}
				in.Timeout = aws.Int32(1)
				in.Environment = &types.Environment{Variables: map[string]string{"HOSTILE_SHUTDOWN": "fork bomb", "HOSTILE_SIGTERM": "ignored"}}
			})
			s.during(t, func() {
				c.end(c.name)
				begun := time.Now()
				for len(marked(t, "bomb", 1)) == 0 && time.Since(begun) < budget {
					time.Sleep(5 * time.Millisecond)
				}
				if took := time.Since(begun); took >= budget {
					t.Error("the extension did nothing")
				}
				goneIn(t, "bomb")
				goneIn(t, markOf(4))
				took := time.Since(begun)
				t.Logf("gone after %v", took.Round(time.Millisecond))
				if took > budget+goneWithin {
					t.Errorf("the attacker was gone %v after the end of its time; want at most %v", took-budget, goneWithin)
				}
			})
		})
	}
	s.end(t)
}

// markOf is a command line argument that nobody else's processes have.
func markOf(n int) string { return fmt.Sprintf("9%07d%d", os.Getpid(), n) }

// has says whether the command line of a process, a directory of /proc, has an argument.
func has(process, mark string) bool {
	b, err := os.ReadFile(process + "/cmdline")
	return err == nil && slices.Contains(strings.Split(string(b), "\x00"), mark)
}

// marked are the processes on the host whose command line has an argument; no more
// than most.
func marked(t testing.TB, mark string, most int) []string {
	t.Helper()
	var found []string
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if has(name, mark) {
			if found = append(found, name); len(found) == most {
				break
			}
		}
	}
	return found
}

// goneIn waits for the end of the marked processes and says how long it took. It looks
// at one of them until that has ended: who reads of a thousand takes the processor from
// those that are to die.
func goneIn(t testing.TB, mark string) time.Duration {
	t.Helper()
	begin := time.Now()
	for found := marked(t, mark, 1); len(found) > 0; found = marked(t, mark, 1) {
		for has(found[0], mark) {
			if time.Since(begin) > 10*time.Second {
				t.Errorf("processes survived: %v", marked(t, mark, 100))
				return time.Since(begin)
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	return time.Since(begin)
}

// TestSurviving holds that no process outlives its environment: not one that left
// its session and its parent, hears no signal, forks all the time, is frozen.
func TestSurviving(t *testing.T) {
	s := newStage(t)
	survive(t, s, "root", func(string) bool { return true })
	s.end(t)
}

// survive is TestSurviving in one tier, of which kept says what it promises.
func survive(t *testing.T, s *stage, tier string, kept func(promise string) bool) {
	rests := environment.StateFrozen
	if !kept(freezing) {
		rests = environment.StateIdle
	}
	within := func(t *testing.T, mark string) {
		t.Helper()
		if kept(cpuLimit) {
			gone(t, mark)
		} else { // who has no limit keeps the processor from those that are to die
			goneIn(t, mark)
		}
	}
	// On plain processes a server that fails leaves them to whoever comes next.
	t.Cleanup(func() {
		for _, mark := range []string{markOf(1), markOf(2), markOf(3)} {
			for _, p := range marked(t, mark, 1000) {
				if pid, err := strconv.Atoi(filepath.Base(p)); err == nil {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
	})
	t.Run(rests+", then deleted", func(t *testing.T) {
		s.villain(t, "sleeper", 512, nil)
		s.must(t, "sleeper", order{Do: "linger", N: 20, Text: markOf(1), MS: 100})
		s.rest("sleeper", rests)
		if n := len(marked(t, markOf(1), 20)); n < 20 {
			t.Fatalf("only %d processes linger", n)
		}
		s.remove(t, "sleeper")
		within(t, markOf(1))
	})
	t.Run("timeout", func(t *testing.T) {
		s.villain(t, "late", 512, func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(2) })
		if _, err := s.attack(t.Context(), "late", order{Do: "linger", N: 20, Text: markOf(2), MS: 60_000}); err == nil {
			t.Error("the invocation did not time out")
		}
		within(t, markOf(2))
		if _, err := s.attack(t.Context(), "late", order{Do: "nothing"}); err != nil {
			t.Errorf("the function after its timeout: %v", err)
		}
		s.remove(t, "late")
	})
	if kept(processLimit) && kept(cpuLimit) {
		t.Run("fork bomb at its timeout", func(t *testing.T) {
			s.villain(t, "bomber", 512, func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(2) })
			s.during(t, func() {
				if _, err := s.attack(t.Context(), "bomber", order{Do: "fork bomb", N: 8, MS: 20_000}); err == nil {
					t.Error("the invocation did not time out")
				}
				within(t, "bomb")
			})
			s.remove(t, "bomber")
		})
	}
	if !kept(diesWithDaemon) {
		return
	}
	t.Run("kill of the server", func(t *testing.T) {
		other := newStageIn(t, tier)
		other.villain(t, "orphan", 512, nil)
		other.must(t, "orphan", order{Do: "linger", N: 20, Text: markOf(3), MS: 100})
		other.rest("orphan", rests)
		other.Kill()
		if took := goneIn(t, markOf(3)); took > time.Second && kept(cpuLimit) {
			t.Errorf("processes survived the server by %v", took)
		}
		again := other.serve(t, other.DataDir) // sweeps
		again.Stop()
		harness.LeftOnHost(t, other.ID)
	})
}

// TestThreatModel holds that each test that docs/threat-model.md names exists.
func TestThreatModel(t *testing.T) {
	root := filepath.Join("..", "..")
	doc, err := os.ReadFile(filepath.Join(root, "docs", "threat-model.md"))
	if err != nil {
		t.Fatal(err)
	}
	sources := func(dir string) string {
		files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
		if err != nil || len(files) == 0 {
			t.Errorf("no tests in %s: %v", dir, err)
		}
		var all strings.Builder
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(b)
		}
		return all.String()
	}
	const here = "integration/hostile"
	tests := 0
	for line := range strings.Lines(string(doc)) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || strings.TrimSpace(cells[3]) == "Test" || strings.HasPrefix(cells[3], "---") {
			continue
		}
		dir, named := here, false
		for i, name := range strings.Split(cells[3], "`") {
			if i%2 == 0 {
				continue
			}
			if !strings.HasPrefix(name, "Test") && !strings.HasPrefix(name, "/") {
				dir = name
				continue
			}
			named = true
			tests++
			test, sub, _ := strings.Cut(name, "/")
			code := sources(dir)
			if test != "" && !strings.Contains(code, "\nfunc "+test+"(t *testing.T) {") {
				t.Errorf("%s: there is no %s in %s", strings.TrimSpace(cells[1]), test, dir)
			}
			if sub != "" && !strings.Contains(code, strconv.Quote(sub)) {
				t.Errorf("%s: %s in %s has no subtest %q", strings.TrimSpace(cells[1]), test, dir, sub)
			}
		}
		if !named {
			t.Errorf("%s: no test is named", strings.TrimSpace(cells[1]))
		}
	}
	if tests < 50 {
		t.Errorf("only %d tests are named", tests)
	}
}
