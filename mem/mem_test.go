package mem

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/lambdad/lambdad/blob"
	"github.com/lambdad/lambdad/blob/blobtest"
	"github.com/lambdad/lambdad/queue"
	"github.com/lambdad/lambdad/queue/queuetest"
	"github.com/lambdad/lambdad/store"
	"github.com/lambdad/lambdad/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStore(t *testing.T) {
	storetest.Test(t, storetest.Factory{New: func(t *testing.T) store.Store {
		s := NewStore()
		t.Cleanup(func() { s.Close() })
		return s
	}})
}

func TestQueue(t *testing.T) {
	queuetest.Test(t, queuetest.Factory{New: func(t *testing.T) queue.Queue {
		q := NewQueue()
		t.Cleanup(func() { q.Close() })
		return q
	}})
}

func TestBlobs(t *testing.T) {
	blobtest.Test(t, blobtest.Factory{New: func(*testing.T) blob.Store { return NewBlobs() }})
}

// An id is remembered for two minutes and then forgotten.
func TestDedupWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, ctx := NewQueue(), t.Context()
		for range 3 {
			for _, id := range []string{"a", "b"} {
				if err := q.Enqueue(ctx, "s", id, nil); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(queue.DedupWindow / 2)
		}
		if n, _ := q.Len(ctx, ""); n != 4 {
			t.Fatalf("%d messages, want 4: two ids, remembered at 1 min, forgotten at 2 min", n)
		}
		time.Sleep(2 * queue.DedupWindow)
		if err := q.Enqueue(ctx, "s", "c", nil); err != nil {
			t.Fatal(err)
		}
		if len(q.ids) != 1 {
			t.Fatalf("%d ids kept, want 1", len(q.ids))
		}
	})
}

// A lease of an hour ends after an hour.
func TestLongLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, ctx := NewQueue(), t.Context()
		if err := q.Enqueue(ctx, "s", "", nil); err != nil {
			t.Fatal(err)
		}
		m, err := q.Receive(ctx, "s", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Minute)
		if err := m.Extend(ctx); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if m, err = q.Receive(ctx, "s", time.Hour); err != nil || m.Attempt() != 2 || time.Since(begin) != time.Hour {
			t.Fatalf("came back after %v, attempt %d, %v", time.Since(begin), m.Attempt(), err)
		}
		if err := m.Ack(ctx); err != nil {
			t.Fatal(err)
		}
	})
}
