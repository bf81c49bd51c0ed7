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
