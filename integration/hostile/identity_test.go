package hostile_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/lambdad/lambdad/integration/harness"
)

// inside is an http.RoundTripper whose requests are made by the probe in a
// sandbox.
type inside struct {
	s        *stage
	function string
	addr     string
}

func (i inside) RoundTrip(req *http.Request) (*http.Response, error) {
	raw, err := httputil.DumpRequestOut(req, true)
	if err != nil {
		return nil, err
	}
	r, err := i.s.attack(req.Context(), i.function, order{Do: "http", Addr: i.addr, Raw: raw, Text: "one"})
	if err != nil {
		return nil, err
	}
	if len(r.Raw) == 0 {
		return nil, fmt.Errorf("no answer inside: %s", r.Err)
	}
	return http.ReadResponse(bufio.NewReader(bytes.NewReader(r.Raw)), req)
}

// code is the AWS error code of an error.
func code(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	return fmt.Sprint(err)
}

// client speaks to the endpoint with given credentials, from inside or, with no
// transport, from the host.
func (s *stage) as(env map[string]string, transport http.RoundTripper) (*lambda.Client, *sts.Client) {
	base := s.Endpoint
	if transport != nil {
		base = "http://" + endpoint
	}
	keys := credentials.NewStaticCredentialsProvider(env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], env["AWS_SESSION_TOKEN"])
	hc := &http.Client{Transport: transport}
	return lambda.New(lambda.Options{Region: "us-east-1", BaseEndpoint: &base, Credentials: keys, RetryMaxAttempts: 1, HTTPClient: hc}),
		sts.New(sts.Options{Region: "us-east-1", BaseEndpoint: &base, Credentials: keys, RetryMaxAttempts: 1, HTTPClient: hc})
}

// TestIdentity holds that what an environment is given opens what it may and
// nothing else: from inside, from the host, in another environment and after its
// end.
func TestIdentity(t *testing.T) { everywhere(t, identify) }

// everywhere runs a test without bounds of time in every tier.
func everywhere(t *testing.T, f func(t *testing.T, s *stage)) {
	t.Parallel()
	for _, tier := range []string{"root", "rootless", "plain"} {
		t.Run(tier, func(t *testing.T) {
			t.Parallel()
			f(t, newStageIn(t, tier))
		})
	}
}

