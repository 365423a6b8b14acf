package bill_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/bill"
	"github.com/lambdad/lambdad/mem"
	"github.com/lambdad/lambdad/telemetry"
)

const ms = telemetry.Millis(time.Millisecond)

func version(name, number string) *lambdad.Version {
	return &lambdad.Version{Account: "000000000000", Region: "us-east-1", Function: name, Number: number, MemoryMB: 1024, EphemeralMB: 1536, Architecture: "x86_64"}
}

// life sends the telemetry of a cold and a warm invocation with one extension.
func life(sink telemetry.Sink, initType string) {
	at := time.Now()
	emit := func(typ string, record any) { sink.Take(telemetry.Event{Time: at, Type: typ, Record: record}) }
	emit(telemetry.TypeInitStart, telemetry.InitStart{InitializationType: initType})
	emit(telemetry.TypeInitReport, telemetry.InitReport{Metrics: telemetry.InitMetrics{Duration: 200 * ms}})
	emit(telemetry.TypeCost, telemetry.Cost{Phase: "init", Waited: 80 * ms, Extensions: []telemetry.ExtensionCost{{Name: "x", External: true, Init: 60 * ms}}})
	report := func(id string, duration, after, init telemetry.Millis, billed int64) {
		emit(telemetry.TypeCost, telemetry.Cost{Phase: "invoke", RequestID: id, Runtime: 5 * ms,
			Extensions: []telemetry.ExtensionCost{{Name: "x", External: true, After: after, CPU: 2 * ms, Peak: 7 << 20}}})
		emit(telemetry.TypeReport, telemetry.Report{RequestID: id, Status: telemetry.StatusSuccess,
			Spans:   []telemetry.Span{{Name: "extensionOverhead", Duration: after}},
			Metrics: telemetry.ReportMetrics{Duration: duration, Billed: billed, MemorySize: 1024, MaxMemoryUsed: 50, Init: init}})
	}
	billedInit := 200 * time.Millisecond
	if initType != "on-demand" {
		billedInit = 0
	}
	report("r1", 100*ms, 30*ms, 200*ms, telemetry.BilledMillis(100*time.Millisecond, billedInit))
	report("r2", 50*ms, 20*ms, 0, 50)
	emit(telemetry.TypeCost, telemetry.Cost{Phase: "shutdown", Extensions: []telemetry.ExtensionCost{{Name: "x", External: true, CPU: ms, Peak: 8 << 20}}})
}

