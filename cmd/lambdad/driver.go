package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/namespace"
	"github.com/lambdad/lambdad/sandbox/process"
)

// newDriver chooses the tier by trying it, never from the user id. "auto" takes
// the strongest that works here; a named tier is that one or an error. What
// sandboxes write lies in dir and leaves reserve bytes of its disk free. A tier that
// cannot keep a narrower egress than everything is not taken silently for one.
func newDriver(ctx context.Context, isolation, id, dir string, reserve int64, egress sandbox.Egress, log *slog.Logger) (sandbox.Driver, error) {
	if isolation != "plain" {
		d, err := namespace.New(ctx, namespace.Config{ID: id, Dir: dir, DiskReserve: reserve, Egress: egress, Logger: log})
		if err == nil {
			return d, nil
		}
		if isolation != "auto" {
			return nil, fmt.Errorf("isolation tier %s does not work here: %w", isolation, err)
		}
		log.Warn("isolating with plain processes: the root tier does not work here", "why", err)
	}
	if egress != sandbox.EgressAll {
		return nil, fmt.Errorf("--egress %s needs isolation tier root, which plain processes are not: they have the host's own network (--egress all accepts that)", egress)
	}
	d, err := process.New(ctx, process.Config{ID: id, Dir: dir, Logger: log})
	if err != nil {
		return nil, errors.Join(errors.New("no isolation tier works on this host"), err)
	}
	return d, nil
}

// scratchDir makes a directory for one command. /var/tmp is on a disk, whatever
// /tmp is, which matters for what sandboxes write.
func scratchDir(pattern string) (string, error) {
	if os.Getenv("TMPDIR") == "" {
		if dir, err := os.MkdirTemp("/var/tmp", pattern); err == nil {
			return dir, nil
		}
	}
	return os.MkdirTemp("", pattern)
}

// tierText says in one line which tier is used and which promises fall.
func tierText(d sandbox.Driver) string {
	s := d.Tier()
	missing := 0
	for _, p := range d.Promises() {
		if !p.Kept {
			missing++
		}
	}
	if missing > 0 {
		s += fmt.Sprintf(" (%d promises do not hold here: lambdad doctor names them)", missing)
	}
	return s
}
