package trail

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lambdad/lambdad/aws"
)

func access(i int) aws.Access {
	return aws.Access{
		Time: time.Unix(1700000000, 0), RequestID: fmt.Sprintf("r%05d", i), Service: "lambda", Operation: "Invoke", Action: "lambda:InvokeFunction", SourceIP: "127.0.0.1:1",
		Identity: aws.Identity{Account: "000000000000", ARN: "arn:aws:sts::000000000000:assumed-role/r/f", Role: "arn:aws:iam::000000000000:role/p/r", UserID: "AROAX:f",
			AccessKeyID: "ASIAX", Function: "f", EnvironmentID: "e", Party: "runtime"},
	}
}

func run(t *testing.T, l *Log) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func ids(t *testing.T, dir string) (list []string) {
	t.Helper()
	if err := Read(t.Context(), dir, false, func(_ []byte, e *Event) bool {
		list = append(list, e.RequestID)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

// TestRotation: files have a bounded size and number, records keep their order, and
// a line cut short by a crash costs nothing but itself.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	const maxBytes = 20000
	l, err := Open(Config{Dir: dir, MaxBytes: maxBytes, Keep: 2})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, l)
	for i := range 200 {
		l.Record(access(i))
	}
	stop()
	l.Record(access(999)) // after the end: dropped, without waiting
	list := ids(t, dir)
	if len(list) < 40 || len(list) >= 200 || list[len(list)-1] != "r00199" {
		t.Fatalf("%d records, the last %s", len(list), list[len(list)-1])
	}
	for i := 1; i < len(list); i++ {
		if list[i] <= list[i-1] {
			t.Fatalf("%s after %s", list[i], list[i-1])
		}
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) != 3 {
		t.Errorf("files: %v", files)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() > maxBytes || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, info.Size(), info.Mode())
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteString(`{"requestID":"cut sho`)
	f.Close()
	if l, err = Open(Config{Dir: dir, MaxBytes: maxBytes, Keep: 2}); err != nil {
		t.Fatal(err)
	}
	stop = run(t, l)
	l.Record(access(300))
	stop()
	if list = ids(t, dir); list[len(list)-1] != "r00300" || list[len(list)-2] != "r00199" {
		t.Errorf("after a crash: %v", list[len(list)-3:])
	}
}

// TestFollow sees what is written later, over a rotation.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(Config{Dir: dir, MaxBytes: 5000, Keep: 4})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, l)
	defer stop()
	l.Record(access(0))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	seen := make(chan string, 100)
	done := make(chan error)
	go func() {
		done <- Read(ctx, dir, true, func(_ []byte, e *Event) bool {
			seen <- e.RequestID
			return e.RequestID != "r00005"
		})
	}()
	if got := <-seen; got != "r00000" {
		t.Fatal(got)
	}
	for i := 1; i <= 5; i++ {
		l.Record(access(i))
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if ctx.Err() != nil || len(seen) != 5 {
		t.Errorf("%d records seen, %v", len(seen), ctx.Err())
	}
}

// TestWho holds how callers are called.
func TestWho(t *testing.T) {
	for _, tt := range []struct {
		change    func(a *aws.Access)
		who, kind string
	}{
		{func(*aws.Access) {}, "function runtime", "AssumedRole"},
		{func(a *aws.Access) { a.Identity.Party = "extension/my-ext" }, "extension my-ext", "AssumedRole"},
		{func(a *aws.Access) { a.Identity = aws.Identity{}; a.Listener = "e" }, "environment", "Unknown"},
		{func(a *aws.Access) { a.Identity = aws.Identity{ARN: "x", UserName: "bob"}; a.Listener = "e" }, "environment", "IAMUser"},
		{func(a *aws.Access) { a.Identity = aws.Identity{ARN: "x", UserName: "bob"} }, "user bob", "IAMUser"},
		{func(a *aws.Access) { a.Identity.Party = "" }, "role r", "AssumedRole"},
		{func(a *aws.Access) { a.Identity = aws.Identity{ARN: "x", Admin: true} }, "root", "Root"},
	} {
		a := access(1)
		tt.change(&a)
		e := NewEvent(&a)
		if e.Extra.Who != tt.who || e.UserIdentity.Type != tt.kind {
			t.Errorf("%q %q, want %q %q", e.Extra.Who, e.UserIdentity.Type, tt.who, tt.kind)
		}
	}
	a := access(1)
	if e := NewEvent(&a); e.UserIdentity.Session == nil || e.UserIdentity.Session.Issuer.UserName != "r" || e.UserIdentity.Session.Issuer.PrincipalID != "AROAX" || e.EventSource != "lambda.amazonaws.com" || !strings.HasPrefix(e.SourceIP, "127.") {
		t.Errorf("%+v", e)
	}
}
