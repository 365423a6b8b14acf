package aws

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/lambdad/lambdad"
)

// A Route is the HTTP binding of one operation of a REST service.
type Route struct {
	Operation string
	Method    string
	// Path is the template, such as /2015-03-31/functions/{FunctionName}/code.
	Path string
	// Query is a constant key=value that tells operations of one path apart.
	Query string
	// Status of a successful answer.
	Status int
}

// A Router finds the Route of a request.
type Router struct{ root routeNode }

type routeNode struct {
	fixed  map[string]*routeNode
	param  *routeNode
	routes []*namedRoute
}

type namedRoute struct {
	Route
	names      []string
	key, value string // of Query
}

// NewRouter returns a Router for the routes.
func NewRouter(routes []Route) *Router {
	rt := &Router{}
	for _, r := range routes {
		n, nr := &rt.root, &namedRoute{Route: r}
		nr.key, nr.value, _ = strings.Cut(r.Query, "=")
		for seg := range strings.SplitSeq(strings.Trim(r.Path, "/"), "/") {
			if name, ok := strings.CutPrefix(seg, "{"); ok {
				nr.names = append(nr.names, strings.TrimSuffix(name, "}"))
				if n.param == nil {
					n.param = &routeNode{}
				}
				n = n.param
				continue
			}
			if n.fixed == nil {
				n.fixed = map[string]*routeNode{}
			}
			if n.fixed[seg] == nil {
				n.fixed[seg] = &routeNode{}
			}
			n = n.fixed[seg]
		}
		if r.Query != "" { // more specific: tried first
			n.routes = append([]*namedRoute{nr}, n.routes...)
		} else {
			n.routes = append(n.routes, nr)
		}
	}
	return rt
}

// A Match is a request's Route and the values of its path parameters.
type Match struct {
	route  *namedRoute
	values [4]string
}

// Route returns the matched route.
func (m *Match) Route() *Route { return &m.route.Route }

// Param returns the decoded value of a path parameter.
func (m *Match) Param(name string) string {
	for i, n := range m.route.names {
		if n == name {
			return m.values[i]
		}
	}
	return ""
}

// Match finds the route of r. Segments are split on the slashes as sent and
// decoded one by one; a slash at the end is ignored.
func (rt *Router) Match(r *http.Request) (*Match, error) {
	var m Match
	n, params := &rt.root, 0
	rest := strings.TrimSuffix(strings.TrimPrefix(rawPath(r), "/"), "/")
	for more := true; more; {
		var seg string
		seg, rest, more = strings.Cut(rest, "/")
		if strings.IndexByte(seg, '%') >= 0 {
			s, err := url.PathUnescape(seg)
			if err != nil {
				return nil, lambdad.Errorf("SerializationException", "The path of the request could not be read: %v", err)
			}
			seg = s
		}
		if next := n.fixed[seg]; next != nil {
			n = next
		} else if n.param != nil && params < len(m.values) {
			n = n.param
			m.values[params] = seg
			params++
		} else {
			return nil, unknownOperation(r)
		}
	}
	for _, nr := range n.routes {
		if nr.Method != r.Method {
			continue
		}
		if nr.Query == "" || strings.Contains(r.URL.RawQuery, nr.Query) && r.URL.Query().Get(nr.key) == nr.value {
			m.route = nr
			return &m, nil
		}
	}
	return nil, unknownOperation(r)
}

func unknownOperation(r *http.Request) error {
	return lambdad.Errorf("UnknownOperationException", "There is no operation %s %s.", r.Method, r.URL.Path)
}

// A Binding reads the members of a request that are not in its body. The first
// value that cannot be read is kept as its error.
type Binding struct {
	match *Match
	r     *Request
	query url.Values
	err   error
}

// NewBinding returns the Binding of a matched request.
func NewBinding(r *Request, m *Match) *Binding {
	b := &Binding{match: m, r: r}
	if r.URL.RawQuery != "" {
		b.query, b.err = url.ParseQuery(r.URL.RawQuery)
	}
	return b
}

// Path returns a path parameter.
func (b *Binding) Path(name string) *string { s := b.match.Param(name); return &s }

// PathInt returns a path parameter that is a number.
func (b *Binding) PathInt(name string) *int64 { return b.int(b.Path(name)) }

// Query returns a query parameter, or nil.
func (b *Binding) Query(name string) *string {
	if v, ok := b.query[name]; ok && len(v) > 0 {
		return &v[0]
	}
	return nil
}

// QueryList returns all values of a query parameter that repeats, or nil.
func (b *Binding) QueryList(name string) []string { return b.query[name] }

// QueryInt returns a query parameter that is a number, or nil.
func (b *Binding) QueryInt(name string) *int64 { return b.int(b.Query(name)) }

// Header returns a header, or nil.
func (b *Binding) Header(name string) *string {
	if v := b.r.Header.Values(name); len(v) > 0 {
		return &v[0]
	}
	return nil
}

func (b *Binding) int(s *string) *int64 {
	if s == nil {
		return nil
	}
	n, err := strconv.ParseInt(*s, 10, 64)
	if err != nil {
		if b.err == nil {
			b.err = err
		}
		return nil
	}
	return &n
}

// Err returns what could not be read, as a SerializationException.
func (b *Binding) Err() error {
	if b.err == nil {
		return nil
	}
	return &lambdad.Error{Code: "SerializationException", Message: "The parameters of the request could not be read: " + b.err.Error()}
}

// DecodeJSON reads the body of a REST-JSON request into v; an empty body is {}.
// Unknown members are ignored.
func DecodeJSON(body []byte, v any) error {
	if len(body) == 0 {
		return nil
	}
	err := json.Unmarshal(body, v)
	var mismatch *json.UnmarshalTypeError
	if errors.As(err, &mismatch) {
		return &lambdad.Error{Code: "SerializationException", Err: err,
			Message: jsonKind(mismatch.Value) + " can not be converted to " + goKind(mismatch) + " (member " + mismatch.Field + ")"}
	}
	if err != nil {
		return &lambdad.Error{Code: "SerializationException", Message: "Could not parse request body into json: " + err.Error(), Err: err}
	}
	return nil
}

func jsonKind(v string) string {
	kind, _, _ := strings.Cut(v, " ")
	switch kind {
	case "string":
		return "STRING_VALUE"
	case "number":
		return "NUMBER_VALUE"
	case "bool":
		return "BOOLEAN_VALUE"
	case "array":
		return "START_ARRAY"
	}
	return "START_OBJECT"
}

func goKind(e *json.UnmarshalTypeError) string {
	switch t := strings.TrimLeft(e.Type.String(), "*"); {
	case t == "int64":
		return "a Long"
	case t == "float64":
		return "a Double"
	case t == "bool":
		return "a Boolean"
	case t == "string":
		return "a String"
	case t == "aws.Timestamp":
		return "a Timestamp"
	case strings.HasPrefix(t, "["):
		return "a List"
	}
	return "an Object"
}

// WriteJSON answers with v as a JSON body.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	body, err := marshalJSON(v)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // a caller that is gone cannot be told
	return nil
}
