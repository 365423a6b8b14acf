package cloudwatchlogs

import (
	"maps"
	"strings"
	"testing"
	"time"
)

func TestPattern(t *testing.T) {
	for _, c := range []struct {
		pattern  string
		yes, not []string
	}{
		{"", []string{"", "anything"}, nil},
		{"ERROR", []string{"[ERROR 400] BAD REQUEST", "ERROR"}, []string{"error", "ERR"}},
		{"ERROR ARGUMENTS", []string{"[ERROR 419] MISSING ARGUMENTS"}, []string{"[ERROR 400] BAD REQUEST", "ARGUMENTS"}},
		{"?ERROR ?ARGUMENTS", []string{"[ERROR 400] BAD REQUEST", "ARGUMENTS"}, []string{"nothing"}},
		{"?ERROR REQUEST", []string{"BAD REQUEST"}, []string{"ERROR"}},
		{`"INTERNAL SERVER ERROR"`, []string{"[ERROR 500] INTERNAL SERVER ERROR"}, []string{"INTERNAL ERROR"}},
		{`"say \"hi\" C:\\x"`, []string{`they say "hi" C:\x`}, []string{`say hi`}},
		{"ERROR -ARGUMENTS", []string{"[ERROR 400] BAD REQUEST"}, []string{"[ERROR 419] MISSING ARGUMENTS", "OK"}},
		{`-"not this"`, []string{"that"}, []string{"but not this"}},
		{"%AUTHORIZED%", []string{"UNAUTHORIZED REQUEST"}, []string{"AUTH"}},
		{`%^\[ERROR [0-9]{3}\]% -%40[13]%`, []string{"[ERROR 400] x"}, []string{"[ERROR 401] x", "x [ERROR 400]"}},

		{`{ $.eventType = "UpdateTrail" }`, []string{`{"eventType":"UpdateTrail"}`, ` {"eventType": "UpdateTrail", "x":1}` + "\n"}, []string{`{"eventType":"Update"}`, `{"x":1}`, `not json`, `{"eventType":"UpdateTrail"} x`, ""}},
		{`{ $.eventType = "Update*" && $.n != 3 }`, []string{`{"eventType":"UpdateTrail","n":4}`}, []string{`{"eventType":"UpdateTrail","n":3}`, `{"eventType":"UpdateTrail"}`}},
		{`{ $.sourceIPAddress != 123.123.* }`, []string{`{"sourceIPAddress":"1.2.3.4"}`}, []string{`{"sourceIPAddress":"123.123.1.2"}`, `{}`}},
		{`{ $.arrayKey[0] = "value" }`, []string{`{"arrayKey":["value","b"]}`}, []string{`{"arrayKey":["b","value"]}`, `{"arrayKey":[]}`, `{"arrayKey":"value"}`}},
		{`{ $.list[*].id = 2 }`, []string{`{"list":[{"id":1},{"id":2}]}`}, []string{`{"list":[{"id":1}]}`}},
		{`{ $.objectList[1].id = 2 }`, []string{`{"objectList":[{"id":1},{"id":2}]}`}, []string{`{"objectList":[{"id":2},{"id":1}]}`}},
		{`{ $.["a b"].c = 1 }`, []string{`{"a b":{"c":1}}`}, []string{`{"a":1}`}},
		{`{ $['a'] = 1 }`, []string{`{"a":1}`}, nil},
		{`{ $.bandwidth > 75 }`, []string{`{"bandwidth":75.5}`, `{"bandwidth":1e3}`}, []string{`{"bandwidth":75}`, `{"bandwidth":"80"}`}},
		{`{ $.latency >= 1.5e1 || $.code = 404 }`, []string{`{"latency":15}`, `{"code":404}`}, []string{`{"latency":14.9,"code":200}`}},
		{`{ $.code = 404.0 }`, []string{`{"code":404}`}, nil},
		{`{ ($.a = 1 || $.b = 2) && $.c = 3 }`, []string{`{"a":1,"c":3}`, `{"b":2,"c":3}`}, []string{`{"a":1}`, `{"c":3}`}},
		{`{ $.a = 1 || $.b = 2 && $.c = 3 }`, []string{`{"a":1}`, `{"b":2,"c":3}`}, []string{`{"b":2}`}},
		{`{ $.x IS NULL }`, []string{`{"x":null}`}, []string{`{"x":1}`, `{}`}},
		{`{ $.x is true }`, []string{`{"x":true}`}, []string{`{"x":false}`, `{"x":"true"}`}},
		{`{ $.x IS FALSE }`, []string{`{"x":false}`}, []string{`{"x":true}`}},
		{`{ $.x NOT EXISTS }`, []string{`{"y":1}`}, []string{`{"x":null}`}},
		{`{ $.x = * }`, []string{`{"x":"a"}`, `{"x":1}`, `{"x":true}`}, []string{`{"x":null}`, `{}`, `{"x":{}}`}},
		{`{ $.x = "*" }`, []string{`{"x":"a"}`, `{"x":1}`}, []string{`{}`}},
		{`{ $.status = "404" }`, []string{`{"status":"404"}`}, []string{`{"status":404}`}},
		{`{ $.who = %^ad.*n$% }`, []string{`{"who":"admin"}`}, []string{`{"who":"badmin"}`}},
		{`{$.level="ERROR"}`, []string{`{"level":"ERROR"}`}, []string{`{"level":"INFO"}`}},
		{`{ $.user.id-x = a }`, []string{`{"user":{"id-x":"a"}}`}, nil},

		{`[ip, user, username, timestamp, request = *.html*, status_code = 4*, bytes]`,
			[]string{`127.0.0.1 - frank [10/Oct/2000:13:25:15 -0700] "GET /index.html HTTP/1.0" 404 1534`},
			[]string{`127.0.0.1 - frank [10/Oct/2000:13:25:15 -0700] "GET /index.html HTTP/1.0" 200 1534`, "a b", ""}},
		{`[..., status_code = 404 || status_code = 410, bytes]`, []string{"x y 404 1", "410 7"}, []string{"x 200 1", "404"}},
		{`[ip, ..., bytes > 1000]`, []string{"1 x y z 1534", "1 1001"}, []string{"1 x 10", "1 x abc"}},
		{`[w1 != %ERROR% && w1 != "DEBUG", w2]`, []string{"INFO x"}, []string{"ERROR x", "DEBUG x", "INFO"}},
		{`[first = "two words", second]`, []string{`"two words" b`}, []string{"two words b"}},
		{`[a, b, c]`, []string{"1 2 3"}, []string{"1 2", "1 2 3 4"}},
		{`[, b = 2]`, []string{"x 2"}, []string{"2 x"}},
	} {
		p, err := ParsePattern(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
			continue
		}
		for _, m := range c.yes {
			if !p.Match(m) {
				t.Errorf("%s does not match %s", c.pattern, m)
			}
		}
		for _, m := range c.not {
			if p.Match(m) {
				t.Errorf("%s matches %s", c.pattern, m)
			}
		}
	}
}

