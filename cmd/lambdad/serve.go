package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"go.opentelemetry.io/otel"
	"golang.org/x/sync/errgroup"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/bill"
	"github.com/lambdad/lambdad/blob/files"
	"github.com/lambdad/lambdad/datadir"
	"github.com/lambdad/lambdad/httpwire"
	"github.com/lambdad/lambdad/logstore"
	"github.com/lambdad/lambdad/metrics"
	"github.com/lambdad/lambdad/nats"
	"github.com/lambdad/lambdad/poller"
	cloudwatchservice "github.com/lambdad/lambdad/service/cloudwatch"
	logsservice "github.com/lambdad/lambdad/service/cloudwatchlogs"
	ecrservice "github.com/lambdad/lambdad/service/ecr"
	iamservice "github.com/lambdad/lambdad/service/iam"
	lambdaservice "github.com/lambdad/lambdad/service/lambda"
	s3service "github.com/lambdad/lambdad/service/s3"
	stsservice "github.com/lambdad/lambdad/service/sts"
	"github.com/lambdad/lambdad/telemetry"
	"github.com/lambdad/lambdad/tracing"
	"github.com/lambdad/lambdad/trail"
)

// account is every key's account until there are more.
const account = aws.DefaultAccount

// serveCommand serves until a signal: then it takes no more invocations, lets
// those in flight end, tells the extensions SHUTDOWN and leaves. A second signal
// ends at once.
func serveCommand(ctx context.Context, std stdio, args []string) error {
	cfg, err := load(newFlags(std, "serve"), args)
	if err != nil {
		return err
	}
	if runtime.GOOS != "linux" {
		return fmt.Errorf("serve needs Linux, this is %s: run lambdad in a Linux virtual machine and point clients here at it", runtime.GOOS)
	}
	if cfg.settled, err = settle(ctx, cfg.Isolation); err != nil {
		return err
	}
	takePrecedence()
	allowManyFiles()
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // from here on a signal has its usual effect: the end, at once
	}()
	return serve(ctx, std, cfg)
}

