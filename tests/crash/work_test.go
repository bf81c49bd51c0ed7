package crash

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
)

// exercise gives every controller of workloads something to do in a namespace
// made by apply: rollouts, a deletion with garbage collection, a namespace that
// comes and goes. It waits until that is done, but for the end of the namespace,
// which upstream takes its time for; rests waits for it.
func exercise(t *testing.T, s *server, choose *rand.Rand, namespace string) {
	t.Helper()
	ctx, version := t.Context(), strconv.FormatUint(choose.Uint64(), 36)
	if _, err := roll(ctx, s.Cluster, namespace, "app-0", choose.IntN(6), version); err != nil {
		t.Fatal(err)
	}
	background := metav1.DeletePropagationBackground
	deployments := s.AppsV1().Deployments(namespace)
	if err := deployments.Delete(ctx, "app-1", metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		t.Fatal(err)
	}
	replicas := int32(1 + choose.IntN(5))
	if _, err := deployments.Create(ctx, deployment("app-1", replicas), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	name := "passing-" + version
	passing := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := s.CoreV1().Namespaces().Create(ctx, passing, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually(t, "a new namespace does not get its service account and root certificate", func(ctx context.Context) error {
		if _, err := s.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{}); err != nil {
			return err
		}
		_, err := s.CoreV1().ConfigMaps(name).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return err
	})
	if err := s.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.passing = append(s.passing, name)
	s.settled(namespace)
	s.healthy()
}

// evictions is how often churn wants each guest to be evicted.
const evictions = 3

// churn evicts and wakes guests at random, until each has been evicted some
// times. Those who have work to do cannot be at any moment.
func churn(t *testing.T, s *server, choose *rand.Rand) {
	t.Helper()
	left := map[string]int{}
	for _, name := range cluster.Guests {
		left[name] = evictions
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*cluster.Patience)
	defer cancel()
	for len(left) > 0 {
		names := slices.Sorted(maps.Keys(left))
		name := names[choose.IntN(len(names))]
		if choose.IntN(3) == 0 {
			if _, err := s.Tell(ctx, cluster.Guests[choose.IntN(len(cluster.Guests))], "wake"); err != nil {
				t.Fatalf("%v; not yet evicted often enough: %v", err, left)
			}
			continue
		}
		done, err := s.Tell(ctx, name, "evict")
		if err != nil {
			t.Fatalf("%v; not yet evicted often enough: %v", err, left)
		}
		if done {
			if left[name]--; left[name] == 0 {
				delete(left, name)
			}
		}
	}
}
