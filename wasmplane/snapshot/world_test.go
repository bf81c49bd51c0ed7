package snapshot

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"
	"unsafe"

	"go.etcd.io/bbolt"
)

// world is all that a store holds.
type world struct {
	guests map[string]saved
	clock  Clock
}

// saved is one snapshot.
type saved struct {
	head  Head
	pages contents
}

func (a saved) equal(b saved) bool {
	return same(a.head, b.head) && reflect.DeepEqual(a.pages, b.pages)
}

// equal compares two worlds; if they differ, it says in what.
func (a world) equal(b world) error {
	for name := range b.guests {
		if _, ok := a.guests[name]; !ok {
			return fmt.Errorf("there is no %s", name)
		}
	}
	for name, have := range a.guests {
		if want, ok := b.guests[name]; !ok || !have.equal(want) {
			return fmt.Errorf("%s has revision %d, should have %d (0: none)", name, have.head.Revision, want.head.Revision)
		}
	}
	if a.clock != b.clock {
		return fmt.Errorf("the clock is %+v, should be %+v", a.clock, b.clock)
	}
	return nil
}

// readWorld reads a store from end to end.
func readWorld(s *Store) (world, error) {
	w := world{guests: map[string]saved{}, clock: s.Clock()}
	names, err := s.Names()
	if err != nil {
		return w, err
	}
	for _, name := range names {
		head, pages, err := load(s, name)
		if err != nil {
			return w, err
		}
		w.guests[name] = saved{head, pages}
	}
	return w, nil
}

// deed is something that is done to the store of newWorld, in one commit at most.
type deed struct {
	name string
	do   func(s *Store) error
	then func(w *world) // does the same to a world
}

// newSaved makes a snapshot of some pages, the same each time.
func newSaved(seed uint64, pages int) saved {
	random := rand.New(rand.NewPCG(seed, 41))
	s := saved{testHead(random), contents{}}
	s.head.Memory, s.head.Revision = 1<<30, int64(seed)
	for len(s.pages) < pages {
		s.pages[random.IntN(4*pages)] = page(random)
	}
	return s
}

// change is a later state of a snapshot: some pages are others, some are new, some
// are gone.
func (s saved) change(seed uint64) saved {
	random := rand.New(rand.NewPCG(seed, 42))
	next := saved{testHead(random), contents{}}
	next.head.Memory, next.head.Revision = 1<<30, int64(seed)
	for k, p := range s.pages {
		next.pages[k] = p
	}
	for range 10 {
		k := random.IntN(4 * len(s.pages))
		if random.IntN(3) == 0 {
			delete(next.pages, k)
		} else {
			next.pages[k] = page(random)
		}
	}
	return next
}

// even is a state of a guest whose states take the same space: a page that was not
// written looks like one that was.
func even(state uint64) saved {
	random := rand.New(rand.NewPCG(state, 43))
	s := saved{newSaved(7, 0).head, contents{}}
	s.head.Revision = int64(1000 + state)
	for k := range 10 * groupPages {
		b := make([]byte, pageSize)
		for n := range b { // incompressible
			b[n] = byte(random.Uint32())
		}
		s.pages[k] = b
	}
	return s
}

func clockAt(hour int) Clock {
	return Clock{Monotonic: time.Duration(hour) * time.Hour, Wall: time.Unix(int64(hour)*3600, 0).UTC()}
}

