package telemetry

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// network is a sandbox's, in memory.
type network struct {
	mu        sync.Mutex
	listeners map[string]*memory
}

type memory struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}
func (m *memory) Close() error   { m.once.Do(func() { close(m.done) }); return nil }
func (m *memory) Addr() net.Addr { return &net.TCPAddr{} }

func (n *network) listen(port string) net.Listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners == nil {
		n.listeners = map[string]*memory{}
	}
	m := &memory{conns: make(chan net.Conn), done: make(chan struct{})}
	n.listeners[port] = m
	return m
}

func (n *network) dial(ctx context.Context, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host != "sandbox" && host != "sandbox.localdomain" {
		return nil, fmt.Errorf("no such host: %s", addr)
	}
	n.mu.Lock()
	m := n.listeners[port]
	n.mu.Unlock()
	if m == nil {
		return nil, syscall.ECONNREFUSED
	}
	c, s := net.Pipe()
	select {
	case m.conns <- s:
		return c, nil
	case <-m.done:
		return nil, syscall.ECONNREFUSED
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// got is one delivery.
type got struct {
	at     time.Duration // since the receiver was made
	path   string
	method string
	body   string
	events []event
}

type event struct {
	Time, Type string
	Record     any
}

// receiver is an extension's listener.
type receiver struct {
	t     *testing.T
	begun time.Time
	http  *http.Server

	mu     sync.Mutex
	list   []got
	answer func(n int, w http.ResponseWriter) // nil: 200
}

func (g *rig) receive(port string, answer func(n int, w http.ResponseWriter)) *receiver {
	r := &receiver{t: g.t, begun: time.Now(), answer: answer}
	r.http = &http.Server{Handler: r}
	l := g.listen(port)
	go r.http.Serve(l)
	g.t.Cleanup(func() { r.http.Close() })
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	b, err := io.ReadAll(q.Body)
	if err != nil {
		return // broken off
	}
	g := got{at: time.Since(r.begun), path: q.URL.RequestURI(), method: q.Method, body: string(b)}
	if err := json.Unmarshal(b, &g.events); err != nil || len(g.events) == 0 {
		r.t.Errorf("body %.100q: %v", b, err)
	}
	if q.Header.Get("Content-Type") != "application/json" || q.ContentLength != int64(len(b)) {
		r.t.Errorf("headers %v", q.Header)
	}
	r.mu.Lock()
	r.list = append(r.list, g)
	n := len(r.list)
	r.mu.Unlock()
	if r.answer != nil {
		r.answer(n, w)
	}
}

func (r *receiver) batches() []got {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

// events lists what was got, in short.
func (r *receiver) events() []string {
	var s []string
	for _, g := range r.batches() {
		for _, e := range g.events {
			if line, ok := e.Record.(string); ok {
				s = append(s, line)
			} else {
				s = append(s, strings.TrimPrefix(e.Type, "platform."))
			}
		}
	}
	return s
}

// rig is subscriptions under test.
type rig struct {
	t *testing.T
	network
	stream *Stream
	subs   *Subscriptions
}

func subscribed(t *testing.T, body func(*rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, stream: NewStream()}
		r.subs = NewSubscriptions(SubscriptionsConfig{Stream: r.stream, Dial: r.dial})
		defer r.subs.End()
		body(r)
	})
}

// subscribe makes a subscription to functions' lines at a port, with members of
// buffering.
func (r *rig) subscribe(name, port, buffering string) {
	r.t.Helper()
	r.request(name, `{"schemaVersion":"2022-12-13","types":["function"],"buffering":{`+buffering+`},"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:`+port+`"}}`)
}

func (r *rig) request(name, body string) {
	r.t.Helper()
	q, err := ParseRequest(false, []byte(body))
	if err == nil {
		err = r.subs.Subscribe(context.Background(), name, q)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) lines(from, to int) {
	for i := from; i < to; i++ {
		r.stream.Emit(Event{Type: TypeFunctionLine, Record: Line(fmt.Sprintf("line %d", i))})
	}
}

// wantLines checks that exactly the lines from 0 arrived, in order.
func (r *rig) wantLines(c *receiver, n int) {
	r.t.Helper()
	list := c.events()
	for i, s := range list {
		if s != fmt.Sprintf("line %d", i) {
			r.t.Errorf("record %d of %d is %.50q", i, len(list), s)
			return
		}
	}
	if len(list) != n {
		r.t.Errorf("%d lines, want %d", len(list), n)
	}
}

func TestBatches(t *testing.T) {
	subscribed(t, func(r *rig) {
		c := r.receive("1", nil)
		r.subscribe("x", "1", `"timeoutMs":25,"maxItems":1000`)
		r.lines(0, 1)
		time.Sleep(10 * time.Millisecond)
		r.lines(1, 2)
		time.Sleep(14 * time.Millisecond)
		if n := len(c.batches()); n != 0 {
			t.Errorf("%d batches before the time", n)
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		// From the first event on, and again from the first after it.
		time.Sleep(74 * time.Millisecond)
		r.lines(2, 3)
		time.Sleep(time.Second)
		// By items, at once; the rest waits for its own time.
		r.lines(3, 1005)
		synctest.Wait()
		if b := c.batches(); len(b) != 3 || len(b[2].events) != 1000 {
			t.Errorf("%d batches", len(b))
		}
		time.Sleep(25 * time.Millisecond)
		synctest.Wait()
		var at []time.Duration
		for _, g := range c.batches() {
			at = append(at, g.at)
		}
		ms := time.Millisecond
		if want := []time.Duration{25 * ms, 125 * ms, 1100 * ms, 1125 * ms}; !slices.Equal(at, want) {
			t.Errorf("batches at %v, want %v", at, want)
		}
		r.wantLines(c, 1005)
	})
}

func TestBatchesBySize(t *testing.T) {
	subscribed(t, func(r *rig) {
		c := r.receive("1", nil)
		r.subscribe("x", "1", `"timeoutMs":1000`)
		line := strings.Repeat("x", 1000)
		for range 300 {
			r.stream.Emit(Event{Type: TypeFunctionLine, Record: Line(line)})
		}
		synctest.Wait()
		b := c.batches()
		if len(b) != 1 || len(b[0].body) < 262144 || len(b[0].body) > 262144+1100 {
			t.Fatalf("%d batches", len(b))
		}
		// The time of the next one begins with its own first event.
		time.Sleep(time.Second)
		synctest.Wait()
		if b := c.batches(); len(b) != 2 || len(b[0].events)+len(b[1].events) != 300 || b[1].at != time.Second {
			t.Errorf("%d batches, the last at %v", len(b), b[len(b)-1].at)
		}
		// A payload has at most twice the size, or one record.
		for _, n := range []int{10, 100_000, MaxLine, 10} {
			r.stream.Emit(Event{Type: TypeFunctionLine, Record: Line(strings.Repeat("\x01", n))})
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		var sizes []int
		for _, g := range c.batches()[2:] {
			sizes = append(sizes, len(g.events))
		}
		if !slices.Equal(sizes, []int{1, 1, 1, 1}) {
			t.Errorf("records of large batches %v", sizes)
		}
	})
}

func TestReplayAndSubscription(t *testing.T) {
	subscribed(t, func(r *rig) {
		r.stream.Remember()
		r.stream.Emit(Event{Type: TypeInitStart, Record: InitStart{Phase: "init"}})
		r.lines(0, 1)
		a, b := r.receive("1", nil), r.receive("2", nil)
		all := `{"schemaVersion":"2022-07-01","types":["platform","function"],"destination":{"protocol":"HTTP","URI":"http://sandbox:%d/a/path/"}}`
		r.request("first", fmt.Sprintf(all, 1))
		r.lines(1, 2)
		r.request("last", fmt.Sprintf(all, 2))
		r.request("last", fmt.Sprintf(all, 2)) // again: nothing
		r.lines(2, 3)
		r.subs.Close()
		q, _ := ParseRequest(false, fmt.Appendf(nil, all, 3))
		if err := r.subs.Subscribe(context.Background(), "third", q); err != ErrSubscriptionClosed {
			t.Error(err)
		}
		time.Sleep(2 * time.Second)
		want := "[initStart line 0 telemetrySubscription line 1 telemetrySubscription line 2]"
		for _, c := range []*receiver{a, b} {
			if got := fmt.Sprint(c.events()); got != want {
				t.Errorf("got %s\nwant %s", got, want)
			}
			if p := c.batches()[0]; p.path != "/a/path/" || p.method != "POST" {
				t.Errorf("%+v", p)
			}
		}
	})
}

func TestExclusion(t *testing.T) {
	subscribed(t, func(r *rig) {
		r.subscribe("x", "1", "")
		for _, c := range []struct {
			name string
			logs bool
			body string
			ok   bool
		}{
			{"x", true, `{"types":["function"],"destination":{"protocol":"HTTP","URI":"http://sandbox:2"}}`, false},
			{"x", false, `{"schemaVersion":"2022-12-13","types":["platform"],"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:1"}}`, true},
			{"y", true, `{"types":["function"],"destination":{"protocol":"HTTP","URI":"http://sandbox:2"}}`, true},
			{"y", false, `{"schemaVersion":"2022-12-13","types":["platform"],"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:1"}}`, false},
			{"z", false, `{"schemaVersion":"2022-12-13","types":["platform"],"destination":{"protocol":"TCP","port":4}}`, false},
		} {
			q, err := ParseRequest(c.logs, []byte(c.body))
			if err != nil {
				t.Fatal(err)
			}
			_, bad := r.subs.Subscribe(context.Background(), c.name, q).(*RequestError)
			if bad == c.ok {
				t.Errorf("%s %s: refused %v", c.name, c.body, bad)
			}
		}
	})
}

// An extension may have a few subscriptions; each gets everything, and its flush is
// over when all have it.
func TestSeveralOfOneExtension(t *testing.T) {
	subscribed(t, func(r *rig) {
		var got []*receiver
		for _, port := range []string{"1", "2", "3", "4"} {
			got = append(got, r.receive(port, nil))
			r.subscribe("x", port, "")
		}
		q, err := ParseRequest(false, []byte(`{"schemaVersion":"2022-12-13","types":["function"],"destination":{"protocol":"HTTP","URI":"http://sandbox:5"}}`))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.subs.Subscribe(context.Background(), "x", q); err == nil {
			t.Error("there is no limit")
		}
		r.lines(0, 10)
		begun := time.Now()
		<-r.subs.Flush()["x"]
		if d := time.Since(begun); d > 0 {
			t.Errorf("the flush took %v", d)
		}
		for _, c := range got {
			r.wantLines(c, 10)
		}
	})
}

func TestListenerComesLater(t *testing.T) {
	subscribed(t, func(r *rig) {
		r.subscribe("x", "1", `"timeoutMs":25`)
		r.lines(0, 10)
		time.Sleep(2600 * time.Millisecond)
		c := r.receive("1", nil)
		r.lines(10, 20)
		time.Sleep(10 * time.Second)
		r.wantLines(c, 20)
		// Tried at 25, 125, 325, 725, 1525 ms, then every second.
		if b := c.batches(); len(b) != 2 || len(b[0].events) != 10 || b[1].at < b[0].at {
			t.Errorf("%d batches", len(b))
		}
	})
}

func TestRetry(t *testing.T) {
	for name, answer := range map[string]func(n int, w http.ResponseWriter){
		"500": func(n int, w http.ResponseWriter) {
			if n == 1 {
				w.WriteHeader(500)
			}
		},
		"404": func(n int, w http.ResponseWriter) {
			if n == 1 {
				w.WriteHeader(404)
			}
		},
		"redirect": func(n int, w http.ResponseWriter) {
			if n == 1 {
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(307)
			}
		},
		"reset": func(n int, w http.ResponseWriter) {
			if n == 1 {
				panic(http.ErrAbortHandler)
			}
		},
		"silence": func(n int, w http.ResponseWriter) {
			if n == 1 {
				time.Sleep(time.Hour)
				w.WriteHeader(500)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			subscribed(t, func(r *rig) {
				c := r.receive("1", answer)
				r.subscribe("x", "1", `"timeoutMs":25`)
				r.lines(0, 3)
				time.Sleep(50 * time.Millisecond)
				r.lines(3, 5)
				time.Sleep(2 * time.Hour)
				b := c.batches()
				if len(b) != 3 || b[0].body != b[1].body || len(b[1].events) != 3 || len(b[2].events) != 2 {
					t.Fatalf("%d batches: %+v", len(b), b)
				}
				wait := firstBackoff
				if name == "silence" {
					wait += requestLimit
				}
				if d := b[1].at - b[0].at; d != wait {
					t.Errorf("tried again after %v, want %v", d, wait)
				}
				if s := c.events(); s[6] != "line 3" || s[7] != "line 4" {
					t.Error(s)
				}
			})
		})
	}
}

func TestBackoff(t *testing.T) {
	subscribed(t, func(r *rig) {
		c := r.receive("1", func(n int, w http.ResponseWriter) {
			if n < 8 {
				w.WriteHeader(503)
			}
		})
		r.subscribe("x", "1", `"timeoutMs":25`)
		r.lines(0, 1)
		time.Sleep(time.Minute)
		var waits []int64
		b := c.batches()
		for i := 1; i < len(b); i++ {
			waits = append(waits, (b[i].at - b[i-1].at).Milliseconds())
		}
		if want := []int64{100, 200, 400, 800, 1000, 1000, 1000}; !slices.Equal(waits, want) {
			t.Errorf("waits %v, want %v", waits, want)
		}
	})
}

// TestOneThatHangs has ten subscribers of whom one takes nothing for a while: the
// others and the writer do not notice, and it hears what it missed.
func TestOneThatHangs(t *testing.T) {
	subscribed(t, func(r *rig) {
		wake := make(chan struct{})
		var receivers []*receiver
		for i := range 10 {
			var answer func(int, http.ResponseWriter)
			if i == 3 {
				answer = func(int, http.ResponseWriter) { <-wake }
			}
			port := fmt.Sprint(i + 1)
			receivers = append(receivers, r.receive(port, answer))
			r.subscribe("x"+port, port, `"timeoutMs":100`)
		}
		const n = 100_000
		begun := time.Now()
		for i := 0; i < n; i += 1000 {
			r.lines(i, i+1000)
			time.Sleep(10 * time.Millisecond)
		}
		if d := time.Since(begun); d != n/1000*10*time.Millisecond {
			t.Errorf("writing took %v", d)
		}
		time.Sleep(time.Second)
		for i, c := range receivers {
			if i != 3 {
				r.wantLines(c, n)
			}
		}
		if b := r.subs.Buffered(); b > maxBuffered {
			t.Errorf("%d bytes wait", b)
		}
		lost, bytes := r.subs.Lost()
		close(wake)
		time.Sleep(time.Minute)
		// Everything is either there or counted.
		var lines, dropped int64
		next := 0
		for _, g := range receivers[3].batches() {
			for _, e := range g.events {
				if line, ok := e.Record.(string); ok {
					if line != fmt.Sprintf("line %d", next) {
						t.Fatalf("%q, want line %d", line, next)
					}
					next++
					lines++
					continue
				}
				m := e.Record.(map[string]any)
				if e.Type != TypeLogsDropped || m["reason"] != DropReason || m["droppedBytes"].(float64) != float64(bytes) {
					t.Errorf("%+v", e)
				}
				dropped += int64(m["droppedRecords"].(float64))
				next += int(m["droppedRecords"].(float64))
			}
		}
		if lines+dropped != n || dropped != lost || dropped == 0 || lines*60 < maxBuffered/2 {
			t.Errorf("%d lines and %d dropped of %d; counted %d", lines, dropped, n, lost)
		}
		if r.subs.Buffered() != 0 {
			t.Errorf("%d bytes wait for nobody", r.subs.Buffered())
		}
		// It is on the way again.
		r.lines(n, n+1)
		time.Sleep(time.Second)
		if s := receivers[3].events(); s[len(s)-1] != fmt.Sprintf("line %d", n) {
			t.Error("nothing comes any more")
		}
	})
}

// TestLiars are listeners that speak no honest HTTP. They delay nobody, hold
// nothing but a bounded buffer, and End ends them.
func TestLiars(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	forever := func(c net.Conn, s string) {
		for {
			if _, err := io.WriteString(c, s); err != nil {
				return
			}
		}
	}
	request := func(c net.Conn) {
		q, err := http.ReadRequest(bufio.NewReader(c))
		if err == nil {
			io.Copy(io.Discard, q.Body)
		}
	}
	for name, serve := range map[string]func(c net.Conn){
		"never reads":         func(net.Conn) {},
		"closes":              func(c net.Conn) { c.Close() },
		"reads a little":      func(c net.Conn) { io.ReadFull(c, make([]byte, 100)); c.Close() },
		"never answers":       func(c net.Conn) { io.Copy(io.Discard, c) },
		"answers at once":     func(c net.Conn) { io.WriteString(c, ok+"Content-Length: 0\r\n\r\n") },
		"endless status":      func(c net.Conn) { request(c); forever(c, "x") },
		"endless headers":     func(c net.Conn) { request(c); io.WriteString(c, ok); forever(c, "A: b\r\n") },
		"endless information": func(c net.Conn) { request(c); forever(c, "HTTP/1.1 102 Processing\r\n\r\n") },
		"endless body":        func(c net.Conn) { request(c); io.WriteString(c, ok+"\r\n"); forever(c, "xxxxxxxx") },
		"endless chunks": func(c net.Conn) {
			request(c)
			io.WriteString(c, ok+"Transfer-Encoding: chunked\r\n\r\n")
			forever(c, "4\r\nabcd\r\n")
		},
		"half a body": func(c net.Conn) { request(c); io.WriteString(c, ok+"Content-Length: 9\r\n\r\nhalf") },
	} {
		t.Run(name, func(t *testing.T) {
			subscribed(t, func(r *rig) {
				l := r.listen("1")
				var mu sync.Mutex
				var conns []net.Conn
				go func() {
					for {
						c, err := l.Accept()
						if err != nil {
							return
						}
						mu.Lock()
						conns = append(conns, c)
						mu.Unlock()
						go serve(c)
					}
				}()
				defer func() {
					l.Close()
					r.subs.End()
					mu.Lock()
					defer mu.Unlock()
					for _, c := range conns {
						c.Close()
					}
				}()
				good := r.receive("2", nil)
				r.subscribe("liar", "1", `"timeoutMs":25`)
				r.subscribe("good", "2", `"timeoutMs":25`)
				begun := time.Now()
				for i := range 300 {
					r.lines(i*100, i*100+100)
					time.Sleep(10 * time.Millisecond)
				}
				if time.Since(begun) != 3*time.Second {
					t.Errorf("writing took %v", time.Since(begun))
				}
				time.Sleep(time.Second)
				r.wantLines(good, 30_000)
				mu.Lock()
				n := len(conns)
				mu.Unlock()
				if n == 0 || n > 200 {
					t.Errorf("%d connections", n)
				}
				begun = time.Now()
				r.subs.End()
				if d := time.Since(begun); d > 0 {
					t.Errorf("ending took %v", d)
				}
			})
		})
	}
}

// TestHoldAndPause is an environment that idles, freezes, thaws and works.
func TestHoldAndPause(t *testing.T) {
	subscribed(t, func(r *rig) {
		c := r.receive("1", nil)
		r.subscribe("x", "1", `"timeoutMs":25,"maxItems":1000`)
		r.subs.Hold()
		r.lines(0, 2500) // full batches do not go either
		time.Sleep(time.Minute)
		r.subs.Pause()
		time.Sleep(time.Hour)
		if n := len(c.batches()); n != 0 {
			t.Errorf("%d batches while it was held", n)
		}
		r.subs.Resume()
		synctest.Wait()
		r.wantLines(c, 2500)
		r.lines(2500, 2501)
		time.Sleep(25 * time.Millisecond)
		synctest.Wait()
		r.wantLines(c, 2501)
	})
}

// counting counts the bytes that a listener's connections were written.
type counting struct {
	net.Listener
	n    atomic.Int64
	slow chan struct{} // a value for every read
}

type countingConn struct {
	net.Conn
	l *counting
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countingConn{c, l}, nil
}

func (c countingConn) Read(b []byte) (int, error) {
	<-c.l.slow
	n, err := c.Conn.Read(b[:min(len(b), 1000)])
	c.l.n.Add(int64(n))
	return n, err
}

// TestRequestSurvivesAFreeze freezes in the middle of a request, for longer than
// any limit: not a byte is written meanwhile, freezing waits for nobody, and the
// request goes on where it was.
func TestRequestSurvivesAFreeze(t *testing.T) {
	subscribed(t, func(r *rig) {
		c := &receiver{t: t, begun: time.Now()}
		l := &counting{Listener: r.listen("1"), slow: make(chan struct{}, 1<<20)}
		c.http = &http.Server{Handler: c}
		go c.http.Serve(l)
		defer func() {
			close(l.slow)
			r.subs.End()
			c.http.Close()
		}()
		r.subscribe("x", "1", `"timeoutMs":25`)
		for i := range 50 {
			r.stream.Emit(Event{Type: TypeFunctionLine, Record: Line(fmt.Sprintf("line %d%s", i, strings.Repeat(" ", 1000)))})
		}
		for range 20 {
			l.slow <- struct{}{}
		}
		time.Sleep(25 * time.Millisecond)
		synctest.Wait()
		if n := l.n.Load(); n < 10_000 || n > 20_000 {
			t.Fatalf("%d bytes were read", n)
		}
		begun := time.Now()
		for range 3 {
			r.subs.Pause()
			before := l.n.Load()
			for range 1000 {
				select {
				case l.slow <- struct{}{}: // now it reads whatever comes
				default:
				}
			}
			time.Sleep(time.Hour)
			synctest.Wait()
			if n := l.n.Load(); n != before {
				t.Errorf("%d bytes were written into a frozen environment", n-before)
			}
			for len(l.slow) > 0 {
				<-l.slow
			}
			r.subs.Resume()
			l.slow <- struct{}{}
			synctest.Wait()
		}
		if d := time.Since(begun); d != 3*time.Hour {
			t.Errorf("pausing took %v", d-3*time.Hour)
		}
		for range 1000 {
			l.slow <- struct{}{}
		}
		synctest.Wait()
		if b := c.batches(); len(b) != 1 || len(b[0].events) != 50 {
			t.Errorf("%d batches", len(b))
		}
	})
}

func TestFlush(t *testing.T) {
	subscribed(t, func(r *rig) {
		if r.subs.Flush() != nil {
			t.Error("something to flush")
		}
		wake := make(chan struct{})
		c := r.receive("1", nil)
		r.receive("2", func(int, http.ResponseWriter) { <-wake })
		defer close(wake)
		r.subscribe("x", "1", `"timeoutMs":30000`)
		r.subscribe("stuck", "2", `"timeoutMs":30000`)
		isDone := func(ch <-chan struct{}) bool {
			synctest.Wait()
			select {
			case <-ch:
				return true
			default:
				return false
			}
		}
		if f := r.subs.Flush(); !isDone(f["x"]) || !isDone(f["stuck"]) || f["other"] != nil {
			t.Error("nothing is there to be flushed")
		}
		r.lines(0, 3)
		f := r.subs.Flush()
		if !isDone(f["x"]) || isDone(f["stuck"]) {
			t.Error("flushed the wrong ones")
		}
		r.wantLines(c, 3)
		r.lines(3, 4)
		synctest.Wait()
		r.wantLines(c, 3) // what comes after a flush waits for its time
		if f := r.subs.Flush(); !isDone(f["x"]) {
			t.Error("not flushed again")
		}
		r.wantLines(c, 4)
	})
}

func TestTCP(t *testing.T) {
	subscribed(t, func(r *rig) {
		l := r.listen("4")
		var mu sync.Mutex
		var got bytes.Buffer
		conns := make(chan net.Conn, 10)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				conns <- c
				go func() {
					s := bufio.NewScanner(c)
					for s.Scan() {
						mu.Lock()
						fmt.Fprintln(&got, s.Text())
						mu.Unlock()
					}
				}()
			}
		}()
		defer l.Close()
		r.request("x", `{"schemaVersion":"2022-12-13","types":["platform","function"],"buffering":{"timeoutMs":25},"destination":{"protocol":"TCP","port":4}}`)
		first := <-conns
		r.lines(0, 3)
		time.Sleep(25 * time.Millisecond)
		synctest.Wait()
		first.Close()
		synctest.Wait()
		r.lines(3, 5)
		time.Sleep(time.Second)
		second := <-conns
		defer second.Close()
		var types []string
		mu.Lock()
		text := got.String()
		mu.Unlock()
		for line := range strings.Lines(text) {
			var e event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			types = append(types, strings.TrimPrefix(fmt.Sprintf("%s %v", e.Type, e.Record), "function "))
		}
		want := []string{"platform.telemetrySubscription map[name:x state:Subscribed types:[platform function]]", "line 0", "line 1", "line 2", "line 3", "line 4"}
		if !reflect.DeepEqual(types, want) {
			t.Errorf("got %q\nwant %q", types, want)
		}
	})
}

// TestTCPThatNeverReads is told what it missed once it reads, too.
func TestTCPThatNeverReads(t *testing.T) {
	subscribed(t, func(r *rig) {
		l := r.listen("4")
		defer l.Close()
		accepted := make(chan net.Conn, 1)
		go func() {
			if c, err := l.Accept(); err == nil {
				accepted <- c
			}
		}()
		r.request("x", `{"schemaVersion":"2022-12-13","types":["function"],"destination":{"protocol":"TCP","port":4}}`)
		c := <-accepted
		defer c.Close()
		const n = 100_000
		r.lines(0, n)
		time.Sleep(time.Hour)
		begun := time.Now()
		r.subs.Pause()
		if time.Since(begun) > 0 {
			t.Error("pausing waited")
		}
		r.subs.Resume()
		lines, dropped := 0, 0
		s := bufio.NewScanner(c)
		for lines+dropped < n && s.Scan() {
			var e struct {
				Type   string
				Record json.RawMessage
			}
			if err := json.Unmarshal(s.Bytes(), &e); err != nil {
				t.Fatalf("%v: %s", err, s.Text())
			}
			if e.Type == TypeLogsDropped {
				var d LogsDropped
				json.Unmarshal(e.Record, &d)
				dropped += int(d.Records)
			} else {
				lines++
			}
		}
		if lines+dropped != n || dropped == 0 {
			t.Errorf("%d lines, %d dropped", lines, dropped)
		}
	})
}

func TestReplayCountsWhatWasForgotten(t *testing.T) {
	subscribed(t, func(r *rig) {
		r.stream.Remember()
		r.stream.Emit(Event{Type: TypeInitStart, Record: InitStart{}})
		r.lines(0, 5000)
		r.stream.Emit(Event{Type: TypeExtensionLine, Record: Line("x")})
		c := r.receive("1", nil)
		r.subscribe("x", "1", "")
		time.Sleep(2 * time.Second)
		b := c.batches()
		if len(b) != 2 {
			t.Fatalf("%d batches", len(b))
		}
		last := b[1].events[len(b[1].events)-1]
		if m, ok := last.Record.(map[string]any); !ok || m["droppedRecords"] != 905.0 || len(c.events()) != 4096 {
			t.Errorf("%+v", last)
		}
	})
}

// TestRealListener delivers over real sockets, to a server of net/http.
func TestRealListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	var n atomic.Int64
	done := make(chan struct{})
	const total = 50_000
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		var list []event
		if err := json.NewDecoder(q.Body).Decode(&list); err != nil {
			t.Error(err)
		}
		for _, e := range list {
			if want := fmt.Sprintf("line %d", n.Load()); e.Record != want {
				t.Errorf("%v, want %s", e.Record, want)
			}
			if n.Add(1) == total {
				close(done)
			}
		}
		w.Write([]byte("OK"))
	})}
	go srv.Serve(l)
	defer srv.Close()
	r := &rig{t: t, stream: NewStream()}
	r.subs = NewSubscriptions(SubscriptionsConfig{Stream: r.stream, Dial: func(ctx context.Context, addr string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}})
	defer r.subs.End()
	r.subscribe("x", "8080", `"timeoutMs":25`)
	for i := 0; i < total; i += 1000 {
		r.lines(i, i+1000)
		if i%10_000 == 0 { // in the middle of what is under way
			r.subs.Pause()
			r.subs.Resume()
		}
		for r.subs.Buffered() > maxBuffered/2 {
			time.Sleep(time.Millisecond)
		}
	}
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatalf("%d lines arrived", n.Load())
	}
}

