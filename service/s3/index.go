package s3

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/blob"
	"github.com/lambdad/lambdad/store"
)

// An index holds all records in memory; it is their one writer.
//
// Locks, in this order: bucket.life (shared by whoever writes within a bucket, held
// alone by its deletion), one of the stripes (whoever writes one key or upload), mu
// (memory; nothing that blocks is done under it).
type index struct {
	store store.Store
	blobs blob.Store
	log   *slog.Logger

	stripes [64]sync.Mutex
	seed    maphash.Seed

	mu      sync.RWMutex
	buckets map[string]*bucket
	// refs counts who refers to a content: versions, parts, and writers that have
	// stored it and not yet said where. deleting are those on their way out.
	refs     map[string]int
	deleting map[string]chan struct{}
}

type bucket struct {
	bucketRecord
	revision uint64
	life     sync.RWMutex
	gone     bool // guarded by life
	objects  map[string]*object
	keys     []string // of objects, sorted
	uploads  map[string]*upload
}

type object struct {
	objectRecord
	revision uint64
}

type upload struct {
	uploadRecord
	parts map[int]partRecord
}

// openIndex reads everything.
func openIndex(ctx context.Context, cfg Config) (*index, error) {
	x := &index{
		store: cfg.Store, blobs: cfg.Blobs, log: cfg.Logger, seed: maphash.MakeSeed(),
		buckets: map[string]*bucket{}, refs: map[string]int{}, deleting: map[string]chan struct{}{},
	}
	// A bucket comes before what is in it. Parts wait for their upload.
	var records []store.Record
	for _, kind := range []string{"s3bucket", "s3object", "s3upload", "s3part"} {
		more, err := cfg.Store.List(ctx, "*.*."+kind)
		if err != nil {
			return nil, fmt.Errorf("s3: reading records: %w", err)
		}
		records = append(records, more...)
	}
	var parts []store.Record
	for _, r := range records {
		f := strings.Split(r.Key, ".")
		if len(f) < 4 {
			continue
		}
		var err error
		switch name := strings.ReplaceAll(f[3], "=", "."); f[2] {
		case "s3bucket":
			b := newBucket(bucketRecord{})
			err = json.Unmarshal(r.Value, &b.bucketRecord)
			b.revision = r.Revision
			x.buckets[b.Name] = b
		case "s3object":
			o := &object{revision: r.Revision}
			if err = json.Unmarshal(r.Value, &o.objectRecord); err == nil && x.buckets[name] != nil {
				x.buckets[name].objects[o.Key] = o
				for _, v := range o.Versions {
					x.refs[v.Digest]++
				}
			}
		case "s3upload":
			u := &upload{parts: map[int]partRecord{}}
			if err = json.Unmarshal(r.Value, &u.uploadRecord); err == nil && x.buckets[name] != nil {
				x.buckets[name].uploads[u.ID] = u
			}
		case "s3part":
			parts = append(parts, r)
		}
		if err != nil {
			return nil, fmt.Errorf("s3: record %s: %w", r.Key, err)
		}
	}
	for _, r := range parts {
		var p partRecord
		if err := json.Unmarshal(r.Value, &p); err != nil {
			return nil, fmt.Errorf("s3: record %s: %w", r.Key, err)
		}
		b := x.buckets[strings.ReplaceAll(strings.Split(r.Key, ".")[3], "=", ".")]
		if b == nil || b.uploads[p.Upload] == nil {
			// Its upload was ended and the process died before all of it was gone.
			if err := cfg.Store.Delete(ctx, r.Key, 0); err != nil {
				return nil, fmt.Errorf("s3: removing the part of an ended upload: %w", err)
			}
			continue
		}
		b.uploads[p.Upload].parts[p.Number] = p
		x.refs[p.Digest]++
	}
	for _, b := range x.buckets {
		b.keys = slices.Sorted(maps.Keys(b.objects))
	}
	return x, x.sweep(ctx)
}

// sweep removes content that nothing refers to: what a crash left.
func (x *index) sweep(ctx context.Context) error {
	var unknown []string
	err := x.blobs.List(ctx, func(digest string, _ int64) bool {
		if x.refs[digest] == 0 {
			unknown = append(unknown, digest)
		}
		return true
	})
	for _, d := range unknown {
		err = errors.Join(err, x.blobs.Delete(ctx, d))
	}
	if err != nil {
		return fmt.Errorf("s3: removing content without an object: %w", err)
	}
	return nil
}

