package controllers

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers/options"
)

const (
	added       = controllers.Added
	modified    = controllers.Modified
	terminating = controllers.Terminating
	deleted     = controllers.Deleted
	every       = controllers.Any
)

// apiObject is an object of a built-in resource.
type apiObject interface {
	metav1.Object
	runtime.Object
	Marshal() ([]byte, error)
}

// waking says which events on an object wake a controller: those upon which its
// handlers act, and no others.
type waking struct {
	object apiObject
	wakes  controllers.Events
	// none are resources of which the controller knows no object, or none that counts;
	// of all others it knows some.
	none []string
	// changed says that the event changes each field of Declaration.Changing.
	changed bool
}

//nolint:staticcheck // Endpoints are deprecated, and some controllers keep or follow them.
var endpoints = &corev1.Endpoints{}

// wakings are derived from the handlers that upstream's controllers add to their
// informers, named in the comments. Where a controller only looks an object up, no
// event on it wakes.
var wakings = map[string][]waking{
	"serviceaccount-token-controller": {
		// queueServiceAccountSync; syncServiceAccount acts on accounts that are gone.
		{object: &corev1.ServiceAccount{}, wakes: deleted},
		// queueSecretSync, filtered by type.
		{object: &corev1.Secret{Type: corev1.SecretTypeServiceAccountToken}, wakes: every},
		{object: &corev1.Secret{Type: corev1.SecretTypeOpaque}},
		{object: &corev1.Secret{Type: corev1.SecretTypeBootstrapToken}},
	},
	"endpoints-controller": {
		// onServiceUpdate, onServiceDelete, onPodUpdate, onEndpointsDelete.
		// ShouldPodBeInEndpoints leaves out pods without an address.
		{object: &corev1.Service{}, wakes: every},
		{object: withAddress(pod()), wakes: every},
		{object: withAddress(ownedBy("ReplicaSet", pod())), wakes: every},
		{object: pod()},
		{object: endpoints, wakes: deleted},
	},
	"endpointslice-controller": {
		// onServiceUpdate, onPodUpdate, onEndpointSliceAdd and so on; addNode, updateNode,
		// deleteNode, which are about zones. Pods are as for endpoints-controller.
		{object: &corev1.Service{}, wakes: every},
		{object: withAddress(pod()), wakes: every},
		{object: pod()},
		{object: &discoveryv1.EndpointSlice{}, wakes: every},
		{object: &corev1.Node{}, wakes: every &^ modified},
		{object: &corev1.Node{}, wakes: every, changed: true},
		{object: zoned(&corev1.Node{}), wakes: every},
	},
	"endpointslice-mirroring-controller": {
		// onEndpointsAdd and so on, onEndpointSliceAdd and so on, onServiceAdd and so on.
		{object: endpoints, wakes: every},
		{object: &discoveryv1.EndpointSlice{}, wakes: every},
		{object: &corev1.Service{}, wakes: every},
	},
	"replicationcontroller-controller": {
		// As replicaset-controller.
		{object: &corev1.ReplicationController{}, wakes: every},
		{object: &corev1.ReplicationController{}, wakes: every, none: []string{"replicationcontrollers"}},
		{object: ownedBy("ReplicationController", pod()), wakes: every},
		{object: pod(), wakes: every},
		{object: pod(), none: []string{"replicationcontrollers"}},
		{object: ownedBy("ReplicaSet", pod())},
	},
	"pod-garbage-collector-controller": {
		// No handlers; gc looks at both each 20 seconds. Nodes that go are what it is for.
		{object: pod()},
		{object: &corev1.Node{}, wakes: terminating | deleted},
		// gcTerminating ends pods where a node is out of service.
		{object: tainted(corev1.TaintNodeOutOfService), wakes: every},
		{object: tainted(corev1.TaintNodeUnreachable), wakes: terminating | deleted},
	},
	"resourcequota-controller": {
		// The handlers of the quotas; of quota_monitor.go, UpdateFunc with
		// DefaultUpdateFilter and DeleteFunc.
		{object: &corev1.ResourceQuota{}, wakes: every &^ terminating},
		{object: &corev1.ResourceQuota{}, wakes: every &^ terminating, none: []string{"resourcequotas"}},
		{object: pod(), wakes: every &^ added},
		{object: &corev1.Service{}, wakes: every &^ added},
		{object: &corev1.PersistentVolumeClaim{}, wakes: every &^ added},
		{object: &corev1.ConfigMap{}, wakes: deleted},
		{object: &appsv1.Deployment{}, wakes: deleted},
		{object: pod(), none: []string{"resourcequotas"}},
		{object: &corev1.Secret{}, none: []string{"resourcequotas"}},
		{object: &coordinationv1.Lease{}, none: []string{"resourcequotas"}},
	},
	"namespace-controller": {
		// enqueueNamespace: "don't queue if we aren't deleted".
		{object: &corev1.Namespace{}, wakes: terminating},
	},
	"serviceaccount-controller": {
		// serviceAccountDeleted; namespaceAdded and namespaceUpdated, and syncNamespace
		// leaves those alone that are not active.
		{object: &corev1.ServiceAccount{}, wakes: deleted},
		{object: &corev1.Namespace{}, wakes: added | modified},
	},
	"garbage-collector-controller": {
		// controllerFor: all; of updates processGraphChanges acts upon changed owner
		// references and, in processTransitions, upon deletion timestamps and finalizers of
		// what is being deleted.
		{object: pod(), wakes: every &^ modified},
		{object: pod(), wakes: every, changed: true},
		{object: ownedBy("ReplicaSet", pod()), wakes: every &^ modified},
		{object: ownedBy("ReplicaSet", pod()), wakes: every, changed: true},
		{object: &coordinationv1.Lease{}, wakes: every &^ modified},
	},
	"daemonset-controller": {
		// addDaemonset and so on, addHistory and so on, addPod and so on; addNode and
		// updateNode, there is no handler for nodes that go.
		{object: &appsv1.DaemonSet{}, wakes: every},
		{object: &appsv1.DaemonSet{}, wakes: every, none: []string{"daemonsets.apps"}},
		{object: ownedBy("DaemonSet", &appsv1.ControllerRevision{}), wakes: every},
		{object: ownedBy("StatefulSet", &appsv1.ControllerRevision{})},
		{object: &appsv1.ControllerRevision{}, wakes: every},
		{object: ownedBy("DaemonSet", pod()), wakes: every},
		{object: pod(), wakes: every},
		{object: pod(), none: []string{"daemonsets.apps"}},
		{object: ownedBy("ReplicaSet", pod())},
		{object: ownedBy("Job", pod())},
		{object: &corev1.Node{}, wakes: every &^ deleted},
		{object: &corev1.Node{}, none: []string{"daemonsets.apps"}},
	},
	"job-controller": {
		// addJob and so on, addPod and so on. A pod that an earlier Job has left behind
		// is an orphan with a finalizer.
		{object: &batchv1.Job{}, wakes: every},
		{object: ownedBy("CronJob", &batchv1.Job{}), wakes: every},
		{object: ownedBy("Job", pod()), wakes: every},
		{object: ownedBy("Job", pod()), wakes: every, none: []string{"jobs.batch"}},
		{object: finalized(batchv1.JobTrackingFinalizer, pod()), wakes: every, none: []string{"jobs.batch"}},
		{object: ownedBy("ReplicaSet", pod())},
		{object: ownedBy("StatefulSet", pod())},
	},
	"deployment-controller": {
		// addDeployment and so on, addReplicaSet and so on, deletePod.
		{object: &appsv1.Deployment{}, wakes: every},
		{object: &appsv1.Deployment{}, wakes: every, none: []string{"deployments.apps"}},
		{object: ownedBy("Deployment", &appsv1.ReplicaSet{}), wakes: every},
		{object: &appsv1.ReplicaSet{}, wakes: every},
		{object: &appsv1.ReplicaSet{}, none: []string{"deployments.apps"}},
		{object: ownedBy("Rollout", &appsv1.ReplicaSet{})},
		{object: ownedBy("ReplicaSet", pod()), wakes: deleted},
		{object: ownedBy("DaemonSet", pod())},
		{object: ownedBy("Node", pod())},
	},
	"replicaset-controller": {
		// addRS and so on, addPod and so on.
		{object: &appsv1.ReplicaSet{}, wakes: every},
		{object: ownedBy("Deployment", &appsv1.ReplicaSet{}), wakes: every, none: []string{"replicasets.apps"}},
		{object: ownedBy("ReplicaSet", pod()), wakes: every},
		{object: pod(), wakes: every},
		{object: pod(), none: []string{"replicasets.apps"}},
		{object: ownedBy("StatefulSet", pod())},
		{object: ownedBy("Job", pod())},
		{object: ownedBy("DaemonSet", pod())},
	},
	"horizontal-pod-autoscaler-controller": {
		// enqueueHPA, updateHPA, deleteHPA.
		{object: &autoscalingv2.HorizontalPodAutoscaler{}, wakes: every},
		{object: pod()},
	},
	"disruption-controller": {
		// addDB and so on, addPod and so on.
		{object: &policyv1.PodDisruptionBudget{}, wakes: every},
		{object: &policyv1.PodDisruptionBudget{}, wakes: every, none: []string{"poddisruptionbudgets.policy"}},
		{object: pod(), wakes: every},
		{object: ownedBy("ReplicaSet", pod()), wakes: every},
		{object: pod(), none: []string{"poddisruptionbudgets.policy"}},
		{object: &corev1.ReplicationController{}},
		{object: &appsv1.ReplicaSet{}},
		{object: &appsv1.Deployment{}},
		{object: &appsv1.StatefulSet{}},
	},
	"statefulset-controller": {
		// enqueueStatefulSet, addPod and so on.
		{object: &appsv1.StatefulSet{}, wakes: every},
		{object: &appsv1.StatefulSet{}, wakes: every, none: []string{"statefulsets.apps"}},
		{object: ownedBy("StatefulSet", pod()), wakes: every},
		{object: pod(), wakes: every},
		{object: pod(), none: []string{"statefulsets.apps"}},
		{object: ownedBy("ReplicaSet", pod())},
		{object: &corev1.PersistentVolumeClaim{}},
		{object: &appsv1.ControllerRevision{}},
	},
	"cronjob-controller": {
		// enqueueController, updateCronJob; addJob and so on, which care for no orphan.
		{object: &batchv1.CronJob{}, wakes: every},
		{object: &batchv1.CronJob{}, wakes: every, none: []string{"cronjobs.batch"}},
		{object: ownedBy("CronJob", &batchv1.Job{}), wakes: every},
		{object: ownedBy("Workflow", &batchv1.Job{})},
		{object: &batchv1.Job{}, none: []string{"cronjobs.batch"}},
	},
	"certificatesigningrequest-signing-controller":   {{object: &certificatesv1.CertificateSigningRequest{}, wakes: every &^ deleted}},
	"certificatesigningrequest-approving-controller": {{object: &certificatesv1.CertificateSigningRequest{}, wakes: every &^ deleted}},
	"certificatesigningrequest-cleaner-controller":   {{object: &certificatesv1.CertificateSigningRequest{}}},
	"podcertificaterequest-cleaner-controller":       {{object: &certificatesv1.PodCertificateRequest{}}},
	"ttl-controller": {
		// addNode, updateNode; of deleteNode see the declaration.
		{object: &corev1.Node{}, wakes: every &^ deleted},
	},
	"bootstrap-signer-controller": {
		// Filtered by name, without DeleteFunc; filtered by type.
		{object: named("cluster-info", &corev1.ConfigMap{}), wakes: every &^ deleted},
		{object: named("other", &corev1.ConfigMap{})},
		{object: &corev1.Secret{Type: corev1.SecretTypeBootstrapToken}, wakes: every},
		{object: &corev1.Secret{Type: corev1.SecretTypeOpaque}},
	},
	"token-cleaner-controller": {
		// Filtered by type, without DeleteFunc.
		{object: &corev1.Secret{Type: corev1.SecretTypeBootstrapToken}, wakes: every &^ deleted},
		{object: &corev1.Secret{Type: corev1.SecretTypeServiceAccountToken}},
	},
	"node-ipam-controller": {
		// range_allocator.go; a node gets its ranges when it comes.
		{object: &corev1.Node{}, wakes: every &^ modified},
	},
	"node-lifecycle-controller": {
		// nodeUpdateQueue; podUpdated, of pods that come to a node, where processPod acts
		// if the node is not ready.
		{object: &corev1.Node{}, wakes: every},
		{object: &corev1.Node{}, wakes: every, none: []string{"nodes"}},
		{object: pod(), wakes: added | modified},
		{object: pod(), none: []string{"nodes"}},
		{object: &coordinationv1.Lease{}},
		{object: &appsv1.DaemonSet{}},
	},
	"taint-eviction-controller": {
		// NodeUpdated and PodUpdated, where processPodOnNode acts upon nodes that have, or
		// had, a taint with the effect NoExecute (getNoExecuteTaints).
		{object: tainted("gone"), wakes: every, none: []string{"nodes"}},
		{object: &corev1.Node{}, none: []string{"nodes"}},
		{object: &corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "full", Effect: corev1.TaintEffectNoSchedule}}}}, none: []string{"nodes"}},
		{object: &corev1.Node{}, wakes: every},
		{object: pod(), wakes: every},
		{object: pod(), none: []string{"nodes"}},
	},
	"device-taint-eviction-controller": {
		// handlePodChange, handleClaimChange, handleSliceChange, handleRuleChange.
		{object: &resourcev1.ResourceSlice{}, wakes: every},
		{object: &resourcev1.DeviceTaintRule{}, wakes: every, none: []string{"devicetaintrules.resource.k8s.io"}},
		{object: &resourcev1.DeviceTaintRule{}, wakes: every},
		{object: &resourcev1.ResourceClaim{}, wakes: every},
		{object: &resourcev1.ResourceClaim{}, wakes: every, none: []string{"devicetaintrules.resource.k8s.io"}},
		{object: &resourcev1.ResourceClaim{}, none: []string{"devicetaintrules.resource.k8s.io", "resourceslices.resource.k8s.io"}},
		{object: claiming(pod()), wakes: every},
		{object: claiming(pod()), none: []string{"devicetaintrules.resource.k8s.io", "resourceslices.resource.k8s.io"}},
		{object: pod()},
		{object: &resourcev1.DeviceClass{}},
	},
	"persistentvolume-binder-controller": {
		// enqueueWork for volumes and claims. A class, which has no handler, wakes for
		// the claims that waited for it.
		{object: &corev1.PersistentVolume{}, wakes: every},
		{object: &corev1.PersistentVolumeClaim{}, wakes: every},
		{object: &storagev1.StorageClass{}, wakes: every},
		{object: pod(claimVolume)},
		{object: &corev1.Node{}},
	},
	"persistentvolume-attach-detach-controller": {
		// podAdd and so on, of pods with volumes that can be attached; nodeAdd and so on;
		// enqueuePVC. The others are looked up at once by these.
		{object: pod(claimVolume), wakes: every},
		{object: pod(ephemeralVolume), wakes: every},
		{object: pod(corev1.VolumeSource{ISCSI: &corev1.ISCSIVolumeSource{}}), wakes: every},
		{object: pod(corev1.VolumeSource{FC: &corev1.FCVolumeSource{}}), wakes: every},
		{object: pod(corev1.VolumeSource{Cinder: &corev1.CinderVolumeSource{}}), wakes: every},
		{object: pod(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}, claimVolume), wakes: every},
		{object: pod(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})},
		{object: pod(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{}})},
		{object: pod()},
		{object: &corev1.Node{}, wakes: every},
		{object: &corev1.PersistentVolumeClaim{}, wakes: every &^ deleted},
		{object: &corev1.PersistentVolume{}, wakes: every &^ deleted},
		{object: &storagev1.CSINode{}, wakes: every &^ deleted},
		{object: &storagev1.CSIDriver{}, wakes: every &^ deleted},
		{object: &storagev1.VolumeAttachment{}, wakes: every &^ added},
	},
	"persistentvolume-expander-controller": {
		// enqueuePVC, of claims that are bound.
		{object: claim(corev1.ClaimBound), wakes: every &^ deleted},
		{object: claim(corev1.ClaimPending)},
	},
	"clusterrole-aggregation-controller": {{object: &rbacv1.ClusterRole{}, wakes: every}},
	"persistentvolumeclaim-protection-controller": {
		// pvcAddedUpdated; enqueuePVCs.
		{object: &corev1.PersistentVolumeClaim{}, wakes: every &^ deleted},
		{object: pod(claimVolume), wakes: every},
		{object: pod(ephemeralVolume), wakes: every},
		{object: pod(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{}})},
		{object: pod()},
	},
	// pvAddedUpdated.
	"persistentvolume-protection-controller": {{object: &corev1.PersistentVolume{}, wakes: every &^ deleted}},
	"ttl-after-finished-controller": {
		// addJob and updateJob: with a TTL, and not being deleted.
		{object: &batchv1.Job{Spec: batchv1.JobSpec{TTLSecondsAfterFinished: new(int32)}}, wakes: added | modified},
		{object: &batchv1.Job{}},
	},
	"root-ca-certificate-publisher-controller": {
		// configMapUpdated and configMapDeleted, by name; namespaceAdded and
		// namespaceUpdated, of active namespaces.
		{object: named("kube-root-ca.crt", &corev1.ConfigMap{}), wakes: every &^ added},
		{object: named("other", &corev1.ConfigMap{})},
		{object: &corev1.Namespace{}, wakes: added | modified},
	},
	"kube-apiserver-serving-clustertrustbundle-publisher-controller": {{object: &certificatesv1.ClusterTrustBundle{}, wakes: every}},
	"ephemeral-volume-controller": {
		// enqueuePod, for pods that come; onPVCDelete.
		{object: pod(ephemeralVolume), wakes: added},
		{object: pod(claimVolume)},
		{object: pod()},
		{object: &corev1.PersistentVolumeClaim{}, wakes: deleted},
	},
	"resourceclaim-controller": {
		// enqueuePod, enqueueResourceClaim, enqueueResourceClaimTemplate.
		{object: claiming(pod()), wakes: every},
		{object: &corev1.Pod{Status: corev1.PodStatus{ExtendedResourceClaimStatus: &corev1.PodExtendedResourceClaimStatus{}}}, wakes: every},
		{object: pod()},
		{object: &resourcev1.ResourceClaim{}, wakes: every},
		{object: &resourcev1.ResourceClaimTemplate{}, wakes: every &^ deleted},
	},
	"legacy-serviceaccount-token-cleaner-controller": {
		// No handlers.
		{object: &corev1.ServiceAccount{}},
		{object: &corev1.Secret{Type: corev1.SecretTypeServiceAccountToken}},
		{object: pod()},
	},
	// No DeleteFunc.
	"validatingadmissionpolicy-status-controller": {{object: &admissionv1.ValidatingAdmissionPolicy{}, wakes: every &^ deleted}},
	"volumeattributesclass-protection-controller": {
		// vacAddedUpdated; pvcUpdated and pvcDeleted; pvUpdated and pvDeleted. Of those
		// that come see the declaration.
		{object: &storagev1.VolumeAttributesClass{}, wakes: every &^ deleted},
		{object: &storagev1.VolumeAttributesClass{}, wakes: every &^ deleted, none: []string{"volumeattributesclasses.storage.k8s.io"}},
		{object: &corev1.PersistentVolumeClaim{}, wakes: every},
		{object: &corev1.PersistentVolume{}, wakes: every},
		{object: &corev1.PersistentVolumeClaim{}, none: []string{"volumeattributesclasses.storage.k8s.io"}},
		{object: &corev1.PersistentVolume{}, none: []string{"volumeattributesclasses.storage.k8s.io"}},
	},
	"service-cidr-controller": {
		// addServiceCIDR and so on; deleteIPAddress, of addIPAddress see the declaration.
		{object: &networkingv1.ServiceCIDR{}, wakes: every},
		{object: &networkingv1.IPAddress{}, wakes: deleted},
	},
	"storage-version-migrator-controller": {
		{object: &storagemigrationv1.StorageVersionMigration{}, wakes: every},
		{object: pod()},
		{object: &corev1.Secret{}},
	},
	"selinux-warning-controller": {
		// enqueuePod and updatePod; addPVC and updatePVC; addPV and updatePV;
		// addCSIDriver and so on.
		{object: pod(), wakes: every},
		{object: &corev1.PersistentVolumeClaim{}, wakes: every &^ deleted},
		{object: &corev1.PersistentVolume{}, wakes: every &^ deleted},
		{object: &storagev1.CSIDriver{}, wakes: every},
	},
	options.Scheduler: {
		// addAllEventHandlers; what is only looked up by plugins has no handler.
		{object: pod(), wakes: every},
		{object: ownedBy("ReplicaSet", pod()), wakes: every},
		{object: &corev1.Node{}, wakes: every},
		{object: &corev1.PersistentVolume{}, wakes: every},
		{object: &corev1.PersistentVolumeClaim{}, wakes: every},
		{object: &storagev1.StorageClass{}, wakes: every},
		{object: &storagev1.CSINode{}, wakes: every},
		{object: &storagev1.CSIDriver{}, wakes: every},
		{object: &storagev1.CSIStorageCapacity{}, wakes: every},
		{object: &storagev1.VolumeAttachment{}, wakes: every},
		{object: &resourcev1.ResourceClaim{}, wakes: every},
		{object: &resourcev1.ResourceSlice{}, wakes: every},
		{object: &resourcev1.DeviceClass{}, wakes: every},
		{object: &resourcev1.DeviceTaintRule{}, wakes: every},
		{object: &corev1.Namespace{}},
		{object: &corev1.Service{}},
		{object: &corev1.ReplicationController{}},
		{object: &appsv1.ReplicaSet{}},
		{object: &appsv1.StatefulSet{}},
		{object: &policyv1.PodDisruptionBudget{}},
		// With no pod to place, all it does with events is to keep what it knows up to date.
		{object: &corev1.Node{}, none: []string{"pods"}},
		{object: &corev1.PersistentVolume{}, none: []string{"pods"}},
		{object: pod(), none: []string{"pods"}},
		{object: &corev1.Pod{}, wakes: every, none: []string{"pods"}},
	},
}

