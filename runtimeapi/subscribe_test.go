package runtimeapi

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/lambdad/lambdad/telemetry"
)

const (
	telemetryRoute = "PUT /2022-07-01/telemetry"
	logsRoute      = "PUT /2020-08-15/logs"
)

func subscriptions() *telemetry.Subscriptions {
	return telemetry.NewSubscriptions(telemetry.SubscriptionsConfig{
		Stream: telemetry.NewStream(),
		Dial:   func(context.Context, string) (net.Conn, error) { return nil, errors.New("nobody listens") },
	})
}

func TestSubscribe(t *testing.T) {
	cfg := cfg
	cfg.Subscriptions = subscriptions()
	serve(t, cfg, func(c *client) {
		defer cfg.Subscriptions.End()
		const (
			destination = `"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:8080"}`
			good        = `{"schemaVersion":"2022-07-01","types":["platform"],` + destination + `}`
			other       = `{"schemaVersion":"2022-07-01","types":["function"],` + destination + `}`
			goodLogs    = `{"types":["platform"],` + destination + `}`
		)
		id := func(name string) string {
			r := c.register(name, `{"events":["INVOKE"]}`)
			if r.status != 200 {
				t.Fatal(r)
			}
			return "Lambda-Extension-Identifier: " + r.header.Get("Lambda-Extension-Identifier")
		}
		a, b := id("a"), id("b")
		ok := func(r result) {
			t.Helper()
			if r.status != 200 || r.body != `"OK"` || r.header.Get("Content-Type") != "application/json" {
				t.Errorf("%d %s %v", r.status, r.body, r.header)
			}
		}
		for _, route := range []string{telemetryRoute, logsRoute} {
			c.want(c.call(route, "nonsense"), 403, "Extension.MissingExtensionIdentifier", "")
			c.want(c.call(route, "nonsense", "Lambda-Extension-Identifier: x"), 403, "Extension.InvalidExtensionIdentifier", "")
			c.want(c.call(route, "nonsense", "Lambda-Extension-Identifier: 5f1c1e5e-0000-4000-8000-000000000000"), 403, "Extension.UnknownExtensionIdentifier", "Unknown extension 5f1c1e5e-0000-4000-8000-000000000000")
		}
		const sample = `{"schemaVersion":"2022-07-01","types":[],"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain"}}`
		c.want(c.call(telemetryRoute, sample, a), 400, "ValidationError", "URI port is not provided; types should not be empty")
		c.want(c.call(logsRoute, strings.Replace(sample, "2022-07-01", "2020-08-15", 1), a), 400, "Logs.ValidationError", "URI port is not provided; types should not be empty")
		c.want(c.call(telemetryRoute, "", a), 400, "ValidationError", "")
		c.want(c.call(telemetryRoute, good+strings.Repeat(" ", maxRegister), a), 400, "ValidationError", "the request body is too large")
		c.want(c.call(telemetryRoute, `{"schemaVersion":"2022-07-01","types":["platform"],"destination":{"protocol":"TCP","port":80}}`, a), 400, "ValidationError", "cannot connect to the TCP destination sandbox.localdomain:80")

		ok(c.call(telemetryRoute+"/", good, a))
		ok(c.call(telemetryRoute, good, a, "Content-Type: application/json"))
		ok(c.call(telemetryRoute, other, a))
		c.want(c.call(logsRoute, goodLogs, a), 400, "Logs.ValidationError", "")
		ok(c.call(logsRoute+"/", goodLogs, b))
		c.want(c.call(telemetryRoute, good, b), 400, "ValidationError", "")

		// Until the end of the initialisation, whatever state the extension is in.
		d := id("d")
		c.begin(evNext, "", d)
		ok(c.call(telemetryRoute, good, d))
		e := id("e")
		cfg.Subscriptions.Close()
		c.want(c.call(telemetryRoute, good, e), 403, "Telemetry.SubscriptionClosed", "Telemetry API subscription is closed")
		c.want(c.call(logsRoute, "nonsense", e), 403, "Logs.SubscriptionClosed", "Logs API subscription is closed")
		c.want(c.call(telemetryRoute, good, "Lambda-Extension-Identifier: 5f1c1e5e-0000-4000-8000-000000000000"), 403, "Extension.UnknownExtensionIdentifier", "")
	})
}

// TestShutdownIsToldLater keeps the SHUTDOWN event until Tell, from extensions
// that wait for it and from ones that come for it.
func TestShutdownIsToldLater(t *testing.T) {
	serve(t, cfg, func(c *client) {
		var ids []string
		for _, name := range []string{"waits", "comes", "now"} {
			c.api.Expect(name)
			r := c.register(name, `{"events":["SHUTDOWN"]}`)
			ids = append(ids, "Lambda-Extension-Identifier: "+r.header.Get("Lambda-Extension-Identifier"))
		}
		waits, now := c.begin(evNext, "", ids[0]), c.begin(evNext, "", ids[2])
		told := c.api.Shutdown("spindown", c.release("r").Deadline, func(name string) bool { return name != "now" })
		if len(told) != 3 {
			t.Errorf("told %q", told)
		}
		comes := c.begin(evNext, "", ids[1])
		check := func(what string, over func() (result, bool), want bool) {
			t.Helper()
			if r, got := over(); got != want || got && !strings.Contains(r.body, "SHUTDOWN") {
				t.Errorf("%s: over %v, %s", what, got, r.body)
			}
		}
		check("waits", waits, false)
		check("comes", comes, false)
		check("now", now, true)
		c.api.Tell("waits")
		c.api.Tell("comes")
		c.api.Tell("nobody")
		check("waits", waits, true)
		check("comes", comes, true)
	})
}

func FuzzSubscribe(f *testing.F) {
	f.Add(false, []byte(`{"schemaVersion":"2022-12-13","types":["platform","function"],"buffering":{"maxItems":1000,"maxBytes":262144,"timeoutMs":100},"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:8080/any/path"}}`))
	f.Add(true, []byte(`{"types":["platform"],"destination":{"protocol":"TCP","port":4243}}`))
	f.Fuzz(func(t *testing.T, logs bool, body []byte) {
		cfg := cfg
		cfg.Subscriptions = subscriptions()
		serve(t, cfg, func(c *client) {
			defer cfg.Subscriptions.End()
			id := "Lambda-Extension-Identifier: " + c.register("a", `{}`).header.Get("Lambda-Extension-Identifier")
			route, prefix := telemetryRoute, ""
			if logs {
				route, prefix = logsRoute, "Logs."
			}
			r := c.call(route, string(body), id)
			if r.status == 200 && r.body == `"OK"` {
				return
			}
			c.want(r, 400, prefix+"ValidationError", "")
		})
	})
}
