package main

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 3, 0.99: 5, 1: 5} {
		if got := quantile([]time.Duration{5, 1, 4, 2, 3}, q); got != want {
			t.Errorf("quantile %v is %d, want %d", q, got, want)
		}
	}
	if quantile([]float64(nil), 0.5) != 0 {
		t.Error("no numbers have a median")
	}
}

// The ranks are those of tables of the sign test.
func TestOrderRank(t *testing.T) {
	for n, want := range map[int]int{1: 0, 2: 0, 5: 0, 6: 0, 8: 0, 9: 1, 11: 1, 12: 2, 15: 3, 20: 5, 25: 7, 40: 13, 100: 39} {
		if got := orderRank(n); got != want {
			t.Errorf("of %d values %d are left out at either end, want %d", n, got, want)
		}
	}
}

func TestEstimated(t *testing.T) {
	if e := estimated([]float64{3, 1, 2}); e != (estimate{2, 1, 3}) {
		t.Error(e)
	}
	if e := estimated([]float64{4, 1, 2, 3}); e != (estimate{2.5, 1, 4}) {
		t.Error(e)
	}
	if e := estimated([]float64{9, 1, 2, 3, 4, 5, 6, 7, 8}); e != (estimate{5, 2, 8}) {
		t.Error(e)
	}
	if s := estimated(nil).String(); s != "–" {
		t.Error(s)
	}
	if s := (estimate{1.234, 1.2, 1.3}).String(); s != "1.23 (1.20–1.30)" {
		t.Error(s)
	}
}

// The interval holds the true median about as often as it says. The numbers are the
// same every time.
func TestConfidence(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	hits := 0
	const times, turns = 2000, 40
	for range times {
		xs := make([]float64, turns)
		for i := range xs {
			xs[i] = r.ExpFloat64() // a skewed distribution with the median ln 2
		}
		if e := estimated(xs); e.low <= math.Ln2 && math.Ln2 <= e.high {
			hits++
		}
	}
	if share := float64(hits) / times; share < 0.94 || share > 0.98 {
		t.Errorf("the 95 %% interval holds the median in %.1f %% of cases", 100*share)
	}
}

// A ratio is that of turns, whatever the machine does from turn to turn.
func TestRatio(t *testing.T) {
	floor, own := &sample{}, &sample{}
	for turn := range 20 {
		pace := time.Duration(1 + turn*turn) // the machine gets slower and slower
		floor.turns = append(floor.turns, []time.Duration{100 * pace, 101 * pace, 900 * pace})
		own.turns = append(own.turns, []time.Duration{200 * pace, 202 * pace, 210 * pace})
	}
	if e := own.ratio(floor, 0.5); e != (estimate{2, 2, 2}) {
		t.Error(e)
	}
	more := paired(own.turns, floor.turns, 0.5, func(a, b float64) float64 { return a - b })
	if more.low >= more.value || more.value >= more.high {
		t.Error(more)
	}
}
