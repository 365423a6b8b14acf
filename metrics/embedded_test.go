package metrics

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/telemetry"
)

func TestEmbedded(t *testing.T) {
	s := open(t, Config{})
	st := telemetry.NewStream(NewEmbedded(s, &lambdad.Version{Account: "000000000000", Region: "us-east-1", Function: "f"}))
	for _, line := range []string{
		"no json", `{"CloudWatchMetrics":1}`,
		fmt.Sprintf(`{"_aws":{"Timestamp":%d,"CloudWatchMetrics":[{"Namespace":"shop","Dimensions":[["Service"],["Service","Zone"],["Missing"]],
			"Metrics":[{"Name":"Latency","Unit":"Milliseconds"},{"Name":"Orders"},{"Name":"Absent"},{"Name":"Odd","Unit":"Furlong"}]}]},
			"Service":"cart","Zone":3,"Latency":[10,20],"Orders":1,"Odd":1}`, noon.UnixMilli()),
		`{"_aws":{"CloudWatchMetrics":[{"Namespace":"AWS/Lambda","Metrics":[{"Name":"Errors"}]}]},"Errors":1}`,
		`{"_aws":{"Timestamp":1,"CloudWatchMetrics":[{"Namespace":"shop","Metrics":[{"Name":"Old"}]}]},"Old":1}`,
	} {
		st.Emit(telemetry.Event{Time: noon, Type: telemetry.TypeFunctionLine, Record: telemetry.Line(line)})
	}
	ids, err := s.List(t.Context(), "000000000000", "us-east-1", "", "", noon.Add(-time.Hour))
	if err != nil || len(ids) != 4 {
		t.Fatalf("%v %v", ids, err)
	}
	p := query(t, s, ID{Account: "000000000000", Region: "us-east-1", Namespace: "shop", Name: "Latency", Unit: "Milliseconds",
		Dimensions: []Dimension{{"Service", "cart"}, {"Zone", "3"}}}, noon.Add(-time.Minute), noon.Add(time.Minute), time.Minute)
	if len(p) != 1 || p[0].Count != 2 || p[0].Sum != 30 || p[0].Max != 20 {
		t.Errorf("%+v", p)
	}
}

// TestEmbeddedFlood: lines nobody reads take a bounded room and are counted.
func TestEmbeddedFlood(t *testing.T) {
	s := open(t, Config{})
	line := `{"_aws":{"CloudWatchMetrics":[{"Namespace":"n","Metrics":[{"Name":"x"}]}]},"x":1,"pad":"` + strings.Repeat("x", 100000) + `"}`
	for range 1000 {
		s.Line("000000000000", "us-east-1", line, noon)
	}
	if waiting := s.embedded.bytes.Load(); waiting > maxWaitingBytes || s.embedded.over.Load() == 0 {
		t.Errorf("%d bytes wait, %d dropped", waiting, s.embedded.over.Load())
	}
}

func FuzzEmbedded(f *testing.F) {
	f.Add(`{"_aws":{"CloudWatchMetrics":[{"Namespace":"n","Dimensions":[["a"],[]],"Metrics":[{"Name":"x","Unit":"Count","StorageResolution":1}]}]},"a":"b","x":[1,2]}`)
	f.Add(`{"_aws":{"Timestamp":1e3,"CloudWatchMetrics":[null]},"x":null}`)
	f.Fuzz(func(t *testing.T, line string) {
		for _, d := range ParseEmbedded(line, "a", "r", noon, noon) {
			if d.Count == 0 || d.Name == "" || d.Namespace == "" || !ValidValue(d.Min) || !ValidValue(d.Max) || len(d.Dimensions) > maxDimensions {
				t.Fatalf("%+v", d)
			}
			_ = d.labels(d.High, "")
			_ = d.histogram()
		}
	})
}
