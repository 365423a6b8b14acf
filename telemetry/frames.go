package telemetry

import (
	"bytes"
	"encoding/binary"
	"sync"
	"time"
)

// Frames is an io.WriteCloser that turns what a managed runtime writes to its log
// descriptor into records: one for each frame, however many lines it has (traps.md
// section 5). A frame is 4 bytes type, 4 bytes length, 8 bytes of microseconds since
// 1970, big-endian, and the message. What is no frame is taken as lines.
type Frames struct {
	stream *Stream
	lines  *Lines
	typ    string

	mu     sync.Mutex
	head   [frameHead]byte
	have   int    // of head
	left   int    // of the message
	part   []byte // of the message
	time   time.Time
	plain  bool // no frame came where one was due: lines from there on
	closed bool
}

const (
	frameHead = 16
	frameType = 0xa55a0000
	// The clock of a function is the host's; a frame that says otherwise lies.
	frameLate = 5 * time.Second
)

// NewFrames makes a writer of records of type typ.
func NewFrames(stream *Stream, typ string) *Frames {
	return &Frames{stream: stream, lines: NewLines(stream, typ), typ: typ}
}

// Write implements io.Writer. It never fails, so that a driver goes on draining.
func (f *Frames) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(p)
	for len(p) > 0 && !f.closed {
		switch {
		case f.plain:
			_, _ = f.lines.Write(p)
			return n, nil
		case f.left == 0:
			c := copy(f.head[f.have:], p)
			f.have += c
			p = p[c:]
			if f.have == frameHead {
				f.begin()
			}
		default:
			take := min(len(p), f.left, MaxLine-len(f.part))
			f.part = append(f.part, p[:take]...)
			f.left -= take
			p = p[take:]
			if f.left == 0 || len(f.part) == MaxLine {
				f.emit()
			}
		}
	}
	return n, nil
}

// begin reads the head of a frame.
func (f *Frames) begin() {
	f.have = 0
	size := binary.BigEndian.Uint32(f.head[4:])
	if binary.BigEndian.Uint32(f.head[:])&^0xff != frameType || size > 1<<30 {
		f.plain = true
		_, _ = f.lines.Write(f.head[:])
		return
	}
	now := time.Now()
	f.time = time.UnixMicro(int64(binary.BigEndian.Uint64(f.head[8:])))
	if f.time.After(now) || now.Sub(f.time) > frameLate {
		f.time = now
	}
	if f.left = int(size); f.left == 0 {
		f.emit()
	}
}

func (f *Frames) emit() {
	m := f.part
	if f.left == 0 {
		m = bytes.TrimSuffix(m, []byte("\n"))
	}
	f.stream.Emit(Event{Time: f.time, Type: f.typ, Record: Line(m)})
	if f.part = f.part[:0]; cap(f.part) > 4096 {
		f.part = nil // an idle environment holds no large buffer
	}
}

// Close emits what there is of a last frame. Later writes are dropped.
func (f *Frames) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed && len(f.part) > 0 {
		f.left = 0
		f.emit()
	}
	f.closed, f.part = true, nil
	return f.lines.Close()
}
