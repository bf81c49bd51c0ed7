package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
)

// exchanges are the requests of this guest that are under way.
var exchanges = table{open: map[uint32]*exchange{}}

// table numbers exchanges and routes frames to them.
type table struct {
	send   func(request []byte) uint32 // the host's request function; returns an errno of package abi
	cancel func(stream uint32)         // the host's cancel function

	mu   sync.Mutex
	last uint32
	open map[uint32]*exchange
}

// exchange is one request and what has arrived of its response.
type exchange struct {
	table  *table
	stream uint32
	head   chan *abi.Head // one head, or closed when the exchange failed before it
	stop   func() bool    // detaches from the request's context

	mu   sync.Mutex
	more sync.Cond // something below changed
	buf  []byte    // body bytes that have not been read
	err  error     // what Read returns once buf is empty
}

// RoundTrip implements http.RoundTripper.
func (t *table) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	var body []byte
	if req.Body != nil {
		var err error
		body, err = io.ReadAll(req.Body)
		req.Body.Close()
		if err != nil {
			return nil, fmt.Errorf("reading the body of %s %s: %w", req.Method, req.URL.Path, err)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	x := t.begin()
	out := abi.Request{Stream: x.stream, Method: req.Method, URL: req.URL.RequestURI(), Header: req.Header, Body: body}
	switch errno := t.send(out.Append(nil)); errno {
	case abi.OK:
	case abi.ErrLimit:
		t.forget(x.stream)
		return nil, fmt.Errorf("%s %s: too many requests at a time", req.Method, req.URL.Path)
	default:
		t.forget(x.stream)
		return nil, fmt.Errorf("%s %s: the host refused the request (%d)", req.Method, req.URL.Path, errno)
	}
	x.stop = context.AfterFunc(ctx, func() { x.end(ctx.Err(), true) })
	select {
	case h, ok := <-x.head:
		if !ok {
			x.stop()
			return nil, x.failure()
		}
		return &http.Response{
			Status:     fmt.Sprintf("%d %s", h.Status, http.StatusText(h.Status)),
			StatusCode: h.Status,
			Proto:      "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header:        h.Header,
			Body:          x,
			ContentLength: -1,
			Request:       req,
		}, nil
	case <-ctx.Done():
		x.stop()
		x.end(ctx.Err(), true)
		return nil, ctx.Err()
	}
}

func (t *table) begin() *exchange {
	x := &exchange{table: t, head: make(chan *abi.Head, 1)}
	x.more.L = &x.mu
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		t.last++
		if _, taken := t.open[t.last]; t.last != 0 && !taken {
			break
		}
	}
	x.stream = t.last
	t.open[x.stream] = x
	return x
}

// forget reports whether the exchange was still open.
func (t *table) forget(stream uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.open[stream]
	delete(t.open, stream)
	return ok
}

// deliver routes one frame; payload is read from r, which holds exactly
// h.Length bytes of it. Frames of exchanges that are over are dropped.
func (t *table) deliver(h abi.FrameHeader, r io.Reader) error {
	t.mu.Lock()
	x := t.open[h.Stream]
	t.mu.Unlock()
	if x == nil {
		_, err := io.CopyN(io.Discard, r, int64(h.Length))
		return err
	}
	if h.Kind == abi.FrameBody {
		return x.fill(int(h.Length), r)
	}
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(r, payload); err != nil {
		return err
	}
	switch h.Kind {
	case abi.FrameHead:
		head, err := abi.DecodeHead(payload)
		if err != nil {
			return err
		}
		return x.begin(head)
	case abi.FrameEnd:
		x.end(io.EOF, false)
	case abi.FrameFail:
		x.end(errors.New(string(payload)), false)
	default:
		return fmt.Errorf("a %s frame for exchange %d", h.Kind, h.Stream)
	}
	return nil
}

// begin hands over the head.
func (x *exchange) begin(head *abi.Head) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err != nil {
		return nil // over since it was looked up; x.head is closed
	}
	select {
	case x.head <- head:
		return nil
	default:
		return fmt.Errorf("a second head for exchange %d", x.stream)
	}
}

// fill appends n bytes from r to the body. Only the pump calls it, and the
// mailbox never blocks in the middle of a frame, so the lock is held for long
// by nobody.
func (x *exchange) fill(n int, r io.Reader) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err != nil {
		_, err := io.CopyN(io.Discard, r, int64(n))
		return err
	}
	have := len(x.buf)
	x.buf = slices.Grow(x.buf, n)[:have+n]
	if _, err := io.ReadFull(r, x.buf[have:]); err != nil {
		x.buf = x.buf[:have]
		return err
	}
	x.more.Broadcast()
	return nil
}

// end closes the exchange from either side. The first reason stays.
func (x *exchange) end(reason error, tell bool) {
	if !x.table.forget(x.stream) {
		return
	}
	if tell {
		x.table.cancel(x.stream)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.err = reason
	x.more.Broadcast()
	close(x.head)
}

func (x *exchange) failure() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return x.err
}

// Read implements io.Reader over the response body.
func (x *exchange) Read(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for len(x.buf) == 0 && x.err == nil {
		x.more.Wait()
	}
	if len(x.buf) == 0 {
		return 0, x.err
	}
	n := copy(p, x.buf)
	x.buf = x.buf[n:]
	if len(x.buf) == 0 {
		x.buf = nil // a sleeping guest carries no empty buffers
	}
	return n, nil
}

// Close implements io.Closer over the response body.
func (x *exchange) Close() error {
	x.stop()
	x.end(errors.New("read on a closed response body"), true)
	return nil
}
