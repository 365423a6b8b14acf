package archive

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"sort"
	"strings"
)

// maxWarnings is how many warnings are given one by one.
const maxWarnings = 20

// startedInLayer says which files of a layer are started as programs: those
// directly in extensions/, whatever they are, and a custom runtime's bootstrap.
func startedInLayer(p string) bool {
	return p == "bootstrap" || strings.HasPrefix(p, "extensions/") && strings.Count(p, "/") == 1
}

// nestedExtension says whether a path looks like an extension of a layer whose
// folder was zipped instead of its content.
func nestedExtension(p string) bool {
	parts := strings.Split(p, "/")
	return len(parts) == 3 && parts[1] == "extensions"
}

// warnings looks at what will be started. heads are the first bytes of files and
// the targets of links, by entry.
func warnings(p *plan, heads [][]byte, architectures []string, wanted func(string) bool) []string {
	var list []string
	indexes := slices.Concat(p.files, p.links)
	sort.Slice(indexes, func(i, j int) bool { return p.all[indexes[i]].path < p.all[indexes[j]].path })
	for _, i := range indexes {
		e := &p.all[i]
		if !wanted(e.path) || e.link() {
			continue // what a link points at may be in another layer
		}
		list = append(list, warnFile(e, heads[i], architectures)...)
	}
	if wanted("extensions/x") && len(list) == 0 {
		if w := warnFolder(p, indexes, heads); w != "" {
			list = append(list, w)
		}
	}
	if n := len(list) - maxWarnings; n > 0 {
		list = append(list[:maxWarnings], fmt.Sprintf("%d more warnings of this kind", n))
	}
	return list
}

// warnFile says why a program of an archive will not start. One cause hides
// others only where the others would be nonsense.
func warnFile(e *entry, head []byte, architectures []string) []string {
	var list []string
	warn := func(format string, args ...any) {
		list = append(list, show(e.path)+": "+fmt.Sprintf(format, args...))
	}
	extension := strings.HasPrefix(e.path, "extensions/")
	what, fails := "bootstrap", "the function fails with Runtime.InvalidEntrypoint or Runtime.ExitError"
	if extension {
		what, fails = "extension", "every function with this layer fails with Extension.LaunchError"
	}
	format := programFormat(head)
	if format == "" && extension {
		readme := ""
		if strings.HasPrefix(strings.ToLower(base(e.path)), "readme") {
			readme = "a README is no exception: "
		}
		warn("%severy file in extensions/ is started as an extension, and this one is neither a Linux program nor a script with a #! line, so %s; move it out of extensions/, or give the script a #! line", readme, fails)
		return list
	}
	if format == "" {
		warn("neither a Linux program nor a script with a #! line, so %s; build it for Linux, or give the script a #! line", fails)
		return list
	}
	if e.mode&0o111 != 0o111 {
		if e.modeless {
			warn("the zip holds no Unix modes (it was made on Windows or by a library that leaves them out), so the %s has no execute bit and %s; zip on Linux or macOS, or set external_attr to 0o755<<16 and the creator to Unix where the zip is made", what, fails)
		} else {
			warn("mode %04o lacks an execute bit for everybody, so %s (permission denied); run chmod 755 on it before zipping", e.mode.Perm(), fails)
		}
	}
	switch format {
	case "script":
		warnScript(head, warn, fails)
	case "ELF":
		warnMachine(head, architectures, warn, fails)
	default:
		warn("is a %s program, so %s (exec format error); build it for Linux, with Go: GOOS=linux", format, fails)
	}
	return list
}

// programFormat tells what a file begins like: "script", "ELF", the name of
// another system, or "".
func programFormat(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte("#!")):
		return "script"
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return "ELF"
	case bytes.HasPrefix(head, []byte("MZ")):
		return "Windows"
	case bytes.HasPrefix(head, []byte("\xcf\xfa\xed\xfe")), bytes.HasPrefix(head, []byte("\xca\xfe\xba\xbe\x00\x00\x00\x02")):
		return "macOS"
	}
	return ""
}

