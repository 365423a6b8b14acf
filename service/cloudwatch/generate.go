package cloudwatch

//go:generate go run ../../aws/model/gen -model ../../aws/model/cloudwatch.json -package cloudwatch -operations GetMetricData,GetMetricStatistics,ListMetrics,PutMetricData -o shapes_gen.go
