// Package s3 is the API of Amazon S3 as far as artefacts need it: buckets, objects,
// versions, multipart uploads, presigned URLs and listings, for `aws s3 cp`, `sam
// package`, CDK assets and functions whose code is in a bucket (neighbours.md
// section 6).
//
// The dialect (routing, ranges, XML) is a library's, gofakes3; what it stores goes
// through the backend here: content into a blob store of its own, and one record
// for each bucket, object, upload and part in the record store, all of which are
// also held in memory, where every read is answered from. A write is acknowledged
// when content and then record are on disk. Where the library is not true to S3
// (checksums, versions of HEAD and copies, subresources of buckets, ETags of
// multipart objects, texts of errors), this package answers itself.
//
// Nothing is public: a request needs a signature, and policies decide.
package s3

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/johannesboyne/gofakes3"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/blob"
	"github.com/lambdad/lambdad/store"
)

// maxObject is the longest body of one request: 5 GiB.
const maxObject = 5 << 30

// Config is what a Service needs.
type Config struct {
	Store store.Store
	// Blobs holds the content of objects and nothing else: what no object refers
	// to is deleted from it.
	Blobs  blob.Store
	Logger *slog.Logger     // default: discard
	Now    func() time.Time // default time.Now
}

// A Service is the S3 API; it implements aws.Service and aws.Streamer.
type Service struct {
	cfg   Config
	index *index

	policiesMu sync.Mutex              // guards policies
	policies   map[string]parsedPolicy // by bucket
}

