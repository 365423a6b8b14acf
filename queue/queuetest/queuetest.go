// Package queuetest is the contract of queue.Queue as a test: give it a
// constructor, it tests the implementation.
package queuetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lambdad/lambdad/queue"
)

const (
	patience = 20 * time.Second // for what happens at once unless it is broken
	long     = time.Minute      // a lease that does not end during a test
	short    = 150 * time.Millisecond
	// silence is how long a test waits to see that nothing comes.
	silence = 50 * time.Millisecond
)

// A Factory makes queues to be tested.
type Factory struct {
	// New returns an empty queue that is cleaned up with t.
	New func(t *testing.T) queue.Queue
	// Reopen closes a queue that New or Reopen returned and opens it again, as
	// after a restart. Nil: the implementation does not persist.
	Reopen func(t *testing.T, q queue.Queue) queue.Queue
}

// Test runs the suite.
func Test(t *testing.T, f Factory) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, Factory)
	}{
		{"Basics", testBasics}, {"Prefixes", testPrefixes}, {"Overlap", testOverlap}, {"Waiting", testWaiting}, {"Cancelled", testCancelled},
		{"LeaseEnds", testLeaseEnds}, {"Extend", testExtend}, {"Retry", testRetry}, {"LeaseLost", testLeaseLost},
		{"Dedup", testDedup}, {"Big", testBig}, {"Invalid", testInvalid}, {"Concurrent", testConcurrent}, {"Reopen", testReopen},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, f) })
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

func receive(t *testing.T, q queue.Queue, prefix string, lease time.Duration) queue.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := q.Receive(ctx, prefix, lease)
	if err != nil {
		t.Fatalf("receiving under %q: %v", prefix, err)
	}
	return m
}

// none checks that no message comes.
func none(t *testing.T, q queue.Queue, prefix string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), silence)
	defer cancel()
	if m, err := q.Receive(ctx, prefix, long); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got message %v and error %v, want none", m, err)
	}
}

func length(t *testing.T, q queue.Queue, prefix string, want int) {
	t.Helper()
	n, err := q.Len(t.Context(), prefix)
	if err != nil || n != want {
		t.Fatalf("%d messages under %q, %v; want %d", n, prefix, err, want)
	}
}

func testBasics(t *testing.T, f Factory) {
	q, ctx := f.New(t), t.Context()
	length(t, q, "", 0)
	before := time.Now()
	body := []byte("body 0")
	ok(t, q.Enqueue(ctx, "a.us.async.f", "", body))
	copy(body, "other ")
	for i := 1; i < 5; i++ {
		ok(t, q.Enqueue(ctx, "a.us.async.f", "", fmt.Append(nil, "body ", i)))
	}
	length(t, q, "a.us", 5)
	for i := range 5 {
		m := receive(t, q, "a.us.async", long)
		if string(m.Body()) != fmt.Sprint("body ", i) || m.Subject() != "a.us.async.f" || m.Attempt() != 1 {
			t.Fatalf("message %d: %s %q attempt %d", i, m.Subject(), m.Body(), m.Attempt())
		}
		if at := m.Enqueued(); at.Before(before.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
			t.Fatalf("enqueued at %v, now is %v", at, time.Now())
		}
		length(t, q, "a.us", 5-i) // leased ones count
		ok(t, m.Ack(ctx))
		length(t, q, "a.us", 4-i)
	}
	ok(t, q.Enqueue(ctx, "a.us.async.f", "", nil))
	if m := receive(t, q, "a.us.async", long); len(m.Body()) != 0 {
		t.Fatalf("empty body came as %q", m.Body())
	}
}

func testPrefixes(t *testing.T, f Factory) {
	q, ctx := f.New(t), t.Context()
	for _, s := range []string{"a.b", "a.b.c", "a.bc", "ab.c", "a/=_-.B"} {
		ok(t, q.Enqueue(ctx, s, "", []byte(s)))
	}
	for prefix, n := range map[string]int{"": 5, "a": 3, "a.b": 2, "a.b.c": 1, "a.bc": 1, "ab": 1, "b": 0, "a/=_-": 1} {
		length(t, q, prefix, n)
	}
	for prefix, want := range map[string]string{"a.b": "a.b a.b.c", "a.bc": "a.bc", "ab.c": "ab.c", "a/=_-": "a/=_-.B"} {
		for s := range strings.FieldsSeq(want) {
			m := receive(t, q, prefix, long)
			if m.Subject() != s || string(m.Body()) != s {
				t.Fatalf("under %q came %s %q, want %s", prefix, m.Subject(), m.Body(), s)
			}
			ok(t, m.Ack(ctx))
		}
		none(t, q, prefix)
	}
	length(t, q, "", 0)
	ok(t, q.Enqueue(ctx, "any.thing", "", nil))
	ok(t, receive(t, q, "", long).Ack(ctx))
}

