// Package httpwire is what net/http costs too much for: the head of an HTTP/1.1
// request, read without allocation (Head), and a server for the requests that come
// with every invocation (Server). Whatever is out of the ordinary is net/http's.
//
// It is stricter than net/http where that is safer: a length given twice or beside
// a transfer coding, a folded line and an unknown coding are refused. What it
// accepts, net/http reads in the same way (FuzzHead, and FuzzParse in runtimeapi).
package httpwire

import (
	"bytes"
	"net/http"
	"net/url"
	"strconv"
)

// A Head is a request without its body. Its parts are in the memory that it was
// read from.
type Head struct {
	Method, Target, Path []byte // the path has no escapes
	Host                 []byte
	Length               int64 // of the body; -1: chunked
	HTTP10               bool
	Last                 bool // the connection ends after it
	Expect               bool // the client waits for 100 Continue

	rest                    []byte
	hosts, lengths, codings int
	status                  int
}

// EndOfHead is the length of what ends with an empty line; 0: that is still to come, and
// was not before scanned.
func EndOfHead(b []byte, scanned int) int {
	for i := max(0, scanned-2); ; i++ {
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			return 0
		}
		i += n
		switch {
		case i+1 < len(b) && b[i+1] == '\n':
			return i + 2
		case i+2 < len(b) && b[i+1] == '\r' && b[i+2] == '\n':
			return i + 3
		}
	}
}

// Begin reads the first line of a head. It returns 0 or the status to refuse it with.
// Next is to be called until there are no more headers, and then End.
func (h *Head) Begin(head []byte) (status int) {
	line, rest := cutLine(head)
	method, line, ok := bytes.Cut(line, []byte{' '})
	target, version, ok2 := bytes.Cut(line, []byte{' '})
	if !ok || !ok2 || !Token(method) {
		return http.StatusBadRequest
	}
	switch string(version) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		h.HTTP10, h.Last = true, true
	default:
		if bytes.HasPrefix(version, []byte("HTTP/")) {
			return http.StatusHTTPVersionNotSupported
		}
		return http.StatusBadRequest
	}
	h.Method, h.Target, h.rest = method, target, rest
	if h.Path, ok = pathOf(target); !ok {
		return http.StatusBadRequest
	}
	return 0
}

// Next reads a header: its name in lower case, which is put into room, and its value.
// Without a name there are no more, or the head is to be refused.
func (h *Head) Next(room []byte) (name, value []byte) {
	line, rest := cutLine(h.rest)
	if h.rest = rest; len(line) == 0 {
		return nil, nil
	}
	name, value, ok := bytes.Cut(line, []byte{':'})
	if !ok || !Token(name) || len(name) > 256 {
		return h.refuse(http.StatusBadRequest)
	}
	if value = bytes.Trim(value, " \t"); !Printable(value) {
		return h.refuse(http.StatusBadRequest)
	}
	name = appendLower(room[:0], name)
	switch string(name) {
	case "host":
		if h.hosts++; !validHost(value) {
			return h.refuse(http.StatusBadRequest)
		}
		h.Host = value
	case "content-length":
		n, err := strconv.ParseInt(string(value), 10, 64)
		if h.lengths++; err != nil || !decimal(value) {
			return h.refuse(http.StatusBadRequest)
		}
		h.Length = n
	case "transfer-encoding":
		if h.codings++; !bytes.EqualFold(value, []byte("chunked")) {
			return h.refuse(http.StatusNotImplemented)
		}
	case "expect":
		if !bytes.EqualFold(value, []byte("100-continue")) {
			return h.refuse(http.StatusExpectationFailed)
		}
		h.Expect = true
	case "connection":
		for option := range bytes.SplitSeq(value, []byte{','}) {
			if bytes.EqualFold(bytes.Trim(option, " \t"), []byte("close")) {
				h.Last = true
			}
		}
	}
	return name, value
}

func (h *Head) refuse(status int) (name, value []byte) {
	h.status = status
	return nil, nil
}

// End judges the head as a whole. It returns 0 or the status to refuse it with.
func (h *Head) End() (status int) {
	switch {
	case h.status != 0:
		return h.status
	case h.hosts > 1, h.hosts == 0 && !h.HTTP10, h.lengths > 1, h.codings > 1, h.lengths > 0 && h.codings > 0, h.codings > 0 && h.HTTP10:
		return http.StatusBadRequest
	case h.codings > 0:
		h.Length = -1
	}
	h.Expect = h.Expect && h.Length != 0 && !h.HTTP10
	return 0
}

// cutLine takes the first line, without its end.
func cutLine(b []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(b, []byte{'\n'})
	return bytes.TrimSuffix(line, []byte{'\r'}), rest
}

// pathOf is the path of a request's target.
func pathOf(target []byte) ([]byte, bool) {
	if plain(target) {
		return target, true
	}
	u, err := url.ParseRequestURI(string(target))
	if err != nil {
		return nil, false
	}
	return []byte(u.Path), true
}

// plain reports whether a target is a path in which nothing has to be undone.
func plain(target []byte) bool {
	if len(target) == 0 || target[0] != '/' || bytes.HasPrefix(target, []byte("//")) {
		return false
	}
	for _, b := range target {
		if b <= ' ' || b >= 0x7f || b == '%' || b == '?' || b == '#' {
			return false
		}
	}
	return true
}

// Token reports whether b is the name of a method or header.
func Token(b []byte) bool {
	for _, c := range b {
		if !tokens[c] {
			return false
		}
	}
	return len(b) > 0
}

// tokens are the bytes that methods and names of headers are made of (RFC 9110).
var tokens = func() (t [256]bool) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") {
		t[c] = true
	}
	return t
}()

// Printable reports whether b can be the value of a header.
func Printable(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// validHost accepts what can be in the header; what it names is nothing here.
func validHost(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return true
}

func decimal(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(b) > 0
}

func appendLower(b, s []byte) []byte {
	for _, c := range s {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return b
}
