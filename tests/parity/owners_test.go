package parity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/hollow"
)

var owners = []trial{
	{"cascade-foreground", "garbage-collector-controller", cascadeForeground},
	{"cascade-background", "garbage-collector-controller", cascadeBackground},
	{"cascade-orphan", "garbage-collector-controller", cascadeOrphan},
	{"absent-owner", "garbage-collector-controller", absentOwner},
	{"cascade-workload", "garbage-collector-controller deployment-controller replicaset-controller job-controller", cascadeWorkload},
	{"quota", "resourcequota-controller replicaset-controller", quota},
	{"namespace-termination", "namespace-controller garbage-collector-controller", namespaceTermination},
	{"service-accounts", "serviceaccount-controller serviceaccount-token-controller", serviceAccounts},
	{"root-ca", "root-ca-certificate-publisher-controller", rootCA},
	{"cluster-roles", "clusterrole-aggregation-controller", clusterRoles},
	{"admission-policies", "validatingadmissionpolicy-status-controller", admissionPolicies},
}

// customResources come first: who needs discovery for them looks now and then.
var customResources = []trial{
	{"custom-resources", "garbage-collector-controller namespace-controller", customOwners},
	{"custom-quota", "resourcequota-controller", customQuota},
	{"custom-termination", "namespace-controller garbage-collector-controller", customTermination},
	{"custom-migration", "storage-version-migrator-controller garbage-collector-controller", customMigration},
}

const configMap = "{apiVersion: v1, kind: ConfigMap, metadata: {name: %s, finalizers: [%s], ownerReferences: %s}}"

// heldBy is a finalizer that the test takes away itself.
const heldBy = "parity.example/held"

// owns is an owner reference to each of the objects.
func owns(blocking bool, all ...*object) string {
	var refs []string
	for _, o := range all {
		refs = append(refs, fmt.Sprintf("{apiVersion: %s, kind: %s, name: %s, uid: %s, blockOwnerDeletion: %v}",
			o.GetAPIVersion(), o.GetKind(), o.GetName(), o.GetUID(), blocking))
	}
	return "[" + strings.Join(refs, ", ") + "]"
}

func (r *run) release(ref string) {
	r.Helper()
	r.patch(ref, "metadata: {finalizers: null}")
}

// Dependents go first, and their own before them.
func cascadeForeground(r *run) {
	owner := r.apply(configMap, "owner", "", "[]")
	child := r.apply(configMap, "child", "", owns(true, owner))
	r.apply(configMap, "free", heldBy, owns(false, owner))
	r.apply(configMap, "grandchild", heldBy, owns(true, child))
	r.delete("configmaps/owner", metav1.DeletePropagationForeground)
	r.reaches("configmaps/grandchild", "metadata: {deletionTimestamp: '*', finalizers: [%s]}", heldBy)
	r.reaches("configmaps/free", "metadata: {deletionTimestamp: '*'}")
	r.reaches("configmaps/child", "metadata: {deletionTimestamp: '*', finalizers: [foregroundDeletion]}")
	r.reaches("configmaps/owner", "metadata: {deletionTimestamp: '*', finalizers: [foregroundDeletion]}")
	r.release("configmaps/grandchild")
	r.absent("configmaps/grandchild")
	r.absent("configmaps/child")
	r.absent("configmaps/owner") // one that does not block is not waited for
	r.reaches("configmaps/free", "metadata: {deletionTimestamp: '*', finalizers: [%s]}", heldBy)
	r.release("configmaps/free")
	r.absent("configmaps/free")
}

