// Package ecr is a registry of container images on the endpoint: the API of Amazon
// ECR as far as docker login, docker push and the AWS clients need it, and the OCI
// distribution API under /v2/.
//
// A repository belongs to an account and a region and is one record: its settings,
// the manifests it has and what its tags mean. Manifests, configurations and layers
// are blobs of the image store, shared by all repositories; a repository gives out
// those alone that its own manifests name (neighbours.md section 8; there is no
// model of ECR here, so the few shapes are written by hand).
//
// Clients of /v2/ prove themselves by the password that GetAuthorizationToken gave, with
// the user name AWS. It names who asked for it, for twelve hours or until his session
// ends, and each request is decided by what he may do at that moment, as the operation
// of ECR that it stands for.
package ecr

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/blob"
	"github.com/lambdad/lambdad/image"
	"github.com/lambdad/lambdad/policy"
	"github.com/lambdad/lambdad/store"
)

// Config is what a Service needs; Store and Images are needed.
type Config struct {
	Store  store.Store
	Images *image.Store
	Logger *slog.Logger     // default: discard
	Now    func() time.Time // default time.Now
}

// A Service is the ECR API and the registry; it implements aws.PathService,
// aws.ResourceNamer, aws.PolicyKeeper and aws.Conditioner.
type Service struct {
	aws.RPC
	Config
	passwords sealer

	mu      sync.Mutex // guards the following
	guards  map[repoRef]guard
	uploads map[string]*upload
	recent  map[recentKey]*recentBlob
}

// recentKey is a blob that a repository was given and no manifest names yet.
type recentKey struct {
	repo   repoRef
	digest string
}

type recentBlob struct {
	release func() // of the pin
	since   time.Time
}

// recentLife is how long such a blob waits for its manifest.
const recentLife = time.Hour

// New reads the key of passwords, which it makes the first time.
func New(ctx context.Context, cfg Config) (*Service, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Service{Config: cfg, guards: map[repoRef]guard{}, uploads: map[string]*upload{}, recent: map[recentKey]*recentBlob{}}
	var err error
	if s.passwords, err = openSealer(ctx, cfg.Store); err != nil {
		return nil, fmt.Errorf("ecr: the key of passwords: %w", err)
	}
	s.RPC = aws.NewRPC(api, map[string]aws.Handler{
		"BatchCheckLayerAvailability":   aws.Operation(s.batchCheckLayerAvailability),
		"BatchDeleteImage":              aws.Operation(s.batchDeleteImage),
		"BatchGetImage":                 aws.Operation(s.batchGetImage),
		"CreateRepository":              aws.Operation(s.createRepository),
		"DeleteLifecyclePolicy":         aws.Operation(s.noLifecycle),
		"DeleteRepository":              aws.Operation(s.deleteRepository),
		"DeleteRepositoryPolicy":        aws.Operation(s.deleteRepositoryPolicy),
		"DescribeImages":                aws.Operation(s.describeImages),
		"DescribeRepositories":          aws.Operation(s.describeRepositories),
		"GetAuthorizationToken":         aws.Operation(s.getAuthorizationToken),
		"GetLifecyclePolicy":            aws.Operation(s.noLifecycle),
		"GetRepositoryPolicy":           aws.Operation(s.getRepositoryPolicy),
		"ListImages":                    aws.Operation(s.listImages),
		"ListTagsForResource":           aws.Operation(s.listTagsForResource),
		"PutImage":                      aws.Operation(s.putImage),
		"PutImageScanningConfiguration": aws.Operation(s.putImageScanningConfiguration),
		"PutImageTagMutability":         aws.Operation(s.putImageTagMutability),
		"SetRepositoryPolicy":           aws.Operation(s.setRepositoryPolicy),
		"TagResource":                   aws.Operation(s.tagResource),
		"UntagResource":                 aws.Operation(s.untagResource),
	})
	return s, nil
}

// Protocol implements aws.Service.
func (s *Service) Protocol() aws.Protocol { return aws.JSON11 }

