package lambda

import (
	"archive/zip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/store"
)

// A signingRecord is a code signing configuration as stored, under
// <account>.<region>.code-signing.<id>.
type signingRecord struct {
	Description string            `json:"description,omitempty"`
	Publishers  []string          `json:"publishers"`
	Policy      string            `json:"policy"` // Warn or Enforce
	Modified    time.Time         `json:"modified"`
	Tags        map[string]string `json:"tags,omitzero"`
}

// A signing is a record as it is in memory; it is replaced, never modified.
type signing struct {
	scope    scope
	id       string
	revision uint64
	rec      signingRecord
}

func signingKey(s scope, id string) string { return s.account + "." + s.region + ".code-signing." + id }

func (s *signing) arn() string {
	return "arn:aws:lambda:" + s.scope.region + ":" + s.scope.account + ":code-signing-config:" + s.id
}

func (s *signing) show() *CodeSigningConfig {
	return &CodeSigningConfig{
		CodeSigningConfigId: &s.id, CodeSigningConfigArn: new(s.arn()), Description: &s.rec.Description,
		AllowedPublishers:   &AllowedPublishers{SigningProfileVersionArns: s.rec.Publishers},
		CodeSigningPolicies: &CodeSigningPolicies{UntrustedArtifactOnDeployment: &s.rec.Policy},
		LastModified:        new(timestamp(s.rec.Modified)),
	}
}

// signing returns a code signing configuration, or nil.
func (r *Registry) signing(s scope, id string) *signing {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.signings[s][id]
}

// signingList returns the code signing configurations of an account and region.
func (r *Registry) signingList(s scope) []*signing {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var all []*signing
	for _, id := range slices.Sorted(maps.Keys(r.signings[s])) {
		all = append(all, r.signings[s][id])
	}
	return all
}

// putSigning replaces a configuration, or removes it if next is nil. r.mu is held.
func (r *Registry) putSigning(k recordKey, next *signing) {
	if next == nil {
		delete(r.signings[k.scope], k.name)
		return
	}
	if r.signings[k.scope] == nil {
		r.signings[k.scope] = map[string]*signing{}
	}
	r.signings[k.scope][k.name] = next
}

// updateSigning is update for a code signing configuration.
func (r *Registry) updateSigning(ctx context.Context, s scope, id string, change func(*signingRecord) error) (*signing, error) {
	next := &signing{scope: s, id: id}
	err := r.amend(ctx, signingKey(s, id), next.arn(), func() (any, uint64, error) {
		old := r.signing(s, id)
		if old == nil {
			return nil, 0, signingNotFound(next.arn())
		}
		next.rec = old.rec
		return &next.rec, old.revision, change(&next.rec)
	})
	return next, err
}

func signingNotFound(arn string) error {
	return &lambdad.Error{Code: "ResourceNotFoundException", NoType: true, Message: "The Lambda code signing configuration " + arn + " can not be found."}
}

// signingConfig finds the configuration that an ARN names.
func (s *Service) signingConfig(c *call, arn string) (*signing, error) {
	parts := strings.Split(arn, ":") // the pattern has seven
	if len(parts) == 7 && parts[3] == c.Region && parts[4] == c.Identity.Account {
		if cfg := s.Registry.signing(scope{parts[4], parts[3]}, parts[6]); cfg != nil {
			return cfg, nil
		}
	}
	return nil, signingNotFound(arn)
}

// attachable is signingConfig for operations that attach it to a function.
func (s *Service) attachable(c *call, arn string) (*signing, error) {
	cfg, err := s.signingConfig(c, arn)
	if err != nil {
		return nil, lambdad.Errorf("CodeSigningConfigNotFoundException",
			"The code signing configuration cannot be found. Check that the provided configuration is not deleted: %s.", arn)
	}
	return cfg, nil
}

const signingIDLetters = "abcdefghijklmnopqrstuvwxyz0123456789"

