package runtimes

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hostRuntime resolves an identifier on this machine; none is a failure in CI.
func hostRuntime(t testing.TB, name string) *Runtime {
	t.Helper()
	r, err := New(t.TempDir(), slog.New(slog.DiscardHandler)).Resolve(t.Context(), name)
	if err != nil {
		if os.Getenv("LAMBDAD_TEST_ROOT") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return r
}

// everyNode runs f with both generations of AWS's clients.
func everyNode(t *testing.T, f func(t *testing.T, r *Runtime, generation int)) {
	for i, name := range []string{"nodejs20.x", "nodejs24.x"} {
		t.Run(name, func(t *testing.T) { f(t, hostRuntime(t, name), 3+i) })
	}
}

// errorBody is what clients post of an error.
type errorBody struct {
	ErrorType, ErrorMessage string
	Trace, StackTrace       []string
}

func (p post) error(t *testing.T) errorBody {
	t.Helper()
	var b errorBody
	if err := json.Unmarshal([]byte(p.body), &b); err != nil {
		t.Fatalf("%s: %q: %v", p.path, p.body, err)
	}
	return b
}

func TestNodeInitFailures(t *testing.T) {
	files := map[string]string{
		"syntax.js": "export const handler = 1;\n", "dep.js": "require('missing-package');\n", "esmdep.mjs": "import 'missing-package';\nexport const handler = async () => 1;\n",
		"empty.js": "exports.n = 1; exports.deep = {};\n", "boom.js": "throw new TypeError('at load')\n", "str.js": "throw 'text'\n",
		"t/package.json": `{"type":"module"}`, "t/cjs.js": "exports.handler = 1;\n", "x.ts": "exports.handler = () => 1\n",
		"reject.js": "Promise.reject(new Error('later')); exports.handler = async () => 1;\n", "exit.js": "process.exit(7)\n",
		"never.mjs": "await new Promise(() => {});\n", "callback.js": "exports.handler = (e, c, callback) => callback(null, 1)\n",
	}
	everyNode(t, func(t *testing.T, r *Runtime, g int) {
		code := map[int]int{3: 129, 4: 1}[g]
		for _, c := range []struct {
			handler, typ, message string // message: pattern; typ "": nothing posted
			code                  int
		}{
			{"nodot", "Runtime.MalformedHandlerName", "^Bad handler$", code},
			{"a..b", "Runtime.MalformedHandlerName", "^'a..b' is not a valid handler name. Use absolute paths when specifying root directories in handler names.$", code},
			{"syntax.handler", "Runtime.UserCodeSyntaxError", "^SyntaxError: Unexpected token 'export'$", code},
			{"nofile.handler", "Runtime.ImportModuleError", "^Error: Cannot find module 'nofile'\nRequire stack:\n- /var/runtime/index.mjs$", code},
			{"dep.handler", "Runtime.ImportModuleError", "^Error: Cannot find module 'missing-package'\nRequire stack:\n- /var/task/dep.js", code},
			{"x.handler", "Runtime.ImportModuleError", "^Error: Cannot find module 'x'", code},
			{"esmdep.handler", "Error", "^Cannot find package 'missing-package' imported from /var/task/esmdep.mjs$", code},
			{"t/cjs.handler", "ReferenceError", "^exports is not defined in ES module scope", code},
			{"empty.x", "Runtime.HandlerNotFound", "^empty.x is undefined or not exported$", code},
			{"empty.n", "Runtime.HandlerNotFound", "^empty.n is not a function$", code},
			{"empty.deep.er", "Runtime.HandlerNotFound", "^empty.deep.er is undefined or not exported$", code},
			{"boom.handler", "TypeError", "^at load$", code},
			{"str.handler", "string", "^text$", code},
			{"exit.handler", "", "", 7},
			{"never.handler", "", "", map[int]int{3: 13, 4: 0}[g]},
		} {
			t.Run(strings.ReplaceAll(c.handler, "/", "|"), func(t *testing.T) {
				out := run{files: files, handler: c.handler}.start(t, r)
				if out.code != c.code {
					t.Errorf("exit code %d, want %d; stderr %s", out.code, c.code, out.stderr)
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
				b := out.posts[0].error(t)
				if b.ErrorType != c.typ || !regexp.MustCompile(c.message).MatchString(b.ErrorMessage) || out.posts[0].head.Get("Lambda-Runtime-Function-Error-Type") != c.typ {
					t.Errorf("%+v, header %q", b, out.posts[0].head.Get("Lambda-Runtime-Function-Error-Type"))
				}
				if !regexp.MustCompile(`^\{"errorType":".*","errorMessage":".*","trace":\[`).MatchString(out.posts[0].body) {
					t.Errorf("members: %s", out.posts[0].body)
				}
				title := map[int]string{3: "\tundefined\tERROR\tUncaught Exception \t{", 4: "\t-\tERROR\tInit Error \t{"}[g]
				if !strings.Contains(out.stdout, title) {
					t.Errorf("log %q", out.stdout)
				}
			})
		}
		t.Run("rejection", func(t *testing.T) {
			out := run{files: files, handler: "reject.handler"}.start(t, r)
			if g == 4 {
				if out.code != 1 || len(out.posts) != 0 {
					t.Errorf("code %d, posts %v", out.code, out.posts)
				}
				return
			}
			// The rejection is seen once the handler has been loaded: during init or at
			// the first wait for an event.
			if out.code != 128 {
				t.Errorf("code %d, posts %v", out.code, out.posts)
			}
		})
		t.Run("callback", func(t *testing.T) {
			out := run{files: files, handler: "callback.handler", steps: []step{{event: "1"}}}.start(t, r)
			if g == 3 {
				if len(out.posts) != 1 || out.posts[0].body != "1" {
					t.Errorf("posts %v", out.posts)
				}
				return
			}
			if len(out.posts) != 1 || out.posts[0].error(t).ErrorType != "Runtime.CallbackHandlerDeprecated" || !strings.HasPrefix(out.posts[0].error(t).ErrorMessage, "ERROR: AWS Lambda has removed support for callback-based") {
				t.Errorf("posts %v", out.posts)
			}
		})
	})
}

func TestNodeModules(t *testing.T) {
	files := map[string]string{
		"index.js": "exports.handler = async () => 'cjs'\nexports.a = {b: {c: async () => 'deep'}}\nclass H { static async m() { return 'static' } }\nexports.H = H\n",
		"m.mjs":    "export const handler = async () => 'esm'\n", "c.cjs": "exports.handler = async () => 'cjs'\n",
		"t/package.json": `{"type":"module"}`, "t/index.js": "export const handler = async () => import.meta.url.slice(-5)\n",
		"lib/deep/f.js": "exports.h = async () => __filename\n", "folder/index.js": "exports.h = async () => 'folder'\n",
		"both/index.js": "exports.h = async () => 'folder'\n", "both.js": "exports.h = async () => 'file'\n",
		"pkg/package.json": `{"main":"main.js"}`, "pkg/main.js": "exports.h = async () => 'main'\n",
		"def.mjs": "export default async () => 'default'\n", "defobj.mjs": "export default {handler: async () => 'inside'}\n",
		"tla.mjs":    "const v = await Promise.resolve('tla'); export const handler = async () => v\n",
		"layered.js": "const d = require('both-have'); exports.handler = async () => d\n", "layered2.mjs": "import d from 'in-layer'; export const handler = async () => d\n",
		"dyn.js":                          "exports.handler = async () => (await import('in-layer')).default\n",
		"node_modules/both-have/index.js": "module.exports = 'package'\n",
	}
	everyNode(t, func(t *testing.T, r *Runtime, g int) {
		for handler, want := range map[string]string{
			"index.handler": `"cjs"`, "index.a.b.c": `"deep"`, "index.H.m": `"static"`, "./index.handler": `"cjs"`, "m.handler": `"esm"`, "c.handler": `"cjs"`,
			"t/index.handler": `"ex.js"`, "lib/deep/f.h": `"/var/task/lib/deep/f.js"`, "/var/task/index.handler": `"cjs"`, "folder.h": `"folder"`, "both.h": `"file"`, "pkg.h": `"main"`,
			"def.default": `"default"`, "tla.handler": `"tla"`, "layered.handler": `"package"`, "layered2.handler": `"layer"`, "dyn.handler": `"layer"`, "defobj.handler": "",
		} {
			t.Run(strings.ReplaceAll(handler, "/", "|"), func(t *testing.T) {
				x := run{files: files, handler: handler, steps: []step{{event: "{}"}}, opt: map[string]string{
					"nodejs/node_modules/both-have/index.js": "module.exports = 'layer'\n", "nodejs/node_modules/in-layer/index.js": "module.exports = 'layer'\n",
				}, env: map[string]string{}}
				out := x.start(t, r)
				switch {
				case handler == "defobj.handler" && g == 3:
					if len(out.posts) != 1 || out.posts[0].error(t).ErrorType != "Runtime.HandlerNotFound" {
						t.Errorf("posts %v", out.posts)
					}
				case handler == "defobj.handler":
					if len(out.posts) != 1 || out.posts[0].body != `"inside"` {
						t.Errorf("posts %v", out.posts)
					}
				case len(out.posts) != 1 || out.posts[0].body != want:
					t.Errorf("posts %v, want %s; stderr %s", out.posts, want, out.stderr)
				}
			})
		}
	})
}

func TestNodeInvocations(t *testing.T) {
	everyNode(t, func(t *testing.T, r *Runtime, g int) {
		var shared, names []string
		var steps []step
		var checks []func(*testing.T, post, string)
		const nodeExit = "The Lambda runtime client detected an unexpected Node.js exit code."
		for _, c := range []struct {
			name, code  string // of exports.handler
			three, four string // body of a response; "type: message" of an error
			codes       [2]int // exit codes; 0: it lives
			never4      bool   // not a case of generation 4
			own         bool   // leaves something behind, so that it needs a process of its own
		}{
			{name: "async", code: "async (e) => e", three: `{"k":1}`, four: `{"k":1}`},
			{name: "thenable", code: "() => ({then: (f) => f(2)})", three: "2", four: "2"},
			{name: "sync return", code: "() => 3", three: "null", four: "3"},
			{name: "undefined", code: "async () => {}", three: "null", four: "null"},
			{name: "nothing", code: "() => {}", three: "null", four: "null"},
			{name: "NaN", code: "async () => NaN", three: "null", four: "null"},
			{name: "date", code: "async () => ({d: new Date(0), b: Buffer.from('a'), m: new Map(), u: new Uint8Array(1)})", three: `{"d":"1970-01-01T00:00:00.000Z","b":{"type":"Buffer","data":[97]},"m":{},"u":{"0":0}}`, four: `{"d":"1970-01-01T00:00:00.000Z","b":{"type":"Buffer","data":[97]},"m":{},"u":{"0":0}}`},
			{name: "unicode", code: "async () => 'é\\u{1f600}'", three: `"é😀"`, four: `"é😀"`},
			{name: "cycle", code: "async () => { const a = {}; a.a = a; return a }", three: "Error: Unable to stringify response body", four: "Runtime.JSONStringifyError: Unable to stringify response body"},
			{name: "bigint", code: "async () => 1n", three: "Error: Unable to stringify response body", four: "Runtime.JSONStringifyError: Unable to stringify response body"},
			{name: "function", code: "async () => () => 1", three: "TypeError: Wrong arguments", four: "TypeError: Wrong arguments"},
			{name: "throw", code: "async () => { throw new RangeError('x') }", three: "RangeError: x", four: "RangeError: x"},
			{name: "sync throw", code: "() => { throw new Error('x') }", three: "Error: x", four: "Error: x"},
			{name: "subclass", code: "async () => { class Mine extends Error {}; throw new Mine('x') }", three: "Error: x", four: "Error: x"},
			{name: "string", code: "async () => { throw 'str' }", three: "string: str", four: "string: str"},
			{name: "object", code: "async () => { throw {a: 1} }", three: "object: [object Object]", four: "object: [object Object]"},
			{name: "throw undefined", code: "async () => { throw undefined }", three: "string: handled", four: "undefined: undefined"},
			{name: "sync throw undefined", code: "() => { throw undefined }", three: "null", four: "undefined: undefined"},
			{name: "overflow", code: "async () => { const f = () => f() + 1; return f() }", three: "RangeError: Maximum call stack size exceeded", four: "RangeError: Maximum call stack size exceeded"},
			{name: "callback", code: "(e, c, cb) => cb(null, {ok: true})", three: `{"ok":true}`, never4: true},
			{name: "callback error", code: "(e, c, cb) => cb(new Error('x'))", three: "Error: x", never4: true},
			{name: "callback text", code: "(e, c, cb) => cb('s')", three: "string: s", never4: true},
			{name: "callback waits", code: "(e, c, cb) => { let n = 0; setTimeout(() => { console.log('late'); }, 30); cb(null, 5) }", three: "5", never4: true},
			{name: "callback does not wait", code: "(e, c, cb) => { c.callbackWaitsForEmptyEventLoop = false; setTimeout(() => {}, 60000); cb(null, 6) }", three: "6", never4: true, own: true},
			{name: "second callback", code: "(e, c, cb) => { cb(null, 1); cb(null, 2) }", three: "1", never4: true},
			{name: "async and callback", code: "async (e, c, cb) => { c.callbackWaitsForEmptyEventLoop = false; cb(null, 1); return 2 }", three: "1", never4: true},
			{name: "succeed", code: "(e, c) => { setTimeout(() => {}, 60000); c.succeed('s') }", three: `"s"`, never4: true, own: true},
			{name: "fail", code: "(e, c) => c.fail()", three: "string: handled", never4: true},
			{name: "done", code: "(e, c) => c.done(null, 1)", three: "1", never4: true},
			{name: "never settles", code: "async () => { await new Promise(() => {}) }", three: "Runtime.NodeJsExit: " + nodeExit, four: "", codes: [2]int{0, -2}, own: true},
			{name: "plain never settles", code: "() => new Promise(() => {})", three: "null", four: "", codes: [2]int{0, -2}, own: true},
			{name: "unhandled", code: "async () => { Promise.reject(new Error('u')); await new Promise((r) => setTimeout(r, 1000)) }", three: "Runtime.UnhandledPromiseRejection: Error: u", four: "", codes: [2]int{128, 1}},
			{name: "uncaught", code: "async () => { setTimeout(() => { throw new TypeError('t') }, 1); await new Promise((r) => setTimeout(r, 1000)) }", three: "TypeError: t", four: "", codes: [2]int{129, 1}},
			{name: "exit", code: "async () => process.exit(3)", codes: [2]int{3, 3}},
			{name: "exit zero", code: "async () => process.exit(0)", codes: [2]int{-2, -2}},
		} {
			want, code := c.three, c.codes[g-3]
			if g == 4 {
				if c.never4 {
					continue
				}
				want = c.four
			}
			check := func(t *testing.T, p post, stdout string) {
				if strings.HasSuffix(p.path, "/response") {
					if p.body != want || p.head.Get("Content-Type") != "application/json" {
						t.Errorf("got %s (%s), want %s", p.body, p.head.Get("Content-Type"), want)
					}
					return
				}
				b := p.error(t)
				if !strings.HasSuffix(p.path, "/error") || !strings.HasPrefix(b.ErrorType+": "+b.ErrorMessage, want) {
					t.Errorf("%s %+v, want %s", p.path, b, want)
				}
				if p.head["Lambda-Runtime-Function-Error-Type"] != nil {
					t.Error("an invocation error has a type header")
				}
				if len(b.Trace) > 0 && !strings.Contains(stdout, "\tERROR\t") {
					t.Errorf("no record: %q", stdout)
				}
			}
			if !c.own && code == 0 {
				shared = append(shared, fmt.Sprintf("%q: %s", c.name, c.code))
				steps = append(steps, step{event: fmt.Sprintf(`{"k":1,"name":%q}`, c.name)})
				names = append(names, c.name)
				checks = append(checks, check)
				continue
			}
			t.Run(c.name, func(t *testing.T) {
				out := run{files: map[string]string{"i.js": "exports.handler = " + c.code}, handler: "i.handler", steps: []step{{event: `{"k":1}`}}}.start(t, r)
				if wantCode := map[int]int{0: -1, -2: 0}; code <= 0 && out.code != wantCode[code] || code > 0 && out.code != code {
					t.Errorf("exit code %d, want %d (0: it lives); stderr %s", out.code, code, out.stderr)
				}
				if want == "" {
					if len(out.posts) != 0 {
						t.Errorf("posts %v", out.posts)
					}
					return
				}
				if len(out.posts) != 1 {
					t.Fatalf("posts %v, stderr %s", out.posts, out.stderr)
				}
				check(t, out.posts[0], out.stdout)
			})
		}
		params := map[int]string{3: "e, c, cb", 4: "e, c"}[g]
		out := run{files: map[string]string{"i.js": "const cases = {" + strings.Join(shared, ",\n") + "};\nexports.handler = (" + params + ") => { const n = e.name; delete e.name; return cases[n](" + params + ") }\n"}, handler: "i.handler", steps: steps}.start(t, r)
		if len(out.posts) != len(checks) {
			t.Fatalf("%d posts for %d events; stderr %s", len(out.posts), len(checks), out.stderr)
		}
		for i, check := range checks {
			t.Run(names[i], func(t *testing.T) { check(t, out.posts[i], out.stdout) })
		}
		t.Run("bad event", func(t *testing.T) {
			out := run{files: map[string]string{"i.js": "exports.handler = async () => 1"}, handler: "i.handler", steps: []step{{event: "{"}, {event: ""}, {event: "1", headers: map[string]string{"Lambda-Runtime-Client-Context": "x"}}, {event: "1"}}}.start(t, r)
			if len(out.posts) != 4 || out.posts[0].error(t).ErrorType != "SyntaxError" || out.posts[1].error(t).ErrorType != "SyntaxError" || !strings.HasPrefix(out.posts[2].error(t).ErrorMessage, "Cannot parse ClientContext as json: ") || out.posts[3].body != "1" {
				t.Errorf("posts %v", out.posts)
			}
		})
	})
}

func TestNodeContext(t *testing.T) {
	everyNode(t, func(t *testing.T, r *Runtime, g int) {
		code := `exports.handler = async (e, c) => ({...c, left: c.getRemainingTimeInMillis() > 50000, trace: process.env._X_AMZN_TRACE_ID, fd: process.env._LAMBDA_TELEMETRY_LOG_FD, store: globalThis.awslambda.InvokeStore && awslambda.InvokeStore.getRequestId(), keys: Object.keys(c).sort().join()})`
		out := run{files: map[string]string{"i.js": code}, handler: "i.handler", env: map[string]string{"_LAMBDA_TELEMETRY_LOG_FD": "9"}, steps: []step{
			{event: "1", headers: map[string]string{"Lambda-Runtime-Trace-Id": "Root=1", "Lambda-Runtime-Client-Context": `{"client":{"a":1},"custom":{"x":"é"}}`, "Lambda-Runtime-Cognito-Identity": `{"cognitoIdentityId":"i","cognitoIdentityPoolId":"p"}`, "Lambda-Runtime-Aws-Tenant-Id": "t"}},
			{event: "1"},
		}}.start(t, r)
		if len(out.posts) != 2 {
			t.Fatalf("posts %v, %s", out.posts, out.stderr)
		}
		var first, second map[string]any
		if err := json.Unmarshal([]byte(out.posts[0].body), &first); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(out.posts[1].body), &second); err != nil {
			t.Fatal(err)
		}
		for k, want := range map[string]any{
			"functionName": "f", "functionVersion": "$LATEST", "invokedFunctionArn": arn, "awsRequestId": invokeID, "logGroupName": "/aws/lambda/f", "logStreamName": "stream",
			"memoryLimitInMB": "128", "tenantId": "t", "left": true, "trace": "Root=1", "fd": nil,
			"clientContext": map[string]any{"client": map[string]any{"a": 1.0}, "custom": map[string]any{"x": "é"}}, "identity": map[string]any{"cognitoIdentityId": "i", "cognitoIdentityPoolId": "p"},
		} {
			if fmt.Sprint(first[k]) != fmt.Sprint(want) {
				t.Errorf("%s is %v, want %v", k, first[k], want)
			}
		}
		for _, k := range []string{"trace", "clientContext", "identity", "tenantId"} {
			if second[k] != nil {
				t.Errorf("%s is %v in the second invocation", k, second[k])
			}
		}
		old := strings.Contains(first["keys"].(string), "callbackWaitsForEmptyEventLoop") && strings.Contains(first["keys"].(string), "succeed")
		if old != (g == 3) || (first["xRayTraceId"] == "Root=1") != (g == 4) || (first["store"] == invokeID) != (g == 4) {
			t.Errorf("generation %d: %v", g, first)
		}
		if out.connections != 1 || !strings.HasPrefix(out.agent, "aws-lambda-nodejs/v") {
			t.Errorf("%d connections, agent %s", out.connections, out.agent)
		}
	})
}

func TestNodeLogs(t *testing.T) {
	r := hostRuntime(t, "nodejs20.x")
	code := `exports.handler = async () => { console.log('a\nb', {x: 1}); console.debug('d'); console.error(new Error('boom')); console.log({k: 1}); console.log(); console.warn('w %d', 5, new TypeError('t')); process.stdout.write('raw\n'); }`
	files := map[string]string{"i.js": code}
	out := run{files: files, handler: "i.handler", steps: []step{{event: "1"}}}.start(t, r)
	stamp := `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\t` + invokeID + `\t`
	if !regexp.MustCompile(`^` + stamp + `INFO\ta\rb \{ x: 1 \}\n` + stamp + `DEBUG\td\n` + stamp + `ERROR\tError: boom\r    at [^\n]*\n` + stamp + `INFO\t\{ k: 1 \}\n` + stamp + `INFO\t\n` + stamp + `WARN\tw 5 TypeError: t[^\n]*\nraw\n$`).MatchString(out.stdout) {
		t.Errorf("text: %q", out.stdout)
	}
	out = run{files: files, handler: "i.handler", steps: []step{{event: "1"}}, env: map[string]string{"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": "INFO"}}.start(t, r)
	lines := strings.Split(strings.TrimSpace(out.stdout), "\n")
	if len(lines) != 6 || lines[5] != "raw" {
		t.Fatalf("JSON: %q", lines)
	}
	for i, want := range []string{
		`"level":"INFO","requestId":"` + invokeID + `","message":"a\nb { x: 1 }"`,
		`"level":"ERROR","requestId":"` + invokeID + `","message":{"errorType":"Error","errorMessage":"boom","stackTrace":["Error: boom",`,
		`"level":"INFO","requestId":"` + invokeID + `","message":{"k":1}}`,
		`"level":"INFO","requestId":"` + invokeID + `"}`,
		`"level":"WARN","requestId":"` + invokeID + `","message":"w 5 TypeError: t`,
	} {
		if !strings.Contains(lines[i], strings.ReplaceAll(want, "\n", `\n`)) || !json.Valid([]byte(lines[i])) {
			t.Errorf("line %d: %s, want %s", i, lines[i], want)
		}
	}
}

func TestNodeStreaming(t *testing.T) {
	everyNode(t, func(t *testing.T, r *Runtime, g int) {
		for _, c := range []struct{ name, code, typ, body, trailer, log string }{
			{"chunks", "async (e, s, c) => { s.write('a'); s.write(Buffer.from('b')); s.write({k: 1}); s.end() }", "application/octet-stream", `ab{"k":1}`, "", ""},
			{"type", "async (e, s) => { s.setContentType('text/html'); s.end('x') }", "text/html", "x", "", ""},
			{"empty", "async (e, s) => { s.end() }", "application/octet-stream", "", "", ""},
			{"late type", "async (e, s) => { s.write('a'); s.setContentType('x') }", "application/octet-stream", "a", map[int]string{3: "Error", 4: "InvalidStreamingOperation"}[g], "Cannot set content-type, too late."},
			{"throw first", "async () => { throw new RangeError('x') }", "application/octet-stream", "", "RangeError", "RangeError"},
			{"throw later", "async (e, s) => { s.write('a'); throw new RangeError('x') }", "application/octet-stream", "a", "RangeError", "RangeError"},
			{"http", "async (e, s) => { s = awslambda.HttpResponseStream.from(s, {statusCode: 201}); s.write('x'); s.end() }", "application/vnd.awslambda.http-integration-response", "{\"statusCode\":201}\x00\x00\x00\x00\x00\x00\x00\x00x", "", ""},
			{"http without a write", "async (e, s) => { s = awslambda.HttpResponseStream.from(s, {statusCode: 201}); s.end() }", "application/vnd.awslambda.http-integration-response", "", "", ""},
			{"pipeline", "async (e, s) => { await require('stream/promises').pipeline(require('stream').Readable.from(['x', 'y']), s) }", "application/octet-stream", "xy", "", ""},
			{"not async", "(e, s) => { s.end('n') }", "application/octet-stream", "n", "", ""},
			{"not async, not ended", "(e, s) => { s.write('n') }", "application/octet-stream", "n", map[int]string{3: "Error", 4: "InvalidStreamingOperation"}[g], "Streaming does not support non-async handlers."},
			{"value", "async (e, s) => { s.end('v'); return 1 }", "application/octet-stream", "v", "", "WARN\tStreaming handlers ignore return values."},
			{"big", "async (e, s) => { for (let i = 0; i < 100; i++) s.write('x'.repeat(10000)); s.end() }", "application/octet-stream", strings.Repeat("x", 1000000), "", ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				var trailer http.Header
				api := func(w http.ResponseWriter, req *http.Request) bool {
					if req.Method == http.MethodPost {
						req.Body = &atEnd{req.Body, func() { trailer = req.Trailer }}
					}
					return false
				}
				out := run{files: map[string]string{"i.js": "exports.handler = awslambda.streamifyResponse(" + c.code + ")"}, handler: "i.handler", steps: []step{{event: "1"}, {event: "1"}}, api: api}.start(t, r)
				if len(out.posts) != 2 {
					t.Fatalf("posts %v, stderr %s", out.posts, out.stderr)
				}
				p := out.posts[1]
				if p.path != "invocation/"+invokeID+"/response" || p.body != c.body || p.head.Get("Content-Type") != c.typ || p.head.Get("Lambda-Runtime-Function-Response-Mode") != "streaming" {
					t.Errorf("%s %q %v", p.path, p.body, p.head)
				}
				if trailer.Get("Lambda-Runtime-Function-Error-Type") != c.trailer || (trailer.Get("Lambda-Runtime-Function-Error-Body") != "") != (c.trailer != "") {
					t.Errorf("trailer %v", trailer)
				}
				if !strings.Contains(out.stdout, c.log) {
					t.Errorf("log %q", out.stdout)
				}
			})
		}
	})
}

