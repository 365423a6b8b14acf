package archive

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// elf is the beginning of a program for a machine.
func elf(machine uint16) string {
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(b[18:], machine)
	return string(b)
}

func TestLayerWarnings(t *testing.T) {
	tests := []struct {
		name  string
		arch  []string
		items []item
		want  [][]string // words of each warning, in order
	}{
		{"good ones", []string{"x86_64"}, []item{
			folder("extensions/", 0o755), file("extensions/go", elf(62), 0o755), file("extensions/sh", "#!/bin/sh\n", 0o755),
			file("extensions/env", "#! /usr/bin/env python3\n", 0o755), file("extensions/py", "#!/var/lang/bin/python3\n", 0o755), file("extensions/own", "#!/opt/bin/tool -x\n", 0o755),
			link("extensions/link", "/opt/bin/tool"), file("extensions/lib/readme.md", "x", 0o644), file("README.md", "x", 0o644),
			file("python/extensions/x", "#!/bin/sh\n", 0o644),
		}, nil},
		{"README", nil, []item{file("extensions/README.md", "# Hello\n", 0o644)}, [][]string{{"extensions/README.md:", "README", "Extension.LaunchError", "move it out"}}},
		{"no program", nil, []item{file("extensions/config.json", "{}", 0o755), file("extensions/empty", "", 0o755)},
			[][]string{{"extensions/config.json:", "neither", "#!"}, {"extensions/empty:", "neither"}}},
		{"no execute bit", nil, []item{file("extensions/x", "#!/bin/sh\n", 0o644)}, [][]string{{"extensions/x:", "mode 0644", "permission denied", "chmod 755"}}},
		{"executable for its owner only", nil, []item{file("extensions/x", "#!/bin/sh\n", 0o744)}, [][]string{{"mode 0744", "everybody"}}},
		{"made on Windows", nil, []item{{name: "extensions/x", body: elf(62), dos: true}}, [][]string{{"extensions/x:", "no Unix modes", "Windows", "external_attr"}}},
		{"CRLF", nil, []item{file("extensions/x", "#!/bin/sh\r\necho\r\n", 0o755)}, [][]string{{"extensions/x:", "CR LF", `"/bin/sh"`, "dos2unix"}}},
		{"CRLF and no execute bit", nil, []item{file("extensions/x", "#!/bin/sh\r\n", 0o644)}, [][]string{{"mode 0644"}, {"CR LF"}}},
		{"interpreter elsewhere", nil, []item{file("extensions/a", "#!/usr/local/bin/node\n", 0o755), file("extensions/b", "#!/Users/me/python3\n", 0o755), file("extensions/c", "#!/opt/homebrew/bin/node\n", 0o755), file("extensions/d", "#!node\n", 0o755), file("extensions/e", "#!\n", 0o755)},
			[][]string{{"/usr/local/bin/node", "does not exist"}, {"/Users/me/python3"}, {"/opt/homebrew/bin/node"}, {"node", "absolute"}, {"no interpreter"}}},
		{"other architecture", []string{"x86_64"}, []item{file("extensions/x", elf(183), 0o755)}, [][]string{{"extensions/x:", "arm64", "for x86_64", "GOARCH=amd64"}}},
		{"one of two architectures", []string{"x86_64", "arm64"}, []item{file("extensions/x", elf(62), 0o755)}, [][]string{{"for x86_64", "arm64 as well", "one layer for each"}}},
		{"no architecture named", nil, []item{file("extensions/x", elf(183), 0o755), file("extensions/y", elf(3), 0o755), file("extensions/z", "\x7fELF", 0o755)},
			[][]string{{"extensions/y:", "i386"}, {"extensions/z:", "cut off"}}},
		{"other system", nil, []item{file("extensions/x", "\xcf\xfa\xed\xfe", 0o755), file("extensions/y.exe", "MZ\x90", 0o755)}, [][]string{{"macOS", "GOOS=linux"}, {"Windows"}}},
		{"folder zipped", nil, []item{folder("mylayer/", 0o755), file("mylayer/extensions/x", "#!/bin/sh\n", 0o755), file("mylayer/lib/y", "z", 0o644)}, [][]string{{"mylayer/extensions/x:", "never be started", "cd mylayer"}}},
		{"folder beside others", nil, []item{file("mylayer/extensions/x", "#!/bin/sh\n", 0o755), file("lib/y", "z", 0o644)}, nil},
		{"bootstrap", []string{"arm64"}, []item{file("bootstrap", elf(62), 0o755)}, [][]string{{"bootstrap:", "x86_64"}}},
		{"the last of duplicates counts", nil, []item{file("extensions/x", "text", 0o644), file("extensions/x", "#!/bin/sh\n", 0o755)}, nil},
		{"strange name", nil, []item{file("extensions/a\nb", "", 0o755)}, [][]string{{`"extensions/a\nb":`}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := makeZip(t, test.items...)
			info, err := InspectLayer(bytes.NewReader(b), int64(len(b)), test.arch)
			if err != nil {
				t.Fatal(err)
			}
			if len(info.Warnings) != len(test.want) {
				t.Fatalf("got %d warnings, want %d:\n%s", len(info.Warnings), len(test.want), strings.Join(info.Warnings, "\n"))
			}
			for i, words := range test.want {
				for _, word := range words {
					if !strings.Contains(info.Warnings[i], word) {
						t.Errorf("%q lacks %q", info.Warnings[i], word)
					}
				}
			}
		})
	}
}

func TestManyWarnings(t *testing.T) {
	var items []item
	for i := range 50 {
		items = append(items, file(fmt.Sprintf("extensions/x%02d", i), "text", 0o644))
	}
	b := makeZip(t, items...)
	info, err := InspectLayer(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil || len(info.Warnings) != maxWarnings+1 || !strings.Contains(info.Warnings[maxWarnings], "30 more") {
		t.Errorf("%d warnings, %v: %v", len(info.Warnings), err, info.Warnings)
	}
}

func TestFunctionWarnings(t *testing.T) {
	b := makeZip(t, file("bootstrap", "#!/bin/sh\r\n", 0o644), file("extensions/README", "not looked at in a function", 0o644))
	info, err := Inspect(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Warnings) != 2 || !slices.ContainsFunc(info.Warnings, func(w string) bool { return strings.Contains(w, "bootstrap: mode 0644") }) {
		t.Errorf("%v", info.Warnings)
	}
}
