package pressure

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	for name, c := range map[string]struct{ own, v2, v1 string }{
		"unified":       {"0::/system.slice/dormouse.service\n", "/system.slice/dormouse.service", ""},
		"legacy":        {"9:name=systemd:/\n4:memory:/a:b\n1:cpu,cpuacct:/x\n", "", "/a:b"},
		"hybrid":        {"5:hugetlb,memory:/a\n0::/b\n", "/b", "/a"},
		"in a root":     {"0::/\n", "/", ""},
		"nothing":       {"", "", ""},
		"not the like":  {"x\n0:\n7:memoryx:/a\n", "", ""},
		"no line break": {"0::/a", "/a", ""},
	} {
		if v2, v1 := parse(c.own); v2 != c.v2 || v1 != c.v1 {
			t.Errorf("%s: %q and %q", name, v2, v1)
		}
	}
}

// TestShort has what a control group says of its limit.
func TestShort(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string // below the root of all groups
		short bool
	}{
		"no groups":        {nil, false},
		"no limit":         {map[string]string{"a/b/memory.max": "max\n", "a/b/memory.current": "99\n", "a/b/memory.stat": "inactive_file 0\n"}, false},
		"far from it":      {map[string]string{"a/b/memory.max": "1000\n", "a/b/memory.current": "899\n", "a/b/memory.stat": "anon 1\ninactive_file 0\n"}, false},
		"near it":          {map[string]string{"a/b/memory.max": "1000\n", "a/b/memory.current": "901\n", "a/b/memory.stat": "anon 1\ninactive_file 0\n"}, true},
		"mostly cache":     {map[string]string{"a/b/memory.max": "1000\n", "a/b/memory.current": "999\n", "a/b/memory.stat": "anon 1\ninactive_file 500\n"}, false},
		"that it is in":    {map[string]string{"a/memory.max": "1000\n", "a/memory.current": "950\n", "a/memory.stat": "\n"}, true},
		"of a container":   {map[string]string{"memory.max": "1000\n", "memory.current": "950\n", "memory.stat": "\n"}, true},
		"not of another":   {map[string]string{"a/c/memory.max": "1000\n", "a/c/memory.current": "950\n", "a/c/memory.stat": "\n"}, false},
		"version 1":        {map[string]string{"memory/c/memory.limit_in_bytes": "1000\n", "memory/c/memory.usage_in_bytes": "950\n", "memory/c/memory.stat": "inactive_file 500\n"}, true},
		"version 1, cache": {map[string]string{"memory/c/memory.limit_in_bytes": "1000\n", "memory/c/memory.usage_in_bytes": "950\n", "memory/c/memory.stat": "total_inactive_file 500\n"}, false},
		"not readable":     {map[string]string{"a/b/memory.max": "1000\n"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for path, content := range c.files {
				path = filepath.Join(root, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			m := &Monitor{groups: limits(root, "/a/b", "/c")}
			if got := m.Short(); got != c.short {
				t.Errorf("%v", got)
			}
		})
	}
}

// TestTrigger: the kernel takes a trigger, where it has any, and Watch ends.
func TestTrigger(t *testing.T) {
	m, err := New()
	if err != nil {
		t.Fatal(err)
	}
	_, err = os.Stat("/proc/pressure/memory")
	f, taken := trigger("/proc/pressure/memory")
	if taken {
		f.Close()
	}
	if offered := err == nil; offered != taken {
		t.Fatalf("trigger taken: %v; the kernel has them: %v", taken, offered)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Watch(ctx, func() {}) }()
	cancel()
	await(t, ended)
}

// TestWatch: events are told, and nothing else is. A counter that is not zero looks
// as a pressure file does: it can be read at any time, and pollers are woken at
// each event.
func TestWatch(t *testing.T) {
	var triggers []*os.File
	for range 2 {
		fd, err := unix.Eventfd(1, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		triggers = append(triggers, os.NewFile(uintptr(fd), "trigger"))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, ended := make(chan struct{}, 100), make(chan error, 1)
	go func() { ended <- watch(ctx, triggers, func() { events <- struct{}{} }) }()
	fired, told := 0, 0
	deadline := time.After(30 * time.Second)
	for n := range 6 {
		for before := told; told == before; { // the first before the watch begins are lost
			fire(t, triggers[n%2])
			fired++
			select {
			case <-events:
				told++
			case <-time.After(10 * time.Millisecond):
			case <-deadline:
				t.Fatalf("event %d was not told", n)
			}
		}
	}
	cancel()
	await(t, ended)
	if told += len(events); told > fired {
		t.Errorf("told of %d events, there were %d", told, fired)
	}
}

func fire(t *testing.T, f *os.File) {
	t.Helper()
	if _, err := f.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
}

func await(t *testing.T, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("Watch does not end")
	}
}
