//go:build !linux || !(amd64 || arm64)

package main

import "fmt"

func hostile(bool) { fmt.Println("done") }
