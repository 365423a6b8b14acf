//go:build !linux

package main

import "syscall"

func emulatorAttr() *syscall.SysProcAttr { return nil }

func riemain() {}
