package lambda

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
)

// States and update states (control-plane.md section 3.2).
const (
	statePending = "Pending"
	stateActive  = "Active"
	stateFailed  = "Failed"

	updateInProgress = "InProgress"
	updateSuccessful = "Successful"
	updateFailed     = "Failed"

	reasonCreating     = "The function is being created."
	reasonCodeCreating = "Creating"
)

// latest is the qualifier of the one mutable version.
const latest = "$LATEST"

// A functionRecord is a function as stored, under
// <account>.<region>.function.<name>. Records in memory are never modified:
// changes are made to copies, and maps and slices are replaced as a whole.
type functionRecord struct {
	// ID tells this function from others that had its name before. Versions and
	// aliases carry it: those of another ID are remains, and not there.
	ID string `json:"id,omitempty"`
	// Last is the number of the last version published. Version records with a
	// higher number are of a publishing that did not come to its end, and not there.
	Last int64 `json:"last,omitempty"`

	// Config is what was accepted last.
	Config configRecord `json:"config"`
	// Live is what runs while Config is being taken up, or null.
	Live *configRecord `json:"live,omitempty"`

	statusRecord
	Tags              map[string]string `json:"tags,omitzero"`
	Policy            policyRecord      `json:"policy,omitzero"`
	RuntimeManagement runtimeRecord     `json:"runtimeManagement,omitzero"`
	RecursiveLoop     string            `json:"recursiveLoop,omitempty"` // Allow, or Terminate
	CodeSigning       string            `json:"codeSigning,omitempty"`   // ARN
	// Reserved is the function's reserved concurrency, or null.
	Reserved *int64 `json:"reserved,omitempty"`
}

// A statusRecord is how far a function or version is.
type statusRecord struct {
	State            string `json:"state"`
	StateReason      string `json:"stateReason,omitempty"`
	StateReasonCode  string `json:"stateReasonCode,omitempty"`
	Update           string `json:"update,omitempty"`
	UpdateReason     string `json:"updateReason,omitempty"`
	UpdateReasonCode string `json:"updateReasonCode,omitempty"`

	RevisionID   string    `json:"revisionId"`
	LastModified time.Time `json:"lastModified"`
}

// A versionRecord is a published version as stored, under
// <account>.<region>.function.<name>.version.<n>. What runs never changes.
type versionRecord struct {
	Owner string `json:"owner,omitempty"` // ID of its function
	// Config is what $LATEST was, with a generation of its own.
	Config configRecord `json:"config"`
	// Description is that of the version if it was given one of its own.
	Description *string `json:"description,omitempty"`

	statusRecord
	Policy            policyRecord       `json:"policy,omitzero"`
	RuntimeManagement runtimeRecord      `json:"runtimeManagement,omitzero"`
	Provisioned       *provisionedRecord `json:"provisioned,omitempty"`
}

// An aliasRecord is an alias as stored, under
// <account>.<region>.function.<name>.alias.<alias>.
type aliasRecord struct {
	Owner       string `json:"owner,omitempty"` // ID of its function
	Version     string `json:"version"`         // $LATEST or a number
	Description string `json:"description,omitempty"`
	// Additional is the version that takes Weight of the invocations, or "".
	Additional string       `json:"additional,omitempty"`
	Weight     float64      `json:"weight,omitempty"`
	RevisionID string       `json:"revisionId"`
	Policy     policyRecord `json:"policy,omitzero"`
	// Provisioned moves with the alias.
	Provisioned *provisionedRecord `json:"provisioned,omitempty"`
}

// A policyRecord is a resource policy: its statements in the order in which they
// were added, each as JSON.
type policyRecord []json.RawMessage

// A configRecord is code and configuration of $LATEST.
type configRecord struct {
	Generation string `json:"generation"` // of lambdad.Version

	Runtime        string `json:"runtime"`
	RuntimeVersion string `json:"runtimeVersion"` // ARN
	Handler        string `json:"handler"`
	Role           string `json:"role"`
	Description    string `json:"description,omitempty"`
	Timeout        int64  `json:"timeout"`   // s
	MemorySize     int64  `json:"memory"`    // MB
	Ephemeral      int64  `json:"ephemeral"` // MB
	Architecture   string `json:"architecture"`
	Tracing        string `json:"tracing"`
	// Environment is null if it never was set, which answers tell from empty.
	Environment map[string]string `json:"environment,omitzero"`
	Code        archiveRecord     `json:"code"`
	Layers      []archiveRecord   `json:"layers,omitzero"`
	Image       *imageRecord      `json:"image,omitempty"` // then Runtime, Code and Layers are empty
	Logging     lambdad.Logging   `json:"logging"`
}

// An archiveRecord is a lambdad.Archive as stored.
type archiveRecord struct {
	ARN      string `json:"arn,omitempty"`
	Digest   string `json:"digest"`
	Size     int64  `json:"size"`
	Unzipped int64  `json:"unzipped"`
}

