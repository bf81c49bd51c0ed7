package runtime

import (
	"encoding/binary"
	"fmt"
	"iter"
	"os"

	"golang.org/x/sys/unix"
)

// PageSize is the unit of Dirty, in bytes.
var PageSize = os.Getpagesize()

// Bits of an entry of /proc/PID/pagemap, from the kernel's
// Documentation/admin-guide/mm/pagemap.rst.
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageFile    = 1 << 61 // still the module's image, shared by all guests
)

// Dirty returns what the guest's linear memory has that a fresh instance's has not:
// by the index of each page that differs, in units of PageSize and in ascending order,
// its delta, valid until the next one is asked for. All is valid until the next step.
func (i *Instance) Dirty() (iter.Seq2[int, []byte], error) {
	own, err := i.code.own(i.slot)
	if err != nil {
		return nil, err
	}
	fresh, err := i.code.image()
	if err != nil {
		return nil, err
	}
	memory := i.Memory()
	return func(yield func(int, []byte) bool) {
		var delta []byte
		for k := range own {
			start, end := k*PageSize, (k+1)*PageSize
			delta = appendDelta(delta[:0], memory[start:end], fresh[min(start, len(fresh)):min(end, len(fresh))])
			if len(delta) > 0 && !yield(k, delta) {
				return
			}
		}
	}, nil
}

// Resident is how many bytes of memory of its own the guest holds.
func (i *Instance) Resident() (int64, error) {
	own, err := i.code.own(i.slot)
	if err != nil {
		return 0, err
	}
	n := 0
	for range own {
		n++
	}
	return int64(n) * int64(PageSize), nil
}

// restoreBatch is how many pages Restore makes the guest's own with one call.
const restoreBatch = 64

// batch are the deltas of up to restoreBatch pages, one after the other.
type batch struct {
	first  int   // page
	ends   []int // of the deltas
	deltas []byte
}

// Restore makes the linear memory what Dirty has seen: read calls page with the index
// and the delta of each page. It returns how many bytes these pages have. The instance
// must not have run, and is good for nothing after an error.
func (i *Instance) Restore(read func(page func(index int, delta []byte) error) error) (size int64, err error) {
	memory := i.Memory()
	b, _ := i.code.batches.Get().(*batch)
	if b == nil {
		b = &batch{}
	}
	defer i.code.batches.Put(b)
	b.first, b.ends, b.deltas = 0, b.ends[:0], b.deltas[:0]
	var runs []pageRun
	flush := func() error {
		pages := memory[b.first*PageSize : (b.first+len(b.ends))*PageSize]
		populate(pages)
		if len(b.ends) > 0 {
			runs = append(runs, pageRun{b.first, len(b.ends)})
			size += int64(len(pages))
		}
		start := 0
		for k, end := range b.ends {
			if err := applyDelta(pages[k*PageSize:(k+1)*PageSize], b.deltas[start:end]); err != nil {
				return fmt.Errorf("page %d: %w", b.first+k, err)
			}
			start = end
		}
		b.ends, b.deltas = b.ends[:0], b.deltas[:0]
		return nil
	}
	err = read(func(index int, delta []byte) error {
		if index < 0 || index >= len(memory)/PageSize {
			return fmt.Errorf("page %d is beyond the memory of %d bytes", index, len(memory))
		}
		if index != b.first+len(b.ends) || len(b.ends) == restoreBatch {
			if err := flush(); err != nil {
				return err
			}
			b.first = index
		}
		b.deltas = append(b.deltas, delta...)
		b.ends = append(b.ends, len(b.deltas))
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return 0, err
	}
	i.code.needs(runs)
	return size, nil
}

// own returns the indexes of the pages of a slot that are not, or no longer, shared with
// the module's image. They are valid until the next step or call.
func (c *Code) own(s *slot) (iter.Seq[int], error) {
	n := int(s.memory.DataSize(s.store)) / PageSize
	if len(s.entries) < 8*n {
		s.entries = make([]byte, 8*n)
	}
	entries := s.entries[:8*n]
	base := uint64(uintptr(s.memory.Data(s.store))) / uint64(PageSize)
	if _, err := c.pagemap.ReadAt(entries, int64(base*8)); err != nil {
		return nil, fmt.Errorf("reading the page map: %w", err)
	}
	return func(yield func(int) bool) {
		for k := range n {
			e := binary.LittleEndian.Uint64(entries[8*k:])
			if e&(pagePresent|pageSwapped) != 0 && e&pageFile == 0 && !yield(k) {
				return
			}
		}
	}, nil
}

// shared is how many pages of the module's image were mapped when own was asked.
func (s *slot) shared() (n int) {
	for k := 0; k < len(s.entries); k += 8 {
		if e := binary.LittleEndian.Uint64(s.entries[k:]); e&pagePresent != 0 && e&pageFile != 0 {
			n++
		}
	}
	return n
}

// pageRun is pages of a linear memory, one after the other.
type pageRun struct{ first, count int }

// runsOf puts pages together, which are in ascending order.
func runsOf(pages iter.Seq[int]) iter.Seq[pageRun] {
	return func(yield func(pageRun) bool) {
		run := pageRun{}
		for k := range pages {
			if k == run.first+run.count {
				run.count++
				continue
			}
			if run.count > 0 && !yield(run) {
				return
			}
			run = pageRun{k, 1}
		}
		if run.count > 0 {
			yield(run)
		}
	}
}

// drop makes pages the image's again, or zeros where it has none.
func drop(pages []byte) error {
	if err := unix.Madvise(pages, unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("dropping pages of a guest: %w", err)
	}
	return nil
}
