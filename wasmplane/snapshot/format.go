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
	"iter"
	"net/http"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/s2"
	"go.etcd.io/bbolt"
)

// Version of the format.
const Version = "2"

// groupPages is how many pages are compressed, and written, together. More
// compress better, fewer rewrite less around a changed page.
const groupPages = 16

// maxPart is how much there may be of a page, in pages.
const maxPart = 2

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

// Stream is a watch that stays open in the host while its guest sleeps.
type Stream struct {
	ID     uint32      `json:"id"`
	URL    string      `json:"url"`
	Header http.Header `json:"header"`
	// Revision is the resourceVersion up to which the guest has seen events.
	Revision string `json:"revision"`
	// Members is a digest of the set of objects that the guest knows, and Count how
	// many these are, if MembersKnown.
	MembersKnown bool   `json:"membersKnown,omitempty"`
	Members      uint64 `json:"members,omitempty"`
	Count        int    `json:"count,omitempty"`
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

func putHead(guest *bbolt.Bucket, name string, head Head) (written int, err error) {
	b, err := json.Marshal(head)
	if err != nil {
		return 0, err
	}
	b = append(binary.LittleEndian.AppendUint64(nil, textHash(name, b)), b...)
	return len(b), guest.Put(headKey, b)
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
