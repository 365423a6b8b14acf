package s3

import (
	"cmp"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/johannesboyne/gofakes3"

	"github.com/lambdad/lambdad"
)

// minPart is the least size of every part but the last.
const minPart = 5 << 20

func itoa(n int) string { return strconv.Itoa(n) }

// CreateMultipartUpload implements gofakes3.MultipartBackend.
func (b *backend) CreateMultipartUpload(bucketName, key string, _ map[string]string) (gofakes3.UploadID, error) {
	headers, err := objectHeaders(b.r.Header)
	if err != nil {
		return "", b.fail(err)
	}
	algorithm, err := checkAlgorithm(b.r.Header.Get("X-Amz-Checksum-Algorithm"))
	if err != nil {
		return "", b.fail(err)
	}
	r := uploadRecord{
		ID: strings.ReplaceAll(uuid.NewString(), "-", ""), Bucket: bucketName, Key: key, Initiated: b.cfg.Now().UTC(),
		Headers: headers, Algorithm: algorithm, Type: typeOf(algorithm, b.r.Header.Get("X-Amz-Checksum-Type")),
	}
	if algorithm != "" {
		b.header("X-Amz-Checksum-Algorithm", strings.ToUpper(algorithm))
		b.header("X-Amz-Checksum-Type", r.Type)
	}
	return gofakes3.UploadID(r.ID), b.fail(b.index.beginUpload(b.ctx, r))
}

// UploadPart implements gofakes3.MultipartBackend.
func (b *backend) UploadPart(bucketName, key string, id gofakes3.UploadID, number int, _ int64, input io.Reader) (string, error) {
	// What no upload is waiting for is not stored first.
	if _, _, err := b.index.upload(bucketName, key, string(id)); err != nil {
		return "", b.fail(err)
	}
	digest, size, err := b.index.keep(b.ctx, input)
	if err != nil {
		return "", b.fail(bodyError(err))
	}
	defer b.index.release(b.ctx, digest)
	p := partRecord{Upload: string(id), Number: number, Digest: digest, Size: size, MD5: b.sums.etag(), Modified: b.cfg.Now().UTC(), Sums: b.sums.sums()}
	if err := b.index.addPart(b.ctx, bucketName, key, p); err != nil {
		return "", b.fail(err)
	}
	if p.Sums.Value != "" {
		b.header(sumHeader+p.Sums.Algorithm, p.Sums.Value)
	}
	return `"` + p.MD5 + `"`, nil
}

// ListMultipartUploads implements gofakes3.MultipartBackend.
func (b *backend) ListMultipartUploads(bucketName string, marker *gofakes3.UploadListMarker, prefix gofakes3.Prefix, limit int64) (*gofakes3.ListMultipartUploadsResult, error) {
	out := &gofakes3.ListMultipartUploadsResult{Bucket: bucketName, Prefix: prefix.Prefix, Delimiter: prefix.Delimiter, MaxUploads: limit}
	var keyMarker, idMarker string
	if marker != nil {
		keyMarker, idMarker = marker.Object, string(marker.UploadID)
		out.KeyMarker, out.UploadIDMarker = keyMarker, marker.UploadID
	}
	for _, u := range b.index.listUploads(bucketName) {
		if !strings.HasPrefix(u.Key, prefix.Prefix) || u.Key < keyMarker || u.Key == keyMarker && (idMarker == "" || u.ID <= idMarker) && keyMarker != "" {
			continue
		}
		if prefix.Delimiter != "" {
			if i := strings.Index(u.Key[len(prefix.Prefix):], prefix.Delimiter); i >= 0 {
				common := gofakes3.CommonPrefix{Prefix: u.Key[:len(prefix.Prefix)+i+len(prefix.Delimiter)]}
				if !slices.Contains(out.CommonPrefixes, common) {
					out.CommonPrefixes = append(out.CommonPrefixes, common)
				}
				continue
			}
		}
		if int64(len(out.Uploads)) == limit {
			last := out.Uploads[limit-1]
			out.IsTruncated, out.NextKeyMarker, out.NextUploadIDMarker = true, last.Key, last.UploadID
			break
		}
		out.Uploads = append(out.Uploads, gofakes3.ListMultipartUploadItem{
			Key: u.Key, UploadID: gofakes3.UploadID(u.ID), Initiator: b.owner(), Owner: b.owner(), Initiated: gofakes3.NewContentTime(u.Initiated),
		})
	}
	return out, nil
}

