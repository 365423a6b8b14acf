package s3

import (
	"context"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/johannesboyne/gofakes3"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/blob"
)

// A backend is what the library works on, for one request.
type backend struct {
	*Service
	ctx     context.Context
	r       *aws.Request
	t       *target
	w       http.Header       // of the answer, also of an error
	sums    *summer           // of a streamed body
	headers map[string]string // of a successful answer, over those of the library
	err     error             // what to answer instead of what the library says
}

var (
	_ gofakes3.Backend          = (*backend)(nil)
	_ gofakes3.VersionedBackend = (*backend)(nil)
	_ gofakes3.MultipartBackend = (*backend)(nil)
)

// fail keeps the first error for the answer. The library only has to stop.
func (b *backend) fail(err error) error {
	if err != nil && b.err == nil {
		b.err = err
	}
	return err
}

func (b *backend) header(name, value string) {
	if b.headers == nil {
		b.headers = map[string]string{}
	}
	b.headers[name] = value
}

// ListBuckets implements gofakes3.Backend; listBuckets does it.
func (b *backend) ListBuckets() ([]gofakes3.BucketInfo, error) {
	return nil, gofakes3.ErrNotImplemented
}

// listBuckets answers ListBuckets: the library has an owner of its own there.
func (b *backend) listBuckets(w http.ResponseWriter) error {
	type named struct {
		Name    string
		Created gofakes3.ContentTime `xml:"CreationDate"`
		Region  string               `xml:"BucketRegion"`
	}
	var out struct {
		XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListAllMyBucketsResult"`
		Owner   *gofakes3.UserInfo
		Buckets []named `xml:"Buckets>Bucket"`
		Prefix  string  `xml:",omitempty"`
		Token   string  `xml:"ContinuationToken,omitempty"`
	}
	out.Owner, out.Prefix = b.owner(), b.t.query.Get("prefix")
	limit := math.MaxInt
	if n := b.t.query.Get("max-buckets"); n != "" {
		var err error
		if limit, err = strconv.Atoi(n); err != nil || limit < 1 || limit > 10000 {
			return lambdad.Errorf("InvalidArgument", "Argument max-buckets must be an integer between 1 and 10000.")
		}
	}
	region := b.t.query.Get("bucket-region")
	for _, r := range b.index.list(b.r.Identity.Account) {
		if r.Name <= b.t.query.Get("continuation-token") || !strings.HasPrefix(r.Name, out.Prefix) || region != "" && r.Region != region {
			continue
		}
		if len(out.Buckets) == limit {
			out.Token = out.Buckets[limit-1].Name
			break
		}
		out.Buckets = append(out.Buckets, named{r.Name, gofakes3.NewContentTime(r.Created), r.Region})
	}
	return writeXML(w, out)
}

// BucketExists implements gofakes3.Backend.
func (b *backend) BucketExists(name string) (bool, error) {
	_, err := b.index.bucket(name)
	return err == nil, nil
}

// CreateBucket implements gofakes3.Backend; createBucket does it.
func (b *backend) CreateBucket(string) error { return gofakes3.ErrNotImplemented }

