package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/blob"
)

// ImportLayout stores the image of an OCI layout directory. tag chooses among
// several by their org.opencontainers.image.ref.name; "": the only one.
// release ends its protection from being collected.
func (s *Store) ImportLayout(ctx context.Context, dir, tag, architecture string) (img *lambdad.Image, release func(), err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("the OCI layout: %w", err)
	}
	defer root.Close()
	open := func(name string) (io.ReadCloser, error) { return root.Open(name) }
	img, release, err = s.importLayout(ctx, dir, tag, architecture, open)
	if err != nil {
		return nil, nil, fmt.Errorf("the OCI layout %s: %w", dir, err)
	}
	return img, release, nil
}

// ImportTar stores the image of a tar, gzipped or not, which holds an OCI layout or
// is what docker save writes.
func (s *Store) ImportTar(ctx context.Context, file, tag, architecture string) (img *lambdad.Image, release func(), err error) {
	a, err := indexTar(ctx, file)
	if err != nil {
		return nil, nil, fmt.Errorf("the image archive %s: %w", file, err)
	}
	defer a.close()
	switch {
	case a.has("index.json") && a.has("oci-layout"):
		img, release, err = s.importLayout(ctx, file, tag, architecture, a.open)
	case a.has("manifest.json"):
		img, release, err = s.importDocker(ctx, file, tag, architecture, a.open)
	default:
		err = invalidf(nil, "The archive has neither index.json with oci-layout nor manifest.json: it is no image. Write one with docker save or skopeo copy.")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the image archive %s: %w", file, err)
	}
	return img, release, nil
}

// opener opens a file of a layout or archive by its slashed name.
type opener func(name string) (io.ReadCloser, error)

