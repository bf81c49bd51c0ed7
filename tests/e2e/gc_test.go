package e2e

import (
	"context"
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
)

// TestGarbageCollection: what belongs to a deleted Deployment goes after it,
// before it, or stays, as was asked for.
func TestGarbageCollection(t *testing.T) {
	w := theNode(t)
	none := func(ctx context.Context, ns string) error {
		sets, err := w.AppsV1().ReplicaSets(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		pods, err := w.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		if len(sets.Items)+len(pods.Items) > 0 {
			return fmt.Errorf("%d replica sets and %d pods are left", len(sets.Items), len(pods.Items))
		}
		return nil
	}
	deployed := func(t *testing.T) string {
		ns := w.namespace(t)
		w.kubectl(t, ns, "create", "deployment", "web", "--image="+web1, "--replicas=2")
		w.settled(t, ns)
		return ns
	}
	deleted := func(ns string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := w.AppsV1().Deployments(ns).Get(ctx, "web", metav1.GetOptions{})
			return gone(err)
		}
	}

	t.Run("background", func(t *testing.T) {
		ns := deployed(t)
		w.kubectl(t, ns, "delete", "deployment", "web", "--cascade=background")
		if err := deleted(ns)(t.Context()); err != nil {
			t.Error(err)
		}
		cluster.Eventually(t, "what belonged to the deployment", func(ctx context.Context) error { return none(ctx, ns) })
	})

	t.Run("foreground", func(t *testing.T) {
		ns := deployed(t)
		w.kubectl(t, ns, "delete", "deployment", "web", "--cascade=foreground", "--wait=false")
		cluster.Eventually(t, "the deployment", deleted(ns))
		if err := none(t.Context(), ns); err != nil {
			t.Errorf("the deployment went first: %v", err)
		}
	})

	t.Run("orphan", func(t *testing.T) {
		ns := deployed(t)
		before := w.pods(t, ns)
		w.kubectl(t, ns, "delete", "deployment", "web", "--cascade=orphan", "--wait=false")
		cluster.Eventually(t, "the deployment", deleted(ns))
		sets, err := w.AppsV1().ReplicaSets(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(sets.Items) != 1 || len(sets.Items[0].OwnerReferences) != 0 {
			t.Fatalf("replica sets %+v, want one without an owner", sets.Items)
		}
		set := sets.Items[0].Name
		w.kubectl(t, ns, "delete", "replicaset", set, "--cascade=orphan", "--wait=false")
		cluster.Eventually(t, "the replica set", func(ctx context.Context) error {
			_, err := w.AppsV1().ReplicaSets(ns).Get(ctx, set, metav1.GetOptions{})
			return gone(err)
		})
		left := map[string]bool{}
		for _, p := range w.pods(t, ns) {
			left[string(p.UID)] = p.DeletionTimestamp == nil && len(p.OwnerReferences) == 0
		}
		for _, p := range before {
			if !left[string(p.UID)] {
				t.Errorf("pod %s is gone, or still has an owner", p.Name)
			}
		}
	})
}
