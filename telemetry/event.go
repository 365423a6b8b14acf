// Package telemetry is what goes up from an execution environment and returns
// nothing: its platform events and the lines its processes write.
//
// One Stream per environment keeps them in order. Readers are Sinks: the log
// store, the tail a caller asked for (Tail), a bounded queue for whoever reads
// at its own pace (Queue), the phases as spans (Timeline), and what extensions
// subscribed to (Subscriptions). A sink must never block, so a writer never waits
// for a reader; what a bounded sink cannot keep it drops and counts.
//
// Records follow the Telemetry API (spec: telemetry-api.md section 4) in the
// names, the types and the order of their members. AppendText renders an event
// as the lines of the Text log format (lifecycle.md section 13), AppendJSON as
// one line of the JSON format (section 14).
package telemetry

import (
	"math"
	"strconv"
	"time"
)

// Types of events. Function and extension records are lines (type Line); the
// platform's are the structs of this package.
const (
	TypeInitStart       = "platform.initStart"
	TypeInitRuntimeDone = "platform.initRuntimeDone"
	TypeInitReport      = "platform.initReport"
	TypeStart           = "platform.start"
	TypeRuntimeDone     = "platform.runtimeDone"
	TypeReport          = "platform.report"
	TypeExtension       = "platform.extension"
	TypeSubscription    = "platform.telemetrySubscription"
	TypeLogsSubscribed  = "platform.logsSubscription"
	TypeLogsDropped     = "platform.logsDropped"
	TypeFunctionLine    = "function"
	TypeExtensionLine   = "extension"
	// TypeSpan is not AWS's: a phase for whoever draws the timeline. Logs and
	// subscribers never get it.
	TypeSpan = "lambdad.span"
	// TypeCost is not AWS's either: what extensions took, for the bill. Logs and
	// subscribers never get it.
	TypeCost = "lambdad.cost"
)

// internal reports whether an event is lambdad's own, which neither logs nor
// subscribers get.
func internal(typ string) bool { return typ == TypeSpan || typ == TypeCost }

// Status words of platform events (lifecycle.md section 7.1).
const (
	StatusSuccess = "success"
	StatusError   = "error"   // caused by the customer's code
	StatusTimeout = "timeout" // a limit was hit
	StatusFailure = "failure" // the platform's own fault
)

// Phases of an initialisation.
const (
	PhaseInit   = "init"
	PhaseInvoke = "invoke" // suppressed init, inside an invocation
)

// PhaseShutdown is a phase of Costs alone.
const PhaseShutdown = "shutdown"

// An Event is one thing that happened in an environment.
type Event struct {
	// Time is when it happened; Stream.Emit fills in a zero one.
	Time time.Time
	// Type is one of the Type constants.
	Type string
	// Record is a Line or one of the structs below, never a pointer.
	Record any
}

// A Line is what a process wrote, without its newline. It may hold any bytes.
type Line string

// Millis is a duration that prints as milliseconds with up to three decimals.
type Millis time.Duration

// MarshalJSON implements json.Marshaler.
func (m Millis) MarshalJSON() ([]byte, error) {
	us := math.Round(float64(m) / float64(time.Microsecond))
	return strconv.AppendFloat(nil, us/1000, 'f', -1, 64), nil
}

// Stamp is a time that prints as telemetry does: UTC, three fraction digits.
type Stamp time.Time

const stampLayout = `2006-01-02T15:04:05.000Z`

// MarshalJSON implements json.Marshaler.
func (s Stamp) MarshalJSON() ([]byte, error) {
	b := append(make([]byte, 0, len(stampLayout)+2), '"')
	b = time.Time(s).UTC().AppendFormat(b, stampLayout)
	return append(b, '"'), nil
}

// A Span is one part of a phase.
type Span struct {
	Name     string `json:"name"`
	Start    Stamp  `json:"start"`
	Duration Millis `json:"durationMs"`
	// Party is the process the span belongs to, if it is one's alone. Only
	// lambdad's own spans have it.
	Party string `json:"party,omitempty"`
	// RequestID is set on spans of an invocation among lambdad's own.
	RequestID string `json:"requestId,omitempty"`
}

// A TraceContext is the trace an invocation belongs to.
type TraceContext struct {
	SpanID string `json:"spanId,omitempty"`
	Type   string `json:"type"` // X-Amzn-Trace-Id
	Value  string `json:"value"`
}

// InitStart begins an initialisation.
type InitStart struct {
	InitializationType string `json:"initializationType"`
	Phase              string `json:"phase"`
	RuntimeVersion     string `json:"runtimeVersion,omitempty"`
	RuntimeVersionARN  string `json:"runtimeVersionArn,omitempty"`
	FunctionName       string `json:"functionName"`
	FunctionVersion    string `json:"functionVersion"`
	InstanceID         string `json:"instanceId,omitempty"`
	InstanceMaxMemory  int64  `json:"instanceMaxMemory,omitempty"` // bytes
}

