package plane

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// maxFill is how full a guest's mailbox may be for its watches to follow feeds. One
// that could take a few more events only would soon have to leave again.
const maxFill = 0.5

// feeds are the watches in the API server that guests share: one for all that
// watch the same objects in the same form. Who watches metadata alone follows the
// feed of whole objects, if there is one: metadata is a part of their encoding that
// can be cut out. A feed keeps no events. Who has
// not seen its newest event reads a watch of its own up to there: the API server
// remembers the events already.
type feeds struct {
	ctx     context.Context // of every watch in the API server
	cancel  context.CancelFunc
	running sync.WaitGroup

	// Guards what follows and all feeds. It is taken before any guest.mu, and held
	// while an event is handed to all followers, which takes some microseconds.
	mu   sync.Mutex
	open map[feedKey]*feed
	past map[feedKey]*prints // of feeds that have ended
}

// feed is one watch in the API server, and the guests' watches that follow it.
type feed struct {
	*apiWatch
	feeds *feeds
	key   feedKey
	// newest is the revision of the newest event, or from which the feed began.
	// Who has seen it has missed nothing.
	newest    uint64
	followers []*exchange
}

func newFeeds() *feeds {
	s := &feeds{open: map[feedKey]*feed{}, past: map[feedKey]*prints{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// stop ends all feeds and returns when their goroutines have.
func (s *feeds) stop() {
	s.cancel()
	s.running.Wait()
}

// count is how many there are.
func (s *feeds) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
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
	switch {
	case x.ctx.Err() != nil, f != nil && seen < f.newest, x.guest.mailbox.Fill() > maxFill:
		return false
	case f != nil:
		w.close()
	default:
		f = s.begin(key, w, seen)
	}
	x.feed, x.joined, x.form = f, seen, w.form
	f.followers = append(f.followers, x)
	return true
}

// begin makes a feed of a watch; feeds.mu is held.
func (s *feeds) begin(key feedKey, w *apiWatch, seen uint64) *feed {
	w.detach()
	w.prints.inherit(s.past[key])
	delete(s.past, key)
	f := &feed{apiWatch: w, feeds: s, key: key, newest: seen}
	s.open[key] = f
	s.running.Go(f.run)
	if metadata := s.open[feedKey{key.objects, onlyMetadata}]; metadata != nil && key.form == wholeObjects {
		metadata.cancel() // its followers come here
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

// run hands out events until the watch ends.
func (f *feed) run() {
	for {
		ev, raw, err := f.next()
		switch {
		case err == nil && ev.Type == errorEvent:
			f.end(raw)
		case err != nil || !f.hand(ev, raw):
			f.end(nil)
		default:
			continue
		}
		return
	}
}

// hand gives an event or a bookmark to all followers. One that cannot take it now
// leaves, so that the others need not wait for it. It fails if the event cannot be
// told from others by its version.
func (f *feed) hand(ev event, raw []byte) bool {
	revision, err := strconv.ParseUint(ev.Revision, 10, 64)
	if err != nil {
		return false
	}
	ev.Refresh = f.prints.note(ev, raw)
	f.feeds.mu.Lock()
	defer f.feeds.mu.Unlock()
	if ev.Type != bookmark {
		f.newest = max(f.newest, revision)
	}
	var metadata []byte
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
	return true
}

// retain drops the other followers, and ends the feed if none is left; feeds.mu is held.
func (f *feed) retain(stays func(*exchange) bool) {
	f.followers = slices.DeleteFunc(f.followers, func(x *exchange) bool { return !stays(x) })
	if len(f.followers) == 0 {
		f.forget()
		f.cancel()
	}
}

// end has all followers go on by themselves; expired is as in exchange.keep.
func (f *feed) end(expired []byte) {
	f.close()
	f.feeds.mu.Lock()
	defer f.feeds.mu.Unlock()
	f.forget()
	if f.prints.newerThan(f.feeds.past[f.key]) {
		f.feeds.past[f.key] = f.prints
	}
	for _, x := range f.followers {
		x.feed = nil
		x.goOn(expired)
	}
	f.followers = nil
}

// forget makes room for another feed of the same objects; feeds.mu is held.
func (f *feed) forget() {
	if f.feeds.open[f.key] == f {
		delete(f.feeds.open, f.key)
	}
}
