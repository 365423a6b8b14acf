// Package environmenttest is the suite every combination of environment and
// sandbox driver passes: the failure matrix of lifecycle.md section 7 and the
// rules beside it, with processes that follow scripts. The same scripts run as
// functions in sandbox/fake and as a real program (probe) in real drivers.
package environmenttest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/environment"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/telemetry"
)

// A Rig is a driver under test.
type Rig struct {
	// Driver makes the driver of one case.
	Driver func(t *testing.T) sandbox.Driver
	// Probe is the path of the built probe program; "": scripts are run by
	// Program, and any file will do in its place.
	Probe string
	// Mounts are added to those of each case, for what the probe needs.
	Mounts []sandbox.Mount
	// Around runs the body of a case, such as in a synctest bubble; nil: as it is.
	Around func(t *testing.T, body func(t *testing.T))
	// Parallel runs the cases beside each other.
	Parallel bool
	// NoFlush leaves out cases that need processes to be sandbox.Flushers.
	NoFlush bool
	// NoMemoryLimit leaves out cases that need one.
	NoMemoryLimit bool
}

// A Case is one life of an environment.
type Case struct {
	Name       string
	Runtime    string            // script of /var/task/bootstrap; "": there is none
	Extensions map[string]string // scripts by file name
	Broken     map[string]string // more extension files: content; "x" before it: executable
	Timeout    time.Duration     // 0: 1 s where the case waits for it, else 10 s
	Memory     int               // MB; 0: 128

	Invokes []Want
	// Log is what the log holds, each a regular expression that must match a
	// line; one that begins with ! must match none.
	Log []string
	// NeedsFlush marks a case whose output has its place in the log.
	NeedsFlush bool
	// NeedsLimit marks a case that needs a memory limit.
	NeedsLimit bool
}

// A Want is an invocation and what comes of it.
type Want struct {
	// Body is the answer; <id> stands for the request id.
	Body   string
	Failed bool // FunctionError is set
	// Report is what follows Max Memory Used in the REPORT line.
	Report string
	// Within bounds the time to the answer; 0: not checked.
	Within time.Duration
}

const (
	again      = `{"attempt":2}`
	same       = `{"attempt":1}`
	statusErr  = "\tStatus: error\tError Type: "
	statusTime = "\tStatus: timeout"
)

func platform(errorType, text string) string {
	return `{"errorType":"` + errorType + `","errorMessage":"RequestId: <id> Error: ` + text + `"}`
}

// watcher is an extension that tells what it sees.
func watcher(name string) string {
	return "register " + name + " INVOKE,SHUTDOWN\nevents"
}

