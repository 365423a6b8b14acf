//go:build !linux

package hostile_test

// hostInotify is for Linux, which the tests need.
func hostInotify() error { return nil }
