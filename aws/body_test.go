package aws

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"

	"golang.org/x/sync/semaphore"
)

// TestBodyBudgets holds that the memory for the bodies that one environment sends is
// bounded, that it keeps no other environment waiting, and that all of them together
// keep nobody on the host waiting.
func TestBodyBudgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const others = 3 // besides the first that fit into what sandboxes have together
		m := NewMux(nil, Options{BodyMemory: 2 * (1 + others) * maxSandboxBodies})
		// begin is a body that has come in part, and says whether there was room for it.
		begin := func(l *listener, size int64) (ok bool, release func()) {
			ctx := t.Context()
			if l != nil {
				ctx = context.WithValue(ctx, listenerKey{}, l)
			}
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, "/", nil)
			if err != nil {
				t.Fatal(err)
			}
			release, err = m.reserve(r, size)
			return err == nil, release
		}
		environment := func() *listener { return &listener{"e", semaphore.NewWeighted(maxSandboxBodies)} }
		first := environment()
		const size = maxSandboxBodies / 4 // half of its budget, with what is decoded of it
		ok, release := begin(first, size)
		if !ok {
			t.Fatal("no room for the first body of an environment")
		}
		if ok, _ := begin(first, size); !ok {
			t.Error("no room for the second")
		}
		if ok, _ := begin(first, size); ok {
			t.Error("room for a third at the same time")
		}
		if ok, _ := begin(first, smallSandboxBody+1); ok {
			t.Error("room for one just too large to be free")
		}
		if ok, _ := begin(first, smallSandboxBody); !ok {
			t.Error("no room for a small one")
		}
		release()
		if ok, _ := begin(first, size); !ok {
			t.Error("no room when one was over")
		}
		for range others {
			l := environment()
			if ok, _ := begin(l, maxSandboxBodies/2); !ok {
				t.Error("another environment waits")
			}
		}
		if ok, _ := begin(environment(), maxSandboxBodies/2); ok {
			t.Error("sandboxes have more than their half")
		}
		if ok, _ := begin(nil, maxSandboxBodies); !ok {
			t.Error("a client on the host waits for sandboxes")
		}
		// What is larger than the whole budget of an environment is alone.
		m = NewMux(nil, Options{})
		alone := environment()
		ok, release = begin(alone, 3*maxSandboxBodies)
		if !ok {
			t.Error("no room for a large body")
		}
		if ok, _ := begin(alone, smallSandboxBody+1); ok {
			t.Error("room beside a large body")
		}
		release()
	})
}
