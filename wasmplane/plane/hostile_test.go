package plane

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

// victim is what a hostile guest reaches: the API, and a few paths to abuse.
type victim struct {
	*api
	begin  chan struct{} // closed when the attack may begin
	flow   chan struct{} // closed when endless bodies may flow
	bodies atomic.Int32  // endless bodies that were begun
	silent atomic.Int32  // requests that get no answer
	extra  atomic.Value  // []string, the names of headers that came
}

// RoundTrip implements http.RoundTripper.
func (v *victim) RoundTrip(r *http.Request) (*http.Response, error) {
	switch r.URL.Path {
	case "/begin":
		select {
		case <-v.begin:
			return text(http.StatusOK, ""), nil
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	case "/silent":
		v.silent.Add(1)
		defer v.silent.Add(-1)
		<-r.Context().Done()
		return nil, r.Context().Err()
	case "/endless":
		v.bodies.Add(1)
		return respond(http.StatusOK, io.NopCloser(endless{v, r.Context()})), nil
	case "/headers":
		var names []string
		for name := range r.Header {
			names = append(names, name)
		}
		v.extra.Store(names)
		return respond(http.StatusOK, http.NoBody), nil
	}
	return v.api.RoundTrip(r)
}

type endless struct {
	*victim
	ctx context.Context
}

func (e endless) Read(b []byte) (int, error) {
	select {
	case <-e.flow:
		return len(b), nil
	case <-e.ctx.Done():
		return 0, e.ctx.Err()
	}
}

// hostile is a plane with a guest that attacks, and one that works.
type hostile struct {
	*running
	bad    *guest
	victim *victim
	log    *lines
	good   *api
	began  time.Time
	events []string
}

// neighbour has the guest that works answer an event.
func (h *hostile) neighbour(t *testing.T) {
	t.Helper()
	value := fmt.Sprint(len(h.events))
	h.good.put("MODIFIED", "x", value)
	h.events = append(h.events, "MODIFIED"+value)
	want := foldOf(h.events...)
	h.good.await(t, "answer of the neighbour", func(m map[string]string) bool { return m["x"] == want })
}

// came reports whether the attacker says that this came of it. One that has used up
// what it may ask for can still write to the log, and the other way round.
func (h *hostile) came(what string) bool {
	return h.victim.got()["attack"] == what || h.log.count("came to: "+what) > 0
}

// until has the neighbour work until cond holds.
func (h *hostile) until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s; the attacker is %+v; the log:\n%s", what, h.bad.detail().Status, h.log)
		}
		h.neighbour(t)
	}
}

