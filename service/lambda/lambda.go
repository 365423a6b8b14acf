// Package lambda is the API of AWS Lambda: its operations on functions and layers,
// and the way from an Invoke request to the front end and back.
//
// Types, routes, validation and error shapes are generated from the API model
// (shapes_gen.go). Functions and layer versions are records in the store and
// archives in the blob store; a Registry holds the records in memory, where every
// read is answered from.
//
// A create or update is acknowledged when the archive is durable and then the
// record that names it. Taking it up (unpacking) goes on in the background:
// the function is Pending, or its update InProgress, until then, and what ran
// before goes on running. What a crash interrupts is finished at the next start.
//
// Settings that lambdad does not put into effect are refused by name rather than
// stored, unless AWS, too, may leave them without effect.
package lambda

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/blob"
)

// A Frontend takes invocations: *frontend.Frontend.
type Frontend interface {
	Invoke(ctx context.Context, inv *lambdad.Invocation) (*lambdad.Response, error)
	DryRun(ctx context.Context, inv *lambdad.Invocation) error
	Event(ctx context.Context, inv *lambdad.Invocation) error
}

// Archives are the unpacked packages: *archive.Cache.
type Archives interface {
	Open(ctx context.Context, digest string) (path string, release func(), err error)
	Trim(ctx context.Context, keep func(digest string) bool) error
}

// Config is what a Service needs.
type Config struct {
	Registry *Registry
	Frontend Frontend
	// Placer gets to know what is reserved and provisioned. Default: nobody does.
	Placer Placer
	Blobs  blob.Store
	// Archives unpacks code before a function becomes Active. Default: nothing
	// is unpacked ahead.
	Archives Archives
	// Objects is where code in S3 is read from. Default: code from S3 is refused.
	Objects Objects
	// Scratch is a directory for packages from S3 while they are checked. Default:
	// that for temporary files.
	Scratch string
	// Images gives container images. Default: functions of PackageType Image are
	// refused.
	Images Images
	// PullLayer imports a layer version that a function names and that is not here.
	// Default: such functions are refused.
	PullLayer func(ctx context.Context, arn string) (*ImportedLayer, error)
	// RuntimeNames are the runtime identifiers that this host can run.
	RuntimeNames []string
	// ResolveRuntime returns the version of a runtime that AWS knows or
	// RuntimeNames has, for its version ARN: 64 hex digits, or any text that
	// changes with the interpreter. Its error, a *lambdad.Error, says why this host
	// cannot run it. Default: all of RuntimeNames.
	ResolveRuntime func(ctx context.Context, name string) (version string, err error)
	// Architectures this host can run, the default of new functions first.
	// Default: the host's own.
	Architectures []string
	// Reserve returns why no new archive can be stored now, or nil. Default: nil.
	Reserve func() error
	// Roles finds the roles that functions name: they must exist and trust
	// lambda.amazonaws.com. Default: roles are not looked at.
	Roles aws.Directory
	// Concurrency is the account's concurrency limit. Default 1000.
	Concurrency int64
	Logger      *slog.Logger     // default: discard
	Now         func() time.Time // default time.Now
}

// A Service is the Lambda API; it implements aws.Service. Run must be running
// for functions to become Active.
type Service struct {
	Config
	router   *aws.Router
	handlers map[string]handler
	linkKey  []byte // signs download locations

	policiesMu sync.Mutex // guards policies
	policies   map[string]parsedPolicy

	mu    sync.Mutex // guards queue
	queue []functionRef
	wake  chan struct{} // capacity 1: the queue may have grown
}

