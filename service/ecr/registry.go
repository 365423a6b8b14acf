package ecr

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/blob"
	"github.com/lambdad/lambdad/image"
)

// Limits of uploads.
const (
	maxUploads = 256
	uploadLife = 10 * time.Minute // without a request
)

// A regError is a refusal as the distribution API words it.
type regError struct {
	status  int
	code    string
	message string
}

func (e *regError) Error() string { return e.code + ": " + e.message }

func refuse(status int, code, format string, args ...any) error {
	return &regError{status, code, fmt.Sprintf(format, args...)}
}

// codes are the codes of the distribution API for those of ECR.
var codes = map[string]struct {
	status int
	code   string
}{
	"AccessDeniedException":             {403, "DENIED"},
	"RepositoryNotFoundException":       {404, "NAME_UNKNOWN"},
	"LayersNotFoundException":           {400, "MANIFEST_BLOB_UNKNOWN"},
	"ReferencedImagesNotFoundException": {400, "MANIFEST_BLOB_UNKNOWN"},
	"InvalidParameterException":         {400, "MANIFEST_INVALID"},
	"UnsupportedImageTypeException":     {400, "MANIFEST_INVALID"},
	"ImageTagAlreadyExistsException":    {400, "TAG_INVALID"},
	"LimitExceededException":            {507, "TOOMANYREQUESTS"},
}

// serveV2 is the distribution API, an aws.PathHandler.
func (s *Service) serveV2(w http.ResponseWriter, r *aws.Request) *lambdad.Error {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	err := s.v2(w, r)
	if err == nil {
		return nil
	}
	var e *regError
	var named *lambdad.Error
	switch {
	case errors.As(err, &e):
	case errors.As(err, &named) && codes[named.Code].code != "":
		c := codes[named.Code]
		e = &regError{c.status, c.code, named.Message}
	case errors.Is(err, blob.ErrFull):
		e = &regError{507, "DENIED", "The disk of this lambdad has no room left: free space in its data directory, or delete images."}
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // nobody listens
	default:
		s.Logger.Error("registry request failed", "method", r.Method, "path", r.URL.Path, "err", err)
		e = &regError{500, "UNKNOWN", "Internal error; the log of lambdad says more."}
	}
	if e.status == http.StatusUnauthorized {
		scheme := "http"
		if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
			scheme = "https"
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Basic realm=%q,service=\"ecr.amazonaws.com\"", scheme+"://"+r.Host+"/"))
	}
	body, _ := json.Marshal(map[string]any{"errors": []any{map[string]string{"code": e.code, "message": e.message}}}) // strings cannot fail
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(e.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
	if named == nil {
		named = &lambdad.Error{Code: e.code, Message: e.message}
	}
	return named
}

// operations are what requests do, as ECR and policies name it, by the part of the
// path and the method. There are no others.
var operations = map[string]map[string]string{
	"/blobs/uploads": {
		http.MethodPost: "InitiateLayerUpload", http.MethodPatch: "UploadLayerPart", http.MethodPut: "CompleteLayerUpload",
		http.MethodGet: "UploadLayerPart", http.MethodDelete: "UploadLayerPart",
	},
	"/blobs/":     {http.MethodHead: "BatchCheckLayerAvailability", http.MethodGet: "GetDownloadUrlForLayer"},
	"/manifests/": {http.MethodHead: "BatchGetImage", http.MethodGet: "BatchGetImage", http.MethodPut: "PutImage", http.MethodDelete: "BatchDeleteImage"},
	"/tags/list":  {http.MethodGet: "ListImages"},
}

