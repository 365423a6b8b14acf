package cloudwatchlogs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"
	"github.com/aws/smithy-go"

	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/logstore"
	logs "github.com/lambdad/lambdad/service/cloudwatchlogs"
	"github.com/lambdad/lambdad/telemetry"
)

const group = "/aws/lambda/f"

type rig struct {
	*cloudwatchlogs.Client
	t     *testing.T
	store *logstore.Store
	done  chan struct{}
	now   time.Time
	lines []string // that Config.Line was given
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, done: make(chan struct{}), now: time.Now().Truncate(time.Millisecond)}
	store, err := logstore.Open(logstore.Config{Dir: t.TempDir(), Now: func() time.Time { return r.now }})
	if err != nil {
		t.Fatal(err)
	}
	r.store = store
	keys, err := aws.OpenKeyStore(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(aws.NewMux(keys, aws.Options{Auth: aws.Any}, logs.New(logs.Config{Store: store, Done: r.done, Now: func() time.Time { return r.now },
		Line: func(_, _, message string, _ time.Time) { r.lines = append(r.lines, message) }})))
	t.Cleanup(func() {
		server.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	r.Client = cloudwatchlogs.New(cloudwatchlogs.Options{
		Region: "us-east-1", BaseEndpoint: &server.URL, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
		// StartLiveTail puts stream- before the host.
		HTTPClient: &http.Client{Transport: wholeBodies{&http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
		}}}},
	})
	return r
}

// wholeBodies gives net/http bodies of its own. The SDK closes that of a request when
// the answer begins; where net/http had not looked for its end yet, which a server
// this near leaves it no time for, it ends the connection and with it the stream.
type wholeBodies struct{ http.RoundTripper }

func (w wholeBodies) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(b))
	}
	return w.RoundTripper.RoundTrip(r)
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// refused insists on an error.
func (r *rig) refused(err error, code, text string) {
	r.t.Helper()
	var e smithy.APIError
	if !errors.As(err, &e) || e.ErrorCode() != code || !strings.Contains(e.ErrorMessage(), text) {
		r.t.Errorf("got %v, want %s: %s", err, code, text)
	}
}

func ptr[T any](v T) *T { return &v }

// make makes the group and streams.
func (r *rig) make(streams ...string) {
	r.t.Helper()
	_, err := r.CreateLogGroup(r.t.Context(), &cloudwatchlogs.CreateLogGroupInput{LogGroupName: ptr(group)})
	r.must(err)
	for _, s := range streams {
		_, err := r.CreateLogStream(r.t.Context(), &cloudwatchlogs.CreateLogStreamInput{LogGroupName: ptr(group), LogStreamName: &s})
		r.must(err)
	}
}

// put puts messages a millisecond apart.
func (r *rig) put(stream string, ago time.Duration, messages ...string) (*cloudwatchlogs.PutLogEventsOutput, error) {
	in := &cloudwatchlogs.PutLogEventsInput{LogGroupName: ptr(group), LogStreamName: &stream}
	for i, m := range messages {
		in.LogEvents = append(in.LogEvents, types.InputLogEvent{Timestamp: ptr(r.now.Add(-ago).UnixMilli() + int64(i)), Message: &m})
	}
	return r.PutLogEvents(r.t.Context(), in)
}

