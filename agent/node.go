package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/dormouse-k8s/dormouse/agent/network"
)

// node follows its own Node object: it sets up the pods' network once the
// cluster has assigned addresses, and notices when the node is Ready.
type node struct {
	name       string
	kubeconfig string // the kubelet's: it may see its own Node
	network    network.Config
}

// run follows the Node until ctx is done. It calls ready once the kubelet of
// this run, not one before a restart, has reported Ready.
func (n node) run(ctx context.Context, ready func()) error {
	config, err := clientcmd.BuildConfigFromFlags("", n.kubeconfig)
	if err != nil {
		return fmt.Errorf("read the kubelet's kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("use the kubelet's kubeconfig: %w", err)
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	started := time.Now()
	isReady := false
	follow := func(obj any) {
		self, ok := obj.(*corev1.Node)
		if !ok {
			return
		}
		if err := n.setUpNetwork(self); err != nil {
			cancel(err)
			return
		}
		if !isReady && readySince(self, started) {
			isReady = true
			logrus.Infof("Node %s is Ready", n.name)
			ready()
		}
	}
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "nodes", metav1.NamespaceAll,
			fields.OneTermEqualSelector(metav1.ObjectNameField, n.name)),
		ObjectType: &corev1.Node{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    follow,
			UpdateFunc: func(_, obj any) { follow(obj) },
		},
	})
	informer.RunWithContext(ctx)
	if err := context.Cause(ctx); err != context.Canceled {
		return err
	}
	return nil
}

// setUpNetwork writes the pods' network configuration if the node has its range.
func (n node) setUpNetwork(self *corev1.Node) error {
	cidrs, err := podCIDRs(self)
	if err != nil || len(cidrs) == 0 {
		return err
	}
	changed, err := n.network.Write(cidrs)
	if err != nil {
		return err
	}
	if changed {
		logrus.Infof("Pods of this node get addresses from %s", self.Spec.PodCIDRs)
	}
	return nil
}

func podCIDRs(self *corev1.Node) ([]netip.Prefix, error) {
	var cidrs []netip.Prefix
	for _, s := range self.Spec.PodCIDRs {
		cidr, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("pod range of node %s: %w", self.Name, err)
		}
		cidrs = append(cidrs, cidr)
	}
	return cidrs, nil
}

// readySince reports whether the kubelet has reported Ready at or after start.
// The API keeps whole seconds.
func readySince(self *corev1.Node, start time.Time) bool {
	for _, c := range self.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue && !c.LastHeartbeatTime.Time.Before(start.Truncate(time.Second))
		}
	}
	return false
}
