package telemetry

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"
)

func frame(kind uint32, at time.Time, message string) string {
	b := binary.BigEndian.AppendUint32(nil, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(message)))
	b = binary.BigEndian.AppendUint64(b, uint64(at.UnixMicro()))
	return string(b) + message
}

// taken is a sink that keeps everything.
type taken []Event

func (k *taken) Take(e Event) { *k = append(*k, e) }

func TestFrames(t *testing.T) {
	at := time.Now().Add(-time.Second).Truncate(time.Microsecond)
	long := strings.Repeat("x", MaxLine+10)
	input := frame(0xa55a0003, at, "one\ntwo\n") + frame(0xa55a0017, at, "") + frame(0xa55a0002, at, `{"a":1}`) + frame(0xa55a000b, at, long) +
		frame(0xa55a0003, at.Add(-time.Hour), "old") + "no frame at all\nlast"
	want := []string{"one\ntwo", "", `{"a":1}`, long[:MaxLine], long[MaxLine:], "old", "no frame at all", "last"}
	for _, size := range []int{1, 7, 4096, len(input)} {
		var got taken
		f := NewFrames(NewStream(&got), TypeFunctionLine)
		for in := input; in != ""; {
			n := min(size, len(in))
			_, _ = f.Write([]byte(in[:n]))
			in = in[n:]
		}
		f.Close()
		_, _ = f.Write([]byte("late"))
		if len(got) != len(want) {
			t.Fatalf("by %d: %d records, want %d", size, len(got), len(want))
		}
		for i, e := range got {
			if string(e.Record.(Line)) != want[i] {
				t.Errorf("by %d: record %d is %.60q", size, i, e.Record)
			}
			if i < 5 && !e.Time.Equal(at) || i == 5 && time.Since(e.Time) > time.Minute {
				t.Errorf("by %d: record %d is of %v", size, i, e.Time)
			}
		}
	}
	var got taken
	f := NewFrames(NewStream(&got), TypeFunctionLine)
	_, _ = f.Write([]byte(frame(0xa55a0003, at, "whole")[:18]))
	f.Close()
	if len(got) != 1 || got[0].Record != Line("wh") {
		t.Errorf("a broken frame: %v", got)
	}
}

// FuzzFrames holds that nothing a function writes is lost or does harm.
func FuzzFrames(f *testing.F) {
	f.Add([]byte(frame(0xa55a0003, time.Unix(1, 0), "one\ntwo")), 3)
	f.Add([]byte("plain\n"), 1)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		if size < 1 || len(in) > 1<<20 {
			t.Skip()
		}
		var got taken
		w := NewFrames(NewStream(&got), TypeFunctionLine)
		for rest := in; len(rest) > 0; {
			n := min(size, len(rest))
			if m, err := w.Write(rest[:n]); m != n || err != nil {
				t.Fatal(m, err)
			}
			rest = rest[n:]
		}
		w.Close()
		total := 0
		for _, e := range got {
			total += len(e.Record.(Line))
		}
		if total > len(in) {
			t.Errorf("%d bytes of %d", total, len(in))
		}
	})
}
