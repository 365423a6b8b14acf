// Package trail is the log of who called what on the endpoint: one JSON line for
// each call, in the shape of a CloudTrail record, in files of bounded size below
// the data directory.
//
// Recording is off the way of calls: they hand their record to a writer that writes
// many at a time and never waits for the disk. A crash of the machine may lose the
// last second, a killed server the last 20 ms.
package trail

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lambdad/lambdad/aws"
)

// Config says where the log is; every other field has a default.
type Config struct {
	Dir      string       // made if it is not there
	MaxBytes int64        // of one file; default 16 MiB
	Keep     int          // older files kept; default 4
	Logger   *slog.Logger // default: discard
}

const (
	file     = "audit.jsonl"
	waiting  = 2048                  // records not yet written
	batching = 20 * time.Millisecond // for more, before writing
)

// A Log takes records. Run writes them.
type Log struct {
	cfg  Config
	in   chan aws.Access
	done chan struct{} // closed when Run has returned
	f    *os.File
	w    *bufio.Writer
	size int64
}

// Open opens the log for writing.
func Open(cfg Config) (*Log, error) {
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 16 << 20
	}
	if cfg.Keep == 0 {
		cfg.Keep = 4
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("trail: making the directory of the audit log: %w", err)
	}
	l := &Log{cfg: cfg, in: make(chan aws.Access, waiting), done: make(chan struct{})}
	return l, l.open()
}

func (l *Log) open() error {
	f, err := os.OpenFile(filepath.Join(l.cfg.Dir, file), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("trail: opening the audit log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("trail: opening the audit log: %w", err), f.Close())
	}
	l.f, l.size = f, info.Size()
	l.w = bufio.NewWriterSize(f, 64<<10)
	if l.size > 0 { // a line that a killed server did not finish ends here
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, l.size-1); err == nil && last[0] != '\n' {
			l.size++
			_ = l.w.WriteByte('\n') // an error comes again with Flush
		}
	}
	return nil
}

// Record hands a record to the writer. It waits only while the writer is two
// thousand records behind, and drops what comes after Run has ended.
func (l *Log) Record(a aws.Access) {
	select {
	case l.in <- a:
	case <-l.done:
	}
}

// Run writes until ctx ends; what was recorded before is written. It sleeps while
// records gather: a call that is recorded wakes nobody.
func (l *Log) Run(ctx context.Context) error {
	defer close(l.done)
	gather := time.NewTimer(time.Hour)
	for {
		select {
		case a := <-l.in:
			l.write(&a)
			gather.Reset(batching)
			select {
			case <-gather.C:
			case <-ctx.Done():
			}
			l.drain()
		case <-ctx.Done():
			l.drain()
			if err := l.f.Close(); err != nil {
				return fmt.Errorf("trail: closing the audit log: %w", err)
			}
			return nil
		}
	}
}

// drain writes what was recorded up to now.
func (l *Log) drain() {
	for {
		select {
		case a := <-l.in:
			l.write(&a)
		default:
			l.flush()
			return
		}
	}
}

func (l *Log) write(a *aws.Access) {
	b, err := json.Marshal(NewEvent(a))
	if err != nil {
		l.cfg.Logger.Error("an audit record could not be written", "request_id", a.RequestID, "err", err)
		return
	}
	if l.size > 0 && l.size+int64(len(b))+1 > l.cfg.MaxBytes {
		l.rotate()
	}
	l.size += int64(len(b)) + 1
	b = append(b, '\n')
	if _, err := l.w.Write(b); err != nil {
		l.failed(err)
	}
}

func (l *Log) flush() {
	if err := l.w.Flush(); err != nil {
		l.failed(err)
	}
}

// failed says that records are lost, and goes on with an empty buffer.
func (l *Log) failed(err error) {
	l.cfg.Logger.Error("audit records could not be written", "err", err)
	l.w.Reset(l.f)
}

