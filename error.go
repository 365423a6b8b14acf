package lambdad

import (
	"errors"
	"fmt"
)

// An Error is a failure that AWS has a name for. It is made where the cause is
// known and turned into wire form only at the edge (package aws).
type Error struct {
	// Code is AWS's exception name, such as ResourceNotFoundException.
	Code string
	// Message is shown to the caller as it is.
	Message string
	// Reason is the Reason member of a TooManyRequestsException.
	Reason string
	// NoType leaves out the Type member where the recordings lack it.
	NoType bool
	// Err is the cause, for the log only.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Code + ": " + e.Message + ": " + e.Err.Error()
	}
	return e.Code + ": " + e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error with a formatted message.
func Errorf(code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// ErrorCode returns the AWS code in err's chain, or "".
func ErrorCode(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// Throttled makes the error of a caller that must come back later. Reason is one
// of the values of control-plane.md section 1.5.
func Throttled(reason string) *Error {
	return &Error{Code: "TooManyRequestsException", Message: "Rate Exceeded.", Reason: reason}
}
