package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/archive"
	"github.com/lambdad/lambdad/blob"
	"github.com/lambdad/lambdad/mem"
	"github.com/lambdad/lambdad/sandbox"
)

// runOptions are the flags of lambdad run.
type runOptions struct {
	layers    list
	env       list
	event     string
	handler   string
	runtime   string
	name      string
	isolation string
	egress    string
	logLevel  string
	memory    int
	timeout   time.Duration
	phases    bool

	settled
}

// list is a flag that may be repeated.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// runCommand runs one event through a function directory: the wiring of serve on
// the in-memory engine, without a server and without the data directory.
func runCommand(ctx context.Context, std stdio, args []string) error {
	var o runOptions
	fs := newFlags(std, "run")
	fs.Var(&o.layers, "layer", "`path` of a layer directory or zip; repeat for more, a later one covers an earlier one")
	fs.Var(&o.env, "env", "`KEY=VALUE` for the function and its extensions; repeat for more")
	fs.StringVar(&o.event, "event", "", "`file` with the event, or - for standard input; EVENT gives it on the command line (default {})")
	fs.StringVar(&o.handler, "handler", "", "`handler` (default lambda_function.lambda_handler; bootstrap for provided runtimes)")
	fs.StringVar(&o.runtime, "runtime", "", "`identifier` such as python3.13 (default: provided.al2023 where the directory or a layer has a bootstrap, else the host's python3)")
	fs.StringVar(&o.name, "name", "", "`name` of the function (default: that of the directory)")
	fs.StringVar(&o.isolation, "isolation", "auto", "`tier`: auto, root, rootless or plain")
	fs.StringVar(&o.egress, "egress", string(sandbox.EgressAll), egressUsage)
	fs.StringVar(&o.logLevel, "log-level", "warn", "`level` of lambdad's own log: debug, info, warn or error")
	fs.IntVar(&o.memory, "memory", 128, "`MB` of memory")
	fs.DurationVar(&o.timeout, "timeout", 3*time.Second, "`duration` the function may take, in whole seconds")
	fs.BoolVar(&o.phases, "phases", false, "draw the phases of the environment on standard error")
	rest, err := parse(fs, args, 1, 2)
	if err != nil {
		return err
	}
	if err := o.check(fs); err != nil {
		return err
	}
	// Before the event is read: it may begin again.
	if o.settled, err = settle(ctx, o.isolation); err != nil {
		return err
	}
	event, err := o.readEvent(std, rest)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	return runOnce(ctx, std, o, rest[0], event)
}

func (o *runOptions) check(fs *flag.FlagSet) error {
	bad := func(format string, args ...any) error {
		fmt.Fprintf(fs.Output(), "lambdad run: "+format+"\n", args...)
		return errUsage
	}
	if o.memory < 128 || o.memory > 10240 {
		return bad("--memory %d: it must be from 128 to 10240", o.memory)
	}
	if o.timeout < time.Second || o.timeout > 900*time.Second || o.timeout%time.Second != 0 {
		return bad("--timeout %v: it must be from 1s to 900s, in whole seconds", o.timeout)
	}
	if len(o.layers) > lambdad.MaxLayers {
		return bad("%d layers: a function has at most %d", len(o.layers), lambdad.MaxLayers)
	}
	for _, kv := range o.env {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" {
			return bad("--env %q: it must be KEY=VALUE", kv)
		}
	}
	return nil
}

// readEvent takes the event from the argument, a file or standard input.
func (o *runOptions) readEvent(std stdio, rest []string) ([]byte, error) {
	switch {
	case len(rest) == 2 && o.event != "":
		return nil, errors.New("the event is given twice, as --event and as an argument")
	case len(rest) == 2 && rest[1] == "-", o.event == "-":
		return io.ReadAll(io.LimitReader(std.in, lambdad.MaxRequestPayload+1))
	case len(rest) == 2:
		return []byte(rest[1]), nil
	case o.event != "":
		return os.ReadFile(o.event)
	}
	return []byte("{}"), nil
}

