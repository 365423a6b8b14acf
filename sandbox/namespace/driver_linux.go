//go:build amd64 || arm64

package namespace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/sandbox"
)

// Config is what a Driver is made of.
type Config struct {
	// ID tells the sandboxes of this data directory from those of others on the
	// host: [a-z0-9]{1,24}. Control groups are called lambdad-<ID>.
	ID string
	// Dir is a directory on a disk, which holds what sandboxes write to /tmp in
	// files without names. It must be this driver's alone. Without it, or in
	// memory, /tmp counts as memory of the function.
	Dir string
	// DiskReserve is how many bytes of the disk of Dir no new sandbox may cut into.
	DiskReserve int64
	// Pool is how many sandboxes are made ahead; 0: as many as were missing of late,
	// negative: none.
	Pool int
	// Egress is what sandboxes may reach outside; "": nothing. Where the host
	// cannot filter it, they reach nothing, and Promises says so.
	Egress sandbox.Egress
	// Rootless says that this process was re-executed by Reexec.
	Rootless bool
	// Logger receives what happens in the background; nil: nothing is logged.
	Logger *slog.Logger

	noGroups bool       // a trial: the group of who asked is not to be touched
	v1only   bool       // tests: do as if there were no v2 hierarchy
	names    *resolving // tests: not those of the host
}

// A Driver makes sandboxes of the root tier. All of it is made by New and
// released by Close.
type Driver struct {
	cfg       Config
	log       *slog.Logger
	ids       *ids
	cgroups   *hierarchy
	template  *template
	traveller *traveller
	spawner   *spawner
	tmp       *tmpImages // nil: /tmp is memory
	tmpErr    error      // why
	filter    []byte     // seccomp
	null      *os.File
	promises  []sandbox.Promise
	limits    map[int]uint64 // the hard limits that nobody inside can exceed anyway
	nice      int            // of what runs inside
	resolving resolving
	egress    *egress // nil: there is no way out

	skeletonMu   sync.Mutex      // guards the following
	skeletonMade map[string]bool // by key

	demand demand
	follow *size
	pool   chan *shell
	refill chan struct{}
	cancel context.CancelFunc
	work   sync.WaitGroup
}

