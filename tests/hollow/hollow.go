// Package hollow is nodes without machines, for servers that run without an
// agent. As a kubelet does, a hollow node registers itself, renews its lease,
// reports the pods bound to it running and ready, and lets deleted ones go. What
// else a pod is to do, its annotations say.
package hollow

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
)

// Annotations of pods. They may be changed while a pod runs.
const (
	// Exit makes the pod's containers end with this code once they run.
	Exit = "hollow/exit"
	// Ready "false" keeps the pod from being ready.
	Ready = "hollow/ready"
	// Linger "true" keeps the pod running although it is deleted.
	Linger = "hollow/linger"
)

const (
	// retryAfter is how long a node waits after something has failed.
	retryAfter = 100 * time.Millisecond
	// renewEvery is how often a node renews its lease.
	renewEvery = 5 * time.Second
)

// addresses is how many pods of this process have got an address.
var addresses atomic.Uint32

// Config describes a node.
type Config struct {
	// Name of the node. Default "hollow".
	Name   string
	Labels map[string]string
	Taints []corev1.Taint
	// Resources replace those that it would have: plenty.
	Resources corev1.ResourceList
}

// Node is a node without a machine. It does not care whether the server is there.
type Node struct {
	config  Config
	cluster *cluster.Cluster
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// Start runs a node until the test ends.
func Start(t testing.TB, c *cluster.Cluster, config Config) *Node {
	if config.Name == "" {
		config.Name = "hollow"
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &Node{config: config, cluster: c, cancel: cancel}
	n.running.Go(func() { n.live(ctx) })
	n.running.Go(func() { n.run(ctx) })
	t.Cleanup(n.Stop)
	return n
}

// Stop ends the node as a power cut does: it says nothing any more, and does
// nothing for its pods.
func (n *Node) Stop() {
	n.cancel()
	n.running.Wait()
}

// live registers the node and renews its lease.
func (n *Node) live(ctx context.Context) {
	for n.register(ctx) != nil {
		if !pause(ctx, retryAfter) {
			return
		}
	}
	for pause(ctx, renewEvery) {
		_ = n.renew(ctx) // what fails is tried again the next time
	}
}

// pause waits, and reports whether ctx lasted as long.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (n *Node) register(ctx context.Context) error {
	labels := map[string]string{corev1.LabelHostname: n.config.Name}
	maps.Copy(labels, n.config.Labels)
	self := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.config.Name, Labels: labels}, Spec: corev1.NodeSpec{Taints: n.config.Taints}}
	nodes := n.cluster.CoreV1().Nodes()
	created, err := nodes.Create(ctx, self, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		created, err = nodes.Get(ctx, n.config.Name, metav1.GetOptions{})
	}
	if err != nil {
		return err
	}
	resources := corev1.ResourceList{
		corev1.ResourcePods:   resource.MustParse("10k"),
		corev1.ResourceCPU:    resource.MustParse("1k"),
		corev1.ResourceMemory: resource.MustParse("1Ti"),
	}
	maps.Copy(resources, n.config.Resources)
	created.Status.Capacity, created.Status.Allocatable = resources, resources
	now := metav1.Now()
	created.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue,
		Reason: "Hollow", LastHeartbeatTime: now, LastTransitionTime: now}}
	if _, err := nodes.UpdateStatus(ctx, created, metav1.UpdateOptions{}); err != nil {
		return err
	}
	return n.renew(ctx)
}

func (n *Node) renew(ctx context.Context) error {
	seconds, now := int32(40), metav1.NowMicro()
	spec := coordinationv1.LeaseSpec{HolderIdentity: &n.config.Name, LeaseDurationSeconds: &seconds, RenewTime: &now}
	leases := n.cluster.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	lease, err := leases.Get(ctx, n.config.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: n.config.Name}, Spec: spec}, metav1.CreateOptions{})
		return err
	}
	if err == nil {
		lease.Spec = spec
		_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	}
	return err
}

// run looks after the pods.
func (n *Node) run(ctx context.Context) {
	for {
		_ = n.follow(ctx) // with the next list comes what was missed
		if !pause(ctx, retryAfter) {
			return
		}
	}
}

