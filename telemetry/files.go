package telemetry

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"strings"
	"sync"
	"time"
)

// Bounds of what waits to be written. What comes on top is dropped, counted and
// told in the file once there is room again.
const (
	maxFilePending = 1 << 20
	maxAllPending  = 64 << 20
	flushEvery     = 50 * time.Millisecond
	retryEvery     = time.Second
	maxTries       = 300
)

// FilesConfig says where logs go.
type FilesConfig struct {
	// Dir holds the files; it is made when it is missing.
	Dir string
	// Reserve, when given, is asked before every round of writing; while it
	// fails nothing is written, as on a full disk.
	Reserve func() error
	// Logger hears of trouble; nil: nobody.
	Logger *slog.Logger
}

// Files writes logs to <dir>/<log group>/<log stream>.log, from one goroutine
// for all environments, off the path of whoever emits. Names are encoded so that
// none leaves the directory. While the disk takes nothing, what fits into the
// bounds waits and the rest is dropped.
type Files struct {
	cfg  FilesConfig
	root *os.Root

	mu      sync.Mutex
	dirty   []*File
	pending int
	flushes []chan struct{}
	stop    bool
	wake    chan struct{}
	done    chan struct{}
	told    time.Time // of the last trouble
}

// NewFiles opens the directory. Close it to flush and end.
func NewFiles(cfg FilesConfig) (*Files, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("telemetry: make the log directory: %w", err)
	}
	root, err := os.OpenRoot(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("telemetry: open the log directory: %w", err)
	}
	f := &Files{cfg: cfg, root: root, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go f.run()
	return f, nil
}

// A File is a sink that appends to one log stream.
type File struct {
	files  *Files
	name   string
	format Format

	// Guarded by files.mu.
	buf    []byte
	queued bool
	lost   int64 // bytes dropped since the last write
	tries  int   // failed in a row
}

// Open returns the sink of a log stream; the file appears with its first line.
// Nothing needs to be closed: what was taken is written within a moment.
func (f *Files) Open(group, stream string, format Format) *File {
	return &File{files: f, name: fileName(group) + "/" + fileName(stream) + ".log", format: format}
}

// Path returns the file's path below the directory.
func (k *File) Path() string { return k.name }

// Take implements Sink.
func (k *File) Take(e Event) {
	f := k.files
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(k.buf)
	if before > maxFilePending || f.pending > maxAllPending || f.stop {
		k.lost += int64(e.size())
		return
	}
	k.buf = k.format.Append(k.buf, e)
	if len(k.buf) == before {
		return
	}
	f.pending += len(k.buf) - before
	if !k.queued {
		k.queued = true
		f.dirty = append(f.dirty, k)
		if len(f.dirty) == 1 {
			f.signal()
		}
	}
}

func (f *Files) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Flush returns when everything taken before the call has been written or tried.
func (f *Files) Flush() {
	c := make(chan struct{})
	f.mu.Lock()
	if f.stop {
		f.mu.Unlock()
		<-f.done
		return
	}
	f.flushes = append(f.flushes, c)
	f.signal()
	f.mu.Unlock()
	<-c
}

// Close writes what is left and ends. Later events are dropped.
func (f *Files) Close() error {
	f.mu.Lock()
	f.stop = true
	f.signal()
	f.mu.Unlock()
	<-f.done
	return f.root.Close()
}

func (f *Files) run() {
	defer close(f.done)
	for range f.wake {
		f.mu.Lock()
		flushes, stop := f.flushes, f.stop
		f.flushes = nil
		f.mu.Unlock()
		ok := f.write()
		for _, c := range flushes {
			close(c)
		}
		if stop {
			f.mu.Lock()
			for _, c := range f.flushes {
				close(c)
			}
			f.mu.Unlock()
			return
		}
		wait := flushEvery // gathers lines into few writes
		if !ok {
			wait = retryEvery
		}
		f.pause(wait)
		f.mu.Lock()
		if len(f.dirty) > 0 || len(f.flushes) > 0 || f.stop {
			f.signal()
		}
		f.mu.Unlock()
	}
}

// pause waits d, or until somebody wants a flush or the end.
func (f *Files) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		f.mu.Lock()
		urgent := len(f.flushes) > 0 || f.stop
		f.mu.Unlock()
		if urgent {
			return
		}
		select {
		case <-f.wake:
		case <-timer.C:
			return
		}
	}
}

// write writes what the dirty files hold and says whether all of it went.
func (f *Files) write() bool {
	f.mu.Lock()
	dirty := f.dirty
	f.dirty = nil
	f.mu.Unlock()
	if len(dirty) == 0 {
		return true
	}
	var trouble error
	if f.cfg.Reserve != nil {
		trouble = f.cfg.Reserve()
	}
	held := trouble != nil
	for _, k := range dirty {
		f.mu.Lock()
		buf, lost := k.buf, k.lost
		k.buf, k.lost = nil, 0
		f.mu.Unlock()
		err := trouble
		if !held {
			b := buf
			if lost > 0 {
				b = fmt.Appendf(b, "LOGS_DROPPED\tBytes: %d\n", lost)
			}
			err = f.append(k.name, b)
		}
		f.mu.Lock()
		if err == nil {
			f.pending -= len(buf)
			k.tries = 0
			if len(k.buf) > 0 {
				f.dirty = append(f.dirty, k)
			} else {
				k.queued = false
			}
		} else {
			trouble = err
			if k.tries++; k.tries > maxTries && !held {
				// One file that can never be written must not fill the bound of all.
				f.pending -= len(buf)
				lost += int64(len(buf))
				buf = nil
			}
			k.buf, k.lost = append(buf, k.buf...), k.lost+lost
			if len(k.buf) > 0 {
				f.dirty = append(f.dirty, k)
			} else {
				k.queued = false
			}
		}
		f.mu.Unlock()
	}
	if trouble != nil && time.Since(f.told) > time.Minute {
		f.told = time.Now()
		f.cfg.Logger.Error("cannot write function logs; they wait in memory up to a bound, then lines are dropped; make room on the disk of the log directory",
			"dir", f.cfg.Dir, "err", trouble)
	}
	return trouble == nil
}

// append adds b to a file, all of it or nothing.
func (f *Files) append(name string, b []byte) (err error) {
	const flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	file, err := f.root.OpenFile(name, flags, 0o640)
	if errors.Is(err, os.ErrNotExist) {
		if err = f.root.MkdirAll(path.Dir(name), 0o750); err == nil {
			file, err = f.root.OpenFile(name, flags, 0o640)
		}
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err = file.Write(b); err != nil {
		// Half a batch would come twice with the next attempt.
		return errors.Join(err, file.Truncate(size))
	}
	return nil
}

// fileName makes a relative path of the name of a log group or stream. Names
// that AWS allows stay as they are but for a leading slash; every other byte is
// written as %XX, and so are parts that mean something to a file system.
func fileName(name string) string {
	const hex = "0123456789ABCDEF"
	var parts []string
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		var b strings.Builder
		for i := range len(part) {
			c := part[i]
			plain := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_#$[].", c) >= 0
			if part == "." || part == ".." || !plain {
				b.WriteByte('%')
				b.WriteByte(hex[c>>4])
				b.WriteByte(hex[c&15])
				continue
			}
			b.WriteByte(c)
		}
		s := b.String()
		if s == "" {
			s = "%"
		}
		for len(s) > 200 { // file systems end at 255 bytes
			parts = append(parts, s[:200])
			s = s[200:]
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, "/")
}
