package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"lambdad": func() {
			os.Exit(Main(context.Background(), stdio{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:]))
		},
	})
}

// TestScripts runs the real program under the scripts in testdata.
func TestScripts(t *testing.T) {
	repo, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	tools := t.TempDir()
	for name, pkg := range map[string]string{"extension": "./examples/extension", "bootstrap": "./examples/bootstrap-go"} {
		build := exec.Command("go", "build", "-o", filepath.Join(tools, name), pkg)
		build.Dir = repo
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", pkg, err, out)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("TOOLS", tools)
			env.Setenv("EXAMPLES", filepath.Join(repo, "examples"))
			// The host's interpreter managers look for their files at home.
			env.Setenv("HOME", os.Getenv("HOME"))
			env.Setenv("PATH", env.Getenv("PATH"))
			return nil
		},
		Condition: func(cond string) (bool, error) { return cond == "root" && os.Geteuid() == 0, nil },
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			// waitfor FILE waits until a file is there, at most 20 s.
			"waitfor": func(ts *testscript.TestScript, _ bool, args []string) {
				path := ts.MkAbs(args[0])
				for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
					if _, err := os.Stat(path); err == nil {
						return
					}
					if time.Now().After(deadline) {
						ts.Fatalf("%s did not appear within 20 s", path)
					}
				}
			},
		},
		RequireExplicitExec: true,
	})
}
