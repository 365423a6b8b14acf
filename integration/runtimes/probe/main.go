// Command probe is a bootstrap that reports what a function of a provided.* runtime
// sees, and, as an extension named proxy, a runtime proxy.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

var api = "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API")

func main() {
	if filepath.Base(os.Args[0]) == "proxy" {
		proxy()
	}
	for {
		resp, err := http.Get(api + "/2018-06-01/runtime/invocation/next")
		if err != nil {
			log.Fatal(err)
		}
		event, err := io.ReadAll(resp.Body)
		if err != nil {
			log.Fatal(err)
		}
		_ = resp.Body.Close()
		id := resp.Header.Get("Lambda-Runtime-Aws-Request-Id")
		answer, err := json.Marshal(report(event, resp.Header))
		if err != nil {
			log.Fatal(err)
		}
		post, err := http.Post(api+"/2018-06-01/runtime/invocation/"+id+"/response", "application/json", bytes.NewReader(answer))
		if err != nil {
			log.Fatal(err)
		}
		_ = post.Body.Close()
	}
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func report(event json.RawMessage, h http.Header) map[string]any {
	fmt.Println("probe: a line")
	env := map[string]string{}
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	cwd, _ := os.Getwd()
	writable := map[string]bool{}
	for _, dir := range []string{"/var/task", "/opt", "/var/runtime", "/tmp"} {
		writable[dir] = os.WriteFile(dir+"/probe-file", nil, 0o600) == nil
	}
	var client struct {
		Custom map[string]string `json:"custom"`
	}
	_ = json.Unmarshal([]byte(h.Get("Lambda-Runtime-Client-Context")), &client)
	deadline, _ := strconv.ParseInt(h.Get("Lambda-Runtime-Deadline-Ms"), 10, 64)
	return map[string]any{
		"env": env, "args": os.Args, "cwd": cwd, "status": read("/proc/self/status"), "limits": read("/proc/self/limits"), "meminfo": read("/proc/meminfo"),
		"writable": writable, "event": event, "remainingMs": deadline - time.Now().UnixMilli(),
		"context": map[string]any{
			"name": env["AWS_LAMBDA_FUNCTION_NAME"], "version": env["AWS_LAMBDA_FUNCTION_VERSION"], "arn": h.Get("Lambda-Runtime-Invoked-Function-Arn"),
			"memory": env["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"], "requestId": h.Get("Lambda-Runtime-Aws-Request-Id"),
			"group": env["AWS_LAMBDA_LOG_GROUP_NAME"], "stream": env["AWS_LAMBDA_LOG_STREAM_NAME"], "custom": client.Custom,
		},
	}
}

// proxy is an external extension that stands between the runtime and the Runtime
// API: a wrapper points the runtime at it. Events come out wrapped.
func proxy() {
	l, err := net.Listen("tcp", "127.0.0.1:9009")
	if err != nil {
		log.Fatal(err)
	}
	register, err := http.NewRequest(http.MethodPost, api+"/2020-01-01/extension/register", strings.NewReader(`{"events":[]}`))
	if err != nil {
		log.Fatal(err)
	}
	register.Header.Set("Lambda-Extension-Name", "proxy")
	resp, err := http.DefaultClient.Do(register)
	if err != nil {
		log.Fatal(err)
	}
	target, err := url.Parse(api)
	if err != nil {
		log.Fatal(err)
	}
	reverse := httputil.NewSingleHostReverseProxy(target)
	reverse.ModifyResponse = func(r *http.Response) error {
		if !strings.HasSuffix(r.Request.URL.Path, "/invocation/next") {
			return nil
		}
		event, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		event = fmt.Appendf(nil, `{"proxied":%s}`, event)
		r.Body = io.NopCloser(bytes.NewReader(event))
		r.ContentLength = int64(len(event))
		r.Header.Set("Content-Length", strconv.Itoa(len(event)))
		return nil
	}
	go func() { log.Fatal(http.Serve(l, reverse)) }()
	next, err := http.NewRequest(http.MethodGet, api+"/2020-01-01/extension/event/next", nil)
	if err != nil {
		log.Fatal(err)
	}
	next.Header.Set("Lambda-Extension-Identifier", resp.Header.Get("Lambda-Extension-Identifier"))
	r, err := http.DefaultClient.Do(next) // it asked for no events
	log.Fatal(r, err)
}
