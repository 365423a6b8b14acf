package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
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
	Logger   *slog.Logger     // default: discard
	Now      func() time.Time // default time.Now
}

// A Registry knows all functions and layers. It holds them in memory, follows
// the record store by a watch, and is the only writer of its records: a write is
// compare-and-set, and is in memory when it returns, so that whoever was
// acknowledged a change reads it. It implements frontend.Versions.
type Registry struct {
	store    store.Store
	updates  <-chan store.Update
	onChange func(account, region, function, keepGeneration string)
	log      *slog.Logger
	now      func() time.Time

	hooks sync.Mutex // held while OnChange runs; taken without mu

	mu        sync.RWMutex // guards the following
	functions map[scope]map[string]*function
	layers    map[scope]map[string]*layer
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

// A function is a record as it is in memory; it is replaced, never modified.
type function struct {
	scope    scope
	name     string
	revision uint64 // of the store
	rec      functionRecord
	live     *lambdad.Version // nil: cannot be invoked now
}

// A layer is a layer's counter and its versions in ascending order.
type layer struct {
	counter  layerCounter
	revision uint64
	versions []*layerVersion
}

// A layerVersion is a record as it is in memory; it is replaced, never modified.
type layerVersion struct {
	ref      layerRef
	revision uint64
	rec      layerRecord
}

// NewRegistry reads all records and returns a Registry that follows them until
// ctx ends. Run must be running for changes made elsewhere to be seen.
func NewRegistry(ctx context.Context, cfg RegistryConfig) (*Registry, error) {
	r := &Registry{
		store: cfg.Store, onChange: cfg.OnChange, log: cfg.Logger, now: cfg.Now,
		functions: map[scope]map[string]*function{},
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
	r.mu.RLock()
	f := r.functions[scope{account, region}][name]
	r.mu.RUnlock()
	if f == nil || qualifier != "" && qualifier != latest {
		if qualifier == "" {
			qualifier = latest
		}
		return lambdad.Target{}, functionNotFound(functionRef{account, region, name, qualifier})
	}
	if f.live == nil {
		return lambdad.Target{}, lambdad.Errorf("ResourceConflictException",
			"The operation cannot be performed at this time. The function is currently in the following state: %s", f.rec.State)
	}
	return lambdad.Target{Version: f.live}, nil
}

// function returns a function, or nil.
func (r *Registry) function(ref functionRef) *function {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.functions[scope{ref.account, ref.region}][ref.name]
}

// list returns the functions of an account and region, by name.
func (r *Registry) list(account, region string) []*function {
	r.mu.RLock()
	m := r.functions[scope{account, region}]
	all := make([]*function, 0, len(m))
	for _, f := range m {
		all = append(all, f)
	}
	r.mu.RUnlock()
	slices.SortFunc(all, func(a, b *function) int { return cmpString(a.name, b.name) })
	return all
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// unsettled returns the functions whose last change is not in force.
func (r *Registry) unsettled() (refs []functionRef) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for s, m := range r.functions {
		for name, f := range m {
			if f.rec.inProgress() {
				refs = append(refs, functionRef{account: s.account, region: s.region, name: name})
			}
		}
	}
	return refs
}

// create writes a new function.
func (r *Registry) create(ctx context.Context, ref functionRef, rec functionRecord) (*function, error) {
	key := functionKey(ref.account, ref.region, ref.name)
	value, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("lambda: encoding record %s: %w", key, err)
	}
	revision, err := r.store.Create(ctx, key, value)
	if errors.Is(err, store.ErrConflict) {
		return nil, lambdad.Errorf("ResourceConflictException", "Function already exist: %s", ref.name)
	}
	if err != nil {
		return nil, storeError(err)
	}
	r.apply(store.Update{Record: store.Record{Key: key, Value: value, Revision: revision}})
	return newFunction(scope{ref.account, ref.region}, ref.name, revision, rec), nil
}

// maxAttempts bounds how often a change is tried against others.
const maxAttempts = 20

// update writes what change makes of the function's record; its error is
// returned as it is. Change may be called more than once, each time with a newer
// record.
func (r *Registry) update(ctx context.Context, ref functionRef, change func(*functionRecord) error) (*function, error) {
	key := functionKey(ref.account, ref.region, ref.name)
	for range maxAttempts {
		f := r.function(ref)
		if f == nil {
			return nil, functionNotFound(ref.unqualified())
		}
		rec := f.rec
		if err := change(&rec); err != nil {
			return f, err
		}
		value, err := json.Marshal(rec)
		if err != nil {
			return nil, fmt.Errorf("lambda: encoding record %s: %w", key, err)
		}
		revision, err := r.store.Update(ctx, key, value, f.revision)
		if errors.Is(err, store.ErrConflict) {
			if err := r.refresh(ctx, key); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, storeError(err)
		}
		r.apply(store.Update{Record: store.Record{Key: key, Value: value, Revision: revision}})
		return newFunction(f.scope, f.name, revision, rec), nil
	}
	return nil, errContended(ref.arn())
}

// delete removes a function.
func (r *Registry) delete(ctx context.Context, ref functionRef) error {
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
		return nil
	}
	return errContended(ref.arn())
}

