package cloudwatchlogs

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/logstore"
)

// Bounds that the service fixes.
const (
	maxBatch      = 1 << 20 // bytes of a PutLogEvents request
	eventOverhead = 26      // bytes an event counts beside its message
	maxAge        = 14 * 24 * time.Hour
	maxAhead      = 2 * time.Hour
	maxSpan       = 24 * time.Hour
	maxPage       = 10_000  // events of an answer
	maxPageBytes  = 1 << 20 // and their bytes
	// searchTime is how long FilterLogEvents looks for events before it answers
	// with what it has and a token.
	searchTime = time.Second
)

// sequenceToken is the one there is; requests need none.
const sequenceToken = "49039859588563402602345678901234567890123456789012345678"

func (s *Service) putLogEvents(r *aws.Request, in *PutLogEventsRequest) (*PutLogEventsResponse, error) {
	g := named(r, in.LogGroupName)
	group, err := s.store.Group(g)
	if err != nil {
		return nil, wire(err)
	}
	if _, err := s.store.Stream(g, *in.LogStreamName); err != nil {
		return nil, wire(err)
	}
	size := 0
	entries := make([]logstore.Entry, len(in.LogEvents))
	for i, e := range in.LogEvents {
		entries[i] = logstore.Entry{Time: *e.Timestamp, Message: *e.Message}
		if i > 0 && entries[i].Time < entries[i-1].Time {
			return nil, invalid("Log events in a single PutLogEvents request must be in chronological order.")
		}
		size += len(*e.Message) + eventOverhead
	}
	if size > maxBatch {
		return nil, invalid("Upload too large: %d bytes exceeds limit of %d", size, maxBatch)
	}
	if entries[len(entries)-1].Time-entries[0].Time > maxSpan.Milliseconds() {
		return nil, invalid("The batch of log events in a single PutLogEvents request cannot span more than 24 hours.")
	}

	now := s.cfg.Now().UnixMilli()
	out := &PutLogEventsResponse{NextSequenceToken: new(sequenceToken)}
	var rejected RejectedLogEventsInfo
	before := func(at int64) int {
		i, _ := slices.BinarySearchFunc(entries, at, func(e logstore.Entry, at int64) int { return int(max(min(e.Time-at, 1), -1)) })
		return i
	}
	first, last := 0, len(entries)
	if i := before(now - maxAge.Milliseconds()); i > 0 {
		first = i
		rejected.TooOldLogEventEndIndex = new(int64(i))
	}
	if group.Retention > 0 {
		if i := before(now - int64(group.Retention)*24*time.Hour.Milliseconds()); i > first {
			first = i
			rejected.ExpiredLogEventEndIndex = new(int64(i))
		}
	}
	if i := before(now + maxAhead.Milliseconds() + 1); i < last {
		last = i
		rejected.TooNewLogEventStartIndex = new(int64(i))
	}
	if rejected != (RejectedLogEventsInfo{}) {
		out.RejectedLogEventsInfo = &rejected
	}
	if first < last {
		if err := s.store.Put(r.Context(), g, *in.LogStreamName, entries[first:last]); err != nil {
			return nil, wire(err)
		}
		if s.cfg.Line != nil {
			for _, e := range entries[first:last] {
				s.cfg.Line(r.Identity.Account, r.Region, e.Message, time.UnixMilli(e.Time))
			}
		}
	}
	return out, nil
}

// Tokens of events hold a position, and of what: 56 digits, which are a version, the
// time, the sequence number and a hash.

func tokenHash(parts ...string) uint64 {
	h := fnv.New64a()
	for _, p := range parts {
		fmt.Fprintf(h, "%d %s", len(p), p)
	}
	return h.Sum64()
}

func eventToken(p logstore.Position, hash uint64) string {
	return fmt.Sprintf("39%014d%020d%020d", min(max(p.Time, 0), 99999999999999), p.Seq, hash)
}

func readEventToken(t string, hash uint64) (p logstore.Position, ok bool) {
	if len(t) != 56 || !strings.HasPrefix(t, "39") {
		return p, false
	}
	at, err1 := strconv.ParseUint(t[2:16], 10, 63)
	seq, err2 := strconv.ParseUint(t[16:36], 10, 64)
	sum, err3 := strconv.ParseUint(t[36:], 10, 64)
	p = logstore.Position{Time: int64(at), Seq: seq}
	return p, err1 == nil && err2 == nil && err3 == nil && sum == hash
}

func after(p logstore.Position) logstore.Position {
	return logstore.Position{Time: p.Time, Seq: p.Seq + 1}
}

