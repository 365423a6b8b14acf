package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/worker"
)

// explainCommand shows what an environment of a function would be made of.
func explainCommand(ctx context.Context, std stdio, args []string) error {
	fs := newFlags(std, "explain")
	dataDir := fs.String("data-dir", defaultDataDir(), "`directory` of the server")
	output := fs.String("output", "text", "`form`: text or json")
	qualifier := fs.String("qualifier", "", "`version` or alias (default $LATEST)")
	secrets := fs.Bool("show-secrets", false, "show the values of variables that look like secrets")
	all := fs.Bool("all-files", false, "list every file of the layers, not only the first of many")
	rest, err := parse(fs, args, 1, 1)
	if err != nil {
		return err
	}
	if *output != "text" && *output != "json" {
		fmt.Fprintf(std.err, "lambdad explain: --output %q: it must be text or json\n", *output)
		return errUsage
	}
	name, inName := functionOf(rest[0])
	if inName != "" && *qualifier != "" && inName != *qualifier {
		return fmt.Errorf("%s names qualifier %s, --qualifier names %s", rest[0], inName, *qualifier)
	}
	if *qualifier == "" {
		*qualifier = inName
	}
	var answer struct {
		worker.Explanation
		Error string `json:"error"`
	}
	if err := askControl(ctx, *dataDir, "/explain?"+url.Values{"function": {name}, "qualifier": {*qualifier}}.Encode(), &answer); err != nil {
		return err
	}
	if answer.Error != "" {
		return fmt.Errorf("%s: %s", rest[0], answer.Error)
	}
	x := &answer.Explanation
	if !*secrets {
		mask(x)
	}
	if *output == "json" {
		enc := json.NewEncoder(std.out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(x)
	}
	printExplanation(std.out, x, *all)
	return nil
}

// functionOf takes apart a name, name:qualifier or ARN.
func functionOf(s string) (name, qualifier string) {
	if _, rest, ok := strings.Cut(s, ":function:"); ok {
		s = rest
	}
	name, qualifier, _ = strings.Cut(s, ":")
	return name, qualifier
}

// explainer answers GET /explain on the control socket.
func explainer(resolve func(ctx context.Context, function, qualifier string) (lambdad.Target, error), explain func(context.Context, *lambdad.Version) (*worker.Explanation, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var answer any
		target, err := resolve(r.Context(), r.FormValue("function"), r.FormValue("qualifier"))
		if err == nil {
			answer, err = explain(r.Context(), target.Version)
		}
		if err != nil {
			answer = map[string]string{"error": err.Error()}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // the reader left
	}
}

// Names of variables that hold secrets, and values that do.
var (
	secretName  = regexp.MustCompile(`(?i)secret|token|passw|.pwd$|credential|private|api_?key|access_?key|auth|_dsn$|connection_?string|^dd_api|license_?key`)
	secretValue = regexp.MustCompile(`^[a-z][a-z0-9+.-]*://[^/@\s]*:[^/@\s]+@|-----BEGIN [A-Z ]*PRIVATE KEY|^AKIA[A-Z0-9]{16}$|^eyJ[\w-]+\.[\w-]+\.`)
)

const masked = "*** (--show-secrets shows it)"

// mask hides what looks like a secret in every environment.
func mask(x *worker.Explanation) {
	for _, p := range x.Processes {
		for k, v := range p.Env {
			if v != "" && !strings.HasPrefix(v, "(made for each") && (secretName.MatchString(k) || secretValue.MatchString(v)) {
				p.Env[k] = masked
			}
		}
	}
}

// manyFiles is how many files the text lists unless all are wanted.
const manyFiles = 100

func printExplanation(w io.Writer, x *worker.Explanation, all bool) {
	fmt.Fprintf(w, "%s version %s\n", x.Function, x.Version)
	by := ""
	if x.Interpreter != "" {
		by = fmt.Sprintf(": %s, %s", x.RuntimeVersion, x.Interpreter)
	}
	fmt.Fprintf(w, "runtime %s%s\nmemory %d MB, /tmp %d MB, isolation tier %s\n", x.Runtime, by, x.MemoryMB, x.EphemeralMB, x.Tier)
	for _, n := range x.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	fmt.Fprintln(w, "\nmounts:")
	for _, m := range x.Mounts {
		fmt.Fprintf(w, "  %-13s %s\n", m.Target, m.Access)
		for _, s := range m.Sources {
			fmt.Fprintf(w, "                from %s\n", s)
		}
	}
	fmt.Fprintln(w, "\nlayers, a later one covers an earlier one:")
	for i, l := range x.Layers {
		fmt.Fprintf(w, "  %d  %s, %s\n", i+1, l.ARN, plural(l.Files, "file"))
	}
	if len(x.Layers) == 0 {
		fmt.Fprintln(w, "  none")
	} else {
		number := map[string]int{}
		for i, l := range x.Layers {
			number[l.ARN] = i + 1
		}
		fmt.Fprintln(w, "\nfiles of /opt, with the layer each is from:")
		for i, f := range x.Files {
			if i == manyFiles && !all {
				fmt.Fprintf(w, "     and %d more: --all-files lists them\n", len(x.Files)-i)
				break
			}
			fmt.Fprintf(w, "  %d  %s", number[f.Layer], f.Path)
			for _, arn := range f.Covers {
				fmt.Fprintf(w, ", covers that of %d", number[arn])
			}
			fmt.Fprintln(w)
		}
	}
	for _, p := range x.Processes {
		what := "runtime"
		if p.Party != "runtime" {
			what = "extension " + p.Party
		}
		fmt.Fprintf(w, "\n%s:\n", what)
		if p.Layer != "" {
			fmt.Fprintf(w, "  from      %s\n", p.Layer)
		}
		fmt.Fprintf(w, "  command   %s\n  directory %s\n  environment:\n", commandLine(p.Args), p.Dir)
		for _, k := range slices.Sorted(maps.Keys(p.Env)) {
			fmt.Fprintf(w, "    %s=%s\n", k, p.Env[k])
		}
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// commandLine is what a shell would be given.
func commandLine(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		if a == "" || strings.ContainsFunc(a, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,+@%", r)
		}) {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		quoted[i] = a
	}
	return strings.Join(quoted, " ")
}
