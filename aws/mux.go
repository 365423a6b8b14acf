// Package aws is the wire that AWS clients speak: signatures, the choice of a
// service on one endpoint, request bodies, request ids and error bodies in the
// form of each service's protocol.
//
// A Mux is the http.Handler of the endpoint. For each request it chooses a
// Service (control-plane.md section 1.2), checks the Signature Version 4 (1.3),
// reads the body within the service's limit, authorises, and hands a Request to
// the service. A service returns an error or writes the answer, never both; an
// error is written by the Mux in the service's own form. What a service means by
// its operations is not known here.
package aws

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"

	"github.com/lambdad/lambdad"
)

// DefaultAccount is the account of every access key that names none.
const DefaultAccount = "000000000000"

// Keys finds the secret of an access key.
type Keys interface {
	// Lookup returns what belongs to the key with the session token it came with,
	// "" for none; or ErrUnknownKey or ErrExpiredKey. It compares secrets in
	// constant time.
	Lookup(ctx context.Context, accessKeyID, token string) (secret string, id Identity, err error)
}

// Errors of Keys.
var (
	// ErrUnknownKey: there is no such key, or the token is not the key's.
	ErrUnknownKey = errors.New("aws: unknown access key or token")
	// ErrExpiredKey: the key was a temporary one.
	ErrExpiredKey = errors.New("aws: expired access key")
)

// A Request is an authenticated request for a service.
type Request struct {
	*http.Request
	Service string // SigV4 name
	// Protocol is the one the request is made in, and answered in.
	Protocol  Protocol
	Region    string // of the credential scope
	RequestID string
	Identity  Identity
	// SessionToken came with temporary credentials; it must not be shown.
	SessionToken string
	// Body is what was sent, decompressed. It is nil if Oversize.
	Body []byte
	// Oversize: the body was longer than BodyLimit and was thrown away.
	Oversize bool
	// Form holds the parameters of a query-protocol request.
	Form url.Values

	// The following are set by Service.Route (query protocol: by the Mux).

	// Operation is the API operation, such as CreateFunction; "" if the request
	// names none that exists.
	Operation string
	// Action is what policies call it, such as lambda:InvokeFunction.
	Action string
	// ResourceText is what a refusal calls the resource; "" means its ARN. Set by
	// ResourceNamer.Resource.
	ResourceText string
	// BodyLimit is the longest body accepted, in bytes; 0 means
	// DefaultBodyLimit.
	BodyLimit int64
	// Route is the service's own.
	Route any

	authority authority
	resource  string         // decided about; "" for none
	failed    *lambdad.Error // what was answered, if it was an error
}

// DefaultBodyLimit is the longest body of a service that sets none, in bytes.
const DefaultBodyLimit = 6291456

// A Service is one AWS API.
type Service interface {
	// Name is the service's name in credential scopes, such as lambda.
	Name() string
	// ErrorShapes are its errors beyond those common to all services.
	ErrorShapes() map[string]ErrorShape
	// Route finds the operation from method, path, query and headers, before
	// signature and body are looked at. It must not answer or log; an error
	// is answered only to an authenticated caller.
	Route(r *Request) error
	// ServeAWS answers, or returns an error without having answered. An error
	// that holds no *lambdad.Error is logged and answered as an internal one.
	ServeAWS(w http.ResponseWriter, r *Request) error
}

// A PathService is a Service that also serves plain URLs, which carry their own
// proof (such as the download location of a package).
type PathService interface {
	Service
	// Paths returns handlers by path prefix. Prefixes begin with /_lambdad/; the
	// registry of images has /v2.
	Paths() map[string]PathHandler
}

// A PathHandler answers a request for a plain URL, whatever happens. It checks the
// proof itself; where that names an access key, it calls Identify and Perform. The
// request has no protocol or form, its body is that of the http.Request, and its region
// that of requests without a scope. The result is the refusal that was answered, for
// Access; nil for none.
type PathHandler func(w http.ResponseWriter, r *Request) *lambdad.Error

// A path is a handler and whose it is.
type path struct {
	svc     Service
	handler PathHandler
}

// AuthMode says which signatures are accepted.
type AuthMode int

