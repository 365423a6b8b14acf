package aws

import (
	"net/http/httptest"
	"testing"
	"time"
)

// The worked example in the documentation of Signature Version 2.
func TestPresignedV2(t *testing.T) {
	const secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	const signed = "/photos/puppy.jpg?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=NpgCjnDzrM%2BWFzoENXmpNDUsSn8%3D&Expires=1175139620"
	check := func(method, target string, now time.Time) error {
		r := httptest.NewRequest(method, target, nil)
		r.Host = "johnsmith.s3.amazonaws.com"
		a, aerr := parseRequestAuth(r)
		if aerr != nil {
			return aerr
		}
		v := newVerifier(func() time.Time { return now })
		if err := v.checkTime(a); err != nil {
			return err
		}
		return v.verify(r, a, secret, [32]byte{})
	}
	in, after := time.Unix(1175139000, 0), time.Unix(1175139621, 0)
	if err := check("GET", signed, in); err != nil {
		t.Errorf("the documented example: %v", err)
	}
	for name, err := range map[string]error{
		"expired":        check("GET", signed, after),
		"another method": check("PUT", signed, in),
		"a subresource":  check("GET", signed+"&versionId=1", in),
		"another time":   check("GET", signed[:len(signed)-1]+"9", in),
		"no signature":   check("GET", "/photos/puppy.jpg?AWSAccessKeyId=A&Signature=&Expires=1175139620", in),
	} {
		if err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func FuzzPresignedV2(f *testing.F) {
	f.Add("AWSAccessKeyId=A&Signature=NpgCjnDzrM%2BWFzoENXmpNDUsSn8%3D&Expires=1175139620&acl")
	f.Fuzz(func(t *testing.T, query string) {
		if a, err := parsePresignedV2(query); a != nil && err == nil {
			r := httptest.NewRequest("GET", "/b/k", nil)
			r.URL.RawQuery = query
			if verifyV2(r, a, "secret of nobody") == nil {
				t.Error("verified by chance")
			}
		}
	})
}
