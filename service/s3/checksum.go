package s3

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/lambdad/lambdad"
)

// algorithms are the checksums that clients may ask for, by the end of
// x-amz-checksum-<name>.
var algorithms = map[string]func() hash.Hash{
	"crc32":  func() hash.Hash { return crc32.NewIEEE() },
	"crc32c": func() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) },
	// The polynomial of NVM Express, reversed as hash/crc64 wants it.
	"crc64nvme": func() hash.Hash { return crc64.New(crc64.MakeTable(0x9a6c9329ac4bc9b5)) },
	"sha1":      sha1.New,
	"sha256":    sha256.New,
}

const sumHeader = "X-Amz-Checksum-"

// checkAlgorithm returns an algorithm in lower case, or an error as S3's.
func checkAlgorithm(name string) (string, error) {
	name = strings.ToLower(name)
	if name != "" && algorithms[name] == nil {
		return "", lambdad.Errorf("InvalidRequest", "Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]")
	}
	return name, nil
}

// typeOf is the type of the checksum of a multipart object where none is asked for.
func typeOf(algorithm, asked string) string {
	switch {
	case algorithm == "":
		return ""
	case asked != "":
		return asked
	case algorithm == "crc64nvme":
		return "FULL_OBJECT"
	}
	return "COMPOSITE"
}

// A summer computes the checksums of a content while it is read, and fails at its
// end where one is not what the client said.
type summer struct {
	io.ReadCloser
	md5       hash.Hash
	algorithm string // "" for none
	sum       hash.Hash
	want      func() string // what the client says, known at the end
	wantMD5   string        // base64; "" when not said
	ended     bool
}

func newSummer(body io.ReadCloser, algorithm string) *summer {
	s := &summer{ReadCloser: body, md5: md5.New(), algorithm: algorithm, want: func() string { return "" }}
	if algorithm != "" {
		s.sum = algorithms[algorithm]()
	}
	return s
}

// expectSums prepares b.sums for the body of this request by its headers.
func (b *backend) expectSums() error {
	h := b.r.Header
	algorithm, inTrailer := "", false
	for name := range algorithms {
		if h.Get(sumHeader+name) != "" {
			algorithm = name
		}
	}
	if t, ok := strings.CutPrefix(strings.ToLower(h.Get("X-Amz-Trailer")), strings.ToLower(sumHeader)); ok && algorithm == "" {
		algorithm, inTrailer = t, true
	}
	if algorithm == "" {
		algorithm = h.Get("X-Amz-Sdk-Checksum-Algorithm")
	}
	algorithm, err := checkAlgorithm(algorithm)
	if err != nil {
		return err
	}
	s := newSummer(b.r.Request.Body, algorithm)
	if algorithm != "" {
		s.want = func() string {
			if inTrailer {
				return b.r.Trailer.Get(sumHeader + algorithm)
			}
			return h.Get(sumHeader + algorithm)
		}
	}
	if s.wantMD5 = h.Get("Content-Md5"); s.wantMD5 != "" {
		if raw, err := base64.StdEncoding.DecodeString(s.wantMD5); err != nil || len(raw) != md5.Size {
			return lambdad.Errorf("InvalidDigest", "The Content-MD5 you specified was invalid.")
		}
		// The library would check it, too, with a text of its own.
		h.Del("Content-Md5")
	}
	b.sums = s
	return nil
}

func (s *summer) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	s.md5.Write(p[:n])
	if s.sum != nil {
		s.sum.Write(p[:n])
	}
	if err == io.EOF && !s.ended {
		s.ended = true
		if want := s.want(); want != "" && !same(want, s.value()) {
			return n, lambdad.Errorf("BadDigest", "The %s you specified did not match the calculated checksum.", strings.ToUpper(s.algorithm))
		}
		if s.wantMD5 != "" && !same(s.wantMD5, base64.StdEncoding.EncodeToString(s.md5.Sum(nil))) {
			return n, lambdad.Errorf("BadDigest", "The Content-MD5 you specified did not match what we received.")
		}
	}
	return n, err
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// value is the checksum in base64, or "".
func (s *summer) value() string {
	if s.sum == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(s.sum.Sum(nil))
}

// etag is the MD5 in hex.
func (s *summer) etag() string { return hex.EncodeToString(s.md5.Sum(nil)) }

// sums are the checksums of what was read.
func (s *summer) sums() sums {
	if s.algorithm == "" {
		return sums{}
	}
	return sums{s.algorithm, s.value(), "FULL_OBJECT"}
}

// headers adds checksums to an answer.
func (c sums) headers(h map[string]string, withType bool) {
	if c.Value == "" {
		return
	}
	h[sumHeader+c.Algorithm] = c.Value
	if withType {
		h["X-Amz-Checksum-Type"] = c.Type
	}
}

// composite is the checksum over those of the parts, or none where a part has no
// such checksum.
func composite(algorithm string, parts []partRecord) sums {
	h := algorithms[algorithm]()
	for _, p := range parts {
		raw, err := base64.StdEncoding.DecodeString(p.Sums.Value)
		if p.Sums.Algorithm != algorithm || err != nil {
			return sums{}
		}
		h.Write(raw)
	}
	return sums{algorithm, base64.StdEncoding.EncodeToString(h.Sum(nil)) + "-" + itoa(len(parts)), "COMPOSITE"}
}

// keptHeaders are the headers of a PUT that come back with the object.
var keptHeaders = []string{"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type", "Expires", "X-Amz-Website-Redirect-Location"}

// maxMetadata is the size of all x-amz-meta-* of an object: 2 KB.
const maxMetadata = 2048

// objectHeaders returns what is to be kept of the headers of a request.
func objectHeaders(h http.Header) (map[string]string, error) {
	kept, size := map[string]string{}, 0
	for name, values := range h {
		if meta, ok := strings.CutPrefix(name, "X-Amz-Meta-"); ok {
			// Clients show the names as they come back: in lower case.
			value := strings.Join(values, ",")
			kept[strings.ToLower(name)] = value
			size += len(meta) + len(value)
		} else if slices.Contains(keptHeaders, name) {
			kept[name] = values[0]
		}
	}
	if size > maxMetadata {
		return nil, lambdad.Errorf("MetadataTooLarge", "Your metadata headers exceed the maximum allowed metadata size")
	}
	return kept, nil
}
