package lambda

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/archive"
	"github.com/lambdad/lambdad/store"
)

// A LayerImport is a layer version from elsewhere. It keeps its ARN, whatever account
// and region that names, and every account here may use it.
type LayerImport struct {
	ARN           string      // of the version
	Package       io.ReaderAt // a zip
	Size          int64       // of it, in bytes
	Description   string
	License       string
	Runtimes      []string
	Architectures []string
	// Replace allows that the version is here with another content, or was
	// published here.
	Replace bool
}

// An ImportedLayer says what was imported.
type ImportedLayer struct {
	ARN      string   `json:"arn"`
	Size     int64    `json:"size"`
	Unzipped int64    `json:"unzipped"`
	Files    int      `json:"files"`
	Warnings []string `json:"warnings,omitempty"` // what will go wrong, by file
}

// parseLayerARN reads the ARN of a layer version.
func parseLayerARN(arn string) (layerRef, bool) {
	m := layerARNPattern.FindStringSubmatch(arn)
	if m == nil {
		return layerRef{}, false
	}
	n, err := strconv.ParseInt(m[4], 10, 64)
	if err != nil || n < 1 {
		return layerRef{}, false
	}
	return layerRef{m[2], m[1], m[3], n}, true
}

// ImportLayer checks and stores a layer version under its ARN.
func (s *Service) ImportLayer(ctx context.Context, in LayerImport) (*ImportedLayer, error) {
	ref, ok := parseLayerARN(in.ARN)
	if !ok {
		return nil, invalid("%.200q is not the ARN of a layer version, such as arn:aws:lambda:us-east-1:123456789012:layer:name:1.", in.ARN)
	}
	info, err := archive.InspectLayer(in.Package, in.Size, in.Architectures)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(in.Package, 0, in.Size)); err != nil {
		return nil, fmt.Errorf("lambda: reading the layer %s: %w", in.ARN, err)
	}
	stored, release, err := s.store(ctx, &source{in.Package, in.Size, hex.EncodeToString(sum.Sum(nil)), func() {}}, info)
	if err != nil {
		return nil, err
	}
	defer release()
	err = s.Registry.importLayer(ctx, ref, layerRecord{
		Archive: stored, Created: s.Now(), Description: in.Description, License: in.License,
		Runtimes: in.Runtimes, Architectures: in.Architectures, Imported: true,
	}, in.Replace)
	if err != nil {
		return nil, err
	}
	return &ImportedLayer{ref.versionARN(), in.Size, info.Unzipped, info.Files, info.Warnings}, nil
}

// importLayer writes a layer version with the number it has elsewhere.
func (r *Registry) importLayer(ctx context.Context, ref layerRef, rec layerRecord, replace bool) error {
	key := layerKey(ref.account, ref.region, ref.name)
	if err := r.raiseCounter(ctx, key, ref.version); err != nil {
		return err
	}
	value, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("lambda: encoding record %s: %w", key, err)
	}
	key += "." + strconv.FormatInt(ref.version, 10)
	revision, err := r.store.Create(ctx, key, value)
	if errors.Is(err, store.ErrConflict) {
		if v := r.layerVersion(ref); v != nil && v.rec.Imported && v.rec.Archive.Digest == rec.Archive.Digest {
			return nil // as it is
		}
		if !replace {
			return lambdad.Errorf("ResourceConflictException", "Layer version %s is here already with another content.", ref.versionARN())
		}
		revision, err = r.store.Put(ctx, key, value)
	}
	if err != nil {
		return storeError(err)
	}
	r.apply(store.Update{Record: store.Record{Key: key, Value: value, Revision: revision}})
	return nil
}

// raiseCounter keeps versions published here above one from elsewhere.
func (r *Registry) raiseCounter(ctx context.Context, key string, version int64) error {
	for range maxAttempts {
		var counter layerCounter
		rec, err := r.store.Get(ctx, key)
		if err == nil {
			err = json.Unmarshal(rec.Value, &counter)
		} else if errors.Is(err, store.ErrNotFound) {
			err = nil
		}
		if err != nil {
			return storeError(err)
		}
		if counter.Last >= version {
			return nil
		}
		counter.Last = version
		value, err := json.Marshal(counter)
		if err != nil {
			return fmt.Errorf("lambda: encoding record %s: %w", key, err)
		}
		if rec.Revision == 0 {
			_, err = r.store.Create(ctx, key, value)
		} else {
			_, err = r.store.Update(ctx, key, value, rec.Revision)
		}
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return storeError(err)
		}
		return nil
	}
	return errContended(key)
}

// imported returns a layer version from elsewhere, or nil.
func (r *Registry) imported(ref layerRef) *layerVersion {
	if v := r.layerVersion(ref); v != nil && v.rec.Imported {
		return v
	}
	return nil
}

// readableLayer is layerOf for reading one version: those from elsewhere are
// everybody's.
func (s *Service) readableLayer(c *call, name string, version int64) (layerRef, error) {
	if ref, ok := parseLayerRef(c, name); ok {
		if version != 0 {
			ref.version = version
		}
		if s.Registry.imported(ref) != nil {
			return ref, nil
		}
	}
	ref, err := layerOf(c, name)
	if version != 0 {
		ref.version = version
	}
	return ref, err
}

// pullLayers gets the layer versions that a function names and that are not here,
// where the server was told to.
func (s *Service) pullLayers(c *call, arns []string) {
	for _, arn := range arns {
		ref, ok := parseLayerARN(arn)
		if !ok || ref.account == c.Identity.Account || s.Registry.layerVersion(ref) != nil {
			continue
		}
		if s.PullLayer == nil {
			c.header.Add(warningHeader, "layer "+oneLine(arn)+" is not here; get it with: lambdad layer import "+oneLine(arn))
			continue
		}
		got, err := s.PullLayer(c.Context(), arn)
		if err != nil {
			s.Logger.Warn("a layer could not be pulled", "layer", arn, "err", err)
			c.header.Add(warningHeader, oneLine("layer "+arn+" could not be pulled: "+err.Error()))
			continue
		}
		for _, w := range got.Warnings {
			s.Logger.Warn("layer: "+w, "layer", arn)
			c.header.Add(warningHeader, oneLine(w))
		}
	}
}
