package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	sdkaws "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/blob"
	"github.com/lambdad/lambdad/mem"
	"github.com/lambdad/lambdad/policy"
	s3service "github.com/lambdad/lambdad/service/s3"
	"github.com/lambdad/lambdad/store"
)

// A fixture is a server that can be started again on what it kept.
type fixture struct {
	t       *testing.T
	records store.Store
	blobs   blob.Store
	keys    *aws.KeyStore
	service *s3service.Service
	server  *httptest.Server
	client  *s3.Client
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, records: mem.NewStore(), blobs: mem.NewBlobs(), keys: aws.NewKeyStore()}
	f.start()
	return f
}

func (f *fixture) start() {
	f.t.Helper()
	service, err := s3service.New(f.t.Context(), s3service.Config{Store: f.records, Blobs: f.blobs})
	if err != nil {
		f.t.Fatal(err)
	}
	f.service = service
	f.server = httptest.NewServer(aws.NewMux(f.keys, aws.Options{}, service))
	f.t.Cleanup(f.server.Close)
	admin := f.keys.Admin()
	f.client = s3.New(s3.Options{
		BaseEndpoint: &f.server.URL, Region: "us-east-1", UsePathStyle: true, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(admin.AccessKeyID, admin.SecretAccessKey, ""),
	})
}

func (f *fixture) bucket(name string) string {
	f.t.Helper()
	if _, err := f.client.CreateBucket(f.t.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		f.t.Fatal(err)
	}
	return name
}

func (f *fixture) put(bucket, key, content string) *s3.PutObjectOutput {
	f.t.Helper()
	out, err := f.client.PutObject(f.t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader(content)})
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

func (f *fixture) get(bucket, key, version string) (string, error) {
	in := &s3.GetObjectInput{Bucket: &bucket, Key: &key}
	if version != "" {
		in.VersionId = &version
	}
	out, err := f.client.GetObject(f.t.Context(), in)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(out.Body)
	return string(b), err
}

// content lists what is kept.
func (f *fixture) content() (digests []string) {
	f.t.Helper()
	if err := f.blobs.List(f.t.Context(), func(d string, _ int64) bool { digests = append(digests, d); return true }); err != nil {
		f.t.Fatal(err)
	}
	return digests
}

