package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"go.etcd.io/bbolt"
)

var damages = flag.Int("damages", 200, "how many files with random damage are tried")

// damaged is a store's file to damage, and what was in it.
type damaged struct {
	t     testing.TB
	dir   string
	file  []byte
	heads map[string]Head
	pages map[string]contents
}

// newDamaged makes a store with some guests, one of them with several bbolt
// pages, and with free pages.
func newDamaged(t testing.TB, guests int) *damaged {
	t.Helper()
	d := &damaged{t: t, dir: t.TempDir(), heads: map[string]Head{}, pages: map[string]contents{}}
	path := filepath.Join(d.dir, "snapshots.db")
	s := openTest(t, path)
	random := rand.New(rand.NewPCG(9, 9))
	for g := range guests + 1 {
		name := fmt.Sprint("guest-", g)
		pages := contents{}
		for range 1 + 150*(g%2) {
			pages[random.IntN(4000)] = page(random)
		}
		head := testHead(random)
		if _, err := s.Save(name, head, Clock{Monotonic: 1e12}, pages.all()); err != nil {
			t.Fatal(err)
		}
		d.heads[name], d.pages[name] = head, pages
	}
	if guests > 0 { // leaves free pages
		if err := s.Drop("guest-0"); err != nil {
			t.Fatal(err)
		}
		delete(d.heads, "guest-0")
	}
	s.Close()
	var err error
	if d.file, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return d
}

// outcome of one damage.
type outcome struct {
	aside bool // put aside as a whole
	lost  int  // snapshots that were damaged or gone
}

// try has Open and everything else meet a damaged file. A panic or a memory fault
// ends the test's process.
func (d *damaged) try(what string, file []byte) outcome {
	d.t.Helper()
	path := filepath.Join(d.dir, "snapshots.db")
	os.Remove(path + ".damaged")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		d.t.Fatal(err)
	}
	s, err := Open(path, testIdentity, pageSize, func(string) {})
	if err != nil {
		d.t.Errorf("%s: %v", what, err)
		return outcome{}
	}
	defer s.Close()
	s.delay, s.db.NoSync = 0, true
	var o outcome
	if _, err := os.Stat(path + ".damaged"); err == nil {
		o.aside = true
	}
	if c := s.Clock(); c.Monotonic != 1e12 && c != (Clock{}) {
		d.t.Errorf("%s: clock %v", what, c)
	}
	for name, want := range d.heads {
		head, pages, err := load(s, name)
		switch {
		case errors.Is(err, ErrDamaged), errors.Is(err, ErrNotFound):
			o.lost++
		case err != nil:
			d.t.Errorf("%s: %s: %v", what, name, err)
		case !same(head, want) || !reflect.DeepEqual(pages, d.pages[name]):
			d.t.Errorf("%s: %s: something else was loaded", what, name)
		}
	}
	// It works as before, whatever is left in it.
	names, err := s.Names()
	if err != nil {
		d.t.Errorf("%s: names: %v", what, err)
	}
	fresh := contents{3: bytes.Repeat([]byte{7}, pageSize), 700: make([]byte, pageSize)}
	for _, name := range append(names, "guest-1") {
		if _, err := s.Save(name, Head{Revision: 5}, Clock{}, fresh.all()); err != nil {
			d.t.Errorf("%s: saving %s: %v", what, name, err)
			continue
		}
		head, pages, err := load(s, name)
		if err != nil || head.Revision != 5 || !reflect.DeepEqual(pages, fresh) {
			d.t.Errorf("%s: %s saved anew: %v", what, name, err)
		}
		if err := s.Drop(name); err != nil {
			d.t.Errorf("%s: dropping %s: %v", what, name, err)
		}
	}
	return o
}

func TestSoundFile(t *testing.T) {
	d := newDamaged(t, 3)
	if o := d.try("nothing", d.file); o != (outcome{}) {
		t.Errorf("%+v", o)
	}
}

func TestTruncatedFile(t *testing.T) {
	d := newDamaged(t, 3)
	size := os.Getpagesize()
	for n := 0; n < len(d.file); n += size {
		for _, cut := range []int{n, n + size/3} {
			o := d.try(fmt.Sprintf("cut to %d bytes", cut), d.file[:min(cut, len(d.file))])
			if n < 2*size && !o.aside && cut > 0 {
				t.Errorf("a file of %d bytes was not put aside", cut)
			}
		}
	}
}