func testOverlap(t *testing.T, f Factory) {
	q, ctx := f.New(t), t.Context()
	ok(t, q.Enqueue(ctx, "a.b.c", "", nil))
	ok(t, q.Enqueue(ctx, "a.d", "", nil))
	m := receive(t, q, "a.b", long)
	for _, prefix := range []string{"", "a", "a.b.c"} {
		_, err := q.Receive(ctx, prefix, long)
		is(t, err, queue.ErrOverlap)
	}
	none(t, q, "a.bc")
	ok(t, m.Retry(ctx, 0))
	// Nobody uses a.b any more: its message can be had under another prefix.
	for range 2 {
		ok(t, receive(t, q, "a", long).Ack(ctx))
	}
	ok(t, q.Enqueue(ctx, "a.b.c", "", nil))
	ok(t, receive(t, q, "a.b.c", long).Ack(ctx))
	ok(t, q.Enqueue(ctx, "a.b.c", "", nil))
	ok(t, receive(t, q, "", long).Ack(ctx))
}

func testWaiting(t *testing.T, f Factory) {
	q, ctx := f.New(t), t.Context()
	// Receivers that are there before the messages get one each.
	const n = 5
	got := make(chan queue.Message, n)
	for range n {
		go func() {
			m, err := q.Receive(ctx, "w", long)
			if err != nil {
				t.Error(err)
			}
			got <- m
		}()
	}
	none(t, q, "w") // another, which has left again
	for i := range n {
		ok(t, q.Enqueue(ctx, "w.x", "", []byte{byte(i)}))
	}
	seen := map[byte]bool{}
	for range n {
		select {
		case m := <-got:
			if m == nil {
				t.Fatal("no message")
			}
			seen[m.Body()[0]] = true
			ok(t, m.Ack(ctx))
		case <-time.After(patience):
			t.Fatalf("receivers got %d of %d messages", len(seen), n)
		}
	}
	if len(seen) != n {
		t.Fatalf("%d messages, want %d", len(seen), n)
	}
}

func testCancelled(t *testing.T, f Factory) {
	q := f.New(t)
	// A receiver that gives up takes nothing with it, whenever it does.
	for i := range 30 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan queue.Message, 1)
		go func() {
			m, err := q.Receive(ctx, "c", long)
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			done <- m
		}()
		go cancel()
		ok(t, q.Enqueue(t.Context(), "c.x", "", []byte{byte(i)}))
		m := <-done
		if m == nil {
			m = receive(t, q, "c", long)
		}
		if m.Body()[0] != byte(i) || m.Attempt() != 1 {
			t.Fatalf("round %d: message %d, attempt %d", i, m.Body()[0], m.Attempt())
		}
		ok(t, m.Ack(t.Context()))
	}
	length(t, q, "", 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	is(t, q.Enqueue(ctx, "c.x", "", nil), context.Canceled)
	_, err := q.Receive(ctx, "c", long)
	is(t, err, context.Canceled)
	length(t, q, "", 0)
}

func testLeaseEnds(t *testing.T, f Factory) {
	q, ctx := f.New(t), t.Context()
	ok(t, q.Enqueue(ctx, "l.x", "", []byte("it")))
	for attempt := 1; attempt <= 3; attempt++ {
		begin := time.Now()
		m := receive(t, q, "l", short)
		if m.Attempt() != attempt || string(m.Body()) != "it" {
			t.Fatalf("attempt %d of %q, want %d", m.Attempt(), m.Body(), attempt)
		}
		if attempt == 1 {
			none(t, q, "l") // leased
			continue
		}
		if waited := time.Since(begin); waited < short-silence-40*time.Millisecond {
			t.Fatalf("a message leased for %v came back after %v", short, waited)
		}
	}
	length(t, q, "l", 1)
	m := receive(t, q, "l", long)
	ok(t, m.Ack(ctx))
	none(t, q, "l")
}

