//go:build !linux

package archive

import (
	"os"
	"time"
)

// setTime sets the modification time of a file in a directory.
func setTime(_ *os.File, in *os.Root, name string, t time.Time) error {
	return in.Chtimes(name, t, t)
}
