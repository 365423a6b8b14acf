package hostile_test

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"slices"
	"testing"

	"github.com/lambdad/lambdad/integration/harness"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

// The promises of a tier that rows depend on, as doctor names them.
const (
	processLimit   = "process limit"
	cpuLimit       = "CPU limit"
	memoryLimit    = "memory limit"
	tmpSize        = "/tmp of its size"
	tmpOnDisk      = sandbox.TmpOnDisk
	ownUser        = "a user id of its own"
	ownLimits      = "limits of its own"
	ownNetwork     = "private network"
	ownFiles       = "private file system"
	systemCalls    = "allowed system calls only"
	freezing       = "freezing"
	diesWithDaemon = "nothing outlives a killed daemon"
)

// promises are what doctor says to the user of a server.
func (s *stage) promises(t *testing.T) map[string]bool {
	t.Helper()
	cmd := exec.Command(harness.Program(t, "lambdad"), "doctor", "--isolation", s.tier, "--data-dir", s.DataDir, "--output", "json")
	harness.As(cmd, s.user, s.DataDir)
	begin := func() {}
	if s.groups != nil {
		begin = sandboxtest.Delegate(t).Waiting(t, cmd)
	}
	var out bytes.Buffer
	cmd.Stdout = &out
	err := cmd.Start()
	if err == nil {
		begin()
		err = cmd.Wait()
	}
	var d struct {
		Tier     string
		Promises []struct {
			Name string
			Kept bool
		}
	}
	if err == nil {
		err = json.Unmarshal(out.Bytes(), &d)
	}
	if err != nil || d.Tier != s.tier {
		t.Fatalf("doctor says tier %q, %v; want %q\n%s", d.Tier, err, s.tier, &out)
	}
	list := map[string]bool{}
	for _, p := range d.Promises {
		list[p.Name] = p.Kept
	}
	return list
}

// TestTiers holds that in the weaker tiers everything of TestExhaustion,
// TestCoupling and TestSurviving holds, but for what doctor names: and that this is
// indeed not held.
func TestTiers(t *testing.T) {
	for _, tier := range []string{"rootless", delegated, "plain"} {
		t.Run(tier, func(t *testing.T) {
			s := newStageIn(t, tier)
			list := s.promises(t)
			kept := func(promise string) bool {
				k, named := list[promise]
				if !named {
					t.Errorf("doctor names no promise %q", promise)
				}
				return k
			}
			for _, c := range s.villains(t) {
				t.Run(c.name, func(t *testing.T) {
					if c.on == "filler" && kept(memoryLimit) && !kept(tmpOnDisk) {
						c.fail = true // what it fills is its memory
					}
					i := slices.IndexFunc(c.needs, func(p string) bool { return !kept(p) })
					switch {
					case i < 0:
						s.held(t, c)
					case c.instead.Do == "":
						t.Logf("not held, as doctor says: %s", c.needs[i])
					case len(s.try(t, c, c.instead)) == 0:
						t.Errorf("held, and doctor says that it is not: %s", c.needs[i])
					}
				})
			}
			t.Run("coupling", func(t *testing.T) {
				s.villain(t, "taker", 512, nil)
				s.villain(t, "loser", 512, nil)
				alone, taken, beside := s.couple(t, order{Do: "inotify", N: 900})
				if coupled := beside < alone*9/10; coupled == kept(ownUser) {
					t.Errorf("beside one that took %d of %d, %d were possible; doctor says kept %v: %s", taken, alone, beside, !coupled, ownUser)
				}
			})
			for _, c := range []struct { // of TestLooking, which has the other tiers
				o     order
				needs string // promise of the tier, without which it may find something
				tried bool   // on plain processes: not what would leave something on the host, search all of it or wait there
			}{
				{order{Do: "read", Paths: []string{"/etc/machine-id", "/var/lib", "/boot", s.DataDir}}, ownFiles, true},
				{order{Do: "search", Text: secret}, ownUser, false},
				{order{Do: "processes"}, ownUser, true},
				{order{Do: "descriptors"}, ownFiles, true},
				{order{Do: "calls"}, systemCalls, false},
				{order{Do: "raise"}, ownLimits, true},
				{order{Do: "setuid"}, ownFiles, false},
				{order{Do: "signals"}, ownUser, true},
				{order{Do: "escape"}, ownFiles, false},
				{order{Do: "network"}, ownNetwork, false},
			} {
				if tier != "plain" {
					break
				}
				t.Run(c.o.Do, func(t *testing.T) {
					held := c.needs == "" || kept(c.needs)
					if !c.tried {
						if held {
							t.Errorf("not tried, and doctor says that it is held: %s", c.needs)
						}
						return
					}
					r, err := s.attack(t.Context(), "greedy", c.o)
					if err != nil {
						t.Fatal(err)
					}
					if held {
						for _, h := range r.Holes {
							t.Error(h)
						}
					}
					if c.o.Do == "read" && len(r.Holes) == 0 {
						t.Errorf("held, and doctor says that it is not: %s", c.needs)
					}
					t.Logf("doctor says kept %v: %s; %v", held, c.needs, r.Holes)
				})
			}
			survive(t, s, tier, kept)
			s.end(t)
		})
	}
}
