// Package runtimes_test is the conformance suite of runtimes: a probe function in
// every language reports what it sees, and that is compared with the specification
// (runtimes.md sections 1.1 to 1.3, lifecycle.md sections 10 to 12) and with what
// `lambdad explain` says, without an extension and with external and internal ones.
package runtimes_test

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/integration/harness"
)

var (
	all    = flag.Bool("all", false, "every identifier of `lambdad runtime list`, not one of each kind")
	only   = flag.String("only", "", "only identifiers that begin so, and their rows of the table")
	update = flag.Bool("update", false, "write the table of docs/compatibility.md")
)

func TestMain(m *testing.M) { harness.Main(m) }

// memory is that of all probes, in MB: Java has flags of it, Node.js too.
const memory = 512

// A kind is a language as the suite sees it.
type kind struct {
	handler string
	files   func(t *testing.T, k *kind) map[string]string // of the function
	layer   map[string]string                             // of the internal extension
	// wrap is what the wrapper puts behind the interpreter's name, and wrapEnv what
	// it exports; hook is the variable that loads the extension without a wrapper.
	wrap, wrapEnv string
	hook          map[string]string
	args          string            // pattern of the command line, joined by blanks
	env           map[string]string // beside what all have; "": must be absent
}

func data(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func kinds(t *testing.T, id string) *kind {
	release := regexp.MustCompile(`\d+(\.\d+)?`).FindString(id)
	release = strings.TrimSuffix(release, ".")
	switch {
	case strings.HasPrefix(id, "python"):
		return &kind{
			handler: "probe.handler", files: func(t *testing.T, _ *kind) map[string]string {
				return map[string]string{"probe.py": data(t, "python/probe.py")}
			},
			layer: map[string]string{"hook/sitecustomize.py": data(t, "python/sitecustomize.py")},
			wrap:  "-X faulthandler", wrapEnv: "PYTHONPATH=/opt/hook:/var/runtime",
			hook: map[string]string{"PYTHONPATH": "/opt/hook:/var/runtime"},
			args: `^/var/lang/bin/python3\.\d+ (-X faulthandler )?/var/runtime/bootstrap\.py$`,
			env:  map[string]string{"PYTHONPATH": "/var/runtime", "SHLVL": "0", "PWD": "/var/task"},
		}
	case strings.HasPrefix(id, "nodejs"):
		return &kind{
			handler: "probe.handler", files: func(t *testing.T, _ *kind) map[string]string {
				return map[string]string{"probe.js": data(t, "nodejs/probe.js")}
			},
			layer: map[string]string{"hook.cjs": data(t, "nodejs/hook.cjs")},
			wrap:  "--require /opt/hook.cjs", hook: map[string]string{"NODE_OPTIONS": "--require /opt/hook.cjs"},
			args: `^/var/lang/bin/node (--require /opt/hook.cjs )?--max-semi-space-size=25 --max-old-space-size=460 (--no-experimental-require-module --no-experimental-detect-module )?/var/runtime/index\.mjs$`,
			env: map[string]string{"SHLVL": "0", "PWD": "/var/task", "NODE_EXTRA_CA_CERTS": "",
				"NODE_PATH": "/opt/nodejs/node" + strings.TrimSuffix(release, ".") + "/node_modules:/opt/nodejs/node_modules:/var/runtime/node_modules:/var/runtime:/var/task"},
		}
	case strings.HasPrefix(id, "ruby"):
		return &kind{
			handler: "probe.handler", files: func(t *testing.T, _ *kind) map[string]string {
				return map[string]string{"probe.rb": data(t, "ruby/probe.rb")}
			},
			layer: map[string]string{"hook.rb": data(t, "ruby/hook.rb")},
			wrap:  "-r/opt/hook.rb", hook: map[string]string{"RUBYOPT": "-r/opt/hook.rb"},
			args: `^/var/lang/bin/ruby[\d.]* (-r/opt/hook\.rb )?/var/runtime/lambdad_runtime\.rb$`,
			env: map[string]string{"GEM_HOME": "/var/runtime", "GEM_PATH": "/var/task/vendor/bundle/ruby/" + release + ".0:/opt/ruby/gems/" + release + ".0:/var/runtime:/var/runtime/ruby/" + release + ".0",
				"RUBYLIB": "/var/task:/var/runtime/lib:/opt/ruby/lib", "SHLVL": "0", "PWD": "/var/task"},
		}
	case strings.HasPrefix(id, "java"):
		return &kind{
			handler: "Probe", files: func(t *testing.T, _ *kind) map[string]string { return javaOf(t).function },
			wrap: "-javaagent:/opt/agent.jar", hook: map[string]string{"JAVA_TOOL_OPTIONS": "-javaagent:/opt/agent.jar"},
			layer: javaOf(t).agent,
			args:  `^/var/lang/bin/java (-javaagent:/opt/agent\.jar )?-XX:MaxHeapSize=445645k -XX:MaxMetaspaceSize=52428k -XX:ReservedCodeCacheSize=26214k -XX:\+UseSerialGC -XX:TieredStopAtLevel=1 -Djava\.net\.preferIPv4Stack=true --add-opens=java\.base/java\.io=ALL-UNNAMED (--enable-native-access=ALL-UNNAMED )?-classpath /var/runtime/lib/\* com\.amazonaws\.services\.lambda\.runtime\.api\.client\.AWSLambda Probe$`,
			env:   map[string]string{"AWS_ACCESS_KEY": "", "PWD": "", "SHLVL": ""},
		}
	}
	return &kind{
		handler: "bootstrap", args: `^/var/task/bootstrap$`, env: map[string]string{"AWS_EXECUTION_ENV": "", "PYTHONPATH": "", "PWD": ""},
		files: func(t *testing.T, _ *kind) map[string]string {
			return map[string]string{"bootstrap": program(t, "rtprobe")}
		},
	}
}

func program(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(harness.Program(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

type javaFiles struct{ function, agent map[string]string }

var java = struct {
	sync.Once
	javaFiles
	err error
}{}

// javaOf compiles the probe and the agent once.
func javaOf(t *testing.T) javaFiles {
	t.Helper()
	java.Do(func() {
		dir := t.TempDir()
		home, jars := filepath.Join(dir, "home"), ""
		// The core classes are where the server put them.
		_ = filepath.WalkDir(serverDir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasPrefix(d.Name(), "aws-lambda-java-core-") && strings.HasSuffix(path, ".jar") {
				jars = path
			}
			return nil
		})
		javac := "javac"
		if found, _ := filepath.Glob("/usr/lib/jvm/*-17-*/bin/javac"); len(found) > 0 {
			javac = found[0]
		}
		out, err := exec.Command(javac, "--release", "17", "-cp", jars, "-d", home, "testdata/java/Probe.java", "testdata/java/Agent.java").CombinedOutput()
		if err != nil {
			java.err = fmt.Errorf("javac: %w: %s", err, out)
			return
		}
		class := func(name string) string {
			b, err := os.ReadFile(filepath.Join(home, name))
			if err != nil {
				java.err = err
			}
			return string(b)
		}
		java.function = map[string]string{"Probe.class": class("Probe.class")}
		jar := zipOf(t, map[string]string{"META-INF/MANIFEST.MF": "Manifest-Version: 1.0\nPremain-Class: Agent\n", "Agent.class": class("Agent.class")})
		java.agent = map[string]string{"agent.jar": string(jar)}
	})
	if java.err != nil {
		t.Fatal(java.err)
	}
	return java.javaFiles
}

var serverDir string // data directory of the server under test

// zipOf makes a zip; scripts and programs are executable.
func zipOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(0o644)
		if strings.HasPrefix(files[name], "#!") || strings.HasPrefix(files[name], "\x7fELF") {
			h.SetMode(0o755)
		}
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = f.Write([]byte(files[name]))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// seen is what a probe reports.
type seen struct {
	Env         map[string]string
	Args        []string
	CWD         string
	Status      string
	Limits      string
	Meminfo     string
	Writable    map[string]bool
	Event       json.RawMessage
	RemainingMS int
	Context     struct {
		Name, Version, ARN, Memory, RequestID, Group, Stream string
		Custom                                               map[string]string
	}
}

// A listed runtime is a row of `lambdad runtime list`.
type listed struct {
	Name, Version, Interpreter, Source string
	Usable                             bool
}

func TestRuntimes(t *testing.T) {
	harness.NeedRoot(t)
	serverDir = t.TempDir()
	out, err := exec.Command(harness.Program(t, "lambdad"), "runtime", "list", "--output", "json", "--data-dir", serverDir).Output()
	if err != nil {
		t.Fatal(err)
	}
	var list []listed
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatal(err)
	}
	sample := []string{"python3.11", "nodejs20.x", "nodejs24.x", "ruby3.3", "java17", "provided.al2023"}
	var table []listed
	for _, r := range list {
		if *only != "" && !strings.HasPrefix(r.Name, *only) {
			continue
		}
		if *all && r.Usable {
			table = append(table, r)
		}
		if !*all && slices.Contains(sample, r.Name) {
			if !r.Usable {
				t.Errorf("%s is not usable: %+v", r.Name, r)
				continue
			}
			table = append(table, r)
		}
	}
	for _, r := range table {
		if strings.HasPrefix(r.Name, "java") {
			// The client is fetched before the clock of an invocation runs.
			if out, err := exec.Command(harness.Program(t, "lambdad"), "runtime", "add", r.Name, "--data-dir", serverDir).CombinedOutput(); err != nil {
				t.Fatalf("lambdad runtime add %s: %s", r.Name, out)
			}
		}
	}
	s := harness.Start(t, serverDir)
	variants := []string{"none", "external", "wrapper", "hook"}
	results := map[string]map[string]bool{}
	type cell struct{ runtime, function, variant string }
	var cells []cell
	for _, r := range table {
		results[r.Name] = map[string]bool{}
		for _, variant := range variants {
			if strings.HasPrefix(r.Name, "provided") && (variant == "wrapper" || variant == "hook") {
				continue // the function's own bootstrap has neither
			}
			name := strings.ReplaceAll(r.Name, ".", "-") + "-" + variant
			results[r.Name][variant] = t.Run(r.Name+"/"+variant, func(t *testing.T) { probe(t, s, r, name, variant) })
			cells = append(cells, cell{r.Name, name, variant})
		}
	}
	if *only == "" {
		t.Run("proxy", func(t *testing.T) { proxied(t, s) })
	}
	// One after the other: a runtime has half a second for its end, and with all at once
	// each has a fraction of a processor in it.
	for _, c := range cells {
		if _, err := s.Client.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: &c.function}); err != nil {
			t.Error(err)
		}
		s.WaitEnvironments(20*time.Second, func(list []harness.State) bool {
			return !slices.ContainsFunc(list, func(e harness.State) bool { return e.Function == c.function })
		})
	}
	s.Stop()
	// What the log must have, to the window of SIGTERM: external extensions are told,
	// internal ones signalled.
	for _, c := range cells {
		log := harness.LogsOf(t, serverDir, c.function)
		inner := []string{"EXTENSION\tName: inner\tState: Ready\tEvents: [INVOKE]\n", "hook: INVOKE\n", "hook: SIGTERM\n"}
		for _, want := range append([]string{"probe: a line\n"}, map[string][]string{
			"external": {"EXTENSION\tName: outer\tState: Ready\tEvents: [INVOKE, SHUTDOWN]\n", "SHUTDOWN"}, "wrapper": inner, "hook": inner,
		}[c.variant]...) {
			if results[c.runtime][c.variant] && !strings.Contains(log, want) {
				t.Errorf("%s: no %q in its log:\n%s", c.function, want, log)
				results[c.runtime][c.variant] = false
			}
		}
	}
	harness.LeftOnHost(t, s.ID)
	if *update && !t.Failed() {
		writeTable(t, table, results)
	}
}

