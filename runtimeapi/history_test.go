package runtimeapi

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// TestRandomHistories makes random calls in random states and checks the rules
// of runtime-api.md section 8 and the delivery rule of extensions-api.md 4.
func TestRandomHistories(t *testing.T) {
	for seed := range uint64(150) {
		serve(t, cfg, func(c *client) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			var history []string
			fail := func(format string, args ...any) {
				t.Fatalf("seed %d: %s\nhistory:\n%s", seed, fmt.Sprintf(format, args...), strings.Join(history, "\n"))
			}
			c.api.Expect("ext")
			ext := "Lambda-Extension-Identifier: " + c.register("ext", `{"events":["INVOKE"]}`).header.Get("Lambda-Extension-Identifier")
			var runtime, extension []func() (result, bool)
			current, released := "", 0
			accepted, given := map[string]int{}, map[string]int{}
			harvest := func() {
				for i := 0; i < len(runtime); i++ {
					r, over := runtime[i]()
					if !over {
						continue
					}
					runtime = append(runtime[:i], runtime[i+1:]...)
					i--
					if r.status == 200 {
						id := r.header.Get("Lambda-Runtime-Aws-Request-Id")
						history = append(history, "runtime got "+id)
						if id != current || accepted[id] > 0 {
							fail("the runtime got %s while %s is current, answered %d times", id, current, accepted[id])
						}
					}
				}
				for i := 0; i < len(extension); i++ {
					r, over := extension[i]()
					if !over {
						continue
					}
					extension = append(extension[:i], extension[i+1:]...)
					i--
					if r.status == 200 {
						history = append(history, "extension got "+r.body)
						if !strings.Contains(r.body, `"`+current+`"`) {
							fail("the extension got %s while %s is current", r.body, current)
						}
						if given[current]++; given[current] > 1 {
							fail("the extension got %s twice", current)
						}
					}
				}
			}
			for range 60 {
				switch op := rnd.IntN(9); op {
				case 0, 1:
					history = append(history, "next")
					runtime = append(runtime, c.begin(next, ""))
				case 2, 3:
					history = append(history, "event/next")
					extension = append(extension, c.begin(evNext, "", ext))
				case 4, 5, 6:
					id := fmt.Sprint("id", rnd.IntN(released+2))
					if op == 4 && current != "" {
						id = current
					}
					route := response(id)
					if rnd.IntN(3) == 0 {
						route = failure(id)
					}
					r := c.call(route, "x")
					history = append(history, fmt.Sprint(route, " ", r.status))
					switch {
					case r.status == 202 && (id != current || accepted[id] > 0):
						fail("%s was accepted; %s is current, answered %d times", route, current, accepted[id])
					case r.status == 202:
						accepted[id]++
					case id != current && r.status != 400:
						fail("%s: %d, want 400", route, r.status)
					case id == current && r.status != 403:
						fail("%s: %d, want 403", route, r.status)
					}
				case 7:
					r := c.call("POST /2018-06-01/runtime/init/error", "{}")
					if r.status == 202 {
						return // the generation is over
					}
				case 8:
					p := c.api.Progress()
					if current != "" && !p.AllNext.IsZero() {
						if accepted[current] != 1 || given[current] != 1 {
							fail("%s is over: answered %d times, given to the extension %d times", current, accepted[current], given[current])
						}
						c.api.End()
						current = ""
						history = append(history, "end")
					}
					if current == "" && c.api.Ready() {
						current = fmt.Sprint("id", released)
						released++
						history = append(history, "release "+current)
						c.release(current)
					}
				}
				harvest()
			}
			if len(c.answer) != len(accepted) {
				fail("%d answers, %d accepted", len(c.answer), len(accepted))
			}
		})
	}
}
