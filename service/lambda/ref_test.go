package lambda

import (
	"regexp"
	"strings"
	"testing"
)

// FuzzFunctionRef: the parser by hand and the pattern of the model, with the
// recorded additions, say the same of every text.
func FuzzFunctionRef(f *testing.F) {
	for _, s := range []string{
		"f", "f:1", "f:$LATEST", "f:$LATEST.PUBLISHED", "function:f", "function", "function:function", "function:$LATEST",
		"123456789012:function:f:v1", "123456789012:f", "us-east-1:123456789012:function:f", "us-gov-west-1:f", "us-isob-east-1:f",
		"eusc-de-east-1:f", "arn:aws:lambda:us-east-1:123456789012:function:f:$LATEST", "arn:aws-us-gov:lambda:f", "arn::lambda:f",
		"arn:aws:lambda:us-east-1:123456789012:function", "arn:aws:lambda:invalid-region:123456789012:function:f", "a.b", "f:$latest", "", ":", "a:b:c",
		"arn:aws:lambda", "arn:aws", "us-east-1:1", "lambda:f",
	} {
		f.Add(s)
	}
	pattern := regexp.MustCompile(`\A(?:` + getFunctionRequestFunctionName.Pattern.String() + `)\z`)
	f.Fuzz(func(t *testing.T, s string) {
		ref, ok := parseFunctionRef(s)
		m := pattern.FindStringSubmatch(s)
		if ok != (m != nil) {
			t.Fatalf("%q: parser %v, pattern %v", s, ok, m != nil)
		}
		if !ok {
			return
		}
		// Groups: region, account, name, qualifier.
		want := functionRef{region: strings.TrimSuffix(m[3], ":"), account: strings.TrimSuffix(m[9], ":"), name: m[11], qualifier: m[13]}
		if ref != want {
			t.Fatalf("%q: parser %+v, pattern %+v", s, ref, want)
		}
	})
}

// FuzzQualifier is the same for the Qualifier parameter.
func FuzzQualifier(f *testing.F) {
	f.Add("$LATEST")
	f.Add("$LATEST.PUBLISHED")
	f.Add("1-a_$")
	f.Fuzz(func(t *testing.T, s string) {
		want := getFunctionRequestQualifier.Pattern.Matches(s) && len(s) <= 128
		if got := isQualifier(s); got != want {
			t.Fatalf("%q: %v, pattern %v", s, got, want)
		}
	})
}
