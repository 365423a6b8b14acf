package telemetry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Types of events that only the Logs API has.
const (
	TypeEnd   = "platform.end"
	TypeFault = "platform.fault"
)

// records writes events as one subscriber sees them: those of its types and of
// its schema version, each with its envelope and the byte that ends it
// (telemetry-api.md sections 2, 4, 5 and 6).
type records struct {
	logs    bool
	schema  string
	types   [3]bool // platform, function, extension
	objects bool    // lines that are JSON objects are records as such
	end     byte

	ms    int64 // of stamp, since 1970
	stamp []byte
}

func newRecords(r *Request, jsonLog bool) *records {
	w := &records{
		logs: r.Logs, schema: r.Schema, end: ',',
		types: [3]bool{
			slices.Contains(r.Types, "platform"), slices.Contains(r.Types, "function"), slices.Contains(r.Types, "extension"),
		},
		objects: jsonLog && !r.Logs && r.Schema != Schema2022,
		ms:      -1,
	}
	if r.TCP {
		w.end = '\n'
	}
	return w
}

// wants reports whether the subscriber is told of events of a type. What was
// dropped it is told whatever it asked for: it could not know otherwise.
func (w *records) wants(typ string) bool {
	switch typ {
	case TypeFunctionLine:
		return w.types[1]
	case TypeExtensionLine:
		return w.types[2]
	case TypeLogsDropped:
		return true
	case TypeSpan, TypeCost:
		return false
	case TypeSubscription:
		return w.types[0] && !w.logs
	case TypeLogsSubscribed:
		return w.types[0] && w.logs
	case TypeInitStart, TypeInitRuntimeDone, TypeInitReport:
		return w.types[0] && !w.logs
	case TypeRuntimeDone:
		return w.types[0] && w.schema != SchemaLogs2020
	}
	return w.types[0]
}

// append appends an event that the subscriber wants and returns how many records
// it made.
func (w *records) append(b []byte, e Event) ([]byte, int) {
	if l, ok := e.Record.(Line); ok {
		b = w.head(b, e.Time, e.Type)
		if w.objects && isObject(l) {
			b = append(b, l...)
		} else {
			b = appendString(b, string(l), w.logs)
		}
		return append(b, '}', w.end), 1
	}
	if w.logs {
		return w.appendLogs(b, e)
	}
	return w.appendOne(b, e.Time, e.Type, w.telemetry(e.Record)), 1
}

func (w *records) appendOne(b []byte, t time.Time, typ string, record any) []byte {
	b = w.head(b, t, typ)
	b = appendRecord(b, record)
	return append(b, '}', w.end)
}

// head appends an event up to its record.
func (w *records) head(b []byte, t time.Time, typ string) []byte {
	if ms := t.UnixMilli(); ms != w.ms {
		w.ms, w.stamp = ms, t.UTC().AppendFormat(w.stamp[:0], stampLayout)
	}
	b = append(b, `{"time":"`...)
	b = append(b, w.stamp...)
	b = append(b, `","type":"`...)
	b = append(b, typ...)
	return append(b, `","record":`...)
}

// telemetry leaves out of a record what came with a later schema.
func (w *records) telemetry(record any) any {
	switch r := record.(type) {
	case InitStart:
		if w.schema != Schema2025 {
			r.InstanceID, r.InstanceMaxMemory = "", 0
		}
		if w.schema == Schema2022 {
			return struct {
				InitializationType string `json:"initializationType"`
				Phase              string `json:"phase"`
				RuntimeVersion     string `json:"runtimeVersion,omitempty"`
				RuntimeVersionARN  string `json:"runtimeVersionArn,omitempty"`
			}{r.InitializationType, r.Phase, r.RuntimeVersion, r.RuntimeVersionARN}
		}
		return r
	case InitReport:
		if w.schema == Schema2022 {
			return struct {
				InitializationType string      `json:"initializationType"`
				Phase              string      `json:"phase"`
				Metrics            InitMetrics `json:"metrics"`
				Spans              []Span      `json:"spans,omitempty"`
			}{r.InitializationType, r.Phase, r.Metrics, r.Spans}
		}
	case Start:
		if w.schema != Schema2025 {
			r.FunctionARN = ""
		}
		return r
	}
	return record
}

// appendLogs appends an event as the records of the Logs API (section 6.1).
func (w *records) appendLogs(b []byte, e Event) ([]byte, int) {
	type id struct {
		RequestID string `json:"requestId"`
	}
	switch r := e.Record.(type) {
	case Start:
		return w.appendOne(b, e.Time, e.Type, struct {
			RequestID string `json:"requestId"`
			Version   string `json:"version,omitempty"`
		}{r.RequestID, r.Version}), 1
	case RuntimeDone:
		// Its words have no error: that is the customer's failure.
		status := r.Status
		if status == StatusError {
			status = StatusFailure
		}
		return w.appendOne(b, e.Time, e.Type, struct {
			RequestID string `json:"requestId"`
			Status    string `json:"status"`
		}{r.RequestID, status}), 1
	case Report:
		n := 2
		switch r.Status {
		case StatusSuccess:
		case StatusTimeout:
			n++
			b = w.appendOne(b, e.Time, TypeFault, fmt.Sprintf("%s %s Task timed out after %.2f seconds\n\n",
				e.Time.UTC().Format(stampLayout), r.RequestID, time.Duration(r.Metrics.Duration).Seconds()))
		default:
			n++
			b = w.appendOne(b, e.Time, TypeFault, "RequestId: "+r.RequestID+" Process exited before completing request")
		}
		b = w.appendOne(b, e.Time, TypeEnd, id{r.RequestID})
		return w.appendOne(b, e.Time, e.Type, struct {
			RequestID string        `json:"requestId"`
			Metrics   ReportMetrics `json:"metrics"`
			Tracing   *TraceContext `json:"tracing,omitempty"`
		}{r.RequestID, r.Metrics, r.Tracing}), n
	case Extension:
		r.ErrorType = ""
		return w.appendOne(b, e.Time, e.Type, r), 1
	}
	return w.appendOne(b, e.Time, e.Type, e.Record), 1
}

// appendRecord appends a record of the platform.
func appendRecord(b []byte, record any) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if enc.Encode(record) != nil { // no record of this package can fail
		return append(b, "null"...)
	}
	return append(b, bytes.TrimRight(buf.Bytes(), "\n")...)
}

// isObject reports whether a line can stand in JSON as it is.
func isObject(l Line) bool {
	s := strings.Trim(string(l), " \t\r")
	return len(s) > 1 && s[0] == '{' && s[len(s)-1] == '}' && utf8.ValidString(s) && json.Valid([]byte(s))
}

// appendString appends a JSON string. Bytes that are no UTF-8 become U+FFFD.
func appendString(b []byte, s string, newline bool) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				b = append(append(b, s[from:i]...), "\uFFFD"...)
				from = i + 1
			}
			i += size
			continue
		}
		b = append(b, s[from:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, `\n`...)
		case '\r':
			b = append(b, `\r`...)
		case '\t':
			b = append(b, `\t`...)
		default:
			b = append(b, `\u00`...)
			b = append(b, hex[c>>4], hex[c&15])
		}
		i++
		from = i
	}
	b = append(b, s[from:]...)
	if newline {
		b = append(b, `\n`...)
	}
	return append(b, '"')
}
