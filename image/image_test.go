package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/klauspost/compress/zstd"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/blob"
)

// entry is one of a tar.
type entry struct {
	name string
	kind byte // 0: a file
	body string
	link string
	mode int64
	pax  map[string]string
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		if e.mode == 0 {
			e.mode = 0o755
		}
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, Size: int64(len(e.body)), ModTime: time.Unix(1e9, 0), Uid: 1000, PAXRecords: e.pax, Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func unpackTest(t testing.TB, layer []byte, limit int64) (dir string, info layerInfo, err error) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "tree")
	info, err = unpack(t.Context(), bytes.NewReader(layer), dir, limit, func() error { return nil })
	return dir, info, err
}

// TestHostileLayers: each is refused with a text that says what is wrong, and nothing
// is ever outside.
func TestHostileLayers(t *testing.T) {
	deep := strings.Repeat("d/", 300) + "f"
	good := tarOf(t, entry{name: "a", body: strings.Repeat("x", 5000)})
	bomb := gzipped(t, bytes.Repeat([]byte{0}, 4<<20))
	for _, tt := range []struct {
		name  string
		layer []byte
		want  string
	}{
		{"upwards", tarOf(t, entry{name: "../evil", body: "x"}), "leads upwards"},
		{"upwards inside", tarOf(t, entry{name: "a/../../evil", body: "x"}), "leads upwards"},
		{"through a link", tarOf(t, entry{name: "l", kind: tar.TypeSymlink, link: "/etc"}, entry{name: "l/passwd", body: "x"}), "it is a link"},
		{"through a relative link", tarOf(t, entry{name: "l", kind: tar.TypeSymlink, link: "../.."}, entry{name: "l/x/y", body: "x"}), "it is a link"},
		{"through a file", tarOf(t, entry{name: "f", body: "x"}, entry{name: "f/g", body: "x"}), "it is a file"},
		{"link over a directory", tarOf(t, entry{name: "d/f", body: "x"}, entry{name: "d", kind: tar.TypeSymlink, link: "/etc"}), "directory in another place"},
		{"directory over a link", tarOf(t, entry{name: "d", kind: tar.TypeSymlink, link: "/etc"}, entry{name: "d/", kind: tar.TypeDir}), "something else"},
		{"hard link outside", tarOf(t, entry{name: "h", kind: tar.TypeLink, link: "/etc/passwd"}), "no file of this layer"},
		{"hard link upwards", tarOf(t, entry{name: "h", kind: tar.TypeLink, link: "../../etc/passwd"}), "leads upwards"},
		{"hard link to itself", tarOf(t, entry{name: "h", kind: tar.TypeLink, link: "h"}), "itself"},
		{"root is a link", tarOf(t, entry{name: "./", kind: tar.TypeSymlink, link: "/etc"}), "the root"},
		{"long element", tarOf(t, entry{name: strings.Repeat("x", 300), body: "x"}), "255 bytes"},
		{"deep", tarOf(t, entry{name: deep, body: "x"}), "too deep"},
		{"whiteout of the parent", tarOf(t, entry{name: "a/.wh...", body: ""}), "hides nothing"},
		{"whiteout of nothing", tarOf(t, entry{name: ".wh.", body: ""}), "hides nothing"},
		{"unknown type", tarOf(t, entry{name: "u", kind: 'V'}), "unknown type"},
		{"too large", tarOf(t, entry{name: "big", body: strings.Repeat("x", 3<<20)}), "more than"},
		{"too large together", tarOf(t, entry{name: "a", body: strings.Repeat("x", 1<<20)}, entry{name: "b", body: strings.Repeat("x", 1<<20)}), "more than"},
		{"truncated", good[:2048], "ends in the middle"},
		{"truncated gzip", gzipped(t, good)[:40], "ends in the middle"},
		{"empty", nil, "ends in the middle"},
		{"garbage", []byte("this is not an archive, but long enough" + strings.Repeat("x", 1000)), "cannot be read"},
		{"bad gzip", append([]byte{0x1f, 0x8b}, bytes.Repeat([]byte{7}, 600)...), "cannot be read"},
		{"bad zstd", append([]byte{0x28, 0xb5, 0x2f, 0xfd}, bytes.Repeat([]byte{7}, 600)...), "cannot be read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			parent := t.TempDir()
			_, err := unpack(t.Context(), bytes.NewReader(tt.layer), filepath.Join(parent, "tree"), 3<<19, func() error { return nil })
			if lambdad.ErrorCode(err) != "InvalidImage" || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want InvalidImage with %q", err, tt.want)
			}
			if list, _ := os.ReadDir(parent); len(list) != 1 {
				t.Errorf("beside the tree: %v", list)
			}
		})
	}
	// Zeros that inflate to much: an end of the tar, and padding within its bounds.
	if _, info, err := unpackTest(t, bomb, 1<<20); err != nil || info.Nodes != 0 {
		t.Errorf("padding: %+v, %v", info, err)
	}
}

