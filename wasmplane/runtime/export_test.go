package runtime

// PushBytes appends what need not be a frame.
func (m *Mailbox) PushBytes(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.queue = append(m.queue, b)
	m.size += len(b)
	m.signal()
}

// Prepared is Prepare, and waits until it is done.
func (c *Code) Prepared() {
	c.Prepare()
	c.slots.making.Wait()
}

// Free are the sizes of the slots that wait for a guest, in bytes of memory.
func (c *Code) Free() (sizes []int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.slots.free {
		sizes = append(sizes, s.size)
	}
	return sizes
}

// MaxFree is how many of them there are at most.
const MaxFree = maxFree

// AppendDelta and ApplyDelta are for tests that make pages themselves.
var (
	AppendDelta = appendDelta
	ApplyDelta  = applyDelta
)
