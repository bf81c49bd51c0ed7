package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// lockPatience is how long to wait for a process that has the store open.
const lockPatience = time.Second

// Entry is what Check finds out about one snapshot.
type Entry struct {
	Name string
	Size int64 // in bytes, see Store.Size
	Err  error // why it cannot be restored; nil if it can
}

// Check reads the store at path from end to end and changes nothing. It lists the
// snapshots by name, each with whether it can be restored, as far as that can be
// told without the module and the datastore. pageSize is as for Open.
//
// An error is about the store as a whole, of which no snapshot is used then:
// ErrInUse, ErrNoStore, ErrDamaged, fs.ErrNotExist or another one.
func Check(path string, pageSize int) (entries []Entry, err error) {
	defer faultToError(&err)()
	err = check(path, func(db *bbolt.DB) error {
		s := &Store{db: db, pageSize: pageSize}
		return db.View(func(tx *bbolt.Tx) error {
			if empty, err := checkMeta(tx); empty || err != nil {
				return err
			}
			return tx.Bucket(guestsBucket).ForEachBucket(func(name []byte) error {
				e := Entry{Name: string(name)}
				e.Size, e.Err = sizeOf(tx, e.Name), s.restorable(tx, e.Name)
				if errors.Is(e.Err, ErrNotFound) {
					return nil // its first save did not come to its end
				}
				entries = append(entries, e)
				return nil
			})
		})
	})
	return entries, err
}

// Repair drops the snapshots that Check finds damaged; a store that is damaged as
// a whole is put aside, as Open does it.
func Repair(path string, pageSize int) (err error) {
	defer faultToError(&err)()
	entries, err := Check(path, pageSize)
	if errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNoStore) {
		return putAside(path)
	}
	if err != nil {
		return err
	}
	db, err := openDB(path, false)
	if err != nil {
		return err
	}
	s := &Store{db: db, pageSize: pageSize}
	for _, e := range entries {
		if e.Err != nil {
			err = errors.Join(err, s.Drop(e.Name))
		}
	}
	return errors.Join(err, s.Close())
}

// check reads the whole file: first that its structure is sound enough for bbolt,
// then what bbolt thinks of it, then whether it is laid out as a store. If all is
// well, look is called; it may be nil. Nobody writes to the file meanwhile.
func check(path string, look func(*bbolt.DB) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return ErrNoStore
	}
	if err := lock(file); err != nil {
		return err
	}
	if info, err = file.Stat(); err != nil || info.Size() == 0 {
		return err
	}
	if err := checkStructure(file, info.Size(), os.Getpagesize()); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	db, err := openDB(path, true)
	if err != nil {
		return err
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		var first error
		for err := range tx.Check() {
			if first == nil {
				first = fmt.Errorf("%w: %w", ErrDamaged, err)
			}
		}
		if first != nil {
			return first
		}
		return checkLayout(tx)
	})
	if err != nil || look == nil {
		return err
	}
	return look(db)
}

// lock keeps others from opening the file for writing until it is closed, as bbolt
// itself does it. Read without that, a store that is written to looks damaged.
func lock(file *os.File) error {
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(lockPatience / 20) {
		err := unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if err != unix.EWOULDBLOCK {
			return fmt.Errorf("locking %s: %w", file.Name(), err)
		}
		if time.Now().After(deadline) {
			return ErrInUse
		}
	}
}

// checkMeta finds out what a server would drop a whole store for, as far as it is
// in the file. A database without any bucket is a store that was never used.
func checkMeta(tx *bbolt.Tx) (empty bool, err error) {
	if first, _ := tx.Cursor().First(); first == nil {
		return true, nil
	}
	meta := tx.Bucket(metaBucket)
	if meta == nil || meta.Get(versionKey) == nil {
		return false, ErrNoStore
	}
	if v := meta.Get(versionKey); string(v) != Version {
		return false, fmt.Errorf("of version %q, this program has version %s", v, Version)
	}
	if tx.Bucket(guestsBucket) == nil {
		return false, fmt.Errorf("%w: no place for snapshots", ErrDamaged)
	}
	if lacksClock(tx) {
		return false, fmt.Errorf("%w: the clock that all timers go by cannot be read", ErrDamaged)
	}
	return false, nil
}

// restorable reads a whole snapshot.
func (s *Store) restorable(tx *bbolt.Tx, name string) error {
	head, err := readHead(tx, name)
	if err != nil {
		return err
	}
	end := int64(0)
	err = s.readPages(tx, name, head, func(index int, _ []byte) error {
		end = int64(index+1) * int64(s.pageSize)
		return nil
	})
	if err == nil && end > head.Memory {
		return fmt.Errorf("%w: a page ends at %d of %d bytes of memory", ErrDamaged, end, head.Memory)
	}
	return err
}

// checkLayout checks that buckets are where the package comment has them: bbolt
// refuses to put a bucket where a value is, and the other way round. Of another
// version, which adopt drops, only the root is known.
func checkLayout(tx *bbolt.Tx) error {
	meta := tx.Bucket(metaBucket)
	known := meta != nil && string(meta.Get(versionKey)) == Version
	return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		switch {
		case b == nil:
			return fmt.Errorf("%w: %q is no bucket", ErrDamaged, name)
		case !known:
			return nil
		case bytes.Equal(name, metaBucket):
			return checkValues(name, b)
		case !bytes.Equal(name, guestsBucket):
			return fmt.Errorf("%w: unknown bucket %q", ErrDamaged, name)
		}
		return b.ForEach(func(name, _ []byte) error {
			guest := b.Bucket(name)
			if guest == nil || guest.Bucket(headKey) != nil || guest.Bucket(pagesBucket) == nil {
				return fmt.Errorf("%w: guest %q is incomplete", ErrDamaged, name)
			}
			return checkValues(name, guest.Bucket(pagesBucket))
		})
	})
}

// checkValues checks that a bucket has no buckets in it.
func checkValues(name []byte, b *bbolt.Bucket) error {
	return b.ForEachBucket(func(k []byte) error {
		return fmt.Errorf("%w: %x in %q is a bucket", ErrDamaged, k, name)
	})
}
