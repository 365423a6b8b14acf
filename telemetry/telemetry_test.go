package telemetry

import (
	"context"
	"strings"
	"testing"
	"time"
)

const ms = Millis(time.Millisecond)

var at = time.Date(2026, 10, 8, 7, 30, 28, 0, time.FixedZone("x", 3600))

func TestRender(t *testing.T) {
	trace := func(span string) *TraceContext {
		return &TraceContext{SpanID: span, Type: "X-Amzn-Trace-Id", Value: "Root=1-5f35ae12-0c0fec141ab77a00bc047aa2;Parent=2be948a625588e32;Sampled=1"}
	}
	metrics := ReportMetrics{Duration: Millis(3006 * time.Microsecond), Billed: 114, MemorySize: 128, MaxMemoryUsed: 36, Init: Millis(110100 * time.Microsecond)}
	warm := metrics
	warm.Init = 0
	zero := int64(0)
	for _, c := range []struct {
		name, typ  string
		record     any
		text, json string
	}{{
		"init start", TypeInitStart,
		InitStart{"on-demand", "init", "python:3.13.v42", "arn:aws:lambda:R::runtime:HASH", "f", "$LATEST", "2026/10/08/[$LATEST]0", 268435456},
		"INIT_START Runtime Version: python:3.13.v42\tRuntime Version ARN: arn:aws:lambda:R::runtime:HASH\n",
		`{"initializationType":"on-demand","phase":"init","runtimeVersion":"python:3.13.v42","runtimeVersionArn":"arn:aws:lambda:R::runtime:HASH","functionName":"f","functionVersion":"$LATEST","instanceId":"2026/10/08/[$LATEST]0","instanceMaxMemory":268435456}`,
	}, {
		"init start, version unknown", TypeInitStart, InitStart{InitializationType: "on-demand", Phase: "init", FunctionName: "f", FunctionVersion: "1"}, "",
		`{"initializationType":"on-demand","phase":"init","functionName":"f","functionVersion":"1"}`,
	}, {
		"suppressed init start", TypeInitStart, InitStart{InitializationType: "on-demand", Phase: "invoke", RuntimeVersion: "v", FunctionName: "f", FunctionVersion: "1"}, "",
		`{"initializationType":"on-demand","phase":"invoke","runtimeVersion":"v","functionName":"f","functionVersion":"1"}`,
	}, {
		"init runtime done", TypeInitRuntimeDone, InitRuntimeDone{"on-demand", "init", "success", "", nil}, "",
		`{"initializationType":"on-demand","phase":"init","status":"success"}`,
	}, {
		"init report, success", TypeInitReport, InitReport{"on-demand", "init", "success", "", InitMetrics{Millis(173778 * time.Microsecond)}, nil}, "",
		`{"initializationType":"on-demand","phase":"init","status":"success","metrics":{"durationMs":173.778}}`,
	}, {
		"init report, provisioned", TypeInitReport, InitReport{"provisioned-concurrency", "init", "success", "", InitMetrics{Millis(9908090 * time.Microsecond)}, nil},
		"INIT_REPORT Init Duration: 9908.09 ms\n",
		`{"initializationType":"provisioned-concurrency","phase":"init","status":"success","metrics":{"durationMs":9908.09}}`,
	}, {
		"init report, error", TypeInitReport, InitReport{"on-demand", "init", "error", "Runtime.UserCodeSyntaxError", InitMetrics{Millis(150790 * time.Microsecond)}, nil},
		"INIT_REPORT Init Duration: 150.79 ms\tPhase: init\tStatus: error\tError Type: Runtime.UserCodeSyntaxError\n",
		`{"initializationType":"on-demand","phase":"init","status":"error","errorType":"Runtime.UserCodeSyntaxError","metrics":{"durationMs":150.79}}`,
	}, {
		"init report, timeout", TypeInitReport, InitReport{"on-demand", "invoke", "timeout", "", InitMetrics{3000 * ms}, nil},
		"INIT_REPORT Init Duration: 3000.00 ms\tPhase: invoke\tStatus: timeout\n",
		`{"initializationType":"on-demand","phase":"invoke","status":"timeout","metrics":{"durationMs":3000}}`,
	}, {
		"subscription", TypeSubscription, Subscription{"x", "Subscribed", []string{"platform", "function", "extension"}},
		"TELEMETRY\tName: x\tState: Subscribed\tTypes: [Platform, Function, Extension]\n",
		`{"name":"x","state":"Subscribed","types":["platform","function","extension"]}`,
	}, {
		"logs subscription", TypeLogsSubscribed, Subscription{"x", "Subscribed", []string{"platform"}},
		"LOGS\tName: x\tState: Subscribed\tTypes: [Platform]\n", `{"name":"x","state":"Subscribed","types":["platform"]}`,
	}, {
		"extension", TypeExtension, Extension{"x", "Ready", []string{"INVOKE", "SHUTDOWN"}, ""},
		"EXTENSION\tName: x\tState: Ready\tEvents: [INVOKE, SHUTDOWN]\n", `{"name":"x","state":"Ready","events":["INVOKE","SHUTDOWN"]}`,
	}, {
		"extension failed", TypeExtension, Extension{"x", "LaunchError", []string{}, "PermissionDenied"},
		"EXTENSION\tName: x\tState: LaunchError\tEvents: []\tError Type: PermissionDenied\n",
		`{"name":"x","state":"LaunchError","events":[],"errorType":"PermissionDenied"}`,
	}, {
		"start", TypeStart, Start{RequestID: "id", FunctionARN: "arn", Version: "$LATEST"},
		"START RequestId: id Version: $LATEST\n", `{"requestId":"id","functionArn":"arn","version":"$LATEST"}`,
	}, {
		"runtime done", TypeRuntimeDone, RuntimeDone{RequestID: "id", Status: "success", Metrics: &RuntimeMetrics{Millis(11185 * time.Microsecond), &zero},
			Spans: []Span{{Name: "responseLatency", Start: Stamp(at), Duration: Millis(70500 * time.Microsecond)}}}, "",
		`{"requestId":"id","status":"success","spans":[{"name":"responseLatency","start":"2026-10-08T06:30:28.000Z","durationMs":70.5}],"metrics":{"durationMs":11.185,"producedBytes":0}}`,
	}, {
		"report", TypeReport, Report{RequestID: "id", Status: "success", Metrics: metrics},
		"END RequestId: id\nREPORT RequestId: id\tDuration: 3.01 ms\tBilled Duration: 114 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\tInit Duration: 110.10 ms\t\n",
		`{"requestId":"id","status":"success","metrics":{"durationMs":3.006,"billedDurationMs":114,"memorySizeMB":128,"maxMemoryUsedMB":36,"initDurationMs":110.1}}`,
	}, {
		"report, warm and traced", TypeReport, Report{RequestID: "id", Status: "success", Metrics: warm, Tracing: trace("54565fb41ac79632")},
		"END RequestId: id\nREPORT RequestId: id\tDuration: 3.01 ms\tBilled Duration: 114 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\t\nXRAY TraceId: 1-5f35ae12-0c0fec141ab77a00bc047aa2\tSegmentId: 54565fb41ac79632\tSampled: true\t\n",
		`{"requestId":"id","status":"success","metrics":{"durationMs":3.006,"billedDurationMs":114,"memorySizeMB":128,"maxMemoryUsedMB":36},"tracing":{"spanId":"54565fb41ac79632","type":"X-Amzn-Trace-Id","value":"Root=1-5f35ae12-0c0fec141ab77a00bc047aa2;Parent=2be948a625588e32;Sampled=1"}}`,
	}, {
		"report, timeout", TypeReport, Report{RequestID: "id", Status: "timeout", Metrics: metrics},
		"END RequestId: id\nREPORT RequestId: id\tDuration: 3.01 ms\tBilled Duration: 114 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\tInit Duration: 110.10 ms\tStatus: timeout\n",
		`{"requestId":"id","status":"timeout","metrics":{"durationMs":3.006,"billedDurationMs":114,"memorySizeMB":128,"maxMemoryUsedMB":36,"initDurationMs":110.1}}`,
	}, {
		"report, error and traced", TypeReport, Report{RequestID: "id", Status: "error", ErrorType: "Runtime.OutOfMemory", Metrics: warm, Tracing: trace("54565fb41ac79632")},
		"END RequestId: id\nREPORT RequestId: id\tDuration: 3.01 ms\tBilled Duration: 114 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\tStatus: error\tError Type: Runtime.OutOfMemory\nXRAY TraceId: 1-5f35ae12-0c0fec141ab77a00bc047aa2\tSegmentId: 54565fb41ac79632\tSampled: true\n",
		`{"requestId":"id","status":"error","errorType":"Runtime.OutOfMemory","metrics":{"durationMs":3.006,"billedDurationMs":114,"memorySizeMB":128,"maxMemoryUsedMB":36},"tracing":{"spanId":"54565fb41ac79632","type":"X-Amzn-Trace-Id","value":"Root=1-5f35ae12-0c0fec141ab77a00bc047aa2;Parent=2be948a625588e32;Sampled=1"}}`,
	}, {
		"line", TypeFunctionLine, Line("a\r<b>"), "a\r<b>\n", `"a\r<b>"`,
	}} {
		t.Run(c.name, func(t *testing.T) {
			e := Event{Time: at, Type: c.typ, Record: c.record}
			if got := string(AppendText(nil, e)); got != c.text {
				t.Errorf("text\n got %q\nwant %q", got, c.text)
			}
			want := `{"time":"2026-10-08T06:30:28.000Z","type":"` + c.typ + `","record":` + c.json + "}\n"
			if got := string(AppendJSON(nil, e)); got != want {
				t.Errorf("json\n got %s\nwant %s", got, want)
			}
		})
	}
}

