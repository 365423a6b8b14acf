package runtimes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A Command is what the start script of a runtime would come to.
type Command struct {
	// Args is the command line, with the wrapper if there is one.
	Args []string
	// Set are the variables that the script sets or changes, Unset those it takes
	// away.
	Set   map[string]string
	Unset []string
}

// scriptReads are the variables that the start scripts look at. Nothing else of a
// function's environment reaches a script that runs outside a sandbox.
func scriptReads() []string {
	return []string{"AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "LD_LIBRARY_PATH", "NODE_OPTIONS", "PYTHONPATH", "_HANDLER", "_LAMBDAD_OPT"}
}

// scriptSets are the variables that they may change.
func scriptSets() []string { return []string{"LD_LIBRARY_PATH", "PWD", "PYTHONPATH", "SHLVL"} }

// Command asks the runtime's start script what it would start in this environment,
// without starting it. A runtime without a script of its own gives a command of no
// arguments: the function's bootstrap is all there is.
func (r *Runtime) Command(ctx context.Context, env map[string]string) (*Command, error) {
	if r.Interpreter == "" || r.Image != nil {
		return &Command{}, nil
	}
	dir := r.dir
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", filepath.Join(dir, "bootstrap"))
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "AWS_LAMBDA_EXEC_WRAPPER=" + filepath.Join(dir, "explain")}
	for _, k := range scriptReads() {
		if v, ok := env[k]; ok {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("runtimes: %s: ask its start script for the command line: %w", r.Name, err)
	}
	inside := strings.NewReplacer(dir, "/var/runtime")
	args, rest, _ := strings.Cut(string(out), "\x00\x00")
	c := &Command{Set: map[string]string{}}
	for i, a := range strings.Split(args, "\x00") {
		if i == 0 && a == r.Interpreter {
			a = "/var/lang/bin/" + filepath.Base(r.Interpreter)
		}
		c.Args = append(c.Args, inside.Replace(a))
	}
	if w := env["AWS_LAMBDA_EXEC_WRAPPER"]; w != "" {
		c.Args = slices.Insert(c.Args, 0, w)
	}
	after := map[string]string{}
	for kv := range strings.SplitSeq(rest, "\x00") {
		if k, v, ok := strings.Cut(kv, "="); ok {
			after[k] = inside.Replace(v)
		}
	}
	after["PWD"] = "/var/task"
	for _, k := range scriptSets() {
		if v, ok := after[k]; ok && v != env[k] && (k != "PWD" || after["SHLVL"] != "") {
			c.Set[k] = v
		}
	}
	// In a sandbox the script sees the interpreter's own libraries.
	if path, lib := env["LD_LIBRARY_PATH"], "/var/lang/lib"; !strings.Contains(":"+path+":", ":"+lib+":") {
		for _, m := range r.Mounts {
			if info, err := os.Stat(filepath.Join(m.Sources[0], "lib")); m.Target == "/var/lang" && err == nil && info.IsDir() {
				c.Set["LD_LIBRARY_PATH"] = strings.TrimSuffix(lib+":"+path, ":")
			}
		}
	}
	c.Unset = []string{"_LAMBDAD_OPT"}
	return c, nil
}
