package aws

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	sdkaws "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/policy"
)

// echo is a REST service that answers with what it was given.
type echo struct{ limit int64 }

func (echo) Name() string { return "lambda" }
func (echo) ErrorShapes() map[string]ErrorShape {
	return map[string]ErrorShape{"Teapot": {Status: 418, Key: "Message", Type: "User"}}
}

func (e echo) Route(r *Request) error {
	r.Operation, r.Action, r.BodyLimit = "Echo", "lambda:Echo", e.limit
	if strings.HasSuffix(r.URL.Path, "/invocations") {
		r.Action = "lambda:InvokeFunction"
	}
	return nil
}

func (echo) ServeAWS(w http.ResponseWriter, r *Request) error {
	switch r.URL.Query().Get("fail") {
	case "typed":
		return &lambdad.Error{Code: "Teapot", Message: "short and stout"}
	case "null":
		return &lambdad.Error{Code: "AccessDeniedException"}
	case "plain":
		return errors.New("secret detail")
	case "panic":
		panic("a bug")
	}
	fmt.Fprintf(w, "%s %s %d %v %s", r.Identity.Account, r.Region, len(r.Body), r.Oversize, r.RequestID)
	return nil
}

// form is a query service.
type form struct{}

func (form) Name() string                       { return "sts" }
func (form) ErrorShapes() map[string]ErrorShape { return nil }
func (form) Route(*Request) error               { return nil }
func (form) ServeAWS(w http.ResponseWriter, r *Request) error {
	fmt.Fprintf(w, "%s as %s", r.Operation, r.Identity.ARN)
	return nil
}

var testKey = lambdad.Credentials{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}

// directory has one role, r, which may invoke functions, and one user.
type directory struct{}

func (directory) UserKey(id string) (string, Identity, bool) {
	if id != "AKIAUSER" {
		return "", Identity{}, false
	}
	u, _ := directory{}.User("", "alice", "")
	u.AccessKeyID = id
	return "secret", u, true
}

func (directory) User(_, name, _ string) (Identity, bool) {
	return Identity{Account: DefaultAccount, ARN: "arn:aws:iam::000000000000:user/" + name, UserID: "AIDAX", UserName: name, Grants: &policy.Grants{}}, name == "alice"
}

