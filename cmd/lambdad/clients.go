package main

import (
	"net"
	"time"
)

// A client that has many requests at a time opens connections for some that another
// connection then serves. Such a connection has sent nothing yet, and lies in the
// client's pool like any other. net/http begins the limit of the headers when it is
// accepted, and would close it then, just when the client may use it: a request that
// must not be sent twice, as an invocation, would fail. So the limit begins with the
// first byte.

// patient are connections of which each may send its first byte as late as it likes.
type patient struct{ *net.TCPListener }

func (l patient) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	return &untouched{TCPConn: c}, nil
}

// untouched is a connection whose deadline for reading is held back until something
// was read. Only its server reads and sets deadlines, one after the other.
type untouched struct {
	*net.TCPConn
	touched bool
	limit   time.Duration // from the first byte on; 0: none
}

func (c *untouched) SetReadDeadline(t time.Time) error {
	if c.touched {
		return c.TCPConn.SetReadDeadline(t)
	}
	if c.limit = 0; !t.IsZero() {
		c.limit = max(time.Until(t), 1)
	}
	return nil
}

func (c *untouched) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	if !c.touched && n > 0 {
		c.touched = true
		if c.limit > 0 {
			_ = c.TCPConn.SetReadDeadline(time.Now().Add(c.limit)) // fails only where reading does
		}
	}
	return n, err
}
