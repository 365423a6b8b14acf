// Package datadir owns the data directory of a server: where everything that
// outlives the process is kept, who may write there, and how other commands find
// the server that does.
//
//	lock              held by the running server (flock); never removed
//	format            version of this layout, decimal
//	id                8 hexadecimal digits that name what this server makes on the host
//	server.json       where the running server answers (Server); only while it runs
//	credentials.json  the administrator's key (written by package aws's user, 0600)
//	records/          JetStream: records and queue
//	blobs/            archives by digest
//	code/             unpacked archives
//	images/           container images: blobs/ by digest, layers/ unpacked, runtimes.json
//	runtimes/         unpacked runtime clients
//	logs/             log streams
//	run/              sockets and scratch files, swept by those who make them
//
// One process at a time holds a Dir. Two would both be told yes by the storage
// engine and diverge, so the lock is taken before anything is read.
package datadir

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Format is the version of the layout this program reads and writes.
const Format = 1

// ErrLocked says that another process holds the data directory. The error that
// wraps it says which.
var ErrLocked = errors.New("data directory is in use")

// ErrFormat says that the directory was written by a newer program.
var ErrFormat = errors.New("data directory has another format")

// ErrUnsuitable says that the file system cannot hold a data directory.
var ErrUnsuitable = errors.New("file system is unsuitable for a data directory")

// ErrNoServer says that no running server holds the data directory.
var ErrNoServer = errors.New("no server is running")

// A Server is what server.json tells other commands about the running server.
type Server struct {
	PID      int       `json:"pid"`
	Endpoint string    `json:"endpoint"` // URL, such as http://127.0.0.1:4566
	Region   string    `json:"region,omitempty"`
	Account  string    `json:"account,omitempty"`
	Tier     string    `json:"tier,omitempty"` // isolation: root, rootless or plain
	Version  string    `json:"version,omitempty"`
	Started  time.Time `json:"started"`
}

// A Dir is a data directory held by this process until Close.
type Dir struct {
	path string
	id   string
	lock *os.File
	log  *slog.Logger
}

// Default returns where data is kept when nobody says: /var/lib/lambdad as root,
// else lambdad in the XDG state directory ($XDG_STATE_HOME, or ~/.local/state).
func Default() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/lambdad", nil
	}
	// The XDG specification has relative paths ignored.
	if state := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, "lambdad"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no default data directory (set --data-dir): %w", err)
	}
	return filepath.Join(home, ".local", "state", "lambdad"), nil
}

// Open makes the directory if need be, checks that its file system can hold it,
// takes the lock and checks the format. It refuses with ErrLocked,
// ErrFormat or ErrUnsuitable.
func Open(path string, log *slog.Logger) (_ *Dir, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("opening data directory: %w", err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("making data directory (choose another with --data-dir): %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("opening data directory: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("opening data directory: %s is not a directory", path)
	}
	// Others must not read credentials and code, also if the directory was made
	// by hand. Only then: a chmod of one that others share, such as /tmp, would
	// do harm.
	if info.Mode().Perm()&0o077 != 0 {
		if err := refuseForeign(path); err != nil {
			return nil, err
		}
		if err := os.Chmod(path, 0o700); err != nil {
			return nil, fmt.Errorf("closing data directory to others: %w", err)
		}
	}

	d := &Dir{path: path, log: log}
	if d.lock, err = lock(path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.lock.Close()
		}
	}()
	if err := removeTemporary(path); err != nil {
		return nil, fmt.Errorf("clearing data directory: %w", err)
	}
	if err := probe(path, os.Chmod, os.Symlink); err != nil {
		return nil, err
	}
	if err := d.checkFormat(); err != nil {
		return nil, err
	}
	if d.id, err = hostID(filepath.Join(path, "id")); err != nil {
		return nil, err
	}
	// What a killed server said about itself is wrong now.
	if err := os.Remove(d.serverFile()); err == nil {
		log.Info("the last server in this data directory did not stop cleanly", "path", path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing stale server information: %w", err)
	}
	for _, sub := range []string{d.Records(), d.Blobs(), d.Code(), d.Runtimes(), d.Logs(), d.Run()} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return nil, fmt.Errorf("making data directory: %w", err)
		}
	}
	if err := SyncDir(path); err != nil {
		return nil, err
	}
	return d, nil
}