const (
	// Verify accepts requests signed with a known key only.
	Verify AuthMode = iota
	// Any accepts every key and unsigned requests, as tools for local
	// development do. A key of 12 digits is an account, every other key belongs to
	// DefaultAccount. Requests from inside a sandbox are verified all the same.
	Any
)

// ParseAuthMode turns "verify" or "any" into an AuthMode.
func ParseAuthMode(s string) (AuthMode, error) {
	switch s {
	case "verify", "":
		return Verify, nil
	case "any":
		return Any, nil
	}
	return 0, fmt.Errorf("aws: auth mode %q is neither verify nor any", s)
}

// Options are the settings of a Mux; every field has a default.
type Options struct {
	Auth   AuthMode     // default Verify
	Region string       // of requests without a credential scope; default us-east-1
	Logger *slog.Logger // default: discard
	// Version is shown by the health pages.
	Version string
	// Ready returns why the server cannot take requests now, such as starting or
	// draining; default: always ready. Only /_lambdad/ready asks.
	Ready func() error
	// BodyMemory bounds the bytes of all large request bodies held at a time;
	// further requests wait. Requests from inside sandboxes have half of it, and each
	// environment at most maxSandboxBodies. Default 512 MiB.
	BodyMemory int64
	// Access is told of every authenticated request after it was answered, and of
	// every request from inside a sandbox; of those for plain URLs if they did what an
	// operation does or were refused. It must not block. Default: nobody is.
	Access func(Access)
	// Now is the clock for signatures; default time.Now.
	Now func() time.Time
}

// A Mux serves AWS APIs on one endpoint.
type Mux struct {
	opts     Options
	keys     Keys
	services map[string]Service
	paths    map[string]path
	verifier *verifier
	bodies   *semaphore.Weighted // of requests on the host
	inside   *semaphore.Weighted // of those in sandboxes
	log      *slog.Logger
}

// NewMux returns a Mux for the services.
func NewMux(keys Keys, opts Options, services ...Service) *Mux {
	if opts.Region == "" {
		opts.Region = "us-east-1"
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Ready == nil {
		opts.Ready = func() error { return nil }
	}
	if opts.BodyMemory == 0 {
		opts.BodyMemory = 512 << 20
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	m := &Mux{
		opts: opts, keys: keys, log: opts.Logger,
		services: map[string]Service{},
		paths:    map[string]path{},
		verifier: newVerifier(opts.Now),
		bodies:   semaphore.NewWeighted(opts.BodyMemory - opts.BodyMemory/2),
		inside:   semaphore.NewWeighted(opts.BodyMemory / 2),
	}
	for _, s := range services {
		m.services[s.Name()] = s
		if p, ok := s.(PathService); ok {
			for prefix, h := range p.Paths() {
				m.paths[prefix] = path{s, h}
			}
		}
	}
	return m
}

// ServeHTTP implements http.Handler.
func (m *Mux) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.serve(w, r, m.opts.Auth) }

// Sandbox returns the handler for the listener inside an execution environment: it
// verifies signatures whatever the mode, so that code in a sandbox has the rights
// of the keys it was given and no others.
func (m *Mux) Sandbox(environmentID string) http.Handler {
	l := &listener{environmentID, semaphore.NewWeighted(maxSandboxBodies)}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.serve(w, r.WithContext(context.WithValue(r.Context(), listenerKey{}, l)), Verify)
	})
}

// listenerKey is the key of a context for the listener by which a request came from
// inside a sandbox.
type listenerKey struct{}

// A listener is the one inside an environment's sandbox.
type listener struct {
	environment string
	bodies      *semaphore.Weighted
}

// listenerOf is nil for requests on the host.
func listenerOf(r *http.Request) *listener {
	l, _ := r.Context().Value(listenerKey{}).(*listener)
	return l
}

// target is what the routing rules found out about a request.
type target struct {
	service  string
	region   string
	protocol Protocol
	auth     *authorization // nil: unsigned
	authErr  *authError     // the authorization could not be read
}