func newBucket(r bucketRecord) *bucket {
	return &bucket{bucketRecord: r, objects: map[string]*object{}, uploads: map[string]*upload{}}
}

func (x *index) stripe(bucket, key string) *sync.Mutex {
	return &x.stripes[maphash.String(x.seed, bucket+"/"+key)%uint64(len(x.stripes))]
}

var errNoSuchBucket = lambdad.Errorf("NoSuchBucket", "The specified bucket does not exist")

// bucket returns what is recorded of a bucket.
func (x *index) bucket(name string) (bucketRecord, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if b := x.buckets[name]; b != nil {
		return b.bucketRecord, nil
	}
	return bucketRecord{}, errNoSuchBucket
}

// enter finds a bucket to write in; leave is to be called after.
func (x *index) enter(name string) (b *bucket, leave func(), err error) {
	x.mu.RLock()
	b = x.buckets[name]
	x.mu.RUnlock()
	if b == nil {
		return nil, nil, errNoSuchBucket
	}
	b.life.RLock()
	if b.gone {
		b.life.RUnlock()
		return nil, nil, errNoSuchBucket
	}
	return b, b.life.RUnlock, nil
}

// list returns the buckets of an account by name.
func (x *index) list(account string) []bucketRecord {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var all []bucketRecord
	for _, name := range slices.Sorted(maps.Keys(x.buckets)) {
		if b := x.buckets[name]; b.Account == account {
			all = append(all, b.bucketRecord)
		}
	}
	return all
}

// create makes a bucket, or returns the one that is there and false.
func (x *index) create(ctx context.Context, r bucketRecord) (there bucketRecord, made bool, err error) {
	m := x.stripe(r.Name, "")
	m.Lock()
	defer m.Unlock()
	if there, err := x.bucket(r.Name); err == nil {
		return there, false, nil
	}
	b := newBucket(r)
	value, err := json.Marshal(r)
	if err != nil {
		return r, false, err
	}
	if b.revision, err = x.store.Create(ctx, bucketKey(&r), value); err != nil {
		return r, false, fmt.Errorf("s3: recording bucket %s: %w", r.Name, err)
	}
	x.mu.Lock()
	x.buckets[r.Name] = b
	x.mu.Unlock()
	return r, true, nil
}

// change rewrites the record of a bucket.
func (x *index) change(ctx context.Context, name string, f func(*bucketRecord)) error {
	b, leave, err := x.enter(name)
	if err != nil {
		return err
	}
	defer leave()
	m := x.stripe(name, "")
	m.Lock()
	defer m.Unlock()
	x.mu.RLock()
	r := b.bucketRecord
	r.Documents = maps.Clone(r.Documents)
	x.mu.RUnlock()
	f(&r)
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	revision, err := x.store.Update(ctx, bucketKey(&r), value, b.revision)
	if err != nil {
		return fmt.Errorf("s3: recording bucket %s: %w", name, err)
	}
	x.mu.Lock()
	b.bucketRecord, b.revision = r, revision
	x.mu.Unlock()
	return nil
}

// remove deletes an empty bucket; uploads under way go with it.
func (x *index) remove(ctx context.Context, name string) error {
	x.mu.RLock()
	b := x.buckets[name]
	x.mu.RUnlock()
	if b == nil {
		return errNoSuchBucket
	}
	b.life.Lock()
	defer b.life.Unlock()
	if b.gone {
		return errNoSuchBucket
	}
	if len(b.objects) > 0 {
		if b.Versioning != "" {
			return lambdad.Errorf("BucketNotEmpty", "The bucket you tried to delete is not empty. You must delete all versions in the bucket.")
		}
		return lambdad.Errorf("BucketNotEmpty", "The bucket you tried to delete is not empty")
	}
	for _, u := range b.uploads {
		if err := x.endUpload(ctx, b, u); err != nil {
			return err
		}
	}
	if err := x.store.Delete(ctx, bucketKey(&b.bucketRecord), 0); err != nil {
		return fmt.Errorf("s3: removing bucket %s: %w", name, err)
	}
	b.gone = true
	x.mu.Lock()
	delete(x.buckets, name)
	x.mu.Unlock()
	return nil
}