// TestHostileGuests: whatever a guest tries, it is ended with one clear line and a
// pause, or is refused, and its neighbour goes on working.
func TestHostileGuests(t *testing.T) {
	const went = "" // for ends: it was not ended
	for name, c := range map[string]struct {
		ends   string        // how it is ended
		came   string        // what it says came of it, if it was not ended
		said   string        // what the log says, once
		run    time.Duration // its limit, if not a minute
		before func(*hostile)
		after  func(*testing.T, *hostile)
	}{
		"loop":            {ends: "deadline: ran for more than 300ms", run: 300 * time.Millisecond},
		"loop with calls": {ends: "deadline: ran for more than 300ms", run: 300 * time.Millisecond},
		"loop of polls":   {ends: "deadline: ran for more than 300ms", run: 300 * time.Millisecond},
		"thief":           {ends: "deadline: ran for more than 300ms", run: 300 * time.Millisecond},
		"bomb":            {ends: "memory: wanted more than its limit of 64 MiB"},
		"recursion":       {ends: "trap: wasm trap: call stack exhausted"},
		"exit":            {ends: "exit: had enough"},
		"long panic":      {ends: "trap: panic: xxx"},

		"files":       {came: "refused"},
		"given files": {came: "100000 true 100000 9700000"},
		"sockets":     {came: "refused"},
		"environment": {came: "[] [guest]"},

		"broken requests":   {came: "refused", said: "refused a request: "},
		"other targets":     {came: "refused", said: "refused a request: "},
		"cancel everything": {came: "cancelled"},
		"headers": {came: "200 OK", after: func(t *testing.T, h *hostile) {
			for _, name := range h.victim.extra.Load().([]string) {
				if !slices.Contains(allowedHeaders, name) {
					t.Errorf("the API server is told %s", name)
				}
			}
			if h.log.count("who asks is not for the controller to say") != 1 {
				t.Errorf("nothing, or too much, is said:\n%s", h.log)
			}
		}},
		"flood": {came: "done", said: "asks too often",
			before: func(h *hostile) { h.bad.requests.SetBurst(10) },
			after:  atLeast(290 * time.Second / requestRate)},
		"flood at once": {came: fmt.Sprint(maxExchanges, " taken"), said: "refused a request: ", after: func(t *testing.T, h *hostile) {
			h.until(t, "requests in the API server", func() bool { return h.victim.silent.Load() >= maxResponses-1 })
			if n := h.victim.silent.Load(); n > maxResponses {
				t.Errorf("%d requests in the API server, %d are allowed", n, maxResponses)
			}
		}},
		"large requests": {came: "3 taken", said: "refused a request: those under way have more than 16 MiB"},
		"watches":        {came: fmt.Sprint(maxExchanges, " taken"), said: "refused a request: "},

		"restless": {came: "rested",
			before: func(h *hostile) { h.bad.timers.SetBurst(10) },
			after:  atLeast(80 * time.Second / timerRate)},
		"restless while it waits": {came: "rested",
			before: func(h *hostile) { h.bad.timers.SetBurst(10) },
			after:  atLeast(80 * time.Second / timerRate)},

		"lines":        {came: "written", said: "writes too much", after: fewLines},
		"endless line": {came: "written", said: "writes too much", after: fewLines},
	} {
		t.Run(name, func(t *testing.T) {
			h := attack(t, name, c.run, c.before)
			if c.ends != went {
				h.until(t, "end", func() bool { return h.bad.detail().State == Failed })
				if d := h.bad.detail(); !strings.HasPrefix(d.LastError, c.ends) || len(d.LastError) > 16<<10 {
					t.Errorf("ended by %.200q, want %q", d.LastError, c.ends)
				}
				_, text, _ := strings.Cut(c.ends, ": ")
				h.until(t, "line in the log", func() bool { return h.log.count("starting it again cold: "+text) > 0 })
			} else {
				h.until(t, "result "+c.came, func() bool { return h.came(c.came) })
				if d := h.bad.detail(); d.Restarts != 0 {
					t.Errorf("ended %d times: %s", d.Restarts, d.LastError)
				}
			}
			if c.said != "" && h.log.count(c.said) != 1 {
				t.Errorf("said %q %d times:\n%s", c.said, h.log.count(c.said), h.log)
			}
			if c.after != nil {
				c.after(t, h)
			}
			for range 10 {
				h.neighbour(t)
			}
			if d := h.guests[0].detail(); d.Restarts != 0 || d.Wakes != 1 {
				t.Errorf("the neighbour had %d restarts and %d wakes: %s", d.Restarts, d.Wakes, d.LastError)
			}
		})
	}
}

// attack starts a plane with a hostile guest, calls prepare, and lets it begin.
func attack(t *testing.T, name string, run time.Duration, prepare func(*hostile)) *hostile {
	t.Helper()
	if run == 0 {
		run = time.Minute
	}
	world := newAPI().world
	h := &hostile{victim: &victim{api: world.user(), begin: make(chan struct{}), flow: make(chan struct{})}, good: world.user(), log: &lines{}}
	h.running = start(t, t.TempDir(), nil, controllers.Declaration{}, func(c *Config, host *Host) {
		c.Guests = []controllers.Declaration{
			{Name: "fold", Identity: "good", MemoryLimit: 64 << 20, RunLimit: time.Minute},
			{Name: "hostile", Identity: "bad", MemoryLimit: 64 << 20, RunLimit: run},
		}
		log := logrus.New()
		log.SetOutput(h.log)
		c.Log = logrus.NewEntry(log)
		options, err := json.Marshal(name)
		if err != nil {
			t.Fatal(err)
		}
		host.Setup = func(string) (Setup, error) {
			return Setup{Options: options, Files: map[string]string{"/given/file": strings.Repeat("a", 100_000)}}, nil
		}
		host.Transport = func(user string) http.RoundTripper {
			if user == "bad" {
				return h.victim
			}
			return h.good
		}
	})
	h.bad = h.guests[1]
	h.neighbour(t)
	if prepare != nil {
		prepare(h)
	}
	h.began = time.Now()
	close(h.victim.begin)
	return h
}

