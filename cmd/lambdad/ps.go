package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/lambdad/lambdad/environment"
	"github.com/lambdad/lambdad/worker"
)

// psCommand lists the execution environments of the server of a data directory.
func psCommand(ctx context.Context, std stdio, args []string) error {
	fs := newFlags(std, "ps")
	dataDir := fs.String("data-dir", defaultDataDir(), "`directory` of the server")
	output := fs.String("output", "table", "`form`: table or json")
	asJSON := fs.Bool("json", false, "the same as --output json")
	withPhases := fs.Bool("phases", false, "show the phases of the latest environments, living and ended")
	if _, err := parse(fs, args, 0, 0); err != nil {
		return err
	}
	if *asJSON {
		*output = "json"
	}
	if *output != "table" && *output != "json" {
		fmt.Fprintf(std.err, "lambdad ps: --output %q: it must be table or json\n", *output)
		return errUsage
	}
	if *withPhases {
		return psPhases(ctx, std, *dataDir, *output)
	}
	environments := []row{}
	if err := askControl(ctx, *dataDir, "/environments", &environments); err != nil {
		return err
	}
	if *output == "json" {
		enc := json.NewEncoder(std.out)
		enc.SetIndent("", "  ")
		return enc.Encode(environments)
	}
	w := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FUNCTION\tVERSION\tSTATE\tAGE\tMEMORY\tPROCESSES\tINVOCATIONS\tENVIRONMENT")
	for _, e := range environments {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", e.Function, e.Version, e.State,
			(time.Duration(e.AgeMs) * time.Millisecond).Round(time.Second), mebibytes(e.Memory), e.Processes, e.Invocations, e.ID)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	var room worker.Capacity
	if err := askControl(ctx, *dataDir, "/capacity", &room); err != nil {
		return err
	}
	_, err := io.WriteString(std.out, roomText(&room))
	return err
}

// roomText says what else the host can hold.
func roomText(c *worker.Capacity) string {
	if len(c.Rooms) == 0 {
		return ""
	}
	text := fmt.Sprintf("\nroom for %d more", c.More)
	if c.Idle > 0 {
		text += fmt.Sprintf(" where all %d that are idle make way", c.Idle)
	}
	for i, r := range c.Rooms {
		comma, used, limit := ",", fmt.Sprint(r.Used), fmt.Sprint(r.Limit)
		if i == 0 {
			comma = ":"
		}
		if r.Name == worker.Memory {
			used, limit = mebibytes(r.Used), mebibytes(r.Limit)
		}
		text += fmt.Sprintf("%s %s %s of %s", comma, r.Name, used, limit)
	}
	return text + "\n"
}

// psPhases shows how the latest environments spent their time.
func psPhases(ctx context.Context, std stdio, dataDir, output string) error {
	list := []phases{}
	if err := askControl(ctx, dataDir, "/phases", &list); err != nil {
		return err
	}
	if output == "json" {
		enc := json.NewEncoder(std.out)
		enc.SetIndent("", "  ")
		return enc.Encode(list)
	}
	for i := range list {
		list[i].draw(std.out)
	}
	return nil
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// A row is one environment, as --output json prints it.
type row struct {
	ID          string    `json:"id"`
	Function    string    `json:"function"`
	Version     string    `json:"version"`
	State       string    `json:"state"` // initializing, idle, frozen, busy, resetting, shutting-down
	Since       time.Time `json:"since"` // it is in this state
	AgeMs       int64     `json:"ageMs"`
	Memory      int64     `json:"memoryBytes"`
	Processes   int       `json:"processes"`
	Invocations int       `json:"invocations"`
}

// rows are what the worker says of its environments.
func rows(list []environment.Status) []row {
	out := make([]row, 0, len(list))
	for _, e := range list {
		out = append(out, row{e.ID, e.Function, e.Version, e.State, e.Since, e.Age.Milliseconds(), e.Memory, e.Processes, e.Invocations})
	}
	return out
}