// TestEventsThatUpstreamActsUponWake compares each declaration with wakings, which
// has to have a case for each resource.
func TestEventsThatUpstreamActsUponWake(t *testing.T) {
	for _, d := range controllers.All() {
		t.Run(d.Name, func(t *testing.T) {
			seen := map[string]bool{}
			for i, w := range wakings[d.Name] {
				resource := resourceOf(t, w.object)
				seen[resource] = true
				for _, event := range []controllers.Events{added, modified, terminating, deleted} {
					want := w.wakes&event != 0
					if got := wakes(t, d, resource, w, event); got != want {
						t.Errorf("case %d: %s of %s wakes it: %v, want %v", i, kindOf(event), resource, got, want)
					}
				}
			}
			for _, r := range d.Resources {
				if r != "*" && !seen[r] {
					t.Errorf("no case for %s", r)
				}
			}
		})
	}
}

// wakes is what a declaration says of an event: see its documentation.
func wakes(t *testing.T, d controllers.Declaration, resource string, w waking, event controllers.Events) bool {
	encoded, err := w.object.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	is := func(f controllers.Field) bool {
		return f.Absent != has(t, encoded, f.Path, func(content []byte) bool {
			return f.Absent && len(content) > 0 || !f.Absent && (f.Value == "" || f.Value == string(content))
		})
	}
	changed := w.changed && len(d.MayNotChange(resource)) > 0
	if d.MayWait(resource)&event != 0 && !changed && !slices.ContainsFunc(d.Urgent[resource], is) {
		return false
	}
	if kinds, ruled := d.Owned[resource]; ruled {
		if o := metav1.GetControllerOfNoCopy(w.object); o != nil && !slices.Contains(kinds, o.Kind) {
			return false
		}
	}
	if others, ruled := d.Without[resource]; ruled {
		if !slices.ContainsFunc(others, func(o string) bool { return !slices.Contains(w.none, o) }) {
			return false
		}
	}
	for other, fields := range d.Purpose {
		if slices.Contains(w.none, other) && (other != resource || !slices.ContainsFunc(fields, is)) {
			return false
		}
	}
	fields, ruled := d.Having[resource]
	return !ruled || slices.ContainsFunc(fields, is)
}

