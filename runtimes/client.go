package runtimes

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
)

//go:embed bootstrap
var bootstraps embed.FS

// clientFiles are the files of a language's client, by name.
func clientFiles(l *language) map[string][]byte {
	files := map[string][]byte{}
	list, _ := l.client.ReadDir(l.name) // embedded: fails only when there are none
	for _, d := range list {
		files[d.Name()], _ = l.client.ReadFile(path.Join(l.name, d.Name()))
	}
	var script []byte
	for _, part := range []string{"begin", l.name, "end"} {
		b, _ := bootstraps.ReadFile("bootstrap/" + part + ".sh")
		script = append(script, b...)
	}
	files["bootstrap"] = script
	files["explain"], _ = bootstraps.ReadFile("bootstrap/explain")
	return files
}

// clientDigest identifies the content of a client.
func clientDigest(l *language) string {
	h := sha256.New()
	files := clientFiles(l)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(h, "%s\x00%d\x00", name, len(files[name]))
		h.Write(files[name])
	}
	if l.name == "java" {
		for _, j := range jars() {
			fmt.Fprintf(h, "%s\x00", j.sha256)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// versionID identifies what runs a function's code.
func versionID(l *language, i interpreter) string {
	sum := sha256.Sum256([]byte(l.name + "\x00" + clientDigest(l) + "\x00" + i.Version + "\x00" + runtime.GOARCH))
	return hex.EncodeToString(sum[:])
}

const partialPrefix = "partial-"

// unpackClient makes the directory that holds runtime/, which is /var/runtime for
// this interpreter, and lang/, which is /var/lang if the interpreter is in /usr.
// It appears whole, by a rename, and is named by all that goes into it.
func (s *Set) unpackClient(ctx context.Context, l *language, p interpreter) (string, error) {
	st, err := stampOf(p.Path)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%d\x00%d", clientDigest(l), p.Path, p.Version, st.ModTime, st.Size))
	final := filepath.Join(s.dir, l.name+"-"+hex.EncodeToString(sum[:12]))
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return "", err
	}
	if err := s.sweep(); err != nil {
		return "", err
	}
	partial, err := os.MkdirTemp(s.dir, partialPrefix)
	if err != nil {
		return "", err
	}
	if err := s.writeClient(ctx, partial, l, p); err != nil {
		return "", errors.Join(err, os.RemoveAll(partial))
	}
	if err := os.Rename(partial, final); err != nil {
		removed := os.RemoveAll(partial)
		if _, statErr := os.Stat(final); statErr == nil {
			return final, nil // another process was as fast
		}
		return "", errors.Join(err, removed)
	}
	return final, nil
}

func (s *Set) writeClient(ctx context.Context, dir string, l *language, p interpreter) error {
	run, bin := filepath.Join(dir, "runtime"), filepath.Join(dir, "lang", "bin")
	for _, d := range []string{dir, run, filepath.Dir(bin), bin} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
		// Whatever the umask: functions are other users.
		if err := os.Chmod(d, 0o755); err != nil {
			return err
		}
	}
	files := clientFiles(l)
	files["interpreter"] = []byte(insidePath(p) + "\n" + p.Path + "\n" + p.Flags + "\n")
	for name, content := range files {
		mode := fs.FileMode(0o644)
		if name == "bootstrap" || name == "explain" {
			mode = 0o755
		}
		if err := writeFile(filepath.Join(run, name), content, mode); err != nil {
			return err
		}
	}
	done := map[string]bool{}
	for _, name := range l.programs(p) {
		if done[name] {
			continue
		}
		done[name] = true
		if err := os.Symlink(p.Path, filepath.Join(bin, name)); err != nil {
			return err
		}
	}
	if l.prepare == nil {
		return nil
	}
	return l.prepare(ctx, s, run, p)
}

// writeFile makes a file that is on the disk when it returns: the directory is
// believed to be whole ever after.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

// sweep removes what a dead process left half done, once.
func (s *Set) sweep() error {
	if s.swept {
		return nil
	}
	list, err := filepath.Glob(filepath.Join(s.dir, partialPrefix+"*"))
	if err != nil {
		return err
	}
	for _, path := range list {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	s.swept = true
	return nil
}
