package runtimes

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

func TestInitFailures(t *testing.T) {
	everyPython(t, func(t *testing.T, r *Runtime) {
		files := map[string]string{
			"m.py":        "import missing_module\n",
			"outer.py":    "import m\n",
			"syn.py":      "x = (\n",
			"empty.py":    "",
			"boom.py":     "def f():\n    raise ValueError('at import')\nf()\n",
			"f.py":        "def ok(e, c): return 1\n",
			"pkg/deep.py": "class H:\n    @staticmethod\n    def x(e, c): return 1\n",
			"quiet.py":    "raise KeyError('k')\n",
			"text.py":     "raise ValueError()\n",
		}
		never := "'(' was never closed"
		if minorOf(r) < 10 {
			never = "unexpected EOF while parsing"
		}
		tests := []struct{ handler, kind, message, trace string }{
			{"nodot", "Runtime.MalformedHandlerName", "Bad handler 'nodot': not enough values to unpack (expected 2, got 1)", ""},
			{"m.f", "Runtime.ImportModuleError", "Unable to import module 'm': No module named 'missing_module'", ""},
			{"outer.f", "Runtime.ImportModuleError", "Unable to import module 'outer': No module named 'missing_module'", ""},
			{"nofile.f", "Runtime.ImportModuleError", "Unable to import module 'nofile': No module named 'nofile'", ""},
			{"syn.f", "Runtime.UserCodeSyntaxError", "Syntax error in module 'syn': " + never, `  File "/var/task/syn.py" Line `},
			{"empty.x", "Runtime.HandlerNotFound", "Handler 'x' missing on module 'empty'", ""},
			{"sys.exit", "Runtime.BuiltInModuleConflict", "Cannot use built-in module sys as a handler module", ""},
			{"time.x.y", "Runtime.BuiltInModuleConflict", "Cannot use built-in module time.x as a handler module", ""},
			{"./f.ok", "TypeError", "the 'package' argument is required to perform a relative import for '..f'", `importlib/__init__.py", line `},
			{"/f.ok", "TypeError", "the 'package' argument is required to perform a relative import for '.f'", `importlib/__init__.py", line `},
			{"../f.ok", "TypeError", "the 'package' argument is required to perform a relative import for '...f'", `importlib/__init__.py", line `},
			{"boom.f", "ValueError", "at import", `importlib/__init__.py", line `},
			{"quiet.f", "KeyError", "'k'", `importlib/__init__.py", line `},
			{"text.f", "ValueError", "", `importlib/__init__.py", line `},
			{"pkg.deep.H.x", "Runtime.ImportModuleError", "Unable to import module 'pkg.deep.H': No module named 'pkg.deep.H'; 'pkg.deep' is not a package", ""},
		}
		for _, test := range tests {
			t.Run(strings.ReplaceAll(test.handler, "/", "|"), func(t *testing.T) {
				out := run{files: files, handler: test.handler}.start(t, r)
				if out.code != 1 || len(out.posts) != 1 || out.posts[0].path != "init/error" {
					t.Fatalf("exit code %d, posts %v, stderr %s", out.code, out.posts, out.stderr)
				}
				p := out.posts[0]
				if got := p.head.Get("Lambda-Runtime-Function-Error-Type"); got != test.kind {
					t.Errorf("type header %q, want %q", got, test.kind)
				}
				if p.head.Get("Content-Type") != "" {
					t.Error("init/error has a content type")
				}
				var body struct {
					ErrorMessage, ErrorType string
					StackTrace              []string
				}
				if err := json.Unmarshal([]byte(p.body), &body); err != nil {
					t.Fatal(err)
				}
				if body.ErrorType != test.kind || !strings.HasPrefix(body.ErrorMessage, test.message) || test.message == "" && body.ErrorMessage != "" {
					t.Errorf("got %s %q, want %s %q", body.ErrorType, body.ErrorMessage, test.kind, test.message)
				}
				members := `^\{"errorMessage": ".*", "errorType": "[^"]+", "requestId": "", "stackTrace": \[.*\]\}$`
				if minorOf(r) == 8 {
					members = strings.Replace(members, `"requestId": "", `, "", 1)
				}
				if !regexp.MustCompile(members).MatchString(p.body) {
					t.Errorf("members: %s", p.body)
				}
				if first := strings.Join(append(body.StackTrace, "")[:1], ""); test.trace == "" && first != "" || !strings.Contains(first, test.trace) {
					t.Errorf("stack trace begins with %q, want %q", first, test.trace)
				}
				if strings.Contains(p.body, "lambdad_runtime") {
					t.Errorf("a frame of the client shows: %s", p.body)
				}
				lines := strings.SplitAfter(out.stdout, "\n")
				if !regexp.MustCompile(`^\[WARNING\]\t\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\t\tLAMBDA_WARNING: Unhandled exception\. The most likely cause is an issue in the function code\..*\r\n$`).MatchString(lines[0]) {
					t.Errorf("warning: %q", lines[0])
				}
				record := "[ERROR] " + test.kind
				if test.message != "" {
					record += ": " + test.message
				}
				if len(lines) != 3 || !strings.HasPrefix(lines[1], record) || !strings.Contains(lines[1], "\rTraceback (most recent call last):") {
					t.Errorf("error record: %q", lines[1:])
				}
			})
		}
	})
}

