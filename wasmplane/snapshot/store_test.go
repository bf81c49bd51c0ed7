package snapshot

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

var update = flag.Bool("update", false, "write the golden files anew")

// pageSize is that of the guests in these tests. It is small, so that they are
// fast; bbolt's own pages have the machine's size.
const pageSize = 256

var testIdentity = Identity{Module: "module", Datastore: "datastore"}

// openTest opens a store that does not wait for others to share a commit, nor
// for the disk.
func openTest(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path, testIdentity, pageSize, func(why string) { t.Error("dropped: ", why) })
	if err != nil {
		t.Fatal(err)
	}
	s.delay, s.db.NoSync = 0, true
	t.Cleanup(func() { s.Close() })
	return s
}

// contents are the pages of one guest.
type contents map[int][]byte

func (c contents) all() iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		for _, k := range slices.Sorted(maps.Keys(c)) {
			if !yield(k, c[k]) {
				return
			}
		}
	}
}

func (c contents) clone() contents { return maps.Clone(c) }

// page is a page that compresses to something between all and nothing.
func page(random *rand.Rand) []byte {
	b := make([]byte, pageSize)
	for k := range random.IntN(pageSize) {
		b[k] = byte(random.Uint32())
	}
	return b
}

// load reads a whole snapshot.
func load(s *Store, name string) (Head, contents, error) {
	got := contents{}
	var head Head
	err := s.Load(name, func(h Head, pages Pages) error {
		head = h
		return pages(func(k int, b []byte) error {
			if got[k] != nil {
				return fmt.Errorf("page %d twice", k)
			}
			got[k] = bytes.Clone(b)
			return nil
		})
	})
	return head, got, err
}

// same compares heads but for what Save fills in.
func same(a, b Head) bool {
	a.Groups, a.Sum, b.Groups, b.Sum = 0, 0, 0, 0
	return reflect.DeepEqual(a, b)
}

func testHead(random *rand.Rand) Head {
	return Head{
		Generation: fmt.Sprint(random.Uint32()),
		Start:      "start",
		Memory:     random.Int64N(1 << 30),
		Globals:    []uint64{random.Uint64(), 1<<64 - 1, 0},
		NextTimer:  time.Duration(random.Int64N(1<<62) - 1),
		Revision:   random.Int64(),
		Streams: []Stream{{
			ID: random.Uint32(), URL: "/api/v1/pods?watch=1", Header: http.Header{"Accept": {"x", "y"}}, Revision: "12",
			MembersKnown: true, Members: random.Uint64(), Count: random.IntN(2), Having: []uint64{random.Uint64(), 1}[:random.IntN(3)],
		}},
		Heartbeats: []string{"a", "b"},
	}
}

