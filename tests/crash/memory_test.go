package crash

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
	"github.com/dormouse-k8s/dormouse/tests/hollow"
)

// TestMemoryLimit: near the limit of the server's control group idle controllers leave memory, and the work goes on.
func TestMemoryLimit(t *testing.T) {
	const (
		group = "/sys/fs/cgroup/memory/"
		full  = 92 // percent of the limit; 90 are scarce
		// ballast is in the group besides the server, in bytes: of the server alone the rest would be so little that the kernel
		// takes the pages of its program away again and again.
		ballast = 1 << 30
	)
	choose := random(t)
	s := start(t, "wasm-idle-timeout: 1h") // who was awake stays in memory
	if _, err := s.Exec(t.Context(), "test", "-e", group+"memory.limit_in_bytes"); err != nil {
		t.Skip("with cgroup v2 the kernel tells of pressure by itself, see TestWatch of the package pressure; this is about a limit of v1")
	}
	hollow.Start(t, s.Cluster, hollow.Config{})
	apply(t.Context(), t, s.Cluster, "memory", 2, 3)
	s.settled("memory")

	stay := map[string]bool{}
	all, err := s.Controllers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if c.State == "warm" {
			stay[c.Name] = true
		}
	}
	if len(stay) == 0 {
		t.Fatal("no controller is in memory after a rollout")
	}
	pid, err := s.ServerPID()
	if err != nil {
		t.Fatal(err)
	}
	number := func(script string) int64 {
		t.Helper()
		text, err := s.Exec(t.Context(), "sh", "-c", "cd "+group+" && "+script)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	used := func() int64 {
		t.Helper()
		return number("cat memory.usage_in_bytes") - number("sed -n 's/^total_inactive_file //p' memory.stat")
	}
	fill := func(bytes int64) {
		t.Helper()
		number(fmt.Sprintf("echo $$ >cgroup.procs && head -c %d /dev/zero >>/run/ballast && echo 0", bytes))
	}
	fill(ballast)
	limit := used() * 100 / full
	number(fmt.Sprintf("echo %d >memory.limit_in_bytes && cat memory.limit_in_bytes", limit))

	var stirred time.Time
	cluster.Eventually(t, "controllers leave memory", func(ctx context.Context) error {
		if room := limit*full/100 - used(); room > 0 { // others take what they leave
			fill(room)
		}
		if time.Since(stirred) > 3*time.Second { // something has to happen for somebody to look
			stirred = time.Now()
			if _, err := roll(ctx, s.Cluster, "memory", "app-0", 4, stirred.String()); err != nil {
				return err
			}
		}
		all, err := s.Controllers(ctx)
		for _, c := range all {
			if c.State == "asleep" {
				delete(stay, c.Name)
			}
		}
		if err == nil && len(stay) > 0 {
			err = fmt.Errorf("%d of %d bytes are used, and these were never asleep since: %v", used(), limit, slices.Sorted(maps.Keys(stay)))
		}
		return err
	})
	exercise(t, s, choose, "memory")
	s.settled("memory")
	s.healthy()
	if now, err := s.ServerPID(); err != nil || now != pid {
		t.Errorf("the server was process %d and is %d: %v", pid, now, err)
	}
}
