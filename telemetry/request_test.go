package telemetry

import (
	"strings"
	"testing"
	"time"
)

func TestParseRequest(t *testing.T) {
	const dest = `"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:8080"}`
	body := func(members string) string {
		return `{"schemaVersion":"2022-12-13","types":["platform"],` + members + `}`
	}
	uri := func(u string) string { return body(`"destination":{"protocol":"HTTP","URI":"` + u + `"}`) }
	buffering := func(b string) string { return body(dest + `,"buffering":{` + b + `}`) }
	tcp := func(d string) string { return body(`"destination":{"protocol":"TCP",` + d + `}`) }
	const (
		badHost, badTimeout = "URI host should be sandbox.localdomain or sandbox", "timeoutMs should be between 25 and 30000"
		badPort, badVersion = "port should be between 1 and 65535", "schemaVersion should be one of 2022-07-01, 2022-12-13, 2025-01-29"
	)
	for _, c := range []struct {
		name, body string
		logs       bool
		want       string // error; "" none
	}{
		{"least", body(dest), false, ""},
		{"unknown members", body(`"destination":{"protocol":"HTTP","URI":"http://sandbox:1","method":"POST","encoding":"JSON","x":{}},"y":[]`), false, ""},
		{"the service's sample", `{"schemaVersion":"2022-07-01","types":[],"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain"}}`, false, "URI port is not provided; types should not be empty"},
		{"no schema", `{"types":["platform"],` + dest + `}`, false, "schemaVersion is not provided"},
		{"logs without schema", `{"types":["platform"],` + dest + `}`, true, ""},
		{"schema of logs", `{"schemaVersion":"2020-08-15","types":["platform"],` + dest + `}`, false, badVersion},
		{"schema of telemetry", `{"schemaVersion":"2022-07-01","types":["platform"],` + dest + `}`, true, "schemaVersion should be one of 2020-08-15, 2021-03-18"},
		{"unknown schema", `{"schemaVersion":"2023-01-01","types":["platform"],` + dest + `}`, false, badVersion},
		{"no types", `{"schemaVersion":"2022-07-01",` + dest + `}`, false, "types should not be empty"},
		{"upper case", `{"schemaVersion":"2022-07-01","types":["Platform","FUNCTION"],` + dest + `}`, false, "types should be platform, function or extension"},
		{"types as text", `{"schemaVersion":"2022-07-01","types":"platform",` + dest + `}`, false, "types should be a list of strings"},
		{"no destination", `{"schemaVersion":"2022-07-01","types":["platform"]}`, false, "destination is not provided"},
		{"other case of URI", body(`"destination":{"protocol":"HTTP","uri":"http://sandbox:8080"}`), false, "URI is not provided"},
		{"protocol", body(`"destination":{"protocol":"UDP","URI":"http://sandbox:8080"}`), false, "protocol should be HTTP or TCP"},
		{"https", uri("https://sandbox.localdomain:8080"), false, "URI scheme should be http"},
		{"other host", uri("http://localhost:8080"), false, badHost},
		{"address", uri("http://127.0.0.1:8080"), false, badHost},
		{"reserved", uri("http://sandbox:9001"), false, "URI port 9001 is reserved"},
		{"port 0", uri("http://sandbox:0"), false, "URI port should be between 1 and 65535"},
		{"port 65536", uri("http://sandbox:65536"), false, "URI port should be between 1 and 65535"},
		{"malformed", uri("http://sandbox:x"), false, "URI is malformed"},
		{"host, path and slash", uri("http://sandbox:4243/any/path/?a=b"), false, ""},
		{"least timeout", buffering(`"timeoutMs":25`), false, ""},
		{"timeout 24", buffering(`"timeoutMs":24`), false, badTimeout},
		{"timeout 30000", buffering(`"timeoutMs":30000`), false, ""},
		{"timeout 30001", buffering(`"timeoutMs":30001`), false, badTimeout},
		{"zero", buffering(`"timeoutMs":0`), false, badTimeout},
		{"fraction", buffering(`"timeoutMs":25.5`), false, "timeoutMs should be a whole number"},
		{"text", buffering(`"maxItems":"1000"`), false, "maxItems should be a whole number"},
		{"items 999", buffering(`"maxItems":999`), false, "maxItems should be between 1000 and 10000"},
		{"items 10001", buffering(`"maxItems":10001`), false, "maxItems should be between 1000 and 10000"},
		{"bytes 262143", buffering(`"maxBytes":262143`), false, "maxBytes should be between 262144 and 1048576"},
		{"bytes 1048577", buffering(`"maxBytes":1048577`), false, "maxBytes should be between 262144 and 1048576"},
		{"most", buffering(`"timeoutMs":30000,"maxItems":10000,"maxBytes":1048576`), false, ""},
		{"null buffering", body(dest + `,"buffering":null`), false, ""},
		{"buffering list", body(dest + `,"buffering":[]`), false, "buffering should be an object"},
		{"tcp", tcp(`"port":4243`), false, ""},
		{"tcp URI", tcp(`"URI":"tcp://sandbox:4243"`), false, ""},
		{"tcp none", tcp(`"x":1`), false, badPort},
		{"tcp 65536", tcp(`"port":65536`), false, badPort},
		{"tcp reserved", tcp(`"port":9001`), false, "port 9001 is reserved"},
		{"tcp elsewhere", tcp(`"URI":"tcp://example.com:80"`), false, badHost},
		{"logs by PUT", `{"types":["platform"],"destination":{"protocol":"HTTP","URI":"http://sandbox:8080","method":"PUT"}}`, true, ""},
		{"logs by GET", `{"types":["platform"],"destination":{"protocol":"HTTP","URI":"http://sandbox:8080","method":"GET"}}`, true, "method should be POST or PUT"},
		{"empty", ``, false, "the request body is not a JSON object"},
		{"null", `null`, false, "the request body is not a JSON object"},
		{"list", `[]`, false, "the request body is not a JSON object"},
		{"everything", `{}`, false, "schemaVersion is not provided; destination is not provided; types should not be empty"},
	} {
		_, err := ParseRequest(c.logs, []byte(c.body))
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestRequestDefaults(t *testing.T) {
	r, err := ParseRequest(false, []byte(`{"schemaVersion":"2025-01-29","types":["function","platform","function"],"destination":{"protocol":"HTTP","URI":"http://sandbox:80/a/b?c=d#e"}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &Request{Schema: "2025-01-29", Types: []string{"platform", "function"}, MaxItems: 10000, MaxBytes: 262144, Timeout: time.Second, Method: "POST", URL: "http://sandbox:80/a/b?c=d"}
	if !r.Equal(want) || strings.Join(r.Types, " ") != "function platform" {
		t.Errorf("%+v", r)
	}
	for _, other := range []string{`"maxItems":1000`, `"maxBytes":262145`, `"timeoutMs":999`} {
		o, err := ParseRequest(false, []byte(`{"schemaVersion":"2025-01-29","types":["function","platform"],"buffering":{`+other+`},"destination":{"protocol":"HTTP","URI":"http://sandbox:80/a/b?c=d"}}`))
		if err != nil || o.Equal(r) {
			t.Errorf("%s: %v, equal", other, err)
		}
	}
	r, err = ParseRequest(true, []byte(`{"types":["function"],"buffering":{"timeoutMs":25},"destination":{"protocol":"TCP","port":4243}}`))
	if err != nil || r.Schema != "2020-08-15" || !r.TCP || r.Addr != "sandbox.localdomain:4243" || r.Timeout != 25*time.Millisecond || r.MaxItems != 10000 {
		t.Errorf("%+v, %v", r, err)
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add(true, []byte(`{"types":["platform"],"destination":{"protocol":"TCP","URI":"tcp://sandbox:1"}}`))
	f.Add(false, []byte(`{"schemaVersion":"2022-12-13","types":["platform","function"],"buffering":{"maxItems":1000,"maxBytes":262144,"timeoutMs":100},"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:8080/any/path"}}`))
	f.Add(false, []byte(`{"types":null,"destination":{"protocol":"HTTP","URI":"http://[::1%25x]:8080"}}`))
	f.Fuzz(func(t *testing.T, logs bool, body []byte) {
		r, err := ParseRequest(logs, body)
		if err != nil {
			if err.Error() == "" || r != nil {
				t.Fatalf("%+v, %q", r, err)
			}
			return
		}
		inside := strings.HasPrefix(r.URL, "http://sandbox:") || strings.HasPrefix(r.URL, "http://sandbox.localdomain:")
		if r.TCP == inside || r.TCP != strings.HasPrefix(r.Addr, "sandbox.localdomain:") {
			t.Fatalf("%q leads to %+v", body, r)
		}
		if len(r.Types) == 0 || len(r.Types) > 3 || r.Logs != logs ||
			r.Timeout < 25*time.Millisecond || r.Timeout > 30*time.Second ||
			r.MaxItems < 1000 || r.MaxItems > 10000 || r.MaxBytes < 262144 || r.MaxBytes > 1048576 {
			t.Fatalf("%q leads to %+v", body, r)
		}
	})
}