func (s *Service) getLogEvents(r *aws.Request, in *GetLogEventsRequest) (*GetLogEventsResponse, error) {
	g, err := identified(r, in.LogGroupName, in.LogGroupIdentifier)
	if err != nil {
		return nil, err
	}
	hash := tokenHash(g.Account, g.Region, g.Name, *in.LogStreamName)
	limit := int(or(in.Limit, maxPage))
	q := logstore.Query{
		Group: g, Streams: []string{*in.LogStreamName}, Ahead: limit,
		From: logstore.Position{Time: or(in.StartTime, 0)},
		To:   logstore.Position{Time: or(in.EndTime, math.MaxInt64)},
	}
	backward := !or(in.StartFromHead, false)
	at := q.From // where nothing is found
	if in.NextToken != nil {
		t := *in.NextToken
		ok := len(t) > 4 && strings.HasSuffix(t, "/s") && (t[:2] == "f/" || t[:2] == "b/")
		if ok {
			backward = t[0] == 'b'
			at, ok = readEventToken(t[2:len(t)-2], hash)
		}
		if !ok {
			return nil, invalid("The specified nextToken is invalid.")
		}
		if backward && at.Compare(q.To) < 0 {
			q.To = at
		} else if !backward && at.Compare(q.From) > 0 {
			q.From = at
		}
	}
	q.Backward = backward
	events, err := s.store.Events(q)
	if err != nil {
		return nil, wire(err)
	}
	var list []logstore.Event
	size := 0
	for e, err := range events {
		if err != nil {
			return nil, err
		}
		size += len(e.Message) + eventOverhead
		if len(list) > 0 && size > maxPageBytes {
			break
		}
		if list = append(list, e); len(list) == limit {
			break
		}
	}
	if backward {
		slices.Reverse(list)
	}
	first, last := at, at
	out := &GetLogEventsResponse{Events: make([]OutputLogEvent, len(list))}
	for i := range list {
		e := &list[i]
		out.Events[i] = OutputLogEvent{Timestamp: &e.Time, Message: &e.Message, IngestionTime: &e.Ingested}
	}
	if len(list) > 0 {
		first, last = list[0].Position, after(list[len(list)-1].Position)
	}
	out.NextForwardToken = new("f/" + eventToken(last, hash) + "/s")
	out.NextBackwardToken = new("b/" + eventToken(first, hash) + "/s")
	return out, nil
}

func (s *Service) filterLogEvents(r *aws.Request, in *FilterLogEventsRequest) (*FilterLogEventsResponse, error) {
	g, err := identified(r, in.LogGroupName, in.LogGroupIdentifier)
	if err != nil {
		return nil, err
	}
	if in.LogStreamNames != nil && in.LogStreamNamePrefix != nil {
		return nil, invalid("logStreamNamePrefix and logStreamNames are mutually exclusive parameters.")
	}
	pattern, err := parsePattern(in.FilterPattern)
	if err != nil {
		return nil, err
	}
	q := logstore.Query{
		Group: g, Streams: slices.Compact(slices.Sorted(slices.Values(in.LogStreamNames))),
		From: logstore.Position{Time: or(in.StartTime, 0)}, To: logstore.Forever,
	}
	if in.LogStreamNames == nil {
		q.Streams = nil
	}
	if in.EndTime != nil && *in.EndTime < math.MaxInt64 {
		q.To = logstore.Position{Time: *in.EndTime + 1}
	}
	if in.LogStreamNamePrefix != nil {
		streams, err := s.store.Streams(g, *in.LogStreamNamePrefix)
		if err != nil {
			return nil, wire(err)
		}
		q.Streams = make([]string, 0, len(streams))
		for _, st := range streams {
			q.Streams = append(q.Streams, st.Name)
		}
	}
	// A token is of one search; when it goes on the time may have been moved.
	hash := tokenHash(append([]string{g.Account, g.Region, g.Name, or(in.FilterPattern, ""), or(in.LogStreamNamePrefix, "")}, in.LogStreamNames...)...)
	if in.NextToken != nil {
		at, ok := readEventToken(*in.NextToken, hash)
		if !ok {
			return nil, invalid("The specified nextToken is invalid.")
		}
		if at.Compare(q.From) > 0 {
			q.From = at
		}
	}
	events, err := s.store.Events(q)
	if err != nil {
		return nil, wire(err)
	}
	limit := int(or(in.Limit, maxPage))
	out := &FilterLogEventsResponse{Events: []FilteredLogEvent{}, SearchedLogStreams: []SearchedLogStream{}}
	size, seen := 0, 0
	begin := time.Now()
	for e, err := range events {
		if err != nil {
			return nil, err
		}
		if seen++; seen%256 == 0 {
			if err := r.Context().Err(); err != nil {
				return nil, err
			}
		}
		full := len(out.Events) == limit || len(out.Events) > 0 && size+len(e.Message)+eventOverhead > maxPageBytes
		if full || seen%256 == 0 && time.Since(begin) > searchTime {
			out.NextToken = new(eventToken(e.Position, hash))
			break
		}
		if !pattern.Match(e.Message) {
			continue
		}
		size += len(e.Message) + eventOverhead
		out.Events = append(out.Events, FilteredLogEvent{
			LogStreamName: &e.Stream, Timestamp: &e.Time, Message: &e.Message, IngestionTime: &e.Ingested, EventId: new(eventToken(e.Position, 0)),
		})
	}
	return out, nil
}

func parsePattern(text *string) (*Pattern, error) {
	p, err := ParsePattern(or(text, ""))
	if err != nil {
		return nil, &lambdad.Error{Code: "InvalidParameterException", Message: "Invalid filter pattern: " + err.Error(), Err: err}
	}
	return p, nil
}

func (s *Service) testMetricFilter(_ *aws.Request, in *TestMetricFilterRequest) (*TestMetricFilterResponse, error) {
	p, err := parsePattern(in.FilterPattern)
	if err != nil {
		return nil, err
	}
	out := &TestMetricFilterResponse{Matches: []MetricFilterMatchRecord{}}
	for i, m := range in.LogEventMessages {
		if p.Match(m) {
			out.Matches = append(out.Matches, MetricFilterMatchRecord{EventNumber: new(int64(i + 1)), EventMessage: &m, ExtractedValues: p.Extract(m)})
		}
	}
	return out, nil
}

// jsonOf encodes a shape of this package, which cannot fail.
func jsonOf(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
