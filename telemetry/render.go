package telemetry

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// A Level orders log records.
type Level int8

// Levels of the JSON log format.
const (
	Trace Level = iota
	Debug
	Info
	Warn
	Error
	Fatal
)

// ParseLevel reads a level's name, whatever its case; ok is false for others.
func ParseLevel(s string) (l Level, ok bool) {
	switch strings.ToUpper(s) {
	case "TRACE":
		return Trace, true
	case "DEBUG":
		return Debug, true
	case "INFO":
		return Info, true
	case "WARN":
		return Warn, true
	case "ERROR":
		return Error, true
	case "FATAL":
		return Fatal, true
	}
	return Info, false
}

// A Format is how a function's log is written.
type Format struct {
	JSON                bool
	Application, System Level // with JSON only
}

// NewFormat makes a Format of the strings of a LoggingConfig.
func NewFormat(format, application, system string) Format {
	f := Format{JSON: strings.EqualFold(format, "JSON"), Application: Info, System: Info}
	if l, ok := ParseLevel(application); ok {
		f.Application = l
	}
	if l, ok := ParseLevel(system); ok {
		f.System = l
	}
	return f
}

// Append appends the lines an event has in the log, each with its newline: none
// where the format or its level leaves the event out.
func (f Format) Append(b []byte, e Event) []byte {
	line, isLine := e.Record.(Line)
	switch {
	case !f.JSON:
		return AppendText(b, e)
	case !isLine:
		if internal(e.Type) || EventLevel(e) < f.System {
			return b
		}
		return AppendJSON(b, e)
	case lineLevel(line) < f.Application:
		return b
	}
	return append(append(b, line...), '\n')
}

// AppendMessages appends what an event is in the log, and to ends where each of its
// messages ends in b. A report in the Text format is two, END and REPORT; messages in
// the Text format keep their newline, as those of the service do.
func (f Format) AppendMessages(b []byte, ends []int, e Event) ([]byte, []int) {
	before := len(b)
	b = f.Append(b, e)
	if len(b) == before {
		return b, ends
	}
	if f.JSON {
		b = b[:len(b)-1]
	} else if _, ok := e.Record.(Report); ok {
		ends = append(ends, before+bytes.IndexByte(b[before:], '\n')+1)
	}
	return b, append(ends, len(b))
}

// lineLevel is the level of a line that a process wrote: that of its member
// "level" when it is a JSON object, else Info.
func lineLevel(l Line) Level {
	s := strings.TrimLeft(string(l), " \t\r")
	if !strings.HasPrefix(s, "{") || !strings.Contains(s, `"level"`) {
		return Info
	}
	var o struct {
		Level any `json:"level"`
	}
	if json.Unmarshal([]byte(s), &o) != nil {
		return Info
	}
	name, _ := o.Level.(string)
	level, _ := ParseLevel(name)
	return level
}

// EventLevel is the system level of a platform event (lifecycle.md section 14).
func EventLevel(e Event) Level {
	unless := func(good bool, l Level) Level {
		if good {
			return l
		}
		return Warn
	}
	switch r := e.Record.(type) {
	case InitStart:
		if r.RuntimeVersion == "" {
			return Debug
		}
	case InitRuntimeDone:
		return unless(r.Status == StatusSuccess, Debug)
	case RuntimeDone:
		return unless(r.Status == StatusSuccess, Debug)
	case InitReport:
		if r.Status == StatusSuccess && r.InitializationType == "on-demand" {
			return Debug
		}
		return unless(r.Status == StatusSuccess, Info)
	case Report:
		return unless(r.Status == StatusSuccess, Info)
	case Extension:
		return unless(r.State == "Ready", Info)
	case LogsDropped:
		return Warn
	case Span:
		return Trace
	}
	return Info
}

// AppendJSON appends an event as one JSON object and a newline: the envelope of
// telemetry-api.md section 2.
func AppendJSON(b []byte, e Event) []byte {
	b = append(b, `{"time":"`...)
	b = e.Time.UTC().AppendFormat(b, stampLayout)
	b = append(b, `","type":"`...)
	b = append(b, e.Type...)
	b = append(b, `","record":`...)
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if enc.Encode(e.Record) != nil { // no record of this package can fail
		return append(b, "null}\n"...)
	}
	b = append(b, bytes.TrimRight(buf.Bytes(), "\n")...)
	return append(b, "}\n"...)
}