func (directory) Role(arn string) *Role {
	if arn != "arn:aws:iam::000000000000:role/p/r" {
		return nil
	}
	return &Role{ARN: arn, ID: "AROAX", Name: "r", Account: DefaultAccount, Grants: &policy.Grants{Identity: []*policy.Document{
		policy.MustParse("invoke", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"lambda:InvokeFunction","Resource":"*"}}`, policy.ForIdentity),
	}}}
}

func testKeys() *KeyStore { return newKeyStore(DefaultAccount, testKey, directory{}) }

func testServer(t testing.TB, opts Options) (*httptest.Server, *KeyStore) {
	keys := testKeys()
	s := httptest.NewServer(NewMux(keys, opts, echo{limit: 2000}, form{}))
	t.Cleanup(s.Close)
	return s, keys
}

// sign signs as SDKs do: by their own code.
func sign(t testing.TB, r *http.Request, c lambdad.Credentials, body []byte, service, region string, at time.Time) {
	t.Helper()
	sum := sha256.Sum256(body)
	creds := sdkaws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}
	if err := v4.NewSigner().SignHTTP(context.Background(), creds, r, hex.EncodeToString(sum[:]), service, region, at); err != nil {
		t.Fatal(err)
	}
}

func send(t testing.TB, r *http.Request) (int, http.Header, string) {
	t.Helper()
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(b)
}

func newRequest(t testing.TB, method, url string, body []byte) *http.Request {
	t.Helper()
	r, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSignatures(t *testing.T) {
	s, keys := testServer(t, Options{})
	version := &lambdad.Version{Account: "000000000000", Function: "f", Role: "arn:aws:iam::000000000000:role/p/r"}
	mint, release := keys.Mint(version, "e1")
	defer release()
	temp := mint("runtime")
	wrongToken, wrongSecret := temp, testKey
	wrongToken.SessionToken = "x"
	wrongSecret.SecretAccessKey += "x"
	extraToken := testKey
	extraToken.SessionToken = "x"
	body := []byte(`{"a":1}`)
	const plain = "/2015-03-31/functions"

	tests := []struct {
		name   string
		key    lambdad.Credentials
		path   string
		at     time.Duration
		change func(*http.Request)
		status int
		code   string
		text   string
	}{
		{"good", testKey, plain, 0, nil, 200, "", "000000000000 eu-west-1 7 false"},
		{"encoded ARN", testKey, "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aeu-west-1%3A000000000000%3Afunction%3Af%3A%24LATEST/x", 0, nil, 200, "", ""},
		{"raw colon", testKey, "/2015-03-31/functions/a:b", 0, nil, 200, "", ""},
		{"query out of order", testKey, plain + "?b=2&a=1&a=0&c=x%20y%2Bz&d", 0, nil, 200, "", ""},
		{"trailing slash", testKey, plain + "/", 0, nil, 200, "", ""},
		{"14 minutes late", testKey, plain, -14 * time.Minute, nil, 200, "", ""},
		{"14 minutes early", testKey, plain, 14 * time.Minute, nil, 200, "", ""},
		{"16 minutes late", testKey, plain, -16 * time.Minute, nil, 403, "InvalidSignatureException", "Signature expired: "},
		{"16 minutes early", testKey, plain, 16 * time.Minute, nil, 403, "InvalidSignatureException", "Signature not yet current: "},
		{"wrong secret", wrongSecret, plain, 0, nil, 403, "InvalidSignatureException", "does not match the signature you provided"},
		{"unknown key", lambdad.Credentials{AccessKeyID: "AKIAX", SecretAccessKey: "x"}, plain, 0, nil, 403, "UnrecognizedClientException", "security token included in the request is invalid"},
		{"temporary key", temp, plain + "/f/invocations", 0, nil, 200, "", ""},
		{"temporary key, other operation", temp, plain, 0, nil, 403, "AccessDeniedException",
			"User: arn:aws:sts::000000000000:assumed-role/r/f is not authorized to perform: lambda:Echo on resource: * because no identity-based policy allows the lambda:Echo action"},
		{"wrong token", wrongToken, plain + "/f/invocations", 0, nil, 403, "UnrecognizedClientException", ""},
		{"token of a key that has none", extraToken, plain, 0, nil, 403, "UnrecognizedClientException", ""},
		{"changed body", testKey, plain, 0, func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader(`{"a":2}`))
		}, 403, "InvalidSignatureException", ""},
		{"changed query", testKey, plain + "?a=1", 0, func(r *http.Request) { r.URL.RawQuery = "a=2" }, 403, "InvalidSignatureException", ""},
		{"changed path", testKey, plain, 0, func(r *http.Request) { r.URL.Path += "/f" }, 403, "InvalidSignatureException", ""},
		{"declared hash of another body", testKey, plain, 0, func(r *http.Request) {
			r.Header.Set("X-Amz-Content-Sha256", emptySHA256)
		}, 403, "InvalidSignatureException", "x-amz-content-sha256"},
		{"host not signed", testKey, plain, 0, func(r *http.Request) {
			h := r.Header.Get("Authorization")
			r.Header.Set("Authorization", strings.Replace(h, "host;", "", 1))
		}, 400, "IncompleteSignatureException", "'Host' must be a 'SignedHeader'"},
		{"no signature", testKey, plain, 0, func(r *http.Request) { r.Header.Del("Authorization") }, 403, "MissingAuthenticationTokenException", "Missing Authentication Token"},
		{"other scheme", testKey, plain, 0, func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }, 400, "IncompleteSignatureException", ""},
		{"no date", testKey, plain, 0, func(r *http.Request) { r.Header.Del("X-Amz-Date") }, 400, "IncompleteSignatureException", "X-Amz-Date"},
		{"date of another day", testKey, plain, 0, func(r *http.Request) { r.Header.Set("X-Amz-Date", "20200101T000000Z") }, 403, "InvalidSignatureException", "Date in Credential scope"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRequest(t, "POST", s.URL+tt.path, body)
			sign(t, r, tt.key, body, "lambda", "eu-west-1", time.Now().Add(tt.at))
			if tt.change != nil {
				tt.change(r)
			}
			status, header, got := send(t, r)
			if status != tt.status || header.Get("x-amzn-ErrorType") != tt.code || !strings.Contains(got, tt.text) {
				t.Errorf("%d %s %s", status, header.Get("x-amzn-ErrorType"), got)
			}
			if len(header.Get("x-amzn-RequestId")) != 36 {
				t.Errorf("request id %q", header.Get("x-amzn-RequestId"))
			}
			if strings.Contains(tt.name, "16 minutes") && !strings.Contains(got, time.Now().UTC().Format("20060102T15")) {
				t.Errorf("no server time in %s", got)
			}
		})
	}
}

func TestPresigned(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	clock := now
	s, _ := testServer(t, Options{Now: func() time.Time { return clock }})
	r := newRequest(t, "GET", s.URL+"/2015-03-31/functions/f%24?X-Amz-Expires=60&Qualifier=a%20b", nil)
	creds := sdkaws.Credentials{AccessKeyID: testKey.AccessKeyID, SecretAccessKey: testKey.SecretAccessKey}
	signed, header, err := v4.NewSigner().PresignHTTP(context.Background(), creds, r, emptySHA256, "lambda", "eu-west-1", now)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		at     time.Duration
		url    string
		status int
	}{
		{"fresh", 0, signed, 200},
		{"at the end", time.Minute, signed, 200},
		{"expired", 61 * time.Second, signed, 403},
		{"from the future", -16 * time.Minute, signed, 403},
		{"longer life", 0, strings.Replace(signed, "Expires=60", "Expires=600", 1), 403},
		{"too long a life", 0, strings.Replace(signed, "Expires=60", "Expires=700000", 1), 400},
		{"other path", 0, strings.Replace(signed, "/f%24", "/g", 1), 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clock = now.Add(tt.at)
			r := newRequest(t, "GET", tt.url, nil)
			r.Host = header.Get("Host")
			if status, _, body := send(t, r); status != tt.status {
				t.Errorf("%d %s", status, body)
			}
		})
	}
}

func TestAnyMode(t *testing.T) {
	s, _ := testServer(t, Options{Auth: Any, Region: "eu-north-1"})
	for _, tt := range []struct{ name, key, want string }{
		{"any key", "test", "000000000000 us-west-2 0"},
		{"an account", "123456789012", "123456789012 us-west-2 0"},
		{"almost an account", "1234567890123", "000000000000 us-west-2 0"},
		{"unsigned", "", "000000000000 eu-north-1 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRequest(t, "GET", s.URL+"/2015-03-31/functions/", nil)
			if tt.key != "" {
				sign(t, r, lambdad.Credentials{AccessKeyID: tt.key, SecretAccessKey: "x"}, []byte("another body"), "lambda", "us-west-2", time.Now().Add(-time.Hour))
			}
			if status, _, body := send(t, r); status != 200 || !strings.HasPrefix(body, tt.want) {
				t.Errorf("%d %s", status, body)
			}
		})
	}
}

// TestWebPages: where no signature is needed, pages in a browser get nothing.
func TestWebPages(t *testing.T) {
	s, _ := testServer(t, Options{Auth: Any})
	own := strings.TrimPrefix(s.URL, "http://")
	for _, tt := range []struct {
		name, method, host, origin, site string
		status                           int
	}{
		{"no browser", "POST", own, "", "", 200},
		{"no browser, own name", "POST", "lambdad.test", "", "", 200},
		{"another site", "POST", own, "https://evil.test", "cross-site", 403},
		{"another site, old browser", "POST", own, "https://evil.test", "", 403},
		{"a name made to mean this machine", "POST", "evil.test:4566", "http://evil.test:4566", "same-origin", 403},
		{"a page of this server", "POST", own, s.URL, "same-origin", 200},
		{"typed by hand", "GET", own, "", "none", 200},
	} {
		r := newRequest(t, tt.method, s.URL+"/2015-03-31/functions", nil)
		r.Host = tt.host
		for name, value := range map[string]string{"Origin": tt.origin, "Sec-Fetch-Site": tt.site} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		if status, _, body := send(t, r); status != tt.status {
			t.Errorf("%s: %d %s", tt.name, status, body)
		}
	}
}

// TestMissingServices: each is answered in its own form, naming its variable.
func TestMissingServices(t *testing.T) {
	s, _ := testServer(t, Options{})
	for _, tt := range []struct {
		service, contentType, target, want string
	}{
		{"dynamodb", "application/x-amz-json-1.0", "DynamoDB_20120810.GetItem", `{"__type":"NotImplemented","message":"lambdad does not offer`},
		{"logs", "application/x-amz-json-1.1", "Logs_20140328.PutLogEvents", "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS"},
		{"iam", "application/x-www-form-urlencoded", "", `<ErrorResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/"><Error><Type>Sender</Type><Code>NotImplemented</Code>`},
		{"ec2", "application/x-www-form-urlencoded", "", "<Response><Errors><Error><Code>NotImplemented</Code>"},
		{"s3", "", "", "<Error><Code>NotImplemented</Code>"},
		{"s3", "", "", "AWS_ENDPOINT_URL_S3"},
		{"states", "application/x-amz-json-1.0", "AWSStepFunctions.StartExecution", "AWS_ENDPOINT_URL_SFN"},
		{"some-new.thing", "application/json", "", "AWS_ENDPOINT_URL_SOME_NEW_THING"},
		{"monitoring", "application/x-amz-json-1.0", "GraniteServiceVersion20100801.PutMetricData", `{"__type":`},
	} {
		r := newRequest(t, "POST", s.URL+"/", []byte("x"))
		r.Header.Set("Content-Type", tt.contentType)
		if tt.target != "" {
			r.Header.Set("X-Amz-Target", tt.target)
		}
		sign(t, r, testKey, []byte("x"), tt.service, "us-east-1", time.Now())
		status, _, body := send(t, r)
		if status != http.StatusNotImplemented || !strings.Contains(body, tt.want) || !strings.Contains(body, "AWS_ENDPOINT_URL_") {
			t.Errorf("%s: %d %s", tt.service, status, body)
		}
	}
	// CBOR, with query mode for the error's name.
	r := newRequest(t, "POST", s.URL+"/service/GraniteServiceVersion20100801/operation/PutMetricData", nil)
	r.Header.Set("Smithy-Protocol", "rpc-v2-cbor")
	status, header, body := send(t, r)
	if status != 501 || header.Get("Content-Type") != "application/cbor" || !strings.HasPrefix(body, "\xa2\x66__type\x6eNotImplemented\x67message\x78") ||
		!strings.Contains(body, "AWS_ENDPOINT_URL_CLOUDWATCH") {
		t.Errorf("CBOR: %d %q", status, body)
	}
	r = newRequest(t, "POST", s.URL, nil)
	r.Header.Set("X-Amz-Target", "AmazonSQS.SendMessage")
	r.Header.Set("X-Amzn-Query-Mode", "true")
	if _, header, _ := send(t, r); header.Get("x-amzn-query-error") != "NotImplemented;Sender" {
		t.Errorf("query error %q", header.Get("x-amzn-query-error"))
	}
}

func TestUnsignedRouting(t *testing.T) {
	for _, tt := range []struct {
		method, url, contentType, target, want string
	}{
		{"GET", "/2015-03-31/functions", "", "", "lambda"},
		{"GET", "/2015-03-31", "", "", "s3"},
		{"GET", "/v2/", "", "", "ecr"},
		{"GET", "/v2/repo/manifests/x", "", "", "ecr"},
		{"GET", "/bucket/key", "", "", "s3"},
		{"GET", "/?Action=ListUsers&Version=2010-05-08", "", "", "iam"},
		{"POST", "/", "application/x-www-form-urlencoded; charset=utf-8", "", "sts"},
		{"POST", "/", "", "AWSEvents.PutEvents", "events"},
		{"POST", "/", "", "Unknown_20200101.Do", "unknown"},
	} {
		r := httptest.NewRequest(tt.method, tt.url, nil)
		r.Header.Set("Content-Type", tt.contentType)
		if tt.target != "" {
			r.Header.Set("X-Amz-Target", tt.target)
		}
		if got := serviceOfUnsigned(r); got != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.method, tt.url, got, tt.want)
		}
	}
	s, _ := testServer(t, Options{})
	r := newRequest(t, "GET", s.URL+"/", nil)
	r.Host = "abc123.lambda-url.us-east-1.lambdad.test"
	if status, header, body := send(t, r); status != 403 || body != `{"Message":null}` || header.Get("x-amzn-ErrorType") != "AccessDeniedException" {
		t.Errorf("function URL: %d %s", status, body)
	}
}

