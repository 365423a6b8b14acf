package ecr

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/blob"
	"github.com/lambdad/lambdad/image"
	"github.com/lambdad/lambdad/store"
)

// maxManifests is how many images a repository holds: all are in its record.
const maxManifests = 2000

// A repoRef names a repository.
type repoRef struct{ account, region, name string }

// A repository is a record at a revision.
type repository struct {
	ref      repoRef
	revision uint64
	rec      repositoryRecord
}

// A repositoryRecord is a repository as stored, under
// <account>.<region>.repository.<name>, in whose name a dot is "=".
type repositoryRecord struct {
	Created    time.Time                 `json:"created"`
	Mutability string                    `json:"mutability"`
	ScanOnPush bool                      `json:"scanOnPush,omitempty"`
	Policy     string                    `json:"policy,omitempty"`
	Tags       map[string]string         `json:"tags"`
	Manifests  map[string]manifestRecord `json:"manifests"` // by digest
	Names      map[string]string         `json:"names"`     // digest by image tag
}

// A manifestRecord is an image or an index of a repository.
type manifestRecord struct {
	MediaType  string    `json:"mediaType"`
	ConfigType string    `json:"configType,omitempty"`
	Size       int64     `json:"size"` // bytes of its layers, as stored
	Pushed     time.Time `json:"pushed"`
	Blobs      []string  `json:"blobs,omitempty"` // digests of configuration and layers
}

func (r repoRef) key() string {
	return r.account + "." + r.region + ".repository." + strings.ReplaceAll(r.name, ".", "=")
}

// parseKey takes a key apart; ok is false for the records of others.
func parseKey(key string) (ref repoRef, ok bool) {
	parts := strings.SplitN(key, ".", 4)
	if len(parts) != 4 || parts[2] != "repository" || strings.Contains(parts[3], ".") {
		return ref, false
	}
	return repoRef{parts[0], parts[1], strings.ReplaceAll(parts[3], "=", ".")}, true
}

func (r repoRef) notFound() error {
	return lambdad.Errorf("RepositoryNotFoundException", "The repository with name '%s' does not exist in the registry with id '%s'", r.name, r.account)
}

// digests are those of all manifests, in order.
func (r *repository) digests() []string { return slices.Sorted(maps.Keys(r.rec.Manifests)) }

// tagsOf are the image tags of a manifest, in order.
func (r *repository) tagsOf(digest string) (tags []string) {
	for t, d := range r.rec.Names {
		if d == digest {
			tags = append(tags, t)
		}
	}
	slices.Sort(tags)
	return tags
}

func (r *repository) decode(rec store.Record) error {
	if err := json.Unmarshal(rec.Value, &r.rec); err != nil {
		return fmt.Errorf("ecr: record %s cannot be read: %w", rec.Key, err)
	}
	r.revision = rec.Revision
	for _, m := range []*map[string]string{&r.rec.Tags, &r.rec.Names} {
		if *m == nil {
			*m = map[string]string{}
		}
	}
	if r.rec.Manifests == nil {
		r.rec.Manifests = map[string]manifestRecord{}
	}
	return nil
}

// get reads a repository.
func (s *Service) get(ctx context.Context, ref repoRef) (*repository, error) {
	if !repositoryName(ref.name) {
		return nil, ref.notFound()
	}
	rec, err := s.Store.Get(ctx, ref.key())
	if errors.Is(err, store.ErrNotFound) {
		return nil, ref.notFound()
	}
	if err != nil {
		return nil, fmt.Errorf("ecr: record store: %w", err)
	}
	r := &repository{ref: ref}
	return r, r.decode(rec)
}

// list reads the repositories of an account and region, or of all with "".
func (s *Service) list(ctx context.Context, account, region string) ([]*repository, error) {
	if account == "" {
		account, region = "*", "*"
	}
	recs, err := s.Store.List(ctx, account+"."+region+".repository")
	if err != nil {
		return nil, fmt.Errorf("ecr: record store: %w", err)
	}
	var all []*repository
	for _, rec := range recs {
		ref, ok := parseKey(rec.Key)
		if !ok {
			continue
		}
		r := &repository{ref: ref}
		if err := r.decode(rec); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *repository) int { return strings.Compare(a.ref.name, b.ref.name) })
	return all, nil
}

