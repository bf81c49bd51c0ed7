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
	// While all sleep, the only instance with pages of its own is the one that was prepared for the next to wake: the victim.
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
		if from, to, err = prepared(pid); err != nil {
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

var (
	imageMapping = regexp.MustCompile(`(?m)^([0-9a-f]+)-([0-9a-f]+) rw-p .*(?:/controllers\.cwasm|/memfd:wasm.*)$`)
	ownPages     = regexp.MustCompile(`(?m)^Anonymous: +([0-9]+) kB$`)
)

// prepared finds the only writable mapping of the module's image with pages of its own: the linear memory that was prepared for
// the next guest.
func prepared(pid int) (from, to int64, err error) {
	smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, 0, err
	}
	n := 0
	for _, at := range imageMapping.FindAllSubmatchIndex(smaps, -1) {
		own := ownPages.FindSubmatch(smaps[at[1]:])
		if own == nil {
			return 0, 0, errors.New("a mapping without the size of its own pages")
		}
		if string(own[1]) == "0" {
			continue
		}
		n++
		var fromErr, toErr error
		from, fromErr = strconv.ParseInt(string(smaps[at[2]:at[3]]), 16, 64)
		to, toErr = strconv.ParseInt(string(smaps[at[4]:at[5]]), 16, 64)
		if err := errors.Join(fromErr, toErr); err != nil {
			return 0, 0, err
		}
	}
	if n != 1 {
		return 0, 0, fmt.Errorf("%d instances have pages of their own, want 1", n)
	}
	return from, to, nil
}
