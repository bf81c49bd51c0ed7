package server

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// controlPlaneRole is what `kubectl get nodes` shows as the node's role. A kubelet must not set it itself.
const controlPlaneRole = `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":"true"}}}`

// LabelControlPlane labels the node of this server as one with a control plane. kubeconfig is the
// administrator's.
func LabelControlPlane(ctx context.Context, kubeconfig, node string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("reading the kubeconfig to label node %s: %w", node, err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("building a client to label node %s: %w", node, err)
	}
	_, err = client.CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, []byte(controlPlaneRole), metav1.PatchOptions{FieldManager: "dormouse"})
	if err != nil {
		return fmt.Errorf("labelling node %s: %w", node, err)
	}
	return nil
}
