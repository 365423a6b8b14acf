package main

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	gets       = 1000 // of GetFunction
	zipBytes   = 10 << 20
	zipEntries = 200
)

// control measures the control plane: one small request, and one large one beside
// what cannot be left out of it.
func control(ctx context.Context, b *bench, r *section) error {
	r.title = "Control plane"
	s, err := b.server(ctx)
	if err != nil {
		return err
	}
	if err := s.create(ctx, "one", goRuntime, b.probe, 0); err != nil {
		return err
	}
	var got []time.Duration
	for range gets {
		took, err := s.timed(ctx, "GET", "/2015-03-31/functions/one", nil)
		if err != nil {
			return err
		}
		got = append(got, took)
	}
	var unzips, answers, actives []time.Duration
	for i := range max(b.rounds/6, 1) {
		pkg, err := largeZip(uint64(i))
		if err != nil {
			return err
		}
		took, err := unzip(pkg, filepath.Join(b.dir, fmt.Sprintf("unzip-%d", i)))
		if err != nil {
			return err
		}
		unzips = append(unzips, took)
		name := fmt.Sprintf("large-%d", i)
		body, err := json.Marshal(map[string]any{"FunctionName": name, "Runtime": goRuntime, "Role": role, "Handler": "any", "Code": map[string]any{"ZipFile": pkg}})
		if err != nil {
			return err
		}
		answered, err := s.timed(ctx, "POST", "/2015-03-31/functions", body)
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := s.active(ctx, name); err != nil {
			return err
		}
		answers = append(answers, answered)
		actives = append(actives, answered+time.Since(begin))
		if err := s.remove(ctx, name); err != nil {
			return err
		}
	}
	row := func(name string, times []time.Duration) []string {
		return []string{name, millis(quantile(times, 0.5)), millis(quantile(times, 0.1)), millis(quantile(times, 0.99))}
	}
	r.note("CreateFunction with a zip of %d MiB and %d files, beside its plain unpacking to the same disk with archive/zip by one worker.", zipBytes>>20, zipEntries)
	r.table([]string{"", "median", "p10", "p99"}, [][]string{
		row("GetFunction", got),
		row("floor: unzip", unzips),
		row("CreateFunction, to the answer", answers),
		row("CreateFunction, until State is Active", actives),
	})
	held := "not held"
	if quantile(got, 0.5) <= time.Millisecond {
		held = "held"
	}
	b.report.verdict("get", millis(quantile(got, 0.5))+", p99 "+millis(quantile(got, 0.99)), held)
	ratio := float64(quantile(actives, 0.5)) / float64(quantile(unzips, 0.5))
	held = "not held: unzip is less than half of it"
	if ratio <= 2 {
		held = "held: unzip is at least half of it"
	}
	b.report.verdict("create", fmt.Sprintf("%s until Active, %.2f × unzip", millis(quantile(actives, 0.5)), ratio), held)
	return nil
}

// timed makes a control-plane request and returns how long it took from when it was
// signed.
func (s *server) timed(ctx context.Context, method, path string, body []byte) (time.Duration, error) {
	req, err := s.client.request(ctx, method, s.endpoint+path, body)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	resp, err := s.client.transport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, err
	}
	if resp.StatusCode >= 300 {
		return 0, fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return time.Since(begin), nil
}

// largeZip makes a package of zipBytes whose files shrink by half, as programs do.
func largeZip(seed uint64) ([]byte, error) {
	random := rand.NewChaCha8([32]byte{byte(seed)})
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for i := range zipEntries {
		h := &zip.FileHeader{Name: fmt.Sprintf("lib/package%d/file%d.bin", i/20, i), Method: zip.Deflate}
		h.SetMode(0o644)
		f, err := w.CreateHeader(h)
		if err != nil {
			return nil, err
		}
		half := make([]byte, zipBytes/zipEntries)
		random.Read(half)
		for at := 0; at < len(half); at += 4096 {
			part := half[at:min(at+4096, len(half))]
			if _, err := f.Write(slices.Concat(part, make([]byte, len(part)))); err != nil {
				return nil, err
			}
		}
	}
	f, err := w.Create("bootstrap")
	if err == nil {
		_, err = f.Write([]byte("#!/bin/false\n"))
	}
	if err != nil {
		return nil, err
	}
	err = w.Close()
	return buf.Bytes(), err
}

// unzip writes the files of a package and returns how long that took.
func unzip(pkg []byte, dir string) (time.Duration, error) {
	defer os.RemoveAll(dir)
	begin := time.Now()
	r, err := zip.NewReader(bytes.NewReader(pkg), int64(len(pkg)))
	if err != nil {
		return 0, err
	}
	for _, f := range r.File {
		to := filepath.Join(dir, filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return 0, err
		}
		in, err := f.Open()
		if err != nil {
			return 0, err
		}
		out, err := os.Create(to)
		if err != nil {
			return 0, err
		}
		if _, err := io.Copy(out, in); err != nil {
			return 0, err
		}
		if err := out.Close(); err != nil {
			return 0, err
		}
	}
	return time.Since(begin), nil
}
