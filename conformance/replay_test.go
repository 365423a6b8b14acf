package conformance

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	sdkaws "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/service/lambda"
)

// A row is one recorded answer.
type row struct {
	operation, condition string
	status               int
	code, message, extra string
}

func (r row) name() string { return r.operation + ": " + r.condition }

func readRows(t *testing.T) []row {
	t.Helper()
	b, err := os.ReadFile("testdata/lambda-errors.tsv")
	if err != nil {
		t.Fatal(err)
	}
	served, _ := lambda.Operations()
	var rows []row
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n")[1:] {
		f := strings.Split(line, "\t")
		op := strings.TrimPrefix(f[0], "lambda.")
		if !slices.Contains(served, op) {
			continue
		}
		status, err := strconv.Atoi(f[2])
		if err != nil {
			t.Fatalf("status of %q: %v", line, err)
		}
		rows = append(rows, row{op, f[1], status, f[3], strings.ReplaceAll(f[4], `\n`, "\n"), f[5]})
	}
	return rows
}

// A request is what provoked a row.
type request struct {
	method, path string
	query        url.Values
	body         map[string]any
	raw          []byte // instead of body
	// vars are what stands for placeholders in the message.
	vars map[string]string
	// after runs when the answer is there.
	after func()
}

// A lab is a fresh account to provoke rows in.
type lab struct {
	*testing.T
	*server
}

type obj = map[string]any