func testExtend(t *testing.T, f Factory) {
	q, ctx := f.New(t), t.Context()
	ok(t, q.Enqueue(ctx, "e.x", "", nil))
	m := receive(t, q, "e", 4*short)
	for until := time.Now().Add(8 * short); time.Now().Before(until); {
		none(t, q, "e")
		ok(t, m.Extend(ctx))
	}
	// Not extended any more, it comes back.
	if again := receive(t, q, "e", long); again.Attempt() != 2 {
		t.Fatalf("attempt %d, want 2", again.Attempt())
	}
	is(t, m.Extend(ctx), queue.ErrLeaseLost)
}

func testRetry(t *testing.T, f Factory) {
	q, ctx := f.New(t), t.Context()
	ok(t, q.Enqueue(ctx, "r.x", "", []byte("it")))
	m := receive(t, q, "r", long)
	ok(t, m.Retry(ctx, 0))
	m = receive(t, q, "r", long)
	if m.Attempt() != 2 {
		t.Fatalf("attempt %d, want 2", m.Attempt())
	}
	begin := time.Now()
	ok(t, m.Retry(ctx, 2*short))
	length(t, q, "r", 1)
	// One that waits stands in nobody's way.
	ok(t, q.Enqueue(ctx, "r.x", "", []byte("other")))
	other := receive(t, q, "r", long)
	if string(other.Body()) != "other" {
		t.Fatalf("got %q, want the other", other.Body())
	}
	ok(t, other.Ack(ctx))
	m = receive(t, q, "r", long)
	if waited := time.Since(begin); string(m.Body()) != "it" || m.Attempt() != 3 || waited < 2*short-10*time.Millisecond {
		t.Fatalf("%q came back after %v, attempt %d; want it after %v, attempt 3", m.Body(), waited, m.Attempt(), 2*short)
	}
	ok(t, m.Ack(ctx))
	length(t, q, "", 0)
}

func testLeaseLost(t *testing.T, f Factory) {
	q, ctx := f.New(t), t.Context()
	ok(t, q.Enqueue(ctx, "l.x", "", nil))
	m := receive(t, q, "l", short)
	second := receive(t, q, "l", long) // after the first lease
	is(t, m.Ack(ctx), queue.ErrLeaseLost)
	is(t, m.Retry(ctx, 0), queue.ErrLeaseLost)
	is(t, m.Extend(ctx), queue.ErrLeaseLost)
	length(t, q, "", 1)
	none(t, q, "l")
	ok(t, second.Retry(ctx, 0))
	is(t, second.Ack(ctx), queue.ErrLeaseLost)
	is(t, second.Retry(ctx, 0), queue.ErrLeaseLost)
	third := receive(t, q, "l", long)
	ok(t, third.Ack(ctx))
	is(t, third.Ack(ctx), queue.ErrLeaseLost)
	is(t, third.Extend(ctx), queue.ErrLeaseLost)
	length(t, q, "", 0)
}

