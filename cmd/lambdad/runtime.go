package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/lambdad/lambdad/runtimes"
)

// runtimeCommand lists the runtimes of this host and gets what one needs.
func runtimeCommand(ctx context.Context, std stdio, args []string) error {
	fs := newFlags(std, "runtime")
	dataDir := fs.String("data-dir", defaultDataDir(), "`directory` of the server")
	output := fs.String("output", "table", "`form` of list: table or json")
	var src imageSource
	fs.StringVar(&src.Ref, "image", "", "`reference` of an image in a registry that add makes the runtime's root file system")
	fs.StringVar(&src.OCI, "oci", "", "`directory` with such an image as an OCI layout")
	fs.StringVar(&src.Tar, "tar", "", "`file` with such an image, as docker save or an OCI archive has it")
	fs.StringVar(&src.Tag, "tag", "", "`tag` of the image where --oci or --tar hold several")
	rest, err := parse(fs, args, 1, 2)
	if err != nil {
		return err
	}
	if *output != "table" && *output != "json" {
		fmt.Fprintf(std.err, "lambdad runtime: --output %q: it must be table or json\n", *output)
		return errUsage
	}
	dir := filepath.Join(*dataDir, "runtimes")
	if _, err := os.Stat(dir); err != nil && rest[0] == "list" {
		// Looking leaves nothing behind.
		if dir, err = scratchDir("lambdad-runtime-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	} else if err != nil {
		// Before the first server: the directory will hold credentials.
		if err := os.MkdirAll(*dataDir, 0o700); err != nil {
			return fmt.Errorf("making the data directory (choose another with --data-dir): %w", err)
		}
		if entries, err := os.ReadDir(*dataDir); err == nil && len(entries) == 0 {
			if err := os.Chmod(*dataDir, 0o700); err != nil {
				return err
			}
		}
	}
	set := runtimes.New(dir, slog.New(slog.NewTextHandler(std.err, &slog.HandlerOptions{Level: slog.LevelWarn})))
	switch {
	case rest[0] == "list" && len(rest) == 1:
		return runtimeList(ctx, std, set, *output)
	case rest[0] == "add" && len(rest) == 2 && src.given():
		return runtimeAddImage(ctx, std, *dataDir, set, rest[1], src)
	case rest[0] == "remove" && len(rest) == 2:
		if err := set.RemoveImage(rest[1]); err != nil {
			return err
		}
		fmt.Fprintf(std.out, "%s is removed; its image goes when nothing uses it\n", rest[1])
		return nil
	case rest[0] == "add" && len(rest) == 2:
		return runtimeAdd(ctx, std, set, rest[1])
	}
	fmt.Fprintln(std.err, "lambdad runtime: it is list, add with a runtime's identifier, or remove with one that was added as an image")
	return errUsage
}

func runtimeList(ctx context.Context, std stdio, set *runtimes.Set, output string) error {
	list := set.List(ctx)
	if output == "json" {
		enc := json.NewEncoder(std.out)
		enc.SetIndent("", "  ")
		return enc.Encode(list)
	}
	w := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "RUNTIME\tSOURCE\tVERSION\tUSABLE\tFROM\tNOTE")
	for _, r := range list {
		usable := "yes"
		if !r.Usable {
			usable = "no"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.Source, dash(r.Version), usable, dash(r.Interpreter), r.Note)
	}
	return w.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// runtimeAdd gets what the runtime needs ahead of its first function.
func runtimeAdd(ctx context.Context, std stdio, set *runtimes.Set, name string) error {
	r, err := set.Resolve(ctx, name)
	if err != nil {
		return err
	}
	if r.Interpreter == "" {
		fmt.Fprintf(std.out, "%s is ready: it runs the function's own bootstrap\n", name)
		return nil
	}
	fmt.Fprintf(std.out, "%s is ready: %s at %s\n", name, r.Version, r.Interpreter)
	return nil
}