// perform decides about what a request does to a repository.
func (s *Service) perform(r *aws.Request, kind string, ref repoRef) error {
	operation := operations[kind][r.Method]
	if operation == "" {
		return refuse(405, "UNSUPPORTED", "%.200q has no %s", r.URL.Path, r.Method)
	}
	steps := []string{operation}
	if kind == "/blobs/uploads" {
		// One request may be several steps.
		switch whole := r.URL.Query().Get("digest") != ""; {
		case r.Method == http.MethodPost && whole:
			steps = append(steps, "UploadLayerPart", "CompleteLayerUpload")
		case r.Method == http.MethodPut && r.ContentLength != 0:
			steps = []string{"UploadLayerPart", operation}
		}
	}
	r.Route = ref
	for _, step := range steps {
		if err := r.Perform(step, ref.arn()); err != nil {
			return err
		}
	}
	return nil
}

// v2 authenticates, finds the operation and decides about it.
func (s *Service) v2(w http.ResponseWriter, r *aws.Request) error {
	account, err := s.identify(r)
	if err != nil {
		return err
	}
	rest := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/v2"), "/")
	if rest == "" {
		w.Header().Set("Content-Type", "application/json")
		_, err := w.Write([]byte("{}"))
		return ignoreGone(err)
	}
	if rest == "_catalog" && r.Method == http.MethodGet {
		ref := repoRef{account, r.Region, everyRepository}
		r.Route = ref
		if err := r.Perform("DescribeRepositories", ref.arn()); err != nil {
			return err
		}
		return s.catalog(w, r, ref)
	}
	// <name>/<kind>/<last>: names have slashes, so the kind is looked for from behind.
	for _, kind := range []string{"/blobs/uploads", "/blobs/", "/manifests/", "/tags/list", "/referrers/"} {
		i := strings.LastIndex(rest, kind)
		if i <= 0 {
			continue
		}
		name, last := rest[:i], strings.TrimPrefix(rest[i+len(kind):], "/")
		if !repositoryName(name) {
			return refuse(400, "NAME_INVALID", "%.200q is no name of a repository", name)
		}
		if operations[kind] == nil {
			break
		}
		ref := repoRef{account, r.Region, name}
		if err := s.perform(r, kind, ref); err != nil {
			return err
		}
		switch kind {
		case "/blobs/uploads":
			return s.serveUpload(w, r, ref, last)
		case "/blobs/":
			return s.serveBlob(w, r, ref, last)
		case "/manifests/":
			return s.serveManifest(w, r, ref, last)
		case "/tags/list":
			return s.tagList(w, r, ref)
		}
		break
	}
	return refuse(404, "UNSUPPORTED", "there is nothing at %.200q", r.URL.Path)
}

func ignoreGone(error) error { return nil } // a caller that is gone cannot be told

// identify says on whose behalf a request is made, and whose repositories it is about.
func (s *Service) identify(r *aws.Request) (account string, err error) {
	why := "authentication required: aws ecr get-login-password | docker login --username AWS --password-stdin " + r.Host
	const expired = "Your authorization token has expired. Reauthenticate and try again."
	var c claim
	if user, password, ok := r.BasicAuth(); ok && user == "AWS" {
		if c, ok = s.passwords.open(password); ok {
			r.Region, why = c.Region, "The security token included in the request is invalid."
		}
		if ok && s.Now().After(c.Expires) {
			c, why = claim{}, expired
		}
	}
	err = r.Identify(c.AccessKeyID, c.SessionToken)
	if errors.Is(err, aws.ErrExpiredKey) {
		why = expired
	}
	switch {
	case err == nil && c == claim{} && (r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != ""):
		return "", refuse(403, "DENIED", "requests from web pages are refused while every key is accepted (--auth any)")
	case err == nil:
		return cmp.Or(c.Registry, r.Identity.Account), nil
	case errors.Is(err, aws.ErrExpiredKey), errors.Is(err, aws.ErrUnknownKey):
		return "", refuse(401, "UNAUTHORIZED", "%s", why)
	}
	return "", err
}

func (s *Service) catalog(w http.ResponseWriter, r *aws.Request, of repoRef) error {
	all, err := s.list(r.Context(), of.account, of.region)
	if err != nil {
		return err
	}
	names := []string{}
	for _, repo := range all {
		names = append(names, repo.ref.name)
	}
	return writeJSON(w, map[string]any{"repositories": names})
}

