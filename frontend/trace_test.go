package frontend

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lambdad/lambdad"
)

func TestTrace(t *testing.T) {
	const root = "Root=1-5f35ae12-0c0fec141ab77a00bc047aa2"
	const made = `Root=1-[0-9a-f]{8}-[0-9a-f]{24};Parent=[0-9a-f]{16};Sampled=`
	now := time.Unix(1800000000, 0)
	for _, test := range []struct{ header, tracing, want string }{
		{"", "PassThrough", made + "0"},
		{"", "Active", made + "1"},
		{root + ";Parent=2be948a625588e32;Sampled=1", "PassThrough", root + ";Parent=2be948a625588e32;Sampled=1"},
		{root + ";Parent=2be948a625588e32;Sampled=0", "Active", root + ";Parent=2be948a625588e32;Sampled=0"},
		{root, "PassThrough", root + ";Sampled=0"},
		{root + ";Parent=2be948a625588e32", "Active", root + ";Parent=2be948a625588e32;Sampled=1"},
		{"Self=1-x; " + root + ";Sampled=?", "Active", "Self=1-x;" + root + ";Sampled=1"},
		{"nonsense", "Active", made + "1"},
	} {
		var s sampler
		if got := s.trace(test.header, &lambdad.Version{Tracing: test.tracing}, now); !regexp.MustCompile("^" + test.want + "$").MatchString(got) {
			t.Errorf("%q, %s: %q, want %s", test.header, test.tracing, got, test.want)
		}
	}
	// One a second for certain, few beyond it.
	var s sampler
	sampled := 0
	for i := range 10000 {
		if strings.HasSuffix(s.trace("", &lambdad.Version{Tracing: "Active"}, now.Add(time.Duration(i)*100*time.Microsecond)), "1") {
			sampled++
		}
	}
	if sampled < 300 || sampled > 800 {
		t.Errorf("%d of 10,000 in a second are sampled", sampled)
	}
}
