package cloudwatch

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	sdkaws "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	"github.com/aws/smithy-go"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/metrics"
)

var noon = time.Now().UTC().Truncate(time.Hour).Add(-time.Hour)

func testServer(t testing.TB) (http.Handler, *sdk.Client) {
	store, err := metrics.Open(metrics.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	mux := aws.NewMux(aws.NewKeyStore(), aws.Options{Auth: aws.Any}, New(store, nil))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return mux, sdk.New(sdk.Options{Region: "us-east-1", BaseEndpoint: &server.URL, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider("000000000000", "x", "")})
}

func wantError(t *testing.T, err error, code, text string) {
	t.Helper()
	var e smithy.APIError
	if !errors.As(err, &e) || e.ErrorCode() != code || !strings.Contains(e.ErrorMessage(), text) {
		t.Errorf("got %v, want %s %q", err, code, text)
	}
}

func at(minute int) *time.Time { return sdkaws.Time(noon.Add(time.Duration(minute) * time.Minute)) }

// TestSDK: CBOR, as the Go SDK speaks it.
func TestSDK(t *testing.T) {
	_, c := testServer(t)
	ctx, ns, dims := t.Context(), sdkaws.String("shop"), []types.Dimension{{Name: sdkaws.String("Service"), Value: sdkaws.String("cart")}}
	var data []types.MetricDatum
	for i := range 200 { // large enough to be sent compressed
		data = append(data, types.MetricDatum{MetricName: sdkaws.String("Latency"), Dimensions: dims, Timestamp: at(i % 2), Value: sdkaws.Float64(float64(i)), Unit: types.StandardUnitMilliseconds})
	}
	data = append(data,
		types.MetricDatum{MetricName: sdkaws.String("Size"), Timestamp: at(0), Values: []float64{1, 2, 3}, Counts: []float64{1, 2, 1}},
		types.MetricDatum{MetricName: sdkaws.String("Set"), Timestamp: at(0), StatisticValues: &types.StatisticSet{SampleCount: sdkaws.Float64(4), Sum: sdkaws.Float64(10), Minimum: sdkaws.Float64(1), Maximum: sdkaws.Float64(4)}})
	if _, err := c.PutMetricData(ctx, &sdk.PutMetricDataInput{Namespace: ns, MetricData: data}); err != nil {
		t.Fatal(err)
	}
	stats, err := c.GetMetricStatistics(ctx, &sdk.GetMetricStatisticsInput{Namespace: ns, MetricName: sdkaws.String("Latency"), Dimensions: dims,
		StartTime: at(0), EndTime: at(2), Period: sdkaws.Int32(120), Statistics: []types.Statistic{"SampleCount", "Average", "Sum", "Minimum", "Maximum"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(stats.Datapoints) != 1 || *stats.Datapoints[0].SampleCount != 200 || *stats.Datapoints[0].Average != 99.5 || *stats.Datapoints[0].Sum != 19900 ||
		*stats.Datapoints[0].Minimum != 0 || *stats.Datapoints[0].Maximum != 199 || stats.Datapoints[0].Unit != "Milliseconds" || !stats.Datapoints[0].Timestamp.Equal(noon) {
		t.Errorf("%+v", stats.Datapoints)
	}
	stats, err = c.GetMetricStatistics(ctx, &sdk.GetMetricStatisticsInput{Namespace: ns, MetricName: sdkaws.String("Latency"), Dimensions: dims,
		StartTime: at(0), EndTime: at(2), Period: sdkaws.Int32(120), ExtendedStatistics: []string{"p50", "p99.5"}})
	if err != nil {
		t.Fatal(err)
	}
	if e := stats.Datapoints[0].ExtendedStatistics; math.Abs(e["p50"]-99.5) > 1 || math.Abs(e["p99.5"]-198.5) > 1 {
		t.Errorf("%v", e)
	}
	stats, err = c.GetMetricStatistics(ctx, &sdk.GetMetricStatisticsInput{Namespace: ns, MetricName: sdkaws.String("Set"),
		StartTime: at(0), EndTime: at(2), Period: sdkaws.Int32(60), ExtendedStatistics: []string{"p50"}})
	if err != nil || len(stats.Datapoints) != 0 {
		t.Errorf("a percentile of a statistic set: %v %v", stats, err)
	}

	query := func(id, name, stat string) types.MetricDataQuery {
		q := types.MetricDataQuery{Id: &id, MetricStat: &types.MetricStat{Period: sdkaws.Int32(60), Stat: &stat, Metric: &types.Metric{Namespace: ns, MetricName: &name}}}
		if name == "Latency" {
			q.MetricStat.Metric.Dimensions = dims
		}
		return q
	}
	expression := func(id, text string) types.MetricDataQuery {
		return types.MetricDataQuery{Id: &id, Expression: &text, Label: sdkaws.String("label of " + id)}
	}
	get := func(in *sdk.GetMetricDataInput) string {
		t.Helper()
		in.StartTime, in.EndTime = at(0), at(5)
		out, err := c.GetMetricData(ctx, in)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, r := range out.MetricDataResults {
			fmt.Fprint(&b, *r.Id, " ", *r.Label, " ", r.StatusCode)
			for i := range r.Values {
				fmt.Fprintf(&b, " %d:%v", int(r.Timestamps[i].Sub(noon).Minutes()), r.Values[i])
			}
			b.WriteByte('\n')
		}
		if out.NextToken != nil {
			in.NextToken = out.NextToken
			b.WriteString("next\n")
		}
		return b.String()
	}
	queries := []types.MetricDataQuery{
		query("l", "Latency", "Sum"), query("s", "Size", "SampleCount"), expression("e1", "l / (2*s) + 1"), expression("e2", "SUM(METRICS())"),
		expression("e3", "FILL(s, 0) * -1"), expression("e4", "FILL(s, REPEAT)"), expression("e5", "RATE(l)"), expression("e6", "l > MAX(s) ^ 2"), expression("e7", "MAX([l, s])"),
	}
	want := `l Latency Complete 0:9900 1:10000
s Size Complete 0:4
e1 label of e1 Complete 0:1238.5
e2 label of e2 Complete 0:9904 1:10000
e3 label of e3 Complete 0:-4 1:0 2:0 3:0 4:0
e4 label of e4 Complete 0:4 1:4 2:4 3:4 4:4
e5 label of e5 Complete 1:1.6666666666666667
e6 label of e6 Complete 0:1 1:1
e7 label of e7 Complete 0:9900 1:10000
`
	if got := get(&sdk.GetMetricDataInput{MetricDataQueries: queries, ScanBy: "TimestampAscending"}); strings.ReplaceAll(got, "-0", "0") != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if got := get(&sdk.GetMetricDataInput{MetricDataQueries: queries[:1]}); got != "l Latency Complete 1:10000 0:9900\n" {
		t.Error(got)
	}
	in := &sdk.GetMetricDataInput{MetricDataQueries: queries[:2], MaxDatapoints: sdkaws.Int32(1)}
	if got := get(in) + get(in) + get(in); got != "l Latency PartialData 1:10000\nnext\nl Latency Complete 0:9900\ns Size PartialData\nnext\ns Size Complete 0:4\n" {
		t.Error(got)
	}

	for text, message := range map[string]string{
		"l +": "ends too early", "x": "no query with the id 'x'", "SEARCH('x', 'Sum', 60)": "does not support the function SEARCH", "e": "refers to itself",
		"1 + 2": "not a time series", "l)": "Unexpected ')'", strings.Repeat("(", 60) + "l": "nested too deep", "[l, s] + [l, s]": "cannot be combined",
		strings.Repeat("-", 100) + "l": "nested too deep",
	} {
		_, err := c.GetMetricData(ctx, &sdk.GetMetricDataInput{StartTime: at(0), EndTime: at(1), MetricDataQueries: append(slices.Clone(queries[:2]), expression("e", text))})
		wantError(t, err, "ValidationError", message)
	}

	list, err := c.ListMetrics(ctx, &sdk.ListMetricsInput{Namespace: ns, RecentlyActive: "PT3H"})
	if err != nil || len(list.Metrics) != 3 || list.NextToken != nil {
		t.Errorf("%+v %v", list, err)
	}
	list, err = c.ListMetrics(ctx, &sdk.ListMetricsInput{Dimensions: []types.DimensionFilter{{Name: sdkaws.String("Service")}}})
	if err != nil || len(list.Metrics) != 1 || *list.Metrics[0].MetricName != "Latency" || *list.Metrics[0].Dimensions[0].Value != "cart" {
		t.Errorf("%+v %v", list, err)
	}
	_, err = c.DescribeAlarms(ctx, &sdk.DescribeAlarmsInput{})
	wantError(t, err, "NotImplemented", "DescribeAlarms")
}

func TestListPages(t *testing.T) {
	_, c := testServer(t)
	var data []types.MetricDatum
	for i := range 700 {
		data = append(data, types.MetricDatum{MetricName: sdkaws.String(fmt.Sprintf("m%03d", i)), Value: sdkaws.Float64(1)})
	}
	if _, err := c.PutMetricData(t.Context(), &sdk.PutMetricDataInput{Namespace: sdkaws.String("n"), MetricData: data}); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	pages := 0
	for p := sdk.NewListMetricsPaginator(c, &sdk.ListMetricsInput{}); p.HasMorePages(); pages++ {
		out, err := p.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range out.Metrics {
			seen[*m.MetricName] = true
		}
	}
	if len(seen) != 700 || pages != 2 {
		t.Errorf("%d metrics on %d pages", len(seen), pages)
	}
	_, err := c.ListMetrics(t.Context(), &sdk.ListMetricsInput{NextToken: sdkaws.String("!")})
	wantError(t, err, "InvalidNextToken", "")
}

// TestRefusals: what is recorded of the service, word by word.
func TestRefusals(t *testing.T) {
	_, c := testServer(t)
	put := func(d types.MetricDatum) error {
		d.MetricName = sdkaws.String("m")
		_, err := c.PutMetricData(t.Context(), &sdk.PutMetricDataInput{Namespace: sdkaws.String("n"), MetricData: []types.MetricDatum{d}})
		return err
	}
	set := &types.StatisticSet{SampleCount: sdkaws.Float64(1), Sum: sdkaws.Float64(1), Minimum: sdkaws.Float64(2), Maximum: sdkaws.Float64(1)}
	for _, test := range []struct {
		d          types.MetricDatum
		code, text string
	}{
		{types.MetricDatum{Value: sdkaws.Float64(1), StatisticValues: set}, "InvalidParameterCombination", "The parameters MetricData.member.1.Value and MetricData.member.1.StatisticValues are mutually exclusive and you have specified both."},
		{types.MetricDatum{Value: sdkaws.Float64(1), Values: []float64{1}}, "InvalidParameterCombination", "The parameters MetricData.member.1.Value and MetricData.member.1.Values are mutually exclusive and you have specified both."},
		{types.MetricDatum{Values: []float64{1, 10}, Counts: []float64{2, 4, 5}}, "InvalidParameterValue", "The parameters MetricData.member.1.Values and MetricData.member.1.Counts must be of the same size."},
		{types.MetricDatum{StatisticValues: set}, "InvalidParameterValue", "Minimum"},
		{types.MetricDatum{}, "MissingParameter", "Value"},
		{types.MetricDatum{Value: sdkaws.Float64(math.NaN())}, "InvalidParameterValue", ""},
		{types.MetricDatum{Value: sdkaws.Float64(math.Inf(1))}, "InvalidParameterValue", ""},
		{types.MetricDatum{Value: sdkaws.Float64(1), Timestamp: sdkaws.Time(time.Now().Add(-15 * 24 * time.Hour))}, "InvalidParameterValue", "two weeks"},
		{types.MetricDatum{Value: sdkaws.Float64(1), Timestamp: sdkaws.Time(time.Now().Add(3 * time.Hour))}, "InvalidParameterValue", "two weeks"},
		{types.MetricDatum{Value: sdkaws.Float64(1), Unit: "Furlong"}, "ValidationError", "Value 'Furlong' at 'metricData.1.member.unit' failed to satisfy constraint: Member must satisfy enum value set"},
	} {
		wantErrorQuery(t, put(test.d), test.code, test.text)
	}
	_, err := c.PutMetricData(t.Context(), &sdk.PutMetricDataInput{Namespace: sdkaws.String("AWS/Lambda"), MetricData: []types.MetricDatum{{MetricName: sdkaws.String("Errors"), Value: sdkaws.Float64(1)}}})
	wantErrorQuery(t, err, "InvalidParameterValue", "AWS/Lambda")
	stats := &sdk.GetMetricStatisticsInput{Namespace: sdkaws.String("namespace"), MetricName: sdkaws.String("metric_name"), StartTime: at(0), EndTime: at(24 * 60), Period: sdkaws.Int32(1), Statistics: []types.Statistic{"SampleCount"}}
	_, err = c.GetMetricStatistics(t.Context(), stats)
	wantErrorQuery(t, err, "InvalidParameterCombination", "You have requested up to 86400 datapoints, which exceeds the limit of 1440. You may reduce the datapoints requested by increasing Period, or decreasing the time range.")
	stats.EndTime = at(-1)
	_, err = c.GetMetricStatistics(t.Context(), stats)
	wantErrorQuery(t, err, "InvalidParameterValue", "The parameter StartTime must be less than the parameter EndTime.")
}

// wantErrorQuery wants a code of the query protocol, which is what the SDK shows in
// CBOR's, too, if the server says it.
func wantErrorQuery(t *testing.T, err error, code, text string) {
	t.Helper()
	var e smithy.APIError
	if !errors.As(err, &e) || strings.TrimSuffix(e.ErrorCode(), "Exception") != code && !(code == "MissingParameter" && e.ErrorCode() == "MissingRequiredParameterException") || !strings.Contains(e.ErrorMessage(), text) {
		t.Errorf("got %v, want %s %q", err, code, text)
	}
}

// TestJSON: what botocore and the JS SDK send.
func TestJSON(t *testing.T) {
	mux, _ := testServer(t)
	call := func(op, body string, compressed bool) (*httptest.ResponseRecorder, map[string]any) {
		sent := []byte(body)
		if compressed {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			z.Write(sent)
			z.Close()
			sent = b.Bytes()
		}
		r := httptest.NewRequest("POST", "/", bytes.NewReader(sent))
		r.Header.Set("Content-Type", "application/x-amz-json-1.0")
		r.Header.Set("X-Amz-Target", "GraniteServiceVersion20100801."+op)
		r.Header.Set("x-amzn-query-mode", "true")
		if compressed {
			r.Header.Set("Content-Encoding", "gzip")
		}
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		var out map[string]any
		if w.Body.Len() > 0 {
			if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
				t.Fatalf("%s: %s", op, w.Body)
			}
		}
		return w, out
	}
	datum := fmt.Sprintf(`{"Namespace":"n","MetricData":[{"MetricName":"m","Timestamp":%d.5,"Value":3}]}`, noon.Unix())
	if w, _ := call("PutMetricData", datum, true); w.Code != 200 || w.Body.Len() != 0 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	w, out := call("GetMetricStatistics", fmt.Sprintf(`{"Namespace":"n","MetricName":"m","StartTime":%d,"EndTime":%d,"Period":60,"Statistics":["Sum"]}`, noon.Unix(), noon.Unix()+60), false)
	if w.Code != 200 || fmt.Sprint(out["Datapoints"]) != fmt.Sprintf("[map[Sum:3 Timestamp:%v Unit:None]]", float64(noon.Unix())) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w, out = call("PutMetricData", `{"Namespace":"n","MetricData":[{"MetricName":"m","Value":3,"Values":[1]}]}`, false)
	header := "x-amzn-query-error"
	if w.Code != 400 || out["__type"] != "InvalidParameterCombinationException" || strings.Join(w.Header()[header], "") != "InvalidParameterCombination;Sender" {
		t.Errorf("%d %s %v", w.Code, w.Body, w.Header())
	}
}

// TestQuery: what older clients send.
func TestQuery(t *testing.T) {
	mux, _ := testServer(t)
	call := func(form url.Values) (int, string) {
		form.Set("Version", "2010-08-01")
		r := httptest.NewRequest("POST", "/", strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=000000000000/20260101/us-east-1/monitoring/aws4_request, SignedHeaders=host, Signature="+strings.Repeat("0", 64))
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	stamp := noon.Format(time.RFC3339)
	if code, body := call(url.Values{"Action": {"PutMetricData"}, "Namespace": {"n"}, "MetricData.member.1.MetricName": {"m"}, "MetricData.member.1.Timestamp": {stamp},
		"MetricData.member.1.Values.member.1": {"1"}, "MetricData.member.1.Values.member.2": {"5"}, "MetricData.member.1.Dimensions.member.1.Name": {"d"},
		"MetricData.member.1.Dimensions.member.1.Value": {"<v>"}}); code != 200 || !strings.HasPrefix(body, `<PutMetricDataResponse xmlns="http://monitoring.amazonaws.com/doc/2010-08-01/"><ResponseMetadata>`) {
		t.Fatalf("%d %s", code, body)
	}
	code, body := call(url.Values{"Action": {"GetMetricStatistics"}, "Namespace": {"n"}, "MetricName": {"m"}, "StartTime": {stamp}, "EndTime": {noon.Add(time.Minute).Format(time.RFC3339)},
		"Period": {"60"}, "Statistics.member.1": {"Average"}, "Statistics.member.2": {"Maximum"}, "Dimensions.member.1.Name": {"d"}, "Dimensions.member.1.Value": {"<v>"}})
	if code != 200 || !strings.Contains(body, "<GetMetricStatisticsResult><Label>m</Label><Datapoints><member><Timestamp>"+stamp+"</Timestamp><Average>3</Average><Maximum>5</Maximum><Unit>None</Unit></member></Datapoints></GetMetricStatisticsResult>") {
		t.Errorf("%d %s", code, body)
	}
	code, body = call(url.Values{"Action": {"ListMetrics"}})
	if code != 200 || !strings.Contains(body, "<Metrics><member><Namespace>n</Namespace><MetricName>m</MetricName><Dimensions><member><Name>d</Name><Value>&lt;v&gt;</Value></member></Dimensions></member></Metrics>") {
		t.Errorf("%d %s", code, body)
	}
	code, body = call(url.Values{"Action": {"PutMetricData"}, "Namespace": {"n"}, "MetricData.member.1.MetricName": {"m"}, "MetricData.member.1.Value": {"1"}, "MetricData.member.1.Values.member.1": {"1"}})
	if code != 400 || !strings.Contains(body, "<Type>Sender</Type><Code>InvalidParameterCombination</Code>") {
		t.Errorf("%d %s", code, body)
	}
}

// FuzzExpression: whatever the expression, it is evaluated or refused.
func FuzzExpression(f *testing.F) {
	f.Add("100*(m1/m2)+FILL(m1,0)-SUM(METRICS())^2")
	f.Add("[m1,m2]")
	f.Add("RATE(m1)==m2")
	s := New(noData{}, nil)
	f.Fuzz(func(t *testing.T, text string) {
		id, one, two, name, stat := "e", "m1", "m2", "n", "Sum"
		metric := func(id *string) MetricDataQuery {
			return MetricDataQuery{Id: id, MetricStat: &MetricStat{Metric: &Metric{Namespace: &name, MetricName: &name}, Period: new(int64(60)), Stat: &stat}}
		}
		_, err := s.getMetricData(&aws.Request{Request: httptest.NewRequest("POST", "/", nil)}, &GetMetricDataInput{
			StartTime: aws.At(noon), EndTime: aws.At(noon.Add(time.Hour)),
			MetricDataQueries: []MetricDataQuery{metric(&one), metric(&two), {Id: &id, Expression: &text}},
		})
		if err != nil && lambdad.ErrorCode(err) != "ValidationError" {
			t.Fatalf("%q: %v", text, err)
		}
	})
}

// noData is a store with one point of every metric.
type noData struct{ Store }

func (noData) Select(context.Context, metrics.ID, time.Time, time.Time, time.Duration) ([]metrics.Point, error) {
	p := metrics.Point{Time: noon}
	p.Add(2, 1)
	return []metrics.Point{p}, nil
}
