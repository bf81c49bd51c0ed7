package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestLinkPrograms(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	for _, version := range []string{"one", "two"} {
		binary := filepath.Join(dir, version)
		if err := os.WriteFile(binary, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		for range 2 { // again changes nothing
			if err := linkPrograms(bin, binary, []string{"runc", "bridge"}); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.Readlink(filepath.Join(bin, "runc")); err != nil || got != binary {
			t.Errorf("runc links to %q, %v, want %q", got, err, binary)
		}
	}
	if entries, err := os.ReadDir(bin); err != nil || len(entries) != 2 {
		t.Errorf("%v, %v", entries, err)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{plain, filepath.Join(dir, "missing"), dir} {
		if err := linkPrograms(bin, bad, []string{"runc"}); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestReadySince(t *testing.T) {
	start := time.Date(2026, 11, 23, 12, 0, 0, 999, time.UTC)
	condition := func(status corev1.ConditionStatus, at time.Time) *corev1.Node {
		return &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(start)},
			{Type: corev1.NodeReady, Status: status, LastHeartbeatTime: metav1.NewTime(at)},
		}}}
	}
	for name, c := range map[string]struct {
		node *corev1.Node
		want bool
	}{
		"no status yet":        {&corev1.Node{}, false},
		"not ready":            {condition(corev1.ConditionFalse, start.Add(time.Minute)), false},
		"ready before restart": {condition(corev1.ConditionTrue, start.Add(-time.Minute)), false},
		"ready, same second":   {condition(corev1.ConditionTrue, start.Truncate(time.Second)), true},
		"ready":                {condition(corev1.ConditionTrue, start.Add(time.Second)), true},
	} {
		if got := readySince(c.node, start); got != c.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestPodCIDRs(t *testing.T) {
	n := &corev1.Node{Spec: corev1.NodeSpec{PodCIDRs: []string{"10.42.3.0/24", "fd42::/64"}}}
	got, err := podCIDRs(n)
	if err != nil || len(got) != 2 || got[1].String() != "fd42::/64" {
		t.Errorf("%v, %v", got, err)
	}
	n.Spec.PodCIDRs = []string{"10.42.3.0"}
	if _, err := podCIDRs(n); err == nil {
		t.Error("accepted an address as a range")
	}
}

func TestCheckNamesBadArguments(t *testing.T) {
	err := Check(Config{KubeletArgs: []string{"no-such-flag=1"}})
	if err == nil || !strings.Contains(err.Error(), "no-such-flag") {
		t.Errorf("got %v", err)
	}
}

func TestCheckNft(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := checkNft(); err == nil || !strings.Contains(err.Error(), "install the package nftables") {
		t.Errorf("without nft: %v", err)
	}
}