func (s *Service) createCodeSigningConfig(c *call, in *CreateCodeSigningConfigRequest) (any, error) {
	if err := checkTags(nil, in.Tags); err != nil {
		return nil, err
	}
	id := []byte("csc-")
	for range 17 {
		id = append(id, signingIDLetters[rand.IntN(len(signingIDLetters))])
	}
	cfg := &signing{scope: scope{c.Identity.Account, c.Region}, id: string(id), rec: signingRecord{
		Description: value(in.Description), Publishers: in.AllowedPublishers.SigningProfileVersionArns,
		Policy: "Warn", Modified: s.Now(), Tags: in.Tags,
	}}
	if in.CodeSigningPolicies != nil {
		cfg.rec.Policy = orDefault(in.CodeSigningPolicies.UntrustedArtifactOnDeployment, cfg.rec.Policy)
	}
	if _, err := s.Registry.write(c.Context(), signingKey(cfg.scope, cfg.id), cfg.rec, 0); err != nil {
		return nil, storeError(err)
	}
	return &CreateCodeSigningConfigResponse{CodeSigningConfig: cfg.show()}, nil
}

func (s *Service) getCodeSigningConfig(c *call, in *GetCodeSigningConfigRequest) (any, error) {
	cfg, err := s.signingConfig(c, *in.CodeSigningConfigArn)
	if err != nil {
		return nil, err
	}
	return &GetCodeSigningConfigResponse{CodeSigningConfig: cfg.show()}, nil
}