// New returns the service. What was interrupted by a crash is taken up by Run.
func New(cfg Config) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if len(cfg.Architectures) == 0 {
		cfg.Architectures = []string{"x86_64"}
		if runtime.GOARCH == "arm64" {
			cfg.Architectures = []string{"arm64"}
		}
	}
	if cfg.Reserve == nil {
		cfg.Reserve = func() error { return nil }
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = 1000
	}
	if cfg.ResolveRuntime == nil {
		names := cfg.RuntimeNames
		cfg.ResolveRuntime = func(_ context.Context, name string) (string, error) {
			if slices.Contains(names, name) {
				return name, nil
			}
			return "", lambdad.Errorf("InvalidParameterValueException", "The runtime %s is not available on this host.", name)
		}
	}
	s := &Service{
		Config: cfg, router: aws.NewRouter(routes), handlers: handlers(),
		linkKey: make([]byte, 32), wake: make(chan struct{}, 1),
		policies: map[string]parsedPolicy{},
	}
	rand.Read(s.linkKey)
	for _, ref := range cfg.Registry.unsettled() {
		s.enqueue(ref)
	}
	return s
}

// Name implements aws.Service.
func (s *Service) Name() string { return "lambda" }

// ErrorShapes implements aws.Service.
func (s *Service) ErrorShapes() map[string]aws.ErrorShape { return errorShapes }

// Paths implements aws.PathService: download locations of packages.
func (s *Service) Paths() map[string]aws.PathHandler {
	return map[string]aws.PathHandler{archivePath: func(w http.ResponseWriter, r *aws.Request) *lambdad.Error {
		s.serveArchive(w, r.Request)
		return nil
	}}
}

// Operations lists the operations of the model: those that are served, and those
// that are answered NotImplemented.
func Operations() (served, missing []string) {
	h := handlers()
	for _, r := range routes {
		if h[r.Operation] != nil {
			served = append(served, r.Operation)
		} else {
			missing = append(missing, r.Operation)
		}
	}
	return served, missing
}

// Limits of request bodies (control-plane.md section 5.1).
var bodyLimits = map[string]int64{
	"CreateFunction":      lambdad.MaxRequestBody,
	"UpdateFunctionCode":  lambdad.MaxRequestBody,
	"PublishLayerVersion": lambdad.MaxRequestBody,
}

// actions are the operations whose name in policies is another.
var actions = map[string]string{
	"GetLayerVersionByArn":     "lambda:GetLayerVersion",
	"Invoke":                   "lambda:InvokeFunction",
	"InvokeAsync":              "lambda:InvokeFunction",
	"InvokeWithResponseStream": "lambda:InvokeFunction",
}

