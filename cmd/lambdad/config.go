package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/datadir"
	"github.com/lambdad/lambdad/logstore"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/tracing"
)

// Config holds every setting of a server. Each is a flag of `lambdad serve` and,
// under the same name, a key of the TOML file given by --config; a flag beats the
// file. The zero value of a field means its default. What AWS fixes is a constant
// elsewhere, not a setting.
type Config struct {
	Listen      string   `toml:"listen"`       // address of the AWS endpoint
	DataDir     string   `toml:"data-dir"`     // everything that is kept
	Auth        string   `toml:"auth"`         // verify, any
	Region      string   `toml:"region"`       // shown and used where a request names none
	Isolation   string   `toml:"isolation"`    // auto, root, rootless, plain
	Egress      string   `toml:"egress"`       // off, internet, all
	LogLevel    string   `toml:"log-level"`    // debug, info, warn, error
	IdleTimeout duration `toml:"idle-timeout"` // unused environments are shut down after it
	FreezeDelay duration `toml:"freeze-delay"` // between the end of an invocation and the freeze
	WaitLimit   duration `toml:"wait-limit"`   // how long a request waits for memory before 429
	DrainLimit  duration `toml:"drain-limit"`  // how long a stop waits for invocations in flight
	Starts      int      `toml:"starts"`       // environments initialising at once
	Pool        int      `toml:"pool"`         // sandboxes made ahead of need; -1: as many as were missing of late
	Memory      int      `toml:"memory"`       // MiB all environments may hold together
	DiskReserve int      `toml:"disk-reserve"` // MiB of disk that are left free
	LogLimit    int      `toml:"log-limit"`    // MiB the logs of functions may take

	OTLPEndpoint     string   `toml:"otlp-endpoint"`     // URL that spans of invocations go to; "" for none
	MetricsRetention duration `toml:"metrics-retention"` // how long metrics are kept
	MetricsSize      int      `toml:"metrics-size"`      // MiB they may take on disk

	LayerPullThrough string `toml:"layer-pull-through"` // off, aws, or the URL of a Lambda API

	FunctionEgress functionEgress `toml:"function-egress"` // a narrower egress for single functions, by name

	settled // by settle, not by anybody's file or flag
}

// functionEgress is what single functions reach, by their names. As a flag it is
// NAME=VALUE, repeated or separated by commas.
type functionEgress map[string]string