func TestErrors(t *testing.T) {
	var log bytes.Buffer
	s, _ := testServer(t, Options{Auth: Any, Logger: testLogger(&log)})
	for _, tt := range []struct {
		fail   string
		status int
		want   string
		logged bool
	}{
		{"typed", 418, `{"Message":"short and stout","Type":"User"}`, false},
		{"null", 403, `{"Message":null}`, false},
		{"plain", 500, `"Type":"Service"`, true},
		{"panic", 500, `"Type":"Service"`, true},
	} {
		log.Reset()
		status, _, body := send(t, newRequest(t, "GET", s.URL+"/2015-03-31/x?fail="+tt.fail, nil))
		if status != tt.status || !strings.Contains(body, tt.want) || strings.Contains(body, "secret detail") {
			t.Errorf("%s: %d %s", tt.fail, status, body)
		}
		if logged := strings.Contains(log.String(), "ERROR"); logged != tt.logged {
			t.Errorf("%s: logged %v: %s", tt.fail, logged, log.String())
		}
	}
	// A query service names things its own way.
	r := newRequest(t, "POST", s.URL+"/", []byte("Version=2011-06-15"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if status, _, body := send(t, r); status != 400 || !strings.Contains(body, "<Code>MissingAction</Code>") || !strings.Contains(body, "<RequestId>") {
		t.Errorf("no action: %d %s", status, body)
	}
}

func TestBodies(t *testing.T) {
	s, _ := testServer(t, Options{})
	zipped := func(n int) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write(make([]byte, n))
		z.Close()
		return b.Bytes()
	}
	for _, tt := range []struct {
		name     string
		body     []byte
		chunked  bool
		encoding string
		want     string
	}{
		{"empty", nil, false, "", " 0 false"},
		{"at the limit", make([]byte, 2000), false, "", " 2000 false"},
		{"over the limit", make([]byte, 2001), false, "", " 0 true"},
		{"far over the limit", make([]byte, 3<<20), false, "", " 0 true"},
		{"chunked", make([]byte, 2000), true, "", " 2000 false"},
		{"chunked over the limit", make([]byte, 500000), true, "", " 0 true"},
		{"gzip", zipped(1999), false, "gzip", " 1999 false"},
		{"gzip bomb", zipped(1 << 20), false, "gzip", " 0 true"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRequest(t, "POST", s.URL+"/2015-03-31/x", tt.body)
			if tt.encoding != "" {
				r.Header.Set("Content-Encoding", tt.encoding)
			}
			if tt.chunked {
				r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(tt.body)), -1
			}
			sign(t, r, testKey, tt.body, "lambda", "us-east-1", time.Now())
			if status, _, body := send(t, r); status != 200 || !strings.Contains(body, tt.want) {
				t.Errorf("%d %s", status, body)
			}
		})
	}
}