// follow looks after the pods until something fails.
func (n *Node) follow(ctx context.Context) error {
	pods, own := n.cluster.CoreV1().Pods(""), metav1.ListOptions{FieldSelector: "spec.nodeName=" + n.config.Name}
	list, err := pods.List(ctx, own)
	if err != nil {
		return err
	}
	for i := range list.Items {
		if err := n.look(ctx, &list.Items[i]); err != nil {
			return err
		}
	}
	own.ResourceVersion = list.ResourceVersion
	watch, err := pods.Watch(ctx, own)
	if err != nil {
		return err
	}
	defer watch.Stop()
	for event := range watch.ResultChan() {
		pod, ok := event.Object.(*corev1.Pod)
		if !ok {
			return fmt.Errorf("follow the pods of %s: %w", n.config.Name, apierrors.FromObject(event.Object))
		}
		if err := n.look(ctx, pod); err != nil {
			return err
		}
	}
	return nil
}

// look brings a pod a step further.
func (n *Node) look(ctx context.Context, p *corev1.Pod) error {
	pods := n.cluster.CoreV1().Pods(p.Namespace)
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		grace := p.DeletionGracePeriodSeconds
		if p.DeletionTimestamp == nil || grace != nil && *grace == 0 && len(p.Finalizers) > 0 {
			return nil
		}
		return unlessChanged(pods.Delete(ctx, p.Name, metav1.DeleteOptions{
			GracePeriodSeconds: new(int64), Preconditions: metav1.NewUIDPreconditions(string(p.UID))}))
	}
	exit, exits := p.Annotations[Exit]
	switch {
	case p.DeletionTimestamp != nil && p.Annotations[Linger] != "true":
		end(p, 137)
	case p.Status.Phase == corev1.PodPending:
		begin(p)
	case exits:
		code, err := strconv.ParseInt(exit, 10, 32)
		if err != nil {
			return fmt.Errorf("annotation %s of pod %s: %w", Exit, p.Name, err)
		}
		end(p, int32(code))
	case cluster.PodReady(p) != (p.Annotations[Ready] != "false"):
		setReady(p)
	default:
		return nil
	}
	_, err := pods.UpdateStatus(ctx, p, metav1.UpdateOptions{})
	return unlessChanged(err)
}

// unlessChanged forgives what fails because somebody else has changed or removed
// a pod meanwhile: that brings an event.
func unlessChanged(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// begin makes a pod run.
func begin(p *corev1.Pod) {
	n, now := addresses.Add(1), metav1.Now()
	p.Status.Phase = corev1.PodRunning
	p.Status.StartTime = &now
	p.Status.PodIP = fmt.Sprintf("10.42.%d.%d", n>>8&0xff, n&0xff)
	p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	for _, c := range p.Spec.Containers {
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: c.Name, Image: c.Image,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}})
	}
	setCondition(p, corev1.PodInitialized, true)
	setReady(p)
}

// setReady makes a running pod ready, if it is to be.
func setReady(p *corev1.Pod) {
	ready := p.Annotations[Ready] != "false"
	for i := range p.Status.ContainerStatuses {
		p.Status.ContainerStatuses[i].Ready = ready
	}
	setCondition(p, corev1.ContainersReady, ready)
	setCondition(p, corev1.PodReady, ready)
}

// end makes a pod's containers end.
func end(p *corev1.Pod, code int32) {
	p.Status.Phase = corev1.PodSucceeded
	if code != 0 {
		p.Status.Phase = corev1.PodFailed
	}
	now := metav1.Now()
	p.Status.ContainerStatuses = nil
	for _, c := range p.Spec.Containers {
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: c.Name, Image: c.Image,
			State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: now}}})
	}
	setCondition(p, corev1.ContainersReady, false)
	setCondition(p, corev1.PodReady, false)
}

func setCondition(p *corev1.Pod, kind corev1.PodConditionType, is bool) {
	want := corev1.PodCondition{Type: kind, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Now()}
	if is {
		want.Status = corev1.ConditionTrue
	}
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == kind {
			if c.Status != want.Status {
				*c = want
			}
			return
		}
	}
	p.Status.Conditions = append(p.Status.Conditions, want)
}
