package environment_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/sandbox/fake"
)

// TestGolden compares what an extension gets in each life with files written from
// telemetry-api.md: byte for byte but for times (T) and ids (ID), in each version of
// the schema. ANY stands for what the specification leaves open; a comment says why.
func TestGolden(t *testing.T) {
	const took = 100 * time.Millisecond // of an initialisation
	works := slowly(took, takes(30*time.Millisecond, ""))
	lives := map[string]struct {
		runtime fake.Program
		invokes int
	}{
		"cold-warm-shutdown": {works, 2},
		"handler-error":      {slowly(took, failing), 1},
		"timeout-reset":      {firstly(slowly(took, takesOne(hangs)), works), 2},
		"crash-reset":        {firstly(slowly(took, takesOne(slowly(50*time.Millisecond, exits(3)))), works), 2},
		"failed-init":        {firstly(slowly(took, exits(1)), works), 1},
	}
	files, err := filepath.Glob("testdata/golden/*.txtar")
	if err != nil || len(files) != len(lives) {
		t.Fatal(files, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		golden, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, section := range golden.Files {
			t.Run(name+"/"+section.Name, func(t *testing.T) {
				schema, logs := strings.CutPrefix(section.Name, "logs-")
				o := newObserver()
				o.raw, o.busy = true, 50*time.Millisecond
				if logs {
					o.path = "/2020-08-15/logs"
				}
				o.body = `{"schemaVersion":"` + schema + `","types":["platform","function","extension"],"buffering":{"timeoutMs":25},` +
					`"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:8080/x"}}`
				observed(t, map[string]fake.Program{bootstrap: lives[name].runtime}, []*observer{o}, nil, func(l *life) {
					for i := range lives[name].invokes {
						<-l.idle
						inv := &lambdad.Invocation{RequestID: fmt.Sprintf("r%d", i+1), InvokedARN: "arn:f", Payload: []byte("{}")}
						if name == "cold-warm-shutdown" && i == 1 {
							inv.TraceID = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
						}
						if _, err := l.Invoke(context.Background(), inv); err != nil {
							t.Fatal(err)
						}
					}
					<-l.idle
					time.Sleep(5 * time.Second)
					l.Shutdown(context.Background())
					synctest.Wait()
					compareGolden(t, string(section.Data), o.seen())
				})
			})
		}
	}
}

var (
	goldenTime = regexp.MustCompile(`\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z`)
	goldenID   = regexp.MustCompile(`"(instanceId|spanId)":"[^"]+"`)
)

func compareGolden(t *testing.T, golden string, got []string) {
	t.Helper()
	var want []string
	for line := range strings.Lines(golden) {
		if line = strings.TrimSuffix(line, "\n"); !strings.HasPrefix(line, "#") {
			want = append(want, line)
		}
	}
	for i, line := range got {
		line = goldenTime.ReplaceAllString(line, "T")
		got[i] = goldenID.ReplaceAllString(line, `"$1":"ID"`)
	}
	same := slices.EqualFunc(want, got, func(want, got string) bool {
		before, after, wild := strings.Cut(want, "ANY")
		return want == got || wild && strings.HasPrefix(got, before) && strings.HasSuffix(got, after)
	})
	if !same {
		t.Errorf("got\n%s\n\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// splitBatch takes a batch apart as it came.
func splitBatch(b []byte) (list []string, err error) {
	var all []json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, err
	}
	for _, one := range all {
		if i := bytes.IndexByte(one, '\n'); i >= 0 {
			return nil, fmt.Errorf("a record has a newline: %s", one)
		}
		list = append(list, string(one))
	}
	return list, nil
}