// TestDamagedPages has what a disk or a crash does to whole pages: lost writes,
// writes to the wrong place, pages from before.
func TestDamagedPages(t *testing.T) {
	d := newDamaged(t, 3)
	older := newDamaged(t, 2)
	size := os.Getpagesize()
	random := rand.New(rand.NewPCG(21, 1))
	for at := 0; at < len(d.file); at += size {
		for what, with := range map[string][]byte{
			"zeroed":              make([]byte, size),
			"all ones":            bytes.Repeat([]byte{0xff}, size),
			"from another place":  d.file[random.IntN(len(d.file)/size)*size:][:size],
			"from another file":   older.file[min(at, len(older.file)-size):][:size],
			"half from elsewhere": append(bytes.Clone(d.file[at:at+size/2]), d.file[random.IntN(len(d.file)/size)*size:][size/2:size]...),
		} {
			file := bytes.Clone(d.file)
			copy(file[at:], with)
			d.try(fmt.Sprintf("page %d %s", at/size, what), file)
		}
	}
}

// TestDamagedBits flips bits: first in what bbolt finds its way by, each header
// and the elements behind it, then anywhere.
func TestDamagedBits(t *testing.T) {
	d := newDamaged(t, 3)
	random := rand.New(rand.NewPCG(22, uint64(*damages)))
	size := os.Getpagesize()
	aside := 0
	for range *damages {
		file := bytes.Clone(d.file)
		at := random.IntN(len(file))
		flips := 1
		switch random.IntN(4) {
		case 0: // header
			at = at/size*size + random.IntN(pageHeaderSize)
		case 1: // elements
			at = at/size*size + pageHeaderSize + random.IntN(20*elementSize)
		case 2:
			flips = 2 + random.IntN(20)
		}
		file[at] ^= 1 << random.IntN(8)
		for range flips - 1 {
			file[random.IntN(len(file))] ^= 1 << random.IntN(8)
		}
		if d.try(fmt.Sprintf("%d bits, the first in byte %#x", flips, at), file).aside {
			aside++
		}
	}
	if aside == 0 || aside == *damages {
		t.Errorf("put aside %d times of %d", aside, *damages)
	}
}

// TestNewerMetaPageDecides: the tree that is checked must be the one that bbolt
// will use. The header of a meta page is not covered by its checksum.
func TestNewerMetaPageDecides(t *testing.T) {
	d := newDamaged(t, 3)
	size := os.Getpagesize()
	newer := 0
	if txid := func(k int) uint64 { return binary.LittleEndian.Uint64(d.file[k*size+pageHeaderSize+48:]) }; txid(1) > txid(0) {
		newer = 1
	}
	root := int(binary.LittleEndian.Uint64(d.file[newer*size+pageHeaderSize+16:]))
	file := bytes.Clone(d.file)
	binary.LittleEndian.PutUint16(file[newer*size+8:], 0)           // the newer meta page looks like none
	binary.LittleEndian.PutUint32(file[root*size+12:], 1<<31-1)     // and its tree
	binary.LittleEndian.PutUint16(file[root*size+10:], 0xffff)      // leads
	binary.LittleEndian.PutUint64(file[root*size+16+8:], 1<<40)     // outside
	if o := d.try("flags of the newer meta page", file); !o.aside { // faults if the older one is checked
		t.Error("not put aside")
	}
}