// The owner goes first; what else has an owner stays.
func cascadeBackground(r *run) {
	owner := r.apply(configMap, "owner", heldBy, "[]")
	other := r.apply(configMap, "other", "", "[]")
	child := r.apply(configMap, "child", "", owns(true, owner))
	r.apply(configMap, "grandchild", "", owns(true, child))
	r.apply(configMap, "shared", "", owns(false, owner, other))
	r.delete("configmaps/owner", metav1.DeletePropagationBackground)
	// As long as a finalizer keeps the owner, its dependents have one.
	r.reaches("configmaps/owner", "metadata: {deletionTimestamp: '*', finalizers: [%s]}", heldBy)
	r.reaches("configmaps/child", "metadata: {deletionTimestamp: null}")
	r.release("configmaps/owner")
	r.absent("configmaps/owner")
	r.absent("configmaps/child")
	r.absent("configmaps/grandchild")
	r.want("configmaps/shared", "metadata: {deletionTimestamp: null, ownerReferences: %s}", owns(false, other))
	r.want("configmaps/other", "metadata: {deletionTimestamp: null}")
}

func cascadeOrphan(r *run) {
	owner := r.apply(configMap, "owner", "", "[]")
	other := r.apply(configMap, "other", "", "[]")
	for i := range 3 {
		r.apply(configMap, fmt.Sprintf("child-%d", i), "", owns(true, owner))
	}
	r.apply(configMap, "shared", "", owns(true, owner, other))
	r.delete("configmaps/owner", metav1.DeletePropagationOrphan)
	r.absent("configmaps/owner")
	for i := range 3 {
		r.want(fmt.Sprintf("configmaps/child-%d", i), "metadata: {deletionTimestamp: null, ownerReferences: null}")
	}
	r.want("configmaps/shared", "metadata: {deletionTimestamp: null, ownerReferences: %s}", owns(true, other))
}

// An owner that does not exist, or cannot be one.
func absentOwner(r *run) {
	const refs = "[{apiVersion: v1, kind: %s, name: %s, uid: %s}]"
	ghost := "11111111-2222-3333-4444-555555555555"
	r.apply(configMap, "of-nobody", "", fmt.Sprintf(refs, "ConfigMap", "nobody", ghost))
	r.absent("configmaps/of-nobody")
	// Of that name, but another.
	namesake := r.apply(configMap, "namesake", "", "[]")
	r.apply(configMap, "of-namesake", "", fmt.Sprintf(refs, "ConfigMap", "namesake", ghost))
	r.absent("configmaps/of-namesake")
	r.want("configmaps/namesake", "metadata: {uid: %s, deletionTimestamp: null}", namesake.GetUID())
	// An owner in another namespace is none.
	other := r.another("other")
	foreign := other.apply(configMap, "foreign", "", "[]")
	r.apply(configMap, "of-foreign", "", owns(false, foreign))
	r.absent("configmaps/of-foreign")
	r.event("ConfigMap", "of-foreign", "OwnerRefInvalidNamespace", "")
	other.want("configmaps/foreign", "metadata: {deletionTimestamp: null}")
	// A node may own what is in a namespace.
	node := r.get("nodes/hollow-0")
	r.apply(configMap, "of-node", "", owns(false, node))
	r.want("configmaps/of-node", "metadata: {deletionTimestamp: null}")
}

func cascadeWorkload(r *run) {
	r.apply(deployment, 3, "paused: false", "1")
	r.job("work", "parallelism: 2", "")
	r.reaches("deployments/web", "status: {readyReplicas: 3}")
	r.reaches("jobs/work", "status: {active: 2}")
	victim := r.list("pods", "app=web")[0].GetName()
	r.patch("pods/"+victim, "metadata: {annotations: {%s: 'true'}}", hollow.Linger)
	r.delete("deployments/web", metav1.DeletePropagationForeground)
	r.delete("jobs/work", metav1.DeletePropagationForeground)
	r.absent("jobs/work")
	r.counted(1, "pods", "", "metadata: {name: %s, deletionTimestamp: '*'}", victim)
	r.counted(1, "replicasets", "", "metadata: {deletionTimestamp: '*', finalizers: [foregroundDeletion]}")
	r.reaches("deployments/web", "metadata: {deletionTimestamp: '*', finalizers: [foregroundDeletion]}")
	r.patch("pods/"+victim, "metadata: {annotations: {%s: null}}", hollow.Linger)
	r.absent("deployments/web")
	r.count(0, "replicasets", "", "{}")
	r.count(0, "pods", "", "{}")
}

