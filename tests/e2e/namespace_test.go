package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
)

// customKind is a kind of resource that only this cluster has.
const customKind = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: nuts.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: nuts, singular: nut, kind: Nut}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

// manyKinds is something of nearly every kind that a namespace can hold.
const manyKinds = `
{apiVersion: v1, kind: ConfigMap, metadata: {name: one}, data: {a: b}}
---
{apiVersion: v1, kind: Secret, metadata: {name: one}, stringData: {a: b}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: one}}
---
{apiVersion: v1, kind: Service, metadata: {name: one}, spec: {selector: {app: one}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: one}, spec: {accessModes: [ReadWriteOnce], storageClassName: none, resources: {requests: {storage: 1Mi}}}}
---
{apiVersion: v1, kind: ResourceQuota, metadata: {name: one}, spec: {hard: {configmaps: 100}}}
---
{apiVersion: v1, kind: LimitRange, metadata: {name: one}, spec: {limits: [{type: Container, max: {memory: 1Gi}}]}}
---
{apiVersion: v1, kind: PodTemplate, metadata: {name: one}, template: {spec: {containers: [{name: one, image: "docker.io/dormouse/busybox:1"}]}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: one}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: one, image: "docker.io/dormouse/busybox:1", command: [sleep, "3600"]}]}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: one}, spec: {selector: {matchLabels: {app: one}}, template: {metadata: {labels: {app: one}}, spec: {containers: [{name: one, image: "docker.io/dormouse/web:v1"}]}}}}
---
{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: one}, spec: {selector: {matchLabels: {app: two}}, template: {metadata: {labels: {app: two}}, spec: {containers: [{name: one, image: "docker.io/dormouse/web:v1"}]}}}}
---
{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: one}, spec: {serviceName: one, selector: {matchLabels: {app: three}}, template: {metadata: {labels: {app: three}}, spec: {containers: [{name: one, image: "docker.io/dormouse/web:v1"}]}}}}
---
{apiVersion: batch/v1, kind: Job, metadata: {name: one}, spec: {template: {spec: {restartPolicy: Never, containers: [{name: one, image: "docker.io/dormouse/busybox:1", command: ["true"]}]}}}}
---
{apiVersion: batch/v1, kind: CronJob, metadata: {name: one}, spec: {schedule: "0 0 1 1 *", jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: one, image: "docker.io/dormouse/busybox:1"}]}}}}}}
---
{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {name: one}, spec: {maxReplicas: 2, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: other}}}
---
{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: one}, spec: {minAvailable: 1, selector: {matchLabels: {app: none}}}}
---
{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: one}, spec: {defaultBackend: {service: {name: one, port: {number: 80}}}}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: one}, spec: {podSelector: {matchLabels: {app: none}}}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: one}, rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: one}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: one}, subjects: [{kind: ServiceAccount, name: one}]}
---
{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: one}}
---
{apiVersion: example.com/v1, kind: Nut, metadata: {name: one}, spec: {shell: hard}}
`

// TestNamespace: a new namespace gets its service account and the root
// certificate, gets them again when they are removed, and when it is deleted
// everything in it goes, of whatever kind.
func TestNamespace(t *testing.T) {
	w := theNode(t)
	ns := w.namespace(t)
	comesBack := func(what string, get func(context.Context) (string, error)) {
		t.Helper()
		cluster.Eventually(t, what+" of the namespace", func(ctx context.Context) error {
			_, err := get(ctx)
			return err
		})
	}
	rootCA := func(ctx context.Context) (string, error) {
		m, err := w.CoreV1().ConfigMaps(ns).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		if ca := strings.TrimSpace(m.Data["ca.crt"]); ca != strings.TrimSpace(string(w.Config.CAData)) {
			return "", fmt.Errorf("its certificate is %q", ca)
		}
		return string(m.UID), nil
	}
	account := func(ctx context.Context) (string, error) {
		a, err := w.CoreV1().ServiceAccounts(ns).Get(ctx, "default", metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		return string(a.UID), nil
	}
	comesBack("the service account", account)
	comesBack("the root certificate", rootCA)
	w.kubectl(t, ns, "delete", "serviceaccount/default", "configmap/kube-root-ca.crt", "--wait=false")
	comesBack("the removed service account", account)
	comesBack("the removed root certificate", rootCA)
	w.kubectl(t, ns, "patch", "configmap/kube-root-ca.crt", "--patch", `{"data":{"ca.crt":"forged"}}`)
	comesBack("the changed root certificate", rootCA)

	w.apply(t, ns, customKind)
	t.Cleanup(func() {
		if _, err := w.Kubectl(context.Background(), "delete", "crd", "nuts.example.com"); err != nil {
			t.Error(err)
		}
	})
	w.kubectl(t, ns, "wait", "--for=condition=Established", "crd/nuts.example.com", "--timeout=3m")
	w.apply(t, ns, manyKinds)
	before := w.everything(t, ns)
	if n := strings.Count(manyKinds, "---") + 1; len(before) < n {
		t.Errorf("the namespace holds only %v", before)
	}
	w.kubectl(t, ns, "delete", "namespace", ns, "--wait=false")
	cluster.Eventually(t, "the deleted namespace", func(ctx context.Context) error {
		left, err := w.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
		if err == nil {
			return fmt.Errorf("it is still there: %+v", left.Status.Conditions)
		}
		return gone(err)
	})
	if left := w.everything(t, ns); len(left) > 0 {
		t.Errorf("the namespace is gone; left are %v", left)
	}
}

// everything lists all objects of a namespace.
func (w *world) everything(t *testing.T, ns string) []string {
	t.Helper()
	config := rest.CopyConfig(w.Config)
	config.ContentType, config.AcceptContentTypes = "", "" // custom resources speak JSON alone
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	lists, err := w.Discovery().ServerPreferredNamespacedResources()
	if err != nil {
		t.Fatal(err)
	}
	kinds, err := discovery.GroupVersionResources(discovery.FilteredBy(discovery.SupportsAllVerbs{Verbs: []string{"list", "delete"}}, lists))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for kind := range kinds {
		// What happened in a namespace may be reported after its end.
		if kind.GroupResource() == (schema.GroupResource{Resource: "events"}) || kind.GroupResource() == (schema.GroupResource{Group: "events.k8s.io", Resource: "events"}) {
			continue
		}
		list, err := client.Resource(kind).Namespace(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatalf("list %s: %v", kind, err)
		}
		for _, o := range list.Items {
			names = append(names, kind.Resource+"/"+o.GetName())
		}
	}
	return names
}