// newWorld makes a store with some guests at path. It returns what is in it, after
// all that was in it before.
func newWorld(t testing.TB, path string) (history []world) {
	t.Helper()
	s := openTest(t, path)
	now := world{guests: map[string]saved{}}
	note := func(hour int, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		w := world{map[string]saved{}, now.clock}
		for name, g := range now.guests {
			w.guests[name] = g
		}
		history = append(history, w)
	}
	save := func(hour int, name string, g saved) {
		t.Helper()
		_, err := s.Save(name, g.head, clockAt(hour), g.pages.all())
		now.guests[name], now.clock = g, clockAt(hour)
		note(hour, err)
	}
	save(2, "guest", newSaved(1, 24))
	save(3, "gone", newSaved(2, 8))
	save(4, "other", newSaved(3, 12))
	save(5, "guest", now.guests["guest"].change(4))
	save(6, "small", newSaved(5, 2))
	delete(now.guests, "gone")
	note(7, s.Drop("gone"))
	save(8, "guest", now.guests["guest"].change(6))
	for state := range uint64(5) {
		save(9, "even", even(state))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return history
}

// deeds are all changes that a store knows, and a load.
func deeds() []deed {
	guest := newSaved(1, 24).change(4).change(6) // as newWorld leaves it
	save := func(name string, g saved) (func(*Store) error, func(*world)) {
		return func(s *Store) error {
				_, err := s.Save(name, g.head, clockAt(10), g.pages.all())
				return err
			}, func(w *world) {
				w.guests[name], w.clock = g, clockAt(10)
			}
	}
	var all []deed
	add := func(name string, do func(*Store) error, then func(*world)) { all = append(all, deed{name, do, then}) }

	do, then := save("new", newSaved(20, 12))
	add("save a new guest", do, then)
	do, then = save("guest", guest.change(21))
	add("save a guest that changed", do, then)
	do, then = save("even", even(5))
	add("save a guest whose pages all changed", do, then)
	do, then = save("guest", saved{newSaved(22, 0).head, guest.pages})
	add("save a guest that did not change", do, then)
	do, then = save("small", newSaved(23, 1000))
	add("save a guest that grew", do, then)
	head := newSaved(24, 0).head
	add("save a head", func(s *Store) error {
		old, err := s.Head("guest")
		if err != nil {
			return err
		}
		changed := head
		changed.Groups, changed.Sum = old.Groups, old.Sum
		return s.SaveHead("guest", changed, clockAt(10))
	}, func(w *world) {
		w.guests["guest"], w.clock = saved{head, w.guests["guest"].pages}, clockAt(10)
	})
	add("drop", func(s *Store) error { return s.Drop("guest") }, func(w *world) { delete(w.guests, "guest") })
	do, then = save("other", newSaved(3, 12).change(25))
	add("save and drop in one commit", func(s *Store) error {
		return together(s, func() error { return do(s) }, func() error { return s.Drop("guest") })
	}, func(w *world) {
		then(w)
		delete(w.guests, "guest")
	})
	add("another datastore", func(s *Store) error {
		return s.adopt(Identity{Module: testIdentity.Module, Datastore: "another"}, func(string) {})
	}, func(w *world) { clear(w.guests) })
	add("load", func(s *Store) error {
		_, _, err := load(s, "small")
		return err
	}, func(*world) {})
	return all
}

// together has changes share a commit.
func together(s *Store, changes ...func() error) error {
	errs := make([]error, len(changes))
	var all sync.WaitGroup
	s.committing.Lock()
	for k, change := range changes {
		all.Go(func() { errs[k] = change() })
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			s.mu.Lock()
			queued := len(s.queue)
			s.mu.Unlock()
			if queued > k {
				break
			}
			if time.Now().After(deadline) {
				s.committing.Unlock()
				return fmt.Errorf("%d changes wait for the commit under way, want %d", queued, k+1)
			}
		}
	}
	s.committing.Unlock()
	all.Wait()
	return errors.Join(errs...)
}

// onWrite has f make db's writes to its file; write does what bbolt would do. The
// hook is bbolt's own, for its own tests.
func onWrite(db *bbolt.DB, f func(write func([]byte, int64) (int, error), b []byte, at int64) (int, error)) {
	hook := (*func([]byte, int64) (int, error))(unsafe.Pointer(reflect.ValueOf(db).Elem().FieldByName("ops").FieldByName("writeAt").UnsafeAddr()))
	write := *hook
	*hook = func(b []byte, at int64) (int, error) { return f(write, b, at) }
}

// copyFile copies a file and returns the copy's name.
func copyFile(t testing.TB, from, dir string) string {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, filepath.Base(from))
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}
