package snapshot

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// changeStore opens the database itself and changes it.
func changeStore(t *testing.T, path string, f func(tx *bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(f), db.Close()); err != nil {
		t.Fatal(err)
	}
}

// flipGroup damages a group of a guest's pages.
func flipGroup(t *testing.T, path, name string) {
	t.Helper()
	changeStore(t, path, func(tx *bbolt.Tx) error {
		pages := tx.Bucket(guestsBucket).Bucket([]byte(name)).Bucket(pagesBucket)
		k, v := pages.Cursor().First()
		v = bytes.Clone(v)
		v[len(v)-1] ^= 4
		return pages.Put(k, v)
	})
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, path string)
		bad   map[string]string // guests, and what is wrong with them
		err   error             // about the whole store
		says  string
	}{
		"nothing": {spoil: func(*testing.T, string) {}},
		"group":   {spoil: func(t *testing.T, path string) { flipGroup(t, path, "guest") }, bad: map[string]string{"guest": "group 00000000"}},
		"two": {spoil: func(t *testing.T, path string) {
			flipGroup(t, path, "guest")
			flipGroup(t, path, "small")
		}, bad: map[string]string{"guest": "group 00000000", "small": "group"}},
		"head": {spoil: func(t *testing.T, path string) {
			changeStore(t, path, func(tx *bbolt.Tx) error {
				return tx.Bucket(guestsBucket).Bucket([]byte("other")).Put(headKey, []byte("something else"))
			})
		}, bad: map[string]string{"other": "wrong hash of the head"}},
		"group missing": {spoil: func(t *testing.T, path string) {
			changeStore(t, path, func(tx *bbolt.Tx) error {
				pages := tx.Bucket(guestsBucket).Bucket([]byte("other")).Bucket(pagesBucket)
				k, _ := pages.Cursor().First()
				return pages.Delete(k)
			})
		}, bad: map[string]string{"other": "groups of pages"}},
		"page beyond the memory": {spoil: func(t *testing.T, path string) {
			s := openTest(t, path)
			if _, err := s.Save("other", Head{Memory: 3 * pageSize}, clockAt(1), contents{3: make([]byte, pageSize)}.all()); err != nil {
				t.Fatal(err)
			}
			s.Close()
		}, bad: map[string]string{"other": "a page ends at 1024 of 768 bytes of memory"}},
		"clock": {spoil: func(t *testing.T, path string) {
			changeStore(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Delete(clockKey) })
		}, err: ErrDamaged, says: "clock"},
		"cut off": {spoil: func(t *testing.T, path string) {
			if err := os.Truncate(path, 20000); err != nil {
				t.Fatal(err)
			}
		}, err: ErrDamaged, says: "20000 bytes long"},
		"cut off after the first page": {spoil: func(t *testing.T, path string) {
			if err := os.Truncate(path, 5000); err != nil {
				t.Fatal(err)
			}
		}, err: ErrDamaged},
		"another version": {spoil: func(t *testing.T, path string) {
			changeStore(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Put(versionKey, []byte("7")) })
		}, says: `of version "7"`},
		"another database": {spoil: func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			changeStore(t, path, func(tx *bbolt.Tx) error {
				_, err := tx.CreateBucket([]byte("v1"))
				return err
			})
		}, err: ErrNoStore},
		"another kind of file": {spoil: func(t *testing.T, path string) {
			if err := os.WriteFile(path, bytes.Repeat([]byte("text\n"), 9999), 0o600); err != nil {
				t.Fatal(err)
			}
		}, err: ErrNoStore},
		"a short file": {spoil: func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("text\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, err: ErrNoStore},
		"a directory": {spoil: func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, err: ErrNoStore},
		"no file": {spoil: func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, err: fs.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "snapshots.db")
			history := newWorld(t, path)
			c.spoil(t, path)
			whole := c.err == nil && c.says == ""
			before, _ := os.ReadFile(path)

			entries, err := Check(path, pageSize)
			if whole != (err == nil) || c.err != nil && !errors.Is(err, c.err) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %v with %q", err, c.err, c.says)
			}
			if whole {
				looked(t, entries, c.bad)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("the file was changed")
			}

			err = Repair(path, pageSize)
			if aside := errors.Is(c.err, ErrDamaged); aside || whole {
				if err != nil {
					t.Errorf("repair: %v", err)
				}
				if _, err := os.Stat(path + ".damaged"); aside != (err == nil) {
					t.Errorf("put aside: %v", err)
				}
			} else {
				if err == nil {
					t.Error("repaired")
				}
				if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
					t.Error("the file was changed")
				}
				return
			}
			// What was whole is there still, and nothing else.
			got, err := readWorld(openTest(t, path))
			want := clone(history[len(history)-1])
			for name := range c.bad {
				delete(want.guests, name)
			}
			if !whole {
				want = world{}
			}
			if name == "page beyond the memory" {
				want.clock = clockAt(1)
			}
			if diff := got.equal(want); err != nil || diff != nil {
				t.Errorf("after the repair: %v, %v", diff, err)
			}
		})
	}
}

// looked compares what Check found with what it should have.
func looked(t *testing.T, entries []Entry, bad map[string]string) {
	t.Helper()
	if len(entries) != 4 {
		t.Errorf("%d snapshots", len(entries))
	}
	for _, e := range entries {
		want, spoiled := bad[e.Name]
		switch {
		case spoiled && (!errors.Is(e.Err, ErrDamaged) || !strings.Contains(e.Err.Error(), want)):
			t.Errorf("%s: %v, want %q", e.Name, e.Err, want)
		case !spoiled && e.Err != nil:
			t.Errorf("%s: %v", e.Name, e.Err)
		case e.Size == 0:
			t.Errorf("%s has no size", e.Name)
		}
	}
}

// TestCheckNewStore: a store that holds nothing is in order.
func TestCheckNewStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshots.db")
	openTest(t, path).Close()
	empty := filepath.Join(t.TempDir(), "snapshots.db")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{path, empty} {
		if entries, err := Check(path, pageSize); err != nil || len(entries) != 0 {
			t.Errorf("%+v, %v", entries, err)
		}
	}
}

// TestCheckInUse: a store that is open is left alone, by Open too, whatever its file
// looks like meanwhile.
func TestCheckInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshots.db")
	newWorld(t, path)
	s := openTest(t, path)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	page := make([]byte, os.Getpagesize())
	for at := int64(2 * len(page)); at < int64(8*len(page)); at += int64(len(page)) { // as if a commit were under way
		if _, err := file.WriteAt(page, at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Check(path, pageSize); !errors.Is(err, ErrInUse) {
		t.Errorf("check: %v", err)
	}
	if err := Repair(path, pageSize); !errors.Is(err, ErrInUse) {
		t.Errorf("repair: %v", err)
	}
	if _, err := Open(path, testIdentity, pageSize, func(why string) { t.Error("dropped: ", why) }); !errors.Is(err, ErrInUse) {
		t.Errorf("open: %v", err)
	}
	if _, err := os.Stat(path + ".damaged"); err == nil {
		t.Error("put aside")
	}
	s.Close()
	if _, err := Check(path, pageSize); !errors.Is(err, ErrDamaged) {
		t.Errorf("check afterwards: %v", err)
	}
}
