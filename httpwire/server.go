package httpwire

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A Server serves the requests that Lean names itself, and gives a connection that
// brings any other to HTTP, for good, with what was read of it. Both have the handler
// of HTTP, which must keep nothing of a request beyond its end but strings. A head that
// does not come at once, or is long, is HTTP's, and so are its limits.
//
// No goroutine watches for the client of each request to leave: clients of requests
// that last are looked after now and then.
type Server struct {
	HTTP *http.Server
	// Lean reports whether requests with this method and target are served here. Their
	// answers cannot be flushed.
	Lean func(method, target []byte) bool

	others  handed
	closing atomic.Bool

	mu    sync.Mutex
	conns map[*conn]struct{}
	gone  sync.Cond // a connection is

	watching atomic.Bool
}

// Bounds of a connection.
const (
	headSize = 8 << 10 // longer heads are HTTP's
	// copied is the longest content that is copied behind its headers, to be one write
	// with them.
	copied = 16 << 10
	// unread is how much of a body that nobody wants is read, and linger how long, so
	// that its sender gets to read the answer.
	unread = 256 << 10
	linger = 500 * time.Millisecond
	// moment is how soon it is seen that a client has gone; it is an eighth of the
	// request's age where that is more, and a second at most.
	moment = 50 * time.Millisecond
)

// NewServer makes a server.
func NewServer(h *http.Server, lean func(method, target []byte) bool) *Server {
	s := &Server{HTTP: h, Lean: lean, conns: map[*conn]struct{}{}}
	s.others = handed{conns: make(chan net.Conn), done: make(chan struct{})}
	s.gone.L = &s.mu
	return s
}

// Serve serves connections until Shutdown or Close, and returns http.ErrServerClosed
// then. It owns the listener.
func (s *Server) Serve(l *net.TCPListener) error {
	defer l.Close()
	s.others.addr = l.Addr()
	ended := make(chan error, 1)
	go func() { ended <- s.HTTP.Serve(&s.others) }()
	go func() { // the end of one is that of the other
		<-s.others.done
		l.Close()
	}()
	for {
		nc, err := l.AcceptTCP()
		if err == nil {
			s.admit(nc)
			continue
		}
		if t, ok := err.(interface{ Temporary() bool }); ok && t.Temporary() { // as net/http does
			select {
			case <-time.After(10 * time.Millisecond):
				continue
			case <-s.others.done:
			}
		}
		s.others.Close()
		<-ended
		if s.closing.Load() {
			return http.ErrServerClosed
		}
		return err
	}
}

func (s *Server) admit(nc *net.TCPConn) {
	c := newConn(s, nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		nc.Close()
		return
	}
	s.conns[c] = struct{}{}
	go func() {
		if c.run() {
			s.others.give(&begun{c.nc, slices.Clone(c.in[c.r:c.w])})
		} else {
			c.nc.Close()
		}
		c.cancel()
		s.mu.Lock()
		delete(s.conns, c)
		s.gone.Broadcast()
		s.mu.Unlock()
	}()
}

// Shutdown takes no more connections and requests, and returns when those under way
// are answered, or when ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.end(func(c *conn) bool { return c.busy.Load() == 0 })
	defer context.AfterFunc(ctx, func() {
		s.mu.Lock()
		s.gone.Broadcast()
		s.mu.Unlock()
	})()
	s.mu.Lock()
	for len(s.conns) > 0 && ctx.Err() == nil {
		s.gone.Wait()
	}
	s.mu.Unlock()
	return s.HTTP.Shutdown(ctx)
}

// Close ends all connections.
func (s *Server) Close() error {
	s.end(func(*conn) bool { return true })
	return s.HTTP.Close()
}

func (s *Server) end(now func(*conn) bool) {
	s.closing.Store(true)
	s.others.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if now(c) {
			c.nc.Close()
		}
	}
}

// watch has somebody look whether clients are gone, as long as there are requests.
func (s *Server) watch() {
	if s.watching.Load() || s.watching.Swap(true) {
		return
	}
	go func() {
		t := time.NewTicker(moment)
		defer t.Stop()
		for {
			<-t.C
			if s.look(time.Now()) {
				continue
			}
			s.watching.Store(false)
			// One may have begun, and counted on this.
			if !s.look(time.Now()) || s.watching.Swap(true) {
				return
			}
		}
	}()
}