// version returns a version of an object; id "" is the current one.
func (x *index) version(bucketName, key, id string) (objectVersion, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	b := x.buckets[bucketName]
	if b == nil {
		return objectVersion{}, errNoSuchBucket
	}
	o := b.objects[key]
	if o == nil {
		if id != "" {
			return objectVersion{}, lambdad.Errorf("NoSuchVersion", "The specified version does not exist.")
		}
		return objectVersion{}, errNoSuchKey()
	}
	v := o.current()
	if id != "" {
		i := o.find(id)
		if i < 0 {
			return objectVersion{}, lambdad.Errorf("NoSuchVersion", "The specified version does not exist.")
		}
		v = &o.Versions[i]
		if v.Deleted {
			return *v, lambdad.Errorf("MethodNotAllowed", "The specified method is not allowed against this resource.")
		}
	}
	if v.Deleted {
		return *v, errNoSuchKey()
	}
	return *v, nil
}

// current is the newest version. There is always one.
func (o *objectRecord) current() *objectVersion { return &o.Versions[len(o.Versions)-1] }

func (o *objectRecord) find(id string) int {
	return slices.IndexFunc(o.Versions, func(v objectVersion) bool { return v.ID == id })
}

// write changes the versions of a key: f gets a copy. A key without versions is
// gone.
func (x *index) write(ctx context.Context, bucketName, key string, f func(*bucketRecord, *objectRecord) error) error {
	b, leave, err := x.enter(bucketName)
	if err != nil {
		return err
	}
	defer leave()
	m := x.stripe(bucketName, key)
	m.Lock()
	defer m.Unlock()

	x.mu.RLock()
	config := b.bucketRecord
	old := b.objects[key]
	x.mu.RUnlock()
	next := &object{objectRecord: objectRecord{Key: key}}
	if old != nil {
		next.Versions = slices.Clone(old.Versions)
	}
	if err := f(&config, &next.objectRecord); err != nil {
		return err
	}
	if old == nil && len(next.Versions) == 0 {
		return nil
	}
	if next.revision, err = x.record(ctx, objectKey(&config, key), old, &next.objectRecord); err != nil {
		return err
	}

	x.mu.Lock()
	for _, v := range next.Versions {
		x.refs[v.Digest]++
	}
	if len(next.Versions) == 0 {
		delete(b.objects, key)
		if i, ok := slices.BinarySearch(b.keys, key); ok {
			b.keys = slices.Delete(b.keys, i, i+1)
		}
	} else {
		b.objects[key] = next
		if i, ok := slices.BinarySearch(b.keys, key); !ok {
			b.keys = slices.Insert(b.keys, i, key)
		}
	}
	x.mu.Unlock()
	if old != nil {
		for _, v := range old.Versions {
			x.release(ctx, v.Digest)
		}
	}
	return nil
}

func (x *index) record(ctx context.Context, recordKey string, old *object, next *objectRecord) (revision uint64, err error) {
	value, err := json.Marshal(next)
	if err != nil {
		return 0, err
	}
	switch {
	case len(next.Versions) == 0:
		err = x.store.Delete(ctx, recordKey, 0)
	case old == nil:
		revision, err = x.store.Create(ctx, recordKey, value)
	default:
		revision, err = x.store.Update(ctx, recordKey, value, old.revision)
	}
	if err != nil {
		err = fmt.Errorf("s3: recording an object: %w", storeError(err))
	}
	return revision, err
}

// storeError names what a client can do something about.
func storeError(err error) error {
	switch {
	case errors.Is(err, store.ErrInvalid):
		return lambdad.Errorf("InvalidRequest", "This object has too many versions; delete some.")
	case errors.Is(err, store.ErrFull), errors.Is(err, blob.ErrFull):
		return &lambdad.Error{Code: "ServiceUnavailable", Message: "The disk of the server has no room left for this object.", Err: err}
	}
	return err
}

// keep stores content. It stays until release is called with its digest.
func (x *index) keep(ctx context.Context, r io.Reader) (digest string, size int64, err error) {
	digest, size, err = x.blobs.Put(ctx, r)
	if err != nil {
		return "", 0, storeError(err)
	}
	x.mu.Lock()
	x.refs[digest]++
	leaving := x.deleting[digest]
	x.mu.Unlock()
	if leaving != nil {
		<-leaving
	}
	// The same content may have been deleted since it was found to be there.
	c, _, err := x.blobs.Open(ctx, digest)
	if err != nil {
		x.release(ctx, digest)
		return "", 0, &lambdad.Error{Code: "SlowDown", Message: "Please reduce your request rate.", Err: err}
	}
	return digest, size, c.Close()
}