func TestJSONLevels(t *testing.T) {
	info := NewFormat("JSON", "", "")
	for _, c := range []struct {
		format Format
		record any
		shown  bool
	}{
		{info, InitStart{RuntimeVersion: "v"}, true},
		{info, InitStart{}, false},
		{info, RuntimeDone{Status: StatusSuccess}, false},
		{info, RuntimeDone{Status: StatusError}, true},
		{info, InitReport{Status: StatusSuccess, InitializationType: "on-demand"}, false},
		{info, InitReport{Status: StatusTimeout, InitializationType: "on-demand"}, true},
		{info, Start{}, true},
		{info, Report{Status: StatusSuccess}, true},
		{NewFormat("JSON", "", "WARN"), Report{Status: StatusSuccess}, false},
		{NewFormat("JSON", "", "WARN"), Report{Status: StatusTimeout}, true},
		{NewFormat("JSON", "", "DEBUG"), RuntimeDone{Status: StatusSuccess}, true},
		{NewFormat("JSON", "", "DEBUG"), Span{}, false},
		{info, Extension{State: "Ready"}, true},
		{NewFormat("JSON", "WARN", ""), Line(`{"level":"info","m":1}`), false},
		{NewFormat("JSON", "WARN", ""), Line(`{"level":"ERROR","m":1}`), true},
		{NewFormat("JSON", "WARN", ""), Line(`plain`), false},
		{NewFormat("JSON", "WARN", ""), Line(`{"level":7}`), false},
		{NewFormat("JSON", "TRACE", ""), Line(`{"level":"trace"}`), true},
		{info, Line(`{"level":"debug"}`), false},
		{info, Line(`{"level":"debug"`), true}, // no JSON
	} {
		typ := "platform.x"
		if _, ok := c.record.(Span); ok {
			typ = TypeSpan
		}
		if shown := len(c.format.Append(nil, Event{Type: typ, Record: c.record})) > 0; shown != c.shown {
			t.Errorf("%+v with %+v: shown %v", c.record, c.format, shown)
		}
	}
}

