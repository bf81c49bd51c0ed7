package plane

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

// These tests make requests as a guest does, without one: only the host's side
// runs.

// roundTripFunc is an http.RoundTripper.
type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// bare is a guest whose memory never existed.
type bare struct {
	*guest
	t      testing.TB
	pushed atomic.Int32 // frames that were put into the mailbox
}

// newBare makes a guest that reaches rt.
func newBare(t *testing.T, d controllers.Declaration, rt http.RoundTripper) *bare {
	t.Helper()
	return newBares(t, func(string) http.RoundTripper { return rt }, d)[0]
}

// watching opens a watch as a snapshot has it, of which version 99 was seen last.
func (b *bare) watching() *exchange {
	b.t.Helper()
	x, err := b.resumeExchange(snapshot.Stream{ID: 1, URL: "/things?watch=1", Revision: "99"})
	if err != nil {
		b.t.Fatal(err)
	}
	b.exchanges[1] = x
	return x
}

// newBares makes guests of one plane.
func newBares(t testing.TB, transport func(user string) http.RoundTripper, ds ...controllers.Declaration) (all []*bare) {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	p := New(Config{Guests: ds, Dir: t.TempDir(), IdleTimeout: time.Minute, Log: logrus.NewEntry(log)})
	marks, err := snapshot.OpenMarks(filepath.Join(p.config.Dir, "awake"), "boot")
	if err != nil {
		t.Fatal(err)
	}
	p.marks, p.host = marks, Host{Transport: transport}
	for _, g := range p.guests {
		b := &bare{guest: g, t: t}
		b.mailbox = runtime.NewMailbox(func() { b.pushed.Add(1); poke(b.notify) })
		if err := b.prepare(); err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	t.Cleanup(func() {
		for _, b := range all {
			b.cancel()
			b.streams.Wait()
		}
		p.feeds.stop()
		_ = marks.Close()
	})
	return all
}

func (b *bare) get(id uint32, url string, header http.Header) uint32 {
	return b.Request((&abi.Request{Stream: id, Method: http.MethodGet, URL: url, Header: header}).Append(nil))
}

// must makes a request that is accepted.
func (b *bare) must(id uint32, url string) {
	b.t.Helper()
	if errno := b.get(id, url, nil); errno != abi.OK {
		b.t.Fatalf("GET %s: errno %d", url, errno)
	}
}

// until waits until cond holds with guest.mu held.
func (b *bare) until(what string, cond func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		b.mu.Lock()
		ok := cond()
		b.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatal("waited in vain for ", what)
		}
	}
}

func text(code int, body string) *http.Response {
	return respond(code, io.NopCloser(strings.NewReader(body)))
}

// object is one line of a watch.
func object(typ, name, revision string, annotations map[string]string) string {
	meta := map[string]any{"resourceVersion": revision, "annotations": annotations}
	if name != "" {
		meta["name"], meta["uid"] = name, "uid-"+name
	}
	b, _ := json.Marshal(map[string]any{"type": typ, "object": map[string]any{"metadata": meta}})
	return string(b) + "\n"
}

// TestHeadersOfGuests: a guest cannot say who it is, nor act for another.
func TestHeadersOfGuests(t *testing.T) {
	got := make(chan *http.Request, 1)
	b := newBare(t, controllers.Declaration{}, roundTripFunc(func(r *http.Request) (*http.Response, error) {
		got <- r
		return text(200, ""), nil
	}))
	header := http.Header{
		"Accept": {"a", "b"}, "Content-Type": {"c"}, "User-Agent": {"d"},
		"Authorization": {"Bearer x"}, "Impersonate-User": {"system:admin"}, "Impersonate-Group": {"system:masters"}, "impersonate-uid": {"1"},
		"Impersonate-Extra-Scopes": {"x"}, "X-Remote-User": {"system:admin"}, "X-Remote-Group": {"system:masters"}, "Cookie": {"x"}, "Host": {"x"},
		"X-Forwarded-For": {"10.0.0.1"}, "Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "Audit-Id": {"x"}, "accept": {"lower case"},
	}
	if errno := b.get(1, "/api/v1/pods?limit=5", header); errno != abi.OK {
		t.Fatal(errno)
	}
	r := <-got
	var names []string
	for name := range r.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	if fmt.Sprint(names) != "[Accept Content-Type User-Agent]" {
		t.Errorf("the API server is told %v", names)
	}
	if r.URL.Path != "/api/v1/pods" || r.URL.RawQuery != "limit=5" || r.Host != "dormouse" {
		t.Errorf("%s from %s", r.URL, r.Host)
	}
}

