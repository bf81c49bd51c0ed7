package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

const nodeName = "hollow"

// A kubelet's periods, by default.
const (
	renewEvery     = 10 * time.Second
	reportEvery    = 5 * time.Minute
	leaseSeconds   = 40
	podsAtATime    = 10
	attemptsAtPods = 5

	attemptsAtReport = 5
)

// hollow is a node without a machine. It asks of the API server what a kubelet does: it registers itself, renews its
// lease and reports that it is well, watches the pods bound to it, reports them running and lets deleted ones go.
type hollow struct {
	client  kubernetes.Interface
	uid     types.UID // of its Node
	stop    context.CancelFunc
	running sync.WaitGroup
	pods    errgroup.Group // at work for pods

	mu      sync.Mutex
	started map[types.UID]bool
	failed  error
}

// startNode registers a hollow node and runs it until its end is called, which returns what went wrong meanwhile.
func startNode(ctx context.Context, client kubernetes.Interface) (*hollow, error) {
	h := &hollow{client: client, started: map[types.UID]bool{}}
	h.pods.SetLimit(podsAtATime)
	if err := h.register(ctx); err != nil {
		return nil, fmt.Errorf("registering a node: %w", err)
	}
	ctx, h.stop = context.WithCancel(ctx)
	h.running.Go(func() { h.keepUp(ctx) })
	h.running.Go(func() { h.followPods(ctx) })
	return h, nil
}

func (h *hollow) end() error {
	h.stop()
	h.running.Wait()
	_ = h.pods.Wait() // failures are noted
	return h.failed
}

// note keeps what went wrong, but not that it was told to end.
func (h *hollow) note(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failed = errors.Join(h.failed, fmt.Errorf("hollow node: %w", err))
}

func (h *hollow) register(ctx context.Context) error {
	self := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{corev1.LabelHostname: nodeName}}}
	created, err := h.client.CoreV1().Nodes().Create(ctx, self, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	h.uid = created.UID
	if err := h.renew(ctx); err != nil {
		return err
	}
	return h.report(ctx)
}

// report says that the node is well, and how much it has room for. As a kubelet it begins with what the API server has in its
// cache, which may be behind, and goes on with what there is.
func (h *hollow) report(ctx context.Context) error {
	err := h.reportOn(ctx, metav1.GetOptions{ResourceVersion: "0"})
	for range attemptsAtReport - 1 {
		if !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			break
		}
		err = h.reportOn(ctx, metav1.GetOptions{})
	}
	return err
}

func (h *hollow) reportOn(ctx context.Context, from metav1.GetOptions) error {
	self, err := h.client.CoreV1().Nodes().Get(ctx, nodeName, from)
	if err != nil {
		return err
	}
	resources := corev1.ResourceList{
		corev1.ResourcePods:   resource.MustParse("10k"),
		corev1.ResourceCPU:    resource.MustParse("1k"),
		corev1.ResourceMemory: resource.MustParse("1Ti"),
	}
	self.Status.Capacity, self.Status.Allocatable = resources, resources
	now := metav1.Now()
	since := now
	if len(self.Status.Conditions) > 0 {
		since = self.Status.Conditions[0].LastTransitionTime
	}
	self.Status.Conditions = nil
	// In the same order each time, as a kubelet does: a heartbeat changes nothing but times.
	for _, c := range []corev1.NodeCondition{
		{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse}, {Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse},
		{Type: corev1.NodePIDPressure, Status: corev1.ConditionFalse}, {Type: corev1.NodeReady, Status: corev1.ConditionTrue},
	} {
		c.Reason, c.LastHeartbeatTime, c.LastTransitionTime = "Hollow", now, since
		self.Status.Conditions = append(self.Status.Conditions, c)
	}
	_, err = h.client.CoreV1().Nodes().UpdateStatus(ctx, self, metav1.UpdateOptions{})
	return err
}

func (h *hollow) renew(ctx context.Context) error {
	holder, seconds, now := nodeName, int32(leaseSeconds), metav1.NowMicro()
	spec := coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &now}
	leases := h.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	lease, err := leases.Get(ctx, nodeName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		owner := metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: nodeName, UID: h.uid}
		_, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: nodeName, OwnerReferences: []metav1.OwnerReference{owner}}, Spec: spec,
		}, metav1.CreateOptions{})
	case err == nil:
		lease.Spec = spec
		_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	}
	return err
}

func (h *hollow) keepUp(ctx context.Context) {
	renew, report := time.NewTicker(renewEvery), time.NewTicker(reportEvery)
	defer renew.Stop()
	defer report.Stop()
	for {
		select {
		case <-renew.C:
			h.note(ctx, h.renew(ctx))
		case <-report.C:
			h.note(ctx, h.report(ctx))
		case <-ctx.Done():
			return
		}
	}
}

// followPods watches the pods of the node. A watch ends now and then, and begins anew with all that there are.
func (h *hollow) followPods(ctx context.Context) {
	mine := metav1.ListOptions{ResourceVersion: "0", FieldSelector: fields.OneTermEqualSelector("spec.nodeName", nodeName).String()}
	for ctx.Err() == nil {
		w, err := h.client.CoreV1().Pods("").Watch(ctx, mine)
		if err != nil {
			h.note(ctx, err)
			return
		}
		for event := range w.ResultChan() {
			if p, ok := event.Object.(*corev1.Pod); ok && event.Type != watch.Deleted {
				h.pods.Go(func() error {
					h.note(ctx, h.tend(ctx, p))
					return nil
				})
			}
		}
		w.Stop()
	}
}

// tend does what a pod needs next.
func (h *hollow) tend(ctx context.Context, p *corev1.Pod) (err error) {
	pods := h.client.CoreV1().Pods(p.Namespace)
	for range attemptsAtPods {
		switch {
		case p.DeletionTimestamp != nil:
			err = pods.Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64), Preconditions: metav1.NewUIDPreconditions(string(p.UID))})
			if apierrors.IsConflict(err) { // another of that name: this one is gone
				return nil
			}
		case h.begins(p.UID):
			_, err = pods.UpdateStatus(ctx, h.asRunning(p), metav1.UpdateOptions{})
		}
		if !apierrors.IsConflict(err) {
			return ignoreNotFound(err)
		}
		// Somebody else has changed it meanwhile.
		h.mu.Lock()
		delete(h.started, p.UID)
		h.mu.Unlock()
		now, getErr := pods.Get(ctx, p.Name, metav1.GetOptions{})
		if getErr != nil || now.UID != p.UID {
			return ignoreNotFound(getErr)
		}
		p = now
	}
	return err
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// begins reports whether a pod has not been started yet, and says that it is now.
func (h *hollow) begins(uid types.UID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	begins := !h.started[uid]
	h.started[uid] = true
	return begins
}

// asRunning is a pod with the status of one that runs.
func (h *hollow) asRunning(p *corev1.Pod) *corev1.Pod {
	h.mu.Lock()
	n := len(h.started)
	h.mu.Unlock()
	p, now := p.DeepCopy(), metav1.Now()
	p.Status.Phase, p.Status.StartTime = corev1.PodRunning, &now
	p.Status.PodIP = fmt.Sprintf("10.42.%d.%d", n>>8&0xff, n&0xff)
	p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	for _, kind := range []corev1.PodConditionType{corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	for _, c := range p.Spec.Containers {
		started := true
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, Ready: true, Started: &started,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
	return p
}
