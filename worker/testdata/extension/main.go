// The extension of the root test's function: it takes every event and exits at
// its shutdown.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	base := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2020-01-01/extension/"
	id, _ := call("POST", base+"register", "Lambda-Extension-Name", filepath.Base(os.Args[0]), `{"events":["INVOKE","SHUTDOWN"]}`)
	for {
		_, event := call("GET", base+"event/next", "Lambda-Extension-Identifier", id, "")
		if strings.Contains(event, `"SHUTDOWN"`) {
			fmt.Println("bye")
			return
		}
	}
}

func call(method, url, header, value, body string) (id, text string) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err == nil {
		req.Header.Set(header, value)
		var r *http.Response
		if r, err = http.DefaultClient.Do(req); err == nil {
			defer r.Body.Close()
			var b []byte
			if b, err = io.ReadAll(r.Body); err == nil && r.StatusCode == 200 {
				return r.Header.Get("Lambda-Extension-Identifier"), string(b)
			}
			err = fmt.Errorf("%s: %s %v", r.Status, b, err)
		}
	}
	fmt.Println(method, url, err)
	os.Exit(1)
	return
}
