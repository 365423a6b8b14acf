// Package nats implements the record store and the queue on NATS JetStream, in
// this process and without a socket.
//
// Every write is synced to the disk before it is acknowledged. The server's own
// default, a sync every two minutes, would lose acknowledged writes with the
// power. Records are a key-value bucket with a history of one, messages a work
// queue, so that the usual NATS tools can read a copy of the directory.
//
// A directory must be open in one process only; two would both work and diverge.
// The lock of package datadir sees to that.
package nats

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"

	"github.com/lambdad/lambdad/datadir"
	"github.com/lambdad/lambdad/queue"
	"github.com/lambdad/lambdad/store"
)

const (
	// maxPayload is the server's largest message: queue.MaxMessage and headers.
	maxPayload = 8 << 20
	// answerLimit bounds one request to the engine whose caller set no bound. It
	// is reached only by a disk that has stopped answering.
	answerLimit = time.Minute
	// progressEvery is how often a long start says that it is still reading.
	progressEvery = 3 * time.Second
)

// A Config says where and how an Engine keeps its data.
type Config struct {
	// Dir holds the streams and nothing else. It is made if need be.
	Dir string
	// Reserve is the free space in bytes that writes leave to others; where one
	// would cut into it, it is refused with ErrFull. With none, a disk that runs
	// full stops all writes (ErrFull) until the engine is opened anew, for the
	// server trusts no file it failed to write. Default 0.
	Reserve int64
	// Logger receives the server's words: its warnings and errors as warnings,
	// the rest as debug. Default: nobody.
	Logger *slog.Logger
}

// An Engine is the embedded server with its streams.
type Engine struct {
	cfg    Config
	server *server.Server
	conn   *natsgo.Conn
	js     jetstream.JetStream
	store  *Store
	queue  *Queue
	close  sync.Once

	// writable ends, with the cause, when the server has given up writing.
	writable context.Context
	giveUp   context.CancelCauseFunc
}

// Open starts the server on the directory, recovers what is there and makes or
// upgrades the streams. Large directories take a while (about 5 ms for each 1,000
// records), which is logged. When ctx ends first, everything is stopped again.
func Open(ctx context.Context, cfg Config) (_ *Engine, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("opening records in %s: %w", cfg.Dir, err)
		}
	}()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	srv, err := server.NewServer(&server.Options{
		ServerName: "lambdad",
		DontListen: true,
		NoSigs:     true,
		NoLog:      true, // to files; see SetLoggerV2
		MaxPayload: maxPayload,

		JetStream:              true,
		DisableJetStreamBanner: true,
		StoreDir:               cfg.Dir,
		SyncAlways:             true,
		// Room is watched by Reserve. Without these two the server takes three
		// quarters of the memory and disk it sees as its limits.
		JetStreamMaxMemory: 64 << 20,
		JetStreamMaxStore:  1 << 60,
		// One consumer for each watch and each prefix received from.
		JetStreamLimits: server.JSLimitOpts{DefaultMaxConsumers: -1},
	})
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, server: srv}
	e.writable, e.giveUp = context.WithCancelCause(context.Background())
	log := &logger{log: cfg.Logger.With("component", "jetstream"), failed: e.giveUp}
	srv.SetLoggerV2(log, cfg.Logger.Enabled(ctx, slog.LevelDebug), false, false)
	defer func() {
		if err != nil {
			e.stop()
		}
	}()
	if err := e.start(ctx); err != nil {
		return nil, errors.Join(err, log.fatal())
	}
	if !srv.JetStreamEnabled() {
		return nil, errors.Join(errors.New("the storage engine did not start"), log.fatal())
	}
	e.conn, err = natsgo.Connect("", natsgo.InProcessServer(srv), natsgo.Name("lambdad"),
		natsgo.MaxReconnects(-1), natsgo.ReconnectWait(10*time.Millisecond), natsgo.Timeout(answerLimit),
		natsgo.ErrorHandler(func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) {
			cfg.Logger.Warn("connection to the storage engine", "err", err)
		}))
	if err != nil {
		return nil, fmt.Errorf("connecting to the storage engine: %w", err)
	}
	if e.js, err = jetstream.New(e.conn, jetstream.WithDefaultTimeout(answerLimit)); err != nil {
		return nil, err
	}
	if e.store, err = openStore(ctx, e); err != nil {
		return nil, err
	}
	if e.queue, err = openQueue(ctx, e); err != nil {
		return nil, err
	}
	return e, nil
}

// start runs the server's recovery, saying from time to time that it lasts.
func (e *Engine) start(ctx context.Context) error {
	began := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.server.Start()
	}()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-done:
			if took := time.Since(began); took > progressEvery {
				e.cfg.Logger.Info("records are read", "took", took.Round(time.Millisecond))
			}
			return nil
		case <-tick.C:
			e.cfg.Logger.Info("still reading records", "dir", e.cfg.Dir, "bytes", size(e.cfg.Dir), "since", time.Since(began).Round(time.Second))
		case <-ctx.Done():
			// Recovery cannot be interrupted, but need not be waited for: Shutdown
			// takes effect when it is through.
			e.server.Shutdown()
			<-done
			return context.Cause(ctx)
		}
	}
}

