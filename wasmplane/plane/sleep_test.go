package plane

import (
	"errors"
	"fmt"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

// near allows for the time that a test takes.
func near(got, want time.Duration) bool {
	if want == never {
		return got == never
	}
	return got <= want && got > want-20*time.Second
}

const min5 = 5 * time.Minute

func TestHeartbeatSlack(t *testing.T) {
	now := time.Now()
	within := controllers.Heartbeat{Resource: "leases", Within: time.Minute}
	ago := func(ds ...time.Duration) map[string]time.Time {
		m := map[string]time.Time{}
		for k, d := range ds {
			m[fmt.Sprint(k)] = now.Add(-d)
		}
		return m
	}
	for name, c := range map[string]struct {
		heartbeat controllers.Heartbeat
		last      map[string]time.Time
		due       time.Duration
		want      time.Duration
	}{
		"none declared":              {controllers.Heartbeat{}, ago(time.Hour), 0, never},
		"nothing to watch":           {within, nil, 0, never},
		"fresh":                      {within, ago(0), 0, time.Minute},
		"some time ago":              {within, ago(50 * time.Second), 0, 10 * time.Second},
		"the oldest decides":         {within, ago(0, 40*time.Second, 20*time.Second), 0, 20 * time.Second},
		"silent":                     {within, ago(0, 2*time.Minute), 0, 0},
		"from when the timer is due": {within, ago(0), 25 * time.Second, 35 * time.Second},
		"silent before it is due":    {within, ago(0), 2 * time.Minute, 0},
		"overdue":                    {within, ago(50 * time.Second), -5 * time.Second, 15 * time.Second},
	} {
		g := &guest{Declaration: controllers.Declaration{Heartbeat: c.heartbeat}, heartbeats: c.last}
		if got := g.heartbeatSlack(now, c.due); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestFirstHeartbeat: with the first object that has a heartbeat the next timer is
// another.
func TestFirstHeartbeat(t *testing.T) {
	b := newBare(t, controllers.Declaration{TimerSlack: time.Hour, Heartbeat: controllers.Heartbeat{Resource: "leases", Within: time.Minute}}, nil)
	x := &exchange{guest: b.guest, resource: "leases"}
	for k, ev := range []event{{Type: "ADDED", UID: "a"}, {Type: "MODIFIED", UID: "a"}, {Type: "DELETED", UID: "a"}, {Type: "ADDED", UID: "b"}} {
		b.noteHeartbeat(x, ev)
		if looks := len(b.notify) > 0; looks != (ev.Type == "ADDED") {
			t.Errorf("event %d: the loop looks again: %v", k, looks)
		}
		for len(b.notify) > 0 {
			<-b.notify
		}
	}
}

// TestTimers has when a guest's timer fires and when it is put to sleep.
func TestTimers(t *testing.T) {
	lease := controllers.Heartbeat{Resource: "leases", Within: time.Minute}
	for name, c := range map[string]struct {
		slack     time.Duration
		after     time.Duration // an event, the slack holds
		heartbeat controllers.Heartbeat
		silent    time.Duration // since the last heartbeat; 0: there is none
		objects   int           // that its timers are for; 0: it has timers for anything, -1: none
		hasty     bool          // put to sleep before it was idle for a while
		next      time.Duration // the guest's timer, from now; less than 0: none
		warm      bool
		idle      time.Duration // for how long a warm one has been idle
		underWay  int
		saveAfter time.Duration // from now

		due   time.Duration // until the timer fires
		sleep time.Duration // until a warm one is saved
	}{
		"asleep, no timer":              {next: -1, due: never},
		"asleep":                        {next: min5, due: min5},
		"asleep, with slack":            {next: min5, slack: time.Hour, due: min5 + time.Hour},
		"asleep too soon for slack":     {next: min5, slack: time.Hour, hasty: true, due: min5 + hasteSlack},
		"asleep, heartbeats come":       {next: 5 * time.Second, slack: time.Hour, heartbeat: lease, silent: 10 * time.Second, due: 50 * time.Second},
		"asleep, heartbeats too old":    {next: min5, slack: time.Hour, heartbeat: lease, silent: 10 * time.Second, due: min5},
		"asleep, silence":               {next: min5, slack: time.Hour, heartbeat: lease, silent: time.Hour, due: min5},
		"asleep, nobody to be silent":   {next: min5, slack: time.Hour, heartbeat: lease, due: min5 + time.Hour},
		"asleep, little slack":          {next: min5, slack: 30 * time.Second, heartbeat: lease, silent: time.Second, due: min5},
		"asleep, nothing to do":         {next: 5 * time.Second, objects: -1, due: never},
		"asleep, an object":             {next: 5 * time.Second, objects: 1, due: 5 * time.Second},
		"asleep, an object and slack":   {next: 5 * time.Second, objects: 1, slack: time.Hour, due: 5*time.Second + time.Hour},
		"asleep too soon, nothing":      {next: 5 * time.Second, objects: -1, hasty: true, due: 5*time.Second + hasteSlack},
		"asleep, overdue":               {next: 0, slack: 0, due: 0},
		"warm, no timer":                {warm: true, next: -1, due: never, sleep: time.Minute},
		"warm for a while":              {warm: true, next: -1, idle: 40 * time.Second, due: never, sleep: 20 * time.Second},
		"warm for too long":             {warm: true, next: -1, idle: 2 * time.Minute, due: never, sleep: -time.Minute},
		"warm, far timer":               {warm: true, next: min5, due: min5, sleep: time.Minute},
		"warm, no slack in memory":      {warm: true, next: min5, slack: time.Hour, due: min5, sleep: time.Minute},
		"warm, slack only later":        {warm: true, next: min5, slack: time.Hour, after: 2 * time.Minute, due: min5, sleep: 2 * time.Minute},
		"warm, timer before":            {warm: true, next: 30 * time.Second, due: 30 * time.Second, sleep: never},
		"warm, timer soon after":        {warm: true, next: time.Minute + worthSleeping/2, due: time.Minute + worthSleeping/2, sleep: never},
		"warm, near timer with slack":   {warm: true, next: 5 * time.Second, slack: time.Hour, due: 5 * time.Second, sleep: time.Minute},
		"warm, near timer and silence":  {warm: true, next: 5 * time.Second, slack: time.Hour, heartbeat: lease, silent: time.Hour, due: 5 * time.Second, sleep: never},
		"warm, nothing to do":           {warm: true, next: 5 * time.Second, objects: -1, due: 5 * time.Second, sleep: time.Minute},
		"warm, nothing to do for long":  {warm: true, next: 5 * time.Second, objects: -1, idle: time.Hour, due: 5 * time.Second, sleep: time.Minute - time.Hour},
		"warm, an object":               {warm: true, next: 5 * time.Second, objects: 2, due: 5 * time.Second, sleep: never},
		"warm, request under way":       {warm: true, next: -1, idle: time.Hour, underWay: 1, due: never, sleep: never},
		"warm, could not be saved":      {warm: true, next: -1, idle: time.Hour, saveAfter: saveRetry, due: never, sleep: saveRetry},
		"warm, could not be saved once": {warm: true, next: -1, saveAfter: -time.Hour, due: never, sleep: time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBare(t, controllers.Declaration{TimerSlack: c.slack, SlackAfter: c.after, Heartbeat: c.heartbeat}, nil)
			now := time.Now()
			b.nextTimer = c.next
			if c.next >= 0 {
				b.nextTimer += b.plane.clock.now()
			}
			if c.silent > 0 {
				b.heartbeats["uid"] = now.Add(-c.silent)
			}
			if c.saveAfter != 0 {
				b.saveAfter = now.Add(c.saveAfter)
			}
			if c.objects != 0 {
				b.TimersFor = []string{"objects"}
				b.exchanges[1] = &exchange{watch: true, resource: "objects", settled: true, cancel: func() {},
					members: members{known: true, count: max(0, c.objects)}}
			}
			b.quiet = !c.hasty
			b.state, b.underWay, b.stirred = Asleep, c.underWay, now.Add(-c.idle)
			is := near
			if c.slack > 0 && !c.warm && !c.hasty && c.heartbeat.Resource == "" { // it is earlier, with others
				is = func(got, want time.Duration) bool { return got <= want && got > want-c.slack }
			}
			wait := c.due
			if c.warm {
				b.state, b.inst = Warm, &runtime.Instance{}
				if got := b.sleepIn(time.Now()); !near(got, c.sleep) {
					t.Errorf("sleeps in %s, want %s", got, c.sleep)
				}
				wait = min(wait, c.sleep)
			}
			if got := b.timerDue(); !is(got, c.due) {
				t.Errorf("timer due in %s, want %s", got, c.due)
			}
			got, forever := b.untilNext()
			if !is(got, max(0, wait)) || forever != (wait == never) {
				t.Errorf("next in %s (forever: %v), want %s", got, forever, wait)
			}
			b.inst = nil
		})
	}
}

// TestTimersFireTogether: guests whose timers may be late have them at the same moments
// as others that may be later, whenever they began.
func TestTimersFireTogether(t *testing.T) {
	const day = 24 * time.Hour
	moments := func(began, period, slack time.Duration) map[time.Duration]bool {
		all := map[time.Duration]bool{}
		for now := began; ; {
			at := together(now+period, now+period+slack)
			if at < now+period || at > now+period+slack {
				t.Fatalf("a timer at %s with a slack of %s fires at %s", now+period, slack, at)
			}
			if at > day {
				return all
			}
			all[at], now = true, at
		}
	}
	rare := moments(0, 37*time.Minute, time.Hour)
	if len(rare) < 15 {
		t.Errorf("only %d moments", len(rare))
	}
	for began := range time.Duration(60) {
		often := moments(began*time.Second, 15*time.Second, time.Minute)
		if most := int(day / (60 * time.Second)); len(often) > most {
			t.Errorf("begun at %d s it fires %d times, more than %d", began, len(often), most)
		}
		for at := range rare {
			if !often[at] {
				t.Errorf("at %s one fires alone", at)
			}
		}
	}
}

// TestHeartbeatsAreSaved: after a restart each object that was there has as long as
// before to show that it lives.
func TestHeartbeatsAreSaved(t *testing.T) {
	d := controllers.Declaration{TimerSlack: time.Hour, Heartbeat: controllers.Heartbeat{Resource: "leases", Within: time.Minute}}
	b := newBare(t, d, nil)
	x := &exchange{guest: b.guest, resource: "leases"}
	other := &exchange{guest: b.guest, resource: "pods"}
	b.mu.Lock()
	for _, name := range []string{"a", "b", "c"} {
		b.noteHeartbeat(x, event{Type: "ADDED", UID: name})
		b.noteHeartbeat(other, event{Type: "ADDED", UID: "pod-" + name})
	}
	b.noteHeartbeat(x, event{Type: "DELETED", UID: "b"})
	b.noteHeartbeat(x, event{Type: bookmark})
	var head snapshot.Head
	b.fillStreams(&head)
	b.mu.Unlock()
	if got := strings.Join(head.Heartbeats, " "); got != "a c" {
		t.Fatalf("saved %q", got)
	}

	b = newBare(t, d, nil)
	b.nextTimer = b.plane.clock.now() + time.Second
	for _, uid := range head.Heartbeats {
		b.heartbeats[uid] = time.Now().Add(-50 * time.Second)
	}
	b.mu.Lock()
	b.noteHeartbeat(x.of(b), event{Type: "MODIFIED", UID: "a"})
	b.mu.Unlock()
	// One that lives does not speak for the other.
	if got := b.timerDue(); !near(got, 10*time.Second) {
		t.Errorf("timer due in %s, want 10 s", got)
	}
	b.heartbeats["c"] = time.Now().Add(-time.Hour)
	if got := b.timerDue(); got > time.Second {
		t.Errorf("timer due in %s though one is silent", got)
	}
	for len(b.notify) > 0 {
		<-b.notify
	}
	b.mu.Lock()
	b.noteHeartbeat(x.of(b), event{Type: "MODIFIED", UID: "c"})
	b.mu.Unlock()
	if len(b.notify) == 0 {
		t.Error("the loop is not told that the silence is over")
	}
}

// of is the exchange as one of another guest.
func (x *exchange) of(b *bare) *exchange { return &exchange{guest: b.guest, resource: x.resource} }

// TestBudget has whom the budget asks to leave.
func TestBudget(t *testing.T) {
	type g struct {
		state    State
		idle     time.Duration
		resident int64
		underWay int
	}
	for name, c := range map[string]struct {
		budget int64
		guests []g
		victim int // -1: none
	}{
		"none":                        {0, []g{{Warm, 1, 100, 0}}, -1},
		"enough":                      {100, []g{{Warm, 2, 50, 0}, {Warm, 1, 50, 0}}, -1},
		"the one idle for longest":    {100, []g{{Warm, 2, 50, 0}, {Warm, 3, 50, 0}, {Warm, 1, 50, 0}}, 1},
		"whatever its size":           {100, []g{{Warm, 2, 99, 0}, {Warm, 3, 2, 0}}, 1},
		"none that runs":              {100, []g{{Awake, 9, 500, 0}, {Warm, 1, 1, 0}}, 1},
		"none that waits for answers": {100, []g{{Warm, 9, 500, 1}, {Warm, 1, 1, 0}}, 1},
		"all busy":                    {100, []g{{Awake, 9, 500, 0}, {Warm, 1, 1, 3}}, -1},
		"the asleep do not count":     {100, []g{{Asleep, 9, 0, 0}, {Warm, 1, 100, 0}}, -1},
		"a single large one":          {100, []g{{Warm, 1, 101, 0}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			config := Config{MemoryBudget: c.budget, Log: newBare(t, controllers.Declaration{}, nil).plane.config.Log}
			for range c.guests {
				config.Guests = append(config.Guests, controllers.Declaration{})
			}
			p := New(config)
			now := time.Now()
			for k, s := range c.guests {
				p.guests[k].state, p.guests[k].warmSince = s.state, now.Add(-s.idle*time.Minute)
				p.guests[k].stats.ResidentBytes, p.guests[k].underWay = s.resident, s.underWay
			}
			p.enforceBudget()
			for k, g := range p.guests {
				if asked := len(g.pressure) > 0; asked != (k == c.victim) {
					t.Errorf("guest %d asked to leave: %v", k, asked)
				}
			}
		})
	}
}

// TestBudgetWhenAnswered: a guest that could not leave because of a request is asked
// again once that is answered.
func TestBudgetWhenAnswered(t *testing.T) {
	b := newBare(t, controllers.Declaration{}, nil)
	b.plane.config.MemoryBudget = 1
	b.state, b.stats.ResidentBytes = Warm, 2
	b.runForEvents()
	if len(b.pressure) == 0 {
		t.Error("it stays")
	}
}

func TestClockRunsOn(t *testing.T) {
	c := newClock()
	first := c.now()
	if first < time.Hour {
		t.Errorf("a new clock reads %s, less than in the base image", first)
	}
	saved := c.saved()
	saved.Wall = saved.Wall.Add(-24 * time.Hour)
	next := newClock()
	next.resume(saved)
	if got := next.now() - saved.Monotonic; got < 24*time.Hour || got > 25*time.Hour {
		t.Errorf("%s passed, want a day", got)
	}
	saved.Wall = time.Now().Add(time.Hour) // the wall clock was set back
	next.resume(saved)
	if got := next.now() - saved.Monotonic; got < 0 || got > time.Minute {
		t.Errorf("%s passed, want nothing", got)
	}
	before := next.now()
	next.resume(snapshot.Clock{})
	if next.now() < before {
		t.Error("no clock was saved, and it went back")
	}
}

func TestResourceOf(t *testing.T) {
	for path, want := range map[string]string{
		"/api/v1/pods":                "pods",
		"/api/v1/namespaces/web/pods": "pods",
		"/api/v1/nodes":               "nodes",
		"/apis/apps/v1/deployments":   "deployments.apps",
		"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases": "leases.coordination.k8s.io",
		"/apis":    "apis",
		"/":        "",
		"/version": "version",
	} {
		if got := resourceOf(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// TestSleepingGuestIsSmall: what the plane keeps of a sleeping guest that follows one resource, on the heap and on the
// stacks of goroutines, the test's API included, is bookkeeping.
func TestSleepingGuestIsSmall(t *testing.T) {
	const most = 64 << 10
	asleep := func(names ...string) int64 {
		a := newAPI()
		p := start(t, t.TempDir(), a, controllers.Declaration{}, func(c *Config, _ *Host) {
			c.Guests = nil
			for _, name := range names {
				c.Guests = append(c.Guests, controllers.Declaration{Name: name, MemoryLimit: 64 << 20, RunLimit: 10 * time.Second})
			}
		})
		for _, g := range p.guests {
			for g.detail().State != Asleep {
				if err := g.command(t.Context(), commandEvict); err != nil && !errors.Is(err, errBusy) {
					t.Fatal(err)
				}
			}
			if len(g.detail().Streams) != 1 {
				t.Fatalf("%s sleeps without its watch", g.Name)
			}
		}
		var m goruntime.MemStats
		goruntime.GC()
		goruntime.GC() // what was pooled is gone after the second
		goruntime.ReadMemStats(&m)
		p.stop()
		return int64(m.HeapAlloc + m.StackInuse)
	}
	asleep("fold") // what is made once
	one, four := asleep("fold"), asleep("fold", "panic", "loop", "recurse")
	each := (four - one) / 3
	t.Logf("%d KiB for each sleeping guest", each>>10)
	if each > most {
		t.Errorf("a sleeping guest keeps %d bytes, want at most %d", each, most)
	}
}

// TestGarbageIsCollectedBeforeSleep: a guest that has started, or has grown since, is
// told to collect its garbage before it is saved, and one that has not is not.
func TestGarbageIsCollectedBeforeSleep(t *testing.T) {
	a, dir := newAPI(), t.TempDir()
	p := start(t, dir, a, controllers.Declaration{Name: "litter"}, nil)
	collected := func(value string) (times string) {
		t.Helper()
		a.put("MODIFIED", "x", value)
		version := fmt.Sprint(a.version())
		a.await(t, "answer to "+value, func(m map[string]string) bool {
			times = m[version]
			return times != ""
		})
		return times
	}
	fresh := collected("nothing")
	p.evict(t)
	before := collected("nothing")
	if before == fresh {
		t.Errorf("after its start: collected %s times as before", before)
	}
	p.evict(t)
	if got := collected("nothing"); got != before {
		t.Errorf("after it had done nothing: collected %s times, %s before", got, before)
	}
	p.evict(t)
	p.stop()
	p = start(t, dir, a, controllers.Declaration{Name: "litter"}, nil)
	collected("nothing")
	p.evict(t)
	if got := collected("nothing"); got != before {
		t.Errorf("after a restart of the plane: collected %s times, %s before", got, before)
	}
	p.evict(t)
	if got := collected("litter"); got != before {
		t.Errorf("while it was awake: collected %s times, %s before", got, before)
	}
	p.evict(t)
	if got := collected("nothing"); got == before {
		t.Errorf("after it had littered: collected %s times as before", got)
	}
}