// bucketName is how buckets may be called; the library asks for more.
var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// createBucket answers CreateBucket.
func (b *backend) createBucket(w http.ResponseWriter) error {
	name := b.t.bucket
	if !bucketName.MatchString(name) || strings.Contains(name, "..") || net.ParseIP(name) != nil ||
		strings.HasPrefix(name, "xn--") || strings.HasSuffix(name, "-s3alias") {
		return lambdad.Errorf("InvalidBucketName", "The specified bucket is not valid.")
	}
	var in struct {
		LocationConstraint string
	}
	if len(b.r.Body) > 0 {
		if err := xml.Unmarshal(b.r.Body, &in); err != nil {
			return errMalformedXML()
		}
	}
	region := in.LocationConstraint
	switch {
	case region == "us-east-1":
		return lambdad.Errorf("InvalidLocationConstraint", "The specified location-constraint is not valid")
	case region == "" && b.r.Region != "us-east-1":
		return lambdad.Errorf("IllegalLocationConstraintException", "The unspecified location constraint is incompatible for the region specific endpoint this request was sent to.")
	case region != "" && region != b.r.Region && b.r.Region != "us-east-1":
		return lambdad.Errorf("IllegalLocationConstraintException", "The %s location constraint is incompatible for the region specific endpoint this request was sent to.", region)
	case region == "":
		region = b.r.Region
	}
	there, made, err := b.index.create(b.ctx, bucketRecord{Name: name, Account: b.r.Identity.Account, Region: region, Created: b.cfg.Now().UTC()})
	switch {
	case err != nil:
		return err
	case !made && there.Account != b.r.Identity.Account:
		return lambdad.Errorf("BucketAlreadyExists", "The requested bucket name is not available. The bucket namespace is shared by all users of the system. Please select a different name and try again.")
	case !made && (region != "us-east-1" || there.Region != region):
		return lambdad.Errorf("BucketAlreadyOwnedByYou", "Your previous request to create the named bucket succeeded and you already own it.")
	}
	w.Header().Set("Location", "/"+name)
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusOK)
	return nil
}

func errMalformedXML() error {
	return lambdad.Errorf("MalformedXML", "The XML you provided was not well-formed or did not validate against our published schema")
}

// getBucketLocation answers GetBucketLocation.
func (b *backend) getBucketLocation(w http.ResponseWriter) error {
	r, err := b.index.bucket(b.t.bucket)
	if err != nil {
		return err
	}
	if r.Region == "us-east-1" {
		r.Region = ""
	}
	return writeXML(w, gofakes3.GetBucketLocation{Xmlns: "http://s3.amazonaws.com/doc/2006-03-01/", LocationConstraint: r.Region})
}

func writeXML(w http.ResponseWriter, v any) error {
	body, err := xml.Marshal(v)
	if err != nil {
		return err
	}
	return writeDocument(w, "application/xml", xml.Header+string(body))
}

func writeDocument(w http.ResponseWriter, contentType, body string) error {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	_, _ = io.WriteString(w, body) // a caller that is gone cannot be told
	return nil
}

// DeleteBucket implements gofakes3.Backend.
func (b *backend) DeleteBucket(name string) error { return b.fail(b.index.remove(b.ctx, name)) }

// ForceDeleteBucket implements gofakes3.Backend: it is a header of another product.
func (b *backend) ForceDeleteBucket(string) error {
	return b.fail(lambdad.Errorf("NotImplemented", "A header you provided implies functionality that is not implemented"))
}

// ListBucket implements gofakes3.Backend.
func (b *backend) ListBucket(name string, prefix *gofakes3.Prefix, page gofakes3.ListBucketPage) (*gofakes3.ObjectList, error) {
	if prefix == nil {
		prefix = &gofakes3.Prefix{}
	}
	out := gofakes3.NewObjectList()
	left, last := page.MaxKeys, ""
	err := b.index.walk(name, prefix.Prefix, prefix.Delimiter, page.Marker, func(item listed) bool {
		if item.object != nil && item.object.current().Deleted {
			return true
		}
		if left == 0 {
			out.IsTruncated, out.NextMarker = page.MaxKeys > 0, last
			return false
		}
		left--
		if last = item.name; item.object == nil {
			out.AddPrefix(item.name)
			return true
		}
		v := item.object.current()
		out.Add(&gofakes3.Content{
			Key: item.name, LastModified: gofakes3.NewContentTime(v.Modified), ETag: `"` + v.ETag + `"`, Size: v.Size,
			StorageClass: gofakes3.StorageStandard, Owner: b.owner(),
		})
		return true
	})
	return out, b.fail(err)
}

func (b *backend) owner() *gofakes3.UserInfo {
	return &gofakes3.UserInfo{ID: b.r.Identity.Account, DisplayName: b.r.Identity.Account}
}

