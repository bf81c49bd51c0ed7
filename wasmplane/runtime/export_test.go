package runtime

// PushBytes appends what need not be a frame.
func (m *Mailbox) PushBytes(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.queue = append(m.queue, b)
	m.size += len(b)
	m.signal()
}
