package cloudwatch

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Metric math, as far as lambdad has it: numbers, + - * / ^, the comparisons,
// parentheses, lists, and the functions below. What is beyond is refused by name.

// maxNesting bounds expressions within expressions.
const maxNesting = 50

type parser struct {
	e     *evaluation
	id    string
	text  string
	at    int
	depth int
}

func (e *evaluation) expression(q *MetricDataQuery) (*result, error) {
	p := &parser{e: e, id: *q.Id, text: *q.Expression}
	res, err := p.sum()
	if err != nil {
		return nil, err
	}
	if p.peek() != 0 {
		return nil, p.fail("Unexpected '%s'.", p.text[p.at:])
	}
	if len(res.list) == 1 {
		res = &result{series: res.list[0]}
	}
	return res, nil
}

func (p *parser) fail(format string, args ...any) error {
	args = append([]any{p.id}, args...)
	return validation("Error in expression '%s': "+format, args...)
}

// peek returns the next byte that is no space, 0 at the end.
func (p *parser) peek() byte {
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
	if p.at == len(p.text) {
		return 0
	}
	return p.text[p.at]
}

// sum reads an expression of any operators.
func (p *parser) sum() (*result, error) {
	if p.depth++; p.depth > maxNesting {
		return nil, p.fail("It is nested too deep.")
	}
	defer func() { p.depth-- }()
	return p.binary(0)
}

// operators by how tightly they bind.
var operators = [][]string{{"<=", ">=", "==", "!=", "<", ">"}, {"+", "-"}, {"*", "/"}}

func (p *parser) binary(level int) (*result, error) {
	if level == len(operators) {
		return p.power()
	}
	left, err := p.binary(level + 1)
	for err == nil {
		p.peek()
		i := slices.IndexFunc(operators[level], func(op string) bool { return strings.HasPrefix(p.text[p.at:], op) })
		if i < 0 {
			return left, nil
		}
		op := operators[level][i]
		p.at += len(op)
		var right *result
		if right, err = p.binary(level + 1); err == nil {
			left, err = p.apply(op, left, right)
		}
	}
	return nil, err
}

func (p *parser) power() (*result, error) {
	left, err := p.unary()
	if err != nil || p.peek() != '^' {
		return left, err
	}
	p.at++
	right, err := p.unary()
	if err != nil {
		return nil, err
	}
	return p.apply("^", left, right)
}

func (p *parser) unary() (*result, error) {
	if p.peek() != '-' {
		return p.operand()
	}
	p.at++
	if p.depth++; p.depth > maxNesting {
		return nil, p.fail("It is nested too deep.")
	}
	defer func() { p.depth-- }()
	right, err := p.unary()
	if err != nil {
		return nil, err
	}
	return p.apply("*", &result{number: -1}, right)
}

func (p *parser) operand() (*result, error) {
	switch c := p.peek(); {
	case c == '(':
		p.at++
		res, err := p.sum()
		if err != nil {
			return nil, err
		}
		return res, p.expect(')')
	case c == '[':
		p.at++
		args, err := p.list(']')
		if err != nil {
			return nil, err
		}
		return p.array(args)
	case c >= '0' && c <= '9' || c == '.':
		begin := p.at
		for p.at < len(p.text) && strings.IndexByte("0123456789.", p.text[p.at]) >= 0 {
			p.at++
		}
		n, err := strconv.ParseFloat(p.text[begin:p.at], 64)
		if err != nil {
			return nil, p.fail("'%s' is not a number.", p.text[begin:p.at])
		}
		return &result{number: n}, nil
	case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
		name := p.name()
		if p.peek() == '(' {
			p.at++
			return p.call(name)
		}
		if p.e.queries[name] == nil {
			return nil, p.fail("There is no query with the id '%s'.", name)
		}
		return p.e.result(name)
	case c == 0:
		return nil, p.fail("It ends too early.")
	default:
		return nil, p.fail("Unexpected '%s'.", p.text[p.at:])
	}
}

func (p *parser) name() string {
	begin := p.at
	for p.at < len(p.text) {
		c := p.text[p.at]
		if c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			break
		}
		p.at++
	}
	return p.text[begin:p.at]
}

func (p *parser) expect(c byte) error {
	if p.peek() != c {
		return p.fail("'%c' is missing.", c)
	}
	p.at++
	return nil
}

