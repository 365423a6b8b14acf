package cloudwatch

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/metrics"
)

// Limits of GetMetricData.
const (
	maxQueries   = 500
	maxDataPage  = 100800 // datapoints of one answer
	maxDataRange = 500 * maxDataPage
)

var idPattern = regexp.MustCompile(`^[a-z][a-zA-Z0-9_]*$`)

func validation(format string, args ...any) error {
	return lambdad.Errorf("ValidationError", format, args...)
}

func (s *Service) getMetricData(r *aws.Request, in *GetMetricDataInput) (*GetMetricDataOutput, error) {
	if n := len(in.MetricDataQueries); n == 0 || n > maxQueries {
		return nil, validation("The collection MetricDataQueries must have from 1 to %d members.", maxQueries)
	}
	if !in.StartTime.Before(in.EndTime.Time) {
		return nil, validation("The parameter StartTime must be less than the parameter EndTime.")
	}
	page := int64(maxDataPage)
	if in.MaxDatapoints != nil {
		if page = *in.MaxDatapoints; page < 1 || page > maxDataPage {
			return nil, validation("The value %d for parameter MaxDatapoints is invalid: it must be from 1 to %d.", page, maxDataPage)
		}
	}
	skip := 0
	if in.NextToken != nil {
		token, ok := parseToken(*in.NextToken)
		n, err := strconv.Atoi(token)
		if !ok || err != nil || n < 0 {
			return nil, lambdad.Errorf("InvalidNextToken", "The next token is invalid.")
		}
		skip = n
	}
	e := &evaluation{s: s, r: r, in: in, done: map[string]*result{}, queries: map[string]*MetricDataQuery{}}
	if err := e.check(); err != nil {
		return nil, err
	}
	out := &GetMetricDataOutput{MetricDataResults: []MetricDataResult{}, Messages: []MessageData{}}
	seen, left := 0, int(page)
	for i := range in.MetricDataQueries {
		q := &in.MetricDataQueries[i]
		if q.ReturnData != nil && !*q.ReturnData {
			continue
		}
		res, err := e.result(*q.Id)
		if err != nil {
			return nil, err
		}
		if res.series == nil {
			return nil, validation("Error in expression '%s': The result is not a time series.", *q.Id)
		}
		points := res.series.points
		if in.ScanBy == nil || *in.ScanBy == "TimestampDescending" {
			points = slices.Clone(points)
			slices.Reverse(points)
		}
		// What earlier pages had is passed over.
		from := min(max(skip-seen, 0), len(points))
		seen += len(points)
		if len(points) > 0 && from == len(points) {
			continue
		}
		points = points[from:]
		status := "Complete"
		if len(points) > left {
			points, status = points[:left], "PartialData"
		}
		left -= len(points)
		d := MetricDataResult{Id: q.Id, Label: new(e.label(q)), StatusCode: &status, Timestamps: []aws.Timestamp{}, Values: []float64{}}
		for _, p := range points {
			d.Timestamps = append(d.Timestamps, aws.Timestamp{Time: p.at})
			d.Values = append(d.Values, p.v)
		}
		out.MetricDataResults = append(out.MetricDataResults, d)
		if status != "Complete" {
			break
		}
	}
	if end := skip + int(page) - left; left == 0 && e.more(end) {
		out.NextToken = new(encodeToken(strconv.Itoa(end)))
	}
	return out, nil
}

// An evaluation is the work of one GetMetricData.
type evaluation struct {
	s       *Service
	r       *aws.Request
	in      *GetMetricDataInput
	queries map[string]*MetricDataQuery
	done    map[string]*result // nil while it is evaluated
}

// A result is a number, a series or several of them.
type result struct {
	number float64
	series *series
	list   []*series
}

// A series is values at times, in order.
type series struct {
	period time.Duration
	points []point
}

type point struct {
	at time.Time
	v  float64
}

