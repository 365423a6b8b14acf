// Package queue is the contract of the durable queue: at least once, leased to
// one receiver, back after its delay unless acknowledged.
//
// What Enqueue acknowledged survives kill -9 and power loss; so does an Ack. When
// the process ends, its leases and delays end with it: after a restart every
// message that was not acknowledged can be received at once, its Attempt counting
// on as far as it was recorded.
//
// The suite in queuetest says the same in code; every implementation passes it.
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

// ErrOverlap says that somebody receives (or holds leases) under a prefix that
// contains this one or lies in it. A message has one kind of receiver: receivers
// at the same time use the same prefix or disjoint ones.
var ErrOverlap = errors.New("queue: prefix overlaps that of another receiver")

// ErrLeaseLost says that a lease ended before Ack, Retry or Extend was called: the
// message is, or was, another receiver's.
var ErrLeaseLost = errors.New("queue: lease lost")

// ErrInvalid says that a subject, prefix or lease breaks the rules.
var ErrInvalid = errors.New("queue: invalid")

// ErrClosed says that the queue was closed.
var ErrClosed = errors.New("queue: closed")

// MaxMessage is the largest body in bytes: an asynchronous event of 1 MB, and
// synchronous ones up to 6 MB, with room for what travels beside them.
const MaxMessage = 7 << 20

// A Queue holds messages by subject. Subjects are like store keys and begin with
// account and region. Its methods may be called at the same time.
type Queue interface {
	// Enqueue stores a message durably. A message with an id that was enqueued
	// on this subject within the last two minutes is not stored twice, even if
	// it was acknowledged meanwhile (a restart forgets the ids of acknowledged
	// ones). An empty id never matches. Over MaxMessage: ErrTooLarge.
	Enqueue(ctx context.Context, subject, id string, body []byte) error
	// Receive leases the next message whose subject begins with prefix, waiting
	// for one until ctx ends. It comes back by itself when the lease ends.
	// Messages come in the order they were stored, but for those given back. A
	// Receive that ends with an error has taken nothing. Prefixes are as in the
	// record store: they end at token boundaries, the empty one is all.
	Receive(ctx context.Context, prefix string, lease time.Duration) (Message, error)
	// Len counts stored messages under prefix, leased ones included.
	Len(ctx context.Context, prefix string) (int, error)
}

// DedupWindow is how long Enqueue remembers an id.
const DedupWindow = 2 * time.Minute

// A Message is one lease of one message. The first Ack or Retry ends the lease;
// after that, and when the lease has run out, all three methods return
// ErrLeaseLost and change nothing. Leases and delays are measured by a clock that
// does not jump when the date is set.
type Message interface {
	Subject() string
	Body() []byte
	// Attempt is 1 on the first delivery.
	Attempt() int
	// Enqueued is when the message was stored.
	Enqueued() time.Time
	// Ack removes the message; when it returns, it will never come back.
	Ack(ctx context.Context) error
	// Retry gives it back to be delivered again after delay (0: at once).
	Retry(ctx context.Context, delay time.Duration) error
	// Extend renews the lease: it ends the length given to Receive from now.
	Extend(ctx context.Context) error
}
