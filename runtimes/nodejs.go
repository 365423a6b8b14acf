package runtimes

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

//go:embed nodejs/index.mjs nodejs/lambdad_runtime.cjs nodejs/resolve.mjs
var nodejsClient embed.FS

// firstNode is the oldest Node.js that the client runs on.
const firstNode = "18"

// nodejs is Node.js: the host's own or a version manager's.
func nodejs() *language {
	return &language{
		name: "nodejs", title: "Node.js",
		releases: []string{"18", "20", "22", "24"},
		id:       func(release string) string { return "nodejs" + release + ".x" },
		client:   nodejsClient,
		exact:    exactNodes,
		likely:   func() []string { return append(inPath("node"), append(usual("node"), usual("nodejs")...)...) },
		ask:      askNode,
		fits:     func(i interpreter, _ string) bool { return newer(i.Release, firstNode) },
		programs: func(interpreter) []string { return []string{"node"} },
		env: func(release string) map[string]string {
			return map[string]string{"NODE_PATH": "/opt/nodejs/node" + release + "/node_modules:/opt/nodejs/node_modules:/var/runtime/node_modules:/var/runtime:/var/task"}
		},
		prepare: linkNode,
		warning: "packages with compiled parts must fit it",
		install: "Install Node.js " + firstNode + " or later there and try again.",
	}
}

// exactNodes lists where a release may be, best first.
func exactNodes(release string) []string {
	var list []string
	for _, dir := range []string{os.Getenv("NVM_DIR"), filepath.Join(home(), ".nvm")} {
		list = append(list, below(dir, "versions/node/v"+release+".*/bin/node")...)
	}
	if home := home(); home != "" {
		for _, pattern := range []string{
			".asdf/installs/nodejs/" + release + ".*/bin/node", ".local/share/mise/installs/node/" + release + ".*/bin/node",
			".local/share/fnm/node-versions/v" + release + ".*/installation/bin/node", ".volta/tools/image/node/" + release + ".*/bin/node",
			"n/n/versions/node/" + release + ".*/bin/node",
		} {
			list = append(list, below(home, pattern)...)
		}
	}
	for _, pattern := range []string{
		"/usr/local/n/versions/node/" + release + ".*", "/opt/hostedtoolcache/node/" + release + ".*/*",
		"/opt/homebrew/opt/node@" + release, "/usr/local/opt/node@" + release, "/opt/node" + release, "/opt/node-v" + release + ".*",
	} {
		list = append(list, below("/", pattern+"/bin/node")...)
	}
	return list
}

// nodeProbe makes Node.js describe itself. The flags are those of features that
// AWS's runtimes leave off.
const nodeProbe = `const known = process.allowedNodeEnvironmentFlags;
const flags = ["experimental-detect-module", "experimental-require-module"].filter((f) => known.has("--" + f) || known.has("--no-" + f));
console.log([process.release.name, process.versions.node, require("fs").realpathSync(process.execPath), flags.join(" ") || "-"].join("\n"))`

func askNode(ctx context.Context, path string) (interpreter, error) {
	lines, err := askProgram(ctx, 4, path, "-e", nodeProbe)
	if err != nil {
		return interpreter{}, err
	}
	name, version, program, flags := lines[0], lines[1], lines[2], lines[3]
	if name != "node" {
		return interpreter{}, fmt.Errorf("is %s, and AWS's runtimes are Node.js", name)
	}
	if filepath.Base(filepath.Dir(program)) != "bin" {
		return interpreter{}, fmt.Errorf("its program %s is not in a bin directory", program)
	}
	release, _, _ := strings.Cut(version, ".")
	return interpreter{Release: release, Version: version, Prefix: filepath.Dir(filepath.Dir(program)), Path: program, Flags: strings.TrimPrefix(flags, "-")}, nil
}

// linkNode lets Node.js run the client itself where AWS's command line has an ES
// module: it follows a link before it looks at the name, and saves every cold start
// what loading ES modules costs. Where that does not work the module stays.
func linkNode(ctx context.Context, _ *Set, dir string, i interpreter) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	script, link := filepath.Join(dir, "index.mjs"), filepath.Join(dir, "link.mjs")
	if err := os.Symlink("lambdad_runtime.cjs", link); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, i.Path, link)
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.WaitDelay = time.Second
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) && exit.ExitCode() == nothingToAsk {
		return os.Rename(link, script)
	}
	return os.Remove(link)
}

// nothingToAsk is the client's exit code without a Runtime API.
const nothingToAsk = 42
