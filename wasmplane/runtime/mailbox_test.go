package runtime

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
)

// frames splits what was read from a mailbox.
func frames(t *testing.T, b []byte) (kinds []abi.Kind, payloads []string) {
	t.Helper()
	for len(b) > 0 {
		h, err := abi.DecodeHeader(b)
		if err != nil {
			t.Fatal(err)
		}
		b = b[abi.HeaderSize:]
		kinds, payloads = append(kinds, h.Kind), append(payloads, string(b[:h.Length]))
		b = b[h.Length:]
	}
	return kinds, payloads
}

// TestMailboxKeepsOrder reads in pieces of any size while others write.
func TestMailboxKeepsOrder(t *testing.T) {
	arrived := make(chan struct{}, 1000)
	m := NewMailbox(func() { arrived <- struct{}{} })
	const n = 300
	var writers sync.WaitGroup
	for stream := range uint32(3) {
		writers.Go(func() {
			for k := range n {
				if err := m.Room(t.Context()); err != nil {
					t.Error(err)
				}
				m.Push(abi.FrameBody, stream, []byte{byte(k), byte(k >> 8)})
			}
		})
	}
	random := rand.New(rand.NewPCG(1, 1))
	var got []byte
	for len(got) < 3*n*(abi.HeaderSize+2) {
		if !m.wait(10 * time.Second) {
			t.Fatal("nothing comes")
		}
		piece := make([]byte, random.IntN(50))
		got = append(got, piece[:m.read(piece)]...)
	}
	writers.Wait()
	if !m.Empty() || m.size != 0 || m.queue != nil {
		t.Errorf("%d bytes are left", m.size)
	}
	if len(arrived) != 3*n {
		t.Errorf("told of %d frames, want %d", len(arrived), 3*n)
	}
	next := map[uint32]int{}
	for len(got) > 0 {
		h, err := abi.DecodeHeader(got)
		if err != nil {
			t.Fatal(err)
		}
		if k := int(got[abi.HeaderSize]) | int(got[abi.HeaderSize+1])<<8; k != next[h.Stream] {
			t.Fatalf("stream %d: frame %d, want %d", h.Stream, k, next[h.Stream])
		}
		next[h.Stream]++
		got = got[abi.HeaderSize+int(h.Length):]
	}
}

func TestMailboxRoom(t *testing.T) {
	m := NewMailbox(func() {})
	m.Push(abi.FrameBody, 1, make([]byte, highWater))
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error, 2)
	go func() { waiting <- m.Room(ctx) }()
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("a full mailbox has room: %v", err)
	}
	if err := m.Room(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	for range 2 {
		go func() { waiting <- m.Room(t.Context()) }()
	}
	if n := m.read(make([]byte, 100)); n != 100 {
		t.Errorf("read %d bytes", n)
	}
	for range 2 {
		if err := <-waiting; err != nil {
			t.Error(err)
		}
	}
	m.Push(abi.FrameBody, 1, make([]byte, highWater))
	go func() { waiting <- m.Room(t.Context()) }()
	m.Reset()
	if err := <-waiting; err != nil || !m.Empty() {
		t.Errorf("%v", err)
	}
}

func TestMailboxWait(t *testing.T) {
	m := NewMailbox(func() {})
	if m.wait(0) || m.wait(-1) || m.wait(time.Millisecond) {
		t.Error("an empty mailbox has something")
	}
	got := make(chan bool)
	go func() { got <- m.wait(time.Hour) }()
	m.Push(abi.FrameEnd, 1, nil)
	if !<-got || !m.wait(0) {
		t.Error("a frame was not noticed")
	}
}

// TestPark: a Park frame never comes before something that was there already.
func TestPark(t *testing.T) {
	m := NewMailbox(func() { t.Error("told of a Park frame") })
	if !m.park() || m.park() {
		t.Error("one Park frame, and only one")
	}
	b := make([]byte, 100)
	kinds, _ := frames(t, b[:m.read(b)])
	if len(kinds) != 1 || kinds[0] != abi.FramePark {
		t.Errorf("%v", kinds)
	}
	m.arrived = func() {}
	m.Push(abi.FrameEnd, 1, nil)
	if m.park() {
		t.Error("parked with a frame to read")
	}
	m.read(b[:5])
	if m.park() {
		t.Error("parked in the middle of a frame")
	}
}

