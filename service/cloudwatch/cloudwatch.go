// Package cloudwatch is the API of Amazon CloudWatch's metrics: putting them,
// listing them and reading their statistics, in the three protocols that clients
// speak (neighbours.md section 4). Alarms, dashboards and the rest of the model are
// answered NotImplemented.
package cloudwatch

import (
	"cmp"
	"context"
	"encoding/base64"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/metrics"
)

// A Store keeps metrics: *metrics.Store.
type Store interface {
	Put(ctx context.Context, data []metrics.Datum) error
	Select(ctx context.Context, id metrics.ID, start, end time.Time, period time.Duration) ([]metrics.Point, error)
	List(ctx context.Context, account, region, namespace, name string, since time.Time) ([]metrics.ID, error)
}

// Limits of the API.
const (
	maxData       = 1000 // of one PutMetricData
	maxValues     = 150  // of one datum
	maxDatapoints = 1440 // of one GetMetricStatistics
	pageOfMetrics = 500
)

// A Service is the CloudWatch API; it implements aws.Service.
type Service struct {
	aws.RPC
	store Store
	now   func() time.Time
}

// New returns the service. A nil now is time.Now.
func New(store Store, now func() time.Time) *Service {
	if now == nil {
		now = time.Now
	}
	a := api
	a.ValidationCode = "ValidationError"
	s := &Service{store: store, now: now}
	s.RPC = aws.NewRPC(&a, map[string]aws.Handler{
		"GetMetricData":       aws.Operation(s.getMetricData),
		"GetMetricStatistics": aws.Operation(s.getMetricStatistics),
		"ListMetrics":         aws.Operation(s.listMetrics),
		"PutMetricData":       aws.Operation(s.putMetricData),
	})
	return s
}

// The errors of this API, by what they say.
func invalidValue(format string, args ...any) error {
	return lambdad.Errorf("InvalidParameterValueException", format, args...)
}

func invalidCombination(format string, args ...any) error {
	return lambdad.Errorf("InvalidParameterCombinationException", format, args...)
}

func missingParameter(name string) error {
	return lambdad.Errorf("MissingRequiredParameterException", "The parameter %s is required.", name)
}

func (s *Service) putMetricData(r *aws.Request, in *PutMetricDataInput) (*aws.Empty, error) {
	switch {
	case in.EntityMetricData != nil:
		return nil, invalidValue("lambdad does not support EntityMetricData; send MetricData.")
	case len(in.MetricData) == 0:
		return nil, missingParameter("MetricData")
	case len(in.MetricData) > maxData:
		return nil, invalidValue("The collection MetricData must not have a size greater than %d.", maxData)
	case strings.HasPrefix(*in.Namespace, "AWS/"):
		return nil, invalidValue("The value %s for parameter Namespace is invalid.", *in.Namespace)
	}
	data := make([]metrics.Datum, len(in.MetricData))
	for i := range in.MetricData {
		d, at := &in.MetricData[i], "MetricData.member."+strconv.Itoa(i+1)
		dims, err := dimensions(d.Dimensions, at+".Dimensions")
		if err != nil {
			return nil, err
		}
		out := &data[i]
		out.ID = metrics.ID{Account: r.Identity.Account, Region: r.Region, Namespace: *in.Namespace, Name: *d.MetricName,
			Unit: "None", Dimensions: dims}
		if d.Unit != nil {
			out.Unit = *d.Unit
		}
		now := s.now()
		if out.Time = now; d.Timestamp != nil {
			out.Time = d.Timestamp.Time
			if out.Time.Before(now.Add(-metrics.MaxAge)) || out.Time.After(now.Add(metrics.MaxAhead)) {
				return nil, invalidValue("The parameter %s.Timestamp must specify a time within the past two weeks or the next two hours.", at)
			}
		}
		if n := d.StorageResolution; n != nil {
			if *n != 1 && *n != 60 {
				return nil, invalidValue("The value %d for parameter %s.StorageResolution is invalid: it must be 1 or 60.", *n, at)
			}
			out.High = *n == 1
		}
		if err := values(&out.Statistics, d, at); err != nil {
			return nil, err
		}
	}
	return nil, s.store.Put(r.Context(), data)
}