// New makes the driver and proves on a sandbox that it works here. When it does
// not, the error names what is missing and what to do; the process driver works
// everywhere.
func New(ctx context.Context, cfg Config) (_ *Driver, err error) {
	if !regexp.MustCompile(`^[a-z0-9]{1,24}$`).MatchString(cfg.ID) {
		return nil, fmt.Errorf("namespace driver: id %q: want 1 to 24 of a-z and 0-9", cfg.ID)
	}
	d := &Driver{cfg: cfg, log: cfg.Logger, refill: make(chan struct{}, 1), limits: hardLimits()}
	// Functions are no nicer than who started the daemon, and never before others.
	if p, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil {
		d.nice = max(20-p, 0) // the kernel answers 40 for the first, 1 for the last
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("namespace driver: %w", err)
			err = errors.Join(err, d.Close())
		}
	}()
	nonce := strconv.FormatInt(time.Now().UnixNano(), 36)
	if cfg.Rootless {
		d.ids = singleIDs(nonce, os.Getuid(), os.Getgid())
	} else {
		uidMap, err := os.ReadFile("/proc/self/uid_map")
		if err != nil {
			return nil, err
		}
		if d.ids, err = newIDs(cfg.ID, nonce, string(uidMap)); err != nil {
			return nil, err
		}
	}
	if d.cgroups, err = d.findGroups(); err != nil {
		return nil, err
	}
	m, err := machine()
	if err != nil {
		return nil, err
	}
	if d.filter, err = newFilter(m); err != nil {
		return nil, err
	}
	if d.null, err = os.OpenFile("/dev/null", os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if d.traveller, err = newTraveller(cfg.Rootless); err != nil {
		return nil, err
	}
	d.resolving = hostResolvers()
	if cfg.names != nil {
		d.resolving = *cfg.names
	}
	if d.template, err = newTemplate(d.resolving.conf(), cfg.Rootless); err != nil {
		return nil, fmt.Errorf("%w: mounting needs CAP_SYS_ADMIN and Linux 5.12 or later (in a container: run it privileged)", err)
	}
	if d.spawner, err = newSpawner(d.template, d.traveller.home); err != nil {
		return nil, fmt.Errorf("%w: mounting needs CAP_SYS_ADMIN (in a container: run it privileged)", err)
	}
	switch {
	case cfg.Pool == 0:
		d.follow = newSize(poolLeast, poolMost)
	default:
		d.follow = newSize(max(cfg.Pool, 0), max(cfg.Pool, 0))
	}
	if cfg.Rootless {
		d.tmpErr = &tmpError{errMissing("loop devices and disk file systems are root's"), "run lambdad as root"}
	} else if d.tmp, d.tmpErr = newTmpImages(ctx, cfg.Dir, cfg.DiskReserve, d.ids.root, d.follow, d.log); d.tmpErr != nil {
		d.log.Warn("/tmp of functions counts as their memory", "why", d.tmpErr)
	}
	s, err := d.newShell(ctx, 1)
	if err == nil {
		if err = s.settled(); err != nil {
			err = errors.Join(err, s.destroy(ctx))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("a trial sandbox could not be made: %w%s", err, cure(err))
	}
	kept := d.promise(ctx, s)
	if err = s.destroy(ctx); err != nil {
		return nil, fmt.Errorf("a trial sandbox could not be removed: %w", err)
	}
	for _, way := range d.promiseEgress(ctx) {
		kept = append(kept, way)
		if !way.Kept {
			d.log.Warn("a promise of the network is not kept", "promise", way.Name, "why", way.Why, "cure", way.Cure)
		}
	}
	d.promises = kept
	d.pool = make(chan *shell, d.follow.most)
	var pctx context.Context
	pctx, d.cancel = context.WithCancel(context.Background())
	if d.follow.most > 0 {
		if d.tmp != nil {
			d.tmp.kept = d.wantMore
		}
		d.work.Go(func() { d.keepFilled(pctx) })
	}
	return d, nil
}

// findGroups finds where control groups may be made, and makes the driver's own.
// The root tier insists; the rootless one takes what it was delegated.
func (d *Driver) findGroups() (*hierarchy, error) {
	base := "lambdad-" + d.cfg.ID
	if d.cfg.noGroups {
		return &hierarchy{base: base, v1: map[string]string{}, inits: -1, home: -1}, nil
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	h := findHierarchy(string(mounts), base)
	if d.cfg.v1only {
		h.v2 = ""
	}
	h.settle()
	if d.ids.root != os.Geteuid() {
		h.inits = d.ids.root
	}
	h.findOwn(string(own), d.cfg.Rootless)
	if d.cfg.Rootless {
		h.prepareSome()
		return h, nil
	}
	if err := h.prepare(); err != nil {
		return nil, fmt.Errorf("%w: control groups must be writable (in a container: docker run --privileged --cgroupns=private)", err)
	}
	return h, nil
}

// Probe says whether the root tier can work here, by a mount and a control group:
// what New tries at length.
func Probe() error {
	fd, err := newMount("tmpfs", 0, "size=4096")
	if err != nil {
		return fmt.Errorf("a trial mount: %w", err)
	}
	unix.Close(fd)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	h := findHierarchy(string(mounts), "lambdad-probe"+strconv.Itoa(os.Getpid()))
	h.findOwn(string(own), false)
	if len(h.roots()) == 0 {
		return errMissing("a trial control group: no hierarchy is mounted")
	}
	for _, dir := range h.roots() {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("a trial control group: %w", err)
		}
		if err := os.Remove(dir); err != nil {
			return fmt.Errorf("a trial control group: %w", err)
		}
	}
	return nil
}

// hardLimits are those of this process for what is limited inside: without
// privileges over the host nobody can exceed them.
func hardLimits() map[int]uint64 {
	m := map[int]uint64{}
	for _, what := range []int{unix.RLIMIT_NOFILE, unix.RLIMIT_MEMLOCK, rlimitSigpending, unix.RLIMIT_NPROC} {
		var l unix.Rlimit
		m[what] = unix.RLIM_INFINITY
		if err := unix.Getrlimit(what, &l); err == nil {
			m[what] = l.Max
		}
	}
	return m
}

// cure says what helps against a failure of the trial.
func cure(err error) string {
	var step *stepError
	switch {
	case errors.As(err, &step) && errors.Is(err, unix.ENOSPC):
		return ": user namespaces are switched off or used up (sysctl user.max_user_namespaces)"
	case errors.As(err, &step) && step.name == "mount proc":
		return ": /proc of this container is masked (run it privileged)"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return ": a security module or seccomp filter forbids it (in a container: run it privileged)"
	}
	return ""
}

// refillDelay is how long the pool waits, while it is not empty, for the start
// under way to be over: somebody waits for it.
const refillDelay = 10 * time.Millisecond

// A demand is how many parties sandboxes had of late: so many children wait in a
// shell made ahead. One more is made when it is wanted, one too many is let go at the
// first freeze; either costs a fraction of a millisecond.
type demand struct {
	mu   sync.Mutex
	last [8]int
	next int
}

// maxChildren is for the runtime and the extensions the service allows.
const maxChildren = 11

// note says whether that changed the demand.
func (d *demand) note(parties int) bool {
	before := d.children()
	d.mu.Lock()
	d.last[d.next] = parties
	d.next = (d.next + 1) % len(d.last)
	d.mu.Unlock()
	return d.children() != before
}

func (d *demand) children() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return min(max(1, slices.Max(d.last[:])), maxChildren)
}