func (l *lab) do(region string, r request) (status int, header http.Header, body []byte) {
	l.Helper()
	raw := r.raw
	if raw == nil && r.body != nil {
		var err error
		if raw, err = json.Marshal(r.body); err != nil {
			l.Fatal(err)
		}
	}
	u := l.URL + r.path
	if len(r.query) > 0 {
		u += "?" + strings.ReplaceAll(r.query.Encode(), "+", "%20")
	}
	req, err := http.NewRequestWithContext(l.Context(), r.method, u, bytes.NewReader(raw))
	if err != nil {
		l.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	admin := l.keys.Admin()
	creds := sdkaws.Credentials{AccessKeyID: admin.AccessKeyID, SecretAccessKey: admin.SecretAccessKey}
	if err := v4.NewSigner().SignHTTP(context.Background(), creds, req, hex.EncodeToString(sum[:]), "lambda", region, time.Now()); err != nil {
		l.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		l.Fatal(err)
	}
	defer res.Body.Close()
	if body, err = io.ReadAll(res.Body); err != nil {
		l.Fatal(err)
	}
	return res.StatusCode, res.Header, body
}

// must is do for preparations.
func (l *lab) must(region string, r request) obj {
	l.Helper()
	status, _, body := l.do(region, r)
	if status/100 != 2 {
		l.Fatalf("preparing: %s %s: %d %s", r.method, r.path, status, body)
	}
	var v obj
	if len(body) > 0 {
		if err := json.Unmarshal(body, &v); err != nil {
			l.Fatal(err)
		}
	}
	return v
}

const (
	functionsPath = "/2015-03-31/functions"
	layersPath    = "/2018-10-31/layers"
)

func (l *lab) code() []byte { return zipOf(l.T, map[string]string{"bootstrap": "x"}) }

// createRequest is a good CreateFunction, changed by the given members.
func (l *lab) createRequest(change obj) request {
	body := obj{"FunctionName": "fn", "Runtime": "provided.al2023", "Handler": "h", "Role": role, "Code": obj{"ZipFile": l.code()}}
	for k, v := range change {
		body[k] = v
	}
	return request{method: "POST", path: functionsPath, body: body}
}

// function makes a function that is ready.
func (l *lab) function(name string) {
	l.Helper()
	l.must(region, l.createRequest(obj{"FunctionName": name}))
	l.ready(name)
}

// image makes a function of a container image that is ready.
func (l *lab) image(name string) {
	l.Helper()
	l.must(region, request{method: "POST", path: functionsPath, body: obj{"FunctionName": name, "Role": role, "PackageType": "Image", "Code": obj{"ImageUri": "registry/repo:tag"}}})
	l.ready(name)
}

// ready waits until a function has no change under way.
func (l *lab) ready(name string) {
	l.Helper()
	for range 1000 {
		got := l.must(region, request{method: "GET", path: functionsPath + "/" + name + "/configuration"})
		if got["LastUpdateStatus"] == "Successful" {
			return
		}
		time.Sleep(time.Millisecond)
	}
	l.Fatalf("function %s does not become ready", name)
}

// layer publishes a version and returns its ARN.
func (l *lab) layer(region, name string) string {
	l.Helper()
	v := l.must(region, request{method: "POST", path: layersPath + "/" + name + "/versions", body: obj{"Content": obj{"ZipFile": l.code()}}})
	return v["LayerVersionArn"].(string)
}

// on addresses an operation to a function.
func on(operation, name, qualifier string) request {
	r := request{path: functionsPath + "/" + url.PathEscape(name), query: url.Values{}, vars: map[string]string{}}
	r.path = strings.ReplaceAll(strings.ReplaceAll(r.path, ":", "%3A"), "$", "%24")
	if qualifier != "" {
		r.query.Set("Qualifier", qualifier)
	}
	switch operation {
	case "GetFunction":
		r.method = "GET"
	case "GetFunctionConfiguration":
		r.method, r.path = "GET", r.path+"/configuration"
	case "DeleteFunction":
		r.method = "DELETE"
	case "Invoke":
		r.method, r.path, r.raw = "POST", r.path+"/invocations", []byte("{}")
	case "GetFunctionCodeSigningConfig":
		r.method, r.path = "GET", strings.Replace(r.path, functionsPath, "/2020-06-30/functions", 1)+"/code-signing-config"
	case "GetFunctionConcurrency":
		r.method, r.path = "GET", strings.Replace(r.path, functionsPath, "/2019-09-30/functions", 1)+"/concurrency"
	case "UpdateFunctionCode":
		r.method, r.path = "PUT", r.path+"/code"
	case "UpdateFunctionConfiguration":
		r.method, r.path = "PUT", r.path+"/configuration"
	}
	return r
}

const arnPrefix = "arn:aws:lambda:" + region + ":" + account + ":"

// spellings are the names and qualifiers of the recorded series "function name and
// qualifier validation".
func spelling(id, operation string) (name, qualifier string) {
	long := strings.Repeat("a", 170)
	switch id {
	case "function name is single invalid":
		return "*", ""
	case "invalid characters in function name":
		return "my-function!", ""
	case "invalid characters in qualifier":
		return "my-function", "invalid!"
	case "function name too long":
		return strings.Repeat("a", 65), ""
	case "function name too long and invalid region":
		return "arn:aws:lambda:invalid-region:" + account + ":function:my-function" + long, ""
	case "full arn and qualifier too long and invalid region":
		return "arn:aws:lambda:invalid-region:" + account + ":function:my-function-" + long, strings.Repeat("a", 129)
	case "full arn with multiple qualifiers":
		return arnPrefix + "function:my-function:1:2", ""
	case "function name and qualifier too long", "qualifier too long1":
		return "my-function", strings.Repeat("a", 65)
	case "qualifier too long", "qualifier too long0":
		return "my-function", strings.Repeat("a", 129)
	case "latest version with additional qualifier":
		if operation == "CreateFunction" {
			return arnPrefix + "function:my-function:$LATEST", "1"
		}
		return "my-function:$LATEST", "1"
	case "lowercase latest qualifier":
		if operation == "CreateFunction" {
			return arnPrefix + "function:my-function", "$latest"
		}
		return "my-function", "$latest"
	case "misspelled latest in arn":
		return arnPrefix + "function:my-function:$LATES", ""
	case "missing account id in arn":
		return "arn:aws:lambda:" + region + "::function:my-function", ""
	case "missing region in arn":
		return "arn:aws:lambda::" + account + ":function:my-function", ""
	case "non lambda arn":
		return "arn:aws:ec2:" + region + ":" + account + ":instance:i-1234567890abcdef0", ""
	case "partial arn with extra qualifier":
		return "function:my-function:$LATEST:extra", ""
	case "invalid region in arn":
		return "arn:aws:lambda:invalid-region:" + account + ":function:my-function", ""
	case "invalid account id in partial arn":
		return "invalid-account:function:my-function", ""
	case "incomplete arn":
		return arnPrefix + "function", ""
	}
	return "", ""
}

var seriesPattern = regexp.MustCompile(`^function name and qualifier validation\[(.*)-(?:create function|get function|delete function|invoke)\]`)

// provoke prepares the account and returns the request behind a row.
func (l *lab) provoke(r row) (request, bool) {
	if m := seriesPattern.FindStringSubmatch(r.condition); m != nil {
		name, qualifier := spelling(m[1], r.operation)
		if name == "" {
			return request{}, false
		}
		if r.operation == "CreateFunction" {
			if qualifier != "" {
				name += ":" + qualifier
			}
			return l.createRequest(obj{"FunctionName": name}), true
		}
		return on(r.operation, name, qualifier), true
	}
	condition, _, _ := strings.Cut(r.condition, " | ")
	// The series that are the same for several operations.
	series, detail, _ := strings.Cut(condition, " / ")
	switch {
	case strings.HasPrefix(series, "ops with arn qualifier mismatch") && detail == "match exception":
		return on(r.operation, arnPrefix+"function:some-function:$LATEST", "$LATEST"), true
	case strings.HasPrefix(series, "ops with arn qualifier mismatch"):
		return on(r.operation, arnPrefix+"function:some-function:1", "$LATEST"), true
	case strings.HasPrefix(series, "ops on nonexisting fn"):
		return with(on(r.operation, "nonexistent", ""), "function", "nonexistent"), true
	case strings.HasPrefix(series, "ops on nonexisting version"):
		l.function("fn")
		return with(on(r.operation, "fn", "1221"), "function", "fn"), true
	case strings.HasPrefix(series, "get function wrong region"):
		return with(on(r.operation, "arn:aws:lambda:eu-central-1:"+account+":function:fn", ""), "wrong-region", "eu-central-1"), true
	case r.operation == "ListTags" || r.operation == "TagResource" || r.operation == "UntagResource":
		if arn, name, ok := taggedARN(series, detail); ok {
			return with(tag(r.operation, arn, obj{"A": "B"}), "resource-name", name), true
		}
	case strings.HasPrefix(series, "create deprecated function runtime"):
		runtime := series[strings.IndexByte(series, '[')+1 : len(series)-1]
		return l.createRequest(obj{"Runtime": runtime}), true
	}
	for _, m := range []map[string]func(*lab) request{provocations, versionProvocations, policyProvocations, concurrencyProvocations} {
		if f := m[r.operation+": "+condition]; f != nil {
			return f(l), true
		}
		if f := m[r.operation+": "+r.condition]; f != nil {
			return f(l), true
		}
	}
	return request{}, false
}

func with(r request, name, value string) request {
	if r.vars == nil {
		r.vars = map[string]string{}
	}
	r.vars[name] = value
	return r
}

func updateConfig(change obj) func(*lab) request {
	return func(l *lab) request {
		l.function("fn")
		r := with(on("UpdateFunctionConfiguration", "fn", ""), "function", "fn")
		r.body = change
		return r
	}
}

func creation(change obj) func(*lab) request {
	return func(l *lab) request { return l.createRequest(change) }
}

var large = strings.Repeat("x", 4096)

var provocations = map[string]func(*lab) request{
	"CreateFunction: function arns / function arn other account exc": creation(obj{"FunctionName": "arn:aws:lambda:" + region + ":123456789012:function:fn"}),
	"CreateFunction: function arns / function arn other region exc":  creation(obj{"FunctionName": "arn:aws:lambda:ap-southeast-1:" + account + ":function:fn"}),
	"CreateFunction: function arns / long function name exc":         creation(obj{"FunctionName": strings.Repeat("a", 65)}),
	"CreateFunction: function arns / invalid function name exc":      creation(obj{"FunctionName": "invalid:function:name"}),
	"CreateFunction: function arns / long function arn exc": func(l *lab) request {
		name := strings.Repeat("a", 140)
		return with(l.createRequest(obj{"FunctionName": arnPrefix + "function:" + name}), "function", name)
	},
	"CreateFunction: layer function quota exception / create function with six layers": func(l *lab) request {
		var arns []string
		for i := range 6 {
			arns = append(arns, l.layer(region, "l"+strconv.Itoa(i)))
		}
		return l.createRequest(obj{"Layers": arns})
	},
	"CreateFunction: layer function exceptions / create function with layer in different region": func(l *lab) request {
		return l.createRequest(obj{"Layers": []string{l.layer("eu-west-1", "l")}})
	},
	"CreateFunction: create lambda exceptions / invalid zip exc":                     creation(obj{"Code": obj{"ZipFile": []byte("this is not a zipfile, just a random string")}}),
	"CreateFunction: create lambda exceptions / uppercase runtime exc":               creation(obj{"Runtime": "PYTHON3.9"}),
	"CreateFunction: create lambda exceptions / invalid runtime exc":                 creation(obj{"Runtime": "non-existent-runtime"}),
	"CreateFunction: create lambda exceptions / uppercase architecture":              creation(obj{"Architectures": []string{"X86_64"}}),
	"CreateFunction: create lambda exceptions / multiple architectures":              creation(obj{"Architectures": []string{"x86_64", "arm64"}}),
	"CreateFunction: create lambda exceptions / invalid role arn exc":                creation(obj{"Role": "r1"}),
	"CreateFunction: snapstart exceptions / create function invalid snapstart apply": creation(obj{"SnapStart": obj{"ApplyOn": "invalidOption"}}),
	"CreateFunction: large environment variables fails / failed create fn result": func(l *lab) request {
		return with(l.createRequest(obj{"Environment": obj{"Variables": obj{"LARGE_VAR": large}}}), "x repeated", large)
	},
	"CreateFunction: large environment fails multiple keys / failured create fn result multi key": func(l *lab) request {
		env := json.RawMessage(`{"Variables":{"SMALL_VAR":"ok","LARGE_VAR":"` + large + `"}}`) // in this order
		return with(l.createRequest(obj{"Environment": env}), "x repeated", large)
	},
	"CreateFunction: tag limits / create function invalid tags": func(l *lab) request {
		tags := map[string]string{}
		for i := range 51 {
			tags["k"+strconv.Itoa(i)] = "v"
		}
		return l.createRequest(obj{"Tags": tags})
	},
	"CreateFunction: oversized lambda / invalid param exc": func(l *lab) request {
		return l.createRequest(obj{"Code": obj{"ZipFile": zipOf(l.T, map[string]string{"big": strings.Repeat("\x00", 262144001)})}})
	},
	"CreateFunction: oversized request create lambda / invalid param exc": creation(obj{"Environment": obj{"Variables": obj{"largeKey": strings.Repeat("x", 70167211)}}}),
	"CreateFunction: oversized zipped create lambda / invalid param exc": func(l *lab) request {
		noise := make([]byte, 52428801)
		rand.Read(noise)
		return l.createRequest(obj{"Code": obj{"ZipFile": noise}})
	},
	"CreateFunction: invalid vpc config security group / create-response-invalid-format-security-group": func(l *lab) request {
		return with(l.createRequest(obj{"VpcConfig": obj{"SubnetIds": []string{"subnet-1"}, "SecurityGroupIds": []string{"bad-sg"}}}), "security_group_id_2", "bad-sg")
	},
	"CreateFunction: invalid vpc config subnet / create-response-invalid-format-subnet-id": func(l *lab) request {
		return with(l.createRequest(obj{"VpcConfig": obj{"SubnetIds": []string{"bad-subnet"}, "SecurityGroupIds": []string{"sg-1"}}}), "subnet_id_2", "bad-subnet")
	},
	"CreateFunction: invalid vpc config security group / create-response-non-existent-security-group": creation(obj{"VpcConfig": obj{"SubnetIds": []string{"subnet-1"}, "SecurityGroupIds": []string{"sg-1"}}}),
	"CreateFunction: invalid vpc config subnet / create-response-non-existent-subnet-id":              creation(obj{"VpcConfig": obj{"SubnetIds": []string{"subnet-1"}, "SecurityGroupIds": []string{"sg-1"}}}),
	"CreateFunction: lambda code location s3 errors / create-error-wrong-bucket":                      creation(obj{"Code": obj{"S3Bucket": "some-random-bucket", "S3Key": "k"}}),
	"CreateFunction: lambda code location s3 errors / create-error-wrong-key":                         creation(obj{"Code": obj{"S3Bucket": "bucket", "S3Key": "non/existent.zip"}}),
	"CreateFunction: oversized unzipped lambda / invalid param exc":                                   creation(obj{"Code": obj{"S3Bucket": "bucket", "S3Key": "k"}}),

	"DeleteFunction: delete on nonexisting version / delete function response non existent": func(*lab) request {
		return with(on("DeleteFunction", "nonexistent", ""), "function", "nonexistent")
	},
	"DeleteFunction: delete on nonexisting version / delete function response non existent with qualifier": func(*lab) request {
		return with(on("DeleteFunction", "nonexistent", "1233"), "function", "nonexistent")
	},
	"DeleteFunction: function lifecycle / delete postdelete": func(l *lab) request {
		l.function("fn")
		l.must(region, on("DeleteFunction", "fn", ""))
		return with(on("DeleteFunction", "fn", ""), "function", "fn")
	},
	"GetFunction: alias lifecycle / get function alias byarn notfound exc": func(l *lab) request {
		l.function("fn")
		return with(on("GetFunction", arnPrefix+"function:fn:aliasdoesnotexist", ""), "function", "fn")
	},
	"GetFunction: alias lifecycle / get function alias notfound exc": func(l *lab) request {
		l.function("fn")
		return with(on("GetFunction", "fn", "aliasdoesnotexist"), "function", "fn")
	},

	"DeleteLayerVersion: layer exceptions / delete layer version exc layerversion invalid version": func(*lab) request {
		return request{method: "DELETE", path: layersPath + "/l/versions/-1"}
	},
	"GetLayerVersion: layer exceptions / get layer version exc layer version doesnotexist negative": func(*lab) request {
		return request{method: "GET", path: layersPath + "/l/versions/-1"}
	},
	"GetLayerVersion: layer exceptions / get layer version exc layer version doesnotexist zero": func(*lab) request {
		return request{method: "GET", path: layersPath + "/l/versions/0"}
	},
	"GetLayerVersion: layer exceptions / get layer version exc layer doesnotexist": func(*lab) request {
		return request{method: "GET", path: layersPath + "/layerdoesnotexist/versions/1"}
	},
	"GetLayerVersion: layer exceptions / get layer version exc layer version doesnotexist 2": func(l *lab) request {
		l.layer(region, "l")
		return request{method: "GET", path: layersPath + "/l/versions/2"}
	},
	"GetLayerVersionByArn: layer exceptions / get layer version by arn exc nonexistentversion": func(l *lab) request {
		l.layer(region, "l")
		return request{method: "GET", path: layersPath, query: url.Values{"find": {"LayerVersion"}, "Arn": {arnPrefix + "layer:l:2"}}}
	},
	"GetLayerVersionByArn: layer exceptions / get layer version by arn exc invalidarn": func(l *lab) request {
		return with(request{method: "GET", path: layersPath, query: url.Values{"find": {"LayerVersion"}, "Arn": {arnPrefix + "layer:l"}}}, "name:1", "l")
	},
	"ListFunctions: list functions / list functions invalid functionversion": func(*lab) request {
		return request{method: "GET", path: functionsPath, query: url.Values{"FunctionVersion": {"invalid"}}}
	},
	"ListLayers: layer exceptions / list layers exc compatiblearchitecture invalid": func(*lab) request {
		return request{method: "GET", path: layersPath, query: url.Values{"CompatibleArchitecture": {"archdoesnotexist"}}}
	},
	"ListLayers: layer exceptions / list layers exc compatibleruntime invalid": func(*lab) request {
		return request{method: "GET", path: layersPath, query: url.Values{"CompatibleRuntime": {"runtimedoesnotexist"}}}
	},
	"PublishLayerVersion: layer exceptions / publish layer version exc partially invalid values": func(l *lab) request {
		return request{method: "POST", path: layersPath + "/l/versions", body: obj{"Content": obj{"ZipFile": l.code()},
			"CompatibleRuntimes": []string{"invalidruntime", "invalidruntime2", "nodejs20.x"}, "CompatibleArchitectures": []string{"invalidarch", "x86_64"}}}
	},
	"PublishLayerVersion: layer exceptions / publish layer version exc invalid runtime arch": func(l *lab) request {
		return request{method: "POST", path: layersPath + "/l/versions", body: obj{"Content": obj{"ZipFile": l.code()},
			"CompatibleRuntimes": []string{"invalidruntime"}, "CompatibleArchitectures": []string{"invalidarch"}}}
	},

	"UpdateFunctionCode: lambda code location s3 errors / update-error-wrong-bucket": func(l *lab) request {
		l.function("fn")
		r := on("UpdateFunctionCode", "fn", "")
		r.body = obj{"S3Bucket": "some-random-bucket", "S3Key": "k"}
		return r
	},
	"UpdateFunctionCode: lambda code location s3 errors / update-error-wrong-key": func(l *lab) request {
		l.function("fn")
		r := on("UpdateFunctionCode", "fn", "")
		r.body = obj{"S3Bucket": "bucket", "S3Key": "non/existent.zip"}
		return r
	},
	"UpdateFunctionCode: lambda zip file to image / zipfile-to-image-error": func(l *lab) request {
		l.function("fn")
		r := on("UpdateFunctionCode", "fn", "")
		r.body = obj{"ImageUri": "registry/repo:tag"}
		return r
	},
	"UpdateFunctionCode: lambda image crud / image-to-zipfile-error": func(l *lab) request {
		l.image("fn")
		r := on("UpdateFunctionCode", "fn", "")
		r.body = obj{"ZipFile": l.code()}
		return r
	},
	"UpdateFunctionCode: function revisions basic / update function revision exception": func(l *lab) request {
		l.function("fn")
		r := on("UpdateFunctionCode", "fn", "")
		r.body = obj{"ZipFile": l.code(), "RevisionId": "wrong"}
		return r
	},
	"UpdateFunctionCode: lambda concurrent code updates / update-during-in-progress-update-exc": func(l *lab) request {
		l.function("fn")
		r := with(on("UpdateFunctionCode", "fn", ""), "function", "fn")
		r.body = obj{"ZipFile": l.code()}
		r.after = l.archives.hold()
		l.must(region, r)
		return r
	},
	"UpdateFunctionConfiguration: lambda concurrent config updates / update-during-in-progress-update-exc": func(l *lab) request {
		r := updateConfig(obj{"Environment": obj{"Variables": obj{"TEST": "TEST2"}}})(l)
		r.after = l.archives.hold()
		l.must(region, r)
		return r
	},
	"UpdateFunctionConfiguration: function revisions basic / update function configuration revision exception": updateConfig(obj{"RevisionId": "wrong", "Timeout": 5}),
	"UpdateFunctionConfiguration: update lambda exceptions / uppercase runtime exc":                            updateConfig(obj{"Runtime": "PYTHON3.9"}),
	"UpdateFunctionConfiguration: update lambda exceptions / invalid runtime exc":                              updateConfig(obj{"Runtime": "non-existent-runtime"}),
	"UpdateFunctionConfiguration: update lambda exceptions / invalid role arn exc":                             updateConfig(obj{"Role": "r1"}),
	"UpdateFunctionConfiguration: layer function exceptions / add nonexistent layer version exc": func(l *lab) request {
		l.layer(region, "l")
		return with(updateConfig(obj{"Layers": []string{arnPrefix + "layer:l:9"}})(l), "name:1", "l")
	},
	"UpdateFunctionConfiguration: layer function exceptions / add nonexistent layer exc": updateConfig(obj{"Layers": []string{arnPrefix + "layer:doesnotexist:1"}}),
	"UpdateFunctionConfiguration: layer function exceptions / add layer arn without version exc": func(l *lab) request {
		return with(updateConfig(obj{"Layers": []string{arnPrefix + "layer:l"}})(l), "name:1", "l")
	},
	"UpdateFunctionConfiguration: layer function exceptions / two identical layer versions single function exc": layerVersions(1, 1),
	"UpdateFunctionConfiguration: layer function exceptions / two layer versions single function exc":           layerVersions(1, 2),
	"UpdateFunctionConfiguration: layer function exceptions / three layer versions single function exc":         layerVersions(1, 2, 3),

	"Invoke: lambda invoke payload encoding error[body-n\\x87r\\x9e\\xe9\\xb5\\xd7I\\xee\\x9bmt] / invoke function invalid payload body": invokeWith("n\x87r\x9e\xe9\xb5\xd7I\xee\x9bmt"),
	"Invoke: lambda invoke payload encoding error[message-\\x99\\xeb,j\\x07\\xa1zYh] / invoke function invalid payload message":          invokeWith("\x99\xeb,j\x07\xa1zYh"),
	"Invoke: lambda alias moving / invocation exc not existent": func(l *lab) request {
		l.function("fn")
		return with(on("Invoke", "fn", "non-existent-alias"), "function", "fn")
	},
	"Invoke: invoke exceptions / invoke function doesnotexist": func(*lab) request { return on("Invoke", "doesnotexist", "") },
	"Invoke: invalid invoke / invoke function name pattern exc": func(*lab) request {
		return on("Invoke", "arn:aws:lambda:"+region+":123400000000@function:myfn", "")
	},
}

func layerVersions(versions ...int) func(*lab) request {
	return func(l *lab) request {
		var arns []string
		for range slices.Max(versions) {
			l.layer(region, "l")
		}
		for _, v := range versions {
			arns = append(arns, arnPrefix+"layer:l:"+strconv.Itoa(v))
		}
		return with(updateConfig(obj{"Layers": arns})(l), "name:1", "l")
	}
}

func invokeWith(payload string) func(*lab) request {
	return func(l *lab) request {
		l.function("fn")
		r := on("Invoke", "fn", "")
		r.raw = []byte(payload)
		return r
	}
}

const (
	noVPC         = "VpcConfig is refused: there are no subnets or security groups to look up"
	byEnvironment = "made by the execution environment, which asserts it in its failure matrix; here functions do not run"
)

// exceptions are the rows that do not hold, by a part of their name.
var exceptions = map[string]string{
	"CreateFunction: invalid vpc config security group / create-response-non-existent-security-group": noVPC,
	"CreateFunction: invalid vpc config subnet / create-response-non-existent-subnet-id":              noVPC,
	"AddPermission: lambda permission revisions / add permission revision id doesnotmatch":            "a newer recording has the same request answered with GetPolicy in the text",
	"Invoke: RequestResponse; timeout, older payload form":                                            byEnvironment,
	"Invoke: RequestResponse; handler raised an exception":                                            byEnvironment,
	"Invoke: RequestResponse; import/init code raised":                                                byEnvironment,
	"Invoke: RequestResponse; response larger than 6 MB":                                              byEnvironment,
	"Invoke: RequestResponse; AWS_LAMBDA_EXEC_WRAPPER script missing":                                 byEnvironment,
	"Invoke: RequestResponse; runtime or handler called exit(0)":                                      byEnvironment,
	"Invoke: RequestResponse; function exceeded Timeout":                                              byEnvironment,
	"Invoke: RequestResponse; runtime process crashed or hung":                                        byEnvironment,
	"Invoke: invoke exceptions / invoke function doesnotexist | FunctionName=doesnotexist (2023)":     "a recording of 2025 has the same request answered with :$LATEST",
}

func exceptionFor(r row) (key, reason string, ok bool) {
	name := r.name()
	if strings.HasSuffix(r.message, ":function:doesnotexist") {
		name += " (2023)"
	}
	for part, reason := range exceptions {
		if strings.HasPrefix(name, part) {
			return part, reason, true
		}
	}
	return "", "", false
}

func TestRecordedErrors(t *testing.T) {
	rows := readRows(t)
	held, excepted := 0, 0
	used := map[string]bool{}
	for _, r := range rows {
		t.Run(r.name(), func(t *testing.T) {
			key, reason, isException := exceptionFor(r)
			used[key] = true
			if testing.Short() && strings.Contains(r.condition, "oversized") {
				t.Skip("moves a hundred megabytes")
			}
			l := &lab{t, newServer(t, aws.Options{})}
			req, ok := l.provoke(r)
			if !ok && isException {
				excepted++
				return
			}
			if !ok {
				t.Fatal("nothing provokes this row: add it to provocations, or to exceptions with a reason")
			}
			status, header, body := l.do(region, req)
			if req.after != nil {
				req.after()
			}
			differences := compare(r, req.vars, status, header, body)
			switch {
			case isException && len(differences) == 0:
				t.Errorf("holds now: delete it from exceptions (%s)", reason)
			case isException:
				excepted++
			case len(differences) > 0:
				t.Errorf("%s\nanswer: %s", strings.Join(differences, "\n"), body)
			default:
				held++
			}
		})
	}
	for key := range exceptions {
		if !used[key] {
			t.Errorf("exception %q is of no row", key)
		}
	}
	t.Logf("%d rows of the operations served: %d hold, %d are excepted", len(rows), held, excepted)
}

var lengthPlaceholder = regexp.MustCompile(`<a:len\((\d+)\)>`)

// compare returns how an answer differs from a row.
func compare(r row, vars map[string]string, status int, header http.Header, body []byte) (differences []string) {
	differ := func(what, got, want string) {
		if got != want {
			differences = append(differences, what+": got "+strconv.Quote(got)+"\nwant "+strconv.Quote(want))
		}
	}
	want := strings.NewReplacer("<partition>", "aws", "<region>", region, "<account>", account).Replace(r.message)
	for name, value := range vars {
		want = strings.ReplaceAll(want, "<"+name+">", value)
	}
	want = lengthPlaceholder.ReplaceAllStringFunc(want, func(s string) string {
		n, _ := strconv.Atoi(lengthPlaceholder.FindStringSubmatch(s)[1])
		return strings.Repeat("a", n)
	})
	var got struct {
		Upper  *string `json:"Message"`
		Lower  *string `json:"message"`
		Type   string
		Reason string
	}
	var members obj
	if err := json.Unmarshal(body, &members); err != nil {
		return []string{"body: " + err.Error()}
	}
	if s, ok := members["Message"].(string); ok {
		got.Upper = &s
	}
	if s, ok := members["message"].(string); ok {
		got.Lower = &s
	}
	got.Type, _ = members["Type"].(string)
	got.Reason, _ = members["Reason"].(string)

	differ("status", strconv.Itoa(status), strconv.Itoa(r.status))
	differ("code", header.Get("x-amzn-ErrorType"), r.code)
	message := ""
	if got.Upper != nil {
		message = *got.Upper
	} else if got.Lower != nil {
		message = *got.Lower
	}
	differ("message", sortEnums(message), sortEnums(want))
	for _, part := range strings.Split(r.extra, "; ") {
		key, value, _ := strings.Cut(part, "=")
		switch key {
		case "Type":
			differ("Type", got.Type, value)
		case "Reason":
			differ("Reason", got.Reason, value)
		case "Status", "StatusReason":
			have, _ := members[key].(string)
			differ(key, have, value)
		case "msgkey":
			if _, ok := members[value]; !ok {
				differences = append(differences, "the message is not in member "+value)
			}
		}
	}
	if strings.Contains(r.extra, "msgkey") && !strings.Contains(r.extra, "Type=") {
		differ("Type", got.Type, "")
	}
	if header.Get("x-amzn-RequestId") == "" {
		differences = append(differences, "no request id")
	}
	return differences
}

var enumSet = regexp.MustCompile(`enum value set: \[([^\]]*)\]`)

// sortEnums makes the arbitrary order inside enum sets comparable.
func sortEnums(s string) string {
	return enumSet.ReplaceAllStringFunc(s, func(m string) string {
		names := strings.Split(enumSet.FindStringSubmatch(m)[1], ", ")
		slices.Sort(names)
		return "enum value set: [" + strings.Join(names, ", ") + "]"
	})
}

// TestOperations: every operation of the model is answered, and none that is not
// served as a success or as a server's fault that clients would repeat.
func TestOperations(t *testing.T) {
	l := &lab{t, newServer(t, aws.Options{})}
	var model struct {
		Operations map[string]struct {
			HTTP struct{ Method, RequestURI string }
		}
	}
	b, err := os.ReadFile("../aws/model/lambda.json")
	if err == nil {
		err = json.Unmarshal(b, &model)
	}
	if err != nil {
		t.Fatal(err)
	}
	served, missing := lambda.Operations()
	if n := len(served) + len(missing); n != len(model.Operations) {
		t.Errorf("%d operations are routed, the model has %d", n, len(model.Operations))
	}
	param := regexp.MustCompile(`\{[^}]*\}`)
	for _, op := range missing {
		h := model.Operations[op].HTTP
		path, query, _ := strings.Cut(param.ReplaceAllString(h.RequestURI, "x"), "?")
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		for _, slash := range []string{"", "/"} {
			status, header, body := l.do(region, request{method: h.Method, path: path + slash, query: q})
			if status != http.StatusNotImplemented || header.Get("x-amzn-ErrorType") != "NotImplemented" || !bytes.Contains(body, []byte(op)) {
				t.Errorf("%s %s: %d %s", h.Method, path, status, body)
			}
		}
	}
	t.Logf("served %d of %d operations", len(served), len(model.Operations))
}
