package environment_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/environment"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/fake"
	"github.com/lambdad/lambdad/telemetry"
)

// echo is a runtime that answers with what it got.
func echo(p *fake.Proc) sandbox.Exit {
	c := p.Client()
	for {
		r, err := c.Get(p.URL() + "/2018-06-01/runtime/invocation/next")
		if err != nil {
			return sandbox.Exit{Code: 1}
		}
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		p.Print("hello")
		id := r.Header.Get("Lambda-Runtime-Aws-Request-Id")
		r, err = c.Post(p.URL()+"/2018-06-01/runtime/invocation/"+id+"/response", "application/json", bytes.NewReader(body))
		if err != nil {
			return sandbox.Exit{Code: 1}
		}
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
}

// extension registers for events and takes each for a while.
func extension(name, events string, busy time.Duration) fake.Program {
	return func(p *fake.Proc) sandbox.Exit {
		c := p.Client()
		req, _ := http.NewRequest("POST", p.URL()+"/2020-01-01/extension/register", strings.NewReader(`{"events":[`+events+`]}`))
		req.Header.Set("Lambda-Extension-Name", name)
		r, err := c.Do(req)
		if err != nil {
			return sandbox.Exit{Code: 1}
		}
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
		id := r.Header.Get("Lambda-Extension-Identifier")
		for {
			req, _ := http.NewRequest("GET", p.URL()+"/2020-01-01/extension/event/next", nil)
			req.Header.Set("Lambda-Extension-Identifier", id)
			r, err := c.Do(req)
			if err != nil {
				return sandbox.Exit{Code: 1}
			}
			b, _ := io.ReadAll(r.Body)
			r.Body.Close()
			if strings.Contains(string(b), "SHUTDOWN") {
				p.Print("bye")
				return sandbox.Exit{}
			}
			if !p.Sleep(busy) {
				return sandbox.Exit{}
			}
		}
	}
}

func version() *lambdad.Version {
	return &lambdad.Version{
		Account: "123456789012", Region: "us-east-1", Function: "hello", Number: "$LATEST",
		Runtime: "provided.al2023", Handler: "h", MemoryMB: 128, Timeout: 3 * time.Second,
	}
}

func TestWarmPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fake.Driver{Files: map[string]fake.File{
			"/var/task/bootstrap":    {Run: echo},
			"/opt/extensions/ext.sh": {Run: extension("ext.sh", `"INVOKE","SHUTDOWN"`, 2*time.Second)},
		}}
		box, err := d.Create(t.Context(), sandbox.Spec{ID: "a"})
		if err != nil {
			t.Fatal(err)
		}
		idle := make(chan struct{}, 10)
		log := telemetry.NewTail(telemetry.Format{}, 1<<20)
		e := environment.Start(environment.Config{
			ID: strings.Repeat("0", 32), Version: version(), Entrypoints: []string{"/var/task/bootstrap", "/opt/bootstrap"},
			Sandbox: box, Stream: telemetry.NewStream(log), FreezeDelay: time.Second,
			OnIdle: func(*environment.Environment) { idle <- struct{}{} },
		})
		for i := range 2 {
			<-idle
			time.Sleep(10 * time.Second)
			begun := time.Now()
			r, err := e.Invoke(context.Background(), &lambdad.Invocation{RequestID: "r" + string(rune('0'+i)), Payload: []byte(`{"a":1}`), Tail: i == 1})
			if err != nil || string(r.Payload) != `{"a":1}` || r.FunctionError != "" {
				t.Fatalf("got %+v, %v", r, err)
			}
			t.Log(time.Since(begun), string(r.LogTail))
		}
		<-idle
		e.Shutdown(context.Background())
		t.Logf("%s", log.Bytes())
		t.Log(strings.Join(box.(*fake.Sandbox).Trace(), "\n"))
	})
}
