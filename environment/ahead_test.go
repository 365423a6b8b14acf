package environment_test

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/environment"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/fake"
)

// ahead makes an environment provisioned.
func ahead(cfg *environment.Config, _ *fake.Driver) { cfg.InitType = environment.Provisioned }

// An initialisation ahead has a report of its own and minutes of time; its duration
// is in the first report, where it is not billed again.
func TestInitialisedAhead(t *testing.T) {
	var kind string
	live(t, map[string]fake.Program{
		bootstrap: func(p *fake.Proc) sandbox.Exit {
			kind = p.Getenv("AWS_LAMBDA_INITIALIZATION_TYPE")
			return slowly(129*time.Second, takes(10*time.Millisecond, ""))(p)
		},
	}, ahead, func(l *life) {
		l.invoke("r1")
		l.invoke("r2")
		<-l.idle
		l.wantLog("INIT_START Runtime Version: provided:test\tRuntime Version ARN: arn:runtime\n" +
			"INIT_REPORT Init Duration: 129000.00 ms\n" +
			"START RequestId: r1 Version: $LATEST\nworking\nEND RequestId: r1\n" +
			"REPORT RequestId: r1\tDuration: 10.00 ms\tBilled Duration: 10 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\tInit Duration: 129000.00 ms\t\n" +
			"START RequestId: r2 Version: $LATEST\nworking\nEND RequestId: r2\n" +
			"REPORT RequestId: r2\tDuration: 10.00 ms\tBilled Duration: 10 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\t\n")
		if kind != "provisioned-concurrency" {
			t.Errorf("AWS_LAMBDA_INITIALIZATION_TYPE=%s", kind)
		}
	})
}

// An environment that failed to initialise ahead ends, after its limit or at once.
func TestInitialisedAheadFails(t *testing.T) {
	for _, c := range []struct {
		name    string
		program fake.Program
		timeout time.Duration
		after   time.Duration
		report  string
	}{
		{"exits", slowly(20*time.Millisecond, exits(1)), 3 * time.Second, 20 * time.Millisecond, "20.00 ms\tPhase: init\tStatus: error\tError Type: Runtime.ExitError"},
		{"hangs", hangs, 3 * time.Second, 130 * time.Second, "130000.00 ms\tPhase: init\tStatus: timeout"},
		{"hangs with a long timeout", hangs, 900 * time.Second, 900 * time.Second, "900000.00 ms\tPhase: init\tStatus: timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			live(t, map[string]fake.Program{bootstrap: c.program}, func(cfg *environment.Config, d *fake.Driver) {
				ahead(cfg, d)
				cfg.Version.Timeout = c.timeout
			}, func(l *life) {
				begun := time.Now()
				<-l.Done()
				if took := time.Since(begun); took != c.after {
					t.Errorf("ended after %s", took)
				}
				if len(l.ended) != 1 || !errors.Is(l.ended[0], environment.ErrInit) {
					t.Errorf("ended with %v", l.ended)
				}
				if len(l.idle) != 0 {
					t.Error("it was said to be idle")
				}
				if log := string(l.log.Bytes()); !strings.HasSuffix(log, "INIT_REPORT Init Duration: "+c.report+"\n") {
					t.Errorf("log %s", log)
				}
			})
		})
	}
}

// An environment that was initialised ahead and lost its processes ends: there is
// no suppressed initialisation. Whoever has just been given it is told so.
func TestInitialisedAheadLost(t *testing.T) {
	for _, c := range []struct {
		name    string
		freezes time.Duration
		payload string // kills the runtime when "dies"
	}{
		{"while idle", 0, ""},
		{"while frozen", 2 * time.Second, ""},
		{"in an invocation", 0, "dies"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var proc *fake.Proc
			live(t, map[string]fake.Program{
				bootstrap: func(p *fake.Proc) sandbox.Exit { proc = p; return takes(0, "dies")(p) },
				ext:       extension("ext", `"INVOKE","SHUTDOWN"`, 0),
			}, ahead, func(l *life) {
				l.invoke("r1")
				<-l.idle
				time.Sleep(c.freezes)
				if c.payload != "" {
					r, err := l.Invoke(context.Background(), &lambdad.Invocation{RequestID: "r2", InvokedARN: "arn:f", Payload: []byte(`"dies"`)})
					if err != nil || !regexp.MustCompile("Runtime.ExitError").Match(r.Payload) {
						t.Errorf("%v %v", r, err)
					}
				} else {
					proc.Kill(syscall.SIGKILL)
				}
				<-l.Done()
				if len(l.ended) != 1 || l.ended[0] == nil || errors.Is(l.ended[0], environment.ErrInit) {
					t.Errorf("ended with %v", l.ended)
				}
				if _, err := l.Invoke(context.Background(), &lambdad.Invocation{RequestID: "r3"}); !errors.Is(err, environment.ErrEnded) {
					t.Errorf("%v", err)
				}
				if got := l.events.types(); slices.Contains(got, "initStart invoke") {
					t.Errorf("events %q", got)
				}
				if trace := l.box.Trace(); slices.Contains(trace, "reset") || trace[len(trace)-1] != "destroy" {
					t.Errorf("trace %q", trace)
				}
			})
		})
	}
}
