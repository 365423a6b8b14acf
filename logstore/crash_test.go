package logstore

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// crashChild names the variable that makes the test binary the process to be
// killed; its value is the directory.
const crashChild = "LAMBDAD_LOGSTORE_TEST_CRASH"

// crashMain writes for ever and says of each event that was acknowledged so: "put",
// by Put; "read", that a reader was given it.
func crashMain() {
	die := func(err error) {
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	var first int
	fmt.Sscan(os.Getenv(crashChild+"_FIRST"), &first)
	s, err := Open(Config{Dir: os.Getenv(crashChild), FlushEvery: 3 * time.Millisecond, Limit: MinLimit})
	die(err)
	s.segmentSize = 20_000
	ctx := context.Background()
	_ = s.CreateGroup(ctx, Group{GroupName: g("put")})
	_ = s.CreateStream(ctx, g("put"), "s")
	var mu sync.Mutex
	say := func(v ...any) {
		mu.Lock()
		defer mu.Unlock()
		os.Stdout.WriteString(fmt.Sprintln(v...))
	}
	say("ready")
	go func() {
		for n := first; ; n++ {
			die(s.Put(ctx, g("put"), "s", []Entry{{int64(n), fmt.Sprint("put ", n)}, {int64(n), fmt.Sprint("twin ", n)}}))
			say("put", n)
		}
	}()
	go func() {
		k := s.Sink(g("sink"), "s", text)
		for n := first; ; n++ {
			k.Take(line(int64(n), fmt.Sprint("read ", n)))
			if n%50 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	from := Position{Time: int64(first)}
	for {
		events, err := s.Events(Query{Group: g("sink"), From: from, To: Forever})
		if err == ErrNoGroup {
			continue
		}
		die(err)
		for e, err := range events {
			die(err)
			from = Position{e.Time, e.Seq + 1}
			say(strings.TrimSpace(e.Message))
		}
	}
}

// TestCrash kills a writer at random moments. Whatever was acknowledged must be
// there afterwards, and nothing may be torn.
func TestCrash(t *testing.T) {
	dir := t.TempDir()
	acknowledged := map[string]bool{}
	first := 1
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashChild+"="+dir, fmt.Sprintf("%s_FIRST=%d", crashChild, first))
		out, err := cmd.StdoutPipe()
		must(t, err)
		cmd.Stderr = os.Stderr
		must(t, cmd.Start())
		lines := bufio.NewScanner(out)
		if !lines.Scan() || lines.Text() != "ready" {
			t.Fatalf("round %d: %q", round, lines.Text())
		}
		time.AfterFunc(time.Duration(20+rand.IntN(200))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		n := 0
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "error") {
				t.Error(lines.Text())
			}
			acknowledged[lines.Text()] = true
			n++
		}
		_ = cmd.Wait()
		if n == 0 {
			t.Logf("round %d: killed before the first acknowledgement", round)
		}
		first += 1_000_000

		s, err := Open(Config{Dir: dir, Limit: MinLimit})
		must(t, err)
		there := map[string]bool{}
		for _, group := range []string{"put", "sink"} {
			if _, err := s.Group(g(group)); err != nil {
				continue
			}
			events := collect(t, s, Query{Group: g(group)})
			for _, e := range events {
				m := strings.TrimSpace(e.Message)
				var kind string
				var n int64
				if c, _ := fmt.Sscan(m, &kind, &n); c != 2 || n != e.Time || there[m] {
					t.Fatalf("round %d: event %+v", round, e)
				}
				there[m] = true
			}
			if st, err := s.Stream(g(group), "s"); err != nil || st.Events != int64(len(events)) {
				t.Errorf("round %d: %s counts %d events of %d; %v", round, group, st.Events, len(events), err)
			}
		}
		for m := range there {
			if n, ok := strings.CutPrefix(m, "put "); ok && !there["twin "+n] {
				t.Errorf("round %d: half of the put %s is there", round, n)
			}
		}
		for m := range acknowledged {
			if !there[m] {
				t.Fatalf("round %d: %q was acknowledged and is gone", round, m)
			}
		}
		must(t, s.Close())
	}
	if len(acknowledged) < 100 {
		t.Errorf("only %d acknowledgements in all", len(acknowledged))
	}
	t.Logf("%d acknowledged in %d rounds", len(acknowledged), rounds)
}
