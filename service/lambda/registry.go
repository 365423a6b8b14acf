package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/store"
)

// scope is a namespace of names.
type scope struct{ account, region string }

// RegistryConfig is what a Registry needs.
type RegistryConfig struct {
	Store store.Store
	// OnChange is called when other code or configuration of a function came
	// into force, and with keepGeneration "" when it is gone. Calls come one at a
	// time, each with what holds at that moment. Default: nothing.
	OnChange func(account, region, function, keepGeneration string)
	// OnVersionGone is called when a published version is gone, with the
	// generation it had. Default: nothing.
	OnVersionGone func(account, region, function, generation string)
	Logger        *slog.Logger     // default: discard
	Now           func() time.Time // default time.Now
}

// A Registry knows all functions, their versions and aliases, and all layers. It holds them in memory, follows
// the record store by a watch, and is the only writer of its records: a write is
// compare-and-set, and is in memory when it returns, so that whoever was
// acknowledged a change reads it. It implements frontend.Versions.
type Registry struct {
	store         store.Store
	updates       <-chan store.Update
	onChange      func(account, region, function, keepGeneration string)
	onVersionGone func(account, region, function, generation string)
	onShare       func(account, region, function string, c lambdad.Concurrency) // guarded by hooks; see follow
	log           *slog.Logger
	now           func() time.Time

	// What concerns several records of one function is done by one at a time.
	// Taken before all others.
	seed     maphash.Seed
	families [64]sync.Mutex

	// Who changes what functions have of their account's concurrency holds this, and
	// takes it first.
	sharing sync.Mutex

	hooks sync.Mutex // held while OnChange and OnVersionGone run; taken without mu

	mu        sync.RWMutex // guards the following
	functions map[scope]map[string]*family
	names     map[scope][]string // of functions, sorted
	layers    map[scope]map[string]*layer
	signings  map[scope]map[string]*signing
	used      map[scope]int64 // bytes of code and layers
	shares    map[scope]map[string]share
	// gone holds the last revision of records deleted here, until the watch has
	// come as far: it may still bring what was before.
	gone map[string]uint64
	refs map[string]int // digests in records

	// A digest gets into a record only while it is pinned, so that holding this
	// lock, and not mu, which every invocation needs, is enough to remove archives.
	archives sync.Mutex     // guards the following; taken before mu
	pins     map[string]int // digests about to be in records
	// idleSince is when a digest was seen neither referred to nor pinned.
	idleSince map[string]time.Time
}

// NewRegistry reads all records and returns a Registry that follows them until
// ctx ends. Run must be running for changes made elsewhere to be seen.
func NewRegistry(ctx context.Context, cfg RegistryConfig) (*Registry, error) {
	r := &Registry{
		store: cfg.Store, onChange: cfg.OnChange, onVersionGone: cfg.OnVersionGone, log: cfg.Logger, now: cfg.Now,
		seed:      maphash.MakeSeed(),
		functions: map[scope]map[string]*family{},
		names:     map[scope][]string{},
		signings:  map[scope]map[string]*signing{},
		used:      map[scope]int64{},
		shares:    map[scope]map[string]share{},
		layers:    map[scope]map[string]*layer{},
		gone:      map[string]uint64{},
		refs:      map[string]int{},
		pins:      map[string]int{},
		idleSince: map[string]time.Time{},
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.now == nil {
		r.now = time.Now
	}
	updates, err := cfg.Store.Watch(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("lambda: watching the record store: %w", err)
	}
	r.updates = updates
	for {
		select {
		case u, ok := <-updates:
			if !ok {
				return nil, fmt.Errorf("lambda: reading the record store: %w", context.Cause(ctx))
			}
			if u.Key == "" {
				return r, nil
			}
			r.apply(u)
		case <-ctx.Done():
			return nil, fmt.Errorf("lambda: reading the record store: %w", context.Cause(ctx))
		}
	}
}

// Run takes over changes until ctx ends.
func (r *Registry) Run(ctx context.Context) error {
	for {
		select {
		case u, ok := <-r.updates:
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return errors.New("lambda: the watch of the record store ended")
			}
			r.apply(u)
		case <-ctx.Done():
			return nil
		}
	}
}

// Resolve implements frontend.Versions. It answers from memory.
func (r *Registry) Resolve(_ context.Context, account, region, name, qualifier string) (lambdad.Target, error) {
	ref := functionRef{account, region, name, qualifier}
	fam := r.family(ref)
	a := fam.alias(qualifier)
	if a == nil {
		v, err := fam.resolve(ref)
		return lambdad.Target{Version: v}, err
	}
	t := lambdad.Target{Weight: a.rec.Weight}
	var err error
	ref.qualifier = a.rec.Version
	if t.Version, err = fam.resolve(ref); err == nil && a.rec.Additional != "" {
		ref.qualifier = a.rec.Additional
		t.Additional, err = fam.resolve(ref)
	}
	return t, err
}

