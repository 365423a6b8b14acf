package aws

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Presigned URLs of S3 in Signature Version 2, which `aws s3 presign` and boto3
// make for us-east-1 unless told otherwise. Nothing else of that version is taken.

// parsePresignedV2 reads the query of such a URL; nil when it is none.
func parsePresignedV2(rawQuery string) (*authorization, *authError) {
	q, err := url.ParseQuery(rawQuery)
	if err != nil || !q.Has("AWSAccessKeyId") || !q.Has("Signature") {
		return nil, nil
	}
	a := &authorization{accessKeyID: q.Get("AWSAccessKeyId"), service: "s3", region: "us-east-1", presigned: true, token: q.Get("x-amz-security-token")}
	seconds, err := strconv.ParseInt(q.Get("Expires"), 10, 64)
	if err != nil || a.accessKeyID == "" {
		return a, &authError{malformed, "Query-string authentication requires the Signature, Expires and AWSAccessKeyId parameters"}
	}
	a.time = time.Unix(seconds, 0)
	if a.v2, err = base64.StdEncoding.DecodeString(q.Get("Signature")); err != nil || len(a.v2) != sha1.Size {
		return a, &authError{kind: badSignature}
	}
	return a, nil
}

// signedSubresources are the parameters that are part of what is signed.
var signedSubresources = []string{
	"acl", "cors", "delete", "lifecycle", "location", "logging", "notification", "partNumber", "policy", "requestPayment",
	"response-cache-control", "response-content-disposition", "response-content-encoding", "response-content-language",
	"response-content-type", "response-expires", "restore", "tagging", "torrent", "uploadId", "uploads", "versionId",
	"versioning", "versions", "website",
}

// verifyV2 checks the signature of a presigned URL.
func verifyV2(r *http.Request, a *authorization, secret string) error {
	mac := hmac.New(sha1.New, []byte(secret))
	mac.Write([]byte(v2Text(r, a)))
	if !hmac.Equal(mac.Sum(nil), a.v2) {
		return &authError{kind: badSignature}
	}
	return nil
}

func v2Text(r *http.Request, a *authorization) string {
	var b strings.Builder
	for _, s := range []string{r.Method, r.Header.Get("Content-Md5"), r.Header.Get("Content-Type"), strconv.FormatInt(a.time.Unix(), 10)} {
		b.WriteString(s)
		b.WriteByte('\n')
	}
	var lines []string
	for name, values := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") && (name != "x-amz-security-token" || a.token == "") {
			lines = append(lines, name+":"+strings.Join(values, ",")+"\n")
		}
	}
	if a.token != "" {
		lines = append(lines, "x-amz-security-token:"+a.token+"\n")
	}
	slices.Sort(lines)
	b.WriteString(strings.Join(lines, ""))
	if bucket := VirtualBucket(r.Host); bucket != "" {
		b.WriteString("/" + bucket)
	}
	b.WriteString(rawPath(r))
	sep := "?"
	for part := range strings.SplitSeq(canonicalOrder(r.URL.RawQuery), "&") {
		key, value, has := strings.Cut(part, "=")
		if !slices.Contains(signedSubresources, key) {
			continue
		}
		b.WriteString(sep + key)
		if value, err := url.QueryUnescape(value); has && err == nil && value != "" {
			b.WriteString("=" + value)
		}
		sep = "&"
	}
	return b.String()
}

func canonicalOrder(rawQuery string) string {
	parts := strings.Split(rawQuery, "&")
	slices.Sort(parts)
	return strings.Join(parts, "&")
}

// VirtualBucket is the bucket that the host of a virtual-host style request for S3
// names, <bucket>.localhost or <bucket>.s3.<anything>, or "".
func VirtualBucket(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	for _, mark := range []string{".s3.", ".s3-"} {
		if b, _, ok := strings.Cut(host, mark); ok {
			return b
		}
	}
	b, ok := strings.CutSuffix(host, ".localhost")
	if !ok || b == "s3" {
		return ""
	}
	return b
}