func TestGroups(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	for i := range 7 {
		_, err := r.CreateLogGroup(ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: ptr(fmt.Sprint("g", i)), Tags: map[string]string{"n": fmt.Sprint(i)}})
		r.must(err)
	}
	_, err := r.CreateLogGroup(ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: ptr("g1")})
	r.refused(err, "ResourceAlreadyExistsException", "The specified log group already exists")
	_, err = r.CreateLogGroup(ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: ptr(strings.Repeat("x", 513))})
	r.refused(err, "InvalidParameterException", "Invalid LogGroup or LogStream, both must have length less than or equal to 512.")
	_, err = r.CreateLogGroup(ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: ptr("a b")})
	r.refused(err, "InvalidParameterException", "pattern")
	_, err = r.CreateLogGroup(ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: ptr("k"), KmsKeyId: ptr("arn:aws:kms:us-east-1:000000000000:key/x")})
	r.refused(err, "InvalidParameterException", "kmsKeyId")
	_, err = r.AssociateKmsKey(ctx, &cloudwatchlogs.AssociateKmsKeyInput{LogGroupName: ptr("g1"), KmsKeyId: ptr("x")})
	r.refused(err, "NotImplemented", "AssociateKmsKey")

	var names []string
	pages := 0
	for p := cloudwatchlogs.NewDescribeLogGroupsPaginator(r, &cloudwatchlogs.DescribeLogGroupsInput{Limit: ptr(int32(3))}); p.HasMorePages(); pages++ {
		page, err := p.NextPage(ctx)
		r.must(err)
		for _, g := range page.LogGroups {
			names = append(names, *g.LogGroupName)
		}
	}
	if strings.Join(names, " ") != "g0 g1 g2 g3 g4 g5 g6" || pages != 3 {
		t.Errorf("%v in %d pages", names, pages)
	}
	_, err = r.PutRetentionPolicy(ctx, &cloudwatchlogs.PutRetentionPolicyInput{LogGroupName: ptr("g3"), RetentionInDays: ptr(int32(14))})
	r.must(err)
	_, err = r.PutRetentionPolicy(ctx, &cloudwatchlogs.PutRetentionPolicyInput{LogGroupName: ptr("g3"), RetentionInDays: ptr(int32(15))})
	r.refused(err, "InvalidParameterException", "retentionInDays")
	out, err := r.DescribeLogGroups(ctx, &cloudwatchlogs.DescribeLogGroupsInput{LogGroupNamePrefix: ptr("g3")})
	r.must(err)
	if g := out.LogGroups[0]; *g.Arn != "arn:aws:logs:us-east-1:000000000000:log-group:g3:*" || *g.LogGroupArn+":*" != *g.Arn || *g.RetentionInDays != 14 || *g.CreationTime != r.now.UnixMilli() || g.LogGroupClass != "STANDARD" {
		t.Errorf("%+v", g)
	}
	_, err = r.DeleteRetentionPolicy(ctx, &cloudwatchlogs.DeleteRetentionPolicyInput{LogGroupName: ptr("g3")})
	r.must(err)
	if out, err = r.DescribeLogGroups(ctx, &cloudwatchlogs.DescribeLogGroupsInput{LogGroupNamePattern: ptr("G3")}); err != nil || len(out.LogGroups) != 1 || out.LogGroups[0].RetentionInDays != nil {
		t.Errorf("%+v %v", out, err)
	}
	_, err = r.DescribeLogGroups(ctx, &cloudwatchlogs.DescribeLogGroupsInput{LogGroupNamePattern: ptr("g3"), LogGroupNamePrefix: ptr("g")})
	r.refused(err, "InvalidParameterException", "mutually exclusive")

	arn := out.LogGroups[0].LogGroupArn
	_, err = r.TagResource(ctx, &cloudwatchlogs.TagResourceInput{ResourceArn: arn, Tags: map[string]string{"a": "1"}})
	r.must(err)
	_, err = r.UntagResource(ctx, &cloudwatchlogs.UntagResourceInput{ResourceArn: arn, TagKeys: []string{"n"}})
	r.must(err)
	//lint:ignore SA1019 old clients call it
	_, err = r.TagLogGroup(ctx, &cloudwatchlogs.TagLogGroupInput{LogGroupName: ptr("g3"), Tags: map[string]string{"b": "2"}})
	r.must(err)
	tags, err := r.ListTagsForResource(ctx, &cloudwatchlogs.ListTagsForResourceInput{ResourceArn: arn})
	r.must(err)
	if fmt.Sprint(tags.Tags) != "map[a:1 b:2]" {
		t.Error(tags.Tags)
	}
	//lint:ignore SA1019 old clients call it
	old, err := r.ListTagsLogGroup(ctx, &cloudwatchlogs.ListTagsLogGroupInput{LogGroupName: ptr("g2")})
	r.must(err)
	if fmt.Sprint(old.Tags) != "map[n:2]" {
		t.Error(old.Tags)
	}
	list, err := r.ListLogGroups(ctx, &cloudwatchlogs.ListLogGroupsInput{LogGroupNamePattern: ptr("^g1x|g-4|g41")})
	r.must(err)
	if len(list.LogGroups) != 0 {
		t.Errorf("%+v", list.LogGroups)
	}

	_, err = r.PutLogGroupDeletionProtection(ctx, &cloudwatchlogs.PutLogGroupDeletionProtectionInput{LogGroupIdentifier: ptr("g3"), DeletionProtectionEnabled: ptr(true)})
	r.must(err)
	_, err = r.DeleteLogGroup(ctx, &cloudwatchlogs.DeleteLogGroupInput{LogGroupName: ptr("g3")})
	r.refused(err, "InvalidOperationException", "protected")
	_, err = r.DeleteLogGroup(ctx, &cloudwatchlogs.DeleteLogGroupInput{LogGroupName: ptr("g2")})
	r.must(err)
	_, err = r.DeleteLogGroup(ctx, &cloudwatchlogs.DeleteLogGroupInput{LogGroupName: ptr("g2")})
	r.refused(err, "ResourceNotFoundException", "The specified log group does not exist.")
}

