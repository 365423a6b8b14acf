// Package metrics keeps the measures of functions and what clients put beside
// them, as CloudWatch shows them (spec: lifecycle.md section 16, neighbours.md
// section 4).
//
// Whoever measures calls a Recorder, which never waits: values are gathered in
// memory and handed to the store once a second. A Store keeps, for each metric and
// minute, statistics that are exact (sample count, sum, minimum, maximum) and a
// distribution whose percentiles are within 0.3 % of the values; what PutMetricData
// answered is on disk.
package metrics

import "time"

// Namespace is that of the metrics of functions.
const Namespace = "AWS/Lambda"

// A Metric is one that lambdad measures itself.
type Metric uint8

// The metrics of functions. A value is recorded for each event: 1 for one that
// happened; Errors also gets 0 for each invocation without, so that its average is
// the rate.
const (
	Invocations Metric = iota
	Errors
	Throttles
	Duration                      // ms
	PostRuntimeExtensionsDuration // ms
	ConcurrentExecutions
	UnreservedConcurrentExecutions // of an account
	ProvisionedConcurrentExecutions
	ProvisionedConcurrencyUtilization // 0..1
	ProvisionedConcurrencyInvocations
	ProvisionedConcurrencySpilloverInvocations
	AsyncEventsReceived
	AsyncEventAge // ms
	AsyncEventsDropped
	DeadLetterErrors
	DestinationDeliveryFailures
	RecursiveInvocationsDropped

	metricCount
)

// Units, as CloudWatch calls them.
const (
	unitCount  = "Count"
	unitMillis = "Milliseconds"
	unitNone   = "None"
)

// dimensionSets says under which dimensions a metric is kept.
type dimensionSets uint8

const (
	byAccount  dimensionSets = 1 << iota // none
	byFunction                           // FunctionName
	byResource                           // FunctionName, Resource
	byVersion                            // FunctionName, Resource, ExecutedVersion

	byAll = byAccount | byFunction | byResource | byVersion
)

// described are name, unit and dimensions of each Metric.
var described = [metricCount]struct {
	name, unit string
	sets       dimensionSets
}{
	Invocations:                                {"Invocations", unitCount, byAll},
	Errors:                                     {"Errors", unitCount, byAll},
	Throttles:                                  {"Throttles", unitCount, byAll},
	Duration:                                   {"Duration", unitMillis, byAll},
	PostRuntimeExtensionsDuration:              {"PostRuntimeExtensionsDuration", unitMillis, byAll},
	ConcurrentExecutions:                       {"ConcurrentExecutions", unitCount, byFunction | byResource},
	UnreservedConcurrentExecutions:             {"UnreservedConcurrentExecutions", unitCount, byAccount},
	ProvisionedConcurrentExecutions:            {"ProvisionedConcurrentExecutions", unitCount, byResource},
	ProvisionedConcurrencyUtilization:          {"ProvisionedConcurrencyUtilization", unitNone, byResource},
	ProvisionedConcurrencyInvocations:          {"ProvisionedConcurrencyInvocations", unitCount, byAll},
	ProvisionedConcurrencySpilloverInvocations: {"ProvisionedConcurrencySpilloverInvocations", unitCount, byAll},
	AsyncEventsReceived:                        {"AsyncEventsReceived", unitCount, byAll},
	AsyncEventAge:                              {"AsyncEventAge", unitMillis, byAll},
	AsyncEventsDropped:                         {"AsyncEventsDropped", unitCount, byAll},
	DeadLetterErrors:                           {"DeadLetterErrors", unitCount, byAll},
	DestinationDeliveryFailures:                {"DestinationDeliveryFailures", unitCount, byAll},
	RecursiveInvocationsDropped:                {"RecursiveInvocationsDropped", unitCount, byAll},
}

// String returns the metric's name.
func (m Metric) String() string { return described[m].name }

// A Subject is what was measured. An empty Function means the account: then a
// metric is kept without dimensions, also one that is otherwise kept by function.
type Subject struct {
	Account, Region string
	Function        string // plain name
	// Qualifier is the one the caller gave: an alias, a version, $LATEST or "".
	Qualifier string
	// Version is the one that ran, $LATEST or a number; "" when none did.
	Version string
}

// A Recorder takes values. At is when the invocation began that the value belongs
// to: its minute is the datum's. Record does not wait, may be called from anywhere
// and keeps nothing of its arguments but strings.
type Recorder interface {
	Record(s Subject, m Metric, value float64, at time.Time)
}

// Discard is a Recorder that keeps nothing.
var Discard Recorder = discard{}

type discard struct{}

func (discard) Record(Subject, Metric, float64, time.Time) {}
