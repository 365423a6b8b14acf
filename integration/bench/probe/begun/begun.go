// Package begun notes when a program began. It needs little, so that it is
// initialised before most of what the program is made of.
package begun

import "time"

// At is when this package was initialised.
var At = time.Now()
