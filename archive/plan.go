package archive

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lambdad/lambdad"
)

// A plan is the tree that a zip describes, checked, before anything is inflated.
type plan struct {
	all   []entry // every entry, in the zip's order
	files []int   // indexes of what will be files, by path
	links []int   // indexes of what will be links, by path
	dirs  []dir   // by path, so parents first; without the root
	top   *entry  // an entry for the root itself
}

type dir struct {
	path  string
	entry int // index, or -1 for one that is only implied
}

// An entry is one entry of the zip.
type entry struct {
	file     *zip.File
	path     string // relative, clean; "" is the root
	mode     fs.FileMode
	modeless bool // the zip carries no Unix mode for it
}

func (e *entry) link() bool { return e.mode&fs.ModeSymlink != 0 }

// readPlan reads the directory of the zip.
func readPlan(r io.ReaderAt, size int64) (*plan, error) {
	if size == 0 {
		return nil, emptyError()
	}
	// The library keeps all of the directory in memory and does not limit it.
	budget := &budgetReader{r: r}
	budget.left.Store(maxDirectory)
	z, err := zip.NewReader(budget, size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return nil, unzipError(err)
	}
	budget.left.Store(math.MaxInt64)
	if len(z.File) == 0 {
		return nil, emptyError()
	}
	inflaters := &inflaters{}
	z.RegisterDecompressor(zip.Deflate, inflaters.new)

	p := &plan{all: make([]entry, len(z.File))}
	nodes := make(map[string]node, len(z.File))
	var paths []string // of nodes, as they came
	var declared uint64
	for i, f := range z.File {
		e := &p.all[i]
		if err := readEntry(e, f); err != nil {
			return nil, unzipError(&entryError{f.Name, err})
		}
		declared += f.UncompressedSize64
		if f.UncompressedSize64 > math.MaxInt64 || declared > math.MaxInt64 {
			return nil, sizeError()
		}
		if e.path == "" {
			p.top = e
			continue
		}
		if paths, err = addNode(nodes, paths, e, i); err != nil {
			return nil, unzipError(&entryError{f.Name, err})
		}
		if len(nodes) > maxNodes {
			return nil, unzipError(fmt.Errorf("more than %d files and directories", maxNodes))
		}
	}
	// What is declared is not believed when it is small; when it is too large the
	// archive is refused either way, at once.
	if declared > lambdad.MaxUnzipped {
		return nil, sizeError()
	}
	for _, path := range paths {
		n := nodes[path]
		switch {
		case n.dir:
			p.dirs = append(p.dirs, dir{path, n.entry})
		case p.all[n.entry].link():
			p.links = append(p.links, n.entry)
		default:
			p.files = append(p.files, n.entry)
		}
	}
	sort.Slice(p.dirs, func(i, j int) bool { return p.dirs[i].path < p.dirs[j].path })
	for _, list := range [][]int{p.files, p.links} {
		sort.Slice(list, func(i, j int) bool {
			a, b := p.all[list[i]].path, p.all[list[j]].path
			// Files of one directory stay together.
			if da, db := parent(a), parent(b); da != db {
				return da < db
			}
			return a < b
		})
	}
	return p, nil
}

func emptyError() error {
	return lambdad.Errorf("InvalidParameterValueException", "Uploaded file must be a non-empty zip")
}

type node struct {
	entry int // index of the entry that decides, or -1 for an implied directory
	dir   bool
}

// addNode puts entry i into the tree and adds the names that are new to paths. The
// last of several wins.
func addNode(nodes map[string]node, paths []string, e *entry, i int) ([]string, error) {
	for p := parent(e.path); p != ""; p = parent(p) {
		n, ok := nodes[p]
		if ok && !n.dir {
			return paths, fmt.Errorf("%s is a file or a link elsewhere in the archive", quote(p))
		}
		if ok {
			break // so its parents are there, too
		}
		nodes[p] = node{-1, true}
		paths = append(paths, p)
		if len(nodes) > maxNodes {
			return paths, nil // the caller refuses
		}
	}
	n, ok := nodes[e.path]
	if ok && n.dir != e.mode.IsDir() {
		return paths, errors.New("is a directory and something else in the same archive")
	}
	if !ok {
		paths = append(paths, e.path)
	}
	nodes[e.path] = node{i, e.mode.IsDir()}
	return paths, nil
}

func parent(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return ""
}

func base(p string) string { return p[strings.LastIndexByte(p, '/')+1:] }

// quote shows a name that may hold anything.
func quote(s string) string { return strconv.Quote(s) }