func TestNodeLifeBetweenInvocations(t *testing.T) {
	r := hostRuntime(t, "nodejs20.x")
	code := `let n = 0; exports.handler = (e, c, cb) => { c.callbackWaitsForEmptyEventLoop = false; if (n++ === 0) setTimeout(() => console.log('late'), 20); setTimeout(() => cb(null, n), n === 1 ? 0 : 200) }`
	out := run{files: map[string]string{"i.js": code}, handler: "i.handler", steps: []step{{event: "1"}, {event: "1", headers: map[string]string{"Lambda-Runtime-Aws-Request-Id": "second"}}}}.start(t, r)
	if len(out.posts) != 2 || out.posts[1].body != "2" || !strings.Contains(out.stdout, "late") {
		t.Errorf("posts %v, stdout %q", out.posts, out.stdout)
	}
	// SIGTERM while idle reaches the function's own handler.
	code = `process.on('SIGTERM', () => { console.log('term'); process.exit(0) }); exports.handler = async () => 1`
	out = run{files: map[string]string{"i.js": code}, handler: "i.handler", steps: []step{{event: "1"}}, idle: func(p *os.Process) {
		time.Sleep(100 * time.Millisecond)
		_ = p.Signal(syscall.SIGTERM)
	}}.start(t, r)
	if out.code != 0 || !strings.Contains(out.stdout, "term") {
		t.Errorf("code %d, stdout %q", out.code, out.stdout)
	}
}
