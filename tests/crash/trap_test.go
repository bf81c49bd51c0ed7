package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
	"github.com/dormouse-k8s/dormouse/tests/hollow"
)

// TestTrap: the memory of a controller that is awake goes bad, as it does on boards without ECC. The controller is
// ended with a line that says who and why, starts again, and does its work; no other notices.
func TestTrap(t *testing.T) {
	const victim = "deployment-controller"
	s := start(t, "wasm-idle-timeout: 1h") // who was awake stays in memory until told otherwise
	hollow.Start(t, s.Cluster, hollow.Config{})
	apply(t.Context(), t, s.Cluster, "trap", 2, 3)
	s.settled("trap")

	pid, err := s.ServerPID()
	if err != nil {
		t.Fatal(err)
	}
	// The only instance while all sleep is the one that was prepared for the next to wake: the victim.
	var from, to int64
	cluster.Eventually(t, "the victim in known memory", func(ctx context.Context) error {
		for _, name := range cluster.Guests {
			if _, err := s.Tell(ctx, name, "evict"); err != nil {
				return err
			}
		}
		if err := s.Asleep(ctx); err != nil {
			return err
		}
		var err error
		if from, to, err = onlyInstance(pid); err != nil {
			_, wakeErr := s.Tell(ctx, victim, "wake") // has one prepared
			return errors.Join(err, wakeErr)
		}
		if _, err := s.Tell(ctx, victim, "wake"); err != nil {
			return err
		}
		all, err := s.Controllers(ctx)
		for _, c := range all {
			if (c.State == "asleep") == (c.Name == victim) {
				return fmt.Errorf("%s is %s, and may have taken another's memory", c.Name, c.State)
			}
		}
		return err
	})
	logged := s.logSize()
	overwrite(t, pid, from, to)

	if _, err := roll(t.Context(), s.Cluster, "trap", "app-0", 4, "after-the-trap"); err != nil {
		t.Fatal(err)
	}
	s.settled("trap")
	all, err := s.Controllers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		switch ended := c.Restarts > 0; {
		case ended != (c.Name == victim):
			t.Errorf("%s was restarted %d times: %s", c.Name, c.Restarts, c.LastError)
		case ended && !strings.HasPrefix(c.LastError, "trap: "):
			t.Errorf("%s was ended by %q", c.Name, c.LastError)
		}
	}
	said := regexp.MustCompile(`level=error .*controller=` + victim + ` .*doing=".*deployments\.apps trap/app-0.*" .*reason=trap`)
	for _, line := range s.logSince(logged) {
		if said.MatchString(line) {
			return
		}
	}
	t.Errorf("no line of the log matches %s", said)
}

// overwrite spoils a range of a process's memory.
func overwrite(t *testing.T, pid int, from, to int64) {
	t.Helper()
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	if _, err := memory.WriteAt(bytes.Repeat([]byte{0xaa}, int(to-from)), from); err != nil {
		t.Fatal(err)
	}
}

// onlyInstance finds the writable mapping of the module's image: the linear memory of the only instance.
func onlyInstance(pid int) (from, to int64, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	found := regexp.MustCompile(`(?m)^([0-9a-f]+)-([0-9a-f]+) rw-p .*(?:/controllers\.cwasm|/memfd:wasm.*)$`).FindAllSubmatch(maps, -1)
	if len(found) != 1 {
		return 0, 0, fmt.Errorf("%d instances are in memory, want 1", len(found))
	}
	from, fromErr := strconv.ParseInt(string(found[0][1]), 16, 64)
	to, toErr := strconv.ParseInt(string(found[0][2]), 16, 64)
	return from, to, errors.Join(fromErr, toErr)
}
