package plane

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

// awaitOpen waits until the API server has that many watches open.
func (w *world) awaitOpen(t testing.TB, want int) {
	t.Helper()
	for deadline := time.After(20 * time.Second); ; {
		w.mu.Lock()
		open, changed := w.open, w.changed
		w.mu.Unlock()
		if open == want {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%d watches are open, want %d", open, want)
		}
	}
}

// TestModelOfSharedWatches runs random events through guests that watch the same
// objects, while they are put to sleep, the plane is stopped and started, watches
// end, and the API server forgets the past or refuses one of them, all at random.
// Each guest must have seen everything in the end, through a single watch, or, where
// feeds rest, without one.
func TestModelOfSharedWatches(t *testing.T) {
	for name, lists := range map[string]bool{
		"fold":   false, // it wants each event
		"mirror": true,  // it wants to know what there is: it can list again, and events may wait
	} {
		for seed := range uint64(4) {
			rests := seed%2 == 1
			t.Run(fmt.Sprint(name, " seed ", seed), func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 5))
				names := []string{name, name + "-2", name + "-3"}
				apis := usersOf(names...)
				world := apis[name].world
				dir := t.TempDir()
				lazy := func(c *Config, h *Host) {
					if rests {
						h.Changes = world
					}
					if !lists {
						return
					}
					c.Guests[1].Wait = map[string]controllers.Events{"objects": controllers.Modified}
					c.Guests[2].Wait = map[string]controllers.Events{"*": controllers.Modified | controllers.Deleted}
				}
				p := startAll(t, dir, apis, lazy)
				one := func() string { return names[random.IntN(len(names))] }
				events := map[string][]string{}
				put := func(typ, object, value string) {
					world.put(typ, object, value)
					events[object] = append(events[object], typ+value)
				}
				for n := range 200 {
					object := fmt.Sprint("o", random.IntN(5))
					switch _, exists := world.objects[object]; {
					case !exists:
						put("ADDED", object, fmt.Sprint(n))
					case random.IntN(8) == 0:
						put("DELETED", object, fmt.Sprint(n))
					default:
						put("MODIFIED", object, fmt.Sprint(n))
					}
					switch random.IntN(20) {
					case 0, 1, 2:
						g := p.guests[random.IntN(len(p.guests))]
						if err := g.command(t.Context(), commandEvict); err != nil && err != errBusy {
							t.Fatal(err)
						}
					case 3:
						p.stop()
						if lists && random.IntN(2) == 0 {
							world.forget()
						}
						p = startAll(t, dir, apis, lazy)
					case 4:
						world.endWatches()
					case 5:
						if lists {
							world.forget()
						}
					case 6:
						user := apis[one()]
						world.mu.Lock()
						user.refuse = append(user.refuse, []int{http.StatusForbidden, http.StatusGone}[random.IntN(2)])
						world.mu.Unlock()
						world.endWatches()
					case 7:
						world.mu.Lock()
						world.cut = random.IntN(10)
						world.mu.Unlock()
					case 8, 9:
						if rests {
							time.Sleep(3 * time.Millisecond)
						}
					}
				}
				world.mu.Lock()
				world.cut = 0
				world.mu.Unlock()
				put("ADDED", "last", "0")
				for user, a := range apis {
					if lists {
						awaitValue(t, a, "all", world.state())
						continue
					}
					for object := range events {
						want := foldOf(events[object]...)
						a.await(t, "fold of "+object+" by "+user, func(m map[string]string) bool { return m[object] == want })
					}
				}
				if rests {
					world.awaitOpen(t, 0)
				} else {
					world.awaitOpen(t, 1)
				}
				for _, s := range p.List() {
					if s.Restarts != 0 {
						t.Errorf("%s was ended: %s", s.Name, s.LastError)
					}
				}
			})
		}
	}
}

// follow has guests watch the objects of a world from its present.
func follow(t testing.TB, bares []*bare, w *world) {
	t.Helper()
	for _, b := range bares {
		b.must(1, fmt.Sprint("/objects?watch=1&resourceVersion=", w.version()))
		b.until("the watch", func() bool { return b.underWay == 0 })
	}
}