func TestInitExits(t *testing.T) {
	everyPython(t, func(t *testing.T, r *Runtime) {
		for _, test := range []struct {
			code string
			want int
		}{
			{"import sys; sys.exit(7)", 7}, {"import sys; sys.exit(0)", 0}, {"import os; os._exit(3)", 3}, {"raise SystemExit('bye')", 1},
		} {
			out := run{files: map[string]string{"m.py": test.code}, handler: "m.f"}.start(t, r)
			if out.code != test.want || len(out.posts) != 0 {
				t.Errorf("%s: exit code %d, want %d; posts %v", test.code, out.code, test.want, out.posts)
			}
			if strings.Contains(test.code, "bye") && out.stderr != "bye\n" {
				t.Errorf("stderr %q", out.stderr)
			}
		}
	})
}

// handlers has a function for each row; the event is its name.
const handlers = `
import collections, datetime, decimal, enum, logging, os, sys
P = collections.namedtuple("P", "x y")
D = decimal.Decimal
class E(Exception): pass
class Color(enum.IntEnum): RED = 3
class Obj: pass
class Sub(str): pass
class Rec(dict): pass
def recurse(n): return recurse(n + 1)
def chained():
    try: raise ValueError("inner")
    except ValueError as e: raise E("outer") from e
def cycle():
    a = []; a.append(a); return a
def named_cycle():
    a = []; a.append(P(1, a)); return a
def gen(): yield 1
async def coro(): pass
def coroutine():
    c = coro(); c.close(); return c
def raise_(e): raise e
ROWS = {
 "none": lambda: None, "str": lambda: "a", "int": lambda: 5, "true": lambda: True, "float": lambda: 1.0, "big": lambda: 2**70,
 "dict": lambda: {"a": 1, "b": [1, 2.5, "x", None, True]}, "unicode": lambda: "\u00e9\U0001f600\u2028", "escapes": lambda: 'a"b\\c\n\x00</script>',
 "bytes": lambda: b"\x00raw\xff", "emptybytes": lambda: b"", "nested": lambda: {"b": b"text\xc3\xa9"}, "badbytes": lambda: [b"\xff"],
 "decimal": lambda: {"a": D("1.10"), "b": [D("1E+3"), D("-0"), D("0.000000000000000000000001")]}, "onlydecimal": lambda: D("1.10"),
 "nan": lambda: [float("nan"), float("inf"), float("-inf"), D("NaN"), D("Infinity"), D("-Infinity")],
 "tuple": lambda: (1, (2, 3)), "named": lambda: {"p": P(1, P(D("2.50"), b"z"))}, "topnamed": lambda: P(1, 2),
 "keys": lambda: {1: "a", None: "b", True: "c", 1.5: "d"}, "deckey": lambda: {D("1.10"): 1}, "bytekey": lambda: {b"k": b"v"}, "tuplekey": lambda: {(1, 2): 1},
 "subclasses": lambda: [Color.RED, Sub("s"), Rec(a=1), collections.OrderedDict(b=2)], "empty": lambda: [{}, [], ""],
 "set": lambda: {1}, "datetime": lambda: datetime.datetime(2026, 1, 31), "gen": gen, "coro": coroutine, "object": Obj, "deepset": lambda: {"a": [D(1), {1}]},
 "cycle": cycle, "named_cycle": named_cycle, "twice": lambda: (lambda a: [a, a, P(a, a)])([1]),
 "exception": lambda: raise_(Exception("Handler fails")), "keyerror": lambda: {}["k"], "notext": lambda: raise_(E()), "chained": chained, "recursion": lambda: recurse(0),
 "memory": lambda: raise_(MemoryError()), "surrogate_message": lambda: raise_(E("\ud800")), "multi": lambda: raise_(E("two\nlines")),
 "exit7": lambda: sys.exit(7), "bye": lambda: sys.exit("bye"), "_exit": lambda: os._exit(9), "genexit": lambda: raise_(GeneratorExit()), "kill": lambda: os.kill(os.getpid(), 9),
 "surrogate": lambda: "\ud800",
}
def handler(event, context):
    return ROWS[event]()
class Callable:
    def __call__(self, event, context): return {"called": event}
instance = Callable()
class Klass(dict):
    def __init__(self, event, context): dict.__init__(self, made=event)
one = lambda event: 1
async def asynchronous(event, context): return 1
`

