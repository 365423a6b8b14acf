// The bootstrap of the root test's function: it answers with its event, which may
// be a number of milliseconds to wait.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

func main() {
	base := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/invocation/"
	for {
		r, err := http.Get(base + "next")
		if err != nil {
			fmt.Println("next:", err)
			os.Exit(1)
		}
		event, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil {
			fmt.Println("next:", err)
			os.Exit(1)
		}
		if ms, err := strconv.Atoi(string(event)); err == nil {
			time.Sleep(time.Duration(ms) * time.Millisecond)
		}
		r, err = http.Post(base+r.Header.Get("Lambda-Runtime-Aws-Request-Id")+"/response", "application/json", bytes.NewReader(event))
		if err != nil {
			fmt.Println("response:", err)
			os.Exit(1)
		}
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
}