// TestLayer unpacks what images have.
func TestLayer(t *testing.T) {
	layer := tarOf(t,
		entry{name: "./", kind: tar.TypeDir, mode: 0o700},
		entry{name: "usr/bin/su", body: "old"}, entry{name: "usr/bin/su", body: "program", mode: 0o6755},
		entry{name: "/abs", body: "absolute", pax: map[string]string{"SCHILY.xattr.user.note": "v", "SCHILY.xattr.security.capability": "x", "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.overlay.opaque": "y"}},
		entry{name: "hard", kind: tar.TypeLink, link: "usr/bin/su"},
		entry{name: "soft", kind: tar.TypeSymlink, link: "/etc/shadow"}, entry{name: "hardsoft", kind: tar.TypeLink, link: "soft"},
		entry{name: "dev/sda", kind: tar.TypeBlock}, entry{name: "dev/null", kind: tar.TypeChar}, entry{name: "fifo", kind: tar.TypeFifo},
		entry{name: "secret", body: "x", mode: 0o600}, entry{name: "locked/", kind: tar.TypeDir, mode: 0o001}, entry{name: "locked/in", body: "x"},
		entry{name: ".wh..wh.plnk", body: ""}, entry{name: "tmp/", kind: tar.TypeDir, mode: 0o1777},
	)
	var z bytes.Buffer
	w, err := zstd.NewWriter(&z)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(layer)
	w.Close()
	for name, packed := range map[string][]byte{"plain": layer, "gzip": gzipped(t, layer), "zstd": z.Bytes()} {
		t.Run(name, func(t *testing.T) {
			dir, info, err := unpackTest(t, packed, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if info.DiffID != digestOf(layer) {
				t.Errorf("diff id %s, want %s", info.DiffID, digestOf(layer))
			}
			for name, mode := range map[string]fs.FileMode{
				"usr/bin/su": 0o755, "abs": 0o755, "hard": 0o755, "secret": 0o600, "soft": fs.ModeSymlink | 0o777, "hardsoft": fs.ModeSymlink | 0o777,
				".": fs.ModeDir | 0o755, "locked": fs.ModeDir | 0o701, "tmp": fs.ModeDir | fs.ModeSticky | 0o777,
			} {
				fi, err := os.Lstat(filepath.Join(dir, name))
				if err != nil || fi.Mode() != mode {
					t.Errorf("%s: %v, %v; want %v", name, fi, err, mode)
				}
			}
			if b, err := os.ReadFile(filepath.Join(dir, "hard")); string(b) != "program" || err != nil {
				t.Errorf("hard link holds %q, %v", b, err)
			}
			for _, name := range []string{"dev/sda", "dev/null", "fifo", ".wh..wh.plnk", "plnk"} {
				if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s is there: %v", name, err)
				}
			}
			if fi, err := os.Stat(filepath.Join(dir, "abs")); err != nil || !fi.ModTime().Equal(time.Unix(1e9, 0)) {
				t.Errorf("modification time: %v, %v", fi, err)
			}
		})
	}
}