func TestResults(t *testing.T) {
	everyPython(t, func(t *testing.T, r *Runtime) {
		newer := minorOf(r) >= 12
		unicode := `"\u00e9\ud83d\ude00\u2028"`
		nested := `{"b": "text\u00e9"}`
		if newer {
			unicode, nested = "\"é😀\u2028\"", `{"b": "texté"}`
		}
		const marshal = "Unable to marshal response: "
		rows := []struct{ name, body, fault string }{
			{"none", "null", ""}, {"str", `"a"`, ""}, {"int", "5", ""}, {"true", "true", ""}, {"float", "1.0", ""}, {"big", "1180591620717411303424", ""},
			{"dict", `{"a": 1, "b": [1, 2.5, "x", null, true]}`, ""},
			{"unicode", unicode, ""}, {"escapes", `"a\"b\\c\n\u0000</script>"`, ""},
			{"bytes", "\x00raw\xff", ""}, {"emptybytes", "", ""}, {"nested", nested, ""},
			{"badbytes", "", marshal + "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"},
			{"decimal", `{"a": 1.10, "b": [1E+3, -0, 1E-24]}`, ""}, {"onlydecimal", "1.10", ""},
			{"nan", "[NaN, Infinity, -Infinity, NaN, Infinity, -Infinity]", ""},
			{"tuple", "[1, [2, 3]]", ""}, {"named", `{"p": {"x": 1, "y": {"x": 2.50, "y": "z"}}}`, ""}, {"topnamed", `{"x": 1, "y": 2}`, ""},
			{"keys", `{"1": "c", "null": "b", "1.5": "d"}`, ""}, {"deckey", `{"1.10": 1}`, ""}, {"bytekey", `{"k": "v"}`, ""},
			{"tuplekey", "", marshal + "keys must be str, int, float, bool or None, not tuple"},
			{"subclasses", `[3, "s", {"a": 1}, {"b": 2}]`, ""}, {"empty", `[{}, [], ""]`, ""},
			{"set", "", marshal + "Object of type set is not JSON serializable"},
			{"datetime", "", marshal + "Object of type datetime is not JSON serializable"},
			{"gen", "", marshal + "Object of type generator is not JSON serializable"},
			{"coro", "", marshal + "Object of type coroutine is not JSON serializable"},
			{"object", "", marshal + "Object of type Obj is not JSON serializable"},
			{"deepset", "", marshal + "Object of type set is not JSON serializable"},
			{"cycle", "", marshal + "Circular reference detected"}, {"named_cycle", "", marshal + "Circular reference detected"},
			{"twice", `[[1], [1], {"x": [1], "y": [1]}]`, ""},
		}
		var steps []step
		for _, row := range rows {
			steps = append(steps, step{event: `"` + row.name + `"`})
		}
		// All in one process: none of these ends it.
		out := run{files: map[string]string{"m.py": handlers}, handler: "m.handler", steps: steps}.start(t, r)
		if out.code != -1 || len(out.posts) != len(rows) {
			t.Fatalf("exit code %d, %d posts, stderr %s", out.code, len(out.posts), out.stderr)
		}
		if out.connections != 1 {
			t.Errorf("%d connections, want one kept alive", out.connections)
		}
		if want := fmt.Sprintf(`^aws-lambda-python/3\.%d\.\d+-\d+\.\d+\.\d+$`, minorOf(r)); !regexp.MustCompile(want).MatchString(out.agent) {
			t.Errorf("user agent %q", out.agent)
		}
		for i, row := range rows {
			p := out.posts[i]
			if row.fault != "" {
				id := fmt.Sprintf("%q: %q, ", "requestId", invokeID)
				if minorOf(r) == 8 {
					id = ""
				}
				quoted, _ := json.Marshal(row.fault)
				want := fmt.Sprintf(`{"errorMessage": %s, "errorType": "Runtime.MarshalError", %s"stackTrace": []}`, quoted, id)
				if p.path != "invocation/"+invokeID+"/error" || p.body != want {
					t.Errorf("%s: %s %s, want %s", row.name, p.path, p.body, want)
				}
				continue
			}
			kind := "application/json"
			if strings.HasSuffix(row.name, "bytes") {
				kind = "application/unknown"
			}
			if p.path != "invocation/"+invokeID+"/response" || p.body != row.body || p.head.Get("Content-Type") != kind {
				t.Errorf("%s: %s %s %q, want %q", row.name, p.path, p.head.Get("Content-Type"), p.body, row.body)
			}
		}
	})
}

