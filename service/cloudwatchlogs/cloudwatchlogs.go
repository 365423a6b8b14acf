// Package cloudwatchlogs is the API of Amazon CloudWatch Logs over a log store:
// groups, streams, events with filter patterns, retention, tags and live tails
// (neighbours.md section 3). The other operations of the model are answered
// NotImplemented.
package cloudwatchlogs

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/logstore"
)

// Config is what the service is made of.
type Config struct {
	Store *logstore.Store
	// Line gets each event that clients put, once it is kept: it may hold metrics. It
	// must not wait. nil: nobody does.
	Line func(account, region, message string, at time.Time)
	// Done ends live tails when it is closed; nil: their clients do.
	Done <-chan struct{}
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// A Service is the CloudWatch Logs API; it implements aws.Service.
type Service struct {
	aws.RPC
	cfg   Config
	store *logstore.Store
}

// New returns the service.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Service{cfg: cfg, store: cfg.Store}
	words := api
	words.ValidationCode = "InvalidParameterException"
	s.RPC = aws.NewRPC(&words, map[string]aws.Handler{
		"CreateLogGroup":                aws.Operation(s.createLogGroup),
		"DeleteLogGroup":                aws.Operation(s.deleteLogGroup),
		"DescribeLogGroups":             aws.Operation(s.describeLogGroups),
		"ListLogGroups":                 aws.Operation(s.listLogGroups),
		"CreateLogStream":               aws.Operation(s.createLogStream),
		"DeleteLogStream":               aws.Operation(s.deleteLogStream),
		"DescribeLogStreams":            aws.Operation(s.describeLogStreams),
		"PutRetentionPolicy":            aws.Operation(s.putRetentionPolicy),
		"DeleteRetentionPolicy":         aws.Operation(s.deleteRetentionPolicy),
		"PutLogGroupDeletionProtection": aws.Operation(s.putLogGroupDeletionProtection),
		"PutLogEvents":                  aws.Operation(s.putLogEvents),
		"GetLogEvents":                  aws.Operation(s.getLogEvents),
		"FilterLogEvents":               aws.Operation(s.filterLogEvents),
		"StartLiveTail":                 s.startLiveTail,
		"TagResource":                   aws.Operation(s.tagResource),
		"UntagResource":                 aws.Operation(s.untagResource),
		"ListTagsForResource":           aws.Operation(s.listTagsForResource),
		"TagLogGroup":                   aws.Operation(s.tagLogGroup),
		"UntagLogGroup":                 aws.Operation(s.untagLogGroup),
		"ListTagsLogGroup":              aws.Operation(s.listTagsLogGroup),
		"TestMetricFilter":              aws.Operation(s.testMetricFilter),
		"DescribeSubscriptionFilters":   aws.Operation(s.describeSubscriptionFilters),
		"DescribeMetricFilters":         aws.Operation(s.describeMetricFilters),
		"DescribeResourcePolicies":      aws.Operation(s.describeResourcePolicies),
	})
	return s
}

// ServeAWS implements aws.Service. Names that are too long are refused in the
// service's own words.
func (s *Service) ServeAWS(w http.ResponseWriter, r *aws.Request) error {
	err := s.RPC.ServeAWS(w, r)
	var e *lambdad.Error
	if errors.As(err, &e) && tooLong.MatchString(e.Message) {
		return invalid("Invalid LogGroup or LogStream, both must have length less than or equal to 512.")
	}
	return err
}

var tooLong = regexp.MustCompile(`at '(logGroupName|logStreamName|logGroupNamePrefix|logStreamNamePrefix)' failed to satisfy constraint: Member must have length less than or equal to 512`)

// Resource implements aws.ResourceNamer. Actions on a group are about all its
// streams, as policies write it: log-group:<name>:log-stream:<stream>.
func (s *Service) Resource(r *aws.Request) string {
	var in struct {
		LogGroupName        string `json:"logGroupName"`
		LogGroupIdentifier  string `json:"logGroupIdentifier"`
		LogGroupNamePrefix  string `json:"logGroupNamePrefix"`
		LogStreamName       string `json:"logStreamName"`
		ResourceArn         string `json:"resourceArn"`
		LogGroupIdentifiers []string
	}
	if r.Body == nil || json.Unmarshal(r.Body, &in) != nil {
		return "*"
	}
	if in.ResourceArn != "" {
		return in.ResourceArn
	}
	name := cmp.Or(in.LogGroupName, in.LogGroupIdentifier)
	if r.Operation == "StartLiveTail" && len(in.LogGroupIdentifiers) > 0 {
		name = in.LogGroupIdentifiers[0]
	}
	if rest, ok := strings.CutPrefix(name, "arn:"); ok {
		_, rest, _ = strings.Cut(rest, ":log-group:")
		name = strings.TrimSuffix(rest, ":*")
	}
	g := logstore.GroupName{Account: r.Identity.Account, Region: r.Region, Name: name}
	return groupARN(g) + ":log-stream:" + in.LogStreamName
}