// function returns a function, or nil.
func (r *Registry) function(ref functionRef) *function { return r.family(ref).latest }

// family returns what goes by a function's name.
func (r *Registry) family(ref functionRef) family {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if f := r.functions[scope{ref.account, ref.region}][ref.name]; f != nil {
		return *f
	}
	return family{}
}

// list returns up to n functions of an account and region, by name, from the name
// from on.
func (r *Registry) list(account, region, from string, n int) []family {
	r.mu.RLock()
	defer r.mu.RUnlock()
	s := scope{account, region}
	names := r.names[s]
	i, _ := slices.BinarySearch(names, from)
	all := make([]family, 0, min(n, len(names)-i))
	for ; i < len(names) && len(all) < n; i++ {
		all = append(all, *r.functions[s][names[i]])
	}
	return all
}

// unsettled returns the functions whose last change is not in force, or a version
// of which is not.
func (r *Registry) unsettled() (refs []functionRef) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for s, m := range r.functions {
		for name, f := range m {
			if f.latest != nil && (f.latest.rec.inProgress() || len(f.pending()) > 0) {
				refs = append(refs, functionRef{account: s.account, region: s.region, name: name})
			}
		}
	}
	return refs
}

// lock keeps others from changing several records of a function, until unlock.
func (r *Registry) lock(ref functionRef) (unlock func()) {
	m := &r.families[maphash.String(r.seed, ref.name)%uint64(len(r.families))]
	m.Lock()
	return m.Unlock
}

// maxAttempts bounds how often a change is tried against others.
const maxAttempts = 20

// write stores a record (revision 0: as a new one) and takes it into memory.
func (r *Registry) write(ctx context.Context, key string, rec any, revision uint64) (uint64, error) {
	value, err := json.Marshal(rec)
	if err != nil {
		return 0, fmt.Errorf("lambda: encoding record %s: %w", key, err)
	}
	if revision == 0 {
		revision, err = r.store.Create(ctx, key, value)
	} else {
		revision, err = r.store.Update(ctx, key, value, revision)
	}
	if err != nil {
		return 0, err
	}
	r.apply(store.Update{Record: store.Record{Key: key, Value: value, Revision: revision}})
	return revision, nil
}

// amend writes what try makes of the newest record under key: try returns the
// record and the revision it replaces. It may be called more than once.
func (r *Registry) amend(ctx context.Context, key, arn string, try func() (rec any, revision uint64, err error)) error {
	for range maxAttempts {
		rec, revision, err := try()
		if err != nil {
			return err
		}
		_, err = r.write(ctx, key, rec, revision)
		if errors.Is(err, store.ErrConflict) {
			if err := r.refresh(ctx, key); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return storeError(err)
		}
		return nil
	}
	return errContended(arn)
}

// create writes a new function, and with publish its first version.
func (r *Registry) create(ctx context.Context, ref functionRef, rec functionRecord, publish bool) (*functionRecord, *version, error) {
	defer r.lock(ref)()
	exists := lambdad.Errorf("ResourceConflictException", "Function already exist: %s", ref.name)
	if r.function(ref) != nil {
		return nil, nil, exists
	}
	rec.ID = newID()
	var v *version
	if publish {
		var err error
		if v, err = r.prepare(ctx, ref, &rec, nil); err != nil {
			return nil, nil, err
		}
	}
	_, err := r.write(ctx, functionKey(ref.account, ref.region, ref.name), rec, 0)
	if errors.Is(err, store.ErrConflict) {
		return nil, nil, exists
	}
	if err != nil {
		return nil, nil, storeError(err)
	}
	return &rec, v, nil
}

// update writes what change makes of the function's record; its error is
// returned as it is. Change may be called more than once, each time with a newer
// record.
func (r *Registry) update(ctx context.Context, ref functionRef, change func(*functionRecord) error) (*functionRecord, error) {
	var rec functionRecord
	err := r.amend(ctx, functionKey(ref.account, ref.region, ref.name), ref.arn(), func() (any, uint64, error) {
		f := r.function(ref)
		if f == nil {
			return nil, 0, functionNotFound(ref.unqualified())
		}
		rec = f.rec
		return &rec, f.revision, change(&rec)
	})
	return &rec, err
}

// remove deletes a record that was last seen at revision, from store and memory.
func (r *Registry) remove(ctx context.Context, key string, revision uint64) error {
	if err := r.store.Delete(ctx, key, 0); err != nil {
		return storeError(err)
	}
	r.forget(key, revision)
	return nil
}

