package runtimeapi

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/lambdad/lambdad/httpwire"
)

// The HTTP/1.1 of this package is its own: a connection costs one goroutine and one
// small buffer, an exchange one read and one write, and an event is written by
// whoever has it, while the connection's goroutine goes on waiting for the next
// request. A general server needs a goroutine more for each blocked call, and two
// changes of goroutine for each event.
//
// It is stricter than net/http where that is safer: a length given twice or beside
// a transfer coding, a folded line and an unknown coding are refused. What it
// accepts, net/http reads in the same way (FuzzParse).

// Bounds of a connection.
const (
	smallBuffer = 4 << 10
	// copied is the longest payload that is copied behind its headers, to be one
	// write with them.
	copied = 16 << 10
	// unread is how much of a body that nobody wants is read, to keep the
	// connection; with more to come it is closed after the answer.
	unread = 256 << 10
	// linger is how long a connection that is given up is read from, so that its
	// client gets to read why.
	linger = 500 * time.Millisecond
)

// conn is one connection of a process in the sandbox. Its goroutine is run. While a
// call waits for an event, whoever hands it out owns out and may write; everything
// else is run's.
type conn struct {
	api *API
	nc  net.Conn
	raw syscall.RawConn // nil: nc is no socket, and writing may block

	in   []byte // in[r:w] is read and not yet used
	r, w int
	base int // in[:base] are the headers of the call, kept while its body is read

	out     []byte
	closing bool // after the answer
	ended   bool // while a call waited

	// Of the call that waits: whose event it waits for (nil: the runtime's), and that
	// this was written or failed.
	extension *extension
	sent      chan struct{} // room for one
	id        [16]byte      // of the event

	attempt []byte // of try, with its result
	n       int
	err     error
	write   func(fd uintptr) bool
}

func newConn(a *API, nc net.Conn) *conn {
	c := &conn{api: a, nc: nc, in: make([]byte, smallBuffer), sent: make(chan struct{}, 1)}
	if s, ok := nc.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			c.raw = raw
			c.write = func(fd uintptr) bool {
				c.n, c.err = syscall.Write(int(fd), c.attempt)
				return true // once, whatever comes
			}
		}
	}
	return c
}

// run serves the connection until it ends.
func (c *conn) run() {
	defer c.nc.Close()
	for !c.closing && !c.ended {
		var r request
		status, err := c.readRequest(&r)
		if err != nil {
			return
		}
		if status != 0 {
			c.giveUp(status)
			return
		}
		c.api.serve(c, &r)
	}
}

// A request is a call. Its parts are in the buffer of the connection.
type request struct {
	httpwire.Head // its Length: as far as the body was not read
	values        [headers][]byte
	modes         int // how often Lambda-Runtime-Function-Response-Mode is there

	chunk    int64  // of the chunk that is being read
	chunks   int    // begun
	read     int    // bytes of chunks
	overhead int    // bytes around them
	trailer  []byte // error type after a chunked body; nil: none
}

// Headers that say something here; the first of each counts.
const (
	contentType = iota
	userAgent
	errorType
	responseMode
	extensionID
	extensionName
	extensionErrorType
	acceptFeature
	headers
)

// header finds the number of a header's name in lower case; -1: unknown.
func header(name []byte) int {
	switch string(name) {
	case "content-type":
		return contentType
	case "user-agent":
		return userAgent
	case "lambda-runtime-function-error-type":
		return errorType
	case "lambda-runtime-function-response-mode":
		return responseMode
	case "lambda-extension-identifier":
		return extensionID
	case "lambda-extension-name":
		return extensionName
	case "lambda-extension-function-error-type":
		return extensionErrorType
	case "lambda-extension-accept-feature":
		return acceptFeature
	}
	return -1
}