// ListBucketVersions implements gofakes3.VersionedBackend.
func (b *backend) ListBucketVersions(name string, prefix *gofakes3.Prefix, page *gofakes3.ListBucketVersionsPage) (*gofakes3.ListBucketVersionsResult, error) {
	if prefix == nil {
		prefix = &gofakes3.Prefix{}
	}
	out := gofakes3.NewListBucketVersionsResult(name, prefix, page)
	out.XMLName = xml.Name{Local: "ListVersionsResult"}
	from := page.KeyMarker
	if page.HasVersionIDMarker {
		from = before(from) // the versions after the marker of the same key, too
	}
	left, lastKey, lastID := page.MaxKeys, "", ""
	full := func() bool {
		if left > 0 {
			left--
			return false
		}
		out.IsTruncated = true
		out.NextKeyMarker, out.NextVersionIDMarker = lastKey, gofakes3.VersionID(lastID)
		return true
	}
	err := b.index.walk(name, prefix.Prefix, prefix.Delimiter, from, func(item listed) bool {
		if item.object == nil {
			if full() {
				return false
			}
			out.AddPrefix(item.name)
			lastKey, lastID = item.name, ""
			return true
		}
		skip := page.HasVersionIDMarker && item.name == page.KeyMarker
		for i := len(item.object.Versions) - 1; i >= 0; i-- {
			v := item.object.Versions[i]
			if skip {
				skip = v.ID != string(page.VersionIDMarker)
				continue
			}
			if full() {
				return false
			}
			lastKey, lastID = item.name, v.ID
			latest, at, id := i == len(item.object.Versions)-1, gofakes3.NewContentTime(v.Modified), gofakes3.VersionID(v.ID)
			if v.Deleted {
				out.Versions = append(out.Versions, &gofakes3.DeleteMarker{Key: item.name, VersionID: id, IsLatest: latest, LastModified: at, Owner: b.owner()})
				continue
			}
			out.Versions = append(out.Versions, &gofakes3.Version{
				Key: item.name, VersionID: id, IsLatest: latest, LastModified: at, Size: v.Size,
				StorageClass: gofakes3.StorageStandard, ETag: `"` + v.ETag + `"`, Owner: b.owner(),
			})
		}
		return true
	})
	return out, b.fail(err)
}

// before is a string after which key comes first.
func before(key string) string {
	if key == "" {
		return ""
	}
	return key[:len(key)-1] + string(key[len(key)-1]-1) + strings.Repeat("\xff", 8)
}

// VersioningConfiguration implements gofakes3.VersionedBackend.
func (b *backend) VersioningConfiguration(name string) (c gofakes3.VersioningConfiguration, err error) {
	r, err := b.index.bucket(name)
	c.Status = gofakes3.VersioningStatus(r.Versioning)
	return c, b.fail(err)
}

// SetVersioningConfiguration implements gofakes3.VersionedBackend.
func (b *backend) SetVersioningConfiguration(name string, c gofakes3.VersioningConfiguration) error {
	if c.MFADelete == gofakes3.MFADeleteEnabled {
		return b.fail(lambdad.Errorf("NotImplemented", "lambdad has no multi-factor authentication: MfaDelete cannot be enabled."))
	}
	if c.Status != gofakes3.VersioningEnabled && c.Status != gofakes3.VersioningSuspended {
		return b.fail(lambdad.Errorf("IllegalVersioningConfigurationException", "The Versioning element must be specified"))
	}
	return b.fail(b.index.change(b.ctx, name, func(r *bucketRecord) { r.Versioning = string(c.Status) }))
}

// GetObject implements gofakes3.Backend.
func (b *backend) GetObject(bucketName, key string, rnge *gofakes3.ObjectRangeRequest) (*gofakes3.Object, error) {
	// The library takes versionId=null for none.
	return b.get(bucketName, key, b.t.query.Get("versionId"), rnge)
}

// GetObjectVersion implements gofakes3.VersionedBackend.
func (b *backend) GetObjectVersion(bucketName, key string, id gofakes3.VersionID, rnge *gofakes3.ObjectRangeRequest) (*gofakes3.Object, error) {
	return b.get(bucketName, key, string(id), rnge)
}

