// Package lambdad holds the nouns of the system: what a function version is,
// what one invocation of it is and what comes back. Every other package speaks
// in these terms; this one imports only the standard library.
package lambdad

import (
	"strings"
	"time"
)

// A Version is an immutable snapshot that fully determines what an execution
// environment runs. $LATEST is the one mutable version: changing it makes a new
// snapshot with another Generation.
type Version struct {
	Account  string // 12 digits
	Region   string // from the credential scope of the request that made it
	Function string // plain name
	Number   string // "$LATEST" or decimal digits
	// Generation names this snapshot: it changes whenever code or configuration
	// changes, and environments of another generation take no new invocation.
	Generation string

	Runtime      string // AWS identifier, such as provided.al2023
	Handler      string
	Role         string        // ARN
	Architecture string        // x86_64 or arm64
	MemoryMB     int           // 128..10240
	Timeout      time.Duration // 1 s..900 s
	EphemeralMB  int           // size of /tmp, 512..10240
	Env          map[string]string

	Code   Archive   // unpacked at /var/task
	Layers []Archive // merged at /opt, a later one over an earlier one
	// Image is the root file system and the program of a function that is a
	// container image: then Runtime, Code and Layers are empty. Nil: a zip.
	Image *Image

	Logging Logging
	Tracing string // PassThrough or Active
}

// A Target is what a function name and a qualifier mean at one moment: a version,
// or the two between which a weighted alias divides its invocations.
type Target struct {
	Version *Version
	// Additional gets the share Weight of the invocations; nil without a routing
	// configuration.
	Additional *Version
	Weight     float64 // 0..1
}

// Concurrency is what a function was given of its account's. The zero value is
// nothing of its own.
type Concurrency struct {
	// Reserved is for the versions of this function alone, and all they get; nil:
	// they share what the account has left.
	Reserved *int
	// Provisioned is initialised ahead, each version once.
	Provisioned []Provision
}

// A Provision is a number of environments of a version that are initialised ahead.
type Provision struct {
	Version *Version
	Count   int
	// Qualifier is what it was asked for: the version or an alias of it.
	Qualifier string
}

// Provisioned says how far the provisioned environments of a version are.
type Provisioned struct {
	Requested int
	// Available are initialised, whether in use or not.
	Available int
	InUse     int
	// Failure is why the last start failed, or why none can be made, as AWS's
	// StatusReason; "" if what is missing is under way.
	Failure string
}

// An Archive is a code or layer package in the blob store.
type Archive struct {
	ARN      string // layer version ARN; empty for function code
	Digest   string // hex SHA-256 of the zip as uploaded: its key in the blob store
	Size     int64  // bytes, zipped
	Unzipped int64  // bytes, counted while inflating
}

// An Image is a container image as environments run it (control-plane.md section
// 5.3), with what a function overrides of its configuration.
type Image struct {
	Digest     string       // hex SHA-256 of its manifest
	Layers     []ImageLayer // the lowest first
	Env        []string     // KEY=value
	Entrypoint []string
	Command    []string
	WorkingDir string // "": /
}

// An ImageLayer is one tree of an image.
type ImageLayer struct {
	Digest string // hex SHA-256 of the layer as stored
	DiffID string // hex SHA-256 of its tar
	Size   int64  // bytes, as stored
}

// Logging is a function's LoggingConfig. Levels are empty with Text format.
type Logging struct {
	Format           string // Text or JSON
	ApplicationLevel string
	SystemLevel      string
	Group            string // defaults to /aws/lambda/<function>
}

// ARN returns the function ARN without qualifier.
func (v *Version) ARN() string { return FunctionARN(v.Account, v.Region, v.Function, "") }

// FunctionARN builds a function ARN; an empty qualifier is left out.
func FunctionARN(account, region, function, qualifier string) string {
	s := "arn:aws:lambda:" + region + ":" + account + ":function:" + function
	if qualifier != "" {
		s += ":" + qualifier
	}
	return s
}

// LayerARN builds a layer ARN; an empty version is left out.
func LayerARN(account, region, layer, version string) string {
	s := "arn:aws:lambda:" + region + ":" + account + ":layer:" + layer
	if version != "" {
		s += ":" + version
	}
	return s
}

// LogGroup returns the name of the log group.
func (v *Version) LogGroup() string {
	if v.Logging.Group != "" {
		return v.Logging.Group
	}
	return "/aws/lambda/" + v.Function
}

// LogStream returns the name of a log stream begun at t by an environment
// (neighbours.md section 3): YYYY/MM/DD/[version]<32 hex>, and in a log group that is
// not the function's own YYYY/MM/DD/<function>[version]<32 hex>.
func (v *Version) LogStream(t time.Time, instance string) string {
	name := "[" + v.Number + "]" + instance
	if v.LogGroup() != "/aws/lambda/"+v.Function {
		name = v.Function + name
	}
	return t.UTC().Format("2006/01/02/") + name
}

// An Invocation is one event for one version, made once at the front end and
// answered at most once.
type Invocation struct {
	// What was asked for. The front end resolves it to Version.
	Account, Region, Function, Qualifier string

	RequestID string // UUID, as in x-amzn-RequestId
	// Version is set by the front end.
	Version *Version
	// InvokedARN has a qualifier only if the caller gave one.
	InvokedARN string
	Payload    []byte // JSON as received; never modified
	// ContentType is what the runtime is told: application/json unless said. The
	// Content-Type of an Invoke request is not it: SDKs send octet-stream for JSON.
	ContentType string

	ClientContext   string // JSON, already decoded from base64; "" when absent
	CognitoIdentity string // JSON; "" when absent
	TraceID         string // X-Amzn-Trace-Id of the request or a made one
	Tail            bool   // the caller wants the last 4 KB of log
}

// A Response is the answer to an invocation: what the runtime posted, or what
// the platform says in its place.
type Response struct {
	Payload []byte
	// FunctionError is "" on success and "Unhandled" otherwise
	// (header X-Amz-Function-Error).
	FunctionError string
	// ExecutedVersion is $LATEST or a number.
	ExecutedVersion string
	// LogTail holds the last 4 KB of log when the invocation asked for it.
	LogTail []byte
}

// Credentials are what a process in an environment signs its requests with.
type Credentials struct {
	AccessKeyID, SecretAccessKey, SessionToken string
	Expires                                    time.Time // zero: never
}

// Limits that AWS fixes (control-plane.md section 5.1, lifecycle.md section 9).
// They are constants, not settings.
const (
	MaxRequestPayload  = 6291456   // bytes of a synchronous event
	MaxEventPayload    = 1048576   // bytes of an asynchronous event
	MaxResponsePayload = 6291556   // bytes of a buffered answer
	MaxZip             = 52428800  // bytes of an archive sent inline
	MaxUnzipped        = 262144000 // bytes of code and layers together
	MaxRequestBody     = 70167211  // bytes of a control-plane request
	MaxImage           = 10 << 30  // bytes of an image, unpacked
	MaxLayers          = 5
	MaxExtensions      = 10
	MaxEnvironment     = 4096 // bytes of the variables as compact JSON
	InitLimit          = 10 * time.Second
	MaxLogTail         = 4096 // bytes
	// CPUPerMB is the processor share of a megabyte of memory: 1,769 MB are
	// one core.
	CPUPerMB = 1.0 / 1769
)

// RuntimeFamily returns the language of a runtime identifier: "python" for
// python3.12, "provided" for provided.al2023.
func RuntimeFamily(runtime string) string {
	if i := strings.IndexAny(runtime, "0123456789."); i > 0 {
		return runtime[:i]
	}
	return runtime
}