func TestMalformedRequests(t *testing.T) {
	b := newBare(t, controllers.Declaration{}, roundTripFunc(func(r *http.Request) (*http.Response, error) {
		t.Errorf("%s %s was sent", r.Method, r.URL)
		return nil, io.ErrClosedPipe
	}))
	ok := (&abi.Request{Stream: 1, Method: http.MethodGet, URL: "/x"}).Append(nil)
	for name, encoded := range map[string][]byte{
		"nothing":        {},
		"garbage":        []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
		"cut short":      ok[:len(ok)-1],
		"too long":       append(ok, 0),
		"stream 0":       (&abi.Request{Method: http.MethodGet, URL: "/x"}).Append(nil),
		"no path":        (&abi.Request{Stream: 1, Method: http.MethodGet, URL: "x"}).Append(nil),
		"empty URL":      (&abi.Request{Stream: 1, Method: http.MethodGet}).Append(nil),
		"other server":   (&abi.Request{Stream: 1, Method: http.MethodGet, URL: "https://elsewhere/x"}).Append(nil),
		"not parseable":  (&abi.Request{Stream: 1, Method: http.MethodGet, URL: "/%zz"}).Append(nil),
		"control letter": (&abi.Request{Stream: 1, Method: http.MethodGet, URL: "/\x7f"}).Append(nil),
		"long URL":       (&abi.Request{Stream: 1, Method: http.MethodGet, URL: "/" + strings.Repeat("x", maxURL)}).Append(nil),
		"another method": (&abi.Request{Stream: 1, Method: http.MethodConnect, URL: "/x"}).Append(nil),
		"no method":      (&abi.Request{Stream: 1, Method: "GET /", URL: "/x"}).Append(nil),
		"broken header":  (&abi.Request{Stream: 1, Method: http.MethodGet, URL: "/x", Header: http.Header{"User-Agent": {"a\r\nb"}}}).Append(nil),
	} {
		if errno := b.Request(encoded); errno != abi.ErrFormat {
			t.Errorf("%s: errno %d", name, errno)
		}
	}
	if b.underWay != 0 || len(b.exchanges) != 0 {
		t.Errorf("%d under way, %d exchanges", b.underWay, len(b.exchanges))
	}
}

// TestStreamInUse: a number that is in use is not taken again.
func TestStreamInUse(t *testing.T) {
	b := newBare(t, controllers.Declaration{}, roundTripFunc(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}))
	b.must(5, "/x")
	if errno := b.get(5, "/y", nil); errno != abi.ErrFormat {
		t.Errorf("errno %d", errno)
	}
	b.Cancel(5)
	b.must(5, "/y")
	b.Cancel(77) // is not there
}

func TestFloodOfRequests(t *testing.T) {
	b := newBare(t, controllers.Declaration{}, roundTripFunc(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}))
	for id := range uint32(maxExchanges) {
		b.must(id+1, "/x")
	}
	for range 3 {
		if errno := b.get(maxExchanges+1, "/x", nil); errno != abi.ErrLimit {
			t.Fatalf("request %d: errno %d", maxExchanges+1, errno)
		}
	}
	b.Cancel(7)
	b.must(maxExchanges+1, "/x")
	if b.underWay != maxExchanges {
		t.Errorf("%d under way", b.underWay)
	}
}

// TestMarkBeforeChange: before a change reaches the API server it is on record that
// the snapshot is behind. Without that record it does not get there.
func TestMarkBeforeChange(t *testing.T) {
	var b *bare
	sent := make(chan bool, 10)
	b = newBare(t, controllers.Declaration{Name: "x"}, roundTripFunc(func(r *http.Request) (*http.Response, error) {
		b.mu.Lock()
		sent <- b.marked
		b.mu.Unlock()
		return text(200, ""), nil
	}))
	b.must(1, "/x")
	if <-sent {
		t.Error("marked for a GET")
	}
	post := func(id uint32) uint32 {
		return b.Request((&abi.Request{Stream: id, Method: http.MethodPost, URL: "/x", Body: []byte("x")}).Append(nil))
	}
	if errno := post(2); errno != abi.OK || !<-sent {
		t.Errorf("errno %d, not marked", errno)
	}
	b.until("the end", func() bool { return b.underWay == 0 })
	b.marked = false
	if err := b.plane.marks.Clear("x"); err != nil {
		t.Fatal(err)
	}
	if err := b.plane.marks.Close(); err != nil { // it cannot be written any more
		t.Fatal(err)
	}
	for range 2 {
		if errno := post(3); errno != abi.ErrLimit || len(sent) > 0 {
			t.Errorf("errno %d, %d sent", errno, len(sent))
		}
	}
}