// bareUsers are guests that are users of the same world.
func bareUsers(t testing.TB, n int) ([]*bare, []*api) {
	t.Helper()
	w := newAPI().world
	var apis []*api
	var ds []controllers.Declaration
	for k := range n {
		apis = append(apis, w.user())
		ds = append(ds, controllers.Declaration{Name: fmt.Sprint("g", k), Identity: fmt.Sprint(k)})
	}
	return newBares(t, func(user string) http.RoundTripper {
		for k, d := range ds {
			if d.Identity == user {
				return apis[k]
			}
		}
		return nil
	}, ds...), apis
}

// seen waits until all watches of a guest have come to a version.
func (b *bare) seen(version int64) {
	b.t.Helper()
	b.until(fmt.Sprint("version ", version), func() bool {
		for _, x := range b.exchanges {
			if x.seen != fmt.Sprint(version) {
				return false
			}
		}
		return true
	})
}

// TestOneWatchForAll: guests come and go, and as long as one is there the API
// server has one watch.
func TestOneWatchForAll(t *testing.T) {
	bares, apis := bareUsers(t, 5)
	w := apis[0].world
	w.put("ADDED", "x", "1")
	follow(t, bares[:3], w)
	w.awaitOpen(t, 1)
	w.put("MODIFIED", "x", "2")
	w.put(bookmark, "", "")
	for _, b := range bares[:3] {
		b.seen(w.version())
		if n := b.pushed.Load(); n != 2 {
			t.Errorf("%d frames, want the head and one event", n)
		}
	}
	bares[0].Cancel(1) // as whom the watch was opened
	follow(t, bares[3:], w)
	w.awaitOpen(t, 1)
	w.put("MODIFIED", "x", "3")
	for _, b := range bares[1:] {
		b.seen(w.version())
	}
	w.endWatches()
	w.put("MODIFIED", "x", "4")
	for _, b := range bares[1:] {
		b.seen(w.version())
	}
	w.awaitOpen(t, 1)
	if n := bares[0].pushed.Load(); n != 2 {
		t.Errorf("%d frames for one that has left", n)
	}
	for _, b := range bares[1:] {
		w.awaitOpen(t, 1)
		b.Cancel(1)
	}
	w.awaitOpen(t, 0)
	if n := bares[0].plane.feeds.count(); n != 0 {
		t.Errorf("%d feeds", n)
	}
}

// TestFeedRests: where nothing happens there is no watch, and all the same nobody
// misses anything.
func TestFeedRests(t *testing.T) {
	bares, apis := bareUsers(t, 3)
	w, feeds := apis[0].world, bares[0].plane.feeds
	feeds.after, feeds.changes = 10*time.Millisecond, w
	follow(t, bares, w)
	all := func() {
		t.Helper()
		for _, b := range bares {
			b.seen(w.version())
		}
	}
	asked := 3
	for n := range 5 {
		w.awaitOpen(t, 0)
		if n := feeds.count(); n != 0 {
			t.Errorf("%d feeds have a watch", n)
		}
		w.put("MODIFIED", "x", fmt.Sprint(n))
		all()
		asked++
	}
	w.mu.Lock()
	if w.watches != asked {
		t.Errorf("%d watches were asked for, want %d", w.watches, asked)
	}
	w.mu.Unlock()

	// One that joins while it rests, and has seen what nobody else has.
	w.awaitOpen(t, 0)
	bares[2].Cancel(1)
	follow(t, bares[2:], w)
	w.awaitOpen(t, 0)
	w.put("MODIFIED", "x", "joined")
	all()
	if n := bares[2].pushed.Load(); n != 1+5+1+1 { // heads and events
		t.Errorf("%d frames", n)
	}

	// Who is refused when it goes on is told so, and the others go on.
	w.awaitOpen(t, 0)
	w.mu.Lock()
	apis[0].refuse = []int{http.StatusForbidden, http.StatusForbidden}
	w.mu.Unlock()
	w.put("MODIFIED", "x", "refused")
	bares[0].until("the refusal", func() bool { return len(bares[0].exchanges) == 0 })
	bares = bares[1:]
	all()

	// Each of them is asked for anew after an hour.
	w.awaitOpen(t, 0)
	feeds.mu.Lock()
	for _, f := range feeds.open {
		f.begun = f.begun.Add(-watchTimeout)
	}
	feeds.mu.Unlock()
	w.mu.Lock()
	asked = w.watches + len(bares)
	w.mu.Unlock()
	w.put("MODIFIED", "x", "an hour later")
	all()
	w.awaitOpen(t, 0)
	w.mu.Lock()
	if w.watches != asked {
		t.Errorf("%d watches were asked for, want %d", w.watches, asked)
	}
	w.mu.Unlock()

	for _, b := range bares {
		b.Cancel(1)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		w.mu.Lock()
		awaited := w.awaited
		w.mu.Unlock()
		if awaited == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d changes are waited for, and nobody is there", awaited)
		}
	}
}

