package hostile_test

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/lambdad/lambdad/integration/harness"
)

// A file is one entry of a hostile archive.
type file struct {
	name string
	mode fs.FileMode
	text string
}

func pack(t *testing.T, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, f := range files {
		h := &zip.FileHeader{Name: f.name, Method: zip.Deflate}
		h.SetMode(f.mode)
		e, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(e, f.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// zeroes is an archive whose entries together unzip to so many MiB.
func zeroes(t *testing.T, mb int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	e, err := w.Create("zeroes")
	if err != nil {
		t.Fatal(err)
	}
	piece := make([]byte, 1<<20)
	for range mb {
		_, _ = e.Write(piece)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestPackages holds that archives from strangers are refused or become trees that
// lead nowhere else, as code and as layers, and cost the daemon little.
func TestPackages(t *testing.T) {
	t.Parallel() // no bounds of time
	s := newStage(t)
	probe, err := os.ReadFile(harness.Program(t, "hostile"))
	if err != nil {
		t.Fatal(err)
	}
	bootstrap := file{"bootstrap", 0o755, string(probe)}
	outside := filepath.Join(filepath.Dir(s.DataDir), "escaped")
	up := strings.Repeat("../", 12)
	for i, c := range []struct {
		name string
		zip  []byte
	}{
		{"traversal", pack(t, bootstrap, file{up + strings.TrimPrefix(outside, "/"), 0o644, "out"})},
		{"absolute name", pack(t, bootstrap, file{outside, 0o644, "out"})},
		{"backslashes", pack(t, bootstrap, file{strings.ReplaceAll(up+outside, "/", `\`), 0o644, "out"})},
		{"link and a file through it", pack(t, bootstrap, file{"d", fs.ModeSymlink | 0o777, filepath.Dir(outside)}, file{"d/escaped", 0o644, "out"})},
		{"link out", pack(t, bootstrap, file{"shadow", fs.ModeSymlink | 0o777, up + "etc/shadow"}, file{"data", fs.ModeSymlink | 0o777, s.DataDir})},
		{"bootstrap that is a link to the host", pack(t, file{"bootstrap", fs.ModeSymlink | 0o777, harness.Program(t, "lambdad")})},
		{"extension that is a link to the host", pack(t, bootstrap, file{"extensions/x", fs.ModeSymlink | 0o777, harness.Program(t, "lambdad")})},
		{"device, pipe and socket", pack(t, bootstrap, file{"disk", fs.ModeDevice | 0o666, ""}, file{"tty", fs.ModeDevice | fs.ModeCharDevice | 0o666, ""}, file{"pipe", fs.ModeNamedPipe | 0o666, ""}, file{"socket", fs.ModeSocket | 0o666, ""})},
		{"setuid", pack(t, file{"bootstrap", 0o755 | fs.ModeSetuid | fs.ModeSetgid, string(probe)})},
		{"bomb", zeroes(t, 400)},
		{"names without end", pack(t, bootstrap, file{strings.Repeat("a/", 2000) + "b", 0o644, ""}, file{strings.Repeat("n", 4000), 0o644, ""})},
		{"no zip", []byte("PK\x05\x06" + strings.Repeat("\xff", 18))},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.during(t, func() {
				name := fmt.Sprintf("package%d", i)
				err := s.Create(t.Context(), name, func(in *lambda.CreateFunctionInput) {
					in.Code = &types.FunctionCode{ZipFile: c.zip}
					in.MemorySize, in.Timeout = aws.Int32(512), aws.Int32(10)
				})
				t.Logf("create: %.150v", err)
				if err == nil {
					r, err := s.attack(t.Context(), name, order{Do: "read", Paths: []string{"/var/task/shadow", "/var/task/data", "/var/task/d", "/var/task/disk", "/var/task/tty"}})
					t.Logf("invoke: %.150v", err)
					for _, h := range r.Holes {
						t.Error(h)
					}
					if _, err := s.attack(t.Context(), name, order{Do: "raise"}); err == nil {
						r := s.must(t, name, order{Do: "calls"})
						t.Logf("%d tried", r.N)
					}
				}
				_, err = s.Client.PublishLayerVersion(t.Context(), &lambda.PublishLayerVersionInput{LayerName: aws.String("l"), Content: &types.LayerVersionContentInput{ZipFile: c.zip}})
				t.Logf("layer: %.150v", err)
			})
			if _, err := os.Lstat(outside); err == nil {
				t.Errorf("%s was written", outside)
			}
		})
	}
	s.end(t)
}

// TestNames holds that no name leads to a file that is not meant.
func TestNames(t *testing.T) {
	t.Parallel() // no bounds of time
	s := newStage(t)
	// What lies beside the data directory, but for those of other tests.
	outside := func() (names []string) {
		list, err := os.ReadDir(filepath.Dir(s.DataDir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if !strings.HasPrefix(e.Name(), "lambdad-") {
				names = append(names, e.Name())
			}
		}
		return names
	}
	before := outside()
	for _, name := range []string{"../../x", "..", ".", "a/b", "/etc/passwd", "a\x00b", "%2e%2e%2fx", "a\nb", "$LATEST", strings.Repeat("n", 5000), "neighbour/../neighbour2", "ünïcode", "arn:aws:lambda:us-east-1:000000000000:function:../x"} {
		if err := s.Create(t.Context(), name, nil); err == nil {
			t.Errorf("a function may be called %q", name)
		}
		if _, err := s.Client.PublishLayerVersion(t.Context(), &lambda.PublishLayerVersionInput{LayerName: aws.String(name), Content: &types.LayerVersionContentInput{ZipFile: pack(t, file{"a", 0o644, "a"})}}); err == nil {
			t.Errorf("a layer may be called %q", name)
		}
		// As it is on the wire, past the client's own escaping.
		for _, path := range []string{"/2015-03-31/functions/" + name, "/2018-10-31/layers/" + name + "/versions", "/_lambdad/archive/" + name} {
			req := &http.Request{Method: http.MethodGet, Host: "x", Header: http.Header{}}
			var err error
			if req.URL, err = url.Parse(s.Endpoint); err != nil {
				t.Fatal(err)
			}
			req.URL.Opaque = strings.NewReplacer("\x00", "%00", "\n", "%0a").Replace(path)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				continue
			}
			if resp.StatusCode < 400 {
				t.Errorf("%q: %s", path, resp.Status)
			}
			resp.Body.Close()
		}
	}
	// Names that are allowed, and would be something else as a path.
	for i, group := range []string{"/../../../x", "..", "../..", "/.", "a/../../b", strings.Repeat("/..", 60)} {
		name := fmt.Sprintf("logs%d", i)
		err := s.Create(t.Context(), name, func(in *lambda.CreateFunctionInput) {
			in.LoggingConfig = &types.LoggingConfig{LogGroup: aws.String(group)}
		})
		if err != nil {
			continue
		}
		if _, err := s.Invoke(t.Context(), name, `{}`); err != nil {
			t.Errorf("log group %q: %v", group, err)
		}
	}
	s.Stop()
	if after := outside(); !slices.Equal(after, before) {
		t.Errorf("beside the data directory: %v, then %v", before, after)
	}
	top, err := os.ReadDir(s.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range top {
		if strings.HasSuffix(e.Name(), ".log") || e.Name() == "x" || e.Name() == "b" {
			t.Errorf("%s lies in the data directory", e.Name())
		}
	}
	harness.LeftOnHost(t, s.ID)
}