// TestEndIsOneStep: a guest that knows a response to be over must not be saved with
// its stream, and one that has nothing under way any more may be put to sleep: its
// loop must look again.
func TestEndIsOneStep(t *testing.T) {
	for kind, left := range map[abi.Kind]int{abi.FrameHead: 1, abi.FrameBody: 1, abi.FrameEnd: 0, abi.FrameFail: 0} {
		b := newBare(t, controllers.Declaration{}, roundTripFunc(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}))
		b.must(1, "/x")
		b.mu.Lock()
		b.exchanges[1].push(kind, nil, "test")
		if len(b.exchanges) != left || b.underWay != left {
			t.Errorf("after %s: %d exchanges, %d under way", kind, len(b.exchanges), b.underWay)
		}
		b.mu.Unlock()
		if len(b.notify) == 0 {
			t.Errorf("after %s: the loop is not told", kind)
		}
	}
}

// TestResponsesEnd: however an exchange ends, nothing stays under way.
func TestResponsesEnd(t *testing.T) {
	for name, c := range map[string]struct {
		url    string
		frames int32 // of the whole exchange
	}{
		"response":      {"/x", 3},
		"watch refused": {"/x?watch=1&resourceVersion=0", 3},
		"failure":       {"/fail", 1},
	} {
		b := newBare(t, controllers.Declaration{}, roundTripFunc(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/fail" {
				return nil, io.ErrClosedPipe
			}
			return text(http.StatusNotFound, "body"), nil
		}))
		b.must(1, c.url)
		b.until(name+" to end", func() bool { return len(b.exchanges) == 0 && b.underWay == 0 })
		if n := b.pushed.Load(); n != c.frames {
			t.Errorf("%s: %d frames, want %d", name, n, c.frames)
		}
	}
}

// TestSettledWatchIsTold: a watch that opens after its guest went idle makes it
// possible to put it to sleep; nothing else would have the loop look again.
func TestSettledWatchIsTold(t *testing.T) {
	b := newBare(t, controllers.Declaration{}, nil)
	x, err := b.newExchange(&abi.Request{Stream: 1, Method: http.MethodGet, URL: "/x?watch=1"})
	if err != nil {
		t.Fatal(err)
	}
	x.cancel = func() {}
	b.exchanges[1], b.underWay = x, 1
	b.settle(x)
	select {
	case <-b.notify:
	default:
		t.Error("the loop is not told of the watch that opened")
	}
	b.settle(x)
	b.finish(x)
	b.finish(x)
	if b.underWay != 0 || len(b.exchanges) != 0 {
		t.Errorf("%d under way, %d exchanges", b.underWay, len(b.exchanges))
	}
}

// watchServer answers watches from scripts, one for each request; the last stays
// open. Other requests are lists, which it counts and refuses.
type watchServer struct {
	mu      sync.Mutex
	scripts []script
	queries []string // resourceVersion of each watch
	lists   int
}

type script struct {
	code int
	body string
	open bool // the watch goes on after the body
}

func (s *watchServer) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := r.URL.Query()
	if q.Get("watch") == "" {
		s.lists++
		return text(http.StatusInternalServerError, ""), nil
	}
	s.queries = append(s.queries, q.Get("resourceVersion")+" "+q.Get("sendInitialEvents"))
	if len(s.scripts) == 0 {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	next := s.scripts[0]
	s.scripts = s.scripts[1:]
	body := io.Reader(strings.NewReader(next.body))
	if next.open {
		body = io.MultiReader(body, &untilDone{r.Context()})
	}
	return respond(next.code, io.NopCloser(body)), nil
}

// untilDone is a body that goes on in silence.
type untilDone struct{ ctx context.Context }

func (u *untilDone) Read([]byte) (int, error) {
	<-u.ctx.Done()
	return 0, u.ctx.Err()
}

// TestWatchGoesOnFromWhereItBegan: no event and no bookmark has come when the watch
// ends. The version that the guest began with is where it goes on, and what a
// snapshot remembers.
func TestWatchGoesOnFromWhereItBegan(t *testing.T) {
	s := &watchServer{scripts: []script{{200, "", false}, {200, "", true}}}
	b := newBare(t, controllers.Declaration{}, s)
	b.must(1, "/x?watch=1&resourceVersion=123")
	b.until("the renewal", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.queries) == 2 && b.underWay == 0 })
	if got := fmt.Sprint(s.queries); got != "[123  123 ]" {
		t.Errorf("asked for %q", got)
	}
	if n := b.pushed.Load(); n != 1 {
		t.Errorf("%d frames, want the head", n)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var head snapshot.Head
	b.fillStreams(&head)
	if len(head.Streams) != 1 || head.Streams[0].Revision != "123" || head.Revision != 123 {
		t.Errorf("saved as %+v", head)
	}
}