// TestModel compares the store with a map after random operations.
func TestModel(t *testing.T) {
	type saved struct {
		head  Head
		pages contents
	}
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			path := filepath.Join(t.TempDir(), "snapshots.db")
			s := openTest(t, path)
			model := map[string]saved{}
			var clock Clock
			names := []string{"a", "deployment-controller", "ä \x00", strings.Repeat("n", 300)}
			for step := range 300 {
				name := names[random.IntN(len(names))]
				clock = Clock{Monotonic: clock.Monotonic + time.Duration(random.IntN(1e9)), Wall: time.Unix(int64(step), 7).UTC()}
				switch op := random.IntN(20); {
				case op < 10:
					s.part = 1 + random.IntN(4000) // some saves take several transactions
					pages := model[name].pages.clone()
					if pages == nil || random.IntN(10) == 0 {
						pages = contents{}
					}
					for range random.IntN(40) {
						k := random.IntN(200)
						if random.IntN(4) == 0 {
							delete(pages, k)
						} else {
							pages[k] = page(random)
						}
					}
					head := testHead(random)
					if _, err := s.Save(name, head, clock, pages.all()); err != nil {
						t.Fatal(err)
					}
					model[name] = saved{head, pages}
				case op < 14:
					head, err := s.Head(name)
					if have, ok := model[name]; ok != (err == nil) || ok && !same(head, have.head) {
						t.Fatalf("step %d: %+v, %v; want %+v", step, head, err, have)
					}
					changed := testHead(random)
					changed.Groups, changed.Sum = head.Groups, head.Sum
					err = s.SaveHead(name, changed, clock)
					if have, ok := model[name]; ok {
						model[name] = saved{changed, have.pages}
					} else if !errors.Is(err, ErrNotFound) {
						t.Fatalf("step %d: head saved without a snapshot: %v", step, err)
					}
				case op < 17:
					if err := s.Drop(name); err != nil {
						t.Fatal(err)
					}
					delete(model, name)
				default:
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
					s = openTest(t, path)
				}

				head, pages, err := load(s, name)
				have, ok := model[name]
				switch {
				case !ok && !errors.Is(err, ErrNotFound):
					t.Fatalf("step %d: %v, want %v", step, err, ErrNotFound)
				case !ok && s.Size(name) != 0:
					t.Fatalf("step %d: %d bytes of nothing", step, s.Size(name))
				case !ok:
				case err != nil:
					t.Fatalf("step %d: %v", step, err)
				case !same(head, have.head) || !reflect.DeepEqual(pages, have.pages):
					t.Fatalf("step %d: loaded %+v with %d pages, saved %+v with %d", step, head, len(pages), have.head, len(have.pages))
				case s.Size(name) == 0:
					t.Fatalf("step %d: no size", step)
				}
				got, err := s.Names()
				if want := slices.Sorted(maps.Keys(model)); err != nil || !slices.Equal(got, want) {
					t.Fatalf("step %d: names %q, %v; want %q", step, got, err, want)
				}
			}
		})
	}
}

