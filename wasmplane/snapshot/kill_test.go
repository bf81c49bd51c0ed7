package snapshot

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// For the processes that the tests below kill.
var (
	doomed = flag.String("doomed", "", "what this process does")
	doomAt = flag.Int("doom", 0, "the event at which it is killed")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *doomed != "" {
		if err := doom(*doomed, flag.Arg(0)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const (
	openFirst   = "open the first time"
	openDamaged = "open a damaged file"
	setMarks    = "marks"

	returned = "returned"
)

// doom does a deed in dir and kills its process at an event: at a point that the
// package names, or before or in the middle of a write to the file. It tells its
// parent of each event.
func doom(what, dir string) error {
	events := 0
	event := func(name string) {
		fmt.Println(name)
		if events++; events == *doomAt {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // until the signal has arrived
		}
	}
	var one sync.Mutex // loads and commits may meet
	reached = func(point string) {
		one.Lock()
		defer one.Unlock()
		event(point)
	}
	if what == setMarks {
		return doomMarks(dir, event)
	}
	s, err := Open(filepath.Join(dir, "snapshots.db"), testIdentity, pageSize, func(string) { event("open: about to drop") })
	if err != nil {
		return err
	}
	s.delay = 0
	onWrite(s.db, func(write func([]byte, int64) (int, error), b []byte, at int64) (int, error) {
		event("write: to come")
		n, err := write(b[:len(b)/2], at)
		event("write: half")
		if err != nil {
			return n, err
		}
		m, err := write(b[n:], at+int64(n))
		return n + m, err
	})
	for _, d := range deeds() {
		if d.name == what {
			err = d.do(s)
		}
	}
	event(returned)
	return errors.Join(err, s.Close())
}

// kills runs a deed again and again in a process that is killed at its first event,
// its second and so on, until it comes to its end. Each time prepare makes what is
// in its directory and verify looks at what is left; events are those until then.
func kills(t *testing.T, what string, prepare func(dir string), verify func(dir string, events []string)) (points []string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for at := 1; ; at++ {
		dir := t.TempDir()
		prepare(dir)
		var stdout, stderr bytes.Buffer
		cmd := exec.CommandContext(t.Context(), self, "-doomed", what, "-doom", fmt.Sprint(at), dir)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		var events []string
		for lines := bufio.NewScanner(&stdout); lines.Scan(); {
			events = append(events, lines.Text())
		}
		if err == nil { // it has done it all
			if len(events) != at-1 {
				t.Fatalf("%d events, and not killed at number %d", len(events), at)
			}
			return points
		}
		status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL || len(events) != at {
			t.Fatalf("event %d: %v, %q: %s", at, err, events, &stderr)
		}
		points = append(points, events[at-1])
		verify(dir, events)
		if t.Failed() {
			t.Fatalf("killed at event %d, %q, after %q", at, events[at-1], events)
		}
	}
}

// TestKill9 kills the process at every event of every change, of opening, and of a
// load. Then the store holds all of the change or nothing of it, and everything else
// as it was; a change whose call has returned is there. Nothing is said to be
// damaged that was not before.
func TestKill9(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]bool{}
	note := func(points []string) {
		mu.Lock()
		defer mu.Unlock()
		for _, p := range points {
			seen[p] = true
		}
	}
	base := filepath.Join(t.TempDir(), "snapshots.db")
	history := newWorld(t, base)
	before := history[len(history)-1]
	t.Run("deeds", func(t *testing.T) {
		for _, d := range deeds() {
			t.Run(d.name, func(t *testing.T) {
				t.Parallel()
				after := clone(before)
				d.then(&after)
				prepare := func(dir string) { copyFile(t, base, dir) }
				note(kills(t, d.name, prepare, func(dir string, events []string) { verify(t, dir, events, before, after) }))
			})
		}
		empty := world{guests: map[string]saved{}}
		t.Run(openFirst, func(t *testing.T) {
			t.Parallel()
			note(kills(t, openFirst, func(string) {}, func(dir string, events []string) { verify(t, dir, events, empty, empty) }))
		})
		t.Run(openDamaged, func(t *testing.T) {
			t.Parallel()
			prepare := func(dir string) {
				if err := os.Truncate(copyFile(t, base, dir), 20000); err != nil {
					t.Fatal(err)
				}
			}
			note(kills(t, openDamaged, prepare, func(dir string, events []string) {
				if !slices.Contains(events, "open: put aside") {
					if _, err := Check(filepath.Join(dir, "snapshots.db"), pageSize); !errors.Is(err, ErrDamaged) {
						t.Errorf("the damage is gone: %v", err)
					}
					return
				}
				verify(t, dir, events, empty, empty)
				if _, err := os.Stat(filepath.Join(dir, "snapshots.db.damaged")); err != nil {
					t.Error(err)
				}
			}))
		})
		t.Run(setMarks, func(t *testing.T) {
			t.Parallel()
			note(kills(t, setMarks, func(dir string) { prepareMarks(t, dir) }, func(dir string, events []string) { verifyMarks(t, dir, events) }))
		})
	})
	for _, p := range append(namedPoints(t), "write: to come", "write: half", returned) {
		if !seen[p] {
			t.Errorf("nothing was killed at %q", p)
		}
	}
}

func clone(w world) world {
	c := world{map[string]saved{}, w.clock}
	for name, g := range w.guests {
		c.guests[name] = g
	}
	return c
}

// verify opens what a killed process left.
func verify(t *testing.T, dir string, events []string, before, after world) {
	t.Helper()
	path := filepath.Join(dir, "snapshots.db")
	entries, err := Check(path, pageSize)
	if err != nil && !(errors.Is(err, fs.ErrNotExist) && len(before.guests) == 0) {
		t.Errorf("check: %v", err)
	}
	for _, e := range entries {
		if e.Err != nil {
			t.Errorf("check: %s: %v", e.Name, e.Err)
		}
	}
	said := ""
	s, err := Open(path, testIdentity, pageSize, func(why string) { said = why })
	if err != nil {
		t.Error(err)
		return
	}
	defer s.Close()
	got, err := readWorld(s)
	if err != nil {
		t.Error(err)
	}
	done := got.equal(after)
	if old := got.equal(before); done != nil && (old != nil || slices.Contains(events, returned)) {
		t.Errorf("neither as before (%v) nor as after (%v)", old, done)
	}
	// Only another datastore leaves a store that this one does not use.
	if said != "" && (done != nil || len(after.guests) > 0 || !strings.Contains(said, "another datastore")) {
		t.Errorf("said %q", said)
	}
}

// namedPoints are those of the package's source.
func namedPoints(t *testing.T) (points []string) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\breached\("([^"]*)"\)`).FindAllSubmatch(b, -1) {
			points = append(points, string(m[1]))
		}
	}
	if len(points) == 0 {
		t.Fatal("no point is named")
	}
	return points
}

