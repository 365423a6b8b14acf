package runtimeapi

import (
	"errors"
	"net/http"

	"github.com/lambdad/lambdad/telemetry"
)

// serveSubscribe serves the Telemetry API and the Logs API: an extension asks for
// what its function and the platform tell (spec: telemetry-api.md section 1).
func (a *API) serveSubscribe(c *conn, r *request, logs bool) {
	id, no := checkIdentifier(r.values[extensionID])
	var x *extension
	if no == nil {
		a.mu.Lock()
		x, no = a.identified(id, "Unknown extension "+id)
		a.mu.Unlock()
	}
	if no == nil {
		no = a.subscribe(c, r, x.name, logs)
	}
	if no != nil {
		c.refuse(r, no)
		return
	}
	c.reply(r, "200 OK", "", []byte(`"OK"`))
}

func (a *API) subscribe(c *conn, r *request, extension string, logs bool) *refusal {
	name, prefix := "Telemetry", ""
	if logs {
		name, prefix = "Logs", "Logs."
	}
	if a.cfg.Subscriptions == nil {
		// An error and no 202: honest clients go on without, and none waits for
		// records.
		return &refusal{http.StatusNotImplemented, name + ".NotSupported", name + " API is not supported"}
	}
	closed := refuse(name+".SubscriptionClosed", name+" API subscription is closed")
	if a.cfg.Subscriptions.Closed() {
		return closed
	}
	invalid := func(text string) *refusal {
		return &refusal{http.StatusBadRequest, prefix + "ValidationError", text}
	}
	body, _, err := c.body(r, maxRegister)
	if errors.Is(err, errTooLarge) {
		return invalid("the request body is too large")
	}
	if err != nil {
		return invalid("the request body is truncated")
	}
	req, err := telemetry.ParseRequest(logs, body)
	if err == nil {
		err = a.cfg.Subscriptions.Subscribe(a.living, extension, req)
	}
	var bad *telemetry.RequestError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &bad):
		return invalid(bad.Error())
	}
	return closed
}