// unchanged is a world in which nothing has changed, up to a version.
type unchanged struct {
	*world
	upTo uint64
}

func (u unchanged) UpTo(string, uint64) uint64 { return u.upTo }

// TestSharesWhatIsNotMissed: a feed that began from a later version is followed at
// once where nothing has happened in between.
func TestSharesWhatIsNotMissed(t *testing.T) {
	bares, apis := bareUsers(t, 2)
	w, feeds := apis[0].world, bares[0].plane.feeds
	w.put(bookmark, "", "")
	feeds.changes = unchanged{w, 2}
	follow(t, bares[:1], w)
	for deadline := time.Now().Add(20 * time.Second); feeds.count() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no feed")
		}
	}
	bares[1].must(1, "/objects?watch=1&resourceVersion=1")
	bares[1].until("the feed", func() bool { return bares[1].exchanges[1] != nil && bares[1].underWay == 0 })
	w.awaitOpen(t, 1)
	bares[1].mu.Lock()
	if seen := bares[1].exchanges[1].seen; seen != "1" {
		t.Errorf("it has read a watch of its own up to version %s", seen)
	}
	bares[1].mu.Unlock()
	w.put("ADDED", "x", "1")
	for _, b := range bares {
		b.seen(w.version())
	}
}

// TestWhatIsNotShared: other selectors, encodings and versions that are none.
func TestWhatIsNotShared(t *testing.T) {
	b := newBare(t, controllers.Declaration{}, nil)
	key := func(url, accept string) feedKey {
		x, err := b.newExchange(&abi.Request{Stream: 1, Method: http.MethodGet, URL: url, Header: http.Header{"Accept": {accept}}})
		if err != nil {
			t.Fatal(err)
		}
		return feedKey{x.objects, x.formOf(&eventReader{})}
	}
	same := key("/api/v1/pods?watch=true&labelSelector=a%3Db&fieldSelector=c%3Dd", "x")
	for url, want := range map[string]bool{
		"/api/v1/pods?watch=1&fieldSelector=c%3Dd&labelSelector=a%3Db&resourceVersion=5&timeoutSeconds=7&allowWatchBookmarks=true": true,
		"/api/v1/pods?watch=true&labelSelector=a%3Db&fieldSelector=c%3Dd&sendInitialEvents=true&resourceVersionMatch=NotOlderThan": true,
		"/api/v1/pods?watch=true&labelSelector=a%3Db":                                        false,
		"/api/v1/pods?watch=true&labelSelector=a%3Db&fieldSelector=c%3De":                    false,
		"/api/v1/namespaces/x/pods?watch=true&labelSelector=a%3Db&fieldSelector=c%3Dd":       false,
		"/api/v1/pods?watch=true&labelSelector=a%3Db&fieldSelector=c%3Dd&shardSelector=none": false,
	} {
		if got := key(url, "x") == same; got != want {
			t.Errorf("%s: shared %v", url, got)
		}
		if key(url, "y") == same {
			t.Errorf("%s: shared with another encoding", url)
		}
	}
}

// TestMetadataOfAFeed: who watches metadata follows the feed of whole objects, and is
// told what the API server would tell it.
func TestMetadataOfAFeed(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "b", UID: "c", ResourceVersion: "7", Labels: map[string]string{"d": "e"}},
		Spec:       corev1.PodSpec{NodeName: "f"},
	}
	got, err := metadataEvent(frame("MODIFIED", pod))
	if err != nil {
		t.Fatal(err)
	}
	want := frame("MODIFIED", &metav1.PartialObjectMetadata{ObjectMeta: pod.ObjectMeta})
	wantEvent, err := decodeProtobufEvent(want[frameLength:])
	if err != nil {
		t.Fatal(err)
	}
	gotEvent, err := decodeProtobufEvent(got[frameLength:])
	if err != nil || gotEvent != wantEvent {
		t.Errorf("%+v, want %+v, %v", gotEvent, wantEvent, err)
	}
	kind, object, ok := objectOf(got)
	_, wantObject, _ := objectOf(want)
	if !ok || kind != metadataKind || !slices.Equal(object, wantObject) {
		t.Errorf("%s %x, want %x", kind, object, wantObject)
	}
	if _, err := metadataEvent([]byte(`{"type":"ADDED","object":{}}`)); err == nil {
		t.Error("a line of JSON was taken for an object")
	}
}

