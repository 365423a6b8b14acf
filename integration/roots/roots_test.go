//go:build linux

// Package roots_test runs lambdad on the root file systems of other distributions:
// what functions find there, above all certificates and names, comes from the host's
// root, and each has them elsewhere.
//
// A root is laid over with a writable tree, becomes the root of the server's mount
// namespace, and gets a host's network: an uplink, behind which a web server with a
// certificate and a name server answer. Three roots are made of this host's own, laid
// out as elsewhere. `make test-roots` brings stock ones (stock.sh), and ROOTS=DIR any
// that somebody has unpacked.
package roots_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/integration/harness"
)

// insideVariable says that this process has mounts and a network of its own.
const insideVariable = "LAMBDAD_TEST_ROOTS_INSIDE"

// RootsVariable lists directories with root file systems, separated by colons.
const rootsVariable = "LAMBDAD_TEST_ROOTS"

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(insideVariable) != "" {
		harness.Main(m)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the parent-death signal is this thread's
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	} else if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// What is behind the uplink.
const (
	site     = "service.example"
	url      = "https://" + site + "/"
	page     = "over the uplink"
	public   = "93.184.216.34"
	router   = "192.168.77.1"
	hostAddr = "192.168.77.2"
)

// Kinds of resolv.conf.
const (
	direct   = "a name server outside"
	stub     = "the stub of systemd-resolved"
	loopback = "a name server on the host's loopback"
)

func TestRoots(t *testing.T) {
	harness.NeedRoot(t)
	ca := newAuthority(t)
	outside(t, ca)
	if list := os.Getenv(rootsVariable); list != "" {
		for _, dir := range filepath.SplitList(list) {
			t.Run(filepath.Base(dir), func(t *testing.T) { probe(t, ca, dir, loopback, nil) })
		}
		return
	}
	for _, c := range []struct {
		name, names string
		change      func(t *testing.T, r root, ca *authority)
	}{
		{"this host, names as on Ubuntu", stub, nil},
		{"this host laid out as Fedora", loopback, fedora},
	} {
		t.Run(c.name, func(t *testing.T) { probe(t, ca, "/", c.names, c.change) })
	}
}

