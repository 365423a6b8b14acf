package aws

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/lambdad/lambdad"
)

// A Streamer is a Service that reads some bodies itself, since they are too large
// for memory. It reads Request.Request.Body, which is decoded (aws-chunked) and
// verified: whoever stores what it gave must do so only after io.EOF. Headers sent
// after the body are in Request.Trailer then.
type Streamer interface {
	Service
	// Streams reports whether the operation that Route found reads its body itself.
	Streams(r *Request) bool
}

// Forms of a body in x-amz-content-sha256 other than its hash.
const (
	streamingUnsigned      = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
	streamingSigned        = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
	streamingSignedTrailer = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
)

// Bounds of the framing of aws-chunked bodies.
const (
	maxChunkLine    = 4 << 10  // of a chunk's first line or a trailing header, in bytes
	maxTrailerBytes = 16 << 10 // of all trailing headers
)

// stream replaces the body by one that verifies what it gives and, in mode
// Verify, checks the signature of the request, of which the declared hash of the
// body is a part.
func (m *Mux) stream(w http.ResponseWriter, r *Request, a *authorization, secret string, mode AuthMode) (done func(), err error) {
	limit := r.BodyLimit
	if limit == 0 {
		limit = DefaultBodyLimit
	}
	declared := r.Header.Get("X-Amz-Content-Sha256")
	if declared == "" && (mode == Any || a.presigned) {
		declared = unsignedPayload
	}
	var sum [sha256.Size]byte
	hashed := false
	switch declared {
	case unsignedPayload, streamingUnsigned, streamingSigned, streamingSignedTrailer:
	case "":
		return nil, lambdad.Errorf("MissingSecurityHeader", "Your request was missing a required header: x-amz-content-sha256.")
	default:
		if n, err := hex.Decode(sum[:], []byte(declared)); err != nil || n != len(sum) || len(declared) != 2*len(sum) {
			return nil, lambdad.Errorf("InvalidArgument",
				"x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid sha256 value.")
		}
		hashed = true
	}
	if mode == Verify {
		if err := m.verifier.verify(r.Request, a, secret, sum); err != nil {
			return nil, err
		}
	}

	length := r.ContentLength
	patient := &patientReader{r: r.Request.Body, rc: *http.NewResponseController(w)}
	var body io.Reader = patient
	switch {
	case hashed:
		body = &hashedReader{r: body, h: sha256.New(), want: sum}
	case strings.HasPrefix(declared, "STREAMING-"):
		c := &chunkedReader{r: bufio.NewReaderSize(body, 32<<10), trailer: func(h http.Header) { r.Trailer = h }}
		if declared != streamingUnsigned && mode == Verify {
			key := m.verifier.signingKey(a, secret)
			c.sign = &chunkSigner{
				key: key.key[:], stamp: a.timestamp, scope: a.date + "/" + a.region + "/" + a.service + "/aws4_request",
				previous: hex.EncodeToString(a.signature[:]), h: sha256.New(), trailer: declared == streamingSignedTrailer,
			}
		}
		n, err := strconv.ParseInt(r.Header.Get("X-Amz-Decoded-Content-Length"), 10, 64)
		if err != nil || n < 0 {
			return nil, lambdad.Errorf("MissingContentLength", "You must provide the Content-Length HTTP header.")
		}
		c.left, length, body = n, n, c
		dropChunked(r.Header)
	}
	if length > limit {
		return nil, lambdad.Errorf("EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
	}
	r.ContentLength = length
	if length >= 0 {
		r.Header.Set("Content-Length", strconv.FormatInt(length, 10))
	}
	r.Request.Body = struct {
		io.Reader
		io.Closer
	}{&limitedReader{r: body, left: limit}, r.Request.Body}
	return patient.done, nil
}

// dropChunked takes aws-chunked out of Content-Encoding: it is of the wire and not
// of the content.
func dropChunked(h http.Header) {
	var rest []string
	for _, v := range strings.Split(strings.Join(h.Values("Content-Encoding"), ","), ",") {
		if v = strings.TrimSpace(v); v != "" && v != "aws-chunked" {
			rest = append(rest, v)
		}
	}
	h.Del("Content-Encoding")
	if len(rest) > 0 {
		h.Set("Content-Encoding", strings.Join(rest, ","))
	}
}

// A limitedReader fails beyond its limit, where io.LimitReader would end.
type limitedReader struct {
	r    io.Reader
	left int64
}

func (l *limitedReader) Read(b []byte) (int, error) {
	n, err := l.r.Read(b)
	if l.left -= int64(n); l.left < 0 {
		return 0, lambdad.Errorf("EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
	}
	return n, err
}

// A hashedReader gives io.EOF only if all that it gave has the declared hash.
type hashedReader struct {
	r    io.Reader
	h    hash.Hash
	want [sha256.Size]byte
}

func (h *hashedReader) Read(b []byte) (int, error) {
	n, err := h.r.Read(b)
	h.h.Write(b[:n])
	if err == io.EOF && !bytes.Equal(h.h.Sum(nil), h.want[:]) {
		return n, lambdad.Errorf("XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed.")
	}
	return n, err
}

// A chunkSigner checks the chain of signatures of a body that is signed by chunk.
type chunkSigner struct {
	key          []byte
	stamp, scope string
	previous     string // hex
	h            hash.Hash
	trailer      bool // trailing headers are signed, too
}

func (s *chunkSigner) check(kind string, signature string, hashes ...string) error {
	mac := hmac.New(sha256.New, s.key)
	fmt.Fprintf(mac, "AWS4-HMAC-SHA256-%s\n%s\n%s\n%s\n%s", kind, s.stamp, s.scope, s.previous, strings.Join(hashes, "\n"))
	want := hex.EncodeToString(mac.Sum(nil))
	if !hmac.Equal([]byte(want), []byte(signature)) {
		return &authError{kind: badSignature}
	}
	s.previous = want
	return nil
}

// A chunkedReader takes aws-chunked framing off a body:
//
//	<hex size>[;chunk-signature=<hex>]\r\n<data>\r\n … 0[;…]\r\n[name:value\r\n …]\r\n
type chunkedReader struct {
	r         *bufio.Reader
	sign      *chunkSigner      // nil: chunks are not signed
	trailer   func(http.Header) // told what came after the body
	left      int64             // of the declared decoded length
	chunk     int64             // left of the current chunk
	signature string            // of the current chunk
	started   bool
	err       error
}

var errChunked error = lambdad.Errorf("IncompleteBody", "The request body terminated unexpectedly")

func (c *chunkedReader) Read(b []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.read(b)
	if err == io.ErrUnexpectedEOF {
		err = errChunked
	}
	c.err = err
	return n, err
}

func (c *chunkedReader) read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if c.chunk == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	n, err := c.r.Read(b[:min(int64(len(b)), c.chunk)])
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	c.chunk -= int64(n)
	if c.left -= int64(n); c.left < 0 {
		return 0, lambdad.Errorf("InvalidRequest", "The body is longer than x-amz-decoded-content-length says.")
	}
	if c.sign != nil {
		c.sign.h.Write(b[:n])
	}
	return n, err
}

// next ends the current chunk and begins another one, or returns io.EOF after
// the trailing headers.
func (c *chunkedReader) next() error {
	if c.started {
		if line, err := c.line(); err != nil || line != "" {
			return cmp.Or(err, errChunked)
		}
		if err := c.checkChunk(); err != nil {
			return err
		}
	}
	c.started = true
	line, err := c.line()
	if err != nil {
		return err
	}
	size, extension, _ := strings.Cut(line, ";")
	n, err := strconv.ParseInt(size, 16, 63)
	if err != nil || n < 0 {
		return errChunked
	}
	c.signature = strings.TrimPrefix(extension, "chunk-signature=")
	if c.chunk = n; n > 0 {
		return nil
	}
	if err := c.checkChunk(); err != nil {
		return err
	}
	if c.left != 0 {
		return errChunked
	}
	return c.trailers()
}

func (c *chunkedReader) checkChunk() error {
	if c.sign == nil {
		return nil
	}
	sum := hex.EncodeToString(c.sign.h.Sum(nil))
	c.sign.h.Reset()
	return c.sign.check("PAYLOAD", c.signature, emptySHA256, sum)
}

// trailers reads the headers after the last chunk, up to an empty line or the end.
func (c *chunkedReader) trailers() error {
	h := http.Header{}
	var signed bytes.Buffer
	signature, total := "", 0
	for {
		line, err := c.line()
		if errors.Is(err, io.ErrUnexpectedEOF) && line == "" {
			break // some clients leave the last empty line out
		}
		if err != nil {
			return err
		}
		if line == "" {
			break
		}
		name, value, ok := strings.Cut(line, ":")
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		if total += len(line); !ok || total > maxTrailerBytes {
			return errChunked
		}
		if name == "x-amz-trailer-signature" {
			signature = value
			continue
		}
		fmt.Fprintf(&signed, "%s:%s\n", name, value)
		h.Set(name, value)
	}
	if c.sign != nil && c.sign.trailer {
		sum := sha256.Sum256(signed.Bytes())
		if err := c.sign.check("TRAILER", signature, hex.EncodeToString(sum[:])); err != nil {
			return err
		}
	}
	c.trailer(h)
	return io.EOF
}

// line reads one short line without its end. At the end of the body it returns
// io.ErrUnexpectedEOF and what there was.
func (c *chunkedReader) line() (string, error) {
	var b []byte
	for {
		part, err := c.r.ReadSlice('\n')
		if b = append(b, part...); len(b) > maxChunkLine {
			return "", errChunked
		}
		switch {
		case err == nil:
			return strings.TrimRight(string(b), "\r\n"), nil
		case errors.Is(err, bufio.ErrBufferFull):
		case err == io.EOF:
			return string(b), io.ErrUnexpectedEOF
		default:
			return "", err
		}
	}
}
