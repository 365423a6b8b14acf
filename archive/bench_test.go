package archive

import (
	"archive/zip"
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
)

// large is a package of 248 MB in 12,569 files, half as compressible as code is.
var large = sync.OnceValue(func() []byte {
	const files, total = 12569, 248_000_000
	random := rand.New(rand.NewPCG(1, 2))
	words := make([]byte, 1<<20)
	for i := range words {
		words[i] = "abcdefghijklmnop \n\t(){}=.,_:0123"[random.IntN(32)&random.IntN(32)]
	}
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := range files {
		h := &zip.FileHeader{Name: fmt.Sprintf("node_modules/p%03d/lib/d%d/file%05d.js", i/40, i%3, i), Method: zip.Deflate}
		h.SetMode(0o644)
		w, err := z.CreateHeader(h)
		if err != nil {
			panic(err)
		}
		for left := total / files; left > 0; {
			from := random.IntN(len(words) - 500)
			n := min(left, 100+random.IntN(400))
			w.Write(words[from : from+n])
			left -= n
		}
	}
	if err := z.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
})

func BenchmarkInspect(b *testing.B) {
	z := large()
	b.SetBytes(248_000_000)
	for b.Loop() {
		if _, err := Inspect(bytes.NewReader(z), int64(len(z))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnpack(b *testing.B) {
	z := large()
	b.SetBytes(248_000_000)
	outer := b.TempDir()
	i := 0
	for b.Loop() {
		dir := filepath.Join(outer, fmt.Sprint(i))
		i++
		if err := Unpack(b.Context(), bytes.NewReader(z), int64(len(z)), dir); err != nil {
			b.Fatal(err)
		}
		// The copies stay to the end: ext4 makes files many times more slowly while
		// it remembers others just deleted.
	}
}

// BenchmarkOpen is what a cold start pays when the copy is there.
func BenchmarkOpen(b *testing.B) {
	m := &memory{blobs: map[string][]byte{}}
	d, _, err := m.Put(b.Context(), bytes.NewReader(makeZip(b, file("f", "x", 0o644))))
	if err != nil {
		b.Fatal(err)
	}
	c := NewCache(b.TempDir(), m)
	for b.Loop() {
		_, release, err := c.Open(b.Context(), d)
		if err != nil {
			b.Fatal(err)
		}
		release()
	}
}