// probe runs one cell of the matrix.
func probe(t *testing.T, s *harness.Server, r listed, name, variant string) {
	ctx := t.Context()
	k := kinds(t, r.Name)
	env := map[string]string{"HOOK_NAME": "inner", "MY_TOKEN": "x y=z"}
	layer := map[string]string{}
	switch variant {
	case "external":
		layer["extensions/outer"] = program(t, "extension")
	case "wrapper":
		maps.Copy(layer, k.layer)
		export := ""
		if k.wrapEnv != "" {
			export = "export " + k.wrapEnv + "\n"
		}
		layer["wrapper"] = "#!/bin/sh\nfirst=$1\nshift\n" + export + "exec \"$first\" " + k.wrap + " \"$@\"\n"
		env["AWS_LAMBDA_EXEC_WRAPPER"] = "/opt/wrapper"
	case "hook":
		maps.Copy(layer, k.layer)
		maps.Copy(env, k.hook)
	}
	create(t, s, r.Name, name, k.handler, k.files(t, k), layer, env)
	client := base64.StdEncoding.EncodeToString([]byte(`{"custom":{"who":"é"}}`))
	out, err := s.Client.Invoke(ctx, &lambda.InvokeInput{FunctionName: &name, Payload: []byte(`{"k":"é"}`), ClientContext: &client, LogType: types.LogTypeTail})
	if err != nil {
		t.Fatal(err)
	}
	if out.FunctionError != nil {
		t.Fatalf("function error: %s\n%s", out.Payload, harness.LogsOf(t, serverDir, name))
	}
	var got seen
	if err := json.Unmarshal(out.Payload, &got); err != nil {
		t.Fatalf("%v: %s", err, out.Payload)
	}
	check(t, k, r.Name, name, variant, got)
	explained(t, s, name, got)
	if lambdad.RuntimeFamily(r.Name) != "provided" {
		recorded(t, s, name)
	}
}

