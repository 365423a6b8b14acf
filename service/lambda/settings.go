package lambda

// A runtimeRecord is the runtime management of a version; the zero value is Auto.
type runtimeRecord struct {
	UpdateOn string `json:"updateOn,omitempty"` // Auto, FunctionUpdate or Manual
	ARN      string `json:"arn,omitempty"`      // of the runtime version, with Manual
}

// runtimeTarget finds $LATEST or a version, and names it with its qualifier.
func (s *Service) runtimeTarget(c *call, name string, qualifier *string) (*view, error) {
	v, err := s.read(c, name, qualifier)
	if err != nil {
		return nil, err
	}
	switch q := v.ref.qualifier; {
	case v.config().Image != nil:
		return nil, invalid("Runtime management is not for functions of PackageType Image: an image brings its runtime.")
	case q == "":
		v.ref.qualifier = latest
	case q != latest && !isDigits(q):
		return nil, invalid("Runtime management is of $LATEST and of published versions, not of the alias %s.", q)
	}
	return v, nil
}

func (s *Service) getRuntimeManagementConfig(c *call, in *GetRuntimeManagementConfigRequest) (any, error) {
	v, err := s.runtimeTarget(c, *in.FunctionName, in.Qualifier)
	if err != nil {
		return nil, err
	}
	rec := v.latest.rec.RuntimeManagement
	if v.version != nil {
		rec = v.version.rec.RuntimeManagement
	}
	out := &GetRuntimeManagementConfigResponse{UpdateRuntimeOn: &rec.UpdateOn, RuntimeVersionArn: orNil(rec.ARN), FunctionArn: new(v.ref.arn())}
	if rec.UpdateOn == "" {
		out.UpdateRuntimeOn = new("Auto")
	}
	return out, nil
}

// putRuntimeManagementConfig stores when a function takes a new version of its
// runtime. A host has one version of each, so there is nothing to choose from: the
// only version that Manual can name is the one that runs.
func (s *Service) putRuntimeManagementConfig(c *call, in *PutRuntimeManagementConfigRequest) (any, error) {
	v, err := s.runtimeTarget(c, *in.FunctionName, in.Qualifier)
	if err != nil {
		return nil, err
	}
	rec := runtimeRecord{UpdateOn: *in.UpdateRuntimeOn, ARN: value(in.RuntimeVersionArn)}
	switch have := v.config().RuntimeVersion; {
	case rec.UpdateOn == "Manual" && rec.ARN == "":
		return nil, invalid("You must specify a runtime version ARN when UpdateRuntimeOn is Manual.")
	case rec.UpdateOn != "Manual" && rec.ARN != "":
		return nil, invalid("A runtime version ARN can be given only when UpdateRuntimeOn is Manual, not %s.", rec.UpdateOn)
	case rec.ARN != "" && rec.ARN != have:
		return nil, invalid("The runtime version %s is not on this host, which runs %s.", rec.ARN, have)
	}
	if v.version != nil {
		_, err = s.Registry.updateVersion(c.Context(), v.ref, func(r *versionRecord) error {
			r.RuntimeManagement = rec
			return nil
		})
	} else {
		_, err = s.Registry.update(c.Context(), v.ref.unqualified(), func(r *functionRecord) error {
			if err := changeable(r, v.ref.unqualified(), nil); err != nil {
				return err
			}
			r.RuntimeManagement = rec
			return nil
		})
	}
	if err != nil {
		return nil, err
	}
	return &PutRuntimeManagementConfigResponse{UpdateRuntimeOn: &rec.UpdateOn, RuntimeVersionArn: orNil(rec.ARN), FunctionArn: new(v.ref.arn())}, nil
}

func (s *Service) getFunctionRecursionConfig(c *call, in *GetFunctionRecursionConfigRequest) (any, error) {
	f, _, err := s.writable(c, *in.FunctionName)
	if err != nil {
		return nil, err
	}
	out := &GetFunctionRecursionConfigResponse{RecursiveLoop: &f.rec.RecursiveLoop}
	if f.rec.RecursiveLoop == "" {
		out.RecursiveLoop = new("Terminate")
	}
	return out, nil
}

// putFunctionRecursionConfig stores what happens to loops through queues, topics
// and buckets. AWS, too, sees only some of them.
func (s *Service) putFunctionRecursionConfig(c *call, in *PutFunctionRecursionConfigRequest) (any, error) {
	_, ref, err := s.writable(c, *in.FunctionName)
	if err != nil {
		return nil, err
	}
	_, err = s.Registry.update(c.Context(), ref, func(rec *functionRecord) error {
		rec.RecursiveLoop = *in.RecursiveLoop
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &PutFunctionRecursionConfigResponse{RecursiveLoop: in.RecursiveLoop}, nil
}
