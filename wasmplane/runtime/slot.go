package runtime

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/bytecodealliance/wasmtime-go/v39"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
)

// maxFree is how many slots are kept for the guests to come. Each holds up to 0.7 MiB of wasmtime's own, above all tables.
const maxFree = 4

// slot is an instance of the module as wasmtime has it, in which a guest lives. When the guest leaves, its pages are dropped,
// and the slot is kept for another that is restored: where the image is mapped already, nobody has to map it again page by page.
// What a slot has besides memory and globals, tables and segments, a program compiled from Go never changes.
type slot struct {
	store    *wasmtime.Store
	instance *wasmtime.Instance
	memory   *wasmtime.Memory
	pump     *wasmtime.Func
	guest    *Instance // whose it is
	entries  []byte    // room for the page map, see own

	// Of one without a guest:
	size   int64 // of the memory, in bytes
	mapped int   // how many pages of the image are
}

// makeSlot makes a slot for the guest.
func (i *Instance) makeSlot() error {
	c := i.code
	module, err := c.acquire()
	if err != nil {
		return err
	}
	s := &slot{}
	s.store = wasmtime.NewStoreWithData(c.engine, s)
	i.enter(s)
	i.resetDeadline()
	c.ticker.enter() // for a start function
	defer c.ticker.leave()
	if s.instance, err = c.linker.Instantiate(s.store, module); err != nil {
		i.broken = true
		i.Close()
		return fmt.Errorf("instantiating the module: %s", trapCause(err.Error()))
	}
	s.memory = s.instance.GetExport(s.store, "memory").Memory()
	s.pump = s.instance.GetFunc(s.store, abi.PumpExport)
	if s.memory == nil || s.pump == nil {
		i.broken = true
		i.Close()
		return errors.New("instantiating the module: its exports have the wrong types")
	}
	return nil
}

// slots are those without a guest. They leave with the module.
type slots struct {
	making sync.WaitGroup

	// Guarded by Code.mu. None of these slots is counted in Code.instances.
	free     []*slot // as fresh ones, but for globals and the size of memory; those first of whose image most is mapped
	spare    *slot   // the same, and has pages that the next guest needs, see Prepare
	prepares bool
	pristine *slot                  // nobody has been in it
	image    []byte                 // the memory of pristine
	reusable bool                   // no page of it is the slot's own before somebody writes
	needed   [spareMemory][]pageRun // by the latest guests to be restored
	restores int
}

// takeSlot returns a slot for a guest whose memory has a size, or nil: for one that begins, or if there is none.
func (c *Code) takeSlot(size int64) *slot {
	if size == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.slots.spare; s != nil && s.size <= size {
		c.slots.spare = nil
		c.instances++
		return s
	}
	if k := slices.IndexFunc(c.slots.free, func(s *slot) bool { return s.size <= size }); k >= 0 {
		return c.takeFree(k)
	}
	return nil
}

// takeFree takes the k-th of those that are free; Code.mu is held.
func (c *Code) takeFree(k int) *slot {
	s := c.slots.free[k]
	c.slots.free = slices.Delete(c.slots.free, k, k+1)
	c.instances++
	return s
}

// putSlot is what a guest leaves: kept for others, if it is sound and there is room.
func (c *Code) putSlot(s *slot, sound bool) {
	if sound = sound && c.clean(s) == nil; !sound {
		s.store.Close()
		c.release()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	free := c.slots.free
	k, _ := slices.BinarySearchFunc(free, s.mapped, func(f *slot, mapped int) int { return mapped - f.mapped })
	if free = slices.Insert(free, k, s); len(free) > maxFree {
		free[maxFree].store.Close()
		free = slices.Delete(free, maxFree, len(free))
	}
	c.slots.free = free
	c.leave()
}

var errNotReusable = errors.New("the module's image is not shared with its file")

// clean drops all pages that are not the image's.
func (c *Code) clean(s *slot) error {
	c.mu.Lock()
	reusable := c.slots.reusable
	c.mu.Unlock()
	if !reusable {
		return errNotReusable
	}
	own, err := c.own(s)
	if err != nil {
		return err
	}
	memory := s.memory.UnsafeData(s.store)
	s.size, s.mapped = int64(len(memory)), s.shared()
	for r := range runsOf(own) {
		if err := drop(memory[r.first*PageSize : (r.first+r.count)*PageSize]); err != nil {
			return err
		}
	}
	return nil
}

// image is the linear memory of a guest that begins, to be read only. It is valid as long as the caller has an instance. The
// pages that are read stay mapped.
func (c *Code) image() ([]byte, error) {
	c.mu.Lock()
	image := c.slots.image
	c.mu.Unlock()
	if image != nil {
		return image, nil
	}
	i, err := c.Instantiate(unused())
	if err != nil {
		return nil, fmt.Errorf("making a guest to compare with: %w", err)
	}
	own, err := c.own(i.slot)
	if err != nil {
		i.Close()
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave()
	if c.slots.pristine != nil { // somebody was faster
		i.store.Close()
		return c.slots.image, nil
	}
	c.slots.pristine, c.slots.image, c.slots.reusable = i.slot, i.Memory(), true
	for range own {
		c.slots.reusable = false
		break
	}
	return c.slots.image, nil
}

// DropSlots releases the memory of slots without a guest.
func (c *Code) DropSlots() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropSlots()
}

// dropSlots is DropSlots with c.mu held.
func (c *Code) dropSlots() {
	l := &c.slots
	for _, s := range l.free {
		s.store.Close()
	}
	if l.spare != nil {
		l.spare.store.Close()
	}
	l.free, l.spare = nil, nil
}
