package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/lambdad/lambdad/datadir"
	"github.com/lambdad/lambdad/trail"
)

// auditCommand shows the log of calls on the endpoint.
func auditCommand(ctx context.Context, std stdio, args []string) error {
	fs := newFlags(std, "audit")
	dataDir := fs.String("data-dir", defaultDataDir(), "`directory` of the server")
	function := fs.String("function", "", "only calls made by environments of this `function`")
	who := fs.String("who", "", "only calls by `whom`, such as \"function runtime\" or \"extension NAME\"")
	denied := fs.Bool("denied", false, "only calls that were refused for want of permission")
	follow := fs.Bool("follow", false, "go on with what is called from now on, until interrupted")
	output := fs.String("output", "table", "`form`: table or json (one CloudTrail record a line)")
	if _, err := parse(fs, args, 0, 0); err != nil {
		return err
	}
	if *output != "table" && *output != "json" {
		fmt.Fprintf(std.err, "lambdad audit: --output %q: it must be table or json\n", *output)
		return errUsage
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	w := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
	if *output == "table" {
		fmt.Fprintln(w, auditHeader)
	}
	var failed error
	err := trail.Read(ctx, datadir.AuditDir(*dataDir), *follow, func(line []byte, e *trail.Event) bool {
		if *function != "" && e.Extra.Function != *function || *who != "" && e.Extra.Who != *who || *denied && !strings.HasPrefix(e.ErrorCode, "AccessDenied") {
			return true
		}
		if *output == "json" {
			_, failed = fmt.Fprintf(std.out, "%s\n", line)
		} else {
			failed = auditRow(w, e)
			if *follow && failed == nil {
				failed = w.Flush()
			}
		}
		return failed == nil
	})
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("no server has written an audit log to the data directory %s", *dataDir)
	}
	return errors.Join(err, failed, w.Flush())
}

const auditHeader = "TIME\tWHO\tFUNCTION\tCALL\tRESULT\tACCESS KEY\tREQUEST"

func auditRow(w io.Writer, e *trail.Event) error {
	result := "ok"
	if e.ErrorCode != "" {
		result = e.ErrorCode
	}
	call := e.Extra.Action
	if call == "" {
		call = e.EventName
	}
	function := e.Extra.Function
	if function == "" {
		function = "-"
	}
	_, err := fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.EventTime.Format("2006-01-02T15:04:05.000Z"), e.Extra.Who, function, call, result,
		e.UserIdentity.AccessKeyID, e.RequestID)
	return err
}
