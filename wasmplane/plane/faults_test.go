package plane

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

// TestWatchThatCannotBeRenewed: the guest hears of it and asks again itself. It
// misses nothing, and does nothing twice.
func TestWatchThatCannotBeRenewed(t *testing.T) {
	for name, c := range map[string]struct {
		answer int // to the renewal
		reason string
	}{
		"410":         {http.StatusGone, "end of watch of objects"},
		"403":         {http.StatusForbidden, "end of watch of objects"},
		"error event": {http.StatusOK, "end of the watch of objects"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI()
			p := start(t, t.TempDir(), a, controllers.Declaration{Name: "fold"}, nil)
			a.put("ADDED", "x", "1")
			a.await(t, "x", func(m map[string]string) bool { return m["x"] == foldOf("ADDED1") })
			p.evict(t)
			wakes := p.guest().detail().Wakes
			a.mu.Lock()
			watches := a.watches
			a.refuse = []int{c.answer}
			a.mu.Unlock()
			a.endWatches()
			a.await(t, "a watch of the guest's own", func(map[string]string) bool { return a.watches == watches+2 })
			d := p.guest().detail()
			if d.Wakes != wakes+1 || d.LastWakeReason != c.reason || d.Restarts != 0 {
				t.Errorf("%d wakes, the last because of %q, %d restarts", d.Wakes-wakes, d.LastWakeReason, d.Restarts)
			}
			a.put("MODIFIED", "x", "2")
			a.await(t, "x", func(m map[string]string) bool { return m["x"] == foldOf("ADDED1", "MODIFIED2") })
			if _, told := a.got()["error"]; told != (c.answer == http.StatusOK) {
				t.Errorf("the guest was given an error event: %v", told)
			}
		})
	}
}

// foldOf is what the guest "fold" makes of the events of one object.
func foldOf(events ...string) string {
	sum := uint64(0)
	for _, e := range events {
		h := fnv.New64a()
		fmt.Fprint(h, sum, e[:strings.IndexAny(e, "0123456789")], e[strings.IndexAny(e, "0123456789"):])
		sum = h.Sum64()
	}
	return fmt.Sprint(sum)
}

// startAll runs a plane with several guests, which watch the same objects.
func startAll(t *testing.T, dir string, apis map[string]*api, change func(*Config, *Host)) *running {
	t.Helper()
	return start(t, dir, nil, controllers.Declaration{}, func(c *Config, h *Host) {
		c.Guests = nil
		for _, name := range slices.Sorted(maps.Keys(apis)) {
			c.Guests = append(c.Guests, controllers.Declaration{Name: name, Identity: name, MemoryLimit: 64 << 20, RunLimit: 10 * time.Second})
		}
		h.Transport = func(user string) http.RoundTripper { return apis[user] }
		if change != nil {
			change(c, h)
		}
	})
}

// usersOf makes a world and a user of it for each guest.
func usersOf(names ...string) map[string]*api {
	w := newAPI().world
	apis := map[string]*api{}
	for _, name := range names {
		apis[name] = w.user()
	}
	return apis
}

// await waits until cond holds for the guests.
func (r *running) await(t *testing.T, what string, cond func([]Status) bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(r.List()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s after 30 s: %+v", what, r.List())
		}
	}
}

// TestOneTrapsTheOthersGoOn: a guest that is ended again and again does not disturb
// its neighbours, who watch the same.
func TestOneTrapsTheOthersGoOn(t *testing.T) {
	apis := usersOf("panic", "fold")
	p := startAll(t, t.TempDir(), apis, nil)
	good := apis["fold"]
	var events []string
	for n := range 20 {
		if n%10 == 5 {
			good.put("ADDED", "y", "bad")
		}
		good.put("MODIFIED", "x", fmt.Sprint(n))
		events = append(events, fmt.Sprint("MODIFIED", n))
		want := foldOf(events...)
		good.await(t, "fold", func(m map[string]string) bool { return m["x"] == want })
	}
	p.await(t, "failure", func(all []Status) bool { return all[1].Name == "panic" && all[1].Restarts > 0 })
	if d := p.guests[0].detail(); d.Restarts != 0 || d.Wakes != 1 {
		t.Errorf("the neighbour had %d restarts and %d wakes", d.Restarts, d.Wakes)
	}
}

// TestFailedGuestStartsAgain: it comes back cold, by itself, and with everything it
// has to see.
func TestFailedGuestStartsAgain(t *testing.T) {
	a := newAPI()
	p := start(t, t.TempDir(), a, controllers.Declaration{Name: "panic"}, nil)
	a.put("ADDED", "x", "1")
	awaitValue(t, a, "x", "1")
	p.evict(t)
	a.put("ADDED", "y", "bad")
	if d := p.awaitState(t, Failed); d.SnapshotBytes != 0 || d.ResidentBytes != 0 || len(d.Streams) != 0 {
		t.Errorf("something is left of it: %+v", d)
	}
	if names, err := p.store.Names(); err != nil || len(names) != 0 {
		t.Errorf("snapshots of %q, %v", names, err)
	}
	a.mu.Lock()
	a.events[1] = strings.Replace(a.events[1], "bad", "good", 1) // what it fell over is gone
	a.mu.Unlock()
	awaitValue(t, a, "y", "good")
	if d := p.guest().detail(); d.Restarts != 1 || d.LastWakeReason != "restart" {
		t.Errorf("%d restarts, woken because of %q", d.Restarts, d.LastWakeReason)
	}
}