// Cases are the rows of the matrix, by their numbers, and further rules.
func Cases() []Case {
	ok := Want{Body: same, Report: "\t"}
	fresh := Want{Body: again, Report: "\t"}
	watch := map[string]string{"watch.sh": watcher("watch.sh")}
	failed := func(body, report string) Want { return Want{Body: body, Failed: true, Report: report} }
	sawFailure, sawTimeout := `^watch.sh saw SHUTDOWN failure$`, `^watch.sh saw SHUTDOWN timeout$`
	ready := `^EXTENSION\tName: watch.sh\tState: Ready\tEvents: \[INVOKE, SHUTDOWN\]$`

	return []Case{{
		Name: "success", Runtime: "serve", Extensions: watch,
		Invokes: []Want{ok, ok, ok},
		Log:     []string{ready, `^watch.sh saw INVOKE$`, `^watch.sh saw SHUTDOWN spindown$`},
	}, {
		Name: "01 handler error", Runtime: "next\nerror Function.Oops {\"errorMessage\":\"m\",\"errorType\":\"T\",\"extra\":1}\nserve", Extensions: watch,
		Invokes: []Want{failed(`{"errorMessage":"m","errorType":"T","extra":1}`, "\t"), ok},
		Log:     []string{`^watch.sh saw SHUTDOWN spindown$`},
	}, {
		Name: "02 timeout", Runtime: "first next\nfirst hang\nserve", Extensions: watch, Timeout: time.Second,
		Invokes: []Want{failed(platform("Sandbox.Timedout", "Task timed out after 1.00 seconds"), statusTime), fresh},
		Log:     []string{sawTimeout, `^REPORT RequestId: \S+\tDuration: 1000.00 ms\tBilled Duration: 1\d\d\d ms\t.*Status: timeout$`},
	}, {
		Name: "03 timeout after the answer, runtime", Runtime: "first next\nfirst respond {\"answered\":true}\nfirst hang\nserve", Extensions: watch,
		Invokes: []Want{{Body: `{"answered":true}`, Report: statusTime, Within: 500 * time.Millisecond}, fresh},
		Log:     []string{sawTimeout},
	}, {
		Name: "03 timeout after the answer, extension", Runtime: "serve",
		Extensions: map[string]string{"slow": "register slow INVOKE,SHUTDOWN\nevent\nfirst hang\nevents"},
		Invokes:    []Want{{Body: same, Report: statusTime, Within: 500 * time.Millisecond}, fresh},
		Log:        []string{`!slow saw SHUTDOWN timeout`},
	}, {
		Name: "04 exit 0", Runtime: "first next\nfirst print last words\nfirst exit 0\nserve", Extensions: watch,
		Invokes: []Want{failed(platform("Runtime.ExitError", "Runtime exited without providing a reason"), statusErr+"Runtime.ExitError"), fresh},
		Log:     []string{sawFailure, `^last words$`},
	}, {
		Name: "05 exit 3", Runtime: "first next\nfirst exit 3\nserve", Extensions: watch,
		Invokes: []Want{failed(platform("Runtime.ExitError", "Runtime exited with error: exit status 3"), statusErr+"Runtime.ExitError"), fresh},
		Log:     []string{sawFailure},
	}, {
		Name: "06 killed", Runtime: "first next\nfirst kill\nserve", Extensions: watch,
		Invokes: []Want{failed(platform("Runtime.ExitError", "Runtime exited with error: signal: killed"), statusErr+"Runtime.ExitError"), fresh},
		Log:     []string{sawFailure},
	}, {
		Name: "07 out of memory", Runtime: "first next\nfirst oom\nserve", Extensions: watch, Timeout: 20 * time.Second, NeedsLimit: true,
		Invokes: []Want{failed(platform("Runtime.OutOfMemory", "Runtime exited with error: signal: killed"), statusErr+"Runtime.OutOfMemory"), fresh},
		Log:     []string{sawFailure, `Memory Size: 128 MB\tMax Memory Used: 128 MB\t.*Runtime.OutOfMemory`},
	}, {
		Name: "08 extension exits 0", Runtime: "first next\nfirst hang\nserve",
		Extensions: map[string]string{"watch.sh": watcher("watch.sh"), "bad": "register bad INVOKE\nevent\nfirst exit 0\nevents"},
		Invokes:    []Want{failed(platform("Extension.Crash", "exit code 0"), statusErr+"Extension.Crash"), fresh},
		Log:        []string{sawFailure},
	}, {
		Name: "08 extension exits 4", Runtime: "first next\nfirst hang\nserve",
		Extensions: map[string]string{"bad": "register bad INVOKE\nevent\nfirst exit 4\nevents"},
		Invokes:    []Want{failed(platform("Extension.Crash", "exit status 4"), statusErr+"Extension.Crash"), fresh},
	}, {
		Name: "08 extension killed", Runtime: "first next\nfirst hang\nserve",
		Extensions: map[string]string{"bad": "register bad INVOKE\nevent\nfirst kill\nevents"},
		Invokes:    []Want{failed(platform("Extension.Crash", "signal: killed"), statusErr+"Extension.Crash"), fresh},
	}, {
		Name: "09 extension reports its exit", Runtime: "first next\nfirst hang\nserve",
		Extensions: map[string]string{"bad": "register bad INVOKE\nevent\nfirst xexit Extension.MyReason\nfirst exit 2\nevents"},
		Invokes:    []Want{failed(platform("Extension.ExitError", "exit status 2"), statusErr+"Extension.ExitError"), fresh},
	}, {
		Name: "10 extension crashes after the answer", Runtime: "serve",
		Extensions: map[string]string{"watch.sh": watcher("watch.sh"), "bad": "register bad INVOKE\nevent\nfirst sleep 200ms\nfirst exit 1\nevents"},
		Invokes:    []Want{{Body: same, Report: statusErr + "Extension.Crash", Within: 150 * time.Millisecond}, fresh},
		Log:        []string{sawFailure},
	}, {
		Name: "11 extension without x bit", Runtime: "serve", Broken: map[string]string{"README.md": "read me\n"},
		Invokes: []Want{failed(platform("Extension.LaunchError", "fork/exec /opt/extensions/README.md: permission denied"), statusErr+"Extension.LaunchError")},
		Log: []string{`^EXTENSION\tName: README.md\tState: LaunchError\tEvents: \[\]\tError Type: PermissionDenied$`,
			`^INIT_REPORT Init Duration: \d+\.\d\d ms\tPhase: init\tStatus: error\tError Type: Extension.LaunchError$`,
			`^INIT_REPORT Init Duration: \d+\.\d\d ms\tPhase: invoke\tStatus: error\tError Type: Extension.LaunchError$`},
	}, {
		Name: "12 eleven extensions", Runtime: "serve", Extensions: eleven(),
		Invokes: []Want{failed(platform("Extension.LaunchError", "Extension limit (10) reached"), statusErr+"Extension.LaunchError")},
		Log:     []string{`^EXTENSION\tName: x10\tState: LaunchError\tEvents: \[\]\tError Type: TooManyExtensions$`},
	}, {
		Name: "13 extension reports a failed init", Runtime: "serve",
		Extensions: map[string]string{"bad": "register bad INVOKE\nxinit Extension.NoConfig\nexit 1"},
		Invokes:    []Want{failed(platform("Extension.InitError", "exit status 1"), statusErr+"Extension.InitError")},
		Log:        []string{`^EXTENSION\tName: bad\tState: InitError\tEvents: \[INVOKE\]\tError Type: Extension.NoConfig$`},
	}, {
		Name: "13 and exits 0", Runtime: "serve",
		Extensions: map[string]string{"bad": "register bad INVOKE\nxinit Extension.NoConfig\nexit 0"},
		Invokes:    []Want{failed(platform("Extension.InitError", "exit code 0"), statusErr+"Extension.InitError")},
	}, {
		Name: "14 extension exits before it registered", Runtime: "serve", Extensions: map[string]string{"bad": "exit 5"},
		Invokes: []Want{failed(platform("Extension.Crash", "exit status 5"), statusErr+"Extension.Crash")},
		Log:     []string{`^EXTENSION\tName: bad\tState: Started\tEvents: \[\]$`},
	}, {
		Name: "14 extension exits before it is ready", Runtime: "hang", Extensions: map[string]string{"bad": "register bad INVOKE\nsleep 50ms\nexit 0"},
		Invokes: []Want{failed(platform("Extension.Crash", "exit code 0"), statusErr+"Extension.Crash")},
		Log:     []string{`^EXTENSION\tName: bad\tState: Registered\tEvents: \[INVOKE\]$`},
	}, {
		Name: "15 runtime reports a failed init", Extensions: watch,
		Runtime: "initerror Runtime.ImportModuleError {\"errorMessage\":\"no\",\"errorType\":\"Runtime.ImportModuleError\",\"requestId\":\"\"}\nexit 1",
		Invokes: []Want{failed(`{"errorMessage":"no","errorType":"Runtime.ImportModuleError","requestId":""}`, statusErr+"Runtime.ImportModuleError")},
		Log:     []string{sawFailure, `^INIT_REPORT Init Duration: \d+\.\d\d ms\tPhase: init\tStatus: error\tError Type: Runtime.ImportModuleError$`},
	}, {
		Name: "16 runtime exits during init", Runtime: "print oh\nexit 1", Extensions: watch,
		Invokes: []Want{failed(platform("Runtime.ExitError", "Runtime exited with error: exit status 1"), statusErr+"Runtime.ExitError")},
		Log:     []string{sawFailure, `^oh$`},
	}, {
		Name: "16 runtime exits 0 in the first init only", Runtime: "first exit 0\nserve",
		Invokes: []Want{{Body: again, Report: "\t"}, {Body: again, Report: "\t"}},
		Log:     []string{`^INIT_REPORT Init Duration: \d+\.\d\d ms\tPhase: init\tStatus: error\tError Type: Runtime.ExitError$`, `!Phase: invoke`, `!\tInit Duration`},
	}, {
		Name: "17 no bootstrap", Extensions: watch,
		Invokes: []Want{failed(platform("Runtime.InvalidEntrypoint", "Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]"), statusErr+"Runtime.InvalidEntrypoint")},
	}, {
		Name: "19 init limit", Runtime: "first hang\nserve", Extensions: watch,
		Invokes: []Want{fresh},
		Log:     []string{`^INIT_REPORT Init Duration: 10\d\d\d\.\d\d ms\tPhase: init\tStatus: timeout$`, sawTimeout},
	}, {
		Name: "19 misnamed extension", Runtime: "serve", Extensions: map[string]string{"otel.sh": "register otel INVOKE\nevents"},
		Invokes: []Want{failed(platform("Sandbox.Timedout", "Task timed out after 1.00 seconds"), statusTime)},
		Log:     []string{`^EXTENSION\tName: otel.sh\tState: Started\tEvents: \[\]$`, `^EXTENSION\tName: otel\tState: Ready\tEvents: \[INVOKE\]$`},
	}, {
		Name: "20 suppressed init exceeds the timeout", Runtime: "hang", Extensions: watch,
		Invokes: []Want{failed(platform("Sandbox.Timedout", "Task timed out after 1.00 seconds"), statusTime)},
		Log: []string{`^INIT_REPORT Init Duration: 1\d\d\d\.\d\d ms\tPhase: invoke\tStatus: timeout$`,
			`^REPORT RequestId: \S+\tDuration: 1000.00 ms\tBilled Duration: 1000 ms\t`},
	}, {
		Name: "21 response too large", Runtime: "next\nbig 6291557\nserve",
		Invokes: []Want{failed(`{"errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes).","errorType":"Function.ResponseSizeTooLarge"}`, "\t"), ok},
	}, {
		Name: "21 largest response", Runtime: "next\nbig 6291556\nserve",
		Invokes: []Want{{Body: strings.Repeat("x", 6291556), Report: "\t"}, ok},
	}, {
		Name: "22 truncated response", Runtime: "next\ntruncated\nsleep 100ms\nserve",
		Invokes: []Want{failed(platform("Runtime.TruncatedResponse", "HTTP request detected as truncated"), "\t"), ok},
	}, {
		Name: "23 unknown response mode", Runtime: "next\nbadmode\nserve",
		Invokes: []Want{failed(`{"errorType":"Runtime.InvalidResponseModeHeader","errorMessage":""}`, "\t"), ok},
	}, {
		Name: "24 wrapper missing", Runtime: "exit 127",
		Invokes: []Want{failed(platform("Runtime.ExitError", "Runtime exited with error: exit status 127"), statusErr+"Runtime.ExitError")},
	}, {
		Name: "first fatal error wins", Runtime: "first next\nfirst hang\nserve",
		Extensions: map[string]string{
			"bad":   "register bad INVOKE\nevent\nfirst xexit Extension.First\nfirst sleep 100ms\nfirst exit 1\nevents",
			"other": "register other INVOKE\nevent\nfirst sleep 300ms\nfirst exit 9\nevents",
		},
		Invokes: []Want{failed(platform("Extension.ExitError", "exit status 1"), statusErr+"Extension.ExitError"), fresh},
	}, {
		Name: "endless answer", Runtime: "first next\nfirst endless\nserve", Extensions: watch,
		Invokes: []Want{failed(platform("Sandbox.Timedout", "Task timed out after 1.00 seconds"), statusTime), fresh},
		Log:     []string{sawTimeout},
	}, {
		Name: "SHUTDOWN only does not hold invocations", Runtime: "serve",
		Extensions: map[string]string{"late": "register late SHUTDOWN\nevents"},
		Invokes:    []Want{ok, ok},
		Log:        []string{`!late saw INVOKE`, `^late saw SHUTDOWN spindown$`},
	}, {
		Name: "no events at all", Runtime: "serve", Extensions: map[string]string{"adapter": "register adapter -\nevents"},
		Invokes: []Want{ok, ok},
		Log:     []string{`^EXTENSION\tName: adapter\tState: Ready\tEvents: \[\]$`, `!adapter saw`},
	}, {
		Name: "slow extension does not delay the answer", Runtime: "serve",
		Extensions: map[string]string{"slow": "register slow INVOKE\nevent\nsleep 700ms\nevents"},
		Invokes:    []Want{{Body: same, Report: "\t", Within: 500 * time.Millisecond}, ok},
		Log:        []string{`^REPORT .*\tDuration: 7\d\d\.\d\d ms`},
	}, {
		Name: "internal extension", Runtime: "internal helper INVOKE\nonterm exit\nserve",
		Invokes: []Want{ok, ok},
		Log:     []string{`^EXTENSION\tName: helper\tState: Ready\tEvents: \[INVOKE\]$`, `^helper saw INVOKE$`, `^got SIGTERM$`},
	}, {
		Name: "output comes before the end", Runtime: "serve said", Invokes: slices.Repeat([]Want{ok}, 20), NeedsFlush: true,
		Log: []string{`\A(START [^\n]*\nsaid\nEND [^\n]*\nREPORT [^\n]*\n){20}\z`},
	}, {
		Name: "no SIGTERM without extensions", Runtime: "onterm exit\nserve",
		Invokes: []Want{ok},
		Log:     []string{`!got SIGTERM`},
	}, {
		Name: "SIGTERM with an external extension", Runtime: "onterm ignore\nserve", Extensions: watch,
		Invokes: []Want{ok},
		Log:     []string{`^got SIGTERM$`, `^watch.sh saw SHUTDOWN spindown$`},
	}, {
		Name: "a child that holds the pipes", Runtime: "first next\nfirst fork hang\nfirst exit 1\nserve",
		Invokes: []Want{failed(platform("Runtime.ExitError", "Runtime exited with error: exit status 1"), statusErr+"Runtime.ExitError"), fresh},
	}}
}

