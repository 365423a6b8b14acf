package aws

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/lambdad/lambdad"
)

// An API is what a model says of a service whose operations are named in the
// request rather than bound to paths: those that speak JSON 1.0 and 1.1, the
// query protocol, RPC v2 CBOR, or several of them. It is generated.
type API struct {
	Name      string // SigV4 name, such as logs
	Title     string // for people, such as Amazon CloudWatch Logs
	Version   string // such as 2014-03-28
	Protocols []Protocol
	// Target is the part of X-Amz-Target before the dot, and the service in
	// the path of CBOR requests.
	Target string
	// Namespace is the XML namespace of query answers.
	Namespace  string
	Operations []string // of the whole model, in order
	Errors     map[string]ErrorShape

	// ValidationCode is the code of what Validate finds; default
	// ValidationException, which query answers call ValidationError. Set by hand
	// where recordings say otherwise.
	ValidationCode string
	// ValidationQuiet leaves values and enumerations out of its text.
	ValidationQuiet bool
}

// An RPC is the greater part of a Service: an API and a handler for each operation
// that is served. The other operations of the model are answered NotImplemented,
// and those that do not exist as AWS does. Services embed it.
type RPC struct {
	api      *API
	handlers map[string]Handler
}

// A Handler serves one operation: it answers, or returns an error without having
// answered. Most are made by Operation.
type Handler func(w http.ResponseWriter, r *Request) error

// NewRPC returns an RPC. It panics if a handler's operation is not in the model.
func NewRPC(api *API, handlers map[string]Handler) RPC {
	for op := range handlers {
		if !slices.Contains(api.Operations, op) {
			panic("aws: " + api.Name + " has no operation " + op)
		}
	}
	return RPC{api, handlers}
}

// Name implements Service.
func (s RPC) Name() string { return s.api.Name }

// ErrorShapes implements Service.
func (s RPC) ErrorShapes() map[string]ErrorShape { return s.api.Errors }

// Operations lists the operations that are served, and those that are answered
// NotImplemented.
func (s RPC) Operations() (served, missing []string) {
	for _, op := range s.api.Operations {
		if s.handlers[op] != nil {
			served = append(served, op)
		} else {
			missing = append(missing, op)
		}
	}
	return served, missing
}

// Route implements Service. In the query protocol the operation may be in the
// body: there the Mux sets it.
func (s RPC) Route(r *Request) error {
	r.Route = s.api
	if !slices.Contains(s.api.Protocols, r.Protocol) {
		return lambdad.Errorf("UnknownOperationException", "%s does not speak the protocol of this request.", s.api.Title)
	}
	switch r.Protocol {
	case JSON10, JSON11:
		target, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
		if target != s.api.Target {
			return s.unknown(r)
		}
		r.Operation = op
	case CBOR:
		rest, ok := strings.CutPrefix(r.URL.Path, "/service/"+s.api.Target+"/operation/")
		if !ok || r.Method != http.MethodPost {
			return s.unknown(r)
		}
		r.Operation = rest
	default:
		return nil
	}
	r.Action = actionOf(s.api.Name, r.Operation)
	return nil
}

func (s RPC) unknown(r *Request) error {
	if r.Protocol == Query {
		return lambdad.Errorf("InvalidAction", "Could not find operation %s for version %s", r.Operation, r.Form.Get("Version"))
	}
	return lambdad.Errorf("UnknownOperationException", "%s has no operation %q.", s.api.Title, r.Operation)
}

// ServeAWS implements Service.
func (s RPC) ServeAWS(w http.ResponseWriter, r *Request) error {
	if r.Protocol == Query {
		if v := r.Form.Get("Version"); v != "" && v != s.api.Version {
			return s.unknown(r)
		}
	}
	h := s.handlers[r.Operation]
	if h == nil {
		if !slices.Contains(s.api.Operations, r.Operation) {
			return s.unknown(r)
		}
		return lambdad.Errorf("NotImplemented", "lambdad does not offer the operation %s of %s yet.", r.Operation, s.api.Title)
	}
	return h(w, r)
}

// An Input is a generated request type.
type Input[T any] interface {
	*T
	Validate(*Validator)
}

// An Empty is the input of an operation that takes none, and the output of one that
// answers nothing.
type Empty struct{}

// Validate implements Input.
func (*Empty) Validate(*Validator) {}

// Operation makes a Handler in the protocol of the request: the input is decoded
// and validated, f does the work, and its output is answered. A nil output is an
// answer without members.
func Operation[T, O any, P Input[T]](f func(r *Request, in P) (*O, error)) Handler {
	return func(w http.ResponseWriter, r *Request) error {
		in := P(new(T))
		if err := ReadInput(r, in); err != nil {
			return err
		}
		out, err := f(r, in)
		if err != nil {
			return err
		}
		if out == nil {
			return writeOutput(w, r, nil)
		}
		return writeOutput(w, r, out)
	}
}