func (s *Service) tagList(w http.ResponseWriter, r *aws.Request, ref repoRef) error {
	repo, err := s.get(r.Context(), ref)
	if err != nil {
		return err
	}
	tags := []string{}
	for _, d := range repo.digests() {
		tags = append(tags, repo.tagsOf(d)...)
	}
	return writeJSON(w, map[string]any{"name": ref.name, "tags": tags})
}

func writeJSON(w http.ResponseWriter, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, err = w.Write(body)
	return ignoreGone(err)
}

// serveManifest reads, writes and deletes manifests.
func (s *Service) serveManifest(w http.ResponseWriter, r *aws.Request, ref repoRef, reference string) error {
	ctx := r.Context()
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		digest, ok, err := s.Lookup(ctx, ref.account, ref.region, ref.name, reference)
		if err != nil {
			return err
		}
		if !ok {
			return ref.notFound()
		}
		if digest == "" {
			return refuse(404, "MANIFEST_UNKNOWN", "Requested image not found")
		}
		repo, err := s.get(ctx, ref)
		if err != nil {
			return err
		}
		data, err := s.readManifest(ctx, digest)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", repo.rec.Manifests[digest].MediaType)
		w.Header().Set("Docker-Content-Digest", "sha256:"+digest)
		w.Header().Set("ETag", `"sha256:`+digest+`"`)
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		if r.Method == http.MethodGet {
			_, _ = w.Write(data)
		}
		return nil
	case http.MethodPut:
		data, err := io.ReadAll(io.LimitReader(r.Request.Body, image.MaxManifest+1))
		if err != nil {
			return refuse(400, "MANIFEST_INVALID", "the manifest did not arrive whole: %v", err)
		}
		if len(data) > image.MaxManifest {
			return refuse(413, "SIZE_INVALID", "the manifest has more than %d bytes", image.MaxManifest)
		}
		tag := reference
		if strings.HasPrefix(reference, "sha256:") {
			if got := fmt.Sprintf("%x", sha256.Sum256(data)); "sha256:"+got != reference {
				return refuse(400, "DIGEST_INVALID", "the manifest has the digest sha256:%s, not %.80s", got, reference)
			}
			tag = ""
		}
		digest, err := s.putManifest(ctx, ref, data, r.Header.Get("Content-Type"), tag)
		if err != nil {
			return err
		}
		w.Header().Set("Location", "/v2/"+ref.name+"/manifests/sha256:"+digest)
		w.Header().Set("Docker-Content-Digest", "sha256:"+digest)
		w.WriteHeader(http.StatusCreated)
		return nil
	case http.MethodDelete:
		found := false
		_, err := s.update(ctx, ref, func(repo *repository) error {
			if digest, ok := strings.CutPrefix(reference, "sha256:"); ok {
				if _, found = repo.rec.Manifests[digest]; found {
					for _, t := range repo.tagsOf(digest) {
						delete(repo.rec.Names, t)
					}
					delete(repo.rec.Manifests, digest)
				}
			} else if _, found = repo.rec.Names[reference]; found {
				delete(repo.rec.Names, reference)
			}
			if !found {
				return refuse(404, "MANIFEST_UNKNOWN", "Requested image not found")
			}
			return nil
		})
		if err != nil {
			return err
		}
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	return refuse(405, "UNSUPPORTED", "manifests are read, written and deleted, not %s", r.Method)
}

