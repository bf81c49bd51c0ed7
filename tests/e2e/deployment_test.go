package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
)

// TestDeployment: what a Deployment asks for is what runs, from its creation
// through scaling, a rolling update, its undoing, and an update that cannot work.
func TestDeployment(t *testing.T) {
	w := theNode(t)
	ns := w.namespace(t)
	is := func(replicas int, image string, sets int) {
		t.Helper()
		w.kubectl(t, ns, "rollout", "status", "deployment/web", "--timeout=3m")
		w.settled(t, ns)
		pods := w.pods(t, ns)
		if len(pods) != replicas {
			t.Errorf("%d pods, want %d", len(pods), replicas)
		}
		for _, p := range pods {
			if p.Status.Phase != corev1.PodRunning || !cluster.PodReady(&p) || p.Spec.Containers[0].Image != image {
				t.Errorf("pod %s of %s is %s, want it Ready, of %s", p.Name, p.Spec.Containers[0].Image, p.Status.Phase, image)
			}
		}
		list, err := w.AppsV1().ReplicaSets(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Items) != sets {
			t.Errorf("%d replica sets, want %d", len(list.Items), sets)
		}
	}
	w.kubectl(t, ns, "create", "deployment", "web", "--image="+web1, "--replicas=3")
	is(3, web1, 1)
	w.kubectl(t, ns, "scale", "deployment/web", "--replicas=5")
	is(5, web1, 1)
	w.kubectl(t, ns, "scale", "deployment/web", "--replicas=2")
	is(2, web1, 1)
	w.kubectl(t, ns, "set", "image", "deployment/web", "web="+web2)
	is(2, web2, 2)
	w.kubectl(t, ns, "rollout", "undo", "deployment/web")
	is(2, web1, 2)

	// An image that nobody has: the old pods stay until the new ones are ready,
	// which is never.
	w.kubectl(t, ns, "set", "image", "deployment/web", "web=docker.io/dormouse/web:none")
	cluster.Eventually(t, "the failing update does not begin", func(ctx context.Context) error {
		for _, p := range w.pods(t, ns) {
			for _, c := range p.Status.ContainerStatuses {
				if c.State.Waiting != nil && strings.Contains(c.State.Waiting.Reason, "Image") {
					return nil
				}
			}
		}
		return errors.New("no container waits for its image")
	})
	ready := 0
	for _, p := range w.pods(t, ns) {
		if cluster.PodReady(&p) && p.Spec.Containers[0].Image == web1 {
			ready++
		}
	}
	if ready != 2 {
		t.Errorf("%d old pods are left while the update fails, want 2", ready)
	}
	w.kubectl(t, ns, "rollout", "undo", "deployment/web")
	is(2, web1, 3)
}

// TestService: a Service answers, from the node and from pods, with all of its
// pods and no others, while they come and go.
func TestService(t *testing.T) {
	w := theNode(t)
	ns := w.namespace(t)
	w.kubectl(t, ns, "create", "deployment", "web", "--image="+web1, "--replicas=2")
	w.kubectl(t, ns, "expose", "deployment", "web", "--port=80", "--target-port=8080")
	w.settled(t, ns)
	service, err := w.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + service.Spec.ClusterIP
	answers := func(from string, fetch func(context.Context, string) (string, error)) {
		t.Helper()
		w.settled(t, ns)
		var want []string
		for _, p := range w.pods(t, ns) {
			if p.Labels["app"] == "web" {
				want = append(want, p.Name+" v1")
			}
		}
		// kube-proxy takes a moment, and each answer comes from a random pod.
		got := map[string]bool{}
		cluster.Eventually(t, "the service does not answer "+from, func(ctx context.Context) error {
			answer, err := fetch(ctx, url)
			if err != nil {
				return err
			}
			if !slices.Contains(want, answer) {
				return fmt.Errorf("%q answers; the pods are %v", answer, want)
			}
			if got[answer] = true; len(got) < len(want) {
				return fmt.Errorf("only %v answer of %v", got, want)
			}
			return nil
		})
	}
	answers("on the node", w.fetch)
	w.kubectl(t, ns, "scale", "deployment/web", "--replicas=3")
	answers("after scaling up", w.fetch)
	w.kubectl(t, ns, "delete", "pod", "--wait=false", w.pods(t, ns)[0].Name)
	answers("after a pod was replaced", w.fetch)

	client := w.namespace(t, "client")
	w.sleeper(t, client, "client")
	answers("in a pod", func(ctx context.Context, _ string) (string, error) {
		// Debian's busybox cannot resolve names, which its wget tries even with addresses.
		out, err := w.Kubectl(ctx, "--namespace", client, "exec", "client", "--", "sh", "-c",
			`printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 10 `+service.Spec.ClusterIP+` 80`)
		_, body, _ := strings.Cut(out, "\r\n\r\n")
		return strings.TrimSpace(body), err
	})

	w.kubectl(t, ns, "scale", "deployment/web", "--replicas=0")
	w.settled(t, ns)
	cluster.Eventually(t, "a service without pods", func(ctx context.Context) error {
		if answer, err := w.fetch(ctx, url); err == nil {
			return fmt.Errorf("%q still answers", answer)
		}
		return nil
	})
}