func TestFaults(t *testing.T) {
	everyPython(t, func(t *testing.T, r *Runtime) {
		rows := []struct {
			step
			kind, message, trace string
		}{
			{step{event: `"exception"`}, "Exception", "Handler fails", "\n"},
			{step{event: `"keyerror"`}, "KeyError", "'k'", "\n"},
			{step{event: `"notext"`}, "E", "", "\n"},
			{step{event: `"chained"`}, "E", "outer", "\n"},
			{step{event: `"recursion"`}, "RecursionError", "maximum recursion depth exceeded", "  [Previous line repeated "},
			{step{event: `"memory"`}, "MemoryError", "", "\n"},
			{step{event: `"surrogate_message"`}, "E", "", "\n"},
			{step{event: `"multi"`}, "E", "two\nlines", "\n"},
			{step{event: `"no such row"`}, "KeyError", "'no such row'", "\n"},
			{step{event: `not json`}, "Runtime.UnmarshalError", "Unable to unmarshal input: Expecting value: line 1 column 1 (char 0)", ""},
			{step{event: ` [1,] `}, "Runtime.UnmarshalError", "Unable to unmarshal input: ", ""},
			{step{event: ``}, "Runtime.UnmarshalError", "Unable to unmarshal input: Expecting value: line 1 column 1 (char 0)", ""},
			{step{event: "\"\xff\""}, "Runtime.UnmarshalError", "Unable to unmarshal input: 'utf-8' codec can't decode byte 0xff in position 1", ""},
			{step{event: `1`, headers: map[string]string{"Lambda-Runtime-Client-Context": "x"}}, "Runtime.LambdaContextUnmarshalError", "Unable to parse Client Context JSON: Expecting value: line 1 column 1 (char 0)", ""},
			{step{event: `1`, headers: map[string]string{"Lambda-Runtime-Client-Context": "[1]"}}, "Runtime.LambdaContextUnmarshalError", "Unable to parse Client Context JSON: ", ""},
			{step{event: `1`, headers: map[string]string{"Lambda-Runtime-Cognito-Identity": "{"}}, "Runtime.LambdaContextUnmarshalError", "Unable to parse Cognito Identity JSON: Expecting property name", ""},
		}
		var steps []step
		for _, row := range rows {
			steps = append(steps, row.step)
		}
		out := run{files: map[string]string{"m.py": handlers}, handler: "m.handler", steps: steps}.start(t, r)
		if out.code != -1 || len(out.posts) != len(rows) {
			t.Fatalf("exit code %d, %d posts, stderr %s", out.code, len(out.posts), out.stderr)
		}
		for i, row := range rows {
			p := out.posts[i]
			var body struct {
				ErrorMessage, ErrorType string
				StackTrace              []string
			}
			if err := json.Unmarshal([]byte(p.body), &body); err != nil {
				t.Fatal(err)
			}
			if p.path != "invocation/"+invokeID+"/error" || body.ErrorType != row.kind || !strings.HasPrefix(body.ErrorMessage, row.message) || row.message == "" && strings.Trim(body.ErrorMessage, "\ufffd") != "" {
				t.Errorf("%s: %s %s", row.event, p.path, p.body)
			}
			if p.head.Get("Lambda-Runtime-Function-Error-Type") != "" {
				t.Errorf("%s: has a type header", row.event)
			}
			all := strings.Join(body.StackTrace, "")
			if row.trace == "" && all != "" || !strings.Contains(all, row.trace) || strings.Contains(all, "lambdad_runtime") || strings.Contains(all, "^") {
				t.Errorf("%s: stack trace %q", row.event, body.StackTrace)
			}
			if strings.Contains(p.body, "inner") {
				t.Error("a cause is shown")
			}
			checkCause(t, row.kind, p)
		}
		line := `  File "/var/task/m.py", line `
		first := out.posts[0].body
		if !strings.Contains(first, `"stackTrace": ["`+strings.ReplaceAll(line, `"`, `\"`)) || !strings.HasSuffix(first, `, in raise_\n    def raise_(e): raise e\n"]}`) {
			t.Errorf("first stack trace: %s", first)
		}
		// The record in the log: one line, indented by no-break spaces.
		record, _, _ := strings.Cut(out.stdout, "\n")
		if !strings.HasPrefix(record, "[ERROR] Exception: Handler fails\rTraceback (most recent call last):\r\u00a0\u00a0File \"/var/task/m.py\", line ") || !strings.HasSuffix(record, "\r\u00a0\u00a0\u00a0\u00a0def raise_(e): raise e") {
			t.Errorf("error record %q", record)
		}
		if !strings.Contains(out.stdout, "\n[ERROR] E\rTraceback") || !strings.Contains(out.stdout, "(char 0)\rTraceback (most recent call last):\n") {
			t.Errorf("error records %q", out.stdout)
		}
	})
}

func checkCause(t *testing.T, kind string, p post) {
	t.Helper()
	var cause struct {
		WorkingDirectory string `json:"working_directory"`
		Exceptions       []struct {
			Message, Type string
			Stack         []struct {
				Label, Path string
				Line        int
			}
		}
		Paths []string
	}
	header := p.head.Get("Lambda-Runtime-Function-XRay-Error-Cause")
	if header == "" && kind == "RecursionError" {
		return // may be too large
	}
	if err := json.Unmarshal([]byte(header), &cause); err != nil {
		t.Fatalf("cause %q: %v", header, err)
	}
	if strings.HasPrefix(kind, "Runtime.") {
		kind = "LambdaValidationError"
	}
	if len(cause.Exceptions) != 1 || cause.Exceptions[0].Type != kind || cause.WorkingDirectory == "" {
		t.Errorf("cause %s", header)
	}
	if kind == "Exception" && (len(cause.Paths) != 1 || cause.Exceptions[0].Stack[0].Label != "handler" || cause.Exceptions[0].Stack[0].Line == 0) {
		t.Errorf("cause %s", header)
	}
}

func TestExits(t *testing.T) {
	everyPython(t, func(t *testing.T, r *Runtime) {
		newer := minorOf(r) >= 12
		for _, test := range []struct {
			event string
			code  int
		}{{"exit7", 7}, {"bye", 1}, {"_exit", 9}, {"genexit", 1}, {"kill", -1}, {"surrogate", 1}} {
			out := run{files: map[string]string{"m.py": handlers}, handler: "m.handler", steps: []step{{event: `"` + test.event + `"`}}}.start(t, r)
			if test.event == "surrogate" && !newer {
				if len(out.posts) != 1 || out.posts[0].body != `"\ud800"` {
					t.Errorf("surrogate: posts %v", out.posts)
				}
				continue
			}
			if out.code != test.code || len(out.posts) != 0 {
				t.Errorf("%s: exit code %d, want %d; posts %v", test.event, out.code, test.code, out.posts)
			}
			if test.event == "bye" && out.stderr != "bye\n" {
				t.Errorf("stderr %q", out.stderr)
			}
		}
	})
}

