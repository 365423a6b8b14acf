package lambdad_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/lambdad/lambdad"

// layers says which packages of this module a package may import; a name ends
// with "/..." when it covers what is below it. What is not listed may be
// imported by nobody but the commands and the integration tests. The order is
// the one of docs/ARCHITECTURE.md.
var layers = []struct {
	pkg string
	may []string
}{
	{".", nil},

	// Contracts and the wire.
	{"policy", []string{"."}},
	{"aws", []string{".", "policy"}},
	{"trail", []string{".", "aws"}},
	{"aws/...", []string{".", "aws"}},
	{"telemetry", []string{"."}},
	{"tracing", []string{".", "telemetry"}},
	{"metrics", []string{".", "telemetry"}},
	{"sandbox", []string{"."}},
	{"store", []string{"."}},
	{"queue", []string{"."}},
	{"blob", []string{"."}},

	// Their suites and drivers.
	{"sandbox/sandboxtest", []string{".", "sandbox"}},
	{"sandbox/...", []string{".", "sandbox", "sandbox/..."}},
	{"store/...", []string{".", "store"}},
	{"queue/...", []string{".", "queue"}},
	{"blob/...", []string{".", "blob", "datadir"}},
	{"datadir", []string{"."}},
	{"mem", []string{".", "store", "queue", "blob"}},
	{"nats", []string{".", "store", "queue", "blob", "datadir"}},

	// What an environment is made of.
	{"archive", []string{".", "blob"}},
	{"image", []string{".", "blob", "archive"}},
	{"runtimes", []string{".", "sandbox"}},
	{"httpwire", nil},
	{"runtimeapi", []string{".", "telemetry", "httpwire"}},
	{"environment", []string{".", "sandbox", "telemetry", "runtimeapi"}},
	{"environment/...", []string{".", "sandbox", "telemetry", "runtimeapi", "environment", "environment/...", "sandbox/fake"}},

	{"bill", []string{".", "store", "telemetry"}},
	// What comes up.
	{"logstore", []string{".", "telemetry"}},

	// The way down for calls.
	{"worker", []string{".", "sandbox", "telemetry", "environment", "archive", "runtimes"}},
	{"placement", []string{".", "metrics", "worker"}},
	{"frontend", []string{".", "telemetry", "metrics", "placement", "queue"}},
	{"poller", []string{".", "metrics", "placement", "queue", "frontend"}},
	{"service/lambda", []string{".", "aws", "policy", "store", "blob", "telemetry", "archive", "frontend"}},
	{"service/s3", []string{".", "aws", "policy", "store", "blob"}},
	{"service/ecr", []string{".", "aws", "policy", "store", "blob", "image"}},
	{"service/cloudwatch", []string{".", "aws", "metrics"}},
	{"service/cloudwatchlogs", []string{".", "aws", "logstore"}},
	{"service/iam", []string{".", "aws", "policy", "store"}},
	{"service/sts", []string{".", "aws", "policy"}},
}

// free are packages that may import everything: programs and whole-system tests.
var free = []string{"cmd/...", "integration/...", "conformance/...", "examples/..."}

func match(pattern, pkg string) bool {
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return strings.HasPrefix(pkg, base+"/") || (pkg == base && base != "")
	}
	return pattern == pkg
}

func allowed(pkg string) (may []string, known bool) {
	for _, p := range free {
		if match(p, pkg) {
			return nil, true
		}
	}
	for _, l := range layers {
		if l.pkg == pkg {
			return l.may, true
		}
	}
	for _, l := range layers {
		if strings.HasSuffix(l.pkg, "/...") && match(l.pkg, pkg) {
			return l.may, true
		}
	}
	return nil, false
}

type listed struct {
	ImportPath string
	Doc        string
	GoFiles    []string
	Imports    []string
}

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,GoFiles,Imports", "./...")
	cmd.Env = append(os.Environ(), "GOOS=linux")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func short(path string) string {
	if path == module {
		return "."
	}
	return strings.TrimPrefix(path, module+"/")
}

// TestImports holds the one-way order of the packages.
func TestImports(t *testing.T) {
	for _, p := range list(t) {
		pkg := short(p.ImportPath)
		may, known := allowed(pkg)
		if !known {
			t.Errorf("package %s is not in the import order: add it to layers with what it may import", pkg)
			continue
		}
		isFree := false
		for _, f := range free {
			isFree = isFree || match(f, pkg)
		}
		if isFree {
			continue
		}
		for _, imp := range p.Imports {
			if !strings.HasPrefix(imp, module) {
				if pkg == "." && strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
					t.Errorf("the root package imports %s: only the standard library is allowed there", imp)
				}
				continue
			}
			ok := false
			for _, m := range may {
				ok = ok || match(m, short(imp))
			}
			if !ok {
				t.Errorf("%s imports %s, which is against the import order", pkg, short(imp))
			}
		}
	}
}

// TestPackageComments holds that every package opens with what it is for.
func TestPackageComments(t *testing.T) {
	for _, p := range list(t) {
		if len(p.GoFiles) > 0 && len(p.Doc) < 20 {
			t.Errorf("package %s has no doc comment", short(p.ImportPath))
		}
	}
}
