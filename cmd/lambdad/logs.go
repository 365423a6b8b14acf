package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	sdkaws "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/lambdad/lambdad/datadir"
)

// logsOptions are the flags of lambdad logs.
type logsOptions struct {
	dataDir    string
	since      time.Duration
	follow     bool
	requestID  string
	pattern    string
	timestamps bool
}

// logsCommand prints the log of a function of a running server, through its API.
func logsCommand(ctx context.Context, std stdio, args []string) error {
	var o logsOptions
	fs := newFlags(std, "logs")
	fs.StringVar(&o.dataDir, "data-dir", defaultDataDir(), "`directory` of the server")
	fs.DurationVar(&o.since, "since", 10*time.Minute, "`duration` to look back, such as 90s, 10m or 24h")
	fs.BoolVar(&o.follow, "follow", false, "go on printing what comes, until interrupted")
	fs.StringVar(&o.requestID, "request-id", "", "`id` of the one invocation whose lines are printed, with those of its extensions meanwhile")
	fs.StringVar(&o.pattern, "filter", "", "CloudWatch Logs filter `pattern` that lines must match")
	fs.BoolVar(&o.timestamps, "timestamps", false, "begin every line with its time")
	rest, err := parse(fs, args, 1, 1)
	if err != nil {
		return err
	}
	if o.since <= 0 {
		fmt.Fprintf(std.err, "lambdad logs: --since %v: it must be positive, such as 10m\n", o.since)
		return errUsage
	}
	if o.pattern != "" && o.requestID != "" {
		fmt.Fprintln(std.err, "lambdad logs: --filter and --request-id cannot be used together: the lines that begin and end an invocation would be filtered out")
		return errUsage
	}
	c, err := newClient(o.dataDir)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	err = printLogs(ctx, std, c, o, rest[0])
	if o.follow && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func printLogs(ctx context.Context, std stdio, c *client, o logsOptions, function string) error {
	var f struct {
		FunctionName  string
		LoggingConfig struct{ LogGroup string }
	}
	if err := c.call(ctx, "lambda", http.MethodGet, "/2015-03-31/functions/"+url.PathEscape(function)+"/configuration", "", nil, &f); err != nil {
		return err
	}
	group := cmp.Or(f.LoggingConfig.LogGroup, "/aws/lambda/"+f.FunctionName)
	custom := group != "/aws/lambda/"+f.FunctionName
	in := map[string]any{"logGroupName": group, "startTime": time.Now().Add(-o.since).UnixMilli()}
	if o.pattern != "" {
		in["filterPattern"] = o.pattern
	}
	p := logPrinter{out: std.out, o: o, seen: map[string]int64{}, requests: map[string]string{}}
	if custom { // the log group may be shared
		p.streams = "/" + f.FunctionName + "["
	}
	found := false
	for {
		var answer struct {
			Events []struct {
				EventID       string `json:"eventId"`
				LogStreamName string `json:"logStreamName"`
				Timestamp     int64  `json:"timestamp"`
				Message       string `json:"message"`
			} `json:"events"`
			NextToken string `json:"nextToken"`
		}
		err := c.call(ctx, "logs", http.MethodPost, "/", "Logs_20140328.FilterLogEvents", in, &answer)
		var e *apiError
		switch {
		case errors.As(err, &e) && e.Code == "ResourceNotFoundException":
			if !found && !o.follow {
				fmt.Fprintf(std.err, "lambdad logs: function %s has no log yet: log group %s appears with its first line\n", f.FunctionName, group)
			}
			found = true // said once
		case err != nil:
			return err
		}
		for _, e := range answer.Events {
			if err := p.print(e.EventID, e.LogStreamName, e.Timestamp, e.Message); err != nil {
				return err
			}
		}
		if answer.NextToken != "" {
			in["nextToken"] = answer.NextToken
			continue
		}
		delete(in, "nextToken")
		if !o.follow {
			return nil
		}
		// Streams come to disk at their own pace: look back a little, and print
		// nothing twice.
		if p.last != 0 {
			const back = 5000
			in["startTime"] = max(p.last-back, in["startTime"].(int64))
			p.forget(p.last - back)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// A logPrinter prints the events that were asked for, each once.
type logPrinter struct {
	out      io.Writer
	o        logsOptions
	streams  string            // part of the names of streams; "": all
	seen     map[string]int64  // times by id
	last     int64             // time
	requests map[string]string // the present invocation of each stream
}

func (p *logPrinter) forget(before int64) {
	for id, at := range p.seen {
		if at < before {
			delete(p.seen, id)
		}
	}
}

func (p *logPrinter) print(id, stream string, at int64, message string) error {
	if !strings.Contains(stream, p.streams) {
		return nil
	}
	if p.o.follow {
		if _, ok := p.seen[id]; ok {
			return nil
		}
		p.seen[id] = at
		p.last = max(p.last, at)
	}
	if p.o.requestID != "" && !p.belongs(stream, message) {
		return nil
	}
	if p.o.timestamps {
		message = time.UnixMilli(at).UTC().Format("2006-01-02T15:04:05.000Z ") + message
	}
	if !strings.HasSuffix(message, "\n") {
		message += "\n"
	}
	_, err := io.WriteString(p.out, message)
	return err
}

// belongs says whether a line is one of the invocation that is asked for: lines of a
// stream between its start and its report.
func (p *logPrinter) belongs(stream, message string) bool {
	id, end := p.requests[stream], false
	if rest, ok := strings.CutPrefix(message, "START RequestId: "); ok {
		id, _, _ = strings.Cut(rest, " ")
	} else if strings.HasPrefix(message, "REPORT RequestId: ") {
		end = true
	} else if strings.HasPrefix(message, `{"time":"`) {
		var e struct {
			Type   string
			Record struct {
				RequestID string `json:"requestId"`
			}
		}
		if json.Unmarshal([]byte(message), &e) == nil {
			switch e.Type {
			case "platform.start":
				id = e.Record.RequestID
			case "platform.report":
				end = true
			}
		}
	}
	p.requests[stream] = id
	if end {
		delete(p.requests, stream)
	}
	return id == p.o.requestID
}

// A client calls the API of the server of a data directory as its administrator.
type client struct {
	server      datadir.Server
	credentials sdkaws.Credentials
	signer      *v4.Signer
}

func newClient(dataDir string) (*client, error) {
	server, err := datadir.Lookup(dataDir)
	if err != nil {
		return nil, err
	}
	key, err := administrator(dataDir)
	if err != nil {
		return nil, err
	}
	return &client{server, sdkaws.Credentials{AccessKeyID: key.AccessKeyID, SecretAccessKey: key.SecretAccessKey}, v4.NewSigner()}, nil
}

// An apiError is what the server answered.
type apiError struct {
	Code, Message string
}

func (e *apiError) Error() string { return e.Code + ": " + e.Message }

// call makes one request and decodes its JSON answer.
func (c *client) call(ctx context.Context, service, method, path, target string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, c.server.Endpoint+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if target != "" {
		r.Header.Set("X-Amz-Target", target)
		r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	}
	sum := sha256.Sum256(body)
	if err := c.signer.SignHTTP(ctx, c.credentials, r, hex.EncodeToString(sum[:]), service, c.server.Region, time.Now()); err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("asking the server at %s: %w", c.server.Endpoint, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("reading the answer of %s: %w", c.server.Endpoint, err)
	}
	if resp.StatusCode/100 != 2 {
		var e struct {
			Type     string `json:"__type"`
			Message  string `json:"message"`
			Message2 string `json:"Message"`
		}
		_ = json.Unmarshal(data, &e)
		code, _, _ := strings.Cut(cmp.Or(resp.Header.Get("X-Amzn-Errortype"), e.Type, resp.Status), ":")
		return &apiError{code[strings.LastIndexByte(code, '#')+1:], cmp.Or(e.Message, e.Message2)}
	}
	return json.Unmarshal(data, out)
}