// TestBudgetReleasesAll: with hardly any memory allowed, every guest is released as
// soon as it is idle, and all do their work.
func TestBudgetReleasesAll(t *testing.T) {
	names := []string{"fold", "loop", "panic"}
	apis := usersOf(names...)
	p := startAll(t, t.TempDir(), apis, func(c *Config, _ *Host) { c.MemoryBudget = 1 })
	asleep := func(all []Status) bool {
		for _, s := range all {
			if s.State != Asleep {
				return false
			}
		}
		return true
	}
	p.await(t, "sleep", asleep)
	apis["loop"].put("ADDED", "x", "1")
	for _, name := range names[1:] {
		awaitValue(t, apis[name], "x", "1")
	}
	p.await(t, "sleep", asleep)
	if err := p.guest().command(t.Context(), commandWake); err != nil { // no request follows
		t.Fatal(err)
	}
	p.await(t, "sleep", asleep)
}

// TestSaveFails: a guest that cannot be saved stays, works, and is saved when that
// is possible again. It is said once.
func TestSaveFails(t *testing.T) {
	a := newAPI()
	dir := t.TempDir()
	said := &lines{}
	p := start(t, dir, a, controllers.Declaration{Name: "panic"}, func(c *Config, _ *Host) {
		log := logrus.New()
		log.SetOutput(said)
		c.Log = logrus.NewEntry(log)
	})
	a.put("ADDED", "x", "0")
	awaitValue(t, a, "x", "0")
	evict := func() error {
		for {
			if err := p.guest().command(t.Context(), commandEvict); !errors.Is(err, errBusy) {
				return err
			}
		}
	}
	if err := p.store.Close(); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if err := evict(); err == nil {
			t.Fatal("saved without a store")
		}
		if d := p.guest().detail(); d.State != Warm || d.ResidentBytes == 0 {
			t.Errorf("%s with %d bytes", d.State, d.ResidentBytes)
		}
		a.put("MODIFIED", "x", fmt.Sprint("after ", n))
		awaitValue(t, a, "x", fmt.Sprint("after ", n))
	}
	if d := p.guest().detail(); d.Wakes != 1 || d.Restarts != 0 {
		t.Errorf("%d wakes, %d restarts", d.Wakes, d.Restarts)
	}
	store, err := snapshot.Open(filepath.Join(dir, "snapshots.db"), snapshot.Identity{Module: "digest", Datastore: "store"}, runtime.PageSize,
		func(why string) { t.Error(why) })
	if err != nil {
		t.Fatal(err)
	}
	p.store = store // the guest's goroutine is idle, and the command orders this before its next look
	if err := evict(); err != nil {
		t.Fatal(err)
	}
	a.put("MODIFIED", "x", "again")
	awaitValue(t, a, "x", "again")
	if n := said.count("controllers stay in memory"); n != 1 {
		t.Errorf("said %d times that it cannot be saved", n)
	}
	if n := said.count("snapshots are written again"); n != 1 {
		t.Errorf("said %d times that it can be saved again", n)
	}
}

// TestFullDisk: while the disk is full the guests stay in memory and work. That is
// said once, and once when there is room again; then they are saved, and come back
// from their snapshots.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("snapshots", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, "size=16m"); err != nil {
		t.Fatalf("mounting a small file system, which takes root (uid %d here): %v", os.Getuid(), err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	said := &lines{}
	logged := func(c *Config, _ *Host) {
		log := logrus.New()
		log.SetOutput(said)
		c.Log = logrus.NewEntry(log)
	}
	apis := usersOf("fold", "panic")
	p := startAll(t, dir, apis, logged)
	value := 0
	work := func() {
		t.Helper()
		value++
		apis["panic"].put("MODIFIED", "x", fmt.Sprint(value))
		awaitValue(t, apis["panic"], "x", fmt.Sprint(value))
	}
	evict := func(g *guest) error {
		for {
			if err := g.command(t.Context(), commandEvict); !errors.Is(err, errBusy) {
				return err
			}
		}
	}
	work()
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(ballast, zeros{}); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	for range 3 {
		for _, g := range p.guests {
			if err := evict(g); !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("%s was saved on a full disk: %v", g.Name, err)
			}
			if d := g.detail(); d.State != Warm || d.ResidentBytes == 0 || d.Restarts != 0 {
				t.Errorf("%s is %s with %d bytes after %d restarts", g.Name, d.State, d.ResidentBytes, d.Restarts)
			}
		}
		work()
	}
	if err := errors.Join(ballast.Close(), os.Remove(ballast.Name())); err != nil {
		t.Fatal(err)
	}
	if err := evict(p.guests[0]); err != nil {
		t.Fatal(err)
	}
	if n := said.count("snapshots are written again"); n != 0 {
		t.Error("not all snapshots are written again")
	}
	if err := evict(p.guests[1]); err != nil {
		t.Fatal(err)
	}
	work()
	for what, want := range map[string]int{"controllers stay in memory": 1, "no space left on device": 1, "snapshots are written again": 1} {
		if n := said.count(what); n != want {
			t.Errorf("said %d times %q, want %d", n, what, want)
		}
	}
	p.stop()
	p = startAll(t, dir, apis, logged)
	p.await(t, "return from the snapshots", func(all []Status) bool { return all[0].State == Asleep && all[1].State == Asleep })
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// lines collects a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), s)
}

