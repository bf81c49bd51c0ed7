package runtime

import (
	"fmt"
	"sync"
)

// pristine is an instance that never runs: its memory is what others are compared with when they are saved. The pages that
// this reads are the file's, and stay mapped for the next save. It leaves with the module.
type pristine struct {
	making sync.Mutex

	// Guarded by making while there is another instance, by Code.mu while there is none.
	instance *Instance // not counted in Code.instances
	memory   []byte
}

// image is the linear memory of a fresh instance, to be read only. The caller has an instance, as long as which it is valid.
func (c *Code) image() ([]byte, error) {
	p := &c.pristine
	p.making.Lock()
	defer p.making.Unlock()
	if p.instance == nil {
		i, err := c.instantiate(unused())
		if err != nil {
			return nil, fmt.Errorf("making a guest to compare with: %w", err)
		}
		c.release()
		p.instance, p.memory = i, i.Memory()
	}
	return p.memory, nil
}

// drop is called with Code.mu held.
func (p *pristine) drop() {
	if p.instance != nil {
		p.instance.store.Close()
		p.instance, p.memory = nil, nil
	}
}
