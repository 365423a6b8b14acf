package frontend

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/telemetry"
)

// A sampler decides which traces are recorded where the caller did not: with active
// tracing the first of each second and one in twenty of the others, as X-Ray's
// default rule, else none.
type sampler struct{ second atomic.Int64 } // of the last trace that was the first

// sampleShare is what of the others is sampled.
const sampleShare = 0.05

// trace returns the trace header of an invocation of v: that of the request,
// completed, or a made one. Clients index it blindly, so there always is one
// (traps.md 78).
func (s *sampler) trace(header string, v *lambdad.Version, now time.Time) string {
	if header == "" {
		return newTraceID(now, s.sampled(v, now))
	}
	switch telemetry.TraceField(header, "Sampled") {
	case "0", "1":
		return header
	}
	// The caller left the decision: no Sampled, or "?".
	if !strings.HasPrefix(telemetry.TraceField(header, "Root"), "1-") {
		return newTraceID(now, s.sampled(v, now))
	}
	var kept []string
	for field := range strings.SplitSeq(header, ";") {
		if name, _, _ := strings.Cut(strings.TrimSpace(field), "="); name != "" && !strings.EqualFold(name, "Sampled") {
			kept = append(kept, strings.TrimSpace(field))
		}
	}
	return strings.Join(kept, ";") + ";Sampled=" + string(s.sampled(v, now))
}

// sampled is the value of Sampled: '0' or '1'.
func (s *sampler) sampled(v *lambdad.Version, now time.Time) byte {
	if v.Tracing != "Active" {
		return '0'
	}
	last, second := s.second.Load(), now.Unix()
	if last != second && s.second.CompareAndSwap(last, second) || rand.Float64() < sampleShare {
		return '1'
	}
	return '0'
}

func newTraceID(now time.Time, sampled byte) string {
	var id [20]byte
	binary.BigEndian.PutUint64(id[0:], rand.Uint64())
	binary.BigEndian.PutUint64(id[8:], rand.Uint64())
	binary.BigEndian.PutUint32(id[16:], rand.Uint32())
	b := make([]byte, 0, 74)
	b = append(b, "Root=1-"...)
	b = strconv.AppendInt(b, now.Unix(), 16) // eight digits until 2106
	b = append(b, '-')
	b = hex.AppendEncode(b, id[:12])
	b = append(b, ";Parent="...)
	b = hex.AppendEncode(b, id[12:])
	b = append(b, ";Sampled="...)
	return string(append(b, sampled))
}