// readRequest reads a request up to its body. status is how to refuse what is none;
// an error means that the connection ended.
func (c *conn) readRequest(r *request) (status int, err error) {
	c.base = 0
	if len(c.in) > 4*smallBuffer && c.w-c.r < smallBuffer {
		c.in, c.r, c.w = append(make([]byte, 0, smallBuffer), c.in[c.r:c.w]...)[:smallBuffer], 0, c.w-c.r
	}
	for scanned := 0; ; {
		if scanned == 0 { // empty lines before a request are an old habit of clients
			for c.r < c.w && (c.in[c.r] == '\r' || c.in[c.r] == '\n') {
				c.r++
			}
		}
		end := httpwire.EndOfHead(c.in[c.r:c.w], scanned)
		if end > 0 {
			head := c.in[c.r : c.r+end]
			c.r += end
			c.base = c.r
			return parse(head, r), nil
		}
		scanned = c.w - c.r
		if scanned > maxHeader {
			return http.StatusRequestHeaderFieldsTooLarge, nil
		}
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
}

// parse reads the head of a request; it returns 0 or the status to refuse it with.
func parse(head []byte, r *request) (status int) {
	if status := r.Begin(head); status != 0 {
		return status
	}
	var room [64]byte
	for {
		name, value := r.Next(room[:0])
		if name == nil {
			return r.End()
		}
		h := header(name)
		if h == responseMode {
			r.modes++
		}
		if h >= 0 && r.values[h] == nil {
			r.values[h] = value
		}
	}
}

// fill reads what there is, once.
func (c *conn) fill() error {
	if c.r == c.w {
		c.r, c.w = c.base, c.base
	}
	if c.w == len(c.in) && c.r > c.base {
		c.w = c.base + copy(c.in[c.base:], c.in[c.r:c.w])
		c.r = c.base
	}
	if c.w == len(c.in) {
		c.in = append(c.in, make([]byte, len(c.in))...)
	}
	n, err := c.nc.Read(c.in[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	return err
}

var (
	errTooLarge = errors.New("runtimeapi: body too large")
	errChunk    = errors.New("runtimeapi: malformed chunked coding")
)

// body reads the body of at most limit bytes, and says when its first byte came. What
// is too large is not read on.
func (c *conn) body(r *request, limit int) (body []byte, first time.Time, err error) {
	if r.Length > int64(limit) {
		return nil, first, errTooLarge
	}
	if err := c.goOn(r); err != nil {
		return nil, first, err
	}
	if r.Length >= 0 {
		return c.rest(r)
	}
	for {
		part, err := c.part(r)
		if err == io.EOF {
			return body, first, nil
		}
		if err != nil {
			return nil, first, err
		}
		if len(part) > limit-len(body) {
			return nil, first, errTooLarge
		}
		if body == nil {
			first = time.Now()
			body = make([]byte, 0, min(int64(len(part))+r.chunk, int64(limit))) // most come in one chunk
		}
		body = append(body, part...)
	}
}

// rest reads all of a body of known length, where it stays.
func (c *conn) rest(r *request) (body []byte, first time.Time, err error) {
	body = make([]byte, r.Length)
	n := copy(body, c.in[c.r:c.w])
	c.r += n
	if n > 0 {
		first = time.Now()
	}
	for n < len(body) {
		m, err := c.nc.Read(body[n:])
		if m > 0 && first.IsZero() {
			first = time.Now()
		}
		if n += m; err != nil && n < len(body) {
			return nil, first, c.broken(r, err)
		}
	}
	r.Length = 0
	return body, first, nil
}

// broken gives up a body that ended early or whose coding is wrong.
func (c *conn) broken(r *request, err error) error {
	r.Length, c.closing = 0, true
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// goOn tells a client that waits for it that its body is wanted.
func (c *conn) goOn(r *request) error {
	if !r.Expect {
		return nil
	}
	r.Expect = false
	return c.send([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
}

// part reads some of the body; io.EOF: there is no more. It is there until the next
// read.
func (c *conn) part(r *request) (part []byte, err error) {
	if r.Length == 0 {
		return nil, io.EOF
	}
	if r.Length < 0 && r.chunk == 0 {
		if err := c.nextChunk(r); err != nil {
			return nil, c.broken(r, err)
		}
		if r.chunk == 0 {
			r.Length = 0
			return nil, io.EOF
		}
	}
	if c.r == c.w {
		if err := c.fill(); err != nil {
			return nil, c.broken(r, err)
		}
	}
	left := &r.Length
	if r.Length < 0 {
		left = &r.chunk
	}
	n := int(min(*left, int64(c.w-c.r)))
	part = c.in[c.r : c.r+n]
	c.r += n
	*left -= int64(n)
	if r.Length < 0 {
		r.read += n
	}
	return part, nil
}

// nextChunk reads what is before a chunk, or what follows the last.
func (c *conn) nextChunk(r *request) error {
	if r.chunks > 0 {
		if end, err := c.line(); err != nil {
			return err
		} else if len(end) > 0 {
			return errChunk
		}
	}
	r.chunks++
	size, line, err := c.chunkSize()
	if err != nil {
		return err
	}
	if r.overhead += line; r.overhead > 64<<10+2*r.read {
		return errChunk // more frame than content
	}
	if size == 0 {
		return c.readTrailer(r)
	}
	r.chunk = size
	return nil
}

// chunkSize reads the line before a chunk.
func (c *conn) chunkSize() (size int64, line int, err error) {
	l, err := c.line()
	if err != nil {
		return 0, 0, err
	}
	line = len(l) + 2
	l, _, _ = bytes.Cut(l, []byte{';'})
	l = bytes.TrimRight(l, " \t")
	if len(l) == 0 || len(l) > 15 {
		return 0, 0, errChunk
	}
	for _, d := range l {
		size <<= 4
		switch {
		case '0' <= d && d <= '9':
			size |= int64(d - '0')
		case 'a' <= d && d <= 'f':
			size |= int64(d-'a') + 10
		case 'A' <= d && d <= 'F':
			size |= int64(d-'A') + 10
		default:
			return 0, 0, errChunk
		}
	}
	return size, line, nil
}

// line reads a line of a chunked body, which must end as the standard says: what
// another reader takes for content is no end.
func (c *conn) line() ([]byte, error) {
	for scanned := 0; ; {
		if i := bytes.IndexByte(c.in[c.r+scanned:c.w], '\n'); i >= 0 {
			i += scanned
			l := c.in[c.r : c.r+i]
			c.r += i + 1
			if len(l) == 0 || l[len(l)-1] != '\r' || bytes.IndexByte(l[:len(l)-1], '\r') >= 0 {
				return nil, errChunk
			}
			return l[:len(l)-1], nil
		}
		if scanned = c.w - c.r; scanned > smallBuffer {
			return nil, errChunk
		}
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
}

// readTrailer reads what follows the last chunk.
func (c *conn) readTrailer(r *request) error {
	for read := 0; ; {
		l, err := c.line()
		if err != nil {
			return err
		}
		if len(l) == 0 {
			return nil
		}
		if read += len(l); read > maxHeader {
			return errChunk
		}
		name, value, ok := bytes.Cut(l, []byte{':'})
		if !ok || !httpwire.Token(name) || !httpwire.Printable(value) {
			return errChunk
		}
		if value = bytes.Trim(value, " \t"); len(value) > 0 && r.trailer == nil && bytes.EqualFold(name, []byte("Lambda-Runtime-Function-Error-Type")) {
			r.trailer = bytes.Clone(value)
		}
	}
}

// skip reads up to limit bytes of a body that nobody wants; the connection ends
// after the answer if that is not all.
func (c *conn) skip(r *request, limit int) {
	if r.Expect { // it was never asked for
		c.broken(r, nil)
		return
	}
	for read := 0; r.Length != 0; {
		if read > limit {
			c.broken(r, nil)
			return
		}
		part, err := c.part(r)
		if err != nil {
			return
		}
		read += len(part)
	}
}

// reply answers a call with a body of JSON.
func (c *conn) reply(r *request, status string, extra string, body []byte) {
	c.skip(r, unread)
	b := append(c.out[:0], "HTTP/1.1 "...)
	b = append(b, status...)
	b = append(b, "\r\nContent-Type: application/json\r\n"...)
	b = append(b, extra...)
	c.end(b, body)
}

// end writes an answer whose headers lack the last ones.
func (c *conn) end(b, body []byte) {
	b = appendEnd(b, len(body), c.closing)
	b = append(b, body...)
	c.keep(b)
	c.send(b)
}

// send writes, as long as that takes. A connection that fails ends.
func (c *conn) send(b []byte) error {
	_, err := c.nc.Write(b)
	if err != nil {
		c.closing = true
	}
	return err
}

func appendEnd(b []byte, length int, closing bool) []byte {
	if closing {
		b = append(b, "Connection: close\r\n"...)
	}
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, int64(length), 10)
	return append(b, "\r\n\r\n"...)
}

// keep remembers a buffer to write from, unless it is large: most connections are
// idle.
func (c *conn) keep(b []byte) {
	if cap(b) <= smallBuffer {
		c.out = b
	} else {
		c.out = nil
	}
}

// accepted says that a post was taken.
func (c *conn) accepted(r *request) {
	c.skip(r, unread)
	if c.closing {
		c.reply(r, "202 Accepted", "", statusOK)
		return
	}
	c.send(acceptedOK)
}

var (
	statusOK   = []byte("{\"status\":\"OK\"}\n")
	acceptedOK = []byte("HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{\"status\":\"OK\"}\n")
)

// empty answers without a body.
func (c *conn) empty(r *request, status int, extra string) {
	c.skip(r, unread)
	b := append(c.out[:0], "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	b = append(b, "\r\n"...)
	b = append(b, extra...)
	c.end(b, nil)
}

// giveUp answers what is no request, and ends the connection.
func (c *conn) giveUp(status int) {
	text := strconv.Itoa(status) + " " + http.StatusText(status)
	b := []byte("HTTP/1.1 " + text + "\r\nContent-Type: text/plain; charset=utf-8\r\n")
	c.closing = true
	c.end(b, []byte(text))
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		c.nc.SetReadDeadline(time.Now().Add(linger))
		io.CopyN(io.Discard, c.nc, maxHeader)
	}
}

// await goes on reading while the call waits for an event, and returns when that was
// written and the client has sent its next request; false: the connection ended.
func (c *conn) await() bool {
	c.base = 0
	if c.r < c.w || c.fill() == nil {
		select {
		case <-c.sent:
			return true
		case <-c.api.living.Done():
		}
	}
	c.ended = true
	return false
}

// push writes out and then payload on behalf of a call that waits, without waiting
// for the reader: what does not fit into the socket is left to a goroutine.
func (c *conn) push(payload []byte) {
	if c.raw == nil {
		c.pushOn(c.out, payload)
		return
	}
	rest, err := c.try(c.out)
	if err == nil && len(rest) == 0 && len(payload) > 0 {
		rest = nil
		payload, err = c.try(payload)
	}
	if err != nil || len(rest) == 0 && len(payload) == 0 {
		c.pushed(err)
		return
	}
	c.pushOn(rest, payload)
}

// try writes what the socket takes and returns what is left.
func (c *conn) try(b []byte) ([]byte, error) {
	for {
		c.attempt, c.n, c.err = b, 0, nil
		if err := c.raw.Write(c.write); err != nil {
			return b, err
		}
		c.attempt = nil
		if c.n > 0 {
			b = b[c.n:]
		}
		switch c.err {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return b, nil
		}
		return b, c.err
	}
}

func (c *conn) pushOn(head, payload []byte) {
	a := c.api
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		c.pushed(net.ErrClosed)
		return
	}
	a.calls.Add(1)
	a.mu.Unlock()
	go func() {
		defer a.calls.Done()
		var err error
		if len(head) > 0 {
			_, err = c.nc.Write(head)
		}
		if err == nil && len(payload) > 0 {
			_, err = c.nc.Write(payload)
		}
		c.pushed(err)
	}()
}

// pushed ends what push began.
func (c *conn) pushed(err error) {
	c.api.delivered(c, err)
	c.keep(c.out)
	if err != nil || c.closing {
		c.nc.Close()
	}
	c.sent <- struct{}{}
}