// String implements flag.Value.
func (e *functionEgress) String() string {
	var list []string
	for name, value := range *e {
		list = append(list, name+"="+value)
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// Set implements flag.Value.
func (e *functionEgress) Set(s string) error {
	if *e == nil {
		*e = functionEgress{}
	}
	for one := range strings.SplitSeq(s, ",") {
		name, value, ok := strings.Cut(one, "=")
		if !ok || name == "" {
			return fmt.Errorf("%q: it must be NAME=off, NAME=internet or NAME=all", one)
		}
		(*e)[name] = value
	}
	return nil
}

// egressOf is what a function reaches outside.
func (c *Config) egressOf(v *lambdad.Version) sandbox.Egress {
	return sandbox.Egress(c.FunctionEgress[v.Function]).Within(sandbox.Egress(c.Egress))
}

// duration is a time.Duration that a TOML file writes as "3s".
type duration struct{ time.Duration }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(text []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(text))
	return err
}

// layerEndpoint is the Lambda API that layers are pulled from; "": AWS's.
func (c *Config) layerEndpoint() string {
	if c.LayerPullThrough == "aws" {
		return ""
	}
	return c.LayerPullThrough
}

// defaults are the settings of a server that was told nothing.
func defaults() Config {
	return Config{
		Listen:      "127.0.0.1:4566",
		Auth:        "verify",
		Region:      "us-east-1",
		Isolation:   "auto",
		Egress:      string(sandbox.EgressAll),
		LogLevel:    "info",
		IdleTimeout: duration{5 * time.Minute},
		FreezeDelay: duration{2 * time.Millisecond},
		WaitLimit:   duration{10 * time.Second},
		DrainLimit:  duration{30 * time.Second},
		Starts:      2 * runtime.NumCPU(),
		Pool:        -1,
		DiskReserve: 1024,
		LogLimit:    4096,

		LayerPullThrough: "off",

		MetricsRetention: duration{15 * 24 * time.Hour},
		MetricsSize:      512,
	}
}

// flags binds c to a flag set; the texts are where each setting is documented.
func (c *Config) flags(fs *flag.FlagSet) {
	fs.StringVar(&c.Listen, "listen", c.Listen, "`address` of the AWS endpoint; port 0 takes a free one")
	fs.StringVar(&c.DataDir, "data-dir", c.DataDir, "`directory` for records, code and logs (default /var/lib/lambdad as root, else lambdad in the XDG state directory)")
	fs.StringVar(&c.Auth, "auth", c.Auth, "`mode`: verify checks signatures; any accepts every key, on loopback only")
	fs.StringVar(&c.Region, "region", c.Region, "`name` shown by env and used where a request names none")
	fs.StringVar(&c.Isolation, "isolation", c.Isolation, "`tier`: auto takes the strongest that works of root, rootless and plain; each of these insists")
	fs.StringVar(&c.Egress, "egress", c.Egress, egressUsage)
	fs.Var(&c.FunctionEgress, "function-egress", "`NAME=reach` narrows it for a function; repeat for more")
	fs.StringVar(&c.LogLevel, "log-level", c.LogLevel, "`level` of the server's own log: debug, info, warn or error")
	fs.DurationVar(&c.IdleTimeout.Duration, "idle-timeout", c.IdleTimeout.Duration, "`duration` after which an unused environment is shut down")
	fs.DurationVar(&c.FreezeDelay.Duration, "freeze-delay", c.FreezeDelay.Duration, "`duration` an idle environment stays unfrozen, at most 5ms; 0s freezes at once")
	fs.DurationVar(&c.WaitLimit.Duration, "wait-limit", c.WaitLimit.Duration, "`duration` a request waits for memory before it is throttled")
	fs.DurationVar(&c.DrainLimit.Duration, "drain-limit", c.DrainLimit.Duration, "`duration` a stop waits for invocations in flight")
	fs.StringVar(&c.LayerPullThrough, "layer-pull-through", c.LayerPullThrough, "`where` layers come from that a function names and that are not here: off, aws (with the server's own AWS credentials), or the URL of a Lambda API")
	fs.IntVar(&c.Starts, "starts", c.Starts, "`number` of environments initialising at once: two per core")
	fs.IntVar(&c.Pool, "pool", c.Pool, "`number` of sandboxes made ahead of need; 0 makes each when it is needed, -1 as many as were missing of late, from 2 to 16")
	fs.IntVar(&c.Memory, "memory", c.Memory, "`MiB` all environments may hold together; 0 leaves the host an eighth of its memory")
	fs.StringVar(&c.OTLPEndpoint, "otlp-endpoint", c.OTLPEndpoint, "`URL` of an OpenTelemetry collector (OTLP over HTTP) that the phases of invocations go to as spans")
	fs.DurationVar(&c.MetricsRetention.Duration, "metrics-retention", c.MetricsRetention.Duration, "`duration` metrics are kept")
	fs.IntVar(&c.MetricsSize, "metrics-size", c.MetricsSize, "`MiB` metrics may take on disk; the oldest go first")
	fs.IntVar(&c.DiskReserve, "disk-reserve", c.DiskReserve, "`MiB` of disk left free: below it creates and new environments are refused")
	fs.IntVar(&c.LogLimit, "log-limit", c.LogLimit, "`MiB` the logs of functions may take, at least 64: beyond it the oldest go first")
}

// egressUsage documents --egress, which three commands have.
const egressUsage = "`reach` of functions outside: off, internet (no private ranges) or all (whatever the host routes)"

// load reads the command line over the file over the defaults.
func load(fs *flag.FlagSet, args []string) (Config, error) {
	c := defaults()
	var file string
	fs.StringVar(&file, "config", "", "TOML `file` with these settings under the names of the flags")
	c.flags(fs)
	if _, err := parse(fs, args, 0, 0); err != nil {
		return c, err
	}
	if file != "" {
		given := map[string]string{}
		fs.Visit(func(f *flag.Flag) { given[f.Name] = f.Value.String() })
		md, err := toml.DecodeFile(file, &c)
		if err != nil {
			return c, fmt.Errorf("reading the configuration %s: %w", file, err)
		}
		if un := md.Undecoded(); len(un) > 0 {
			return c, fmt.Errorf("the configuration %s has a setting %q that does not exist; lambdad serve --help lists them", file, un[0].String())
		}
		for name, value := range given {
			if err := fs.Set(name, value); err != nil {
				return c, err
			}
		}
	}
	return c, c.check()
}

// check refuses values that cannot work, and completes those that depend on the
// host.
func (c *Config) check() error {
	oneOf := func(name, value string, legal ...string) error {
		for _, l := range legal {
			if value == l {
				return nil
			}
		}
		return fmt.Errorf("--%s %q: it must be one of %s", name, value, strings.Join(legal, ", "))
	}
	err := errors.Join(
		oneOf("auth", c.Auth, "verify", "any"),
		oneOf("isolation", c.Isolation, "auto", "root", "rootless", "plain"),
		oneOf("egress", c.Egress, "off", "internet", "all"),
		oneOf("log-level", c.LogLevel, "debug", "info", "warn", "error"),
	)
	for name, value := range c.FunctionEgress {
		if e := oneOf("function-egress", value, "off", "internet", "all"); e != nil {
			err = errors.Join(err, fmt.Errorf("%w (for function %s)", e, name))
		}
	}
	if p := c.LayerPullThrough; p != "off" && p != "aws" && !strings.HasPrefix(p, "http://") && !strings.HasPrefix(p, "https://") {
		err = errors.Join(err, fmt.Errorf("--layer-pull-through %q: it must be off, aws, or a URL", p))
	}
	if c.FreezeDelay.Duration < 0 || c.FreezeDelay.Duration > 5*time.Millisecond {
		err = errors.Join(err, fmt.Errorf("--freeze-delay %v: it must be from 0s to 5ms", c.FreezeDelay))
	}
	if c.IdleTimeout.Duration <= 0 {
		err = errors.Join(err, fmt.Errorf("--idle-timeout %v: it must be positive, such as 3s", c.IdleTimeout))
	}
	if c.Starts < 1 {
		err = errors.Join(err, fmt.Errorf("--starts %d: at least one environment must be able to start", c.Starts))
	}
	if c.Pool < -1 || c.Pool > 1000 {
		err = errors.Join(err, fmt.Errorf("--pool %d: it must be from 0 to 1000, or -1", c.Pool))
	}
	if c.OTLPEndpoint != "" {
		if e := tracing.CheckEndpoint(c.OTLPEndpoint); e != nil {
			err = errors.Join(err, fmt.Errorf("--otlp-endpoint %w", e))
		}
	}
	if c.MetricsRetention.Duration < time.Hour {
		err = errors.Join(err, fmt.Errorf("--metrics-retention %v: it must be at least an hour, such as 360h", c.MetricsRetention))
	}
	if c.MetricsSize < 16 {
		err = errors.Join(err, fmt.Errorf("--metrics-size %d: it must be at least 16", c.MetricsSize))
	}
	if int64(c.LogLimit)<<20 < logstore.MinLimit {
		err = errors.Join(err, fmt.Errorf("--log-limit %d: it must be at least %d", c.LogLimit, logstore.MinLimit>>20))
	}
	if c.Memory < 0 || c.DiskReserve < 0 {
		err = errors.Join(err, errors.New("--memory and --disk-reserve cannot be negative"))
	}
	if err != nil {
		return err
	}
	if c.DataDir == "" {
		c.DataDir = defaultDataDir()
	}
	c.DataDir, err = filepath.Abs(c.DataDir)
	return err
}

// defaultDataDir is datadir.Default as the default of a flag.
func defaultDataDir() string {
	dir, err := datadir.Default()
	if err != nil {
		return filepath.Join(os.TempDir(), fmt.Sprintf("lambdad-%d", os.Geteuid()))
	}
	return dir
}

// logger writes the server's own log.
func (c *Config) logger(std stdio) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.LogLevel)) // checked
	return slog.New(slog.NewTextHandler(std.err, &slog.HandlerOptions{Level: level}))
}
