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
	c.spare.task.Wait()
}

// AppendDelta and ApplyDelta are for tests that make pages themselves.
var (
	AppendDelta = appendDelta
	ApplyDelta  = applyDelta
)
