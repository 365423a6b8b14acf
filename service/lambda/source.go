package lambda

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/policy"
)

// Objects is where code in S3 is read from.
type Objects interface {
	// OpenObject opens an object; version "" is the current one. The caller closes
	// it. Errors that S3 has a name for, such as NoSuchKey, are *lambdad.Error with
	// its code and message.
	OpenObject(ctx context.Context, account, bucket, key, version string) (content io.ReadCloser, size int64, err error)
	// BucketPolicy is the policy on a bucket and its objects, or nil.
	BucketPolicy(bucket string) *policy.Document
}

// maxPackage limits a package in S3, in bytes. AWS limits only what it unpacks to;
// this has room for a zip that is not compressed.
const maxPackage = lambdad.MaxUnzipped + 16<<20

// A source is a package as it was given.
type source struct {
	io.ReaderAt
	size   int64
	digest string
	close  func()
}

// source reads the package of a request, of which exactly one place must be given.
// The caller closes it.
func (s *Service) source(c *call, zip []byte, bucket, key, version, image *string) (*source, error) {
	s3 := bucket != nil || key != nil || version != nil
	switch {
	case zip != nil && (s3 || image != nil):
		return nil, invalid("Please do not provide other FunctionCode parameters when providing a ZipFile.")
	case s3 && s.Objects == nil:
		return nil, invalid("This lambdad has no object store, so it does not support code from S3 (S3Bucket, S3Key); send the package itself as ZipFile.")
	case s3 && (bucket == nil || key == nil):
		return nil, invalid("S3Bucket and S3Key must be given together.")
	case s3:
		return s.fetch(c, *bucket, *key, value(version))
	case zip == nil:
		return nil, invalid("Please provide a source for function code.")
	case len(zip) > lambdad.MaxZip:
		return nil, lambdad.Errorf("RequestEntityTooLargeException", "Zipped size must be smaller than %d bytes", lambdad.MaxZip)
	}
	return &source{bytes.NewReader(zip), int64(len(zip)), digestOf(zip), func() {}}, nil
}

// fetch copies an object to a file that is gone when it is closed.
func (s *Service) fetch(c *call, bucket, key, version string) (_ *source, err error) {
	// Code is read with the rights of who deploys it (neighbours.md section 6).
	action := "s3:GetObject"
	if version != "" {
		action = "s3:GetObjectVersion"
	}
	if c.Authorize(action, "arn:aws:s3:::"+bucket+"/"+key, s.Objects.BucketPolicy(bucket), nil) != nil {
		return nil, lambdad.Errorf("AccessDeniedException",
			"Your access has been denied by S3, please make sure your request credentials have permission to GetObject for %s/%s. S3 Error Code: AccessDenied. S3 Error Message: Access Denied", bucket, key)
	}
	content, size, err := s.Objects.OpenObject(c.Context(), c.Identity.Account, bucket, key, version)
	var named *lambdad.Error
	if errors.As(err, &named) {
		return nil, &lambdad.Error{Code: "InvalidParameterValueException", Err: err,
			Message: "Error occurred while GetObject. S3 Error Code: " + named.Code + ". S3 Error Message: " + named.Message}
	}
	if err != nil {
		return nil, fmt.Errorf("lambda: opening object %s/%s: %w", bucket, key, err)
	}
	defer content.Close()
	if size > maxPackage {
		return nil, errTooManyBytes
	}
	if err := s.Reserve(); err != nil {
		return nil, errFull(err)
	}
	f, err := s.scratch()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(content, maxPackage+1))
	if err != nil {
		return nil, fmt.Errorf("lambda: reading object %s/%s: %w", bucket, key, err)
	}
	if n > maxPackage {
		return nil, errTooManyBytes
	}
	return &source{f, n, sum(h), func() { f.Close() }}, nil
}

var errTooManyBytes = invalid("Unzipped size must be smaller than %d bytes", lambdad.MaxUnzipped)

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// scratch opens a file that has no name.
func (s *Service) scratch() (*os.File, error) {
	dir := s.Scratch
	if dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("lambda: making room for a package: %w", err)
		}
	}
	f, err := os.CreateTemp(dir, "package-*")
	if err != nil {
		return nil, fmt.Errorf("lambda: making room for a package: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("lambda: making room for a package: %w", err)
	}
	return f, nil
}
