package lambda

import (
	"context"
	"maps"
	"strings"

	"github.com/lambdad/lambdad"
)

// checkTags refuses tags that a resource cannot have: more than fifty with those
// it has, or a name that is the service's own.
func checkTags(has, more map[string]string) error {
	n := len(has)
	for key := range more {
		if strings.HasPrefix(strings.ToLower(key), "aws:") {
			return invalid("The tag key %s begins with aws:, which is reserved; choose another.", key)
		}
		if _, ok := has[key]; !ok {
			n++
		}
	}
	if n > maxTags {
		return invalid("Number of tags exceeds resource tag limit.")
	}
	return nil
}

// A tagged resource gives its tags and takes what change makes of them.
type tagged struct {
	tags   map[string]string
	change func(context.Context, func(map[string]string) (map[string]string, error)) error
}

// taggedResource finds what an ARN names.
func (s *Service) taggedResource(c *call, arn string) (*tagged, error) {
	parts := strings.SplitN(arn, ":", 7) // the pattern has at least as many
	switch parts[5] {
	case "function":
		ref, err := resolveRef(c, arn, nil)
		if err != nil {
			return nil, err
		}
		if ref.qualifier != "" {
			return nil, invalid("Tags on function aliases and versions are not supported. Please specify a function ARN.")
		}
		f := s.Registry.function(ref)
		if f == nil {
			return nil, functionNotFound(ref)
		}
		return &tagged{f.rec.Tags, func(ctx context.Context, change func(map[string]string) (map[string]string, error)) error {
			_, err := s.Registry.update(ctx, ref, func(rec *functionRecord) (err error) {
				if rec.Tags, err = change(rec.Tags); err == nil {
					rec.RevisionID = newID()
				}
				return err
			})
			return err
		}}, nil
	case "code-signing-config":
		cfg, err := s.signingConfig(c, arn)
		if err != nil {
			return nil, err
		}
		return &tagged{cfg.rec.Tags, func(ctx context.Context, change func(map[string]string) (map[string]string, error)) error {
			_, err := s.Registry.updateSigning(ctx, cfg.scope, cfg.id, func(rec *signingRecord) (err error) {
				rec.Tags, err = change(rec.Tags)
				return err
			})
			return err
		}}, nil
	case "event-source-mapping":
		return nil, lambdad.Errorf("ResourceNotFoundException", "Event source mapping not found: %s", arn)
	case "capacity-provider":
		return nil, lambdad.Errorf("ResourceNotFoundException", "Capacity provider not found: %s", arn)
	}
	return nil, invalid("Tags on layers are not supported.")
}

func (s *Service) listTags(c *call, in *ListTagsRequest) (any, error) {
	t, err := s.taggedResource(c, *in.Resource)
	if err != nil {
		return nil, err
	}
	if t.tags == nil {
		t.tags = map[string]string{} // an empty map is shown
	}
	return &ListTagsResponse{Tags: t.tags}, nil
}

func (s *Service) tagResource(c *call, in *TagResourceRequest) (any, error) {
	t, err := s.taggedResource(c, *in.Resource)
	if err != nil {
		return nil, err
	}
	if len(in.Tags) == 0 {
		return nil, invalid("An error occurred and the request cannot be processed.")
	}
	return nil, t.change(c.Context(), func(tags map[string]string) (map[string]string, error) {
		if err := checkTags(tags, in.Tags); err != nil {
			return nil, err
		}
		next := maps.Clone(tags)
		if next == nil {
			next = map[string]string{}
		}
		maps.Copy(next, in.Tags)
		return next, nil
	})
}

func (s *Service) untagResource(c *call, in *UntagResourceRequest) (any, error) {
	t, err := s.taggedResource(c, *in.Resource)
	if err != nil {
		return nil, err
	}
	return nil, t.change(c.Context(), func(tags map[string]string) (map[string]string, error) {
		next := maps.Clone(tags)
		for _, key := range in.TagKeys {
			delete(next, key)
		}
		if len(next) == 0 {
			next = nil
		}
		return next, nil
	})
}
