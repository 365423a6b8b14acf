// Package integration_test runs the real binary as its users do: whole lives of a
// server under load, under kill -9 and beside others.
package integration_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/lambdad/lambdad/integration/harness"
)

// A book is what the server has acknowledged: function name to description. An
// operation without an answer leaves both outcomes possible.
type book struct {
	mu    sync.Mutex
	known map[string]string // acknowledged
	maybe map[string]bool   // an operation on it was in flight when the server died
}

func TestMain(m *testing.M) { harness.Main(m) }

// inFlight counts operations by kind that have no answer yet.
type inFlight struct{ create, update, remove, cold, frozen, shutting atomic.Int64 }

// kinds is what a kill can hit.
var kinds = []string{"create", "update", "delete", "cold start", "frozen", "shutting down"}

// TestKill kills the server 50 times while creates, updates, deletes, cold starts,
// freezes and shutdowns are in flight, each time when the kind whose turn it is
// was just seen. What was acknowledged is there after each restart, a first
// invocation works, nothing survives the server by a second, and nothing is left
// after the next start.
func TestKill(t *testing.T) {
	harness.NeedRoot(t)
	const kills = 50
	dataDir := t.TempDir()
	b := &book{known: map[string]string{}, maybe: map[string]bool{}}
	seen := map[string]int{}
	for round := range kills {
		s := harness.Start(t, dataDir, "--idle-timeout", "150ms", "--log-level", "error")
		b.check(t, s, round)
		if round == 0 {
			// An extension, so that a shutdown is a conversation and not one signal.
			layer := s.Layer(t.Context(), "hello", "extensions/hello-extension", harness.Program(t, "extension"))
			for i := range 4 {
				name := fmt.Sprintf("steady%d", i)
				err := s.Create(t.Context(), name, func(in *lambda.CreateFunctionInput) {
					if i >= 2 {
						in.Layers = []string{layer}
					}
				})
				if err != nil {
					t.Fatal(err)
				}
				b.known[name] = ""
			}
		}
		if _, err := s.Invoke(t.Context(), "steady0", `{}`); err != nil {
			t.Fatalf("round %d: the first invocation after a restart: %v", round, err)
		}
		for what, n := range b.work(t, s, round) {
			if n > 0 {
				seen[what]++
			}
		}
		deadline := time.Now().Add(time.Second)
		for len(harness.ProcessStates(t, "lambdad-"+s.ID)) > 0 {
			if time.Now().After(deadline) {
				t.Fatalf("round %d: processes survived the server by a second: %v", round, harness.ProcessStates(t, "lambdad-"+s.ID))
			}
			time.Sleep(10 * time.Millisecond)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("rounds of %d with work of each kind in flight at the kill: %v", kills, seen)
	for _, what := range kinds {
		if seen[what] == 0 {
			t.Errorf("no kill hit a %s", what)
		}
	}
	s := harness.Start(t, dataDir)
	b.check(t, s, kills)
	s.Stop()
	if left := harness.ProcessStates(t, "lambdad-"+s.ID); len(left) > 0 {
		t.Errorf("processes after a clean stop: %v", left)
	}
	harness.LeftOnHost(t, s.ID)
}

// check compares the server's functions with the book.
func (b *book) check(t *testing.T, s *harness.Server, round int) {
	t.Helper()
	have := map[string]string{}
	pages := lambda.NewListFunctionsPaginator(s.Client, &lambda.ListFunctionsInput{})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatalf("round %d: listing: %v", round, err)
		}
		for _, f := range page.Functions {
			have[*f.FunctionName] = aws.ToString(f.Description)
		}
	}
	for name, description := range b.known {
		got, ok := have[name]
		switch {
		case b.maybe[name]:
		case !ok:
			t.Errorf("round %d: %s was acknowledged and is gone", round, name)
		case got != description:
			t.Errorf("round %d: %s has description %q, acknowledged was %q", round, name, got, description)
		}
	}
	for name := range have {
		if _, ok := b.known[name]; !ok && !b.maybe[name] {
			t.Errorf("round %d: %s was deleted, acknowledged, and is back", round, name)
		}
	}
	// What could have been either way is settled now.
	b.known, b.maybe = have, map[string]bool{}
}

