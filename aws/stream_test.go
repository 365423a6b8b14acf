package aws

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lambdad/lambdad"
)

// exampleSigner is that of the worked example in the documentation of Signature
// Version 4 for uploads in chunks.
func exampleSigner(t *testing.T) *chunkSigner {
	t.Helper()
	v := newVerifier(time.Now)
	key := v.signingKey(&authorization{accessKeyID: "AKIAIOSFODNN7EXAMPLE", date: "20130524", region: "us-east-1", service: "s3"},
		"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
	return &chunkSigner{
		key: key.key[:], stamp: "20130524T000000Z", scope: "20130524/us-east-1/s3/aws4_request",
		previous: "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9", h: sha256.New(),
	}
}

func exampleBody() string {
	a := strings.Repeat("a", 65536)
	return "10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n" + a + "\r\n" +
		"400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n" + a[:1024] + "\r\n" +
		"0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
}

func TestSignedChunks(t *testing.T) {
	read := func(body string) (int64, error) {
		c := &chunkedReader{r: bufio.NewReader(strings.NewReader(body)), left: 66560, trailer: func(http.Header) {}, sign: exampleSigner(t)}
		return io.Copy(io.Discard, c)
	}
	if n, err := read(exampleBody()); n != 66560 || err != nil {
		t.Errorf("the documented example: %d bytes, %v", n, err)
	}
	var auth *authError
	if _, err := read(strings.Replace(exampleBody(), "aaaa\r\n0;", "aaab\r\n0;", 1)); !errors.As(err, &auth) {
		t.Errorf("a changed byte: %v", err)
	}
	if _, err := read(strings.Replace(exampleBody(), "b6c6", "b6c7", 1)); !errors.As(err, &auth) {
		t.Errorf("a changed last signature: %v", err)
	}
	if _, err := read(exampleBody()[:70000/2]); err == nil {
		t.Error("half of it was taken for all")
	}
}

func TestUnsignedChunks(t *testing.T) {
	for _, c := range []struct {
		name, body string
		left       int64
		code       string // "": fine
		trailer    string
	}{
		{"trailer", "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n", 5, "", "NhCmhg=="},
		{"no last line", "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n", 5, "", "NhCmhg=="},
		{"empty", "0\r\n\r\n", 0, "", ""},
		{"two", "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", 5, "", ""},
		{"too long", "5\r\nhello\r\n0\r\n\r\n", 4, "InvalidRequest", ""},
		{"too short", "5\r\nhello\r\n0\r\n\r\n", 6, "IncompleteBody", ""},
		{"no end", "5\r\nhello\r\n", 5, "IncompleteBody", ""},
		{"cut", "5\r\nhel", 5, "IncompleteBody", ""},
		{"no size", "x\r\nhello\r\n0\r\n\r\n", 5, "IncompleteBody", ""},
		{"negative", "-5\r\nhello\r\n0\r\n\r\n", 5, "IncompleteBody", ""},
		{"long line", strings.Repeat("0", 8000) + "5\r\nhello\r\n0\r\n\r\n", 5, "IncompleteBody", ""},
		{"no line end", "5\r\nhelloX0\r\n\r\n", 5, "IncompleteBody", ""},
	} {
		var got http.Header
		r := &chunkedReader{r: bufio.NewReader(strings.NewReader(c.body)), left: c.left, trailer: func(h http.Header) { got = h }}
		_, err := io.Copy(io.Discard, r)
		if lambdad.ErrorCode(err) != c.code || (err == nil) != (c.code == "") {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.trailer != got.Get("X-Amz-Checksum-Crc32") {
			t.Errorf("%s: trailer %v", c.name, got)
		}
	}
}

func FuzzChunked(f *testing.F) {
	f.Add([]byte(exampleBody()), int64(66560))
	f.Add([]byte("5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"), int64(5))
	f.Fuzz(func(t *testing.T, body []byte, left int64) {
		c := &chunkedReader{r: bufio.NewReader(bytes.NewReader(body)), left: left, trailer: func(http.Header) {}}
		if n, err := io.Copy(io.Discard, c); err == nil && n != left {
			t.Errorf("%d bytes for %d", n, left)
		}
	})
}

// A streamed service sees only what is signed, and fails where the body differs.
func TestStream(t *testing.T) {
	keys := NewKeyStore()
	mux := NewMux(keys, Options{}, streamService{})
	for _, c := range []struct {
		hash   string
		status int
		body   string
	}{
		{fmt.Sprintf("%x", sha256.Sum256([]byte("hello"))), 200, "hello"},
		{fmt.Sprintf("%x", sha256.Sum256([]byte("other"))), 400, "<Code>XAmzContentSHA256Mismatch</Code>"},
		{unsignedPayload, 200, "hello"},
		{"something", 400, "<Code>InvalidArgument</Code>"},
		{"", 400, "<Code>MissingSecurityHeader</Code>"},
	} {
		r := httptest.NewRequest("PUT", "/bucket/key", strings.NewReader("hello"))
		if c.hash != "" {
			r.Header.Set("X-Amz-Content-Sha256", c.hash)
		}
		signS3(t, r, keys, c.hash)
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%q: %d %s", c.hash, w.Code, w.Body)
		}
	}
}

// A header that somebody adds on the way is refused.
func TestUnsignedHeader(t *testing.T) {
	keys := NewKeyStore()
	mux := NewMux(keys, Options{}, streamService{})
	r := httptest.NewRequest("PUT", "/bucket/key", strings.NewReader("hello"))
	r.Header.Set("X-Amz-Content-Sha256", unsignedPayload)
	signS3(t, r, keys, unsignedPayload)
	r.Header.Set("X-Amz-Copy-Source", "/bucket/other")
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "not signed") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// signS3 signs r as clients of S3 do.
func signS3(t *testing.T, r *http.Request, keys *KeyStore, hash string) {
	t.Helper()
	now := time.Now().UTC()
	r.Header.Set("X-Amz-Date", now.Format(amzDate))
	signed := "host;x-amz-date"
	if hash != "" {
		signed = "host;x-amz-content-sha256;x-amz-date"
	}
	admin := keys.Admin()
	a := &authorization{accessKeyID: admin.AccessKeyID, date: now.Format("20060102"), region: "us-east-1", service: "s3",
		signedHeaders: signed, timestamp: now.Format(amzDate)}
	text := fmt.Sprintf("PUT\n%s\n\nhost:%s\n", r.URL.EscapedPath(), r.Host)
	if hash != "" {
		text += "x-amz-content-sha256:" + hash + "\n"
	}
	text += "x-amz-date:" + a.timestamp + "\n\n" + signed + "\n" + hash
	sum := sha256.Sum256([]byte(text))
	v := newVerifier(time.Now)
	key := v.signingKey(a, admin.SecretAccessKey)
	mac := hmacSHA256(key.key[:], fmt.Appendf(nil, "%s\n%s\n%s/us-east-1/s3/aws4_request\n%x", algorithm, a.timestamp, a.date, sum))
	r.Header.Set("Authorization", fmt.Sprintf("%s Credential=%s/%s/us-east-1/s3/aws4_request, SignedHeaders=%s, Signature=%x",
		algorithm, a.accessKeyID, a.date, signed, mac))
}

// streamService answers with the body.
type streamService struct{}

func (streamService) Name() string                       { return "s3" }
func (streamService) Protocol() Protocol                 { return RESTXML }
func (streamService) ErrorShapes() map[string]ErrorShape { return nil }
func (streamService) Route(*Request) error               { return nil }
func (streamService) Streams(*Request) bool              { return true }

func (streamService) ServeAWS(w http.ResponseWriter, r *Request) error {
	b, err := io.ReadAll(r.Request.Body)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}