// recorded holds that a record of two lines is one event of the log.
func recorded(t *testing.T, s *harness.Server, name string) {
	t.Helper()
	group, pattern := "/aws/lambda/"+name, `"probe: two"`
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		out, err := s.LogsClient().FilterLogEvents(t.Context(), &cloudwatchlogs.FilterLogEventsInput{LogGroupName: &group, FilterPattern: &pattern})
		switch {
		case err == nil && len(out.Events) > 0:
			if m := *out.Events[0].Message; !strings.Contains(m, "probe: two\nlines") {
				t.Errorf("a record of two lines has become %q", m)
			}
			return
		case time.Now().After(deadline):
			t.Fatalf("no event of the record of two lines: %v", err)
		}
	}
}

func create(t *testing.T, s *harness.Server, runtime, name, handler string, files, layer map[string]string, env map[string]string) {
	t.Helper()
	var layers []string
	if len(layer) > 0 {
		out, err := s.Client.PublishLayerVersion(t.Context(), &lambda.PublishLayerVersionInput{LayerName: &name, Content: &types.LayerVersionContentInput{ZipFile: zipOf(t, layer)}})
		if err != nil {
			t.Fatal(err)
		}
		layers = []string{*out.LayerVersionArn}
	}
	if err := s.Create(t.Context(), name, func(in *lambda.CreateFunctionInput) {
		in.Runtime, in.Handler, in.Layers = types.Runtime(runtime), &handler, layers
		in.MemorySize = aws.Int32(memory)
		in.Code = &types.FunctionCode{ZipFile: zipOf(t, files)}
		in.Environment = &types.Environment{Variables: env}
	}); err != nil {
		t.Fatal(err)
	}
}

