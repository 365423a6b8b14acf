package aws

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lambdad/lambdad"
)

// thing has a member of every kind that generated types have.
type thing struct {
	Name  *string           `json:"name,omitzero"`
	Count *int64            `json:"Count,omitzero"`
	Ratio *float64          `json:"Ratio,omitzero"`
	Yes   *bool             `json:"Yes,omitzero"`
	Blob  []byte            `json:"Blob,omitzero"`
	When  *Timestamp        `json:"When,omitzero"`
	Names []string          `json:"Names,omitzero"`
	Sizes []float64         `json:"Sizes,omitzero"`
	Times []Timestamp       `json:"Times,omitzero"`
	Tags  map[string]string `json:"Tags,omitzero"`
	Sums  map[string]int64  `json:"Sums,omitzero"`
	Inner *thing            `json:"Inner,omitzero"`
	List  []thing           `json:"List,omitzero"`
	Flat  []string          `json:"Flat,omitzero" query:"flat,flattened"`
	Lists [][]string        `json:"Lists,omitzero"`
	Never *string           `json:"-"`
}

func (t *thing) Validate(v *Validator) {
	v.String("name", t.Name, &Constraint{Max: new(float64(5)), Enum: []string{"a", "full", "<&>"}})
}

func testAPI() *API {
	return &API{Name: "monitoring", Title: "Things", Version: "2010-08-01", Protocols: []Protocol{CBOR, JSON10, JSON11, Query},
		Target: "GraniteServiceVersion20100801", Namespace: "http://things/", Operations: []string{"Echo", "Fail", "Later", "Nothing"},
		Errors: map[string]ErrorShape{"ThingException": {Status: 404, Key: "Message", QueryCode: "Thing"}}}
}

type rpcService struct{ RPC }

func testRPC(api *API) *Mux {
	return NewMux(testKeys(), Options{Auth: Any}, rpcService{NewRPC(api, map[string]Handler{
		"Echo":    Operation(func(_ *Request, in *thing) (*thing, error) { return in, nil }),
		"Fail":    Operation(func(*Request, *Empty) (*thing, error) { return nil, lambdad.Errorf("ThingException", "no %s", "thing") }),
		"Nothing": Operation(func(*Request, *Empty) (*Empty, error) { return nil, nil }),
	})})
}

func full() *thing {
	when := time.Date(2026, 3, 4, 5, 6, 7, 250e6, time.UTC)
	return &thing{
		Name: new("full"), Count: new(int64(-7)), Ratio: new(1.5), Yes: new(true), Blob: []byte("blob\x00"),
		When: At(when), Names: []string{"x", "", "<z>"}, Sizes: []float64{1, 2.25, 1e300}, Times: []Timestamp{{when}},
		Tags: map[string]string{"k": "v", "a.b": ""}, Sums: map[string]int64{"n": 3}, Inner: &thing{Name: new("in"), Names: []string{}},
		List: []thing{{Count: new(int64(1))}, {Inner: &thing{Tags: map[string]string{"q": "r"}}}}, Flat: []string{"f", "g"},
	}
}

func serve(m *Mux, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	m.ServeHTTP(w, r)
	return w
}

