package image

import (
	"archive/tar"
	"archive/zip"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/lambdad/lambdad"
)

// Extract writes what an image has below a directory, such as opt, as a zip whose
// names are relative to it: what a layer of the same files would be. Files that other
// layers of the image hide are left out. The layers must be stored; nothing is
// unpacked. It returns how many files and links were written.
func (s *Store) Extract(ctx context.Context, img *lambdad.Image, dir string, w io.Writer) (int, error) {
	x := &extractor{dir: dir, out: zip.NewWriter(w), left: lambdad.MaxUnzipped, seen: map[string]bool{}, hidden: map[string]bool{}, opaque: map[string]bool{}}
	done := map[string]bool{}
	for i := len(img.Layers) - 1; i >= 0; i-- { // what is above counts
		l := img.Layers[i]
		if done[l.Digest] {
			continue
		}
		done[l.Digest] = true
		if err := s.extractLayer(ctx, x, l); err != nil {
			return 0, err
		}
	}
	return x.files, x.out.Close()
}

// An extractor remembers what the layers above have.
type extractor struct {
	dir    string
	out    *zip.Writer
	left   int64
	files  int
	seen   map[string]bool // true: a directory
	hidden map[string]bool // names that are gone
	opaque map[string]bool // directories whose content below is not seen
}

// covered says whether a name of a lower layer is not seen.
func (x *extractor) covered(name string) bool {
	if _, ok := x.seen[name]; ok || x.hidden[name] {
		return true
	}
	for d := path.Dir(name); d != "." && d != "/"; d = path.Dir(d) {
		isDir, ok := x.seen[d]
		if x.hidden[d] || x.opaque[d] || ok && !isDir {
			return true
		}
	}
	return false
}

func (s *Store) extractLayer(ctx context.Context, x *extractor, l lambdad.ImageLayer) error {
	links := map[string][]string{} // hard links by the file they mean
	hide, opaque := map[string]bool{}, map[string]bool{}
	seen := map[string]bool{}
	err := s.eachEntry(ctx, l, func(h *tar.Header, content io.Reader) error {
		name, err := cleaned(h.Name)
		if err != nil {
			return err
		}
		base := path.Base(name)
		if name == x.dir && h.Typeflag != tar.TypeDir {
			return refuse(name, "it must be a directory")
		}
		if strings.HasPrefix(base, whiteoutPrefix) && name != "" {
			switch at := parentOf(name); {
			case base == whiteoutOpaque:
				opaque[at] = true
			case !strings.HasPrefix(base, whiteoutMeta):
				hide[path.Join(at, strings.TrimPrefix(base, whiteoutPrefix))] = true
			}
			return nil
		}
		rel, ok := strings.CutPrefix(name, x.dir+"/")
		if !ok || x.covered(name) {
			return nil
		}
		if len(x.seen)+len(seen) > maxNodes {
			return invalidf(nil, "The image holds more than %d files.", maxNodes)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			seen[name] = true
			return nil
		case tar.TypeReg:
			if _, twice := seen[name]; twice {
				return refuse(name, "it is twice in one layer")
			}
			seen[name] = false
			return x.add(rel, h, content)
		case tar.TypeSymlink:
			seen[name] = false
			if len(h.Linkname) > maxLink {
				return refuse(name, "its target is too long")
			}
			return x.add(rel, h, strings.NewReader(h.Linkname))
		case tar.TypeLink:
			target, err := cleaned(h.Linkname)
			if err != nil {
				return err
			}
			seen[name] = false
			links[target] = append(links[target], rel)
		}
		return nil
	})
	if err == nil && len(links) > 0 {
		err = s.eachEntry(ctx, l, func(h *tar.Header, content io.Reader) error {
			name, err := cleaned(h.Name)
			if err != nil || len(links[name]) == 0 || h.Typeflag != tar.TypeReg {
				return err
			}
			if len(links[name]) > 1 {
				return refuse(name, "several hard links mean it")
			}
			rel := links[name][0]
			delete(links, name)
			return x.add(rel, h, content)
		})
		for target := range links {
			err = errors.Join(err, refuse(links[target][0], "it is a hard link to "+shown(target)+", which is no file of this layer"))
		}
	}
	for name, isDir := range seen {
		x.seen[name] = isDir
	}
	for name := range hide {
		x.hidden[name] = true
	}
	for name := range opaque {
		x.opaque[name] = true
	}
	return err
}

// add writes one file or link.
func (x *extractor) add(name string, h *tar.Header, content io.Reader) error {
	z := &zip.FileHeader{Name: name, Method: zip.Deflate, Modified: h.ModTime}
	z.SetMode(h.FileInfo().Mode() & (fs.ModePerm | fs.ModeSymlink))
	w, err := x.out.CreateHeader(z)
	if err != nil {
		return err
	}
	n, err := io.Copy(w, io.LimitReader(content, x.left+1))
	if err != nil {
		return broken(err)
	}
	if x.left -= n; x.left < 0 {
		return invalidf(nil, "The image holds more than %d bytes below /%s, which is the limit of a layer.", int64(lambdad.MaxUnzipped), x.dir)
	}
	x.files++
	return nil
}

// eachEntry calls f with every entry of a layer.
func (s *Store) eachEntry(ctx context.Context, l lambdad.ImageLayer, f func(*tar.Header, io.Reader) error) error {
	r, _, err := s.Blobs.Open(ctx, l.Digest)
	if err != nil {
		return err
	}
	defer r.Close()
	plain, done, err := decompressed(r)
	if err != nil {
		return broken(err)
	}
	defer done()
	t := tar.NewReader(&hashed{ctx: ctx, r: plain, sum: sha256.New(), left: lambdad.MaxImage + maxPadding})
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return broken(err)
		}
		if err := f(h, t); err != nil {
			return err
		}
	}
}
