package lambda

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
)

// A provisionedRecord is the provisioned concurrency of a version or an alias.
type provisionedRecord struct {
	Requested int64     `json:"requested"`
	Modified  time.Time `json:"modified"`
}

// A Placer keeps environments initialised: *placement.Placer.
type Placer interface {
	// Configure says what a function has from now on.
	Configure(account, region, function string, c lambdad.Concurrency)
	// Provisioned says how far a version is.
	Provisioned(v *lambdad.Version) lambdad.Provisioned
}

// Statuses of provisioned concurrency.
const (
	provisionedInProgress = "IN_PROGRESS"
	provisionedReady      = "READY"
	provisionedFailed     = "FAILED"
)

const maxProvisionedPage = 50

var errNotPublished = invalid("The function resource provided must be an alias or a published version.")

// aliased reports whether a qualifier names an alias: not a version.
func aliased(qualifier string) bool { return !isDigits(qualifier) }

func (s *Service) putProvisionedConcurrencyConfig(c *call, in *PutProvisionedConcurrencyConfigRequest) (any, error) {
	unpublished := invalid("Provisioned Concurrency Configs cannot be applied to unpublished function versions.")
	ref, err := resolveRef(c, *in.FunctionName, in.Qualifier)
	if err != nil {
		return nil, err
	}
	if ref.qualifier == latest {
		return nil, unpublished
	}
	set := &provisionedRecord{Requested: *in.ProvisionedConcurrentExecutions, Modified: s.Now()}
	s.Registry.sharing.Lock()
	defer s.Registry.sharing.Unlock()
	if aliased(ref.qualifier) {
		_, err = s.Registry.updateAlias(c.Context(), ref, aliasNotFound(ref), func(f *family, rec *aliasRecord) error {
			if rec.Version == latest {
				return unpublished
			}
			for _, number := range []string{rec.Version, rec.Additional} {
				if v := f.version(number); v != nil && v.rec.Provisioned != nil {
					return lambdad.Errorf("ResourceConflictException", "Alias can't be used for Provisioned Concurrency configuration on an already Provisioned version")
				}
			}
			err := s.mayProvision(f, ref, rec.Provisioned, set)
			rec.Provisioned = set
			return err
		})
	} else {
		_, err = s.Registry.updateVersion(c.Context(), ref, func(rec *versionRecord) error {
			f := s.Registry.family(ref)
			for _, a := range f.aliases {
				if a.rec.Provisioned != nil && f.alias(a.name) != nil && (a.rec.Version == ref.qualifier || a.rec.Additional == ref.qualifier) {
					return lambdad.Errorf("ResourceConflictException", "Version is pointed by a Provisioned Concurrency alias")
				}
			}
			err := s.mayProvision(&f, ref, rec.Provisioned, set)
			rec.Provisioned = set
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	return &PutProvisionedConcurrencyConfigResponse{
		RequestedProvisionedConcurrentExecutions: &set.Requested, AllocatedProvisionedConcurrentExecutions: new(int64(0)),
		AvailableProvisionedConcurrentExecutions: new(int64(0)), Status: new(provisionedInProgress), LastModified: new(timestamp(set.Modified)),
	}, nil
}

// mayProvision checks what a function would have with set in the place of old.
func (s *Service) mayProvision(f *family, ref functionRef, old, set *provisionedRecord) error {
	total := f.provisioned() + set.Requested
	if old != nil {
		total -= old.Requested
	}
	if r := f.latest.rec.Reserved; r != nil {
		if total > *r {
			return invalid("Requested Provisioned Concurrency should not be greater than the reservedConcurrentExecution for function")
		}
		return nil
	}
	left := s.Registry.unreserved(scope{ref.account, ref.region}, s.Concurrency, ref.name) - total
	if left < 0 {
		return &lambdad.Error{Code: "InvalidParameterValueException", NoType: true,
			Message: "Specified ConcurrentExecutions for function is greater than account's unreserved concurrency [" + strconv.FormatInt(left+set.Requested, 10) + "]."}
	}
	if left < minUnreserved {
		return errTooFew("ConcurrentExecutions")
	}
	return nil
}

// provisioned finds the provisioned concurrency that a qualifier names.
func (s *Service) provisioned(c *call, name string, qualifier *string) (*family, functionRef, *provisionedRecord, error) {
	ref, err := resolveRef(c, name, qualifier)
	if err != nil {
		return nil, ref, nil, err
	}
	if ref.qualifier == latest {
		return nil, ref, nil, errNotPublished
	}
	f := s.Registry.family(ref)
	if aliased(ref.qualifier) {
		a := f.alias(ref.qualifier)
		if a == nil {
			return nil, ref, nil, aliasNotFound(ref)
		}
		return &f, ref, a.rec.Provisioned, nil
	}
	v := f.version(ref.qualifier)
	if v == nil {
		return nil, ref, nil, functionNotFound(ref)
	}
	return &f, ref, v.rec.Provisioned, nil
}

// progress is how far the provisioned concurrency of a version or an alias is. Where
// several configurations are of one version, each has its part of what is there.
func (s *Service) progress(f *family, qualifier string, set *provisionedRecord) (available int64, status string, reason *string) {
	parts := map[*version]int64{}
	if a := f.alias(qualifier); a != nil {
		parts = f.divide(&a.rec)
	} else if v := f.version(qualifier); v != nil {
		parts[v] = set.Requested
	}
	failure := ""
	if len(parts) == 0 {
		failure = "The alias points to $LATEST, for which no environments are provisioned."
	}
	for v, n := range parts {
		if v.rec.State == stateFailed {
			failure = v.rec.StateReason
		}
		if s.Placer == nil || v.rec.State != stateActive {
			continue
		}
		p := s.Placer.Provisioned(v.resolve(f.latest))
		if p.Requested > 0 {
			available += min(n, int64(p.Available)*n/int64(p.Requested))
		}
		if p.Failure != "" {
			failure = p.Failure
		}
	}
	switch {
	case available == set.Requested:
		return available, provisionedReady, nil
	case failure != "":
		return available, provisionedFailed, &failure
	}
	return available, provisionedInProgress, nil
}

func (s *Service) getProvisionedConcurrencyConfig(c *call, in *GetProvisionedConcurrencyConfigRequest) (any, error) {
	f, ref, set, err := s.provisioned(c, *in.FunctionName, in.Qualifier)
	if err != nil {
		return nil, err
	}
	if set == nil {
		return nil, lambdad.Errorf("ProvisionedConcurrencyConfigNotFoundException", "No Provisioned Concurrency Config found for this function")
	}
	available, status, reason := s.progress(f, ref.qualifier, set)
	return &GetProvisionedConcurrencyConfigResponse{
		RequestedProvisionedConcurrentExecutions: &set.Requested, AllocatedProvisionedConcurrentExecutions: &available,
		AvailableProvisionedConcurrentExecutions: &available, Status: &status, StatusReason: reason, LastModified: new(timestamp(set.Modified)),
	}, nil
}

func (s *Service) listProvisionedConcurrencyConfigs(c *call, in *ListProvisionedConcurrencyConfigsRequest) (any, error) {
	ref, err := resolveRef(c, *in.FunctionName, nil)
	if err != nil {
		return nil, err
	}
	f := s.Registry.family(ref)
	if f.latest == nil {
		return nil, functionNotFound(ref.unqualified())
	}
	type config struct {
		qualifier string
		set       *provisionedRecord
	}
	var all []config
	for _, v := range f.versions {
		if v.rec.Provisioned != nil && f.has(v) {
			all = append(all, config{strconv.FormatInt(v.number, 10), v.rec.Provisioned})
		}
	}
	for _, a := range f.aliases {
		if a.rec.Provisioned != nil && f.alias(a.name) != nil {
			all = append(all, config{a.name, a.rec.Provisioned})
		}
	}
	slices.SortFunc(all, func(a, b config) int { return strings.Compare(a.qualifier, b.qualifier) })
	page, next, err := paginate(all, func(c config) string { return c.qualifier }, in.Marker, in.MaxItems, maxProvisionedPage)
	if err != nil {
		return nil, err
	}
	out := &ListProvisionedConcurrencyConfigsResponse{ProvisionedConcurrencyConfigs: make([]ProvisionedConcurrencyConfigListItem, 0, len(page)), NextMarker: next}
	for _, p := range page {
		ref.qualifier = p.qualifier
		available, status, reason := s.progress(&f, p.qualifier, p.set)
		out.ProvisionedConcurrencyConfigs = append(out.ProvisionedConcurrencyConfigs, ProvisionedConcurrencyConfigListItem{
			FunctionArn:                              new(ref.arn()),
			RequestedProvisionedConcurrentExecutions: &p.set.Requested, AllocatedProvisionedConcurrentExecutions: &available,
			AvailableProvisionedConcurrentExecutions: &available, Status: &status, StatusReason: reason, LastModified: new(timestamp(p.set.Modified)),
		})
	}
	return out, nil
}

func (s *Service) deleteProvisionedConcurrencyConfig(c *call, in *DeleteProvisionedConcurrencyConfigRequest) (any, error) {
	_, ref, set, err := s.provisioned(c, *in.FunctionName, in.Qualifier)
	if err != nil || set == nil {
		return nil, err
	}
	s.Registry.sharing.Lock()
	defer s.Registry.sharing.Unlock()
	if aliased(ref.qualifier) {
		_, err = s.Registry.updateAlias(c.Context(), ref, aliasNotFound(ref), func(_ *family, rec *aliasRecord) error {
			rec.Provisioned = nil
			return nil
		})
	} else {
		_, err = s.Registry.updateVersion(c.Context(), ref, func(rec *versionRecord) error {
			rec.Provisioned = nil
			return nil
		})
	}
	return nil, err
}
