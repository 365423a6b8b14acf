package lambda

import (
	"math"
	"slices"
	"strconv"

	"github.com/lambdad/lambdad"
)

// minUnreserved is what an account keeps for functions without a reservation.
const minUnreserved = 100

// A share is what a function has of its account's concurrency, and what it takes
// from the others.
type share struct {
	lambdad.Concurrency
	set int64
}

func (s share) equal(t share) bool {
	return s.set == t.set && slices.Equal(s.Provisioned, t.Provisioned) &&
		(s.Reserved == nil) == (t.Reserved == nil) && (s.Reserved == nil || *s.Reserved == *t.Reserved)
}

// share is what the records say.
func (f *family) share() (s share) {
	if f.latest == nil {
		return s
	}
	total := f.provisioned()
	s.set = total
	if n := f.latest.rec.Reserved; n != nil {
		s.set, s.Reserved = *n, new(int(*n))
	}
	if total == 0 { // nearly always
		return s
	}
	counts, asked := map[*version]int64{}, map[*version]string{}
	for _, v := range f.versions {
		if v.rec.Provisioned != nil && f.has(v) {
			counts[v], asked[v] = v.rec.Provisioned.Requested, strconv.FormatInt(v.number, 10)
		}
	}
	for _, a := range f.aliases {
		if a.rec.Provisioned != nil && f.alias(a.name) != nil {
			for v, n := range f.divide(&a.rec) {
				counts[v], asked[v] = counts[v]+n, a.name
			}
		}
	}
	for _, v := range f.versions {
		if n := counts[v]; n > 0 && v.rec.State == stateActive {
			s.Provisioned = append(s.Provisioned, lambdad.Provision{Version: v.resolve(f.latest), Count: int(n), Qualifier: asked[v]})
		}
	}
	return s
}

// divide is how many environments of which versions an alias is provisioned with,
// by its weights.
func (f *family) divide(a *aliasRecord) map[*version]int64 {
	out := map[*version]int64{}
	more := int64(0)
	if a.Additional != "" {
		more = int64(math.Round(a.Weight * float64(a.Provisioned.Requested)))
	}
	for number, n := range map[string]int64{a.Version: a.Provisioned.Requested - more, a.Additional: more} {
		if v := f.version(number); v != nil {
			out[v] = n
		}
	}
	return out
}

// provisioned is the function's total provisioned concurrency.
func (f *family) provisioned() (total int64) {
	for _, v := range f.versions {
		if v.rec.Provisioned != nil && f.has(v) {
			total += v.rec.Provisioned.Requested
		}
	}
	for _, a := range f.aliases {
		if a.rec.Provisioned != nil && f.alias(a.name) != nil {
			total += a.rec.Provisioned.Requested
		}
	}
	return total
}

// reshare takes over what a record that has changed says of a function's share, and
// reports whether that is another one. What is known of a function that is gone is
// forgotten everywhere. r.mu is held.
func (r *Registry) reshare(k recordKey) bool {
	if k.kind != kindFunction && k.kind != kindVersion && k.kind != kindAlias {
		return false
	}
	f := r.functions[k.scope][k.name]
	if f == nil {
		f = &family{}
	}
	old, next := r.shares[k.scope][k.name], f.share()
	switch {
	case next.equal(share{}):
		delete(r.shares[k.scope], k.name)
	case r.shares[k.scope] == nil:
		r.shares[k.scope] = map[string]share{k.name: next}
	default:
		r.shares[k.scope][k.name] = next
	}
	return !next.equal(old) || k.kind == kindFunction && f.latest == nil
}

func (r *Registry) share(s scope, name string) share {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.shares[s][name]
}

// unreserved is what functions without a reservation have of limit, but for what
// one function takes from it.
func (r *Registry) unreserved(s scope, limit int64, but string) int64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for name, share := range r.shares[s] {
		if name != but {
			limit -= share.set
		}
	}
	return limit
}

// follow tells f what every function has, now and whenever that changes. Calls come
// one at a time, each with what holds at that moment.
func (r *Registry) follow(f func(account, region, function string, c lambdad.Concurrency)) {
	r.hooks.Lock()
	defer r.hooks.Unlock()
	r.mu.RLock()
	all := map[functionRef]lambdad.Concurrency{}
	for s, m := range r.shares {
		for name, share := range m {
			all[functionRef{account: s.account, region: s.region, name: name}] = share.Concurrency
		}
	}
	r.mu.RUnlock()
	for ref, c := range all {
		f(ref.account, ref.region, ref.name, c)
	}
	r.onShare = f
}

// errTooFew refuses what would leave the account too little.
func errTooFew(what string) error {
	return &lambdad.Error{Code: "InvalidParameterValueException", NoType: true,
		Message: "Specified " + what + " for function decreases account's UnreservedConcurrentExecution below its minimum value of [" +
			strconv.Itoa(minUnreserved) + "]."}
}

func (s *Service) putFunctionConcurrency(c *call, in *PutFunctionConcurrencyRequest) (any, error) {
	ref, err := resolveRef(c, *in.FunctionName, nil)
	if err != nil {
		return nil, err
	}
	if s.Registry.function(ref) == nil {
		ref.qualifier = latest
		return nil, functionNotFound(ref)
	}
	if _, ref, err = s.writable(c, *in.FunctionName); err != nil {
		return nil, err
	}
	n := *in.ReservedConcurrentExecutions
	s.Registry.sharing.Lock()
	defer s.Registry.sharing.Unlock()
	_, err = s.Registry.update(c.Context(), ref, func(rec *functionRecord) error {
		fam := s.Registry.family(ref)
		if total := fam.provisioned(); n < total {
			return &lambdad.Error{Code: "InvalidParameterValueException", NoType: true, // two spaces, as recorded
				Message: " ReservedConcurrentExecutions  " + strconv.FormatInt(n, 10) +
					" should not be lower than function's total provisioned concurrency [" + strconv.FormatInt(total, 10) + "]."}
		}
		if s.Registry.unreserved(scope{ref.account, ref.region}, s.Concurrency, ref.name)-n < minUnreserved {
			return errTooFew("ReservedConcurrentExecutions")
		}
		rec.Reserved = &n
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &Concurrency{ReservedConcurrentExecutions: &n}, nil
}

func (s *Service) getFunctionConcurrency(c *call, in *GetFunctionConcurrencyRequest) (any, error) {
	f, _, err := s.writable(c, *in.FunctionName)
	if err != nil {
		return nil, err
	}
	return &GetFunctionConcurrencyResponse{ReservedConcurrentExecutions: f.rec.Reserved}, nil
}

func (s *Service) deleteFunctionConcurrency(c *call, in *DeleteFunctionConcurrencyRequest) (any, error) {
	_, ref, err := s.writable(c, *in.FunctionName)
	if err != nil {
		return nil, err
	}
	s.Registry.sharing.Lock()
	defer s.Registry.sharing.Unlock()
	_, err = s.Registry.update(c.Context(), ref, func(rec *functionRecord) error {
		rec.Reserved = nil
		return nil
	})
	return nil, err
}