// TestLongSave: of a save that takes several transactions each ends with a store
// that is sound, and has the whole snapshot or none.
func TestLongSave(t *testing.T) {
	random := rand.New(rand.NewPCG(41, 1))
	path := filepath.Join(t.TempDir(), "snapshots.db")
	s := openTest(t, path)
	s.part = 4000
	first := contents{}
	for k := range 200 {
		first[k] = page(random)
	}
	if _, err := s.Save("a", Head{Revision: 1}, Clock{}, first.all()); err != nil {
		t.Fatal(err)
	}
	second := contents{}
	for k := range 300 {
		second[k+100] = page(random)
	}
	crashed := 0
	_, err := s.Save("a", Head{Revision: 2}, Clock{Monotonic: 1}, func(yield func(int, []byte) bool) {
		b, err := os.ReadFile(path) // what a crash in this transaction leaves
		if err != nil {
			t.Fatal(err)
		}
		left := filepath.Join(t.TempDir(), "snapshots.db")
		if err := os.WriteFile(left, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s := openTest(t, left)
		defer s.Close()
		head, pages, err := load(s, "a")
		if crashed == 0 {
			if err != nil || head.Revision != 1 || !reflect.DeepEqual(pages, first) {
				t.Errorf("before the first transaction: %+v with %d pages, %v", head, len(pages), err)
			}
		} else if !errors.Is(err, ErrNotFound) {
			t.Errorf("after %d transactions: %+v with %d pages, %v", crashed, head, len(pages), err)
		}
		if _, err := s.Save("a", Head{Revision: 3}, Clock{}, first.all()); err != nil {
			t.Error(err)
		}
		if head, pages, err := load(s, "a"); err != nil || head.Revision != 3 || !reflect.DeepEqual(pages, first) {
			t.Errorf("saved again: %+v with %d pages, %v", head, len(pages), err)
		}
		crashed++
		second.all()(yield)
	})
	if err != nil {
		t.Fatal(err)
	}
	if crashed < 5 {
		t.Errorf("%d transactions", crashed)
	}
	if head, pages, err := load(s, "a"); err != nil || head.Revision != 2 || !reflect.DeepEqual(pages, second) {
		t.Errorf("in the end: %+v with %d pages, %v", head, len(pages), err)
	}
}

// TestSaveHoldsNoCopy: of a guest of 32 MiB, which hardly compress, little is on
// the heap at any time.
func TestSaveHoldsNoCopy(t *testing.T) {
	const size, most = 32 << 20, 5 << 20
	s := openTest(t, filepath.Join(t.TempDir(), "snapshots.db"))
	s.pageSize = 4096
	random := rand.NewChaCha8([32]byte{})
	page := make([]byte, s.pageSize)
	live := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, highest := live(), uint64(0)
	_, err := s.Save("a", Head{}, Clock{}, func(yield func(int, []byte) bool) {
		for k := range size / s.pageSize {
			if k%64 == 0 {
				highest = max(highest, live())
			}
			_, _ = random.Read(page) // never fails
			if !yield(k, page) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d KiB on the heap", (highest-before)>>10)
	if highest > before+most {
		t.Errorf("%d bytes on the heap, want at most %d", highest-before, most)
	}
}

func TestClockIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshots.db")
	s := openTest(t, path)
	if c := s.Clock(); c != (Clock{}) {
		t.Errorf("a new store has the clock %v", c)
	}
	want := Clock{Monotonic: 3 * time.Hour, Wall: time.Unix(5, 6).UTC()}
	if _, err := s.Save("a", Head{}, want, contents{0: make([]byte, pageSize)}.all()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if c := openTest(t, path).Clock(); c != want {
		t.Errorf("%v, want %v", c, want)
	}
}

// TestOnlyChangesAreWritten counts bytes.
func TestOnlyChangesAreWritten(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "snapshots.db"))
	random := rand.New(rand.NewPCG(1, 2))
	pages := contents{}
	for k := range 10 * groupPages {
		pages[k] = make([]byte, pageSize)
		for n := range pageSize { // incompressible
			pages[k][n] = byte(random.Uint32())
		}
	}
	save := func() int {
		t.Helper()
		n, err := s.Save("a", Head{}, Clock{}, pages.all())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	head, group := 300, groupPages*pageSize
	if n := save(); n < 10*group || n > 11*group+head {
		t.Errorf("the first save wrote %d bytes", n)
	}
	if n := save(); n > head {
		t.Errorf("%d bytes were written though nothing had changed", n)
	}
	pages[17][3]++
	if n := save(); n < group || n > group+50+head {
		t.Errorf("%d bytes were written for one group of %d", n, group)
	}
	delete(pages, 17)
	if n := save(); n < group-pageSize || n > group+head {
		t.Errorf("%d bytes were written for a group that is one page smaller", n)
	}
	for k := range 2 * groupPages {
		delete(pages, k)
	}
	if n := save(); n > head {
		t.Errorf("%d bytes were written for groups that went", n)
	}
	if _, got, err := load(s, "a"); err != nil || !reflect.DeepEqual(got, pages) {
		t.Errorf("%d pages, want %d: %v", len(got), len(pages), err)
	}
}

// TestManySaveAtATime: saves of several guests share commits and do not mix.
func TestManySaveAtATime(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "snapshots.db"))
	s.delay = 5 * time.Millisecond
	var all sync.WaitGroup
	for g := range 8 {
		name := fmt.Sprint("guest-", g)
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(g), 0))
			for range 10 {
				pages := contents{random.IntN(50): page(random), 50 + random.IntN(50): page(random)}
				if _, err := s.Save(name, Head{Revision: int64(g)}, Clock{}, pages.all()); err != nil {
					t.Error(err)
				}
				head, got, err := load(s, name)
				if err != nil || head.Revision != int64(g) || !reflect.DeepEqual(got, pages) {
					t.Errorf("%s: %+v with %d pages: %v", name, head, len(got), err)
				}
			}
		})
	}
	all.Wait()
}

// TestSavesShareACommit: what is to be saved while the disk is busy is written at
// once then.
func TestSavesShareACommit(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "snapshots.db"))
	metas := 0 // each commit writes one
	onWrite(s.db, func(write func([]byte, int64) (int, error), b []byte, at int64) (int, error) {
		if at < int64(2*os.Getpagesize()) {
			metas++
		}
		return write(b, at)
	})
	var changes []func() error
	for g := range batchMost {
		changes = append(changes, func() error {
			_, err := s.Save(fmt.Sprint("guest-", g), Head{}, Clock{}, contents{g: make([]byte, pageSize)}.all())
			return err
		})
	}
	if err := together(s, changes...); err != nil {
		t.Fatal(err)
	}
	if names, err := s.Names(); err != nil || len(names) != len(changes) || metas != 1 {
		t.Errorf("%d guests in %d commits: %v", len(names), metas, err)
	}
}