// TestExpectContinue: a caller without a valid key is refused before it sends the
// body it announced.
func TestExpectContinue(t *testing.T) {
	s, _ := testServer(t, Options{})
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /2015-03-31/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("status %d", res.StatusCode)
	}
}

// TestSlowBody: the deadline moves while bytes come, and is off afterwards.
func TestSlowBody(t *testing.T) {
	var deadlines []time.Time
	w := &deadlineWriter{ResponseRecorder: httptest.NewRecorder(), set: func(d time.Time) { deadlines = append(deadlines, d) }}
	p := &patientReader{r: bytes.NewReader(make([]byte, 3*bodyProgress)), rc: *http.NewResponseController(w)}
	if _, err := io.Copy(io.Discard, p); err != nil {
		t.Fatal(err)
	}
	p.done()
	if len(deadlines) < 4 || !deadlines[len(deadlines)-1].IsZero() {
		t.Errorf("deadlines %v", deadlines)
	}
}

type deadlineWriter struct {
	*httptest.ResponseRecorder
	set func(time.Time)
}

func (w *deadlineWriter) SetReadDeadline(d time.Time) error { w.set(d); return nil }

func TestPages(t *testing.T) {
	ready := errors.New("stopping")
	s, _ := testServer(t, Options{Version: "1.2", Ready: func() error { return ready }})
	status, _, body := send(t, newRequest(t, "GET", s.URL+"/_localstack/health", nil))
	var health struct {
		Services map[string]string
		Version  string
	}
	if err := json.Unmarshal([]byte(body), &health); err != nil || status != 200 || health.Services["lambda"] != "running" || health.Version != "1.2" {
		t.Errorf("health: %d %s", status, body)
	}
	if status, _, body := send(t, newRequest(t, "GET", s.URL+"/_lambdad/ready", nil)); status != 503 || !strings.Contains(body, "stopping") {
		t.Errorf("not ready: %d %s", status, body)
	}
	ready = nil
	if status, _, _ := send(t, newRequest(t, "GET", s.URL+"/_lambdad/ready", nil)); status != 200 {
		t.Errorf("ready: %d", status)
	}
}