// check checks the queries without looking at data.
func (e *evaluation) check() error {
	for i := range e.in.MetricDataQueries {
		q, at := &e.in.MetricDataQueries[i], "MetricDataQueries.member."+strconv.Itoa(i+1)
		switch {
		case !idPattern.MatchString(*q.Id):
			return validation("The value %s for parameter %s.Id is invalid: it must begin with a lower-case letter and have letters, digits and _ alone.", *q.Id, at)
		case e.queries[*q.Id] != nil:
			return validation("The values for parameter Id in MetricDataQueries must be unique: %s is there twice.", *q.Id)
		case (q.MetricStat == nil) == (q.Expression == nil):
			return invalidCombination("The parameters %s.MetricStat and %s.Expression are mutually exclusive and one of them is required.", at, at)
		case q.AccountId != nil && *q.AccountId != e.r.Identity.Account:
			return invalidValue("The value %s for parameter %s.AccountId is not supported: lambdad reads the metrics of the caller's account alone.", *q.AccountId, at)
		case strings.Contains(text(q.Label), "${"):
			return invalidValue("The parameter %s.Label is not supported: lambdad has no dynamic labels.", at)
		}
		e.queries[*q.Id] = q
		m := q.MetricStat
		if m == nil {
			continue
		}
		if err := checkTimes(e.in.StartTime, e.in.EndTime, *m.Period); err != nil {
			return validation("%s", err.(*lambdad.Error).Message)
		}
		if n := e.in.EndTime.Sub(e.in.StartTime.Time) / (time.Duration(*m.Period) * time.Second); n > maxDataRange {
			return invalidCombination("The parameters StartTime, EndTime and %s.MetricStat.Period ask for up to %d datapoints.", at, n)
		}
		if _, ok := parseStatistic(*m.Stat); !ok {
			return validation("The value %s for parameter %s.MetricStat.Stat is not supported: lambdad has SampleCount, Average, Sum, Minimum, Maximum and percentiles, such as p99.9.", *m.Stat, at)
		}
		if m.Metric.Namespace == nil || m.Metric.MetricName == nil {
			return missingParameter(at + ".MetricStat.Metric.Namespace and MetricName")
		}
	}
	return nil
}

func (e *evaluation) label(q *MetricDataQuery) string {
	switch {
	case q.Label != nil:
		return *q.Label
	case q.MetricStat != nil:
		return *q.MetricStat.Metric.MetricName
	}
	return *q.Id
}

// more reports whether there are datapoints after the first n.
func (e *evaluation) more(n int) bool {
	for i := range e.in.MetricDataQueries {
		q := &e.in.MetricDataQueries[i]
		if q.ReturnData != nil && !*q.ReturnData {
			continue
		}
		res, err := e.result(*q.Id)
		if err != nil || res.series == nil {
			return true // the next page says why
		}
		n -= len(res.series.points)
	}
	return n < 0
}

// result evaluates a query, once.
func (e *evaluation) result(id string) (*result, error) {
	if res, ok := e.done[id]; ok {
		if res == nil {
			return nil, validation("Error in expression '%s': It refers to itself.", id)
		}
		return res, nil
	}
	q := e.queries[id]
	e.done[id] = nil
	var res *result
	var err error
	if q.MetricStat != nil {
		res, err = e.metric(q.MetricStat)
	} else {
		res, err = e.expression(q)
	}
	if err != nil {
		return nil, err
	}
	e.done[id] = res
	return res, nil
}

func (e *evaluation) metric(m *MetricStat) (*result, error) {
	dims, err := dimensions(m.Metric.Dimensions, "Dimensions")
	if err != nil {
		return nil, err
	}
	id := metrics.ID{Account: e.r.Identity.Account, Region: e.r.Region, Namespace: *m.Metric.Namespace, Name: *m.Metric.MetricName,
		Unit: text(m.Unit), Dimensions: dims}
	period := time.Duration(*m.Period) * time.Second
	found, err := e.s.store.Select(e.r.Context(), id, e.in.StartTime.Time, e.in.EndTime.Time, period)
	if err != nil {
		return nil, err
	}
	stat, _ := parseStatistic(*m.Stat) // checked
	out := &series{period: period}
	for i := 0; i < len(found); {
		p := found[i].Statistics
		j := i + 1
		for ; j < len(found) && found[j].Time.Equal(found[i].Time); j++ {
			p.Merge(&found[j].Statistics) // of another unit
		}
		if v, ok := stat.of(&p); ok {
			out.points = append(out.points, point{found[i].Time, v})
		}
		i = j
	}
	return &result{series: out}, nil
}