// check compares what a probe saw with the specification.
func check(t *testing.T, k *kind, runtime, name, variant string, got seen) {
	want := map[string]string{
		"AWS_EXECUTION_ENV": "AWS_Lambda_" + runtime, "AWS_LAMBDA_FUNCTION_NAME": name, "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": fmt.Sprint(memory),
		"AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand", "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "LAMBDA_TASK_ROOT": "/var/task", "LAMBDA_RUNTIME_DIR": "/var/runtime",
		"AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/" + name, "_HANDLER": k.handler, "TZ": ":UTC", "LANG": "en_US.UTF-8", "MY_TOKEN": "x y=z",
		"PATH":                       "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
		"LD_LIBRARY_PATH":            "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
		"AWS_XRAY_CONTEXT_MISSING":   "LOG_ERROR",
		"AWS_XRAY_DAEMON_ADDRESS":    "169.254.100.1:2000",
		"_LAMBDA_TELEMETRY_LOG_FD":   map[bool]string{true: "62"}[strings.HasPrefix(runtime, "java")], // whose client leaves it
		"_LAMBDAD_OPT":               "",
		"AWS_LAMBDA_LOG_FORMAT":      "",
		"AWS_LAMBDA_MAX_CONCURRENCY": "",
	}
	maps.Copy(want, k.env)
	if variant == "wrapper" {
		delete(want, "PWD") // a shell's own
	}
	if variant == "hook" {
		maps.Copy(want, k.hook)
	}
	if key, v, ok := strings.Cut(k.wrapEnv, "="); ok && variant == "wrapper" {
		want[key] = v
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if v, ok := got.Env[key]; v != want[key] || ok != (want[key] != "") {
			t.Errorf("%s is %q, want %q", key, v, want[key])
		}
	}
	for _, key := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_LAMBDA_LOG_STREAM_NAME", "AWS_LAMBDA_RUNTIME_API"} {
		if got.Env[key] == "" {
			t.Errorf("%s is not set", key)
		}
	}
	for key := range got.Env {
		if strings.Contains(strings.ToUpper(key), "LAMBDAD") {
			t.Errorf("a variable of the platform's own: %s", key)
		}
	}
	args := strings.Join(got.Args, " ")
	if !regexp.MustCompile(k.args).MatchString(args) || (variant == "wrapper") != strings.Contains(args, " "+k.wrap+" ") {
		t.Errorf("command line %q", args)
	}
	if got.CWD != "/var/task" {
		t.Errorf("working directory %q", got.CWD)
	}
	if !regexp.MustCompile(`(?m)^Uid:\t993\t993\t993\t993$`).MatchString(got.Status) || !regexp.MustCompile(`(?m)^NoNewPrivs:\t1$`).MatchString(got.Status) {
		t.Errorf("status:\n%s", got.Status)
	}
	if !regexp.MustCompile(`(?m)^Max open files +1024 +1024 `).MatchString(got.Limits) || !regexp.MustCompile(`(?m)^Max stack size +8388608 `).MatchString(got.Limits) {
		t.Errorf("limits:\n%s", got.Limits)
	}
	if !strings.Contains(got.Meminfo, fmt.Sprintf("MemTotal: %14d kB", memory<<10)) {
		t.Errorf("meminfo:\n%.200s", got.Meminfo)
	}
	if w := got.Writable; w["/var/task"] || w["/opt"] || w["/var/runtime"] || !w["/tmp"] {
		t.Errorf("writable: %v", w)
	}
	var event struct{ K string }
	if err := json.Unmarshal(got.Event, &event); err != nil || event.K != "é" {
		t.Errorf("event %s, %v", got.Event, err)
	}
	if got.RemainingMS <= 0 || got.RemainingMS > 30000 {
		t.Errorf("%d ms remain of 30 s", got.RemainingMS)
	}
	c := got.Context
	if c.Name != name || c.Version != "$LATEST" || c.ARN != "arn:aws:lambda:us-east-1:000000000000:function:"+name || c.Memory != fmt.Sprint(memory) ||
		c.Group != "/aws/lambda/"+name || c.Stream != got.Env["AWS_LAMBDA_LOG_STREAM_NAME"] || len(c.RequestID) != 36 || c.Custom["who"] != "é" {
		t.Errorf("context %+v", c)
	}
}

