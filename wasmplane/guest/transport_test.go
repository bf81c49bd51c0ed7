package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
)

// fakeHost takes requests and remembers what was cancelled.
type fakeHost struct {
	table     *table
	requests  chan *abi.Request
	cancelled chan uint32
	errno     uint32
}

func newFakeHost() *fakeHost {
	h := &fakeHost{requests: make(chan *abi.Request, 100), cancelled: make(chan uint32, 1000)}
	h.table = &table{open: map[uint32]*exchange{}}
	h.table.send = func(b []byte) uint32 {
		if h.errno != abi.OK {
			return h.errno
		}
		r, err := abi.DecodeRequest(b)
		if err != nil {
			return abi.ErrFormat
		}
		h.requests <- r
		return abi.OK
	}
	h.table.cancel = func(stream uint32) { h.cancelled <- stream }
	return h
}

// say delivers one frame.
func (h *fakeHost) say(t *testing.T, kind abi.Kind, stream uint32, payload []byte) {
	t.Helper()
	if err := h.table.deliver(abi.FrameHeader{Kind: kind, Stream: stream, Length: uint32(len(payload))}, bytes.NewReader(payload)); err != nil {
		t.Error(err)
	}
}

func (h *fakeHost) head(t *testing.T, stream uint32, status int) {
	t.Helper()
	h.say(t, abi.FrameHead, stream, (&abi.Head{Status: status, Header: http.Header{"Content-Type": {"text/plain"}}}).Append(nil))
}

// expect checks what was cancelled since it was called last, and that no exchange
// is left.
func (h *fakeHost) expect(t *testing.T, cancelled ...uint32) {
	t.Helper()
	for _, want := range cancelled {
		if got := <-h.cancelled; got != want {
			t.Errorf("cancelled %d, want %d", got, want)
		}
	}
	select {
	case id := <-h.cancelled:
		t.Errorf("cancelled %d as well", id)
	default:
	}
	h.table.mu.Lock()
	defer h.table.mu.Unlock()
	if n := len(h.table.open); n != 0 {
		t.Errorf("%d exchanges are left open", n)
	}
}

type result struct {
	resp *http.Response
	err  error
}

// do makes a request in the background.
func (h *fakeHost) do(ctx context.Context, t *testing.T) <-chan result {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://ignored/api/v1/things?x=1", strings.NewReader("ask"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan result, 1)
	go func() {
		resp, err := h.table.RoundTrip(req) //nolint:bodyclose // the test does
		done <- result{resp, err}
	}()
	return done
}

// begin makes a request and has the host answer with a head.
func (h *fakeHost) begin(ctx context.Context, t *testing.T) (uint32, *http.Response) {
	t.Helper()
	done := h.do(ctx, t)
	id := (<-h.requests).Stream
	h.head(t, id, http.StatusOK)
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return id, r.resp
}

func TestRoundTrip(t *testing.T) {
	h := newFakeHost()
	done := h.do(t.Context(), t)
	req := <-h.requests
	if req.Method != http.MethodPut || req.URL != "/api/v1/things?x=1" || string(req.Body) != "ask" {
		t.Errorf("the host got %+v", req)
	}
	h.head(t, req.Stream, http.StatusNotFound)
	h.say(t, abi.FrameBody, req.Stream, []byte("an"))
	h.say(t, abi.FrameBody, req.Stream, []byte("swer"))
	h.say(t, abi.FrameEnd, req.Stream, nil)
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	if r.resp.StatusCode != http.StatusNotFound || r.resp.Status != "404 Not Found" || r.resp.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("%+v", r.resp)
	}
	body, err := io.ReadAll(r.resp.Body)
	if err != nil || string(body) != "answer" {
		t.Errorf("body %q, %v", body, err)
	}
	if err := r.resp.Body.Close(); err != nil {
		t.Error(err)
	}
	h.expect(t) // a whole response is not cancelled
}

// TestLongBody sends a body in many frames, which are read in pieces of another
// size at the same time.
func TestLongBody(t *testing.T) {
	h := newFakeHost()
	id, resp := h.begin(t.Context(), t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	go func() {
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 10007)
			h.say(t, abi.FrameBody, id, rest[:n])
			rest = rest[n:]
		}
		h.say(t, abi.FrameBody, id, nil)
		h.say(t, abi.FrameEnd, id, nil)
	}()
	got, err := io.ReadAll(iotest.HalfReader(resp.Body))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived, want %d: %v", len(got), len(want), err)
	}
	resp.Body.Close()
	h.expect(t)
}