// InitRuntimeDone says that the runtime's part of an initialisation is over.
type InitRuntimeDone struct {
	InitializationType string `json:"initializationType"`
	Phase              string `json:"phase"`
	Status             string `json:"status"`
	ErrorType          string `json:"errorType,omitempty"`
	Spans              []Span `json:"spans,omitempty"`
}

// InitReport ends an initialisation.
type InitReport struct {
	InitializationType string      `json:"initializationType"`
	Phase              string      `json:"phase"`
	Status             string      `json:"status"`
	ErrorType          string      `json:"errorType,omitempty"`
	Metrics            InitMetrics `json:"metrics"`
	Spans              []Span      `json:"spans,omitempty"`
}

// InitMetrics are measures of an initialisation.
type InitMetrics struct {
	Duration Millis `json:"durationMs"`
}

// Start begins an invocation.
type Start struct {
	RequestID   string        `json:"requestId"`
	FunctionARN string        `json:"functionArn,omitempty"`
	Version     string        `json:"version,omitempty"`
	Tracing     *TraceContext `json:"tracing,omitempty"`
}

// RuntimeDone says that the runtime has asked for its next event, or will not.
type RuntimeDone struct {
	RequestID string          `json:"requestId"`
	Status    string          `json:"status"`
	ErrorType string          `json:"errorType,omitempty"`
	Spans     []Span          `json:"spans,omitempty"`
	Metrics   *RuntimeMetrics `json:"metrics,omitempty"`
	Tracing   *TraceContext   `json:"tracing,omitempty"`
}

// RuntimeMetrics are measures of the runtime's part of an invocation.
type RuntimeMetrics struct {
	Duration      Millis `json:"durationMs"`
	ProducedBytes *int64 `json:"producedBytes,omitempty"` // absent for errors
}

// Report ends an invocation.
type Report struct {
	RequestID string        `json:"requestId"`
	Status    string        `json:"status"`
	ErrorType string        `json:"errorType,omitempty"`
	Metrics   ReportMetrics `json:"metrics"`
	Spans     []Span        `json:"spans,omitempty"`
	Tracing   *TraceContext `json:"tracing,omitempty"`
	// FunctionError: the answer was an error, also one that the function itself
	// posted, of which Status knows nothing. It is in no log and no record.
	FunctionError bool `json:"-"`
}

// ReportMetrics are measures of a whole invocation.
type ReportMetrics struct {
	Duration      Millis `json:"durationMs"`
	Billed        int64  `json:"billedDurationMs"` // Duration and Init, rounded up
	MemorySize    int64  `json:"memorySizeMB"`
	MaxMemoryUsed int64  `json:"maxMemoryUsedMB"`
	Init          Millis `json:"initDurationMs,omitempty"` // first invocation only
}

// Extension tells the state of one extension at the end of an initialisation.
type Extension struct {
	Name      string   `json:"name"`
	State     string   `json:"state"`
	Events    []string `json:"events"`
	ErrorType string   `json:"errorType,omitempty"`
}

// Subscription tells that an extension subscribed to telemetry or logs.
type Subscription struct {
	Name  string   `json:"name"`
	State string   `json:"state"` // Subscribed
	Types []string `json:"types"`
}

// LogsDropped tells a reader what it did not get.
type LogsDropped struct {
	Records int64  `json:"droppedRecords"`
	Bytes   int64  `json:"droppedBytes"`
	Reason  string `json:"reason"`
}

// DropReason is the Reason of LogsDropped.
const DropReason = "Some logs were dropped because the downstream consumer is slower than the logs production rate"

// BilledMillis is what is billed for an invocation: its duration and that of its
// initialisation together, rounded up to a millisecond (lifecycle.md section 15).
func BilledMillis(duration, init time.Duration) int64 {
	// What is printed has microseconds, so what is summed has too.
	us := duration.Round(time.Microsecond) + init.Round(time.Microsecond)
	return int64((us + time.Millisecond - 1) / time.Millisecond)
}

// A Cost tells what the extensions of an environment took of a phase: of an
// initialisation after its report, of an invocation before its report, and of what
// was between the last invocation and the end. Environments without extensions
// have none.
type Cost struct {
	Phase     string // init, invoke or shutdown
	RequestID string // of an invocation; "" for an initialisation, also within one
	// Waited is how much longer an initialisation took for its extensions: until
	// all had registered before the runtime was started, and after the runtime was
	// ready until they were, too.
	Waited Millis
	// Runtime is processor time of the runtime since the Cost before. Where the
	// host does not count by process it is 0, and so are those of extensions.
	Runtime    Millis
	Extensions []ExtensionCost
}

// An ExtensionCost is the part of one extension.
type ExtensionCost struct {
	Name     string
	External bool
	// Init is from the start of its process (an internal one: from registering) to
	// its first request for an event.
	Init Millis
	// After is from the runtime's request for the next event to the extension's.
	After Millis
	CPU   Millis // of its processes since the Cost before
	Peak  int64  // most memory its processes held, in bytes
}

// size is what an event counts in a bounded buffer.
func (e Event) size() int {
	if l, ok := e.Record.(Line); ok {
		return len(l) + 96
	}
	return 384
}
