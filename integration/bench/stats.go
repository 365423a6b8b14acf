package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// A number is anything that is measured.
type number interface{ ~int64 | ~float64 }

// quantile returns the q-th of xs, 0 ≤ q ≤ 1, or 0 of none.
func quantile[T number](xs []T, q float64) T {
	if len(xs) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(xs))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

// An estimate is a median with an interval that holds the true one with a
// confidence of 95 % or, of few values, with as much as their number gives.
type estimate struct{ value, low, high float64 }

// estimated returns the median of xs and the interval between two of them that
// follows from nothing but their order: each is above the true median as often as
// a coin shows heads.
func estimated(xs []float64) estimate {
	n := len(xs)
	if n == 0 {
		return estimate{math.NaN(), math.NaN(), math.NaN()}
	}
	sorted := slices.Sorted(slices.Values(xs))
	value := sorted[n/2]
	if n%2 == 0 {
		value = (sorted[n/2-1] + sorted[n/2]) / 2
	}
	k := orderRank(n)
	return estimate{value, sorted[k], sorted[n-1-k]}
}

// orderRank returns how many of n ordered values may be left out at either end of a
// 95 % interval of the median: the most k with P(at most k heads of n) ≤ 2.5 %, less
// one, or 0.
func orderRank(n int) int {
	p := math.Pow(0.5, float64(n))
	sum, k := 0.0, 0
	for ; k < n/2; k++ {
		if sum += p; sum > 0.025 {
			break
		}
		p *= float64(n-k) / float64(k+1)
	}
	return max(k-1, 0)
}

func (e estimate) String() string { return e.format("%.2f") }

func (e estimate) format(f string) string {
	if math.IsNaN(e.value) {
		return "–"
	}
	return fmt.Sprintf("%s (%s–%s)", fmt.Sprintf(f, e.value), fmt.Sprintf(f, e.low), fmt.Sprintf(f, e.high))
}

// A sample is what was measured of one target, turn by turn.
type sample struct {
	name      string
	turns     [][]time.Duration // by turn, what each request took
	processor []time.Duration   // by turn, of the daemon, for each request
	ends      [][]time.Duration // by turn, what the platform says each invocation lasted
}

// all are the times of every turn.
func (s *sample) all() []time.Duration { return slices.Concat(s.turns...) }

func (s *sample) quantile(q float64) time.Duration { return quantile(s.all(), q) }

func (s *sample) median() time.Duration { return s.quantile(0.5) }

// ratio compares two samples by the q-th of each turn, with that of the same turn:
// what the machine did meanwhile met both.
func (s *sample) ratio(floor *sample, q float64) estimate {
	return paired(s.turns, floor.turns, q, func(a, b float64) float64 { return a / b })
}

// paired compares by turns.
func paired(a, b [][]time.Duration, q float64, compare func(a, b float64) float64) estimate {
	var xs []float64
	for i := range min(len(a), len(b)) {
		if len(a[i]) > 0 && len(b[i]) > 0 {
			xs = append(xs, compare(float64(quantile(a[i], q)), float64(quantile(b[i], q))))
		}
	}
	return estimated(xs)
}
