package snapshot

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFullDisk fills a small file system. Save says so, what was saved before
// stays, and when there is space again the store goes on.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("snapshots", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, "size=1m"); err != nil {
		t.Fatalf("mounting a small file system, which takes root (uid %d here): %v", os.Getuid(), err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 512<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "snapshots.db")
	s := openTest(t, path)
	marks := openMarks(t, filepath.Join(dir, "awake"), "boot")
	random := rand.New(rand.NewPCG(31, 1))
	pages := func(n int) contents {
		c := contents{}
		for k := range n {
			c[k] = make([]byte, pageSize)
			for i := range pageSize { // incompressible
				c[k][i] = byte(random.Uint32())
			}
		}
		return c
	}
	saved := contents{}
	var full error
	for n := 100; full == nil; n += 100 {
		if n > 1<<20/pageSize {
			t.Fatal("the file system does not fill up")
		}
		next := pages(n)
		if _, full = s.Save("a", Head{Revision: int64(n)}, Clock{}, next.all()); full == nil {
			saved = next
		}
	}
	if !errors.Is(full, unix.ENOSPC) {
		t.Errorf("the disk is full: %v", full)
	}
	if len(saved) == 0 {
		t.Fatal("nothing could be saved")
	}
	check := func(want contents) {
		t.Helper()
		head, got, err := load(s, "a")
		if err != nil || head.Revision != int64(len(want)) || !reflect.DeepEqual(got, want) {
			t.Errorf("revision %d with %d pages, want %d: %v", head.Revision, len(got), len(want), err)
		}
	}
	check(saved)
	if _, err := s.Save("b", Head{}, Clock{}, pages(2000).all()); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("another guest: %v", err)
	}
	if err := marks.Set("a"); err != nil {
		t.Errorf("marking a guest on a full disk: %v", err) // it fits into the file's block
	}
	check(saved)

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	last := pages(len(saved) + 100)
	if _, err := s.Save("a", Head{Revision: int64(len(last))}, Clock{}, last.all()); err != nil {
		t.Fatal(err)
	}
	check(last)
	s.Close()
	s = openTest(t, path) // nothing is found damaged
	check(last)
	s.Close()
	crash(t, marks)
}

// TestWritesThatFail has each write of each change fail, half done, as on a full or
// a broken disk. The change is reported as failed; what is there is the whole change
// or nothing of it, and the same change made again succeeds.
func TestWritesThatFail(t *testing.T) {
	base := filepath.Join(t.TempDir(), "snapshots.db")
	history := newWorld(t, base)
	before := history[len(history)-1]
	for _, d := range deeds() {
		t.Run(d.name, func(t *testing.T) {
			log, ok := record(t, base, d)
			if !ok {
				return
			}
			after := clone(before)
			d.then(&after)
			for failing := range len(log.pages) + 1 {
				path := copyFile(t, base, t.TempDir())
				s := openTest(t, path)
				writes := 0
				onWrite(s.db, func(write func([]byte, int64) (int, error), b []byte, at int64) (int, error) {
					// Each change is tried once more by itself if several share a commit.
					if writes++; writes > failing {
						n, _ := write(b[:len(b)/2], at)
						return n, unix.ENOSPC
					}
					return write(b, at)
				})
				err := d.do(s)
				if writes <= failing {
					break // some pages are written together
				}
				if !errors.Is(err, unix.ENOSPC) {
					t.Errorf("write %d fails: %v", failing, err)
				}
				got, err := readWorld(s)
				if old, done := got.equal(before), got.equal(after); err != nil || old != nil && done != nil {
					t.Errorf("write %d fails: neither as before (%v) nor as after (%v): %v", failing, old, done, err)
				}
				writes = -1000 // there is room again
				if err := d.do(s); err != nil {
					t.Errorf("after write %d failed: %v", failing, err)
				}
				for range 2 { // the second time from the file
					if got, err := readWorld(s); err != nil || got.equal(after) != nil {
						t.Errorf("after write %d failed: %v, %v", failing, got.equal(after), err)
					}
					s.Close()
					if d.name == "another datastore" {
						break
					}
					s = openTest(t, path)
				}
			}
		})
	}
}

// TestFileThatCannotGrow: a quota keeps the file from growing. What fits into it is
// saved, what does not is not, and when it may grow the store goes on.
func TestFileThatCannotGrow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshots.db")
	history := newWorld(t, path)
	before := history[len(history)-1]
	s := openTest(t, path)
	s.part = 64 << 20    // one commit for all
	const most = 4 << 20 // more than other files of this process have: go test keeps a log
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: most, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	big, small := newSaved(30, 60_000), newSaved(31, 1)
	_, bigErr := s.Save("big", big.head, clockAt(10), big.pages.all())
	_, smallErr := s.Save("small", small.head, clockAt(11), small.pages.all())
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if bigErr == nil || smallErr != nil {
		t.Errorf("the big one: %v; the small one: %v", bigErr, smallErr)
	}
	want := clone(before)
	want.guests["small"], want.clock = small, clockAt(11)
	if got, err := readWorld(s); err != nil || got.equal(want) != nil {
		t.Errorf("%v, %v", got.equal(want), err)
	}
	if _, err := s.Save("big", big.head, clockAt(12), big.pages.all()); err != nil {
		t.Fatal(err)
	}
	want.guests["big"], want.clock = big, clockAt(12)
	s.Close()
	if got, err := readWorld(openTest(t, path)); err != nil || got.equal(want) != nil {
		t.Errorf("%v, %v", got.equal(want), err)
	}
}