// widgets makes a kind of its own for a case.
func (r *run) widgets() (resource, apiVersion string) {
	r.Helper()
	group := r.ns + ".parity.example"
	r.apply(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.%[1]s}
spec:
  group: %[1]s
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, listKind: WidgetList}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]`, group)
	r.reaches("customresourcedefinitions/widgets."+group, "status: {conditions: [{type: Established, status: 'True'}]}")
	return "widgets." + group, group + "/v1"
}

const widget = "{apiVersion: %s, kind: Widget, metadata: {name: %s, finalizers: [%s], ownerReferences: %s}}"

func customOwners(r *run) {
	widgets, version := r.widgets()
	// One of each at both ends.
	owner := r.apply(widget, version, "owner", "", "[]")
	r.apply(configMap, "of-widget", "", owns(true, owner))
	plain := r.apply(configMap, "plain", "", "[]")
	r.apply(widget, version, "of-plain", "", owns(true, plain))
	child := r.apply(widget, version, "child", "", owns(true, owner))
	r.apply(widget, version, "grandchild", heldBy, owns(true, child))
	r.apply(widget, version, "of-nobody", "", "[{apiVersion: v1, kind: ConfigMap, name: nobody, uid: '1'}]")
	r.absent(widgets + "/of-nobody")
	r.delete("configmaps/plain", metav1.DeletePropagationBackground)
	r.absent(widgets + "/of-plain")
	r.delete(widgets+"/owner", metav1.DeletePropagationForeground)
	r.absent("configmaps/of-widget")
	r.reaches(widgets+"/grandchild", "metadata: {deletionTimestamp: '*'}")
	r.reaches(widgets+"/owner", "metadata: {deletionTimestamp: '*', finalizers: [foregroundDeletion]}")
	r.release(widgets + "/grandchild")
	r.absent(widgets + "/grandchild")
	r.absent(widgets + "/child")
	r.absent(widgets + "/owner")
	// With its definition a kind goes.
	r.apply(widget, version, "last", "", "[]")
	r.delete("customresourcedefinitions/" + widgets)
	r.absent("customresourcedefinitions/" + widgets)
}

// allowed creates an object for which there is room in a quota again, which
// admission may come to know later than others.
func (r *run) allowed(manifest string, args ...any) {
	r.Helper()
	r.eventually("admission", func(context.Context) error {
		_, err := r.create(manifest, args...)
		return err
	})
}

const quotaOf = "{apiVersion: v1, kind: ResourceQuota, metadata: {name: %s}, spec: {hard: {%s}}}"

func customQuota(r *run) {
	widgets, version := r.widgets()
	r.apply(widget, version, "first", "", "[]")
	r.apply(quotaOf, "widgets", fmt.Sprintf("count/%s: 2", widgets))
	// Upstream counts a new kind once it knows it and the quota is changed or due.
	changes := 0
	r.eventually("the new kind is counted", func(ctx context.Context) error {
		changes++
		r.patch("resourcequotas/widgets", "spec: {hard: {count/secrets: '%d'}}", changes)
		check, _ := r.matches("resourcequotas/widgets", "status: {hard: {count/secrets: '%d'}}", changes)
		r.eventually("the change is seen", check)
		check, _ = r.matches("resourcequotas/widgets", "status: {used: {count/%s: '1'}}", widgets)
		return check(ctx)
	})
	r.apply(widget, version, "second", "", "[]")
	r.refused("exceeded quota: widgets", widget, version, "third", "", "[]")
	r.delete(widgets + "/first")
	r.reaches("resourcequotas/widgets", "status: {used: {count/%[1]s: '1'}}", widgets)
	r.allowed(widget, version, "third", "", "[]")
	r.want("resourcequotas/widgets", "status: {used: {count/%[1]s: '2'}}", widgets)
}

func quota(r *run) {
	r.apply(quotaOf, "pods", "pods: '3', requests.cpu: '1', count/replicasets.apps: '5'")
	r.reaches("resourcequotas/pods", "status: {used: {pods: '0', requests.cpu: '0', count/replicasets.apps: '0'}}")
	const pod = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec: {containers: [{name: main, image: none, resources: {requests: {cpu: %s}}}]}`
	r.apply(pod, "first", "400m")
	r.apply(pod, "second", "400m")
	r.reaches("resourcequotas/pods", "status: {used: {pods: '2', requests.cpu: 800m}}")
	r.refused("exceeded quota: pods, requested: requests.cpu=400m, used: requests.cpu=800m, limited: requests.cpu=1", pod, "third", "400m")
	// Who has ended uses nothing.
	r.reaches("pods/first", "status: {phase: Running}")
	r.patch("pods/first", "metadata: {annotations: {%s: '0'}}", hollow.Exit)
	r.reaches("resourcequotas/pods", "status: {used: {pods: '1', requests.cpu: 400m}}")
	r.allowed(pod, "third", "400m")
	// Upstream counts what it has seen: a pod that it has not seen yet lets one too many in later.
	r.reaches("pods/third", "status: {phase: Running}")
	r.reaches("resourcequotas/pods", "status: {used: {pods: '2', requests.cpu: 800m}}")
	r.delete("pods/second")
	r.reaches("resourcequotas/pods", "status: {used: {pods: '1', requests.cpu: 400m}}")

	// A controller says that it may not, and goes on once it may.
	r.apply(`
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: set}
spec:
  replicas: 3
  selector: {matchLabels: {app: set}}
  template: {metadata: {labels: {app: set}}, spec: {containers: [{name: main, image: none, resources: {requests: {cpu: 100m}}}]}}`)
	r.reaches("replicasets/set", "status: {replicas: 2, conditions: [{type: ReplicaFailure, status: 'True', reason: FailedCreate}]}")
	r.reaches("resourcequotas/pods", "status: {used: {pods: '3', requests.cpu: 600m, count/replicasets.apps: '1'}}")
	r.patch("resourcequotas/pods", "spec: {hard: {pods: '4'}}")
	r.want("replicasets/set", "status: {replicas: 3, readyReplicas: 3, conditions: null}")
	r.want("resourcequotas/pods", "status: {hard: {pods: '4'}, used: {pods: '4', requests.cpu: 700m}}")

	// What is there already counts, in a scope only what is of it.
	scoped := r.another("scoped")
	for i := range 2 {
		scoped.apply(configMap, fmt.Sprintf("map-%d", i), "", "[]")
	}
	scoped.apply("{apiVersion: v1, kind: Secret, metadata: {name: secret}}")
	scoped.apply("{apiVersion: v1, kind: Service, metadata: {name: out}, spec: {type: ExternalName, externalName: example.com}}")
	scoped.apply(barePod, "plain", "", "", "")
	scoped.apply(pod, "burstable", "10m")
	scoped.apply(barePod, "ending", "", "", "activeDeadlineSeconds: 3600, ")
	scoped.apply(quotaOf, "objects", "configmaps: '9', secrets: '1', services: '1', services.nodeports: '0', persistentvolumeclaims: '0'")
	scoped.want("resourcequotas/objects", "status: {used: {configmaps: '3', secrets: '1', services: '1', services.nodeports: '0'}}") // one is the root certificate
	scoped.refused("exceeded quota", "{apiVersion: v1, kind: Secret, metadata: {name: another}}")
	for scope, used := range map[string]int{"BestEffort": 2, "NotBestEffort": 1, "Terminating": 1, "NotTerminating": 2} {
		name := strings.ToLower(scope)
		scoped.apply("{apiVersion: v1, kind: ResourceQuota, metadata: {name: %s}, spec: {hard: {pods: '9'}, scopes: [%s]}}", name, scope)
		scoped.want("resourcequotas/"+name, "status: {used: {pods: '%d'}}", used)
	}
}

