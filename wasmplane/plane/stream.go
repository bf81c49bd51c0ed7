package plane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

const (
	// maxExchanges bounds the requests that a guest may have under way. The
	// garbage collector watches every resource of the cluster, each with one.
	maxExchanges = 2048

	// chunk is how much of a response body goes into one frame, in bytes.
	chunk = 64 << 10

	// watchTimeout is how long the API server keeps a watch open that the host
	// asked for. Guests ask for 5 to 10 minutes; the host renews for them.
	watchTimeout = time.Hour

	// renewAttempts is how often a watch is renewed in vain before its guest is
	// told that it ended.
	renewAttempts = 6
)

// allowedHeaders are all that a guest may say about a request. Who it is, is not
// for the guest to say.
var allowedHeaders = []string{"Accept", "Content-Type", "User-Agent"}

// exchange is one request of a guest that is under way.
type exchange struct {
	guest    *guest
	id       uint32
	method   string
	url      *url.URL
	header   http.Header
	body     []byte
	watch    bool
	resource string // as in declarations: "pods", "leases.coordination.k8s.io"
	cancel   context.CancelFunc

	// Guarded by guest.mu.
	settled   bool   // a watch whose response has begun
	closed    bool   // nothing more is delivered
	seen      string // resourceVersion up to which the host has seen events
	delivered string // resourceVersion up to which the guest was given them
	members   members
	waiting   []waitingEvent
}

// waitingEvent is an event that does not wake the guest.
type waitingEvent struct {
	event // the latest of its object
	raw   []byte
	joins int // of all events that it stands for
	since time.Time
}

// newExchange checks a guest's request.
func (g *guest) newExchange(r *abi.Request) (*exchange, error) {
	if !strings.HasPrefix(r.URL, "/") {
		return nil, fmt.Errorf("URL %q is not a path", r.URL)
	}
	u, err := url.ParseRequestURI(r.URL)
	if err != nil {
		return nil, err
	}
	header := http.Header{}
	for _, name := range allowedHeaders {
		if vs := r.Header.Values(name); len(vs) > 0 {
			header[name] = slices.Clone(vs)
		}
	}
	query := u.Query()
	watch, _ := strconv.ParseBool(query.Get("watch"))
	from := ""
	if query.Get("sendInitialEvents") != "true" {
		from = query.Get("resourceVersion")
	}
	return &exchange{
		guest:    g,
		id:       r.Stream,
		method:   r.Method,
		url:      u,
		header:   header,
		body:     r.Body,
		watch:    watch && r.Method == http.MethodGet,
		resource: resourceOf(u.Path),

		seen:      from,
		delivered: from,
	}, nil
}

// resourceOf names the resource of a collection's path, as declarations do. Other
// paths give something for people to read.
func resourceOf(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	resource := parts[len(parts)-1]
	if parts[0] == "apis" && len(parts) > 2 {
		resource += "." + parts[1]
	}
	return resource
}

// resumeExchange is a watch that was open when its guest was saved.
func (g *guest) resumeExchange(s snapshot.Stream) (*exchange, error) {
	x, err := g.newExchange(&abi.Request{Stream: s.ID, Method: http.MethodGet, URL: s.URL, Header: s.Header})
	if err != nil {
		return nil, err
	}
	x.settled, x.seen, x.delivered = true, s.Revision, s.Revision
	x.members = members{known: s.MembersKnown, sum: s.Members}
	return x, nil
}

// snapshotStream is what is kept of a watch while its guest sleeps; guest.mu is
// held.
func (x *exchange) snapshotStream() snapshot.Stream {
	return snapshot.Stream{
		ID: x.id, URL: x.url.RequestURI(), Header: x.header,
		Revision: x.delivered, MembersKnown: x.members.known, Members: x.members.sum,
	}
}

// run does the exchange and delivers the response.
func (x *exchange) run(ctx context.Context) {
	var err error
	if x.watch {
		err = x.runWatch(ctx)
	} else {
		err = x.runOnce(ctx)
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		x.deliver(ctx, abi.FrameFail, []byte(err.Error()), "response to "+x.method+" "+x.resource)
	} else {
		x.deliver(ctx, abi.FrameEnd, nil, "end of "+x.what())
	}
}

