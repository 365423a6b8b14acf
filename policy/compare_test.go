//go:build compare

package policy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestAgainstSimulator asks generated cases of an independent implementation, too.
// It is for development: it needs node and the npm package
// @cloud-copilot/iam-simulate, of which nothing is part of this program.
//
//	npm install --prefix DIR @cloud-copilot/iam-simulate
//	NODE_MODULES=DIR/node_modules go test -tags compare -run AgainstSimulator ./policy
func TestAgainstSimulator(t *testing.T) {
	const cases = 6000
	var in, out bytes.Buffer
	g := newGenerator(1)
	list := make([]testCase, cases)
	enc := json.NewEncoder(&in)
	for i := range list {
		list[i] = g.testCase()
		if err := enc.Encode(list[i]); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("node", "testdata/compare.mjs")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	sc := bufio.NewScanner(&out)
	sc.Buffer(nil, 1<<20)
	for i := range list {
		if !sc.Scan() {
			t.Fatalf("%d answers of %d", i, cases)
		}
		var theirs struct{ Result, Error string }
		if err := json.Unmarshal(sc.Bytes(), &theirs); err != nil {
			t.Fatal(err)
		}
		d := Evaluate(list[i].build(t))
		ours := "ImplicitlyDenied"
		switch {
		case d.Allowed:
			ours = "Allowed"
		case d.Explicit:
			ours = "ExplicitlyDenied"
		}
		if theirs.Error != "" {
			counts["refused"]++
			t.Logf("refused: %s of %s: %s", list[i].Action, list[i].Resource, theirs.Error)
			continue
		}
		counts[ours]++
		if ours != theirs.Result {
			// Where a variable has no value, NotResource and negated conditions
			// make a Deny apply here, and an Allow not: what is not understood
			// denies.
			text := strings.Join(list[i].Identity, "") + list[i].Boundary + list[i].Session + list[i].Policy
			if ours != "Allowed" && strings.Contains(text, "${") {
				counts["stricter"]++
				continue
			}
			// AWS documents that what a resource's policy grants to a session
			// itself is not narrowed by the session's policy.
			if ours == "Allowed" && list[i].Session != "" && strings.Contains(list[i].Policy, session) {
				counts["session"]++
				continue
			}
			counts["different"]++
			if counts["different"] <= 10 {
				b, _ := json.MarshalIndent(list[i], "", " ")
				t.Errorf("case %d: %s (%+v), the other says %s\n%s", i, ours, d, theirs.Result, b)
			}
		}
	}
	t.Logf("%v", counts)
}
