package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lambdad/lambdad/metrics"
	"github.com/lambdad/lambdad/worker"
)

// operatorsPage is the page for Prometheus: what the process and its functions do,
// the worker's pool and the stores. It shows names of functions, so it is served
// where the endpoint is, and not to sandboxes.
func operatorsPage(n *node, functions *metrics.Exporter, kept *metrics.Store) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		functions, workerCollector{n.worker}, storeCollector{kept})
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// withOperatorsPage serves the page at /_lambdad/metrics, and at /metrics for requests
// that carry no signature: signed ones there are about a bucket of that name.
func withOperatorsPage(rest, page http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if (r.URL.Path == "/metrics" && r.URL.RawQuery == "" && r.Header.Get("Authorization") == "" || r.URL.Path == "/_lambdad/metrics") && r.Method == http.MethodGet {
			page.ServeHTTP(w, r)
			return
		}
		rest.ServeHTTP(w, r)
	})
}

// A sample is one series without labels.
type sample struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func gauge(name, help string) sample {
	return sample{prometheus.NewDesc("lambdad_"+name, help, nil, nil), prometheus.GaugeValue}
}

func counter(name, help string) sample {
	return sample{prometheus.NewDesc("lambdad_"+name, help, nil, nil), prometheus.CounterValue}
}

func (s sample) collect(ch chan<- prometheus.Metric, v float64) {
	ch <- prometheus.MustNewConstMetric(s.desc, s.kind, v)
}

// The samples of a worker.
var (
	poolBudget    = gauge("pool_memory_budget_bytes", "Memory all environments may hold.")
	poolHeld      = gauge("pool_memory_held_bytes", "Memory environments hold, measured or reserved.")
	poolOpen      = gauge("pool_environments", "Living environments.")
	poolInUse     = gauge("pool_environments_in_use", "Environments with an invocation.")
	poolIdle      = gauge("pool_environments_idle", "Environments that wait for an invocation.")
	poolWaiting   = gauge("pool_requests_waiting", "Requests that wait for an environment.")
	poolWaits     = counter("pool_waits_total", "Requests that found no idle environment.")
	poolWaited    = counter("pool_wait_seconds_total", "Time those waited.")
	poolRefused   = counter("pool_requests_refused_total", "Requests that were throttled at once because those before them had waited for room in vain.")
	poolMore      = gauge("pool_environments_possible", "Further environments there is room for, if all idle ones make way.")
	poolByMemory  = counter("pool_environments_closed_for_memory_total", "Environments ended because memory was needed.")
	poolByRoom    = counter("pool_environments_closed_for_room_total", "Environments ended because file descriptors or processes were needed.")
	poolByIdle    = counter("pool_environments_closed_idle_total", "Environments ended because they were idle for long.")
	poolByVersion = counter("pool_environments_closed_version_total", "Environments ended because their version is no more.")
	dropRecords   = counter("telemetry_dropped_records_total", "Telemetry records that extensions were too slow for.")
	dropBytes     = counter("telemetry_dropped_bytes_total", "Bytes of those.")
)

// The samples of what environments need, by what it is.
var (
	roomUsed  = prometheus.NewDesc("lambdad_room_used", "What is used of what environments need: bytes of memory, file descriptors, processes and threads.", []string{"room"}, nil)
	roomLimit = prometheus.NewDesc("lambdad_room_limit", "How much of it there may be, without what is kept for others.", []string{"room"}, nil)
	roomIdle  = prometheus.NewDesc("lambdad_room_idle", "What of it idle environments would give back.", []string{"room"}, nil)
)

type workerCollector struct{ worker *worker.Local }

func (c workerCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

func (c workerCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.worker.Stats()
	poolBudget.collect(ch, float64(s.MemoryBudget))
	poolHeld.collect(ch, float64(s.MemoryHeld))
	poolOpen.collect(ch, float64(s.Environments))
	poolInUse.collect(ch, float64(s.InUse))
	poolIdle.collect(ch, float64(s.Idle))
	poolWaiting.collect(ch, float64(s.Waiting))
	poolWaits.collect(ch, float64(s.WaitCount))
	poolWaited.collect(ch, s.WaitDuration.Seconds())
	poolRefused.collect(ch, float64(s.Refused))
	room := c.worker.Capacity()
	poolMore.collect(ch, float64(room.More))
	for _, r := range room.Rooms {
		ch <- prometheus.MustNewConstMetric(roomUsed, prometheus.GaugeValue, float64(r.Used), r.Name)
		ch <- prometheus.MustNewConstMetric(roomLimit, prometheus.GaugeValue, float64(r.Limit), r.Name)
		ch <- prometheus.MustNewConstMetric(roomIdle, prometheus.GaugeValue, float64(r.Idle), r.Name)
	}
	poolByMemory.collect(ch, float64(s.MemoryClosed))
	poolByRoom.collect(ch, float64(s.RoomClosed))
	poolByIdle.collect(ch, float64(s.IdleClosed))
	poolByVersion.collect(ch, float64(s.VersionClosed))
	dropRecords.collect(ch, float64(s.DroppedRecords))
	dropBytes.collect(ch, float64(s.DroppedBytes))
}

// The samples of the store of metrics.
var (
	keptBytes   = gauge("metrics_store_bytes", "What metrics take on disk.")
	keptSeries  = gauge("metrics_store_metrics", "Metrics, dimensions told apart, that were written to lately.")
	keptDropped = counter("metrics_store_dropped_total", "Values of metrics that could not be kept.")
)

type storeCollector struct{ store *metrics.Store }

func (c storeCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

func (c storeCollector) Collect(ch chan<- prometheus.Metric) {
	bytes, series, dropped := c.store.Size()
	keptBytes.collect(ch, float64(bytes))
	keptSeries.collect(ch, float64(series))
	keptDropped.collect(ch, float64(dropped))
}