func testDedup(t *testing.T, f Factory) {
	q, ctx := f.New(t), t.Context()
	id := "an id with\nanything in it: ä\x00" + strings.Repeat("x", 300)
	ok(t, q.Enqueue(ctx, "d.x", id, []byte("1")))
	ok(t, q.Enqueue(ctx, "d.x", id, []byte("2")))
	length(t, q, "d", 1)
	ok(t, q.Enqueue(ctx, "d.y", id, nil)) // ids are a subject's own
	ok(t, q.Enqueue(ctx, "d.x", "other", nil))
	ok(t, q.Enqueue(ctx, "d.x", "", nil))
	ok(t, q.Enqueue(ctx, "d.x", "", nil))
	length(t, q, "d", 5)
	m := receive(t, q, "d", long)
	if string(m.Body()) != "1" {
		t.Fatalf("got %q, want the first", m.Body())
	}
	ok(t, m.Ack(ctx))
	ok(t, q.Enqueue(ctx, "d.x", id, []byte("3")))
	length(t, q, "d", 4)
	// Many at once.
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if err := q.Enqueue(ctx, "e.x", "same", nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	length(t, q, "e", 1)
}

func testBig(t *testing.T, f Factory) {
	q, ctx := f.New(t), t.Context()
	body := bytes.Repeat([]byte("0123456\x00"), queue.MaxMessage/8)
	for range 3 {
		ok(t, q.Enqueue(ctx, "b.x", "", body))
	}
	for range 3 {
		m := receive(t, q, "b", long)
		if !bytes.Equal(m.Body(), body) {
			t.Fatalf("%d bytes came back changed (%d)", len(body), len(m.Body()))
		}
		ok(t, m.Ack(ctx))
	}
	is(t, q.Enqueue(ctx, "b.x", "", make([]byte, queue.MaxMessage+1)), queue.ErrTooLarge)
	length(t, q, "", 0)
}

func testInvalid(t *testing.T, f Factory) {
	q, ctx := f.New(t), t.Context()
	for _, s := range []string{"a.*", ">", "a..b", "a.", "a b"} {
		is(t, q.Enqueue(ctx, s, "", nil), queue.ErrInvalid)
		_, err := q.Receive(ctx, s, long)
		is(t, err, queue.ErrInvalid)
		_, err = q.Len(ctx, s)
		is(t, err, queue.ErrInvalid)
	}
	is(t, q.Enqueue(ctx, "", "", nil), queue.ErrInvalid)
	_, err := q.Receive(ctx, "a", 0)
	is(t, err, queue.ErrInvalid)
}

// testConcurrent has several senders and receivers, some of which fail: each
// message is handled, and leased to one at a time.
func testConcurrent(t *testing.T, f Factory) {
	q := f.New(t)
	const senders, each = 4, 50
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var mu sync.Mutex
	leased, attempts, handled := map[string]bool{}, map[string]int{}, 0
	var wg sync.WaitGroup
	for r := range 6 {
		wg.Go(func() {
			prefix := fmt.Sprintf("q.%d", r%2)
			for n := 0; ; n++ {
				m, err := q.Receive(ctx, prefix, long)
				if err != nil {
					if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					return
				}
				id := string(m.Body())
				mu.Lock()
				attempts[id]++
				if leased[id] || attempts[id] != m.Attempt() || !strings.HasPrefix(m.Subject(), prefix+".") {
					t.Errorf("message %s under %s: leased already: %t, attempt %d, counted %d", id, m.Subject(), leased[id], m.Attempt(), attempts[id])
				}
				leased[id] = true
				mu.Unlock()
				// The lease is over before the call returns.
				mu.Lock()
				leased[id] = false
				mu.Unlock()
				if n%3 == 0 {
					err = m.Retry(ctx, time.Duration(n%2)*time.Millisecond)
				} else if err = m.Ack(ctx); err == nil {
					mu.Lock()
					if handled++; handled == senders*each {
						cancel()
					}
					mu.Unlock()
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				if err := q.Enqueue(t.Context(), fmt.Sprintf("q.%d.f%d", i%2, s), "", fmt.Append(nil, s, ".", i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if handled != senders*each || len(attempts) != senders*each {
		t.Fatalf("%d messages handled, %d seen, want %d", handled, len(attempts), senders*each)
	}
	length(t, q, "", 0)
}

func testReopen(t *testing.T, f Factory) {
	if f.Reopen == nil {
		return // it does not persist
	}
	q, ctx := f.New(t), t.Context()
	for i := range 6 {
		ok(t, q.Enqueue(ctx, "p.x", fmt.Sprint(i), []byte{byte(i)}))
	}
	ok(t, receive(t, q, "p", long).Ack(ctx))              // 0
	leased := receive(t, q, "p", time.Hour)               // 1
	ok(t, receive(t, q, "p", long).Retry(ctx, time.Hour)) // 2
	waiting := make(chan error, 1)
	go func() {
		_, err := q.Receive(ctx, "other", long)
		waiting <- err
	}()
	none(t, q, "other")
	q = f.Reopen(t, q)
	select {
	case err := <-waiting:
		is(t, err, queue.ErrClosed)
	case <-time.After(patience):
		t.Fatal("closing does not end a waiting receiver")
	}
	is(t, leased.Ack(ctx), queue.ErrClosed)
	length(t, q, "p", 5)
	ok(t, q.Enqueue(ctx, "p.x", "5", []byte{5})) // its id is known
	length(t, q, "p", 5)
	seen := map[byte]bool{}
	for range 5 {
		m := receive(t, q, "p", long)
		i := m.Body()[0]
		seen[i] = true
		if want := map[bool]int{true: 2, false: 1}[i <= 2]; m.Attempt() != want {
			t.Errorf("message %d: attempt %d, want %d", i, m.Attempt(), want)
		}
		if i == 5 {
			ok(t, m.Ack(ctx))
		}
	}
	if len(seen) != 5 || seen[0] {
		t.Fatalf("messages %v came back", seen)
	}
	// The next one may receive under another prefix.
	q = f.Reopen(t, q)
	for range 4 {
		ok(t, receive(t, q, "", long).Ack(ctx))
	}
	q = f.Reopen(t, q)
	length(t, q, "", 0)
}
