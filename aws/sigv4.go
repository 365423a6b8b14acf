package aws

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lambdad/lambdad"
)

// Limits of Signature Version 4.
const (
	clockSkew       = 15 * time.Minute
	maxPresign      = 7 * 24 * time.Hour
	amzDate         = "20060102T150405Z"
	algorithm       = "AWS4-HMAC-SHA256"
	emptySHA256     = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	unsignedPayload = "UNSIGNED-PAYLOAD"
	// maxSignedHeaders bounds the work an unauthenticated caller can ask for.
	maxSignedHeaders = 64
)

// An authorization is the signature of a request, as sent.
type authorization struct {
	accessKeyID   string
	date          string // yyyymmdd of the scope
	region        string
	service       string
	signedHeaders string // joined by ;
	signature     [sha256.Size]byte
	time          time.Time
	timestamp     string // as sent
	token         string
	presigned     bool
	expires       time.Duration // presigned only
	v2            []byte        // the signature, of Signature Version 2; time is its end
}

// authKind is what is wrong with the authentication of a request. Services of
// different protocols have different names for it.
type authKind int

const (
	malformed authKind = iota
	missingToken
	unknownKey
	badSignature
	skewed
	expired      // a presigned URL of S3
	expiredToken // temporary credentials
)

// An authError says why a request was not authenticated.
type authError struct {
	kind    authKind
	message string
}

// Error implements error.
func (e *authError) Error() string { return "aws: authentication: " + e.wire(JSON11, "").Message }

// wire names the error in the words of the protocol (control-plane.md section
// 1.3; the names of the query services and S3 are those of their documentation).
func (e *authError) wire(p Protocol, service string) *lambdad.Error {
	codes := [...][3]string{ // JSON, query, S3
		malformed:    {"IncompleteSignatureException", "IncompleteSignature", "AuthorizationHeaderMalformed"},
		missingToken: {"MissingAuthenticationTokenException", "MissingAuthenticationToken", "AccessDenied"},
		unknownKey:   {"UnrecognizedClientException", "InvalidClientTokenId", "InvalidAccessKeyId"},
		badSignature: {"InvalidSignatureException", "SignatureDoesNotMatch", "SignatureDoesNotMatch"},
		skewed:       {"InvalidSignatureException", "SignatureDoesNotMatch", "RequestTimeTooSkewed"},
		expired:      {"InvalidSignatureException", "AccessDenied", "AccessDenied"},
		expiredToken: {"ExpiredTokenException", "ExpiredToken", "ExpiredToken"},
	}[e.kind]
	texts := [...]string{
		malformed:    "The Authorization of the request could not be read.",
		missingToken: "Missing Authentication Token",
		unknownKey:   "The security token included in the request is invalid.",
		badSignature: "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.",
		skewed:       "The time of the request is too far from the time of the server.",
		expiredToken: "The security token included in the request is expired",
	}
	i := 0
	switch p {
	case Query, EC2Query:
		i = 1
	case RESTXML:
		i = 1
		if service == "s3" {
			i = 2
		}
	}
	text := e.message
	if text == "" {
		text = texts[e.kind]
	}
	return &lambdad.Error{Code: codes[i], Message: text}
}

// parseRequestAuth reads the authorization of a request: the Authorization
// header, or the query of a presigned URL. Both results are nil for an unsigned
// request. After an error in the rest of it, the authorization still has the scope
// if that could be read.
func parseRequestAuth(r *http.Request) (*authorization, *authError) {
	if h := r.Header.Get("Authorization"); h != "" {
		a, err := parseAuthorization(h)
		if a != nil {
			a.token = r.Header.Get("X-Amz-Security-Token")
			if terr := a.setTime(r.Header.Get("X-Amz-Date"), r.Header.Get("Date")); err == nil {
				err = terr
			}
		}
		return a, err
	}
	if strings.Contains(r.URL.RawQuery, "X-Amz-") {
		return parsePresigned(r.URL.RawQuery)
	}
	if strings.Contains(r.URL.RawQuery, "AWSAccessKeyId=") {
		return parsePresignedV2(r.URL.RawQuery)
	}
	return nil, nil
}

// parseAuthorization reads an Authorization header.
func parseAuthorization(h string) (*authorization, *authError) {
	name, rest, _ := strings.Cut(h, " ")
	if name != algorithm {
		if strings.HasPrefix(name, "AWS4-ECDSA") {
			return nil, &authError{malformed, "Signature Version 4A is not supported; sign with " + algorithm + "."}
		}
		return nil, &authError{malformed, "Unsupported Authorization: this endpoint takes " + algorithm + "."}
	}
	var credential, signed, signature string
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, ",")
		key, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch key {
		case "Credential":
			credential = value
		case "SignedHeaders":
			signed = value
		case "Signature":
			signature = value
		}
	}
	return newAuthorization(credential, signed, signature)
}