func warnScript(head []byte, warn func(string, ...any), fails string) {
	line, _, _ := bytes.Cut(head[2:], []byte("\n"))
	if bytes.HasSuffix(line, []byte("\r")) {
		warn("the #! line ends with CR LF, so the system looks for %q with a carriage return and %s; convert the file to LF line ends (dos2unix, or sed -i 's/\\r$//')", string(bytes.TrimSpace(line)), fails)
	}
	fields := strings.Fields(string(line))
	if len(fields) == 0 {
		warn("the #! line names no interpreter, so %s; write for example #!/bin/sh", fails)
		return
	}
	interpreter := fields[0]
	if !path.IsAbs(interpreter) {
		warn("the #! line names %s, which is not an absolute path, so %s; write the whole path, or /usr/bin/env and the name", show(interpreter), fails)
		return
	}
	for _, dir := range []string{"/bin/", "/usr/bin/", "/sbin/", "/usr/sbin/", "/opt/", "/var/lang/", "/var/runtime/", "/var/task/"} {
		if strings.HasPrefix(interpreter, dir) && !strings.HasPrefix(interpreter, "/opt/homebrew/") {
			return
		}
	}
	warn("the #! line names %s, which does not exist in an execution environment, so %s; use /usr/bin/env and the name, an interpreter of /var/lang/bin, or one that a layer brings below /opt", show(interpreter), fails)
}

// machines are the values of e_machine that AWS's architectures have.
var machines = map[uint16]string{62: "x86_64", 183: "arm64", 3: "i386", 40: "arm (32 bit)", 243: "riscv64"}

func warnMachine(head []byte, architectures []string, warn func(string, ...any), fails string) {
	if len(head) < 20 {
		warn("the ELF header is cut off, so %s; build the program again", fails)
		return
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if head[5] == 2 {
		order = binary.BigEndian
	}
	machine, ok := machines[order.Uint16(head[18:])]
	if !ok {
		machine = fmt.Sprintf("ELF machine %d", order.Uint16(head[18:]))
	}
	if len(architectures) == 0 {
		architectures = []string{"x86_64", "arm64"}
		if slices.Contains(architectures, machine) {
			return // whichever was meant
		}
	}
	if !slices.Contains(architectures, machine) {
		warn("is a program for %s, but the archive is for %s, so %s (exec format error); build it for that architecture, with Go: GOARCH=%s", machine, strings.Join(architectures, " and "), fails, goarch(architectures[0]))
		return
	}
	for _, other := range architectures {
		if other != machine {
			warn("is a program for %s, but the archive says that it is for %s as well, where %s (exec format error); publish one layer for each architecture", machine, other, fails)
			return
		}
	}
}

func goarch(architecture string) string {
	if architecture == "x86_64" {
		return "amd64"
	}
	return architecture
}

// warnFolder finds extensions one level too deep: mylayer/extensions/x.
func warnFolder(p *plan, indexes []int, heads [][]byte) string {
	found, folder := "", ""
	for _, i := range indexes {
		e := &p.all[i]
		top, _, ok := strings.Cut(e.path, "/")
		if !ok || folder != "" && top != folder {
			return "" // not one folder with everything in it
		}
		folder = top
		if found == "" && !e.link() && nestedExtension(e.path) && programFormat(heads[i]) != "" {
			found = e.path
		}
	}
	switch folder {
	case "python", "nodejs", "java", "ruby", "lib", "bin", "dotnet":
		return "" // folders that runtimes look into; the name inside means nothing
	}
	if found == "" {
		return ""
	}
	return fmt.Sprintf("%s: looks like an extension, but everything in the archive is inside %s/ and extensions are looked for in extensions/ at the top, so it will never be started; zip the content of the folder: cd %s && zip -r ../layer.zip .", show(found), folder, show(folder))
}

// show prints a name in a warning: as it is unless it has strange characters.
func show(name string) string {
	if !fs.ValidPath(strings.TrimPrefix(name, "/")) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }) {
		return quote(name)
	}
	return name
}
