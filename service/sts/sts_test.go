package sts

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lambdad/lambdad/aws"
)

func TestOperations(t *testing.T) {
	mux := aws.NewMux(aws.NewKeyStore(), aws.Options{Auth: aws.Any}, New(Config{}))
	call := func(query string) (int, string) {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", "/?"+query, nil))
		return w.Code, w.Body.String()
	}
	if status, body := call("Action=GetCallerIdentity&Version=2011-06-15"); status != 200 ||
		!strings.Contains(body, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><UserId>000000000000</UserId><Account>000000000000</Account><Arn>arn:aws:iam::000000000000:root</Arn></GetCallerIdentityResult>`) ||
		!strings.Contains(body, "<ResponseMetadata><RequestId>") {
		t.Errorf("%d %s", status, body)
	}
	for _, op := range api.Operations {
		if op == "GetCallerIdentity" || op == "AssumeRole" || op == "GetSessionToken" {
			continue
		}
		if status, body := call("Version=2011-06-15&Action=" + op); status != 501 || !strings.Contains(body, "<Code>NotImplemented</Code>") {
			t.Errorf("%s: %d %s", op, status, body)
		}
	}
	for _, query := range []string{"Version=2011-06-15&Action=Nothing", "Version=2010-05-16&Action=GetCallerIdentity"} {
		if status, body := call(query); status == 200 || strings.Contains(body, "<Arn>") {
			t.Errorf("%s: %d %s", query, status, body)
		}
	}
	if status, body := call("Version=2011-06-15&Action=Nothing"); status != 400 || !strings.Contains(body, "<Code>InvalidAction</Code>") {
		t.Errorf("%d %s", status, body)
	}
}