func codeOf(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func TestObjects(t *testing.T) {
	f := newFixture(t)
	b := f.bucket("artefacts")
	_, err := f.client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &b, Key: sdkaws.String("a/b c+d.txt"), Body: strings.NewReader("hello"), ContentType: sdkaws.String("text/plain"),
		CacheControl: sdkaws.String("no-cache"), Metadata: map[string]string{"colour": "blue"}, Tagging: sdkaws.String("x=1&y=2"),
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // before and after a restart
		h, err := f.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &b, Key: sdkaws.String("a/b c+d.txt")})
		if err != nil {
			t.Fatal(err)
		}
		if *h.ContentType != "text/plain" || *h.CacheControl != "no-cache" || h.Metadata["colour"] != "blue" || *h.ContentLength != 5 ||
			*h.ETag != `"5d41402abc4b2a76b9719d911017c592"` {
			t.Errorf("head: %+v", h)
		}
		if got, err := f.get(b, "a/b c+d.txt", ""); got != "hello" || err != nil {
			t.Errorf("get: %q, %v", got, err)
		}
		tags, err := f.client.GetObjectTagging(t.Context(), &s3.GetObjectTaggingInput{Bucket: &b, Key: sdkaws.String("a/b c+d.txt")})
		if err != nil || len(tags.TagSet) != 2 {
			t.Errorf("tags: %+v, %v", tags, err)
		}
		f.start()
	}
	r, err := f.client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &b, Key: sdkaws.String("a/b c+d.txt"), Range: sdkaws.String("bytes=1-3")})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(r.Body); string(got) != "ell" || *r.ContentRange != "bytes 1-3/5" {
		t.Errorf("range: %q of %s", got, *r.ContentRange)
	}
	for name, c := range map[string]struct {
		err  error
		code string
	}{
		"no key":     {second(f.get(b, "other", "")), "NoSuchKey"},
		"no version": {second(f.get(b, "a/b c+d.txt", "other")), "NoSuchVersion"},
		"no bucket":  {second(f.get("elsewhere", "a", "")), "NoSuchBucket"},
		"conditional": {second(f.client.PutObject(t.Context(), &s3.PutObjectInput{
			Bucket: &b, Key: sdkaws.String("a/b c+d.txt"), Body: strings.NewReader("x"), IfNoneMatch: sdkaws.String("*")})), "PreconditionFailed"},
		"wrong checksum": {second(f.client.PutObject(t.Context(), &s3.PutObjectInput{
			Bucket: &b, Key: sdkaws.String("bad"), Body: strings.NewReader("x"), ChecksumCRC32: sdkaws.String("AAAAAA==")})), "BadDigest"},
		"wrong MD5": {second(f.client.PutObject(t.Context(), &s3.PutObjectInput{
			Bucket: &b, Key: sdkaws.String("bad"), Body: strings.NewReader("x"), ContentMD5: sdkaws.String("XUFAKrxLKna5cZ2REBfFkg==")})), "BadDigest"},
		"not empty":   {second(f.client.DeleteBucket(t.Context(), &s3.DeleteBucketInput{Bucket: &b})), "BucketNotEmpty"},
		"bucket name": {second(f.client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: sdkaws.String("UP")})), "InvalidBucketName"},
		"no effect": {second(f.client.PutBucketWebsite(t.Context(), &s3.PutBucketWebsiteInput{Bucket: &b,
			WebsiteConfiguration: &types.WebsiteConfiguration{IndexDocument: &types.IndexDocument{Suffix: sdkaws.String("i")}}})), "NotImplemented"},
		"no policy": {second(f.client.GetBucketPolicy(t.Context(), &s3.GetBucketPolicyInput{Bucket: &b})), "NoSuchBucketPolicy"},
	} {
		if codeOf(c.err) != c.code {
			t.Errorf("%s: %v, want %s", name, c.err, c.code)
		}
	}
	if _, err := f.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &b, Key: sdkaws.String("a/b c+d.txt")}); err != nil {
		t.Fatal(err)
	}
	if left := f.content(); len(left) != 0 {
		t.Errorf("content of deleted and refused objects was kept: %v", left)
	}
	if _, err := f.client.DeleteBucket(t.Context(), &s3.DeleteBucketInput{Bucket: &b}); err != nil {
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestVersions(t *testing.T) {
	f := newFixture(t)
	b := f.bucket("versions.of.things")
	f.put(b, "k", "null")
	if _, err := f.client.PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{
		Bucket: &b, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
	}); err != nil {
		t.Fatal(err)
	}
	one, two := f.put(b, "k", "one"), f.put(b, "k", "two")
	gone, err := f.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &b, Key: sdkaws.String("k")})
	if err != nil || gone.VersionId == nil || !*gone.DeleteMarker {
		t.Fatalf("delete: %+v, %v", gone, err)
	}
	f.start()
	if _, err := f.get(b, "k", ""); codeOf(err) != "NoSuchKey" {
		t.Errorf("behind a delete marker: %v", err)
	}
	for id, want := range map[string]string{"null": "null", *one.VersionId: "one", *two.VersionId: "two"} {
		if got, err := f.get(b, "k", id); got != want || err != nil {
			t.Errorf("version %s: %q, %v, want %q", id, got, err, want)
		}
	}
	var seen []string
	pages := s3.NewListObjectVersionsPaginator(f.client, &s3.ListObjectVersionsInput{Bucket: &b, MaxKeys: sdkaws.Int32(1)})
	for pages.HasMorePages() {
		p, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range p.Versions {
			seen = append(seen, *v.VersionId)
		}
		for _, v := range p.DeleteMarkers {
			seen = append(seen, *v.VersionId)
		}
	}
	if want := []string{*gone.VersionId, *two.VersionId, *one.VersionId, "null"}; !slices.Equal(seen, want) {
		t.Errorf("listed %v, want %v", seen, want)
	}
	// Without the marker the newest is there again.
	if _, err := f.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &b, Key: sdkaws.String("k"), VersionId: gone.VersionId}); err != nil {
		t.Fatal(err)
	}
	if got, err := f.get(b, "k", ""); got != "two" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	r, n, err := f.service.OpenObject(t.Context(), aws.DefaultAccount, b, "k", *one.VersionId)
	if err != nil || n != 3 {
		t.Fatal(n, err)
	}
	_ = r.Close()
	if _, _, err := f.service.OpenObject(t.Context(), "111111111111", b, "k", ""); lambdad.ErrorCode(err) != "AccessDenied" {
		t.Errorf("of another account: %v", err)
	}
}