// tainted is a node with a taint among others.
func tainted(key string) *corev1.Node {
	return &corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{
		{Key: "example.com/x", Effect: corev1.TaintEffectNoSchedule},
		{Key: key, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute},
	}}}
}

func zoned(n *corev1.Node) *corev1.Node {
	n.SetLabels(map[string]string{corev1.LabelHostname: "node", corev1.LabelTopologyZone: "a"})
	return n
}

// has reports whether an encoded message has a field with some content.
func has(t *testing.T, message []byte, path []int, is func(content []byte) bool) bool {
	for len(message) > 0 {
		number, typ, n := protowire.ConsumeTag(message)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		size := protowire.ConsumeFieldValue(number, typ, message[n:])
		if size < 0 {
			t.Fatal(protowire.ParseError(size))
		}
		field := message[n : n+size]
		message = message[n+size:]
		if int(number) != path[0] {
			continue
		}
		content := field
		if typ == protowire.BytesType {
			content, _ = protowire.ConsumeBytes(field)
		}
		if len(path) == 1 && is(content) || len(path) > 1 && has(t, content, path[1:], is) {
			return true
		}
	}
	return false
}

func resourceOf(t *testing.T, object runtime.Object) string {
	kinds, _, err := scheme.Scheme.ObjectKinds(object)
	if err != nil {
		t.Fatal(err)
	}
	plural, _ := meta.UnsafeGuessKindToResource(kinds[0])
	return plural.GroupResource().String()
}

