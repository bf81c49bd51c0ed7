package plane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime/runtimetest"
)

// testCode is the module in testdata/guest, compiled once for all tests.
var testCode = sync.OnceValues(func() (*runtime.Code, error) { return runtimetest.Compile("./testdata/guest") })

// running is a plane under test.
type running struct {
	*Plane
	stop func()
}

// start runs a plane with one guest.
func start(t *testing.T, dir string, rt http.RoundTripper, d controllers.Declaration, change func(*Config, *Host)) *running {
	t.Helper()
	code, err := testCode()
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(testLog{t})
	log.SetLevel(logrus.DebugLevel)
	if d.MemoryLimit == 0 {
		d.MemoryLimit = 64 << 20
	}
	if d.RunLimit == 0 {
		d.RunLimit = 10 * time.Second
	}
	config := Config{
		Code: code, Digest: "digest", ModuleName: "test", Dir: dir,
		Guests:      []controllers.Declaration{d},
		IdleTimeout: time.Hour, // tests evict
		Log:         logrus.NewEntry(log),
	}
	host := Host{
		Transport: func(string) http.RoundTripper { return rt },
		Datastore: Datastore{ID: "store", Previous: "one", Generation: "one", Revision: 1 << 40},
	}
	if change != nil {
		change(&config, &host)
	}
	p := New(config)
	if host.Changes != nil {
		p.feeds.after = time.Millisecond
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() { ended <- p.Run(ctx, host, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return &running{p, stop}
}

// testLog writes to the test's log.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}

func (r *running) guest() *guest { return r.guests[0] }

// evict puts the guest to sleep, and tries again while it is busy.
func (r *running) evict(t *testing.T) {
	t.Helper()
	for {
		switch err := r.guest().command(t.Context(), commandEvict); {
		case err == nil:
			return
		case err != errBusy:
			t.Fatal(err)
		}
	}
}

func (r *running) awaitState(t *testing.T, want State) Detail {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		d := r.guest().detail()
		if d.State == want {
			return d
		}
		if time.Now().After(deadline) {
			t.Fatalf("state %s after 30 s, want %s", d.State, want)
		}
		time.Sleep(time.Millisecond)
	}
}

func awaitValue(t *testing.T, a *api, name, value string) {
	t.Helper()
	a.await(t, name+"="+value, func(m map[string]string) bool { return m[name] == value })
}

// TestModel runs the same events through a guest that never leaves memory and one
// that is put to sleep, and whose process ends, at random points. What they make
// of the events must be the same.
func TestModel(t *testing.T) {
	const events = 300
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			still, moved := newAPI(), newAPI()
			moved.cut = 1 + random.IntN(20) // watches end all the time
			reference := start(t, t.TempDir(), still, controllers.Declaration{Name: "fold"}, nil)
			dir := t.TempDir()
			// Events of two objects need not wake the guest.
			d := controllers.Declaration{Name: "fold"}
			tested := start(t, dir, moved, d, nil)
			for n := range events {
				name, value := fmt.Sprint("o", random.IntN(5)), fmt.Sprint(n)
				still.put("MODIFIED", name, value)
				moved.put("MODIFIED", name, value)
				switch random.IntN(12) {
				case 0:
					tested.evict(t)
				case 1:
					tested.stop()
					tested = start(t, dir, moved, d, nil)
				}
			}
			still.put("ADDED", "last", "")
			moved.put("ADDED", "last", "")
			last := func(m map[string]string) bool { return m["last"] != "" }
			still.await(t, "last result", last)
			moved.await(t, "last result", last)
			want, got := still.got(), moved.got()
			for name := range want {
				if got[name] != want[name] {
					t.Errorf("%s: asleep %s, awake %s", name, got[name], want[name])
				}
			}
			if s := reference.guest().detail(); s.Wakes != 1 {
				t.Errorf("the reference guest slept: %d wakes", s.Wakes)
			}
		})
	}
}

