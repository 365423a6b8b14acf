package httpwire

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// lean is the path of requests that are served here.
func leanPath(_, target []byte) bool { return bytes.HasPrefix(target, []byte("/lean")) }

const headLimit = 100 * time.Millisecond

// echo says how a request was read.
func echo(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	_, here := w.(*answer)
	text := fmt.Sprintf("%v %s %s %s %q %v", here, r.Method, r.RequestURI, r.Host, b, err)
	w.Header().Set("Content-Type", "text/plain")
	w.Write([]byte(text))
}

// serve serves until the end of the test.
func serve(t testing.TB, h http.HandlerFunc) (s *Server, dial func() *client) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = NewServer(&http.Server{Handler: h, ReadHeaderTimeout: headLimit, ErrorLog: log.New(io.Discard, "", 0)}, leanPath)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l.(*net.TCPListener)) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != http.ErrServerClosed {
			t.Error(err)
		}
	})
	return s, func() *client {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(time.Minute))
		return &client{t, c.(*net.TCPConn), bufio.NewReader(c)}
	}
}

type client struct {
	t testing.TB
	*net.TCPConn
	in *bufio.Reader
}

func (c *client) say(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
}

// hear reads an answer; "": the connection ended.
func (c *client) hear() (r *http.Response, body string) {
	c.t.Helper()
	r, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return nil, ""
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return r, string(b)
}

func (c *client) expect(status int, body string) {
	c.t.Helper()
	if r, got := c.hear(); r == nil || r.StatusCode != status || body != "" && got != body {
		c.t.Fatalf("%v %q, want %d %q", r, got, status, body)
	}
}

// TestHanding: lean requests are served here until another comes, which and all after
// it are net/http's, to the byte.
func TestHanding(t *testing.T) {
	_, dial := serve(t, echo)
	c := dial()
	c.say("POST /lean HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc\r\nPOST /lean?a=b HTTP/1.1\r\nHost: x\r\n\r\nGET /le")
	c.expect(200, `true POST /lean x "abc" <nil>`)
	c.expect(200, `true POST /lean?a=b x "" <nil>`)
	c.say("ft HTTP/1.1\r\nHost: x\r\n\r\nPOST /lean HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na")
	c.expect(200, `false GET /left x "" <nil>`)
	c.expect(200, `false POST /lean x "a" <nil>`)
	for _, head := range []string{
		"POST /lean HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
		"POST /lean HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", headSize) + "\r\nContent-Length: 1\r\n\r\na",
		"POST /lean HTTP/1.0\r\nHost: x\r\nContent-Length: 1\r\n\r\na",
	} {
		c := dial()
		c.say(head)
		c.expect(200, `false POST /lean x "a" <nil>`)
	}
	c = dial()
	c.say("POST /lean HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
	if r, _ := http.ReadResponse(c.in, nil); r == nil || r.StatusCode != 100 {
		t.Fatal(r)
	}
	c.say("a")
	c.expect(200, `false POST /lean x "a" <nil>`)
}

// TestSmuggling: what could be read in two ways is net/http's to refuse, and nothing
// after it is served.
func TestSmuggling(t *testing.T) {
	_, dial := serve(t, echo)
	for _, head := range []string{
		"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
		"Content-Length: +3\r\n\r\nabc",
		"Content-Length: 3, 3\r\n\r\nabc",
		"Content-Length : 3\r\n\r\nabc",
		"Content-Length: 99999999999999999999\r\n\r\nabc",
		"A: b\rContent-Length: 3\r\n\r\nabc",
		"Host: y\r\n\r\n",
		"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	} {
		c := dial()
		c.say("POST /lean HTTP/1.1\r\nHost: x\r\n" + head + "POST /lean HTTP/1.1\r\nHost: x\r\n\r\n")
		r, _ := c.hear()
		if r == nil || r.StatusCode < 400 || !r.Close {
			t.Errorf("%q: %v", head, r)
		}
		if r, _ := c.hear(); r != nil {
			t.Errorf("%q: then %v", head, r)
		}
	}
}