// look ends the requests of clients that are gone, and reports whether there are any
// requests.
func (s *Server) look(now time.Time) (any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		since := c.busy.Load()
		if since == 0 {
			continue
		}
		any = true
		age := now.Sub(time.Unix(0, since))
		if age < moment || now.Sub(c.looked) < min(max(moment, age/8), time.Second) {
			continue
		}
		if c.looked = now; c.left() {
			c.cancel()
		}
	}
	return any
}

// handed is the listener of what is handed on.
type handed struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (h *handed) give(nc net.Conn) {
	select {
	case h.conns <- nc:
	case <-h.done:
		nc.Close()
	}
}

// Accept implements net.Listener.
func (h *handed) Accept() (net.Conn, error) {
	select {
	case nc := <-h.conns:
		return nc, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener.
func (h *handed) Addr() net.Addr { return h.addr }

// Close implements net.Listener.
func (h *handed) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// begun is a connection of which something was read.
type begun struct {
	*net.TCPConn
	read []byte
}

// Read implements net.Conn.
func (b *begun) Read(p []byte) (int, error) {
	if len(b.read) == 0 {
		b.read = nil
		return b.TCPConn.Read(p)
	}
	n := copy(p, b.read)
	b.read = b.read[n:]
	return n, nil
}

// conn is a connection that has brought nothing but lean requests.
type conn struct {
	s      *Server
	nc     *net.TCPConn
	raw    syscall.RawConn
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc
	busy   atomic.Int64 // since when a request is served, in ns since 1970; 0: none is
	looked time.Time    // at its client; of Server.look

	in    []byte // in[r:w] is read and not yet used
	r, w  int
	limit time.Time // of reading
	set   time.Time // the limit that the socket has

	// Of the request. Its handler keeps none of them.
	head   Head
	base   *http.Request
	req    http.Request
	url    url.URL
	header http.Header
	values []string
	body   body
	answer answer
}

func newConn(s *Server, nc *net.TCPConn) *conn {
	c := &conn{s: s, nc: nc, in: make([]byte, headSize), header: http.Header{}}
	c.raw, _ = nc.SyscallConn() // has no reason to fail
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.base = (&http.Request{
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, RemoteAddr: nc.RemoteAddr().String(),
	}).WithContext(c.ctx)
	c.body.c, c.answer.c, c.answer.header = c, c, http.Header{}
	return c
}

// read reads from the socket, with the limit that there is.
func (c *conn) read(b []byte) (int, error) {
	if c.set != c.limit {
		c.set = c.limit
		if err := c.nc.SetReadDeadline(c.limit); err != nil {
			return 0, err
		}
	}
	return c.nc.Read(b)
}

// run serves the connection until it ends or is to be handed on.
func (c *conn) run() (on bool) {
	for {
		for c.r < c.w && (c.in[c.r] == '\r' || c.in[c.r] == '\n') { // an old habit of clients
			c.r++
		}
		if c.r == c.w {
			n, err := c.read(c.in)
			if err != nil {
				return false
			}
			c.r, c.w = 0, n
			continue
		}
		if !c.lean() {
			return c.set.IsZero() || c.nc.SetReadDeadline(time.Time{}) == nil
		}
		c.busy.Store(time.Now().UnixNano())
		c.s.watch()
		keep := c.serve()
		c.busy.Store(0)
		if !keep || c.s.closing.Load() {
			return false
		}
	}
}

// lean takes a head that is there as a whole, and makes a request of it. Of what is for
// HTTP it takes nothing.
func (c *conn) lean() bool {
	end := EndOfHead(c.in[c.r:c.w], 0)
	if end == 0 {
		return false
	}
	head := c.in[c.r : c.r+end]
	h := &c.head
	*h = Head{}
	if h.Begin(head) != 0 || h.HTTP10 || string(h.Method) == "HEAD" || string(h.Method) == "CONNECT" || !c.s.Lean(h.Method, h.Target) {
		return false
	}
	text := string(head) // what the request has is parts of it
	part := func(b []byte) string {
		if len(b) == 0 {
			return ""
		}
		at := cap(head) - cap(b)
		return text[at : at+len(b)]
	}
	clear(c.header)
	if n := bytes.Count(head, []byte{'\n'}); cap(c.values) < n {
		c.values = make([]string, n)
	}
	values := c.values[:0]
	var room [64]byte
	for {
		name, value := h.Next(room[:0])
		if name == nil {
			break
		}
		switch string(name) {
		case "transfer-encoding", "expect", "upgrade", "trailer", "te", "pragma":
			return false
		case "host":
			continue // is told elsewhere
		}
		key, n := canonical(name), len(values)
		values = append(values, part(value))
		if before, ok := c.header[key]; ok {
			c.header[key] = append(before, values[n])
		} else {
			c.header[key] = values[n : n+1 : n+1]
		}
	}
	if h.End() != 0 || !named(h.Host, "-_.:[]") {
		return false
	}
	target := part(h.Target)
	if plain(h.Target) && named(h.Target, "/-_.:$") {
		c.url = url.URL{Path: target}
	} else {
		u, err := url.ParseRequestURI(target)
		if err != nil || target[0] != '/' {
			return false
		}
		c.url = *u
	}
	c.r += end
	c.req = *c.base
	c.req.Method, c.req.URL, c.req.RequestURI, c.req.Host = "POST", &c.url, target, part(h.Host)
	if string(h.Method) != "POST" {
		c.req.Method = part(h.Method)
	}
	c.req.Header, c.req.ContentLength, c.req.Close = c.header, h.Length, h.Last
	c.req.Body = http.NoBody
	if h.Length > 0 {
		c.req.Body = &c.body
	}
	c.body.left = h.Length
	return true
}

// named reports whether b is of letters, digits and the others alone, as most names are.
// What else there may be net/http knows.
func named(b []byte, others string) bool {
	for _, c := range b {
		if ('0' > c || c > '9') && ('a' > c || c > 'z') && ('A' > c || c > 'Z') && strings.IndexByte(others, c) < 0 {
			return false
		}
	}
	return len(b) > 0
}

// names are those of headers that come with every invocation.
var names = func() map[string]string {
	m := map[string]string{}
	for _, name := range []string{
		"Accept", "Accept-Encoding", "Amz-Sdk-Invocation-Id", "Amz-Sdk-Request", "Authorization", "Connection", "Content-Length",
		"Content-Type", "User-Agent", "X-Amz-Client-Context", "X-Amz-Content-Sha256", "X-Amz-Date", "X-Amz-Invocation-Type",
		"X-Amz-Log-Type", "X-Amz-Security-Token", "X-Amz-User-Agent", "X-Amzn-Trace-Id",
	} {
		m[strings.ToLower(name)] = name
	}
	return m
}()

// canonical is a header's name as http.Header has it.
func canonical(lower []byte) string {
	if name, ok := names[string(lower)]; ok {
		return name
	}
	return textproto.CanonicalMIMEHeaderKey(string(lower))
}

// serve serves the request, and reports whether the connection can bring another.
func (c *conn) serve() (keep bool) {
	a := &c.answer
	a.reset()
	defer func() {
		// What a client sends must not end the daemon, whatever it is.
		if p := recover(); p != nil {
			keep = false
			if p != http.ErrAbortHandler {
				c.logf("http: panic serving %s: %v\n%s", c.base.RemoteAddr, p, debug.Stack())
			}
		}
	}()
	c.s.HTTP.Handler.ServeHTTP(a, &c.req)
	a.finish()
	c.limit = time.Time{}
	if a.err != nil || c.ctx.Err() != nil {
		return false
	}
	if a.closing {
		if c.body.left > 0 && c.nc.CloseWrite() == nil {
			c.limit = time.Now().Add(linger)
			io.CopyN(io.Discard, &c.body, unread)
		}
		return false
	}
	return true
}

func (c *conn) logf(format string, v ...any) {
	if l := c.s.HTTP.ErrorLog; l != nil {
		l.Printf(format, v...)
	} else {
		log.Printf(format, v...)
	}
}

// left reports whether the client has gone.
func (c *conn) left() bool {
	var n int
	var err error
	if c.raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	}) != nil {
		return true
	}
	return n == 0 && err == nil || err != nil && err != syscall.EAGAIN && err != syscall.EINTR
}

