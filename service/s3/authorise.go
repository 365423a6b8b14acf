package s3

import (
	"errors"
	"strings"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/policy"
)

// Resource implements aws.ResourceNamer.
func (s *Service) Resource(r *aws.Request) string {
	t, ok := r.Route.(*target)
	if !ok || t.bucket == "" {
		return "*"
	}
	if r.Operation == "DeleteObjects" {
		return "" // each object is asked for
	}
	return resourceARN(t.bucket, t.key)
}

func resourceARN(bucket, key string) string {
	if key == "" {
		return "arn:aws:s3:::" + bucket
	}
	return "arn:aws:s3:::" + bucket + "/" + key
}

// A parsedPolicy is a bucket policy as evaluated.
type parsedPolicy struct {
	text string
	doc  *policy.Document
}

// ResourcePolicy implements aws.PolicyKeeper: the policy of the bucket.
func (s *Service) ResourcePolicy(_ *aws.Request, resource string) *policy.Document {
	name, _, _ := strings.Cut(strings.TrimPrefix(resource, "arn:aws:s3:::"), "/")
	return s.BucketPolicy(name)
}

// BucketPolicy is the policy on a bucket and its objects, or nil.
func (s *Service) BucketPolicy(bucket string) *policy.Document {
	r, err := s.index.bucket(bucket)
	text := r.Documents["policy"]
	if err != nil || text == "" {
		return nil
	}
	s.policiesMu.Lock()
	defer s.policiesMu.Unlock()
	p, ok := s.policies[bucket]
	if ok && p.text == text {
		return p.doc
	}
	doc, err := policy.Parse(text, policy.ForResource)
	if err != nil {
		s.cfg.Logger.Error("the policy of a bucket could not be read; it allows nothing", "bucket", bucket, "err", err)
		return nil
	}
	p = parsedPolicy{text, doc.WithName("arn:aws:s3:::" + bucket + " bucket policy")}
	s.policies[bucket] = p
	return p.doc
}

// acceptPolicy checks a bucket policy that is put.
func acceptPolicy(body []byte) error {
	if len(body) > 20<<10 {
		return lambdad.Errorf("PolicyTooLarge", "Policy exceeds the maximum allowed document size.")
	}
	_, err := policy.Parse(string(body), policy.ForResource)
	var known *lambdad.Error
	if errors.As(err, &known) {
		return lambdad.Errorf("MalformedPolicy", "%s", known.Message)
	}
	return err
}