// filled makes a namespace with objects of many kinds.
func filled(r *run) *run {
	full := r.another("full")
	full.apply(deployment, 2, "paused: false", "1")
	full.apply(statefulSet, 1, "", "", "")
	full.job("work", "parallelism: 1", "")
	full.apply(configMap, "map", "", "[]")
	full.apply(configMap, "held", heldBy, "[]")
	full.apply(`
apiVersion: v1
kind: Secret
metadata: {name: secret}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: account}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim}
spec: {accessModes: [ReadWriteOnce], storageClassName: none, resources: {requests: {storage: 1Gi}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: role}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: ingress}
spec: {defaultBackend: {service: {name: db, port: {number: 1}}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: policy}
spec: {podSelector: {}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: budget}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: cron}
spec: {schedule: "0 0 1 1 *", jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: none}]}}}}}
---
apiVersion: v1
kind: LimitRange
metadata: {name: limits}
spec: {limits: [{type: Pod}]}
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: lease}
spec: {holderIdentity: nobody}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: scaler}
spec: {maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: none}}`)
	full.reaches("deployments/web", "status: {readyReplicas: 2}")
	full.reaches("statefulsets/db", "status: {readyReplicas: 1}")
	return full
}

func namespaceTermination(r *run) {
	full := filled(r)
	lingers := full.list("pods", "app=web")[0].GetName()
	full.patch("pods/"+lingers, "metadata: {annotations: {%s: 'true'}}", hollow.Linger)
	full.delete("namespaces/" + full.ns)
	// Pods go before anything that might protect others from them.
	full.reaches("namespaces/"+full.ns, `
spec: {finalizers: [kubernetes]}
status:
  phase: Terminating
  conditions:
  - {type: NamespaceDeletionDiscoveryFailure, status: "False"}
  - {type: NamespaceDeletionGroupVersionParsingFailure, status: "False"}
  - {type: NamespaceDeletionContentFailure, status: "True", reason: ContentDeletionFailed}`)
	full.refused("is being terminated", configMap, "late", "", "[]")
	full.counted(1, "pods", "app=web", "metadata: {name: %s, deletionTimestamp: '*'}", lingers)
	full.reaches("configmaps/held", "metadata: {deletionTimestamp: null}")
	full.reaches("networkpolicies/policy", "metadata: {deletionTimestamp: null}")
	full.patch("pods/"+lingers, "metadata: {annotations: {%s: null}}", hollow.Linger)
	full.reaches("configmaps/held", "metadata: {deletionTimestamp: '*'}")
	full.reaches("namespaces/"+full.ns, `
status:
  phase: Terminating
  conditions:
  - {type: NamespaceDeletionContentFailure, status: "False"}
  - {type: NamespaceContentRemaining, status: "True", reason: SomeResourcesRemain}
  - {type: NamespaceFinalizersRemaining, status: "True", reason: SomeFinalizersRemain}`)
	full.release("configmaps/held")
	full.gone("namespaces/" + full.ns)
	// Nothing of it is left that would come back with its name.
	again := r.another("full")
	again.count(1, "configmaps", "", "metadata: {name: kube-root-ca.crt}")
	again.count(0, "secrets", "", "{}")
	again.count(0, "pods", "", "{}")
	again.count(0, "deployments", "", "{}")
}