func TestStreams(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	r.make("a", "b", "c")
	_, err := r.CreateLogStream(ctx, &cloudwatchlogs.CreateLogStreamInput{LogGroupName: ptr(group), LogStreamName: ptr("a")})
	r.refused(err, "ResourceAlreadyExistsException", "The specified log stream already exists")
	for i, s := range []string{"b", "c", "a"} {
		_, err := r.put(s, time.Hour-time.Duration(i)*time.Minute, "x", "y")
		r.must(err)
	}
	for _, c := range []struct {
		in   cloudwatchlogs.DescribeLogStreamsInput
		want string
	}{
		{cloudwatchlogs.DescribeLogStreamsInput{}, "abc"},
		{cloudwatchlogs.DescribeLogStreamsInput{Descending: ptr(true)}, "cba"},
		{cloudwatchlogs.DescribeLogStreamsInput{OrderBy: "LastEventTime"}, "bca"},
		{cloudwatchlogs.DescribeLogStreamsInput{OrderBy: "LastEventTime", Descending: ptr(true)}, "acb"},
		{cloudwatchlogs.DescribeLogStreamsInput{LogStreamNamePrefix: ptr("b")}, "b"},
	} {
		c.in.LogGroupName, c.in.Limit = ptr(group), ptr(int32(2))
		got := ""
		for p := cloudwatchlogs.NewDescribeLogStreamsPaginator(r, &c.in); p.HasMorePages(); {
			page, err := p.NextPage(ctx)
			r.must(err)
			for _, s := range page.LogStreams {
				got += *s.LogStreamName
			}
		}
		if got != c.want {
			t.Errorf("%+v: %s, want %s", c.in, got, c.want)
		}
	}
	out, err := r.DescribeLogStreams(ctx, &cloudwatchlogs.DescribeLogStreamsInput{LogGroupIdentifier: ptr("arn:aws:logs:us-east-1:000000000000:log-group:" + group), LogStreamNamePrefix: ptr("a")})
	r.must(err)
	if s := out.LogStreams[0]; *s.LastEventTimestamp-*s.FirstEventTimestamp != 1 || *s.LastIngestionTime != r.now.UnixMilli() || *s.Arn != "arn:aws:logs:us-east-1:000000000000:log-group:/aws/lambda/f:log-stream:a" {
		t.Errorf("%+v", s)
	}
	_, err = r.DescribeLogStreams(ctx, &cloudwatchlogs.DescribeLogStreamsInput{LogGroupIdentifier: ptr(group), LogGroupName: ptr(group)})
	r.refused(err, "ValidationException", "LogGroup name and LogGroup ARN are mutually exclusive parameters.")
	_, err = r.DeleteLogStream(ctx, &cloudwatchlogs.DeleteLogStreamInput{LogGroupName: ptr(group), LogStreamName: ptr("a")})
	r.must(err)
	_, err = r.GetLogEvents(ctx, &cloudwatchlogs.GetLogEventsInput{LogGroupName: ptr(group), LogStreamName: ptr("a")})
	r.refused(err, "ResourceNotFoundException", "The specified log stream does not exist.")
}