// TestInitialEventsComeFirst: the list that a watch begins with cannot be resumed in
// the middle, so until it is complete the guest stays.
func TestInitialEventsComeFirst(t *testing.T) {
	pr, pw := io.Pipe()
	b := newBare(t, controllers.Declaration{}, roundTripFunc(func(r *http.Request) (*http.Response, error) {
		context.AfterFunc(r.Context(), func() { pw.CloseWithError(r.Context().Err()) })
		return respond(200, pr), nil
	}))
	b.must(1, "/x?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan")
	send := func(lines string) {
		if _, err := io.WriteString(pw, lines); err != nil {
			t.Error(err)
		}
	}
	send(object("ADDED", "a", "70", nil) + object("ADDED", "b", "30", nil))
	b.until("the objects", func() bool { return b.pushed.Load() == 3 })
	b.mu.Lock()
	if b.underWay != 1 {
		t.Error("the guest may sleep in the middle of the list")
	}
	b.mu.Unlock()
	send(object("BOOKMARK", "", "80", nil)) // no end
	send(object("BOOKMARK", "", "81", map[string]string{initialEndAnnotation: "true"}))
	b.until("the end of the list", func() bool { return b.underWay == 0 })
	if n := b.pushed.Load(); n != 4 {
		t.Errorf("%d frames, want the head, two objects and one bookmark", n)
	}
	send(object("BOOKMARK", "", "90", map[string]string{initialEndAnnotation: "true"}))
	b.until("the bookmark", func() bool { return b.exchanges[1].delivered == "90" })
	if n := b.pushed.Load(); n != 4 {
		t.Error("a later bookmark was delivered")
	}
}

