package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/google/uuid"

	"github.com/lambdad/lambdad/datadir"
	"github.com/lambdad/lambdad/runtimes"
	"github.com/lambdad/lambdad/sandbox"
)

// doctorCommand probes this host as serve does at its start and says what holds.
func doctorCommand(ctx context.Context, std stdio, args []string) error {
	fs := newFlags(std, "doctor")
	isolation := fs.String("isolation", "auto", "`tier` to examine: auto, root, rootless or plain")
	egress := fs.String("egress", string(sandbox.EgressAll), egressUsage)
	dataDir := fs.String("data-dir", defaultDataDir(), "`directory` that serve would use: its file system is examined")
	output := fs.String("output", "table", "`form`: table or json")
	if _, err := parse(fs, args, 0, 0); err != nil {
		return err
	}
	if *output != "table" && *output != "json" {
		fmt.Fprintf(std.err, "lambdad doctor: --output %q: it must be table or json\n", *output)
		return errUsage
	}
	if *egress != "off" && *egress != "internet" && *egress != "all" {
		fmt.Fprintf(std.err, "lambdad doctor: --egress %q: it must be off, internet or all\n", *egress)
		return errUsage
	}
	chosen, err := settle(ctx, *isolation)
	if err != nil {
		return err
	}
	dir, err := scratchDir("lambdad-doctor-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	// The probes' own log says why the stronger tier was left.
	var probes strings.Builder
	log := slog.New(slog.NewTextHandler(&probes, nil))
	driver, err := newDriver(ctx, Config{Isolation: *isolation, Egress: *egress, settled: settled{tier: chosen.tier, cure: chosen.cure}}, uuid.NewString()[:8], dir, 0, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, driver.Close()) }()

	set := runtimes.New(dir, slog.New(slog.DiscardHandler))
	report := diagnosis{Tier: driver.Tier(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Promises: driver.Promises()}
	for _, r := range set.List(ctx) {
		if !r.Usable {
			continue
		}
		by := r.Interpreter
		if by == "" {
			by = "the function's own bootstrap"
		}
		report.Runtimes = append(report.Runtimes, foundRuntime{r.Name, by})
	}
	report.Promises = append(report.Promises, dataDirPromise(*dataDir))
	report.Fallback, report.Cure = strings.Join(chosen.passedOver, "; "), chosen.cure
	if driver.Tier() == "plain" && chosen.tier == "root" { // it failed its own trial
		report.Fallback = strings.TrimSpace(probes.String())
	}
	if *output == "json" {
		enc := json.NewEncoder(std.out)
		enc.SetIndent("", "  ")
		return enc.Encode(report)
	}
	report.print(std)
	return nil
}

// dataDirPromise examines the file system of a data directory without making one.
func dataDirPromise(dir string) sandbox.Promise {
	p := sandbox.Promise{Name: "a data directory", Kept: true}
	if err := datadir.Check(dir); err != nil {
		p.Kept, p.Why = false, err.Error()
		p.Cure = "give serve a directory of your own on a Linux file system with --data-dir; under WSL not one below /mnt"
	}
	return p
}

// diagnosis is what doctor found.
type diagnosis struct {
	Tier     string            `json:"tier"`
	Platform string            `json:"platform"`
	Fallback string            `json:"fallback,omitempty"` // why no stronger tier
	Cure     string            `json:"cure,omitempty"`     // what would give a stronger one
	Promises []sandbox.Promise `json:"promises"`
	Runtimes []foundRuntime    `json:"runtimes"`
}

type foundRuntime struct {
	Name string `json:"name"`
	By   string `json:"by"`
}

func (d *diagnosis) print(std stdio) {
	fmt.Fprintf(std.out, "lambdad %s\nisolation tier: %s\n", versionText(), d.Tier)
	if d.Fallback != "" {
		fmt.Fprintf(std.out, "  why:  %s\n", d.Fallback)
	}
	if d.Cure != "" {
		fmt.Fprintf(std.out, "  cure: %s\n", d.Cure)
	}
	// What is the same for several is told once.
	told := map[string]string{d.Cure: "the tier"}
	once := func(text, name string) string {
		if first, ok := told[text]; ok {
			return "as for " + first
		}
		told[text] = name
		return text
	}
	fmt.Fprintln(std.out, "\npromises:")
	for _, p := range d.Promises {
		mark := "holds"
		if !p.Kept {
			mark = "FAILS"
		}
		fmt.Fprintf(std.out, "  %s  %s\n", mark, p.Name)
		if !p.Kept {
			fmt.Fprintf(std.out, "         why:  %s\n", once(p.Why, p.Name))
			fmt.Fprintf(std.out, "         cure: %s\n", once(p.Cure, p.Name))
		}
	}
	fmt.Fprintln(std.out, "\nruntimes:")
	for _, r := range d.Runtimes {
		fmt.Fprintf(std.out, "  %-16s %s\n", r.Name, r.By)
	}
}

// hostPython names the python runtime of the python3 on the PATH, within the
// identifiers AWS has; "" when there is none.
func hostPython(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "python3", "-c", "import sys; print(sys.version_info[1])").Output()
	if err != nil {
		return ""
	}
	var minor int
	if _, err := fmt.Sscan(string(out), &minor); err != nil {
		return ""
	}
	return fmt.Sprintf("python3.%d", min(max(minor, 9), 14))
}
