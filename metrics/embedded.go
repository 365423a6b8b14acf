package metrics

import (
	"context"
	"encoding/json"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/telemetry"
)

// Limits of the embedded metric format, and of the lines that wait to be read.
const (
	maxEmbeddedMetrics    = 100 // of one directive
	maxEmbeddedValues     = 100 // of one metric
	maxEmbeddedDirectives = 100
	maxDimensions         = 30
	maxWaitingBytes       = 16 << 20
	maxWaitingLines       = 8192
)

// embedded are log lines that may hold metrics and wait to be read.
type embedded struct {
	lines chan embeddedLine
	bytes atomic.Int64
	over  atomic.Int64 // lines that did not fit
}

type embeddedLine struct {
	account, region, text string
	at                    time.Time
}

// Line looks for metrics in a log line (embedded metric format) and puts them soon.
// It does not wait; what comes faster than it can be put is dropped and counted.
func (s *Store) Line(account, region, line string, at time.Time) {
	if len(line) == 0 || line[0] != '{' || !strings.Contains(line, `"CloudWatchMetrics"`) {
		return
	}
	e := &s.embedded
	n := int64(len(line))
	if e.bytes.Add(n) > maxWaitingBytes {
		e.bytes.Add(-n)
		e.over.Add(1)
		return
	}
	select {
	case e.lines <- embeddedLine{account, region, line, at}:
	default:
		e.bytes.Add(-n)
		e.over.Add(1)
	}
}

// putEmbedded puts the metrics of the lines that wait.
func (s *Store) putEmbedded(ctx context.Context) {
	for {
		select {
		case l := <-s.embedded.lines:
			s.embedded.bytes.Add(-int64(len(l.text)))
			s.mu.Lock()
			err := s.write(ctx, ParseEmbedded(l.text, l.account, l.region, l.at, s.cfg.Now()), s.lose)
			s.mu.Unlock()
			if err != nil {
				s.cfg.Logger.Error("metrics in a log line could not be written", "err", err)
			}
		default:
			return
		}
	}
}

// ParseEmbedded returns the metrics in a log line in embedded metric format
// (neighbours.md section 4), none if it is not in that format. At is the time of
// those that name none. What the format does not allow is left out.
func ParseEmbedded(line, account, region string, at, now time.Time) []Datum {
	var head struct {
		AWS struct {
			Timestamp         json.Number
			CloudWatchMetrics []struct {
				Namespace  string
				Dimensions [][]string
				Metrics    []struct {
					Name, Unit        string
					StorageResolution int
				}
			}
		} `json:"_aws"`
	}
	var members map[string]json.RawMessage
	if json.Unmarshal([]byte(line), &head) != nil || json.Unmarshal([]byte(line), &members) != nil {
		return nil
	}
	if n, err := head.AWS.Timestamp.Int64(); err == nil {
		at = time.UnixMilli(n)
	}
	if at.Before(now.Add(-MaxAge)) || at.After(now.Add(MaxAhead)) {
		return nil
	}
	var data []Datum
	for i, d := range head.AWS.CloudWatchMetrics {
		if i == maxEmbeddedDirectives || d.Namespace == "" || len(d.Namespace) > 255 || strings.HasPrefix(d.Namespace, "AWS/") || len(d.Metrics) > maxEmbeddedMetrics {
			continue
		}
		if len(d.Dimensions) == 0 {
			d.Dimensions = [][]string{nil}
		}
		for _, names := range d.Dimensions {
			dims, ok := embeddedDimensions(names, members)
			if !ok {
				continue
			}
			for _, m := range d.Metrics {
				unit := m.Unit
				if unit == "" {
					unit = unitNone
				}
				if m.Name == "" || len(m.Name) > 1024 || !Units[unit] {
					continue
				}
				datum := Datum{Time: at, High: m.StorageResolution == 1, ID: ID{Account: account, Region: region,
					Namespace: d.Namespace, Name: m.Name, Unit: unit, Dimensions: dims}}
				for _, v := range embeddedValues(members[m.Name]) {
					datum.Add(v, 1)
				}
				if datum.Count > 0 {
					data = append(data, datum)
				}
			}
		}
	}
	return data
}

func embeddedDimensions(names []string, members map[string]json.RawMessage) (dims []Dimension, ok bool) {
	if len(names) > maxDimensions {
		return nil, false
	}
	for _, name := range names {
		var value string
		raw := members[name]
		if json.Unmarshal(raw, &value) != nil {
			value = string(raw) // a number or true
			if len(raw) == 0 || strings.IndexByte("{[n", raw[0]) >= 0 {
				return nil, false
			}
		}
		if name == "" || value == "" || !ValidDimension(name, value) {
			return nil, false
		}
		dims = append(dims, Dimension{name, value})
	}
	SortDimensions(dims)
	return dims, true
}

func embeddedValues(raw json.RawMessage) (values []float64) {
	var one float64
	if json.Unmarshal(raw, &one) == nil && string(raw) != "null" {
		values = []float64{one}
	} else if json.Unmarshal(raw, &values) != nil || len(values) > maxEmbeddedValues {
		return nil
	}
	for _, v := range values {
		if !ValidValue(v) {
			return nil
		}
	}
	return values
}

// Units are the units that CloudWatch knows.
var Units = func() map[string]bool {
	m := map[string]bool{}
	for u := range strings.FieldsSeq("Seconds Microseconds Milliseconds Bytes Kilobytes Megabytes Gigabytes Terabytes " +
		"Bits Kilobits Megabits Gigabits Terabits Percent Count Bytes/Second Kilobytes/Second Megabytes/Second " +
		"Gigabytes/Second Terabytes/Second Bits/Second Kilobits/Second Megabits/Second Gigabits/Second Terabits/Second " +
		"Count/Second None") {
		m[u] = true
	}
	return m
}()

// ValidDimension reports whether name and value can be a dimension: printable, the
// name not beginning with a colon.
func ValidDimension(name, value string) bool {
	if len(name) > 255 || len(value) > 1024 || name[0] == ':' {
		return false
	}
	return strings.IndexFunc(name+value, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }) < 0
}

// ValidValue reports whether CloudWatch takes v: finite, up to 2^360.
func ValidValue(v float64) bool { return math.Abs(v) <= 0x1p360 } // false for NaN

// An Embedded is a telemetry.Sink that finds metrics in the lines that function and
// extensions write.
type Embedded struct {
	to              *Store
	account, region string
}

// NewEmbedded makes the sink of an environment of v.
func NewEmbedded(to *Store, v *lambdad.Version) *Embedded {
	return &Embedded{to, v.Account, v.Region}
}

// Take implements telemetry.Sink.
func (k *Embedded) Take(e telemetry.Event) {
	if l, ok := e.Record.(telemetry.Line); ok {
		k.to.Line(k.account, k.region, string(l), e.Time)
	}
}