// values adds the values of d, which come in one of three forms.
func values(to *metrics.Statistics, d *MetricDatum, at string) error {
	both := func(a, b string) error {
		return invalidCombination("The parameters %s.%s and %s.%s are mutually exclusive and you have specified both.", at, a, at, b)
	}
	valid := func(name string, v float64) error {
		if !metrics.ValidValue(v) {
			return invalidValue("The value %v for parameter %s.%s is invalid.", v, at, name)
		}
		return nil
	}
	switch {
	case d.Value != nil && d.Values != nil:
		return both("Value", "Values")
	case d.Value != nil && d.StatisticValues != nil:
		return both("Value", "StatisticValues")
	case d.Values != nil && d.StatisticValues != nil:
		return both("Values", "StatisticValues")
	case d.Counts != nil && d.Values == nil, d.Counts != nil && len(d.Counts) != len(d.Values):
		return invalidValue("The parameters %s.Values and %s.Counts must be of the same size.", at, at)
	case d.Value != nil:
		to.Add(*d.Value, 1)
		return valid("Value", *d.Value)
	case len(d.Values) > maxValues:
		return invalidValue("The collection %s.Values must not have a size greater than %d.", at, maxValues)
	case len(d.Values) > 0:
		for i, v := range d.Values {
			if err := valid("Values.member."+strconv.Itoa(i+1), v); err != nil {
				return err
			}
			n := 1.0
			if d.Counts != nil {
				if n = d.Counts[i]; n < 0 || !metrics.ValidValue(n) {
					return invalidValue("The value %v for parameter %s.Counts.member.%d is invalid.", n, at, i+1)
				}
			}
			if n > 0 {
				to.Add(v, n)
			}
		}
		return nil
	case d.StatisticValues != nil:
		set := d.StatisticValues
		for name, v := range map[string]float64{"SampleCount": *set.SampleCount, "Sum": *set.Sum, "Minimum": *set.Minimum, "Maximum": *set.Maximum} {
			if err := valid("StatisticValues."+name, v); err != nil {
				return err
			}
		}
		if *set.SampleCount <= 0 {
			return invalidValue("The value %v for parameter %s.StatisticValues.SampleCount is invalid.", *set.SampleCount, at)
		}
		if *set.Minimum > *set.Maximum {
			return invalidValue("The parameter %s.StatisticValues.Maximum must be greater than or equal to the parameter %s.StatisticValues.Minimum.", at, at)
		}
		to.AddSummary(*set.SampleCount, *set.Sum, *set.Minimum, *set.Maximum)
		return nil
	}
	return missingParameter(at + ".Value")
}

func dimensions(list []Dimension, at string) ([]metrics.Dimension, error) {
	dims := make([]metrics.Dimension, len(list))
	for i, d := range list {
		if !metrics.ValidDimension(*d.Name, *d.Value) {
			return nil, invalidValue("The parameter %s.member.%d must have a name and a value of printable characters; the name must not begin with a colon.", at, i+1)
		}
		dims[i] = metrics.Dimension{Name: *d.Name, Value: *d.Value}
	}
	metrics.SortDimensions(dims)
	for i := range dims {
		if i > 0 && dims[i].Name == dims[i-1].Name {
			return nil, invalidValue("The parameter %s has the dimension %s twice.", at, dims[i].Name)
		}
	}
	return dims, nil
}

// checkTimes checks a range and the width of its periods.
func checkTimes(start, end *aws.Timestamp, period int64) error {
	switch {
	case !start.Before(end.Time):
		return invalidValue("The parameter StartTime must be less than the parameter EndTime.")
	case period%60 != 0 && !slices.Contains([]int64{1, 5, 10, 20, 30}, period), period > 86400*365:
		return invalidValue("The parameter Period must be 1, 5, 10, 20, 30 or a multiple of 60.")
	}
	return nil
}

// A statistic is one that can be asked for: a name, or a percentile.
type statistic struct {
	name       string
	percentile float64
}

var percentilePattern = regexp.MustCompile(`^p(\d{1,3}(?:\.\d{1,10})?)$`)

func parseStatistic(name string) (statistic, bool) {
	switch name {
	case "SampleCount", "Average", "Sum", "Minimum", "Maximum":
		return statistic{name: name}, true
	}
	if m := percentilePattern.FindStringSubmatch(name); m != nil {
		if p, err := strconv.ParseFloat(m[1], 64); err == nil && p <= 100 {
			return statistic{name, p}, true
		}
	}
	return statistic{}, false
}

// of returns the statistic, if it is known.
func (t statistic) of(s *metrics.Statistics) (float64, bool) {
	switch t.name {
	case "SampleCount":
		return s.Count, true
	case "Average":
		return s.Average(), true
	case "Sum":
		return s.Sum, true
	case "Minimum":
		return s.Min, true
	case "Maximum":
		return s.Max, true
	}
	return s.Percentile(t.percentile)
}

