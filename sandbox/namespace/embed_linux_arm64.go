package namespace

import _ "embed"

// initProgram is the resident init, built from init/init.c.
//
//go:embed init/init_linux_arm64
var initProgram []byte