// AppendText appends the lines of lifecycle.md section 13, byte for byte: none
// for events that the Text format does not show. The record of a report makes
// END and REPORT, and XRAY when the invocation was traced.
func AppendText(b []byte, e Event) []byte {
	switch r := e.Record.(type) {
	case Line:
		b = append(b, r...)
		return append(b, '\n')
	case InitStart:
		// Neither for an unknown version nor again for a suppressed init.
		if r.RuntimeVersion == "" || r.Phase == PhaseInvoke {
			return b
		}
		b = append(b, "INIT_START Runtime Version: "...)
		b = append(b, r.RuntimeVersion...)
		b = append(b, "\tRuntime Version ARN: "...)
		b = append(b, r.RuntimeVersionARN...)
		return append(b, '\n')
	case InitReport:
		if r.Status == StatusSuccess && r.InitializationType == "on-demand" {
			return b
		}
		b = append(b, "INIT_REPORT Init Duration: "...)
		b = appendMillis(b, r.Metrics.Duration)
		if r.Status != StatusSuccess {
			b = append(b, "\tPhase: "...)
			b = append(b, r.Phase...)
			b = appendStatus(b, r.Status, r.ErrorType)
		}
		return append(b, '\n')
	case Subscription:
		verb := "TELEMETRY"
		if e.Type == TypeLogsSubscribed {
			verb = "LOGS"
		}
		b = append(b, verb...)
		b = append(b, "\tName: "...)
		b = append(b, r.Name...)
		b = append(b, "\tState: "...)
		b = append(b, r.State...)
		b = append(b, "\tTypes: ["...)
		for i, t := range r.Types {
			if i > 0 {
				b = append(b, ", "...)
			}
			if t != "" {
				b = append(b, strings.ToUpper(t[:1])...)
				b = append(b, t[1:]...)
			}
		}
		return append(b, "]\n"...)
	case Extension:
		b = append(b, "EXTENSION\tName: "...)
		b = append(b, r.Name...)
		b = append(b, "\tState: "...)
		b = append(b, r.State...)
		b = append(b, "\tEvents: ["...)
		b = append(b, strings.Join(r.Events, ", ")...)
		b = append(b, ']')
		if r.ErrorType != "" {
			b = append(b, "\tError Type: "...)
			b = append(b, r.ErrorType...)
		}
		return append(b, '\n')
	case Start:
		b = append(b, "START RequestId: "...)
		b = append(b, r.RequestID...)
		b = append(b, " Version: "...)
		b = append(b, r.Version...)
		return append(b, '\n')
	case Report:
		b = append(b, "END RequestId: "...)
		b = append(b, r.RequestID...)
		b = append(b, "\nREPORT RequestId: "...)
		b = append(b, r.RequestID...)
		b = append(b, "\tDuration: "...)
		b = appendMillis(b, r.Metrics.Duration)
		b = append(b, "\tBilled Duration: "...)
		b = strconv.AppendInt(b, r.Metrics.Billed, 10)
		b = append(b, " ms\tMemory Size: "...)
		b = strconv.AppendInt(b, r.Metrics.MemorySize, 10)
		b = append(b, " MB\tMax Memory Used: "...)
		b = strconv.AppendInt(b, r.Metrics.MaxMemoryUsed, 10)
		b = append(b, " MB"...)
		if r.Metrics.Init > 0 {
			b = append(b, "\tInit Duration: "...)
			b = appendMillis(b, r.Metrics.Init)
		}
		if r.Status == StatusSuccess {
			b = append(b, "\t\n"...)
		} else {
			b = appendStatus(b, r.Status, r.ErrorType)
			b = append(b, '\n')
		}
		return appendXRay(b, r)
	case LogsDropped:
		b = append(b, "LOGS_DROPPED\tRecords: "...)
		b = strconv.AppendInt(b, r.Records, 10)
		b = append(b, "\tBytes: "...)
		b = strconv.AppendInt(b, r.Bytes, 10)
		return append(b, '\n')
	}
	return b
}

func appendStatus(b []byte, status, errorType string) []byte {
	b = append(b, "\tStatus: "...)
	b = append(b, status...)
	if errorType != "" && status != StatusTimeout {
		b = append(b, "\tError Type: "...)
		b = append(b, errorType...)
	}
	return b
}

func appendMillis(b []byte, m Millis) []byte {
	b = strconv.AppendFloat(b, float64(m)/float64(time.Millisecond), 'f', 2, 64)
	return append(b, " ms"...)
}

func appendXRay(b []byte, r Report) []byte {
	if r.Tracing == nil || r.Tracing.SpanID == "" || TraceField(r.Tracing.Value, "Sampled") != "1" {
		return b
	}
	b = append(b, "XRAY TraceId: "...)
	b = append(b, TraceField(r.Tracing.Value, "Root")...)
	b = append(b, "\tSegmentId: "...)
	b = append(b, r.Tracing.SpanID...)
	b = append(b, "\tSampled: true"...)
	if r.Status == StatusSuccess {
		b = append(b, '\t')
	}
	return append(b, '\n')
}

// TraceField returns one field of an X-Amzn-Trace-Id: Root, Parent, Sampled.
func TraceField(trace, name string) string {
	for field := range strings.SplitSeq(trace, ";") {
		if k, v, ok := strings.Cut(strings.TrimSpace(field), "="); ok && strings.EqualFold(k, name) {
			return v
		}
	}
	return ""
}
