package crash

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
)

// exercise gives every controller of workloads something to do in a namespace
// made by apply, and waits until it is done: rollouts, a deletion with garbage
// collection, a namespace that comes, and one that goes.
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
	cluster.Eventually(t, "a deleted namespace does not go", func(ctx context.Context) error {
		_, err := s.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is still there (error %v)", err)
	})
	s.settled(namespace)
	s.healthy()
}

// churn evicts and wakes guests at random for a while. It fails the test if
// some guest was never really brought back.
func churn(t *testing.T, s *server, choose *rand.Rand, d time.Duration) {
	t.Helper()
	before := wakes(t, s)
	end := time.NewTimer(d)
	defer end.Stop()
	for k := 0; ; k++ {
		select {
		case <-end.C:
			after := wakes(t, s)
			for _, name := range cluster.Guests {
				if after[name] <= before[name] {
					t.Errorf("%s was never woken in %d commands", name, k)
				}
			}
			t.Logf("%d commands, %v wakes", k, after)
			return
		case <-time.After(time.Duration(choose.Int64N(int64(20 * time.Millisecond)))):
		}
		verb := "evict"
		if choose.IntN(3) == 0 {
			verb = "wake"
		}
		if err := s.Tell(t.Context(), cluster.Guests[choose.IntN(len(cluster.Guests))], verb); err != nil {
			t.Fatal(err)
		}
	}
}

func wakes(t *testing.T, s *server) map[string]int {
	t.Helper()
	all, err := s.Controllers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := map[string]int{}
	for _, c := range all {
		n[c.Name] = c.Wakes
	}
	maps.DeleteFunc(n, func(_ string, wakes int) bool { return wakes == 0 })
	return n
}
