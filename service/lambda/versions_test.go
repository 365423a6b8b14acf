package lambda

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/mem"
)

// ok is a call that must succeed.
func (r *rig) ok(method, path string, body any) map[string]any {
	r.t.Helper()
	status, v := r.call(method, path, body)
	if status/100 != 2 {
		r.t.Fatalf("%s %s: %d %v", method, path, status, v)
	}
	return v
}

func (r *rig) resolve(name, qualifier string) (lambdad.Target, error) {
	return r.registry.Resolve(r.t.Context(), testAccount, testRegion, name, qualifier)
}

// members compares some members of an answer; nil is absent.
func members(t *testing.T, what string, got map[string]any, want map[string]any) {
	t.Helper()
	for k, v := range want {
		if fmt.Sprint(got[k]) != fmt.Sprint(v) {
			t.Errorf("%s: %s is %v, want %v", what, k, got[k], v)
		}
	}
}

const arn = "arn:aws:lambda:" + testRegion + ":" + testAccount + ":function:"

func TestPublish(t *testing.T) {
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	r.create("f", "one")
	before := r.settled("f")

	v1 := r.ok("POST", functions+"/f/versions", map[string]any{"Description": "first"})
	members(t, "version 1", v1, map[string]any{"Version": "1", "FunctionArn": arn + "f:1", "State": "Active", "LastUpdateStatus": "Successful",
		"Description": "first", "CodeSha256": before["CodeSha256"]})
	after := r.settled("f")
	if after["RevisionId"] == before["RevisionId"] || after["RevisionId"] == v1["RevisionId"] {
		t.Errorf("revisions before, of the version, after: %v %v %v", before["RevisionId"], v1["RevisionId"], after["RevisionId"])
	}

	// The same again is the same version, and changes nothing.
	again := r.ok("POST", functions+"/f/versions", map[string]any{"Description": "other"})
	members(t, "published again", again, map[string]any{"Version": "1", "RevisionId": v1["RevisionId"], "Description": "first"})
	members(t, "after publishing the same", r.settled("f"), map[string]any{"RevisionId": after["RevisionId"]})

	// Also when the function was updated to what it was.
	r.ok("PUT", functions+"/f/configuration", map[string]any{"Timeout": 9})
	r.settled("f")
	r.ok("PUT", functions+"/f/configuration", map[string]any{"Timeout": 3})
	r.settled("f")
	members(t, "published after there and back", r.ok("POST", functions+"/f/versions", nil), map[string]any{"Version": "1"})

	up := r.ok("PUT", functions+"/f/code", map[string]any{"ZipFile": zipWith(t, "two"), "Publish": true})
	members(t, "update with Publish", up, map[string]any{"Version": "2", "FunctionArn": arn + "f:2", "State": "Pending", "StateReasonCode": "Creating", "LastUpdateStatus": nil})
	r.settled("f")
	members(t, "version 2", r.ok("GET", functions+"/f/configuration?Qualifier=2", nil), map[string]any{"State": "Active", "LastUpdateStatus": "Successful", "CodeSha256": up["CodeSha256"]})
	members(t, "$LATEST", r.ok("GET", functions+"/f:$LATEST/configuration", nil), map[string]any{"Version": "$LATEST", "FunctionArn": arn + "f:$LATEST"})

	body := createBody(t, "g", "x")
	body["Publish"] = true
	members(t, "create with Publish", r.ok("POST", functions, body), map[string]any{"Version": "1", "FunctionArn": arn + "g", "State": "Pending"})
	r.settled("g")
	members(t, "its version", r.ok("GET", functions+"/g/configuration?Qualifier=1", nil), map[string]any{"State": "Active"})

	// Each version runs what it was, under a generation of its own.
	seen := map[string]bool{}
	for _, q := range []string{"", "1", "2"} {
		target, err := r.resolve("f", q)
		if err != nil || seen[target.Version.Generation] {
			t.Fatalf("resolving %q: %v %v", q, target, err)
		}
		seen[target.Version.Generation] = true
		if again, _ := r.resolve("f", q); again.Version != target.Version {
			t.Errorf("resolving %q twice gives two snapshots", q)
		}
	}
	if target, _ := r.resolve("f", "1"); target.Version.Number != "1" {
		t.Errorf("version 1 is numbered %s", target.Version.Number)
	}

	list := r.ok("GET", functions+"/f/versions", nil)["Versions"].([]any)
	var numbers []string
	for _, v := range list {
		numbers = append(numbers, v.(map[string]any)["Version"].(string))
	}
	if got := strings.Join(numbers, " "); got != "$LATEST 1 2" {
		t.Errorf("versions: %s", got)
	}

	// Numbers are not given twice.
	r.ok("DELETE", functions+"/f?Qualifier=2", nil)
	if status, _ := r.call("GET", functions+"/f?Qualifier=2", nil); status != 404 {
		t.Errorf("deleted version: %d", status)
	}
	r.ok("DELETE", functions+"/f?Qualifier=2", nil)
	members(t, "published after a deletion", r.ok("POST", functions+"/f/versions", nil), map[string]any{"Version": "3"})

	// Deleted versions are retired, those of a deleted function, too.
	if n := len(r.gone); n != 1 {
		t.Errorf("%d versions retired, want 1", n)
	}
	r.ok("DELETE", functions+"/f", nil)
	if n := len(r.gone); n != 3 {
		t.Errorf("%d versions retired, want 3", n)
	}
	r.create("f", "one")
	r.settled("f")
	if status, _ := r.call("GET", functions+"/f?Qualifier=1", nil); status != 404 {
		t.Errorf("a version of the function before: %d", status)
	}
}

