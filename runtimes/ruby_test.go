package runtimes

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRubyInitFailures(t *testing.T) {
	r := hostRuntime(t, "ruby3.3")
	files := map[string]string{"syn.rb": "def (\n", "boom.rb": "raise 'at load'\n", "exit.rb": "exit\n", "hard.rb": "exit!(3)\n", "own.rb": "class Mine < StandardError; end\nraise Mine, 'x'\n", "ok.rb": "def other(event:, context:) = 1\n"}
	for _, c := range []struct {
		handler, typ, message, header string
		code                          int
	}{
		{"nodot", "Init<ArgumentError>", `^Invalid handler \["nodot"\], must be of form FILENAME.METHOD or FILENAME.CLASS.METHOD`, "Init<ArgumentError>", 252},
		{"nofile.h", "Init<LoadError>", "^cannot load such file -- nofile$", "Init<LoadError>", 252},
		{"syn.h", "Init<SyntaxError>", "syn", "Function<UserException>", 252},
		{"boom.h", "Init<RuntimeError>", "^at load$", "Function<UserException>", 252},
		{"exit.h", "Init<SystemExit>", "^exit$", "Init<SystemExit>", 252},
		{"own.h", "Init<Mine>", "^x$", "Function<UserException>", 252},
		{"hard.h", "", "", "", 3},
	} {
		t.Run(c.handler, func(t *testing.T) {
			out := run{files: files, handler: c.handler}.start(t, r)
			if out.code != c.code {
				t.Errorf("exit code %d; stderr %s", out.code, out.stderr)
			}
			if c.typ == "" {
				if len(out.posts) != 0 {
					t.Errorf("posts %v", out.posts)
				}
				return
			}
			if len(out.posts) != 1 || out.posts[0].path != "init/error" {
				t.Fatalf("posts %v, stderr %s", out.posts, out.stderr)
			}
			p := out.posts[0]
			b := p.error(t)
			if b.ErrorType != c.typ || !regexp.MustCompile(c.message).MatchString(b.ErrorMessage) || p.head.Get("Lambda-Runtime-Function-Error-Type") != c.header {
				t.Errorf("%+v, header %q", b, p.head.Get("Lambda-Runtime-Function-Error-Type"))
			}
			if !regexp.MustCompile(`(?s)^\{"errorMessage":".*","errorType":".*","stackTrace":\[`).MatchString(p.body) || strings.Contains(p.body, "/var/runtime/lambdad") {
				t.Errorf("body: %s", p.body)
			}
			if !strings.HasPrefix(out.stdout, "Init error when loading handler "+c.handler+"\n{\n") {
				t.Errorf("record: %q", out.stdout)
			}
		})
	}
}