// Paths implements aws.PathService: the distribution API.
func (s *Service) Paths() map[string]aws.PathHandler {
	return map[string]aws.PathHandler{"/v2": s.serveV2}
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func invalidParameter(format string, args ...any) error {
	return lambdad.Errorf("InvalidParameterException", format, args...)
}

func (r repoRef) arn() string {
	return "arn:aws:ecr:" + r.region + ":" + r.account + ":repository/" + r.name
}

// show is a repository as answers have it. host is where the caller reaches the
// registry.
func (r *repository) show(host string) *Repository {
	return &Repository{
		RepositoryArn: new(r.ref.arn()), RegistryID: &r.ref.account, RepositoryName: &r.ref.name,
		RepositoryURI: new(host + "/" + r.ref.name), CreatedAt: aws.At(r.rec.Created), ImageTagMutability: &r.rec.Mutability,
		ImageScanningConfiguration: &ScanningConfiguration{ScanOnPush: new(r.rec.ScanOnPush)},
		EncryptionConfiguration:    &EncryptionConfiguration{EncryptionType: new("AES256")},
	}
}

func (s *Service) createRepository(r *aws.Request, in *CreateRepositoryRequest) (*CreateRepositoryResponse, error) {
	ref, err := s.of(r, in.RegistryID, *in.RepositoryName)
	if err != nil {
		return nil, err
	}
	if len(in.Tags) > 0 {
		if err := s.decide(r, "ecr:TagResource", ref); err != nil {
			return nil, err
		}
	}
	rec := repositoryRecord{Created: s.Now(), Mutability: "MUTABLE", Tags: map[string]string{}}
	if m := value(in.ImageTagMutability); m != "" {
		if err := checkMutability(m); err != nil {
			return nil, err
		}
		rec.Mutability = m
	}
	if e := in.EncryptionConfiguration; e != nil && value(e.EncryptionType) != "" && value(e.EncryptionType) != "AES256" {
		return nil, invalidParameter("lambdad stores images as they are and does not encrypt them with keys of KMS: leave out encryptionConfiguration, or give AES256.")
	}
	if c := in.ImageScanningConfiguration; c != nil && value(c.ScanOnPush) {
		return nil, invalidParameter("lambdad does not scan images: leave out imageScanningConfiguration, or give scanOnPush false.")
	}
	for _, t := range in.Tags {
		rec.Tags[value(t.Key)] = value(t.Value)
	}
	repo, err := s.create(r.Context(), ref, rec)
	if err != nil {
		return nil, err
	}
	return &CreateRepositoryResponse{repo.show(r.Host)}, nil
}

func checkMutability(m string) error {
	if m != "MUTABLE" && m != "IMMUTABLE" {
		return invalidParameter("Invalid parameter at 'imageTagMutability' failed to satisfy constraint: 'must satisfy enum value set: [IMMUTABLE, MUTABLE]'")
	}
	return nil
}

func (s *Service) describeRepositories(r *aws.Request, in *DescribeRepositoriesRequest) (*DescribeRepositoriesResponse, error) {
	out := &DescribeRepositoriesResponse{Repositories: []*Repository{}}
	if len(in.RepositoryNames) > 0 {
		for _, name := range in.RepositoryNames {
			ref := ownOr(r, in.RegistryID, name)
			if err := s.decide(r, r.Action, ref); err != nil {
				return nil, err
			}
			repo, err := s.get(r.Context(), ref)
			if err != nil {
				return nil, err
			}
			out.Repositories = append(out.Repositories, repo.show(r.Host))
		}
		return out, nil
	}
	ref, err := s.of(r, in.RegistryID, everyRepository)
	if err != nil {
		return nil, err
	}
	all, err := s.list(r.Context(), ref.account, ref.region)
	if err != nil {
		return nil, err
	}
	page, next, err := paginate(all, func(r *repository) string { return r.ref.name }, in.NextToken, in.MaxResults)
	if err != nil {
		return nil, err
	}
	for _, repo := range page {
		out.Repositories = append(out.Repositories, repo.show(r.Host))
	}
	out.NextToken = next
	return out, nil
}

// paginate cuts a page out of items, whose keys ascend.
func paginate[T any](items []T, key func(T) string, token *string, maxResults *int64) ([]T, *string, error) {
	if t := value(token); t != "" {
		last, err := base64.RawURLEncoding.DecodeString(t)
		if err != nil {
			return nil, nil, invalidParameter("Invalid parameter at 'nextToken' failed to satisfy constraint: 'must be one that this operation has given'")
		}
		items = items[sort.Search(len(items), func(i int) bool { return key(items[i]) > string(last) }):]
	}
	limit := 100
	if m := value(maxResults); m > 0 {
		limit = int(min(m, 1000))
	}
	if len(items) <= limit {
		return items, nil, nil
	}
	return items[:limit], new(base64.RawURLEncoding.EncodeToString([]byte(key(items[limit-1])))), nil
}

func (s *Service) deleteRepository(r *aws.Request, in *DeleteRepositoryRequest) (*DeleteRepositoryResponse, error) {
	ref, err := s.of(r, in.RegistryID, *in.RepositoryName)
	if err != nil {
		return nil, err
	}
	repo, err := s.delete(r.Context(), ref, value(in.Force))
	if err != nil {
		return nil, err
	}
	return &DeleteRepositoryResponse{repo.show(r.Host)}, nil
}

func (s *Service) getAuthorizationToken(r *aws.Request, in *GetAuthorizationTokenRequest) (*GetAuthorizationTokenResponse, error) {
	expires := s.Now().Add(passwordLife)
	if end := r.Identity.Expires; !end.IsZero() && end.Before(expires) {
		expires = end
	}
	scheme := "http"
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		scheme = "https"
	}
	registries := in.RegistryIDs
	if len(registries) == 0 {
		registries = []string{""}
	}
	out := &GetAuthorizationTokenResponse{}
	for _, registry := range registries {
		password, err := s.passwords.seal(claim{
			AccessKeyID: r.Identity.AccessKeyID, SessionToken: r.SessionToken, Registry: registry, Region: r.Region, Expires: expires,
		})
		if err != nil {
			return nil, fmt.Errorf("ecr: making a password: %w", err)
		}
		out.AuthorizationData = append(out.AuthorizationData, AuthorizationData{
			AuthorizationToken: new(base64.StdEncoding.EncodeToString([]byte("AWS:" + password))),
			ExpiresAt:          aws.At(expires), ProxyEndpoint: new(scheme + "://" + r.Host),
		})
	}
	return out, nil
}