func TestHostRefuses(t *testing.T) {
	for errno, want := range map[uint32]string{abi.ErrLimit: "too many requests", abi.ErrFormat: "refused"} {
		h := newFakeHost()
		h.errno = errno
		if r := <-h.do(t.Context(), t); r.err == nil || !strings.Contains(r.err.Error(), want) {
			t.Errorf("errno %d: %v", errno, r.err)
		}
		h.expect(t)
	}
}

func TestFail(t *testing.T) {
	t.Run("before the head", func(t *testing.T) {
		h := newFakeHost()
		done := h.do(t.Context(), t)
		h.say(t, abi.FrameFail, (<-h.requests).Stream, []byte("no server"))
		if r := <-done; r.err == nil || r.err.Error() != "no server" {
			t.Errorf("%v", r.err)
		}
		h.expect(t)
	})
	t.Run("after the head", func(t *testing.T) {
		h := newFakeHost()
		id, resp := h.begin(t.Context(), t)
		h.say(t, abi.FrameBody, id, []byte("half"))
		h.say(t, abi.FrameFail, id, []byte("server gone"))
		body, err := io.ReadAll(resp.Body)
		if string(body) != "half" || err == nil || err.Error() != "server gone" {
			t.Errorf("%q, %v", body, err)
		}
		h.expect(t)
	})
	t.Run("end without a head", func(t *testing.T) {
		h := newFakeHost()
		done := h.do(t.Context(), t)
		h.say(t, abi.FrameEnd, (<-h.requests).Stream, nil)
		if r := <-done; !errors.Is(r.err, io.ErrUnexpectedEOF) {
			t.Errorf("%v", r.err)
		}
		h.expect(t)
	})
	t.Run("request body", func(t *testing.T) {
		h := newFakeHost()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://x/", iotest.ErrReader(io.ErrClosedPipe))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.table.RoundTrip(req); !errors.Is(err, io.ErrClosedPipe) { //nolint:bodyclose // there is none
			t.Errorf("%v", err)
		}
		h.expect(t)
	})
}