// rotate begins a new file and forgets the oldest.
func (l *Log) rotate() {
	l.flush()
	path := filepath.Join(l.cfg.Dir, file)
	for i := l.cfg.Keep; i > 0; i-- {
		from := path
		if i > 1 {
			from = older(l.cfg.Dir, i-1)
		}
		if err := os.Rename(from, older(l.cfg.Dir, i)); err != nil && !errors.Is(err, os.ErrNotExist) {
			l.cfg.Logger.Error("the audit log could not be rotated", "err", err)
			return
		}
	}
	old := l.f
	if err := l.open(); err != nil {
		l.cfg.Logger.Error("the audit log could not be rotated", "err", err)
		return // go on in the old one, under its new name
	}
	_ = old.Close() // all of it is written
}

// older is the name of the nth file before the present one.
func older(dir string, n int) string { return filepath.Join(dir, fmt.Sprintf("audit.%d.jsonl", n)) }

// An Event is one line: the members of a CloudTrail record that apply.
type Event struct {
	EventVersion string    `json:"eventVersion"`
	UserIdentity Identity  `json:"userIdentity"`
	EventTime    time.Time `json:"eventTime"`
	EventSource  string    `json:"eventSource"`
	EventName    string    `json:"eventName"`
	AWSRegion    string    `json:"awsRegion"`
	SourceIP     string    `json:"sourceIPAddress"`
	UserAgent    string    `json:"userAgent,omitempty"`
	ErrorCode    string    `json:"errorCode,omitempty"`
	ErrorMessage string    `json:"errorMessage,omitempty"`
	RequestID    string    `json:"requestID"`
	EventID      string    `json:"eventID"`
	ReadOnly     bool      `json:"readOnly"`
	Resources    []Named   `json:"resources,omitempty"`
	EventType    string    `json:"eventType"`
	Account      string    `json:"recipientAccountId,omitempty"`
	Extra        Extra     `json:"additionalEventData"`
}

// A Named is a resource.
type Named struct {
	ARN string `json:"ARN"`
}

// An Identity is who called.
type Identity struct {
	Type        string   `json:"type"` // Root, IAMUser, AssumedRole, Unknown
	PrincipalID string   `json:"principalId,omitempty"`
	ARN         string   `json:"arn,omitempty"`
	Account     string   `json:"accountId,omitempty"`
	AccessKeyID string   `json:"accessKeyId,omitempty"`
	UserName    string   `json:"userName,omitempty"`
	Session     *Session `json:"sessionContext,omitempty"`
}

// A Session is of temporary credentials.
type Session struct {
	Issuer     Issuer `json:"sessionIssuer"`
	Attributes struct {
		Created time.Time `json:"creationDate"`
		MFA     string    `json:"mfaAuthenticated"`
	} `json:"attributes"`
}

// An Issuer is the role of a session.
type Issuer struct {
	Type        string `json:"type"`
	PrincipalID string `json:"principalId"`
	ARN         string `json:"arn"`
	Account     string `json:"accountId"`
	UserName    string `json:"userName"`
}

// Extra is what CloudTrail does not know: who in an execution environment called.
type Extra struct {
	// Who is "function runtime", "extension <name>", "environment" (through whose
	// listener the call came, with other credentials), "user <name>", "role
	// <name>" or "root".
	Who         string `json:"who"`
	Function    string `json:"function,omitempty"`
	Environment string `json:"environment,omitempty"`
	Action      string `json:"action,omitempty"`
	Path        string `json:"path,omitempty"`
}