func (o opener) read(name string, limit int64) ([]byte, error) {
	f, err := o(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return data, err
}

func (s *Store) importLayout(ctx context.Context, name, tag, architecture string, open opener) (*lambdad.Image, func(), error) {
	index, err := open.read("index.json", MaxManifest)
	if err != nil {
		return nil, nil, err
	}
	d, err := pick(index, tag)
	if err != nil {
		return nil, nil, err
	}
	file := func(d Descriptor) string { return "blobs/sha256/" + d.hex() }
	small := func(_ context.Context, d Descriptor, limit int64) ([]byte, error) { return open.read(file(d), limit) }
	for range 3 {
		raw, err := small(ctx, d, MaxManifest)
		if err != nil {
			return nil, nil, err
		}
		m, err := ParseManifest(raw, d.MediaType)
		if err != nil {
			return nil, nil, unsupported(name, err)
		}
		if m.Index() {
			if d, err = m.choose(name, architecture); err != nil {
				return nil, nil, err
			}
			continue
		}
		img, err := describe(ctx, name, architecture, raw, m, small)
		if err != nil {
			return nil, nil, err
		}
		if img.Digest != d.hex() {
			return nil, nil, invalidf(nil, "The manifest sha256:%s of %s has the digest sha256:%s: the image is damaged.", d.hex(), name, img.Digest)
		}
		all := append([]Descriptor{d, m.Config}, m.Layers...)
		var pinned []string
		for _, d := range all {
			pinned = append(pinned, d.hex())
		}
		release := s.Pin(pinned...)
		for _, d := range all {
			if err := s.copyBlob(ctx, open, file(d), d); err != nil {
				release()
				return nil, nil, err
			}
		}
		return img, release, nil
	}
	return nil, nil, unsupported(name, errors.New("indexes of indexes"))
}

// copyBlob stores a file that must be what a descriptor says.
func (s *Store) copyBlob(ctx context.Context, open opener, file string, d Descriptor) error {
	if s.Has(ctx, d.hex()) {
		return nil
	}
	f, err := open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, _, err = s.Put(ctx, f, d.hex())
	if errors.Is(err, blob.ErrCorrupt) {
		return invalidf(err, "The blob %s does not match its digest: the image is damaged.", d.Digest)
	}
	return err
}

// pick chooses a manifest or index of a layout.
func pick(index []byte, tag string) (Descriptor, error) {
	var list struct {
		Manifests []struct {
			Descriptor
			Annotations map[string]string `json:"annotations"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(index, &list); err != nil {
		return Descriptor{}, invalidf(err, "The index.json of the image cannot be read: %v.", err)
	}
	const refName = "org.opencontainers.image.ref.name"
	var names []string
	for _, m := range list.Manifests {
		if !m.valid() {
			return Descriptor{}, invalidf(nil, "The index.json of the image names %.80q, which is no digest.", m.Digest)
		}
		n := m.Annotations[refName]
		if tag != "" && (n == tag || strings.HasSuffix(n, ":"+tag)) || tag == "" && len(list.Manifests) == 1 {
			return m.Descriptor, nil
		}
		names = append(names, n)
	}
	if tag == "" {
		return Descriptor{}, invalidf(nil, "The image layout holds %d images; choose one by its tag: %s.", len(list.Manifests), orNothing(names))
	}
	return Descriptor{}, invalidf(nil, "The image layout has no tag %s; it has %s.", tag, orNothing(names))
}

// importDocker stores what docker save wrote: layers as plain tars, without
// digests. A manifest is made for them.
func (s *Store) importDocker(ctx context.Context, name, tag, architecture string, open opener) (*lambdad.Image, func(), error) {
	data, err := open.read("manifest.json", MaxManifest)
	if err != nil {
		return nil, nil, err
	}
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, nil, invalidf(err, "The manifest.json of the archive cannot be read: %v.", err)
	}
	at := -1
	var names []string
	for i, e := range list {
		names = append(names, e.RepoTags...)
		for _, t := range e.RepoTags {
			if t == tag || strings.HasSuffix(t, ":"+tag) && tag != "" {
				at = i
			}
		}
	}
	if tag == "" && len(list) == 1 {
		at = 0
	}
	if at < 0 {
		return nil, nil, invalidf(nil, "The archive holds %d images; choose one by its tag: %s.", len(list), orNothing(names))
	}
	if len(list[at].Layers) > maxLayers {
		return nil, nil, invalidf(nil, "The image has %d layers; it must have 1 to %d.", len(list[at].Layers), maxLayers)
	}
	config, err := open.read(list[at].Config, maxConfig)
	if err != nil {
		return nil, nil, err
	}
	m := Manifest{SchemaVersion: 2, MediaType: TypeOCIManifest}
	var pinned []string
	put := func(r io.Reader, mediaType string) (Descriptor, error) {
		digest, size, err := s.Put(ctx, r, "")
		if err != nil {
			return Descriptor{}, err
		}
		pinned = append(pinned, digest)
		return Descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: size}, nil
	}
	for _, file := range list[at].Layers {
		f, err := open(file)
		if err != nil {
			return nil, nil, err
		}
		d, err := put(f, "application/vnd.oci.image.layer.v1.tar")
		f.Close()
		if err != nil {
			return nil, nil, err
		}
		m.Layers = append(m.Layers, d)
	}
	if m.Config, err = put(bytes.NewReader(config), typeOCIConfig); err != nil {
		return nil, nil, err
	}
	raw, err := json.Marshal(struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        Descriptor   `json:"config"`
		Layers        []Descriptor `json:"layers"`
	}{2, m.MediaType, m.Config, m.Layers})
	if err != nil {
		return nil, nil, err
	}
	img, err := describe(ctx, name, architecture, raw, &m, func(context.Context, Descriptor, int64) ([]byte, error) { return config, nil })
	if err != nil {
		return nil, nil, err
	}
	if _, err = put(bytes.NewReader(raw), m.MediaType); err != nil {
		return nil, nil, err
	}
	return img, s.Pin(pinned...), nil
}

// tarFile is a tar whose files can be opened in any order.
type tarFile struct {
	f     *os.File
	files map[string]span
}

type span struct{ at, size int64 }

// maxTarFiles bounds what is remembered of an archive.
const maxTarFiles = 10_000

// indexTar finds the files of a tar. A compressed one is written out plain first,
// into a file that has no name.
func indexTar(ctx context.Context, file string) (_ *tarFile, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	head := make([]byte, 4)
	if _, err := io.ReadFull(f, head); err != nil {
		return nil, invalidf(err, "The archive is shorter than any image.")
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if bytes.HasPrefix(head, []byte{0x1f, 0x8b}) || bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		if f, err = inflated(ctx, f); err != nil {
			return nil, err
		}
	}
	a := &tarFile{f: f, files: map[string]span{}}
	counted := &counter{f: f}
	t := tar.NewReader(counted)
	links := map[string]string{}
	for n := 0; ; n++ {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, invalidf(err, "The archive cannot be read: %v.", err)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if n > maxTarFiles {
			return nil, invalidf(nil, "The archive holds more than %d files: it is no image.", maxTarFiles)
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			a.files[name] = span{counted.at, h.Size}
		case tar.TypeSymlink: // docker save: a layer that is there already
			links[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			links[name] = path.Clean(h.Linkname)
		}
	}
	for name, target := range links {
		if s, ok := a.files[target]; ok {
			a.files[name] = s
		}
	}
	return a, nil
}

// inflated writes a compressed file out plain and closes it.
func inflated(ctx context.Context, f *os.File) (*os.File, error) {
	defer f.Close()
	out, err := os.CreateTemp("", "lambdad-image-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(out.Name()); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	plain, done, err := decompressed(f)
	if err != nil {
		return nil, errors.Join(broken(err), out.Close())
	}
	defer done()
	n, err := io.Copy(out, io.LimitReader(readerFunc(func(b []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return plain.Read(b)
	}), lambdad.MaxImage+maxPadding))
	if err == nil && n == lambdad.MaxImage+maxPadding {
		err = errLong
	}
	if err == nil {
		_, err = out.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(broken(err), out.Close())
	}
	return out, nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// counter is a file that knows where it is. It can seek, so that the content of a
// tar's files need not be read.
type counter struct {
	f  *os.File
	at int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.f.Read(b)
	c.at += int64(n)
	return n, err
}

func (c *counter) Seek(offset int64, whence int) (n int64, err error) {
	n, err = c.f.Seek(offset, whence)
	if err == nil {
		c.at = n
	}
	return n, err
}

func (a *tarFile) has(name string) bool { _, ok := a.files[name]; return ok }

func (a *tarFile) open(name string) (io.ReadCloser, error) {
	s, ok := a.files[path.Clean(name)]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(a.f, s.at, s.size)), nil
}

func (a *tarFile) close() { a.f.Close() }