// release takes one reference back. Content that nothing refers to is deleted;
// where that fails, the next start tries again.
func (x *index) release(ctx context.Context, digest string) {
	if digest == "" {
		return
	}
	x.mu.Lock()
	x.refs[digest]--
	if x.refs[digest] > 0 || x.deleting[digest] != nil {
		x.mu.Unlock()
		return
	}
	delete(x.refs, digest)
	done := make(chan struct{})
	x.deleting[digest] = done
	x.mu.Unlock()
	if err := x.blobs.Delete(context.WithoutCancel(ctx), digest); err != nil {
		x.log.Error("content of a deleted object could not be removed", "digest", digest, "err", err)
	}
	x.mu.Lock()
	delete(x.deleting, digest)
	x.mu.Unlock()
	close(done)
}

var errNoSuchUpload = lambdad.Errorf("NoSuchUpload", "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed.")

// beginUpload records a multipart upload.
func (x *index) beginUpload(ctx context.Context, r uploadRecord) error {
	b, leave, err := x.enter(r.Bucket)
	if err != nil {
		return err
	}
	defer leave()
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := x.store.Create(ctx, uploadKey(&b.bucketRecord, r.ID), value); err != nil {
		return fmt.Errorf("s3: recording an upload: %w", storeError(err))
	}
	x.mu.Lock()
	b.uploads[r.ID] = &upload{uploadRecord: r, parts: map[int]partRecord{}}
	x.mu.Unlock()
	return nil
}

// upload returns an upload and its parts by number.
func (x *index) upload(bucketName, key, id string) (uploadRecord, []partRecord, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	b := x.buckets[bucketName]
	if b == nil {
		return uploadRecord{}, nil, errNoSuchBucket
	}
	u := b.uploads[id]
	if u == nil || u.Key != key {
		return uploadRecord{}, nil, errNoSuchUpload
	}
	var parts []partRecord
	for _, n := range slices.Sorted(maps.Keys(u.parts)) {
		parts = append(parts, u.parts[n])
	}
	return u.uploadRecord, parts, nil
}

// addPart records a part, whose content was kept; it replaces one of its number.
func (x *index) addPart(ctx context.Context, bucketName, key string, p partRecord) error {
	b, leave, err := x.enter(bucketName)
	if err != nil {
		return err
	}
	defer leave()
	m := x.stripe(bucketName, p.Upload)
	m.Lock()
	defer m.Unlock()
	x.mu.RLock()
	u := b.uploads[p.Upload]
	x.mu.RUnlock()
	if u == nil || u.Key != key {
		return errNoSuchUpload
	}
	value, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if _, err := x.store.Put(ctx, partKey(&b.bucketRecord, p.Upload, strconv.Itoa(p.Number)), value); err != nil {
		return fmt.Errorf("s3: recording a part: %w", storeError(err))
	}
	x.mu.Lock()
	old := u.parts[p.Number]
	u.parts[p.Number] = p
	x.refs[p.Digest]++
	x.mu.Unlock()
	x.release(ctx, old.Digest)
	return nil
}

// dropUpload ends an upload.
func (x *index) dropUpload(ctx context.Context, bucketName, key, id string) error {
	b, leave, err := x.enter(bucketName)
	if err != nil {
		return err
	}
	defer leave()
	m := x.stripe(bucketName, id)
	m.Lock()
	defer m.Unlock()
	x.mu.RLock()
	u := b.uploads[id]
	x.mu.RUnlock()
	if u == nil || u.Key != key {
		return errNoSuchUpload
	}
	return x.endUpload(ctx, b, u)
}

// endUpload removes an upload: its record first, so that a crash leaves parts
// without an upload, which the next start removes.
func (x *index) endUpload(ctx context.Context, b *bucket, u *upload) error {
	if err := x.store.Delete(ctx, uploadKey(&b.bucketRecord, u.ID), 0); err != nil {
		return fmt.Errorf("s3: ending an upload: %w", err)
	}
	x.mu.Lock()
	delete(b.uploads, u.ID)
	x.mu.Unlock()
	for n, p := range u.parts {
		if err := x.store.Delete(ctx, partKey(&b.bucketRecord, u.ID, strconv.Itoa(n)), 0); err != nil {
			x.log.Error("part of an ended upload could not be removed", "bucket", b.Name, "upload", u.ID, "part", n, "err", err)
			continue
		}
		x.release(ctx, p.Digest)
	}
	return nil
}