// identify is TestIdentity in one tier.
func identify(t *testing.T, s *stage) {
	layer := s.Layer(t.Context(), "villain", "extensions/villain", harness.Program(t, "hostile"))
	s.villain(t, "thief", 1769, nil)
	s.villain(t, "owner", 512, func(in *lambda.CreateFunctionInput) { in.Layers = []string{layer} })
	env := s.must(t, "thief", order{Do: "env"}).Env
	stolen := s.must(t, "owner", order{Do: "env"}).Env
	if env["AWS_ACCESS_KEY_ID"] == "" || env["AWS_ACCESS_KEY_ID"] == stolen["AWS_ACCESS_KEY_ID"] {
		t.Fatalf("credentials of two environments: %q and %q", env["AWS_ACCESS_KEY_ID"], stolen["AWS_ACCESS_KEY_ID"])
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	name := aws.String("neighbour")
	for where, transport := range map[string]http.RoundTripper{"inside": inside{s, "thief", endpoint}, "on the host": nil} {
		l, id := s.as(env, transport)
		for op, call := range map[string]func() error{
			"GetFunction":   func() error { _, err := l.GetFunction(ctx, &lambda.GetFunctionInput{FunctionName: name}); return err },
			"ListFunctions": func() error { _, err := l.ListFunctions(ctx, &lambda.ListFunctionsInput{}); return err },
			"GetFunctionConfiguration": func() error {
				_, err := l.GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{FunctionName: name})
				return err
			},
			"UpdateFunctionConfiguration": func() error {
				_, err := l.UpdateFunctionConfiguration(ctx, &lambda.UpdateFunctionConfigurationInput{FunctionName: name, Description: aws.String("taken")})
				return err
			},
			"UpdateFunctionCode": func() error {
				_, err := l.UpdateFunctionCode(ctx, &lambda.UpdateFunctionCodeInput{FunctionName: name, ZipFile: []byte("no zip")})
				return err
			},
			"DeleteFunction": func() error {
				_, err := l.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: name})
				return err
			},
			"ListLayers": func() error { _, err := l.ListLayers(ctx, &lambda.ListLayersInput{}); return err },
			"CreateFunction": func() error {
				_, err := l.CreateFunction(ctx, &lambda.CreateFunctionInput{FunctionName: aws.String("mine"), Role: aws.String("arn:aws:iam::000000000000:role/x"),
					Runtime: types.RuntimeProvidedal2023, Handler: aws.String("h"), Code: &types.FunctionCode{ZipFile: []byte("no zip")}})
				return err
			},
		} {
			if got := code(call()); got != "AccessDeniedException" {
				t.Errorf("%s %s: %s; want AccessDeniedException", op, where, got)
			}
		}
		if _, err := l.Invoke(ctx, &lambda.InvokeInput{FunctionName: name, Payload: []byte(`{}`)}); err != nil {
			t.Errorf("Invoke %s, which is allowed: %v", where, err)
		}
		if out, err := id.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}); err != nil || !strings.HasSuffix(*out.Arn, "/thief") {
			t.Errorf("GetCallerIdentity %s: %+v, %v", where, out, err)
		}
		wrong := map[string]string{"AWS_ACCESS_KEY_ID": env["AWS_ACCESS_KEY_ID"], "AWS_SECRET_ACCESS_KEY": env["AWS_SECRET_ACCESS_KEY"], "AWS_SESSION_TOKEN": stolen["AWS_SESSION_TOKEN"]}
		l, _ = s.as(wrong, transport)
		if _, err := l.Invoke(ctx, &lambda.InvokeInput{FunctionName: name}); err == nil || code(err) == "ServiceException" {
			t.Errorf("Invoke %s with a mixture of two environments' credentials: %v", where, err)
		}
	}

	// Plain pages say that the server lives, and no more.
	raw := func(addr, request string) string {
		r, err := s.attack(ctx, "thief", order{Do: "http", Addr: addr, Raw: []byte(request), MS: 700})
		if err != nil {
			t.Errorf("%q: %v", request, err)
		}
		return string(r.Raw)
	}
	for _, path := range []string{"/_lambdad/archive/" + strings.Repeat("0", 64), "/_lambdad/archive/../../credentials.json?Expires=9999999999&Signature=00",
		"/_lambdad/environments", "/_lambdad/control", "/environments", "/_lambdad/", "/_lambdad/../credentials.json", "//_lambdad/archive/x", "/_localstack/../credentials.json"} {
		answer := raw(endpoint, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if strings.Contains(answer, " 200 ") || strings.Contains(answer, "accessKey") {
			t.Errorf("%s: %.200s", path, answer)
		}
	}

	// Identifiers of the APIs are those of one environment.
	r, err := s.attack(ctx, "owner", order{Do: "file", Text: "/tmp/extension-id"})
	extension := string(r.Raw)
	if err != nil || len(extension) != 36 {
		t.Fatalf("the identifier of an extension: %q, %v", extension, err)
	}
	for request, want := range map[string]string{
		"GET /2020-01-01/extension/event/next HTTP/1.1\r\nLambda-Extension-Identifier: " + extension:                             " 403 ",
		"POST /2020-01-01/extension/exit/error HTTP/1.1\r\nContent-Length: 0\r\nLambda-Extension-Identifier: " + extension:       " 403 ",
		"POST /2018-06-01/runtime/invocation/" + extension + "/response HTTP/1.1\r\nContent-Length: 2":                           " 400 ",
		"POST /2018-06-01/runtime/invocation/../../../x/response HTTP/1.1\r\nContent-Length: 2":                                  " 40",
		"PUT /2022-07-01/telemetry HTTP/1.1\r\nContent-Length: 2\r\nLambda-Extension-Identifier: " + extension + "\r\nX: y":      " 403 ",
		"POST /2020-01-01/extension/register HTTP/1.1\r\nContent-Length: 23\r\nLambda-Extension-Name: late\r\nX: y":              " 403 ",
		"POST /2018-06-01/runtime/init/error HTTP/1.1\r\nContent-Length: 2":                                                      " 403 ",
		"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\nX-Smuggled: yes": " ", // this one's own event, or a refusal
	} {
		body := "{}"
		if strings.Contains(request, "register") {
			body = `{"events":["INVOKE"   ]}`[:23]
		}
		if strings.HasPrefix(request, "GET") || strings.Contains(request, "Length: 0") {
			body = ""
		}
		if answer := raw(runtimeAPI, request+"\r\nHost: x\r\nConnection: close\r\n\r\n"+body); !strings.Contains(answer, want) {
			t.Errorf("%.90q: %.200q; want%s", request, answer, want)
		}
	}

	// What has ended opens nothing.
	if _, err := s.Client.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: aws.String("owner")}); err != nil {
		t.Fatal(err)
	}
	s.WaitEnvironments(10*time.Second, func(list []harness.State) bool {
		for _, e := range list {
			if e.Function == "owner" {
				return false
			}
		}
		return true
	})
	for _, transport := range []http.RoundTripper{nil, inside{s, "thief", endpoint}} {
		l, _ := s.as(stolen, transport)
		if _, err := l.Invoke(ctx, &lambda.InvokeInput{FunctionName: name}); code(err) != "UnrecognizedClientException" {
			t.Errorf("Invoke with the credentials of an environment that ended: %v", err)
		}
	}
	s.end(t)
}

