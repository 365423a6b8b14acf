package lambda

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/mem"
)

// A told placer remembers what each function has, and says of versions what it is
// told to.
type toldPlacer struct {
	mu     sync.Mutex
	has    map[string]lambdad.Concurrency
	status map[string]lambdad.Provisioned // by function:number; Requested is what it has
}

func newTold() *toldPlacer {
	return &toldPlacer{has: map[string]lambdad.Concurrency{}, status: map[string]lambdad.Provisioned{}}
}

func (p *toldPlacer) Configure(_, _, function string, c lambdad.Concurrency) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.has[function] = c; c.Reserved == nil && c.Provisioned == nil {
		delete(p.has, function)
	}
}

func (p *toldPlacer) Provisioned(v *lambdad.Version) lambdad.Provisioned {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.status[v.Function+":"+v.Number]
	for _, a := range p.has[v.Function].Provisioned {
		if a.Version == v {
			s.Requested = a.Count
		}
	}
	return s
}

func (p *toldPlacer) set(version string, s lambdad.Provisioned) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status[version] = s
}

// all is what functions have, in short: "f reserved 5 1:2 3:4".
func (p *toldPlacer) all() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, name := range slices.Sorted(maps.Keys(p.has)) {
		s := name
		if n := p.has[name].Reserved; n != nil {
			s += fmt.Sprint(" reserved ", *n)
		}
		for _, a := range p.has[name].Provisioned {
			s += fmt.Sprintf(" %s:%d", a.Version.Number, a.Count)
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

const (
	reservedPath    = "/2017-10-31/functions/"
	provisionedPath = "/2019-09-30/functions/"
)

func (r *rig) reserve(name string, n int) (int, map[string]any) {
	return r.call("PUT", reservedPath+name+"/concurrency", map[string]any{"ReservedConcurrentExecutions": n})
}

func (r *rig) provision(name, qualifier string, n int) (int, map[string]any) {
	return r.call("PUT", provisionedPath+name+"/provisioned-concurrency?Qualifier="+qualifier, map[string]any{"ProvisionedConcurrentExecutions": n})
}

func (r *rig) provisioned(name, qualifier string) string {
	r.t.Helper()
	v := r.ok("GET", provisionedPath+name+"/provisioned-concurrency?Qualifier="+qualifier, nil)
	s := fmt.Sprintf("%v/%v/%v %v", v["AvailableProvisionedConcurrentExecutions"], v["AllocatedProvisionedConcurrentExecutions"], v["RequestedProvisionedConcurrentExecutions"], v["Status"])
	if v["StatusReason"] != nil {
		s += " " + v["StatusReason"].(string)
	}
	return s
}

func (r *rig) unreserved() any {
	return r.ok("GET", "/2016-08-19/account-settings", nil)["AccountLimit"].(map[string]any)["UnreservedConcurrentExecutions"]
}

// versions makes a function with versions 1 to n.
func (r *rig) versions(name string, n int) {
	r.create(name, name)
	r.settled(name)
	for i := range n {
		r.ok("PUT", functions+"/"+name+"/configuration", map[string]any{"Timeout": 5 + i})
		r.settled(name)
		r.ok("POST", functions+"/"+name+"/versions", map[string]any{})
	}
}

func TestReserved(t *testing.T) {
	s, blobs, p := newFaulty(), mem.NewBlobs(), newTold()
	r := newRig(t, s, blobs, func(c *Config) { c.Placer = p })
	r.run()
	is := func(what string, unreserved int, all string) {
		t.Helper()
		if got := r.unreserved(); fmt.Sprint(got) != fmt.Sprint(unreserved) || p.all() != all {
			t.Errorf("%s: unreserved %v, want %d; %q, want %q", what, got, unreserved, p.all(), all)
		}
	}
	r.versions("f", 2)
	r.create("g", "g")
	r.settled("g")
	is("before", 1000, "")
	if v := r.ok("GET", provisionedPath+"f/concurrency", nil); len(v) != 1 { // "code"
		t.Errorf("unset: %v", v)
	}
	revision := r.settled("f")["RevisionId"]
	if status, v := r.reserve("f", 0); status != 200 || v["ReservedConcurrentExecutions"] != 0.0 {
		t.Errorf("%d %v", status, v)
	}
	is("reserved 0", 1000, "f reserved 0")
	r.reserve("f", 500)
	r.reserve("g", 400)
	is("as much as can be", 100, "f reserved 500, g reserved 400")
	if status, v := r.reserve("g", 401); status != 400 || v["code"] != "InvalidParameterValueException" || v["Type"] != nil {
		t.Errorf("too much: %d %v", status, v)
	}
	members(t, "function", r.ok("GET", functions+"/f", nil), map[string]any{"Concurrency": map[string]any{"ReservedConcurrentExecutions": 500.0}})
	members(t, "version", r.ok("GET", functions+"/f?Qualifier=1", nil), map[string]any{"Concurrency": nil})
	members(t, "get", r.ok("GET", provisionedPath+"f/concurrency", nil), map[string]any{"ReservedConcurrentExecutions": 500.0})
	if after := r.settled("f")["RevisionId"]; after != revision {
		t.Errorf("another revision: %v", after)
	}
	// What is provisioned counts inside of what is reserved.
	if status, v := r.provision("f", "1", 500); status != 202 {
		t.Errorf("%d %v", status, v)
	}
	is("provisioned inside", 100, "f reserved 500 1:500, g reserved 400")
	if status, _ := r.reserve("f", 499); status != 400 {
		t.Errorf("less than provisioned: %d", status)
	}
	// Without the reservation it counts by itself.
	if status, v := r.call("DELETE", reservedPath+"f/concurrency", nil); status != 204 {
		t.Errorf("%d %v", status, v)
	}
	is("provisioned alone", 100, "f 1:500, g reserved 400")
	r.call("DELETE", functions+"/g", nil)
	is("g deleted", 500, "f 1:500")
	r.stop()

	// The next start knows it all.
	p = newTold()
	r = newRig(t, s, blobs, func(c *Config) { c.Placer = p })
	is("before it runs", 500, "")
	r.run()
	for range 1000 {
		if p.all() != "" {
			break
		}
		time.Sleep(time.Millisecond)
	}
	is("after a restart", 500, "f 1:500")
	r.call("DELETE", functions+"/f", nil)
	is("all deleted", 1000, "")
	r.create("f", "anew")
	r.settled("f")
	is("made anew", 1000, "")
}

func TestProvisioned(t *testing.T) {
	p := newTold()
	r := newRig(t, newFaulty(), mem.NewBlobs(), func(c *Config) { c.Placer = p })
	r.run()
	r.versions("f", 3)
	r.ok("POST", functions+"/f/aliases", map[string]any{"Name": "live", "FunctionVersion": "1"})
	has := func(what, all string) {
		t.Helper()
		if got := p.all(); got != all {
			t.Errorf("%s: %q, want %q", what, got, all)
		}
	}
	is := func(qualifier, want string) {
		t.Helper()
		if got := r.provisioned("f", qualifier); got != want {
			t.Errorf("%s: %s, want %s", qualifier, got, want)
		}
	}
	status, v := r.provision("f", "live", 10)
	members(t, "put", v, map[string]any{"RequestedProvisionedConcurrentExecutions": 10.0, "AvailableProvisionedConcurrentExecutions": 0.0,
		"AllocatedProvisionedConcurrentExecutions": 0.0, "Status": "IN_PROGRESS", "StatusReason": nil})
	if status != 202 || !strings.HasSuffix(fmt.Sprint(v["LastModified"]), "+0000") {
		t.Errorf("put: %d %v", status, v)
	}
	has("on the alias", "f 1:10")
	is("live", "0/0/10 IN_PROGRESS")
	p.set("f:1", lambdad.Provisioned{Available: 7})
	is("live", "7/7/10 IN_PROGRESS")
	p.set("f:1", lambdad.Provisioned{Available: 7, Failure: "FUNCTION_ERROR_INIT_FAILURE"})
	is("live", "7/7/10 FAILED FUNCTION_ERROR_INIT_FAILURE")
	p.set("f:1", lambdad.Provisioned{Available: 10})
	is("live", "10/10/10 READY")

	// It moves with the alias, and is divided by its weights.
	r.ok("PUT", functions+"/f/aliases/live", map[string]any{"FunctionVersion": "2"})
	has("moved", "f 2:10")
	is("live", "0/0/10 IN_PROGRESS")
	r.ok("PUT", functions+"/f/aliases/live", map[string]any{"RoutingConfig": map[string]any{"AdditionalVersionWeights": map[string]any{"3": 0.26}}})
	has("divided", "f 2:7 3:3")
	p.set("f:2", lambdad.Provisioned{Available: 7})
	p.set("f:3", lambdad.Provisioned{Available: 1})
	is("live", "8/8/10 IN_PROGRESS")
	p.set("f:3", lambdad.Provisioned{Available: 3})
	is("live", "10/10/10 READY")
	r.ok("PUT", functions+"/f/aliases/live", map[string]any{"RoutingConfig": map[string]any{}})
	has("not divided", "f 2:10")

	// Beside it a version has its own, and another alias may share a version.
	if status, v := r.provision("f", "1", 4); status != 202 {
		t.Errorf("%d %v", status, v)
	}
	r.ok("POST", functions+"/f/aliases", map[string]any{"Name": "also", "FunctionVersion": "2"})
	if status, v := r.provision("f", "also", 5); status != 202 {
		t.Errorf("%d %v", status, v)
	}
	has("three", "f 1:4 2:15")
	p.set("f:1", lambdad.Provisioned{Available: 4})
	p.set("f:2", lambdad.Provisioned{Available: 15})
	var names []string
	marker := ""
	for {
		page := r.ok("GET", provisionedPath+"f/provisioned-concurrency?List=ALL&MaxItems=2"+marker, nil)
		for _, c := range page["ProvisionedConcurrencyConfigs"].([]any) {
			c := c.(map[string]any)
			names = append(names, fmt.Sprint(strings.TrimPrefix(c["FunctionArn"].(string), arn), " ", c["Status"], " ", c["RequestedProvisionedConcurrentExecutions"]))
		}
		if page["NextMarker"] == nil {
			break
		}
		marker = "&Marker=" + page["NextMarker"].(string)
	}
	if want := []string{"f:1 READY 4", "f:also READY 5", "f:live READY 10"}; !slices.Equal(names, want) {
		t.Errorf("listed %q", names)
	}

	// An alias of $LATEST has none.
	r.ok("PUT", functions+"/f/aliases/also", map[string]any{"FunctionVersion": "$LATEST"})
	has("to $LATEST", "f 1:4 2:10")
	is("also", "0/0/5 FAILED The alias points to $LATEST, for which no environments are provisioned.")
	if status, _ := r.provision("f", "also", 6); status != 400 {
		t.Errorf("on an alias of $LATEST: %d", status)
	}

	// Gone with its version, its alias, its function, or by itself.
	if status, _ := r.call("DELETE", functions+"/f/aliases/also", nil); status != 204 {
		t.Error(status)
	}
	for range 2 {
		if status, v := r.call("DELETE", provisionedPath+"f/provisioned-concurrency?Qualifier=1", nil); status != 204 {
			t.Errorf("%d %v", status, v)
		}
	}
	has("deleted", "f 2:10")
	if status, v := r.call("GET", provisionedPath+"f/provisioned-concurrency?Qualifier=1", nil); status != 404 || v["code"] != "ProvisionedConcurrencyConfigNotFoundException" {
		t.Errorf("%d %v", status, v)
	}
	r.call("DELETE", functions+"/f/aliases/live", nil)
	has("alias deleted", "")
	r.ok("POST", functions+"/f/aliases", map[string]any{"Name": "live", "FunctionVersion": "2"})
	has("alias made anew", "")
	r.provision("f", "2", 3)
	has("again", "f 2:3")
	r.call("DELETE", functions+"/f/aliases/live", nil)
	r.call("DELETE", functions+"/f?Qualifier=2", nil)
	has("version deleted", "")
}

// Many changes at once never leave the account less than it must have.
func TestReservedTogether(t *testing.T) {
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	const n = 8
	for i := range n {
		r.create(fmt.Sprint("f", i), "x")
	}
	for i := range n {
		r.settled(fmt.Sprint("f", i))
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for j := range 20 {
				r.reserve(fmt.Sprint("f", i), 100+(i+j)%3*100)
				if u := r.unreserved().(float64); u < minUnreserved {
					t.Errorf("%v unreserved", u)
				}
			}
		})
	}
	wg.Wait()
}