func TestPutLogEvents(t *testing.T) {
	r := newRig(t)
	r.make("s")
	if _, err := r.put("s", time.Minute, "a", "b"); err != nil {
		t.Fatal(err)
	}
	_, err := r.put("none", 0, "a")
	r.refused(err, "ResourceNotFoundException", "The specified log stream does not exist.")
	if !slices.Equal(r.lines, []string{"a", "b"}) { // what is kept, and nothing else
		t.Errorf("lines %q", r.lines)
	}
	at := func(d ...time.Duration) (*cloudwatchlogs.PutLogEventsOutput, error) {
		in := &cloudwatchlogs.PutLogEventsInput{LogGroupName: ptr(group), LogStreamName: ptr("s"), SequenceToken: ptr("whatever")}
		for _, d := range d {
			in.LogEvents = append(in.LogEvents, types.InputLogEvent{Timestamp: ptr(r.now.Add(d).UnixMilli()), Message: ptr("x")})
		}
		return r.PutLogEvents(t.Context(), in)
	}
	_, err = at(0, -1*time.Second)
	r.refused(err, "InvalidParameterException", "Log events in a single PutLogEvents request must be in chronological order.")
	_, err = at(-25*time.Hour, 0)
	r.refused(err, "InvalidParameterException", "24 hours")
	_, err = r.put("s", 0, strings.Repeat("x", 1<<20-25))
	r.refused(err, "InvalidParameterException", "Upload too large: 1048577 bytes exceeds limit of 1048576")
	if _, err := r.put("s", 0, strings.Repeat("x", 1<<20-26)); err != nil {
		t.Error(err)
	}
	out, err := at(time.Hour, 3*time.Hour, 4*time.Hour)
	if err != nil || *out.RejectedLogEventsInfo.TooNewLogEventStartIndex != 1 || *out.NextSequenceToken == "" {
		t.Errorf("%+v %v", out.RejectedLogEventsInfo, err)
	}
	out, err = at(-14*24*time.Hour-2*time.Second, -14*24*time.Hour-time.Second, -14*24*time.Hour)
	if err != nil || *out.RejectedLogEventsInfo.TooOldLogEventEndIndex != 2 {
		t.Errorf("%+v %v", out.RejectedLogEventsInfo, err)
	}
	_, err = r.PutRetentionPolicy(t.Context(), &cloudwatchlogs.PutRetentionPolicyInput{LogGroupName: ptr(group), RetentionInDays: ptr(int32(3))})
	r.must(err)
	out, err = at(-4*24*time.Hour, -73*time.Hour)
	if err != nil || *out.RejectedLogEventsInfo.ExpiredLogEventEndIndex != 2 || out.RejectedLogEventsInfo.TooOldLogEventEndIndex != nil {
		t.Errorf("%+v %v", out.RejectedLogEventsInfo, err)
	}
	if st, err := r.store.Stream(logstore.GroupName{Account: "000000000000", Region: "us-east-1", Name: group}, "s"); err != nil || st.Events != 2+1+1+1 {
		t.Errorf("%+v %v", st, err)
	}
}

func texts(events []types.OutputLogEvent) string {
	var list []string
	for _, e := range events {
		list = append(list, *e.Message)
	}
	return strings.Join(list, " ")
}

