package metrics

import (
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/telemetry"
)

// A Reports is a telemetry.Sink that records the invocations of one environment
// from their reports.
type Reports struct {
	to      Recorder
	subject Subject
	begun   time.Time
}

// NewReports makes the sink of an environment of v.
func NewReports(to Recorder, v *lambdad.Version) *Reports {
	return &Reports{to: to, subject: Subject{Account: v.Account, Region: v.Region, Function: v.Function, Version: v.Number}}
}

// Take implements telemetry.Sink. The stream calls it for one event at a time.
func (k *Reports) Take(e telemetry.Event) {
	switch e.Type {
	case telemetry.TypeStart:
		if r, ok := e.Record.(telemetry.Start); ok {
			k.begun, k.subject.Qualifier = e.Time, qualifier(r.FunctionARN)
		}
	case telemetry.TypeReport:
		if r, ok := e.Record.(telemetry.Report); ok {
			k.report(r)
		}
	}
}

func (k *Reports) report(r telemetry.Report) {
	failed := 0.0
	if r.Status != telemetry.StatusSuccess || r.FunctionError {
		failed = 1
	}
	k.to.Record(k.subject, Invocations, 1, k.begun)
	k.to.Record(k.subject, Errors, failed, k.begun)
	k.to.Record(k.subject, Duration, millis(r.Metrics.Duration), k.begun)
	for _, s := range r.Spans {
		if s.Name == "extensionOverhead" {
			k.to.Record(k.subject, PostRuntimeExtensionsDuration, millis(s.Duration), k.begun)
		}
	}
}

// millis is a duration as it is reported: in microseconds.
func millis(d telemetry.Millis) float64 {
	return float64(time.Duration(d).Round(time.Microsecond)/time.Microsecond) / 1000
}

// qualifier is what follows the name in a function's ARN.
func qualifier(arn string) string {
	// arn:aws:lambda:region:account:function:name:qualifier
	for range 7 {
		_, rest, ok := strings.Cut(arn, ":")
		if !ok {
			return ""
		}
		arn = rest
	}
	return arn
}
