package metrics

import (
	"maps"
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/histogram"
)

// Statistics are what is known of the values of a metric in a period. Count, Sum,
// Min and Max are exact.
type Statistics struct {
	Count, Sum, Min, Max float64
	dist                 distribution
	// blind counts values of which only the above is known.
	blind float64
}

// A distribution counts values by bucket: those of index i are above base^(i-1) up
// to base^i. One bucket is 0.27 % wide.
type distribution struct {
	pos, neg map[int32]float64
	zero     float64
}

// schema is that of histograms with perOctave buckets between x and 2x, the finest
// there is.
const (
	schema    = 8
	perOctave = 256
)

func bucketOf(v float64) int32 { return int32(math.Ceil(math.Log2(v) * perOctave)) }

func upperBound(i int32) float64 { return math.Exp2(float64(i) / perOctave) }

func (d *distribution) add(v, n float64) {
	switch {
	case v > 0:
		if d.pos == nil {
			d.pos = map[int32]float64{}
		}
		d.pos[bucketOf(v)] += n
	case v < 0:
		if d.neg == nil {
			d.neg = map[int32]float64{}
		}
		d.neg[bucketOf(-v)] += n
	default:
		d.zero += n
	}
}

// Add adds n values v.
func (s *Statistics) Add(v, n float64) {
	s.summary(n, v*n, v, v)
	s.dist.add(v, n)
}

// AddSummary adds values of which only this is known.
func (s *Statistics) AddSummary(count, sum, least, most float64) {
	if least == most || count == 1 {
		s.summary(count, sum, least, most)
		s.dist.add(sum/count, count)
		return
	}
	s.summary(count, sum, least, most)
	s.blind += count
}

func (s *Statistics) summary(count, sum, least, most float64) {
	if count == 0 {
		return
	}
	if s.Count == 0 {
		s.Min, s.Max = least, most
	}
	s.Count, s.Sum, s.Min, s.Max = s.Count+count, s.Sum+sum, min(s.Min, least), max(s.Max, most)
}

// Merge adds what is known of other values.
func (s *Statistics) Merge(o *Statistics) {
	s.summary(o.Count, o.Sum, o.Min, o.Max)
	s.blind += o.blind
	s.dist.zero += o.dist.zero
	add := func(to *map[int32]float64, from map[int32]float64) {
		if *to == nil && len(from) > 0 {
			*to = map[int32]float64{}
		}
		for i, n := range from {
			(*to)[i] += n
		}
	}
	add(&s.dist.pos, o.dist.pos)
	add(&s.dist.neg, o.dist.neg)
}

// Average is the mean.
func (s *Statistics) Average() float64 { return s.Sum / s.Count }

// Percentile returns the value that p percent of the values do not exceed, within
// 0.3 %. It is not known when some were put as statistics alone.
func (s *Statistics) Percentile(p float64) (value float64, known bool) {
	if s.blind > 0 || s.Count == 0 {
		return 0, false
	}
	rank, seen := p/100*s.Count, 0.0
	within := func(n, low, high float64) bool {
		if seen+n < rank {
			seen += n
			return false
		}
		value = low
		if n > 0 {
			value += (high - low) * (rank - seen) / n
		}
		return true
	}
	find := func() bool {
		for _, i := range slices.Backward(slices.Sorted(maps.Keys(s.dist.neg))) {
			if within(s.dist.neg[i], -upperBound(i), -upperBound(i-1)) {
				return true
			}
		}
		if s.dist.zero > 0 && within(s.dist.zero, 0, 0) {
			return true
		}
		for _, i := range slices.Sorted(maps.Keys(s.dist.pos)) {
			if within(s.dist.pos[i], upperBound(i-1), upperBound(i)) {
				return true
			}
		}
		return false
	}
	if !find() {
		value = s.Max // of rounding
	}
	return min(max(value, s.Min), s.Max), true
}

// histogram is what is stored of s.
func (s *Statistics) histogram() *histogram.FloatHistogram {
	h := &histogram.FloatHistogram{
		CounterResetHint: histogram.GaugeType, Schema: schema,
		Count: s.Count, Sum: s.Sum, ZeroCount: s.dist.zero,
	}
	h.PositiveSpans, h.PositiveBuckets = spans(s.dist.pos)
	h.NegativeSpans, h.NegativeBuckets = spans(s.dist.neg)
	return h
}

func spans(buckets map[int32]float64) (list []histogram.Span, counts []float64) {
	next := int32(0)
	for _, i := range slices.Sorted(maps.Keys(buckets)) {
		if len(list) == 0 || i != next {
			list = append(list, histogram.Span{Offset: i - next})
		}
		list[len(list)-1].Length++
		counts = append(counts, buckets[i])
		next = i + 1
	}
	return list, counts
}

// merge adds what was stored. Least and most are needed when its values differ.
func (s *Statistics) merge(h *histogram.FloatHistogram, least, most float64) {
	s.summary(h.Count, h.Sum, least, most)
	known := h.ZeroCount
	s.dist.zero += h.ZeroCount
	for it := h.PositiveBucketIterator(); it.Next(); {
		b := it.At()
		if s.dist.pos == nil {
			s.dist.pos = map[int32]float64{}
		}
		s.dist.pos[b.Index] += b.Count
		known += b.Count
	}
	for it := h.NegativeBucketIterator(); it.Next(); {
		b := it.At()
		if s.dist.neg == nil {
			s.dist.neg = map[int32]float64{}
		}
		s.dist.neg[b.Index] += b.Count
		known += b.Count
	}
	if known < h.Count*(1-1e-9) {
		s.blind += h.Count - known
	}
}