// work runs clients against the server, kills it in the middle and says what was
// in flight.
func (b *book) work(t *testing.T, s *harness.Server, round int) map[string]int64 {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var flying inFlight
	var wg sync.WaitGroup
	random := rand.New(rand.NewPCG(uint64(round), 42))
	loop := func(f func(i int)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; ctx.Err() == nil; i++ {
				f(i)
			}
		}()
	}
	// Small code, so that creates are many and leave the processor to the rest.
	script := filepath.Join(t.TempDir(), "bootstrap")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	zip := harness.ZipOf(t, "bootstrap", script)
	loop(func(i int) {
		name := fmt.Sprintf("f%d-%d", round, i)
		b.change(&flying.create, name, fmt.Sprint("made in round ", round), func() error {
			_, err := s.Client.CreateFunction(ctx, &lambda.CreateFunctionInput{
				FunctionName: aws.String(name), Runtime: types.RuntimeProvidedal2023, Handler: aws.String("bootstrap"),
				Role: aws.String("arn:aws:iam::000000000000:role/any"), Code: &types.FunctionCode{ZipFile: zip},
				Description: aws.String(fmt.Sprint("made in round ", round)),
			})
			return err
		})
	})
	loop(func(i int) {
		name := fmt.Sprintf("steady%d", i%4)
		b.change(&flying.update, name, fmt.Sprint("update ", round, ".", i), func() error {
			_, err := s.Client.UpdateFunctionConfiguration(ctx, &lambda.UpdateFunctionConfigurationInput{
				FunctionName: aws.String(name), Description: aws.String(fmt.Sprint("update ", round, ".", i))})
			return err
		})
		time.Sleep(20 * time.Millisecond) // an update retires what is frozen
	})
	loop(func(int) {
		b.mu.Lock()
		names := slices.DeleteFunc(slices.Sorted(maps.Keys(b.known)), func(name string) bool { return name[0] == 's' })
		b.mu.Unlock()
		if len(names) == 0 {
			time.Sleep(time.Millisecond)
			return
		}
		name := names[0]
		b.change(&flying.remove, name, gone, func() error {
			_, err := s.Client.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: aws.String(name)})
			return err
		})
	})
	for w := range 3 { // cold starts, freezes, and shutdowns by the short idle time
		loop(func(i int) {
			flying.cold.Add(1)
			_, _ = s.Invoke(ctx, fmt.Sprintf("steady%d", (w+i)%4), `{"sleepMs": 5}`)
			flying.cold.Add(-1)
			time.Sleep(time.Duration(50+200*(i%2)) * time.Millisecond)
		})
	}
	loop(func(int) {
		list, err := s.Environments(ctx)
		if err != nil {
			return
		}
		var frozen, shutting int64
		for _, e := range list {
			switch e.State {
			case "frozen":
				frozen++
			case "shutting-down":
				shutting++
			}
		}
		flying.frozen.Store(frozen)
		flying.shutting.Store(shutting)
		time.Sleep(time.Millisecond)
	})
	time.Sleep(time.Duration(200+random.IntN(500)) * time.Millisecond)
	var counts map[string]int64
	aim := kinds[round%len(kinds)]
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		counts = map[string]int64{
			"create": flying.create.Load(), "update": flying.update.Load(), "delete": flying.remove.Load(),
			"cold start": flying.cold.Load(), "frozen": flying.frozen.Load(), "shutting down": flying.shutting.Load(),
		}
		if counts[aim] > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("round %d: not once a %s in 20 s", round, aim)
			break
		}
	}
	s.Kill()
	cancel()
	wg.Wait()
	return counts
}

// gone is the description of a deleted function.
const gone = "\x00gone"

// change runs one operation on a function and writes its outcome into the book.
func (b *book) change(flying *atomic.Int64, name, description string, op func() error) {
	b.mu.Lock()
	b.maybe[name] = true
	b.mu.Unlock()
	flying.Add(1)
	err := op()
	flying.Add(-1)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err == nil:
		delete(b.maybe, name)
		if description == gone {
			delete(b.known, name)
		} else {
			b.known[name] = description
		}
	case refused(err):
		delete(b.maybe, name) // an answer: nothing changed
	}
}

// refused says that the server answered that it would not.
func refused(err error) bool {
	var conflict *types.ResourceConflictException
	var missing *types.ResourceNotFoundException
	return errors.As(err, &conflict) || errors.As(err, &missing)
}
