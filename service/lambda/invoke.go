package lambda

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
)

// maxClientContext is the longest client context, in bytes of base64.
const maxClientContext = 3583

// invoke serves Invoke. It is the one operation on the way of every invocation,
// so it takes the common spelling of a request by hand and leaves what is left
// to the generated validation.
func (s *Service) invoke(c *call, w http.ResponseWriter) error {
	name := c.match.Param("FunctionName")
	_, ok := parseFunctionRef(name)
	ok = ok && len(name) <= 256
	var qualifier *string
	if query := c.URL.RawQuery; ok && query != "" {
		var q string
		if q, ok = plainQualifier(query); ok {
			qualifier = &q
		}
	}
	kind := c.Header.Get("X-Amz-Invocation-Type")
	tail := c.Header.Get("X-Amz-Log-Type")
	if !ok || kind != "" && kind != "RequestResponse" || tail != "" && tail != "None" && tail != "Tail" {
		var in InvocationRequest
		b := aws.NewBinding(c.Request, c.match)
		in.bind(b)
		if err := b.Err(); err != nil {
			return err
		}
		var v aws.Validator
		in.validate(&v)
		if err := v.Err(); err != nil {
			return err
		}
		qualifier = in.Qualifier
	}
	ref, err := resolveRef(c, name, qualifier)
	if err != nil {
		return err
	}
	inv := &lambdad.Invocation{
		Account: ref.account, Region: ref.region, Function: ref.name, Qualifier: ref.qualifier,
		RequestID: c.RequestID, Payload: c.Body,
		TraceID: c.Header.Get("X-Amzn-Trace-Id"), Tail: tail == "Tail",
	}
	if c.Oversize {
		// A function that is not there is said first.
		if _, err := s.Registry.Resolve(c.Context(), ref.account, ref.region, ref.name, ref.qualifier); err != nil {
			return err
		}
		return tooLarge(c)
	}
	if cc := c.Header.Get("X-Amz-Client-Context"); cc != "" {
		if inv.ClientContext, err = decodeClientContext(cc); err != nil {
			return err
		}
	}
	if c.Header.Get("X-Amz-Durable-Execution-Name") != "" {
		return notOffered("DurableExecutionName")
	}
	if c.Header.Get("X-Amz-Tenant-Id") != "" {
		return notOffered("TenantId")
	}
	switch kind {
	case "DryRun":
		if err := s.Frontend.DryRun(c.Context(), inv); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	case "Event":
		if err := s.Frontend.Event(c.Context(), inv); err != nil {
			return err
		}
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	res, err := s.Frontend.Invoke(c.Context(), inv)
	if err != nil {
		return err
	}
	h := w.Header()
	h["Content-Type"] = contentTypeJSON
	h["Content-Length"] = []string{strconv.Itoa(len(res.Payload))}
	h["X-Amz-Executed-Version"] = []string{res.ExecutedVersion}
	if inv.TraceID != "" {
		h["X-Amzn-Trace-Id"] = []string{inv.TraceID}
	}
	if res.FunctionError != "" {
		h["X-Amz-Function-Error"] = []string{res.FunctionError}
	}
	if inv.Tail {
		h["X-Amz-Log-Result"] = []string{base64.StdEncoding.EncodeToString(res.LogTail)}
	}
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(res.Payload) // a caller that is gone cannot be told
	return nil
}

// plainQualifier reads a query that is a well-formed qualifier alone.
func plainQualifier(query string) (string, bool) {
	q, ok := strings.CutPrefix(query, "Qualifier=")
	if !ok || strings.IndexByte(q, '&') >= 0 {
		return "", false
	}
	q, err := url.QueryUnescape(q)
	return q, err == nil && isQualifier(q)
}

// contentTypeJSON is shared by all answers; net/http only reads it.
var contentTypeJSON = []string{"application/json"}

// decodeClientContext turns the header into the JSON that the function sees.
func decodeClientContext(s string) (string, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(s) > maxClientContext || !json.Valid(b) {
		return "", &lambdad.Error{Code: "InvalidRequestContentException", Err: err,
			Message: "Client context must be a valid Base64-encoded JSON object."}
	}
	return string(b), nil
}

// notOffered refuses a member whose effect lambdad does not have.
func notOffered(member string) error {
	return lambdad.Errorf("InvalidParameterValueException", "lambdad does not support %s yet; leave it out.", member)
}
