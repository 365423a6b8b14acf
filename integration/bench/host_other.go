//go:build !linux

package main

import (
	"errors"
	"time"
)

func processorOf(int) (time.Duration, error) { return 0, errors.ErrUnsupported }

func idle() float64 { return 1 }

func bareSandbox(string) error { return errors.ErrUnsupported }
