package lambda

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/archive"
	"github.com/lambdad/lambdad/policy"
)

// Images gives container images.
type Images interface {
	// Resolve finds the image that a caller means and stores what describes it. A
	// tag becomes the digest of resolved. Until release nothing of it is collected.
	// Refusals are *lambdad.Error with a state reason code.
	Resolve(ctx context.Context, r ImageRequest) (img *lambdad.Image, resolved string, release func(), err error)
	// Prepare fetches what is missing of a resolved image and makes it ready to run.
	Prepare(ctx context.Context, img *lambdad.Image, resolved string) error
}

// An ImageRequest says which image a caller means.
type ImageRequest struct {
	URI             string // as given
	Account, Region string // of the function
	Host            string // that the caller reached this endpoint by
	Architecture    string // x86_64 or arm64
	// Authorize decides about an action of the caller on a repository that has a policy,
	// or none, and condition keys. Nil: the operator asks, who may.
	Authorize func(action, repository string, on *policy.Document, keys policy.KeySet) error
}

// imageReasons are the codes of refusals of images.
var imageReasons = []string{"InvalidImage", "ImageAccessDenied", "ImageDeleted"}

// imageRef begins the references of records to images, among those to archives.
const imageRef = "image:"

// An imageRecord is the code of a function that is a container image, as stored.
type imageRecord struct {
	URI      string        `json:"uri"`      // as given
	Resolved string        `json:"resolved"` // by digest
	Image    lambdad.Image `json:"image"`    // as its configuration has it
	// What the function overrides (ImageConfig).
	Entrypoint []string `json:"entrypoint,omitzero"`
	Command    []string `json:"command,omitzero"`
	WorkingDir string   `json:"workingDir,omitempty"`
}

// effective is what runs; nil without an image.
func (r *imageRecord) effective() *lambdad.Image {
	if r == nil {
		return nil
	}
	img := r.Image
	if len(r.Entrypoint) > 0 {
		img.Entrypoint = r.Entrypoint
	}
	if len(r.Command) > 0 {
		img.Command = r.Command
	}
	if r.WorkingDir != "" {
		img.WorkingDir = r.WorkingDir
	}
	return &img
}

// override takes over an ImageConfig, all of it.
func (r *imageRecord) override(c *ImageConfig) {
	r.Entrypoint, r.Command, r.WorkingDir = nil, nil, ""
	if !c.empty() {
		r.Entrypoint, r.Command, r.WorkingDir = c.EntryPoint, c.Command, value(c.WorkingDirectory)
	}
}

// show writes what answers have of an image instead of a zip.
func (r *imageRecord) show(out *FunctionConfiguration) {
	out.PackageType, out.Runtime, out.Handler = new("Image"), nil, nil
	c := &ImageConfig{EntryPoint: r.Entrypoint, Command: r.Command, WorkingDirectory: orNil(r.WorkingDir)}
	if !c.empty() {
		out.ImageConfigResponse = &ImageConfigResponse{ImageConfig: c}
	}
}

// codeSha256 is the digest of the code as answers show it (control-plane.md section
// 3.1).
func (c *configRecord) codeSha256() string {
	if c.Image != nil {
		return c.Image.Image.Digest
	}
	return codeSha256(c.Code.Digest)
}

// showCode is where the code of a function is.
func (s *Service) showCode(c *call, cfg *configRecord) *FunctionCodeLocation {
	if r := cfg.Image; r != nil {
		return &FunctionCodeLocation{RepositoryType: new("ECR"), ImageUri: &r.URI, ResolvedImageUri: &r.Resolved}
	}
	return &FunctionCodeLocation{RepositoryType: new("S3"), Location: s.location(c, cfg.Code.Digest)}
}

// packageOf reads and checks the code of a function to be created: a zip, or an
// image, which it puts into cfg beside an empty source. The caller closes the source,
// until when nothing of the image is collected.
func (s *Service) packageOf(c *call, cfg *configRecord, in *CreateFunctionRequest) (src *source, info archive.Info, err error) {
	if value(in.PackageType) == "Image" {
		src, err = s.newImage(c, cfg, in)
		return src, info, err
	}
	if !in.ImageConfig.empty() {
		return nil, info, invalid("ImageConfig is for functions of PackageType Image only; this one is a Zip.")
	}
	if cfg.Runtime == "" || cfg.Handler == "" {
		return nil, info, invalid("Runtime and Handler are mandatory parameters for functions created with deployment packages.")
	}
	if in.Code.ImageUri != nil {
		return nil, info, invalid("Please don't provide ImageUri when creating a function with packageType Zip.")
	}
	if err := s.setRuntime(c, cfg, cfg.Runtime); err != nil {
		return nil, info, err
	}
	if src, err = s.source(c, in.Code.ZipFile, in.Code.S3Bucket, in.Code.S3Key, in.Code.S3ObjectVersion, nil); err != nil {
		return nil, info, err
	}
	if info, err = archive.Inspect(src, src.size); err != nil {
		src.close()
		return nil, info, err
	}
	return src, info, nil
}