// list reads what is separated by commas, up to the closing byte.
func (p *parser) list(end byte) (args []*result, err error) {
	if p.peek() == end {
		p.at++
		return nil, nil
	}
	for {
		arg, err := p.sum()
		if err != nil {
			return nil, err
		}
		args = append(args, arg)
		if p.peek() == ',' {
			p.at++
			continue
		}
		return args, p.expect(end)
	}
}

func (p *parser) array(args []*result) (*result, error) {
	res := &result{list: []*series{}}
	for _, a := range args {
		switch {
		case a.series != nil:
			res.list = append(res.list, a.series)
		case a.list != nil:
			res.list = append(res.list, a.list...)
		default:
			return nil, p.fail("A list has time series alone.")
		}
	}
	return res, nil
}

// apply combines two results: series point by point, where both have one.
func (p *parser) apply(op string, a, b *result) (*result, error) {
	switch {
	case a.list != nil || b.list != nil:
		if b.list == nil {
			return p.each(a.list, func(s *series) (*result, error) { return p.apply(op, &result{series: s}, b) })
		}
		if a.list == nil {
			return p.each(b.list, func(s *series) (*result, error) { return p.apply(op, a, &result{series: s}) })
		}
		return nil, p.fail("Two lists cannot be combined by '%s'.", op)
	case a.series == nil && b.series == nil:
		v := calculate(op, a.number, b.number)
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, p.fail("'%s' has no result.", op)
		}
		return &result{number: v}, nil
	case b.series == nil:
		return &result{series: a.series.each(func(q point) float64 { return calculate(op, q.v, b.number) })}, nil
	case a.series == nil:
		return &result{series: b.series.each(func(q point) float64 { return calculate(op, a.number, q.v) })}, nil
	}
	if a.series.period != b.series.period {
		return nil, p.fail("Time series of different periods cannot be combined.")
	}
	right := make(map[int64]float64, len(b.series.points))
	for _, q := range b.series.points {
		right[q.at.Unix()] = q.v
	}
	return &result{series: a.series.each(func(q point) float64 {
		v, ok := right[q.at.Unix()]
		if !ok {
			return math.NaN()
		}
		return calculate(op, q.v, v)
	})}, nil
}

func (p *parser) each(list []*series, f func(*series) (*result, error)) (*result, error) {
	out := &result{list: []*series{}}
	for _, s := range list {
		r, err := f(s)
		if err != nil {
			return nil, err
		}
		out.list = append(out.list, r.series)
	}
	return out, nil
}

// each maps the points; those without a number are left out.
func (s *series) each(f func(point) float64) *series {
	out := &series{period: s.period}
	for _, q := range s.points {
		if v := f(q); !math.IsNaN(v) && !math.IsInf(v, 0) {
			out.points = append(out.points, point{q.at, v})
		}
	}
	return out
}

func calculate(op string, a, b float64) float64 {
	truth := func(ok bool) float64 {
		if ok {
			return 1
		}
		return 0
	}
	switch op {
	case "+":
		return a + b
	case "-":
		return a - b
	case "*":
		return a * b
	case "/":
		return a / b
	case "^":
		return math.Pow(a, b)
	case "<":
		return truth(a < b)
	case ">":
		return truth(a > b)
	case "<=":
		return truth(a <= b)
	case ">=":
		return truth(a >= b)
	case "==":
		return truth(a == b)
	}
	return truth(a != b)
}

// aggregates make one number of several.
var aggregates = map[string]func([]float64) float64{
	"SUM": func(v []float64) float64 {
		n := 0.0
		for _, x := range v {
			n += x
		}
		return n
	},
	"AVG": func(v []float64) float64 {
		n := 0.0
		for _, x := range v {
			n += x
		}
		return n / float64(len(v))
	},
	"MIN": func(v []float64) float64 { return slices.Min(v) },
	"MAX": func(v []float64) float64 { return slices.Max(v) },
}

// maps make a number of each.
var maps = map[string]func(float64) float64{"ABS": math.Abs, "CEIL": math.Ceil, "FLOOR": math.Floor}

