package ecr

import (
	"cmp"
	"context"
	"errors"
	"strings"

	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/policy"
	"github.com/lambdad/lambdad/store"
)

// What policies decide about: the names of repositories, their own policies and the
// condition keys of ECR.

// Resource implements aws.ResourceNamer. Of a request it reads the one member that
// its operation will read, so that both see the same: another that cannot be read must
// not make the decision one about something else.
func (s *Service) Resource(r *aws.Request) string {
	switch r.Operation {
	case "GetAuthorizationToken":
		return "*"
	case "ListTagsForResource", "TagResource", "UntagResource":
		var in ListTagsForResourceRequest
		_ = aws.DecodeJSON(r.Body, &in) // what cannot be read is refused later
		return cmp.Or(value(in.ResourceARN), "*")
	case "DescribeRepositories":
		var in DescribeRepositoriesRequest
		_ = aws.DecodeJSON(r.Body, &in)
		switch len(in.RepositoryNames) {
		case 0:
			return ownOr(r, in.RegistryID, everyRepository).arn()
		case 1:
			return ownOr(r, in.RegistryID, in.RepositoryNames[0]).arn()
		}
		return "" // each is asked for
	}
	var in RepositoryRequest
	_ = aws.DecodeJSON(r.Body, &in)
	if value(in.RepositoryName) == "" {
		return "*"
	}
	return ownOr(r, in.RegistryID, *in.RepositoryName).arn()
}

// everyRepository stands for a name where all repositories are listed.
const everyRepository = "*"

// ownOr names a repository of the caller, or of the registry he gives.
func ownOr(r *aws.Request, registryID *string, name string) repoRef {
	return repoRef{cmp.Or(value(registryID), r.Identity.Account), r.Region, name}
}

// of is the repository that an operation is about. That of another account must be
// open to the caller by its own policy.
func (s *Service) of(r *aws.Request, registryID *string, name string) (repoRef, error) {
	ref := ownOr(r, registryID, name)
	if ref.account != r.Identity.Account {
		return ref, s.decide(r, r.Action, ref)
	}
	return ref, nil // decided by the Mux
}

// decide decides about one of several repositories that a request is about.
func (s *Service) decide(r *aws.Request, action string, ref repoRef) error {
	defer func(route any) { r.Route = route }(r.Route)
	r.Route = ref // Conditions are of this one
	return r.Authorize(action, ref.arn(), s.ResourcePolicy(r, ref.arn()), nil)
}

// parseARN takes the name of a repository apart.
func parseARN(arn string) (ref repoRef, ok bool) {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) != 6 || parts[0] != "arn" || parts[2] != "ecr" {
		return ref, false
	}
	name, ok := strings.CutPrefix(parts[5], "repository/")
	return repoRef{parts[4], parts[3], name}, ok && repositoryName(name)
}

// A guard is what decisions need of a repository.
type guard struct {
	revision uint64
	policy   *policy.Document // nil: none
	tags     map[string]string
}

// maxGuards bounds the guards kept.
const maxGuards = 4096

// unreadable stands for a policy that cannot be read: nobody knows what it denied.
var unreadable = policy.MustParse("an unreadable repository policy",
	`{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":"*"}]}`, policy.ForRepository)

// guard finds the policy and the tags that a repository has now.
func (s *Service) guard(ctx context.Context, ref repoRef) guard {
	rec, err := s.Store.Get(ctx, ref.key())
	if errors.Is(err, store.ErrNotFound) {
		return guard{}
	}
	s.mu.Lock()
	g, ok := s.guards[ref]
	s.mu.Unlock()
	if ok && err == nil && g.revision == rec.Revision {
		return g
	}
	repo := &repository{ref: ref}
	if err == nil {
		err = repo.decode(rec)
	}
	if err != nil {
		s.Logger.Error("a repository could not be read; nobody but the account's root is given it", "repository", ref.name, "err", err)
		return guard{policy: unreadable}
	}
	g = guard{revision: rec.Revision, tags: repo.rec.Tags}
	if repo.rec.Policy != "" {
		doc, err := policy.Parse(repo.rec.Policy, policy.ForRepository)
		if err != nil {
			s.Logger.Error("the policy of a repository could not be read; it denies everything", "repository", ref.name, "err", err)
			doc = unreadable
		}
		g.policy = doc.WithName(ref.arn() + " repository policy")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.guards) >= maxGuards {
		clear(s.guards)
	}
	s.guards[ref] = g
	return g
}

// ResourcePolicy implements aws.PolicyKeeper: the policy of a repository. Without a
// request it is that of this moment all the same.
func (s *Service) ResourcePolicy(r *aws.Request, resource string) *policy.Document {
	ref, ok := parseARN(resource)
	if !ok {
		return nil
	}
	ctx := context.Background()
	if r != nil {
		ctx = r.Context()
	}
	return s.guard(ctx, ref).policy
}

// AuthorizePull asks decide for what a pull from a repository needs, which may be one
// that does not exist.
func (s *Service) AuthorizePull(ctx context.Context, account, region, name string, decide func(action, repository string, on *policy.Document, keys policy.KeySet) error) error {
	ref := repoRef{account, region, name}
	g := s.guard(ctx, ref)
	for _, action := range []string{"ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"} {
		if err := decide(action, ref.arn(), g.policy, g.keys()); err != nil {
			return err
		}
	}
	return nil
}

// keys are the condition keys of a repository.
func (g guard) keys() policy.KeySet {
	set := policy.KeySet{"aws:resourcetag/*": nil, "ecr:resourcetag/*": nil}
	for k, v := range g.tags {
		set["aws:resourcetag/"+strings.ToLower(k)] = []string{v}
		set["ecr:resourcetag/"+strings.ToLower(k)] = []string{v}
	}
	return set
}

// Conditions implements aws.Conditioner.
func (s *Service) Conditions(r *aws.Request) policy.KeySet {
	var g guard
	ref, ok := r.Route.(repoRef)
	if !ok {
		ref, ok = parseARN(s.Resource(r))
	}
	if ok {
		g = s.guard(r.Context(), ref)
	}
	set := g.keys()
	set["aws:requesttag/*"], set["aws:tagkeys"] = nil, nil
	switch r.Operation {
	case "CreateRepository", "TagResource":
		var in struct {
			Tags []Tag `json:"tags"`
		}
		_ = aws.DecodeJSON(r.Body, &in) // what cannot be read is refused later
		for _, t := range in.Tags {
			set["aws:requesttag/"+strings.ToLower(value(t.Key))] = []string{value(t.Value)}
			set["aws:tagkeys"] = append(set["aws:tagkeys"], value(t.Key))
		}
	case "UntagResource":
		var in struct {
			TagKeys []string `json:"tagKeys"`
		}
		_ = aws.DecodeJSON(r.Body, &in)
		set["aws:tagkeys"] = in.TagKeys
	}
	return set
}