func TestGetLogEvents(t *testing.T) {
	r := newRig(t)
	r.make("s")
	ctx := t.Context()
	_, err := r.put("s", time.Minute, "0", "1", "2", "3", "4", "5", "6")
	r.must(err)
	get := func(token *string, head bool) *cloudwatchlogs.GetLogEventsOutput {
		t.Helper()
		out, err := r.GetLogEvents(ctx, &cloudwatchlogs.GetLogEventsInput{LogGroupName: ptr(group), LogStreamName: ptr("s"), Limit: ptr(int32(3)), StartFromHead: &head, NextToken: token})
		r.must(err)
		return out
	}
	want := func(out *cloudwatchlogs.GetLogEventsOutput, s string) {
		t.Helper()
		if texts(out.Events) != s {
			t.Errorf("got %s, want %s", texts(out.Events), s)
		}
	}
	// To the end, and on when more comes.
	p := get(nil, true)
	want(p, "0 1 2")
	p = get(p.NextForwardToken, true)
	want(p, "3 4 5")
	back := p.NextBackwardToken
	p = get(p.NextForwardToken, true)
	want(p, "6")
	end := *p.NextForwardToken
	p = get(&end, true)
	want(p, "")
	if *p.NextForwardToken != end {
		t.Error("the token changes at the end")
	}
	_, err = r.put("s", time.Second, "7")
	r.must(err)
	want(get(&end, true), "7")
	want(get(back, true), "0 1 2")
	// From the latest to the beginning.
	p = get(nil, false)
	want(p, "5 6 7")
	p = get(p.NextBackwardToken, false)
	want(p, "2 3 4")
	p = get(p.NextBackwardToken, false)
	want(p, "0 1")
	begin := *p.NextBackwardToken
	p = get(&begin, false)
	want(p, "")
	if *p.NextBackwardToken != begin {
		t.Error("the token changes at the beginning")
	}
	want(get(p.NextForwardToken, false), "0 1 2")

	for _, token := range []string{"invalid-token", "f/" + strings.Repeat("1", 56) + "/s", "f/39/s", end[2:]} {
		_, err := r.GetLogEvents(ctx, &cloudwatchlogs.GetLogEventsInput{LogGroupName: ptr(group), LogStreamName: ptr("s"), NextToken: &token})
		r.refused(err, "InvalidParameterException", "The specified nextToken is invalid.")
	}
	_, err = r.GetLogEvents(ctx, &cloudwatchlogs.GetLogEventsInput{LogGroupName: ptr(group), LogStreamName: ptr("s"), Limit: ptr(int32(10001))})
	r.refused(err, "InvalidParameterException", "1 validation error detected: Value '10001' at 'limit' failed to satisfy constraint: Member must have value less than or equal to 10000")
	// Times: from and including the start, up to and without the end.
	first := r.now.Add(-time.Minute).UnixMilli()
	out, err := r.GetLogEvents(ctx, &cloudwatchlogs.GetLogEventsInput{LogGroupName: ptr(group), LogStreamName: ptr("s"), StartTime: ptr(first + 1), EndTime: ptr(first + 3)})
	r.must(err)
	want(out, "1 2")
	pages, all := 0, ""
	for p := cloudwatchlogs.NewGetLogEventsPaginator(r, &cloudwatchlogs.GetLogEventsInput{LogGroupName: ptr(group), LogStreamName: ptr("s"), StartFromHead: ptr(true), Limit: ptr(int32(3))},
		func(o *cloudwatchlogs.GetLogEventsPaginatorOptions) { o.StopOnDuplicateToken = true }); p.HasMorePages(); pages++ {
		page, err := p.NextPage(ctx)
		r.must(err)
		all += texts(page.Events) + " "
	}
	if all != "0 1 2 3 4 5 6 7  " {
		t.Errorf("%q in %d pages", all, pages)
	}
}