func TestAliases(t *testing.T) {
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	r.create("f", "one")
	r.settled("f")
	r.ok("POST", functions+"/f/versions", nil)
	r.ok("PUT", functions+"/f/code", map[string]any{"ZipFile": zipWith(t, "two"), "Publish": true})
	r.settled("f")

	a := r.ok("POST", functions+"/f/aliases", map[string]any{"Name": "live", "FunctionVersion": "1"})
	members(t, "alias", a, map[string]any{"AliasArn": arn + "f:live", "Name": "live", "FunctionVersion": "1", "Description": "", "RoutingConfig": nil})
	members(t, "get through the alias", r.ok("GET", functions+"/f/configuration?Qualifier=live", nil), map[string]any{"Version": "1", "FunctionArn": arn + "f:live"})
	if target, err := r.resolve("f", "live"); err != nil || target.Version.Number != "1" || target.Additional != nil {
		t.Errorf("resolving: %v %v", target, err)
	}
	b := r.ok("PUT", functions+"/f/aliases/live", map[string]any{"RevisionId": a["RevisionId"],
		"RoutingConfig": map[string]any{"AdditionalVersionWeights": map[string]any{"2": 0.25}}})
	members(t, "with weights", b, map[string]any{"FunctionVersion": "1", "RoutingConfig": "map[AdditionalVersionWeights:map[2:0.25]]"})
	if target, err := r.resolve("f", "live"); err != nil || target.Additional.Number != "2" || target.Weight != 0.25 {
		t.Errorf("resolving: %v %v", target, err)
	}
	if status, v := r.call("PUT", functions+"/f/aliases/live", map[string]any{"RevisionId": a["RevisionId"], "Description": "x"}); status != 412 {
		t.Errorf("an old revision: %d %v", status, v)
	}
	if status, v := r.call("DELETE", functions+"/f?Qualifier=2", nil); status != 409 {
		t.Errorf("deleting a version with an alias: %d %v", status, v)
	}
	if status, v := r.call("PUT", functions+"/f/aliases/live", map[string]any{"FunctionVersion": "2"}); status != 400 {
		t.Errorf("pointing to the version that has the weight: %d %v", status, v)
	}
	// Without weights again, by either spelling.
	members(t, "cleared", r.ok("PUT", functions+"/f/aliases/live", map[string]any{"FunctionVersion": "2", "RoutingConfig": map[string]any{}}),
		map[string]any{"FunctionVersion": "2", "RoutingConfig": nil})

	for _, name := range []string{"b", "a", "2024-01-01"} {
		r.ok("POST", functions+"/f/aliases", map[string]any{"Name": name, "FunctionVersion": "$LATEST"})
	}
	var names []string
	for marker := ""; ; {
		page := r.ok("GET", functions+"/f/aliases?MaxItems=1&Marker="+marker, nil)
		for _, a := range page["Aliases"].([]any) {
			names = append(names, a.(map[string]any)["Name"].(string))
		}
		if page["NextMarker"] == nil {
			break
		}
		marker = page["NextMarker"].(string)
	}
	if got := strings.Join(names, " "); got != "2024-01-01 a b live" {
		t.Errorf("aliases: %s", got)
	}
	if n := len(r.ok("GET", functions+"/f/aliases?FunctionVersion=2", nil)["Aliases"].([]any)); n != 1 {
		t.Errorf("%d aliases of version 2, want 1", n)
	}
	r.ok("DELETE", functions+"/f/aliases/live", nil)
	r.ok("DELETE", functions+"/f/aliases/live", nil)
	r.ok("DELETE", functions+"/f?Qualifier=2", nil)

	// A new function of the name has none of them.
	r.ok("DELETE", functions+"/f", nil)
	r.create("f", "one")
	r.settled("f")
	if n := len(r.ok("GET", functions+"/f/aliases", nil)["Aliases"].([]any)); n != 0 {
		t.Errorf("%d aliases of a new function", n)
	}
}

