package floor

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// Both floors pass events to their runtimes and their answers back, one each.
func TestFloor(t *testing.T) {
	program := filepath.Join(t.TempDir(), "bootstrap")
	if out, err := exec.Command("go", "build", "-o", program, "../bench/probe").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, kind := range []Kind{NetHTTP, Loop} {
		t.Run(string(kind), func(t *testing.T) { testFloor(t, kind, program) })
	}
}

func testFloor(t *testing.T, kind Kind, program string) {
	f, err := Start(kind, Runtime{Path: program}, 3)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for c := range 8 {
		wg.Go(func() {
			for i := range 50 {
				event := fmt.Sprintf(`{"echo":"%d.%d"}`, c, i)
				resp, err := http.Post(f.URL, "application/json", strings.NewReader(event))
				if err != nil {
					t.Error(err)
					return
				}
				answer, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != 200 || !strings.Contains(string(answer), fmt.Sprintf(`"%d.%d"`, c, i)) {
					t.Errorf("%s: %d %s, %v", event, resp.StatusCode, answer, err)
				}
			}
		})
	}
	wg.Wait()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := http.Get(f.URL); err == nil {
		t.Fatal("the daemon still listens")
	}
}