// TestRefusedBesideAFeed: what others may watch is not for one whom the API server
// refuses. It is given the API server's own answer.
func TestRefusedBesideAFeed(t *testing.T) {
	bares, apis := bareUsers(t, 2)
	w := apis[0].world
	follow(t, bares[:1], w)
	apis[1].refuse = []int{http.StatusForbidden}
	bares[1].must(1, "/objects?watch=1&resourceVersion=1")
	bares[1].until("the refusal", func() bool { return len(bares[1].exchanges) == 0 })
	w.put("ADDED", "x", "1")
	bares[0].seen(w.version())
	if n := bares[1].pushed.Load(); n != 3 { // head, body, end
		t.Errorf("%d frames", n)
	}

	follow(t, bares[1:], w)
	w.awaitOpen(t, 1)
	w.mu.Lock()
	apis[1].refuse = []int{http.StatusForbidden}
	w.mu.Unlock()
	w.endWatches() // each renewal asks again
	bares[1].until("the refusal", func() bool { return len(bares[1].exchanges) == 0 })
	w.put("ADDED", "y", "1")
	bares[0].seen(w.version())
	w.awaitOpen(t, 1)
	if n := bares[1].pushed.Load(); n != 3+2 { // head, end
		t.Errorf("%d frames", n)
	}
}

// TestSlowGuest: one whose mailbox is full does not keep events from the others,
// and gets all of them later.
func TestSlowGuest(t *testing.T) {
	bares, apis := bareUsers(t, 3)
	w := apis[0].world
	follow(t, bares, w)
	w.awaitOpen(t, 1)
	slow := bares[1]
	slow.mailbox.Push(abi.FrameBody, 99, make([]byte, 2<<20))
	before := slow.pushed.Load()
	for n := range 10 {
		w.put("MODIFIED", "x", fmt.Sprint(n))
	}
	bares[0].seen(w.version())
	bares[2].seen(w.version())
	if n := slow.pushed.Load(); n != before {
		t.Errorf("%d frames for a full mailbox", n-before)
	}
	slow.mailbox.Reset() // it has read
	slow.seen(w.version())
	if n := slow.pushed.Load(); n != before+10 {
		t.Errorf("%d frames, want ten events", n-before)
	}
	w.awaitOpen(t, 1)
	slow.mailbox.Push(abi.FrameBody, 99, make([]byte, 700<<10))
	w.endWatches()
	w.awaitOpen(t, 2) // for a while it stays by itself
	slow.mailbox.Reset()
	w.put("MODIFIED", "x", "last")
	for _, b := range bares {
		b.seen(w.version())
	}
	w.awaitOpen(t, 1)
}

// TestFollowerAheadOfItsFeed: what it has seen it is not given again, and bookmarks
// do not take it back.
func TestFollowerAheadOfItsFeed(t *testing.T) {
	bares, apis := bareUsers(t, 2)
	w := apis[0].world
	for n := range 4 {
		w.put("ADDED", fmt.Sprint("o", n), "")
	}
	w.put(bookmark, "", "")
	hold := make(chan struct{})
	behind := bares[0]
	behind.transport = roundTripFunc(func(r *http.Request) (*http.Response, error) {
		resp, err := apis[0].RoundTrip(r)
		resp.Body = &held{resp.Body, hold}
		return resp, err
	})
	behind.must(1, "/objects?watch=1&resourceVersion=1")
	behind.until("the watch", func() bool { return behind.underWay == 0 })
	ahead := bares[1]
	follow(t, bares[1:], w)
	w.awaitOpen(t, 1)
	close(hold)
	behind.seen(w.version())
	w.put("ADDED", "last", "0")
	behind.seen(w.version())
	ahead.seen(w.version())
	if got := [2]int32{behind.pushed.Load(), ahead.pushed.Load()}; got != [2]int32{1 + 5, 1 + 1} {
		t.Errorf("%d frames, want the head and five events, the head and one", got)
	}
}

// held is a body that cannot be read for a while.
type held struct {
	readCloser
	until chan struct{}
}

type readCloser interface {
	Read([]byte) (int, error)
	Close() error
}

func (h *held) Read(p []byte) (int, error) {
	<-h.until
	return h.readCloser.Read(p)
}

