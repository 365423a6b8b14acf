package runtimeapi

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// read parses one request out of bytes, with its body, as the server does.
func read(t *testing.T, input []byte) (r request, body []byte, rest int, ok bool) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	go func() {
		client.Write(input)
		client.Close()
	}()
	go io.Copy(io.Discard, client)
	c := newConn(New(cfg), server)
	status, err := c.readRequest(&r)
	if err != nil || status != 0 {
		return r, nil, 0, false
	}
	r.Method, r.Path = bytes.Clone(r.Method), bytes.Clone(r.Path)
	body, _, err = c.body(&r, 1<<20)
	if err != nil {
		return r, nil, 0, false
	}
	left, _ := io.ReadAll(server)
	return r, body, c.w - c.r + len(left), true
}

// FuzzParse: what is accepted here net/http reads in the same way, to the same byte.
// Where two readers of one connection differ, one request hides another.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n",
		"\r\n\r\nPOST /a%20b?x=1 HTTP/1.1\nHost: x\nContent-Length: 3\n\nabcGET / HTTP/1.1\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nA: b\r\n\r\nGET",
		"POST http://h/p HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
		"POST / HTTP/1.0\r\nContent-Length: 1\r\nConnection: keep-alive, close\r\n\r\nxy",
		"GET // HTTP/1.1\r\nHost: x\r\nLambda-Extension-Identifier:\t1 \r\nA:\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) > 1<<16 {
			t.Skip()
		}
		r, body, rest, ok := read(t, input)
		if !ok || string(r.Method) == "CONNECT" {
			return
		}
		in := bufio.NewReaderSize(bytes.NewReader(bytes.TrimLeft(input, "\r\n")), 1<<17)
		want, err := http.ReadRequest(in)
		if err != nil {
			t.Fatalf("%q is accepted, but net/http says %v", input, err)
		}
		content, err := io.ReadAll(want.Body)
		if err != nil {
			t.Fatalf("%q: net/http reads the body as %q: %v", input, content, err)
		}
		after, _ := io.ReadAll(in)
		if want.Method != string(r.Method) || want.URL.Path != string(r.Path) || !bytes.Equal(content, body) || len(after) != rest {
			t.Fatalf("%q is read as %s %s %q and %d bytes more; net/http: %s %s %q, %d",
				input, r.Method, r.Path, body, rest, want.Method, want.URL.Path, content, len(after))
		}
		if want.Header.Get("Lambda-Extension-Identifier") != string(r.values[extensionID]) {
			t.Fatalf("%q: identifier %q", input, r.values[extensionID])
		}
	})
}

