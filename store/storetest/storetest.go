// Package storetest is the contract of store.Store as a test: give it a
// constructor, it tests the implementation.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lambdad/lambdad/store"
)

// patience is how long something may take that happens at once unless it is broken.
const patience = 20 * time.Second

// A Factory makes stores to be tested.
type Factory struct {
	// New returns an empty store that is cleaned up with t.
	New func(t *testing.T) store.Store
	// Reopen closes a store that New or Reopen returned and opens it again, as
	// after a restart. Nil: the implementation does not persist.
	Reopen func(t *testing.T, s store.Store) store.Store
}

// Test runs the suite.
func Test(t *testing.T, f Factory) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, Factory)
	}{
		{"Basics", testBasics}, {"Conditions", testConditions}, {"Keys", testKeys}, {"Values", testValues},
		{"Prefixes", testPrefixes}, {"CompareAndSet", testCompareAndSet}, {"CreateOnce", testCreateOnce},
		{"ReadYourWrites", testReadYourWrites}, {"WatchPresent", testWatchPresent}, {"WatchChanges", testWatchChanges},
		{"WatchConcurrent", testWatchConcurrent}, {"WatchSlow", testWatchSlow}, {"WatchEnds", testWatchEnds},
		{"ListConcurrent", testListConcurrent}, {"Cancelled", testCancelled}, {"Reopen", testReopen}, {"Many", testMany},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, f) })
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func testBasics(t *testing.T, f Factory) {
	s, ctx := f.New(t), t.Context()
	const k = "000000000000.us-east-1.function.hello"
	_, err := s.Get(ctx, k)
	is(t, err, store.ErrNotFound)
	r1 := must[uint64](t)(s.Put(ctx, k, []byte("one")))
	got := must[store.Record](t)(s.Get(ctx, k))
	if want := (store.Record{Key: k, Value: []byte("one"), Revision: r1}); !reflect.DeepEqual(got, want) || r1 == 0 {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	r2 := must[uint64](t)(s.Put(ctx, k, []byte("two")))
	if r2 <= r1 {
		t.Fatalf("revision went from %d to %d", r1, r2)
	}
	ok(t, s.Delete(ctx, k, 0))
	_, err = s.Get(ctx, k)
	is(t, err, store.ErrNotFound)
	ok(t, s.Delete(ctx, k, 0))
	ok(t, s.Delete(ctx, "never.was", 0))
	if all := must[[]store.Record](t)(s.List(ctx, "")); len(all) != 0 {
		t.Fatalf("deleted records are listed: %v", all)
	}
	r3 := must[uint64](t)(s.Create(ctx, k, []byte("three")))
	if r3 <= r2 {
		t.Fatalf("revision went from %d to %d", r2, r3)
	}
	// What callers do with their bytes afterwards is their affair.
	value := []byte("mine")
	must[uint64](t)(s.Put(ctx, k, value))
	copy(value, "your")
	got = must[store.Record](t)(s.Get(ctx, k))
	copy(got.Value, "their")
	if got = must[store.Record](t)(s.Get(ctx, k)); string(got.Value) != "mine" {
		t.Fatalf("stored value became %q", got.Value)
	}
}

func testConditions(t *testing.T, f Factory) {
	s, ctx := f.New(t), t.Context()
	r1 := must[uint64](t)(s.Create(ctx, "a.k", []byte("1")))
	_, err := s.Create(ctx, "a.k", []byte("2"))
	is(t, err, store.ErrConflict)
	r2 := must[uint64](t)(s.Update(ctx, "a.k", []byte("2"), r1))
	for _, stale := range []uint64{r1, r2 + 1, 0} {
		_, err = s.Update(ctx, "a.k", []byte("x"), stale)
		is(t, err, store.ErrConflict)
	}
	_, err = s.Update(ctx, "a.none", []byte("x"), 0)
	is(t, err, store.ErrConflict)
	_, err = s.Update(ctx, "a.none", []byte("x"), r2)
	is(t, err, store.ErrConflict)
	is(t, s.Delete(ctx, "a.k", r1), store.ErrConflict)
	is(t, s.Delete(ctx, "a.none", r1), store.ErrConflict)
	if got := must[store.Record](t)(s.Get(ctx, "a.k")); string(got.Value) != "2" || got.Revision != r2 {
		t.Fatalf("refused writes left %+v", got)
	}
	// A write elsewhere does not make a revision stale.
	must[uint64](t)(s.Put(ctx, "a.other", nil))
	ok(t, s.Delete(ctx, "a.k", r2))
	is(t, s.Delete(ctx, "a.k", r2), store.ErrConflict)
	for revision := r2; revision < r2+4; revision++ { // that of the deletion among them
		_, err = s.Update(ctx, "a.k", []byte("x"), revision)
		is(t, err, store.ErrConflict)
		is(t, s.Delete(ctx, "a.k", revision), store.ErrConflict)
	}
	must[uint64](t)(s.Create(ctx, "a.k", []byte("3")))
	_, err = s.Create(ctx, "a.k", []byte("4"))
	is(t, err, store.ErrConflict)
}

func testKeys(t *testing.T, f Factory) {
	s, ctx := f.New(t), t.Context()
	legal := []string{
		"a", "a.b", "A.a", "-", "_", "=", "/", "a/b.c=d.-e_", "0.1.2", "a=", "//.//", "a./.b", "-.-", "$LATEST"[1:],
		"000000000000.eu-central-1.layer." + strings.Repeat("n", 140) + ".17",
		strings.Repeat("k", store.MaxKey), strings.Repeat("t.", store.MaxKey/2-1) + "t",
		"KV-Operation", "DEL", "records", "a.KV",
	}
	for _, k := range legal {
		must[uint64](t)(s.Create(ctx, k, []byte(k)))
	}
	for _, k := range legal {
		if got := must[store.Record](t)(s.Get(ctx, k)); got.Key != k || string(got.Value) != k {
			t.Fatalf("record %q came back as %q: %q", k, got.Key, got.Value)
		}
	}
	var keys []string
	for _, r := range must[[]store.Record](t)(s.List(ctx, "")) {
		keys = append(keys, r.Key)
	}
	slices.Sort(legal)
	if !slices.Equal(keys, legal) {
		t.Fatalf("listed %q, want %q", keys, legal)
	}
	for _, k := range []string{".", ".a", "a.", "a..b", "*", ">", "a.*", "a.>", "a b", "a\x00b", "a\nb", "ä", "$KV", "a:b", "a\\b", "a@b", "a+b",
		strings.Repeat("k", store.MaxKey+1)} {
		_, err := s.Get(ctx, k)
		is(t, err, store.ErrInvalid)
		_, err = s.Put(ctx, k, nil)
		is(t, err, store.ErrInvalid)
		_, err = s.Create(ctx, k, nil)
		is(t, err, store.ErrInvalid)
		_, err = s.Update(ctx, k, nil, 1)
		is(t, err, store.ErrInvalid)
		is(t, s.Delete(ctx, k, 0), store.ErrInvalid)
		if k == "*" || k == "a.*" { // tokens of a prefix
			continue
		}
		_, err = s.List(ctx, k)
		is(t, err, store.ErrInvalid)
		_, err = s.Watch(ctx, k)
		is(t, err, store.ErrInvalid)
	}
	_, err := s.Put(ctx, "", nil)
	is(t, err, store.ErrInvalid)
	_, err = s.Get(ctx, "")
	is(t, err, store.ErrInvalid)
}

func testValues(t *testing.T, f Factory) {
	s, ctx := f.New(t), t.Context()
	big := bytes.Repeat([]byte{0, 1, 0xff, '\r', '\n'}, store.MaxValue/5)
	for name, v := range map[string][]byte{"nil": nil, "empty": {}, "zero": {0}, "big": big} {
		must[uint64](t)(s.Put(ctx, "v."+name, v))
		if got := must[store.Record](t)(s.Get(ctx, "v."+name)); !bytes.Equal(got.Value, v) || got.Value == nil {
			t.Fatalf("value %s came back as %d bytes (nil: %t)", name, len(got.Value), got.Value == nil)
		}
	}
	_, err := s.Put(ctx, "v.toobig", make([]byte, store.MaxValue+1))
	is(t, err, store.ErrInvalid)
	for _, r := range must[[]store.Record](t)(s.List(ctx, "v")) {
		if r.Value == nil {
			t.Fatalf("listed value of %s is nil", r.Key)
		}
	}
}

func testPrefixes(t *testing.T, f Factory) {
	s, ctx := f.New(t), t.Context()
	for _, k := range []string{"a", "a.b", "a.b.c", "a.b.d", "a.bc", "a.b-c", "ab", "b.a.b", "a.c"} {
		must[uint64](t)(s.Put(ctx, k, []byte("x")))
	}
	for prefix, want := range map[string]string{
		"":      "a a.b a.b-c a.b.c a.b.d a.bc a.c ab b.a.b",
		"a":     "a a.b a.b-c a.b.c a.b.d a.bc a.c",
		"a.b":   "a.b a.b.c a.b.d",
		"a.b.c": "a.b.c",
		"b":     "b.a.b",
		"c":     "",
		"a.b.":  "!",
		"*":     "a a.b a.b-c a.b.c a.b.d a.bc a.c ab b.a.b",
		"*.b":   "a.b a.b.c a.b.d",
		"a.*":   "a.b a.b-c a.b.c a.b.d a.bc a.c",
		"*.*.b": "b.a.b",
		"*.*":   "a.b a.b-c a.b.c a.b.d a.bc a.c b.a.b",
		"a.*.c": "a.b.c",
		"a.b*":  "!",
		"*.":    "!",
		"**":    "!",
	} {
		all, err := s.List(ctx, prefix)
		if want == "!" {
			is(t, err, store.ErrInvalid)
			continue
		}
		ok(t, err)
		var got []string
		for _, r := range all {
			got = append(got, r.Key)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("prefix %q lists %q, want %q", prefix, got, want)
		}
		watched, _ := present(t, must[<-chan store.Update](t)(s.Watch(ctx, prefix)))
		if !reflect.DeepEqual(watched, fold(all)) {
			t.Errorf("prefix %q watches %v, lists %v", prefix, watched, all)
		}
	}
}

func testCompareAndSet(t *testing.T, f Factory) {
	s, ctx := f.New(t), t.Context()
	const writers, each = 8, 25
	must[uint64](t)(s.Create(ctx, "counter", []byte("0")))
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < each; {
				r, err := s.Get(ctx, "counter")
				if err != nil {
					t.Error(err)
					return
				}
				var n int
				fmt.Sscan(string(r.Value), &n)
				switch _, err := s.Update(ctx, "counter", []byte(fmt.Sprint(n+1)), r.Revision); {
				case err == nil:
					done++
				case !errors.Is(err, store.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if r := must[store.Record](t)(s.Get(ctx, "counter")); string(r.Value) != fmt.Sprint(writers*each) {
		t.Fatalf("counted to %s, want %d", r.Value, writers*each)
	}
}

func testCreateOnce(t *testing.T, f Factory) {
	s, ctx := f.New(t), t.Context()
	for round := range 10 { // after the first, over a deletion
		var wg sync.WaitGroup
		var mu sync.Mutex
		winners := 0
		for range 8 {
			wg.Go(func() {
				_, err := s.Create(ctx, "only.one", nil)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					winners++
				} else if !errors.Is(err, store.ErrConflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if winners != 1 {
			t.Fatalf("round %d: %d creators won", round, winners)
		}
		ok(t, s.Delete(ctx, "only.one", 0))
	}
}

func testReadYourWrites(t *testing.T, f Factory) {
	s, ctx := f.New(t), t.Context()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 50 {
				k := fmt.Sprintf("w.%d.%d", w, i%5)
				v := []byte(fmt.Sprint(i))
				revision, err := s.Put(ctx, k, v)
				if err != nil {
					t.Error(err)
					return
				}
				r, err := s.Get(ctx, k)
				if err != nil || !bytes.Equal(r.Value, v) || r.Revision != revision {
					t.Errorf("wrote %s = %s at %d, read %s at %d, %v", k, v, revision, r.Value, r.Revision, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// next waits for one update.
func next(t *testing.T, ch <-chan store.Update) store.Update {
	t.Helper()
	select {
	case u, open := <-ch:
		if !open {
			t.Fatal("watch ended")
		}
		return u
	case <-time.After(patience):
		t.Fatal("watch is silent")
	}
	panic("unreachable")
}

// present reads a watch up to the end of the present records.
func present(t *testing.T, ch <-chan store.Update) (map[string]store.Record, []store.Update) {
	t.Helper()
	state := map[string]store.Record{}
	var all []store.Update
	for {
		u := next(t, ch)
		if u.Key == "" {
			if !reflect.DeepEqual(u, store.Update{}) {
				t.Fatalf("the end of the present records is not zero: %+v", u)
			}
			return state, all
		}
		all = append(all, u)
		apply(t, state, u)
	}
}

// apply folds u into state.
func apply(t *testing.T, state map[string]store.Record, u store.Update) {
	t.Helper()
	if u.Revision == 0 || (u.Deleted && u.Value != nil) || (!u.Deleted && u.Value == nil) {
		t.Fatalf("malformed update %+v", u)
	}
	if u.Deleted {
		delete(state, u.Key)
	} else {
		state[u.Key] = u.Record
	}
}

func fold(all []store.Record) map[string]store.Record {
	m := map[string]store.Record{}
	for _, r := range all {
		m[r.Key] = r
	}
	return m
}

func testWatchPresent(t *testing.T, f Factory) {
	s, ctx := f.New(t), t.Context()
	empty := must[<-chan store.Update](t)(s.Watch(ctx, ""))
	if state, _ := present(t, empty); len(state) != 0 {
		t.Fatalf("an empty store holds %v", state)
	}
	for i := range 20 {
		must[uint64](t)(s.Put(ctx, fmt.Sprintf("k.%d", i), []byte("old")))
		must[uint64](t)(s.Put(ctx, fmt.Sprintf("k.%d", i), []byte("new")))
	}
	for i := range 10 {
		ok(t, s.Delete(ctx, fmt.Sprintf("k.%d", i), 0))
	}
	state, all := present(t, must[<-chan store.Update](t)(s.Watch(ctx, "k")))
	if len(state) != 10 || len(all) != 10 {
		t.Fatalf("%d records in %d updates, want 10: %v", len(state), len(all), all)
	}
	for _, r := range state {
		if string(r.Value) != "new" {
			t.Fatalf("present record %+v is old", r)
		}
	}
	// Only deleted ones are left: the end must come all the same.
	for i := range 20 {
		ok(t, s.Delete(ctx, fmt.Sprintf("k.%d", i), 0))
	}
	if state, all := present(t, must[<-chan store.Update](t)(s.Watch(ctx, "k"))); len(state)+len(all) != 0 {
		t.Fatalf("deleted records are present: %v", all)
	}
}

func testWatchChanges(t *testing.T, f Factory) {
	s, ctx := f.New(t), t.Context()
	must[uint64](t)(s.Put(ctx, "a.old", []byte("0")))
	ch := must[<-chan store.Update](t)(s.Watch(ctx, "a"))
	present(t, ch)
	last := uint64(0)
	expect := func(key, value string, deleted bool) {
		t.Helper()
		u := next(t, ch)
		if u.Key != key || string(u.Value) != value || u.Deleted != deleted || u.Revision <= last {
			t.Fatalf("got %+v after revision %d, want %s = %q (deleted: %t)", u, last, key, value, deleted)
		}
		last = u.Revision
	}
	// One at a time, none can be merged into the next.
	revision := must[uint64](t)(s.Put(ctx, "a.new", []byte("1")))
	expect("a.new", "1", false)
	if last != revision {
		t.Fatalf("update has revision %d, the write %d", last, revision)
	}
	must[uint64](t)(s.Put(ctx, "b.other", []byte("x")))
	must[uint64](t)(s.Put(ctx, "ab", []byte("x")))
	must[uint64](t)(s.Update(ctx, "a.new", []byte("2"), revision))
	expect("a.new", "2", false)
	ok(t, s.Delete(ctx, "a.old", 0))
	expect("a.old", "", true)
	ok(t, s.Delete(ctx, "a.old", 0)) // no change
	_, err := s.Create(ctx, "a.new", nil)
	is(t, err, store.ErrConflict) // no change
	must[uint64](t)(s.Create(ctx, "a.old", nil))
	expect("a.old", "", false)
}

func testWatchConcurrent(t *testing.T, f Factory) {
	s, ctx := f.New(t), t.Context()
	const writers, each = 4, 60
	// Keys written once are each seen; keys written often end right; deletions are
	// seen; two watchers, one begun in the middle, agree with List.
	first := must[<-chan store.Update](t)(s.Watch(ctx, "w"))
	present(t, first)
	var wg sync.WaitGroup
	half := make(chan struct{}, writers)
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if i == each/2 {
					half <- struct{}{}
				}
				once, often := fmt.Sprintf("w.once.%d.%d", w, i), fmt.Sprintf("w.often.%d", i%3)
				if _, err := s.Create(ctx, once, []byte("x")); err != nil {
					t.Error(err)
				}
				if _, err := s.Put(ctx, often, []byte(fmt.Sprint(w, i))); err != nil {
					t.Error(err)
				}
				if i%4 == 0 {
					if err := s.Delete(ctx, once, 0); err != nil {
						t.Error(err)
					}
				}
				if i%7 == 0 {
					if err := s.Delete(ctx, often, 0); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	<-half
	second := must[<-chan store.Update](t)(s.Watch(ctx, "w"))
	wg.Wait()
	revision := must[uint64](t)(s.Put(ctx, "w.end", []byte("end")))
	want := fold(must[[]store.Record](t)(s.List(ctx, "w")))

	for name, ch := range map[string]<-chan store.Update{"first": first, "second": second} {
		state := map[string]store.Record{}
		seen := map[string]bool{}
		gone := map[string]bool{}
		last := uint64(0)
		ends, wantEnds := 0, map[string]int{"first": 0, "second": 1}[name]
		for last != revision || ends < wantEnds {
			u := next(t, ch)
			if u.Key == "" {
				ends++
				continue
			}
			if u.Revision <= last {
				t.Fatalf("%s watch: revision %d after %d", name, u.Revision, last)
			}
			last = u.Revision
			apply(t, state, u)
			seen[u.Key] = true
			gone[u.Key] = gone[u.Key] || u.Deleted
		}
		if !reflect.DeepEqual(state, want) {
			t.Errorf("%s watch folds to %d records, List says %d", name, len(state), len(want))
		}
		if ends != wantEnds {
			t.Errorf("%s watch: %d ends of the present records, want %d", name, ends, wantEnds)
		}
		if name == "first" {
			for w := range writers {
				for i := range each {
					k := fmt.Sprintf("w.once.%d.%d", w, i)
					if !seen[k] || (i%4 == 0) != gone[k] {
						t.Errorf("watch missed something of %s: seen %t, deleted %t", k, seen[k], gone[k])
					}
				}
			}
		}
	}
}

// testWatchSlow has a watcher that does not read: writers go on, and in the end it
// has everything.
func testWatchSlow(t *testing.T, f Factory) {
	s, ctx := f.New(t), t.Context()
	ch := must[<-chan store.Update](t)(s.Watch(ctx, ""))
	const n = 400
	for i := range n {
		must[uint64](t)(s.Put(ctx, fmt.Sprintf("k.%d", i), bytes.Repeat([]byte("v"), 2000)))
	}
	state := map[string]store.Record{}
	for len(state) < n {
		if u := next(t, ch); u.Key != "" {
			apply(t, state, u)
		}
	}
}

func testWatchEnds(t *testing.T, f Factory) {
	s := f.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	ch := must[<-chan store.Update](t)(s.Watch(ctx, ""))
	present(t, ch)
	cancel()
	closed(t, ch)
	_, err := s.Watch(ctx, "")
	is(t, err, context.Canceled)
	// With updates nobody reads.
	ctx, cancel = context.WithCancel(t.Context())
	ch = must[<-chan store.Update](t)(s.Watch(ctx, ""))
	for i := range 200 {
		must[uint64](t)(s.Put(t.Context(), fmt.Sprintf("k.%d", i), nil))
	}
	cancel()
	closed(t, ch)
}

func closed(t *testing.T, ch <-chan store.Update) {
	t.Helper()
	for timeout := time.After(patience); ; {
		select {
		case _, open := <-ch:
			if !open {
				return
			}
		case <-timeout:
			t.Fatal("the channel was not closed")
		}
	}
}

// testListConcurrent checks that what is there all the time is always listed,
// however much it and its neighbours are rewritten meanwhile.
func testListConcurrent(t *testing.T, f Factory) {
	s, ctx := f.New(t), t.Context()
	const n = 40
	for i := range n {
		must[uint64](t)(s.Put(ctx, fmt.Sprintf("l.stay.%d", i), []byte("0")))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := s.Put(ctx, fmt.Sprintf("l.stay.%d", (i*7+w)%n), []byte(fmt.Sprint(i))); err != nil {
					t.Error(err)
				}
				if _, err := s.Put(ctx, fmt.Sprintf("l.new.%d.%d", w, i), nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 30 {
		stayed := 0
		all, err := s.List(ctx, "l")
		if err != nil {
			t.Error(err)
			break
		}
		for _, r := range all {
			if strings.HasPrefix(r.Key, "l.stay.") {
				stayed++
			}
		}
		if stayed != n {
			t.Errorf("%d of %d records listed", stayed, n)
			break
		}
		if !slices.IsSortedFunc(all, func(a, b store.Record) int { return strings.Compare(a.Key, b.Key) }) {
			t.Error("the list is not sorted")
			break
		}
	}
	close(stop)
	wg.Wait()
}

func testCancelled(t *testing.T, f Factory) {
	s := f.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Get(ctx, "k")
	is(t, err, context.Canceled)
	_, err = s.Put(ctx, "k", nil)
	is(t, err, context.Canceled)
	_, err = s.Create(ctx, "k", nil)
	is(t, err, context.Canceled)
	_, err = s.Update(ctx, "k", nil, 1)
	is(t, err, context.Canceled)
	is(t, s.Delete(ctx, "k", 0), context.Canceled)
	_, err = s.List(ctx, "")
	is(t, err, context.Canceled)
	_, err = s.Get(t.Context(), "k")
	is(t, err, store.ErrNotFound)
}

func testReopen(t *testing.T, f Factory) {
	if f.Reopen == nil {
		return // it does not persist
	}
	s, ctx := f.New(t), t.Context()
	watch := must[<-chan store.Update](t)(s.Watch(ctx, ""))
	var last uint64
	for i := range 50 {
		k := fmt.Sprintf("p.%d", i)
		last = must[uint64](t)(s.Put(ctx, k, []byte(fmt.Sprint(i))))
		if i%3 == 0 {
			ok(t, s.Delete(ctx, k, last))
		}
	}
	before := must[[]store.Record](t)(s.List(ctx, ""))
	old := s
	s = f.Reopen(t, s)
	closed(t, watch)
	_, err := old.Get(ctx, "p.1")
	is(t, err, store.ErrClosed)
	if after := must[[]store.Record](t)(s.List(ctx, "")); !reflect.DeepEqual(before, after) {
		t.Fatalf("before: %v\nafter: %v", before, after)
	}
	// Conditions hold across the restart, over deletions too.
	_, err = s.Create(ctx, "p.1", nil)
	is(t, err, store.ErrConflict)
	must[uint64](t)(s.Create(ctx, "p.0", nil))
	r := must[store.Record](t)(s.Get(ctx, "p.1"))
	if newer := must[uint64](t)(s.Update(ctx, "p.1", nil, r.Revision)); newer <= last {
		t.Fatalf("revision went from %d to %d by the restart", last, newer)
	}
	s = f.Reopen(t, f.Reopen(t, s))
	must[store.Record](t)(s.Get(ctx, "p.0"))
}

// testMany reads more records than any engine sends in one piece.
func testMany(t *testing.T, f Factory) {
	s, ctx := f.New(t), t.Context()
	const n = 2500
	var wg sync.WaitGroup
	for w := range 10 {
		wg.Go(func() {
			for i := w; i < n; i += 10 {
				if _, err := s.Put(ctx, fmt.Sprintf("m.%d", i), bytes.Repeat([]byte("v"), 500)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if all := must[[]store.Record](t)(s.List(ctx, "m")); len(all) != n {
		t.Fatalf("listed %d of %d", len(all), n)
	}
	if state, all := present(t, must[<-chan store.Update](t)(s.Watch(ctx, "m"))); len(state) != n || len(all) != n {
		t.Fatalf("watched %d of %d in %d updates", len(state), n, len(all))
	}
}
