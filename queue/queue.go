// Package queue is the contract of the durable queue: at least once, leased to
// one receiver, back after its delay unless acknowledged.
package queue

import (
	"context"
	"errors"
	"time"
)

// ErrFull says that the medium has no room.
var ErrFull = errors.New("queue: no space left")

// ErrTooLarge says that a message is over MaxMessage.
var ErrTooLarge = errors.New("queue: message too large")

// MaxMessage is the largest body in bytes: an asynchronous event of 1 MB, and
// synchronous ones up to 6 MB, with room for what travels beside them.
const MaxMessage = 7 << 20

// A Queue holds messages by subject. Subjects are like store keys and begin with
// account and region.
type Queue interface {
	// Enqueue stores a message durably. A message with an id that was enqueued
	// within the last two minutes is not stored twice. An empty id never
	// matches.
	Enqueue(ctx context.Context, subject, id string, body []byte) error
	// Receive leases the next message whose subject begins with prefix, waiting
	// for one until ctx ends. It comes back by itself when the lease ends.
	Receive(ctx context.Context, prefix string, lease time.Duration) (Message, error)
	// Len counts stored messages under prefix, leased ones included.
	Len(ctx context.Context, prefix string) (int, error)
}

// A Message is one lease of one message.
type Message interface {
	Subject() string
	Body() []byte
	// Attempt is 1 on the first delivery.
	Attempt() int
	// Enqueued is when the message was stored.
	Enqueued() time.Time
	// Ack removes the message; when it returns, it will never come back.
	Ack(ctx context.Context) error
	// Retry gives it back to be delivered again after delay.
	Retry(ctx context.Context, delay time.Duration) error
	// Extend renews the lease.
	Extend(ctx context.Context) error
}
