package plane

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
)

// A watch of a guest begins as one of its own, under the guest's identity: the API
// server says whether it may watch, and from which version. As soon as it can be
// shared it follows the feed of its objects, and needs neither a goroutine nor a
// watch in the API server. When the feed ends, or its guest cannot take an event
// now, it is on its own again: it is renewed from what it has seen, until it
// catches up with a feed once more.

const (
	// watchTimeout is how long the API server keeps a watch open that the host
	// asked for. Guests ask for 5 to 10 minutes; the host renews for them. With
	// each renewal the API server decides anew whether the guest may watch.
	watchTimeout = time.Hour

	// renewAttempts is how often a watch is renewed in vain before its guest is
	// told that it ended.
	renewAttempts = 6
	// attemptsApart is how far apart attempts are that do not add up: the watch was
	// open in between.
	attemptsApart = time.Minute
)

var (
	// errFollows says that a feed goes on with a watch.
	errFollows = errors.New("a feed goes on with it")
	// errForbidden says that the guest may not watch any more.
	errForbidden = errors.New("forbidden")
)

// apiWatch is a watch in the API server.
type apiWatch struct {
	*http.Response
	*eventReader // if the API server agreed
	form         string
	prints       *prints
	cancel       context.CancelFunc
	detach       func() bool // from the exchange that asked for it
}

func (w *apiWatch) close() {
	w.detach()
	w.cancel()
	w.Body.Close()
}

// openWatch asks the API server for a watch.
func (x *exchange) openWatch(query url.Values) (*apiWatch, error) {
	query.Set("timeoutSeconds", strconv.Itoa(int((watchTimeout + rand.N(watchTimeout/4)).Seconds())))
	query.Set("allowWatchBookmarks", "true")
	ctx, cancel := context.WithCancel(x.guest.plane.feeds.ctx) // it may outlive the exchange
	w := &apiWatch{cancel: cancel, detach: context.AfterFunc(x.ctx, cancel)}
	var err error
	if w.Response, err = x.roundTrip(ctx, query.Encode(), x.header); err != nil {
		w.detach()
		cancel()
		return nil, err
	}
	if w.StatusCode == http.StatusOK {
		if w.eventReader, err = newEventReader(w.Header.Get("Content-Type"), w.Body); err != nil {
			w.close()
			return nil, err
		}
		w.form = x.formOf(w.eventReader)
		w.prints = newPrints(x.resource, query)
	}
	return w, nil
}

// runWatch opens a watch as the guest asks for it.
func (x *exchange) runWatch() error {
	g, query := x.guest, x.url.Query()
	x.begin()
	w, err := x.openWatch(query)
	if err != nil {
		return err
	}
	if w.StatusCode != http.StatusOK {
		defer w.close()
		return x.forward(w.Response)
	}
	if err := x.deliverHead(w.Response); err != nil {
		w.close()
		return err
	}
	if resumable(x.seen) {
		g.settle(x)
	}
	return x.keep(w, nil)
}

// begin notes what is known of the watch's objects before its first event.
func (x *exchange) begin() {
	x.guest.mu.Lock()
	defer x.guest.mu.Unlock()
	x.members.known = x.url.Query().Get("sendInitialEvents") == "true"
	if x.members.known {
		x.resumeFields([]uint64{})
	}
}

// resumable says that a watch can go on from a version.
func resumable(revision string) bool { return revision != "" && revision != "0" }

// keep has a watch go on for as long as the guest wants it, or until a feed takes
// over. The guest sees one response that never ends; the host renews the request
// underneath. w is what is open, or nil. expired, if not nil, says that the API
// server cannot go on from what was seen: the event that said so, if one did.
func (x *exchange) keep(w *apiWatch, expired []byte) error {
	log := x.guest.log.WithField("resource", x.resource)
	for {
		var err error
		if w != nil {
			expired, err = x.read(w)
		}
		switch {
		case errors.Is(err, errFollows), x.ctx.Err() != nil:
			return err
		case !x.settled: // it ended before the list was complete
			return x.deliverExpired(expired)
		}
		if expired != nil {
			if missed := x.catchUp(x.ctx); missed != nil {
				log.Debugf("watch cannot go on: %v", missed)
				return x.deliverExpired(expired)
			}
		}
		seen, attempt := x.next()
		switch {
		case !resumable(seen):
			return nil // the guest lists again
		case attempt > renewAttempts:
			log.Debugf("watch could not be renewed: %v", err)
			return nil
		case attempt > 1: // the first renewal is the ordinary one
			if err := pause(x.ctx, time.Duration(attempt)*time.Second); err != nil {
				return err
			}
		}
		w, expired, err = x.renew(seen)
		if errors.Is(err, errForbidden) {
			return nil
		}
	}
}