func (s *Service) getMetricStatistics(r *aws.Request, in *GetMetricStatisticsInput) (*GetMetricStatisticsOutput, error) {
	if !in.StartTime.Before(in.EndTime.Time) {
		return nil, checkTimes(in.StartTime, in.EndTime, 60)
	}
	width := time.Duration(*in.Period) * time.Second
	if *in.Period > 1<<31 {
		return nil, invalidValue("The value %d for parameter Period is invalid.", *in.Period)
	}
	if n := (in.EndTime.Sub(in.StartTime.Time) + width - 1) / width; n > maxDatapoints {
		return nil, invalidCombination("You have requested up to %d datapoints, which exceeds the limit of %d. You may reduce the datapoints requested by increasing Period, or decreasing the time range.", n, maxDatapoints)
	}
	if err := checkTimes(in.StartTime, in.EndTime, *in.Period); err != nil {
		return nil, err
	}
	if (len(in.Statistics) == 0) == (len(in.ExtendedStatistics) == 0) {
		return nil, invalidCombination("Must specify either Statistics or ExtendedStatistics, but not both.")
	}
	var wanted []statistic
	for _, name := range append(in.Statistics, in.ExtendedStatistics...) {
		t, ok := parseStatistic(name)
		if !ok {
			return nil, invalidValue("The value %s for parameter ExtendedStatistics is not supported: lambdad has percentiles, such as p99.9.", name)
		}
		wanted = append(wanted, t)
	}
	dims, err := dimensions(in.Dimensions, "Dimensions")
	if err != nil {
		return nil, err
	}
	id := metrics.ID{Account: r.Identity.Account, Region: r.Region, Namespace: *in.Namespace, Name: *in.MetricName, Dimensions: dims}
	if in.Unit != nil {
		id.Unit = *in.Unit
	}
	points, err := s.store.Select(r.Context(), id, in.StartTime.Time, in.EndTime.Time, width)
	if err != nil {
		return nil, err
	}
	out := &GetMetricStatisticsOutput{Label: in.MetricName, Datapoints: []Datapoint{}}
	for i := range points {
		p := &points[i]
		d, known := Datapoint{Timestamp: aws.At(p.Time), Unit: &p.Unit}, false
		for _, t := range wanted {
			v, ok := t.of(&p.Statistics)
			if !ok {
				continue
			}
			known = true
			switch t.name {
			case "SampleCount":
				d.SampleCount = &v
			case "Average":
				d.Average = &v
			case "Sum":
				d.Sum = &v
			case "Minimum":
				d.Minimum = &v
			case "Maximum":
				d.Maximum = &v
			default:
				if d.ExtendedStatistics == nil {
					d.ExtendedStatistics = map[string]float64{}
				}
				d.ExtendedStatistics[t.name] = v
			}
		}
		if known {
			out.Datapoints = append(out.Datapoints, d)
		}
	}
	return out, nil
}

func (s *Service) listMetrics(r *aws.Request, in *ListMetricsInput) (*ListMetricsOutput, error) {
	if in.OwningAccount != nil && *in.OwningAccount != r.Identity.Account {
		return nil, invalidValue("The value %s for parameter OwningAccount is not supported: lambdad lists the metrics of the caller's account alone.", *in.OwningAccount)
	}
	since := s.now().Add(-metrics.MaxAge)
	if in.RecentlyActive != nil {
		since = s.now().Add(-3 * time.Hour)
	}
	ids, err := s.store.List(r.Context(), r.Identity.Account, r.Region, text(in.Namespace), text(in.MetricName), since)
	if err != nil {
		return nil, err
	}
	ids = slices.DeleteFunc(ids, func(id metrics.ID) bool {
		return slices.ContainsFunc(in.Dimensions, func(f DimensionFilter) bool {
			return !slices.ContainsFunc(id.Dimensions, func(d metrics.Dimension) bool {
				return d.Name == *f.Name && (f.Value == nil || d.Value == *f.Value)
			})
		})
	})
	slices.SortFunc(ids, compareIDs)
	if in.NextToken != nil {
		after, ok := parseToken(*in.NextToken)
		if !ok {
			return nil, lambdad.Errorf("InvalidNextToken", "The next token is invalid.")
		}
		i, found := slices.BinarySearchFunc(ids, after, func(id metrics.ID, key string) int { return cmp.Compare(idKey(id), key) })
		if found {
			i++
		}
		ids = ids[i:]
	}
	out := &ListMetricsOutput{Metrics: []Metric{}}
	if len(ids) > pageOfMetrics {
		ids = ids[:pageOfMetrics]
		out.NextToken = new(encodeToken(idKey(ids[pageOfMetrics-1])))
	}
	for _, id := range ids {
		m := Metric{Namespace: &id.Namespace, MetricName: &id.Name, Dimensions: []Dimension{}}
		for _, d := range id.Dimensions {
			m.Dimensions = append(m.Dimensions, Dimension{Name: &d.Name, Value: &d.Value})
		}
		out.Metrics = append(out.Metrics, m)
	}
	return out, nil
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// idKey is an ID in the order of lists.
func idKey(id metrics.ID) string {
	var b strings.Builder
	b.WriteString(id.Namespace + "\x00" + id.Name)
	for _, d := range id.Dimensions {
		b.WriteString("\x00" + d.Name + "\x00" + d.Value)
	}
	return b.String()
}

func compareIDs(a, b metrics.ID) int { return cmp.Compare(idKey(a), idKey(b)) }

func encodeToken(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func parseToken(token string) (string, bool) {
	b, err := base64.RawURLEncoding.DecodeString(token)
	return string(b), err == nil && len(b) > 0
}