// serve is one life of a server: everything is built in the order it is needed,
// and undone in reverse. Where one part fails to start, those before it stop.
func serve(ctx context.Context, std stdio, cfg Config) (err error) {
	begin := time.Now()
	log := cfg.logger(std)
	var undo undos
	defer func() { err = errors.Join(err, undo.run()) }()

	dir, err := datadir.Open(cfg.DataDir, log)
	if err != nil {
		return err
	}
	undo.push(dir.Close)
	listener, err := listen(cfg)
	if err != nil {
		return err
	}
	undo.push(func() error { return ignoreClosed(listener.Close()) })
	blobs, err := files.Open(files.Config{Dir: dir.Blobs(), Reserve: int64(cfg.DiskReserve) << 20, Logger: log})
	if err != nil {
		return err
	}
	objects, err := files.Open(files.Config{Dir: dir.Objects(), Reserve: int64(cfg.DiskReserve) << 20, Logger: log})
	if err != nil {
		return err
	}
	engine, err := nats.Open(ctx, nats.Config{Dir: dir.Records(), Reserve: int64(cfg.DiskReserve) << 20, Logger: log})
	if err != nil {
		return err
	}
	undo.push(engine.Close)
	measures, err := metrics.Open(metrics.Config{
		Dir: dir.Metrics(), Retention: cfg.MetricsRetention.Duration, MaxBytes: int64(cfg.MetricsSize) << 20, Logger: log,
	})
	if err != nil {
		return err
	}
	undo.push(measures.Close)
	recorder := metrics.NewExporter(measures)
	var spans *tracing.Exporter
	if cfg.OTLPEndpoint != "" {
		if spans, err = tracing.New(ctx, cfg.OTLPEndpoint, version); err != nil {
			return err
		}
		otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("spans could not be sent", "endpoint", cfg.OTLPEndpoint, "err", err) }))
		undo.push(func() error { return endTraces(ctx, spans, log) })
	}
	auth, err := aws.ParseAuthMode(cfg.Auth)
	if err != nil {
		return err
	}
	identities, err := iamservice.NewRegistry(ctx, engine.Store())
	if err != nil {
		return err
	}
	var directory aws.Directory = identities
	if auth == aws.Any {
		directory = identities.Lenient()
	}
	keys, err := aws.OpenKeyStore(dir.Path(), directory)
	if err != nil {
		return err
	}
	audit, err := trail.Open(trail.Config{Dir: dir.Audit(), Logger: log})
	if err != nil {
		return err
	}
	reserve := func() error { return diskReserve(dir, int64(cfg.DiskReserve)<<20) }
	images, err := openImages(dir, cfg, reserve, log)
	if err != nil {
		return err
	}
	logs, err := logstore.Open(logstore.Config{
		Dir: dir.Logs(), Limit: int64(cfg.LogLimit) << 20, Logger: log,
		// The engine cannot go on where a write fails half-way.
		Reserve: func() error { return diskReserve(dir, int64(max(cfg.DiskReserve, 64))<<20) },
		// Whoever reads a REPORT finds the metrics of its invocation.
		Before: measures.Flush,
	})
	if err != nil {
		return err
	}
	undo.push(logs.Close)

	// Background work ends when stop is called, after the drain.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, background := errgroup.WithContext(background)

	// What is below knows of those above only through these two, which are set
	// before anything runs.
	var n *node
	var lives lives
	ledger := bill.New(bill.Config{Store: engine.Store(), Logger: log})
	var mux *aws.Mux
	registry, err := lambdaservice.NewRegistry(background, lambdaservice.RegistryConfig{
		Store:    engine.Store(),
		OnChange: func(account, region, function, keep string) { n.worker.Retire(account, region, function, keep) },
		OnVersionGone: func(account, region, function, generation string) {
			n.worker.RetireVersion(account, region, function, generation)
		},
		Logger: log,
	})
	if err != nil {
		return err
	}
	if err := identities.Begin(ctx, account, registry.Roles(account)); err != nil {
		return err
	}
	readers := []sinks{lives.sinks, ledger.Sinks, measured(recorder, measures)}
	if spans != nil {
		readers = append(readers, traced(spans))
	}
	n, err = newNode(ctx, nodeConfig{
		Config: cfg, HostID: dir.ID(), Blobs: blobs, Images: images, Versions: registry, Logs: logs,
		Paths:       paths{code: dir.Code(), run: dir.Run(), runtimes: dir.Runtimes()},
		Credentials: keys.Mint,
		Endpoint:    func(environment string) http.Handler { return mux.Sandbox(environment) },
		Reserve:     reserve,
		Events:      engine.Queue(),
		Sinks:       readers,
		Metrics:     recorder,
		Log:         log,
	})
	if err != nil {
		return err
	}
	undo.push(n.close)
	s3API, err := s3service.New(ctx, s3service.Config{Store: engine.Store(), Blobs: objects, Logger: log})
	if err != nil {
		return err
	}
	ecrAPI, err := ecrservice.New(ctx, ecrservice.Config{Store: engine.Store(), Images: images, Logger: log})
	if err != nil {
		return err
	}
	undo.push(func() error { ecrAPI.Close(); return nil })
	finder := &imageFinder{images, ecrAPI, cfg.Region, advertised(listener.Addr())}
	var functionImages lambdaservice.Images // nil where an image cannot be a root
	if n.driver.Tier() != "plain" {
		functionImages = finder
	}
	var lambdaAPI *lambdaservice.Service
	var pull func(context.Context, string) (*lambdaservice.ImportedLayer, error) // nil: unknown layers are refused
	if cfg.LayerPullThrough != "off" {
		pull = func(ctx context.Context, arn string) (*lambdaservice.ImportedLayer, error) {
			return pullLayer(ctx, lambdaAPI, cfg.layerEndpoint(), arn)
		}
	}
	lambdaAPI = lambdaservice.New(lambdaservice.Config{
		Registry: registry, Frontend: n.frontend, Placer: n.placer, Blobs: blobs, Archives: n.archives, Images: functionImages, PullLayer: pull,
		Objects: s3API, Scratch: dir.Run(),
		RuntimeNames: n.runtimes.Names(),
		ResolveRuntime: func(ctx context.Context, name string) (string, error) {
			r, err := n.runtimes.Resolve(ctx, name)
			if err != nil {
				return "", err
			}
			return r.VersionID, nil
		},
		Roles: directory, Reserve: reserve, Concurrency: concurrencyLimit, Logger: log,
	})

	var draining atomic.Bool
	logsAPI := logsservice.New(logsservice.Config{Store: logs, Line: measures.Line, Done: ctx.Done()})
	mux = aws.NewMux(keys, aws.Options{
		Auth: auth, Region: cfg.Region, Logger: log, Version: version, Access: audit.Record,
		Ready: func() error {
			if draining.Load() {
				return errors.New("stopping")
			}
			return nil
		},
	}, lambdaAPI, cloudwatchservice.New(measures, nil), ecrAPI, s3API, iamservice.New(iamservice.Config{Registry: identities, Logger: log}),
		stsservice.New(stsservice.Config{Keys: keys, Roles: directory, Policy: identities.Document}), logsAPI)
	server := httpwire.NewServer(&http.Server{
		Handler:           withOperatorsPage(mux, operatorsPage(n, recorder, measures)),
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}, lambdaservice.IsLambda)

	group.Go(func() error { return audit.Run(background) })
	group.Go(func() error { return registry.Run(background) })
	group.Go(func() error { return lambdaAPI.Run(background) })
	group.Go(func() error { return collectImages(background, images, registry, ecrAPI, n.runtimes, log) })
	// No event is begun after a drain has.
	polling, stopPolling := context.WithCancel(background)
	defer stopPolling()
	events := poller.New(poller.Config{Queue: engine.Queue(), Frontend: n.frontend, Concurrency: concurrencyLimit, Metrics: recorder, Logger: log})
	group.Go(func() error { return events.Run(polling) })
	group.Go(func() error { return ledger.Run(background) })
	group.Go(func() error { return measures.Run(background) })
	group.Go(func() error {
		return serveControl(background, dir.Path(), controlAnswers{
			"/environments":  answerJSON(func() []row { return rows(n.worker.Environments()) }),
			"/capacity":      answerJSON(n.worker.Capacity),
			"/phases":        answerJSON(lives.all),
			"POST /layers":   serveLayers(lambdaAPI),
			"POST /runtimes": serveRuntimes(n.runtimes, images, finder),
			"/bill":          serveBill(ledger, account, cfg.Region),
			"/iam/explain": explainPolicies(identities, map[string]aws.PolicyKeeper{
				"lambda": lambdaAPI, "ecr": ecrAPI, "s3": s3API,
			}),
			"/explain": explainer(func(ctx context.Context, function, qualifier string) (lambdad.Target, error) {
				return registry.Resolve(ctx, account, cfg.Region, function, qualifier)
			}, n.worker.Explain),
		})
	})
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving %s: %w", listener.Addr(), err)
		}
		return nil
	})

	endpoint := "http://" + advertised(listener.Addr())
	if err := dir.Announce(datadir.Server{
		Endpoint: endpoint, Region: cfg.Region, Account: account, Tier: n.driver.Tier(), Version: version,
	}); err != nil {
		stop()
		return errors.Join(err, server.Close(), group.Wait())
	}
	banner(std.out, cfg, endpoint, n)
	fmt.Fprintf(std.out, "ready in %d ms\n", time.Since(begin).Milliseconds())
	// Reading the records leaves garbage, with many functions as much as is kept.
	group.Go(func() error {
		debug.FreeOSMemory()
		return giveBack(background, n.worker.Stats)
	})

	select {
	case <-ctx.Done():
		log.Info("stopping: invocations in flight may end, a second signal ends at once")
	case <-background.Done(): // a part failed; Wait says which
	}
	draining.Store(true)
	stopPolling()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.DrainLimit.Duration)
	defer cancel()
	err = n.drain(drain)
	if errors.Is(err, context.DeadlineExceeded) {
		log.Warn("some invocations did not end within the drain limit and were ended", "limit", cfg.DrainLimit.Duration)
		err = nil
	}
	answers, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if server.Shutdown(answers) != nil {
		_ = server.Close() // clients that keep a request open
	}
	stop()
	return errors.Join(err, group.Wait())
}

