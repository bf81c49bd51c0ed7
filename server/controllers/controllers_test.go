package controllers

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	kubectrlmgrconfig "k8s.io/kubernetes/pkg/controller/apis/config"

	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/server/pki"
)

func newManager(t *testing.T, args ...string) *Manager {
	t.Helper()
	m, err := New(Config{
		Data: paths.Data(t.TempDir()), ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"),
		Args: args,
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestEnabled: the list of controllers means what it means to upstream, aliases included.
func TestEnabled(t *testing.T) {
	byDefault := newManager(t).Enabled()
	for name, want := range map[string]bool{"deployment-controller": true, "serviceaccount-token-controller": true, "token-cleaner-controller": false} {
		if slices.Contains(byDefault, name) != want {
			t.Errorf("%s by default: %v", name, !want)
		}
	}
	if got := newManager(t, "controllers=tokencleaner,job-controller").Enabled(); !slices.Equal(got, []string{"job-controller", "token-cleaner-controller"}) {
		t.Errorf("two by name: %v", got)
	}
	if got := newManager(t, "controllers=*,-deployment").Enabled(); slices.Contains(got, "deployment-controller") || len(got) != len(byDefault)-1 {
		t.Errorf("all but one: %v", got)
	}
}

func TestExclude(t *testing.T) {
	m := newManager(t)
	if err := m.Exclude([]string{"job-controller"}); err != nil || slices.Contains(m.Names(), "job-controller") || !slices.Contains(m.Enabled(), "job-controller") {
		t.Errorf("%v: %v", err, m.Names())
	}
	if err := m.Exclude([]string{"no-such-controller"}); err == nil || !strings.Contains(err.Error(), "no-such-controller") {
		t.Errorf("unknown: %v", err)
	}
	if err := m.Exclude([]string{"garbage-collector-controller"}); err == nil || !strings.Contains(err.Error(), "storage-version-migrator-controller") {
		t.Errorf("the migrator without the collector: %v", err)
	}
	if err := m.Exclude([]string{"garbage-collector-controller", "storage-version-migrator-controller"}); err != nil {
		t.Error(err)
	}
}

// TestConfiguration: arguments arrive, and upstream's defaults where there are none.
func TestConfiguration(t *testing.T) {
	b, err := newManager(t, "concurrent-deployment-syncs=7", "node-monitor-period=3s", "terminated-pod-gc-threshold=5",
		"horizontal-pod-autoscaler-sync-period=20s", "cluster-signing-duration=9h").Configuration()
	if err != nil {
		t.Fatal(err)
	}
	var c kubectrlmgrconfig.KubeControllerManagerConfiguration
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	if c.DeploymentController.ConcurrentDeploymentSyncs != 7 || c.NodeLifecycleController.NodeMonitorPeriod.Duration != 3*time.Second ||
		c.PodGCController.TerminatedPodGCThreshold != 5 || c.HPAController.HorizontalPodAutoscalerSyncPeriod.Duration != 20*time.Second ||
		c.CSRSigningController.ClusterSigningDuration.Duration != 9*time.Hour || c.ReplicaSetController.ConcurrentRSSyncs != 5 ||
		c.KubeCloudShared.ClusterCIDR != "10.42.0.0/16" {
		t.Errorf("%+v", c)
	}
	_, err = newManager(t, "concurrent-horizontal-pod-autoscaler-syncs=0").Configuration()
	if err == nil || !strings.Contains(err.Error(), "concurrent-horizontal-pod-autoscaler-syncs") {
		t.Errorf("a value that upstream refuses: %v", err)
	}
	if _, err := New(Config{ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), Args: []string{"controllers=nonsense"}}); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("a controller that does not exist: %v", err)
	}
}

// TestConfigurationIsTheSame: at each start, or no snapshot would be used.
func TestConfigurationIsTheSame(t *testing.T) {
	data := paths.Data(t.TempDir())
	var first string
	for range 20 {
		m, err := New(Config{Data: data, ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16")})
		if err != nil {
			t.Fatal(err)
		}
		b, err := m.Configuration()
		if err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = string(b)
		}
		if string(b) != first {
			t.Fatalf("%s\n%s", first, b)
		}
	}
}

// TestFiles: keys reach who needs them, and nobody else.
func TestFiles(t *testing.T) {
	data := paths.Data(t.TempDir())
	cluster, err := pki.LoadCluster(data, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := cluster.EnsureServer(pki.ClusterNames{ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), Domain: "cluster.local"}); err != nil {
		t.Fatal(err)
	}
	m, err := New(Config{Data: data, ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	tls := data.TLS
	want := map[string][]string{
		"serviceaccount-token-controller":          {tls(pki.ServiceKey), tls(pki.ServerCA + ".crt")},
		"root-ca-certificate-publisher-controller": {tls(pki.ServerCA + ".crt")},
		"certificatesigningrequest-signing-controller": {
			tls(pki.ClientCA + ".crt"), tls(pki.ClientCA + ".key"), tls(pki.ServerCA + ".crt"), tls(pki.ServerCA + ".key"),
		},
		"kube-apiserver-serving-clustertrustbundle-publisher-controller": {tls(pki.ServerCA + ".crt")},
	}
	for _, name := range m.Enabled() {
		files, err := m.Files(name)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(want[name])
		if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, want[name]) {
			t.Errorf("%s reads %v, want %v", name, got, want[name])
		}
		for path, content := range files {
			if !strings.HasPrefix(content, "-----BEGIN ") {
				t.Errorf("%s: %q", path, content)
			}
		}
	}
}
