package aws

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
)

const (
	// smallBody needs no share of the memory set aside for large bodies.
	smallBody = 1 << 20
	// smallSandboxBody is the same inside sandboxes, where whoever sends may have
	// opened all the connections he can, everywhere.
	smallSandboxBody = 64 << 10
	// maxSandboxBodies bounds the bodies held of one environment at a time: two
	// invocations with the largest payload, and some. A larger one is alone.
	maxSandboxBodies = 32 << 20
	// A sender must bring bodyProgress bytes within each bodyPatience.
	bodyProgress = 256 << 10
	bodyPatience = 30 * time.Second
	// maxDrain is how much of a body that is too long is read and thrown away,
	// so that the sender gets to read why.
	maxDrain = 128 << 20
	// maxUnsignedDrain is the same for callers that are not authenticated.
	maxUnsignedDrain = 1 << 20
	// memoryWait is how long a request waits for memory for its body.
	memoryWait = 30 * time.Second
)

// readBody reads the body into r.Body and returns its hash. A body beyond the
// limit is thrown away and marked by r.Oversize. The memory is given back by
// release.
func (m *Mux) readBody(w http.ResponseWriter, r *Request) (sum [sha256.Size]byte, release func(), err error) {
	release = func() {}
	limit := r.BodyLimit
	if limit == 0 {
		limit = DefaultBodyLimit
	}
	length := r.ContentLength
	if length == 0 {
		return sha256.Sum256(nil), release, nil
	}
	reserve := length
	if reserve < 0 {
		reserve = limit
	}
	if length <= limit {
		if release, err = m.reserve(r.Request, reserve); err != nil {
			return sum, release, err
		}
	}
	body := &patientReader{r: r.Request.Body, rc: *http.NewResponseController(w)}
	defer body.done()

	switch {
	case length > limit:
		r.Oversize = true
	case length > 0:
		b := make([]byte, length)
		if _, err = io.ReadFull(body, b); err == nil {
			r.Body = b
			sum = sha256.Sum256(b)
		}
	default:
		var b bytes.Buffer
		if _, err = io.Copy(&b, io.LimitReader(body, limit+1)); err == nil {
			r.Body = b.Bytes()
			if int64(b.Len()) > limit {
				r.Oversize = true
			} else {
				sum = sha256.Sum256(r.Body)
			}
		}
	}
	if err == nil && r.Oversize {
		// Only a hash of all of it tells whether the sender may be told more than
		// "no".
		h := sha256.New()
		h.Write(r.Body)
		r.Body = nil
		var n int64
		if n, err = io.Copy(h, io.LimitReader(body, maxDrain)); n == maxDrain {
			w.Header().Set("Connection", "close")
		}
		h.Sum(sum[:0])
	}
	if err != nil {
		release()
		w.Header().Set("Connection", "close")
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return sum, func() {}, lambdad.Errorf("RequestTimeoutException",
				"The request body did not arrive: fewer than %d bytes within %v.", bodyProgress, bodyPatience)
		}
		return sum, func() {}, &lambdad.Error{Code: "SerializationException", Message: "The request body could not be read.", Err: err}
	}
	if declared := r.Header.Get("X-Amz-Content-Sha256"); len(declared) == 2*sha256.Size && r.Service != "s3" {
		if got := hex.EncodeToString(sum[:]); got != strings.ToLower(declared) {
			release()
			return sum, func() {}, &authError{badSignature, fmt.Sprintf(
				"The provided 'x-amz-content-sha256' header does not match what was computed: %s != %s.", declared, got)}
		}
	}
	return sum, release, nil
}

// reserve waits for the memory of a body of this size, and returns what gives it
// back.
func (m *Mux) reserve(r *http.Request, size int64) (release func(), err error) {
	l, pool, small := listenerOf(r), m.bodies, int64(smallBody)
	if l != nil {
		pool, small = m.inside, smallSandboxBody
	}
	release = func() {}
	if size <= small {
		return release, nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), memoryWait)
	defer cancel()
	busy := func() error {
		return lambdad.Errorf("ServiceUnavailableException", "Too many large requests at a time; try again.")
	}
	// What is decoded from the body is about as large again.
	share := 2 * size
	if l != nil {
		own := min(share, maxSandboxBodies)
		if l.bodies.Acquire(ctx, own) != nil {
			return release, busy()
		}
		release = func() { l.bodies.Release(own) }
	}
	// Last, so that an environment that waits for itself keeps nobody else waiting.
	share = min(share, m.opts.BodyMemory/2)
	if pool.Acquire(ctx, share) != nil {
		release()
		return func() {}, busy()
	}
	before := release
	return func() { pool.Release(share); before() }, nil
}

// A patientReader reads as long as the sender makes progress.
type patientReader struct {
	r     io.Reader
	rc    http.ResponseController
	since int // bytes since the deadline was moved
	armed bool
}

func (p *patientReader) Read(b []byte) (int, error) {
	if !p.armed || p.since >= bodyProgress {
		p.armed, p.since = true, 0
		// A writer without deadlines is a test's.
		_ = p.rc.SetReadDeadline(time.Now().Add(bodyPatience))
	}
	if len(b) > bodyProgress {
		b = b[:bodyProgress]
	}
	n, err := p.r.Read(b)
	p.since += n
	return n, err
}

// done takes the deadline off: the answer may take its time.
func (p *patientReader) done() {
	if p.armed {
		_ = p.rc.SetReadDeadline(time.Time{})
	}
}

// drain reads a little of a body that nobody wants.
func drain(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength == 0 {
		return
	}
	body := &patientReader{r: r.Body, rc: *http.NewResponseController(w)}
	defer body.done()
	_, _ = io.CopyN(io.Discard, body, maxUnsignedDrain)
}

// decompress undoes Content-Encoding: gzip, within the same limit.
func decompress(r *Request) error {
	if enc := r.Header.Get("Content-Encoding"); len(r.Body) == 0 || !strings.EqualFold(strings.TrimSpace(enc), "gzip") {
		return nil
	}
	limit := r.BodyLimit
	if limit == 0 {
		limit = DefaultBodyLimit
	}
	z, err := gzip.NewReader(bytes.NewReader(r.Body))
	if err == nil {
		var b bytes.Buffer
		_, err = io.Copy(&b, io.LimitReader(z, limit+1))
		r.Body = b.Bytes()
	}
	if err != nil {
		return &lambdad.Error{Code: "SerializationException", Message: "The body says Content-Encoding: gzip and is not.", Err: err}
	}
	if int64(len(r.Body)) > limit {
		r.Body, r.Oversize = nil, true
	}
	return nil
}

// parseForm fills in Form, Operation and Action of a query-protocol request.
func parseForm(r *Request) error {
	if r.Oversize {
		return lambdad.Errorf("RequestEntityTooLargeException", "Request must be smaller than %d bytes", max(r.BodyLimit, DefaultBodyLimit))
	}
	form, err := url.ParseQuery(r.URL.RawQuery)
	if err == nil && len(r.Body) > 0 {
		var body url.Values
		if body, err = url.ParseQuery(string(r.Body)); err == nil {
			for k, v := range body {
				form[k] = append(form[k], v...)
			}
		}
	}
	if err != nil {
		return lambdad.Errorf("ValidationError", "The parameters of the request could not be read: %v", err)
	}
	r.Form = form
	r.Operation = form.Get("Action")
	if r.Operation == "" {
		return lambdad.Errorf("MissingAction", "The request must contain the parameter Action.")
	}
	r.Action = actionOf(r.Service, r.Operation)
	return nil
}