// memory is a blob store for tests.
type memory struct {
	mu sync.Mutex
	m  map[string][]byte
}

type memoryReader struct{ *bytes.Reader }

func (memoryReader) Close() error { return nil }

func (s *memory) Put(ctx context.Context, r io.Reader) (string, int64, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return "", 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[string][]byte{}
	}
	s.m[digestOf(b)] = b
	return digestOf(b), int64(len(b)), nil
}

func (s *memory) Open(_ context.Context, digest string) (blob.Reader, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.m[digest]
	if !ok {
		return nil, 0, blob.ErrNotFound
	}
	return memoryReader{bytes.NewReader(b)}, int64(len(b)), nil
}

func (s *memory) Delete(_ context.Context, digest string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, digest)
	return nil
}

func (s *memory) List(_ context.Context, f func(string, int64) bool) error {
	s.mu.Lock()
	var list []string
	for d := range s.m {
		list = append(list, d)
	}
	s.mu.Unlock()
	for _, d := range list {
		if !f(d, 0) {
			break
		}
	}
	return nil
}

// registry is one that can lie: change may answer in its place.
type registry struct {
	blobs    map[string][]byte // by path after /v2/
	types    map[string]string
	password string
	change   func(w http.ResponseWriter, r *http.Request) bool
}

func (g *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if g.change != nil && g.change(w, r) {
		return
	}
	if _, p, _ := r.BasicAuth(); g.password != "" && p != g.password {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(401)
		return
	}
	p := strings.TrimPrefix(r.URL.Path, "/v2/")
	b, ok := g.blobs[p]
	if p != "" && !ok {
		w.WriteHeader(404)
		return
	}
	w.Header().Set("Content-Type", g.types[p])
	w.Write(b)
}

type manifestOf struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        Descriptor   `json:"config"`
	Layers        []Descriptor `json:"layers"`
}

// serveImage makes a registry with one image, r/app:v1.
func serveImage(t testing.TB, layers ...[]byte) (g *registry, uri string, m *manifestOf) {
	t.Helper()
	g = &registry{blobs: map[string][]byte{}, types: map[string]string{}}
	m = &manifestOf{SchemaVersion: 2, MediaType: TypeOCIManifest}
	var c configFile
	c.OS, c.Architecture = "linux", "amd64"
	c.Config.Entrypoint, c.Config.Env = []string{"/app"}, []string{"A=b"}
	ids := []string{}
	for _, l := range layers {
		z := gzipped(t, l)
		g.blobs["r/app/blobs/sha256:"+digestOf(z)] = z
		m.Layers = append(m.Layers, Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: "sha256:" + digestOf(z), Size: int64(len(z))})
		ids = append(ids, "sha256:"+digestOf(l))
	}
	config, err := json.Marshal(map[string]any{"os": c.OS, "architecture": c.Architecture, "config": map[string]any{"Entrypoint": c.Config.Entrypoint, "Env": c.Config.Env},
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
	if err != nil {
		t.Fatal(err)
	}
	m.Config = Descriptor{MediaType: typeOCIConfig, Digest: "sha256:" + digestOf(config), Size: int64(len(config))}
	g.blobs["r/app/blobs/"+m.Config.Digest] = config
	g.put(t, "v1", m)
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	return g, strings.TrimPrefix(server.URL, "http://") + "/r/app:v1", m
}

// put makes a manifest what a tag means.
func (g *registry) put(t testing.TB, tag string, m any) {
	t.Helper()
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{tag, "sha256:" + digestOf(raw)} {
		g.blobs["r/app/manifests/"+name] = raw
		g.types["r/app/manifests/"+name] = TypeOCIManifest
	}
}

type keychain struct{ password string }

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	if k.password == "" {
		return authn.Anonymous, nil
	}
	return &authn.Basic{Username: "u", Password: k.password}, nil
}