// runOnce builds a node in a temporary directory, runs the event and shuts the
// environment down. The answer goes to standard output, the log to standard
// error.
func runOnce(ctx context.Context, std stdio, o runOptions, dir string, event []byte) (err error) {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("the function directory: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("the function directory: %s is not a directory", dir)
	}
	scratch, err := scratchDir("lambdad-run-")
	if err != nil {
		return fmt.Errorf("making a scratch directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()

	cfg := defaults()
	cfg.Isolation, cfg.Egress, cfg.LogLevel = o.isolation, o.egress, o.logLevel
	cfg.DataDir = scratch
	cfg.settled = o.settled
	cfg.DiskReserve = 0
	if err := cfg.check(); err != nil {
		return err
	}
	log := cfg.logger(std)

	blobs := mem.NewBlobs()
	version, err := o.version(ctx, std, blobs, dir)
	if err != nil {
		return err
	}
	id := strings.ReplaceAll(uuid.NewString(), "-", "")[:8]
	var lives lives
	n, err := newNode(ctx, nodeConfig{
		Config:   cfg,
		Sinks:    []sinks{lives.sinks},
		HostID:   id,
		Blobs:    blobs,
		Versions: oneVersion{version},
		Paths: paths{
			code: filepath.Join(scratch, "code"), run: filepath.Join(scratch, "run"), runtimes: filepath.Join(scratch, "runtimes"),
		},
		LogCopy: std.err,
		Log:     log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()

	runtimeName := version.Runtime
	fmt.Fprintf(std.err, "lambdad: %s, runtime %s, isolation %s\n", version.Function, runtimeName, tierText(n.driver))
	resp, err := n.frontend.Invoke(ctx, &lambdad.Invocation{
		Account: version.Account, Region: version.Region, Function: version.Function,
		RequestID:   uuid.NewString(),
		InvokedARN:  version.ARN(),
		Payload:     event,
		ContentType: "application/json",
	})
	drained, cancel := context.WithTimeout(context.WithoutCancel(ctx), version.Timeout+5*time.Second)
	defer cancel()
	if derr := n.drain(drained); derr != nil {
		log.Warn("shutting down", "error", derr)
	}
	if o.phases {
		for _, p := range lives.all() {
			p.draw(std.err)
		}
	}
	if err != nil {
		return err
	}
	if _, werr := std.out.Write(append(bytes.TrimRight(resp.Payload, "\n"), '\n')); werr != nil {
		return werr
	}
	if resp.FunctionError != "" {
		return errFailed
	}
	return nil
}

// version makes the snapshot that serve would make of the same directory.
func (o *runOptions) version(ctx context.Context, std stdio, blobs blob.Store, dir string) (*lambdad.Version, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	name := o.name
	if name == "" {
		name = functionName(filepath.Base(abs))
	}
	arch := map[string]string{"amd64": "x86_64", "arm64": "arm64"}[runtime.GOARCH]
	v := &lambdad.Version{
		Account: "000000000000", Region: "us-east-1", Function: name, Number: "$LATEST", Generation: "run",
		Role:         "arn:aws:iam::000000000000:role/run",
		Architecture: arch, MemoryMB: o.memory, Timeout: o.timeout, EphemeralMB: 512,
		Env:     map[string]string{},
		Logging: lambdad.Logging{Format: "Text", Group: "/aws/lambda/" + name},
		Tracing: "PassThrough",
	}
	for _, kv := range o.env {
		k, val, _ := strings.Cut(kv, "=")
		v.Env[k] = val
	}
	code, _, err := put(ctx, blobs, abs)
	if err != nil {
		return nil, fmt.Errorf("packing %s: %w", dir, err)
	}
	v.Code = code
	total := code.Unzipped
	bootstrap := exists(filepath.Join(abs, "bootstrap"))
	for i, path := range o.layers {
		layer, file, err := put(ctx, blobs, path)
		if err != nil {
			return nil, fmt.Errorf("packing the layer %s: %w", path, err)
		}
		layer.ARN = lambdad.LayerARN(v.Account, v.Region, functionName(strings.TrimSuffix(filepath.Base(path), ".zip")), strconv.Itoa(i+1))
		checked, err := archive.InspectLayer(bytes.NewReader(file), int64(len(file)), []string{arch})
		if err != nil {
			return nil, fmt.Errorf("the layer %s: %w", path, err)
		}
		for _, w := range checked.Warnings {
			fmt.Fprintf(std.err, "lambdad: layer %s: %s\n", path, w)
		}
		total += layer.Unzipped
		v.Layers = append(v.Layers, layer)
		bootstrap = bootstrap || exists(filepath.Join(path, "bootstrap"))
	}
	if total > lambdad.MaxUnzipped {
		return nil, fmt.Errorf("function and layers are %d bytes unzipped, over the limit of %d", total, lambdad.MaxUnzipped)
	}
	v.Runtime = o.runtime
	if v.Runtime == "" {
		v.Runtime = "python3.13"
		if bootstrap {
			v.Runtime = "provided.al2023"
		} else if minor := hostPython(ctx); minor != "" {
			v.Runtime = minor
		}
	}
	v.Handler = o.handler
	if v.Handler == "" {
		v.Handler = "lambda_function.lambda_handler"
		if lambdad.RuntimeFamily(v.Runtime) == "provided" {
			v.Handler = "bootstrap"
		}
	}
	return v, nil
}

// put stores a directory or a zip and returns it as an archive with its bytes.
func put(ctx context.Context, blobs blob.Store, path string) (lambdad.Archive, []byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return lambdad.Archive{}, nil, err
	}
	var file []byte
	if info.IsDir() {
		var buf bytes.Buffer
		if err := archive.FromDir(ctx, path, &buf); err != nil {
			return lambdad.Archive{}, nil, err
		}
		file = buf.Bytes()
	} else if file, err = os.ReadFile(path); err != nil {
		return lambdad.Archive{}, nil, err
	}
	checked, err := archive.Inspect(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		return lambdad.Archive{}, nil, err
	}
	digest, size, err := blobs.Put(ctx, bytes.NewReader(file))
	if err != nil {
		return lambdad.Archive{}, nil, err
	}
	return lambdad.Archive{Digest: digest, Size: size, Unzipped: checked.Unzipped}, file, nil
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// functionName makes a legal function name of any text.
func functionName(s string) string {
	out := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		}
		return '-'
	}, s)
	out = strings.Trim(out, "-")
	if len(out) > 64 {
		out = out[:64]
	}
	if out == "" {
		return "function"
	}
	return out
}

// oneVersion is the whole registry of lambdad run.
type oneVersion struct{ v *lambdad.Version }

// Resolve implements frontend.Versions.
func (o oneVersion) Resolve(context.Context, string, string, string, string) (lambdad.Target, error) {
	return lambdad.Target{Version: o.v}, nil
}
