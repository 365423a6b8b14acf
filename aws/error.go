package aws

import (
	"encoding/json"
	"encoding/xml"
	"net/http"
	"strconv"
	"strings"

	"github.com/lambdad/lambdad"
)

// Protocol is the form in which a service writes its errors (control-plane.md
// section 1.1).
type Protocol int

// The protocols of AWS services.
const (
	RESTJSON Protocol = iota
	JSON10
	JSON11
	Query
	EC2Query
	RESTXML
	CBOR
)

// An ErrorShape is how one error looks on the wire (control-plane.md section 1.5).
type ErrorShape struct {
	Status int    // HTTP status
	Key    string // of the message in JSON: message or Message
	Type   string // Type member: User, Service, or "" for none
}

// commonErrors are the errors that are not in the models: those of the front of
// every service.
var commonErrors = map[string]ErrorShape{
	"AccessDenied":                        {http.StatusForbidden, "message", ""},
	"AccessDeniedException":               {http.StatusForbidden, "Message", ""},
	"IncompleteSignature":                 {http.StatusBadRequest, "message", ""},
	"IncompleteSignatureException":        {http.StatusBadRequest, "message", ""},
	"AuthorizationHeaderMalformed":        {http.StatusBadRequest, "message", ""},
	"InternalFailure":                     {http.StatusInternalServerError, "message", ""},
	"InvalidAccessKeyId":                  {http.StatusForbidden, "message", ""},
	"InvalidAction":                       {http.StatusBadRequest, "message", ""},
	"InvalidClientTokenId":                {http.StatusForbidden, "message", ""},
	"InvalidSignatureException":           {http.StatusForbidden, "message", ""},
	"MissingAction":                       {http.StatusBadRequest, "message", ""},
	"MissingAuthenticationToken":          {http.StatusForbidden, "message", ""},
	"MissingAuthenticationTokenException": {http.StatusForbidden, "message", ""},
	"NotImplemented":                      {http.StatusNotImplemented, "message", ""},
	"RequestEntityTooLargeException":      {http.StatusRequestEntityTooLarge, "message", ""},
	"RequestTimeTooSkewed":                {http.StatusForbidden, "message", ""},
	"RequestTimeoutException":             {http.StatusRequestTimeout, "message", ""},
	"SerializationException":              {http.StatusBadRequest, "Message", ""},
	"ServiceException":                    {http.StatusInternalServerError, "Message", "Service"},
	"ServiceUnavailableException":         {http.StatusServiceUnavailable, "message", ""},
	"SignatureDoesNotMatch":               {http.StatusForbidden, "message", ""},
	"UnknownOperationException":           {http.StatusNotFound, "message", ""},
	"UnrecognizedClientException":         {http.StatusForbidden, "message", ""},
	"ValidationError":                     {http.StatusBadRequest, "message", ""},
	"ValidationException":                 {http.StatusBadRequest, "message", ""},
}

// inWordsOf renames the errors of the front for protocols that have other names
// for them than JSON services.
func inWordsOf(proto Protocol, e *lambdad.Error) *lambdad.Error {
	switch proto {
	case Query, EC2Query, RESTXML:
	default:
		return e
	}
	named := *e
	switch e.Code {
	case "AccessDeniedException":
		named.Code = "AccessDenied"
	case "ServiceException":
		named.Code = "InternalFailure"
	}
	return &named
}

// writeErrorBody writes e in the form of the protocol.
func writeErrorBody(w http.ResponseWriter, proto Protocol, r *Request, e *lambdad.Error, shape ErrorShape) {
	h := w.Header()
	var body []byte
	switch proto {
	case RESTJSON, JSON10, JSON11:
		h["x-amzn-ErrorType"] = []string{e.Code}
		body = errorJSON(proto, e, shape)
		switch proto {
		case RESTJSON:
			h.Set("Content-Type", "application/json")
		case JSON10:
			h.Set("Content-Type", "application/x-amz-json-1.0")
		case JSON11:
			h.Set("Content-Type", "application/x-amz-json-1.1")
		}
		if strings.EqualFold(r.Header.Get("x-amzn-query-mode"), "true") {
			h["x-amzn-query-error"] = []string{e.Code + ";" + faultOf(shape.Status)}
		}
	case CBOR:
		h.Set("Content-Type", "application/cbor")
		h.Set("Smithy-Protocol", "rpc-v2-cbor")
		body = cborMap("__type", e.Code, "message", e.Message)
	default:
		h.Set("Content-Type", "text/xml")
		if proto == RESTXML {
			h.Set("Content-Type", "application/xml")
			h["x-amz-request-id"] = []string{r.RequestID}
		}
		body = errorXML(proto, r, e, shape)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(shape.Status)
	if r.Method != http.MethodHead {
		w.Write(body)
	}
}

func faultOf(status int) string {
	if status >= 500 && status != http.StatusNotImplemented {
		return "Receiver"
	}
	return "Sender"
}

func errorJSON(proto Protocol, e *lambdad.Error, shape ErrorShape) []byte {
	members := make(map[string]any, 4)
	if proto != RESTJSON {
		members["__type"] = e.Code
	}
	members[shape.Key] = e.Message
	if e.Message == "" {
		members[shape.Key] = nil // as recorded
	}
	if shape.Type != "" && !e.NoType {
		members["Type"] = shape.Type
	}
	if e.Reason != "" {
		members["Reason"] = e.Reason
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(members); err != nil {
		return []byte("{}") // cannot be: a map of strings
	}
	return []byte(strings.TrimSuffix(b.String(), "\n"))
}

func errorXML(proto Protocol, r *Request, e *lambdad.Error, shape ErrorShape) []byte {
	type xmlError struct {
		Type    string `xml:",omitempty"`
		Code    string
		Message string
	}
	var v any
	switch proto {
	case EC2Query:
		v = struct {
			XMLName   struct{}   `xml:"Response"`
			Errors    []xmlError `xml:"Errors>Error"`
			RequestID string
		}{Errors: []xmlError{{Code: e.Code, Message: e.Message}}, RequestID: r.RequestID}
	case RESTXML:
		if r.Service == "s3" {
			v = struct {
				XMLName  struct{} `xml:"Error"`
				Code     string
				Message  string
				Resource string
				ID       string `xml:"RequestId"`
			}{Code: e.Code, Message: e.Message, Resource: r.URL.Path, ID: r.RequestID}
			break
		}
		fallthrough
	default:
		v = struct {
			XMLName struct{} `xml:"ErrorResponse"`
			NS      string   `xml:"xmlns,attr,omitempty"`
			Error   xmlError
			ID      string `xml:"RequestId"`
		}{NS: knownServices[r.Service].xmlns, Error: xmlError{faultOf(shape.Status), e.Code, e.Message}, ID: r.RequestID}
	}
	body, err := xml.Marshal(v)
	if err != nil {
		return nil // cannot be: strings only
	}
	return append([]byte(xml.Header), body...)
}

// cborMap encodes pairs of text strings as a CBOR map.
func cborMap(pairs ...string) []byte {
	b := []byte{0xa0 | byte(len(pairs)/2)}
	for _, s := range pairs {
		switch n := len(s); {
		case n < 24:
			b = append(b, 0x60|byte(n))
		case n < 1<<8:
			b = append(b, 0x78, byte(n))
		default:
			s = s[:min(n, 1<<16-1)]
			b = append(b, 0x79, byte(len(s)>>8), byte(len(s)))
		}
		b = append(b, s...)
	}
	return b
}