func (s *Service) updateCodeSigningConfig(c *call, in *UpdateCodeSigningConfigRequest) (any, error) {
	cfg, err := s.signingConfig(c, *in.CodeSigningConfigArn)
	if err != nil {
		return nil, err
	}
	cfg, err = s.Registry.updateSigning(c.Context(), cfg.scope, cfg.id, func(rec *signingRecord) error {
		rec.Description = orDefault(in.Description, rec.Description)
		if in.AllowedPublishers != nil {
			rec.Publishers = in.AllowedPublishers.SigningProfileVersionArns
		}
		if in.CodeSigningPolicies != nil {
			rec.Policy = orDefault(in.CodeSigningPolicies.UntrustedArtifactOnDeployment, rec.Policy)
		}
		rec.Modified = s.Now()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &UpdateCodeSigningConfigResponse{CodeSigningConfig: cfg.show()}, nil
}

func (s *Service) deleteCodeSigningConfig(c *call, in *DeleteCodeSigningConfigRequest) (any, error) {
	cfg, err := s.signingConfig(c, *in.CodeSigningConfigArn)
	if err != nil {
		return nil, err
	}
	if users := s.signed(c, cfg.arn()); len(users) > 0 {
		return nil, lambdad.Errorf("ResourceConflictException",
			"The code signing configuration %s is used by %d functions, %s among them; detach it from them first.", cfg.arn(), len(users), users[0])
	}
	return nil, s.Registry.remove(c.Context(), signingKey(cfg.scope, cfg.id), cfg.revision)
}

func (s *Service) listCodeSigningConfigs(c *call, in *ListCodeSigningConfigsRequest) (any, error) {
	all := s.Registry.signingList(scope{c.Identity.Account, c.Region})
	page, next, err := paginate(all, func(cfg *signing) string { return cfg.id }, in.Marker, in.MaxItems, maxFunctionPage)
	if err != nil {
		return nil, err
	}
	out := &ListCodeSigningConfigsResponse{CodeSigningConfigs: make([]CodeSigningConfig, 0, len(page)), NextMarker: next}
	for _, cfg := range page {
		out.CodeSigningConfigs = append(out.CodeSigningConfigs, *cfg.show())
	}
	return out, nil
}

// signed returns the ARNs of the functions that use a configuration, sorted.
func (s *Service) signed(c *call, arn string) []string {
	arns := []string{}
	for _, f := range s.Registry.list(c.Identity.Account, c.Region, "", math.MaxInt) {
		if f.latest.rec.CodeSigning == arn {
			arns = append(arns, lambdad.FunctionARN(c.Identity.Account, c.Region, f.latest.name, ""))
		}
	}
	return arns
}

func (s *Service) listFunctionsByCodeSigningConfig(c *call, in *ListFunctionsByCodeSigningConfigRequest) (any, error) {
	cfg, err := s.signingConfig(c, *in.CodeSigningConfigArn)
	if err != nil {
		return nil, err
	}
	page, next, err := paginate(s.signed(c, cfg.arn()), func(arn string) string { return arn }, in.Marker, in.MaxItems, maxFunctionPage)
	if err != nil {
		return nil, err
	}
	return &ListFunctionsByCodeSigningConfigResponse{FunctionArns: page, NextMarker: next}, nil
}

func (s *Service) putFunctionCodeSigningConfig(c *call, in *PutFunctionCodeSigningConfigRequest) (any, error) {
	cfg, err := s.attachable(c, *in.CodeSigningConfigArn)
	if err != nil {
		return nil, err
	}
	_, ref, err := s.writable(c, *in.FunctionName)
	if err != nil {
		return nil, err
	}
	_, err = s.Registry.update(c.Context(), ref, func(rec *functionRecord) error {
		rec.CodeSigning = cfg.arn()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &PutFunctionCodeSigningConfigResponse{CodeSigningConfigArn: new(cfg.arn()), FunctionName: &ref.name}, nil
}

func (s *Service) getFunctionCodeSigningConfig(c *call, in *GetFunctionCodeSigningConfigRequest) (any, error) {
	f, ref, err := s.writable(c, *in.FunctionName)
	if err != nil {
		return nil, err
	}
	if f.rec.CodeSigning == "" {
		return &GetFunctionCodeSigningConfigResponse{}, nil
	}
	return &GetFunctionCodeSigningConfigResponse{CodeSigningConfigArn: &f.rec.CodeSigning, FunctionName: &ref.name}, nil
}

func (s *Service) deleteFunctionCodeSigningConfig(c *call, in *DeleteFunctionCodeSigningConfigRequest) (any, error) {
	_, ref, err := s.writable(c, *in.FunctionName)
	if err != nil {
		return nil, err
	}
	_, err = s.Registry.update(c.Context(), ref, func(rec *functionRecord) error {
		rec.CodeSigning = ""
		return nil
	})
	return nil, err
}

// checkSigning decides about an untrusted package of a function with a code
// signing configuration. Every package is untrusted here: a signature is made by
// AWS Signer, and to verify one needs that service's certificates and its list of
// revocations. So Enforce refuses, and Warn deploys and says so.
func (s *Service) checkSigning(c *call, arn string, pkg io.ReaderAt, size int64) error {
	if arn == "" {
		return nil
	}
	cfg, err := s.signingConfig(c, arn)
	if err != nil {
		return nil // deleted before it was detached: asks for nothing
	}
	what := "has no signature"
	if z, err := zip.NewReader(pkg, size); err == nil && slices.ContainsFunc(z.File, isSignature) {
		what = "has a signature, which cannot be verified without the certificates and revocations of AWS Signer, which lambdad does not have"
	}
	if cfg.rec.Policy != "Enforce" {
		s.Logger.Warn("deploying an untrusted package: it "+what, "code_signing_config", arn, "request_id", c.RequestID)
		c.header.Add(warningHeader, "the package "+what)
		return nil
	}
	return lambdad.Errorf("CodeVerificationFailedException",
		"The code signature failed one or more of the validation checks for signature mismatch or expiry, and the code signing policy is set to ENFORCE. Lambda blocks the deployment. The package %s; set UntrustedArtifactOnDeployment of %s to Warn to deploy it.", what, arn)
}

func isSignature(f *zip.File) bool {
	return strings.HasPrefix(f.Name, "META-INF/") && strings.Contains(f.Name, "signer")
}

// checkLayerSigning is checkSigning for the layers that a configuration names.
func (s *Service) checkLayerSigning(c *call, arn string, layers []archiveRecord) error {
	if arn == "" {
		return nil
	}
	for _, l := range layers {
		f, size, err := s.Blobs.Open(c.Context(), l.Digest)
		if err != nil {
			return fmt.Errorf("lambda: opening layer %s: %w", l.ARN, err)
		}
		err = s.checkSigning(c, arn, f, size)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// decodeSigning reads a record.
func decodeSigning(k recordKey, u store.Update) (*signing, error) {
	if u.Deleted {
		return nil, nil
	}
	next := &signing{scope: k.scope, id: k.name, revision: u.Revision}
	return next, json.Unmarshal(u.Value, &next.rec)
}