// probe runs the server with a root and looks from inside its sandboxes.
func probe(t *testing.T, ca *authority, dir, names string, change func(*testing.T, root, *authority)) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for _, name := range []string{"lambdad", "rootsprobe"} {
		harness.Program(t, name)
	}
	r := assemble(t, dir)
	r.resolver(t, names)
	if change == nil {
		change = trust
	}
	change(t, r, ca)
	bundles := r.bundles()
	if len(bundles) == 0 {
		t.Fatal("this root has no certificates")
	}

	data := harness.DirOf(t, nil)
	r.bind(t, data)
	r.bind(t, filepath.Dir(harness.Program(t, "lambdad")))
	s := harness.StartIn(t, string(r), data, "--isolation", "root")
	defer s.Stop()

	// What the root has decides what is asked; no root has nothing.
	var lines [][]string
	var want []string
	ask := func(answer string, line ...string) {
		lines, want = append(lines, line), append(want, answer)
	}
	ask(page, "fetch", url)
	if r.has("/usr/bin/getent") {
		ask("127.0.0.1 ", "getent", "hosts", "sandbox.localdomain")
		ask(public, "getent", "hosts", site)
	}
	if r.has("/usr/bin/curl") {
		ask(page, "curl", "-sS", url)
		for _, b := range bundles {
			ask(page, "SSL_CERT_FILE="+b, "curl", "-sS", url)
		}
	}
	if r.has("/usr/bin/openssl") {
		ask("", "openssl", "s_client", "-connect", site+":443", "-verify_return_error", "-brief")
	}
	if r.has("/usr/bin/ssl_client") { // Alpine's, for the wget of busybox
		ask(page, "/bin/busybox", "wget", "-q", "-O", "-", url)
	}
	files := map[string][]byte{"bootstrap": read(t, harness.Program(t, "rootsprobe"))}
	if java := r.java(); java != "" {
		files["Fetch.class"] = compile(t)
		ask("127.0.0.1 "+page, java, "-Xmx128m", "-XX:+UseSerialGC", "-cp", "/var/task", "Fetch", url)
	} else {
		t.Log("no Java that takes its certificates from the system")
	}
	create := func(name string, rt types.Runtime, handler string, files map[string][]byte, env map[string]string) {
		t.Helper()
		if err := s.Create(ctx, name, func(in *lambda.CreateFunctionInput) {
			in.Runtime, in.Handler, in.Code = rt, aws.String(handler), &types.FunctionCode{ZipFile: zipOf(t, files)}
			in.MemorySize, in.Timeout, in.Environment = aws.Int32(512), aws.Int32(120), &types.Environment{Variables: env}
		}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	create("programs", types.RuntimeProvidedal2023, "bootstrap", files, nil)
	event, err := json.Marshal(lines)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := s.Invoke(ctx, "programs", string(event))
	if err != nil {
		t.Fatal(err)
	}
	var got []struct{ Out, Err string }
	if err := json.Unmarshal(answer, &got); err != nil || len(got) != len(want) {
		t.Fatalf("%v: %s", err, answer)
	}
	for i, g := range got {
		if g.Err != "" || !strings.HasPrefix(strings.Join(strings.Fields(g.Out), " ")+" ", want[i]) {
			t.Errorf("%q: %q %s", lines[i], g.Out, g.Err)
		} else {
			t.Logf("%s: as wanted", strings.Join(lines[i], " "))
		}
	}
	interpreters := 0
	for _, l := range []struct {
		program, file string
		runtime       types.Runtime
		env           map[string]string
	}{
		{"python3", "lambda_function.py", types.RuntimePython313, nil},
		{"node", "index.js", types.RuntimeNodejs22x, map[string]string{"NODE_EXTRA_CA_CERTS": bundles[0]}},
		{"ruby", "function.rb", types.RuntimeRuby33, nil},
	} {
		if !r.has("/usr/bin/"+l.program) && !r.has("/usr/local/bin/"+l.program) {
			continue
		}
		interpreters++
		create(l.program, l.runtime, strings.TrimSuffix(l.file, filepath.Ext(l.file))+".handler", map[string][]byte{l.file: read(t, "testdata/"+l.file)}, l.env)
		out, err := s.Invoke(ctx, l.program, `{"url": "`+url+`"}`)
		if err != nil || string(out) != `"127.0.0.1 `+page+`"` {
			t.Errorf("%s: %s %v", l.program, out, err)
		} else {
			t.Logf("%s: as wanted", l.runtime)
		}
	}
	if interpreters == 0 {
		t.Error("no interpreter at all: this root shows nothing")
	}
}

// root is a root file system that may be written to.
type root string

func assemble(t *testing.T, lower string) root {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "lambdad-roots-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	mount(t, "tmpfs", dir, "tmpfs", 0, "mode=0755")
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := root(filepath.Join(dir, "root"))
	mount(t, "overlay", string(r), "overlay", 0, "lowerdir="+lower+",upperdir="+dir+"/upper,workdir="+dir+"/work")
	for _, d := range []string{"/proc", "/sys", "/dev"} {
		r.bind(t, d)
	}
	mount(t, "tmpfs", r.at("/run"), "tmpfs", 0, "mode=0755")
	return r
}

func mount(t *testing.T, what, where, kind string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(what, where, kind, flags, data); err != nil {
		t.Fatalf("mount %s on %s: %v", what, where, err)
	}
}

// at is where something of the root is.
func (r root) at(name string) string { return filepath.Join(string(r), name) }

// bind shows a directory of this host at its place.
func (r root) bind(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(r.at(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	mount(t, dir, r.at(dir), "", unix.MS_BIND|unix.MS_REC, "")
}

// has says whether there is a file, seen from inside.
func (r root) has(name string) bool {
	for range 10 {
		info, err := os.Lstat(r.at(name))
		if err != nil {
			return false
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			return true
		}
		to, err := os.Readlink(r.at(name))
		if err != nil {
			return false
		}
		if name = filepath.Join(filepath.Dir(name), to); filepath.IsAbs(to) {
			name = to
		}
	}
	return false
}

// run runs a program of the root.
func (r root) run(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	harness.In(cmd, string(r))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// put makes a file, instead of what was there.
func (r root) put(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(r.at(name)), 0o755), os.RemoveAll(r.at(name)), os.WriteFile(r.at(name), content, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// link makes a link, instead of what was there.
func (r root) link(t *testing.T, to, name string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(r.at(name)), 0o755), os.RemoveAll(r.at(name)), os.Symlink(to, r.at(name))); err != nil {
		t.Fatal(err)
	}
}

// resolver is how the host finds names.
func (r root) resolver(t *testing.T, kind string) {
	t.Helper()
	switch kind {
	case direct:
		r.put(t, "/etc/resolv.conf", []byte("nameserver "+router+"\n"))
	case loopback:
		r.put(t, "/etc/resolv.conf", []byte("search lan\nnameserver 127.0.0.1\noptions edns0 trust-ad\n"))
	case stub:
		r.put(t, "/run/systemd/resolve/stub-resolv.conf", []byte("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"))
		r.put(t, "/run/systemd/resolve/resolv.conf", []byte("nameserver "+router+"\nsearch .\n"))
		r.link(t, "../run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf")
	}
}

// trust adds the authority with the distribution's own program.
func trust(t *testing.T, r root, ca *authority) {
	for _, c := range []struct{ program, dir, arg string }{
		{"update-ca-certificates", "/usr/local/share/ca-certificates", ""}, // Debian, Ubuntu, Alpine
		{"update-ca-trust", "/etc/pki/ca-trust/source/anchors", "extract"}, // Fedora
	} {
		if r.has("/usr/sbin/"+c.program) || r.has("/usr/bin/"+c.program) {
			r.put(t, c.dir+"/lambdad-test.crt", ca.pem)
			r.run(t, append([]string{c.program}, strings.Fields(c.arg)...)...)
			return
		}
	}
	t.Fatal("this root has no program that adds a certificate")
}

// bundles are the files with all certificates, by the names that programs know.
func (r root) bundles() (list []string) {
	for _, name := range []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
		"/etc/ssl/cert.pem", "/etc/pki/tls/cert.pem"} {
		if r.has(name) {
			list = append(list, name)
		}
	}
	return list
}

// java is the program of a Java that takes its certificates from the system.
func (r root) java() string {
	stores, _ := filepath.Glob(r.at("/usr/lib/jvm/*/lib/security/cacerts"))
	for _, s := range stores {
		home := strings.TrimPrefix(strings.TrimSuffix(s, "/lib/security/cacerts"), string(r))
		if _, err := os.Readlink(s); err == nil && r.has(home+"/bin/java") {
			return home + "/bin/java"
		}
	}
	return ""
}

// fedora changes the root of a Debian to what is where on Fedora: certificates below
// /etc/pki, Java's configuration below /etc/java, and libraries that look there.
func fedora(t *testing.T, r root, ca *authority) {
	const extracted = "/etc/pki/ca-trust/extracted"
	if !r.has("/etc/debian_version") {
		t.Skip("this host is neither Debian nor Ubuntu")
	}
	trust(t, r, ca)
	r.put(t, extracted+"/pem/tls-ca-bundle.pem", read(t, r.at("/etc/ssl/certs/ca-certificates.crt")))
	r.put(t, "/etc/pki/tls/openssl.cnf", read(t, r.at("/etc/ssl/openssl.cnf")))
	r.link(t, extracted+"/pem/tls-ca-bundle.pem", "/etc/pki/tls/certs/ca-bundle.crt")
	r.link(t, extracted+"/pem/tls-ca-bundle.pem", "/etc/pki/tls/cert.pem")
	if store := r.at("/etc/ssl/certs/java/cacerts"); r.has("/etc/ssl/certs/java/cacerts") {
		r.put(t, extracted+"/java/cacerts", read(t, store))
		r.link(t, extracted+"/java/cacerts", "/etc/pki/java/cacerts")
	}
	if err := errors.Join(os.RemoveAll(r.at("/etc/ssl")), os.RemoveAll(r.at("/etc/ca-certificates"))); err != nil {
		t.Fatal(err)
	}
	r.link(t, "../pki/tls/certs", "/etc/ssl/certs")
	confs, _ := filepath.Glob(r.at("/etc/java-*"))
	for _, c := range confs {
		to := r.at("/etc/java/" + filepath.Base(c))
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.CopyFS(to, os.DirFS(c)), os.RemoveAll(c)); err != nil {
			t.Fatal(err)
		}
	}
	_ = filepath.WalkDir(r.at("/usr/lib/jvm"), func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.Type()&fs.ModeSymlink == 0 {
			return nil
		}
		to, _ := os.Readlink(name)
		inside := strings.TrimPrefix(name, string(r))
		if rest, ok := strings.CutPrefix(to, "/etc/java-"); ok {
			r.link(t, "/etc/java/java-"+rest, inside)
		} else if to == "/etc/ssl/certs/java/cacerts" {
			r.link(t, "/etc/pki/java/cacerts", inside)
		}
		return nil
	})
	// Where a library looks is compiled in. Fedora's names are no longer than Debian's.
	for pattern, names := range map[string][2]string{
		"libcrypto.so.3": {"/usr/lib/ssl", "/etc/pki/tls"},
		"libcurl.so.4":   {"/etc/ssl/certs/ca-certificates.crt\x00", "/etc/pki/tls/certs/ca-bundle.crt\x00\x00\x00"},
	} {
		libs, _ := filepath.Glob(r.at("/usr/lib/*/" + pattern))
		for _, lib := range libs {
			file, err := filepath.EvalSymlinks(lib)
			if err != nil {
				t.Fatal(err)
			}
			old := read(t, file)
			patched := bytes.ReplaceAll(old, []byte(names[0]), []byte(names[1]))
			if bytes.Equal(old, patched) {
				t.Fatalf("%s does not look at %q", lib, names[0])
			}
			if err := os.WriteFile(file, patched, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// compile makes the class of testdata/Fetch.java.
func compile(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("javac", "--release", "11", "-d", dir, "testdata/Fetch.java").CombinedOutput(); err != nil {
		t.Fatalf("javac: %v\n%s", err, out)
	}
	return read(t, filepath.Join(dir, "Fetch.class"))
}

func zipOf(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for name, content := range files {
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(0o755)
		f, err := w.CreateHeader(h)
		if err == nil {
			_, err = f.Write(content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// An authority issues certificates that nobody else does.
type authority struct {
	pem  []byte
	site tls.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	year := func(serial int64, name string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0), BasicConstraintsValid: true}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := year(1, "lambdad test authority")
	ca.IsCA, ca.KeyUsage, ca.SubjectKeyId = true, x509.KeyUsageCertSign, []byte{1, 2, 3, 4} // Python insists on key identifiers
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	must(err)
	siteKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	leaf := year(2, site)
	leaf.DNSNames, leaf.KeyUsage = []string{site}, x509.KeyUsageDigitalSignature
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	siteDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, siteKey.Public(), key)
	must(err)
	return &authority{pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		site: tls.Certificate{Certificate: [][]byte{siteDER}, PrivateKey: siteKey}}
}

// outside makes the network of this host: an uplink, and a web server and a name
// server behind it. Name servers on the host's loopback there are, too.
func outside(t *testing.T, ca *authority) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	address := func(s string) *netlink.Addr {
		a, err := netlink.ParseAddr(s)
		must(err)
		return a
	}
	lo, err := netlink.LinkByName("lo")
	must(err)
	must(netlink.LinkSetUp(lo))

	here, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(err)
	defer unix.Close(here)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	must(unix.Unshare(unix.CLONE_NEWNET))
	there, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(err)
	t.Cleanup(func() { unix.Close(there) })
	back := func() { must(unix.Setns(here, unix.CLONE_NEWNET)) }
	defer back()

	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wan0", PeerNamespace: netlink.NsFd(here)}))
	eth0, err := netlink.LinkByName("eth0")
	must(err)
	for _, a := range []string{router + "/24", public + "/32"} {
		must(netlink.AddrAdd(eth0, address(a)))
	}
	must(netlink.LinkSetUp(eth0))
	web, err := net.Listen("tcp4", ":443")
	must(err)
	srv := &http.Server{TLSConfig: &tls.Config{Certificates: []tls.Certificate{ca.site}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, page) })}
	t.Cleanup(func() { srv.Close() })
	go func() { _ = srv.ServeTLS(web, "", "") }()
	names, err := net.ListenPacket("udp4", ":53")
	must(err)
	t.Cleanup(func() { names.Close() })
	go answerNames(names)

	back()
	wan, err := netlink.LinkByName("wan0")
	must(err)
	must(netlink.AddrAdd(wan, address(hostAddr+"/24")))
	must(netlink.LinkSetUp(wan))
	must(netlink.RouteAdd(&netlink.Route{LinkIndex: wan.Attrs().Index, Gw: net.ParseIP(router)}))
	for _, a := range []string{"127.0.0.1:53", "127.0.0.53:53"} {
		c, err := net.ListenPacket("udp4", a)
		must(err)
		t.Cleanup(func() { c.Close() })
		go answerNames(c)
	}
}

// answerNames knows one name.
func answerNames(c net.PacketConn) {
	buf := make([]byte, 4096)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		var m dnsmessage.Message
		if err != nil || m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
		q := m.Questions[0]
		if known := strings.EqualFold(q.Name.String(), site+"."); !known {
			m.RCode = dnsmessage.RCodeNameError
		} else if q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
				Body: &dnsmessage.AResource{A: netip.MustParseAddr(public).As4()}}}
		}
		if b, err := m.Pack(); err == nil {
			_, _ = c.WriteTo(b, from)
		}
	}
}