// TestSmuggling: what could be read in two ways is refused, and nothing after it is
// served.
func TestSmuggling(t *testing.T) {
	const ping = "GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, c := range []struct {
		head   string
		status int
	}{
		{"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400},
		{"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400},
		{"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
		{"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501},
		{"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc", 400},
		{"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\nabc", 400},
		{"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\nabc", 400},
		{"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nabc", 400},
		{"POST /x HTTP/1.1\r\nHost: x\r\nA: b\r\n Content-Length: 3\r\n\r\nabc", 400},
		{"POST /x HTTP/1.1\r\nHost: x\r\nA: b\rContent-Length: 3\r\n\r\nabc", 400},
		{"GET /x HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400},
		{"GET /x HTTP/1.1\r\n\r\n", 400},
		{"GET  /x HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"GET /x HTTP/2.0\r\nHost: x\r\n\r\n", 505},
		{"GET /x HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n", 417},
	} {
		serve(t, cfg, func(k *client) {
			conn, err := k.pipes.dial()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			go io.WriteString(conn, c.head+ping)
			in := bufio.NewReader(conn)
			r, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatalf("%q: %v", c.head, err)
			}
			io.Copy(io.Discard, r.Body)
			if r.StatusCode != c.status || !r.Close {
				t.Errorf("%q: %s, close %v", c.head, r.Status, r.Close)
			}
			if more, _ := io.ReadAll(in); len(more) > 0 {
				t.Errorf("%q: then %q", c.head, more)
			}
		})
	}
}

// TestChunks: a broken coding is a truncated answer, and ends its connection.
func TestChunks(t *testing.T) {
	for body, want := range map[string]int{
		"3\r\nabc\r\n0\r\n\r\n":                   202,
		"03;x=y\r\nabc\r\n0\r\nA: b\r\n\r\n":      202,
		"3\nabc\r\n0\r\n\r\n":                     400,
		"3\r\nabcd\r\n0\r\n\r\n":                  400,
		"-3\r\nabc\r\n0\r\n\r\n":                  400,
		"0x3\r\nabc\r\n0\r\n\r\n":                 400,
		"ffffffffffffffff\r\nabc\r\n0\r\n\r\n":    400,
		"3;x\r=y\r\nabc\r\n0\r\n\r\n":             400,
		"3;" + strings.Repeat("x", 8192):          400,
		strings.Repeat("1;xxxxxx\r\na\r\n", 9000): 400,
	} {
		serve(t, cfg, func(k *client) {
			k.begin(next, "")
			k.release("id1")
			r := raw(k, "POST /2018-06-01/runtime/invocation/id1/response HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"+body)
			if r.StatusCode != want || len(k.answer) != 1 || k.answer[0].FunctionError != (want != 202) {
				t.Errorf("%.40q: %d %+v", body, r.StatusCode, k.answer)
			}
		})
	}
}

// overTCP serves an API over sockets.
func overTCP(t testing.TB) (*API, func() net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := New(cfg)
	served := make(chan error, 1)
	go func() { served <- a.Serve(l) }()
	t.Cleanup(func() {
		a.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return a, func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(time.Minute))
		return c
	}
}

func until(a *API, ok func() bool) {
	for !ok() {
		<-a.Changed()
	}
}

// TestSlowReaders: nobody waits for a process that does not read what it asked for,
// and it gets all of it when it does.
func TestSlowReaders(t *testing.T) {
	a, dial := overTCP(t)
	ext := a.mustRegister(t, "ext")
	slow, extension := dial(), dial()
	slow.(*net.TCPConn).SetReadBuffer(64 << 10)
	io.WriteString(slow, "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n")
	fmt.Fprintf(extension, "GET /2020-01-01/extension/event/next HTTP/1.1\r\nHost: x\r\nLambda-Extension-Identifier: %s\r\n\r\n", ext)
	until(a, a.Ready)
	payload := bytes.Repeat([]byte("0123456789abcdef"), 6<<16)
	answered := make(chan Answer, 1)
	a.Release(&Invocation{RequestID: "id1", Payload: payload, Answer: func(ans Answer) { answered <- ans }})
	// It returned. The extension has its event although the runtime has not.
	r, err := http.ReadResponse(bufio.NewReader(extension), nil)
	if err != nil || r.StatusCode != 200 {
		t.Fatal(r, err)
	}
	// What follows on the connection is served after the event.
	io.WriteString(slow, "GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n")
	in := bufio.NewReader(slow)
	r, err = http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(got, payload) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if r, err = http.ReadResponse(in, nil); err != nil || r.StatusCode != 200 {
		t.Fatal(r, err)
	}
	// One that never reads ends with its generation: overTCP closes it.
	io.Copy(io.Discard, r.Body)
	fmt.Fprintf(slow, "POST /2018-06-01/runtime/invocation/id1/response HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(payload), payload)
	if ans := <-answered; !bytes.Equal(ans.Payload, payload) {
		t.Fatal(len(ans.Payload))
	}
	if r, err = http.ReadResponse(in, nil); err != nil || r.StatusCode != 202 {
		t.Fatal(r, err)
	}
	io.Copy(io.Discard, r.Body)
	io.WriteString(slow, "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n")
	fmt.Fprintf(extension, "GET /2020-01-01/extension/event/next HTTP/1.1\r\nHost: x\r\nLambda-Extension-Identifier: %s\r\n\r\n", ext)
	until(a, func() bool { return !a.Progress().AllNext.IsZero() })
	a.End()
	a.Release(&Invocation{RequestID: "id2", Payload: payload, Answer: func(Answer) {}})
}

func (a *API) mustRegister(t *testing.T, name string) string {
	t.Helper()
	a.Expect(name)
	x, no := a.register(name, []byte(`{"events":["INVOKE"]}`))
	if no != nil {
		t.Fatal(no)
	}
	return x.id
}

// TestNewConnections has a runtime and an extension that use a connection for one
// call only: each event reaches each of them once, whatever overtakes what.
func TestNewConnections(t *testing.T) {
	a, dial := overTCP(t)
	ext := a.mustRegister(t, "ext")
	call := func(text string) *http.Response {
		c := dial()
		defer c.Close()
		io.WriteString(c, text)
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return nil // the end
		}
		b, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(b))
		return r
	}
	const n = 300
	given := make(chan string, 4*n)
	go func() {
		for {
			r := call("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			if r == nil {
				return
			}
			id := r.Header.Get("Lambda-Runtime-Aws-Request-Id")
			given <- "runtime " + id
			call("POST /2018-06-01/runtime/invocation/" + id + "/response HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
		}
	}()
	go func() {
		for {
			r := call("GET /2020-01-01/extension/event/next HTTP/1.1\r\nHost: x\r\nConnection: close\r\nLambda-Extension-Identifier: " + ext + "\r\n\r\n")
			if r == nil {
				return
			}
			b, _ := io.ReadAll(r.Body)
			_, rest, _ := strings.Cut(string(b), `"requestId":"`)
			id, _, _ := strings.Cut(rest, `"`)
			given <- "extension " + id
		}
	}()
	count := map[string]int{}
	for i := range n {
		until(a, a.Ready)
		a.Release(&Invocation{RequestID: fmt.Sprint(i), Payload: []byte("{}"), Answer: func(Answer) {}})
		until(a, func() bool { return !a.Progress().AllNext.IsZero() })
		a.End()
		for range 2 {
			count[<-given]++
		}
	}
	for i := range n {
		for _, who := range []string{"runtime ", "extension "} {
			if k := who + fmt.Sprint(i); count[k] != 1 {
				t.Errorf("%s: %d times", k, count[k])
			}
		}
	}
}

// TestAllocations counts what one invocation allocates here: with three extensions
// and any payload nothing but the answer's.
func TestAllocations(t *testing.T) {
	a, dial := overTCP(t)
	var extensions [3]net.Conn
	var calls [3][]byte
	for i := range extensions {
		id := a.mustRegister(t, fmt.Sprint("ext", i))
		extensions[i] = dial()
		calls[i] = fmt.Appendf(nil, "GET /2020-01-01/extension/event/next HTTP/1.1\r\nHost: x\r\nLambda-Extension-Identifier: %s\r\n\r\n", id)
	}
	runtime := dial()
	get := []byte("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\nUser-Agent: y\r\n\r\n")
	post := []byte("POST /2018-06-01/runtime/invocation/id1/response HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"key\":\"value\"}")
	chunked := []byte("POST /2018-06-01/runtime/invocation/id1/response HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: Lambda-Runtime-Function-Error-Type\r\n\r\nf\r\n{\"key\":\"value\"}\r\n0\r\nLambda-Runtime-Function-Error-Type: \r\n\r\n")
	buf := make([]byte, 1<<20)
	// Each answer is read whole before the next request, so one read may not do.
	readOne := func(c net.Conn, end string) {
		for n := 0; ; {
			m, err := c.Read(buf[n:])
			if err != nil {
				t.Error(err)
				return
			}
			if n += m; bytes.HasSuffix(buf[:n], []byte(end)) {
				return
			}
		}
	}
	answered := make(chan int, 1)
	inv := &Invocation{RequestID: "id1", ARN: "arn", TraceID: "Root=1", Deadline: time.Now(), Answer: func(ans Answer) { answered <- len(ans.Payload) }}
	ask := func() {
		runtime.Write(get)
		for i, c := range extensions {
			c.Write(calls[i])
		}
	}
	ask()
	for _, c := range []struct {
		name  string
		post  []byte
		event int
	}{{"small", post, 100}, {"chunked", chunked, 100}, {"large", post, 200 << 10}} {
		inv.Payload = append(bytes.Repeat([]byte("x"), c.event), "END"...)
		got := testing.AllocsPerRun(200, func() {
			until(a, a.Ready)
			a.Release(inv)
			readOne(runtime, "END")
			for _, c := range extensions {
				readOne(c, "}")
			}
			runtime.Write(c.post)
			if n := <-answered; n != 15 {
				t.Errorf("%s: answer of %d bytes", c.name, n)
			}
			readOne(runtime, "\n")
			ask()
			until(a, func() bool { return !a.Progress().AllNext.IsZero() })
			a.End()
		})
		// The answer, and where the event does not fit into the socket the goroutine
		// that writes the rest.
		if limit := 1.0; got > limit && (c.name != "large" || got > 4) {
			t.Errorf("%s: %v allocations for each invocation, want %v", c.name, got, limit)
		}
	}
}