// size returns the bytes of the files below dir, as far as they can be seen.
func size(dir string) int64 {
	var n int64
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil
	})
	return n
}

// Store returns the record store.
func (e *Engine) Store() *Store { return e.store }

// Queue returns the queue.
func (e *Engine) Queue() *Queue { return e.queue }

// Close ends watches and waiting receivers, then stops the server. It returns when
// all is written and nothing runs any more. Close twice is fine.
func (e *Engine) Close() error {
	e.close.Do(func() {
		e.store.close()
		e.queue.close()
		e.stop()
	})
	return nil
}

func (e *Engine) stop() {
	if e.conn != nil {
		e.conn.Close()
	}
	e.server.Shutdown()
	e.server.WaitForShutdown()
}

// room refuses a write of n bytes that would cut into the reserve.
func (e *Engine) room(n int, full error) error {
	if e.cfg.Reserve <= 0 {
		return nil
	}
	free, err := datadir.FreeBytes(e.cfg.Dir)
	if err != nil {
		return err
	}
	if free-int64(n) < e.cfg.Reserve {
		return fmt.Errorf("%w: %s has %d bytes free, the reserve is %d: make room there, or lower the reserve", full, e.cfg.Dir, free, e.cfg.Reserve)
	}
	return nil
}

// publish writes m. A write that has begun is waited for, whatever ctx says: cut off
// in the middle, nobody knew whether it happened.
func (e *Engine) publish(ctx context.Context, m *natsgo.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if e.writable.Err() != nil {
		return nil, context.Cause(e.writable)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerLimit)
	defer cancel()
	// The server does not answer a write that failed on the disk, nor any later one.
	stop := context.AfterFunc(e.writable, cancel)
	defer stop()
	ack, err := e.js.PublishMsg(ctx, m, opts...)
	if err != nil && e.writable.Err() != nil {
		err = context.Cause(e.writable)
	}
	return ack, err
}

// Error numbers of the JetStream API that have a meaning here.
const (
	errStoreFailed = 10077
	errNoResources = 10023
	errWrongLast   = 10071
	errNoMessage   = 10037
)

// code returns the JetStream error number in err, or 0.
func code(err error) jetstream.ErrorCode {
	var api jetstream.JetStreamError
	if errors.As(err, &api) && api.APIError() != nil {
		return api.APIError().ErrorCode
	}
	return 0
}

// translate turns what the engine says into the words of a contract.
func translate(err, full, closed error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, natsgo.ErrConnectionClosed), errors.Is(err, natsgo.ErrConnectionDraining):
		return closed
	case code(err) == errNoResources, errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: make room and start anew: %w", full, err)
	}
	return err
}

// A logger passes the server's words on.
type logger struct {
	log    *slog.Logger
	failed func(error) // told when the server gives up writing

	mu  sync.Mutex
	end error // the last fatal error
}

func (l *logger) say(level slog.Level, format string, v []any) {
	if l.log.Enabled(context.Background(), level) {
		l.log.Log(context.Background(), level, fmt.Sprintf(format, v...))
	}
}

// Noticef implements server.Logger.
func (l *logger) Noticef(format string, v ...any) { l.say(slog.LevelDebug, format, v) }

// Warnf implements server.Logger. That a summary file is older than the data is
// what a process killed or cut off leaves behind; the data itself is read instead,
// and nobody has to do anything.
func (l *logger) Warnf(format string, v ...any) {
	level := slog.LevelWarn
	for _, usual := range []string{"] Stream state ", "state is outdated", "Recovering stream state from index"} {
		if strings.Contains(fmt.Sprintf(format, v...), usual) {
			level = slog.LevelDebug
		}
	}
	l.say(level, format, v)
}

// Errorf implements server.Logger. The log is the only place where the server says
// that it has stopped writing.
func (l *logger) Errorf(format string, v ...any) {
	if len(v) > 0 && strings.Contains(strings.ToLower(fmt.Sprintf(format, v...)), "critical write error") {
		if err := lastError(v); err != nil {
			l.failed(fmt.Errorf("the storage engine has stopped writing: %w", err))
		}
	}
	l.say(slog.LevelWarn, format, v)
}

// lastError returns the last error among the arguments of a log line.
func lastError(v []any) (last error) {
	for _, arg := range v {
		if err, ok := arg.(error); ok {
			last = err
		}
	}
	return last
}

// Debugf implements server.Logger.
func (l *logger) Debugf(format string, v ...any) { l.say(slog.LevelDebug, format, v) }

// Tracef implements server.Logger.
func (l *logger) Tracef(string, ...any) {}

// Fatalf implements server.Logger. A library does not end its process: Open
// returns the error.
func (l *logger) Fatalf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end = fmt.Errorf(format, v...)
}

func (l *logger) fatal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end
}

var (
	_ store.Store = (*Store)(nil)
	_ queue.Queue = (*Queue)(nil)
)
