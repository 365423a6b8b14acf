// Package archive turns deployment packages into directories: it checks a zip as
// AWS does when it is uploaded, unpacks it once for all environments that run
// it, and packs a directory for those who have no zip.
//
// A zip comes from strangers. Nothing it declares is believed: sizes are counted
// while inflating, the directory of the zip is read within a fixed budget, and
// the whole tree it describes is worked out and checked before the first byte is
// written. The rules (control-plane.md section 5.2 and 4.1 rows 10 to 12; where
// AWS's behaviour is unknown the choice is ours):
//
//   - Stored and deflated entries only, zip64 included; encrypted entries and
//     other methods are refused.
//   - Names are relative, with slashes. "..", a leading slash, a
//     backslash, a NUL, an element over 255 bytes, a name over 4,000 bytes and
//     more than 255 levels are refused; "." elements and doubled slashes vanish.
//   - Files, directories and symbolic links; devices, fifos and sockets are
//     refused. Set-user-id, set-group-id and sticky bits are dropped.
//   - Modes are those of zips made on Unix. A zip that carries none gets 0755 for
//     directories and 0644 for files. Directories always get at least 0755, so
//     that a function can enter and their owner can remove them; a file keeps
//     exactly its bits, so a 0600 file cannot be read by the function.
//   - Of several entries of one name the last wins. A name that is a directory in
//     one place and a file or a link in another is refused, which also refuses
//     every entry that passes through a link: no order of entries leads out of
//     the tree.
//   - Links are kept as written and never followed here: absolute targets are
//     meant for the sandbox.
//   - Modification times are kept; compiled Python depends on them.
//
// A refusal is a *lambdad.Error with AWS's text and the real cause in Err. What
// is not the archive's fault (disk full, context ended) is an ordinary error.
package archive

import (
	"archive/zip"
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/flate"

	"github.com/lambdad/lambdad"
)

// Limits beyond those AWS documents. They keep the memory and the inodes that a
// hostile zip can cost within bounds, and are far above what fits a function.
const (
	maxNodes     = 200_000  // files, links and directories, those only implied too
	maxDirectory = 24 << 20 // bytes of the zip's own directory
	maxName      = 4000     // bytes of a path
	maxElement   = 255      // bytes of an element of it
	maxDepth     = 255      // elements
	maxLink      = 4095     // bytes of a link's target
	headSize     = 4096     // bytes of a file that warnings look at
	copySize     = 128 << 10
)

// Info is what an archive holds.
type Info struct {
	// Unzipped is the sum of the entries' sizes in bytes, counted while
	// inflating. A link counts as its text.
	Unzipped int64
	// Files counts files and links, each name once.
	Files int
	// Warnings are for the owner of the archive: each names a file, what will go
	// wrong with it and the cure. They never make an archive invalid.
	Warnings []string
}

var errTooLarge = errors.New("the entries hold more than the limit")

// unzipError is AWS's answer to an archive it cannot read.
func unzipError(cause error) error {
	return &lambdad.Error{
		Code:    "InvalidParameterValueException",
		Message: "Could not unzip uploaded file. Please check your file, then try to upload again.",
		Err:     cause,
	}
}

// sizeError is AWS's answer to an archive that inflates to too much.
func sizeError() error {
	e := lambdad.Errorf("InvalidParameterValueException", "Unzipped size must be smaller than %d bytes", lambdad.MaxUnzipped)
	e.Err = errTooLarge
	return e
}

// Inspect reads every entry of a function package of size bytes, counting while
// inflating, and says what is in it. It warns about a bootstrap that cannot
// start.
func Inspect(r io.ReaderAt, size int64) (Info, error) {
	return inspect(r, size, nil, func(path string) bool { return path == "bootstrap" })
}

// InspectLayer is Inspect for a layer: it also warns about files in extensions/,
// every one of which will be started as an extension (traps.md items 28, 29 and
// 86). architectures are those the layer says it is for; none: any.
func InspectLayer(r io.ReaderAt, size int64, architectures []string) (Info, error) {
	return inspect(r, size, architectures, startedInLayer)
}