// TestUnchangedGuestOnDisk counts what reaches the file, bbolt's own pages included:
// for a guest that did not change it does not grow with the guest.
func TestUnchangedGuestOnDisk(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "snapshots.db"))
	written := 0
	onWrite(s.db, func(write func([]byte, int64) (int, error), b []byte, at int64) (int, error) {
		written += len(b)
		return write(b, at)
	})
	random := rand.New(rand.NewPCG(8, 8))
	save := func(name string, pages contents) int {
		t.Helper()
		written = 0
		if _, err := s.Save(name, testHead(random), clockAt(1), pages.all()); err != nil {
			t.Fatal(err)
		}
		return written
	}
	for g := range 40 { // neighbours
		save(fmt.Sprint("neighbour-", g), newSaved(uint64(g), 40).pages)
	}
	big := newSaved(100, 5000).pages
	first := save("guest", big)
	// Its head, the buckets it is in, the root, the free pages, the meta page.
	again := save("guest", big)
	t.Logf("%d bytes, then %d", first, again)
	if most := 8 * os.Getpagesize(); again > most || first < 10*most {
		t.Errorf("%d bytes were written, and then %d for no change, want at most %d", first, again, most)
	}
}

func TestLoadStopsWhereToldTo(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "snapshots.db"))
	if _, err := s.Save("a", Head{}, Clock{}, contents{0: make([]byte, pageSize), 9: make([]byte, pageSize)}.all()); err != nil {
		t.Fatal(err)
	}
	calls := 0
	err := s.Load("a", func(_ Head, pages Pages) error {
		return pages(func(int, []byte) error { calls++; return io.ErrShortBuffer })
	})
	if !errors.Is(err, io.ErrShortBuffer) || errors.Is(err, ErrDamaged) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

// TestOthersAreDropped: snapshots of another version, module or datastore go, and
// this is said once.
func TestOthersAreDropped(t *testing.T) {
	for name, c := range map[string]struct {
		id   Identity
		what func(*bbolt.Bucket) error // done to meta
		want string
	}{
		"same":      {id: testIdentity},
		"module":    {id: Identity{"another", "datastore"}, want: "another module"},
		"datastore": {id: Identity{"module", "another"}, want: "another datastore"},
		"version": {id: testIdentity, want: "another version", what: func(meta *bbolt.Bucket) error {
			return meta.Put(versionKey, []byte("1"))
		}},
		"no version": {id: testIdentity, want: "another version", what: func(meta *bbolt.Bucket) error {
			return meta.Delete(versionKey)
		}},
		"damaged clock": {id: testIdentity, want: "clock", what: func(meta *bbolt.Bucket) error {
			b := bytes.Clone(meta.Get(clockKey))
			b[len(b)-4] ^= 1
			return meta.Put(clockKey, b)
		}},
		"no clock": {id: testIdentity, want: "clock", what: func(meta *bbolt.Bucket) error {
			return meta.Delete(clockKey)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "snapshots.db")
			s := openTest(t, path)
			if _, err := s.Save("a", Head{}, Clock{}, contents{0: make([]byte, pageSize)}.all()); err != nil {
				t.Fatal(err)
			}
			if c.what != nil {
				if err := s.db.Update(func(tx *bbolt.Tx) error { return c.what(tx.Bucket(metaBucket)) }); err != nil {
					t.Fatal(err)
				}
			}
			s.Close()
			for round := range 2 {
				var said []string
				s, err := Open(path, c.id, pageSize, func(why string) { said = append(said, why) })
				if err != nil {
					t.Fatal(err)
				}
				names, err := s.Names()
				s.Close()
				if err != nil || (len(names) == 0) != (c.want != "") {
					t.Errorf("there are %q, %v", names, err)
				}
				if round == 0 && c.want != "" {
					if len(said) != 1 || !strings.Contains(said[0], c.want) {
						t.Errorf("said %q, want %q", said, c.want)
					}
				} else if len(said) > 0 {
					t.Errorf("said %q", said)
				}
			}
			if _, err := os.Stat(path + ".damaged"); err == nil {
				t.Error("put aside as damaged")
			}
		})
	}
}

