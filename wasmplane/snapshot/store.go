// Package snapshot keeps sleeping guests on disk, in a bbolt database.
//
// A snapshot is what a guest has that a fresh instance of its module has not:
// how its pages differ, its globals, and what the plane must know to wake it.
//
//	meta
//	  version    Version, decimal
//	  module     digest of the module the guests are instances of
//	  datastore  identity of the datastore their caches mirror
//	  clock      hash (8 bytes) and Clock as JSON: when a guest was last saved
//	guests
//	  NAME
//	    head     hash (8 bytes) and Head as JSON; not there during a long save
//	    pages    bucket
//	      INDEX  hash (8 bytes), mask (2 bytes), pages compressed with S2
//
// INDEX is a big-endian uint32 that counts groups of groupPages pages; bit k of
// mask says that something of the group's page k is there: its length (uvarint) and
// so many bytes, which mean nothing here. Hashes are xxHash64 of what
// follows them, before compression, with the key in front, so that an entry
// cannot be taken for another. Pages that did not change since the last save are
// recognised by their hash and not written again.
//
// Everything else in the database is either the work of a newer version, of
// another module or of another datastore, or damage; then it is dropped, as a
// guest can always start cold. That is why there is no migration: a change of
// the format is a new Version.
package snapshot

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/s2"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Version of the format.
const Version = "2"

// groupPages is how many pages are compressed, and written, together. More
// compress better, fewer rewrite less around a changed page.
const groupPages = 16

// maxPart is how much there may be of a page, in pages.
const maxPart = 2

// partBytes is how many bytes of groups one transaction takes; bbolt holds them
// twice until it has committed.
const partBytes = 1 << 20

const (
	hashSize = 8
	maskSize = 2
)

var (
	metaBucket   = []byte("meta")
	guestsBucket = []byte("guests")
	pagesBucket  = []byte("pages")

	versionKey   = []byte("version")
	moduleKey    = []byte("module")
	datastoreKey = []byte("datastore")
	clockKey     = []byte("clock")
	headKey      = []byte("head")
)

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

// Stream is a watch that stays open in the host while its guest sleeps.
type Stream struct {
	ID     uint32      `json:"id"`
	URL    string      `json:"url"`
	Header http.Header `json:"header"`
	// Revision is the resourceVersion up to which the guest has seen events.
	Revision string `json:"revision"`
	// Members is a digest of the set of objects that the guest knows, if
	// MembersKnown.
	MembersKnown bool   `json:"membersKnown,omitempty"`
	Members      uint64 `json:"members,omitempty"`
	// Count is how many objects these are; nil: it is not known.
	Count *int `json:"count,omitempty"`
	// Having are hashes of the UIDs of those objects that the guest was told of
	// with a field that its declaration names; nil: it is not known which.
	Having []uint64 `json:"having,omitzero"`
}

// Head is a snapshot without its pages.
type Head struct {
	// Generation is the run of the datastore in which the snapshot was saved.
	Generation string `json:"generation"`
	// Start is the digest of what the guest was started with.
	Start string `json:"start"`
	// Memory is the size of the linear memory in bytes.
	Memory  int64    `json:"memory"`
	Globals []uint64 `json:"globals"`
	// NextTimer is the time on the plane's monotonic clock at which the guest
	// wants to run next; less than 0: none.
	NextTimer time.Duration `json:"nextTimer"`
	// Quiet says that the timer may be late, if the guest's declaration allows it.
	Quiet bool `json:"quiet,omitempty"`
	// Revision is the highest resourceVersion the guest may have seen.
	Revision int64    `json:"revision"`
	Streams  []Stream `json:"streams"`
	// Heartbeats are the UIDs of the objects whose regular changes let the
	// guest's timers wait.
	Heartbeats []string `json:"heartbeats,omitempty"`

	// Groups and Sum tie the pages to the head: how many groups there are, and
	// the sum of their hashes.
	Groups int    `json:"groups"`
	Sum    uint64 `json:"sum"`
}

// Clock is a reading of the plane's monotonic clock and of the wall clock at the
// same moment.
type Clock struct {
	Monotonic time.Duration `json:"monotonic"`
	Wall      time.Time     `json:"wall"`
}

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

func putHead(guest *bbolt.Bucket, name string, head Head) (written int, err error) {
	b, err := json.Marshal(head)
	if err != nil {
		return 0, err
	}
	b = append(binary.LittleEndian.AppendUint64(nil, textHash(name, b)), b...)
	return len(b), guest.Put(headKey, b)
}

// progress is how far a save has come.
type progress struct {
	done    bool
	from    uint32 // the first group that is missing
	groups  int    // before that
	sum     uint64 // of their hashes
	written int    // bytes
}

// writer turns pages into groups, in one transaction.
type writer struct {
	*progress
	bucket   *bbolt.Bucket
	pageSize int

	index  uint32 // of the group under way
	mask   uint16
	raw    []byte // what there is of its pages
	packed []byte // the same, compressed
}

