package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/lambdad/lambdad/store"
)

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

// find returns where a version is or would be.
func (l *layer) find(n int64) (int, bool) {
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
func (r *Registry) putLayerVersion(k recordKey, next *layerVersion) {
	r.changeLayer(k.scope, k.name, func(l *layer) {
		i, found := l.find(k.number)
		if found {
			r.unref(l.versions[i].rec.Archive.Digest)
			r.used[k.scope] -= l.versions[i].rec.Archive.Size
			l.versions = slices.Delete(l.versions, i, i+1)
		}
		if next != nil {
			r.ref(next.rec.Archive.Digest)
			r.used[k.scope] += next.rec.Archive.Size
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

// updateLayerVersion is update for a layer version.
func (r *Registry) updateLayerVersion(ctx context.Context, ref layerRef, change func(*layerRecord) error) (*layerRecord, error) {
	var rec layerRecord
	key := layerKey(ref.account, ref.region, ref.name) + "." + strconv.FormatInt(ref.version, 10)
	err := r.amend(ctx, key, ref.versionARN(), func() (any, uint64, error) {
		v := r.layerVersion(ref)
		if v == nil {
			return nil, 0, layerVersionNotFound(ref)
		}
		rec = v.rec
		return &rec, v.revision, change(&rec)
	})
	return &rec, err
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
