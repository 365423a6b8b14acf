package lambda

import (
	"cmp"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/lambdad/lambdad"
)

// A family is all that goes by one function's name. Its slices are replaced, or
// grow at their end, so that a copy of it can be read without the lock.
type family struct {
	latest   *function  // nil: no such function
	versions []*version // ascending
	aliases  []*alias   // by name
}

// A function is a record as it is in memory; it is replaced, never modified.
type function struct {
	scope    scope
	name     string
	revision uint64 // of the store
	rec      functionRecord
	live     *lambdad.Version // nil: cannot be invoked now
}

// A version is a record as it is in memory; it is replaced, never modified.
type version struct {
	number   int64
	revision uint64
	rec      versionRecord
	snapshot atomic.Pointer[lambdad.Version] // made when first asked for
}

// An alias is a record as it is in memory; it is replaced, never modified.
type alias struct {
	name     string
	revision uint64
	rec      aliasRecord
}

// resolve is what a version, or none, stands for.
func (f *family) resolve(ref functionRef) (*lambdad.Version, error) {
	switch q := ref.qualifier; {
	case f.latest == nil:
	case q == "" || q == latest:
		if f.latest.live == nil {
			return nil, notInvocable(f.latest.rec.State)
		}
		return f.latest.live, nil
	case isDigits(q):
		v := f.version(q)
		if v == nil {
			break
		}
		if v.rec.State != stateActive {
			return nil, notInvocable(v.rec.State)
		}
		return v.resolve(f.latest), nil
	}
	if ref.qualifier == "" {
		ref.qualifier = latest
	}
	return nil, functionNotFound(ref)
}

func notInvocable(state string) error {
	return lambdad.Errorf("ResourceConflictException",
		"The operation cannot be performed at this time. The function is currently in the following state: %s", state)
}

// resolve is the snapshot of a version: the same pointer whenever it is asked for.
func (v *version) resolve(f *function) *lambdad.Version {
	if s := v.snapshot.Load(); s != nil {
		return s
	}
	v.snapshot.CompareAndSwap(nil, v.rec.Config.version(f.scope, f.name, strconv.FormatInt(v.number, 10)))
	return v.snapshot.Load()
}

// has reports whether a version is one of the function, and published.
func (f *family) has(v *version) bool {
	return f.latest != nil && v.rec.Owner == f.latest.rec.ID && v.number <= f.latest.rec.Last
}

// version returns a published version by its number in digits, or nil.
func (f *family) version(number string) *version {
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return nil
	}
	if i, ok := findVersion(f.versions, n); ok && f.has(f.versions[i]) {
		return f.versions[i]
	}
	return nil
}

// published returns the published versions in ascending order.
func (f *family) published() []*version {
	for i, v := range f.versions {
		if !f.has(v) { // remains of a crash: rare
			all := slices.Clone(f.versions[:i])
			for _, v := range f.versions[i:] {
				if f.has(v) {
					all = append(all, v)
				}
			}
			return all
		}
	}
	return f.versions
}

// alias returns an alias, or nil.
func (f *family) alias(name string) *alias {
	if name == "" || len(f.aliases) == 0 { // nearly always
		return nil
	}
	if i, ok := findAlias(f.aliases, name); ok && f.latest != nil && f.aliases[i].rec.Owner == f.latest.rec.ID {
		return f.aliases[i]
	}
	return nil
}

func findVersion(versions []*version, n int64) (int, bool) {
	return slices.BinarySearchFunc(versions, n, func(v *version, n int64) int { return cmp.Compare(v.number, n) })
}

func findAlias(aliases []*alias, name string) (int, bool) {
	return slices.BinarySearchFunc(aliases, name, func(a *alias, name string) int { return cmp.Compare(a.name, name) })
}

// pending returns the versions that are not ready.
func (f *family) pending() (all []*version) {
	for _, v := range f.versions {
		if v.rec.State == statePending && f.has(v) {
			all = append(all, v)
		}
	}
	return all
}

// remains are the records of no function, and of publishings without an end:
// what their keys end with, and their revisions.
func (f *family) remains() map[string]uint64 {
	var m map[string]uint64
	add := func(key string, revision uint64) {
		if m == nil {
			m = map[string]uint64{}
		}
		m[key] = revision
	}
	for _, v := range f.versions {
		if !f.has(v) {
			add(".version."+strconv.FormatInt(v.number, 10), v.revision)
		}
	}
	for _, a := range f.aliases {
		if f.alias(a.name) == nil {
			add(".alias."+a.name, a.revision)
		}
	}
	return m
}

func (f *function) generation() string {
	if f == nil || f.live == nil {
		return ""
	}
	return f.live.Generation
}

// familyOf returns what goes by a name, made if need be. r.mu is held.
func (r *Registry) familyOf(s scope, name string) *family {
	m := r.functions[s]
	if m == nil {
		m = map[string]*family{}
		r.functions[s] = m
	}
	if m[name] == nil {
		m[name] = &family{}
	}
	return m[name]
}

