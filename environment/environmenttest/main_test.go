package environmenttest_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/lambdad/lambdad/sandbox/namespace"
	"github.com/lambdad/lambdad/sandbox/sandboxtest"
)

func TestMain(m *testing.M) {
	if sandboxtest.IsUnprivileged() {
		if _, ok := namespace.Rootless(); !ok {
			fmt.Fprintln(os.Stderr, namespace.Reexec("a test"))
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}
