// Package leak counts what lambdad holds on a host, so that a test can count
// before and after and insist that nothing was left: processes, threads, file
// descriptors, mounts in every namespace, mount and network namespaces, network
// interfaces, control groups, loop devices, nftables tables, files and goroutines.
//
// It counts what a Scope names and nothing else, so that it can be used while
// other servers and tests work on the same host.
package leak

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// A Scope says whose things are counted.
type Scope struct {
	// PID is the server's process; 0: this one, whose goroutines count, too.
	// Its descendants belong to it.
	PID int
	// ID is the host id in the names of all that a server makes: lambdad-<id>
	// and lmb<id>. Whatever is in such a control group belongs to it, also when
	// the server that made it is dead.
	ID string
	// Dirs are directories whose files are counted, and which mounts and loop
	// devices are recognised by.
	Dirs []string
}

// A Count is what there was at one moment: for each kind the things by name, with
// how many there were of each.
type Count map[string]map[string]int

func (c Count) add(kind, name string) { c.addN(kind, name, 1) }

func (c Count) addN(kind, name string, n int) {
	if c[kind] == nil {
		c[kind] = map[string]int{}
	}
	c[kind][name] += n
}

// Total is how many things of a kind there were.
func (c Count) Total(kind string) int {
	n := 0
	for _, k := range c[kind] {
		n += k
	}
	return n
}

// String lists the totals.
func (c Count) String() string {
	var b strings.Builder
	for i, kind := range slices.Sorted(maps.Keys(c)) {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s %d", kind, c.Total(kind))
	}
	return b.String()
}

// Slack is what a count may have grown by without being a leak: Go keeps the
// threads it once needed.
type Slack map[string]int

// Since says of which kinds there are more than before, with some of the new
// ones; nil when nothing was left.
func (c Count) Since(before Count, slack Slack) []string {
	var grown []string
	for _, kind := range slices.Sorted(maps.Keys(c)) {
		more := c.Total(kind) - before.Total(kind)
		if more <= slack[kind] {
			continue
		}
		var examples []string
		for _, name := range slices.Sorted(maps.Keys(c[kind])) {
			if n := c[kind][name] - before[kind][name]; n > 0 && len(examples) < 10 {
				examples = append(examples, fmt.Sprintf("%d× %s", n, name))
			}
		}
		grown = append(grown, fmt.Sprintf("%d more %s (%d before): %s", more, kind, before.Total(kind), strings.Join(examples, "; ")))
	}
	return grown
}

// settle is how long what is on its way out may take: an unnamed network
// namespace goes some 100 ms after its last process.
const settle = 5 * time.Second

// Check fails the test when there is more than before, after everything had time
// to go. It returns the last count.
func Check(t testing.TB, s Scope, before Count, slack Slack) Count {
	t.Helper()
	var c Count
	var grown []string
	for begin := time.Now(); time.Since(begin) < settle; time.Sleep(50 * time.Millisecond) {
		var err error
		if c, err = Take(s); err != nil {
			t.Fatal(err)
		}
		if grown = c.Since(before, slack); grown == nil {
			return c
		}
	}
	for _, g := range grown {
		t.Errorf("left behind: %s", g)
	}
	return c
}