func (b *backend) get(bucketName, key, id string, rnge *gofakes3.ObjectRangeRequest) (*gofakes3.Object, error) {
	v, err := b.find(bucketName, key, id)
	if err != nil {
		return nil, b.fail(err)
	}
	md5, _ := hex.DecodeString(v.ETag) // of a multipart object the header is set below
	o := &gofakes3.Object{Name: key, Metadata: map[string]string{}, Size: v.Size, Hash: md5}
	if o.Range, err = rnge.Range(v.Size); err != nil {
		return nil, b.fail(lambdad.Errorf("InvalidRange", "The requested range is not satisfiable"))
	}
	b.shown(v, o.Range != nil)
	c, _, err := b.cfg.Blobs.Open(b.ctx, v.Digest)
	if errors.Is(err, blob.ErrNotFound) {
		return nil, b.fail(errNoSuchKey()) // deleted meanwhile
	}
	if err != nil {
		return nil, b.fail(err)
	}
	o.Contents = c
	if o.Range != nil {
		o.Contents = struct {
			io.Reader
			io.Closer
		}{io.NewSectionReader(c, o.Range.Start, o.Range.Length), c}
	}
	return o, nil
}

// find returns a version and notes in the answer what is said of it also when it
// is a delete marker.
func (b *backend) find(bucketName, key, id string) (objectVersion, error) {
	v, err := b.index.version(bucketName, key, id)
	if err != nil && v.Deleted {
		b.w.Set("X-Amz-Delete-Marker", "true")
		b.w.Set("X-Amz-Version-Id", v.ID)
	}
	return v, err
}

// shown sets the headers of an object.
func (b *backend) shown(v objectVersion, ranged bool) {
	b.header("Content-Type", "binary/octet-stream")
	for name, value := range v.Headers {
		b.header(name, value)
	}
	b.header("Etag", `"`+v.ETag+`"`)
	b.header("Last-Modified", v.Modified.UTC().Format(http.TimeFormat))
	b.header("X-Amz-Server-Side-Encryption", "AES256")
	if v.ID != nullVersion {
		b.header("X-Amz-Version-Id", v.ID)
	}
	if !ranged && strings.EqualFold(b.r.Header.Get("X-Amz-Checksum-Mode"), "ENABLED") {
		v.Sums.headers(b.headers, true)
	}
	if n := strings.Count(v.Tags, "<Tag>"); n > 0 {
		b.header("X-Amz-Tagging-Count", strconv.Itoa(n))
	}
	for query, name := range map[string]string{
		"response-content-type": "Content-Type", "response-content-language": "Content-Language", "response-expires": "Expires",
		"response-cache-control": "Cache-Control", "response-content-disposition": "Content-Disposition", "response-content-encoding": "Content-Encoding",
	} {
		if value := b.t.query.Get(query); value != "" {
			b.header(name, value)
		}
	}
}

