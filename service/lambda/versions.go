package lambda

import (
	"strconv"

	"github.com/lambdad/lambdad"
)

func showPublished(ref functionRef, v *version) *FunctionConfiguration {
	ref.qualifier = strconv.FormatInt(v.number, 10)
	return v.rec.show(ref, v.number, false)
}

func (s *Service) publishVersion(c *call, in *PublishVersionRequest) (any, error) {
	_, ref, err := s.writable(c, *in.FunctionName)
	if err != nil {
		return nil, err
	}
	if in.PublishTo != nil {
		return nil, notOffered("PublishTo")
	}
	_, v, err := s.Registry.publish(c.Context(), ref, in.Description, func(rec *functionRecord) error {
		if err := changeable(rec, ref, in.RevisionId); err != nil {
			return err
		}
		if rec.State != stateActive {
			return notInvocable(rec.State)
		}
		if want, have := value(in.CodeSha256), rec.Config.codeSha256(); want != "" && want != have {
			return invalid("CodeSHA256 (%s) is different from current CodeSHA256 in $LATEST (%s). Please try again with the CodeSHA256 in $LATEST.", want, have)
		}
		rec.RevisionID = newID()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return showPublished(ref, v), nil
}

func (s *Service) listVersionsByFunction(c *call, in *ListVersionsByFunctionRequest) (any, error) {
	ref, err := resolveRef(c, *in.FunctionName, nil)
	if err != nil {
		return nil, err
	}
	fam := s.Registry.family(ref)
	if fam.latest == nil {
		return nil, functionNotFound(ref.unqualified())
	}
	all := append([]*version{{}}, fam.published()...) // 0 is $LATEST
	page, next, err := paginate(all, func(v *version) string { return markerOf(v.number) }, in.Marker, in.MaxItems, maxFunctionPage)
	if err != nil {
		return nil, err
	}
	out := &ListVersionsByFunctionResponse{Versions: make([]FunctionConfiguration, 0, len(page)), NextMarker: next}
	for _, v := range page {
		if v.number == 0 {
			ref.qualifier = latest
			out.Versions = append(out.Versions, *fam.latest.rec.show(ref, true))
			continue
		}
		ref.qualifier = strconv.FormatInt(v.number, 10)
		out.Versions = append(out.Versions, *v.rec.show(ref, v.number, true))
	}
	return out, nil
}

// route sets where an alias leads. It checks what can be said without the
// function.
func (r *aliasRecord) route(target string, routing *AliasRoutingConfiguration) error {
	r.Version = target
	if routing != nil {
		if len(routing.AdditionalVersionWeights) > 1 {
			return invalid("Number of items in AdditionalVersionWeights cannot be greater than 1")
		}
		r.Additional, r.Weight = "", 0
		for number, weight := range routing.AdditionalVersionWeights {
			r.Additional, r.Weight = number, weight
		}
	}
	switch {
	case r.Additional == "":
	case target == latest:
		return &lambdad.Error{Code: "InvalidParameterValueException", NoType: true,
			Message: "$LATEST is not supported for an alias pointing to more than 1 version"}
	case r.Additional == target:
		return invalid("Invalid function version %s. Function version %s is already included in routing configuration.", target, target)
	}
	return nil
}

// leads checks that the versions of an alias are there.
func (f *family) leads(ref functionRef, r *aliasRecord) error {
	for _, q := range []string{r.Version, r.Additional} {
		if ref.qualifier = q; q == "" || q == latest && f.latest != nil || f.version(q) != nil {
			continue
		}
		return functionNotFound(ref)
	}
	return nil
}

// aliasRef names an alias: function and name must not have a qualifier of their
// own.
func aliasRef(c *call, function, name string) (functionRef, error) {
	ref, err := resolveRef(c, function, nil)
	ref.qualifier = name
	return ref, err
}

func aliasNotFound(ref functionRef) error {
	return &lambdad.Error{Code: "ResourceNotFoundException", Message: "Cannot find alias arn: " + ref.arn()}
}

func (s *Service) createAlias(c *call, in *CreateAliasRequest) (any, error) {
	ref, err := aliasRef(c, *in.FunctionName, *in.Name)
	if err != nil {
		return nil, err
	}
	rec := aliasRecord{Description: value(in.Description), RevisionID: newID()}
	if err := rec.route(*in.FunctionVersion, in.RoutingConfig); err != nil {
		return nil, err
	}
	made, err := s.Registry.createAlias(c.Context(), ref, rec, func(f *family) error {
		if err := f.leads(ref, &rec); err != nil {
			return err
		}
		if f.alias(*in.Name) != nil {
			return lambdad.Errorf("ResourceConflictException", "Alias already exists: %s", ref.arn())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return made.show(ref, *in.Name), nil
}

func (s *Service) getAlias(c *call, in *GetAliasRequest) (any, error) {
	ref, err := aliasRef(c, *in.FunctionName, *in.Name)
	if err != nil {
		return nil, err
	}
	fam := s.Registry.family(ref)
	a := fam.alias(*in.Name)
	if a == nil {
		return nil, aliasNotFound(ref)
	}
	return a.rec.show(ref, a.name), nil
}

func (s *Service) updateAlias(c *call, in *UpdateAliasRequest) (any, error) {
	ref, err := aliasRef(c, *in.FunctionName, *in.Name)
	if err != nil {
		return nil, err
	}
	missing := &lambdad.Error{Code: "ResourceNotFoundException", Message: "Alias not found: " + ref.arn()}
	made, err := s.Registry.updateAlias(c.Context(), ref, missing, func(f *family, rec *aliasRecord) error {
		if in.RevisionId != nil && *in.RevisionId != rec.RevisionID {
			return errStale
		}
		if err := rec.route(orDefault(in.FunctionVersion, rec.Version), in.RoutingConfig); err != nil {
			return err
		}
		rec.Description, rec.RevisionID = orDefault(in.Description, rec.Description), newID()
		return f.leads(ref, rec)
	})
	if err != nil {
		return nil, err
	}
	return made.show(ref, *in.Name), nil
}

func (s *Service) deleteAlias(c *call, in *DeleteAliasRequest) (any, error) {
	ref, err := aliasRef(c, *in.FunctionName, *in.Name)
	if err != nil {
		return nil, err
	}
	if s.Registry.function(ref) == nil {
		return nil, functionNotFound(ref.unqualified())
	}
	return nil, s.Registry.deleteAlias(c.Context(), ref)
}

func (s *Service) listAliases(c *call, in *ListAliasesRequest) (any, error) {
	ref, err := resolveRef(c, *in.FunctionName, nil)
	if err != nil {
		return nil, err
	}
	fam := s.Registry.family(ref)
	if fam.latest == nil {
		return nil, functionNotFound(ref.unqualified())
	}
	var all []*alias
	for _, a := range fam.aliases {
		if v := value(in.FunctionVersion); fam.alias(a.name) != nil && (v == "" || v == a.rec.Version || v == a.rec.Additional) {
			all = append(all, a)
		}
	}
	page, next, err := paginate(all, func(a *alias) string { return a.name }, in.Marker, in.MaxItems, maxFunctionPage)
	if err != nil {
		return nil, err
	}
	out := &ListAliasesResponse{Aliases: make([]AliasConfiguration, 0, len(page)), NextMarker: next}
	for _, a := range page {
		out.Aliases = append(out.Aliases, *a.rec.show(ref, a.name))
	}
	return out, nil
}