// BenchmarkDelivery is how fast lines that a process writes get through one
// stream to HTTP subscribers on real sockets, with a writer that waits when the
// buffer is half full, so that nothing is lost.
func BenchmarkDelivery(b *testing.B) {
	for _, subscribers := range []int{1, 10} {
		b.Run(fmt.Sprintf("subscribers=%d", subscribers), func(b *testing.B) { benchDelivery(b, subscribers, 0) })
	}
}

// BenchmarkDeliveryAtARate writes so many lines a second by the clock, and waits for
// nobody, as a function does.
func BenchmarkDeliveryAtARate(b *testing.B) {
	for _, rate := range []int{100_000, 300_000} {
		b.Run(fmt.Sprintf("lines/s=%d", rate), func(b *testing.B) { benchDelivery(b, 1, rate) })
	}
}

func benchDelivery(b *testing.B, subscribers, rate int) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Skip(err)
	}
	var got atomic.Int64
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		buf := make([]byte, 64<<10)
		for {
			n, err := q.Body.Read(buf)
			got.Add(int64(bytes.Count(buf[:n], []byte(`"record"`)))) // a few are split
			if err != nil {
				return
			}
		}
	})}
	go srv.Serve(l)
	defer srv.Close()
	stream := NewStream()
	subs := NewSubscriptions(SubscriptionsConfig{Stream: stream, Dial: func(ctx context.Context, addr string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}})
	defer subs.End()
	for i := range subscribers {
		q, err := ParseRequest(false, []byte(`{"schemaVersion":"2022-12-13","types":["platform","function"],"destination":{"protocol":"HTTP","URI":"http://sandbox:8080"}}`))
		if err == nil {
			err = subs.Subscribe(context.Background(), fmt.Sprint(i), q)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	const chunk = 40
	text := bytes.Repeat([]byte(strings.Repeat("0123456789", 10)+"\n"), chunk) // as a pipe gives them
	out := NewLines(stream, TypeFunctionLine)
	b.ReportAllocs()
	b.ResetTimer()
	begun := time.Now()
	for i := 0; i < b.N; i += chunk {
		out.Write(text)
		if rate > 0 {
			time.Sleep(time.Duration(i)*time.Second/time.Duration(rate) - time.Since(begun))
			continue
		}
		for subs.Buffered() > subscribers*maxBuffered/2 {
			time.Sleep(100 * time.Microsecond)
		}
	}
	for _, done := range subs.Flush() {
		<-done
	}
	b.StopTimer()
	records, _ := subs.Lost()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lines/s")
	b.ReportMetric(float64(records)/float64(b.N)*100, "%dropped")
}
