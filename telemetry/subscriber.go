package telemetry

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of delivery. The service documents none of them.
const (
	// maxBuffered is what waits for one subscriber at most, in bytes as sent,
	// with what is under way.
	maxBuffered = 4 << 20

	firstBackoff, lastBackoff = 100 * time.Millisecond, time.Second
	// requestLimit is how long a subscriber may take to answer while it is not
	// frozen; then it gets the same batch again.
	requestLimit = 30 * time.Second
	// maxAnswer is the most bytes of an answer that are read, and drainLimit how
	// long its body, which is of no use, may take: one that ends by then keeps its
	// connection.
	maxAnswer, drainLimit = 64 << 10, time.Second
	// tries is how many attempts at one batch fail before the log hears of it.
	tries = 4
)

// A batch is what one request or one write carries.
type batch struct {
	body  []byte
	items int64
}

// subscriber is the sink of one subscription and the goroutine that delivers:
// one batch at a time, the same one until it is taken. Take encodes into the
// batch that is open and never waits.
type subscriber struct {
	name   string
	req    *Request
	log    *slog.Logger
	gate   *gate
	dial   func(ctx context.Context, addr string) (net.Conn, error)
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // run has returned
	conn   *lineConn     // of TCP, owned by run
	http   *httpConn     // idle, owned by run
	addr   string
	head   string // of every request, up to the length of its body

	wake chan struct{}

	mu       sync.Mutex
	records  *records
	open     batch
	due      time.Time // of the open batch
	full     []batch
	buffered int    // bytes of all batches
	spare    []byte // a buffer to use again
	dropped  LogsDropped
	lost     LogsDropped // in all
	drops    *Drops
	// Records taken in, cut off into batches that wait or are under way, and
	// delivered.
	taken, cut, delivered int64
	flushTo               int64 // what is up to here goes out without waiting
	flushes               []flush
}

type flush struct {
	to   int64
	done chan struct{}
}