func errContended(arn string) error {
	return lambdad.Errorf("ServiceUnavailableException", "%s is being changed by many others; try again.", arn)
}

// refresh brings one record up to date.
func (r *Registry) refresh(ctx context.Context, key string) error {
	rec, err := r.store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		r.mu.RLock()
		revision := r.revision(key)
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
func (r *Registry) revision(key string) uint64 {
	s, kind, rest, ok := splitKey(key)
	if !ok {
		return 0
	}
	switch {
	case kind == "function" && len(rest) == 1:
		if f := r.functions[s][rest[0]]; f != nil {
			return f.revision
		}
	case kind == "layer":
		l := r.layers[s][rest[0]]
		if l == nil {
			return 0
		}
		if len(rest) == 1 {
			return l.revision
		}
		if i, ok := l.find(rest[1]); ok {
			return l.versions[i].revision
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

// commit writes a change into memory and tells about it. With forgotten, it is a
// deletion made here, of the record at its revision.
func (r *Registry) commit(u store.Update, forgotten bool) {
	s, kind, rest, ok := splitKey(u.Key)
	if !ok || kind != "function" && kind != "layer" || len(rest) > 2 || kind == "function" && len(rest) != 1 {
		return // another service's
	}
	var next *function
	var counter layerCounter
	var version *layerVersion
	if !u.Deleted {
		var err error
		switch {
		case kind == "function":
			var rec functionRecord
			err = json.Unmarshal(u.Value, &rec)
			next = newFunction(s, rest[0], u.Revision, rec)
		case len(rest) == 1:
			err = json.Unmarshal(u.Value, &counter)
		default:
			version = &layerVersion{ref: layerRef{s.account, s.region, rest[0], 0}, revision: u.Revision}
			if version.ref.version, err = strconv.ParseInt(rest[1], 10, 64); err == nil {
				err = json.Unmarshal(u.Value, &version.rec)
			}
		}
		if err != nil {
			r.log.Error("record cannot be read", "key", u.Key, "err", err)
			return
		}
	}

	r.mu.Lock()
	known := r.revision(u.Key)
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
	changed := false
	switch {
	case kind == "function":
		changed = r.putFunction(s, rest[0], next)
	case len(rest) == 1:
		r.putCounter(s, rest[0], u.Revision, counter)
	default:
		r.putLayerVersion(s, rest, version)
	}
	r.mu.Unlock()
	if !changed || r.onChange == nil {
		return
	}
	r.hooks.Lock()
	defer r.hooks.Unlock()
	r.mu.RLock()
	keep := r.functions[s][rest[0]].generation()
	r.mu.RUnlock()
	r.onChange(s.account, s.region, rest[0], keep)
}

func newFunction(s scope, name string, revision uint64, rec functionRecord) *function {
	f := &function{scope: s, name: name, revision: revision, rec: rec}
	switch {
	case rec.Live != nil:
		f.live = rec.Live.version(s.account, s.region, name)
	case rec.State == stateActive:
		f.live = rec.Config.version(s.account, s.region, name)
	}
	return f
}

func (f *function) generation() string {
	if f == nil || f.live == nil {
		return ""
	}
	return f.live.Generation
}

// putFunction replaces a function, or removes it if next is nil, and reports
// whether other code or configuration is in force. r.mu is held.
func (r *Registry) putFunction(s scope, name string, next *function) (changed bool) {
	old := r.functions[s][name]
	if next != nil {
		if next.live != nil && old.generation() == next.generation() {
			next.live = old.live // the same snapshot stays the same pointer
		}
		if r.functions[s] == nil {
			r.functions[s] = map[string]*function{}
		}
		r.functions[s][name] = next
		next.rec.digests(func(d string) { r.refs[d]++ })
	} else {
		delete(r.functions[s], name)
	}
	if old != nil {
		old.rec.digests(r.unref)
	}
	return old.generation() != "" && old.generation() != next.generation()
}

// unref counts a reference less. r.mu is held.
func (r *Registry) unref(digest string) {
	if r.refs[digest]--; r.refs[digest] == 0 {
		delete(r.refs, digest)
	}
}

// find returns where a version is or would be.
func (l *layer) find(number string) (int, bool) {
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return 0, false
	}
	return slices.BinarySearchFunc(l.versions, n, func(v *layerVersion, n int64) int { return int(v.ref.version - n) })
}

// changeLayer replaces a layer by a changed copy, as readers hold it without the
// lock. r.mu is held.
func (r *Registry) changeLayer(s scope, name string, change func(*layer)) {
	next := &layer{}
	if old := r.layers[s][name]; old != nil {
		*next = layer{old.counter, old.revision, slices.Clone(old.versions)}
	}
	change(next)
	if r.layers[s] == nil {
		r.layers[s] = map[string]*layer{}
	}
	r.layers[s][name] = next
}

func (r *Registry) putCounter(s scope, name string, revision uint64, counter layerCounter) {
	r.changeLayer(s, name, func(l *layer) { l.counter, l.revision = counter, revision })
}

// putLayerVersion replaces a layer version, or removes it if next is nil. r.mu is
// held.
func (r *Registry) putLayerVersion(s scope, rest []string, next *layerVersion) {
	r.changeLayer(s, rest[0], func(l *layer) {
		i, found := l.find(rest[1])
		if found {
			r.unref(l.versions[i].rec.Archive.Digest)
			l.versions = slices.Delete(l.versions, i, i+1)
		}
		if next != nil {
			r.refs[next.rec.Archive.Digest]++
			l.versions = slices.Insert(l.versions, i, next)
		}
	})
}

// layer returns the versions of a layer, oldest first.
func (r *Registry) layer(ref layerRef) []*layerVersion {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if l := r.layers[scope{ref.account, ref.region}][ref.name]; l != nil {
		return l.versions
	}
	return nil
}

// layerVersion returns a version of a layer, or nil.
func (r *Registry) layerVersion(ref layerRef) *layerVersion {
	for _, v := range r.layer(ref) {
		if v.ref.version == ref.version {
			return v
		}
	}
	return nil
}

// layerNames returns the layers of an account and region that have versions.
func (r *Registry) layerNames(account, region string) (names []string) {
	r.mu.RLock()
	for name, l := range r.layers[scope{account, region}] {
		if len(l.versions) > 0 {
			names = append(names, name)
		}
	}
	r.mu.RUnlock()
	slices.Sort(names)
	return names
}

// publishLayer writes a new version of a layer under the next number. A crash
// between the two writes loses a number that nobody was told.
func (r *Registry) publishLayer(ctx context.Context, ref layerRef, rec layerRecord) (*layerVersion, error) {
	key := layerKey(ref.account, ref.region, ref.name)
	number, err := r.nextLayerVersion(ctx, key)
	if err != nil {
		return nil, err
	}
	ref.version = number
	value, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("lambda: encoding record %s: %w", key, err)
	}
	key += "." + strconv.FormatInt(number, 10)
	revision, err := r.store.Create(ctx, key, value)
	if err != nil {
		return nil, storeError(err)
	}
	r.apply(store.Update{Record: store.Record{Key: key, Value: value, Revision: revision}})
	return &layerVersion{ref, revision, rec}, nil
}

func (r *Registry) nextLayerVersion(ctx context.Context, key string) (int64, error) {
	for range maxAttempts {
		var counter layerCounter
		rec, err := r.store.Get(ctx, key)
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return 0, storeError(err)
		default:
			if err := json.Unmarshal(rec.Value, &counter); err != nil {
				return 0, fmt.Errorf("lambda: record %s cannot be read: %w", key, err)
			}
		}
		counter.Last++
		value, err := json.Marshal(counter)
		if err != nil {
			return 0, fmt.Errorf("lambda: encoding record %s: %w", key, err)
		}
		if rec.Revision == 0 {
			_, err = r.store.Create(ctx, key, value)
		} else {
			_, err = r.store.Update(ctx, key, value, rec.Revision)
		}
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return 0, storeError(err)
		}
		return counter.Last, nil
	}
	return 0, errContended(key)
}

// deleteLayerVersion removes a version; removing none is not an error.
func (r *Registry) deleteLayerVersion(ctx context.Context, ref layerRef) error {
	v := r.layerVersion(ref)
	if v == nil {
		return nil
	}
	key := layerKey(ref.account, ref.region, ref.name) + "." + strconv.FormatInt(ref.version, 10)
	if err := r.store.Delete(ctx, key, 0); err != nil {
		return storeError(err)
	}
	r.forget(key, v.revision)
	return nil
}

// usage is what GetAccountSettings counts.
func (r *Registry) usage(account, region string) (functions, bytes int64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, f := range r.functions[scope{account, region}] {
		functions++
		bytes += f.rec.Config.Code.Size
	}
	for _, l := range r.layers[scope{account, region}] {
		for _, v := range l.versions {
			bytes += v.rec.Archive.Size
		}
	}
	return functions, bytes
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