func (x *exchange) what() string {
	if x.watch {
		return "watch of " + x.resource
	}
	return "response to " + x.method + " " + x.resource
}

func (x *exchange) roundTrip(ctx context.Context, query url.Values) (*http.Response, error) {
	u := *x.url
	u.Scheme, u.Host = "http", "dormouse"
	if query != nil {
		u.RawQuery = query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, x.method, u.String(), bytes.NewReader(x.body))
	if err != nil {
		return nil, err
	}
	req.Header = x.header.Clone()
	return x.guest.transport.RoundTrip(req)
}

func (x *exchange) runOnce(ctx context.Context) error {
	resp, err := x.roundTrip(ctx, nil)
	if err != nil {
		return err
	}
	return x.forward(ctx, resp)
}

// forward delivers a whole response but its end.
func (x *exchange) forward(ctx context.Context, resp *http.Response) error {
	defer resp.Body.Close()
	if err := x.deliverHead(ctx, resp); err != nil {
		return err
	}
	buf := make([]byte, chunk)
	for {
		n, err := io.ReadFull(resp.Body, buf)
		if n > 0 {
			if err := x.deliver(ctx, abi.FrameBody, buf[:n], x.what()); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func (x *exchange) deliverHead(ctx context.Context, resp *http.Response) error {
	head := abi.Head{Status: resp.StatusCode, Header: http.Header{}}
	for _, name := range []string{"Content-Type", "Retry-After", "Warning"} {
		if vs := resp.Header.Values(name); len(vs) > 0 {
			head.Header[name] = vs
		}
	}
	return x.deliver(ctx, abi.FrameHead, head.Append(nil), x.what())
}

// deliver puts a frame into the mailbox, behind the events that waited.
func (x *exchange) deliver(ctx context.Context, kind abi.Kind, payload []byte, reason string) error {
	g := x.guest
	if err := g.mailbox.Room(ctx); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stirred = time.Now()
	return x.push(kind, payload, reason)
}

// push is deliver with guest.mu held and without waiting for room.
func (x *exchange) push(kind abi.Kind, payload []byte, reason string) error {
	if x.closed {
		return context.Canceled
	}
	g := x.guest
	g.flushWaiting()
	g.noteCause(reason)
	g.mailbox.Push(kind, x.id, payload)
	if kind == abi.FrameEnd || kind == abi.FrameFail {
		g.close(x) // at once: a snapshot must not have a watch that its guest knows to be over
	}
	return nil
}

// runWatch keeps a watch open for as long as the guest wants it. The guest sees
// one response that never ends; the host renews the request underneath and keeps
// bookmarks to itself.
func (x *exchange) runWatch(ctx context.Context) error {
	g := x.guest
	query := x.url.Query()
	g.mu.Lock()
	began := x.settled // it was resumed
	initial := !began && query.Get("sendInitialEvents") == "true"
	if !began {
		x.members.known = initial
	}
	g.mu.Unlock()
	for attempt := 0; ; {
		query.Set("timeoutSeconds", strconv.Itoa(int((watchTimeout + rand.N(watchTimeout/4)).Seconds())))
		query.Set("allowWatchBookmarks", "true")
		if began {
			g.mu.Lock()
			seen := x.seen
			g.mu.Unlock()
			if seen == "" || seen == "0" {
				return nil // nothing to go on from: the guest lists again
			}
			query.Set("resourceVersion", seen)
			query.Del("resourceVersionMatch")
			query.Del("sendInitialEvents")
		}
		resp, err := x.roundTrip(ctx, query)
		var expired []byte // the event that says so, or empty
		switch {
		case err != nil && !began:
			return err
		case err == nil && resp.StatusCode != http.StatusOK && !began:
			return x.forward(ctx, resp)
		case err == nil && resp.StatusCode == http.StatusOK:
			if !began {
				if err := x.deliverHead(ctx, resp); err != nil {
					resp.Body.Close()
					return err
				}
				if !initial {
					g.settle(x)
				}
				began = true
			}
			var progress bool
			progress, expired, err = x.forwardEvents(ctx, resp, &initial)
			if progress {
				attempt = 0
			}
			if initial && expired == nil {
				return nil // ended before the list was complete
			}
		case err == nil:
			resp.Body.Close()
			err = fmt.Errorf("status %d", resp.StatusCode)
			switch resp.StatusCode {
			case http.StatusGone:
				expired = []byte{}
			case http.StatusForbidden:
				return nil
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if expired != nil && !initial {
			missed := x.catchUp(ctx)
			if missed == nil {
				expired = nil
			} else {
				g.log.WithField("resource", x.resource).Debugf("watch cannot go on: %v", missed)
			}
		}
		if expired != nil {
			if len(expired) > 0 {
				return x.deliver(ctx, abi.FrameBody, expired, "end of the watch of "+x.resource)
			}
			return nil
		}
		if attempt++; attempt > renewAttempts {
			g.log.WithField("resource", x.resource).Debugf("watch could not be renewed: %v", err)
			return nil
		}
		if attempt > 1 { // the first renewal is the ordinary one
			select {
			case <-time.After(time.Duration(attempt) * time.Second):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// forwardEvents delivers events until the response ends. progress says that there
// were any; expired is the error event that ended them.
func (x *exchange) forwardEvents(ctx context.Context, resp *http.Response, initial *bool) (progress bool, expired []byte, err error) {
	defer resp.Body.Close()
	events, err := newEventReader(resp.Header.Get("Content-Type"), resp.Body)
	if err != nil {
		return false, nil, err
	}
	for {
		ev, raw, err := events.next()
		if err != nil {
			return progress, nil, err
		}
		switch {
		case ev.Type == bookmark && !(ev.InitialEnd && *initial):
			x.pass(ev)
		case ev.Type == errorEvent:
			return progress, raw, nil
		default:
			if ev.InitialEnd {
				*initial = false
			}
			if err := x.deliverEvent(ctx, ev, raw, *initial); err != nil {
				return true, nil, err
			}
			if ev.InitialEnd {
				x.guest.settle(x) // not before: the rest of a list cannot be resumed
			}
		}
		progress = true
	}
}

// pass notes a bookmark.
func (x *exchange) pass(ev event) {
	g := x.guest
	g.mu.Lock()
	defer g.mu.Unlock()
	x.seen = ev.Revision
	if len(x.waiting) == 0 {
		x.delivered = ev.Revision
	}
}

// deliverEvent gives an event to the guest, or lets it wait if the guest's
// declaration says so.
func (x *exchange) deliverEvent(ctx context.Context, ev event, raw []byte, initial bool) error {
	g := x.guest
	if err := g.mailbox.Room(ctx); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if x.closed {
		return context.Canceled
	}
	if ev.Revision != "" {
		x.seen = ev.Revision
	}
	g.noteHeartbeat(x, ev)
	if !initial && g.mayWait(x, ev) {
		x.wait(ev, raw)
		return nil
	}
	if initial || !g.needNotWake(x, ev) {
		g.stirred = time.Now()
	}
	reason := ev.Type + " " + x.resource
	if ev.Name != "" {
		reason += " " + strings.TrimPrefix(ev.Namespace+"/"+ev.Name, "/")
	}
	if err := x.push(abi.FrameBody, raw, reason); err != nil {
		return err
	}
	x.members.note(ev, ev.joins())
	x.delivered = x.seen
	return nil
}

// wait keeps the latest event of each object; guest.mu is held.
func (x *exchange) wait(ev event, raw []byte) {
	since, joins := time.Now(), ev.joins()
	x.waiting = slices.DeleteFunc(x.waiting, func(w waitingEvent) bool {
		if w.UID == ev.UID {
			since = w.since
			joins += w.joins
			return true
		}
		return false
	})
	x.waiting = append(x.waiting, waitingEvent{event: ev, raw: raw, joins: joins, since: since})
}

// flush moves waiting events into the mailbox; guest.mu is held.
func (x *exchange) flush() {
	for _, w := range x.waiting {
		x.guest.mailbox.Push(abi.FrameBody, x.id, w.raw)
		x.members.note(w.event, w.joins)
		x.delivered = w.Revision
	}
	x.waiting = nil
}