// parsePresigned reads the query of a presigned URL.
func parsePresigned(rawQuery string) (*authorization, *authError) {
	q, err := url.ParseQuery(rawQuery)
	if err != nil || q.Get("X-Amz-Credential") == "" {
		return nil, nil // not presigned
	}
	a, aerr := newAuthorization(q.Get("X-Amz-Credential"), q.Get("X-Amz-SignedHeaders"), q.Get("X-Amz-Signature"))
	if a == nil {
		return nil, aerr
	}
	a.presigned = true
	a.token = q.Get("X-Amz-Security-Token")
	if aerr == nil && q.Get("X-Amz-Algorithm") != algorithm {
		aerr = &authError{malformed, "X-Amz-Algorithm must be " + algorithm + "."}
	}
	if terr := a.setTime(q.Get("X-Amz-Date"), ""); aerr == nil {
		aerr = terr
	}
	seconds, err := strconv.ParseInt(q.Get("X-Amz-Expires"), 10, 64)
	if q.Get("X-Amz-Expires") == "" {
		// botocore's plain query signer sets none: the usual window.
		seconds, err = int64(clockSkew/time.Second), nil
	}
	if aerr == nil && (err != nil || seconds < 0 || seconds > int64(maxPresign/time.Second)) {
		aerr = &authError{malformed, "X-Amz-Expires must be a number of seconds from 0 to 604800."}
	}
	a.expires = time.Duration(min(max(seconds, 0), int64(maxPresign/time.Second))) * time.Second
	return a, aerr
}

func newAuthorization(credential, signed, signature string) (*authorization, *authError) {
	// The access key may hold slashes, the rest of the scope may not.
	parts := [5]string{}
	rest := credential
	for i := 4; i > 0; i-- {
		j := strings.LastIndexByte(rest, '/')
		if j < 0 {
			return nil, &authError{malformed, "Credential must have the form <access key>/<yyyymmdd>/<region>/<service>/aws4_request."}
		}
		parts[i], rest = rest[j+1:], rest[:j]
	}
	parts[0] = rest
	a := &authorization{accessKeyID: parts[0], date: parts[1], region: parts[2], service: parts[3], signedHeaders: signed}
	if a.accessKeyID == "" || a.service == "" || len(a.service) > 64 || parts[4] != "aws4_request" {
		return nil, &authError{malformed, "Credential must have the form <access key>/<yyyymmdd>/<region>/<service>/aws4_request."}
	}
	if signed == "" {
		return a, &authError{malformed, "Authorization requires the SignedHeaders parameter."}
	}
	if len(signature) != 2*sha256.Size {
		return a, &authError{malformed, "Authorization requires a Signature of 64 hexadecimal digits."}
	}
	if _, err := hex.Decode(a.signature[:], []byte(signature)); err != nil {
		return a, &authError{malformed, "Authorization requires a Signature of 64 hexadecimal digits."}
	}
	return a, nil
}

func (a *authorization) setTime(amz, date string) *authError {
	var err error
	switch {
	case amz != "":
		a.time, err = time.Parse(amzDate, amz)
		a.timestamp = amz
	case date != "":
		a.time, err = http.ParseTime(date)
		a.timestamp = a.time.UTC().Format(amzDate)
	default:
		err = errors.New("absent")
	}
	if err != nil {
		return &authError{malformed, "Authorization requires a date in X-Amz-Date, such as " + amzDate + "."}
	}
	if len(a.timestamp) < 8 || a.timestamp[:8] != a.date {
		return &authError{badSignature, "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '" + a.date + "' != '" + a.timestamp + "'."}
	}
	return nil
}

// A verifier checks signatures. It keeps signing keys, which change daily.
type verifier struct {
	now  func() time.Time
	mu   sync.RWMutex // guards keys
	keys map[keyScope]*signingKey
	bufs sync.Pool // *bytes.Buffer
}

type keyScope struct{ accessKeyID, date, region, service string }

// A signingKey is shared by all requests that are signed with it.
type signingKey struct {
	secret string // it was derived from this
	key    [sha256.Size]byte
	macs   sync.Pool // of hash.Hash with this key
}

// maxSigningKeys bounds the cache; each is one key, region, service and day.
const maxSigningKeys = 4096

func newVerifier(now func() time.Time) *verifier {
	return &verifier{
		now: now, keys: map[keyScope]*signingKey{},
		bufs: sync.Pool{New: func() any { return bytes.NewBuffer(make([]byte, 0, 1024)) }},
	}
}

