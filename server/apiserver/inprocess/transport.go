// Package inprocess lets parts of this process call the API server without a connection: a
// http.RoundTripper hands each request to the API server's handler chain.
//
// The identity of the caller travels in the request's context, which no client on the network can set.
// The chain is the one every request passes: authorization, priority and fairness, admission and audit
// apply as they do to anybody else. Only the proof of identity, a certificate or a token, is left out.
package inprocess

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
)

// Host is the host of a URL for a Transport. Any would do; this one shows in logs what it is.
const Host = "http://in-process.invalid"

type identityKey struct{}

// Authenticator recognises requests from a Transport and leaves every other to next.
func Authenticator(next authenticator.Request) authenticator.Request {
	return authenticator.RequestFunc(func(req *http.Request) (*authenticator.Response, bool, error) {
		if u, ok := req.Context().Value(identityKey{}).(user.Info); ok {
			return &authenticator.Response{User: u}, true, nil
		}
		return next.AuthenticateRequest(req)
	})
}

const (
	serviceAccountPrefix = "system:serviceaccount:"
	serviceAccountsGroup = "system:serviceaccounts"
)

// User returns the identity name with the given groups and those the API server itself would add:
// system:authenticated, and the groups of service accounts if it is one.
func User(name string, groups ...string) user.Info {
	groups = append(slices.Clone(groups), user.AllAuthenticated)
	if account, ok := strings.CutPrefix(name, serviceAccountPrefix); ok {
		namespace, _, _ := strings.Cut(account, ":")
		groups = append(groups, serviceAccountsGroup, serviceAccountsGroup+":"+namespace)
	}
	slices.Sort(groups)
	return &user.DefaultInfo{Name: name, Groups: slices.Compact(groups)}
}

// Controller is the identity upstream gives the controller of that name.
func Controller(name string) user.Info { return User(serviceAccountPrefix + "kube-system:" + name) }

// Transport sends requests to a handler of this process under one identity. It is safe for concurrent
// use. A response's body delivers what the handler has written as soon as it has written it, so watches
// work; upgrades of the connection (exec, attach, port-forward) do not.
type Transport struct {
	handler http.Handler
	user    user.Info
}

// NewTransport returns a Transport to handler under the identity u.
func NewTransport(handler http.Handler, u user.Info) *Transport {
	return &Transport{handler: handler, user: u}
}

// RoundTrip implements http.RoundTripper. Cancelling the request's context, or closing the body of the
// response, cancels the context the handler sees. As with a real connection a handler that panics before
// it has answered makes RoundTrip fail, and later makes the body end in io.ErrUnexpectedEOF.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(context.WithValue(req.Context(), identityKey{}, t.user))
	// The chain edits headers and URL, and the caller may still look at them.
	in := req.Clone(ctx)
	in.RequestURI = in.URL.RequestURI()
	in.Host, in.URL.Host, in.URL.Scheme = in.URL.Host, "", ""
	in.Proto, in.ProtoMajor, in.ProtoMinor = "HTTP/2.0", 2, 0
	in.RemoteAddr = "127.0.0.1:0"
	if in.Body == nil {
		in.Body = http.NoBody
	}

	s := newStream(ctx, cancel)
	go func() {
		defer in.Body.Close()
		s.finish(serve(t.handler, s, in))
	}()

	select {
	case <-s.started:
	case <-ctx.Done():
		cancel()
		return nil, ctx.Err()
	}
	if s.failed != nil {
		cancel()
		return nil, fmt.Errorf("%s %s: %w", req.Method, req.URL.Path, s.failed)
	}
	return &http.Response{
		Status: http.StatusText(s.code), StatusCode: s.code, Proto: "HTTP/2.0", ProtoMajor: 2,
		Header: s.sent, Body: (*body)(s), ContentLength: -1, Request: req,
	}, nil
}