// TestOpenFails: what is not the content's fault does not put the store aside.
func TestOpenFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "snapshots.db")
	s := openTest(t, path)
	silent := func(why string) { t.Error("dropped: ", why) }
	if _, err := Open(path, testIdentity, pageSize, silent); err == nil {
		t.Error("opened twice")
	}
	if _, err := s.Save("a", Head{}, Clock{}, contents{}.all()); err != nil {
		t.Errorf("the store that was open first: %v", err)
	}
	if _, err := Open(filepath.Join(path, "beneath a file"), testIdentity, pageSize, silent); err == nil {
		t.Error("opened beneath a file")
	}
	if _, err := Open(filepath.Join(dir, "none", "snapshots.db"), testIdentity, pageSize, silent); err == nil {
		t.Error("opened in a directory that is not there")
	}
	if _, err := os.Stat(path + ".damaged"); err == nil {
		t.Error("put aside")
	}
}

func TestClosedStore(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "snapshots.db"))
	s.Close()
	if _, err := s.Save("a", Head{}, Clock{}, contents{}.all()); err == nil {
		t.Error("saved")
	}
	if err := s.SaveHead("a", Head{}, Clock{}); err == nil {
		t.Error("saved the head")
	}
	if err := s.Drop("a"); err == nil {
		t.Error("dropped")
	}
	if _, _, err := load(s, "a"); err == nil {
		t.Error("loaded")
	}
	if s.Size("a") != 0 || s.Clock() != (Clock{}) {
		t.Error("there is something left to see")
	}
}

