package plane

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
)

// TestAdapt has what guests make of a life in which an event comes in the same
// distance again and again.
func TestAdapt(t *testing.T) {
	const idle = 2 * time.Second
	for _, c := range []struct {
		every time.Duration // from the end of one run to the next event
		saved int           // of the first hundred times
		warm  time.Duration // in the end
	}{
		{time.Second, 0, idle},         // it is never saved
		{3 * time.Second, 1, 2 * idle}, // it stays after the first time
		{9 * time.Second, 3, 8 * idle}, // after some
		{15 * time.Second, 100, idle},  // nothing is known
		{29 * time.Second, 100, idle},  // nor here
		{time.Minute, 100, idle / 2},   // it need not wait for what does not come
		{time.Hour, 100, idle / 2},     // and not less than that
		{idle + time.Millisecond, 1, 2 * idle},
	} {
		warm, saved := idle, 0
		for range 100 {
			if asleep := c.every - warm; asleep > 0 {
				saved++
				warm = adapt(warm, asleep, idle)
			}
		}
		if saved != c.saved || warm != c.warm {
			t.Errorf("an event every %s: saved %d times, stays for %s; want %d and %s", c.every, saved, warm, c.saved, c.warm)
		}
	}
	warm := idle
	for range 10 {
		warm = adapt(warm, 0, idle)
	}
	if warm != maxWarm*idle {
		t.Errorf("it stays for %s, want at most %s", warm, maxWarm*idle)
	}
}

func TestLeave(t *testing.T) {
	const grace = time.Second
	old, young := time.Minute, 300*time.Millisecond
	for name, c := range map[string]struct {
		holders []holder
		budget  int64
		which   []int
		again   time.Duration
	}{
		"nobody":             {nil, 0, nil, 0},
		"enough for all":     {[]holder{{10, true, old, 1}, {10, true, old, 1}}, 20, nil, 0},
		"as few as needed":   {[]holder{{10, true, old, 1}, {10, true, old + 1, 1}, {10, true, old, 1}}, 20, []int{1}, 0},
		"as many as needed":  {[]holder{{10, true, old, 1}, {10, true, old + 1, 1}, {10, true, old, 1}}, 10, []int{1, 0}, 0},
		"the least in use":   {[]holder{{10, true, 2 * old, 30}, {10, true, old, 1}}, 10, []int{1}, 0},
		"none that is busy":  {[]holder{{50, false, old, 1}, {10, true, old, 1}}, 10, []int{1}, 0},
		"all are busy":       {[]holder{{50, false, old, 1}}, 10, nil, 0},
		"ran lately":         {[]holder{{10, true, young, 1}, {10, true, young - 1, 1}}, 10, nil, grace - young},
		"one did not":        {[]holder{{10, true, young, 1}, {10, true, old, 1}}, 10, []int{1}, 0},
		"one is not enough":  {[]holder{{10, true, young, 1}, {10, true, old, 1}}, 0, []int{1}, grace - young},
		"others are in time": {[]holder{{10, true, young, 1}, {20, true, old, 100}, {10, true, young, 1}}, 20, []int{1}, 0},
	} {
		if which, again := leave(c.holders, c.budget, grace); !slices.Equal(which, c.which) || again != c.again {
			t.Errorf("%s: %v and again in %s, want %v and %s", name, which, again, c.which, c.again)
		}
	}
}

// startBurst starts guests that all handle each event. The function it returns
// sends one and waits until they have.
func startBurst(t *testing.T) (p *running, event func()) {
	apis := usersOf("fold", "fold-2", "fold-3")
	p = startAll(t, t.TempDir(), apis, nil)
	n := 0
	event = func() {
		n++
		before := map[string]string{}
		for name, a := range apis {
			before[name] = a.got()["x"]
		}
		apis["fold"].put("MODIFIED", "x", fmt.Sprint(n))
		for name, a := range apis {
			a.await(t, "result of "+name, func(m map[string]string) bool { return m["x"] != before[name] })
		}
	}
	event()
	return p, event
}

func (r *running) setBudget(budget int64) {
	r.mu.Lock()
	r.config.MemoryBudget = budget
	r.mu.Unlock()
	r.enforceBudget()
}

func (r *running) sums() (wakes int, resident int64) {
	for _, s := range r.List() {
		wakes += s.Wakes
		resident += s.ResidentBytes
	}
	return wakes, resident
}