// IsLambda reports whether a request with this target is for this API, whose paths
// begin with the date of a version. A bucket of S3 may be called so, too.
func IsLambda(_, target []byte) bool {
	const form = "/2000-00-00/"
	if len(target) < len(form) {
		return false
	}
	for i, c := range target[:len(form)] {
		if f := form[i]; c != f && (f != '0' || c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// Route implements aws.Service.
func (s *Service) Route(r *aws.Request) error {
	m, err := s.router.Match(r.Request)
	if err != nil {
		r.Operation = "UnknownOperation"
		return err
	}
	r.Route = m
	r.Operation = m.Route().Operation
	r.BodyLimit = bodyLimits[r.Operation]
	if r.Action = actions[r.Operation]; r.Action == "" {
		r.Action = "lambda:" + r.Operation
	}
	return nil
}

// ServeAWS implements aws.Service.
func (s *Service) ServeAWS(w http.ResponseWriter, r *aws.Request) error {
	m := r.Route.(*aws.Match)
	h := s.handlers[r.Operation]
	if h == nil {
		return lambdad.Errorf("NotImplemented", "lambdad does not offer the operation %s yet.", r.Operation)
	}
	return h(s, &call{Request: r, match: m, header: w.Header()}, w)
}

// A call is one request for an operation.
type call struct {
	*aws.Request
	match  *aws.Match
	header http.Header // of the answer
}

// A handler serves an operation.
type handler func(*Service, *call, http.ResponseWriter) error

// An input is a generated request type.
type input[T any] interface {
	*T
	bind(*aws.Binding)
	validate(*aws.Validator)
}

// operation makes a handler: the request is decoded and validated, f does the
// work, and its result is answered. A nil result is an empty body.
func operation[T any, P input[T]](f func(*Service, *call, P) (any, error)) handler {
	return func(s *Service, c *call, w http.ResponseWriter) error {
		if c.Oversize {
			return tooLarge(c)
		}
		in := P(new(T))
		if c.Method != http.MethodGet && c.Method != http.MethodDelete {
			if err := aws.DecodeJSON(c.Body, in); err != nil {
				return err
			}
		}
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
		out, err := f(s, c, in)
		if err != nil {
			return err
		}
		if out == nil {
			w.WriteHeader(c.match.Route().Status)
			return nil
		}
		return aws.WriteJSON(w, c.match.Route().Status, out)
	}
}

// tooLarge is the answer to a body over the limit of its operation.
func tooLarge(c *call) error {
	limit, name := c.BodyLimit, c.Operation
	if limit == 0 {
		limit = aws.DefaultBodyLimit
	}
	if name == "Invoke" {
		name = "InvokeFunction" // as policies call it
	}
	return lambdad.Errorf("RequestEntityTooLargeException", "Request must be smaller than %d bytes for the %s operation", limit, name)
}

func handlers() map[string]handler {
	return map[string]handler{
		"AddLayerVersionPermission":          operation((*Service).addLayerVersionPermission),
		"AddPermission":                      operation((*Service).addPermission),
		"CreateAlias":                        operation((*Service).createAlias),
		"CreateCodeSigningConfig":            operation((*Service).createCodeSigningConfig),
		"CreateFunction":                     operation((*Service).createFunction),
		"DeleteAlias":                        operation((*Service).deleteAlias),
		"DeleteCodeSigningConfig":            operation((*Service).deleteCodeSigningConfig),
		"DeleteFunction":                     operation((*Service).deleteFunction),
		"DeleteFunctionCodeSigningConfig":    operation((*Service).deleteFunctionCodeSigningConfig),
		"DeleteFunctionConcurrency":          operation((*Service).deleteFunctionConcurrency),
		"DeleteLayerVersion":                 operation((*Service).deleteLayerVersion),
		"DeleteProvisionedConcurrencyConfig": operation((*Service).deleteProvisionedConcurrencyConfig),
		"GetAccountSettings":                 operation((*Service).getAccountSettings),
		"GetAlias":                           operation((*Service).getAlias),
		"GetCodeSigningConfig":               operation((*Service).getCodeSigningConfig),
		"GetFunction":                        operation((*Service).getFunction),
		"GetFunctionCodeSigningConfig":       operation((*Service).getFunctionCodeSigningConfig),
		"GetFunctionConcurrency":             operation((*Service).getFunctionConcurrency),
		"GetFunctionConfiguration":           operation((*Service).getFunctionConfiguration),
		"GetFunctionRecursionConfig":         operation((*Service).getFunctionRecursionConfig),
		"GetLayerVersion":                    operation((*Service).getLayerVersion),
		"GetLayerVersionByArn":               operation((*Service).getLayerVersionByArn),
		"GetLayerVersionPolicy":              operation((*Service).getLayerVersionPolicy),
		"GetPolicy":                          operation((*Service).getPolicy),
		"GetProvisionedConcurrencyConfig":    operation((*Service).getProvisionedConcurrencyConfig),
		"GetRuntimeManagementConfig":         operation((*Service).getRuntimeManagementConfig),
		"Invoke":                             (*Service).invoke,
		"InvokeAsync":                        (*Service).invokeAsync,
		"ListAliases":                        operation((*Service).listAliases),
		"ListCodeSigningConfigs":             operation((*Service).listCodeSigningConfigs),
		"ListFunctions":                      operation((*Service).listFunctions),
		"ListFunctionsByCodeSigningConfig":   operation((*Service).listFunctionsByCodeSigningConfig),
		"ListLayerVersions":                  operation((*Service).listLayerVersions),
		"ListLayers":                         operation((*Service).listLayers),
		"ListProvisionedConcurrencyConfigs":  operation((*Service).listProvisionedConcurrencyConfigs),
		"ListTags":                           operation((*Service).listTags),
		"ListVersionsByFunction":             operation((*Service).listVersionsByFunction),
		"PublishLayerVersion":                operation((*Service).publishLayerVersion),
		"PublishVersion":                     operation((*Service).publishVersion),
		"PutFunctionCodeSigningConfig":       operation((*Service).putFunctionCodeSigningConfig),
		"PutFunctionConcurrency":             operation((*Service).putFunctionConcurrency),
		"PutFunctionRecursionConfig":         operation((*Service).putFunctionRecursionConfig),
		"PutProvisionedConcurrencyConfig":    operation((*Service).putProvisionedConcurrencyConfig),
		"PutRuntimeManagementConfig":         operation((*Service).putRuntimeManagementConfig),
		"RemoveLayerVersionPermission":       operation((*Service).removeLayerVersionPermission),
		"RemovePermission":                   operation((*Service).removePermission),
		"TagResource":                        operation((*Service).tagResource),
		"UntagResource":                      operation((*Service).untagResource),
		"UpdateAlias":                        operation((*Service).updateAlias),
		"UpdateCodeSigningConfig":            operation((*Service).updateCodeSigningConfig),
		"UpdateFunctionCode":                 operation((*Service).updateFunctionCode),
		"UpdateFunctionConfiguration":        operation((*Service).updateFunctionConfiguration),
	}
}

const (
	// settlers is how many functions are taken up at a time.
	settlers = 2
	// settleAgain is how long to wait when a function's state cannot be written.
	settleAgain = 5 * time.Second
)

// Collection of archives that nothing refers to.
const (
	collectEvery = time.Minute
	collectGrace = 2 * time.Minute
)

// Run takes up accepted changes and collects archives until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	if s.Placer != nil {
		s.Registry.follow(s.Placer.Configure)
	}
	var wg sync.WaitGroup
	for range settlers {
		wg.Go(func() {
			for {
				ref, ok := s.dequeue(ctx)
				if !ok {
					return
				}
				s.settle(ctx, ref)
			}
		})
	}
	if err := s.Registry.sweep(ctx); err != nil && ctx.Err() == nil {
		s.Logger.Error("remains of deleted functions could not be removed", "err", err)
	}
	// Nothing is in flight at the start, so there is no grace.
	s.collect(ctx, 0)
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
			s.collect(ctx, collectGrace)
		case <-ctx.Done():
		}
	}
	wg.Wait()
	return nil
}

