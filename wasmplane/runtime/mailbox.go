package runtime

import (
	"context"
	"sync"
	"time"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
)

// highWater is how many bytes a mailbox holds before Room makes its caller wait.
const highWater = 1 << 20

// Mailbox queues frames for a guest. It outlives the guest's residence in
// memory. Safe for concurrent use; the zero value is not ready, see NewMailbox.
type Mailbox struct {
	arrived func() // called after each Push, without locks held

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever something changed and somebody waits
	queue   [][]byte      // whole frames; the first may be partly read
	size    int
	taken   int64 // bytes that were read in all
	parked  int64 // taken, once the latest Park frame is read
}

// NewMailbox returns an empty mailbox. arrived is called after each push; it
// must not block.
func NewMailbox(arrived func()) *Mailbox {
	return &Mailbox{arrived: arrived}
}

// Room waits until the mailbox is not full. It returns ctx's error if ctx ends
// first.
func (m *Mailbox) Room(ctx context.Context) error {
	m.mu.Lock()
	for m.size > highWater {
		changed := m.waitChannel()
		m.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
		m.mu.Lock()
	}
	m.mu.Unlock()
	return ctx.Err()
}

// Fill is how full the mailbox is. Above 1 Room waits.
func (m *Mailbox) Fill() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return float64(m.size) / highWater
}

// Push appends a frame. It never blocks; who pushes much asks for Room first.
func (m *Mailbox) Push(kind abi.Kind, stream uint32, payload []byte) {
	m.mu.Lock()
	m.append(kind, stream, payload)
	m.mu.Unlock()
	m.arrived()
}

// append queues a frame; m.mu is held.
func (m *Mailbox) append(kind abi.Kind, stream uint32, payload []byte) {
	b := make([]byte, 0, abi.HeaderSize+len(payload))
	b = abi.FrameHeader{Kind: kind, Stream: stream, Length: uint32(len(payload))}.Append(b)
	b = append(b, payload...)
	m.queue = append(m.queue, b)
	m.size += len(b)
	m.signal()
}

// Empty reports whether there is nothing to read.
func (m *Mailbox) Empty() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.queue) == 0
}

// Reset drops everything.
func (m *Mailbox) Reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.queue, m.size = nil, 0
	m.signal()
}

// read copies what is there into p and never blocks.
func (m *Mailbox) read(p []byte) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for n < len(p) && len(m.queue) > 0 {
		k := copy(p[n:], m.queue[0])
		n += k
		m.queue[0] = m.queue[0][k:]
		if len(m.queue[0]) == 0 {
			m.queue[0] = nil
			m.queue = m.queue[1:]
		}
	}
	if len(m.queue) == 0 {
		m.queue = nil
	}
	m.size -= n
	m.taken += int64(n)
	if n > 0 {
		m.signal()
	}
	return n
}

// wait blocks until the mailbox has something to read or d is over, and reports
// whether it has.
func (m *Mailbox) wait(d time.Duration) bool {
	var timeout <-chan time.Time
	for {
		m.mu.Lock()
		if len(m.queue) > 0 {
			m.mu.Unlock()
			return true
		}
		if d <= 0 {
			m.mu.Unlock()
			return false
		}
		changed := m.waitChannel()
		m.mu.Unlock()
		if timeout == nil {
			timer := time.NewTimer(d)
			defer timer.Stop()
			timeout = timer.C
		}
		select {
		case <-changed:
		case <-timeout:
			d = 0
		}
	}
}

// park queues a Park frame if there is nothing else to read, and reports whether
// it did.
func (m *Mailbox) park() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.queue) > 0 {
		return false
	}
	m.append(abi.FramePark, 0, nil)
	m.parked = m.taken + abi.HeaderSize
	return true
}

// unpark forgets that the reader was told to leave.
func (m *Mailbox) unpark() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.parked = -1
}

// mayLeave reports whether the reader may leave: nothing is there to be read, or it
// has read up to a Park frame and no further.
func (m *Mailbox) mayLeave() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.queue) == 0 || m.taken == m.parked
}

func (m *Mailbox) waitChannel() <-chan struct{} {
	if m.changed == nil {
		m.changed = make(chan struct{})
	}
	return m.changed
}

func (m *Mailbox) signal() {
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
}
