package snapshot

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// sectorSize is what a disk writes as a whole, or not at all.
const sectorSize = 512

// block is a page that a commit writes.
type block struct {
	at   int64
	data []byte
}

// commitLog is what a commit does to a file: it writes its pages, waits for the
// disk, writes the meta page by which they count, and waits again.
type commitLog struct {
	before []byte // the file
	size   int    // afterwards; it grows before anything is written
	pages  []block
	meta   block
}

// record does a deed to a copy of the file at base; ok is false if it writes nothing.
func record(t *testing.T, base string, d deed) (log commitLog, ok bool) {
	t.Helper()
	path := copyFile(t, base, t.TempDir())
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	log.before = before
	s := openTest(t, path)
	size := os.Getpagesize()
	var all []block
	onWrite(s.db, func(write func([]byte, int64) (int, error), b []byte, at int64) (int, error) {
		for k := 0; k < len(b); k += size {
			all = append(all, block{at + int64(k), bytes.Clone(b[k : k+size])})
		}
		return write(b, at)
	})
	if err := d.do(s); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		return log, false
	}
	log.size, log.pages, log.meta = int(info.Size()), all[:len(all)-1], all[len(all)-1]
	for k, b := range all {
		if isMeta := b.at < int64(2*size); isMeta != (k == len(all)-1) {
			t.Fatalf("write %d of %d is to page %d", k+1, len(all), b.at/int64(size))
		}
	}
	return log, true
}

// fate of a page when the power fails.
type fate int

const (
	lost fate = iota
	torn
	whole
)

// put writes to file what the disk has of a page.
func (b block) put(file []byte, f fate, random *rand.Rand) {
	switch f {
	case whole:
		copy(file[b.at:], b.data)
	case torn:
		for k := 0; k < len(b.data); k += sectorSize {
			if random.IntN(2) == 0 {
				copy(file[b.at+int64(k):], b.data[k:k+sectorSize])
			}
		}
	}
}

// disk is the file with some of the commit's pages written.
func (l commitLog) disk(random *rand.Rand, pages func(k int) fate, meta fate) []byte {
	file := make([]byte, l.size)
	copy(file, l.before)
	for k, b := range l.pages {
		b.put(file, pages(k), random)
	}
	l.meta.put(file, meta, random)
	return file
}

// TestPowerLoss has all, some or none of a commit's pages on disk, whole or in part:
// what the wait for the disk before the meta page allows. The store is as before the
// commit, or as after it once the meta page is there, and nothing is said.
func TestPowerLoss(t *testing.T) {
	grown := 0
	eachCommit(t, func(t *testing.T, log commitLog, history []world, after world, random *rand.Rand) {
		before := history[len(history)-1]
		try := func(what string, file []byte, want ...world) {
			t.Helper()
			s, said := openLeft(t, file)
			defer s.Close()
			got, err := readWorld(s)
			if err != nil || said != "" {
				t.Errorf("%s: %v, said %q", what, err, said)
			}
			for _, w := range want {
				if got.equal(w) == nil {
					return
				}
			}
			t.Errorf("%s: %v", what, got.equal(want[0]))
		}
		try("nothing but the new size", log.disk(random, all(lost), lost), before)
		if log.size > len(log.before) {
			try("not even the new size", log.before, before)
			grown++
		}
		n := len(log.pages)
		if n <= 6 { // all subsets
			for subset := range 1 << n {
				pages := func(k int) fate { return fate(subset>>k&1) * whole }
				try(fmt.Sprintf("pages %b", subset), log.disk(random, pages, lost), before)
			}
		}
		for k := range *damages / 2 {
			try(fmt.Sprint("some pages, try ", k), log.disk(random, some(random), lost), before)
		}
		for k := range 20 {
			try(fmt.Sprint("a torn meta page, try ", k), log.disk(random, all(whole), torn), before, after)
		}
		try("all", log.disk(random, all(whole), whole), after)
	})
	if grown == 0 {
		t.Error("no commit made the file grow")
	}
}

// TestDiskThatLies has the meta page on disk, and not all the pages by which it
// counts: a disk that does not wait when it is told to. Of each guest there is one of
// the states that were saved, or it is known not to be there, and the store works.
func TestDiskThatLies(t *testing.T) {
	aside := 0
	eachCommit(t, func(t *testing.T, log commitLog, history []world, after world, random *rand.Rand) {
		history = append(history, after)
		n := len(log.pages)
		for k := range *damages {
			pages := some(random)
			if k%2 == 0 { // just one is missing, or half there
				pages = func(p int) fate {
					if p == k/2%n {
						return fate(k / 2 / n % 2)
					}
					return whole
				}
			}
			s, said := openLeft(t, log.disk(random, pages, whole))
			names, err := s.Names()
			if err != nil {
				t.Errorf("try %d: %v", k, err)
			}
			if said != "" {
				aside++
			}
			for _, name := range names {
				head, pages, err := load(s, name)
				known := err != nil
				for _, w := range history {
					known = known || w.guests[name].equal(saved{head, pages})
				}
				if !known {
					t.Errorf("try %d: %s is in a state that was never saved", k, name)
				}
				again := newSaved(99, 20)
				if _, err := s.Save(name, again.head, clockAt(99), again.pages.all()); err != nil {
					t.Errorf("try %d: saving %s: %v", k, name, err)
				} else if head, pages, err := load(s, name); err != nil || !again.equal(saved{head, pages}) {
					t.Errorf("try %d: %s saved anew: %v", k, name, err)
				}
				if err := s.Drop(name); err != nil {
					t.Errorf("try %d: dropping %s: %v", k, name, err)
				}
			}
			if err := s.Close(); err != nil {
				t.Errorf("try %d: %v", k, err)
			}
		}
	})
	if aside == 0 {
		t.Error("no store was put aside")
	}
}

func all(f fate) func(int) fate { return func(int) fate { return f } }

func some(random *rand.Rand) func(int) fate { return func(int) fate { return fate(random.IntN(3)) } }

// eachCommit calls f for each deed that writes.
func eachCommit(t *testing.T, f func(t *testing.T, log commitLog, history []world, after world, random *rand.Rand)) {
	base := filepath.Join(t.TempDir(), "snapshots.db")
	history := newWorld(t, base)
	commits := 0
	for seed, d := range deeds() {
		log, ok := record(t, base, d)
		if !ok {
			continue
		}
		commits++
		t.Run(d.name, func(t *testing.T) {
			after := clone(history[len(history)-1])
			d.then(&after)
			f(t, log, history, after, rand.New(rand.NewPCG(uint64(seed), uint64(*damages))))
		})
	}
	if commits < len(deeds())-1 { // a load
		t.Errorf("%d commits", commits)
	}
}

// openLeft opens a file that a disk was left with; that another datastore's is
// dropped goes without saying.
func openLeft(t *testing.T, file []byte) (s *Store, said string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshots.db")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	const other = "the snapshots are of another datastore; every guest starts cold"
	s, err := Open(path, testIdentity, pageSize, func(why string) {
		if why != other {
			said = why
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	s.delay, s.db.NoSync = 0, true
	return s, said
}