// atLeast is how long an attack has to take.
func atLeast(d time.Duration) func(*testing.T, *hostile) {
	return func(t *testing.T, h *hostile) {
		if took := time.Since(h.began); took < d {
			t.Errorf("took %s, and should have been held up for %s", took, d)
		}
	}
}

// fewLines checks what the guest could write to the log.
func fewLines(t *testing.T, h *hostile) {
	h.log.mu.Lock()
	defer h.log.mu.Unlock()
	if n := h.log.text.Len(); n > 3*maxOutput {
		t.Errorf("%d bytes in the log", n)
	}
}

// TestGuestThatNeverReads: it asks for everything, and what the host holds for it
// stays small.
func TestGuestThatNeverReads(t *testing.T) {
	h := attack(t, "never reads", time.Hour, nil)
	h.until(t, "responses", func() bool { return h.victim.bodies.Load() >= maxResponses })
	for range 20 {
		h.neighbour(t)
	}
	close(h.victim.flow)
	h.until(t, "full mailbox", func() bool { return h.bad.mailbox.Fill() > 1 })
	for range 20 {
		h.neighbour(t)
	}
	if n := h.victim.bodies.Load(); n > maxResponses {
		t.Errorf("%d responses are under way, %d are allowed", n, maxResponses)
	}
	if f := h.bad.mailbox.Fill(); f > 1.1 { // a chunk more than what Room lets in
		t.Errorf("the mailbox is filled to %.0f %%", 100*f)
	}
}

// TestRoomIsForOne: of two that wait for room in the mailbox the second waits again
// if the first has taken it.
func TestRoomIsForOne(t *testing.T) {
	b := newBare(t, controllers.Declaration{}, nil)
	x := &exchange{guest: b.guest, ctx: t.Context()}
	for n := 0; b.mailbox.Fill() <= 1; n++ {
		if done, err := x.ifRoom(func() { b.mailbox.Push(abi.FrameBody, 1, make([]byte, chunk)) }); !done || err != nil {
			t.Fatalf("no room for chunk %d: %v", n, err)
		}
	}
	if done, err := x.ifRoom(func() { t.Error("put into a full mailbox") }); done || err != nil {
		t.Errorf("%v, %v", done, err)
	}
}

// TestBrokenFramesEndOneGuest: what is broken on the way to a guest ends only that.
func TestBrokenFramesEndOneGuest(t *testing.T) {
	h := attack(t, "wait", 0, nil)
	h.until(t, "result", func() bool { return h.came("waits") })
	h.bad.mailbox.Push(abi.FrameCollect+1, 1, []byte("what is this?"))
	h.until(t, "end", func() bool { return h.bad.detail().State == Failed })
	if d := h.bad.detail(); d.LastError != "exit: mailbox: frame of unknown kind 7" {
		t.Errorf("ended by %q", d.LastError)
	}
	h.until(t, "restart", func() bool { return h.bad.detail().State == Warm })
	if d := h.guests[0].detail(); d.Restarts != 0 {
		t.Errorf("the neighbour was ended: %s", d.LastError)
	}
}

// TestTargets has requests that are refused for where they lead, and similar ones
// that are not.
func TestTargets(t *testing.T) {
	for url, want := range map[string]string{
		"/": "", "/api": "", "/apis/": "", "/openapi/v3": "", "/version?x=//": "",
		"/api/v1/namespaces/proxy":                           "",
		"/api/v1/namespaces/proxy/status":                    "",
		"/api/v1/namespaces/exec/pods/attach":                "",
		"/api/v1/namespaces/a/pods/b/status":                 "",
		"/api/v1/namespaces/a/pods/b/log?container=exec":     "",
		"/api/v1/namespaces/a/configmaps/proxy":              "",
		"/api/v1/nodes/proxy":                                "",
		"/apis/a/v1/namespaces/b/cs/exec":                    "",
		"/apis/rbac/v1/clusterroles/system:controller:x":     "",
		"/api/v1/pods?fieldSelector=a%3Db&labelSelector=x/y": "",

		"/api/v1/nodes/a/proxy":                 "out of the API",
		"/api/v1/nodes/a/proxy/":                "out of the API",
		"/api/v1/nodes/a/proxy/metrics":         "out of the API",
		"/api/v1/namespaces/a/services/b/proxy": "out of the API",
		"/api/v1/namespaces/a/pods/b/exec":      "out of the API",
		"/apis/a/v1/namespaces/b/cs/d/attach":   "out of the API",
		"/apis/a/v1/cs/d/portforward":           "out of the API",
		"/v1-dormouse/wasm/controllers":         "not of the API",
		"/api/../v1-dormouse/wasm":              "two ways",
		"/api/v1/nodes/a/x%2F..%2Fproxy":        "two ways",
		"/api/v1/nodes/a//proxy":                "two ways",
		"//api":                                 "two ways",
		"/api/.":                                "two ways",
		"/" + strings.Repeat("x", maxURL):       "bytes",
	} {
		_, err := target(url)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.100s: %v, want %q", url, err, want)
		}
	}
}