func storeError(err error) error {
	if errors.Is(err, store.ErrFull) || errors.Is(err, blob.ErrFull) {
		return &lambdad.Error{Code: "LimitExceededException", Err: err,
			Message: "The disk of this lambdad has no room left: free space in its data directory, or delete images."}
	}
	return fmt.Errorf("ecr: record store: %w", err)
}

// create writes a new repository.
func (s *Service) create(ctx context.Context, ref repoRef, rec repositoryRecord) (*repository, error) {
	value, err := json.Marshal(rec)
	if err != nil {
		return nil, err
	}
	revision, err := s.Store.Create(ctx, ref.key(), value)
	if errors.Is(err, store.ErrConflict) {
		return nil, lambdad.Errorf("RepositoryAlreadyExistsException", "The repository with name '%s' already exists in the registry with id '%s'", ref.name, ref.account)
	}
	if err != nil {
		return nil, storeError(err)
	}
	return &repository{ref, revision, rec}, nil
}

// maxAttempts bounds how often a change is tried against others.
const maxAttempts = 20

// update writes what change makes of a repository. Change may be called more than
// once, each time with a newer record.
func (s *Service) update(ctx context.Context, ref repoRef, change func(*repository) error) (*repository, error) {
	for range maxAttempts {
		r, err := s.get(ctx, ref)
		if err != nil {
			return nil, err
		}
		if err := change(r); err != nil {
			return nil, err
		}
		value, err := json.Marshal(r.rec)
		if err != nil {
			return nil, err
		}
		r.revision, err = s.Store.Update(ctx, ref.key(), value, r.revision)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, storeError(err)
		}
		return r, nil
	}
	return nil, fmt.Errorf("ecr: repository %s is being changed by many others", ref.name)
}

// delete removes a repository; one with images only by force.
func (s *Service) delete(ctx context.Context, ref repoRef, force bool) (*repository, error) {
	for range maxAttempts {
		r, err := s.get(ctx, ref)
		if err != nil {
			return nil, err
		}
		if len(r.rec.Manifests) > 0 && !force {
			return nil, lambdad.Errorf("RepositoryNotEmptyException", "The repository with name '%s' in registry with id '%s' cannot be deleted because it still contains images", ref.name, ref.account)
		}
		err = s.Store.Delete(ctx, ref.key(), r.revision)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, storeError(err)
		}
		return r, nil
	}
	return nil, fmt.Errorf("ecr: repository %s is being changed by many others", ref.name)
}

// blobOf says whether a repository may give out a blob, and its size: one of its
// manifests names it, or it was just given to it.
func (s *Service) blobOf(ctx context.Context, r *repository, digest string) (size int64, ok bool) {
	s.mu.Lock()
	_, ok = s.recent[recentKey{r.ref, digest}]
	s.mu.Unlock()
	if _, is := r.rec.Manifests[digest]; is {
		ok = true
	}
	for _, m := range r.rec.Manifests {
		ok = ok || slices.Contains(m.Blobs, digest)
	}
	if !ok {
		return 0, false
	}
	b, size, err := s.Images.Blobs.Open(ctx, digest)
	if err != nil {
		return 0, false
	}
	b.Close()
	return size, true
}

// remember keeps a blob for a repository until a manifest names it.
func (s *Service) remember(ref repoRef, digest string) {
	release := s.Images.Pin(digest)
	s.mu.Lock()
	defer s.mu.Unlock()
	k := recentKey{ref, digest}
	if was := s.recent[k]; was != nil {
		was.release()
	}
	s.recent[k] = &recentBlob{release, s.Now()}
}

