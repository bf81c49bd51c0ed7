package node

import (
	"context"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseCgroups(t *testing.T) {
	const hybrid = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:7 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
50 23 0:40 / /data rw,relatime - ext4 /dev/sda rw
`
	want := []cgroup{
		{mount: "/sys/fs/cgroup/cpu,cpuacct", options: "cpu,cpuacct", path: "/sys/fs/cgroup/cpu,cpuacct/n"},
		{mount: "/sys/fs/cgroup/systemd", options: "name=systemd", path: "/sys/fs/cgroup/systemd/n"},
		{mount: "/sys/fs/cgroup/unified", v2: true, path: "/sys/fs/cgroup/unified/n"},
	}
	got := parseCgroups(hybrid, "n")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	if unified(got) || !unified(parseCgroups("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "n")) {
		t.Error("hybrid and unified are mixed up")
	}
}

// machine is what a node must leave as it was.
type machine struct {
	Links    []string
	Mounts   string
	Cgroups  []string
	Sysctl   string
	Hostname string
}

func look(t *testing.T) machine {
	t.Helper()
	var m machine
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, "dormouse") {
			m.Links = append(m.Links, l.Name)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	m.Mounts = string(mounts)
	if m.Cgroups, err = filepath.Glob("/sys/fs/cgroup/*/" + dirPrefix + "*"); err != nil {
		t.Fatal(err)
	}
	overcommit, err := os.ReadFile("/proc/sys/vm/overcommit_memory")
	if err != nil {
		t.Fatal(err)
	}
	m.Sysctl = string(overcommit)
	if m.Hostname, err = os.Hostname(); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNamespaces(t *testing.T) {
	before := look(t)
	n, err := Start(t.Context(), Config{Name: "fog-7"})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for _, c := range []struct{ command, want string }{
		{"hostname", "fog-7"},
		{"cat /proc/sys/vm/overcommit_memory", "1"},
		{"cat /proc/1/comm | wc -l", "1"},
		{"ip -4 -o addr show dev eth0 | grep -c " + n.IP.String(), "1"},
		{"ls -A /var/log /run | tr '\\n' ' '", "/run: etc  /var/log:"},
		{"grep -c dormouse-node /proc/self/cgroup; true", "0"},
		{"touch /etc/dormouse-was-here && ls /etc/dormouse-was-here", "/etc/dormouse-was-here"},
	} {
		out, err := n.Exec(t.Context(), "sh", "-c", c.command)
		if err != nil {
			t.Error(err)
		}
		if got := strings.TrimSpace(out); got != c.want {
			t.Errorf("%s: got %q, want %q", c.command, got, c.want)
		}
	}
	// An orphan ignores everything but SIGKILL.
	if _, err := n.Exec(t.Context(), "sh", "-c", "trap '' TERM INT HUP; setsid sleep 1000 >/dev/null 2>&1 &"); err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if after := look(t); !reflect.DeepEqual(after, before) {
		t.Errorf("the machine was\n%+v, is\n%+v", before, after)
	}
	if _, err := os.Stat(n.Dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", n.Dir, err)
	}
	if _, err := os.Stat("/etc/dormouse-was-here"); err == nil {
		t.Error("the node wrote to the machine's /etc")
	}
}

// TestMain lets a child of TestStarterKilled be the one that starts a node.
func TestMain(m *testing.M) {
	if os.Getenv("DORMOUSE_TEST_STARTER") == "" {
		os.Exit(m.Run())
	}
	n, err := Start(context.Background(), Config{})
	if err != nil {
		panic(err)
	}
	os.Stdout.WriteString(n.Dir + "\n")
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt)
	<-signals
}

func TestStarterKilled(t *testing.T) {
	before := look(t)
	starter := exec.Command("/proc/self/exe")
	starter.Env = append(os.Environ(), "DORMOUSE_TEST_STARTER=1")
	starter.Stderr = os.Stderr
	stdout, err := starter.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := starter.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 4096)
	l, err := stdout.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	dir := strings.TrimSpace(string(line[:l]))
	if err := starter.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = starter.Wait()
	deadline := time.NewTimer(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(dir); os.IsNotExist(err) {
			break
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s is still there", dir)
		}
	}
	if after := look(t); !reflect.DeepEqual(after, before) {
		t.Errorf("the machine was\n%+v, is\n%+v", before, after)
	}
}