// dropEmpty forgets a name that nothing goes by. r.mu is held.
func (r *Registry) dropEmpty(s scope, name string) {
	if f := r.functions[s][name]; f != nil && f.latest == nil && len(f.versions) == 0 && len(f.aliases) == 0 {
		delete(r.functions[s], name)
	}
}

// putFunction replaces a function, or removes it if next is nil. r.mu is held.
func (r *Registry) putFunction(s scope, name string, next *function) (changed change) {
	f := r.familyOf(s, name)
	old := f.latest
	switch {
	case next != nil:
		switch {
		case old != nil:
			next.rec.Config.share(&old.rec.Config)
		case len(f.versions) > 0:
			next.rec.Config.share(&f.versions[len(f.versions)-1].rec.Config)
		}
		in := next.rec.Live
		if in == nil && next.rec.State == stateActive {
			in = &next.rec.Config
		}
		switch {
		case in == nil:
		case old.generation() == in.Generation: // the same snapshot stays the same pointer
			next.live = old.live
		default:
			next.live = in.version(s, name, latest)
		}
		r.count(s, &next.rec.Config)
		next.rec.Live.digests(r.ref)
		if old == nil {
			i, _ := slices.BinarySearch(r.names[s], name)
			r.names[s] = slices.Insert(r.names[s], i, name)
		}
	case old != nil:
		i, _ := slices.BinarySearch(r.names[s], name)
		r.names[s] = slices.Delete(r.names[s], i, i+1)
	}
	f.latest = next
	if old != nil {
		r.discount(s, &old.rec.Config)
		old.rec.Live.digests(r.unref)
		if next == nil || next.rec.ID != old.rec.ID {
			for _, v := range f.versions {
				if v.rec.Owner == old.rec.ID {
					changed.gone = append(changed.gone, v.rec.Config.Generation)
				}
			}
		}
	}
	r.dropEmpty(s, name)
	changed.latest = old.generation() != "" && old.generation() != next.generation()
	return changed
}

// putVersion replaces a published version, or removes it if next is nil. r.mu is
// held.
func (r *Registry) putVersion(k recordKey, next *version) (changed change) {
	f := r.familyOf(k.scope, k.name)
	i, found := findVersion(f.versions, k.number)
	var old *version
	if found {
		old = f.versions[i]
		r.discount(k.scope, &old.rec.Config)
		if next == nil || next.rec.Config.Generation != old.rec.Config.Generation {
			if f.has(old) { // else that was told with its function, or it never ran
				changed.gone = []string{old.rec.Config.Generation}
			}
		} else {
			next.snapshot.Store(old.snapshot.Load())
		}
	}
	switch {
	case next == nil && found:
		f.versions = slices.Delete(slices.Clone(f.versions), i, i+1)
	case next == nil:
	case found:
		next.rec.Config.share(&old.rec.Config)
		f.versions = slices.Clone(f.versions)
		f.versions[i] = next
	case i == len(f.versions):
		if i > 0 {
			next.rec.Config.share(&f.versions[i-1].rec.Config)
		}
		f.versions = append(f.versions, next)
	default:
		next.rec.Config.share(&f.versions[i].rec.Config)
		f.versions = slices.Insert(slices.Clone(f.versions), i, next)
	}
	if next != nil {
		if f.latest != nil {
			next.rec.Config.share(&f.latest.rec.Config)
			if next.rec.Owner == f.latest.rec.ID {
				next.rec.Owner = f.latest.rec.ID
			}
		}
		r.count(k.scope, &next.rec.Config)
	}
	r.dropEmpty(k.scope, k.name)
	return changed
}

// putAlias replaces an alias, or removes it if next is nil. r.mu is held.
func (r *Registry) putAlias(k recordKey, next *alias) {
	f := r.familyOf(k.scope, k.name)
	i, found := findAlias(f.aliases, k.alias)
	f.aliases = slices.Clone(f.aliases)
	switch {
	case next == nil && found:
		f.aliases = slices.Delete(f.aliases, i, i+1)
	case next == nil:
	case found:
		f.aliases[i] = next
	default:
		f.aliases = slices.Insert(f.aliases, i, next)
	}
	r.dropEmpty(k.scope, k.name)
}

// count adds a configuration to what is referred to and stored. r.mu is held.
func (r *Registry) count(s scope, c *configRecord) {
	c.digests(r.ref)
	r.used[s] += c.Code.Size
}

// discount undoes count. r.mu is held.
func (r *Registry) discount(s scope, c *configRecord) {
	c.digests(r.unref)
	r.used[s] -= c.Code.Size
}

// ref counts a reference. r.mu is held.
func (r *Registry) ref(digest string) { r.refs[digest]++ }

// unref counts a reference less. r.mu is held.
func (r *Registry) unref(digest string) {
	if r.refs[digest]--; r.refs[digest] == 0 {
		delete(r.refs, digest)
	}
}
