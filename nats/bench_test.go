package nats

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/lambdad/lambdad/blob/files"
	"github.com/lambdad/lambdad/store"
)

func record(n int) (string, []byte) {
	return fmt.Sprintf("000000000000.us-east-1.function.f%d", n), bytes.Repeat([]byte("r"), 2000)
}

func fill(b testing.TB, s store.Store, n int) {
	done := make(chan error)
	for w := range 16 {
		go func() {
			var err error
			for i := w; i < n && err == nil; i += 16 {
				k, v := record(i)
				_, err = s.Put(context.Background(), k, v)
			}
			done <- err
		}()
	}
	for range 16 {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	s := open(b, b.TempDir()).Store()
	for i := 0; b.Loop(); i++ {
		k, v := record(i % 100)
		if _, err := s.Put(b.Context(), k, v); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPutParallel(b *testing.B) {
	s := open(b, b.TempDir()).Store()
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			k, v := record(i % 100)
			if _, err := s.Put(b.Context(), k, v); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkUpdate(b *testing.B) {
	s := open(b, b.TempDir()).Store()
	k, v := record(0)
	revision, err := s.Put(b.Context(), k, v)
	for b.Loop() {
		if err == nil {
			revision, err = s.Update(b.Context(), k, v, revision)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	s := open(b, b.TempDir()).Store()
	fill(b, s, 100)
	for i := 0; b.Loop(); i++ {
		k, _ := record(i % 100)
		if _, err := s.Get(b.Context(), k); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkList(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := open(b, b.TempDir()).Store()
			fill(b, s, n)
			for b.Loop() {
				if all, err := s.List(b.Context(), "000000000000"); err != nil || len(all) != n {
					b.Fatal(len(all), err)
				}
			}
		})
	}
}

// BenchmarkWatch10k reads 10,000 records as a service does when it starts; it also
// reports how long the engine takes to open and the memory it then holds.
func BenchmarkWatch10k(b *testing.B) {
	dir := b.TempDir()
	e := open(b, dir)
	fill(b, e.Store(), 10_000)
	e.Close()
	debug.FreeOSMemory()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	begin := time.Now()
	e = open(b, dir)
	opened := time.Since(begin)
	for b.Loop() {
		ctx, cancel := context.WithCancel(b.Context())
		ch, err := e.Store().Watch(ctx, "")
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		for u := range ch {
			if u.Key == "" {
				break
			}
			n++
		}
		cancel()
		if n != 10_000 {
			b.Fatal(n)
		}
	}
	debug.FreeOSMemory()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(opened.Microseconds())/1000, "ms-open")
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB-heap")
}

func BenchmarkWatchLatency(b *testing.B) {
	s := open(b, b.TempDir()).Store()
	ch, err := s.Watch(b.Context(), "")
	if err != nil {
		b.Fatal(err)
	}
	<-ch
	for i := 0; b.Loop(); i++ {
		k, v := record(i % 100)
		if _, err := s.Put(b.Context(), k, v); err != nil {
			b.Fatal(err)
		}
		<-ch
	}
}

func BenchmarkQueue(b *testing.B) {
	for _, size := range []int{1 << 10, 1 << 20} {
		body := bytes.Repeat([]byte("m"), size)
		b.Run(fmt.Sprintf("enqueue/%d", size), func(b *testing.B) {
			q := open(b, b.TempDir()).Queue()
			for b.Loop() {
				if err := q.Enqueue(b.Context(), "q.x", "", body); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("through/%d", size), func(b *testing.B) {
			q := open(b, b.TempDir()).Queue()
			for b.Loop() {
				if err := q.Enqueue(b.Context(), "q.x", "", body); err != nil {
					b.Fatal(err)
				}
				m, err := q.Receive(b.Context(), "q", time.Hour)
				if err != nil {
					b.Fatal(err)
				}
				if err := m.Ack(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkBlob10MB(b *testing.B) {
	content := bytes.Repeat([]byte("0123456789"), 1<<20)
	s, err := files.Open(files.Config{Dir: b.TempDir(), Reserve: 1})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(content)))
	for i := 0; b.Loop(); i++ {
		content[0] = byte(i)
		if _, _, err := s.Put(b.Context(), bytes.NewReader(content)); err != nil {
			b.Fatal(err)
		}
	}
}
