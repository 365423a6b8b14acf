package telemetry

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func produced(n int64) *int64 { return &n }

// every is one event of each type.
func every() []Event {
	at := time.Date(2022, 10, 12, 0, 3, 50, 0, time.FixedZone("x", 3600))
	ms := func(f float64) Millis { return Millis(f * float64(time.Millisecond)) }
	trace := &TraceContext{SpanID: "54565fb41ac79632", Type: "X-Amzn-Trace-Id", Value: "Root=1;Parent=2;Sampled=1"}
	list := []Event{
		{Type: TypeInitStart, Record: InitStart{InitializationType: "on-demand", Phase: "init", RuntimeVersion: "v", RuntimeVersionARN: "a", FunctionName: "f", FunctionVersion: "1", InstanceID: "i", InstanceMaxMemory: 268435456}},
		{Type: TypeInitRuntimeDone, Record: InitRuntimeDone{InitializationType: "on-demand", Phase: "init", Status: StatusSuccess}},
		{Type: TypeInitReport, Record: InitReport{InitializationType: "on-demand", Phase: "init", Status: StatusSuccess, Metrics: InitMetrics{ms(173.778)}}},
		{Type: TypeExtension, Record: Extension{Name: "x", State: "InitError", Events: []string{}, ErrorType: "Extension.No"}},
		{Type: TypeSubscription, Record: Subscription{Name: "x", State: "Subscribed", Types: []string{"platform"}}},
		{Type: TypeLogsSubscribed, Record: Subscription{Name: "y", State: "Subscribed", Types: []string{"function"}}},
		{Type: TypeStart, Record: Start{RequestID: "r", FunctionARN: "arn", Version: "$LATEST", Tracing: trace}},
		{Type: TypeFunctionLine, Record: Line("a <b>\t\"c\"")},
		{Type: TypeExtensionLine, Record: Line(`{"level":"INFO"}`)},
		{Type: TypeSpan, Record: Span{Name: "n"}},
		{Type: TypeRuntimeDone, Record: RuntimeDone{RequestID: "r", Status: StatusError, ErrorType: "Runtime.ExitError", Metrics: &RuntimeMetrics{ms(70.5), produced(40)},
			Spans: []Span{{Name: "responseLatency", Start: Stamp(at), Duration: ms(2.215)}}}},
		{Type: TypeReport, Record: Report{RequestID: "r", Status: StatusError, ErrorType: "Runtime.ExitError", Metrics: ReportMetrics{ms(11.642), 186, 128, 67, ms(174.055)}}},
		{Type: TypeLogsDropped, Record: LogsDropped{Records: 1, Bytes: 2, Reason: "slow"}},
	}
	for i := range list {
		list[i].Time = at
	}
	return list
}

func TestRecordsBySchema(t *testing.T) {
	const (
		initStart = `initStart {"initializationType":"on-demand","phase":"init","runtimeVersion":"v","runtimeVersionArn":"a"`
		initDone  = `initRuntimeDone {"initializationType":"on-demand","phase":"init","status":"success"}`
		trace     = `,"tracing":{"spanId":"54565fb41ac79632","type":"X-Amzn-Trace-Id","value":"Root=1;Parent=2;Sampled=1"}}`
		sub       = `telemetrySubscription {"name":"x","state":"Subscribed","types":["platform"]}`
		ext       = `extension {"name":"x","state":"InitError","events":[],"errorType":"Extension.No"}`
		line      = `function "a <b>\t\"c\""`
		xline     = `extension "{\"level\":\"INFO\"}"`
		done      = `runtimeDone {"requestId":"r","status":"error","errorType":"Runtime.ExitError","spans":[{"name":"responseLatency","start":"2022-10-11T23:03:50.000Z","durationMs":2.215}],"metrics":{"durationMs":70.5,"producedBytes":40}}`
		metrics   = `"metrics":{"durationMs":11.642,"billedDurationMs":186,"memorySizeMB":128,"maxMemoryUsedMB":67,"initDurationMs":174.055}}`
		report    = `report {"requestId":"r","status":"error","errorType":"Runtime.ExitError",` + metrics
		dropped   = `logsDropped {"droppedRecords":1,"droppedBytes":2,"reason":"slow"}`

		logsExt  = `extension {"name":"x","state":"InitError","events":[]}`
		logsSub  = `logsSubscription {"name":"y","state":"Subscribed","types":["function"]}`
		logsLine = `function "a <b>\t\"c\"\n"`
		logsX    = `extension "{\"level\":\"INFO\"}\n"`
		fault    = `fault "RequestId: r Process exited before completing request"`
	)
	old := []string{logsExt, logsSub, `start {"requestId":"r","version":"$LATEST"}`, logsLine, logsX}
	oldEnd := []string{fault, `end {"requestId":"r"}`, `report {"requestId":"r",` + metrics, dropped}
	for _, c := range []struct {
		schema string
		json   bool
		want   []string
	}{
		{SchemaLogs2020, false, append(old[:5:5], oldEnd...)},
		{SchemaLogs2020, true, append(old[:5:5], oldEnd...)},
		{SchemaLogs2021, false, append(append(old[:5:5], `runtimeDone {"requestId":"r","status":"failure"}`), oldEnd...)},
		{Schema2022, true, []string{initStart + `}`, initDone, `initReport {"initializationType":"on-demand","phase":"init","metrics":{"durationMs":173.778}}`,
			ext, sub, `start {"requestId":"r","version":"$LATEST"` + trace, line, xline, done, report, dropped}},
		{SchemaJSON, false, []string{initStart + `,"functionName":"f","functionVersion":"1"}`, initDone, `initReport {"initializationType":"on-demand","phase":"init","status":"success","metrics":{"durationMs":173.778}}`,
			ext, sub, `start {"requestId":"r","version":"$LATEST"` + trace, line, xline, done, report, dropped}},
		{Schema2025, true, []string{initStart + `,"functionName":"f","functionVersion":"1","instanceId":"i","instanceMaxMemory":268435456}`, initDone, `initReport {"initializationType":"on-demand","phase":"init","status":"success","metrics":{"durationMs":173.778}}`,
			ext, sub, `start {"requestId":"r","functionArn":"arn","version":"$LATEST"` + trace, line, `extension {"level":"INFO"}`, done, report, dropped}},
	} {
		w := newRecords(&Request{Logs: c.schema < "2022", Schema: c.schema, Types: []string{"platform", "function", "extension"}, TCP: true}, c.json)
		var b []byte
		total := 0
		for _, e := range every() {
			if w.wants(e.Type) {
				var n int
				b, n = w.append(b, e)
				total += n
			}
		}
		got := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
		if len(got) != total || total != len(c.want) {
			t.Errorf("%s: %d records counted as %d, want %d", c.schema, len(got), total, len(c.want))
		}
		for i, g := range got {
			var e struct {
				Time, Type string
				Record     json.RawMessage
			}
			if err := json.Unmarshal([]byte(g), &e); err != nil || !strings.HasPrefix(g, `{"time":"`) {
				t.Errorf("%s: %v: %s", c.schema, err, g)
			}
			if at, err := time.Parse("2006-01-02T15:04:05.000Z", e.Time); err != nil || e.Time != "2022-10-11T23:03:50.000Z" {
				t.Errorf("time %s is %v, %v", e.Time, at, err)
			}
			if short := strings.TrimPrefix(e.Type, "platform.") + " " + string(e.Record); i < len(c.want) && short != c.want[i] {
				t.Errorf("%s\n got %s\nwant %s", c.schema, short, c.want[i])
			}
		}
	}
}