// listUploads returns the uploads under way by key and id.
func (x *index) listUploads(bucketName string) []uploadRecord {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var all []uploadRecord
	if b := x.buckets[bucketName]; b != nil {
		for _, u := range b.uploads {
			all = append(all, u.uploadRecord)
		}
	}
	slices.SortFunc(all, func(p, q uploadRecord) int { return cmp.Or(cmp.Compare(p.Key, q.Key), cmp.Compare(p.ID, q.ID)) })
	return all
}

// ListParts implements gofakes3.MultipartBackend.
func (b *backend) ListParts(bucketName, key string, id gofakes3.UploadID, marker int, limit int64) (*gofakes3.ListMultipartUploadPartsResult, error) {
	u, parts, err := b.index.upload(bucketName, key, string(id))
	if err != nil {
		return nil, b.fail(err)
	}
	out := &gofakes3.ListMultipartUploadPartsResult{
		Bucket: bucketName, Key: u.Key, UploadID: id, Initiator: b.owner(), Owner: b.owner(), PartNumberMarker: marker, MaxParts: limit,
	}
	for _, p := range parts {
		if p.Number <= marker {
			continue
		}
		if int64(len(out.Parts)) == limit {
			out.IsTruncated = true
			break
		}
		out.NextPartNumberMarker = p.Number
		out.Parts = append(out.Parts, gofakes3.ListMultipartUploadPartItem{
			PartNumber: p.Number, LastModified: gofakes3.NewContentTime(p.Modified), ETag: `"` + p.MD5 + `"`, Size: p.Size,
		})
	}
	return out, nil
}

// AbortMultipartUpload implements gofakes3.MultipartBackend.
func (b *backend) AbortMultipartUpload(bucketName, key string, id gofakes3.UploadID) error {
	return b.fail(b.index.dropUpload(b.ctx, bucketName, key, string(id)))
}

// CompleteMultipartUpload implements gofakes3.MultipartBackend.
func (b *backend) CompleteMultipartUpload(bucketName, key string, id gofakes3.UploadID, in *gofakes3.CompleteMultipartUploadRequest) (gofakes3.VersionID, string, error) {
	version, etag, err := b.complete(bucketName, key, string(id), in)
	if version == nullVersion {
		version = ""
	}
	return gofakes3.VersionID(version), `"` + etag + `"`, b.fail(err)
}