func TestCancel(t *testing.T) {
	t.Run("before the request", func(t *testing.T) {
		h := newFakeHost()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if r := <-h.do(ctx, t); !errors.Is(r.err, context.Canceled) {
			t.Errorf("%v", r.err)
		}
		h.expect(t)
	})
	t.Run("before the head", func(t *testing.T) {
		h := newFakeHost()
		ctx, cancel := context.WithCancel(t.Context())
		done := h.do(ctx, t)
		id := (<-h.requests).Stream
		cancel()
		if r := <-done; !errors.Is(r.err, context.Canceled) {
			t.Errorf("%v", r.err)
		}
		h.expect(t, id)
		h.head(t, id, http.StatusOK) // was under way
		h.say(t, abi.FrameBody, id, []byte("late"))
		h.say(t, abi.FrameEnd, id, nil)
		h.expect(t)
	})
	t.Run("while reading", func(t *testing.T) {
		h := newFakeHost()
		ctx, cancel := context.WithCancel(t.Context())
		id, resp := h.begin(ctx, t)
		h.say(t, abi.FrameBody, id, []byte("some"))
		if _, err := io.ReadFull(resp.Body, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := resp.Body.Read(make([]byte, 4)); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		resp.Body.Close()
		h.expect(t, id)
	})
}

func TestClose(t *testing.T) {
	h := newFakeHost()
	id, resp := h.begin(t.Context(), t)
	read := make(chan error, 1)
	go func() {
		_, err := resp.Body.Read(make([]byte, 4))
		read <- err
	}()
	resp.Body.Close()
	if err := <-read; err == nil || err == io.EOF {
		t.Errorf("a read that Close interrupts returns %v", err)
	}
	resp.Body.Close()
	h.expect(t, id) // once
}

// TestEndWhileHeadArrives: the guest gives up between the moment in which a head's
// exchange is found and the moment in which it is handed over.
func TestEndWhileHeadArrives(t *testing.T) {
	h := newFakeHost()
	x := h.table.begin()
	payload := (&abi.Head{Status: 200}).Append(nil)
	r := io.MultiReader(bytes.NewReader(payload[:1]), readFunc(func(p []byte) (int, error) {
		x.end(context.Canceled, true)
		return copy(p, payload[1:]), nil
	}))
	if err := h.table.deliver(abi.FrameHeader{Kind: abi.FrameHead, Stream: x.stream, Length: uint32(len(payload))}, r); err != nil {
		t.Error(err)
	}
	h.expect(t, x.stream)
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func TestDeliverRefuses(t *testing.T) {
	h := newFakeHost()
	x := h.table.begin()
	head := (&abi.Head{Status: 200}).Append(nil)
	h.say(t, abi.FrameHead, x.stream, head)
	for name, c := range map[string]struct {
		kind    abi.Kind
		payload []byte
		length  int
	}{
		"a second head":    {abi.FrameHead, head, len(head)},
		"a malformed head": {abi.FrameHead, []byte{0xff}, 1},
		"a short head":     {abi.FrameHead, head, len(head) + 1},
		"a short body":     {abi.FrameBody, []byte("x"), 2},
		"start":            {abi.FrameStart, nil, 0},
	} {
		if err := h.table.deliver(abi.FrameHeader{Kind: c.kind, Stream: x.stream, Length: uint32(c.length)}, bytes.NewReader(c.payload)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if n := len(x.buf); n != 0 {
		t.Errorf("%d bytes of a short body were kept", n)
	}
	if err := h.table.deliver(abi.FrameHeader{Kind: abi.FrameBody, Stream: 77, Length: 5}, strings.NewReader("x")); err == nil {
		t.Error("a short body of an exchange that is over was accepted")
	}
}

func TestNumbersAreNotReused(t *testing.T) {
	h := newFakeHost()
	h.table.last = 1<<32 - 3
	h.table.open[1] = &exchange{} // a watch from long ago
	var got []uint32
	for range 4 {
		got = append(got, h.table.begin().stream)
	}
	if want := "[4294967294 4294967295 2 3]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
}

// TestManyExchanges has many at a time, some of which end early from either side.
func TestManyExchanges(t *testing.T) {
	h := newFakeHost()
	const n = 200
	var done sync.WaitGroup
	for k := range n {
		done.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if k%5 == 1 {
				go cancel()
			}
			r := <-h.do(ctx, t)
			if r.err != nil {
				return
			}
			defer r.resp.Body.Close()
			if k%5 == 2 {
				return
			}
			if _, err := io.ReadAll(r.resp.Body); err != nil && k%5 > 2 {
				t.Error(err)
			}
		})
	}
	stop := make(chan struct{})
	pump := make(chan struct{})
	go func() { // the pump is one goroutine
		defer close(pump)
		for {
			select {
			case r := <-h.requests:
				h.head(t, r.Stream, http.StatusOK)
				h.say(t, abi.FrameBody, r.Stream, []byte("body"))
				h.say(t, abi.FrameEnd, r.Stream, nil)
			case <-stop:
				return
			}
		}
	}()
	done.Wait()
	close(stop)
	<-pump
	if n := len(h.table.open); n != 0 {
		t.Errorf("%d exchanges are left open", n)
	}
}

// FuzzDeliver feeds frames to two exchanges, one of which is being read.
func FuzzDeliver(f *testing.F) {
	frame := func(kind abi.Kind, stream uint32, payload string) []byte {
		return append(abi.FrameHeader{Kind: kind, Stream: stream, Length: uint32(len(payload))}.Append(nil), payload...)
	}
	head := string((&abi.Head{Status: 200}).Append(nil))
	f.Add(bytes.Join([][]byte{frame(abi.FrameHead, 1, head), frame(abi.FrameBody, 1, "x"), frame(abi.FrameEnd, 1, ""), frame(abi.FrameFail, 2, "no")}, nil))
	f.Add(bytes.Join([][]byte{frame(abi.FrameEnd, 1, ""), frame(abi.FrameHead, 1, head), frame(abi.FrameBody, 2, "xyz")}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h := newFakeHost()
		first, second := h.table.begin(), h.table.begin()
		first.stop, second.stop = func() bool { return true }, func() bool { return true }
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = io.Copy(io.Discard, first)
		}()
		r := bytes.NewReader(b)
		for {
			var header [abi.HeaderSize]byte
			if _, err := io.ReadFull(r, header[:]); err != nil {
				break
			}
			fh, err := abi.DecodeHeader(header[:])
			if err != nil || h.table.deliver(fh, r) != nil {
				break
			}
		}
		first.Close()
		second.Close()
		<-read
		if len(h.table.open) != 0 {
			t.Errorf("%d exchanges are left open", len(h.table.open))
		}
	})
}
