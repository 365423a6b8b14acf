package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/store"
)

// publish is update that also publishes what comes of it: as a new version, or
// as the last one if that is the same. If it is and nothing was accepted,
// nothing is written. Without a description of its own the version has that of
// the function.
func (r *Registry) publish(ctx context.Context, ref functionRef, description *string, change func(*functionRecord) error) (rec functionRecord, v *version, err error) {
	defer r.lock(ref)()
	var done error // nothing is to be written
	err = r.amend(ctx, functionKey(ref.account, ref.region, ref.name), ref.arn(), func() (any, uint64, error) {
		fam := r.family(ref)
		if fam.latest == nil {
			return nil, 0, functionNotFound(ref.unqualified())
		}
		rec = fam.latest.rec
		if err := change(&rec); err != nil {
			return nil, 0, err
		}
		v = fam.version(strconv.FormatInt(rec.Last, 10))
		if v != nil && v.rec.Config.same(&rec.Config) {
			if rec.Config.Generation == fam.latest.rec.Config.Generation {
				done = errUnchanged
				return nil, 0, done
			}
			return &rec, fam.latest.revision, nil
		}
		if rec.ID == "" {
			rec.ID = newID()
		}
		var err error
		if v, err = r.prepare(ctx, ref, &rec, description); err != nil {
			return nil, 0, err
		}
		return &rec, fam.latest.revision, nil
	})
	if done != nil {
		err = nil
	}
	return rec, v, err
}

var errUnchanged = errors.New("lambda: unchanged")

// prepare writes the next version, which comes into being with rec.
func (r *Registry) prepare(ctx context.Context, ref functionRef, rec *functionRecord, description *string) (*version, error) {
	rec.Last++
	v := &version{number: rec.Last, rec: versionRecord{
		Owner: rec.ID, Config: rec.Config, Description: description,
		statusRecord: statusRecord{State: stateActive, Update: updateSuccessful, RevisionID: newID(), LastModified: r.now()},
	}}
	v.rec.Config.Generation = newID()
	if rec.inProgress() {
		v.rec.State, v.rec.StateReason, v.rec.StateReasonCode, v.rec.Update = statePending, reasonCreating, reasonCodeCreating, ""
	}
	key := versionKey(ref.account, ref.region, ref.name, rec.Last)
	value, err := json.Marshal(v.rec)
	if err != nil {
		return nil, fmt.Errorf("lambda: encoding record %s: %w", key, err)
	}
	// What may be there is of a publishing that did not come to its end.
	revision, err := r.store.Put(ctx, key, value)
	if err != nil {
		return nil, storeError(err)
	}
	r.apply(store.Update{Record: store.Record{Key: key, Value: value, Revision: revision}})
	return v, nil
}

// updateVersion is update for a published version.
func (r *Registry) updateVersion(ctx context.Context, ref functionRef, change func(*versionRecord) error) (*versionRecord, error) {
	n, err := strconv.ParseInt(ref.qualifier, 10, 64)
	if err != nil {
		return nil, functionNotFound(ref)
	}
	var rec versionRecord
	err = r.amend(ctx, versionKey(ref.account, ref.region, ref.name, n), ref.arn(), func() (any, uint64, error) {
		fam := r.family(ref)
		v := fam.version(ref.qualifier)
		if v == nil {
			return nil, 0, functionNotFound(ref)
		}
		rec = v.rec
		return &rec, v.revision, change(&rec)
	})
	return &rec, err
}

// updateAlias is update for an alias; missing is the error if there is none.
// Change is told all of the function.
func (r *Registry) updateAlias(ctx context.Context, ref functionRef, missing error, change func(*family, *aliasRecord) error) (*aliasRecord, error) {
	defer r.lock(ref)()
	var rec aliasRecord
	err := r.amend(ctx, aliasKey(ref.account, ref.region, ref.name, ref.qualifier), ref.arn(), func() (any, uint64, error) {
		fam := r.family(ref)
		a := fam.alias(ref.qualifier)
		if a == nil {
			return nil, 0, missing
		}
		rec = a.rec
		return &rec, a.revision, change(&fam, &rec)
	})
	return &rec, err
}

// createAlias writes a new alias, for which check has found no reason against.
func (r *Registry) createAlias(ctx context.Context, ref functionRef, rec aliasRecord, check func(*family) error) (*aliasRecord, error) {
	defer r.lock(ref)()
	key := aliasKey(ref.account, ref.region, ref.name, ref.qualifier)
	err := r.amend(ctx, key, ref.arn(), func() (any, uint64, error) {
		fam := r.family(ref)
		if err := check(&fam); err != nil {
			return nil, 0, err
		}
		rec.Owner = fam.latest.rec.ID
		var revision uint64
		if i, ok := findAlias(fam.aliases, ref.qualifier); ok { // remains of another function
			revision = fam.aliases[i].revision
		}
		return &rec, revision, nil
	})
	return &rec, err
}

// deleteAlias removes an alias; removing none is not an error.
func (r *Registry) deleteAlias(ctx context.Context, ref functionRef) error {
	defer r.lock(ref)()
	fam := r.family(ref)
	a := fam.alias(ref.qualifier)
	if a == nil {
		return nil
	}
	return r.remove(ctx, aliasKey(ref.account, ref.region, ref.name, a.name), a.revision)
}

// deleteVersion removes a published version; removing none is not an error, but
// an alias must not point to it.
func (r *Registry) deleteVersion(ctx context.Context, ref functionRef) error {
	defer r.lock(ref)()
	fam := r.family(ref)
	v := fam.version(ref.qualifier)
	if v == nil {
		return nil
	}
	number := strconv.FormatInt(v.number, 10)
	for _, a := range fam.aliases {
		if fam.alias(a.name) != nil && (a.rec.Version == number || a.rec.Additional == number) {
			return lambdad.Errorf("ResourceConflictException", "Version %s cannot be deleted while the alias %s points to it.", number, a.name)
		}
	}
	return r.remove(ctx, versionKey(ref.account, ref.region, ref.name, v.number), v.revision)
}