// What zip calls the system an entry was made on, and Unix's types of file.
const (
	madeOnUnix  = 3
	madeOnMacOS = 19

	typeMask    = 0o170000
	typeLink    = 0o120000
	typeRegular = 0o100000
	typeDir     = 0o040000
)

func readEntry(e *entry, f *zip.File) error {
	path, slash, err := cleanName(f.Name)
	if err != nil {
		return err
	}
	if f.Flags&1 != 0 {
		return errors.New("is encrypted")
	}
	if f.Method != zip.Store && f.Method != zip.Deflate {
		return fmt.Errorf("compression method %d is neither stored nor deflated", f.Method)
	}
	e.file, e.path = f, path

	var unix uint32
	if made := f.CreatorVersion >> 8; made == madeOnUnix || made == madeOnMacOS {
		unix = f.ExternalAttrs >> 16
	}
	e.modeless = unix == 0
	perm := fs.FileMode(unix & 0o777)
	switch unix & typeMask {
	case typeDir:
		slash = true
	case typeLink:
		if slash || path == "" {
			return errors.New("is a link with the name of a directory")
		}
		e.mode = fs.ModeSymlink | 0o777
		return nil
	case 0, typeRegular:
	default:
		return errors.New("is a device, a fifo or a socket")
	}
	if slash {
		// The library gives no content for names with a slash; a directory that is
		// one by its mode alone must not have any either.
		if f.UncompressedSize64 != 0 {
			return errors.New("is a directory with content")
		}
		e.mode = fs.ModeDir | perm | 0o755
		return nil
	}
	if path == "" {
		return errors.New("is a file without a name")
	}
	if e.modeless {
		perm = 0o644
	}
	e.mode = perm
	return nil
}

// cleanName checks the name of an entry and returns it without "." elements and
// doubled slashes. dir says that it ended like a directory.
func cleanName(name string) (path string, dir bool, err error) {
	switch {
	case name == "":
		return "", false, errors.New("has no name")
	case len(name) > maxName:
		return "", false, fmt.Errorf("name is longer than %d bytes", maxName)
	case name[0] == '/':
		return "", false, errors.New("name is absolute")
	case strings.IndexByte(name, 0) >= 0:
		return "", false, errors.New("name holds a NUL")
	case strings.IndexByte(name, '\\') >= 0:
		return "", false, errors.New("name holds a backslash; elements of a path are separated by slashes")
	}
	dir = strings.HasSuffix(name, "/")
	clean, depth := true, 0
	for rest := strings.TrimSuffix(name, "/"); ; {
		element, tail, more := strings.Cut(rest, "/")
		switch {
		case element == "..":
			return "", false, errors.New(`name holds ".."`)
		case element == "" || element == ".":
			clean = false
		case len(element) > maxElement:
			return "", false, fmt.Errorf("an element of the name is longer than %d bytes", maxElement)
		default:
			depth++
		}
		if !more {
			if element == "." {
				dir = true
			}
			break
		}
		rest = tail
	}
	if depth > maxDepth {
		return "", false, fmt.Errorf("name has more than %d levels", maxDepth)
	}
	path = strings.TrimSuffix(name, "/")
	if clean {
		return path, dir, nil
	}
	var kept []string
	for _, element := range strings.Split(path, "/") {
		if element != "" && element != "." {
			kept = append(kept, element)
		}
	}
	return strings.Join(kept, "/"), dir, nil
}

// checkLink checks the content of a link.
func checkLink(e *entry, target []byte) error {
	var err error
	switch {
	case len(target) == 0:
		err = errors.New("is a link to nothing")
	case len(target) > maxLink || e.file.UncompressedSize64 > maxLink:
		err = fmt.Errorf("target of the link is longer than %d bytes", maxLink)
	case strings.IndexByte(string(target), 0) >= 0:
		err = errors.New("target of the link holds a NUL")
	default:
		return nil
	}
	return unzipError(&entryError{e.file.Name, err})
}

// modTime is the time an entry was changed; before the oldest that zip can say
// there is none.
func (e *entry) modTime() (time.Time, bool) {
	t := e.file.Modified
	return t, t.Year() >= 1980 && t.Year() < 2108
}

// A budgetReader reads a limited number of bytes.
type budgetReader struct {
	r    io.ReaderAt
	left atomic.Int64
}

func (b *budgetReader) ReadAt(p []byte, off int64) (int, error) {
	// The library looks for the directory in the last 65 KB before it reads it.
	if b.left.Load() != math.MaxInt64 && b.left.Add(-int64(len(p))) < 0 {
		return 0, fmt.Errorf("the directory of the archive is larger than %d bytes", maxDirectory)
	}
	return b.r.ReadAt(p, off)
}