func (b *backend) complete(bucketName, key, id string, in *gofakes3.CompleteMultipartUploadRequest) (version, etag string, err error) {
	u, uploaded, err := b.index.upload(bucketName, key, id)
	if err != nil {
		return "", "", err
	}
	parts, err := chosen(uploaded, in)
	if err != nil {
		return "", "", err
	}
	md5s := md5.New()
	for _, p := range parts {
		raw, err := hex.DecodeString(p.MD5)
		if err != nil {
			return "", "", err
		}
		md5s.Write(raw)
	}
	whole := newSummer(b.join(b.ctx, parts), "")
	if u.Type == "FULL_OBJECT" {
		whole = newSummer(whole.ReadCloser, u.Algorithm)
		whole.want = func() string { return b.r.Header.Get(sumHeader + u.Algorithm) }
	}
	digest, size, err := b.index.keep(b.ctx, whole)
	if err = errors.Join(bodyError(err), whole.Close()); err != nil {
		return "", "", err
	}
	defer b.index.release(b.ctx, digest)
	v := objectVersion{
		Digest: digest, Size: size, ETag: fmt.Sprintf("%x-%d", md5s.Sum(nil), len(parts)), Headers: u.Headers, Sums: whole.sums(),
	}
	if u.Type == "COMPOSITE" {
		v.Sums = composite(u.Algorithm, parts)
	}
	var conditions *gofakes3.PutConditions
	if h := b.r.Header; h.Get("If-None-Match") != "" || h.Get("If-Match") != "" {
		conditions = &gofakes3.PutConditions{}
		if value := h.Get("If-None-Match"); value != "" {
			conditions.IfNoneMatch = &value
		}
		if value := h.Get("If-Match"); value != "" {
			conditions.IfMatch = &value
		}
	}
	if version, err = b.put(bucketName, key, v, conditions); err != nil {
		return "", "", err
	}
	if err := b.index.dropUpload(b.ctx, bucketName, key, id); err != nil && !errors.Is(err, errNoSuchUpload) {
		// The object is there; what is left of the upload can be aborted.
		b.cfg.Logger.Error("a completed upload could not be removed", "bucket", bucketName, "upload", id, "err", err)
	}
	return version, v.ETag, nil
}