func TestRubyInvocations(t *testing.T) {
	r := hostRuntime(t, "ruby3.3")
	code := `require 'stringio'
require 'bigdecimal'
module M; class H; def self.run(event:, context:) = 'class'; end; end
def handler(event:, context:)
  case event.is_a?(Hash) ? event['name'] : event
  when 'echo' then event
  when 'nil' then nil
  when 'io' then StringIO.new("\x00\xff".b)
  when 'nan' then Float::NAN
  when 'cycle' then a = []; a << a; a
  when 'bytes' then "\xff"
  when 'values' then {t: :sym, d: BigDecimal('1.5'), 1 => nil}
  when 'raise' then raise 'boom'
  when 'empty' then raise ArgumentError
  when 'context' then [context.function_name, context.memory_limit_in_mb, context.aws_request_id, context.invoked_function_arn, context.deadline_ms.is_a?(Integer), context.get_remaining_time_in_millis > 1000, context.identity, context.client_context, context.tenant_id, ENV['_X_AMZN_TRACE_ID'], ENV.key?('_LAMBDA_TELEMETRY_LOG_FD')]
  when 'log' then puts 'line'; Logger.new($stdout).info('hello'); $stderr.puts 'err'
  else event
  end
end
`
	ask := func(t *testing.T, files map[string]string, handler string, env map[string]string, steps ...step) *outcome {
		out := run{files: files, handler: handler, steps: steps, env: env}.start(t, r)
		if len(out.posts) != len(steps) {
			t.Fatalf("%d posts for %d events: %v; stderr %s", len(out.posts), len(steps), out.posts, out.stderr)
		}
		return out
	}
	event := func(name string) step { return step{event: fmt.Sprintf(`{"name":%q}`, name)} }
	full := event("context")
	full.headers = map[string]string{"Lambda-Runtime-Trace-Id": "Root=1", "Lambda-Runtime-Client-Context": `{"custom":{"x":"é"}}`, "Lambda-Runtime-Cognito-Identity": `{"cognitoIdentityId":"i"}`, "Lambda-Runtime-Aws-Tenant-Id": "t"}
	cases := []struct {
		step step
		want string // body, or "type: message"
	}{
		{event("echo"), `{"name":"echo"}`}, {event("nil"), "null"}, {event("io"), "\x00\xff"},
		{event("nan"), "Function<JSON::GeneratorError>: "}, {event("cycle"), "Function<JSON::NestingError>: nesting of 10"}, {event("bytes"), "Function<JSON::GeneratorError>: "},
		{event("values"), `{"t":"sym","d":"0.15e1","1":null}`}, {event("raise"), "Function<RuntimeError>: boom"}, {event("empty"), "Function<ArgumentError>: ArgumentError"},
		{full, `["f","128","` + invokeID + `","` + arn + `",true,true,{"cognitoIdentityId":"i"},{"custom":{"x":"é"}},"t","Root=1",false]`},
		{event("context"), `["f","128","` + invokeID + `","` + arn + `",true,true,null,null,null,"Root=1",false]`},
		{step{event: "raw text", headers: map[string]string{"Content-Type": "text/plain"}}, `"raw text"`}, {step{event: "3"}, "3"}, {step{event: `"é"`}, `"é"`},
	}
	var steps []step
	for _, c := range cases {
		steps = append(steps, c.step)
	}
	out := ask(t, map[string]string{"f.rb": code}, "f.handler", map[string]string{"_LAMBDA_TELEMETRY_LOG_FD": "9"}, steps...)
	for i, c := range cases {
		p := out.posts[i]
		if strings.HasSuffix(p.path, "/response") {
			if p.body != c.want {
				t.Errorf("%s: got %q, want %q", c.step.event, p.body, c.want)
			}
			continue
		}
		b := p.error(t)
		if !strings.HasPrefix(b.ErrorType+": "+b.ErrorMessage, c.want) {
			t.Errorf("%s: %+v, want %s", c.step.event, b, c.want)
		}
	}
	if out.connections != 1 || out.code != -1 {
		t.Errorf("%d connections, code %d", out.connections, out.code)
	}
	if !strings.Contains(out.stdout, "Error raised from handler method\n{\n") {
		t.Errorf("no record: %q", out.stdout)
	}
	for handler, want := range map[string]string{"f.M::H.run": `"class"`, "lib/g.h": `"nested"`} {
		out := ask(t, map[string]string{"f.rb": code, "lib/g.rb": "def h(event:, context:) = 'nested'\n"}, handler, nil, step{event: "1"})
		if out.posts[0].body != want {
			t.Errorf("%s: %s", handler, out.posts[0].body)
		}
	}
	for name, c := range map[string]struct {
		code, want string
		exit       int
	}{
		"missing":      {"", "Function<NoMethodError>: ", 255},
		"no method":    {"def handler(event:, context:) = nil.foo\n", "Function<NoMethodError>: undefined method", 255},
		"name":         {"def handler(event:, context:) = zzz\n", "Function<NameError>: undefined local variable", 255},
		"exit":         {"def handler(event:, context:) = exit\n", "Function<SystemExit>: exit", 255},
		"overflow":     {"def handler(event:, context:) = handler(event: 1, context: 2)\n", "Function<SystemStackError>: stack level too deep", 255},
		"positional":   {"def handler(event, context) = 1\n", "Function<ArgumentError>: wrong number of arguments (given 1, expected 2)", -1},
		"exit at once": {"def handler(event:, context:) = exit!(4)\n", "", 4},
	} {
		out := run{files: map[string]string{"f.rb": c.code}, handler: "f.handler", steps: []step{{event: "1"}}}.start(t, r)
		if out.code != c.exit {
			t.Errorf("%s: exit code %d, want %d; %s", name, out.code, c.exit, out.stderr)
		}
		if c.want == "" {
			if len(out.posts) != 0 {
				t.Errorf("%s: posts %v", name, out.posts)
			}
			continue
		}
		if len(out.posts) != 1 {
			t.Errorf("%s: posts %v", name, out.posts)
			continue
		}
		if b := out.posts[0].error(t); !strings.HasPrefix(b.ErrorType+": "+b.ErrorMessage, c.want) {
			t.Errorf("%s: %+v, want %s", name, b, c.want)
		}
	}
	bad := run{files: map[string]string{"f.rb": code}, handler: "f.handler", steps: []step{{event: "{"}}}.start(t, r)
	if bad.code != 252 || len(bad.posts) != 1 || bad.posts[0].path != "init/error" {
		t.Errorf("bad event: code %d, posts %v", bad.code, bad.posts)
	}
}