// TestWatchThatEndsInTheList: the guest is told, whatever the host knows.
func TestWatchThatEndsInTheList(t *testing.T) {
	for name, body := range map[string]string{
		"end":     object("ADDED", "a", "70", nil),
		"expired": object("ADDED", "a", "70", nil) + `{"type":"ERROR","object":{"code":410}}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := &watchServer{scripts: []script{{200, body, false}}}
			b := newBare(t, controllers.Declaration{}, s)
			b.must(1, "/x?watch=1&sendInitialEvents=true")
			b.until("the end", func() bool { return len(b.exchanges) == 0 })
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.queries) != 1 || s.lists != 0 {
				t.Errorf("%d watches and %d lists instead of one watch", len(s.queries), s.lists)
			}
			if b.underWay != 0 {
				t.Errorf("%d under way", b.underWay)
			}
		})
	}
}

// TestEventsThatWaitAreBounded: what waits is the latest state of each object, in
// order, and comes before anything else.
func TestEventsThatWaitAreBounded(t *testing.T) {
	d := controllers.Declaration{Wait: map[string]controllers.Events{"*": controllers.Added | controllers.Modified}}
	var lines strings.Builder
	for n := range 100 {
		lines.WriteString(object("MODIFIED", fmt.Sprint("o", n%3), fmt.Sprint(100+n), nil))
	}
	lines.WriteString(object("BOOKMARK", "", "300", nil))
	s := &watchServer{scripts: []script{{200, lines.String(), true}}}
	b := newBare(t, d, s)
	b.state = Asleep
	b.mailbox.Reset()
	x, err := b.resumeExchange(snapshot.Stream{ID: 1, URL: "/things?watch=1", Revision: "99"})
	if err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.exchanges[1] = x
	b.launch(x)
	b.mu.Unlock()
	b.until("the bookmark", func() bool { return x.seen == "300" })
	due := b.waitingDue(time.Now())
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(x.waiting) != 3 || x.delivered != "99" || b.pushed.Load() != 0 {
		t.Errorf("%d wait, delivered up to %s, %d frames", len(x.waiting), x.delivered, b.pushed.Load())
	}
	if due <= 0 || due > waitLimit {
		t.Errorf("due in %s", due)
	}
	x.push(abi.FrameBody, []byte("more"), "more")
	if len(x.waiting) != 0 || x.delivered != "199" || b.pushed.Load() != 4 {
		t.Errorf("%d wait, delivered up to %s, %d frames", len(x.waiting), x.delivered, b.pushed.Load())
	}
}

// TestHeartbeatsMayWaitForever: nobody is woken for them alone, but for the change
// before one.
func TestHeartbeatsMayWaitForever(t *testing.T) {
	b := newBare(t, controllers.Declaration{Wait: map[string]controllers.Events{"*": controllers.Modified}}, nil)
	x := b.watching()
	due := func(uid string, refresh bool) bool {
		b.mu.Lock()
		ev := event{Type: "MODIFIED", UID: uid, Refresh: refresh}
		_, due := b.mayKeep(x, ev, nil)
		x.wait(ev, []byte("x"), due)
		b.mu.Unlock()
		return b.waitingDue(time.Now()) != never
	}
	for _, uid := range []string{"a", "a", "b"} {
		if due(uid, true) {
			t.Error("heartbeats wake the guest")
		}
	}
	if !due("a", false) || !due("a", true) {
		t.Error("a change may wait forever")
	}
}

// TestWaitLimit: the declaration says for how long an event may wait.
func TestWaitLimit(t *testing.T) {
	b := newBare(t, controllers.Declaration{Wait: map[string]controllers.Events{"*": controllers.Any}, WaitLimit: heavyLimit / 2}, nil)
	x := b.watching()
	b.state = Asleep
	for _, uid := range []string{"a", "b"} {
		b.mu.Lock()
		b.waitingBytes = heavyWaiting // no reason to wait for longer
		x.take(event{Type: "MODIFIED", UID: uid, Name: uid, Revision: "100"}, []byte("raw"))
		b.mu.Unlock()
		if due := b.waitingDue(time.Now()); due <= 0 || due > heavyLimit/2 {
			t.Errorf("%s is due in %s", uid, due)
		}
	}
}

// TestLateEventAfterOneThatWent: an event that is late has the loop look again although
// it knew of an earlier one, of an object that has come and gone since.
func TestLateEventAfterOneThatWent(t *testing.T) {
	b := newBare(t, controllers.Declaration{Late: map[string]controllers.Events{"*": controllers.Any}}, nil)
	x := b.watching()
	b.state = Asleep
	for k, ev := range []event{{Type: "ADDED", UID: "a"}, {Type: "DELETED", UID: "a"}, {Type: "ADDED", UID: "b"}} {
		ev.Revision = strconv.Itoa(100 + k)
		b.mu.Lock()
		x.take(ev, []byte("raw"))
		b.mu.Unlock()
		if ev.Type == "ADDED" && len(b.notify) == 0 {
			t.Errorf("%s %s: the loop hears nothing", ev.Type, ev.UID)
		}
		for len(b.notify) > 0 {
			<-b.notify
		}
		b.untilNext() // the loop looks
	}
	if due, _ := b.untilNext(); due > lateness {
		t.Errorf("the loop waits for %s", due)
	}
}

// TestLateEvents: what may be late wakes the guest in a moment, once for all that came
// meanwhile, and at once where something else does.
func TestLateEvents(t *testing.T) {
	const none = time.Duration(0)
	b := newBare(t, controllers.Declaration{
		Wait: map[string]controllers.Events{"*": controllers.Modified},
		Late: map[string]controllers.Events{"*": controllers.Added | controllers.Modified},
	}, nil)
	x := b.watching()
	b.state = Asleep
	take := func(typ, uid, revision string) time.Duration {
		b.mu.Lock()
		x.take(event{Type: typ, UID: uid, Name: uid, Revision: revision}, []byte("raw"))
		b.mu.Unlock()
		return b.waitingDue(time.Now())
	}
	if due := take("MODIFIED", "a", "100"); due <= lateness || due > waitLimit {
		t.Errorf("due in %s, though it need not wake the guest", due)
	}
	first := take("ADDED", "b", "101")
	if first <= none || first > lateness {
		t.Errorf("late by %s", first)
	}
	if due := take("ADDED", "b", "102"); due > first {
		t.Errorf("the same object again: late by %s, was %s", due, first)
	}
	if due := take("MODIFIED", "b", "103"); due > first {
		t.Errorf("what need not wake the guest let it wait for %s, was %s", due, first)
	}
	if n := b.pushed.Load(); n != 0 {
		t.Errorf("%d events came at once", n)
	}
	if got, want := b.overdue(time.Now().Add(lateness)), "MODIFIED things b"; got != want {
		t.Errorf("overdue is %q, want %q", got, want)
	}
	// One that comes and goes meanwhile is no news.
	take("ADDED", "d", "104")
	b.Late["*"] = controllers.Added | controllers.Modified | controllers.Deleted
	take("DELETED", "d", "105")
	b.Late["*"] = controllers.Added | controllers.Modified
	if due := take("DELETED", "c", "106"); due != never || b.pushed.Load() != 3 || x.delivered != "106" {
		t.Errorf("%d events with the one that wakes, up to %s; the next in %s", b.pushed.Load(), x.delivered, due)
	}
}