func invalid(format string, args ...any) error {
	return lambdad.Errorf("InvalidParameterException", format, args...)
}

// wire turns an error of the store into the service's own.
func wire(err error) error {
	switch {
	case errors.Is(err, logstore.ErrNoGroup):
		return lambdad.Errorf("ResourceNotFoundException", "The specified log group does not exist.")
	case errors.Is(err, logstore.ErrNoStream):
		return lambdad.Errorf("ResourceNotFoundException", "The specified log stream does not exist.")
	case errors.Is(err, logstore.ErrGroupExists):
		return lambdad.Errorf("ResourceAlreadyExistsException", "The specified log group already exists")
	case errors.Is(err, logstore.ErrStreamExists):
		return lambdad.Errorf("ResourceAlreadyExistsException", "The specified log stream already exists")
	case errors.Is(err, logstore.ErrProtected):
		return lambdad.Errorf("InvalidOperationException", "The log group is protected from deletion: turn the protection off first with PutLogGroupDeletionProtection.")
	case errors.Is(err, logstore.ErrClosed):
		return lambdad.Errorf("ServiceUnavailableException", "lambdad is stopping.")
	}
	return err
}

func groupARN(g logstore.GroupName) string {
	return "arn:aws:logs:" + g.Region + ":" + g.Account + ":log-group:" + g.Name
}

func named(r *aws.Request, name *string) logstore.GroupName {
	return logstore.GroupName{Account: r.Identity.Account, Region: r.Region, Name: *name}
}

// identified finds the group that a name or an identifier (a name or an ARN) means.
func identified(r *aws.Request, name, identifier *string) (logstore.GroupName, error) {
	switch {
	case name != nil && identifier != nil:
		return logstore.GroupName{}, lambdad.Errorf("ValidationException", "LogGroup name and LogGroup ARN are mutually exclusive parameters.")
	case name != nil:
		return named(r, name), nil
	case identifier == nil:
		return logstore.GroupName{}, invalid("Either logGroupName or logGroupIdentifier must be given.")
	}
	g := named(r, identifier)
	if !strings.HasPrefix(*identifier, "arn:") {
		return g, nil
	}
	parts := strings.SplitN(*identifier, ":", 7)
	if len(parts) != 7 || parts[2] != "logs" || parts[5] != "log-group" {
		return g, invalid("The log group identifier %s is neither a name nor the ARN of a log group.", *identifier)
	}
	if parts[3] != g.Region || parts[4] != g.Account {
		return g, wire(logstore.ErrNoGroup)
	}
	g.Name = strings.TrimSuffix(parts[6], ":*")
	return g, nil
}

// Tokens of lists hold the last name of the page before.

func pageToken(name string) *string {
	t := base64.RawURLEncoding.EncodeToString([]byte(name))
	return &t
}

func readPageToken(t *string) (string, error) {
	if t == nil {
		return "", nil
	}
	b, err := base64.RawURLEncoding.DecodeString(*t)
	if err != nil || len(b) == 0 {
		return "", invalid("The specified nextToken is invalid.")
	}
	return string(b), nil
}

func or[T any](p *T, v T) T {
	if p != nil {
		return *p
	}
	return v
}

func (s *Service) createLogGroup(r *aws.Request, in *CreateLogGroupRequest) (*aws.Empty, error) {
	if in.KmsKeyId != nil {
		return nil, invalid("lambdad does not encrypt log groups: leave kmsKeyId out.")
	}
	tags, err := mergeTags(nil, in.Tags)
	if err != nil {
		return nil, err
	}
	return nil, wire(s.store.CreateGroup(r.Context(), logstore.Group{
		GroupName: named(r, in.LogGroupName), Class: or(in.LogGroupClass, "STANDARD"),
		Tags: tags, Protected: or(in.DeletionProtectionEnabled, false),
	}))
}

