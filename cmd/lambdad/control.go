package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// The control socket answers questions about a running server that AWS has no
// API for. It is a unix socket in the data directory: who may read that directory
// may ask, and no sandbox can.

const controlSocket = "control.sock"

// askLimit is how long a question may take. Who asks may be one of a thousand on a
// host that has no moment to spare.
const askLimit = 30 * time.Second

// controlAddress names the socket. The kernel allows 107 bytes; a longer path is
// reached through the descriptor of its directory.
func controlAddress(dir *os.File) string {
	path := filepath.Join(dir.Name(), controlSocket)
	if len(path) > 100 && runtime.GOOS == "linux" {
		return filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), controlSocket)
	}
	return path
}

// controlAnswers are what a server answers on its control socket, by path; one that
// takes orders has POST before it.
type controlAnswers map[string]http.HandlerFunc

// answerJSON answers with what f returns.
func answerJSON[T any](f func() T) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(f()) // the reader left
	}
}

// serveControl answers on the control socket of dir until ctx ends.
func serveControl(ctx context.Context, dataDir string, answers controlAnswers) error {
	dir, err := os.Open(dataDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	address := controlAddress(dir)
	if err := os.Remove(address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the control socket of an earlier server: %w", err)
	}
	listener, err := net.Listen("unix", address)
	if err != nil {
		return fmt.Errorf("opening the control socket: %w", err)
	}
	mux := http.NewServeMux()
	for path, answer := range answers {
		if !strings.Contains(path, " ") {
			path = "GET " + path
		}
		mux.HandleFunc(path, answer)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: askLimit}
	stopped := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stopped()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// askControl gets a path from the server of a data directory into v.
func askControl(ctx context.Context, dataDir, path string, v any) error {
	dir, err := os.Open(dataDir)
	if err != nil {
		return fmt.Errorf("no server has used the data directory %s: %w", dataDir, err)
	}
	defer dir.Close()
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", controlAddress(dir))
		},
		DisableKeepAlives: true,
	}}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://control"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no server is running on %s (start one with: lambdad serve --data-dir %s): %w", dataDir, dataDir, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the server on %s answered %s", dataDir, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(v)
}