// Check says whether Open would find a suitable file system at path, without making
// anything that stays: it tries on path or the nearest directory above that exists.
func Check(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	for {
		if info, err := os.Stat(path); err == nil {
			if !info.IsDir() {
				return fmt.Errorf("%s is not a directory", path)
			}
			return probe(path, os.Chmod, os.Symlink)
		} else if !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
			return err
		}
		path = filepath.Dir(path)
	}
}

// refuseForeign refuses a directory open to others that holds things but never
// was a data directory.
func refuseForeign(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("opening data directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() == "format" || e.Name() == "lock" {
			return nil
		}
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s holds other things and is open to others: give --data-dir a directory of its own", path)
	}
	return nil
}

// How often and how far apart the lock is tried again.
const (
	lockTries = 10
	lockPause = 20 * time.Millisecond
)

// lock takes the lock on the directory, or says who has it.
func lock(path string) (*os.File, error) {
	name := filepath.Join(path, "lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking data directory: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for i := 0; errors.Is(err, unix.EWOULDBLOCK) && i < lockTries; i++ {
		time.Sleep(lockPause) // perhaps it is only a Lookup, which is done at once
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s: %s; stop it or choose another with --data-dir", ErrLocked, path, holder(path))
		}
		return nil, fmt.Errorf("%w: %s does not support locks (flock: %w); choose another place with --data-dir", ErrUnsuitable, path, err)
	}
	// The pid is for people only; the lock is what counts.
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking data directory: %w", err)
	}
	return f, nil
}

// holder describes who holds the lock, as far as it can be known.
func holder(path string) string {
	if s, err := readServer(path); err == nil {
		return fmt.Sprintf("held by process %d, serving %s", s.PID, s.Endpoint)
	}
	if data, err := os.ReadFile(filepath.Join(path, "lock")); err == nil {
		if pid := strings.TrimSpace(string(data)); pid != "" {
			return "held by process " + pid
		}
	}
	return "held by another process"
}

// probe tries what the server will need of the file system: modes and symbolic
// links. Windows drives under WSL and many network
// shares lack them, and it would be noticed in the middle of a function's code.
func probe(path string, chmod func(string, fs.FileMode) error, symlink func(to, name string) error) error {
	dir, err := os.MkdirTemp(path, temporary+"probe-")
	if err != nil {
		return fmt.Errorf("writing to data directory: %w", err)
	}
	defer os.RemoveAll(dir)
	refuse := func(what string, err error) error {
		reason := what
		if err != nil {
			reason += " (" + err.Error() + ")"
		}
		return fmt.Errorf("%w: %s %s; choose a directory on a Linux file system with --data-dir, under WSL one that is not below /mnt", ErrUnsuitable, path, reason)
	}
	file := filepath.Join(dir, "mode")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return fmt.Errorf("writing to data directory: %w", err)
	}
	for _, mode := range []fs.FileMode{0o751, 0o640} {
		if err := chmod(file, mode); err != nil {
			return refuse("does not keep file modes", err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != mode {
			return refuse("does not keep file modes", err)
		}
	}
	link := filepath.Join(dir, "link")
	if err := symlink("../to/nowhere", link); err != nil {
		return refuse("does not keep symbolic links", err)
	}
	if to, err := os.Readlink(link); err != nil || to != "../to/nowhere" {
		return refuse("does not keep symbolic links", err)
	}
	return nil
}

// checkFormat refuses what a newer program wrote and marks what is new.
func (d *Dir) checkFormat() error {
	name := filepath.Join(d.path, "format")
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return WriteFile(name, []byte(strconv.Itoa(Format)+"\n"), 0o600)
	}
	if err != nil {
		return fmt.Errorf("reading format of data directory: %w", err)
	}
	version, err := strconv.Atoi(strings.TrimSpace(string(data)))
	switch {
	case err != nil || version < 1:
		return fmt.Errorf("%w: %s says %q, this program writes %d", ErrFormat, name, data, Format)
	case version > Format:
		return fmt.Errorf("%w: %s was written by a newer lambdad (format %d, this one knows %d): use that one, or another --data-dir", ErrFormat, d.path, version, Format)
	}
	return nil
}

// hostID returns the id in the file at name, made on first use.
func hostID(name string) (string, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		var b [4]byte
		rand.Read(b[:])
		id := hex.EncodeToString(b[:])
		return id, WriteFile(name, []byte(id+"\n"), 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("reading id of data directory: %w", err)
	}
	id := strings.TrimSpace(string(data))
	if !regexp.MustCompile(`^[0-9a-f]{8}$`).MatchString(id) {
		// Making another would orphan what the old one names.
		return "", fmt.Errorf("%s holds %q, not 8 hexadecimal digits: restore it, or remove it after a clean stop", name, id)
	}
	return id, nil
}

