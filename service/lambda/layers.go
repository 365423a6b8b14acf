package lambda

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/archive"
	"github.com/lambdad/lambdad/blob"
)

// warningHeader carries what AWS's answer has no place for.
const warningHeader = "X-Lambdad-Warning"

// maxLayerPage is the longest page of layer lists.
const maxLayerPage = 50

var errNoResource = &lambdad.Error{Code: "ResourceNotFoundException", Message: "The resource you requested does not exist."}

// layerOf reads the LayerName of an operation on the caller's own layers.
func layerOf(c *call, name string) (layerRef, error) {
	ref, ok := parseLayerRef(c, name)
	if !ok || ref.region != c.Region {
		return ref, errNoResource
	}
	if ref.account != c.Identity.Account {
		if n, err := strconv.ParseInt(c.match.Param("VersionNumber"), 10, 64); err == nil && ref.version == 0 {
			ref.version = n
		}
		arn := ref.arn()
		if ref.version > 0 {
			arn = ref.versionARN()
		}
		return ref, c.AuthorizeForeign(arn)
	}
	return ref, nil
}

func (s *Service) publishLayerVersion(c *call, in *PublishLayerVersionRequest) (any, error) {
	ref, err := layerOf(c, *in.LayerName)
	if err != nil {
		return nil, err
	}
	src, err := s.source(c, in.Content.ZipFile, in.Content.S3Bucket, in.Content.S3Key, in.Content.S3ObjectVersion, nil)
	if err != nil {
		return nil, err
	}
	defer src.close()
	info, err := archive.InspectLayer(src, src.size, in.CompatibleArchitectures)
	if err != nil {
		return nil, err
	}
	if err := s.checkStorage(c, src.size); err != nil {
		return nil, err
	}
	stored, release, err := s.store(c.Context(), src, info)
	if err != nil {
		return nil, err
	}
	defer release()
	v, err := s.Registry.publishLayer(c.Context(), ref, layerRecord{
		Archive: stored, Created: s.Now(), Description: value(in.Description), License: value(in.LicenseInfo),
		Runtimes: in.CompatibleRuntimes, Architectures: in.CompatibleArchitectures,
	})
	if err != nil {
		return nil, err
	}
	for _, warning := range info.Warnings {
		s.Logger.Warn("layer: "+warning, "layer", v.ref.versionARN(), "request_id", c.RequestID)
		c.header.Add(warningHeader, oneLine(warning))
	}
	return &PublishLayerVersionResponse{
		Content: s.showContent(c, v), LayerArn: new(v.ref.arn()), LayerVersionArn: new(v.ref.versionARN()),
		Description: &v.rec.Description, CreatedDate: new(timestamp(v.rec.Created)), Version: &v.ref.version,
		CompatibleRuntimes: v.rec.Runtimes, LicenseInfo: orNil(v.rec.License), CompatibleArchitectures: v.rec.Architectures,
	}, nil
}

// oneLine makes text safe for a header.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, s)
}

func (s *Service) showContent(c *call, v *layerVersion) *LayerVersionContentOutput {
	return &LayerVersionContentOutput{
		Location: s.location(c, v.rec.Archive.Digest), CodeSha256: new(codeSha256(v.rec.Archive.Digest)), CodeSize: &v.rec.Archive.Size,
	}
}

func (s *Service) getLayerVersion(c *call, in *GetLayerVersionRequest) (any, error) {
	if *in.VersionNumber < 1 {
		return nil, errLayerVersionTooLow
	}
	ref, err := s.readableLayer(c, *in.LayerName, *in.VersionNumber)
	if err != nil {
		return nil, err
	}
	return s.showLayerVersion(c, ref)
}

var errLayerVersionTooLow = &lambdad.Error{Code: "InvalidParameterValueException", Message: "Layer Version Cannot be less than 1"}

func (s *Service) getLayerVersionByArn(c *call, in *GetLayerVersionByArnRequest) (any, error) {
	ref, err := s.readableLayer(c, *in.Arn, 0)
	if err != nil {
		return nil, err
	}
	return s.showLayerVersion(c, ref)
}