func TestBilled(t *testing.T) {
	for _, c := range []struct {
		duration, init time.Duration
		want           int64
	}{
		{1233960 * time.Microsecond, 463512 * time.Microsecond, 1698},
		{2656670 * time.Microsecond, 20650 * time.Microsecond, 2678},
		{3 * time.Second, 0, 3000},
		{3*time.Second + 1, 0, 3000}, // below what is printed
		{0, 0, 0},
	} {
		if got := BilledMillis(c.duration, c.init); got != c.want {
			t.Errorf("BilledMillis(%v, %v) = %d, want %d", c.duration, c.init, got, c.want)
		}
	}
}

func TestLines(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	for _, c := range []struct {
		name   string
		writes []string
		want   []string
	}{
		{"one", []string{"a\n"}, []string{"a"}},
		{"pieces", []string{"a", "b\nc", "\n"}, []string{"ab", "c"}},
		{"no newline at the end", []string{"a\nb"}, []string{"a", "b"}},
		{"empty lines", []string{"\n\n"}, []string{"", ""}},
		{"carriage return", []string{"a\r\nb\rc\n"}, []string{"a\r", "b\rc"}},
		{"binary", []string{"\x00\xff\n"}, []string{"\x00\xff"}},
		{"longest", []string{long + "\n", "y\n"}, []string{long, "y"}},
		{"longest in pieces", []string{long, "\n", "y\n"}, []string{long, "y"}},
		{"too long", []string{long + "yz\n"}, []string{long, "yz"}},
		{"too long in pieces", []string{long[:10], long + "\n"}, []string{long, long[:10]}},
		{"far too long, no end", []string{long + long + "a"}, []string{long, long, "a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := NewQueue(100, 1<<30)
			l := NewLines(NewStream(q), TypeFunctionLine)
			for _, w := range c.writes {
				if n, err := l.Write([]byte(w)); n != len(w) || err != nil {
					t.Fatal(n, err)
				}
			}
			l.Close()
			l.Write([]byte("late\n"))
			q.Close()
			events, _ := q.Next(context.Background())
			if len(events) != len(c.want) {
				t.Fatalf("got %d lines, want %d", len(events), len(c.want))
			}
			for i, e := range events {
				if string(e.Record.(Line)) != c.want[i] {
					t.Errorf("line %d: got %.40q (%d), want %.40q (%d)", i, e.Record, len(e.Record.(Line)), c.want[i], len(c.want[i]))
				}
			}
		})
	}
}