// details is an image as DescribeImages shows it.
func (r *repository) details(digest string) *ImageDetail {
	m := r.rec.Manifests[digest]
	return &ImageDetail{
		RegistryID: &r.ref.account, RepositoryName: &r.ref.name, ImageDigest: new("sha256:" + digest), ImageTags: r.tagsOf(digest),
		ImageSizeInBytes: new(m.Size), ImagePushedAt: aws.At(m.Pushed), ImageManifestMediaType: new(m.MediaType),
		ArtifactMediaType: orNil(m.ConfigType),
	}
}

func orNil(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// find gives the digest that an identifier means, which must be in the repository.
func (r *repository) find(id ImageIdentifier) (string, bool) {
	digest, tagged := strings.TrimPrefix(value(id.ImageDigest), "sha256:"), ""
	if t := value(id.ImageTag); t != "" {
		tagged = r.rec.Names[t]
		if digest == "" {
			digest = tagged
		}
		if digest != tagged {
			return "", false
		}
	}
	_, ok := r.rec.Manifests[digest]
	return digest, ok
}

func (id ImageIdentifier) text() string {
	return fmt.Sprintf("{imageDigest:'%s', imageTag:'%s'}", cmp.Or(value(id.ImageDigest), "null"), cmp.Or(value(id.ImageTag), "null"))
}

func (s *Service) describeImages(r *aws.Request, in *DescribeImagesRequest) (*DescribeImagesResponse, error) {
	ref, err := s.of(r, in.RegistryID, *in.RepositoryName)
	if err != nil {
		return nil, err
	}
	repo, err := s.get(r.Context(), ref)
	if err != nil {
		return nil, err
	}
	out := &DescribeImagesResponse{ImageDetails: []*ImageDetail{}}
	if len(in.ImageIDs) > 0 {
		for _, id := range in.ImageIDs {
			digest, ok := repo.find(id)
			if !ok {
				return nil, lambdad.Errorf("ImageNotFoundException",
					"The image with imageId %s does not exist within the repository with name '%s' in the registry with id '%s'", id.text(), ref.name, ref.account)
			}
			out.ImageDetails = append(out.ImageDetails, repo.details(digest))
		}
		return out, nil
	}
	page, next, err := paginate(repo.digests(), func(d string) string { return d }, in.NextToken, in.MaxResults)
	if err != nil {
		return nil, err
	}
	for _, d := range page {
		if in.Filter.takes(repo, d) {
			out.ImageDetails = append(out.ImageDetails, repo.details(d))
		}
	}
	out.NextToken = next
	return out, nil
}

func (f *ImageFilter) takes(r *repository, digest string) bool {
	if f == nil || value(f.TagStatus) == "" || value(f.TagStatus) == "ANY" {
		return true
	}
	return (len(r.tagsOf(digest)) > 0) == (value(f.TagStatus) == "TAGGED")
}

func (s *Service) listImages(r *aws.Request, in *ListImagesRequest) (*ListImagesResponse, error) {
	ref, err := s.of(r, in.RegistryID, *in.RepositoryName)
	if err != nil {
		return nil, err
	}
	repo, err := s.get(r.Context(), ref)
	if err != nil {
		return nil, err
	}
	page, next, err := paginate(repo.digests(), func(d string) string { return d }, in.NextToken, in.MaxResults)
	if err != nil {
		return nil, err
	}
	out := &ListImagesResponse{ImageIDs: []ImageIdentifier{}, NextToken: next}
	for _, d := range page {
		if !in.Filter.takes(repo, d) {
			continue
		}
		tags := repo.tagsOf(d)
		for _, t := range tags {
			out.ImageIDs = append(out.ImageIDs, ImageIdentifier{ImageDigest: new("sha256:" + d), ImageTag: new(t)})
		}
		if len(tags) == 0 {
			out.ImageIDs = append(out.ImageIDs, ImageIdentifier{ImageDigest: new("sha256:" + d)})
		}
	}
	return out, nil
}

func imageFailure(id ImageIdentifier) ImageFailure {
	return ImageFailure{ImageID: &id, FailureCode: new("ImageNotFound"), FailureReason: new("Requested image not found")}
}

func (s *Service) batchGetImage(r *aws.Request, in *BatchGetImageRequest) (*BatchGetImageResponse, error) {
	ref, err := s.of(r, in.RegistryID, *in.RepositoryName)
	if err != nil {
		return nil, err
	}
	repo, err := s.get(r.Context(), ref)
	if err != nil {
		return nil, err
	}
	out := &BatchGetImageResponse{Images: []*Image{}, Failures: []ImageFailure{}}
	for _, id := range in.ImageIDs {
		digest, ok := repo.find(id)
		if !ok {
			out.Failures = append(out.Failures, imageFailure(id))
			continue
		}
		data, err := s.readManifest(r.Context(), digest)
		if err != nil {
			return nil, err
		}
		id.ImageDigest = new("sha256:" + digest)
		out.Images = append(out.Images, &Image{
			RegistryID: &ref.account, RepositoryName: &ref.name, ImageID: &id,
			ImageManifest: new(string(data)), ImageManifestMediaType: new(repo.rec.Manifests[digest].MediaType),
		})
	}
	return out, nil
}

func (s *Service) batchDeleteImage(r *aws.Request, in *BatchDeleteImageRequest) (*BatchDeleteImageResponse, error) {
	ref, err := s.of(r, in.RegistryID, *in.RepositoryName)
	if err != nil {
		return nil, err
	}
	var out *BatchDeleteImageResponse
	_, err = s.update(r.Context(), ref, func(repo *repository) error {
		out = &BatchDeleteImageResponse{ImageIDs: []ImageIdentifier{}, Failures: []ImageFailure{}}
		for _, id := range in.ImageIDs {
			digest, ok := repo.find(id)
			if !ok {
				out.Failures = append(out.Failures, imageFailure(id))
				continue
			}
			byTag := value(id.ImageTag) != "" && value(id.ImageDigest) == ""
			for _, t := range repo.tagsOf(digest) {
				if !byTag || t == *id.ImageTag {
					delete(repo.rec.Names, t)
					out.ImageIDs = append(out.ImageIDs, ImageIdentifier{ImageDigest: new("sha256:" + digest), ImageTag: new(t)})
				}
			}
			if !byTag || len(repo.tagsOf(digest)) == 0 {
				if !byTag {
					out.ImageIDs = append(out.ImageIDs, ImageIdentifier{ImageDigest: new("sha256:" + digest)})
				}
				delete(repo.rec.Manifests, digest)
			}
		}
		return nil
	})
	return out, err
}

func (s *Service) batchCheckLayerAvailability(r *aws.Request, in *BatchCheckLayerAvailabilityRequest) (*BatchCheckLayerAvailabilityResponse, error) {
	ref, err := s.of(r, in.RegistryID, *in.RepositoryName)
	if err != nil {
		return nil, err
	}
	repo, err := s.get(r.Context(), ref)
	if err != nil {
		return nil, err
	}
	out := &BatchCheckLayerAvailabilityResponse{Layers: []Layer{}, Failures: []LayerFailure{}}
	for _, d := range in.LayerDigests {
		hex, ok := strings.CutPrefix(d, "sha256:")
		if !ok || !blob.CheckDigest(hex) {
			out.Failures = append(out.Failures, LayerFailure{LayerDigest: new(d), FailureCode: new("InvalidLayerDigest"), FailureReason: new("The layer digest is not valid")})
			continue
		}
		l := Layer{LayerDigest: new(d), LayerAvailability: new("UNAVAILABLE")}
		if size, ok := s.blobOf(r.Context(), repo, hex); ok {
			l.LayerAvailability, l.LayerSize = new("AVAILABLE"), new(size)
		}
		out.Layers = append(out.Layers, l)
	}
	return out, nil
}

func (s *Service) putImage(r *aws.Request, in *PutImageRequest) (*PutImageResponse, error) {
	ref, err := s.of(r, in.RegistryID, *in.RepositoryName)
	if err != nil {
		return nil, err
	}
	data := []byte(*in.ImageManifest)
	before, err := s.get(r.Context(), ref)
	if err != nil {
		return nil, err
	}
	digest, err := s.putManifest(r.Context(), ref, data, value(in.ImageManifestMediaType), value(in.ImageTag))
	if err != nil {
		return nil, err
	}
	if want := value(in.ImageDigest); want != "" && want != "sha256:"+digest {
		return nil, lambdad.Errorf("ImageDigestDoesNotMatchException", "The calculated digest sha256:%s does not match the given digest %s", digest, want)
	}
	if t := value(in.ImageTag); before.rec.Manifests[digest].Pushed != (time.Time{}) && (t == "" || before.rec.Names[t] == digest) {
		return nil, lambdad.Errorf("ImageAlreadyExistsException", "Image with digest 'sha256:%s' and tag '%s' already exists in the repository with name '%s' in registry with id '%s'", digest, t, ref.name, ref.account)
	}
	return &PutImageResponse{&Image{
		RegistryID: &ref.account, RepositoryName: &ref.name, ImageManifest: in.ImageManifest,
		ImageID: &ImageIdentifier{ImageDigest: new("sha256:" + digest), ImageTag: in.ImageTag},
	}}, nil
}

func (s *Service) putImageTagMutability(r *aws.Request, in *PutImageTagMutabilityRequest) (*PutImageTagMutabilityResponse, error) {
	ref, err := s.of(r, in.RegistryID, *in.RepositoryName)
	if err != nil {
		return nil, err
	}
	if err := checkMutability(value(in.ImageTagMutability)); err != nil {
		return nil, err
	}
	if _, err := s.update(r.Context(), ref, func(repo *repository) error { repo.rec.Mutability = *in.ImageTagMutability; return nil }); err != nil {
		return nil, err
	}
	return &PutImageTagMutabilityResponse{&ref.account, &ref.name, in.ImageTagMutability}, nil
}

func (s *Service) putImageScanningConfiguration(r *aws.Request, in *PutImageScanningConfigurationRequest) (*PutImageScanningConfigurationResponse, error) {
	ref, err := s.of(r, in.RegistryID, *in.RepositoryName)
	if err != nil {
		return nil, err
	}
	if c := in.ImageScanningConfiguration; c != nil && value(c.ScanOnPush) {
		return nil, invalidParameter("lambdad does not scan images: give scanOnPush false.")
	}
	if _, err := s.get(r.Context(), ref); err != nil {
		return nil, err
	}
	return &PutImageScanningConfigurationResponse{&ref.account, &ref.name, &ScanningConfiguration{ScanOnPush: new(false)}}, nil
}

func (s *Service) setRepositoryPolicy(r *aws.Request, in *SetRepositoryPolicyRequest) (*RepositoryPolicyResponse, error) {
	ref, err := s.of(r, in.RegistryID, *in.RepositoryName)
	if err != nil {
		return nil, err
	}
	doc, err := policy.Parse(*in.PolicyText, policy.ForRepository)
	if err != nil {
		return nil, &lambdad.Error{Code: "InvalidParameterException", Err: err,
			Message: "Invalid parameter at 'PolicyText' failed to satisfy constraint: 'Invalid repository policy provided'"}
	}
	if !value(in.Force) && r.Authorize(r.Action, ref.arn(), doc, nil) != nil {
		return nil, invalidParameter("Invalid parameter at 'PolicyText' failed to satisfy constraint: 'The policy would prevent you from setting another one; force sets it all the same'")
	}
	if _, err := s.update(r.Context(), ref, func(repo *repository) error { repo.rec.Policy = *in.PolicyText; return nil }); err != nil {
		return nil, err
	}
	return &RepositoryPolicyResponse{&ref.account, &ref.name, in.PolicyText}, nil
}

func noPolicy(ref repoRef) error {
	return lambdad.Errorf("RepositoryPolicyNotFoundException", "Repository policy does not exist for the repository with name '%s' in the registry with id '%s'", ref.name, ref.account)
}

func (s *Service) getRepositoryPolicy(r *aws.Request, in *RepositoryRequest) (*RepositoryPolicyResponse, error) {
	ref, err := s.of(r, in.RegistryID, *in.RepositoryName)
	if err != nil {
		return nil, err
	}
	repo, err := s.get(r.Context(), ref)
	if err != nil {
		return nil, err
	}
	if repo.rec.Policy == "" {
		return nil, noPolicy(ref)
	}
	return &RepositoryPolicyResponse{&ref.account, &ref.name, &repo.rec.Policy}, nil
}

func (s *Service) deleteRepositoryPolicy(r *aws.Request, in *RepositoryRequest) (*RepositoryPolicyResponse, error) {
	ref, err := s.of(r, in.RegistryID, *in.RepositoryName)
	if err != nil {
		return nil, err
	}
	was := ""
	_, err = s.update(r.Context(), ref, func(repo *repository) error {
		if was = repo.rec.Policy; was == "" {
			return noPolicy(ref)
		}
		repo.rec.Policy = ""
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &RepositoryPolicyResponse{&ref.account, &ref.name, &was}, nil
}

// noLifecycle answers for policies that nobody can have set: PutLifecyclePolicy is
// not offered, as nothing here would delete images by it.
func (s *Service) noLifecycle(r *aws.Request, in *RepositoryRequest) (*aws.Empty, error) {
	ref, err := s.of(r, in.RegistryID, *in.RepositoryName)
	if err != nil {
		return nil, err
	}
	if _, err := s.get(r.Context(), ref); err != nil {
		return nil, err
	}
	return nil, lambdad.Errorf("LifecyclePolicyNotFoundException", "Lifecycle policy does not exist for the repository with name '%s' in the registry with id '%s'", ref.name, ref.account)
}

// byARN names a repository of the caller.
func byARN(r *aws.Request, arn string) (repoRef, error) {
	prefix := "arn:aws:ecr:" + r.Region + ":" + r.Identity.Account + ":repository/"
	name, ok := strings.CutPrefix(arn, prefix)
	if !ok || !repositoryName(name) {
		return repoRef{}, invalidParameter("Invalid parameter at 'resourceArn' failed to satisfy constraint: 'Invalid ARN'")
	}
	return repoRef{r.Identity.Account, r.Region, name}, nil
}

func (s *Service) listTagsForResource(r *aws.Request, in *ListTagsForResourceRequest) (*ListTagsForResourceResponse, error) {
	ref, err := byARN(r, *in.ResourceARN)
	if err != nil {
		return nil, err
	}
	repo, err := s.get(r.Context(), ref)
	if err != nil {
		return nil, err
	}
	out := &ListTagsForResourceResponse{Tags: []Tag{}}
	for k, v := range repo.rec.Tags {
		out.Tags = append(out.Tags, Tag{Key: new(k), Value: new(v)})
	}
	slices.SortFunc(out.Tags, func(a, b Tag) int { return strings.Compare(*a.Key, *b.Key) })
	return out, nil
}

// maxTags is how many tags a repository has at most.
const maxTags = 50

func (s *Service) tagResource(r *aws.Request, in *TagResourceRequest) (*aws.Empty, error) {
	ref, err := byARN(r, *in.ResourceARN)
	if err != nil {
		return nil, err
	}
	_, err = s.update(r.Context(), ref, func(repo *repository) error {
		for _, t := range in.Tags {
			repo.rec.Tags[value(t.Key)] = value(t.Value)
		}
		if len(repo.rec.Tags) > maxTags {
			return lambdad.Errorf("TooManyTagsException", "A repository has at most %d tags.", maxTags)
		}
		return nil
	})
	return nil, err
}

func (s *Service) untagResource(r *aws.Request, in *UntagResourceRequest) (*aws.Empty, error) {
	ref, err := byARN(r, *in.ResourceARN)
	if err != nil {
		return nil, err
	}
	_, err = s.update(r.Context(), ref, func(repo *repository) error {
		for _, k := range in.TagKeys {
			delete(repo.rec.Tags, k)
		}
		return nil
	})
	return nil, err
}

// Lookup gives the digest of an image of a repository, by tag or "sha256:" and
// digest; ok is false when there is no such repository.
func (s *Service) Lookup(ctx context.Context, account, region, name, reference string) (digest string, ok bool, err error) {
	repo, err := s.get(ctx, repoRef{account, region, name})
	if lambdad.ErrorCode(err) == "RepositoryNotFoundException" {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	hex, byDigest := strings.CutPrefix(reference, "sha256:")
	if !byDigest {
		hex = repo.rec.Names[reference]
	}
	if _, has := repo.rec.Manifests[hex]; !has {
		return "", true, nil
	}
	return hex, true, nil
}

// Digests are the digests of all manifests that repositories have.
func (s *Service) Digests(ctx context.Context) ([]string, error) {
	s.forgetRecent(false)
	all, err := s.list(ctx, "", "")
	if err != nil {
		return nil, err
	}
	var digests []string
	for _, r := range all {
		digests = append(digests, r.digests()...)
	}
	return digests, nil
}

// readManifest reads a manifest of a repository.
func (s *Service) readManifest(ctx context.Context, digest string) ([]byte, error) {
	b, size, err := s.Images.Blobs.Open(ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("ecr: manifest sha256:%s: %w", digest, err)
	}
	defer b.Close()
	if size > image.MaxManifest {
		return nil, errors.New("ecr: manifest sha256:" + digest + " is too long")
	}
	return io.ReadAll(b)
}