func TestListing(t *testing.T) {
	f := newFixture(t)
	b := f.bucket("list")
	var keys []string
	for i := range 30 {
		key := fmt.Sprintf("%c/%02d", 'a'+i%3, i)
		keys = append(keys, key)
		f.put(b, key, key)
	}
	keys = append(keys, "top")
	f.put(b, "top", "x")
	slices.Sort(keys)
	list := func(prefix, delimiter string, size int32) (got []string) {
		in := &s3.ListObjectsV2Input{Bucket: &b, Prefix: &prefix, MaxKeys: &size}
		if delimiter != "" {
			in.Delimiter = &delimiter
		}
		for pages := s3.NewListObjectsV2Paginator(f.client, in); pages.HasMorePages(); {
			p, err := pages.NextPage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range p.Contents {
				got = append(got, *o.Key)
			}
			for _, c := range p.CommonPrefixes {
				got = append(got, *c.Prefix)
			}
		}
		return got
	}
	for _, size := range []int32{1, 2, 7, 1000} {
		if got := list("", "", size); !slices.Equal(got, keys) {
			t.Errorf("pages of %d: %v", size, got)
		}
		got := list("", "/", size)
		slices.Sort(got)
		if want := []string{"a/", "b/", "c/", "top"}; !slices.Equal(got, want) {
			t.Errorf("rolled up, pages of %d: %v, want %v", size, got, want)
		}
		if got := list("b/", "/", size); len(got) != 10 {
			t.Errorf("below b/, pages of %d: %v", size, got)
		}
	}
	var ids []types.ObjectIdentifier
	for _, k := range keys {
		ids = append(ids, types.ObjectIdentifier{Key: &k})
	}
	if out, err := f.client.DeleteObjects(t.Context(), &s3.DeleteObjectsInput{Bucket: &b, Delete: &types.Delete{Objects: ids}}); err != nil || len(out.Deleted) != len(keys) {
		t.Errorf("%+v, %v", out, err)
	}
	if left := f.content(); len(left) != 0 {
		t.Errorf("%d contents left", len(left))
	}
}

