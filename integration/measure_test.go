package integration_test

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/lambdad/lambdad/integration/harness"
)

// measuredOf invokes a function and returns its answer, and duration and memory as
// its REPORT has them once its extensions are done, too.
func measuredOf(t *testing.T, s *harness.Server, name, event string, n int) (answer string, ms float64, mb int) {
	t.Helper()
	got, err := s.Invoke(t.Context(), name, event)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		out, err := exec.CommandContext(t.Context(), harness.Program(t, "lambdad"), "bill", "--data-dir", s.DataDir, "--output", "json", "--invocations", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		var bill struct {
			Rows []struct {
				Latest []struct {
					DurationMs      float64
					MaxMemoryUsedMB int
				}
			}
		}
		if err := json.Unmarshal(out, &bill); err != nil {
			t.Fatal(err)
		}
		if len(bill.Rows) == 1 && len(bill.Rows[0].Latest) == n {
			last := bill.Rows[0].Latest[n-1]
			return string(got), last.DurationMs, last.MaxMemoryUsedMB
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s: invocation %d was never billed", name, n)
	return
}

// TestMeasured holds that figures in REPORT are measured: two runs that differ by 60
// MB of memory differ by that in Max Memory Used, whoever took it and whatever goes
// through files; and a duration is what the program itself measures, and the little
// that handing over takes.
func TestMeasured(t *testing.T) {
	harness.NeedRoot(t)
	s := harness.Start(t, t.TempDir())
	program := harness.Program(t, "measured")
	layer := s.Layer(t.Context(), "measured", "extensions/measured", program)
	create := func(name string, env map[string]string) {
		if err := s.Create(t.Context(), name, func(in *lambda.CreateFunctionInput) {
			in.Code.ZipFile = harness.ZipOf(t, "bootstrap", program)
			in.MemorySize = aws.Int32(512)
			in.Layers = []string{layer}
			in.Environment = &types.Environment{Variables: env}
		}); err != nil {
			t.Fatal(err)
		}
	}
	const small, large = 10, 70
	for _, who := range []string{"RUNTIME", "EXTENSION"} {
		without := 0
		for _, files := range []int{0, 200} {
			used := map[int]int{}
			for _, mb := range []int{small, large} {
				name := fmt.Sprintf("%s-%d-%d", who, files, mb)
				create(name, map[string]string{who + "_MB": strconv.Itoa(mb), who + "_FILE_MB": strconv.Itoa(files)})
				_, _, used[mb] = measuredOf(t, s, name, "0", 1)
			}
			t.Logf("%s, %d MB of files: %d MB and %d MB", who, files, used[small], used[large])
			if d := used[large] - used[small]; d < large-small-2 || d > large-small+2 {
				t.Errorf("%s, %d MB of files: %d MB more memory show as %d", who, files, large-small, d)
			}
			// Files that came and went are nobody's memory, but for what the kernel
			// takes to write them.
			if files == 0 {
				without = used[small]
			} else if d := used[small] - without; d > files/4 {
				t.Errorf("%s: %d MB of files show as %d MB of memory", who, files, d)
			}
		}
	}
	create("slow", nil)
	measuredOf(t, s, "slow", "0", 1)
	best := 1e9
	for i := range 20 {
		answer, reported, _ := measuredOf(t, s, "slow", "50", i+2)
		own, err := strconv.ParseFloat(answer, 64)
		if err != nil {
			t.Fatal(answer)
		}
		if reported < own/1000-0.01 {
			t.Errorf("Duration: %.2f ms, and the program worked %.2f ms", reported, own/1000)
		}
		best = min(best, reported-own/1000)
	}
	t.Logf("Duration is at best %.2f ms over what the program measures", best)
	if best > 1 {
		t.Errorf("Duration is %.2f ms over what the program measures, at best", best)
	}
	s.Stop()
	harness.LeftOnHost(t, s.ID)
}

// TestReported holds that what a reader of the log has seen survives the death of
// the server at that moment: the line, and the metrics of its invocation.
func TestReported(t *testing.T) {
	harness.NeedRoot(t)
	dir := t.TempDir()
	for round := 1; round <= 3; round++ {
		s := harness.Start(t, dir)
		if round == 1 {
			if err := s.Create(t.Context(), "reported", nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Invoke(t.Context(), "reported", `{}`); err != nil {
			t.Fatal(err)
		}
		for begun := time.Now(); strings.Count(harness.LogsOf(t, dir, "reported"), "REPORT ") < round; time.Sleep(5 * time.Millisecond) {
			if time.Since(begun) > 10*time.Second {
				t.Fatal("the report never came")
			}
		}
		s.Kill()
	}
	s := harness.Start(t, dir)
	if n := strings.Count(harness.LogsOf(t, dir, "reported"), "REPORT "); n != 3 {
		t.Errorf("%d reports of 3", n)
	}
	if n := s.Metric(t.Context(), "Invocations", "reported"); n != 3 {
		t.Errorf("%v invocations of 3 in the metrics", n)
	}
	s.Stop()
	harness.LeftOnHost(t, s.ID)
}

// BenchmarkLines counts how much of what a function writes reaches its subscribers:
// of 100,000 lines a second one of them, of 20,000 lines a second eight of ten, of
// whom two read nothing of what they are sent.
func BenchmarkLines(b *testing.B) {
	program := harness.Program(b, "measured")
	for _, c := range []struct {
		name              string
		layers            []string
		lines, rate, want int
	}{
		{"one", []string{"ear-1"}, 200_000, 100_000, 2},
		{"ten", []string{"ear-1", "ear-2", "ear-3", "ear-4", "deaf-5"}, 40_000, 20_000, 8},
	} {
		b.Run(c.name, func(b *testing.B) {
			dir := b.TempDir()
			s := harness.Start(b, dir)
			var layers []string
			for _, name := range c.layers {
				layers = append(layers, s.Layer(b.Context(), name, "extensions/"+name, program))
			}
			if err := s.Create(b.Context(), "lines", func(in *lambda.CreateFunctionInput) {
				in.Code.ZipFile = harness.ZipOf(b, "bootstrap", program)
				in.MemorySize, in.Layers = aws.Int32(3538), layers
				in.Environment = &types.Environment{Variables: map[string]string{"LINES": strconv.Itoa(c.lines), "LINES_RATE": strconv.Itoa(c.rate)}}
			}); err != nil {
				b.Fatal(err)
			}
			took, err := s.Invoke(b.Context(), "lines", `0`)
			if err != nil {
				b.Fatal(err)
			}
			s.Stop()
			counted, received, dropped := 0, 0, 0
			for line := range strings.Lines(harness.LogsOf(b, dir, "lines")) {
				var got, lost int
				if n, _ := fmt.Sscanf(line, "counted %d dropped %d", &got, &lost); n != 2 {
					continue
				}
				counted++
				received, dropped = received+got, dropped+lost
			}
			if counted != c.want {
				b.Fatalf("%d subscriptions of %d", counted, c.want)
			}
			us, err := strconv.ParseFloat(string(took), 64)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(c.lines)/us*1e6, "lines/s")
			b.ReportMetric(100*float64(received)/float64(c.want*c.lines), "%received")
			b.ReportMetric(float64(dropped), "drops-told")
		})
	}
}

// BenchmarkLinesHandler tells what writing 100,000 lines a second, one a call, costs a
// handler whose lines are logged and sent to a subscriber, beside what it costs into a
// pipe of its own that is read at once. Both by turns in one environment.
func BenchmarkLinesHandler(b *testing.B) {
	program := harness.Program(b, "measured")
	s := harness.Start(b, b.TempDir())
	layer := s.Layer(b.Context(), "ear-1", "extensions/ear-1", program)
	const lines = 50_000
	if err := s.Create(b.Context(), "lines", func(in *lambda.CreateFunctionInput) {
		in.Code.ZipFile = harness.ZipOf(b, "bootstrap", program)
		in.MemorySize, in.Layers = aws.Int32(3538), []string{layer}
		in.Environment = &types.Environment{Variables: map[string]string{"LINES": strconv.Itoa(lines), "LINES_RATE": "100000"}}
	}); err != nil {
		b.Fatal(err)
	}
	var pipe, log []float64
	for range max(b.N, 9) {
		for event, list := range map[string]*[]float64{`"pipe"`: &pipe, `"log"`: &log} {
			took, err := s.Invoke(b.Context(), "lines", event)
			if err != nil {
				b.Fatal(err)
			}
			us, err := strconv.ParseFloat(string(took), 64)
			if err != nil {
				b.Fatal(err)
			}
			*list = append(*list, us)
		}
	}
	s.Stop()
	slices.Sort(pipe)
	slices.Sort(log)
	b.ReportMetric(pipe[len(pipe)/2]*1000/lines, "ns/line-pipe")
	b.ReportMetric(log[len(log)/2]*1000/lines, "ns/line-log")
	b.ReportMetric(log[len(log)/2]/pipe[len(pipe)/2], "log/pipe")
	b.ReportMetric(log[0]/pipe[0], "log/pipe-best")
}
