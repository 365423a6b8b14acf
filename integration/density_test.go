package integration_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"

	"github.com/lambdad/lambdad/integration/harness"
)

// BenchmarkDensity is a server with one frozen environment of each of so many
// functions: what the daemon holds for each, everything on (logs, metrics, bill,
// audit, the endpoint inside), and what a warm invocation costs among them.
//
//	go test ./integration -run '^$' -bench Density -benchtime 1x -timeout 30m
//
// What the pieces of it are, and environments with extensions, says the benchmark of
// the same name in worker.
func BenchmarkDensity(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root: real sandboxes")
	}
	for _, count := range []int{1, 100, 1000, 2000} {
		b.Run("environments="+strconv.Itoa(count), func(b *testing.B) {
			ctx, dir := b.Context(), b.TempDir()
			start := func() *harness.Server {
				return harness.Start(b, dir, "--idle-timeout", "1h", "--log-level", "warn")
			}
			s := start()
			if err := s.Create(ctx, "f", nil); err != nil {
				b.Fatal(err)
			}
			s.Stop()
			multiply(b, filepath.Join(dir, "records"), count+1, 1)
			s = start()
			invoke := func(i int) error {
				out, err := s.Client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String(nameOf(i)), Payload: []byte(`{}`)})
				if err == nil && out.FunctionError != nil {
					err = fmt.Errorf("%s: %s", *out.FunctionError, out.Payload)
				}
				return err
			}
			up := func(from, to int) {
				var wg sync.WaitGroup
				next := make(chan int)
				for range 4 {
					wg.Go(func() {
						for i := range next {
							if err := invoke(i); err != nil {
								b.Errorf("%s: %v", nameOf(i), err)
							}
						}
					})
				}
				for i := from; i < to; i++ {
					next <- i
				}
				close(next)
				wg.Wait()
			}
			settled := func(n int) map[string]float64 {
				s.WaitEnvironments(time.Minute, func(list []harness.State) bool {
					return len(list) == n && !slices.ContainsFunc(list, func(e harness.State) bool { return e.State != "frozen" })
				})
				time.Sleep(20 * time.Second) // at rest, logs on disk, the pool filled, unused memory given back
				return figures(b, s)
			}
			up(0, 1)
			before := settled(1)
			up(1, count+1)
			if b.Failed() {
				return
			}
			after := settled(count + 1)
			for name, unit := range map[string]string{"anonymous": "KiB/env", "go_memstats_heap_alloc_bytes": "heapKiB/env", "go_memstats_stack_inuse_bytes": "stackKiB/env",
				"go_goroutines": "goroutines/env", "process_open_fds": "fds/env", "kernel": "kernelKiB/env"} {
				each := (after[name] - before[name]) / float64(count)
				if strings.Contains(unit, "KiB") {
					each /= 1024
				}
				b.ReportMetric(each, unit)
			}
			b.ReportMetric((before["available"]-after["available"])/float64(count)/1024, "hostKiB/env")
			b.ReportMetric(after["go_threads"], "threads")
			median := func(pick func(i int) int) float64 {
				var took []time.Duration
				for i := range 500 {
					begin := time.Now()
					if err := invoke(pick(i)); err != nil {
						b.Fatal(err)
					}
					took = append(took, time.Since(begin))
				}
				slices.Sort(took)
				return float64(took[len(took)/2].Nanoseconds()) / 1000
			}
			b.ReportMetric(median(func(int) int { return 0 }), "warm-µs")
			b.ReportMetric(median(func(i int) int { return i * 7 % (count + 1) }), "each-µs")
			b.ReportMetric(0, "ns/op")
			s.Stop()
		})
	}
}

// figures reads what a server holds from its own page, and from the host.
func figures(b *testing.B, s *harness.Server) map[string]float64 {
	b.Helper()
	m := map[string]float64{}
	r, err := s.HTTP.Get(s.Endpoint + "/_lambdad/metrics")
	if err != nil {
		b.Fatal(err)
	}
	page, err := io.ReadAll(r.Body)
	r.Body.Close()
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(page)) {
		if f := strings.Fields(line); len(f) == 2 {
			if n, err := strconv.ParseFloat(f[1], 64); err == nil {
				m[f[0]] = n
			}
		}
	}
	read := func(file string, of map[string]string) {
		text, err := os.ReadFile(file)
		if err != nil {
			b.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			name, rest, _ := strings.Cut(line, ":")
			if to := of[name]; to != "" {
				n, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				m[to] += n * 1024
			}
		}
	}
	read(fmt.Sprintf("/proc/%d/status", s.Cmd.Process.Pid), map[string]string{"RssAnon": "anonymous"})
	read("/proc/meminfo", map[string]string{"Slab": "kernel", "KernelStack": "kernel", "PageTables": "kernel", "Percpu": "kernel", "MemAvailable": "available"})
	return m
}
