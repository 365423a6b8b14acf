package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// A connection that was opened and left alone serves a request however late; one
// that begins a request has to go on.
func TestPatient(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const limit = 100 * time.Millisecond
	server := &http.Server{ReadHeaderTimeout: limit, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(patient{l.(*net.TCPListener)}) }()
	defer func() {
		if err := errors.Join(server.Close(), <-served); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	slow, late := dial(), dial()
	if _, err := io.WriteString(slow, "POST / HTTP/1.1\r\nHo"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * limit)
	answers := bufio.NewReader(late)
	for range 2 { // the second on a connection that is in use
		if _, err := io.WriteString(late, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatalf("a connection that was left alone is not served: %v", err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK || string(body) != "hello" {
			t.Fatalf("%d %q: %v", resp.StatusCode, body, err)
		}
		time.Sleep(2 * limit)
	}
	// The other was ended, or answered with a refusal and ended.
	_ = slow.SetReadDeadline(time.Now().Add(10 * time.Second))
	var waited net.Error
	if _, err := io.ReadAll(slow); errors.As(err, &waited) && waited.Timeout() {
		t.Fatal("a request that does not go on is waited for")
	}
}
