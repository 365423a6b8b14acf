//go:build !linux || !(amd64 || arm64)

package namespace

import (
	"context"
	"errors"
	"fmt"
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
	Rootless    bool
	Logger      *slog.Logger
}

var errLinux = errors.New("needs Linux on amd64 or arm64: run lambdad in a Linux machine, or use plain processes")

// Probe says that this system has no namespaces.
func Probe() error { return errLinux }

// Try says that this system has no namespaces.
func Try(context.Context) error { return errLinux }

// Reexec says that this system has no namespaces.
func Reexec(string) error { return errLinux }

// Rootless is false.
func Rootless() (string, bool) { return "", false }

// RootlessCure says where there are namespaces.
func RootlessCure(error) string { return "run lambdad on Linux" }

// RootCure says where there are namespaces.
func RootCure() string { return "run lambdad on Linux" }

// ServeTrial does nothing.
func ServeTrial() {}

// A Driver makes sandboxes of the root tier; there is none here.
type Driver struct{ sandbox.Driver }

// New says that this system has no namespaces.
func New(context.Context, Config) (*Driver, error) {
	return nil, fmt.Errorf("namespace driver: %w", errLinux)
}
