package iam

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/policy"
	"github.com/lambdad/lambdad/store"
)

// A Registry holds users, roles, groups and policies. Reads are answered from
// memory; a write has happened when it is in the store. It implements
// aws.Directory.
type Registry struct {
	store store.Store

	write sync.Mutex // held over a write and the checks before it; before mu

	mu         sync.RWMutex // guards what follows
	generation uint64       // grows with each change
	entities   map[entityID]*entity
	policies   map[string]*managed // by ARN
	keys       map[string]entityID // users by access key
}

// entityID names an entity; names are in lower case.
type entityID struct {
	account string
	kind    kind
	name    string
}

func idOf(account string, k kind, name string) entityID {
	return entityID{account, k, strings.ToLower(name)}
}

// NewRegistry reads the records of the store.
func NewRegistry(ctx context.Context, s store.Store) (*Registry, error) {
	r := &Registry{store: s, entities: map[entityID]*entity{}, policies: awsPolicies(), keys: map[string]entityID{}}
	records, err := s.List(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("iam: reading the records: %w", err)
	}
	for _, rec := range records {
		parts := strings.Split(rec.Key, ".")
		if len(parts) != 5 || parts[1] != region || parts[2] != "iam" {
			continue
		}
		if parts[3] == "policy" {
			m := &managed{}
			if err := json.Unmarshal(rec.Value, m); err != nil {
				return nil, fmt.Errorf("iam: record %s: %w", rec.Key, err)
			}
			m.revision = rec.Revision
			r.policies[m.arn()] = m
			continue
		}
		e := &entity{}
		if err := json.Unmarshal(rec.Value, e); err != nil {
			return nil, fmt.Errorf("iam: record %s: %w", rec.Key, err)
		}
		e.revision = rec.Revision
		r.put(e)
	}
	return r, nil
}

// put takes an entity into memory.
func (r *Registry) put(e *entity) {
	id := idOf(e.Account, e.Kind, e.Name)
	if old := r.entities[id]; old != nil {
		for _, k := range old.Keys {
			delete(r.keys, k.ID)
		}
	}
	r.entities[id] = e
	for _, k := range e.Keys {
		r.keys[k.ID] = id
	}
	r.generation++
}

// entity returns a user, role or group, or the error that there is none.
func (r *Registry) entity(account string, k kind, name string) (*entity, error) {
	r.mu.RLock()
	e := r.entities[idOf(account, k, name)]
	r.mu.RUnlock()
	if e == nil {
		return nil, noEntity(k, name)
	}
	return e, nil
}

func noEntity(k kind, name string) error {
	return lambdad.Errorf("NoSuchEntity", "The %s with name %s cannot be found.", k, name)
}

// list returns all of a kind, sorted by name.
func (r *Registry) list(account string, k kind) []*entity {
	r.mu.RLock()
	var list []*entity
	for id, e := range r.entities {
		if id.account == account && id.kind == k {
			list = append(list, e)
		}
	}
	r.mu.RUnlock()
	slices.SortFunc(list, func(a, b *entity) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// create writes a new entity.
func (r *Registry) create(ctx context.Context, e *entity) error {
	r.write.Lock()
	defer r.write.Unlock()
	if old, _ := r.entity(e.Account, e.Kind, e.Name); old != nil {
		return lambdad.Errorf("EntityAlreadyExists", "%s with name %s already exists.", e.Kind.title(), e.Name)
	}
	return r.save(ctx, e)
}

// change writes what f makes of an entity.
func (r *Registry) change(ctx context.Context, account string, k kind, name string, f func(*entity) error) error {
	r.write.Lock()
	defer r.write.Unlock()
	old, err := r.entity(account, k, name)
	if err != nil {
		return err
	}
	e := old.clone()
	if err := f(e); err != nil {
		return err
	}
	return r.save(ctx, e)
}

// save writes an entity; write is held.
func (r *Registry) save(ctx context.Context, e *entity) error {
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("iam: writing %s: %w", e.arn(), err)
	}
	key := entityKey(e.Account, e.Kind, e.Name)
	// Who went away must not leave memory and store apart.
	ctx = context.WithoutCancel(ctx)
	if e.revision == 0 {
		e.revision, err = r.store.Create(ctx, key, b)
	} else {
		e.revision, err = r.store.Update(ctx, key, b, e.revision)
	}
	if err != nil {
		return fmt.Errorf("iam: writing %s: %w", e.arn(), err)
	}
	r.mu.Lock()
	r.put(e)
	r.mu.Unlock()
	return nil
}

// remove deletes an entity that may.
func (r *Registry) remove(ctx context.Context, account string, k kind, name string, may func(*entity) error) error {
	r.write.Lock()
	defer r.write.Unlock()
	e, err := r.entity(account, k, name)
	if err != nil {
		return err
	}
	if err := may(e); err != nil {
		return err
	}
	if err := r.store.Delete(context.WithoutCancel(ctx), entityKey(account, k, e.Name), 0); err != nil {
		return fmt.Errorf("iam: deleting %s: %w", e.arn(), err)
	}
	r.mu.Lock()
	for _, key := range e.Keys {
		delete(r.keys, key.ID)
	}
	delete(r.entities, idOf(account, k, name))
	r.generation++
	r.mu.Unlock()
	return nil
}

// policy returns a managed policy of the account or of AWS, or nil.
func (r *Registry) policy(arn string) *managed {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.policies[arn]
}

// savePolicy writes a policy; write is held.
func (r *Registry) savePolicy(ctx context.Context, m *managed) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("iam: writing %s: %w", m.arn(), err)
	}
	ctx = context.WithoutCancel(ctx)
	if m.revision == 0 {
		m.revision, err = r.store.Create(ctx, policyKey(m.Account, m.Name), b)
	} else {
		m.revision, err = r.store.Update(ctx, policyKey(m.Account, m.Name), b, m.revision)
	}
	if err != nil {
		return fmt.Errorf("iam: writing %s: %w", m.arn(), err)
	}
	r.mu.Lock()
	r.policies[m.arn()] = m
	r.generation++
	r.mu.Unlock()
	return nil
}

