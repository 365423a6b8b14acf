package telemetry

import (
	"bytes"
	"sync"
)

// MaxLine is the longest line in bytes that becomes one record; a longer one is
// continued in further records. It is what CloudWatch Logs takes as one event.
const MaxLine = 256 << 10

// Lines is an io.WriteCloser that turns what a process writes into records: one
// for each line, without its \n. Everything else, \r and binary too, is kept.
type Lines struct {
	stream *Stream
	typ    string

	mu     sync.Mutex
	part   []byte // of a line whose end has not come
	closed bool
}

// NewLines makes a writer of records of type typ.
func NewLines(stream *Stream, typ string) *Lines {
	return &Lines{stream: stream, typ: typ}
}

// Write implements io.Writer. It never fails, so that a driver goes on draining.
func (l *Lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	if l.closed {
		return n, nil
	}
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i >= 0 && len(l.part)+i <= MaxLine {
			if len(l.part) == 0 {
				l.emit(p[:i])
			} else {
				l.part = append(l.part, p[:i]...)
				l.emit(l.part)
				l.part = l.part[:0]
			}
			p = p[i+1:]
			continue
		}
		if i < 0 {
			i = len(p)
		}
		take := min(i, MaxLine-len(l.part))
		l.part = append(l.part, p[:take]...)
		p = p[take:]
		if len(l.part) == MaxLine && len(p) > 0 && p[0] != '\n' {
			l.emit(l.part)
			l.part = l.part[:0]
		}
	}
	if len(l.part) == 0 && cap(l.part) > 4096 {
		l.part = nil // an idle environment holds no large buffer
	}
	return n, nil
}

// Close emits a last line that had no newline. Later writes are dropped.
func (l *Lines) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed && len(l.part) > 0 {
		l.emit(l.part)
	}
	l.closed, l.part = true, nil
	return nil
}

func (l *Lines) emit(line []byte) {
	l.stream.Emit(Event{Type: l.typ, Record: Line(line)})
}
