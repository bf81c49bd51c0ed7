package runtime

import (
	"fmt"
	goruntime "runtime"

	"golang.org/x/sys/unix"
)

// guestNice is by how much less urgent guests are than the rest of the process. The
// kernel gives a thread about a tenth of the time of one that is ten steps before it,
// see sched(7), and runs the latter at once when it has something to do.
const guestNice = 10

// priorities are what a thread changes between when it enters and leaves a guest. So
// nobody who waits for the API server, and no guest that is on its way into memory,
// waits for a guest that computes.
type priorities struct {
	host, guest int  // nice values
	change      bool // whether this process may: it needs CAP_SYS_NICE to go back
}

func newPriorities() (priorities, error) {
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return priorities{}, fmt.Errorf("reading the priority of the process: %w", err)
	}
	p := priorities{host: 20 - raw, change: true} // the kernel returns it as 40 to 1
	p.guest = min(p.host+guestNice, 19)
	tried := make(chan bool)
	go func() {
		goruntime.LockOSThread() // for good: a thread that cannot go back ends here
		tried <- p.enter() && p.leave()
	}()
	p.change = <-tried
	return p, nil
}

// enter gives this thread the guests' priority. The goroutine must be locked to it.
func (p priorities) enter() bool {
	return p.change && unix.Setpriority(unix.PRIO_PROCESS, 0, p.guest) == nil
}

// leave undoes enter.
func (p priorities) leave() bool {
	return p.change && unix.Setpriority(unix.PRIO_PROCESS, 0, p.host) == nil
}