// next says from which version a watch is to be renewed, and which attempt it is.
func (x *exchange) next() (seen string, attempt int) {
	x.guest.mu.Lock()
	defer x.guest.mu.Unlock()
	now := time.Now()
	if now.Sub(x.attempted) > attemptsApart {
		x.attempts = 0
	}
	x.attempts, x.attempted = x.attempts+1, now
	return x.seen, x.attempts
}

// pause waits for d.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// renew opens a watch from a version. What it returns is as in keep.
func (x *exchange) renew(revision string) (w *apiWatch, expired []byte, err error) {
	if err := x.guest.mailbox.Room(x.ctx); err != nil {
		return nil, nil, err // nobody would read it
	}
	return x.reopen(revision)
}

// reopen is renew without waiting for the guest.
func (x *exchange) reopen(revision string) (w *apiWatch, expired []byte, err error) {
	query := x.url.Query()
	query.Set("resourceVersion", revision)
	query.Del("resourceVersionMatch")
	query.Del("sendInitialEvents")
	if w, err = x.openWatch(query); err != nil {
		return nil, nil, err
	}
	switch w.StatusCode {
	case http.StatusOK:
		return w, nil, nil
	case http.StatusGone:
		expired = []byte{}
	case http.StatusForbidden:
		err = errForbidden
	default:
		err = fmt.Errorf("status %d", w.StatusCode)
	}
	w.close()
	return nil, expired, err
}

// read delivers the events of a watch until it ends, which it does with an error or
// with the event that says that it expired, or until a feed takes over.
func (x *exchange) read(w *apiWatch) (expired []byte, err error) {
	g := x.guest
	for {
		if x.settled && g.plane.feeds.share(x, w) {
			return nil, errFollows
		}
		ev, raw, err := w.next()
		if err == nil {
			w.prints.note(ev, raw) // for the feed that this watch may become
		}
		switch {
		case err != nil:
		case ev.Type == errorEvent:
			w.close()
			return raw, nil
		case ev.Type == bookmark && (x.settled || !ev.InitialEnd):
			g.mu.Lock()
			x.pass(ev)
			g.mu.Unlock()
		default:
			err = x.deliverEvent(ev, raw)
		}
		if err != nil {
			w.close()
			return nil, err
		}
		if !x.settled && x.endsList(ev) {
			g.settle(x) // not before: the rest of a list cannot be resumed
		}
	}
}

// endsList says that an event ends the list with which a watch begins if it does
// not begin from a version.
func (x *exchange) endsList(ev event) bool {
	return ev.Type == bookmark && (ev.InitialEnd || x.url.Query().Get("sendInitialEvents") != "true")
}

// deliverExpired tells the guest that its watch cannot go on.
func (x *exchange) deliverExpired(expired []byte) error {
	if len(expired) == 0 {
		return nil
	}
	return x.deliver(abi.FrameBody, expired, "end of the watch of "+x.resource)
}

// deliverEvent waits until there is room for an event, and has the guest take it.
func (x *exchange) deliverEvent(ev event, raw []byte) error {
	return x.whenRoom(func() { x.take(ev, raw) })
}

// offer is deliverEvent for an event or bookmark of a feed, and does not wait. It
// reports whether the guest could take it.
func (x *exchange) offer(ev event, raw []byte) bool {
	g := x.guest
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case x.closed: // it leaves in a moment
	case ev.Type == bookmark:
		x.pass(ev)
	case g.mailbox.Fill() > 1:
		return false
	default:
		x.take(ev, raw)
	}
	return true
}

// take gives an event to the guest, or lets it wait if the guest's declaration
// says so; guest.mu is held.
func (x *exchange) take(ev event, raw []byte) {
	g := x.guest
	x.attempts = 0
	if ev.Revision != "" {
		x.seen = ev.Revision
	}
	g.noteHeartbeat(x, ev)
	ev.Changed = x.noteChange(ev, raw)
	if waits, due := g.mayKeep(x, ev, raw); !x.settled || !waits {
		g.stirred = time.Now()
	} else if g.mayWait(ev) {
		x.wait(ev, raw, due)
		return
	}
	x.push(abi.FrameBody, raw, x.describe(ev))
	x.told(ev, raw, ev.joins())
	x.delivered = x.seen
}

// describe says for people which event it is.
func (x *exchange) describe(ev event) string {
	text := ev.Type + " " + x.resource
	if ev.Name != "" {
		text += " " + strings.TrimPrefix(ev.Namespace+"/"+ev.Name, "/")
	}
	return text
}

// pass notes a bookmark; guest.mu is held.
func (x *exchange) pass(ev event) {
	x.attempts = 0
	x.seen = ev.Revision
	if len(x.waiting) == 0 {
		x.delivered = ev.Revision
	}
}

// goOn has a watch that followed a feed go on by itself; expired is as in keep.
func (x *exchange) goOn(expired []byte) {
	g := x.guest
	g.mu.Lock()
	defer g.mu.Unlock()
	if !x.closed {
		g.spawn(x, func() error { return x.keep(nil, expired) })
	}
}
