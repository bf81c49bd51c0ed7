package plane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

// chunk is how much of a response body goes into one frame, in bytes.
const chunk = 64 << 10

// exchange is one request of a guest that is under way.
type exchange struct {
	guest    *guest
	id       uint32
	method   string
	url      *url.URL
	header   http.Header
	body     []byte
	resource string          // as in declarations: "pods", "leases.coordination.k8s.io"
	ctx      context.Context // ends when the exchange is closed
	cancel   context.CancelFunc
	size     int    // of the request, in bytes
	release  func() // makes room for another request; see run

	watch   bool
	objects string // path and selectors of what is watched

	// Guarded by feeds.mu.
	feed   *feed  // that a watch follows
	joined uint64 // revision that it had seen when it joined
	form   string // in which it is told of objects

	// Guarded by guest.mu.
	settled   bool   // a watch that can go on from what was seen of it
	closed    bool   // nothing more is delivered
	seen      string // resourceVersion up to which the host has seen events
	delivered string // resourceVersion up to which the guest was given them
	attempts  int    // to renew the watch since something was seen of it
	attempted time.Time
	members   members
	having    map[uint64]bool   // see lacksFields; nil: not known
	digests   map[uint64]uint64 // see noteChange
	waiting   []waitingEvent
}

// waitingEvent is an event that does not wake the guest.
type waitingEvent struct {
	event // the latest of its object
	raw   []byte
	joins int       // of all events that it stands for
	due   time.Time // when it wakes the guest after all; zero: never
	born  bool      // the first of all was that it was added: the guest does not know it
}

