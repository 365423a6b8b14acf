package integration_test

import (
	"fmt"
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
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/lambdad/lambdad/integration/harness"
	"github.com/lambdad/lambdad/nats"
	"github.com/lambdad/lambdad/store"
)

// BenchmarkManyFunctions measures a server with 10,000 functions of 5 versions
// each: its start against that of an empty one, memory, pages of ListFunctions,
// and GetFunction. One function is made through the API, and its records are
// copied. Run it with
//
//	go test ./integration -run '^$' -bench ManyFunctions -benchtime 1x
func BenchmarkManyFunctions(b *testing.B) {
	const functions, versions = 10_000, 5
	ctx, dir := b.Context(), b.TempDir()
	start := func() (*harness.Server, time.Duration) {
		begin := time.Now()
		s := harness.Start(b, dir, "--isolation", "plain", "--log-level", "warn")
		return s, time.Since(begin)
	}
	s, _ := start()
	s.Stop()
	s, empty := start()
	emptyMemory := resident(b, s)
	err := s.Create(ctx, "f", func(in *lambda.CreateFunctionInput) {
		in.Description = aws.String("One of ten thousand")
		in.Environment = &types.Environment{Variables: map[string]string{
			"TABLE_NAME": "orders-production", "LOG_LEVEL": "info", "ENDPOINT": "https://example.com/api/v1", "FEATURES": strings.Repeat("x", 100)}}
	})
	for i := 0; err == nil && i < versions; i++ {
		if _, err = s.Client.PublishVersion(ctx, &lambda.PublishVersionInput{FunctionName: aws.String("f")}); err == nil {
			_, err = s.Client.UpdateFunctionConfiguration(ctx, &lambda.UpdateFunctionConfigurationInput{FunctionName: aws.String("f"), Timeout: aws.Int32(int32(31 + i))})
		}
		if err == nil {
			err = lambda.NewFunctionUpdatedV2Waiter(s.Client).Wait(ctx, &lambda.GetFunctionInput{FunctionName: aws.String("f")}, 30*time.Second)
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	s.Stop()
	multiply(b, filepath.Join(dir, "records"), functions, 1+versions)

	for b.Loop() {
		s, full := start()
		b.ReportMetric(float64(empty.Milliseconds()), "ms-start-empty")
		b.ReportMetric(float64(full.Milliseconds()), "ms-start")
		b.ReportMetric(processor(b, s), "ms-start-cpu")
		b.ReportMetric(emptyMemory, "MiB-empty")
		b.ReportMetric(resident(b, s), "MiB")
		var pages, gets []time.Duration
		count := 0
		for p := lambda.NewListFunctionsPaginator(s.Client, &lambda.ListFunctionsInput{}); p.HasMorePages(); {
			begin := time.Now()
			page, err := p.NextPage(ctx)
			if err != nil {
				b.Fatal(err)
			}
			pages = append(pages, time.Since(begin))
			count += len(page.Functions)
		}
		if count != functions {
			b.Fatalf("%d functions listed", count)
		}
		for i := range 1000 {
			begin := time.Now()
			out, err := s.Client.GetFunction(ctx, &lambda.GetFunctionInput{FunctionName: aws.String(nameOf(i * 7)), Qualifier: aws.String(strconv.Itoa(1 + i%versions))})
			if err != nil {
				b.Fatal(err)
			}
			if *out.Configuration.Version != strconv.Itoa(1+i%versions) {
				b.Fatal(*out.Configuration.Version)
			}
			gets = append(gets, time.Since(begin))
		}
		b.ReportMetric(milliseconds(pages, 0.5), "ms-page-p50")
		b.ReportMetric(milliseconds(pages, 0.99), "ms-page-p99")
		b.ReportMetric(milliseconds(gets, 0.5), "ms-get-p50")
		b.ReportMetric(milliseconds(gets, 0.99), "ms-get-p99")
		b.ReportMetric(resident(b, s), "MiB-after")
		s.Stop()
	}
}

func nameOf(i int) string { return fmt.Sprintf("function-%05d", i) }

// multiply copies the records of the function f, so many, to n others, and deletes f.
func multiply(b *testing.B, dir string, n, each int) {
	b.Helper()
	engine, err := nats.Open(b.Context(), nats.Config{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	const prefix = "000000000000.us-east-1.function."
	records, err := engine.Store().List(b.Context(), prefix+"f")
	if err != nil || len(records) != each {
		b.Fatalf("%d records: %v", len(records), err)
	}
	work, failed := make(chan store.Record), make(chan error, 64)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for r := range work {
				if _, err := engine.Store().Put(b.Context(), r.Key, r.Value); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	for i := range n {
		for _, r := range records {
			value := strings.Replace(string(r.Value), "/aws/lambda/f", "/aws/lambda/"+nameOf(i), 1)
			select {
			case work <- store.Record{Key: prefix + nameOf(i) + strings.TrimPrefix(r.Key, prefix+"f"), Value: []byte(value)}:
			case err := <-failed:
				b.Fatal(err)
			}
		}
	}
	close(work)
	wg.Wait()
	for _, r := range records {
		if err := engine.Store().Delete(b.Context(), r.Key, 0); err != nil {
			b.Fatal(err)
		}
	}
	if err := engine.Close(); err != nil {
		b.Fatal(err)
	}
}

// resident is the memory of a server in MiB.
func resident(b *testing.B, s *harness.Server) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return float64(kb) / 1024
}

// processor is the processor time that a server has used, in ms.
func processor(b *testing.B, s *harness.Server) float64 {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.Cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	total := 0
	for _, f := range fields[11:13] { // user and system time, in hundredths of a second
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		total += n
	}
	return float64(total) * 10
}

func milliseconds(times []time.Duration, quantile float64) float64 {
	slices.Sort(times)
	return float64(times[int(quantile*float64(len(times)-1))].Microseconds()) / 1000
}
