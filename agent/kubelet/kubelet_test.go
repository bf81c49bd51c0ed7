package kubelet

import (
	"flag"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

var sample = Config{
	File:             "/var/lib/dormouse/agent/etc/kubelet.yaml",
	Kubeconfig:       "/var/lib/dormouse/agent/kubelet.kubeconfig",
	NodeName:         "fog-1",
	NodeIP:           net.IPv4(10, 99, 0, 2),
	ClientCA:         "/var/lib/dormouse/agent/client-ca.crt",
	ServingCert:      "/var/lib/dormouse/agent/serving-kubelet.crt",
	ServingKey:       "/var/lib/dormouse/agent/serving-kubelet.key",
	ContainerdSocket: "/run/dormouse/containerd/containerd.sock",
	ManifestDir:      "/var/lib/dormouse/agent/pod-manifests",
	VolumePluginDir:  "/var/lib/dormouse/agent/volume-plugins",
	CertDir:          "/var/lib/dormouse/agent/pki",
	ResolvConf:       "/etc/resolv.conf",
	ClusterDNS:       netip.MustParseAddr("10.43.0.10"),
	ClusterDomain:    "cluster.local",
	LowerOOMScore:    true,
}

func TestConfigGolden(t *testing.T) {
	got, err := sample.render()
	if err != nil {
		t.Fatal(err)
	}
	golden := "testdata/kubelet.yaml"
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
}

// The kubelet's own loader and validation have the last word, and the user's
// flags win over the file.
func TestServer(t *testing.T) {
	cfg := sample
	cfg.LowerOOMScore = false
	cfg.File = filepath.Join(t.TempDir(), "kubelet.yaml")
	cfg.Args = []string{"max-pods=42", "node-labels=example.com/room=cellar", "cgroup-root=/fog"}
	content, err := cfg.render()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.File, content, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := cfg.server(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.MaxPods != 42 || s.CgroupRoot != "/fog" || s.NodeLabels["example.com/room"] != "cellar" {
		t.Errorf("flags did not win: maxPods %d, cgroupRoot %q, labels %v", s.MaxPods, s.CgroupRoot, s.NodeLabels)
	}
	if s.OOMScoreAdj != 0 {
		t.Errorf("OOM score %d without the capability", s.OOMScoreAdj)
	}
	if s.Authentication.Anonymous.Enabled || !s.Authentication.Webhook.Enabled || s.Authorization.Mode != "Webhook" {
		t.Error("the kubelet answers strangers")
	}
	if s.HostnameOverride != "fog-1" || s.NodeIP != "10.99.0.2" {
		t.Errorf("name %q, address %q", s.HostnameOverride, s.NodeIP)
	}
}

func TestCheckArgs(t *testing.T) {
	if err := CheckArgs([]string{"max-pods=42", "v=4"}); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"no-such-flag=1", "max-pods=many"} {
		if err := CheckArgs([]string{bad}); err == nil || !strings.Contains(err.Error(), strings.Split(bad, "=")[0]) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
