// Command ticker is an external extension that ticks every 10 ms and, asked by
// TICKER_FORK, forks a child at each tick. Each tick is a line with the wall clock
// in milliseconds in /tmp/ticks; a function that is handed {"ticks": true} could
// read it, and the tests read it through the log.
package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	if len(os.Args) > 1 {
		return // a child of a tick
	}
	base := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2020-01-01/extension"
	req, _ := http.NewRequest(http.MethodPost, base+"/register", strings.NewReader(`{"events":["INVOKE","SHUTDOWN"]}`))
	req.Header.Set("Lambda-Extension-Name", filepath.Base(os.Args[0]))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		fmt.Println("ticker: register:", err)
		os.Exit(1)
	}
	id := resp.Header.Get("Lambda-Extension-Identifier")
	_ = resp.Body.Close()

	fork := os.Getenv("TICKER_FORK") != ""
	go func() {
		for range time.Tick(10 * time.Millisecond) {
			if fork {
				_ = exec.Command("/proc/self/exe", "child").Run()
			}
			fmt.Printf("tick %d\n", time.Now().UnixMilli())
		}
	}()
	for {
		req, _ := http.NewRequest(http.MethodGet, base+"/event/next", nil)
		req.Header.Set("Lambda-Extension-Identifier", id)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			fmt.Println("ticker: next:", err)
			os.Exit(1)
		}
		buf := make([]byte, 1024)
		n, _ := resp.Body.Read(buf)
		_ = resp.Body.Close()
		if strings.Contains(string(buf[:n]), "SHUTDOWN") {
			os.Exit(0)
		}
	}
}