// TestListForAll: guests that are resumed and watch the same are told by one list
// whether they have missed anything, each by what it has seen itself.
func TestListForAll(t *testing.T) {
	bares, apis := bareUsers(t, 4)
	w := apis[0].world
	w.put("ADDED", "a", "")
	w.put("ADDED", "b", "")
	upToB := w.version()
	var both members
	both.known = true
	for _, o := range w.objects {
		both.note(event{UID: o.uid}, 1)
	}
	w.put(bookmark, "", "")
	w.forget()
	for k, b := range bares {
		s := snapshot.Stream{ID: 1, URL: "/objects?watch=1", Revision: fmt.Sprint(upToB), MembersKnown: true, Members: both.sum}
		if k == 2 {
			s.Revision = fmt.Sprint(upToB - 1)
		}
		x, err := b.resumeExchange(s)
		if err != nil {
			t.Fatal(err)
		}
		b.exchanges[1] = x
	}
	for k, b := range bares {
		if err := b.caughtUp(t.Context()); (err != nil) != (k == 2) {
			t.Errorf("guest %d: %v", k, err)
		}
	}
	for _, b := range slices.Delete(slices.Clone(bares), 2, 3) {
		b.openStreams()
		b.seen(w.version())
	}
	w.awaitOpen(t, 1)
	if w.lists != 1 {
		t.Errorf("%d lists", w.lists)
	}
	if err := bares[2].caughtUp(t.Context()); err == nil { // nor later
		t.Error("it has missed an object")
	}
	w.put("MODIFIED", "a", "2")
	w.forget()
	for k, b := range bares {
		if k != 2 {
			b.seen(w.version())
		}
	}
	w.awaitOpen(t, 1)
	delete(bares[2].exchanges, 1) // it was never launched
}

// TestVersionsThatAreNoNumbers: such a watch goes on, though nobody can share it.
func TestVersionsThatAreNoNumbers(t *testing.T) {
	lines := object("ADDED", "a", "v1", nil) + object("MODIFIED", "a", "v2", nil)
	s := &watchServer{scripts: []script{{200, lines, false}, {200, "", true}}}
	b := newBare(t, controllers.Declaration{}, s)
	b.must(1, "/x?watch=1&resourceVersion=v0")
	b.until("the renewal", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.queries) == 2 })
	if got := strings.Join(s.queries, ","); got != "v0 ,v2 " || b.pushed.Load() != 3 {
		t.Errorf("asked for %q, %d frames", got, b.pushed.Load())
	}
}

// TestCostOfAFollower: a watch that another guest has open too costs some memory
// and no goroutine.
func TestCostOfAFollower(t *testing.T) {
	const guests, watches = 20, 50
	bares, apis := bareUsers(t, guests)
	w := apis[0].world
	w.put("ADDED", "x", "1")
	cost := func() (goroutines int, bytes uint64) {
		goruntime.GC()
		goruntime.GC()
		var m goruntime.MemStats
		goruntime.ReadMemStats(&m)
		return goruntime.NumGoroutine(), m.HeapAlloc + m.StackInuse
	}
	open := func(bares []*bare) {
		for _, b := range bares {
			for k := range watches {
				b.must(uint32(k+1), fmt.Sprint("/objects?watch=1&resourceVersion=2&labelSelector=k%3D", k))
			}
			b.until("the watches", func() bool { return b.underWay == 0 })
		}
		w.awaitOpen(t, watches)
	}
	noGoroutines, noBytes := cost()
	open(bares[:1])
	feedGoroutines, feedBytes := cost()
	open(bares[1:])
	for deadline := time.Now().Add(20 * time.Second); goruntime.NumGoroutine() > feedGoroutines && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	goroutines, bytes := cost()
	const followers = (guests - 1) * watches
	t.Logf("a feed: %.1f goroutines, %d bytes, with the API server of the test", float64(feedGoroutines-noGoroutines)/watches, (feedBytes-noBytes)/watches)
	t.Logf("a follower: %.1f goroutines, %d bytes", float64(goroutines-feedGoroutines)/followers, (bytes-feedBytes)/followers)
	if goroutines > feedGoroutines {
		t.Errorf("%d goroutines, %d with one guest", goroutines, feedGoroutines)
	}
	if each := (bytes - feedBytes) / followers; each > 4<<10 {
		t.Errorf("%d bytes for each follower", each)
	}
}
