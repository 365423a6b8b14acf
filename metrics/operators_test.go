package metrics

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestExporter: series stay bounded however many functions there are, and nothing
// that happened is missing.
func TestExporter(t *testing.T) {
	x := NewExporter(Discard)
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(x); err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxExported {
		of := Subject{Account: "000000000000", Region: "us-east-1", Function: fmt.Sprint("f", i)}
		x.Record(of, Invocations, 1, noon)
		x.Record(of, Errors, 0, noon)
		x.Record(of, Duration, 12, noon)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := false
	for _, f := range families {
		if n := len(f.GetMetric()); n > maxExported+1 {
			t.Errorf("%s has %d series", f.GetName(), n)
		}
		if f.GetName() != "lambdad_function_invocations_total" {
			continue
		}
		seen = true
		total, other := 0.0, 0.0
		for _, m := range f.GetMetric() {
			total += m.GetCounter().GetValue()
			if strings.Contains(m.String(), `"other"`) {
				other = m.GetCounter().GetValue()
			}
		}
		if total != 3*maxExported || other != 2*maxExported {
			t.Errorf("%v invocations, %v of them others'", total, other)
		}
	}
	if !seen {
		t.Error("no invocations")
	}
	of := Subject{Account: "000000000000", Region: "us-east-1", Function: "f1"}
	if n := testing.AllocsPerRun(1000, func() { x.Record(of, Duration, 12, noon) }); n != 0 {
		t.Errorf("%v allocations for each value", n)
	}
}