// TestStructureRefuses has numbers that a commit would go by, each wrong in one
// place.
func TestStructureRefuses(t *testing.T) {
	d := newDamaged(t, 3)
	size := os.Getpagesize()
	u16, u32, u64 := binary.LittleEndian.Uint16, binary.LittleEndian.Uint32, binary.LittleEndian.Uint64
	meta := func(file []byte) []byte { // the newer one
		m0, m1 := file[pageHeaderSize:][:metaSize], file[size+pageHeaderSize:][:metaSize]
		if u64(m1[48:]) > u64(m0[48:]) {
			return m1
		}
		return m0
	}
	at := func(file []byte, id uint64) []byte { return file[int(id)*size:] }
	root := func(file []byte) []byte { return at(file, u64(meta(file)[16:])) }
	// value of an element of a leaf, by its key.
	value := func(page []byte, key string) []byte {
		t.Helper()
		for k := range int(u16(page[10:])) {
			e := page[pageHeaderSize+k*elementSize:]
			pos, ksize := u32(e[4:]), u32(e[8:])
			if string(e[pos:pos+ksize]) == key {
				return e[pos+ksize:]
			}
		}
		t.Fatalf("no key %q", key)
		return nil
	}
	inline := func(file []byte) []byte { return value(root(file), "meta")[bucketSize:] }
	branch := func(file []byte) []byte {
		guest := value(at(file, u64(value(root(file), "guests"))), "guest-1")
		page := at(file, u64(value(at(file, u64(guest)), "pages")))
		if u16(page[8:]) != branchFlag {
			t.Fatal("the pages of guest-1 have no branch")
		}
		return page
	}
	element := func(page []byte, k int) []byte { return page[pageHeaderSize+k*elementSize:] }
	put16, put32, put64 := binary.LittleEndian.PutUint16, binary.LittleEndian.PutUint32, binary.LittleEndian.PutUint64
	for name, change := range map[string]func(file []byte){
		"number of an inline page":      func(f []byte) { put64(inline(f), 9) },
		"overflow of an inline page":    func(f []byte) { put32(inline(f)[12:], 1) },
		"kind of an inline page":        func(f []byte) { put16(inline(f)[8:], branchFlag) },
		"count of an inline page":       func(f []byte) { put16(inline(f)[10:], 999) },
		"empty key":                     func(f []byte) { put32(element(inline(f), 0)[8:], 0) },
		"order in an inline page":       func(f []byte) { e := element(inline(f), 0); e[u32(e[4:])] = 'z' },
		"kind of an element":            func(f []byte) { put32(element(inline(f), 0), 0x40) },
		"value becomes a bucket":        func(f []byte) { put32(element(inline(f), 0), bucketElement) },
		"place of an element":           func(f []byte) { put32(element(inline(f), 0)[4:], 1<<31) },
		"size of a value":               func(f []byte) { put32(element(inline(f), 0)[12:], 1<<32-1) },
		"key in a branch":               func(f []byte) { e := element(branch(f), 1); e[u32(e)+3] ^= 1 },
		"order in a branch":             func(f []byte) { e := element(branch(f), 1); e[u32(e)] = 0xff },
		"empty branch":                  func(f []byte) { put16(branch(f)[10:], 0) },
		"page of a branch":              func(f []byte) { put64(element(branch(f), 1)[8:], 1<<60) },
		"page of a branch, a meta page": func(f []byte) { put64(element(branch(f), 1)[8:], 1) },
		"page used twice":               func(f []byte) { b := branch(f); put64(element(b, 1)[8:], u64(element(b, 0)[8:])) },
		"overflow":                      func(f []byte) { put32(branch(f)[12:], 1<<31) },
		"kind of a page":                func(f []byte) { put16(branch(f)[8:], 3) },
		"free page in use":              func(f []byte) { put64(at(f, u64(meta(f)[32:]))[pageHeaderSize:], u64(meta(f)[16:])) },
		"more free pages than fit":      func(f []byte) { put16(at(f, u64(meta(f)[32:]))[10:], 0xfffe) },
		"many more free pages than fit": func(f []byte) { p := at(f, u64(meta(f)[32:])); put16(p[10:], 0xffff); put64(p[16:], 1<<62) },
		"list of free pages is no list": func(f []byte) { put16(at(f, u64(meta(f)[32:]))[8:], leafFlag) },
		"no list of free pages":         func(f []byte) { put64(meta(f)[32:], 1<<64-1) },
		"more pages than there are":     func(f []byte) { put64(meta(f)[40:], 1<<62) },
		"pages of another size":         func(f []byte) { put32(meta(f)[8:], uint32(2*size)) },
	} {
		file := bytes.Clone(d.file)
		change(file)
		sum := fnv.New64a()
		sum.Write(meta(file)[:metaSize-8])
		put64(meta(file)[metaSize-8:], sum.Sum64())
		if err := checkStructure(bytes.NewReader(file), int64(len(file)), size); err == nil {
			t.Errorf("%s: accepted", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

// TestOtherLayouts: a file that bbolt finds nothing wrong with need not be a store.
func TestOtherLayouts(t *testing.T) {
	put := func(b interface{ Put(k, v []byte) error }, k string) error { return b.Put([]byte(k), []byte("x")) }
	guest := func(tx *bbolt.Tx) *bbolt.Bucket { return tx.Bucket(guestsBucket).Bucket([]byte("guest-1")) }
	for name, change := range map[string]func(tx *bbolt.Tx) error{
		"meta is a value": func(tx *bbolt.Tx) error {
			return errors.Join(tx.DeleteBucket(metaBucket), put(tx.Cursor().Bucket(), "meta"))
		},
		"guests is a value": func(tx *bbolt.Tx) error {
			return errors.Join(tx.DeleteBucket(guestsBucket), put(tx.Cursor().Bucket(), "guests"))
		},
		"guest is a value": func(tx *bbolt.Tx) error {
			return errors.Join(tx.Bucket(guestsBucket).DeleteBucket([]byte("guest-1")), put(tx.Bucket(guestsBucket), "guest-1"))
		},
		"head is a bucket": func(tx *bbolt.Tx) error {
			err := guest(tx).Delete(headKey)
			_, err2 := guest(tx).CreateBucket(headKey)
			return errors.Join(err, err2)
		},
		"pages is a value": func(tx *bbolt.Tx) error {
			return errors.Join(guest(tx).DeleteBucket(pagesBucket), put(guest(tx), "pages"))
		},
		"group is a bucket": func(tx *bbolt.Tx) error {
			_, err := guest(tx).Bucket(pagesBucket).CreateBucket([]byte{0, 0, 0, 200})
			return err
		},
		"a bucket in meta": func(tx *bbolt.Tx) error {
			_, err := tx.Bucket(metaBucket).CreateBucket([]byte("x"))
			return err
		},
		"something else": func(tx *bbolt.Tx) error {
			_, err := tx.CreateBucket([]byte("x"))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDamaged(t, 1)
			path := filepath.Join(d.dir, "other.db")
			if err := os.WriteFile(path, d.file, 0o600); err != nil {
				t.Fatal(err)
			}
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(db.Update(change), db.Close()); err != nil {
				t.Fatal(err)
			}
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if o := d.try(name, file); !o.aside {
				t.Error("not put aside")
			}
		})
	}
}

// FuzzCheckStructure: what checkStructure accepts, bbolt can read from end to end,
// and what Open accepts can be used. A fault would end the process. The input is a
// list of bytes to change in a sound file, four for each: its page, its place there
// (two), and its new value. The checksums of the meta pages are made right again.
func FuzzCheckStructure(f *testing.F) {
	d := newDamaged(f, 1)
	size := os.Getpagesize()
	f.Add([]byte{})
	for page := range len(d.file) / size {
		f.Add([]byte{byte(page), 0, 8, 2, byte(page), 0, 10, 99})  // flags and count
		f.Add([]byte{byte(page), 0, 12, 1, byte(page), 0, 20, 99}) // overflow and the first element
	}
	f.Add([]byte{0, 0, 16 + 16, 3, 1, 0, 16 + 16, 3}) // root
	f.Add([]byte{0, 0, 16 + 40, 9, 1, 0, 16 + 32, 3}) // pages in use, free list
	path := filepath.Join(f.TempDir(), "fuzz.db")
	f.Fuzz(func(t *testing.T, changes []byte) {
		file := bytes.Clone(d.file)
		for ; len(changes) >= 4; changes = changes[4:] {
			at := int(changes[0])*size + int(binary.BigEndian.Uint16(changes[1:]))%size
			file[at%len(file)] = changes[3]
		}
		for k := range 2 {
			meta := file[k*size+pageHeaderSize:][:metaSize]
			sum := fnv.New64a()
			sum.Write(meta[:metaSize-8])
			binary.LittleEndian.PutUint64(meta[metaSize-8:], sum.Sum64())
		}
		if checkStructure(bytes.NewReader(file), int64(len(file)), size) != nil {
			return
		}
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		read := 0
		err = db.View(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
				read += readAll(b)
				return nil
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		d.t = t
		d.try("changes", file)
	})
}

// readAll touches every key and value, and sums their bytes.
func readAll(b *bbolt.Bucket) int {
	if b == nil {
		return 0
	}
	n := 0
	_ = b.ForEach(func(k, v []byte) error {
		for _, c := range k {
			n += int(c)
		}
		for _, c := range v {
			n += int(c)
		}
		if v == nil {
			n += readAll(b.Bucket(k))
		}
		return nil
	})
	return n
}
