package snapshot

import (
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// batchDelay is how long a change waits for others to share its commit: each costs
// the disk two waits and some pages. bbolt's own Batch commits in a goroutine of
// its own, where a panic over a damaged page ends the process.
const batchDelay = 20 * time.Millisecond

// batchMost is how many changes share a commit at most. Each may take partBytes.
const batchMost = 8

// change is what one caller wants done.
type change struct {
	apply func(*bbolt.Tx) error
	err   error
	done  chan struct{}
}

// update applies f in a transaction, which it shares with other goroutines. f may
// be called more than once.
func (s *Store) update(f func(*bbolt.Tx) error) error {
	c := &change{apply: f, done: make(chan struct{})}
	s.mu.Lock()
	s.queue = append(s.queue, c)
	leads := len(s.queue) == 1
	s.mu.Unlock()
	if leads {
		time.Sleep(s.delay)
		s.commit()
	}
	<-c.done
	return c.err
}

// commit applies all changes together, or else each for itself.
func (s *Store) commit() {
	s.committing.Lock()
	defer s.committing.Unlock()
	s.mu.Lock()
	all := s.queue
	s.queue = nil
	s.mu.Unlock()
	for some := range slices.Chunk(all, batchMost) {
		err := s.transact(some)
		for _, c := range some {
			c.err = err
			if err != nil && len(some) > 1 {
				c.err = s.transact([]*change{c})
			}
			close(c.done)
		}
	}
}

func (s *Store) transact(all []*change) error {
	s.mu.Lock()
	broken := s.broken
	s.mu.Unlock()
	if broken != nil {
		return broken
	}
	panicked := true
	err := func() (err error) {
		defer faultToError(&err)()
		err = s.db.Update(func(tx *bbolt.Tx) error {
			for _, c := range all {
				if err := c.apply(tx); err != nil {
					return err
				}
				reached("commit: change applied")
			}
			return nil
		})
		reached("commit: done")
		panicked = false
		return err
	}()
	if panicked {
		s.mu.Lock()
		s.broken = err
		s.mu.Unlock()
	}
	return err
}
