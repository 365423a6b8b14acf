package bill

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
)

// Prices are what AWS publishes, as data.
type Prices struct {
	Source      string             `json:"source"`
	Currency    string             `json:"currency"`
	Request     float64            `json:"perRequest"`
	Storage     float64            `json:"perStorageGBSecond"` // of /tmp beyond 512 MB
	Compute     map[string]float64 `json:"perGBSecond"`        // by architecture
	Provisioned map[string]float64 `json:"perProvisionedDurationGBSecond"`
}

//go:embed prices.json
var published []byte

// Published are the prices this was built with.
func Published() Prices {
	p, err := ReadPrices(published)
	if err != nil {
		panic(err) // embedded, and read by a test
	}
	return p
}

// ReadPrices reads prices.json or a file of the same form.
func ReadPrices(b []byte) (p Prices, err error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return p, fmt.Errorf("bill: prices: %w", err)
	}
	for _, arch := range []string{"x86_64", "arm64"} {
		if p.Compute[arch] <= 0 || p.Provisioned[arch] <= 0 {
			return p, fmt.Errorf("bill: prices: perGBSecond and perProvisionedDurationGBSecond need a price for %s", arch)
		}
	}
	return p, nil
}

// A Charge is what sums come to.
type Charge struct {
	Requests float64 `json:"requests"`
	Compute  float64 `json:"compute"`
	Storage  float64 `json:"storage"`
	Total    float64 `json:"total"`
	// Extensions is the part of Total that would not be without them.
	Extensions float64 `json:"extensions"`
}

// Charge says what AWS would charge. The time that provisioned concurrency is
// configured is not in it.
func (p *Prices) Charge(s *Sums) Charge {
	const gbs = 1024 * 1000 // MB·ms in a GB-second
	compute := func(all, ahead int64) float64 {
		return float64(all-ahead)/gbs*p.Compute[s.Architecture] + float64(ahead)/gbs*p.Provisioned[s.Architecture]
	}
	c := Charge{
		Requests: float64(s.Invocations) * p.Request,
		Compute:  compute(s.MBms, s.AheadMBms),
		Storage:  float64(s.StorageMBms) / gbs * p.Storage,
	}
	c.Total = c.Requests + c.Compute + c.Storage
	c.Extensions = c.Compute - compute(s.PlainMBms, s.AheadPlain)
	if s.Billed > 0 {
		c.Extensions += c.Storage * float64(s.Billed-s.PlainMs) / float64(s.Billed)
	}
	return c
}

// GBSeconds is what was billed of memory and time.
func (s *Sums) GBSeconds() float64 { return float64(s.MBms) / 1024 / 1000 }