// TestParkOrWork: while frames come from elsewhere each is read either before the
// Park frame or after it, in a later life; none is lost.
func TestParkOrWork(t *testing.T) {
	m := NewMailbox(func() {})
	const n = 2000
	go func() {
		for k := range n {
			m.Push(abi.FrameBody, 1, []byte{byte(k)})
		}
	}()
	seen, parked := 0, 0
	var rest []byte
	b := make([]byte, 64<<10)
	for seen < n {
		if !m.wait(0) {
			m.park()
		}
		kinds, payloads := frames(t, append(rest, b[:m.read(b)]...))
		for k, kind := range kinds {
			switch kind {
			case abi.FramePark:
				parked++
			case abi.FrameBody:
				if payloads[k] != string([]byte{byte(seen)}) {
					t.Fatalf("frame %d is %q", seen, payloads[k])
				}
				seen++
			}
		}
	}
	t.Logf("%d frames, parked %d times", seen, parked)
}

func TestOutputLines(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for name, c := range map[string]struct {
		writes []string
		want   []string
	}{
		"lines":             {[]string{"a\nb\n"}, []string{"a", "b"}},
		"pieces":            {[]string{"a", "b", "\nc", "d\n", "e"}, []string{"ab", "cd"}},
		"empty lines":       {[]string{"\n\na\n\n"}, []string{"a"}},
		"too long":          {[]string{long + "y\n"}, []string{long, "y"}},
		"as long as may be": {[]string{long, "\n", "y\n"}, []string{long, "y"}},
		"no text":           {[]string{"\x00\xff\n"}, []string{"\x00\xff"}},
	} {
		var got []string
		o := output{log: func(line string) { got = append(got, line) }}
		for _, w := range c.writes {
			o.write([]byte(w))
		}
		if strings.Join(got, "|") != strings.Join(c.want, "|") {
			t.Errorf("%s: %d lines, want %d", name, len(got), len(c.want))
		}
	}
}

func TestCauseOfEnd(t *testing.T) {
	for name, c := range map[string]struct {
		said   string
		exited bool
		want   string
	}{
		"exit":                  {"I0101 hello\nit does not want to\n", true, "it does not want to"},
		"panic":                 {"hello\npanic: oh\n\ngoroutine 1 [running]:\nmain.main()\nexit status 2\n", true, "panic: oh"},
		"fatal error":           {"fatal error: all goroutines are asleep\n[signal]\n", false, "fatal error: all goroutines are asleep"},
		"first of two":          {"panic: one\npanic: two\n", true, "panic: one"},
		"a trap after some log": {"I0101 working\n", false, ""},
		"nothing":               {"", true, ""},
	} {
		o := output{log: func(string) {}}
		o.write([]byte("panic: of an earlier call\n"))
		o.forget()
		o.write([]byte(c.said))
		o.flush()
		if got := o.cause(c.exited); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := trapCause("error while executing at wasm backtrace:\n    0: 0x1 - x\n\nCaused by:\n    wasm trap: call stack exhausted\n"); got != "wasm trap: call stack exhausted" {
		t.Errorf("%q", got)
	}
	if got := trapCause("plain"); got != "plain" {
		t.Errorf("%q", got)
	}
}

func FuzzMailbox(f *testing.F) {
	f.Add([]byte{3, 0, 250, 1, 7})
	f.Fuzz(func(t *testing.T, steps []byte) {
		m := NewMailbox(func() {})
		var in, out []byte
		for k, s := range steps {
			if s%2 == 0 {
				payload := bytes.Repeat([]byte{byte(k)}, int(s))
				m.Push(abi.FrameBody, uint32(k), payload)
				in = append(abi.FrameHeader{Kind: abi.FrameBody, Stream: uint32(k), Length: uint32(s)}.Append(in), payload...)
			} else {
				b := make([]byte, s)
				out = append(out, b[:m.read(b)]...)
			}
			if m.size != len(in)-len(out) || m.Empty() != (m.size == 0) {
				t.Fatalf("%d bytes, want %d", m.size, len(in)-len(out))
			}
		}
		b := make([]byte, m.size)
		out = append(out, b[:m.read(b)]...)
		if !bytes.Equal(in, out) {
			t.Fatal("other bytes came out")
		}
	})
}