func newStore(t testing.TB, password string) (*Store, *memory) {
	t.Helper()
	blobs := &memory{}
	return New(Config{Dir: filepath.Join(t.TempDir(), "layers"), Blobs: blobs, Keychain: keychain{password}, Stall: 300 * time.Millisecond}), blobs
}

// pull is what a function does with an image.
func pull(ctx context.Context, s *Store, uri string) ([]string, error) {
	r, err := s.Resolve(ctx, uri, "x86_64")
	if err != nil {
		return nil, err
	}
	defer r.Release()
	if err := s.Fetch(ctx, r.Image, r.Resolved); err != nil {
		return nil, err
	}
	if err := s.Check(ctx, r.Image); err != nil {
		return nil, err
	}
	dirs, release, err := s.Open(ctx, r.Image)
	if err == nil {
		release()
	}
	return dirs, err
}

func TestPull(t *testing.T) {
	base, top := tarOf(t, entry{name: "app", body: "x"}), tarOf(t, entry{name: "other", body: "y"})
	g, uri, m := serveImage(t, base, top, base)
	g.password = "secret"
	s, blobs := newStore(t, "secret")
	dirs, err := pull(t.Context(), s, uri)
	if err != nil || len(dirs) != 2 {
		t.Fatalf("%v, %v: of a layer that comes twice only the upper one counts", dirs, err)
	}
	if b, err := os.ReadFile(filepath.Join(dirs[1], "app")); string(b) != "x" || err != nil {
		t.Errorf("the upper one: %q, %v", b, err)
	}
	// An index: the right platform of it.
	raw := g.blobs["r/app/manifests/v1"]
	index := map[string]any{"schemaVersion": 2, "mediaType": TypeOCIIndex, "manifests": []Descriptor{
		{MediaType: TypeOCIManifest, Digest: "sha256:" + strings.Repeat("0", 64), Platform: &Platform{OS: "linux", Architecture: "arm64"}},
		{MediaType: TypeOCIManifest, Digest: "sha256:" + digestOf(raw), Size: int64(len(raw)), Platform: &Platform{OS: "linux", Architecture: "amd64"}}}}
	g.put(t, "multi", index)
	r, err := s.Resolve(t.Context(), strings.Replace(uri, ":v1", ":multi", 1), "x86_64")
	if err != nil || r.Image.Digest != digestOf(raw) || !strings.HasSuffix(r.Resolved, "/r/app@sha256:"+digestOf(raw)) || r.Image.Entrypoint[0] != "/app" {
		t.Fatalf("%+v, %v", r, err)
	}
	r.Release()

	// Collected: nothing refers to it, but only after the grace; then all of it goes.
	s.Now = func() time.Time { return time.Now() }
	if err := s.Collect(t.Context(), []string{digestOf(raw)}, 0); err != nil || len(blobs.m) != 4 {
		t.Fatalf("%d blobs of a used image, %v", len(blobs.m), err)
	}
	if err := s.Collect(t.Context(), nil, time.Hour); err != nil || len(blobs.m) != 4 {
		t.Fatalf("%d blobs within the grace, %v", len(blobs.m), err)
	}
	release := s.Pin(m.Config.hex())
	s.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	if err := s.Collect(t.Context(), nil, time.Hour); err != nil || len(blobs.m) != 1 {
		t.Fatalf("%d blobs after it, one is pinned: %v", len(blobs.m), err)
	}
	release()
	for range 2 { // the grace of what was pinned begins with its release
		at := s.Now().Add(2 * time.Hour)
		s.Now = func() time.Time { return at }
		if err := s.Collect(t.Context(), nil, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := os.ReadDir(s.Dir); len(blobs.m) != 0 || len(left) != 0 {
		t.Errorf("left: %d blobs, %v", len(blobs.m), left)
	}
}

// TestHostileRegistries: whatever a registry does, the caller hears of it in AWS's
// words, in time, and nothing of it is used.
func TestHostileRegistries(t *testing.T) {
	layer := tarOf(t, entry{name: "app", body: strings.Repeat("x", 10000)})
	only := func(part string, f func(w http.ResponseWriter, r *http.Request)) func(*registry, *manifestOf) {
		return func(g *registry, _ *manifestOf) {
			g.change = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, part) {
					return false
				}
				f(w, r)
				return true
			}
		}
	}
	hang := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	again := func(change func(m *manifestOf)) func(*registry, *manifestOf) {
		return func(g *registry, m *manifestOf) { change(m); g.put(t, "v1", m) }
	}
	reconfigure := func(from, to string) func(*registry, *manifestOf) {
		return func(g *registry, m *manifestOf) {
			c := bytes.Replace(g.blobs["r/app/blobs/"+m.Config.Digest], []byte(from), []byte(to), 1)
			m.Config = Descriptor{MediaType: m.Config.MediaType, Digest: "sha256:" + digestOf(c), Size: int64(len(c))}
			g.blobs["r/app/blobs/"+m.Config.Digest] = c
			g.put(t, "v1", m)
		}
	}
	for _, tt := range []struct {
		name string
		evil func(*registry, *manifestOf)
		code string
		want string
	}{
		{"no such tag", func(g *registry, _ *manifestOf) { delete(g.blobs, "r/app/manifests/v1") }, "ImageDeleted", "does not exist. Provide a valid source image."},
		{"no access", func(g *registry, _ *manifestOf) { g.password = "other" }, "ImageAccessDenied", "does not have permission"},
		{"greeting hangs", only("/v2/", hang), "InvalidImage", "did not answer"},
		{"manifest hangs", only("/manifests/", hang), "InvalidImage", "did not answer"},
		{"layer hangs in the middle", func(g *registry, m *manifestOf) {
			only(m.Layers[0].Digest, func(w http.ResponseWriter, r *http.Request) {
				w.Write([]byte{0x1f})
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			})(g, m)
		}, "InvalidImage", "nothing came"},
		{"layer is cut off", func(g *registry, m *manifestOf) {
			b := g.blobs["r/app/blobs/"+m.Layers[0].Digest]
			g.blobs["r/app/blobs/"+m.Layers[0].Digest] = b[:len(b)/2]
		}, "InvalidImage", "does not match its digest"},
		{"layer is another", func(g *registry, m *manifestOf) { g.blobs["r/app/blobs/"+m.Layers[0].Digest] = []byte("evil") }, "InvalidImage", "does not match its digest"},
		{"layer without end", func(g *registry, m *manifestOf) {
			only(m.Layers[0].Digest, func(w http.ResponseWriter, r *http.Request) {
				for r.Context().Err() == nil {
					if _, err := w.Write(make([]byte, 1<<16)); err != nil {
						return
					}
				}
			})(g, m)
		}, "InvalidImage", "does not match its digest"},
		{"manifest without end", only("/manifests/", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(bytes.Repeat([]byte(" "), 1<<16)); err != nil {
					return
				}
			}
		}), "InvalidImage", "is not supported"},
		{"greeting without end", only("/v2/", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(500)
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}), "InvalidImage", "did not answer"},
		{"config is another", func(g *registry, m *manifestOf) { g.blobs["r/app/blobs/"+m.Config.Digest] = []byte("{}") }, "InvalidImage", "came with the digest"},
		{"manifest is no JSON", only("/manifests/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>") }), "InvalidImage", "is not supported"},
		{"schema 1", again(func(m *manifestOf) { m.SchemaVersion = 1 }), "InvalidImage", "is not supported"},
		{"artefact", again(func(m *manifestOf) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" }), "InvalidImage", "is not supported"},
		{"foreign layer", again(func(m *manifestOf) {
			m.Layers[0].MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
		}), "InvalidImage", "is not supported"},
		{"digest with a path", again(func(m *manifestOf) { m.Layers[0].Digest = "sha256:../../../../etc/passwd" }), "InvalidImage", "is not supported"},
		{"negative size", again(func(m *manifestOf) { m.Layers[0].Size = -1 }), "InvalidImage", "is not supported"},
		{"too large by its word", again(func(m *manifestOf) { m.Layers[0].Size = lambdad.MaxImage + 1 }), "InvalidImage", "more than"},
		{"many layers", again(func(m *manifestOf) {
			for range 200 {
				m.Layers = append(m.Layers, m.Layers[0])
			}
		}), "InvalidImage", "layers"},
		{"config too large by its word", again(func(m *manifestOf) { m.Config.Size = 1 << 40 }), "InvalidImage", "is not supported"},
		{"other architecture", reconfigure(`"amd64"`, `"arm64"`), "InvalidImage", "architecture"},
		{"other system", reconfigure(`"linux"`, `"windows"`), "InvalidImage", "windows"},
		{"wrong diff id", reconfigure(digestOf(layer), strings.Repeat("0", 64)), "InvalidImage", "tampered"},
		{"too few diff ids", reconfigure(`["sha256:`+digestOf(layer)+`"]`, `[]`), "InvalidImage", "in its configuration"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, uri, m := serveImage(t, layer)
			tt.evil(g, m)
			s, _ := newStore(t, "")
			_, err := pull(t.Context(), s, uri)
			if lambdad.ErrorCode(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s with %q", err, tt.code, tt.want)
			}
			if left, _ := os.ReadDir(s.Dir); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
	s, _ := newStore(t, "")
	for _, uri := range []string{"", "UPPER/case", "a b", "127.0.0.1:1/x@sha256:12", strings.Repeat("x", 5000)} {
		if _, err := s.Resolve(t.Context(), uri, "x86_64"); lambdad.ErrorCode(err) != "InvalidImage" || !strings.Contains(err.Error(), "is not valid. Provide a valid source image.") {
			t.Errorf("%q: %v", uri, err)
		}
	}
}

// FuzzUnpack: whatever a layer holds, nothing is written beside its tree and the
// answer is a refusal or a tree.
func FuzzUnpack(f *testing.F) {
	f.Add(tarOf(f, entry{name: "a/b", body: "x"}, entry{name: "l", kind: tar.TypeSymlink, link: "/etc"}, entry{name: "h", kind: tar.TypeLink, link: "a/b"}))
	f.Add(tarOf(f, entry{name: "../x", body: "x"}))
	f.Add(gzipped(f, tarOf(f, entry{name: "d/", kind: tar.TypeDir}, entry{name: "d/.wh.x"}, entry{name: "d/.wh..wh..opq"})))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(func(t *testing.T, layer []byte) {
		parent := t.TempDir()
		_, err := unpack(t.Context(), bytes.NewReader(layer), filepath.Join(parent, "tree"), 1<<20, func() error { return nil })
		if err != nil && lambdad.ErrorCode(err) != "InvalidImage" && !errors.Is(err, os.ErrPermission) {
			t.Errorf("neither a tree nor a refusal: %v", err)
		}
		if list, _ := os.ReadDir(parent); len(list) > 1 {
			t.Errorf("beside the tree: %v", list)
		}
	})
}

// FuzzManifest: what is accepted names blobs by digests alone.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"` + TypeOCIManifest + `","config":{"digest":"sha256:` + strings.Repeat("a", 64) + `"},"layers":[]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:../x"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseManifest(data, "")
		if err != nil {
			return
		}
		for _, d := range append(m.Layers, m.Manifests...) {
			if !blob.CheckDigest(d.Hex()) || d.Size < 0 {
				t.Errorf("accepted %+v", d)
			}
		}
		_, _ = describe(t.Context(), "x", "x86_64", data, m, func(context.Context, Descriptor, int64) ([]byte, error) { return data, nil })
	})
}