func eleven() map[string]string {
	m := map[string]string{}
	for i := range 11 {
		name := fmt.Sprintf("x%02d", i)
		m[name] = watcher(name)
	}
	return m
}

// Run runs every case.
func Run(t *testing.T, rig Rig) {
	for _, c := range Cases() {
		if c.NeedsLimit && rig.NoMemoryLimit || c.NeedsFlush && rig.NoFlush {
			continue // this driver does not promise it here
		}
		t.Run(c.Name, func(t *testing.T) {
			if rig.Parallel {
				t.Parallel()
			}
			around := rig.Around
			if around == nil {
				around = func(t *testing.T, body func(*testing.T)) { body(t) }
			}
			around(t, func(t *testing.T) { rig.run(t, c) })
		})
	}
}

var reportLine = regexp.MustCompile(`(?m)^REPORT RequestId: (\S+)\t.*Max Memory Used: (\d+) MB(?:\tInit Duration: [\d.]+ ms)?(.*)$`)

func (rig Rig) run(t *testing.T, c Case) {
	driver := rig.Driver(t)
	task, opt := t.TempDir(), t.TempDir()
	for _, dir := range []string{task, opt, filepath.Dir(task)} {
		os.Chmod(dir, 0o755)
	}
	if c.Runtime != "" {
		rig.program(t, filepath.Join(task, "bootstrap"), c.Runtime)
	}
	for name, script := range c.Extensions {
		rig.program(t, filepath.Join(opt, "extensions", name), script)
	}
	for name, content := range c.Broken {
		mode := os.FileMode(0o644)
		if rest, ok := strings.CutPrefix(content, "x"); ok {
			content, mode = rest, 0o755
		}
		write(t, filepath.Join(opt, "extensions", name), []byte(content), mode)
	}
	memory := c.Memory
	if memory == 0 {
		memory = 128
	}
	timeout := c.Timeout
	if timeout == 0 {
		timeout = 10 * time.Second // a busy machine is no failure
		for _, w := range c.Invokes {
			if strings.Contains(w.Report, statusTime) {
				timeout = time.Second
			}
		}
	}
	box, err := driver.Create(context.Background(), sandbox.Spec{
		ID:       identifier(t.Name()),
		TmpBytes: 64 << 20, MemoryBytes: int64(memory) << 20,
		Mounts: append([]sandbox.Mount{
			{Target: "/var/task", Sources: []string{task}},
			{Target: "/opt", Sources: []string{opt}},
		}, rig.Mounts...),
	})
	if err != nil {
		t.Fatal(err)
	}
	log := telemetry.NewTail(telemetry.Format{}, 1<<20)
	idle := make(chan struct{}, 16)
	e := environment.Start(environment.Config{
		ID: strings.Repeat("0", 32),
		Version: &lambdad.Version{
			Account: "123456789012", Region: "us-east-1", Function: "f", Number: "$LATEST",
			Runtime: "provided.al2023", Handler: "h", MemoryMB: memory, Timeout: timeout,
		},
		Entrypoints: []string{"/var/task/bootstrap", "/opt/bootstrap"},
		Sandbox:     box, Stream: telemetry.NewStream(log), FreezeDelay: 10 * time.Millisecond,
		OnIdle: func(*environment.Environment) { idle <- struct{}{} },
	})
	defer func() { e.Kill(); <-e.Done() }()

	var reports []string
	for i, want := range c.Invokes {
		select {
		case <-idle:
		case <-time.After(40 * time.Second):
			t.Fatalf("invocation %d: the environment does not become idle; its log:\n%s", i+1, log.Bytes())
		}
		time.Sleep(30 * time.Millisecond) // and freezes
		id := fmt.Sprintf("00000000-0000-4000-8000-%012d", i+1)
		begun := time.Now()
		r, err := e.Invoke(context.Background(), &lambdad.Invocation{RequestID: id, Payload: []byte(`{}`)})
		if err != nil {
			t.Fatalf("invocation %d: %v; log:\n%s", i+1, err, log.Bytes())
		}
		if took := time.Since(begun); want.Within > 0 && took > want.Within {
			t.Errorf("invocation %d took %v, want at most %v", i+1, took, want.Within)
		}
		if body := strings.ReplaceAll(want.Body, "<id>", id); string(r.Payload) != body {
			t.Errorf("invocation %d: got %s\nwant %s", i+1, cut(string(r.Payload)), cut(body))
		}
		if failed := r.FunctionError == "Unhandled"; failed != want.Failed {
			t.Errorf("invocation %d: FunctionError %q", i+1, r.FunctionError)
		}
		if r.ExecutedVersion != "$LATEST" {
			t.Errorf("invocation %d: executed version %q", i+1, r.ExecutedVersion)
		}
		reports = append(reports, id+want.Report)
	}
	select {
	case <-idle:
	case <-time.After(20 * time.Second):
		t.Fatalf("the environment does not become idle; its log:\n%s", log.Bytes())
	}
	e.Shutdown(context.Background())

	text := string(log.Bytes())
	var got []string
	for _, m := range reportLine.FindAllStringSubmatch(text, -1) {
		got = append(got, m[1]+m[3])
	}
	if !slices.Equal(got, reports) {
		t.Errorf("reports %q\nwant %q", got, reports)
	}
	for _, pattern := range c.Log {
		pattern, absent := strings.CutPrefix(pattern, "!")
		if regexp.MustCompile("(?m)"+pattern).MatchString(text) == absent {
			t.Errorf("the log has %q: %v, want %v", pattern, absent, !absent)
		}
	}
	if t.Failed() {
		t.Logf("log:\n%s", text)
	}
}

func cut(s string) string {
	if len(s) > 300 {
		return s[:300] + fmt.Sprintf("… (%d bytes)", len(s))
	}
	return s
}

func (rig Rig) program(t *testing.T, path, script string) {
	content := []byte("#!probe\n")
	if rig.Probe != "" {
		var err error
		if content, err = os.ReadFile(rig.Probe); err != nil {
			t.Fatal(err)
		}
	}
	write(t, path, content, 0o755)
	write(t, scriptFile(path), []byte(script), 0o644)
}

func write(t *testing.T, path string, content []byte, mode os.FileMode) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
}

// identifier makes a sandbox id of a test's name.
func identifier(name string) string {
	var h uint64 = 14695981039346656037
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return fmt.Sprintf("t%016x", h)
}
