package nats

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/lambdad/lambdad/queue"
	"github.com/lambdad/lambdad/queue/queuetest"
	"github.com/lambdad/lambdad/store"
	"github.com/lambdad/lambdad/store/storetest"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashChild) != "" {
		crashMain()
	}
	goleak.VerifyTestMain(m)
}

// open opens an engine that is closed with t and whose warnings fail it.
func open(t testing.TB, dir string) *Engine {
	t.Helper()
	e, err := Open(t.Context(), Config{Dir: dir, Logger: slog.New(warnings{t: t})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// warnings is a slog.Handler that makes a warning a failure.
type warnings struct {
	t testing.TB
	// killed is for an engine that was killed before, perhaps while it made the
	// directory of its consumer and had put nothing into it: the next one makes it anew.
	killed bool
}

func (warnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (w warnings) WithAttrs([]slog.Attr) slog.Handler         { return w }
func (w warnings) WithGroup(string) slog.Handler              { return w }
func (w warnings) Handle(_ context.Context, r slog.Record) error {
	if w.killed && strings.Contains(r.Message, "Missing consumer metafile") {
		w.t.Logf("logged: %s", r.Message)
		return nil
	}
	w.t.Errorf("logged: %s", r.Message)
	return nil
}

// engines remembers which engine a contract belongs to, to close it.
type engines struct {
	mu  sync.Mutex
	all map[any]*Engine
}

func (es *engines) open(t *testing.T, dir string) *Engine {
	e := open(t, dir)
	es.mu.Lock()
	defer es.mu.Unlock()
	es.all[e.Store()], es.all[e.Queue()] = e, e
	return e
}

func (es *engines) reopen(t *testing.T, of any) *Engine {
	es.mu.Lock()
	e := es.all[of]
	es.mu.Unlock()
	e.Close()
	return es.open(t, e.cfg.Dir)
}

func TestStore(t *testing.T) {
	es := &engines{all: map[any]*Engine{}}
	storetest.Test(t, storetest.Factory{
		New:    func(t *testing.T) store.Store { return es.open(t, t.TempDir()).Store() },
		Reopen: func(t *testing.T, s store.Store) store.Store { return es.reopen(t, s).Store() },
	})
}

func TestQueue(t *testing.T) {
	es := &engines{all: map[any]*Engine{}}
	queuetest.Test(t, queuetest.Factory{
		New:    func(t *testing.T) queue.Queue { return es.open(t, t.TempDir()).Queue() },
		Reopen: func(t *testing.T, q queue.Queue) queue.Queue { return es.reopen(t, q).Queue() },
	})
}

func TestOpenErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if e, err := Open(t.Context(), Config{Dir: file}); err == nil {
		e.Close()
		t.Fatal("a file was opened as a directory")
	} else if !strings.Contains(err.Error(), file) {
		t.Fatalf("error does not name the path: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if e, err := Open(ctx, Config{Dir: t.TempDir()}); err == nil {
		e.Close()
		t.Fatal("opened with a cancelled context")
	}
}

// What has been read leaves nothing on the engine's side, which bears only so many.
func TestReadersLeaveNothing(t *testing.T) {
	e := open(t, t.TempDir())
	if _, err := e.Store().Put(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var watches []<-chan store.Update
	for range 20 {
		if _, err := e.Store().List(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		ch, err := e.Store().Watch(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		watches = append(watches, ch)
	}
	consumers := func() int {
		t.Helper()
		info, err := e.store.stream.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return info.State.Consumers
	}
	if n := consumers(); n != len(watches) {
		t.Errorf("%d consumers for %d watches", n, len(watches))
	}
	cancel()
	for _, ch := range watches {
		for range ch { // to its end
		}
	}
	if n := consumers(); n != 0 {
		t.Errorf("%d consumers are left", n)
	}
}

// Others must not read records.
func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "records")
	e := open(t, dir)
	if _, err := e.Store().Put(t.Context(), "k", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && d.IsDir() && info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