func TestFilterLogEvents(t *testing.T) {
	r := newRig(t)
	r.make("a", "b", "other")
	ctx := t.Context()
	for i := range 10 {
		_, err := r.put([]string{"a", "b"}[i%2], time.Minute-time.Duration(i)*time.Second, fmt.Sprint("n", i), fmt.Sprintf(`{"n":%d}`, i))
		r.must(err)
	}
	filter := func(in cloudwatchlogs.FilterLogEventsInput) (string, int) {
		t.Helper()
		in.LogGroupName = ptr(group)
		var got, ids []string
		pages := 0
		for p := cloudwatchlogs.NewFilterLogEventsPaginator(r, &in); p.HasMorePages(); pages++ {
			page, err := p.NextPage(ctx)
			r.must(err)
			for _, e := range page.Events {
				got = append(got, *e.Message)
				ids = append(ids, *e.EventId)
				if len(*e.EventId) != 56 || *e.IngestionTime != r.now.UnixMilli() {
					t.Errorf("%+v", e)
				}
			}
		}
		if slices.Sort(ids); len(slices.Compact(ids)) != len(got) {
			t.Error("ids are not unique")
		}
		return strings.Join(got, " "), pages
	}
	if got, pages := filter(cloudwatchlogs.FilterLogEventsInput{FilterPattern: ptr("?n3 ?n4 ?n5"), Limit: ptr(int32(2))}); got != "n3 n4 n5" || pages != 2 {
		t.Error(got, pages)
	}
	if got, _ := filter(cloudwatchlogs.FilterLogEventsInput{FilterPattern: ptr("{ $.n >= 8 }")}); got != `{"n":8} {"n":9}` {
		t.Error(got)
	}
	if got, _ := filter(cloudwatchlogs.FilterLogEventsInput{FilterPattern: ptr("%n[0-3]%"), LogStreamNames: []string{"b"}}); got != "n1 n3" {
		t.Error(got)
	}
	if got, _ := filter(cloudwatchlogs.FilterLogEventsInput{FilterPattern: ptr("n2"), LogStreamNamePrefix: ptr("o")}); got != "" {
		t.Error(got)
	}
	at := r.now.Add(-time.Minute).UnixMilli()
	if got, _ := filter(cloudwatchlogs.FilterLogEventsInput{StartTime: ptr(at + 1), EndTime: ptr(at + 1000)}); got != `{"n":0} n1` {
		t.Error(got)
	}
	_, err := r.FilterLogEvents(ctx, &cloudwatchlogs.FilterLogEventsInput{LogGroupName: ptr(group), FilterPattern: ptr("{ $.x")})
	r.refused(err, "InvalidParameterException", "Invalid filter pattern")
	_, err = r.FilterLogEvents(ctx, &cloudwatchlogs.FilterLogEventsInput{LogGroupName: ptr(group), NextToken: ptr("invalid-token")})
	r.refused(err, "InvalidParameterException", "The specified nextToken is invalid.")
	_, err = r.FilterLogEvents(ctx, &cloudwatchlogs.FilterLogEventsInput{LogGroupName: ptr(group), LogStreamNames: []string{"none"}})
	r.refused(err, "ResourceNotFoundException", "log stream")
	_, err = r.FilterLogEvents(ctx, &cloudwatchlogs.FilterLogEventsInput{})
	r.refused(err, "InvalidParameterException", "logGroupName")

	test, err := r.TestMetricFilter(ctx, &cloudwatchlogs.TestMetricFilterInput{FilterPattern: ptr("[a, b > 1]"), LogEventMessages: []string{"x 1", "x 2"}})
	r.must(err)
	if len(test.Matches) != 1 || test.Matches[0].EventNumber != 2 || test.Matches[0].ExtractedValues["$b"] != "2" {
		t.Errorf("%+v", test.Matches)
	}
}