func TestRecordsOfATimeoutInLogs(t *testing.T) {
	w := newRecords(&Request{Logs: true, Schema: SchemaLogs2021, Types: []string{"platform"}, TCP: true}, false)
	e := Event{Time: time.Unix(0, 0), Type: TypeReport, Record: Report{RequestID: "r", Status: StatusTimeout, Metrics: ReportMetrics{Duration: Millis(3 * time.Second)}}}
	b, n := w.append(nil, e)
	want := `{"time":"1970-01-01T00:00:00.000Z","type":"platform.fault","record":"1970-01-01T00:00:00.000Z r Task timed out after 3.00 seconds\n\n"}` + "\n"
	if n != 3 || !strings.HasPrefix(string(b), want) {
		t.Errorf("%d %s", n, b)
	}
	if b, _ = w.append(nil, Event{Type: TypeRuntimeDone, Record: RuntimeDone{RequestID: "r", Status: StatusTimeout}}); !strings.Contains(string(b), `{"requestId":"r","status":"timeout"}`) {
		t.Errorf("%s", b)
	}
}

func TestRecordsByType(t *testing.T) {
	for types, want := range map[string]string{
		"platform":           "platform.initStart platform.initRuntimeDone platform.initReport platform.extension platform.telemetrySubscription platform.start platform.runtimeDone platform.report platform.logsDropped",
		"function":           "function platform.logsDropped",
		"extension":          "extension platform.logsDropped",
		"extension function": "function extension platform.logsDropped",
	} {
		w := newRecords(&Request{Schema: Schema2022, Types: strings.Fields(types)}, false)
		var got []string
		for _, e := range every() {
			if w.wants(e.Type) {
				got = append(got, e.Type)
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s\n got %s\nwant %s", types, s, want)
		}
	}
}

func TestLinesThatAreObjects(t *testing.T) {
	w := newRecords(&Request{Schema: SchemaJSON, Types: []string{"function"}}, true)
	for line, object := range map[string]bool{
		`{"message":"x","level":"INFO"}`: true, ` {} `: true, "{\"a\":1}\r": true,
		`{"a":1`: false, `[]`: false, `1`: false, ``: false, `{} {}`: false, `}{`: false, "{\"a\":\"\xff\"}": false, `{"a":1}x`: false,
		strings.Repeat(`{"a":`, 20000) + "1" + strings.Repeat(`}`, 20000): false,
	} {
		b, _ := w.append(nil, Event{Type: TypeFunctionLine, Record: Line(line)})
		var e struct{ Record json.RawMessage }
		if err := json.Unmarshal(b[:len(b)-1], &e); err != nil {
			t.Fatalf("%.50q: %v", line, err)
		}
		if got := e.Record[0] == '{'; got != object {
			t.Errorf("%.50q: object %v", line, got)
		}
	}
}

func FuzzAppendString(f *testing.F) {
	f.Add("plain", false)
	f.Add("\x00\x1f\"\\\r\t\n\u2028é\xff\xc3", true)
	f.Fuzz(func(t *testing.T, s string, newline bool) {
		b := appendString(nil, s, newline)
		var got string
		if err := json.Unmarshal(b, &got); err != nil || !utf8.Valid(b) {
			t.Fatalf("%q becomes %s: %v", s, b, err)
		}
		want := strings.ToValidUTF8(s, "")
		if newline {
			want += "\n"
		}
		if utf8.ValidString(s) && got != want {
			t.Fatalf("%q becomes %q", s, got)
		}
	})
}