func TestSleepAndWake(t *testing.T) {
	a := newAPI()
	p := start(t, t.TempDir(), a, controllers.Declaration{Name: "panic"}, func(c *Config, _ *Host) { c.IdleTimeout = 20 * time.Millisecond })
	a.put("ADDED", "x", "1")
	awaitValue(t, a, "x", "1")
	d := p.awaitState(t, Asleep)
	if d.ResidentBytes != 0 || d.SnapshotBytes == 0 {
		t.Errorf("asleep with %d bytes in memory and %d on disk", d.ResidentBytes, d.SnapshotBytes)
	}
	a.put("MODIFIED", "x", "2")
	awaitValue(t, a, "x", "2")
	d = p.awaitState(t, Asleep)
	if d.LastWakeReason != "MODIFIED objects x" {
		t.Errorf("woken by %q", d.LastWakeReason)
	}
}

func TestBookmarksAndRenewalsWakeNobody(t *testing.T) {
	a := newAPI()
	a.cut = 1 // each watch is ended after one event
	p := start(t, t.TempDir(), a, controllers.Declaration{Name: "panic"}, nil)
	a.put("ADDED", "x", "1")
	awaitValue(t, a, "x", "1")
	p.evict(t)
	before := p.guest().detail()
	for range 10 {
		a.put(bookmark, "", "")
	}
	// The last bookmark has passed once the stream is at its version.
	want := fmt.Sprint(a.version())
	for p.guest().detail().Streams[0].Revision != want {
		time.Sleep(time.Millisecond)
	}
	if d := p.guest().detail(); d.Wakes != before.Wakes || d.State != Asleep {
		t.Errorf("%s after %d wakes, because of %s", d.State, d.Wakes-before.Wakes, d.LastWakeReason)
	}
	a.put("MODIFIED", "x", "2")
	awaitValue(t, a, "x", "2")
}

func TestEventsThatWait(t *testing.T) {
	a := newAPI()
	d := controllers.Declaration{Name: "fold", Wait: map[string]controllers.Events{"objects": controllers.Modified}}
	p := start(t, t.TempDir(), a, d, nil)
	a.put("ADDED", "x", "1")
	a.await(t, "result", func(m map[string]string) bool { return m["x"] != "" })
	p.evict(t)
	wakes := p.guest().detail().Wakes
	for n := range 5 {
		a.put("MODIFIED", "x", fmt.Sprint(n))
	}
	for s := p.guest().detail().Streams[0]; s.Revision != fmt.Sprint(a.version()) || s.Waiting != 1; s = p.guest().detail().Streams[0] {
		time.Sleep(time.Millisecond) // five states of one object are one event
	}
	if d := p.guest().detail(); d.Wakes != wakes {
		t.Fatalf("woken by %s", d.LastWakeReason)
	}
	before := a.got()["x"]
	a.put("ADDED", "y", "1")
	a.await(t, "both results", func(m map[string]string) bool { return m["x"] != before && m["y"] != "" })
}

// options is a Host.Setup with the same options for all.
func options(json string) func(string) (Setup, error) {
	return func(string) (Setup, error) { return Setup{Options: []byte(json)}, nil }
}

func TestTimerRunsOnThroughSleepAndRestart(t *testing.T) {
	a := newAPI()
	dir := t.TempDir()
	period := func(_ *Config, h *Host) { h.Setup = options(`"300ms"`) }
	p := start(t, dir, a, controllers.Declaration{Name: "ticker"}, period)
	awaitValue(t, a, "tick", "1")
	p.evict(t)
	awaitValue(t, a, "tick", "2")
	d := p.guest().detail()
	if d.LastWakeReason != reasonTimer {
		t.Errorf("woken by %q", d.LastWakeReason)
	}
	if w := d.LastWakes; len(w) < 2 || w[0].Reason != reasonStart || w[len(w)-1].Reason != reasonTimer || !w[len(w)-1].At.Equal(*d.LastWake) {
		t.Errorf("last wakes: %v", w)
	}
	p.stop()
	start(t, dir, a, controllers.Declaration{Name: "ticker"}, period)
	awaitValue(t, a, "tick", "3") // a cold start would begin with 1
}

