package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupMount = "/sys/fs/cgroup"

// joinScript makes a shell that is in the node's namespaces join its control
// groups and become the program that its arguments name. With cgroup v2 that is
// a leaf, since inner groups may hold no processes; with v1 it is the top of
// each hierarchy.
const joinScript = `cd ` + cgroupMount + ` &&
if [ -e ` + leafName + `/cgroup.procs ]; then echo 0 >` + leafName + `/cgroup.procs
else for group in *; do echo 0 >"$group/cgroup.procs"; done; fi && cd / && exec "$@"`

// leafName is the group of the node's own processes with cgroup v2.
const leafName = "init"

// removeTimeout is how long ended processes may still occupy their groups.
const removeTimeout = 10 * time.Second

// cgroup is the node's group in one mounted hierarchy.
type cgroup struct {
	mount   string // where the hierarchy is mounted
	options string // v1: its mount options, as "memory" or "name=systemd"
	v2      bool
	path    string // the node's group
}

// findCgroups returns the group of the given name in every mounted hierarchy.
func findCgroups(name string) ([]cgroup, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	groups := parseCgroups(string(b), name)
	if len(groups) == 0 {
		return nil, errors.New("no cgroup file system is mounted below " + cgroupMount)
	}
	return groups, nil
}

func parseCgroups(mountinfo, name string) []cgroup {
	var groups []cgroup
	for line := range strings.Lines(mountinfo) {
		// id parent device root mountpoint options… - type source superoptions
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 || !strings.HasPrefix(left[4], cgroupMount) {
			continue
		}
		g := cgroup{mount: left[4], v2: right[0] == "cgroup2", path: filepath.Join(left[4], name)}
		switch right[0] {
		case "cgroup":
			options := slices.DeleteFunc(strings.Split(right[2], ","), func(o string) bool {
				return o == "rw" || o == "ro" || o == "xattr" || strings.HasPrefix(o, "release_agent=")
			})
			g.options = strings.Join(options, ",")
		case "cgroup2":
		default:
			continue
		}
		groups = append(groups, g)
	}
	return groups
}

// unified reports whether cgroup v2 is all there is.
func unified(groups []cgroup) bool { return len(groups) == 1 && groups[0].v2 }

// makeCgroups creates the groups, ready for processes.
func makeCgroups(groups []cgroup) error {
	for _, g := range groups {
		if err := os.Mkdir(g.path, 0o755); err != nil {
			return fmt.Errorf("make the node's control group: %w", err)
		}
		// A new cpuset group has no processors and no memory.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(g.mount, file))
			if errors.Is(err, fs.ErrNotExist) || g.v2 {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(g.path, file), value, 0)
			}
			if err != nil {
				return fmt.Errorf("make the node's control group: %w", err)
			}
		}
		if unified(groups) {
			for _, controller := range []string{"cpu", "cpuset", "memory", "pids", "io"} {
				if err := os.WriteFile(filepath.Join(g.mount, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
					return fmt.Errorf("give the node's control group the controller %s: %w", controller, err)
				}
			}
		}
	}
	return nil
}

// joinCgroups moves this process into the groups and returns the files through
// which it can go back.
func joinCgroups(groups []cgroup) (home []string, err error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	paths := map[string]string{} // v1 controllers, or "" for v2: path of this process
	for line := range strings.Lines(string(b)) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 {
			paths[parts[1]] = parts[2]
		}
	}
	for _, g := range groups {
		path, ok := paths[g.options]
		if !ok {
			return home, fmt.Errorf("this process has no control group in %s", g.mount)
		}
		if err := os.WriteFile(filepath.Join(g.path, "cgroup.procs"), []byte("0"), 0); err != nil {
			return home, fmt.Errorf("join the node's control group: %w", err)
		}
		home = append(home, filepath.Join(g.mount, path, "cgroup.procs"))
	}
	return home, nil
}

// leaveCgroups moves this process back to where it was.
func leaveCgroups(home []string) error {
	var errs []error
	for _, procs := range home {
		if err := os.WriteFile(procs, []byte("0"), 0); err != nil {
			errs = append(errs, fmt.Errorf("leave the node's control group: %w", err))
		}
	}
	return errors.Join(errs...)
}

// mountCgroups mounts the hierarchies anew inside the node's control group
// namespace, where their top is the node's group.
func mountCgroups(groups []cgroup) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if unified(groups) {
		if err := mount("cgroup2", cgroupMount, "cgroup2", flags, ""); err != nil {
			return err
		}
		leaf := filepath.Join(cgroupMount, leafName)
		if err := os.Mkdir(leaf, 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0)
	}
	if err := mount("tmpfs", cgroupMount, "tmpfs", flags, "mode=755"); err != nil {
		return err
	}
	for _, g := range groups {
		if err := os.Mkdir(g.mount, 0o755); err != nil {
			return err
		}
		fstype, options := "cgroup", g.options
		if g.v2 {
			fstype = "cgroup2"
		} else if strings.HasPrefix(options, "name=") {
			options = "none," + options
		}
		if err := mount(fstype, g.mount, fstype, flags, options); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroups removes the groups and those below them. Their processes have
// been killed, but may take a moment to be gone.
func removeCgroups(ctx context.Context, groups []cgroup) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var errs []error
		for _, g := range groups {
			errs = append(errs, removeGroup(g.path))
		}
		err := errors.Join(errs...)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// removeGroup removes a group and all below it, the lowest first.
func removeGroup(path string) error {
	var dirs []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	for _, d := range slices.Backward(dirs) {
		if e := unix.Rmdir(d); e != nil && !errors.Is(e, unix.ENOENT) {
			err = errors.Join(err, fmt.Errorf("remove control group %s: %w", d, e))
		}
	}
	return err
}