// The marks of a process that is killed: "before" is marked and then cleared,
// "after" is marked, "never" has nothing to do with it.

func prepareMarks(t *testing.T, dir string) {
	t.Helper()
	m := openMarks(t, filepath.Join(dir, "awake"), "boot")
	if err := m.Close(); err != nil { // from here on nothing is in doubt
		t.Fatal(err)
	}
	m = openMarks(t, filepath.Join(dir, "awake"), "boot")
	if err := m.Set("before"); err != nil {
		t.Fatal(err)
	}
	crash(t, m)
}

func doomMarks(dir string, event func(string)) error {
	m, err := OpenMarks(filepath.Join(dir, "awake"), "boot")
	if err != nil {
		return err
	}
	if err := m.Set("after"); err != nil {
		return err
	}
	event("set")
	event("to clear")
	if err := m.Clear("before"); err != nil {
		return err
	}
	event("cleared")
	return m.Close()
}

func verifyMarks(t *testing.T, dir string, events []string) {
	t.Helper()
	m := openMarks(t, filepath.Join(dir, "awake"), "boot")
	defer crash(t, m)
	if m.InDoubt("never") {
		t.Error("a guest is in doubt that was never marked")
	}
	if slices.Contains(events, "set") && !m.InDoubt("after") {
		t.Error("a mark is lost")
	}
	if !slices.Contains(events, "to clear") && !m.InDoubt("before") {
		t.Error("a mark is lost that was there before")
	}
	if slices.Contains(events, "cleared") && m.InDoubt("before") {
		t.Error("a mark is back")
	}
}