func (s *Service) showLayerVersion(c *call, ref layerRef) (any, error) {
	v := s.Registry.layerVersion(ref)
	if v == nil {
		return nil, errNoResource
	}
	return &GetLayerVersionResponse{
		Content: s.showContent(c, v), LayerArn: new(v.ref.arn()), LayerVersionArn: new(v.ref.versionARN()),
		Description: &v.rec.Description, CreatedDate: new(timestamp(v.rec.Created)), Version: &v.ref.version,
		CompatibleRuntimes: v.rec.Runtimes, LicenseInfo: orNil(v.rec.License), CompatibleArchitectures: v.rec.Architectures,
	}, nil
}

func (v *layerVersion) item() LayerVersionsListItem {
	return LayerVersionsListItem{
		LayerVersionArn: new(v.ref.versionARN()), Version: &v.ref.version, Description: &v.rec.Description,
		CreatedDate: new(timestamp(v.rec.Created)), CompatibleRuntimes: v.rec.Runtimes,
		LicenseInfo: orNil(v.rec.License), CompatibleArchitectures: v.rec.Architectures,
	}
}

// fits reports whether a version passes the filters of a list.
func (v *layerVersion) fits(runtime, architecture *string) bool {
	return (runtime == nil || slices.Contains(v.rec.Runtimes, *runtime)) &&
		(architecture == nil || slices.Contains(v.rec.Architectures, *architecture))
}

func (s *Service) listLayers(c *call, in *ListLayersRequest) (any, error) {
	var items []LayersListItem
	for _, name := range s.Registry.layerNames(c.Identity.Account, c.Region) {
		ref := layerRef{account: c.Identity.Account, region: c.Region, name: name}
		versions := s.Registry.layer(ref)
		for i := len(versions) - 1; i >= 0; i-- {
			if v := versions[i]; v.fits(in.CompatibleRuntime, in.CompatibleArchitecture) {
				items = append(items, LayersListItem{LayerName: &ref.name, LayerArn: new(ref.arn()), LatestMatchingVersion: new(v.item())})
				break
			}
		}
	}
	page, next, err := paginate(items, func(i LayersListItem) string { return *i.LayerName }, in.Marker, in.MaxItems, maxLayerPage)
	if err != nil {
		return nil, err
	}
	return &ListLayersResponse{Layers: page, NextMarker: next}, nil
}

func (s *Service) listLayerVersions(c *call, in *ListLayerVersionsRequest) (any, error) {
	ref, err := layerOf(c, *in.LayerName)
	if err != nil {
		return nil, err
	}
	var items []LayerVersionsListItem
	for _, v := range slices.Backward(s.Registry.layer(ref)) {
		if v.fits(in.CompatibleRuntime, in.CompatibleArchitecture) {
			items = append(items, v.item())
		}
	}
	// Newest first: markers must grow, so they count down from the largest number.
	key := func(i LayerVersionsListItem) string { return fmt.Sprintf("%020d", int64(1)<<62-*i.Version) }
	page, next, err := paginate(items, key, in.Marker, in.MaxItems, maxLayerPage)
	if err != nil {
		return nil, err
	}
	return &ListLayerVersionsResponse{LayerVersions: page, NextMarker: next}, nil
}

func (s *Service) deleteLayerVersion(c *call, in *DeleteLayerVersionRequest) (any, error) {
	if *in.VersionNumber < 1 {
		return nil, errLayerVersionTooLow
	}
	ref, err := layerOf(c, *in.LayerName)
	if err != nil {
		return nil, err
	}
	ref.version = *in.VersionNumber
	return nil, s.Registry.deleteLayerVersion(c.Context(), ref)
}

// store makes an archive durable. It is safe from collection until release, by
// when a record must name it.
func (s *Service) store(ctx context.Context, src *source, info archive.Info) (rec archiveRecord, release func(), err error) {
	if err := s.Reserve(); err != nil {
		return rec, nil, errFull(err)
	}
	release = s.Registry.pin(src.digest)
	got, size, err := s.Blobs.Put(ctx, io.NewSectionReader(src, 0, src.size))
	if err == nil && got != src.digest {
		err = fmt.Errorf("%w: stored as %s", blob.ErrCorrupt, got)
	}
	if err != nil {
		release()
		if errors.Is(err, blob.ErrFull) {
			return rec, nil, errFull(err)
		}
		return rec, nil, fmt.Errorf("lambda: storing an archive of %d bytes: %w", src.size, err)
	}
	return archiveRecord{Digest: src.digest, Size: size, Unzipped: info.Unzipped}, release, nil
}