func (m *Mux) serve(w http.ResponseWriter, hr *http.Request, mode AuthMode) {
	id := uuid.NewString()
	w.Header()["x-amzn-RequestId"] = []string{id}
	if (strings.HasPrefix(hr.URL.Path, "/_") || isRegistry(hr)) && m.servePath(w, hr, id, mode) {
		return
	}

	t := m.route(hr)
	r := &Request{Request: hr, Service: t.service, Protocol: t.protocol, Region: t.region, RequestID: id}
	svc := m.services[t.service]
	if svc == nil {
		m.writeMissing(w, r, t)
		return
	}
	proto := t.protocol
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			m.log.Error("panic while serving a request", "service", r.Service, "operation", r.Operation,
				"request_id", id, "panic", p, "stack", string(debug.Stack()))
			m.writeError(w, r, svc, proto, errInternal)
		}
	}()
	if m.opts.Access != nil {
		defer m.tell(r)
	}
	if err := m.serveService(w, r, svc, t, mode); err != nil {
		m.writeError(w, r, svc, proto, err)
	}
}

// serveService authenticates, reads, authorises and serves, in this order.
func (m *Mux) serveService(w http.ResponseWriter, r *Request, svc Service, t target, mode AuthMode) error {
	if !validRegion(t.region) {
		return &authError{kind: malformed, message: "Credential should be scoped to a valid region."}
	}
	routeErr := svc.Route(r)

	// What can be said without the body is said before reading it.
	secret, err := m.authenticate(r, t, mode)
	if err != nil {
		return err
	}
	if s, ok := svc.(Streamer); ok && routeErr == nil && s.Streams(r) {
		done, err := m.stream(w, r, t.auth, secret, mode)
		if err != nil {
			return err
		}
		defer done()
		if err := m.authorise(svc, r, mode); err != nil {
			return err
		}
		return svc.ServeAWS(w, r)
	}
	sum, release, err := m.readBody(w, r)
	if err != nil {
		return err
	}
	defer release()
	if mode == Verify {
		if err := m.verifier.verify(r.Request, t.auth, secret, sum); err != nil {
			return err
		}
	}
	if routeErr != nil {
		return routeErr
	}
	if err := decompress(r); err != nil {
		return err
	}
	if r.Protocol == Query {
		if err := parseForm(r); err != nil {
			return err
		}
	}
	if err := m.authorise(svc, r, mode); err != nil {
		return err
	}
	return svc.ServeAWS(w, r)
}

// authenticate sets r.Identity and returns the secret that the signature must
// have been made with.
func (m *Mux) authenticate(r *Request, t target, mode AuthMode) (secret string, err error) {
	if mode == Any && fromWebPage(r.Request) {
		return "", errWebPage
	}
	if t.authErr != nil && mode == Verify {
		return "", t.authErr
	}
	if t.auth == nil {
		if mode == Verify {
			return "", &authError{kind: missingToken}
		}
		r.Identity = anyIdentity("")
		return "", nil
	}
	r.SessionToken = t.auth.token
	a := authority{keys: m.keys, any: mode == Any}
	secret, id, err := a.lookup(r.Context(), t.auth.accessKeyID, t.auth.token)
	switch {
	case errors.Is(err, ErrExpiredKey):
		return "", &authError{kind: expiredToken}
	case err != nil:
		return "", &authError{kind: unknownKey}
	}
	r.Identity = id
	if mode == Any {
		return "", nil
	}
	return secret, m.verifier.checkTime(t.auth)
}

// errWebPage is the refusal of web pages.
var errWebPage = lambdad.Errorf("AccessDeniedException", "Requests from web pages are refused while every key is accepted (--auth any).")

// fromWebPage reports whether a browser made the request on behalf of a page that
// is not this server's own. Where no signature is asked for, any page that
// a developer looks at could otherwise create and run functions.
func fromWebPage(r *http.Request) bool {
	if r.Header.Get("Origin") == "" && r.Header.Get("Sec-Fetch-Site") == "" {
		return false
	}
	if http.NewCrossOriginProtection().Check(r) != nil {
		return true
	}
	// A page's own name may have been made to mean this machine.
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return host != "localhost" && net.ParseIP(strings.Trim(host, "[]")) == nil
}