func TestHandlers(t *testing.T) {
	everyPython(t, func(t *testing.T, r *Runtime) {
		files := map[string]string{
			"m.py": handlers, "a/__init__.py": "INIT = 1\n", "a/b.py": "import a\ndef f(e, c): return a.INIT\n",
			"pkg/def/main.py": "def handler(e, c): return 'keyword'\n", "ns/x.py": "def f(e, c): return 'namespace'\n",
		}
		for _, test := range []struct{ handler, want string }{
			{"m.instance", `{"called": 1}`}, {"m.Klass", `{"made": 1}`}, {"a.b.f", "1"}, {"a/b.f", "1"}, {"pkg.def.main.handler", `"keyword"`}, {"ns/x.f", `"namespace"`},
			{"m.one", "takes 1 positional argument but 2 were given"}, {"m.asynchronous", "Object of type coroutine is not JSON serializable"},
		} {
			out := run{files: files, handler: test.handler, steps: []step{{event: "1"}}}.start(t, r)
			if len(out.posts) != 1 || !strings.Contains(out.posts[0].body, test.want) {
				t.Errorf("%s: %v %s", test.handler, out.posts, out.stderr)
			}
		}
	})
}

func TestContext(t *testing.T) {
	code := `
def handler(event, c):
    left = c.get_remaining_time_in_millis()
    c.log("raw")
    c.log("|")
    r = [c.function_name, c.function_version, c.invoked_function_arn, c.memory_limit_in_mb, c.aws_request_id, c.log_group_name, c.log_stream_name, c.tenant_id]
    r.append([c.identity.cognito_identity_id, c.identity.cognito_identity_pool_id])
    x = c.client_context
    r.append(None if x is None else [x.client and [x.client.installation_id, x.client.app_title, x.client.app_version_name, x.client.app_version_code, x.client.app_package_name], x.custom, x.env])
    r.append(type(left) is int and 0 <= left <= 60000)
    r.append(repr(c).startswith("LambdaContext([aws_request_id="))
    r.append(event)
    import os
    r.append(os.environ.get("_X_AMZN_TRACE_ID"))
    return r
`
	base := `["f", "$LATEST", "` + arn + `", "128", "` + invokeID + `", "/aws/lambda/f", "stream", `
	everyPython(t, func(t *testing.T, r *Runtime) {
		out := run{files: map[string]string{"m.py": code}, handler: "m.handler", steps: []step{
			{event: "1", headers: map[string]string{"Lambda-Runtime-Trace-Id": "Root=1-a;Parent=b;Sampled=0"}},
			{event: "2", headers: map[string]string{"Lambda-Runtime-Deadline-Ms": "1", "Lambda-Runtime-Aws-Tenant-Id": "t"}},
			{event: "3", headers: map[string]string{
				"Lambda-Runtime-Client-Context":   `{"client":{"installation_id":"i","app_title":"t","app_version_name":"n","app_version_code":"c","app_package_name":"p"},"custom":{"k":"v"},"env":{"e":1}}`,
				"Lambda-Runtime-Cognito-Identity": `{"cognitoIdentityId":"id","cognitoIdentityPoolId":"pool"}`,
			}},
			{event: "4", headers: map[string]string{"Lambda-Runtime-Client-Context": `{"client":{"app_title":"t"}}`}},
			{event: "raw text", headers: map[string]string{"Content-Type": "text/plain"}},
			{event: "{}", headers: map[string]string{"Content-Type": "application/json; charset=utf-8"}},
		}}.start(t, r)
		want := []string{
			base + `null, [null, null], null, true, true, 1, "Root=1-a;Parent=b;Sampled=0"]`,
			base + `"t", [null, null], null, true, true, 2, null]`,
			base + `null, ["id", "pool"], [["i", "t", "n", "c", "p"], {"k": "v"}, {"e": 1}], true, true, 3, null]`,
			base + `null, [null, null], [[null, "t", null, null, null], null, null], true, true, 4, null]`,
			base + `null, [null, null], null, true, true, "raw text", null]`,
			base + `null, [null, null], null, true, true, "{}", null]`,
		}
		if len(out.posts) != len(want) {
			t.Fatalf("%d posts, stderr %s", len(out.posts), out.stderr)
		}
		for i := range want {
			if out.posts[i].body != want[i] {
				t.Errorf("got  %s\nwant %s", out.posts[i].body, want[i])
			}
		}
		if !strings.HasPrefix(out.stdout, "raw|raw|") {
			t.Errorf("stdout %q", out.stdout)
		}
	})
}

