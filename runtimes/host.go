package runtimes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// inPath lists name in every directory of PATH.
func inPath(name string) []string {
	var list []string
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(dir) {
			list = append(list, filepath.Join(dir, name))
		}
	}
	return list
}

// below lists what matches the pattern below root, newest version first; nothing
// when root is unknown.
func below(root, pattern string) []string {
	if root == "" {
		return nil
	}
	found, _ := filepath.Glob(filepath.Join(root, pattern))
	slices.SortFunc(found, byVersion)
	return found
}

// usual lists name where hosts keep programs.
func usual(name string) []string {
	var list []string
	for _, dir := range []string{"/usr/local/bin", "/opt/homebrew/bin", "/usr/bin"} {
		list = append(list, filepath.Join(dir, name))
	}
	return list
}

func home() string {
	dir, _ := os.UserHomeDir()
	return dir
}

// byVersion sorts paths that hold versions, newest first.
func byVersion(a, b string) int {
	x, y := numbers(a), numbers(b)
	return slices.Compare(y, x)
}

func numbers(s string) []int {
	var list []int
	for _, field := range strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' }) {
		n, _ := strconv.Atoi(field)
		list = append(list, n)
	}
	return list
}

// newer says whether release a is at least b.
func newer(a, b string) bool { return slices.Compare(numbers(a), numbers(b)) >= 0 }

// askProgram runs a program that describes itself on standard output and returns
// the last n lines; a shim may say something first.
func askProgram(ctx context.Context, n int, path string, args ...string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	// Not the directory somebody happened to start the daemon in: version managers
	// look for their files there.
	cmd.Dir = "/"
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool {
		for _, k := range []string{"NODE_OPTIONS=", "RUBYOPT=", "JAVA_TOOL_OPTIONS=", "JDK_JAVA_OPTIONS="} {
			if strings.HasPrefix(kv, k) {
				return true
			}
		}
		return false
	})
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && stderr.Len() > 0 {
			line, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
			err = fmt.Errorf("%w: %s", err, line)
		}
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) < n {
		return nil, fmt.Errorf("answered %q, which none does", string(out))
	}
	return lines[len(lines)-n:], nil
}

// A stamp changes when a file does.
type stamp struct {
	ModTime int64 // ns
	Size    int64
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	return stamp{info.ModTime().UnixNano(), info.Size()}, nil
}

// probes remembers the answers of interpreters across starts: a version manager's
// shim takes longer to answer than everything else at start.
type probes struct {
	file    string
	changed bool
	Answers map[string]probe // by language and path
}

type probe struct {
	Asked  stamp // of the candidate
	Real   stamp // of the interpreter behind it
	Answer interpreter
}

func openProbes(file string) *probes {
	p := &probes{file: file, Answers: map[string]probe{}}
	b, err := os.ReadFile(file)
	if err == nil && json.Unmarshal(b, &p.Answers) != nil || p.Answers == nil {
		p.Answers = map[string]probe{}
	}
	return p
}

// ask answers from memory if neither the candidate nor the interpreter behind it
// has changed.
func (p *probes) ask(ctx context.Context, l *language, path string) (interpreter, error) {
	now, err := stampOf(path)
	if err != nil {
		return interpreter{}, fs.ErrNotExist
	}
	key := l.name + " " + path
	if known, ok := p.Answers[key]; ok && known.Asked == now {
		if st, err := stampOf(known.Answer.Path); err == nil && st == known.Real {
			return known.Answer, nil
		}
	}
	answer, err := l.ask(ctx, path)
	if err != nil {
		return interpreter{}, err
	}
	st, err := stampOf(answer.Path)
	if err != nil {
		return interpreter{}, err
	}
	p.Answers[key] = probe{now, st, answer}
	p.changed = true
	return answer, nil
}

// save writes the answers down. They are only a saving of time, so a failure is
// no matter.
func (p *probes) save() {
	if !p.changed {
		return
	}
	p.changed = false
	b, err := json.Marshal(p.Answers)
	if err != nil {
		return
	}
	if os.MkdirAll(filepath.Dir(p.file), 0o755) == nil {
		tmp := p.file + ".new"
		if os.WriteFile(tmp, b, 0o600) == nil {
			_ = os.Rename(tmp, p.file)
		}
	}
}
