package plane

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxFill is how full a guest's mailbox may be for its watches to follow feeds. One
// that could take a few more events only would soon have to leave again.
const maxFill = 0.5

// restAfter is for how long nothing has happened to the objects of a feed when its
// watch in the API server ends, until something does. An open watch costs the API
// server up to ten goroutines and more, one of them with a stack of 32 KiB; to open
// one takes time, which events after a silence wait for.
const restAfter = time.Minute

// closeAfter is how long a watch stays open that is not needed because there is a feed.
// One that ends before the datastore has answered stays open there: the client of etcd
// cancels it at its first event only.
const closeAfter = time.Second

// feeds are the watches in the API server that guests share: one for all that
// watch the same objects in the same form. Who watches metadata alone follows the
// feed of whole objects, if there is one: metadata is a part of their encoding that
// can be cut out. A feed keeps no events. Who has
// not seen its newest event reads a watch of its own up to there: the API server
// remembers the events already.
//
// Where nothing happens a feed rests: without a watch, until Host.Changes says
// that something has. Then the watch goes on from the version before.
type feeds struct {
	ctx     context.Context // of every watch in the API server
	cancel  context.CancelFunc
	running sync.WaitGroup
	after   time.Duration // restAfter

	// Set before any guest runs.
	changes Changes

	// Guards what follows and all feeds. It is taken before any guest.mu, and held
	// while an event is handed to all followers, which takes some microseconds.
	mu   sync.Mutex
	open map[feedKey]*feed
	past map[feedKey]*prints // of feeds that have ended
}

// feed is one watch in the API server, and the guests' watches that follow it.
type feed struct {
	feeds  *feeds
	key    feedKey
	form   string
	prints *prints
	begun  time.Time

	watch *apiWatch // nil while it rests, and until it is open again
	rouse func()    // has it no longer wait for a change; nil: it does not
	rests *time.Timer
	heard time.Time // when the last event came, or the watch was opened
	// newest is the revision of the newest event, or from which the feed began.
	// Who has seen it has missed nothing.
	newest uint64
	// upTo is that up to which the watch has told everything.
	upTo      uint64
	followers []*exchange
}

func newFeeds() *feeds {
	s := &feeds{open: map[feedKey]*feed{}, past: map[feedKey]*prints{}, after: restAfter}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// stop ends all feeds and returns when their goroutines have.
func (s *feeds) stop() {
	s.mu.Lock()
	s.cancel()
	for _, f := range s.open {
		f.release()
	}
	s.mu.Unlock()
	s.running.Wait()
}

// count is how many have a watch in the API server.
func (s *feeds) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, f := range s.open {
		if f.watch != nil {
			n++
		}
	}
	return n
}

// share has a watch follow the feed of its objects instead of reading w. If there
// is none yet, w becomes it. It fails while the watch has not seen all that the
// feed has handed out, and for one whose versions are no numbers.
func (s *feeds) share(x *exchange, w *apiWatch) bool {
	seen, err := strconv.ParseUint(x.seen, 10, 64)
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := feedKey{x.objects, w.form}
	f := s.open[key]
	if whole := s.open[feedKey{x.objects, wholeObjects}]; whole != nil && w.form == onlyMetadata {
		f = whole
	}
	if f != nil && seen < f.newest && s.changes != nil {
		// It may have missed nothing: a feed begins from the version of a list, which is
		// that of the whole cluster.
		seen = s.changes.UpTo(x.resource, seen)
	}
	switch {
	case x.ctx.Err() != nil, f != nil && seen < f.newest, x.guest.mailbox.Fill() > maxFill:
		return false
	case f != nil:
		time.AfterFunc(closeAfter, w.close)
	default:
		f = s.begin(key, w, seen)
	}
	x.feed, x.joined, x.form = f, seen, w.form
	f.followers = append(f.followers, x)
	return true
}

// begin makes a feed of a watch; feeds.mu is held.
func (s *feeds) begin(key feedKey, w *apiWatch, seen uint64) *feed {
	w.prints.inherit(s.past[key])
	delete(s.past, key)
	f := &feed{feeds: s, key: key, form: w.form, prints: w.prints, begun: time.Now(), newest: seen, upTo: seen}
	f.rests = time.AfterFunc(s.after, f.rest)
	f.follow(w)
	s.open[key] = f
	if metadata := s.open[feedKey{key.objects, onlyMetadata}]; metadata != nil && key.form == wholeObjects {
		metadata.end(nil) // its followers come here
	}
	return f
}

// feedKey names what a watch is told: which objects, and in which form.
type feedKey struct{ objects, form string }

// Forms in which a watch is told of objects. Every other is the Accept header of
// who asked for it.
const (
	wholeObjects = "whole objects in protobuf"
	onlyMetadata = "metadata in protobuf"
)

// formOf is the form of a watch's response.
func (x *exchange) formOf(r *eventReader) string {
	accept := strings.Join(x.header["Accept"], ",")
	switch {
	case r.protobuf && !strings.Contains(accept, ";as="):
		return wholeObjects
	case r.protobuf && strings.HasPrefix(accept, metadataEvents):
		return onlyMetadata
	}
	return accept
}

// metadataEvents asks for metadata instead of objects.
const metadataEvents = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

