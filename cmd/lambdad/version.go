package main

import (
	"runtime"
	"runtime/debug"
)

// versionText is the version with what built it. A binary built by go install
// carries its module version instead of the linker's word.
func versionText() string {
	v := version
	if v == "devel" {
		if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
			v = info.Main.Version
		}
	}
	return v + " " + runtime.GOOS + "/" + runtime.GOARCH + " " + runtime.Version()
}