// delete removes a function with its versions and aliases. When its own record is
// gone the others are remains, which are swept at the next start at the latest.
func (r *Registry) delete(ctx context.Context, ref functionRef) error {
	defer r.lock(ref)()
	key := functionKey(ref.account, ref.region, ref.name)
	for range maxAttempts {
		f := r.function(ref)
		if f == nil {
			return functionNotFound(ref.unqualified())
		}
		err := r.store.Delete(ctx, key, f.revision)
		if errors.Is(err, store.ErrConflict) {
			if err := r.refresh(ctx, key); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return storeError(err)
		}
		r.forget(key, f.revision)
		if err := r.sweepFamily(context.WithoutCancel(ctx), ref); err != nil {
			r.log.Warn("versions and aliases of a deleted function stay until the next start", "function", ref.arn(), "err", err)
		}
		return nil
	}
	return errContended(ref.arn())
}

// sweep removes what crashes left of functions.
func (r *Registry) sweep(ctx context.Context) error {
	var refs []functionRef
	r.mu.RLock()
	for s, m := range r.functions {
		for name, f := range m {
			if len(f.remains()) > 0 {
				refs = append(refs, functionRef{account: s.account, region: s.region, name: name})
			}
		}
	}
	r.mu.RUnlock()
	var errs error
	for _, ref := range refs {
		unlock := r.lock(ref)
		errs = errors.Join(errs, r.sweepFamily(ctx, ref))
		unlock()
	}
	return errs
}

// sweepFamily removes remains of one function, which the caller has locked.
func (r *Registry) sweepFamily(ctx context.Context, ref functionRef) error {
	fam := r.family(ref)
	var errs error
	for key, revision := range fam.remains() {
		errs = errors.Join(errs, r.remove(ctx, functionKey(ref.account, ref.region, ref.name)+key, revision))
	}
	return errs
}

func errContended(arn string) error {
	return lambdad.Errorf("ServiceUnavailableException", "%s is being changed by many others; try again.", arn)
}

// refresh brings one record up to date.
func (r *Registry) refresh(ctx context.Context, key string) error {
	rec, err := r.store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		k, ok := parseKey(key)
		if !ok {
			return nil
		}
		r.mu.RLock()
		revision := r.revision(k)
		r.mu.RUnlock()
		r.forget(key, revision)
		return nil
	}
	if err != nil {
		return storeError(err)
	}
	r.apply(store.Update{Record: rec})
	return nil
}

// storeError says in AWS's terms that a record could not be written.
func storeError(err error) error {
	if errors.Is(err, store.ErrFull) {
		return errFull(err)
	}
	return fmt.Errorf("lambda: record store: %w", err)
}

// errFull is the answer when there is no room. It is a client error, as clients
// repeat the others for minutes.
func errFull(err error) error {
	return &lambdad.Error{Code: "CodeStorageExceededException", Err: err,
		Message: "Code storage limit exceeded. The disk of this lambdad has no room left: free space in its data directory, or delete functions and layer versions."}
}

// revision returns the revision of a record in memory, or 0. r.mu is held.
func (r *Registry) revision(k recordKey) uint64 {
	switch k.kind {
	case kindFunction, kindVersion, kindAlias:
		f := r.functions[k.scope][k.name]
		switch {
		case f == nil:
		case k.kind == kindVersion:
			if i, ok := findVersion(f.versions, k.number); ok {
				return f.versions[i].revision
			}
		case k.kind == kindAlias:
			if i, ok := findAlias(f.aliases, k.alias); ok {
				return f.aliases[i].revision
			}
		case f.latest != nil:
			return f.latest.revision
		}
	case kindLayer, kindLayerVersion:
		l := r.layers[k.scope][k.name]
		switch {
		case l == nil:
		case k.kind == kindLayer:
			return l.revision
		default:
			if i, ok := l.find(k.number); ok {
				return l.versions[i].revision
			}
		}
	case kindSigning:
		if s := r.signings[k.scope][k.name]; s != nil {
			return s.revision
		}
	}
	return 0
}

// forget takes a record out of memory after it was deleted at revision. The
// deletion's own revision is unknown and greater.
func (r *Registry) forget(key string, revision uint64) {
	r.commit(store.Update{Record: store.Record{Key: key, Revision: revision}, Deleted: true}, true)
}

// apply takes over a change unless something newer is known.
func (r *Registry) apply(u store.Update) { r.commit(u, false) }

// A change is what a commit changed for those who run functions.
type change struct {
	latest bool     // other code or configuration is in force
	gone   []string // generations of versions that are no more
	share  bool     // other concurrency is its own
}