// String is the beginning of it.
func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()[:min(l.text.Len(), 4<<10)]
}

// TestStopsWhileAGuestRuns: one that has a timer each millisecond never waits for
// long enough to be parked, and one that computes hears of nothing. Neither keeps
// the plane from stopping, within far less than the time that they may run for.
func TestStopsWhileAGuestRuns(t *testing.T) {
	names := []string{"loop", "restless"}
	apis := usersOf(names...)
	p := startAll(t, t.TempDir(), apis, func(c *Config, _ *Host) {
		for k := range c.Guests {
			c.Guests[k].RunLimit = time.Hour
		}
	})
	apis["loop"].put("ADDED", "x", "bad")
	p.await(t, "two that run", func(all []Status) bool {
		d := p.guests[0].detail()
		read := len(d.Streams) == 1 && d.Streams[0].Revision == "2" && p.guests[0].mailbox.Empty()
		return read && all[0].State == Awake && all[1].State == Awake
	})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		p.stop()
	}()
	select {
	case <-stopped:
	case <-time.After(30 * time.Second):
		t.Fatal("the plane does not stop")
	}
}

// TestStopLeavesNothingBehind counts goroutines.
func TestStopLeavesNothingBehind(t *testing.T) {
	if _, err := testCode(); err != nil {
		t.Fatal(err)
	}
	before := goruntime.NumGoroutine()
	dir := t.TempDir()
	a := newAPI()
	for n := range 3 {
		p := start(t, dir, a, controllers.Declaration{Name: "panic"}, nil)
		a.put("ADDED", "x", fmt.Sprint(n))
		awaitValue(t, a, "x", fmt.Sprint(n))
		p.stop()
		if err := p.guest().command(t.Context(), commandWake); err == nil {
			t.Error("a plane that has stopped takes commands")
		}
	}
	for deadline := time.Now().Add(10 * time.Second); goruntime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before\n%s", goruntime.NumGoroutine(), before, buf[:goruntime.Stack(buf, true)])
		}
	}
}

// TestRunFails: what is wrong with the directory is an error of Run, and nothing
// runs.
func TestRunFails(t *testing.T) {
	code, err := testCode()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(testLog{t})
	p := New(Config{Code: code, Dir: file, Log: logrus.NewEntry(log), Guests: []controllers.Declaration{{Name: "panic"}}})
	if err := p.Run(t.Context(), Host{}, func() { t.Error("ready") }); err == nil {
		t.Error("a file was taken for a directory")
	}
	if err := p.guests[0].command(t.Context(), commandWake); err == nil {
		t.Error("a plane that does not run takes commands")
	}
}

// TestCrashModel ends the process, as kill -9 does, at random points of random
// events. What the guest has made of the events in the end must be the same as
// without.
func TestCrashModel(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 77))
			a := &mortal{api: newAPI()}
			dir := t.TempDir()
			p := start(t, dir, a.life(), controllers.Declaration{Name: "fold"}, nil)
			events := map[string][]string{}
			put := func(name, value string) {
				a.put("MODIFIED", name, value)
				events[name] = append(events[name], "MODIFIED"+value)
			}
			for n := range 150 {
				put(fmt.Sprint("o", random.IntN(4)), fmt.Sprint(n))
				switch random.IntN(10) {
				case 0:
					p.evict(t)
				case 1:
					a.kill()
					crashed := t.TempDir()
					for _, name := range []string{"snapshots.db", "awake"} {
						b, err := os.ReadFile(filepath.Join(dir, name))
						if err != nil {
							t.Fatal(err)
						}
						if err := os.WriteFile(filepath.Join(crashed, name), b, 0o600); err != nil {
							t.Fatal(err)
						}
					}
					p.stop()
					dir = crashed
					p = start(t, dir, a.life(), controllers.Declaration{Name: "fold"}, nil)
				}
			}
			for name := range events {
				put(name, "1000")
			}
			for name := range events {
				want := foldOf(events[name]...)
				a.await(t, "fold of "+name, func(m map[string]string) bool { return m[name] == want })
			}
		})
	}
}

// mortal is an API that the process of one life cannot reach after its death.
type mortal struct {
	*api
	mu    sync.Mutex
	lives int
}

func (m *mortal) life() http.RoundTripper {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lives++
	mine := m.lives
	return roundTripFunc(func(r *http.Request) (*http.Response, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.lives != mine {
			return nil, errors.New("this process is dead")
		}
		return m.api.RoundTrip(r)
	})
}

// kill returns when nothing of this life can have an effect any more.
func (m *mortal) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lives++
}
