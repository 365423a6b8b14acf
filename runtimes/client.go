package runtimes

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"
)

//go:embed python/bootstrap python/bootstrap.py python/lambdad_runtime.py
var pythonClient embed.FS

// clientFiles are the files of the client, by name.
func clientFiles() map[string][]byte {
	files := map[string][]byte{}
	list, _ := pythonClient.ReadDir("python") // embedded: cannot fail
	for _, d := range list {
		files[d.Name()], _ = pythonClient.ReadFile(path.Join("python", d.Name()))
	}
	return files
}

// clientDigest identifies the content of the client.
func clientDigest() string {
	h := sha256.New()
	list, _ := pythonClient.ReadDir("python") // sorted by name
	for _, d := range list {
		b, _ := pythonClient.ReadFile(path.Join("python", d.Name()))
		fmt.Fprintf(h, "%s\x00%d\x00", d.Name(), len(b))
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))
}

const partialPrefix = "partial-"

// unpackClient makes the directory that holds runtime/, which is /var/runtime for
// this interpreter, and lang/, which is /var/lang if the interpreter is in /usr.
// It appears whole, by a rename, and is named by all that goes into it.
func (s *Set) unpackClient(ctx context.Context, p interpreter) (string, error) {
	st, err := stampOf(p.Path)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%d\x00%d", clientDigest(), p.Path, p.Version, st.ModTime, st.Size))
	final := filepath.Join(s.dir, "python-"+hex.EncodeToString(sum[:12]))
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
	if err := s.writeClient(ctx, partial, p); err != nil {
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

func (s *Set) writeClient(ctx context.Context, dir string, p interpreter) error {
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
	files := clientFiles()
	files["interpreter"] = []byte(insidePath(p) + "\n" + p.Path + "\n")
	for name, content := range files {
		mode := fs.FileMode(0o644)
		if name == "bootstrap" {
			mode = 0o755
		}
		if err := writeFile(filepath.Join(run, name), content, mode); err != nil {
			return err
		}
	}
	for _, name := range []string{filepath.Base(p.Path), "python3", "python"} {
		if err := os.Symlink(p.Path, filepath.Join(bin, name)); err != nil {
			return err
		}
	}
	s.compile(ctx, run, p)
	return nil
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

// compileScript compiles the client for the interpreter that runs it. The files
// never change, so the compiled one is not compared with its source.
const compileScript = `import py_compile, os
py_compile.compile("lambdad_runtime.py", dfile="/var/runtime/lambdad_runtime.py", doraise=True,
    invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
for d, _, names in os.walk("__pycache__"):
    os.chmod(d, 0o755)
    for n in names: os.chmod(os.path.join(d, n), 0o644)
`

// compile saves every cold start the compilation. Without it everything works,
// later.
func (s *Set) compile(ctx context.Context, dir string, p interpreter) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.Path, "-I", "-S", "-c", compileScript)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "the Python runtime client could not be compiled; cold starts take longer",
			slog.String("interpreter", p.Path), slog.Any("error", err), slog.String("output", strings.TrimSpace(string(out))))
	}
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
