package s3

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"
)

// A bucketRecord is a bucket. Names are unique among all accounts.
type bucketRecord struct {
	Name       string            `json:"name"`
	Account    string            `json:"account"`
	Region     string            `json:"region"`
	Created    time.Time         `json:"created"`
	Versioning string            `json:"versioning,omitempty"` // "", Enabled or Suspended
	Documents  map[string]string `json:"documents,omitempty"`  // by subresource, as they were put
}

// An objectRecord holds all versions of a key, the newest last.
type objectRecord struct {
	Key      string          `json:"key"`
	Versions []objectVersion `json:"versions"`
}

// nullVersion is the id of what was put without versioning.
const nullVersion = "null"

// An objectVersion is one version of an object, or a delete marker.
type objectVersion struct {
	ID       string            `json:"id"`
	Deleted  bool              `json:"deleted,omitempty"` // a delete marker
	Digest   string            `json:"digest,omitempty"`  // of the content in the blob store
	Size     int64             `json:"size,omitempty"`
	ETag     string            `json:"etag,omitempty"` // without quotes
	Modified time.Time         `json:"modified"`
	Headers  map[string]string `json:"headers,omitempty"` // Content-Type and the like, X-Amz-Meta-*
	Sums     sums              `json:"sums,omitzero"`
	Tags     string            `json:"tags,omitempty"` // the XML document
}

// sums are the checksums of a content, in base64.
type sums struct {
	Algorithm string `json:"algorithm,omitempty"` // "crc32" … as in x-amz-checksum-<it>
	Value     string `json:"value,omitempty"`
	Type      string `json:"type,omitempty"` // FULL_OBJECT or COMPOSITE
}

// An uploadRecord is a multipart upload under way.
type uploadRecord struct {
	ID        string            `json:"id"`
	Bucket    string            `json:"bucket"`
	Key       string            `json:"key"`
	Initiated time.Time         `json:"initiated"`
	Headers   map[string]string `json:"headers,omitempty"`
	Algorithm string            `json:"algorithm,omitempty"` // of checksums; "" for none
	Type      string            `json:"type,omitempty"`
}

// A partRecord is an uploaded part.
type partRecord struct {
	Upload   string    `json:"upload"`
	Number   int       `json:"number"`
	Digest   string    `json:"digest"`
	Size     int64     `json:"size"`
	MD5      string    `json:"md5"` // hex
	Modified time.Time `json:"modified"`
	Sums     sums      `json:"sums,omitzero"`
}

// Record keys. Dots of bucket names would part tokens and stand as "="; keys of
// objects may be longer than those of records and stand as their hash.
func bucketToken(name string) string { return strings.ReplaceAll(name, ".", "=") }

func bucketKey(b *bucketRecord) string {
	return b.Account + "." + b.Region + ".s3bucket." + bucketToken(b.Name)
}

func objectKey(b *bucketRecord, key string) string {
	sum := sha256.Sum256([]byte(key))
	return b.Account + "." + b.Region + ".s3object." + bucketToken(b.Name) + "." + hex.EncodeToString(sum[:])
}

func uploadKey(b *bucketRecord, id string) string {
	return b.Account + "." + b.Region + ".s3upload." + bucketToken(b.Name) + "." + id
}

func partKey(b *bucketRecord, upload string, number string) string {
	return b.Account + "." + b.Region + ".s3part." + bucketToken(b.Name) + "." + upload + "." + number
}