func (s *Service) deleteLogGroup(r *aws.Request, in *DeleteLogGroupRequest) (*aws.Empty, error) {
	return nil, wire(s.store.DeleteGroup(r.Context(), named(r, in.LogGroupName)))
}

func (s *Service) createLogStream(r *aws.Request, in *CreateLogStreamRequest) (*aws.Empty, error) {
	return nil, wire(s.store.CreateStream(r.Context(), named(r, in.LogGroupName), *in.LogStreamName))
}

func (s *Service) deleteLogStream(r *aws.Request, in *DeleteLogStreamRequest) (*aws.Empty, error) {
	return nil, wire(s.store.DeleteStream(r.Context(), named(r, in.LogGroupName), *in.LogStreamName))
}

// page cuts a list that is sorted by name after the one a token names.
func page[T any](list []T, name func(T) string, after string, limit int64) (cut []T, next *string) {
	if after != "" {
		i, found := slices.BinarySearchFunc(list, after, func(e T, t string) int { return strings.Compare(name(e), t) })
		if found {
			i++
		}
		list = list[i:]
	}
	if int64(len(list)) > limit {
		list = list[:limit]
		next = pageToken(name(list[limit-1]))
	}
	return list, next
}

func (s *Service) describeLogGroups(r *aws.Request, in *DescribeLogGroupsRequest) (*DescribeLogGroupsResponse, error) {
	if in.LogGroupNamePrefix != nil && in.LogGroupNamePattern != nil {
		return nil, invalid("LogGroup name prefix and LogGroup name pattern are mutually exclusive parameters.")
	}
	after, err := readPageToken(in.NextToken)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, id := range in.LogGroupIdentifiers {
		g, err := identified(r, nil, &id)
		if err != nil {
			return nil, err
		}
		names = append(names, g.Name)
	}
	pattern := strings.ToLower(or(in.LogGroupNamePattern, ""))
	groups := s.store.Groups(r.Identity.Account, r.Region, func(name string) bool {
		return strings.HasPrefix(name, or(in.LogGroupNamePrefix, "")) && strings.Contains(strings.ToLower(name), pattern) &&
			(names == nil || slices.Contains(names, name))
	})
	if in.LogGroupClass != nil {
		groups = slices.DeleteFunc(groups, func(g logstore.Group) bool { return g.Class != *in.LogGroupClass })
	}
	out := &DescribeLogGroupsResponse{LogGroups: []LogGroup{}}
	groups, out.NextToken = page(groups, func(g logstore.Group) string { return g.Name }, after, or(in.Limit, 50))
	for _, g := range groups {
		arn := groupARN(g.GroupName)
		l := LogGroup{
			LogGroupName: &g.Name, CreationTime: &g.Created, MetricFilterCount: new(int64), Arn: new(arn + ":*"),
			StoredBytes: &g.Stored, LogGroupClass: &g.Class, LogGroupArn: &arn, DeletionProtectionEnabled: &g.Protected,
		}
		if g.Retention != 0 {
			l.RetentionInDays = new(int64(g.Retention))
		}
		out.LogGroups = append(out.LogGroups, l)
	}
	return out, nil
}

func (s *Service) listLogGroups(r *aws.Request, in *ListLogGroupsRequest) (*ListLogGroupsResponse, error) {
	if in.DataSources != nil || in.FieldIndexNames != nil {
		return nil, lambdad.Errorf("NotImplemented", "lambdad lists log groups by name, class and tags only: leave dataSources and fieldIndexNames out.")
	}
	after, err := readPageToken(in.NextToken)
	if err != nil {
		return nil, err
	}
	// A pattern is up to five texts between |, each found anywhere, after ^ at the
	// beginning.
	groups := s.store.Groups(r.Identity.Account, r.Region, func(name string) bool {
		if in.LogGroupNamePattern == nil {
			return true
		}
		for text := range strings.SplitSeq(*in.LogGroupNamePattern, "|") {
			if begin, ok := strings.CutPrefix(text, "^"); ok && strings.HasPrefix(name, begin) || !ok && strings.Contains(name, text) {
				return true
			}
		}
		return false
	})
	groups = slices.DeleteFunc(groups, func(g logstore.Group) bool {
		for _, f := range in.LogGroupTags {
			v, ok := g.Tags[or(f.Key, "")]
			if !ok || len(f.Values) > 0 && !slices.Contains(f.Values, v) {
				return true
			}
		}
		return in.LogGroupClass != nil && g.Class != *in.LogGroupClass
	})
	out := &ListLogGroupsResponse{LogGroups: []LogGroupSummary{}}
	groups, out.NextToken = page(groups, func(g logstore.Group) string { return g.Name }, after, or(in.Limit, 50))
	for _, g := range groups {
		out.LogGroups = append(out.LogGroups, LogGroupSummary{LogGroupName: &g.Name, LogGroupArn: new(groupARN(g.GroupName)), LogGroupClass: &g.Class})
	}
	return out, nil
}

