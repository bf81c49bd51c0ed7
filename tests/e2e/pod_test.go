package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
)

// TestNode: the node is registered as its users expect it, and its pods get
// addresses of its own range.
func TestNode(t *testing.T) {
	w := theNode(t)
	n, err := w.CoreV1().Nodes().Get(t.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all, err := netip.ParsePrefix("10.42.0.0/16")
	if err != nil {
		t.Fatal(err)
	}
	cidr, err := netip.ParsePrefix(n.Spec.PodCIDR)
	if err != nil || !all.Contains(cidr.Addr()) || cidr.Bits() <= all.Bits() {
		t.Errorf("the node's range is %q (%v), want a part of %s", n.Spec.PodCIDR, err, all)
	}
	pod := w.sleeper(t, w.namespace(t), "one")
	if ip, err := netip.ParseAddr(pod.Status.PodIP); err != nil || !cidr.Contains(ip) {
		t.Errorf("a pod has the address %q (%v), want one in %s", pod.Status.PodIP, err, cidr)
	}
	version, err := w.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if n.Status.NodeInfo.KubeletVersion != version.GitVersion || !strings.Contains(version.GitVersion, "+dormouse") {
		t.Errorf("the node has version %q, the API server %q", n.Status.NodeInfo.KubeletVersion, version.GitVersion)
	}
	if got := n.Labels["node-role.kubernetes.io/control-plane"]; got != "true" {
		t.Errorf("label of a control plane: %q", got)
	}
	if len(n.Spec.Taints) != 0 {
		t.Errorf("taints %+v", n.Spec.Taints)
	}
	if i := slices.IndexFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Type == corev1.NodeInternalIP }); i < 0 || n.Status.Addresses[i].Address != w.IP.String() {
		t.Errorf("addresses %+v, want %s", n.Status.Addresses, w.IP)
	}
}

// TestTaintEvicts: a taint with the effect NoExecute ends the pods that do not
// tolerate it, and no others.
func TestTaintEvicts(t *testing.T) {
	w := theNode(t)
	ns := w.namespace(t)
	w.kubectl(t, ns, "create", "deployment", "web", "--image="+web1, "--replicas=2")
	w.settled(t, ns)
	evicted := w.pods(t, ns)
	stays := w.sleeper(t, ns, "stays", func(s *corev1.PodSpec) {
		s.Tolerations = []corev1.Toleration{{Key: "mends", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}}
	})
	w.kubectl(t, ns, "taint", "node", nodeName, "mends=now:NoExecute")
	untainted := false
	untaint := func(ctx context.Context) error {
		if untainted {
			return nil
		}
		untainted = true
		_, err := w.Kubectl(ctx, "taint", "node", nodeName, "mends-")
		return err
	}
	defer func() {
		if err := untaint(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	for _, p := range evicted {
		cluster.Eventually(t, "pod "+p.Name+", which does not tolerate the taint", func(ctx context.Context) error {
			_, err := w.CoreV1().Pods(ns).Get(ctx, p.Name, metav1.GetOptions{})
			return gone(err)
		})
	}
	if p, err := w.CoreV1().Pods(ns).Get(t.Context(), "stays", metav1.GetOptions{}); err != nil || p.UID != stays.UID || p.DeletionTimestamp != nil {
		t.Errorf("the pod that tolerates the taint: %v %+v", err, p)
	}
	if err := untaint(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.kubectl(t, ns, "delete", "pod", "stays")
	w.settled(t, ns)
}

// TestLogsAndExec: what a container prints can be read, and programs can be run
// in it, with standard input, and with their exit codes.
func TestLogsAndExec(t *testing.T) {
	w := theNode(t)
	ns := w.namespace(t)
	w.sleeper(t, ns, "one")
	if got := w.kubectl(t, ns, "logs", "one"); got != "asleep\n" {
		t.Errorf("the log is %q", got)
	}
	r := w.run(t, "", "kubectl", "--namespace", ns, "exec", "one", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
	if r.stdout != "out\n" || !strings.HasPrefix(r.stderr, "err\n") || r.code != 3 {
		t.Errorf("exec gives %+v", r)
	}
	many := strings.Repeat("dormouse\n", 100_000)
	r = w.run(t, many, "kubectl", "--namespace", ns, "exec", "-i", "one", "--", "cat")
	if r.stdout != many || r.code != 0 {
		t.Errorf("exec of cat gives %d bytes of %d, exit code %d: %s", len(r.stdout), len(many), r.code, r.stderr)
	}
	r = w.run(t, "", "kubectl", "--namespace", ns, "exec", "none", "--", "true")
	if r.code != 1 || !strings.Contains(r.stderr, "not found") {
		t.Errorf("exec in a pod that does not exist gives %+v", r)
	}
}

// forwarding is what kubectl port-forward says when it listens.
var forwarding = regexp.MustCompile(`Forwarding from 127\.0\.0\.1:(\d+)`)

// TestPortForward: a port of a pod can be reached through the API server.
func TestPortForward(t *testing.T) {
	w := theNode(t)
	ns := w.namespace(t)
	w.kubectl(t, ns, "create", "deployment", "web", "--image="+web1)
	w.settled(t, ns)
	cmd := w.command(t, "kubectl", "--namespace", ns, "port-forward", "deployment/web", ":8080")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
	}()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	port := forwarding.FindStringSubmatch(line)
	if port == nil {
		t.Fatalf("kubectl port-forward says %q", line)
	}
	for range 3 {
		answer, err := w.fetch(t.Context(), "http://127.0.0.1:"+port[1])
		if want := w.pods(t, ns)[0].Name + " v1"; err != nil || answer != want {
			t.Errorf("the pod answers %q (%v), want %q", answer, err, want)
		}
	}
}

// TestResources: a container gets the memory and the processor time that its
// limits say, and is killed when it takes more memory.
func TestResources(t *testing.T) {
	w := theNode(t)
	ns := w.namespace(t)
	limits := func(memory string) func(*corev1.PodSpec) {
		return func(s *corev1.PodSpec) {
			s.Containers[0].Resources.Limits = corev1.ResourceList{
				corev1.ResourceMemory: resource.MustParse(memory),
				corev1.ResourceCPU:    resource.MustParse("250m"),
			}
		}
	}
	w.sleeper(t, ns, "limited", limits("48Mi"))
	got := w.kubectl(t, ns, "exec", "limited", "--", "sh", "-c",
		"cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes; cat cpu.max 2>/dev/null || cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us")
	if want := []string{"50331648", "25000", "100000"}; !slices.Equal(strings.Fields(got), want) {
		t.Errorf("limits in the container: %q, want %q", strings.Fields(got), want)
	}

	greedy := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "greedy"}, Spec: corev1.PodSpec{
		RestartPolicy: corev1.RestartPolicyNever,
		// busybox keeps the line that never ends.
		Containers: []corev1.Container{{Name: "greedy", Image: busybox, Command: []string{"tail", "/dev/zero"}}},
	}}
	limits("16Mi")(&greedy.Spec)
	if _, err := w.CoreV1().Pods(ns).Create(t.Context(), greedy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually(t, "the greedy pod", func(ctx context.Context) error {
		p, err := w.CoreV1().Pods(ns).Get(ctx, "greedy", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if s := p.Status.ContainerStatuses; len(s) == 1 && s[0].State.Terminated != nil && s[0].State.Terminated.Reason == "OOMKilled" {
			return nil
		}
		return fmt.Errorf("it is %s: %+v", p.Status.Phase, p.Status.ContainerStatuses)
	})
}
