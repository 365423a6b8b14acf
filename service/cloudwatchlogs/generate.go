package cloudwatchlogs

//go:generate go run ../../aws/model/gen -model ../../aws/model/logs.json -package cloudwatchlogs -operations CreateLogGroup,DeleteLogGroup,DescribeLogGroups,ListLogGroups,CreateLogStream,DeleteLogStream,DescribeLogStreams,PutRetentionPolicy,DeleteRetentionPolicy,PutLogGroupDeletionProtection,PutLogEvents,GetLogEvents,FilterLogEvents,StartLiveTail,TagResource,UntagResource,ListTagsForResource,TagLogGroup,UntagLogGroup,ListTagsLogGroup,TestMetricFilter,DescribeSubscriptionFilters,DescribeMetricFilters,DescribeResourcePolicies -o shapes_gen.go
