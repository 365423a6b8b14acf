package metrics

import (
	"bufio"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/telemetry"
)

var noon = time.Date(2026, 5, 6, 12, 0, 30, 123e6, time.UTC)

func open(t testing.TB, cfg Config) *Store {
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Now == nil {
		cfg.Now = func() time.Time { return noon }
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func testID(name string, dims ...Dimension) ID {
	return ID{Account: "000000000000", Region: "us-east-1", Namespace: "test", Name: name, Unit: "None", Dimensions: dims}
}

func put(t testing.TB, s *Store, id ID, at time.Time, values ...float64) {
	t.Helper()
	d := Datum{ID: id, Time: at}
	for _, v := range values {
		d.Add(v, 1)
	}
	if err := s.Put(t.Context(), []Datum{d}); err != nil {
		t.Fatal(err)
	}
}

func query(t testing.TB, s *Store, id ID, start, end time.Time, period time.Duration) []Point {
	t.Helper()
	points, err := s.Select(t.Context(), id, start, end, period)
	if err != nil {
		t.Fatal(err)
	}
	return points
}

func TestStatistics(t *testing.T) {
	for name, values := range map[string]func() float64{
		"one":      func() float64 { return 7.25 },
		"uniform":  func() float64 { return rand.Float64() * 1000 },
		"negative": func() float64 { return rand.NormFloat64() },
		"wide":     func() float64 { return math.Exp(rand.NormFloat64() * 20) },
		"zero":     func() float64 { return float64(rand.IntN(3) - 1) },
	} {
		t.Run(name, func(t *testing.T) {
			s, id := open(t, Config{}), testID(name)
			var all []float64
			sum := 0.0
			for range 20 { // each a write of its own
				var some []float64
				for range 50 {
					v := values()
					some, sum = append(some, v), sum+v
				}
				all = append(all, some...)
				put(t, s, id, noon, some...)
			}
			points := query(t, s, id, noon.Add(-time.Minute), noon.Add(time.Minute), time.Minute)
			if len(points) != 1 || !points[0].Time.Equal(noon.Truncate(time.Minute)) {
				t.Fatalf("%+v", points)
			}
			p := points[0]
			if p.Count != 1000 || p.Min != slices.Min(all) || p.Max != slices.Max(all) || math.Abs(p.Sum-sum) > 1e-9*math.Abs(sum)+1e-9 {
				t.Errorf("count %v min %v max %v sum %v, want %v %v %v", p.Count, p.Min, p.Max, p.Sum, slices.Min(all), slices.Max(all), sum)
			}
			slices.Sort(all)
			for _, q := range []float64{0, 1, 10, 50, 90, 99, 99.9, 100} {
				got, known := p.Percentile(q)
				// Within a bucket of one of the neighbours of the rank.
				at := q / 100 * 1000
				low, high := all[max(0, int(at)-1)], all[min(999, int(at))]
				if !known || got < low-math.Abs(low)*0.003 || got > high+math.Abs(high)*0.003 {
					t.Errorf("p%v = %v (%v), want %v to %v", q, got, known, low, high)
				}
			}
		})
	}
}

func TestSummary(t *testing.T) {
	s, id := open(t, Config{}), testID("set")
	d := Datum{ID: id, Time: noon}
	d.AddSummary(10, 55, 1, 10)
	if err := s.Put(t.Context(), []Datum{d}); err != nil {
		t.Fatal(err)
	}
	put(t, s, id, noon, 20)
	p := query(t, s, id, noon.Add(-time.Minute), noon.Add(time.Minute), time.Minute)[0]
	if p.Count != 11 || p.Sum != 75 || p.Min != 1 || p.Max != 20 {
		t.Errorf("%+v", p)
	}
	if _, known := p.Percentile(50); known {
		t.Error("a percentile of values that nobody told")
	}
}

// TestTimes: data of any order land in their minutes, high resolution in its second.
func TestTimes(t *testing.T) {
	s, id := open(t, Config{}), testID("times")
	for _, ago := range []time.Duration{0, time.Minute, 90 * time.Minute, 13 * 24 * time.Hour, -100 * time.Minute, time.Minute, 0, 5 * time.Hour} {
		put(t, s, id, noon.Add(-ago), 1)
	}
	minutes := map[string]float64{}
	for _, p := range query(t, s, id, noon.Add(-MaxAge), noon.Add(MaxAhead), time.Minute) {
		minutes[noon.Truncate(time.Minute).Sub(p.Time).String()] = p.Sum
	}
	if got, want := fmt.Sprint(minutes), "map[-1h40m0s:1 0s:2 1h30m0s:1 1m0s:2 312h0m0s:1 5h0m0s:1]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	hours := query(t, s, id, noon.Add(-2*time.Hour), noon.Add(time.Second), time.Hour)
	if len(hours) != 3 || hours[0].Sum+hours[1].Sum+hours[2].Sum != 5 {
		t.Errorf("%+v", hours)
	}

	high := testID("high")
	for i := range 5 {
		d := Datum{ID: high, Time: noon.Add(time.Duration(i) * 500 * time.Millisecond), High: true}
		d.Add(float64(i), 1)
		if err := s.Put(t.Context(), []Datum{d}); err != nil {
			t.Fatal(err)
		}
	}
	var counts []float64
	for _, p := range query(t, s, high, noon, noon.Add(time.Minute), time.Second) {
		counts = append(counts, p.Count)
	}
	if fmt.Sprint(counts) != "[2 2 1]" {
		t.Errorf("%v", counts)
	}
}

func TestList(t *testing.T) {
	s := open(t, Config{})
	put(t, s, testID("a"), noon, 1)
	put(t, s, testID("a", Dimension{"k", "v"}, Dimension{"l", "w=,x"}), noon, 1, 2)
	put(t, s, testID("b"), noon.Add(-20*time.Hour), 1)
	other := testID("a")
	other.Account = "111111111111"
	put(t, s, other, noon, 1)
	list := func(name string, since time.Duration) (text []string) {
		ids, err := s.List(t.Context(), "000000000000", "us-east-1", "test", name, noon.Add(-since))
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			text = append(text, fmt.Sprint(id.Name, id.Dimensions))
		}
		slices.Sort(text)
		return text
	}
	if got := fmt.Sprint(list("", MaxAge)); got != "[a[] a[{k v} {l w=,x}] b[]]" {
		t.Error(got)
	}
	if got := fmt.Sprint(list("a", 3*time.Hour)); got != "[a[] a[{k v} {l w=,x}]]" {
		t.Error(got)
	}
}

func TestLimits(t *testing.T) {
	now := noon
	s := open(t, Config{MaxSeries: 2, Now: func() time.Time { return now }})
	put(t, s, testID("a"), now, 1)
	put(t, s, testID("b"), now, 1)
	d := Datum{ID: testID("c"), Time: now}
	d.Add(1, 1)
	if err := s.Put(t.Context(), []Datum{d}); lambdad.ErrorCode(err) != "LimitExceededFault" {
		t.Errorf("%v", err)
	}
	now = now.Add(4 * time.Hour)
	d.Time = now
	if err := s.Put(t.Context(), []Datum{d}); err != nil {
		t.Errorf("a metric that nobody writes to any more counts: %v", err)
	}
}

// TestRecorder: what is recorded is kept under every set of dimensions.
func TestRecorder(t *testing.T) {
	s := open(t, Config{})
	sum := func(name string, dims ...string) string {
		id := ID{Account: "000000000000", Region: "us-east-1", Namespace: Namespace, Name: name}
		for i := 0; i < len(dims); i += 2 {
			id.Dimensions = append(id.Dimensions, Dimension{dims[i], dims[i+1]})
		}
		points := query(t, s, id, noon.Add(-time.Hour), noon.Add(time.Hour), 2*time.Hour)
		if len(points) == 0 {
			return "none"
		}
		p := points[0]
		return fmt.Sprint(p.Count, " ", p.Sum, " ", p.Max)
	}
	v := &lambdad.Version{Account: "000000000000", Region: "us-east-1", Function: "f", Number: "7"}
	emit := func(arn, status string, duration, extensions time.Duration) {
		st := telemetry.NewStream(NewReports(s, v))
		st.Emit(telemetry.Event{Time: noon, Type: telemetry.TypeStart, Record: telemetry.Start{FunctionARN: arn}})
		r := telemetry.Report{Status: status, Metrics: telemetry.ReportMetrics{Duration: telemetry.Millis(duration)}}
		if status == "posted" { // the handler's own error, of which the status knows nothing
			r.Status, r.FunctionError = telemetry.StatusSuccess, true
		}
		if extensions > 0 {
			r.Spans = []telemetry.Span{{Name: "extensionOverhead", Duration: telemetry.Millis(extensions)}}
		}
		st.Emit(telemetry.Event{Time: noon.Add(time.Minute), Type: telemetry.TypeReport, Record: r})
	}
	const arn = "arn:aws:lambda:us-east-1:000000000000:function:f"
	emit(arn, telemetry.StatusSuccess, 1500*time.Microsecond, 0)
	emit(arn+":live", telemetry.StatusTimeout, 3*time.Second, 0)
	emit(arn+":live", telemetry.StatusSuccess, 10*time.Millisecond, 4*time.Millisecond)
	emit(arn+":7", "posted", 10*time.Millisecond, 0)
	account := Subject{Account: v.Account, Region: v.Region}
	f := account
	f.Function = "f"
	s.Record(account, ConcurrentExecutions, 9, noon)
	s.Record(f, ConcurrentExecutions, 5, noon)
	f.Qualifier = "live"
	s.Record(f, ConcurrentExecutions, 3, noon)
	s.Record(f, Throttles, 1, noon)
	for _, test := range []struct {
		want, name string
		dims       []string
	}{
		{"4 4 1", "Invocations", nil},
		{"4 4 1", "Invocations", []string{"FunctionName", "f"}},
		{"1 1 1", "Invocations", []string{"FunctionName", "f", "Resource", "f"}},
		{"2 2 1", "Invocations", []string{"FunctionName", "f", "Resource", "f:live"}},
		{"1 1 1", "Invocations", []string{"FunctionName", "f", "Resource", "f:7"}},
		{"2 2 1", "Invocations", []string{"ExecutedVersion", "7", "FunctionName", "f", "Resource", "f:live"}},
		{"none", "Invocations", []string{"ExecutedVersion", "7", "FunctionName", "f", "Resource", "f:7"}},
		{"4 2 1", "Errors", []string{"FunctionName", "f"}},
		{"1 1 1", "Errors", []string{"FunctionName", "f", "Resource", "f:7"}},
		{"4 3021.5 3000", "Duration", []string{"FunctionName", "f"}},
		{"1 4 4", "PostRuntimeExtensionsDuration", []string{"FunctionName", "f"}},
		{"1 9 9", "ConcurrentExecutions", nil},
		{"1 5 5", "ConcurrentExecutions", []string{"FunctionName", "f"}},
		{"1 3 3", "ConcurrentExecutions", []string{"FunctionName", "f", "Resource", "f:live"}},
		{"1 1 1", "Throttles", []string{"FunctionName", "f", "Resource", "f:live"}},
		{"none", "Throttles", []string{"ExecutedVersion", "", "FunctionName", "f", "Resource", "f:live"}},
	} {
		if got := sum(test.name, test.dims...); got != test.want {
			t.Errorf("%s %v: %s, want %s", test.name, test.dims, got, test.want)
		}
	}
}

// TestRecordAllocates: nothing grows with the number of invocations.
func TestRecordAllocates(t *testing.T) {
	s := open(t, Config{})
	of := Subject{Account: "000000000000", Region: "us-east-1", Function: "f", Version: "$LATEST"}
	record := func() {
		s.Record(of, Invocations, 1, noon)
		s.Record(of, Errors, 0, noon)
	}
	record()
	if n := testing.AllocsPerRun(1000, record); n != 0 {
		t.Errorf("%v allocations for each invocation", n)
	}
}

// TestSize: the oldest data go when there are too many, the latest stay.
func TestSize(t *testing.T) {
	const limit = 640 << 10
	s := open(t, Config{MaxBytes: limit})
	for ago := 48 * time.Hour; ago >= 0; ago -= time.Hour {
		data := make([]Datum, 20)
		for i := range data {
			data[i] = Datum{ID: testID(fmt.Sprint("m", i)), Time: noon.Add(-ago)}
			for range 40 {
				data[i].Add(rand.Float64()*1e6, 1)
			}
		}
		if err := s.Put(t.Context(), data); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.db.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	bytes, _, _ := s.Size()
	points := query(t, s, testID("m0"), noon.Add(-11*24*time.Hour), noon.Add(time.Minute), time.Minute)
	if len(points) < 3 || len(points) > 40 || !points[len(points)-1].Time.Equal(noon.Truncate(time.Minute)) {
		t.Errorf("%d points, the last of %v", len(points), points[len(points)-1].Time)
	}
	// What is not in blocks yet counts, but cannot go.
	if head := s.db.Head().Size(); bytes > limit+head {
		t.Errorf("%d bytes, %d of them not in blocks yet; the limit is %d", bytes, head, limit)
	}
}

func TestConcurrentPuts(t *testing.T) {
	s := open(t, Config{Now: time.Now})
	// At the end of a minute there is no room for so many values of one time.
	id, now := testID("many"), time.Now().Truncate(time.Minute)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 50 {
				put(t, s, id, now, 1)
				s.Record(Subject{Account: "000000000000", Region: "us-east-1"}, Throttles, 1, now)
			}
		})
	}
	group.Wait()
	total := 0.0
	for _, p := range query(t, s, id, now.Add(-time.Minute), now.Add(time.Minute), time.Minute) {
		total += p.Sum
	}
	if total != 400 {
		t.Errorf("%v of 400", total)
	}
}

