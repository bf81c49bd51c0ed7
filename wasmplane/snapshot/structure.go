package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// The file format of bbolt, as far as it can make a reader go astray:
// https://github.com/etcd-io/bbolt/tree/main/internal/common (page.go, meta.go,
// bucket.go, inode.go).
const (
	pageHeaderSize = 16
	elementSize    = 16
	bucketSize     = 16
	metaSize       = 64

	branchFlag   = 0x01
	leafFlag     = 0x02
	metaFlag     = 0x04
	freelistFlag = 0x10

	bucketElement = 0x01

	metaMagic   = 0xED0CDAED
	metaVersion = 2
)

// structure walks a bbolt file without mapping it and checks that every page,
// element and bucket lies within bounds, and what commits go by. bbolt trusts
// these numbers: it would read outside of its map, or panic in a goroutine of its
// own; either ends the process.
type structure struct {
	r        io.ReaderAt
	pageSize uint64
	pages    uint64 // in use
	seen     map[uint64]bool
}

// checkStructure checks a file of that size in bytes.
func checkStructure(r io.ReaderAt, size int64, pageSize int) error {
	s := structure{r: r, pageSize: uint64(pageSize), seen: map[uint64]bool{}}
	root, freelist, err := s.meta()
	if err != nil {
		return err
	}
	if s.pages > uint64(size)/s.pageSize {
		return fmt.Errorf("%d bytes long, should be %d pages of %d bytes", size, s.pages, s.pageSize)
	}
	if err := s.freelist(freelist); err != nil {
		return err
	}
	_, err = s.tree(root)
	return err
}

// meta finds the newer of the two meta pages that are whole, by the same rules as
// bbolt: the page's header, which no checksum covers, has no say in it.
func (s *structure) meta() (root, freelist uint64, err error) {
	var newest uint64
	bolt, found := false, false
	for k := range uint64(2) {
		b := make([]byte, pageHeaderSize+metaSize)
		if _, err := s.r.ReadAt(b, int64(k*s.pageSize)); err != nil && err != io.EOF {
			return 0, 0, err
		}
		m := b[pageHeaderSize:]
		sum := fnv.New64a()
		sum.Write(m[:metaSize-8])
		u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(m[at:]) }
		u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(m[at:]) }
		bolt = bolt || u32(0) == metaMagic
		if u32(0) != metaMagic || u32(4) != metaVersion || u64(56) != sum.Sum64() {
			continue
		}
		if flags := binary.LittleEndian.Uint16(b[8:]); flags != metaFlag || uint64(u32(8)) != s.pageSize {
			return 0, 0, fmt.Errorf("meta page %d has flags %#x and is for pages of %d bytes", k, flags, u32(8))
		}
		if txid := u64(48); !found || txid > newest {
			found, newest = true, txid
			root, freelist, s.pages = u64(16), u64(32), u64(40)
		}
	}
	if !bolt {
		return 0, 0, ErrNoStore
	}
	if !found {
		return 0, 0, errors.New("no meta page is whole")
	}
	return root, freelist, nil
}

// read returns a page with its overflow. Each may be reached once.
func (s *structure) read(id uint64) (flags uint16, count int, page []byte, err error) {
	if id < 2 || id >= s.pages {
		return 0, 0, nil, fmt.Errorf("page %d of %d", id, s.pages)
	}
	header := make([]byte, pageHeaderSize)
	if _, err := s.r.ReadAt(header, int64(id*s.pageSize)); err != nil {
		return 0, 0, nil, err
	}
	overflow := uint64(binary.LittleEndian.Uint32(header[12:]))
	if self := binary.LittleEndian.Uint64(header); self != id || overflow >= s.pages-id {
		return 0, 0, nil, fmt.Errorf("page %d says it is page %d with %d more", id, self, overflow)
	}
	for k := id; k <= id+overflow; k++ {
		if s.seen[k] {
			return 0, 0, nil, fmt.Errorf("page %d is used twice", k)
		}
		s.seen[k] = true
	}
	page = make([]byte, (1+overflow)*s.pageSize)
	if _, err := s.r.ReadAt(page, int64(id*s.pageSize)); err != nil {
		return 0, 0, nil, err
	}
	return binary.LittleEndian.Uint16(header[8:]), int(binary.LittleEndian.Uint16(header[10:])), page, nil
}