func TestSearchPath(t *testing.T) {
	code := "import sys, os\nfrom which import name\ndef handler(e, c): return [sys.path, name, os.environ.get('PYTHONPATH'), os.getcwd(), '_LAMBDA_TELEMETRY_LOG_FD' in os.environ or any(k.startswith('_LAMBDAD') for k in os.environ)]\n"
	everyPython(t, func(t *testing.T, r *Runtime) {
		layer := fmt.Sprintf("python/lib/python3.%d/site-packages", minorOf(r))
		opt := map[string]string{"python/which.py": "name = 'python'\n", layer + "/which.py": "name = 'site-packages'\n", layer + "/extra.pth": "/opt/extra\n"}
		x := run{files: map[string]string{"m.py": code}, opt: opt, handler: "m.handler", steps: []step{{event: "1"}}}
		answer := func(x run) (path []string, name, pythonpath string) {
			t.Helper()
			out := x.start(t, r)
			if len(out.posts) != 1 {
				t.Fatalf("no answer: %s", out.stderr)
			}
			var list []json.RawMessage
			if err := json.Unmarshal([]byte(out.posts[0].body), &list); err != nil {
				t.Fatal(err, out.posts[0].body)
			}
			json.Unmarshal(list[0], &path)
			json.Unmarshal(list[1], &name)
			json.Unmarshal(list[2], &pythonpath)
			if string(list[4]) != "false" {
				t.Error("a variable of the platform is in the environment")
			}
			return path, name, pythonpath
		}
		path, name, pythonpath := answer(x)
		front := []string{"/var/task", "/opt/" + layer, "/opt/python"}
		if minorOf(r) >= 12 {
			front = append(front, filepath.Dir(filepath.Dir(r.Interpreter))+fmt.Sprintf("/lib/python3.%d/site-packages", minorOf(r)))
		}
		front = append(front, "/var/runtime")
		if got := strings.Join(path[:len(front)], ":"); got != strings.Join(front, ":") {
			t.Errorf("sys.path begins with\n%s, want\n%s", got, strings.Join(front, ":"))
		}
		end := strings.Join(path[len(path)-2:], ":")
		if end != "/opt/"+layer+":/opt/python" {
			t.Errorf("sys.path ends with %s", end)
		}
		if name != "site-packages" || pythonpath != "/var/runtime" {
			t.Errorf("which %s, PYTHONPATH %s", name, pythonpath)
		}
		// The package comes before layers.
		x.files = map[string]string{"m.py": code, "which.py": "name = 'task'\n"}
		if _, name, _ := answer(x); name != "task" {
			t.Errorf("which %s, want the package's", name)
		}
		// A customer's own PYTHONPATH replaces the layers' place.
		x.files = map[string]string{"m.py": code, "mine/which.py": "name = 'mine'\n"}
		x.env = map[string]string{"PYTHONPATH": "mine"}
		if path, name, pythonpath := answer(x); name != "mine" || pythonpath != "mine" || path[0] != "/var/task" {
			t.Errorf("which %s, PYTHONPATH %s, path %v", name, pythonpath, path)
		}
	})
}

const logger = `
import logging, sys
log = logging.getLogger("my.logger")
logging.basicConfig(level=logging.DEBUG)
def handler(event, c):
    print("printed\rstays")
    print("partial", end="")
    print(file=sys.stderr)
    log.debug("d"); log.info("i"); log.warning("w %s", "arg"); log.error("two\nlines", extra={"key": {"a": 1}, "obj": log})
    log.critical("c")
    try: 1 / 0
    except ZeroDivisionError: log.exception("failed")
    print("next")
    if event == "fail": raise ValueError("no")
`

func TestLogging(t *testing.T) {
	stamp := regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z`)
	everyPython(t, func(t *testing.T, r *Runtime) {
		start := func(env map[string]string, event string) string {
			t.Helper()
			out := run{files: map[string]string{"m.py": logger}, handler: "m.handler", env: env, steps: []step{{event: `"` + event + `"`}}}.start(t, r)
			if len(out.posts) != 1 || out.stderr != "\n" {
				t.Fatalf("posts %v, stderr %q", out.posts, out.stderr)
			}
			return stamp.ReplaceAllStringFunc(out.stdout, func(s string) string {
				if strings.Contains(s, ".") {
					return "<ms>"
				}
				return "<s>"
			})
		}
		const id = invokeID
		traceback := "Traceback (most recent call last):\n  File \"/var/task/m.py\", line 11, in handler\n    try: 1 / 0\n"
		text := "printed\rstayspartial"
		text = "printed\rstays\npartial[WARNING]\t<ms>\t" + id + "\tw arg\n[ERROR]\t<ms>\t" + id + "\ttwo\nlines\n[CRITICAL]\t<ms>\t" + id + "\tc\n[ERROR]\t<ms>\t" + id + "\tfailed\n" + traceback
		got := start(nil, "")
		// Where the interpreter marks the place in the line, that is its own affair.
		got = regexp.MustCompile(`(?m)^ +[~^]+\n`).ReplaceAllString(got, "")
		if want := text + "ZeroDivisionError: division by zeronext\n"; got != want {
			t.Errorf("text:\n%q\nwant\n%q", got, want)
		}
		for level, want := range map[string]string{"TRACE": "d i w", "DEBUG": "d i w", "INFO": "i w", "WARN": "w", "ERROR": "", "FATAL": "", "nonsense": "w"} {
			got := start(map[string]string{"AWS_LAMBDA_LOG_LEVEL": level}, "")
			var seen []string
			for _, m := range []string{"d", "i", "w"} {
				if regexp.MustCompile(`(?m)\]\t<ms>\t` + id + `\t` + m + `( arg)?$`).MatchString(got) {
					seen = append(seen, m)
				}
			}
			if strings.Join(seen, " ") != want {
				t.Errorf("level %s: %v, want %s", level, seen, want)
			}
		}
		got = start(map[string]string{"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": "INFO"}, "fail")
		want := `printed` + "\r" + `stays
