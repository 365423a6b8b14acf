// Package sandbox is the contract between an execution environment and what
// isolates it: a root file system, a network, a budget and processes.
//
// A Driver makes sandboxes. A Sandbox belongs to one environment for its whole
// life and is never used for another. Any method may be called from any
// goroutine, and any call after Destroy is harmless: it returns ErrDestroyed.
// Destroy twice is fine and leaves nothing behind on the host.
//
// Inside a sandbox the paths are those of lifecycle.md section 11: /var/task,
// /opt and /var/runtime read-only, /tmp writable and private, the rest of the
// root read-only. A driver that cannot give a path its place says so through
// Path, which translates; an environment never assumes.
//
// Every driver passes the suite in sandboxtest; optional abilities are extra
// interfaces (Freezer).
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"syscall"
	"time"
)

// ErrDestroyed is returned by every method of a sandbox that is gone.
var ErrDestroyed = errors.New("sandbox: destroyed")

// A Driver makes sandboxes of one kind on this host.
type Driver interface {
	// Tier names what this driver isolates with: "root", "rootless" or "plain".
	Tier() string
	// Create builds a sandbox. When it fails nothing is left behind.
	Create(ctx context.Context, spec Spec) (Sandbox, error)
	// Sweep removes what a dead process with the same host id left: processes,
	// groups, mounts, scratch directories. It touches nothing else. Call it
	// before the first Create.
	Sweep(ctx context.Context) error
	// Promises says which promises hold on this host, for doctor and the banner.
	Promises() []Promise
	// Close releases what the driver holds; all sandboxes must be destroyed.
	Close() error
}

// A Promise is one thing a sandbox is expected to do, and whether it does here.
type Promise struct {
	Name string // "freezing", "memory limit", "private network", …
	Kept bool
	Why  string // when not kept: what was tried and what happened
	Cure string // when not kept: what the owner of this host can do
}

// TmpOnDisk is the name of the promise that files in /tmp are no memory of who
// writes them. Where it does not hold, the first line of every log says so.
const TmpOnDisk = "/tmp outside the memory limit"

// A Spec says what to build.
type Spec struct {
	// ID names the sandbox on the host, unique among those of the driver:
	// [a-z0-9]{1,32}.
	ID string
	// Root are host directories, merged as those of a Mount, that become the root
	// file system, read-only; over it lie /tmp, /dev, /proc and in /etc the files
	// that name the sandbox's users, host and name servers. None: the base system
	// of the driver. A driver that cannot do this refuses in Create.
	Root []string
	// Mounts are the read-only trees.
	Mounts []Mount
	// TmpBytes is the size of /tmp.
	TmpBytes int64
	// MemoryBytes limits the memory of all processes together; 0: no limit.
	MemoryBytes int64
	// MaxProcesses limits processes and threads together; 0: 1024.
	MaxProcesses int
	// MaxFiles limits open descriptors of each process; 0: 1024.
	MaxFiles int
	// Egress limits what may be reached outside; "": what the driver was told.
	// It narrows what the driver allows and never widens it. A driver that cannot
	// limit says so in Promises.
	Egress Egress
}

// Egress is what a sandbox reaches outside itself. Other sandboxes, addresses of
// the host, link-local ones and the metadata services of clouds are in none.
type Egress string

// The values of Egress, from nothing to everything.
const (
	EgressOff      Egress = "off"      // nothing: its own loopback
	EgressInternet Egress = "internet" // public addresses, and the host's name servers
	EgressAll      Egress = "all"      // whatever the host routes
)

// Within is the narrower of e and limit; an empty e is limit.
func (e Egress) Within(limit Egress) Egress {
	switch {
	case e == "", e == EgressAll:
		return limit
	case e == EgressInternet && limit != EgressOff:
		return e
	}
	return EgressOff
}

// A Mount is a read-only tree inside the sandbox.
type Mount struct {
	// Target is the absolute path inside.
	Target string
	// Sources are host directories, merged: a later one covers an earlier one
	// path by path. None makes an empty directory.
	Sources []string
}

// A Sandbox is the place one environment lives in. It begins without processes
// of its owner, with an unlimited processor.
type Sandbox interface {
	// Path translates an absolute path inside to what processes inside must use.
	Path(inside string) string
	// ReadDir lists a directory of the read-only trees, sorted by name. Symbolic
	// links are resolved inside the tree or not at all, never on the host.
	ReadDir(inside string) ([]fs.DirEntry, error)
	// Stat describes a file of the read-only trees, following links as ReadDir
	// does; fs.ErrNotExist when there is none.
	Stat(inside string) (fs.FileInfo, error)

	// Listen opens a TCP listener that processes inside can reach. addr is what
	// is wished for, such as 127.0.0.1:9001; the listener's Addr is what they
	// must use.
	Listen(addr string) (net.Listener, error)
	// Dial connects to a TCP address inside; the host names sandbox and
	// sandbox.localdomain work.
	Dial(ctx context.Context, addr string) (net.Conn, error)

	// Start runs a program as a new process group. It returns when exec has
	// succeeded or failed; a failure is an *ExecError.
	Start(ctx context.Context, cmd Command) (Process, error)

	// SetCPU limits the processes together to this many cores; 0 lifts the
	// limit. Where the host cannot limit, it does nothing.
	SetCPU(cores float64) error

	// Usage reports what the sandbox and each of its parties use.
	Usage() (Usage, error)

	// Reset ends every process, also those that left their group, and keeps
	// the mounts with /tmp's content, the network and the listeners.
	Reset(ctx context.Context) error

	// Destroy ends every process and removes everything. It may be called in
	// any state, also frozen, and more than once.
	Destroy(ctx context.Context) error
}