// gate is a service with a plain URL that lets in the owner of a key.
type gate struct{ echo }

func (gate) Paths() map[string]PathHandler {
	return map[string]PathHandler{"/_lambdad/gate": func(w http.ResponseWriter, r *Request) *lambdad.Error {
		q := r.URL.Query()
		err := r.Identify(q.Get("key"), q.Get("token"))
		if err == nil && q.Get("operation") != "" {
			err = r.Perform(q.Get("operation"), "arn:aws:lambda:us-east-1:"+q.Get("account")+":function:f")
		}
		var refused *lambdad.Error
		if err != nil && !errors.As(err, &refused) {
			refused = lambdad.Errorf("Unknown", "%v", err)
		}
		if refused != nil {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, refused)
			return refused
		}
		fmt.Fprintf(w, "%s in %s", r.Identity.ARN, r.Region)
		return nil
	}}
}

func (gate) ResourcePolicy(_ *Request, resource string) *policy.Document {
	if !strings.Contains(resource, "222222222222") {
		return nil
	}
	return policy.MustParse("gate", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"000000000000"},"Action":"lambda:InvokeFunction","Resource":"*"}}`, policy.ForResource)
}

// TestPaths: who comes by a plain URL has the rights that the owner of the key has,
// and is in the trail when something was done or refused.
func TestPaths(t *testing.T) {
	var told []Access
	keys := testKeys()
	mux := func(auth AuthMode) *Mux {
		return NewMux(keys, Options{Auth: auth, Region: "eu-central-1", Access: func(a Access) { told = append(told, a) }}, gate{})
	}
	now := time.Now()
	issue := func(role string, expires time.Time) string {
		s := Session{Account: DefaultAccount, ARN: "arn:aws:sts::000000000000:assumed-role/r/s", UserID: "AROAX:s", Role: role, RoleID: "AROAX", Issued: now, Expires: expires}
		c, err := keys.Issue(s)
		if err != nil {
			t.Fatal(err)
		}
		return "key=" + c.AccessKeyID + "&token=" + strings.ReplaceAll(c.SessionToken, "+", "%2B")
	}
	session, gone, ended := issue("arn:aws:iam::000000000000:role/p/r", now.Add(time.Hour)), issue("arn:aws:iam::000000000000:role/x", now.Add(time.Hour)), issue("arn:aws:iam::000000000000:role/p/r", now.Add(-time.Hour))
	root := "key=" + testKey.AccessKeyID
	const invoke, get = "&operation=InvokeFunction&account=", "&operation=GetFunction&account="
	verify, anybody := mux(Verify), mux(Any)
	for _, tt := range []struct {
		name   string
		h      http.Handler
		query  string
		status int
		want   string
		told   string // action and error code, or nothing
	}{
		{"root", verify, root, 200, "arn:aws:iam::000000000000:root in eu-central-1", ""},
		{"root's own", verify, root + get + DefaultAccount, 200, "", "lambda:GetFunction "},
		{"root's neighbour", verify, root + get + "111111111111", 403, "because no resource-based policy allows the lambda:GetFunction action", "lambda:GetFunction AccessDeniedException"},
		{"root's friend", verify, root + invoke + "222222222222", 200, "", "lambda:InvokeFunction "},
		{"user", verify, "key=AKIAUSER" + get + DefaultAccount, 403, "User: arn:aws:iam::000000000000:user/alice is not authorized to perform: lambda:GetFunction on resource: arn:aws:lambda:us-east-1:000000000000:function:f because no identity-based policy allows the lambda:GetFunction action", "lambda:GetFunction AccessDeniedException"},
		{"session", verify, session + invoke + DefaultAccount, 200, "assumed-role/r/s", "lambda:InvokeFunction "},
		{"session's other", verify, session + get + DefaultAccount, 403, "no identity-based policy", "lambda:GetFunction AccessDeniedException"},
		{"session abroad", verify, session + invoke + "222222222222", 200, "", "lambda:InvokeFunction "},
		{"ended session", verify, ended + invoke + DefaultAccount, 403, "expired", ""},
		{"session of a role that is gone", verify, gone + invoke + DefaultAccount, 403, "unknown", ""},
		{"another's token", verify, session + "x" + invoke + DefaultAccount, 403, "unknown", ""},
		{"unknown", verify, "key=AKIANOBODY" + invoke + DefaultAccount, 403, "unknown", ""},
		{"nobody", verify, "key=", 403, "unknown", ""},
		{"nobody, all accepted", anybody, "key=" + get + DefaultAccount, 200, "000000000000:root", "lambda:GetFunction "},
		{"account, all accepted", anybody, "key=111111111111" + get + "111111111111", 200, "111111111111:root", "lambda:GetFunction "},
		{"its neighbour, all accepted", anybody, "key=111111111111" + get + DefaultAccount, 403, "no resource-based policy", "lambda:GetFunction AccessDeniedException"},
		{"nobody in a sandbox", anybody.Sandbox("e"), "key=", 403, "unknown", " Unknown"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			told = nil
			w := httptest.NewRecorder()
			tt.h.ServeHTTP(w, httptest.NewRequest("GET", "/_lambdad/gate?"+tt.query, nil))
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.want) {
				t.Errorf("%d %s", w.Code, w.Body)
			}
			got := ""
			for _, a := range told {
				got += a.Action + " " + a.ErrorCode
				if raw(w, "x-amzn-RequestId") != a.RequestID {
					t.Errorf("request id %q", a.RequestID)
				}
			}
			if got != tt.told {
				t.Errorf("told %q, want %q", got, tt.told)
			}
		})
	}
	r := httptest.NewRequest("POST", "/_lambdad/gate?key=", nil)
	r.Header.Set("Origin", "http://evil.example")
	w := httptest.NewRecorder()
	if anybody.ServeHTTP(w, r); w.Code != 403 {
		t.Errorf("a web page: %d %s", w.Code, w.Body)
	}
}