// serve returns an error if the handler panicked.
func serve(h http.Handler, w http.ResponseWriter, req *http.Request) (err error) {
	defer func() {
		switch r := recover(); r {
		case nil:
		case http.ErrAbortHandler: // how a handler breaks a connection; already logged where it mattered
			err = io.ErrUnexpectedEOF
		default:
			logrus.Errorf("panic while serving %s %s: %v\n%s", req.Method, req.URL.Path, r, debug.Stack())
			err = io.ErrUnexpectedEOF
		}
	}()
	h.ServeHTTP(w, req)
	return nil
}

// highWater is how many bytes a handler may be ahead of the reader of the body before Write waits.
const highWater = 256 << 10

// keep is the largest buffer that is kept for the next event once the reader has caught up: watches are many,
// and silent for most of the time.
const keep = 1 << 10

// stream is one request and its response: a ResponseWriter to the handler, a body to the caller.
type stream struct {
	ctx    context.Context
	cancel context.CancelFunc

	// Written by the handler's goroutine, read after started is closed.
	header  http.Header
	sent    http.Header
	code    int
	failed  error
	started chan struct{}
	once    sync.Once

	mu   sync.Mutex
	cond sync.Cond // the buffer, done or ctx changed
	buf  []byte
	off  int // what of buf has been read
	done bool
	err  error // what the body ends with, nil for io.EOF
}

func newStream(ctx context.Context, cancel context.CancelFunc) *stream {
	s := &stream{ctx: ctx, cancel: cancel, header: http.Header{}, started: make(chan struct{})}
	s.cond.L = &s.mu
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cond.Broadcast()
	})
	return s
}

// Header implements http.ResponseWriter.
func (s *stream) Header() http.Header { return s.header }

// WriteHeader implements http.ResponseWriter.
func (s *stream) WriteHeader(code int) {
	if code >= 100 && code < 200 {
		return // informational; the answer is still to come
	}
	s.once.Do(func() {
		s.code, s.sent = code, s.header.Clone()
		close(s.started)
	})
}

// Write implements http.ResponseWriter. It waits while the reader is far behind.
func (s *stream) Write(p []byte) (int, error) {
	s.WriteHeader(http.StatusOK)
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.buf)-s.off > highWater && s.ctx.Err() == nil {
		s.cond.Wait()
	}
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	s.buf = append(s.buf, p...)
	s.cond.Broadcast()
	return len(p), nil
}

// Flush implements http.Flusher. Nothing waits for it: what is written can be read at once.
func (s *stream) Flush() { s.WriteHeader(http.StatusOK) }

// CloseNotify implements http.CloseNotifier, by which the API server knows a writer that can stream.
func (s *stream) CloseNotify() <-chan bool {
	c := make(chan bool, 1)
	context.AfterFunc(s.ctx, func() { c <- true })
	return c
}

// finish ends the response. If the handler failed before it answered there is none.
func (s *stream) finish(err error) {
	s.once.Do(func() {
		s.code, s.sent, s.failed = http.StatusOK, s.header.Clone(), err
		close(s.started)
	})
	if err == nil {
		// A handler that was cancelled returns early: what it wrote must not pass for the whole.
		err = s.ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.done {
		s.done, s.err = true, err
	}
	s.cond.Broadcast()
}

var errBodyClosed = errors.New("read from a closed response body")

// body is the caller's view of a stream.
type body stream

// Read implements io.Reader. What was written before the end, or before a cancellation by the handler's
// side, is delivered first.
func (b *body) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		if b.off < len(b.buf) {
			n := copy(p, b.buf[b.off:])
			b.off += n
			if b.off == len(b.buf) {
				b.off, b.buf = 0, b.buf[:0]
				if cap(b.buf) > keep {
					b.buf = nil
				}
			}
			b.cond.Broadcast()
			return n, nil
		}
		if b.done {
			b.cancel() // releases what hangs on the context
			if b.err != nil {
				return 0, b.err
			}
			return 0, io.EOF
		}
		if err := b.ctx.Err(); err != nil {
			return 0, err
		}
		b.cond.Wait()
	}
}

// Close implements io.Closer. Before the end of the body it cancels the request.
func (b *body) Close() error {
	b.cancel()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.done || b.off < len(b.buf) {
		b.buf, b.off, b.done, b.err = nil, 0, true, errBodyClosed
	}
	return nil
}