// TestVersionsSurvive: versions and aliases are there after a start, and what a
// crash left of others is not.
func TestVersionsSurvive(t *testing.T) {
	s, blobs := newFaulty(), mem.NewBlobs()
	a := newRig(t, s, blobs, nil)
	a.run()
	a.create("f", "one")
	a.settled("f")
	a.ok("POST", functions+"/f/versions", nil)
	a.ok("POST", functions+"/f/aliases", map[string]any{"Name": "live", "FunctionVersion": "1"})

	// A publishing that does not come to its end.
	s.failing(func(op, key string) error {
		if op == "update" && strings.HasSuffix(key, ".function.f") {
			return errors.New("the disk is gone")
		}
		return nil
	})
	a.call("PUT", functions+"/f/configuration", map[string]any{"Timeout": 9})
	s.failing(nil)
	a.ok("PUT", functions+"/f/configuration", map[string]any{"Timeout": 9})
	a.settled("f")
	s.failing(func(op, key string) error {
		if op == "update" && strings.HasSuffix(key, ".function.f") {
			return errors.New("the disk is gone")
		}
		return nil
	})
	if status, v := a.call("POST", functions+"/f/versions", nil); status != 500 {
		t.Errorf("publishing without a disk: %d %v", status, v)
	}
	if status, _ := a.call("GET", functions+"/f?Qualifier=2", nil); status != 404 {
		t.Errorf("a version that was not acknowledged: %d", status)
	}
	s.failing(nil)

	// A deletion whose end is missing.
	a.create("g", "one")
	a.settled("g")
	a.ok("POST", functions+"/g/versions", nil)
	a.ok("POST", functions+"/g/aliases", map[string]any{"Name": "live", "FunctionVersion": "1"})
	s.failing(func(op, key string) error {
		if op == "delete" && !strings.HasSuffix(key, ".function.g") {
			return errors.New("the disk is gone")
		}
		return nil
	})
	a.ok("DELETE", functions+"/g", nil)
	s.failing(nil)
	a.stop()

	b := newRig(t, s, blobs, nil)
	b.create("g", "two")
	for _, path := range []string{"/f?Qualifier=2", "/g?Qualifier=1", "/g/aliases/live"} {
		if status, _ := b.call("GET", functions+path, nil); status != 404 {
			t.Errorf("%s: %d", path, status)
		}
	}
	members(t, "version 1", b.ok("GET", functions+"/f/configuration?Qualifier=live", nil), map[string]any{"Version": "1", "Timeout": 3.0})
	b.run()
	prefix := testAccount + "." + testRegion + ".function."
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		records, err := s.List(t.Context(), testAccount+"."+testRegion)
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for _, r := range records {
			keys = append(keys, strings.TrimPrefix(r.Key, prefix))
		}
		if got := strings.Join(keys, " "); got == "f f.alias.live f.version.1 g" {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("records after the sweep: %s", got)
		}
	}
	b.settled("g")
	members(t, "published over remains", b.ok("POST", functions+"/f/versions", nil), map[string]any{"Version": "2", "Timeout": 9.0})
}

// TestListAllVersions: pages of versions of all functions, whatever their size.
func TestListAllVersions(t *testing.T) {
	r := newRig(t, newFaulty(), mem.NewBlobs(), nil)
	r.run()
	var want []string
	for i := range 4 {
		name := fmt.Sprintf("f%d", i)
		body := createBody(t, name, name)
		body["Publish"] = i != 2
		r.ok("POST", functions, body)
		want = append(want, name+":$LATEST")
		if i != 2 {
			want = append(want, name+":1")
		}
	}
	for size := 1; size <= 8; size++ {
		var got []string
		for marker := ""; ; {
			page := r.ok("GET", fmt.Sprintf("%s?FunctionVersion=ALL&MaxItems=%d&Marker=%s", functions, size, marker), nil)
			list := page["Functions"].([]any)
			for _, f := range list {
				got = append(got, strings.TrimPrefix(f.(map[string]any)["FunctionArn"].(string), arn))
			}
			if page["NextMarker"] == nil {
				break
			}
			if len(list) != size {
				t.Fatalf("a page of %d with %d entries", size, len(list))
			}
			marker = page["NextMarker"].(string)
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("pages of %d: %v, want %v", size, got, want)
		}
	}
}
