package plane

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

// clock is the monotonic clock of all guests. It runs on while they sleep, while
// the machine is suspended, and across restarts of the process and the machine,
// so that a timer or a deadline in a guest's memory comes out right.
//
// Safe for concurrent use.
type clock struct {
	offset atomic.Int64 // from CLOCK_BOOTTIME to the reading, in nanoseconds
}

func newClock() *clock {
	c := &clock{}
	c.set(abi.BakeClock)
	return c
}

// resume continues from what was saved last. Time that passed since is taken from
// the wall clock; if that was set back meanwhile, no time has passed.
func (c *clock) resume(saved snapshot.Clock) {
	if saved.Monotonic <= abi.BakeClock {
		return
	}
	c.set(saved.Monotonic + max(0, time.Since(saved.Wall)))
}

func (c *clock) set(now time.Duration) { c.offset.Store(int64(now - bootTime())) }

// now reads the clock.
func (c *clock) now() time.Duration { return bootTime() + time.Duration(c.offset.Load()) }

// saved is the reading to keep with a snapshot.
func (c *clock) saved() snapshot.Clock {
	return snapshot.Clock{Monotonic: c.now(), Wall: time.Now().Round(0)}
}

func bootTime() time.Duration {
	var ts unix.Timespec
	// It cannot fail: the clock exists since Linux 2.6.39.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return time.Duration(ts.Nano())
}