// TestBurstDoesNotThrash: guests that together hold more than the budget are not
// saved and restored for each event of a burst. When it is over, the budget holds.
func TestBurstDoesNotThrash(t *testing.T) {
	p, event := startBurst(t)
	for range 20 {
		event() // until they have grown to what they need
	}
	p.await(t, "memory of all", func(all []Status) bool {
		return !slices.ContainsFunc(all, func(s Status) bool { return s.State != Warm || s.ResidentBytes == 0 })
	})
	before, resident := p.sums()
	budget := resident * 9 / 10 // far from twice of it, from where on guests stay for less
	p.setBudget(budget)
	const events = 40
	for range events {
		event()
		time.Sleep(100 * time.Millisecond) // enough to save all of them
	}
	after, _ := p.sums()
	t.Logf("%d wakes in %d events of three guests", after-before, events)
	if after-before > events/4 { // none, but on a machine that has a second of other work now and then
		t.Errorf("%d wakes in %d events", after-before, events)
	}
	p.await(t, "budget kept", func([]Status) bool {
		_, resident := p.sums()
		return resident <= budget
	})
	if slices.IndexFunc(p.List(), func(s Status) bool { return s.State == Warm }) < 0 {
		t.Error("all are asleep, though some had room")
	}
}

// TestBudgetOfNothing: a budget smaller than a single guest slows nobody down for
// long, and none stays.
func TestBudgetOfNothing(t *testing.T) {
	p, event := startBurst(t)
	p.setBudget(1)
	asleep := func(all []Status) bool {
		return !slices.ContainsFunc(all, func(s Status) bool { return s.State != Asleep })
	}
	for range 3 {
		for range 5 {
			event()
		}
		p.await(t, "sleep of all", asleep)
	}
}

// TestScarceMemory: when memory is scarce elsewhere, idle guests leave, with and
// without a budget.
func TestScarceMemory(t *testing.T) {
	p, event := startBurst(t)
	asleep := func(all []Status) bool {
		return !slices.ContainsFunc(all, func(s Status) bool { return s.State != Asleep })
	}
	p.scarce()
	p.await(t, "sleep of all", asleep)
	event()
	p.setBudget(1 << 30)
	p.scarce()
	p.await(t, "sleep of all, again", asleep)
}

// TestScarceMemoryAndPolling: that its timer runs again and again keeps no guest in memory that is needed elsewhere.
func TestScarceMemoryAndPolling(t *testing.T) {
	p := start(t, t.TempDir(), newAPI(), controllers.Declaration{Name: "watchful"}, nil)
	p.await(t, "poll", func(all []Status) bool { return all[0].State == Warm && p.guest().detail().LastRun == reasonTimer })
	p.scarce()
	p.awaitState(t, Asleep)
}

// TestNeededWhileSaved: a guest for which something came while it was saved stays,
// and stays longer from now on.
func TestNeededWhileSaved(t *testing.T) {
	a := newAPI()
	p := start(t, t.TempDir(), a, controllers.Declaration{Name: "fold"}, nil)
	awaitResult := func(n int) {
		before := a.got()["x"]
		a.put("MODIFIED", "x", fmt.Sprint(n))
		a.await(t, "result", func(m map[string]string) bool { return m["x"] != before })
	}
	awaitResult(0)
	g := p.guest()
	for n := 1; ; n++ {
		g.mu.Lock()
		g.warm = time.Hour // what earlier rounds made of it does not count
		g.mu.Unlock()
		wakes := g.detail().Wakes
		ended := make(chan error, 1)
		go func() { ended <- g.command(t.Context(), commandEvict) }()
		time.Sleep(time.Duration(n%20) * time.Millisecond)
		awaitResult(n) // before the save, in the midst of it, or after
		err := <-ended
		if d := g.detail(); err == errBusy && d.Wakes == wakes && d.WarmTime == (2*time.Hour).String() {
			return
		}
		if n > 200 {
			t.Fatalf("it never stayed: %+v", g.detail())
		}
	}
}

// TestEventsAtOnceAreOneRun: a hundred events that find a guest asleep wake it once,
// and are handled in the run that follows.
func TestEventsAtOnceAreOneRun(t *testing.T) {
	a := newAPI()
	p := start(t, t.TempDir(), a, controllers.Declaration{Name: "panic"}, nil)
	a.put("ADDED", "x", "1")
	awaitValue(t, a, "x", "1")
	p.evict(t)
	before := p.guest().detail()
	const events = 100
	for n := range events {
		a.put("ADDED", fmt.Sprint("o", n), "1")
	}
	a.await(t, "all results", func(m map[string]string) bool { return len(m) == events+1 })
	p.awaitState(t, Warm)
	d := p.guest().detail()
	t.Logf("%d runs", d.Runs-before.Runs)
	if d.Wakes != before.Wakes+1 || d.Runs-before.Runs > events/2 { // one, unless an answer takes longer than it lingers
		t.Errorf("%d wakes and %d runs for %d events", d.Wakes-before.Wakes, d.Runs-before.Runs, events)
	}
}