// TestDamagedValues: whatever happens to the values of a snapshot, Load returns
// what was saved or ErrDamaged.
func TestDamagedValues(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "snapshots.db"))
	random := rand.New(rand.NewPCG(3, 4))
	pages := contents{0: page(random), 1: page(random), 5: page(random), 6: make([]byte, pageSize)}
	head := testHead(random)
	for _, name := range []string{"a", "b"} {
		if _, err := s.Save(name, head, Clock{}, pages.all()); err != nil {
			t.Fatal(err)
		}
	}
	// change does something to guest a, looks at it, and makes it whole again.
	change := func(what string, f func(guest, pages *bbolt.Bucket) error) {
		t.Helper()
		err := s.db.Update(func(tx *bbolt.Tx) error {
			guest := tx.Bucket(guestsBucket).Bucket([]byte("a"))
			return f(guest, guest.Bucket(pagesBucket))
		})
		if err != nil {
			t.Fatal(err)
		}
		got, gotPages, err := load(s, "a")
		switch {
		case errors.Is(err, ErrDamaged):
		case err != nil:
			t.Errorf("%s: %v", what, err)
		case !same(got, head) || !reflect.DeepEqual(gotPages, pages):
			t.Errorf("%s: something else was loaded", what)
		}
		if _, gotPages, err := load(s, "b"); err != nil || !reflect.DeepEqual(gotPages, pages) {
			t.Fatalf("%s: the other guest: %v", what, err)
		}
		if err := s.Drop("a"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Save("a", head, Clock{}, pages.all()); err != nil {
			t.Fatal(err)
		}
	}
	bits := func(b []byte, f func(what string, damaged []byte)) {
		for k := range b {
			damaged := bytes.Clone(b)
			damaged[k] ^= 1 << (k % 8)
			f(fmt.Sprintf("bit %d of byte %d", k%8, k), damaged)
			f(fmt.Sprintf("cut to %d bytes", k), bytes.Clone(b[:k]))
		}
	}
	var headValue []byte
	groups := map[string][]byte{}
	err := s.db.View(func(tx *bbolt.Tx) error {
		guest := tx.Bucket(guestsBucket).Bucket([]byte("a"))
		headValue = bytes.Clone(guest.Get(headKey))
		return guest.Bucket(pagesBucket).ForEach(func(k, v []byte) error {
			groups[string(k)] = bytes.Clone(v)
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	bits(headValue, func(what string, damaged []byte) {
		change("head: "+what, func(guest, _ *bbolt.Bucket) error { return guest.Put(headKey, damaged) })
	})
	for key, value := range groups {
		bits(value, func(what string, damaged []byte) {
			change(fmt.Sprintf("group %x: %s", key, what), func(_, pages *bbolt.Bucket) error { return pages.Put([]byte(key), damaged) })
		})
		change("group removed", func(_, pages *bbolt.Bucket) error { return pages.Delete([]byte(key)) })
		change("group doubled", func(_, pages *bbolt.Bucket) error { return pages.Put(groupKey(77), value) })
		for other := range groups {
			if other != key {
				change("groups exchanged", func(_, pages *bbolt.Bucket) error { return pages.Put([]byte(other), value) })
			}
		}
	}
	change("group with a long key", func(_, pages *bbolt.Bucket) error { return pages.Put([]byte("abcdefgh"), headValue) })
	older := func(guest, _ *bbolt.Bucket) error { // a group that was right before
		w := writer{bucket: guest.Bucket(pagesBucket), pageSize: pageSize, progress: &progress{}}
		old := pages.clone()
		old[5] = page(random)
		return w.part(old.all(), partBytes)
	}
	change("older group", older)
	change("no pages", func(guest, _ *bbolt.Bucket) error { return guest.DeleteBucket(pagesBucket) })
	change("head of another guest", func(guest, _ *bbolt.Bucket) error {
		_, err := putHead(guest, "b", head)
		return err
	})
	change("head with an unknown field", func(guest, _ *bbolt.Bucket) error {
		b := []byte(`{"groups":2,"new":1}`)
		return guest.Put(headKey, append(binary.LittleEndian.AppendUint64(nil, textHash("a", b)), b...))
	})
}

// TestGolden loads a store that version 2 wrote, see -update.
func TestGolden(t *testing.T) {
	const golden = "testdata/v2.db.gz"
	random := rand.New(rand.NewPCG(11, 12))
	pages := contents{}
	for _, k := range []int{0, 1, 2, 3, 4, 9, 400} {
		pages[k] = page(random)
	}
	head := Head{
		Generation: "a generation", Start: "a start", Memory: 26 << 20,
		Globals: []uint64{7, 1<<64 - 1}, NextTimer: 90 * time.Minute, Revision: 1234,
		Streams: []Stream{{
			ID: 3, URL: "/api/v1/pods?watch=true", Header: http.Header{"Accept": {"application/vnd.kubernetes.protobuf"}}, Revision: "1234",
			MembersKnown: true, Members: 1<<64 - 5,
		}},
		Heartbeats: []string{"uid"},
	}
	clock := Clock{Monotonic: 80 * time.Minute, Wall: time.Unix(1_790_000_000, 0).UTC()}
	path := filepath.Join(t.TempDir(), "snapshots.db")
	if *update {
		s := openTest(t, path)
		if _, err := s.Save("deployment-controller", head, clock, pages.all()); err != nil {
			t.Fatal(err)
		}
		s.Close()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		if _, err := w.Write(b); err != nil || w.Close() != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(golden, packed.Bytes(), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	unpack(t, golden, path)
	if os.Getpagesize() != 4096 {
		// bbolt's files have the page size of the machine that made them; on
		// this one the store is put aside.
		s, err := Open(path, testIdentity, pageSize, func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		return
	}
	s := openTest(t, path)
	got, gotPages, err := load(s, "deployment-controller")
	if err != nil {
		t.Fatal(err)
	}
	if !same(got, head) {
		t.Errorf("head %+v, want %+v", got, head)
	}
	if !reflect.DeepEqual(gotPages, pages) {
		t.Error("other pages were loaded")
	}
	if c := s.Clock(); c != clock {
		t.Errorf("clock %v, want %v", c, clock)
	}
}

func unpack(t *testing.T, packed, path string) {
	t.Helper()
	f, err := os.Open(packed)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func FuzzDecodeHead(f *testing.F) {
	for _, text := range []string{`{"generation":"a","globals":[1,18446744073709551615],"streams":[{"id":1,"url":"/x"}]}`, `{"new":1}`, ``, `{}{}`} {
		b := []byte(text)
		f.Add("name", append(binary.LittleEndian.AppendUint64(nil, textHash("name", b)), b...))
	}
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		// Forge the hash: a head that was written so must not do harm either.
		forged := append(binary.LittleEndian.AppendUint64(nil, textHash(name, b)), b...)
		_, _ = decodeHead(name, forged)
		if head, err := decodeHead(name, b); err == nil {
			if _, err := decodeHead(name+"x", b); err == nil {
				t.Errorf("%+v is taken for another guest's", head)
			}
		}
	})
}

func FuzzDecodeGroup(f *testing.F) {
	s := openTest(f, filepath.Join(f.TempDir(), "snapshots.db"))
	random := rand.New(rand.NewPCG(5, 6))
	if _, err := s.Save("a", Head{}, Clock{}, contents{1: page(random), 3: page(random), 8: page(random)}.all()); err != nil {
		f.Fatal(err)
	}
	err := s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(guestsBucket).Bucket([]byte("a")).Bucket(pagesBucket).ForEach(func(k, v []byte) error {
			f.Add(bytes.Clone(k), bytes.Clone(v))
			return nil
		})
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, k, v []byte) {
		var g group
		if err := g.decode(k, v, pageSize); err != nil {
			return
		}
		total := 0
		for _, b := range g.pages {
			total += len(b)
		}
		if g.index < 0 || total > len(g.raw) {
			t.Errorf("group %d has %d bytes of %d", g.index, total, len(g.raw))
		}
	})
}

// TestChangesThatFail: one bad change does not spoil those that share its commit.
func TestChangesThatFail(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "snapshots.db"))
	s.delay = 20 * time.Millisecond // enough for some to meet, not that it matters
	var all sync.WaitGroup
	for g := range 10 {
		all.Go(func() {
			name := fmt.Sprint("guest-", g)
			if g%2 == 0 {
				if err := s.SaveHead(name, Head{}, Clock{}); !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
			} else if _, err := s.Save(name, Head{}, Clock{}, contents{}.all()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if names, err := s.Names(); err != nil || len(names) != 5 {
		t.Errorf("%q, %v", names, err)
	}
}

// TestFileShrinksUnderneath: pages that are mapped are gone. That costs the
// snapshots, not the process, and nobody waits for ever.
func TestFileShrinksUnderneath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshots.db")
	s := openTest(t, path)
	random := rand.New(rand.NewPCG(7, 8))
	pages := contents{}
	for k := range 1000 {
		pages[k] = page(random)
	}
	if _, err := s.Save("a", Head{}, Clock{}, pages.all()); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(2*os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	if _, _, err := load(s, "a"); !errors.Is(err, ErrDamaged) {
		t.Errorf("load: %v", err)
	}
	for range 2 {
		if _, err := s.Save("a", Head{}, Clock{}, pages.all()); !errors.Is(err, ErrDamaged) {
			t.Errorf("save: %v", err)
		}
	}
	if err := s.Drop("a"); !errors.Is(err, ErrDamaged) {
		t.Errorf("drop: %v", err)
	}
	if s.Size("a") != 0 || s.Clock() != (Clock{}) {
		t.Error("there is something left to see")
	}
	if err := s.Close(); !errors.Is(err, ErrDamaged) {
		t.Errorf("close: %v", err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	path += ".next" // the lock on the file ends with the process
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	var said string
	s, err = Open(path, testIdentity, pageSize, func(why string) { said = why })
	if err != nil || said == "" {
		t.Fatalf("opened again, %q: %v", said, err)
	}
	s.Close()
}