// explained holds that `lambdad explain` says what the function sees.
func explained(t *testing.T, s *harness.Server, name string, got seen) {
	out, err := exec.Command(harness.Program(t, "lambdad"), "explain", name, "--output", "json", "--show-secrets", "--data-dir", serverDir).Output()
	if err != nil {
		t.Fatalf("lambdad explain: %v: %s", err, out)
	}
	var x struct {
		Processes []struct {
			Party string
			Args  []string
			Env   map[string]string
		}
	}
	if err := json.Unmarshal(out, &x); err != nil {
		t.Fatal(err)
	}
	if len(x.Processes) == 0 || x.Processes[0].Party != "runtime" {
		t.Fatalf("explain: %s", out)
	}
	p := x.Processes[0]
	args := p.Args
	wrapped := got.Env["AWS_LAMBDA_EXEC_WRAPPER"] != ""
	if wrapped {
		if args[0] != "/opt/wrapper" {
			t.Errorf("explain: command line %q", args)
		}
	} else if !slices.Equal(args, got.Args) {
		t.Errorf("explain: command line %q, the function's is %q", args, got.Args)
	}
	for _, key := range slices.Sorted(maps.Keys(got.Env)) {
		if v, ok := p.Env[key]; v != got.Env[key] && !(wrapped && (key == "PYTHONPATH" || key == "PWD")) && !slices.Contains([]string{"_X_AMZN_TRACE_ID", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_LAMBDA_LOG_STREAM_NAME", "LC_CTYPE"}, key) {
			t.Errorf("explain: %s is %q (%v), the function sees %q", key, v, ok, got.Env[key])
		}
	}
	for key := range p.Env {
		// The runtime client takes the log descriptor for itself.
		if _, ok := got.Env[key]; !ok && key != "_LAMBDA_TELEMETRY_LOG_FD" {
			t.Errorf("explain: %s is set, the function sees none", key)
		}
	}
}

// proxied runs a function whose wrapper points it at an extension that stands
// before the Runtime API.
func proxied(t *testing.T, s *harness.Server) {
	create(t, s, "python3.11", "proxied", "probe.handler", map[string]string{"probe.py": data(t, "python/probe.py")}, map[string]string{
		"extensions/proxy": program(t, "rtprobe"), "wrapper": "#!/bin/sh\nexport AWS_LAMBDA_RUNTIME_API=127.0.0.1:9009\nexec \"$@\"\n",
	}, map[string]string{"AWS_LAMBDA_EXEC_WRAPPER": "/opt/wrapper"})
	answer, err := s.Invoke(t.Context(), "proxied", `{"k":1}`)
	if err != nil {
		t.Fatalf("%v\n%s", err, harness.LogsOf(t, serverDir, "proxied"))
	}
	var got seen
	if err := json.Unmarshal(answer, &got); err != nil {
		t.Fatal(err)
	}
	if string(got.Event) != `{"proxied": {"k": 1}}` || got.Env["AWS_LAMBDA_RUNTIME_API"] != "127.0.0.1:9009" {
		t.Errorf("event %s, API %s", got.Event, got.Env["AWS_LAMBDA_RUNTIME_API"])
	}
}

func TestWrapperFailures(t *testing.T) {
	harness.NeedRoot(t)
	serverDir = t.TempDir()
	s := harness.Start(t, serverDir)
	for name, c := range map[string]struct {
		wrapper string
		layer   map[string]string
		status  int
	}{
		"missing":        {"/opt/none", nil, 127},
		"not-executable": {"/opt/plain", map[string]string{"plain": "exec \"$@\"\n"}, 126},
	} {
		create(t, s, "python3.11", name, "probe.handler", map[string]string{"probe.py": data(t, "python/probe.py")}, c.layer, map[string]string{"AWS_LAMBDA_EXEC_WRAPPER": c.wrapper})
		_, err := s.Invoke(context.WithoutCancel(t.Context()), name, `{}`)
		if want := fmt.Sprintf("exit status %d", c.status); err == nil || !strings.Contains(err.Error(), "Runtime.ExitError") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
	s.Stop()
}

// writeTable writes the table between two marks of docs/compatibility.md.
func writeTable(t *testing.T, table []listed, results map[string]map[string]bool) {
	const begin, end = "<!-- runtimes: written by go test ./integration/runtimes -all -update -->\n", "<!-- runtimes: end -->\n"
	const head = "| Identifier | Ran on | no extension | external | internal, by wrapper | internal, by hook |\n|---|---|---|---|---|---|\n"
	rows := map[string]string{}
	for _, r := range table {
		var b strings.Builder
		on := "the function's bootstrap"
		if r.Version != "" {
			on = r.Version
		}
		fmt.Fprintf(&b, "| `%s` | %s |", r.Name, on)
		for _, v := range []string{"none", "external", "wrapper", "hook"} {
			switch ok, ran := results[r.Name][v]; {
			case !ran:
				b.WriteString(" – |")
			case ok:
				b.WriteString(" passes |")
			default:
				b.WriteString(" fails |")
			}
		}
		rows["`"+r.Name+"`"] = b.String() + "\n"
	}
	const file = "../../docs/compatibility.md"
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(old), begin)
	kept, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no marks", file)
	}
	for line := range strings.Lines(kept) { // of what did not run now
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " |"); ok && strings.HasPrefix(name, "`") && rows[name] == "" {
			rows[name] = line
		}
	}
	var list strings.Builder
	for _, name := range slices.SortedFunc(maps.Keys(rows), func(a, b string) int { return strings.Compare(natural(a), natural(b)) }) {
		list.WriteString(rows[name])
	}
	if err := os.WriteFile(file, []byte(before+begin+head+list.String()+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// natural makes python3.9 sort before python3.10.
func natural(s string) string {
	return regexp.MustCompile(`\d+`).ReplaceAllStringFunc(s, func(n string) string { return fmt.Sprintf("%6s", n) })
}