func jsonRequest(version, op, body string) *http.Request {
	r := httptest.NewRequest("POST", "/", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-amz-json-"+version)
	r.Header.Set("X-Amz-Target", "GraniteServiceVersion20100801."+op)
	return r
}

func cborRequest(op string, body []byte) *http.Request {
	r := httptest.NewRequest("POST", "/service/GraniteServiceVersion20100801/operation/"+op, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/cbor")
	r.Header.Set("Smithy-Protocol", "rpc-v2-cbor")
	return r
}

func formRequest(op, form string) *http.Request {
	r := httptest.NewRequest("POST", "/", strings.NewReader("Action="+op+"&Version=2010-08-01&"+form))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/monitoring/aws4_request, SignedHeaders=host, Signature="+strings.Repeat("0", 64))
	return r
}

func TestEcho(t *testing.T) {
	m, want := testRPC(testAPI()), full()
	t.Run("json", func(t *testing.T) {
		body, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(body), `"When":1772600767.25`) || !strings.Contains(string(body), `"Blob":"YmxvYgA="`) {
			t.Errorf("%s", body)
		}
		for _, version := range []string{"1.0", "1.1"} {
			w := serve(m, jsonRequest(version, "Echo", string(body)))
			var got thing
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 {
				t.Fatalf("%d %s: %v", w.Code, w.Body, err)
			}
			if !reflect.DeepEqual(&got, want) || w.Header().Get("Content-Type") != "application/x-amz-json-"+version {
				t.Errorf("%s %v", w.Body, w.Header())
			}
		}
	})
	t.Run("cbor", func(t *testing.T) {
		body, err := cbor.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var z bytes.Buffer
		gz := gzip.NewWriter(&z)
		gz.Write(body)
		gz.Close()
		for _, encoding := range []string{"", "gzip"} {
			r := cborRequest("Echo", body)
			if encoding != "" {
				r = cborRequest("Echo", z.Bytes())
				r.Header.Set("Content-Encoding", encoding)
			}
			w := serve(m, r)
			var got thing
			if err := cbor.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 {
				t.Fatalf("%d %s: %v", w.Code, w.Body, err)
			}
			if !reflect.DeepEqual(&got, want) || w.Header().Get("Smithy-Protocol") != "rpc-v2-cbor" || w.Header().Get("Content-Type") != "application/cbor" {
				t.Errorf("%+v %v", got, w.Header())
			}
			var raw map[string]any
			if err := cbor.Unmarshal(w.Body.Bytes(), &raw); err != nil {
				t.Fatal(err)
			}
			if _, ok := raw["When"].(time.Time); !ok {
				t.Errorf("When is %T: no tag 1", raw["When"])
			}
		}
	})
	t.Run("query", func(t *testing.T) {
		form := url.Values{
			"name": {"full"}, "Count": {"-7"}, "Ratio": {"1.5"}, "Yes": {"true"}, "Blob": {"YmxvYgA="}, "When": {"2026-03-04T05:06:07.25Z"},
			"Names.member.1": {"x"}, "Names.member.2": {""}, "Names.member.10": {"<z>"},
			"Sizes.member.1": {"1"}, "Sizes.member.2": {"2.25"}, "Sizes.member.3": {"1e300"}, "Times.member.1": {"2026-03-04T06:06:07.25+01:00"},
			"Tags.entry.1.key": {"k"}, "Tags.entry.1.value": {"v"}, "Tags.entry.2.key": {"a.b"}, "Tags.entry.2.value": {""},
			"Sums.entry.1.key": {"n"}, "Sums.entry.1.value": {"3"}, "Inner.name": {"in"}, "Inner.Names": {""},
			"List.member.1.Count": {"1"}, "List.member.2.Inner.Tags.entry.1.key": {"q"}, "List.member.2.Inner.Tags.entry.1.value": {"r"},
			"flat.1": {"f"}, "flat.2": {"g"}, "Unknown.member.1": {"ignored"},
		}
		var got thing
		if err := decodeForm(form, &got); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(&got, want) {
			t.Errorf("%+v", got)
		}
		w := serve(m, formRequest("Echo", form.Encode()))
		wantXML := `<EchoResponse xmlns="http://things/"><EchoResult><name>full</name><Count>-7</Count><Ratio>1.5</Ratio><Yes>true</Yes>` +
			`<Blob>YmxvYgA=</Blob><When>2026-03-04T05:06:07.25Z</When><Names><member>x</member><member></member><member>&lt;z&gt;</member></Names>` +
			`<Sizes><member>1</member><member>2.25</member><member>1E+300</member></Sizes><Times><member>2026-03-04T05:06:07.25Z</member></Times>` +
			`<Tags><entry><key>a.b</key><value></value></entry><entry><key>k</key><value>v</value></entry></Tags><Sums><entry><key>n</key><value>3</value></entry></Sums>` +
			`<Inner><name>in</name><Names></Names></Inner><List><member><Count>1</Count></member><member><Inner><Tags><entry><key>q</key><value>r</value></entry></Tags></Inner></member></List>` +
			`<flat>f</flat><flat>g</flat></EchoResult><ResponseMetadata><RequestId>` + raw(w, "x-amzn-RequestId") + `</RequestId></ResponseMetadata></EchoResponse>` + "\n"
		if w.Code != 200 || w.Body.String() != wantXML || w.Header().Get("Content-Type") != "text/xml" {
			t.Errorf("%d %s\nwant %s", w.Code, w.Body, wantXML)
		}
	})
}

func TestNoOutput(t *testing.T) {
	m := testRPC(testAPI())
	for _, r := range []*http.Request{jsonRequest("1.1", "Nothing", ""), cborRequest("Nothing", nil)} {
		if w := serve(m, r); w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("Content-Length") != "0" {
			t.Errorf("%d %q %v", w.Code, w.Body, w.Header())
		}
	}
	if w := serve(m, formRequest("Nothing", "")); w.Code != 200 || !strings.HasPrefix(w.Body.String(), `<NothingResponse xmlns="http://things/"><ResponseMetadata><RequestId>`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestErrors: one error in each protocol's words.
func TestRPCErrors(t *testing.T) {
	cborBody := func(pairs map[string]any) []byte { return must(cbor.Marshal(pairs)) }
	requests := func(op, jsonBody, form string, c map[string]any) map[string]*http.Request {
		return map[string]*http.Request{"json": jsonRequest("1.0", op, jsonBody), "query": formRequest(op, form), "cbor": cborRequest(op, cborBody(c))}
	}
	for _, test := range []struct {
		name     string
		requests map[string]*http.Request
		status   int
		code     string
		query    string // code in the query protocol
		message  string
	}{
		{"modelled", requests("Fail", "{}", "", nil), 404, "ThingException", "Thing", "no thing"},
		{"unknown operation", requests("None", "{}", "", nil), 0, "UnknownOperationException", "InvalidAction", ""},
		{"not offered", requests("Later", "{}", "", nil), 501, "NotImplemented", "NotImplemented", "lambdad does not offer the operation Later of Things yet."},
		{"invalid", requests("Echo", `{"name":"abcdef"}`, "name=abcdef", map[string]any{"name": "abcdef"}), 400, "ValidationException", "ValidationError",
			"2 validation errors detected: Value 'abcdef' at 'name' failed to satisfy constraint: Member must have length less than or equal to 5; " +
				"Value 'abcdef' at 'name' failed to satisfy constraint: Member must satisfy enum value set: [a, full, <&>]"},
		{"malformed", requests("Echo", `{"Count":"x"}`, "Count=x", map[string]any{"Count": "x"}), 400, "SerializationException", "MalformedInput", ""},
		{"malformed time", requests("Echo", `{"When":"x"}`, "When=x", map[string]any{"When": "x"}), 400, "SerializationException", "MalformedInput", ""},
	} {
		for proto, r := range test.requests {
			r.Header.Set("x-amzn-query-mode", "true")
			w := serve(testRPC(testAPI()), r)
			var code, message string
			switch proto {
			case "json":
				var e map[string]string
				if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
					t.Fatalf("%s: %s", test.name, w.Body)
				}
				code, message = e["__type"], e["message"]+e["Message"]
			case "cbor":
				var e map[string]string
				if err := cbor.Unmarshal(w.Body.Bytes(), &e); err != nil {
					t.Fatalf("%s: %s", test.name, w.Body)
				}
				code, message = e["__type"], e["message"]
			default:
				_, rest, _ := strings.Cut(w.Body.String(), "<Code>")
				code, rest, _ = strings.Cut(rest, "</Code>")
				_, rest, _ = strings.Cut(rest, "<Message>")
				message, _, _ = strings.Cut(rest, "</Message>")
				message = strings.NewReplacer("&#39;", "'", "&lt;", "<", "&gt;", ">", "&amp;", "&").Replace(message)
			}
			want := test.code
			if proto == "query" {
				want = test.query
			} else if header := raw(w, "x-amzn-query-error"); test.name == "modelled" && header != "Thing;Sender" {
				t.Errorf("%s %s: x-amzn-query-error %q", test.name, proto, header)
			}
			if code != want || test.message != "" && message != test.message || test.status != 0 && w.Code != test.status || w.Code < 400 {
				t.Errorf("%s %s: %d %s %q", test.name, proto, w.Code, code, message)
			}
		}
	}
	api := testAPI()
	api.ValidationCode, api.ValidationQuiet = "InvalidParameterException", true
	w := serve(testRPC(api), jsonRequest("1.1", "Echo", `{"name":"no"}`))
	if want := `{"__type":"InvalidParameterException","message":"1 validation error detected: Value at 'name' failed to satisfy constraint: Member must satisfy enum value set"}`; w.Body.String() != want {
		t.Errorf("%s", w.Body)
	}
}

func TestMalformedForms(t *testing.T) {
	for _, form := range []string{
		"Count=1.5", "Count=", "Count.member.1=1", "Yes=1", "Ratio=x", "Blob=%25", "Names.member.0=x", "Names.member.01=x", "Names.member.-1=x",
		"Names.member.x=y", "Names.member.1.member.1=x", "Tags.entry.1.key=k", "Tags.entry.1.value=v", "flat.x=y", "Lists.member.1.member.x=1",
		strings.Repeat("Inner.", 40) + "name=x",
	} {
		values, err := url.ParseQuery(form)
		if err != nil {
			t.Fatal(err)
		}
		if err := decodeForm(values, new(thing)); lambdad.ErrorCode(err) != "MalformedInput" {
			t.Errorf("%s: %v", form, err)
		}
	}
}

// FuzzForm: whatever the form, it is read or refused, and what was read is answered
// as XML.
func FuzzForm(f *testing.F) {
	f.Add("name=full&Count=1&List.member.1.Names.member.3=x&Tags.entry.1.key=a&Tags.entry.1.value=b&flat.1=x&When=2026-01-01T00:00:00Z")
	f.Add("Inner.Inner.Inner.Blob=AAAA&Times.member.99999999999=2026-01-01T00:00:00Z")
	f.Fuzz(func(t *testing.T, form string) {
		values, err := url.ParseQuery(form)
		if err != nil {
			return
		}
		var in thing
		if err := decodeForm(values, &in); err != nil {
			if lambdad.ErrorCode(err) == "" {
				t.Fatalf("%q: %v", form, err)
			}
			return
		}
		encodeXML(&Request{Route: testAPI(), Operation: "Echo"}, &in)
	})
}

// FuzzRPC: whatever the body, it is answered or refused, never with an internal error.
func FuzzRPC(f *testing.F) {
	f.Add([]byte(`{"name":"full","When":1e9,"Times":[null,1],"Inner":{"Inner":{}}}`))
	f.Add([]byte(`{"When":1e400}`))
	f.Add(must(cbor.Marshal(full())))
	f.Add([]byte("\xbfdWhen\xc1\xfb\x7f\xf0\x00\x00\x00\x00\x00\x00\xff"))
	m := testRPC(testAPI())
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, r := range []*http.Request{jsonRequest("1.0", "Echo", string(body)), cborRequest("Echo", body)} {
			if w := serve(m, r); w.Code != 200 && w.Code != 400 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
		}
	})
}

// raw is a header whose name is not in Go's spelling.
func raw(w *httptest.ResponseRecorder, name string) string {
	return strings.Join(w.Header()[name], ",")
}
