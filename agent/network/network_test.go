package network

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

var update = flag.Bool("update", false, "write the golden files anew")

var podCIDRs = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")}

func TestConflistGolden(t *testing.T) {
	cfg := Config{ConfDir: "/var/lib/dormouse/agent/etc/cni/net.d", LeaseDir: "/run/dormouse/cni"}
	got, err := cfg.render(podCIDRs)
	if err != nil {
		t.Fatal(err)
	}
	golden := "testdata/10-dormouse.conflist"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("configuration differs from %s (-update writes it anew):\n%s", golden, got)
	}
	if _, err := libcni.NetworkConfFromBytes(got); err != nil {
		t.Errorf("the CNI library does not read it: %v", err)
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{ConfDir: filepath.Join(dir, "net.d"), LeaseDir: filepath.Join(dir, "leases")}
	steps := []struct {
		cidrs   []netip.Prefix
		changed bool
	}{
		{podCIDRs, true},
		{podCIDRs, false},
		{[]netip.Prefix{netip.MustParsePrefix("10.42.7.0/24"), netip.MustParsePrefix("fd42:7::/64")}, true},
	}
	for i, s := range steps {
		changed, err := cfg.Write(s.cidrs)
		if err != nil || changed != s.changed {
			t.Errorf("step %d: changed %v, %v", i, changed, err)
		}
	}
	entries, err := os.ReadDir(cfg.ConfDir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left %v, %v", entries, err)
	}
	if _, err := cfg.Write(nil); err == nil {
		t.Error("wrote a configuration without a range")
	}
}
