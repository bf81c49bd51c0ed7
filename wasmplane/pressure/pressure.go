// Package pressure notices that memory becomes scarce, on the machine or in the
// control group of the process.
//
// Where the kernel accounts pressure stalls it tells by itself: a trigger on
// /proc/pressure/memory and on the control group's memory.pressure makes a file
// readable, and costs nothing until then. A control group without that file has
// only its limit, which is compared with its use whenever somebody asks.
//
// https://docs.kernel.org/accounting/psi.html
package pressure

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// stall is the trigger: some task waited for memory for 200 ms of two seconds.
// The kernel accepts windows of whole multiples of two seconds from everybody,
// others only with CAP_SYS_RESOURCE.
const stall = "some 200000 2000000"

// cgroups is where control groups are mounted.
const cgroups = "/sys/fs/cgroup"

const (
	// nearLimit is the part of a control group's limit, in percent, from which on
	// memory is scarce.
	nearLimit = 90
	// reread is how long an answer of Short holds.
	reread = time.Second
)

// Monitor watches the memory of this process's surroundings. Its methods are safe
// for concurrent use.
type Monitor struct {
	triggers []string // pressure files
	groups   []group  // that have none

	mu    sync.Mutex
	read  time.Time // when the groups were
	short bool
}

// group is a control group with a limit of its own.
type group struct {
	limit, usage, stat string // files
	inactive           string // the key in stat of page cache that nobody would miss
}

// New finds out what there is to watch; that may be nothing.
func New() (*Monitor, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("reading the process's control groups: %w", err)
	}
	v2, v1 := parse(string(own))
	m := &Monitor{triggers: []string{"/proc/pressure/memory"}}
	file := filepath.Join(cgroups, v2, "memory.pressure")
	if f, ok := trigger(file); ok && v2 != "" {
		f.Close()
		m.triggers = append(m.triggers, file)
	} else {
		m.groups = limits(cgroups, v2, v1)
	}
	return m, nil
}

// Watch calls short each time the kernel says that memory is scarce, at most once
// in two seconds for each file, until ctx is done. Where the kernel has no
// triggers it does nothing.
func (m *Monitor) Watch(ctx context.Context, short func()) error {
	var set []*os.File
	for _, path := range m.triggers {
		if f, ok := trigger(path); ok {
			set = append(set, f)
		}
	}
	if len(set) == 0 {
		return nil
	}
	if err := watch(ctx, set, short); err != nil {
		return fmt.Errorf("waiting for pressure on memory: %w", err)
	}
	return nil
}

// parse returns the paths of the control groups that account memory, from the
// content of /proc/self/cgroup; empty for a version that does not.
func parse(own string) (v2, v1 string) {
	for line := range strings.Lines(own) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 {
			continue
		}
		if fields[0] == "0" && fields[1] == "" {
			v2 = fields[2]
		}
		if slices.Contains(strings.Split(fields[1], ","), "memory") {
			v1 = fields[2]
		}
	}
	return v2, v1
}

// limits are the group and those that it is in, as far as they have a limit that
// can be read. In a container the path may be the host's, and the container's own
// group is all there is to see.
func limits(root, v2, v1 string) (all []group) {
	for _, version := range []struct {
		root, path                    string
		limit, usage, stat, forgotten string
	}{
		{root, v2, "memory.max", "memory.current", "memory.stat", "inactive_file"},
		{filepath.Join(root, "memory"), v1, "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file"},
	} {
		if version.path == "" {
			continue
		}
		for path := filepath.Join("/", version.path); ; path = filepath.Dir(path) {
			dir := filepath.Join(version.root, path)
			g := group{filepath.Join(dir, version.limit), filepath.Join(dir, version.usage), filepath.Join(dir, version.stat), version.forgotten}
			if _, err := os.Stat(g.limit); err == nil {
				all = append(all, g)
			}
			if path == "/" {
				break
			}
		}
	}
	return all
}

// trigger sets a trigger on a pressure file, if there is one and the kernel takes
// it.
func trigger(path string) (*os.File, bool) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false
	}
	if _, err := unix.Write(fd, []byte(stall+"\x00")); err != nil {
		_ = unix.Close(fd)
		return nil, false
	}
	return os.NewFile(uintptr(fd), path), true
}

// watch calls short each time one of the triggers fires, until ctx is done, and
// closes them.
//
// Go's poller does not ask for the priority events that triggers are, and asking
// twice does not help, since the kernel forgets an event once it has told it. But
// a file with a trigger can be read at any time; so an epoll of our own that looks
// for edges sees it once when it is added and then at each event, and Go's poller
// waits for that epoll.
func watch(ctx context.Context, triggers []*os.File, short func()) error {
	defer func() {
		for _, f := range triggers {
			f.Close()
		}
	}()
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or NewFile leaves it alone
		return err
	}
	epoll := os.NewFile(uintptr(fd), "epoll")
	defer epoll.Close()
	for _, f := range triggers {
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}
		if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, int(f.Fd()), &event); err != nil {
			return err
		}
	}
	events := make([]unix.EpollEvent, len(triggers))
	fired := func() bool {
		n, err := unix.EpollWait(fd, events, 0)
		return err == nil && n > 0
	}
	for fired() { // as they were added
	}
	conn, err := epoll.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { epoll.Close() })()
	err = conn.Read(func(uintptr) bool {
		if fired() {
			short()
		}
		return false
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Short reports whether a control group that has no trigger is near its limit. It
// reads at most once a second.
func (m *Monitor) Short() bool {
	if len(m.groups) == 0 {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := time.Now(); now.Sub(m.read) >= reread {
		m.read = now
		m.short = slices.ContainsFunc(m.groups, group.short)
	}
	return m.short
}

// short reports whether the group is near its limit. One that cannot be read, or
// has no limit, is not.
func (g group) short() bool {
	limit, ok := number(g.limit)
	if !ok {
		return false
	}
	usage, ok := number(g.usage)
	if !ok {
		return false
	}
	stat, err := os.ReadFile(g.stat)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(stat)) {
		if key, value, _ := strings.Cut(strings.TrimSpace(line), " "); key == g.inactive {
			cache, _ := strconv.ParseUint(value, 10, 64)
			usage -= min(usage, cache)
		}
	}
	return usage >= limit/100*nearLimit
}

// number reads a file that holds one.
func number(path string) (uint64, bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64) // "max" is none
	return n, err == nil
}