// FuzzTarget: what is accepted has a path that reads the same in every way.
func FuzzTarget(f *testing.F) {
	f.Add("/api/v1/namespaces/a/pods?watch=1")
	f.Add("/api/v1/nodes/a/proxy/x")
	f.Add("/a/%2e%2e/b")
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := target(raw)
		if err != nil {
			return
		}
		if u.Host != "" || u.Scheme != "" || u.Opaque != "" || u.User != nil || !strings.HasPrefix(u.Path, "/") || strings.HasPrefix(u.Path, "//") ||
			slices.Contains(strings.Split(u.Path, "/"), "..") || u.EscapedPath() != (&url.URL{Path: u.Path}).EscapedPath() {
			t.Errorf("%q was accepted as %+v", raw, u)
		}
	})
}

// TestOutputIsAdmittedAgain: what is left out is counted, and a minute later lines
// are written again.
func TestOutputIsAdmittedAgain(t *testing.T) {
	said := &lines{}
	log := logrus.New()
	log.SetOutput(said)
	var o output
	now := time.Now()
	admitted := 0
	for range 2000 {
		if o.admit(logrus.NewEntry(log), "x", now) {
			admitted++
		}
	}
	if want := maxOutput/(outputLine+1) + 1; admitted != want {
		t.Errorf("%d lines were admitted, want %d", admitted, want)
	}
	if !o.admit(logrus.NewEntry(log), "x", now.Add(outputPeriod)) {
		t.Error("no line was admitted a minute later")
	}
	if said.count(fmt.Sprint(2000-admitted, " lines of the controller were left out")) != 1 || said.count("writes too much") != 1 {
		t.Error(said)
	}
}

// TestWaitingEventsAreBounded: what waits for a guest takes no more than its
// mailbox would; then it is woken.
func TestWaitingEventsAreBounded(t *testing.T) {
	b := newBare(t, controllers.Declaration{Wait: map[string]controllers.Events{"*": controllers.Modified}}, nil)
	b.state = Asleep
	x, err := b.resumeExchange(snapshot.Stream{ID: 1, URL: "/things?watch=1", Revision: "1"})
	if err != nil {
		t.Fatal(err)
	}
	b.exchanges[1] = x
	b.mu.Lock()
	defer b.mu.Unlock()
	for n := range 3 {
		x.take(event{Type: "MODIFIED", UID: fmt.Sprint(n), Revision: fmt.Sprint(2 + n)}, make([]byte, heavyWaiting/2+1))
		b.mu.Unlock()
		due := b.waitingDue(time.Now())
		b.mu.Lock()
		if due <= 0 || (due <= heavyLimit) != (n == 2) {
			t.Errorf("%d bytes are due in %s", b.waitingBytes, due)
		}
	}
	b.flushWaiting()
	b.mailbox.Reset()
	before := b.pushed.Load()
	raw := make([]byte, maxWaiting/4)
	for n := range 8 { // of two objects
		x.take(event{Type: "MODIFIED", UID: fmt.Sprint(n % 2), Revision: fmt.Sprint(2 + n)}, raw)
	}
	if b.pushed.Load() != before || b.waitingBytes != 2*len(raw) {
		t.Errorf("%d frames, %d bytes wait", b.pushed.Load(), b.waitingBytes)
	}
	for n := range 3 {
		x.take(event{Type: "MODIFIED", UID: fmt.Sprint(10 + n), Revision: fmt.Sprint(20 + n)}, raw)
	}
	if b.pushed.Load() != before+5 || b.waitingBytes != 0 || len(x.waiting) != 0 {
		t.Errorf("%d frames, %d bytes wait", b.pushed.Load(), b.waitingBytes)
	}
	delete(b.exchanges, 1) // it was never launched
}
