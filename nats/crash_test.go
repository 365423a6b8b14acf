package nats

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lambdad/lambdad/blob/files"
)

// crashChild names the variable that makes the test binary the process to be
// killed; its value is the directory.
const crashChild = "LAMBDAD_NATS_TEST_CRASH"

// A value is what the child writes in a record; it is only whole with its padding.
type value struct {
	N       int
	Padding string
}

func makeValue(n int) []byte {
	b, _ := json.Marshal(value{n, strings.Repeat(string(rune('a'+n%26)), n*37%5000)})
	return b
}

func archive(n int) []byte {
	return bytes.Repeat(fmt.Append(nil, "archive ", n, "\n"), 20_000)
}

// crashMain writes for ever. Of everything it says before it begins and after it was
// acknowledged, one line each: "+" or "!", what, number.
func crashMain() {
	dir := os.Getenv(crashChild)
	var first int
	fmt.Sscan(os.Getenv(crashChild+"_FIRST"), &first)
	ctx := context.Background()
	die := func(err error) {
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	e, err := Open(ctx, Config{Dir: filepath.Join(dir, "records")})
	die(err)
	blobs, err := files.Open(files.Config{Dir: filepath.Join(dir, "blobs")})
	die(err)
	var mu sync.Mutex
	say := func(v ...any) {
		mu.Lock()
		defer mu.Unlock()
		os.Stdout.WriteString(fmt.Sprintln(v...))
	}
	say("ready")
	for w := range 3 { // a key has one writer
		go func() {
			for n := first + w; ; n += 3 {
				key := fmt.Sprintf("k.%d.%d", w, n%7)
				if n%5 == 0 {
					say("+", "delete", key, n)
					die(e.Store().Delete(ctx, key, 0))
					say("!", "delete", key, n)
				} else {
					say("+", "put", key, n)
					_, err := e.Store().Put(ctx, key, makeValue(n))
					die(err)
					say("!", "put", key, n)
				}
			}
		}()
	}
	go func() {
		for n := first; ; n++ {
			body := bytes.Repeat(fmt.Append(nil, n, " "), 1+n%3000)
			die(e.Queue().Enqueue(ctx, "q.x", fmt.Sprint(n), body))
			say("!", "enqueue", n, len(body))
		}
	}()
	go func() {
		for i := 0; ; i++ {
			m, err := e.Queue().Receive(ctx, "q", time.Hour)
			die(err)
			if i%3 == 0 {
				continue // dies with its lease
			}
			var n int
			fmt.Sscan(string(m.Body()), &n)
			say("+", "ack", n)
			die(m.Ack(ctx))
			say("!", "ack", n)
		}
	}()
	go func() {
		for n := first; ; n++ {
			digest, _, err := blobs.Put(ctx, bytes.NewReader(archive(n)))
			die(err)
			say("!", "blob", n, digest)
		}
	}()
	select {}
}

// What was acknowledged before a kill -9 is there afterwards, and nothing is there
// in part.
func TestCrash(t *testing.T) {
	dir := t.TempDir()
	rounds := 14
	if testing.Short() {
		rounds = 3
	}
	type op struct{ key, what string }
	acked := map[string]string{} // key -> last acknowledged operation, "put 7"
	begun := map[string]string{} // key -> operation not known to be done, or ""
	enqueued := map[int]int{}    // number -> length
	ended := map[int]bool{}      // acknowledged
	perhaps := map[int]bool{}    // acknowledgement begun
	archives := map[string]int{} // digest -> number
	first, total := 0, map[string]int{}
	for round := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), crashChild+"="+dir, fmt.Sprintf("%s_FIRST=%d", crashChild, first))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if !lines.Scan() || lines.Text() != "ready" {
			cmd.Process.Kill()
			t.Fatalf("the process says %q", lines.Text())
		}
		time.AfterFunc(time.Duration(50+rand.IntN(400))*time.Millisecond, func() { cmd.Process.Kill() })
		for lines.Scan() {
			f := strings.Fields(lines.Text())
			var n int
			switch {
			case f[0] == "error":
				t.Errorf("the process says %s", lines.Text())
			case f[1] == "put" || f[1] == "delete":
				o := op{f[2], f[1] + " " + f[3]}
				fmt.Sscan(f[3], &n)
				if f[0] == "+" {
					begun[o.key] = o.what
				} else {
					acked[o.key], begun[o.key] = o.what, ""
				}
			case f[1] == "enqueue":
				var size int
				fmt.Sscan(f[2]+" "+f[3], &n, &size)
				enqueued[n] = size
			case f[1] == "ack":
				fmt.Sscan(f[2], &n)
				perhaps[n] = true
				ended[n] = ended[n] || f[0] == "!"
			case f[1] == "blob":
				fmt.Sscan(f[2], &n)
				archives[f[3]] = n
			}
			if f[0] == "!" {
				total[f[1]]++
			}
			first = max(first, n+10)
		}
		cmd.Wait()

		e, err := Open(t.Context(), Config{Dir: filepath.Join(dir, "records"), Logger: slog.New(warnings{t, true})})
		if err != nil {
			t.Fatal(err)
		}
		all, err := e.Store().List(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		now := map[string]string{}
		for _, r := range all {
			var v value
			if err := json.Unmarshal(r.Value, &v); err != nil || !bytes.Equal(r.Value, makeValue(v.N)) {
				t.Errorf("round %d: record %s is not whole: %v", round, r.Key, err)
			}
			now[r.Key] = fmt.Sprint("put ", v.N)
		}
		for key := range begun {
			is := func(what string) bool {
				return what == now[key] || (now[key] == "" && (what == "" || strings.HasPrefix(what, "delete")))
			}
			if !is(acked[key]) && (begun[key] == "" || !is(begun[key])) {
				t.Errorf("round %d: %s: acknowledged %q, under way %q, found %q", round, key, acked[key], begun[key], now[key])
			}
			acked[key], begun[key] = now[key], ""
		}
		left, err := e.Queue().Len(t.Context(), "q")
		if err != nil {
			t.Fatal(err)
		}
		found := map[int]bool{}
		for range left {
			m, err := e.Queue().Receive(t.Context(), "q", time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			var n int
			fmt.Sscan(string(m.Body()), &n)
			size, known := enqueued[n]
			if !bytes.Equal(m.Body(), bytes.Repeat(fmt.Append(nil, n, " "), 1+n%3000)) || (known && size != len(m.Body())) {
				t.Errorf("round %d: message %d is not whole", round, n)
			}
			if found[n] || ended[n] {
				t.Errorf("round %d: message %d came back (acknowledged: %t)", round, n, ended[n])
			}
			found[n] = true
			if err := m.Ack(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for n := range enqueued {
			if !found[n] && !perhaps[n] {
				t.Errorf("round %d: message %d is lost", round, n)
			}
		}
		clear(enqueued)
		clear(perhaps)
		e.Close()

		blobs, err := files.Open(files.Config{Dir: filepath.Join(dir, "blobs")})
		if err != nil {
			t.Fatal(err)
		}
		if rest, err := os.ReadDir(filepath.Join(dir, "blobs", "incoming")); err != nil || len(rest) != 0 {
			t.Errorf("round %d: half-written archives are left: %v, %v", round, rest, err)
		}
		if err := blobs.List(t.Context(), func(digest string, _ int64) bool {
			if err := blobs.Verify(t.Context(), digest); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		for digest, n := range archives {
			r, _, err := blobs.Open(t.Context(), digest)
			if err != nil {
				t.Errorf("round %d: archive %d: %v", round, n, err)
				continue
			}
			if content, err := io.ReadAll(r); err != nil || !bytes.Equal(content, archive(n)) {
				t.Errorf("round %d: archive %d is not whole: %v", round, n, err)
			}
			r.Close()
			if err := blobs.Delete(t.Context(), digest); err != nil {
				t.Error(err)
			}
		}
		clear(archives)
	}
	for _, what := range []string{"put", "delete", "enqueue", "ack", "blob"} {
		if total[what] < rounds {
			t.Errorf("only %d of %s were acknowledged in %d rounds: the test tests nothing", total[what], what, rounds)
		}
	}
	t.Logf("killed %d times; acknowledged: %v", rounds, total)
}