// removePolicy deletes a policy; write is held.
func (r *Registry) removePolicy(ctx context.Context, m *managed) error {
	if err := r.store.Delete(context.WithoutCancel(ctx), policyKey(m.Account, m.Name), 0); err != nil {
		return fmt.Errorf("iam: deleting %s: %w", m.arn(), err)
	}
	r.mu.Lock()
	delete(r.policies, m.arn())
	r.generation++
	r.mu.Unlock()
	return nil
}

// listPolicies returns AWS's and the account's policies, sorted by ARN.
func (r *Registry) listPolicies(account string) []*managed {
	r.mu.RLock()
	var list []*managed
	for _, m := range r.policies {
		if m.Account == account || m.Account == "aws" {
			list = append(list, m)
		}
	}
	r.mu.RUnlock()
	slices.SortFunc(list, func(a, b *managed) int { return strings.Compare(a.arn(), b.arn()) })
	return list
}

// users of a managed policy, as permissions or as a boundary.
func (r *Registry) uses(account, arn string) (attached, boundary []*entity) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for id, e := range r.entities {
		if id.account != account {
			continue
		}
		if slices.Contains(e.Attached, arn) {
			attached = append(attached, e)
		}
		if e.Boundary == arn {
			boundary = append(boundary, e)
		}
	}
	return attached, boundary
}

// compile returns the policies of an entity; mu is held for reading.
func (r *Registry) compile(e *entity) *compiled {
	if c := e.compiled.Load(); c != nil && c.generation == r.generation {
		return c
	}
	c := &compiled{generation: r.generation, grants: &policy.Grants{}, tags: map[string]string{}}
	own := func(e *entity) {
		for _, name := range slices.Sorted(maps.Keys(e.Inline)) {
			c.grants.Identity = append(c.grants.Identity, parsed(e.arn()+" inline policy "+name, e.Inline[name]))
		}
		for _, arn := range e.Attached {
			c.grants.Identity = append(c.grants.Identity, r.managedDocument(arn))
		}
	}
	own(e)
	for _, name := range e.Groups {
		if g := r.entities[idOf(e.Account, group, name)]; g != nil {
			own(g)
		}
	}
	if e.Boundary != "" {
		c.grants.Boundary = r.managedDocument(e.Boundary)
	}
	for _, t := range e.Tags {
		c.tags[strings.ToLower(*t.Key)] = *t.Value
	}
	if e.Kind == role {
		trust, err := policy.Parse(e.Trust, policy.ForTrust)
		if err != nil {
			trust = nothing
		}
		c.role = &aws.Role{
			ARN: e.arn(), ID: e.ID, Name: e.Name, Account: e.Account, Tags: c.tags, Grants: c.grants,
			Trust: trust.WithName(e.arn() + " trust policy"), MaxSession: time.Duration(e.MaxSession) * time.Second,
		}
	}
	e.compiled.Store(c)
	return c
}

// nothing stands for a document that cannot be read, which cannot be: it was
// checked when it was written.
var nothing = policy.MustParse("an unreadable policy", `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":"*","Resource":"*"}]}`, policy.ForResource)