partial{"timestamp": "<s>", "level": "INFO", "message": "i", "logger": "my.logger", "requestId": "` + id + `"}
{"timestamp": "<s>", "level": "WARNING", "message": "w arg", "logger": "my.logger", "requestId": "` + id + `"}
{"timestamp": "<s>", "level": "ERROR", "message": "two\nlines", "logger": "my.logger", "requestId": "` + id + `", "key": {"a": 1}, "obj": "<Logger my.logger (INFO)>"}
{"timestamp": "<s>", "level": "CRITICAL", "message": "c", "logger": "my.logger", "requestId": "` + id + `"}
{"timestamp": "<s>", "level": "ERROR", "message": "failed", "logger": "my.logger", "stackTrace": ["  File \"/var/task/m.py\", line 11, in handler\n    try: 1 / 0\n"], "errorType": "ZeroDivisionError", "errorMessage": "division by zero", "requestId": "` + id + `", "location": "/var/task/m.py:handler:12"}
next
{"timestamp": "<s>", "log_level": "ERROR", "errorMessage": "no", "errorType": "ValueError", "requestId": "` + id + `", "stackTrace": ["  File \"/var/task/m.py\", line 14, in handler\n    if event == \"fail\": raise ValueError(\"no\")\n"]}
`
		if minorOf(r) == 8 {
			want = strings.Replace(want, `"errorType": "ValueError", "requestId": "`+id+`", `, `"errorType": "ValueError", `, 1)
		}
		if got != want {
			t.Errorf("JSON:\n%s\nwant\n%s", got, want)
		}
	})
}

// TestLoggingIsLazy keeps cold starts short: a function that does not log does
// not pay for the import, and its own logging.py never takes the library's place.
func TestLoggingIsLazy(t *testing.T) {
	code := "import sys\nbefore = [m for m in ('logging', 'json', 're', 'http', 'email', 'traceback', 'socket') if m in sys.modules]\ndef handler(e, c):\n    import logging\n    logging.warning('x')\n    return [before, logging.__file__]\n"
	everyPython(t, func(t *testing.T, r *Runtime) {
		out := run{files: map[string]string{"m.py": code, "logging.py": "raise ImportError('shadow')"}, handler: "m.handler", steps: []step{{event: "1"}}}.start(t, r)
		if len(out.posts) != 1 || strings.Contains(out.posts[0].body, "/var/task") || !strings.Contains(out.posts[0].body, "logging/__init__.py") {
			t.Fatalf("posts %v stderr %s", out.posts, out.stderr)
		}
		t.Log(out.posts[0].body)
	})
}

func TestFramedLog(t *testing.T) {
	everyPython(t, func(t *testing.T, r *Runtime) {
		code := "import logging, os, subprocess\ndef handler(e, c):\n    logging.getLogger().warning('a\\nb')\n    print('plain')\n    c.log('raw')\n    raise ValueError('no')\n"
		file := filepath.Join(t.TempDir(), "frames")
		// The client is given a descriptor by the shell that stands for the platform.
		out := run{files: map[string]string{"m.py": code, "wrap": "#!/bin/sh\nexec 62>" + file + "\nexport _LAMBDA_TELEMETRY_LOG_FD=62\nexec \"$@\"\n"},
			env: map[string]string{"AWS_LAMBDA_EXEC_WRAPPER": "./wrap"}, handler: "m.handler", steps: []step{{event: "1"}}}
		if _, err := os.Stat("/bin/bash"); err != nil {
			t.Skip("needs a shell that opens descriptors above 9")
		}
		out.files["wrap"] = strings.Replace(out.files["wrap"], "/bin/sh", "/bin/bash", 1)
		got := out.start(t, r)
		if got.stdout != "plain\n" || len(got.posts) != 1 {
			t.Fatalf("stdout %q, posts %v, stderr %s", got.stdout, got.posts, got.stderr)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		type frame struct {
			kind uint32
			text string
		}
		var frames []frame
		for len(b) > 0 {
			n := int(b[4])<<24 | int(b[5])<<16 | int(b[6])<<8 | int(b[7])
			frames = append(frames, frame{uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]), string(b[16 : 16+n])})
			b = b[16+n:]
		}
		if len(frames) != 3 {
			t.Fatalf("frames %+v", frames)
		}
		if frames[0].kind != 0xa55a0013 || !strings.HasSuffix(frames[0].text, "\ta\nb\n") {
			t.Errorf("warning %x %q", frames[0].kind, frames[0].text)
		}
		if frames[1].kind != 0xa55a0003 || frames[1].text != "raw" {
			t.Errorf("context.log %x %q", frames[1].kind, frames[1].text)
		}
		if frames[2].kind != 0xa55a0017 || !strings.HasPrefix(frames[2].text, "[ERROR] ValueError: no\nTraceback (most recent call last):\n\u00a0\u00a0File ") || strings.HasSuffix(frames[2].text, "\n") {
			t.Errorf("error %x %q", frames[2].kind, frames[2].text)
		}
	})
}

func TestWrapper(t *testing.T) {
	everyPython(t, func(t *testing.T, r *Runtime) {
		files := map[string]string{
			"m.py":    "import os, sys\ndef handler(e, c): return [os.environ.get('WRAPPED'), sys.flags.optimize]\n",
			"wrap":    "#!/bin/sh\nWRAPPED=\"$#:$1:$2\" exec \"$1\" -O \"$2\"\n",
			"notexec": "exit 0\n",
		}
		x := run{files: files, handler: "m.handler", steps: []step{{event: "1"}}, env: map[string]string{"AWS_LAMBDA_EXEC_WRAPPER": "./wrap"}}
		out := x.start(t, r)
		if want := `["2:` + r.Interpreter + `:/var/runtime/bootstrap.py", 1]`; len(out.posts) != 1 || out.posts[0].body != want {
			t.Errorf("posts %v, want %s; stderr %s", out.posts, want, out.stderr)
		}
		for wrapper, code := range map[string]int{"./missing": 127, "./notexec": 126, "/": 126, "no-such-command": 127} {
			x.env = map[string]string{"AWS_LAMBDA_EXEC_WRAPPER": wrapper}
			if out := x.start(t, r); out.code != code || len(out.posts) != 0 || out.stderr == "" {
				t.Errorf("%s: exit code %d, want %d; stderr %q", wrapper, out.code, code, out.stderr)
			}
		}
	})
}

// TestIdentifierDecides: what differs from version to version follows the
// function's runtime, not the interpreter that stands in for it.
func TestIdentifierDecides(t *testing.T) {
	everyPython(t, func(t *testing.T, r *Runtime) {
		x := run{files: map[string]string{"m.py": "import sys\ndef handler(e, c):\n    if e: raise ValueError\n    return 'é'\n"}, handler: "m.handler", steps: []step{{event: "0"}, {event: "1"}}}
		for name, want := range map[string]string{"python3.11": `"\u00e9"`, "python3.12": `"é"`, "python3.8": `"\u00e9"`} {
			x.env = map[string]string{"AWS_EXECUTION_ENV": "AWS_Lambda_" + name}
			out := x.start(t, r)
			if len(out.posts) != 2 || out.posts[0].body != want || strings.Contains(out.posts[1].body, "requestId") == (name == "python3.8") {
				t.Errorf("%s: posts %v", name, out.posts)
			}
		}
	})
}

// TestOtherServers: proxies between client and platform speak HTTP in other ways.
func TestOtherServers(t *testing.T) {
	everyPython(t, func(t *testing.T, r *Runtime) {
		big := strings.Repeat("x", 3<<20)
		calls := 0
		x := run{files: map[string]string{"m.py": "def handler(e, c): return e\n"}, handler: "m.handler", steps: []step{{event: "1"}}}
		x.api = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/next") {
				calls++
				w.Header().Set("Lambda-Runtime-Aws-Request-Id", invokeID)
				w.Header().Set("Content-Type", "application/json")
				switch calls {
				case 1: // chunked
					w.WriteHeader(200)
					for _, part := range []string{`{"a":`, `[1`, `]}`} {
						io.WriteString(w, part)
						w.(http.Flusher).Flush()
					}
					return true
				case 2: // closes the connection after it
					w.Header().Set("Connection", "close")
					io.WriteString(w, `"closing"`)
					return true
				case 3: // no length at all, by the rules of HTTP/1.0
					conn, buf, _ := w.(http.Hijacker).Hijack()
					buf.WriteString("HTTP/1.0 200 OK\r\nlambda-runtime-aws-request-id: " + invokeID + "\r\nCONTENT-TYPE: application/json\r\n\r\n\"old\"")
					buf.Flush()
					conn.Close()
					return true
				case 4: // large, in both directions
					io.WriteString(w, `"`+big+`"`)
					return true
				case 5: // dropped without an answer: asked again
					conn, _, _ := w.(http.Hijacker).Hijack()
					conn.Close()
					return true
				}
				return false
			}
			return false
		}
		out := x.start(t, r)
		want := []string{`{"a": [1]}`, `"closing"`, `"old"`, `"` + big + `"`, "1"}
		if len(out.posts) != len(want) {
			t.Fatalf("%d posts, code %d, stderr %s", len(out.posts), out.code, out.stderr)
		}
		for i := range want {
			if out.posts[i].body != want[i] {
				t.Errorf("answer %d differs: %.80s", i, out.posts[i].body)
			}
		}
	})
}

func TestServerRefuses(t *testing.T) {
	everyPython(t, func(t *testing.T, r *Runtime) {
		status := 0
		x := run{files: map[string]string{"m.py": "def handler(e, c): return e\n"}, handler: "m.handler", steps: []step{{event: "1"}, {event: "2"}}}
		x.api = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPost {
				io.Copy(io.Discard, r.Body)
				w.WriteHeader(status)
				return true
			}
			return false
		}
		// Too large an answer is the platform's affair; anything else is the end.
		for status, code := range map[int]int{413: -1, 403: 1, 500: 1} {
			s := status
			x.api = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPost {
					io.Copy(io.Discard, r.Body)
					w.WriteHeader(s)
					return true
				}
				return false
			}
			if out := x.start(t, r); out.code != code {
				t.Errorf("status %d: exit code %d, want %d; stderr %s", s, out.code, code, out.stderr)
			}
		}
	})
}

// TestSignalWhileIdle: a function's SIGTERM handler runs while the client waits
// for the next event.
func TestSignalWhileIdle(t *testing.T) {
	everyPython(t, func(t *testing.T, r *Runtime) {
		x := run{files: map[string]string{"m.py": "import signal, sys\ndef bye(*a):\n    print('bye')\n    sys.exit(0)\nsignal.signal(signal.SIGTERM, bye)\ndef handler(e, c): return 1\n"}, handler: "m.handler", steps: []step{{event: "1"}}}
		x.idle = func(p *os.Process) { p.Signal(syscall.SIGTERM) }
		if out := x.start(t, r); out.code != 0 || out.stdout != "bye\n" {
			t.Errorf("exit code %d, stdout %q, stderr %s", out.code, out.stdout, out.stderr)
		}
	})
}
