package environment

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/sandbox"
)

// runtimeOnly are variables that extensions must not see: they tell by them
// whether they run inside the runtime (lifecycle.md section 10).
var runtimeOnly = []string{
	"AWS_EXECUTION_ENV",
	"AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME",
	"AWS_XRAY_CONTEXT_MISSING", "AWS_XRAY_DAEMON_ADDRESS",
	"LAMBDA_TASK_ROOT", "LAMBDA_RUNTIME_DIR",
}

// environ makes the variables of a process of this environment.
func (e *Environment) environ(c lambdad.Credentials, extension bool, api string) []string {
	return environ(&e.cfg, e.cfg.Sandbox.Path, c, extension, api, e.endpoint, e.logStream)
}

// credentials makes those of a process that is about to start.
func (e *Environment) credentials(name string, extension bool) lambdad.Credentials {
	switch {
	case e.cfg.Credentials == nil:
		return lambdad.Credentials{}
	case extension:
		return e.cfg.Credentials("extension/" + name)
	}
	return e.cfg.Credentials("runtime")
}

// Explained are the variables that a process of an environment would get whose
// sandbox has every path at its own place: the runtime's, or those of an extension.
func Explained(cfg Config, extension bool) []string {
	if cfg.InitType == "" {
		cfg.InitType = OnDemand
	}
	endpoint := ""
	if cfg.Endpoint != nil {
		endpoint = "http://" + endpointAddress
	}
	var c lambdad.Credentials
	if cfg.Credentials != nil {
		c = cfg.Credentials("")
	}
	return environ(&cfg, func(p string) string { return p }, c, extension, runtimeAPIAddress, endpoint, cfg.LogStream)
}

// environ makes the variables of a process: defaults that the function may
// override, what its runtime adds, the function's own, and over them what the
// platform says. path is where the sandbox has one of its paths.
func environ(cfg *Config, path func(string) string, c lambdad.Credentials, extension bool, api, endpoint, logStream string) []string {
	v := cfg.Version
	env := map[string]string{
		"LANG":                     "en_US.UTF-8",
		"TZ":                       ":UTC",
		"PATH":                     translate(path, "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin"),
		"LD_LIBRARY_PATH":          translate(path, "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib"),
		"AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
		"AWS_XRAY_DAEMON_ADDRESS":  xrayHost + ":" + xrayPort,
	}
	if tmp := path("/tmp"); tmp != "/tmp" {
		env["TMPDIR"] = tmp
	}
	if endpoint != "" {
		env["AWS_ENDPOINT_URL"] = endpoint
	}
	for k, value := range cfg.RuntimeEnv {
		if !extension {
			env[k] = translate(path, value)
		}
	}
	if v.Image != nil {
		imageEnviron(env, v.Image)
	}
	maps.Copy(env, v.Env)

	maps.Copy(env, map[string]string{
		"AWS_LAMBDA_RUNTIME_API":          api,
		"AWS_LAMBDA_FUNCTION_NAME":        v.Function,
		"AWS_LAMBDA_FUNCTION_VERSION":     v.Number,
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": strconv.Itoa(v.MemoryMB),
		"AWS_LAMBDA_INITIALIZATION_TYPE":  cfg.InitType,
		"AWS_REGION":                      v.Region,
		"AWS_DEFAULT_REGION":              v.Region,
		"AWS_ACCESS_KEY_ID":               c.AccessKeyID,
		"AWS_SECRET_ACCESS_KEY":           c.SecretAccessKey,
		"AWS_SESSION_TOKEN":               c.SessionToken,
		"AWS_LAMBDA_LOG_GROUP_NAME":       v.LogGroup(),
		"AWS_LAMBDA_LOG_STREAM_NAME":      logStream,
		"LAMBDA_TASK_ROOT":                path("/var/task"),
		"LAMBDA_RUNTIME_DIR":              path("/var/runtime"),
		"_HANDLER":                        v.Handler,
		"_AWS_XRAY_DAEMON_ADDRESS":        xrayHost,
		"_AWS_XRAY_DAEMON_PORT":           xrayPort,
	})
	if v.Image != nil {
		env["_HANDLER"] = handlerOf(v.Image)
	}
	delete(env, "_LAMBDA_TELEMETRY_LOG_FD")
	if framed(v) {
		env["_LAMBDA_TELEMETRY_LOG_FD"] = strconv.Itoa(sandbox.LogFD)
	}
	if strings.EqualFold(v.Logging.Format, "JSON") {
		level := v.Logging.ApplicationLevel
		if level == "" {
			level = "INFO"
		}
		env["AWS_LAMBDA_LOG_FORMAT"], env["AWS_LAMBDA_LOG_LEVEL"] = "JSON", level
	} else {
		delete(env, "AWS_LAMBDA_LOG_FORMAT")
		delete(env, "AWS_LAMBDA_LOG_LEVEL")
	}
	for _, k := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} {
		if env[k] == "" {
			delete(env, k) // an empty one would hide others a client looks for
		}
	}

	list := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		if extension && (strings.HasPrefix(k, "_") || slices.Contains(runtimeOnly, k)) {
			continue
		}
		list = append(list, k+"="+env[k])
	}
	return list
}

// framed says whether a version's runtime writes frames to a log descriptor, so that
// records of many lines stay whole (traps.md section 5; runtimes.md section 1). Others
// would leave it open to what they start.
func framed(v *lambdad.Version) bool {
	if v.Image != nil {
		return false
	}
	switch lambdad.RuntimeFamily(v.Runtime) {
	case "python", "nodejs", "ruby":
		return true
	case "java":
		return v.Runtime != "java8.al2" && v.Runtime != "java11"
	}
	return false
}

// Where an X-Ray daemon is on AWS; nothing listens there.
const (
	xrayHost = "169.254.100.1"
	xrayPort = "2000"
)

// translate puts in their places the directories in a list that the sandbox may
// have elsewhere.
func translate(path func(string) string, list string) string {
	parts := strings.Split(list, ":")
	for i, p := range parts {
		for _, root := range []string{"/var/lang", "/var/runtime", "/var/task", "/opt"} {
			if p == root || strings.HasPrefix(p, root+"/") {
				parts[i] = path(p)
			}
		}
	}
	return strings.Join(parts, ":")
}
