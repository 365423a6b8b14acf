package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestOperatorsPage: signed requests are AWS's, about a bucket called metrics.
func TestOperatorsPage(t *testing.T) {
	answer := func(text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(text)) })
	}
	h := withOperatorsPage(answer("aws"), answer("page"))
	for _, test := range []struct{ method, path, signed, want string }{
		{"GET", "/metrics", "", "page"}, {"GET", "/_lambdad/metrics", "", "page"}, {"GET", "/metrics", "AWS4-HMAC-SHA256 …", "aws"},
		{"GET", "/metrics?X-Amz-Signature=0", "", "aws"}, {"PUT", "/metrics", "", "aws"}, {"GET", "/metrics/key", "", "aws"},
	} {
		r := httptest.NewRequest(test.method, test.path, nil)
		r.Header.Set("Authorization", test.signed)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if got := w.Body.String(); got != test.want {
			t.Errorf("%s %s, signed %q: %s, want %s", test.method, test.path, test.signed, got, test.want)
		}
	}
}