func TestStartLiveTail(t *testing.T) {
	r := newRig(t)
	r.make("s")
	ctx := t.Context()
	arn := "arn:aws:logs:us-east-1:000000000000:log-group:" + group
	_, err := r.StartLiveTail(ctx, &cloudwatchlogs.StartLiveTailInput{LogGroupIdentifiers: []string{arn + "x"}})
	r.refused(err, "ResourceNotFoundException", "log group")
	out, err := r.StartLiveTail(ctx, &cloudwatchlogs.StartLiveTailInput{LogGroupIdentifiers: []string{arn}, LogEventFilterPattern: ptr("-secret")})
	r.must(err)
	stream := out.GetStream()
	defer stream.Close()
	if e, ok := (<-stream.Events()).(*types.StartLiveTailResponseStreamMemberSessionStart); !ok || e.Value.LogGroupIdentifiers[0] != arn || *e.Value.SessionId == "" {
		t.Fatalf("%+v", e)
	}
	sink := r.store.Sink(logstore.GroupName{Account: "000000000000", Region: "us-east-1", Name: group}, "s", telemetry.Format{})
	for _, l := range []string{"one", "secret", "two"} {
		sink.Take(telemetry.Event{Time: r.now, Type: telemetry.TypeFunctionLine, Record: telemetry.Line(l)})
	}
	got := ""
	for e := range stream.Events() {
		u, ok := e.(*types.StartLiveTailResponseStreamMemberSessionUpdate)
		if !ok || u.Value.SessionMetadata.Sampled {
			t.Fatalf("%+v", e)
		}
		for _, l := range u.Value.SessionResults {
			got += *l.Message
			if *l.LogStreamName != "s" || *l.Timestamp != r.now.UnixMilli() || *l.LogGroupIdentifier != "000000000000:"+group {
				t.Errorf("%+v", l)
			}
		}
		if strings.Contains(got, "two") {
			break
		}
	}
	if got != "one\ntwo\n" {
		t.Errorf("%q", got)
	}
	close(r.done)
	for range stream.Events() {
	}
	var stopped *types.SessionStreamingException
	if err := stream.Err(); !errors.As(err, &stopped) {
		t.Errorf("%v", err)
	}
}

// TestOthers holds that what is not offered answers an error.
func TestOthers(t *testing.T) {
	served, missing := logs.New(logs.Config{}).Operations()
	if len(served) < 24 || len(missing) == 0 {
		t.Fatal(len(served), len(missing))
	}
	r := newRig(t)
	mux := aws.NewMux(aws.NewKeyStore(), aws.Options{Auth: aws.Any}, logs.New(logs.Config{Store: r.store}))
	for _, op := range missing {
		req := httptest.NewRequest("POST", "/", strings.NewReader("{}"))
		req.Header.Set("X-Amz-Target", "Logs_20140328."+op)
		req.Header.Set("Content-Type", "application/x-amz-json-1.1")
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, req)
		if w.Code != 501 {
			t.Errorf("%s: %d %s", op, w.Code, w.Body)
		}
	}
}

// TestResource holds what policies are asked about.
func TestResource(t *testing.T) {
	s := logs.New(logs.Config{})
	for body, want := range map[string]string{
		`{"logGroupName":"g","logStreamName":"s"}`:                                   "arn:aws:logs:eu-west-1:111122223333:log-group:g:log-stream:s",
		`{"logGroupIdentifier":"arn:aws:logs:eu-west-1:111122223333:log-group:g:*"}`: "arn:aws:logs:eu-west-1:111122223333:log-group:g:log-stream:",
		`{"resourceArn":"arn:aws:logs:eu-west-1:111122223333:log-group:g"}`:          "arn:aws:logs:eu-west-1:111122223333:log-group:g",
		`{}`: "arn:aws:logs:eu-west-1:111122223333:log-group::log-stream:",
		`x`:  "*",
	} {
		r := &aws.Request{Region: "eu-west-1", Identity: aws.Identity{Account: "111122223333"}, Body: []byte(body)}
		if got := s.Resource(r); got != want {
			t.Errorf("%s: %s, want %s", body, got, want)
		}
	}
}
