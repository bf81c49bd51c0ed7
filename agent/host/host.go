// Package host finds out what the machine under a node can do: cgroup version,
// capabilities, kernel features, whether it owns the global conntrack table.
package host

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Facts are what Detect has found. They do not change while the machine runs.
type Facts struct {
	// CgroupVersion is 1 (also for the hybrid layout) or 2.
	CgroupVersion int
	// SysResource says whether the process may lower OOM scores and raise
	// resource limits (CAP_SYS_RESOURCE). Some containers and sandboxes with a
	// root user do not have it.
	SysResource bool
	// OpenFiles is how many files a process may have open at most, unless
	// SysResource lets it raise that.
	OpenFiles uint64
	// GlobalConntrack says whether the size of the connection tracking table
	// may be set. It cannot in a network namespace of its own.
	GlobalConntrack bool
}

// cgroupRoot is where the kernel's cgroup tree is mounted, by convention of
// every init system.
const cgroupRoot = "/sys/fs/cgroup"

// needed are the controllers a node cannot do without.
var needed = []string{"cpu", "cpuset", "memory", "pids"}

// Detect looks at the machine. It changes nothing. An error says which kernel
// feature is missing and what would provide it.
func Detect() (Facts, error) {
	var f Facts
	version, err := cgroupVersion()
	if err != nil {
		return f, err
	}
	f.CgroupVersion = version
	if f.SysResource, err = hasCapability(unix.CAP_SYS_RESOURCE); err != nil {
		return f, err
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return f, fmt.Errorf("read the limit of open files: %w", err)
	}
	f.OpenFiles = limit.Max
	f.GlobalConntrack = unix.Access("/proc/sys/net/netfilter/nf_conntrack_max", unix.W_OK) == nil
	return f, nil
}

func cgroupVersion() (int, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return 0, fmt.Errorf("look at %s: %w: mount the cgroup file system", cgroupRoot, err)
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		b, err := os.ReadFile(cgroupRoot + "/cgroup.controllers")
		if err != nil {
			return 0, err
		}
		return 2, missingControllers(strings.Fields(string(b)))
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0, err
	}
	return 1, missingControllers(controllersV1(string(b)))
}

// controllersV1 returns the controllers of the mounted v1 hierarchies from the
// content of /proc/self/cgroup, lines of "ID:controller,controller:path".
func controllersV1(content string) []string {
	var controllers []string
	for line := range strings.Lines(content) {
		if parts := strings.SplitN(line, ":", 3); len(parts) == 3 {
			controllers = append(controllers, strings.Split(parts[1], ",")...)
		}
	}
	return controllers
}

func missingControllers(have []string) error {
	for _, c := range needed {
		if !slices.Contains(have, c) {
			return fmt.Errorf("the kernel offers no cgroup controller %q: enable it (on some boards: cgroup_enable=%s on the kernel command line)", c, c)
		}
	}
	return nil
}

// hasCapability reports whether the process has the capability in effect.
func hasCapability(capability uint) (bool, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return false, err
	}
	defer f.Close()
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		if rest, ok := strings.CutPrefix(scanner.Text(), "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(rest), 16, 64)
			if err != nil {
				return false, fmt.Errorf("read capabilities from /proc/self/status: %w", err)
			}
			return set&(1<<capability) != 0, nil
		}
	}
	return false, errors.Join(errors.New("no CapEff in /proc/self/status"), scanner.Err())
}