func TestRubyLogsAndLife(t *testing.T) {
	r := hostRuntime(t, "ruby3.3")
	files := map[string]string{"f.rb": `trap('TERM') { $stdout.write("term\n"); exit!(0) }
def handler(event:, context:)
  puts 'line'
  log = Logger.new($stdout)
  log.info('hello')
  log.debug('quiet')
  begin
    raise 'boom'
  rescue StandardError => e
    log.error(e)
  end
end
`}
	term := func(p *os.Process) {
		time.Sleep(100 * time.Millisecond)
		_ = p.Signal(syscall.SIGTERM)
	}
	out := run{files: files, handler: "f.handler", steps: []step{{event: "1"}}, idle: term}.start(t, r)
	if !regexp.MustCompile(`^line\nI, \[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6} #\d+\]  INFO `+invokeID+` -- : hello\nD, .* DEBUG `+invokeID+` -- : quiet\nE, `).MatchString(out.stdout) || !strings.HasSuffix(out.stdout, "term\n") || out.code != 0 {
		t.Errorf("code %d, text %q", out.code, out.stdout)
	}
	out = run{files: files, handler: "f.handler", steps: []step{{event: "1"}}, env: map[string]string{"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": "INFO"}}.start(t, r)
	lines := strings.Split(strings.TrimSpace(out.stdout), "\n")
	if len(lines) != 3 || lines[0] != "line" {
		t.Fatalf("JSON: %q", lines)
	}
	for i, want := range []string{`"level":"INFO","message":"hello","requestId":"` + invokeID + `"`, `"level":"ERROR","message":"boom","requestId":"` + invokeID + `","errorType":"RuntimeError","errorMessage":"boom","stackTrace":["`} {
		if !strings.Contains(lines[i+1], want) || !json.Valid([]byte(lines[i+1])) {
			t.Errorf("line %d: %s, want %s", i+1, lines[i+1], want)
		}
	}
}

// TestRubyFramedLog: puts and loggers write records to the descriptor that the
// platform gives; everything else is as without.
func TestRubyFramedLog(t *testing.T) {
	r := hostRuntime(t, "ruby3.3")
	if _, err := os.Stat("/bin/bash"); err != nil {
		t.Skip("needs a shell that opens descriptors above 9")
	}
	code := `require 'logger'
def h(event:, context:)
  puts "a\nb", 1
  puts
  $stdout.puts 'plain'
  print 'x', "y\n"
  Logger.new($stdout).warn("c\nd")
  Logger.new($stderr).warn('err')
  system('echo child; { echo leak >&62; } 2>/dev/null')
  real, $stdout = $stdout, StringIO.new
  puts 'caught'
  caught, $stdout = $stdout.string, real
  print caught
  raise 'no'
end
`
	file := filepath.Join(t.TempDir(), "frames")
	got := run{files: map[string]string{"f.rb": "require 'stringio'\n" + code, "wrap": "#!/bin/bash\nexec 62>" + file + "\nexport _LAMBDA_TELEMETRY_LOG_FD=62\nexec \"$@\"\n"},
		env: map[string]string{"AWS_LAMBDA_EXEC_WRAPPER": "./wrap"}, handler: "f.h", steps: []step{{event: "1"}}}.start(t, r)
	if got.stdout != "plain\nxy\nchild\ncaught\n" || len(got.posts) != 1 || !strings.Contains(got.stderr, "-- : err") {
		t.Fatalf("stdout %q, posts %v, stderr %s", got.stdout, got.posts, got.stderr)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for len(b) > 0 {
		if kind := binary.BigEndian.Uint32(b); kind != 0xa55a0003 {
			t.Errorf("a frame of type %x", kind)
		}
		at := time.UnixMicro(int64(binary.BigEndian.Uint64(b[8:])))
		if time.Since(at) > time.Minute || time.Until(at) > 0 {
			t.Errorf("a frame of %s", at)
		}
		n := binary.BigEndian.Uint32(b[4:])
		texts = append(texts, string(b[16:16+n]))
		b = b[16+n:]
	}
	want := []string{"^a\nb\n1$", "^\n$", "^W, .* WARN .* -- : c\nd\n$", "^Error raised from handler method\n\\{\n"}
	if len(texts) != len(want) {
		t.Fatalf("frames %q", texts)
	}
	for i, w := range want {
		if !regexp.MustCompile(w).MatchString(texts[i]) {
			t.Errorf("frame %q, want %s", texts[i], w)
		}
	}
}
