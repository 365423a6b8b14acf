package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// maxExported bounds the functions with Prometheus series of their own; those that
// come later share those of the function "other".
const maxExported = 500

// An Exporter counts what is recorded for operators: a Recorder that hands on to
// another, and a prometheus.Collector of a bounded number of series.
type Exporter struct {
	next Recorder

	counts    [metricCount]*prometheus.CounterVec
	durations [metricCount]*prometheus.HistogramVec
	gauges    [metricCount]*prometheus.GaugeVec

	mu        sync.RWMutex
	functions map[exportedKey]*exported
}

type exportedKey struct{ account, region, function string }

// exported are the series of one function.
type exported struct {
	counts    [metricCount]prometheus.Counter
	durations [metricCount]prometheus.Observer
	gauges    [metricCount]prometheus.Gauge
}

// NewExporter makes an exporter.
func NewExporter(next Recorder) *Exporter {
	x := &Exporter{next: next, functions: map[exportedKey]*exported{}}
	names := []string{"account", "region", "function"}
	counter := func(m Metric, name, help string) {
		x.counts[m] = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "lambdad_function_" + name, Help: help}, names)
	}
	counter(Invocations, "invocations_total", "Invocations that ran, failed ones included.")
	counter(Errors, "errors_total", "Invocations that failed.")
	counter(Throttles, "throttles_total", "Invocations refused for want of concurrency.")
	counter(ProvisionedConcurrencyInvocations, "provisioned_invocations_total", "Invocations in provisioned concurrency.")
	counter(ProvisionedConcurrencySpilloverInvocations, "provisioned_spillover_invocations_total", "Invocations beyond provisioned concurrency.")
	counter(AsyncEventsReceived, "async_events_received_total", "Asynchronous events that were queued.")
	counter(AsyncEventsDropped, "async_events_dropped_total", "Asynchronous events that were given up.")
	histogram := func(m Metric, name, help string) {
		x.durations[m] = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "lambdad_function_" + name, Help: help,
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900}}, names)
	}
	histogram(Duration, "duration_seconds", "Durations of invocations, as reported.")
	histogram(PostRuntimeExtensionsDuration, "post_runtime_extensions_duration_seconds", "Time extensions took after the runtime's answer.")
	x.gauges[ConcurrentExecutions] = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "lambdad_function_concurrent_executions",
		Help: "Invocations running, when one began last."}, names)
	return x
}

// collectors are those that are not nil.
func (x *Exporter) collectors(f func(prometheus.Collector)) {
	for m := range metricCount {
		if c := x.counts[m]; c != nil {
			f(c)
		}
		if c := x.durations[m]; c != nil {
			f(c)
		}
		if c := x.gauges[m]; c != nil {
			f(c)
		}
	}
}

// Describe implements prometheus.Collector.
func (x *Exporter) Describe(ch chan<- *prometheus.Desc) {
	x.collectors(func(c prometheus.Collector) { c.Describe(ch) })
}

// Collect implements prometheus.Collector.
func (x *Exporter) Collect(ch chan<- prometheus.Metric) {
	x.collectors(func(c prometheus.Collector) { c.Collect(ch) })
}

// Record implements Recorder.
func (x *Exporter) Record(of Subject, m Metric, value float64, at time.Time) {
	x.next.Record(of, m, value, at)
	if of.Function == "" || m == ConcurrentExecutions && of.Qualifier != "" {
		return
	}
	f := x.function(exportedKey{of.Account, of.Region, of.Function})
	switch {
	case f.counts[m] != nil:
		f.counts[m].Add(max(0, value))
	case f.durations[m] != nil:
		f.durations[m].Observe(value / 1000)
	case f.gauges[m] != nil:
		f.gauges[m].Set(value)
	}
}

func (x *Exporter) function(k exportedKey) *exported {
	x.mu.RLock()
	f := x.functions[k]
	x.mu.RUnlock()
	if f != nil {
		return f
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.functions) >= maxExported {
		k = exportedKey{function: "other"}
	}
	if f := x.functions[k]; f != nil {
		return f
	}
	f = &exported{}
	for m := range metricCount {
		if v := x.counts[m]; v != nil {
			f.counts[m] = v.WithLabelValues(k.account, k.region, k.function)
		}
		if v := x.durations[m]; v != nil {
			f.durations[m] = v.WithLabelValues(k.account, k.region, k.function)
		}
		if v := x.gauges[m]; v != nil {
			f.gauges[m] = v.WithLabelValues(k.account, k.region, k.function)
		}
	}
	x.functions[k] = f
	return f
}
