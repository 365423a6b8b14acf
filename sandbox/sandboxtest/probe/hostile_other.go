//go:build !linux || !(amd64 || arm64)

package main

import (
	"errors"
	"fmt"
)

func hostile(bool) { fmt.Println("done") }

func children(int) (int, error) { return 0, errors.ErrUnsupported }

func datagramFrom(string, string) error { return errors.ErrUnsupported }