func TestMultipart(t *testing.T) {
	f := newFixture(t)
	b, key := f.bucket("multipart"), "big"
	whole := make([]byte, 11<<20)
	for i := range whole {
		whole[i] = byte(rand.Uint32())
	}
	begin := func() *string {
		u, err := f.client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &b, Key: &key})
		if err != nil {
			t.Fatal(err)
		}
		return u.UploadId
	}
	upload := begin()
	var parts []types.CompletedPart
	for i := range 3 {
		n := int32(i + 1)
		p, err := f.client.UploadPart(t.Context(), &s3.UploadPartInput{Bucket: &b, Key: &key, UploadId: upload, PartNumber: &n,
			Body: bytes.NewReader(whole[i*5<<20 : min((i+1)*5<<20, len(whole))])})
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, types.CompletedPart{PartNumber: &n, ETag: p.ETag})
		f.start() // an upload survives
	}
	complete := func(parts []types.CompletedPart) error {
		_, err := f.client.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{Bucket: &b, Key: &key, UploadId: upload,
			MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}})
		return err
	}
	if err := complete([]types.CompletedPart{parts[1], parts[0]}); codeOf(err) != "InvalidPartOrder" {
		t.Errorf("wrong order: %v", err)
	}
	if err := complete([]types.CompletedPart{{PartNumber: parts[0].PartNumber, ETag: sdkaws.String(`"x"`)}}); codeOf(err) != "InvalidPart" {
		t.Errorf("wrong part: %v", err)
	}
	if err := complete([]types.CompletedPart{parts[2], {PartNumber: sdkaws.Int32(4), ETag: parts[0].ETag}}); codeOf(err) != "EntityTooSmall" && codeOf(err) != "InvalidPart" {
		t.Errorf("small part: %v", err)
	}
	if err := complete(parts); err != nil {
		t.Fatal(err)
	}
	if got, err := f.get(b, key, ""); err != nil || got != string(whole) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	h, err := f.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &b, Key: &key})
	if err != nil || !strings.HasSuffix(*h.ETag, `-3"`) {
		t.Errorf("%+v, %v", h, err)
	}
	if n := len(f.content()); n != 1 {
		t.Errorf("%d contents instead of one", n)
	}

	upload = begin()
	if _, err := f.client.UploadPart(t.Context(), &s3.UploadPartInput{Bucket: &b, Key: &key, UploadId: upload, PartNumber: sdkaws.Int32(1), Body: strings.NewReader("x")}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.client.AbortMultipartUpload(t.Context(), &s3.AbortMultipartUploadInput{Bucket: &b, Key: &key, UploadId: upload}); err != nil {
		t.Fatal(err)
	}
	if n := len(f.content()); n != 1 {
		t.Errorf("%d contents after the abort", n)
	}
	if _, err := f.client.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: &b, Key: sdkaws.String("copy"), CopySource: sdkaws.String(b + "/" + key)}); err != nil {
		t.Fatal(err)
	}
	if got, err := f.get(b, "copy", ""); err != nil || got != string(whole) {
		t.Errorf("copy: %d bytes, %v", len(got), err)
	}
}

// A presigned URL works until it expires, and for what it was signed for.
func TestPresigned(t *testing.T) {
	f := newFixture(t)
	b := f.bucket("presigned")
	f.put(b, "k", "hello")
	sign := func(at time.Time) string {
		r, err := s3.NewPresignClient(f.client).PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: &b, Key: sdkaws.String("k")},
			s3.WithPresignExpires(time.Minute), func(o *s3.PresignOptions) { o.Presigner = pastPresigner{at} })
		if err != nil {
			t.Fatal(err)
		}
		return r.URL
	}
	get := func(url string) (int, string) {
		r, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, _ := io.ReadAll(r.Body)
		return r.StatusCode, string(body)
	}
	if status, body := get(sign(time.Now())); status != 200 || body != "hello" {
		t.Errorf("%d %s", status, body)
	}
	if status, _ := get(sign(time.Now().Add(-2 * time.Minute))); status != 403 {
		t.Errorf("expired: %d", status)
	}
	if status, _ := get(strings.Replace(sign(time.Now()), "/k?", "/j?", 1)); status != 403 {
		t.Errorf("another key: %d", status)
	}
	if status, body := get(f.server.URL + "/presigned/k"); status != 403 {
		t.Errorf("unsigned: %d %s", status, body)
	}
}

