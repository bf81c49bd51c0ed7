package host

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestControllersV1(t *testing.T) {
	got := controllersV1("9:name=systemd:/\n4:memory:/x:y\n2:cpu,cpuacct:/\n0::/\n")
	if want := []string{"name=systemd", "memory", "cpu", "cpuacct", ""}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestMissingControllers(t *testing.T) {
	if err := missingControllers([]string{"pids", "memory", "cpuset", "cpu", "io"}); err != nil {
		t.Error(err)
	}
	err := missingControllers([]string{"cpu", "cpuset", "pids"})
	if err == nil || !strings.Contains(err.Error(), `"memory"`) {
		t.Errorf("error does not name the missing controller: %v", err)
	}
}

func TestHasCapability(t *testing.T) {
	// CAP_CHOWN is 0: root has it, in any sandbox worth the name; nobody else.
	got, err := hasCapability(0)
	if err != nil {
		t.Fatal(err)
	}
	if root := os.Geteuid() == 0; got != root {
		t.Errorf("CAP_CHOWN in effect: %v, root: %v", got, root)
	}
}