func TestPatternErrors(t *testing.T) {
	for pattern, want := range map[string]string{
		`foo:bar`:                            "invalid character(s) in term 'foo:bar'",
		`"open`:                              "not closed",
		`%open`:                              "not closed",
		`%(%`:                                "cannot be read",
		`-`:                                  "invalid character(s)",
		`{`:                                  "selector",
		`{ $.a }`:                            "an operator",
		`{ $.a = }`:                          "a value",
		`{ $.a = 1`:                          "expected }",
		`{ $.a = 1 } x`:                      "the end",
		`{ $.a > x }`:                        "compares numbers",
		`{ $ = 1 }`:                          "a name",
		`{ $.a[x] = 1 }`:                     "an index",
		`{ $.a IS MAYBE }`:                   "NULL, TRUE or FALSE",
		`{ $.a NOT THERE }`:                  "EXISTS",
		`{ $.a = 1 && }`:                     "selector",
		`{` + strings.Repeat("(", 100) + `$`: "too deep",
		`[`:                                  "name of a field",
		`[]`:                                 "no fields",
		`[a, ..., b, ...]`:                   "once",
		`[a = 1 || b = 2]`:                   "within the field",
		`[a`:                                 "expected",
		`[a] b`:                              "the end",
	} {
		if _, err := ParsePattern(pattern); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", pattern, err, want)
		}
	}
}

func TestExtract(t *testing.T) {
	for _, c := range []struct {
		pattern, message string
		want             map[string]string
	}{
		{`{ $.a.b = * && $.n > 1 }`, `{"a":{"b":"x"},"n":2}`, map[string]string{"$.a.b": "x", "$.n": "2"}},
		{`[ip, , bytes]`, `1.1.1.1 "a b" 7`, map[string]string{"$ip": "1.1.1.1", "$2": "a b", "$bytes": "7"}},
		{`ERROR`, `ERROR`, map[string]string{}},
	} {
		p, err := ParsePattern(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Extract(c.message); !p.Match(c.message) || !maps.Equal(got, c.want) {
			t.Errorf("%s of %s: %v", c.pattern, c.message, got)
		}
	}
}

// FuzzPattern holds that no pattern and no message does more than match or not, in
// a time that both allow.
func FuzzPattern(f *testing.F) {
	for _, p := range []string{"", "ERROR -x ?y", `"a\"b"`, "%a*(b|c)%", `{ $.a[0].b = "x*" && ($.c > 1e3 || $.d IS NULL) }`, `[a, b=4*||b=%x%, ..., c>1]`, `{$.a NOT EXISTS}`, "{((((", "[,,,]"} {
		for _, m := range []string{"", "ERROR", `{"a":[{"b":"xyz"}],"c":2000}`, `1 "2 3" [4 5] 6`, "\xff{"} {
			f.Add(p, m)
		}
	}
	f.Fuzz(func(t *testing.T, pattern, message string) {
		if len(pattern) > 1024 || len(message) > 64<<10 {
			t.Skip()
		}
		p, err := ParsePattern(pattern)
		if err != nil {
			return
		}
		begin := time.Now()
		if p.Match(message) {
			p.Extract(message)
		}
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("%q takes %v", pattern, d)
		}
	})
}
