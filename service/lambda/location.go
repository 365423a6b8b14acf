package lambda

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/lambdad/lambdad/blob"
)

// archivePath is where packages are downloaded from: Code.Location of functions
// and Content.Location of layers.
const archivePath = "/_lambdad/archive/"

// locationLife is how long a location works (control-plane.md section 3.1).
const locationLife = 10 * time.Minute

// location makes a URL on the endpoint that was called, which gives the package
// to whoever has it until it expires.
func (s *Service) location(c *call, digest string) *string {
	scheme := "http"
	if c.TLS != nil || c.Header.Get("X-Forwarded-Proto") == "https" {
		scheme = "https"
	}
	expires := strconv.FormatInt(s.Now().Add(locationLife).Unix(), 10)
	u := url.URL{Scheme: scheme, Host: c.Host, Path: archivePath + digest,
		RawQuery: "Expires=" + expires + "&Signature=" + s.sign(digest, expires)}
	return new(u.String())
}

func (s *Service) sign(digest, expires string) string {
	mac := hmac.New(sha256.New, s.linkKey)
	io.WriteString(mac, digest+" "+expires)
	return hex.EncodeToString(mac.Sum(nil))
}

// serveArchive gives out a package.
func (s *Service) serveArchive(w http.ResponseWriter, r *http.Request) {
	digest := strings.TrimPrefix(r.URL.Path, archivePath)
	q := r.URL.Query()
	expires, err := strconv.ParseInt(q.Get("Expires"), 10, 64)
	if err != nil || !hmac.Equal([]byte(s.sign(digest, q.Get("Expires"))), []byte(q.Get("Signature"))) {
		http.Error(w, "This location is not valid: ask for a new one with GetFunction or GetLayerVersion.", http.StatusForbidden)
		return
	}
	if s.Now().Unix() > expires {
		http.Error(w, "This location has expired: ask for a new one with GetFunction or GetLayerVersion.", http.StatusForbidden)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "A location can be read only.", http.StatusMethodNotAllowed)
		return
	}
	f, size, err := s.Blobs.Open(r.Context(), digest)
	if err != nil {
		status := http.StatusInternalServerError
		if errors.Is(err, blob.ErrNotFound) {
			status = http.StatusNotFound
		} else {
			s.Logger.Error("package could not be opened", "digest", digest, "err", err)
		}
		http.Error(w, "The package could not be opened.", status)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/zip")
	w.Header().Set("ETag", `"`+digest+`"`)
	http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(f, 0, size))
}
