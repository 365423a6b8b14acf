package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// rieBinary names the variable with AWS's Runtime Interface Emulator; without it
// the emulator is left out.
const rieBinary = "LAMBDAD_BENCH_RIE"

// rieRole makes the program the one that becomes the emulator. Its value is the
// directory that is to be /opt, and the command, separated by newlines.
const rieRole = "LAMBDAD_BENCH_RIE_ROLE"

// An emulator is one running emulator: it serves one function.
type emulator struct {
	title string
	url   string
	cmd   *exec.Cmd
}

func (e *emulator) stop() error {
	e.cmd.Process.Kill() // what it started goes with its process namespace
	var exit *exec.ExitError
	if err := e.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return err
	}
	return nil
}

// emulators starts an emulator for each number of extensions until the end of the
// part, if there is one.
func (b *bench) emulators() ([]*target, error) {
	if os.Getenv(rieBinary) == "" {
		return nil, nil
	}
	var list []*target
	for _, n := range extensionCounts {
		e, err := startEmulator(b.dir, b.probe, n)
		if err != nil {
			return nil, fmt.Errorf("starting the emulator: %w", err)
		}
		b.later(e.stop)
		list = append(list, &target{name: e.title, url: e.url, pid: e.cmd.Process.Pid})
	}
	return list, nil
}

func startEmulator(dir, probe string, extensions int) (*emulator, error) {
	// One of its own for each: a program that runs cannot be written.
	opt, err := os.MkdirTemp(dir, "rie-opt-")
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Join(opt, "extensions"), 0o755); err != nil {
		return nil, err
	}
	program, err := os.ReadFile(probe)
	if err != nil {
		return nil, err
	}
	for i := range extensions {
		if err := os.WriteFile(filepath.Join(opt, "extensions", fmt.Sprintf("extension-%d", i+1)), program, 0o755); err != nil {
			return nil, err
		}
	}
	front, err := freePort()
	if err != nil {
		return nil, err
	}
	back, err := freePort()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	e := &emulator{title: emulatorTitle(extensions), url: "http://" + front + "/2015-03-31/functions/function/invocations"}
	e.cmd = exec.Command(self)
	e.cmd.Env = append(os.Environ(), rieRole+"="+strings.Join([]string{opt, os.Getenv(rieBinary),
		"--log-level", "error", "--runtime-interface-emulator-address", front, "--runtime-api-address", back, probe}, "\n"))
	e.cmd.Stdout, e.cmd.Stderr = io.Discard, io.Discard
	e.cmd.SysProcAttr = emulatorAttr()
	if err := e.cmd.Start(); err != nil {
		return nil, err
	}
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("tcp", front)
		if err == nil {
			conn.Close()
			return e, nil
		}
		if time.Since(begin) > startLimit {
			return nil, errors.Join(fmt.Errorf("it does not listen: %w", err), e.stop())
		}
	}
}

// coldEmulators measures first invocations, each of a new emulator.
func (b *bench) coldEmulators(ctx context.Context) ([]*cold, error) {
	if os.Getenv(rieBinary) == "" {
		return nil, nil
	}
	var list []*cold
	for _, extensions := range extensionCounts {
		x := &cold{name: emulatorTitle(extensions)}
		list = append(list, x)
		for round := range b.cold {
			e, err := startEmulator(b.dir, b.probe, extensions)
			if err != nil {
				return nil, err
			}
			c := newClient(nil)
			began := time.Now()
			a, took, err := c.invoke(ctx, e.url, fmt.Sprint(round), 0)
			c.close()
			if err := errors.Join(err, e.stop()); err != nil {
				return nil, err
			}
			x.process = append(x.process, time.Unix(0, a.Started).Sub(began.Round(0)))
			x.whole = append(x.whole, took)
		}
	}
	return list, nil
}

func emulatorTitle(extensions int) string { return "AWS's emulator, Go, " + plural(extensions) }

// freePort returns an address that was free a moment ago.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