// New reads the records and removes content that nothing refers to.
func New(ctx context.Context, cfg Config) (*Service, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	x, err := openIndex(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &Service{cfg: cfg, index: x, policies: map[string]parsedPolicy{}}, nil
}

// Name implements aws.Service.
func (s *Service) Name() string { return "s3" }

// Protocol implements aws.Service.
func (s *Service) Protocol() aws.Protocol { return aws.RESTXML }

// ErrorShapes implements aws.Service.
func (s *Service) ErrorShapes() map[string]aws.ErrorShape { return errorShapes }

// errorShapes has the status of each error.
var errorShapes = func() map[string]aws.ErrorShape {
	shapes := map[string]aws.ErrorShape{}
	for status, codes := range map[int]string{
		http.StatusForbidden: "AccessDenied",
		http.StatusNotFound: "NoSuchBucket NoSuchKey NoSuchVersion NoSuchUpload NoSuchBucketPolicy NoSuchTagSet NoSuchCORSConfiguration " +
			"NoSuchWebsiteConfiguration NoSuchLifecycleConfiguration NoSuchPublicAccessBlockConfiguration ReplicationConfigurationNotFoundError " +
			"ObjectLockConfigurationNotFoundError OwnershipControlsNotFoundError",
		http.StatusMethodNotAllowed:    "MethodNotAllowed",
		http.StatusConflict:            "BucketAlreadyExists BucketAlreadyOwnedByYou BucketNotEmpty OperationAborted",
		http.StatusLengthRequired:      "MissingContentLength",
		http.StatusPreconditionFailed:  "PreconditionFailed",
		http.StatusInternalServerError: "InternalError",
		http.StatusNotImplemented:      "NotImplemented",
		http.StatusServiceUnavailable:  "SlowDown ServiceUnavailable",
	} {
		for code := range strings.FieldsSeq(codes) {
			shapes[code] = aws.ErrorShape{Status: status}
		}
	}
	return shapes
}()

// A target is what a request is about.
type target struct {
	bucket, key string
	query       url.Values
	sub         string // the subresource named in the query, or ""
}

// Route implements aws.Service.
func (s *Service) Route(r *aws.Request) error {
	t := target{query: r.URL.Query()}
	path := strings.TrimPrefix(r.URL.Path, "/")
	if b := aws.VirtualBucket(r.Host); b != "" {
		t.bucket, t.key = b, path
	} else {
		t.bucket, t.key, _ = strings.Cut(path, "/")
	}
	for name := range subresources {
		if t.query.Has(name) {
			t.sub = name
		}
	}
	r.Route = &t
	r.Operation = operationOf(r.Method, &t, r.Header)
	if r.Operation == "" {
		r.Operation = "UnknownOperation"
		return lambdad.Errorf("MethodNotAllowed", "The specified method is not allowed against this resource.")
	}
	r.Action = "s3:" + actionOf(r.Operation, &t)
	if s.Streams(r) {
		r.BodyLimit = maxObject
	}
	return nil
}

// operationOf names the operation of a request, or "".
func operationOf(method string, t *target, h http.Header) string {
	switch {
	case t.bucket == "":
		if method == http.MethodGet {
			return "ListBuckets"
		}
		return ""
	case t.sub != "":
		sub := subresources[t.sub]
		if t.key != "" && sub.object == "" {
			return ""
		}
		name := sub.bucket
		if t.key != "" {
			name = sub.object
		}
		switch method {
		case http.MethodGet:
			return "Get" + name
		case http.MethodPut:
			return "Put" + name
		case http.MethodDelete:
			return "Delete" + name
		}
		return ""
	case t.key == "":
		switch {
		case method == http.MethodGet && t.query.Has("location"):
			return "GetBucketLocation"
		case t.query.Has("versioning"):
			return map[string]string{http.MethodGet: "GetBucketVersioning", http.MethodPut: "PutBucketVersioning"}[method]
		case method == http.MethodGet && t.query.Has("versions"):
			return "ListObjectVersions"
		case method == http.MethodGet && t.query.Has("uploads"):
			return "ListMultipartUploads"
		case method == http.MethodPost && t.query.Has("delete"):
			return "DeleteObjects"
		case method == http.MethodGet && t.query.Get("list-type") == "2":
			return "ListObjectsV2"
		}
		return map[string]string{http.MethodGet: "ListObjects", http.MethodHead: "HeadBucket",
			http.MethodPut: "CreateBucket", http.MethodDelete: "DeleteBucket"}[method]
	case t.query.Has("uploads"):
		return map[string]string{http.MethodPost: "CreateMultipartUpload"}[method]
	case t.query.Has("uploadId"):
		if method == http.MethodPut && h.Get("X-Amz-Copy-Source") != "" {
			return "UploadPartCopy"
		}
		return map[string]string{http.MethodGet: "ListParts", http.MethodPut: "UploadPart",
			http.MethodPost: "CompleteMultipartUpload", http.MethodDelete: "AbortMultipartUpload"}[method]
	case method == http.MethodPut && h.Get("X-Amz-Copy-Source") != "":
		return "CopyObject"
	}
	return map[string]string{http.MethodGet: "GetObject", http.MethodHead: "HeadObject",
		http.MethodPut: "PutObject", http.MethodDelete: "DeleteObject"}[method]
}

// actionOf is what policies call an operation, where that differs.
func actionOf(operation string, t *target) string {
	switch operation {
	case "ListBuckets":
		return "ListAllMyBuckets"
	case "ListObjects", "ListObjectsV2", "HeadBucket":
		return "ListBucket"
	case "ListObjectVersions":
		return "ListBucketVersions"
	case "ListMultipartUploads":
		return "ListBucketMultipartUploads"
	case "DeleteObjects":
		return "DeleteObject"
	case "HeadObject", "GetObject", "DeleteObject", "GetObjectTagging", "PutObjectTagging", "DeleteObjectTagging", "GetObjectAcl":
		name := strings.Replace(operation, "Head", "Get", 1)
		if t.query.Get("versionId") != "" {
			return strings.Replace(name, "Object", "ObjectVersion", 1)
		}
		return name
	case "CreateMultipartUpload", "UploadPart", "UploadPartCopy", "CompleteMultipartUpload", "CopyObject":
		return "PutObject"
	case "ListParts":
		return "ListMultipartUploadParts"
	case "GetBucketEncryption", "PutBucketEncryption":
		return strings.Replace(operation, "BucketEncryption", "EncryptionConfiguration", 1)
	case "DeleteBucketEncryption":
		return "PutEncryptionConfiguration"
	case "GetPublicAccessBlock", "PutPublicAccessBlock", "DeletePublicAccessBlock":
		return strings.Replace(strings.Replace(operation, "Delete", "Put", 1), "Public", "BucketPublic", 1)
	case "DeleteBucketTagging":
		return "PutBucketTagging"
	}
	return operation
}

// Streams implements aws.Streamer: the content of objects and parts.
func (s *Service) Streams(r *aws.Request) bool {
	return r.Operation == "PutObject" || r.Operation == "UploadPart"
}

// ServeAWS implements aws.Service.
func (s *Service) ServeAWS(w http.ResponseWriter, r *aws.Request) error {
	if r.Oversize {
		return lambdad.Errorf("EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
	}
	t := r.Route.(*target)
	b := &backend{Service: s, ctx: r.Context(), r: r, t: t, w: w.Header()}
	a := &answer{ResponseWriter: w, b: b}
	if t.bucket != "" && r.Operation != "CreateBucket" {
		bucket, err := s.index.bucket(t.bucket)
		if err != nil {
			return err
		}
		if bucket.Account != r.Identity.Account {
			return lambdad.Errorf("AccessDenied", "Access Denied")
		}
		w.Header().Set("X-Amz-Bucket-Region", bucket.Region)
	}
	w.Header().Set("X-Amz-Request-Id", r.RequestID)
	if t.sub != "" {
		return b.serveSubresource(a)
	}
	switch r.Operation {
	case "ListBuckets":
		return b.listBuckets(a)
	case "GetBucketLocation":
		return b.getBucketLocation(a)
	case "CreateBucket":
		return b.createBucket(a)
	case "HeadObject":
		return b.headObject(a)
	case "CopyObject":
		return b.copyObject(a)
	case "UploadPartCopy":
		return b.uploadPartCopy(a)
	}

	inner := r.Request.Clone(r.Context())
	if !s.Streams(r) {
		inner.Body = io.NopCloser(bytes.NewReader(r.Body))
	} else if err := b.expectSums(); err != nil {
		return err
	} else {
		inner.Body = b.sums
	}
	// The library reads the target from the path, whatever the host was.
	inner.Host, inner.URL.Path = "localhost", "/"+t.bucket
	if t.key != "" {
		inner.URL.Path += "/" + t.key
	}
	gofakes3.New(b, gofakes3.WithTimeSkewLimit(0), gofakes3.WithLogger(gofakes3.DiscardLog()),
		gofakes3.WithMetadataSizeLimit(0)).Server().ServeHTTP(a, inner)
	if b.err != nil {
		return b.err
	}
	a.WriteHeader(http.StatusOK)
	return nil
}

// An answer mends what the library says in the headers. Where the backend failed
// it keeps back what the library says: the Mux writes the error.
type answer struct {
	http.ResponseWriter
	b     *backend
	wrote bool
}

func (a *answer) WriteHeader(status int) {
	if a.wrote || a.b.err != nil {
		return
	}
	a.wrote = true
	h := a.Header()
	for _, name := range []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers", "Access-Control-Expose-Headers", "X-Amz-Id-2"} {
		h.Del(name)
	}
	h.Set("X-Amz-Request-Id", a.b.r.RequestID)
	if status < 300 {
		for name, value := range a.b.headers {
			h[name] = []string{value}
		}
		if h.Get("X-Amz-Delete-Marker") == "false" {
			h.Del("X-Amz-Delete-Marker")
		}
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.b.err != nil {
		return len(p), nil
	}
	if !a.wrote {
		if a.Header().Get("Content-Type") == "" && bytes.HasPrefix(p, []byte("<?xml")) {
			a.Header().Set("Content-Type", "application/xml")
		}
		a.WriteHeader(http.StatusOK)
	}
	return a.ResponseWriter.Write(p)
}

// OpenObject opens the content of an object for another service of this server:
// version "" is the current one. The caller closes it. Errors are *lambdad.Error
// with S3's codes. Whether the caller's caller may read it is not asked here.
func (s *Service) OpenObject(ctx context.Context, account, bucket, key, version string) (io.ReadCloser, int64, error) {
	b, err := s.index.bucket(bucket)
	if err != nil {
		return nil, 0, err
	}
	if b.Account != account {
		return nil, 0, lambdad.Errorf("AccessDenied", "Access Denied")
	}
	v, err := s.index.version(bucket, key, version)
	if err != nil {
		return nil, 0, err
	}
	r, n, err := s.cfg.Blobs.Open(ctx, v.Digest)
	if errors.Is(err, blob.ErrNotFound) {
		return nil, 0, errNoSuchKey() // deleted meanwhile
	}
	return r, n, err
}

func errNoSuchKey() error {
	return lambdad.Errorf("NoSuchKey", "The specified key does not exist.")
}
