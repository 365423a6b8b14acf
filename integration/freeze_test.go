package integration_test

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/lambdad/lambdad/integration/harness"
)

// TestFreezing holds that an extension that ticks every 10 ms, and one that forks
// every 10 ms, makes no tick while its environment idles, and goes on after; and
// that freezing is not stopping.
func TestFreezing(t *testing.T) {
	harness.NeedRoot(t)
	for _, fork := range []string{"", "yes"} {
		t.Run("fork="+fork, func(t *testing.T) {
			ctx := t.Context()
			s := harness.Start(t, t.TempDir())
			layer := s.Layer(ctx, "ticker", "extensions/ticker", harness.Program(t, "ticker"))
			env := map[string]string{}
			if fork != "" {
				env["TICKER_FORK"] = fork
			}
			if err := s.Create(ctx, "ticked", func(in *lambda.CreateFunctionInput) {
				in.Layers = []string{layer}
				in.Environment = &types.Environment{Variables: env}
			}); err != nil {
				t.Fatal(err)
			}
			frozen := func(list []harness.State) bool { return len(list) == 1 && list[0].State == "frozen" }
			if _, err := s.Invoke(ctx, "ticked", `{}`); err != nil {
				t.Fatal(err)
			}
			s.WaitEnvironments(10*time.Second, frozen)
			begin := time.Now()
			for range 20 {
				time.Sleep(50 * time.Millisecond)
				for pid, st := range harness.ProcessStates(t, "lambdad-"+s.ID) {
					if st == "T" || st == "t" {
						t.Errorf("process %d is stopped, not frozen", pid)
					}
				}
			}
			end := time.Now()
			if _, err := s.Invoke(ctx, "ticked", `{"sleepMs": 100}`); err != nil {
				t.Fatal(err)
			}
			s.WaitEnvironments(10*time.Second, frozen)
			s.Stop()
			before, inside, after := 0, 0, 0
			for line := range strings.Lines(harness.Logs(t, s.DataDir)) {
				ms, ok := strings.CutPrefix(strings.TrimSpace(line), "tick ")
				if !ok {
					continue
				}
				at, err := strconv.ParseInt(ms, 10, 64)
				if err != nil {
					t.Fatalf("a broken line %q", line)
				}
				// Ticks tell whole milliseconds: those that begin and end fall into are
				// partly outside.
				switch {
				case at <= begin.UnixMilli():
					before++
				case at < end.UnixMilli():
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

// TestTwoServers holds that servers with different data directories live side by
// side and sweep only what is theirs.
func TestTwoServers(t *testing.T) {
	harness.NeedRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	a, b := harness.Start(t, t.TempDir()), harness.Start(t, t.TempDir())
	for _, s := range []*harness.Server{a, b} {
		if err := s.Create(ctx, "same-name", nil); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Invoke(ctx, "same-name", `{}`); err != nil {
			t.Fatal(err)
		}
	}
	b.Kill()
	again := harness.Start(t, b.DataDir) // sweeps
	if _, err := a.Invoke(ctx, "same-name", `{}`); err != nil {
		t.Errorf("the other server's start hurt this one: %v", err)
	}
	list, err := a.Environments(ctx)
	if err != nil || len(list) != 1 || list[0].Invocations != 2 {
		t.Errorf("environments of the untouched server: %+v, %v; want one with two invocations", list, err)
	}
	again.Stop()
	a.Stop()
}
