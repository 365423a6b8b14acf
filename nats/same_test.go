package nats

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/lambdad/lambdad/mem"
	"github.com/lambdad/lambdad/queue"
	"github.com/lambdad/lambdad/store"
)

// One random history, in memory and on the engine, gives the same answers, revisions
// included, and the same again after the engine was opened anew.
func TestSameStore(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	dir, ctx := t.TempDir(), t.Context()
	e := open(t, dir)
	memory := mem.NewStore()
	keys := []string{"a", "a.b", "a.b.c", "a.bc", "b", "b.a", "b.a.a"}
	var stamps []uint64
	for i := range 1500 {
		if i%400 == 399 {
			e.Close()
			e = open(t, dir)
		}
		key := keys[r.IntN(len(keys))]
		stamp := uint64(r.IntN(5))
		if len(stamps) > 0 && r.IntN(3) > 0 {
			stamp = stamps[max(0, len(stamps)-1-r.IntN(6))]
		}
		val := fmt.Append(nil, i)
		kind := r.IntN(7)
		do := func(s store.Store) (answer any, err error) {
			switch kind {
			case 0:
				return s.Get(ctx, key)
			case 1:
				return s.Put(ctx, key, val)
			case 2:
				return s.Create(ctx, key, val)
			case 3:
				return s.Update(ctx, key, val, stamp)
			case 4:
				return nil, s.Delete(ctx, key, 0)
			case 5:
				return nil, s.Delete(ctx, key, stamp)
			default:
				all, err := s.List(ctx, key)
				return fmt.Sprint(all), err
			}
		}
		a1, err1 := do(memory)
		a2, err2 := do(e.Store())
		if !reflect.DeepEqual(a1, a2) || !sameKind(err1, err2, store.ErrNotFound, store.ErrConflict) {
			t.Fatalf("step %d, operation %d on %s (revision %d): in memory %v, %v; on the engine %v, %v", i, kind, key, stamp, a1, err1, a2, err2)
		}
		if revision, isRevision := a1.(uint64); isRevision && err1 == nil {
			stamps = append(stamps, revision)
		}
	}
}

func sameKind(a, b error, kinds ...error) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	for _, k := range kinds {
		if errors.Is(a, k) && errors.Is(b, k) {
			return true
		}
	}
	return false
}

// The same for the queue: same messages in the same order, with the same attempts.
func TestSameQueue(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	e := open(t, t.TempDir())
	both := [2]queue.Queue{mem.NewQueue(), e.Queue()}
	prefixes := []string{"a.b", "a.c", "b"}
	subjects := [][]string{{"a.b", "a.b.x"}, {"a.c.y"}, {"b.1", "b.2"}}
	var leased [3][][2]queue.Message
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range 1200 {
		p := r.IntN(3)
		subject := subjects[p][r.IntN(len(subjects[p]))]
		id := ""
		if r.IntN(2) == 0 {
			id = fmt.Sprint(r.IntN(i + 1))
		}
		kind := r.IntN(5)
		n, err := both[0].Len(ctx, prefixes[p])
		if n2, err2 := both[1].Len(ctx, prefixes[p]); n != n2 || err != nil || err2 != nil {
			t.Fatalf("step %d: %d messages in memory, %d on the engine; %v, %v", i, n, n2, err, err2)
		}
		switch {
		case kind < 2:
			for _, q := range both {
				if err := q.Enqueue(ctx, subject, id, fmt.Append(nil, i)); err != nil {
					t.Fatal(err)
				}
			}
		case kind == 2 && n > len(leased[p]):
			var m [2]queue.Message
			for j, q := range both {
				if m[j], err = q.Receive(ctx, prefixes[p], time.Hour); err != nil {
					t.Fatal(err)
				}
			}
			if string(m[0].Body()) != string(m[1].Body()) || m[0].Subject() != m[1].Subject() || m[0].Attempt() != m[1].Attempt() {
				t.Fatalf("step %d: in memory %s %s attempt %d, on the engine %s %s attempt %d", i,
					m[0].Subject(), m[0].Body(), m[0].Attempt(), m[1].Subject(), m[1].Body(), m[1].Attempt())
			}
			leased[p] = append(leased[p], m)
		case kind > 2 && len(leased[p]) > 0:
			k := r.IntN(len(leased[p]))
			for _, m := range leased[p][k] {
				if kind == 3 {
					err = m.Ack(ctx)
				} else {
					err = m.Retry(ctx, 0)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			leased[p] = append(leased[p][:k], leased[p][k+1:]...)
		}
	}
}