// part goes on with a save until it is done or has written enough bytes.
func (w *writer) part(pages iter.Seq2[int, []byte], enough int) error {
	enough += w.written
	stale := map[string]bool{}
	cursor := w.bucket.Cursor()
	for k, _ := cursor.Seek(groupKey(w.from)); k != nil; k, _ = cursor.Next() {
		stale[string(k)] = true
	}
	w.done = true
	for k, page := range pages {
		index := uint32(k / groupPages)
		if index < w.from {
			continue
		}
		if index != w.index && w.mask != 0 {
			if err := w.flush(stale); err != nil {
				return err
			}
			if w.written >= enough {
				w.done, w.from = false, index
				break
			}
		}
		if len(page) > maxPart*w.pageSize {
			return fmt.Errorf("%d bytes of page %d", len(page), k)
		}
		w.index = index
		w.mask |= 1 << (k % groupPages)
		w.raw = append(binary.AppendUvarint(w.raw, uint64(len(page))), page...)
	}
	if w.mask != 0 {
		if err := w.flush(stale); err != nil {
			return err
		}
	}
	for key := range stale {
		if !w.done && key >= string(groupKey(w.from)) {
			continue
		}
		if err := w.bucket.Delete([]byte(key)); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) flush(stale map[string]bool) error {
	key := groupKey(w.index)
	hash := groupHash(key, w.mask, w.raw)
	w.groups++
	w.sum += hash
	delete(stale, string(key))
	if have := w.bucket.Get(key); len(have) < hashSize || binary.LittleEndian.Uint64(have) != hash {
		w.packed = s2.Encode(w.packed[:cap(w.packed)], w.raw)
		b := make([]byte, 0, hashSize+maskSize+len(w.packed)) // bbolt keeps it until the commit
		b = binary.LittleEndian.AppendUint64(b, hash)
		b = binary.LittleEndian.AppendUint16(b, w.mask)
		b = append(b, w.packed...)
		if err := w.bucket.Put(key, b); err != nil {
			return err
		}
		w.written += len(key) + len(b)
	}
	w.mask, w.raw = 0, w.raw[:0]
	return nil
}

func groupKey(index uint32) []byte { return binary.BigEndian.AppendUint32(nil, index) }

func groupHash(key []byte, mask uint16, raw []byte) uint64 {
	h := xxhash.New()
	h.Write(key)
	h.Write([]byte{byte(mask), byte(mask >> 8)})
	h.Write(raw)
	return h.Sum64()
}

func textHash(name string, b []byte) uint64 {
	h := xxhash.New()
	h.WriteString(name)
	h.Write([]byte{0})
	h.Write(b)
	return h.Sum64()
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

func readHead(tx *bbolt.Tx, name string) (Head, error) {
	guest := tx.Bucket(guestsBucket).Bucket([]byte(name))
	if guest == nil || guest.Get(headKey) == nil {
		return Head{}, ErrNotFound
	}
	head, err := decodeHead(name, guest.Get(headKey))
	if err != nil {
		return Head{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return head, nil
}

func decodeHead(name string, b []byte) (Head, error) {
	if len(b) < hashSize || binary.LittleEndian.Uint64(b) != textHash(name, b[hashSize:]) {
		return Head{}, errors.New("wrong hash of the head")
	}
	var head Head
	d := json.NewDecoder(bytes.NewReader(b[hashSize:]))
	d.DisallowUnknownFields()
	if err := d.Decode(&head); err != nil {
		return Head{}, fmt.Errorf("decoding the head: %w", err)
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

// group is a decoded entry.
type group struct {
	index int
	hash  uint64
	pages [groupPages][]byte // parts of raw; nil: not there
	raw   []byte
}

// decode decodes an entry. What g held before is no longer valid.
func (g *group) decode(k, v []byte, pageSize int) error {
	if len(k) != 4 || len(v) < hashSize+maskSize {
		return errors.New("too short")
	}
	g.index, g.hash = int(binary.BigEndian.Uint32(k)), binary.LittleEndian.Uint64(v)
	mask := binary.LittleEndian.Uint16(v[hashSize:])
	packed := v[hashSize+maskSize:]
	n, err := s2.DecodedLen(packed)
	if most := groupPages * (binary.MaxVarintLen32 + maxPart*pageSize); err != nil || n > most {
		return fmt.Errorf("unpacks to %d bytes, at most %d are possible", n, most)
	}
	g.raw = slices.Grow(g.raw[:0], n)
	if g.raw, err = s2.Decode(g.raw[:n], packed); err != nil {
		return err
	}
	if groupHash(k, mask, g.raw) != g.hash {
		return errors.New("wrong hash")
	}
	rest := g.raw
	for k := range g.pages {
		g.pages[k] = nil
		if mask&(1<<k) == 0 {
			continue
		}
		length, n := binary.Uvarint(rest)
		if n <= 0 || length > uint64(len(rest)-n) {
			return fmt.Errorf("page %d is cut off", k)
		}
		g.pages[k], rest = rest[n:n+int(length):n+int(length)], rest[n+int(length):]
	}
	if len(rest) > 0 {
		return fmt.Errorf("%d bytes are left over", len(rest))
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

func putClock(tx *bbolt.Tx, c Clock) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	b = append(binary.LittleEndian.AppendUint64(nil, textHash(string(clockKey), b)), b...)
	return tx.Bucket(metaBucket).Put(clockKey, b)
}

// decodeClock decodes what putClock wrote.
func decodeClock(b []byte) (c Clock, err error) {
	if len(b) < hashSize || binary.LittleEndian.Uint64(b) != textHash(string(clockKey), b[hashSize:]) {
		return Clock{}, errors.New("wrong hash of the clock")
	}
	if err := json.Unmarshal(b[hashSize:], &c); err != nil {
		return Clock{}, fmt.Errorf("decoding the clock: %w", err)
	}
	return c, nil
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
