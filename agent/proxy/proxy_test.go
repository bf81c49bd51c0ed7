package proxy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestFlags(t *testing.T) {
	cfg := Config{Kubeconfig: "/k", NodeName: "fog-1", ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), Args: []string{"v=4"}}
	inNamespace := cfg.flags()
	for _, want := range []string{"--proxy-mode=nftables", "--cluster-cidr=10.42.0.0/16", "--oom-score-adj=0", "--conntrack-max-per-core=0", "--v=4"} {
		if !slices.Contains(inNamespace, want) {
			t.Errorf("no %s in %q", want, inNamespace)
		}
	}
	cfg.GlobalConntrack, cfg.LowerOOMScore = true, true
	for _, f := range cfg.flags() {
		if strings.HasPrefix(f, "--conntrack") || strings.HasPrefix(f, "--oom") {
			t.Errorf("%s on a machine of its own", f)
		}
	}
	if _, _, err := parse(inNamespace); err != nil {
		t.Error(err)
	}
}

func TestCheckArgs(t *testing.T) {
	if err := CheckArgs([]string{"no-such-flag=1"}); err == nil || !strings.Contains(err.Error(), "no-such-flag") {
		t.Errorf("got %v", err)
	}
}