// anyIdentity is the identity of a key that is not checked.
func anyIdentity(accessKeyID string) Identity {
	account := DefaultAccount
	if len(accessKeyID) == 12 && strings.Trim(accessKeyID, "0123456789") == "" {
		account = accessKeyID
	}
	return adminIdentity(account, accessKeyID)
}

func adminIdentity(account, accessKeyID string) Identity {
	return Identity{
		Account: account, AccessKeyID: accessKeyID, Admin: true,
		ARN: "arn:aws:iam::" + account + ":root", UserID: account,
	}
}

// route chooses the service: the first rule of control-plane.md section 1.2 that
// answers.
func (m *Mux) route(r *http.Request) target {
	t := target{region: m.opts.Region}
	if isFunctionURL(r.Host) {
		t.service = functionURLs
		return t
	}
	t.auth, t.authErr = parseRequestAuth(r)
	if t.auth != nil {
		t.service, t.region = t.auth.service, t.auth.region
	} else {
		t.service = serviceOfUnsigned(r)
	}
	t.protocol = protocolOf(t.service, r)
	return t
}

// isRegistry reports whether a client of an image registry asks, which signs
// nothing: with a signature /v2 is a bucket.
func isRegistry(r *http.Request) bool {
	return (r.URL.Path == "/v2" || strings.HasPrefix(r.URL.Path, "/v2/")) &&
		!strings.HasPrefix(r.Header.Get("Authorization"), "AWS") && !r.URL.Query().Has("X-Amz-Signature") && !r.URL.Query().Has("AWSAccessKeyId")
}

// functionURLs is the name of the data plane of function URLs in a target.
const functionURLs = "lambda-url"

// isFunctionURL reports whether host is <id>.lambda-url.<region>.<suffix>.
func isFunctionURL(host string) bool {
	_, rest, ok := strings.Cut(host, ".")
	return ok && strings.HasPrefix(rest, "lambda-url.")
}

func validRegion(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// errInternal is the answer to whatever went wrong on this side.
var errInternal = errors.New("aws: internal error")

// writeMissing answers for a service that is not here.
func (m *Mux) writeMissing(w http.ResponseWriter, r *Request, t target) {
	if t.service == functionURLs {
		// As AWS answers for an id that it does not know.
		writeErrorBody(w, RESTJSON, r, &lambdad.Error{Code: "AccessDeniedException"}, commonErrors["AccessDeniedException"])
		return
	}
	drain(w, r.Request)
	name := endpointVariable(t.service)
	e := lambdad.Errorf("NotImplemented",
		"lambdad does not offer the service %q. Point this client elsewhere for it: set %s to the endpoint that has it.",
		t.service, name)
	m.log.Debug("request for a service that is not here", "service", t.service, "request_id", r.RequestID, "set", name)
	writeErrorBody(w, t.protocol, r, e, commonErrors["NotImplemented"])
}

// writeError turns an error of a service into its wire form, and logs what is
// this side's fault.
func (m *Mux) writeError(w http.ResponseWriter, r *Request, svc Service, proto Protocol, err error) {
	var auth *authError
	var e *lambdad.Error
	switch {
	case errors.As(err, &auth):
		m.log.Debug("request not authenticated", "service", r.Service, "request_id", r.RequestID, "err", err)
		e = auth.wire(proto, r.Service)
	case errors.As(err, &e):
	case errors.Is(err, context.Canceled) && r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // nobody listens
	default:
		m.log.Error("request failed", "service", r.Service, "operation", r.Operation, "request_id", r.RequestID, "err", err)
		e = &lambdad.Error{Code: "ServiceException", Message: "Internal error; the log of lambdad says more under request id " + r.RequestID + "."}
	}
	e = inWordsOf(proto, e)
	r.failed = e
	shape, ok := svc.ErrorShapes()[e.Code]
	if !ok {
		shape, ok = commonErrors[e.Code]
	}
	if !ok {
		shape = ErrorShape{Status: http.StatusBadRequest, Key: "message"}
	}
	if shape.Status >= 500 && shape.Status != http.StatusNotImplemented && e.Err != nil {
		m.log.Error("request failed", "service", r.Service, "operation", r.Operation, "request_id", r.RequestID, "err", err)
	}
	writeErrorBody(w, proto, r, e, shape)
}
