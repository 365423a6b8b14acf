package aws

import (
	"cmp"
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
	// QueryCode is the code in the query protocol, where it is another one.
	QueryCode string
}

// commonErrors are the errors that are not in the models: those of the front of
// every service.
var commonErrors = map[string]ErrorShape{
	"AccessDenied":                        {Status: http.StatusForbidden, Key: "message"},
	"AccessDeniedException":               {Status: http.StatusForbidden, Key: "Message"},
	"ExpiredToken":                        {Status: http.StatusForbidden, Key: "message"},
	"ExpiredTokenException":               {Status: http.StatusForbidden, Key: "message"},
	"IncompleteSignature":                 {Status: http.StatusBadRequest, Key: "message"},
	"IncompleteSignatureException":        {Status: http.StatusBadRequest, Key: "message"},
	"AuthorizationHeaderMalformed":        {Status: http.StatusBadRequest, Key: "message"},
	"InternalFailure":                     {Status: http.StatusInternalServerError, Key: "message"},
	"InvalidAccessKeyId":                  {Status: http.StatusForbidden, Key: "message"},
	"InvalidAction":                       {Status: http.StatusBadRequest, Key: "message"},
	"InvalidClientTokenId":                {Status: http.StatusForbidden, Key: "message"},
	"InvalidSignatureException":           {Status: http.StatusForbidden, Key: "message"},
	"MissingAction":                       {Status: http.StatusBadRequest, Key: "message"},
	"MissingAuthenticationToken":          {Status: http.StatusForbidden, Key: "message"},
	"MissingAuthenticationTokenException": {Status: http.StatusForbidden, Key: "message"},
	"NotImplemented":                      {Status: http.StatusNotImplemented, Key: "message"},
	"RequestEntityTooLargeException":      {Status: http.StatusRequestEntityTooLarge, Key: "message"},
	"RequestTimeTooSkewed":                {Status: http.StatusForbidden, Key: "message"},
	"RequestTimeoutException":             {Status: http.StatusRequestTimeout, Key: "message"},
	"SerializationException":              {Status: http.StatusBadRequest, Key: "Message"},
	"ServiceException":                    {Status: http.StatusInternalServerError, Key: "Message", Type: "Service"},
	"ServiceUnavailableException":         {Status: http.StatusServiceUnavailable, Key: "message"},
	"SignatureDoesNotMatch":               {Status: http.StatusForbidden, Key: "message"},
	"UnknownOperationException":           {Status: http.StatusNotFound, Key: "message"},
	"UnrecognizedClientException":         {Status: http.StatusForbidden, Key: "message"},
	"ValidationError":                     {Status: http.StatusBadRequest, Key: "message"},
	"ValidationException":                 {Status: http.StatusBadRequest, Key: "message"},
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
	case "ValidationException":
		named.Code = "ValidationError"
	}
	return &named
}

// writeErrorBody writes e in the form of the protocol.
func writeErrorBody(w http.ResponseWriter, proto Protocol, r *Request, e *lambdad.Error, shape ErrorShape) {
	h := w.Header()
	if strings.EqualFold(r.Header.Get("x-amzn-query-mode"), "true") {
		h["x-amzn-query-error"] = []string{cmp.Or(shape.QueryCode, e.Code) + ";" + faultOf(shape.Status)}
	}
	var body []byte
	switch proto {
	case RESTJSON, JSON10, JSON11:
		h["x-amzn-ErrorType"] = []string{e.Code}
		body = errorJSON(proto, e, shape)
		h.Set("Content-Type", contentTypes[proto])
	case CBOR:
		h.Set("Content-Type", "application/cbor")
		h.Set("Smithy-Protocol", "rpc-v2-cbor")
		body = must(cborEnc.Marshal(map[string]string{"__type": e.Code, "message": e.Message}))
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
	return must(marshalJSON(members))
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
		}{NS: knownServices[r.Service].xmlns, Error: xmlError{faultOf(shape.Status), cmp.Or(shape.QueryCode, e.Code), e.Message}, ID: r.RequestID}
	}
	body, err := xml.Marshal(v)
	if err != nil {
		return nil // cannot be: strings only
	}
	return append([]byte(xml.Header), body...)
}
