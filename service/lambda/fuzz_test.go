package lambda

import (
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/lambdad/lambdad/mem"
)

// FuzzRequests: whatever a client writes where names, qualifiers, markers and
// bodies go, the answer is a success or names what is wrong with the request.
func FuzzRequests(f *testing.F) {
	operations := []struct{ method, path string }{
		{"GET", "/2015-03-31/functions/{}?Qualifier={}"},
		{"GET", "/2015-03-31/functions/{}/configuration?Qualifier={}"},
		{"DELETE", "/2015-03-31/functions/{}?Qualifier={}"},
		{"GET", "/2015-03-31/functions/{}/versions?Marker={}&MaxItems=1"},
		{"POST", "/2015-03-31/functions/{}/versions"},
		{"GET", "/2015-03-31/functions?FunctionVersion=ALL&Marker={}&MaxItems=1"},
		{"PUT", "/2015-03-31/functions/{}/configuration"},
		{"PUT", "/2015-03-31/functions/{}/code"},
		{"POST", "/2015-03-31/functions/{}/aliases"},
		{"PUT", "/2015-03-31/functions/{}/aliases/{}"},
		{"GET", "/2015-03-31/functions/{}/aliases/{}"},
		{"DELETE", "/2015-03-31/functions/{}/aliases/{}"},
		{"GET", "/2015-03-31/functions/{}/aliases?Marker={}"},
		{"POST", "/2015-03-31/functions/{}/policy?Qualifier={}"},
		{"GET", "/2015-03-31/functions/{}/policy?Qualifier={}"},
		{"DELETE", "/2015-03-31/functions/f/policy/{}?Qualifier={}"},
		{"POST", "/2015-03-31/functions/{}/invocations?Qualifier={}"},
		{"GET", "/2017-03-31/tags/{}"},
		{"POST", "/2017-03-31/tags/{}"},
		{"DELETE", "/2017-03-31/tags/{}?tagKeys={}"},
		{"POST", "/2018-10-31/layers/{}/versions/1/policy?RevisionId={}"},
		{"GET", "/2018-10-31/layers/{}/versions/{}/policy"},
		{"DELETE", "/2018-10-31/layers/l/versions/{}/policy/{}"},
		{"GET", "/2018-10-31/layers?find=LayerVersion&Arn={}"},
		{"GET", "/2018-10-31/layers?Marker={}&CompatibleRuntime={}"},
		{"POST", "/2020-04-22/code-signing-configs"},
		{"PUT", "/2020-04-22/code-signing-configs/{}"},
		{"GET", "/2020-04-22/code-signing-configs/{}/functions?Marker={}"},
		{"GET", "/2020-04-22/code-signing-configs?Marker={}"},
		{"PUT", "/2020-06-30/functions/{}/code-signing-config"},
		{"PUT", "/2021-07-20/functions/{}/runtime-management-config?Qualifier={}"},
		{"PUT", "/2024-08-31/functions/{}/recursion-config"},
	}
	for i := range operations {
		for _, one := range []string{"f", "f:live", arn + "f", arn + "f:1", "l", "\x00", "a.b", "$LATEST", "arn:aws:lambda:us-east-1:000000000000:layer:l:99999999999999999999"} {
			f.Add(uint8(i), one, "1", []byte(`{"Name":"a","FunctionVersion":"1","RoutingConfig":{"AdditionalVersionWeights":{"1":0.5}},"StatementId":"s","Action":"lambda:GetLayerVersion","Principal":"*"}`))
			f.Add(uint8(i), one, "ZiAwMDAw", []byte(`{"Tags":{"a":"b"},"RecursiveLoop":"Allow","UpdateRuntimeOn":"Auto","AllowedPublishers":{"SigningProfileVersionArns":["arn:aws:signer:us-east-1:000000000000:/p"]}}`))
		}
		f.Add(uint8(i), "f", "99999999999999999999", []byte(`{"FunctionVersion":"99999999999999999999","Name":"b"`))
	}
	r := newRig(f, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	body := createBody(f, "f", "x")
	fixture := func(t *testing.T) {
		r.t = t
		r.call("POST", functions, body)
		r.settled("f")
		r.call("POST", functions+"/f/versions", nil)
		r.call("POST", functions+"/f/aliases", map[string]any{"Name": "live", "FunctionVersion": "1"})
	}
	r.call("POST", "/2018-10-31/layers/l/versions", map[string]any{"Content": map[string]any{"ZipFile": zipWith(f, "x")}})
	f.Fuzz(func(t *testing.T, i uint8, one, two string, body []byte) {
		fixture(t)
		op := operations[int(i)%len(operations)]
		path := strings.Replace(op.path, "{}", url.QueryEscape(one), 1)
		path = strings.Replace(path, "{}", url.QueryEscape(two), 1)
		path = strings.ReplaceAll(path, "+", "%20")
		w := httptest.NewRecorder()
		r.mux.ServeHTTP(w, httptest.NewRequest(op.method, path, strings.NewReader(string(body))))
		if w.Code >= 500 {
			t.Fatalf("%s %s %q: %d %s", op.method, path, body, w.Code, w.Body)
		}
		if w.Body.Len() > 0 && !strings.Contains(op.path, "invocations") && !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%s %s %q: %d %s", op.method, path, body, w.Code, w.Body)
		}
	})
}

