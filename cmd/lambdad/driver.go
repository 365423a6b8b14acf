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

// settled is the outcome of the choice of a tier.
type settled struct {
	tier       string
	passedOver []string // why not a stronger one
	cure       string   // what would give a stronger one
}

// settle chooses the isolation tier by trying it, never from the user id, before
// anything is opened: the rootless tier begins with executing lambdad again, and
// then this does not return.
func settle(ctx context.Context, isolation string) (settled, error) {
	if before, ok := namespace.Rootless(); ok {
		return settled{tier: "rootless", passedOver: notEmpty(before)}, nil
	}
	switch isolation {
	case "root":
		return settled{tier: "root"}, nil
	case "plain":
		return settled{tier: "plain", cure: "start without --isolation plain: auto takes the strongest tier that works"}, nil
	}
	var why string
	root := "ask for it: --isolation root"
	if isolation == "auto" {
		err := namespace.Probe()
		if err == nil {
			return settled{tier: "root"}, nil
		}
		why = fmt.Sprintf("the root tier does not work here: %v", err)
		root = namespace.RootCure()
	}
	err := namespace.Try(ctx)
	if err == nil {
		err = namespace.Reexec(why)
	}
	if ctx.Err() != nil {
		return settled{}, context.Cause(ctx)
	}
	cure := namespace.RootlessCure(err)
	if isolation == "rootless" {
		return settled{}, fmt.Errorf("isolation tier rootless does not work here: %w (%s)", err, cure)
	}
	return settled{
		tier:       "plain",
		passedOver: append(notEmpty(why), fmt.Sprintf("the rootless tier does not work here: %v", err)),
		cure:       fmt.Sprintf("root tier: %s; rootless tier: %s", root, cure),
	}, nil
}

func notEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// newDriver makes the driver of a tier that settle chose. What sandboxes write lies
// in dir and leaves reserve bytes of its disk free. With auto, a root tier that
// fails its own trial gives way to plain processes. A tier that cannot keep a
// narrower egress than everything is not taken silently for one.
func newDriver(ctx context.Context, c Config, id, dir string, reserve int64, log *slog.Logger) (sandbox.Driver, error) {
	egress := sandbox.Egress(c.Egress)
	for _, why := range c.passedOver {
		log.Warn("isolation is weaker than it could be", "tier", c.tier, "why", why)
	}
	if c.tier != "plain" {
		pool := c.Pool // in a namespace.Config nought follows demand
		switch pool {
		case 0:
			pool = -1
		case -1:
			pool = 0
		}
		d, err := namespace.New(ctx, namespace.Config{ID: id, Dir: dir, DiskReserve: reserve, Pool: pool, Egress: egress, Rootless: c.tier == "rootless", Logger: log})
		if err == nil {
			return d, nil
		}
		if c.tier == "rootless" || c.Isolation != "auto" {
			return nil, fmt.Errorf("isolation tier %s does not work here: %w", c.tier, err)
		}
		log.Warn("isolating with plain processes: the root tier does not work here", "why", err)
	}
	if egress != sandbox.EgressAll {
		return nil, fmt.Errorf("--egress %s needs isolation tier root, which plain processes are not: they have the host's own network (--egress all accepts that)", egress)
	}
	d, err := process.New(ctx, process.Config{ID: id, Dir: dir, Cure: c.cure, Logger: log})
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