// serveBlob reads a blob.
func (s *Service) serveBlob(w http.ResponseWriter, r *aws.Request, ref repoRef, reference string) error {
	digest, ok := strings.CutPrefix(reference, "sha256:")
	if !ok || !blob.CheckDigest(digest) {
		return refuse(400, "DIGEST_INVALID", "%.100q is not sha256: and 64 hexadecimal digits", reference)
	}
	repo, err := s.get(r.Context(), ref)
	if err != nil {
		return err
	}
	if _, ok := s.blobOf(r.Context(), repo, digest); !ok {
		return refuse(404, "BLOB_UNKNOWN", "the repository %s has no blob %s", ref.name, reference)
	}
	f, size, err := s.Images.Blobs.Open(r.Context(), digest)
	if err != nil {
		return refuse(404, "BLOB_UNKNOWN", "the repository %s has no blob %s", ref.name, reference)
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", reference)
	w.Header().Set("ETag", `"`+reference+`"`)
	http.ServeContent(w, r.Request, "", time.Time{}, io.NewSectionReader(f, 0, size))
	return nil
}

// An upload is a blob on its way. What arrives goes straight to the store, which
// keeps it only when it is whole; nothing of an upload outlives the process.
type upload struct {
	ref  repoRef
	id   string
	pipe *io.PipeWriter
	done chan struct{} // closed when the store is done
	// Of the store, after done.
	digest string
	size   int64
	err    error

	mu    sync.Mutex // one request at a time; guards the following
	at    int64
	ended bool
	idle  *time.Timer
}

// begin makes an upload.
func (s *Service) begin(ref repoRef) (*upload, error) {
	if err := s.Images.Reserve(); err != nil {
		return nil, fmt.Errorf("%w: %w", blob.ErrFull, err)
	}
	id := make([]byte, 16)
	rand.Read(id)
	r, pipe := io.Pipe()
	u := &upload{ref: ref, id: hex.EncodeToString(id), pipe: pipe, done: make(chan struct{})}
	s.mu.Lock()
	if len(s.uploads) >= maxUploads {
		s.mu.Unlock()
		return nil, refuse(429, "TOOMANYREQUESTS", "%d uploads are under way; try again", maxUploads)
	}
	s.uploads[u.id] = u
	s.mu.Unlock()
	u.idle = time.AfterFunc(uploadLife, func() { s.abort(u, errors.New("nothing came for a long time")) })
	go func() {
		defer close(u.done)
		// The upload ends by the pipe, not by the request that began it.
		u.digest, u.size, u.err = s.Images.Put(context.Background(), r, "")
		r.CloseWithError(errors.Join(u.err, io.ErrClosedPipe))
	}()
	return u, nil
}

// abort gives an upload up.
func (s *Service) abort(u *upload, why error) {
	u.pipe.CloseWithError(why)
	<-u.done
	u.idle.Stop()
	s.mu.Lock()
	delete(s.uploads, u.id)
	s.mu.Unlock()
}

// Close gives up all uploads.
func (s *Service) Close() {
	s.mu.Lock()
	var all []*upload
	for _, u := range s.uploads {
		all = append(all, u)
	}
	s.mu.Unlock()
	for _, u := range all {
		s.abort(u, errors.New("the server stops"))
	}
	s.forgetRecent(true)
}

// write takes a part. What arrived before a broken connection counts: the client
// may ask how much that was and go on.
func (u *upload) write(r *aws.Request) error {
	u.idle.Reset(uploadLife)
	body := r.Request.Body
	if c := r.Header.Get("Content-Range"); c != "" {
		from, _, _ := strings.Cut(strings.TrimPrefix(c, "bytes "), "-")
		if n, err := strconv.ParseInt(from, 10, 64); err != nil || n != u.at {
			return refuse(416, "BLOB_UPLOAD_INVALID", "the part begins at %.40q, and %d bytes have come", c, u.at)
		}
	}
	n, err := io.Copy(u.pipe, io.LimitReader(body, lambdad.MaxImage-u.at+1))
	u.at += n
	if u.at > lambdad.MaxImage {
		return refuse(413, "SIZE_INVALID", "a layer has at most %d bytes", int64(lambdad.MaxImage))
	}
	if errors.Is(err, io.ErrClosedPipe) { // the store gave up
		<-u.done
		return errors.Join(u.err, err)
	}
	if err != nil {
		return refuse(400, "BLOB_UPLOAD_INVALID", "the part did not arrive whole: %v", err)
	}
	return nil
}

// serveUpload begins, continues, finishes and gives up uploads.
func (s *Service) serveUpload(w http.ResponseWriter, r *aws.Request, ref repoRef, id string) error {
	if r.Method == http.MethodPost && id == "" {
		return s.startUpload(w, r, ref)
	}
	s.mu.Lock()
	u := s.uploads[id]
	s.mu.Unlock()
	if u == nil || u.ref != ref {
		return refuse(404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload: it ended, or the server was started anew")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended {
		return refuse(404, "BLOB_UPLOAD_UNKNOWN", "the upload has ended")
	}
	switch r.Method {
	case http.MethodGet:
		u.header(w)
		w.WriteHeader(http.StatusNoContent)
		return nil
	case http.MethodDelete:
		u.ended = true
		s.abort(u, errors.New("given up by the client"))
		w.WriteHeader(http.StatusNoContent)
		return nil
	case http.MethodPatch:
		if err := u.write(r); err != nil {
			var e *regError
			if !errors.As(err, &e) || e.status == 413 {
				u.ended = true
				s.abort(u, err)
			}
			return err
		}
		u.header(w)
		w.WriteHeader(http.StatusAccepted)
		return nil
	case http.MethodPut:
		return s.finish(w, r, u)
	}
	return refuse(405, "UNSUPPORTED", "uploads have no %s", r.Method)
}

// header says how far an upload is.
func (u *upload) header(w http.ResponseWriter) {
	w.Header().Set("Location", "/v2/"+u.ref.name+"/blobs/uploads/"+u.id)
	w.Header().Set("Docker-Upload-Uuid", u.id)
	w.Header().Set("Range", "0-"+strconv.FormatInt(max(u.at-1, 0), 10))
}

// startUpload begins an upload, or has a blob of another repository from which the
// caller may get it.
func (s *Service) startUpload(w http.ResponseWriter, r *aws.Request, ref repoRef) error {
	q := r.URL.Query()
	if _, err := s.get(r.Context(), ref); err != nil {
		return err
	}
	if digest, ok := strings.CutPrefix(q.Get("mount"), "sha256:"); ok && blob.CheckDigest(digest) {
		other := repoRef{ref.account, ref.region, q.Get("from")}
		from, err := s.get(r.Context(), other)
		if err == nil && s.decide(r, "ecr:GetDownloadUrlForLayer", other) == nil && s.decide(r, "ecr:CompleteLayerUpload", ref) == nil {
			if _, ok := s.blobOf(r.Context(), from, digest); ok {
				s.remember(ref, digest)
				created(w, ref, digest)
				return nil
			}
		}
	}
	u, err := s.begin(ref)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if q.Get("digest") != "" {
		return s.finish(w, r, u)
	}
	u.header(w)
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func created(w http.ResponseWriter, ref repoRef, digest string) {
	w.Header().Set("Location", "/v2/"+ref.name+"/blobs/sha256:"+digest)
	w.Header().Set("Docker-Content-Digest", "sha256:"+digest)
	w.WriteHeader(http.StatusCreated)
}

// finish takes the last part. It answers when the blob is on the disk.
func (s *Service) finish(w http.ResponseWriter, r *aws.Request, u *upload) error {
	want, ok := strings.CutPrefix(r.URL.Query().Get("digest"), "sha256:")
	if !ok || !blob.CheckDigest(want) {
		return refuse(400, "DIGEST_INVALID", "the digest must be sha256: and 64 hexadecimal digits")
	}
	if err := u.write(r); err != nil {
		u.ended = true
		s.abort(u, err)
		return err
	}
	u.ended = true
	defer s.Images.Pin(want)()
	u.pipe.Close()
	<-u.done
	s.abort(u, nil) // it is done; this forgets it
	if u.err != nil {
		return u.err
	}
	if u.digest == want {
		s.remember(u.ref, want)
		created(w, u.ref, want)
		return nil
	}
	return refuse(400, "DIGEST_INVALID", "what came has the digest sha256:%s, not sha256:%s", u.digest, want)
}