// A Freezer is a Sandbox that can stop all its processes at once and let them go
// on. Both calls return when the kernel says it is done, and both may be repeated.
type Freezer interface {
	Freeze(ctx context.Context) error
	Thaw(ctx context.Context) error
}

// A Rester is a Freezer that can hold less while it is frozen for long.
type Rester interface {
	// Rest gives back what the driver holds of a frozen sandbox to be quick. Every
	// method works as before, and the first of each after it takes a little longer.
	// It does nothing to a sandbox that is not frozen, and ends with Thaw.
	Rest()
}

// A Sampler is a Sandbox whose peak figures are truer when it is looked at while its
// processes work: what they held in file cache and gave up again is then known.
type Sampler interface {
	// Sample takes a look. It is cheap, may be called at any time, also with Usage,
	// and never fails: what cannot be read is not noted.
	Sample()
	// Grown reports whether Usage may know of a larger PeakMemory than when it was
	// last asked. It is one read or two where Usage is many.
	Grown() bool
}

// A Command is a program to start.
type Command struct {
	// Party owns the process: "runtime", or the file name of an extension.
	// Usage is reported by party, from a group of its own where the host allows.
	Party string
	Path  string   // as Path translates it
	Args  []string // with argv[0]; empty: Path alone
	Env   []string // the whole environment, KEY=value
	Dir   string   // working directory, as Path translates it
	// Stdout and Stderr receive what the process group writes, in order per
	// stream, until the last holder of the pipe closes it. They must not block
	// for ever. They may be the same writer, which is then called from two
	// goroutines.
	Stdout, Stderr io.Writer
	// Log receives what is written to descriptor LogFD, which the process has only
	// with it; otherwise as Stdout.
	Log io.Writer
}

// LogFD is the descriptor of Command.Log in the process, as on the service.
const LogFD = 62

// A Process is one started program and its process group.
type Process interface {
	// PID is the process id on the host, for display only; 0 when unknown.
	PID() int
	// Signal sends a signal to the whole group. Signalling a group that is gone
	// is not an error.
	Signal(sig syscall.Signal) error
	// Done is closed when the process itself has ended.
	Done() <-chan struct{}
	// Exit says how it ended; valid after Done.
	Exit() Exit
	// Drained is closed when nobody holds its output pipes any more and all
	// output was written to Stdout and Stderr.
	Drained() <-chan struct{}
}

// A Flusher is a Process whose output can be waited for while it lives: an
// optional ability, which lets the log of an invocation hold what was printed
// before its end.
type Flusher interface {
	// Flush returns when everything the group wrote before the call has been
	// given to Stdout and Stderr. It is called after every invocation, so it
	// must be cheap, and it must not wait for output that is still to come.
	Flush()
}

// Exit is how a process ended.
type Exit struct {
	Code   int            // exit status, when Signal is 0
	Signal syscall.Signal // that ended it
}

// String is the text of Go's wait status without its "core dumped": "exit status
// 1", "signal: killed".
func (e Exit) String() string {
	if e.Signal != 0 {
		return "signal: " + e.Signal.String()
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// An ExecError says that a program could not be started.
type ExecError struct {
	Path string
	Err  error // a syscall.Errno where the kernel gave one
}

// Error words it as Go does, which is what AWS shows (lifecycle.md section 7).
func (e *ExecError) Error() string { return "fork/exec " + e.Path + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *ExecError) Unwrap() error { return e.Err }

// Usage is what a sandbox and its parties use.
type Usage struct {
	// Memory is what its processes hold now, in bytes, without file cache.
	Memory int64
	// PeakMemory is the largest amount of anonymous, shared and kernel memory of
	// all processes plus the file pages they have mapped, in bytes, since the
	// sandbox was made or was Reset; file cache never counts.
	PeakMemory int64
	// CPU is the processor time used.
	CPU time.Duration
	// Processes counts processes and threads of the owner, not the driver's own.
	Processes int
	// OOMKills counts processes the kernel ended for lack of memory.
	OOMKills int
	// Parties has the same by party where the host allows; nil otherwise.
	Parties map[string]PartyUsage
}

// PartyUsage is the part of one party.
type PartyUsage struct {
	Memory, PeakMemory int64
	CPU                time.Duration
	Processes          int
}