// TestKilled: what Put returned for is there after the process was killed.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("METRICS_TEST_KILLED"); dir != "" {
		s, err := Open(Config{Dir: dir, Now: func() time.Time { return noon }})
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ {
			put(t, s, testID("n"), noon, float64(i))
			fmt.Printf("put %d\n", i)
		}
	}
	dir := t.TempDir()
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "METRICS_TEST_KILLED="+dir+strconv.Itoa(round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acknowledged := 0
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "put ") {
				if acknowledged++; acknowledged == 100*(round+1) {
					if err := cmd.Process.Kill(); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		_ = cmd.Wait() // killed
		s := open(t, Config{Dir: dir + strconv.Itoa(round)})
		points := query(t, s, testID("n"), noon.Add(-time.Minute), noon.Add(time.Minute), time.Minute)
		if len(points) != 1 || points[0].Count < float64(acknowledged) || acknowledged < 100*(round+1) {
			t.Errorf("%d acknowledged, there are %+v", acknowledged, points)
		}
	}
}

func BenchmarkRecord(b *testing.B) {
	s := open(b, Config{})
	of := Subject{Account: "000000000000", Region: "us-east-1", Function: "f", Version: "$LATEST"}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Record(of, Duration, float64(i%1000), noon)
		if i%10000 == 0 {
			s.flush(b.Context())
		}
	}
}
