package runtime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"unsafe"

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

// Dirty returns the pages of the linear memory that a fresh instance may not
// have: each one's index in units of PageSize, and its content, valid until the
// next step. Pages beyond the module's image that hold nothing but zeros are
// left out.
func (i *Instance) Dirty() (iter.Seq2[int, []byte], error) {
	own, err := i.own()
	if err != nil {
		return nil, err
	}
	memory := i.Memory()
	return func(yield func(int, []byte) bool) {
		for k := range own {
			page := memory[k*PageSize : (k+1)*PageSize : (k+1)*PageSize]
			if int64(k)*int64(PageSize) >= i.image && isZero(page) {
				continue
			}
			if !yield(k, page) {
				return
			}
		}
	}, nil
}

// Resident is how many bytes of memory of its own the guest holds.
func (i *Instance) Resident() (int64, error) {
	own, err := i.own()
	if err != nil {
		return 0, err
	}
	n := 0
	for range own {
		n++
	}
	return int64(n) * int64(PageSize), nil
}

// processVMWritev is replaced in tests.
var processVMWritev = unix.ProcessVMWritev

// restoreBatch is how many pages Restore writes with one call.
const restoreBatch = 64

// Restore writes pages into the linear memory, as Dirty has them: read calls page
// with each one's index in units of PageSize and its content.
//
// The kernel copies them, as from another process: a copy from here would fault at
// each page, and the faults take several times as long as all the rest, in virtual
// machines above all.
func (i *Instance) Restore(read func(page func(index int, b []byte) error) error) error {
	memory := i.Memory()
	base := uintptr(unsafe.Pointer(&memory[0]))
	batch := make([]byte, 0, restoreBatch*PageSize)
	var to []unix.RemoteIovec // where its parts belong
	end := uintptr(0)         // of the last part
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		from := []unix.Iovec{{Base: &batch[0]}}
		from[0].SetLen(len(batch))
		n, err := processVMWritev(os.Getpid(), from, to, 0)
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
			// Left out of this kernel, or forbidden to this container.
			n, err = 0, nil
			for _, part := range to {
				n += copy(memory[part.Base-base:][:part.Len], batch[n:])
			}
		}
		if err == nil && n < len(batch) {
			err = unix.EFAULT
		}
		if err != nil {
			return fmt.Errorf("writing to linear memory: %w", err)
		}
		batch, to = batch[:0], to[:0]
		return nil
	}
	err := read(func(index int, b []byte) error {
		if index < 0 || index*PageSize+len(b) > len(memory) {
			return fmt.Errorf("page %d is beyond the memory of %d bytes", index, len(memory))
		}
		if len(batch)+len(b) > cap(batch) {
			if err := flush(); err != nil {
				return err
			}
		}
		batch = append(batch, b...)
		at := base + uintptr(index*PageSize)
		if len(to) > 0 && at == end {
			to[len(to)-1].Len += len(b)
		} else {
			to = append(to, unix.RemoteIovec{Base: at, Len: len(b)})
		}
		end = at + uintptr(len(b))
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// own returns the indexes of the pages that are not, or no longer, shared with
// the module's image. They are valid until the next step or call.
func (i *Instance) own() (iter.Seq[int], error) {
	n := int(i.MemorySize()) / PageSize
	if len(i.entries) < 8*n {
		i.entries = make([]byte, 8*n)
	}
	entries := i.entries[:8*n]
	base := uint64(uintptr(i.memory.Data(i.store))) / uint64(PageSize)
	if _, err := i.code.pagemap.ReadAt(entries, int64(base*8)); err != nil {
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

// isZero compares eight bytes at a time; pages are aligned and a multiple of it.
func isZero(page []byte) bool {
	for _, w := range unsafe.Slice((*uint64)(unsafe.Pointer(&page[0])), len(page)/8) {
		if w != 0 {
			return false
		}
	}
	return true
}
