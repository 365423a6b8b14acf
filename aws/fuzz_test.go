package aws

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lambdad/lambdad"
)

func testLogger(b *bytes.Buffer) *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

// FuzzAuthorization: whatever the header, nobody gets in with it, and what is
// read from it is bounded.
func FuzzAuthorization(f *testing.F) {
	r := httptest.NewRequest("GET", "/2015-03-31/functions", nil)
	sign(f, r, testKey, nil, "lambda", "us-east-1", time.Now())
	f.Add(r.Header.Get("Authorization"), r.Header.Get("X-Amz-Date"))
	f.Add("AWS4-HMAC-SHA256 Credential=a/20260101/r/lambda/aws4_request,SignedHeaders=host,Signature="+strings.Repeat("0", 64), "20260101T000000Z")
	f.Add("AWS4-HMAC-SHA256 Credential=////aws4_request, SignedHeaders=;;;, Signature=", "x")
	mux := NewMux(testKeys(), Options{}, echo{})
	good := r.Header.Get("Authorization")
	f.Fuzz(func(t *testing.T, header, date string) {
		a, err := parseAuthorization(header)
		if a == nil && err == nil {
			t.Fatal("neither an authorization nor an error")
		}
		if a != nil && (a.accessKeyID == "" || a.service == "" || len(a.service) > 64) {
			t.Fatalf("%+v", a)
		}
		if header == good {
			return
		}
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/2015-03-31/functions", nil)
		r.Header.Set("Authorization", header)
		r.Header.Set("X-Amz-Date", date)
		mux.ServeHTTP(w, r)
		if w.Code < 400 && !sameSignature(header, good) {
			t.Fatalf("%q was let in", header)
		}
		if w.Code == http.StatusInternalServerError {
			t.Fatalf("%q: %s", header, w.Body)
		}
	})
}

// sameSignature: spelled differently, but the signature that is valid.
func sameSignature(a, b string) bool {
	x, _ := parseAuthorization(a)
	y, _ := parseAuthorization(b)
	return x != nil && y != nil && x.signature == y.signature
}

// FuzzPresigned is the same for queries.
func FuzzPresigned(f *testing.F) {
	f.Add("X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2F20260101%2Fus-east-1%2Flambda%2Faws4_request&X-Amz-Date=20260101T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=" + strings.Repeat("0", 64))
	f.Add("X-Amz-Credential=&X-Amz-Expires=99999999999999999999")
	mux := NewMux(testKeys(), Options{}, echo{})
	f.Fuzz(func(t *testing.T, query string) {
		a, _ := parsePresigned(query)
		if a != nil && (a.expires < 0 || a.expires > maxPresign) {
			t.Fatalf("expires %v", a.expires)
		}
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/2015-03-31/functions", nil)
		r.URL.RawQuery = query
		mux.ServeHTTP(w, r)
		if w.Code < 400 || w.Code == http.StatusInternalServerError {
			t.Fatalf("%q: %d", query, w.Code)
		}
	})
}

// FuzzRoute: paths of any shape are answered.
func FuzzRoute(f *testing.F) {
	rt := NewRouter([]Route{{"A", "GET", "/d/f/{N}", "", 200}, {"B", "GET", "/d/f/{N}/x", "k=v", 200}, {"C", "GET", "/d/f/{N}/x", "", 200}})
	f.Add("/d/f/a%2Fb/x", "k=v")
	f.Add("//d//f/", "")
	f.Fuzz(func(t *testing.T, path, query string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.RequestURI, r.URL.RawQuery = "/"+path, query
		m, err := rt.Match(r)
		if (m == nil) == (err == nil) {
			t.Fatal("a match or an error")
		}
		if m != nil && m.Route().Operation == "B" && r.URL.Query().Get("k") != "v" {
			t.Fatal("matched without its query")
		}
	})
}