func (s *Service) describeLogStreams(r *aws.Request, in *DescribeLogStreamsRequest) (*DescribeLogStreamsResponse, error) {
	g, err := identified(r, in.LogGroupName, in.LogGroupIdentifier)
	if err != nil {
		return nil, err
	}
	byTime := or(in.OrderBy, "LogStreamName") == "LastEventTime"
	if byTime && in.LogStreamNamePrefix != nil {
		return nil, invalid("Cannot order by LastEventTime with a logStreamNamePrefix.")
	}
	after, err := readPageToken(in.NextToken)
	if err != nil {
		return nil, err
	}
	streams, err := s.store.Streams(g, or(in.LogStreamNamePrefix, ""))
	if err != nil {
		return nil, wire(err)
	}
	if byTime {
		slices.SortStableFunc(streams, func(a, b logstore.Stream) int { return cmp.Compare(a.Last, b.Last) })
	}
	if or(in.Descending, false) {
		slices.Reverse(streams)
	}
	if after != "" {
		i := slices.IndexFunc(streams, func(st logstore.Stream) bool { return st.Name == after })
		if i < 0 {
			return nil, invalid("The specified nextToken is invalid.")
		}
		streams = streams[i+1:]
	}
	out := &DescribeLogStreamsResponse{LogStreams: []LogStream{}}
	if limit := or(in.Limit, 50); int64(len(streams)) > limit {
		streams = streams[:limit]
		out.NextToken = pageToken(streams[limit-1].Name)
	}
	for _, st := range streams {
		l := LogStream{
			LogStreamName: &st.Name, CreationTime: &st.Created, Arn: new(groupARN(g) + ":log-stream:" + st.Name),
			StoredBytes: new(int64), // as the service since 2019
		}
		if st.Events > 0 {
			l.FirstEventTimestamp, l.LastEventTimestamp = &st.First, &st.Last
		}
		if st.LastIngestion != 0 {
			l.LastIngestionTime, l.UploadSequenceToken = &st.LastIngestion, new(sequenceToken)
		}
		out.LogStreams = append(out.LogStreams, l)
	}
	return out, nil
}

// retentions are the days that are allowed.
var retentions = []int64{1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653}

func (s *Service) putRetentionPolicy(r *aws.Request, in *PutRetentionPolicyRequest) (*aws.Empty, error) {
	if !slices.Contains(retentions, *in.RetentionInDays) {
		text, _ := json.Marshal(retentions)
		return nil, invalid("1 validation error detected: Value '%d' at 'retentionInDays' failed to satisfy constraint: Member must satisfy enum value set: %s",
			*in.RetentionInDays, strings.ReplaceAll(string(text), ",", ", "))
	}
	return nil, s.setRetention(r, in.LogGroupName, int(*in.RetentionInDays))
}

func (s *Service) deleteRetentionPolicy(r *aws.Request, in *DeleteRetentionPolicyRequest) (*aws.Empty, error) {
	return nil, s.setRetention(r, in.LogGroupName, 0)
}

func (s *Service) setRetention(r *aws.Request, name *string, days int) error {
	return wire(s.store.UpdateGroup(r.Context(), named(r, name), func(g *logstore.Group) error {
		g.Retention = days
		return nil
	}))
}

func (s *Service) putLogGroupDeletionProtection(r *aws.Request, in *PutLogGroupDeletionProtectionRequest) (*aws.Empty, error) {
	g, err := identified(r, nil, in.LogGroupIdentifier)
	if err != nil {
		return nil, err
	}
	return nil, wire(s.store.UpdateGroup(r.Context(), g, func(g *logstore.Group) error {
		g.Protected = *in.DeletionProtectionEnabled
		return nil
	}))
}