// chosen are the parts that a completion names.
func chosen(uploaded []partRecord, in *gofakes3.CompleteMultipartUploadRequest) (parts []partRecord, err error) {
	if len(in.Parts) == 0 {
		return nil, errMalformedXML()
	}
	for i, want := range in.Parts {
		if i > 0 && want.PartNumber <= in.Parts[i-1].PartNumber {
			return nil, lambdad.Errorf("InvalidPartOrder", "The list of parts was not in ascending order. Parts must be ordered by part number.")
		}
		j, ok := slices.BinarySearchFunc(uploaded, want.PartNumber, func(p partRecord, n int) int { return cmp.Compare(p.Number, n) })
		if !ok || strings.Trim(want.ETag, `"`) != uploaded[j].MD5 {
			return nil, lambdad.Errorf("InvalidPart", "One or more of the specified parts could not be found.  The part may not have been uploaded, or the specified entity tag may not match the part's entity tag.")
		}
		if i < len(in.Parts)-1 && uploaded[j].Size < minPart {
			return nil, lambdad.Errorf("EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
		}
		parts = append(parts, uploaded[j])
	}
	return parts, nil
}

// join reads the contents of parts one after the other.
func (b *backend) join(ctx context.Context, parts []partRecord) io.ReadCloser {
	return &joined{open: func() (io.ReadCloser, error) {
		if len(parts) == 0 {
			return nil, io.EOF
		}
		r, _, err := b.cfg.Blobs.Open(ctx, parts[0].Digest)
		parts = parts[1:]
		return r, err
	}}
}

type joined struct {
	open    func() (io.ReadCloser, error)
	current io.ReadCloser
}

func (j *joined) Read(p []byte) (int, error) {
	for {
		if j.current == nil {
			var err error
			if j.current, err = j.open(); err != nil {
				j.current = nil
				return 0, err
			}
		}
		n, err := j.current.Read(p)
		if err == io.EOF {
			if err = j.Close(); n == 0 && err == nil {
				continue
			}
		}
		return n, err
	}
}

func (j *joined) Close() error {
	if j.current == nil {
		return nil
	}
	c := j.current
	j.current = nil
	return c.Close()
}

// source finds what a copy is of.
func (b *backend) source() (v objectVersion, from *target, err error) {
	raw := strings.TrimPrefix(b.r.Header.Get("X-Amz-Copy-Source"), "/")
	path, query, _ := strings.Cut(raw, "?")
	path, err = url.PathUnescape(path)
	bucketName, key, ok := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	values, qerr := url.ParseQuery(query)
	if err != nil || qerr != nil || !ok || key == "" {
		return v, nil, lambdad.Errorf("InvalidArgument", "Copy Source must mention the source bucket and key: sourcebucket/sourcekey")
	}
	r, err := b.index.bucket(bucketName)
	if err != nil {
		return v, nil, err
	}
	if r.Account != b.r.Identity.Account {
		return v, nil, lambdad.Errorf("AccessDenied", "Access Denied")
	}
	if err := b.r.Authorize("s3:GetObject", resourceARN(bucketName, key), b.BucketPolicy(bucketName), nil); err != nil {
		return v, nil, err
	}
	id := values.Get("versionId")
	if v, err = b.index.version(bucketName, key, id); err != nil {
		return v, nil, err
	}
	h, etag := b.r.Header, `"`+v.ETag+`"`
	if m := h.Get("X-Amz-Copy-Source-If-Match"); m != "" && m != etag || h.Get("X-Amz-Copy-Source-If-None-Match") == etag {
		return v, nil, lambdad.Errorf("PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
	}
	if v.ID != nullVersion {
		b.header("X-Amz-Copy-Source-Version-Id", v.ID)
	}
	return v, &target{bucket: bucketName, key: key}, nil
}

// copyObject answers CopyObject: the content is shared, not copied.
func (b *backend) copyObject(w http.ResponseWriter) error {
	v, from, err := b.source()
	if err != nil {
		return err
	}
	if strings.EqualFold(b.r.Header.Get("X-Amz-Metadata-Directive"), "REPLACE") {
		if v.Headers, err = objectHeaders(b.r.Header); err != nil {
			return err
		}
	} else if from.bucket == b.t.bucket && from.key == b.t.key {
		return lambdad.Errorf("InvalidRequest", "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.")
	}
	if strings.EqualFold(b.r.Header.Get("X-Amz-Tagging-Directive"), "REPLACE") {
		if v.Tags, err = taggingHeader(b.r.Header.Get("X-Amz-Tagging")); err != nil {
			return err
		}
	}
	id, err := b.put(b.t.bucket, b.t.key, v, nil)
	if err != nil {
		return err
	}
	if id != nullVersion {
		b.header("X-Amz-Version-Id", id)
	}
	return writeXML(w, gofakes3.CopyObjectResult{ETag: `"` + v.ETag + `"`, LastModified: gofakes3.NewContentTime(b.cfg.Now())})
}

// uploadPartCopy answers UploadPartCopy.
func (b *backend) uploadPartCopy(w http.ResponseWriter) error {
	v, _, err := b.source()
	if err != nil {
		return err
	}
	number, err := strconv.Atoi(b.t.query.Get("partNumber"))
	if err != nil || number < 1 || number > gofakes3.MaxUploadPartNumber {
		return lambdad.Errorf("InvalidArgument", "Part number must be an integer between 1 and %d, inclusive", gofakes3.MaxUploadPartNumber)
	}
	start, end := int64(0), v.Size-1
	if r := b.r.Header.Get("X-Amz-Copy-Source-Range"); r != "" {
		if _, err := fmt.Sscanf(r, "bytes=%d-%d", &start, &end); err != nil || start < 0 || end < start || end >= v.Size {
			return lambdad.Errorf("InvalidArgument", "Range specified is not valid for source object of size: %d", v.Size)
		}
	}
	c, _, err := b.cfg.Blobs.Open(b.ctx, v.Digest)
	if err != nil {
		return err
	}
	defer c.Close()
	u, _, err := b.index.upload(b.t.bucket, b.t.key, b.t.query.Get("uploadId"))
	if err != nil {
		return err
	}
	b.sums = newSummer(io.NopCloser(io.NewSectionReader(c, start, end-start+1)), u.Algorithm)
	etag, err := b.UploadPart(b.t.bucket, b.t.key, gofakes3.UploadID(u.ID), number, 0, b.sums)
	if err != nil {
		return err
	}
	return writeXML(w, struct {
		XMLName xml.Name `xml:"CopyPartResult"`
		ETag    string
		At      gofakes3.ContentTime `xml:"LastModified"`
	}{ETag: etag, At: gofakes3.NewContentTime(b.cfg.Now())})
}
