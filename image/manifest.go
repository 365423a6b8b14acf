package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/blob"
)

// Media types that are understood.
const (
	TypeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	TypeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	TypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	TypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"

	typeOCIConfig    = "application/vnd.oci.image.config.v1+json"
	typeDockerConfig = "application/vnd.docker.container.image.v1+json"
)

// MediaTypes are those of manifests, as an Accept header has them.
var MediaTypes = []string{TypeOCIManifest, TypeDockerManifest, TypeOCIIndex, TypeDockerList}

// layerTypes are those of layers: their content is looked at all the same.
var layerTypes = map[string]bool{
	"application/vnd.oci.image.layer.v1.tar":            true,
	"application/vnd.oci.image.layer.v1.tar+gzip":       true,
	"application/vnd.oci.image.layer.v1.tar+zstd":       true,
	"application/vnd.docker.image.rootfs.diff.tar":      true,
	"application/vnd.docker.image.rootfs.diff.tar.gzip": true,
	"application/vnd.docker.image.rootfs.diff.tar.zstd": true,
}

// A Manifest is a manifest or an index, as far as it matters here.
type Manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        Descriptor   `json:"config"`
	Layers        []Descriptor `json:"layers"`
	Manifests     []Descriptor `json:"manifests"`
}

// A Descriptor names a blob.
type Descriptor struct {
	MediaType string    `json:"mediaType"`
	Digest    string    `json:"digest"` // sha256:<hex>
	Size      int64     `json:"size"`
	Platform  *Platform `json:"platform,omitempty"`
}

// A Platform is what an image of an index runs on.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

func (d Descriptor) hex() string { return strings.TrimPrefix(d.Digest, "sha256:") }

// Hex is the digest without its algorithm.
func (d Descriptor) Hex() string { return d.hex() }

func (d Descriptor) valid() bool {
	hex, ok := strings.CutPrefix(d.Digest, "sha256:")
	return ok && blob.CheckDigest(hex) && d.Size >= 0
}

// Index says whether it lists manifests rather than layers.
func (m *Manifest) Index() bool {
	return m.MediaType == TypeOCIIndex || m.MediaType == TypeDockerList || m.MediaType == "" && len(m.Manifests) > 0
}

// ParseManifest reads a manifest or an index and checks that it names what it names
// by digests. Its media type is the one it states, or contentType where it states
// none.
func ParseManifest(data []byte, contentType string) (*Manifest, error) {
	m, err := parseManifest(data)
	if err != nil {
		return nil, err
	}
	if m.MediaType == "" {
		m.MediaType, _, _ = strings.Cut(contentType, ";")
	}
	if m.MediaType == "" {
		m.MediaType = TypeOCIManifest
		if len(m.Manifests) > 0 {
			m.MediaType = TypeOCIIndex
		}
	}
	return m, nil
}

func parseManifest(data []byte) (*Manifest, error) {
	if len(data) > MaxManifest {
		return nil, fmt.Errorf("image: a manifest of %d bytes: at most %d are read", len(data), MaxManifest)
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("image: reading a manifest: %w", err)
	}
	if m.SchemaVersion != 2 {
		return nil, fmt.Errorf("image: a manifest of schema version %d: 2 is needed", m.SchemaVersion)
	}
	for _, d := range append(m.Layers, m.Manifests...) {
		if !d.valid() {
			return nil, fmt.Errorf("image: a manifest names a blob %.80q, which is not sha256: and 64 hexadecimal digits", d.Digest)
		}
	}
	if m.Config.Digest != "" && !m.Config.valid() {
		return nil, fmt.Errorf("image: a manifest names a configuration %.80q, which is not sha256: and 64 hexadecimal digits", m.Config.Digest)
	}
	return &m, nil
}