// newExchange checks a guest's request.
func (g *guest) newExchange(r *abi.Request) (*exchange, error) {
	if !slices.Contains(allowedMethods, r.Method) {
		return nil, fmt.Errorf("method %.20q", r.Method)
	}
	u, err := target(r.URL)
	if err != nil {
		return nil, err
	}
	header := http.Header{}
	for _, name := range allowedHeaders {
		vs := r.Header.Values(name)
		if slices.ContainsFunc(vs, func(v string) bool { return strings.ContainsFunc(v, unicode.IsControl) }) {
			return nil, fmt.Errorf("control characters in header %s", name)
		}
		if len(vs) > 0 {
			header[name] = slices.Clone(vs)
		}
	}
	for name := range r.Header {
		if saysWho(name) {
			g.refused.Do(func() {
				g.log.Warnf("left out header %.40q of a request: who asks is not for the controller to say (more such lines are left out for %s)", name, complaintPeriod)
			})
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
		objects:  u.EscapedPath() + "?" + selection(query).Encode(),

		seen:      from,
		delivered: from,
	}, nil
}

// selection is what of a query says which objects are meant.
func selection(query url.Values) url.Values {
	query = maps.Clone(query)
	for _, name := range []string{"watch", "allowWatchBookmarks", "sendInitialEvents", "resourceVersion", "resourceVersionMatch", "timeoutSeconds", "timeout"} {
		query.Del(name)
	}
	return query
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
	x.members = members{known: s.MembersKnown, sum: s.Members, count: s.Count}
	x.resumeFields(s.Having)
	return x, nil
}

// snapshotStream is what is kept of a watch while its guest sleeps; guest.mu is
// held.
func (x *exchange) snapshotStream() snapshot.Stream {
	return snapshot.Stream{
		ID: x.id, URL: x.url.RequestURI(), Header: x.header,
		Revision: x.delivered, MembersKnown: x.members.known, Members: x.members.sum, Count: x.members.count,
		Having: x.savedFields(),
	}
}

// run does the exchange and delivers the response, when it is the guest's turn.
func (x *exchange) run() error {
	if x.watch && x.settled {
		return x.keep(nil, nil)
	}
	if err := x.guest.requests.Wait(x.ctx); err != nil {
		return err
	}
	turn, do := x.guest.responses, x.runOnce
	if x.watch {
		turn, do = x.guest.lists, x.runWatch
	}
	if err := turn.Acquire(x.ctx, 1); err != nil {
		return err
	}
	x.release = sync.OnceFunc(func() { turn.Release(1) })
	defer x.release()
	return do()
}

// end delivers how the response ended.
func (x *exchange) end(err error) {
	if err != nil {
		_ = x.deliver(abi.FrameFail, []byte(err.Error()), "response to "+x.method+" "+x.resource)
	} else {
		_ = x.deliver(abi.FrameEnd, nil, "end of "+x.what())
	}
}

func (x *exchange) what() string {
	if x.watch {
		return "watch of " + x.resource
	}
	return "response to " + x.method + " " + x.resource
}

// roundTrip sends the request to the API server, with another query and header.
func (x *exchange) roundTrip(ctx context.Context, query string, header http.Header) (*http.Response, error) {
	u := *x.url
	u.Scheme, u.Host, u.RawQuery = "http", "dormouse", query
	req, err := http.NewRequestWithContext(ctx, x.method, u.String(), bytes.NewReader(x.body))
	if err != nil {
		return nil, err
	}
	req.Header = header.Clone()
	return x.guest.transport.RoundTrip(req)
}

func (x *exchange) runOnce() error {
	resp, err := x.roundTrip(x.ctx, x.url.RawQuery, x.header)
	if err != nil {
		return err
	}
	return x.forward(resp)
}

// forward delivers a whole response but its end.
func (x *exchange) forward(resp *http.Response) error {
	defer resp.Body.Close()
	if err := x.deliverHead(resp); err != nil {
		return err
	}
	pooled := x.guest.plane.chunks.Get().(*[]byte)
	defer x.guest.plane.chunks.Put(pooled)
	buf := *pooled
	for {
		n, err := io.ReadFull(resp.Body, buf)
		if n > 0 {
			if err := x.deliver(abi.FrameBody, buf[:n], x.what()); err != nil {
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

func (x *exchange) deliverHead(resp *http.Response) error {
	head := abi.Head{Status: resp.StatusCode, Header: http.Header{}}
	for _, name := range []string{"Content-Type", "Retry-After", "Warning"} {
		if vs := resp.Header.Values(name); len(vs) > 0 {
			head.Header[name] = vs
		}
	}
	return x.deliver(abi.FrameHead, head.Append(nil), x.what())
}

// deliver puts a frame into the mailbox, behind the events that waited.
func (x *exchange) deliver(kind abi.Kind, payload []byte, reason string) error {
	return x.whenRoom(func() {
		x.guest.stirred = time.Now()
		x.push(kind, payload, reason)
	})
}

// whenRoom waits until there is room in the mailbox, and then calls f with guest.mu
// held.
func (x *exchange) whenRoom(f func()) error {
	g := x.guest
	for {
		if err := g.mailbox.Room(x.ctx); err != nil {
			return err
		}
		if done, err := x.ifRoom(f); done || err != nil {
			return err
		}
	}
}

// ifRoom calls f with guest.mu held, unless others have filled the mailbox before.
func (x *exchange) ifRoom(f func()) (bool, error) {
	g := x.guest
	g.mu.Lock()
	defer g.mu.Unlock()
	if x.closed {
		return false, context.Canceled
	}
	if g.mailbox.Fill() > 1 {
		return false, nil
	}
	f()
	return true, nil
}

// push is deliver with guest.mu held and without waiting for room.
func (x *exchange) push(kind abi.Kind, payload []byte, reason string) {
	g := x.guest
	g.flushWaiting()
	g.noteCause(reason)
	g.mailbox.Push(kind, x.id, payload)
	if kind == abi.FrameEnd || kind == abi.FrameFail {
		g.close(x) // at once: a snapshot must not have a watch that its guest knows to be over
	}
}

// told notes what the guest knows from an event that it is given; guest.mu is held.
// joins is as for members.note.
func (x *exchange) told(ev event, raw []byte, joins int) {
	x.members.note(ev, joins)
	x.noteFields(ev, raw)
}

// wait keeps the latest event of each object until the guest wakes, which it does
// when one is due; guest.mu is held. An object that came and went meanwhile never was.
func (x *exchange) wait(ev event, raw []byte, due time.Time) {
	now := waitingEvent{event: ev, raw: raw, joins: ev.joins(), due: due, born: ev.kind() == controllers.Added}
	x.waiting = slices.DeleteFunc(x.waiting, func(w waitingEvent) bool {
		if w.UID != ev.UID {
			return false
		}
		if !w.due.IsZero() && (now.due.IsZero() || w.due.Before(now.due)) {
			now.due = w.due
		}
		now.Refresh = now.Refresh && w.Refresh // what it stands for may be more than a heartbeat
		now.joins += w.joins
		now.born = w.born
		x.guest.waitingBytes -= len(w.raw)
		return true
	})
	if now.born && ev.kind() == controllers.Deleted {
		if len(x.waiting) == 0 {
			x.delivered = ev.Revision
		}
		return
	}
	x.guest.waitingBytes += len(raw)
	x.waiting = append(x.waiting, now)
	if !now.due.IsZero() {
		x.guest.awaitDue(now.due)
	}
}

// flush moves waiting events into the mailbox; guest.mu is held.
func (x *exchange) flush() {
	for _, w := range x.waiting {
		x.guest.mailbox.Push(abi.FrameBody, x.id, w.raw)
		x.told(w.event, w.raw, w.joins)
		x.delivered = w.Revision
		x.guest.waitingBytes -= len(w.raw)
	}
	x.waiting = nil
}