// checkTime refuses signatures that are not of now. The texts hold the time of
// the server, which is what the owner of a wrong clock must see.
func (v *verifier) checkTime(a *authorization) error {
	now := v.now().UTC()
	if a.v2 != nil {
		if now.After(a.time) {
			return &authError{expired, "Request has expired"}
		}
		return nil
	}
	if a.presigned && a.service == "s3" && now.After(a.time.Add(a.expires)) {
		return &authError{expired, "Request has expired"}
	}
	if a.presigned {
		if now.After(a.time.Add(a.expires)) {
			return &authError{skewed, fmt.Sprintf("Signature expired: %s is now earlier than %s (%s - %d sec.)",
				a.timestamp, now.Add(-a.expires).Format(amzDate), now.Format(amzDate), int(a.expires/time.Second))}
		}
	} else if now.Sub(a.time) > clockSkew {
		return &authError{skewed, fmt.Sprintf("Signature expired: %s is now earlier than %s (%s - 15 min.)",
			a.timestamp, now.Add(-clockSkew).Format(amzDate), now.Format(amzDate))}
	}
	if a.time.Sub(now) > clockSkew {
		return &authError{skewed, fmt.Sprintf("Signature not yet current: %s is still later than %s (%s + 15 min.)",
			a.timestamp, now.Add(clockSkew).Format(amzDate), now.Format(amzDate))}
	}
	return nil
}

// verify checks the signature over the request; sum is the hash of its body.
func (v *verifier) verify(r *http.Request, a *authorization, secret string, sum [sha256.Size]byte) error {
	if a.v2 != nil {
		return verifyV2(r, a, secret)
	}
	buf := v.bufs.Get().(*bytes.Buffer)
	defer v.bufs.Put(buf)
	buf.Reset()
	if err := writeCanonicalRequest(buf, r, a, sum); err != nil {
		return err
	}
	hashed := sha256.Sum256(buf.Bytes())
	buf.Reset()
	b := buf.AvailableBuffer()
	b = append(b, algorithm...)
	b = append(b, '\n')
	b = append(b, a.timestamp...)
	b = append(b, '\n')
	b = append(b, a.date...)
	b = append(b, '/')
	b = append(b, a.region...)
	b = append(b, '/')
	b = append(b, a.service...)
	b = append(b, "/aws4_request\n"...)
	b = hex.AppendEncode(b, hashed[:])
	key := v.signingKey(a, secret)
	h := key.macs.Get().(hash.Hash)
	defer key.macs.Put(h)
	h.Reset()
	h.Write(b)
	if mac := h.Sum(b)[len(b):]; !hmac.Equal(mac, a.signature[:]) {
		return &authError{kind: badSignature}
	}
	return nil
}

func (v *verifier) signingKey(a *authorization, secret string) *signingKey {
	scope := keyScope{a.accessKeyID, a.date, a.region, a.service}
	v.mu.RLock()
	k, ok := v.keys[scope]
	v.mu.RUnlock()
	if ok && k.secret == secret {
		return k
	}
	sum := hmacSHA256([]byte("AWS4"+secret), []byte(a.date))
	sum = hmacSHA256(sum[:], []byte(a.region))
	sum = hmacSHA256(sum[:], []byte(a.service))
	sum = hmacSHA256(sum[:], []byte("aws4_request"))
	k = &signingKey{secret: strings.Clone(secret), key: sum}
	k.macs.New = func() any { return hmac.New(sha256.New, k.key[:]) }
	v.mu.Lock()
	if len(v.keys) >= maxSigningKeys {
		clear(v.keys)
	}
	v.keys[scope] = k
	v.mu.Unlock()
	return k
}

func hmacSHA256(key, data []byte) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, key)
	h.Write(data)
	h.Sum(sum[:0])
	return sum
}