// A layerCounter is a layer as stored, under <account>.<region>.layer.<name>. It
// outlives the versions, so that no number is given twice.
type layerCounter struct {
	Last int64 `json:"last"`
}

// A layerRecord is a layer version as stored, under
// <account>.<region>.layer.<name>.<n>.
type layerRecord struct {
	Archive       archiveRecord `json:"archive"`
	Created       time.Time     `json:"created"`
	Description   string        `json:"description,omitempty"`
	License       string        `json:"license,omitempty"`
	Runtimes      []string      `json:"runtimes,omitzero"`
	Architectures []string      `json:"architectures,omitzero"`
	// Imported: it came from elsewhere, with its ARN, and is for all accounts.
	Imported bool `json:"imported,omitempty"`

	Policy         policyRecord `json:"policy,omitzero"`
	PolicyRevision string       `json:"policyRevision,omitempty"`
}

// version is the snapshot that environments run.
func (c *configRecord) version(s scope, name, number string) *lambdad.Version {
	v := &lambdad.Version{
		Account: s.account, Region: s.region, Function: name, Number: number, Generation: c.Generation,
		Runtime: c.Runtime, Handler: c.Handler, Role: c.Role, Architecture: c.Architecture,
		MemoryMB: int(c.MemorySize), Timeout: time.Duration(c.Timeout) * time.Second, EphemeralMB: int(c.Ephemeral),
		Env: c.Environment, Code: lambdad.Archive(c.Code), Logging: c.Logging, Tracing: c.Tracing,
	}
	for _, l := range c.Layers {
		v.Layers = append(v.Layers, lambdad.Archive(l))
	}
	v.Image = c.Image.effective()
	return v
}

// digests calls f with every archive that the configuration needs.
func (c *configRecord) digests(f func(digest string)) {
	if c == nil {
		return
	}
	if c.Image != nil {
		f(imageRef + c.Image.Image.Digest)
		return
	}
	f(c.Code.Digest)
	for _, l := range c.Layers {
		f(l.Digest)
	}
}

// same reports whether two snapshots differ in name only.
func (c *configRecord) same(d *configRecord) bool {
	x, y := *c, *d
	x.Generation, y.Generation = "", ""
	return reflect.DeepEqual(&x, &y)
}

// share makes c use the memory of d where they are equal: there are many versions
// and they differ in little.
func (c *configRecord) share(d *configRecord) {
	for _, f := range []struct{ c, d *string }{
		{&c.Runtime, &d.Runtime}, {&c.RuntimeVersion, &d.RuntimeVersion}, {&c.Handler, &d.Handler}, {&c.Role, &d.Role},
		{&c.Description, &d.Description}, {&c.Architecture, &d.Architecture}, {&c.Tracing, &d.Tracing}, {&c.Code.Digest, &d.Code.Digest},
		{&c.Logging.Format, &d.Logging.Format}, {&c.Logging.Group, &d.Logging.Group},
		{&c.Logging.ApplicationLevel, &d.Logging.ApplicationLevel}, {&c.Logging.SystemLevel, &d.Logging.SystemLevel},
	} {
		if *f.c == *f.d {
			*f.c = *f.d
		}
	}
	if c.Environment != nil && d.Environment != nil && maps.Equal(c.Environment, d.Environment) {
		c.Environment = d.Environment
	}
	if slices.Equal(c.Layers, d.Layers) {
		c.Layers = d.Layers
	}
}

// intern makes the states that nearly every record has one text.
func (r *statusRecord) intern() {
	if r.State == stateActive {
		r.State = stateActive
	}
	if r.Update == updateSuccessful {
		r.Update = updateSuccessful
	}
}

// inProgress reports whether the last accepted change is not in force yet.
func (r *statusRecord) inProgress() bool {
	return r.State == statePending || r.Update == updateInProgress
}

// codeSha256 is a digest as answers show it.
func codeSha256(digest string) string {
	b, err := hex.DecodeString(digest)
	if err != nil {
		return "" // cannot be: written by a blob store
	}
	return base64.StdEncoding.EncodeToString(b)
}

func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000+0000") }

// show is a function as answers have it (control-plane.md section 3.1). Lists
// show less.
func (r *functionRecord) show(ref functionRef, list bool) *FunctionConfiguration {
	return show(&r.Config, &r.statusRecord, ref, latest, list)
}

func (r *versionRecord) show(ref functionRef, number int64, list bool) *FunctionConfiguration {
	out := show(&r.Config, &r.statusRecord, ref, strconv.FormatInt(number, 10), list)
	if r.Description != nil {
		out.Description = r.Description
	}
	return out
}

