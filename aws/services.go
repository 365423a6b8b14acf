package aws

import (
	"net/http"
	"net/url"
	"strings"
)

// serviceInfo is what is known about an AWS service whether or not it is here.
type serviceInfo struct {
	protocol Protocol
	// variable ends AWS_ENDPOINT_URL_<variable>: the service id (clients.md
	// section 1).
	variable string
	// xmlns is the namespace of query answers.
	xmlns string
}

// knownServices are the services that clients of functions commonly talk to, by
// SigV4 name. Others are answered by what their requests look like.
var knownServices = map[string]serviceInfo{
	"acm":                  {JSON11, "ACM", ""},
	"apigateway":           {RESTJSON, "API_GATEWAY", ""},
	"appconfig":            {RESTJSON, "APPCONFIG", ""},
	"athena":               {JSON11, "ATHENA", ""},
	"autoscaling":          {Query, "AUTO_SCALING", "http://autoscaling.amazonaws.com/doc/2011-01-01/"},
	"batch":                {RESTJSON, "BATCH", ""},
	"bedrock":              {RESTJSON, "BEDROCK_RUNTIME", ""},
	"cloudcontrolapi":      {JSON10, "CLOUDCONTROL", ""},
	"cloudformation":       {Query, "CLOUDFORMATION", "http://cloudformation.amazonaws.com/doc/2010-05-15/"},
	"cloudfront":           {RESTXML, "CLOUDFRONT", ""},
	"cloudtrail":           {JSON11, "CLOUDTRAIL", ""},
	"codebuild":            {JSON11, "CODEBUILD", ""},
	"codedeploy":           {JSON11, "CODEDEPLOY", ""},
	"cognito-identity":     {JSON11, "COGNITO_IDENTITY", ""},
	"cognito-idp":          {JSON11, "COGNITO_IDENTITY_PROVIDER", ""},
	"dynamodb":             {JSON10, "DYNAMODB", ""},
	"ec2":                  {EC2Query, "EC2", ""},
	"ecr":                  {JSON11, "ECR", ""},
	"ecs":                  {JSON11, "ECS", ""},
	"eks":                  {RESTJSON, "EKS", ""},
	"elasticache":          {Query, "ELASTICACHE", "http://elasticache.amazonaws.com/doc/2015-02-02/"},
	"elasticfilesystem":    {RESTJSON, "EFS", ""},
	"elasticloadbalancing": {Query, "ELASTIC_LOAD_BALANCING_V2", "http://elasticloadbalancing.amazonaws.com/doc/2015-12-01/"},
	"es":                   {RESTJSON, "OPENSEARCH", ""},
	"events":               {JSON11, "EVENTBRIDGE", ""},
	"execute-api":          {RESTJSON, "APIGATEWAYMANAGEMENTAPI", ""},
	"firehose":             {JSON11, "FIREHOSE", ""},
	"glue":                 {JSON11, "GLUE", ""},
	"iam":                  {Query, "IAM", "https://iam.amazonaws.com/doc/2010-05-08/"},
	"iotdata":              {RESTJSON, "IOT_DATA_PLANE", ""},
	"kafka":                {RESTJSON, "KAFKA", ""},
	"kinesis":              {JSON11, "KINESIS", ""},
	"kms":                  {JSON11, "KMS", ""},
	"lambda":               {RESTJSON, "LAMBDA", ""},
	"logs":                 {JSON11, "CLOUDWATCH_LOGS", ""},
	"monitoring":           {Query, "CLOUDWATCH", "http://monitoring.amazonaws.com/doc/2010-08-01/"},
	"organizations":        {JSON11, "ORGANIZATIONS", ""},
	"rds":                  {Query, "RDS", "http://rds.amazonaws.com/doc/2014-10-31/"},
	"rds-data":             {RESTJSON, "RDS_DATA", ""},
	"redshift-data":        {JSON11, "REDSHIFT_DATA", ""},
	"route53":              {RESTXML, "ROUTE_53", ""},
	"s3":                   {RESTXML, "S3", ""},
	"sagemaker":            {JSON11, "SAGEMAKER_RUNTIME", ""},
	"scheduler":            {RESTJSON, "SCHEDULER", ""},
	"secretsmanager":       {JSON11, "SECRETS_MANAGER", ""},
	"servicediscovery":     {JSON11, "SERVICEDISCOVERY", ""},
	"ses":                  {RESTJSON, "SESV2", ""},
	"signer":               {RESTJSON, "SIGNER", ""},
	"sns":                  {Query, "SNS", "http://sns.amazonaws.com/doc/2010-03-31/"},
	"sqs":                  {JSON10, "SQS", "http://queue.amazonaws.com/doc/2012-11-05/"},
	"ssm":                  {JSON11, "SSM", ""},
	"states":               {JSON10, "SFN", ""},
	"sts":                  {Query, "STS", "https://sts.amazonaws.com/doc/2011-06-15/"},
	"timestream":           {JSON10, "TIMESTREAM_WRITE", ""},
	"wafv2":                {JSON11, "WAFV2", ""},
	"xray":                 {RESTJSON, "XRAY", ""},
}