// TestSnapshotsThatDoNotFit has each reason for which a snapshot on disk is not
// used, although nothing else has changed. The guest starts cold, and the log says
// why.
func TestSnapshotsThatDoNotFit(t *testing.T) {
	for name, c := range map[string]struct {
		change func(dir string, c *Config, h *Host)
		says   string // empty: the snapshot is used
	}{
		"nothing": {func(string, *Config, *Host) {}, ""},
		"other module": {func(_ string, c *Config, _ *Host) { c.Digest = "another" },
			"of another module; every guest starts cold"},
		"other datastore": {func(_ string, _ *Config, h *Host) { h.Datastore.ID = "another" },
			"of another datastore; every guest starts cold"},
		"other generation": {func(_ string, _ *Config, h *Host) { h.Datastore.Previous = "zero" },
			"snapshot discarded, starting cold: it was not saved in the run before this one"},
		"datastore lost its last commits": {func(_ string, _ *Config, h *Host) { h.Datastore.Revision = 1 },
			"snapshot discarded, starting cold: it has seen revision 2, the datastore only 1"},
		"other options": {func(_ string, _ *Config, h *Host) { h.Setup = options(`{}`) },
			"snapshot discarded, starting cold: its options or its declaration are others now"},
		"other files": {func(_ string, _ *Config, h *Host) {
			h.Setup = func(string) (Setup, error) { return Setup{Files: map[string]string{"/key": "another"}}, nil }
		},
			"snapshot discarded, starting cold: its options or its declaration are others now"},
		"damaged store": {func(dir string, _ *Config, _ *Host) { damage(t, filepath.Join(dir, "snapshots.db")) },
			"every guest starts cold"},
		"truncated store": {func(dir string, _ *Config, _ *Host) {
			if err := os.Truncate(filepath.Join(dir, "snapshots.db"), 20000); err != nil {
				t.Fatal(err)
			}
		}, "every guest starts cold"},
		"damaged head": {func(dir string, _ *Config, _ *Host) { damageHead(t, filepath.Join(dir, "snapshots.db"), "panic") },
			"snapshot discarded, starting cold: panic: damaged snapshot"},
		"machine crashed": {func(dir string, _ *Config, _ *Host) {
			if err := os.WriteFile(filepath.Join(dir, "awake"), []byte("dormouse marks 1\nanother boot\nend\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "snapshot discarded, starting cold: after a crash or a power cut it may be older"},
		"process crashed after a change": {func(dir string, _ *Config, _ *Host) {
			boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "awake"), fmt.Appendf(nil, "dormouse marks 1\n%spanic\nend\n", boot), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "snapshot discarded, starting cold: after a crash or a power cut it may be older"},
		"marks lost": {func(dir string, _ *Config, _ *Host) {
			if err := os.Remove(filepath.Join(dir, "awake")); err != nil {
				t.Fatal(err)
			}
		}, "snapshot discarded, starting cold: after a crash or a power cut it may be older"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI()
			dir := t.TempDir()
			p := start(t, dir, a, controllers.Declaration{Name: "panic"}, nil)
			a.put("ADDED", "x", "1")
			awaitValue(t, a, "x", "1")
			p.evict(t)
			p.stop()
			said := &lines{}
			p = start(t, dir, a, controllers.Declaration{Name: "panic"}, func(config *Config, h *Host) {
				log := logrus.New()
				log.SetOutput(said)
				config.Log = logrus.NewEntry(log)
				c.change(dir, config, h)
			})
			want := Asleep
			if c.says != "" {
				want = Warm
			}
			p.awaitState(t, want)
			a.put("MODIFIED", "x", "2")
			awaitValue(t, a, "x", "2")
			if cold := hadColdStart(p); cold != (c.says != "") {
				t.Errorf("started cold: %v", cold)
			}
			if n := said.count("starts cold") + said.count("starting cold"); c.says == "" && n != 0 || c.says != "" && (n != 1 || said.count(c.says) != 1) {
				t.Errorf("the log does not say once %q: %s", c.says, said.text.String())
			}
			names, err := p.store.Names()
			if err != nil || (len(names) == 0) != (c.says != "") {
				t.Errorf("there are snapshots of %q: %v", names, err)
			}
		})
	}
}

// damageHead writes something else where the store keeps the head of a guest.
func damageHead(t *testing.T, path, name string) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("guests")).Bucket([]byte(name)).Put([]byte("head"), []byte("something else"))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// damage flips bits in the second half of a file, where bbolt's data is.
func damage(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for k := 8192; k < len(b); k += 97 {
		b[k] ^= 0x55
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCrashWithMark: the process dies after the guest changed something. The
// snapshot is older than that, so it must not be used.
func TestCrashWithMark(t *testing.T) {
	a := newAPI()
	dir, crashed := t.TempDir(), t.TempDir()
	p := start(t, dir, a, controllers.Declaration{Name: "panic"}, nil)
	a.put("ADDED", "x", "1")
	awaitValue(t, a, "x", "1")
	p.evict(t)
	a.put("MODIFIED", "x", "2")
	awaitValue(t, a, "x", "2")
	for _, name := range []string{"snapshots.db", "awake"} { // what kill -9 leaves
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(crashed, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.stop()
	p = start(t, crashed, a, controllers.Declaration{Name: "panic"}, nil)
	a.put("MODIFIED", "x", "3")
	awaitValue(t, a, "x", "3")
	if !hadColdStart(p) {
		t.Error("a snapshot was used that is behind the cluster")
	}
}

// hadColdStart tells of a guest that has been woken once.
func hadColdStart(p *running) bool {
	d := p.guest().detail()
	return d.Wakes == 1 && d.LastWakeReason == reasonStart
}

// TestBadGuests: each ends with its reason, starts again cold, and works.
func TestBadGuests(t *testing.T) {
	for name, reason := range map[string]string{
		"panic":   runtime.ReasonTrap,
		"loop":    runtime.ReasonDeadline,
		"bomb":    runtime.ReasonMemory,
		"recurse": runtime.ReasonTrap,
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI()
			d := controllers.Declaration{Name: name, RunLimit: 200 * time.Millisecond}
			if name == "bomb" || name == "recurse" {
				d.RunLimit = 20 * time.Second
			}
			p := start(t, t.TempDir(), a, d, nil)
			a.put("ADDED", "x", "bad")
			failed := p.awaitState(t, Failed)
			if failed.Restarts != 1 || failed.LastError == "" {
				t.Errorf("%+v", failed)
			}
			if got := failed.LastError; len(got) < len(reason) || got[:len(reason)] != reason {
				t.Errorf("ended by %q, want %q", got, reason)
			}
			t.Log(failed.LastError)
		})
	}
}

func TestControllerThatReturns(t *testing.T) {
	p := start(t, t.TempDir(), newAPI(), controllers.Declaration{Name: "return"}, nil)
	if d := p.awaitState(t, Failed); d.LastError != "exit: controller return: it does not want to" {
		t.Errorf("%q", d.LastError)
	}
}

func TestStatusOverHTTP(t *testing.T) {
	a := newAPI()
	p := start(t, t.TempDir(), a, controllers.Declaration{Name: "panic", Identity: "system:x"}, func(_ *Config, h *Host) { h.Native = []string{"job-controller"} })
	a.put("ADDED", "x", "1")
	awaitValue(t, a, "x", "1")
	for _, c := range []struct {
		method, path string
		code         int
	}{
		{"GET", "/controllers", 200},
		{"GET", "/controllers/panic", 200},
		{"GET", "/controllers/job-controller", 200},
		{"GET", "/controllers/none", 404},
		{"POST", "/controllers/panic/wake", 200},
		{"POST", "/controllers/panic/evict", 200},
		{"POST", "/controllers/panic/sing", 404},
		{"POST", "/controllers/job-controller/wake", 409},
	} {
		w := newRecorder()
		req, err := http.NewRequestWithContext(t.Context(), c.method, c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		p.ServeHTTP(w, req)
		if w.code != c.code {
			t.Errorf("%s %s: %d, want %d: %s", c.method, c.path, w.code, c.code, w.body)
		}
	}
	list := p.List()
	if len(list) != 2 || list[0].Name != "job-controller" || list[0].State != Native || list[1].State != Asleep {
		t.Errorf("%+v", list)
	}
}

// recorder keeps a response.
type recorder struct {
	header http.Header
	code   int
	body   string
}

func newRecorder() *recorder { return &recorder{header: http.Header{}, code: 200} }

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(c int)   { r.code = c }
func (r *recorder) Write(b []byte) (int, error) {
	r.body += string(b)
	return len(b), nil
}

var _ io.Writer = (*recorder)(nil)
