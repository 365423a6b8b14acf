package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/lambdad/lambdad/integration/harness"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

// TestTiers holds that the life of a function with an extension is the same in
// every tier, over a clean stop, a kill and a new start.
func TestTiers(t *testing.T) {
	harness.NeedRoot(t)
	for _, name := range []string{"lambdad", "bootstrap", "ticker"} {
		harness.Program(t, name) // built before any clock runs
	}
	for _, c := range []struct {
		tier      string
		user      *syscall.Credential
		delegated bool // control groups
		args      []string
	}{
		{"root", nil, false, nil},
		{"rootless", harness.Nobody, false, nil},
		{"rootless", harness.Nobody, true, nil},
		{"rootless", nil, false, []string{"--isolation", "rootless"}},
		{"plain", harness.Nobody, false, []string{"--isolation", "plain"}},
	} {
		name := c.tier
		if c.user == nil {
			name += " as root"
		}
		if c.delegated {
			name += " with delegated groups"
		}
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			dir := harness.DirOf(t, c.user)
			start := func() *harness.Server { return harness.StartAs(t, c.user, dir, c.args...) }
			if c.delegated {
				groups := sandboxtest.Delegate(t)
				start = func() *harness.Server { return harness.StartDelegated(t, groups, dir, c.args...) }
			}
			s := start()
			pid := s.Cmd.Process.Pid
			var info struct {
				Tier string
				PID  int
			}
			data, err := os.ReadFile(filepath.Join(dir, "server.json"))
			if err == nil {
				err = json.Unmarshal(data, &info)
			}
			if err != nil || info.Tier != c.tier || info.PID != pid {
				t.Fatalf("tier %q of process %d, %v; want %q of %d", info.Tier, info.PID, err, c.tier, pid)
			}
			layer := s.Layer(ctx, "ticker", "extensions/ticker", harness.Program(t, "ticker"))
			if err := s.Create(ctx, "hello", func(in *lambda.CreateFunctionInput) { in.Layers = []string{layer} }); err != nil {
				t.Fatal(err)
			}
			invoke := func(s *harness.Server) {
				t.Helper()
				if _, err := s.Invoke(ctx, "hello", `{"sleepMs": 20}`); err != nil {
					t.Fatal(err)
				}
			}
			one := func(invocations int) {
				t.Helper()
				s.WaitEnvironments(10*time.Second, func(l []harness.State) bool {
					return len(l) == 1 && l[0].Invocations == invocations && (l[0].State == "frozen" || l[0].State == "idle" && c.tier != "root" && !c.delegated)
				})
			}
			invoke(s)
			one(1)
			invoke(s)
			one(2)
			if _, err := s.Client.UpdateFunctionConfiguration(ctx, &lambda.UpdateFunctionConfigurationInput{
				FunctionName: aws.String("hello"), Environment: &types.Environment{Variables: map[string]string{"CHANGED": "yes"}},
			}); err != nil {
				t.Fatal(err)
			}
			if err := lambda.NewFunctionUpdatedV2Waiter(s.Client, func(o *lambda.FunctionUpdatedV2WaiterOptions) {
				o.MinDelay, o.MaxDelay = 20*time.Millisecond, 100*time.Millisecond
			}).Wait(ctx, &lambda.GetFunctionInput{FunctionName: aws.String("hello")}, 20*time.Second); err != nil {
				t.Fatal(err)
			}
			invoke(s)
			one(1)
			family := descendants(pid)
			if len(family) < 2 {
				t.Errorf("the server has the descendants %v, want at least runtime and extension", family)
			}
			s.Kill()
			dead := time.Now()
			again := start() // sweeps
			invoke(again)
			for _, p := range family {
				for alive(p) {
					if time.Since(dead) > 5*time.Second {
						t.Fatalf("process %d of the killed server lives on", p)
					}
					time.Sleep(10 * time.Millisecond)
				}
			}
			// Where /tmp is memory, the first line of a log says so.
			// Lines are on disk, where they are read from, a moment later, in their order; of
			// the server that was killed perhaps none.
			memory := false
			for begun := time.Now(); !memory && time.Since(begun) < 10*time.Second; time.Sleep(50 * time.Millisecond) {
				log := harness.Logs(t, dir)
				if memory = strings.Contains(log, "lambdad: /tmp is memory on this host"); strings.Contains(log, "REPORT ") {
					break
				}
			}
			if memory != (c.tier == "rootless") {
				t.Errorf("the log says that /tmp is memory: %v", memory)
			}
			family = descendants(again.Cmd.Process.Pid)
			again.Stop()
			for _, p := range family {
				if alive(p) {
					t.Errorf("process %d outlives the stopped server", p)
				}
			}
			harness.LeftOnHost(t, again.ID)
		})
	}
}

// descendants lists the processes below one.
func descendants(pid int) []int {
	list := []int{pid}
	for i := 0; i < len(list); i++ {
		files, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(list[i]), "task/*/children"))
		for _, f := range files {
			b, _ := os.ReadFile(f)
			for _, c := range strings.Fields(string(b)) {
				if n, err := strconv.Atoi(c); err == nil {
					list = append(list, n)
				}
			}
		}
	}
	return list[1:]
}

// alive says whether a process is there and no zombie.
func alive(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(b, []byte(") "))
	return !bytes.HasPrefix(rest, []byte("Z"))
}

// TestForcedTier holds that a tier that was asked for by name is never replaced by
// another, and that the reason is said.
func TestForcedTier(t *testing.T) {
	harness.NeedRoot(t)
	dir := harness.DirOf(t, harness.Nobody)
	cmd := exec.Command(harness.Program(t, "lambdad"), "serve", "--listen", "127.0.0.1:0", "--data-dir", dir, "--isolation", "root")
	harness.As(cmd, harness.Nobody, dir)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "isolation tier root does not work here") {
		t.Errorf("serve --isolation root as nobody: %v\n%s", err, out)
	}
}

// TestDoctor holds that doctor names every promise that does not hold, why, and
// what cures it, in every tier.
func TestDoctor(t *testing.T) {
	harness.NeedRoot(t)
	for _, tier := range []string{"root", "rootless", "plain"} {
		user := harness.Nobody
		if tier == "root" {
			user = nil
		}
		dir := harness.DirOf(t, user)
		cmd := exec.Command(harness.Program(t, "lambdad"), "doctor", "--output", "json", "--isolation", tier)
		harness.As(cmd, user, dir)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", tier, err)
		}
		var d struct {
			Tier     string `json:"tier"`
			Promises []struct {
				Name, Why, Cure string
				Kept            bool
			} `json:"promises"`
		}
		if err := json.Unmarshal(out, &d); err != nil {
			t.Fatalf("%s: %v\n%s", tier, err, out)
		}
		if d.Tier != tier || len(d.Promises) < 8 {
			t.Errorf("%s: doctor found %q with %d promises", tier, d.Tier, len(d.Promises))
		}
		for _, p := range d.Promises {
			if !p.Kept && (p.Why == "" || p.Cure == "") {
				t.Errorf("%s: %s does not hold, why %q, cure %q", tier, p.Name, p.Why, p.Cure)
			}
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s: doctor left %v", tier, left)
		}
	}
}
