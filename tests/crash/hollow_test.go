package crash

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
)

const (
	hollowName = "hollow"
	// lookEvery is how often the node looks at its pods, renewEvery how often it
	// renews its lease.
	lookEvery  = 100 * time.Millisecond
	renewEvery = 5 * time.Second
)

// hollow is a node without a machine. As a kubelet does, it registers itself,
// renews its lease, reports the pods bound to it running and ready, and lets
// deleted ones go. It does not care whether the server is there.
type hollow struct {
	cluster *cluster.Cluster
	pods    int // that have got an address
}

// startHollow runs a hollow node until the test ends.
func startHollow(t *testing.T, c *cluster.Cluster) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	h := &hollow{cluster: c}
	running.Go(func() { h.run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

func (h *hollow) run(ctx context.Context) {
	look, renew := time.NewTicker(lookEvery), time.NewTicker(renewEvery)
	defer look.Stop()
	defer renew.Stop()
	registered := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			// What fails is tried again with the next look.
			if !registered {
				registered = h.register(ctx) == nil
			}
			_ = h.look(ctx)
		case <-renew.C:
			_ = h.renew(ctx)
		}
	}
}

func (h *hollow) register(ctx context.Context) error {
	self := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: hollowName, Labels: map[string]string{corev1.LabelHostname: hollowName}}}
	nodes := h.cluster.CoreV1().Nodes()
	created, err := nodes.Create(ctx, self, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		created, err = nodes.Get(ctx, hollowName, metav1.GetOptions{})
	}
	if err != nil {
		return err
	}
	resources := corev1.ResourceList{
		corev1.ResourcePods:   resource.MustParse("10k"),
		corev1.ResourceCPU:    resource.MustParse("1k"),
		corev1.ResourceMemory: resource.MustParse("1Ti"),
	}
	created.Status.Capacity, created.Status.Allocatable = resources, resources
	now := metav1.Now()
	created.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue,
		Reason: "Hollow", LastHeartbeatTime: now, LastTransitionTime: now}}
	if _, err := nodes.UpdateStatus(ctx, created, metav1.UpdateOptions{}); err != nil {
		return err
	}
	return h.renew(ctx)
}

func (h *hollow) renew(ctx context.Context) error {
	holder, seconds, now := hollowName, int32(40), metav1.NowMicro()
	spec := coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &now}
	leases := h.cluster.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	lease, err := leases.Get(ctx, hollowName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: hollowName}, Spec: spec}, metav1.CreateOptions{})
		return err
	}
	if err == nil {
		lease.Spec = spec
		_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	}
	return err
}

func (h *hollow) look(ctx context.Context) error {
	pods, err := h.cluster.CoreV1().Pods("").List(ctx, metav1.ListOptions{ResourceVersion: "0", FieldSelector: "spec.nodeName=" + hollowName})
	if err != nil {
		return err
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		var err error
		switch {
		case p.DeletionTimestamp != nil:
			err = h.cluster.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{
				GracePeriodSeconds: new(int64), Preconditions: metav1.NewUIDPreconditions(string(p.UID))})
		case p.Status.Phase == corev1.PodPending:
			err = h.startPod(ctx, p)
		}
		// Somebody else may have changed or removed it. The next look shows that.
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return err
		}
	}
	return nil
}

func (h *hollow) startPod(ctx context.Context, p *corev1.Pod) error {
	h.pods++
	now := metav1.Now()
	p.Status.Phase = corev1.PodRunning
	p.Status.StartTime = &now
	p.Status.PodIP = fmt.Sprintf("10.42.%d.%d", h.pods>>8&0xff, h.pods&0xff)
	p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	for _, kind := range []corev1.PodConditionType{corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	_, err := h.cluster.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, p, metav1.UpdateOptions{})
	return err
}