func TestStreamReplaysAndQueueCountsDrops(t *testing.T) {
	s := NewStream()
	s.Emit(Event{Type: "function", Record: Line("before")})
	s.Remember()
	s.Emit(Event{Type: "function", Record: Line("kept")})
	q := NewQueue(2, 1<<20)
	s.Attach(q, true)
	s.Forget()
	for range 3 {
		s.Emit(Event{Type: "function", Record: Line("new")})
	}
	events, err := q.Next(context.Background())
	if err != nil || len(events) != 3 {
		t.Fatal(events, err)
	}
	if events[0].Record != Line("kept") || events[1].Record != Line("new") {
		t.Error(events)
	}
	if d := events[2].Record.(LogsDropped); d.Records != 2 || d.Reason != DropReason {
		t.Error(d)
	}
	s.Detach(q)
	s.Emit(Event{Type: "function", Record: Line("after")})
	late := NewQueue(2, 1<<20)
	s.Attach(late, true)
	q.Close()
	late.Close()
	for _, q := range []*Queue{q, late} {
		if events, _ := q.Next(context.Background()); len(events) != 0 {
			t.Error(events)
		}
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	tail := NewTail(Format{}, 10)
	for _, l := range []string{"0123456789abcdef", "x", "yz"} {
		tail.Take(Event{Type: TypeFunctionLine, Record: Line(l)})
	}
	if got := string(tail.Bytes()); got != "bcdef\nx\nyz\n"[1:] {
		t.Errorf("%q", got)
	}
}
