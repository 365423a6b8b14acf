package environment

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/telemetry"
)

// A program is what a party is started with, in paths inside.
type program struct {
	path string
	args []string // with argv[0]; nil: path alone
	dir  string
}

// program finds what the runtime process is: an entry point of the runtime, or what
// the image says (lifecycle.md section 11).
func (e *Environment) program() (program, *failure) {
	img := e.cfg.Version.Image
	if img == nil {
		p, f := e.entrypoint()
		return program{path: p, dir: "/var/task"}, f
	}
	argv := append(img.Entrypoint[:len(img.Entrypoint):len(img.Entrypoint)], img.Command...)
	dir := imageDir(img)
	switch info, err := e.cfg.Sandbox.Stat(dir); {
	case errors.Is(err, sandbox.ErrDestroyed):
		return program{}, sandboxFailure(err)
	case err != nil:
		return program{}, e.invalidImage(errWorkingDir, &fs.PathError{Op: "chdir", Path: dir, Err: errnoOf(err)})
	case !info.IsDir():
		return program{}, e.invalidImage(errWorkingDir, &fs.PathError{Op: "chdir", Path: dir, Err: syscall.ENOTDIR})
	}
	if len(argv) == 0 || argv[0] == "" {
		return program{}, e.invalidImage(errEntrypoint, errors.New("the image has neither ENTRYPOINT nor CMD, and the function's ImageConfig gives none"))
	}
	p, err := e.lookPath(argv[0], dir)
	if errors.Is(err, sandbox.ErrDestroyed) {
		return program{}, sandboxFailure(err)
	}
	if err != nil {
		return program{}, e.invalidImage(errEntrypoint, err)
	}
	return program{path: p, args: argv, dir: dir}, nil
}

// lookPath finds a program as a shell would, in the image.
func (e *Environment) lookPath(name, dir string) (string, error) {
	candidates := []string{name}
	switch {
	case path.IsAbs(name):
	case strings.Contains(name, "/"):
		candidates[0] = path.Join(dir, name)
	default:
		candidates = nil
		for d := range strings.SplitSeq(e.variable("PATH"), ":") {
			if path.IsAbs(d) {
				candidates = append(candidates, path.Join(d, name))
			}
		}
	}
	var first error
	for _, c := range candidates {
		info, err := e.cfg.Sandbox.Stat(c)
		switch {
		case errors.Is(err, sandbox.ErrDestroyed):
			return "", err
		case err != nil:
			err = errnoOf(err)
		case info.IsDir() || !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
			err = syscall.EACCES
		default:
			return c, nil
		}
		if first == nil || errors.Is(err, syscall.EACCES) {
			first = err
		}
	}
	if len(candidates) != 1 {
		return "", fmt.Errorf("exec: %q: executable file not found in $PATH", name)
	}
	return "", &sandbox.ExecError{Path: candidates[0], Err: first}
}

// errnoOf takes the reason out of an error with a path.
func errnoOf(err error) error {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errno
	case errors.Is(err, fs.ErrNotExist):
		return syscall.ENOENT
	}
	return err
}

func imageDir(img *lambdad.Image) string {
	if img.WorkingDir == "" {
		return "/"
	}
	return path.Clean(img.WorkingDir)
}

// invalidImage is the failure of an image that cannot be started.
func (e *Environment) invalidImage(errorType string, err error) *failure {
	e.imageLaunchFailed(err)
	return &failure{status: telemetry.StatusError, errorType: errorType, text: err.Error()}
}

// imageLaunchFailed writes into the log what an image was to be started with.
func (e *Environment) imageLaunchFailed(err error) {
	img := e.cfg.Version.Image
	if img == nil {
		return
	}
	line := fmt.Sprintf("IMAGE\tLaunch error: %v\tEntrypoint: [%s]\tCmd: [%s]\tWorkingDir: [%s]",
		err, strings.Join(img.Entrypoint, ","), strings.Join(img.Command, ","), img.WorkingDir)
	e.emit(telemetry.TypeFunctionLine, telemetry.Line(line))
}

// imageEnviron puts the image's variables over the defaults. What is only there for
// AWS's own root file systems is not for others.
func imageEnviron(env map[string]string, img *lambdad.Image) {
	delete(env, "LD_LIBRARY_PATH")
	delete(env, "LANG")
	env["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin"
	for _, kv := range img.Env {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			env[k] = v
		}
	}
}

// variable is one that the runtime process will have.
func (e *Environment) variable(name string) string {
	for _, kv := range e.environ(lambdad.Credentials{}, false, "") {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// handlerOf is what base images take for the handler: the first argument.
func handlerOf(img *lambdad.Image) string {
	if len(img.Command) > 0 {
		return img.Command[0]
	}
	return ""
}
