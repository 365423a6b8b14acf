// Command lambdad runs AWS Lambda functions with their extensions on this
// machine, behind AWS's own API. `lambdad help` lists its commands.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/lambdad/lambdad/sandbox/namespace"
)

// version is set by the linker.
var version = "devel"

// A command is one word after lambdad.
type command struct {
	name, args, short string
	run               func(ctx context.Context, std stdio, args []string) error
}

// stdio is what a command reads and writes; tests give their own.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// errUsage makes the exit code 2: the command line is wrong, and what is wrong
// has been said.
var errUsage = errors.New("usage")

// errFailed makes the exit code 1 without another line: the command has said
// what failed.
var errFailed = errors.New("failed")

func commands() []command {
	return []command{
		{"serve", "[flags]", "serve the AWS endpoint until interrupted", serveCommand},
		{"env", "[--data-dir DIR]", "print the export lines that point AWS clients here", envCommand},
		{"bill", "[--data-dir DIR] [--output table|json] [--invocations] [FUNCTION]", "say what invocations would cost on AWS, and the extensions' part of it", billCommand},
		{"ps", "[--data-dir DIR] [--output table|json]", "list the execution environments", psCommand},
		{"logs", "[--follow] [--since 10m] [--request-id ID] FUNCTION", "print the log of a function", logsCommand},
		{"run", "[flags] DIR [EVENT]", "run one event through a function directory, without a server", runCommand},
		{"explain", "[flags] FUNCTION", "show command lines, variables, mounts and the origin of files of a function's environments", explainCommand},
		{"layer", "import [flags] [ARN|ZIP|DIR]", "import a layer that was published elsewhere, under its ARN", layerCommand},
		{"runtime", "list|add|remove [flags]", "list what functions can run on here, get what a runtime needs, or make it an image", runtimeCommand},
		{"audit", "[flags]", "show who called what on the endpoint: users, functions, their extensions", auditCommand},
		{"iam", "explain [flags]", "say which statement of which policy allows or denies a call", iamCommand},
		{"doctor", "[flags]", "say which promises hold on this host, and what cures the others", doctorCommand},
		{"version", "", "print the version", versionCommand},
	}
}

func main() {
	// Directories made for sandboxes are for others to read, whatever whoever starts
	// the daemon wants for files in general; what is secret is made with a mode that
	// says so. Functions inherit it, and have this one on the service.
	syscall.Umask(0o022)
	namespace.ServeTrial()
	os.Exit(Main(context.Background(), stdio{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:]))
}

// Main runs one command line and returns the exit code: 0 on success, 1 on
// failure, 2 when the command line is wrong.
func Main(ctx context.Context, std stdio, args []string) int {
	if len(args) == 0 {
		usage(std.err)
		return 2
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		if len(args) > 1 {
			args = []string{args[1], "--help"}
			break
		}
		usage(std.out)
		return 0
	case "--version", "-v":
		args[0] = "version"
	}
	for _, c := range commands() {
		if c.name != args[0] {
			continue
		}
		err := c.run(ctx, std, args[1:])
		switch {
		case err == nil || errors.Is(err, flag.ErrHelp):
			return 0
		case errors.Is(err, errUsage):
			return 2
		case errors.Is(err, errFailed):
			return 1
		}
		fmt.Fprintf(std.err, "lambdad %s: %v\n", c.name, err)
		return 1
	}
	fmt.Fprintf(std.err, "lambdad: there is no command %q; lambdad help lists them\n", args[0])
	return 2
}

func usage(w io.Writer) {
	fmt.Fprint(w, "lambdad runs AWS Lambda functions with their extensions on this machine.\n\nCommands:\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-8s %s\n", c.name, c.short)
	}
	fmt.Fprint(w, "\nlambdad COMMAND --help describes a command's flags.\n")
}

// newFlags makes a flag set whose --help shows the command's line and flags.
func newFlags(std stdio, name string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(std.err)
	fs.Usage = func() {
		for _, c := range commands() {
			if c.name == name {
				fmt.Fprintf(fs.Output(), "usage: lambdad %s\n\n%s.\n", strings.TrimSpace(c.name+" "+c.args),
					strings.ToUpper(c.short[:1])+c.short[1:])
			}
		}
		any := false
		fs.VisitAll(func(*flag.Flag) { any = true })
		if any {
			fmt.Fprint(fs.Output(), "\nFlags:\n")
			printFlags(fs)
		}
	}
	return fs
}

// printFlags lists flags with two dashes, as they are documented.
func printFlags(fs *flag.FlagSet) {
	fs.VisitAll(func(f *flag.Flag) {
		arg, text := flag.UnquoteUsage(f)
		name := "--" + f.Name
		if arg != "" {
			name += " " + arg
		}
		fmt.Fprintf(fs.Output(), "  %-26s %s", name, text)
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" {
			fmt.Fprintf(fs.Output(), " (default %s)", f.DefValue)
		}
		fmt.Fprintln(fs.Output())
	})
}

// parse parses args; flags may stand before and after positional arguments, of
// which there are at least min and at most max.
func parse(fs *flag.FlagSet, args []string, min, max int) ([]string, error) {
	var rest []string
	for {
		if err := fs.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, errUsage
		}
		n := fs.NArg()
		if n == 0 {
			break
		}
		consumed := args[:len(args)-n]
		if len(consumed) > 0 && consumed[len(consumed)-1] == "--" {
			rest = append(rest, fs.Args()...)
			break
		}
		rest = append(rest, fs.Arg(0))
		args = fs.Args()[1:]
	}
	if len(rest) < min || len(rest) > max {
		if len(rest) > max {
			fmt.Fprintf(fs.Output(), "lambdad %s: %q is one argument too many\n", fs.Name(), rest[max])
		} else {
			fmt.Fprintf(fs.Output(), "lambdad %s: an argument is missing\n", fs.Name())
		}
		fs.Usage()
		return nil, errUsage
	}
	return rest, nil
}

func versionCommand(_ context.Context, std stdio, args []string) error {
	fs := newFlags(std, "version")
	if _, err := parse(fs, args, 0, 0); err != nil {
		return err
	}
	fmt.Fprintf(std.out, "lambdad %s\n", versionText())
	return nil
}