func rows(t *testing.T, l *bill.Ledger, q bill.Query) []bill.Row {
	t.Helper()
	q.Account, q.Region = "000000000000", "us-east-1"
	r, err := l.Rows(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSums(t *testing.T) {
	l := bill.New(bill.Config{Store: mem.NewStore()})
	life(l.Sinks(version("f", "$LATEST"), "e")[0], "on-demand")
	r := rows(t, l, bill.Query{})
	if len(r) != 1 || r[0].Function != "f" || r[0].Version != "$LATEST" {
		t.Fatalf("%+v", r)
	}
	s := r[0].Sums
	want := bill.Sums{
		Invocations: 2, Cold: 1, Duration: 150_000, Init: 200_000, After: 50_000, Waited: 80_000, Runtime: 10_000,
		Billed: 350, MBms: 350 * 1024, PlainMs: 70 + 120 + 30, PlainMBms: 220 * 1024, StorageMBms: 350 * 1024,
		MaxMemory: 50, MemorySize: 1024, Architecture: "x86_64",
	}
	x := s.Extensions["x"]
	s.Extensions = nil
	if a, b := encode(t, s), encode(t, want); a != b {
		t.Errorf("got  %s\nwant %s", a, b)
	}
	if wantX := (bill.Extension{External: true, Inits: 1, Init: 60_000, Invocations: 2, After: 50_000, AfterMax: 30_000, CPU: 5_000, Peak: 8 << 20}); *x != wantX {
		t.Errorf("extension: %+v, want %+v", *x, wantX)
	}
	if n := len(r[0].Latest); n != 2 || r[0].Latest[0].Plain != 190 || r[0].Latest[0].Extensions["x"] != 30 {
		t.Errorf("latest: %+v", r[0].Latest)
	}
	// 350 ms of 1 GB: what AWS's price list says.
	p := bill.Published()
	c := p.Charge(&want)
	if !near(c.Compute, 0.35*0.0000166667) || !near(c.Requests, 2*0.0000002) || !near(c.Storage, 0.35*0.0000000309) || !near(c.Extensions, 0.13*(0.0000166667+0.0000000309)) {
		t.Errorf("%+v", c)
	}
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-12 }

func encode(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// An initialisation ahead of time is billed then, at another price.
func TestProvisioned(t *testing.T) {
	l := bill.New(bill.Config{Store: mem.NewStore()})
	life(l.Sinks(version("f", "1"), "e")[0], "provisioned-concurrency")
	s := rows(t, l, bill.Query{})[0].Sums
	if s.Billed != 150 || s.AheadMBms != 150*1024 || s.AheadPlain != 100*1024 {
		t.Errorf("%+v", s)
	}
	p := bill.Published()
	if c := p.Charge(&s); !near(c.Compute, 0.15*0.0000097222) {
		t.Errorf("%+v", c)
	}
}

// Sums are added to what an earlier server kept, and chosen by a query.
func TestKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := mem.NewStore()
		for range 3 {
			l := bill.New(bill.Config{Store: records})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- l.Run(ctx) }()
			life(l.Sinks(version("f", "$LATEST"), "e")[0], "on-demand")
			life(l.Sinks(version("f", "1"), "e")[0], "on-demand")
			life(l.Sinks(version("g", "2"), "e")[0], "on-demand")
			time.Sleep(24 * time.Hour) // a new day
			cancel()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		l := bill.New(bill.Config{Store: records})
		for name, c := range map[string]struct {
			q           bill.Query
			rows        int
			invocations int64
		}{
			"all":        {bill.Query{}, 3, 6},
			"a function": {bill.Query{Function: "f"}, 2, 6},
			"a version":  {bill.Query{Function: "f", Version: "1"}, 1, 6},
			"two days":   {bill.Query{Since: time.Now().Add(-47 * time.Hour)}, 3, 4},
			"nothing":    {bill.Query{Function: "h"}, 0, 0},
		} {
			r := rows(t, l, c.q)
			if len(r) != c.rows || c.rows > 0 && r[0].Invocations != c.invocations {
				t.Errorf("%s: %s", name, encode(t, r))
			}
		}
	})
}

func TestPrices(t *testing.T) {
	bill.Published() // panics where it is none
	for _, bad := range []string{"", "{}", `{"perGBSecond":{"x86_64":1}}`, `{"else":1}`} {
		if _, err := bill.ReadPrices([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// However many versions run, so many invocations are remembered one by one: of those
// that ran last.
func TestRemembersABoundedNumber(t *testing.T) {
	l := bill.New(bill.Config{Store: mem.NewStore()})
	run := func(name string, n int) {
		sink := l.Sinks(version(name, "1"), "e")[0]
		for range n {
			sink.Take(telemetry.Event{Time: time.Now(), Type: telemetry.TypeReport, Record: telemetry.Report{RequestID: name, Status: telemetry.StatusSuccess}})
		}
	}
	latest := func() (all int, of map[string]int) {
		of = map[string]int{}
		for _, r := range rows(t, l, bill.Query{}) {
			of[r.Function] = len(r.Latest)
			all += len(r.Latest)
		}
		return all, of
	}
	run("first", 1000)
	if all, of := latest(); all != 100 || of["first"] != 100 {
		t.Errorf("%d remembered of one: %v", all, of)
	}
	for i := range 300 {
		run(fmt.Sprintf("f%d", i), 150)
		run("often", 1)
	}
	all, of := latest()
	if all > 20_000 || all < 10_000 || of["first"] != 0 || of["f0"] != 0 || of["f299"] != 100 || of["often"] != 100 {
		t.Errorf("%d remembered of all, first %d, f0 %d, f299 %d, often %d", all, of["first"], of["f0"], of["f299"], of["often"])
	}
	run("first", 1)
	if _, of := latest(); of["first"] != 1 {
		t.Errorf("%d remembered of one that runs again", of["first"])
	}
}
