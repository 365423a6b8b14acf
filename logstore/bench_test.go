package logstore

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/lambdad/lambdad/telemetry"
)

// BenchmarkSink is what a line costs its writer, with the store writing behind.
func BenchmarkSink(b *testing.B) {
	s := open(b, Config{Limit: 1 << 30})
	k := s.Sink(g("f"), "s", text)
	e := telemetry.Event{Time: time.Now(), Type: telemetry.TypeFunctionLine,
		Record: telemetry.Line("2026-11-28T17:00:00.000Z 5f2b4e0c-0d4e-4b3a-9c39-0a3c3f3b2a11 INFO a line as functions write them")}
	b.ReportAllocs()
	for i := range b.N {
		e.Time = e.Time.Add(10 * time.Microsecond) // 100,000 lines a second
		k.Take(e)
		if i%10_000 == 0 {
			for s.pending.Load() > maxSinkPending/2 {
				time.Sleep(time.Millisecond)
			}
		}
	}
	if err := s.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lines/s")
	if n := s.lost.Load(); n > 0 {
		b.Errorf("%d lines lost", n)
	}
}

// BenchmarkLatest reads the latest 100 of 10 million lines in 1,000 streams, of one
// stream and of the group.
func BenchmarkLatest(b *testing.B) {
	const lines, streams = 10_000_000, 1000
	s := open(b, Config{Limit: 8 << 30})
	var sinks []*Sink
	for i := range streams {
		sinks = append(sinks, s.Sink(g("f"), fmt.Sprint("s", i), text))
	}
	start := time.Now()
	at := start.Add(-time.Hour)
	for i := range lines {
		e := telemetry.Event{Time: at.Add(time.Duration(i) * 10 * time.Microsecond), Type: telemetry.TypeFunctionLine,
			Record: telemetry.Line(fmt.Sprintf("5f2b4e0c-0d4e-4b3a-9c39-0a3c3f3b2a11 INFO line %d as functions write them", i))}
		sinks[i/97%streams].Take(e)
		if i%100_000 == 0 {
			if err := s.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := s.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	st := s.Stats()
	b.Logf("%d events, %d MB in %d segments, %d MB of files, written in %v", st.Events, st.Bytes>>20, st.Segments, st.Disk>>20, time.Since(start))
	for _, all := range []bool{false, true} {
		b.Run(map[bool]string{false: "stream", true: "group"}[all], func(b *testing.B) {
			var took []time.Duration
			for i := range b.N {
				q := Query{Group: g("f"), To: Forever, Backward: true}
				if !all {
					q.Streams = []string{fmt.Sprint("s", i*7%streams)}
				}
				start := time.Now()
				events, err := s.Events(q)
				if err != nil {
					b.Fatal(err)
				}
				n := 0
				for _, err := range events {
					if err != nil {
						b.Fatal(err)
					}
					if n++; n == 100 {
						break
					}
				}
				took = append(took, time.Since(start))
				if n != 100 {
					b.Fatal(n)
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}
