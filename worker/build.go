package worker

import (
	"errors"

	"github.com/lambdad/lambdad/sandbox"
)

// errEnded says that an environment ended before it took an invocation.
var errEnded = errors.New("the environment has ended")

type usageFunc = func() (sandbox.Usage, error)

type Runtimes interface{}