func newSubscriber(name string, r *Request, jsonLog bool, g *gate, dial func(context.Context, string) (net.Conn, error), log *slog.Logger) *subscriber {
	s := &subscriber{
		name: name, req: r, log: log, gate: g, dial: dial, records: newRecords(r, jsonLog),
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.addr = r.Addr
	if u, err := url.Parse(r.URL); err == nil && !r.TCP { // as ParseRequest has checked
		s.addr = u.Host
		s.head = r.Method + " " + u.RequestURI() + " HTTP/1.1\r\nHost: " + u.Host +
			"\r\nUser-Agent: lambdad\r\nContent-Type: application/json\r\nContent-Length: "
	}
	return s
}

// connect dials for as long as both the context and the subscription last.
func (s *subscriber) connect(ctx context.Context, addr string) (*gatedConn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	c, err := s.dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	if s.ctx.Err() != nil {
		c.Close()
		return nil, context.Cause(s.ctx)
	}
	return s.gate.conn(c), nil
}

// Wants is asked by Stream.Attach.
func (s *subscriber) Wants(typ string) bool { return s.records.wants(typ) }

// Take implements Sink.
func (s *subscriber) Take(e Event) {
	if !s.records.wants(e.Type) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tellDropped()
	s.add(e)
}

func (s *subscriber) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// add appends an event to the open batch, or counts it as dropped.
func (s *subscriber) add(e Event) {
	before := len(s.open.body)
	body := s.open.body
	if before == 0 {
		body = s.fresh()
	}
	from := len(body)
	body, n := s.records.append(body, e)
	size := len(body) - from
	if s.dropped.Records > 0 || s.buffered+size > maxBuffered {
		// Once something is dropped all is, until there is room for more than a
		// few: records are lost in one piece, and the reader is told where.
		s.dropped.Records += int64(n)
		s.dropped.Bytes += int64(size)
		s.drops.add(n, size)
		if before == 0 {
			s.spare = body[:0]
		} else {
			s.open.body = body[:before]
		}
		return
	}
	if s.open.items > 0 && len(body) > 2*s.req.MaxBytes { // the most a payload may have
		record := body[from:]
		s.open.body = body[:before]
		s.cutOpen()
		body = append(s.fresh(), record...)
	}
	if s.open.items == 0 {
		s.due = time.Now().Add(s.req.Timeout)
		s.signal()
	}
	s.open.body = body
	s.open.items += int64(n)
	s.buffered += size
	s.taken += int64(n)
	if s.open.items >= int64(s.req.MaxItems) || len(body) >= s.req.MaxBytes {
		s.cutOpen()
		s.signal()
	}
}

// fresh begins a body.
func (s *subscriber) fresh() []byte {
	b := s.spare[:0]
	s.spare = nil
	if !s.req.TCP {
		b = append(b, '[')
	}
	return b
}

func (s *subscriber) cutOpen() {
	s.cut += s.open.items
	s.full = append(s.full, s.open)
	s.open = batch{}
}

// tellDropped puts the record of what was dropped in its place, once there is
// room for more.
func (s *subscriber) tellDropped() {
	if s.dropped.Records == 0 || s.buffered > maxBuffered/2 {
		return
	}
	d := s.dropped
	d.Reason = DropReason
	s.lost.Records += d.Records
	s.lost.Bytes += d.Bytes
	s.dropped = LogsDropped{}
	s.add(Event{Time: time.Now(), Type: TypeLogsDropped, Record: d})
}

// next takes the batch to deliver now. If there is none it says until when, and
// on the gate, to wait.
func (s *subscriber) next() (b batch, ok bool, wait time.Duration, moved <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Under the lock: what is taken after the gate was held is not in a batch
	// that is cut before it.
	if moved = s.gate.blocked(); moved != nil {
		return b, false, -1, moved
	}
	if len(s.full) == 0 {
		if s.open.items == 0 {
			s.spare = nil // an idle subscriber holds no large buffer
			return b, false, -1, nil
		}
		if wait = time.Until(s.due); wait > 0 && s.cut >= s.flushTo {
			return b, false, wait, nil
		}
		s.cutOpen()
	}
	b = s.full[0]
	s.full[0] = batch{}
	s.full = s.full[1:]
	return b, true, 0, nil
}

// took ends the delivery of a batch.
func (s *subscriber) took(b batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buffered -= len(b.body)
	if !s.req.TCP {
		s.buffered++ // the bracket
	}
	s.delivered += b.items
	if len(b.body) >= s.req.MaxBytes/2 {
		s.spare = b.body
	}
	keep := s.flushes[:0]
	for _, f := range s.flushes {
		if f.to <= s.delivered {
			close(f.done)
		} else {
			keep = append(keep, f)
		}
	}
	s.flushes = keep
	s.tellDropped()
}

// flush asks for what was taken up to now, without waiting for the batch to fill,
// and returns a channel that is closed when the subscriber has it.
func (s *subscriber) flush() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := make(chan struct{})
	if s.delivered >= s.taken {
		close(done)
		return done
	}
	s.flushTo = s.taken
	s.flushes = append(s.flushes, flush{s.taken, done})
	s.signal()
	return done
}

// end ends the subscription; what was not delivered is lost. It returns when
// nothing of it runs any more.
func (s *subscriber) end() {
	s.cancel()
	<-s.done
}

func (s *subscriber) run() {
	defer close(s.done)
	defer s.hangUp()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		b, ok, wait, moved := s.next()
		if ok {
			if !s.deliver(b) {
				return
			}
			continue
		}
		var due <-chan time.Time
		if wait >= 0 {
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case <-s.wake:
		case <-due:
		case <-moved:
		case <-s.ctx.Done():
			return
		}
	}
}