// keepFilled makes shells ahead of need. It begins with the sweep or the first
// Create, so that nothing it makes is swept.
func (d *Driver) keepFilled(ctx context.Context) {
	for {
		var quiet, look <-chan time.Time
		if d.tmp.surplus() {
			quiet = time.After(tmpQuiet)
		}
		if again := d.follow.look(time.Now(), len(d.pool)); again > 0 {
			look = time.After(again)
		}
		d.giveBack(ctx)
		select {
		case <-ctx.Done():
			return
		case <-quiet:
			d.tmp.trim()
			continue
		case <-look:
			continue
		case <-d.refill:
		}
		for (len(d.pool) < d.follow.wanted() || d.tmp.wants()) && ctx.Err() == nil {
			if len(d.pool) > 0 {
				select {
				case <-ctx.Done():
					return
				case <-d.refill: // another start: wait again
					continue
				case <-time.After(refillDelay):
				}
			}
			if len(d.pool) < d.follow.wanted() {
				s, err := d.newShell(ctx, d.demand.children())
				if err != nil {
					d.log.Warn("could not make a sandbox ahead", "error", err)
					break
				}
				d.pool <- s // has room: this is the only sender
			}
			if d.tmp.wants() {
				if err := d.tmp.prepare(ctx); err != nil {
					d.log.Warn("could not make a /tmp ahead", "error", err)
					break
				}
			}
		}
		d.adjust(ctx)
	}
}

// giveBack ends what is ahead beyond what is wanted.
func (d *Driver) giveBack(ctx context.Context) {
	for len(d.pool) > d.follow.wanted() {
		select {
		case s := <-d.pool:
			if err := s.destroy(context.WithoutCancel(ctx)); err != nil {
				d.log.Warn("could not remove a sandbox made ahead", "error", err)
			}
		default:
			return
		}
	}
}

// adjust gives every shell of the pool as many waiting children as are wanted now.
func (d *Driver) adjust(ctx context.Context) {
	for range len(d.pool) {
		select {
		case s := <-d.pool:
			if err := s.wait(ctx, d.demand.children()); err != nil {
				d.log.Warn("could not adjust a sandbox made ahead", "error", errors.Join(err, s.destroy(context.WithoutCancel(ctx))))
				continue
			}
			d.pool <- s // has room: this is the only sender
		default:
			return
		}
	}
}

// wantMore tells the pool that one was taken, or that others are wanted.
func (d *Driver) wantMore() {
	select {
	case d.refill <- struct{}{}:
	default:
	}
}

// Tier is "root" or "rootless".
func (d *Driver) Tier() string {
	if d.cfg.Rootless {
		return "rootless"
	}
	return "root"
}

// Promises says what holds here.
func (d *Driver) Promises() []sandbox.Promise { return d.promises }

// Create builds a sandbox: a shell from the pool, or a new one, and the Spec.
func (d *Driver) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	tmp := d.tmp.begin(ctx, spec.TmpBytes)
	var s *shell
	select {
	case s = <-d.pool:
		d.follow.took(time.Now(), len(d.pool), false)
	default:
		d.follow.took(time.Now(), 0, true)
		var err error
		if s, err = d.newShell(ctx, 1); err != nil {
			if d.tmp != nil {
				i, _ := tmp()
				d.tmp.give(i)
			}
			return nil, fmt.Errorf("create sandbox %s: %w", spec.ID, err)
		}
	}
	b, err := newBox(s, spec, tmp)
	d.wantMore()
	if err != nil {
		err = errors.Join(err, s.destroy(context.WithoutCancel(ctx)))
		return nil, fmt.Errorf("create sandbox %s: %w", spec.ID, err)
	}
	if !s.group.freeze.is() {
		return b, nil
	}
	return freezable{b}, nil
}

// Close ends the pool, the spawner and the thread in network namespaces.
func (d *Driver) Close() error {
	var errs []error
	if d.cancel != nil {
		d.cancel()
		d.work.Wait()
	}
	for len(d.pool) > 0 {
		errs = append(errs, (<-d.pool).destroy(context.Background()))
	}
	d.tmp.close()
	errs = append(errs, d.sweepSkeletons())
	if d.spawner != nil {
		d.spawner.close()
	}
	if d.template != nil {
		d.template.close()
	}
	if d.egress != nil {
		errs = append(errs, d.egress.close(d.cfg.ID))
	}
	if d.traveller != nil {
		d.traveller.close()
	}
	if d.null != nil {
		d.null.Close()
	}
	if d.cgroups != nil {
		d.cgroups.close()
	}
	return errors.Join(errs...)
}