// NewEvent is the record of a call.
func NewEvent(a *aws.Access) *Event {
	id := &a.Identity
	e := &Event{
		EventVersion: "1.11", EventTime: a.Time.UTC().Truncate(time.Millisecond), EventSource: a.Service + ".amazonaws.com",
		EventName: a.Operation, AWSRegion: a.Region, UserAgent: a.UserAgent, ErrorCode: a.ErrorCode, ErrorMessage: a.ErrorMessage,
		RequestID: a.RequestID, EventID: a.RequestID, ReadOnly: a.ReadOnly, EventType: "AwsApiCall", Account: id.Account,
		Extra: Extra{Function: a.Function, Environment: id.EnvironmentID, Action: a.Action, Path: a.Path},
	}
	if host, _, err := net.SplitHostPort(a.SourceIP); err == nil {
		e.SourceIP = host
	} else {
		e.SourceIP = "environment"
	}
	if e.Extra.Environment == "" {
		e.Extra.Environment = a.Listener
	}
	if a.Resource != "" && a.Resource != "*" {
		e.Resources = []Named{{a.Resource}}
	}
	e.UserIdentity = Identity{PrincipalID: id.UserID, ARN: id.ARN, Account: id.Account, AccessKeyID: id.AccessKeyID, UserName: id.UserName}
	u := &e.UserIdentity
	name := id.Role[strings.LastIndexByte(id.Role, '/')+1:]
	switch {
	case id.ARN == "":
		u.Type = "Unknown"
	case id.Role != "":
		u.Type = "AssumedRole"
		roleID, _, _ := strings.Cut(id.UserID, ":")
		u.Session = &Session{Issuer: Issuer{Type: "Role", PrincipalID: roleID, ARN: id.Role, Account: id.Account, UserName: name}}
		u.Session.Attributes.Created, u.Session.Attributes.MFA = id.Issued.UTC(), "false"
	case id.UserName != "":
		u.Type = "IAMUser"
	default:
		u.Type = "Root"
	}
	extension, isExtension := strings.CutPrefix(id.Party, "extension/")
	switch {
	case id.Party == "runtime":
		e.Extra.Who = "function runtime"
	case isExtension:
		e.Extra.Who = "extension " + extension
	case a.Listener != "":
		e.Extra.Who = "environment"
	case id.Role != "":
		e.Extra.Who = "role " + name
	case id.UserName != "":
		e.Extra.Who = "user " + id.UserName
	case id.ARN != "":
		e.Extra.Who = "root"
	}
	return e
}

// Read calls f for every record in the directory, the oldest first, until f returns
// false. With follow it goes on with what is written later, until ctx ends. A line
// that is no record is left out.
func Read(ctx context.Context, dir string, follow bool, f func(line []byte, e *Event) bool) error {
	var files []string
	for i := 64; i > 0; i-- {
		if _, err := os.Stat(older(dir, i)); err == nil {
			files = append(files, older(dir, i))
		}
	}
	for _, name := range append(files, filepath.Join(dir, file)) {
		in, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) && len(files) > 0 {
			continue
		}
		if err != nil {
			return fmt.Errorf("trail: reading the audit log: %w", err)
		}
		more, err := read(ctx, in, dir, follow && name == filepath.Join(dir, file), f)
		if err != nil {
			return fmt.Errorf("trail: reading the audit log: %w", err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

// pollEvery is how often a followed file is looked at.
const pollEvery = time.Second / 2

func read(ctx context.Context, in *os.File, dir string, follow bool, f func([]byte, *Event) bool) (more bool, err error) {
	defer func() { _ = in.Close() }()
	r := bufio.NewReaderSize(in, 64<<10)
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			var e Event
			text := bytes.TrimSuffix(line, []byte("\n"))
			if json.Unmarshal(text, &e) == nil && !f(text, &e) {
				return false, nil
			}
			line = line[:0]
			continue
		case errors.Is(err, bufio.ErrBufferFull):
			if len(line) > 4<<20 {
				return false, errors.New("a line is longer than 4 MiB")
			}
			continue
		case !errors.Is(err, io.EOF):
			return false, err
		case !follow:
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-time.After(pollEvery):
		}
		// After a rotation the rest of the old file comes first.
		if rotated(in, dir) {
			if part, err := r.Peek(1); len(part) > 0 && err == nil {
				continue
			}
			next, err := os.Open(filepath.Join(dir, file))
			if err != nil {
				continue // between two names
			}
			_ = in.Close()
			in, line = next, nil
			r.Reset(in)
		}
	}
}

func rotated(in *os.File, dir string) bool {
	a, err1 := in.Stat()
	b, err2 := os.Stat(filepath.Join(dir, file))
	return err1 == nil && err2 == nil && !os.SameFile(a, b)
}