func customTermination(r *run) {
	widgets, version := r.widgets()
	full := r.another("full")
	full.apply(widget, version, "held", heldBy, "[]")
	full.apply(widget, version, "free", "", "[]")
	full.delete("namespaces/" + full.ns)
	full.reaches(widgets+"/held", "metadata: {deletionTimestamp: '*'}")
	full.gone(widgets + "/free")
	full.reaches("namespaces/"+full.ns, "status: {phase: Terminating, conditions: [{type: NamespaceFinalizersRemaining, status: 'True'}]}")
	full.release(widgets + "/held")
	full.absent("namespaces/" + full.ns)
}

// customMigration writes all objects of a kind anew, in another version.
func customMigration(r *run) {
	widgets, version := r.widgets()
	for i := range 3 {
		r.apply(widget, version, fmt.Sprintf("widget-%d", i), "", "[]")
	}
	before := r.list(widgets, "")
	const versions = `
spec:
  versions:
  - {name: v1, served: true, storage: false, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
  - {name: v2, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}`
	r.patch("customresourcedefinitions/"+widgets, versions)
	r.reaches("customresourcedefinitions/"+widgets, "status: {storedVersions: [v1, v2]}")
	group, _, _ := strings.Cut(version, "/")
	r.apply(`
apiVersion: storagemigration.k8s.io/v1
kind: StorageVersionMigration
metadata: {name: parity-widgets}
spec: {resource: {group: %s, resource: widgets}}`, group)
	r.want("storageversionmigrations/parity-widgets", "status: {resourceVersion: '*', conditions: [{type: Succeeded, status: 'True'}]}")
	after := r.count(len(before), widgets, "", "metadata: {deletionTimestamp: null}")
	for i, w := range after {
		if w.GetUID() != before[i].GetUID() || w.GetResourceVersion() == before[i].GetResourceVersion() {
			r.Errorf("%s was not written anew: resource version %s", w.GetName(), w.GetResourceVersion())
		}
	}
}

