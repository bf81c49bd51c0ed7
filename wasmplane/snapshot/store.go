package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// partBytes is how many bytes of groups one transaction takes; bbolt holds them
// twice until it has committed.
const partBytes = 1 << 20

var (
	// ErrNotFound says that a guest has no snapshot.
	ErrNotFound = errors.New("no snapshot")
	// ErrDamaged says that a snapshot does not have the content that was saved.
	ErrDamaged = errors.New("damaged snapshot")
	// ErrInUse says that another process has the store open.
	ErrInUse = errors.New("in use by another process")
	// ErrNoStore says that a file is something else than a store.
	ErrNoStore = errors.New("not a snapshot store")
)

// reached is told where a change or a load has got to. The end of the process must
// do no harm there, whatever the place; tests end it.
var reached = func(point string) {}

// Store is an open database. It is safe for concurrent use.
type Store struct {
	db       *bbolt.DB
	pageSize int
	delay    time.Duration // batchDelay
	part     int           // partBytes

	groups sync.Pool // of *group, for what is read

	committing sync.Mutex // held during a commit; what comes meanwhile shares the next

	mu     sync.Mutex
	queue  []*change // for the next commit
	broken error     // a commit panicked; bbolt may hold its locks for ever
}

// Identity is what all snapshots of a store have in common.
type Identity struct {
	Module    string // digest of the module
	Datastore string // identity of the datastore
}

// Open opens the database at path, or makes one. What cannot be used is dropped,
// and said so through dropped: one line that says what and why. pageSize is the
// machine's, in bytes.
func Open(path string, id Identity, pageSize int, dropped func(why string)) (*Store, error) {
	s, err := open(path, id, pageSize, dropped)
	if errors.Is(err, ErrDamaged) {
		dropped(fmt.Sprintf("%s is damaged (%v); every guest starts cold", path, err))
		if err := putAside(path); err != nil {
			return nil, err
		}
		s, err = open(path, id, pageSize, dropped)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the snapshot store %s: %w", path, err)
	}
	return s, nil
}

// open checks and opens the file; ErrDamaged if its content is at fault.
func open(path string, id Identity, pageSize int, dropped func(string)) (s *Store, err error) {
	defer faultToError(&err)()
	if err := check(path, nil); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	reached("open: checked")
	db, err := openDB(path, false)
	if err != nil {
		return nil, err
	}
	reached("open: opened")
	s = &Store{db: db, pageSize: pageSize, delay: batchDelay, part: partBytes}
	if err := s.adopt(id, dropped); err != nil {
		db.Close()
		return nil, err
	}
	reached("open: adopted")
	return s, nil
}

func openDB(path string, readOnly bool) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockPatience, FreelistType: bbolt.FreelistMapType, ReadOnly: readOnly})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, ErrInUse
	}
	return db, err
}

// putAside makes room for a new store; who wants to know what happened has the old
// one.
func putAside(path string) error {
	if err := os.Rename(path, path+".damaged"); err != nil {
		return fmt.Errorf("putting aside the damaged snapshot store: %w", err)
	}
	reached("open: put aside")
	return nil
}

// faultToError makes panics and memory faults of this goroutine an error. It is
// deferred twice over: defer faultToError(&err)().
func faultToError(err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if p := recover(); p != nil {
			*err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}
}

// adopt drops what was saved by another version, module or datastore.
func (s *Store) adopt(id Identity, dropped func(string)) error {
	unchanged := errors.New("nothing to write")
	err := s.db.Update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucketIfNotExists(metaBucket)
		if err != nil {
			return err
		}
		fresh := tx.Bucket(guestsBucket) == nil
		stale := ""
		for _, want := range []struct {
			key  []byte
			what string
			is   string
		}{
			{versionKey, "written by another version of the format", Version},
			{moduleKey, "of another module", id.Module},
			{datastoreKey, "of another datastore", id.Datastore},
		} {
			if string(meta.Get(want.key)) == want.is {
				continue
			}
			if stale == "" {
				stale = want.what
			}
			if err := meta.Put(want.key, []byte(want.is)); err != nil {
				return err
			}
		}
		if stale == "" && !fresh && lacksClock(tx) {
			stale = "without the clock that their timers go by"
		}
		switch {
		case fresh:
		case stale == "":
			return unchanged
		default:
			dropped("the snapshots are " + stale + "; every guest starts cold")
			if err := tx.DeleteBucket(guestsBucket); err != nil {
				return err
			}
		}
		_, err = tx.CreateBucket(guestsBucket)
		return err
	})
	if err == unchanged {
		return nil
	}
	return err
}

// lacksClock reports whether there are snapshots, but no clock.
func lacksClock(tx *bbolt.Tx) bool {
	first, _ := tx.Bucket(guestsBucket).Cursor().First()
	_, err := decodeClock(tx.Bucket(metaBucket).Get(clockKey))
	return first != nil && err != nil
}

// Close closes the database.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	return s.db.Close()
}