func (s *Service) enqueue(ref functionRef) {
	s.mu.Lock()
	s.queue = append(s.queue, ref.unqualified())
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Service) dequeue(ctx context.Context) (functionRef, bool) {
	for {
		s.mu.Lock()
		if len(s.queue) > 0 {
			ref := s.queue[0]
			s.queue = s.queue[1:]
			more := len(s.queue) > 0
			s.mu.Unlock()
			if more { // another one may sleep
				select {
				case s.wake <- struct{}{}:
				default:
				}
			}
			return ref, true
		}
		s.mu.Unlock()
		select {
		case <-s.wake:
		case <-ctx.Done():
			return functionRef{}, false
		}
	}
}

// errSuperseded: what was to be settled is not what the record holds now.
var errSuperseded = errors.New("lambda: superseded")

// settle brings the last accepted change of a function into force, or back, and
// makes ready what was published of it.
func (s *Service) settle(ctx context.Context, ref functionRef) {
	fam := s.Registry.family(ref)
	for _, v := range fam.pending() {
		ref := ref
		ref.qualifier = strconv.FormatInt(v.number, 10)
		s.settleOne(ctx, ref, &v.rec.Config, func(ctx context.Context, cause error) error {
			_, err := s.Registry.updateVersion(ctx, ref, func(rec *versionRecord) error {
				if rec.Config.Generation != v.rec.Config.Generation || rec.State != statePending {
					return errSuperseded
				}
				rec.settled(cause)
				return nil
			})
			return err
		})
	}
	f := fam.latest
	if f == nil || !f.rec.inProgress() {
		return
	}
	generation := f.rec.Config.Generation
	s.settleOne(ctx, ref, &f.rec.Config, func(ctx context.Context, cause error) error {
		_, err := s.Registry.update(ctx, ref, func(rec *functionRecord) error {
			if rec.Config.Generation != generation || !rec.inProgress() {
				return errSuperseded
			}
			if rec.settled(cause); rec.Live != nil && cause != nil {
				rec.Config = *rec.Live // what ran goes on running
			}
			rec.Live = nil
			rec.RevisionID = newID()
			return nil
		})
		return err
	})
}