// targetPrefixes are the services by the part of X-Amz-Target before the dot.
var targetPrefixes = map[string]string{
	"AmazonEC2ContainerRegistry_V20150921": "ecr",
	"AmazonSQS":                            "sqs",
	"AmazonSSM":                            "ssm",
	"AWSEvents":                            "events",
	"AWSStepFunctions":                     "states",
	"DynamoDB_20120810":                    "dynamodb",
	"GraniteServiceVersion20100801":        "monitoring",
	"Kinesis_20131202":                     "kinesis",
	"Logs_20140328":                        "logs",
	"secretsmanager":                       "secretsmanager",
	"TrentService":                         "kms",
}

// formVersions are the query services by the Version parameter of their requests.
var formVersions = map[string]string{
	"2010-03-31": "sns",
	"2010-05-08": "iam",
	"2010-05-15": "cloudformation",
	"2010-08-01": "monitoring",
	"2011-06-15": "sts",
	"2012-11-05": "sqs",
}

// actionOf is an operation as policies call it.
func actionOf(service, operation string) string {
	if service == "monitoring" {
		service = "cloudwatch"
	}
	return service + ":" + operation
}

// endpointVariable names the environment variable that points a client of the
// service somewhere else.
func endpointVariable(service string) string {
	if s, ok := knownServices[service]; ok {
		return "AWS_ENDPOINT_URL_" + s.variable
	}
	var b strings.Builder
	for _, c := range strings.ToUpper(service) {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			c = '_'
		}
		b.WriteRune(c)
	}
	return "AWS_ENDPOINT_URL_" + b.String()
}

// protocolOf returns the form in which the sender of r reads errors. Several
// services speak more than one protocol, so what the request looks like goes
// before what is known of the service.
func protocolOf(service string, r *http.Request) Protocol {
	info, known := knownServices[service]
	if known && info.protocol == RESTJSON {
		return RESTJSON
	}
	if r.Header.Get("Smithy-Protocol") == "rpc-v2-cbor" {
		return CBOR
	}
	contentType := r.Header.Get("Content-Type")
	if r.Header.Get("X-Amz-Target") != "" {
		if strings.HasPrefix(contentType, "application/x-amz-json-1.0") {
			return JSON10
		}
		return JSON11
	}
	form := strings.HasPrefix(contentType, "application/x-www-form-urlencoded")
	if form && (!known || info.protocol == JSON10 || info.protocol == JSON11) {
		return Query
	}
	if known {
		return info.protocol
	}
	return RESTJSON
}

// serviceOfUnsigned applies the rules for requests without a credential scope. It
// leaves the body alone: a form whose Action is in the body and whose
// Version is not in the query is taken for STS, the one query service that
// has unsigned operations.
func serviceOfUnsigned(r *http.Request) string {
	if prefix, _, ok := strings.Cut(r.Header.Get("X-Amz-Target"), "."); ok {
		if s := targetPrefixes[prefix]; s != "" {
			return s
		}
		if i := strings.LastIndexByte(prefix, '_'); i > 0 {
			prefix = prefix[:i]
		}
		return strings.ToLower(prefix)
	}
	path := r.URL.Path
	if rest, ok := strings.CutPrefix(path, "/service/"); ok && r.Header.Get("Smithy-Protocol") != "" {
		shape, _, _ := strings.Cut(rest, "/")
		if s := targetPrefixes[shape]; s != "" {
			return s
		}
		return strings.ToLower(shape)
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") && path == "/" {
		return "sts"
	}
	if strings.Contains(r.URL.RawQuery, "Action=") {
		if q, err := url.ParseQuery(r.URL.RawQuery); err == nil && q.Get("Action") != "" {
			if s := formVersions[q.Get("Version")]; s != "" {
				return s
			}
			return "sts"
		}
	}
	if hasDate(path) {
		return "lambda"
	}
	if path == "/v2" || strings.HasPrefix(path, "/v2/") {
		return "ecr"
	}
	return "s3"
}

// hasDate reports whether path begins with /yyyy-mm-dd/.
func hasDate(path string) bool {
	if len(path) < 12 || path[0] != '/' || path[11] != '/' {
		return false
	}
	for i, c := range []byte(path[1:11]) {
		if i == 4 || i == 7 {
			if c != '-' {
				return false
			}
		} else if c < '0' || c > '9' {
			return false
		}
	}
	return true
}