// TestGarbage holds that what is no HTTP, or two requests in one, harms nobody: the
// answer is an error or none, and the next request is answered as ever.
func TestGarbage(t *testing.T) { everywhere(t, garble) }

// garble is TestGarbage in one tier.
func garble(t *testing.T, s *stage) {
	s.villain(t, "garbler", 1769, nil)
	long := strings.Repeat("a", 300<<10)
	for _, addr := range []string{runtimeAPI, endpoint} {
		for _, raw := range []string{
			"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
			"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
			"GET / HTTP/1.1\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
			"GET /" + long + " HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nX: " + long + "\r\n\r\n",
			"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
			"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\nhello",
			"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
			"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
			"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n",
			"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /_lambdad/archive/x HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nX: a\rb\nc: d\r\n e: f\r\n\r\n",
			"GET http://169.254.169.254/latest/meta-data/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
			"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
			"\x00\x00\x00\x00", "\r\n\r\n\r\n", "",
		} {
			r, err := s.attack(t.Context(), "garbler", order{Do: "http", Addr: addr, Raw: []byte(raw), MS: 100})
			if err != nil {
				t.Fatalf("%s, %.40q: %v", addr, raw, err)
			}
			if answer := string(r.Raw); strings.Contains(answer, " 200 ") || strings.Contains(answer, "\"ready\"") || strings.Contains(answer, " 101 ") {
				t.Errorf("%s, %.40q: %.200q", addr, raw, answer)
			}
		}
	}
	smuggle(t, s)
	if _, err := s.Invoke(t.Context(), "neighbour", `{}`); err != nil {
		t.Errorf("the neighbour afterwards: %v", err)
	}
	s.end(t)
}

// smuggle hides a request behind one whose length can be read in two ways, on each
// API: it must not be answered.
func smuggle(t *testing.T, s *stage) {
	const bucket = "Authorization: AWS4-HMAC-SHA256 Credential=AKIAX/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=" +
		"0000000000000000000000000000000000000000000000000000000000000000\r\n"
	for _, c := range []struct{ addr, path, header, hidden string }{
		{runtimeAPI, "/2018-06-01/runtime/invocation/x/response", "", "/2018-06-01/ping"},
		{runtimeAPI, "/2020-01-01/extension/register", "", "/2018-06-01/ping"},
		{endpoint, "/2015-03-31/functions/neighbour/invocations", "", "/_lambdad/ready"},
		{endpoint, "/bucket/key", bucket, "/_lambdad/ready"},
	} {
		hidden := "GET " + c.hidden + " HTTP/1.1\r\nHost: x\r\n\r\n"
		send := func(raw string) string {
			r, err := s.attack(t.Context(), "garbler", order{Do: "http", Addr: c.addr, Raw: []byte(raw), MS: 100})
			if err != nil {
				t.Fatalf("%s, %.90q: %v", c.addr, raw, err)
			}
			return string(r.Raw)
		}
		if answer := send(hidden); !strings.Contains(answer, " 200 ") {
			t.Fatalf("%s alone: %.200q", c.hidden, answer)
		}
		begin := "POST " + c.path + " HTTP/1.1\r\nHost: x\r\n" + c.header
		for _, rest := range []string{
			"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
			"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
			"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
			"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
			"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
			"Transfer-Encoding: chunked\r\n\r\n5;a=\n\r\nhello\r\n0\r\n\r\n",
			"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
			"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
			"Content-Length: +5\r\n\r\nhello",
			"Content-Length: 0x5\r\n\r\nhello",
			"Content-Length: 5, 6\r\n\r\nhello",
			"Content-Length: 5\r\nContent-Length: 0\r\n\r\nhello",
			"Content-Length\r\n\r\n",
			"X\x00: y\r\n\r\n",
			"X y: z\r\n\r\n",
		} {
			if answer := send(begin + rest + hidden); strings.Contains(answer, " 200 ") {
				t.Errorf("%s, %.90q: %.300q", c.addr, rest, answer)
			}
		}
	}
}