// ReadInput decodes and validates the input of a request for an RPC service. It is
// for handlers that Operation is too narrow for, such as those that stream.
func ReadInput[T any, P Input[T]](r *Request, in P) error {
	if r.Oversize {
		return lambdad.Errorf("RequestEntityTooLargeException", "Request must be smaller than %d bytes for the %s operation", max(r.BodyLimit, DefaultBodyLimit), r.Operation)
	}
	var err error
	switch r.Protocol {
	case Query:
		err = decodeForm(r.Form, in)
	case CBOR:
		err = decodeCBOR(r.Body, in)
	default:
		err = DecodeJSON(r.Body, in)
	}
	if err != nil {
		return err
	}
	api, _ := r.Route.(*API)
	v := Validator{quiet: api != nil && api.ValidationQuiet}
	in.Validate(&v)
	if err := v.Err(); err != nil {
		if api != nil && api.ValidationCode != "" {
			return &lambdad.Error{Code: api.ValidationCode, Message: err.(*lambdad.Error).Message}
		}
		return err
	}
	return nil
}

// writeOutput answers with out, a pointer to a generated type or nil.
func writeOutput(w http.ResponseWriter, r *Request, out any) error {
	h := w.Header()
	var body []byte
	var err error
	switch r.Protocol {
	case Query:
		h.Set("Content-Type", "text/xml")
		body = encodeXML(r, out)
	case CBOR:
		h.Set("Smithy-Protocol", "rpc-v2-cbor")
		if out == nil {
			break
		}
		h.Set("Content-Type", "application/cbor")
		body, err = cborEnc.Marshal(out)
	default:
		h.Set("Content-Type", contentTypes[r.Protocol])
		if out == nil {
			break
		}
		body, err = marshalJSON(out)
	}
	if err != nil {
		return fmt.Errorf("aws: encoding the answer of %s: %w", r.Operation, err)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(body) // a caller that is gone cannot be told
	return nil
}

var contentTypes = map[Protocol]string{
	RESTJSON: "application/json",
	JSON10:   "application/x-amz-json-1.0",
	JSON11:   "application/x-amz-json-1.1",
}

// marshalJSON is json.Marshal without the escapes that are for HTML.
func marshalJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// A Timestamp is a time as a member of a shape: seconds since 1970 in JSON, with
// fractions; tag 1 in CBOR; ISO 8601 in UTC in forms and XML. The precision on
// the wire is a millisecond.
type Timestamp struct{ time.Time }

// At returns a pointer to the Timestamp of t, as members want it.
func At(t time.Time) *Timestamp { return &Timestamp{t} }

// maxTime is the last second of the year 9999.
const maxTime = 253402300799

func timestampOf(seconds float64) (Timestamp, bool) {
	if math.IsNaN(seconds) || math.Abs(seconds) > maxTime {
		return Timestamp{}, false
	}
	return Timestamp{time.UnixMilli(int64(math.Round(seconds * 1000))).UTC()}, true
}

func (t Timestamp) seconds() float64 { return float64(t.UnixMilli()) / 1000 }

// MarshalJSON implements json.Marshaler.
func (t Timestamp) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, t.seconds(), 'f', -1, 64), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *Timestamp) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	seconds, err := strconv.ParseFloat(string(b), 64)
	if err == nil {
		if at, ok := timestampOf(seconds); ok {
			*t = at
			return nil
		}
	}
	kind := "number"
	switch b[0] {
	case '"':
		kind = "string"
	case '[':
		kind = "array"
	case '{':
		kind = "object"
	case 't', 'f':
		kind = "bool"
	}
	return &json.UnmarshalTypeError{Value: kind, Type: reflect.TypeFor[Timestamp]()}
}

// MarshalCBOR implements cbor.Marshaler.
func (t Timestamp) MarshalCBOR() ([]byte, error) {
	return cborEnc.Marshal(cbor.Tag{Number: 1, Content: t.seconds()})
}

// UnmarshalCBOR implements cbor.Unmarshaler.
func (t *Timestamp) UnmarshalCBOR(b []byte) error {
	var tag cbor.RawTag
	if cborDec.Unmarshal(b, &tag) == nil && tag.Number == 1 {
		b = tag.Content
	}
	var seconds float64
	if err := cborDec.Unmarshal(b, &seconds); err != nil {
		return err
	}
	at, ok := timestampOf(seconds)
	if !ok {
		return fmt.Errorf("%v is no time between the years 0 and 9999", seconds)
	}
	*t = at
	return nil
}

var (
	cborEnc = must(cbor.EncOptions{Sort: cbor.SortBytewiseLexical}.EncMode()) // one request, one answer
	cborDec = must(cbor.DecOptions{}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// decodeCBOR reads the body of a CBOR request; an empty one is an empty map.
func decodeCBOR(body []byte, in any) error {
	if len(body) == 0 {
		return nil
	}
	if err := cborDec.Unmarshal(body, in); err != nil {
		return &lambdad.Error{Code: "SerializationException", Err: err,
			Message: "The request body could not be read as CBOR: " + strings.TrimPrefix(err.Error(), "cbor: ")}
	}
	return nil
}