func kindOf(event controllers.Events) string {
	switch event {
	case added:
		return "ADDED"
	case modified:
		return "MODIFIED"
	case terminating:
		return "MODIFIED, terminating,"
	case deleted:
		return "DELETED"
	}
	return fmt.Sprint(event)
}

var (
	claimVolume     = corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}
	ephemeralVolume = corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}
)

func pod(volumes ...corev1.VolumeSource) *corev1.Pod {
	p := &corev1.Pod{Spec: corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{Name: "main"}}}}
	for i, v := range volumes {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: fmt.Sprint("volume", i), VolumeSource: v})
	}
	return p
}

func withAddress(p *corev1.Pod) *corev1.Pod {
	p.Status.PodIP, p.Status.PodIPs = "10.42.0.9", []corev1.PodIP{{IP: "10.42.0.9"}}
	return p
}

func claiming(p *corev1.Pod) *corev1.Pod {
	p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu"}}
	return p
}

func claim(phase corev1.PersistentVolumeClaimPhase) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{Status: corev1.PersistentVolumeClaimStatus{Phase: phase}}
}

func ownedBy[T metav1.Object](kind string, o T) T {
	o.SetOwnerReferences([]metav1.OwnerReference{
		{Kind: "Bystander", Name: "other", UID: "0"},
		{Kind: kind, Name: "owner", UID: "1", Controller: new(true)},
	})
	return o
}

func named[T metav1.Object](name string, o T) T {
	o.SetName(name)
	return o
}

func finalized[T metav1.Object](finalizer string, o T) T {
	o.SetFinalizers([]string{finalizer})
	return o
}
