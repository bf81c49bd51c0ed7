package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// shownSysctls are what the kubelet wants these kernel parameters to be. They
// are global: instead of changing the machine's, the node is shown files that
// have the right values already.
var shownSysctls = map[string]string{
	"vm/overcommit_memory":     "1",
	"kernel/panic":             "10",
	"kernel/panic_on_oops":     "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// runInit is the main function of process 1 in the node's namespaces: it
// prepares them, says so by closing file 3, and collects orphans for ever.
func runInit() int {
	done := os.NewFile(3, "done")
	if err := prepare(os.Getenv(nameVar), os.Getenv(dirVar)); err != nil {
		fmt.Fprintf(done, "prepare the node's namespaces: %v", err)
		return 1
	}
	done.Close()
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for range children {
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 && !errors.Is(err, syscall.EINTR) {
				break
			}
		}
	}
	return 0
}

// prepare gives the namespaces their host name and file systems. Everything
// below /run, /var/lib and /var/log is the node's own; so is what it writes to /etc.
func prepare(name, dir string) error {
	if err := syscall.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	// Found before /sys/fs/cgroup is replaced.
	cgroups, err := findCgroups("")
	if err != nil {
		return err
	}
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for _, d := range []string{"lib", "log", "sysctl"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{filepath.Join(dir, "lib"), "/var/lib", "", unix.MS_BIND, ""},
		{filepath.Join(dir, "log"), "/var/log", "", unix.MS_BIND, ""},
	} {
		if err := mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return err
		}
	}
	if err := coverEtc(name); err != nil {
		return err
	}
	if err := mountCgroups(cgroups); err != nil {
		return err
	}
	if err := showSysctls(filepath.Join(dir, "sysctl")); err != nil {
		return err
	}
	// What a container mounts for others must reach the node and other pods.
	return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// coverEtc lets the node see the machine's /etc and write to a layer of its own.
// The layer lies on tmpfs, where it works whatever the machine's file system is.
func coverEtc(name string) error {
	const upper, work = "/run/etc/upper", "/run/etc/work"
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+upper+",workdir="+work); err != nil {
		return err
	}
	// The machine's name servers cannot be reached from here.
	for file, content := range map[string]string{
		"/etc/resolv.conf": "# This node has no name server.\n",
		"/etc/hosts":       "127.0.0.1 localhost " + name + "\n::1 localhost\n",
	} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

func showSysctls(dir string) error {
	for name, value := range shownSysctls {
		shown := filepath.Join(dir, strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(shown, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := mount(shown, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}