func (s *structure) freelist(id uint64) error {
	flags, count, page, err := s.read(id)
	if err != nil {
		return err
	}
	ids := page[pageHeaderSize:]
	n := uint64(count)
	if count == 0xffff { // the number did not fit
		n, ids = binary.LittleEndian.Uint64(ids), ids[8:]
	}
	if flags != freelistFlag || n > uint64(len(ids)/8) {
		return fmt.Errorf("page %d is no list of free pages", id)
	}
	for k := range n {
		free := binary.LittleEndian.Uint64(ids[8*k:])
		if free < 2 || free >= s.pages || s.seen[free] {
			return fmt.Errorf("page %d is said to be free", free)
		}
		s.seen[free] = true
	}
	return nil
}

// tree checks a bucket's pages from id down, and returns the first key.
func (s *structure) tree(id uint64) (first []byte, err error) {
	flags, count, page, err := s.read(id)
	if err != nil {
		return nil, err
	}
	switch flags {
	case branchFlag:
		return s.branch(id, count, page)
	case leafFlag:
		return s.leaf(id, count, page)
	}
	return nil, fmt.Errorf("page %d is of unknown kind %#x", id, flags)
}

// element returns the n bytes that element k keeps at pos, of which the first
// ksize are its key; prev is the key before.
func element(id uint64, page []byte, k int, pos, ksize, n uint64, prev []byte) ([]byte, error) {
	at := uint64(pageHeaderSize+k*elementSize) + pos
	if ksize == 0 || at+n > uint64(len(page)) {
		return nil, fmt.Errorf("element %d of page %d is out of bounds", k, id)
	}
	kv := page[at : at+n]
	if k > 0 && bytes.Compare(prev, kv[:ksize]) >= 0 {
		return nil, fmt.Errorf("element %d of page %d is out of order", k, id)
	}
	return kv, nil
}

func (s *structure) branch(id uint64, count int, page []byte) (first []byte, err error) {
	if pageHeaderSize+count*elementSize > len(page) || count == 0 {
		return nil, fmt.Errorf("page %d has %d elements", id, count)
	}
	var key []byte
	for k := range count {
		e := page[pageHeaderSize+k*elementSize:]
		pos, size := uint64(binary.LittleEndian.Uint32(e)), uint64(binary.LittleEndian.Uint32(e[4:]))
		if key, err = element(id, page, k, pos, size, size, key); err != nil {
			return nil, err
		}
		// A commit finds a page in its parent by this key.
		below, err := s.tree(binary.LittleEndian.Uint64(e[8:]))
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(key, below) {
			return nil, fmt.Errorf("element %d of page %d does not have the first key of its page", k, id)
		}
		if k == 0 {
			first = key
		}
	}
	return first, nil
}

func (s *structure) leaf(id uint64, count int, page []byte) (first []byte, err error) {
	if pageHeaderSize+count*elementSize > len(page) {
		return nil, fmt.Errorf("page %d has %d elements", id, count)
	}
	var key []byte
	for k := range count {
		e := page[pageHeaderSize+k*elementSize:]
		u32 := func(at int) uint64 { return uint64(binary.LittleEndian.Uint32(e[at:])) }
		flags, pos, ksize, vsize := u32(0), u32(4), u32(8), u32(12)
		kv, err := element(id, page, k, pos, ksize, ksize+vsize, key)
		if err != nil {
			return nil, err
		}
		key = kv[:ksize]
		if k == 0 {
			first = key
		}
		switch flags {
		case 0:
		case bucketElement:
			if err := s.bucket(id, kv[ksize:]); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("element %d of page %d is of unknown kind %#x", k, id, flags)
		}
	}
	return first, nil
}

// bucket follows a bucket to its pages, or into the page that is part of it.
func (s *structure) bucket(id uint64, b []byte) error {
	if len(b) < bucketSize {
		return fmt.Errorf("page %d has a bucket of %d bytes", id, len(b))
	}
	if root := binary.LittleEndian.Uint64(b); root != 0 {
		_, err := s.tree(root)
		return err
	}
	inline := b[bucketSize:]
	if len(inline) < pageHeaderSize || binary.LittleEndian.Uint16(inline[8:]) != leafFlag ||
		// A commit frees the page with this number, if there is one.
		binary.LittleEndian.Uint64(inline) != 0 || binary.LittleEndian.Uint32(inline[12:]) != 0 {
		return fmt.Errorf("page %d has a bucket without a page", id)
	}
	_, err := s.leaf(id, int(binary.LittleEndian.Uint16(inline[10:])), inline)
	return err
}
