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
// watch the same objects in the same encoding. A feed keeps no events. Who has
// not seen its newest event reads a watch of its own up to there: the API server
// remembers the events already.
type feeds struct {
	ctx     context.Context // of every watch in the API server
	cancel  context.CancelFunc
	running sync.WaitGroup

	// Guards what follows and all feeds. It is taken before any guest.mu, and held
	// while an event is handed to all followers, which takes some microseconds.
	mu   sync.Mutex
	open map[string]*feed   // by exchange.feedKey
	past map[string]*prints // of feeds that have ended, by the same
}

// feed is one watch in the API server, and the guests' watches that follow it.
type feed struct {
	*apiWatch
	feeds *feeds
	key   string
	// newest is the revision of the newest event, or from which the feed began.
	// Who has seen it has missed nothing.
	newest    uint64
	followers []*exchange
}

func newFeeds() *feeds {
	s := &feeds{open: map[string]*feed{}, past: map[string]*prints{}}
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
	key := x.feedKey()
	f := s.open[key]
	switch {
	case x.ctx.Err() != nil, f != nil && seen < f.newest, x.guest.mailbox.Fill() > maxFill:
		return false
	case f != nil:
		w.close()
	default:
		w.detach()
		w.prints.inherit(s.past[key])
		delete(s.past, key)
		f = &feed{apiWatch: w, feeds: s, key: key, newest: seen}
		s.open[key] = f
		s.running.Go(f.run)
	}
	x.feed, x.joined = f, seen
	f.followers = append(f.followers, x)
	return true
}

// feedKey names what a watch is told: which objects, and in which encoding.
func (x *exchange) feedKey() string {
	return x.objects + " " + strings.Join(x.header["Accept"], ",")
}

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
	f.retain(func(x *exchange) bool {
		if revision <= x.joined || x.offer(ev, raw) {
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