// deliver sends one batch until it is taken; false: the subscription ended.
func (s *subscriber) deliver(b batch) bool {
	send := s.post
	if s.req.TCP {
		send = s.write
	} else {
		b.body[len(b.body)-1] = ']'
	}
	backoff := firstBackoff
	for try := 1; ; try++ {
		if !s.gate.pass(s.ctx.Done()) {
			return false
		}
		err := send(b.body)
		if err == nil {
			s.took(b)
			return true
		}
		if s.ctx.Err() != nil {
			return false
		}
		if try == tries {
			s.log.Warn("a telemetry subscriber does not take what it asked for; it is tried on", "extension", s.name, "to", s.addr, "err", err)
		}
		t := time.NewTimer(backoff)
		select {
		case <-t.C:
		case <-s.ctx.Done():
			t.Stop()
			return false
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// httpConn is a connection to an HTTP listener.
type httpConn struct {
	*gatedConn
	left io.LimitedReader // what may still be read
	r    *bufio.Reader
}

var errReused = errors.New("telemetry: a connection that was idle is gone")

// post makes one request. Its connection may be one that the listener has closed
// since the last, as after a long freeze: that is no failure of the listener.
func (s *subscriber) post(body []byte) error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	defer s.gate.after(requestLimit, cancel)()
	if c := s.http; c != nil {
		s.http = nil
		if err := s.exchange(ctx, c, body); !errors.Is(err, errReused) {
			return err
		}
	}
	g, err := s.connect(ctx, s.addr)
	if err != nil {
		return err
	}
	c := &httpConn{gatedConn: g, left: io.LimitedReader{R: g}}
	c.r = bufio.NewReaderSize(&c.left, 1024)
	return s.exchange(ctx, c, body)
}

// exchange makes one request on a connection, which is kept when all went by the
// rules and closed otherwise. What the other side sends is read up to a bound, so
// that it can lie for only so long.
func (s *subscriber) exchange(ctx context.Context, c *httpConn, body []byte) (err error) {
	reused := c.left.N > 0
	keep := false
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer func() {
		if keep && ctx.Err() == nil {
			s.http = c
		} else {
			c.Close()
		}
	}()
	if c.r.Buffered() > 0 {
		return errReused // it said something that nobody asked
	}
	c.left.N = maxAnswer
	head := append(strconv.AppendInt([]byte(s.head), int64(len(body)), 10), "\r\n\r\n"...)
	_, err = c.Write(head)
	if err == nil {
		_, err = c.Write(body)
	}
	if err != nil {
		// The answer may have come all the same, from one that reads no bodies.
		c.SetReadDeadline(time.Now().Add(drainLimit))
	}
	if _, perr := c.r.Peek(1); perr != nil {
		if err = errors.Join(err, perr); reused && ctx.Err() == nil {
			return errors.Join(errReused, err)
		}
		return fmt.Errorf("telemetry: %s: %w", s.req.URL, err)
	}
	r, rerr := http.ReadResponse(c.r, nil)
	for rerr == nil && r.StatusCode/100 == 1 && r.StatusCode != http.StatusSwitchingProtocols {
		r, rerr = http.ReadResponse(c.r, nil)
	}
	if rerr != nil {
		return fmt.Errorf("telemetry: %s does not answer by HTTP: %w", s.req.URL, rerr)
	}
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		c.SetReadDeadline(time.Now().Add(drainLimit))
		n, derr := io.Copy(io.Discard, r.Body)
		keep = derr == nil && (r.ContentLength < 0 || n == r.ContentLength) && c.SetReadDeadline(time.Time{}) == nil
	} else {
		keep = true
	}
	keep = keep && err == nil && !r.Close && c.left.N > 0
	if r.StatusCode/100 != 2 {
		return fmt.Errorf("telemetry: %s answered %s", s.req.URL, r.Status)
	}
	return nil
}

// lineConn is the connection of a subscriber by TCP.
type lineConn struct {
	*gatedConn
	gone atomic.Bool
	done chan struct{} // its reader is
}

// hold takes a connection and listens for its end: without that the first batch
// after it would be written into the void.
func (s *subscriber) hold(c *gatedConn) {
	t := &lineConn{gatedConn: c, done: make(chan struct{})}
	s.conn = t
	go func() {
		defer close(t.done)
		if _, err := io.CopyN(io.Discard, t, maxAnswer); err != nil {
			t.gone.Store(true)
		}
	}()
}

// hangUp ends the connections.
func (s *subscriber) hangUp() {
	if s.http != nil {
		s.http.Close()
		s.http = nil
	}
	if s.conn != nil {
		s.conn.Close()
		<-s.conn.done
		s.conn = nil
	}
}

// write writes lines. A reader that takes its time is waited for: the rest of the
// batch cannot be told twice on one connection.
func (s *subscriber) write(body []byte) error {
	if s.conn != nil && s.conn.gone.Load() {
		s.hangUp()
	}
	if s.conn == nil {
		ctx, cancel := context.WithCancel(s.ctx)
		defer cancel()
		defer s.gate.after(requestLimit, cancel)()
		c, err := s.connect(ctx, s.addr)
		if err != nil {
			return err
		}
		s.hold(c)
	}
	c := s.conn
	stop := context.AfterFunc(s.ctx, func() { c.Close() })
	_, err := c.Write(body)
	stop()
	if err != nil {
		s.hangUp()
	}
	return err
}

// ErrSubscriptionClosed means that the initialisation is over.
var ErrSubscriptionClosed = errors.New("telemetry: subscription is closed")

// SubscriptionsConfig says what subscriptions are made of.
type SubscriptionsConfig struct {
	Stream *Stream
	// Dial connects to an address inside the sandbox, sandbox.localdomain and
	// sandbox among the names of hosts.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// JSON says that the function's log format is JSON.
	JSON bool
	// Logger hears of subscribers that do not take what they asked for; nil:
	// nobody.
	Logger *slog.Logger
}

// Subscriptions are what the extensions of one generation of processes have
// subscribed to (spec: telemetry-api.md). Each has a buffer of its own, which
// drops and counts what does not fit, and a goroutine of its own: whatever one
// does with what it gets, nobody else waits for it, and no invocation either.
//
// The owner of the environment drives them: Close when the initialisation is
// over, Hold when an invocation is, Pause before it freezes, Resume when the
// environment is at work again, Flush before it tells an extension to go, and
// End. None of these waits for a subscriber, and all cost next to nothing when
// there is none.
type Subscriptions struct {
	cfg  SubscriptionsConfig
	gate *gate

	mu     sync.Mutex // before the stream's and the subscribers'
	closed bool
	ended  bool
	list   []*subscriber
}

// maxSubscriptions is how many different subscriptions an extension may have. The
// specification leaves a second one open; OpenTelemetry's collector layer has two,
// one for itself and one for its receiver, and needs both served.
const maxSubscriptions = 4

// NewSubscriptions makes the subscriptions of a new generation: none, and open.
func NewSubscriptions(cfg SubscriptionsConfig) *Subscriptions {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Subscriptions{cfg: cfg, gate: newGate()}
}

// Subscribe begins a subscription of an extension: with what the stream
// remembers, then with the event that tells of it. The same request again changes
// nothing; another one, of which an extension may have a few, is served beside it. Errors are ErrSubscriptionClosed and *RequestError.
func (s *Subscriptions) Subscribe(ctx context.Context, extension string, r *Request) error {
	if known, err := s.check(extension, r); known || err != nil {
		return err
	}
	log := s.cfg.Logger
	x := newSubscriber(extension, r, s.cfg.JSON, s.gate, s.cfg.Dial, log)
	if s.cfg.Stream != nil {
		x.drops = s.cfg.Stream.drops
	}
	if r.TCP {
		// The listener must be there (telemetry-api.md section 1).
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		c, err := x.connect(ctx, r.Addr)
		if err != nil {
			x.cancel()
			return &RequestError{[]string{"cannot connect to the TCP destination " + r.Addr}}
		}
		x.hold(c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, err := s.checkLocked(extension, r); known || err != nil {
		x.cancel()
		x.hangUp()
		return err
	}
	s.list = append(s.list, x)
	go x.run()
	s.cfg.Stream.Attach(x, true)
	typ := TypeSubscription
	if r.Logs {
		typ = TypeLogsSubscribed
	}
	s.cfg.Stream.Emit(Event{Type: typ, Record: Subscription{Name: extension, State: "Subscribed", Types: r.Types}})
	return nil
}

func (s *Subscriptions) check(extension string, r *Request) (known bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.checkLocked(extension, r)
}

func (s *Subscriptions) checkLocked(extension string, r *Request) (known bool, err error) {
	if s.closed {
		return false, ErrSubscriptionClosed
	}
	n := 0
	for _, x := range s.list {
		switch {
		case x.name != extension:
			continue
		case x.req.Logs != r.Logs:
			return false, &RequestError{[]string{"the extension is subscribed through the other one of the Telemetry API and the Logs API"}}
		case x.req.Equal(r):
			return true, nil
		}
		n++
	}
	if n == maxSubscriptions {
		return false, &RequestError{[]string{fmt.Sprintf("the extension has %d subscriptions already", n)}}
	}
	return false, nil
}

// Closed reports whether the window is closed.
func (s *Subscriptions) Closed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Close closes the window: there are no new subscriptions from now on.
func (s *Subscriptions) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// Hold begins no delivery until Resume; what is under way goes on. What is
// emitted after it reaches nobody before Resume.
func (s *Subscriptions) Hold() { s.gate.hold() }

// Pause lets no byte out until Resume. A request under way survives.
func (s *Subscriptions) Pause() { s.gate.close() }

// Resume ends Hold and Pause.
func (s *Subscriptions) Resume() { s.gate.resume() }

// Flush sends what every subscriber has not got yet without waiting for batches
// to fill. The channel it returns for an extension is closed when that one has
// it; there is none for one without a subscription.
func (s *Subscriptions) Flush() map[string]<-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) == 0 {
		return nil
	}
	m := make(map[string]<-chan struct{}, len(s.list))
	for _, x := range s.list {
		one, other := x.flush(), m[x.name]
		if other == nil {
			m[x.name] = one
			continue
		}
		both := make(chan struct{})
		m[x.name] = both
		go func() {
			for _, c := range []<-chan struct{}{one, other} {
				select {
				case <-c:
				case <-x.done: // End ends all of them
				}
			}
			close(both)
		}()
	}
	return m
}

// Lost returns how many records and bytes did not fit into the buffers.
func (s *Subscriptions) Lost() (records, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.list {
		x.mu.Lock()
		records += x.lost.Records + x.dropped.Records
		bytes += x.lost.Bytes + x.dropped.Bytes
		x.mu.Unlock()
	}
	return records, bytes
}

// Buffered returns how many bytes wait for subscribers.
func (s *Subscriptions) Buffered() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, x := range s.list {
		x.mu.Lock()
		n += x.buffered
		x.mu.Unlock()
	}
	return n
}

// End ends all subscriptions and their connections. It returns when nothing of
// them runs any more, whatever subscribers do.
func (s *Subscriptions) End() {
	s.Close()
	s.mu.Lock()
	list := s.list
	again := s.ended
	s.ended = true
	s.mu.Unlock()
	if again {
		return
	}
	for _, x := range list {
		x.cancel()
		s.cfg.Stream.Detach(x)
	}
	for _, x := range list {
		x.end()
		if n := x.lost.Records + x.dropped.Records; n > 0 {
			s.cfg.Logger.Warn("telemetry was dropped because a subscriber was slower than its function", "extension", x.name, "records", n, "bytes", x.lost.Bytes+x.dropped.Bytes)
		}
	}
}
