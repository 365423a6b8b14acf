package telemetry

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Schema versions of subscriptions; the first two are those of the Logs API.
const (
	SchemaLogs2020 = "2020-08-15"
	SchemaLogs2021 = "2021-03-18"
	Schema2022     = "2022-07-01"
	SchemaJSON     = "2022-12-13" // records that are JSON objects, restore events
	Schema2025     = "2025-01-29"
)

// Bounds and defaults of buffering (telemetry-api.md section 1).
const (
	minTimeout, defaultTimeout, maxTimeout = 25, 1000, 30000 // ms
	minBytes, defaultBytes, maxBytes       = 256 << 10, 256 << 10, 1 << 20
	minItems, defaultItems, maxItems       = 1000, 10000, 10000
)

// reservedPort is that of the APIs themselves.
const reservedPort = 9001

// A Request is what an extension asks for when it subscribes.
type Request struct {
	// Logs says that it came through the Logs API.
	Logs bool
	// Schema is one of the Schema constants that belongs to the API.
	Schema string
	// Types are platform, function, extension: at least one, none twice.
	Types []string
	// A batch is sent when it has MaxItems records or MaxBytes bytes, or Timeout
	// after its first event.
	MaxItems, MaxBytes int
	Timeout            time.Duration
	// TCP says that records go as lines over one connection to Addr; otherwise
	// each batch is the body of an HTTP request of this method to URL.
	TCP         bool
	Addr        string
	Method, URL string
}

// Equal reports whether two requests ask for the same.
func (r *Request) Equal(o *Request) bool {
	a, b := *r, *o
	a.Types, b.Types = nil, nil
	x, y := slices.Sorted(slices.Values(r.Types)), slices.Sorted(slices.Values(o.Types))
	return slices.Equal(x, y) && fmt.Sprint(a) == fmt.Sprint(b)
}

// A RequestError says everything that is wrong with a request, in the form of
// the service: one phrase after the other.
type RequestError struct{ Phrases []string }

// Error implements error.
func (e *RequestError) Error() string { return strings.Join(e.Phrases, "; ") }

// ParseRequest reads the body of a subscription of the Logs API or of the
// Telemetry API. The names of members are matched exactly, unknown ones are
// ignored. An error is a *RequestError.
func ParseRequest(logs bool, body []byte) (*Request, error) {
	bad := &RequestError{}
	wrong := func(format string, args ...any) { bad.Phrases = append(bad.Phrases, fmt.Sprintf(format, args...)) }
	var o object
	if err := json.Unmarshal(body, &o); err != nil || o == nil {
		wrong("the request body is not a JSON object")
		return nil, bad
	}
	r := &Request{Logs: logs, Method: "POST"}

	known := []string{Schema2022, SchemaJSON, Schema2025}
	if logs {
		r.Schema, known = SchemaLogs2020, []string{SchemaLogs2020, SchemaLogs2021}
	}
	switch ok := o.get("schemaVersion", &r.Schema); {
	case !ok:
		wrong("schemaVersion should be a string")
	case r.Schema == "":
		wrong("schemaVersion is not provided")
	case !slices.Contains(known, r.Schema):
		wrong("schemaVersion should be one of %s", strings.Join(known, ", "))
	}

	var d object
	switch ok := o.get("destination", &d); {
	case !ok:
		wrong("destination should be an object")
	case d == nil:
		wrong("destination is not provided")
	default:
		r.destination(d, wrong)
	}

	var b object
	if !o.get("buffering", &b) {
		wrong("buffering should be an object")
	}
	number := func(name string, least, value, most int) int {
		if !b.get(name, &value) {
			wrong("%s should be a whole number", name)
		} else if value < least || value > most {
			wrong("%s should be between %d and %d", name, least, most)
		}
		return value
	}
	r.Timeout = time.Duration(number("timeoutMs", minTimeout, defaultTimeout, maxTimeout)) * time.Millisecond
	r.MaxBytes = number("maxBytes", minBytes, defaultBytes, maxBytes)
	r.MaxItems = number("maxItems", minItems, defaultItems, maxItems)

	var types []string
	switch ok := o.get("types", &types); {
	case !ok:
		wrong("types should be a list of strings")
	case len(types) == 0:
		wrong("types should not be empty")
	}
	for _, t := range types {
		switch {
		case t != "platform" && t != "function" && t != "extension":
			wrong("types should be platform, function or extension")
		case !slices.Contains(r.Types, t):
			r.Types = append(r.Types, t)
		}
	}
	if len(bad.Phrases) > 0 {
		bad.Phrases = slices.Compact(bad.Phrases)
		return nil, bad
	}
	return r, nil
}

func (r *Request) destination(d object, wrong func(string, ...any)) {
	var protocol, uri, method string
	if !d.get("protocol", &protocol) || protocol != "HTTP" && protocol != "TCP" {
		wrong("protocol should be HTTP or TCP")
		return
	}
	if !d.get("URI", &uri) {
		wrong("URI should be a string")
		return
	}
	if r.TCP = protocol == "TCP"; r.TCP {
		port := 0
		if !d.get("port", &port) {
			wrong("port should be a whole number")
			return
		}
		if port == 0 && uri != "" { // tcp://sandbox:port, or no scheme
			rest, _ := strings.CutPrefix(uri, "tcp://")
			host, p, err := net.SplitHostPort(strings.TrimSuffix(rest, "/"))
			if err == nil && !inside(host) {
				wrong("URI host should be sandbox.localdomain or sandbox")
				return
			}
			port, _ = strconv.Atoi(p)
		}
		if r.port(port, "port", wrong) {
			r.Addr = net.JoinHostPort("sandbox.localdomain", strconv.Itoa(port))
		}
		return
	}
	if r.Logs {
		if !d.get("method", &method) || method != "" && method != "POST" && method != "PUT" {
			wrong("method should be POST or PUT")
		} else if method != "" {
			r.Method = method
		}
	}
	u, err := url.Parse(uri)
	switch {
	case uri == "":
		wrong("URI is not provided")
	case err != nil:
		wrong("URI is malformed")
	case u.Scheme != "http":
		wrong("URI scheme should be http")
	case !inside(u.Hostname()):
		wrong("URI host should be sandbox.localdomain or sandbox")
	case u.Port() == "":
		wrong("URI port is not provided")
	default:
		port, _ := strconv.Atoi(u.Port())
		if r.port(port, "URI port", wrong) {
			u.Fragment, u.User = "", nil
			r.URL = u.String()
		}
	}
}

func (r *Request) port(port int, what string, wrong func(string, ...any)) bool {
	switch {
	case port == reservedPort:
		wrong("%s %d is reserved", what, reservedPort)
	case port < 1 || port > 65535:
		wrong("%s should be between 1 and 65535", what)
	default:
		return true
	}
	return false
}

func inside(host string) bool { return host == "sandbox.localdomain" || host == "sandbox" }

// object is a JSON object whose members are found by their exact names.
type object map[string]json.RawMessage

// get decodes a member into v, which keeps its value when the member is absent or
// null. It reports whether the member had the right type.
func (o object) get(name string, v any) bool {
	raw, ok := o[name]
	return !ok || string(raw) == "null" || json.Unmarshal(raw, v) == nil
}
