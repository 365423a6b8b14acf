package cloudwatchlogs

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream"
	"github.com/google/uuid"

	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/logstore"
)

const (
	tailEvery = time.Second
	tailLimit = 3 * time.Hour
	// maxUpdate is how many events an update has; of more, a sample of the first.
	maxUpdate = 500
)

// startLiveTail answers with an event stream: what was asked for, then each second
// the events that came to disk since, until the client leaves or three hours are over.
func (s *Service) startLiveTail(w http.ResponseWriter, r *aws.Request) error {
	var in StartLiveTailRequest
	if err := aws.ReadInput(r, &in); err != nil {
		return err
	}
	if in.LogStreamNames != nil && in.LogStreamNamePrefixes != nil {
		return invalid("logStreamNames and logStreamNamePrefixes are mutually exclusive parameters.")
	}
	if len(in.LogGroupIdentifiers) > 1 && (in.LogStreamNames != nil || in.LogStreamNamePrefixes != nil) {
		return invalid("Log streams can be chosen in one log group only.")
	}
	pattern, err := parsePattern(in.LogEventFilterPattern)
	if err != nil {
		return err
	}
	var groups []logstore.GroupName
	for _, id := range in.LogGroupIdentifiers {
		if !strings.HasPrefix(id, "arn:") {
			return invalid("The log group identifier %s is not an ARN.", id)
		}
		g, err := identified(r, nil, &id)
		if err != nil {
			return err
		}
		if _, err := s.store.Group(g); err != nil {
			return wire(err)
		}
		groups = append(groups, g)
	}
	follower := s.store.Follow(func(g logstore.GroupName, stream string) bool {
		return slices.Contains(groups, g) &&
			(in.LogStreamNames == nil || slices.Contains(in.LogStreamNames, stream)) &&
			(in.LogStreamNamePrefixes == nil || slices.ContainsFunc(in.LogStreamNamePrefixes, func(p string) bool { return strings.HasPrefix(stream, p) }))
	}, 0)
	defer follower.End()

	w.Header().Set("Content-Type", "application/vnd.amazon.eventstream")
	w.WriteHeader(http.StatusOK)
	out := &liveTail{w: w, rc: http.NewResponseController(w), enc: eventstream.NewEncoder()}
	out.event("initial-response", struct{}{})
	out.event("sessionStart", &LiveTailSessionStart{
		RequestId: &r.RequestID, SessionId: new(uuid.NewString()), LogGroupIdentifiers: in.LogGroupIdentifiers,
		LogStreamNames: in.LogStreamNames, LogStreamNamePrefixes: in.LogStreamNamePrefixes, LogEventFilterPattern: in.LogEventFilterPattern,
	})
	tick := time.NewTicker(tailEvery)
	defer tick.Stop()
	end := time.NewTimer(tailLimit)
	defer end.Stop()
	for out.err == nil {
		select {
		case <-tick.C:
			out.event("sessionUpdate", update(follower, pattern))
		case <-end.C:
			out.exception("SessionTimeoutException", &SessionTimeoutException{Message: new("Session timed out after 3 hours.")})
			return nil
		case <-s.cfg.Done:
			out.exception("SessionStreamingException", &SessionStreamingException{Message: new("lambdad is stopping.")})
			return nil
		case <-r.Context().Done():
			return nil
		}
	}
	return nil // the answer has begun, and whoever asked is gone
}

func update(f *logstore.Follower, pattern *Pattern) *LiveTailSessionUpdate {
	events, dropped := f.Next()
	out := &LiveTailSessionUpdate{SessionResults: []LiveTailSessionLogEvent{}}
	sampled := dropped > 0
	for _, e := range events {
		if !pattern.Match(e.Message) {
			continue
		}
		if len(out.SessionResults) == maxUpdate {
			sampled = true
			break
		}
		out.SessionResults = append(out.SessionResults, LiveTailSessionLogEvent{
			LogStreamName: &e.Stream, LogGroupIdentifier: new(e.Group.Account + ":" + e.Group.Name),
			Message: &e.Message, Timestamp: &e.Time, IngestionTime: &e.Ingested,
		})
	}
	out.SessionMetadata = &LiveTailSessionMetadata{Sampled: &sampled}
	return out
}

// A liveTail writes messages of an event stream, until one fails.
type liveTail struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	enc *eventstream.Encoder
	err error
}

func (l *liveTail) event(name string, payload any) { l.send("event", ":event-type", name, payload) }

func (l *liveTail) exception(name string, payload any) {
	l.send("exception", ":exception-type", name, payload)
}

func (l *liveTail) send(kind, typeHeader, name string, payload any) {
	if l.err != nil {
		return
	}
	m := eventstream.Message{Payload: jsonOf(payload)}
	m.Headers.Set(":message-type", eventstream.StringValue(kind))
	m.Headers.Set(typeHeader, eventstream.StringValue(name))
	m.Headers.Set(":content-type", eventstream.StringValue("application/json"))
	// A client that does not read must not hold this for ever.
	if l.err = l.rc.SetWriteDeadline(time.Now().Add(30 * time.Second)); l.err != nil {
		return
	}
	if l.err = l.enc.Encode(l.w, m); l.err == nil {
		l.err = l.rc.Flush()
	}
}

var _ aws.ResourceNamer = (*Service)(nil)