func parsed(name, text string) *policy.Document {
	d, err := policy.Parse(text, policy.ForIdentity)
	if err != nil {
		return nothing
	}
	return d.WithName(name)
}

func (r *Registry) managedDocument(arn string) *policy.Document {
	m := r.policies[arn]
	if m == nil {
		return nothing
	}
	return parsed(arn, m.version(m.Default).Document)
}

// UserKey implements aws.Directory.
func (r *Registry) UserKey(accessKeyID string) (secret string, id aws.Identity, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	name, ok := r.keys[accessKeyID]
	if !ok {
		return "", id, false
	}
	e := r.entities[name]
	for _, k := range e.Keys {
		if k.ID == accessKeyID && !k.Inactive {
			id = r.identity(e)
			id.AccessKeyID = accessKeyID
			return k.Secret, id, true
		}
	}
	return "", id, false
}

// User implements aws.Directory.
func (r *Registry) User(account, name, id string) (aws.Identity, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if e := r.entities[idOf(account, user, name)]; e != nil && e.ID == id {
		return r.identity(e), true
	}
	return aws.Identity{}, false
}

func (r *Registry) identity(e *entity) aws.Identity {
	c := r.compile(e)
	return aws.Identity{Account: e.Account, ARN: e.arn(), UserID: e.ID, UserName: e.Name, Tags: c.tags, Grants: c.grants}
}

// Role implements aws.Directory.
func (r *Registry) Role(arn string) *aws.Role {
	account, path, ok := splitARN(arn, role)
	if !ok {
		return nil
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	e := r.entities[idOf(account, role, path[strings.LastIndexByte(path, '/')+1:])]
	if e == nil || e.Path+e.Name != path {
		return nil
	}
	return r.compile(e).role
}

// splitARN cuts the ARN of an entity into its account and its path with the name.
func splitARN(arn string, k kind) (account, path string, ok bool) {
	rest, ok := strings.CutPrefix(arn, "arn:aws:iam::")
	if !ok || len(rest) < 14 || rest[12] != ':' {
		return "", "", false
	}
	path, ok = strings.CutPrefix(rest[13:], string(k))
	return rest[:12], path, ok && strings.HasPrefix(path, "/")
}

//go:embed managed.json
var managedJSON []byte

// awsPolicies are those of AWS's managed policies that functions and their
// deployment use, as published.
func awsPolicies() map[string]*managed {
	var file map[string]struct {
		Path, Version, Document string
		Created, Updated        time.Time
	}
	if err := json.Unmarshal(managedJSON, &file); err != nil {
		panic("iam: managed.json: " + err.Error())
	}
	out := make(map[string]*managed, len(file))
	for name, p := range file {
		number := 1
		fmt.Sscanf(p.Version, "v%d", &number)
		id := []byte("ANPA")
		for i := range 17 { // stable
			id = append(id, idLetters[(len(name)*7+i*13+int(name[i%len(name)]))%len(idLetters)])
		}
		m := &managed{
			Account: "aws", Name: name, Path: p.Path, ID: string(id), Created: p.Created, Updated: p.Updated, Default: number,
			Versions: []policyVersion{{Number: number, Document: p.Document, Created: p.Updated}},
		}
		out[m.arn()] = m
	}
	return out
}

const idLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"

// newID makes a unique id of 21 characters.
func newID(prefix string, n int) string {
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] = idLetters[b[i]&31]
	}
	return prefix + string(b)
}

// Document returns the default version of a managed policy that the account may use.
func (r *Registry) Document(account, arn string) (string, bool) {
	m := r.policy(arn)
	if m == nil || m.Account != "aws" && m.Account != account {
		return "", false
	}
	return m.version(m.Default).Document, true
}

// Lenient returns a directory in which every role exists: one that has not been made
// may what DefaultRole may. It is for servers that accept every key.
func (r *Registry) Lenient() aws.Directory { return lenient{r} }

type lenient struct{ *Registry }

// Role implements aws.Directory.
func (l lenient) Role(arn string) *aws.Role {
	if role := l.Registry.Role(arn); role != nil {
		return role
	}
	account, path, ok := splitARN(arn, role)
	if !ok {
		return nil
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	standIn := &entity{
		Kind: role, Account: account, Name: path[strings.LastIndexByte(path, '/')+1:], Path: path[:strings.LastIndexByte(path, '/')+1],
		ID: "AROAXXXXXXXXXXXXXXXXX", Trust: lambdaTrust, Attached: defaultPolicies(), MaxSession: defaultSession,
	}
	return l.compile(standIn).role
}
