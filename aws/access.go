package aws

import "time"

// An Access is what there is to know about a request that was answered.
type Access struct {
	Time      time.Time // of the answer
	RequestID string
	Service   string
	Operation string
	Action    string
	Region    string
	Resource  string // ARN, where policies decided; else ""
	Path      string // of the URL
	ReadOnly  bool
	// ErrorCode and ErrorMessage are "" for what succeeded.
	ErrorCode, ErrorMessage string

	SourceIP  string
	UserAgent string
	// Listener is the id of the environment through whose listener the request
	// came; "" for the endpoint itself.
	Listener string
	// Function is of the environment whose credentials or listener were used.
	Function string
	// Identity is zero for what was not authenticated. Its Grants are nil.
	Identity Identity
}

// tell says that a request was answered.
func (m *Mux) tell(r *Request) {
	var listener string
	if l := listenerOf(r.Request); l != nil {
		listener = l.environment
	}
	if r.Identity.ARN == "" && listener == "" {
		return // anybody could fill a log
	}
	a := Access{
		Time: m.opts.Now(), RequestID: r.RequestID, Service: r.Service, Operation: r.Operation, Action: r.Action,
		Region: r.Region, Resource: r.resource, Path: r.URL.Path, ReadOnly: readOnly(r.Operation),
		SourceIP: r.RemoteAddr, UserAgent: r.UserAgent(), Listener: listener, Identity: r.Identity,
	}
	a.Identity.Grants = nil
	a.Function = r.Identity.Function
	if k, ok := m.keys.(*KeyStore); ok && a.Function == "" && listener != "" {
		a.Function = k.functionOf(listener)
	}
	if r.failed != nil {
		a.ErrorCode, a.ErrorMessage = r.failed.Code, r.failed.Message
	}
	m.opts.Access(a)
}

// readOnly is told by the name, as CloudTrail does.
func readOnly(operation string) bool {
	for _, verb := range [...]string{"Get", "List", "Describe", "Head", "Lookup", "Filter", "Batch", "Simulate"} {
		if len(operation) > len(verb) && operation[:len(verb)] == verb {
			return verb != "Batch" || len(operation) > 8 && operation[:8] == "BatchGet"
		}
	}
	return false
}