// body is the body of a request.
type body struct {
	c    *conn
	left int64
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), b.left)]
	c := b.c
	if c.r < c.w {
		n := copy(p, c.in[c.r:c.w])
		c.r += n
		b.left -= int64(n)
		return n, nil
	}
	n, err := c.read(p)
	b.left -= int64(n)
	if err == io.EOF && b.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if n > 0 && b.left == 0 {
		err = nil
	}
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error { return nil }

// answer is the answer to a request.
type answer struct {
	c       *conn
	header  http.Header
	status  int    // 0: not yet said
	head    []byte // but for its end; nil: it was sent
	room    []byte // of head
	length  int64  // declared; -1: not
	written int64
	content []byte // of undeclared length
	typed   bool
	closing bool
	err     error
}

func (a *answer) reset() {
	clear(a.header)
	a.status, a.head, a.content, a.length, a.written, a.err = 0, nil, nil, -1, 0, nil
	a.typed, a.closing = false, false
}

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// SetReadDeadline is for http.ResponseController: it sets no timer that no read needs.
func (a *answer) SetReadDeadline(t time.Time) error {
	a.c.limit = t
	return nil
}

// SetWriteDeadline is for http.ResponseController.
func (a *answer) SetWriteDeadline(t time.Time) error { return a.c.nc.SetWriteDeadline(t) }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	if a.status != 0 || status < 200 {
		return
	}
	a.status = status
	c := a.c
	skip(c)
	a.closing = c.head.Last || c.body.left > 0 || c.s.closing.Load()
	b := append(a.room[:0], "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(append(append(b, ' '), http.StatusText(status)...), "\r\n"...)
	dated := false
	for name, values := range a.header {
		if len(values) == 0 {
			continue
		}
		switch name {
		case "Content-Length":
			if n, err := strconv.ParseInt(values[0], 10, 64); err == nil && n >= 0 {
				a.length = n
			}
			continue
		case "Connection":
			a.closing = a.closing || slices.Contains(values, "close")
			continue
		case "Transfer-Encoding":
			continue
		case "Content-Type", "Content-Encoding":
			a.typed = true
		case "Date":
			dated = true
		}
		for _, v := range values {
			b = append(append(b, name...), ": "...)
			b = append(appendValue(b, v), "\r\n"...)
		}
	}
	if !dated {
		b = append(b, "Date: "...)
		b = append(time.Now().UTC().AppendFormat(b, http.TimeFormat), "\r\n"...)
	}
	if a.closing {
		b = append(b, "Connection: close\r\n"...)
	}
	a.head, a.room = b, b
	if a.bare() {
		a.length = 0
	}
}

