package runtimeapi

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// BenchmarkInvocation is next and response over TCP, with a client that costs
// next to nothing.
func BenchmarkInvocation(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	a := New(cfg)
	go a.Serve(l)
	defer a.Close()
	go benchRuntime(l.Addr().String())
	answered := make(chan struct{}, 1)
	inv := &Invocation{
		RequestID: "3da1f2dc-3222-475e-9205-e2e6c6318895", ARN: "arn:aws:lambda:us-east-1:123456789012:function:hello",
		TraceID: "Root=1-5f35ae12-0c0fec141ab77a00bc047aa2;Parent=2be948a625588e32;Sampled=0", Payload: []byte(`{"key":"value"}`), Deadline: time.Now(),
		Answer: func(Answer) { answered <- struct{}{} },
	}
	b.ReportAllocs()
	for b.Loop() {
		for !a.Ready() {
			<-a.Changed()
		}
		a.Release(inv)
		<-answered
	}
}

// BenchmarkFloor is the same traffic with handlers that do nothing else.
func BenchmarkFloor(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	events, answered, ready := make(chan []byte), make(chan struct{}, 1), make(chan struct{}, 1)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			ready <- struct{}{}
			w.Write(<-events)
			return
		}
		io.ReadAll(r.Body)
		answered <- struct{}{}
		w.WriteHeader(202)
	})}
	go s.Serve(l)
	defer s.Close()
	go benchRuntime(l.Addr().String())
	b.ReportAllocs()
	for b.Loop() {
		<-ready
		events <- []byte(`{"key":"value"}`)
		<-answered
	}
}

// benchRuntime asks for events and answers them until the connection ends.
func benchRuntime(addr string) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer c.Close()
	in := bufio.NewReader(c)
	read := func() bool {
		length := 0
		for {
			line, err := in.ReadSlice('\n')
			if err != nil {
				return false
			}
			if len(line) <= 2 {
				break
			}
			fmt.Sscanf(string(line), "Content-Length: %d", &length)
		}
		_, err := in.Discard(length)
		return err == nil
	}
	get := []byte("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: 127.0.0.1:9001\r\nUser-Agent: bench\r\n\r\n")
	post := []byte("POST /2018-06-01/runtime/invocation/3da1f2dc-3222-475e-9205-e2e6c6318895/response HTTP/1.1\r\nHost: 127.0.0.1:9001\r\nUser-Agent: bench\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"key\":\"value\"}")
	for {
		if _, err := c.Write(get); err != nil || !read() {
			return
		}
		if _, err := c.Write(post); err != nil || !read() {
			return
		}
	}
}
