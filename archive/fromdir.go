package archive

import (
	"archive/zip"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/klauspost/compress/flate"
)

// FromDir writes a zip of everything in dir to w, modes, links and modification
// times (to the second) included. The same directory always gives the same
// bytes. What is neither file, directory nor link is an error that names it, as
// is a file that cannot be read; w then holds a useless beginning.
func FromDir(ctx context.Context, dir string, w io.Writer) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("archive: pack %s: %w", dir, err)
	}
	defer root.Close()
	z := zip.NewWriter(w)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) {
		// It is read back on the same machine: speed, not size.
		return flate.NewWriter(w, flate.BestSpeed)
	})
	buf := make([]byte, copySize)
	// WalkDir goes by name within each directory, which makes the order certain.
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if path == "." {
			return nil
		}
		info, err := root.Lstat(path)
		if err != nil {
			return err
		}
		return pack(z, root, path, info, buf)
	})
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return fmt.Errorf("archive: pack %s: %w", dir, err)
	}
	return nil
}

func pack(z *zip.Writer, root *os.Root, path string, info fs.FileInfo, buf []byte) error {
	h := &zip.FileHeader{Name: path, Method: zip.Store, Modified: info.ModTime().UTC().Truncate(time.Second)}
	h.SetMode(info.Mode() & (fs.ModeType | fs.ModePerm))
	switch info.Mode().Type() {
	case fs.ModeDir:
		h.Name += "/"
		_, err := z.CreateHeader(h)
		return err
	case fs.ModeSymlink:
		target, err := root.Readlink(path)
		if err != nil {
			return err
		}
		w, err := z.CreateHeader(h)
		if err != nil {
			return err
		}
		_, err = io.WriteString(w, target)
		return err
	case 0:
		f, err := root.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if info.Size() > 0 {
			h.Method = zip.Deflate
		}
		w, err := z.CreateHeader(h)
		if err != nil {
			return err
		}
		_, err = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{f}, buf)
		return err
	}
	return fmt.Errorf("%s is a device, a fifo or a socket and cannot be part of a package; remove it", show(path))
}
