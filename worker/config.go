package worker

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/runtimes"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/telemetry"
)

// Config is what a worker is made of. Driver, Archives and Runtimes are needed;
// the rest has defaults.
type Config struct {
	// Driver makes the sandboxes. With tier "plain" a function has one
	// environment at a time and its requests queue.
	Driver sandbox.Driver
	// Archives gives unpacked code and layers: *archive.Cache.
	Archives Archives
	// Images gives unpacked container images: *image.Store; nil: none runs here.
	Images Images
	// Runtimes knows what a runtime identifier needs: *runtimes.Set.
	Runtimes Runtimes

	// Log gives the sink of a log stream; nil: logs go nowhere.
	Log func(v *lambdad.Version, stream string, format telemetry.Format) telemetry.Sink
	// LogCopy also gets every log line, from one goroutine for each environment
	// and one at a time; nil: nobody does.
	LogCopy io.Writer
	// Sinks gives an environment further readers of its telemetry; nil: none.
	Sinks func(v *lambdad.Version, environmentID string) []telemetry.Sink

	// IdleTimeout retires an environment that was idle so long; 0: 5 minutes.
	IdleTimeout time.Duration
	// FreezeDelay is how long an idle environment runs on before it is frozen;
	// negative: it is never frozen.
	FreezeDelay time.Duration
	// WaitLimit is how long a request waits for memory before it is throttled;
	// 0: 10 seconds.
	WaitLimit time.Duration
	// Starts is how many environments start at once; 0: two for each core.
	Starts int
	// MemoryBudget bounds the memory of all environments, in bytes; 0: what the
	// host has available, less HostReserve.
	MemoryBudget int64
	// HostReserve is the memory in bytes that is left to the host without a
	// MemoryBudget; 0: a tenth of it, at most 2 GiB.
	HostReserve int64

	// Credentials returns what makes those of one environment, and how to revoke
	// them; nil: environments have none.
	Credentials func(v *lambdad.Version, environmentID string) (mint func(party string) lambdad.Credentials, revoke func())
	// MaxAge retires an environment that is so old when it becomes idle, so that
	// none outlives its credentials; 0: 11 hours.
	MaxAge time.Duration
	// Endpoint answers AWS requests from inside an environment; nil: none does.
	Endpoint func(environmentID string) http.Handler
	// Egress says what the environments of a version reach outside, within what
	// the driver allows; nil: all of that.
	Egress func(v *lambdad.Version) sandbox.Egress
	// Reserve says why no environment may be made now, such as a full disk; nil:
	// always.
	Reserve func() error

	// Logger hears of what nobody is told otherwise; nil: nobody.
	Logger *slog.Logger
}

// Archives gives the unpacked copy of an archive; release allows to remove it.
type Archives interface {
	Open(ctx context.Context, digest string) (path string, release func(), err error)
}

// Images gives the unpacked layers of an image, the lowest first; release allows to
// remove them.
type Images interface {
	Open(ctx context.Context, img *lambdad.Image) (dirs []string, release func(), err error)
}

// Runtimes says what a runtime identifier needs on this host.
type Runtimes interface {
	Resolve(ctx context.Context, name string) (*runtimes.Runtime, error)
}
