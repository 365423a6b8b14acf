package namespace

import _ "embed"

// initProgram is the resident init, built from init/init.c.
//
//go:embed init/init_linux_amd64
var initProgram []byte
