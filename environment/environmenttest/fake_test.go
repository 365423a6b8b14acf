package environmenttest_test

import (
	"testing"
	"testing/synctest"

	"github.com/lambdad/lambdad/environment/environmenttest"
	"github.com/lambdad/lambdad/sandbox"
	"github.com/lambdad/lambdad/sandbox/fake"
)

func TestFake(t *testing.T) {
	environmenttest.Run(t, environmenttest.Rig{
		Around: synctest.Test,
		Driver: func(t *testing.T) sandbox.Driver {
			d := &fake.Driver{Exec: environmenttest.Program}
			t.Cleanup(func() {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			})
			return d
		},
	})
}
