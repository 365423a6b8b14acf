package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// lineCount is how many lines are written at each rate.
const lineCount = 100_000

// lineRates are how many a second, promisedRate the one that is promised.
const promisedRate = 100_000

var lineRates = []int{50_000, promisedRate, 2 * promisedRate}

// lines has one environment write lines and one subscriber count them.
func lines(ctx context.Context, b *bench, r *section) error {
	r.title = "Log lines"
	s, err := b.server(ctx)
	if err != nil {
		return err
	}
	program, err := os.ReadFile(b.probe)
	if err != nil {
		return err
	}
	var layer struct{ LayerVersionArn string }
	if err := s.call(ctx, "POST", "/2018-10-31/layers/ear/versions",
		map[string]any{"Content": map[string]any{"ZipFile": zipped(map[string][]byte{"extensions/ear": program})}}, &layer); err != nil {
		return err
	}
	var rows [][]string
	for _, rate := range lineRates {
		if b.rounds < quick.rounds && rate != promisedRate {
			continue
		}
		name := fmt.Sprintf("lines-%d", rate)
		err := s.create(ctx, name, goRuntime, b.probe, 0, func(in map[string]any) {
			in["Layers"], in["MemorySize"] = []string{layer.LayerVersionArn}, 3538
		})
		if err != nil {
			return err
		}
		text, _, err := s.client.send(ctx, s.invokeURL(name), fmt.Appendf(nil, `{"lines":%d,"linesRate":%d}`, lineCount, rate))
		if err != nil {
			return err
		}
		var a struct{ TookUS int64 }
		if err := json.Unmarshal(text, &a); err != nil {
			return err
		}
		counted, dropped, took, err := s.shutDown(ctx, name)
		if err != nil {
			return err
		}
		written, received := lineCount/(float64(a.TookUS)/1e6), float64(counted)/took.Seconds()
		rows = append(rows, []string{fmt.Sprintf("%s/s", short(float64(rate))), fmt.Sprintf("%s/s", short(written)),
			fmt.Sprintf("%d of %d", counted, lineCount), fmt.Sprintf("%s/s", short(received)), fmt.Sprint(dropped)})
		if rate == promisedRate {
			held := "not held"
			switch {
			case counted == lineCount && written >= 0.95*float64(rate):
				held = "held"
			case counted == lineCount:
				held = "not held: the machine did not let them be written as fast"
			}
			b.report.verdict("lines", fmt.Sprintf("%d of %d received, written at %s/s", counted, lineCount, short(written)), held)
		}
	}
	r.note("%d lines of 100 bytes each by one invocation, to its log and to one extension that subscribed with the smallest delay and the largest buffer; 3538 MB.", lineCount)
	r.table([]string{"asked for", "written", "received", "received at", "notices of lines dropped"}, rows)
	return nil
}

// shutDown ends a function's environments and returns what its ear then says.
func (s *server) shutDown(ctx context.Context, name string) (counted, dropped int, took time.Duration, err error) {
	if err := s.call(ctx, "PUT", "/2015-03-31/functions/"+name+"/configuration", map[string]any{"Timeout": 61}, nil); err != nil {
		return 0, 0, 0, err
	}
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		out, err := exec.CommandContext(ctx, s.binary, "logs", "--data-dir", s.data, "--filter", "counted", name).Output()
		if err != nil {
			return 0, 0, 0, fmt.Errorf("lambdad logs: %w", err)
		}
		if _, said, ok := strings.Cut(string(out), "ear counted "); ok {
			var us int64
			_, err := fmt.Sscanf(said, "%d dropped %d in %d", &counted, &dropped, &us)
			return counted, dropped, time.Duration(us) * time.Microsecond, err
		}
		if time.Since(begin) > startLimit {
			return 0, 0, 0, fmt.Errorf("the subscriber of %s does not say what it counted", name)
		}
	}
}