// commit writes a change into memory and tells about it. With forgotten, it is a
// deletion made here, of the record at its revision.
func (r *Registry) commit(u store.Update, forgotten bool) {
	k, ok := parseKey(u.Key)
	if !ok {
		return // another's
	}
	put, err := r.decode(k, u)
	if err != nil {
		r.log.Error("record cannot be read", "key", u.Key, "err", err)
		return
	}

	r.mu.Lock()
	known := r.revision(k)
	if forgotten {
		if known != u.Revision {
			r.mu.Unlock()
			return // made anew meanwhile
		}
		r.gone[u.Key] = u.Revision
	} else {
		if u.Revision <= max(known, r.gone[u.Key]) {
			r.mu.Unlock()
			return
		}
		delete(r.gone, u.Key)
	}
	changed := put()
	changed.share = r.reshare(k)
	r.mu.Unlock()
	if !changed.latest && len(changed.gone) == 0 && !changed.share {
		return
	}
	r.hooks.Lock()
	defer r.hooks.Unlock()
	if changed.latest && r.onChange != nil {
		keep := r.function(functionRef{account: k.account, region: k.region, name: k.name}).generation()
		r.onChange(k.account, k.region, k.name, keep)
	}
	if r.onVersionGone != nil {
		for _, generation := range changed.gone {
			r.onVersionGone(k.account, k.region, k.name, generation)
		}
	}
	if changed.share && r.onShare != nil {
		r.onShare(k.account, k.region, k.name, r.share(k.scope, k.name).Concurrency)
	}
}

// decode reads a record; put, called with r.mu held, takes it into memory.
func (r *Registry) decode(k recordKey, u store.Update) (put func() change, err error) {
	read := func(v any) {
		if !u.Deleted {
			err = json.Unmarshal(u.Value, v)
		}
	}
	switch k.kind {
	case kindFunction:
		next := &function{scope: k.scope, name: k.name, revision: u.Revision}
		read(&next.rec)
		next.rec.intern()
		if u.Deleted {
			next = nil
		}
		return func() change { return r.putFunction(k.scope, k.name, next) }, err
	case kindVersion:
		next := &version{number: k.number, revision: u.Revision}
		read(&next.rec)
		next.rec.intern()
		if u.Deleted {
			next = nil
		}
		return func() change { return r.putVersion(k, next) }, err
	case kindAlias:
		next := &alias{name: k.alias, revision: u.Revision}
		read(&next.rec)
		if u.Deleted {
			next = nil
		}
		return func() change { r.putAlias(k, next); return change{} }, err
	case kindLayer:
		var counter layerCounter
		read(&counter)
		return func() change { r.putCounter(k.scope, k.name, u.Revision, counter); return change{} }, err
	case kindSigning:
		next, err := decodeSigning(k, u)
		return func() change { r.putSigning(k, next); return change{} }, err
	default:
		next := &layerVersion{ref: layerRef{k.account, k.region, k.name, k.number}, revision: u.Revision}
		read(&next.rec)
		if u.Deleted {
			next = nil
		}
		return func() change { r.putLayerVersion(k, next); return change{} }, err
	}
}

// usage is what GetAccountSettings counts.
func (r *Registry) usage(account, region string) (functions, bytes int64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	s := scope{account, region}
	return int64(len(r.names[s])), r.used[s]
}

// pin keeps an archive from being collected until release, for the time between
// its arrival and its record.
func (r *Registry) pin(digest string) (release func()) {
	r.archives.Lock()
	r.pins[digest]++
	r.archives.Unlock()
	return func() {
		r.archives.Lock()
		if r.pins[digest]--; r.pins[digest] == 0 {
			delete(r.pins, digest)
		}
		r.archives.Unlock()
	}
}

// needed reports whether a record or an upload that is under way needs the
// archive. r.archives is held.
func (r *Registry) needed(digest string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.refs[digest] > 0 || r.pins[digest] > 0
}

// collect calls remove if nobody has needed the archive for the grace period, in
// which an environment may still be starting from it. No upload of the
// same content gets between the question and the removal.
func (r *Registry) collect(digest string, grace time.Duration, remove func() error) error {
	r.archives.Lock()
	defer r.archives.Unlock()
	if r.needed(digest) {
		delete(r.idleSince, digest)
		return nil
	}
	since, ok := r.idleSince[digest]
	if !ok {
		since = r.now()
		r.idleSince[digest] = since
	}
	if r.now().Sub(since) < grace {
		return nil
	}
	delete(r.idleSince, digest)
	return remove()
}

// kept reports whether the archive's unpacked copy is of use: it is needed, or was
// until a moment ago.
func (r *Registry) kept(digest string) bool {
	r.archives.Lock()
	defer r.archives.Unlock()
	_, idle := r.idleSince[digest]
	return idle || r.needed(digest)
}

func newID() string { return uuid.NewString() }
