package lambda

import (
	"encoding/base64"
	"encoding/hex"
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
	// Config is what was accepted last.
	Config configRecord `json:"config"`
	// Live is what runs while Config is being taken up, or null.
	Live *configRecord `json:"live,omitempty"`

	State            string `json:"state"`
	StateReason      string `json:"stateReason,omitempty"`
	StateReasonCode  string `json:"stateReasonCode,omitempty"`
	Update           string `json:"update,omitempty"`
	UpdateReason     string `json:"updateReason,omitempty"`
	UpdateReasonCode string `json:"updateReasonCode,omitempty"`

	RevisionID   string            `json:"revisionId"`
	LastModified time.Time         `json:"lastModified"`
	Tags         map[string]string `json:"tags,omitzero"`
}

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
}

// version is the snapshot that environments run.
func (c *configRecord) version(account, region, name string) *lambdad.Version {
	v := &lambdad.Version{
		Account: account, Region: region, Function: name, Number: latest, Generation: c.Generation,
		Runtime: c.Runtime, Handler: c.Handler, Role: c.Role, Architecture: c.Architecture,
		MemoryMB: int(c.MemorySize), Timeout: time.Duration(c.Timeout) * time.Second, EphemeralMB: int(c.Ephemeral),
		Env: c.Environment, Code: lambdad.Archive(c.Code), Logging: c.Logging, Tracing: c.Tracing,
	}
	for _, l := range c.Layers {
		v.Layers = append(v.Layers, lambdad.Archive(l))
	}
	return v
}

// digests calls f with every archive the record needs.
func (r *functionRecord) digests(f func(digest string)) {
	for _, c := range []*configRecord{&r.Config, r.Live} {
		if c == nil {
			continue
		}
		f(c.Code.Digest)
		for _, l := range c.Layers {
			f(l.Digest)
		}
	}
}

// inProgress reports whether the last accepted change is not in force yet.
func (r *functionRecord) inProgress() bool {
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
	c := &r.Config
	out := &FunctionConfiguration{
		FunctionName: &ref.name, FunctionArn: new(ref.arn()),
		Runtime: &c.Runtime, Role: &c.Role, Handler: &c.Handler, CodeSize: &c.Code.Size, Description: &c.Description,
		Timeout: &c.Timeout, MemorySize: &c.MemorySize, LastModified: new(timestamp(r.LastModified)),
		CodeSha256: new(codeSha256(c.Code.Digest)), Version: new(latest), RevisionId: &r.RevisionID,
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
	if list {
		return out
	}
	out.RuntimeVersionConfig = &RuntimeVersionConfig{RuntimeVersionArn: &c.RuntimeVersion}
	out.State, out.StateReason, out.StateReasonCode = &r.State, orNil(r.StateReason), orNil(r.StateReasonCode)
	out.LastUpdateStatus, out.LastUpdateStatusReason, out.LastUpdateStatusReasonCode = orNil(r.Update), orNil(r.UpdateReason), orNil(r.UpdateReasonCode)
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

func layerKey(account, region, name string) string {
	return account + "." + region + ".layer." + name
}

// splitKey takes a key apart; rest is what follows the kind.
func splitKey(key string) (s scope, kind string, rest []string, ok bool) {
	parts := strings.Split(key, ".")
	if len(parts) < 4 {
		return scope{}, "", nil, false
	}
	return scope{parts[0], parts[1]}, parts[2], parts[3:], true
}
