//go:build !linux

package image

import "errors"

func makeWhiteout(int, string) error { return errors.ErrUnsupported }

func setOpaque(int) error { return errors.ErrUnsupported }

func setXattr(int, string, string, string) error { return errors.ErrUnsupported }