// inspect inflates everything; wanted chooses the files that are started as
// programs, which get looked at.
func inspect(r io.ReaderAt, size int64, architectures []string, wanted func(path string) bool) (Info, error) {
	p, err := readPlan(r, size)
	if err != nil {
		return Info{}, err
	}
	heads := make([][]byte, len(p.all))
	var total atomic.Int64
	err = parallel(context.Background(), len(p.all), func() (func(int) error, func()) {
		buf := make([]byte, copySize)
		return func(i int) error {
			e := &p.all[i]
			var head []byte
			if wanted(e.path) || e.link() || nestedExtension(e.path) {
				head = make([]byte, 0, headSize)
			}
			err := inflate(e.file, buf, &total, func(b []byte) error {
				if head != nil {
					head = append(head, b[:min(len(b), headSize-len(head))]...)
				}
				return nil
			})
			if err == nil && e.link() {
				err = checkLink(e, head)
			}
			heads[i] = head
			return err
		}, func() {}
	})
	if err != nil {
		return Info{}, err
	}
	info := Info{Unzipped: total.Load(), Files: len(p.files) + len(p.links)}
	info.Warnings = warnings(p, heads, architectures, wanted)
	return info, nil
}

// inflate reads one entry and gives its bytes to f. It stops as soon as the entry
// is longer than it says or all entries together are longer than AWS allows.
func inflate(file *zip.File, buf []byte, total *atomic.Int64, f func([]byte) error) error {
	rc, err := file.Open()
	if err != nil {
		return unzipError(&entryError{file.Name, err})
	}
	defer rc.Close()
	var n uint64
	for {
		m, err := rc.Read(buf)
		n += uint64(m)
		if total.Add(int64(m)) > lambdad.MaxUnzipped {
			return sizeError()
		}
		if n > file.UncompressedSize64 {
			return unzipError(&entryError{file.Name, errors.New("holds more than it declares")})
		}
		if m > 0 {
			if err := f(buf[:m]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return unzipError(&entryError{file.Name, err})
		}
	}
}

// An entryError says which entry is at fault.
type entryError struct {
	name string
	err  error
}

func (e *entryError) Error() string {
	name := e.name
	if len(name) > 200 {
		name = name[:200] + "…"
	}
	return "entry " + quote(name) + ": " + e.err.Error()
}

func (e *entryError) Unwrap() error { return e.err }

// workers is how many goroutines inflate one archive.
func workers() int { return min(2, runtime.GOMAXPROCS(0)) }

// parallel calls a worker's function for 0..n-1, each once, in runs of
// neighbours. The error of the lowest failed index is returned, so that the same
// archive gives the same answer; an archive that is too large always says so.
func parallel(ctx context.Context, n int, worker func() (do func(i int) error, done func())) error {
	const run = 16
	var (
		next   atomic.Int64
		mu     sync.Mutex
		first  error
		at     int
		failed atomic.Bool
		wg     sync.WaitGroup
	)
	fail := func(i int, err error) {
		mu.Lock()
		defer mu.Unlock()
		if first == nil || errors.Is(err, errTooLarge) || i < at && !errors.Is(first, errTooLarge) {
			first, at = err, i
		}
		failed.Store(true)
	}
	for range min(workers(), max(1, n/run)) {
		wg.Go(func() {
			do, done := worker()
			defer done()
			for {
				from := int(next.Add(run)) - run
				for i := from; i < min(from+run, n); i++ {
					if failed.Load() {
						return
					}
					if err := context.Cause(ctx); err != nil {
						fail(i, err)
						return
					}
					if err := do(i); err != nil {
						fail(i, err)
						return
					}
				}
				if from+run >= n {
					return
				}
			}
		})
	}
	wg.Wait()
	return first
}

// inflaters keeps decompressors for reuse: each costs 40 KB.
type inflaters struct{ pool sync.Pool }

func (p *inflaters) new(r io.Reader) io.ReadCloser {
	if d, ok := p.pool.Get().(*inflater); ok {
		// Reset of a flate reader with no dictionary cannot fail.
		_ = d.rc.(flate.Resetter).Reset(r, nil)
		return d
	}
	return &inflater{rc: flate.NewReader(r), home: p}
}

type inflater struct {
	rc   io.ReadCloser
	home *inflaters
}

func (d *inflater) Read(b []byte) (int, error) {
	if d.rc == nil {
		return 0, errors.New("read after close")
	}
	return d.rc.Read(b)
}

func (d *inflater) Close() error {
	if d.rc == nil {
		return nil
	}
	d.home.pool.Put(&inflater{rc: d.rc, home: d.home})
	d.rc = nil
	return nil
}
