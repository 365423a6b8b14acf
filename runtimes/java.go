package runtimes

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
)

// A jar is a published file that the Java client consists of, pinned.
type jar struct {
	path   string // in a Maven repository
	size   int64
	sha256 string
}

func (j jar) name() string { return path.Base(j.path) }

// jars are AWS's published runtime interface client and what it needs.
func jars() []jar {
	return []jar{
		{"com/amazonaws/aws-lambda-java-runtime-interface-client/2.10.1/aws-lambda-java-runtime-interface-client-2.10.1.jar", 1614973, "b0dd01f45b7258da0e32ade0bff950b12d0cf279ccebf416ad8c3795af21f1db"},
		{"com/amazonaws/aws-lambda-java-core/1.4.0/aws-lambda-java-core-1.4.0.jar", 10623, "575c24393cc1ad645e83e618956eabd89ffe8cc09efae2cb62bc6589154d68ed"},
		{"com/amazonaws/aws-lambda-java-serialization/1.2.0/aws-lambda-java-serialization-1.2.0.jar", 3726540, "1513c1f945a3213f916a4b2de1760c97b51d84d110f82bbbcf9cfac53d5651e7"},
		{"software/amazon/awssdk/utils-lite/2.34.0/utils-lite-2.34.0.jar", 8796, "efaf784f07ae526f0b5c89d71ef21cf16636131c47d44616e3df9bedc3f4f89a"},
		{"software/amazon/awssdk/annotations/2.34.0/annotations-2.34.0.jar", 13755, "fafdcb55f4e5af603f5219f4a2b080aa0decb562a7c0944f7a7eca82dd47e487"},
	}
}

// mavenCentral is where they are published.
const mavenCentral = "https://repo1.maven.org/maven2/"

// java is a JDK or JRE of the host with AWS's published client.
func java() *language {
	return &language{
		name: "java", title: "Java",
		releases: []string{"17", "21", "25"},
		id:       func(release string) string { return "java" + release },
		client:   embed.FS{},
		exact:    func(release string) []string { return below("/", "usr/lib/jvm/*-"+release+"*/bin/java") },
		likely:   javas,
		ask:      askJava,
		// A class file of a later release does not load, one of an earlier does.
		fits:     func(i interpreter, release string) bool { return newer(i.Release, release) },
		programs: func(interpreter) []string { return []string{"java"} },
		fetch:    fetchJars,
		prepare:  placeJars,
		warning:  "what has left Java since may be missed",
		install:  "Install that release or a later one there and try again.",
	}
}

// javas lists where some Java may be, the user's own choice first.
func javas() []string {
	var list []string
	if dir := os.Getenv("JAVA_HOME"); dir != "" {
		list = append(list, filepath.Join(dir, "bin", "java"))
	}
	list = append(list, inPath("java")...)
	for _, pattern := range []string{"usr/lib/jvm/*/bin/java", "opt/java/*/bin/java", "opt/hostedtoolcache/Java_*/*/*/bin/java", "usr/local/opt/openjdk*/bin/java", "opt/homebrew/opt/openjdk*/bin/java"} {
		list = append(list, below("/", pattern)...)
	}
	if home := home(); home != "" {
		list = append(list, below(home, ".sdkman/candidates/java/*/bin/java")...)
		list = append(list, below(home, ".local/share/mise/installs/java/*/bin/java")...)
	}
	return list
}

// askJava reads what every JDK says of itself beside its bin: starting a virtual
// machine takes too long.
func askJava(_ context.Context, path string) (interpreter, error) {
	program, err := filepath.EvalSymlinks(path)
	if err != nil {
		return interpreter{}, err
	}
	prefix := filepath.Dir(filepath.Dir(program))
	content, err := os.ReadFile(filepath.Join(prefix, "release"))
	if err != nil {
		return interpreter{}, fmt.Errorf("is not in a JDK, which has a file named release: %w", err)
	}
	version := ""
	for line := range strings.Lines(string(content)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "JAVA_VERSION="); ok {
			version = strings.Trim(v, `"`)
		}
	}
	v := numbers(version)
	if len(v) == 0 || v[0] < 9 {
		return interpreter{}, fmt.Errorf("is Java %q", version)
	}
	i := interpreter{Release: fmt.Sprint(v[0]), Version: version, Prefix: prefix, Path: program}
	if v[0] >= 16 {
		// AWS's client makes a FileDescriptor of the number of the log descriptor.
		i.Flags = "--add-opens=java.base/java.io=ALL-UNNAMED"
	}
	if v[0] >= 24 {
		// It has native parts, which newer releases warn about.
		i.Flags += " --enable-native-access=ALL-UNNAMED"
	}
	return i, nil
}

// fetchJars has every jar below dir/jars when it returns nil: from there, from the
// user's own Maven repository, or from Maven Central, verified wherever it is from.
func fetchJars(ctx context.Context, s *Set) error {
	s.fetching.Lock()
	defer s.fetching.Unlock()
	dir := filepath.Join(s.dir, "jars")
	for _, j := range jars() {
		to := filepath.Join(dir, j.name())
		if info, err := os.Stat(to); err == nil && info.Size() == j.size {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if local := filepath.Join(home(), ".m2", "repository", filepath.FromSlash(j.path)); home() != "" {
			if f, err := os.Open(local); err == nil {
				err := j.keep(to, f)
				if errors.Join(err, f.Close()) == nil {
					continue
				}
			}
		}
		if err := j.download(ctx, s.maven+j.path, to); err != nil {
			e := lambdad.Errorf("InvalidParameterValueException",
				"lambdad runs Java functions with AWS's published runtime interface client, and %s could not be had from Maven Central: %v. On a host without network put it into the server's directory runtimes/jars, or into ~/.m2 with Maven; lambdad runtime add java21 tries again.", j.name(), err)
			e.Err = err
			return e
		}
		s.log.InfoContext(ctx, "fetched a part of the Java runtime client", "jar", j.name(), "from", s.maven)
	}
	return nil
}

func (j jar) download(ctx context.Context, url, to string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return j.keep(to, resp.Body)
}

// keep writes what r has to a file if it is the jar, whole.
func (j jar) keep(to string, r io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(r, j.size+1))
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != j.sha256 {
		return fmt.Errorf("%s is not the published file: its SHA-256 is %x, not %s", j.name(), sum, j.sha256)
	}
	partial := fmt.Sprintf("%s.%d", to, os.Getpid())
	_ = os.Remove(partial) // of a process that died
	if err := writeFile(partial, b, 0o644); err != nil {
		return errors.Join(err, os.Remove(partial))
	}
	return os.Rename(partial, to)
}

// placeJars puts the jars beside the start script.
func placeJars(_ context.Context, s *Set, dir string, _ interpreter) error {
	lib := filepath.Join(dir, "lib")
	if err := os.Mkdir(lib, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(lib, 0o755); err != nil {
		return err
	}
	for _, j := range jars() {
		f, err := os.Open(filepath.Join(s.dir, "jars", j.name()))
		if err != nil {
			return err
		}
		err = j.keep(filepath.Join(lib, j.name()), f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}