func show(c *configRecord, r *statusRecord, ref functionRef, number string, list bool) *FunctionConfiguration {
	out := &FunctionConfiguration{
		FunctionName: &ref.name, FunctionArn: new(ref.arn()),
		Runtime: &c.Runtime, Role: &c.Role, Handler: &c.Handler, CodeSize: &c.Code.Size, Description: &c.Description,
		Timeout: &c.Timeout, MemorySize: &c.MemorySize, LastModified: new(timestamp(r.LastModified)),
		CodeSha256: new(c.codeSha256()), Version: &number, RevisionId: &r.RevisionID,
		PackageType: new("Zip"), Architectures: []string{c.Architecture},
		EphemeralStorage: &EphemeralStorage{Size: &c.Ephemeral},
		TracingConfig:    &TracingConfigResponse{Mode: &c.Tracing},
		SnapStart:        &SnapStartResponse{ApplyOn: new("None"), OptimizationStatus: new("Off")},
		LoggingConfig:    showLogging(c.Logging),
	}
	if c.Environment != nil {
		out.Environment = &EnvironmentResponse{Variables: c.Environment}
	}
	for i := range c.Layers {
		l := &c.Layers[i]
		out.Layers = append(out.Layers, Layer{Arn: &l.ARN, CodeSize: &l.Size})
	}
	if c.Image != nil {
		c.Image.show(out)
	}
	if list {
		return out
	}
	if c.Image == nil {
		out.RuntimeVersionConfig = &RuntimeVersionConfig{RuntimeVersionArn: &c.RuntimeVersion}
	}
	out.State, out.StateReason, out.StateReasonCode = &r.State, orNil(r.StateReason), orNil(r.StateReasonCode)
	out.LastUpdateStatus, out.LastUpdateStatusReason, out.LastUpdateStatusReasonCode = orNil(r.Update), orNil(r.UpdateReason), orNil(r.UpdateReasonCode)
	return out
}

// show is an alias as answers have it.
func (r *aliasRecord) show(ref functionRef, name string) *AliasConfiguration {
	ref.qualifier = name
	out := &AliasConfiguration{
		AliasArn: new(ref.arn()), Name: &name, FunctionVersion: &r.Version, Description: &r.Description, RevisionId: &r.RevisionID,
	}
	if r.Additional != "" {
		out.RoutingConfig = &AliasRoutingConfiguration{AdditionalVersionWeights: map[string]float64{r.Additional: r.Weight}}
	}
	return out
}

func showLogging(l lambdad.Logging) *LoggingConfig {
	return &LoggingConfig{
		LogFormat: &l.Format, LogGroup: &l.Group,
		ApplicationLogLevel: orNil(l.ApplicationLevel), SystemLogLevel: orNil(l.SystemLevel),
	}
}

// orNil is a member that answers leave out when it is empty.
func orNil(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// Record keys. Names are checked before they get here; what a key cannot hold is
// no function's name.
func functionKey(account, region, name string) string {
	return account + "." + region + ".function." + name
}

func versionKey(account, region, name string, number int64) string {
	return functionKey(account, region, name) + ".version." + strconv.FormatInt(number, 10)
}

func aliasKey(account, region, name, alias string) string {
	return functionKey(account, region, name) + ".alias." + alias
}

func layerKey(account, region, name string) string {
	return account + "." + region + ".layer." + name
}

// A recordKey is a key taken apart.
type recordKey struct {
	scope
	kind   recordKind
	name   string // of the function or layer
	number int64  // of a version
	alias  string
}

type recordKind int

const (
	kindFunction recordKind = iota
	kindVersion
	kindAlias
	kindLayer
	kindLayerVersion
	kindSigning
)

// parseKey takes a key apart; it reports false for the records of others.
func parseKey(key string) (k recordKey, ok bool) {
	parts := strings.Split(key, ".")
	if len(parts) < 4 {
		return k, false
	}
	k.scope, k.name = scope{parts[0], parts[1]}, parts[3]
	number := ""
	switch kind, rest := parts[2], parts[4:]; {
	case kind == "function" && len(rest) == 0:
		k.kind = kindFunction
	case kind == "function" && len(rest) == 2 && rest[0] == "version":
		k.kind, number = kindVersion, rest[1]
	case kind == "function" && len(rest) == 2 && rest[0] == "alias":
		k.kind, k.alias = kindAlias, rest[1]
	case kind == "layer" && len(rest) == 0:
		k.kind = kindLayer
	case kind == "layer" && len(rest) == 1:
		k.kind, number = kindLayerVersion, rest[0]
	case kind == "code-signing" && len(rest) == 0:
		k.kind = kindSigning
	default:
		return k, false
	}
	if number != "" {
		var err error
		if k.number, err = strconv.ParseInt(number, 10, 64); err != nil {
			return k, false
		}
	}
	return k, true
}
