//go:build amd64 || arm64

package namespace

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

// rootlessDriver is for the processes that sandboxtest.Unprivileged starts.
func rootlessDriver(t *testing.T) *Driver {
	t.Helper()
	d, err := New(context.Background(), Config{ID: testID("r"), Rootless: true, Egress: sandbox.EgressAll})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := d.Sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestRootless is the suite in the rootless tier: as a user without rights, with
// delegated control groups and without.
func TestRootless(t *testing.T) {
	if !sandboxtest.IsUnprivileged() {
		t.Run("delegated groups", func(t *testing.T) { sandboxtest.Unprivileged(t, "TestRootless", true) })
		t.Run("no groups", func(t *testing.T) { sandboxtest.Unprivileged(t, "TestRootless", false) })
		return
	}
	groups := sandboxtest.Delegated()
	sandboxtest.Run(t, func(t *testing.T) sandbox.Driver { return rootlessDriver(t) }, sandboxtest.Options{
		Isolates: true, SameUser: true, Limits: groups, ProcessLimit: true, Freezes: groups, Parallel: 40,
		Leaks: func(t *testing.T) string { return fmt.Sprintf("network namespaces %d", networks(t)) },
	})
	t.Run("promises", func(t *testing.T) {
		kept, cures := map[string]bool{}, map[string]string{}
		for _, p := range rootlessDriver(t).Promises() {
			kept[p.Name] = p.Kept
			if !p.Kept && (p.Why == "" || p.Cure == "") {
				t.Errorf("%s: why %q, cure %q", p.Name, p.Why, p.Cure)
			}
			cures[p.Name] = p.Cure
		}
		for name, want := range map[string]bool{
			"private file system": true, "private network": true, "allowed system calls only": true, "process limit": true,
			"memory limit": groups, "CPU limit": groups, "freezing": groups, "true peak memory": groups,
			"a user id of its own": false, "/tmp outside the memory limit": false, "outbound network": false,
		} {
			if got, ok := kept[name]; got != want || !ok {
				t.Errorf("%s: kept %v, want %v", name, got, want)
			}
		}
		if got, want := cures["true peak memory"], cures["memory limit"]; !groups && got != want {
			t.Errorf("the peak is cured by %q, want what brings groups: %q", got, want)
		}
	})
}

// TestRootlessKilled: the daemon of the rootless tier is killed, frozen sandboxes
// and all.
func TestRootlessKilled(t *testing.T) {
	if !sandboxtest.IsUnprivileged() {
		sandboxtest.Unprivileged(t, "TestRootlessKilled", true)
		return
	}
	id := testID("k")
	t.Run("gone", func(t *testing.T) {
		if alive := sandboxtest.KillDaemon(t, time.Second, "DAEMON_ID="+id, "DAEMON_DIR="); len(alive) > 0 {
			t.Errorf("alive one second after the daemon: %v", alive)
		}
	})
	t.Run("swept", func(t *testing.T) {
		d, err := New(context.Background(), Config{ID: id, Rootless: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Sweep(context.Background()); err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestTry: the trial is made in another process, which changes nothing here, and
// tells what fails.
func TestTry(t *testing.T) {
	sandboxtest.RequireRoot(t)
	before, _ := os.Readlink("/proc/self/ns/user")
	if err := Try(context.Background()); err != nil {
		t.Errorf("in another user namespace: %v", err)
	}
	if after, _ := os.Readlink("/proc/self/ns/user"); after != before {
		t.Error("this process changed its user namespace")
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Try(gone); err == nil {
		t.Error("a trial that was cancelled worked")
	}
}