// configFile is the configuration of an image.
type configFile struct {
	OS           string
	Architecture string
	Config       struct {
		Env        []string
		Entrypoint []string
		Cmd        []string
		WorkingDir string
	} `json:"config"`
	RootFS struct {
		Type    string
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// Architectures are AWS's names by those of images.
var architectures = map[string]string{"amd64": "x86_64", "arm64": "arm64"}

// unsupported is AWS's refusal of what it cannot read.
func unsupported(name string, cause error) error {
	return invalidf(cause, "The image manifest, config or layer media type for the source image %s is not supported.", name)
}

// fetcher gives blobs of an image: small ones by digest, verified.
type fetcher func(ctx context.Context, d Descriptor, limit int64) ([]byte, error)

// choose takes the manifest for an architecture out of an index.
func (m *Manifest) choose(name, architecture string) (Descriptor, error) {
	var has []string
	for _, d := range m.Manifests {
		if d.Platform == nil {
			continue
		}
		arch := architectures[d.Platform.Architecture]
		if d.Platform.OS == "linux" && arch == architecture {
			return d, nil
		}
		if d.Platform.OS != "unknown" {
			has = append(has, d.Platform.OS+"/"+d.Platform.Architecture)
		}
	}
	return Descriptor{}, invalidf(nil, "The image %s has nothing for the architecture %s; it has %s.", name, architecture, orNothing(has))
}

func orNothing(list []string) string {
	if len(list) == 0 {
		return "no platform"
	}
	return strings.Join(list, ", ")
}

// describe makes an image of its manifest and configuration. name is for messages.
func describe(ctx context.Context, name, architecture string, raw []byte, m *Manifest, get fetcher) (*lambdad.Image, error) {
	if m.MediaType != TypeOCIManifest && m.MediaType != TypeDockerManifest {
		return nil, unsupported(name, fmt.Errorf("manifest of type %.80q", m.MediaType))
	}
	if t := m.Config.MediaType; m.Config.Digest == "" || t != typeOCIConfig && t != typeDockerConfig {
		return nil, unsupported(name, fmt.Errorf("configuration of type %.80q", t))
	}
	if len(m.Layers) == 0 || len(m.Layers) > maxLayers {
		return nil, invalidf(nil, "The image %s has %d layers; it must have 1 to %d.", name, len(m.Layers), maxLayers)
	}
	data, err := get(ctx, m.Config, maxConfig)
	if err != nil {
		return nil, err
	}
	var c configFile
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, unsupported(name, fmt.Errorf("configuration: %w", err))
	}
	if c.OS != "" && c.OS != "linux" {
		return nil, invalidf(nil, "The image %s is for %s; functions run on Linux.", name, shown(c.OS))
	}
	if got := architectures[c.Architecture]; got != architecture {
		return nil, invalidf(nil, "The image %s is for the architecture %s and the function for %s: build it with --platform, or create the function with --architectures.", name, shown(c.Architecture), architecture)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil, invalidf(nil, "The image %s names %d layers in its manifest and %d in its configuration.", name, len(m.Layers), len(c.RootFS.DiffIDs))
	}
	sum := sha256.Sum256(raw)
	img := &lambdad.Image{Digest: hex.EncodeToString(sum[:]), Env: c.Config.Env, Entrypoint: c.Config.Entrypoint, Command: c.Config.Cmd, WorkingDir: c.Config.WorkingDir}
	var stored int64
	for i, l := range m.Layers {
		if !layerTypes[l.MediaType] {
			return nil, unsupported(name, fmt.Errorf("layer of type %.80q", l.MediaType))
		}
		id := Descriptor{Digest: c.RootFS.DiffIDs[i]}
		if !id.valid() {
			return nil, unsupported(name, fmt.Errorf("diff id %.80q", id.Digest))
		}
		if stored += l.Size; l.Size > lambdad.MaxImage || stored > lambdad.MaxImage {
			return nil, errTooLarge()
		}
		img.Layers = append(img.Layers, lambdad.ImageLayer{Digest: l.hex(), DiffID: id.hex(), Size: l.Size})
	}
	return img, checkProcess(img)
}

// checkProcess checks what programs are started with.
func checkProcess(img *lambdad.Image) error {
	total := 0
	for _, list := range [][]string{img.Env, img.Entrypoint, img.Command, {img.WorkingDir}} {
		for _, s := range list {
			if total += len(s) + 1; total > maxArgs {
				return invalidf(nil, "The image's entry point, command and variables have more than %d bytes.", maxArgs)
			}
			if strings.ContainsRune(s, 0) {
				return invalidf(nil, "The image's configuration holds a NUL.")
			}
		}
	}
	if d := img.WorkingDir; d != "" && !path.IsAbs(d) {
		img.WorkingDir = path.Join("/", d)
	}
	return nil
}

// Load reads an image that is stored, by the digest of its manifest or index.
func (s *Store) Load(ctx context.Context, name, digest, architecture string) (*lambdad.Image, error) {
	for range 2 {
		raw, err := s.read(ctx, digest, MaxManifest)
		if errors.Is(err, blob.ErrNotFound) {
			return nil, &lambdad.Error{Code: "ImageDeleted", Message: "Source image " + name + " does not exist. Provide a valid source image.", Err: err}
		}
		if err != nil {
			return nil, err
		}
		m, err := ParseManifest(raw, "")
		if err != nil {
			return nil, unsupported(name, err)
		}
		if !m.Index() {
			return describe(ctx, name, architecture, raw, m, func(ctx context.Context, d Descriptor, limit int64) ([]byte, error) {
				return s.read(ctx, d.hex(), limit)
			})
		}
		d, err := m.choose(name, architecture)
		if err != nil {
			return nil, err
		}
		digest = d.hex()
	}
	return nil, unsupported(name, errors.New("an index of indexes"))
}