// forgetRecent gives up blobs whose manifest never came.
func (s *Service) forgetRecent(all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, b := range s.recent {
		if all || s.Now().Sub(b.since) > recentLife {
			b.release()
			delete(s.recent, k)
		}
	}
}

// putManifest stores a manifest whose blobs the repository has, and gives it a tag.
func (s *Service) putManifest(ctx context.Context, ref repoRef, data []byte, contentType, tag string) (digest string, err error) {
	m, err := image.ParseManifest(data, contentType)
	if err != nil {
		return "", invalidParameter("Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Invalid JSON syntax or unknown manifest': %v", err)
	}
	if !slices.Contains(image.MediaTypes, m.MediaType) {
		return "", lambdad.Errorf("UnsupportedImageTypeException", "Manifests of type %.100q are not stored here; those of images and indexes are.", m.MediaType)
	}
	if tag != "" && !validTag(tag) {
		return "", invalidParameter("Invalid parameter at 'imageTag' failed to satisfy constraint: 'must be 1 to 128 letters, digits, dots, dashes and underscores, and begin with none of .-'")
	}
	repo, err := s.get(ctx, ref)
	if err != nil {
		return "", err
	}
	rec := manifestRecord{MediaType: m.MediaType, ConfigType: m.Config.MediaType, Pushed: s.Now()}
	named := m.Layers
	if m.Config.Digest != "" {
		named = append(named[:len(named):len(named)], m.Config)
	}
	var pins []string
	for _, d := range append(named[:len(named):len(named)], m.Manifests...) {
		pins = append(pins, d.Hex())
	}
	defer s.Images.Pin(pins...)()
	var missing []string
	for _, d := range named {
		size, ok := s.blobOf(ctx, repo, d.Hex())
		if !ok || size != d.Size {
			missing = append(missing, d.Digest)
			continue
		}
		rec.Blobs = append(rec.Blobs, d.Hex())
		if d.Digest != m.Config.Digest {
			rec.Size += d.Size
		}
	}
	if len(missing) > 0 {
		return "", lambdad.Errorf("LayersNotFoundException", "Layers with digests '%s' required for pushing image into repository with name '%s' in the registry with id '%s' do not exist", strings.Join(missing, "', '"), ref.name, ref.account)
	}
	for _, d := range m.Manifests {
		if _, ok := repo.rec.Manifests[d.Hex()]; !ok {
			return "", lambdad.Errorf("ReferencedImagesNotFoundException", "Images with digests '%s' required for pushing image into repository with name '%s' in the registry with id '%s' do not exist", d.Digest, ref.name, ref.account)
		}
		rec.Size += repo.rec.Manifests[d.Hex()].Size
	}
	sum := sha256.Sum256(data)
	digest = fmt.Sprintf("%x", sum)
	defer s.Images.Pin(digest)()
	if _, _, err := s.Images.Put(ctx, strings.NewReader(string(data)), digest); err != nil {
		return "", storeError(err)
	}
	_, err = s.update(ctx, ref, func(r *repository) error {
		if was := r.rec.Names[tag]; tag != "" && was != "" && was != digest && r.rec.Mutability == "IMMUTABLE" {
			return lambdad.Errorf("ImageTagAlreadyExistsException", "The image tag '%s' already exists in the '%s' repository and cannot be overwritten because the repository is immutable.", tag, ref.name)
		}
		if _, has := r.rec.Manifests[digest]; !has {
			if len(r.rec.Manifests) >= maxManifests {
				return lambdad.Errorf("LimitExceededException", "The repository with name '%s' holds %d images, which is the limit: delete some.", ref.name, maxManifests)
			}
			r.rec.Manifests[digest] = rec
		}
		if tag != "" {
			r.rec.Names[tag] = digest
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	for _, d := range pins {
		if b := s.recent[recentKey{ref, d}]; b != nil {
			b.release()
			delete(s.recent, recentKey{ref, d})
		}
	}
	s.mu.Unlock()
	return digest, nil
}

// validTag says whether s can be the tag of an image.
func validTag(s string) bool {
	if s == "" || len(s) > 128 || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}