// FuzzPrincipal: what passes as a principal is one in the statement that is made
// of it, and stays the text it was.
func FuzzPrincipal(f *testing.F) {
	for _, s := range []string{"*", "123456789012", "s3.amazonaws.com", "arn:aws:iam::123456789012:role/a/b", "AIDAABCDEFGHIJKLMNOP", "invalid.nonaws.com", `"},"Effect":"Deny`, "a.amazonaws.com\n", "arn:aws:iam::123456789012:role/\xd6"} {
		f.Add(s, "sid")
	}
	f.Fuzz(func(t *testing.T, principal, id string) {
		p, err := policyPrincipal(principal)
		if err != nil {
			return
		}
		_, added, err := policyRecord(nil).with(&statement{Sid: id, Effect: "Allow", Principal: p, Action: "lambda:InvokeFunction", Resource: "r"})
		if err != nil {
			return // too long
		}
		var back struct {
			Effect, Action string
			Principal      any
		}
		if err := json.Unmarshal([]byte(added), &back); err != nil || back.Effect != "Allow" || back.Action != "lambda:InvokeFunction" {
			t.Fatalf("%q: %s: %v", principal, added, err)
		}
		got, ok := back.Principal.(string)
		if m, isMap := back.Principal.(map[string]any); isMap && len(m) == 1 {
			for _, v := range m {
				got, ok = v.(string)
			}
		}
		if got = strings.TrimSuffix(strings.TrimPrefix(got, "arn:aws:iam::"), ":root"); !ok || got != strings.TrimSuffix(strings.TrimPrefix(principal, "arn:aws:iam::"), ":root") {
			t.Fatalf("%q became %s", principal, added)
		}
	})
}

// FuzzMarker: a marker is read as it was made, and what was not made as one is
// refused or read as a text.
func FuzzMarker(f *testing.F) {
	f.Add("a 00000000000000000001", "!")
	f.Fuzz(func(t *testing.T, last, hostile string) {
		if got, err := readMarker(makeMarker(last)); err != nil || got != last {
			t.Fatalf("%q became %q: %v", last, got, err)
		}
		items := []string{"a", "b", "c"}
		page, _, err := paginate(items, func(s string) string { return s }, &hostile, nil, 2)
		if err == nil && len(page) > 2 {
			t.Fatalf("a page of %d", len(page))
		}
	})
}

// FuzzKey: keys of records are taken apart as they were made, and others are
// refused without harm.
func FuzzKey(f *testing.F) {
	f.Add("000000000000.us-east-1.function.f.version.1", int64(1))
	f.Add("000000000000.us-east-1.layer.l.99999999999999999999", int64(-1))
	f.Add("...", int64(0))
	f.Fuzz(func(t *testing.T, key string, n int64) {
		if k, ok := parseKey(key); ok && k.kind == kindVersion {
			if again, ok := parseKey(versionKey(k.account, k.region, k.name, k.number)); !ok || again != k {
				t.Fatalf("%q: %+v and %+v", key, k, again)
			}
		}
		if k, ok := parseKey(versionKey("1", "r", "f", n)); !ok || k.number != n {
			t.Fatalf("version %s: %+v %v", strconv.FormatInt(n, 10), k, ok)
		}
	})
}
