package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"golang.org/x/sync/errgroup"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/archive"
	"github.com/lambdad/lambdad/blob"
	"github.com/lambdad/lambdad/frontend"
	"github.com/lambdad/lambdad/image"
	"github.com/lambdad/lambdad/logstore"
	"github.com/lambdad/lambdad/metrics"
	"github.com/lambdad/lambdad/placement"
	"github.com/lambdad/lambdad/queue"
	"github.com/lambdad/lambdad/runtimes"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/telemetry"
	"github.com/lambdad/lambdad/worker"
)

// concurrencyLimit is the account's concurrency (control-plane.md section 4.7).
const concurrencyLimit = 1000

// paths are the directories a node keeps files in; all can be made again.
type paths struct{ code, run, runtimes string }

// nodeConfig is what a node is made of. serve and run differ in nothing else.
type nodeConfig struct {
	Config
	HostID   string // names everything made on the host
	Blobs    blob.Store
	Images   *image.Store // nil: functions and runtimes that are images do not run
	Versions frontend.Versions
	Paths    paths
	// Credentials makes those of an environment; nil gives them none.
	Credentials func(v *lambdad.Version, environment string) (mint func(party string) lambdad.Credentials, revoke func())
	// Endpoint answers AWS requests from inside an environment; nil has none.
	Endpoint func(environment string) http.Handler
	// Reserve says why no environment may be made now, such as a full disk.
	Reserve func() error
	// Events queues asynchronous invocations; nil: there are none.
	Events queue.Queue
	// Metrics gets what is measured of throttles, concurrency and events; nil: nobody
	// does.
	Metrics metrics.Recorder
	// Sinks give each environment readers of its telemetry beside the log.
	Sinks []sinks
	// Logs keeps the logs of functions; nil: nobody does.
	Logs *logstore.Store
	// LogCopy also gets every log line.
	LogCopy io.Writer
	Log     *slog.Logger
}

// sinks makes readers of a new environment's telemetry.
type sinks func(v *lambdad.Version, environment string) []telemetry.Sink

func (c *nodeConfig) sinks(v *lambdad.Version, environment string) (all []telemetry.Sink) {
	for _, s := range c.Sinks {
		all = append(all, s(v, environment)...)
	}
	return all
}

// node is everything below the API on one machine: sandboxes, environments,
// placement and the front end every invocation enters by.
type node struct {
	driver   sandbox.Driver
	archives *archive.Cache
	runtimes *runtimes.Set
	worker   *worker.Local
	placer   *placement.Placer
	frontend *frontend.Frontend

	stop  context.CancelFunc
	group *errgroup.Group
}

// newNode wires a node and starts its background work. What a dead process with
// the same host id left is swept first.
func newNode(ctx context.Context, c nodeConfig) (*node, error) {
	driver, err := newDriver(ctx, c.Config, c.HostID, c.Paths.run, int64(c.DiskReserve)<<20, c.Log)
	if err != nil {
		return nil, err
	}
	if driver.Tier() == "plain" && len(c.FunctionEgress) > 0 {
		return nil, errors.Join(errors.New("--function-egress needs isolation tier root, which plain processes are not: they have the host's own network"), driver.Close())
	}
	if err := driver.Sweep(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("sweeping what an earlier server left: %w", err), driver.Close())
	}
	n := &node{
		driver:   driver,
		archives: archive.NewCache(c.Paths.code, c.Blobs),
		runtimes: runtimes.New(c.Paths.runtimes, c.Log),
	}
	n.worker = worker.NewLocal(worker.Config{
		Driver:       driver,
		Archives:     n.archives,
		Images:       workerImages(c.Images),
		Runtimes:     n.runtimes,
		Log:          c.log(),
		LogCopy:      c.LogCopy,
		Sinks:        c.sinks,
		IdleTimeout:  c.IdleTimeout.Duration,
		FreezeDelay:  c.FreezeDelay.Duration,
		WaitLimit:    c.WaitLimit.Duration,
		Starts:       c.Starts,
		MemoryBudget: int64(c.Memory) << 20,
		Credentials:  c.Credentials,
		Endpoint:     c.Endpoint,
		Reserve:      c.Reserve,
		Egress:       c.egressOf,
		Logger:       c.Log,
	})
	n.placer = placement.New(n.worker, concurrencyLimit)
	n.frontend = frontend.New(frontend.Config{Versions: c.Versions, Placer: n.placer, Events: c.Events, Metrics: c.Metrics})
	// Background work outlives the caller: close ends it.
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	n.stop = stop
	n.group, run = errgroup.WithContext(run)
	n.group.Go(func() error { return n.worker.Run(run) })
	if c.Metrics != nil {
		n.group.Go(func() error { return n.placer.Run(run, c.Metrics) })
	}
	return n, nil
}

// drain lets invocations in flight end and shuts every environment down.
func (n *node) drain(ctx context.Context) error { return n.worker.Drain(ctx) }

// close ends background work and gives the host back what the driver holds. All
// environments must be gone.
func (n *node) close() error {
	n.stop()
	return errors.Join(n.group.Wait(), n.driver.Close())
}

// log gives the sinks of log streams; nil without a log store.
func (c *nodeConfig) log() func(*lambdad.Version, string, telemetry.Format) telemetry.Sink {
	if c.Logs == nil {
		return nil
	}
	return func(v *lambdad.Version, stream string, format telemetry.Format) telemetry.Sink {
		return c.Logs.Sink(logstore.GroupName{Account: v.Account, Region: v.Region, Name: v.LogGroup()}, stream, format)
	}
}
