package frontend

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

const location = "\n at [Source: REDACTED (`StreamReadFeature.INCLUDE_SOURCE_IN_LOCATION` disabled); line: %d, column: %d]"

func TestCheckJSON(t *testing.T) {
	for _, c := range []struct {
		in, text     string
		line, column int
	}{
		// Recorded from AWS on 2025-11-24.
		{"n\x87r\x9e\xe9\xb5\xd7I\xee\x9bmt", "Invalid UTF-8 start byte 0x87", 1, 3},
		{"\x99\xeb,j\x07\xa1zYh", "Unexpected character ((CTRL-CHAR, code 153)): " + anyValue, 1, 1},

		// As AWS's parser words them.
		{" \n ", "No content to map due to end-of-input", 2, 2},
		{"hello", "Unrecognized token 'hello': was expecting " + anyToken, 1, 6},
		{"hello world", "Unrecognized token 'hello': was expecting " + anyToken, 1, 7},
		{"nul", "Unrecognized token 'nul': was expecting " + anyToken, 1, 4},
		{"truee", "Unrecognized token 'truee': was expecting " + anyToken, 1, 6},
		{"'a'", "Unexpected character (''' (code 39)): " + anyValue, 1, 1},
		{"{\"a\":1,}", "Unexpected character ('}' (code 125)): was expecting double-quote to start field name", 1, 8},
		{"{a:1}", "Unexpected character ('a' (code 97)): was expecting double-quote to start field name", 1, 2},
		{"{\"a\" 1}", "Unexpected character ('1' (code 49)): was expecting a colon to separate field name and value", 1, 6},
		{"{\"a\":1 \"b\"}", "Unexpected character ('\"' (code 34)): was expecting comma to separate Object entries", 1, 8},
		{"[1,\n 2 3]", "Unexpected character ('3' (code 51)): was expecting comma to separate Array entries", 2, 4},
		{"[1,]", "Unexpected character (']' (code 93)): " + anyValue, 1, 4},
		{"{\"a\":\"b\nc\"}", "Illegal unquoted character ((CTRL-CHAR, code 10)): has to be escaped using backslash to be included in string value", 1, 0},
		{`"\x"`, "Unrecognized character escape 'x' (code 120)", 1, 4},
		{`"\u12g4"`, "Unexpected character ('g' (code 103)): expected a hex-digit for character escape sequence", 1, 6},
		{"01", "Invalid numeric value: Leading zeroes not allowed", 1, 2},
		{"[1.]", "Unexpected character (']' (code 93)) in numeric value: Decimal point not followed by a digit", 1, 4},
		{"[-]", "Unexpected character (']' (code 93)) in numeric value: expected digit (0-9) to follow minus sign, for valid numeric value", 1, 3},
		{"\"a\xc3(\"", "Invalid UTF-8 middle byte 0x28", 1, 5},
		{"{", "Unexpected end-of-input: expected close marker for Object (start marker at [Source: REDACTED (`StreamReadFeature.INCLUDE_SOURCE_IN_LOCATION` disabled); line: 1, column: 1])", 1, 2},
		{"{\"a\":[{}, {\"]\":1}", "Unexpected end-of-input: expected close marker for Array (start marker at [Source: REDACTED (`StreamReadFeature.INCLUDE_SOURCE_IN_LOCATION` disabled); line: 1, column: 6])", 1, 18},
		{"{\"a\":", "Unexpected end-of-input within/between Object entries", 1, 6},
		{"\"abc", "Unexpected end-of-input: was expecting closing quote for a string value", 1, 5},
		{"[1}", "Unexpected close marker '}': expected ']' (for Array starting at [Source: REDACTED (`StreamReadFeature.INCLUDE_SOURCE_IN_LOCATION` disabled); line: 1, column: 1])", 1, 3},
	} {
		want := c.text
		if c.column > 0 {
			want += fmt.Sprintf(location, c.line, c.column)
		}
		if got := checkJSON([]byte(c.in)); !strings.HasPrefix(got, want) || c.column > 0 && got != want {
			t.Errorf("%q:\n got %q\nwant %q", c.in, got, want)
		}
	}
}

// valid is the judge: the standard library for the syntax, UTF-8 on top.
func valid(b []byte) bool { return json.Valid(b) && utf8.Valid(b) }

var seeds = []string{
	"{}", "[]", "null", "true", "false", "0", "-0.5e+10", `""`, `{"a":[1,2,{"b":"c"}],"d":null}`,
	`"\u00e9\\\"\/\b\f\n\r\t é 日本 🙂"`, " [ 1 , 2 ] ", `{"":{"":[]}}`, "[[[[[]]]]]", "1.5E3",
	"", "{", "[1,]", `{"a"}`, "nul", "tru e", "\"\x7f\"", "\"12345678\xff\"", "1 2", "{} {}", "-", "1e", "[}", "]", "\xef\xbb\xbf{}",
}

func TestDepth(t *testing.T) {
	for _, n := range []int{maxDepth, maxDepth + 1} {
		for _, s := range []string{strings.Repeat("[", n) + strings.Repeat("]", n), strings.Repeat(`{"":`, n) + "1" + strings.Repeat("}", n)} {
			if text := checkJSON([]byte(s)); (text == "") != (n == maxDepth) {
				t.Errorf("depth %d: %q", n, text)
			}
		}
	}
}

func FuzzCheckJSON(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		text := checkJSON(b)
		if (text == "") != valid(b) {
			t.Fatalf("%q: got %q, valid is %v", b, text, valid(b))
		}
		if text != "" && (!utf8.ValidString(text) || !strings.Contains(text, "\n at [Source: ")) {
			t.Fatalf("%q: message %q", b, text)
		}
	})
}

func sixMegabytes(s string) []byte {
	return []byte(`[` + strings.Repeat(s+",", 6_000_000/(len(s)+1)) + s + `]`)
}

func BenchmarkCheckJSON(b *testing.B) {
	for name, doc := range map[string][]byte{
		"records": sixMegabytes(`{"id":12345,"name":"a name of some length","tags":["x","y"],"ok":true}`),
		"base64":  sixMegabytes(`"` + strings.Repeat("QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo", 2000) + `"`),
		"numbers": sixMegabytes("1234567"),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(doc)))
			b.ReportAllocs()
			for b.Loop() {
				if text := checkJSON(doc); text != "" {
					b.Fatal(text)
				}
			}
		})
		b.Run(name+"/encoding-json", func(b *testing.B) {
			b.SetBytes(int64(len(doc)))
			for b.Loop() {
				if !json.Valid(doc) || bytes.IndexByte(doc, 0xff) >= 0 {
					b.Fatal("not valid")
				}
			}
		})
	}
}
