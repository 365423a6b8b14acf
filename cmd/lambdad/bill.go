package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"text/tabwriter"
	"time"

	"github.com/lambdad/lambdad/bill"
)

// billRow is a row with what it comes to.
type billRow struct {
	bill.Row
	GBSeconds float64     `json:"gbSeconds"`
	Charge    bill.Charge `json:"charge"`
}

// billCommand shows what invocations would cost on AWS and what part of it is the
// extensions'.
func billCommand(ctx context.Context, std stdio, args []string) error {
	fs := newFlags(std, "bill")
	dataDir := fs.String("data-dir", defaultDataDir(), "`directory` of the server")
	output := fs.String("output", "table", "`form`: table or json")
	asJSON := fs.Bool("json", false, "the same as --output json")
	version := fs.String("version", "", "only this `version`: $LATEST or a number")
	region := fs.String("region", "", "`name` of the functions' region (default: the server's)")
	since := fs.Duration("since", 0, "only days that overlap with the last `duration`, such as 24h (default: all)")
	invocations := fs.Bool("invocations", false, "also the latest invocations one by one")
	priceFile := fs.String("prices", "", "`file` of prices in the form of those built in (--print-prices)")
	printPrices := fs.Bool("print-prices", false, "print the prices and leave")
	rest, err := parse(fs, args, 0, 1)
	if err != nil {
		return err
	}
	if *asJSON {
		*output = "json"
	}
	if *output != "table" && *output != "json" {
		fmt.Fprintf(std.err, "lambdad bill: --output %q: it must be table or json\n", *output)
		return errUsage
	}
	prices := bill.Published()
	if *priceFile != "" {
		b, err := os.ReadFile(*priceFile)
		if err != nil {
			return err
		}
		if prices, err = bill.ReadPrices(b); err != nil {
			return fmt.Errorf("%s: %w", *priceFile, err)
		}
	}
	enc := json.NewEncoder(std.out)
	enc.SetIndent("", "  ")
	if *printPrices {
		return enc.Encode(prices)
	}

	query := url.Values{}
	for name, value := range map[string]string{"version": *version, "region": *region} {
		if value != "" {
			query.Set(name, value)
		}
	}
	if len(rest) == 1 {
		query.Set("function", rest[0])
	}
	if *since > 0 {
		query.Set("since", time.Now().Add(-*since).UTC().Format(time.RFC3339))
	}
	var rows []bill.Row
	if err := askControl(ctx, *dataDir, "/bill?"+query.Encode(), &rows); err != nil {
		return err
	}
	out := make([]billRow, 0, len(rows))
	for _, r := range rows {
		if !*invocations {
			r.Latest = nil
		}
		out = append(out, billRow{r, r.GBSeconds(), prices.Charge(&r.Sums)})
	}
	if *output == "json" {
		return enc.Encode(map[string]any{"prices": prices, "rows": out})
	}
	return billTable(std.out, out, prices)
}

func billTable(w io.Writer, rows []billRow, prices bill.Prices) error {
	if len(rows) == 0 {
		fmt.Fprintln(w, "nothing was billed yet")
		return nil
	}
	per := func(us, n int64) string {
		if n == 0 {
			return "-"
		}
		return fmt.Sprintf("%.1f ms", float64(us)/float64(n)/1000)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "FUNCTION\tINVOCATIONS\tDURATION\tINIT\tAFTER\tBILLED\tMEMORY\tGB-S\t%s\tEXTENSIONS\n", prices.Currency)
	for _, r := range rows {
		name := r.Function
		if r.Version != "$LATEST" {
			name += ":" + r.Version
		}
		share := 0.0
		if r.Charge.Total > 0 {
			share = 100 * r.Charge.Extensions / r.Charge.Total
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%d ms\t%d of %d MB\t%.4f\t%.8f\t%.1f %%\n", name, r.Invocations, per(r.Duration, r.Invocations),
			per(r.Init, r.Cold), per(r.After, r.Invocations), r.Billed, r.MaxMemory, r.MemorySize, r.GBSeconds, r.Charge.Total, share)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	any := false
	for _, r := range rows {
		for _, name := range r.Names() {
			if !any {
				any = true
				fmt.Fprintln(t, "\nFUNCTION\tEXTENSION\tINIT\tAFTER\tLONGEST\tCPU\tMEMORY")
			}
			x := r.Extensions[name]
			cpu, peak := "-", "-" // of an internal one: it is the runtime's
			if x.External {
				cpu, peak = per(x.CPU, x.Invocations), mebibytes(x.Peak)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Function, name, per(x.Init, x.Inits), per(x.After, x.Invocations), per(x.AfterMax, 1), cpu, peak)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		if len(r.Latest) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s %s, latest invocations\n", r.Function, r.Version)
		t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "REQUEST\tTIME\tSTATUS\tDURATION\tINIT\tAFTER\tBILLED\tWITHOUT\tMEMORY\tGB-S")
		for _, i := range r.Latest {
			fmt.Fprintf(t, "%s\t%s\t%s\t%.2f ms\t%.2f ms\t%.2f ms\t%d ms\t%d ms\t%d of %d MB\t%.6f\n", i.RequestID, i.Time.Local().Format("15:04:05.000"),
				i.Status, i.Duration, i.Init, i.After, i.Billed, i.Plain, i.MaxMemory, i.MemorySize, i.GBSeconds)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "\nAverages by invocation. AFTER is PostRuntimeExtensionsDuration; EXTENSIONS is what would not have\nbeen charged without them. Prices: %s.\n", prices.Source)
	return nil
}

// serveBill answers on the control socket.
func serveBill(l *bill.Ledger, account, region string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		query := bill.Query{Account: account, Region: region, Function: q.Get("function"), Version: q.Get("version")}
		if v := q.Get("region"); v != "" {
			query.Region = v
		}
		if v := q.Get("since"); v != "" {
			at, err := time.Parse(time.RFC3339, v)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			query.Since = at
		}
		rows, err := l.Rows(r.Context(), query)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(rows) // the reader left
	}
}
