package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// leastCode writes a byte to the file that its second argument names, if there is one,
// and exits, with 0 if that succeeded. It may stand anywhere.
var leastCode = map[string][]byte{
	"amd64": {
		0x48, 0x8b, 0x7c, 0x24, 0x18, // mov rdi, [rsp+24]
		0x48, 0x85, 0xff, // test rdi, rdi
		0x74, 0x23, // jz exit
		0xbe, 0x41, 0x00, 0x00, 0x00, // mov esi, O_WRONLY|O_CREAT
		0xba, 0x80, 0x01, 0x00, 0x00, // mov edx, 0600
		0xb8, 0x02, 0x00, 0x00, 0x00, // mov eax, open
		0x0f, 0x05, // syscall
		0x89, 0xc7, // mov edi, eax
		0x48, 0x89, 0xe6, // mov rsi, rsp
		0xba, 0x01, 0x00, 0x00, 0x00, // mov edx, 1
		0x89, 0xd0, // mov eax, write
		0x0f, 0x05, // syscall
		0xff, 0xc8, // dec eax
		0x89, 0xc7, // mov edi, eax
		0xb8, 0xe7, 0x00, 0x00, 0x00, // exit: mov eax, exit_group
		0x0f, 0x05, // syscall
	},
}

// writeLeast writes the least program that there is, so that what is measured of a
// sandbox is the sandbox.
func writeLeast(path string) error {
	code := leastCode[runtime.GOARCH]
	if code == nil {
		return fmt.Errorf("the benchmark of sandboxes has no program for %s: it belongs into leastCode", runtime.GOARCH)
	}
	const base, headers = 0x400000, 64 + 56
	size := uint64(headers + len(code))
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	for _, v := range []any{
		uint16(2), uint16(62), uint32(1), uint64(base + headers), uint64(64), uint64(0), uint32(0), // an executable, of x86-64
		uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0), // with one segment:
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x1000), // all of it, to read and execute
	} {
		_ = binary.Write(&b, binary.LittleEndian, v) // a buffer takes all
	}
	b.Write(code)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o755)
}
