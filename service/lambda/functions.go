package lambda

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/archive"
)

// Limits of section 5.1 of control-plane.md that only this file asks for.
const (
	maxTags         = 50
	maxMemory       = 10240       // MB; the model allows more than any account has
	maxFunctionPage = 50          // whatever is asked for
	maxCodeStorage  = 80530636800 // bytes per account and region
)

func invalid(format string, args ...any) error {
	return lambdad.Errorf("InvalidParameterValueException", format, args...)
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func orDefault[T any](p *T, d T) T {
	if p != nil {
		return *p
	}
	return d
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// refused lists, by member, the settings whose effect lambdad does not have. A
// value that asks for nothing is fine.
func refused(members map[string]bool) error {
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if members[name] {
			return notOffered(name)
		}
	}
	return nil
}

func (s *Service) createFunction(c *call, in *CreateFunctionRequest) (any, error) {
	ref, err := resolveRef(c, *in.FunctionName, nil)
	if err != nil {
		return nil, err
	}
	if len(ref.name) > maxPlainName {
		return nil, invalid("1 validation error detected: Value '%s' at 'functionName' failed to satisfy constraint: Member must have length less than or equal to %d", ref.name, maxPlainName)
	}
	if ref.qualifier != "" {
		return nil, invalid("A function is created without a qualifier: give its name or unqualified ARN instead of %s.", *in.FunctionName)
	}
	err = refused(map[string]bool{
		"CapacityProviderConfig": in.CapacityProviderConfig != nil,
		"Code.SourceKMSKeyArn":   value(in.Code.SourceKMSKeyArn) != "",
		"DeadLetterConfig":       in.DeadLetterConfig != nil && value(in.DeadLetterConfig.TargetArn) != "",
		"DurableConfig":          in.DurableConfig != nil,
		"FileSystemConfigs":      len(in.FileSystemConfigs) > 0,
		"KMSKeyArn":              value(in.KMSKeyArn) != "",
		"PublishTo":              in.PublishTo != nil,
		"SnapStart":              in.SnapStart != nil && value(in.SnapStart.ApplyOn) == "PublishedVersions",
		"TenancyConfig":          in.TenancyConfig != nil,
		"VpcConfig":              !in.VpcConfig.empty(),
	})
	if err != nil {
		return nil, err
	}

	// From here on in the order of control-plane.md section 4.1.
	cfg := configRecord{
		Generation: newID(),
		Runtime:    value(in.Runtime), Handler: value(in.Handler), Role: *in.Role,
		Description: value(in.Description),
		Timeout:     orDefault(in.Timeout, 3), MemorySize: orDefault(in.MemorySize, 128), Ephemeral: 512,
		Tracing: "PassThrough", Architecture: s.Architectures[0],
		Logging: lambdad.Logging{Format: "Text", Group: "/aws/lambda/" + ref.name},
	}
	if slices.Contains(s.Architectures, "x86_64") {
		cfg.Architecture = "x86_64" // AWS's default
	}
	if len(in.Architectures) > 0 {
		cfg.Architecture = in.Architectures[0]
	}
	if err := s.checkArchitecture(cfg.Architecture); err != nil {
		return nil, err
	}
	src, info, err := s.packageOf(c, &cfg, in)
	if err != nil {
		return nil, err
	}
	defer src.close()
	if err := s.setEnvironment(c, &cfg, in.Environment); err != nil {
		return nil, err
	}
	s.pullLayers(c, in.Layers)
	if err := s.setLayers(c, &cfg, in.Layers); err != nil {
		return nil, err
	}
	if err := checkTotal(info.Unzipped, cfg.Layers); err != nil {
		return nil, err
	}
	if err := s.checkRole(c, cfg.Role, ref); err != nil {
		return nil, err
	}
	if err := checkTags(nil, in.Tags); err != nil {
		return nil, err
	}
	if len(in.Tags) > 0 {
		if err := c.Authorize("lambda:TagResource", ref.arn(), nil, nil); err != nil {
			return nil, err
		}
	}
	if s.Registry.function(ref) != nil {
		return nil, lambdad.Errorf("ResourceConflictException", "Function already exist: %s", ref.name)
	}
	if err := setLogging(&cfg.Logging, in.LoggingConfig); err != nil {
		return nil, err
	}
	if err := checkMemory(in.MemorySize); err != nil {
		return nil, err
	}
	if in.EphemeralStorage != nil {
		cfg.Ephemeral = *in.EphemeralStorage.Size
	}
	if in.TracingConfig != nil {
		cfg.Tracing = orDefault(in.TracingConfig.Mode, cfg.Tracing)
	}
	signing := value(in.CodeSigningConfigArn)
	if signing != "" {
		if _, err := s.attachable(c, signing); err != nil {
			return nil, err
		}
		if err := s.checkSigning(c, signing, src, src.size); err != nil {
			return nil, err
		}
		if err := s.checkLayerSigning(c, signing, cfg.Layers); err != nil {
			return nil, err
		}
	}
	if err := s.checkStorage(c, src.size); err != nil {
		return nil, err
	}

	if cfg.Image == nil {
		stored, release, err := s.store(c.Context(), src, info)
		if err != nil {
			return nil, err
		}
		defer release()
		cfg.Code = stored
	}
	rec, published, err := s.Registry.create(c.Context(), ref, functionRecord{
		Config: cfg, Tags: in.Tags, CodeSigning: signing,
		statusRecord: statusRecord{
			State: statePending, StateReason: reasonCreating, StateReasonCode: reasonCodeCreating,
			RevisionID: newID(), LastModified: s.Now(),
		},
	}, value(in.Publish))
	if err != nil {
		return nil, err
	}
	s.enqueue(ref)
	if published != nil {
		return published.rec.show(ref, published.number, false), nil // with the unqualified ARN
	}
	return rec.show(ref, false), nil
}

func (c *ImageConfig) empty() bool {
	return c == nil || len(c.Command) == 0 && len(c.EntryPoint) == 0 && value(c.WorkingDirectory) == ""
}

func (c *VpcConfig) empty() bool {
	return c == nil || len(c.SubnetIds) == 0 && len(c.SecurityGroupIds) == 0
}

func (s *Service) checkArchitecture(architecture string) error {
	if slices.Contains(s.Architectures, architecture) {
		return nil
	}
	return invalid("The architecture %s cannot run on this host, which runs %s.", architecture, strings.Join(s.Architectures, " and "))
}

// setRuntime checks a runtime identifier: those that AWS does not know, those it
// no longer takes, those this host lacks.
func (s *Service) setRuntime(c *call, cfg *configRecord, name string) error {
	if slices.Contains(blockedRuntimes, name) {
		return invalid("The runtime parameter of %s is no longer supported for creating or updating AWS Lambda functions. We recommend you use a supported runtime while creating or updating functions.", name)
	}
	if !slices.Contains(createRuntimes, name) && !slices.Contains(s.RuntimeNames, name) {
		names := slices.Clone(createRuntimes)
		for _, n := range s.RuntimeNames {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
		return invalid("Value %s at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: [%s] or be a valid ARN", name, strings.Join(names, ", "))
	}
	version, err := s.ResolveRuntime(c.Context(), name)
	if err != nil {
		return err
	}
	if len(version) != 2*sha256.Size {
		version = digestOf([]byte(name + " " + version))
	}
	cfg.Runtime = name
	cfg.RuntimeVersion = "arn:aws:lambda:" + c.Region + "::runtime:" + version
	return nil
}

// reservedVariables cannot be set by the owner of a function (control-plane.md
// section 6).
var reservedVariables = []string{
	"_HANDLER", "_X_AMZN_TRACE_ID", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_EXECUTION_ENV", "AWS_LAMBDA_FUNCTION_NAME",
	"AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "AWS_LAMBDA_FUNCTION_VERSION", "AWS_LAMBDA_INITIALIZATION_TYPE",
	"AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME", "AWS_ACCESS_KEY", "AWS_ACCESS_KEY_ID",
	"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_LAMBDA_RUNTIME_API", "LAMBDA_TASK_ROOT", "LAMBDA_RUNTIME_DIR",
}

func (s *Service) setEnvironment(c *call, cfg *configRecord, env *Environment) error {
	if env == nil || env.Variables == nil {
		return nil
	}
	names, measured := variablesInOrder(c.Body, env.Variables)
	if len(measured) > lambdad.MaxEnvironment {
		return invalid("Lambda was unable to configure your environment variables because the environment variables you have provided exceeded the 4KB limit. String measured: %s", measured)
	}
	var reserved []string
	for _, name := range names {
		if slices.Contains(reservedVariables, name) {
			reserved = append(reserved, name)
		}
	}
	if len(reserved) > 0 {
		return invalid("Lambda was unable to configure your environment variables because the environment variables you have provided contains reserved keys that are currently not supported for modification. Reserved keys used in this request: %s", strings.Join(reserved, ", "))
	}
	cfg.Environment = env.Variables
	return nil
}

// variablesInOrder returns the names of the variables in the order of the
// request, and all of them as the compact JSON whose size is limited.
func variablesInOrder(body []byte, variables map[string]string) (names []string, measured string) {
	var raw struct {
		Environment struct{ Variables json.RawMessage }
	}
	names = make([]string, 0, len(variables))
	if json.Unmarshal(body, &raw) == nil {
		dec := json.NewDecoder(bytes.NewReader(raw.Environment.Variables))
		for isKey := false; ; isKey = !isKey {
			t, err := dec.Token()
			if err != nil {
				break
			}
			if name, ok := t.(string); ok && isKey && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	if len(names) != len(variables) { // a spelling that only the decoder understood
		names = slices.Sorted(maps.Keys(variables))
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	encode := func(s string) {
		_ = enc.Encode(s) // a string cannot fail
	}
	b.WriteByte('{')
	for i, name := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		encode(name)
		b.WriteByte(':')
		encode(variables[name])
	}
	b.WriteByte('}')
	return names, strings.ReplaceAll(b.String(), "\n", "") // the encoder ends each value with one; in strings they are escaped
}

func (s *Service) setLayers(c *call, cfg *configRecord, arns []string) error {
	if len(arns) > lambdad.MaxLayers {
		return invalid("Cannot reference more than %d layers.", lambdad.MaxLayers)
	}
	refs := make([]layerRef, len(arns))
	for i, arn := range arns {
		ref, ok := parseLayerRef(c, arn)
		if !ok { // such as one of AWS's own, which have no region
			return invalid("Layer version %s does not exist.", arn)
		}
		if ref.region != c.Region {
			return invalid("Layers are not in the same region as the function. Layers are expected to be in region %s.", c.Region)
		}
		refs[i] = ref
	}
	layers := make([]archiveRecord, len(arns))
	for i, ref := range refs {
		if s.Registry.imported(ref) == nil && s.attached(cfg, arns[i]).ARN == "" {
			if err := c.Authorize("lambda:GetLayerVersion", arns[i], s.ResourcePolicy(c.Request, arns[i]), nil); err != nil {
				return err
			}
		}
		if layers[i] = s.attached(cfg, arns[i]); layers[i].ARN != "" {
			continue
		}
		v := s.Registry.layerVersion(ref)
		if v == nil {
			return invalid("Layer version %s does not exist.", arns[i])
		}
		layers[i] = v.rec.Archive
		layers[i].ARN = arns[i]
	}
	for i := range refs {
		for j := range i {
			if refs[i].arn() == refs[j].arn() {
				return invalid("Two different versions of the same layer are not allowed to be referenced in the same function. %s and %s are versions of the same layer.", arns[j], arns[i])
			}
		}
	}
	cfg.Layers = layers
	if len(layers) == 0 {
		cfg.Layers = nil
	}
	return nil
}

// attached returns a layer version that the function already has: it goes on
// working after it was deleted.
func (s *Service) attached(cfg *configRecord, arn string) archiveRecord {
	for _, l := range cfg.Layers {
		if l.ARN == arn {
			return l
		}
	}
	return archiveRecord{}
}

// checkTotal limits what is unpacked for a function.
func checkTotal(code int64, layers []archiveRecord) error {
	total := code
	for _, l := range layers {
		total += l.Unzipped
	}
	if total > lambdad.MaxUnzipped {
		return invalid("Function code combined with layers exceeds the maximum allowed size of %d bytes. The actual size is %d bytes.", lambdad.MaxUnzipped, total)
	}
	return nil
}

// checkStorage limits what is stored for an account in a region.
func (s *Service) checkStorage(c *call, more int64) error {
	if _, used := s.Registry.usage(c.Identity.Account, c.Region); used+more > maxCodeStorage {
		return lambdad.Errorf("CodeStorageExceededException", "Code storage limit exceeded.")
	}
	return nil
}

func checkMemory(mb *int64) error {
	if mb != nil && *mb > maxMemory {
		return lambdad.Errorf("ValidationException", "'MemorySize' value failed to satisfy constraint: Member must have value less than or equal to %d", maxMemory)
	}
	return nil
}

// setLogging merges in into l: levels exist with JSON only.
func setLogging(l *lambdad.Logging, in *LoggingConfig) error {
	if in == nil {
		return nil
	}
	l.Format = orDefault(in.LogFormat, l.Format)
	l.Group = orDefault(in.LogGroup, l.Group)
	if l.Format == "Text" {
		if in.ApplicationLogLevel != nil || in.SystemLogLevel != nil {
			return invalid("LogLevel is not supported when LogFormat is set to \"Text\". Remove LogLevel from your request or change the LogFormat to \"JSON\" and try again.")
		}
		l.ApplicationLevel, l.SystemLevel = "", ""
		return nil
	}
	l.ApplicationLevel = orDefault(in.ApplicationLogLevel, l.ApplicationLevel)
	l.SystemLevel = orDefault(in.SystemLogLevel, l.SystemLevel)
	if l.ApplicationLevel == "" {
		l.ApplicationLevel = "INFO"
	}
	if l.SystemLevel == "" {
		l.SystemLevel = "INFO"
	}
	return nil
}

// A view is a function or a version of it, as a read operation names it.
type view struct {
	ref     functionRef
	latest  *function
	version *version // nil: $LATEST
}

func (v *view) config() *configRecord {
	if v.version != nil {
		return &v.version.rec.Config
	}
	return &v.latest.rec.Config
}

// show keeps the qualifier that the request carried, also that of an alias.
func (v *view) show() *FunctionConfiguration {
	if v.version != nil {
		return v.version.rec.show(v.ref, v.version.number, false)
	}
	return v.latest.rec.show(v.ref, false)
}

// read finds the function, version or alias of a read operation.
func (s *Service) read(c *call, name string, qualifier *string) (*view, error) {
	ref, err := resolveRef(c, name, qualifier)
	if err != nil {
		return nil, err
	}
	fam := s.Registry.family(ref)
	v := &view{ref: ref, latest: fam.latest}
	q := ref.qualifier
	if a := fam.alias(q); a != nil {
		q = a.rec.Version
	}
	if q != "" && q != latest {
		v.version = fam.version(q)
	}
	if v.latest == nil || q != "" && q != latest && v.version == nil {
		return nil, functionNotFound(ref)
	}
	return v, nil
}

func (s *Service) getFunction(c *call, in *GetFunctionRequest) (any, error) {
	v, err := s.read(c, *in.FunctionName, in.Qualifier)
	if err != nil {
		return nil, err
	}
	out := &GetFunctionResponse{
		Configuration: v.show(),
		Code:          s.showCode(c, v.config()),
	}
	if len(v.latest.rec.Tags) > 0 {
		out.Tags = v.latest.rec.Tags
	}
	if n := v.latest.rec.Reserved; n != nil && v.ref.qualifier == "" {
		out.Concurrency = &Concurrency{ReservedConcurrentExecutions: n}
	}
	return out, nil
}

func (s *Service) getFunctionConfiguration(c *call, in *GetFunctionConfigurationRequest) (any, error) {
	v, err := s.read(c, *in.FunctionName, in.Qualifier)
	if err != nil {
		return nil, err
	}
	return v.show(), nil
}

func (s *Service) listFunctions(c *call, in *ListFunctionsRequest) (any, error) {
	// Markers are name, a space, and the version in a form that sorts.
	after, err := readMarker(in.Marker)
	if err != nil {
		return nil, err
	}
	from, afterVersion, _ := strings.Cut(after, " ")
	limit := pageLimit(in.MaxItems, maxFunctionPage)
	var families []family
	if in.MasterRegion == nil { // no function is a replica of Lambda@Edge
		families = s.Registry.list(c.Identity.Account, c.Region, from, limit+2) // the first may be behind the marker
	}
	out := &ListFunctionsResponse{Functions: make([]FunctionConfiguration, 0, limit)}
	last := ""
	add := func(f *family, number int64, show func() *FunctionConfiguration) (more bool) {
		at := markerOf(number)
		if f.latest.name == from && at <= afterVersion {
			return true
		}
		if len(out.Functions) == limit {
			out.NextMarker = makeMarker(last)
			return false
		}
		out.Functions = append(out.Functions, *show())
		last = f.latest.name + " " + at
		return true
	}
	for i := range families {
		f := &families[i]
		ref := functionRef{account: c.Identity.Account, region: c.Region, name: f.latest.name}
		if in.FunctionVersion != nil {
			ref.qualifier = latest
		}
		if !add(f, 0, func() *FunctionConfiguration { return f.latest.rec.show(ref, true) }) {
			return out, nil
		}
		if in.FunctionVersion == nil {
			continue
		}
		for _, v := range f.published() {
			ref.qualifier = strconv.FormatInt(v.number, 10)
			if !add(f, v.number, func() *FunctionConfiguration { return v.rec.show(ref, v.number, true) }) {
				return out, nil
			}
		}
	}
	return out, nil
}

// markerOf is a version in a marker; $LATEST is 0.
func markerOf(number int64) string { return fmt.Sprintf("%020d", number) }

// paginate cuts a page out of items, whose keys ascend. A marker is opaque: the
// last key of the page before it.
func paginate[T any](items []T, key func(T) string, marker *string, maxItems *int64, limit int) (page []T, next *string, err error) {
	last, err := readMarker(marker)
	if err != nil {
		return nil, nil, err
	}
	if last != "" {
		items = items[sort.Search(len(items), func(i int) bool { return key(items[i]) > last }):]
	}
	limit = pageLimit(maxItems, limit)
	if len(items) > limit {
		items = items[:limit]
		next = makeMarker(key(items[limit-1]))
	}
	if items == nil {
		items = []T{} // answers have an empty list
	}
	return items, next, nil
}

func pageLimit(maxItems *int64, limit int) int {
	return int(min(orDefault(maxItems, int64(limit)), int64(limit)))
}

func makeMarker(last string) *string { return new(base64.RawURLEncoding.EncodeToString([]byte(last))) }

func readMarker(marker *string) (last string, err error) {
	b, err := base64.RawURLEncoding.DecodeString(value(marker))
	if err != nil {
		return "", invalid("The Marker %q is not one that this operation has given.", *marker)
	}
	return string(b), nil
}

// writable finds the function of an operation that changes it, which must not
// name a version or an alias.
func (s *Service) writable(c *call, name string) (*function, functionRef, error) {
	ref, err := resolveRef(c, name, nil)
	if err != nil {
		return nil, ref, err
	}
	f := s.Registry.function(ref)
	if f == nil {
		return nil, ref, functionNotFound(ref.unqualified())
	}
	if ref.qualifier != "" && ref.qualifier != latest {
		return nil, ref, invalid("This operation is permitted on Lambda functions only. Aliases and versions do not support this operation. Please specify either a function name or an unqualified function ARN.")
	}
	return f, ref.unqualified(), nil
}

// changeable refuses a change to an older revision or beside another change.
func changeable(rec *functionRecord, ref functionRef, revisionID *string) error {
	if rec.inProgress() {
		return lambdad.Errorf("ResourceConflictException", "The operation cannot be performed at this time. An update is in progress for resource: %s", ref.arn())
	}
	if revisionID != nil && *revisionID != rec.RevisionID {
		return errStale
	}
	return nil
}

var errStale = lambdad.Errorf("PreconditionFailedException", "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve the latest Revision Id")

// accept makes cfg what the function will be. What ran before goes on until cfg
// is ready; a function that never was ready is created anew.
func (s *Service) accept(rec *functionRecord, cfg configRecord) {
	old := rec.Config
	cfg.Generation = newID()
	rec.Config, rec.RevisionID, rec.LastModified = cfg, newID(), s.Now()
	if rec.State != stateActive {
		rec.State, rec.StateReason, rec.StateReasonCode = statePending, reasonCreating, reasonCodeCreating
		rec.Update, rec.UpdateReason, rec.UpdateReasonCode = "", "", ""
		return
	}
	rec.Live = &old
	rec.Update, rec.UpdateReason, rec.UpdateReasonCode = updateInProgress, reasonCreating, reasonCodeCreating
}

func (s *Service) updateFunctionCode(c *call, in *UpdateFunctionCodeRequest) (any, error) {
	f, ref, err := s.writable(c, *in.FunctionName)
	if err != nil {
		return nil, err
	}
	if in.ImageUri != nil && f.rec.Config.Image == nil {
		return nil, invalid("Please don't provide ImageUri when updating a function with packageType Zip.")
	}
	err = refused(map[string]bool{
		"PublishTo":       in.PublishTo != nil,
		"SourceKMSKeyArn": value(in.SourceKMSKeyArn) != "",
	})
	if err != nil {
		return nil, err
	}
	if len(in.Architectures) > 0 {
		if err := s.checkArchitecture(in.Architectures[0]); err != nil {
			return nil, err
		}
	}
	if f.rec.Config.Image != nil {
		return s.updateImage(c, in, f, ref)
	}
	src, err := s.source(c, in.ZipFile, in.S3Bucket, in.S3Key, in.S3ObjectVersion, nil)
	if err != nil {
		return nil, err
	}
	defer src.close()
	// Asked again with the record that is replaced; here to spare the archive.
	if err := changeable(&f.rec, ref, in.RevisionId); err != nil {
		return nil, err
	}
	info, err := archive.Inspect(src, src.size)
	if err != nil {
		return nil, err
	}
	if err := s.checkSigning(c, f.rec.CodeSigning, src, src.size); err != nil {
		return nil, err
	}
	stored, release := archiveRecord{Digest: src.digest, Size: src.size, Unzipped: info.Unzipped}, func() {}
	if !value(in.DryRun) {
		if err := s.checkStorage(c, src.size); err != nil {
			return nil, err
		}
		if stored, release, err = s.store(c.Context(), src, info); err != nil {
			return nil, err
		}
	}
	defer release()
	update := func(rec *functionRecord) error {
		if err := changeable(rec, ref, in.RevisionId); err != nil {
			return err
		}
		if err := checkTotal(info.Unzipped, rec.Config.Layers); err != nil {
			return err
		}
		cfg := rec.Config
		cfg.Code = stored
		if len(in.Architectures) > 0 {
			cfg.Architecture = in.Architectures[0]
		}
		s.accept(rec, cfg)
		return nil
	}
	return s.applyCode(c, in, f, ref, update)
}

// applyCode makes an update of the code, or does as if.
func (s *Service) applyCode(c *call, in *UpdateFunctionCodeRequest, f *function, ref functionRef, update func(*functionRecord) error) (any, error) {
	if value(in.DryRun) {
		rec := f.rec
		if err := update(&rec); err != nil {
			return nil, err
		}
		rec.Update, rec.UpdateReason, rec.UpdateReasonCode, rec.RevisionID = f.rec.Update, f.rec.UpdateReason, f.rec.UpdateReasonCode, f.rec.RevisionID
		return rec.show(ref, false), nil
	}
	if !value(in.Publish) {
		return s.change(c, ref, update)
	}
	_, v, err := s.Registry.publish(c.Context(), ref, nil, update)
	if err != nil {
		return nil, err
	}
	s.enqueue(ref)
	return showPublished(ref, v), nil
}

// change writes a change and has it taken up.
func (s *Service) change(c *call, ref functionRef, change func(*functionRecord) error) (any, error) {
	rec, err := s.Registry.update(c.Context(), ref, change)
	if err != nil {
		return nil, err
	}
	s.enqueue(ref)
	return rec.show(ref, false), nil
}

func (s *Service) updateFunctionConfiguration(c *call, in *UpdateFunctionConfigurationRequest) (any, error) {
	_, ref, err := s.writable(c, *in.FunctionName)
	if err != nil {
		return nil, err
	}
	err = refused(map[string]bool{
		"CapacityProviderConfig": in.CapacityProviderConfig != nil,
		"DeadLetterConfig":       in.DeadLetterConfig != nil && value(in.DeadLetterConfig.TargetArn) != "",
		"DurableConfig":          in.DurableConfig != nil,
		"FileSystemConfigs":      len(in.FileSystemConfigs) > 0,
		"KMSKeyArn":              value(in.KMSKeyArn) != "",
		"SnapStart":              in.SnapStart != nil && value(in.SnapStart.ApplyOn) == "PublishedVersions",
		"VpcConfig":              !in.VpcConfig.empty(),
	})
	if err != nil {
		return nil, err
	}
	if in.Role != nil {
		if err := s.checkRole(c, *in.Role, ref); err != nil {
			return nil, err
		}
	}
	s.pullLayers(c, in.Layers)
	return s.change(c, ref, func(rec *functionRecord) error {
		cfg := rec.Config
		if err := setImageConfig(&cfg, in); err != nil {
			return err
		}
		cfg.Role = orDefault(in.Role, cfg.Role)
		cfg.Handler = orDefault(in.Handler, cfg.Handler)
		cfg.Description = orDefault(in.Description, cfg.Description)
		cfg.Timeout = orDefault(in.Timeout, cfg.Timeout)
		cfg.MemorySize = orDefault(in.MemorySize, cfg.MemorySize)
		if in.Runtime != nil {
			if err := s.setRuntime(c, &cfg, *in.Runtime); err != nil {
				return err
			}
		}
		if err := s.setEnvironment(c, &cfg, in.Environment); err != nil {
			return err
		}
		if in.Layers != nil {
			if err := s.setLayers(c, &cfg, in.Layers); err != nil {
				return err
			}
			if err := checkTotal(cfg.Code.Unzipped, cfg.Layers); err != nil {
				return err
			}
			if err := s.checkLayerSigning(c, rec.CodeSigning, cfg.Layers); err != nil {
				return err
			}
		}
		if err := setLogging(&cfg.Logging, in.LoggingConfig); err != nil {
			return err
		}
		if err := checkMemory(in.MemorySize); err != nil {
			return err
		}
		if in.EphemeralStorage != nil {
			cfg.Ephemeral = *in.EphemeralStorage.Size
		}
		if in.TracingConfig != nil {
			cfg.Tracing = orDefault(in.TracingConfig.Mode, cfg.Tracing)
		}
		if err := changeable(rec, ref, in.RevisionId); err != nil {
			return err
		}
		s.accept(rec, cfg)
		return nil
	})
}

func (s *Service) deleteFunction(c *call, in *DeleteFunctionRequest) (any, error) {
	ref, err := resolveRef(c, *in.FunctionName, in.Qualifier)
	if err != nil {
		return nil, err
	}
	switch q := ref.qualifier; {
	case q == latest:
		return nil, invalid("$LATEST version cannot be deleted without deleting the function.")
	case q != "" && isWord(q) && !isDigits(q):
		return nil, invalid("Deletion of aliases is not currently supported.")
	case q != "":
		if s.Registry.function(ref) == nil || !isDigits(q) {
			return nil, functionNotFound(ref.unqualified())
		}
		return nil, s.Registry.deleteVersion(c.Context(), ref) // which may never have been
	}
	return nil, s.Registry.delete(c.Context(), ref)
}

func (s *Service) getAccountSettings(c *call, _ *GetAccountSettingsRequest) (any, error) {
	functions, bytes := s.Registry.usage(c.Identity.Account, c.Region)
	return &GetAccountSettingsResponse{
		AccountLimit: &AccountLimit{
			TotalCodeSize: new(int64(maxCodeStorage)), CodeSizeUnzipped: new(int64(lambdad.MaxUnzipped)), CodeSizeZipped: new(int64(lambdad.MaxZip)),
			ConcurrentExecutions:           &s.Concurrency,
			UnreservedConcurrentExecutions: new(s.Registry.unreserved(scope{c.Identity.Account, c.Region}, s.Concurrency, "")),
		},
		AccountUsage: &AccountUsage{TotalCodeSize: &bytes, FunctionCount: &functions},
	}, nil
}