// bare reports whether the answer has no content by its status.
func (a *answer) bare() bool {
	return a.status == http.StatusNoContent || a.status == http.StatusNotModified
}

// skip takes a body that nobody wants, as far as it is there.
func skip(c *conn) {
	n := int(min(c.body.left, int64(c.w-c.r)))
	c.r += n
	c.body.left -= int64(n)
}

// appendValue appends the value of a header, which ends no line.
func appendValue(b []byte, v string) []byte {
	if strings.IndexByte(v, '\n') < 0 && strings.IndexByte(v, '\r') < 0 {
		return append(b, v...)
	}
	return append(b, strings.TrimSpace(strings.NewReplacer("\n", " ", "\r", " ").Replace(v))...)
}

// Write implements http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	switch {
	case a.bare():
		return 0, http.ErrBodyNotAllowed
	case a.length < 0:
		a.content = append(a.content, p...)
		return len(p), nil
	case a.written+int64(len(p)) > a.length:
		return 0, http.ErrContentLength
	}
	a.send(p)
	if a.err != nil {
		return 0, a.err
	}
	return len(p), nil
}

// send sends a part of the content, with the head before the first.
func (a *answer) send(p []byte) {
	a.written += int64(len(p))
	if a.err != nil {
		return
	}
	b := a.head
	if b == nil {
		_, a.err = a.c.nc.Write(p)
		return
	}
	a.head = nil
	if !a.typed && len(p) > 0 {
		b = append(append(append(b, "Content-Type: "...), http.DetectContentType(p)...), "\r\n"...)
	}
	if !a.bare() {
		b = strconv.AppendInt(append(b, "Content-Length: "...), a.length, 10)
		b = append(b, "\r\n"...)
	}
	b = append(b, "\r\n"...)
	if len(p) <= copied {
		b = append(b, p...)
		_, a.err = a.c.nc.Write(b)
	} else {
		_, a.err = (&net.Buffers{b, p}).WriteTo(a.c.nc)
	}
	if cap(b) <= headSize {
		a.room = b
	}
}

// finish ends the answer.
func (a *answer) finish() {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if a.length < 0 {
		a.length = int64(len(a.content))
		a.send(a.content)
	} else if a.head != nil {
		a.send(nil)
	}
	if a.written < a.length && a.err == nil {
		a.err = io.ErrShortWrite // the client must not take the next answer for the rest
	}
}
