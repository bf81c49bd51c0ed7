package runtime

import (
	"cmp"
	goruntime "runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
)

const (
	// maxSpare bounds what a spare holds, in pages: about what a controller has of its
	// own.
	maxSpare = 768

	// spareMemory is how many restores decide which pages these are.
	spareMemory = 8
)

// Prepare makes the next restore faster, unless that has been done. It does not wait. A slot, the spare, gets those pages of its
// own that most guests needed lately: to make pages private takes the kernel longer than all the rest of a restore.
func (c *Code) Prepare() {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &c.slots
	if l.spare != nil || l.prepares || c.module == nil || l.restores == 0 {
		return
	}
	l.prepares = true
	needed := l.needed
	var s *slot
	if len(l.free) > 0 { // most guests fit into the smallest
		s = slices.MinFunc(l.free, func(a, b *slot) int { return cmp.Compare(a.size, b.size) })
		c.takeFree(slices.Index(l.free, s))
	}
	l.making.Go(func() {
		var err error
		if s == nil {
			var i *Instance
			if i, err = c.Instantiate(unused()); err == nil {
				s = i.slot
				s.guest, s.size = nil, i.MemorySize()
			}
		}
		if err == nil {
			s.populate(common(needed[:], maxSpare))
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		l.prepares = false
		if err == nil { // without, the next wake takes longer and will tell
			l.spare = s
			c.leave()
		}
	})
}

// needs notes the pages of a guest that was restored.
func (c *Code) needs(pages []pageRun) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slots.needed[c.slots.restores%spareMemory] = pages
	c.slots.restores++
}

// common returns the pages that most of the guests needed, at most so many. Guests are
// laid out alike, and some always need the same.
func common(needed [][]pageRun, most int) []pageRun {
	var by []uint8 // how many need a page, by its index
	for _, runs := range needed {
		for _, r := range runs {
			if end := r.first + r.count; end > len(by) {
				by = append(by, make([]uint8, end-len(by))...)
			}
			for k := range r.count {
				by[r.first+k]++
			}
		}
	}
	pages := make([]int, len(needed)+1) // how many pages so many guests need
	for _, n := range by {
		pages[n]++
	}
	least := len(needed)
	for total := pages[least]; least > 1 && total+pages[least-1] <= most; least-- {
		total += pages[least-1]
	}
	var runs []pageRun
	count := 0
	for k, n := range by {
		if int(n) < least || count == most {
			continue
		}
		if last := len(runs) - 1; last >= 0 && runs[last].first+runs[last].count == k {
			runs[last].count++
		} else {
			runs = append(runs, pageRun{k, 1})
		}
		count++
	}
	return runs
}

// populate makes pages the slot's own, those that it has. Each is touched as well: a hypervisor that keeps the page tables
// itself enters it into them when it is used first, which can take longer than the rest.
func (s *slot) populate(pages []pageRun) {
	memory := s.memory.UnsafeData(s.store)
	touched := byte(0)
	for _, p := range pages {
		if end := (p.first + p.count) * PageSize; end <= len(memory) {
			populate(memory[p.first*PageSize : end])
			for k := p.first * PageSize; k < end; k += PageSize {
				touched += memory[k]
			}
		}
	}
	goruntime.KeepAlive(touched) // or the compiler leaves it out
}

// populate makes pages private in one go, and not with a fault for each, which takes
// longer still, in virtual machines above all. Linux before 5.14 cannot, and faults.
func populate(pages []byte) {
	if len(pages) > 0 {
		_ = unix.Madvise(pages, unix.MADV_POPULATE_WRITE)
	}
}

// unused configures an instance that nobody runs.
func unused() Config {
	return Config{Host: nobody{}, Mailbox: NewMailbox(func() {})}
}

// nobody is the host of an instance that has not run, but for a start function.
type nobody struct{}

func (nobody) Request([]byte) uint32                  { return abi.ErrFormat }
func (nobody) Cancel(uint32)                          {}
func (nobody) Log(string)                             {}
func (nobody) Clock() (wall, monotonic time.Duration) { return 0, 0 }
func (nobody) Random(b []byte)                        { clear(b) }
func (nobody) Linger(time.Duration) time.Duration     { return 0 }