// TestAnswers are forms of answers.
func TestAnswers(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", 6<<16)
	_, dial := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/lean/large":
			w.Header().Set("Content-Length", fmt.Sprint(len(large)))
			io.WriteString(w, large)
		case "/lean/undeclared":
			io.WriteString(w, large[:10])
			io.WriteString(w, large[10:])
		case "/lean/none":
			w.Header()["x-amzn-RequestId"] = []string{"a\r\nb: c"}
			w.WriteHeader(http.StatusNoContent)
		case "/lean/nothing":
		case "/lean/short":
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "abc")
			if _, err := io.WriteString(w, "defg"); err != http.ErrContentLength {
				t.Error(err)
			}
		case "/lean/panic":
			panic("as expected")
		case "/lean/abort":
			panic(http.ErrAbortHandler)
		case "/lean/close":
			w.Header().Set("Connection", "close")
		}
	})
	c := dial()
	for _, x := range []struct {
		path, want string
		status     int
		length     string
	}{
		{"large", large, 200, fmt.Sprint(len(large))}, {"undeclared", large, 200, fmt.Sprint(len(large))},
		{"none", "", 204, ""}, {"nothing", "", 200, "0"},
	} {
		c.say("POST /lean/" + x.path + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
		r, body := c.hear()
		if r == nil || r.StatusCode != x.status || body != x.want || r.Header.Get("Content-Length") != x.length || r.Header.Get("Date") == "" || r.Close {
			t.Fatalf("%s: %v, %d bytes", x.path, r, len(body))
		}
		if kind := r.Header.Get("Content-Type"); (kind == "text/plain; charset=utf-8") != (len(body) > 0) {
			t.Errorf("%s: type %q", x.path, kind)
		}
		if x.path == "none" && (r.Header.Get("x-amzn-RequestId") != "a  b: c" || r.Header.Get("b") != "") {
			t.Errorf("a value ends its line: %v", r.Header)
		}
	}
	for _, path := range []string{"short", "panic", "abort"} {
		c := dial()
		c.say("POST /lean/" + path + " HTTP/1.1\r\nHost: x\r\n\r\n")
		if b, _ := io.ReadAll(c.in); path != "short" && len(b) > 0 || path == "short" && !bytes.HasSuffix(b, []byte("\r\n\r\nabc")) {
			t.Errorf("%s: %q", path, b)
		}
	}
	for _, text := range []string{
		"POST /lean/close HTTP/1.1\r\nHost: x\r\n\r\n", "POST /lean/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"POST /lean/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", // whose body nobody reads
	} {
		c := dial()
		c.say(text)
		if r, _ := c.hear(); r == nil || r.StatusCode != 200 || !r.Close {
			t.Errorf("%q: %v", text, r)
		}
		c.CloseWrite()
		if r, _ := c.hear(); r != nil {
			t.Errorf("%q: then %v", text, r)
		}
	}
}