// settleOne unpacks a configuration and writes what came of it.
func (s *Service) settleOne(ctx context.Context, ref functionRef, c *configRecord, write func(context.Context, error) error) {
	cause := s.unpack(ctx, c)
	if ctx.Err() != nil {
		return // the next start goes on
	}
	err := write(ctx, cause)
	log := s.Logger.With("function", ref.arn(), "generation", c.Generation)
	switch {
	case cause != nil:
		log.Error("function could not be made ready", "err", cause)
	case err == nil:
		log.Debug("function is ready")
	}
	if err == nil || errors.Is(err, errSuperseded) || lambdad.ErrorCode(err) == "ResourceNotFoundException" || ctx.Err() != nil {
		return
	}
	log.Error("state of a function could not be written; trying again", "err", err)
	select {
	case <-time.After(settleAgain):
		s.enqueue(ref)
	case <-ctx.Done():
	}
}

// settled is the status after a change was taken up, or could not be.
func (r *statusRecord) settled(cause error) {
	wasUpdate := r.State == stateActive
	r.StateReason, r.StateReasonCode, r.UpdateReason, r.UpdateReasonCode = "", "", "", ""
	if cause == nil {
		r.State, r.Update = stateActive, updateSuccessful
		return
	}
	code, reason := "InternalError", "The package could not be unpacked: "+cause.Error()
	var e *lambdad.Error
	if errors.As(cause, &e) {
		code, reason = "InvalidZipFileException", e.Message
		if slices.Contains(imageReasons, e.Code) {
			code = e.Code
		}
	}
	r.Update, r.UpdateReason, r.UpdateReasonCode = updateFailed, reason, code
	if !wasUpdate {
		r.State, r.StateReason, r.StateReasonCode = stateFailed, reason, code
	}
}

// unpack makes sure that code and layers can be mounted.
func (s *Service) unpack(ctx context.Context, c *configRecord) error {
	if c.Image != nil {
		return s.prepareImage(ctx, c.Image)
	}
	if s.Archives == nil {
		return nil
	}
	for _, a := range append([]archiveRecord{c.Code}, c.Layers...) {
		_, release, err := s.Archives.Open(ctx, a.Digest)
		if err != nil {
			return err
		}
		release()
	}
	return nil
}

// collect removes archives that nothing has referred to for the grace period.
func (s *Service) collect(ctx context.Context, grace time.Duration) {
	var digests []string
	err := s.Blobs.List(ctx, func(digest string, _ int64) bool {
		digests = append(digests, digest)
		return true
	})
	for _, d := range digests {
		err = errors.Join(err, s.Registry.collect(d, grace, func() error {
			s.Logger.Debug("archive collected", "digest", d)
			return s.Blobs.Delete(ctx, d)
		}))
	}
	if s.Archives != nil {
		err = errors.Join(err, s.Archives.Trim(ctx, s.Registry.kept))
	}
	if err != nil && ctx.Err() == nil {
		s.Logger.Error("archives could not be collected", "err", fmt.Errorf("lambda: %w", err))
	}
}