// There can be none of the following yet.

func (s *Service) describeSubscriptionFilters(r *aws.Request, in *DescribeSubscriptionFiltersRequest) (*DescribeSubscriptionFiltersResponse, error) {
	_, err := s.store.Group(named(r, in.LogGroupName))
	return &DescribeSubscriptionFiltersResponse{SubscriptionFilters: []SubscriptionFilter{}}, wire(err)
}

func (s *Service) describeMetricFilters(r *aws.Request, in *DescribeMetricFiltersRequest) (*DescribeMetricFiltersResponse, error) {
	if in.LogGroupName != nil {
		if _, err := s.store.Group(named(r, in.LogGroupName)); err != nil {
			return nil, wire(err)
		}
	}
	return &DescribeMetricFiltersResponse{MetricFilters: []MetricFilter{}}, nil
}

func (s *Service) describeResourcePolicies(*aws.Request, *DescribeResourcePoliciesRequest) (*DescribeResourcePoliciesResponse, error) {
	return &DescribeResourcePoliciesResponse{ResourcePolicies: []ResourcePolicy{}}, nil
}

// Tags.

const maxTags = 50

// mergeTags adds tags to a copy of others.
func mergeTags(have, add map[string]string) (map[string]string, error) {
	tags := map[string]string{}
	for k, v := range have {
		tags[k] = v
	}
	for k, v := range add {
		if strings.HasPrefix(strings.ToLower(k), "aws:") {
			return nil, invalid("Tag keys that begin with aws: are reserved: %s.", k)
		}
		tags[k] = v
	}
	if len(tags) > maxTags {
		return nil, lambdad.Errorf("TooManyTagsException", "A log group has at most %d tags.", maxTags)
	}
	return tags, nil
}

func (s *Service) tag(r *aws.Request, g logstore.GroupName, add map[string]string, remove []string) error {
	return wire(s.store.UpdateGroup(r.Context(), g, func(g *logstore.Group) (err error) {
		if g.Tags, err = mergeTags(g.Tags, add); err != nil {
			return err
		}
		for _, k := range remove {
			delete(g.Tags, k)
		}
		return nil
	}))
}

func (s *Service) tags(g logstore.GroupName) (map[string]string, error) {
	v, err := s.store.Group(g)
	if v.Tags == nil {
		v.Tags = map[string]string{}
	}
	return v.Tags, wire(err)
}

// tagged finds the group of an ARN.
func tagged(r *aws.Request, arn *string) (logstore.GroupName, error) {
	if !strings.HasPrefix(*arn, "arn:") {
		return logstore.GroupName{}, invalid("The specified resource ARN is invalid: %s", *arn)
	}
	return identified(r, nil, arn)
}

func (s *Service) tagResource(r *aws.Request, in *TagResourceRequest) (*aws.Empty, error) {
	g, err := tagged(r, in.ResourceArn)
	if err != nil {
		return nil, err
	}
	return nil, s.tag(r, g, in.Tags, nil)
}

func (s *Service) untagResource(r *aws.Request, in *UntagResourceRequest) (*aws.Empty, error) {
	g, err := tagged(r, in.ResourceArn)
	if err != nil {
		return nil, err
	}
	return nil, s.tag(r, g, nil, in.TagKeys)
}

func (s *Service) listTagsForResource(r *aws.Request, in *ListTagsForResourceRequest) (*ListTagsForResourceResponse, error) {
	g, err := tagged(r, in.ResourceArn)
	if err != nil {
		return nil, err
	}
	tags, err := s.tags(g)
	return &ListTagsForResourceResponse{Tags: tags}, err
}

func (s *Service) tagLogGroup(r *aws.Request, in *TagLogGroupRequest) (*aws.Empty, error) {
	return nil, s.tag(r, named(r, in.LogGroupName), in.Tags, nil)
}

func (s *Service) untagLogGroup(r *aws.Request, in *UntagLogGroupRequest) (*aws.Empty, error) {
	return nil, s.tag(r, named(r, in.LogGroupName), nil, in.Tags)
}

func (s *Service) listTagsLogGroup(r *aws.Request, in *ListTagsLogGroupRequest) (*ListTagsLogGroupResponse, error) {
	tags, err := s.tags(named(r, in.LogGroupName))
	return &ListTagsLogGroupResponse{Tags: tags}, err
}