// Save replaces a guest's snapshot. pages yields what there is of each page, with
// indexes in ascending order; only what changed is written. It returns when it is on disk,
// with the number of bytes that were given to the database. Saves of several
// goroutines share commits. pages may be called more than once.
//
// What is much takes several transactions, so that a guest is never in memory a
// second time. Between the first and the last the guest has no snapshot.
func (s *Store) Save(name string, head Head, clock Clock, pages iter.Seq2[int, []byte]) (written int, err error) {
	var p progress
	for !p.done {
		var next progress
		err = s.update(func(tx *bbolt.Tx) error {
			next = p
			guest, err := tx.Bucket(guestsBucket).CreateBucketIfNotExists([]byte(name))
			if err != nil {
				return err
			}
			bucket, err := guest.CreateBucketIfNotExists(pagesBucket)
			if err != nil {
				return err
			}
			w := writer{bucket: bucket, pageSize: s.pageSize, progress: &next}
			if err := w.part(pages, s.part); err != nil {
				return err
			}
			if !next.done {
				return guest.Delete(headKey)
			}
			head.Groups, head.Sum = next.groups, next.sum
			n, err := putHead(guest, name, head)
			if err != nil {
				return err
			}
			next.written += n
			return putClock(tx, clock)
		})
		if err != nil {
			return 0, fmt.Errorf("saving the snapshot of %s: %w", name, err)
		}
		p = next
	}
	return p.written, nil
}

// SaveHead replaces the head of a snapshot whose pages stay as they are.
func (s *Store) SaveHead(name string, head Head, clock Clock) error {
	err := s.update(func(tx *bbolt.Tx) error {
		guest := tx.Bucket(guestsBucket).Bucket([]byte(name))
		if guest == nil {
			return ErrNotFound
		}
		if _, err := putHead(guest, name, head); err != nil {
			return err
		}
		return putClock(tx, clock)
	})
	if err != nil {
		return fmt.Errorf("saving the head of the snapshot of %s: %w", name, err)
	}
	return nil
}

// Head returns a guest's snapshot without its pages; ErrNotFound or ErrDamaged
// if there is none that can be used.
func (s *Store) Head(name string) (head Head, err error) {
	defer faultToError(&err)()
	err = s.db.View(func(tx *bbolt.Tx) error {
		head, err = readHead(tx, name)
		return err
	})
	if err != nil {
		return Head{}, fmt.Errorf("%s: %w", name, err)
	}
	return head, nil
}

// Pages calls page with what Save was given of each page of a guest; b is valid during
// the call. When it returns ErrDamaged, pages may already have been delivered.
type Pages func(page func(index int, b []byte) error) error

// Load calls restore with a guest's snapshot. pages is valid during the call, once. The
// error is restore's, or says why there was no call.
func (s *Store) Load(name string, restore func(head Head, pages Pages) error) (err error) {
	defer faultToError(&err)()
	err = s.db.View(func(tx *bbolt.Tx) error {
		head, err := readHead(tx, name)
		if err != nil {
			return err
		}
		return restore(head, func(page func(int, []byte) error) error { return s.readPages(tx, name, head, page) })
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (s *Store) readPages(tx *bbolt.Tx, name string, head Head, page func(index int, b []byte) error) error {
	pages := tx.Bucket(guestsBucket).Bucket([]byte(name)).Bucket(pagesBucket)
	if pages == nil {
		return fmt.Errorf("%w: no pages", ErrDamaged)
	}
	g, _ := s.groups.Get().(*group)
	if g == nil {
		g = &group{}
	}
	defer s.groups.Put(g)
	groups, sum := 0, uint64(0)
	err := pages.ForEach(func(k, v []byte) error {
		if err := g.decode(k, v, s.pageSize); err != nil {
			return fmt.Errorf("%w: group %.8x: %w", ErrDamaged, k, err)
		}
		groups++
		sum += g.hash
		for k, b := range g.pages {
			if b == nil {
				continue
			}
			if err := page(g.index*groupPages+k, b); err != nil {
				return err
			}
		}
		reached("load: group read")
		return nil
	})
	if err != nil {
		return err
	}
	if groups != head.Groups || sum != head.Sum {
		return fmt.Errorf("%w: %d groups of pages that sum to %#x, should be %d and %#x", ErrDamaged, groups, sum, head.Groups, head.Sum)
	}
	return nil
}

// Drop removes a guest's snapshot, if it has one.
func (s *Store) Drop(name string) error {
	err := s.update(func(tx *bbolt.Tx) error {
		guests := tx.Bucket(guestsBucket)
		if guests.Bucket([]byte(name)) == nil {
			return nil
		}
		return guests.DeleteBucket([]byte(name))
	})
	if err != nil {
		return fmt.Errorf("dropping the snapshot of %s: %w", name, err)
	}
	return nil
}

// Size is how many bytes a guest's snapshot takes in the database, without
// bbolt's own overhead; 0 if it has none or it cannot be read.
func (s *Store) Size(name string) (size int64) {
	var err error
	defer faultToError(&err)()
	err = s.db.View(func(tx *bbolt.Tx) error {
		size = sizeOf(tx, name)
		return nil
	})
	if err != nil {
		return 0
	}
	return size
}

func sizeOf(tx *bbolt.Tx, name string) int64 {
	guest := tx.Bucket(guestsBucket).Bucket([]byte(name))
	if guest == nil {
		return 0
	}
	size := int64(len(guest.Get(headKey)))
	if pages := guest.Bucket(pagesBucket); pages != nil {
		size += int64(pages.Stats().LeafInuse)
	}
	return size
}

// Names lists the guests that have a snapshot.
func (s *Store) Names() (names []string, err error) {
	defer faultToError(&err)()
	err = s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(guestsBucket).ForEachBucket(func(k []byte) error {
			names = append(names, string(k))
			return nil
		})
	})
	return names, err
}

// Clock is what the last Save recorded; the zero Clock if there was none or it
// cannot be read.
func (s *Store) Clock() (c Clock) {
	var err error
	defer faultToError(&err)()
	err = s.db.View(func(tx *bbolt.Tx) (err error) {
		c, err = decodeClock(tx.Bucket(metaBucket).Get(clockKey))
		return err
	})
	if err != nil {
		return Clock{}
	}
	return c
}
