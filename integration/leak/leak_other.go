//go:build !linux

package leak

import (
	"fmt"
	"runtime"
)

// Take needs Linux.
func Take(Scope) (Count, error) {
	return nil, fmt.Errorf("count what is left on the host: needs Linux, not %s", runtime.GOOS)
}
