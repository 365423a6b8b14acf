package archive

import (
	"os"
	"strings"
)

// bootID names this start of the machine, "" if that is unknown.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
