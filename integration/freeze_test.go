package integration_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// TestFreezing holds that an extension that ticks every 10 ms, and one that forks
// every 10 ms, makes no tick while its environment idles, and goes on after; and
// that freezing is not stopping.
func TestFreezing(t *testing.T) {
	needRoot(t)
	for _, fork := range []string{"", "yes"} {
		t.Run("fork="+fork, func(t *testing.T) {
			ctx := t.Context()
			s := startServer(t, t.TempDir())
			layer := s.layer(ctx, "ticker", "extensions/ticker", program(t, "ticker"))
			env := map[string]string{}
			if fork != "" {
				env["TICKER_FORK"] = fork
			}
			if err := s.create(ctx, "ticked", func(in *lambda.CreateFunctionInput) {
				in.Layers = []string{layer}
				in.Environment = &types.Environment{Variables: env}
			}); err != nil {
				t.Fatal(err)
			}
			frozen := func(list []state) bool { return len(list) == 1 && list[0].State == "frozen" }
			if _, err := s.invoke(ctx, "ticked", `{}`); err != nil {
				t.Fatal(err)
			}
			s.waitEnvironments(10*time.Second, frozen)
			begin := time.Now()
			for range 20 {
				time.Sleep(50 * time.Millisecond)
				for pid, st := range processStates(t, "lambdad-"+s.id) {
					if st == "T" || st == "t" {
						t.Errorf("process %d is stopped, not frozen", pid)
					}
				}
			}
			end := time.Now()
			if _, err := s.invoke(ctx, "ticked", `{"sleepMs": 100}`); err != nil {
				t.Fatal(err)
			}
			s.waitEnvironments(10*time.Second, frozen)
			s.stop()
			before, inside, after := 0, 0, 0
			for line := range strings.Lines(logs(t, s.dataDir)) {
				ms, ok := strings.CutPrefix(strings.TrimSpace(line), "tick ")
				if !ok {
					continue
				}
				at, err := strconv.ParseInt(ms, 10, 64)
				if err != nil {
					t.Fatalf("a broken line %q", line)
				}
				switch {
				case at < begin.UnixMilli():
					before++
				case at <= end.UnixMilli():
					inside++
				default:
					after++
				}
			}
			if inside > 0 || after == 0 {
				t.Errorf("ticks before, while and after being frozen: %d, %d, %d; want none while and some after", before, inside, after)
			}
		})
	}
}

// processStates are the states of all living processes below a cgroup whose name has
// part in it.
func processStates(t testing.TB, part string) map[int]string {
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

// TestTwoServers holds that servers with different data directories live side by
// side and sweep only what is theirs.
func TestTwoServers(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	a, b := startServer(t, t.TempDir()), startServer(t, t.TempDir())
	for _, s := range []*server{a, b} {
		if err := s.create(ctx, "same-name", nil); err != nil {
			t.Fatal(err)
		}
		if _, err := s.invoke(ctx, "same-name", `{}`); err != nil {
			t.Fatal(err)
		}
	}
	b.kill()
	again := startServer(t, b.dataDir) // sweeps
	if _, err := a.invoke(ctx, "same-name", `{}`); err != nil {
		t.Errorf("the other server's start hurt this one: %v", err)
	}
	list, err := a.environments(ctx)
	if err != nil || len(list) != 1 || list[0].Invocations != 2 {
		t.Errorf("environments of the untouched server: %+v, %v; want one with two invocations", list, err)
	}
	again.stop()
	a.stop()
}