// What a crash leaves is removed at the next start, and nothing else.
func TestLeftovers(t *testing.T) {
	f := newFixture(t)
	b := f.bucket("left")
	f.put(b, "k", "hello")
	if _, _, err := f.blobs.Put(context.Background(), strings.NewReader("nobody's")); err != nil {
		t.Fatal(err)
	}
	if n := len(f.content()); n != 2 {
		t.Fatal(n)
	}
	f.start()
	if n := len(f.content()); n != 1 {
		t.Errorf("%d contents", n)
	}
	if got, err := f.get(b, "k", ""); got != "hello" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// A pastPresigner signs as if it were another time.
type pastPresigner struct{ at time.Time }

func (p pastPresigner) PresignHTTP(ctx context.Context, c sdkaws.Credentials, r *http.Request, hash, service, region string, _ time.Time, opts ...func(*v4.SignerOptions)) (string, http.Header, error) {
	return v4.NewSigner().PresignHTTP(ctx, c, r, hash, service, region, p.at, append(opts, func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })...)
}

// limited knows one more key, of a principal with policies.
type limited struct {
	aws.Keys
	grants *policy.Grants
}

func (l limited) Lookup(ctx context.Context, id, token string) (string, aws.Identity, error) {
	if id != "AKIALIMITED000000000" {
		return l.Keys.Lookup(ctx, id, token)
	}
	return "secret", aws.Identity{Account: aws.DefaultAccount, AccessKeyID: id, ARN: "arn:aws:iam::" + aws.DefaultAccount + ":user/u", UserName: "u", Grants: l.grants}, nil
}

// TestDeleteObjectsOneByOne: who deletes many needs the permission for each, and a
// refusal is that object's alone.
func TestDeleteObjectsOneByOne(t *testing.T) {
	f := newFixture(t)
	f.server.Config.Handler = aws.NewMux(limited{f.keys, &policy.Grants{Identity: []*policy.Document{
		policy.MustParse("own", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"s3:DeleteObject","Resource":"arn:aws:s3:::one/mine/*"}}`, policy.ForIdentity),
	}}}, aws.Options{}, f.service)
	b := f.bucket("one")
	if _, err := f.client.PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{Bucket: &b,
		VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled}}); err != nil {
		t.Fatal(err)
	}
	var versions []types.ObjectIdentifier
	var ids []types.ObjectIdentifier
	for _, key := range []string{"mine/1", "yours/1", "mine/2"} {
		out := f.put(b, key, key)
		ids = append(ids, types.ObjectIdentifier{Key: &key})
		versions = append(versions, types.ObjectIdentifier{Key: &key, VersionId: out.VersionId})
	}
	client := s3.New(s3.Options{BaseEndpoint: &f.server.URL, Region: "us-east-1", UsePathStyle: true, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider("AKIALIMITED000000000", "secret", "")})
	refused := func(ids []types.ObjectIdentifier) (keys []string) {
		t.Helper()
		out, err := client.DeleteObjects(t.Context(), &s3.DeleteObjectsInput{Bucket: &b, Delete: &types.Delete{Objects: ids}})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range out.Errors {
			if *e.Code != "AccessDenied" {
				t.Errorf("%s: %s %s", *e.Key, *e.Code, *e.Message)
			}
			keys = append(keys, *e.Key)
		}
		if len(out.Deleted)+len(out.Errors) != len(ids) {
			t.Errorf("%d deleted and %d refused of %d", len(out.Deleted), len(out.Errors), len(ids))
		}
		return keys
	}
	if got := refused(versions); len(got) != 3 {
		t.Errorf("of versions, without the permission for versions, only %q were refused", got)
	}
	if got := refused(ids); len(got) != 1 || got[0] != "yours/1" {
		t.Errorf("refused: %q; want that of yours/1", got)
	}
	if _, err := f.get(b, "mine/1", ""); codeOf(err) != "NoSuchKey" {
		t.Errorf("mine/1 after its deletion: %v", err)
	}
	if got, err := f.get(b, "yours/1", ""); err != nil || got != "yours/1" {
		t.Errorf("yours/1: %q, %v", got, err)
	}
	if _, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &b, Key: ids[1].Key}); codeOf(err) != "AccessDenied" {
		t.Errorf("DeleteObject of yours/1: %v", err)
	}
}
