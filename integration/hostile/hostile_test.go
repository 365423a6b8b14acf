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

	"github.com/lambdad/lambdad/integration/harness"
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
	t *testing.T
}

func newStage(t *testing.T) *stage {
	t.Helper()
	return newStageAs(t, nil, t.TempDir())
}

// newStageAs is newStage with a server of another user.
func newStageAs(t *testing.T, user *syscall.Credential, dir string) *stage {
	t.Helper()
	harness.NeedRoot(t)
	s := &stage{harness.StartAs(t, user, dir, "--idle-timeout", "60s", "--log-level", "error"), t}
	err := s.Create(t.Context(), "neighbour", func(in *lambda.CreateFunctionInput) {
		in.Environment = &types.Environment{Variables: map[string]string{"SECRET": secret}}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Invoke(t.Context(), "neighbour", `{}`); err != nil {
		t.Fatal(err)
	}
	return s
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
	memory, fds := s.status(t, "VmRSS"), s.descriptors(t)
	var most int64
	var mostFDs, answers int
	var slowest, second time.Duration
	over := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			begin := time.Now()
			if _, err := s.Invoke(t.Context(), "neighbour", `{"i":1}`); err != nil {
				t.Errorf("the neighbour does not answer: %v", err)
			}
			answers++
			took := time.Since(begin)
			second = max(second, min(slowest, took))
			slowest = max(slowest, took)
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
	// One may have met whatever else runs on the machine.
	if second > answerWithin {
		t.Errorf("the neighbour's slowest answers took %v and %v; want at most %v", slowest, second, answerWithin)
	}
	if most-memory > memoryGrowth {
		t.Errorf("the daemon grew by %d MiB; want at most %d", (most-memory)>>20, memoryGrowth>>20)
	}
	if mostFDs-fds > fdGrowth {
		t.Errorf("the daemon had %d descriptors more; want at most %d", mostFDs-fds, fdGrowth)
	}
}

// TestLooking holds that code finds nothing that is not its own, and that what
// the kernel could do for it is refused: as a runtime and as an extension.
func TestLooking(t *testing.T) {
	t.Run("root", func(t *testing.T) { look(t, newStage(t)) })
	t.Run("rootless", func(t *testing.T) {
		look(t, newStageAs(t, harness.Nobody, harness.DirOf(t, harness.Nobody)))
	})
}

// look is TestLooking in one tier.
func look(t *testing.T, s *stage) {
	layer := s.Layer(t.Context(), "villain", "extensions/villain", harness.Program(t, "hostile"))
	s.villain(t, "curious", 256, func(in *lambda.CreateFunctionInput) {
		in.Layers = []string{layer}
		in.Environment = &types.Environment{Variables: map[string]string{"HOSTILE_EXTENSION": "calls,raise,escape,processes,signals"}}
	})
	paths := []string{"/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/ssh", "/etc/ssl/private", "/etc/machine-id", "/etc/krb5.keytab", "/etc/crontab",
		"/root", "/home", "/var/lib", "/var/log", "/var/run", "/boot", "/old_root", "/host", "/media", "/srv", "/lost+found", "/sys/kernel", "/sys/fs/cgroup",
		"/proc/kcore", "/proc/kallsyms", "/proc/keys", "/proc/key-users", "/proc/kmsg", "/proc/config.gz", "/proc/cmdline", "/proc/iomem", "/proc/ioports", "/proc/interrupts",
		"/proc/timer_list", "/proc/sched_debug", "/proc/slabinfo", "/proc/vmallocinfo", "/proc/modules", "/proc/kpageflags", "/proc/partitions", "/proc/diskstats",
		"/proc/1/root/etc", "/proc/1/environ", "/proc/1/mem", "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/loop-control", "/dev/fuse", "/dev/net/tun", "/dev/kvm",
		s.DataDir, filepath.Join(s.DataDir, "credentials.json"), filepath.Join(s.DataDir, "logs"), filepath.Join(s.DataDir, "code"), filepath.Join(s.DataDir, "control.sock"),
		filepath.Dir(s.Cmd.Path)}
	if home, err := os.UserHomeDir(); err == nil && home != "/" {
		paths = append(paths, home)
	}
	for _, o := range []order{
		{Do: "read", Paths: paths}, {Do: "search", Text: secret}, {Do: "search", Text: s.ID}, {Do: "processes"}, {Do: "descriptors"},
		{Do: "calls"}, {Do: "raise"}, {Do: "setuid"}, {Do: "signals"}, {Do: "escape"},
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
			if (o.Do == "calls" || o.Do == "search") && r.N < 10 {
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
		for deadline := time.Now().Add(10 * time.Second); len(found) < 5 && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			for line := range strings.Lines(harness.Logs(t, s.DataDir)) {
				rest, ok := strings.CutPrefix(line, "hostile ")
				word, body, _ := strings.Cut(rest, " ")
				var r report
				if ok && json.Unmarshal([]byte(body), &r) == nil {
					found[word] = r
				}
			}
		}
		if len(found) != 5 {
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

// TestExhaustion holds that each way to use something up costs the attacker only.
func TestExhaustion(t *testing.T) {
	s := newStage(t)
	s.villain(t, "greedy", 512, nil)
	s.villain(t, "small", 128, nil)
	s.villain(t, "large", 1769, nil)
	for _, c := range []struct {
		name string
		on   string
		o    order
		n    int // no more than this may have been possible; 0: any
		fail bool
	}{
		{"processes", "greedy", order{Do: "fork bomb", N: 8, MS: 1500}, 0, false},
		{"memory", "small", order{Do: "memory bomb"}, 0, true},
		{"tmp", "greedy", order{Do: "fill", N: 4096, MS: 8000}, 600, false},
		{"inodes", "large", order{Do: "inodes", N: 400_000, MS: 4000}, 200_000, false},
		{"inotify", "greedy", order{Do: "inotify", N: 5000, MS: 500}, 1100, false},
		{"asynchronous I/O", "greedy", order{Do: "aio", N: 60_000, MS: 500}, 1, false},
		{"queued signals", "greedy", order{Do: "signals queued", N: 200_000, MS: 500}, 20_000, false},
		{"message queues", "greedy", order{Do: "message queues", N: 1000, MS: 500}, 300, false},
		{"descriptors", "greedy", order{Do: "descriptors exhausted", N: 5000, MS: 500}, 1100, false},
		{"kernel memory of sockets", "small", order{Do: "tcp memory", N: 120, Bytes: 192 << 20, MS: 500}, 96 << 20, false},
		{"log lines", "greedy", order{Do: "lines", Bytes: 1 << 30, MS: 3000}, 0, false},
		{"log without a newline", "greedy", order{Do: "endless line", Bytes: 1 << 30, MS: 2000}, 0, false},
		{"response", "greedy", order{Do: "endless response", Bytes: 1 << 40}, 0, true},
		{"connections to the Runtime API", "greedy", order{Do: "connections held", Addr: runtimeAPI, N: 1000, MS: 1000}, 0, false},
		{"connections to the endpoint", "greedy", order{Do: "connections held", Addr: endpoint, N: 1000, MS: 1000}, 0, false},
		{"connections again and again", "greedy", order{Do: "churn", Addr: runtimeAPI, N: 50, MS: 2000}, 0, false},
		{"connections to the endpoint again and again", "greedy", order{Do: "churn", Addr: endpoint, N: 50, MS: 2000}, 0, false},
		{"headers to the Runtime API", "greedy", order{Do: "headers", Addr: runtimeAPI, N: 500, Bytes: 8 << 20, MS: 3000}, 0, false},
		{"headers to the endpoint", "greedy", order{Do: "headers", Addr: endpoint, N: 500, Bytes: 8 << 20, MS: 3000}, 0, false},
		{"slow requests to the Runtime API", "greedy", order{Do: "drip", Addr: runtimeAPI, N: 300, MS: 2000}, 0, false},
		{"slow requests to the endpoint", "greedy", order{Do: "drip", Addr: endpoint, N: 800, MS: 2000}, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.during(t, func() {
				r, err := s.attack(t.Context(), c.on, c.o)
				t.Logf("possible: %d; %s %v", r.N, r.Err, err)
				if err != nil && !c.fail {
					t.Errorf("the attack itself failed: %v", err)
				}
				if err == nil && c.fail {
					t.Errorf("the attack succeeded: %+v", r)
				}
				if c.n > 0 && r.N > c.n {
					t.Errorf("%d were possible; want at most %d", r.N, c.n)
				}
				for _, h := range r.Holes {
					t.Error(h)
				}
			})
			// The attacker's own next event finds everything as before.
			if _, err := s.attack(t.Context(), c.on, order{Do: "nothing"}); err != nil {
				t.Errorf("the function after its attack: %v", err)
			}
		})
	}
	s.end(t)
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
			alone := s.must(t, "loser", o)
			if alone.N == 0 {
				t.Fatalf("nothing was possible alone: %+v", alone)
			}
			hold := o
			hold.MS = 3000
			var taken report
			var both sync.WaitGroup
			both.Go(func() { taken = s.must(t, "taker", hold) })
			time.Sleep(1500 * time.Millisecond) // the taker has them by then, and holds them
			beside := s.must(t, "loser", o)
			if o.Do == "inotify" {
				if err := hostInotify(); err != nil {
					t.Errorf("the host cannot watch files any more: %v", err)
				}
			}
			both.Wait()
			t.Logf("alone %d, taken %d, beside %d", alone.N, taken.N, beside.N)
			if beside.N < alone.N*9/10 {
				t.Errorf("beside one that took %d only %d of %d were possible", taken.N, beside.N, alone.N)
			}
		})
	}
	s.end(t)
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

// marked are the processes on the host whose command line has an argument.
func marked(t testing.TB, mark string) []string {
	t.Helper()
	var found []string
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil && slices.Contains(strings.Split(string(b), "\x00"), mark) {
			found = append(found, filepath.Dir(name))
		}
	}
	return found
}

// goneIn waits for the end of the marked processes and says how long it took.
func goneIn(t testing.TB, mark string) time.Duration {
	t.Helper()
	begin := time.Now()
	for time.Since(begin) < 10*time.Second {
		if len(marked(t, mark)) == 0 {
			return time.Since(begin)
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("processes survived: %v", marked(t, mark))
	return time.Since(begin)
}

// TestSurviving holds that no process outlives its environment: not one that left
// its session and its parent, hears no signal, forks all the time, is frozen.
func TestSurviving(t *testing.T) {
	s := newStage(t)
	remove := func(name string) {
		if _, err := s.Client.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: aws.String(name)}); err != nil {
			t.Fatal(err)
		}
	}
	frozen := func(name string) {
		t.Helper()
		s.WaitEnvironments(10*time.Second, func(list []harness.State) bool {
			return slices.ContainsFunc(list, func(e harness.State) bool { return e.Function == name && e.State == "frozen" })
		})
	}
	within := func(t *testing.T, took time.Duration) {
		t.Helper()
		t.Logf("gone after %v", took.Round(time.Millisecond))
		if took > goneWithin {
			t.Errorf("the attacker was gone after %v; want at most %v", took, goneWithin)
		}
	}
	t.Run("frozen, then deleted", func(t *testing.T) {
		s.villain(t, "sleeper", 512, nil)
		s.must(t, "sleeper", order{Do: "linger", N: 20, Text: "900001", MS: 100})
		frozen("sleeper")
		if n := len(marked(t, "900001")); n < 20 {
			t.Fatalf("only %d processes linger", n)
		}
		remove("sleeper")
		within(t, goneIn(t, "900001"))
	})
	t.Run("timeout", func(t *testing.T) {
		s.villain(t, "late", 512, func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(2) })
		if _, err := s.attack(t.Context(), "late", order{Do: "linger", N: 20, Text: "900002", MS: 60_000}); err == nil {
			t.Error("the invocation did not time out")
		}
		within(t, goneIn(t, "900002"))
		if _, err := s.attack(t.Context(), "late", order{Do: "nothing"}); err != nil {
			t.Errorf("the function after its timeout: %v", err)
		}
		remove("late")
	})
	t.Run("fork bomb at its timeout", func(t *testing.T) {
		s.villain(t, "bomber", 512, func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(2) })
		s.during(t, func() {
			if _, err := s.attack(t.Context(), "bomber", order{Do: "fork bomb", N: 8, MS: 20_000}); err == nil {
				t.Error("the invocation did not time out")
			}
			within(t, goneIn(t, "bomb"))
		})
		remove("bomber")
	})
	t.Run("kill of the server", func(t *testing.T) {
		other := newStage(t)
		other.villain(t, "orphan", 512, nil)
		other.must(t, "orphan", order{Do: "linger", N: 20, Text: "900003", MS: 100})
		other.WaitEnvironments(10*time.Second, func(list []harness.State) bool {
			return slices.ContainsFunc(list, func(e harness.State) bool { return e.Function == "orphan" && e.State == "frozen" })
		})
		other.Kill()
		if took := goneIn(t, "900003"); took > time.Second {
			t.Errorf("processes survived the server by %v", took)
		}
		again := harness.Start(t, other.DataDir) // sweeps
		again.Stop()
		harness.LeftOnHost(t, other.ID)
	})
	s.end(t)
}