// newImage checks a function to be created from an image.
func (s *Service) newImage(c *call, cfg *configRecord, in *CreateFunctionRequest) (*source, error) {
	var bad []string
	for name, given := range map[string]bool{
		"Runtime": in.Runtime != nil, "Handler": in.Handler != nil, "Layers": len(in.Layers) > 0,
		"CodeSigningConfigArn": value(in.CodeSigningConfigArn) != "",
		"Code.ZipFile":         in.Code.ZipFile != nil, "Code.S3Bucket": in.Code.S3Bucket != nil, "Code.S3Key": in.Code.S3Key != nil,
	} {
		if given {
			bad = append(bad, name)
		}
	}
	if len(bad) > 0 {
		slices.Sort(bad)
		return nil, invalid("Please don't provide %s when the intended function PackageType is Image.", strings.Join(bad, " or "))
	}
	if value(in.Code.ImageUri) == "" {
		return nil, invalid("Please provide ImageUri when the intended function PackageType is Image.")
	}
	r, release, err := s.resolveImage(c, *in.Code.ImageUri, cfg.Architecture)
	if err != nil {
		return nil, err
	}
	r.override(in.ImageConfig)
	cfg.Image = r
	return &source{ReaderAt: bytes.NewReader(nil), close: release}, nil
}

// resolveImage finds the image that a caller names.
func (s *Service) resolveImage(c *call, uri, architecture string) (*imageRecord, func(), error) {
	if s.Images == nil {
		return nil, nil, invalid("This lambdad runs no container images: they need isolation tier root or rootless.")
	}
	if err := s.Reserve(); err != nil {
		return nil, nil, errFull(err)
	}
	img, resolved, release, err := s.Images.Resolve(c.Context(), ImageRequest{
		URI: uri, Account: c.Identity.Account, Region: c.Region, Host: c.Host, Architecture: architecture, Authorize: c.Authorize,
	})
	if err != nil {
		return nil, nil, imageError(err)
	}
	return &imageRecord{URI: uri, Resolved: resolved, Image: *img}, release, nil
}

// imageError is a refusal of an image as operations answer it.
func imageError(err error) error {
	var e *lambdad.Error
	if !errors.As(err, &e) || !slices.Contains(imageReasons, e.Code) {
		return err
	}
	code := "InvalidParameterValueException"
	if e.Code == "ImageAccessDenied" {
		code = "AccessDeniedException"
	}
	return &lambdad.Error{Code: code, Message: e.Message, Err: err}
}

// prepareImage makes an image ready to run.
func (s *Service) prepareImage(ctx context.Context, r *imageRecord) error {
	if s.Images == nil {
		return lambdad.Errorf("InvalidImage", "This lambdad runs no container images: they need isolation tier root or rootless.")
	}
	return s.Images.Prepare(ctx, &r.Image, r.Resolved)
}

// updateImage is UpdateFunctionCode for a function that is an image.
func (s *Service) updateImage(c *call, in *UpdateFunctionCodeRequest, f *function, ref functionRef) (any, error) {
	if value(in.ImageUri) == "" || in.ZipFile != nil || in.S3Bucket != nil || in.S3Key != nil {
		return nil, invalid("Please provide ImageUri when updating a function with packageType Image.")
	}
	if err := changeable(&f.rec, ref, in.RevisionId); err != nil {
		return nil, err
	}
	architecture := f.rec.Config.Architecture
	if len(in.Architectures) > 0 {
		architecture = in.Architectures[0]
	}
	r, release, err := s.resolveImage(c, *in.ImageUri, architecture)
	if err != nil {
		return nil, err
	}
	defer release()
	return s.applyCode(c, in, f, ref, func(rec *functionRecord) error {
		if err := changeable(rec, ref, in.RevisionId); err != nil {
			return err
		}
		cfg, next := rec.Config, *r
		if was := cfg.Image; was != nil {
			next.Entrypoint, next.Command, next.WorkingDir = was.Entrypoint, was.Command, was.WorkingDir
		}
		cfg.Image, cfg.Architecture = &next, architecture
		s.accept(rec, cfg)
		return nil
	})
}

// setImageConfig takes over what UpdateFunctionConfiguration says about images.
func setImageConfig(cfg *configRecord, in *UpdateFunctionConfigurationRequest) error {
	if cfg.Image == nil {
		if !in.ImageConfig.empty() {
			return invalid("ImageConfig is for functions of PackageType Image only; this one is a Zip.")
		}
		return nil
	}
	if in.Runtime != nil || in.Handler != nil || len(in.Layers) > 0 {
		return invalid("Please don't provide Runtime, Handler or Layers when updating a function with packageType Image.")
	}
	if in.ImageConfig != nil {
		next := *cfg.Image
		next.override(in.ImageConfig)
		cfg.Image = &next
	}
	return nil
}

// ImageDigests are the digests of the manifests that functions and versions refer to.
func (r *Registry) ImageDigests() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var list []string
	for ref := range r.refs {
		if d, ok := strings.CutPrefix(ref, imageRef); ok {
			list = append(list, d)
		}
	}
	return list
}