// leave has a watch follow no feed any more.
func (s *feeds) leave(x *exchange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := x.feed; f != nil {
		x.feed = nil
		f.retain(func(follower *exchange) bool { return follower != x })
	}
}

// follow hands out what a watch says; feeds.mu is held.
func (f *feed) follow(w *apiWatch) {
	w.detach()
	f.watch, f.heard = w, time.Now()
	f.feeds.running.Go(func() { f.run(w) })
}

// run hands out events until the watch ends.
func (f *feed) run(w *apiWatch) {
	defer w.close()
	for {
		ev, raw, err := w.next()
		if err == nil && ev.Type != errorEvent && f.hand(w, ev, raw) {
			continue
		}
		if err != nil {
			raw = nil
		}
		f.feeds.mu.Lock()
		if f.watch == w {
			f.end(raw)
		}
		f.feeds.mu.Unlock()
		return
	}
}

// hand gives an event or a bookmark to all followers. One that cannot take it now
// leaves, so that the others need not wait for it. It fails if the event cannot be
// told from others by its version, or if it is not this watch any more that the feed
// follows.
func (f *feed) hand(w *apiWatch, ev event, raw []byte) bool {
	revision, err := strconv.ParseUint(ev.Revision, 10, 64)
	f.feeds.mu.Lock()
	defer f.feeds.mu.Unlock()
	if err != nil || f.watch != w {
		return false
	}
	ev.Refresh = f.prints.note(ev, raw)
	f.tell(ev, raw, revision)
	return true
}

// tell is hand for an event of which the version is known; feeds.mu is held.
func (f *feed) tell(ev event, raw []byte, revision uint64) {
	f.upTo = max(f.upTo, revision)
	if ev.Type != bookmark {
		f.newest, f.heard = max(f.newest, revision), time.Now()
	}
	var metadata []byte
	var err error
	f.retain(func(x *exchange) bool {
		told := raw
		if x.form != f.form && ev.Type != bookmark {
			if metadata == nil {
				metadata, err = metadataEvent(raw)
			}
			told = metadata
		}
		if err == nil && (revision <= x.joined || x.offer(ev, told)) {
			return true
		}
		x.feed = nil
		x.goOn(nil)
		return false
	})
}

// rest ends the watch in the API server, if nothing has happened for a while and it
// is known when something does.
func (f *feed) rest() {
	s := f.feeds
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.watch == nil {
		return
	}
	if left := s.after - time.Since(f.heard); left > 0 {
		f.rests.Reset(left)
		return
	}
	if s.changes == nil {
		return
	}
	rouse, ok := s.changes.Await(f.followers[0].resource, f.upTo, f.roused)
	if !ok {
		f.rests.Reset(s.after)
		return
	}
	f.watch.cancel()
	f.watch, f.rouse = nil, rouse
}

// roused has a feed that rests go on. Up to the given version nothing has changed.
func (f *feed) roused(before uint64) {
	s := f.feeds
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.rouse == nil || s.ctx.Err() != nil {
		return // it has ended
	}
	f.rouse = nil
	now := event{Type: bookmark, Revision: strconv.FormatUint(before, 10)}
	f.prints.note(now, nil)
	f.tell(now, nil, before)
	x := f.opener()
	if x == nil {
		f.end(nil)
		return
	}
	s.running.Go(func() {
		w, _, err := x.reopen(now.Revision)
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case s.open[f.key] != f:
			if w != nil {
				w.close()
			}
		case err != nil || w == nil || w.form != f.form:
			if w != nil {
				w.close()
			}
			f.end(nil) // each of them finds out why
		default:
			f.follow(w)
			f.rests.Reset(s.after)
		}
	})
}

// opener is a follower under whose identity the watch can go on; feeds.mu is held. It
// is nil if there is none, or if it is time that the API server decides anew who of
// them may watch.
func (f *feed) opener() *exchange {
	if time.Since(f.begun) < watchTimeout {
		for _, x := range f.followers {
			if x.form == f.form {
				return x
			}
		}
	}
	return nil
}

// retain drops the other followers, and ends the feed if none is left; feeds.mu is held.
func (f *feed) retain(stays func(*exchange) bool) {
	f.followers = slices.DeleteFunc(f.followers, func(x *exchange) bool { return !stays(x) })
	if len(f.followers) == 0 {
		f.end(nil)
	}
}

// end has all followers go on by themselves; expired is as in exchange.keep. feeds.mu
// is held.
func (f *feed) end(expired []byte) {
	f.release()
	if f.feeds.open[f.key] == f {
		delete(f.feeds.open, f.key) // makes room for another
	}
	// Those of a selection are not kept: there is no end of these.
	if all := strings.HasSuffix(f.key.objects, "?"); all && f.prints.newerThan(f.feeds.past[f.key]) {
		f.feeds.past[f.key] = f.prints
	}
	followers := f.followers
	f.followers = nil
	for _, x := range followers {
		x.feed = nil
		x.goOn(expired)
	}
}

// release ends the watch, or the wait for a change; feeds.mu is held.
func (f *feed) release() {
	f.rests.Stop()
	if f.watch != nil {
		f.watch.cancel()
		f.watch = nil
	}
	if f.rouse != nil {
		f.rouse()
		f.rouse = nil
	}
}