// measured gives environments the sinks that make metrics of their reports and of
// the lines they write.
func measured(reports metrics.Recorder, lines *metrics.Store) sinks {
	return func(v *lambdad.Version, _ string) []telemetry.Sink {
		return []telemetry.Sink{metrics.NewReports(reports, v), metrics.NewEmbedded(lines, v)}
	}
}

// traced gives environments the sink that makes spans of their phases.
func traced(to *tracing.Exporter) sinks {
	return func(v *lambdad.Version, environment string) []telemetry.Sink {
		return []telemetry.Sink{to.Sink(v, environment)}
	}
}

// endTraces sends the last spans. A collector that is not there is no reason to end
// with a failure.
func endTraces(ctx context.Context, spans *tracing.Exporter, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if err := spans.Close(ctx); err != nil {
		log.Warn("the last spans could not be sent", "err", err)
	}
	return nil
}

// listen opens the endpoint. --auth=any is refused where others could reach it.
func listen(cfg Config) (*net.TCPListener, error) {
	host, _, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("--listen %q: it must be host:port, such as 127.0.0.1:4566: %w", cfg.Listen, err)
	}
	if cfg.Auth == "any" {
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, fmt.Errorf("--auth any accepts every key, so it needs a loopback address; --listen is %s", cfg.Listen)
		}
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s is taken, perhaps by another server: stop it, or choose another --listen (port 0 takes a free one)", cfg.Listen)
	}
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// advertised is how clients on this machine reach a listener.
func advertised(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// banner says what runs and what to paste.
func banner(w io.Writer, cfg Config, endpoint string, n *node) {
	self := "lambdad env"
	if cfg.DataDir != defaultDataDir() {
		self += " --data-dir " + cfg.DataDir
	}
	fmt.Fprintf(w, `lambdad %s

endpoint   %s
region     %s
account    %s
isolation  %s
data       %s

Paste into a shell to point AWS clients here:

  eval "$(%s)"

`, versionText(), endpoint, cfg.Region, account, tierText(n.driver), cfg.DataDir, self)
}

// diskReserve refuses when the disk has less than the reserve left.
func diskReserve(dir *datadir.Dir, reserve int64) error {
	free, err := dir.FreeBytes()
	if err != nil {
		return fmt.Errorf("asking for the free space of %s: %w", dir.Path(), err)
	}
	if free < reserve {
		return lambdad.Errorf("ServiceException", "the disk of %s has %d MiB left, less than the reserve of %d MiB: free some, or start with a smaller --disk-reserve",
			filepath.Clean(dir.Path()), free>>20, reserve>>20)
	}
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// undos are steps that are undone in reverse.
type undos []func() error

func (u *undos) push(f func() error) { *u = append(*u, f) }

func (u undos) run() (err error) {
	for i := len(u) - 1; i >= 0; i-- {
		err = errors.Join(err, u[i]())
	}
	return err
}