func (p *parser) call(name string) (*result, error) {
	if name == "METRICS" || name == "FILL" {
		return p.special(name)
	}
	f, g := aggregates[name], maps[name]
	if f == nil && g == nil && !slices.Contains([]string{"RATE", "DIFF", "PERIOD", "RUNNING_SUM"}, name) {
		return nil, p.fail("lambdad does not support the function %s.", name)
	}
	args, err := p.list(')')
	if err != nil {
		return nil, err
	}
	if len(args) != 1 || args[0].series == nil && args[0].list == nil {
		return nil, p.fail("%s takes a time series.", name)
	}
	a := args[0]
	switch {
	case f != nil && a.list != nil:
		return p.across(f, a.list)
	case f != nil:
		var values []float64
		for _, q := range a.series.points {
			values = append(values, q.v)
		}
		if len(values) == 0 {
			return &result{number: 0}, nil
		}
		return &result{number: f(values)}, nil
	case name == "PERIOD":
		if a.series == nil {
			return nil, p.fail("PERIOD takes one time series.")
		}
		return &result{number: a.series.period.Seconds()}, nil
	}
	one := func(s *series) (*result, error) {
		if g != nil {
			return &result{series: s.each(func(q point) float64 { return g(q.v) })}, nil
		}
		var last point
		sum := 0.0
		return &result{series: s.each(func(q point) float64 {
			before := last
			last = q
			if name == "RUNNING_SUM" {
				sum += q.v
				return sum
			}
			if before.at.IsZero() {
				return math.NaN()
			}
			if name == "RATE" {
				return (q.v - before.v) / q.at.Sub(before.at).Seconds()
			}
			return q.v - before.v
		})}, nil
	}
	if a.list != nil {
		return p.each(a.list, one)
	}
	return one(a.series)
}

// across makes one series of several, from the points that there are.
func (p *parser) across(f func([]float64) float64, list []*series) (*result, error) {
	if len(list) == 0 {
		return &result{series: &series{period: time.Minute}}, nil
	}
	at := map[int64][]float64{}
	for _, s := range list {
		if s.period != list[0].period {
			return nil, p.fail("Time series of different periods cannot be combined.")
		}
		for _, q := range s.points {
			at[q.at.Unix()] = append(at[q.at.Unix()], q.v)
		}
	}
	out := &series{period: list[0].period}
	for t, values := range at {
		out.points = append(out.points, point{time.Unix(t, 0).UTC(), f(values)})
	}
	slices.SortFunc(out.points, func(a, b point) int { return a.at.Compare(b.at) })
	return &result{series: out}, nil
}

// special are the functions whose arguments are no expressions.
func (p *parser) special(name string) (*result, error) {
	if name == "METRICS" {
		if p.peek() != ')' {
			return nil, p.fail("METRICS takes no arguments here.")
		}
		p.at++
		res := &result{list: []*series{}}
		for i := range p.e.in.MetricDataQueries {
			q := &p.e.in.MetricDataQueries[i]
			if q.MetricStat == nil {
				continue
			}
			r, err := p.e.result(*q.Id)
			if err != nil {
				return nil, err
			}
			res.list = append(res.list, r.series)
		}
		return res, nil
	}
	a, err := p.sum()
	if err != nil {
		return nil, err
	}
	if err := p.expect(','); err != nil {
		return nil, err
	}
	p.peek()
	repeat := strings.HasPrefix(p.text[p.at:], "REPEAT")
	with := &result{}
	if repeat {
		p.at += len("REPEAT")
	} else if with, err = p.sum(); err != nil {
		return nil, err
	}
	if err := p.expect(')'); err != nil {
		return nil, err
	}
	if with.series != nil || with.list != nil {
		return nil, p.fail("FILL takes a number or REPEAT.")
	}
	if a.list != nil {
		return p.each(a.list, func(s *series) (*result, error) { return p.fill(s, with.number, repeat) })
	}
	if a.series == nil {
		return nil, p.fail("FILL takes a time series.")
	}
	return p.fill(a.series, with.number, repeat)
}

// fill gives a value to the periods of the range that have none.
func (p *parser) fill(s *series, v float64, repeat bool) (*result, error) {
	begin := p.e.in.StartTime.Truncate(s.period)
	if n := p.e.in.EndTime.Sub(begin) / s.period; n > maxDataPage {
		return nil, p.fail("FILL would make %d datapoints.", n)
	}
	have := make(map[int64]float64, len(s.points))
	for _, q := range s.points {
		have[q.at.Unix()] = q.v
	}
	out := &series{period: s.period}
	last, known := v, false
	for at := begin; at.Before(p.e.in.EndTime.Time); at = at.Add(s.period) {
		w, ok := have[at.Unix()]
		switch {
		case ok:
			last, known = w, true
			out.points = append(out.points, point{at.UTC(), w})
		case repeat && known:
			out.points = append(out.points, point{at.UTC(), last})
		case !repeat:
			out.points = append(out.points, point{at.UTC(), v})
		}
	}
	return &result{series: out}, nil
}