func serviceAccounts(r *run) {
	first := r.get("serviceaccounts/default")
	r.delete("serviceaccounts/default")
	r.eventually("another default service account", func(ctx context.Context) error {
		a, err := r.CoreV1().ServiceAccounts(r.ns).Get(ctx, "default", metav1.GetOptions{})
		if err == nil && a.UID == first.GetUID() {
			err = errors.New("it is the old one")
		}
		return err
	})
	r.want("serviceaccounts/default", "metadata: {deletionTimestamp: null}")

	const token = `
apiVersion: v1
kind: Secret
metadata: {name: %s, annotations: {kubernetes.io/service-account.name: robot}}
type: kubernetes.io/service-account-token`
	// Without its account a token goes.
	r.apply(token, "early")
	r.absent("secrets/early")
	robot := r.apply("{apiVersion: v1, kind: ServiceAccount, metadata: {name: robot}}")
	r.apply(token, "robot")
	full := "{metadata: {annotations: {kubernetes.io/service-account.uid: %s}}, data: {token: '*', ca.crt: '*', namespace: '*'}}"
	r.reaches("secrets/robot", full, robot.GetUID())
	s, err := r.CoreV1().Secrets(r.ns).Get(r.Context(), "robot", metav1.GetOptions{})
	if err != nil {
		r.Fatal(err)
	}
	if ca := r.Config.CAData; !bytes.Equal(bytes.TrimSpace(s.Data["ca.crt"]), bytes.TrimSpace(ca)) {
		r.Errorf("ca.crt is %s, want %s", s.Data["ca.crt"], ca)
	}
	if got := string(s.Data["namespace"]); got != r.ns {
		r.Errorf("namespace is %q", got)
	}
	if user, err := r.whoIs(string(s.Data["token"])); err != nil || user != "system:serviceaccount:"+r.ns+":robot" {
		r.Errorf("the token is one of %q (%v)", user, err)
	}
	// What is taken out is put in again.
	r.patch("secrets/robot", "data: {token: null, ca.crt: null}")
	r.reaches("secrets/robot", full, robot.GetUID())
	r.delete("serviceaccounts/robot")
	r.absent("secrets/robot")
	r.eventually("the token is worth nothing", func(context.Context) error {
		if user, err := r.whoIs(string(s.Data["token"])); err == nil {
			return fmt.Errorf("it is one of %q", user)
		}
		return nil
	})
}