func TestKeyStore(t *testing.T) {
	dir := t.TempDir()
	k, err := OpenKeyStore(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, CredentialsFile)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	again, err := OpenKeyStore(dir, nil)
	if err != nil || again.Admin() != k.Admin() {
		t.Fatalf("a second start has another key: %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left over: %v", entries)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeyStore(dir, nil); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable by all: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeyStore(dir, nil); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("broken: %v", err)
	}

	v := &lambdad.Version{Account: "123456789012", Function: "f", Role: "arn:aws:iam::123456789012:role/a/b/name"}
	mint, release := k.Mint(v, "env")
	c, ext := mint("runtime"), mint("extension/e")
	secret, id, err := k.Lookup(t.Context(), c.AccessKeyID, c.SessionToken)
	if err != nil || secret != c.SecretAccessKey || id.EnvironmentID != "env" || id.Admin || id.Party != "runtime" || id.Function != "f" ||
		id.ARN != "arn:aws:sts::123456789012:assumed-role/name/f" || !strings.HasPrefix(c.AccessKeyID, "ASIA") || len(c.AccessKeyID) != 20 || len(c.SecretAccessKey) != 40 {
		t.Errorf("minted %+v as %+v", c, id)
	}
	_, extID, err := k.Lookup(t.Context(), ext.AccessKeyID, ext.SessionToken)
	if err != nil || extID.ARN != id.ARN || extID.Party != "extension/e" || ext.AccessKeyID == c.AccessKeyID {
		t.Errorf("extension %+v as %+v, %v", ext, extID, err)
	}
	if _, _, err := k.Lookup(t.Context(), c.AccessKeyID, ext.SessionToken); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("another party's token: %v", err)
	}
	if _, _, err := k.Lookup(t.Context(), c.AccessKeyID, ""); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("no token: %v", err)
	}
	// A process that is started again has new credentials, and the old ones end.
	again2 := mint("runtime")
	if _, _, err := k.Lookup(t.Context(), c.AccessKeyID, c.SessionToken); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("credentials of a process that was replaced: %v", err)
	}
	k.now = func() time.Time { return time.Now().Add(EnvironmentKeyLife + time.Second) }
	if _, _, err := k.Lookup(t.Context(), again2.AccessKeyID, again2.SessionToken); !errors.Is(err, ErrExpiredKey) {
		t.Errorf("after their life: %v", err)
	}
	k.now = time.Now
	release()
	if _, _, err := k.Lookup(t.Context(), ext.AccessKeyID, ext.SessionToken); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("released credentials still work: %v", err)
	}
}

func TestValidator(t *testing.T) {
	ten := 10.0
	one := 1.0
	var v Validator
	v.Required("role", false)
	v.String("name", new("a b"), &Constraint{Max: new(2.0), Pattern: NewPattern("[a-z]+", "")})
	v.Int("size", new(int64(11)), &Constraint{Min: &one, Max: &ten})
	v.Strings("list", []string{"x", "y"}, &Constraint{Element: &Constraint{Enum: []string{"x"}, NotNull: true}})
	v.Map("tags", map[string]string{"k": "v", "": "w"}, &Constraint{Key: &Constraint{Min: &one}})
	want := "6 validation errors detected: " +
		"Value null at 'role' failed to satisfy constraint: Member must not be null; " +
		"Value 'a b' at 'name' failed to satisfy constraint: Member must have length less than or equal to 2; " +
		"Value 'a b' at 'name' failed to satisfy constraint: Member must satisfy regular expression pattern: [a-z]+; " +
		"Value '11' at 'size' failed to satisfy constraint: Member must have value less than or equal to 10; " +
		"Value '[x, y]' at 'list' failed to satisfy constraint: Member must satisfy constraint: [Member must satisfy enum value set: [x], Member must not be null]; " +
		"Value '{=w, k=v}' at 'tags' failed to satisfy constraint: Map keys must satisfy constraint: [Member must have length greater than or equal to 1]"
	if got := v.Err().(*lambdad.Error).Message; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestVerifyAllocates counts what a signature costs: the authorization that was read,
// and one header's name.
func TestVerifyAllocates(t *testing.T) {
	r := httptest.NewRequest("POST", "/2015-03-31/functions/hello/invocations", nil)
	sign(t, r, testKey, nil, "lambda", "us-east-1", time.Now())
	v := newVerifier(time.Now)
	sum := sha256.Sum256(nil)
	least := math.Inf(1) // a pool may be empty now and then
	for range 100 {
		least = min(least, testing.AllocsPerRun(1, func() {
			a, aerr := parseRequestAuth(r)
			if aerr != nil {
				t.Fatal(aerr)
			}
			if err := v.verify(r, a, testKey.SecretAccessKey, sum); err != nil {
				t.Fatal(err)
			}
		}))
	}
	if least != 2 {
		t.Errorf("%v allocations, want 2", least)
	}
}

func BenchmarkVerify(b *testing.B) {
	r := httptest.NewRequest("POST", "/2015-03-31/functions/hello/invocations", nil)
	r.Header.Set("Content-Type", "application/octet-stream")
	sign(b, r, testKey, nil, "lambda", "us-east-1", time.Now())
	v := newVerifier(time.Now)
	sum := sha256.Sum256(nil)
	b.ReportAllocs()
	for b.Loop() {
		a, aerr := parseRequestAuth(r)
		if aerr != nil {
			b.Fatal(aerr)
		}
		if err := v.verify(r, a, testKey.SecretAccessKey, sum); err != nil {
			b.Fatal(err)
		}
	}
}