// headObject answers HeadObject: the library does not look at versions there.
func (b *backend) headObject(w http.ResponseWriter) error {
	v, err := b.find(b.t.bucket, b.t.key, b.t.query.Get("versionId"))
	if err != nil {
		return err
	}
	h := b.r.Header
	etag := `"` + v.ETag + `"`
	switch {
	case h.Get("If-Match") != "" && h.Get("If-Match") != etag:
		return lambdad.Errorf("PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
	case h.Get("If-None-Match") == etag:
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	b.shown(v, false)
	w.Header().Set("Accept-Ranges", "bytes")
	w.Header().Set("Content-Length", strconv.FormatInt(v.Size, 10))
	w.WriteHeader(http.StatusOK)
	return nil
}

// HeadObject implements gofakes3.Backend; headObject does it.
func (b *backend) HeadObject(string, string) (*gofakes3.Object, error) {
	return nil, gofakes3.ErrNotImplemented
}

// HeadObjectVersion implements gofakes3.VersionedBackend; headObject does it.
func (b *backend) HeadObjectVersion(string, string, gofakes3.VersionID) (*gofakes3.Object, error) {
	return nil, gofakes3.ErrNotImplemented
}

// PutObject implements gofakes3.Backend.
func (b *backend) PutObject(bucketName, key string, _ map[string]string, input io.Reader, _ int64, conditions *gofakes3.PutConditions) (out gofakes3.PutObjectResult, err error) {
	headers, err := objectHeaders(b.r.Header)
	if err != nil {
		return out, b.fail(err)
	}
	tags, err := taggingHeader(b.r.Header.Get("X-Amz-Tagging"))
	if err != nil {
		return out, b.fail(err)
	}
	digest, size, err := b.index.keep(b.ctx, input)
	if err != nil {
		return out, b.fail(bodyError(err))
	}
	defer b.index.release(b.ctx, digest)
	v := objectVersion{Digest: digest, Size: size, ETag: b.sums.etag(), Headers: headers, Sums: b.sums.sums(), Tags: tags}
	id, err := b.put(bucketName, key, v, conditions)
	if err != nil {
		return out, b.fail(err)
	}
	b.header("X-Amz-Server-Side-Encryption", "AES256")
	if v.Sums.Value != "" {
		v.Sums.headers(b.headers, true)
	}
	if id != nullVersion {
		out.VersionID = gofakes3.VersionID(id)
	}
	return out, nil
}

// bodyError is what went wrong while a body was read and stored.
func bodyError(err error) error {
	var known *lambdad.Error
	if errors.As(err, &known) {
		return known
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return lambdad.Errorf("IncompleteBody", "You did not provide the number of bytes specified by the Content-Length HTTP header")
	}
	return err
}

// put makes v the current version of a key and returns its id.
func (b *backend) put(bucketName, key string, v objectVersion, conditions *gofakes3.PutConditions) (id string, err error) {
	err = b.index.write(b.ctx, bucketName, key, func(config *bucketRecord, o *objectRecord) error {
		if err := check(o, conditions); err != nil {
			return err
		}
		v.Modified = b.cfg.Now().UTC()
		push(config, o, v)
		id = o.current().ID
		return nil
	})
	return id, err
}

// push adds a version as the bucket's configuration has it.
func push(config *bucketRecord, o *objectRecord, v objectVersion) {
	if config.Versioning == string(gofakes3.VersioningEnabled) {
		v.ID = strings.ReplaceAll(uuid.NewString(), "-", "")
	} else {
		v.ID = nullVersion
		if i := o.find(nullVersion); i >= 0 {
			o.Versions = append(o.Versions[:i:i], o.Versions[i+1:]...)
		}
	}
	o.Versions = append(o.Versions, v)
}

func check(o *objectRecord, c *gofakes3.PutConditions) error {
	if c == nil {
		return nil
	}
	exists := len(o.Versions) > 0 && !o.current().Deleted
	if c.IfNoneMatch != nil && exists || c.IfMatch != nil && exists && strings.Trim(*c.IfMatch, `"`) != o.current().ETag {
		return lambdad.Errorf("PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
	}
	if c.IfMatch != nil && !exists {
		return errNoSuchKey()
	}
	return nil
}

// DeleteObject implements gofakes3.Backend.
func (b *backend) DeleteObject(bucketName, key string) (gofakes3.ObjectDeleteResult, error) {
	out, err := b.remove(bucketName, key, b.t.query.Get("versionId"))
	return out, b.fail(err)
}

// DeleteObjectVersion implements gofakes3.VersionedBackend.
func (b *backend) DeleteObjectVersion(bucketName, key string, id gofakes3.VersionID) (gofakes3.ObjectDeleteResult, error) {
	out, err := b.remove(bucketName, key, string(id))
	return out, b.fail(err)
}

// remove deletes one version, or puts a delete marker where there are versions.
func (b *backend) remove(bucketName, key, id string) (out gofakes3.ObjectDeleteResult, err error) {
	err = b.index.write(b.ctx, bucketName, key, func(config *bucketRecord, o *objectRecord) error {
		switch {
		case id != "":
			if i := o.find(id); i >= 0 {
				out.IsDeleteMarker = o.Versions[i].Deleted
				o.Versions = append(o.Versions[:i:i], o.Versions[i+1:]...)
			}
			out.VersionID = gofakes3.VersionID(id)
		case config.Versioning == "":
			o.Versions = nil
		default:
			push(config, o, objectVersion{Deleted: true, Modified: b.cfg.Now().UTC()})
			out.IsDeleteMarker, out.VersionID = true, gofakes3.VersionID(o.current().ID)
		}
		return nil
	})
	return out, err
}

// DeleteMulti implements gofakes3.Backend; the library asks for versions.
func (b *backend) DeleteMulti(string, ...string) (gofakes3.MultiDeleteResult, error) {
	return gofakes3.MultiDeleteResult{}, gofakes3.ErrNotImplemented
}

// maxDelete is how many keys one DeleteObjects may name.
const maxDelete = 1000

// DeleteMultiVersions implements gofakes3.VersionedBackend.
func (b *backend) DeleteMultiVersions(bucketName string, objects ...gofakes3.ObjectID) (out gofakes3.MultiDeleteResult, err error) {
	if len(objects) == 0 || len(objects) > maxDelete {
		return out, b.fail(errMalformedXML())
	}
	policy := b.BucketPolicy(bucketName)
	for _, o := range objects {
		action := "s3:DeleteObject"
		if o.VersionID != "" {
			action = "s3:DeleteObjectVersion"
		}
		if b.r.Authorize(action, resourceARN(bucketName, o.Key), policy, nil) != nil {
			out.Error = append(out.Error, gofakes3.ErrorResult{Key: o.Key, Code: gofakes3.ErrorCode("AccessDenied"), Message: "Access Denied"})
			continue
		}
		if _, err := b.remove(bucketName, o.Key, o.VersionID); err != nil {
			var known *lambdad.Error
			if !errors.As(err, &known) {
				known = lambdad.Errorf("InternalError", "We encountered an internal error. Please try again.")
				b.cfg.Logger.Error("an object could not be deleted", "bucket", bucketName, "key", o.Key, "err", err)
			}
			out.Error = append(out.Error, gofakes3.ErrorResult{Key: o.Key, Code: gofakes3.ErrorCode(known.Code), Message: known.Message})
			continue
		}
		out.Deleted = append(out.Deleted, o)
	}
	return out, nil
}

// CopyObject implements gofakes3.Backend; copyObject does it.
func (b *backend) CopyObject(string, string, string, string, map[string]string) (gofakes3.CopyObjectResult, error) {
	return gofakes3.CopyObjectResult{}, gofakes3.ErrNotImplemented
}

// A listed item is an object or, without one, a common prefix.
type listed struct {
	name   string
	object *objectRecord
}

// walk calls f with what comes after a marker, in order, until it returns false.
// Keys with the delimiter after the prefix are rolled up into one item.
func (x *index) walk(bucketName, prefix, delimiter, after string, f func(listed) bool) error {
	x.mu.RLock()
	defer x.mu.RUnlock()
	b := x.buckets[bucketName]
	if b == nil {
		return errNoSuchBucket
	}
	start, _ := slices.BinarySearch(b.keys, max(prefix, after))
	rolled := ""
	for _, key := range b.keys[start:] {
		if !strings.HasPrefix(key, prefix) {
			if key > prefix {
				break
			}
			continue
		}
		if key <= after && after != "" {
			continue
		}
		if delimiter != "" {
			if i := strings.Index(key[len(prefix):], delimiter); i >= 0 {
				common := key[:len(prefix)+i+len(delimiter)]
				if common == rolled || common == after {
					continue
				}
				rolled = common
				if !f(listed{name: common}) {
					return nil
				}
				continue
			}
		}
		if !f(listed{key, &b.objects[key].objectRecord}) {
			return nil
		}
	}
	return nil
}