// TestBodies: a body is read to its end and no further, and a limit ends the wait for
// one that does not come.
func TestBodies(t *testing.T) {
	var failed error
	_, dial := serve(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.SetReadDeadline(time.Now().Add(time.Minute))
		if strings.HasSuffix(r.URL.Path, "slow") {
			rc.SetReadDeadline(time.Now().Add(time.Millisecond))
		}
		var b []byte
		b, failed = io.ReadAll(r.Body)
		rc.SetReadDeadline(time.Time{})
		fmt.Fprintf(w, "%d", len(b))
	})
	c := dial()
	for _, n := range []int{0, 1, headSize, 1 << 20} {
		c.say(fmt.Sprintf("POST /lean HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", n))
		c.say(strings.Repeat("x", n))
		c.expect(200, fmt.Sprint(n))
	}
	c.say("POST /lean/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
	c.expect(200, "1")
	var timeout net.Error
	if !errors.As(failed, &timeout) || !timeout.Timeout() {
		t.Error(failed)
	}
	c = dial()
	c.say("POST /lean HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
	c.CloseWrite()
	c.expect(200, "1")
	if failed != io.ErrUnexpectedEOF {
		t.Error(failed)
	}
}

// TestPatience: a connection that was opened and left alone serves a request however
// late; one that begins a request has to go on.
func TestPatience(t *testing.T) {
	_, dial := serve(t, echo)
	slow, late := dial(), dial()
	slow.say("POST /lean HTTP/1.1\r\nHo")
	time.Sleep(3 * headLimit)
	for _, path := range []string{"lean", "lean", "other", "other"} {
		late.say("POST /" + path + " HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
		late.expect(200, fmt.Sprintf(`%v POST /%s x "hello" <nil>`, path == "lean", path))
		time.Sleep(2 * headLimit)
	}
	// The other was ended, or answered with a refusal and ended.
	_ = slow.SetReadDeadline(time.Now().Add(10 * time.Second))
	var waited net.Error
	if _, err := io.ReadAll(slow); errors.As(err, &waited) && waited.Timeout() {
		t.Fatal("a request that does not go on is waited for")
	}
}

// TestLeaving: the context of a request ends when its client leaves.
func TestLeaving(t *testing.T) {
	ended := make(chan error)
	s, dial := serve(t, func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		ended <- r.Context().Err()
	})
	for range 2 { // the watcher has rested meanwhile
		c := dial()
		c.say("POST /lean HTTP/1.1\r\nHost: x\r\n\r\n")
		c.TCPConn.Close()
		if err := <-ended; err != context.Canceled {
			t.Fatal(err)
		}
		for s.watching.Load() {
			time.Sleep(time.Millisecond)
		}
	}
}

// TestShutdown: what is under way is answered, whoever serves it; what is idle ends.
func TestShutdown(t *testing.T) {
	began, end := make(chan bool), make(chan bool)
	s, dial := serve(t, func(w http.ResponseWriter, r *http.Request) {
		began <- true
		<-end
	})
	var clients []*client
	for _, path := range []string{"/lean", "/other"} {
		c := dial()
		c.say("POST " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")
		<-began
		clients = append(clients, c)
	}
	idle := dial()
	over := make(chan error, 1)
	go func() { over <- s.Shutdown(context.Background()) }()
	if r, _ := idle.hear(); r != nil {
		t.Error(r)
	}
	close(end)
	for _, c := range clients {
		c.expect(200, "")
	}
	if err := <-over; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); err != nil && err != context.Canceled {
		t.Error(err)
	}
}

// FuzzHead: a request that is served here net/http reads in the same way.
func FuzzHead(f *testing.F) {
	for _, s := range []string{
		"POST /lean HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
		"POST /lean%20a?x=%41#y HTTP/1.1\nHost: x:1\nA: b\na:\tc \nConnection: keep-alive, Close\n\n",
		"POST //lean HTTP/1.1\r\nHost: [::1]:1\r\nx-amz-date: 1\r\nX-Amz-Date: 2\r\n\r\n",
		"POST http://h/lean HTTP/1.1\r\nHost: x\r\nPragma: no-cache\r\nContent-Length: 00\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	s, dial := serve(f, echo)
	s.Lean = func(_, _ []byte) bool { return true }
	nc := dial().TCPConn
	f.Fuzz(func(t *testing.T, input []byte) {
		c := newConn(s, nc) // whose address it has
		c.in, c.w = input, len(input)
		if !c.lean() {
			return
		}
		in := bufio.NewReaderSize(bytes.NewReader(input), 1<<17)
		want, err := http.ReadRequest(in)
		if err != nil {
			t.Fatalf("%q is accepted, but net/http says %v", input, err)
		}
		rest, _ := io.ReadAll(in)
		got := &c.req
		if got.Method != want.Method || *got.URL != *want.URL || got.RequestURI != want.RequestURI || got.Host != want.Host || got.Proto != want.Proto ||
			got.ContentLength != want.ContentLength || got.Close != want.Close || want.TransferEncoding != nil || want.Trailer != nil || len(rest) != c.w-c.r {
			t.Fatalf("%q is read as\n%+v, net/http:\n%+v", input, got, want)
		}
		if !maps.EqualFunc(got.Header, want.Header, slices.Equal) {
			t.Fatalf("%q has the headers\n%v, net/http:\n%v", input, got.Header, want.Header)
		}
	})
}

// TestAllocations counts what a request allocates here: the text of its head.
func TestAllocations(t *testing.T) {
	body := []byte(`{"key":"value"}`)
	length, kind := []string{fmt.Sprint(len(body))}, []string{"application/json"}
	buf := make([]byte, 64)
	_, dial := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.ReadFull(r.Body, buf[:r.ContentLength])
		w.Header()["Content-Type"], w.Header()["Content-Length"] = kind, length
		w.Write(buf[:n])
	})
	c := dial()
	request := []byte("POST /lean HTTP/1.1\r\nHost: 127.0.0.1:4566\r\nUser-Agent: x\r\nContent-Length: 15\r\nAuthorization: AWS4-HMAC-SHA256 Credential=x\r\nContent-Type: application/json\r\nX-Amz-Date: 20260101T000000Z\r\nAccept-Encoding: gzip\r\n\r\n" + string(body))
	in := make([]byte, 4096)
	got := testing.AllocsPerRun(200, func() {
		c.Write(request)
		for n := 0; !bytes.HasSuffix(in[:n], body); {
			m, err := c.Read(in[n:])
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
	})
	if got > 1 {
		t.Errorf("%v allocations for each request, want 1", got)
	}
}
