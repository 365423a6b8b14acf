//go:build !linux || !(amd64 || arm64)

package namespace

import (
	"context"
	"errors"
	"log/slog"

	"github.com/lambdad/lambdad/sandbox"
)

// Config is what a Driver is made of; see the Linux version.
type Config struct {
	ID          string
	Dir         string
	DiskReserve int64
	Egress      sandbox.Egress
	Pool        int
	Logger      *slog.Logger
}

// A Driver makes sandboxes of the root tier; there is none here.
type Driver struct{ sandbox.Driver }

// New says that this system has no namespaces.
func New(context.Context, Config) (*Driver, error) {
	return nil, errors.New("namespace driver: needs Linux on amd64 or arm64: run lambdad in a Linux machine, or use the process driver")
}