// Path returns the directory itself, absolute.
func (d *Dir) Path() string { return d.path }

// ID returns the 8 hexadecimal digits that are part of every name this server
// gives to things on the host (lambdad-<id>, lmb<id>). It stays the same for the
// life of the directory.
func (d *Dir) ID() string { return d.id }

// Records returns the directory of records and queue.
func (d *Dir) Records() string { return filepath.Join(d.path, "records") }

// Blobs returns the directory of archives.
func (d *Dir) Blobs() string { return filepath.Join(d.path, "blobs") }

// Objects is where the content of objects in buckets is kept.
func (d *Dir) Objects() string { return filepath.Join(d.path, "objects") }

// Images returns the directory of container images: their blobs and unpacked layers.
func (d *Dir) Images() string { return filepath.Join(d.path, "images") }

// Code returns the directory of unpacked archives.
func (d *Dir) Code() string { return filepath.Join(d.path, "code") }

// Runtimes returns the directory of unpacked runtime clients.
func (d *Dir) Runtimes() string { return filepath.Join(d.path, "runtimes") }

// Logs returns the directory of log streams.
func (d *Dir) Logs() string { return filepath.Join(d.path, "logs") }

// Metrics returns the directory of metrics.
func (d *Dir) Metrics() string { return filepath.Join(d.path, "metrics") }

// Audit returns the directory of the log of calls.
func (d *Dir) Audit() string { return AuditDir(d.path) }

// AuditDir returns the directory of the log of calls in a data directory.
func AuditDir(path string) string { return filepath.Join(path, "audit") }

// Run returns the scratch directory. What a killed server left there, mounts
// perhaps included, is swept by the packages that make it.
func (d *Dir) Run() string { return filepath.Join(d.path, "run") }

// Credentials returns the file of the administrator's key.
func (d *Dir) Credentials() string { return CredentialsFile(d.path) }

// CredentialsFile returns the file of the administrator's key in the data
// directory at path, for commands that do not hold it.
func CredentialsFile(path string) string { return filepath.Join(path, "credentials.json") }

// FreeBytes returns the bytes that may still be written below the directory.
func (d *Dir) FreeBytes() (int64, error) { return FreeBytes(d.path) }

// FreeBytes returns the bytes an unprivileged process may still write to the file
// system of path.
func FreeBytes(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("reading free space of %s: %w", path, err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

func (d *Dir) serverFile() string { return filepath.Join(d.path, "server.json") }

// Announce writes where the server answers, for commands that ask with Lookup. PID
// and, if zero, Started are filled in.
func (d *Dir) Announce(s Server) error {
	s.PID = os.Getpid()
	if s.Started.IsZero() {
		s.Started = time.Now().UTC()
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(d.serverFile(), append(data, '\n'), 0o600)
}

// Close withdraws what Announce said and gives the directory up. The caller has
// stopped everything that writes there.
func (d *Dir) Close() error {
	err := os.Remove(d.serverFile())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, d.lock.Close())
}

// Lookup returns what the server running in the data directory at path said about
// itself, or an error wrapping ErrNoServer. It changes nothing there. That a server
// runs is known from its lock, not from the file, which a killed one leaves behind.
func Lookup(path string) (Server, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return Server{}, err
	}
	f, err := os.Open(filepath.Join(path, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return Server{}, fmt.Errorf("%w: %s is not a data directory yet (start one with lambdad serve, or give --data-dir)", ErrNoServer, path)
	}
	if err != nil {
		return Server{}, fmt.Errorf("looking for a server: %w", err)
	}
	defer f.Close()
	// A shared lock, so that two commands looking at once do not take each other
	// for the server.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err == nil {
		return Server{}, fmt.Errorf("%w in data directory %s (start one with lambdad serve, or give --data-dir)", ErrNoServer, path)
	} else if !errors.Is(err, unix.EWOULDBLOCK) {
		return Server{}, fmt.Errorf("looking for a server: %w", err)
	}
	s, err := readServer(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Server{}, fmt.Errorf("%w that answers yet: the one in data directory %s is starting or stopping", ErrNoServer, path)
	}
	return s, err
}

func readServer(path string) (Server, error) {
	var s Server
	data, err := os.ReadFile(filepath.Join(path, "server.json"))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("reading %s: %w", filepath.Join(path, "server.json"), err)
	}
	return s, nil
}