// writeCanonicalRequest writes the text whose hash is signed.
func writeCanonicalRequest(b *bytes.Buffer, r *http.Request, a *authorization, sum [sha256.Size]byte) error {
	b.WriteString(r.Method)
	b.WriteByte('\n')
	path := rawPath(r)
	if a.service == "s3" {
		b.WriteString(path) // as sent
	} else {
		writeEscaped(b, path, true) // encoded a second time
	}
	b.WriteByte('\n')
	if err := writeCanonicalQuery(b, r.URL.RawQuery, a.presigned); err != nil {
		return err
	}
	b.WriteByte('\n')

	hostSigned := false
	rest := a.signedHeaders
	for n := 0; rest != ""; n++ {
		if n == maxSignedHeaders {
			return &authError{malformed, "Too many signed headers."}
		}
		var name string
		name, rest, _ = strings.Cut(rest, ";")
		if name == "host" {
			hostSigned = true
		}
		b.WriteString(name)
		b.WriteByte(':')
		writeHeaderValue(b, r, name)
		b.WriteByte('\n')
	}
	if !hostSigned {
		return &authError{malformed, "'Host' must be a 'SignedHeader' in the AWS Authorization."}
	}
	if a.service == "s3" && !allSigned(r.Header, a.signedHeaders) {
		return lambdad.Errorf("AccessDenied", "There were headers present in the request which were not signed")
	}
	b.WriteByte('\n')
	b.WriteString(a.signedHeaders)
	b.WriteByte('\n')

	declared := r.Header.Get("X-Amz-Content-Sha256")
	if declared == "" && a.presigned && a.service == "s3" {
		declared = unsignedPayload
	}
	if a.service == "s3" && (declared == unsignedPayload || strings.HasPrefix(declared, "STREAMING-")) {
		b.WriteString(declared)
		return nil
	}
	b.Write(hex.AppendEncode(b.AvailableBuffer(), sum[:]))
	return nil
}

// allSigned reports whether every x-amz-* header is signed, which S3 insists on:
// they change what a request means.
func allSigned(h http.Header, signed string) bool {
	for name := range h {
		if strings.HasPrefix(name, "X-Amz-") && !strings.Contains(";"+signed+";", ";"+strings.ToLower(name)+";") {
			return false
		}
	}
	return true
}

// rawPath is the path as it was sent.
func rawPath(r *http.Request) string {
	p := r.RequestURI
	if p == "" || p[0] != '/' { // made by a test, or an absolute URI from a proxy's client
		p = r.URL.EscapedPath()
	}
	if i := strings.IndexByte(p, '?'); i >= 0 {
		p = p[:i]
	}
	if p == "" {
		return "/"
	}
	return p
}

// writeHeaderValue writes the values of a header, joined by commas, with spaces
// trimmed and runs of them made one.
func writeHeaderValue(b *bytes.Buffer, r *http.Request, name string) {
	switch name {
	case "host":
		b.WriteString(r.Host)
		return
	case "content-length":
		if r.Header["Content-Length"] == nil {
			b.WriteString(strconv.FormatInt(max(r.ContentLength, 0), 10))
			return
		}
	case "transfer-encoding":
		b.WriteString(strings.Join(r.TransferEncoding, ","))
		return
	}
	for i, v := range r.Header.Values(name) {
		if i > 0 {
			b.WriteByte(',')
		}
		v = strings.TrimSpace(v)
		for {
			j := strings.Index(v, "  ")
			if j < 0 {
				break
			}
			b.WriteString(v[:j+1])
			v = strings.TrimLeft(v[j:], " ")
		}
		b.WriteString(v)
	}
}

// writeCanonicalQuery writes the query sorted and encoded anew. The signature of
// a presigned URL is no part of what it signs.
func writeCanonicalQuery(b *bytes.Buffer, raw string, presigned bool) error {
	if raw == "" {
		return nil
	}
	type pair struct{ key, value string }
	var pairs []pair
	for raw != "" {
		var part string
		part, raw, _ = strings.Cut(raw, "&")
		if part == "" {
			continue
		}
		key, value, _ := strings.Cut(part, "=")
		key, err1 := url.QueryUnescape(key)
		value, err2 := url.QueryUnescape(value)
		if err := errors.Join(err1, err2); err != nil {
			return &authError{malformed, "The query string of the request could not be read: " + err.Error()}
		}
		if presigned && key == "X-Amz-Signature" {
			continue
		}
		pairs = append(pairs, pair{escape(key), escape(value)})
	}
	slices.SortFunc(pairs, func(x, y pair) int {
		if c := strings.Compare(x.key, y.key); c != 0 {
			return c
		}
		return strings.Compare(x.value, y.value)
	})
	for i, p := range pairs {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(p.key)
		b.WriteByte('=')
		b.WriteString(p.value)
	}
	return nil
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

func escape(s string) string {
	for i := 0; i < len(s); i++ {
		if !unreserved(s[i]) {
			var b bytes.Buffer
			writeEscaped(&b, s, false)
			return b.String()
		}
	}
	return s
}

// writeEscaped percent-encodes all but unreserved characters and, in paths, the
// slash.
func writeEscaped(b *bytes.Buffer, s string, path bool) {
	const digits = "0123456789ABCDEF"
	for i := 0; i < len(s); i++ {
		c := s[i]
		if unreserved(c) || path && c == '/' {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(digits[c>>4])
		b.WriteByte(digits[c&15])
	}
}