func rootCA(r *run) {
	const name = "configmaps/kube-root-ca.crt"
	is := func() {
		r.Helper()
		r.eventually("the root certificate", func(ctx context.Context) error {
			m, err := r.CoreV1().ConfigMaps(r.ns).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if len(m.Data) != 1 || strings.TrimSpace(m.Data["ca.crt"]) != strings.TrimSpace(string(r.Config.CAData)) {
				return fmt.Errorf("it is %v", m.Data)
			}
			if m.Annotations["kubernetes.io/description"] == "" {
				return fmt.Errorf("its annotations are %v", m.Annotations)
			}
			return nil
		})
	}
	is()
	first := r.get(name)
	r.patch(name, "data: {ca.crt: wrong, more: text}")
	is()
	r.delete(name)
	is()
	if r.get(name).GetUID() == first.GetUID() {
		r.Error("it was not deleted")
	}
	r.want(name, "data: {ca.crt: '*', more: null}")
}

func clusterRoles(r *run) {
	const part = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: parity-%s, labels: {%s}}
rules: [{apiGroups: [""], resources: [%s], verbs: [get]}]`
	r.apply(part, "pods", "parity: part", "pods")
	r.apply(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: parity-all}
aggregationRule: {clusterRoleSelectors: [{matchLabels: {parity: part}}, {matchLabels: {parity: more}}]}`)
	rules := func(resources ...string) string {
		all := ""
		for _, name := range resources {
			all += fmt.Sprintf("{apiGroups: [''], resources: [%s], verbs: [get]}, ", name)
		}
		return all
	}
	const all = "clusterroles/parity-all"
	r.reaches(all, "rules: [%s]", rules("pods"))
	r.apply(part, "secrets", "parity: more", "secrets")
	r.reaches(all, "rules: [%s]", rules("pods", "secrets"))
	r.apply(part, "nodes", "parity: part", "nodes")
	r.reaches(all, "rules: [%s]", rules("nodes", "pods", "secrets"))
	r.patch(all, "rules: [%s]", rules("configmaps")) // is not for users to say
	r.reaches(all, "rules: [%s]", rules("nodes", "pods", "secrets"))
	r.patch("clusterroles/parity-pods", "metadata: {labels: {parity: none}}")
	r.reaches(all, "rules: [%s]", rules("nodes", "secrets"))
	r.delete("clusterroles/parity-secrets")
	r.want(all, "rules: [%s]", rules("nodes"))
	// Upstream's own go on.
	r.apply(part, "admin", "rbac.authorization.k8s.io/aggregate-to-view: 'true'", "parity-things")
	r.eventually("the role view has what was added", func(context.Context) error {
		for _, name := range []string{"view", "edit", "admin"} {
			if !strings.Contains(show(r.get("clusterroles/"+name)), "parity-things") {
				return fmt.Errorf("%s has not", name)
			}
		}
		return nil
	})
}

func admissionPolicies(r *run) {
	const policy = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: parity-%s}
spec:
  matchConstraints: {resourceRules: [{apiGroups: [apps], apiVersions: [v1], operations: [CREATE], resources: [deployments]}]}
  validations: [{expression: "%s"}]`
	r.apply(policy, "good", "object.spec.replicas < 100")
	r.apply(policy, "bad", "object.spec.replicass < 100")
	r.want("validatingadmissionpolicies/parity-good", "status: {observedGeneration: 1, typeChecking: {expressionWarnings: null}}")
	bad := r.reaches("validatingadmissionpolicies/parity-bad", `
status: {observedGeneration: 1, typeChecking: {expressionWarnings: [{fieldRef: "spec.validations[0].expression", warning: "*"}]}}`)
	if text := show(bad); !strings.Contains(text, "undefined field 'replicass'") {
		r.Errorf("the warning does not name the field:\n%s", text)
	}
	r.patch("validatingadmissionpolicies/parity-bad", "spec: {validations: [{expression: 'object.spec.replicas > 100'}]}")
	r.want("validatingadmissionpolicies/parity-bad", "status: {observedGeneration: 2, typeChecking: {expressionWarnings: null}}")
}
